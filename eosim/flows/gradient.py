"""Gradient flow: the limit of small learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eosim._checks import Array, Interval, interface, real_number
from eosim.problems.base import Problem


@dataclass(frozen=True)
class GradientFlow:
    r""":math:`\dot\theta = -\nabla L(\theta)`.

    Parameters
    ----------
    problem : Problem
    lr : float, optional
        Only sets the clock: step = t / lr in the result.
    """

    problem: Problem
    lr: float | None = None

    is_complex = False

    def __post_init__(self) -> None:
        interface("GradientFlow: problem", self.problem, ("dim", "gradient"))
        if self.lr is not None:
            lr = real_number("GradientFlow: lr", self.lr, Interval(0, math.inf))
            object.__setattr__(self, "lr", lr)

    def field(self, theta: Array, branch: Any = None) -> Array:
        return -self.problem.gradient(theta)

    def coefficient(self, z: Array) -> Array:
        """-1 for every curvature."""
        return -np.ones_like(np.asarray(z, dtype=float))
