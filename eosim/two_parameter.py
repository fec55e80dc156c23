r"""The smallest model that comes to rest at the edge of stability: two parameters, one datum.

With :math:`Q = \mathrm{diag}(1, -\epsilon)` and a constant E, gradient descent with rate 1 on

.. math:: L = z^2/2, \qquad z = \tfrac12 (\theta^\top Q\theta - E) = \tfrac12 (x^2 - \epsilon y^2 - E)

closes in the residual z and the NTK :math:`T_0 = |Q\theta|^2 = x^2 + \epsilon^2 y^2`. (Another rate is
another scale of theta.) The edge is :math:`T_0 = 2`. For E = 0 runs that pass it come to rest at
:math:`T_0 = 2 - \epsilon/2 + O(\epsilon^2)`.

Model and reduced map: Agarwala, Pedregosa & Pennington 2022, arXiv 2210.04860; the resting value is
derived here. The maps are plain arithmetic: floats, arrays and symbols.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eosim._checks import Array, Interval, float_array, integer, real_number


def parameter_map(x: Any, y: Any, eps: Any, energy: Any = 0) -> tuple[Any, Any]:
    r"""One step on the parameters: :math:`\theta' = \theta - z Q\theta`."""
    z, _ = reduced_variables(x, y, eps, energy)
    return x - z * x, y + z * eps * y


def reduced_variables(x: Any, y: Any, eps: Any, energy: Any = 0) -> tuple[Any, Any]:
    r"""(z, T_0) of the parameters."""
    return (x**2 - eps * y**2 - energy) / 2, x**2 + eps**2 * y**2


def curvatures(z: Any, ntk: Any, eps: Any, energy: Any = 0) -> tuple[Any, Any]:
    r"""(T_1, T_2) with :math:`T_k = \theta^\top Q^{k+2}\theta`.

    :math:`T_1 = (1-\epsilon) T_0 + \epsilon (2z + E)` and :math:`T_2 = (1-\epsilon) T_1 + \epsilon T_0`:
    Q solves :math:`Q^2 = (1-\epsilon) Q + \epsilon I`.
    """
    first = (1 - eps) * ntk + eps * (2 * z + energy)
    return first, (1 - eps) * first + eps * ntk


def reduced_map(z: Any, ntk: Any, eps: Any, energy: Any = 0) -> tuple[Any, Any]:
    r"""One step of (z, T_0): :math:`z' = z - zT_0 + z^2T_1/2,\ T_0' = T_0 - 2zT_1 + z^2T_2`."""
    first, second = curvatures(z, ntk, eps, energy)
    return z - z * ntk + z**2 * first / 2, ntk - 2 * z * first + z**2 * second


def edge_ntk(eps: Any) -> Any:
    r"""Where runs that pass the edge come to rest at E = 0: :math:`2 - \epsilon/2`, up to O(eps^2).

    :math:`C = T_0 - 2z` changes by the factor :math:`(1 + \epsilon z)^2`. At eps = 0 it is conserved, and
    for C > 2 there is a two-cycle, on :math:`C = 2 + 2z^2/(1-z)`; of mean z < 0, so that C drifts down. At
    z = 0 the cycles continue in the one invariant curve of their curvature, that through
    :math:`T_0 = 2 - \epsilon/2`.

    Medians over 60 starts (z uniform in +-0.5, T_0 in 1.7 to 2.5): :math:`(2 - T_0)/\epsilon` is 0.599
    at eps = 0.1, 0.509 at 0.01 and 0.502 at 0.0025. Runs that never cross 2 stop where they are.
    """
    return 2 - eps / 2


def parameters(z: Any, ntk: Any, eps: float, energy: float = 0.0) -> tuple[Array, Array]:
    """(x, y), both not negative, of given z and T_0; the inverse of `reduced_variables`.

    Raises
    ------
    TypeError, ValueError
        If eps is not in (0, 1], or z and T_0 belong to no real parameters: with W = 2z + E these
        have T_0 >= W and T_0 >= -eps W, up to rounding.
    """
    eps = real_number("eps", eps, _EPS)
    energy = real_number("energy", energy)
    z = float_array("z", z)
    ntk = float_array("ntk", ntk, shape=z.shape)
    form, size = 2 * z + energy, 2 * np.abs(z) + abs(energy)
    x_squared = (ntk + eps * form) / (1 + eps)
    y_squared = (ntk - form) / (eps * (1 + eps))
    for squared, terms in (
        (x_squared, (ntk + eps * size) / (1 + eps)),
        (y_squared, (ntk + size) / (eps * (1 + eps))),
    ):
        if (squared < -_ROUNDING * terms).any():
            raise ValueError(
                "ntk must be at least W and -eps W with W = 2 z + energy, got a squared parameter of "
                f"{squared.min():.3g}"
            )
    return np.sqrt(np.maximum(x_squared, 0)), np.sqrt(np.maximum(y_squared, 0))


def settle(
    z: Any, ntk: Any, eps: float, energy: float = 0.0, n_steps: int | None = None
) -> tuple[Array, Array]:
    """Many starts at once: (z, T_0) after ``n_steps`` of the reduced map.

    Parameters
    ----------
    z, ntk : arrays of one shape
    eps : float
        In (0, 1].
    energy : float
        E.
    n_steps : int, optional
        60 / eps, rounded up, if None: the drift along the edge takes O(1/eps) steps. Our choice: at
        60 / eps the residuals have died out for eps down to 0.0025.

    Returns
    -------
    (z, ntk)
        Arrays of the shape of the starts; both infinite for starts that diverged.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.
    """
    eps = real_number("eps", eps, _EPS)
    energy = real_number("energy", energy)
    z = float_array("z", z)
    ntk = float_array("ntk", ntk, shape=z.shape)
    steps = int(np.ceil(60 / eps)) if n_steps is None else integer("n_steps", n_steps, minimum=0)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for _ in range(steps):
            z, ntk = reduced_map(z, ntk, eps, energy)
    diverged = ~(np.isfinite(z) & np.isfinite(ntk))
    return np.where(diverged, np.inf, z), np.where(diverged, np.inf, ntk)


_EPS = Interval(0, 1, upper_closed=True)
# Eight times the spacing of floats at 1: a parameter of 0 has reduced variables with six roundings.
_ROUNDING = 8 * float(np.finfo(float).eps)
