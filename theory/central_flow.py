r"""The central flow: its covariance from the edge, and the cycles whose average it is.

Losses given as expressions run through the shipped `eosim.GradientDescent`, `eosim.RMSProp` and
`ScalarRMSProp` steps. `eosim.flows.CentralFlow` decomposes Hessians and cannot run on symbols: a route
of each claim compares it with the formula at numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import sympy as sp

import eosim
from eosim.flows import CentralFlow
from eosim.problems.base import third_derivative
from theory.adaptive import at_numbers, equation
from theory.catapult import at_rationals, identity
from theory.claim import Claim, Refuted, Step

COHEN = "Cohen, Damian, Talwalkar, Kolter & Lee 2024, arXiv 2410.24206"
COUNT = 12  # random states at which a shipped flow is compared
_MARGIN = 0.05  # how far beside a threshold numeric routes look: our choice

lr, b2, c, m, D, S, a = sp.symbols("eta beta2 c m D S a", positive=True)
kappa, x, y, z = sp.symbols("kappa x y z", positive=True)
c2 = (1 - b2) / b2
g = sp.Matrix(sp.symbols("g1:4", real=True))
T = sp.Matrix(sp.symbols("t1:4", real=True))  # gradient of the sharpness


class ExpressionLoss:
    """A loss given as an expression, on which the shipped rules and flows run."""

    analytic = True

    def __init__(self, loss: sp.Expr, *variables: sp.Symbol) -> None:
        self.expression, self.variables, self.dim = sp.sympify(loss), variables, len(variables)

    def loss(self, theta: Any) -> sp.Expr:
        return self._at(self.expression, theta)

    def gradient(self, theta: Any) -> Any:
        return np.array([self._at(sp.diff(self.expression, v), theta) for v in self.variables])

    def hvp(self, theta: Any, v: Any) -> Any:
        hessian = sp.hessian(self.expression, self.variables)
        return np.array([self._at(entry, theta) for entry in hessian @ sp.Matrix(list(v))])

    def descended(self, theta: Any, rate: Any = lr) -> Any:
        """Theta after one step of the shipped gradient descent."""
        theta = np.array(theta, dtype=object)
        return eosim.GradientDescent(rate).step(theta, (), self.gradient(theta))[0]

    def shipped(self, **values: float) -> eosim.Polynomial:
        """The shipped polynomial at values of the parameters."""
        numbers = self.expression.subs({s: values[s.name] for s in self._parameters()})
        terms = sp.Poly(numbers, *self.variables).terms()
        return eosim.Polynomial({powers: float(factor) for powers, factor in terms})

    def _parameters(self) -> set[Any]:
        return self.expression.free_symbols - set(self.variables)

    def _at(self, expression: sp.Expr, theta: Any) -> sp.Expr:
        pairs = dict(zip(self.variables, theta, strict=True))
        return expression.subs(pairs, simultaneous=True)


def proved(
    name: str,
    statement: sp.Basic,
    differences: Callable[[], Mapping[str, sp.Expr]],
    summary: str,
    assumptions: Sequence[str],
    derivation: Callable[[], list[Step]],
    source: str = "derived here",
    roots: bool = False,
    **routes: Callable[[], str],
) -> Claim:
    """Identities with a derivation and further routes; with roots or exponentials, at numbers."""
    claim = identity(name, statement, differences, summary, assumptions, source=source)
    points = at_numbers(differences) if roots else at_rationals(differences, COUNT)
    walked = {"symbolic": claim.routes["symbolic"], "numbers" if roots else "rationals": points}
    return replace(claim, derivation=derivation, routes={**walked, **routes})


def held_variance(gradient: sp.Matrix, slope: sp.Matrix, pull: Any = 0) -> sp.Expr:
    r"""The :math:`\sigma^2` of gradient descent that holds S; ``pull`` is the rate at which S falls."""
    return (2 * pull / lr - 2 * gradient.dot(slope)) / slope.dot(slope)


def close(found: Any, expected: Any, meaning: str, tolerance: float = 1e-9) -> None:
    """Raise `Refuted` unless numbers agree, relative to the largest of the expected ones."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    error = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-300)
    if not error < tolerance:
        raise Refuted(f"{meaning}: {found}, not {expected}")


