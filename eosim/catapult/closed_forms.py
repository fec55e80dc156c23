r"""Closed forms of catapults: final NTK, peak, pulse, period-2 orbit, divergence boundary.

Normalised as in `eosim.catapult`; delta stands for a - 2. Derived here unless said.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from eosim._checks import Array, Interval, float_array, integer, real_number
from eosim._maps import first_integral

# a_inf - 2 as a polynomial in delta: reversion of the first integral (derived here).
_FINAL = (-1.0, -2 / 3, -4 / 9, -14 / 135, 76 / 405, 3287 / 11340)


def final_ntk(a: float, w: float = 0.0) -> float:
    r"""Final :math:`\eta\lambda` of a catapult at Y = 0 started at (a, w).

    The series :math:`2 - \delta - \frac23\delta^2 - \frac49\delta^3 - \dots` to :math:`\delta^6` (error
    7e-4 at a = 2.5), at the delta of the infinitesimal start on the same level of the first integral,
    :math:`I(0, \delta_0) = I(w, \delta)`; at leading order :math:`2 - a_\infty = \sqrt{\delta^2 + 2w}`.

    Raises
    ------
    TypeError, ValueError
        If a is outside [2, 2.8] or w outside [0, 0.1], where the expansion means nothing.
    """
    delta = real_number("a", a, Interval(2, 2.8, lower_closed=True, upper_closed=True)) - 2
    w = real_number("w", w, Interval(0, 0.1, lower_closed=True, upper_closed=True))
    if w > 0:
        from scipy.optimize import brentq  # imported here: it takes longer than most calls

        level = first_integral(w, delta)
        delta = brentq(lambda d: first_integral(0.0, d) - level, delta, 1.05, xtol=1e-15)
    return 2 + sum(c * delta ** (k + 1) for k, c in enumerate(_FINAL))


class Peak(NamedTuple):
    """Height of the catapult in w, and the step at which it comes."""

    w: float
    step: float


def peak(a: float, w: float) -> Peak:
    r"""Height :math:`\delta^2/2 + \delta^3/3` and time :math:`\ln(2\delta^2/w_0)/2\ln(1+\delta)`, Y = 0.

    For a start well below the pulse, w much smaller than :math:`\delta^2/2`: the height is then within
    7 % for delta = a - 2 up to 0.5, the time within one step.

    Raises
    ------
    TypeError, ValueError
        If a is outside (2, 4), or w is not positive.
    """
    delta = real_number("a", a, Interval(2, 4)) - 2
    w = real_number("w", w, Interval(0, math.inf))
    return Peak(delta**2 / 2 + delta**3 / 3, math.log(2 * delta**2 / w) / (2 * math.log(1 + delta)))


def pulse(a: float, w: float, steps: Any) -> tuple[Array, Array]:
    r"""(w, a) of a small catapult, of shape (n_steps,) each.

    :math:`w = \frac{\delta^2}{2} \mathrm{sech}^2 x,\ a = 2 - \delta\tanh x`, where
    :math:`x = \delta(t - t^*)` with the time of the peak.
    """
    delta = real_number("a", a, Interval(2, 4)) - 2
    shifted = delta * (float_array("steps", steps) - peak(a, w).step)
    return delta**2 / 2 / np.cosh(shifted) ** 2, 2 - delta * np.tanh(shifted)


def period_two(label: float) -> tuple[float, float, float, float]:
    r"""The period-2 orbit of the balanced net, outputs r > 1 > 1/r with r + 1/r = 1 + Y.

    Returns r, 1/r, and the multipliers along the balanced line, :math:`9 - 2(1+Y)^2`, and across it,
    3 - 2Y. The orbit is stable for 1 < Y < sqrt(5) - 1.

    Raises
    ------
    TypeError, ValueError
        If Y is not above 1: there is no such orbit.
    """
    label = real_number("label", label, Interval(1, math.inf))
    total = 1 + label
    r = (total + math.sqrt(total**2 - 4)) / 2
    return r, 1 / r, 9 - 2 * total**2, 3 - 2 * label


def critical_lr(squares: float, product: float, target: float) -> float:
    r"""The divergence boundary F = 0 of :math:`\frac12(u\cdot v - y)^2` at any width, exactly.

    :math:`8 / (S + \sqrt{S^2 - 16\,y\,(P - y)})` with ``squares`` S = |u|^2 + |v|^2, ``product``
    P = u.v and ``target`` y; runs below it stay bounded while lr |y| < 2 and converge while
    lr |y| < 1 (the boundary of Liang & Montufar). 4 / S at y = 0.

    Raises
    ------
    TypeError, ValueError
        If S is not positive, or below 2 |P|: :math:`|u \mp v|^2 = S \mp 2P`.
    """
    squares = real_number("squares", squares, Interval(0, math.inf))
    product, target = real_number("product", product), real_number("target", target)
    gap = squares - 2 * abs(product)
    if gap < -1e-12 * squares:  # less is rounding of the sums: our choice, that of the phases
        raise ValueError(
            "squares must be at least 2 |product| (|u|^2 + |v|^2 and u.v); got squares = "
            f"{squares!r} with product = {product!r}"
        )
    # The radicand is (S - 2|P|)(S + 2|P|) + 4 (P - 2y)^2, a sum without cancellation.
    across = math.sqrt(max(gap, 0.0)) * math.sqrt(squares + 2 * abs(product))
    return 8 / (squares + math.hypot(across, 2 * (product - 2 * target)))


def boundary_orbit(angle: Any, n_steps: int) -> Array:
    r"""Residuals :math:`\epsilon_t = 2\cos 2\phi_t` on the invariant ellipse F = 0.

    :math:`\phi_{t+1} = \pi - 3\phi_t` modulo :math:`\pi`: the angle triples, with Lyapunov exponent
    ln 3. Every step is :math:`\epsilon' = \epsilon^3 - 3\epsilon` to rounding; rounding triples too, so
    that after some 34 steps the orbit is that of another angle.
    """
    # Modulo pi at every step: else the angle grows as 3^t, and its rounding with it.
    angles = [math.remainder(real_number("angle", angle), math.pi)]
    for _ in range(integer("n_steps", n_steps, minimum=0)):
        angles.append(math.remainder(math.pi - 3 * angles[-1], math.pi))
    return 2 * np.cos(2 * np.array(angles))
