"""The fully connected network, on square loss or cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from eosim._checks import (
    PRODUCTS,
    SAMPLES,
    Array,
    Interval,
    choice,
    dense_fits,
    integer,
    real_number,
    seeded,
)
from eosim.problems.networks._activations import ACTIVATIONS, Activation
from eosim.problems.networks._shared import (
    batch_rows,
    checked_data,
    checked_points,
    matrices,
    split_layers,
)

CRITERIA = ("square", "cross_entropy")
INITIALISATIONS = ("lecun", "he", "pytorch")


@dataclass(eq=False)
class _Pass:
    """The network at one theta and batch: what loss, gradient and products there have in common.

    One column per sample: [a; 1] and a alone are both contiguous then. Once another call may see it,
    no array is written to again: any number of threads may read.
    """

    targets: Array  # y, (k, n)
    units: list[Array]  # [a_0; 1] .. [a_{m-1}; 1], (width + 1, n): a product with W adds the bias
    slopes: list[Array]  # sigma' of the hidden layers, (width, n)
    outputs: Array  # f, (k, n)
    # For products, dL/da sigma'' of the hidden layers, (width, n), and until the backward pass sigma''
    # alone; none if it is 0
    curvatures: list[Array] | None
    deltas: list[Array] | None = None  # dL/dz of all layers, (width, n), once asked for


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

    What loss, gradient and Hessian-vector products have in common at one theta is kept until another
    is asked for: up to 32 bytes per sample and hidden unit.

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
        if inputs is None:
            return self._pass(theta, None).outputs.T.copy()
        layers = split_layers(theta, self.shapes)
        return self._forward(layers, _columns(checked_points(inputs, self.inputs)))[2].T.copy()

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
        here = self._pass(theta, batch)
        return (here.outputs - here.targets).T

    def loss(self, theta: Array, batch: Array | None = None) -> Any:
        here = self._pass(theta, batch)
        n = here.outputs.shape[1]
        if self.criterion == "square":
            residuals = here.outputs - here.targets
            return np.sum(residuals * residuals) / (2 * n)  # bilinear: no conjugation
        shifted = here.outputs - here.outputs.real.max(axis=0)
        totals = np.log(np.exp(shifted).sum(axis=0))
        return (totals.sum() - np.sum(here.targets * shifted)) / n

    def gradient(self, theta: Array, batch: Array | None = None) -> Array:
        here = self._pass(theta, batch)
        if here.deltas is None:
            here.deltas = self._backward(split_layers(theta, self.shapes), here)
        gradient = np.empty(self.dim, here.outputs.dtype)
        parts = split_layers(gradient, self.shapes)
        for part, delta, unit in zip(parts, here.deltas, here.units, strict=True):
            np.matmul(delta, unit.T, out=part)
        return gradient

    def hvp(self, theta: Array, v: Array, batch: Array | None = None) -> Array:
        """H v."""
        return self.hvp_at(theta, batch)(v)

    def hvp_at(self, theta: Array, batch: Array | None = None) -> Callable[[Array], Array]:
        """v -> H v at one theta: the passes that do not depend on v are made once.

        Differentiates the gradient's two passes along v (Pearlmutter 1994).
        """
        here = self._pass(theta, batch, products=True)
        units, slopes, deltas, curvatures = here.units, here.slopes, here.deltas, here.curvatures
        assert deltas is not None
        assert curvatures is not None
        weights = [layer[:, :-1].copy() for layer in split_layers(theta, self.shapes)]
        squash = self._output_hessian(here.outputs)

        def product(v: Array) -> Array:
            moves = split_layers(v, self.shapes)
            dtype = np.result_type(here.outputs, *moves)
            shapes = [delta.shape for delta in deltas]
            last, spare, other, *arrays = matrices(
                [shapes[-1], max(shapes), max(shapes), *shapes[:-1], *shapes[:-1]], dtype
            )
            velocities = arrays[: len(slopes)]  # of a along v
            changes = [*arrays[len(slopes) :], last]  # of z along v
            for index, change in enumerate(changes):
                np.matmul(moves[index], units[index], out=change)
                if index:
                    more = spare[: len(change)]
                    change += np.matmul(weights[index], velocities[index - 1], out=more)
                if index < len(slopes):
                    np.multiply(change, slopes[index], out=velocities[index])
            rate = squash(last)  # d(delta) along v
            result = np.empty(self.dim, dtype)
            parts = split_layers(result, self.shapes)
            for index in range(len(changes) - 1, -1, -1):
                np.matmul(rate, units[index].T, out=parts[index])
                if index:
                    below = changes[index - 1]
                    back, more = spare[: len(below)], other[: len(below)]
                    parts[index][:, :-1] += deltas[index] @ velocities[index - 1].T
                    np.matmul(weights[index].T, rate, out=back)
                    back += np.matmul(moves[index][:, :-1].T, deltas[index], out=more)
                    back *= slopes[index - 1]
                    if curvatures:
                        below *= curvatures[index - 1]
                        below += back
                    else:
                        below[:] = back
                    rate = below
            return result

        return product

    def hessian(self, theta: Array, batch: Array | None = None) -> Array:
        dense_fits("the Hessian", (self.dim, self.dim), PRODUCTS)
        product = self.hvp_at(theta, batch)
        matrix = np.stack([product(unit) for unit in np.eye(self.dim)])
        return (matrix + matrix.T) / 2

    def jacobian(self, theta: Array, batch: Array | None = None) -> Array:
        """df/dtheta, of shape (batch, n_outputs, dim)."""
        rows = self.n_samples if batch is None else len(batch)
        dense_fits("the Jacobian", (rows, self.n_outputs, self.dim), SAMPLES)
        here, layers = self._pass(theta, batch), split_layers(theta, self.shapes)
        k, n = here.outputs.shape
        delta = np.broadcast_to(np.eye(k), (n, k, k))
        blocks = []
        for index in range(len(layers) - 1, -1, -1):
            block = np.einsum("nko,in->nkoi", delta, here.units[index])  # (n, k, out, in + 1)
            blocks.append(block.reshape(n, k, -1))
            if index:
                delta = (delta @ layers[index][:, :-1]) * here.slopes[index - 1].T[:, None, :]
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

    @cached_property
    def _all_columns(self) -> Array:
        return _columns(self.inputs)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is large and soon made again."""
        kept = self.__dict__.keys() - {"_last", "_all_columns"}
        return {name: self.__dict__[name] for name in sorted(kept)}

    def _pass(self, theta: Array, batch: Array | None, *, products: bool = False) -> _Pass:
        """The passes at theta, those of the last call if it was made there.

        A run that records loss and sharpness asks for loss, products and gradient at every point. The
        memory is one attribute, read and replaced whole: threads that disturb each other make a pass
        twice, and never see another's.
        """
        theta, rows = np.asarray(theta), None
        if batch is not None:
            rows = np.arange(self.n_samples)[batch].tobytes()
        key = (theta.dtype, theta.tobytes(), rows)
        last_key, last = self.__dict__.get("_last", (None, None))
        if last_key == key and (last.curvatures is not None or not products):
            return last
        del last
        self.__dict__.pop("_last", None)  # its memory is in the caches, and is taken next
        layers = split_layers(theta, self.shapes)
        inputs, targets = batch_rows(self.inputs, self.targets, batch)
        columns = self._all_columns if batch is None else _columns(inputs)
        here = _Pass(targets.T, *self._forward(layers, columns, bends=products))
        if products:
            here.deltas = self._backward(layers, here)
        self.__dict__["_last"] = key, here
        return here

    def _forward(
        self, layers: list[Array], columns: Array, *, bends: bool = False
    ) -> tuple[list[Array], list[Array], Array, list[Array] | None]:
        """Units, slopes and outputs at columns [x; 1], and sigma'' of the hidden layers if asked for."""
        activation, n, m = self._activation, columns.shape[1], len(self.hidden)
        hidden = [(width, n) for width in self.hidden]
        padded = [(width + 1, n) for width in self.hidden]
        more = hidden if bends and activation.curved else []
        dtype = np.result_type(columns, *layers)
        outputs, *arrays = matrices([(self.n_outputs, n), *padded, *hidden, *more], dtype)
        units, slopes, bent = [columns, *arrays[:m]], arrays[m : 2 * m], arrays[2 * m :]
        for index, layer in enumerate(layers[:-1]):
            above = units[index + 1]
            np.matmul(layer, units[index], out=slopes[index])
            activation.apply(slopes[index], above[:-1], bent[index] if bent else None)
            above[-1] = 1
        np.matmul(layers[-1], units[-1], out=outputs)
        return units, slopes, outputs, bent if bends else None

    def _backward(self, layers: list[Array], here: _Pass) -> list[Array]:
        """dL/dz of all layers; sigma'' becomes dL/da sigma'', where it is there."""
        deltas = matrices([slope.shape for slope in here.slopes], here.outputs.dtype)
        deltas.append(self._pull(here))
        for index in range(len(layers) - 2, -1, -1):
            delta = deltas[index]
            np.matmul(layers[index + 1][:, :-1].T, deltas[index + 1], out=delta)  # dL/da
            if here.curvatures:
                here.curvatures[index] *= delta
            delta *= here.slopes[index]
        return deltas

    def _pull(self, here: _Pass) -> Array:
        """dL/df, (k, n)."""
        n = here.outputs.shape[1]
        if self.criterion == "square":
            return (here.outputs - here.targets) / n
        return (_softmax(here.outputs) * here.targets.sum(axis=0) - here.targets) / n

    def _output_hessian(self, outputs: Array) -> Callable[[Array], Array]:
        """The derivative of dL/df along a change of f."""
        n = outputs.shape[1]
        if self.criterion == "square":
            return lambda change: change / n
        p = _softmax(outputs)
        return lambda change: p * (change - np.sum(p * change, axis=0)) / n


def _columns(inputs: Array) -> Array:
    """[x; 1] for every row x: the last input is the bias's."""
    return np.vstack([inputs.T, np.ones(len(inputs))])


def _softmax(outputs: Array) -> Array:
    powers = np.exp(outputs - outputs.real.max(axis=0))
    return powers / powers.sum(axis=0)


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
