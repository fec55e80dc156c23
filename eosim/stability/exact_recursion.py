r"""The threshold of a linear rule, proved: its recursion and characteristic polynomial are rational.

The rule's own step is executed on affine forms with rational coefficients, which proves it linear, and
gives :math:`\det(zI - M) = p(z) + \lambda q(z)` exactly. Without the common factors of p and q (modes
that no gradient moves) a root can meet the unit circle only where

.. math:: [p(1) + \lambda q(1)]\;[p(-1) + \lambda q(-1)]\;\prod_{i<j} (1 - z_i z_j) = 0,

a polynomial in :math:`\lambda` whose roots are isolated. No root of the recursion crosses between two
of them, so that one rational curvature in every gap, tested by Schur and Cohn's recursion, decides all.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import operator
from collections import deque
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MethodType, ModuleType
from typing import Any

import numpy as np

from eosim.certified import CannotCertify, Enclosure, load_flint, outward, precise, rational
from eosim.optimizers import Rule


def enclose_critical_sharpness(rule: Rule) -> Enclosure:
    """The curvature above 0 beyond which the spectral radius of a linear rule first exceeds 1."""
    flint, name = load_flint(), type(rule).__name__
    with precise():
        p, q = _characteristic(rule)
        free = p.gcd(q)
        p, q = p // free, q // free
        for root in (1, -1):  # a mode there stays on the circle, and never exceeds it
            while free(root) == 0:
                free //= flint.fmpq_poly([-root, 1])
        if not _contracts(free):
            if any(z.abs_lower() > 1 for z, _ in free.numer().complex_roots()):
                return Enclosure(0.0, 0.0)
            raise CannotCertify(
                f"{name} has a mode that no gradient moves and that is not proved to decay or to grow"
            )
        edges = [flint.arb(0), *_crossings(p, q)]
        for index, edge in enumerate(edges):
            last = index + 1 == len(edges)
            beyond = 2 * edge.upper() + 1 if last else edges[index + 1].lower()
            between = ((edge.upper() + beyond) / 2).mid()
            if not edge.upper() < between < beyond:
                raise CannotCertify(
                    f"{name}: two crossings near {float(edge)!r} are not told apart"
                )
            if not _contracts(p + between.fmpq() * q):
                return outward(edge)
        return Enclosure(math.inf, math.inf)


def _contracts(polynomial: Any) -> bool:
    """Whether all roots of a rational polynomial are inside the unit circle (Schur and Cohn)."""
    a = polynomial.coeffs()  # constant term first
    while len(a) > 1:
        if abs(a[0]) >= abs(a[-1]):
            return False
        a = [a[-1] * x - a[0] * y for x, y in zip(a, a[::-1], strict=True)][1:]
    return True


def _crossings(p: Any, q: Any) -> list[Any]:
    """Positive curvatures, ascending; they include all at which p + curvature q has a root on |z| = 1.

    The product over pairs is Jury's determinant, of a degree below that of p: it is interpolated.
    """
    flint = load_flint()
    x = flint.fmpq_poly([0, 1])
    nodes = range(max(p.degree(), 1))
    pairs = flint.fmpq_poly([0])
    for node in nodes:
        term = flint.fmpq_poly([_pair_product((p + node * q).coeffs())])
        for other in nodes:
            if other != node:
                term *= (x - other) / (node - other)
        pairs += term
    product = pairs * (p(1) + q(1) * x) * (p(-1) + q(-1) * x)
    if product == 0:
        raise CannotCertify("two roots of the recursion are reciprocal at every curvature")
    simple = product // product.gcd(product.derivative())
    real = [z.real for z, _ in simple.numer().complex_roots() if z.imag.is_zero()]
    if not all(root > 0 or root < 0 or root.is_zero() for root in real):
        raise CannotCertify("a crossing is not told apart from curvature 0")
    return sorted((root for root in real if root > 0), key=lambda root: root.mid())


def _pair_product(a: list[Any]) -> Any:
    """The product of 1 - z_i z_j over pairs of roots, coefficients constant term first; the last is 1.

    The determinant of X - Y in Jury 1974, Inners, theorem 2.13.
    """
    n = len(a) - 1
    size = max(n - 1, 0)
    entries = [
        (a[n - j + i] if j >= i else 0) - (a[n - 2 - i - j] if i + j <= n - 2 else 0)
        for i in range(size)
        for j in range(size)
    ]
    return load_flint().fmpq_mat(size, size, entries).det()


def _characteristic(rule: Rule) -> tuple[Any, Any]:
    """p and q, exactly."""
    name = type(rule).__name__
    template = rule.init(np.zeros(1))
    if any(isinstance(entry, (int, np.integer)) for entry in template):
        raise CannotCertify(
            f"{name} counts its steps, so that it has no fixed recursion; certify the rule without "
            "bias correction"
        )
    m = len(template) + 1
    variables = [_Affine({key: Fraction(1)}) for key in range(1, m + 2)]
    state = tuple(
        np.full(np.shape(entry), variable, dtype=object)
        for entry, variable in zip(template, variables[1:m], strict=True)
    )
    try:
        theta, state = _exact(rule).step(np.array(variables[:1]), state, np.array(variables[m:]))
        forms = [_Affine.of(np.asarray(entry, dtype=object).item()) for entry in (theta, *state)]
    except Exception as error:  # whatever a step may do that rationals do not
        raise CannotCertify(f"{name}.step does not run on exact numbers: {error}") from error
    if any(form.terms.get(0) for form in forms):
        raise CannotCertify(f"{name}.step adds a constant: it is not linear")
    matrices = []
    for curvature in (0, 1):
        rows = [[form.terms.get(key, Fraction(0)) for key in range(1, m + 2)] for form in forms]
        for row in rows:
            row[0] += curvature * row.pop()
        exact = [[rational(entry) for entry in row] for row in rows]
        matrices.append(load_flint().fmpq_mat(exact))
    p, moved = (matrix.charpoly() for matrix in matrices)
    return p, moved - p


# Our choice: as many fractions take about ten seconds.
_MOST_ENTRIES = 1_000_000


def _exact(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """A copy in which every float is exact: of a number, an array, a collection or an object.

    Cached properties are dropped from an object: they were computed in floats. ``inside`` are the
    objects of which it is a part.
    """
    within = functools.partial(_exact, inside=(*inside, id(value)))
    if isinstance(value, (float, np.floating)):
        return _Affine.of(float(value))
    if isinstance(value, np.ndarray) and value.dtype.kind in "fO":
        if value.size > _MOST_ENTRIES:
            raise TypeError(f"an array of {value.size} entries is too large to be made exact")
        return np.vectorize(within, otypes=[object])(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(within, value))
    for kind in (tuple, list, deque, set, frozenset):
        if isinstance(value, kind):  # a subclass becomes what it extends
            return kind(map(within, value))
    if isinstance(value, Mapping):
        return {key: within(entry) for key, entry in value.items()}
    if inspect.ismethod(value) and not isinstance(value.__self__, type):
        return MethodType(value.__func__, within(value.__self__))
    plain = not hasattr(value, "__dict__") and not hasattr(value, "__slots__")
    if plain or isinstance(value, (type, ModuleType)) or inspect.isroutine(value):
        return value
    if id(value) in inside:
        raise TypeError(f"a {type(value).__name__} refers back to itself")
    exact, cached = {}, []
    for name in dir(value):
        entry = inspect.getattr_static(value, name)  # properties stay what they are
        if inspect.ismemberdescriptor(entry):  # a slot
            entry = getattr(value, name)
        if isinstance(inspect.getattr_static(type(value), name, None), functools.cached_property):
            cached.append(name)
        elif not name.startswith("__") and (number := within(entry)) is not entry:
            exact[name] = number
    if not exact:
        return value
    twin = copy.copy(value)
    if twin is value:
        raise TypeError(f"the floats of a {type(value).__name__} cannot be replaced")
    for name in cached:
        vars(twin).pop(name, None)
    for name, number in exact.items():
        object.__setattr__(twin, name, number)  # dataclasses may be frozen
    return twin


def _of_numbers(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Hands arrays back to NumPy, which goes through their entries."""

    @functools.wraps(operation)
    def method(self: Any, other: Any) -> Any:
        if isinstance(other, np.ndarray):
            return NotImplemented
        return operation(self, _Affine.of(other))

    return method


