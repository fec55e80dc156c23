"""What `from_jax` and `from_torch` return, and what they share: checks, targets, batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from eosim._checks import PRODUCTS, SAMPLES, Array, dense_fits, float_array
from eosim.problems.base import directional_derivative

CRITERIA = ("square", "cross_entropy")

# Our choice. A loss and the mean over its parts differ by rounding only, far below this; a sum in
# place of a mean, or samples that see each other through batch normalisation, are far above.
_MEAN_TOLERANCE = 1e-9
# Our choice, as for `from_functions`: a missing or wrong term of the gradient is far above it,
# truncation of the differences far below.
_GRADIENT_TOLERANCE = 1e-4
# Our choice, relative to 1 + |theta|: how far from the given parameters the checks are made. There
# the loss is not at its minimum, where values and slopes of an interpolating model are rounding only.
_DISTANCE = 1e-3


class Backend(Protocol):
    """A framework's derivatives as functions of float64 vectors; ``batch`` None means all samples."""

    @property
    def theta0(self) -> Array: ...

    @property
    def n_samples(self) -> int | None: ...

    @property
    def source(self) -> str:
        """What the problem was made of, in a word or two."""

    def plain_loss(self, theta: Array, batch: Array | None) -> float:
        """The loss, with the model's Python code executed at every call."""

    def loss(self, theta: Array, batch: Array | None) -> float: ...

    def gradient(self, theta: Array, batch: Array | None) -> Array: ...

    def hvp_at(self, theta: Array, batch: Array | None) -> Callable[[Array], Array]: ...

    def outputs(self, theta: Array, inputs: Any) -> Array: ...

    def residuals(self, theta: Array, batch: Array | None) -> Array: ...

    def jacobian(self, theta: Array, batch: Array | None) -> Array: ...

    def flatten(self, parameters: Any) -> Array: ...

    def unflatten(self, theta: Array) -> Any: ...


@dataclass(frozen=True, eq=False, repr=False)
class AutodiffProblem:
    """A loss whose derivatives come from a framework; made by `from_jax` or `from_torch`.

    Everything is computed in float64, on real theta only.

    Attributes
    ----------
    backend : Backend
    theta0 : (dim,) array
        The parameters it was made with, flat: where a run starts.
    """

    backend: Backend
    theta0: Array

    analytic = False

    def __repr__(self) -> str:
        samples = "" if self.backend.n_samples is None else f", n_samples={self.backend.n_samples}"
        return f"{type(self).__name__}({self.backend.source}, dim={self.dim}{samples})"

    @property
    def dim(self) -> int:
        return len(self.theta0)

    def loss(self, theta: Array, batch: Array | None = None) -> Any:
        return np.float64(self.backend.loss(self._real("theta", theta), self._rows(batch)))

    def gradient(self, theta: Array, batch: Array | None = None) -> Array:
        return self.backend.gradient(self._real("theta", theta), self._rows(batch))

    def hvp(self, theta: Array, v: Array, batch: Array | None = None) -> Array:
        """H v."""
        return self.hvp_at(theta, batch)(v)

    def hvp_at(self, theta: Array, batch: Array | None = None) -> Callable[[Array], Array]:
        """v -> H v at one theta: work that does not depend on v is kept where that is possible."""
        product = self.backend.hvp_at(self._real("theta", theta), self._rows(batch))
        return lambda v: product(self._real("v", v))

    def hessian(self, theta: Array, batch: Array | None = None) -> Array:
        """From ``dim`` products."""
        dense_fits("the Hessian", (self.dim, self.dim), PRODUCTS)
        product = self.hvp_at(theta, batch)
        matrix = np.stack([product(unit) for unit in np.eye(self.dim)])
        return (matrix + matrix.T) / 2

    def unflatten(self, theta: Array) -> Any:
        """theta as the framework keeps it: a pytree of NumPy arrays, or a state dict; float64."""
        return self.backend.unflatten(self._real("theta", theta))

    def flatten(self, parameters: Any) -> Array:
        """The inverse of ``unflatten``; shape (dim,).

        Raises
        ------
        ValueError
            If names or shapes are not those of the model.
        """
        return self.backend.flatten(parameters)

    def _real(self, name: str, x: Any) -> Array:
        array = np.asarray(x)
        if array.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be real: the problem is not analytic; got {array.dtype}")
        if array.shape != (self.dim,):
            raise ValueError(f"{name} must have shape ({self.dim},), got {array.shape}")
        # A copy of its own: frameworks may share memory, and warn about read-only arrays.
        return np.array(array, dtype=np.float64)

    def _rows(self, batch: Array | None) -> Array | None:
        if batch is not None:
            raise TypeError(
                "batch must be None: the loss was given without inputs, hence without samples"
            )
        return batch


