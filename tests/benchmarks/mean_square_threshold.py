"""Mean-square stability: exact thresholds, and exact covariances through time."""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

import numpy as np
from scipy.optimize import brentq, root_scalar
from scipy.sparse.linalg import LinearOperator, eigsh

from eosim.moments import Covariance
from eosim.sampling import batch_moments
from eosim.stability import TangentKernel, critical_lr, generalised_sharpness
from eosim.stability._noise_kernel import HalfProducts
from tests.benchmarks import Budget, Call, Contest, Workload, installed
from tests.benchmarks.machine import product

_BATCH_SIZE = 10
# Of ARPACK: errors of eigenvalues are the square of it.
_TOLERANCE = 1e-10


def _kernel(n: int) -> TangentKernel:
    return TangentKernel.from_jacobian(np.random.default_rng(0).standard_normal((n, 2 * n)))


def _same(ours: Any, peer: Any) -> bool:
    return bool(abs(ours / peer - 1) < 1e-8)


def _at_threshold(kernel: TangentKernel) -> Call:
    """One eigenvalue problem on n^2 numbers: the generalised sharpness, made symmetric."""
    n, lam, V = kernel.n_samples, kernel.eigenvalues, kernel.vectors()
    kept, noise = batch_moments(n, _BATCH_SIZE, "without_replacement")
    half = np.sqrt((lam[:, None] + lam) / 2)
    root = np.sqrt(lam[:, None] * lam)

    def times(flat: np.ndarray) -> np.ndarray:
        Y = flat.reshape(n, n) / half
        inner = np.einsum("ia,ia->i", V @ (root * Y), V)
        noisy = root * ((V.T * inner) @ V)
        return ((kept * lam[:, None] * Y * lam + noise * n * noisy) / half).ravel()

    operator = LinearOperator((n * n, n * n), matvec=times, dtype=np.dtype(float))

    def peer() -> float:
        return 2 / float(eigsh(operator, k=1, which="LA", tol=_TOLERANCE)[0][0])

    return peer


def _search(kernel: TangentKernel, method: str) -> Call:
    """The rate at which the largest eigenvalue of the step of second moments, on n^2 numbers, is 1.

    The step in the eigenbasis is symmetric in Y, S_ab = sqrt(lambda_a lambda_b) Y_ab; each search for an
    eigenvector starts from the last one.
    """
    n, lam, V = kernel.n_samples, kernel.eigenvalues, kernel.vectors()
    kept, noise = batch_moments(n, _BATCH_SIZE, "without_replacement")
    root = np.sqrt(lam[:, None] * lam)
    bound = 2 / (noise * kernel.trace)

    def peer() -> float:
        guess = [np.eye(n).ravel()]

        def excess(lr: float) -> float:
            x = lr * lam
            drift = 1 - x[:, None] - x + kept * x[:, None] * x
            made = noise * n * lr**2 * root

            def times(flat: np.ndarray) -> np.ndarray:
                Y = flat.reshape(n, n)
                inner = np.einsum("ia,ia->i", V @ (root * Y), V)
                return (drift * Y + made * ((V.T * inner) @ V)).ravel()

            operator = LinearOperator((n * n, n * n), matvec=times, dtype=np.dtype(float))
            values, vectors = eigsh(operator, k=1, which="LA", tol=_TOLERANCE, v0=guess[0])
            guess[0] = vectors[:, 0]
            return float(values[0]) - 1

        if method == "brentq":
            return float(brentq(excess, bound / 2, bound, xtol=1e-300, rtol=1e-9))
        return float(root_scalar(excess, x0=bound, x1=0.95 * bound, rtol=1e-9).root)

    return peer


def _threshold(name: str) -> Contest:
    """The exact threshold at n = 200 against ARPACK on second moments, 40,000 numbers."""
    kernel = _kernel(200)
    peer = _at_threshold(kernel) if name == "at it" else _search(kernel, name)
    return Contest(
        lambda: critical_lr(kernel, _BATCH_SIZE),
        {f"ARPACK, {name}": peer},
        _same,
        lambda: _spent(kernel) * product(200, 200, 200),
    )


def _in_products(n: int) -> Contest:
    """The exact threshold in units of one matrix product of its size."""
    kernel = _kernel(n)
    matrix = np.random.default_rng(1).standard_normal((n, n))
    expected = 2 / generalised_sharpness(kernel, _BATCH_SIZE)
    return Contest(
        lambda: critical_lr(kernel, _BATCH_SIZE),
        {"one matrix product": lambda: matrix @ matrix},
        lambda ours, peer: _same(ours, expected),
        lambda: _spent(kernel) * product(n, n, n),
    )


