"""The exact second moments of the residuals under SGD, with or without momentum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from eosim._checks import Array, Interval, dense_fits, float_array, real_number, symmetric_matrix
from eosim.sampling import BatchMoments, batch_moments
from eosim.stability._noise_kernel import HalfProducts, pack, pairs
from eosim.stability.tangent_kernel import TangentKernel, as_kernel

# Our choice: every so many steps what has decayed below this counts as zero; arithmetic on subnormal
# numbers would be many times slower.
_FLUSH, _SMALLEST = 64, 1e-280


class Moments(NamedTuple):
    """E[e e^T], E[e u^T] and E[u u^T], u the last move; each (n * n_outputs, n * n_outputs)."""

    residual: Array
    cross: Array
    move: Array


@dataclass(frozen=True, eq=False)
class Covariance:
    r""":math:`S_t = E[e_t e_t^\top]` for :math:`u' = \mu u + \eta\Theta W e,\ e' = e - u'`; exact.

    Without momentum, with the ``kept`` and ``noise`` of `eosim.sampling.batch_moments`,

    .. math:: S' = S - \eta\Theta S - \eta S\Theta
              + \eta^2\,\Theta\,[\mathrm{kept}\,S + \mathrm{noise}\,n\,\mathrm{Diag}(S)]\,\Theta

    Any Theta, singular or not: what lies outside its range stays and feeds noise. Diag keeps the
    diagonal (the diagonal blocks of the outputs of one sample). O(n^3) per step: two products of
    matrices, three with momentum. ``march`` without momentum spends one, in the eigenbasis of Theta,
    where S is one triangle and symmetric by construction.

    Parameters
    ----------
    kernel : TangentKernel or (n, n) array
        The NTK :math:`J J^\top/n`.
    lr : float
    batch_size : int
    sampling : str
        "without_replacement", "with_replacement" or "bernoulli". Reshuffling is refused: its batches
        depend on each other within an epoch.
    momentum : float
        mu in [0, 1), of heavy-ball momentum.

    Notes
    -----
    Records "loss", :math:`E|e|^2/2n`; without momentum, moments below 1e-280 count as zero there. The
    moments themselves: ``start`` and ``step``.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the kernel is only a spectrum.
    """

    kernel: Any
    lr: float
    batch_size: int
    sampling: str = "without_replacement"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        kernel = as_kernel(self.kernel)
        size = len(kernel.vectors())
        dense_fits(
            "the covariance", (size, size), "DiagonalClosure and run_ensemble need no matrix"
        )
        batch_moments(kernel.n_samples, self.batch_size, self.sampling)
        domain = Interval(0, 1, lower_closed=True)
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "lr", real_number("lr", self.lr, Interval(0, math.inf)))
        object.__setattr__(self, "momentum", real_number("momentum", self.momentum, domain))

    @cached_property
    def _pull(self) -> Array:
        """lr Theta."""
        return self.lr * self.kernel.matrix

    @cached_property
    def _batch(self) -> BatchMoments:
        ntk: TangentKernel = self.kernel
        return batch_moments(ntk.n_samples, self.batch_size, self.sampling)

    def start(self, initial: Any) -> Moments:
        """Moments of residuals (n,) or (n, n_outputs), or of a second moment; at rest (u = 0)."""
        n, k = self.kernel.n_samples, self.kernel.n_outputs
        array = float_array("initial", initial)
        if array.shape == (n * k, n * k) and (k > 1 or n > 1):
            second = symmetric_matrix("initial", array)
            lowest, *_, highest = np.linalg.eigvalsh(second)
            if lowest < -1e-9 * highest:
                raise ValueError(
                    f"initial must have no negative eigenvalue to be a second moment, got {lowest!s}"
                )
        elif array.shape in ((n * k,), (n, k)):
            second = np.outer(array, array)
        else:
            raise ValueError(
                f"initial must have shape ({n * k},), ({n}, {k}) or ({n * k}, {n * k}), got "
                f"{array.shape}"
            )
        zero = np.zeros_like(second)
        return Moments(second, zero, zero)

    def step(self, moments: Moments) -> Moments:
        """One step of SGD."""
        S, Y, U = moments
        K, mu = self._pull, self.momentum
        pulled = S @ K  # E[e (K W e)^T]
        noisy = K @ (self._batch.kept * pulled + self._scattered(S))
        if mu == 0:
            S = S - pulled - pulled.T + noisy
            return Moments((S + S.T) / 2, Y, U)  # antisymmetric rounding would grow
        crossed = mu * (Y.T @ K)  # E[mu u (K W e)^T]
        move = mu**2 * U + crossed + crossed.T + noisy
        move = (move + move.T) / 2
        pushed = mu * Y + pulled  # E[e u'^T]
        residual = S - pushed - pushed.T + move
        return Moments((residual + residual.T) / 2, pushed - move, move)

    def march(self, initial: Any, steps: Array) -> Iterator[dict[str, Any]]:
        if self.momentum == 0:
            for total in self._totals(self.start(initial).residual, steps):
                yield {"loss": total / (2 * self.kernel.n_samples)}
            return
        moments, now = self.start(initial), 0
        for step in steps:
            for _ in range(now, int(step)):
                moments = self.step(moments)
            now = int(step)
            yield {"loss": float(np.trace(moments.residual)) / (2 * self.kernel.n_samples)}

    def _totals(self, S: Array, steps: Array) -> Iterator[float]:
        r"""tr S at the steps, from :math:`A = V^\top S V` and what S has outside the range.

        .. math:: A_{ab}' = (1 - x_a - x_b + \mathrm{kept}\, x_a x_b)\, A_{ab}
                  + \mathrm{noise}\, n\, x_a x_b\, (V^\top \mathrm{Diag}(S)\, V)_{ab}

        with x = lr lambda. The correlations of mode a with what never moves decay by 1 - x_a.
        """
        ntk: TangentKernel = self.kernel
        V, k, x = ntk.vectors(), ntk.n_outputs, self.lr * ntk.eigenvalues
        if len(x) == 0:  # nothing moves
            yield from (float(np.trace(S)) for _ in steps)
            return
        cross, correlated = S @ V, len(S) > len(x)
        modes = pack(V.T @ cross)
        one, other, occurs = pairs(x)
        kept = 1 - one - other + self._batch.kept * one * other
        made = self._batch.noise * ntk.n_samples * one * other
        products = HalfProducts(ntk)
        fixed = np.zeros(len(S) * k)
        if correlated:
            cross -= V @ (V.T @ cross)  # E[e e^T V] outside the range
            samples = np.arange(ntk.n_samples)
            fixed = S.reshape(-1, k, len(S) // k, k)[samples, :, samples, :].ravel()
            fixed = fixed - _shared(V, cross, k) - products.diagonal_blocks(modes * occurs)
        else:
            cross = np.empty((0, 0))
        del S, one, other
        rest = float(fixed.reshape(-1, k, k).trace(axis1=1, axis2=2).sum())
        now, scratch = 0, np.empty_like(modes)
        for step in steps:
            for index in range(now, int(step)):
                np.multiply(modes, occurs, out=scratch)
                met = products.diagonal_blocks(scratch) + fixed  # Diag(S)
                if correlated:
                    met += _shared(V, cross, k)
                    cross *= 1 - x
                if not np.isfinite(met).all():
                    modes[:] = np.inf
                    break
                np.multiply(made, products.sandwich(met), out=scratch)
                modes *= kept
                modes += scratch
                if index % _FLUSH == 0:
                    modes[np.abs(modes) < _SMALLEST] = 0
            now = int(step)
            yield float(modes[occurs == 1].sum()) + rest

    def _scattered(self, S: Array) -> Array:
        """noise n Diag(S) K: the diagonal blocks scale or mix the rows of each sample."""
        n, k = self.kernel.n_samples, self.kernel.n_outputs
        samples = np.arange(n)
        blocks = S.reshape(n, k, n, k)[samples, :, samples, :]  # (n, k, k)
        return self._batch.noise * n * (blocks @ self._pull.reshape(n, k, -1)).reshape(S.shape)


def _shared(V: Array, cross: Array, k: int) -> Array:
    """The diagonal blocks of V C^T + C V^T, flattened."""
    shape = (-1, k, V.shape[1])
    blocks = V.reshape(shape) @ cross.reshape(shape).transpose(0, 2, 1)
    return (blocks + blocks.transpose(0, 2, 1)).ravel()
