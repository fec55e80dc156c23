r"""Catapults: recurrences, invariants, phase boundaries and closed forms, from the shipped maps."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import sympy as sp

from eosim import catapult
from eosim.catapult import closed_forms
from theory.claim import Claim, Kind, Refuted, Step, require_zero

_PAPER = "Meltzer & Liu 2023, arXiv 2301.07737"
eps, a, Y, w, delta = sp.symbols("epsilon a Y w delta")
u, v, s = sp.symbols("u v s")
lr, kappa, e, f, ntk = sp.symbols("eta kappa e f lambda")


def at_rationals(
    differences: Callable[[], Mapping[str, sp.Expr]], count: int = 30
) -> Callable[[], str]:
    """A route: identities, given as differences, vanish exactly at random rationals."""

    def route() -> str:
        generator = random.Random(7)
        for name, difference in differences().items():
            symbols = sorted(difference.free_symbols, key=str)
            for _ in range(count):
                point = {x: sp.Rational(generator.randint(-30, 30), 10) for x in symbols}
                value = difference.subs(point)
                if value.has(sp.zoo, sp.nan):
                    continue
                if sp.nsimplify(value) != 0:
                    raise Refuted(f"{name}: {value} instead of 0 at {point}")
        return f"{count} exact rational points each, difference exactly 0"

    return route


def identity(
    name: str,
    statement: sp.Basic,
    differences: Callable[[], Mapping[str, sp.Expr]],
    summary: str,
    assumptions: Sequence[str],
    simulation: Callable[[], str] | None = None,
    source: str = "derived here",
    kind: Kind = Kind.EXACT,
) -> Claim:
    """A claim made of identities: shown, simplified to 0, and evaluated at rationals."""

    def symbolic() -> str:
        for meaning, difference in differences().items():
            require_zero(difference, meaning)
        return summary

    def steps() -> list[Step]:
        return [Step(f"{meaning}: difference", d) for meaning, d in differences().items()]

    routes: dict[str, Callable[[], str]] = {
        "symbolic": symbolic,
        "rationals": at_rationals(differences),
    }
    if simulation is not None:
        routes["simulation"] = simulation
    return Claim(name, statement, kind, source, assumptions, steps, routes)


def _recurrence() -> Claim:
    """The map of (output, NTK) from a step on the weights, through inner products."""
    n, S, P, y = sp.symbols("n S P y", positive=True)  # S = |u|^2 + |v|^2, P = u.v

    def differences() -> dict[str, sp.Expr]:
        root = sp.sqrt(n)
        residual = P / root - y
        k = lr * residual / root
        # u' = u - k v and v' = v - k u
        product = P * (1 + k**2) - k * S
        squares = S * (1 + k**2) - 4 * k * P
        output, kernel = catapult.output_map(P / root, S / n, residual, lr, 1 / n)
        c = lr / root
        scaled_eps, scaled_a = catapult.residual_map(c * residual, lr * S / n, c * y)
        return {
            "output": product / root - output,
            "NTK": squares / n - kernel,
            "normalised residual": c * (output - y) - scaled_eps,
            "normalised NTK": lr * kernel - scaled_a,
        }

    def rationals() -> str:
        generator = random.Random(8)
        for _ in range(20):
            size = 4  # so that sqrt(n) is rational
            U, V = ([sp.Rational(generator.randint(-9, 9), 7) for _ in range(size)] for _ in "uv")
            rate, target = sp.Rational(generator.randint(1, 9), 11), sp.Rational(2, 3)
            inner = sum(p * q for p, q in zip(U, V, strict=True))
            residual = inner / 2 - target
            moved = [
                (p - rate * residual * q / 2, q - rate * residual * p / 2)
                for p, q in zip(U, V, strict=True)
            ]
            output, kernel = catapult.output_map(
                inner / 2, sum(p**2 + q**2 for p, q in zip(U, V, strict=True)) / 4,
                residual, rate, sp.Rational(1, 4),
            )  # fmt: skip
            if sum(p * q for p, q in moved) / 2 != output:
                raise Refuted(f"output differs at u = {U}, v = {V}")
            if sum(p**2 + q**2 for p, q in moved) / 4 != kernel:
                raise Refuted(f"NTK differs at u = {U}, v = {V}")
        return "20 rational nets of width 4, stepped weight by weight: equal exactly"

    claim = identity(
        "catapult_recurrence",
        sp.Eq(sp.Symbol("lambda'"), catapult.output_map(f, ntk, e, lr, kappa)[1], evaluate=False),
        differences,
        "output, NTK and their normalised forms equal one step on the weights",
        ["two-layer linear net of width n, one datum x = 1", "kappa = 1/n", "e = f - y"],
        source=f"Lewkowycz et al. 2020, arXiv 2003.02218; {_PAPER}",
    )
    routes = {"symbolic": claim.routes["symbolic"], "rationals": rationals}
    return Claim(
        claim.name, claim.statement, claim.kind, claim.source, claim.assumptions,
        claim.derivation, routes,
    )  # fmt: skip


def _boundaries() -> Claim:
    """At Y = 0: the loss grows iff a > 2 + w, and a falls iff a < 4."""

    def differences() -> dict[str, sp.Expr]:
        after, kernel = catapult.residual_map(eps, a)
        growth = after**2 / eps**2 - 1
        return {
            "growth of w in one step, factored": growth - (a - eps**2) * (a - 2 - eps**2),
            "change of a": kernel - a - eps**2 * (a - 4),
        }

    def simulation() -> str:
        below, above = catapult.phase_diagram([3.99, 4.01], 1e-8, max_steps=20_000).phase
        lazy, thrown = catapult.phase_diagram([1.99, 2.01], 1e-3).phase
        found = [int(lazy), int(thrown), int(below), int(above)]
        if found != [0, 1, 1, 3]:
            raise Refuted(f"phases at 1.99, 2.01, 3.99, 4.01 are {found}, not 0, 1, 1, 3")
        return "monotone at 1.99, catapult at 2.01 and 3.99, diverged at 4.01"

    return identity(
        "catapult_phase_boundaries",
        sp.Eq(sp.Symbol("w'") / w - 1, (a - w) * (a - 2 - w), evaluate=False),
        differences,
        "w grows iff a > 2 + w (a >= 2 sqrt(w) > w for w < 1), a falls iff a < 4",
        ["label 0", "w = epsilon^2 < 1", "a = eta lambda"],
        simulation,
        source=f"{_PAPER}; normalised form derived here",
    )


def _invariants() -> Claim:
    """F' = F (1 + eps^2 + Y eps) and Q' = Q (1 - eps^2); F = 0 is the divergence boundary."""

    def differences() -> dict[str, sp.Expr]:
        p, q = catapult.factor_map(u, v, Y)
        residual, kernel = u * v - Y, u**2 + v**2
        after, next_kernel = catapult.residual_map(residual, kernel, Y)
        F = catapult.margin(residual, kernel, Y)
        return {
            "factor and residual form, residual": sp.expand(p * q - Y - after),
            "factor and residual form, a": sp.expand(p**2 + q**2 - next_kernel),
            "F": catapult.margin(after, next_kernel, Y) - F * (1 + residual**2 + Y * residual),
            "Q": (p**2 - q**2) - (u**2 - v**2) * (1 - residual**2),
            "a^2 = Q^2 + 4 g^2": sp.expand(kernel**2 - (u**2 - v**2) ** 2 - 4 * (u * v) ** 2),
        }

    def simulation() -> str:
        labels, eps_0 = np.array([0.2, 0.5, 0.9]), 0.1
        edge = 4 + labels * eps_0
        below = catapult.phase_diagram(edge * (1 - 1e-3), eps_0**2, labels).phase
        above = catapult.phase_diagram(edge * (1 + 1e-3), eps_0**2, labels).phase
        if (below == 3).any() or (above != 3).any():
            raise Refuted(f"phases 0.1 % beside F = 0 are {below} and {above}")
        for squares, product, target in ((5.0, 1.0, 0.4), (8.0, -2.0, 0.7)):
            rate = closed_forms.critical_lr(squares, product, target)
            start = rate * (product - target), rate * squares, rate * target
            if abs(catapult.margin(*start)) > 1e-12:
                raise Refuted(f"F is {catapult.margin(*start)} at the closed-form rate {rate}")
        return "bounded below and divergent above F = 0, 0.1 % apart; closed-form rate has F = 0"

    F = sp.Symbol("F")
    return identity(
        "catapult_invariants",
        sp.Eq(sp.Symbol("F'"), F * (1 + eps**2 + Y * eps), evaluate=False),
        differences,
        "F keeps its sign (the factor is positive for |Y| < 2) and Q its zero",
        ["F = a - 4 - Y epsilon", "Q = u^2 - v^2 with Q' = Q (1 - epsilon^2)"],
        simulation,
        source="derived here; boundary: Liang & Montufar",
    )


def _period_two() -> Claim:
    """The balanced map's 2-cycle r, 1/r with r + 1/r = 1 + Y, and its stability."""
    X = sp.Symbol("X", positive=True)

    def orbit_polynomial() -> sp.Expr:
        """(G(G(s)) - s) / (G(s) - s) in X = s^2, without the factors of symmetric orbits."""
        once = catapult.balanced_map(s, Y)
        twice = catapult.balanced_map(once, Y)
        quotient = sp.factor(sp.cancel((twice - s) / (once - s)))
        return quotient.subs(s, sp.sqrt(X))

    def differences() -> dict[str, sp.Expr]:
        cycle = X**2 - (1 + Y) * X + 1
        remainder = sp.rem(sp.expand(orbit_polynomial()), cycle, X)
        slope = sp.diff(catapult.balanced_map(s, Y), s).subs(s**2, X)
        other = 1 + Y - X  # the second root: their sum is 1 + Y
        along = sp.rem(sp.expand(slope * slope.subs(X, other)), cycle, X)
        across = sp.rem(sp.expand((1 - (X - Y)) * 1 * (1 - (other - Y))), cycle, X)
        residual = sp.Symbol("epsilon")
        across = sp.rem(sp.expand((1 + (X - Y)) * (1 + (other - Y))), cycle, X)
        mapped = catapult.residual_map(residual, 2 * (residual + Y), Y)[0]
        return {
            "the orbit's squares solve X^2 - (1 + Y) X + 1": remainder,
            "multiplier along": along - (9 - 2 * (1 + Y) ** 2),
            "multiplier across": across - (3 - 2 * Y),
            "residual on the balanced line": sp.expand(
                mapped - (residual**3 + (Y - 2) * residual**2 + (1 - 2 * Y) * residual)
            ),
            "lower end": (9 - 2 * (1 + Y) ** 2).subs(Y, 1) - 1,
            "upper end": (9 - 2 * (1 + Y) ** 2).subs(Y, sp.sqrt(5) - 1) + 1,
        }

    def simulation() -> str:
        found = catapult.attractor([0.95, 1.05, 1.23, 1.245]).period
        if list(found) != [1, 2, 2, 4]:
            raise Refuted(f"periods at Y = 0.95, 1.05, 1.23, 1.245 are {list(found)}")
        return "period 1 at 0.95, 2 at 1.05 and 1.23, 4 at 1.245 (thresholds 1 and 1.23607)"

    r = sp.Symbol("r", positive=True)
    return identity(
        "catapult_period_two",
        sp.Eq(r + 1 / r, 1 + Y, evaluate=False),
        differences,
        "outputs r, 1/r; multipliers 9 - 2(1+Y)^2 and 3 - 2Y; stable for 1 < Y < sqrt(5) - 1",
        ["balanced net u = v", "Y = eta y sqrt(kappa) > 1"],
        simulation,
    )


