"""Models that are linear in theta: least squares with an exact, constant Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from eosim._checks import PRODUCTS, SAMPLES, Array, dense_fits, float_array
from eosim.problems._operators import LinearOperator, checked_matrix, dense, product, read_only
from eosim.problems.base import certifiable


@dataclass(frozen=True, eq=False)
class LinearRegression:
    r""":math:`L = \frac{1}{2n} \sum_i |x_i^\top \Theta - y_i|^2`, so :math:`H = X^\top X / n` per output.

    Parameters
    ----------
    inputs : (n, d) array, scipy sparse matrix or LinearOperator
        X, one sample per row. A LinearOperator allows full-batch products only.
    targets : (n,) or (n, k) array
        y.

    Notes
    -----
    theta holds the (d, k) matrix :math:`\Theta` row by row: ``dim = d * k``. The residuals are
    computed before they meet :math:`X^\top`, so a loss of 1e-30 is still accurate.

    Raises
    ------
    ValueError
        If the data are empty, not finite, or the two lengths differ.
    """

    inputs: Any
    targets: Any

    def __post_init__(self) -> None:
        inputs = checked_matrix("inputs", self.inputs)
        if isinstance(inputs, LinearOperator):
            try:
                inputs.rmatvec(np.zeros(inputs.shape[0]))
            except NotImplementedError:
                raise TypeError("inputs: the LinearOperator needs rmatvec, for gradients") from None
        if 0 in inputs.shape:
            raise ValueError(f"inputs must have samples and features, got shape {inputs.shape}")
        targets = float_array("targets", self.targets)
        if targets.ndim not in (1, 2) or 0 in targets.shape:
            raise ValueError(
                f"targets must have shape (n,) or (n, k), not empty; got {targets.shape}"
            )
        if len(targets) != inputs.shape[0]:
            raise ValueError(
                f"inputs and targets must have one row per sample; got shapes {inputs.shape} and "
                f"{targets.shape}"
            )
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", targets.reshape(len(targets), -1))

    analytic = True

    @property
    def n_samples(self) -> int:
        return int(self.inputs.shape[0])

    @property
    def n_outputs(self) -> int:
        return int(self.targets.shape[1])

    @property
    def dim(self) -> int:
        return int(self.inputs.shape[1]) * self.n_outputs

    def residuals(self, theta: Array, batch: Array | None = None) -> Array:
        """e = X Theta - y, of shape (batch, n_outputs)."""
        inputs, targets = self._rows(batch)
        return product(inputs, np.asarray(theta).reshape(-1, self.n_outputs)) - targets

    def jacobian(self, theta: Array, batch: Array | None = None) -> Array:
        """de/dtheta, of shape (batch, n_outputs, dim): the rows of X in every output's slots."""
        inputs, _ = self._rows(batch)
        dense_fits("the Jacobian", (inputs.shape[0], self.n_outputs, self.dim), SAMPLES)
        rows = dense(inputs)  # (batch, d)
        slots = np.eye(self.n_outputs)  # (k, k)
        blocks = np.einsum("ij,ab->iajb", rows, slots)  # (batch, k, d, k)
        return blocks.reshape(len(rows), self.n_outputs, self.dim)

    def loss(self, theta: Array, batch: Array | None = None) -> Any:
        residuals = self.residuals(theta, batch)
        return np.sum(residuals * residuals) / (2 * len(residuals))  # bilinear: no conjugation

    def gradient(self, theta: Array, batch: Array | None = None) -> Array:
        inputs, targets = self._rows(batch)
        residuals = product(inputs, np.asarray(theta).reshape(-1, self.n_outputs)) - targets
        return product(inputs.T, residuals).ravel() / len(residuals)

    def hvp(self, theta: Array, v: Array, batch: Array | None = None) -> Array:
        inputs, _ = self._rows(batch)
        image = product(inputs, np.asarray(v).reshape(-1, self.n_outputs))
        return product(inputs.T, image).ravel() / inputs.shape[0]

    @certifiable
    def hessian(self, theta: Array, batch: Array | None = None) -> Array:
        """(X.T X / n) kron I_k, of shape (dim, dim)."""
        dense_fits("the Hessian", (self.dim, self.dim), PRODUCTS)
        if batch is None:
            return self._full_hessian
        return self._hessian_of(dense(self._rows(batch)[0]))

    def third_derivative(self, theta: Array, a: Array, b: Array) -> Array:
        return 0 * np.asarray(theta)

    @cached_property
    def _full_hessian(self) -> Array:
        return read_only(self._hessian_of(dense(self.inputs)))

    def _hessian_of(self, rows: Array) -> Array:
        return np.kron(rows.T @ rows / len(rows), np.eye(self.n_outputs))

    def _rows(self, batch: Array | None) -> tuple[Any, Array]:
        if batch is None:
            return self.inputs, self.targets
        if isinstance(self.inputs, LinearOperator):
            raise TypeError(
                "mini-batches need the rows of inputs, which a LinearOperator does not give; pass "
                "an array or a scipy sparse matrix"
            )
        return self.inputs[batch], self.targets[batch]
