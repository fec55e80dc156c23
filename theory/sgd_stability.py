r"""Bounds of the stable learning rate of SGD, their remainders, and the cases solved in closed form."""

from __future__ import annotations

import numpy as np
import sympy as sp

import eosim
from eosim.stability import mean_square
from eosim.stability.tangent_kernel import TangentKernel
from theory.claim import Claim, Kind, Refuted
from theory.sgd_moments import (
    ALIGNMENT,
    NONE,
    SCHEMES,
    B,
    all_batches,
    eta,
    identity_claim,
    jacobian_symbols,
    kappa,
    kept,
    mu,
    n,
    scheme_cases,
    shipped_moments,
    step_matrix,
    symmetric,
    x,
)


def _frobenius_bound() -> Claim:
    """The remainder of the Frobenius bound is a sum of squares."""
    size = 4
    levels = sp.symbols(f"l0:{size}", positive=True)
    deltas = sp.symbols(f"d0:{size}", real=True)
    noise = sp.symbols(f"s0:{size}", positive=True)  # diagonal of Sigma in the eigenbasis of H

    def expected_loss() -> sp.Expr:
        """E L' of shipped steps whose noise has mean 0 and the covariance kappa Sigma."""
        total: sp.Expr = sp.Integer(0)
        xi = sp.Symbol("xi")
        for level, d, s in zip(levels, deltas, noise, strict=True):
            after = eosim.GradientDescent(eta).step(d, (), level * d + xi)[0]
            powers = sp.Poly(sp.expand(level * after**2 / 2), xi)
            total += powers.coeff_monomial(1) + powers.coeff_monomial(xi**2) * kappa * s
        return total

    def differences() -> dict[str, sp.Expr]:
        L = sum(lam * d**2 for lam, d in zip(levels, deltas, strict=True)) / 2
        F2 = sum(lam**2 for lam in levels)
        overlap = sum(lam * s for lam, s in zip(levels, noise, strict=True))
        alignment = overlap / (2 * L * F2)
        squares = sum(
            lam * (1 - eta * lam) ** 2 * d**2 for lam, d in zip(levels, deltas, strict=True)
        )  # visibly not negative
        a = [d**2 for d in deltas]
        first, second, third = (
            sum(lam**p * b for lam, b in zip(levels, a, strict=True)) for p in (1, 2, 3)
        )
        pairs = sum(
            levels[i] * levels[j] * (levels[i] - levels[j]) ** 2 * a[i] * a[j]
            for i in range(size)
            for j in range(i)
        )
        F = sp.Symbol("F", positive=True)
        (edge,) = sp.solve(sp.Eq(eta**2 * mu * F**2 / B, 1), F)
        h, ratio = sp.symbols("h rho", positive=True)
        # with the uncentred alignment: least over h of 1 - 2 eta h + (1 - kappa) eta^2 h^2
        drift = 1 - 2 * eta * h + (1 - kappa) * eta**2 * h**2
        square = (1 - kappa) * (eta * h - 1 / (1 - kappa)) ** 2
        bound = sp.solve(sp.Eq(-kappa / (1 - kappa) + kappa * ratio, 1), ratio)[0]
        return {
            "E L' - eta^2 kappa mu |H|^2 L - squares": (
                expected_loss() - (eta**2 * kappa * alignment * F2 * L) - squares / 2
            ),
            "Cauchy-Schwarz certificate": (first * third - second**2 - pairs),
            "norm at the threshold": edge - sp.sqrt(B) / (eta * sp.sqrt(mu)),
            "uncentred: drift": drift - square + kappa / (1 - kappa),
            "uncentred: eta^2 mu_1 |H|^2 at most": bound - 1 / (kappa * (1 - kappa)),
        }

    def numbers() -> str:
        from eosim.stability.bounds import lr_bounds

        generator = np.random.default_rng(1)
        closest = np.inf
        for _ in range(60):
            size = int(generator.integers(2, 7))
            J = generator.standard_normal((size, 5)) * generator.uniform(0.2, 2, (size, 1))
            for batch_size in range(1, size):
                found = lr_bounds(TangentKernel.from_jacobian(J), batch_size)
                for name in ("frobenius", "frobenius_uncentred"):
                    closest = min(closest, found[name].value / found["exact"].value)
        if closest < 1:
            raise Refuted(f"a bound is {closest} times the exact threshold")
        return f"60 random Jacobians, every B: never below {closest:.3f} times the exact threshold"

    F = sp.Symbol("|H|_F")
    return identity_claim(
        "sgd_frobenius_bound",
        sp.Ge(sp.sqrt(B / sp.Symbol("mu_0")) / eta, F, evaluate=False),
        differences,
        "E L' = eta^2 kappa mu |H|^2 L + (1/2) sum l (1 - eta l)^2 d^2; stable only if the factor "
        "is at most 1",
        ["stable interpolating minimum, kappa = 1/B", "mu >= mu_0 > 0 for every residual in range"],
        source=f"{ALIGNMENT}; constants and uncentred form derived here",
        kind=Kind.UPPER,
        numbers=numbers,
    )  # fmt: skip


