r"""The central flow: the time average of an optimizer at the edge, with the covariance of its swings.

Cohen, Damian, Talwalkar, Kolter & Lee 2024 (arXiv 2410.24206). With the rate inside the
preconditioner, :math:`w \leftarrow w - P^{-1} g`, per step of the optimizer:

.. math:: \dot w = -P^{-1}\left[g + \tfrac12 \nabla_w \langle \Sigma, H(w) \rangle\right], \qquad
          H \preceq \tau P, \quad \Sigma \succeq 0 \ \text{on}\ \ker(\tau P - H)

and the second moments follow the average of :math:`g^2` over the swings. The edge is at
:math:`\tau = 2` without momentum. :math:`\Sigma` is what holds the constraint: the solution of a
semidefinite complementarity problem for the rate of change of :math:`\tau P - H` on the modes at the edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from eosim._checks import Array, Interval, dense_fits, integer, interface, real_number
from eosim.flows._complementarity import NoSolution, solve_complementarity
from eosim.flows._modes import Modes, top_modes, tracks
from eosim.flows.base import Averages, LeftRange
from eosim.optimizers import Adam, GradientDescent, RMSProp, ScalarRMSProp
from eosim.problems.base import Problem, third_derivative

_RULES = (GradientDescent, ScalarRMSProp, RMSProp, Adam)
# Our choice: directions are tracked from this share of the edge on. The complementarity problem
# gives those below the edge no part in the oscillation; one that is left out enters with a jump.
_TRACKED = 0.75
# Our choice, as in the authors' reference code: 100 for an edge at 2.
STABLE_LIMIT = 50.0


@dataclass(frozen=True)
class CentralFlow:
    r"""The central flow of gradient descent, scalar RMSProp, RMSProp or Adam.

    The state is theta and the logarithms of the rule's second moments. With :math:`c_2 =
    (1-\beta_2)/\beta_2` and the modes :math:`U = P^{-1/2} V` (V: the top eigenvectors of
    :math:`P^{-1/2} H P^{-1/2}`, S its eigenvalues), :math:`\Sigma = U X U^\top` solves

    .. math::
       0 \preceq X \perp A + B[X] \succeq 0, \qquad
       A = \kappa (\tau - S) + \langle D, P^{-1} g \rangle + \dots, \qquad
       B_{ij,mn} = \tfrac12 \langle D_{ij}, P^{-1} D_{mn} \rangle + \dots

    with :math:`D_{ij} = \nabla_w (u_i^\top H u_j)`; the dots are :math:`\tau U^\top \dot P U` from

    .. math:: \dot\nu = c_2 \left[ g^2 + \tau^2 P^2 \mathrm{diag}(\Sigma) - \nu \right]

    (one number :math:`\nu` with the sums for scalar RMSProp). The feedback :math:`\kappa` pulls S back to
    the edge at this rate per step (for adaptive rules off the edge at this rate and that of ln P), so
    that there are no events to find: Euler steps of the authors' reference code with step dt are
    :math:`\kappa = 1/dt`.

    For Adam it is an extension of ours: the edge at :math:`\tau = 2(1+\beta_1)/(1-\beta_1)`, and the
    momentum slaved to the mean gradient. Its slow variables follow Adam; Adam's ratio also cycles.

    Parameters
    ----------
    problem : Problem
    rule : GradientDescent, ScalarRMSProp, RMSProp or Adam
        Without bias correction, which would make the flow depend on time.
    n_modes : int
        How many directions at most are at the edge. Our choice 6.
    feedback : float
        kappa per step, positive. Our choice 1.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Notes
    -----
    `integrate` ends with LEFT_RANGE where the flow does not exist: no covariance holds the modes at
    the edge (the sharpness does not depend on theta along the way, as at the minimum of a quartic), or
    there are more of them than ``n_modes``. From beside that minimum it exists and ends in a false
    place: it takes the curvature at the centre for that at the ends of the swing. Start the centre
    without a part along the sharp directions: it would decay at tau per step, and cost evaluations.
    """

    problem: Problem
    rule: Any
    n_modes: int = 6
    feedback: float = 1.0

    is_complex = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        interface(f"{name}: problem", self.problem, ("dim", "gradient", "hvp", "hessian"))
        interface(f"{name}: rule", self.rule, ("init", "step"))
        _check_rule(name, self.rule)
        integer(f"{name}: n_modes", self.n_modes, minimum=1)
        real_number(f"{name}: feedback", self.feedback, Interval(0, math.inf))

    @property
    def lr(self) -> float:
        return float(self.rule.lr)

    def start(self, theta: Array, memory: tuple[Any, ...] | None) -> Array:
        return np.concatenate([theta, log_moments(self.rule, theta, memory)])

    def centre(self, state: Array) -> Array:
        return state[: self.problem.dim]

    def init(self, state: Array) -> Array | None:
        return self.advance(state, None)

    def advance(self, state: Array, branch: Array | None) -> Array | None:
        if not tracks(self.problem.dim, self.n_modes):
            return None
        theta, memory = self._split(state)
        return self._top(theta, memory, branch).block

    def field(self, state: Array, branch: Array | None = None) -> Array:
        swing = self._swing(state, branch)
        X, D = swing.X, swing.contractions
        drift = -(swing.memory.gradient + np.einsum("ij,ijp->p", X, D) / 2) / swing.memory.P
        memory = swing.memory
        moments = memory.rate + memory.gain * memory.reduce(swing.variance)
        return np.concatenate([drift, moments]) / self.lr

    def averages(self, state: Array, branch: Array | None = None) -> Averages:
        r""":math:`L + \langle\Sigma, H\rangle/2`, :math:`|g|^2 + \mathrm{tr}\,H\Sigma H`, and so on."""
        swing = self._swing(state, branch)
        S = swing.modes.values[: len(swing.X)]
        forces = swing.memory.P[:, None] * swing.U * S  # H U
        return Averages(
            float(self.problem.loss(self.centre(state)) + np.diag(swing.X) @ S / 2),
            float(
                swing.memory.gradient @ swing.memory.gradient
                + np.sum(swing.X * (forces.T @ forces))
            ),
            float(swing.variance.sum()),
            float(swing.modes.values[0]) / swing.memory.edge,
        )

    def covariance(self, state: Array, branch: Array | None = None) -> Array:
        r""":math:`\Sigma`, of shape (dim, dim)."""
        swing, dim = self._swing(state, branch), self.problem.dim
        dense_fits("the covariance", (dim, dim), "averages(state) has its trace")
        return swing.U @ swing.X @ swing.U.T

    def _top(self, theta: Array, memory: _SecondMoments, branch: Array | None) -> Modes:
        floor = _TRACKED * memory.edge
        return top_modes(self.problem, theta, np.sqrt(memory.P), self.n_modes, branch, floor)

    def _split(self, state: Array) -> tuple[Array, _SecondMoments]:
        theta = state[: self.problem.dim]
        gradient = self.problem.gradient(theta)
        return theta, _second_moments(self.rule, gradient, np.exp(state[self.problem.dim :]))

    def _swing(self, state: Array, branch: Array | None) -> _Swing:
        theta, memory = self._split(state)
        modes, edge, P = self._top(theta, memory, branch), memory.edge, memory.P
        if modes.following > edge:
            raise LeftRange(f"more than n_modes = {self.n_modes} modes are at the edge; raise it")
        values = modes.values[modes.values > _TRACKED * edge]
        k = len(values)
        U = modes.vectors[:, :k] / np.sqrt(P)[:, None]
        D = np.zeros((k, k, len(theta)))
        for i in range(k):
            for j in range(i, k):
                D[i, j] = D[j, i] = third_derivative(self.problem, theta, U[:, i], U[:, j])
        # d(tau P - H)/dt on the modes is A + B[X]; P moves with the second moments.
        pairs = np.einsum("pi,pj->ijp", U, U)
        squares = memory.reduce(pairs)
        A = self.feedback * np.diag(edge - values) + D @ (memory.gradient / P)
        A = A + edge * squares @ (memory.slope * memory.rate)
        B = np.einsum("ijp,mnp->ijmn", D, D / P) / 2
        B = B + edge * np.einsum("ijp,mnp->ijmn", squares, squares * (memory.slope * memory.gain))
        try:
            X = solve_complementarity((A + A.T) / 2, B) if k else A
        except NoSolution:
            raise LeftRange(
                "no oscillation holds the modes at the edge: along it their curvature does not fall"
            ) from None
        return _Swing(memory, modes, U, D, X, np.einsum("ij,ijp->p", X, pairs))


class StableFlow(CentralFlow):
    r"""The flow of an optimizer without oscillation: the central flow with :math:`\Sigma = 0`.

    Gradient flow for gradient descent. For adaptive rules it follows them below the edge; beyond it the
    second moments decay without the oscillation that holds them, and the flow ends (LEFT_RANGE) at
    `STABLE_LIMIT` times the edge.
    """

    def _swing(self, state: Array, branch: Array | None) -> _Swing:
        theta, memory = self._split(state)
        modes = self._top(theta, memory, branch)
        if modes.values[0] > STABLE_LIMIT * memory.edge and len(memory.rate):
            raise LeftRange(
                f"the preconditioned sharpness is {modes.values[0] / memory.edge:.3g} times the edge: "
                "an optimizer would have been oscillating for long; take CentralFlow"
            )
        none = np.zeros((0, 0))
        return _Swing(
            memory,
            modes,
            np.zeros((len(theta), 0)),
            np.zeros((0, 0, len(theta))),
            none,
            np.zeros(len(theta)),
        )


class _SecondMoments(NamedTuple):
    """A rule's preconditioner, with the rate in it, and how its m second moments move.

    d(ln nu)/d(step) = rate + gain * reduce(diag(Sigma)), and dP = slope * d(ln nu).
    """

    gradient: Array
    P: Array
    edge: float
    rate: Array
    gain: Array
    slope: Array

    def reduce(self, values: Array) -> Array:
        """From the parameters (last axis) to the second moments: themselves, their sum, or none."""
        if len(self.rate) == values.shape[-1]:
            return values
        return values.sum(axis=-1, keepdims=True) if len(self.rate) else values[..., :0]


class _Swing(NamedTuple):
    """The oscillation at a state: Sigma = U X U^T, with its diagonal."""

    memory: _SecondMoments
    modes: Modes
    U: Array
    contractions: Array
    X: Array
    variance: Array


def _second_moments(rule: Any, gradient: Array, nu: Array) -> _SecondMoments:
    edge = 2 * (1 + rule.beta1) / (1 - rule.beta1) if isinstance(rule, Adam) else 2.0
    if isinstance(rule, GradientDescent):
        P, none = np.full(len(gradient), 1 / rule.lr), np.zeros(0)
        return _SecondMoments(gradient, P, edge, none, none, none)
    c2 = (1 - rule.beta2) / rule.beta2
    square = gradient**2
    if isinstance(rule, ScalarRMSProp):
        square = square.sum(keepdims=True)
    P = (np.sqrt(nu) + rule.eps) / rule.lr
    return _SecondMoments(
        gradient,
        np.broadcast_to(P, gradient.shape),
        edge,
        c2 * (square / nu - 1),
        c2 * edge**2 * P**2 / nu,
        np.sqrt(nu) / (2 * rule.lr),
    )


def log_moments(rule: Any, theta: Array, memory: tuple[Any, ...] | None) -> Array:
    """ln nu of a rule's state."""
    if isinstance(rule, GradientDescent):
        return np.zeros(0)
    memory = rule.init(theta) if memory is None else memory
    nu = np.atleast_1d(np.asarray(memory[1] if isinstance(rule, Adam) else memory[0], dtype=float))
    if not (nu > 0).all():
        raise ValueError(
            f"{type(rule).__name__}'s second moments must be positive for a flow: run a few steps of the "
            "rule and pass state=run.final_state"
        )
    return np.log(nu)


def _check_rule(name: str, rule: Any) -> None:
    if type(rule) not in _RULES:
        known = ", ".join(known.__name__ for known in _RULES)
        raise TypeError(f"{name}: rule must be one of {known}; got {type(rule).__name__}")
    for option in ("bias_correction", "eps_inside"):
        if getattr(rule, option, False):
            raise ValueError(f"{name}: {type(rule).__name__} must have {option}=False")
    if getattr(rule, "beta2", 1) == 0:
        raise ValueError(f"{name}: {type(rule).__name__} must have a positive beta2")
