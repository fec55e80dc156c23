r"""Self-stabilisation at the edge: two numbers, and what gradient noise does to them.

Damian, Nichani & Lee 2022 (arXiv 2209.15594): x, the displacement along the top eigenvector, and y, the
sharpness above :math:`2/\eta`, under progressive sharpening
:math:`\alpha = -\langle g, \nabla S\rangle` and with :math:`\beta = |\nabla S|^2`:

.. math:: x \leftarrow -(1 + \eta y)\,x, \qquad y \leftarrow y + \eta\,(\alpha - \beta x^2/2)

For small :math:`\eta` it is a flow of :math:`X = \ln(x^2 \beta/2\alpha)` and y that goes round on closed
curves. The recursion itself turns outward: small cycles by :math:`2\eta^2\alpha` of their energy per step,
large ones by less, down to :math:`4\eta^2\alpha/3`. Without a force that brings y back it is no model of
long runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eosim._checks import Array, Interval, integer, real_number

_POSITIVE = Interval(0, math.inf)


def step(x: Any, y: Any, lr: Any, alpha: Any, beta: Any) -> tuple[Any, Any]:
    r"""The recursion above: plain arithmetic, on numbers, arrays or symbols."""
    return -(1 + lr * y) * x, y + lr * (alpha - beta * x**2 / 2)


def field(X: Any, y: Any, lr: Any, alpha: Any, growth: Any) -> tuple[Any, Any]:
    r"""Its flow per step: :math:`\dot X = 2\eta y,\ \dot y = \eta\alpha(1 - e^X)`; ``growth`` is e^X."""
    return 2 * lr * y, lr * alpha * (1 - growth)


def energy(X: Any, y: Any, alpha: Any, growth: Any) -> Any:
    r"""The first integral :math:`y^2 + \alpha(e^X - X - 1)` of the flow; ``growth`` is e^X."""
    return y**2 + alpha * (growth - X - 1)


def mean_square(alpha: float, beta: float) -> float:
    r""":math:`2\alpha/\beta`: the mean of x^2 over a cycle."""
    return 2 * real_number("alpha", alpha, _POSITIVE) / real_number("beta", beta, _POSITIVE)


def first_peak(x0: float, alpha: float, beta: float) -> float:
    r"""The first peak of the sharpness above 2/lr, from y = 0 and a small x0.

    .. math:: y_{\max} = \sqrt{\alpha\,(e^{X_0} - X_0 - 1)}, \qquad X_0 = \ln(x_0^2 \beta/2\alpha)

    Of the flow; runs exceed it by O(lr).
    """
    x0 = real_number("x0", x0, _POSITIVE)
    X = math.log(x0**2 / mean_square(alpha, beta))
    return math.sqrt(energy(X, 0.0, alpha, math.exp(X)))


def period(lr: float, alpha: float) -> float:
    r""":math:`2\pi/(\eta\sqrt{2\alpha})` steps: of small cycles."""
    lr = real_number("lr", lr, _POSITIVE)
    return 2 * math.pi / (lr * math.sqrt(2 * real_number("alpha", alpha, _POSITIVE)))


@dataclass(frozen=True)
class NoisyEdge:
    r"""Self-stabilisation with gradient noise of variance s^2 along x and a force that brings y back.

    .. math:: x \leftarrow x - \eta(S x + s\xi), \qquad
              S \leftarrow S - \eta\,(x^2/2 + c\,(S - m)), \qquad \xi \sim N(0, 1)

    that is SGD on :math:`S x^2/2 + c(S-m)^2/2`; :math:`\alpha = c\,(m - \bar S),\ \beta = 1`.

    The gap :math:`\Delta = 2/\eta - \bar S` is :math:`\eta\beta s^2/4\alpha` where noise drives large
    cycles (Liao, Kolomvaki & Kyrillidis 2026, arXiv 2604.21016): weak force, strong noise. In
    stationarity (ours)

    .. math:: E[yx^2] = -\tfrac\eta2 (s^2 + E[y^2x^2]), \qquad
              E\,y = \tfrac\eta2 (E\,y^2 + s^2 E[1/x^2]) + \dots

    The first is exact and gives that gap if y and :math:`x^2` are uncorrelated. The second, of leading
    order, gives the *opposite* sign where :math:`x^2` stays near its mean: strong force, :math:`c >
    2\eta\alpha`, for which the cycle without noise is stable, and weak noise.

    Parameters
    ----------
    lr, force, target : float
        :math:`\eta`, c and m; positive, m above 2/lr.
    noise : float
        s, at least 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter is outside its domain.
    """

    lr: float
    force: float
    target: float
    noise: float

    def __post_init__(self) -> None:
        for name in ("lr", "force", "target"):
            real_number(f"NoisyEdge: {name}", getattr(self, name), _POSITIVE)
        real_number("NoisyEdge: noise", self.noise, Interval(0, math.inf, lower_closed=True))
        if self.target <= 2 / self.lr:
            raise ValueError(
                f"NoisyEdge: target must be above 2/lr = {2 / self.lr:g}, got {self.target}"
            )

    def simulate(
        self, n_steps: int, n_replicas: int, *, seed: int = 0, start: float = 2.0
    ) -> tuple[Array, Array]:
        """Displacements and sharpnesses of all replicas, from (start, 2/lr).

        Returns
        -------
        x, S : (n_steps + 1, n_replicas) arrays
            Replicas that leave every bound are inf or nan from there on.
        """
        steps = integer("n_steps", n_steps, minimum=1)
        replicas = integer("n_replicas", n_replicas, minimum=1)
        generator = np.random.default_rng(integer("seed", seed, minimum=0))
        x, S = (
            np.full((steps + 1, replicas), float(start)),
            np.full((steps + 1, replicas), 2 / self.lr),
        )
        with np.errstate(over="ignore", invalid="ignore"):
            for t in range(steps):
                kicks = self.noise * generator.standard_normal(replicas)
                x[t + 1] = x[t] - self.lr * (S[t] * x[t] + kicks)
                S[t + 1] = S[t] - self.lr * (x[t] ** 2 / 2 + self.force * (S[t] - self.target))
        return x, S

    def sharpness_gap(self, alpha: float) -> float:
        r""":math:`\eta s^2/4\alpha`, the gap of large cycles; alpha is c (m - mean of S) of a run."""
        return self.lr * self.noise**2 / (4 * real_number("alpha", alpha, _POSITIVE))
