r"""The noise kernel norm K of a model along a run, from what its size allows.

Each estimator is a measurement: ``record={"K": SpectralKernelNorm(batch_size=8)}`` stores K.value
and K.standard_error, with the learning rate and momentum of the rule that runs. K is defined as in
`noise_kernel_norm`, by the Gauss-Newton matrix at theta (which is H where the residuals are 0).

===================== ============================ ==============================================
estimator             K                            needs
===================== ============================ ==============================================
`SpectralKernelNorm`  any kind                     J or the NTK: O(n^2 dim)
`LanczosKernelNorm`   "finite", "delocalised"      J in blocks: O(n dim) per product
`TraceKernelNorm`     "trace", a lower bound of    J in blocks once, or residuals only
                      "finite" without momentum
===================== ============================ ==============================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh_tridiagonal

from eosim._checks import Array, choice, integer, interface
from eosim._lanczos import top_eigenpair
from eosim.measure import Estimate
from eosim.optimizers import GradientDescent, HeavyBall
from eosim.problems.base import directional_derivative
from eosim.sampling import SCHEMES, batch_moments
from eosim.stability.mean_square import KINDS, kernel_weight, noise_kernel_norm
from eosim.stability.tangent_kernel import tangent_kernel

# Our choice: a Jacobian of up to so many entries (160 MB) is kept, a larger one is formed again for
# every product, in blocks of so many entries (32 MB).
_KEPT = 20_000_000
_BLOCK = 4_000_000
# Our choice: the residual of the top eigenpair; the eigenvalue's error is about its square.
_TOP_TOLERANCE = 1e-8


@dataclass(frozen=True)
class SpectralKernelNorm:
    """K of any kind from the whole NTK; without error.

    Parameters
    ----------
    batch_size : int
    kind : str
        As in `noise_kernel_norm`.
    sampling : str

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; when called, if the problem has no Jacobian or the rule is not
        `GradientDescent` or `HeavyBall`.
    """

    batch_size: int
    kind: str = "finite"
    sampling: str = "without_replacement"

    def __post_init__(self) -> None:
        _check(self, KINDS)

    def __call__(self, problem: Any, theta: Array, *, rule: Any) -> Estimate:
        lr, momentum = _hyperparameters(rule)
        value = noise_kernel_norm(
            tangent_kernel(problem, theta), lr, self.batch_size,
            kind=self.kind, sampling=self.sampling, momentum=momentum,
        )  # fmt: skip
        return Estimate(value, 0.0)


@dataclass(frozen=True)
class TraceKernelNorm:
    r""":math:`\kappa\,\eta\,\mathrm{tr}\,\Theta/(2k(1-\mu))` from the trace alone.

    The trace is the mean of :math:`|J_i|_F^2` over samples (exact, J in blocks). With ``n_probes`` it is
    Hutchinson's estimator :math:`|J z|^2/n` over Rademacher vectors z: the residuals are differentiated
    along z, and no Jacobian is formed.

    Parameters
    ----------
    batch_size : int
    sampling : str
    n_probes : int, optional
        At least 2; None is exact.
    seed : int
        Of the probes, the same at every call.

    Raises
    ------
    TypeError, ValueError
        As `SpectralKernelNorm`.
    """

    batch_size: int
    sampling: str = "without_replacement"
    n_probes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, problem: Any, theta: Array, *, rule: Any) -> Estimate:
        lr, momentum = _hyperparameters(rule)
        interface("problem", problem, ("n_samples", "residuals"))
        n, outputs = problem.n_samples, np.shape(problem.residuals(theta))[-1]
        if self.n_probes is None:
            total = sum(float(np.sum(block**2)) for block in _blocks(problem, theta))
            trace, error = total / n, 0.0
        else:
            generator = np.random.default_rng(self.seed)
            samples = np.empty(self.n_probes)
            for index in range(self.n_probes):
                probe = generator.choice([-1.0, 1.0], size=problem.dim)
                image = directional_derivative(problem.residuals, theta, probe, problem.analytic)
                samples[index] = np.sum(image**2) / n
            trace, error = _mean(samples)
        noise = batch_moments(n, self.batch_size, self.sampling).noise
        factor = noise * lr / (2 * (1 - momentum) * outputs)
        return Estimate(factor * trace, factor * error)


@dataclass(frozen=True)
class LanczosKernelNorm:
    r"""K of kind "finite" or "delocalised" by stochastic Lanczos quadrature.

    The sum over eigenvalues of the weight :math:`\kappa x/(2 - \mathrm{kept}\,x)` is a trace. The top
    eigenpair, near whose pole at the edge the weight varies most, is computed and split off; the rest is
    Hutchinson's estimator with Gauss quadrature of ``n_steps`` nodes for each probe (Ubaru, Chen & Saad
    2017). The standard error is that of the probes.

    Parameters
    ----------
    batch_size : int
    kind : str
        "finite" or "delocalised".
    sampling : str
    n_probes : int
        At least 2; our choice is 16.
    n_steps : int
        Our choice is 30: the error of the quadrature falls exponentially, and is far below the probes'.
    seed : int
        Of the probes, the same at every call.

    Returns
    -------
    Estimate
        Infinite from the edge 2 (1 + momentum) on.

    Raises
    ------
    TypeError, ValueError
        As `SpectralKernelNorm`.
    """

    batch_size: int
    kind: str = "finite"
    sampling: str = "without_replacement"
    n_probes: int = 16
    n_steps: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self, ("finite", "delocalised"))
        integer("n_steps", self.n_steps, minimum=1)

    def __call__(self, problem: Any, theta: Array, *, rule: Any) -> Estimate:
        lr, momentum = _hyperparameters(rule)
        interface("problem", problem, ("n_samples", "residuals", "jacobian"))
        n, outputs = problem.n_samples, np.shape(problem.residuals(theta))[-1]
        moments = batch_moments(n, self.batch_size, self.sampling)
        kept = moments.kept if self.kind == "finite" else 1.0

        def weight(values: Array) -> Array:
            x = lr * np.maximum(values, 0)
            positive = np.where(x > 0, x, 1.0)
            return np.where(
                x > 0, kernel_weight(positive, positive, momentum, moments.noise, kept), 0
            )

        product = _gauss_newton(problem, theta)
        generator = np.random.default_rng(self.seed)
        start = generator.standard_normal(problem.dim)
        if not product(start).any():
            return Estimate(0.0, 0.0)
        top, vector = top_eigenpair(product, start, _TOP_TOLERANCE)
        if lr * top >= 2 * (1 + momentum):
            return Estimate(math.inf, 0.0)
        samples = np.empty(self.n_probes)
        for index in range(self.n_probes):
            probe = generator.choice([-1.0, 1.0], size=problem.dim)
            probe -= (vector @ probe) * vector
            nodes, shares = _quadrature(product, probe, self.n_steps)
            samples[index] = shares @ weight(np.minimum(nodes, top))
        rest, error = _mean(samples)
        return Estimate((float(weight(np.array(top))) + rest) / outputs, error / outputs)


def _check(estimator: Any, kinds: tuple[str, ...] | None = None) -> None:
    integer("batch_size", estimator.batch_size, minimum=1)
    choice("sampling", estimator.sampling, tuple(s for s in SCHEMES if s != "reshuffling"))
    if kinds is not None:
        choice("kind", estimator.kind, kinds)
    if getattr(estimator, "n_probes", None) is not None:
        integer("n_probes", estimator.n_probes, minimum=2)
        integer("seed", estimator.seed, minimum=0)


def _hyperparameters(rule: Any) -> tuple[float, float]:
    """Learning rate and momentum of the two rules whose second moments are known."""
    if isinstance(rule, GradientDescent):
        return rule.lr, 0.0
    if isinstance(rule, HeavyBall):
        return rule.lr, rule.momentum
    raise TypeError(
        f"rule must be GradientDescent or HeavyBall for a noise kernel, got {type(rule).__name__}"
    )


def _blocks(problem: Any, theta: Array) -> Iterator[Array]:
    """Rows of J for consecutive samples (rows, dim), at most `_BLOCK` entries or one sample at a time."""
    interface("problem", problem, ("dim", "n_samples", "residuals", "jacobian"))
    outputs = np.shape(problem.residuals(theta))[-1]
    per_block = max(1, _BLOCK // (outputs * problem.dim))
    for first in range(0, problem.n_samples, per_block):
        samples = np.arange(first, min(first + per_block, problem.n_samples))
        yield problem.jacobian(theta, samples).reshape(-1, problem.dim)


def _gauss_newton(problem: Any, theta: Array) -> Callable[[Array], Array]:
    """v -> J^T J v / n."""
    entries = np.size(problem.residuals(theta)) * problem.dim
    if entries <= _KEPT:
        J = problem.jacobian(theta).reshape(-1, problem.dim)
        return lambda v: J.T @ (J @ v) / problem.n_samples

    def product(v: Array) -> Array:
        total = np.zeros(problem.dim)
        for block in _blocks(problem, theta):
            total += block.T @ (block @ v)
        return total / problem.n_samples

    return product


def _quadrature(
    product: Callable[[Array], Array], probe: Array, n_steps: int
) -> tuple[Array, Array]:
    """Nodes and shares of the Gauss rule of probe's spectral measure; the shares add up to |probe|^2."""
    length = float(np.linalg.norm(probe))
    if length == 0:
        return np.zeros(1), np.zeros(1)
    basis = [probe / length]
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    while True:
        image = product(basis[-1])
        diagonal.append(float(basis[-1] @ image))
        for _ in range(2):
            image = image - sum((b @ image) * b for b in basis)
        norm = float(np.linalg.norm(image))
        # A Krylov space that is exhausted leaves rounding only.
        if len(basis) == n_steps or norm <= 1e-12 * max(map(abs, diagonal)):
            break
        off_diagonal.append(norm)
        basis.append(image / norm)
    nodes, vectors = eigh_tridiagonal(diagonal, off_diagonal)
    return nodes, (length * vectors[0]) ** 2


def _mean(samples: Array) -> tuple[float, float]:
    return float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples)))
