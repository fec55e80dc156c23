"""Workloads of mean-square stability: exact thresholds, covariance steps, long horizons."""

from __future__ import annotations

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from eosim.moments import Covariance, DiagonalClosure, Energies
from eosim.sampling import noise_factor
from eosim.stability import TangentKernel, critical_lr, generalised_sharpness
from tests.benchmarks import Contest, Workload


def _jacobian(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 2 * n))


def _same(relative: float):
    return lambda ours, peer: abs(ours / peer - 1) < relative


def _arpack() -> Contest:
    """The exact threshold at n = 200 against ARPACK on second moments, 40,000 numbers."""
    n, size = 200, 10
    kernel = TangentKernel.from_jacobian(_jacobian(n))
    lam, V = kernel.eigenvalues, kernel.vectors()
    kappa = noise_factor(n, size)
    root = np.sqrt((lam[:, None] + lam) / 2)

    def product(flat: np.ndarray) -> np.ndarray:
        Y = flat.reshape(n, n) / root
        spread = np.sqrt(lam)[:, None] * Y * np.sqrt(lam)
        inner = np.einsum("ia,ia->i", V @ spread, V)
        noisy = np.sqrt(lam)[:, None] * ((V.T * inner) @ V) * np.sqrt(lam)
        return (((1 - kappa) * lam[:, None] * Y * lam + kappa * n * noisy) / root).ravel()

    operator = LinearOperator((n * n, n * n), matvec=product, dtype=np.dtype(float))

    def peer() -> float:
        return 2 / float(eigsh(operator, k=1, which="LA", tol=1e-10)[0][0])

    return Contest(lambda: critical_lr(kernel, size), peer, _same(1e-8))


def _in_products(n: int) -> Contest:
    """The exact threshold in units of one matrix product of its size."""
    kernel = TangentKernel.from_jacobian(_jacobian(n))
    matrix = np.random.default_rng(1).standard_normal((n, n))
    expected = 2 / generalised_sharpness(kernel, 10)

    def agree(ours: object, peer: object) -> bool:
        return abs(ours / expected - 1) < 1e-9  # type: ignore[operator]

    return Contest(lambda: critical_lr(kernel, 10), lambda: matrix @ matrix, agree)


def _covariance(n: int) -> Contest:
    """A step of the exact covariance against the two matrix products that it cannot avoid."""
    kernel = TangentKernel.from_jacobian(_jacobian(n))
    model = Covariance(kernel, 0.5 * critical_lr(kernel, 10), 10)
    moments = model.step(model.start(np.ones(n)))
    pull, S = model.lr * kernel.matrix, moments.residual
    kept, noise = 1 - noise_factor(n, 10), noise_factor(n, 10)

    def peer() -> np.ndarray:
        pulled = S @ pull
        inner = kept * pulled
        inner += (noise * n * np.diag(S))[:, None] * pull
        result = pull @ inner
        result += S
        result -= pulled
        result -= pulled.T
        return result

    return Contest(
        lambda: model.step(moments).residual,
        peer,
        lambda ours, theirs: bool(np.allclose(ours, theirs, rtol=1e-9, atol=1e-12)),
    )


def _horizon() -> Contest:
    """A log-spaced loss curve to a million steps against the recursion of the modes."""
    n = 300
    spectrum = 1.0 / np.arange(1, n + 1) ** 1.2
    model = DiagonalClosure(spectrum, 0.5, 10, "finite")
    start = Energies(np.ones(n))
    steps = np.unique(np.geomspace(1, 20_000, 40).astype(int))

    def ours() -> np.ndarray:
        return np.array([row["loss"] for row in model.march(start, np.append(steps, 10**6))])[:-1]

    def peer() -> np.ndarray:
        x = model.lr * model.kernel.eigenvalues
        kappa = noise_factor(n, 10)
        decay, feed = (1 - x) ** 2 - kappa * x**2, kappa * x**2
        p, losses, now = np.ones(n), [], 0
        for step in steps:
            for _ in range(now, step):
                p = decay * p + feed * p.sum()
            now = step
            losses.append(p.sum() / (2 * n))
        return np.array(losses)

    return Contest(ours, peer, lambda a, b: bool(np.allclose(a, b, rtol=1e-9)))


WORKLOADS = (
    Workload("threshold", "n 200, B 10", "ARPACK on n^2 vectors", 0.5, 5, _arpack),
    Workload(
        "threshold-1000", "n 1000, B 10", "one matrix product", 90, 3, lambda: _in_products(1000)
    ),
    Workload("covariance", "n 500", "its matrix products", 1.3, 10, lambda: _covariance(500)),
    Workload("horizon", "n 300, to 1e6 steps", "recursion to 2e4", 0.5, 5, _horizon),
)
