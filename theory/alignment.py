r"""Where the noise of SGD provably follows the sharp directions: Gaussian inputs, linear models.

The loss-scaled alignment is :math:`\mu = \mathrm{tr}(\Sigma G) / (2 L |G|_F^2)`, :math:`\Sigma` the
covariance of the gradient of one sample and G the Gauss-Newton matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import sympy as sp

from eosim.problems.networks.linear import DiagonalNet, LinearNet
from eosim.problems.regression import LinearRegression
from theory.claim import Claim, Kind, Refuted, Step, require_zero

s1, s2 = sp.symbols("s1 s2", positive=True)
a, b = sp.symbols("a b", real=True)
d = sp.Symbol("d", positive=True)


def gaussian_mean(polynomial: sp.Expr, variables: tuple[sp.Symbol, ...], variances: Any) -> sp.Expr:
    """The mean over independent Gaussians: every x^p becomes (p - 1)!! s^(p/2), odd powers 0."""
    mean = sp.Integer(0)
    for powers, coefficient in sp.Poly(polynomial, *variables).terms():
        if all(p % 2 == 0 for p in powers):
            mean += coefficient * sp.prod(
                sp.factorial2(p - 1) * s ** (p // 2) for p, s in zip(powers, variances, strict=True)
            )
    return mean


def gaussian_sample(scales: Any = (1.0, 1.0)) -> np.ndarray:
    """12 points of the plane with the moments of N(0, diag(scales^2)) up to order 5.

    A regular hexagon has those of the circle; radius 2 and as many points at 0 have E r^2 = 2 and
    E r^4 = 8.
    """
    angles = np.pi * np.arange(6) / 3
    hexagon = 2 * np.column_stack([np.cos(angles), np.sin(angles)])
    return np.vstack([hexagon, np.zeros((6, 2))]) * np.asarray(scales)


def _measured(problem: Any, theta: np.ndarray) -> tuple[float, float, float, np.ndarray]:
    """mu, mu of the uncentred noise, 2 L |G|_F^2 and G by their definitions, sample by sample."""
    jacobian, residuals = problem.jacobian(theta)[:, 0], problem.residuals(theta)[:, 0]
    gradients = residuals[:, None] * jacobian
    uncentred = gradients.T @ gradients / len(gradients)
    mean = gradients.mean(axis=0)
    G = jacobian.T @ jacobian / len(jacobian)
    scale = float(2 * problem.loss(theta) * np.sum(G**2))
    second = float(np.sum(uncentred * G)) / scale
    return second - float(mean @ G @ mean) / scale, second, scale, G


def _gaussian() -> Claim:
    """Gaussian inputs: Sigma = 2 L G + grad grad^T, hence 1 <= mu <= 2 for every linear network."""
    x, y = sp.symbols("x y", real=True)
    S, delta = sp.diag(s1, s2), sp.Matrix([a, b])

    def moments() -> tuple[sp.Matrix, sp.Matrix, sp.Expr]:
        """Sigma, grad L and 2 L of linear regression, term by term (Isserlis)."""
        sample = sp.Matrix([x, y])
        residual = delta.dot(sample)

        def mean(function: sp.Expr) -> sp.Expr:
            return gaussian_mean(sp.expand(function), (x, y), (s1, s2))

        gradient = (residual * sample).applyfunc(mean)
        second = (residual**2 * sample * sample.T).applyfunc(mean)
        return second - gradient * gradient.T, gradient, mean(residual**2)

    def alignment() -> sp.Expr:
        covariance, _, size = moments()
        return sp.trace(covariance * S) / (size * sp.trace(S * S))

    denominator = (s1**2 + s2**2) * (a**2 * s1 + b**2 * s2)
    excess = (a**2 * s1**3 + b**2 * s2**3) / denominator
    room = s1 * s2 * (a**2 * s2 + b**2 * s1) / denominator

    def steps() -> list[Step]:
        covariance, gradient, size = moments()
        return [
            Step("gradient S delta", gradient),
            Step("Sigma - grad grad^T = 2 L S", sp.simplify(covariance - gradient * gradient.T)),
            Step("2 L", size),
            Step("mu - 1, not negative", sp.factor(alignment() - 1)),
            Step("2 - mu, not negative", sp.factor(2 - alignment())),
        ]

    def symbolic() -> str:
        covariance, gradient, size = moments()
        for entry in covariance - size * S - gradient * gradient.T:
            require_zero(entry, "Sigma - 2 L S - grad grad^T")
        require_zero(gradient[0] - s1 * a, "gradient")
        # theta enters through J only: Sigma and G become J^T Sigma J and J^T S J
        J = sp.Matrix(2, 3, sp.symbols("J1:7", real=True))
        G, slope = J.T * S * J, J.T * gradient
        for entry in J.T * covariance * J - size * G - slope * slope.T:
            require_zero(sp.expand(entry), "Sigma of a network with three parameters")
        require_zero(alignment() - 1 - excess, "mu - 1")
        require_zero(2 - alignment() - room, "2 - mu")
        nonzero = sp.Symbol("a", positive=True)  # mu is 0/0 at delta = 0
        for name, fraction in (("mu - 1", excess), ("2 - mu", room)):
            if not fraction.subs(a, nonzero).is_nonnegative:
                raise Refuted(f"{name} is not visibly nonnegative")
        return "Sigma = 2 L G + grad grad^T for any J; mu - 1 and 2 - mu are sums of positive terms"

    def numbers() -> str:
        generator = np.random.default_rng(0)
        low, high = np.inf, -np.inf
        closed = sp.lambdify((a, b, s1, s2), 1 + excess)
        for _ in range(100):
            scales = np.exp(generator.uniform(-1.5, 1.5, 2))
            inputs, target = gaussian_sample(scales), generator.standard_normal(2)
            labels = inputs @ target
            widths = tuple(generator.integers(1, 4, int(generator.integers(1, 4))))
            for problem in (
                LinearRegression(inputs, labels),
                DiagonalNet(inputs, labels),
                LinearNet(inputs, labels, widths),
            ):
                theta = generator.standard_normal(problem.dim)
                mu, _, scale, G = _measured(problem, theta)
                slope = problem.gradient(theta)
                expected = 1 + slope @ G @ slope / scale
                if isinstance(problem, LinearRegression):
                    expected = closed(*(theta - target), *scales**2)
                if abs(mu - expected) > 1e-12:
                    raise Refuted(f"mu of {type(problem).__name__} is {mu}, not {expected}")
                low, high = min(low, mu), max(high, mu)
        if low < 1 - 1e-12 or high > 2 + 1e-12:
            raise Refuted(f"mu ranges over [{low}, {high}], not inside [1, 2]")
        return (
            "linear regression, diagonal and deep linear nets on 12 points with Gaussian moments: mu "
            f"as claimed, in [{low:.3f}, {high:.3f}]"
        )

    return Claim(
        name="alignment_gaussian",
        statement=sp.Eq(sp.Symbol("mu") - 1, excess, evaluate=False),
        kind=Kind.EXACT,
        source="theorem of this type: Wu, Wang & Su 2022, arXiv 2207.02628; closed form derived here",
        assumptions=["inputs N(0, diag(s1, s2))", "residual (a, b).x", "sample covariance, B = 1"],
        derivation=steps,
        routes={"symbolic": symbolic, "numbers": numbers},
    )


def _isotropic() -> Claim:
    """Isotropic inputs: mu = 1 + 1/d for Gaussian ones, 1 - 1/d on the sphere."""

    def factors(q: sp.Expr) -> tuple[sp.Expr, sp.Expr, sp.Expr, sp.Expr]:
        """alpha, beta, mu and the uncentred mu where E[x_i x_j x_k x_l] = q times the pairings.

        At a unit delta G = I and 2 L = 1; E[(delta.x)^2 x x^T] is 3 q along delta and q across it,
        and Sigma has the square of the gradient, 1, less along it.
        """
        along, across = 3 * q - 1, q
        trace = along + (d - 1) * across
        norm = sp.sqrt(along**2 + (d - 1) * across**2)
        return trace / (norm * sp.sqrt(d)), norm / sp.sqrt(d), trace / d, (trace + 1) / d

    sphere = d / (d + 2)  # radius sqrt(d): E |x|^4 = q d (d + 2) = d^2

    def steps() -> list[Step]:
        return [
            Step(f"{name}: alpha, beta, mu, uncentred mu", sp.Tuple(*map(sp.factor, factors(q))))
            for name, q in (("Gaussian, q = 1", sp.Integer(1)), ("sphere, q = d/(d + 2)", sphere))
        ]

    def symbolic() -> str:
        alpha, beta, mu, uncentred = factors(sp.Integer(1))
        require_zero(alpha - (d + 1) / sp.sqrt(d * (d + 3)), "alpha")
        require_zero(beta - sp.sqrt((d + 3) / d), "beta")
        require_zero(mu - 1 - 1 / d, "mu, Gaussian")
        require_zero(alpha * beta - mu, "mu = alpha beta")
        require_zero(uncentred - 1 - 2 / d, "uncentred mu, Gaussian")
        _, _, mu, uncentred = factors(sphere)
        require_zero(mu - 1 + 1 / d, "mu on the sphere")
        require_zero(uncentred - 1, "uncentred mu on the sphere")
        return "alpha, beta and mu in every dimension"

    def numbers() -> str:
        generator = np.random.default_rng(1)
        points = gaussian_sample()
        for name, inputs, expected, second in (
            ("Gaussian", points, 1.5, 2.0),
            ("circle", points[:6] / np.sqrt(2), 0.5, 1.0),
        ):
            for _ in range(20):
                problem = LinearRegression(inputs, inputs @ generator.standard_normal(2))
                mu, uncentred, _, _ = _measured(problem, generator.standard_normal(2))
                if max(abs(mu - expected), abs(uncentred - second)) > 1e-12:
                    raise Refuted(f"{name}: mu is {mu}, uncentred {uncentred}")
        return "d = 2: mu = 3/2 on points with Gaussian moments, 1/2 on a hexagon (uncentred 2, 1)"

    return Claim(
        name="alignment_isotropic",
        statement=sp.Eq(sp.Symbol("mu"), 1 + 1 / d, evaluate=False),
        kind=Kind.EXACT,
        source="derived here",
        assumptions=["linear regression, inputs N(0, I) in d dimensions; 1 - 1/d on the sphere"],
        derivation=steps,
        routes={"symbolic": symbolic, "numbers": numbers},
    )


def claims() -> list[Claim]:
    """Gaussian inputs of any covariance, and isotropic inputs in any dimension."""
    return [_gaussian(), _isotropic()]
