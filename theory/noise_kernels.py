r"""The noise kernel of SGD: the shipped weights on symbols, their thresholds, and momentum."""

from __future__ import annotations

from typing import Any

import numpy as np
import sympy as sp

import eosim
from eosim import sampling
from eosim.stability import mean_square
from eosim.stability.tangent_kernel import TangentKernel
from theory.claim import Claim, Kind, Refuted
from theory.sgd_moments import (
    EDGE,
    NONE,
    B,
    all_batches,
    as_one,
    enumerated_operator,
    eta,
    identity_claim,
    kappa,
    kept,
    mu,
    n,
    step_matrix,
    x,
    y,
)


def _flat_eigenvectors() -> Claim:
    """Flat eigenvectors: the diagonal closes, and its threshold is the finite kernel norm 1."""

    def differences() -> dict[str, sp.Expr]:
        V = sp.Matrix([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
        levels, p = sp.symbols("l0:4", positive=True), sp.symbols("p0:4", positive=True)
        theta, S = V * sp.diag(*levels) * V.T, V * sp.diag(*p) * V.T
        A = step_matrix(sp.Matrix(sp.symbols("e0:4")), theta)
        inner = kappa * 4 * sp.diag(*[S[i, i] for i in range(4)]) - (1 - kept) * S
        after = V.T * (A * S * A.T + eta**2 * theta * inner * theta) * V
        expected = sp.diag(
            *[
                (1 - eta * level) ** 2 * q + (eta * level) ** 2 * (kappa * sum(p) - (1 - kept) * q)
                for level, q in zip(levels, p, strict=True)
            ]
        )
        xs = sp.symbols("x0:3", positive=True)
        size = len(xs)
        step = sp.Matrix(
            size,
            size,
            lambda a, b: (
                xs[a] ** 2 * kappa + ((1 - xs[a]) ** 2 - (1 - kept) * xs[a] ** 2) * int(a == b)
            ),
        )
        norm = sum(mean_square.kernel_weight(v, v, NONE, kappa, kept) for v in xs)
        product = sp.prod([v * (2 - kept * v) for v in xs])
        return {
            "second moment in the eigenbasis": as_one(after - expected),
            "determinant": ((sp.eye(size) - step).det() - product * (1 - norm)),
        }

    def numbers() -> str:
        V = np.kron([[1, 1], [1, -1]], [[1, 1], [1, -1]]) / 2
        theta = (V * [2.0, 1.3, 0.7, 0.2]) @ V.T
        worst = 0.0
        for batch_size in (1, 2, 3):
            lr = mean_square.critical_lr(theta, batch_size, kind="finite")
            radius = np.abs(np.linalg.eigvals(enumerated_operator(theta, 4, batch_size, lr))).max()
            worst = max(worst, abs(radius - 1))
        if worst > 1e-9:
            raise Refuted(f"the enumerated radius at K = 1 differs from 1 by {worst:.2g}")
        return f"Hadamard eigenvectors, B = 1, 2, 3: enumerated radius 1 within {worst:.0e}"

    a = sp.Symbol("a")
    x_a = sp.IndexedBase("x")[a]
    return identity_claim(
        "sgd_flat_eigenvectors",
        sp.Eq(sp.Sum(kappa * x_a / (2 - kept * x_a), (a, 1, n)), 1, evaluate=False),
        differences,
        "the diagonal moves alone, and 1 is an eigenvalue where the kernel norm is 1",
        ["every |V_ia|^2 = 1/n", "x_a = eta lambda_a < 2"],
        source=f"{EDGE}; with every constant derived here",
        numbers=numbers,
    )


def _kernel_weights() -> Claim:
    """The shipped weights: their form, their mass, their growth, and their limits."""
    la, lb = sp.symbols("l_a l_b", positive=True)

    def differences() -> dict[str, sp.Expr]:
        weight = mean_square.kernel_weight
        finite = weight(x, x, NONE, kappa, kept)
        q = (1 - x) ** 2 - (1 - kept) * x**2
        pair = weight(eta * la, eta * lb, NONE, kappa, kept)
        denominator = la + lb - eta * kept * la * lb
        return {
            "one mode": finite - kappa * x / (2 - kept * x),
            "mass of kappa x^2 q^m": finite - kappa * x**2 / (1 - q),
            "two modes": pair - kappa * eta * la * lb / denominator,
            "slope in the rate": sp.diff(pair, eta) - kappa * la * lb * (la + lb) / denominator**2,
            "delocalised": weight(x, x, NONE, kappa, 1) - kappa * x / (2 - x),
            "small rates": sp.limit(finite / (kappa * x / 2), x, 0) - 1,
            "one mode at the edge": weight(2, 2, NONE, kappa, 1 - kappa) - 1,
            "localised": sp.solve(sp.Eq(n * weight(x, x, NONE, kappa, 1 - kappa), 1), x)[0]
            - 2 / (1 - kappa + kappa * n),
            "localised, without replacement": (2 / (1 - kappa + kappa * n)).subs(
                kappa, (n - B) / (B * (n - 1))
            )
            - 2 * B / n,
            "B = 1: row sums": weight(x, x, NONE, 1, 0) - x / 2,
        }

    def numbers() -> str:
        spectrum = np.array([1.5, 0.8, 0.1])
        lr, size = 1.1, 8
        noise = sampling.batch_moments(size, 4).noise
        q = (1 - lr * spectrum) ** 2 - noise * (lr * spectrum) ** 2
        mass = sum(float(np.sum(noise * (lr * spectrum) ** 2 * q**m)) for m in range(400))
        kernel = TangentKernel.from_spectrum(spectrum, size)
        norm = mean_square.noise_kernel_norm(kernel, lr, 4, kind="finite")
        localised = mean_square.critical_lr(2 * np.eye(6), 2)
        if abs(mass / norm - 1) > 1e-12 or abs(localised - 1 / 3) > 1e-12:
            raise Refuted(f"mass {mass}, norm {norm}, localised threshold {localised}")
        return "400 terms of the kernel add up to the shipped norm; localised: 2 B/(n lambda)"

    return identity_claim(
        "noise_kernel_weights",
        sp.Eq(
            sp.Symbol("w_ab"),
            kappa * eta * la * lb / (la + lb - eta * kept * la * lb),
            evaluate=False,
        ),
        differences,
        "the shipped weight is kappa x/(2 - c x), sums its geometric kernel, grows with the rate",
        ["below the edge, momentum 0", "c = 1 - kappa in the localised case"],
        numbers,
        source=f"{EDGE}; derived here",
    )


def _ladder() -> Claim:
    """Trace <= finite <= delocalised, and the Frobenius norm, mode by mode."""

    def differences() -> dict[str, sp.Expr]:
        weight = mean_square.kernel_weight
        c = 1 - kappa
        finite, deloc = weight(x, x, NONE, kappa, c), weight(x, x, NONE, kappa, 1)
        top = sp.Symbol("x_max", positive=True)
        return {
            "finite - trace": finite - kappa * x / 2 - kappa * c * x**2 / (2 * (2 - c * x)),
            "delocalised - finite": deloc - finite - kappa**2 * x**2 / ((2 - x) * (2 - c * x)),
            "delocalised - square": deloc - kappa * x**2 - kappa * x * (1 - x) ** 2 / (2 - x),
            "finite - c square": finite
            - kappa * c * x**2
            - kappa * x * (1 - c * x) ** 2 / (2 - c * x),
            "flat bracket: x/(2 - x_max) - x/(2 - x)": kappa * x / (2 - top)
            - deloc
            - kappa * x * (top - x) / ((2 - top) * (2 - x)),
            "flat bracket: eta at K = 1": sp.solve(
                sp.Eq(kappa * eta * sp.Symbol("T"), 2 - eta * sp.Symbol("l")), eta
            )[0]
            - 2 / (sp.Symbol("l") + kappa * sp.Symbol("T")),
            "full batch": 1 - (1 - x) ** 2 - x * (2 - x),
        }

    def numbers() -> str:
        generator = np.random.default_rng(2)
        for _ in range(200):
            J = generator.standard_normal((5, 7)) * generator.uniform(0.2, 2, (5, 1))
            kernel, batch_size = TangentKernel.from_jacobian(J), int(generator.integers(1, 5))
            lr = generator.uniform(0.05, 1.9) / kernel.largest
            trace, finite, deloc, exact = (
                mean_square.noise_kernel_norm(kernel, lr, batch_size, kind=kind)
                for kind in ("trace", "finite", "delocalised", "exact")
            )
            if not (trace <= finite * (1 + 1e-12) <= min(deloc, exact) * (1 + 2e-12)):
                raise Refuted(f"norms {trace}, {finite}, {deloc}, {exact} are out of order")
        return "200 random kernels: trace <= finite <= delocalised, exact"

    a = sp.Symbol("a")
    x_a = sp.IndexedBase("x")[a]
    return identity_claim(
        "noise_kernel_ladder",
        sp.Ge(
            sp.Sum(kappa * x_a / (2 - kept * x_a), (a, 1, n)),
            sp.Sum(kappa * x_a / 2, (a, 1, n)),
            evaluate=False,
        ),
        differences,
        "each gap is a product of factors that are positive for 0 < x < 2, 0 < kappa <= 1",
        ["c = 1 - kappa, 0 < kappa <= 1", "0 < x_a < 2"],
        kind=Kind.LOWER,
        numbers=numbers,
    )


def _momentum() -> Claim:
    """The shipped response and weight from the moment equations of heavy ball; the duality."""

    def response() -> sp.Expr:
        """E[e_a e_b]/(x y) of two shipped heavy-ball modes under noise of variance R^t."""
        R = sp.Symbol("R", positive=True)
        rule = eosim.HeavyBall(sp.Integer(1), mu)  # curvature times rate is all that matters
        e, f, v, w, xi, zeta = sp.symbols("e f v w xi zeta")
        first, (push,) = rule.step(e, (v,), x * (e + xi))
        second, (other,) = rule.step(f, (w,), y * (f + zeta))
        unknown = dict(zip((e * f, e * w, v * f, v * w), sp.symbols("m0:4"), strict=True))

        def mean(product: sp.Expr) -> sp.Expr:
            """Noise is new: it is uncorrelated with the state, and E[xi zeta] = 1."""
            total: sp.Expr = sp.Integer(0)
            poly = sp.Poly(sp.expand(product), e, f, v, w, xi, zeta)
            for (i, j, k, m, p, q), coefficient in poly.terms():
                if p + q == 0:
                    total += coefficient * unknown[e**i * f**j * v**k * w**m]
                elif p == q == 1:
                    total += coefficient
            return total

        pairs = zip(
            unknown.values(), (first * second, first * other, push * second, push * other),
            strict=True,
        )  # fmt: skip
        equations = [R * symbol - mean(product) for symbol, product in pairs]
        system, source = sp.linear_eq_to_matrix(equations, list(unknown.values()))
        # Cramer's rule: one determinant instead of a solve
        first_column = system.copy()
        first_column[:, 0] = source
        return sp.cancel(first_column.det() / system.det() / (x * y))

    def differences() -> dict[str, sp.Expr]:
        R = sp.Symbol("R", positive=True)
        numerator, denominator = mean_square.moment_response(x, y, mu, R)
        unit, determinant = mean_square.moment_response(x, y, mu)
        pull = x * y * unit / determinant
        weight = mean_square.kernel_weight
        z = sp.Symbol("z", positive=True)
        boost = kappa * (1 + mu) / (1 - mu)
        one = weight(x, x, mu, kappa, 1)
        return {
            "response": (response() - numerator / denominator),
            "response without momentum": (
                (numerator / denominator).subs(mu, 0) - 1 / (R - (1 - x) * (1 - y))
            ),
            "weight": (weight(x, y, mu, kappa, kept) - kappa * pull / (1 + (1 - kept) * pull)),
            "one mode": (one - kappa * x * (1 + mu) / ((1 - mu) * (2 * (1 + mu) - x))),
            "finite from delocalised": (weight(x, x, mu, kappa, 1 - kappa) - one / (1 + one)),
            "duality": (
                weight((1 + mu) * z, (1 + mu) * z, mu, kappa, 1) - weight(z, z, NONE, boost, 1)
            ),
            "duality, finite": (
                weight((1 + mu) * z, (1 + mu) * z, mu, kappa, 1 - kappa)
                - weight(z, z, NONE, boost, 1 - boost)
            ),
            "without momentum": (one.subs(mu, 0) - kappa * x / (2 - x)),
        }

    def numbers() -> str:
        generator = np.random.default_rng(5)
        worst = 0.0
        for _ in range(6):
            J = generator.standard_normal((3, 4))
            theta, momentum = J @ J.T / 3, generator.uniform(0.2, 0.9)
            batch_size = int(generator.integers(1, 3))
            lr = mean_square.critical_lr(theta, batch_size, momentum=momentum)
            total: Any = 0.0
            rule = eosim.HeavyBall(lr, momentum)
            for odds, weights in all_batches(3, batch_size, "without_replacement"):
                batch = theta @ np.diag([float(w) for w in weights])
                columns = []
                for unit in np.eye(6):
                    point, (velocity,) = rule.step(unit[:3], (unit[3:],), batch @ unit[:3])
                    columns.append(np.concatenate([point, velocity]))
                A = np.array(columns).T
                total = total + float(odds) * np.kron(A, A)
            worst = max(worst, abs(np.abs(np.linalg.eigvals(total)).max() - 1))
        if worst > 1e-8:
            raise Refuted(f"at the shipped threshold the radius differs from 1 by {worst:.2g}")
        return f"6 kernels: enumerated heavy ball has radius 1 at the threshold, within {worst:.0e}"

    g = kappa * x * (1 + mu) / ((1 - mu) * (2 * (1 + mu) - x))
    return identity_claim(
        "sgd_momentum_noise_kernel",
        sp.Eq(sp.Function("g")(x), g, evaluate=False),
        differences,
        "the shipped response solves the moment equations; (1 + mu) y at kappa is y at "
        "kappa (1 + mu)/(1 - mu)",
        [
            "heavy ball, 0 <= mu < 1; 0 < x < 2 (1 + mu)",
            "noise of variance R^t, new in every step; g at R = 1 and c = 1",
        ],
        numbers=numbers,
    )


def _crossover() -> Claim:
    """The batch size at which trace and largest eigenvalue limit alike."""
    T, level = sp.symbols("T l", positive=True)

    def differences() -> dict[str, sp.Expr]:
        factor = (n - B) / (B * (n - 1))
        (size,) = sp.solve(sp.Eq(factor, level / T), B)
        crossing = n / (1 + (n - 1) * level / T)
        spectrum = [3, 2, 1, 1, 1]
        shipped = mean_square.critical_batch_size(np.array(spectrum, dtype=float))
        value = crossing.subs({n: 5, level: 3, T: sum(spectrum)})
        return {
            "solution": (size - crossing),
            "shipped": sp.nsimplify(shipped, rational=True, tolerance=1e-12) - value,
            "many samples": sp.limit(crossing, n, sp.oo) - T / level,
        }

    def numbers() -> str:
        spectrum = np.linspace(0.1, 2, 64)
        V = np.array([[1.0]])
        for _ in range(6):
            V = np.kron(V, [[1, 1], [1, -1]]) / np.sqrt(2)
        theta = (V * spectrum) @ V.T
        middle = mean_square.critical_batch_size(theta)
        small, large = (
            mean_square.critical_lr(theta, size, kind="finite")
            / mean_square.critical_lr(theta, size, kind="trace")
            for size in (1, 63)
        )
        capped = mean_square.critical_lr(theta, int(middle) + 2, kind="trace")
        if not (abs(small - 1) < 0.02 and abs(large - 1) < 0.1 and abs(capped - 1) < 1e-12):
            raise Refuted(f"ratios {small}, {large} and the cap {capped} at B = {int(middle) + 2}")
        return f"ramp of 64: trace law at B = 1, edge at B = 63 and above {middle:.1f}"

    return identity_claim(
        "sgd_batch_crossover",
        sp.Eq(sp.Symbol("B_x"), n / (1 + (n - 1) * level / T), evaluate=False),
        differences,
        "solves kappa = lambda_max/tr, and tends to tr/lambda_max",
        ["without replacement", "2/(kappa T) = 2/l"],
        source=f"{EDGE}; finite n derived here",
        numbers=numbers,
    )


def claims() -> list[Claim]:
    """Flat eigenvectors, the weights and their order, momentum, and the crossover batch size."""
    return [_flat_eigenvectors(), _kernel_weights(), _ladder(), _momentum(), _crossover()]