def grows(orbit: Any, rest: Any) -> bool:
    """Whether iterates of period 2 leave it, from the first twentieth to the last of them."""
    distance = np.linalg.norm(np.asarray(orbit) - np.asarray(rest), axis=1)
    part = len(distance) // 20
    return bool(distance[-part:].max() > distance[:part].max())


def multiplier(rule: Any, problem: Any, cycle: Any) -> float:
    """Largest multiplier of a rule's 2-cycle, by central differences of its shipped step."""
    cycle = np.asarray(cycle, dtype=float)
    sizes = 1e-5 * np.maximum(np.abs(cycle), 1)

    def twice(theta: Any) -> Any:
        for _ in range(2):
            theta, _state = rule.step(theta, (), problem.gradient(theta))
        return theta

    shifts = zip(np.diag(sizes), sizes, strict=True)
    rows = [(twice(cycle + shift) - twice(cycle - shift)) / (2 * h) for shift, h in shifts]
    return float(np.abs(np.linalg.eigvals(np.array(rows))).max())


def edge_states(
    rule: Callable[[float], Any], moments: int, beyond: float = 1.0
) -> Iterator[tuple[Any, Any, Any]]:
    """Random cubics in three variables: (flow, theta, nu) at ``beyond`` times the edge, one mode."""
    generator = np.random.default_rng(11)
    powers = [p for p in itertools.product(range(4), repeat=3) if 1 <= sum(p) <= 3]
    for _ in range(COUNT):
        while True:
            problem = eosim.Polynomial({p: float(generator.normal()) for p in powers})
            theta, nu = generator.uniform(-1, 1, 3), generator.uniform(0.5, 2, 3)
            nu = nu[:moments]
            root = np.broadcast_to(nu**0.25, 3) if moments else np.ones(3)
            values = np.linalg.eigvalsh(problem.hessian(theta) / np.outer(root, root))
            if values[-1] <= 0 or values[-2] > values[-1] / 2:
                continue
            flow = CentralFlow(problem, rule(2 * beyond / values[-1]), feedback=0.7)
            if flow.averages(np.concatenate([theta, np.log(nu)])).oscillation > 0:
                break
        yield flow, theta, nu


# --- gradient descent ----------------------------------------------------------------------------


def _variance() -> Claim:
    edge = 2 / lr
    returning = -kappa * (S - edge)
    held = held_variance(g, T, -returning)

    def drift(variance: Any) -> sp.Matrix:
        return -lr * (g + variance * T / 2)

    def differences() -> dict[str, sp.Expr]:
        u, v, r = sp.symbols("u v r", real=True)
        factors = iter(sp.symbols("k1:10", real=True))
        powers = [p for p in itertools.product(range(4), repeat=2) if 1 <= sum(p) <= 3]
        cubic = ExpressionLoss(sum(next(factors) * x**i * y**j for i, j in powers), x, y)
        theta, way = np.array([x, y]), np.array([u, v])
        mean = (cubic.descended(theta + r * way) + cubic.descended(theta - r * way)) / 2
        along = (way @ cubic.hvp(theta, way)).expand()
        centre = -lr * (cubic.gradient(theta) + r**2 * np.array([along.diff(x), along.diff(y)]) / 2)
        unknown = sp.Symbol("sigma2")
        (solved,) = sp.solve(T.dot(drift(unknown)), unknown)
        still = held_variance(g, T)
        return {
            "mean step from both ends, x": sp.expand(mean[0] - x - centre[0]),
            "mean step from both ends, y": sp.expand(mean[1] - y - centre[1]),
            "variance solved from dS/dt = 0": solved - still,
            "rate of the sharpness with the feedback": T.dot(drift(held)) - returning,
            "rate of the loss at the edge": g.dot(drift(still))
            + drift(still).dot(drift(still)) / lr,
        }

    def flow() -> str:
        for shipped, theta, _ in edge_states(eosim.GradientDescent, 0, 1.03):
            problem, rate = shipped.problem, shipped.lr
            values, vectors = np.linalg.eigh(problem.hessian(theta))
            top = vectors[:, -1]
            slope, force = third_derivative(problem, theta, top, top), problem.gradient(theta)
            numbers = {lr: rate, kappa: shipped.feedback, S: values[-1]}
            numbers |= dict(zip(g, force, strict=True)) | dict(zip(T, slope, strict=True))
            move = rate * shipped.field(theta)
            close(shipped.averages(theta).oscillation, held.subs(numbers), "tr Sigma")
            close(move, list(drift(held).subs(numbers)), "drift")
            h = 1e-4 / np.linalg.norm(move)
            ahead, behind = (
                np.linalg.eigvalsh(problem.hessian(theta + sign * h * move))[-1] for sign in (1, -1)
            )
            expected = -shipped.feedback * (values[-1] - 2 / rate)
            close((ahead - behind) / (2 * h), expected, "dS/dt", 1e-4)
        return f"{COUNT} states of the shipped flow: drift, variance, dS/dt by differences"

    def derivation() -> list[Step]:
        unknown = sp.Symbol("sigma2")
        return [
            Step("drift of the centre: the mean step from w +- sigma u", drift(unknown)),
            Step("dS/dt = grad S . dw/dt", sp.expand(T.dot(drift(unknown)))),
            Step("0 at the edge if the variance is", held_variance(g, T)),
            Step("with the feedback", held),
        ]

    rate = sp.Symbol("dS/dt")
    return proved(
        "central_flow_variance",
        equation(rate, returning),
        differences,
        "sigma^2 from dS/dt = 0; the feedback returns S to 2/eta; dL/dt = -|dw/dt|^2/eta there",
        ["one mode at the edge, g and grad S = t in three dimensions", "where sigma^2 >= 0"],
        derivation,
        f"{COHEN}; feedback: derived here",
        flow=flow,
    )


