r"""Averaged gradients: in a row, side by side, and as heavy ball.

The linear rules that adaptive rules leave when their preconditioner is held fixed are made of averages
:math:`m \leftarrow \beta m + (1-\beta) g`, filters :math:`(1-\beta)/(1 - \beta/z)` of the gradient.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import sympy as sp

import eosim
from theory.adaptive import equation
from theory.catapult import identity
from theory.claim import Claim, Refuted, Step
from theory.linear_stability import CURVATURE, Z, derive, threshold_claim

_COUNT = 20  # random points of a numerical route

lr, b, b2, x, g, m, nu = sp.symbols("eta beta1 beta2 x g m nu", positive=True)


def _cascade_pair() -> Claim:
    """Where the cascade loses stability by a complex pair, and for which equal poles it does."""

    def differences() -> dict[str, sp.Expr]:
        derivation = derive(eosim.CascadedEMA)
        rate, first, second = (derivation.symbols[key] for key in ("lr", "beta1", "beta2"))
        q, s = first * second, first + second
        period_two, pair = eosim.CascadedEMA(rate, first, second).critical_branches()
        K = rate * pair * (1 - first) * (1 - second)
        cosine = (1 + s - q - K) / 2
        critical = derivation.polynomial.as_expr().subs(CURVATURE, pair)
        inner = derivation.conditions["complex pair"]
        scale = rate * CURVATURE * (1 - first) * (1 - second)
        equal = sp.together((period_two - pair).subs(second, first) * rate)
        return {
            "inner determinant": inner - ((1 - q) * (1 - first) * (1 - second) - q * scale),
            "factors at the pair: third root q, angle w with cos w = (1 + s - q - K)/2": critical
            - (Z - q) * (Z**2 - 2 * cosine * Z + 1),
            "the angle exists from 3 q + s = 1 on": 2 * q * (1 + cosine).subs(rate, 1)
            - (3 * q + s - 1),
            "branches at equal poles, z = -1 less pair": equal
            - (1 + first) * (3 * first - 1) * (1 + first**2) / (first**2 * (1 - first) ** 2),
        }

    def simulation() -> str:
        generator = np.random.default_rng(3)
        for _ in range(_COUNT):
            first, second = generator.uniform(0.4, 0.9, 2)
            rule = eosim.CascadedEMA(1.0, first, second)
            curvature = rule.critical_sharpness()
            drift, response = eosim.stability.linear.linearised(rule)
            drift[:, 0] += curvature * response
            roots = np.linalg.eigvals(drift)
            K = curvature * (1 - first) * (1 - second)
            cosine = (1 + first + second - first * second - K) / 2
            expected = [
                first * second,
                *(cosine + 1j * sign * math.sqrt(1 - cosine**2) for sign in (1, -1)),
            ]
            distance = max(np.abs(roots - root).min() for root in expected)
            if distance > 1e-10:
                raise Refuted(f"roots of {rule} at its threshold are {roots}, not {expected}")
        return f"eigenvalues of {_COUNT} shipped cascades at their thresholds"

    def derivation() -> list[Step]:
        third, cos_w, beta = sp.symbols("q cos(w) beta")
        period_two, pair = eosim.CascadedEMA(lr, beta, beta).critical_branches()
        return [
            Step("complex pair on the circle at", equation(
                CURVATURE, eosim.CascadedEMA(lr, b, b2).critical_branches()[1])),
            Step("there the characteristic polynomial is", (Z - third) * (Z**2 - 2 * cos_w * Z + 1)),
            Step("with the angle w", statement),
            Step("equal poles: the branch z = -1 less the pair", sp.factor(period_two - pair)),
        ]  # fmt: skip

    q, cosine, K, s = sp.symbols("q cos(w) K s")
    statement = equation(cosine, (1 + s - q - K) / 2)
    claim = identity(
        "cascaded_ema_pair",
        statement,
        differences,
        "third root q; equal poles change branch where (3 beta - 1)(1 + beta^2) = 0: at 1/3 alone",
        [
            "q = beta1 beta2, s = beta1 + beta2, K = (1 - q)(1 - beta1)(1 - beta2)/q",
            "s + 3 q >= 1; below, the pair is real and z = -1 comes first",
        ],
        simulation,
    )
    return replace(claim, derivation=derivation)


def _parallel_period_two() -> Claim:
    """Mixtures in parallel lose stability at z = -1 and nowhere else."""
    w = sp.Symbol("w", real=True)
    poles = sp.symbols("beta1 beta2", positive=True)
    weights = (1 - sp.Symbol("nu", positive=True), sp.Symbol("nu", positive=True))
    pole = poles[0]
    parts = (1 + pole) * (1 - sp.cos(w)) - sp.I * (1 - pole) * sp.sin(w)
    squares = [(1 + p) ** 2 * (1 - sp.cos(w)) ** 2 + (1 - p) ** 2 * sp.sin(w) ** 2 for p in poles]
    terms = [
        weight * (1 - p) / ((1 - Z) * (1 - p / Z)) for weight, p in zip(weights, poles, strict=True)
    ]

    def differences() -> dict[str, sp.Expr]:
        derivation = derive(eosim.ParallelEMA)
        named = dict(zip(derivation.symbols.values(), (lr, *poles, weights[1]), strict=True))
        affine = sp.Poly(derivation.polynomial.as_expr().subs(named), CURVATURE)
        slope, free = affine.all_coeffs()  # p(z) + lambda q(z): 1/lambda = -q/p on a root
        on_circle = ((1 - Z) * (1 - pole / Z)).subs(Z, sp.cos(w) + sp.I * sp.sin(w))
        at_minus_one = sum(term.subs(Z, -1) for term in terms)
        return {
            "1/lambda on a root z": -slope / free - lr * sum(terms),
            "(1 - z)(1 - b/z) on the circle": sp.simplify(on_circle - parts),
            "its imaginary part": sp.im(parts) + (1 - pole) * sp.sin(w),
            "its squared modulus": sp.expand(parts * sp.conjugate(parts)) - sp.expand(squares[0]),
            "threshold at z = -1": lr * at_minus_one
            - 1 / eosim.ParallelEMA(lr, poles[0], poles[1], weights[1]).critical_sharpness(),
        }

    def numbers() -> str:
        generator = np.random.default_rng(4)
        angles = np.linspace(0, np.pi, 400)[1:-1]
        circle = np.exp(1j * angles)
        for _ in range(_COUNT):
            count = generator.integers(1, 6)
            shares, filters = generator.uniform(0, 1, (2, count))
            reciprocal = sum(
                share * (1 - pole) / ((1 - circle) * (1 - pole / circle))
                for share, pole in zip(shares, filters, strict=True)
            )
            if not (reciprocal.imag > 0).all():
                raise Refuted(f"weights {shares}, poles {filters} cross the circle off z = -1")
        return f"{_COUNT} mixtures of up to five averages: Im(1/lambda) > 0 for 0 < w < pi"

    def simulation() -> str:
        generator = np.random.default_rng(6)
        for _ in range(_COUNT):
            first, second = generator.uniform(0, 0.95, 2)
            rule = eosim.ParallelEMA(1.0, first, second, generator.uniform())
            drift, response = eosim.stability.linear.linearised(rule)
            drift[:, 0] += rule.critical_sharpness() * response
            roots = sorted(np.linalg.eigvals(drift), key=abs)
            if abs(roots[-1] + 1) > 1e-10 or abs(roots[-2]) > 1 - 1e-6:
                raise Refuted(
                    f"roots of {rule} at its threshold are {roots}, not -1 and two inside"
                )
        return (
            f"eigenvalues of {_COUNT} shipped mixtures at their thresholds: -1, the others inside"
        )

    def derivation() -> list[Step]:
        return [
            Step("on a root z of the shipped step", equation(1 / CURVATURE, lr * sp.Add(*terms))),
            Step("z = exp(i w), for each b: (1 - z)(1 - b/z)", parts),
            Step("so that", statement),
        ]

    imaginary = sum(
        weight * (1 - pole) ** 2 * sp.sin(w) / square
        for weight, pole, square in zip(weights, poles, squares, strict=True)
    )
    statement = equation(sp.Symbol("Im(1/lambda)"), lr * imaginary)
    claim = identity(
        "parallel_ema_period_two",
        statement,
        differences,
        "every term has a positive imaginary part for 0 < w < pi: real at z = -1 only",
        ["z = exp(i w)", "0 < beta1, beta2 < 1", "0 <= nu <= 1"],
        simulation,
    )
    return replace(claim, derivation=derivation, routes={**claim.routes, "numbers": numbers})


def _ema_heavy_ball() -> Claim:
    """An averaged gradient is heavy ball at the rate (1 - beta) lr; without momentum all are one."""

    def differences() -> dict[str, sp.Expr]:
        average, ball = eosim.EMAMomentum(lr, b), eosim.HeavyBall((1 - b) * lr, b)
        theta, (buffer,) = average.step(x, (m,), g)
        expected, (velocity,) = ball.step(x, (m / (1 - b),), g)
        without = {
            "heavy ball": eosim.HeavyBall(lr, b).critical_sharpness(),
            "Nesterov": eosim.Nesterov(lr, b).critical_sharpness(),
            "average": average.critical_sharpness(),
            "NAdam": eosim.NAdam(lr, b).critical_sharpness(),
            "quasi-hyperbolic": eosim.QuasiHyperbolic(lr, b, nu).critical_branches()[0],
            "in parallel": eosim.ParallelEMA(lr, b, b, nu).critical_sharpness(),
            "in a row": eosim.CascadedEMA(lr, b, b).critical_branches()[0],
        }
        return {
            "theta": theta - expected,
            "buffer": buffer - (1 - b) * velocity,
            "thresholds": average.critical_sharpness() - ball.critical_sharpness(),
            **{
                f"{name} at beta = 0": sp.simplify(threshold.subs(b, 0) - 2 / lr)
                for name, threshold in without.items()
            },
        }

    def derivation() -> list[Step]:
        theta, (average,) = eosim.EMAMomentum(lr, b).step(x, (m,), g)
        moved, (velocity,) = eosim.HeavyBall((1 - b) * lr, b).step(x, (m / (1 - b),), g)
        return [
            Step("the average, and theta", sp.Matrix([average, theta])),
            Step("heavy ball from v = m/(1 - beta1): (1 - beta1) v, and theta",
                 sp.Matrix([sp.expand(sp.cancel((1 - b) * velocity)), sp.expand(sp.cancel(moved))])),
        ]  # fmt: skip

    claim = identity(
        "ema_heavy_ball",
        equation(sp.Symbol("eta_HB"), (1 - b) * lr),
        differences,
        "the same iterates with v = m/(1 - beta); every threshold is 2/eta without momentum",
        ["EMAMomentum(eta, beta) against HeavyBall(eta_HB, beta)"],
    )
    return replace(claim, derivation=derivation)


def _ringing() -> Claim:
    """Where the modes of an averaged gradient start and end to oscillate smoothly."""
    root = sp.Symbol("r", positive=True)  # sqrt(beta)
    k = sp.Symbol("k", positive=True)
    lower, upper = (1 - root) / (1 + root), (1 + root) / (1 - root)

    def in_k() -> sp.Poly:
        average = derive(eosim.EMAMomentum)
        rate, beta = average.symbols["lr"], average.symbols["momentum"]
        return sp.Poly(average.polynomial.as_expr().subs({CURVATURE: k / rate, beta: root**2}), Z)

    def differences() -> dict[str, sp.Expr]:
        polynomial = in_k()
        return {
            "discriminant": polynomial.discriminant()
            - (1 - root**2) ** 2 * (k - lower) * (k - upper),
            "squared modulus of a complex pair": polynomial.nth(0) - root**2,
            "the limits are reciprocal": lower * upper - 1,
        }

    def simulation() -> str:
        drift, response = eosim.stability.linear.linearised(eosim.EMAMomentum(1.0, 0.9))
        limits = [float(limit.subs(root, sp.sqrt(sp.Rational(9, 10)))) for limit in (lower, upper)]
        for limit, inside in zip(limits, (1, -1), strict=True):
            for side in (-1, 1):
                matrix = drift.copy()
                matrix[:, 0] += limit * (1 + 1e-4 * side) * response
                rings = bool(np.abs(np.linalg.eigvals(matrix).imag).max() > 0)
                if rings != (side == inside):
                    raise Refuted(
                        f"at {1 + 1e-4 * side} of {limit:.5g} the pair is real: {not rings}"
                    )
        return f"eigenvalues turn complex at k = {limits[0]:.5f} and real at {limits[1]:.3f}, beta = 0.9"

    beta = sp.Symbol("beta", positive=True)
    statement = equation(k, (1 - sp.sqrt(beta)) / (1 + sp.sqrt(beta)))

    def derivation() -> list[Step]:
        polynomial = in_k()
        return [
            Step("characteristic polynomial, beta = r^2", sp.collect(polynomial.as_expr(), Z)),
            Step("discriminant", sp.factor(polynomial.discriminant())),
            Step("the pair turns complex, with squared modulus beta, at", statement),
            Step("and real again at", equation(k, 1 / statement.rhs)),
        ]

    claim = identity(
        "ema_ringing",
        statement,
        differences,
        "a complex pair of modulus sqrt(beta) between the limit and its inverse, real roots outside",
        ["EMAMomentum; k = eta lambda where oscillations start, 1/k where they end; 0 < beta < 1"],
        simulation,
    )
    return replace(claim, derivation=derivation)


def claims() -> list[Claim]:
    """Averages in a row and side by side, against heavy ball, and when they ring."""
    return [
        threshold_claim("parallel_ema", eosim.ParallelEMA, "derived here"),
        threshold_claim("cascaded_ema", eosim.CascadedEMA, "derived here"),
        _cascade_pair(),
        _parallel_period_two(),
        _ema_heavy_ball(),
        _ringing(),
    ]
