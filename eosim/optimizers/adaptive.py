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
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from eosim._checks import Array, Interval, check_domains, choice, interface
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


@dataclass(frozen=True)
class RMSProp:
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
        check_domains(self)

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

    def linear(self) -> GradientDescent:
        """Gradient descent."""
        return GradientDescent(self.lr)

    def buffers(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()

    def critical_sharpness(self) -> Any:
        r""":math:`2/\eta`, of :math:`P^{-1}H`."""
        return self.linear().critical_sharpness()


@dataclass(frozen=True)
class AdaGrad:
    r"""AdaGrad: :math:`\nu \leftarrow \nu + g^2,\ \theta \leftarrow \theta - \eta\, g/P`.

    :math:`P = \sqrt\nu + \epsilon`. Duchi, Hazan & Singer 2011; PyTorch's ``Adagrad`` without decay of
    the rate.

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
        check_domains(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return (0 * theta,)

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        state = (state[0] + gradient**2,)
        return theta - self.lr * gradient / self.preconditioner(state), state

    def preconditioner(self, state: tuple[Any, ...]) -> Any:
        r""":math:`\sqrt\nu + \epsilon`."""
        return _root(state[0], self.eps, self.eps_inside)

    def linear(self) -> GradientDescent:
        """Gradient descent."""
        return GradientDescent(self.lr)

    def buffers(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()

    def critical_sharpness(self) -> Any:
        r""":math:`2/\eta`, of :math:`P^{-1}H`."""
        return self.linear().critical_sharpness()


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
        check_domains(self)

    def init(self, theta: Any) -> tuple[Any, ...]:
        return 0 * theta, 0 * theta, 0

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        state = self._moments(state, gradient)
        return theta - self.lr * state[0] / self.preconditioner(state), state

    def preconditioner(self, state: tuple[Any, ...]) -> Any:
        """P as above."""
        _, square, t = state
        if not self.bias_correction:
            return _root(square, self.eps, self.eps_inside)
        corrected = square / _unbiased(self.beta2, t)
        return _unbiased(self.beta1, t) * _root(corrected, self.eps, self.eps_inside)

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
        r""":math:`(2-\eta\gamma)(1+\beta_1)/((1-\beta_1)\eta)`, of :math:`P^{-1}H`."""
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
        "corrected" takes the maximum of the corrected ones (optax's ``amsgrad``).

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    maximum: str = "raw"

    def __post_init__(self) -> None:
        check_domains(self)
        choice("AMSGrad: maximum", self.maximum, ("raw", "corrected"))

    def init(self, theta: Any) -> tuple[Any, ...]:
        return 0 * theta, 0 * theta, 0, 0 * theta

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        *adam, largest = state
        average, square, t = self._moments(tuple(adam), gradient)
        now = square / _unbiased(self.beta2, t) if self._corrects_first else square
        state = (average, square, t, np.maximum(largest, now))
        return theta - self.lr * average / self.preconditioner(state), state

    def preconditioner(self, state: tuple[Any, ...]) -> Any:
        """P with the largest nu so far."""
        _, _, t, largest = state
        if self.bias_correction and not self._corrects_first:
            largest = largest / _unbiased(self.beta2, t)
        root = _root(largest, self.eps, self.eps_inside)
        return _unbiased(self.beta1, t) * root if self.bias_correction else root

    @property
    def _corrects_first(self) -> bool:
        return self.bias_correction and self.maximum == "corrected"


@dataclass(frozen=True)
class Padam(Adam):
    r"""Partially adaptive: :math:`P = \nu^s + \epsilon` with s between 0 (momentum) and 1/2 (Adam).

    After Chen et al. 2018, arXiv 1806.06763, who take the running maximum of nu, as in `AMSGrad`; this
    is the form without it, and without bias correction by default.

    Parameters
    ----------
    lr, beta1, beta2, eps, bias_correction
        As for `Adam`. ``eps_inside`` must be False.
    exponent : float
        s in (0, 1/2].

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is no real number, or outside its domain.
    """

    bias_correction: bool = False
    exponent: Any = field(default=0.125, metadata={"domain": Interval(0, 0.5, upper_closed=True)})

    def __post_init__(self) -> None:
        check_domains(self)
        if self.eps_inside:
            raise ValueError("Padam: eps_inside must be False: eps stands beside the power of nu")

    def preconditioner(self, state: tuple[Any, ...]) -> Any:
        """P as above; with bias correction as in `Adam`."""
        _, square, t = state
        if not self.bias_correction:
            return square**self.exponent + self.eps
        corrected = square / _unbiased(self.beta2, t)
        return _unbiased(self.beta1, t) * (corrected**self.exponent + self.eps)


@dataclass(frozen=True)
class Adafactor:
    r"""Adafactor (Shazeer & Stern 2018): the second moment of a matrix from its row and column means.

    .. math:: R \leftarrow \beta_2 R + (1-\beta_2)\,\overline{g^2 + \epsilon}^{\,\mathrm{rows}}, \quad
              C \leftarrow \beta_2 C + (1-\beta_2)\,\overline{g^2 + \epsilon}^{\,\mathrm{columns}}, \quad
              P_{ij} = \sqrt{R_i C_j/\overline R}

    Vectors keep a full nu. :math:`\theta \leftarrow \theta - \eta\, m/P`, m as in `EMAMomentum`.
    Relative step sizes and clipping, which the paper adds, are not part of it.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    shapes : sequence of tuples of int
        Of the parameters in the order of theta: (rows, columns), or (length,).
    beta1, beta2 : float
        In [0, 1).
    decay_exponent : float, optional
        With it beta2 is :math:`1 - t^{-c}` at step t; the paper's c is 0.8.
    eps : float
        Added to the squares; 1e-30 in the paper.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is outside its domain, or theta does not have the size of the shapes.
    """

    lr: Any = field(metadata=_LR)
    shapes: Any
    beta1: Any = field(default=0.0, metadata=_BETA)
    beta2: Any = field(default=0.999, metadata=_BETA)
    decay_exponent: float | None = None
    eps: Any = field(default=1e-30, metadata=_EPS)

    def __post_init__(self) -> None:
        check_domains(self)
        shapes = tuple(tuple(int(length) for length in shape) for shape in self.shapes)
        if not shapes or any(len(shape) not in (1, 2) or min(shape) < 1 for shape in shapes):
            raise ValueError(
                f"Adafactor: shapes must be (rows, columns) or (length,), got {shapes}"
            )
        object.__setattr__(self, "shapes", shapes)

    def init(self, theta: Any) -> tuple[Any, ...]:
        total = sum(math.prod(shape) for shape in self.shapes)
        if np.shape(theta) != (total,):
            raise ValueError(
                f"theta must have {total} entries, as shapes say; got {np.shape(theta)}"
            )
        rows = sum(shape[0] for shape in self.shapes)
        columns = sum(shape[1] for shape in self.shapes if len(shape) == 2)
        return 0 * theta, np.zeros(rows), np.zeros(columns), 0

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        average, rows, columns, t = state
        t += 1
        beta2 = self.beta2 if self.decay_exponent is None else 1 - t**-self.decay_exponent
        average = self.beta1 * average + (1 - self.beta1) * gradient
        row_means, column_means = self._means(gradient**2 + self.eps)
        rows = beta2 * rows + (1 - beta2) * row_means
        columns = beta2 * columns + (1 - beta2) * column_means
        state = (average, rows, columns, t)
        return theta - self.lr * average / self.preconditioner(state), state

    def preconditioner(self, state: tuple[Any, ...]) -> Array:
        """P as above, of the shape of theta."""
        _, rows, columns, _ = state
        parts = []
        for shape in self.shapes:
            first, rows = rows[: shape[0]], rows[shape[0] :]
            if len(shape) == 1:
                parts.append(first)
                continue
            second, columns = columns[: shape[1]], columns[shape[1] :]
            parts.append((first[:, None] * second / first.mean()).ravel())
        return np.sqrt(np.concatenate(parts))

    def linear(self) -> EMAMomentum:
        """`EMAMomentum`."""
        return EMAMomentum(self.lr, self.beta1)

    def buffers(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return (state[0],)

    def critical_sharpness(self) -> Any:
        r""":math:`2(1+\beta_1)/((1-\beta_1)\eta)`, of :math:`P^{-1}H`."""
        return self.linear().critical_sharpness()

    def _means(self, squares: Array) -> tuple[Array, Array]:
        rows, columns, start = [], [], 0
        for shape in self.shapes:
            block = squares[start : start + math.prod(shape)].reshape(shape)
            start += block.size
            rows.append(block if len(shape) == 1 else block.mean(axis=1))
            if len(shape) == 2:
                columns.append(block.mean(axis=0))
        return np.concatenate(rows), np.concatenate(columns) if columns else np.zeros(0)


@dataclass(frozen=True)
class CoupledL2:
    r"""Any rule on the gradient :math:`g + \gamma\theta`: L2 regularisation inside the preconditioner.

    PyTorch's ``weight_decay`` of every optimizer but ``AdamW``. Stability is that of
    :math:`P^{-1}(H + \gamma I)`.

    Parameters
    ----------
    rule : Rule
    weight_decay : float
        gamma, at least 0.

    Raises
    ------
    TypeError, ValueError
        If rule is none, or gamma is outside its domain.
    """

    rule: Any
    weight_decay: Any = field(default=0.01, metadata=_DECAY)

    def __post_init__(self) -> None:
        interface("rule", self.rule, ("init", "step"))
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

    Parameters
    ----------
    rule : Rule
        Linear in (theta, state, gradient): ``linear()`` of an adaptive rule.
    diagonal : array shaped like theta, or a number or symbol
        P, positive.

    Raises
    ------
    TypeError, ValueError
        If rule is none, or P is not positive.
    """

    rule: Any
    diagonal: Any

    def __post_init__(self) -> None:
        interface("rule", self.rule, ("init", "step"))
        P = self.diagonal
        if not hasattr(P, "free_symbols") and not (
            np.isfinite(P).all() and (np.asarray(P) > 0).all()
        ):
            raise ValueError("diagonal must be positive and finite everywhere")

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
    state : RunState
        ``trajectory.final_state`` of a run with this rule.

    Returns
    -------
    frozen : Frozen (inside CoupledL2 for such a rule)
        With P of that state: the next live step would use one of a gradient later.
    state : RunState
        With the momentum buffers in the units of the frozen rule.

    Raises
    ------
    TypeError
        If the rule has no preconditioner.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> bowl, adam = eosim.Quadratic(np.diag([4.0, 1.0])), eosim.Adam(lr=0.01)
    >>> live = eosim.run(bowl, adam, [1.0, 1.0], 100)
    >>> frozen, state = eosim.optimizers.freeze(adam, live.final_state)
    >>> eosim.run(bowl, frozen, None, 100, state=state)["loss"][-1] < live["loss"][-1]
    np.True_
    """
    interface("rule", rule, ("preconditioner", "buffers"))
    P = rule.preconditioner(state.rule_state)
    buffers = tuple(buffer / P for buffer in rule.buffers(state.rule_state))
    return _frozen(rule, P), replace(state, rule_state=buffers)


def _frozen(rule: Any, P: Any) -> Any:
    if isinstance(rule, CoupledL2):  # the decay is divided by P, like the gradient
        return replace(rule, rule=_frozen(rule.rule, P))
    interface("rule", rule, ("linear",))
    return Frozen(rule.linear(), P)


def _root(square: Any, eps: Any, inside: bool) -> Any:
    return (square + eps) ** 0.5 if inside else square**0.5 + eps


def _unbiased(beta: Any, t: Any) -> Any:
    """1 - beta^t: the weight that an average started at 0 has collected."""
    return 1 - beta**t
