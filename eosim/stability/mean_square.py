r"""Mean-square stability of SGD at a minimum: noise kernels, thresholds and growth rates.

Linearised SGD with heavy-ball momentum mu moves the residuals by
:math:`u' = \mu u + \eta\Theta W e,\ e' = e - u'` (mu = 0: plain SGD), with the batch moments
:math:`E[W S W] = \mathrm{kept}\,S + \mathrm{noise}\,n\,\mathrm{Diag}(S)` of `eosim.sampling.batch_moments`.
In the eigenbasis of Theta, with :math:`x_a = \eta\lambda_a`, noise of unit variance in the modes a and b
leaves the moment :math:`E[e_a e_b] = x_a x_b\, g_{ab}` behind (`moment_response`). So the diagonal
s = Diag(S) is stationary if s = G s, with the **noise kernel**

.. math:: G_{ij} = \sum_{ab} V_{ia}V_{ib}V_{ja}V_{jb}\,w_{ab}, \qquad
          w_{ab} = \frac{\mathrm{noise}\; n\, x_a x_b\, g_{ab}}{1 + (1 - \mathrm{kept})\, x_a x_b\, g_{ab}}

(n x n, symmetric, entrywise nonnegative, increasing in the rate below the edge
:math:`\eta\lambda_{\max} = 2(1+\mu)`). SGD is mean-square stable if and only if its largest eigenvalue
is below 1. That is exact for every Theta, batch size and momentum, and never forms an operator on
n x n matrices: one product costs one product of matrices of size n x r.

The stochastic edge: Agarwala & Pennington 2024, arXiv 2404.19261; the closed form for mu = 0:
Mulayoff & Michaeli 2024, arXiv 2306.07850; the reduction to G and its form with momentum: derived here.
"""

from __future__ import annotations

import math
from typing import Any, overload

import numpy as np
from scipy.optimize import brentq
from scipy.sparse.linalg import LinearOperator, cg

from eosim._checks import (
    Array,
    Interval,
    choice,
    float_array,
    integer,
    real_number,
)
from eosim._lanczos import top_eigenpair
from eosim.certified import CannotCertify, Enclosure, asked
from eosim.sampling import BatchMoments, batch_moments
from eosim.stability._noise_kernel import (
    closure_radius,
    diagonal_blocks,
    kernel_product,
    pairs,
    sandwich,
    unit_blocks,
    unit_point,
)
from eosim.stability.second_moment import SecondMoment
from eosim.stability.tangent_kernel import TangentKernel, as_kernel

KINDS = ("exact", "closure", "finite", "delocalised", "trace")

_MOMENTUM = Interval(0, 1, lower_closed=True)
# Relative distance from the edge 2 (1 + momentum) / lambda_max at which kernels are still evaluated:
# a few roundings, for the response of the sharpest mode has a pole there.
_EDGE = 1e-13
# Growth rates this close to that of the drift alone, relatively, count as equal to it.
_ABOVE_FLOOR = 1e-12
# A threshold or kernel norm this close to the edge is rounding, and the edge itself the threshold.
_AT_EDGE = 1e-9
# Beyond this lr lambda_max a step is -lr Theta W to rounding, and its growth a square in lr.
_HOMOGENEOUS = 1e20


def moment_response(x: Any, y: Any, momentum: Any, rate: Any = 1) -> tuple[Any, Any]:
    r"""Numerator and denominator of g: the moment of two modes that unit noise sustains.

    Noise whose variance grows by the factor R per step, with :math:`T_x = 1 + \mu - x`:

    .. math:: g = \frac{R\,(R^2 - \mu^2)}{R^4 - T_x T_y R^3 + (\mu T_x^2 + \mu T_y^2 - 2\mu^2) R^2
                  - \mu^2 T_x T_y R + \mu^4}

    Without momentum g = 1/(R - (1 - x)(1 - y)). Plain arithmetic: floats, arrays and symbols.
    """
    # In factors: at R near mu, where rates of the drift alone are looked for, the powers cancel.
    drift = (rate - 1) * (rate - momentum**2) + rate * ((1 + momentum) * (x + y) - x * y)
    denominator = (rate - momentum) ** 2 * drift + momentum * rate**2 * (x - y) ** 2
    return rate * (rate - momentum) * (rate + momentum), denominator


