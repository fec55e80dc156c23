"""Workloads of SGD ensembles: `eosim.ensemble.run_ensemble` against NumPy, JAX and PyTorch.

The peers do what an expert writes for a linear model: residual space with K = J J^T, all random
numbers drawn in blocks, the loss at the same steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import numpy as np

import eosim
from eosim.ensemble import run_ensemble
from eosim.ensemble.linear import LinearEnsemble
from tests.benchmarks import Call, Contest, Workload, installed
from tests.benchmarks.machine import product, reading

_EVERY, _REPLICAS = 10, 16


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


def _jax_peer(K, starts, lr, size, n_steps, generator):
    """All replicas in one compiled loop over the same blocks of batches."""
    import jax

    blocks = _distinct(generator, n_steps * len(starts), len(K), size)
    blocks = blocks.reshape(n_steps // _EVERY, _EVERY, len(starts), size)
    return np.asarray(_jax_program()(jax.numpy.asarray(K), starts, lr / size, blocks))


@cache
def _jax_program():
    import jax
    import jax.numpy as jnp

    @jax.jit
    def program(K, starts, h, blocks):
        def loss(Z):
            return (Z * Z).sum(axis=1) / (2 * len(K))

        def step(Z, batch):
            weights = h * jnp.take_along_axis(Z, batch, axis=1)
            return Z - jnp.einsum("mb,mbn->mn", weights, K[batch]), None

        def block(Z, batches):
            Z, _ = jax.lax.scan(step, Z, batches)
            return Z, loss(Z)

        _, losses = jax.lax.scan(block, starts, blocks)
        return jnp.concatenate([loss(starts)[:, None], losses.T], axis=1)

    return program


def _torch_peer(K, starts, lr, size, n_steps, generator):
    """All replicas in one step: gathered rows and one batched product."""
    import torch

    n, h, m = len(K), lr / size, len(starts)
    K, Z = torch.from_numpy(K), torch.from_numpy(starts.copy())
    losses = np.empty((m, n_steps // _EVERY + 1))
    losses[:, 0] = (Z * Z).sum(1).numpy() / (2 * n)
    batches = torch.from_numpy(_distinct(generator, n_steps * m, n, size))
    with torch.inference_mode():
        for step, batch in enumerate(batches.reshape(n_steps, m, size), 1):
            weights = Z.gather(1, batch).mul_(-h)
            rows = K.index_select(0, batch.ravel()).view(m, size, n)
            Z = torch.baddbmm(Z[:, None], weights[:, None], rows)[:, 0]
            if step % _EVERY == 0:
                losses[:, step // _EVERY] = (Z * Z).sum(1).numpy() / (2 * n)
    return losses


def _setting(n: int, d: int, size: int):
    """A problem, the 16 starts, and a rate at half the edge of the trace."""
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((n, d))
    problem = eosim.LinearRegression(inputs, generator.standard_normal(n))
    thetas = generator.standard_normal((_REPLICAS, d)) / np.sqrt(d)
    largest = np.linalg.eigvalsh(inputs @ inputs.T)[-1] / n
    kappa = (n - size) / (size * max(n - 1, 1))
    return problem, thetas, 1.0 / (largest + kappa * np.sum(inputs**2) / n)


def _agreeing(size: int, n: int) -> Callable[[np.ndarray, np.ndarray], bool]:
    """Other draws, hence in the mean of the logarithm: within 5 standard errors at every step."""

    def agree(ours: np.ndarray, peer: np.ndarray) -> bool:
        logarithms = np.log(ours), np.log(peer)
        gap = np.abs(logarithms[0].mean(axis=0) - logarithms[1].mean(axis=0))
        if size == n:
            return bool(np.abs(logarithms[0] - logarithms[1]).max() < 1e-9)
        spread = [x.std(axis=0, ddof=1) / np.sqrt(len(x)) for x in logarithms]
        return bool((gap[1:] < 5 * np.hypot(*spread)[1:]).all())

    return agree


def _contest(n: int, d: int, size: int, n_steps: int) -> Contest:
    """16 replicas with a start each; all sides form K, and record every 10 steps.

    Peers that are slow per step are known by a short run, and do not play the long one.
    """
    problem, thetas, lr = _setting(n, d, size)
    inputs, targets = problem.inputs, problem.targets[:, 0]

    def play(peer: Callable[..., np.ndarray], steps: int) -> np.ndarray:
        starts = thetas @ inputs.T - targets
        return peer(inputs @ inputs.T, starts, lr, size, steps, np.random.default_rng(1))

    def seconds_per_step(name: str) -> float:
        times = []
        for steps in (_EVERY, 5 * _EVERY):
            play(peers[name], steps)
            started = time.process_time()
            play(peers[name], steps)
            times.append(time.process_time() - started)
        return times[1] - times[0]

    names = {
        "NumPy, one by one": _one_by_one,
        "NumPy, masked product": _masked,
        "NumPy, powers of eigenvalues": _modes if size == n else None,
        "NumPy, gathered rows": _together if size <= 10 else None,
        "JAX": _jax_peer if size <= 10 and installed("jax") else None,
        "PyTorch": _torch_peer if size <= 10 and installed("torch") else None,
    }
    peers = {name: peer for name, peer in names.items() if peer is not None}
    best = min(peers, key=seconds_per_step)
    missing = {
        name: None
        for name, module in (("JAX", "jax"), ("PyTorch", "torch"))
        if not installed(module)
    }
    return Contest(
        lambda: _run(problem, [lr], thetas, n_steps, size, threads=1)[0],
        {best: lambda: play(peers[best], n_steps), **missing},
        _agreeing(size, n),
        None if size == n else lambda: reading(8.0 * n * size * n_steps * _REPLICAS, (n, n)),
    )


def _run(problem, lrs, thetas, n_steps, size, **options) -> np.ndarray:
    """Losses (rate, replica, record)."""
    rules = [eosim.GradientDescent(lr) for lr in lrs]
    return run_ensemble(
        problem, rules, thetas, n_steps, batch_sizes=size, n_replicas=len(thetas), seed=0,
        every=_EVERY, **options,
    )["loss"][:, 0]  # fmt: skip


def _shared(n: int, d: int, size: int, n_steps: int) -> Contest:
    """16 rates that meet the same batches, together and one rate after the other; K is there."""
    problem, thetas, lr = _setting(n, d, size)
    lrs, thetas = lr * np.geomspace(0.1, 1, 16), thetas[:2]
    steps = np.arange(0, n_steps + 1, _EVERY)
    keys = np.random.default_rng(1).integers(0, 2**63, (2, 2)).astype(np.uint64)
    runs = LinearEnsemble(
        problem, thetas, None, 2, steps, "without_replacement", (), threads=1, storage="float64"
    )

    def together() -> np.ndarray:
        return np.array([cell.records["loss"] for cell in runs.residual_shared(lrs, size, keys)])

    def separately() -> np.ndarray:
        rules = [(x, 0.0, 0.0, 1.0, 0.0) for x in lrs]
        return np.array([runs.residual(rule, size, keys).records["loss"] for rule in rules])

    return Contest(
        together,
        {"eosim, rate by rate": separately},
        np.array_equal,
        None if size == 1 else lambda: product(16, size, n) * n_steps * len(thetas),
    )


def _stored(n: int, d: int, size: int, n_steps: int) -> Contest:
    """K as float32 against K as float64."""
    problem, thetas, lr = _setting(n, d, size)

    def call(storage: str) -> Call:
        return lambda: _run(
            problem, [lr], thetas, n_steps, size, storage=storage, method="residual", threads=1
        )

    def agree(ours: np.ndarray, peer: np.ndarray) -> bool:
        return bool(np.abs(ours / peer - 1).max() < 1e-5)

    return Contest(call("float32"), {"eosim, K as float64": call("float64")}, agree)


def _converged(n: int, d: int, size: int) -> Contest:
    """1000 steps of a run that has converged to 0 against its first 1000 steps."""
    problem, thetas, lr = _setting(n, d, size)
    zeros = np.zeros((_REPLICAS, n))
    # 3e-308 is subnormal once it is multiplied by a rate: where a converged run would stay without care.
    residuals = {"late": zeros + 3e-308, "early": thetas @ problem.inputs.T - problem.targets[:, 0]}

    def call(which: str) -> Call:
        return lambda: run_ensemble(
            problem, eosim.GradientDescent(lr), None, 1000, residuals0=residuals[which],
            batch_sizes=size, n_replicas=_REPLICAS, seed=0, every=_EVERY, threads=1,
        )["loss"]  # fmt: skip

    return Contest(call("late"), {"its first 1000 steps": call("early")}, lambda *_: True)


WORKLOADS = (
    Workload("sgd-1000-1", "n 1000, d 2000, B 1", 22, lambda: _contest(1000, 2000, 1, 60_000)),
    Workload("sgd-1000-10", "n 1000, d 2000, B 10", 5.5, lambda: _contest(1000, 2000, 10, 10_000)),
    Workload("sgd-200-10", "n 200, d 400, B 10", 14, lambda: _contest(200, 400, 10, 4000)),
    Workload("sgd-1000-100", "n 1000, d 2000, B 100", 0.87, lambda: _contest(1000, 2000, 100, 400)),
    Workload("sgd-1000-300", "n 1000, d 2000, B 300", 0.87, lambda: _contest(1000, 2000, 300, 200)),
    Workload("sgd-1000-500", "n 1000, d 2000, B 500", 0.87, lambda: _contest(1000, 2000, 500, 200)),
    Workload(
        "sgd-1000-1000", "n 1000, d 2000, B 1000", 0.87, lambda: _contest(1000, 2000, 1000, 1000)
    ),
    Workload("sgd-shared-1", "n 1000, B 1, 16 rates", 1.5, lambda: _shared(1000, 2000, 1, 4000)),
    Workload(
        "sgd-shared-100", "n 1000, B 100, 16 rates", 3.5, lambda: _shared(1000, 2000, 100, 200)
    ),
    Workload("sgd-float32", "n 4000, B 10", 1.3, lambda: _stored(4000, 100, 10, 1000)),
    Workload(
        "sgd-converged", "n 200, d 400, B 10", 0.67, lambda: _converged(200, 400, 10), price=True
    ),
)
