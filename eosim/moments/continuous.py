"""Averaged SGD in continuous time: homogenised SGD, and streaming least squares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh

from eosim._checks import Array, Interval, dense_fits, float_array, integer, real_number
from eosim.moments.closures import as_energies
from eosim.sampling import batch_moments
from eosim.stability.tangent_kernel import as_kernel


@dataclass(frozen=True, eq=False)
class HomogenizedSGD:
    r"""The diffusion :math:`d\theta = -\eta\nabla L\,d\tau + \eta\sqrt{2\kappa L\,G}\,dW`, tau in steps.

    Its energies obey :math:`\dot p_a = -2x_a p_a + \kappa x_a^2 {\textstyle\sum_b} p_b` (G the Gauss-Newton
    matrix, :math:`x_a = \eta\lambda_a`), solved by one eigendecomposition at any times. It has no edge at
    :math:`\eta\lambda = 2`: its stability limit is the trace, :math:`\kappa\eta\,\mathrm{tr}\,\Theta = 2`.
    For small rates only.

    Paquette et al. 2022, arXiv 2205.07069; in this normalisation derived here.

    Parameters
    ----------
    kernel : TangentKernel, (n, n) array or (n,) array
    lr, batch_size, sampling
        As for `Covariance`; kappa is the ``noise`` of `eosim.sampling.batch_moments`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.
    """

    kernel: Any
    lr: float
    batch_size: int
    sampling: str = "without_replacement"

    def __post_init__(self) -> None:
        kernel = as_kernel(self.kernel)
        batch_moments(kernel.n_samples, self.batch_size, self.sampling)
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "lr", real_number("lr", self.lr, Interval(0, math.inf)))

    def march(self, initial: Any, steps: Array) -> Iterator[dict[str, Any]]:
        ntk = self.kernel
        start = as_energies(ntk, initial)
        kappa = batch_moments(ntk.n_samples, self.batch_size, self.sampling).noise
        x = self.lr * ntk.eigenvalues
        totals = _totals(2 * x, kappa * x**2 / ntk.n_outputs, start.modes, start.outside, steps)
        for total in totals:
            yield {"loss": total / (2 * ntk.n_samples)}


@dataclass(frozen=True, eq=False)
class StreamingSGD:
    r"""Least squares on fresh Gaussian samples :math:`a \sim N(0, H)` with label noise, in high dimension.

    Steps of rate eta on batches of B; tau counts steps. The expected risk
    :math:`\Psi = \frac12 E(a\cdot u)^2 + \frac12\sigma^2`, u the error, obeys

    .. math:: \dot P_a = -2\eta\lambda_a P_a + \frac{\eta^2}{B}\lambda_a^2\,\Psi, \qquad
              \Psi = \tfrac12\sigma^2 + {\textstyle\sum_a} P_a

    with :math:`P_a = \frac12\lambda_a E u_a^2`. It is stable for eta < ``critical_lr`` and then ends at
    ``floor``. For many dimensions d, with eta of order 1/d: papers write :math:`\gamma = d\,\eta`.
    Paquette et al. 2021, arXiv 2102.04396; in this normalisation derived here.

    Parameters
    ----------
    eigenvalues : (d,) array-like
        Of H, positive.
    lr : float
        eta.
    batch_size : int
        B.
    label_noise : float
        sigma^2, the variance of the labels' noise.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.
    """

    eigenvalues: Any
    lr: float
    batch_size: int = 1
    label_noise: float = 0.0

    def __post_init__(self) -> None:
        values = float_array("eigenvalues", self.eigenvalues, shape=(None,))
        if len(values) == 0 or not (values > 0).all():
            raise ValueError("eigenvalues must be positive, and at least one")
        noise = real_number(
            "label_noise", self.label_noise, Interval(0, math.inf, lower_closed=True)
        )
        object.__setattr__(self, "eigenvalues", values)
        object.__setattr__(self, "lr", real_number("lr", self.lr, Interval(0, math.inf)))
        object.__setattr__(self, "batch_size", integer("batch_size", self.batch_size, minimum=1))
        object.__setattr__(self, "label_noise", noise)

    @property
    def critical_lr(self) -> float:
        """The rate at which the risk stops decaying: 2 B / tr H."""
        return 2 * self.batch_size / float(self.eigenvalues.sum())

    @property
    def floor(self) -> float:
        r"""The final risk, :math:`\frac12\sigma^2/(1 - \eta/\eta_c)`; infinite beyond :math:`\eta_c`."""
        if self.lr >= self.critical_lr:
            return math.inf
        return self.label_noise / 2 / (1 - self.lr / self.critical_lr)

    def march(self, initial: Any, steps: Array) -> Iterator[dict[str, Any]]:
        """``initial``: the squared errors :math:`E u_a^2` (d,) in the eigenbasis of H."""
        lam = self.eigenvalues
        squares = float_array("initial", initial, shape=lam.shape)
        if (squares < 0).any():
            raise ValueError(f"initial must hold no negative squares, got {squares.min()!s}")
        modes = lam * squares / 2
        feed = self.lr**2 / self.batch_size * lam**2
        for total in _totals(2 * self.lr * lam, feed, modes, self.label_noise / 2, steps):
            yield {"loss": total}


def _totals(
    decay: Array, feed: Array, modes: Array, constant: float, times: Array
) -> Iterator[float]:
    """sum p + c at the times, for p' = -decay p + feed (sum p + c): symmetric in p / sqrt(feed)."""
    root = np.sqrt(feed)
    if not root.any():  # no noise: every mode decays by itself
        yield from (float(modes @ np.exp(-decay * time)) + constant for time in times)
        return
    dense_fits(
        "the step of all modes", (len(root), len(root)), "DiagonalClosure is stepped by modes"
    )
    rates, vectors = eigh(np.outer(root, root) - np.diag(decay))
    weight = vectors.T @ root
    first = vectors.T @ (modes / root)
    for time in times:
        with np.errstate(divide="ignore", invalid="ignore"):
            grown = np.where(rates == 0, float(time), np.expm1(rates * time) / rates)
        yield float(weight @ (np.exp(rates * time) * first + grown * weight * constant)) + constant
