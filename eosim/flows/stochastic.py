"""Continuous companions of SGD: the matching Ornstein-Uhlenbeck process, and the shuffled epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from eosim._checks import (
    PRODUCTS,
    Array,
    Interval,
    dense_fits,
    float_array,
    integer,
    real_number,
    seeded,
    state_vector,
    symmetric_matrix,
)
from eosim.flows._overflow import exponential_sum, from_logs, sum_modes
from eosim.problems.base import FiniteSum, directional_derivative


@dataclass(frozen=True, eq=False)
class OrnsteinUhlenbeck:
    r"""The process that has SGD's mean and covariance on a quadratic exactly at every step.

    SGD on the quadratic with Hessian H, :math:`x' = (I - hH)x - h\xi` with noise covariance S per
    step, has the covariance recursion :math:`C' = (I-hH) C (I-hH) + h^2 S`. The process

    .. math:: dX = \tfrac1h \log(I - hH)\, X\, dt + D^{1/2} dW, \qquad
              D_{ij} = h S_{ij} \frac{\log q_{ij}}{q_{ij} - 1}, \quad q_{ij} = (1-z_i)(1-z_j)

    (entries in the eigenbasis of H) satisfies it at every t = kh. Its drift is the principal flow's.
    D need not be positive semi-definite: for noise of low rank across directions of different
    curvature it is not, and then no such diffusion exists, although the covariance formula holds.

    Parameters
    ----------
    hessian : (dim, dim) symmetric array
        Every h lambda < 1.
    lr : float
        h, positive.
    noise_covariance : (dim, dim) symmetric array
        S, covariance of the gradient noise of one step.

    Raises
    ------
    TypeError, ValueError
        If a matrix is not symmetric, shapes differ, or some h lambda is 1 or more.
    """

    hessian: Any
    lr: float
    noise_covariance: Any

    def __post_init__(self) -> None:
        lr = real_number("OrnsteinUhlenbeck: lr", self.lr, Interval(0, math.inf))
        hessian = symmetric_matrix("hessian", self.hessian)
        noise = symmetric_matrix("noise_covariance", self.noise_covariance)
        if noise.shape != hessian.shape:
            raise ValueError(
                f"noise_covariance must have the shape of hessian, {hessian.shape}; got {noise.shape}"
            )
        top = lr * np.linalg.eigvalsh(hessian)[-1]
        if top >= 1:
            raise ValueError(
                f"OrnsteinUhlenbeck needs every h * lambda < 1 (a real drift), got {top:.4g}"
            )
        object.__setattr__(self, "lr", lr)
        object.__setattr__(self, "hessian", hessian)
        object.__setattr__(self, "noise_covariance", noise)

    @cached_property
    def _eigen(self) -> tuple[Array, Array]:
        """log(1 - z) (dim,) and eigenvectors (dim, dim)."""
        values, vectors = np.linalg.eigh(self.hessian)
        return np.log1p(-self.lr * values), vectors

    @cached_property
    def drift(self) -> Array:
        """log(I - hH) / h, shape (dim, dim)."""
        logs, vectors = self._eigen
        return (vectors * (logs / self.lr)) @ vectors.T

    @cached_property
    def diffusion(self) -> Array:
        """D, shape (dim, dim)."""
        _, vectors = self._eigen
        return vectors @ self._diffusion_in_eigenbasis @ vectors.T

    @cached_property
    def _diffusion_in_eigenbasis(self) -> Array:
        logs, vectors = self._eigen
        noise = vectors.T @ self.noise_covariance @ vectors
        return self.lr * noise / _mean_exponential(logs[:, None] + logs)

    def mean(self, start: Any, times: Any) -> Array:
        """E[X(t)], shape (n_times, dim); infinite where it is beyond the largest float, and only there."""
        logs, vectors = self._eigen
        weights = vectors.T @ state_vector("start", start, len(logs))
        times = _times(times)
        with np.errstate(over="ignore"):
            grown = np.multiply.outer(times / self.lr, logs)
        return exponential_sum(vectors, grown, weights)

    def covariance(self, times: Any, initial: Any = None) -> Array:
        """Cov X(t) from ``initial`` (0 if None) at t = 0; shape (n_times, dim, dim).

        Entries beyond the largest float are infinite, with their sign, and leave the others finite.
        """
        logs, vectors = self._eigen
        start = np.zeros_like(self.hessian) if initial is None else initial
        start = symmetric_matrix("initial", start)
        if start.shape != self.hessian.shape:
            raise ValueError(
                f"initial must have the shape of hessian, {self.hessian.shape}; got {start.shape}"
            )
        start = vectors.T @ start @ vectors
        exponents = logs[:, None] + logs  # log q per step
        result = []
        for steps in _times(times) / self.lr:
            with np.errstate(over="ignore", invalid="ignore"):
                grown = np.exp(steps * exponents) * start
                # the integral of e^{s log q} over [0, t], times D
                added = (
                    steps
                    * self.lr
                    * _mean_exponential(steps * exponents)
                    * self._diffusion_in_eigenbasis
                )
                covariance = vectors @ (grown + added) @ vectors.T
            if not np.isfinite(covariance).all():
                covariance = self._covariance_by_logarithms(steps, start)
            result.append(covariance)
        return np.array(result)

    def _covariance_by_logarithms(self, steps: float, start: Array) -> Array:
        """After so many steps from ``start``, in the eigenbasis; entries may be infinite."""
        logs, vectors = self._eigen
        with np.errstate(over="ignore"):
            x = np.clip(steps * (logs[:, None] + logs), -1e300, 1e300)
        # Pairs that grow have e^x in front: (e^x - 1) / x = e^x (1 - e^-x) / x.
        front = np.maximum(x, 0.0)
        added = steps * self.lr * _mean_exponential(-np.abs(x)) * self._diffusion_in_eigenbasis
        weights = np.exp(np.minimum(x, 0.0)) * start + added
        sizes = np.abs(weights)
        front = front + np.log(np.where(sizes == 0, 1.0, sizes))
        left, scales = sum_modes(vectors, np.sign(weights), front)
        return from_logs(*(part.T for part in sum_modes(vectors, left.T, scales.T)))

    def sample(self, start: Any, times: Any, n_paths: int, seed: Any) -> Array:
        """Paths with the exact transition law; shape (n_paths, n_times, dim).

        Raises
        ------
        ValueError
            If D is not positive semi-definite: no such process exists. If the process is beyond the
            largest float between two times.
        """
        lowest = np.linalg.eigvalsh(self.diffusion)[0]
        if lowest < -1e-10 * np.abs(self.diffusion).max():
            raise ValueError(
                f"the diffusion matrix has the negative eigenvalue {lowest:.3g}: no real process has "
                "this covariance at all times (noise of low rank across unequal curvatures)"
            )
        times = _times(times)
        if (np.diff(times) < 0).any():
            raise ValueError("times must not decrease: a path is sampled forwards")
        n_paths = integer("n_paths", n_paths, minimum=1)
        generator = seeded(seed)
        dim = len(self.hessian)
        state = np.broadcast_to(state_vector("start", start, dim), (n_paths, dim))
        paths, elapsed = np.empty((n_paths, len(times), dim)), 0.0
        logs, vectors = self._eigen
        for index, time in enumerate(times):
            gap = time - elapsed
            with np.errstate(over="ignore", invalid="ignore"):
                decay = (vectors * np.exp(gap / self.lr * logs)) @ vectors.T
            spread = self.covariance([gap])[0]
            if not (np.isfinite(decay).all() and np.isfinite(spread).all()):
                raise ValueError(
                    f"times must end before the process is beyond the largest float, got {time:g}"
                )
            values, modes = np.linalg.eigh(spread)
            root = modes * np.sqrt(np.maximum(values, 0))
            state = state @ decay + generator.standard_normal((n_paths, dim)) @ root.T
            paths[:, index], elapsed = state, time
        return paths


def _times(times: Any) -> Array:
    times = float_array("times", times, shape=(None,))
    if (times < 0).any():
        raise ValueError(f"times must be 0 or later, got {times.min():g}")
    return times


def _mean_exponential(x: Array) -> Array:
    """(e^x - 1) / x, the mean of e^s over [0, x]; 1 at x = 0."""
    return np.where(x == 0, 1.0, np.expm1(x) / np.where(x == 0, 1.0, x))


@dataclass(frozen=True, eq=False)
class ShuffledEpochLoss:
    r"""The loss whose gradient flow SGD's mean iterate follows over shuffled epochs.

    .. math:: \tilde L = L + \frac{h}{4m} \sum_{k=1}^{m} |\nabla L_k|^2

    for epochs of m batches in random order, after time mh, with error :math:`O(h^3)` (Smith, Dherin,
    Barrett & De 2021, arXiv 2101.12176). A problem: pass it to `GradientFlow`.

    Parameters
    ----------
    problem : FiniteSum
    lr : float
        h, positive.
    batches : sequence of index arrays
        The m batches of an epoch, of equal size.

    Raises
    ------
    TypeError, ValueError
        If lr is not positive, or the batches are empty, of unequal size or out of range.
    """

    problem: FiniteSum
    lr: float
    batches: Sequence[Any]

    def __post_init__(self) -> None:
        lr = real_number("ShuffledEpochLoss: lr", self.lr, Interval(0, math.inf))
        if not hasattr(self.problem, "n_samples"):
            raise TypeError(
                "ShuffledEpochLoss needs a problem that is a mean over samples; "
                f"{type(self.problem).__name__} has no n_samples"
            )
        if not isinstance(self.batches, Iterable) or isinstance(self.batches, str):
            raise TypeError(f"batches must be index arrays, got {self.batches!r}")
        batches = [np.array(batch) for batch in self.batches]
        for batch in batches:
            if batch.size and batch.dtype.kind not in "iu":
                raise TypeError(f"batches must hold integers, got {batch}")
        batches = [batch.astype(np.int64) for batch in batches]
        if len({batch.shape for batch in batches}) != 1 or batches[0].ndim != 1:
            raise ValueError(
                "batches must be index arrays of one size, got shapes "
                f"{[batch.shape for batch in batches]}"
            )
        n = self.problem.n_samples
        for batch in batches:
            if len(batch) == 0 or batch.min() < 0 or batch.max() >= n:
                raise ValueError(
                    f"batches must hold indices from 0 to {n - 1} and not be empty, got {batch}"
                )
        object.__setattr__(self, "lr", lr)
        object.__setattr__(self, "batches", batches)

    @property
    def dim(self) -> int:
        return self.problem.dim

    @property
    def analytic(self) -> bool:
        return self.problem.analytic

    def loss(self, theta: Array) -> Any:
        total: Any = 0.0
        for batch in self.batches:
            g = self.problem.gradient(theta, batch)
            total = total + self.problem.loss(theta, batch) + self.lr / 4 * (g @ g)
        return total / len(self.batches)

    def gradient(self, theta: Array) -> Array:
        total = 0 * theta
        for batch in self.batches:
            g = self.problem.gradient(theta, batch)
            total = total + g + self.lr / 2 * self.problem.hvp(theta, g, batch)
        return total / len(self.batches)

    def hvp(self, theta: Array, v: Array) -> Array:
        return directional_derivative(self.gradient, theta, v, self.analytic)

    def hessian(self, theta: Array) -> Array:
        dense_fits("the Hessian", (self.dim, self.dim), PRODUCTS)
        matrix = np.stack([self.hvp(theta, unit) for unit in np.eye(self.dim)], axis=1)
        return (matrix + matrix.T) / 2
