"""Workloads of the principal flow: what it costs beside the linear algebra that it cannot avoid."""

from __future__ import annotations

import numpy as np

import eosim
from eosim.flows import PrincipalFlow
from tests.benchmarks import Contest, Workload

_LR = 1.0
# Largest |h lambda| first: three beyond 1, one of them unstable.
_OUTLIERS = (2.1, 1.9, 1.4)


def _network_like(dim: int, seed: int = 0) -> np.ndarray:
    """A symmetric matrix whose spectrum is a bulk in [0, 0.3], dense at 0, and three outliers."""
    generator = np.random.default_rng(seed)
    values = 0.3 * generator.uniform(size=dim) ** 3
    values[:3] = _OUTLIERS
    basis = np.linalg.qr(generator.standard_normal((dim, dim)))[0]
    matrix = basis * values @ basis.T
    return (matrix + matrix.T) / (2 * _LR)


def _cubic(dim: int) -> eosim.problems.base.FunctionProblem:
    """x^T A x / 2 + 0.01 sum x^3 / 6: a Hessian that costs nothing, complex at complex points."""
    matrix = _network_like(dim)
    diagonal = np.diag_indices(dim)

    def hessian(x: np.ndarray) -> np.ndarray:
        result = matrix.astype(x.dtype)
        result[diagonal] += 0.01 * x
        return result

    return eosim.from_functions(
        lambda x: x @ (matrix @ x) / 2 + 0.01 * np.sum(x**3) / 6,
        lambda x: matrix @ x + 0.005 * x**2,
        hessian=hessian,
        dim=dim,
        analytic=True,
    )


def _close(tolerance: float):
    def agree(ours: np.ndarray, peer: np.ndarray) -> bool:
        return bool(np.linalg.norm(ours - peer) <= tolerance * np.linalg.norm(peer))

    return agree


def _field(*, imaginary: float) -> Contest:
    """The field at dim 100 against LAPACK's eigendecomposition of its Hessian."""
    dim = 100
    problem = _cubic(dim)
    flow = PrincipalFlow(problem, _LR, method="dense")
    start = np.random.default_rng(1).standard_normal(dim)
    theta = start + 1j * imaginary * np.random.default_rng(2).standard_normal(dim)
    branch = flow.init(start)
    hessian, g = problem.hessian(theta), problem.gradient(theta)
    solve = np.linalg.eig if imaginary else np.linalg.eigh
    hessian = hessian if imaginary else hessian.real.copy()

    def agree(ours: object, peer: object) -> bool:
        values, vectors = peer  # type: ignore[misc]
        z = _LR * values
        logarithms = np.log(np.abs(1 - z)) + 1j * np.where(z.real > 1, np.pi, 0)
        if imaginary:
            logarithms = np.log(1 - z)
            logarithms[(z.real > 1) & (logarithms.imag < 0)] += 2j * np.pi
        expected = vectors @ (logarithms / z * np.linalg.solve(vectors, g))
        return _close(1e-9)(ours, expected)

    return Contest(lambda: flow.field(theta, branch), lambda: solve(hessian), agree)


def _one_step() -> Contest:
    """One step of gradient descent integrated at dim 100, against its eigendecompositions."""
    dim = 100
    problem = _cubic(dim)
    flow = PrincipalFlow(problem, _LR, method="dense")
    start = np.random.default_rng(1).standard_normal(dim)
    decompositions = []
    eigh, eig = np.linalg.eigh, np.linalg.eig

    def watch(solve):
        def watched(matrix):
            decompositions.append((solve, np.array(matrix)))
            return solve(matrix)

        return watched

    def ours() -> np.ndarray:
        return eosim.integrate(flow, start, [_LR], record={}, rtol=1e-6, atol=1e-9).theta[0]

    np.linalg.eigh, np.linalg.eig = watch(eigh), watch(eig)
    try:
        reference = ours()
    finally:
        np.linalg.eigh, np.linalg.eig = eigh, eig

    def peer() -> np.ndarray:
        for solve, matrix in decompositions:
            solve(matrix)
        return reference

    return Contest(ours, peer, _close(1e-12))


def _lanczos() -> Contest:
    """Lanczos against the dense form at dim 2000 and a network-like spectrum."""
    dim = 2000
    problem = eosim.Quadratic(_network_like(dim))
    theta = np.random.default_rng(1).standard_normal(dim)
    by_lanczos = PrincipalFlow(problem, _LR, method="lanczos")
    by_decomposition = PrincipalFlow(problem, _LR, method="dense")
    branch = by_decomposition.init(theta)
    return Contest(
        lambda: by_lanczos.field(theta),
        lambda: by_decomposition.field(theta, branch),
        _close(1e-9),
    )


def _lanczos_alone() -> Contest:
    """Lanczos against nothing but the eigendecomposition that the dense form needs."""
    dim = 2000
    matrix = _network_like(dim)
    problem = eosim.Quadratic(matrix)
    flow = PrincipalFlow(problem, _LR, method="lanczos")
    theta = np.random.default_rng(1).standard_normal(dim)

    def agree(ours: object, peer: object) -> bool:
        values, vectors = peer  # type: ignore[misc]
        alpha = flow.coefficient(_LR * values)
        return _close(1e-9)(ours, vectors @ (alpha * (vectors.T @ (matrix @ theta))))

    return Contest(lambda: flow.field(theta), lambda: np.linalg.eigh(matrix), agree)


WORKLOADS = (
    Workload(
        "field-real", "dim 100, real state", "eigh alone", 1.3, 40, lambda: _field(imaginary=0.0)
    ),
    Workload(
        "field-complex",
        "dim 100, complex state",
        "eig alone",
        1.3,
        40,
        lambda: _field(imaginary=0.1),
    ),
    Workload("step", "dim 100, one lr", "its decompositions alone", 1.3, 10, _one_step),
    Workload("lanczos", "dim 2000, bulk + 3", "dense form", 0.1, 5, _lanczos),
    Workload("lanczos-alone", "dim 2000, bulk + 3", "eigh alone", 0.1, 5, _lanczos_alone),
)
