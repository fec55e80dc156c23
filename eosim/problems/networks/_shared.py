"""Checks and slices that the networks share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from eosim._checks import (
    Array,
    Interval,
    float_array,
    inexact,
    real_number,
)


def slopes_at(pre: Array, slopes: tuple[float, float]) -> Array:
    """The slope of sigma at every pre-activation; (1, 1) if there is only one."""
    above, below = slopes
    if above == below:
        return np.full((1, 1), above)
    return np.where(pre.real > 0, above, below)


def batch_rows(inputs: Array, targets: Array, batch: Array | None) -> tuple[Array, Array]:
    return (inputs, targets) if batch is None else (inputs[batch], targets[batch])


def checked_points(inputs: Any, training: Array) -> Array:
    """Inputs to evaluate at: as wide as the training inputs."""
    if inputs is None:
        return training
    return float_array("inputs", inputs, shape=(None, training.shape[1]))


def checked_data(
    inputs: Any, targets: Any, *, several_outputs: bool = False
) -> tuple[Array, Array]:
    """Checked inputs (n, d) and targets (n, k), where k is 1 unless there may be several outputs."""
    inputs = float_array("inputs", inputs, shape=(None, None))
    targets = float_array("targets", targets)
    columns = targets.ndim == 2 and (several_outputs or targets.shape[1] == 1)
    if not (targets.ndim == 1 or columns) or 0 in targets.shape or 0 in inputs.shape:
        raise ValueError(
            f"inputs must have shape (n, d) and targets (n,) or (n, {'k' if several_outputs else 1})"
            f", not empty; got {inputs.shape} and {targets.shape}"
        )
    if len(targets) != len(inputs):
        raise ValueError(
            f"inputs and targets must have one row per sample; got shapes {inputs.shape} and "
            f"{targets.shape}"
        )
    return inputs, targets.reshape(len(targets), -1)


def checked_slopes(slopes: Any) -> tuple[float, float]:
    checked = float_array("slopes", slopes, shape=(2,))
    if not checked.any():
        raise ValueError("slopes must not both be 0: the net would be 0")
    return float(checked[0]), float(checked[1])


def checked_prefactor(prefactor: Any, default: float) -> float:
    if prefactor is None:
        return default
    return real_number("prefactor", prefactor, Interval(0, np.inf))


def split_layers(theta: Array, shapes: Sequence[tuple[int, int]]) -> list[Array]:
    """The weight matrices that theta holds one after the other, row by row."""
    theta, layers, start = inexact(theta), [], 0
    for out, inner in shapes:
        layers.append(theta[start : start + out * inner].reshape(out, inner))
        start += out * inner
    return layers


def matrices(shapes: Sequence[tuple[int, int]], dtype: Any) -> list[Array]:
    """Matrices to be filled, in one piece of memory.

    An allocator keeps one large piece for the next call where it gives many smaller ones back to the
    system, which then hands them out again page by page: that costs as much as the arithmetic.
    """
    sizes = [math.prod(shape) for shape in shapes]
    memory, start, result = np.empty(sum(sizes), dtype), 0, []
    for shape, size in zip(shapes, sizes, strict=True):
        result.append(memory[start : start + size].reshape(shape))
        start += size
    return result
