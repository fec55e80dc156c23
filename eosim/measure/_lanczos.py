"""The top eigenpair of a symmetric operator that is known by its products, and how good it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh_tridiagonal

from eosim._checks import Array

# Our choice: a basis of 40 vectors, then a restart from the best vector; ten restarts.
BASIS = 40
_RESTARTS = 10
# Our choice: far above what rounding leaves of a residual, relative to the operator's size. It ends
# the search where the top eigenvalue is 0, whose residual is below no share of it.
_ROUNDING = 1e-13


class RitzPair(NamedTuple):
    """A unit vector with its Rayleigh quotient and the residual |Av - value v|."""

    value: float
    vector: Array
    residual: float
    converged: bool


def top_ritz_pair(product: Callable[[Array], Array], start: Array, tolerance: float) -> RitzPair:
    """The largest eigenvalue and its eigenvector, by Lanczos with full reorthogonalisation.

    Stops at a residual below ``tolerance`` times the value's size: some eigenvalue is that close, and
    usually within the residual's square over the gap. A share of the operator's size would not do:
    one large negative eigenvalue would pass any vector for the top one. After 400 products the best
    pair so far is returned, not converged. The start must have a part along the eigenvector.

    Raises
    ------
    ValueError
        If a product is not finite.
    """
    vector, size = start / np.linalg.norm(start), 0.0
    for _ in range(_RESTARTS):
        basis = np.empty((min(BASIS, len(vector)), len(vector)))
        diagonal: list[float] = []
        off_diagonal: list[float] = []
        basis[0] = vector
        for m in range(1, len(basis) + 1):
            image = product(basis[m - 1])
            if not np.isfinite(image).all():
                raise ValueError("the Hessian is not finite at theta")
            diagonal.append(float(basis[m - 1] @ image))
            known = basis[:m]
            for _ in range(2):  # once is not enough where directions have converged
                image = image - (known @ image) @ known
            length = float(np.linalg.norm(image))
            values, vectors = eigh_tridiagonal(
                diagonal, off_diagonal, select="i", select_range=(m - 1, m - 1)
            )
            value, residual = float(values[0]), length * abs(float(vectors[-1, 0]))
            size = max(size, abs(diagonal[-1]), length)
            if residual <= max(tolerance * abs(value), _ROUNDING * size):
                return RitzPair(value, vectors[:, 0] @ known, residual, True)
            if m < len(basis):
                off_diagonal.append(length)
                basis[m] = image / length
        vector = vectors[:, 0] @ basis
    return RitzPair(value, vector / np.linalg.norm(vector), residual, False)