def _equal_leverage() -> Claim:
    """Jensen: unequal leverages only add noise, so the finite threshold is an upper bound."""

    def differences() -> dict[str, sp.Expr]:
        Z, rows = symmetric("z", 2), jacobian_symbols(3, 2)
        leverages = [(rows[i, :] * Z * rows[i, :].T)[0] for i in range(3)]
        H = rows.T * rows / 3
        spread = sum(
            (leverages[i] - leverages[j]) ** 2 for i in range(3) for j in range(i)
        ) / sp.Integer(9)
        levels = sp.symbols("l0:3", positive=True)
        z = [1 / (2 - kept * eta * level) for level in levels]
        T = sum(level * w for level, w in zip(levels, z, strict=True))
        quotient = 2 * sum(lam * w**2 for lam, w in zip(levels, z, strict=True)) - eta * (
            kept * sum(lam**2 * w**2 for lam, w in zip(levels, z, strict=True)) + kappa * T**2
        )
        norm = sum(
            mean_square.kernel_weight(eta * lam, eta * lam, NONE, kappa, kept) for lam in levels
        )
        return {
            "mean of squares - square of the mean": (
                sum(s**2 for s in leverages) / 3 - (H * Z).trace() ** 2 - spread
            ),
            "2<Z,CZ> - eta<Z,DZ> at Z = 1/(2 - c x)": (quotient - T * (1 - norm)),
        }

    def numbers() -> str:
        generator = np.random.default_rng(3)
        lowest = np.inf
        for _ in range(100):
            J = generator.standard_normal((5, 4)) * generator.uniform(0.2, 2, (5, 1))
            kernel, batch_size = TangentKernel.from_jacobian(J), int(generator.integers(1, 5))
            exact, closure, finite = (
                mean_square.critical_lr(kernel, batch_size, kind=kind)
                for kind in ("exact", "closure", "finite")
            )
            lowest = min(lowest, closure / exact, finite / closure)
        if lowest < 1 - 1e-10:
            raise Refuted(f"a threshold is {lowest} times one that it bounds")
        return "100 random Jacobians: exact <= closure <= finite"

    return identity_claim(
        "sgd_equal_leverage_bound",
        sp.Ge(sp.Symbol("eta_finite"), sp.Symbol("eta_star"), evaluate=False),
        differences,
        "D exceeds its equal-leverage form by squares; that form is unstable where K_finite > 1",
        ["Z = diag(z) in the eigenbasis", "leverages g_i^T Z g_i"],
        kind=Kind.UPPER,
        numbers=numbers,
    )


def _monotone() -> Claim:
    """Larger batches are stable at larger rates."""

    def differences() -> dict[str, sp.Expr]:
        a, b, c = sp.symbols("a b c", real=True)
        root = sp.Matrix([[a, 0], [b, c]])
        Z, rows = root * root.T, jacobian_symbols(2, 2)
        samples = [rows[i, :].T * rows[i, :] for i in range(2)]
        H = (samples[0] + samples[1]) / 2
        excess: sp.Expr = sp.Integer(0)
        squares: sp.Expr = sp.Integer(0)
        for h in samples:
            excess += (Z * (h - H) * Z * (h - H)).trace() / 2
            inner = root.T * (h - H) * root
            squares += sum(entry**2 for entry in inner) / 2
        delta = sp.Matrix(sp.symbols("d0:2"))
        noisier = sp.zeros(2)  # E of A Z A at B = 1 less that of the full batch
        full = step_matrix(delta, H)
        for h in samples:
            A = step_matrix(delta, h)
            noisier += (A * Z * A.T - full * Z * full.T) / 2
        factor = (n - B) / (B * (n - 1))
        return {
            "<Z, EZ> as a sum of squares": (excess - squares),
            "<Z, QZ> at B = 1 less the full batch": ((Z * noisier).trace() - eta**2 * squares),
            "slope of kappa": sp.diff(factor, B) + n / (B**2 * (n - 1)),
        }

    def numbers() -> str:
        generator = np.random.default_rng(4)
        for _ in range(60):
            J = generator.standard_normal((6, 5)) * generator.uniform(0.2, 2, (6, 1))
            kernel = TangentKernel.from_jacobian(J)
            found = [mean_square.critical_lr(kernel, size) for size in range(1, 7)]
            if (np.diff(found) < -1e-10 * found[-1]).any():
                raise Refuted(f"thresholds {found} fall with the batch size")
        return "60 random Jacobians: the exact threshold never falls from B to B + 1"

    return identity_claim(
        "sgd_larger_batches",
        sp.Ge(sp.Function("eta_star")(B + 1), sp.Function("eta_star")(B), evaluate=False),
        differences,
        "the top eigenmatrix Z = R R^T is semidefinite, and there noise adds a sum of squares",
        ["Z positive semidefinite", "E = mean (H_i - H) x (H_i - H)"],
        kind=Kind.LOWER,
        numbers=numbers,
    )


