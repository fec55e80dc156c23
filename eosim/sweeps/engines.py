"""Where points are computed: in this process, in guarded workers of our own, or in any Executor."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import Any, Protocol

from eosim.sweeps.points import Identity, Point
from eosim.sweeps.store import Store, encode, values_of

_START_ATTEMPTS = 3  # workers in a row that may die before their first word; our choice


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt at a point: the values themselves are in the store.

    ``kind`` is "done", "failed" (the function raised), "busy" (another driver is at it), "refused"
    (the store could not be written), "killed" (the worker died) or "lost" (the executor gave up).
    """

    key: str
    kind: str
    reason: str = ""


class SweepError(RuntimeError):
    """The sweep cannot go on; finished points are kept."""


class Engine(Protocol):
    @property
    def running(self) -> int: ...  # points handed over whose outcome is not known yet

    def room(self) -> int: ...  # how many more points it takes now
    def submit(self, key: str, point: Point) -> None: ...
    def wait(self, timeout: float) -> list[Outcome]: ...
    def close(self) -> None: ...


def compute_point(
    function: Callable[..., Any], identity: Identity, store: Store, key: str, point: Point
) -> Outcome:
    """Compute one point and write it; runs wherever the engine puts it, and returns no values."""
    try:
        with store.claim(key) as claimed:
            if not claimed:
                return Outcome(key, "busy")
            if store.has(key):  # another driver was faster
                return Outcome(key, "done")
            try:
                kind, values = values_of(function(**point), point)
            except (Exception, SystemExit) as error:
                reason = f"{type(error).__name__}: {error}"
                store.write_failure(key, point, reason, traceback.format_exc())
                return Outcome(key, "failed", reason)
            store.write(key, encode(identity, point, kind, values))
            return Outcome(key, "done")
    except OSError as error:
        return Outcome(key, "refused", str(error))


def compute_elsewhere(driver: int, *arguments: Any) -> Outcome:
    """`compute_point` with BLAS on one thread: the same bits as in the driver, which does so too."""
    if os.getpid() != driver:
        _one_blas_thread()
    return compute_point(*arguments)


@functools.cache
def _one_blas_thread() -> None:
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)


class InProcess:
    """One point at a time, here."""

    def __init__(self, compute: Callable[[str, Point], Outcome]):
        self._compute = compute
        self._next: tuple[str, Point] | None = None
        self.running = 0

    def room(self) -> int:
        return 1 - self.running

    def submit(self, key: str, point: Point) -> None:
        self._next, self.running = (key, point), 1

    def wait(self, timeout: float) -> list[Outcome]:
        if self._next is None:
            time.sleep(timeout)
            return []
        (key, point), self._next, self.running = self._next, None, 0
        return [self._compute(key, point)]

    def close(self) -> None:
        pass


class Futures:
    """Any executor with the standard interface; it belongs to whoever made it."""

    def __init__(self, executor: Any, task: Callable[..., Outcome], connected: Callable[[], bool]):
        self._executor, self._task, self._connected = executor, task, connected
        self._keys: dict[Any, str] = {}

    @property
    def running(self) -> int:
        return len(self._keys)

    def room(self) -> int:
        # Enough to keep many workers busy; a queue without end only slows the scheduler. Our choice.
        return 10_000 - len(self._keys)

    def submit(self, key: str, point: Point) -> None:
        try:
            self._keys[self._executor.submit(self._task, key, point)] = key
        except concurrent.futures.BrokenExecutor as error:
            raise SweepError(f"the executor is broken: {error}") from None

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._keys:
            time.sleep(timeout)
            return []
        done, _ = concurrent.futures.wait(
            self._keys, timeout, return_when=concurrent.futures.FIRST_COMPLETED
        )
        if not self._connected():
            raise SweepError("the scheduler is lost")
        outcomes = []
        for future in done:
            key = self._keys.pop(future)
            try:
                outcomes.append(future.result())
            except concurrent.futures.BrokenExecutor as error:
                raise SweepError(f"the executor is broken: {error}") from None
            except concurrent.futures.CancelledError:
                raise SweepError("the executor cancelled a point") from None
            except Exception as error:  # what an executor says of a task that it could not finish
                outcomes.append(Outcome(key, "lost", f"{type(error).__name__}: {error}"))
        return outcomes

    def close(self) -> None:
        for future in self._keys:
            future.cancel()


@dataclass(eq=False)
class _Worker:
    process: Any
    pipe: Any
    key: str | None = None
    ready: bool = False


class Guard:
    """Worker processes of our own: spawned, one point at a time each, replaced when they die.

    A worker ends with its driver, however that ends: it holds a pipe to it, and on Linux the kernel
    kills it too, for a function that never lets another thread run.
    """

    def __init__(self, workers: int, task: Callable[[str, Point], Outcome]):
        self._context = multiprocessing.get_context("spawn")
        self._task = task
        self._size = workers
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    @property
    def running(self) -> int:
        return sum(worker.key is not None for worker in self._workers)

    def room(self) -> int:
        return self._size - self.running

    def submit(self, key: str, point: Point) -> None:
        idle = [worker for worker in self._workers if worker.key is None]
        worker = idle[0] if idle else self._start()
        worker.key = key
        with contextlib.suppress(OSError):  # it died while idle: wait() sees that it never began
            worker.pipe.send((key, point))

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._workers:
            time.sleep(timeout)
            return []
        sources = {worker.pipe: worker for worker in self._workers}
        outcomes = []
        for pipe in connection.wait(list(sources), timeout):
            worker = sources[pipe]
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                outcomes += self._bury(worker)
                continue
            if message is None:
                worker.ready, self._failed_starts = True, 0
            else:
                outcomes.append(message)
                worker.key = None
        return outcomes

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(self._task, theirs, os.getpid()), name="eosim-sweep"
        )
        # Signals of the terminal are for the driver. A blocked one stays pending here and is
        # delivered below; the worker inherits the mask, from its first instruction on.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            process.start()
            worker = _Worker(process, ours)
            self._workers.append(worker)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that the worker's end is the only one, and its death an end of file
        return worker

    def _bury(self, worker: _Worker) -> list[Outcome]:
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join(5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        code = worker.process.exitcode
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts == _START_ATTEMPTS:
                raise SweepError(
                    "workers end before they begin: a fresh Python must be able to import the "
                    "function, and a script must call sweep under `if __name__ == '__main__':`"
                )
        if worker.key is None:
            return []
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        # A worker that died before its first word has not begun the point: it is no suspect.
        return [Outcome(worker.key, "killed" if worker.ready else "busy", how)]

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()
        self._workers.clear()


def _work(task: Callable[[str, Point], Outcome], pipe: Any, driver: int) -> None:
    """The life of a worker."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != driver:
        return
    threading.Thread(target=_end_with_driver, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _one_blas_thread()
    pipe.send(None)
    while True:
        try:
            key, point = pipe.recv()
        except EOFError:
            return
        pipe.send(task(key, point))


def _end_with_driver() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
