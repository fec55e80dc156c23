r"""Rod flow and edge flow: their rates, their rest on cycles of a quartic, and an example beside.

`eosim.flows.RodFlow.field` runs here on symbols, with its rods given instead of decomposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sympy as sp

import eosim
from eosim.flows import EdgeFlow, GradientFlow, RodFlow
from theory.adaptive import equation
from theory.central_flow import ExpressionLoss, close, grows, multiplier, proved
from theory.claim import Claim, Kind, Refuted, Step
from theory.modified_flows import GenericLoss, PolynomialLoss, flow_map, h, modified_field

_ROD = "Regis & Chewi 2026, arXiv 2602.01480"
_MARGIN = 0.02  # how far beside a threshold numeric routes look: our choice

lr, S, Q, a = sp.symbols("eta S Q a", positive=True)
w, x, y, r = sp.symbols("w x y r", positive=True)
z = sp.Symbol("z", real=True)


# --- the rod flow on symbols ---------------------------------------------------------------------


@dataclass(frozen=True)
class _SymbolicRod(RodFlow):
    """The shipped rod flow with a symbol for its rate and with its rods given, as rows."""

    rods: Any = ()

    @property
    def lr(self) -> Any:
        return self.rule.lr

    def _rods(self, covariance: Any, log_nu: Any) -> Any:
        return self.rods


def rod_rates(problem: Any, centre: Any, rods: Any, rate: Any = lr) -> tuple[Any, Any]:
    """d centre/dt and dSigma/dt per step, from the shipped field of gradient descent's rod."""
    centre, rods = np.array(centre, dtype=object), np.array(rods, dtype=object)
    covariance = sum((np.outer(d, d) for d in rods), np.zeros((len(centre),) * 2, dtype=object))
    flow = _SymbolicRod(problem, eosim.GradientDescent(rate), rods=rods)
    field = rate * flow.field(np.concatenate([centre, covariance.ravel()]))
    exact = np.array([sp.expand(sp.nsimplify(entry, rational=True)) for entry in field])
    return exact[: len(centre)], exact[len(centre) :].reshape(covariance.shape)


def _rod_backward_error() -> Claim:
    """Without oscillation the rod flow is gradient descent to second order in the rate."""

    def differences() -> dict[str, sp.Expr]:
        generic: Any = GenericLoss(4)
        ((bare, correction), slopes) = modified_field(1)
        force = -h * slopes[0]
        drift, _ = rod_rates(generic, generic.theta, [], h)
        found = {
            "generic loss: V - V'V/2": drift[0]
            - statement.rhs.subs({V: force, slope: -h * slopes[1]}, simultaneous=True),
            "generic loss: backward error": drift[0] - h * bare - h**2 * correction,
        }
        cubic: Any = PolynomialLoss(4)
        centre, _ = rod_rates(cubic, cubic.theta, [], h)
        first, second = flow_map(cubic, [sp.expand(entry / h) for entry in centre], 2)
        for axis, gradient in enumerate(cubic.gradient(cubic.theta)):
            found[f"cubic: map at order h, axis {axis}"] = sp.expand(first[axis] + gradient)
            found[f"cubic: map at order h^2, axis {axis}"] = second[axis]
        return found

    def simulation() -> str:
        quartic = eosim.Polynomial({(2,): 0.5, (3,): 0.3, (4,): 0.2})
        errors = []
        for rate in (0.02, 0.01):
            zero = [[0.0]]
            rod = RodFlow(quartic, eosim.GradientDescent(rate), initial_covariance=zero)
            path = eosim.integrate(rod, [0.9], [rate], rtol=1e-12, record={})
            run = eosim.run(quartic, eosim.GradientDescent(rate), [0.9], 1, record={})
            errors.append(abs(path["theta"][0, 0] - run["theta"][1, 0]))
        order = math.log2(errors[0] / errors[1])
        if not abs(order - 3) < 0.1:
            raise Refuted(f"the error of one step is of order {order:.3f}, not 3")
        return f"error of one step of the shipped flow: order {order:.3f} in the rate"

    V, slope = sp.Symbol("V"), sp.Symbol("V'")

    def derivation() -> list[Step]:
        generic: Any = GenericLoss(4)
        return [
            Step("the shipped field on any E(x), without rods",
                 rod_rates(generic, generic.theta, [], h)[0][0]),
            Step("with V = -h E'", statement),
        ]  # fmt: skip

    statement = equation(sp.Symbol("dz/dt"), V - slope * V / 2)
    return proved(
        "rod_backward_error", statement, differences,
        "-V'V/2 is the backward error of a step: the time-1 map is the step to second order",
        ["Sigma = 0", "V the step of gradient descent"],
        derivation, _ROD, simulation=simulation,
    )  # fmt: skip


