"""The scalar map of the catapults over many starts: a number of steps, or until each is judged.

A step is short and waits for the one before it, so that what counts is how many starts move at once:
loops over starts become vector arithmetic, and eight steps are made at a time, so that numbers stay in
registers. In the factors a step is three multiply-adds, against five operations on residual and a; and
nothing cancels. ``contract`` fuses products with sums, and does nothing else.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from eosim._maps import balanced_map

_balanced_map = njit(inline="always")(balanced_map)

# Codes of eosim.catapult.Phase.
MONOTONE, CATAPULT, BOUNDED, DIVERGED, DEAD = 0, 1, 2, 3, 4
DIVERGED_W = 1e12  # beyond, eps' is about eps^3 and overflows within eight steps
CONVERGED_W = 1e-26
GROWTH = 1 + 1e-9  # of the loss in one step: more is no rounding
LONGEST_PERIOD = 64
RETURN = 1e-9

_LANES = 64  # starts that are moved at once: what they hold fills an eighth of the nearest cache
_PASS = 8  # steps made between a load and a store
_FLUSH = 256  # steps between flushes of subnormals, on which many processors are slow
_NEGLIGIBLE = 1e-280


@njit(inline="always")
def returned(eps, a, first_eps, first_a):
    return (abs(eps - first_eps) <= RETURN * abs(first_eps)) & (
        abs(a - first_a) <= RETURN * first_a
    )


@njit(inline="always")
def _possible(a, w, output):
    return (w >= 0) & (a - 2 * abs(output) >= -1e-12 * abs(a))


@njit(inline="always")
def _factors(a, output):
    """(u, v), u > 0, with u^2 + v^2 = a and u v = output; v by division, which does not cancel."""
    gap = a - 2 * output
    u = (np.sqrt(a + 2 * output) + np.sqrt(gap if gap > 0 else 0.0)) / 2
    return u, output / (u if u > 0 else 1.0)


@njit(cache=True, nogil=True, error_model="numpy")
def factors(a, w, label, eps, u, v):
    """Fill eps = sqrt(w), u and v; how many starts are impossible. ``label``: of each, or of all."""
    each = len(label) > 1
    impossible = 0
    for cell in range(len(a)):
        eps[cell] = np.sqrt(w[cell])
        output = eps[cell] + label[cell if each else 0]
        impossible += not _possible(a[cell], w[cell], output)
        u[cell], v[cell] = _factors(a[cell], output)
    return impossible


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def iterate(a, w, label, n_steps, eps, end):
    """Fill eps and ``end`` (a) after ``n_steps``; how many starts are impossible.

    Both are infinite where w went beyond 1e12. It is looked at every 256 steps, and none is missed:
    beyond, w grows until nothing is finite, and nothing is ever finite again.
    """
    each, block_label = len(label) > 1, np.empty(_LANES)
    impossible = 0
    for first in range(0, len(a), _LANES):
        # u and v stand where the results will.
        us, vs = eps[first : first + _LANES], end[first : first + _LANES]
        starts_a, starts_w = a[first : first + _LANES], w[first : first + _LANES]
        labels = block_label[: len(us)]
        for j in range(len(us)):
            labels[j] = label[first + j if each else 0]
        for j in range(len(us)):
            output = np.sqrt(starts_w[j]) + labels[j]
            impossible += not _possible(starts_a[j], starts_w[j], output)
            us[j], vs[j] = _factors(starts_a[j], output)
        left = n_steps
        while left > 0:
            stretch = min(left, _FLUSH)
            left -= stretch
            for _ in range(stretch // _PASS):
                for j in range(len(us)):
                    u, v, y = us[j], vs[j], labels[j]
                    for _ in range(_PASS):
                        residual = u * v - y
                        u, v = u - residual * v, v - residual * u
                    us[j], vs[j] = u, v
            for _ in range(stretch % _PASS):
                for j in range(len(us)):
                    residual = us[j] * vs[j] - labels[j]
                    us[j], vs[j] = us[j] - residual * vs[j], vs[j] - residual * us[j]
            for j in range(len(us)):
                u, v = us[j], vs[j]
                residual = u * v - labels[j]
                bounded = residual * residual <= DIVERGED_W
                u, v = u if abs(u) > _NEGLIGIBLE else 0.0, v if abs(v) > _NEGLIGIBLE else 0.0
                us[j], vs[j] = u if bounded else math.inf, v if bounded else math.inf
        for j in range(len(us)):
            u, v = us[j], vs[j]
            us[j], vs[j] = u * v - labels[j], u * u + v * v
    return impossible


# Rows of what a lane holds: factors, label, largest w and its step, largest excess of a w over
# GROWTH times the one before, steps made, first w.
_U, _V, _LABEL, _TOP, _WHEN, _GROWTH, _STEP, _FIRST = range(8)


@njit(inline="always")
def _pass(state, lanes, last, stopped):
    """Eight steps of each lane; what is kept of it stands still once its verdict may fall.

    ``stopped``: those, and the ones beyond step ``last``.
    """
    for j in range(lanes):
        kept_u, kept_v, label = state[_U, j], state[_V, j], state[_LABEL, j]
        top, when = state[_TOP, j], state[_WHEN, j]
        growth, step = state[_GROWTH, j], state[_STEP, j]
        u, v, live = kept_u, kept_v, True
        eps = u * v - label
        w = eps * eps
        for _ in range(_PASS):
            live = live & (w >= CONVERGED_W) & (w <= DIVERGED_W)
            u, v = u - eps * v, v - eps * u
            eps = u * v - label
            before, w = w, eps * eps
            kept_u = u if live else kept_u
            kept_v = v if live else kept_v
            step = step + 1.0 if live else step
            excess = w - before * GROWTH if live else 0.0
            growth = excess if excess > growth else growth
            higher = live & (w > top)
            when = step if higher else when
            top = w if higher else top
        state[_U, j], state[_V, j], state[_TOP, j], state[_WHEN, j] = kept_u, kept_v, top, when
        state[_GROWTH, j], state[_STEP, j], stopped[j] = growth, step, not (live & (step <= last))


@njit(inline="always")
def _load(state, j, u, v, label):
    eps = u * v - label
    state[_U, j], state[_V, j], state[_LABEL, j] = u, v, label
    state[_FIRST, j] = state[_TOP, j] = eps * eps
    state[_WHEN, j] = state[_GROWTH, j] = state[_STEP, j] = 0.0


@njit(inline="always")
def _judge(state, j, max_steps):
    """The phase of a lane, or -1 if none yet and a pass may follow; steps up to there are made."""
    u, v, label, step = state[_U, j], state[_V, j], state[_LABEL, j], state[_STEP, j]
    eps = u * v - label
    w = eps * eps
    while True:
        if not (w <= DIVERGED_W):
            phase = DIVERGED
            break
        if w < CONVERGED_W and u * u + v * v < 2:
            phase = CATAPULT if state[_GROWTH, j] > 0 else MONOTONE
            break
        if step == max_steps:
            phase = BOUNDED
            break
        if w >= CONVERGED_W and step <= max_steps - _PASS:
            phase = -1
            break
        u, v = u - eps * v, v - eps * u
        eps = u * v - label
        before, w = w, eps * eps
        step += 1
        state[_GROWTH, j] = max(state[_GROWTH, j], w - before * GROWTH)
        if w > state[_TOP, j]:
            state[_TOP, j], state[_WHEN, j] = w, step
    state[_U, j], state[_V, j], state[_STEP, j] = u, v, step
    return phase


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def classify(u, v, label, max_steps, begin, codes, numbers):
    """Phase and quantities of each start (u, v) of the factor map; ``label``: of each, or of all.

    From column ``begin`` on, fills ``codes`` with phase, steps and peak step, and ``numbers`` with peak
    loss / first loss, peak w, final a, final w, final a / first a and abs(u^2 - v^2); and moves (u, v) to
    the end.

    Each lane holds a start. One that is judged makes room for the next start, so that all lanes move
    however differently their runs last. Near w = 0, and where less than a pass is left, one moves alone.
    """
    n_cells, each = len(u), len(label) > 1
    state, stopped = np.empty((8, _LANES)), np.empty(_LANES, np.bool_)
    cells, judged = np.empty(_LANES, np.int64), np.empty(_LANES, np.int64)
    lanes = min(_LANES, n_cells)
    for j in range(lanes):
        _load(state, j, u[j], v[j], label[j if each else 0])
        cells[j], stopped[j] = j, True
    loaded = lanes
    while lanes > 0:
        if max_steps >= _PASS:
            _pass(state, lanes, max_steps - _PASS, stopped)
        n_judged = 0
        for j in range(lanes):  # without a branch that nobody could predict
            judged[n_judged] = j
            n_judged += stopped[j]
        for i in range(n_judged - 1, -1, -1):  # the last lane, which may fill a gap, is done
            j = judged[i]
            phase = _judge(state, j, max_steps)
            if phase < 0:
                continue
            cell, p, q, y = cells[j], state[_U, j], state[_V, j], state[_LABEL, j]
            w, a, first_a = (p * q - y) ** 2, p * p + q * q, u[cell] * u[cell] + v[cell] * v[cell]
            first, top = state[_FIRST, j], state[_TOP, j]
            codes[0, begin + cell] = phase
            codes[1, begin + cell] = state[_STEP, j]
            codes[2, begin + cell] = state[_WHEN, j]
            numbers[0, begin + cell] = top / first if first > 0 else 1.0
            numbers[1, begin + cell] = top
            numbers[2, begin + cell] = a
            numbers[3, begin + cell] = w
            numbers[4, begin + cell] = (
                a / first_a if first_a > 0 else 1.0
            )  # a = 0 is the saddle, and stays
            numbers[5, begin + cell] = abs(p * p - q * q)
            u[cell], v[cell] = p, q
            if loaded < n_cells:
                _load(state, j, u[loaded], v[loaded], label[loaded if each else 0])
                cells[j] = loaded
                loaded += 1
            else:
                lanes -= 1
                cells[j] = cells[lanes]
                for row in range(len(state)):
                    state[row, j] = state[row, lanes]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def find_periods(u, v, label, phase, period):
    """Fill ``period`` of the runs that end at (u, v): steps until (eps, a) return.

    0 if longer than 64, if w is too small to tell, and if the run is not bounded.
    """
    each, last = len(label) > 1, len(u) - 1
    us, vs, labels = np.empty(_LANES), np.empty(_LANES), np.empty(_LANES)
    first_eps, first_a, found = np.empty(_LANES), np.empty(_LANES), np.empty(_LANES)
    cells, count = np.empty(_LANES, np.int64), 0
    for cell in range(len(u)):
        period[cell] = 0
        y = label[cell if each else 0]
        eps = u[cell] * v[cell] - y
        if phase[cell] == BOUNDED and eps * eps > RETURN:
            cells[count], us[count], vs[count], labels[count] = cell, u[cell], v[cell], y
            first_eps[count], first_a[count] = eps, u[cell] * u[cell] + v[cell] * v[cell]
            found[count] = 0.0
            count += 1
        if count == _LANES or cell == last:
            for made in range(0, LONGEST_PERIOD, _PASS):
                for j in range(count):
                    p, q, steps, eps = us[j], vs[j], found[j], us[j] * vs[j] - labels[j]
                    for k in range(1, _PASS + 1):
                        p, q = p - eps * q, q - eps * p
                        eps = p * q - labels[j]
                        near = returned(eps, p * p + q * q, first_eps[j], first_a[j])
                        steps = made + k if near & (steps == 0.0) else steps
                    us[j], vs[j], found[j] = p, q, steps
            for j in range(count):
                period[cells[j]] = found[j]
            count = 0


@njit(cache=True, nogil=True)
def _exponent(p, q, y, n_steps):
    """Mean log growth of a tangent vector; it turns for n_steps, then is measured for as many."""
    along, across = 0.6, 0.8  # neither on an axis nor on u = v or u = -v, which may be invariant
    total = 0.0
    for step in range(2 * n_steps):
        eps, change = p * q - y, q * along + p * across
        if not (eps * eps <= DIVERGED_W):
            return math.inf
        along, across = along - change * q - eps * across, across - change * p - eps * along
        p, q = p - eps * q, q - eps * p
        norm = max(math.hypot(along, across), 1e-300)
        along, across = along / norm, across / norm
        if step >= n_steps:
            total += math.log(norm)
    return total / n_steps


@njit(cache=True, nogil=True)
def find_exponents(u, v, label, phase, n_steps, exponent):
    """Fill the largest Lyapunov exponents of runs that end at (u, v): 0 if converged, inf if diverged."""
    each = len(label) > 1
    for cell in range(len(u)):
        exponent[cell] = math.inf if phase[cell] == DIVERGED else 0.0
        if phase[cell] == BOUNDED:
            exponent[cell] = _exponent(u[cell], v[cell], label[cell if each else 0], n_steps)


@njit(cache=True, nogil=True)
def long_run(label, transient, n_steps):
    """Detected period (0: longer than 64) and Lyapunov exponent of the balanced map per label."""
    period = np.zeros(len(label), dtype=np.int64)
    lyapunov = np.empty(len(label))
    for cell in range(len(label)):
        y, s = label[cell], 0.5
        for _ in range(transient):
            s = _balanced_map(s, y)
        start = s
        for k in range(1, LONGEST_PERIOD + 1):
            s = _balanced_map(s, y)
            if abs(s - start) <= RETURN * abs(start):
                period[cell] = k
                break
        total = 0.0
        for _ in range(n_steps):
            total += math.log(max(abs(1 + y - 3 * s * s), 1e-300))  # |ds'/ds|
            s = _balanced_map(s, y)
        lyapunov[cell] = total / n_steps
    return period, lyapunov
