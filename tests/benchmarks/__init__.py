"""Speed, measured: eosim against peers doing the same work in the same process.

``python -m tests.benchmarks [NAME ...] [--quick]`` prints one row per workload. Importing this
package measures nothing and changes nothing.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Call = Callable[[], Any]

# A timed batch repeats its call until it takes this long: far above the clock's resolution.
_BATCH_SECONDS = 0.02


@dataclass(frozen=True)
class Contest:
    """Calls that do the same work: eosim's, and each peer's as an expert would write it.

    ``agree`` compares two answers, eosim's first. A peer that is None is not installed. ``limit`` is
    the CPU time that this machine needs at least, by `tests.benchmarks.machine`.
    """

    ours: Call
    peers: Mapping[str, Call | None]
    agree: Callable[[Any, Any], bool]
    limit: Call | None = None


@dataclass(frozen=True)
class Workload:
    """A named contest, and the goal: at least so many times as fast as the best peer.

    With ``price`` the peer is no rival but a unit: one's own gradient, a decomposition that nobody
    can do without, the same run without a bar.
    """

    name: str
    size: str
    goal: float
    prepare: Callable[[], Contest]
    rounds: int = 7
    price: bool = False


@dataclass(frozen=True)
class Budget:
    """Something to be done within so many seconds; ``seconds()`` measures it."""

    name: str
    size: str
    goal: float
    seconds: Callable[[], float]


@dataclass(frozen=True)
class Result:
    """CPU seconds per call (medians), the median of each round's ratio peer / eosim, and limit / eosim."""

    ours: float
    peer: float
    best: str
    ratio: float
    of_limit: float | None
    missing: tuple[str, ...]


def installed(*modules: str) -> bool:
    """Whether a peer can play."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def close(tolerance: float) -> Callable[[Any, Any], bool]:
    """Whether two arrays are one, relative to the size of the peer's."""
    import numpy as np  # not before `__main__` has set its threads

    def agree(ours: Any, peer: Any) -> bool:
        return bool(np.linalg.norm(ours - peer) <= tolerance * np.linalg.norm(peer))

    return agree


def in_words(seconds: float) -> str:
    """Three digits, in a unit that suits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def measure(contest: Contest, rounds: int) -> Result:
    """The fastest peer against eosim in interleaved rounds, A B and B A in turn, on the CPU clock."""
    answer = contest.ours()
    missing = tuple(name for name, peer in contest.peers.items() if peer is None)
    peers = {name: peer for name, peer in contest.peers.items() if peer is not None}
    for name, peer in peers.items():
        if not contest.agree(answer, peer()):
            raise AssertionError(f"{name} gives a different answer: nothing to compare")
    best = (
        min(peers, key=lambda name: _per_call(peers[name], 1))
        if len(peers) > 1
        else next(iter(peers))
    )
    calls = (contest.ours, peers[best])
    repeats = [_repeats(call) for call in calls]
    times: list[list[float]] = [[], []]
    for index in range(rounds):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            times[which].append(_per_call(calls[which], repeats[which]))
    ours, theirs = map(statistics.median, times)
    return Result(
        ours,
        theirs,
        best,
        statistics.median(theirs / ours for ours, theirs in zip(*times, strict=True)),
        None if contest.limit is None else contest.limit() / ours,
        missing,
    )


def _per_call(call: Call, repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - started) / repeats


def _repeats(call: Call) -> int:
    repeats = 1
    while (taken := _per_call(call, repeats) * repeats) < _BATCH_SECONDS / 2:
        repeats = max(2 * repeats, int(repeats * _BATCH_SECONDS / max(taken, 1e-6)))
        repeats = min(repeats, 10_000)
        if repeats == 10_000:
            break
    return repeats
