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
from eosim.optimizers import CoupledL2, Frozen
from theory.catapult import identity
from theory.claim import Claim, Refuted, Step, require_zero
from theory.linear_stability import CURVATURE, Z, derive, threshold_claim

_COHEN = "Cohen et al. 2022, arXiv 2207.14484"
_COUNT = 20  # random points of a numerical route
_DIGITS = 40

# What is proved of the rules that `derive` cannot treat.
NOT_LINEAR: Mapping[type, str] = {
    eosim.RMSProp: "rmsprop",
    eosim.ScalarRMSProp: "rmsprop",
    eosim.AdaGrad: "rmsprop",
    eosim.Adam: "adam",
    eosim.AMSGrad: "adam",
    eosim.Padam: "adam",
    eosim.Adafactor: "adam",
    eosim.AdamW: "adamw",
    eosim.NAdam: "nadam",
    eosim.DAL: "dal_never_below_the_edge",
    CoupledL2: "adam_l2",
    Frozen: "frozen_preconditioner",
}

lr, b, b2, eps, decay, P = sp.symbols("eta beta1 beta2 epsilon gamma P", positive=True)
x, g, m, nu = sp.symbols("x g m nu", positive=True)
t = sp.Symbol("t", integer=True, positive=True)


def _exact(expression: Any) -> sp.Expr:
    """With the floats of a step, such as the power 0.5, as rationals."""
    return sp.nsimplify(expression, rational=True)


def equation(left: Any, right: Any) -> sp.Eq:
    """Left = right, left as it is where it could be evaluated."""
    return sp.Eq(left, right, evaluate=False)


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
    base: type = _FrozenRule,
) -> Claim:
    """The threshold of a rule with P frozen; a decay may be any."""
    entries: list[Any] = [(key, Any) for key in hyperparameters]
    entries.append(("P", Any, field(metadata={"domain": Interval(0, math.inf)})))
    rule = make_dataclass(
        f"Frozen{kind.__name__}",
        entries,
        bases=(base,),
        namespace={"kind": kind},
        frozen=True,
    )
    within = {"weight_decay": (0.0, math.inf)} if "weight_decay" in hyperparameters else {}
    return threshold_claim(name, rule, source, within)


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
    members = {
        "AdaGrad": lambda: eosim.AdaGrad(lr),
        "ScalarRMSProp": lambda: eosim.ScalarRMSProp(lr),
    }
    return _with_members(claim, members, eosim.GradientDescent(lr))


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
    claim = _frozen_claim("adamw", eosim.AdamW, ["lr", "beta1", "weight_decay"], "derived here")

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


class _CoupledAdam(_FrozenRule):
    """Adam on the gradient plus weight_decay * theta, with P frozen."""

    kind = eosim.Adam

    @property
    def frozen(self) -> Any:
        linear = eosim.EMAMomentum(self.lr, self.beta1)  # type: ignore[attr-defined]
        return CoupledL2(Frozen(linear, self.P), self.weight_decay)  # type: ignore[attr-defined]

    def critical_sharpness(self) -> Any:
        """Of H: the decay adds to every curvature."""
        edge = eosim.Adam(self.lr, self.beta1).critical_sharpness()  # type: ignore[attr-defined]
        return self.P * edge - self.weight_decay  # type: ignore[attr-defined]


