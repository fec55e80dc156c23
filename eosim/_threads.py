"""Threads of compiled code, which has no other; BLAS is held to one of its own meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

# Our choice: most replicas in one task of the thread pool.
_CHUNK = 64

_lock = threading.Lock()
_inside: list[Any] = []


@cache
def _controller() -> ThreadpoolController:
    """Looking for the libraries takes milliseconds; NumPy's and SciPy's are there from the start."""
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One thread for BLAS as long as any caller is inside; the last one out restores what was before."""
    with _lock:
        if not _inside:
            _inside.append(_controller().limit(limits=1))
        _inside.append(None)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if len(_inside) == 1:
                _inside.pop().restore_original_limits()


def available_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share(task: Callable[[slice], None], n_replicas: int, threads: int, most: int = _CHUNK) -> None:
    """``task`` on all replicas in chunks; it releases the interpreter, and no chunk knows another."""
    size = max(1, min(_CHUNK, most, n_replicas // (4 * threads)))  # a few tasks per thread
    chunks = [slice(i, min(i + size, n_replicas)) for i in range(0, n_replicas, size)]

    def quietly(chunk: slice) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # of this thread
            task(chunk)

    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(quietly, chunks))