def _angle() -> Claim:
    """On the ellipse F = 0 the angle triples."""
    phi = sp.Symbol("phi", real=True)

    def differences() -> dict[str, sp.Expr]:
        total, gap = 2 * sp.sqrt(2 + Y) * sp.cos(phi), 2 * sp.sqrt(2 - Y) * sp.sin(phi)
        x, z = (total + gap) / 2, (total - gap) / 2
        residual = x * z - Y
        after = catapult.residual_map(residual, x**2 + z**2, Y)[0]
        tripled = sp.expand_trig(2 * sp.cos(2 * (sp.pi - 3 * phi)))
        cosine = sp.Symbol("C")

        def in_cosine(expression: sp.Expr) -> sp.Expr:
            expanded = sp.expand(sp.expand_trig(sp.expand(expression)))
            return sp.expand(
                expanded.subs(sp.sin(phi) ** 2, 1 - cosine**2)
                .subs(sp.sin(phi) ** 4, (1 - cosine**2) ** 2)
                .subs(sp.sin(phi) ** 6, (1 - cosine**2) ** 3)
                .subs(sp.cos(phi), cosine)
            )

        return {
            "on the ellipse": in_cosine(catapult.margin(residual, x**2 + z**2, Y)),
            "residual": in_cosine(residual - 2 * sp.cos(2 * phi)),
            "next residual": in_cosine(after - (residual**3 - 3 * residual)),
            "tripled angle": in_cosine(tripled - (residual**3 - 3 * residual)),
        }

    def simulation() -> str:
        orbit = catapult.boundary_orbit(0.7, 12)
        error = np.abs(orbit[1:] - (orbit[:-1] ** 3 - 3 * orbit[:-1])).max()
        if error > 1e-9:
            raise Refuted(f"the closed orbit misses eps^3 - 3 eps by {error:.2g}")
        return f"12 steps of the closed orbit obey eps' = eps^3 - 3 eps within {error:.0e}"

    return identity(
        "catapult_angle_tripling",
        sp.Eq(sp.Function("phi")(sp.Symbol("t") + 1), sp.pi - 3 * phi, evaluate=False),
        differences,
        "epsilon = 2 cos(2 phi) on F = 0, and the step sends phi to pi - 3 phi",
        ["F = 0, |Y| < 2", "u + v = 2 sqrt(2+Y) cos(phi), u - v = 2 sqrt(2-Y) sin(phi)"],
        simulation,
    )


