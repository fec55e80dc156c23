"""Learning rates that follow the curvature along the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eosim._checks import Interval, check_domains, choice

_LR = {"domain": Interval(0, math.inf)}
_MOMENTUM = {"domain": Interval(0, 1, lower_closed=True)}


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
        Exponent, at least 0; p = 0 is gradient descent at the rate 2. Where v^p is beyond the largest
        float, the rate is 0.
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
        if v == 0:
            return self.cap
        # Not Python's power, which raises where that of floats is infinite or 0.
        with np.errstate(over="ignore", divide="ignore", under="ignore"):
            return min(float(2 / np.float64(v) ** self.p), self.cap)

    def step_size(self, state: tuple[Any, ...]) -> float:
        """The rate of the step that led to this state."""
        return float(state[1])


def _length(vector: Any) -> float:
    """The Euclidean norm, also of vectors whose squares underflow."""
    largest = float(np.abs(vector).max())
    return 0.0 if largest == 0 else largest * float(np.linalg.norm(vector / largest))
