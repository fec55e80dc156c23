r"""The NTK of a least-squares problem in its eigenbasis: all that linearised SGD depends on.

With residuals e, Jacobian J and n samples :math:`\Theta = J J^\top/n`. Near a minimum with e = 0 (for a
linear model everywhere) SGD moves the residuals by :math:`e' = e - \eta\,\Theta\, W e`, W the batch's
weights: thresholds, rates and averages are functions of Theta alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh

from eosim._checks import (
    Array,
    dense_fits,
    float_array,
    integer,
    interface,
    state_vector,
    symmetric_matrix,
)

# Our choice: what is smaller counts as zero. Singular values of a Jacobian are exact to about
# 1e-16 of the largest, eigenvalues of a matrix product likewise: both leave a margin of four digits.
_SINGULAR_CUT = 1e-10
_EIGENVALUE_CUT = 1e-12
# Our choice: beyond this many parameters per residual the NTK is formed from products.
_WIDE = 4


@dataclass(frozen=True, eq=False)
class TangentKernel:
    r""":math:`\Theta = J J^\top/n = V\, \mathrm{diag}(\lambda)\, V^\top`, positive eigenvalues only.

    Made by `tangent_kernel`, or by ``from_jacobian``, ``from_matrix`` and ``from_spectrum``.

    Attributes
    ----------
    eigenvalues : (r,) array
        lambda > 0, descending: also those of the Gauss-Newton matrix :math:`J^\top J/n`.
    eigenvectors : (n * n_outputs, r) array or None
        V; the outputs of a sample are consecutive rows. None if only the spectrum is known.
    n_samples, n_outputs : int

    Examples
    --------
    >>> import numpy as np, eosim
    >>> data = eosim.LinearRegression([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], [1.0, 1.0, 1.0])
    >>> tangent_kernel(data, np.zeros(2))
    TangentKernel(n_samples=3, n_outputs=1, rank 2, eigenvalues 1.33333 to 0.333333)
    >>> TangentKernel.from_spectrum([2.0, 1.0, 0.0])
    TangentKernel(n_samples=3, n_outputs=1, rank 2, eigenvalues 2 to 1, spectrum only)
    """

    eigenvalues: Array
    eigenvectors: Array | None
    n_samples: int
    n_outputs: int = 1

    def __repr__(self) -> str:
        known = "" if self.eigenvectors is not None else ", spectrum only"
        span = ""
        if len(self.eigenvalues):
            span = f", eigenvalues {self.eigenvalues[0]:.6g} to {self.eigenvalues[-1]:.6g}"
        return (
            f"TangentKernel(n_samples={self.n_samples}, n_outputs={self.n_outputs}, "
            f"rank {len(self.eigenvalues)}{span}{known})"
        )

    @classmethod
    def from_jacobian(cls, jacobian: Any, n_outputs: int = 1) -> TangentKernel:
        """From J (n * n_outputs, dim); singular values below 1e-10 of the largest count as zero."""
        J = float_array("jacobian", jacobian, shape=(None, None))
        n_samples, n_outputs = _sizes("jacobian", len(J), n_outputs)
        vectors, values, _ = np.linalg.svd(J, full_matrices=False)
        kept = values > _SINGULAR_CUT * values.max(initial=0.0)
        return cls(values[kept] ** 2 / n_samples, vectors[:, kept], n_samples, n_outputs)

    @classmethod
    def from_matrix(cls, matrix: Any, n_outputs: int = 1) -> TangentKernel:
        """From Theta itself, symmetric; eigenvalues below 1e-12 of the largest count as zero.

        Raises
        ------
        ValueError
            If the matrix is not symmetric or has a negative eigenvalue.
        """
        theta = symmetric_matrix("matrix", matrix)
        n_samples, n_outputs = _sizes("matrix", len(theta), n_outputs)
        values, vectors = eigh(theta)
        scale = float(np.abs(values).max(initial=0.0))
        if values.min(initial=0.0) < -1e-9 * scale:
            raise ValueError(f"matrix must have no negative eigenvalue, got {values.min()!s}")
        kept = np.flatnonzero(values > _EIGENVALUE_CUT * scale)[::-1]
        return cls(values[kept], vectors[:, kept], n_samples, n_outputs)

    @classmethod
    def from_spectrum(cls, eigenvalues: Any, n_samples: int | None = None) -> TangentKernel:
        """From eigenvalues alone (zeros are dropped), n_samples being their number if None."""
        values = float_array("eigenvalues", eigenvalues, shape=(None,))
        if len(values) == 0:
            raise ValueError("eigenvalues must hold at least one, got none")
        if (values < 0).any():
            raise ValueError(f"eigenvalues must not be negative, got {values.min()!s}")
        n = integer("n_samples", len(values) if n_samples is None else n_samples, minimum=1)
        positive = np.sort(values[values > 0])[::-1]
        if len(positive) > n:
            raise ValueError(
                f"n_samples must be at least the number of positive eigenvalues, {len(positive)}; "
                f"got {n}"
            )
        return cls(positive, None, n)

    @property
    def trace(self) -> float:
        r""":math:`\mathrm{tr}\,\Theta`, for an interpolating minimum also tr H."""
        return float(self.eigenvalues.sum())

    @property
    def frobenius(self) -> float:
        r""":math:`|\Theta|_F`, for an interpolating minimum also :math:`|H|_F`."""
        largest = self.largest  # squares stay in range
        return largest * float(np.linalg.norm(self.eigenvalues / largest)) if largest > 0 else 0.0

    @property
    def largest(self) -> float:
        """The largest eigenvalue; 0 if there is none."""
        return float(self.eigenvalues.max(initial=0.0))

    @property
    def matrix(self) -> Array:
        """Theta, (n * n_outputs, n * n_outputs)."""
        V = self.vectors()
        dense_fits("the NTK", (len(V), len(V)), "its factors are eigenvalues and vectors()")
        return (V * self.eigenvalues) @ V.T

    @property
    def rows(self) -> Array:
        r"""The per-sample gradients in the eigenbasis of H, :math:`\sqrt{n\lambda}\,V`, as V."""
        return self.vectors() * np.sqrt(self.n_samples * self.eigenvalues)

    def vectors(self) -> Array:
        """The eigenvectors; ValueError if only the spectrum is known."""
        if self.eigenvectors is None:
            raise ValueError(
                "kernel must have eigenvectors for this quantity: pass the NTK or a TangentKernel of "
                "a problem, not a spectrum"
            )
        return self.eigenvectors


def tangent_kernel(problem: Any, theta: Any) -> TangentKernel:
    """The `TangentKernel` of a least-squares problem at theta.

    From the singular values of the Jacobian; where there are more than 4 parameters per residual and
    the problem can form its NTK (a method ``ntk``), from that.

    Raises
    ------
    TypeError, ValueError
        If the problem has no Jacobian, or it is not finite at theta.
    """
    interface("problem", problem, ("dim", "n_samples", "residuals"))
    theta = state_vector("theta", theta, problem.dim)
    n_outputs = np.shape(problem.residuals(theta))[-1]
    if problem.dim > _WIDE * problem.n_samples * n_outputs and hasattr(problem, "ntk"):
        return TangentKernel.from_matrix(problem.ntk(theta), n_outputs)
    interface("problem", problem, ("jacobian",))
    shape = (problem.n_samples * n_outputs, problem.dim)
    dense_fits("the Jacobian", shape, "eosim.stability.LanczosKernelNorm takes it in parts")
    return TangentKernel.from_jacobian(problem.jacobian(theta).reshape(-1, problem.dim), n_outputs)


def as_kernel(kernel: Any) -> TangentKernel:
    """A `TangentKernel` as it is, an NTK (2-d) or its spectrum (1-d) converted."""
    if isinstance(kernel, TangentKernel):
        return kernel
    if hasattr(kernel, "dim") and hasattr(kernel, "gradient"):
        raise TypeError(
            "kernel must be a TangentKernel, an NTK (n, n) or a spectrum (n,), got the problem "
            f"{type(kernel).__name__}; pass tangent_kernel(problem, theta)"
        )
    array = float_array("kernel", kernel)
    if array.ndim == 1:
        return TangentKernel.from_spectrum(array)
    if array.ndim == 2:
        return TangentKernel.from_matrix(array)
    raise ValueError(
        f"kernel must be a TangentKernel, an NTK (n, n) or a spectrum (n,), got shape {array.shape}"
    )


def _sizes(name: str, n_rows: int, n_outputs: int) -> tuple[int, int]:
    n_outputs = integer("n_outputs", n_outputs, minimum=1)
    if n_rows == 0 or n_rows % n_outputs:
        raise ValueError(
            f"{name} must have a positive multiple of n_outputs = {n_outputs} rows, got {n_rows}"
        )
    return n_rows // n_outputs, n_outputs
