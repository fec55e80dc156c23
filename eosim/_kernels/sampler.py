"""The mini-batches of many streams for some steps at once: one function per scheme.

Each writes the batches of stream r into ``rows[r]``, one behind the other, that of step ``first`` + i
before position ``ends[r, i]``; ``rows`` has room for them, n samples a step for Bernoulli, else B.
``keys`` is (n_streams, 2), uint64; ``permutation`` holds 0..n-1, and does so again on exit. The indices,
and their order, are those that `eosim.sampling.BatchStream` forms with NumPy.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from eosim._kernels.vectors import ZERO

# SplitMix64, as in eosim.sampling: the same draws to the bit.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@njit(cache=True, nogil=True, inline="always")
def _mix(x):
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def _start(key, counter):
    """Where the sequence of uniform numbers of a step, or of an epoch, begins."""
    return _mix(_mix(key[0] + np.uint64(counter) * _GAMMA) ^ key[1])


@njit(cache=True, nogil=True, inline="always")
def _uniform(start, j):
    """Draw j of the sequence that begins at ``start``, on [0, 1)."""
    return np.float64(_mix(start + np.uint64(j + 1) * _GAMMA) >> np.uint64(11)) * 2.0**-53


@njit(cache=True, nogil=True, inline="always")
def _shuffle(start, permutation, chosen):
    """The first entries of a Fisher-Yates shuffle of 0..n-1, as many as ``chosen`` has.

    ``permutation`` holds 0..n-1 on entry and again on exit: it is undone where it was touched, in
    O(batch_size).
    """
    n = permutation.shape[0]
    for j in range(chosen.shape[0]):  # apart from the swaps, which are sequential: this vectorises
        chosen[j] = j + np.int64(_uniform(start, j) * (n - j))
    for j in range(chosen.shape[0]):
        position = chosen[j]
        chosen[j] = permutation[position]
        permutation[position] = permutation[j]  # entry j itself is never looked at again
    for j in range(chosen.shape[0]):  # a position behind them that was touched was also chosen
        permutation[j] = j
        permutation[chosen[j]] = chosen[j]


@njit(cache=True, nogil=True)
def without_replacement(keys, first, batch_size, permutation, rows, ends):
    for r in range(ends.shape[0]):
        for i in range(ends.shape[1]):
            begin, end = i * batch_size, (i + 1) * batch_size
            _shuffle(_start(keys[r], first + i), permutation, rows[r, begin:end])
            ends[r, i] = end


@njit(cache=True, nogil=True)
def with_replacement(keys, first, batch_size, permutation, rows, ends):
    n_samples = permutation.shape[0]
    for r in range(ends.shape[0]):
        for i in range(ends.shape[1]):
            start = _start(keys[r], first + i)
            for j in range(batch_size):
                rows[r, i * batch_size + j] = np.int64(_uniform(start, j) * n_samples)
            ends[r, i] = (i + 1) * batch_size


@njit(cache=True, nogil=True)
def one_sample(keys, first, batch_size, permutation, rows, ends):
    """The batches of size 1 of both schemes above: a single loop, which vectorises."""
    n_samples = permutation.shape[0]
    for r in range(ends.shape[0]):
        for i in range(ends.shape[1]):
            rows[r, i] = np.int64(_uniform(_start(keys[r], first + i), 0) * n_samples)
            ends[r, i] = i + 1


@njit(cache=True, nogil=True)
def bernoulli(keys, first, batch_size, permutation, rows, ends):
    n_samples = permutation.shape[0]
    for r in range(ends.shape[0]):
        end = ZERO
        for i in range(ends.shape[1]):
            start = _start(keys[r], first + i)
            for sample in range(n_samples):
                if _uniform(start, sample) * n_samples < batch_size:
                    rows[r, end] = sample
                    end += 1
            ends[r, i] = end


@njit(cache=True, nogil=True)
def reshuffling(keys, first, batch_size, permutation, rows, ends):
    n_samples = permutation.shape[0]
    order = np.empty(n_samples, np.int64)
    per_epoch = (n_samples + batch_size - 1) // batch_size
    for r in range(ends.shape[0]):
        end = ZERO
        for i in range(ends.shape[1]):
            epoch, slot = (first + i) // per_epoch, (first + i) % per_epoch
            if slot == 0 or i == 0:
                _shuffle(_start(keys[r], epoch), permutation, order)
            for j in range(slot * batch_size, min((slot + 1) * batch_size, n_samples)):
                rows[r, end] = order[j]
                end += 1
            ends[r, i] = end
