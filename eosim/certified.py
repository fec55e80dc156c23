r"""Numbers with a proof: enclosures in exact rationals and in python-flint's balls.

A ball is a midpoint with a radius that bounds every rounding so far (Johansson 2017, IEEE
Transactions on Computers 66). Floats that are given are taken for the binary numbers that they are. An
enclosure is returned only if a finite computation proves it; else `CannotCertify` says why there is
none. Asked for with ``certify=True``, of

- `eosim.stability.critical_sharpness`, the threshold of a rule;
- `eosim.stability.critical_lr` and `eosim.stability.growth_rate`, of the second moment of SGD;
- `eosim.measure.sharpness`, the largest eigenvalue of a dense Hessian.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from eosim._checks import Array

__all__ = ["CannotCertify", "Enclosure"]

# Our choice: bits of the balls, 38 digits; and of an elimination, which is repeated where they do not do.
PRECISION = 128
_ELIMINATION = (PRECISION, 4 * PRECISION)
# Our choice: brackets widen eightfold, up to this share of the size of what is enclosed.
_WIDEST = 1e-6


class CannotCertify(ArithmeticError):
    """What was asked for is not proved; the message says why."""


class Enclosure(NamedTuple):
    """Two floats that the exact value is proved to lie between: lower <= value <= upper.

    >>> 3.8 in Enclosure(3.5, 4.0), str(Enclosure(3.5, 4.0))
    (True, '[3.5, 4.0]')
    """

    lower: float
    upper: float

    def __contains__(self, value: Any) -> bool:
        return bool(self.lower <= value <= self.upper)

    def __str__(self) -> str:
        return f"[{self.lower!r}, {self.upper!r}]"


def asked(certify: Any) -> bool:
    """The switch ``certify``; TypeError if it is none."""
    if certify not in (True, False):
        raise TypeError(f"certify must be True or False, got {certify!r}")
    return bool(certify)


def load_flint() -> Any:
    """The module python-flint; ImportError names the extra that brings it."""
    try:
        import flint
    except ImportError:
        raise ImportError('certify=True needs python-flint: pip install "eosim[certify]"') from None
    return flint


def precise() -> AbstractContextManager[Any]:
    """Inside it balls have `PRECISION` bits."""
    context: AbstractContextManager[Any] = load_flint().ctx.workprec(PRECISION)
    return context


def rational(number: Any) -> Any:
    """A float or a fraction as flint's rational, exactly."""
    exact = Fraction(number)
    return load_flint().fmpq(exact.numerator, exact.denominator)


def balls(matrix: Array) -> Any:
    """A matrix of floats as a matrix of balls, exactly."""
    return load_flint().arb_mat(*matrix.shape, matrix.ravel().tolist())


def floats(matrix: Any) -> Array:
    """The midpoints of a ball matrix."""
    entries = [float(entry.mid()) for entry in matrix.entries()]
    return np.array(entries).reshape(matrix.nrows(), matrix.ncols())


def bracket(
    guess: float, size: float, first: float, test: Callable[[float], bool | None]
) -> Enclosure:
    """Floats around the guess with ``test`` proved True at the lower one and False at the upper one.

    The half-widths start at ``first``, or the last digit. A test is None where nothing is proved.
    """
    if not math.isfinite(guess):
        raise CannotCertify(f"the value is not finite in floats: {guess!r}")
    ends = []
    for direction, wanted in ((-1, True), (1, False)):
        step = max(math.ulp(guess), first)
        while test(end := guess + direction * step) is not wanted:
            step *= 8
            if not step <= max(_WIDEST * size, 1e-300):
                raise CannotCertify(
                    f"nothing is proved within {step:.0e} of {guess!r}: the matrix is too "
                    "ill-conditioned, or the value not finite"
                )
        ends.append(end)
    return Enclosure(*ends)


def outward(ball: Any) -> Enclosure:
    """The nearest floats on both sides of a ball."""
    arb = load_flint().arb
    lower, upper = float(ball.lower()), float(ball.upper())
    while not arb(lower) <= ball:
        lower = math.nextafter(lower, -math.inf)
    while not arb(upper) >= ball:
        upper = math.nextafter(upper, math.inf)
    return Enclosure(lower, upper)


def positive_pivots(matrix: Any, shift: float) -> int | None:
    r"""How many eigenvalues of a symmetric ball matrix exceed the shift; None if it is not proved.

    The pivots of :math:`A - sI = LDL^\top` have the signs of its eigenvalues (Sylvester's inertia).
    Clusters of eigenvalues near the shift take more bits.
    """
    flint = load_flint()
    identity = balls(np.eye(matrix.nrows()))
    for bits in _ELIMINATION:
        with flint.ctx.workprec(bits):
            signs = _pivot_signs((matrix - shift * identity).tolist())
        if 0 not in signs:
            return signs.count(1)
    return None


def _pivot_signs(rows: list[list[Any]]) -> list[int]:
    """Signs of the pivots of a symmetric matrix, up to the first one without a sign: 0."""
    signs = []
    for k, row in enumerate(rows):
        pivot = row[k]
        signs.append(int(pivot > 0) - int(pivot < 0))
        if signs[-1] == 0:
            break
        for i in range(k + 1, len(rows)):
            factor = rows[i][k] / pivot
            for j in range(k + 1, i + 1):
                rows[i][j] -= factor * rows[j][k]
    return signs


def enclose_eigenvalue(matrix: Any, index: int) -> Enclosure:
    """The index-th largest eigenvalue of a symmetric ball matrix; it may be a multiple one."""
    rounded = floats(matrix)
    vector = balls(np.linalg.eigh(rounded)[1][:, [-index]])
    quotient = (vector.transpose() * matrix * vector)[0, 0] / (vector.transpose() * vector)[0, 0]

    def reached(shift: float) -> bool | None:
        count = positive_pivots(matrix, shift)
        return None if count is None else count >= index

    size = float(np.abs(rounded).max())
    return bracket(float(quotient.mid()), size, size * 2.0**-100, reached)
