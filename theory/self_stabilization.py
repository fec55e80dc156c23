r"""Self-stabilisation at the edge: its cycle, what the recursion gains, and what noise does to it.

The recursion, the flow and the energy are those of `eosim.flows.self_stabilization`, run on symbols.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.integrate
import sympy as sp

from eosim.flows import self_stabilization
from theory.adaptive import equation
from theory.central_flow import close, proved
from theory.claim import Claim, Refuted, Step

_DAMIAN = "Damian, Nichani & Lee 2022, arXiv 2209.15594"
_GAP = "Liao, Kolomvaki & Kyrillidis 2026, arXiv 2604.21016"

lr, alpha, beta, s, c, m, x = sp.symbols("eta alpha beta s c m x", positive=True)
X, y = sp.symbols("X y", real=True)


def _self_stabilization_cycle() -> Claim:
    """The first integral of the flow of self-stabilisation, its peak and its period."""
    growth, start = sp.exp(X), sp.Symbol("X0", real=True)
    energy = self_stabilization.energy(X, y, alpha, growth)
    rates = sp.Matrix(self_stabilization.field(X, y, lr, alpha, growth))
    highest = sp.sqrt(alpha * (sp.exp(start) - start - 1))

    def differences() -> dict[str, sp.Expr]:
        size = sp.sqrt(2 * alpha / beta) * sp.exp(X / 2)
        after, height = self_stabilization.step(size, y, lr, alpha, beta)
        moved = sp.log(sp.simplify(after**2 / size**2))  # of X
        J = rates.jacobian([X, y]).subs({X: 0, y: 0})
        return {
            "dX/dt is the step for small eta": moved.diff(lr).subs(lr, 0) - rates[0] / lr,
            "dy/dt is the step": height - y - rates[1],
            "first integral": energy.diff(X) * rates[0] + energy.diff(y) * rates[1],
            "first integral at rest": energy.subs({X: 0, y: 0}),
            "y is largest where X = 0": rates[1].subs(X, 0),
            "height of the peak": energy.subs({X: start, y: 0}) - energy.subs({X: 0, y: highest}),
            "small cycles turn": J.trace(),
            "by sqrt(det J) per step": J.det() - 2 * lr**2 * alpha,
        }

    def shipped() -> str:
        rate, force, slope = 0.02, 4.0, 1.5
        for x0 in (0.01, 0.3, 2.0):
            logarithm = math.log(x0**2 * slope / (2 * force))
            expected = float(highest.subs({start: logarithm, alpha: force}))
            close(self_stabilization.first_peak(x0, force, slope), expected, f"peak from {x0}")

            def field(_: float, state: Any) -> Any:
                return self_stabilization.field(state[0], state[1], rate, force, np.exp(state[0]))

            steps = np.linspace(0, 2 * self_stabilization.period(rate, force), 2001)
            solved = scipy.integrate.solve_ivp(
                field, (0, steps[-1]), [logarithm, 0.0], t_eval=steps, rtol=1e-10, atol=1e-12
            )
            close(solved.y[1].max(), expected, f"peak of the integrated flow from {x0}", 1e-4)
        expected = float((2 * sp.pi / sp.sqrt(2 * lr**2 * alpha)).subs({lr: rate, alpha: force}))
        close(self_stabilization.period(rate, force), expected, "period")
        small = scipy.integrate.solve_ivp(
            field, (0, expected), [1e-3, 0.0], rtol=1e-10, atol=1e-14
        ).y[:, -1]
        close(small, [1e-3, 0], "a small cycle after one period", 1e-5)
        return "shipped peak and period, and the shipped flow integrated by scipy"

    def derivation() -> list[Step]:
        return [
            Step("recursion", sp.Tuple(*self_stabilization.step(x, y, lr, alpha, beta))),
            Step("flow of (X, y), x^2 = (2 alpha/beta) e^X", rates),
            Step("first integral", energy),
            Step("from (X0, 0) to the peak, X = 0", statement),
            Step("Jacobian at rest", rates.jacobian([X, y]).subs({X: 0, y: 0})),
            Step("period of small cycles", 2 * sp.pi / (lr * sp.sqrt(2 * alpha))),
        ]

    statement = equation(sp.Symbol("y_max"), highest)
    return proved(
        "self_stabilization_cycle", statement, differences,
        "y^2 + alpha (e^X - X - 1) is constant; its peak; period 2 pi/(eta sqrt(2 alpha))",
        ["x^2 = (2 alpha/beta) e^X", "small eta"],
        derivation, f"{_DAMIAN}; derived here", roots=True, shipped=shipped,
    )  # fmt: skip


def _self_stabilization_growth() -> Claim:
    """The recursion turns outward: small cycles gain energy at every step."""
    factor = 1 + 2 * lr**2 * alpha

    def jacobian() -> sp.Matrix:
        """Of the step in (ln x^2, y) at rest."""
        after = self_stabilization.step(x, y, lr, alpha, beta)
        matrix = sp.Matrix([sp.log(after[0] ** 2), after[1]]).jacobian([x, y])
        return sp.simplify((matrix * sp.diag(x / 2, 1)).subs({x: sp.sqrt(2 * alpha / beta), y: 0}))

    def differences() -> dict[str, sp.Expr]:
        small = sp.Symbol("e")
        expanded = self_stabilization.energy(small * X, small * y, alpha, sp.exp(small * X))
        energy = sp.series(expanded, small, 0, 3).removeO().coeff(small, 2)
        moved = jacobian() * sp.Matrix([X, y])
        after = energy.subs({X: moved[0], y: moved[1]}, simultaneous=True)
        # Of any cycle: the gain at order eta^2, up to the derivative of something along the flow.
        growth = sp.exp(X)
        size = sp.sqrt(2 * alpha / beta) * sp.exp(X / 2)
        reached, height = self_stabilization.step(size, y, lr, alpha, beta)
        factor_of_growth = sp.simplify(reached**2 / size**2)
        later = self_stabilization.energy(
            X + sp.log(factor_of_growth), height, alpha, growth * factor_of_growth
        )
        gain = sp.series(later, lr, 0, 3).removeO().coeff(lr, 2)
        returning = alpha * y * (1 - growth) - y**3
        rates = self_stabilization.field(X, y, lr, alpha, growth)
        drift = (returning.diff(X) * rates[0] + returning.diff(y) * rates[1]) / lr
        return {
            "mean gain over any cycle: 4 eta^2 alpha y^2": sp.expand(
                gain - 4 * alpha * y**2 - drift
            ),
            "determinant": jacobian().det() - factor,
            "energy of a small cycle after one step": sp.expand(after - factor * energy),
        }

    def simulation() -> str:
        for rate, force, slope in ((0.02, 4.0, 1.0), (0.05, 2.0, 3.0)):
            place, height, energies = math.sqrt(2 * force / slope) * (1 + 1e-5), 0.0, []
            for _ in range(301):
                logarithm = math.log(place**2 * slope / (2 * force))
                growth = math.expm1(logarithm) + 1
                energies.append(self_stabilization.energy(logarithm, height, force, growth))
                place, height = self_stabilization.step(place, height, rate, force, slope)
            found = math.log(energies[-1] / energies[0]) / 300
            expected = math.log(float(factor.subs({lr: rate, alpha: force})))
            close(found, expected, f"energy gained per step at eta = {rate}", 1e-2)
        rate, force, slope = 1e-3, 4.0, 1.0
        place, height, mean_square, before = 1e-2, 0.0, 0.0, 0.0
        start = self_stabilization.first_peak(place, force, slope) ** 2  # the energy at y = 0
        while not before < 0 <= height:  # once round
            before = height
            place, height = self_stabilization.step(place, height, rate, force, slope)
            mean_square += 4 * rate**2 * force * height**2
        logarithm = math.log(place**2 * slope / (2 * force))
        end = self_stabilization.energy(logarithm, height, force, math.exp(logarithm))
        close(end - start, mean_square, "energy gained on a large cycle", 1e-2)
        return "small cycles of the shipped recursion, and a large one, gain that much, within 1 %"

    def derivation() -> list[Step]:
        return [
            Step("Jacobian of the step in (ln x^2, y) at rest", jacobian()),
            Step("its determinant is the gain of y^2 + alpha X^2/2", statement),
            Step("mean gain over a cycle of any size, E' - E", 4 * lr**2 * alpha * y**2),
        ]

    statement = equation(sp.Symbol("E'/E"), factor)
    return proved(
        "self_stabilization_growth", statement, differences,
        "small cycles gain 1 + 2 eta^2 alpha at every step, any cycle 4 eta^2 alpha times its mean y^2",
        ["small cycles, X = ln(x^2 beta/(2 alpha))"],
        derivation, roots=True, simulation=simulation,
    )  # fmt: skip


# --- noise ---------------------------------------------------------------------------------------


def _sharpness_gap() -> Claim:
    """What is stationary in x^2 and in ln x^2 under noise, and the two gaps that follow."""
    xi = sp.Symbol("xi", real=True)
    mean_y = sp.Symbol("E[y]")
    gap = lr * beta * s**2 / (4 * alpha)

    def stepped() -> sp.Expr:
        """x after a shipped step with gradient noise s xi."""
        return self_stabilization.step(x, y, lr, alpha, beta)[0] - lr * s * xi

    def averaged(expression: sp.Expr) -> sp.Expr:
        """Over xi, up to its second moment."""
        powers = sp.Poly(sp.expand(expression), xi)
        return powers.coeff_monomial(1) + powers.coeff_monomial(xi**2)

    def logarithm() -> list[sp.Expr]:
        """Means of the coefficients of eta and eta^2 in the change of ln x^2."""
        change = sp.series(sp.log((stepped() / x) ** 2), lr, 0, 3).removeO()
        return [averaged(sp.expand(change).coeff(lr, order)) for order in (1, 2)]

    def differences() -> dict[str, sp.Expr]:
        change = averaged(stepped() ** 2) - x**2
        first, second = logarithm()
        sharpness = 2 / lr + y
        pulled = self_stabilization.step(x, y, lr, c * (m - sharpness), 1)
        # Uncorrelated: E[y x^2] = E[y] 2 alpha/beta. x^2 near its mean: E[1/x^2] = beta/(2 alpha).
        (apart,) = sp.solve(mean_y * 2 * alpha / beta + lr * s**2 / 2, mean_y)
        (near,) = sp.solve(mean_y - lr * s**2 * beta / (2 * alpha) / 2, mean_y)
        return {
            "change of x^2": change
            - 2 * lr * (y * x**2 - statement.rhs.subs(product, y**2 * x**2)),
            "change of ln x^2 at order eta": first - 2 * y,
            "change of ln x^2 at order eta^2": second + y**2 + s**2 / x**2,
            "SGD on the toy, x": stepped() - (x - lr * (sharpness * x + s * xi)),
            "SGD on the toy, S": (pulled[1] - y) + lr * (x**2 / 2 + c * (sharpness - m)),
            "uncorrelated: the sharpness is lower by the gap": -apart - gap,
            "x^2 near its mean: it is higher by as much": near - gap,
        }

    def quadrature() -> str:
        nodes, weights = np.polynomial.hermite_e.hermegauss(24)
        weights = weights / weights.sum()
        generator, rate = np.random.default_rng(4), 1e-3
        for _ in range(20):
            place, height, noise = generator.uniform([1, -2, 0.5], [3, 2, 4])
            after = self_stabilization.step(place, height, rate, 4.0, 1.0)[0] - rate * noise * nodes
            found = weights @ after**2 - place**2
            balance = height * place**2 + rate / 2 * (noise**2 + (height * place) ** 2)
            close(found, 2 * rate * balance, "mean change of x^2", 1e-8)
            logs = weights @ np.log(after**2 / place**2)
            second = 2 * rate * height - rate**2 * (height**2 + noise**2 / place**2)
            if not abs(logs - second) < 100 * rate**3:
                raise Refuted(f"mean change of ln x^2 is {logs}, not {second}")
        return "means over the noise by quadrature at 20 points: exact, and to O(eta^3)"

    def simulation() -> str:
        found = {}
        for force, noise in ((0.1, 20.0), (1.0, 2.0)):
            edge = self_stabilization.NoisyEdge(0.02, force, 100 + 4 / force, noise)
            place, sharpness = (part[1200:] for part in edge.simulate(6000, 600, seed=1))
            height = sharpness - 100
            lost = 0.01 * (noise**2 + np.mean(height**2 * place**2))
            # The mean of increments whose standard deviation is known, and what the ends leave.
            spread = 4 * (1 + 0.02 * height) ** 2 * place**2 * (0.02 * noise) ** 2
            spread = spread + 2 * (0.02 * noise) ** 4
            error = 5 * math.sqrt(np.mean(spread) / height.size)
            error += abs(np.mean(place[-1] ** 2) - np.mean(place[0] ** 2)) / len(place)
            balance = np.mean(height * place**2) + lost
            if not abs(balance) < error / 0.04 < lost / 2:
                raise Refuted(f"c = {force}, s = {noise}: E[y x^2] + ... = {balance}, not 0")
            mean = height.mean()
            found[force] = -mean / edge.sharpness_gap(force * (edge.target - 100 - mean))
        if not (0.8 < found[0.1] < 1.2 and -1.3 < found[1.0] < -0.8):
            raise Refuted(f"gap over formula is {found}, not near 1 and near -1")
        weak, strong = found.values()
        return f"balance within 5 standard errors; gap/formula {weak:.2f} (c = .1), {strong:.2f} (c = 1)"

    def derivation() -> list[Step]:
        return [
            Step("x after a step with noise", stepped()),
            Step("mean change of x^2, 0 in stationarity", averaged(stepped() ** 2) - x**2),
            Step("mean change of ln x^2 over eta, to first order", logarithm()[0] + lr * logarithm()[1]),
            Step("first balance", statement),
            Step("second balance, to leading order", equation(mean_y,
                 lr / 2 * (sp.Symbol("E[y^2]") + s**2 * sp.Symbol("E[1/x^2]")))),
            Step("y and x^2 uncorrelated", equation(mean_y, -gap)),
            Step("x^2 near 2 alpha/beta, E[y^2] small", equation(mean_y, gap)),
        ]  # fmt: skip

    product = sp.Symbol("E[y^2 x^2]")
    statement = equation(sp.Symbol("E[y x^2]"), -lr / 2 * (s**2 + product))
    return proved(
        "sharpness_gap", statement, differences,
        "balances of x^2 (exact) and ln x^2 (leading order); gap +-eta beta s^2/(4 alpha)",
        ["stationary", "xi of mean 0 and variance 1, independent of (x, y)", "y = S - 2/eta"],
        derivation, f"{_GAP}; balances: derived here",
        quadrature=quadrature, simulation=simulation,
    )  # fmt: skip


def claims() -> list[Claim]:
    """The cycle of self-stabilisation, its growth, and the gap that noise leaves."""
    return [_self_stabilization_cycle(), _self_stabilization_growth(), _sharpness_gap()]
