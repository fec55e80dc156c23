"""The top eigenpair of a symmetric operator that is known by its products, searched for and followed."""

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
# Our choice: of the residual where a threshold rests on the eigenvalue; its error is about the square.
TOLERANCE = 1e-11
# Our choice: eigenvectors to follow; with 16 following takes as many products.
N_KNOWN = 8
# Our choice: following is given up after so many products, or if the last eigenvector's residual is so
# large in units of the eigenvalue: then a search is cheaper.
_PRODUCTS = 20
_LOST = 0.2
# Our choice: gaps between known eigenvalues count for at least this share of the spectrum's width: the
# eigenvalues may have moved by as much.
_LEAST_GAP = 0.01
# Our choice: a vector of which less is new than this share of its square would be rounding, blown up.
_NEW = 1e-4


class Known(NamedTuple):
    """Approximate eigenvectors, orthonormal rows, the top one first.

    With their eigenvalues, and about the least eigenvalue of all.
    """

    vectors: Array
    values: Array
    floor: float


class RitzPair(NamedTuple):
    """A unit vector with its Rayleigh quotient and the residual |Av - value v|."""

    value: float
    vector: Array
    residual: float
    converged: bool
    known: Known | None = None  # to be followed from


def top_eigenpair(
    product: Callable[[Array], Array], start: Array, tolerance: float = TOLERANCE
) -> tuple[float, Array]:
    """Value and vector of `top_ritz_pair`; RuntimeError if it does not converge."""
    pair = top_ritz_pair(product, start, tolerance)
    if not pair.converged:
        raise RuntimeError(
            f"Lanczos did not reach a residual of {tolerance:g} in {BASIS * _RESTARTS} products"
        )
    return pair.value, pair.vector


def top_ritz_pair(
    product: Callable[[Array], Array], start: Array, tolerance: float, n_known: int = 0
) -> RitzPair:
    """The largest eigenvalue and its eigenvector, by Lanczos with full reorthogonalisation.

    Stops at a residual below ``tolerance`` times the value's size: some eigenvalue is that close, and
    usually within the residual's square over the gap. A share of the operator's size would not do:
    one large negative eigenvalue would pass any vector for the top one. After 400 products the best
    pair so far is returned, not converged. The start must have a part along the eigenvector. To
    `follow` the pair later, ask for the ``n_known`` eigenvectors that are best known.
    """
    exponent: int | None = None  # the operator's unit is a power of two: squares stay in range
    vector, size = start / np.linalg.norm(start), 0.0
    for _ in range(_RESTARTS):
        basis = np.empty((min(BASIS, len(vector)), len(vector)))
        diagonal: list[float] = []
        off_diagonal: list[float] = []
        basis[0] = vector
        for m in range(1, len(basis) + 1):
            image = product(basis[m - 1])
            if exponent is None:
                exponent = _exponent(image)
            image = np.ldexp(image, -exponent)
            diagonal.append(float(basis[m - 1] @ image))
            so_far = basis[:m]
            for _ in range(2):  # once is not enough where directions have converged
                image = image - (so_far @ image) @ so_far
            length = float(np.linalg.norm(image))
            values, vectors = eigh_tridiagonal(
                diagonal, off_diagonal, select="i", select_range=(m - 1, m - 1)
            )
            value, residual = float(values[0]), length * abs(float(vectors[-1, 0]))
            size = max(size, abs(diagonal[-1]), length)
            if residual <= max(tolerance * abs(value), _ROUNDING * size):
                vector = vectors[:, 0] @ so_far
                known = _ritz_vectors(so_far, diagonal, off_diagonal, n_known)
                return _in_units(RitzPair(value, vector, residual, True, known), exponent)
            if m < len(basis):
                off_diagonal.append(length)
                basis[m] = image / length
        vector = vectors[:, 0] @ basis
    known = _ritz_vectors(basis, diagonal, off_diagonal, n_known)
    vector = vector / np.linalg.norm(vector)
    assert exponent is not None
    return _in_units(RitzPair(value, vector, residual, False, known), exponent)


