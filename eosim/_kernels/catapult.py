"""Catapults over many rates: of nets of neurons, of the infinitely wide ReLU net."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from eosim._kernels.catapult_map import (
    BOUNDED,
    CATAPULT,
    CONVERGED_W,
    DEAD,
    DIVERGED,
    DIVERGED_W,
    GROWTH,
    LONGEST_PERIOD,
    MONOTONE,
    RETURN,
    returned,
)

# Nets of neurons. While no neuron changes sign, those of one sign move alike: with r_i = v_i / p_i
# and s = slope * eps, p + v is multiplied by 1 - s and p - v by 1 + s. Each side (0: p > 0, 1: p <= 0)
# is therefore followed by a row of six numbers, and its neurons are touched when one changes sign:
#   sum (p + v)^2 / 2, sum (p - v)^2 / 2, least and greatest r, and the two products of factors since
#   the neurons were last touched.


# Loops in place of slices: assigning one array to another, numba compiles for two seconds what its
# error message might be made of.


@njit(inline="always")
def _copy(source, target):
    for side in range(2):
        for k in range(6):
            target[side, k] = source[side, k]


@njit(inline="always")
def _norm(sides):
    return sides[0, 0] + sides[0, 1] + sides[1, 0] + sides[1, 1]


@njit(cache=True, nogil=True)
def _gather(p, v, sides):
    """Fill the rows of ``sides``; the number of negative p."""
    for side in range(2):
        sides[side, 0] = sides[side, 1] = 0.0
        sides[side, 2], sides[side, 3] = math.inf, -math.inf
        sides[side, 4] = sides[side, 5] = 1.0
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
            sides[side, 2] = sides[side, 3] = 0.0
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
    norm = _norm(start)
    sides = np.empty((2, 6))
    moved_p, moved_v = np.empty_like(p), np.empty_like(v)
    for cell in range(len(ratio)):
        k = ratio[cell] / per_rate if per_rate > 0 else 0.0
        y = k * label_per_rate[cell]
        _copy(start, sides)
        now_p, now_v, negative = p, v, first_negative
        eps, a = _observe(sides, slopes, k, y)
        first_eps = last_eps = eps
        first = w = top = last_w = eps * eps
        when, grew, step, phase, period, last_a, share = 0, False, 0, -1, 0, a, 0
        last_norm = norm
        while True:
            if phase < 0:
                if not (w <= DIVERGED_W):
                    phase = DIVERGED
                elif a == 0:
                    phase = DEAD
                elif w < CONVERGED_W and a < 2:
                    phase = CATAPULT if grew else MONOTONE
                elif step == max_steps:
                    phase = BOUNDED
                if phase >= 0:
                    last_eps, last_a, last_w, share = eps, a, w, negative
                    last_norm = _norm(sides)
                    if phase != BOUNDED or w <= RETURN:
                        break
            elif returned(eps, a, last_eps, last_a):
                period = step - max_steps
                break
            elif step == max_steps + LONGEST_PERIOD or not (eps * eps <= DIVERGED_W):
                break
            if _advance(sides, slopes, eps):
                _scatter(now_p, now_v, sides, moved_p, moved_v)
                now_p, now_v = moved_p, moved_v
                negative = _gather(now_p, now_v, sides)
            eps, a = _observe(sides, slopes, k, y)
            step += 1
            if phase < 0:
                before, w = w, eps * eps
                if w > before * GROWTH:
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
                if w > before * GROWTH:
                    grew = True
                if w > top:
                    top, when = w, step
            if not (w <= DIVERGED_W):
                phase = DIVERGED
                break
            if angle == 0:
                phase = DEAD
                break
            if w < CONVERGED_W and a < 2:
                phase = CATAPULT if grew else MONOTONE
                break
            if step == max_steps:
                phase = BOUNDED
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
