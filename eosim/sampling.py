"""Mini-batch index streams: batch k of a stream is a pure function of (key, k).

A counter-based generator makes resuming trivial, and keeps a replica independent of how many
replicas there are, in what order they run and on how many threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from eosim._checks import Array, choice, integer

SCHEMES = ("without_replacement", "with_replacement", "bernoulli", "reshuffling")

# SplitMix64 (Steele, Lea & Flood 2014, figure 16): the golden gamma and the finaliser's constants.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

_BLOCK_DRAWS = 65_536  # draws per block: half a megabyte, inside the L2 cache
_BLOCK_STEPS = 16  # of several streams: at least, unless a step of one alone takes too many draws
# Above this many draws compiled shuffles repay the second that loading numba costs (0.15 microseconds
# a draw in Python); the batches are the same.
_COMPILED_FROM = 6_000_000


@dataclass(frozen=True)
class BatchStream:
    """The mini-batches of one run.

    Schemes, with n samples and batch size B:

    - ``without_replacement``: B distinct samples, every subset equally likely, fresh each step;
    - ``with_replacement``: B independent uniform samples;
    - ``bernoulli``: each sample kept independently with probability B/n (the size varies, and may
      be 0; the gradient estimate divides by B, which keeps it unbiased);
    - ``reshuffling``: consecutive slices of a random permutation that is redrawn every epoch of
      ceil(n/B) steps (the last batch of an epoch may be shorter).

    Uniform draws have 53 bits: no index is preferred by more than n * 2**-53, relatively.
    """

    n_samples: int
    batch_size: int
    scheme: str
    key: tuple[int, int]

    def __post_init__(self) -> None:
        integer("n_samples", self.n_samples, minimum=1)
        integer("batch_size", self.batch_size, minimum=1)
        choice("scheme", self.scheme, SCHEMES)
        if self.batch_size > self.n_samples and self.scheme != "with_replacement":
            raise ValueError(
                f"batch_size must be at most n_samples = {self.n_samples}, got {self.batch_size}"
            )

    def batches(self, start: int, stop: int) -> Iterator[Array]:
        """Index arrays of steps start, ..., stop - 1."""
        per_step = _draws(self.n_samples, self.batch_size, self.scheme)
        shuffled = self.scheme in ("without_replacement", "reshuffling")
        if shuffled and (stop - start) * per_step >= _COMPILED_FROM:
            keys = np.array([self.key], dtype=np.uint64)
            size = (self.n_samples, self.batch_size, self.scheme)
            for block in batch_blocks(keys, *size, start, stop):
                begin = 0
                for end in block.ends[0].tolist():
                    yield block.rows[0, begin:end]
                    begin = end
            return
        if self.scheme == "reshuffling":
            yield from self._epochs(start, stop)
            return
        block_steps = max(1, _BLOCK_DRAWS // per_step)
        for first in range(start, stop, block_steps):
            last = min(first + block_steps, stop)
            uniform = _uniforms(self.key, np.arange(first, last), per_step)
            if self.scheme == "bernoulli":
                for row in uniform:
                    yield np.flatnonzero(row * self.n_samples < self.batch_size)
            elif self.scheme == "with_replacement":
                yield from (uniform * self.n_samples).astype(np.int64)
            else:
                yield from _shuffles(uniform, self.n_samples)

    def _epochs(self, start: int, stop: int) -> Iterator[Array]:
        per_epoch = -(-self.n_samples // self.batch_size)
        for epoch in range(start // per_epoch, -(-stop // per_epoch)):
            uniform = _uniforms(self.key, np.array([epoch]), self.n_samples)
            (order,) = _shuffles(uniform, self.n_samples)
            for slot in range(per_epoch):
                if start <= epoch * per_epoch + slot < stop:
                    yield order[slot * self.batch_size : (slot + 1) * self.batch_size]


class Batches(NamedTuple):
    """Batches of some steps of several streams.

    That of step ``first`` + i of stream r is rows[r, ends[r, i-1]:ends[r, i]], from 0 for i = 0; each of
    its samples has the weight shares[r, i] in the mean over the batch.
    """

    rows: Array  # (n_streams, room), int64
    ends: Array  # (n_streams, n_steps), int64
    shares: Array  # (n_streams, n_steps)
    first: int


def batch_blocks(
    keys: Array, n_samples: int, batch_size: int, scheme: str, start: int, stop: int
) -> Iterator[Batches]:
    """The batches of `BatchStream` with each row of ``keys``, compiled, some steps at a time.

    Blocks begin at multiples of 16 steps after ``start``, or of a smaller power of two if a step takes
    more than 4096 draws: on a grid that does not depend on the other streams. Without any step there is
    one empty block.
    """
    from eosim._kernels import sampler

    per_step, least = _draws(n_samples, batch_size, scheme), _least(n_samples, batch_size, scheme)
    block_steps = max(least, _BLOCK_DRAWS // (len(keys) * per_step) // least * least)
    if scheme == "reshuffling":  # an epoch, since every block shuffles anew what it begins within
        block_steps = max(block_steps, -(-n_samples // (batch_size * least)) * least)
    one = batch_size == 1 and scheme in ("without_replacement", "with_replacement")
    draw = getattr(sampler, "one_sample" if one else scheme)
    permutation = np.arange(n_samples)
    for first in range(start, max(stop, start + 1), block_steps):
        n_steps = min(block_steps, stop - first)
        rows = np.empty((len(keys), n_steps * per_step), np.int64)
        ends = np.empty((len(keys), n_steps), np.int64)
        draw(keys, first, batch_size, permutation, rows, ends)
        shares = np.full(ends.shape, 1.0 / batch_size)
        if scheme == "reshuffling":  # the last batch of an epoch may be smaller
            shares = 1.0 / np.diff(ends, axis=1, prepend=0)
        yield Batches(rows, ends, shares, first)


def streams_at_once(n_samples: int, batch_size: int, scheme: str) -> int:
    """How many streams a block of `batch_blocks` can serve and still stay in the L2 cache."""
    draws = _draws(n_samples, batch_size, scheme) * _least(n_samples, batch_size, scheme)
    return max(1, _BLOCK_DRAWS // max(draws, n_samples if scheme == "reshuffling" else 0))


def _draws(n_samples: int, batch_size: int, scheme: str) -> int:
    """Uniform numbers of a step."""
    return n_samples if scheme == "bernoulli" else batch_size


def _least(n_samples: int, batch_size: int, scheme: str) -> int:
    """Steps of the smallest block: a power of two."""
    fitting = max(1, _BLOCK_DRAWS // _draws(n_samples, batch_size, scheme))
    return int(min(_BLOCK_STEPS, 2 ** (fitting.bit_length() - 1)))


class BatchMoments(NamedTuple):
    r"""Second moments of a batch, with which every average over batches is written.

    .. math:: E[W S W] = \mathrm{kept}\; S + \mathrm{noise}\; n\, \mathrm{Diag}(S)

    W = (n/B) diag(counts), so that E[W] = I; S is any symmetric matrix and Diag its diagonal (its
    diagonal blocks, where a sample has several outputs).
    """

    kept: float
    noise: float


def batch_moments(
    n_samples: int, batch_size: int, sampling: str = "without_replacement"
) -> BatchMoments:
    r"""The two numbers through which mini-batches enter every second moment.

    =================== ========================= ======================
    sampling            kept                      noise
    =================== ========================= ======================
    without_replacement :math:`1 - \kappa`         :math:`\kappa = (n-B)/(B(n-1))`, 0 if n = 1
    with_replacement    1 - 1/B                   1/B
    bernoulli           1                         (n - B)/(nB)
    =================== ========================= ======================

    The covariance of the mini-batch gradient is kappa times that of one sample's; with Bernoulli
    sampling it is ``noise`` times the uncentred second moment.

    Raises
    ------
    TypeError, ValueError
        If a size is out of range, or sampling is "reshuffling": its batches depend on each other,
        so that no second moment of one step describes them.

    Examples
    --------
    >>> from eosim.sampling import batch_moments
    >>> batch_moments(5, 2)
    BatchMoments(kept=0.625, noise=0.375)
    """
    n = integer("n_samples", n_samples, minimum=1)
    B = integer("batch_size", batch_size, minimum=1)
    sampling = choice("sampling", sampling, SCHEMES)
    if sampling == "reshuffling":
        raise ValueError(
            "sampling must draw every batch independently; reshuffling has no second moment of one "
            "step. Measure it with run_ensemble"
        )
    if sampling != "with_replacement" and n < B:
        raise ValueError(f"batch_size must be at most n_samples = {n}, got {B}")
    if sampling == "with_replacement":
        return BatchMoments(1 - 1 / B, 1 / B)
    if sampling == "bernoulli":
        return BatchMoments(1.0, (n - B) / (n * B))
    kappa = (n - B) / (B * (n - 1)) if n > 1 else 0.0
    return BatchMoments(1 - kappa, kappa)


def noise_factor(n_samples: int, batch_size: int, sampling: str = "without_replacement") -> float:
    """kappa, the ``noise`` of `batch_moments`: 0 for the full batch without replacement, 1 at B = 1."""
    return batch_moments(n_samples, batch_size, sampling).noise


def seed_sequence(seed: Any) -> np.random.SeedSequence:
    """The stream that ``seed`` stands for.

    An int s is stream 0 of s, ``SeedSequence(s, spawn_key=(0,))``; replica i of an ensemble is
    ``SeedSequence(s, spawn_key=(i,))``, which may be passed itself. A Generator gives 128 fresh
    bits; None asks the operating system for them.
    """
    if seed is None:
        return np.random.SeedSequence()
    if isinstance(seed, np.random.SeedSequence):
        return seed
    if isinstance(seed, np.random.Generator):
        words = seed.integers(0, 2**32, size=4, dtype=np.uint32)
        return np.random.SeedSequence([int(word) for word in words])
    return np.random.SeedSequence(integer("seed", seed, minimum=0), spawn_key=(0,))


def stream_key(sequence: np.random.SeedSequence) -> tuple[int, int]:
    """The two 64-bit words that key a `BatchStream`."""
    if not isinstance(sequence, np.random.SeedSequence):
        raise TypeError(f"sequence must be a SeedSequence, got {sequence!r}")
    first, second = sequence.generate_state(2, np.uint64)
    return int(first), int(second)


def _mix(x: Array) -> Array:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def _uniforms(key: tuple[int, int], counters: Array, n_draws: int) -> Array:
    """Uniform numbers on [0, 1) of shape (len(counters), n_draws); row c depends on (key, c) only."""
    words = np.array(key, dtype=np.uint64)
    start = _mix(_mix(words[:1] + counters.astype(np.uint64) * _GAMMA) ^ words[1:])
    draws = np.arange(1, n_draws + 1, dtype=np.uint64) * _GAMMA
    bits = _mix(start[:, None] + draws)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _shuffles(uniform: Array, n_samples: int) -> Iterator[Array]:
    """Turn rows of uniforms into ordered samples without replacement from range(n_samples)."""
    positions = np.arange(uniform.shape[1])
    draws = positions + (uniform * (n_samples - positions)).astype(np.int64)
    for row in draws.tolist():
        moved: dict[int, int] = {}  # the few positions of 0..n-1 that no longer hold themselves
        chosen = []
        for j, position in enumerate(row):
            chosen.append(moved.get(position, position))
            moved[position] = moved.get(j, j)
        yield np.array(chosen)
