"""Gradient flow: the limit of small learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from eosim._checks import Array
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

    def init(self, theta: Array) -> None:
        return None

    def advance(self, theta: Array, branch: Any) -> None:
        return None

    def field(self, theta: Array, branch: Any = None) -> Array:
        return -self.problem.gradient(theta)

    def coefficient(self, z: Array) -> Array:
        """-1 for every curvature."""
        return -np.ones_like(np.asarray(z, dtype=float))
