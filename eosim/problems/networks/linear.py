r"""Linear networks: linear in the inputs, not in the parameters.

The outputs are :math:`\Theta(\theta)^\top x`, so the loss is that of `LinearRegression` at the
predictor :math:`\Theta(\theta)`, (d, k). Everything follows from :math:`\Theta`, its derivative
:math:`J_\Theta` and its curvature:

.. math:: \nabla L = J_\Theta^\top \nabla R, \qquad
          H = J_\Theta^\top \nabla^2 R\, J_\Theta + \nabla R \cdot \nabla^2 \Theta

with R the regression's loss, at :math:`\Theta`. All are polynomials in theta.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from eosim._checks import PRODUCTS, SAMPLES, Array, dense_fits, inexact, integer, seeded
from eosim.problems.networks._shared import checked_data, checked_points, split_layers
from eosim.problems.regression import LinearRegression


class _LinearModel:
    """What linear networks share: all that needs the predictor alone."""

    inputs: Any
    targets: Any
    regression: LinearRegression

    analytic = True

    @property
    def n_samples(self) -> int:
        return self.regression.n_samples

    @property
    def n_outputs(self) -> int:
        return self.regression.n_outputs

    def predictor(self, theta: Array) -> Array:
        raise NotImplementedError

    def outputs(self, theta: Array, inputs: Any = None) -> Array:
        """f at ``inputs`` (n, d), the training inputs if None; shape (n, n_outputs)."""
        return checked_points(inputs, self.inputs) @ self.predictor(theta)

    def residuals(self, theta: Array, batch: Array | None = None) -> Array:
        """e = f - y, of shape (batch, n_outputs)."""
        return self.regression.residuals(self.predictor(theta), batch)

    def loss(self, theta: Array, batch: Array | None = None) -> Any:
        return self.regression.loss(self.predictor(theta), batch)


@dataclass(frozen=True, eq=False)
class LinearNet(_LinearModel):
    r""":math:`L = \frac{1}{2n} \sum_i |W_m \cdots W_1 x_i - y_i|^2`, a net with units of slope 1.

    Parameters
    ----------
    inputs : (n, d) array-like
    targets : (n,) or (n, k) array-like
    widths : sequence of int
        Of the m - 1 hidden layers; () is linear regression.

    Notes
    -----
    theta holds :math:`W_1, \dots, W_m` one after the other, each of shape (out, in) row by row. With
    one output it is ``DeepHomogeneousNet(inputs, targets, widths, slopes=(1, 1), prefactor=1)``, the
    same theta; this class also takes several outputs, and has the predictor
    :math:`\Theta = (W_m \cdots W_1)^\top`. With inputs = I it is matrix factorisation.

    Raises
    ------
    TypeError, ValueError
        If the data are empty, not finite or of different lengths, or a width is no positive integer.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> net = eosim.LinearNet([[1.0, 2.0]], [1.0], widths=(1,))
    >>> net.predictor(np.array([3.0, 4.0, 5.0]))
    array([[15.],
           [20.]])
    """

    inputs: Any
    targets: Any
    widths: Sequence[int] = field(default=(32,))
    regression: LinearRegression = field(init=False, repr=False)

    def __post_init__(self) -> None:
        inputs, targets = checked_data(self.inputs, self.targets, several_outputs=True)
        if not isinstance(self.widths, Iterable) or isinstance(self.widths, str):
            raise TypeError(f"widths must be a sequence of integers, got {self.widths!r}")
        widths = tuple(integer("widths", width, minimum=1) for width in self.widths)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "widths", widths)
        object.__setattr__(self, "regression", LinearRegression(inputs, targets))

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """(out, in) of every layer."""
        sizes = [self.inputs.shape[1], *self.widths, self.n_outputs]
        return [(out, inner) for inner, out in pairwise(sizes)]

    @cached_property
    def dim(self) -> int:
        return sum(out * inner for out, inner in self.shapes)

    def initial(self, seed: Any = 0) -> Array:
        """Random weights N(0, 1/in) (LeCun 1998), layer by layer; shape (dim,).

        Each matrix (out, in) is drawn from ``numpy.random.default_rng(seed)``.
        """
        generator = seeded(seed)
        parts = [generator.standard_normal(shape) / np.sqrt(shape[1]) for shape in self.shapes]
        return np.concatenate([part.ravel() for part in parts])

    def predictor(self, theta: Array) -> Array:
        """Theta = (W_m ... W_1)^T, of shape (d, k)."""
        layers = split_layers(theta, self.shapes)
        above = layers[-1]
        for layer in reversed(layers[:-1]):
            above = above @ layer
        return above.T

    def predictor_jacobian(self, theta: Array) -> Array:
        r""":math:`J_\Theta = d\Theta/d\theta`, of shape (d, k, dim).

        With one output :math:`J_\Theta J_\Theta^\top = \sum_l |W_m \cdots W_{l+1}|^2 P_l^\top P_l`,
        :math:`P_l = W_{l-1} \cdots W_1`.
        """
        d = self.inputs.shape[1]
        dense_fits("the predictor's Jacobian", (d, self.n_outputs, self.dim), PRODUCTS)
        return self._slopes(theta, np.eye(d))

    def jacobian(self, theta: Array, batch: Array | None = None) -> Array:
        """df/dtheta, of shape (batch, n_outputs, dim)."""
        inputs = self.inputs if batch is None else self.inputs[batch]
        dense_fits("the Jacobian", (len(inputs), self.n_outputs, self.dim), SAMPLES)
        return self._slopes(theta, inputs)

    def gradient(self, theta: Array, batch: Array | None = None) -> Array:
        slope = self.regression.gradient(self.predictor(theta), batch)
        layers = split_layers(theta, self.shapes)
        below = slope.reshape(-1, self.n_outputs).T  # dR/dTheta^T times the layers below
        parts = []
        for above, layer in zip(self._above(layers), layers, strict=True):
            parts.append((above.T @ below).ravel())
            below = below @ layer.T
        return np.concatenate(parts)

    def hvp(self, theta: Array, v: Array, batch: Array | None = None) -> Array:
        """H v by differentiating the gradient's passes along v (Pearlmutter 1994)."""
        layers, moves = split_layers(theta, self.shapes), split_layers(v, self.shapes)
        aboves, rates = self._above(layers), self._above_rates(layers, moves)
        predictor = (aboves[0] @ layers[0]).T
        velocity = (rates[0] @ layers[0] + aboves[0] @ moves[0]).T  # d(predictor) along v
        shape = (-1, self.n_outputs)
        below = self.regression.gradient(predictor, batch).reshape(shape).T
        rate = self.regression.hvp(predictor, velocity, batch).reshape(shape).T  # d(below) along v
        parts = []
        for above, above_rate, layer, move in zip(aboves, rates, layers, moves, strict=True):
            parts.append((above_rate.T @ below + above.T @ rate).ravel())
            rate = rate @ layer.T + below @ move.T
            below = below @ layer.T
        return np.concatenate(parts)

    def hessian(self, theta: Array, batch: Array | None = None) -> Array:
        """(dim, dim) from dim products: for small nets only."""
        dense_fits("the Hessian", (self.dim, self.dim), PRODUCTS)
        matrix = np.stack([self.hvp(theta, unit, batch) for unit in np.eye(self.dim)])
        return (matrix + matrix.T) / 2

    def _above(self, layers: list[Array]) -> list[Array]:
        """W_m ... W_(l+1) for every layer l, the first layer first; (k, out of l)."""
        products = [np.eye(self.n_outputs)]
        for layer in reversed(layers[1:]):
            products.append(products[-1] @ layer)
        return products[::-1]

    def _above_rates(self, layers: list[Array], moves: list[Array]) -> list[Array]:
        """The derivatives of `_above` along the moves."""
        product = np.eye(self.n_outputs)
        rates = [np.zeros_like(product)]
        for layer, move in zip(reversed(layers[1:]), reversed(moves[1:]), strict=True):
            rates.append(rates[-1] @ layer + product @ move)
            product = product @ layer
        return rates[::-1]

    def _slopes(self, theta: Array, inputs: Array) -> Array:
        """The derivative of the outputs at ``inputs`` (n, d), of shape (n, k, dim)."""
        layers = split_layers(theta, self.shapes)
        units, blocks = inputs, []
        for above, layer in zip(self._above(layers), layers, strict=True):
            block = np.einsum("ao,ni->naoi", above, units)  # (n, k, out, in)
            blocks.append(block.reshape(len(inputs), self.n_outputs, -1))
            units = units @ layer.T
        return np.concatenate(blocks, axis=2)


