r"""Products with the noise kernel, at half price where matrices are symmetric; the rate of its norm 1.

:math:`(G s)_i = v_i^\top\,[w \circ M]\,v_i` with :math:`M = V^\top \mathrm{diag}(s)\, V`: both steps know
their symmetric matrices by one triangle. The first is a product of a matrix with its own transpose
(once for s > 0, once for s < 0), the second a product with a triangular matrix; each costs half as much
as a general one, and what lies between them is done on r (r + 1)/2 numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.linalg import blas, lapack

from eosim._checks import Array
from eosim._lanczos import TOLERANCE
from eosim.sampling import BatchMoments
from eosim.stability.tangent_kernel import TangentKernel

# Our choice: what the bounds of Collatz and Wielandt must leave open at most, relatively. The error is
# about its square over the gap; at most itself, whatever the gap.
_ENCLOSURE = 1e-8
# Our choice: the step of Newton's method that is left out at the end, whose square is the error.
_LAST_STEP = 1e-7
# Our choice: the diagonal is known to so much of the rate, and so far below the eigenvalue at most.
_STALE, _NEAREST = 0.05, 0.02
# A direction of which orthogonalisation leaves so little was in the span already.
_NOTHING_NEW = 1e-8
# Our choice: far above the 10 to 40 products that are usual.
_PRODUCTS = 1000
# Our choice: so many numbers of a basis are turned at a time, in cache.
_PIECE = 1 << 15


def pairs(values: Array) -> tuple[Array, Array, Array]:
    """Both members of every pair a <= b, in the order of packed triangles, and how often it occurs.

    In a symmetric matrix: once on the diagonal, twice off it.
    """
    first, second = np.triu_indices(len(values))
    return values[first], values[second], np.where(first == second, 1.0, 2.0)


def pack(matrix: Array) -> Array:
    """The triangle of a symmetric matrix, in the order of `pairs`."""
    columns = matrix if matrix.flags.f_contiguous else np.ascontiguousarray(matrix).T
    return lapack.dtrttp(columns, uplo="L")[0]


class HalfProducts:
    """The products that make up the noise kernel of an NTK, on packed triangles.

    One call at a time: they share their scratch memory.
    """

    def __init__(self, ntk: TangentKernel) -> None:
        self.n_outputs = ntk.n_outputs
        self.vectors = np.ascontiguousarray(ntk.vectors())
        self._rows = np.empty_like(self.vectors)
        self._square = np.zeros((self.vectors.shape[1],) * 2, order="F")

    def sandwich(self, blocks: Array) -> Array:
        """V^T blockdiag(s) V for blocks s (n, k, k), flattened or not; packed."""
        k, rows, scales = self.n_outputs, self.vectors, blocks.ravel()
        if k > 1:  # each sample in the outputs in which its block is diagonal
            square = blocks.reshape(-1, k, k)
            values, turns = np.linalg.eigh((square + square.transpose(0, 2, 1)) / 2)
            turned = turns.transpose(0, 2, 1) @ rows.reshape(-1, k, rows.shape[1])
            rows, scales = turned.reshape(rows.shape), values.ravel()
        order = np.argsort(scales < 0, kind="stable")
        np.take(rows, order, axis=0, out=self._rows, mode="clip")
        self._rows *= np.sqrt(np.abs(scales[order]))[:, None]
        n_positive = int(np.count_nonzero(scales >= 0))
        kept = 0.0
        for sign, part in ((1.0, self._rows[:n_positive]), (-1.0, self._rows[n_positive:])):
            if len(part):
                self._square = blas.dsyrk(
                    sign, part.T, beta=kept, c=self._square, lower=1, overwrite_c=1
                )
                kept = 1.0
        return pack(self._square)

    def diagonal_blocks(self, doubled: Array) -> Array:
        """The diagonal blocks of V A V^T, flattened, for packed A with its off-diagonal doubled."""
        image = self._times(self.vectors, doubled)
        if self.n_outputs == 1:
            return np.vecdot(image, self.vectors)
        shape = (-1, self.n_outputs, self.vectors.shape[1])
        blocks = image.reshape(shape) @ self.vectors.reshape(shape).transpose(0, 2, 1)
        return ((blocks + blocks.transpose(0, 2, 1)) / 2).ravel()

    def own_weight(self, doubled: Array) -> Array:
        r""":math:`G_{ii}`, for several outputs an estimate of it, in the layout of the blocks."""
        k = self.n_outputs
        squares = (self.vectors**2).reshape(-1, k, self.vectors.shape[1]).sum(1)
        own = np.vecdot(self._times(squares, doubled), squares) / k
        return np.repeat(own, k * k)

    def _times(self, rows: Array, lower: Array) -> Array:
        """rows L for a packed lower triangle L."""
        triangle = lapack.dtpttr(rows.shape[1], lower, uplo="L")[0]
        image = self._rows[: len(rows)]
        np.copyto(image, rows)
        return blas.dtrmm(1.0, triangle, image.T, lower=1, trans_a=1, overwrite_b=1).T


def unit_point(ntk: TangentKernel, moving: Array, fixed: Array) -> float:
    r"""u >= 1 at which G, with the weights :math:`1/(u\,\mathrm{moving} + \mathrm{fixed})`, has the top 1.

    That is the least u with :math:`s^\top G s \le s^\top s` for every s, so every s bounds it from below,
    with an error that is the square of its distance from the eigenvector. Locally optimal conjugate
    gradients (Knyazev 2001, SIAM J. Sci. Comput. 23, 517) on that bound: u follows the vector from the
    first product on. Preconditioned by the diagonal of G, which is most of it where samples matter by
    themselves.

    Parameters
    ----------
    moving, fixed
        Packed triangles with positive weights for u >= 1, off the diagonal those of both halves.

    Returns
    -------
    float
        u; 1 if the largest eigenvalue is below 1 there. With one output the eigenvalue at u lies between
        the bounds of Collatz and Wielandt, min and max of (G s)_i / s_i, at most 1e-8 apart relatively;
        where s has zeros, or with several outputs, the residual is at most 1e-11.

    Raises
    ------
    RuntimeError
        If 1000 products did not suffice.
    """
    products = HalfProducts(ntk)
    k = ntk.n_outputs
    # The unit blocks: interior of the cone, so never orthogonal to the top vector; V^T V = I.
    length = math.sqrt(ntk.n_samples * k)
    vectors = np.empty((3, ntk.n_samples * k * k))
    vectors[0] = np.tile(np.eye(k).ravel(), ntk.n_samples) / length
    triangles = np.empty((3, len(moving)))
    triangles[0] = pack(np.eye(len(ntk.eigenvalues))) / length
    weight, weighted = np.empty((2, len(moving)))  # once: fresh memory costs as much as arithmetic

    def weigh(u: float) -> None:
        np.multiply(u, moving, out=weight)
        np.add(weight, fixed, out=weight)
        np.reciprocal(weight, out=weight)

    size, u, known, own = 1, 1.0, math.inf, np.zeros(0)
    weigh(u)
    for _ in range(_PRODUCTS):
        gram = np.empty((size, size))  # of G on the span; its lower triangle
        for i in range(size):
            np.multiply(weight, triangles[i], out=weighted)
            gram[i:, i] = triangles[i:size] @ weighted
        values, turns = np.linalg.eigh(gram)
        value, top = float(values[-1]), turns[:, -1] * math.copysign(1.0, turns[0, -1])
        turn, sine = top[None, :], float(np.linalg.norm(top[1:]))
        if sine > 0:  # keep the way to the new vector, orthogonal to it without cancellation
            turn = np.stack([top, np.append(-sine, top[0] / sine * top[1:])])
        vectors[: len(turn)] = turn @ vectors[:size]
        for begin in range(0, len(moving), _PIECE):  # in place
            piece = slice(begin, begin + _PIECE)
            triangles[: len(turn), piece] = turn @ triangles[:size, piece]
        vector, triangle, size = vectors[0], triangles[0], len(turn)
        # Newton's method on 1 / (s^T G s) as a function of u, a straight line for a single mode
        np.multiply(weight, triangle, out=weighted)
        slope = u * float(np.einsum("i,i,i->", weighted, weighted, moving)) / value
        moved = max(1.0, u * (1 + (value - 1) / slope))
        if moved != u:
            u = moved
            weigh(u)
            np.multiply(weight, triangle, out=weighted)
        image = products.diagonal_blocks(weighted)
        value = float(vector @ image)
        residual = image - value * vector
        if u == 1 or abs(value - 1) <= _LAST_STEP:
            enclosed = k == 1 and (np.abs(residual) <= _ENCLOSURE / 2 * value * vector).all()
            if enclosed or np.linalg.norm(residual) <= TOLERANCE * value:
                return max(1.0, u * (1 + (value - 1) / slope))
        if not abs(u / known - 1) <= _STALE:
            known, own = u, products.own_weight(weight)
        direction = residual / np.maximum(value - own, _NEAREST * value)
        whole = np.linalg.norm(direction)
        for _ in range(2):
            direction -= (vectors[:size] @ direction) @ vectors[:size]
        rest = np.linalg.norm(direction)
        if rest > _NOTHING_NEW * whole:
            vectors[size] = direction / rest
            triangles[size] = products.sandwich(vectors[size])
            size += 1
    raise RuntimeError(f"the noise kernel's threshold did not converge in {_PRODUCTS} products")


def unit_blocks(ntk: TangentKernel) -> Array:
    """The unit blocks, flattened: interior of the cone, so never orthogonal to the top vector."""
    return np.tile(np.eye(ntk.n_outputs).ravel(), ntk.n_samples)


def sandwich(ntk: TangentKernel, blocks: Array) -> Array:
    """V^T blockdiag(s) V for blocks s (n, k, k), flattened or not; (r, r)."""
    V, k = ntk.vectors(), ntk.n_outputs
    if k == 1:
        return (V.T * blocks.ravel()) @ V
    stacked = blocks.reshape(-1, k, k) @ V.reshape(-1, k, V.shape[1])  # (n, k, r)
    return V.T @ stacked.reshape(V.shape)


def diagonal_blocks(ntk: TangentKernel, matrix: Array) -> Array:
    """The diagonal blocks of V A V^T for A (r, r), flattened."""
    V, k = ntk.vectors(), ntk.n_outputs
    image = V @ matrix
    if k == 1:
        return np.einsum("ia,ia->i", image, V)
    return np.einsum(
        "nia,nja->nij", image.reshape(-1, k, V.shape[1]), V.reshape(-1, k, V.shape[1])
    ).ravel()


def kernel_product(ntk: TangentKernel, weight: Array) -> Callable[[Array], Array]:
    """s -> G s."""
    products = HalfProducts(ntk)
    return lambda s: products.diagonal_blocks(weight * products.sandwich(s))


def closure_radius(ntk: TangentKernel, pull: Array, moments: BatchMoments) -> float:
    """Spectral radius of diag(x^2 g) [noise n C + (kept - 1) I], through its symmetric twin."""
    V, k = ntk.vectors(), ntk.n_outputs
    if k == 1:
        overlap = (V**2).T @ V**2
    else:
        overlap = np.zeros((len(pull), len(pull)))
        for block in V.reshape(-1, k, len(pull)):
            overlap += (block.T @ block) ** 2
    matrix = moments.noise * ntk.n_samples * overlap
    matrix[np.diag_indices(len(pull))] += moments.kept - 1
    root = np.sqrt(pull)
    return float(np.linalg.eigvalsh(root[:, None] * matrix * root)[-1])
