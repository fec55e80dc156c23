"""Loss, gradient and curvature at a point: ends of the Hessian's spectrum, trace, norm, NTK."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, overload

import numpy as np
from scipy.linalg import eigh, norm
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from eosim._checks import PRODUCTS, Array, dense_fits, point, state_vector
from eosim.certified import (
    CannotCertify,
    Enclosure,
    asked,
    enclose_eigenvalue,
    in_balls,
    load_flint,
)
from eosim.problems.base import LeastSquares, Problem

# Our choice: a dense symmetric eigenvalue problem of this size takes about 10 ms.
DENSE_DIM = 256
# Our choice: relative tolerance of the Lanczos eigenvalues (their error is its square or better).
LANCZOS_TOLERANCE = 1e-10
# Our choice: Rademacher probes of the stochastic trace and norm, and their fixed seed.
N_PROBES = 128

_length = partial(norm, check_finite=False)  # which squares nothing that would leave the range


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
    (theta,) = point(problem, theta=theta)
    return float(problem.loss(theta))


def gradient_norm(problem: Problem, theta: Array) -> float:
    """|grad L(theta)|, the Euclidean norm."""
    (theta,) = point(problem, theta=theta)
    return float(np.linalg.norm(problem.gradient(theta)))


@overload
def sharpness(problem: Problem, theta: Array) -> Eigenvalue: ...
@overload
def sharpness(problem: Problem, theta: Array, *, certify: bool) -> Eigenvalue | Enclosure: ...
def sharpness(problem: Problem, theta: Array, *, certify: bool = False) -> Eigenvalue | Enclosure:
    """The largest algebraic eigenvalue of the Hessian.

    Dense up to `DENSE_DIM` parameters, Lanczos (ARPACK, fixed start vector) beyond. A Lanczos run
    that does not converge returns its best value with ``converged`` False.

    With ``certify`` an `Enclosure` is returned, of the sharpness of this problem at the binary numbers
    that theta and the problem's floats are: the Hessian is evaluated in balls, and the positive
    eigenvalues of H - s are counted on both sides of the largest, multiple or not. Quadratic,
    LinearRegression, QuadraticNet, Polynomial, Rosenbrock and Cosine have a Hessian that can be
    evaluated so; for the largest eigenvalue of a symmetric matrix of floats, say the Hessian of another
    problem as it was computed, certify the sharpness of ``eosim.Quadratic(H)``. Up to `DENSE_DIM`
    parameters; needs ``pip install "eosim[certify]"``.

    Raises
    ------
    ValueError
        If the Hessian is not finite at theta.
    ImportError, CannotCertify
        With ``certify``: if python-flint is missing; if there are too many parameters, or the problem
        computes its Hessian in floats.

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
    (theta,) = point(problem, theta=theta)
    if problem.dim <= DENSE_DIM:
        return Estimate(float(np.trace(_finite_hessian(problem, theta))), 0.0)
    return _mean(_probe(problem, theta, lambda probe, image: probe @ image))


def hessian_frobenius(problem: Problem, theta: Array) -> Estimate:
    """|H|_F: exact up to `DENSE_DIM` parameters, else from E|Hz|^2 over `N_PROBES` probes z."""
    (theta,) = point(problem, theta=theta)
    if problem.dim <= DENSE_DIM:
        return Estimate(float(_length(_finite_hessian(problem, theta).ravel())), 0.0)
    lengths = _probe(problem, theta, lambda probe, image: _length(image))
    unit = lengths.max()  # squares stay in range
    if unit == 0:
        return Estimate(0.0, 0.0)
    square = _mean((lengths / unit) ** 2)
    value = math.sqrt(square.value)
    return Estimate(float(unit * value), float(unit * square.standard_error / (2 * value)))


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
    (theta,) = point(problem, theta=theta)
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
    if not hasattr(getattr(problem, "hessian", None), "certifiable"):
        raise CannotCertify(
            f"the Hessian of {type(problem).__name__} is computed in floats, with an unknown error. "
            "certify=True takes Quadratic, LinearRegression, QuadraticNet, Polynomial, Rosenbrock and "
            "Cosine; sharpness(eosim.Quadratic(H), theta, certify=True) encloses the largest "
            "eigenvalue of a matrix H of floats"
        )
    if problem.dim > DENSE_DIM:
        raise CannotCertify(
            f"sharpness with certify=True takes at most {DENSE_DIM} parameters, got {problem.dim}; "
            "without it the residual bounds the distance to the nearest eigenvalue"
        )
    theta = state_vector("theta", theta, problem.dim)

    def hessian() -> Any:
        rows = in_balls(problem).hessian(in_balls(theta)).tolist()
        matrix = load_flint().arb_mat(rows)
        return (matrix + matrix.transpose()) * load_flint().arb(0.5)

    return enclose_eigenvalue("sharpness", hessian, 1)


def _extreme(problem: Problem, theta: Array, which: str) -> Eigenvalue:
    (theta,) = point(problem, theta=theta)
    dim = problem.dim
    if dim <= DENSE_DIM:
        hessian = _finite_hessian(problem, theta)
        index = dim - 1 if which == "LA" else 0
        values, vectors = eigh(hessian, subset_by_index=[index, index])
        value, vector = values[0], vectors[:, 0]
        return Eigenvalue(float(value), float(_length(hessian @ vector - value * vector)), True)
    start = np.random.default_rng(0).standard_normal(dim)
    first = problem.hvp(theta, start)
    if not np.isfinite(first).all():
        raise ValueError("the Hessian is not finite at theta")
    if not first.any():  # ARPACK fails on the zero matrix
        return Eigenvalue(0.0, 0.0, True)
    # ARPACK's tolerance has an absolute floor: it gets the Hessian in units of its own size. It also
    # forces the start into the range of the operator, so it would miss an extreme eigenvalue 0:
    # the shift (no number that a Hessian is likely to have as -eigenvalue) makes it regular.
    unit, shift = float(_length(first) / _length(start)), math.e
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
    residual = float(_length(problem.hvp(theta, vector) - value * vector))
    return Eigenvalue(value, residual, converged)


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


def _probe(problem: Problem, theta: Array, statistic: Callable[[Array, Array], Any]) -> Array:
    """A statistic of each probe z and its image H z."""
    generator = np.random.default_rng(0)
    samples = np.empty(N_PROBES)
    for index in range(N_PROBES):
        probe = generator.choice([-1.0, 1.0], size=problem.dim)
        samples[index] = statistic(probe, problem.hvp(theta, probe))
    if not np.isfinite(samples).all():
        raise ValueError("the Hessian is not finite at theta")
    return samples


def _mean(samples: Array) -> Estimate:
    return Estimate(float(samples.mean()), float(samples.std(ddof=1) / np.sqrt(len(samples))))
