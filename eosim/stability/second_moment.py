r"""Thresholds and growth rates of mini-batch SGD, proved from the exact matrix of a kernel's floats.

One step of SGD with momentum acts on second moments by an operator T: the mean step, whose radius is
the floor, plus the noise of batches, a positive map. At R above the floor the noise kernel
:math:`G_R` of `eosim.stability.mean_square` decides: the radius of T is below R iff
:math:`\lambda_{\max}(G_R) < 1`. For let the noise grow from 0 to its size. The radius grows
continuously from the floor and is an eigenvalue; R is one just where 1 is an eigenvalue of
:math:`G_R`, and that grows as well, because each of its weights does.

As a quadratic form :math:`s^\top G_R\, s = c\,\langle E, \Psi^{-1} E\rangle` with E = diag(s),
:math:`\langle A, B\rangle = \mathrm{tr}(\Theta A\Theta B)` and :math:`\Psi` a polynomial in products with
Theta from the left and the right. For any :math:`Y \approx \Psi^{-1}E`, with :math:`D = E - \Psi Y`,

.. math:: \langle E, \Psi^{-1}E\rangle = \langle Y, E + D\rangle + \langle D, \Psi^{-1}D\rangle,
          \qquad 0 \le \langle D, \Psi^{-1}D\rangle \le \langle D, D\rangle / \psi_{\min}:

eigenvectors enter as an approximation, and their rounding as a square. Derived here.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from eosim.certified import (
    CannotCertify,
    Enclosure,
    balls,
    bracket,
    enclose_eigenvalue,
    floats,
    load_flint,
    positive_pivots,
    precise,
    rational,
)

# Our choice: takes some ten seconds at full rank, and time falls with the square of the rank.
MAX_RESIDUALS = 64
# Our choice: half-width of the first bracket, relatively; what it starts from is known to about 1e-14.
_FIRST = 2.0**-46
# The noise of batches is a fraction of a smaller denominator. Such fractions are 2^-50 apart, so that
# its float tells which one it is.
_DENOMINATOR = 2**25
# Our choice: each round of refinement gains about ten digits, fewer if Theta is ill-conditioned. They
# end at a correction this small, relatively: what is left enters as a square.
_ROUNDS = 6
_SMALL = 1e-20
_EPSILON = 2.0**-52


class SecondMoment:
    r"""T, for an exact kernel.

    Parameters
    ----------
    kernel : (n, n) array or (V, lambda)
        Theta, or factors of :math:`V\,\mathrm{diag}(\lambda)\,V^\top`: the exact matrix of the floats.
    n_outputs : int
    kept, noise : float
        Of `eosim.sampling.batch_moments`.
    momentum : float

    Raises
    ------
    CannotCertify
        If there are more than `MAX_RESIDUALS` rows, or Theta is not positive semidefinite.
    """

    def __init__(
        self, kernel: Any, n_outputs: int, kept: float, noise: float, momentum: float
    ) -> None:
        flint = load_flint()
        exact_noise = Fraction(noise).limit_denominator(_DENOMINATOR)
        if float(exact_noise) != noise:
            raise CannotCertify(f"batch_size must be below {_DENOMINATOR} to be certified")
        self._noise = exact_noise
        self._kept = Fraction(1) if kept == 1 else 1 - exact_noise
        self._momentum = momentum
        n = len(kernel[0]) if isinstance(kernel, tuple) else len(kernel)
        if n > MAX_RESIDUALS:
            raise CannotCertify(
                f"certify=True takes at most {MAX_RESIDUALS} residuals, got {n}; without it the "
                "relative error is about 1e-12"
            )
        if isinstance(kernel, tuple):
            rank = len(kernel[1])
        else:
            exact = [rational(entry) for entry in kernel.ravel().tolist()]
            rank = flint.fmpq_mat(n, n, exact).rank()

        def theta() -> Any:
            if not isinstance(kernel, tuple):
                return balls(kernel)
            V = balls(kernel[0])
            return V * balls(np.diag(kernel[1])) * V.transpose()

        self._ends = [
            enclose_eigenvalue(f"the {end} positive eigenvalue of the kernel", theta, index)
            for end, index in (("smallest", rank), ("largest", 1))
        ]
        if self._ends[0].lower <= 0:
            raise CannotCertify(
                "kernel must be positive semidefinite as the exact matrix of its floats; its smallest "
                f"eigenvalue but 0 lies in {self._ends[0]}. Pass a TangentKernel, which is"
            )
        # A symmetric Y is held by y, Y = V y V^T, on which Theta acts as diag(lambda) V^T V: what is
        # outside the range does not enter. Units are projected on it by the dual of V.
        with precise():
            if isinstance(kernel, tuple):
                V = balls(kernel[0])
                self._gram = V.transpose() * V
                self._theta = balls(np.diag(kernel[1])) * self._gram
                self._dual = V * self._gram.inv()
                self._values, self._vectors = kernel[1], np.eye(rank)
            else:  # V = 1
                self._gram = self._dual = balls(np.eye(n))
                self._theta = balls(kernel)
                values, vectors = np.linalg.eigh(kernel)
                self._values, self._vectors = values[n - rank :], vectors[:, n - rank :]
        self._n_samples = n // n_outputs
        self._units = []  # of the symmetric block-diagonal matrices
        for start in range(0, n, n_outputs):
            for i in range(start, start + n_outputs):
                for j in range(i, start + n_outputs):
                    unit = np.zeros((n, n))
                    unit[i, j] = unit[j, i] = 1.0
                    self._units.append(unit)

    def enclose_critical_lr(self, guess: float) -> Enclosure:
        """Where the radius becomes 1: it is below for all rates up to ``lower``, and not at ``upper``.

        One rate speaks for all smaller ones, as the kernel at R = 1 increases with the rate.
        """
        first = _FIRST * guess
        return bracket(
            "critical_lr", guess, guess, first, lambda lr: self.contracts(lr, 1.0), self._reason
        )

    def enclose_growth_rate(self, lr: float, guess: float) -> Enclosure:
        """The spectral radius of T."""

        def grows(rate: float) -> bool | None:
            contracts = self.contracts(lr, rate)
            return None if contracts is None else not contracts

        first = max(_FIRST * guess, 2.0**-100)
        lower, upper = bracket("growth_rate", guess, max(guess, 1.0), first, grows, self._reason)
        return Enclosure(max(lower, 0.0), upper)

    @property
    def _reason(self) -> str:
        smallest, largest = self._ends
        return (
            f"the positive eigenvalues of the kernel reach from {smallest.lower:.3g} to "
            f"{largest.upper:.3g}, too far to refine its rounded eigenvectors at momentum "
            f"{self._momentum}"
        )

    def contracts(self, lr: float, rate: float) -> bool | None:
        """Whether the radius is below ``rate``; None if neither that nor its contrary is proved."""
        flint = load_flint()
        with precise():
            h, mu, R = flint.arb(lr), flint.arb(self._momentum), flint.arb(rate)
            # Roots of z^2 - T z + mu are within sqrt(R) iff mu < R and R T^2 < (R + mu)^2; T is
            # linear in the eigenvalue, so that the two ends of the spectrum stand for all.
            turns = [1 + mu - h * flint.arb(a).union(flint.arb(b)) for a, b in self._ends]
            gaps = [(R + mu) ** 2 - R * T * T for T in turns]  # a power of a ball around 0 is nan
            if rate <= self._momentum or any(gap <= 0 for gap in gaps):
                return False  # the floor alone
            if not all(gap > 0 for gap in gaps):
                return None
            if self._noise == 0:
                return True
            psi_min = (R - mu) ** 2 * min(gap.lower() for gap in gaps)
            forms, residual = self._forms(h, mu, R)
            noise = flint.arb(rational(self._noise)) * self._n_samples
            factor = noise * h**2 * R * (R**2 - mu**2)
            kernel, excess = factor * forms, (factor * residual / psi_min).upper()
            norms = np.array([unit.sum() for unit in self._units])  # of the units, squared
            identity = balls(np.diag(norms))
            rest = (1 - excess) * identity - kernel
            if positive_pivots(rest.tolist()) == len(norms):  # no pivoting where all are positive
                return True
            root = np.sqrt(norms)
            top = np.linalg.eigh(floats(kernel) / np.outer(root, root))[1][:, -1] / root
            vector = balls(top[:, None])
            grows = (vector.transpose() * (kernel - identity) * vector)[0, 0] >= 0
            return False if grows else None

    def _forms(self, h: Any, mu: Any, R: Any) -> tuple[Any, Any]:
        """<Y_i, E_j + D_j>, symmetrised, and the sum of <D_i, D_i>, over the units E."""
        flint = load_flint()
        kept = flint.arb(rational(self._kept))
        V, theta, gram, t = self._vectors, self._theta, self._gram, 1 + mu
        x = float(h) * self._values
        T = float(t) - x
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.add.outer(T**2, T**2)
            terms = 1.0, np.outer(T, T), squares, np.outer(x, x)
            psi = _denominator(*terms, np.float64(mu), np.float64(R), float(self._kept))
        if not np.isfinite(psi).all():
            raise CannotCertify(f"the powers of lr = {float(h)!r} leave the range of floats")
        psi = np.maximum(psi, _EPSILON * psi.max())  # an approximation may be any
        images, sums, residual = [], [], flint.arb(0)
        for unit in self._units:
            E = self._dual.transpose() * balls(unit) * self._dual
            Y, D, size = 0 * E, E, 0.0
            both = Y  # Theta Y Theta^T
            for _ in range(_ROUNDS):
                correction = V.T @ floats(D) @ V / psi
                size = max(size, np.abs(correction).max())
                if np.abs(correction).max() <= _SMALL * size:
                    break
                step = V @ correction @ V.T / 2
                Y += balls(step + step.T)  # exactly symmetric, as the products below assume
                left = theta * Y
                both, twice = left * theta.transpose(), theta * left
                left, twice = left + left.transpose(), twice + twice.transpose()
                outer = t**2 * Y - t * h * left + h**2 * both
                squares = 2 * t**2 * Y - 2 * t * h * left + h**2 * twice
                D = E - _denominator(Y, outer, squares, h**2 * both, mu, R, kept)
            images += both.entries()
            sums += (gram * (E + D) * gram).entries()
            residual += abs((theta * D * theta.transpose() * (gram * D * gram)).trace())
        m, size = len(self._units), len(V) ** 2
        forms = flint.arb_mat(m, size, images) * flint.arb_mat(m, size, sums).transpose()
        return (forms + forms.transpose()) * flint.arb(0.5), residual


def _denominator(
    identity: Any, outer: Any, squares: Any, pair: Any, mu: Any, R: Any, kept: Any
) -> Any:
    r""":math:`\psi` of 1, :math:`T_xT_y`, :math:`T_x^2 + T_y^2` and xy, as arrays or ball matrices.

    The denominator of `eosim.stability.mean_square.moment_response` plus (1 - kept) xy times its
    numerator. Where mu < R and :math:`R\,T^2 < (R+\mu)^2` it is at least
    :math:`(R-\mu)^2\,[(R+\mu)^2 - R\max T^2]`.
    """
    return (
        (R**2 - mu**2) ** 2 * identity
        - R * (R**2 + mu**2) * outer
        + mu * R**2 * squares
        + (1 - kept) * R * (R**2 - mu**2) * pair
    )
