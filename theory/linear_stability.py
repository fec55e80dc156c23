r"""Stability thresholds of linear update rules, derived by executing their ``step`` on symbols.

On the one-dimensional quadratic :math:`\lambda x^2/2` a rule with symbolic hyperparameters maps
(x, buffers) linearly; its characteristic polynomial and Jury's conditions give every curvature at
which a root can meet the unit circle (the branches). The threshold is the smallest positive branch.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import sympy as sp

import eosim
from theory.claim import Claim, Kind, Refuted, Step
from theory.jury import jury_conditions

CURVATURE = sp.Symbol("lambda", positive=True)
THRESHOLD = sp.Symbol("lambda_c", positive=True)
Z = sp.Symbol("z")

_NAMES = {"lr": "eta", "momentum": "beta", "weight_decay": "gamma"}  # the literature's symbols
_SAMPLES = 24  # random points of a spectral route; our choice: half a second a rule
_RUNS = 3  # random points of a simulation route
_OFFSET = sp.Rational(1, 100)  # how far beside the threshold the two sides are tested


@dataclass(frozen=True, eq=False)
class Derivation:
    """Everything that follows from one rule's ``step``.

    Attributes
    ----------
    rule : Rule
        With symbolic hyperparameters.
    symbols : mapping from hyperparameter names to symbols
    domains : mapping from hyperparameter names to (lower, upper)
    """

    rule: Any
    symbols: Mapping[str, sp.Symbol]
    domains: Mapping[str, tuple[float, float]]

    @cached_property
    def matrix(self) -> sp.Matrix:
        """M with (x, buffers) -> M (x, buffers), read off the shipped step."""
        x = sp.Symbol("x")
        template = self.rule.init(x)
        if any(isinstance(entry, (int, np.integer)) for entry in template):
            raise ValueError(
                f"{type(self.rule).__name__} counts its steps, so it has no fixed recursion matrix; "
                "derive the rule without bias correction"
            )
        buffers = sp.symbols(f"s1:{len(template) + 1}")
        variables = (x, *buffers)
        theta, state = self.rule.step(x, buffers, CURVATURE * x)
        image = sp.Matrix([sp.expand(sp.sympify(entry)) for entry in (theta, *state)])
        matrix = image.jacobian(variables)
        rest = (image - matrix * sp.Matrix(variables)).applyfunc(sp.expand)
        if matrix.has(*variables) or not rest.is_zero_matrix:
            raise ValueError(
                f"{type(self.rule).__name__}.step is not linear in (theta, state, gradient); freeze "
                "the preconditioner of an adaptive rule first"
            )
        return matrix.applyfunc(self._tidy)

    @cached_property
    def polynomial(self) -> sp.Poly:
        """det(z I - M)."""
        return sp.Poly(self.matrix.charpoly(Z).as_expr(), Z)

    @cached_property
    def conditions(self) -> dict[str, sp.Expr]:
        """Jury's conditions, each to be positive."""
        return {name: self._tidy(c) for name, c in jury_conditions(self.polynomial).items()}

    @cached_property
    def branches(self) -> dict[str, sp.Expr]:
        """Positive curvatures at which a root can meet the unit circle, by the kind of crossing.

        Branches that are positive nowhere in the domain are left out.
        """
        found: dict[str, sp.Expr] = {}
        for name in ("root at z = 1", "root at z = -1", "complex pair"):
            condition = self.conditions.get(name)
            if condition is None or not condition.has(CURVATURE):
                continue
            for root in sp.roots(sp.Poly(condition, CURVATURE)):
                if root != 0 and any(value > 0 for value in self._values(root)):
                    label = name if name not in found else f"{name} ({len(found)})"
                    found[label] = self._tidy(root)
        return found

    @cached_property
    def binding(self) -> dict[str, sp.Expr]:
        """The branches that are the smallest positive one somewhere in the domain."""
        smallest: set[str] = set()
        for point in self.points(20 * _SAMPLES):
            values = {name: sp.N(b.subs(point)) for name, b in self.branches.items()}
            positive = {name: value for name, value in values.items() if value.is_positive}
            if positive:
                smallest.add(min(positive, key=lambda name: positive[name]))
        return {name: branch for name, branch in self.branches.items() if name in smallest}

    @property
    def shipped(self) -> tuple[sp.Expr, ...]:
        """The closed form beside the rule, evaluated on the same symbols; empty if there is none.

        Branches that are positive nowhere in the domain are left out, as in `branches`.
        """
        if hasattr(self.rule, "critical_branches"):
            branches = [sp.sympify(branch) for branch in self.rule.critical_branches()]
            return tuple(
                self._tidy(b) for b in branches if any(value > 0 for value in self._values(b))
            )
        if hasattr(self.rule, "critical_sharpness"):
            return (self._tidy(sp.sympify(self.rule.critical_sharpness())),)
        return ()

    def points(self, count: int) -> list[dict[sp.Symbol, sp.Rational]]:
        """Random exact rationals inside the domain; the same ones every time."""
        generator = random.Random(0)
        result = []
        for _ in range(count):
            point = {}
            for name, (low, high) in self.domains.items():
                top = high if math.isfinite(high) else low + 3
                share = sp.Rational(generator.randint(20, 980), 1000)
                point[self.symbols[name]] = sp.Rational(low) + share * sp.Rational(top - low)
            result.append(point)
        return result

    def _tidy(self, expression: sp.Expr) -> sp.Expr:
        """Factored for reading: factors that are negative in the domain are written as 1 - beta."""
        (point,) = self.points(1)
        result: sp.Expr = sp.Integer(1)
        for factor, power in sp.factor(expression).as_powers_dict().items():
            if factor.is_Add:
                if factor.subs({**point, CURVATURE: 1}).is_negative:
                    factor, result = sp.expand(-factor), result * (-1) ** power
                factor = sp.collect(factor, CURVATURE, sp.factor)
            result *= factor**power
        return result

    def _values(self, expression: sp.Expr) -> list[float]:
        values = (complex(expression.subs(point)) for point in self.points(_SAMPLES))
        return [value.real for value in values if abs(value.imag) < 1e-12]

    def steps(self) -> list[Step]:
        """The derivation, line by line."""
        steps = [
            Step("one step on (x, buffers), from the rule's own step", self.matrix),
            Step("characteristic polynomial", sp.collect(self.polynomial.as_expr(), Z, self._tidy)),
        ]
        steps += [
            Step(f"stable while ({name})", sp.Gt(condition, 0, evaluate=False))
            for name, condition in self.conditions.items()
        ]
        steps += [
            Step(f"{name} at" + ("" if name in self.binding else " (never the smallest)"),
                 sp.Eq(CURVATURE, branch, evaluate=False))
            for name, branch in self.branches.items()
        ]  # fmt: skip
        return [*steps, Step("threshold", self.statement())]

    def statement(self) -> sp.Basic:
        """The threshold as the smallest positive of the binding branches."""
        branches = list(self.binding.values())
        if not branches:
            return sp.Eq(THRESHOLD, sp.oo, evaluate=False)
        smallest = branches[0] if len(branches) == 1 else sp.Min(*branches, evaluate=False)
        return sp.Eq(THRESHOLD, smallest, evaluate=False)

    def check_symbolic(self) -> str:
        """Derived branches equal shipped ones, and stability is lost exactly at the smallest."""
        shipped = list(self.shipped)
        for name, branch in self.binding.items():
            match = [s for s in shipped if sp.simplify(s - branch) == 0]
            if shipped and not match:
                raise Refuted(
                    f"{name} at {branch} is derived from step, but the shipped closed form is "
                    f"{', '.join(map(str, shipped))}"
                )
        derived = list(self.binding.values())
        for closed_form in shipped:
            if all(sp.simplify(closed_form - branch) != 0 for branch in derived):
                raise Refuted(
                    f"the shipped branch {closed_form} is not among the derived {derived}"
                )
        # Conditions that are affine in the curvature and positive just above 0 hold exactly up to
        # the smallest positive zero: then the smallest branch is the threshold, with no sampling.
        proven = all(self._positive_at_first(condition) for condition in self.conditions.values())
        count = "one branch" if len(derived) == 1 else f"{len(derived)} branches"
        how = "every Jury condition is affine and positive at 0+" if proven else "branches only"
        return f"{count} derived, shipped form identical; {how}"

    def _positive_at_first(self, condition: sp.Expr) -> bool:
        """Whether an expression is affine in the curvature and provably positive just above 0."""
        numerator, denominator = sp.fraction(sp.together(condition))
        if denominator.has(CURVATURE) or sp.degree(numerator, CURVATURE) > 1:
            return False
        start = condition.subs(CURVATURE, 0)
        first = start if sp.simplify(start) != 0 else sp.diff(condition, CURVATURE)
        return self._certainly_positive(first)

    def _certainly_positive(self, expression: sp.Expr) -> bool:
        """A certificate: mapped to the positive orthant, all coefficients are positive."""
        positive = []
        for name, (low, high) in self.domains.items():
            free = sp.Symbol(f"p_{name}", positive=True)
            share = free if math.isinf(high) else sp.Rational(high - low) * free / (1 + free)
            expression = expression.subs(self.symbols[name], sp.Rational(low) + share)
            positive.append(free)
        parts = sp.fraction(sp.cancel(sp.together(expression)))
        signs = {
            coefficient > 0
            for part in parts
            for coefficient in sp.Poly(part, *positive or [Z]).coeffs()
        }
        return len(signs) == 1

    def threshold_at(self, point: Mapping[sp.Symbol, sp.Rational]) -> sp.Rational:
        """The smallest positive branch at exact values (shipped ones, where there are any)."""
        candidates = self.shipped or tuple(self.branches.values())
        values = [sp.nsimplify(candidate.subs(point)) for candidate in candidates]
        return min(value for value in values if value.is_finite and value > 0)

    def numeric_rule(self, point: Mapping[sp.Symbol, sp.Rational]) -> Any:
        """The shipped class at float values."""
        values = {name: float(point[symbol]) for name, symbol in self.symbols.items()}
        return type(self.rule)(**values)

    def check_spectral(self) -> str:
        """Spectral radius on both sides at exact rationals, and the numeric finder to 1e-9."""
        worst = 0.0
        for point in self.points(_SAMPLES):
            exact = self.threshold_at(point)
            for side in (-1, 1):
                curvature = exact * (1 + side * _OFFSET)
                polynomial = sp.Poly(
                    self.polynomial.as_expr().subs({**point, CURVATURE: curvature}), Z
                )
                radius = max(abs(root) for root in polynomial.nroots(n=30))
                if (radius > 1) != (side > 0):
                    raise Refuted(
                        f"at {_shown(point)}, lambda = {float(curvature):.6g} ({1 + side * 0.01} of "
                        f"the threshold) the spectral radius is {float(radius):.9f}"
                    )
            found = eosim.stability.critical_sharpness(self.numeric_rule(point))
            worst = max(worst, abs(found / float(exact) - 1))
        if worst > 1e-9:
            raise Refuted(f"the numeric finder differs by {worst:.2g} relative")
        return f"{_SAMPLES} exact points, both sides; numeric finder within {worst:.0e}"

    def check_simulation(self) -> str:
        """A run of the shipped rule shrinks at 0.99 of the threshold and grows at 1.01."""
        longest = 0
        for point in self.points(_RUNS):
            rule, exact = self.numeric_rule(point), float(self.threshold_at(point))
            for factor in (0.99, 1.01):
                curvature = factor * exact
                drift, response = eosim.stability.linear.linearised(rule)
                drift[:, 0] += curvature * response
                radius = np.abs(np.linalg.eigvals(drift)).max()
                # enough steps for a hundredfold change; transients of a Jordan block are below it
                steps = math.ceil(math.log(1e6) / abs(math.log(radius)))
                longest = max(longest, steps)
                run = eosim.run(
                    eosim.Quadratic([[curvature]]), rule, [1.0], steps, record={}, every=steps
                )
                grows = run.status is eosim.Status.DIVERGED or abs(run["theta"][-1, 0]) > 1
                if grows != (factor > 1):
                    raise Refuted(
                        f"{rule} at lambda = {curvature:.6g} ({factor} of the threshold) "
                        f"{'grew' if grows else 'shrank'} over {steps} steps"
                    )
        return f"{_RUNS} rules shrink at 0.99 and grow at 1.01 (up to {longest} steps)"


