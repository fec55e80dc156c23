r"""Adaptive rules at the edge: the covariance of their central flow, and where it comes to rest.

The second moments and the steps are those of the shipped `eosim.RMSProp` and `ScalarRMSProp`, run on
symbols; the rest is compared with `eosim.flows.CentralFlow` at numbers.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import sympy as sp

import eosim
from eosim.flows import CentralFlow
from eosim.optimizers import ScalarRMSProp
from eosim.problems.base import third_derivative
from eosim.trajectory import RunState
from theory.adaptive import equation
from theory.central_flow import (
    COHEN,
    COUNT,
    TOY,
    ExpressionLoss,
    S,
    T,
    b2,
    c,
    c2,
    close,
    edge_states,
    g,
    lr,
    m,
    proved,
    x,
    y,
)
from theory.claim import Claim, Refuted, Step


def _scalar_variance() -> Claim:
    """Scalar RMSProp: the ratio eta S/sqrt(nu) stands at 2."""
    square, slopes, along = g.dot(g), T.dot(T), g.dot(T)
    nu, unknown = sp.Symbol("nu", positive=True), sp.Symbol("sigma2")
    held = (-b2 * along + (1 - b2) * (S**2 / 4 - square / lr**2)) / (
        b2 * slopes / 2 + (1 - b2) * S**2 / lr**2
    )

    def rates(variance: Any, moment: Any = lr**2 * S**2 / 4) -> tuple[sp.Matrix, sp.Expr]:
        """dw/dt and dnu/dt; at the edge unless told nu."""
        drift = -(g + variance * T / 2) * lr / sp.sqrt(moment)
        return drift, c2 * (square + variance * S**2 - moment)

    def ratio_rate(variance: Any) -> sp.Expr:
        """Of ln(eta S/sqrt(nu))."""
        drift, moment = rates(variance)
        return T.dot(drift) / S - moment / (2 * lr**2 * S**2 / 4)

    def differences() -> dict[str, sp.Expr]:
        force = np.array(list(g))
        _, (after,) = ScalarRMSProp(lr, b2).step(0 * force, (nu,), force)
        (solved,) = sp.solve(ratio_rate(unknown), unknown)
        return {
            "the second moment contains the current gradient": after - nu - c2 * (square - after),
            "variance solved": solved - held,
            "ratio stands still": ratio_rate(held),
        }

    def flow() -> str:
        for shipped, theta, moment in edge_states(lambda rate: ScalarRMSProp(rate, 0.9), 1):
            problem, rate = shipped.problem, shipped.lr
            values, vectors = np.linalg.eigh(problem.hessian(theta))
            slope = third_derivative(problem, theta, vectors[:, -1], vectors[:, -1])
            numbers = {lr: rate, b2: 0.9, S: values[-1]} | dict(zip(T, slope, strict=True))
            numbers |= dict(zip(g, problem.gradient(theta), strict=True))
            state = np.concatenate([theta, np.log(moment)])
            variance = held.subs(numbers)
            drift, growth = rates(variance)
            close(shipped.averages(state).oscillation, variance, "tr Sigma")
            expected = [*drift.subs(numbers), growth.subs(numbers) / moment[0]]
            close(rate * shipped.field(state), expected, "field")
        return f"{COUNT} states at the edge of the shipped flow: variance, drift, second moment"

    def derivation() -> list[Step]:
        drift, moment = rates(unknown, nu)
        return [
            Step("drift of the centre", drift),
            Step("second moment", equation(sp.Symbol("dnu/dt"), moment)),
            Step("rate of ln(eta S/sqrt(nu)) at the edge", sp.factor(ratio_rate(unknown))),
            Step("0 if", statement),
        ]

    statement = equation(sp.Symbol("sigma^2"), held)
    return proved(
        "central_flow_scalar_rmsprop", statement, differences,
        "sigma^2 from d(eta S/sqrt nu)/dt = 0, with nu that contains the current gradient",
        ["eta S/sqrt(nu) = 2; where sigma^2 >= 0", "one mode, g and grad S = t in three dimensions"],
        derivation, COHEN, flow=flow,
    )  # fmt: skip


def _rmsprop_variance() -> Claim:
    """RMSProp: 2P - H stands still along the mode at the edge; in closed form where S grows."""
    P = sp.symbols("P1:4", positive=True)
    u = sp.symbols("u1:4", real=True)
    unknown = sp.Symbol("X")
    entries = list(zip(P, u, g, T, strict=True))
    push = sum(t * f / p for p, _, f, t in entries) + c2 * sum(
        p * v**2 * (f**2 / (lr * p) ** 2 - 1) for p, v, f, _ in entries
    )
    hold = sum(t**2 / p for p, _, _, t in entries) / 2 + 4 * c2 / lr**2 * sum(
        p * v**4 for p, v, _, _ in entries
    )
    force, p_y, nu_x = sp.symbols("alpha p_y nu_x", positive=True)
    steady = lr**2 / 4 * (1 + 2 * p_y * force / (c2 * y)) / (1 + lr**2 * p_y / (4 * c2 * y))

    def rates(X: Any) -> tuple[list[sp.Expr], list[sp.Expr]]:
        """dw/dt and dnu/dt with Sigma = X u u^T."""
        drift = [-(f + X * t / 2) / p for p, _, f, t in entries]
        moments = [c2 * (f**2 + 4 * p**2 * X * v**2 - (lr * p) ** 2) for p, v, f, _ in entries]
        return drift, moments

    def differences() -> dict[str, sp.Expr]:
        gradient, memory = np.array(list(g)), np.array(sp.symbols("nu1:4", positive=True))
        _, (after, _) = eosim.RMSProp(lr, b2, eps=0).step(0 * gradient, (memory, 0), gradient)
        current = after - memory - c2 * (gradient**2 - after)
        drift, moments = rates(unknown)
        rate_of_P = [
            n / (2 * lr**2 * p) for n, p in zip(moments, P, strict=True)
        ]  # P = sqrt(nu)/eta
        gap = sum(2 * dp * v**2 for dp, v in zip(rate_of_P, u, strict=True)) - T.dot(
            sp.Matrix(drift)
        )
        # y x^2/2 - alpha y: H = y along x, 2 P_x = y at the edge, Sigma = sigma^2.
        toy_rate = p_y * (force - unknown / 2) / y - c2 * (y**2 * unknown / nu_x - 1) / 2
        (closed,) = sp.solve(toy_rate, unknown)
        on_toy = dict(zip([*P, *u, *g, *T], [y / 2, 1 / p_y, 1, sp.sqrt(2 / y), 0, 0,
                                            0, -force, 0, 0, 2 / y, 0], strict=True))  # fmt: skip
        toy = (-2 / y * push / hold).subs(on_toy)  # X u^2, and D = grad (u^T H u) = u^2
        return {
            "each second moment contains the current gradient": sum(map(sp.expand, current)),
            "rate of 2P - H along the mode": sp.expand(gap - push - hold * unknown),
            "toy: ratio stands still": closed.subs(nu_x, (lr * y / 2) ** 2) - steady,
            "toy: from the general form": toy - steady,
        }

    def flow() -> str:
        for shipped, theta, moment in edge_states(
            lambda rate: eosim.RMSProp(rate, 0.9, eps=0.0), 3
        ):
            problem, rate = shipped.problem, shipped.lr
            root = np.sqrt(np.sqrt(moment) / rate)
            vectors = np.linalg.eigh(problem.hessian(theta) / np.outer(root, root))[1]
            mode = vectors[:, -1] / root
            slope = third_derivative(problem, theta, mode, mode)
            values = [*root**2, *mode, *problem.gradient(theta), *slope]
            numbers = dict(zip([*P, *u, *g, *T], values, strict=True)) | {lr: rate, b2: 0.9}
            size = (-push / hold).subs(numbers)
            state = np.concatenate([theta, np.log(moment)])
            close(shipped.averages(state).oscillation, size * (mode @ mode), "tr Sigma")
            drift, growth = (
                np.array([e.subs({unknown: size}).subs(numbers) for e in part])
                for part in rates(unknown)
            )
            close(rate * shipped.field(state), [*drift, *(growth / moment)], "field")
        toy = ExpressionLoss(y * x**2 / 2 - y, x, y).shipped()
        for height in (20.0, 50.0):
            moments = np.array([(0.01 * height / 2) ** 2, 1.0])
            shipped = CentralFlow(toy, eosim.RMSProp(0.01, 0.99, eps=0.0))
            expected = steady.subs({lr: 0.01, b2: 0.99, y: height, force: 1, p_y: 0.01})
            state = np.array([0.0, height, *np.log(moments)])
            close(shipped.averages(state).oscillation, expected, f"toy at y = {height}")
        return f"{COUNT} states at the edge of the shipped flow, and two of the toy"

    def derivation() -> list[Step]:
        drift, moments = rates(unknown)
        return [
            Step("drift of the centre, Sigma = X u u^T", sp.Matrix(drift)),
            Step("second moments", sp.Matrix(moments)),
            Step("rate of u^T (2P - H) u without oscillation", push),
            Step("and for each unit of X", hold),
            Step("0 if", equation(unknown, -push / hold)),
            Step("on y x^2/2 - alpha y, at the edge", statement),
        ]

    statement = equation(sp.Symbol("sigma^2"), steady)
    return proved(
        "central_flow_rmsprop", statement, differences,
        "u^T (2P - H) u stands still; (eta^2/4)(1 + 2 p_y alpha/(c_2 y)) for eta^2 p_y << y",
        ["L = y x^2/2 - alpha y at eta y = 2 sqrt(nu_x)", "p_y = eta/sqrt(nu_y)",
         "general form: three dimensions, one mode u with u^T P u = 1"],
        derivation, f"{COHEN}; toy: derived here", flow=flow, roots=True,
    )  # fmt: skip


def _scalar_two_cycle() -> Claim:
    """The cycle of scalar RMSProp on the toy that a force pulls beyond its edge."""
    target = y + lr**2 / (8 * c)
    start, nu = np.array([lr / 2, y]), (lr * y / 2) ** 2
    spread = sp.Symbol("sigma2", positive=True)

    def stepped() -> tuple[Any, ...]:
        """(x, y, nu, lr/P) after one shipped step from (eta/2, y)."""
        rule = ScalarRMSProp(lr, b2, 0)
        gradient = np.array([entry.subs(m, target) for entry in TOY.gradient(start)])
        theta, state = rule.step(start, (nu,), gradient)
        found = (*theta, *state, lr / rule.preconditioner(state))
        return tuple(sp.simplify(sp.nsimplify(entry, rational=True)) for entry in found)

    def differences() -> dict[str, sp.Expr]:
        after, height, moment, size = stepped()
        # The centre's own gradient is -sigma^2/2 along y where the central flow rests.
        resting = (spread / 2) ** 2 + spread * y**2 - nu
        return {
            "x^2": after**2 - statement.rhs,
            "x changes sign": after + lr / 2,
            "y stays": height - y,
            "nu stays": moment - nu,
            "step size": size - 2 / y,
            "central flow at rest": resting / y**2
            - (spread * (1 + spread / (4 * y**2)) - lr**2 / 4),
        }

    def simulation() -> str:
        rate, height, force = 0.5, 5.0, 0.5
        toy = TOY.shipped(c=force, m=height + rate**2 / (8 * force))
        state = RunState(
            np.array([rate / 2 * 1.01, height + 1e-3]), (np.array((rate * height / 2) ** 2),)
        )
        run = eosim.run(toy, ScalarRMSProp(rate, 0.9), None, 6000, state=state, record={})
        close(np.abs(run["theta"][-2:, 0]), [rate / 2] * 2, "x at the end", 1e-6)
        close(run["theta"][-2:, 1], [height] * 2, "y at the end", 1e-6)
        return "a run of 6000 steps from nearby ends on the cycle"

    def flow() -> str:
        rate, height, force = 0.5, 5.0, 0.5
        variance = 2 * height**2 * (np.sqrt(1 + rate**2 / (4 * height**2)) - 1)
        toy = TOY.shipped(c=force, m=height + variance / (2 * force))
        shipped = CentralFlow(toy, ScalarRMSProp(rate, 0.9))
        state = np.array([0, height, 2 * np.log(rate * height / 2)])
        close(shipped.averages(state).oscillation, variance, "variance at rest")
        close(1 + shipped.field(state), np.ones(3), "1 + field at rest")
        return "the shipped flow rests at sigma^2 (1 + sigma^2/(4 y^2)) = eta^2/4, just beside the cycle"

    def derivation() -> list[Step]:
        return [
            Step("(x, y, nu, eta/P) after a step from (eta/2, y)", sp.Matrix(stepped())),
            Step("the target for which y stays", equation(m, target)),
            Step("so that on the cycle", sp.Tuple(statement, equation(y, m - lr**2 / (8 * c)))),
            Step("the central flow rests where eta^2/4 is", spread * (1 + spread / (4 * y**2))),
        ]

    statement = equation(x**2, lr**2 / 4)
    return proved(
        "scalar_rmsprop_two_cycle", statement, differences,
        "x^2 = eta^2/4, y = m - eta^2/(8 c), step 2/y; of the central flow to O(eta^2/y^2)",
        ["L = y x^2/2 + c (y - m)^2/2", "eps = 0; m > eta^2/(8 c), so that y > 0"],
        derivation, roots=True, simulation=simulation, flow=flow,
    )  # fmt: skip


# --- the preconditioner at rest ------------------------------------------------------------------

_CURVATURES = sp.symbols("h1:4", positive=True)


def resting_preconditioner(H: Any) -> list[Any]:
    """Half the sums of |H_ij| along the rows."""
    return [sum(abs(entry) for entry in row) / 2 for row in H.tolist()]


def frustrated_preconditioner(curvature: Any) -> Any:
    """One entry, in its curvature; every coupling is -1."""
    return (curvature + 1) / 2


def _resting_flow(H: Any, P: Any, Z: Any) -> None:
    """Raise `Refuted` unless the shipped flow rests at theta = 0 and P, with Sigma = (eta^2/4) Z."""
    rate = 0.1
    flow = CentralFlow(eosim.Quadratic(H), eosim.RMSProp(rate, 0.9, eps=0.0))
    state = np.concatenate([np.zeros(len(H)), 2 * np.log(rate * P)])
    close(flow.covariance(state), rate**2 / 4 * Z, f"Sigma at rest on {H.tolist()}", 1e-8)
    close(1 + flow.field(state), np.ones(2 * len(H)), f"1 + field at rest on {H.tolist()}", 1e-8)


def _smallest_trace(H: Any, P: Any) -> None:
    """Raise `Refuted` if P is not allowed, or some diagonal that is has a smaller trace."""
    generator = np.random.default_rng(5)
    if np.linalg.eigvalsh(2 * np.diag(P) - H)[0] < -1e-12:
        raise Refuted(f"H = {H.tolist()} is not below 2P, P = {P}")
    for _ in range(400):
        other = P * np.exp(generator.normal(size=len(P)) * 10 ** generator.uniform(-3, 0))
        other *= np.linalg.eigvalsh(H / np.sqrt(np.outer(other, other)))[-1] / 2
        if other.sum() < P.sum() * (1 - 1e-12):
            raise Refuted(f"on {H.tolist()}, {other} has a smaller trace than {P}")


def _stationary() -> Claim:
    """Where the central flow of RMSProp comes to rest, and what that preconditioner minimises."""
    size = 3
    couplings = sp.symbols("h12 h13 h23", positive=True)
    pairs = list(itertools.combinations(range(size), 2))
    p, h, Y, force = sp.symbols("P H Y g", positive=True)
    vector = sp.Matrix(sp.symbols("v1:4"))

    def hessian(signs: tuple[int, ...]) -> sp.Matrix:
        """With s_i s_j H_ij positive."""
        H = sp.diag(*_CURVATURES)
        for (i, j), strength in zip(pairs, couplings, strict=True):
            H[i, j] = H[j, i] = signs[i] * signs[j] * strength
        return H

    def lagrangian() -> sp.Expr:
        """Of one entry: P + g^2/(eta^2 P) - Y (2P - H)."""
        return p + force**2 / (lr**2 * p) - Y * (2 * p - h)

    def differences() -> dict[str, sp.Expr]:
        slope = sp.diff(lagrangian(), p)
        rest = force**2 + 4 * p**2 * (lr**2 * Y / 2) - lr**2 * p**2  # dnu/dt over c_2
        found = {
            "second moments at rest are the multiplier's equation": rest + lr**2 * p**2 * slope,
            "no curvature: |g|/eta": slope.subs({Y: 0, p: force / lr}),
            "diagonal at the edge: sign of the multiplier": sp.solve(slope.subs(p, h / 2), Y)[0]
            - (1 - 4 * force**2 / (lr * h) ** 2) / 2,
        }
        for signs in itertools.product([1], [1, -1], [1, -1]):
            H, s = hessian(signs), sp.Matrix(signs)
            diagonal = sp.diag(*resting_preconditioner(H))
            squares = sum(
                strength * (vector[i] - signs[i] * signs[j] * vector[j]) ** 2
                for (i, j), strength in zip(pairs, couplings, strict=True)
            )
            w = np.array(list(lr / 2 * s))
            gradient = np.array([sp.factor(entry) for entry in H @ sp.Matrix(w)])
            rule = eosim.RMSProp(lr, b2, eps=0)
            moved, _ = rule.step(w, (gradient**2, 0), gradient)
            found |= {
                f"2P s = H s, {signs}": vector.dot((2 * diagonal - H) * s),
                f"2P - H is not negative, {signs}": sp.expand(
                    vector.dot((2 * diagonal - H) * vector) - squares),
                f"duality gap, {signs}": diagonal.trace() - s.dot(H * s) / 2,
                f"two-cycle of the shipped step, {signs}": sum(
                    (sp.simplify(sp.nsimplify(e, rational=True)) + e0) * v
                    for e, e0, v in zip(moved, w, vector, strict=True)),
            }  # fmt: skip
        return found

    def cases() -> list[tuple[Any, Any]]:
        plain = [[4.0, 1.0], [1.0, 2.0]], [[4.0, -2.0], [-2.0, 2.0]]
        found = [(np.array(H), np.sign(H[0])) for H in plain]
        numbers = dict(zip([*_CURVATURES, *couplings], [2.0, 3.0, 2.5, 0.5, 1.0, 0.7], strict=True))
        for signs in itertools.product([1], [1, -1], [1, -1]):
            H = np.array(hessian(signs).subs(numbers).tolist(), dtype=float)
            found.append((H, np.array(signs, dtype=float)))
        return found

    def flow() -> str:
        for H, signs in cases():
            _resting_flow(H, np.array(resting_preconditioner(H)), np.outer(signs, signs))
        return "the shipped flow rests there on six Hessians, Sigma = (eta^2/4) s s^T"

    def feasible() -> str:
        for H, _ in cases():
            _smallest_trace(H, np.array(resting_preconditioner(H)))
        return "400 diagonals with H <= 2P on each of six Hessians: none of a smaller trace"

    def simulation() -> str:
        for H, _ in cases()[:2]:
            theta, rate = np.array([1.0, -0.7]) * 1e-3, 1e-3
            rule, memory = eosim.RMSProp(rate, 0.99, eps=0.0), ((H @ theta) ** 2 + 1e-12, 0)
            for _ in range(5000):
                theta, memory = rule.step(theta, memory, H @ theta)
            ended = rule.preconditioner(memory) / rate
            close(ended, resting_preconditioner(H), f"P of RMSProp on {H.tolist()}", 0.02)
        return "RMSProp ends there on two Hessians, within 2 %"

    def derivation() -> list[Step]:
        H = hessian((1, 1, -1))
        return [
            Step("minimised subject to H <= 2P, one entry, with the multiplier Y", lagrangian()),
            Step(
                "its derivative is 0 where dnu/dt is, with Sigma = eta^2 Y/2",
                sp.diff(lagrangian(), p),
            ),
            Step("without gradient Y_ii = 1/2; a Hessian with s = (1, 1, -1)", H),
            Step("P", sp.diag(*resting_preconditioner(H))),
            Step("2P - H, 0 along s", 2 * sp.diag(*resting_preconditioner(H)) - H),
        ]

    i, j = sp.symbols("i j", integer=True)
    entry = sp.Abs(sp.IndexedBase("H")[i, j])
    return proved(
        "stationary_preconditioner",
        equation(sp.IndexedBase("P")[i], sp.Sum(entry, (j, 1, sp.Symbol("n"))) / 2),
        differences,
        "2P s = H s with 2P - H a sum of squares; no duality gap with Z = s s^T; a two-cycle of RMSProp",
        ["quadratic loss, signs s with s_i s_j H_ij >= 0", "P with the rate in it", "eps = 0",
         "symbols: three dimensions"],
        derivation, f"{COHEN}; sign case: derived here",
        roots=True, flow=flow, feasible=feasible, simulation=simulation,
    )  # fmt: skip


def _frustrated() -> Claim:
    """Three couplings that no signs can make positive: two modes at the edge."""
    ones = sp.ones(3)
    H = sp.diag(*(h + 1 for h in _CURVATURES)) - ones
    P = sp.diag(*(frustrated_preconditioner(h) for h in _CURVATURES))
    unknowns = sp.symbols("z12 z13 z23")
    z12, z13, z23 = unknowns
    general = sp.Matrix([[1, z12, z13], [z12, 1, z23], [z13, z23, 1]])
    vector = sp.Matrix(sp.symbols("v1:4"))

    def solved() -> sp.Matrix:
        """Z with unit diagonal in the kernel of 2P - H."""
        solutions = sp.solve(list((2 * P - H) * general), unknowns, dict=True)
        if len(solutions) != 1 or len(solutions[0]) != 3:
            raise Refuted(f"Z is not unique: {solutions}")
        return general.subs(solutions[0])

    def differences() -> dict[str, sp.Expr]:
        Z = solved()
        return {
            "2P - H": vector.dot((2 * P - H - ones) * vector),
            "Z": vector.dot((Z - (3 * sp.eye(3) - ones) / 2) * vector),
            "Z is not negative: Z^2 = 3 Z/2": vector.dot((Z**2 - 3 * Z / 2) * vector),
            "duality gap": P.trace() - (H * Z).trace() / 2,
            "modes at the edge": sp.Integer(3 - (2 * P - H).rank() - 2),
        }

    numbers = dict(zip(_CURVATURES, (2.0, 2.2, 2.5), strict=True))
    curvature = np.array(H.subs(numbers).tolist(), dtype=float)
    diagonal = np.array([P.subs(numbers)[k, k] for k in range(3)], dtype=float)

    def signs() -> str:
        for pattern in itertools.product([1, -1], repeat=3):
            s = np.array(pattern)
            if (np.outer(s, s) * curvature >= 0).all():
                raise Refuted(f"signs {pattern} make every coupling positive")
        _smallest_trace(curvature, diagonal)
        return "none of 8 sign patterns serves; 400 diagonals with H <= 2P, none of a smaller trace"

    def flow() -> str:
        _resting_flow(curvature, diagonal, np.array(solved().tolist(), dtype=float))
        return "the shipped flow rests there with two modes, Sigma = (eta^2/4) Z"

    def derivation() -> list[Step]:
        return [
            Step("Hessian", H),
            Step("preconditioner", P),
            Step("2P - H", 2 * P - H),
            Step("the only Z with unit diagonal in its kernel", solved()),
        ]

    h = sp.Symbol("h")
    return proved(
        "frustrated_preconditioner", equation(sp.Symbol("P_i"), frustrated_preconditioner(h)), differences,
        "2P - H is all ones, Z has -1/2 off its diagonal, and there is no duality gap",
        ["3 x 3, every coupling -1", "h = H_ii", "quadratic loss"],
        derivation, signs=signs, flow=flow,
    )  # fmt: skip


def claims() -> list[Claim]:
    """Covariances of adaptive rules at the edge, and the preconditioners they rest at."""
    return [
        _scalar_variance(),
        _rmsprop_variance(),
        _scalar_two_cycle(),
        _stationary(),
        _frustrated(),
    ]
