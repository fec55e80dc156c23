"""A second moment that is stored as the means of its rows and columns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eosim._checks import Array, Interval, check_domains, integer, real_number
from eosim.optimizers.momentum import EMAMomentum

_POSITIVE = Interval(0, math.inf)
_BETA = {"domain": Interval(0, 1, lower_closed=True)}
_EPS = {"domain": Interval(0, math.inf, lower_closed=True)}


@dataclass(frozen=True)
class Adafactor:
    r"""Adafactor (Shazeer & Stern 2018): the second moment of a matrix from its row and column means.

    .. math:: R \leftarrow \beta_2 R + (1-\beta_2)\,\overline{g^2 + \epsilon}^{\,\mathrm{rows}}, \quad
              C \leftarrow \beta_2 C + (1-\beta_2)\,\overline{g^2 + \epsilon}^{\,\mathrm{columns}}, \quad
              P_{ij} = \sqrt{R_i C_j/\overline R}

    Vectors keep a full nu. :math:`\theta \leftarrow \theta - \eta\, m/P`, m as in `EMAMomentum`. This is
    the algorithm without its relative step sizes and update clipping: optax's
    ``scale_by_factored_rms`` with ``min_dim_size_to_factor=1`` (its decay exponent is 0.8), and the P
    of PyTorch's ``Adafactor``, whose eps is a floor instead. Where these libraries have a momentum
    they average g/P, which is another rule unless P is frozen.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    shapes : sequence of tuples of int
        Of the parameters in the order of theta: (rows, columns), or (length,).
    beta1, beta2 : float
        In [0, 1). Without momentum by default, as in the paper.
    decay_exponent : float, optional
        With it beta2 is :math:`1 - t^{-c}` at step t, c positive; the paper's c is 0.8.
    eps : float
        Added to the squares, at least 0; 1e-30 in the paper.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is outside its domain, or theta does not have the size of the shapes.
    """

    lr: Any = field(metadata={"domain": _POSITIVE})
    shapes: Any
    beta1: Any = field(default=0.0, metadata=_BETA)
    beta2: Any = field(default=0.999, metadata=_BETA)
    decay_exponent: float | None = None
    eps: Any = field(default=1e-30, metadata=_EPS)

    def __post_init__(self) -> None:
        check_domains(self)
        object.__setattr__(self, "shapes", _checked_shapes(self.shapes))
        if self.decay_exponent is not None:
            exponent = real_number("Adafactor: decay_exponent", self.decay_exponent, _POSITIVE)
            object.__setattr__(self, "decay_exponent", exponent)

    def init(self, theta: Any) -> tuple[Any, ...]:
        total = sum(math.prod(shape) for shape in self.shapes)
        if np.shape(theta) != (total,):
            raise ValueError(
                f"theta must have {total} entries, the total of Adafactor's shapes; its shape is "
                f"{np.shape(theta)}"
            )
        rows = sum(shape[0] for shape in self.shapes)
        columns = sum(shape[1] for shape in self.shapes if len(shape) == 2)
        return 0 * theta, np.zeros(rows), np.zeros(columns), 0

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        average, rows, columns, t = state
        t += 1
        beta2 = self.beta2 if self.decay_exponent is None else 1 - t**-self.decay_exponent
        average = self.beta1 * average + (1 - self.beta1) * gradient
        row_means, column_means = self._means(gradient**2 + self.eps)
        rows = beta2 * rows + (1 - beta2) * row_means
        columns = beta2 * columns + (1 - beta2) * column_means
        state = (average, rows, columns, t)
        return theta - self.lr * average / self.preconditioner(state), state

    def preconditioner(self, state: tuple[Any, ...]) -> Array:
        """P as above, of the shape of theta."""
        _, rows, columns, _ = state
        parts = []
        for shape in self.shapes:
            first, rows = rows[: shape[0]], rows[shape[0] :]
            if len(shape) == 1:
                parts.append(first)
                continue
            second, columns = columns[: shape[1]], columns[shape[1] :]
            parts.append(((first / first.mean())[:, None] * second).ravel())
        return np.sqrt(np.concatenate(parts))

    def linear(self) -> EMAMomentum:
        """`EMAMomentum`."""
        return EMAMomentum(self.lr, self.beta1)

    def buffers(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return (state[0],)

    def critical_sharpness(self) -> Any:
        r""":math:`2(1+\beta_1)/((1-\beta_1)\eta)`, of :math:`P^{-1}H`."""
        return self.linear().critical_sharpness()

    def _means(self, squares: Array) -> tuple[Array, Array]:
        """Of the rows and columns of every parameter, one parameter after the other."""
        rows, columns, start = [], [], 0
        for shape in self.shapes:
            block = squares[start : start + math.prod(shape)].reshape(shape)
            start += block.size
            rows.append(block if len(shape) == 1 else block.mean(axis=1))
            if len(shape) == 2:
                columns.append(block.mean(axis=0))
        return np.concatenate(rows), np.concatenate(columns) if columns else np.zeros(0)


def _checked_shapes(shapes: Any) -> tuple[tuple[int, ...], ...]:
    if not isinstance(shapes, Iterable) or not all(isinstance(s, (tuple, list)) for s in shapes):
        raise TypeError(
            "Adafactor: shapes must be a sequence of tuples, (rows, columns) or (length,); got "
            f"{shapes!r}"
        )
    checked = tuple(
        tuple(integer("Adafactor: shapes", length, minimum=1) for length in shape)
        for shape in shapes
    )
    if not checked or any(len(shape) not in (1, 2) for shape in checked):
        raise ValueError(
            f"Adafactor: shapes must be (rows, columns) or (length,), at least one; got {shapes!r}"
        )
    return checked