def derive(rule: type, within: Mapping[str, tuple[float, float]] | None = None) -> Derivation:
    """Derive the threshold of a rule class: its hyperparameters become symbols.

    Dataclass fields with ``metadata={"domain": Interval}`` range over that domain; otherwise ``lr``
    is positive and every other hyperparameter lies in (0, 1). ``within`` narrows the ranges.

    Examples
    --------
    >>> import eosim
    >>> derive(eosim.HeavyBall).branches
    {'root at z = -1': 2*(beta + 1)/eta}
    """
    if not isinstance(rule, type):
        raise TypeError(f"derive takes a rule class, got {rule!r}; pass {type(rule).__name__}")
    domains = {**_hyperparameters(rule), **(within or {})}
    symbols = {name: sp.Symbol(_NAMES.get(name, name), positive=True) for name in domains}
    try:
        instance = rule(**symbols)
    except TypeError as error:
        raise TypeError(
            f"{rule.__name__} does not accept symbolic hyperparameters ({error}); let its validation "
            "pass values that have the attribute free_symbols"
        ) from error
    return Derivation(instance, symbols, domains)


def _hyperparameters(rule: type) -> dict[str, tuple[float, float]]:
    if dataclasses.is_dataclass(rule):
        metadata = {field.name: field.metadata for field in dataclasses.fields(rule) if field.init}
    else:
        parameters = list(inspect.signature(rule).parameters)
        metadata = {name: {} for name in parameters}  # type: ignore[misc]
    domains = {}
    for name, data in metadata.items():
        default = (0.0, math.inf) if name == "lr" else (0.0, 1.0)
        domain = data.get("domain")
        domains[name] = default if domain is None else (float(domain.lower), float(domain.upper))
    return domains


