"""Activations with their first two derivatives, on real and, where analytic, complex arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from eosim._checks import Array


class Activation(NamedTuple):
    """``at(z)`` is (f, f', f'') at pre-activations z; f'' is None where it is 0."""

    at: Callable[[Array], tuple[Array, Array, Array | None]]
    analytic: bool


def _tanh(z: Array) -> tuple[Array, Array, Array | None]:
    unit = np.tanh(z)
    slope = 1 - unit * unit
    return unit, slope, -2 * unit * slope


def _relu(z: Array) -> tuple[Array, Array, Array | None]:
    slope = (z > 0).astype(float)
    return z * slope, slope, None


def _gelu(z: Array) -> tuple[Array, Array, Array | None]:
    """z Phi(z), Phi the normal distribution function: the exact form, not the tanh approximation."""
    from scipy.special import erf

    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    below = (1 + erf(z / math.sqrt(2))) / 2
    return z * below, below + z * density, (2 - z * z) * density


def _identity(z: Array) -> tuple[Array, Array, Array | None]:
    return z, np.ones_like(z), None


ACTIVATIONS = {
    "tanh": Activation(_tanh, True),
    "relu": Activation(_relu, False),
    "gelu": Activation(_gelu, True),
    "identity": Activation(_identity, True),
}
