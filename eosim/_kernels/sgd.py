r"""SGD on models that are linear in theta, one trajectory after the other.

Every rule here has linear memory: with the mini-batch gradient g,

    velocity <- momentum * velocity + dampening * g
    theta    <- theta - lr * (gradient_weight * g + velocity_weight * velocity)

``rule`` holds (lr, momentum, dampening, gradient_weight, velocity_weight). A kernel takes a chunk of
replicas and nothing is shared between them, so neither the chunk nor the thread changes a bit.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from eosim._kernels.sampler import BERNOULLI, ZERO, draw_batch, draw_batches

# Converged states decay into subnormal numbers, on which this arithmetic is many times slower.
# Our choice: no loss formed of entries below 1e-280 differs from 0.
_TINY = 1e-280
_FLUSH_EVERY = 64
# Steps between two looks for a divergence; when there is one, they are made again one by one.
_CHECK_EVERY = 16
# Rows of K taken in one pass over the residuals: each pass reads and writes them once.
_ROWS_PER_PASS = 8
# Columns of a tile: eight rows of it stay in cache while they go to one state after the other.
_TILE = 1024


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _squared_norm(x):
    total = 0.0
    for j in range(x.shape[0]):
        total += x[j] * x[j]
    return total


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dot(x, y):
    total = 0.0
    for j in range(x.shape[0]):
        total += x[j] * y[j]
    return total


@njit(cache=True, nogil=True, inline="always")
def _four_rows(matrix, rows, first, begin, end):
    """Columns from ``begin`` to ``end`` of four rows; slices of a slice of columns do not vectorise."""
    return (
        matrix[rows[first]][begin:end],
        matrix[rows[first + 1]][begin:end],
        matrix[rows[first + 2]][begin:end],
        matrix[rows[first + 3]][begin:end],
    )


@njit(cache=True, nogil=True, inline="always")
def _four(weights, first):
    return weights[first], weights[first + 1], weights[first + 2], weights[first + 3]


@njit(cache=True, nogil=True, inline="always", fastmath={"contract"})
def _plus(y, w, a, j):
    """y plus four products, one after the other."""
    y = y + w[0] * a[0][j]
    y = y + w[1] * a[1][j]
    y = y + w[2] * a[2][j]
    return y + w[3] * a[3][j]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _add_eight(x, u, a, v, b):
    for j in range(x.shape[0]):
        x[j] = _plus(_plus(x[j], u, a, j), v, b, j)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _add_rows(matrix, rows, weights, n_rows, x):
    """x += sum over r of weights[r] * matrix[rows[r]], entry by entry in the order of r.

    Eight rows, or two, in one pass over x, which is then read and written once for all of them. The
    order makes the result independent of how the rows are grouped into passes.
    """
    first, n = ZERO, x.shape[0]
    while first + 8 <= n_rows:
        a, b = _four_rows(matrix, rows, first, 0, n), _four_rows(matrix, rows, first + 4, 0, n)
        _add_eight(x, _four(weights, first), a, _four(weights, first + 4), b)
        first += 8
    while first + 2 <= n_rows:
        c, w = matrix[rows[first]], weights[first]
        d, z = matrix[rows[first + 1]], weights[first + 1]
        for j in range(n):
            y = x[j] + w * c[j]
            x[j] = y + z * d[j]
        first += 2
    if first < n_rows:
        c, w = matrix[rows[first]], weights[first]
        for j in range(n):
            x[j] = x[j] + w * c[j]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _add_eight_to_two(x, u, v, y, w, z, a, b):
    """Each entry of the rows that is loaded is used twice."""
    for j in range(x.shape[0]):
        x[j] = _plus(_plus(x[j], u, a, j), v, b, j)
        y[j] = _plus(_plus(y[j], w, a, j), z, b, j)


@njit(cache=True, nogil=True)
def _add_rows_to_all(matrix, rows, weights, n_rows, chosen, n_chosen, states):
    """`_add_rows` to states[i] with weights[i], for each of the ``chosen`` i, to the bit.

    Eight rows at a time go to all states, two by two, a tile of columns after the other.
    """
    whole = n_rows - n_rows % 8
    for begin in range(0, matrix.shape[1], _TILE):
        end = begin + _TILE
        for first in range(0, whole, 8):
            a = _four_rows(matrix, rows, first, begin, end)
            b = _four_rows(matrix, rows, first + 4, begin, end)
            for k in range(0, n_chosen - 1, 2):
                i, m = chosen[k], chosen[k + 1]
                _add_eight_to_two(
                    states[i][begin:end], _four(weights[i], first), _four(weights[i], first + 4),
                    states[m][begin:end], _four(weights[m], first), _four(weights[m], first + 4),
                    a, b,
                )  # fmt: skip
            if n_chosen % 2 == 1:
                i = chosen[n_chosen - 1]
                u, v = _four(weights[i], first), _four(weights[i], first + 4)
                _add_eight(states[i][begin:end], u, a, v, b)
    for k in range(n_chosen):
        i = chosen[k]
        _add_rows(matrix, rows[whole:], weights[i][whole:], n_rows - whole, states[i])


@njit(cache=True, nogil=True, fastmath={"contract"})
def _corrected(value, matrix, rows, weights, n_rows, column):
    """``value`` as `_add_rows` would leave the entry ``column``, to the bit."""
    for r in range(n_rows):
        value = value + weights[r] * matrix[rows[r], column]
    return value


@njit(cache=True, nogil=True)
def _copy(x, y):
    """y = x; assigning slices costs more than a step of a small model."""
    for j in range(x.shape[0]):
        y[j] = x[j]


@njit(cache=True, nogil=True)
def _clear(x):
    for j in range(x.shape[0]):
        x[j] = 0.0


@njit(cache=True, nogil=True)
def _flush(x):
    for j in range(x.shape[0]):
        if abs(x[j]) < _TINY:
            x[j] = 0.0


@njit(cache=True, nogil=True)
def _beyond(x, bound):
    """Whether an entry is larger than ``bound``, or no number."""
    count = 0
    for j in range(x.shape[0]):
        if not (abs(x[j]) <= bound):
            count += 1
    return count > 0


@njit(cache=True, nogil=True, fastmath={"contract"})
def _move(rule, gradient, velocity, x):
    """One update of x and of its velocity."""
    lr, momentum, dampening, gradient_weight, velocity_weight = rule
    for j in range(x.shape[0]):
        velocity[j] = momentum * velocity[j] + dampening * gradient[j]
        x[j] = x[j] - lr * (gradient_weight * gradient[j] + velocity_weight * velocity[j])


@njit(cache=True, nogil=True)
def residual_sgd(
    kernel, states, keys, scheme, batch_size, rule, record_steps, limit, losses, stops, duals
):
    r"""Residual space: :math:`z \leftarrow z - \frac{\eta}{B} K_{:S} z_S` with :math:`K = J J^\top`.

    Parameters
    ----------
    kernel : (n, width) array of float64 or float32
        K, symmetric: its rows are read. Columns from n on hold zeros.
    states : (m, width) array
        Residuals of m replicas, and zeros from n on: at the start; on exit the last ones within the
        limit.
    keys : (m, 2) uint64 array
    scheme, batch_size : int
    rule : tuple of five floats
    record_steps : (n_records,) int64 array
        Increasing, from 0; the last entry is the number of steps.
    limit : (m,) array
        Of |z|^2; beyond it a replica has diverged.
    losses : (m, n_records) array
        |z|^2 / 2n; entries after a divergence stay as they are.
    stops : (m,) int64 array
        The step of the divergence, left as it is if there is none.
    duals : (m, n) or (m, 0) array
        Coefficients a with theta = theta_0 + J^T a; not followed if empty.

    Notes
    -----
    Without momentum, steps of small batches are joined into one pass over z: what an earlier step of
    the pass does to the residuals that a later one needs is read from K entry by entry, in the same
    order, so that joining changes no bit.
    """
    n, width = kernel.shape
    plain = rule[1] == 0.0 and rule[2] == 0.0
    joined = max(1, _ROWS_PER_PASS // batch_size) if plain else 1
    per_step = n if scheme == BERNOULLI else batch_size
    permutation, positions, order = np.arange(n), np.empty(n, np.int64), np.empty(n + 1, np.int64)
    rows, weights = np.empty(joined * per_step, np.int64), np.empty(joined * per_step)
    ends = np.empty(joined, np.int64)
    n_duals = duals.shape[1]
    z_before, dual_before = np.empty(width), np.empty(n_duals)
    if plain:  # nothing but z and the dual moves
        width, n_duals = 0, 0
    gradient, velocity, velocity_before = np.empty(width), np.empty(width), np.empty(width)
    dual_gradient, dual_velocity = np.empty(n_duals), np.empty(n_duals)
    dual_velocity_before = np.empty(n_duals)
    for r in range(states.shape[0]):
        z, dual, key_0, key_1 = states[r], duals[r], keys[r, 0], keys[r, 1]
        order[n] = -1
        _clear(velocity)
        _clear(dual_velocity)
        step, record, longest = ZERO, ZERO, _CHECK_EVERY
        norm = _squared_norm(z)
        while True:
            if step == record_steps[record]:
                losses[r, record] = norm / (2 * n)
                record += 1
                if record == record_steps.shape[0]:
                    break
            until = min(record_steps[record], (step // _FLUSH_EVERY + 1) * _FLUSH_EVERY)
            until = min(until, step + longest)
            first = step
            _copy(z, z_before)
            _copy(velocity, velocity_before)
            _copy(dual, dual_before)
            _copy(dual_velocity, dual_velocity_before)
            while step < until:
                n_steps = min(joined, until - step)
                draw_batches(
                    scheme, key_0, key_1, step, n_steps, n, batch_size, permutation, positions,
                    order, rows, ends,
                )  # fmt: skip
                n_rows = ZERO
                for i in range(n_steps):
                    end = ends[i]
                    scale = 1.0 / (batch_size if scheme == BERNOULLI else end - n_rows)
                    if plain:
                        scale = -rule[0] * scale
                    for j in range(n_rows, end):
                        value = z[rows[j]]
                        if n_rows > 0:
                            value = _corrected(value, kernel, rows, weights, n_rows, rows[j])
                        weights[j] = scale * value
                    n_rows = end
                step += n_steps
                moved, dual_moved = (z, dual) if plain else (gradient, dual_gradient)
                if not plain:
                    _clear(gradient)
                    _clear(dual_gradient)
                _add_rows(kernel, rows, weights, n_rows, moved)
                if dual_before.shape[0] > 0:
                    for j in range(n_rows):
                        dual_moved[rows[j]] += weights[j]
                if not plain:
                    _move(rule, gradient, velocity, z)
                    _move(rule, dual_gradient, dual_velocity, dual)
            norm = _squared_norm(z)
            if not (norm <= limit[r]):
                _copy(z_before, z)
                _copy(velocity_before, velocity)
                _copy(dual_before, dual)
                _copy(dual_velocity_before, dual_velocity)
                if until == first + 1:
                    stops[r] = until
                    break
                step, longest = first, 1  # again, one by one, to find the step
                norm = _squared_norm(z)
                continue
            if step % _FLUSH_EVERY == 0:
                _flush(z)
                _flush(velocity)
                _flush(dual_velocity)


@njit(cache=True, nogil=True)
def residual_sgd_shared(
    kernel, states, keys, scheme, batch_size, lrs, record_steps, limit, losses, left, duals
):
    r"""`residual_sgd` of gradient descent at several rates that meet the same batches, to the bit.

    Parameters
    ----------
    kernel, keys, scheme, batch_size, record_steps
        As in `residual_sgd`.
    states : (m, n_rates, width) array
        Residuals of m replicas at each rate, in place.
    lrs : (n_rates,) array
    limit : (m,) array
    losses : (m, n_rates, n_records) array
    left : (m, n_rates) bool array
        Set where a state left its limit. What stands there in the other arrays is then of no use:
        `residual_sgd` makes that run again, and finds the step.
    duals : (m, n_rates, n) or (m, n_rates, 0) array
    """
    n = kernel.shape[0]
    n_rates = lrs.shape[0]
    joined = max(1, _ROWS_PER_PASS // batch_size)
    most = joined * (n if scheme == BERNOULLI else batch_size)
    permutation, positions, order = np.arange(n), np.empty(n, np.int64), np.empty(n + 1, np.int64)
    rows, weights = np.empty(most, np.int64), np.empty((n_rates, most))
    ends = np.empty(joined, np.int64)
    chosen = np.empty(n_rates, np.int64)
    for r in range(states.shape[0]):
        order[n] = -1
        n_chosen = n_rates
        for i in range(n_rates):
            chosen[i] = i
        step, record = ZERO, ZERO
        while True:
            at_record = step == record_steps[record]
            kept = 0
            for k in range(n_chosen):
                i = chosen[k]
                norm = _squared_norm(states[r, i])
                if step > 0 and not (norm <= limit[r]):
                    left[r, i] = True
                    continue
                chosen[kept] = i
                kept += 1
                if at_record:
                    losses[r, i, record] = norm / (2 * n)
                if step % _FLUSH_EVERY == 0 and step > 0:
                    _flush(states[r, i])
            n_chosen = kept
            if at_record:
                record += 1
                if record == record_steps.shape[0]:
                    break
            if n_chosen == 0:
                break
            until = min(record_steps[record], (step // _FLUSH_EVERY + 1) * _FLUSH_EVERY)
            until = min(until, step + _CHECK_EVERY)
            while step < until:
                n_steps = min(joined, until - step)
                draw_batches(
                    scheme, keys[r, 0], keys[r, 1], step, n_steps, n, batch_size, permutation,
                    positions, order, rows, ends,
                )  # fmt: skip
                n_rows = ZERO
                for s in range(n_steps):
                    end = ends[s]
                    share = 1.0 / (batch_size if scheme == BERNOULLI else end - n_rows)
                    for k in range(n_chosen):
                        i = chosen[k]
                        scale = -lrs[i] * share
                        for j in range(n_rows, end):
                            value = states[r, i, rows[j]]
                            if n_rows > 0:
                                value = _corrected(value, kernel, rows, weights[i], n_rows, rows[j])
                            weights[i, j] = scale * value
                    n_rows = end
                step += n_steps
                _add_rows_to_all(kernel, rows, weights, n_rows, chosen, n_chosen, states[r])
                if duals.shape[2] > 0:
                    for k in range(n_chosen):
                        i = chosen[k]
                        for j in range(n_rows):
                            duals[r, i, rows[j]] += weights[i, j]


@njit(cache=True, nogil=True)
def parameter_sgd(
    inputs, targets, states, keys, scheme, batch_size, rule, record_steps, limit, losses, stops
):
    r"""Parameter space: :math:`\theta \leftarrow \theta - \frac{\eta}{B} X_S^\top (X_S\theta - y_S)`.

    Parameters
    ----------
    inputs, targets : (n, d) and (n,) arrays
        X and y.
    states : (m, d) array
        Parameters of m replicas: at the start; on exit the last ones within the limit.
    limit : (m,) array
        Of the largest entry of theta.
    keys, scheme, batch_size, rule, record_steps, losses, stops
        As in `residual_sgd`.
    """
    n, d = inputs.shape
    permutation, positions, order = np.arange(n), np.empty(n, np.int64), np.empty(n + 1, np.int64)
    rows, weights = np.empty(n, np.int64), np.empty(n)
    before, gradient, velocity = np.empty(d), np.empty(d), np.empty(d)
    for r in range(states.shape[0]):
        theta = states[r]
        order[n] = -1
        _clear(velocity)
        step, record = ZERO, ZERO
        while True:
            if step == record_steps[record]:
                total = 0.0
                for i in range(n):
                    residual = _dot(inputs[i], theta) - targets[i]
                    total += residual * residual
                losses[r, record] = total / (2 * n)
                record += 1
                if record == record_steps.shape[0]:
                    break
            size = draw_batch(
                scheme, keys[r, 0], keys[r, 1], step, n, batch_size, permutation, positions, order,
                rows, ZERO,
            )  # fmt: skip
            scale = 1.0 / (batch_size if scheme == BERNOULLI else max(size, 1))
            for j in range(size):
                weights[j] = scale * (_dot(inputs[rows[j]], theta) - targets[rows[j]])
            _clear(gradient)
            _add_rows(inputs, rows, weights, size, gradient)
            _copy(theta, before)
            _move(rule, gradient, velocity, theta)
            if _beyond(theta, limit[r]):
                _copy(before, theta)
                stops[r] = step + 1
                break
            step += 1
            if step % _FLUSH_EVERY == 0:
                _flush(theta)
                _flush(velocity)


@njit(cache=True, nogil=True)
def modal_descent(
    curvatures, n_samples, states, constant, rule, record_steps, limit, losses, stops, duals
):
    r"""The full batch in the eigenbasis of K: :math:`q_a \leftarrow (1 - \eta\lambda_a) q_a`.

    Parameters
    ----------
    curvatures : (k,) array
        :math:`\lambda_a`, eigenvalues of K / n.
    n_samples : int
        n.
    states : (m, k) array
        Components of the residuals along the eigenvectors, in place.
    constant : (m,) array
        |z|^2 outside of their span: it never changes.
    rule, record_steps, limit, losses, stops
        As in `residual_sgd`.
    duals : (m, k) array
        Components of n a, with theta = theta_0 + J^T a, in place.
    """
    k = curvatures.shape[0]
    before, gradient, velocity, dual_velocity = np.empty(k), np.empty(k), np.empty(k), np.empty(k)
    for r in range(states.shape[0]):
        q = states[r]
        _clear(velocity)
        _clear(dual_velocity)
        step, record = ZERO, ZERO
        while True:
            if step == record_steps[record]:
                losses[r, record] = (_squared_norm(q) + constant[r]) / (2 * n_samples)
                record += 1
                if record == record_steps.shape[0]:
                    break
            _copy(q, before)
            for a in range(k):
                gradient[a] = curvatures[a] * q[a]
            _move(rule, gradient, velocity, q)
            if not (_squared_norm(q) + constant[r] <= limit[r]):
                _copy(before, q)
                stops[r] = step + 1
                break
            _move(rule, before, dual_velocity, duals[r])
            step += 1
            if step % _FLUSH_EVERY == 0:
                _flush(q)
                _flush(velocity)
                _flush(dual_velocity)
