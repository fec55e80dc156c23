r"""The edge flow: centre, directions and sizes of a period-2 oscillation of gradient descent.

From :math:`\theta_t = c + (-1)^t \sum_j r_j u_j`, per step of gradient descent at rate :math:`\eta`:

.. math::
   \dot c &= -\eta \Big[ g(c) + \sum_j \big( \tfrac12 [g(c + r_j u_j) + g(c - r_j u_j)] - g(c) \big)
              \Big] \\
   \dot u_j &= \eta \Big[ (I - u_j u_j^\top) H u_j - 2 \sum_{i<j} u_i\, u_i^\top H u_j \Big] \\
   \frac{d \ln r_j}{dt} &= \ln |1 - \eta\, k_j|, \qquad
              k_j = \frac{u_j^\top [g(c + r_j u_j) - g(c - r_j u_j)]}{2 r_j}

After the published description of Marion 2026 (arXiv 2606.18080); these equations are our own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eosim._checks import Array, Interval, choice, dense_fits, integer, interface, real_number
from eosim.flows._modes import top_modes
from eosim.flows.base import Averages
from eosim.problems.base import Problem, hessian_products

# Our choice: an oscillation keeps this size while it decays, from which it can grow again, and its
# rate of decay is at most this: ln|1 - z| is singular at z = 1.
FLOOR = 1e-12
_FASTEST_DECAY = math.log(1e-3)
# Our choice: below this size the difference of gradients has more rounding than bend.
_SMALLEST_SECANT = 1e-6


@dataclass(frozen=True)
class EdgeFlow:
    r"""The edge flow of gradient descent, with one direction or several.

    The state is (c, u_1, ..., u_k, ln r_1, ..., ln r_k). It starts from theta and the step that gradient
    descent makes there: :math:`c = \theta + \Delta/2`, u the top eigenvectors at c, :math:`r =
    |u^\top \Delta|/2`. Two gradients for each direction and one Hessian-vector product for each.

    Parameters
    ----------
    problem : Problem
    lr : float
        :math:`\eta`, positive.
    n_modes : int
        k. Directions beyond the first keep orthogonal to those before.
    rate : str
        "logarithmic", as above: exact on quadratics; or "linear", :math:`\eta k - 2`, its first
        order at the edge.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Notes
    -----
    Sizes stay above `FLOOR`. Where the centre itself has a part along u it is multiplied as r is: the
    solver must resolve a step of the optimizer, which `integrate` does.
    """

    problem: Problem
    lr: Any
    n_modes: int = 1
    rate: str = "logarithmic"

    is_complex = False

    def __post_init__(self) -> None:
        interface("EdgeFlow: problem", self.problem, ("dim", "gradient", "hvp", "hessian"))
        object.__setattr__(self, "lr", real_number("EdgeFlow: lr", self.lr, Interval(0, math.inf)))
        if integer("EdgeFlow: n_modes", self.n_modes, minimum=1) > self.problem.dim:
            raise ValueError(
                f"EdgeFlow: n_modes must be at most dim = {self.problem.dim}, got {self.n_modes}"
            )
        choice("EdgeFlow: rate", self.rate, ("logarithmic", "linear"))

    def start(self, theta: Array, memory: tuple[Any, ...] | None) -> Array:
        move = -self.lr * self.problem.gradient(theta)
        centre = theta + move / 2
        modes = top_modes(self.problem, centre, np.ones(len(theta)), self.n_modes, None)
        sizes = np.maximum(np.abs(modes.vectors.T @ move) / 2, FLOOR)
        return np.concatenate([centre, modes.vectors.T.ravel(), np.log(sizes)])

    def centre(self, state: Array) -> Array:
        return state[: self.problem.dim]

    def field(self, state: Array, branch: Any = None) -> Array:
        c, U, log_sizes = self._split(state)
        hessian = hessian_products(self.problem, c)
        images = np.stack([hessian(u) for u in U])  # rows: H u
        projected = U @ images.T
        mixing = np.diag(np.diag(projected)) + 2 * np.tril(projected, -1)
        turns = self.lr * (images - mixing @ U)
        force = self.problem.gradient(c)
        total, curvatures = force, np.diag(projected).copy()
        for j, (u, size) in enumerate(zip(U, np.exp(log_sizes), strict=True)):
            ahead, behind = self.problem.gradient(c + size * u), self.problem.gradient(c - size * u)
            total = total + ((ahead + behind) / 2 - force)
            if size > _SMALLEST_SECANT:
                curvatures[j] = u @ (ahead - behind) / (2 * size)
        z = self.lr * curvatures
        if self.rate == "linear":
            growth = z - 2
        else:
            with np.errstate(divide="ignore"):
                growth = np.log(np.abs(1 - z))
        growth = np.maximum(growth, _FASTEST_DECAY)
        growth = np.where(log_sizes <= math.log(FLOOR), np.maximum(growth, 0), growth)
        return np.concatenate([-self.lr * total, turns.ravel(), growth]) / self.lr

    def averages(self, state: Array, branch: Any = None) -> Averages:
        """Over the 2 points of one direction; each direction adds its own part."""
        c, U, log_sizes = self._split(state)
        loss = float(self.problem.loss(c))
        force = self.problem.gradient(c)
        square = float(force @ force)
        losses, squares = loss, square
        for u, size in zip(U, np.exp(log_sizes), strict=True):
            ends = (c + size * u, c - size * u)
            losses += float(np.mean([self.problem.loss(end) for end in ends])) - loss
            slopes = [self.problem.gradient(end) for end in ends]
            squares += float(np.mean([slope @ slope for slope in slopes])) - square
        first = U[0]
        curvature = float(first @ self.problem.hvp(c, first))
        oscillation = float(np.exp(2 * log_sizes).sum())
        return Averages(losses, squares, oscillation, self.lr * curvature / 2)

    def covariance(self, state: Array) -> Array:
        r""":math:`\sum_j r_j^2 u_j u_j^\top`, of shape (dim, dim)."""
        _, U, log_sizes = self._split(state)
        dense_fits("the covariance", (U.shape[1], U.shape[1]), "averages(state) has its trace")
        return (U.T * np.exp(2 * log_sizes)) @ U

    def _split(self, state: Array) -> tuple[Array, Array, Array]:
        """The centre, orthonormal directions as rows, and ln r."""
        dim, k = self.problem.dim, self.n_modes
        U = state[dim : dim + k * dim].reshape(k, dim)
        frame, triangle = np.linalg.qr(U.T)
        return state[:dim], (frame * np.sign(np.diag(triangle))).T, state[dim + k * dim :]
