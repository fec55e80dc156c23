"""Paths of the principal flow from many starts: Dormand and Prince's steps in every lane.

Thirty-two paths advance side by side, each with its own time and step. A path that is done hands its
lane to the next start; no path knows of its neighbours, to the last bit.
"""

from __future__ import annotations

import math

import numpy as np

from eosim._kernels.principal_field import (
    BAD,
    CLEAR,
    LANES,
    MEMORY,
    PAIR,
    SLOPE,
    STAGE,
    STATE,
    WORKSPACE,
    Z_RE,
    compiled,
    fields,
    get,
    inlined,
    squared,
)

# Codes of the statuses of a path.
COMPLETED, DIVERGED, STALLED, STEP_TOO_SMALL, BUDGET_SPENT, LEFT_RANGE, NO_START = range(7)
_RUNNING = -1
# Columns of the summary of a path.
STATUS, REACHED, EVALUATIONS, CHOSEN = range(4)

# A number below is 0: decayed paths would go on in subnormal numbers, which are slow. No tolerance is
# so strict that this would count as an error.
_NOTHING, _LEAST_TOLERANCE = 1e-280, 1e-270

# Dormand and Prince's pair of orders 5 and 4 (1980): stages, of which the last is the new state, and
# the weights of the error.
_TABLEAU = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [1 / 5, 0, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
        [-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40],
    ]
)
# Step control as in scipy's solvers.
_SAFETY, _LEAST_FACTOR, _LARGEST_FACTOR, _SHORTEST = 0.9, 0.2, 10.0, 10 * 2.0**-52


@compiled
def _combined(weights, slopes, total):
    """The sum of the slopes with these weights; those of stages to come have weight 0."""
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    w4, w5, w6 = weights[4], weights[5], weights[6]
    for j in range(STATE):
        total[j] = (
            w0 * slopes[j]
            + w1 * slopes[STATE + j]
            + w2 * slopes[2 * STATE + j]
            + w3 * slopes[3 * STATE + j]
            + w4 * slopes[4 * STATE + j]
            + w5 * slopes[5 * STATE + j]
            + w6 * slopes[6 * STATE + j]
        )


@compiled
def _stages(space, bits, powers, problem, tableau, state, steps, slopes, total):
    """The stages of one step of every lane; ``total`` becomes the local error, per unit of time.

    The last stage is the new state, and its slope the first one of the next step.
    """
    coefficients, exponents, ends, lr = problem
    for lane in range(LANES):
        space[BAD + lane] = 0.0
    for stage in range(1, 7):
        _combined(tableau[stage], slopes, total)
        for j in range(STATE):
            value = state[j] + steps[j] * total[j]
            space[STAGE + j] = value if abs(value) > _NOTHING else 0.0
        fields(space, bits, powers, coefficients, exponents, ends, lr)
        slopes[stage * STATE : (stage + 1) * STATE] = space[SLOPE : SLOPE + STATE]
    _combined(tableau[7], slopes, total)


@inlined
def _modulus(z):
    """|z|, where |z|^2 may not be a number."""
    larger, smaller = max(abs(z.real), abs(z.imag)), min(abs(z.real), abs(z.imag))
    ratio = smaller / max(larger, _NOTHING)
    return larger * math.sqrt(1 + ratio * ratio)


@compiled
def _sizes(values, one, other, rtol, atol, sizes):
    """Root mean square of x and y over the tolerances at two states, of every lane."""
    for lane in range(LANES):
        x = max(_modulus(get(one, 0, lane)), _modulus(get(other, 0, lane)))
        y = max(_modulus(get(one, PAIR, lane)), _modulus(get(other, PAIR, lane)))
        x = _modulus(get(values, 0, lane)) / (atol + rtol * x)
        y = _modulus(get(values, PAIR, lane)) / (atol + rtol * y)
        sizes[lane] = math.sqrt((x * x + y * y) / 2)


@compiled
def _accept(space, state, slopes, accepted):
    """The last stage becomes the state of the lanes that are accepted."""
    for row in range(4):
        old, new = state[row * LANES :], space[STAGE + row * LANES :]
        first, last = slopes[row * LANES :], slopes[6 * STATE + row * LANES :]
        for lane in range(LANES):
            old[lane] = new[lane] if accepted[lane] else old[lane]
            first[lane] = last[lane] if accepted[lane] else first[lane]
    for row in range(8):
        old, new = space[MEMORY + row * LANES :], space[Z_RE + row * LANES :]
        for lane in range(LANES):
            old[lane] = new[lane] if accepted[lane] else old[lane]


