"""Products with symmetric matrices Q_a that are stored as triangles.

Row a of ``packed`` holds Q_a[j, k] with k <= j at position j (j + 1) / 2 + k. Every entry is read once,
serves Q_a[j, k] and Q_a[k, j], and is multiplied and summed in float64 whatever it is stored in.

Sums may be reassociated (without it they are not vectorised: three times slower); no kernel here tests
finiteness by arithmetic, and NaN and infinity pass through.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_SUMS = {"reassoc", "contract"}


@njit(cache=True, nogil=True, fastmath=_SUMS)
def images(packed, batch, vectors):
    """Q_a v for every sample a of ``batch`` and every v: (n_vectors, len(batch), P), one pass."""
    result = np.zeros((len(vectors), len(batch), vectors.shape[1]))
    for index in range(len(batch)):
        triangle = packed[batch[index]]
        start = 0
        for j in range(vectors.shape[1]):
            row = triangle[start : start + j + 1]
            for which in range(len(vectors)):  # inside: the row is still in the nearest cache
                vector, image = vectors[which], result[which, index]
                x, total = vector[j], 0.0
                for k in range(j):
                    total += row[k] * vector[k]
                    image[k] += row[k] * x
                image[j] += total + row[j] * x
            start += j + 1
    return result


@njit(cache=True, nogil=True, fastmath=_SUMS)
def weighted_sum(packed, batch, weights):
    """sum_a weights_a Q_a over the samples of ``batch``, as a triangle, for each row of weights."""
    result = np.zeros((len(weights), packed.shape[1]))
    for index in range(len(batch)):
        triangle = packed[batch[index]]
        for which in range(len(weights)):
            weight = weights[which, index]
            for k in range(packed.shape[1]):
                result[which, k] += weight * triangle[k]
    return result
