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
    """TypeError unless ``rule`` is an instance with the methods of `Rule`.

    ``step_size`` is the name of an optional method, see `eosim.run`: a number of that name is refused.
    """
    interface("rule", rule, ("init", "step"))
    for method in ("init", "step", "step_size"):
        value = getattr(rule, method, None)
        if not callable(value) and hasattr(rule, method):
            remedy = "; call a learning rate lr" if method == "step_size" else ""
            raise TypeError(
                f"{type(rule).__name__}: {method} must be a method, which eosim calls; got "
                f"{value!r}{remedy}"
            )


def needs_local(rule: Any) -> bool:
    """Whether a rule is a `LocalRule`: its step has a parameter named ``local``."""
    return "local" in inspect.signature(rule.step).parameters
