"""A claim: a statement, where it comes from, its derivation, and independent routes to check it."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sympy as sp


class Kind(enum.Enum):
    """What a claim asserts: the kind decides which inequality its checks test."""

    EXACT = "equality"
    UPPER = "upper bound"
    LOWER = "lower bound"
    ASYMPTOTIC = "limit"


class Refuted(Exception):
    """Raised by a route that contradicts the claim; the message says with which values."""


class Step(NamedTuple):
    """One line of a derivation."""

    text: str
    expression: sp.Basic


class Verdict(NamedTuple):
    """What one route found."""

    route: str
    holds: bool
    evidence: str
    seconds: float


@dataclass(frozen=True)
class Claim:
    """A statement with its proof and its checks.

    Attributes
    ----------
    name : str
    statement : sympy relation
    kind : Kind
    source : str
        Paper and section, or "derived here".
    assumptions : sequence of str
        What the symbols range over.
    derivation : callable returning the steps
        Each step is computed from the shipped code when it is asked for.
    routes : mapping from route names to checks
        A check returns its evidence as a sentence, or raises `Refuted`.
    """

    name: str
    statement: sp.Basic
    kind: Kind
    source: str
    assumptions: Sequence[str]
    derivation: Callable[[], list[Step]]
    routes: Mapping[str, Callable[[], str]]

    def steps(self) -> list[Step]:
        """The derivation, line by line."""
        return self.derivation()

    def latex(self) -> str:
        """The statement in LaTeX."""
        return str(sp.latex(self.statement))

    def check(self) -> list[Verdict]:
        """Walk every route. A route that crashes has not confirmed anything: it does not hold."""
        verdicts = []
        for route, confirm in self.routes.items():
            start = time.perf_counter()
            try:
                holds, evidence = True, confirm()
            except Refuted as refuted:
                holds, evidence = False, str(refuted)
            except Exception as error:
                holds, evidence = False, f"{type(error).__name__}: {error}"
            verdicts.append(Verdict(route, holds, evidence, time.perf_counter() - start))
        return verdicts


def require_zero(difference: sp.Basic, meaning: str) -> None:
    """Raise `Refuted` unless an expression simplifies to 0."""
    rest = sp.simplify(difference)
    if rest != 0:
        raise Refuted(f"{meaning}: the difference is {rest}, not 0")
