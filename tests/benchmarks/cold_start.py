"""What the first call of a session costs: imports, and compiled code with and without its cache."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import Budget

_ROOT = Path(__file__).parents[2]
_ENSEMBLE = """
import numpy as np, eosim
problem = eosim.LinearRegression(np.eye(20)[:10], np.ones(10))
eosim.run_ensemble(
    problem, [eosim.GradientDescent(0.1)], np.zeros(20), 10, batch_sizes=[2], n_replicas=3, seed=0
)
"""
_MINI_BATCHES = """
import numpy as np, eosim
problem = eosim.LinearRegression(np.eye(1000), np.ones(1000))
eosim.run(problem, eosim.GradientDescent(0.1), np.zeros(1000), 100, batch_size=100, seed=0)
"""
_PHASES = """
from eosim import catapult
catapult.phase_diagram([1.5, 2.5], 1e-3)
"""
_ITERATES = """
from eosim import catapult
catapult.iterate([1.5, 2.5], 1e-3, n_steps=100)
"""


def _seconds(code: str, cache: str) -> float:
    """CPU seconds of some code in an interpreter of its own."""
    timed = f"import time\nbegin = time.process_time()\n{code}\nprint(time.process_time() - begin)"
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    done = subprocess.run(
        [sys.executable, "-c", timed], env=environment, cwd=_ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the call that was to be timed failed: {done.stderr}")
    return float(done.stdout.split()[-1])


def _importing() -> float:
    """What eosim adds to NumPy."""
    times = {
        code: statistics.median(_seconds(code, "") for _ in range(7))
        for code in ("import numpy", "import numpy, eosim")
    }
    return times["import numpy, eosim"] - times["import numpy"]


def _warm(code: str) -> float:
    with tempfile.TemporaryDirectory() as cache:
        _seconds(code, cache)
        return statistics.median(_seconds(code, cache) for _ in range(5))


def _cold(code: str) -> float:
    """As after an installation: nothing is compiled yet."""
    times = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as cache:
            times.append(_seconds(code, cache))
    return statistics.median(times)


_FIRST_CALLS = {
    "ensemble": _ENSEMBLE,
    "mini-batches": _MINI_BATCHES,
    "phases": _PHASES,
    "iterates": _ITERATES,
}

WORKLOADS: tuple[Budget, ...] = (
    Budget("import", "beyond NumPy", 0.1, _importing),
    *(
        Budget(f"warm-{name}", "first call, code in the cache", 0.6, lambda code=code: _warm(code))
        for name, code in _FIRST_CALLS.items()
    ),
    *(
        Budget(f"cold-{name}", "first call, nothing compiled", 2.5, lambda code=code: _cold(code))
        for name, code in _FIRST_CALLS.items()
    ),
)