def kernel_weight(x: Any, y: Any, momentum: Any, noise: Any, kept: Any) -> Any:
    r"""w(x, y)/n at R = 1, in a form without cancellation at small x.

    .. math:: \frac{\mathrm{noise}\; x y}{(1-\mu)(x + y) + \frac{\mu (x-y)^2}{1-\mu^2}
              - \frac{1-\mu}{1+\mu} x y + (1 - \mathrm{kept})\, x y}

    Plain arithmetic: floats, arrays and symbols.
    """
    gap = (1 - momentum) * (1 + momentum)
    drift = (1 - momentum) * (x + y) + momentum * (x - y) ** 2 / gap
    return noise * x * y / (drift - (1 - momentum) / (1 + momentum) * x * y + (1 - kept) * x * y)


def noise_kernel_norm(
    kernel: Any,
    lr: float,
    batch_size: int,
    *,
    kind: str = "exact",
    sampling: str = "without_replacement",
    momentum: float = 0.0,
) -> float:
    r"""K, which is 1 at the stochastic edge of stability; infinite from the deterministic edge on.

    With :math:`x_a = \eta\lambda_a`, kappa = ``noise`` and the formulas shown without momentum:

    ============= ================================================== ===============================
    kind          formula                                            K < 1 means
    ============= ================================================== ===============================
    "exact"       largest eigenvalue of the noise kernel G           stable, for every NTK
    "closure"     spectral radius of :math:`(I-A)^{-1}B`, with       stable as far as the diagonal of
                  :math:`A = (I-\eta\Lambda)^2`, B the noise on      the second moment tells; an upper
                  the diagonal                                       bound of the threshold
    "finite"      :math:`\kappa\sum_a x_a/(2-\mathrm{kept}\,x_a)`    exact for flat eigenvectors; an
                                                                     upper bound of the threshold
    "delocalised" :math:`\kappa\sum_a x_a/(2-x_a)`                   the limit of many samples
    "trace"       :math:`\kappa\,\eta\,\mathrm{tr}\,\Theta/2`        small rates
    ============= ================================================== ===============================

    At the value 1 "exact" is the threshold; elsewhere the kinds differ even where they agree at 1. For
    rates below the edge finite <= delocalised and finite <= exact; without momentum also trace <= finite,
    so that only there the threshold of "trace" is an upper bound. With k outputs the three
    sums are divided by k (the average of the row sums of G, hence still below "exact").

    Parameters
    ----------
    kernel : TangentKernel, (n, n) array or (n,) array
        The NTK :math:`J J^\top/n`, or its spectrum: enough for "finite", "delocalised" and "trace".
    lr, batch_size, sampling, momentum
        Of heavy-ball SGD; momentum in [0, 1).

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the eigenvectors are needed and missing.

    Examples
    --------
    >>> import numpy as np
    >>> from eosim.stability import noise_kernel_norm
    >>> round(noise_kernel_norm(np.eye(4), 0.5, 1), 12)  # 1 at lr = 2 B / (n lambda_max): localised
    1.0
    """
    ntk, moments, mu = _arguments(kernel, batch_size, sampling, momentum)
    lr = real_number("lr", lr, Interval(0, math.inf))
    with np.errstate(over="ignore", invalid="ignore"):
        return _norm(ntk, lr, moments, mu, choice("kind", kind, KINDS))


