"""Rules that are linear in (theta, buffers, gradient): gradient descent and momentum."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from eosim._checks import Interval, check_domains

_LR = {"domain": Interval(0, math.inf)}
_MOMENTUM = {"domain": Interval(0, 1, lower_closed=True)}
_DECAY = {"domain": Interval(0, math.inf, lower_closed=True)}


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
class DecoupledDecay:
    r"""Decoupled weight decay: :math:`\theta \leftarrow (1-\eta\gamma)\,\theta - \eta\, m`.

    What `AdamW` is once its preconditioner is frozen; m as in `EMAMomentum`, of the gradient before
    the decay.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    momentum : float
        :math:`\beta` in [0, 1).
    weight_decay : float
        :math:`\gamma`, at least 0. With :math:`\eta\gamma > 2` the decay itself diverges.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    lr: Any = field(metadata=_LR)
    momentum: Any = field(default=0.9, metadata=_MOMENTUM)
    weight_decay: Any = field(default=0.01, metadata=_DECAY)

    def __post_init__(self) -> None:
        check_domains(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return (0 * theta,)

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        (average,) = state
        average = self.momentum * average + (1 - self.momentum) * gradient
        return theta - self.lr * (self.weight_decay * theta + average), (average,)

    def critical_sharpness(self) -> Any:
        r""":math:`(2 - \eta\gamma)(1 + \beta) / ((1 - \beta) \eta)`; 0 where :math:`\eta\gamma \ge 2`."""
        left = 2 - self.lr * self.weight_decay
        if isinstance(left, float) and left <= 0:  # the decay alone oscillates and grows
            return 0.0
        return left * (1 + self.momentum) / ((1 - self.momentum) * self.lr)


@dataclass(frozen=True)
class ParallelEMA:
    r"""Two averages side by side: :math:`\theta \leftarrow \theta - \eta\,((1-\nu)\, m_1 + \nu\, m_2)`.

    .. math:: m_j \leftarrow \beta_j m_j + (1-\beta_j)\, g

    :math:`\beta_1 = 0` is `QuasiHyperbolic`. Mixtures with weights in [0, 1] always lose stability at
    z = -1: on the unit circle the reciprocals of all filters lie on one side of the real axis.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    beta1, beta2 : float
        In [0, 1).
    nu : float
        Weight of the second, in [0, 1].

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    lr: Any = field(metadata=_LR)
    beta1: Any = field(default=0.5, metadata=_MOMENTUM)
    beta2: Any = field(default=0.9, metadata=_MOMENTUM)
    nu: Any = field(default=0.5, metadata={"domain": Interval(0, 1, True, True)})

    def __post_init__(self) -> None:
        check_domains(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return 0 * theta, 0 * theta

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        first, second = state
        first = self.beta1 * first + (1 - self.beta1) * gradient
        second = self.beta2 * second + (1 - self.beta2) * gradient
        return theta - self.lr * ((1 - self.nu) * first + self.nu * second), (first, second)

    def critical_sharpness(self) -> Any:
        r""":math:`2/\eta` over the same mixture of :math:`(1-\beta_j)/(1+\beta_j)`."""
        first = (1 - self.beta1) / (1 + self.beta1)
        second = (1 - self.beta2) / (1 + self.beta2)
        return 2 / (((1 - self.nu) * first + self.nu * second) * self.lr)


@dataclass(frozen=True)
class CascadedEMA:
    r"""An average of the average: :math:`\theta \leftarrow \theta - \eta\, q`.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1)\, g, \qquad q \leftarrow \beta_2 q + (1-\beta_2)\, m

    Unlike mixtures in parallel it can lose stability through a complex pair: for
    :math:`\beta_1 = \beta_2` it does from 1/3 on.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    beta1, beta2 : float
        In [0, 1).

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    lr: Any = field(metadata=_LR)
    beta1: Any = field(default=0.9, metadata=_MOMENTUM)
    beta2: Any = field(default=0.9, metadata=_MOMENTUM)

    def __post_init__(self) -> None:
        check_domains(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return 0 * theta, 0 * theta

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        first, second = state
        first = self.beta1 * first + (1 - self.beta1) * gradient
        second = self.beta2 * second + (1 - self.beta2) * first
        return theta - self.lr * second, (first, second)

    def critical_branches(self) -> tuple[Any, Any]:
        r"""Period two and a complex pair.

        :math:`\frac{2(1+\beta_1)(1+\beta_2)}{(1-\beta_1)(1-\beta_2)\,\eta}` and
        :math:`\frac{1-\beta_1\beta_2}{\beta_1\beta_2\,\eta}`.
        """
        a, b = self.beta1, self.beta2
        return (
            _ratio(2 * (1 + a) * (1 + b), (1 - a) * (1 - b) * self.lr),
            _ratio((1 - a) + a * (1 - b), a * b * self.lr),  # 1 - ab would cancel near 1
        )

    def critical_sharpness(self) -> float:
        """The smaller branch (in numbers: the choice depends on the values)."""
        return min(self.critical_branches())


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Numerator / denominator, infinite at a denominator of exactly 0; symbols just divide."""
    return numerator / denominator if denominator else math.inf