@dataclass(frozen=True, eq=False)
class DiagonalNet(_LinearModel):
    r""":math:`L = \frac{1}{2n} \sum_i (\langle a \circ b, x_i \rangle - y_i)^2`, a two-layer diagonal net.

    Parameters
    ----------
    inputs : (n, d) array-like
    targets : (n,) or (n, 1) array-like

    Notes
    -----
    theta holds a, then b: ``dim = 2 d``. The predictor is the entrywise product, and
    :math:`J_\Theta J_\Theta^\top = \mathrm{diag}(a^2 + b^2)`.

    Raises
    ------
    TypeError, ValueError
        If the data are empty, not finite or of different lengths.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> net = eosim.DiagonalNet([[1.0, 2.0]], [1.0])
    >>> net.predictor(np.array([3.0, 4.0, 5.0, 6.0]))
    array([[15.],
           [24.]])
    """

    inputs: Any
    targets: Any
    regression: LinearRegression = field(init=False, repr=False)

    def __post_init__(self) -> None:
        inputs, targets = checked_data(self.inputs, self.targets)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "regression", LinearRegression(inputs, targets))

    @property
    def dim(self) -> int:
        return 2 * int(self.inputs.shape[1])

    def initial(self, seed: Any = 0) -> Array:
        """a and b standard normal, a first, from ``numpy.random.default_rng(seed)``; (dim,)."""
        return seeded(seed).standard_normal(self.dim)

    def predictor(self, theta: Array) -> Array:
        """a b entrywise, of shape (d, 1)."""
        a, b = _halves(theta)
        return (a * b)[:, None]

    def predictor_jacobian(self, theta: Array) -> Array:
        """(diag b, diag a), of shape (d, 1, dim)."""
        dense_fits("the predictor's Jacobian", (self.dim // 2, 1, self.dim), PRODUCTS)
        a, b = _halves(theta)
        return np.hstack([np.diag(b), np.diag(a)])[:, None, :]

    def jacobian(self, theta: Array, batch: Array | None = None) -> Array:
        """df/dtheta, of shape (batch, 1, dim)."""
        rows = self.inputs if batch is None else self.inputs[batch]
        a, b = _halves(theta)
        return np.hstack([rows * b, rows * a])[:, None, :]

    def gradient(self, theta: Array, batch: Array | None = None) -> Array:
        slope = self.regression.gradient(self.predictor(theta), batch)
        return self._pull(theta, slope)

    def hvp(self, theta: Array, v: Array, batch: Array | None = None) -> Array:
        predictor = self.predictor(theta)
        (a, b), (on_a, on_b) = _halves(theta), _halves(v)
        slope = self.regression.gradient(predictor, batch)
        rate = self.regression.hvp(predictor, on_a * b + a * on_b, batch)
        return self._pull(theta, rate) + self._pull(v, slope)

    def hessian(self, theta: Array, batch: Array | None = None) -> Array:
        """(dim, dim)."""
        dense_fits("the Hessian", (self.dim, self.dim), PRODUCTS)
        predictor = self.predictor(theta)
        slope = self.regression.gradient(predictor, batch)
        factor = self.predictor_jacobian(theta)[:, 0]  # (d, dim)
        matrix = factor.T @ self.regression.hessian(predictor, batch) @ factor
        mixed = np.kron([[0, 1], [1, 0]], np.diag(slope))
        return (matrix + matrix.T) / 2 + mixed

    def third_derivative(self, theta: Array, a: Array, b: Array) -> Array:
        predictor = self.predictor(theta)

        def bend(first: Array, second: Array) -> Array:
            """H_R times the second-order part of the product of first and second."""
            (p, q), (r, s) = _halves(first), _halves(second)
            return self.regression.hvp(predictor, p * s + q * r)

        total = self._pull(a, bend(theta, b)) + self._pull(b, bend(theta, a))
        return total + self._pull(theta, bend(a, b))

    @staticmethod
    def _pull(theta: Array, weights: Array) -> Array:
        """J_Theta^T weights, linear in theta too."""
        a, b = _halves(theta)
        return np.concatenate([b * weights, a * weights])


def _halves(theta: Array) -> tuple[Array, Array]:
    """a and b."""
    theta = inexact(theta)
    return theta[: len(theta) // 2], theta[len(theta) // 2 :]
