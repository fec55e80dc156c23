"""The second moments of the modes alone: O(n) to O(n^2) per step, exact for flat eigenvectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import eigh

from eosim._checks import Array, Interval, choice, float_array, real_number
from eosim.sampling import BatchMoments, batch_moments
from eosim.stability.tangent_kernel import TangentKernel, as_kernel

KINDS = ("closure", "finite", "delocalised")
# Measured: an eigendecomposition of size r costs about as much as r^3 / 40,000 steps.
_STEPS_PER_CUBE = 40_000


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
    Records "loss", :math:`E|e|^2/2n`. Without momentum `march` diagonalises the step once where
    that is cheaper, so that any horizon is in reach.

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
        own = 1 - (self._batch.kept if self.kind != "delocalised" else 1.0)
        source = self._x**2 * (self._batch.noise * (self._spread(p) + outside) - own * p)
        return mode_moments(p, c, q, self._x, self.momentum, source)

    def march(self, initial: Any, steps: Array) -> Iterator[dict[str, Any]]:
        start = self._energies(initial)
        outside, n = self._outside(initial), self.kernel.n_samples
        if self.momentum == 0 and int(steps[-1]) > 100 + len(self._x) ** 3 / _STEPS_PER_CUBE:
            for total in self._far(start.modes, outside, steps):
                yield {"loss": (total + start.outside) / (2 * n)}
            return
        state, now = self.start(start), 0
        for step in steps:
            for _ in range(now, int(step)):
                state = self.step(state, outside)
            now = int(step)
            yield {"loss": (float(state[0].sum()) + start.outside) / (2 * n)}

    def _far(self, modes: Array, outside: Any, steps: Array) -> Iterator[float]:
        """sum of p at each step from one eigendecomposition: in p / x the step is symmetric."""
        x = self._x
        own = 1 - (self._batch.kept if self.kind != "delocalised" else 1.0)
        matrix = np.diag((1 - x) ** 2 - own * x**2) + self._batch.noise * (
            x[:, None] * self._spread_matrix * x
        )
        rates, vectors = eigh(matrix)
        weight = vectors.T @ x
        first = vectors.T @ (modes / x)
        feed = vectors.T @ (self._batch.noise * x * (outside + np.zeros_like(x)))
        for step in steps:
            with np.errstate(divide="ignore", invalid="ignore"):
                grown = np.where(rates == 1, float(step), (rates**step - 1) / (rates - 1))
            yield float(weight @ (rates**step * first + grown * feed))

    @cached_property
    def _x(self) -> Array:
        return self.lr * self.kernel.eigenvalues

    @cached_property
    def _batch(self) -> BatchMoments:
        ntk: TangentKernel = self.kernel
        return batch_moments(ntk.n_samples, self.batch_size, self.sampling)

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
