"""RMSProp with one second moment for all parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from eosim._checks import Interval, check_domains
from eosim.optimizers.momentum import GradientDescent


@dataclass(frozen=True)
class ScalarRMSProp:
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

    lr: Any = field(metadata={"domain": Interval(0, math.inf)})
    beta2: Any = field(default=0.99, metadata={"domain": Interval(0, 1, lower_closed=True)})
    eps: Any = field(default=0.0, metadata={"domain": Interval(0, math.inf, lower_closed=True)})

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

    def linear(self) -> GradientDescent:
        """Gradient descent."""
        return GradientDescent(self.lr)

    def buffers(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()

    def critical_sharpness(self) -> Any:
        r""":math:`2/\eta`, of :math:`H/P`."""
        return self.linear().critical_sharpness()
