"""Compiled ensembles of SGD on models that are linear in theta: which form is cheapest, and each form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from eosim._checks import Array, dense_fits
from eosim._threads import one_blas_thread, share
from eosim.discrete import DIVERGENCE_FACTOR
from eosim.ensemble.memory import is_plain
from eosim.ensemble.result import Cell
from eosim.problems._operators import LinearOperator, dense
from eosim.problems.regression import LinearRegression
from eosim.sampling import Batches, batch_blocks, streams_at_once

# Our choice: K of this many samples takes 2 GB.
_LARGEST_KERNEL = 16_384
# Our choice: rows of one matrix product.
_CHUNK = 64
# Our choice: with a start each, replicas share one eigendecomposition, which then pays earlier.
_SHARING = 8
# Products of larger inputs overflow: no form but that of a run is defined.
_LARGEST_INPUT = 1e150
# Our choice: what of the residuals outside the span of the modes is rounding, and would never decay.
_ROUNDING, _TINY = 1e-14, np.finfo(float).tiny
# In entries: a cache line of float32, two of float64; and a page of float64.
_LINE, _PAGE = 16, 512
_LARGEST_FLOAT = np.finfo(float).max


def regression_of(problem: Any) -> LinearRegression | None:
    """The least squares that ``problem`` is, if it is linear in theta and has one output."""
    regression = problem if type(problem) is LinearRegression else None
    if regression is None:  # models on fixed features hold theirs
        regression = getattr(problem, "regression", None)
    if type(regression) is not LinearRegression or regression.n_outputs != 1:
        return None
    if (
        isinstance(regression.inputs, LinearOperator)
        or abs(regression.inputs).max() > _LARGEST_INPUT
    ):
        return None
    return regression


@dataclass(frozen=True, eq=False)
class LinearEnsemble:
    """The replicas' starts, keys and records, and one method per form.

    Every form treats a replica by itself, in the same order of operations whatever their number:
    chunks and threads change no bit.
    """

    regression: LinearRegression
    theta0: Array | None  # (dim,) or (n_replicas, dim)
    residuals0: Array | None  # (n,) or (n_replicas, n), if there is no theta0
    n_replicas: int
    record_steps: Array  # (n_records,), the last one is n_steps
    sampling: str
    keep: tuple[str, ...]
    threads: int
    storage: str  # the type in which K is kept

    def form(self, batch_size: int | None, every: int, method: str) -> str:
        """The form with the fewest operations per step; no choice depends on the replicas' number.

        ``batch_size`` None stands for all samples, ``method`` fixes the space that mini-batches use.
        """
        n, d = self.regression.inputs.shape
        small_kernel, small_inputs = n <= _LARGEST_KERNEL, n * d <= _LARGEST_KERNEL**2
        by_residuals = self.theta0 is None
        if batch_size is None:
            if by_residuals:
                return "modal"
            modes, steps = min(n, d), int(self.record_steps[-1])
            pays = steps * (1 if self._one_start else _SHARING) >= modes
            return "modal" if pays and (small_kernel if n <= d else small_inputs) else "generic"
        if method == "parameter":
            return method
        if not by_residuals and method == "auto":
            parameter = batch_size * 2 * d + 3 * d + n * d / every
            residual = batch_size * n + 2 * n
            if (parameter < residual or not small_kernel) and small_inputs:
                return "parameter"
            if not small_kernel:
                return "generic"
        dense_fits("K", (n, n), 'method="parameter" does without')
        return "residual"

    def residual(self, rule: tuple[float, ...], batch_size: int, keys: Array) -> Cell:
        descended = self._descended(rule, batch_size, keys, self._starts(self.n_replicas))
        return self._residual_cell(*descended)

    def _descended(
        self, rule: tuple[float, ...], batch_size: int, keys: Array, starts: Array
    ) -> tuple[Array, Array, Array, Array]:
        """Last states with their padding, losses, steps of divergence, coefficients of theta."""
        from eosim._kernels.sgd import residual_momentum, residual_sgd

        kernel, states, limit = self._kernel, _aligned(starts), _norm_limit(starts)
        duals, (losses, stops) = self._duals(len(starts)), self._empty(len(starts))
        plain = is_plain(rule)
        followed = (len(starts), 0) if plain else states.shape
        velocities, dual_velocities = np.zeros(followed), np.zeros_like(duals)

        def move(own: slice, batches: Batches, record: int) -> bool:
            if plain:
                residual_sgd(
                    kernel, states[own], *batches, rule[0], self.record_steps, record,
                    limit[own], losses[own], stops[own], duals[own],
                )  # fmt: skip
            else:
                residual_momentum(
                    kernel, states[own], velocities[own], *batches, rule,
                    self.record_steps, record, limit[own], losses[own], stops[own], duals[own],
                    dual_velocities[own],
                )  # fmt: skip
            return bool((stops[own] < 0).any())

        self._drive(move, batch_size, keys)
        return states, losses, stops, duals

    def residual_shared(self, lrs: Array, batch_size: int, keys: Array) -> list[Cell]:
        """`residual` of gradient descent at each rate, to the bit; what is read of K serves all."""
        from eosim._kernels.sgd import residual_sgd_shared

        kernel, starts, shape = self._kernel, self._starts(self.n_replicas), (len(keys), len(lrs))
        limit = _norm_limit(starts)
        states = _aligned(np.broadcast_to(starts[:, None], (*shape, starts.shape[1])))
        losses = np.full((*shape, len(self.record_steps)), np.inf)
        duals, left = self._duals(*shape), np.zeros(shape, bool)

        def move(own: slice, batches: Batches, record: int) -> bool:
            residual_sgd_shared(
                kernel, states[own], *batches, lrs, self.record_steps, record, limit[own],
                losses[own], left[own], duals[own],
            )  # fmt: skip
            return not left[own].all()

        self._drive(move, batch_size, keys)
        cells = []
        for i, lr in enumerate(lrs):
            stops = np.full(self.n_replicas, -1)
            again = left[:, i]
            if again.any():
                parts = self._descended(
                    (lr, 0.0, 0.0, 1.0, 0.0), batch_size, keys[again], starts[again]
                )
                whole = (states[:, i], losses[:, i], stops, duals[:, i])
                for array, part in zip(whole, parts, strict=True):
                    array[again] = part
            cells.append(self._residual_cell(states[:, i], losses[:, i], stops, duals[:, i]))
        return cells

    def _residual_cell(self, states: Array, losses: Array, stops: Array, duals: Array) -> Cell:
        residuals = states[:, : self.regression.n_samples] if "residuals" in self.keep else None
        return Cell({"loss": losses}, stops, self._theta_of(duals), residuals)

    def parameter(self, rule: tuple[float, ...], batch_size: int, keys: Array) -> Cell:
        from eosim._kernels.sgd import parameter_sgd

        assert self.theta0 is not None
        inputs, targets = self._rows, np.ascontiguousarray(self.regression.targets[:, 0])
        losses, stops = self._empty(self.n_replicas)
        theta = np.array(
            np.broadcast_to(self.theta0, (self.n_replicas, inputs.shape[1])), order="C"
        )
        velocities = np.zeros_like(theta)
        limit = DIVERGENCE_FACTOR * (1 + np.abs(theta).max(axis=1))

        def move(own: slice, batches: Batches, record: int) -> bool:
            parameter_sgd(
                inputs, targets, theta[own], velocities[own], *batches, rule,
                self.record_steps, record, limit[own], losses[own], stops[own],
            )  # fmt: skip
            return bool((stops[own] < 0).any())

        self._drive(move, batch_size, keys)
        residuals = _images(inputs, theta) - targets if "residuals" in self.keep else None
        return Cell({"loss": losses}, stops, theta if "theta" in self.keep else None, residuals)

    def modal(self, rule: tuple[float, ...], batch_size: None, keys: Array) -> Cell:
        from eosim._kernels.sgd import modal_descent

        n_replicas = 1 if self._one_start else self.n_replicas  # without batches all are the same
        starts, (curvatures, basis) = self._starts(n_replicas), self._modes
        n = starts.shape[1]
        states = _images(basis.T, starts)
        outside = np.zeros_like(starts)
        if basis.shape[1] < n:
            outside = starts - _images(basis, states)
            size = np.linalg.norm(outside, axis=1) / np.maximum(
                np.linalg.norm(starts, axis=1), _TINY
            )
            outside[size < _ROUNDING] = 0
        constant = np.einsum("ij,ij->i", outside, outside)
        duals, limit = np.zeros_like(states), _norm_limit(starts)
        losses, stops = self._empty(n_replicas)

        def task(chunk: slice) -> None:
            modal_descent(
                curvatures, n, states[chunk], constant[chunk], rule, self.record_steps,
                limit[chunk], losses[chunk], stops[chunk], duals[chunk],
            )  # fmt: skip

        share(task, n_replicas, self.threads)
        residuals = outside + _images(basis, states) if "residuals" in self.keep else None
        theta = self._theta_of(_images(basis, duals) / n) if "theta" in self.keep else None
        return Cell({"loss": losses}, stops, theta, residuals)

    def _drive(
        self, move: Callable[[slice, Batches, int], bool], batch_size: int, keys: Array
    ) -> None:
        """All steps of all replicas; ``move`` makes those of one block, and says if any is left.

        It is told which record comes next.
        """
        size = (self.regression.n_samples, batch_size, self.sampling)

        def task(own: slice) -> None:
            for batches in batch_blocks(keys[own], *size, 0, int(self.record_steps[-1])):
                record = np.searchsorted(self.record_steps, batches.first, side="right")
                if not move(own, batches, int(record)):
                    break

        share(task, len(keys), self.threads, streams_at_once(*size))

    def _theta_of(self, duals: Array) -> Array | None:
        """theta_0 + J^T a, if it is kept."""
        if "theta" not in self.keep:
            return None
        assert self.theta0 is not None
        starts = np.broadcast_to(self.theta0, (self.n_replicas, self.theta0.shape[-1]))
        return starts[: len(duals)] + _images(self.regression.inputs.T, duals)

    def _starts(self, n_replicas: int) -> Array:
        """Residuals at the start, of shape (n_replicas, n)."""
        starts = self.residuals0
        if starts is None:
            assert self.theta0 is not None
            targets = self.regression.targets[:, 0]
            starts = _images(self.regression.inputs, np.atleast_2d(self.theta0)) - targets
        return np.array(np.broadcast_to(starts, (n_replicas, starts.shape[-1])), order="C")

    def _duals(self, *shape: int) -> Array:
        """Coefficients of theta - theta_0, of no length if theta is not kept."""
        return np.zeros((*shape, self.regression.n_samples if "theta" in self.keep else 0))

    def _empty(self, n_replicas: int) -> tuple[Array, Array]:
        return np.full((n_replicas, len(self.record_steps)), np.inf), np.full(n_replicas, -1)

    @property
    def _one_start(self) -> bool:
        """Whether all replicas start alike: with all samples they then stay alike."""
        starts = self.residuals0 if self.theta0 is None else self.theta0
        assert starts is not None
        return starts.ndim == 1

    @cached_property
    def _rows(self) -> Array:
        return np.ascontiguousarray(dense(self.regression.inputs))

    @cached_property
    def _kernel(self) -> Array:
        """K as the kernels read it."""
        products = self._products()
        if self.storage == "float32":
            sizes = np.diag(products)[np.diag(products) > 0]
            single = np.finfo(np.float32)
            if len(sizes) and not (single.tiny < sizes.min() and sizes.max() < single.max):
                raise ValueError(
                    "storage must be 'float64' where inputs have squares beyond the range of float32, got "
                    f"'float32' with |x|^2 from {sizes.min():.3g} to {sizes.max():.3g}"
                )
        return _aligned(products.astype(self.storage, copy=False))

    def _products(self) -> Array:
        """K = J J^T, (n, n)."""
        dense_fits("K", (self.regression.n_samples,) * 2, 'method="generic" does without')
        with one_blas_thread():
            return np.ascontiguousarray(dense(self.regression.inputs @ self.regression.inputs.T))

    @cached_property
    def _modes(self) -> tuple[Array, Array]:
        """Eigenvalues of K / n and their eigenvectors, in columns; min(n, d) of them."""
        n, d = self.regression.inputs.shape
        with one_blas_thread():
            if n <= d:
                values, vectors = np.linalg.eigh(self._products())
                return np.maximum(values, 0) / n, vectors
            vectors, singular, _ = np.linalg.svd(self._rows, full_matrices=False)
            return singular**2 / n, vectors


def _aligned(rows: Array) -> Array:
    """A copy whose last axis is padded with zeros, so that every row starts on a cache line.

    Vectors that cross from one line into the next are read at half the speed. Rows whose distance is
    a multiple of a page would meet in the same few places of a cache: they are padded once more.
    """
    n = rows.shape[-1]
    width = -(-n // _LINE) * _LINE
    if width % _PAGE == 0:
        width += _LINE
    size = rows[..., 0].size * width
    room = np.zeros(size + _LINE, rows.dtype)
    first = -room.ctypes.data // rows.itemsize % _LINE
    padded = room[first : first + size].reshape(*rows.shape[:-1], width)
    padded[..., :n] = rows
    return padded


def _images(matrix: Any, rows: Array) -> Array:
    """``rows @ matrix.T``, in products of one shape: no row's bits depend on how many there are."""
    images = np.empty((len(rows), matrix.shape[0]))
    block = np.zeros((_CHUNK, matrix.shape[1]))
    with one_blas_thread():
        for first in range(0, len(rows), _CHUNK):
            part = rows[first : first + _CHUNK]
            block[: len(part)] = part
            images[first : first + _CHUNK] = (matrix @ block.T).T[: len(part)]
    return images


def _norm_limit(states: Array) -> Array:
    """Of |z|^2, for each replica: the bound of a run, on the Euclidean norm of the residuals."""
    with np.errstate(over="ignore"):
        bound = DIVERGENCE_FACTOR * (1 + np.linalg.norm(states, axis=1))
        return np.minimum(bound**2, _LARGEST_FLOAT)
