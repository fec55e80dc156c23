"""Workloads of quadratic regression: a step with packed symmetric matrices against dense NumPy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from eosim.problems.quadratic_regression import QuadraticRegression, random_quadratic_regression
from eosim.sharpening import closed_step
from tests.benchmarks import Contest, Workload

_LR, _BATCH = 1.0, 10


def _model(dtype: str = "float64") -> QuadraticRegression:
    return random_quadratic_regression(200, 300, 0.02, ntk_max=1.0, dtype=dtype)


def _dense(problem: QuadraticRegression) -> np.ndarray:
    """Q as NumPy takes it, (n, P, P)."""
    rows, columns = np.tril_indices(problem.dim)
    tensor = np.empty((problem.n_samples, problem.dim, problem.dim))
    tensor[:, rows, columns] = tensor[:, columns, rows] = problem.tensor
    return tensor


def _point(problem: QuadraticRegression) -> np.ndarray:
    return 0.01 * np.random.default_rng(1).standard_normal(problem.dim)


def _batch(problem: QuadraticRegression) -> np.ndarray:
    return np.random.default_rng(2).permutation(problem.n_samples)[:_BATCH]


def _fastest(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """The best of several programs on this machine, each called five times after a warm-up."""

    def seconds(call: Callable[[], object]) -> float:
        call()
        times = []
        for _ in range(5):
            started = time.process_time()
            call()
            times.append(time.process_time() - started)
        return min(times)

    return min(calls, key=seconds)


def _close(tolerance: float):
    def agree(ours: object, peer: object) -> bool:
        return bool(np.linalg.norm(ours - peer) <= tolerance * np.linalg.norm(peer))  # type: ignore[operator]

    return agree


def _gradient(
    problem: QuadraticRegression, moved: np.ndarray, theta: np.ndarray, batch: np.ndarray | slice
) -> np.ndarray:
    """From the products Q_a theta."""
    slopes = problem.initial_jacobian[batch]
    residuals = problem.initial_residuals[batch] + (slopes + moved / 2) @ theta
    return residuals @ (slopes + moved) / len(residuals)


def _full(dtype: str) -> Contest:
    """A full-batch gradient, Q stored in this type, against the best dense program in float64."""
    problem = _model(dtype)
    theta, Q, everything = _point(problem), _dense(problem), slice(None)
    flat = Q.reshape(-1, problem.dim)
    products = (
        lambda: (flat @ theta).reshape(problem.n_samples, -1),
        lambda: Q @ theta,
        lambda: np.einsum("ajk,k->aj", Q, theta),
    )
    peers = [lambda p=product: _gradient(problem, p(), theta, everything) for product in products]
    return Contest(lambda: problem.gradient(theta), _fastest(peers), _close(1e-12))


def _rows() -> Contest:
    """A gradient of ten samples against the better of two dense programs on the same rows."""
    problem = _model()
    theta, Q, batch = _point(problem), _dense(problem), _batch(problem)

    def gathered() -> np.ndarray:
        return _gradient(problem, Q[batch] @ theta, theta, batch)

    def one_by_one() -> np.ndarray:
        moved = np.empty((_BATCH, problem.dim))
        for row, sample in zip(moved, batch, strict=True):
            np.matmul(Q[sample], theta, out=row)
        return _gradient(problem, moved, theta, batch)

    return Contest(
        lambda: problem.gradient(theta, batch), _fastest([gathered, one_by_one]), _close(1e-12)
    )


def _closed() -> Contest:
    """A step of ten samples on theta against one on (z, J), which moves the rows of all samples."""
    problem = _model()
    theta, Q, batch = _point(problem), _dense(problem), _batch(problem)
    residuals, jacobian = problem.residuals(theta)[:, 0], problem.jacobian(theta)[:, 0]
    weights = np.zeros(problem.n_samples)
    weights[batch] = 1 / _BATCH

    def whole() -> np.ndarray:
        return closed_step(residuals, jacobian, Q, weights, _LR)[0]

    flat = Q.reshape(-1, problem.dim)

    def by_rows() -> np.ndarray:
        gradient = residuals[batch] @ jacobian[batch] / _BATCH
        moved = _LR * (flat @ gradient).reshape(jacobian.shape)
        after = jacobian - moved
        return residuals - _LR * ((jacobian + after) / 2 @ gradient)

    def agree(ours: object, peer: object) -> bool:
        return _close(1e-12)(problem.residuals(ours)[:, 0], peer)  # type: ignore[arg-type]

    return Contest(
        lambda: theta - _LR * problem.gradient(theta, batch), _fastest([whole, by_rows]), agree
    )


WORKLOADS = (
    Workload(
        "quadratic", "n 200, P 300, all", "best dense NumPy", 0.75, 20, lambda: _full("float64")
    ),
    Workload(
        "quadratic-float32",
        "n 200, P 300, all",
        "best dense NumPy, float64",
        0.6,
        20,
        lambda: _full("float32"),
    ),
    Workload("quadratic-batch", "n 200, P 300, B 10", "best NumPy on 10 rows", 1.1, 20, _rows),
    Workload("quadratic-closed", "n 200, P 300, B 10", "best NumPy on (z, J)", 0.05, 20, _closed),
)
