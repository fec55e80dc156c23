r"""Alignment of SGD noise with the curvature: from a kernel, at its worst, and in populations.

The measurement at a point is `eosim.measure.loss_alignment`; here are what it can be over a whole
linearised problem, and its closed forms for infinitely many samples.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq

from eosim._checks import (
    Array,
    Interval,
    choice,
    float_array,
    integer,
    real_number,
    symmetric_matrix,
)
from eosim.measure import Alignment
from eosim.measure.alignment import kernel_form
from eosim.stability._noise_kernel import diagonal_blocks, sandwich
from eosim.stability.tangent_kernel import TangentKernel, as_kernel

INPUTS = ("gaussian", "sphere")


class AlignmentBand(NamedTuple):
    """The smallest and the largest mu over all residuals that a linearised model can have."""

    smallest: float
    largest: float


def kernel_alignment(kernel: Any, residuals: Any, *, centred: bool = True) -> Alignment:
    r"""`eosim.measure.loss_alignment` of an NTK and residuals; exact for any finite data set.

    .. math:: \mu = \frac{e^\top [\,n\,\mathrm{Diag}(\Theta^2) - \Theta^2\,]\, e}{|e|^2\,|\Theta|_F^2}

    Diag keeps the diagonal (the k x k blocks of each sample); uncentred without the second term.

    Parameters
    ----------
    kernel : TangentKernel or (n, n) array
        :math:`\Theta = J J^\top/n`; mu is the same for any multiple of it.
    residuals : (n,) or (n, k) array
    centred : bool

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the kernel is a spectrum only.
    """
    ntk = as_kernel(kernel)
    e = float_array("residuals", residuals)
    if e.size != ntk.n_samples * ntk.n_outputs:
        raise ValueError(
            f"residuals must have {ntk.n_samples * ntk.n_outputs} entries, got shape {e.shape}"
        )
    matrix = unit_kernel(ntk).matrix if ntk.largest > 0 else ntk.matrix
    return kernel_form(matrix, e.reshape(ntk.n_samples, ntk.n_outputs), centred)


def alignment_band(kernel: Any, *, centred: bool = True) -> AlignmentBand:
    r"""Extremes of mu over residuals in the range of J: those of the linearised model at zero loss.

    The smallest, mu_0, is the constant of the bound :math:`|H|_F \le \sqrt{B/\mu_0}/\eta`. They are the
    ends of the spectrum of :math:`V^\top[n\,\mathrm{Diag}(\Theta^2) - \Theta^2]V/|\Theta|_F^2` (V the
    eigenvectors of positive eigenvalue), in O(n r^2). Over all of :math:`R^n` the band is wider.

    Parameters
    ----------
    kernel : TangentKernel or (n, n) array
    centred : bool

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, the kernel is zero, or it is a spectrum only.
    """
    ntk = as_kernel(kernel)
    if ntk.largest == 0:
        raise ValueError("kernel must not be zero: alignment is a ratio to its norm")
    ntk = unit_kernel(ntk)
    square = np.diag((ntk.eigenvalues / ntk.frobenius) ** 2)
    form = averaged(ntk, 0.0, 1.0, square) - centred * square
    ends = np.linalg.eigvalsh(form)[[0, -1]]
    smallest, largest = np.maximum(ends, 0)  # the form is a covariance: negative ends are rounding
    return AlignmentBand(float(smallest), float(largest))


def unit_kernel(ntk: TangentKernel) -> TangentKernel:
    """The kernel over its largest eigenvalue: squares of very small or large ones leave the range."""
    return replace(ntk, eigenvalues=ntk.eigenvalues / ntk.largest)


def averaged(ntk: TangentKernel, kept: float, noise: float, matrix: Array) -> Array:
    """E[W A W] in the eigenbasis of Theta: V^T (kept A + noise n Diag(A)) V with A = V matrix V^T."""
    blocks = diagonal_blocks(ntk, matrix)
    return kept * matrix + noise * ntk.n_samples * sandwich(ntk, blocks)


def population_alignment(
    gauss_newton: Any,
    gradient: Any,
    loss: float,
    *,
    inputs: str = "gaussian",
    n_features: int | None = None,
    centred: bool = True,
) -> Alignment:
    r"""Alignment of a model that is linear in its inputs, for infinitely many samples.

    Linear regression or a linear network of any depth and width with one output: with
    :math:`x \sim N(0, S)` the fourth moments (Isserlis 1918) give, at every theta,

    .. math:: \Sigma = 2 L G + \nabla L\, \nabla L^\top, \qquad
              \mu = 1 + \frac{\nabla L^\top G\, \nabla L}{2 L |G|_F^2} \in [1, 2]

    (uncentred with 2 grad grad^T: up to 3). For x uniform on the sphere of radius sqrt(d) in
    :math:`R^d` the second moment is d/(d + 2) times the Gaussian one. Linear regression with
    S = I has :math:`\alpha = (d+1)/\sqrt{d(d+3)}`, :math:`\beta = \sqrt{(d+3)/d}` and mu = 1 + 1/d for
    Gaussian inputs, mu = 1 - 1/d (1 uncentred) on the sphere.

    Parameters
    ----------
    gauss_newton : (dim, dim) array
        G, of the population: :math:`A^\top S A` with A the derivative of the linear map in theta.
    gradient : (dim,) array
        Of the population loss.
    loss : float
        The population loss without label noise, positive.
    inputs : str
        "gaussian" or "sphere".
    n_features : int, optional
        d, needed for the sphere.
    centred : bool

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.
    """
    G = symmetric_matrix("gauss_newton", gauss_newton)
    g = float_array("gradient", gradient, shape=(len(G),))
    loss = real_number("loss", loss, Interval(0, math.inf))
    factor = _fourth_moment(inputs, n_features)
    largest = float(np.abs(G).max())
    if largest == 0:
        raise ValueError("gauss_newton must not be zero: alignment is a ratio to its norm")
    # In units of the curvature and of twice the loss, whose squares may leave the range.
    G, g = G / largest, g / math.sqrt(largest) / math.sqrt(2) / math.sqrt(loss)
    norm = float(np.linalg.norm(G))
    sigma = factor * G + (2 * factor - centred) * np.outer(g, g)
    overlap, noise = float(np.sum(sigma * G)), float(np.linalg.norm(sigma))
    alpha = overlap / (noise * norm) if noise > 0 else math.nan
    return Alignment(alpha, noise / norm, overlap / norm**2)


def streaming_critical_lr(eigenvalues: Any, batch_size: int, *, inputs: str = "gaussian") -> float:
    r"""Threshold of mean-square stability with B fresh samples per step: linear regression, no label noise.

    .. math:: \sum_a \frac{c\,\eta\lambda_a}{2B - (B + 2c - 1)\,\eta\lambda_a} = 1, \qquad
              c = 1 \text{ (Gaussian)}, \quad c = \frac{d}{d+2} \text{ (sphere)}

    For inputs :math:`x \sim N(0, S)`, or :math:`x = S^{1/2} u` with u uniform on the sphere of radius
    sqrt(d); lambda_a are the d eigenvalues of S. Equal ones give :math:`2B/(\lambda(d + B + 1))` and
    :math:`2B/(\lambda(d + B - 1))`. Exact: the second moment of theta obeys
    :math:`M' = (I - \eta S) M (I - \eta S) + \frac{\eta^2}{B}[(2c - 1) S M S + c\,\mathrm{tr}(SM)\, S]`.

    Parameters
    ----------
    eigenvalues : (d,) array
        Not negative; zeros count for d.
    batch_size : int
    inputs : str
        "gaussian" or "sphere".

    Returns
    -------
    float
        Infinite if all eigenvalues are zero.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Examples
    --------
    >>> from eosim.stability import streaming_critical_lr
    >>> round(streaming_critical_lr([1.0, 1.0], 1), 12), round(
    ...     streaming_critical_lr([1.0, 1.0], 1, inputs="sphere"), 12)
    (0.5, 1.0)
    """
    values = float_array("eigenvalues", eigenvalues, shape=(None,))
    if (values < 0).any():
        raise ValueError(f"eigenvalues must not be negative, got {values.min()!s}")
    B = integer("batch_size", batch_size, minimum=1)
    c = _fourth_moment(inputs, max(1, len(values)))
    values = values[values > 0]
    if len(values) == 0:
        return math.inf
    sharpest = float(values.max())
    values = values / sharpest
    # In t = 1/eta the sum of c l / (2 B t - (B + 2c - 1) l) falls from its pole to 0.
    pole = (B + 2 * c - 1) / (2 * B)

    def excess(t: float) -> float:
        return float(np.sum(c * values / (2 * B * t - (B + 2 * c - 1) * values))) - 1

    low = pole + c / (2 * B)  # where the sharpest mode alone gives 1
    high = pole + c * float(values.sum()) / B  # where the sum is at most 1/2
    if excess(low) <= 0:
        return 1 / low / sharpest
    return float(1 / brentq(excess, low, high, xtol=1e-300, rtol=1e-15)) / sharpest


def _fourth_moment(inputs: str, n_features: int | None) -> float:
    r"""c in :math:`E[x x^\top M x x^\top] = c\,(2 S M S + \mathrm{tr}(SM)\, S)`."""
    if choice("inputs", inputs, INPUTS) == "gaussian":
        return 1.0
    if n_features is None:
        raise ValueError("n_features must be given for inputs on a sphere")
    d = integer("n_features", n_features, minimum=1)
    return d / (d + 2)
