"""Loss, gradient and curvature at a point: ends of the Hessian's spectrum, trace, norm, NTK."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, overload

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from eosim._checks import PRODUCTS, Array, dense_fits, point
from eosim.certified import (
    CannotCertify,
    Enclosure,
    asked,
    balls,
    enclose_eigenvalue,
    load_flint,
    precise,
)
from eosim.problems.base import LeastSquares, Problem

# Our choice: a dense symmetric eigenvalue problem of this size takes about 10 ms.
DENSE_DIM = 256
# Our choice: relative tolerance of the Lanczos eigenvalues (their error is its square or better).
LANCZOS_TOLERANCE = 1e-10
# Our choice: Rademacher probes of the stochastic trace and norm, and their fixed seed.
N_PROBES = 128


class Eigenvalue(NamedTuple):
    """An extreme eigenvalue with its evidence: ``residual`` is |Hv - value v| for a unit v."""

    value: float
    residual: float
    converged: bool


class SpectrumEnds(NamedTuple):
    """Both algebraic ends of the spectrum; residual is the larger of the two."""

    smallest: float
    largest: float
    residual: float
    converged: bool


class Estimate(NamedTuple):
    """A value with its standard error, 0 where it was computed exactly."""

    value: float
    standard_error: float


def loss(problem: Problem, theta: Array) -> float:
    """L(theta)."""
    point(problem, theta=theta)
    return float(problem.loss(theta))


def gradient_norm(problem: Problem, theta: Array) -> float:
    """|grad L(theta)|, the Euclidean norm."""
    point(problem, theta=theta)
    return float(np.linalg.norm(problem.gradient(theta)))


@overload
def sharpness(problem: Problem, theta: Array) -> Eigenvalue: ...
@overload
def sharpness(problem: Problem, theta: Array, *, certify: bool) -> Eigenvalue | Enclosure: ...
def sharpness(problem: Problem, theta: Array, *, certify: bool = False) -> Eigenvalue | Enclosure:
    """The largest algebraic eigenvalue of the Hessian.

    Dense up to `DENSE_DIM` parameters, Lanczos (ARPACK, fixed start vector) beyond. A Lanczos run
    that does not converge returns its best value with ``converged`` False.

    With ``certify`` an `Enclosure` is returned: of the largest eigenvalue of the symmetric part of the
    float matrix ``problem.hessian(theta)``, proved by counting the positive pivots of H - s on both
    sides of it, multiple or not. The rounding of the Hessian itself is not in it. Up to `DENSE_DIM`
    parameters; needs ``pip install "eosim[certify]"``.

    Raises
    ------
    ValueError
        If the Hessian is not finite at theta.
    ImportError, CannotCertify
        With ``certify``: if python-flint is missing, or there are too many parameters.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> eosim.measure.sharpness(eosim.Quadratic(np.diag([3.0, -5.0])), np.zeros(2)).value
    3.0
    """
    return _certified(problem, theta) if asked(certify) else _extreme(problem, theta, "LA")


def spectrum_ends(problem: Problem, theta: Array) -> SpectrumEnds:
    """The smallest and the largest algebraic eigenvalue of the Hessian; as `sharpness`."""
    low, high = _extreme(problem, theta, "SA"), _extreme(problem, theta, "LA")
    return SpectrumEnds(
        low.value, high.value, max(low.residual, high.residual), low.converged and high.converged
    )


def hessian_trace(problem: Problem, theta: Array) -> Estimate:
    """tr H: exact up to `DENSE_DIM` parameters, else Hutchinson's estimator with `N_PROBES` probes."""
    point(problem, theta=theta)
    if problem.dim <= DENSE_DIM:
        return Estimate(float(np.trace(_finite_hessian(problem, theta))), 0.0)
    return _probe(problem, theta, lambda probe, image: probe @ image)


def hessian_frobenius(problem: Problem, theta: Array) -> Estimate:
    """|H|_F: exact up to `DENSE_DIM` parameters, else from E|Hz|^2 over `N_PROBES` probes z."""
    point(problem, theta=theta)
    if problem.dim <= DENSE_DIM:
        return Estimate(float(np.linalg.norm(_finite_hessian(problem, theta))), 0.0)
    square = _probe(problem, theta, lambda probe, image: image @ image)
    norm = np.sqrt(square.value)
    return Estimate(float(norm), square.standard_error / (2 * norm) if norm else 0.0)


def gauss_newton_spectrum(problem: LeastSquares, theta: Array) -> Array:
    """Eigenvalues of J^T J / n, shape (dim,), descending."""
    jacobian = _flat_jacobian(problem, theta)
    return _padded(_squared_singular_values(jacobian, problem), problem.dim)


def ntk_spectrum(problem: LeastSquares, theta: Array) -> Array:
    """Eigenvalues of the NTK J J^T / n, shape (n_samples * n_outputs,), descending."""
    jacobian = _flat_jacobian(problem, theta)
    return _padded(_squared_singular_values(jacobian, problem), len(jacobian))


