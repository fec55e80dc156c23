"""One face for dense arrays, scipy sparse matrices and LinearOperators."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from eosim._checks import PRODUCTS, Array, dense_fits, float_array, symmetric_matrix

LinearOperator = scipy.sparse.linalg.LinearOperator


def product(matrix: Any, columns: Array) -> Array:
    """Matrix times vector or columns; a real operator is applied to both parts of complex ones."""
    if isinstance(matrix, LinearOperator) and np.iscomplexobj(columns):
        return matrix @ columns.real + 1j * (matrix @ columns.imag)
    return matrix @ columns


def dense(matrix: Any) -> Array:
    """The matrix as an array; MemoryError if it would not fit."""
    if scipy.sparse.issparse(matrix) or isinstance(matrix, LinearOperator):
        dense_fits("a sparse matrix or operator", matrix.shape, PRODUCTS)
    if scipy.sparse.issparse(matrix):
        return matrix.toarray()
    if isinstance(matrix, LinearOperator):
        return matrix @ np.eye(matrix.shape[1])
    return matrix


def read_only(matrix: Array) -> Array:
    """A cached matrix as it may leave the problem: a caller cannot change the cache through it."""
    matrix.flags.writeable = False
    return matrix


def checked_matrix(name: str, matrix: Any) -> Any:
    """Dense or sparse: a float64 copy with finite entries. An operator: itself."""
    dtype = getattr(matrix, "dtype", None)
    if dtype is not None and np.issubdtype(dtype, np.complexfloating):
        raise TypeError(f"{name} must be real, got entries of dtype {dtype}")
    if scipy.sparse.issparse(matrix):
        copied = scipy.sparse.csr_array(matrix, dtype=np.float64, copy=True)
        float_array(f"{name} (its stored entries)", copied.data)
        return copied
    if isinstance(matrix, LinearOperator):
        return matrix
    return float_array(name, matrix, shape=(None, None))


def checked_symmetric(name: str, matrix: Any) -> Any:
    """A checked symmetric matrix; an operator is probed on two random vectors."""
    if not (scipy.sparse.issparse(matrix) or isinstance(matrix, LinearOperator)):
        return symmetric_matrix(name, matrix)
    matrix = checked_matrix(name, matrix)
    if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(f"{name} must be square and not empty, got shape {matrix.shape}")
    if scipy.sparse.issparse(matrix):
        gap, size = abs(matrix - matrix.T).max(), abs(matrix).max()
    else:
        u, v = np.random.default_rng(0).standard_normal((2, matrix.shape[0]))
        image_u, image_v = matrix @ u, matrix @ v
        gap, size = abs(u @ image_v - v @ image_u), np.linalg.norm(u) * np.linalg.norm(image_v)
        if not np.isfinite(size):
            raise ValueError(f"{name}: the operator returns non-finite values on a random vector")
    if gap > 1e-10 * size:  # the tolerance of the dense check
        raise ValueError(
            f"{name} must be symmetric; the largest asymmetry found is {gap:.3g}. Pass "
            "(A + A.T) / 2 if that is what you mean"
        )
    return matrix
