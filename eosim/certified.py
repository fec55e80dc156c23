r"""Numbers with a proof: enclosures in exact rationals and in python-flint's balls.

A ball is a midpoint with a radius that bounds every rounding so far (Johansson 2017, IEEE
Transactions on Computers 66). Floats that are given are taken for the binary numbers that they are. An
enclosure is returned only if a finite computation proves it; else `CannotCertify` says why there is
none. Asked for with ``certify=True``, of

- `eosim.stability.critical_sharpness`, the threshold of a rule;
- `eosim.stability.critical_lr` and `eosim.stability.growth_rate`, of the second moment of SGD;
- `eosim.measure.sharpness`, the largest eigenvalue of a Hessian that can be evaluated in balls.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from eosim._checks import Array, dense_fits

__all__ = ["CannotCertify", "Enclosure"]

# Our choice: bits of the balls, 38 digits; and of those of an eigenvalue, which begins anew from the
# floats with more of them where they do not do. The last undo any cancellation among floats.
PRECISION = 128
_RETRIES = (PRECISION, 4 * PRECISION, 20 * PRECISION)
# Bytes of a ball that is an entry of an array, with its pointer.
_BALL = 120
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


def in_balls(value: Any) -> Any:
    """A copy in which every float is a ball, exactly: of a number, array, mapping or dataclass.

    Of a dataclass only the fields are copied: what it has computed from them was rounded.
    """
    import scipy.sparse

    if value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return load_flint().arb(value)
    if isinstance(value, Mapping):
        return {key: in_balls(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray) or scipy.sparse.issparse(value):
        dense_fits("data in balls", value.shape, "pass fewer samples", _BALL)
        array = value if isinstance(value, np.ndarray) else value.toarray()
        return np.array([load_flint().arb(x) for x in array.ravel().tolist()]).reshape(array.shape)
    if not dataclasses.is_dataclass(value):
        raise CannotCertify(f"a {type(value).__name__} returns floats of unknown rounding")
    twin = object.__new__(type(value))
    for field in dataclasses.fields(value):
        object.__setattr__(twin, field.name, in_balls(getattr(value, field.name)))
    return twin


def floats(matrix: Any) -> Array:
    """The midpoints of a ball matrix."""
    entries = [float(entry.mid()) for entry in matrix.entries()]
    return np.array(entries).reshape(matrix.nrows(), matrix.ncols())


def bracket(
    name: str,
    guess: float,
    size: float,
    first: float,
    test: Callable[[float], bool | None],
    reason: str,
) -> Enclosure:
    """Floats around the guess with ``test`` proved True at the lower one and False at the upper one.

    The half-widths start at ``first``, or the last digit. A test is None where nothing is proved;
    where that is so in the widest bracket, CannotCertify gives the reason.
    """
    if not math.isfinite(guess):
        raise CannotCertify(f"{name} is not finite in floats: {guess!r}")
    ends = []
    for direction, wanted in ((-1, True), (1, False)):
        step = max(math.ulp(guess), first)
        while test(end := guess + direction * step) is not wanted:
            step *= 8
            if not step <= max(_WIDEST * size, 1e-300):
                raise CannotCertify(
                    f"{name} is near {guess!r}, but no bracket of half-width up to {step / 8:.0e} "
                    f"is proved: {reason}"
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


def enclose_eigenvalue(name: str, matrix: Callable[[], Any], index: int) -> Enclosure:
    r"""The index-th largest eigenvalue of a symmetric ball matrix; it may be a multiple one.

    ``matrix`` forms the balls, at the precision in force. With Q the rounded eigenvectors
    :math:`Q^\top(A - sI)Q` has as many positive eigenvalues as :math:`A - sI` (Sylvester's inertia),
    and is diagonal up to rounding: its elimination needs no pivoting, and errors do not grow.
    """
    for bits in _RETRIES:
        try:
            with load_flint().ctx.workprec(bits):
                return _enclose_eigenvalue(name, matrix(), index, bits)
        except CannotCertify as refusal:
            last = refusal
    raise last


def _enclose_eigenvalue(name: str, matrix: Any, index: int, bits: int) -> Enclosure:
    rounded = floats(matrix)
    if not np.isfinite(rounded).all():
        raise CannotCertify(f"{name} is of a matrix beyond the range of floats")
    values, vectors = np.linalg.eigh(rounded)
    basis, transposed = balls(vectors), balls(vectors.T)
    image, gram = transposed * matrix * basis, transposed * basis

    def reached(shift: float) -> bool | None:
        above = positive_pivots((image - shift * gram).tolist())
        return None if above is None else above >= index

    place = len(values) - index, len(values) - index
    guess = float((image[place] / gram[place]).mid())
    size = float(np.abs(values).max())
    reason = f"the eigenvalues around it are not told apart in balls of {bits} bits"
    return bracket(name, guess, size, size * 2.0**-100, reached, reason)


def positive_pivots(rows: list[list[Any]]) -> int | None:
    r"""How many eigenvalues of a symmetric matrix are positive; None if it is not proved.

    The pivots of :math:`LDL^\top` have the signs of the eigenvalues. Of the rows the lower triangle
    is read, and overwritten.
    """
    positive = 0
    for k, row in enumerate(rows):
        pivot = row[k]
        if not (pivot > 0 or pivot < 0):
            return None
        positive += pivot > 0
        for i in range(k + 1, len(rows)):
            factor = rows[i][k] / pivot
            for j in range(k + 1, i + 1):
                rows[i][j] -= factor * rows[j][k]
    return positive
