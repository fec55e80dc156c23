"""Activations with their first two derivatives, on real and, where analytic, complex arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from eosim._checks import Array


class Activation(NamedTuple):
    """An elementwise function f.

    ``apply(z, unit, bend)`` writes f(z) into ``unit``, f''(z) into ``bend`` unless that is None, and
    f'(z) over z. ``curved`` says whether there is an f'' that is not 0.
    """

    apply: Callable[[Array, Array, Array | None], None]
    analytic: bool
    curved: bool


def _tanh(z: Array, unit: Array, bend: Array | None) -> None:
    np.tanh(z, out=unit)
    np.multiply(unit, unit, out=z)
    np.subtract(1, z, out=z)
    if bend is not None:
        np.multiply(unit, z, out=bend)
        bend *= -2


def _relu(z: Array, unit: Array, bend: Array | None) -> None:
    slope = z > 0
    np.multiply(z, slope, out=unit)
    z[:] = slope


def _gelu(z: Array, unit: Array, bend: Array | None) -> None:
    """z Phi(z), Phi the normal distribution function: the exact form, not the tanh approximation."""
    from scipy.special import erf

    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    below = (1 + erf(z / math.sqrt(2))) / 2
    np.multiply(z, below, out=unit)
    if bend is not None:
        np.multiply(2 - z * z, density, out=bend)
    np.add(below, z * density, out=z)


def _identity(z: Array, unit: Array, bend: Array | None) -> None:
    unit[:] = z
    z[:] = 1


ACTIVATIONS = {
    "tanh": Activation(_tanh, analytic=True, curved=True),
    "relu": Activation(_relu, analytic=False, curved=False),
    "gelu": Activation(_gelu, analytic=True, curved=True),
    "identity": Activation(_identity, analytic=True, curved=False),
}
