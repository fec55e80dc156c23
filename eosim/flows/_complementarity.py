r"""The semidefinite complementarity problem that sets the oscillations of a central flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from eosim._checks import Array

# Our choice, relative to A. Newton's method goes on to rounding; this tells a solution from none.
TOLERANCE = 1e-10
_ROUNDING = 1e-15
# Newton's method is tried at once and after every 25 projected gradient steps.
_NEWTON_STEPS, _GRADIENT_STEPS, _EVERY = 20, 2000, 25


class NoSolution(Exception):
    """No X is found: where B is singular there need not be one."""


def solve_complementarity(A: Array, B: Array) -> Array:
    r"""The X with :math:`X \succeq 0,\ A + B[X] \succeq 0,\ \langle X, A + B[X] \rangle = 0`.

    :math:`B[X]_{ij} = \sum_{mn} B_{ij,mn} X_{mn}`. With a symmetric positive definite B there is one
    solution, the minimum of :math:`\langle X, B[X] \rangle/2 + \langle A, X \rangle` over
    :math:`X \succeq 0`. It is the fixed point of :math:`X = (X - (A + B[X])/c)_+`, found by projected
    gradient steps and Newton's method on this equation (its derivative is that of the projection).

    Parameters
    ----------
    A : (k, k) array, symmetric
    B : (k, k, k, k) array
        Symmetric under ij <-> mn, i <-> j, m <-> n.

    Returns
    -------
    (k, k) array

    Raises
    ------
    NoSolution
        If none is found to `TOLERANCE`, relative to the data.
    """
    k = len(A)
    if k == 1 and B[0, 0, 0, 0] > 0:
        return np.maximum(-A / B[0, 0], 0)
    if np.linalg.eigvalsh(A)[0] >= 0:
        return np.zeros((k, k))
    frame = _symmetric_frame(k)
    a = frame.T @ A.ravel()
    b = frame.T @ B.reshape(k * k, k * k) @ frame
    scale = float(np.linalg.norm(b, 2))
    if scale == 0:
        raise NoSolution("B is 0 and A has a negative eigenvalue")
    size = float(np.linalg.norm(a))
    a, b = a / size, b / scale  # X in units of |A| / |B|

    def projected(x: Array) -> tuple[Array, Array]:
        """The right-hand side of the fixed-point equation and its derivative, c = 1."""
        values, vectors = np.linalg.eigh((frame @ (x - a - b @ x)).reshape(k, k))
        positive = np.maximum(values, 0)
        gaps = np.subtract.outer(values, values)
        slopes = np.broadcast_to((values > 0).astype(float), (k, k)).copy()
        np.divide(np.subtract.outer(positive, positive), gaps, out=slopes, where=gaps != 0)
        rotation = frame.T @ np.kron(vectors, vectors)
        point = frame.T @ ((vectors * positive) @ vectors.T).ravel()
        return point, (rotation * slopes.ravel()) @ rotation.T @ (np.eye(len(a)) - b)

    x, momentum = np.zeros(len(a)), 1.0
    ahead = x
    for n in range(_GRADIENT_STEPS):
        if n % _EVERY == 0:
            root = _newton(projected, x)
            if root is not None:
                break
        last, (x, _) = x, projected(ahead)
        if (ahead - x) @ (x - last) > 0:  # the momentum points uphill
            momentum, ahead = 1.0, x
        else:
            later = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead, momentum = x + (momentum - 1) / later * (x - last), later
    else:
        raise NoSolution(f"no solution was found in {_GRADIENT_STEPS} steps")
    solution = (frame @ root).reshape(k, k) * size / scale
    values, vectors = np.linalg.eigh(solution)
    return (vectors * np.maximum(values, 0)) @ vectors.T


def _newton(projected: Callable[[Array], tuple[Array, Array]], x: Array) -> Array | None:
    """A root of projected(x) - x near x, or None."""
    best, found = math.inf, x
    for _ in range(_NEWTON_STEPS):
        point, derivative = projected(x)
        residual = float(np.linalg.norm(point - x))
        if not residual < (0.1 if best <= TOLERANCE else 2) * best:
            break  # at rounding, or away from every root
        if residual < best:
            best, found = residual, point
        if residual <= _ROUNDING:
            break
        x = x + np.linalg.lstsq(np.eye(len(x)) - derivative, point - x, rcond=None)[0]
    return found if best <= TOLERANCE else None


@cache
def _symmetric_frame(k: int) -> Array:
    """An orthonormal basis of the symmetric matrices, as columns of flattened ones."""
    columns = []
    for i in range(k):
        for j in range(i, k):
            matrix = np.zeros((k, k))
            matrix[i, j] = matrix[j, i] = 1 if i == j else math.sqrt(0.5)
            columns.append(matrix.ravel())
    return np.array(columns).T
