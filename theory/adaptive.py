r"""Adaptive rules: their steps as a preconditioned linear rule, and where that rule loses stability.

With its preconditioner held at P, an adaptive rule is linear. On the one-dimensional quadratic
:math:`\lambda x^2/2` a symbol P > 0 stands for one entry; `frozen_preconditioner` carries the result over
to any Hessian and any positive diagonal: every mode of :math:`P^{-1/2} H P^{-1/2}` is such a quadratic.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, make_dataclass, replace
from typing import Any

import mpmath
import numpy as np
import sympy as sp

import eosim
from eosim._checks import Interval
from eosim.optimizers import Frozen
from theory.catapult import identity
from theory.claim import Claim, Refuted, require_zero
from theory.linear_stability import CURVATURE, Z, derive, threshold_claim

_COHEN = "Cohen et al. 2022, arXiv 2207.14484"
_COUNT = 20  # random points of a numerical route
_DIGITS = 40

lr, b, b2, eps, decay, P = sp.symbols("eta beta1 beta2 epsilon gamma P", positive=True)
x, g, m, nu = sp.symbols("x g m nu", positive=True)
t = sp.Symbol("t", integer=True, positive=True)


def _exact(expression: Any) -> sp.Expr:
    """With the floats of a step, such as the power 0.5, as rationals."""
    return sp.nsimplify(expression, rational=True)


def at_numbers(differences: Callable[[], Mapping[str, sp.Expr]]) -> Callable[[], str]:
    """A route: identities with roots in them vanish at random positive numbers, to 35 digits."""

    def route() -> str:
        generator = random.Random(5)
        with mpmath.workdps(_DIGITS):
            for name, difference in differences().items():
                symbols = sorted(difference.free_symbols, key=str)
                function = sp.lambdify(symbols, difference, "mpmath")
                for _ in range(_COUNT):
                    point = [
                        generator.randint(1, 9) if s == t else mpmath.mpf(generator.random())
                        for s in symbols
                    ]
                    value = function(*point)
                    if abs(value) > mpmath.mpf(10) ** (5 - _DIGITS):
                        shown = dict(zip(symbols, map(float, point), strict=True))
                        raise Refuted(f"{name}: {float(abs(value)):.3g} instead of 0 at {shown}")
        return f"{_COUNT} points each, 0 to {_DIGITS - 5} digits"

    return route


# --- thresholds ----------------------------------------------------------------------------------


class _FrozenRule:
    """The shipped adaptive rule ``kind`` with its preconditioner held at the hyperparameter P."""

    kind: type

    @property
    def adaptive(self) -> Any:
        names = [entry.name for entry in dataclasses.fields(self)]  # type: ignore[arg-type]
        return self.kind(**{name: getattr(self, name) for name in names if name != "P"})

    @property
    def frozen(self) -> Frozen:
        return Frozen(self.adaptive.linear(), self.P)  # type: ignore[attr-defined]

    def init(self, theta: Any) -> tuple[Any, ...]:
        return self.frozen.init(theta)

    def step(self, theta: Any, state: tuple[Any, ...], gradient: Any) -> tuple[Any, tuple]:
        return self.frozen.step(theta, state, gradient)

    def critical_sharpness(self) -> Any:
        """Of the curvature: P times that of the preconditioned one."""
        return self.P * self.adaptive.critical_sharpness()  # type: ignore[attr-defined]


def _frozen_claim(
    name: str,
    kind: type,
    hyperparameters: Sequence[str],
    source: str,
    **within: tuple[float, float],
) -> Claim:
    """The threshold of a rule with P frozen; those of ``within`` range over that box."""
    entries: list[Any] = [(key, Any) for key in hyperparameters]
    entries.append(("P", Any, field(metadata={"domain": Interval(0, math.inf)})))
    rule = make_dataclass(
        f"Frozen{kind.__name__}",
        entries,
        bases=(_FrozenRule,),
        namespace={"kind": kind},
        frozen=True,
    )
    return threshold_claim(name, rule, source, within=within)


def _with_members(claim: Claim, members: Mapping[str, Callable[[], Any]], expected: Any) -> Claim:
    """The claim, with a route that the other rules of the family leave the same linear rule."""

    def family() -> str:
        for name, build in members.items():
            linear = build().linear()
            if linear != expected:
                raise Refuted(f"{name} with P frozen is {linear}, not {expected}")
            require_zero(
                build().critical_sharpness() - expected.critical_sharpness(), f"threshold of {name}"
            )
        return f"{', '.join(members)}: the same linear rule and threshold"

    return replace(claim, routes={**claim.routes, "family": family})


def _rmsprop() -> Claim:
    claim = _frozen_claim("rmsprop", eosim.RMSProp, ["lr"], _COHEN)
    return _with_members(claim, {"AdaGrad": lambda: eosim.AdaGrad(lr)}, eosim.GradientDescent(lr))


def _adam() -> Claim:
    claim = _frozen_claim(
        "adam", eosim.Adam, ["lr", "beta1"], f"{_COHEN} (38/lr at beta1 = 0.9, P = 1)"
    )
    members = {
        "AMSGrad": lambda: eosim.AMSGrad(lr, b),
        "Padam": lambda: eosim.Padam(lr, b),
        "Adafactor": lambda: eosim.Adafactor(lr, [(1,)], b),
    }
    return _with_members(claim, members, eosim.EMAMomentum(lr, b))


def _adamw() -> Claim:
    # The threshold depends on lr only through lr * weight_decay, and as a unit: the box loses no case
    # with lr * weight_decay < 2; beyond 2 the decay diverges by itself.
    claim = _frozen_claim(
        "adamw", eosim.AdamW, ["lr", "beta1", "weight_decay"], "derived here",
        lr=(0, 1), weight_decay=(0, 2),
    )  # fmt: skip

    def limit() -> str:
        threshold = eosim.AdamW(lr, b, weight_decay=decay).critical_sharpness()
        require_zero(
            sp.limit(threshold, decay, 0) - eosim.Adam(lr, b).critical_sharpness(),
            "AdamW without decay",
        )
        at_default = sp.expand(threshold.subs(b, sp.Rational(9, 10)) * lr)
        require_zero(at_default - (38 - 19 * lr * decay), "AdamW at beta1 = 0.9")
        return "Adam's without decay; 38 - 19 eta gamma at beta1 = 0.9"

    return replace(claim, routes={**claim.routes, "limit": limit})


def _nadam() -> Claim:
    return _frozen_claim("nadam", eosim.NAdam, ["lr", "beta1"], _COHEN)


# --- averages in a row and side by side ----------------------------------------------------------


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

    q, cosine, K, s = sp.symbols("q cos(w) K s")
    return identity(
        "cascaded_ema_pair",
        sp.Eq(cosine, (1 + s - q - K) / 2, evaluate=False),
        differences,
        "third root q; equal poles change branch where (3 beta - 1)(1 + beta^2) = 0: at 1/3 alone",
        ["q = beta1 beta2, s = beta1 + beta2, K = (1 - q)(1 - beta1)(1 - beta2)/q"],
        simulation,
    )


def _parallel_period_two() -> Claim:
    """Mixtures in parallel lose stability at z = -1 and nowhere else."""
    w = sp.Symbol("w", real=True)
    poles = sp.symbols("beta1 beta2", positive=True)
    weights = (1 - sp.Symbol("nu", positive=True), sp.Symbol("nu", positive=True))

    def differences() -> dict[str, sp.Expr]:
        derivation = derive(eosim.ParallelEMA)
        named = dict(zip(derivation.symbols.values(), (lr, *poles, weights[1]), strict=True))
        affine = sp.Poly(derivation.polynomial.as_expr().subs(named), CURVATURE)
        slope, free = affine.all_coeffs()  # p(z) + lambda q(z): 1/lambda = -q/p on a root
        terms = [
            weight * (1 - pole) / ((1 - Z) * (1 - pole / Z))
            for weight, pole in zip(weights, poles, strict=True)
        ]
        pole = poles[0]
        on_circle = ((1 - Z) * (1 - pole / Z)).subs(Z, sp.cos(w) + sp.I * sp.sin(w))
        parts = (1 + pole) * (1 - sp.cos(w)) - sp.I * (1 - pole) * sp.sin(w)
        at_minus_one = sum(term.subs(Z, -1) for term in terms)
        return {
            "1/lambda on a root z": -slope / free - lr * sum(terms),
            "(1 - z)(1 - b/z) on the circle": sp.simplify(on_circle - parts),
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

    squares = [(1 + p) ** 2 * (1 - sp.cos(w)) ** 2 + (1 - p) ** 2 * sp.sin(w) ** 2 for p in poles]
    imaginary = sum(
        weight * (1 - pole) ** 2 * sp.sin(w) / square
        for weight, pole, square in zip(weights, poles, squares, strict=True)
    )
    claim = identity(
        "parallel_ema_period_two",
        sp.Eq(sp.Symbol("Im(1/lambda)"), lr * imaginary, evaluate=False),
        differences,
        "every term has a positive imaginary part for 0 < w < pi: real at z = -1 only",
        ["z = exp(i w)", "0 < beta1, beta2 < 1", "0 <= nu <= 1"],
    )
    return replace(claim, routes={**claim.routes, "numbers": numbers})


# --- steps ---------------------------------------------------------------------------------------


def _rules() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Every rule whose step runs on symbols, with a symbolic memory."""
    pair = {"lr": lr, "beta1": b, "beta2": b2, "eps": eps}
    memory = (m, nu, t - 1)
    return {
        "RMSProp": (eosim.RMSProp(lr, b2, eps), (nu, t - 1)),
        "RMSProp, corrected": (eosim.RMSProp(lr, b2, eps, bias_correction=True), (nu, t - 1)),
        "AdaGrad": (eosim.AdaGrad(lr, eps), (nu,)),
        "Adam": (eosim.Adam(**pair), memory),
        "Adam, uncorrected": (eosim.Adam(**pair, bias_correction=False), memory),
        "AdamW": (eosim.AdamW(**pair, weight_decay=decay), memory),
        "NAdam": (eosim.NAdam(**pair), memory),
        "Padam": (eosim.Padam(**pair, exponent=sp.Rational(1, 8)), memory),
    }


