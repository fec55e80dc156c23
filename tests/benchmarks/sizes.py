"""How far exact answers reach: time and memory of large problems, each in a process of its own.

``python -m tests.benchmarks sizes`` prints the table, a name alone prints one row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg

from eosim import predict
from eosim.moments import Covariance, DiagonalClosure, Energies
from eosim.problems.quadratic_regression import QuadraticRegression, random_quadratic_regression
from eosim.sampling import noise_factor
from eosim.stability import TangentKernel, critical_lr, generalised_sharpness, noise_kernel_norm

_BATCH_SIZE = 10


@dataclass(frozen=True)
class Task:
    """A call, and whether its answer is right by another route, which is not measured."""

    call: Callable[[], Any]
    right: Callable[[Any], bool]


@dataclass(frozen=True)
class Size:
    """A large problem and its promise: at most so many CPU seconds, and so much memory.

    Memory is how much the peak of the process grows by, in MB, and promised as a multiple
    ``arrays`` of one ``array``, as ``of`` calls it; its size is ``megabytes``.
    """

    name: str
    what: str
    seconds: float
    arrays: float
    of: str
    megabytes: float
    prepare: Callable[[], Task]


@dataclass(frozen=True)
class Taken:
    """CPU seconds, and MB."""

    seconds: float
    megabytes: float


def measure_size(size: Size) -> Taken:
    """In a fresh process: the peak of a process never falls, and this one has made other arrays."""
    command = [sys.executable, "-m", "tests.benchmarks.sizes", size.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{size.name} failed:\n{done.stderr}")
    return Taken(**json.loads(done.stdout))


def _measure_here(size: Size) -> Taken:
    task = size.prepare()
    before, started = _peak(), time.process_time()
    answer = task.call()
    taken = Taken(time.process_time() - started, _peak() - before)
    if not task.right(answer):
        raise AssertionError(f"{size.name}: another route gives a different answer")
    return taken


def _peak() -> float:
    """From Linux's own account: ``resource.getrusage`` starts from the peak of the parent process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _megabytes(*shape: int) -> float:
    return 8 * float(np.prod(shape, dtype=float)) / 2**20


def _covariance(momentum: float) -> Task:
    """Ten steps in a basis of flat eigenvectors, in which the diagonal alone is exact too."""
    n = 2048
    kernel = TangentKernel(
        2 * np.arange(n, 0, -1) / n, scipy.linalg.hadamard(n) / np.sqrt(float(n)), n
    )
    lr = 0.5 * critical_lr(kernel, _BATCH_SIZE, kind="finite", momentum=momentum)
    model = Covariance(kernel, lr, _BATCH_SIZE, momentum=momentum)
    diagonal = DiagonalClosure(kernel, lr, _BATCH_SIZE, "finite", momentum=momentum)
    start = np.eye(n)

    def right(losses: np.ndarray) -> bool:
        expected = predict(diagonal, Energies(np.ones(n)), 10)["loss"]
        return bool(np.allclose(losses, expected, rtol=1e-10, atol=0))

    return Task(lambda: predict(model, start, 10)["loss"], right)


def _ntk(n: int) -> np.ndarray:
    """Of rank n, from a Gaussian Jacobian."""
    jacobian = np.random.default_rng(0).standard_normal((n, 2 * n))
    product = jacobian @ jacobian.T
    return (product + product.T) / (2 * n)


def _threshold(n: int) -> Task:
    """From an NTK to the learning rate, with its eigendecomposition."""
    matrix = _ntk(n)

    def call() -> tuple[TangentKernel, float]:
        kernel = TangentKernel.from_matrix(matrix)
        return kernel, critical_lr(kernel, _BATCH_SIZE)

    def right(answer: tuple[TangentKernel, float]) -> bool:
        kernel, lr = answer
        if n > 1000:  # where the other form takes 40 arrays, and minutes
            return abs(noise_kernel_norm(kernel, lr, _BATCH_SIZE) - 1) < 1e-9
        return abs(lr * generalised_sharpness(kernel, _BATCH_SIZE) / 2 - 1) < 1e-9

    return Task(call, right)


def _generalised(n: int) -> Task:
    """The same threshold from symmetric r x r matrices."""
    matrix = _ntk(n)

    def call() -> tuple[TangentKernel, float]:
        kernel = TangentKernel.from_matrix(matrix)
        return kernel, 2 / generalised_sharpness(kernel, _BATCH_SIZE)

    def right(answer: tuple[TangentKernel, float]) -> bool:
        kernel, lr = answer
        return abs(lr / critical_lr(kernel, _BATCH_SIZE) - 1) < 1e-9

    return Task(call, right)