@dataclass(frozen=True, eq=False, repr=False)
class AutodiffFiniteSum(AutodiffProblem):
    """A mean over samples; as `AutodiffProblem`, with batches.

    Attributes
    ----------
    n_samples : int
    """

    n_samples: int

    def outputs(self, theta: Array, inputs: Any = None) -> Array:
        """What the model returns at ``inputs``, all training inputs if None; float64."""
        return self.backend.outputs(self._real("theta", theta), inputs)

    def _rows(self, batch: Array | None) -> Array | None:
        # As NumPy indexes: masks, negative numbers, and an error beyond the last sample.
        return batch if batch is None else np.arange(self.n_samples)[batch]


@dataclass(frozen=True, eq=False, repr=False)
class AutodiffLeastSquares(AutodiffFiniteSum):
    r"""The mean of :math:`|f(x_i) - y_i|^2/2`; as `AutodiffFiniteSum`, with residuals and Jacobian.

    Outputs and targets of a sample are flattened to n_outputs numbers.
    """

    def residuals(self, theta: Array, batch: Array | None = None) -> Array:
        """e = f - y, of shape (batch, n_outputs)."""
        return self.backend.residuals(self._real("theta", theta), self._rows(batch))

    def jacobian(self, theta: Array, batch: Array | None = None) -> Array:
        """df/dtheta, of shape (batch, n_outputs, dim): the model is called on one sample at a time."""
        n = self.n_samples if batch is None else len(batch)
        dense_fits("the Jacobian of one output", (n, self.dim), SAMPLES)
        return self.backend.jacobian(self._real("theta", theta), self._rows(batch))


def build(backend: Backend, square: bool, hint: str = "") -> AutodiffProblem:
    """The problem of a backend, after all checks of values and slopes."""
    theta0 = float_array("the given parameters", backend.theta0)
    problem = (
        AutodiffProblem(backend, theta0)
        if backend.n_samples is None
        else (AutodiffLeastSquares if square else AutodiffFiniteSum)(
            backend, theta0, backend.n_samples
        )
    )
    aside, along = np.random.default_rng(1).standard_normal((2, problem.dim))
    point = theta0 + _DISTANCE * (1 + np.linalg.norm(theta0)) / np.linalg.norm(aside) * aside
    _check_values(backend, point, hint)
    _check_slope(problem, point, along / np.linalg.norm(along))
    return problem


def _check_values(backend: Backend, theta: Array, hint: str) -> None:
    """Two calls agree, and the whole is the mean of its parts."""
    first, second = (backend.plain_loss(theta, None) for _ in range(2))
    if first != second and not (np.isnan(first) and np.isnan(second)):
        raise ValueError(
            f"the loss must be the same at every call; two calls gave {first!r} and {second!r}{hint}"
        )
    n = backend.n_samples
    if n is None or n < 2:
        return
    half = (n + 1) // 2
    rows = np.arange(n)
    ahead, behind = (backend.plain_loss(theta, part) for part in (rows[:half], rows[half:]))
    mean = (half * ahead + (n - half) * behind) / n
    if abs(first - mean) > _MEAN_TOLERANCE * (abs(first) + abs(ahead) + abs(behind)):
        raise ValueError(
            f"the loss must be a mean over the samples: on all of them it is {first:.10g}, but the "
            f"mean over two halves is {mean:.10g}. A sum, class weights, or samples that see each "
            f"other (batch normalisation) do that{hint}"
        )