def _adam_l2() -> Claim:
    return _frozen_claim(
        "adam_l2", eosim.Adam, ["lr", "beta1", "weight_decay"], f"{_COHEN}, with H + gamma I for H",
        base=_CoupledAdam,
    )  # fmt: skip


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

    def simulation() -> str:
        generator, count = np.random.default_rng(7), 0
        rules: list[Any] = [
            *(eosim.AMSGrad(0.1, maximum=maximum) for maximum in ("raw", "corrected")),
            eosim.Padam(0.1, running_maximum=True),
            eosim.Adafactor(0.1, [(2, 3)], beta1=0.9),
        ]
        for rule in rules:
            theta = generator.standard_normal(6)
            state = rule.init(theta)
            for gradient in generator.standard_normal((_COUNT, 6)):
                after, new = rule.step(theta, state, gradient)
                divisor = rule.preconditioner(new)
                buffers = tuple(buffer / divisor for buffer in rule.buffers(state))
                expected, _ = Frozen(rule.linear(), divisor).step(theta, buffers, gradient)
                if np.abs(after - expected).max() > 1e-12:
                    raise Refuted(f"a step of {rule} is not that of {rule.linear()} on g/P")
                theta, state, count = after, new, count + 1
        return f"{count} steps of AMSGrad, Padam and Adafactor on arrays"

    def derivation() -> list[Step]:
        steps = []
        for name, (rule, memory) in _rules().items():
            _, new = rule.step(x, memory, g)
            buffers = tuple(buffer / P for buffer in rule.buffers(memory))
            after, _ = Frozen(rule.linear(), P).step(x, buffers, g)
            steps.append(
                Step(f"{name}: P after the step", equation(P, _exact(rule.preconditioner(new))))
            )
            steps.append(Step("and the step", equation(sp.Symbol("theta'"), sp.collect(after, lr))))
        return steps

    claim = identity(
        "preconditioned_step",
        equation(sp.Symbol("theta'"), x - lr * sp.Symbol("Q") * g / P),
        differences,
        "Adam, AdamW, NAdam, Padam, RMSProp, AdaGrad: the linear rule Q on g/P, buffers over P",
        [
            "P = preconditioner(state) after the step",
            "Q g the direction of the linear rule, its buffers divided by P",
            "any memory, any t >= 1",
        ],
        source=_COHEN,
    )
    routes = {
        "symbolic": claim.routes["symbolic"],
        "numbers": at_numbers(differences),
        "simulation": simulation,
    }
    return replace(claim, derivation=derivation, routes=routes)


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

    def derivation() -> list[Step]:
        rule = eosim.Adam(lr, b, b2, eps)
        after, state = rule.step(x, (m, nu, t - 1), g)
        return [
            Step("published: eta mhat/(sqrt(nuhat) + eps)", published),
            Step("the shipped P after step t", equation(P, _exact(rule.preconditioner(state)))),
            Step(
                "the shipped step is eta m/P", equation(x - sp.Symbol("theta'"), _exact(x - after))
            ),
        ]

    claim = identity(
        "adam_bias_correction",
        equation(
            lr * sp.Symbol("mhat") / (sp.sqrt(sp.Symbol("nuhat")) + eps),
            lr * m / ((1 - b**t) * (sp.sqrt(nu / (1 - b2**t)) + eps)),
        ),
        differences,
        "the factor 1/(1 - beta1^t) of the average moves into P",
        ["mhat = m/(1 - beta1^t), nuhat = nu/(1 - beta2^t)", "t >= 1"],
        source="Kingma & Ba 2015, algorithm 1",
    )
    routes = {"symbolic": claim.routes["symbolic"], "numbers": at_numbers(differences)}
    return replace(claim, derivation=derivation, routes=routes)


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
        average = derive(eosim.EMAMomentum)
        rate, beta = average.symbols["lr"], average.symbols["momentum"]
        polynomial = average.polynomial.as_expr()
        # negative at a negative curvature, so that a real root lies beyond z = 1
        found["a saddle grows at every lr: p(1)"] = (
            polynomial.subs(Z, 1) - (1 - beta) * rate * CURVATURE
        )
        found["a flat direction is marginal: p at 0"] = sp.expand(
            polynomial.subs(CURVATURE, 0) - (Z - 1) * (Z - beta)
        )
        edge = eosim.Adam(rate, beta).critical_sharpness()
        found["a bounded 2-cycle at the edge: p there"] = sp.expand(
            sp.simplify(polynomial.subs(CURVATURE, edge)) - (Z + 1) * (Z + beta)
        )
        return found

    def derivation() -> list[Step]:
        scaled = sp.Matrix(2, 2, lambda i, j: hessian[i, j] / (roots[i] * roots[j]))
        theta, _ = Frozen(eosim.Adam(lr, b).linear(), roots[0] ** 2).step(x, (m,), g)
        average = derive(eosim.EMAMomentum)
        polynomial = average.polynomial.as_expr().subs(average.symbols["momentum"], b)
        edge = eosim.Adam(average.symbols["lr"], b).critical_sharpness()
        return [
            Step("P^(-1/2) H P^(-1/2), with P = diag(r1^2, r2^2)", scaled),
            Step("a coordinate y = r1 x of Adam's step, with the gradient g/r1 in y",
                 sp.expand(roots[0] * theta)),
            Step("a mode of that matrix: characteristic polynomial", sp.collect(polynomial, Z)),
            Step("at the edge, a bounded 2-cycle", sp.factor(polynomial.subs(CURVATURE, edge))),
            Step("at curvature 0, marginal", sp.factor(polynomial.subs(CURVATURE, 0))),
            Step("at z = 1, negative at a saddle: it grows", sp.factor(polynomial.subs(Z, 1))),
        ]  # fmt: skip

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

    claim = identity(
        "frozen_preconditioner",
        equation(sp.Symbol("lambda_max"), eosim.Adam(lr, b).critical_sharpness()),
        differences,
        "every step commutes with y = P^(1/2) x, so each mode of P^(-1/2) H P^(-1/2) is by itself",
        [
            "lambda_max of P^-1 H; L = theta' H theta/2, P > 0 diagonal and fixed",
            "the edge of Adam; other rules likewise",
        ],
        simulation,
        source=_COHEN,
    )
    return replace(claim, derivation=derivation)


def claims() -> list[Claim]:
    """Thresholds with P frozen, and what a step is made of."""
    return [
        _rmsprop(),
        _adam(),
        _adamw(),
        _nadam(),
        _adam_l2(),
        _preconditioned_step(),
        _bias_correction(),
        _frozen_preconditioner(),
    ]