def excess_limit(rate: Any) -> Any:
    """The D below which the cycle of the pulled toy is stable."""
    return 1 / (2 * rate)


def locking_limit(rate: Any, force: Any, first: Any) -> Any:
    """The excess m2 below which a swing in the mode of excess m1 leaves the other at rest."""
    return force * (1 - rate * first) / (1 - rate * force)


TOY = ExpressionLoss(y * x**2 / 2 + c * (y - m) ** 2 / 2, x, y)


def _edge_two_cycle() -> Claim:
    """The cycle at the edge of the toy that a force pulls beyond it."""
    edge, excess = 2 / lr, a**2 / (2 * c)  # x^2 = a^2 = 2 c D
    on_cycle = {m: edge + excess, x: a, y: edge}
    mapped = TOY.descended((x, y))

    def jacobian() -> sp.Matrix:
        """Of the step in (ln x^2, y), on the cycle; in D."""
        after = sp.Matrix([sp.log(mapped[0] ** 2), mapped[1]])
        matrix = after.jacobian([x, y]) * sp.diag(x / 2, 1)
        return sp.simplify(matrix.subs(on_cycle).subs(a, sp.sqrt(2 * c * D)))

    def differences() -> dict[str, sp.Expr]:
        J = jacobian()
        gradient = sp.Matrix(TOY.gradient((0, edge)))
        mean = (TOY.loss((a, edge)) + TOY.loss((-a, edge))) / 2
        (threshold,) = sp.solve(J.det() - 1, D)
        return {
            "x changes sign": (mapped[0] + x).subs(on_cycle),
            "y stays": sp.expand((mapped[1] - y).subs(on_cycle)),
            "variance of the central flow": held_variance(gradient, sp.Matrix([0, 1]))
            .subs(m, edge + D) - 2 * c * D,
            "mean loss": (mean - c * excess**2 / 2 - a**2 / lr).subs(m, edge + excess),
            "determinant": J.det() - (1 - lr * c + 2 * lr**2 * c * D),
            "1 - trace + determinant": 1 - J.trace() + J.det() - 2 * lr**2 * c * D,
            "1 + trace + determinant": 1 + J.trace() + J.det() - 2 * (2 - lr * c) - 2 * lr**2 * c * D,
            "threshold": threshold - excess_limit(lr),
        }  # fmt: skip

    def cases(factor: float) -> Iterator[tuple[Any, Any, float]]:
        """(shipped toy, cycle, rate) with D at a factor of its threshold."""
        for rate, force in ((0.2, 1.0), (0.05, 6.0), (0.4, 2.0)):
            beyond = factor * excess_limit(rate)
            toy = TOY.shipped(c=force, m=2 / rate + beyond)
            yield toy, np.array([math.sqrt(2 * force * beyond), 2 / rate]), rate

    def spectral() -> str:
        for factor in (1 - _MARGIN, 1 + _MARGIN):
            for toy, cycle, rate in cases(factor):
                found = multiplier(eosim.GradientDescent(rate), toy, cycle)
                if (found > 1) != (factor > 1):
                    raise Refuted(f"at {factor} of D_max, eta = {rate}: multiplier {found}")
        return "multipliers by differences of the shipped step, 5 % on both sides, three (eta, c)"

    def simulation() -> str:
        for factor in (1 - _MARGIN, 1 + _MARGIN):
            for toy, cycle, rate in cases(factor):
                start = cycle * (1 + 1e-6)
                run = eosim.run(toy, eosim.GradientDescent(rate), start, 2000, record={})
                leaves = grows(run["theta"][::2], cycle)
                if leaves != (factor > 1):
                    raise Refuted(
                        f"at {factor} of D_max, eta = {rate}: the cycle is left: {leaves}"
                    )
        return "runs stay by the cycle 5 % below the threshold and leave it 5 % above"

    def flow() -> str:
        for toy, cycle, rate in cases(0.5):
            shipped = CentralFlow(toy, eosim.GradientDescent(rate))
            centre = np.array([0, cycle[1]])
            averages = shipped.averages(centre)
            close(shipped.field(centre) / cycle[1] + 1, [1, 1], "1 + field at the fixed point")
            ends = [toy.loss(cycle), toy.loss(cycle * [-1, 1])]
            close([averages.loss, averages.oscillation], [np.mean(ends), cycle[0] ** 2], "averages")
        return (
            "the shipped flow rests at y = 2/eta with the variance and the mean loss of the cycle"
        )

    def derivation() -> list[Step]:
        return [
            Step("step of (x, y)", sp.Matrix(mapped)),
            Step("cycle", sp.Tuple(equation(y, edge), equation(x**2, 2 * c * D))),
            Step("Jacobian in (ln x^2, y)", jacobian()),
            Step("determinant", sp.expand(jacobian().det())),
            Step("1 at", statement),
        ]

    statement = equation(sp.Symbol("D_max"), excess_limit(lr))
    return proved(
        "edge_two_cycle", statement, differences,
        "y = 2/eta, x^2 = 2 c D = sigma^2; stable iff D < 1/(2 eta)",
        ["L = y x^2/2 + c (y - m)^2/2", "D = m - 2/eta > 0", "eta c <= 2"],
        derivation, roots=True, spectral=spectral, simulation=simulation, flow=flow,
    )  # fmt: skip