@overload
def critical_lr(
    kernel: Any, batch_size: int, *, kind: str = ..., sampling: str = ..., momentum: float = ...
) -> float: ...
@overload
def critical_lr(
    kernel: Any,
    batch_size: int,
    *,
    kind: str = ...,
    sampling: str = ...,
    momentum: float = ...,
    certify: bool,
) -> float | Enclosure: ...
def critical_lr(
    kernel: Any,
    batch_size: int,
    *,
    kind: str = "exact",
    sampling: str = "without_replacement",
    momentum: float = 0.0,
    certify: bool = False,
) -> float | Enclosure:
    r"""The learning rate at which the `noise_kernel_norm` of this kind is 1.

    "exact" is the threshold of mean-square stability: the second moment of the residuals (within the
    range of Theta) decays below it and grows above it. It never exceeds the deterministic edge
    :math:`2(1+\mu)/\lambda_{\max}`, which is returned where noise vanishes. "closure" and "finite" are
    upper bounds of it, in this order; "delocalised" may lie on either side. "exact" is found to rounding as
    a rule; with one output the bounds of Collatz and Wielandt leave at most 1e-8 of its norm open, or, as
    with several, the residual of its eigenvector is at most 1e-11.

    Parameters and errors are those of `noise_kernel_norm`. Infinite if Theta is zero. With ``certify``
    an `Enclosure` of "exact" is returned, proved by `eosim.stability.second_moment`: the second moment
    decays at every rate up to ``lower``, and does not from ``upper`` on. It is that of the kernel that is
    passed: of the exact matrix of the floats, or of the product of a TangentKernel's factors. A kernel
    that was computed, as by `tangent_kernel`, differs from the problem's own by its rounding, which is
    not in the enclosure. Up to 64 residuals; needs ``pip install "eosim[certify]"``, else ImportError.
    CannotCertify where nothing is proved.

    Examples
    --------
    >>> import numpy as np
    >>> from eosim.stability import critical_lr
    >>> round(critical_lr([[2.0, 1.0], [1.0, 2.0]], 1), 12)  # equal norms: 2 / tr at B = 1, any angle
    0.5
    """
    ntk, moments, mu = _arguments(kernel, batch_size, sampling, momentum)
    kind = choice("kind", kind, KINDS)
    if ntk.largest == 0:
        return Enclosure(math.inf, math.inf) if asked(certify) else math.inf
    if asked(certify):
        nearby = critical_lr(ntk, batch_size, sampling=sampling, momentum=momentum)
        return _operator(kernel, ntk, moments, mu, kind).enclose_critical_lr(nearby)
    edge = 2 * (1 + mu) / ntk.largest
    if moments.noise == 0:
        return edge
    if kind == "trace":
        return min(edge, 2 * (1 - mu) * ntk.n_outputs / (moments.noise * ntk.trace))
    if kind == "exact":
        return _exact_threshold(ntk, moments, mu, edge)
    return _threshold(ntk, moments, mu, edge, kind)


