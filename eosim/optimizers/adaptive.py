r"""Adaptive rules: a linear rule fed with gradients divided by a preconditioner that follows them.

Each is :math:`\theta \leftarrow \theta - \eta\, P_t^{-1}\, (\text{filtered } g)` with a positive diagonal P
made of a second-moment buffer :math:`\nu` (it starts at 0 and includes the current gradient):

- ``preconditioner(state)`` is P, without the rate, after the update that led to ``state``;
- ``linear()`` is the rule that is left when P is held fixed, and ``buffers(state)`` its memory;
- ``critical_sharpness()`` is the threshold of that rule for the largest eigenvalue of
  :math:`P^{-1}H`, where training settles (Cohen et al. 2022, arXiv 2207.14484).

`freeze` stops P in the middle of a run. ``eps`` stands outside the root unless ``eps_inside``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from eosim._checks import Interval, check_domains, choice
from eosim.optimizers.momentum import (
    DecoupledDecay,
    EMAMomentum,
    GradientDescent,
    QuasiHyperbolic,
)

_LR = {"domain": Interval(0, math.inf)}
_DECAY = {"domain": Interval(0, math.inf, lower_closed=True)}
_BETA = {"domain": Interval(0, 1, lower_closed=True)}
_EPS = {"domain": Interval(0, math.inf, lower_closed=True)}


class AdaptiveRule(Protocol):
    """What `freeze` and `eosim.measure.PreconditionedSharpness` need, beyond a rule."""

    def init(self, theta: Any) -> tuple[Any, ...]: ...

    def step(
        self, theta: Any, state: tuple[Any, ...], gradient: Any
    ) -> tuple[Any, tuple[Any, ...]]: ...

    def preconditioner(self, state: tuple[Any, ...]) -> Any: ...

    def linear(self) -> Any: ...

    def buffers(self, state: tuple[Any, ...]) -> tuple[Any, ...]: ...


class _WithoutMomentum:
    """What is left of a gradient over P when P is held fixed: gradient descent."""

    lr: Any

    def linear(self) -> GradientDescent:
        """Gradient descent."""
        return GradientDescent(self.lr)

    def buffers(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()

    def critical_sharpness(self) -> Any:
        r""":math:`2/\eta`, of :math:`P^{-1}H`."""
        return self.linear().critical_sharpness()


@dataclass(frozen=True)
class RMSProp(_WithoutMomentum):
    r"""RMSProp: :math:`\nu \leftarrow \beta_2\nu + (1-\beta_2)g^2,\ \theta \leftarrow \theta - \eta\, g/P`.

    :math:`P = \sqrt\nu + \epsilon`: PyTorch's ``RMSprop``, whose defaults are these (alpha is beta2,
    neither centered nor with momentum). optax's ``rmsprop`` has the eps inside the root. With
    ``bias_correction`` nu is divided by :math:`1 - \beta_2^t`.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    beta2 : float
        In [0, 1).
    eps : float
        At least 0.
    bias_correction, eps_inside : bool

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    lr: Any = field(metadata=_LR)
    beta2: Any = field(default=0.99, metadata=_BETA)
    eps: Any = field(default=1e-8, metadata=_EPS)
    bias_correction: bool = False
    eps_inside: bool = False

    def __post_init__(self) -> None:
        _check_fields(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return 0 * theta, 0

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        square, t = state
        state = (self.beta2 * square + (1 - self.beta2) * gradient**2, t + 1)
        return theta - self.lr * gradient / self.preconditioner(state), state

    def preconditioner(self, state: tuple[Any, ...]) -> Any:
        r""":math:`\sqrt\nu + \epsilon`, or with nu over :math:`1 - \beta_2^t`."""
        square, t = state
        if self.bias_correction:
            square = square / _unbiased(self.beta2, t)
        return _root(square, self.eps, self.eps_inside)


@dataclass(frozen=True)
class ScalarRMSProp(_WithoutMomentum):
    r"""RMSProp with a scalar: :math:`\nu \leftarrow \beta_2\nu + (1-\beta_2)|g|^2,\ \theta \leftarrow
    \theta - \eta\, g/P`.

    :math:`P = \sqrt\nu + \epsilon` is a number: gradient descent whose rate adapts. Cohen et al. 2024,
    arXiv 2410.24206, section 4 (without eps); no library has it.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    beta2 : float
        In [0, 1).
    eps : float
        At least 0.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    lr: Any = field(metadata=_LR)
    beta2: Any = field(default=0.99, metadata=_BETA)
    eps: Any = field(default=0.0, metadata=_EPS)

    def __post_init__(self) -> None:
        check_domains(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return ((0 * theta).sum(),)

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        state = (self.beta2 * state[0] + (1 - self.beta2) * (gradient**2).sum(),)
        return theta - self.lr * gradient / self.preconditioner(state), state

    def preconditioner(self, state: tuple[Any, ...]) -> Any:
        r""":math:`\sqrt\nu + \epsilon`, a number."""
        return state[0] ** 0.5 + self.eps


@dataclass(frozen=True)
class AdaGrad(_WithoutMomentum):
    r"""AdaGrad: :math:`\nu \leftarrow \nu + g^2,\ \theta \leftarrow \theta - \eta\, g/P`.

    :math:`P = \sqrt\nu + \epsilon`. Duchi, Hazan & Singer 2011; PyTorch's ``Adagrad``, whose eps this
    is, without decay of the rate. optax's ``adagrad`` has the eps inside the root, and starts nu at
    0.1 unless ``initial_accumulator_value=0``.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    eps : float
        At least 0.
    eps_inside : bool

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    lr: Any = field(metadata=_LR)
    eps: Any = field(default=1e-10, metadata=_EPS)
    eps_inside: bool = False

    def __post_init__(self) -> None:
        _check_fields(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return (0 * theta,)

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        state = (state[0] + gradient**2,)
        return theta - self.lr * gradient / self.preconditioner(state), state

    def preconditioner(self, state: tuple[Any, ...]) -> Any:
        r""":math:`\sqrt\nu + \epsilon`."""
        return _root(state[0], self.eps, self.eps_inside)


@dataclass(frozen=True)
class Adam:
    r"""Adam (Kingma & Ba 2015): :math:`\theta \leftarrow \theta - \eta\, m/P`.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1)g, \quad \nu \leftarrow \beta_2\nu + (1-\beta_2)g^2, \quad
              P_t = (1-\beta_1^t)\left[\sqrt{\nu/(1-\beta_2^t)} + \epsilon\right]

    with ``bias_correction`` (its factor of m is folded into P), else :math:`P = \sqrt\nu + \epsilon`. The
    defaults are those of PyTorch's ``Adam`` and of optax's ``adam``.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    beta1, beta2 : float
        In [0, 1).
    eps : float
        At least 0.
    bias_correction, eps_inside : bool

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    lr: Any = field(metadata=_LR)
    beta1: Any = field(default=0.9, metadata=_BETA)
    beta2: Any = field(default=0.999, metadata=_BETA)
    eps: Any = field(default=1e-8, metadata=_EPS)
    bias_correction: bool = True
    eps_inside: bool = False

    def __post_init__(self) -> None:
        _check_fields(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return 0 * theta, 0 * theta, 0

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        state = self._moments(state, gradient)
        return theta - self.lr * state[0] / self.preconditioner(state), state

    def preconditioner(self, state: tuple[Any, ...]) -> Any:
        """P as above."""
        return self._divisor(state[1], state[2])

    def linear(self) -> Any:
        """`EMAMomentum`."""
        return EMAMomentum(self.lr, self.beta1)

    def buffers(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return (state[0],)

    def critical_sharpness(self) -> Any:
        r""":math:`2(1+\beta_1)/((1-\beta_1)\eta)`, of :math:`P^{-1}H`: 38/lr at the default."""
        return self.linear().critical_sharpness()

    def _moments(self, state: tuple[Any, ...], gradient: Any) -> tuple[Any, ...]:
        average, square, t = state
        average = self.beta1 * average + (1 - self.beta1) * gradient
        return average, self.beta2 * square + (1 - self.beta2) * gradient**2, t + 1

    def _divisor(self, square: Any, t: Any) -> Any:
        """P of a second moment after t updates."""
        if not self.bias_correction:
            return self._power(square)
        return _unbiased(self.beta1, t) * self._power(square / _unbiased(self.beta2, t))

    def _power(self, square: Any) -> Any:
        return _root(square, self.eps, self.eps_inside)


@dataclass(frozen=True)
class AdamW(Adam):
    r"""Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    .. math:: \theta \leftarrow (1 - \eta\gamma)\,\theta - \eta\, m/P

    PyTorch's ``AdamW``, whose defaults are these; m uses the gradient at theta before the decay.

    Parameters
    ----------
    lr, beta1, beta2, eps, bias_correction, eps_inside
        As for `Adam`.
    weight_decay : float
        gamma, at least 0.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    weight_decay: Any = field(default=0.01, metadata=_DECAY)

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        state = self._moments(state, gradient)
        move = self.weight_decay * theta + state[0] / self.preconditioner(state)
        return theta - self.lr * move, state

    def linear(self) -> DecoupledDecay:
        """`DecoupledDecay`."""
        return DecoupledDecay(self.lr, self.beta1, self.weight_decay)

    def critical_sharpness(self) -> Any:
        r""":math:`(2-\eta\gamma)(1+\beta_1)/((1-\beta_1)\eta)`, of :math:`P^{-1}H`.

        0 from :math:`\eta\gamma = 2` on.
        """
        return self.linear().critical_sharpness()


@dataclass(frozen=True)
class NAdam(Adam):
    r"""Adam with Nesterov's filter and constant :math:`\beta_1` (after Dozat 2016).

    .. math:: \theta \leftarrow \theta - \eta\,[(1-\beta_1)\, g + \beta_1 m]/P

    P and the parameters are those of `Adam`; bias correction divides both terms by
    :math:`1-\beta_1^t`. PyTorch's ``NAdam`` has a schedule of beta1, and optax's corrects m by the next
    step's factor: neither is this rule.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        state = self._moments(state, gradient)
        filtered = (1 - self.beta1) * gradient + self.beta1 * state[0]
        return theta - self.lr * filtered / self.preconditioner(state), state

    def linear(self) -> QuasiHyperbolic:
        """`QuasiHyperbolic` with nu = beta1."""
        return QuasiHyperbolic(self.lr, self.beta1, nu=self.beta1)

    def critical_sharpness(self) -> Any:
        r""":math:`2(1+\beta_1)/((1-\beta_1)(1+2\beta_1)\eta)`, of :math:`P^{-1}H`."""
        b = self.beta1
        return 2 * (1 + b) / ((1 - b) * (1 + 2 * b) * self.lr)


@dataclass(frozen=True)
class AMSGrad(Adam):
    r"""Adam that never forgets a large gradient (Reddi, Kale & Kumar 2018).

    P is that of `Adam` with :math:`\bar\nu \leftarrow \max(\bar\nu, \nu)` for nu.

    Parameters
    ----------
    lr, beta1, beta2, eps, bias_correction, eps_inside
        As for `Adam`.
    maximum : str
        "raw" takes the maximum of nu and corrects its bias afterwards (PyTorch's ``amsgrad=True``);
        "corrected" takes the maximum of the corrected ones (optax's ``amsgrad``). The paper has no
        bias correction at all.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    maximum: str = "raw"

    def __post_init__(self) -> None:
        _check_fields(self)
        choice("AMSGrad: maximum", self.maximum, ("raw", "corrected"))

    def init(self, theta: Any) -> tuple[Any, ...]:
        return *super().init(theta), 0 * theta

    def preconditioner(self, state: tuple[Any, ...]) -> Any:
        """P with the largest nu so far."""
        *_, t, largest = state
        if self._corrects_first:
            return _unbiased(self.beta1, t) * self._power(largest)
        return self._divisor(largest, t)

    def _moments(self, state: tuple[Any, ...], gradient: Any) -> tuple[Any, ...]:
        average, square, t = super()._moments(state[:3], gradient)
        now = square / _unbiased(self.beta2, t) if self._corrects_first else square
        return average, square, t, np.maximum(state[3], now)

    @property
    def _corrects_first(self) -> bool:
        return self.bias_correction and self.maximum == "corrected"


@dataclass(frozen=True)
class Padam(Adam):
    r"""Partially adaptive: :math:`P = \nu^s + \epsilon` with s between 0 (momentum) and 1/2 (Adam).

    After Chen et al. 2018, arXiv 1806.06763, who have no bias correction either. Their algorithm takes
    the running maximum of nu, as `AMSGrad` does: that is ``running_maximum=True``. Their code differs
    from it: :math:`P = (\sqrt{\bar\nu} + \epsilon)^{2s}`, and a correction of the rate by
    :math:`\sqrt{1-\beta_2^t}/(1-\beta_1^t)` for every s.

    Parameters
    ----------
    lr, beta1, beta2, eps, bias_correction
        As for `Adam`. ``eps_inside`` must be False.
    exponent : float
        s in (0, 1/2]; the default 1/8 is that of the paper's experiments (its code has 1/4).
    running_maximum : bool
        Whether P is made of the largest nu so far.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    bias_correction: bool = False
    exponent: Any = field(default=0.125, metadata={"domain": Interval(0, 0.5, upper_closed=True)})
    running_maximum: bool = False

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.eps_inside:
            raise ValueError("Padam: eps_inside must be False: eps stands beside the power of nu")

    def init(self, theta: Any) -> tuple[Any, ...]:
        memory = super().init(theta)
        return (*memory, 0 * theta) if self.running_maximum else memory

    def preconditioner(self, state: tuple[Any, ...]) -> Any:
        """P as above; with bias correction as in `Adam`."""
        return self._divisor(state[3] if self.running_maximum else state[1], state[2])

    def _moments(self, state: tuple[Any, ...], gradient: Any) -> tuple[Any, ...]:
        moments = super()._moments(state[:3], gradient)
        if self.running_maximum:
            moments = (*moments, np.maximum(state[3], moments[1]))
        return moments

    def _power(self, square: Any) -> Any:
        return square**self.exponent + self.eps


def _check_fields(rule: Any) -> None:
    """Domains, and that switches are no numbers: an argument too many would turn one on."""
    check_domains(rule)
    for entry in fields(rule):
        value = getattr(rule, entry.name)
        if entry.type == "bool" and not isinstance(value, (bool, np.bool_)):
            raise TypeError(
                f"{type(rule).__name__}: {entry.name} must be True or False, got {value!r}"
            )


def _root(square: Any, eps: Any, inside: bool) -> Any:
    return (square + eps) ** 0.5 if inside else square**0.5 + eps


def _unbiased(beta: Any, t: Any) -> Any:
    """1 - beta^t: the weight that an average started at 0 has collected."""
    return 1 - beta**t