def _rod_growth() -> Claim:
    """On a quadratic the rod grows beyond the edge, and only there."""
    rate = lr**2 * S**2 / 2 - 2
    bowl = ExpressionLoss(S * w**2 / 2, w)

    def differences() -> dict[str, sp.Expr]:
        centre, spread = rod_rates(bowl, [z], [[r]])
        mu = sp.diff(bowl.descended([w])[0], w)
        (edge,) = sp.solve(rate, S)
        return {
            "growth of Sigma": spread[0, 0] / r**2 - rate,
            "in the multiplier of the step": spread[0, 0] / r**2 - ((mu - 1) ** 2 / 2 - 2),
            "centre": centre[0] + lr * S * z * (1 + lr * S / 2),
            "edge": edge - eosim.GradientDescent(lr).critical_sharpness(),
        }

    def flow() -> str:
        for ratio in (0.8, 0.95, 1.05, 1.3):
            rule = eosim.GradientDescent(0.1)
            rod = RodFlow(eosim.Quadratic([[20 * ratio]]), rule, initial_covariance=[[1e-2]])
            path = eosim.integrate(rod, [0.0], [0.0, 0.5], rtol=1e-10)
            expected = math.exp(5 * float(rate.subs({lr: 0.1, S: 20 * ratio})))
            spread = path["average.oscillation"]
            close(spread[1] / spread[0], expected, f"growth at eta S/2 = {ratio}", 1e-6)
        return "five steps of the shipped flow at 0.8, 0.95, 1.05, 1.3 of the edge"

    def derivation() -> list[Step]:
        return [
            Step("dSigma/dt of the shipped field, rod r", rod_rates(bowl, [z], [[r]])[1][0, 0]),
            Step("so that", statement),
            Step("0 at", equation(S, 2 / lr)),
        ]

    statement = equation(sp.Symbol("d ln Sigma/dt"), rate)
    return proved(
        "rod_growth_rate", statement, differences,
        "grows iff S > 2/eta; |mu - 1| > 2 for the multiplier mu = 1 - eta S",
        ["L = S w^2/2"], derivation, _ROD, flow=flow,
    )  # fmt: skip


# --- the quartic ---------------------------------------------------------------------------------

# In eta S: where the symmetric cycle, and then the asymmetric one, lose stability.
SYMMETRIC_LIMIT, ASYMMETRIC_LIMIT = sp.Integer(3), 1 + sp.sqrt(5)
QUARTIC = ExpressionLoss(S * w**2 / 2 - Q * w**4 / 4, w)


def _quartics(products: Any) -> Iterator[tuple[float, float, Any, Any]]:
    """(eta S, eta Q, shipped quartic, rule) at values of eta S."""
    for k in products:
        for rate, bend in ((0.1, 1.0), (0.3, 2.0)):
            quartic = QUARTIC.shipped(S=k / rate, Q=bend)
            yield k, rate * bend, quartic, eosim.GradientDescent(rate)


