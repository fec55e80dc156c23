"""The contract of a flow, in the image of an update rule: a pure field with explicit path memory."""

from __future__ import annotations

from typing import Any, Protocol

from eosim._checks import Array
from eosim.problems.base import Problem


class LeftRange(Exception):
    """Raised by a field where its flow does not exist; `integrate` turns it into a status."""


class Flow(Protocol):
    """dtheta/dt = field(theta, branch).

    A flow whose field depends on the path (through the branch of a logarithm) keeps that memory in
    ``branch``: `integrate` gets it from ``init`` at the start and replaces it by
    ``advance(theta, branch)`` after each accepted step. Flows without memory use None.

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

    def init(self, theta: Array) -> Any: ...

    def advance(self, theta: Array, branch: Any) -> Any: ...

    def field(self, theta: Array, branch: Any) -> Array: ...

    def coefficient(self, z: Array) -> Array:
        """alpha(h lambda): on a quadratic, d(u.theta)/dt = alpha(h lambda) lambda (u.theta)."""