def _final_ntk() -> Claim:
    """The first integral is conserved to its order, and its reversion is the shipped series."""
    scale = sp.Symbol("sigma")
    order = 6  # of the series; it needs the integral through weight 7

    def change() -> sp.Expr:
        """I(w', delta') - I(w, delta) with delta of weight 1 and w of weight 2."""
        after, kernel = catapult.residual_map(eps, 2 + delta)
        moved = catapult.first_integral(sp.expand(after**2), sp.expand(kernel - 2))
        difference = sp.expand(moved - catapult.first_integral(eps**2, delta))
        return sp.expand(difference.subs({delta: scale * delta, eps: scale * eps}))

    def derived() -> sp.Expr:
        """The integral solved weight by weight: each is a linear system for its coefficients."""
        found: sp.Expr = w + delta**2 / 2
        for weight in range(3, order + 2):
            monomials = [delta ** (weight - 2 * j) * w**j for j in range(weight // 2 + 1)]
            unknowns = sp.symbols(f"c0:{len(monomials)}")
            trial = found + sum(c * m for c, m in zip(unknowns, monomials, strict=True))
            if weight % 2 == 0:
                trial = trial.subs(unknowns[-1], 0)  # no pure power of w
            after, kernel = catapult.residual_map(eps, 2 + delta)
            start = {w: eps**2}
            moved = {w: sp.expand(after**2), delta: sp.expand(kernel - 2)}
            gap = trial.subs(moved, simultaneous=True) - trial.subs(start)
            scaled = sp.expand(
                gap.subs({delta: scale * delta, eps: scale * eps}, simultaneous=True)
            )
            lowest = sp.Poly(scaled, scale).coeff_monomial(scale ** (weight + 1))
            solution = sp.solve(sp.Poly(lowest, delta, eps).coeffs(), unknowns, dict=True)[0]
            found = sp.expand(trial.subs(solution))
        return found

    def reversion() -> list[sp.Expr]:
        """Coefficients of delta_inf = sum_k c_k delta^k with I(0, delta_inf) = I(0, delta)."""
        found: sp.Expr = -delta
        level = sp.Poly(catapult.first_integral(sp.Integer(0), delta), delta)
        for power in range(2, order + 1):
            unknown = sp.Symbol("c")
            trial = sp.expand(level.as_expr().subs(delta, found + unknown * delta**power))
            equation = sp.Poly(trial, delta).coeff_monomial(delta ** (power + 1))
            target = level.coeff_monomial(delta ** (power + 1))
            found += sp.solve(equation - target, unknown)[0] * delta**power
        return [sp.Poly(found, delta).coeff_monomial(delta**k) for k in range(1, order + 1)]

    def steps() -> list[Step]:
        lowest = min(m[0] for m in sp.Poly(change(), scale).monoms())
        return [
            Step("first integral", catapult.first_integral(w, delta)),
            Step("weight of its lowest change in one step", sp.Integer(lowest)),
            Step("a_inf - 2 by reversion, powers 1 to 6 of delta", sp.Tuple(*reversion())),
        ]

    def symbolic() -> str:
        lowest = min(m[0] for m in sp.Poly(change(), scale).monoms())
        if lowest < order + 3:
            raise Refuted(f"one step changes the first integral at weight {lowest}")
        require_zero(
            derived() - catapult.first_integral(w, delta), "integral solved weight by weight"
        )
        for k, (coefficient, shipped) in enumerate(
            zip(reversion(), closed_forms._FINAL, strict=True), start=1
        ):
            if abs(float(coefficient) - shipped) > 1e-15:
                raise Refuted(
                    f"the shipped coefficient of delta^{k} is {shipped}, not {coefficient}"
                )
        return (
            f"solved through weight 7 (a step changes it at weight {lowest} only); reversion gives the "
            "six shipped coefficients"
        )

    def simulation() -> str:
        # Both are expansions: the map's own value is the judge, within the documented error.
        for start, allowed in ((2.1, 2e-5), (2.3, 2e-4), (2.5, 1.5e-3)):
            found = float(catapult.phase_diagram(start, 1e-8).final_a)
            series = closed_forms.final_ntk(start, 1e-8)
            if abs(found - series) > allowed:
                raise Refuted(f"from a = {start} the map ends at {found}, the series says {series}")
        return "the map ends where the series says: 2e-5 at 2.1, 2e-4 at 2.3, 1.5e-3 at 2.5"

    series = 2 + sum(
        sp.nsimplify(sp.Rational(c).limit_denominator(20_000)) * delta ** (k + 1)
        for k, c in enumerate(closed_forms._FINAL)
    )
    return Claim(
        name="catapult_final_ntk",
        statement=sp.Eq(sp.Symbol("a_inf"), series + sp.O(delta**7), evaluate=False),
        kind=Kind.ASYMPTOTIC,
        source="derived here",
        assumptions=["label 0, infinitesimal start", "delta = a_0 - 2", "formal first integral"],
        derivation=steps,
        routes={"symbolic": symbolic, "simulation": simulation},
    )


def claims() -> list[Claim]:
    """Recurrence, phase boundaries, invariants, period 2, boundary chaos, final NTK."""
    return [
        _recurrence(),
        _boundaries(),
        _invariants(),
        _period_two(),
        _angle(),
        _final_ntk(),
    ]
