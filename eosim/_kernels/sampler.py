"""Partial Fisher-Yates shuffles for many steps at once."""

from __future__ import annotations

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