def _preconditioned_step() -> Claim:
    """A live step is the step of the linear rule on g/P, with P of the new state."""

    def differences() -> dict[str, sp.Expr]:
        found = {}
        for name, (rule, memory) in _rules().items():
            after, new = rule.step(x, memory, g)
            divisor = rule.preconditioner(new)
            frozen = Frozen(rule.linear(), divisor)
            buffers = tuple(buffer / divisor for buffer in rule.buffers(memory))
            expected, scaled = frozen.step(x, buffers, g)
            found[f"{name}: theta"] = _exact(after - expected)
            for ours, theirs in zip(rule.buffers(new), scaled, strict=True):
                found[f"{name}: buffer"] = _exact(ours / divisor - theirs)
        return found

    claim = identity(
        "preconditioned_step",
        sp.Eq(sp.Symbol("theta'"), x - lr * sp.Symbol("Q") * g / P, evaluate=False),
        differences,
        "Adam, AdamW, NAdam, Padam, RMSProp, AdaGrad: the linear rule Q on g/P, buffers over P",
        ["P = preconditioner(state) after the step", "any memory, any t >= 1"],
        source=_COHEN,
    )
    routes = {"symbolic": claim.routes["symbolic"], "numbers": at_numbers(differences)}
    return replace(claim, routes=routes)


