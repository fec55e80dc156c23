"""What this machine can do at best, measured in the process of the contest: reading and products."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _sum_of_rows(rows, order):
    """Each row once, in the given order, and nothing written."""
    total = 0.0
    for r in order:
        for j in range(rows.shape[1]):
            total += rows[r, j]
    return total


def reading(n_bytes: float, working_set: tuple[int, int], dtype: str = "float64") -> float:
    """CPU seconds to read this many bytes as rows, in random order, of a matrix of this shape."""
    rows = np.ones(working_set, dtype)  # zeros that nobody wrote are all one page
    order = np.random.default_rng(0).permutation(len(rows))
    once = _fastest(lambda: _sum_of_rows(rows, order))
    return once * n_bytes / rows.nbytes


def product(m: int, k: int, n: int, dtype: str = "float64") -> float:
    """CPU seconds of one matrix product (m, k) x (k, n)."""
    generator = np.random.default_rng(0)
    a = generator.standard_normal((m, k)).astype(dtype)
    b = generator.standard_normal((k, n)).astype(dtype)
    out = np.empty((m, n), dtype)
    return _fastest(lambda: np.matmul(a, b, out=out))


def _fastest(call: Callable[[], object], seconds: float = 0.3) -> float:
    """The least time of a call, repeated for so long."""
    call()
    best, until = np.inf, time.process_time() + seconds
    while time.process_time() < until:
        started = time.process_time_ns()
        call()
        best = min(best, (time.process_time_ns() - started) / 1e9)
    return float(best)