def _leaves(limit: float, cycle: Callable[[float, float], list[float]], n_steps: int) -> None:
    """Raise `Refuted` unless cycles lose stability at the limit: by multipliers if no steps."""
    for k, bend, quartic, rule in _quartics([limit - _MARGIN, limit + _MARGIN]):
        points = np.array(cycle(k, bend))
        if n_steps:
            path = eosim.run(quartic, rule, points[:1] * (1 + 1e-7), n_steps, record={})
            unstable = grows(path["theta"][::2], points[:1])
        else:
            after, _ = rule.step(points[:1], (), quartic.gradient(points[:1]))
            close(after, points[1:], f"the cycle at eta S = {k}")
            unstable = multiplier(rule, quartic, points[:1]) > 1
        if unstable != (k > limit):
            raise Refuted(f"at eta S = {k}, limit {limit}: the cycle is unstable: {unstable}")


def _quartic_two_cycle() -> Claim:
    """The rod flow ends on the exact cycle of gradient descent, and where that is stable."""
    k = lr * S
    beyond = {S: 2 / lr + Q * a**2}  # a^2 = (S - 2/eta)/Q

    def rates() -> tuple[sp.Expr, sp.Expr]:
        centre, spread = rod_rates(QUARTIC, [z], [[r]])
        return centre[0], spread[0, 0]

    def differences() -> dict[str, sp.Expr]:
        mapped = QUARTIC.descended([w])[0]
        centre, spread = rates()
        on_cycle = {z: 0, r: a}

        def here(expression: sp.Expr) -> sp.Expr:
            return sp.expand(expression.subs(on_cycle).subs(beyond))

        relaxation = spread.diff(r) / (2 * r)  # d/dSigma, Sigma = r^2
        (threshold,) = sp.solve((5 - 2 * w) + 1, w)
        return {
            "amplitude": here((statement.lhs - statement.rhs).subs(w, a)),
            "gradient descent: a goes to -a": here((mapped + w).subs(w, a)),
            "multiplier of the amplitude": here((-mapped.diff(w)).subs(w, a) - (5 - 2 * k)),
            "rod: the centre rests": here(centre),
            "rod: Sigma rests": here(spread),
            "rod: relaxation": here(relaxation + 2 * (k - 2)),
            "rod: away from the plane z = 0": here(centre.diff(z) - 2 * (k - 3) * (4 - k)),
            "rod: the centre does not feel Sigma": here(centre.diff(r)),
            "rod: Sigma does not feel the centre": here(spread.diff(z)),
            "multiplier -1": threshold - SYMMETRIC_LIMIT,
        }

    def cycle(product: float, bend: float) -> list[float]:
        size = math.sqrt((product - 2) / bend)
        return [size, -size]

    def spectral() -> str:
        _leaves(float(SYMMETRIC_LIMIT), cycle, 0)
        return f"multipliers by differences of the shipped step at eta S = 3 -+ {_MARGIN}"

    def simulation() -> str:
        _leaves(float(SYMMETRIC_LIMIT), cycle, 2000)
        return f"runs stay by the cycle at eta S = {3 - _MARGIN}, and leave it at {3 + _MARGIN}"

    def flow() -> str:
        for product, bend, quartic, rule in _quartics([2.1, 2.4]):
            rod, rest = RodFlow(quartic, rule), (product - 2) / bend
            states = [np.array([0.0, rest * (1 + shift)]) for shift in (1e-5, 0, -1e-5)]
            (_, ahead), (_, still), (_, behind) = (rule.lr * rod.field(state) for state in states)
            close([1 + still], [1], f"1 + dSigma/dt on the cycle, eta S = {product}")
            rate = (ahead - behind) / (2e-5 * rest)
            close(rate, -2 * (product - 2), f"relaxation at eta S = {product}", 1e-6)
        return "the shipped flow rests on the cycle and relaxes to it, eta S = 2.1, 2.4, by differences"

    def derivation() -> list[Step]:
        return [
            Step("step", sp.expand(QUARTIC.descended([w])[0])),
            Step("dSigma/dt of the shipped rod flow, z = 0", sp.factor(rates()[1].subs(z, 0))),
            Step("0, and w goes to -w, at", statement),
            Step("multiplier of the amplitude there", 5 - 2 * k),
            Step("rate of Sigma there", -2 * (k - 2)),
            Step("rate of the centre there", 2 * (k - 3) * (4 - k)),
        ]

    statement = equation(w**2, (S - 2 / lr) / Q)
    return proved(
        "quartic_two_cycle", statement, differences,
        "w^2 = Sigma = (S - 2/eta)/Q; multiplier 5 - 2 eta S: stable for 2 < eta S < 3",
        ["L = S w^2/2 - Q w^4/4", "eta S > 2"],
        derivation, spectral=spectral, simulation=simulation, flow=flow,
    )  # fmt: skip


