r"""The sharpest directions of :math:`P^{-1/2} H P^{-1/2}`: decomposed at once, or tracked along a path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eosim._checks import Array
from eosim.problems.base import Problem, hessian_products

# Our choice: up to here a decomposition costs less than the products that tracking takes.
DENSE_DIM = 64
# Our choice: the residual of a tracked direction relative to the largest eigenvalue. Fields are then
# smooth to about this number over the gap, below every useful tolerance of the solver. Directions
# below the floor are only counted, not used.
_TOLERANCE, _ROUGH = 1e-9, 1e-2
# A block of k + 2 vectors grows sixfold before a restart; warm starts take one to three rounds.
_GUARDS, _ROUNDS, _WIDTH = 2, 400, 6


@dataclass(frozen=True)
class Modes:
    """The largest eigenvalues, descending, and unit eigenvectors of P^(-1/2) H P^(-1/2).

    Attributes
    ----------
    values : (k,) array
    vectors : (dim, k) array
    following : float
        The next eigenvalue; -inf if there is none.
    block : (dim, m) array
        Where to start from at a point nearby.
    """

    values: Array
    vectors: Array
    following: float
    block: Array


def tracks(dim: int, k: int) -> bool:
    """Whether k modes of this many parameters are followed from a block of a point nearby.

    Of more than about half the directions they are not: a block and its residuals are then more
    vectors than there are directions.
    """
    return dim > DENSE_DIM and 2 * (k + _GUARDS) <= dim


def top_modes(
    problem: Problem,
    theta: Array,
    root: Array,
    k: int,
    block: Array | None,
    floor: float = -np.inf,
) -> Modes:
    """The k largest, with root = P^(1/2) entry by entry, from a block of a point nearby.

    Eigenvalues below ``floor``, except the largest, are known to a per cent of the largest only.

    Raises
    ------
    FloatingPointError
        If the Hessian is not finite, or tracked directions do not converge.
    """
    dim = len(theta)
    k = min(k, dim)
    if not tracks(dim, k):
        matrix = problem.hessian(theta) / np.outer(root, root)
        if not np.isfinite(matrix).all():
            raise FloatingPointError("the Hessian is not finite")
        values, vectors = np.linalg.eigh(matrix)
        values, vectors = values[::-1], vectors[:, ::-1]
        following = float(values[k]) if k < dim else -np.inf
        return Modes(values[:k], vectors[:, :k], following, vectors[:, :k])
    hessian = hessian_products(problem, theta)
    if block is None:
        block = np.random.default_rng(0).standard_normal((dim, k + _GUARDS))
    values, vectors = _davidson(lambda v: hessian(v / root) / root, block, k, floor)
    return Modes(values[:k], vectors[:, :k], float(values[k]), vectors)


def _davidson(
    product: Callable[[Array], Array], block: Array, k: int, floor: float
) -> tuple[Array, Array]:
    """Rayleigh-Ritz in a space that residuals widen; restarted from the best vectors when full."""
    width = min(_WIDTH * block.shape[1], len(block))
    basis = np.linalg.qr(block)[0]
    images = _images(product, basis)
    for _ in range(_ROUNDS):
        projected = basis.T @ images
        values, rotation = np.linalg.eigh((projected + projected.T) / 2)
        values, rotation = values[::-1], rotation[:, ::-1]
        keep = block.shape[1]
        vectors, moved = basis @ rotation[:, :keep], images @ rotation[:, :keep]
        residuals = moved[:, :k] - vectors[:, :k] * values[:k]
        tolerance = np.where(values[:k] >= min(floor, values[0]), _TOLERANCE, _ROUGH)
        open_ones = np.linalg.norm(residuals, axis=0) > tolerance * np.abs(values).max()
        if not open_ones.any():
            return values[:keep], vectors
        if basis.shape[1] + open_ones.sum() > width:  # go on with the better half
            best = rotation[:, : max(keep, width // 2)]
            basis, images = basis @ best, images @ best
        new = residuals[:, open_ones]
        for _ in range(2):
            new = new - basis @ (basis.T @ new)
            new = np.linalg.qr(new)[0]
        basis = np.hstack([basis, new])
        images = np.hstack([images, _images(product, new)])
    raise FloatingPointError("the sharpest directions could not be tracked")


def _images(product: Callable[[Array], Array], vectors: Array) -> Array:
    images = np.stack([product(v) for v in vectors.T], axis=1)
    if not np.isfinite(images).all():
        raise FloatingPointError("the Hessian is not finite")
    return images
