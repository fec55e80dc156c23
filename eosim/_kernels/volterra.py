"""Energies of modes that all feed on their sum: a Volterra equation whose memory is r exponentials.

Sums may be reassociated (without it they are not vectorised); no kernel here tests finiteness by
arithmetic, and NaN and infinity pass through.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Our choice: every so many steps what has decayed below this counts as zero; arithmetic on subnormal
# numbers would be many times slower.
_FLUSH, _SMALLEST = 64, 1e-280


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def totals(modes, kept, feed, outside, steps):
    """sum_a p_a at ascending steps, for p_a' = kept_a p_a + feed_a (sum_b p_b + outside)."""
    p = modes.copy()
    total = 0.0
    for a in range(p.shape[0]):
        total += p[a]
    found = np.empty(steps.shape[0])
    now = 0
    for index in range(steps.shape[0]):
        while now < steps[index]:
            met, total = total + outside, 0.0
            for a in range(p.shape[0]):
                p[a] = kept[a] * p[a] + feed[a] * met
                total += p[a]
            now += 1
            if now % _FLUSH == 0:
                total = 0.0
                for a in range(p.shape[0]):
                    if abs(p[a]) < _SMALLEST:
                        p[a] = 0.0
                    total += p[a]  # again, or the sum would feed what has just become zero
        found[index] = total
    return found