def follow(product: Callable[[Array], Array], known: Known, tolerance: float) -> RitzPair | None:
    r"""The top eigenpair of an operator that has changed a little since ``known``; None if too much.

    Davidson's method with what is known as the model: after the product with the last vector, the
    residual r is divided by the gaps, :math:`\sum_j y_j (y_j \cdot r) / (\theta - \mu_j)`, which
    Lanczos, knowing nothing, would need many products for. Value and residual are of new products
    alone. What is known is then improved by them. What overtakes unseen by these vectors stays so.
    """
    exponent = _exponent(np.append(known.values, known.floor))
    known = _rescaled(known, -exponent)
    Y, mu, floor = known
    Q, W = np.empty((2, _PRODUCTS, Y.shape[1]))  # new vectors and their images
    direction, size = Y[0], 0.0
    for m in range(1, _PRODUCTS + 1):
        Q[m - 1], W[m - 1] = direction, np.ldexp(product(direction), -exponent)
        compressed = Q[:m] @ W[:m].T
        compressed = (compressed + compressed.T) / 2
        values, vectors = np.linalg.eigh(compressed)
        value, vector = float(values[-1]), vectors[:, -1] @ Q[:m]
        remainder = vectors[:, -1] @ W[:m] - value * vector
        residual = float(np.linalg.norm(remainder))
        size, width = max(size, float(np.abs(values).max()), residual), value - floor
        if residual <= max(tolerance * abs(value), _ROUNDING * size):
            vector = vector / np.linalg.norm(vector)
            new = _improved(known, Q[:m], W[:m], compressed, width)
            return _in_units(RitzPair(value, vector, residual, True, new), exponent)
        if residual > _LOST * abs(value) or not width > 0:
            break
        parts = Y @ remainder
        weights = parts / np.maximum(value - mu, _LEAST_GAP * width) - parts / width
        direction = weights @ Y + remainder / width
        for _ in range(2):
            direction = direction - (Q[:m] @ direction) @ Q[:m]
        direction = direction / np.linalg.norm(direction)
    return None


def _improved(known: Known, Q: Array, W: Array, compressed: Array, width: float) -> Known:
    """The best eigenvectors in the span of ``known``, Y, and of the orthonormal rows of Q, W = Q A.

    On Z, the part of the span of Y that is orthogonal to Q, A is taken for what it was,
    Y^T diag(mu) Y; everywhere else it is known anew, ``compressed`` = Q A Q^T. What A maps Q to off
    both is a step of the power iteration, shifted to the floor of the spectrum, that costs no product.
    """
    Y, mu, floor = known
    overlaps = Y @ Q.T  # (known, new)
    shares, axes = np.linalg.eigh(np.eye(len(Y)) - overlaps @ overlaps.T)  # of Y off Q
    kept = shares > _NEW
    axes, roots = axes[:, kept], np.sqrt(shares[kept])
    onto, old = axes / roots, (axes * roots).T  # Z = onto^T (Y - overlaps Q), and Z Y^T
    rests = W - compressed @ Q
    seen = rests @ Y.T
    between = seen @ onto
    whole = np.block([[compressed, between], [between.T, (old * mu) @ old.T]])
    values, vectors = np.linalg.eigh(whole)
    values, vectors = values[: -N_KNOWN - 1 : -1], vectors[:, : -N_KNOWN - 1 : -1]
    on_new, on_old = vectors[: len(Q)], onto @ vectors[len(Q) :]
    sound = np.linalg.norm(rests, axis=1).max() <= width and width > 0  # else the floor is none
    step = on_new.T / width if sound else np.zeros_like(on_new.T)
    weights = np.hstack([on_old.T - step @ seen, on_new.T - on_old.T @ overlaps, step])
    rows = np.vstack([Y, Q, rests])
    lower = np.linalg.cholesky(weights @ (rows @ rows.T) @ weights.T)
    return Known(
        np.linalg.solve(lower, weights) @ rows, values, floor
    )  # orthonormal, in this order


def _ritz_vectors(
    basis: Array, diagonal: list[float], off_diagonal: list[float], n_known: int
) -> Known | None:
    """The top ones of a Lanczos basis; None if there is to be none."""
    if n_known == 0:
        return None
    values, vectors = eigh_tridiagonal(diagonal, off_diagonal)
    top = slice(None, -n_known - 1, -1)
    return Known(vectors[:, top].T @ basis, values[top], float(values[0]))


def _exponent(values: Array) -> int:
    """Of the power of two above the largest of them."""
    return int(np.frexp(np.abs(values).max())[1])


def _rescaled(known: Known, exponent: int) -> Known:
    return Known(
        known.vectors, np.ldexp(known.values, exponent), float(np.ldexp(known.floor, exponent))
    )


def _in_units(pair: RitzPair, exponent: int) -> RitzPair:
    """Of the operator itself, once 2^exponent was its unit."""
    value, residual = (float(np.ldexp(x, exponent)) for x in (pair.value, pair.residual))
    known = None if pair.known is None else _rescaled(pair.known, exponent)
    return RitzPair(value, pair.vector, residual, pair.converged, known)
