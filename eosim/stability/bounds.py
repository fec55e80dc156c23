r"""Bounds of the learning rate at which SGD stays at a minimum, and what each is worth.

At an interpolating minimum (e = 0, so H = G) SGD without momentum maps the second moment M of theta by
:math:`Q = I - 2\eta C + \eta^2 D` with

.. math:: \langle Z, CZ\rangle = \mathrm{tr}(ZHZ), \qquad
          \langle Z, DZ\rangle = \mathrm{kept}\,|H^{1/2}ZH^{1/2}|_F^2
          + \mathrm{noise}\,\tfrac1n\textstyle\sum_i |H_i^{1/2}ZH_i^{1/2}|_F^2

Q is symmetric and keeps positive semidefinite matrices so. Hence every symmetric Z bounds the
threshold from above, :math:`\eta^* \le 2\langle Z,CZ\rangle/\langle Z,DZ\rangle` (necessary bounds), a
positive definite A with :math:`Q(A) \preceq A` bounds it from below (sufficient ones), and
:math:`Q(A) \succeq cA` for one semidefinite A gives the growth rate at least c. Each bound below is one
choice of Z or A. They hold for any number k of outputs: :math:`H_i = J_i^\top J_i` of rank at most k
enters only through :math:`|H_i|_F^2 \ge (\mathrm{tr}\, H_i)^2/k`.

All is computed in the r-dimensional eigenbasis of the NTK, in O(n r^2).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize

from eosim._checks import Array, Interval, float_array, real_number
from eosim.sampling import BatchMoments, batch_moments
from eosim.stability._noise_kernel import diagonal_blocks
from eosim.stability.alignment import alignment_band, averaged, unit_kernel
from eosim.stability.mean_square import critical_lr
from eosim.stability.tangent_kernel import TangentKernel, as_kernel

_FROBENIUS = "Wu, Wang & Su 2022, arXiv 2207.02628; this constant derived here"
_TRACE = "Wu & Su 2023, arXiv 2305.17490 (B = 1); this form derived here"
_STOCHASTIC_EDGE = "Agarwala & Pennington 2024, arXiv 2404.19261; as a bound derived here"

# Our choice: samples whose gradients differ by less than this, relatively, count as equal.
_EQUAL = 1e-9


class Bound(NamedTuple):
    """A bound of the threshold of mean-square stability.

    ``value`` is a learning rate (infinite, or 0 if sufficient: says nothing), ``kind`` "necessary" (stable
    runs have lr <= value), "sufficient" (lr < value is stable) or "exact" (both).
    """

    name: str
    value: float
    kind: str
    source: str


class OneStepRates(NamedTuple):
    """Bounds of the growth rate: frobenius <= smallest <= growth_rate <= largest."""

    frobenius: float
    smallest: float
    largest: float


def lr_bounds(
    kernel: Any,
    batch_size: int,
    *,
    sampling: str = "without_replacement",
    exact: bool = True,
) -> dict[str, Bound]:
    r"""Every known bound of the learning rate of SGD without momentum, and the exact threshold.

    With T = tr H, F = :math:`|H|_F`, :math:`\lambda` and v the top eigenpair, k outputs, and ``kept`` and
    ``noise`` (kappa) of `eosim.sampling.batch_moments`:

    =================== ============================================================ ==============
    name                value                                                        choice
    =================== ============================================================ ==============
    exact               `critical_lr`                                                all Z
    wu_2018             :math:`2/\lambda_{\max}(H^{-1/2}[\mathrm{kept}H^2            A = I;
                        + \kappa\frac1n\sum H_i^2]H^{-1/2})`                          sufficient
    loss                the loss falls on average at every step                      A = H;
                                                                                     sufficient
    rank_one            :math:`\min_v` over local ascents                            Z = v v^T
    top_eigenvector     :math:`2\lambda/(\mathrm{kept}\lambda^2                      Z = v v^T of
                        + \kappa\frac1n\sum(v^\top H_iv)^2)`                          the top v
    trace_samples       :math:`2T/(\mathrm{kept}F^2 + \kappa\frac1n\sum|H_i|_F^2)`   Z = I
    closure             `critical_lr` of kind "closure"                              Z diagonal in
                                                                                     the eigenbasis
    finite              `critical_lr` of kind "finite"                               the same, equal
                                                                                     leverages
    generalised_trace   :math:`2T/(\mathrm{kept}F^2 + \kappa T^2/k)`                 Z = I, equal
                                                                                     leverages
    trace               :math:`2k/(\kappa T)`                                        the same
    edge                :math:`2/\lambda`                                            the mean
    frobenius           :math:`1/(F\sqrt{\kappa\mu_0})`                              A = H
    frobenius_uncentred :math:`1/(F\sqrt{\kappa\,\mathrm{kept}\,\mu_1})`             A = H
    coherence           :math:`\sigma/(\lambda\sqrt{n/B-1})`, Bernoulli sampling only  Z = v v^T of
                                                                                     one sample
    =================== ============================================================ ==============

    with :math:`\sigma = \lambda_{\max}(S)/\max_i\lambda_{\max}(H_i)` and
    :math:`S_{ij} = \sqrt{\mathrm{tr}(H_iH_j)}`. Each sufficient one <= exact <= each
    necessary one; closure <= finite <= generalised_trace <= trace; finite <= edge; rank_one <=
    top_eigenvector <= edge.

    Notes
    -----
    mu_0 is the least centred alignment over the range of J, mu_1 the least uncentred one
    (`alignment_band`). With mu_1 in the place of mu_0 the first formula is **false**: its noise would
    include the mean gradient, which is no noise. Sixteen ReLU features and inputs on the unit circle have
    mu_1 = 1 and stay stable up to 8 at B = 1, but 1/F is about 7.5. Subtracting the mean gradient from the
    second moment and minimising over how much the drift contracts leaves the factor kept = 1 - kappa.
    With Bernoulli sampling the batch size fluctuates, the noise really is uncentred and kept = 1: then
    both names hold the valid uncentred bound.

    The Frobenius bound says nothing where alignment vanishes, and is no threshold. It is tight for B
    equal eigenvalues 1/lr and noise proportional to the loss (`loss_proportional_critical_lr`).

    Parameters
    ----------
    kernel : TangentKernel or (n, n) array
        The NTK :math:`J J^\top/n` at the minimum, with eigenvectors.
    batch_size : int
    sampling : str
    exact : bool
        False leaves out "exact", which takes some hundred products of O(n r^2) instead of a few.

    Returns
    -------
    dict
        Name to `Bound`, sufficient ones first, then the exact one and the necessary ones.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, the kernel is zero, or it is a spectrum only.

    Examples
    --------
    >>> import numpy as np
    >>> from eosim.stability import lr_bounds
    >>> found = lr_bounds(np.eye(4), 1)  # orthogonal equal gradients: H_i of norm 4
    >>> [(name, round(found[name].value, 3)) for name in ("wu_2018", "exact", "trace", "edge")]
    [('wu_2018', 0.5), ('exact', 0.5), ('trace', 0.5), ('edge', 2.0)]
    """
    ntk = as_kernel(kernel)
    moments = batch_moments(ntk.n_samples, batch_size, sampling)
    if ntk.largest == 0:
        raise ValueError("kernel must not be zero: no learning rate is too large for it")
    ntk.vectors()
    unit, ntk = ntk.largest, unit_kernel(ntk)
    lam, k, n = ntk.eigenvalues, ntk.n_outputs, ntk.n_samples
    kept, kappa = moments
    T, F = ntk.trace, ntk.frobenius

    wu = averaged(ntk, kept, kappa, np.diag(lam))
    root = 1 / np.sqrt(lam)
    falling = root[:, None] * averaged(ntk, kept, kappa, np.diag(lam**2)) * root
    found = [
        Bound("wu_2018", _over(2, _top(wu)), "sufficient", "Wu, Ma & E 2018; derived here"),
        Bound("loss", _over(2, _top(falling)), "sufficient", "derived here"),
    ]
    if exact:
        threshold = critical_lr(ntk, batch_size, sampling=sampling)
        source = "Mulayoff & Michaeli 2024, arXiv 2306.07850; Agarwala & Pennington 2024"
        found.append(Bound("exact", threshold, "exact", source))

    def necessary(name: str, value: float, source: str = "derived here") -> None:
        found.append(Bound(name, value, "necessary", source))

    best, first = _rank_one(ntk, moments)
    own = diagonal_blocks(ntk, np.diag(lam))  # H_i / n, seen from the outputs
    necessary("rank_one", 2 / best)
    necessary("top_eigenvector", 2 / first)
    samples = kappa * n * float(own @ own)
    necessary("trace_samples", 2 * T / (kept * F**2 + samples))
    for kind in ("closure", "finite"):
        value = critical_lr(ntk, batch_size, kind=kind, sampling=sampling)
        necessary(kind, value, _STOCHASTIC_EDGE)
    necessary("generalised_trace", 2 * T / (kept * F**2 + kappa * T**2 / k), _TRACE)
    necessary("trace", _over(2 * k, kappa * T), _TRACE)
    necessary("edge", 2.0, "mean dynamics")
    uncentred = alignment_band(ntk, centred=False).smallest
    worst = uncentred if kept == 1 else alignment_band(ntk).smallest
    necessary("frobenius", _over(1, F * math.sqrt(kappa * worst)), _FROBENIUS)
    corrected = _over(1, F * math.sqrt(kappa * kept * uncentred))
    necessary("frobenius_uncentred", corrected, "derived here")
    if sampling == "bernoulli":
        sigma = _coherence(ntk)
        value = _over(sigma, math.sqrt(n / batch_size - 1))
        necessary("coherence", value, "Dexter et al. 2024, arXiv 2401.12332; checked here")
    return {bound.name: bound._replace(value=bound.value / unit) for bound in found}


def loss_proportional_critical_lr(
    eigenvalues: Any, noise: float, *, alignment: float = 1.0
) -> float:
    r"""Threshold for noise of covariance :math:`\mathrm{noise}\cdot 2\mu L H`: constant alignment mu.

    .. math:: \sum_a \frac{\eta\lambda_a}{2 - \eta\lambda_a} = \frac{1}{\mathrm{noise}\;\mu}

    With replacement noise = 1/B and the right-hand side is B/mu. By :math:`x/(2-x) \ge x^2` and
    :math:`x/(2-x) \ge x/2` it lies below :math:`1/(|H|_F\sqrt{\mathrm{noise}\,\mu})`, with equality
    only for 1/(noise mu) equal eigenvalues, and below :math:`2/(\mathrm{noise}\,\mu\,\mathrm{tr}\,H)`.

    Parameters
    ----------
    eigenvalues : (r,) array
        Of H, not negative; zeros do not matter.
    noise : float
        `eosim.sampling.noise_factor`, not negative.
    alignment : float
        mu, not negative.

    Returns
    -------
    float
        2/lambda_max without noise; infinite if all eigenvalues are zero.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.
    """
    values = float_array("eigenvalues", eigenvalues, shape=(None,))
    if (values < 0).any():
        raise ValueError(f"eigenvalues must not be negative, got {values.min()!s}")
    not_negative = Interval(0, math.inf, lower_closed=True)
    level = real_number("noise", noise, not_negative)
    level *= real_number("alignment", alignment, not_negative)
    values = values[values > 0]
    if len(values) == 0:
        return math.inf
    sharpest = float(values.max())
    values = values / sharpest
    # In t = 1/eta the sum of level l / (2t - l) falls from its pole at l_max/2 to 0; a single mode
    # reaches 1 at l (1 + level)/2, and all of them are at most 1 at l_max/2 + level tr/2.
    low = (1 + level) / 2
    high = (1 + 2 * level * float(values.sum())) / 2

    def excess(t: float) -> float:
        return float(np.sum(level * values / (2 * t - values))) - 1

    if level == 0 or excess(low) <= 0:
        return 1 / low / sharpest
    return float(1 / brentq(excess, low, high, xtol=1e-300, rtol=1e-15)) / sharpest


def one_step_matrix(
    kernel: Any, lr: float, batch_size: int, *, sampling: str = "without_replacement"
) -> Array:
    r"""T with :math:`E|e'|^2 = e^\top T e` for one step, on the range of Theta in its eigenbasis (r, r).

    .. math:: T = V^\top\{I - 2\eta\Theta + \eta^2[\mathrm{kept}\,\Theta^2
              + \mathrm{noise}\;n\,\mathrm{Diag}(\Theta^2)]\}V

    Parameters and errors are those of `lr_bounds`; a zero kernel gives a (0, 0) matrix.
    """
    ntk = as_kernel(kernel)
    moments = batch_moments(ntk.n_samples, batch_size, sampling)
    lr = real_number("lr", lr, Interval(0, math.inf))
    x = lr * ntk.eigenvalues
    return np.diag(1 - 2 * x) + averaged(ntk, *moments, np.diag(x**2))


def one_step_rates(
    kernel: Any, lr: float, batch_size: int, *, sampling: str = "without_replacement"
) -> OneStepRates:
    r"""Bounds of `growth_rate` from a single step.

    .. math:: \gamma = \eta^2\,\mathrm{noise}\,\mu_0\,|H|_F^2 \;\le\; \lambda_{\min}(T) \;\le\; \rho \;\le\;
              \lambda_{\max}(T)

    The expected loss grows by at least lambda_min(T) in every step and by at most lambda_max(T). gamma is
    the escape rate of Wu, Wang & Su (2022), arXiv 2207.02628; it drops the drift and can be several
    times too small. mu_0 is uncentred with Bernoulli sampling.

    Parameters and errors are those of `lr_bounds`.
    """
    ntk = as_kernel(kernel)
    if ntk.largest == 0:
        raise ValueError("kernel must not be zero: no residual moves")
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = one_step_matrix(ntk, lr, batch_size, sampling=sampling)
        square = float(np.sum((lr * ntk.eigenvalues) ** 2))
    if not np.isfinite(matrix).all():
        return OneStepRates(math.inf, math.inf, math.inf)
    ends = np.linalg.eigvalsh(matrix)[[0, -1]]
    kept, noise = batch_moments(ntk.n_samples, batch_size, sampling)
    band = alignment_band(ntk, centred=kept != 1)
    return OneStepRates(noise * band.smallest * square, float(ends[0]), float(ends[1]))


def _over(numerator: float, denominator: float) -> float:
    """numerator / denominator, infinite at 0: a bound that says nothing."""
    return numerator / denominator if denominator > 0 else math.inf


def _top(matrix: Array) -> float:
    return float(np.linalg.eigvalsh(matrix)[-1])


def _rank_one(ntk: TangentKernel, moments: BatchMoments) -> tuple[float, float]:
    """The ascended maximum of kept h + noise mean((v.H_i v)^2)/h, h = v.H v, |v| = 1; its value at v_top.

    From the top eigenvector and from the gradients of the sample with the largest: every v gives a
    bound, so a local maximum is enough. The kernel is of unit size, for the ascent ends at an absolute
    slope.
    """
    root, n = np.sqrt(ntk.eigenvalues), ntk.n_samples
    k = ntk.n_outputs

    def objective(v: Array) -> tuple[float, Array]:
        """-value and its gradient, as a function homogeneous of degree 0."""
        scaled = root * v
        image = (ntk.vectors() @ scaled).reshape(n, k)
        own = np.sum(image**2, axis=1)  # v.H_i v / n
        h, square = float(own.sum()), float(v @ v)
        quartic = n * float(own @ own)
        value = (moments.kept * h + moments.noise * quartic / h) / square
        pulled = root * (ntk.vectors().T @ (own[:, None] * image).ravel())
        slope_h = 2 * ntk.eigenvalues * v
        slope = moments.kept * slope_h + moments.noise * (
            4 * n * pulled / h - quartic * slope_h / h**2
        )
        return -value, -(slope - 2 * value * v) / square

    top = np.zeros(len(root))
    top[0] = 1.0
    first = -objective(top)[0]
    if moments.noise == 0:
        return first, first
    blocks = diagonal_blocks(ntk, np.diag(ntk.eigenvalues)).reshape(n, k, k)
    # Neither rounding nor the signs of eigenvectors choose the start: the first of equal samples, on
    # the side of the top eigenvector.
    sizes = np.einsum("iab,iab->i", blocks, blocks)
    largest = int(np.argmax(sizes >= (1 - _EQUAL) * sizes.max()))
    direction = np.linalg.eigh(blocks[largest])[1][:, -1]
    gradient = root * (direction @ ntk.vectors()[largest * k : (largest + 1) * k])
    gradient *= math.copysign(1.0, gradient[0])
    best = first
    for start in (top + gradient / (10 * np.linalg.norm(gradient)), gradient):
        unit = start / np.linalg.norm(start)
        ascent = minimize(objective, unit, jac=True, method="L-BFGS-B", options={"maxiter": 200})
        best = max(best, -float(ascent.fun))
    return best, first


def _coherence(ntk: TangentKernel) -> float:
    """lambda_max of S_ij = sqrt(tr H_i H_j) over the largest lambda_max(H_i)."""
    n, k = ntk.n_samples, ntk.n_outputs
    blocks = ntk.matrix.reshape(n, k, n, k)
    S = np.sqrt(np.einsum("iajb,iajb->ij", blocks, blocks))
    own = np.einsum("iaib->iab", blocks)
    return _top(S) / float(np.linalg.eigvalsh(own)[:, -1].max())
