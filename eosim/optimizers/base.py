"""The contract of an update rule."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

from eosim._checks import interface


class Rule(Protocol):
    """What `eosim.run` and `eosim.stability.critical_sharpness` need of an update rule."""

    def init(self, theta: Any) -> tuple[Any, ...]: ...

    def step(
        self, theta: Any, state: tuple[Any, ...], gradient: Any
    ) -> tuple[Any, tuple[Any, ...]]: ...


class LocalRule(Protocol):
    """A rule that asks for more than the gradient: ``local`` holds derivatives on this step's batch.

    ``local.theta``, ``local.gradient(theta)`` and ``local.hvp(v)`` (at local.theta).
    """

    def init(self, theta: Any) -> tuple[Any, ...]: ...

    def step(
        self, theta: Any, state: tuple[Any, ...], gradient: Any, local: Any
    ) -> tuple[Any, tuple[Any, ...]]: ...


def check_rule(rule: Any) -> None:
    """TypeError unless ``rule`` is an instance with the methods of `Rule`."""
    interface("rule", rule, ("init", "step"))


def needs_local(rule: Any) -> bool:
    """Whether a rule is a `LocalRule`: its step has a parameter named ``local``."""
    return "local" in inspect.signature(rule.step).parameters
