"""SGD on linear models: the kernels that figures share, and the looks of the theories."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import hadamard

import eosim
from eosim.stability import TangentKernel
from figures import _style

# Theories of one quantity, from exact to crude: the darkest line is the exact one.
LOOKS: dict[str, dict[str, Any]] = {
    "exact": {"color": _style.INK, "lw": 1.5, "ls": "-"},
    "closure": {"color": _style.ORANGE, "lw": 1.6, "ls": (0, (6, 1.8))},
    "finite": {"color": _style.GREEN, "lw": 1.6, "ls": (0, (5, 1.5, 1, 1.5))},
    "delocalised": {"color": _style.VERMILLION, "lw": 1.6, "ls": (0, (2.2, 1.3))},
    "trace": {"color": _style.PURPLE, "lw": 1.6, "ls": (0, (1, 1.1))},
    "homogenised": {"color": _style.PURPLE, "lw": 1.6, "ls": (0, (1, 1.1))},  # its edge: the trace
}
SGD = _style.BLUE


def ramp(n: int) -> np.ndarray:
    """The spectrum 2a/n, a = n, ..., 1: largest eigenvalue 2, trace n + 1."""
    return 2 * np.arange(n, 0, -1) / n


def flat_kernel(n: int) -> TangentKernel:
    """Ramp spectrum; every eigenvector has entries of one size (Sylvester's matrix, n = 2^k)."""
    return TangentKernel(ramp(n), hadamard(n) / np.sqrt(n), n)


def cosine_kernel(n: int) -> TangentKernel:
    """Ramp spectrum; eigenvectors are cosines, neither flat nor localised, the sharpest fastest."""
    rows, columns = np.arange(n)[:, None], np.arange(n)[::-1]
    vectors = np.sqrt(2 / n) * np.cos(np.pi * (2 * rows + 1) * columns / (2 * n))
    vectors[:, -1] = 1 / np.sqrt(n)
    return TangentKernel(ramp(n), vectors, n)


def gaussian_kernel(n: int, dim: int, seed: Any) -> TangentKernel:
    """Of a Jacobian with independent standard normal entries."""
    return TangentKernel.from_jacobian(np.random.default_rng(seed).standard_normal((n, dim)))


def problem(kernel: TangentKernel) -> eosim.LinearRegression:
    """A linear model with this NTK; what its residuals start from is given apart."""
    return eosim.LinearRegression(kernel.rows, np.zeros(kernel.n_samples))
