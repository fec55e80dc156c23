"""Deeper homogeneous nets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from eosim._checks import (
    PRODUCTS,
    SAMPLES,
    Array,
    dense_fits,
    integer,
    seeded,
)
from eosim.problems.base import directional_derivative
from eosim.problems.networks._shared import (
    batch_rows,
    checked_data,
    checked_points,
    checked_prefactor,
    checked_slopes,
    slopes_at,
    split_layers,
)


@dataclass(frozen=True, eq=False)
class DeepHomogeneousNet:
    r""":math:`L = \frac{1}{2D} \sum_a (z(x_a) - y_a)^2`, z homogeneous of degree m + 1 in theta.

    .. math:: h_0 = x, \qquad h_l = \sigma(W_l h_{l-1}), \qquad z = c\, v \cdot h_m

    Parameters
    ----------
    inputs : (D, d) array-like
    targets : (D,) or (D, 1) array-like
    widths : sequence of int
        :math:`n_1, \dots, n_m`, one hidden layer at least.
    slopes : (float, float)
        :math:`(a_+, a_-)` of :math:`\sigma`, as for `TwoLayerNet`.
    prefactor : float, optional
        c > 0; :math:`(d\, n_1 \cdots n_m)^{-1/2}` if None (Meltzer & Liu 2023, arXiv 2301.07737,
        where all widths are equal).

    Notes
    -----
    theta holds :math:`W_1, \dots, W_m` row by row, each of shape (out, in), then v. Kinks and
    analyticity are as for `TwoLayerNet`, which is this net with one hidden layer.

    Raises
    ------
    TypeError, ValueError
        As for `TwoLayerNet`, and if ``widths`` is empty.
    """

    inputs: Any
    targets: Any
    widths: Sequence[int] = field(default=(32, 32))
    slopes: Any = (1.0, 0.0)
    prefactor: Any = None

    n_outputs = 1

    def __post_init__(self) -> None:
        inputs, targets = checked_data(self.inputs, self.targets)
        if not isinstance(self.widths, Iterable):
            raise TypeError(f"widths must be a sequence of integers, got {self.widths!r}")
        widths = tuple(integer("widths", width, minimum=1) for width in self.widths)
        if not widths:
            raise ValueError("widths must have at least one hidden layer, got ()")
        default = float(np.prod([float(size) for size in (inputs.shape[1], *widths)])) ** -0.5
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "widths", widths)
        object.__setattr__(self, "slopes", checked_slopes(self.slopes))
        object.__setattr__(self, "prefactor", checked_prefactor(self.prefactor, default))

    @property
    def analytic(self) -> bool:
        return bool(self.slopes[0] == self.slopes[1])

    @property
    def n_samples(self) -> int:
        return len(self.inputs)

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """(out, in) of every layer, (1, n_m) for v."""
        sizes = [self.inputs.shape[1], *self.widths, 1]
        return [(out, inner) for inner, out in pairwise(sizes)]

    @cached_property
    def dim(self) -> int:
        return sum(out * inner for out, inner in self.shapes)

    def initial(self, seed: Any = 0) -> Array:
        """All weights N(0, 1), layer by layer from ``numpy.random.default_rng(seed)``."""
        return seeded(seed).standard_normal(self.dim)

    def pre_activations(self, theta: Array, inputs: Any = None) -> list[Array]:
        """Of every hidden layer, of shape (D, width), at ``inputs``, the training ones if None."""
        layers = split_layers(theta, self.shapes)
        units, _ = self._forward(layers, checked_points(inputs, self.inputs))
        return [below @ layer.T for below, layer in zip(units[:-1], layers[:-1], strict=True)]

    def outputs(self, theta: Array, inputs: Any = None) -> Array:
        """z at ``inputs`` (D, d), the training inputs if None; shape (D, 1)."""
        layers = split_layers(theta, self.shapes)
        units, _ = self._forward(layers, checked_points(inputs, self.inputs))
        return self._readout(units, layers)

    def residuals(self, theta: Array, batch: Array | None = None) -> Array:
        """e = z - y, of shape (batch, 1)."""
        inputs, targets = batch_rows(self.inputs, self.targets, batch)
        layers = split_layers(theta, self.shapes)
        units, _ = self._forward(layers, inputs)
        return self._readout(units, layers) - targets

    def loss(self, theta: Array, batch: Array | None = None) -> Any:
        residuals = self.residuals(theta, batch)
        return np.sum(residuals * residuals) / (2 * len(residuals))  # bilinear: no conjugation

    def gradient(self, theta: Array, batch: Array | None = None) -> Array:
        inputs, targets = batch_rows(self.inputs, self.targets, batch)
        layers = split_layers(theta, self.shapes)
        units, gates = self._forward(layers, inputs)
        residuals = self._readout(units, layers) - targets
        deltas = self._backward(layers, gates, residuals * (self.prefactor / len(residuals)))
        parts = [(delta.T @ below).ravel() for delta, below in zip(deltas, units, strict=True)]
        return np.concatenate(parts)

    def hvp(self, theta: Array, v: Array, batch: Array | None = None) -> Array:
        """H v by differentiating the gradient's two passes along v (Pearlmutter 1994), gates fixed."""
        inputs, targets = batch_rows(self.inputs, self.targets, batch)
        layers, moves = split_layers(theta, self.shapes), split_layers(v, self.shapes)
        units, gates = self._forward(layers, inputs)
        velocities = [np.zeros_like(inputs)]  # d(unit) along v
        for layer, move, below, gate in zip(
            layers[:-1], moves[:-1], units[:-1], gates, strict=True
        ):
            velocities.append(gate * (velocities[-1] @ layer.T + below @ move.T))
        scale = self.prefactor / len(inputs)
        change = self.prefactor * (velocities[-1] @ layers[-1].T + units[-1] @ moves[-1].T)
        delta = scale * (self._readout(units, layers) - targets)
        rate = scale * change  # d(delta) along v
        products = []
        for index in range(len(layers) - 1, -1, -1):
            products.append((rate.T @ units[index] + delta.T @ velocities[index]).ravel())
            if index > 0:
                gate = gates[index - 1]
                rate = gate * (rate @ layers[index] + delta @ moves[index])
                delta = gate * (delta @ layers[index])
        return np.concatenate(products[::-1])

    def hessian(self, theta: Array, batch: Array | None = None) -> Array:
        """(dim, dim) from dim products: for small nets only."""
        dense_fits("the Hessian", (self.dim, self.dim), PRODUCTS)
        matrix = np.stack([self.hvp(theta, unit, batch) for unit in np.eye(self.dim)])
        return (matrix + matrix.T) / 2

    def jacobian(self, theta: Array, batch: Array | None = None) -> Array:
        """dz/dtheta, of shape (batch, 1, dim): 8 batch dim bytes, on demand only."""
        units, deltas = self._sensitivities(theta, batch)
        dense_fits("the Jacobian", (len(units[0]), 1, self.dim), SAMPLES)
        rows = [
            (delta[:, :, None] * below[:, None, :]).reshape(len(below), -1)
            for delta, below in zip(deltas, units, strict=True)
        ]
        return np.hstack(rows)[:, None, :]

    def third_derivative(self, theta: Array, a: Array, b: Array) -> Array:
        # at fixed gates hvp is a polynomial also where the net is not analytic
        analytic = not np.iscomplexobj(b)
        return directional_derivative(lambda point: self.hvp(point, b), theta, a, analytic)

    def ntk(self, theta: Array) -> Array:
        r"""J J^T / D, of shape (D, D), without the Jacobian.

        The sum over layers of :math:`(\delta_a\cdot\delta_b)(h_a\cdot h_b)/D` with h the layer's
        inputs and :math:`\delta` the derivative of z by its pre-activations.
        """
        dense_fits("the NTK", (self.n_samples, self.n_samples), SAMPLES)
        units, deltas = self._sensitivities(theta, None)
        kernel = np.zeros((self.n_samples, self.n_samples), dtype=np.result_type(*units))
        for delta, below in zip(deltas, units, strict=True):
            kernel += (delta @ delta.T) * (below @ below.T)
        return kernel / self.n_samples

    def _sensitivities(self, theta: Array, batch: Array | None) -> tuple[list[Array], list[Array]]:
        """The inputs of every layer, and dz / d(pre-activation) of every layer."""
        inputs, _ = batch_rows(self.inputs, self.targets, batch)
        layers = split_layers(theta, self.shapes)
        units, gates = self._forward(layers, inputs)
        return units, self._backward(layers, gates, np.full((len(inputs), 1), self.prefactor))

    def _forward(self, layers: list[Array], inputs: Array) -> tuple[list[Array], list[Array]]:
        """The inputs of every layer and the gates of every hidden layer."""
        units, gates = [inputs], []
        for layer in layers[:-1]:
            pre = units[-1] @ layer.T
            gates.append(slopes_at(pre, self.slopes))
            units.append(gates[-1] * pre)
        return units, gates

    def _readout(self, units: list[Array], layers: list[Array]) -> Array:
        return self.prefactor * (units[-1] @ layers[-1].T)

    @staticmethod
    def _backward(layers: list[Array], gates: list[Array], top: Array) -> list[Array]:
        """``top`` (batch, 1) sent back to the pre-activations of every layer, first layer first."""
        deltas = [top]
        for layer, gate in zip(reversed(layers[1:]), reversed(gates), strict=True):
            deltas.append(gate * (deltas[-1] @ layer))
        return deltas[::-1]
