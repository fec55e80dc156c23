"""The second moments of the modes alone: O(n) to O(n^2) per step, exact for flat eigenvectors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import eigh

from eosim._checks import Array, Interval, choice, float_array, integer, real_number
from eosim.sampling import BatchMoments, batch_moments
from eosim.stability.tangent_kernel import TangentKernel, as_kernel

KINDS = ("closure", "finite", "delocalised")
# Measured: with a dense C an eigendecomposition of size r costs about as much as r^3 / 40,000 steps.
_STEPS_PER_CUBE = 40_000
# Our choice: so many powers at a time are held in memory (8 MB).
_POWERS = 1_000_000


class Energies(NamedTuple):
    r"""Second moments of residuals by mode of the NTK.

    ``modes`` (r,): :math:`p_a = E[(V^\top e)_a^2]` in the order of ``kernel.eigenvalues``.
    ``outside``: what lies outside the range of the NTK and never moves.
    """

    modes: Array
    outside: float = 0.0


def energies(kernel: Any, residuals: Any) -> Energies:
    """The `Energies` of residuals (n,) or (n, n_outputs)."""
    ntk = as_kernel(kernel)
    V = ntk.vectors()
    e = float_array("residuals", residuals).ravel()
    if len(e) != len(V):
        raise ValueError(f"residuals must have {len(V)} entries, got {len(e)}")
    modes = (V.T @ e) ** 2
    return Energies(modes, max(0.0, float(e @ e) - float(modes.sum())))


def as_energies(kernel: TangentKernel, initial: Any) -> Energies:
    """`Energies` checked, or those of residuals."""
    if not isinstance(initial, Energies):
        return energies(kernel, initial)
    modes = float_array("initial.modes", initial.modes, shape=kernel.eigenvalues.shape)
    if (modes < 0).any():
        raise ValueError(f"initial.modes must hold no negative energies, got {modes.min()!s}")
    domain = Interval(0, math.inf, lower_closed=True)
    return Energies(modes, real_number("initial.outside", initial.outside, domain))


def recorded_steps(n_steps: Any, every: int) -> Array:
    """The ascending steps asked for: each ``every``-th up to an int, and that; or those of an array."""
    if np.ndim(n_steps) == 0:
        last = integer("n_steps", n_steps, minimum=0)
        steps = np.arange(0, last + 1, every)
        return steps if steps[-1] == last else np.append(steps, last)
    steps = np.asarray(n_steps)
    if steps.dtype.kind not in "iu" or steps.ndim != 1 or len(steps) == 0:
        raise TypeError("n_steps must be an integer or a 1-d array of integers, not empty")
    if steps.max() > np.iinfo(np.int64).max:
        raise ValueError(f"n_steps must be below 2^63, got {steps.max()}")
    steps = steps.astype(np.int64)  # differences of unsigned steps are never negative
    if steps[0] < 0 or (np.diff(steps) <= 0).any():
        raise ValueError("n_steps must be ascending and not negative")
    return steps


def mode_moments(
    p: Any, c: Any, q: Any, x: Any, momentum: Any, source: Any
) -> tuple[Any, Any, Any]:
    r"""One step of :math:`p = E e_a^2,\ c = E e_a u_a,\ q = E u_a^2` under noise of variance ``source``.

    With x = lr lambda_a. Plain arithmetic: floats, arrays and symbols.
    """
    mu = momentum
    return (
        (1 - x) ** 2 * p - 2 * mu * (1 - x) * c + mu**2 * q + source,
        x * (1 - x) * p + mu * (1 - 2 * x) * c - mu**2 * q - source,
        x**2 * p + 2 * mu * x * c + mu**2 * q + source,
    )


@dataclass(frozen=True, eq=False)
class DiagonalClosure:
    r""":math:`p_a = E[(V^\top e)_a^2]`, dropping the correlations between modes.

    .. math:: p_a' = (1 - x_a)^2 p_a + x_a^2\,[\mathrm{noise}\; n\, {\textstyle\sum_b} C_{ab}\, p_b
              - (1 - \mathrm{kept})\, p_a], \qquad C_{ab} = {\textstyle\sum_m} V_{ma}^2 V_{mb}^2

    with :math:`x_a = \eta\lambda_a`, and its form with momentum (`mode_moments`).

    ============= ================================================================ ==============
    kind          noise                                                            cost of a step
    ============= ================================================================ ==============
    "closure"     as above; its threshold is an upper bound of the exact one       O(r^2)
    "finite"      C = 1/n: exact for flat eigenvectors                             O(r)
    "delocalised" C = 1/n, kept = 1: the limit of many samples, the paper's        O(r)
                  Volterra equation
    ============= ================================================================ ==============

    Agarwala & Pennington 2024, arXiv 2404.19261; constants derived here.

    Parameters
    ----------
    kernel : TangentKernel, (n, n) array or (n,) array
        The NTK; its spectrum is enough for "finite" and "delocalised" (then give `Energies`).
    lr, batch_size, sampling, momentum
        As for `Covariance`.
    kind : str

    Notes
    -----
    Records "loss", :math:`E|e|^2/2n`. Without momentum ``losses`` and ``march`` diagonalise the step
    once where that is cheaper, so that any horizon is in reach; `predict` records the ``method``.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or eigenvectors are needed and missing.
    """

    kernel: Any
    lr: float
    batch_size: int
    kind: str = "closure"
    sampling: str = "without_replacement"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        kernel = as_kernel(self.kernel)
        choice("kind", self.kind, KINDS)
        if self.kind == "closure":
            kernel.vectors()
        batch_moments(kernel.n_samples, self.batch_size, self.sampling)
        domain = Interval(0, 1, lower_closed=True)
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "lr", real_number("lr", self.lr, Interval(0, math.inf)))
        object.__setattr__(self, "momentum", real_number("momentum", self.momentum, domain))

    def start(self, initial: Any) -> tuple[Array, Array, Array]:
        """(E e_a^2, E e_a u_a, E u_a^2) at rest."""
        modes = self._energies(initial).modes
        return modes, np.zeros_like(modes), np.zeros_like(modes)

    def step(
        self, state: tuple[Array, Array, Array], outside: Any = 0.0
    ) -> tuple[Array, Array, Array]:
        """One step; ``outside`` is the noise that what never moves gives to each mode."""
        p, c, q = state
        source = self._x**2 * (self._batch.noise * (self._spread(p) + outside) - self._own * p)
        return mode_moments(p, c, q, self._x, self.momentum, source)

    def losses(self, initial: Any, n_steps: Any) -> Array:
        """E L as an array, at every step up to an int ``n_steps``, or at ascending ones as asked for.

        What `predict` records, without a record for each. By the ``method`` that is cheaper: the
        recursion, without momentum compiled for "finite" and "delocalised" (energies below 1e-280 then
        count as zero), or one eigendecomposition. Beyond the range of numbers infinite or NaN.

        Raises
        ------
        TypeError, ValueError
            If an argument is wrong.
        """
        steps = recorded_steps(n_steps, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            totals = self._totals(initial, steps)
            found = totals if isinstance(totals, np.ndarray) else np.array([*totals])
        return (found + self._energies(initial).outside) / (2 * self.kernel.n_samples)

    def march(self, initial: Any, steps: Array) -> Iterator[dict[str, Any]]:
        start = self._energies(initial)
        for total in self._totals(initial, steps):
            yield {"loss": float(total + start.outside) / (2 * self.kernel.n_samples)}

    def _totals(self, initial: Any, steps: Array) -> Iterable[float]:
        """sum of p at each of the steps."""
        modes, outside = self._energies(initial).modes, self._outside(initial)
        if self.method(steps) == "eigendecomposition":
            return self._far(modes, outside, steps)
        if self.momentum > 0 or self.kind == "closure":
            return self._near(modes, outside, steps)
        from eosim._kernels.volterra import totals

        k = self.kernel.n_outputs
        feed = self._x**2
        feed *= self._batch.noise / k
        return totals(modes, self._kept, feed, k * float(outside), steps)

    def method(self, steps: Array) -> str:
        """What is cheaper for these steps: "recursion" or, without momentum, "eigendecomposition"."""
        r, last = len(self._x), int(steps[-1])
        if self.kind == "closure":
            far = last > 100 + r**3 / _STEPS_PER_CUBE
        else:
            # Measured, in nanoseconds, for r from 20 to 1000
            decomposition, record, step = 1e5 + r**2 * (60 + r / 10), 8 * r, 10 + 0.15 * r
            far = decomposition + record * len(steps) < step * last
        return "eigendecomposition" if far and self.momentum == 0 else "recursion"

    def _near(self, modes: Array, outside: Any, steps: Array) -> Iterator[float]:
        """sum of p at each step, step by step."""
        state, now = (modes, np.zeros_like(modes), np.zeros_like(modes)), 0
        for step in steps:
            for _ in range(now, int(step)):
                state = self.step(state, outside)
            now = int(step)
            yield float(state[0].sum())

    def _far(self, modes: Array, outside: Any, steps: Array) -> Array:
        """The same from one eigendecomposition: in p / x the step is symmetric.

        Of the step less the identity: its eigenvalues have an error relative to lr, not to 1, so that a
        horizon of many steps of a small lr is as exact as the same time at a larger one.
        """
        x = self._x
        matrix = self._batch.noise * (x[:, None] * self._spread_matrix * x)
        matrix[np.diag_indices(len(x))] -= x * (2 - (1 - self._own) * x)
        shift, vectors = eigh(matrix)
        weight = vectors.T @ x
        first = weight * (vectors.T @ (modes / x))
        feed = weight * (vectors.T @ (self._batch.noise * x * (outside + np.zeros_like(x))))
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithms = np.where(shift > -1, np.log1p(shift), np.log(np.abs(1 + shift)))
        found = np.empty(len(steps))
        rows = max(1, _POWERS // len(x))
        for begin in range(0, len(steps), rows):
            times = steps[begin : begin + rows, None]
            with np.errstate(invalid="ignore"):  # 0 times an infinite logarithm
                powers = np.exp(times * logarithms)  # vectorised, as powers are not
            powers[:, shift < -1] *= 1 - 2 * (times % 2)
            powers[times[:, 0] == 0] = 1
            found[begin : begin + rows] = powers @ first
            if feed.any():
                with np.errstate(divide="ignore", invalid="ignore"):
                    grown = np.where(shift == 0, times, (powers - 1) / shift)
                found[begin : begin + rows] += grown @ feed
        return found

    @cached_property
    def _x(self) -> Array:
        return self.lr * self.kernel.eigenvalues

    @cached_property
    def _batch(self) -> BatchMoments:
        ntk: TangentKernel = self.kernel
        return batch_moments(ntk.n_samples, self.batch_size, self.sampling)

    @cached_property
    def _own(self) -> float:
        """1 - kept, as the kind has it."""
        return 0.0 if self.kind == "delocalised" else 1 - self._batch.kept

    @cached_property
    def _kept(self) -> Array:
        """What a step without momentum keeps of each mode, noise aside."""
        kept = 1 - self._x
        kept *= kept
        if self._own > 0:
            kept -= self._own * self._x**2
        return kept

    @cached_property
    def _squares(self) -> Array:
        """The diagonal blocks that each mode has on each sample: V_ma^2 for one output; (r, n k k)."""
        ntk: TangentKernel = self.kernel
        n, k, r = ntk.n_samples, ntk.n_outputs, len(ntk.eigenvalues)
        V = ntk.vectors().reshape(n, k, r)
        return np.einsum("nia,nja->anij", V, V).reshape(r, n * k * k)

    @cached_property
    def _spread_matrix(self) -> Array:
        """n C, (r, r)."""
        ntk: TangentKernel = self.kernel
        if self.kind == "closure":
            return ntk.n_samples * (self._squares @ self._squares.T)
        return np.full((len(self._x), len(self._x)), 1 / ntk.n_outputs)

    def _spread(self, p: Array) -> Any:
        """n C p."""
        if self.kind == "closure":
            return self._spread_matrix @ p
        return float(p.sum()) / self.kernel.n_outputs

    def _energies(self, initial: Any) -> Energies:
        return as_energies(self.kernel, initial)

    def _outside(self, initial: Any) -> Any:
        """n times the energy outside the range that each mode meets on the samples."""
        ntk: TangentKernel = self.kernel
        start = self._energies(initial)
        if self.kind != "closure" or start.outside == 0:
            return start.outside / ntk.n_outputs
        if isinstance(initial, Energies):
            raise ValueError(
                'initial must be residuals for kind "closure" if energy lies outside the range: where '
                "it lies decides what noise it makes"
            )
        V = ntk.vectors()
        e = float_array("initial", initial).ravel()
        rest = (e - V @ (V.T @ e)).reshape(ntk.n_samples, -1)
        return ntk.n_samples * (self._squares @ (rest[:, :, None] * rest[:, None, :]).ravel())
