"""The verb: hand the missing points of a grid to an engine, keep what is finished, gather it."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import pickle
import shlex
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from eosim._checks import integer
from eosim.sweeps.dataset import dataset_of
from eosim.sweeps.engines import (
    Engine,
    Futures,
    Guard,
    InProcess,
    Outcome,
    SweepError,
    compute_elsewhere,
    compute_point,
)
from eosim.sweeps.points import (
    Axis,
    Identity,
    Point,
    axes_of,
    check_names,
    function_of,
    identity_of,
    plan_of,
    plan_text,
    points_of,
)
from eosim.sweeps.store import Store

_KILLS = 3  # workers that one point may kill before it counts as failed
_POLL = 0.2  # seconds between looks at workers that say nothing; our choice
_BUSY_PAUSE = 0.5  # seconds until a point that another driver holds is tried again; our choice
_VISIBLE = 90.0  # seconds; network file systems cache for up to 60 that a file is missing
_CONNECT = 30.0  # seconds that a scheduler has to answer; our choice
_INTERVAL = 10.0  # seconds between lines of progress where there is no terminal; our choice
# Our choice: seconds between two looks at the bar of a terminal.
_REDRAW = 0.1


class _Stopped(BaseException):
    """SIGINT or SIGTERM arrived; no function under sweep can catch it by accident."""


@dataclass
class _Tally:
    """What is known of each point, by key."""

    status: dict[str, str]
    reason: dict[str, str]

    def count(self, status: str) -> int:
        return sum(value == status for value in self.status.values())


def sweep(
    function: Callable[..., Any],
    grid: Mapping[Any, Any],
    *,
    store: str | os.PathLike[str] | None = None,
    executor: Any = None,
    workers: int | None = None,
    seeds: Any = None,
    shard: tuple[int, int] | None = None,
    progress: bool = True,
) -> Any:
    """Compute ``function(**point)`` at every point of a grid; with a store, only what is missing.

    Every point is computed with BLAS on one thread and is a function of its arguments alone, so
    the result does not depend on workers, order or interruptions: the same bits as a serial run.

    Parameters
    ----------
    function : callable
        Called with the names of the grid as keywords. It returns a number, an array, a mapping or
        NamedTuple of these, or a `Trajectory`. Where results are stored, or computed in other
        processes, it is a function at the top level of a module, or a ``functools.partial`` of one
        with keywords. An attribute ``function.version`` stands for its version; without one, its
        source text and eosim's version do. What it calls is not watched.
    grid : mapping
        Names to sequences of numbers, strings, booleans or None: their product. A tuple of names
        maps to rows of values that move together.
    store : path, optional
        A directory with one checked file per point, shared by as many drivers and machines as you
        like. Without one, results live in a temporary directory until they are returned.
    executor : object or str, optional
        Anything with the interface of ``concurrent.futures.Executor``, such as
        ``client.get_executor()`` of dask, or the address of a dask scheduler, "tcp://host:port".
        Its workers write to the store themselves and return keys only.
    workers : int, optional
        0 (the default) computes here; N >= 1 in N spawned processes, replaced when they die. A
        point whose worker dies runs again alone, and fails when it has killed three. Needs POSIX.
    seeds : int or sequence of int, optional
        A last axis ``seed``: 0, ..., seeds - 1, or these.
    shard : (i, n), optional
        Compute the points i, i + n, i + 2 n, ... of the grid only, for job arrays.
    progress : bool
        A bar on a terminal, else a line every ten seconds, on stderr.

    Returns
    -------
    xarray.Dataset
        The grid as coordinates, a variable per named result (``value`` for a bare number or
        array), and ``status`` ("done", "failed", "left") and ``reason`` for every point.
        Points without a result hold NaN. A trajectory gives ``t``, ``step``, ``theta``, its
        records, ``outcome`` and ``n_records``; shorter ones are filled with NaN at their ends.

    Raises
    ------
    TypeError, ValueError
        For wrong arguments, before any work: also names that the function does not take, or lacks.
    ImportError
        Without xarray, or without dask where a scheduler's address is given (``eosim[sweep]``).
    OSError
        The store cannot be written; finished points are kept.
    RuntimeError
        The workers cannot be started, or the executor or its scheduler is lost; finished points
        are kept.
    SystemExit
        130 after SIGINT or SIGTERM; finished points are kept, and the command to go on is printed.

    Warns
    -----
    RuntimeWarning
        A file in the store was truncated, altered, foreign or of a newer format. It is moved to
        ``aside/`` and its point computed again. A failed point is tried again by the next sweep;
        where none succeeded, the first error is named.
    """
    try:
        import xarray  # noqa: F401
    except ImportError:
        raise ImportError("sweep returns an xarray.Dataset: pip install 'eosim[sweep]'") from None
    axes = axes_of(grid, seeds)
    identity = identity_of(function, stored=store is not None)
    with contextlib.ExitStack() as stack:
        if store is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="eosim-sweep-"))
            place = Store(directory, lasting=False)
        else:
            place = Store(store)
        tally = complete(
            function,
            identity,
            axes,
            place,
            executor=executor,
            workers=workers,
            shard=shard,
            progress=progress,
            lasting=store is not None,
        )
        keys = [identity.key(point) for point in points_of(axes)]
        results = []
        for key in keys:
            result = place.read(key) if tally.status[key] == "done" else None
            results.append(result)
    _warn_of_failure(tally, place if store is not None else None)
    return dataset_of(
        axes,
        results,
        [tally.status[key] for key in keys],
        [tally.reason.get(key, "") for key in keys],
        function=identity.name,
        version=identity.version,
    )


def _warn_of_failure(tally: _Tally, store: Store | None) -> None:
    """Without any result there is no variable to ask for either."""
    if tally.reason and not tally.count("done"):
        where = "" if store is None else f", tracebacks in {store.path / 'failed'}"
        first = next(tally.reason[key] for key in tally.status if key in tally.reason)
        warnings.warn(
            f"no point succeeded, {tally.count('failed')} failed; the first with {first}. The "
            f"variable reason of the dataset holds all errors{where}",
            RuntimeWarning,
            stacklevel=3,
        )


def resume(store: Store, **options: Any) -> _Tally:
    """Go on with the plan of a store: what ``python -m eosim.sweeps resume`` does."""
    planned, axes = plan_of(store.plan())
    function = function_of(planned)
    identity = identity_of(function, stored=True)
    if identity.version != planned.version:
        _say(f"{identity.name} has changed since: all its points are computed again")
    return complete(function, identity, axes, store, **options)


def complete(
    function: Callable[..., Any],
    identity: Identity,
    axes: tuple[Axis, ...],
    store: Store,
    *,
    executor: Any = None,
    workers: int | None = None,
    shard: tuple[int, int] | None = None,
    progress: bool = True,
    lasting: bool = True,
) -> _Tally:
    """Compute what a store lacks of a grid."""
    check_names(function, axes)
    if executor is not None and workers is not None:
        raise ValueError(f"workers must be None beside an executor, got {workers}")
    workers = 0 if workers is None else integer("workers", workers, minimum=0)
    if not (executor is None or isinstance(executor, str) or hasattr(executor, "submit")):
        raise TypeError(
            "executor must have submit, as concurrent.futures.Executor has, or be the address of "
            f"a dask scheduler; got {executor!r}"
        )
    if workers and executor is None:
        try:
            pickle.dumps(function)
        except Exception as error:
            raise TypeError(
                f"function must be importable by its name in the workers, got {function!r}: {error}"
            ) from None
    points = {identity.key(point): point for point in points_of(axes)}
    mine = set(points) if shard is None else set(list(points)[_shard(shard)])
    status = {key: _look(store, key) for key in points}
    tally = _Tally(status, {})
    missing = collections.deque(key for key in points if status[key] != "done" and key in mine)
    for key in points:
        reason = store.failure(key) if status[key] == "left" and key not in mine else None
        if reason is not None:
            tally.status[key], tally.reason[key] = "failed", reason
    try:
        store.prepare(plan_text(identity, axes))
    except OSError as error:
        if not missing:
            return tally  # all there is to do is to read
        raise _refused(store, tally, str(error)) from None
    import threadpoolctl

    with contextlib.ExitStack() as stack:
        stack.enter_context(threadpoolctl.threadpool_limits(1))
        bar = stack.enter_context(_progress(len(points), tally, progress))
        try:
            with _stoppable():
                engine = _engine(function, identity, store, executor, workers, stack)
                try:
                    _loop(engine, store, points, missing, tally, bar)
                finally:
                    engine.close()
        except _Stopped:
            bar(final=True)
            _say(f"interrupted: {_kept(store, tally, lasting)}")
            raise SystemExit(130) from None
        except SweepError as error:
            raise SweepError(f"{error}; {_kept(store, tally, lasting)}") from None
    return tally


def _loop(
    engine: Engine,
    store: Store,
    points: dict[str, Point],
    missing: collections.deque[str],
    tally: _Tally,
    bar: Callable[..., None],
) -> None:
    """Keep the engine fed until every missing point is done or failed."""
    suspects: collections.deque[str] = collections.deque()
    paused: list[tuple[float, str]] = []  # held by another driver, and when to try again
    kills: collections.Counter[str] = collections.Counter()
    alone = False  # a suspect is running
    unseen: dict[str, float] = {}  # written, says the worker; and until when we believe it
    while missing or suspects or paused or unseen or engine.running:
        now = time.monotonic()
        missing.extend(key for due, key in paused if due <= now)
        paused = [(due, key) for due, key in paused if due > now]
        alone = alone and engine.running > 0
        while missing and not alone and engine.room() > 0:
            key = missing.popleft()
            engine.submit(key, points[key])
        if suspects and not missing and not engine.running:  # after all others
            key, alone = suspects.popleft(), True
            engine.submit(key, points[key])
        for outcome in engine.wait(_POLL):
            key = outcome.key
            if outcome.kind == "refused":
                raise _refused(store, tally, outcome.reason)
            if outcome.kind == "busy":
                paused.append((time.monotonic() + _BUSY_PAUSE, key))
            elif outcome.kind == "killed" and kills[key] < _KILLS - 1:
                kills[key] += 1
                suspects.append(key)
            elif outcome.kind == "done":
                unseen[key] = time.monotonic() + _VISIBLE
            else:
                _fail(outcome, store, points[key], tally)
        for key in [key for key in unseen if store.has(key)]:
            tally.status[key] = "done"
            del unseen[key]
        if unseen and min(unseen.values()) < time.monotonic():
            raise SweepError(
                f"a worker wrote {min(unseen)} and this driver does not see it: the store must be "
                "on a file system that all of them share"
            )
        bar()


def _fail(outcome: Outcome, store: Store, point: Point, tally: _Tally) -> None:
    key, reason = outcome.key, outcome.reason
    if outcome.kind == "killed":
        reason = f"killed its worker {_KILLS} times, last with {reason}"
    if outcome.kind in ("killed", "lost"):  # nobody else could write it down
        try:
            store.write_failure(key, point, reason, "")
        except OSError as error:
            raise _refused(store, tally, str(error)) from None
    tally.status[key], tally.reason[key] = "failed", reason


def _look(store: Store, key: str) -> str:
    """ "done" or "left"; a file that is no good is set aside."""
    try:
        return "left" if store.read(key) is None else "done"
    except ValueError as error:
        try:
            target = store.set_aside(key)
        except OSError as refusal:
            raise OSError(
                refusal.errno,
                f"{store.point_path(key)} is no good: {error}; it cannot be set aside",
            ) from None
        warnings.warn(
            f"{store.point_path(key)} is no good: {error}; moved to {target}",
            RuntimeWarning,
            stacklevel=4,
        )
        return "left"


def _shard(shard: tuple[int, int]) -> slice:
    try:
        first, count = shard
    except (TypeError, ValueError):
        raise TypeError(f"shard must be a pair (i, n) of integers, got {shard!r}") from None
    count = integer("shard: n", count, minimum=1)
    first = integer("shard: i", first, minimum=0)
    if first >= count:
        raise ValueError(f"shard must be (i, n) with 0 <= i < n, got {shard!r}")
    return slice(first, None, count)


def _engine(
    function: Callable[..., Any],
    identity: Identity,
    store: Store,
    executor: Any,
    workers: int,
    stack: contextlib.ExitStack,
) -> Engine:
    if executor is None:
        here = functools.partial(compute_point, function, identity, store)
        return Guard(workers, here) if workers else InProcess(here)
    if isinstance(executor, str):
        try:
            from distributed import Client
        except ImportError:
            raise ImportError(
                f"executor={executor!r} needs dask: pip install 'eosim[sweep]'"
            ) from None
        try:
            client = stack.enter_context(Client(executor, timeout=_CONNECT))
        except (OSError, ValueError) as error:
            raise SweepError(f"no scheduler answers at {executor}: {error}") from None
        executor = client.get_executor()
    # dask goes on waiting for a scheduler that is gone; only its client knows.
    client = getattr(executor, "_client", None)
    elsewhere = functools.partial(compute_elsewhere, os.getpid(), function, identity, store)
    return Futures(executor, elsewhere, lambda: getattr(client, "status", "running") == "running")


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM raise `_Stopped`, once, in the main thread; elsewhere they are not ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for known in before:
            signal.signal(known, signal.SIG_IGN)  # a second one must not interrupt the clean-up
        raise _Stopped

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _progress(total: int, tally: _Tally, wanted: bool) -> Iterator[Callable[..., None]]:
    """A function to call whenever something may have changed."""
    if wanted and sys.stderr.isatty():
        from tqdm import tqdm

        drawn = -_REDRAW
        with tqdm(total=total, unit="point", dynamic_ncols=True) as bar:

            def draw(final: bool = False) -> None:
                nonlocal drawn
                if not final and time.monotonic() - drawn < _REDRAW:  # counting takes all points
                    return
                drawn = time.monotonic()
                bar.set_postfix(failed=tally.count("failed"), refresh=False)
                bar.update(tally.count("done") + tally.count("failed") - bar.n)

            draw()
            yield draw
            draw(final=True)
        return
    last = time.monotonic()

    def line(final: bool = False) -> None:
        nonlocal last
        if wanted and not final and time.monotonic() - last >= _INTERVAL:
            last = time.monotonic()
            _say(
                f"{tally.count('done')} of {total} points done, {tally.count('failed')} failed, "
                f"{tally.count('left')} left"
            )

    yield line


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _kept(store: Store, tally: _Tally, lasting: bool) -> str:
    for key, status in tally.status.items():  # a worker may have finished it and not said so yet
        if status == "left" and store.has(key):
            tally.status[key] = "done"
    done = f"{tally.count('done')} of {len(tally.status)} points are finished"
    if not lasting:
        return f"{done}, and lost for want of a store"
    return f"{done} and kept; go on with: {resume_command(store)}"


def resume_command(store: Store) -> str:
    return f"python -m eosim.sweeps resume {shlex.quote(str(store.path))}"


def _refused(store: Store, tally: _Tally, reason: str) -> OSError:
    return OSError(
        f"the store {store.path} cannot be written: {reason}; "
        f"{_kept(store, tally, True)}, once it can"
    )
