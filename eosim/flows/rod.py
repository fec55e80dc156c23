r"""The rod flow: two consecutive iterates as the ends of a rod, centre and half-difference as an ODE.

Regis & Chewi 2026 (arXiv 2602.01480; for Adam arXiv 2605.06821). Of a map :math:`z \leftarrow z + V(z)`,
with ends :math:`z \pm \delta`, values :math:`V_\pm` and Jacobians :math:`J_\pm` there, per step:

.. math:: \dot z = \tfrac12 (V_+ + V_-) - \tfrac18 (J_+ + J_-)(V_+ + V_-), \qquad
          \dot\Sigma = \tfrac14 (V_+ V_+^\top + V_- V_-^\top) - 2\Sigma

The second term of the first equation is the backward-error correction of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from eosim._checks import Array, choice, dense_fits, float_array, integer, interface
from eosim.flows._modes import top_modes
from eosim.flows.base import Averages
from eosim.flows.central import log_moments
from eosim.optimizers import (
    Adam,
    EMAMomentum,
    GradientDescent,
    HeavyBall,
    NAdam,
    Nesterov,
    QuasiHyperbolic,
    RMSProp,
)
from eosim.problems.base import Problem, hessian_products

_LINEAR = (GradientDescent, HeavyBall, Nesterov, EMAMomentum, QuasiHyperbolic)
_ADAPTIVE = (RMSProp, Adam, NAdam)


@dataclass(frozen=True)
class RodFlow:
    r"""The rod flow of gradient descent, momentum methods, RMSProp, Adam and NAdam.

    z holds theta and the rule's momentum buffer; :math:`\ln\nu` of an adaptive rule is a smooth third part,
    :math:`\dot\nu = (1-\beta_2)[\overline{g^2} - \nu]` with the mean over the ends. The state is (z,
    :math:`\Sigma`, :math:`\ln\nu`), with :math:`\Sigma` of shape (z, z).

    - "covariance" (our variant) sums over all eigenpairs :math:`d_j = \sqrt{l_j}\, e_j` of
      :math:`\Sigma`: with :math:`V_0 = V(z)`, :math:`V_j^\pm = V(z \pm d_j)` and :math:`f = V_0 +
      \sum_j [(V_j^+ + V_j^-)/2 - V_0]`,

      .. math:: \dot z = f - \tfrac12 (Df) f, \qquad
                \dot\Sigma = \tfrac18 \sum_j (V_j^+ - V_j^-)(V_j^+ - V_j^-)^\top - 2\Sigma

    - "literal" takes :math:`\delta = d_1` alone, as published. Where the steady drift of the centre exceeds
      the oscillation, the rod aligns with the drift and misses the edge.

    Parameters
    ----------
    problem : Problem
    rule : GradientDescent, HeavyBall, Nesterov, EMAMomentum, QuasiHyperbolic, RMSProp, Adam or NAdam
        Adaptive ones without bias correction.
    form : str
        "covariance" or "literal".
    n_modes : int, optional
        How many eigenpairs of :math:`\Sigma` "covariance" takes, the largest ones; all if None. Each costs
        two gradients and two Hessian-vector products.

    initial_covariance : (dim, dim) array, optional
        Of theta at the start, with the centre at theta0. None takes the rod from theta0 to the next
        iterate.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Notes
    -----
    The linear part grows iff :math:`|\mu - 1| > 2` for a multiplier :math:`\mu` of the rule: right
    for modes that leave the unit circle at -1, and wrong for complex pairs (`CascadedEMA` is refused).
    Eigenpairs of :math:`\Sigma` depend on units: buffers are measured by P 2/lr, their size in a swing of
    size 1 at the edge.
    """

    problem: Problem
    rule: Any
    form: str = "covariance"
    n_modes: int | None = None
    initial_covariance: Any = None

    is_complex = False

    def __post_init__(self) -> None:
        interface("RodFlow: problem", self.problem, ("dim", "gradient", "hvp"))
        interface("RodFlow: rule", self.rule, ("init", "step"))
        if type(self.rule) not in _LINEAR + _ADAPTIVE:
            known = ", ".join(known.__name__ for known in _LINEAR + _ADAPTIVE)
            raise TypeError(f"RodFlow: rule must be one of {known}; got {type(self.rule).__name__}")
        for option in ("bias_correction", "eps_inside"):
            if getattr(self.rule, option, False):
                raise ValueError(f"RodFlow: {type(self.rule).__name__} must have {option}=False")
        choice("RodFlow: form", self.form, ("covariance", "literal"))
        if self.n_modes is not None:
            integer("RodFlow: n_modes", self.n_modes, minimum=1)
        if self.initial_covariance is not None:
            dim = self.problem.dim
            matrix = float_array(
                "RodFlow: initial_covariance", self.initial_covariance, shape=(dim, dim)
            )
            if np.abs(matrix - matrix.T).max() > 0 or np.linalg.eigvalsh(matrix)[0] < 0:
                raise ValueError("RodFlow: initial_covariance must be symmetric and not negative")
            object.__setattr__(self, "initial_covariance", matrix)

    @property
    def lr(self) -> float:
        return float(self.rule.lr)

    def start(self, theta: Array, memory: tuple[Any, ...] | None) -> Array:
        memory = self.rule.init(theta) if memory is None else memory
        if self._adaptive:
            log_nu = log_moments(self.rule, theta, memory)
            buffers = self.rule.buffers(memory)
        else:
            log_nu, buffers = np.zeros(0), memory
        z = np.concatenate([theta, *buffers])
        few = "EdgeFlow and CentralFlow follow a few directions"
        dense_fits("RodFlow: the covariance", (len(z), len(z)), few)
        if self.initial_covariance is not None:
            covariance = np.zeros((len(z), len(z)))
            covariance[: len(theta), : len(theta)] = self.initial_covariance
        else:
            half = self._local(z, log_nu).move / 2
            z, covariance = z + half, np.outer(half, half)
        return np.concatenate([z, covariance.ravel(), log_nu])

    def centre(self, state: Array) -> Array:
        return state[: self.problem.dim]

    def covariance(self, state: Array) -> Array:
        r""":math:`\Sigma` of theta, of shape (dim, dim)."""
        dim = self.problem.dim
        return self._split(state)[1][:dim, :dim]

    def field(self, state: Array, branch: Any = None) -> Array:
        z, covariance, log_nu = self._split(state)
        rods = self._rods(covariance, log_nu)
        ends = [(self._local(z + d, log_nu), self._local(z - d, log_nu)) for d in rods]
        if self.form == "literal":
            ((ahead, behind),) = ends
            both = ahead.move + behind.move
            drift = both / 2 - (ahead.slope(both) + behind.slope(both)) / 8
            spread = np.outer(ahead.move, ahead.move) + np.outer(behind.move, behind.move)
            square = (ahead.square + behind.square) / 2
        else:
            middle = self._local(z, log_nu)
            force, square, spread = middle.move, middle.square, np.zeros_like(covariance)
            for ahead, behind in ends:
                force = force + (ahead.move + behind.move) / 2 - middle.move
                square = square + (ahead.square + behind.square) / 2 - middle.square
                spread += np.outer(ahead.move - behind.move, ahead.move - behind.move) / 2
            bend = middle.slope(force)
            for ahead, behind in ends:
                bend = bend + (ahead.slope(force) + behind.slope(force)) / 2 - middle.slope(force)
            drift = force - bend / 2
        rates = [drift, (spread / 4 - 2 * covariance).ravel()]
        if self._adaptive:
            rates.append((1 - self.rule.beta2) * (np.maximum(square, 0) / np.exp(log_nu) - 1))
        return np.concatenate(rates) / self.lr

    def averages(self, state: Array, branch: Any = None) -> Averages:
        """Over the ends of each rod, which adds its part to the centre's."""
        _, covariance, log_nu = self._split(state)
        theta, dim = self.centre(state), self.problem.dim
        loss, slope = self.problem.loss(theta), self.problem.gradient(theta)
        square = slope @ slope
        losses, squares = loss, square
        for d in self._rods(covariance, log_nu):
            for end in (theta + d[:dim], theta - d[:dim]):
                losses += (self.problem.loss(end) - loss) / 2
                slope = self.problem.gradient(end)
                squares += (slope @ slope - square) / 2
        root = np.sqrt(np.broadcast_to(self._preconditioner(log_nu), (dim,)))
        top = top_modes(self.problem, theta, root, 1, None).values[0]
        ratio = float(top / self.rule.critical_sharpness())
        oscillation = float(np.trace(covariance[:dim, :dim]))
        return Averages(float(losses), float(squares), oscillation, ratio)

    @property
    def _adaptive(self) -> bool:
        return type(self.rule) in _ADAPTIVE

    def _preconditioner(self, log_nu: Array) -> Any:
        return np.exp(log_nu / 2) + self.rule.eps if self._adaptive else np.array(1.0)

    def _rods(self, covariance: Array, log_nu: Array) -> Array:
        """Rows: the d_j, the longest first."""
        dim = self.problem.dim
        units = np.ones(len(covariance))
        units[dim:] = np.broadcast_to(2 / self.lr * self._preconditioner(log_nu), (dim,))[
            : len(units) - dim
        ]
        values, vectors = np.linalg.eigh(covariance / np.outer(units, units))
        lengths = np.sqrt(np.maximum(values[::-1], 0))
        count = 1 if self.form == "literal" else self.n_modes
        return (units[:, None] * vectors[:, ::-1] * lengths).T[:count]

    def _local(self, z: Array, log_nu: Array) -> _Local:
        """V, J and g^2 at z, with P held fixed during a step."""
        theta, buffers = self._parts(z)
        gradient, P = self.problem.gradient(theta), self._preconditioner(log_nu)
        linear = self.rule.linear() if self._adaptive else self.rule
        hessian = hessian_products(self.problem, theta)

        def step(theta: Array, buffers: tuple[Array, ...], force: Array) -> Array:
            # The linear rule is fed with g/P; its buffers are those of the rule over P.
            moved, kept = linear.step(theta, tuple(b / P for b in buffers), force / P)
            return np.concatenate([moved, *(P * b for b in kept)])

        def slope(direction: Array) -> Array:
            theta, buffers = self._parts(direction)
            return step(theta, buffers, hessian(theta)) - direction

        return _Local(step(theta, buffers, gradient) - z, slope, gradient**2)

    def _parts(self, z: Array) -> tuple[Array, tuple[Array, ...]]:
        dim = self.problem.dim
        return z[:dim], () if len(z) == dim else (z[dim:],)

    def _split(self, state: Array) -> tuple[Array, Array, Array]:
        """z, the covariance, and ln nu."""
        dim = self.problem.dim
        linear = self.rule.linear() if self._adaptive else self.rule
        size = dim * (1 + len(linear.init(np.zeros(dim))))
        covariance = state[size : size + size**2].reshape(size, size)
        return state[:size], (covariance + covariance.T) / 2, state[size + size**2 :]


class _Local(NamedTuple):
    """V, the product with J, and the squared gradient entry by entry."""

    move: Array
    slope: Callable[[Array], Array]
    square: Array