def _quartic_asymmetric_cycle() -> Claim:
    """Beyond eta S = 3 the cycle is not symmetric; the rod flow rests there too, off centre."""
    p, q = sp.symbols("p q", positive=True)
    # Solved for the parameters: p - eta L'(p) = -q and -q + eta L'(q) = p.
    given = {Q: 1 / (lr * p * q), S: (1 + (p**2 + q**2) / (p * q)) / lr}
    k = lr * S
    quadratic = w**2 - (k - 1) / (lr * Q) * w + 1 / (lr * Q) ** 2
    product = 9 - 2 * (k - 1) ** 2

    def rates() -> tuple[sp.Expr, sp.Expr]:
        centre, spread = rod_rates(QUARTIC, [z], [[r]])
        ends = {z: (p - q) / 2, r: (p + q) / 2}
        return centre[0].subs(ends), spread[0, 0].subs(ends)

    def differences() -> dict[str, sp.Expr]:
        mapped = QUARTIC.descended([w])[0]
        twice = QUARTIC.descended([mapped])[0]
        orbits = sp.Poly(sp.cancel((twice - w) / (mapped - w)), w)
        every = orbits.LC() * quadratic.subs(w, w**2) * (w**2 - (S - 2 / lr) / Q)
        slope = mapped.diff(w)
        centre, spread = rates()
        n = sp.Symbol("n", positive=True)
        limits = [max(sp.solve(9 - 2 * (n - 1) ** 2 - end, n), key=float) for end in (1, -1)]
        return {
            "p goes to -q": (mapped.subs(w, p) + q).subs(given),
            "-q goes to p": (mapped.subs(w, -q) - p).subs(given),
            "p^2 is a root": quadratic.subs(w, p**2).subs(given),
            "q^2 is a root": quadratic.subs(w, q**2).subs(given),
            "no other cycles than these and the symmetric one": sp.expand(orbits.as_expr() - every),
            "multiplier of two steps": (slope.subs(w, p) * slope.subs(w, -q) - product).subs(given),
            "rod: the centre rests": centre.subs(given),
            "rod: Sigma rests": spread.subs(given),
            "multiplier 1": limits[0] - SYMMETRIC_LIMIT,
            "multiplier -1": limits[1] - ASYMMETRIC_LIMIT,
        }

    def cycle(value: float, bend: float) -> list[float]:
        roots = np.sqrt(np.roots([1, -(value - 1) / bend, 1 / bend**2]))
        return [roots.max(), -roots.min()]

    def spectral() -> str:
        _leaves(float(ASYMMETRIC_LIMIT), cycle, 0)
        return f"multipliers by differences of the shipped step at 1 + sqrt 5 -+ {_MARGIN}"

    def simulation() -> str:
        _leaves(float(ASYMMETRIC_LIMIT), cycle, 2000)
        return f"runs stay by the cycle {_MARGIN} below 1 + sqrt 5, and leave it above"

    def flow() -> str:
        for value, bend, quartic, rule in _quartics([3.05, 3.2]):
            high, low = cycle(value, bend)
            centre, half = (high + low) / 2, (high - low) / 2
            field = RodFlow(quartic, rule).field(np.array([centre, half**2]))
            close(1 + field, [1, 1], f"1 + field of the rod at eta S = {value}", 1e-8)
        return "the shipped flow rests on the cycle at eta S = 3.05, 3.2"

    def derivation() -> list[Step]:
        return [
            Step(
                "p goes to -q and back if", sp.Tuple(*(equation(*pair) for pair in given.items()))
            ),
            Step("p^2 and q^2 are the roots w of", equation(quadratic, 0)),
            Step("multiplier of two steps", product),
            Step("1 at eta S = 3, and -1 at", statement),
        ]

    statement = equation(sp.Symbol("(eta S)_max"), ASYMMETRIC_LIMIT)
    return proved(
        "quartic_asymmetric_cycle", statement, differences,
        "p^2 + q^2 = (eta S - 1)/(eta Q), p q = 1/(eta Q); stable for 3 < eta S < 1 + sqrt 5",
        ["L = S w^2/2 - Q w^4/4", "cycle (p, -q)", "eta S > 3"],
        derivation, spectral=spectral, simulation=simulation, flow=flow,
    )  # fmt: skip