def _slow_variable() -> Claim:
    """A force that slowly gives way: the variance decays with what it pulls."""
    q, t = sp.symbols("q t", positive=True)
    toy = ExpressionLoss(y * x**2 / 2 + c * (y + q * z - m) ** 2 / 2, x, y, z)
    edge, decay = 2 / lr, sp.exp(-lr * c * q**2 * t)
    path, variance = D / q * (1 - decay), 2 * c * D * decay
    pulled = {m: edge + D}

    def rate(place: Any) -> tuple[sp.Expr, sp.Matrix]:
        """sigma^2 and dw/dt at (0, 2/eta, z)."""
        force, slope = sp.Matrix(toy.gradient((0, edge, place))).subs(pulled), sp.Matrix([0, 1, 0])
        held = held_variance(force, slope)
        return held, -lr * (force + held * slope / 2)

    def differences() -> dict[str, sp.Expr]:
        function = sp.Function("z")(t)
        ode = sp.Eq(function.diff(t), rate(function)[1][2])
        solved = sp.dsolve(ode, function, ics={function.subs(t, 0): 0}).rhs
        held, move = rate(path)
        ends = [toy.loss((sign * sp.sqrt(variance), edge, path)) for sign in (1, -1)]
        averaged = c * (D - q * path) ** 2 / 2 + variance / lr
        return {
            "z solved from its equation": solved - path,
            "z obeys its equation": path.diff(t) - move[2],
            "y stays": move[1],
            "variance": held - variance,
            "mean loss": sum(ends).subs(pulled) / 2 - averaged,
        }

    def flow() -> str:
        values = {lr: 0.02, c: 1.0, q: 0.05, D: 4.0}
        shipped = CentralFlow(toy.shipped(c=1.0, q=0.05, m=104.0), eosim.GradientDescent(0.02))
        for time in (0, 3000, 60000):
            numbers = {**values, t: time}
            centre = np.array([0.0, 100.0, float(path.subs(numbers))])
            move = 0.02 * shipped.field(centre)
            close(move[2], path.diff(t).subs(numbers), f"dz/dt at step {time}")
            close(1 + move[:2], [1, 1], f"x and y at step {time}")
            spread = shipped.averages(centre).oscillation
            close(spread, variance.subs(numbers), f"variance at step {time}")
        return "field and variance of the shipped flow on the closed path, steps 0, 3000, 60000"

    def derivation() -> list[Step]:
        held, move = rate(z)
        return [
            Step("variance at (0, 2/eta, z)", sp.factor(held)),
            Step("dz/dt", sp.factor(move[2])),
            Step("z from 0", equation(z, path)),
            Step("so that", statement),
        ]

    statement = equation(sp.Symbol("sigma^2"), variance)
    return proved(
        "central_flow_slow_variable", statement, differences,
        "z by dsolve, variance and mean loss in closed form",
        ["L = y x^2/2 + c (y + q z - m)^2/2", "D = m - 2/eta > 0", "from y = 2/eta, z = 0"],
        derivation, roots=True, flow=flow,
    )  # fmt: skip


