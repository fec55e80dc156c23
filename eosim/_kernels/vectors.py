"""Loops over vectors that the kernels of several models share."""

from __future__ import annotations

import numpy as np
from numba import njit

# Converged states decay into subnormal numbers, on which this arithmetic is many times slower.
# Our choice: no loss formed of entries below 1e-280 differs from 0.
_TINY = 1e-280
FLUSH_EVERY = 64

# Counters start from this: a literal 0 is a type of its own, for which numba would compile all that is
# called with it once more.
ZERO = np.int64(0)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def squared_norm(x):
    total = 0.0
    for j in range(x.shape[0]):
        total += x[j] * x[j]
    return total


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def dot(x, y):
    total = 0.0
    for j in range(x.shape[0]):
        total += x[j] * y[j]
    return total


@njit(cache=True, nogil=True)
def copy(x, y):
    """y = x; assigning slices costs more than a step of a small model."""
    for j in range(x.shape[0]):
        y[j] = x[j]


@njit(cache=True, nogil=True)
def clear(x):
    for j in range(x.shape[0]):
        x[j] = 0.0


@njit(cache=True, nogil=True)
def flush(x):
    for j in range(x.shape[0]):
        if abs(x[j]) < _TINY:
            x[j] = 0.0


@njit(cache=True, nogil=True)
def beyond(x, bound):
    """Whether an entry is larger than ``bound``, or no number."""
    count = 0
    for j in range(x.shape[0]):
        if not (abs(x[j]) <= bound):
            count += 1
    return count > 0


@njit(cache=True, nogil=True)
def next_record(record_steps, step):
    """Position of the first record after ``step``."""
    record = ZERO
    while record < record_steps.shape[0] and record_steps[record] <= step:
        record += 1
    return record


@njit(cache=True, nogil=True, fastmath={"contract"})
def move(rule, gradient, velocity, x):
    """One update of x and of its velocity, by a rule of linear memory.

    velocity <- momentum * velocity + dampening * g, x <- x - lr * (gradient_weight * g +
    velocity_weight * velocity); ``rule`` holds (lr, momentum, dampening, gradient_weight,
    velocity_weight).
    """
    lr, momentum, dampening, gradient_weight, velocity_weight = rule
    for j in range(x.shape[0]):
        velocity[j] = momentum * velocity[j] + dampening * gradient[j]
        x[j] = x[j] - lr * (gradient_weight * gradient[j] + velocity_weight * velocity[j])


@njit(cache=True, nogil=True, fastmath={"contract"})
def _add_eight(matrix, rows, weights, x):
    """x += weights[0] * matrix[rows[0]] + ... + weights[7] * matrix[rows[7]]."""
    a, b, c, d = matrix[rows[0]], matrix[rows[1]], matrix[rows[2]], matrix[rows[3]]
    e, f, g, h = matrix[rows[4]], matrix[rows[5]], matrix[rows[6]], matrix[rows[7]]
    p, q, r, s = weights[0], weights[1], weights[2], weights[3]
    t, u, v, w = weights[4], weights[5], weights[6], weights[7]
    for j in range(x.shape[0]):
        total = x[j] + p * a[j]
        total = total + q * b[j]
        total = total + r * c[j]
        total = total + s * d[j]
        total = total + t * e[j]
        total = total + u * f[j]
        total = total + v * g[j]
        x[j] = total + w * h[j]


@njit(cache=True, nogil=True, fastmath={"contract"})
def add_rows(matrix, rows, weights, x):
    """x += sum over r of weights[r] * matrix[rows[r]], entry by entry in the order of r.

    Eight rows, or two, in one pass over x, which is then read and written once for all of them. The
    order makes the result independent of how the rows are grouped into passes.
    """
    first, n, n_rows = ZERO, x.shape[0], rows.shape[0]
    while first + 8 <= n_rows:
        _add_eight(matrix, rows[first : first + 8], weights[first : first + 8], x)
        first += 8
    while first + 2 <= n_rows:
        a, b = matrix[rows[first]], matrix[rows[first + 1]]
        p, q = weights[first], weights[first + 1]
        for j in range(n):
            total = x[j] + p * a[j]
            x[j] = total + q * b[j]
        first += 2
    if first < n_rows:
        a, p = matrix[rows[first]], weights[first]
        for j in range(n):
            x[j] = x[j] + p * a[j]