@overload
def growth_rate(
    kernel: Any,
    lr: float,
    batch_size: int,
    *,
    kind: str = ...,
    sampling: str = ...,
    momentum: float = ...,
) -> float: ...
@overload
def growth_rate(
    kernel: Any,
    lr: float,
    batch_size: int,
    *,
    kind: str = ...,
    sampling: str = ...,
    momentum: float = ...,
    certify: bool,
) -> float | Enclosure: ...
def growth_rate(
    kernel: Any,
    lr: float,
    batch_size: int,
    *,
    kind: str = "exact",
    sampling: str = "without_replacement",
    momentum: float = 0.0,
    certify: bool = False,
) -> float | Enclosure:
    r"""rho: the factor per step of the second moment :math:`E|e_t|^2` at late times, within the range.

    The spectral radius of the second-moment operator, found as the R at which the noise kernel made of
    the responses at R has the largest eigenvalue 1. Below 1 exactly where `critical_lr` is above
    lr. Late expected losses follow :math:`\rho^t`; single runs do not (their rate is lower).

    Parameters
    ----------
    kind : str
        "exact" (every Theta), "closure", "finite" (exact for flat eigenvectors) or "delocalised".
    kernel, lr, batch_size, sampling, momentum
        As for `noise_kernel_norm`; lr may lie beyond the edge.
    certify : bool
        Return an `Enclosure` of "exact" for the kernel that is passed, proved as that of `critical_lr`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the kernel is zero: nothing moves.
    ImportError, CannotCertify
        With ``certify``, as in `critical_lr`.
    """
    ntk, moments, mu = _arguments(kernel, batch_size, sampling, momentum)
    lr = real_number("lr", lr, Interval(0, math.inf))
    kind = choice("kind", kind, KINDS[:-1])
    if ntk.largest == 0:
        raise ValueError("kernel must not be zero: no residual moves")
    if asked(certify):
        nearby = growth_rate(ntk, lr, batch_size, sampling=sampling, momentum=momentum)
        return _operator(kernel, ntk, moments, mu, kind).enclose_growth_rate(lr, nearby)
    if lr * ntk.largest > _HOMOGENEOUS:
        reduced = _HOMOGENEOUS / ntk.largest
        rate = growth_rate(
            ntk, reduced, batch_size, kind=kind, sampling=sampling, momentum=momentum
        )
        ratio = lr / reduced
        return rate * ratio * ratio
    x = lr * ntk.eigenvalues
    floor = float(np.max(_mode_radius(x, mu))) ** 2
    if moments.noise == 0:
        return floor
    guess = [unit_blocks(ntk)]
    one, other, occurs = pairs(x)

    def weight(x: Array, y: Array, rate: float, kept: float) -> Array:
        unit, determinant = moment_response(x, y, mu, rate)
        pull = x * y * unit
        total = determinant + (1 - kept) * pull
        # At a pole, which only rates within rounding of the floor can reach
        return np.where(total > 0, moments.noise * pull / np.where(total > 0, total, 1), np.inf)

    def excess(rate: float) -> float:
        if kind == "closure":
            pull = weight(x, x, rate, 1.0) / moments.noise
            return closure_radius(ntk, pull, moments) - 1 if np.isfinite(pull).all() else math.inf
        if kind != "exact":
            kept = moments.kept if kind == "finite" else 1.0
            return float(np.sum(weight(x, x, rate, kept))) / ntk.n_outputs - 1
        packed = ntk.n_samples * weight(one, other, rate, moments.kept) * occurs
        if not np.isfinite(packed).all():
            return math.inf
        # Where samples are orthogonal, the vector of another rate can be an eigenvector of this one
        # that is not the top one: some of the identity stays in.
        start = guess[0] + unit_blocks(ntk) * (1e-3 / math.sqrt(len(guess[0])))
        value, guess[0] = top_eigenpair(kernel_product(ntk, packed), start)
        return value - 1

    # Noise only adds to the drift, whose radius is the floor: at most a pole of the response.
    above = _ABOVE_FLOOR
    # The floor may be 0: what is added has a fourth power within the range.
    while (first := excess(low := floor * (1 + above) + 1e-60 * above)) == math.inf:
        above *= 4
    if first <= 0:
        return floor
    step = max(floor, 1.0) * 1e-3
    while excess(low + step) > 0:
        step *= 4
    return float(brentq(excess, low, low + step, xtol=1e-300, rtol=1e-14, maxiter=300))


def generalised_sharpness(
    kernel: Any, batch_size: int, *, sampling: str = "without_replacement"
) -> float:
    r""":math:`\lambda_{\max}(C^{+}D)`: SGD without momentum is mean-square stable for lr < 2 over it.

    The closed form of Mulayoff & Michaeli (2024), arXiv 2306.07850: on second moments of theta the step
    is :math:`I - 2\eta C + \eta^2 D` with :math:`C = (H\otimes I + I\otimes H)/2` and
    :math:`D = \mathrm{kept}\, H\otimes H + \mathrm{noise}\, \frac1n\sum_i H_i\otimes H_i`. Evaluated on
    symmetric r x r matrices in the eigenbasis of H, by Lanczos: a second route to `critical_lr`, of
    memory 40 r^2, where that takes n r.

    Parameters and errors are those of `noise_kernel_norm`; needs the eigenvectors. 0 for a zero kernel.
    """
    ntk, moments, _ = _arguments(kernel, batch_size, sampling, 0.0)
    if ntk.largest == 0:
        return 0.0
    values = ntk.eigenvalues / ntk.largest  # squares of very small or large ones leave the range
    r = len(values)
    scale = np.sqrt((values[:, None] + values) / 2)  # C^(1/2)
    root = np.sqrt(values)

    def product(flat: Array) -> Array:
        Y = flat.reshape(r, r) / scale
        drift = moments.kept * values[:, None] * Y * values
        inner = diagonal_blocks(ntk, root[:, None] * Y * root)  # g_i^T Y g_i / n
        noisy = moments.noise * ntk.n_samples * root[:, None] * sandwich(ntk, inner) * root
        return ((drift + noisy) / scale).ravel()

    value, _ = top_eigenpair(product, (np.eye(r) * scale).ravel())
    return ntk.largest * value


