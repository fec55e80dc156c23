"""The fully connected network, on square loss or cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from eosim._checks import Array, Interval, choice, integer, real_number, seeded
from eosim.problems.networks._activations import ACTIVATIONS, Activation
from eosim.problems.networks._shared import (
    batch_rows,
    checked_data,
    checked_points,
    split_layers,
)

CRITERIA = ("square", "cross_entropy")
INITIALISATIONS = ("lecun", "he", "pytorch")


class _Pass(NamedTuple):
    """A forward pass: units a_0 .. a_{m-1}, slopes and bends of the hidden layers, outputs f."""

    units: list[Array]
    slopes: list[Array]
    bends: list[Array | None]
    outputs: Array


@dataclass(frozen=True, eq=False)
class Perceptron:
    r""":math:`L = \frac{1}{2n} \sum_i |f(x_i) - y_i|^2`, f a fully connected network.

    .. math:: a_0 = x, \qquad a_l = \sigma(W_l [a_{l-1}; 1]), \qquad f = W_m [a_{m-1}; 1]

    With ``criterion="cross_entropy"`` instead
    :math:`L = -\frac1n \sum_i \sum_k y_{ik} \log \mathrm{softmax}(f(x_i))_k`.

    Parameters
    ----------
    inputs : (n, d) array-like
    targets : (n,) or (n, k) array-like
        For cross-entropy each row a distribution over the k classes (one-hot labels).
    hidden : sequence of int
        Widths of the hidden layers.
    activation : str
        sigma: "tanh", "relu", "gelu" (the exact form) or "identity".
    criterion : str
        "square" or "cross_entropy".

    Notes
    -----
    theta holds the matrices :math:`W_1, \dots, W_m` one after the other, each of shape (out, in + 1)
    row by row, the bias in the last column. Except with ReLU everything is analytic: loss,
    gradient, Hessian-vector product and Hessian continue to complex theta, without conjugation. The
    derivative of ReLU at 0 is 0. ``residuals`` exist for the square loss only.

    Raises
    ------
    TypeError, ValueError
        If the data are empty, not finite or of different lengths, a width is no positive integer, a
        name is unknown, or a target of the cross-entropy is no distribution.
    """

    inputs: Any
    targets: Any
    hidden: Sequence[int] = field(default=(32,))
    activation: str = "tanh"
    criterion: str = "square"

    def __post_init__(self) -> None:
        inputs, targets = checked_data(self.inputs, self.targets, several_outputs=True)
        if not isinstance(self.hidden, Sequence) or isinstance(self.hidden, str):
            raise TypeError(f"hidden must be a sequence of widths, e.g. (32,); got {self.hidden!r}")
        hidden = tuple(integer("hidden", width, minimum=1) for width in self.hidden)
        choice("activation", self.activation, tuple(ACTIVATIONS))
        if choice("criterion", self.criterion, CRITERIA) == "cross_entropy":
            _check_distributions(targets)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "hidden", hidden)

    @property
    def analytic(self) -> bool:
        return self._activation.analytic

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

    @property
    def _activation(self) -> Activation:
        return ACTIVATIONS[self.activation]

    def outputs(self, theta: Array, inputs: Any = None) -> Array:
        """f at ``inputs`` (n, d), the training inputs if None; shape (n, n_outputs)."""
        points = checked_points(inputs, self.inputs)
        return self._forward(split_layers(theta, self.shapes), points).outputs

    def residuals(self, theta: Array, batch: Array | None = None) -> Array:
        """e = f - y, of shape (batch, n_outputs).

        Raises
        ------
        TypeError
            If the criterion is not the square loss.
        """
        if self.criterion != "square":
            raise TypeError(
                f'residuals need criterion="square", this network has {self.criterion!r}'
            )
        inputs, targets = batch_rows(self.inputs, self.targets, batch)
        return self._forward(split_layers(theta, self.shapes), inputs).outputs - targets

    def loss(self, theta: Array, batch: Array | None = None) -> Any:
        inputs, targets = batch_rows(self.inputs, self.targets, batch)
        outputs = self._forward(split_layers(theta, self.shapes), inputs).outputs
        if self.criterion == "square":
            residuals = outputs - targets
            return np.sum(residuals * residuals) / (2 * len(residuals))  # bilinear: no conjugation
        shifted = outputs - outputs.real.max(axis=1, keepdims=True)
        totals = np.log(np.exp(shifted).sum(axis=1))
        return (totals.sum() - np.sum(targets * shifted)) / len(outputs)

    def gradient(self, theta: Array, batch: Array | None = None) -> Array:
        inputs, targets = batch_rows(self.inputs, self.targets, batch)
        layers = split_layers(theta, self.shapes)
        forward = self._forward(layers, inputs)
        delta = self._pull(forward.outputs, targets)  # dL/df (n, k)
        gradients = []
        for index in range(len(layers) - 1, -1, -1):
            gradients.append(
                np.hstack([delta.T @ forward.units[index], delta.sum(axis=0)[:, None]])
            )
            if index:
                delta = (delta @ layers[index][:, :-1]) * forward.slopes[index - 1]
        return np.concatenate([g.ravel() for g in reversed(gradients)])

    def hvp(self, theta: Array, v: Array, batch: Array | None = None) -> Array:
        """H v."""
        return self.hvp_at(theta, batch)(v)

    def hvp_at(self, theta: Array, batch: Array | None = None) -> Callable[[Array], Array]:
        """v -> H v at one theta: the passes that do not depend on v are made once.

        Differentiates the gradient's two passes along v (Pearlmutter 1994).
        """
        inputs, targets = batch_rows(self.inputs, self.targets, batch)
        layers = split_layers(theta, self.shapes)
        units, slopes, bends, outputs = self._forward(layers, inputs)
        weights = [layer[:, :-1] for layer in layers]
        deltas = [self._pull(outputs, targets)]  # dL/dz, last layer first
        backs = []  # dL/da
        for index in range(len(layers) - 1, 0, -1):
            backs.append(deltas[-1] @ weights[index])
            deltas.append(backs[-1] * slopes[index - 1])
        deltas.reverse()
        backs.reverse()
        squash = self._output_hessian(outputs)

        def product(v: Array) -> Array:
            moves = split_layers(v, self.shapes)
            changes, velocity = [], None  # of z and of a along v
            for index, (weight, move) in enumerate(zip(weights, moves, strict=True)):
                change = units[index] @ move[:, :-1].T + move[:, -1]
                if velocity is not None:
                    change = change + velocity @ weight.T
                changes.append(change)
                if index < len(slopes):
                    velocity = change * slopes[index]
            rate = squash(changes[-1])  # d(delta) along v
            products = []
            for index in range(len(layers) - 1, -1, -1):
                total = rate.T @ units[index]
                if index:
                    total = total + deltas[index].T @ (changes[index - 1] * slopes[index - 1])
                products.append(np.hstack([total, rate.sum(axis=0)[:, None]]).ravel())
                if index:
                    back = rate @ weights[index] + deltas[index] @ moves[index][:, :-1]
                    rate = back * slopes[index - 1]
                    bend = bends[index - 1]
                    if bend is not None:
                        rate += backs[index - 1] * bend * changes[index - 1]
            return np.concatenate(products[::-1])

        return product

    def hessian(self, theta: Array, batch: Array | None = None) -> Array:
        product = self.hvp_at(theta, batch)
        matrix = np.stack([product(unit) for unit in np.eye(self.dim)])
        return (matrix + matrix.T) / 2

    def jacobian(self, theta: Array, batch: Array | None = None) -> Array:
        """df/dtheta, of shape (batch, n_outputs, dim)."""
        inputs, _ = batch_rows(self.inputs, self.targets, batch)
        layers = split_layers(theta, self.shapes)
        forward = self._forward(layers, inputs)
        n = len(inputs)
        delta = np.broadcast_to(np.eye(self.n_outputs), (n, self.n_outputs, self.n_outputs))
        blocks = []
        for index in range(len(layers) - 1, -1, -1):
            padded = np.hstack([forward.units[index], np.ones((n, 1))])  # (n, in + 1)
            block = np.einsum("nko,ni->nkoi", delta, padded)  # (n, k, out, in + 1)
            blocks.append(block.reshape(n, self.n_outputs, -1))
            if index:
                delta = (delta @ layers[index][:, :-1]) * forward.slopes[index - 1][:, None, :]
        return np.concatenate(blocks[::-1], axis=2)

    def initial(self, seed: Any = 0, scheme: str = "lecun", scale: float = 1.0) -> Array:
        """Random weights; shape (dim,).

        Drawn layer by layer from ``numpy.random.default_rng(seed)``, each matrix of shape (out, in).

        Parameters
        ----------
        seed : int or Generator
        scheme : str
            "lecun": N(0, 1/in), biases 0 (LeCun et al. 1998). "he": N(0, 2/in), biases 0 (He et al.
            2015). "pytorch": weights, then biases of each layer uniform on (-1, 1)/sqrt(in), as
            ``torch.nn.Linear`` does.
        scale : float
            Of all parameters, positive.
        """
        generator = seeded(seed)
        choice("scheme", scheme, INITIALISATIONS)
        scale = real_number("scale", scale, Interval(0, np.inf))
        parts = []
        for out, inner in self.shapes:
            bias = np.zeros((out, 1))
            if scheme == "pytorch":
                weights = generator.uniform(-1, 1, (out, inner - 1)) / np.sqrt(inner - 1)
                bias = generator.uniform(-1, 1, (out, 1)) / np.sqrt(inner - 1)
            else:
                gain = 2 if scheme == "he" else 1
                weights = generator.standard_normal((out, inner - 1)) / np.sqrt((inner - 1) / gain)
            parts.append(scale * np.hstack([weights, bias]).ravel())
        return np.concatenate(parts)

    def _forward(self, layers: list[Array], inputs: Array) -> _Pass:
        units, slopes, bends = [inputs], [], []
        for layer in layers[:-1]:
            unit, slope, bend = self._activation.at(units[-1] @ layer[:, :-1].T + layer[:, -1])
            units.append(unit)
            slopes.append(slope)
            bends.append(bend)
        return _Pass(units, slopes, bends, units[-1] @ layers[-1][:, :-1].T + layers[-1][:, -1])

    def _pull(self, outputs: Array, targets: Array) -> Array:
        """dL/df, (n, k)."""
        if self.criterion == "square":
            return (outputs - targets) / len(outputs)
        return (_softmax(outputs) * targets.sum(axis=1, keepdims=True) - targets) / len(outputs)

    def _output_hessian(self, outputs: Array) -> Callable[[Array], Array]:
        """The derivative of dL/df along a change of f."""
        n = len(outputs)
        if self.criterion == "square":
            return lambda change: change / n
        p = _softmax(outputs)
        return lambda change: p * (change - np.sum(p * change, axis=1, keepdims=True)) / n


def _softmax(outputs: Array) -> Array:
    powers = np.exp(outputs - outputs.real.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _check_distributions(targets: Array) -> None:
    if targets.shape[1] < 2:
        raise ValueError(
            "targets must have one column per class for the cross-entropy (one-hot rows), got "
            f"shape {targets.shape}"
        )
    sums = targets.sum(axis=1)
    if (targets < 0).any() or np.abs(sums - 1).max() > 1e-9:
        worst = int(np.abs(sums - 1).argmax())
        raise ValueError(
            "targets must be distributions over the classes for the cross-entropy: row "
            f"{worst} sums to {sums[worst]!s}, or an entry is negative"
        )
