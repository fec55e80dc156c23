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
def add_rows(matrix, rows, weights, begin, end, x):
    """x += weights[i] * matrix[rows[i]] for i from ``begin`` to ``end``, entry by entry in this order.

    Eight rows, or two, in one pass over x, which is then read and written once for all of them. The
    order makes the result independent of how the rows are grouped into passes.
    """
    i, n = begin, x.shape[0]
    while i + 8 <= end:
        a, b, c, d = matrix[rows[i]], matrix[rows[i + 1]], matrix[rows[i + 2]], matrix[rows[i + 3]]
        e, f, g, h = (
            matrix[rows[i + 4]],
            matrix[rows[i + 5]],
            matrix[rows[i + 6]],
            matrix[rows[i + 7]],
        )
        p, q, r, s = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        t, u, v, w = weights[i + 4], weights[i + 5], weights[i + 6], weights[i + 7]
        for j in range(n):
            total = x[j] + p * a[j]
            total = total + q * b[j]
            total = total + r * c[j]
            total = total + s * d[j]
            total = total + t * e[j]
            total = total + u * f[j]
            total = total + v * g[j]
            x[j] = total + w * h[j]
        i += 8
    while i + 2 <= end:
        a, b, p, q = matrix[rows[i]], matrix[rows[i + 1]], weights[i], weights[i + 1]
        for j in range(n):
            total = x[j] + p * a[j]
            x[j] = total + q * b[j]
        i += 2
    if i < end:
        a, p = matrix[rows[i]], weights[i]
        for j in range(n):
            x[j] = x[j] + p * a[j]
