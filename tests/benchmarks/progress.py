"""What a progress bar costs: calls that do little between two of its updates, with it and without."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np

import eosim
from tests.benchmarks import Contest, Workload

_WITHOUT = "without a bar"


def _contest(call: Callable[..., Any], agree: Callable[[Any, Any], bool]) -> Contest:
    """``call(progress=...)`` with a bar, drawn where nobody sees it, against the same without."""

    def with_bar() -> Any:
        with contextlib.redirect_stderr(io.StringIO()):
            return call(progress=True)

    return Contest(with_bar, {_WITHOUT: lambda: call(progress=False)}, agree)


def _same_theta(ours: Any, peer: Any) -> bool:
    return np.array_equal(ours.theta, peer.theta)


def _run() -> Contest:
    """Two numbers per step, and nothing kept but the ends."""
    bowl, rule = eosim.Quadratic(np.diag([1.0, 0.5])), eosim.GradientDescent(0.1)

    def call(progress: bool) -> Any:
        return eosim.run(
            bowl, rule, [1.0, 1.0], 200_000, record={}, every=200_000, progress=progress
        )

    return _contest(call, _same_theta)


def _ensemble() -> Contest:
    """1000 cells of 3 replicas and 100 steps."""
    generator = np.random.default_rng(0)
    problem = eosim.LinearRegression(generator.standard_normal((10, 5)), np.ones(10))
    rules = [eosim.GradientDescent(0.0002 * k) for k in range(1, 251)]

    def call(progress: bool) -> Any:
        return eosim.run_ensemble(
            problem, rules, np.zeros(5), 100, batch_sizes=[1, 2, 3, 4], n_replicas=3, seed=0,
            every=100, threads=1, progress=progress,
        )  # fmt: skip

    return _contest(call, lambda ours, peer: np.array_equal(ours["loss"], peer["loss"]))


def _flow() -> Contest:
    """Two numbers, at 9001 times."""
    flow = eosim.GradientFlow(eosim.Quadratic(np.diag([1.0, 0.5])))
    times = np.linspace(0, 300, 9001)

    def call(progress: bool) -> Any:
        return eosim.integrate(flow, [1.0, 1.0], times, record={}, rtol=1e-6, progress=progress)

    return _contest(call, _same_theta)


WORKLOADS: tuple[Workload, ...] = tuple(
    Workload(f"progress-{name}", size, 0.99, prepare, rounds=15, price=True)
    for name, size, prepare in (
        ("run", "200,000 steps of dim 2", _run),
        ("ensemble", "1000 cells", _ensemble),
        ("flow", "9001 times of dim 2", _flow),
    )
)
