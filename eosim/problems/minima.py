"""Global minima with zero residuals, found near a starting point and verified."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import svd

from eosim._checks import Array, Interval, integer, interface, real_number, state_vector

# Our choice: singular values of J below this, relative to the largest, count as 0. It is far above
# rounding, and (squared) far below any NTK eigenvalue whose dynamics one can watch.
RANK_CUTOFF = 1e-10
# Our choice: the residuals of a step must fall by a quarter of what its linear model promises, so
# that the path does not leap away from the start.
_TRUST = 0.25
# Damping in units of the largest NTK eigenvalue: first value when a plain step fails, growth and
# decay (Marquardt 1963), below which it is switched off, above which no step helps. Our choice.
_DAMPING, _FACTOR, _NO_DAMPING, _STUCK = 1e-3, 10.0, 1e-12, 1e8
# Our choice: J can still change this part of |e|^2 where rounding hides that the loss would fall.
_STATIONARY = 1e-12


class InterpolatingMinimum(NamedTuple):
    """A point with what was verified there; ``converged`` only if every residual vanishes."""

    theta: Array  # (dim,)
    residual_norm: float  # root mean square of the residuals: sqrt(2 L)
    gradient_norm: float  # |grad L|
    smallest_ntk_eigenvalue: float  # of J J^T / n, all n k of them; 0 if the rank is smaller
    rank: int  # of J
    n_steps: int
    converged: bool
    reason: str


def interpolating_minimum(
    problem: Any, theta0: Any, *, tolerance: float = 1e-10, max_steps: int = 500
) -> InterpolatingMinimum:
    r"""A global minimum with zero residuals e near theta0, by damped Gauss-Newton steps.

    .. math:: \delta = -J^\top (J J^\top + \mu I)^{-1} e

    Parameters
    ----------
    problem : LeastSquares
    theta0 : (dim,) array
    tolerance : float
        The root mean square of e, in units of the targets, up to which the data count as
        interpolated. The steps go on to the rounding error in any case.
    max_steps : int

    Returns
    -------
    InterpolatingMinimum
        With ``converged`` False, and why, where no such minimum was found: read it before use.

    Notes
    -----
    Every step lies in the range of :math:`J^\top`, the directions that change the residuals, so the
    path does not wander along the manifold of minima. Without damping (:math:`\mu = 0`, singular
    values of J cut at `RANK_CUTOFF`) the step has the smallest norm of all that solve the linearised
    problem. Damping starts only where such a step does not deliver (Levenberg 1944, Marquardt 1963).

    If the residuals are linear in theta the first step ends at the minimum nearest to theta0; from
    theta0 = 0 that is the minimum-norm solution. For other problems the minimum is near theta0 but
    not the nearest one, nor the one that gradient descent finds.

    J is held as a matrix of n_samples * n_outputs rows and decomposed at every step: for small and
    medium problems.

    Raises
    ------
    TypeError
        If the problem has no residuals and jacobian.
    ValueError
        If theta0 has the wrong shape, or the residuals there are not finite.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> problem = eosim.LinearRegression([[3.0, 4.0]], [5.0])
    >>> eosim.problems.interpolating_minimum(problem, np.zeros(2)).theta
    array([0.6, 0.8])
    """
    interface("problem", problem, ("dim", "n_samples", "residuals", "jacobian", "gradient"))
    theta = state_vector("theta0", theta0, problem.dim)
    tolerance = real_number("tolerance", tolerance, Interval(0, np.inf))
    max_steps = integer("max_steps", max_steps, minimum=0)
    point = _point(problem, theta)
    if point is None:
        raise ValueError("theta0: the residuals or their Jacobian are not finite there")
    damping, n_steps, stuck = 0.0, 0, False
    while n_steps < max_steps and not stuck and point.square > 0:
        step, promised = point.step(damping)
        target = point.square - _TRUST * promised
        moved = _point(problem, point.theta + step, below=target)
        if moved is not None:
            point, n_steps = moved, n_steps + 1
            damping = damping / _FACTOR if damping > _NO_DAMPING else 0.0
        else:
            damping = max(damping * _FACTOR, _DAMPING)
            stuck = damping > _STUCK
    return _verified(problem, point, n_steps, tolerance, stuck)


class _Point(NamedTuple):
    """A point with its residuals and the decomposition of its Jacobian."""

    theta: Array
    residuals: Array  # e, (n k,)
    square: float  # |e|^2
    left: Array  # U of J = U diag(s) V^T, (n k, r)
    values: Array  # s, (r,), descending
    right: Array  # V^T, (r, dim)

    @property
    def rank(self) -> int:
        return int(np.sum(self.values > RANK_CUTOFF * self.values[0]))

    def step(self, damping: float) -> tuple[Array, float]:
        """The damped step, and by how much |e|^2 would fall if J were constant."""
        kept = slice(self.rank)
        values = self.values[kept]
        along = self.left[:, kept].T @ self.residuals
        if len(values) == 0:
            return np.zeros_like(self.theta), 0.0
        shift = damping * values[0] ** 2
        step = -self.right[kept].T @ (values / (values**2 + shift) * along)
        remaining = shift / (values**2 + shift)
        return step, float(np.sum((1 - remaining**2) * along**2))


def _point(problem: Any, theta: Array, below: float = np.inf) -> _Point | None:
    """None if |e|^2 is not below the value given, or something is not finite: too long a step."""
    with np.errstate(over="ignore", invalid="ignore"):
        residuals = problem.residuals(theta).ravel()
        square = float(residuals @ residuals)
        if not square < below:
            return None
        jacobian = problem.jacobian(theta).reshape(len(residuals), problem.dim)
    if not np.isfinite(jacobian).all():
        return None
    return _Point(theta, residuals, square, *svd(jacobian, full_matrices=False))


def _verified(
    problem: Any, point: _Point, n_steps: int, tolerance: float, stuck: bool
) -> InterpolatingMinimum:
    """Measure at the last point, and say what it is."""
    n_residuals = len(point.residuals)
    size = float(np.sqrt(point.square / problem.n_samples))
    rank = point.rank
    full = rank == n_residuals
    if size <= tolerance:
        reason = f"the residuals vanish: root mean square {size:.2g}, tolerance {tolerance:.2g}"
    elif not stuck:
        reason = (
            f"root mean square {size:.2g} after max_steps = {n_steps} steps; allow more, or start "
            "elsewhere"
        )
    elif point.step(0.0)[1] <= _STATIONARY * point.square:
        reason = (
            f"stationary with root mean square {size:.2g}: J has rank {rank} and cannot change all "
            f"{n_residuals} residuals; take more parameters or fewer samples, or start elsewhere"
        )
    else:
        reason = (
            f"no step lowers the root mean square {size:.2g} as J promises: theta is at a kink, or "
            "tolerance is below the rounding error; start elsewhere, or raise it"
        )
    return InterpolatingMinimum(
        point.theta,
        size,
        float(np.linalg.norm(problem.gradient(point.theta))),
        float(point.values[-1] ** 2 / problem.n_samples) if full else 0.0,
        rank,
        n_steps,
        size <= tolerance,
        reason,
    )
