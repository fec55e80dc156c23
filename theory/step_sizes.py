r"""Learning rates that adapt: the drift-adjusted rate DAL on convex quadratics."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import sympy as sp

import eosim
from theory.claim import Claim, Kind, Refuted, Step, require_zero

_PAPER = "Rosca, Wu, Qin & Dherin 2023, arXiv 2302.01952"


class _Local:
    """The local derivatives that the shipped rule asks for, of a quadratic."""

    def __init__(self, hessian: np.ndarray, theta: np.ndarray) -> None:
        self.hessian, self.theta = hessian, theta

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        return self.hessian @ theta

    def hvp(self, v: np.ndarray) -> np.ndarray:
        return self.hessian @ v


def _random_rate(generator: np.random.Generator) -> tuple[float, np.ndarray, np.ndarray]:
    """The shipped DAL rate at a random point of a random convex quadratic, with spectrum and g."""
    dim = int(generator.integers(1, 7))
    eigenvalues = np.exp(generator.uniform(-3, 3, dim))
    basis = np.linalg.qr(generator.standard_normal((dim, dim)))[0]
    local = _Local((basis * eigenvalues) @ basis.T, generator.standard_normal(dim))
    g = local.gradient(local.theta)
    return eosim.DAL(cap=1e9).rate(g, local), eigenvalues, basis.T @ g


def _drift_is_step() -> Claim:
    """With the DAL rate the leading drift of a gradient-flow step is as long as the step."""
    g, image, eta = sp.symbols("|g| |Hg| eta", positive=True)

    def steps() -> list[Step]:
        (rate,) = sp.solve(sp.Eq(eta**2 * image / 2, eta * g), eta)
        return [
            Step("leading drift of one step of the gradient flow", eta**2 * image / 2),
            Step("length of the step", eta * g),
            Step("equal at", sp.Eq(eta, rate)),
        ]

    def symbolic() -> str:
        (rate,) = sp.solve(sp.Eq(eta**2 * image / 2, eta * g), eta)
        require_zero(rate - 2 / (image / g), "the rate at which drift and step are equal")
        return "eta^2 |Hg| / 2 = eta |g| has the single positive solution 2 |g| / |Hg|"

    def numbers() -> str:
        generator = np.random.default_rng(0)
        worst = 0.0
        for _ in range(200):
            rate, eigenvalues, g = _random_rate(generator)
            drift, step = rate**2 / 2 * np.linalg.norm(eigenvalues * g), rate * np.linalg.norm(g)
            worst = max(worst, abs(float(drift / step) - 1))
        if worst > 1e-12:
            raise Refuted(f"drift and step differ by {worst:.2g}, relatively")
        return f"200 random quadratics, shipped rate: equal within {worst:.0e}"

    return Claim(
        name="dal_drift_is_step",
        statement=sp.Eq(eta**2 * image / 2, eta * g, evaluate=False),
        kind=Kind.EXACT,
        source=_PAPER,
        assumptions=["p = 1, cap inactive", "eta the DAL rate 2 |g| / |Hg|", "Hg not 0"],
        derivation=steps,
        routes={"symbolic": symbolic, "numbers": numbers},
    )


def _never_below() -> Claim:
    """On convex quadratics the DAL rate lies between 2/lambda_1 and 2/lambda_d."""
    size = 4
    weights = sp.symbols(f"g1:{size + 1}", real=True)
    smallest = sp.Symbol("lambda_d", positive=True)
    gaps = sp.symbols(f"d1:{size}", nonnegative=True)
    eigenvalues = [smallest]
    for gap in gaps:
        eigenvalues.append(eigenvalues[-1] + gap)
    rate, top = sp.symbols("eta lambda_1", positive=True)

    def squares(scale: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
        """scale^2 |g|^2 and |Hg|^2 in the eigenbasis."""
        pairs = list(zip(eigenvalues, weights, strict=True))
        return sum(scale**2 * g**2 for _, g in pairs), sum((value * g) ** 2 for value, g in pairs)

    def steps() -> list[Step]:
        above, image = squares(eigenvalues[-1])
        return [
            Step("lambda_1^2 |g|^2 - |Hg|^2, with lambda_1 = lambda_d + d1 + d2 + d3",
                 sp.collect(sp.expand(above - image), [g**2 for g in weights])),
            Step("not negative, hence", sp.Ge(rate, 2 / top)),
        ]  # fmt: skip

    def symbolic() -> str:
        for scale, sign in ((eigenvalues[-1], 1), (eigenvalues[0], -1)):
            bound, image = squares(scale)
            remainder = sp.Poly(sp.expand(sign * (bound - image)), *weights, *gaps, smallest)
            # a sum of squares of the g with coefficients that are positive in every gap
            for exponents, coefficient in remainder.terms():
                if coefficient < 0 or any(e % 2 for e in exponents[:size]):
                    raise Refuted(f"the remainder has the term {coefficient}, {exponents}")
        return f"{size} eigenvalues: the remainder is a sum of squares with positive coefficients"

    def numbers() -> str:
        generator = np.random.default_rng(1)
        for _ in range(300):
            found, spectrum, _ = _random_rate(generator)
            low, high = 2 / spectrum.max(), 2 / spectrum.min()
            if not low * (1 - 1e-12) <= found <= high * (1 + 1e-12):
                raise Refuted(f"the rate {found} is outside [{low}, {high}]")
        return "300 random convex quadratics, shipped rate inside the bounds"

    def simulation() -> str:
        lowest = np.inf
        for seed in range(3):
            generator = random.Random(seed)
            spectrum = np.array([generator.uniform(0.5, 8) for _ in range(4)])
            run = eosim.run(
                eosim.Quadratic(np.diag(spectrum)),
                eosim.DAL(),
                np.ones(4),
                200,
                record={"rate": _recorded_rate},
            )
            lowest = min(lowest, (run["rate"][1:] * spectrum.max() / 2).min())
        if lowest < 1 - 1e-12:
            raise Refuted(f"a rate fell to {lowest} of 2 / lambda_1")
        return f"3 runs of 200 steps: rate times lambda_1 / 2 never below {lowest:.6f}"

    return Claim(
        name="dal_never_below_the_edge",
        statement=sp.Ge(rate, 2 / top, evaluate=False),
        kind=Kind.LOWER,
        source=f"derived here; rule: {_PAPER}",
        assumptions=[
            "convex quadratic, Hg not 0",
            "p = 1, cap inactive",
            "also eta <= 2/lambda_d",
        ],
        derivation=steps,
        routes={"symbolic": symbolic, "numbers": numbers, "simulation": simulation},
    )


def _recorded_rate(problem: Any, theta: Any, *, state: Any) -> float:
    return float(state[1])


def claims() -> list[Claim]:
    """Drift equals step, and the bounds of the rate."""
    return [_drift_is_step(), _never_below()]