def critical_batch_size(kernel: Any) -> float:
    r"""B at which trace and largest eigenvalue limit SGD alike.

    .. math:: B_\times = \frac{n}{1 + (n-1)\,\lambda_{\max}/\mathrm{tr}\,\Theta}

    About tr/lambda_max for many samples: below it the stochastic edge is first, at
    :math:`\eta \approx 2B/\mathrm{tr}`; above it the threshold saturates at :math:`2/\lambda_{\max}`. The
    crossover :math:`\kappa = \lambda_{\max}/\mathrm{tr}`, without replacement.

    Raises
    ------
    ValueError
        If the kernel is zero.
    """
    ntk = as_kernel(kernel)
    if ntk.largest == 0:
        raise ValueError("kernel must not be zero: it has no threshold")
    n = ntk.n_samples
    return n / (1 + (n - 1) * ntk.largest * ntk.n_outputs / ntk.trace)


def noise_floor(
    kernel: Any,
    residuals: Any,
    lr: float,
    batch_size: int,
    *,
    sampling: str = "without_replacement",
    momentum: float = 0.0,
) -> float:
    r"""The loss :math:`E|e|^2/2n` at which SGD ends where the data cannot be fitted; exact.

    The part :math:`e_\perp` of the residuals outside the range of Theta never moves and keeps feeding
    noise: :math:`s = (I - G)^{-1}\,\mathrm{Diag}(e_\perp e_\perp^\top)`, and the loss is the sum of s over
    2n. For flat eigenvectors it is :math:`|e_\perp|^2/(2n(1 - K))`, K the "finite" norm.

    Parameters
    ----------
    residuals : (n,) or (n, n_outputs) array
        At any time.
    kernel, lr, batch_size, sampling, momentum
        As for `noise_kernel_norm`; needs the eigenvectors.

    Returns
    -------
    float
        Infinite from `critical_lr` on.
    """
    ntk, moments, mu = _arguments(kernel, batch_size, sampling, momentum)
    lr = real_number("lr", lr, Interval(0, math.inf))
    e = float_array("residuals", residuals).ravel()
    V = ntk.vectors()
    if len(e) != len(V):
        raise ValueError(f"residuals must have {len(V)} entries, got {len(e)}")
    outside = e - V @ (V.T @ e)
    outside -= V @ (V.T @ outside)  # once more: rounding of the first projection is range again
    blocks = outside.reshape(ntk.n_samples, ntk.n_outputs)
    source = (blocks[:, :, None] * blocks[:, None, :]).ravel()
    if ntk.largest == 0:
        return float(outside @ outside) / (2 * ntk.n_samples)
    if _norm(ntk, lr, moments, mu, "exact") >= 1:
        return math.inf
    product = kernel_product(ntk, _weight(ntk, lr, moments, mu))
    size = (len(source), len(source))
    operator = LinearOperator(size, matvec=lambda s: s - product(s), dtype=np.dtype(float))
    solution, failed = cg(operator, source, rtol=1e-14, maxiter=100 * len(source))
    if failed:
        raise RuntimeError(
            "conjugate gradients did not solve (I - G) s = s_0: lr is too near critical"
        )
    blocks = solution.reshape(ntk.n_samples, ntk.n_outputs, ntk.n_outputs)
    return float(np.einsum("ikk->", blocks)) / (2 * ntk.n_samples)


def _arguments(
    kernel: Any, batch_size: int, sampling: str, momentum: Any
) -> tuple[TangentKernel, BatchMoments, float]:
    ntk = as_kernel(kernel)
    moments = batch_moments(ntk.n_samples, integer("batch_size", batch_size, minimum=1), sampling)
    return ntk, moments, real_number("momentum", momentum, _MOMENTUM)


