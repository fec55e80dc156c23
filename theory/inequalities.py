r"""Expressions in hyperparameters that range over intervals: their signs, and their smallest positive.

A threshold is the smallest positive of several branches, which are negative or infinite in parts of the
domain: a plain minimum would be false there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import sympy as sp

Ranges = Mapping[sp.Symbol, tuple[float, float]]  # open intervals


class SmallestPositive(sp.Function):
    """The smallest argument that is real and positive, infinite if none is; evaluated on numbers.

    >>> SmallestPositive(-4, sp.Rational(4, 3)), SmallestPositive(-4, sp.I)
    (4/3, oo)
    """

    @classmethod
    def eval(cls, *arguments: sp.Expr) -> sp.Expr | None:
        if not all(argument.is_number for argument in arguments):
            return None
        positive = [argument for argument in arguments if argument.is_extended_positive]
        return min(positive, default=sp.oo)

    def _latex(self, printer: Any) -> str:
        listed = r",\; ".join(printer._print(argument) for argument in self.args)
        return rf"\text{{the smallest positive of }} \left\{{{listed}\right\}}"

    def _sympystr(self, printer: Any) -> str:
        return f"the smallest positive of {printer._print(self.args)}"


def smallest_positive(branches: tuple[sp.Expr, ...], ranges: Ranges) -> sp.Expr:
    """The smallest positive one, given that one of them is positive.

    Of two that is the one with the larger reciprocal: those of negative and of infinite branches
    are smaller than any positive one.
    """
    if len(branches) == 2:
        first, second = branches
        larger = when_positive(1 / first - 1 / second, ranges, strict=False)
        if larger is not None:
            return sp.Piecewise((first, larger), (second, True))
    if len(branches) > 1:
        return SmallestPositive(*branches)
    return branches[0] if branches else sp.oo


def when_positive(expression: sp.Expr, ranges: Ranges, strict: bool) -> sp.Basic | None:
    """When an expression is positive (or 0, unless strict): a polynomial inequality.

    Factors that are certainly positive are left out. None if the expression is not rational, or
    its denominator may change sign.
    """
    if not expression.is_rational_function(*ranges):
        return None
    if certainly_positive(expression, ranges):
        return sp.true
    deciding: sp.Expr = sp.Integer(1)
    numerator, denominator = sp.fraction(sp.factor(sp.together(expression)))
    for part in (numerator, denominator):
        for factor, power in part.as_powers_dict().items():
            if certainly_positive(factor, ranges):
                continue
            if certainly_positive(-factor, ranges):
                deciding *= (-1) ** power
            elif part is denominator:
                return None
            else:
                deciding *= factor**power
    terms = sp.Add.make_args(sp.expand(deciding))
    larger = sp.Add(*(term for term in terms if term.as_coeff_Mul()[0] > 0))
    smaller = sp.Add(*(-term for term in terms if term.as_coeff_Mul()[0] < 0))
    relation = sp.Lt if strict else sp.Le
    return relation(sp.factor(smaller), sp.factor(larger))


def certainly_positive(expression: sp.Expr, ranges: Ranges) -> bool:
    """A certificate: mapped to the positive orthant, all coefficients are positive."""
    free = {symbol: sp.Symbol(f"p_{symbol}", positive=True) for symbol in ranges}
    for symbol, (low, high) in ranges.items():
        p = free[symbol]
        share = p if math.isinf(high) else sp.Rational(high - low) * p / (1 + p)
        expression = expression.subs(symbol, sp.Rational(low) + share)
    parts = sp.fraction(sp.cancel(sp.together(expression)))
    variables = list(free.values()) or [sp.Symbol("z")]
    signs = {
        coefficient > 0 for part in parts for coefficient in sp.Poly(part, *variables).coeffs()
    }
    return len(signs) == 1
