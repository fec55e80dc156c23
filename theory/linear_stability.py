r"""Stability thresholds of linear update rules, derived by executing their ``step`` on symbols.

On the one-dimensional quadratic :math:`\lambda x^2/2` a rule with symbolic hyperparameters maps
(x, buffers) linearly; its characteristic polynomial and Jury's conditions give every curvature at
which a root can meet the unit circle (the branches). A rule that is stable at small curvatures loses
stability at its smallest positive branch; it has one if its theta answers to the gradient at all, as
then a root tends to infinity with the curvature. What is printed holds in the whole domain.
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
from eosim.optimizers import check_rule, needs_local
from theory.claim import Claim, Kind, Refuted, Step
from theory.inequalities import smallest_positive, when_positive
from theory.jury import jury_conditions

CURVATURE = sp.Symbol("lambda", positive=True)
THRESHOLD = sp.Symbol("lambda_c", positive=True)
Z = sp.Symbol("z")

_NAMES = {"lr": "eta", "momentum": "beta", "weight_decay": "gamma"}  # the literature's symbols
_SAMPLES = 24  # random points of a spectral route; our choice: half a second a rule
_RUNS = 3  # random points of a simulation route
_STEPS = 1000  # of a simulation where no curvature is too large
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

    @property
    def ranges(self) -> Mapping[sp.Symbol, tuple[float, float]]:
        """The domains, by symbol."""
        return {self.symbols[name]: domain for name, domain in self.domains.items()}

    @cached_property
    def matrix(self) -> sp.Matrix:
        """M with (x, buffers) -> M (x, buffers), read off the shipped step."""
        x = sp.Symbol("x")
        name = type(self.rule).__name__
        template = self._on_symbols("init", x)
        if not isinstance(template, tuple):
            raise TypeError(f"{name}.init must return a tuple, got {type(template).__name__}")
        if any(isinstance(entry, (int, np.integer)) for entry in template):
            raise ValueError(
                f"{name} counts its steps, so it has no fixed recursion matrix; derive the rule "
                "without bias correction"
            )
        buffers = sp.symbols(f"s1:{len(template) + 1}")
        variables = (x, *buffers)
        theta, state = self._stepped(x, buffers)
        image = sp.Matrix(
            [sp.expand(sp.nsimplify(entry, rational=True)) for entry in (theta, *state)]
        )  # decimals that the step is written with are the fractions they stand for
        matrix = image.jacobian(variables)
        rest = (image - matrix * sp.Matrix(variables)).applyfunc(sp.expand)
        if matrix.has(*variables) or not rest.is_zero_matrix:
            raise ValueError(
                f"{name}.step is not linear in (theta, state, gradient); freeze the preconditioner of "
                "an adaptive rule first"
            )
        return matrix.applyfunc(self._tidy)

    def _stepped(self, x: sp.Symbol, buffers: tuple[sp.Symbol, ...]) -> tuple[Any, tuple[Any, ...]]:
        """One shipped step, of the form that a rule promises."""
        name = type(self.rule).__name__
        stepped = self._on_symbols("step", x, buffers, CURVATURE * x)
        if not isinstance(stepped, tuple) or len(stepped) != 2 or not isinstance(stepped[1], tuple):
            got = type(stepped).__name__
            if isinstance(stepped, tuple):
                got = f"({', '.join(type(entry).__name__ for entry in stepped)})"
            raise TypeError(
                f"{name}.step must return (theta, state) with a tuple as state, got {got}"
            )
        if len(stepped[1]) != len(buffers):
            raise ValueError(
                f"{name}.step must return a state of the length of init's, {len(buffers)}; got "
                f"{len(stepped[1])}"
            )
        return stepped

    def _on_symbols(self, method: str, *arguments: Any) -> Any:
        """A method of the rule; what stops it on symbols is said in words."""
        try:
            return getattr(self.rule, method)(*arguments)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{type(self.rule).__name__}.{method} does not run on symbols ({error}): a rule that "
                "compares, or calls NumPy, cannot be derived; if it is linear, "
                "eosim.stability.critical_sharpness gives its threshold in numbers"
            ) from error

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
                if root != 0 and self._somewhere_positive(root):
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

        None that runs on symbols, that is. Branches that are positive nowhere in the domain are left
        out, as in `branches`.
        """
        if hasattr(self.rule, "critical_branches"):
            branches = [sp.sympify(branch) for branch in self.rule.critical_branches()]
            return tuple(self._tidy(b) for b in branches if self._somewhere_positive(b))
        if hasattr(self.rule, "critical_sharpness"):
            try:
                closed_form = self.rule.critical_sharpness()
            except TypeError:  # it compares symbols
                return ()
            return (self._tidy(sp.sympify(closed_form)),)
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
        """Factored for reading, so that factors are positive where the expression is."""
        samples = [{**point, CURVATURE: 1} for point in self.points(_RUNS)]
        positive = (point for point in samples if expression.subs(point).is_positive)
        point = next(positive, samples[0])
        result: sp.Expr = sp.Integer(1)
        for factor, power in sp.factor(expression).as_powers_dict().items():
            if factor.is_Add:
                if factor.subs(point).is_negative:
                    factor, result = sp.expand(-factor), result * (-1) ** power
                factor = sp.collect(factor, CURVATURE, sp.factor)
            result *= factor**power
        return result

    def _somewhere_positive(self, expression: sp.Expr) -> bool:
        values = (complex(expression.subs(point)) for point in self.points(_SAMPLES))
        return any(value.real > 0 for value in values if abs(value.imag) < 1e-12)

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
            Step(f"{name} at" + self._remark(name, branch), sp.Eq(CURVATURE, branch, evaluate=False))
            for name, branch in self.branches.items()
        ]  # fmt: skip
        return [*steps, Step("threshold", self.statement(self.derived))]

    def _remark(self, name: str, branch: sp.Expr) -> str:
        always = when_positive(branch, self.ranges, strict=True) == sp.true
        where = "" if always else ", where that is real and positive"
        return where if name in self.binding else f"{where} (never the smallest)"

    @staticmethod
    def statement(threshold: sp.Expr) -> sp.Basic:
        """That the threshold is this expression."""
        return sp.Eq(THRESHOLD, threshold, evaluate=False)

    @cached_property
    def derived(self) -> sp.Expr:
        """The threshold by the derived branches that bind somewhere."""
        return self._threshold(tuple(self.binding.values()))

    @cached_property
    def printed(self) -> sp.Expr:
        """The threshold that a claim prints: by the shipped branches, if there are any."""
        return self._threshold(self.shipped) if self.shipped else self.derived

    def _threshold(self, branches: tuple[sp.Expr, ...]) -> sp.Expr:
        """One expression that is true in the whole domain.

        0 where the rule is unstable at small curvatures: there the coefficient of the lowest power of
        the curvature is negative in one of Jury's conditions. Else the smallest positive branch.
        """
        smallest = smallest_positive(branches, self.ranges)
        # the routes judge the others
        known = [start for start in self._starts() if start is not None]
        return sp.Piecewise((smallest, sp.And(*known)), (0, True))

    def _starts(self) -> list[sp.Basic | None]:
        """When Jury's conditions hold at small curvatures; None where that is no inequality."""
        starts = []
        for name, condition in jury_conditions(self.polynomial).items():
            if condition == 0 or (self.polynomial.degree() == 2 and name.startswith("inner")):
                continue  # a mode on the circle that no gradient moves; half of F(1) + F(-1)
            numerator, denominator = sp.fraction(sp.together(condition))
            lowest = sp.Poly(numerator, CURVATURE).coeffs()[-1] / denominator
            starts.append(when_positive(lowest, self.ranges, strict=True))
        return starts

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
        for point in self.points(_SAMPLES):
            values = [sp.nsimplify(side.subs(point)) for side in (self.derived, self.printed)]
            if values[0] != values[1]:
                raise Refuted(f"at {_shown(point)} the derived and shipped thresholds are {values}")
        # Conditions that are affine in the curvature hold, from small curvatures on, exactly up to the
        # smallest positive zero: then the smallest branch is the threshold, with no sampling.
        starts = self._starts()
        proven = None not in starts and all(map(_is_affine, self.conditions.values()))
        count = "one branch" if len(derived) == 1 else f"{len(derived)} branches"
        how = "every Jury condition is affine" if proven else "branches only"
        if proven:
            cases = [start for start in starts if start != sp.true]
            how += ", and positive at 0+" + (
                f" where {', '.join(map(str, cases))}" if cases else ""
            )
        return f"{count} derived, shipped form identical; {how}"

    def threshold_at(self, point: Mapping[sp.Symbol, sp.Rational]) -> sp.Rational:
        """The printed expression at exact values."""
        return sp.nsimplify(self.printed.subs(point))

    def numeric_rule(self, point: Mapping[sp.Symbol, sp.Rational]) -> Any:
        """The shipped class at float values."""
        values = {name: float(point[symbol]) for name, symbol in self.symbols.items()}
        return type(self.rule)(**values)

    def check_spectral(self) -> str:
        """The printed threshold against spectral radii at exact rationals, and the numeric finder."""
        worst = 0.0
        for point in self.points(_SAMPLES):
            exact = self.threshold_at(point)
            for curvature, unstable in _sides(exact):
                polynomial = sp.Poly(
                    self.polynomial.as_expr().subs({**point, CURVATURE: curvature}), Z
                )
                radius = max(abs(root) for root in polynomial.nroots(n=30))
                if (radius > 1) != unstable:
                    raise Refuted(
                        f"at {_shown(point)} the printed threshold is {float(exact):.6g}, but at lambda "
                        f"= {float(curvature):.6g} the spectral radius is {float(radius):.9f}"
                    )
            found = eosim.stability.critical_sharpness(self.numeric_rule(point))
            if exact in (0, sp.oo):
                worst = worst if found == float(exact) else math.inf
            else:
                worst = max(worst, abs(found / float(exact) - 1))
        if worst > 1e-9:
            raise Refuted(f"the numeric finder differs by {worst:.2g} relative")
        return f"{_SAMPLES} exact points, both sides; numeric finder within {worst:.0e}"

    def check_simulation(self) -> str:
        """A run of the shipped rule shrinks at 0.99 of the threshold and grows at 1.01."""
        longest = 0
        for point in self.points(_RUNS):
            rule, exact = self.numeric_rule(point), self.threshold_at(point)
            for side, unstable in _sides(exact):
                curvature = float(side)
                drift, response = eosim.stability.linear.linearised(rule)
                drift[:, 0] += curvature * response
                radius = np.abs(np.linalg.eigvals(drift)).max()
                # enough steps for a hundredfold change; transients of a Jordan block are below it
                steps = _STEPS
                if exact != sp.oo:
                    steps = math.ceil(math.log(1e6) / abs(math.log(radius)))
                longest = max(longest, steps)
                run = eosim.run(
                    eosim.Quadratic([[curvature]]), rule, [1.0], steps, record={}, every=steps
                )
                grows = run.status is eosim.Status.DIVERGED or abs(run["theta"][-1, 0]) > 1
                if grows != unstable:
                    raise Refuted(
                        f"{rule} at lambda = {curvature:.6g}, with the threshold {float(exact):.6g}, "
                        f"{'grew' if grows else 'shrank'} over {steps} steps"
                    )
        return f"{_RUNS} rules shrink at 0.99 and grow at 1.01 (up to {longest} steps)"


