"""Matrix functions of the Hessian with logarithms that are continued along the path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.linalg import eigh_tridiagonal, lapack, logm
from scipy.optimize import linear_sum_assignment

from eosim._checks import Array
from eosim.flows.base import AmbiguousBranch, LeftRange

# Our choice: an eigenvector matrix of worse reciprocal condition than this has lost too many
# digits, and the matrix function is taken without eigenvectors instead.
_WORST_CONDITION = 1e-9
# Our choice: a matched eigenvalue must have moved less than half as far as to any other eigenvalue
# that carries another logarithm, or the matching is not trusted.
_CLEAR_MATCH = 0.5
# Our choice: Lanczos steps between two looks at the answer, and from some number on the growth of
# their number, so that all looks together cost no more than the steps. After so many steps a rate of
# convergence tells.
_FORMED_EVERY, _FORMED_GROWTH, _PATIENCE = 4, 1.2, 30
# Our choice: far above the rounding of a Lanczos step, relative to the largest number so far.
_ROUNDING = 1e-14


class Logarithm(Protocol):
    """The multivalued logarithm of a method's multiplier, log(1 - z) for gradient descent.

    ``has_schur_form`` says whether it is that one, which also has a form without eigenvectors.
    """

    @property
    def has_schur_form(self) -> bool: ...

    def start(self, z: Array) -> Array:
        """The value with which a path starts."""

    def sheets(self, z: Array) -> Array:
        """Values from which every other differs by a multiple of 2 pi i, shape (n_sheets, n)."""

    def coefficient(self, z: Array, logarithms: Array) -> Array:
        """logarithm / z, with its limit at z = 0."""


@dataclass(frozen=True, eq=False)
class Branch:
    """Eigenvalues of H at the last accepted state, and the logarithm each of them carries.

    ``at_start`` says that these are the values with which a path would start here: on the real
    axis that convention is continuous, and nothing needs to be matched.
    """

    eigenvalues: Array
    logarithms: Array
    at_start: bool


def decompose(hessian: Array) -> tuple[Array, Array]:
    """Eigenvalues and vectors: real and orthonormal where the Hessian is real.

    A matrix function does not depend on signs or on rotations within degenerate eigenspaces.
    """
    if not np.isfinite(hessian).all():  # eigen-solvers may return finite numbers for NaN
        raise FloatingPointError("the Hessian is not finite")
    if np.isrealobj(hessian) or not hessian.imag.any():
        return np.linalg.eigh(hessian.real)
    return np.linalg.eig(hessian)


def started(hessian: Array, lr: float, logarithm: Logarithm) -> Branch:
    """The branch of a path that starts here."""
    eigenvalues, _ = decompose(hessian)
    return Branch(eigenvalues, logarithm.start(lr * eigenvalues), np.isrealobj(eigenvalues))


def advanced(branch: Branch, hessian: Array, lr: float, logarithm: Logarithm) -> Branch:
    """The branch at the next accepted state; raises `AmbiguousBranch` if it came from too far."""
    eigenvalues, _ = decompose(hessian)
    logarithms, clear = _matched(branch, eigenvalues, lr, logarithm)
    start = logarithm.start(lr * eigenvalues)
    at_start = np.isrealobj(eigenvalues) and np.array_equal(start, logarithms)
    branch = Branch(eigenvalues, logarithms, at_start)
    if not clear:
        raise AmbiguousBranch(branch)
    return branch


def _matched(
    branch: Branch, eigenvalues: Array, lr: float, logarithm: Logarithm
) -> tuple[Array, bool]:
    """The continued logarithms, and whether continuity left no doubt."""
    z = lr * eigenvalues
    start = logarithm.start(z)
    if branch.at_start and np.isrealobj(z):
        return start, True
    distance = np.abs(branch.eigenvalues[:, None] - eigenvalues)  # (old, new)
    old, new = linear_sum_assignment(distance)  # old is 0, 1, ..., n-1
    # On the real axis a crossing of a singularity changes the imaginary part by exactly pi: both
    # signs are admissible (conjugate solutions), and the convention of the start decides.
    sheets = start[None, :] if np.isrealobj(z) else logarithm.sheets(z)  # (sheet, new)
    carried = np.asarray(branch.logarithms, dtype=complex)[:, None]  # (old, 1)
    turns = np.round((carried.imag - sheets[:, None, :].imag) / (2 * np.pi))  # (sheet, old, new)
    values = sheets[:, None, :] + 2j * np.pi * turns
    nearest = np.abs(values - carried).argmin(axis=0)  # (old, new)
    values = np.take_along_axis(values, nearest[None], axis=0)[0]  # by whose memory, at which z
    logarithms = np.empty(len(z), dtype=complex)
    logarithms[new] = values[old, new]
    # A mix-up matters only where the memory of the one gives another value than that of the other.
    differs = np.abs(values - logarithms) > 1e-6
    other = np.where(differs, distance, np.inf).min(axis=1)
    clear = bool((distance[old, new] <= _CLEAR_MATCH * other[old]).all())
    return logarithms, clear


def apply_dense(
    hessian: Array, vector: Array, lr: float, branch: Branch | None, logarithm: Logarithm
) -> Array:
    """alpha(hH) vector from all eigenvalues, continued from ``branch``; as at a start if None."""
    eigenvalues, vectors = decompose(hessian)
    z = lr * eigenvalues
    if branch is None:
        logarithms = logarithm.start(z)
    else:
        logarithms, _ = _matched(branch, eigenvalues, lr, logarithm)
    alpha = logarithm.coefficient(z, logarithms)
    if np.isrealobj(vectors):  # orthonormal
        return vectors @ (alpha * (vectors.T @ vector))
    # LAPACK normalises columns as Hermitian vectors; a complex-symmetric H needs the inverse of
    # the whole matrix, not its transpose.
    factors, pivots, info = lapack.zgetrf(vectors)
    condition, _ = lapack.zgecon(factors, np.abs(vectors).sum(axis=0).max())
    if info == 0 and condition > _WORST_CONDITION:
        weights, _ = lapack.zgetrs(factors, pivots, vector)
        return vectors @ (alpha * weights)
    if not logarithm.has_schur_form:
        raise LeftRange(
            "the Hessian is defective (eigenvectors coincide), where this flow has no other form"
        )
    return apply_without_eigenvectors(hessian, vector, lr, z, logarithms)


def apply_without_eigenvectors(
    hessian: Array, vector: Array, lr: float, z: Array, logarithms: Array
) -> Array:
    """log(I - hH) (hH)^{-1} vector by Schur form, on the principal branch only.

    log(I - M) of M = [[hH, v], [0, 0]] holds it in its corner: finite also where H is singular or
    its eigenvectors coincide.
    """
    if np.abs(logarithms - np.log(np.asarray(1 - z, dtype=complex))).max() > 1e-6:
        raise LeftRange(
            "the Hessian is defective (eigenvectors coincide) while a logarithm is off its principal "
            "branch: the flow is not defined by continuity here"
        )
    dim = len(vector)
    block = np.zeros((dim + 1, dim + 1), dtype=complex)
    block[:dim, :dim], block[:dim, dim] = lr * hessian, vector
    return np.asarray(logm(np.eye(dim + 1) - block))[:dim, dim]


def apply_lanczos(
    product: Callable[[Array], Array],
    vector: Array,
    lr: float,
    logarithm: Logarithm,
    tolerance: float,
    max_steps: int,
    *,
    give_up: bool = False,
) -> tuple[Array, float, Array]:
    r"""alpha(hH) vector from Hessian-vector products, at a real state.

    With the Lanczos basis Q and tridiagonal T of the Krylov space of the vector,
    :math:`y = |v|\, Q\, \alpha(hT)\, e_1`. The basis is orthogonalised twice at every step: single
    orthogonalisation loses digits on spectra with outliers. The error is estimated by the change
    since the last time that y was formed, four steps before or more.

    Parameters
    ----------
    give_up : bool
        Whether to stop as soon as the steps do not promise to suffice; for where there is another way.

    Returns
    -------
    y : (dim,) array
    error : float
        Estimated error relative to |y|.
    ritz : array
        Ritz values of hH.
    """
    length = float(np.linalg.norm(vector))
    if length == 0:
        return 0 * vector, 0.0, np.zeros(0)
    max_steps = min(max_steps, len(vector))
    basis = np.empty((max_steps, len(vector)))  # rows: orthonormal
    basis[0] = vector / length
    diagonal, off_diagonal = np.zeros(max_steps), np.zeros(max_steps)
    formed, last = np.zeros(0), 0  # coefficients of y in the basis, and after how many steps
    error, size = np.inf, 0.0
    for m in range(1, max_steps + 1):
        image = lr * product(basis[m - 1])
        diagonal[m - 1] = image @ basis[m - 1]
        for _ in range(2):
            image = image - basis[:m].T @ (basis[:m] @ image)
        off_diagonal[m - 1] = np.linalg.norm(image)
        size = max(size, abs(diagonal[m - 1]), off_diagonal[m - 1])
        # a vanishing new direction means that the space is invariant: the answer is exact
        exact = off_diagonal[m - 1] <= _ROUNDING * size or m == len(vector)
        if exact or m == max_steps or m >= max(last + _FORMED_EVERY, _FORMED_GROWTH * last):
            ritz, modes = eigh_tridiagonal(diagonal[:m], off_diagonal[: m - 1])
            # Where it is 1 up to rounding, at lr = 1 / L, rounding would draw side and logarithm anew
            # at every look, and no two looks would agree.
            ritz[np.abs(ritz - 1) <= _ROUNDING * size] = 1.0
            alpha = logarithm.coefficient(ritz, logarithm.start(ritz))
            coefficients = modes @ (alpha * modes[0])
            # Real or complex as the Ritz values have it: rounding may also take one back below 1.
            change = coefficients.astype(np.result_type(coefficients, formed))
            change[:last] -= formed
            before = error
            error = float(np.linalg.norm(change) / np.linalg.norm(coefficients))
            if exact:
                error = 0.0
            if error <= tolerance or m == max_steps:
                break
            if give_up and m >= _PATIENCE:
                # Were the change to fall on at this rate, how many steps would it take in all?
                rate = math.log(max(before / error, 1.0)) / (m - last)
                if m + math.log(error / tolerance) / max(rate, 1e-300) > 2 * max_steps:
                    break
            formed, last = coefficients, m
        basis[m] = image / off_diagonal[m - 1]
    return length * (coefficients @ basis[: len(coefficients)]), error, ritz
