"""Rules made of other rules: with weight decay in the gradient, with a preconditioner that is fixed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from eosim._checks import Interval, check_domains, float_array, interface
from eosim.optimizers.base import check_rule, needs_local


@dataclass(frozen=True)
class CoupledL2:
    r"""Any rule on the gradient :math:`g + \gamma\theta`: L2 regularisation inside the preconditioner.

    PyTorch's ``weight_decay`` of every optimizer but ``AdamW``. Stability is that of
    :math:`P^{-1}(H + \gamma I)`, which is what `eosim.measure.PreconditionedSharpness` measures then.

    Parameters
    ----------
    rule : Rule
        Time is counted by its ``lr``.
    weight_decay : float
        gamma, at least 0.

    Raises
    ------
    TypeError, ValueError
        If rule is none or asks for local derivatives, or gamma is outside its domain.
    """

    rule: Any
    weight_decay: Any = field(
        default=0.01, metadata={"domain": Interval(0, math.inf, lower_closed=True)}
    )

    def __post_init__(self) -> None:
        _check_gradient_rule(self.rule)
        check_domains(self)

    @property
    def lr(self) -> Any:
        return self.rule.lr

    def init(self, theta: Any) -> tuple[Any, ...]:
        return self.rule.init(theta)

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        return self.rule.step(theta, state, gradient + self.weight_decay * theta)

    def preconditioner(self, state: tuple[Any, ...]) -> Any:
        """That of the rule."""
        return self.rule.preconditioner(state)

    def buffers(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.rule.buffers(state)


@dataclass(frozen=True, eq=False)
class Frozen:
    r"""A linear rule with a preconditioner that does not move: ``rule`` fed with :math:`g/P`.

    On a quadratic every positive mode of :math:`P^{-1}H` contracts exactly below the rule's threshold.
    An average is not corrected for its start at 0: that would not move the threshold, but lengthen the
    first steps by :math:`1/(1-\beta_1^t)`, and a mode at half the threshold would first grow by 10^4.

    Parameters
    ----------
    rule : Rule
        Linear in (theta, state, gradient): ``linear()`` of an adaptive rule.
    diagonal : array shaped like theta, or a number or symbol
        P, positive; arrays are copied.

    Raises
    ------
    TypeError, ValueError
        If rule is none, adaptive or asks for local derivatives, or P is not positive.
    """

    rule: Any
    diagonal: Any

    def __post_init__(self) -> None:
        _check_gradient_rule(self.rule)
        if hasattr(self.rule, "linear"):
            raise TypeError(
                f"rule must be linear, but {type(self.rule).__name__} has a preconditioner of its own; "
                "pass its linear()"
            )
        if hasattr(self.diagonal, "free_symbols"):
            return
        diagonal = float_array("diagonal", self.diagonal)
        if not (diagonal > 0).all():
            raise ValueError(
                f"diagonal must be positive everywhere, its smallest entry is {diagonal.min()!s}"
            )
        object.__setattr__(self, "diagonal", diagonal)

    @property
    def lr(self) -> Any:
        return self.rule.lr

    def init(self, theta: Any) -> tuple[Any, ...]:
        return self.rule.init(theta)

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        return self.rule.step(theta, state, gradient / self.diagonal)

    def preconditioner(self, state: tuple[Any, ...]) -> Any:
        """P."""
        return self.diagonal

    def critical_sharpness(self) -> Any:
        """The rule's: of the largest eigenvalue of P^-1 H."""
        return self.rule.critical_sharpness()


def freeze(rule: Any, state: Any) -> tuple[Any, Any]:
    """The rule with its preconditioner stopped at a state of a run, and the state to go on from.

    Parameters
    ----------
    rule : AdaptiveRule
        Also inside `CoupledL2`.
    state : RunState
        ``trajectory.final_state`` of a run with this rule, of one step or more.

    Returns
    -------
    frozen : Frozen (inside CoupledL2 for such a rule)
        With P of that state: the next live step would use one of a gradient later.
    state : RunState
        With the momentum buffers in the units of the frozen rule.

    Raises
    ------
    TypeError, ValueError
        If the rule has no preconditioner, the state is another rule's, or P is not positive yet.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> bowl, adam = eosim.Quadratic(np.diag([4.0, 1.0])), eosim.Adam(lr=0.01)
    >>> live = eosim.run(bowl, adam, [1.0, 1.0], 100)
    >>> frozen, state = eosim.optimizers.freeze(adam, live.final_state)
    >>> eosim.run(bowl, frozen, None, 100, state=state)["loss"][-1] < live["loss"][-1]
    np.True_
    """
    inner = rule
    while isinstance(inner, CoupledL2):
        inner = inner.rule
    interface("rule", inner, ("preconditioner", "linear", "buffers"))
    interface("state", state, ("rule_state", "step"))
    if state.step == 0:
        raise ValueError("state must come from at least one step: P is made of gradients")
    expected = len(inner.init(state.theta))
    if len(state.rule_state) != expected:
        raise ValueError(
            f"state must be of a run with {type(inner).__name__}, whose memory has length "
            f"{expected}; got {len(state.rule_state)}"
        )
    P = inner.preconditioner(state.rule_state)
    if not (np.isfinite(P).all() and (np.asarray(P) > 0).all()):
        raise ValueError(
            f"the preconditioner of {type(inner).__name__} is not positive and finite everywhere at "
            f"step {state.step}; parameters without gradient need eps > 0"
        )
    buffers = tuple(buffer / P for buffer in inner.buffers(state.rule_state))
    return _frozen(rule, P), replace(state, rule_state=buffers)


def _frozen(rule: Any, P: Any) -> Any:
    if isinstance(rule, CoupledL2):  # the decay is divided by P, like the gradient
        return replace(rule, rule=_frozen(rule.rule, P))
    return Frozen(rule.linear(), P)


def _check_gradient_rule(rule: Any) -> None:
    check_rule(rule)
    if needs_local(rule):
        raise TypeError(
            f"rule must need the gradient only, but {type(rule).__name__}.step asks for local "
            "derivatives"
        )