def _bias_correction() -> Claim:
    """Adam as published, with both averages corrected, is an average over P of Cohen et al."""
    first, second = b * m + (1 - b) * g, b2 * nu + (1 - b2) * g**2  # m_t, nu_t
    published = lr * (first / (1 - b**t)) / (sp.sqrt(second / (1 - b2**t)) + eps)
    divisor = (1 - b**t) * (sp.sqrt(second / (1 - b2**t)) + eps)

    def differences() -> dict[str, sp.Expr]:
        rule = eosim.Adam(lr, b, b2, eps)
        after, state = rule.step(x, (m, nu, t - 1), g)
        return {
            "the shipped step": _exact(x - after) - published,
            "the shipped P": _exact(rule.preconditioner(state)) - divisor,
            "eta m/P": lr * first / divisor - published,
        }

    claim = identity(
        "adam_bias_correction",
        sp.Eq(
            lr * sp.Symbol("mhat") / (sp.sqrt(sp.Symbol("nuhat")) + eps),
            lr * m / ((1 - b**t) * (sp.sqrt(nu / (1 - b2**t)) + eps)),
            evaluate=False,
        ),
        differences,
        "the factor 1/(1 - beta1^t) of the average moves into P",
        ["mhat = m/(1 - beta1^t), nuhat = nu/(1 - beta2^t)", "t >= 1"],
        source="Kingma & Ba 2015, algorithm 1",
    )
    routes = {"symbolic": claim.routes["symbolic"], "numbers": at_numbers(differences)}
    return replace(claim, routes=routes)