@functools.total_ordering
class _Affine:
    """terms[0] + the sum of terms[k] times variable k, in rationals; a float is the rational it is."""

    def __init__(self, terms: dict[int, Fraction]) -> None:
        self.terms = terms

    @classmethod
    def of(cls, value: Any) -> _Affine:
        return value if isinstance(value, cls) else cls({0: Fraction(value)})

    @property
    def number(self) -> Fraction:
        """The value of a form without variables."""
        if any(value for key, value in self.terms.items() if key):
            raise TypeError("the state or the gradient enters other than linearly")
        return self.terms.get(0, Fraction(0))

    @_of_numbers
    def __add__(self, other: Any) -> _Affine:
        keys = {*self.terms, *other.terms}
        return _Affine({key: self.terms.get(key, 0) + other.terms.get(key, 0) for key in keys})

    @_of_numbers
    def __mul__(self, other: Any) -> _Affine:
        form, factor = (other, self.number) if set(self.terms) <= {0} else (self, other.number)
        return _Affine({key: value * factor for key, value in form.terms.items()})

    @_of_numbers
    def __truediv__(self, other: Any) -> _Affine:
        return self * (1 / other.number)

    def __pow__(self, power: int) -> _Affine:
        return _Affine.of(self.number ** operator.index(power))

    def __neg__(self) -> _Affine:
        return self * -1

    @_of_numbers
    def __sub__(self, other: Any) -> _Affine:
        return self + -other

    def __rsub__(self, other: Any) -> _Affine:
        return -self + other

    def __rtruediv__(self, other: Any) -> _Affine:
        return _Affine.of(other) / self

    __radd__, __rmul__ = __add__, __mul__

    def __bool__(self) -> bool:
        return bool(self.number)

    @_of_numbers
    def __eq__(self, other: Any) -> bool:
        return self.number == other.number

    @_of_numbers
    def __lt__(self, other: Any) -> bool:
        return self.number < other.number