def _sides(threshold: sp.Rational) -> list[tuple[sp.Rational, bool]]:
    """Curvatures just below and above a threshold, as far as it has sides, and whether unstable."""
    if threshold == 0:
        return [(_OFFSET, True)]
    if threshold == sp.oo:
        return [(1 / _OFFSET, False)]
    return [(threshold * (1 - _OFFSET), False), (threshold * (1 + _OFFSET), True)]


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
    if callable(getattr(rule, "step", None)) and needs_local(rule):
        raise ValueError(
            f"{rule.__name__}.step asks for local derivatives: its learning rate depends on the state, "
            "so that it is not linear"
        )
    domains = {**_hyperparameters(rule), **(within or {})}
    symbols = {name: sp.Symbol(_NAMES.get(name, name), positive=True) for name in domains}
    try:
        instance = rule(**symbols)
    except (TypeError, ValueError, AttributeError) as error:
        raise TypeError(
            f"{rule.__name__} does not accept symbolic hyperparameters ({error}); let its validation "
            "pass values that have the attribute free_symbols"
        ) from error
    check_rule(instance)
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


def _is_affine(condition: sp.Expr) -> bool:
    return bool(sp.Poly(condition, CURVATURE).degree() <= 1)


def _shown(point: Mapping[sp.Symbol, sp.Rational]) -> str:
    return ", ".join(f"{symbol} = {float(value):.4g}" for symbol, value in point.items())


def threshold_claim(
    name: str, rule: type, source: str, within: Mapping[str, tuple[float, float]] | None = None
) -> Claim:
    """The claim that a rule's shipped closed form is its exact threshold."""
    derivation = derive(rule, within)
    ranges = [
        f"{derivation.symbols[key]} in ({low:g}, {high:g})"
        for key, (low, high) in derivation.domains.items()
    ]
    return Claim(
        name=name,
        statement=derivation.statement(derivation.printed),
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