@compiled
def integrate(
    starts, times, lr, coefficients, exponents, ends, degree, rtol, atol, limits, states, summary
):
    """Every start to every time.

    Parameters
    ----------
    coefficients, exponents, ends : (n_terms,), (n_terms, 2), (5,) arrays
        The polynomials g_x, g_y, H_xx, H_xy, H_yy one after the other, and where each of them ends.
    degree : int
        The largest exponent.
    limits : (4,) array
        Evaluations in all, evaluations within one lr, divergence factor, and the shortest step that is
        taken again over lr.
    states : (n_starts, n_times, 2) complex array
        Filled as far as a path comes.
    summary : (n_starts, 4) array
        Gets the columns STATUS, REACHED (number of times), EVALUATIONS, and CHOSEN (steps whose
        logarithms continuity did not decide).
    """
    budget, stall, factor, shortest = limits[0], limits[1], limits[2], limits[3] * lr
    atol = max(atol, _LEAST_TOLERANCE)
    problem, tableau = (coefficients, exponents, ends, lr), _TABLEAU
    space = np.zeros(WORKSPACE)
    bits = space.view(np.int64)
    powers = np.zeros((2, 1 + degree, PAIR))  # of x and y
    powers[:, 0, :LANES] = 1.0
    state, steps, total = np.zeros(STATE), np.zeros(STATE), np.zeros(STATE)
    slopes, stage = np.zeros(7 * STATE), space[STAGE : STAGE + STATE]
    errors, sizes, speeds = np.zeros(LANES), np.zeros(LANES), np.zeros(LANES)
    accepted, landing = np.zeros(LANES, np.bool_), np.zeros(LANES, np.bool_)
    owner, index = np.full(LANES, -1), np.zeros(LANES, np.int64)
    t, proposed, bound = np.zeros(LANES), np.zeros(LANES), np.zeros(LANES)
    evaluations, chosen = np.zeros(LANES), np.zeros(LANES)
    interval, interval_start = np.zeros(LANES), np.zeros(LANES)
    following, busy = 0, 0
    while True:
        for lane in range(LANES):
            if owner[lane] == -1 and following < len(starts):
                # A path starts with a step of length 0, which evaluates its field.
                x, y = starts[following, 0], starts[following, 1]
                state[lane::LANES] = 0.0
                state[lane], state[2 * LANES + lane] = x, y
                space[MEMORY + lane : MEMORY + 4 * PAIR : LANES] = 0.0
                slopes[lane::LANES] = 0.0
                steps[lane::LANES] = 0.0
                bound[lane] = (factor * (1 + math.hypot(x, y))) ** 2
                t[lane], evaluations[lane], chosen[lane] = 0.0, 1, 0
                interval[lane], interval_start[lane], landing[lane] = 0.0, 0, False
                owner[lane], index[lane] = following, 0
                following, busy = following + 1, busy + 1
        if busy == 0:
            break
        _stages(space, bits, powers, problem, tableau, state, steps, slopes, total)
        _sizes(total, state, stage, rtol, atol, errors)
        for lane in range(LANES):
            accepted[lane] = False
            n = owner[lane]
            if n == -1:
                continue
            step, status, starting = steps[lane], _RUNNING, evaluations[lane] == 1
            error, change = step * errors[lane], _LARGEST_FACTOR
            if error > 0:
                change = min(_LARGEST_FACTOR, max(_LEAST_FACTOR, _SAFETY * error**-0.2))
            if space[BAD + lane] != 0:
                slopes[STATE + lane :: LANES] = 0.0  # 0 times what is not finite is not 0
                proposed[lane] = step / 2
                if starting and space[BAD + lane] == 1:
                    status = NO_START
                elif step <= shortest:
                    status = DIVERGED if space[BAD + lane] == 1 else LEFT_RANGE
            elif not (error < 1):
                proposed[lane] = step * min(change, 1.0)
            elif space[CLEAR + lane] == 0 and step > shortest:
                proposed[lane] = step / 2
            elif not (
                squared(get(stage, 0, lane)) + squared(get(stage, PAIR, lane)) <= bound[lane]
            ):
                status = DIVERGED
            else:
                accepted[lane] = True
                chosen[lane] += space[CLEAR + lane] == 0
                t[lane] = times[index[lane]] if landing[lane] else t[lane] + step
                if starting:
                    _sizes(space[SLOPE:], state, stage, rtol, atol, speeds)
                    _sizes(stage, state, stage, rtol, atol, sizes)
                    # Our choice: a hundredth of the time in which the state changes altogether.
                    proposed[lane] = lr
                    if speeds[lane] > 0:
                        proposed[lane] = max(min(0.01 * sizes[lane] / speeds[lane], lr), 1e-6 * lr)
                elif step < proposed[lane]:
                    # A step cut short by the end says nothing about the size it could have.
                    proposed[lane] = max(proposed[lane], step * change)
                else:
                    proposed[lane] = step * change
                if t[lane] == times[index[lane]]:
                    states[n, index[lane], 0] = get(stage, 0, lane)
                    states[n, index[lane], 1] = get(stage, 2 * LANES, lane)
                    index[lane] += 1
                    if index[lane] == len(times):
                        status = COMPLETED
                if math.floor(t[lane] / lr) > interval[lane]:
                    interval[lane] = math.floor(t[lane] / lr)
                    interval_start[lane] = evaluations[lane]
            if status == _RUNNING:
                # The rest is divided evenly where two steps will do: no short last step.
                left = times[index[lane]] - t[lane]
                landing[lane] = proposed[lane] >= left
                step = left if landing[lane] else min(proposed[lane], left / 2)
                steps[lane::LANES] = step
                if step < _SHORTEST * t[lane]:
                    status = STEP_TOO_SMALL
                elif evaluations[lane] + 6 > budget:
                    status = BUDGET_SPENT
                elif evaluations[lane] + 6 - interval_start[lane] > stall:
                    status = STALLED
                else:
                    evaluations[lane] += 6
            if status != _RUNNING:
                summary[n, STATUS], summary[n, REACHED] = status, index[lane]
                summary[n, EVALUATIONS], summary[n, CHOSEN] = evaluations[lane], chosen[lane]
                owner[lane], busy = -1, busy - 1
                steps[lane::LANES] = 0.0
        _accept(space, state, slopes, accepted)
