r"""Truncated flows: the shipped fields, executed on symbols, against the map of gradient descent.

The time-h map of a field f(theta; h) is the Taylor series :math:`\sum_m h^m D^{m-1} f / m!` with
:math:`D = f \cdot \nabla`. Composed from a shipped field and expanded in h it must be the step
:math:`\theta - h g`, up to the order that the field claims; what is left is its drift.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import sympy as sp

import eosim
from theory.claim import Claim, Kind, Refuted, Step, require_zero

h = sp.Symbol("h", positive=True)
_ROSCA = "Rosca, Wu, Qin & Dherin 2023, arXiv 2302.01952"
_BARRETT = "Barrett & Dherin 2021, arXiv 2009.11162"


def modified_field(order: int) -> tuple[list[sp.Expr], list[sp.Symbol]]:
    """The modified field of gradient descent on any smooth E(x) of one variable, order by order.

    Returns f_0, ..., f_order with x' = sum_p h^p f_p, in the derivatives E1, E2, ... of E: the map of
    that field over time h, expanded in h, must be x - h E'(x).
    """
    h = sp.Symbol("h")
    slopes = list(sp.symbols(f"E1:{2 * order + 3}"))

    def derivative(expression: sp.Expr) -> sp.Expr:
        """d/dx, by the chain rule through E1, E2, ..."""
        return sp.expand(
            sum(sp.diff(expression, low) * high for low, high in itertools.pairwise(slopes))
        )

    fields: list[sp.Expr] = []
    for power in range(order + 1):
        unknown = sp.Symbol("f")
        field = sum(h**q * f for q, f in enumerate(fields)) + h**power * unknown
        # Taylor map sum_m h^m D^(m-1) f / m! with D = f d/dx; the unknown enters at m = 1 only
        term, total = field, h * field
        for m in range(2, power + 2):
            term = sp.expand(field * derivative(term))
            total += h**m * term / sp.factorial(m)
        target = -h * slopes[0]  # one gradient descent step
        equation = sp.expand(total - target).coeff(h, power + 1)
        fields.append(sp.expand(sp.solve(equation, unknown)[0]))
    return fields, slopes


# --- symbolic problems, on which the shipped fields run ------------------------------------------


class GenericLoss:
    """Any smooth E of one variable: its derivatives E1, E2, ... are symbols."""

    dim, analytic = 1, True

    def __init__(self, highest: int) -> None:
        self.slopes = list(sp.symbols(f"E1:{highest + 1}"))
        self.theta = np.array([sp.Symbol("x")], dtype=object)

    def gradient(self, theta: Any) -> Any:
        return np.array([self.slopes[0]], dtype=object)

    def hvp(self, theta: Any, v: Any) -> Any:
        return self.slopes[1] * v

    def third_derivative(self, theta: Any, a: Any, b: Any) -> Any:
        return self.slopes[2] * a * b

    def derivative(self, expression: sp.Expr, axis: int) -> sp.Expr:
        """d/dx by the chain rule through E1, E2, ..."""
        return sum(sp.diff(expression, low) * high for low, high in itertools.pairwise(self.slopes))


class PolynomialLoss:
    """A cubic E(x, y) with random integer coefficients: every tree without fourth derivatives."""

    dim, analytic = 2, True

    def __init__(self, seed: int, degree: int = 3) -> None:
        generator = random.Random(seed)
        self.variables = sp.symbols("x y")
        self.theta = np.array(self.variables, dtype=object)
        self.energy = sum(
            generator.randint(-3, 3) * self.variables[0] ** i * self.variables[1] ** j
            for i in range(degree + 1)
            for j in range(degree + 1 - i)
            if i + j >= 1
        )

    def gradient(self, theta: Any) -> Any:
        return np.array([sp.diff(self.energy, v) for v in self.variables], dtype=object)

    def hvp(self, theta: Any, v: Any) -> Any:
        return self._along(self.gradient(theta), v)

    def third_derivative(self, theta: Any, a: Any, b: Any) -> Any:
        rows = [
            self._along(np.array([sp.diff(g, v) for v in self.variables], dtype=object), a)
            for g in self.gradient(theta)
        ]
        return np.array([sp.expand(row @ b) for row in rows], dtype=object)

    def derivative(self, expression: sp.Expr, axis: int) -> sp.Expr:
        return sp.diff(expression, self.variables[axis])

    def _along(self, components: Any, v: Any) -> Any:
        return np.array(
            [
                sp.expand(sum(sp.diff(c, x) * w for x, w in zip(self.variables, v, strict=True)))
                for c in components
            ],
            dtype=object,
        )


def flow_map(problem: Any, field: Any, order: int) -> list[list[sp.Expr]]:
    """Coefficients of h^1, ..., h^order of the time-h map minus the start, per component."""

    def truncated(expression: sp.Expr, power: int) -> sp.Expr:
        return sum(
            coefficient * h ** exponents[0]
            for exponents, coefficient in sp.Poly(sp.expand(expression), h).terms()
            if exponents[0] <= power
        )

    field = [truncated(component, order - 1) for component in field]
    term, total = field, [h * component for component in field]
    for m in range(2, order + 1):
        term = [
            truncated(
                sum(problem.derivative(component, axis) * f for axis, f in enumerate(field)),
                order - m,
            )
            for component in term
        ]
        total = [t + h**m * d / sp.factorial(m) for t, d in zip(total, term, strict=True)]
    polynomials = [sp.Poly(sp.expand(t), h) for t in total]
    return [[p.coeff_monomial(h**m) for p in polynomials] for m in range(1, order + 1)]


def drift(problem: Any, flow: Any, order: int) -> list[list[sp.Expr]]:
    """Coefficients of h^1, ..., h^order of (flow map) - (descent step), from the shipped codes."""
    mapped = flow_map(problem, flow.field(problem.theta), order)
    gradient = problem.gradient(problem.theta)
    stepped, _ = eosim.GradientDescent(h).step(0 * gradient, (), gradient)
    for power in range(1, order + 1):
        for axis, component in enumerate(stepped):
            mapped[power - 1][axis] -= sp.Poly(component, h).coeff_monomial(h**power)
    return [[sp.expand(component) for component in row] for row in mapped]


def fitted_order(flow: Callable[[float], Any], steps: tuple[float, float]) -> float:
    """log2 of the ratio of one-step errors against `eosim.run` at two learning rates."""
    errors = []
    for lr in steps:
        made = flow(lr)
        iterate = eosim.run(made.problem, eosim.GradientDescent(lr), _START, 1, record={})
        path = eosim.integrate(made, _START, [lr], rtol=3e-14, atol=1e-15, record={})
        errors.append(np.linalg.norm(path["theta"][0] - iterate["theta"][1]))
    return float(np.log2(errors[0] / errors[1]) / np.log2(steps[0] / steps[1]))


_START = np.array([0.7, -0.5])
# A quartic with every kind of third derivative; our choice.
_QUARTIC = eosim.Polynomial(
    {
        (2, 0): 0.65,
        (1, 1): 0.4,
        (0, 2): 0.35,
        (3, 0): 0.3,
        (2, 1): -0.2,
        (1, 2): 0.25,
        (4, 0): 0.1,
        (0, 4): 0.15,
    }
)


def _modified(order: int) -> Claim:
    """The shipped modified flow of one order meets the descent step through that order."""
    g, H, T = sp.symbols("g H T")
    terms = [
        -g,
        -h * H * g / 2,
        -(h**2) * (H**2 * g / 3 + T * g**2 / 12),
        -(h**3) * (H**3 * g / 4 + H * T * g**2 / 6),
    ]

    def steps() -> list[Step]:
        problem: Any = GenericLoss(order + 3)
        field = eosim.ModifiedFlow(problem, h, order).field(problem.theta)[0]
        lines = [
            Step("shipped field in one variable, E1, E2, ... derivatives of E", sp.expand(field))
        ]
        rest = drift(problem, eosim.ModifiedFlow(problem, h, order), order + 1)
        for power, (coefficient,) in enumerate(rest, start=1):
            lines.append(
                Step(f"(flow map) - (descent step), coefficient of h^{power}", coefficient)
            )
        return lines

    def symbolic() -> str:
        problem: Any = GenericLoss(order + 3)
        rest = drift(problem, eosim.ModifiedFlow(problem, h, order), order + 1)
        for power, (coefficient,) in enumerate(rest[:-1], start=1):
            require_zero(coefficient, f"drift of any E(x) at h^{power}")
        if rest[-1][0] == 0:
            raise Refuted(f"the drift vanishes at h^{order + 1} too: the order is understated")
        return f"any E(x): no drift through h^{order}, some at h^{order + 1}"

    def rationals() -> str:
        for seed in range(2):
            problem: Any = PolynomialLoss(seed)
            rest = drift(problem, eosim.ModifiedFlow(problem, h, order), order)
            if any(component != 0 for row in rest for component in row):
                raise Refuted(f"the drift on the polynomial {problem.energy} does not vanish")
        return f"2 integer cubics E(x, y), identically zero through h^{order}"

    def simulation() -> str:
        found = fitted_order(lambda lr: eosim.ModifiedFlow(_QUARTIC, lr, order), (0.01, 0.005))
        if abs(found - (order + 1)) > 0.05:
            raise Refuted(f"the fitted order of the one-step error is {found:.3f}, not {order + 1}")
        return f"one-step error on a quartic falls as h^{found:.3f}"

    return Claim(
        name=f"modified_flow_{order}",
        statement=sp.Eq(sp.Symbol("f"), sum(terms[:order]), evaluate=False),
        kind=Kind.ASYMPTOTIC,
        source=_BARRETT if order <= 2 else f"{_ROSCA} (h^2); derived here",
        assumptions=[
            "E smooth; g, H, T its first three derivatives",
            f"f meets one descent step to O(h^{order + 1})",
            "one variable shown; the claim holds in any number",
        ],
        derivation=steps,
        routes={"symbolic": symbolic, "rationals": rationals, "simulation": simulation},
    )


def _principal_drift() -> Claim:
    """The principal flow misses the descent step by h^3 T[g,g]/12."""

    def steps() -> list[Step]:
        problem: Any = GenericLoss(6)
        rest = drift(problem, eosim.PrincipalSeries(problem, h, 3), 3)
        return [
            Step("principal field to h^2, from the shipped series", sp.expand(
                eosim.PrincipalSeries(problem, h, 3).field(problem.theta)[0])),
            *(
                Step(f"(flow map) - (descent step), coefficient of h^{power}", coefficient)
                for power, (coefficient,) in enumerate(rest, start=1)
            ),
        ]  # fmt: skip

    def check(problem: Any) -> None:
        rest = drift(problem, eosim.PrincipalSeries(problem, h, 3), 3)
        g = problem.gradient(problem.theta)
        expected = problem.third_derivative(problem.theta, g, g)
        for axis in range(problem.dim):
            require_zero(rest[0][axis], "drift at h")
            require_zero(rest[1][axis], "drift at h^2")
            require_zero(rest[2][axis] - expected[axis] / 12, "drift at h^3")

    def symbolic() -> str:
        check(GenericLoss(6))
        return "any E(x): drift is T[g,g]/12 at h^3 (the h^3 term of the field enters at h^4)"

    def rationals() -> str:
        for seed in range(3):
            check(PolynomialLoss(seed))
        return "3 integer cubics E(x, y), identically"

    def simulation() -> str:
        g = _QUARTIC.gradient(_START)
        leading = _QUARTIC.third_derivative(_START, g, g) / 12
        constants = []
        for lr in (4e-3, 2e-3):
            flow = eosim.PrincipalFlow(_QUARTIC, lr)
            path = eosim.integrate(flow, _START, [lr], rtol=3e-14, atol=1e-16, record={})
            constants.append((path["theta"][0].real - (_START - lr * g)) / lr**3)
        extrapolated = 2 * constants[1] - constants[0]  # Richardson: removes the O(h) term
        error = np.linalg.norm(extrapolated - leading) / np.linalg.norm(leading)
        if error > 1e-3:
            raise Refuted(f"the extrapolated constant differs from T[g,g]/12 by {error:.2g}")
        return f"constant of the integrated flow by Richardson extrapolation within {error:.0e}"

    T = sp.Function("T")
    g = sp.Symbol("g")
    return Claim(
        name="principal_flow_drift",
        statement=sp.Eq(sp.Symbol("drift"), h**3 * T(g, g) / 12 + sp.O(h**4), evaluate=False),
        kind=Kind.ASYMPTOTIC,
        source="derived here",
        assumptions=["E smooth; T its third derivative", "drift: flow over time h minus one step"],
        derivation=steps,
        routes={"symbolic": symbolic, "rationals": rationals, "simulation": simulation},
    )


def claims() -> list[Claim]:
    """The truncated fields of order 1 to 4, and the drift of the principal flow."""
    return [*(_modified(order) for order in (1, 2, 3, 4)), _principal_drift()]
