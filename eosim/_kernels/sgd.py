r"""SGD on models that are linear in theta, one trajectory after the other.

A call makes the steps of one block of batches, `eosim.sampling.Batches`: step ``first`` + i of replica r
takes the samples rows[r, ends[r, i-1]:ends[r, i]], each with the weight shares[r, i]. Nothing is shared
between replicas, and as blocks begin on a fixed grid, what is done at a step does not depend on where
they do: neither chunk, nor block, nor thread changes a bit. ``record_steps`` increase from 0 to the
number of steps; at step 0 the first call records before it moves.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from eosim._kernels.vectors import (
    FLUSH_EVERY,
    ZERO,
    add_rows,
    beyond,
    clear,
    copy,
    dot,
    flush,
    move,
    squared_norm,
)

# Steps between two looks for a divergence; when there is one, they are made again one by one.
_CHECK_EVERY = 16
# Rows of K taken in one pass over the residuals: each pass reads and writes them once.
_ROWS_PER_PASS = 8
# Columns of a tile: eight rows of it stay in cache while they go to one state after the other.
_TILE = 1024


@njit(cache=True, nogil=True, fastmath={"contract"})
def _corrected(value, matrix, rows, weights, begin, end, column):
    """``value`` as `add_rows` would leave the entry ``column``, to the bit."""
    for i in range(begin, end):
        value = value + weights[i] * matrix[rows[i], column]
    return value


@njit(cache=True, nogil=True)
def residual_sgd(
    kernel, states, rows, ends, shares, first, lr, record_steps, record, limit, losses, stops, duals
):
    r"""Residual space: :math:`z \leftarrow z - \frac{\eta}{B} K_{:S} z_S` with :math:`K = J J^\top`.

    Parameters
    ----------
    kernel : (n, width) array of float64 or float32
        K, symmetric: its rows are read. Columns from n on hold zeros.
    states : (m, width) array
        Residuals of m replicas, and zeros from n on: at the start; on exit the last ones within the
        limit.
    rows, ends, shares, first
        The batches, see above.
    lr : float
    record_steps, record : (n_records,) int64 array, int
        When to record, and the position of the first record after ``first``.
    limit : (m,) array
        Of |z|^2; beyond it a replica has diverged.
    losses : (m, n_records) array
        |z|^2 / 2n; entries after a divergence stay as they are.
    stops : (m,) int64 array
        The step of the divergence, left as it is if there is none; below 0 at the start.
    duals : (m, n) or (m, 0) array
        Coefficients a with theta = theta_0 + J^T a; not followed if empty.

    Notes
    -----
    Steps of small batches are joined into one pass over z: what an earlier step of the pass does to
    the residuals that a later one needs is read from K entry by entry, in the same order, so that
    joining changes no bit.
    """
    n, width = kernel.shape
    last = first + ends.shape[1]
    weights = np.empty(rows.shape[1])
    before, dual_before = np.empty(width), np.empty(duals.shape[1])
    for r in range(states.shape[0]):
        if stops[r] >= 0:
            continue
        z, dual, drawn = states[r], duals[r], rows[r]
        norm = squared_norm(z)
        if first == 0:
            losses[r, 0] = norm / (2 * n)
        step, longest, coming = first, _CHECK_EVERY, record
        while step < last:
            until = min(record_steps[coming], (step // longest + 1) * longest, last)
            begin = step
            copy(z, before)
            copy(dual, dual_before)
            while step < until:
                start = ends[r, step - first - 1] if step > first else ZERO
                end = start  # of the rows in this pass
                while step < until and (
                    end == start or ends[r, step - first] <= start + _ROWS_PER_PASS
                ):
                    scale, behind = -lr * shares[r, step - first], end
                    end = ends[r, step - first]
                    for j in range(behind, end):
                        value = z[drawn[j]]
                        if behind > start:
                            value = _corrected(
                                value, kernel, drawn, weights, start, behind, drawn[j]
                            )
                        weights[j] = scale * value
                    step += 1
                add_rows(kernel, drawn, weights, start, end, z)
                if dual.shape[0] > 0:
                    for j in range(start, end):
                        dual[drawn[j]] += weights[j]
            norm = squared_norm(z)
            if not (norm <= limit[r]):
                copy(before, z)
                copy(dual_before, dual)
                if until == begin + 1:
                    stops[r] = until
                    break
                step, longest = begin, 1  # again, one by one, to find the step
                continue
            if step % FLUSH_EVERY == 0:
                flush(z)
            if step == record_steps[coming]:
                losses[r, coming] = norm / (2 * n)
                coming += 1


@njit(cache=True, nogil=True)
def residual_momentum(
    kernel, states, velocities, rows, ends, shares, first, rule, record_steps, record, limit, losses,
    stops, duals, dual_velocities,
):  # fmt: skip
    """`residual_sgd` by a rule of linear memory, see `move`.

    Parameters
    ----------
    velocities : (m, width) array
        Of the residuals.
    dual_velocities : (m, n) or (m, 0) array
        Of ``duals``.
    rule : tuple of five floats
    kernel, states, rows, ends, shares, first, record_steps, record, limit, losses, stops, duals
        As in `residual_sgd`.
    """
    n, width = kernel.shape
    n_duals, last = duals.shape[1], first + ends.shape[1]
    weights = np.empty(rows.shape[1])
    gradient, dual_gradient = np.empty(width), np.empty(n_duals)
    before, velocity_before = np.empty(width), np.empty(width)
    dual_before, dual_velocity_before = np.empty(n_duals), np.empty(n_duals)
    for r in range(states.shape[0]):
        if stops[r] >= 0:
            continue
        z, velocity, drawn = states[r], velocities[r], rows[r]
        dual, dual_velocity = duals[r], dual_velocities[r]
        norm = squared_norm(z)
        if first == 0:
            losses[r, 0] = norm / (2 * n)
        step, longest, coming = first, _CHECK_EVERY, record
        while step < last:
            until = min(record_steps[coming], (step // longest + 1) * longest, last)
            begin = step
            copy(z, before)
            copy(velocity, velocity_before)
            copy(dual, dual_before)
            copy(dual_velocity, dual_velocity_before)
            while step < until:
                start = ends[r, step - first - 1] if step > first else ZERO
                end = ends[r, step - first]
                for j in range(start, end):
                    weights[j] = shares[r, step - first] * z[drawn[j]]
                clear(gradient)
                add_rows(kernel, drawn, weights, start, end, gradient)
                move(rule, gradient, velocity, z)
                if n_duals > 0:
                    clear(dual_gradient)
                    for j in range(start, end):
                        dual_gradient[drawn[j]] += weights[j]
                    move(rule, dual_gradient, dual_velocity, dual)
                step += 1
            norm = squared_norm(z)
            if not (norm <= limit[r]):
                copy(before, z)
                copy(velocity_before, velocity)
                copy(dual_before, dual)
                copy(dual_velocity_before, dual_velocity)
                if until == begin + 1:
                    stops[r] = until
                    break
                step, longest = begin, 1  # again, one by one, to find the step
                continue
            if step % FLUSH_EVERY == 0:
                flush(z)
                flush(velocity)
                flush(dual_velocity)
            if step == record_steps[coming]:
                losses[r, coming] = norm / (2 * n)
                coming += 1


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
def _add_eight_to_two(x, u, v, y, w, z, a, b):
    """Each entry of the rows that is loaded is used twice."""
    for j in range(x.shape[0]):
        x[j] = _plus(_plus(x[j], u, a, j), v, b, j)
        y[j] = _plus(_plus(y[j], w, a, j), z, b, j)


@njit(cache=True, nogil=True)
def _add_rows_to_all(matrix, rows, weights, chosen, n_chosen, states):
    """`add_rows` to states[i] with weights[i], for each of the ``chosen`` i, to the bit.

    Eight rows at a time go to the states, two by two, a tile of columns after the other.
    """
    n_rows = rows.shape[0]
    in_eights, in_pairs = n_rows - n_rows % 8, n_chosen - n_chosen % 2
    for begin in range(0, matrix.shape[1], _TILE):
        end = begin + _TILE
        for first in range(0, in_eights, 8):
            a = _four_rows(matrix, rows, first, begin, end)
            b = _four_rows(matrix, rows, first + 4, begin, end)
            for c in range(0, in_pairs, 2):
                i, k = chosen[c], chosen[c + 1]
                _add_eight_to_two(
                    states[i][begin:end], _four(weights[i], first), _four(weights[i], first + 4),
                    states[k][begin:end], _four(weights[k], first), _four(weights[k], first + 4),
                    a, b,
                )  # fmt: skip
    for c in range(n_chosen):
        i = chosen[c]
        add_rows(matrix, rows, weights[i], in_eights if c < in_pairs else ZERO, n_rows, states[i])


@njit(cache=True, nogil=True)
def residual_sgd_shared(
    kernel, states, rows, ends, shares, first, lrs, record_steps, record, limit, losses, left, duals
):
    """`residual_sgd` at several rates that meet the same batches, to the bit.

    Parameters
    ----------
    kernel, rows, ends, shares, first, record_steps, record
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
    n, n_rates = kernel.shape[0], lrs.shape[0]
    last = first + ends.shape[1]
    weights, chosen = np.empty((n_rates, rows.shape[1])), np.empty(n_rates, np.int64)
    for r in range(states.shape[0]):
        drawn, n_chosen = rows[r], 0
        for i in range(n_rates):
            if first == 0:
                losses[r, i, 0] = squared_norm(states[r, i]) / (2 * n)
            if not left[r, i]:
                chosen[n_chosen] = i
                n_chosen += 1
        step, coming = first, record
        while step < last and n_chosen > 0:
            until = min(record_steps[coming], (step // _CHECK_EVERY + 1) * _CHECK_EVERY, last)
            while step < until:
                start = ends[r, step - first - 1] if step > first else ZERO
                end = start  # of the rows in this pass
                while step < until and (
                    end == start or ends[r, step - first] <= start + _ROWS_PER_PASS
                ):
                    share, behind = shares[r, step - first], end
                    end = ends[r, step - first]
                    for c in range(n_chosen):
                        i = chosen[c]
                        scale = -lrs[i] * share
                        for j in range(behind, end):
                            value = states[r, i, drawn[j]]
                            if behind > start:
                                value = _corrected(
                                    value, kernel, drawn, weights[i], start, behind, drawn[j]
                                )
                            weights[i, j] = scale * value
                    step += 1
                _add_rows_to_all(
                    kernel, drawn[start:end], weights[:, start:end], chosen, n_chosen, states[r]
                )
                if duals.shape[2] > 0:
                    for c in range(n_chosen):
                        i = chosen[c]
                        for j in range(start, end):
                            duals[r, i, drawn[j]] += weights[i, j]
            at_record, kept = step == record_steps[coming], 0
            for c in range(n_chosen):
                i = chosen[c]
                norm = squared_norm(states[r, i])
                if not (norm <= limit[r]):
                    left[r, i] = True
                    continue
                chosen[kept] = i
                kept += 1
                if step % FLUSH_EVERY == 0:
                    flush(states[r, i])
                if at_record:
                    losses[r, i, coming] = norm / (2 * n)
            n_chosen = kept
            if at_record:
                coming += 1


@njit(cache=True, nogil=True)
def parameter_sgd(
    inputs, targets, states, velocities, rows, ends, shares, first, rule, record_steps, record, limit,
    losses, stops,
):  # fmt: skip
    r"""Parameter space: :math:`\theta \leftarrow \theta - \frac{\eta}{B} X_S^\top (X_S\theta - y_S)`.

    Parameters
    ----------
    inputs, targets : (n, d) and (n,) arrays
        X and y.
    states, velocities : (m, d) arrays
        Parameters of m replicas: at the start; on exit the last ones within the limit. Their
        velocities.
    limit : (m,) array
        Of the largest entry of theta.
    rule : tuple of five floats
        Of linear memory, see `move`.
    rows, ends, shares, first, record_steps, record, losses, stops
        As in `residual_sgd`.
    """
    d = inputs.shape[1]
    weights, before, gradient = np.empty(rows.shape[1]), np.empty(d), np.empty(d)
    for r in range(states.shape[0]):
        if stops[r] >= 0:
            continue
        theta, velocity, drawn = states[r], velocities[r], rows[r]
        if first == 0:
            losses[r, 0] = _mean_loss(inputs, targets, theta)
        start, coming = ZERO, record
        for s in range(ends.shape[1]):
            step = first + s + 1
            end = ends[r, s]
            for j in range(start, end):
                weights[j] = shares[r, s] * (dot(inputs[drawn[j]], theta) - targets[drawn[j]])
            clear(gradient)
            add_rows(inputs, drawn, weights, start, end, gradient)
            start = end
            copy(theta, before)
            move(rule, gradient, velocity, theta)
            if beyond(theta, limit[r]):
                copy(before, theta)
                stops[r] = step
                break
            if step % FLUSH_EVERY == 0:
                flush(theta)
                flush(velocity)
            if step == record_steps[coming]:
                losses[r, coming] = _mean_loss(inputs, targets, theta)
                coming += 1


@njit(cache=True, nogil=True)
def _mean_loss(inputs, targets, theta):
    total = 0.0
    for i in range(inputs.shape[0]):
        residual = dot(inputs[i], theta) - targets[i]
        total += residual * residual
    return total / (2 * inputs.shape[0])


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
        clear(velocity)
        clear(dual_velocity)
        step, record = ZERO, ZERO
        while True:
            if step == record_steps[record]:
                losses[r, record] = (squared_norm(q) + constant[r]) / (2 * n_samples)
                record += 1
                if record == record_steps.shape[0]:
                    break
            copy(q, before)
            for a in range(k):
                gradient[a] = curvatures[a] * q[a]
            move(rule, gradient, velocity, q)
            if not (squared_norm(q) + constant[r] <= limit[r]):
                copy(before, q)
                stops[r] = step + 1
                break
            move(rule, before, dual_velocity, duals[r])
            step += 1
            if step % FLUSH_EVERY == 0:
                flush(q)
                flush(velocity)
                flush(dual_velocity)
