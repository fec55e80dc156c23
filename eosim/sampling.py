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

_BLOCK_DRAWS = 65_536  # draws per vectorised block: half a megabyte, inside the L2 cache
# Above this many draws the compiled shuffle repays the one second that loading numba costs
# (0.15 microseconds a draw in Python); the batches are the same.
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

    def batches(self, start: int, stop: int) -> Iterator[Array]:
        """Index arrays of steps start, ..., stop - 1."""
        if self.scheme == "reshuffling":
            yield from self._epochs(start, stop)
            return
        per_step = self.n_samples if self.scheme == "bernoulli" else self.batch_size
        block = max(1, _BLOCK_DRAWS // per_step)
        compiled = (stop - start) * per_step >= _COMPILED_FROM
        for first in range(start, stop, block):
            last = min(first + block, stop)
            uniform = _uniforms(self.key, np.arange(first, last), per_step)
            if self.scheme == "bernoulli":
                for row in uniform:
                    yield np.flatnonzero(row * self.n_samples < self.batch_size)
            elif self.scheme == "with_replacement":
                yield from (uniform * self.n_samples).astype(np.int64)
            else:
                yield from _shuffles(uniform, self.n_samples, compiled)

    def _epochs(self, start: int, stop: int) -> Iterator[Array]:
        per_epoch = -(-self.n_samples // self.batch_size)
        for epoch in range(start // per_epoch, -(-stop // per_epoch)):
            uniform = _uniforms(self.key, np.array([epoch]), self.n_samples)
            (order,) = _shuffles(uniform, self.n_samples, self.n_samples >= _COMPILED_FROM)
            for slot in range(per_epoch):
                if start <= epoch * per_epoch + slot < stop:
                    yield order[slot * self.batch_size : (slot + 1) * self.batch_size]


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


def _shuffles(uniform: Array, n_samples: int, compiled: bool) -> Iterator[Array]:
    """Turn rows of uniforms into ordered samples without replacement from range(n_samples)."""
    positions = np.arange(uniform.shape[1])
    draws = positions + (uniform * (n_samples - positions)).astype(np.int64)
    if compiled:
        from eosim._kernels.sampler import partial_shuffles

        partial_shuffles(draws, np.arange(n_samples))
        yield from draws
        return
    for row in draws.tolist():
        moved: dict[int, int] = {}  # the few positions of 0..n-1 that no longer hold themselves
        chosen = []
        for j, position in enumerate(row):
            chosen.append(moved.get(position, position))
            moved[position] = moved.get(j, j)
        yield np.array(chosen)
