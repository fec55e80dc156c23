r"""Scalar maps in plain arithmetic: the same functions run on floats, arrays and symbols.

``+ - * **`` only, no branches on values: kernels compile them, and theory executes them on symbols.
"""

from __future__ import annotations

from typing import Any


def residual_map(eps: Any, a: Any, label: Any = 0) -> tuple[Any, Any]:
    r"""One step of (epsilon, a); with ``label`` Y = 0, :math:`w' = w(1-a+w)^2,\ a' = a + w(a-4)`."""
    output = eps + label
    return eps * (1 - a + eps * output), a + eps * (eps * a - 4 * output)


def factor_map(u: Any, v: Any, label: Any = 0) -> tuple[Any, Any]:
    r"""One step of gradient descent with rate 1 on :math:`\frac12 (uv - Y)^2`."""
    eps = u * v - label
    return u - eps * v, v - eps * u


def balanced_map(s: Any, label: Any) -> Any:
    """`factor_map` on its invariant line u = v = s: s' = s (1 + Y - s^2)."""
    return s * (1 + label - s**2)


def output_map(f: Any, ntk: Any, residual: Any, lr: Any, kappa: Any) -> tuple[Any, Any]:
    r"""One step of output and NTK in the units of the net (:math:`\kappa` = 1/n for the uv net)."""
    move = lr * residual
    return f - move * ntk + kappa * move**2 * f, ntk + kappa * move * (move * ntk - 4 * f)


def moment_map(low: Any, middle: Any, high: Any, move: Any) -> Any:
    r"""One step of :math:`M_k = \zeta^k \theta^\top\psi^k\theta` from M_k, M_{k+1} and M_{k+2}.

    ``move`` is lr * e.
    """
    return low - 2 * move * middle + move**2 * high


def bias_map(
    linear: Any, quadratic: Any, curved: Any, residual: Any, lr: Any, flat: Any, kappa: Any
) -> tuple[Any, Any, Any]:
    r"""One step of a quadratic net with bias, one datum and :math:`\psi^2 = s^2 I`.

    The output is ``linear`` :math:`\phi\cdot\theta_f` plus ``quadratic``; the NTK is ``flat``
    :math:`|\phi|^2` (constant) plus ``curved``.
    """
    move = lr * residual
    return (
        linear - move * flat,
        quadratic - move * curved + kappa * move**2 * quadratic,
        curved + kappa * move * (move * curved - 4 * quadratic),
    )


def margin(eps: Any, a: Any, label: Any = 0) -> Any:
    r"""F = a - 4 - Y epsilon: for |Y| < 2 a run diverges iff F > 0.

    :math:`F' = F(1 + \epsilon^2 + Y\epsilon)`, and the factor is positive.
    """
    return a - 4 - label * eps


def first_integral(w: Any, delta: Any) -> Any:
    r"""The formal invariant of the map at Y = 0, delta = a - 2, through weight 7 (delta 1, w 2).

    Unique up to functions of itself; that freedom is fixed by having no pure power of w beyond w.
    Every coefficient is an integer over the common denominator of its weight, so that symbols stay
    exact.
    """
    return (
        w
        + delta**2 / 2
        + delta**3 / 3
        + delta**4 / 8
        - (14 * delta**5 + 115 * delta**3 * w + 150 * delta * w**2) / 180
        + (-205 * delta**6 - 342 * delta**4 * w + 648 * delta**2 * w**2) / 1728
        + (-79 * delta**7 + 2198 * delta**5 * w + 5936 * delta**3 * w**2 + 5880 * delta * w**3)
        / 6048
    )
