r"""Low-dimensional problems with exact derivatives, analytic at complex points.

Nothing here conjugates: dot products are bilinear, so loss, gradient and Hessian are holomorphic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, permutations
from typing import Any

import numpy as np

from eosim._checks import (
    PRODUCTS,
    Array,
    dense_fits,
    float_array,
    inexact,
    integer,
    real_number,
)
from eosim.problems._operators import checked_symmetric, dense, product, read_only
from eosim.problems.base import certifiable


@dataclass(frozen=True, eq=False)
class Quadratic:
    r""":math:`L = \frac12 (\theta - c)^\top A\, (\theta - c)`: gradient :math:`A(\theta-c)`, Hessian A.

    Parameters
    ----------
    matrix : (dim, dim) symmetric array, scipy sparse matrix or LinearOperator
        A; any signature. Sparse matrices and operators are used through products; ``hessian``
        makes them dense.
    center : (dim,) array, optional
        c; 0 if None.

    Raises
    ------
    ValueError
        If A is not square or not symmetric (beyond 1e-10 relative), or has NaN or infinite entries.
    """

    matrix: Any
    center: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", checked_symmetric("matrix", self.matrix))
        center = np.zeros(self.dim) if self.center is None else self.center
        object.__setattr__(self, "center", float_array("center", center, shape=(self.dim,)))

    @property
    def dim(self) -> int:
        return int(self.matrix.shape[0])

    analytic = True

    def loss(self, theta: Array) -> Any:
        offset = theta - self.center
        return offset @ self.hvp(theta, offset) / 2

    def gradient(self, theta: Array) -> Array:
        return self.hvp(theta, theta - self.center)

    def hvp(self, theta: Array, v: Array) -> Array:
        return product(self.matrix, v)

    @certifiable
    def hessian(self, theta: Array) -> Array:
        return self._dense

    def third_derivative(self, theta: Array, a: Array, b: Array) -> Array:
        return 0 * np.asarray(theta)

    @cached_property
    def _dense(self) -> Array:
        dense_fits("the Hessian", (self.dim, self.dim), PRODUCTS)
        return read_only(dense(self.matrix))


@dataclass(frozen=True)
class Rosenbrock:
    r""":math:`L = (1-x)^2 + s\,(y-x^2)^2`, minimum 0 at (1, 1); s = 100 is Rosenbrock's (1960)."""

    steepness: float = 100.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steepness", real_number("steepness", self.steepness))

    dim = 2
    analytic = True

    def loss(self, theta: Array) -> Any:
        x, y = inexact(theta)
        return (1 - x) ** 2 + self.steepness * (y - x**2) ** 2

    def gradient(self, theta: Array) -> Array:
        x, y = inexact(theta)
        s = self.steepness
        return np.array([-2 * (1 - x) - 4 * s * x * (y - x**2), 2 * s * (y - x**2)])

    def hvp(self, theta: Array, v: Array) -> Array:
        return self.hessian(theta) @ v

    @certifiable
    def hessian(self, theta: Array) -> Array:
        x, y = inexact(theta)
        s = self.steepness
        return np.array([[2 - 4 * s * (y - 3 * x**2), -4 * s * x], [-4 * s * x, 2 * s + 0 * x]])

    def third_derivative(self, theta: Array, a: Array, b: Array) -> Array:
        x, s = inexact(theta)[0], self.steepness
        return np.array(
            [24 * s * x * a[0] * b[0] - 4 * s * (a[0] * b[1] + a[1] * b[0]), -4 * s * a[0] * b[0]]
        )


@dataclass(frozen=True)
class Cosine:
    r""":math:`L = \sum_i (1 - \cos\theta_i)`, separable: flat crests of curvature -1, minima of 1."""

    dim: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", integer("dim", self.dim, minimum=1))

    analytic = True

    def loss(self, theta: Array) -> Any:
        return np.sum(2 * np.sin(inexact(theta) / 2) ** 2)  # 1 - cos without cancellation

    def gradient(self, theta: Array) -> Array:
        return np.sin(inexact(theta))

    def hvp(self, theta: Array, v: Array) -> Array:
        return np.cos(inexact(theta)) * v

    @certifiable
    def hessian(self, theta: Array) -> Array:
        dense_fits("the Hessian", (self.dim, self.dim), PRODUCTS)
        return np.diag(np.cos(inexact(theta)))

    def third_derivative(self, theta: Array, a: Array, b: Array) -> Array:
        return -np.sin(inexact(theta)) * a * b


