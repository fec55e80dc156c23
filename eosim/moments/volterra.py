"""The expected loss as a Volterra equation: forcing by the start, memory by the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eosim._checks import Array, Interval, choice, dense_fits, float_array, integer, real_number
from eosim.sampling import batch_moments
from eosim.stability.tangent_kernel import as_kernel

KINDS = ("exact", "finite", "delocalised")


@dataclass(frozen=True, eq=False)
class VolterraEquation:
    r""":math:`s_t = f_t + \sum_{u<t} k_{t-1-u}\, s_u`.

    Attributes
    ----------
    forcing : (T + 1,) or (T + 1, n) array
        f: what gradient descent alone would leave.
    memory : (T,) or (T, n, n) array
        k: what noise at one step leaves later. It sums to the noise kernel norm (the noise kernel
        itself) if every mode contracts.
    """

    forcing: Array
    memory: Array

    def __post_init__(self) -> None:
        for name in ("forcing", "memory"):
            object.__setattr__(self, name, float_array(name, getattr(self, name)))

    def solve(self) -> Array:
        """s, of the shape of ``forcing``, by direct summation: O(T^2), for any memory.

        Not by Fourier transforms, whose errors are relative to the largest value: where s decays
        nothing of it would be left. Where k is a sum of r exponentials, as those of
        `volterra_equation` are, the recursion of their amplitudes costs O(r T): `DiagonalClosure`.
        """
        solution, latest = self.forcing.copy(), self.memory[::-1].copy()
        for t in range(1, len(solution)):
            past = latest[len(latest) - t :]  # k_{t-1}, ..., k_0
            if self.memory.ndim == 3:
                solution[t] += np.einsum("uij,uj->i", past, solution[:t])
            else:
                solution[t] += past @ solution[:t]
        return solution


def volterra_equation(
    kernel: Any,
    residuals: Any,
    lr: float,
    batch_size: int,
    n_steps: int,
    *,
    kind: str = "exact",
    sampling: str = "without_replacement",
) -> VolterraEquation:
    r"""The equation of :math:`s_t = \mathrm{diag}\,E[e_t e_t^\top]` ("exact") or of :math:`E|e_t|^2`.

    With :math:`x_a = \eta\lambda_a` (0 outside the range) and the ``kept`` and ``noise`` of
    `eosim.sampling.batch_moments`:

    ============= ===========================================================================
    "exact"       :math:`k_m = \mathrm{noise}\, n \sum_{ab} V_{ia}V_{ib}V_{ja}V_{jb}\,
                  x_a x_b\, r_{ab}^m`, :math:`f_t = \mathrm{diag}\, V[\tilde S_0 \circ r^t]V^\top`,
                  :math:`r_{ab} = 1 - x_a - x_b + \mathrm{kept}\, x_a x_b`; any eigenvectors
    "finite"      :math:`k_m = \mathrm{noise} \sum_a x_a^2 r_{aa}^m`; exact for flat eigenvectors
    "delocalised" the same with kept = 1: the paper's equation (Agarwala & Pennington 2024)
    ============= ===========================================================================

    All hold at every finite t. The sums over m converge only if every :math:`|r_{ab}| < 1`: for
    noise above 1/2 (B = 1) they may not, though SGD is stable; the recursions of `Covariance` and
    `DiagonalClosure` have no such limit, and are faster.

    Parameters
    ----------
    kernel : TangentKernel or (n, n) array
        One output per sample.
    residuals : (n,) array
        e_0.
    lr, batch_size, sampling
        As for `Covariance`, without momentum.
    n_steps : int
        T. "exact" holds T n^2 numbers.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the kernel has several outputs.
    """
    ntk = as_kernel(kernel)
    kind = choice("kind", kind, KINDS)
    lr = real_number("lr", lr, Interval(0, math.inf))
    n_steps = integer("n_steps", n_steps, minimum=0)
    moments = batch_moments(ntk.n_samples, batch_size, sampling)
    if ntk.n_outputs > 1:
        raise ValueError(f"kernel must have one output per sample, got {ntk.n_outputs}")
    V, n = ntk.vectors(), ntk.n_samples
    e = float_array("residuals", residuals, shape=(n,))
    along = V.T @ e
    outside = e - V @ along
    x = lr * ntk.eigenvalues
    times = np.arange(n_steps + 1)
    if kind != "exact":
        kept = moments.kept if kind == "finite" else 1.0
        powers = (1 - 2 * x + kept * x**2) ** times[:, None]  # (T + 1, r)
        forcing = powers @ along**2 + float(outside @ outside)
        return VolterraEquation(forcing, moments.noise * powers[:-1] @ x**2)
    # One direction for all that lies outside the range: it has x = 0.
    length = float(np.linalg.norm(outside))
    if length > 0:
        V = np.column_stack([V, outside / length])
        x, along = np.append(x, 0.0), np.append(along, length)
    ratio = 1 - x[:, None] - x + moments.kept * x[:, None] * x
    dense_fits("the kernel", (n_steps, n, n), 'kind="finite" has one number per step')
    second = np.outer(along, along)
    forcing = np.array([np.einsum("ia,ab,ib->i", V, second * ratio**t, V) for t in times])
    weight = moments.noise * n * x[:, None] * x
    memory = np.empty((n_steps, n, n))
    for m in range(n_steps):
        memory[m] = np.einsum("ia,ib,ja,jb,ab->ij", V, V, V, V, weight * ratio**m, optimize=True)
    return VolterraEquation(forcing, memory)
