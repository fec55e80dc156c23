"""The scalar catapult map over many starts: phases, and the long run of its balanced line."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from eosim._maps import balanced_map, factor_map

_factor_map = njit(inline="always")(factor_map)
_balanced_map = njit(inline="always")(balanced_map)

_DIVERGED = 1e12  # of w; beyond, eps' is about eps^3 and overflows within eight steps
_CONVERGED = 1e-26  # of w
_GROWTH = 1 + 1e-9  # of the loss in one step: more is no rounding
_LONGEST_PERIOD = 64
_RETURN = 1e-9


@njit(cache=True, nogil=True)
def classify(u, v, label, max_steps):
    """Phase and quantities of each start (u, v) of the factor map.

    Returns
    -------
    (n_cells, 8) array
        phase, steps, peak loss / first loss, peak step, peak w, final a, |u^2 - v^2|, final w.
    """
    result = np.empty((len(u), 8))
    for cell in range(len(u)):
        p, q, y = u[cell], v[cell], label[cell]
        first = (p * q - y) ** 2
        w, top, when, grew, step, phase = first, first, 0, False, 0, 2
        while True:
            if not (w <= _DIVERGED):
                phase = 3
                break
            if w < _CONVERGED and p * p + q * q < 2:
                phase = 1 if grew else 0
                break
            if step == max_steps:
                break
            p, q = _factor_map(p, q, y)
            step += 1
            before, w = w, (p * q - y) ** 2
            if w > before * _GROWTH:
                grew = True
            if w > top:
                top, when = w, step
        result[cell, 0] = phase
        result[cell, 1] = step
        result[cell, 2] = top / first if first > 0 else 1.0
        result[cell, 3] = when
        result[cell, 4] = top
        result[cell, 5] = p * p + q * q
        result[cell, 6] = abs(p * p - q * q)
        result[cell, 7] = w
    return result


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
        for k in range(1, _LONGEST_PERIOD + 1):
            s = _balanced_map(s, y)
            if abs(s - start) <= _RETURN * abs(start):
                period[cell] = k
                break
        total = 0.0
        for _ in range(n_steps):
            total += math.log(max(abs(1 + y - 3 * s * s), 1e-300))  # |ds'/ds|
            s = _balanced_map(s, y)
        lyapunov[cell] = total / n_steps
    return period, lyapunov
