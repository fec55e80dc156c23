"""Workloads of SGD ensembles: `eosim.ensemble.run_ensemble` against the best of four NumPy programs.

The peers do what an expert writes for a linear model in NumPy: residual space with K = J J^T, all
random numbers drawn in blocks, the loss at the same steps. ``numpy`` names the fastest of them at
that size; the program that takes one replica after the other is a contest of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

import eosim
from eosim.ensemble import run_ensemble
from tests.benchmarks import Contest, Workload

_EVERY = 10


def _distinct(generator: np.random.Generator, rows: int, n: int, size: int) -> np.ndarray:
    """Rows of ``size`` distinct indices: by rejection where that is rare, else by partial sorting."""
    if size * size > 2 * n:
        return np.argpartition(generator.random((rows, n)), size - 1, axis=1)[:, :size]
    batch = generator.integers(n, size=(rows, size))
    while True:
        ordered = np.sort(batch, axis=1)
        repeated = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
        if len(repeated) == 0:
            return batch
        batch[repeated] = generator.integers(n, size=(len(repeated), size))


def _one_by_one(K, starts, lr, size, n_steps, generator):
    """One replica after the other; the loss costs a product of its own."""
    n, h = len(K), lr / size
    losses = np.empty((len(starts), n_steps // _EVERY + 1))
    for r, start in enumerate(starts):
        z = start.copy()
        losses[r, 0] = z @ z / (2 * n)
        batches = _distinct(generator, n_steps, n, size)
        if size == 1:
            for step, i in enumerate(batches[:, 0].tolist(), 1):
                z -= (h * z[i]) * K[i]
                if step % _EVERY == 0:
                    losses[r, step // _EVERY] = z @ z / (2 * n)
        else:
            for step, batch in enumerate(batches, 1):
                z -= (h * z[batch]) @ K[batch]
                if step % _EVERY == 0:
                    losses[r, step // _EVERY] = z @ z / (2 * n)
    return losses


def _together(K, starts, lr, size, n_steps, generator):
    """All replicas in one step: gathered rows of K and one product per replica."""
    n, h, m = len(K), lr / size, len(starts)
    Z, rows = starts.copy(), np.empty((m, size, n))
    losses = np.empty((m, n_steps // _EVERY + 1))
    losses[:, 0] = np.einsum("ij,ij->i", Z, Z) / (2 * n)
    batches = _distinct(generator, n_steps * m, n, size).reshape(n_steps, m, size)
    for step, batch in enumerate(batches, 1):
        weights = h * np.take_along_axis(Z, batch, axis=1)
        np.take(K, batch, axis=0, out=rows, mode="clip")
        if size == 1:
            rows[:, 0] *= weights
            Z -= rows[:, 0]
        else:
            Z -= np.matmul(weights[:, None], rows)[:, 0]
        if step % _EVERY == 0:
            losses[:, step // _EVERY] = np.einsum("ij,ij->i", Z, Z) / (2 * n)
    return losses


def _masked(K, starts, lr, size, n_steps, generator):
    """All replicas in one step: a product of masked residuals with all of K."""
    n, h, m = len(K), lr / size, len(starts)
    Z, moves = starts.copy(), np.empty_like(starts)
    losses = np.empty((m, n_steps // _EVERY + 1))
    losses[:, 0] = np.einsum("ij,ij->i", Z, Z) / (2 * n)
    for step in range(1, n_steps + 1):
        weights = h * Z
        if size < n:
            weights = np.zeros_like(Z)
            batch = _distinct(generator, m, n, size)
            np.put_along_axis(weights, batch, h * np.take_along_axis(Z, batch, axis=1), axis=1)
        np.matmul(weights, K, out=moves)
        Z -= moves
        if step % _EVERY == 0:
            losses[:, step // _EVERY] = np.einsum("ij,ij->i", Z, Z) / (2 * n)
    return losses


def _modes(K, starts, lr, size, n_steps, generator):
    """All samples: powers of the eigenvalues."""
    n = len(K)
    values, vectors = np.linalg.eigh(K)
    components = (starts @ vectors) ** 2
    steps = np.arange(0, n_steps + 1, _EVERY)
    return components @ (1 - lr * values[:, None] / n) ** (2 * steps) / (2 * n)


def _contest(
    n: int, d: int, size: int, n_steps: int, peers: tuple[Callable[..., np.ndarray], ...]
) -> Contest:
    """16 replicas with a start each; both sides form K, and both record every 10 steps."""
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((n, d))
    problem = eosim.LinearRegression(inputs, generator.standard_normal(n))
    thetas = generator.standard_normal((16, d)) / np.sqrt(d)
    targets = problem.targets[:, 0]
    largest = np.linalg.eigvalsh(inputs @ inputs.T)[-1] / n
    kappa = (n - size) / (size * (n - 1))
    lr = 1.0 / (largest + kappa * np.sum(inputs**2) / n)
    rule = eosim.GradientDescent(lr)

    def ours() -> np.ndarray:
        return run_ensemble(
            problem, rule, thetas, n_steps, batch_sizes=size, n_replicas=16, seed=0, every=_EVERY
        )["loss"][0, 0]

    def play(peer: Callable[..., np.ndarray], steps: int) -> np.ndarray:
        starts = thetas @ inputs.T - targets
        return peer(inputs @ inputs.T, starts, lr, size, steps, np.random.default_rng(1))

    def timed(peer: Callable[..., np.ndarray], steps: int) -> float:
        started = time.process_time()
        play(peer, steps)
        return time.process_time() - started

    for peer in peers:  # warm
        timed(peer, 10)
    fastest = min(peers, key=lambda peer: timed(peer, n_steps))

    def theirs() -> np.ndarray:
        return play(fastest, n_steps)

    def agree(ours: object, peer: object) -> bool:
        """Other draws, hence in the mean of the logarithm: within 5 standard errors at every step."""
        logarithms = np.log(ours), np.log(peer)  # type: ignore[arg-type]
        gap = np.abs(logarithms[0].mean(axis=0) - logarithms[1].mean(axis=0))
        if size == n:
            return bool(np.abs(logarithms[0] - logarithms[1]).max() < 1e-9)
        spread = [x.std(axis=0, ddof=1) / 4 for x in logarithms]
        return bool((gap[1:] < 5 * np.hypot(*spread)[1:]).all())

    return Contest(ours, theirs, agree)


_BEST = "best of NumPy"
_ALONE = "NumPy, replica by replica"
_SMALL, _LARGE = (_one_by_one, _together, _masked), (_one_by_one, _masked)


def _workload(n, d, size, n_steps, goal, *, alone=False) -> Workload:
    peers = _SMALL if size <= 10 else _LARGE if size < n else (_masked, _modes)
    if alone:
        peers = (_one_by_one,)
    name = f"sgd-{n}-{size}" + ("-alone" if alone else "")
    return Workload(
        name, f"n {n}, d {d}, B {size}", _ALONE if alone else _BEST, goal, 7,
        lambda: _contest(n, d, size, n_steps, peers),
    )  # fmt: skip


WORKLOADS = (
    _workload(1000, 2000, 1, 60_000, 0.25),
    _workload(1000, 2000, 1, 60_000, 0.2, alone=True),
    _workload(1000, 2000, 10, 10_000, 0.38),
    _workload(1000, 2000, 10, 10_000, 0.28, alone=True),
    _workload(200, 400, 10, 4000, 0.28),
    _workload(200, 400, 10, 4000, 0.12, alone=True),
    _workload(1000, 2000, 100, 400, 0.42),
    _workload(1000, 2000, 300, 200, 0.75),
    _workload(1000, 2000, 1000, 1000, 1.15),
)
