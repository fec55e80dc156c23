"""Rules of linear memory, as compiled code takes them."""

from __future__ import annotations

from typing import Any, TypeGuard

from eosim.optimizers import EMAMomentum, GradientDescent, HeavyBall, Nesterov, QuasiHyperbolic


def linear_memory(rule: Any) -> tuple[float, float, float, float, float] | None:
    """(lr, momentum, dampening, gradient_weight, velocity_weight) of the rules that have them.

    velocity <- momentum * velocity + dampening * gradient, and theta moves by -lr times
    gradient_weight * gradient + velocity_weight * velocity. An own subclass may mean something else.
    """
    kind = type(rule)
    if kind not in (GradientDescent, HeavyBall, Nesterov, EMAMomentum, QuasiHyperbolic):
        return None
    lr, b = float(rule.lr), float(getattr(rule, "momentum", 0.0))
    if b == 0:  # each of them is gradient descent
        return lr, 0.0, 0.0, 1.0, 0.0
    if kind is HeavyBall:
        return lr, b, 1.0, 0.0, 1.0
    if kind is Nesterov:
        return lr, b, 1.0, 1.0, b
    if kind is EMAMomentum:
        return lr, b, 1 - b, 0.0, 1.0
    return lr, b, 1 - b, 1 - float(rule.nu), float(rule.nu)


def is_plain(memory: tuple[float, ...] | None) -> TypeGuard[tuple[float, ...]]:
    """Whether a rule of this `linear_memory` is gradient descent."""
    return memory is not None and memory[1:] == (0.0, 0.0, 1.0, 0.0)
