"""Workloads of quadratic regression: Q packed as triangles against dense NumPy, JAX and PyTorch.

All sides keep Q in their own form beforehand, and all form the products Q_a theta only, which give
values and gradients alike. Mini-batches differ from step to step, as in a run: matrices come from
main memory unless all of Q is in cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

import eosim
from eosim.ensemble import run_ensemble
from eosim.problems.quadratic_regression import QuadraticRegression, random_quadratic_regression
from eosim.sampling import BatchStream, stream_key
from eosim.sharpening import closed_step
from tests.benchmarks import Call, Contest, Workload, close, installed, machine

_N, _DIM, _LR, _BATCH = 200, 300, 0.1, 10
_BATCH_STEPS, _REPLICA_STEPS, _DRAWN_STEPS = 20, 5, 30


def _model(dtype: str = "float64") -> QuadraticRegression:
    return random_quadratic_regression(_N, _DIM, 0.02, ntk_max=1.0, dtype=dtype)


def _dense(problem: QuadraticRegression) -> np.ndarray:
    """Q as NumPy takes it, (n, P, P)."""
    rows, columns = np.tril_indices(problem.dim)
    tensor = np.empty((problem.n_samples, problem.dim, problem.dim))
    tensor[:, rows, columns] = tensor[:, columns, rows] = problem.tensor
    return tensor


def _data(problem: QuadraticRegression) -> tuple[np.ndarray, np.ndarray]:
    """z(0) and J(0)."""
    return problem.initial_residuals, problem.initial_jacobian


def _point(size: float) -> np.ndarray:
    return size * np.random.default_rng(1).standard_normal(_DIM)


def _batches(n_steps: int) -> np.ndarray:
    generator = np.random.default_rng(2)
    return np.array([generator.permutation(_N)[:_BATCH] for _ in range(n_steps)])


def _reading(arrays: list[np.ndarray]) -> Callable[[], float]:
    """CPU seconds in which BLAS reads these arrays, each once: the least of many times."""

    def seconds() -> float:
        times = []
        for _ in range(20):
            started = time.process_time()
            for array in arrays:
                array @ array
            times.append(time.process_time() - started)
        return min(times)

    return seconds


def _gradient(residuals, jacobian, moved, theta):
    """From z(0), J(0) and the products Q_a theta of some samples."""
    errors = residuals + (jacobian + moved / 2) @ theta
    return errors @ (jacobian + moved) / len(residuals)


# --- all samples ---------------------------------------------------------------------------------


def _full(dtype: str) -> Contest:
    """A gradient on all samples; the peers store Q in float64."""
    problem, exact = _model(dtype), _model()
    z, J, theta, Q = *_data(exact), _point(1.0), _dense(exact)
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    flat = Q.reshape(-1, _DIM)
    peers: dict[str, Call | None] = {
        "NumPy, one product": lambda: _gradient(z, J, (flat @ theta).reshape(J.shape), theta),
        "NumPy, products": lambda: _gradient(z, J, Q @ theta, theta),
        "NumPy, einsum": lambda: _gradient(z, J, np.einsum("ajk,k->aj", Q, theta), theta),
        "JAX": _jax_full(z, J, Q, theta) if installed("jax") else None,
        "PyTorch": _torch_full(z, J, Q, theta) if installed("torch") else None,
    }
    limit = _reading([problem.tensor.ravel()])
    return Contest(lambda: problem.gradient(theta), peers, close(tolerance), limit)


def _jax_full(z, J, Q, theta) -> Call:
    import jax

    gradient = jax.jit(lambda z, J, Q, theta: _gradient(z, J, Q @ theta, theta))
    arrays = [jax.numpy.asarray(array) for array in (z, J, Q, theta)]
    return lambda: np.asarray(gradient(*arrays).block_until_ready())


def _torch_full(z, J, Q, theta) -> Call:
    import torch

    torch.set_num_threads(1)
    z, J, Q, theta = (torch.tensor(array) for array in (z, J, Q, theta))
    flat = Q.reshape(-1, _DIM)
    return lambda: _gradient(z, J, (flat @ theta).reshape(J.shape), theta).numpy()


# --- mini-batches --------------------------------------------------------------------------------


def _steps(gradient: Callable[[np.ndarray, np.ndarray], np.ndarray], theta, batches) -> np.ndarray:
    for batch in batches:
        theta = theta - _LR * gradient(theta, batch)
    return theta


def _rows(*, only: str | None = None) -> Contest:
    """Steps of SGD on ten samples each; all peers read the matrices of these samples alone."""
    problem = _model()
    z, J, Q = *_data(problem), _dense(problem)
    start, batches = _point(0.01), _batches(_BATCH_STEPS)
    rows, moved = np.empty((_BATCH, _DIM, _DIM)), np.empty((_BATCH, _DIM))

    def gathered(theta, batch):
        return _gradient(z[batch], J[batch], Q[batch] @ theta, theta)

    def reused(theta, batch):
        """Into memory that is kept, then one product."""
        np.take(Q, batch, axis=0, out=rows, mode="clip")
        np.matmul(rows.reshape(-1, _DIM), theta, out=moved.reshape(-1))
        return _gradient(z[batch], J[batch], moved, theta)

    def one_by_one(theta, batch):
        for row, sample in zip(moved, batch, strict=True):
            np.matmul(Q[sample], theta, out=row)
        return _gradient(z[batch], J[batch], moved, theta)

    peers: dict[str, Call | None] = {
        "NumPy, Q[batch] @ theta": lambda: _steps(gathered, start, batches),
        "NumPy, rows kept": lambda: _steps(reused, start, batches),
        "NumPy, row by row": lambda: _steps(one_by_one, start, batches),
        "JAX": _jax_rows(z, J, Q, start, batches) if installed("jax") else None,
        "PyTorch": _torch_rows(z, J, Q, start, batches) if installed("torch") else None,
    }
    if only is not None:
        peers = {only: peers[only]}
    limit = _reading([problem.tensor[a] for batch in batches for a in batch])
    return Contest(lambda: _steps(problem.gradient, start, batches), peers, close(1e-12), limit)


def _jax_rows(z, J, Q, start, batches) -> Call:
    import jax

    @jax.jit
    def descend(z, J, Q, theta, batches):
        def step(theta, batch):
            return theta - _LR * _gradient(z[batch], J[batch], Q[batch] @ theta, theta), None

        return jax.lax.scan(step, theta, batches)[0]

    arrays = [jax.numpy.asarray(array) for array in (z, J, Q, start, batches)]
    return lambda: np.asarray(descend(*arrays).block_until_ready())


def _torch_rows(z, J, Q, start, batches) -> Call:
    import torch

    torch.set_num_threads(1)
    z, J, Q, start, batches = (torch.tensor(array) for array in (z, J, Q, start, batches))

    def gradient(theta, batch):
        moved = torch.stack([Q[sample] @ theta for sample in batch.tolist()])
        return _gradient(z[batch], J[batch], moved, theta)

    return lambda: _steps(gradient, start, batches).numpy()


def _closed() -> Contest:
    """Steps of ten samples on theta against steps on (z, J), which move the rows of all samples."""
    problem = _model()
    theta, Q, batches = _point(0.01), _dense(problem), _batches(2)
    residuals, jacobian = problem.residuals(theta)[:, 0], problem.jacobian(theta)[:, 0]
    flat = Q.reshape(-1, _DIM)

    def contracted() -> np.ndarray:
        z, J = residuals, jacobian
        for batch in batches:
            weights = np.zeros(_N)
            weights[batch] = 1 / _BATCH
            z, J = closed_step(z, J, Q, weights, _LR)
        return z

    def one_product() -> np.ndarray:
        z, J = residuals, jacobian
        for batch in batches:
            gradient = z[batch] @ J[batch] / _BATCH
            after = J - _LR * (flat @ gradient).reshape(J.shape)
            z, J = z - _LR * ((J + after) / 2 @ gradient), after
        return z

    def agree(ours: np.ndarray, peer: np.ndarray) -> bool:
        return close(1e-12)(problem.residuals(ours)[:, 0], peer)

    return Contest(
        lambda: _steps(problem.gradient, theta, batches),
        {"NumPy, products": contracted, "NumPy, one product": one_product},
        agree,
    )


# --- replicas ------------------------------------------------------------------------------------


def _replicas(n_replicas: int) -> Contest:
    """Steps on all samples from many starts, with all losses."""
    problem = _model()
    z, J, Q = *_data(problem), _dense(problem)
    flat = Q.reshape(-1, _DIM)
    starts = 0.01 * np.random.default_rng(3).standard_normal((n_replicas, _DIM))

    def ours() -> np.ndarray:
        return run_ensemble(
            problem, eosim.GradientDescent(_LR), starts, _REPLICA_STEPS, batch_sizes=None,
            n_replicas=n_replicas, seed=0, threads=1,
        )["loss"][0, 0]  # fmt: skip

    def descend(products: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """``products`` gives Q_a theta_r, of shape (n, P, r), for the columns theta_r."""
        thetas, losses = starts.T, []
        for step in range(_REPLICA_STEPS + 1):
            moved = products(thetas)
            errors = z[:, None] + J @ thetas + np.einsum("ajr,jr->ar", moved, thetas) / 2
            losses.append(np.einsum("ar,ar->r", errors, errors) / (2 * _N))
            if step < _REPLICA_STEPS:
                pull = J.T @ errors + np.einsum("ajr,ar->jr", moved, errors)
                thetas = thetas - _LR / _N * pull
        return np.array(losses).T

    def by_rows() -> np.ndarray:
        """Replicas before the entries of Q_a theta: products of contiguous rows."""
        thetas, losses = starts, []
        for step in range(_REPLICA_STEPS + 1):
            moved = (thetas @ flat.T).reshape(n_replicas, _N, _DIM)
            errors = z + thetas @ J.T + (moved @ thetas[:, :, None])[:, :, 0] / 2
            losses.append(np.einsum("ra,ra->r", errors, errors) / (2 * _N))
            if step < _REPLICA_STEPS:
                pull = errors @ J + (errors[:, None] @ moved)[:, 0]
                thetas = thetas - _LR / _N * pull
        return np.array(losses).T

    def sample_by_sample() -> np.ndarray:
        """A product per sample, used while it is in cache."""
        thetas, losses, moved = starts, [], np.empty_like(starts)
        for _ in range(_REPLICA_STEPS + 1):
            pull, squares = np.zeros_like(thetas), np.zeros(n_replicas)
            for a in range(_N):
                np.matmul(thetas, Q[a], out=moved)
                errors = z[a] + thetas @ J[a] + np.einsum("rj,rj->r", moved, thetas) / 2
                squares += errors**2
                moved += J[a]
                moved *= errors[:, None]
                pull += moved
            losses.append(squares / (2 * _N))
            thetas = thetas - _LR / _N * pull
        return np.array(losses).T

    peers: dict[str, Call | None] = {
        "NumPy, one product": lambda: descend(
            lambda thetas: (flat @ thetas).reshape(_N, _DIM, n_replicas)
        ),
        "NumPy, products": lambda: descend(lambda thetas: Q @ thetas),
        "NumPy, rows": by_rows,
        "NumPy, sample by sample": sample_by_sample,
        "JAX": _jax_replicas(z, J, Q, starts) if installed("jax") else None,
        "PyTorch": _torch_replicas(z, J, Q, starts) if installed("torch") else None,
    }
    operations = 2 * n_replicas * _N * _DIM**2 * (_REPLICA_STEPS + 1)

    def limit() -> float:
        return machine.product(1000, 1000, 1000) * operations / 2e9

    return Contest(ours, peers, close(1e-10), limit)


def _jax_replicas(z, J, Q, starts) -> Call:
    import jax

    @jax.jit
    def descend(z, J, Q, thetas):
        def step(thetas, _):
            moved = jax.numpy.einsum("ajk,rk->raj", Q, thetas)
            errors = z + jax.numpy.einsum("raj,rj->ra", J + moved / 2, thetas)
            losses = jax.numpy.sum(errors**2, axis=1) / (2 * len(z))
            pull = jax.numpy.einsum("ra,raj->rj", errors, J + moved)
            return thetas - _LR / len(z) * pull, losses

        return jax.lax.scan(step, thetas, length=_REPLICA_STEPS + 1)[1].T

    arrays = [jax.numpy.asarray(array) for array in (z, J, Q, starts)]
    return lambda: np.asarray(descend(*arrays).block_until_ready())


def _torch_replicas(z, J, Q, starts) -> Call:
    import torch

    torch.set_num_threads(1)
    z, J, Q, starts = (torch.tensor(array) for array in (z, J, Q, starts))
    flat = Q.reshape(-1, _DIM)

    def descend() -> np.ndarray:
        thetas, losses = starts, []
        for step in range(_REPLICA_STEPS + 1):
            moved = (thetas @ flat.T).reshape(-1, _N, _DIM)
            errors = z + thetas @ J.T + (moved @ thetas[:, :, None])[:, :, 0] / 2
            losses.append((errors**2).sum(dim=1) / (2 * _N))
            if step < _REPLICA_STEPS:
                pull = errors @ J + (errors[:, None] @ moved)[:, 0]
                thetas = thetas - _LR / _N * pull
        return torch.stack(losses, dim=1).numpy()

    return descend


def _batch_replicas(n_replicas: int) -> Contest:
    """Steps on ten samples, drawn by each replica for itself; the losses of starts and ends."""
    problem = _model()
    z, J, Q = *_data(problem), _dense(problem)
    start, flat = _point(0.01), Q.reshape(-1, _DIM)
    streams = [np.random.SeedSequence(0, spawn_key=(r,)) for r in range(n_replicas)]
    batches = [
        [
            *BatchStream(_N, _BATCH, "without_replacement", stream_key(stream)).batches(
                0, _DRAWN_STEPS
            )
        ]
        for stream in streams
    ]
    moved = np.empty((_BATCH, _DIM))

    def ours() -> np.ndarray:
        ensemble = run_ensemble(
            problem, eosim.GradientDescent(_LR), start, _DRAWN_STEPS, batch_sizes=_BATCH,
            n_replicas=n_replicas, seed=0, every=_DRAWN_STEPS, keep=("theta",), threads=1,
        )  # fmt: skip
        assert ensemble.final_theta is not None
        return np.hstack([ensemble.final_theta[0, 0], ensemble["loss"][0, 0]])

    def gathered(theta, batch):
        return _gradient(z[batch], J[batch], Q[batch] @ theta, theta)

    def one_by_one(theta, batch):
        for row, sample in zip(moved, batch, strict=True):
            np.matmul(Q[sample], theta, out=row)
        return _gradient(z[batch], J[batch], moved, theta)

    def losses(thetas: np.ndarray) -> np.ndarray:
        products = (flat @ thetas.T).reshape(_N, _DIM, -1)
        errors = z[:, None] + J @ thetas.T + np.einsum("ajr,rj->ar", products, thetas) / 2
        return np.einsum("ar,ar->r", errors, errors) / (2 * _N)

    def all_replicas(gradient) -> np.ndarray:
        thetas = np.array([_steps(gradient, start, own) for own in batches])
        first = np.broadcast_to(losses(start[None]), n_replicas)
        return np.column_stack([thetas, first, losses(thetas)])

    peers: dict[str, Call | None] = {
        "NumPy, Q[batch] @ theta": lambda: all_replicas(gathered),
        "NumPy, row by row": lambda: all_replicas(one_by_one),
    }
    return Contest(ours, peers, close(1e-12))


_SIZE = f"n {_N}, P {_DIM}"

WORKLOADS = (
    Workload("quadratic", f"{_SIZE}, all", 1.35, lambda: _full("float64")),
    Workload("quadratic-float32", f"{_SIZE}, all", 2.6, lambda: _full("float32")),
    Workload("quadratic-batch", f"{_SIZE}, B {_BATCH}", 2.5, _rows),
    Workload(
        "quadratic-gathered",
        f"{_SIZE}, B {_BATCH}",
        3,
        lambda: _rows(only="NumPy, Q[batch] @ theta"),
    ),
    Workload("quadratic-closed", f"{_SIZE}, B {_BATCH}", 20, _closed),
    Workload("quadratic-replicas", f"{_SIZE}, all, 32 runs", 1.15, lambda: _replicas(32)),
    Workload("quadratic-replicas-64", f"{_SIZE}, all, 64 runs", 1.15, lambda: _replicas(64)),
    Workload(
        "quadratic-replicas-batch",
        f"{_SIZE}, B {_BATCH}, 32 runs",
        2.5,
        lambda: _batch_replicas(32),
    ),
)
