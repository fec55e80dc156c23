"""Mini-batches in compiled code: shuffles for many steps at once, and one batch inside a kernel."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def partial_shuffles(draws, permutation):
    """Replace each row of ``draws`` by the batch that it selects, in place.

    Row r holds draws[r, j] uniform on {j, ..., n-1}; entry j becomes the element at that position
    of 0..n-1 after the swaps of entries 0..j-1 (Fisher-Yates stopped after batch_size swaps).

    Parameters
    ----------
    draws : (n_steps, batch_size) int64 array
    permutation : (n,) int64 array
        Must be 0..n-1 on entry; it is so again on exit.
    """
    n_steps, batch_size = draws.shape
    for row in range(n_steps):
        for j in range(batch_size):
            position = draws[row, j]
            chosen = permutation[position]
            permutation[position] = permutation[j]
            permutation[j] = chosen
        # Undo by walking the swaps backwards: O(batch_size), not O(n), and every batch starts from
        # the identity, hence is a function of its own draws alone.
        for j in range(batch_size - 1, -1, -1):
            position = draws[row, j]
            chosen = permutation[j]
            permutation[j] = permutation[position]
            permutation[position] = chosen
            draws[row, j] = chosen


# --- one batch at a time, inside other kernels ---------------------------------------------------

WITHOUT_REPLACEMENT, WITH_REPLACEMENT, BERNOULLI, RESHUFFLING = range(4)

# Counters start from this: a literal 0 is a type of its own, for which numba would compile all that is
# called with it once more.
ZERO = np.int64(0)

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
def _uniform(start, j):
    """Draw j of the sequence that begins at ``start``, on [0, 1)."""
    return np.float64(_mix(start + np.uint64(j + 1) * _GAMMA) >> np.uint64(11)) * 2.0**-53


@njit(cache=True, nogil=True)
def _shuffle(start, n_samples, n_chosen, permutation, positions, batch, first):
    """The first ``n_chosen`` entries of a Fisher-Yates shuffle; ``permutation`` is left as 0..n-1."""
    for j in range(n_chosen):  # apart from the swaps, which are sequential: this loop vectorises
        positions[j] = j + np.int64(_uniform(start, j) * (n_samples - j))
    for j in range(n_chosen):
        batch[first + j] = permutation[positions[j]]
        permutation[positions[j]] = permutation[j]  # entry j itself is never looked at again
    for j in range(n_chosen):
        permutation[j] = j
        permutation[positions[j]] = positions[j]


@njit(cache=True, nogil=True)
def draw_batch(
    scheme, key_0, key_1, step, n_samples, batch_size, permutation, positions, order, batch, first
):
    """Write the batch of one step into ``batch`` from position ``first`` on; returns its size.

    The indices, and their order, are those of `eosim.sampling.BatchStream`.

    Parameters
    ----------
    scheme : int
        Position in `eosim.sampling.SCHEMES`.
    key_0, key_1 : uint64
        The key of the stream.
    step, n_samples, batch_size : int
    permutation, positions : (n,) int64 arrays
        Scratch; ``permutation`` must be 0..n-1, and is so again on exit.
    order : (n + 1,) int64 array
        Of reshuffling: the order of an epoch, then that epoch's number; -1 there for a new key.
    batch : int64 array
        With room for a batch behind ``first``: n entries for Bernoulli, else B.
    first : int
    """
    counter = step
    per_epoch = 1
    if scheme == RESHUFFLING:
        per_epoch = (n_samples + batch_size - 1) // batch_size
        counter = step // per_epoch
    start = _mix(_mix(key_0 + np.uint64(counter) * _GAMMA) ^ key_1)
    if scheme == WITHOUT_REPLACEMENT:
        _shuffle(start, n_samples, batch_size, permutation, positions, batch, first)
        return batch_size
    if scheme == WITH_REPLACEMENT:
        for j in range(batch_size):
            batch[first + j] = np.int64(_uniform(start, j) * n_samples)
        return batch_size
    size = 0
    if scheme == BERNOULLI:
        for i in range(n_samples):
            if _uniform(start, i) * n_samples < batch_size:
                batch[first + size] = i
                size += 1
        return size
    if order[n_samples] != counter:
        _shuffle(start, n_samples, n_samples, permutation, positions, order, ZERO)
        order[n_samples] = counter
    begin = (step - counter * per_epoch) * batch_size
    size = min(batch_size, n_samples - begin)
    for j in range(size):
        batch[first + j] = order[begin + j]
    return size


@njit(cache=True, nogil=True)
def draw_batches(
    scheme, key_0, key_1, step, n_steps, n_samples, batch_size, permutation, positions, order,
    batches, ends,
):  # fmt: skip
    """`draw_batch` for some steps, one batch behind the other: batch i ends before ``ends[i]``."""
    if batch_size == 1 and scheme <= WITH_REPLACEMENT:  # one draw each: this loop vectorises
        for i in range(n_steps):
            start = _mix(_mix(key_0 + np.uint64(step + i) * _GAMMA) ^ key_1)
            batches[i] = np.int64(_uniform(start, 0) * n_samples)
            ends[i] = i + 1
        return
    end = ZERO
    for i in range(n_steps):
        end += draw_batch(
            scheme, key_0, key_1, step + i, n_samples, batch_size, permutation, positions, order,
            batches, end,
        )  # fmt: skip
        ends[i] = end