def _locking() -> Claim:
    """Two modes beyond the edge: gradient descent may swing in one of them alone."""
    first, second = sp.symbols("m1 m2", positive=True)
    x1, x2, y1, y2, y12 = sp.symbols("x1 x2 y1 y2 y12", real=True)
    k1, k2 = sp.symbols("k1 k2")
    edge = 2 / lr
    # Isometric coordinates: y12 is sqrt(2) Y_12, so that |Y|_F^2 is the sum of squares.
    coupling = (y1 * x1**2 + y2 * x2**2) / 2 + y12 * x1 * x2 / sp.sqrt(2)
    toy = ExpressionLoss(
        coupling + c * ((y1 - k1) ** 2 + (y2 - k2) ** 2 + y12**2) / 2, x1, x2, y1, y2, y12
    )
    far = {k1: edge + first, k2: edge + second}
    cycle = {x1: a, x2: 0, y1: edge, y2: edge + second, y12: 0}
    mapped = sp.Matrix(toy.descended(toy.variables))
    exact = locking_limit(lr, c, first)

    def jacobian() -> sp.Matrix:
        """Of the step with x reversed, which rests on the cycle; (x2, y12) apart from the rest."""
        turned = sp.diag(-1, -1, 1, 1, 1) * mapped
        on_cycle = turned.jacobian(toy.variables).subs(far).subs(cycle)
        return on_cycle.subs(a, sp.sqrt(2 * c * first))

    def transverse() -> sp.Matrix:
        return sp.simplify(jacobian()[[1, 4], [1, 4]])

    def differences() -> dict[str, sp.Expr]:
        whole = jacobian()
        J, rest = whole[[1, 4], [1, 4]], whole[[0, 2, 3], [0, 2, 3]]
        still = (sp.diag(-1, -1, 1, 1, 1) * mapped).subs(far).subs(cycle)
        here = sp.Matrix(toy.variables).subs(cycle)
        (threshold,) = sp.solve(J.det() - 1, second)
        apart = whole[[1, 4], [0, 2, 3]].norm() + whole[[0, 2, 3], [1, 4]].norm()
        return {
            "the cycle rests": sp.expand(
                (still - here).subs(first, a**2 / (2 * c)).norm() ** 2
            ),
            "(x2, Y12) is apart": apart,
            "rate of the trace": (J.trace() - 2) / lr - (second - c),
            "rate of the determinant": (J - sp.eye(2)).det() / lr**2 - c * (first - second),
            "threshold": threshold - exact,
            "its limit": sp.limit(exact, lr, 0) - c,
            "1 + trace + determinant": 1 + J.trace() + J.det()
            - (4 + 2 * lr * (second - c) + lr**2 * c * (first - second)),
            "the rest: the cycle of one mode, and y2": rest.charpoly().as_expr().subs(
                sp.Symbol("lambda"), z)
            - (z - 1 + lr * c) * (z**2 - (2 - lr * c) * z + 1 - lr * c + 2 * lr**2 * c * first),
        }  # fmt: skip

    def cases(factor: float) -> Iterator[tuple[Any, Any, float]]:
        for rate, force, size in ((0.02, 1.0, 4.0), (0.05, 2.0, 3.0)):
            other = factor * locking_limit(rate, force, size)
            shipped = toy.shipped(c=force, k1=2 / rate + size, k2=2 / rate + other)
            place = [math.sqrt(2 * force * size), 0, 2 / rate, 2 / rate + other, 0]
            yield shipped, np.array(place), rate

    def spectral() -> str:
        for factor in (1 - _MARGIN, 1 + _MARGIN):
            for shipped, place, rate in cases(factor):
                found = multiplier(eosim.GradientDescent(rate), shipped, place)
                if (found > 1) != (factor > 1):
                    raise Refuted(f"at {factor} of m2_max, eta = {rate}: multiplier {found}")
        return "multipliers by differences of the shipped step, 5 % on both sides, two (eta, c, m1)"

    def simulation() -> str:
        for factor in (1 - 2 * _MARGIN, 1 + 2 * _MARGIN):
            for shipped, place, rate in cases(factor):
                start = place + np.array([0, 1e-6, 0, 0, 0])
                run = eosim.run(shipped, eosim.GradientDescent(rate), start, 4000, record={})
                leaves = grows(run["theta"][::2], place)
                if leaves != (factor > 1):
                    raise Refuted(
                        f"at {factor} of m2_max, eta = {rate}: the cycle is left: {leaves}"
                    )
        return "runs stay on one mode 10 % below the threshold and leave it 10 % above"

    def flow() -> str:
        for shipped, place, rate in cases(0.5):
            central = CentralFlow(shipped, eosim.GradientDescent(rate))
            centre = np.array([0, 0, 2 / rate, 2 / rate, 0])
            pulls = shipped.gradient(centre)[2:4]  # -c m1 and -c m2
            found = central.covariance(centre)[:2, :2]
            close(found, np.diag(-2 * pulls), f"Sigma of both modes at eta = {rate}", 1e-8)
            close(1 + central.field(centre), np.ones(5), "1 + field at rest", 1e-7)
            if place[3] - 2 / rate < 1e-3:
                raise Refuted("the second mode of the cycle is not above the edge")
        return "the shipped central flow holds both modes at the edge there: not what descent does"

    def derivation() -> list[Step]:
        J = transverse()
        return [
            Step("cycle of one mode, a^2 = 2 c m1",
                 sp.Tuple(*(equation(*pair) for pair in cycle.items()))),
            Step("step of (x2, sqrt(2) Y12) on it, with x reversed", J),
            Step("determinant", sp.expand(J.det())),
            Step("1 at, exactly", equation(sp.Symbol("m2_max"), exact)),
            Step("for small eta", equation(sp.Symbol("m2_max"), c)),
        ]  # fmt: skip

    return proved(
        "edge_locking", equation(sp.Symbol("m2_max"), exact), differences,
        "the cycle of one mode holds the other above the edge iff m2 < c, to leading order in eta",
        ["L = x^T Y x/2 + c |Y - M|^2/2, M = 2/eta + diag(m1, m2)", "m1 > m2",
         "m1 < 1/(2 eta), eta c < 1"],
        derivation, roots=True, spectral=spectral, simulation=simulation, flow=flow,
    )  # fmt: skip


def claims() -> list[Claim]:
    """The variance that holds the edge, the cycle behind it, a slow variable, and locking."""
    return [_variance(), _edge_two_cycle(), _slow_variable(), _locking()]