# --- the edge flow -------------------------------------------------------------------------------


def _edge_flow_rate() -> Claim:
    """The edge flow's rate is exact on quadratics; its first order is the linear rate."""
    bowl, e = ExpressionLoss(S * w**2 / 2, w), sp.Symbol("e")

    def series() -> sp.Expr:
        """ln|1 - k| in e = k - 2, to second order."""
        return sp.series(sp.log(1 + e), e, 0, 3).removeO()

    def differences() -> dict[str, sp.Expr]:
        (after,) = bowl.descended([w])
        growth = sp.log(-(after / w)).subs(S, (2 + e) / lr)  # 1 - eta S < 0 near the edge
        return {
            "a step multiplies the size by |1 - eta S|": sp.simplify(after / w) - (1 - lr * S),
            "value at the edge": growth.subs(e, 0),
            "rate at the edge": growth - statement.lhs,
            "linear rate": growth.diff(e).subs(e, 0) * e - statement.rhs.removeO(),
            "the next term": series() - (e - e**2 / 2),
        }

    def flow() -> str:
        for ratio in (0.6, 0.9, 0.999, 1.01, 1.5):
            curvature = 2 * ratio / 0.1
            problem = eosim.Quadratic(np.diag([curvature, 1.0]))
            for rate, expected in (
                ("logarithmic", math.log(abs(1 - 2 * ratio))),
                ("linear", 2 * ratio - 2),
            ):
                shipped = EdgeFlow(problem, 0.1, rate=rate)
                state = np.array([0.0, 0.0, 1.0, 0.0, math.log(0.1)])
                close(0.1 * shipped.field(state)[-1], expected, f"{rate} rate at {ratio}", 1e-12)
        return "both rates of the shipped flow at five curvatures, to rounding"

    def simulation() -> str:
        for ratio in (0.9, 1.05):
            problem = eosim.Quadratic([[20 * ratio]])
            run = eosim.run(problem, eosim.GradientDescent(0.1), [1.0], 21, record={})
            halves = np.diff(run["theta"][:, 0]) / 2
            flow = EdgeFlow(problem, 0.1)
            path = eosim.integrate(flow, [1.0], 0.1 * np.arange(21.0), rtol=1e-9, record={})
            close(path["average.oscillation"], halves**2, f"r^2 at {ratio} of the edge", 1e-6)
        return "r of the shipped flow is the half-difference of 20 iterates, both sides of the edge"

    def derivation() -> list[Step]:
        return [
            Step("one step on a quadratic", bowl.descended([w])[0]),
            Step("so that, exactly", equation(sp.Symbol("d ln r/dt"), sp.log(sp.Abs(1 - lr * S)))),
            Step("with e = eta S - 2", series()),
        ]

    statement = sp.Eq(sp.log(1 + e), e + sp.O(e**2), evaluate=False)
    claim = proved(
        "edge_flow_rate",
        statement,
        differences,
        "exact rate ln|1 - eta S|; eta S - 2 to first order, the next term is -(eta S - 2)^2/2",
        ["L = S w^2/2", "e = eta S - 2: |1 - eta S| = 1 + e near the edge"],
        derivation, roots=True, flow=flow, simulation=simulation,
    )  # fmt: skip
    return replace(claim, kind=Kind.ASYMPTOTIC)


