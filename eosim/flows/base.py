"""The contract of a flow, in the image of an update rule: a pure field with explicit path memory."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from eosim._checks import Array
from eosim.problems.base import Problem


class LeftRange(Exception):
    """Raised by a field where its flow does not exist; `integrate` turns it into a status."""


class Flow(Protocol):
    """dtheta/dt = field(theta).

    A flow whose field depends on the path (through the branch of a logarithm) is a `BranchedFlow`;
    every other flow may ignore ``branch``.

    Attributes
    ----------
    problem : Problem
    lr : float or None
        h, the learning rate whose discrete steps the flow follows: step = t / h.
    is_complex : bool
        Whether the state may leave the real axis.
    """

    @property
    def problem(self) -> Problem: ...

    @property
    def lr(self) -> float | None: ...

    @property
    def is_complex(self) -> bool: ...

    def field(self, theta: Array, branch: Any = None) -> Array:
        """The vector field, of shape (dim,)."""

    def coefficient(self, z: Array) -> Array:
        """alpha(h lambda): on a quadratic, d(u.theta)/dt = alpha(h lambda) lambda (u.theta)."""


class BranchedFlow(Flow, Protocol):
    """A flow that remembers its path in ``branch``.

    `integrate` gets the memory from ``init`` at the start and replaces it by
    ``advance(theta, branch)`` after each accepted step. ``field(theta)`` without a branch is the
    field of a path that starts at theta.
    """

    def init(self, theta: Array) -> Any: ...

    def advance(self, theta: Array, branch: Any) -> Any:
        """The memory at theta; raises `AmbiguousBranch` if the step was too long to tell."""


class Averages(NamedTuple):
    r"""What an oscillating flow predicts of the optimizer's iterates, averaged over a few steps.

    Attributes
    ----------
    loss : float
        E L.
    squared_gradient : float
        :math:`E|g|^2`.
    oscillation : float
        :math:`\mathrm{tr}\,\Sigma`, the mean square distance from the centre.
    ratio : float
        Largest eigenvalue of :math:`P^{-1}H` at the centre over the rule's critical sharpness.
    """

    loss: float
    squared_gradient: float
    oscillation: float
    ratio: float


class OscillatingFlow(Protocol):
    """A flow of the centre of an oscillation, with the oscillation and a rule's memory as state.

    `integrate` gets the state from ``start``, moves it by ``field``, and returns its ``centre``.
    """

    @property
    def problem(self) -> Problem: ...

    @property
    def lr(self) -> float | None: ...

    @property
    def is_complex(self) -> bool: ...

    def start(self, theta: Array, memory: tuple[Any, ...] | None) -> Array:
        """The flow's state, given theta and the rule's state; None for a rule's fresh one."""

    def field(self, state: Array, branch: Any = None) -> Array:
        """d state/dt, shaped like the state."""

    def centre(self, state: Array) -> Array:
        """(dim,)"""

    def averages(self, state: Array, branch: Any = None) -> Averages: ...


class AmbiguousBranch(Exception):
    """Raised by ``advance`` where continuity does not decide: the step is taken again, shorter.

    ``best`` is the memory to go on with where the step is too short already (eigenvalues that meet).
    """

    def __init__(self, best: Any) -> None:
        super().__init__("the branch is ambiguous")
        self.best = best
