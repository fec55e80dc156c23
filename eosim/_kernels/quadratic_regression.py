"""Products with symmetric matrices Q_a that are stored as triangles, and descent made of them.

Row a of ``packed`` holds Q_a[j, k] with k <= j at position j (j + 1) / 2 + k. Every entry is read once,
serves Q_a[j, k] and Q_a[k, j], and is multiplied and summed in float64 whatever it is stored in. Rows
of a triangle are taken in the order of memory, one at a time: several at once need fewer
instructions, but where Q is larger than the caches they take twice as long, because the processor
no longer sees what to read ahead.

Sums may be reassociated (without it they are not vectorised: three times slower); no kernel here tests
finiteness by arithmetic, and NaN and infinity pass through.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from eosim._kernels.vectors import FLUSH_EVERY, ZERO, beyond, copy, flush, move

_SUMS = {"reassoc", "contract"}
# Replicas in one matrix product: always the same number, so that no replica's bits depend on the
# others. Our choice: OpenBLAS takes both factors as they lie up to 1e6 multiplications, and is faster
# so; larger matrices are copied, which pays for more rows only.
_BLOCK, _LARGE_BLOCK = 8, 32
_LARGE = 1_000_000


@njit(cache=True, nogil=True, fastmath=_SUMS)
def _multiply(triangle, vectors, chosen, n_chosen, products):
    """products[c] = Q v with v = vectors[chosen[c]], for c below ``n_chosen``."""
    start = 0
    for j in range(vectors.shape[1]):
        row = triangle[start : start + j + 1]
        for c in range(n_chosen):  # inside: the row is still in the nearest cache
            vector, product = vectors[chosen[c]], products[c]
            x, total = vector[j], 0.0
            for k in range(j):
                total += row[k] * vector[k]
                product[k] += row[k] * x
            product[j] = total + row[j] * x
        start += j + 1


@njit(cache=True, nogil=True, fastmath=_SUMS)
def _multiply_two(triangle_a, triangle_b, vector, products):
    """products = Q_a v, Q_b v: each waits less for memory while the other is multiplied."""
    product_a, product_b, start = products[0], products[1], 0
    for j in range(vector.shape[0]):
        a, b = triangle_a[start : start + j + 1], triangle_b[start : start + j + 1]
        x, total_a, total_b = vector[j], 0.0, 0.0
        for k in range(j):
            y = vector[k]
            total_a += a[k] * y
            total_b += b[k] * y
            product_a[k] += a[k] * x
            product_b[k] += b[k] * x
        product_a[j], product_b[j] = total_a + a[j] * x, total_b + b[j] * x
        start += j + 1


@njit(cache=True, nogil=True)
def images(packed, batch, vectors):
    """Q_a v for every sample a of ``batch`` and every v: (len(batch), n_vectors, P), one pass."""
    result = np.empty((len(batch), *vectors.shape))
    everything = np.arange(len(vectors))
    for index in range(len(batch)):
        _multiply(packed[batch[index]], vectors, everything, len(vectors), result[index])
    return result


@njit(cache=True, nogil=True, fastmath=_SUMS)
def weighted_sum(packed, batch, weights):
    """sum_a weights_a Q_a over the samples of ``batch``, as a triangle, for each row of weights."""
    result = np.zeros((len(weights), packed.shape[1]))
    for index in range(len(batch)):
        triangle = packed[batch[index]]
        for which in range(len(weights)):
            weight = weights[which, index]
            for k in range(packed.shape[1]):
                result[which, k] += weight * triangle[k]
    return result


@njit(cache=True, nogil=True, fastmath=_SUMS)
def _add_pull(residual, slope, product, theta, weight, gradient):
    """Add one sample's part, weight z (J + Q theta), to the gradient; returns its residual z.

    ``residual`` and ``slope`` are z and J at the origin, ``product`` is Q theta.
    """
    z = residual
    for k in range(theta.shape[0]):
        z += (slope[k] + 0.5 * product[k]) * theta[k]
    pull = weight * z
    for k in range(theta.shape[0]):
        gradient[k] += pull * (slope[k] + product[k])
    return z


@njit(cache=True, nogil=True)
def mean_gradient(packed, residuals, jacobian, batch, theta):
    """The gradient of half the mean of z^2 over the samples of ``batch``: each triangle read once."""
    size, gradient = len(batch), np.zeros(theta.shape[0])
    products, vectors, only = np.empty((2, len(theta))), theta.reshape(1, -1), np.zeros(1, np.int64)
    for first in range(0, size, 2):
        pair = batch[first : first + 2]
        if len(pair) == 2:
            _multiply_two(packed[pair[0]], packed[pair[1]], theta, products)
        else:
            _multiply(packed[pair[0]], vectors, only, 1, products)
        for i, a in enumerate(pair):
            _add_pull(residuals[a], jacobian[a], products[i], theta, 1.0, gradient)
    return gradient / size


@njit(cache=True, nogil=True, fastmath=_SUMS)
def _bends(triangle, states, active, n_active, bends):
    """bends[c] = theta Q theta / 2 for theta = states[active[c]]: half of Q, and nothing is stored.

    Always four at a time, for which a row is loaded once; ``bends`` has room for as many.
    """
    last = n_active - 1
    for first in range(0, n_active, 4):
        p, q = states[active[first]], states[active[min(first + 1, last)]]
        r, s = states[active[min(first + 2, last)]], states[active[min(first + 3, last)]]
        start, bend_p, bend_q, bend_r, bend_s = 0, 0.0, 0.0, 0.0, 0.0
        for j in range(states.shape[1]):
            row = triangle[start : start + j + 1]
            half = 0.5 * row[j]
            sum_p, sum_q, sum_r, sum_s = half * p[j], half * q[j], half * r[j], half * s[j]
            for k in range(j):
                sum_p += row[k] * p[k]
                sum_q += row[k] * q[k]
                sum_r += row[k] * r[k]
                sum_s += row[k] * s[k]
            bend_p += p[j] * sum_p
            bend_q += q[j] * sum_q
            bend_r += r[j] * sum_r
            bend_s += s[j] * sum_s
            start += j + 1
        bends[first], bends[first + 1] = bend_p, bend_q
        bends[first + 2], bends[first + 3] = bend_r, bend_s


@njit(cache=True, nogil=True, fastmath=_SUMS)
def _losses(packed, residuals, jacobian, states, active, n_active, losses):
    """losses[c] = |z|^2 / 2n of the replica active[c]."""
    n, bends = len(residuals), np.empty(n_active + 3)
    losses[:n_active] = 0.0
    for a in range(n):
        _bends(packed[a], states, active, n_active, bends)
        slope = jacobian[a]
        for c in range(n_active):
            theta, z = states[active[c]], residuals[a] + bends[c]
            for k in range(theta.shape[0]):
                z += slope[k] * theta[k]
            losses[c] += z * z / (2 * n)


@njit(cache=True, nogil=True)
def _step(rule, gradients, velocities, states, limit, step, active, n_active, stops, before):
    """Move the active replicas, drop those that leave their limit; returns how many are left."""
    left = 0
    for c in range(n_active):
        r = active[c]
        copy(states[r], before)
        move(rule, gradients[c], velocities[r], states[r])
        if beyond(states[r], limit[r]):
            copy(before, states[r])
            stops[r] = step
            continue
        if step % FLUSH_EVERY == 0:
            flush(states[r])
            flush(velocities[r])
        active[left] = r
        left += 1
    return left


@njit(cache=True, nogil=True)
def batch_descent(
    packed, residuals, jacobian, states, velocities, rows, ends, shares, first, rule, record_steps,
    record, limit, losses, stops,
):  # fmt: skip
    r"""SGD of m replicas side by side: every triangle that some of them draw is read once per step.

    Parameters
    ----------
    packed, residuals, jacobian : (n, P (P + 1) / 2), (n,) and (n, P) arrays
        The triangles, z and J at theta = 0.
    states, velocities : (m, P) arrays
        Parameters at the start; on exit the last ones within the limit. Their velocities.
    rows, ends, shares, first
        A block of batches, see `eosim._kernels.sgd`.
    rule : tuple of five floats
        Of linear memory, see `move`.
    record_steps, record : (n_records,) int64 array, int
        Increasing, from 0; the last entry is the number of steps. The first one after ``first``.
    limit : (m,) array
        Of the largest entry of theta; beyond it a replica has diverged.
    losses : (m, n_records) array
        Entries after a divergence stay as they are.
    stops : (m,) int64 array
        The step of the divergence, left as it is if there is none; below 0 at the start.

    Notes
    -----
    A replica's samples are summed in the order of their numbers, whatever the others draw.
    """
    (n, dim), m = jacobian.shape, len(states)
    takers, weights = np.empty((n, m), np.int64), np.empty((n, m))
    n_takers = np.zeros(n, np.int64)
    thetas, products, gradients = np.empty((m, dim)), np.empty((m, dim)), np.empty((m, dim))
    before, current = np.empty(dim), np.empty(m)
    active, n_active = np.empty(m, np.int64), ZERO
    for r in range(m):
        if stops[r] < 0:
            active[n_active] = r
            n_active += 1
    if first == 0:
        _losses(packed, residuals, jacobian, states, active, n_active, current)
        for c in range(n_active):
            losses[active[c], 0] = current[c]
    for s in range(ends.shape[1]):
        if n_active == 0:
            break
        for c in range(n_active):
            r = active[c]
            begin, scale = ends[r, s - 1] if s > 0 else ZERO, shares[r, s]
            for a in rows[r, begin : ends[r, s]]:
                last = n_takers[a] - 1
                if last >= 0 and takers[a, last] == c:  # drawn again: with replacement
                    weights[a, last] += scale
                else:
                    takers[a, last + 1], weights[a, last + 1] = c, scale
                    n_takers[a] += 1
            copy(states[r], thetas[c])
        gradients[:n_active] = 0.0
        for a in range(n):
            if n_takers[a] == 0:
                continue
            _multiply(packed[a], thetas, takers[a], n_takers[a], products)
            for t in range(n_takers[a]):
                c = takers[a, t]
                _add_pull(
                    residuals[a], jacobian[a], products[t], thetas[c], weights[a, t], gradients[c]
                )
            n_takers[a] = 0
        step = first + s + 1
        n_active = _step(
            rule, gradients, velocities, states, limit, step, active, n_active, stops, before
        )
        if step == record_steps[record]:
            _losses(packed, residuals, jacobian, states, active, n_active, current)
            for c in range(n_active):
                losses[active[c], record] = current[c]
            record += 1


@njit(cache=True, nogil=True)
def _expand(triangle, matrix):
    """The symmetric matrix of a triangle, which is read to its end first, in one stream."""
    dim, start = matrix.shape[0], 0
    for j in range(dim):
        row, target = triangle[start : start + j + 1], matrix[j]
        for k in range(j + 1):
            target[k] = row[k]
        start += j + 1
    whole = dim - dim % 8
    for first in range(0, whole, 8):  # eight columns at a time: a cache line of every row
        for k in range(first):
            target = matrix[k][first : first + 8]
            for i in range(8):
                target[i] = matrix[first + i, k]
        for j in range(first, first + 8):
            for k in range(first, j):
                matrix[k, j] = matrix[j, k]
    for j in range(whole, dim):
        for k in range(j):
            matrix[k, j] = matrix[j, k]


@njit(cache=True, nogil=True)
def full_descent(packed, residuals, jacobian, states, rule, record_steps, limit, losses, stops):
    r"""Descent of m replicas on all samples: one matrix product for a sample and a block of them.

    Parameters as in `batch_descent`. Each triangle is expanded once per step, and what its products
    add to losses and gradients is added while they are in cache; the loss costs nothing more.
    """
    (n, dim), m = jacobian.shape, len(states)
    size = _BLOCK if _BLOCK * dim * dim <= _LARGE else _LARGE_BLOCK
    thetas, products = np.zeros(((m + size - 1) // size, size, dim)), np.empty((size, dim))
    matrix = np.empty((dim, dim))
    gradients, velocities = np.empty((m, dim)), np.zeros((m, dim))
    before, squares = np.empty(dim), np.empty(m)
    active, n_active, step, record = np.arange(m), m, ZERO, ZERO
    while n_active > 0:
        for c in range(n_active):
            copy(states[active[c]], thetas[c // size, c % size])
        gradients[:] = 0.0
        squares[:] = 0.0
        for a in range(n):
            _expand(packed[a], matrix)
            for first in range(0, n_active, size):
                block = thetas[first // size]
                np.dot(block, matrix, products)
                for c in range(first, min(first + size, n_active)):
                    i = c - first
                    z = _add_pull(
                        residuals[a], jacobian[a], products[i], block[i], 1.0 / n, gradients[c]
                    )
                    squares[c] += z * z
        if step == record_steps[record]:
            for c in range(n_active):
                losses[active[c], record] = squares[c] / (2 * n)
            record += 1
            if record == record_steps.shape[0]:
                break
        step += 1
        n_active = _step(
            rule, gradients, velocities, states, limit, step, active, n_active, stops, before
        )
