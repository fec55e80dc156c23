"""Speed, measured: eosim against a peer doing the same work in the same process.

``python -m tests.benchmarks [NAME ...] [--quick]`` prints one row per workload. Importing this
package measures nothing and changes nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

# A timed batch repeats its call until it takes this long: far above the clock's resolution.
_BATCH_SECONDS = 0.02


@dataclass(frozen=True)
class Contest:
    """Two calls that do the same work, warmed up and checked to agree before they are timed."""

    ours: Callable[[], object]
    peer: Callable[[], object]
    agree: Callable[[object, object], bool]


@dataclass(frozen=True)
class Workload:
    """A named contest and what it must show: ratio (eosim / peer) at most ``goal``."""

    name: str
    size: str
    peer: str
    goal: float
    rounds: int
    prepare: Callable[[], Contest]


@dataclass(frozen=True)
class Result:
    """CPU seconds per call (medians), and the median of the ratios of each round."""

    ours: float
    peer: float
    ratio: float


def measure(contest: Contest, rounds: int) -> Result:
    """Interleaved rounds, A B and B A in turn, on the CPU clock of this process."""
    if not contest.agree(contest.ours(), contest.peer()):
        raise AssertionError("the contenders give different answers: nothing to compare")
    calls = (contest.ours, contest.peer)
    repeats = [_repeats(call) for call in calls]
    times: list[list[float]] = [[], []]
    for index in range(rounds):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            times[which].append(_per_call(calls[which], repeats[which]))
    ratios = [ours / peer for ours, peer in zip(*times, strict=True)]
    return Result(
        statistics.median(times[0]), statistics.median(times[1]), statistics.median(ratios)
    )


def _per_call(call: Callable[[], object], repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - started) / repeats


def _repeats(call: Callable[[], object]) -> int:
    repeats = 1
    while (taken := _per_call(call, repeats) * repeats) < _BATCH_SECONDS / 2:
        repeats = max(2 * repeats, int(repeats * _BATCH_SECONDS / max(taken, 1e-6)))
        repeats = min(repeats, 10_000)
        if repeats == 10_000:
            break
    return repeats