def _prediction() -> Task:
    """Threshold and a hundred steps of a million modes, against a Volterra equation."""
    n, n_steps = 1_000_000, 100
    spectrum = 1.0 / np.arange(1, n + 1) ** 1.2

    def call() -> tuple[float, np.ndarray]:
        lr = 0.8 * critical_lr(spectrum, _BATCH_SIZE, kind="delocalised")
        model = DiagonalClosure(spectrum, lr, _BATCH_SIZE, "delocalised")
        return lr, predict(model, Energies(np.ones(n)), n_steps)["loss"]

    def right(answer: tuple[float, np.ndarray]) -> bool:
        lr, losses = answer
        kappa = noise_factor(n, _BATCH_SIZE)
        x = lr / 0.8 * spectrum
        if abs(kappa * np.sum(x / (2 - x)) - 1) > 1e-9:
            return False
        x = lr * spectrum
        left, forcing, memory = np.ones(n), [], []
        for _ in range(n_steps + 1):
            forcing.append(left.sum())
            memory.append(kappa * np.sum(x**2 * left))
            left *= (1 - x) ** 2
        energy: list[float] = []
        for t in range(n_steps + 1):
            energy.append(forcing[t] + sum(memory[t - 1 - u] * energy[u] for u in range(t)))
        return bool(np.allclose(losses, np.array(energy) / (2 * n), rtol=1e-10, atol=0))

    return Task(call, right)


_MODEL = (400, 600)


def _model(dtype: str) -> Task:
    """Q drawn, and a step of gradient descent, against Q one sample at a time."""
    samples, dim = _MODEL
    lr = 1.0

    def call(size: tuple[int, int] = _MODEL) -> tuple[QuadraticRegression, np.ndarray, np.ndarray]:
        problem = random_quadratic_regression(*size, 0.02, ntk_max=1.0, dtype=dtype)
        theta = 0.01 * np.random.default_rng(1).standard_normal(size[1])
        return problem, theta, theta - lr * problem.gradient(theta)

    def right(answer: tuple[QuadraticRegression, np.ndarray, np.ndarray]) -> bool:
        problem, theta, after = answer
        rows, columns = np.tril_indices(dim)
        gradient, matrix = np.zeros(dim), np.empty((dim, dim))
        for a in range(samples):
            matrix[rows, columns] = matrix[columns, rows] = problem.tensor[a]
            moved, slope = matrix @ theta, problem.initial_jacobian[a]
            residual = problem.initial_residuals[a] + (slope + moved / 2) @ theta
            gradient += residual * (slope + moved) / samples
        return bool(np.linalg.norm(theta - lr * gradient - after) < 1e-12 * np.linalg.norm(after))

    call((4, 6))  # compiled code is no part of the model
    return Task(call, right)


_SQUARE = "n x n"
_PACKED = "4 n P^2 B"
_PACKED_MEGABYTES = 4 * _MODEL[0] * _MODEL[1] ** 2 / 2**20

SIZES = (
    Size(
        "covariance-2048", "n 2048, 10 steps", 60, 8, _SQUARE, _megabytes(2048, 2048),
        lambda: _covariance(0.0),
    ),
    Size(
        "covariance-momentum", "n 2048, 10 steps", 90, 13, _SQUARE, _megabytes(2048, 2048),
        lambda: _covariance(0.9),
    ),
    Size(
        "exact-1000", "n = r 1000, B 10", 10, 8, "n x r", _megabytes(1000, 1000),
        lambda: _threshold(1000),
    ),
    Size(
        "generalised-1000", "n = r 1000, B 10", 10, 45, "r x r", _megabytes(1000, 1000),
        lambda: _generalised(1000),
    ),
    Size(
        "exact-3000", "n = r 3000, B 10", 90, 8, "n x r", _megabytes(3000, 3000),
        lambda: _threshold(3000),
    ),
    Size(
        "prediction-million", "n 1,000,000, 100 steps", 10, 24, "n", _megabytes(1_000_000),
        _prediction,
    ),
    Size(
        "model-400", "n 400, P 600, one step", 10, 1.1, _PACKED, _PACKED_MEGABYTES,
        lambda: _model("float64"),
    ),
    Size(
        "model-400-float32", "n 400, P 600, one step", 10, 0.6, _PACKED, _PACKED_MEGABYTES,
        lambda: _model("float32"),
    ),
)  # fmt: skip


if __name__ == "__main__":
    (_name,) = sys.argv[1:]
    print(json.dumps(asdict(_measure_here({size.name: size for size in SIZES}[_name]))))
