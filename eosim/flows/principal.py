r"""The principal flow: the part of the backward-error series that is a function of the Hessian.

.. math:: \dot\theta = \frac{\log(I - hH)}{hH}\, g
          = \sum_i \alpha(z_i)\,(u_i^\top g)\,u_i, \qquad \alpha(z) = \frac{\log(1-z)}{z},
          \quad z_i = h\lambda_i

(Rosca, Wu, Qin & Dherin 2023, arXiv 2302.01952.) For :math:`z > 1` the logarithm is complex and
the flow rotates: at :math:`t = kh` it agrees with gradient descent, sign flips included.

Which branch
------------
At a real state with :math:`z > 1` the number :math:`1-z` lies *on* the cut of the principal
logarithm. A solver that uses the principal branch is thrown from one side of the cut to the other
(a sliding mode) and follows the real part of the field: no oscillation, and no progress. Here each
eigenvalue carries its logarithm along the path, starting with :math:`+i\pi`, and is continued to
the nearest branch: the branch is memory, updated after each accepted step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import lapack, logm
from scipy.optimize import linear_sum_assignment
from scipy.special import log1p

from eosim._checks import Array, Interval, real_number
from eosim.flows.base import LeftRange
from eosim.problems.base import Problem

# |1 - z| is kept at least this far from 0, where the logarithm is -36.8: the coordinate then falls
# to 1e-16 of itself within one step (gradient descent: to exactly 0). Our choice: machine epsilon.
_FLOOR = 1e-16
# Our choice: an eigenvector matrix of worse reciprocal condition than this has lost too many
# digits, and the matrix function is taken from the Schur form of scipy.linalg.logm instead.
_WORST_CONDITION = 1e-9


def principal_coefficient(z: Any, logarithm: Any) -> Any:
    r""":math:`\alpha = \log(1-z)/z`, with the value of the logarithm (hence its branch) passed in."""
    return logarithm / z


@dataclass(frozen=True, eq=False)
class Branch:
    """Eigenvalues of H at the last accepted state, and the logarithm of 1 - h w each carries."""

    eigenvalues: Array
    logarithms: Array


@dataclass(frozen=True)
class PrincipalFlow:
    r"""The principal flow of gradient descent with learning rate h = ``lr``.

    Parameters
    ----------
    problem : Problem
        With a Hessian that continues to complex theta (``analytic``). A problem that is not
        analytic is followed while every :math:`h\lambda < 1`, where the flow is real; beyond, the
        field raises `LeftRange`.
    lr : float
        h, positive.

    Raises
    ------
    TypeError, ValueError
        If lr is no positive real number.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> bowl = eosim.Quadratic([[1.8]])  # h * lambda = 1.8: gradient descent flips sign each step
    >>> flow = eosim.PrincipalFlow(bowl, lr=1.0)
    >>> path = eosim.integrate(flow, [1.0], np.arange(4.0))
    >>> path.theta[:, 0].real.round(9)
    array([ 1.   , -0.8  ,  0.64 , -0.512])
    """

    problem: Problem
    lr: float

    is_complex = True

    def __post_init__(self) -> None:
        domain = Interval(0, np.inf)
        object.__setattr__(self, "lr", real_number("PrincipalFlow: lr", self.lr, domain))

    def coefficient(self, z: Array) -> Array:
        """alpha(z) at real z = h lambda, on the branch that starts with +i pi for z > 1."""
        z = np.asarray(z, dtype=float)
        return _coefficient(z, _real_logarithm(z))

    def init(self, theta: Array) -> Branch:
        """The branch at the start: +i pi wherever h lambda > 1."""
        eigenvalues, _ = _decompose(self.problem.hessian(theta))
        return Branch(eigenvalues, _logarithm(self.lr * eigenvalues))

    def advance(self, theta: Array, branch: Branch) -> Branch:
        """The branch continued to theta."""
        eigenvalues, _ = _decompose(self.problem.hessian(theta))
        return Branch(eigenvalues, _continued(branch, eigenvalues, self.lr))

    def field(self, theta: Array, branch: Branch) -> Array:
        """The vector field at theta, with logarithms continued from ``branch``; shape (dim,)."""
        hessian = self.problem.hessian(theta)  # (dim, dim), complex symmetric off the real axis
        gradient = self.problem.gradient(theta)  # (dim,)
        eigenvalues, vectors = _decompose(hessian)
        z = self.lr * eigenvalues
        if not self.problem.analytic and z.real.max() >= 1:
            raise LeftRange(
                f"h * lambda reached {z.real.max():.4g}, but {type(self.problem).__name__} is not "
                "analytic: the principal flow turns complex at h * lambda = 1. Lower lr, or compare "
                "with a real flow"
            )
        logarithms = _continued(branch, eigenvalues, self.lr)
        alpha = _coefficient(z, logarithms)
        if np.isrealobj(vectors):  # orthonormal
            return vectors @ (alpha * (vectors.T @ gradient))
        # LAPACK normalises columns as Hermitian vectors; a complex-symmetric H needs the inverse of
        # the whole matrix, not its transpose.
        factors, pivots, info = lapack.zgetrf(vectors)
        condition, _ = lapack.zgecon(factors, np.abs(vectors).sum(axis=0).max())
        if info == 0 and condition > _WORST_CONDITION:
            weights, _ = lapack.zgetrs(factors, pivots, gradient)
            return vectors @ (alpha * weights)
        return self._nearly_defective(hessian, gradient, z, logarithms)

    def _nearly_defective(
        self, hessian: Array, gradient: Array, z: Array, logarithms: Array
    ) -> Any:
        """The field without eigenvectors; only the principal branch exists in this form."""
        if np.abs(logarithms - log1p(-z)).max() > 1e-6:
            raise LeftRange(
                "the Hessian is defective (eigenvectors coincide) while a logarithm is off its "
                "principal branch: the principal flow is not defined by continuity here"
            )
        # log(I - M) of M = [[hH, g], [0, 0]] holds log(I - hH) (hH)^{-1} g in its corner: a matrix
        # function of a block triangular matrix, finite also where H is singular.
        dim = len(gradient)
        block = np.zeros((dim + 1, dim + 1), dtype=complex)
        block[:dim, :dim], block[:dim, dim] = self.lr * hessian, gradient
        return np.asarray(logm(np.eye(dim + 1) - block))[:dim, dim]


def _decompose(hessian: Array) -> tuple[Array, Array]:
    """Eigenvalues and vectors: real and orthonormal where the Hessian is real.

    The field is a matrix function, so signs and rotations within degenerate eigenspaces drop out.
    """
    if not np.isfinite(hessian).all():  # eigen-solvers may return finite numbers for NaN
        raise FloatingPointError("the Hessian is not finite")
    if np.isrealobj(hessian) or not hessian.imag.any():
        return np.linalg.eigh(hessian.real)
    return np.linalg.eig(hessian)


def _real_logarithm(z: Array) -> Array:
    """log(1 - z) at real z: real while z <= 1 everywhere, else with +i pi where z > 1."""
    modulus = np.log1p(-np.minimum(z, 1 - _FLOOR))
    if (z <= 1).all():
        return modulus
    beyond = np.log(np.maximum(z - 1, _FLOOR)) + 1j * np.pi
    return np.where(z > 1, beyond, modulus)


def _logarithm(z: Array) -> Array:
    """log(1 - z) before any continuation; +i pi for real z > 1."""
    if np.isrealobj(z):
        return _real_logarithm(z)
    distance = np.abs(1 - z)
    safe = np.where(distance < _FLOOR, 0, z)
    return np.where(distance < _FLOOR, np.log(_FLOOR), log1p(-safe))


def _continued(branch: Branch, eigenvalues: Array, lr: float) -> Array:
    """The logarithms nearest to those of ``branch``, matched eigenvalue to eigenvalue."""
    logarithms = _logarithm(lr * eigenvalues)
    if np.isrealobj(logarithms) and np.isrealobj(branch.logarithms):
        return logarithms
    rows, columns = linear_sum_assignment(np.abs(branch.eigenvalues[:, None] - eigenvalues))
    carried = np.empty(len(eigenvalues))
    carried[columns] = branch.logarithms.imag[rows]
    # Crossing z = 1 on the real axis changes the imaginary part by exactly pi: both signs are
    # admissible (conjugate solutions), and rounding half to even keeps +i pi.
    turns = np.round((carried - logarithms.imag) / (2 * np.pi))
    return logarithms + 2j * np.pi * turns if turns.any() else logarithms


def _coefficient(z: Array, logarithms: Array) -> Array:
    """alpha(z), with its limit -1 at z = 0 (on the branch that is real there)."""
    zero = z == 0
    return np.where(zero, -1.0, principal_coefficient(np.where(zero, 1.0, z), logarithms))
