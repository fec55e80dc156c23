r"""Update rules: frozen dataclasses with a pure ``step``, each naming the published variant it is.

A rule needs two methods, and a user's own class with these two is as good as those below:

- ``init(theta)`` returns its state, a tuple of arrays shaped like theta (and step counters);
- ``step(theta, state, gradient)`` returns the new (theta, state) and changes nothing in place.

``step`` uses ``+ - * / **`` only, so the same function runs on float arrays and on sympy symbols;
hyperparameters may be symbols too. :math:`\lambda` is a curvature (a Hessian eigenvalue),
:math:`\eta` the learning rate ``lr`` and :math:`\beta` the ``momentum``.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from eosim._checks import Interval, check_domains, choice, interface

_LR = {"domain": Interval(0, math.inf)}
_MOMENTUM = {"domain": Interval(0, 1, lower_closed=True)}


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


@dataclass(frozen=True)
class GradientDescent:
    r"""Gradient descent: :math:`\theta \leftarrow \theta - \eta g`.

    Parameters
    ----------
    lr : float
        Learning rate, positive.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    lr: Any = field(metadata=_LR)

    def __post_init__(self) -> None:
        check_domains(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return ()

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        return theta - self.lr * gradient, ()

    def critical_sharpness(self) -> Any:
        r""":math:`2 / \eta`."""
        return 2 / self.lr


@dataclass(frozen=True)
class HeavyBall:
    r"""Heavy ball (Polyak 1964): :math:`v \leftarrow \beta v + g,\ \theta \leftarrow \theta - \eta v`.

    The form of PyTorch's ``SGD(momentum=...)``; v starts at 0.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    momentum : float
        :math:`\beta` in [0, 1); 0.9 is the field's customary value.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    lr: Any = field(metadata=_LR)
    momentum: Any = field(default=0.9, metadata=_MOMENTUM)

    def __post_init__(self) -> None:
        check_domains(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return (0 * theta,)

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        (velocity,) = state
        velocity = self.momentum * velocity + gradient
        return theta - self.lr * velocity, (velocity,)

    def critical_sharpness(self) -> Any:
        r""":math:`2 (1 + \beta) / \eta`."""
        return 2 * (1 + self.momentum) / self.lr


@dataclass(frozen=True)
class Nesterov:
    r"""Nesterov momentum: :math:`v \leftarrow \beta v + g,\ \theta \leftarrow \theta - \eta (g + \beta v)`.

    The form of PyTorch's ``SGD(nesterov=True)``: g is taken at the stored point, which is the
    look-ahead point of Nesterov's original recursion; v starts at 0.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    momentum : float
        :math:`\beta` in [0, 1); 0.9 is the field's customary value.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    lr: Any = field(metadata=_LR)
    momentum: Any = field(default=0.9, metadata=_MOMENTUM)

    def __post_init__(self) -> None:
        check_domains(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return (0 * theta,)

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        (velocity,) = state
        velocity = self.momentum * velocity + gradient
        return theta - self.lr * (gradient + self.momentum * velocity), (velocity,)

    def critical_sharpness(self) -> Any:
        r""":math:`2 (1 + \beta) / ((1 + 2 \beta) \eta)`."""
        return 2 * (1 + self.momentum) / ((1 + 2 * self.momentum) * self.lr)


@dataclass(frozen=True)
class EMAMomentum:
    r"""Averaged gradient: :math:`m \leftarrow \beta m + (1-\beta) g,\ \theta \leftarrow \theta - \eta m`.

    The first-moment half of Adam without bias correction (Cohen et al. 2022, arXiv 2207.14484:
    the frozen preconditioner leaves exactly this rule); equal to `HeavyBall` with learning rate
    :math:`(1-\beta)\eta`. m starts at 0.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    momentum : float
        :math:`\beta` in [0, 1); the default 0.9 gives the threshold 38 / lr.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    lr: Any = field(metadata=_LR)
    momentum: Any = field(default=0.9, metadata=_MOMENTUM)

    def __post_init__(self) -> None:
        check_domains(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return (0 * theta,)

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        (average,) = state
        average = self.momentum * average + (1 - self.momentum) * gradient
        return theta - self.lr * average, (average,)

    def critical_sharpness(self) -> Any:
        r""":math:`2 (1 + \beta) / ((1 - \beta) \eta)`."""
        return 2 * (1 + self.momentum) / ((1 - self.momentum) * self.lr)


@dataclass(frozen=True)
class QuasiHyperbolic:
    r"""Quasi-hyperbolic momentum (Ma & Yarats 2019, arXiv 1810.06801).

    .. math:: m \leftarrow \beta m + (1-\beta) g, \qquad
              \theta \leftarrow \theta - \eta\,((1-\nu)\, g + \nu\, m)

    :math:`\nu = 0` is gradient descent, :math:`\nu = 1` `EMAMomentum`; m starts at 0.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    momentum : float
        :math:`\beta` in [0, 1).
    nu : float
        Weight of the average, at least 0; 0.7 is the default recommended in the paper.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    lr: Any = field(metadata=_LR)
    momentum: Any = field(default=0.9, metadata=_MOMENTUM)
    nu: Any = field(default=0.7, metadata={"domain": Interval(0, math.inf, lower_closed=True)})

    def __post_init__(self) -> None:
        check_domains(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return (0 * theta,)

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        (average,) = state
        average = self.momentum * average + (1 - self.momentum) * gradient
        return theta - self.lr * ((1 - self.nu) * gradient + self.nu * average), (average,)

    def critical_branches(self) -> tuple[Any, Any]:
        r"""The two curvatures at which a root meets the unit circle; those above 0 are real.

        Period two, :math:`2(1+\beta) / ((1 + \beta(1-2\nu))\,\eta)`, and a complex pair,
        :math:`(1-\beta) / (\beta(\nu-1)\,\eta)`. The second exists for :math:`\nu > 1` only.
        """
        b, nu = self.momentum, self.nu
        return (
            _ratio(2 * (1 + b), (1 + b * (1 - 2 * nu)) * self.lr),
            _ratio(1 - b, b * (nu - 1) * self.lr),
        )

    def critical_sharpness(self) -> float:
        """The smallest positive branch (in numbers: the choice depends on the values)."""
        return min(branch for branch in self.critical_branches() if branch > 0)


@dataclass(frozen=True)
class DAL:
    r"""Drift-adjusted learning rate (Rosca et al. 2023, arXiv 2302.01952).

    .. math:: \eta_p = \min\left(\frac{2}{v^p},\ \mathrm{cap}\right), \qquad v = \frac{|Hg|}{|g|}

    With p = 1 the drift of one gradient-flow step, :math:`\frac{\eta^2}{2}|Hg|`, equals the step
    :math:`\eta|g|`, and on a convex quadratic the rate is never below :math:`2/\lambda_{\max}`. With
    :math:`p \ne 1` the rate depends on the scale of the loss. H and g are of this step's batch.

    Parameters
    ----------
    p : float
        Exponent, at least 0; p = 0 is gradient descent at the rate 2.
    cap : float
        Largest rate, positive; 5 as in the authors' code. Taken where Hg = 0 or g = 0.
    momentum : float
        beta of heavy ball, :math:`v \leftarrow \beta v + g,\ \theta \leftarrow \theta - \eta_p v`.
    product : str
        "exact" uses one Hessian-vector product; "difference" the authors' form
        :math:`(g(\theta + \epsilon g) - g(\theta))/\epsilon` with a displacement of norm 0.01.

    Raises
    ------
    TypeError, ValueError
        If a parameter is outside its domain.
    """

    p: Any = field(default=1.0, metadata={"domain": Interval(0, math.inf, lower_closed=True)})
    cap: Any = field(default=5.0, metadata=_LR)
    momentum: Any = field(default=0.0, metadata=_MOMENTUM)
    product: str = "exact"

    def __post_init__(self) -> None:
        check_domains(self)
        choice("DAL: product", self.product, ("exact", "difference"))

    def init(self, theta: Any) -> tuple[Any, ...]:
        return 0 * theta, 0.0

    def step(
        self, theta: Any, state: tuple[Any, ...], gradient: Any, local: Any
    ) -> tuple[Any, tuple]:
        velocity, _ = state
        velocity = self.momentum * velocity + gradient
        rate = self.rate(gradient, local)
        return theta - rate * velocity, (velocity, rate)

    def rate(self, gradient: Any, local: Any) -> float:
        """The learning rate of a step with this gradient."""
        length = _length(gradient)
        if length == 0:
            return self.cap
        direction = gradient / length  # v does not depend on the size of g
        if self.product == "exact":
            v = _length(local.hvp(direction))
        else:
            shifted = local.gradient(local.theta + 0.01 * direction)
            v = _length((shifted - gradient) / 0.01)
        return min(2 / v**self.p, self.cap) if v > 0 else self.cap

    def step_size(self, state: tuple[Any, ...]) -> float:
        """The rate of the step that led to this state."""
        return float(state[1])


def check_rule(rule: Any) -> None:
    """TypeError unless ``rule`` is an instance with the methods of `Rule`."""
    interface("rule", rule, ("init", "step"))


def needs_local(rule: Any) -> bool:
    """Whether a rule is a `LocalRule`: its step has a parameter named ``local``."""
    return "local" in inspect.signature(rule.step).parameters


def _length(vector: Any) -> float:
    """The Euclidean norm, also of vectors whose squares underflow."""
    largest = float(np.abs(vector).max())
    return largest * float(np.linalg.norm(vector / largest)) if largest > 0 else 0.0


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Numerator / denominator, infinite at a denominator of exactly 0; symbols just divide."""
    return numerator / denominator if denominator else math.inf
