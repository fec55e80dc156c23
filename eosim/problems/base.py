r"""The contract of a problem, and the one normalisation.

Every least-squares loss is :math:`L = \frac{1}{2n} \sum_i |e_i|^2` with residuals
:math:`e = f(\theta) - y`. The Gauss-Newton matrix is :math:`J^\top J / n` and the NTK
:math:`J J^\top / n`: the same non-zero spectrum. Sharpness is the largest algebraic eigenvalue of
the Hessian of that L.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from eosim._checks import PRODUCTS, Array, dense_fits, float_array, inexact, integer, point

# Complex step: any length far below sqrt(machine epsilon) is exact to rounding (Squire & Trapp
# 1998). Central differences: the cube root of epsilon balances truncation against rounding.
_COMPLEX_STEP = 1e-20
_CENTRAL_STEP = float(np.cbrt(np.finfo(float).eps))
_FLOAT64 = np.dtype(np.float64)

_Hessian = TypeVar("_Hessian", bound=Callable[..., Any])


class Problem(Protocol):
    """A smooth function of ``dim`` parameters.

    ``analytic`` says that loss, gradient, hvp and hessian continue holomorphically to complex
    theta (no conjugation, no absolute value); complex flows need it.
    """

    @property
    def dim(self) -> int: ...

    @property
    def analytic(self) -> bool: ...

    def loss(self, theta: Array) -> Any:
        """L(theta), a scalar."""

    def gradient(self, theta: Array) -> Array:
        """(dim,)"""

    def hvp(self, theta: Array, v: Array) -> Array:
        """H(theta) v, of shape (dim,)."""

    def hessian(self, theta: Array) -> Array:
        """(dim, dim)"""


class FiniteSum(Problem, Protocol):
    """A mean over samples. ``batch`` is an index array; None means all samples."""

    @property
    def n_samples(self) -> int: ...

    def loss(self, theta: Array, batch: Array | None = None) -> Any: ...

    def gradient(self, theta: Array, batch: Array | None = None) -> Array: ...

    def hvp(self, theta: Array, v: Array, batch: Array | None = None) -> Array: ...

    def hessian(self, theta: Array, batch: Array | None = None) -> Array: ...


class LeastSquares(FiniteSum, Protocol):
    r"""The mean of :math:`|e_i|^2 / 2` over samples."""

    def residuals(self, theta: Array, batch: Array | None = None) -> Array:
        """e, of shape (batch, n_outputs)."""

    def jacobian(self, theta: Array, batch: Array | None = None) -> Array:
        """de/dtheta, of shape (batch, n_outputs, dim)."""


def certifiable(hessian: _Hessian) -> _Hessian:
    """Marks a ``hessian`` that rounds in the arithmetic of its arguments alone.

    It is made of sums, products, quotients by integers and NumPy's functions, of theta and of fields
    of its dataclass. With balls in the place of their floats it returns balls that hold the exact
    Hessian. A method that overrides it does not inherit the mark.
    """
    hessian.certifiable = True  # type: ignore[attr-defined]
    return hessian


def third_derivative(problem: Problem, theta: Array, a: Array, b: Array) -> Array:
    r"""T[a,b] with :math:`T[a,b]_i = \sum_{jk} \partial_{ijk} L\, a_j b_k`, of shape (dim,).

    Exact where the problem has a method ``third_derivative(theta, a, b)``. Otherwise the derivative
    of ``hvp(theta, b)`` along a, by `directional_derivative`.
    """
    if np.asarray(theta).dtype.kind != "O":  # of symbols, on which some problems compute too
        theta, a, b = point(problem, theta=theta, a=a, b=b)
    if hasattr(problem, "third_derivative"):
        return problem.third_derivative(theta, a, b)
    theta, a, b = (_on_real_axis(x) for x in (theta, a, b))
    analytic = problem.analytic and not np.iscomplexobj(b)
    return directional_derivative(lambda point: problem.hvp(point, b), theta, a, analytic)


def hessian_products(problem: Problem, theta: Array) -> Callable[[Array], Array]:
    """v -> H v, with what depends on theta alone computed once where the problem has ``hvp_at``."""
    if hasattr(problem, "hvp_at"):
        return problem.hvp_at(theta)
    return lambda v: problem.hvp(theta, v)


def directional_derivative(
    function: Callable[[Array], Array], theta: Array, direction: Array, analytic: bool
) -> Array:
    """d/ds function(theta + s direction) at s = 0.

    By complex step at real points of functions that are analytic and real there (exact to rounding),
    by central differences elsewhere (relative error about 1e-9).
    """
    theta, direction = _on_real_axis(theta), _on_real_axis(direction)
    length = float(np.linalg.norm(direction))
    if length == 0:
        return 0 * function(theta)
    if analytic and not np.iscomplexobj(theta) and not np.iscomplexobj(direction):
        shifted = function(theta + 1j * _COMPLEX_STEP / length * direction)
        return shifted.imag * (length / _COMPLEX_STEP)
    step = _CENTRAL_STEP * (1 + float(np.linalg.norm(theta))) / length
    return (function(theta + step * direction) - function(theta - step * direction)) / (2 * step)


def _on_real_axis(x: Array) -> Array:
    """Without an imaginary part of zeros: a complex dtype alone does not forbid a complex step."""
    x = np.asarray(x)
    return x.real if np.iscomplexobj(x) and not x.imag.any() else x


def from_functions(
    loss: Callable[[Array], Any],
    gradient: Callable[[Array], Any],
    hvp: Callable[[Array, Array], Any] | None = None,
    hessian: Callable[[Array], Any] | None = None,
    *,
    dim: int,
    analytic: bool = False,
    at: Any = None,
) -> FunctionProblem:
    r"""A `Problem` made of your own NumPy functions, checked once.

    Parameters
    ----------
    loss, gradient : callables of theta (dim,)
        L and its gradient, of shape (dim,).
    hvp : callable of (theta, v), optional
        H v. Without it: from ``hessian``; else by complex step on the gradient (exact to rounding)
        at real points of an analytic problem, and by central differences elsewhere.
    hessian : callable of theta, optional
        H, of shape (dim, dim). Without it: column by column from products.
    dim : int
    analytic : bool
        Whether the functions continue holomorphically to complex theta.
    at : (dim,) array, optional
        Where the checks are made; a fixed random point of size one if None.

    Raises
    ------
    ValueError
        If two calls disagree, a shape is wrong, a value is not finite, the gradient is not the
        derivative of the loss, H is not symmetric, or the functions change their argument.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> problem = eosim.from_functions(
    ...     lambda x: np.sum(x**4) / 4, lambda x: x**3, dim=2, analytic=True)
    >>> problem.hessian(np.array([1.0, 2.0]))
    array([[ 3.,  0.],
           [ 0., 12.]])
    """
    for name, function in (("loss", loss), ("gradient", gradient)):
        if not callable(function):
            raise TypeError(f"{name} must be callable, got {type(function).__name__}")
    for name, optional in (("hvp", hvp), ("hessian", hessian)):
        if optional is not None and not callable(optional):
            raise TypeError(f"{name} must be callable or None, got {type(optional).__name__}")
    dim = integer("dim", dim, minimum=1)
    if at is None:
        at = np.random.default_rng(0).standard_normal(dim) / np.sqrt(dim)
    problem = FunctionProblem(loss, gradient, hvp, hessian, dim, bool(analytic))
    _check(problem, float_array("at", at, shape=(dim,)).copy())
    return problem


@dataclass(frozen=True)
class FunctionProblem:
    """A problem made of callables; build it with `from_functions`, which checks them."""

    loss_function: Callable[[Array], Any]
    gradient_function: Callable[[Array], Any]
    hvp_function: Callable[[Array, Array], Any] | None
    hessian_function: Callable[[Array], Any] | None
    dim: int
    analytic: bool

    def loss(self, theta: Array) -> Any:
        return np.asarray(self.loss_function(inexact(theta)))[()]

    def gradient(self, theta: Array) -> Array:
        if getattr(theta, "dtype", None) is not _FLOAT64:  # spares runs a call at every step
            theta = inexact(theta)
        return np.asarray(self.gradient_function(theta))

    def hvp(self, theta: Array, v: Array) -> Array:
        if self.hvp_function is not None:
            return np.asarray(self.hvp_function(inexact(theta), inexact(v)))
        if self.hessian_function is not None:
            return self.hessian(theta) @ v
        return directional_derivative(self.gradient, theta, v, self.analytic)

    def hessian(self, theta: Array) -> Array:
        if self.hessian_function is not None:
            return np.asarray(self.hessian_function(inexact(theta)))
        dense_fits("the Hessian", (self.dim, self.dim), PRODUCTS)
        columns = [self.hvp(theta, unit) for unit in np.eye(self.dim)]
        matrix = np.stack(columns, axis=1)
        return (matrix + matrix.T) / 2


def _check(problem: FunctionProblem, theta: Array) -> None:
    """The checks of `from_functions`, the most telling message first."""
    dim, before = problem.dim, theta.copy()
    direction, other = np.random.default_rng(1).standard_normal((2, dim))
    direction /= np.linalg.norm(direction)

    def checked(name: str, function: Callable[[], Any], shape: tuple[int, ...]) -> Array:
        """What a user's function returns, called twice."""
        first, second = np.asarray(function()), np.asarray(function())
        if not np.array_equal(theta, before):
            raise ValueError(f"{name} changes its argument in place; work on a copy")
        if first.dtype.kind not in "iuf":
            raise TypeError(f"{name} must return real numbers, got {first[()]!r}")
        if first.shape != shape:
            raise ValueError(f"{name} must return shape {shape}, got {first.shape}")
        if not np.isfinite(first).all():
            raise ValueError(f"{name} is not finite at the check point; pass a valid point as `at`")
        if not np.array_equal(first, second):
            raise ValueError(f"{name} returns different values for the same argument")
        return first

    checked("loss", lambda: problem.loss_function(theta), ())
    gradient = checked("gradient", lambda: problem.gradient_function(theta), (dim,))
    if problem.hessian_function is not None:
        hessian_function = problem.hessian_function
        matrix = checked("hessian", lambda: hessian_function(theta), (dim, dim))
        if np.abs(matrix - matrix.T).max() > 1e-8 * np.abs(matrix).max():
            raise ValueError("hessian must return a symmetric matrix")

    # Our choice of tolerances: a wrong sign, factor or term is far above them, and rounding and
    # truncation of the differences far below.
    step = _CENTRAL_STEP * (1 + np.linalg.norm(theta))
    ahead, behind = theta + step * direction, theta - step * direction
    slope = (problem.loss(ahead) - problem.loss(behind)) / (2 * step)
    scale = np.linalg.norm(gradient) + abs(problem.loss(theta)) + 1e-12
    if abs(gradient @ direction - slope) > 1e-4 * scale:
        raise ValueError(
            "gradient is not the derivative of loss: along a test direction it gives "
            f"{gradient @ direction:.6g}, differences of the loss give {slope:.6g}"
        )
    change = (problem.gradient(ahead) - problem.gradient(behind)) / (2 * step)
    if problem.analytic:
        _check_continuation(problem, theta, direction, change, 1e-4 * scale)
    product = checked("hvp", lambda: problem.hvp(theta, direction), (dim,))
    if np.linalg.norm(product - change) > 1e-4 * (np.linalg.norm(change) + scale):
        raise ValueError(
            "hvp (or hessian) is not the derivative of gradient: the norms of the product and of "
            f"the difference are {np.linalg.norm(product):.6g} and {np.linalg.norm(change):.6g}"
        )
    left, right = other @ product, direction @ problem.hvp(theta, other)
    if abs(left - right) > 1e-6 * (abs(left) + np.linalg.norm(other) * np.linalg.norm(product)):
        raise ValueError(f"the Hessian is not symmetric: u.Hv = {left:.8g} but v.Hu = {right:.8g}")


def _check_continuation(
    problem: FunctionProblem, theta: Array, direction: Array, change: Array, tolerance: float
) -> None:
    """A gradient that continues holomorphically has its derivative, ``change``, by complex step."""
    remedy = "leave analytic out, or write gradient without abs, conjugation and math functions"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            continued = directional_derivative(problem.gradient, theta, direction, True)
    except Exception as error:  # whatever the user's function makes of complex numbers
        raise ValueError(
            "analytic=True is wrong here: gradient fails at complex theta, "
            f"{type(error).__name__}: {error}; {remedy}"
        ) from error
    if not np.linalg.norm(continued - change) <= 1e-4 * np.linalg.norm(change) + tolerance:
        raise ValueError(
            "analytic=True is wrong here: the derivative of gradient along a test direction has "
            f"norm {np.linalg.norm(continued):.6g} by a complex step and "
            f"{np.linalg.norm(change):.6g} by differences; {remedy}"
        )