@dataclass(frozen=True, eq=False)
class Polynomial:
    r"""Any polynomial :math:`L = \sum_k c_k \prod_j \theta_j^{E_{kj}}`, exact derivatives of every order.

    Parameters
    ----------
    terms : mapping from exponents (tuples of dim non-negative ints) to coefficients

    Raises
    ------
    TypeError, ValueError
        If there is no term, exponents are no non-negative integers or differ in length, or a
        coefficient is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> cubic = Polynomial({(2, 0): 0.5, (1, 2): 3.0})  # x^2/2 + 3 x y^2
    >>> cubic.gradient(np.array([1.0, 2.0]))
    array([13., 12.])
    >>> float(cubic.derivative(np.array([1.0, 2.0]), 3)[0, 1, 1])
    6.0
    """

    terms: Mapping[tuple[int, ...], float]

    def __post_init__(self) -> None:
        if not isinstance(self.terms, Mapping):
            raise TypeError(
                "terms must map exponent tuples to coefficients, e.g. {(2, 0): 0.5}; got "
                f"{type(self.terms).__name__}"
            )
        if not self.terms:
            raise ValueError("terms must not be empty: a polynomial needs at least one term")
        clean: dict[tuple[int, ...], float] = {}
        for powers, coefficient in self.terms.items():
            if not isinstance(powers, tuple) or not powers:
                raise TypeError(
                    f"terms: exponents must be a non-empty tuple of ints, got {powers!r}"
                )
            exponents = tuple(integer(f"terms: exponent in {powers}", p, minimum=0) for p in powers)
            clean[exponents] = real_number(f"terms: coefficient of {powers}", coefficient)
        if len({len(exponents) for exponents in clean}) > 1:
            raise ValueError(f"terms: exponent tuples differ in length: {list(clean)}")
        object.__setattr__(self, "terms", clean)

    @cached_property
    def dim(self) -> int:
        return len(next(iter(self.terms)))

    analytic = True

    def loss(self, theta: Array) -> Any:
        return self.derivative(theta, 0)[()]

    def gradient(self, theta: Array) -> Array:
        return self.derivative(theta, 1)

    def hvp(self, theta: Array, v: Array) -> Array:
        return self.hessian(theta) @ v

    @certifiable
    def hessian(self, theta: Array) -> Array:
        return self.derivative(theta, 2)

    def third_derivative(self, theta: Array, a: Array, b: Array) -> Array:
        return self.derivative(theta, 3) @ b @ a

    def derivative(self, theta: Array, order: int) -> Array:
        """The symmetric tensor of all partial derivatives of one order, of shape (dim,) * order."""
        theta = inexact(theta)
        theta = theta.astype(np.result_type(theta, float), copy=False)
        powers = np.vander(theta, self._degree + 1, increasing=True)  # (dim, degree+1); 0**0 is 1
        tensor = np.zeros((self.dim,) * order, dtype=powers.dtype)
        for axes, coefficients, exponents in self._partials(order):
            # exponents: (n_terms, dim); each factor theta_j ** E_kj is read from the table
            value = coefficients @ np.prod(powers[np.arange(self.dim), exponents], axis=1)
            for index in axes:
                tensor[index] = value
        return tensor

    @cached_property
    def _degree(self) -> int:
        return max(max(exponents) for exponents in self.terms)

    @cached_property
    def _derivatives(self) -> dict[int, list[tuple[set[tuple[int, ...]], Array, Array]]]:
        return {}

    def _partials(self, order: int) -> list[tuple[set[tuple[int, ...]], Array, Array]]:
        """Per distinct partial derivative: tensor entries, coefficients and exponents."""
        cache = self._derivatives
        if order not in cache:
            cache[order] = []
            for axes in combinations_with_replacement(range(self.dim), order):
                taken = np.bincount(np.array(axes, dtype=int), minlength=self.dim)
                kept = [
                    (
                        c * math.prod(map(math.perm, powers, taken.tolist())),
                        np.array(powers) - taken,
                    )
                    for powers, c in self.terms.items()
                    if all(np.array(powers) >= taken)
                ]
                if kept:
                    coefficients = np.array([c for c, _ in kept])
                    exponents = np.array([e for _, e in kept])
                    cache[order].append((set(permutations(axes)), coefficients, exponents))
        return cache[order]
