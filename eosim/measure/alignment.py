r"""How SGD's noise aligns with the curvature, measured at any theta.

The loss :math:`|e_i|^2/2` of one sample has the gradient :math:`s_i = J_i^\top e_i`, with the covariance
:math:`\Sigma = \frac1n\sum_i s_i s_i^\top - \nabla L\,\nabla L^\top`; that of a mini-batch is
`eosim.sampling.noise_factor` times as large.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from eosim._checks import Array, point
from eosim.problems.base import LeastSquares


class Alignment(NamedTuple):
    """The three factors of `loss_alignment`; mu = alpha beta."""

    alpha: float
    beta: float
    mu: float


def loss_alignment(problem: LeastSquares, theta: Array, *, centred: bool = True) -> Alignment:
    r"""Direction, magnitude and loss-scaled alignment of the gradient noise with :math:`G = J^\top J/n`.

    .. math:: \alpha = \frac{\mathrm{tr}(\Sigma G)}{|\Sigma|_F |G|_F}, \qquad
              \beta = \frac{|\Sigma|_F}{2 L |G|_F}, \qquad
              \mu = \alpha\beta = \frac{\mathrm{tr}(\Sigma G)}{2 L |G|_F^2}

    (Wu, Wang & Su 2022, arXiv 2207.02628.) :math:`\Sigma = 2 L G`, noise that forgets which sample is how
    wrong, has all three equal to 1. For residuals in no particular direction mu averages (1 - 1/n)/k
    over k outputs, 1/k uncentred.

    Parameters
    ----------
    problem : LeastSquares
    theta : (dim,) array
    centred : bool
        Sigma as above; False takes the second moment :math:`\frac1n\sum_i s_i s_i^\top` instead. Bounds
        on stable learning rates need the centred one, except with Bernoulli sampling.

    Returns
    -------
    Alignment
        nan where the ratio is 0/0: all three at zero residual or zero Jacobian, alpha where Sigma = 0.
        None depends on the scale of the residuals, so a loss of 1e-300 is no difficulty.

    Raises
    ------
    TypeError
        If the problem has no Jacobian.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> data = eosim.LinearRegression(2 * np.eye(4), np.ones(4))
    >>> eosim.measure.loss_alignment(data, np.zeros(4)).mu
    0.75
    """
    if not hasattr(problem, "jacobian"):
        raise TypeError(
            f"{type(problem).__name__} is no least-squares problem: it has no jacobian(theta)"
        )
    (theta,) = point(problem, theta=theta)
    residuals = problem.residuals(theta)
    jacobian = problem.jacobian(theta)  # (n, k, dim)
    n, _, dim = jacobian.shape
    rows = jacobian.reshape(-1, dim)
    if dim > len(rows):
        return kernel_form(rows @ rows.T / n, residuals, centred)
    scaled = _unit(residuals)
    gradients = np.einsum("nk,nkd->nd", scaled, jacobian)
    curvature = rows.T @ rows / n
    if centred:
        gradients = gradients - gradients.mean(axis=0)
    overlap = float(np.einsum("nd,nd->", gradients @ curvature, gradients)) / n
    return _factors(
        overlap,
        float(np.linalg.norm(gradients.T @ gradients)) / n,
        float(np.linalg.norm(curvature)),
        float(np.sum(scaled**2)) / n,
    )


def kernel_form(ntk: Array, residuals: Array, centred: bool) -> Alignment:
    r"""The same three from the NTK :math:`\Theta = J J^\top/n` (n k, n k) and the residuals (n, k).

    .. math:: \mu = \frac{e^\top [\,n\,\mathrm{Diag}(\Theta^2) - \Theta^2\,]\, e}{|e|^2\,|\Theta|_F^2}

    Diag keeps the blocks of each sample; uncentred without the second term.
    """
    scaled = _unit(residuals)
    n, k = scaled.shape
    # Column i of images is Theta e_i, the change of all residuals under a step on sample i.
    images = np.einsum("ank,nk->an", ntk.reshape(n * k, n, k), scaled)
    products = np.einsum("nk,nkm->nm", scaled, images.reshape(n, k, n))  # s_i . s_j / n
    if centred:
        images = images - images.mean(axis=1, keepdims=True)
        products = products - products.mean(axis=0)
        products = products - products.mean(axis=1, keepdims=True)
    return _factors(
        float(np.sum(images**2)),
        float(np.linalg.norm(products)),
        float(np.linalg.norm(ntk)),
        float(np.sum(scaled**2)) / n,
    )


def _unit(residuals: Array) -> Array:
    """Residuals scaled to a largest entry of 1; zeros as they are."""
    largest = float(np.abs(residuals).max(initial=0.0))
    return residuals / largest if largest > 0 else residuals


def _factors(overlap: float, noise: float, curvature: float, twice_loss: float) -> Alignment:
    """From tr(Sigma G), |Sigma|_F, |G|_F and 2L."""
    if twice_loss == 0 or curvature == 0:
        return Alignment(math.nan, math.nan, math.nan)
    alpha = overlap / (noise * curvature) if noise > 0 else math.nan
    return Alignment(alpha, noise / (twice_loss * curvature), overlap / (twice_loss * curvature**2))