def _frozen_preconditioner() -> Claim:
    """y = P^(1/2) x turns a rule on (H, P) into the same rule on P^(-1/2) H P^(-1/2)."""
    roots = sp.symbols("r1:3", positive=True)  # P = diag(r1^2, r2^2)
    point, buffer = sp.symbols("x1:3"), sp.symbols("m1:3")
    h11, h12, h22 = sp.symbols("h11 h12 h22")
    hessian = sp.Matrix([[h11, h12], [h12, h22]])
    linear: dict[str, Any] = {
        "Adam": eosim.Adam(lr, b),
        "AdamW": eosim.AdamW(lr, b, weight_decay=decay),
        "NAdam": eosim.NAdam(lr, b),
        "RMSProp": eosim.RMSProp(lr),
    }

    def differences() -> dict[str, sp.Expr]:
        gradient = hessian * sp.Matrix(point)
        scaled = sp.Matrix(2, 2, lambda i, j: hessian[i, j] / (roots[i] * roots[j]))
        image = scaled * sp.Matrix([r * entry for r, entry in zip(roots, point, strict=True)])
        found = {}
        for name, adaptive in linear.items():
            rule = adaptive.linear()
            for i, root in enumerate(roots):
                memory = (buffer[i],) if rule.init(x) else ()
                theta, state = Frozen(rule, root**2).step(point[i], memory, gradient[i])
                moved, scaled_state = rule.step(
                    root * point[i], tuple(root * entry for entry in memory), image[i]
                )
                found[f"{name}: coordinate {i + 1}"] = sp.expand(root * theta - moved)
                for ours, theirs in zip(state, scaled_state, strict=True):
                    found[f"{name}: buffer {i + 1}"] = sp.expand(root * ours - theirs)
        polynomial = derive(eosim.EMAMomentum)
        rate, beta = polynomial.symbols["lr"], polynomial.symbols["momentum"]
        # negative at a negative curvature, so that a real root lies beyond z = 1
        found["a saddle grows at every lr: p(1)"] = (
            polynomial.polynomial.eval(1) - (1 - beta) * rate * CURVATURE
        )
        return found

    def simulation() -> str:
        generator = np.random.default_rng(0)
        for _ in range(4):
            factor = generator.standard_normal((6, 6))
            curvature, diagonal = factor @ factor.T, np.exp(generator.standard_normal(6))
            root = np.sqrt(diagonal)
            values, vectors = np.linalg.eigh(curvature / np.outer(root, root))
            for share in (0.99, 1.01):
                rate = share * eosim.Adam(1.0).critical_sharpness() / values[-1]
                rule = Frozen(eosim.Adam(rate).linear(), diagonal)
                run = eosim.run(
                    eosim.Quadratic(curvature), rule, vectors[:, -1] / root, 300, record={}
                )
                mode = np.abs(run["theta"] @ (root * vectors[:, -1]))
                if (mode[-20:].max() > mode[:20].max()) != (share > 1):
                    raise Refuted(f"the top mode at {share} of 38/lr goes the wrong way")
        return "4 random quadratics with log-normal P: top mode shrinks at 0.99, grows at 1.01 of 38/lr"

    edge = eosim.Adam(lr, b).critical_sharpness()
    return identity(
        "frozen_preconditioner",
        sp.Eq(sp.Symbol("lambda_max(P^{-1} H)"), edge, evaluate=False),
        differences,
        "every step commutes with y = P^(1/2) x, so each mode of P^(-1/2) H P^(-1/2) is by itself",
        [
            "L = theta' H theta/2, P > 0 diagonal and fixed",
            "the edge of Adam; other rules likewise",
        ],
        simulation,
        source=_COHEN,
    )


# --- averages and heavy ball ---------------------------------------------------------------------


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

    return identity(
        "ema_heavy_ball",
        sp.Eq(sp.Symbol("eta_HB"), (1 - b) * lr, evaluate=False),
        differences,
        "the same iterates with v = m/(1 - beta); every threshold is 2/eta without momentum",
        ["EMAMomentum(eta, beta) against HeavyBall(eta_HB, beta)"],
    )


def _ringing() -> Claim:
    """Where the modes of an averaged gradient start and end to oscillate smoothly."""
    root = sp.Symbol("r", positive=True)  # sqrt(beta)
    k = sp.Symbol("k", positive=True)
    lower, upper = (1 - root) / (1 + root), (1 + root) / (1 - root)

    def differences() -> dict[str, sp.Expr]:
        derivation = derive(eosim.EMAMomentum)
        rate, beta = derivation.symbols["lr"], derivation.symbols["momentum"]
        polynomial = sp.Poly(
            derivation.polynomial.as_expr().subs({CURVATURE: k / rate, beta: root**2}), Z
        )
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
    return identity(
        "ema_ringing",
        sp.Eq(k, (1 - sp.sqrt(beta)) / (1 + sp.sqrt(beta)), evaluate=False),
        differences,
        "a complex pair of modulus sqrt(beta) between the limit and its inverse, real roots outside",
        ["k = eta lambda", "EMAMomentum; r = sqrt(beta)"],
        simulation,
    )


def claims() -> list[Claim]:
    """Thresholds with P frozen, of averages in a row and side by side, and what a step is made of."""
    return [
        _rmsprop(),
        _adam(),
        _adamw(),
        _nadam(),
        threshold_claim("parallel_ema", eosim.ParallelEMA, "derived here"),
        threshold_claim("cascaded_ema", eosim.CascadedEMA, "derived here"),
        _cascade_pair(),
        _parallel_period_two(),
        _preconditioned_step(),
        _bias_correction(),
        _frozen_preconditioner(),
        _ema_heavy_ball(),
        _ringing(),
    ]