def _operator(
    kernel: Any, ntk: TangentKernel, moments: BatchMoments, mu: float, kind: str
) -> SecondMoment:
    """The second-moment operator of what was given, not of its rounded eigenvectors."""
    if kind != "exact":
        raise CannotCertify(f"certify=True encloses kind 'exact' only, got {kind!r}")
    factors = (ntk.vectors(), ntk.eigenvalues)
    if kernel is ntk:
        return SecondMoment(factors, ntk.n_outputs, *moments, mu)
    matrix = float_array("kernel", kernel)
    if (matrix != matrix.T).any():
        raise CannotCertify(
            "kernel must be symmetric to the last digit to be certified; pass (kernel + kernel.T) / 2"
        )
    return SecondMoment(matrix, ntk.n_outputs, *moments, mu)


def _norm(ntk: TangentKernel, lr: float, moments: BatchMoments, mu: float, kind: str) -> float:
    x = lr * ntk.eigenvalues
    if kind == "trace":
        return moments.noise * float(x.sum()) / (2 * (1 - mu) * ntk.n_outputs)
    if moments.noise == 0 or len(x) == 0:
        return 0.0 if x.max(initial=0.0) < 2 * (1 + mu) else math.inf
    if x.max() >= 2 * (1 + mu):
        return math.inf
    if kind == "exact":
        weight = _weight(ntk, lr, moments, mu)
        return top_eigenpair(kernel_product(ntk, weight), unit_blocks(ntk))[0]
    if kind == "closure":
        return closure_radius(ntk, kernel_weight(x, x, mu, 1, 1), moments)
    kept = moments.kept if kind == "finite" else 1.0
    return float(np.sum(kernel_weight(x, x, mu, moments.noise, kept))) / ntk.n_outputs


def _mode_radius(x: Array, mu: float) -> Array:
    """The larger root modulus of z^2 - (1 + mu - x) z + mu."""
    T, root = 1 + mu - x, math.sqrt(mu)
    # T^2 - 4 mu in factors, for it cancels at mu near 1.
    gap = (((1 - mu) / (1 + root)) ** 2 - x) * ((1 + root) ** 2 - x)
    return np.where(gap > 0, (np.abs(T) + np.sqrt(np.maximum(gap, 0))) / 2, root)


def _weight(ntk: TangentKernel, lr: float, moments: BatchMoments, mu: float) -> Array:
    """w of every pair of modes, packed, those of two different modes twice."""
    x, y, occurs = pairs(lr * ntk.eigenvalues)
    return ntk.n_samples * kernel_weight(x, y, mu, moments.noise, moments.kept) * occurs


def _threshold(
    ntk: TangentKernel, moments: BatchMoments, mu: float, edge: float, kind: str
) -> float:
    """Where an increasing norm is 1, by bracketing; the edge if it stays below."""

    def excess(share: float) -> float:
        return _norm(ntk, share * edge, moments, mu, kind) - 1

    if excess(1 - _EDGE) <= _AT_EDGE:
        return edge
    lowest = _EDGE * (1 - mu)  # thresholds are as small as 1 - mu
    return edge * float(brentq(excess, lowest, 1 - _EDGE, xtol=1e-300, rtol=1e-15, maxiter=300))


def _exact_threshold(ntk: TangentKernel, moments: BatchMoments, mu: float, edge: float) -> float:
    """Where the noise kernel has the largest eigenvalue 1, if that is below the edge."""
    # The finite form bounds the threshold from above, and is exact for flat eigenvectors.
    inside = edge * (1 - _EDGE)
    bound = min(_threshold(ntk, moments, mu, edge, "finite"), inside)
    x, y, occurs = pairs(bound * ntk.eigenvalues)
    # 1/w is a straight line in 1/lr; its constant is what the drift of first order leaves
    drift = (1 - mu) * (1 / x + 1 / y) / (moments.noise * ntk.n_samples * occurs)
    rest = 1 / (ntk.n_samples * occurs * kernel_weight(x, y, mu, moments.noise, moments.kept))
    rest -= drift
    del x, y, occurs
    scale = unit_point(ntk, drift, rest)
    return edge if bound == inside and scale <= 1 + _AT_EDGE else bound / scale