def _flat_jacobian(problem: LeastSquares, theta: Array) -> Array:
    if not hasattr(problem, "jacobian"):
        raise TypeError(
            f"{type(problem).__name__} is no least-squares problem: it has no jacobian(theta)"
        )
    point(problem, theta=theta)
    dense_fits("the Jacobian", (problem.n_samples, problem.dim), PRODUCTS)
    return problem.jacobian(theta).reshape(-1, problem.dim)  # (n * n_outputs, dim)


def _squared_singular_values(jacobian: Array, problem: LeastSquares) -> Array:
    return np.linalg.svd(jacobian, compute_uv=False) ** 2 / problem.n_samples


def _padded(values: Array, length: int) -> Array:
    return np.concatenate([values[:length], np.zeros(max(0, length - len(values)))])


def _finite_hessian(problem: Problem, theta: Array) -> Array:
    if hasattr(problem, "hessian"):
        hessian = problem.hessian(theta)
    else:
        hessian = np.stack([problem.hvp(theta, unit) for unit in np.eye(problem.dim)])
        hessian = (hessian + hessian.T) / 2
    if not np.isfinite(hessian).all():  # eigen-solvers may return finite numbers for NaN
        raise ValueError("the Hessian is not finite at theta")
    return hessian


def _certified(problem: Problem, theta: Array) -> Enclosure:
    point(problem, theta=theta)
    if problem.dim > DENSE_DIM:
        raise CannotCertify(
            f"sharpness with certify=True takes at most {DENSE_DIM} parameters, got {problem.dim}; "
            "without it the residual bounds the distance to the nearest eigenvalue"
        )
    with precise():
        matrix = balls(_finite_hessian(problem, theta))
        symmetric = (matrix + matrix.transpose()) * load_flint().arb(0.5)
        return enclose_eigenvalue(symmetric, 1)


def _extreme(problem: Problem, theta: Array, which: str) -> Eigenvalue:
    point(problem, theta=theta)
    dim = problem.dim
    if dim <= DENSE_DIM:
        hessian = _finite_hessian(problem, theta)
        index = dim - 1 if which == "LA" else 0
        values, vectors = eigh(hessian, subset_by_index=[index, index])
        value, vector = values[0], vectors[:, 0]
        return Eigenvalue(
            float(value), float(np.linalg.norm(hessian @ vector - value * vector)), True
        )
    start = np.random.default_rng(0).standard_normal(dim)
    first = problem.hvp(theta, start)
    if not np.isfinite(first).all():
        raise ValueError("the Hessian is not finite at theta")
    if not first.any():  # ARPACK fails on the zero matrix
        return Eigenvalue(0.0, 0.0, True)
    # ARPACK's tolerance has an absolute floor: it gets the Hessian in units of its own size. It also
    # forces the start into the range of the operator, so it would miss an extreme eigenvalue 0:
    # the shift (no number that a Hessian is likely to have as -eigenvalue) makes it regular.
    unit, shift = float(np.linalg.norm(first) / np.linalg.norm(start)), math.e
    operator = LinearOperator(
        (dim, dim),
        matvec=lambda v: problem.hvp(theta, v.ravel()) / unit + shift * v.ravel(),
        dtype=np.dtype(float),
    )
    try:
        values, vectors = eigsh(operator, k=1, which=which, v0=start, tol=LANCZOS_TOLERANCE)
        converged = True
    except ArpackNoConvergence:
        # No Ritz pair met the tolerance: a short, full Lanczos basis still gives the best known one.
        values, vectors = _short_lanczos(operator.matvec, start, which)
        converged = False
    value, vector = unit * (float(values[0]) - shift), vectors[:, 0]
    residual = np.linalg.norm(problem.hvp(theta, vector) - value * vector)
    return Eigenvalue(value, float(residual), converged)


def _short_lanczos(
    product: Callable[[Array], Array], start: Array, which: str
) -> tuple[Array, Array]:
    """The extreme Ritz pair of a 100-dimensional Krylov space, reorthogonalised twice."""
    basis = (start / np.linalg.norm(start))[:, None]  # (dim, m)
    while basis.shape[1] < min(100, len(start)):
        image = product(basis[:, -1])
        for _ in range(2):
            image = image - basis @ (basis.T @ image)
        length = np.linalg.norm(image)
        if length < 1e-12:
            break
        basis = np.column_stack([basis, image / length])
    projected = basis.T @ np.column_stack([product(column) for column in basis.T])
    values, vectors = eigh((projected + projected.T) / 2)
    index = -1 if which == "LA" else 0
    return values[[index]], basis @ vectors[:, [index]]


def _probe(problem: Problem, theta: Array, statistic: Callable[[Array, Array], Any]) -> Estimate:
    generator = np.random.default_rng(0)
    samples = np.empty(N_PROBES)
    for index in range(N_PROBES):
        probe = generator.choice([-1.0, 1.0], size=problem.dim)
        samples[index] = statistic(probe, problem.hvp(theta, probe))
    if not np.isfinite(samples).all():
        raise ValueError("the Hessian is not finite at theta")
    return Estimate(float(samples.mean()), float(samples.std(ddof=1) / np.sqrt(N_PROBES)))
