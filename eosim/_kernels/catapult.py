"""Catapults over many starts: of the scalar map, of nets of neurons, of the infinitely wide ReLU net."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from eosim._maps import balanced_map, factor_map

_factor_map = njit(inline="always")(factor_map)
_balanced_map = njit(inline="always")(balanced_map)

# Codes of eosim.catapult.Phase.
_MONOTONE, _CATAPULT, _BOUNDED, _DIVERGED, _DEAD = 0, 1, 2, 3, 4
_DIVERGED_W = 1e12  # beyond, eps' is about eps^3 and overflows within eight steps
_CONVERGED_W = 1e-26
_GROWTH = 1 + 1e-9  # of the loss in one step: more is no rounding
_LONGEST_PERIOD = 64
_RETURN = 1e-9


@njit(inline="always")
def _returned(eps, a, first_eps, first_a):
    return (
        abs(eps - first_eps) <= _RETURN * abs(first_eps) and abs(a - first_a) <= _RETURN * first_a
    )


@njit(cache=True, nogil=True)
def _period(p, q, y):
    """Steps until (eps, a) return; 0 if longer than 64, or if w is too small to tell."""
    first_eps, first_a = p * q - y, p * p + q * q
    if first_eps * first_eps <= _RETURN:
        return 0
    for k in range(1, _LONGEST_PERIOD + 1):
        p, q = _factor_map(p, q, y)
        eps = p * q - y
        if not (eps * eps <= _DIVERGED_W):
            return 0
        if _returned(eps, p * p + q * q, first_eps, first_a):
            return k
    return 0


@njit(cache=True, nogil=True)
def _exponent(p, q, y, n_steps):
    """Mean log growth of a tangent vector; it turns for n_steps, then is measured for as many."""
    along, across = 0.6, 0.8  # neither on an axis nor on u = v or u = -v, which may be invariant
    total = 0.0
    for step in range(2 * n_steps):
        eps, change = p * q - y, q * along + p * across
        if not (eps * eps <= _DIVERGED_W):
            return math.inf
        along, across = along - change * q - eps * across, across - change * p - eps * along
        p, q = p - eps * q, q - eps * p
        norm = max(math.hypot(along, across), 1e-300)
        along, across = along / norm, across / norm
        if step >= n_steps:
            total += math.log(norm)
    return total / n_steps


@njit(cache=True, nogil=True)
def classify(u, v, label, max_steps, exponents):
    """Phase and quantities of each start (u, v) of the factor map.

    Returns
    -------
    (n_cells, 10) array
        phase, steps, peak loss / first loss, peak step, peak w, final a, final w, period,
        |u^2 - v^2|, and the largest Lyapunov exponent if ``exponents``, else 0.
    """
    result = np.empty((len(u), 10))
    for cell in range(len(u)):
        p, q, y = u[cell], v[cell], label[cell]
        first = (p * q - y) ** 2
        w, top, when, grew, step, phase = first, first, 0, False, 0, _BOUNDED
        while True:
            if not (w <= _DIVERGED_W):
                phase = _DIVERGED
                break
            if w < _CONVERGED_W and p * p + q * q < 2:
                phase = _CATAPULT if grew else _MONOTONE
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
        result[cell, 6] = w
        result[cell, 7] = _period(p, q, y) if phase == _BOUNDED else 0
        result[cell, 8] = abs(p * p - q * q)
        result[cell, 9] = 0.0
        if exponents and phase == _BOUNDED:
            result[cell, 9] = _exponent(p, q, y, max_steps)
        elif exponents and phase == _DIVERGED:
            result[cell, 9] = math.inf
    return result


# Nets of neurons. While no neuron changes sign, those of one sign move alike: with r_i = v_i / p_i
# and s = slope * eps, p + v is multiplied by 1 - s and p - v by 1 + s. Each side (0: p > 0, 1: p <= 0)
# is therefore followed by a row of six numbers, and its neurons are touched when one changes sign:
#   sum (p + v)^2 / 2, sum (p - v)^2 / 2, least and greatest r, and the two products of factors since
#   the neurons were last touched.


@njit(cache=True, nogil=True)
def _gather(p, v, sides):
    """Fill the rows of ``sides``; the number of negative p."""
    sides[:, :2] = 0.0
    sides[:, 2], sides[:, 3] = math.inf, -math.inf
    sides[:, 4:] = 1.0
    negative = 0
    for i in range(len(p)):
        side = 0 if p[i] > 0 else 1
        negative += p[i] < 0
        sides[side, 0] += (p[i] + v[i]) ** 2 / 2
        sides[side, 1] += (p[i] - v[i]) ** 2 / 2
        if p[i] == 0:  # it may turn either way
            sides[side, 2], sides[side, 3] = -math.inf, math.inf
        else:
            r = v[i] / p[i]
            sides[side, 2], sides[side, 3] = min(sides[side, 2], r), max(sides[side, 3], r)
    for side in range(2):
        if sides[side, 2] > sides[side, 3]:  # nobody there
            sides[side, 2:4] = 0.0
    return negative


@njit(cache=True, nogil=True)
def _scatter(p, v, sides, moved_p, moved_v):
    """The neurons now, from those (p, v) of the last time; may be done in place."""
    for i in range(len(p)):
        side = 0 if p[i] > 0 else 1
        plus, minus = (p[i] + v[i]) * sides[side, 4], (p[i] - v[i]) * sides[side, 5]
        moved_p[i], moved_v[i] = (plus + minus) / 2, (plus - minus) / 2


@njit(cache=True, nogil=True)
def _advance(sides, slopes, eps):
    """One step of both rows; whether a neuron changes sign in it (then r is not kept)."""
    turns = False
    for side in range(2):
        s = slopes[side] * eps  # p' = p (1 - s r)
        turns = turns or s * sides[side, 2] >= 1 or s * sides[side, 3] >= 1
    for side in range(2):
        s = slopes[side] * eps
        sides[side, 0] *= (1 - s) ** 2
        sides[side, 1] *= (1 + s) ** 2
        sides[side, 4] *= 1 - s
        sides[side, 5] *= 1 + s
        if s != 0 and not turns:
            low = (sides[side, 2] - s) / (1 - s * sides[side, 2])
            high = (sides[side, 3] - s) / (1 - s * sides[side, 3])
            sides[side, 2], sides[side, 3] = min(low, high), max(low, high)
    return turns


@njit(inline="always")
def _observe(sides, slopes, k, y):
    """eps and a."""
    eps, a = -y, 0.0
    for side in range(2):
        eps += k * slopes[side] * (sides[side, 0] - sides[side, 1]) / 2
        a += k * slopes[side] ** 2 * (sides[side, 0] + sides[side, 1])
    return eps, a


@njit(cache=True, nogil=True)
def classify_neurons(p, v, slopes, ratio, label_per_rate, max_steps):
    r"""Phase and quantities of one net (p, v) at each rate: k = ratio / sum s^2 (p^2 + v^2).

    Each neuron does p' = p - s eps v, v' = v - s eps p, where s is its slope, eps = k sum s p v - Y and
    Y = k ``label_per_rate``.

    Returns
    -------
    (n_cells, 12) array
        phase, steps, peak loss / first loss, peak step, peak w, final a, final w, period, share of
        p < 0, sum p^2 + v^2 over that of the start, first eps, Y. A net that is dead from the start has
        k = 0.
    """
    result = np.empty((len(ratio), 12))
    start = np.empty((2, 6))
    first_negative = _gather(p, v, start)
    _, per_rate = _observe(start, slopes, 1.0, 0.0)
    norm = start[:, :2].sum()
    sides = np.empty((2, 6))
    moved_p, moved_v = np.empty_like(p), np.empty_like(v)
    for cell in range(len(ratio)):
        k = ratio[cell] / per_rate if per_rate > 0 else 0.0
        y = k * label_per_rate[cell]
        sides[:] = start
        now_p, now_v, negative = p, v, first_negative
        eps, a = _observe(sides, slopes, k, y)
        first_eps = last_eps = eps
        first = w = top = last_w = eps * eps
        when, grew, step, phase, period, last_a, share = 0, False, 0, -1, 0, a, 0
        last_norm = norm
        while True:
            if phase < 0:
                if not (w <= _DIVERGED_W):
                    phase = _DIVERGED
                elif a == 0:
                    phase = _DEAD
                elif w < _CONVERGED_W and a < 2:
                    phase = _CATAPULT if grew else _MONOTONE
                elif step == max_steps:
                    phase = _BOUNDED
                if phase >= 0:
                    last_eps, last_a, last_w, share = eps, a, w, negative
                    last_norm = sides[:, :2].sum()
                    if phase != _BOUNDED or w <= _RETURN:
                        break
            elif _returned(eps, a, last_eps, last_a):
                period = step - max_steps
                break
            elif step == max_steps + _LONGEST_PERIOD or not (eps * eps <= _DIVERGED_W):
                break
            if _advance(sides, slopes, eps):
                _scatter(now_p, now_v, sides, moved_p, moved_v)
                now_p, now_v = moved_p, moved_v
                negative = _gather(now_p, now_v, sides)
            eps, a = _observe(sides, slopes, k, y)
            step += 1
            if phase < 0:
                before, w = w, eps * eps
                if w > before * _GROWTH:
                    grew = True
                if w > top:
                    top, when = w, step
        result[cell, 0] = phase
        result[cell, 1] = min(step, max_steps)
        result[cell, 2] = top / first if first > 0 else 1.0
        result[cell, 3] = when
        result[cell, 4] = top
        result[cell, 5] = last_a
        result[cell, 6] = last_w
        result[cell, 7] = period
        result[cell, 8] = share / len(p)
        result[cell, 9] = last_norm / norm
        result[cell, 10] = first_eps
        result[cell, 11] = y
    return result


@njit(inline="always")
def _sector_integral(first, last, c, sigma):
    """Integral of p^2 + v^2 over angles of (p_0, v_0) of length 1."""
    # sin(b + a) sin(b - a) = sin^2 b - sin^2 a
    product = math.sin(last + first) * math.sin(last - first)
    return (c**2 + sigma**2) * (last - first) + 2 * c * sigma * product


@njit(cache=True, nogil=True)
def classify_infinite_relu(a_start, kick, max_steps):
    r"""Phase and quantities of the infinitely wide ReLU net with label 0, from one step with eps = kick.

    A neuron that lives has p = c p_0 + sigma v_0, v = sigma p_0 + c v_0, and lives while p > 0, hence
    if its angle is within pi / 2 of that of (c, sigma) at every step: the living are one sector.

    Returns
    -------
    (n_cells, 11) array
        phase, steps, peak loss / first loss, peak step, peak w, final a, final w, period (0: not
        looked for), share of dead neurons, sum p^2 + v^2 over that of the start, first eps.
    """
    result = np.empty((len(a_start), 11))
    for cell in range(len(a_start)):
        ratio, eps, alpha, beta = a_start[cell], kick[cell], 1.0, 1.0
        first_angle, last_angle, frozen = -math.pi / 2, math.pi / 2, 0.0
        sin_first, cos_first, sin_last, cos_last = -1.0, 0.0, 1.0, 0.0
        angle, product = math.pi, 0.0
        first_eps = w = top = 0.0
        when, grew, step = 0, False, -1
        while True:
            alpha, beta = alpha * (1 - eps), beta * (1 + eps)
            c, sigma = (alpha + beta) / 2, (alpha - beta) / 2
            # Somebody dies only if p < 0 at an end of the sector.
            if c * cos_first + sigma * sin_first < 0 or c * cos_last + sigma * sin_last < 0:
                turned = math.atan2(sigma, c)
                low = min(max(first_angle, turned - math.pi / 2), last_angle)
                high = max(min(last_angle, turned + math.pi / 2), low)
                # The step that silences a neuron is its last.
                frozen += _sector_integral(first_angle, low, c, sigma)
                frozen += _sector_integral(high, last_angle, c, sigma)
                first_angle, last_angle = low, high
                sin_first, cos_first = math.sin(low), math.cos(low)
                sin_last, cos_last = math.sin(high), math.cos(high)
                angle, product = high - low, math.sin(high + low) * math.sin(high - low) / 2
            squares = c**2 + sigma**2
            alive = squares * angle + 4 * c * sigma * product
            a = ratio * alive / math.pi
            eps = ratio * (c * sigma * angle + squares * product) / math.pi
            step += 1
            before, w = w, eps * eps
            if step == 0:
                first_eps, top = eps, w
            else:
                if w > before * _GROWTH:
                    grew = True
                if w > top:
                    top, when = w, step
            if not (w <= _DIVERGED_W):
                phase = _DIVERGED
                break
            if angle == 0:
                phase = _DEAD
                break
            if w < _CONVERGED_W and a < 2:
                phase = _CATAPULT if grew else _MONOTONE
                break
            if step == max_steps:
                phase = _BOUNDED
                break
        result[cell, 0] = phase
        result[cell, 1] = step
        result[cell, 2] = top / first_eps**2 if first_eps != 0 else 1.0
        result[cell, 3] = when
        result[cell, 4] = top
        result[cell, 5] = a
        result[cell, 6] = w
        result[cell, 7] = 0
        result[cell, 8] = 1 - angle / (2 * math.pi)
        result[cell, 9] = (math.pi + alive + frozen) / (2 * math.pi)
        result[cell, 10] = first_eps
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