def _shown(point: Mapping[sp.Symbol, sp.Rational]) -> str:
    return ", ".join(f"{symbol} = {float(value):.4g}" for symbol, value in point.items())


def threshold_claim(
    name: str, rule: type, source: str, within: Mapping[str, tuple[float, float]] | None = None
) -> Claim:
    """The claim that a rule's shipped closed form is its exact threshold."""
    derivation = derive(rule, within)
    branches = derivation.shipped
    smallest = branches[0] if len(branches) == 1 else sp.Min(*branches, evaluate=False)
    ranges = [
        f"{derivation.symbols[key]} in ({low:g}, {high:g})"
        for key, (low, high) in derivation.domains.items()
    ]
    if len(branches) > 1:
        ranges.append("Min over the positive branches")
    return Claim(
        name=name,
        statement=sp.Eq(THRESHOLD, smallest, evaluate=False),
        kind=Kind.EXACT,
        source=source,
        assumptions=ranges,
        derivation=derivation.steps,
        routes={
            "symbolic": derivation.check_symbolic,
            "spectral": derivation.check_spectral,
            "simulation": derivation.check_simulation,
        },
    )


def claims() -> list[Claim]:
    """The threshold of every shipped rule."""
    cohen = "Cohen et al. 2022, arXiv 2207.14484"
    return [
        threshold_claim("gradient_descent", eosim.GradientDescent, "classical"),
        threshold_claim("heavy_ball", eosim.HeavyBall, f"Polyak 1964; {cohen}"),
        threshold_claim("nesterov", eosim.Nesterov, cohen),
        threshold_claim("ema_momentum", eosim.EMAMomentum, f"{cohen} (38/lr at beta = 0.9)"),
        threshold_claim(
            "quasi_hyperbolic", eosim.QuasiHyperbolic, "derived here", within={"nu": (0, 1)}
        ),
        threshold_claim("quasi_hyperbolic_any_nu", eosim.QuasiHyperbolic, "derived here"),
    ]
