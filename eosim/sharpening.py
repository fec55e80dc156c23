r"""Conservative sharpening: what one and two SGD steps do to Jacobian and NTK, over random curvature.

SGD with step :math:`\eta` on the quadratic regression model closes in the residuals z (n,) and the
Jacobian J (n, P), with the curvature Q (n, P, P) unchanged (`closed_step`). For Q with independent
:math:`N(0, \sigma^2)` entries on and below the diagonal, and fresh batches with the moments
:math:`E[W S W] = \mathrm{kept}\,S + \mathrm{noise}\,n\,\mathrm{Diag}(S)` of `eosim.sampling.batch_moments`,
the differences :math:`\Delta_1 f = f_1 - f_0` and :math:`\Delta_2 f = f_2 - 2f_1 + f_0` of J and of the NTK
:math:`\Theta = JJ^\top/n` have closed expectations (`expected_differences`). For one singular mode of J,
leading in 1/P (`mode_sharpening`): noise subtracts from its growth in proportion to its eigenvalue, so
that the large ones are damped most. But noise also raises the *first* difference of Theta, for all modes
alike: which effect wins depends on the spectrum, and conservative sharpening needs outliers.

The effect: Agarwala & Pennington 2024, arXiv 2404.19261. The formulas, exact in n, P and the batch size,
are derived here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from eosim._checks import (
    Array,
    Interval,
    float_array,
    integer,
    interface,
    real_number,
    seeded,
    symmetric_matrix,
)
from eosim.discrete import run
from eosim.optimizers import GradientDescent
from eosim.problems.base import LeastSquares
from eosim.sampling import batch_moments
from eosim.trajectory import Status

# Our choice: entries of Q drawn at once by the Monte Carlo (16 MB).
_BLOCK_ENTRIES = 2_000_000


class Differences(NamedTuple):
    r"""Differences of J and Theta, or their expectations; modes are singular triples (w, s, v) of J.

    :math:`E[\Delta_1 J] = 0`, and has no field.

    Attributes
    ----------
    jacobian_second : (n, P) array
        :math:`\Delta_2 J`.
    ntk_first, ntk_second : (n, n) arrays
        :math:`\Delta_1\Theta` and :math:`\Delta_2\Theta`.
    mode_jacobian : (r,) array
        :math:`w_a^\top \Delta_2 J\, v_a` for the r = min(n, P) modes, the largest first.
    mode_ntk : (r,) array
        :math:`w_a^\top \Delta_2\Theta\, w_a`.
    """

    jacobian_second: Array
    ntk_first: Array
    ntk_second: Array
    mode_jacobian: Array
    mode_ntk: Array


class MeasuredDifferences(NamedTuple):
    """Means over ``n_pairs`` pairs Q, -Q, and the standard errors of these means."""

    mean: Differences
    standard_error: Differences
    n_pairs: int


class Spectra(NamedTuple):
    """NTK spectra along several runs.

    Attributes
    ----------
    step : (n_records,) array
    ntk : (n_runs, n_records, n) array
        Eigenvalues of J J^T / n, the largest first; infinite where a diverged run has none.
    survived : (n_runs,) bool array
        False for diverged runs. Say how many there are with every average.
    """

    step: Array
    ntk: Array
    survived: Array


def closed_step(residuals: Any, jacobian: Any, tensor: Any, weights: Any, lr: Any) -> Any:
    r"""One SGD step of the quadratic regression model in (z, J), without parameters.

    With the batch gradient :math:`g = J^\top W z / n`:

    .. math:: z' = z - \eta J g + \tfrac{\eta^2}{2} (Qg)\, g, \qquad J' = J - \eta\, Qg

    Parameters
    ----------
    residuals, jacobian, tensor : (..., n), (..., n, P) and (..., n, P, P) arrays
        z, J and the symmetric Q.
    weights : (..., n) array
        The diagonal of W / n: counts / B.
    lr : number

    Returns
    -------
    (residuals, jacobian)
        Plain arithmetic: arrays of floats, exact rationals or symbols.
    """
    gradient = ((weights * residuals)[..., None, :] @ jacobian)[..., 0, :]  # (..., P)
    column = gradient[..., :, None]  # (..., P, 1)
    moved = (tensor @ column[..., None, :, :])[..., 0]  # Qg, (..., n, P)
    bend = (moved @ column)[..., 0]  # (Qg) g, (..., n)
    slope = (jacobian @ column)[..., 0]  # J g, (..., n)
    return residuals - lr * slope + lr**2 * bend / 2, jacobian - lr * moved


def mode_sharpening(along: Any, nearby: Any, x: Any, kept: Any, noise: Any, n: Any) -> Any:
    r""":math:`E[w^\top \Delta_2 J\, v] / (c s)` of a mode, leading in 1/P: its growth, and what damps it.

    .. math:: \tilde z^2 - x\,[\mathrm{kept}\;\tilde z^2 + \mathrm{noise}\; n \sum_m w_m^2 z_m^2],
              \qquad c = \eta^2\sigma^2 P/n^2

    Parameters
    ----------
    along : number or array
        :math:`\tilde z^2 = (w \cdot z)^2`.
    nearby : number or array
        :math:`\sum_m w_m^2 z_m^2`.
    x : number or array
        :math:`\eta\lambda` of the mode.
    kept, noise : numbers
        `eosim.sampling.batch_moments`.
    n : number
        Samples.

    Notes
    -----
    A delocalised mode has nearby = :math:`|z|^2/n`: noise subtracts noise x |z|^2. Averaged over
    isotropic z of variance 1 both are 1, and the result is 1 - x (kept + noise n), without replacement
    1 - x n/B: the sharpening of a mode changes sign where :math:`\eta\lambda` is the batch fraction.
    Plain arithmetic: floats, arrays and symbols.
    """
    return along - x * (kept * along + noise * n * nearby)


def difference_moments(
    moment: Any, jacobian: Any, variance: Any, lr: Any, kept: Any, noise: Any, corrections: Any = 1
) -> Any:
    r"""The formulas of `expected_differences`: (E[Delta_2 J], E[Delta_1 Theta], E[Delta_2 Theta]).

    Plain arithmetic: arrays of floats, exact rationals or symbols. ``variance`` is sigma^2, ``moment``
    is S; ``corrections`` = 0 leaves the terms out that are smaller by 1/P.
    """
    n, dim = jacobian.shape
    ntk, unit = jacobian @ jacobian.T / n, np.eye(n, dtype=int)

    def mixed(matrix: Any) -> Any:
        """E[W matrix W]."""
        return kept * matrix + noise * n * (unit * matrix)

    c = lr**2 * variance * dim / n**2
    weighted = mixed(moment)
    pulled = jacobian.T @ weighted @ jacobian
    second = c * ((moment - lr * (ntk @ weighted)) @ jacobian)
    small = lr**3 * variance / (2 * n**3) * corrections
    second = second - small * (2 * (jacobian @ pulled) - jacobian * np.diagonal(pulled))

    # The covariance of the residuals after one step, less that before it.
    change = lr**2 * (ntk @ weighted @ ntk) - lr * (ntk @ moment + moment @ ntk)
    braces = 2 * np.trace(ntk @ moment) - 2 * lr * np.trace(ntk @ ntk @ weighted)
    braces = braces + np.trace(mixed(ntk) @ change)
    crossed = jacobian @ second.T
    ntk_second = (crossed + crossed.T) / n + c * braces * unit
    return second, c * np.trace(ntk @ weighted) * unit, ntk_second


def expected_differences(
    start: Any,
    jacobian: Any,
    sigma: float,
    lr: float,
    batch_size: int,
    *,
    sampling: str = "without_replacement",
    leading: bool = False,
) -> Differences:
    r"""Expectations of the first two differences over Q and two independent batches.

    With :math:`S = zz^\top`, :math:`c = \eta^2\sigma^2P/n^2`, :math:`\mathcal M(X) = \mathrm{kept}\,X +
    \mathrm{noise}\,n\,\mathrm{Diag}(X)`, :math:`G = J^\top\mathcal M(S)J` and S' the covariance after one
    step, :math:`S' = S - \eta(\Theta S + S\Theta) + \eta^2\Theta\mathcal M(S)\Theta`:

    .. math::
        E[\Delta_2 J] &= c\,(S - \eta\Theta\mathcal M(S))\,J
                         - \tfrac{\eta^3\sigma^2}{2n^3}\,(2JG - J\,\mathrm{Diag}(G)) \\
        E[\Delta_1\Theta] &= c\,\mathrm{tr}(\mathcal M(\Theta)S)\,I \\
        E[\Delta_2\Theta] &= \tfrac1n (J\,E[\Delta_2J]^\top + E[\Delta_2J]\,J^\top)
            + c\,\{2\,\mathrm{tr}(\Theta S) - 2\eta\,\mathrm{tr}(\mathcal M(\Theta^2)S)
            + \mathrm{tr}(\mathcal M(\Theta)(S'-S))\}\,I

    The first two are exact; the third holds to order :math:`\sigma^2` (odd orders vanish).

    Parameters
    ----------
    start : (n,) or (n, n) array-like
        The residuals z, or the second moment S over random ones (the formulas are linear in S):
        :math:`\sigma_z^2 I` averages over isotropic residuals.
    jacobian : (n, P) array-like
        J.
    sigma : float
        Standard deviation of the entries of Q on and below the diagonal.
    lr, batch_size, sampling
        Of SGD; "without_replacement", "with_replacement" or "bernoulli".
    leading : bool
        Leave out the second part of :math:`E[\Delta_2 J]`, which is smaller by 1/P.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> jacobian = np.diag([2.0, 1.0])  # NTK eigenvalues 2 and 1/2
    >>> found = expected_differences(np.eye(2), jacobian, 0.1, 0.5, 2, leading=True)
    >>> found.mode_jacobian / found.mode_jacobian[1]  # 2 (1 - 0.5 * 2), 1 (1 - 0.5 / 2)
    array([0., 1.])
    """
    moment, jacobian, sigma, lr = _checked(start, jacobian, sigma, lr)
    if moment.ndim == 1:
        moment = np.outer(moment, moment)
    kept, noise = batch_moments(len(jacobian), batch_size, sampling)
    second, first, ntk_second = difference_moments(
        moment, jacobian, sigma**2, lr, kept, noise, 0 if leading else 1
    )
    return Differences(second, first, ntk_second, *_modes(jacobian, second, ntk_second))


def measured_differences(
    start: Any,
    jacobian: Any,
    sigma: float,
    lr: float,
    batch_size: int,
    n_pairs: int,
    seed: Any = 0,
    *,
    sampling: str = "without_replacement",
) -> MeasuredDifferences:
    """The differences of `expected_differences` by Monte Carlo: two SGD steps with each of Q and -Q.

    The signal is of order sigma^2 and the noise of a single Q of order sigma; the pair shares its
    batches, so that the latter cancels.

    Parameters
    ----------
    start, jacobian, sigma, lr, batch_size, sampling
        As for `expected_differences`; a second moment S draws z ~ N(0, S) anew for each pair.
    n_pairs : int
        At least 2.
    seed : int, SeedSequence or Generator

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.
    """
    start, jacobian, sigma, lr = _checked(start, jacobian, sigma, lr)
    n, dim = jacobian.shape
    batch_moments(n, batch_size, sampling)  # refuses what it cannot describe
    n_pairs = integer("n_pairs", n_pairs, minimum=2)
    generator = seeded(seed)
    root = None
    if start.ndim == 2:
        values, vectors = np.linalg.eigh(start)
        root = vectors * np.sqrt(np.maximum(values, 0))
    lower = np.tril_indices(dim)
    block = max(1, _BLOCK_ENTRIES // (n * dim**2))
    total: list[Any] = [0.0] * len(Differences._fields)
    squares: list[Any] = [0.0] * len(Differences._fields)
    for first in range(0, n_pairs, block):
        count = min(block, n_pairs - first)
        z = start if root is None else generator.standard_normal((count, n)) @ root.T
        tensor = np.empty((count, n, dim, dim))
        triangles = sigma * generator.standard_normal((count, n, len(lower[0])))
        tensor[..., lower[0], lower[1]] = triangles
        tensor[..., lower[1], lower[0]] = triangles
        weights = [_weights(generator, count, n, batch_size, sampling) for _ in range(2)]
        pair = [_two_steps(z, jacobian, sign * tensor, weights, lr) for sign in (1, -1)]
        for field, (plus, minus) in enumerate(zip(*pair, strict=True)):
            sample = (plus + minus) / 2
            total[field] = total[field] + sample.sum(axis=0)
            squares[field] = squares[field] + (sample**2).sum(axis=0)
    mean = [value / n_pairs for value in total]
    error = [
        np.sqrt(np.maximum(square / n_pairs - value**2, 0) / (n_pairs - 1))
        for square, value in zip(squares, mean, strict=True)
    ]
    return MeasuredDifferences(Differences(*mean), Differences(*error), n_pairs)


def track_spectra(
    problems: Iterable[LeastSquares],
    lr: float,
    n_steps: int,
    *,
    batch_size: int | None = None,
    sampling: str = "without_replacement",
    seed: Any = 0,
    every: int = 1,
) -> Spectra:
    """Run gradient descent from zeros on each problem, and record the NTK spectrum every few steps.

    Parameters
    ----------
    problems : iterable of problems with ``ntk``
        All with the same number of samples. A generator holds one Q in memory at a time.
    lr, n_steps, batch_size, sampling, every
        As for `eosim.run`.
    seed : int
        Of the batches: problem i takes stream i, ``SeedSequence(seed, spawn_key=(i,))``.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.
    """
    rule, seed = GradientDescent(lr), integer("seed", seed, minimum=0)
    if not isinstance(problems, Iterable):
        raise TypeError(f"problems must be an iterable of problems, got {problems!r}")
    runs = []
    for index, problem in enumerate(problems):
        interface(f"problems[{index}]", problem, ("dim", "gradient", "jacobian"))
        runs.append(
            run(
                problem,
                rule,
                np.zeros(problem.dim),
                n_steps,
                batch_size=batch_size,
                sampling=sampling,
                seed=np.random.SeedSequence(seed, spawn_key=(index,)),
                record={"ntk": _descending_spectrum},
                every=every,
                keep_theta=False,
            )
        )
    if not runs:
        raise ValueError("problems must not be empty")
    step = np.unique(np.append(np.arange(0, n_steps, every), n_steps))
    ntk = np.full((len(runs), len(step), runs[0]["ntk"].shape[1]), np.inf)
    for row, trajectory in zip(ntk, runs, strict=True):
        # A run that diverges between two records has a last record of its own.
        kept = np.isin(trajectory["step"], step)
        row[: kept.sum()] = trajectory["ntk"][kept]
    survived = np.array([trajectory.status is Status.COMPLETED for trajectory in runs])
    return Spectra(step, ntk, survived)


def _descending_spectrum(problem: Any, theta: Array) -> Array:
    ntk = problem.ntk(theta)
    if not np.isfinite(ntk).all():  # theta is bounded, but its square may overflow
        return np.full(len(ntk), np.inf)
    return np.maximum(np.linalg.eigvalsh(ntk)[::-1], 0)


def _checked(start: Any, jacobian: Any, sigma: Any, lr: Any) -> tuple[Array, Array, float, float]:
    jacobian = float_array("jacobian", jacobian, shape=(None, None))
    if jacobian.size == 0:
        raise ValueError(f"jacobian must have shape (n, P), not empty; got {jacobian.shape}")
    n = len(jacobian)
    start = float_array("start", start)
    if start.shape not in ((n,), (n, n)):
        raise ValueError(f"start must have shape ({n},) or ({n}, {n}), got {start.shape}")
    if start.ndim == 2:
        start = symmetric_matrix("start", start)
    sigma = real_number("sigma", sigma, Interval(0, np.inf, lower_closed=True))
    return start, jacobian, sigma, real_number("lr", lr, Interval(0, np.inf))


def _modes(jacobian: Array, second: Array, ntk_second: Array) -> tuple[Array, Array]:
    """The diagonal projections of (..., n, P) and (..., n, n) arrays on the singular triples of J."""
    left, _, right = np.linalg.svd(jacobian, full_matrices=False)  # (n, r), (r,), (r, P)
    along = np.einsum("na,...np,ap->...a", left, second, right, optimize=True)
    return along, np.einsum("na,...nm,ma->...a", left, ntk_second, left, optimize=True)


def _weights(
    generator: np.random.Generator, count: int, n: int, batch_size: int, sampling: str
) -> Array:
    """counts / B of independent batches, of shape (count, n)."""
    if sampling == "with_replacement":
        return generator.multinomial(batch_size, np.full(n, 1 / n), size=count) / batch_size
    uniform = generator.random((count, n))
    if sampling == "bernoulli":
        return (uniform * n < batch_size) / batch_size
    ranks = uniform.argsort(axis=1).argsort(axis=1)
    return (ranks < batch_size) / batch_size


def _two_steps(
    z: Array, jacobian: Array, tensor: Array, weights: list[Array], lr: float
) -> Differences:
    """Of each sample of the block."""
    once, first = closed_step(z, jacobian, tensor, weights[0], lr)
    _, second = closed_step(once, first, tensor, weights[1], lr)
    before, middle, after = (
        J @ np.swapaxes(J, -1, -2) / len(jacobian) for J in (jacobian, first, second)
    )
    bent, change = second - 2 * first + jacobian, after - 2 * middle + before
    return Differences(bent, middle - before, change, *_modes(jacobian, bent, change))