def _scalar() -> Claim:
    """One parameter: sharpness a and non-uniformity s."""
    a, s, p = sp.symbols("a s p", positive=True)

    def differences() -> dict[str, sp.Expr]:
        curvatures = sp.symbols("a0:3", positive=True)
        mean = sum(curvatures) / 3
        variance = sum(v**2 for v in curvatures) / 3 - mean**2
        delta = sp.Symbol("delta")
        found = {}
        for size, batch_size, scheme in scheme_cases((3,), SCHEMES[:2]):
            total: sp.Expr = sp.Integer(0)
            for odds, weights in all_batches(size, batch_size, scheme):
                slope = sum(w * v for w, v in zip(weights, curvatures, strict=True)) / 3
                moved = eosim.GradientDescent(eta).step(delta, (), slope * delta)[0]
                total += odds * (moved / delta) ** 2
            _, noise = shipped_moments(size, batch_size, scheme)
            found[f"{scheme}, B = {batch_size}"] = (
                total - (1 - eta * mean) ** 2 - noise * eta**2 * variance
            )
        growth = (1 - eta * a) ** 2 + p * eta**2 * s**2
        (edge,) = sp.solve(sp.cancel((growth - 1) / eta), eta)
        a1, a2 = sp.symbols("a1 a2", positive=True)
        pair = edge.subs({a: (a1 + a2) / 2, s: (a1 - a2) / 2, p: 1}, simultaneous=True)
        return {
            **found,
            "threshold": edge - 2 * a / (a**2 + p * s**2),
            "two samples, B = 1": (pair - 2 * (a1 + a2) / (a1**2 + a2**2)),
            "gap to full batch": 2 / a - edge.subs(p, 1) - 2 * s**2 / (a * (a**2 + s**2)),
        }

    def interval() -> str:
        point = {a: 2, s: 1, p: sp.Rational(1, 3)}
        growth = ((1 - eta * a) ** 2 + p * eta**2 * s**2).subs(point)
        free = sp.Symbol("x", real=True)
        solution = sp.solve_univariate_inequality(
            growth.subs(eta, free) <= 1, free, relational=False
        )
        if solution != sp.Interval(0, sp.Rational(12, 13)):
            raise Refuted(f"at a = 2, s = 1, kappa = 1/3 the stable rates are {solution}")
        found = mean_square.critical_lr(TangentKernel.from_jacobian([[1.0], [3**0.5]]), 1)
        if abs(found - 4 / (4 + 1) / 1) > 1e-12:  # a = 2, s = 1, kappa = 1
            raise Refuted(f"the shipped threshold at a = 2, s = 1, kappa = 1 is {found}, not 4/5")
        return "stable on [0, 12/13] at a = 2, s = 1, kappa = 1/3; shipped 4/5 at kappa = 1"

    return identity_claim(
        "sgd_one_parameter",
        sp.Eq(sp.Symbol("eta_star"), 2 * a / (a**2 + kappa * s**2), evaluate=False),
        differences,
        "all batches of three curvatures, then the root of the growth factor 1",
        [
            "per-sample curvatures of mean a > 0 and variance s^2",
            "batches of a fixed size, with or without replacement",
        ],
        source="Wu, Ma & E 2018 (How SGD selects the global minima); with kappa derived here",
        numbers=interval,
    )