# --- a product of squares ------------------------------------------------------------------------


def product_end(x: Any, y: Any) -> sp.Expr:
    """The sharpness at which gradient flow of (x^2 y^2 - 1)^2/4 ends."""
    return 2 * sp.sqrt((x**2 - y**2) ** 2 + 4)


def _minimal_example() -> Claim:
    """The sharpness of the minima of a product, and where gradient flow would end."""
    loss = ExpressionLoss((x**2 * y**2 - 1) ** 2 / 4, x, y)
    u, v = sp.symbols("u v", positive=True)
    factors = ExpressionLoss((x * y * u * v - 1) ** 2 / 2, x, y, u, v)
    unbalanced = x**2 - y**2
    end = product_end(x, y)

    def differences() -> dict[str, sp.Expr]:
        on_minimum = {y: 1 / x}
        hessian = sp.hessian(loss.expression, (x, y)).subs(on_minimum)
        field = -sp.Matrix(loss.gradient((x, y)))
        whole = factors.descended((x, y, x, y))
        c = sp.Symbol("c", positive=True)
        (at_edge,) = sp.solve((end**2).subs(x, sp.sqrt(y**2 + c**2)) - (2 / lr) ** 2, c**4)
        return {
            "one curvature is 0": hessian.det(),
            "the other": (hessian.trace() - 2 * (x**2 + y**2)).subs(on_minimum),
            "gradient flow keeps x^2 - y^2": sp.Matrix([unbalanced]).jacobian([x, y]).dot(field),
            "and ends at": ((2 * (x**2 + y**2)) ** 2 - end**2).subs(on_minimum),
            "minimum with S = 2/eta, c^2 = x^2 - y^2": at_edge - (lr**-2 - 4),
            **{
                f"the same step in four factors, {name}": whole[k] - loss.descended((x, y))[k % 2]
                for k, name in enumerate(("x", "y", "u = x", "v = y"))
            },
        }

    def simulation() -> str:
        shipped = loss.shipped()
        for start in ([2.0, 0.3], [3.0, 0.1], [1.0, 1.4]):
            path = eosim.integrate(GradientFlow(shipped), start, [40.0], rtol=1e-10, record={})
            sharpness = np.linalg.eigvalsh(shipped.hessian(path["theta"][-1]))[-1]
            expected = float(end.subs({x: start[0], y: start[1]}))
            close(sharpness, expected, f"sharpness where gradient flow from {start} ends", 1e-7)
        return "gradient flow from three starts ends at that sharpness, within 1e-7"

    def derivation() -> list[Step]:
        return [
            Step("loss", loss.expression),
            Step("Hessian on x y = 1", sp.hessian(loss.expression, (x, y)).subs(y, 1 / x)),
            Step("its sharpness", 2 * (x**2 + y**2)),
            Step("x^2 - y^2 is kept, so that gradient flow ends at", statement),
            Step("2/eta in c = sqrt(x^2 - y^2), d = x y",
                 sp.Tuple(equation(sp.Symbol("c"), (lr**-2 - 4) ** sp.Rational(1, 4)),
                          equation(sp.Symbol("d"), 1))),
        ]  # fmt: skip

    statement = equation(sp.Symbol("S_end"), end)
    return proved(
        "product_minimum", statement, differences,
        "sharpness 2 (x^2 + y^2); gradient flow ends at 2 sqrt((x^2 - y^2)^2 + 4)",
        ["L = (x^2 y^2 - 1)^2/4", "gradient flow; x, y at the start, x y not 0"],
        derivation, "Zhu et al. 2022, arXiv 2210.03294; derived here",
        roots=True, simulation=simulation,
    )  # fmt: skip


def claims() -> list[Claim]:
    """Rod flow, its rest on the cycles of a quartic, edge flow, and a product of squares."""
    return [
        _rod_backward_error(),
        _rod_growth(),
        _quartic_two_cycle(),
        _quartic_asymmetric_cycle(),
        _edge_flow_rate(),
        _minimal_example(),
    ]
