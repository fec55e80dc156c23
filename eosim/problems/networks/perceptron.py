"""The fully connected network with tanh units, on square loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from eosim._checks import Array, integer
from eosim.problems.networks._shared import (
    batch_rows,
    checked_data,
    checked_points,
    split_layers,
)


@dataclass(frozen=True, eq=False)
class Perceptron:
    r""":math:`L = \frac{1}{2n} \sum_i |f(x_i) - y_i|^2`, f a tanh network with linear output.

    .. math:: a_0 = x, \qquad a_l = \tanh(W_l [a_{l-1}; 1]), \qquad f = W_m [a_{m-1}; 1]

    Parameters
    ----------
    inputs : (n, d) array-like
    targets : (n,) or (n, k) array-like
    hidden : sequence of int
        Widths of the hidden layers.

    Notes
    -----
    theta holds the matrices :math:`W_1, \dots, W_m` one after the other, each of shape (out, in + 1)
    row by row, the bias in the last column. tanh is analytic, so is everything here: loss,
    gradient, Hessian-vector product and Hessian continue to complex theta, without conjugation.

    Raises
    ------
    TypeError, ValueError
        If the data are empty, not finite or of different lengths, or a width is no positive integer.
    """

    inputs: Any
    targets: Any
    hidden: Sequence[int] = field(default=(32,))

    analytic = True

    def __post_init__(self) -> None:
        inputs, targets = checked_data(self.inputs, self.targets, several_outputs=True)
        if not isinstance(self.hidden, Sequence) or isinstance(self.hidden, str):
            raise TypeError(f"hidden must be a sequence of widths, e.g. (32,); got {self.hidden!r}")
        hidden = tuple(integer("hidden", width, minimum=1) for width in self.hidden)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "hidden", hidden)

    @property
    def n_samples(self) -> int:
        return len(self.inputs)

    @property
    def n_outputs(self) -> int:
        return int(self.targets.shape[1])

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """(out, in + 1) of every layer."""
        widths = [self.inputs.shape[1], *self.hidden, self.n_outputs]
        return [(out, inner + 1) for inner, out in pairwise(widths)]

    @cached_property
    def dim(self) -> int:
        return sum(out * inner for out, inner in self.shapes)

    def outputs(self, theta: Array, inputs: Any = None) -> Array:
        """f at ``inputs`` (n, d), the training inputs if None; shape (n, n_outputs)."""
        points = checked_points(inputs, self.inputs)
        return self._forward(split_layers(theta, self.shapes), points)[-1]

    def residuals(self, theta: Array, batch: Array | None = None) -> Array:
        """e = f - y, of shape (batch, n_outputs)."""
        inputs, targets = batch_rows(self.inputs, self.targets, batch)
        return self._forward(split_layers(theta, self.shapes), inputs)[-1] - targets

    def loss(self, theta: Array, batch: Array | None = None) -> Any:
        residuals = self.residuals(theta, batch)
        return np.sum(residuals * residuals) / (2 * len(residuals))  # bilinear: no conjugation

    def gradient(self, theta: Array, batch: Array | None = None) -> Array:
        inputs, targets = batch_rows(self.inputs, self.targets, batch)
        layers = split_layers(theta, self.shapes)
        units = self._forward(layers, inputs)
        delta = (units[-1] - targets) / len(inputs)  # dL/df (n, k)
        gradients = []
        for layer, below in zip(reversed(layers), reversed(units[:-1]), strict=True):
            gradients.append(np.hstack([delta.T @ below, delta.sum(axis=0)[:, None]]))
            delta = (delta @ layer[:, :-1]) * (1 - below * below)  # tanh' = 1 - tanh^2
        return np.concatenate([g.ravel() for g in reversed(gradients)])

    def hvp(self, theta: Array, v: Array, batch: Array | None = None) -> Array:
        """H v by differentiating the gradient's two passes along v (Pearlmutter 1994)."""
        inputs, targets = batch_rows(self.inputs, self.targets, batch)
        layers, moves = split_layers(theta, self.shapes), split_layers(v, self.shapes)
        units = self._forward(layers, inputs)
        velocities = [np.zeros_like(inputs)]  # d(unit) along v
        for layer, move, unit, below in zip(layers, moves, units[1:], units[:-1], strict=True):
            change = velocities[-1] @ layer[:, :-1].T + below @ move[:, :-1].T + move[:, -1]
            last = len(velocities) == len(layers)
            velocities.append(change if last else change * (1 - unit * unit))
        delta = (units[-1] - targets) / len(inputs)
        rate = velocities[-1] / len(inputs)  # d(delta) along v
        products = []
        for index in range(len(layers) - 1, -1, -1):
            layer, move = layers[index][:, :-1], moves[index][:, :-1]
            below, velocity = units[index], velocities[index]
            products.append(
                np.hstack([rate.T @ below + delta.T @ velocity, rate.sum(axis=0)[:, None]])
            )
            slope = 1 - below * below
            back = delta @ layer
            rate = (rate @ layer + delta @ move) * slope - 2 * back * below * velocity
            delta = back * slope
        return np.concatenate([p.ravel() for p in reversed(products)])

    def hessian(self, theta: Array, batch: Array | None = None) -> Array:
        matrix = np.stack([self.hvp(theta, unit, batch) for unit in np.eye(self.dim)])
        return (matrix + matrix.T) / 2

    def jacobian(self, theta: Array, batch: Array | None = None) -> Array:
        """df/dtheta, of shape (batch, n_outputs, dim)."""
        inputs, _ = batch_rows(self.inputs, self.targets, batch)
        layers = split_layers(theta, self.shapes)
        units = self._forward(layers, inputs)
        n = len(inputs)
        delta = np.broadcast_to(np.eye(self.n_outputs), (n, self.n_outputs, self.n_outputs))
        blocks = []
        for layer, below in zip(reversed(layers), reversed(units[:-1]), strict=True):
            padded = np.hstack([below, np.ones((n, 1))])  # (n, in + 1)
            block = np.einsum("nko,ni->nkoi", delta, padded)  # (n, k, out, in + 1)
            blocks.append(block.reshape(n, self.n_outputs, -1))
            delta = (delta @ layer[:, :-1]) * (1 - below * below)[:, None, :]
        return np.concatenate(blocks[::-1], axis=2)

    def initial(self, seed: Any = 0) -> Array:
        """Random weights N(0, 1/in), biases 0 (LeCun 1998); shape (dim,).

        Drawn layer by layer from ``numpy.random.default_rng(seed)``, each matrix of shape (out, in).
        """
        generator = np.random.default_rng(seed)
        parts = []
        for out, inner in self.shapes:
            weights = generator.standard_normal((out, inner - 1)) / np.sqrt(inner - 1)
            parts.append(np.hstack([weights, np.zeros((out, 1))]).ravel())
        return np.concatenate(parts)

    @staticmethod
    def _forward(layers: list[Array], inputs: Array) -> list[Array]:
        """The units of every layer, from the inputs to the outputs."""
        units = [inputs]
        for index, layer in enumerate(layers):
            total = units[-1] @ layer[:, :-1].T + layer[:, -1]
            units.append(total if index == len(layers) - 1 else np.tanh(total))
        return units