def _check_slope(problem: AutodiffProblem, theta: Array, direction: Array) -> None:
    """Loss and gradient are finite, also at theta0, and the gradient is the derivative of the loss."""
    for point in (problem.theta0, theta):
        loss, gradient = problem.loss(point), problem.gradient(point)
        if not (np.isfinite(loss) and np.isfinite(gradient).all()):
            raise ValueError(
                f"loss and gradient must be finite at the given parameters; loss is {loss}"
            )
    if not gradient.any():
        raise ValueError(
            "the loss must depend on the parameters: its gradient is 0 at and beside the given ones. "
            "Is everything detached or cast to integers inside the model?"
        )
    slope = directional_derivative(problem.loss, theta, direction, False)
    if abs(gradient @ direction - slope) > _GRADIENT_TOLERANCE * (
        np.linalg.norm(gradient) + abs(loss)
    ):
        raise ValueError(
            "the gradient is not the derivative of the loss: along a test direction it is "
            f"{gradient @ direction:.6g}, differences of the loss give {slope:.6g}. Is something "
            "detached, rounded or given a derivative of its own inside the model?"
        )


def prepared_targets(criterion: Any, targets: Array, shape: tuple[int, ...]) -> Array:
    """Targets (n, k) float64 for the named criteria, given the shape of the model's outputs."""
    if criterion == "square":
        flat = float_array("targets", targets)
        wanted = (shape[0], int(np.prod(shape[1:], dtype=int)))
        if flat.shape not in (shape, wanted) and (wanted[1] > 1 or flat.shape != shape[:1]):
            raise ValueError(
                f"targets must have the shape of the outputs, {shape}; got {targets.shape}"
            )
        return flat.reshape(wanted)
    if len(shape) != 2 or shape[1] < 2:
        raise ValueError(
            f"outputs must have shape (n, classes) for the cross-entropy, got {shape}; pass a callable "
            "criterion for anything else"
        )
    n, k = shape
    if targets.dtype.kind in "iu" and targets.ndim == 1:
        if len(targets) == n and ((targets < 0) | (targets >= k)).any():
            raise ValueError(
                f"targets must be labels from 0 to {k - 1}, one for each output; got "
                f"{targets.min()} to {targets.max()}"
            )
        targets = np.equal.outer(targets, np.arange(k)).astype(float)
    targets = float_array("targets", targets, shape=(n, k))
    if (targets < 0).any() or np.abs(targets.sum(axis=1) - 1).max() > 1e-9:
        raise ValueError("targets must be labels or distributions over the classes, rows of sum 1")
    return targets


def check_criterion(criterion: Any) -> None:
    named = isinstance(criterion, str)
    if (named and criterion not in CRITERIA) or not (named or callable(criterion)):
        raise ValueError(
            f"criterion must be 'square', 'cross_entropy' or a callable of (outputs, targets); got "
            f"{criterion!r}"
        )


@contextmanager
def taking(model: str, shapes: list[tuple[str, tuple[int, ...]]]) -> Iterator[None]:
    """A call of the model at given inputs; where it fails, their shapes are named.

    Raises
    ------
    ValueError
        For whatever the model raises.
    """
    try:
        yield
    except Exception as error:  # what a framework says of shapes and dtypes, or the model itself
        listed = ", ".join(f"{name} of shape {shape}" for name, shape in shapes)
        given = f"the given {listed}" if shapes else "no inputs"
        raise ValueError(
            f"{model} must take {given}; it raises {type(error).__name__}: {error}"
        ) from error


def common_length(shapes: list[tuple[str, tuple[int, ...]]]) -> int:
    """The number of rows that all arrays have."""
    if not shapes:
        raise ValueError("inputs must hold at least one array")
    for name, shape in shapes:
        if not shape or shape[0] == 0:
            raise ValueError(f"{name} must have one row per sample, got shape {shape}")
    lengths = {shape[0] for _, shape in shapes}
    if len(lengths) > 1:
        shown = ", ".join(f"{name} {shape}" for name, shape in shapes)
        raise ValueError(f"inputs and targets must have one row per sample; got shapes {shown}")
    return lengths.pop()