def _two_samples() -> Claim:
    """Two gradients of equal norm: the threshold does not depend on their angle."""
    a, c = sp.symbols("a c", positive=True)  # |g|^2 and g_1.g_2

    def differences() -> dict[str, sp.Expr]:
        K = sp.Matrix([[a, c], [c, a]])
        M = symmetric("M", 2)
        e = sp.Matrix(sp.symbols("e0:2"))
        mean = sp.zeros(2)
        for odds, weights in all_batches(2, 1, "without_replacement"):
            A = step_matrix(e, K / 2 * sp.diag(*weights))
            mean += odds * A * M * A.T
        entries = [M[0, 0], M[0, 1], M[1, 1]]
        after = sp.Matrix([mean[0, 0], mean[0, 1], mean[1, 1]])
        gap = sp.eye(3) - after.jacobian(entries)
        product = eta**3 * (a**2 - c**2) * (a * eta - 2) * (eta * (a**2 - c**2) - 2 * a) / 4
        return {
            "determinant": (gap.det() - product),
            "the other root is larger": 2 * a / (a**2 - c**2)
            - 2 / a
            - 2 * c**2 / (a * (a**2 - c**2)),
            "kernel row": mean_square.kernel_weight(a * eta, a * eta, NONE, 1, 0) - a * eta / 2,
        }

    def numbers() -> str:
        for angle in (0.2, 1.0, 1.5, 3.0):
            J = [[1.5, 0.0], [1.5 * np.cos(angle), 1.5 * np.sin(angle)]]
            found = mean_square.critical_lr(TangentKernel.from_jacobian(J), 1)
            if abs(found * 1.5**2 / 2 - 1) > 1e-10:
                raise Refuted(f"at the angle {angle} the threshold is {found}")
        return "shipped threshold 2/|g|^2 at four angles"

    return identity_claim(
        "sgd_two_equal_norms",
        sp.Eq(sp.Symbol("eta_star"), 2 / sp.Symbol("|g|^2"), evaluate=False),
        differences,
        "one minus the map has a determinant that vanishes first at 2/|g|^2",
        ["n = 2, B = 1", "|g_1| = |g_2|, any angle but 0"],
        numbers=numbers,
    )


def _tight_cases() -> Claim:
    """Orthogonal gradients, isotropic curvature: where the Frobenius bound is attained."""
    k, r, u = sp.symbols("k r u", positive=True)

    def differences() -> dict[str, sp.Expr]:
        weight = mean_square.kernel_weight
        factor = (n - B) / (B * (n - 1))
        (edge,) = sp.solve(sp.Eq(n * weight(x, x, NONE, kappa, 1 - kappa), 1), x)
        exact = sp.simplify(edge.subs(kappa, factor)) * n / k  # lambda = k/n
        # F = k/sqrt(n), mu_0 = (n - 1)/n, bound^2 = 1/(F^2 kappa mu_0)
        bound2 = 1 / (k**2 / n * factor * (n - 1) / n)
        level = kappa * mu  # noise kappa Sigma with Sigma = mu 2 L H
        (isotropic,) = sp.solve(sp.Eq(r * weight(x, x, NONE, level, 1), 1), x)
        frobenius = 1 / sp.sqrt(level * r)
        return {
            "orthogonal threshold": exact - 2 * B / k,
            "bound^2 - exact^2": bound2 - exact**2 - B * (n - 2 * B) ** 2 / ((n - B) * k**2),
            "isotropic threshold": isotropic - 2 / (1 + level * r),
            "isotropic gap": (frobenius - isotropic).subs(r, u**2 / level)
            - (1 - u) ** 2 / (u * (1 + u**2)),
            "tight at kappa mu r = 1": (isotropic - frobenius).subs(r, 1 / level),
        }

    def numbers() -> str:
        for size, batch_size in ((4, 1), (4, 2), (6, 3), (6, 5)):
            found = mean_square.critical_lr(TangentKernel.from_jacobian(np.eye(size)), batch_size)
            if abs(found - 2 * batch_size) > 1e-9:
                raise Refuted(f"n = {size}, B = {batch_size}: the threshold is {found}")
        return "shipped thresholds of orthonormal gradients are 2 B"

    return identity_claim(
        "sgd_frobenius_tight_cases",
        sp.Eq(
            sp.Symbol("eta_F") ** 2 - sp.Symbol("eta_star") ** 2,
            B * (n - 2 * B) ** 2 / ((n - B) * k**2),
            evaluate=False,
        ),
        differences,
        "the gaps are squares: tight at n = 2 B, and at kappa mu r = 1",
        [
            "n orthogonal gradients of square k, without replacement, B < n",
            "the other tight case is isotropic: H = l I_r with kappa mu r = 1",
        ],
        numbers=numbers,
    )


def claims() -> list[Claim]:
    """The Frobenius and equal-leverage bounds, growth with the batch size, and exact thresholds."""
    return [
        _frobenius_bound(),
        _equal_leverage(),
        _monotone(),
        _scalar(),
        _two_samples(),
        _tight_cases(),
    ]
