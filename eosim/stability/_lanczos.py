"""The top eigenpair of a symmetric operator that is known by its products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import eigh_tridiagonal

from eosim._checks import Array

# Our choice: a basis of 40 vectors, then a restart from the best vector; ten restarts.
_BASIS = 40
_RESTARTS = 10
# Our choice: of the residual, relative to the eigenvalue; its error is usually the square of it.
TOLERANCE = 1e-11


def top_eigenpair(
    product: Callable[[Array], Array], start: Array, tolerance: float = TOLERANCE
) -> tuple[float, Array]:
    """The largest eigenvalue and its unit eigenvector, by Lanczos with full reorthogonalisation.

    Stops at a residual below ``tolerance`` times the eigenvalue: its error is at most that, and
    usually the square of it over the gap. The start must not be orthogonal to the eigenvector.

    Raises
    ------
    RuntimeError
        If 400 products did not suffice.
    """
    vector = start / np.linalg.norm(start)
    for _ in range(_RESTARTS):
        basis = np.empty((min(_BASIS, len(vector)), len(vector)))
        diagonal: list[float] = []
        off_diagonal: list[float] = []
        basis[0] = vector
        for m in range(1, len(basis) + 1):
            image = product(basis[m - 1])
            diagonal.append(float(basis[m - 1] @ image))
            known = basis[:m]
            for _ in range(2):  # once is not enough where directions have converged
                image = image - (known @ image) @ known
            length = float(np.linalg.norm(image))
            values, vectors = eigh_tridiagonal(
                diagonal, off_diagonal, select="i", select_range=(m - 1, m - 1)
            )
            value = float(values[0])
            scale = max(abs(value), max(map(abs, diagonal)))
            if length * abs(vectors[-1, 0]) <= tolerance * scale:
                return value, vectors[:, 0] @ known
            if m < len(basis):
                off_diagonal.append(length)
                basis[m] = image / length
        vector = vectors[:, 0] @ basis
        if len(basis) == len(vector):  # the whole space: exact up to rounding
            return value, vector
    raise RuntimeError(
        f"Lanczos did not reach a residual of {tolerance:g} in {_BASIS * _RESTARTS} products"
    )