def _spent(kernel: TangentKernel) -> float:
    """How many matrix products the search for the threshold takes; each step of it takes two halves."""
    halves = []

    def counted(call: Any) -> Any:
        return lambda *arguments: (halves.append(1), call(*arguments))[1]

    with (
        mock.patch.object(HalfProducts, "sandwich", counted(HalfProducts.sandwich)),
        mock.patch.object(HalfProducts, "_times", counted(HalfProducts._times)),
    ):
        critical_lr(kernel, _BATCH_SIZE)
    return len(halves) / 2


_STEPS = 20


def _model(n: int) -> Covariance:
    kernel = _kernel(n)
    return Covariance(kernel, 0.5 * critical_lr(kernel, _BATCH_SIZE), _BATCH_SIZE)


def _covariance(n: int) -> Contest:
    """Expected losses by the exact covariance; the peers spend two matrix products a step."""
    model = _model(n)
    K = model.lr * model.kernel.matrix
    kept, noise = batch_moments(n, _BATCH_SIZE, "without_replacement")
    start = np.ones((n, n))

    def numpy_peer() -> np.ndarray:
        S, found = start.copy(), []
        pulled, inner, noisy = np.empty((3, n, n))
        for _ in range(_STEPS):
            np.matmul(S, K, out=pulled)
            np.multiply((noise * n * np.diag(S))[:, None], K, out=inner)
            inner += np.multiply(pulled, kept, out=noisy)
            np.matmul(K, inner, out=noisy)
            S += noisy
            S -= pulled
            S -= pulled.T
            found.append(np.trace(S) / (2 * n))
        return np.array(found)

    return Contest(
        lambda: np.array(
            [row["loss"] for row in model.march(np.ones(n), np.arange(1, _STEPS + 1))]
        ),
        {
            "NumPy": numpy_peer,
            "JAX": _jax_covariance(K, kept, noise) if installed("jax") else None,
            "PyTorch": _torch_covariance(K, kept, noise) if installed("torch") else None,
        },
        lambda ours, peer: bool(np.allclose(ours, peer, rtol=1e-10, atol=0)),
        lambda: _STEPS * product(n, n, n),
    )


def _jax_covariance(K: np.ndarray, kept: float, noise: float) -> Call:
    import jax
    import jax.numpy as jnp

    n, pull = len(K), jnp.asarray(K)

    def step(S: Any, _: None) -> tuple[Any, Any]:
        pulled = S @ pull
        noisy = pull @ (kept * pulled + (noise * n * jnp.diag(S))[:, None] * pull)
        S = S - pulled - pulled.T + noisy
        return S, jnp.trace(S) / (2 * n)

    march = jax.jit(lambda S: jax.lax.scan(step, S, None, length=_STEPS)[1])
    start = jnp.ones((n, n))
    return lambda: np.asarray(march(start).block_until_ready())


def _torch_covariance(K: np.ndarray, kept: float, noise: float) -> Call:
    import torch

    torch.set_num_threads(1)
    n, pull = len(K), torch.from_numpy(K)

    def peer() -> np.ndarray:
        S, found = torch.ones((n, n), dtype=torch.float64), []
        for _ in range(_STEPS):
            pulled = S @ pull
            inner = (noise * n * torch.diagonal(S))[:, None] * pull
            inner.add_(pulled, alpha=kept)
            S = torch.addmm(S, pull, inner).sub_(pulled).sub_(pulled.T)
            found.append(float(torch.trace(S)) / (2 * n))
        return np.array(found)

    return peer


def _long(n: int, n_steps: int) -> float:
    """A covariance step by step: symmetric, and its trace decreasing, throughout."""
    model = _model(n)
    moments = model.start(np.ones(n))
    started, last = time.process_time(), np.inf
    for step in range(n_steps):
        moments = model.step(moments)
        if step % 100 == 99:
            S, total = moments.residual, float(np.trace(moments.residual))
            if not (np.array_equal(S, S.T) and 0 < total < last):
                raise AssertionError(f"not a decreasing second moment after {step + 1} steps")
            last = total
    return time.process_time() - started


WORKLOADS = (
    Workload("threshold", "n 200, B 10", 5, lambda: _threshold("at it"), 5),
    Workload("threshold-secant", "n 200, B 10", 30, lambda: _threshold("secant"), 5),
    Workload("threshold-bracket", "n 200, B 10", 100, lambda: _threshold("brentq"), 5),
    Workload("threshold-1000", "n 1000, B 10", 1 / 90, lambda: _in_products(1000), 5, price=True),
    Workload("covariance", f"n 500, {_STEPS} steps", 0.87, lambda: _covariance(500), 7),
    Budget("covariance-long", "n 500, 10^4 steps, checked", 240, lambda: _long(500, 10_000)),
)
