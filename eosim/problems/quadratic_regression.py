r"""Quadratic regression: residuals of degree two in theta, the model of sharpening and its edges.

The model is that of Agarwala, Pedregosa & Pennington (2022), arXiv 2210.04860, and of Agarwala &
Pennington (2024), arXiv 2404.19261, who write D for the number of data n and P for ``dim``; the
normalisation is this package's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from eosim._checks import (
    SAMPLES,
    Array,
    Interval,
    choice,
    dense_fits,
    float_array,
    integer,
    real_number,
    seeded,
    symmetric_matrix,
)

DTYPES = ("float64", "float32")


@dataclass(frozen=True, eq=False)
class QuadraticRegression:
    r""":math:`L = \frac{1}{2n} \sum_a z_a^2`, with residuals that are quadratic in theta.

    .. math:: z_a = z_a(0) + J_a(0) \cdot \theta + \tfrac12\, \theta^\top Q_a\, \theta

    theta is the displacement from the point where the model is expanded: runs start at zeros.

    Parameters
    ----------
    initial_residuals : (n,) array-like
        z(0): outputs minus targets.
    initial_jacobian : (n, P) array-like
        J(0).
    tensor : (n, P, P) or (n, P (P + 1) / 2) array-like
        The symmetric matrices :math:`Q_a`, or their lower triangles row by row: (0, 0), (1, 0),
        (1, 1), (2, 0), ... A triangle array of the wanted dtype that is C-contiguous and read-only is
        kept as it is; everything else is copied.
    dtype : str
        What Q is stored in: "float64", or "float32", which halves memory and traffic. Every entry
        is then rounded once, relatively by at most 6e-8 (2^-24); all arithmetic is float64, so the
        derivatives are exactly those of the problem with the rounded Q.

    Notes
    -----
    Q takes 4 n P^2 bytes (half of that in float32), and one pass over it gives loss and gradient; a
    mini-batch reads only the matrices of its own samples, and `eosim.ensemble.run_ensemble` moves
    many replicas in one pass. Everything is polynomial in theta and continues to complex theta,
    without conjugation. `tensor` of an instance holds the triangles.

    Raises
    ------
    TypeError, ValueError
        If the data are empty, not finite or of different lengths, or a matrix is not symmetric.

    Examples
    --------
    >>> import numpy as np
    >>> from eosim.problems.quadratic_regression import QuadraticRegression
    >>> problem = QuadraticRegression([1.0], [[1.0, 0.0]], [[[0.0, 2.0], [2.0, 0.0]]])
    >>> problem.gradient(np.array([3.0, 2.0]))  # z = 1 + x + 2 x y = 16, J = (1 + 2 y, 2 x)
    array([80., 96.])
    """

    initial_residuals: Any
    initial_jacobian: Any
    tensor: Any
    dtype: str = "float64"

    analytic = True
    n_outputs = 1

    def __post_init__(self) -> None:
        residuals = float_array("initial_residuals", self.initial_residuals, shape=(None,))
        jacobian = float_array(
            "initial_jacobian", self.initial_jacobian, shape=(len(residuals), None)
        )
        if jacobian.size == 0:
            raise ValueError(
                f"initial_jacobian must have shape (n, P), not empty; got {jacobian.shape}"
            )
        dtype = choice("dtype", self.dtype, DTYPES)
        object.__setattr__(self, "initial_residuals", residuals)
        object.__setattr__(self, "initial_jacobian", jacobian)
        n, dim = jacobian.shape
        object.__setattr__(self, "tensor", _triangles(self.tensor, n, dim, dtype))

    @property
    def n_samples(self) -> int:
        return len(self.initial_residuals)

    @property
    def dim(self) -> int:
        return int(self.initial_jacobian.shape[1])

    def residuals(self, theta: Array, batch: Array | None = None) -> Array:
        """z, of shape (batch, 1)."""
        residuals, _ = self._expand(theta, batch)
        return residuals[:, None]

    def jacobian(self, theta: Array, batch: Array | None = None) -> Array:
        r"""dz/dtheta = :math:`J_a(0) + Q_a\theta`, of shape (batch, 1, dim)."""
        _, jacobian = self._expand(theta, batch)
        return jacobian[:, None, :]

    def loss(self, theta: Array, batch: Array | None = None) -> Any:
        residuals, _ = self._expand(theta, batch)
        return np.sum(residuals * residuals) / (2 * len(residuals))  # bilinear: no conjugation

    def gradient(self, theta: Array, batch: Array | None = None) -> Array:
        if np.iscomplexobj(theta):
            residuals, jacobian = self._expand(theta, batch)
            return residuals @ jacobian / len(residuals)
        from eosim._kernels.quadratic_regression import mean_gradient

        theta = np.ascontiguousarray(theta, dtype=float)
        if theta.shape != (self.dim,):  # the kernel does not check bounds
            raise ValueError(f"theta must have shape ({self.dim},), got {theta.shape}")
        return mean_gradient(
            self.tensor, self.initial_residuals, self.initial_jacobian, self._rows(batch), theta
        )

    def hvp(self, theta: Array, v: Array, batch: Array | None = None) -> Array:
        residuals, jacobian, moved = self._expand(theta, batch, v)
        return ((jacobian @ v) @ jacobian + residuals @ moved) / len(residuals)

    def hessian(self, theta: Array, batch: Array | None = None) -> Array:
        from eosim._kernels.quadratic_regression import weighted_sum

        residuals, jacobian = self._expand(theta, batch)
        matrix = jacobian.T @ jacobian
        matrix = (matrix + matrix.T) / 2
        triangles = weighted_sum(self.tensor, self._rows(batch), _parts(residuals))
        matrix += _square(_joined(triangles, residuals), self.dim)
        return matrix / len(residuals)

    def third_derivative(self, theta: Array, a: Array, b: Array) -> Array:
        _, jacobian, along_a, along_b = self._expand(theta, None, a, b)
        result = (along_a @ b) @ jacobian + (jacobian @ b) @ along_a + (jacobian @ a) @ along_b
        return result / self.n_samples

    def ntk(self, theta: Array) -> Array:
        """J J^T / n, of shape (n, n)."""
        dense_fits("the NTK", (self.n_samples, self.n_samples), SAMPLES)
        _, jacobian = self._expand(theta, None)
        return jacobian @ jacobian.T / self.n_samples

    def _rows(self, batch: Array | None) -> Array:
        """The samples as integers that exist: the kernels do not check bounds."""
        everything = np.arange(self.n_samples)
        return everything if batch is None else everything[batch]

    def _expand(self, theta: Array, batch: Array | None, *vectors: Array) -> tuple[Array, ...]:
        """z (batch,), J (batch, P), and Q_a v (batch, P) for every further vector; Q is read once."""
        from eosim._kernels.quadratic_regression import images

        rows = self._rows(batch)
        points = (theta, *vectors)
        parts = [_parts(point) for point in points]
        products = images(self.tensor, rows, np.concatenate(parts))
        moved, start = [], 0
        for point, part in zip(points, parts, strict=True):
            moved.append(_joined(products[:, start : start + len(part)], point))
            start += len(part)
        slopes = self.initial_jacobian[rows]
        residuals = self.initial_residuals[rows] + (slopes + moved[0] / 2) @ theta
        return (residuals, slopes + moved[0], *moved[1:])


def random_quadratic_regression(
    n_samples: int,
    dim: int,
    sigma: float,
    seed: Any = 0,
    *,
    ntk_max: float | None = None,
    jacobian: Any = None,
    dtype: str = "float64",
) -> QuadraticRegression:
    r"""The random ensemble: residuals, Jacobian and Q with independent normal entries.

    :math:`z_a \sim N(0, 1)`, :math:`J_{aj} \sim N(0, 1)`, and :math:`Q_{ajk} \sim N(0, \sigma^2)` for
    k <= j, its mirror image above the diagonal: diagonal entries have the same variance as the others.
    (Symmetrising independent entries by (A + A^T) / 2 would halve the variance off the diagonal.)

    Parameters
    ----------
    n_samples, dim : int
        n (D in the literature on the stochastic edge) and P.
    sigma : float
        Not negative.
    seed : int, SeedSequence or Generator
    ntk_max : float, optional
        J is scaled so that the largest eigenvalue of the NTK J J^T / n is this.
    jacobian : (n_samples, dim) array-like, optional
        J itself, instead of a normal one; `jacobian_with_spectrum` makes it from an NTK spectrum.
    dtype : str
        As for `QuadraticRegression`; the ensemble is the same up to the rounding of Q.

    Notes
    -----
    One generator ``numpy.random.default_rng(seed)`` draws z, J (unless given), and the triangles of
    Q sample by sample.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or both ``ntk_max`` and ``jacobian`` are given.

    Examples
    --------
    >>> import numpy as np
    >>> problem = random_quadratic_regression(8, 20, 0.1, ntk_max=1.4)
    >>> round(float(np.linalg.eigvalsh(problem.ntk(np.zeros(20)))[-1]), 12)
    1.4
    """
    n_samples = integer("n_samples", n_samples, minimum=1)
    dim = integer("dim", dim, minimum=1)
    sigma = real_number("sigma", sigma, Interval(0, np.inf, lower_closed=True))
    dtype = choice("dtype", dtype, DTYPES)
    if ntk_max is not None and jacobian is not None:
        raise ValueError("ntk_max must be None when jacobian is given: it scales a drawn Jacobian")
    generator = seeded(seed)
    residuals = generator.standard_normal(n_samples)
    if jacobian is None:
        jacobian = generator.standard_normal((n_samples, dim))
        if ntk_max is not None:
            ntk_max = real_number("ntk_max", ntk_max, Interval(0, np.inf))
            jacobian *= np.sqrt(ntk_max * n_samples) / np.linalg.norm(jacobian, 2)
    else:
        jacobian = float_array("jacobian", jacobian, shape=(n_samples, dim))
    shape = (n_samples, dim * (dim + 1) // 2)
    dense_fits("the tensor", shape, "take float32, or fewer parameters", np.dtype(dtype).itemsize)
    packed = np.empty(shape, dtype)
    for triangle in packed:
        triangle[:] = sigma * generator.standard_normal(packed.shape[1])
    packed.flags.writeable = False
    return QuadraticRegression(residuals, jacobian, packed, dtype)


def jacobian_with_spectrum(eigenvalues: Any, dim: int, seed: Any = 0) -> Array:
    r"""A random Jacobian :math:`J = U\,\mathrm{diag}(\sqrt{n\lambda_a})\,W^\top` of given NTK spectrum.

    Parameters
    ----------
    eigenvalues : (n,) array-like
        :math:`\lambda_a` of the NTK J J^T / n, not negative, at most ``dim`` of them.
    dim : int
        P.
    seed : int, SeedSequence or Generator
        Of U (n, n) and then W (P, n): Q factors of matrices with independent normal entries.

    Returns
    -------
    (n, dim) array

    Raises
    ------
    TypeError, ValueError
        If there are no eigenvalues, more than dim, or negative ones.
    """
    values = float_array("eigenvalues", eigenvalues, shape=(None,))
    dim = integer("dim", dim, minimum=1)
    if not 0 < len(values) <= dim:
        raise ValueError(f"eigenvalues must be 1 to dim = {dim} numbers, got {len(values)}")
    if values.min() < 0:
        raise ValueError(f"eigenvalues must not be negative, got {values.min()!s}")
    generator = seeded(seed)
    left = np.linalg.qr(generator.standard_normal((len(values), len(values))))[0]
    right = np.linalg.qr(generator.standard_normal((dim, len(values))))[0]
    return left * np.sqrt(len(values) * values) @ right.T


def _triangles(tensor: Any, n: int, dim: int, dtype: str) -> Array:
    """The (n, dim (dim + 1) / 2) triangles; sample by sample, so that no second copy is ever made."""
    array = np.asarray(tensor)
    shapes = ((n, dim, dim), (n, dim * (dim + 1) // 2))
    if array.shape not in shapes:
        raise ValueError(
            f"tensor must have shape {shapes[0]}, or {shapes[1]} for triangles; got {array.shape}"
        )
    if array.ndim == 2 and array.dtype == dtype and array.flags.c_contiguous:
        packed = array if not array.flags.writeable else array.copy()
        for a, triangle in enumerate(packed):
            float_array(f"tensor[{a}]", triangle)
    else:
        packed = np.empty(shapes[1], dtype)
        lower = np.tril_indices(dim)
        for a, sample in enumerate(array):
            name = f"tensor[{a}]"
            full = array.ndim == 3
            packed[a] = symmetric_matrix(name, sample)[lower] if full else float_array(name, sample)
    packed.flags.writeable = False
    return packed


def _square(triangle: Array, dim: int) -> Array:
    """The symmetric matrix of a triangle."""
    matrix = np.zeros((dim, dim), triangle.dtype)
    lower = np.tril_indices(dim)
    matrix[lower] = triangle
    matrix.T[lower] = triangle
    return matrix


def _parts(vector: Array) -> Array:
    """One row of floats, or two (real and imaginary): Q is real and is never cast to complex."""
    vector = np.asarray(vector)
    if np.iscomplexobj(vector):
        return np.stack([vector.real, vector.imag])
    return vector.astype(float, copy=False)[None]


def _joined(rows: Array, like: Array) -> Array:
    """The inverse of `_parts` on the axis before the last."""
    if np.iscomplexobj(like):
        return rows[..., 0, :] + 1j * rows[..., 1, :]
    return rows[..., 0, :]
