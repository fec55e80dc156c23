r"""Kernels of infinitely many random features: the circle, the sphere, and the noise they leave."""

from __future__ import annotations

import mpmath
import numpy as np
import sympy as sp

from eosim.problems import dual_kernels
from eosim.problems.feature_model import RandomFeatures
from theory.claim import Claim, Kind, Refuted, Step, require_zero

t = sp.Symbol("t", nonnegative=True)
d, n = sp.symbols("d n", positive=True)
_DIMENSIONS = (2, 3, 4, 5)  # even and odd; the integrals take up to a second each


def _kernel() -> sp.Expr:
    """The shipped kernel of unit vectors at angle t, for Gaussian weights."""
    return dual_kernels.arc_cosine(t, sp.sin(t), sp.cos(t), sp.pi)


def _circle() -> Claim:
    """ReLU on the unit circle: the Fourier coefficients of the kernel and its mean square."""

    def kernel() -> sp.Expr:
        return _kernel() / 2  # weights on the unit circle: E|w|^2 = 2 for Gaussian ones

    def coefficient(k: int) -> sp.Expr:
        """The k-th Fourier coefficient of the kernel, an eigenvalue."""
        return sp.integrate(sp.expand(kernel() * sp.cos(k * t)), (t, 0, sp.pi)) / sp.pi

    def mean_square() -> sp.Expr:
        return sp.integrate(sp.expand(kernel() ** 2), (t, 0, sp.pi)) / sp.pi

    expected = sp.Rational(1, 96) + 5 / (64 * sp.pi**2)

    def steps() -> list[Step]:
        return [
            Step("kernel k(t)", sp.factor(kernel())),
            Step("trace k(0)", kernel().subs(t, 0)),
            Step("c_0^2", coefficient(0)),
            Step("c_1^2", coefficient(1)),
            Step("c_2^2", coefficient(2)),
            Step("sum of c_k^4 = mean of k^2 (Parseval)", sp.expand(mean_square())),
        ]

    def symbolic() -> str:
        half = sp.Rational(1, 2)
        for k in range(7):
            # c_k of max(cos, 0), the features' own coefficient
            own = sp.integrate(sp.cos(t) * sp.cos(k * t), (t, 0, sp.pi / 2)) / sp.pi
            require_zero(coefficient(k) - own**2, f"coefficient {k} of the kernel")
            closed = float(dual_kernels.circle_coefficient(k))
            if abs(closed - float(own)) > 1e-16:
                raise Refuted(f"the shipped coefficient {k} is {closed}, not {own}")
        require_zero(kernel().subs(t, 0) - half**2, "trace")
        require_zero(mean_square() - expected, "mean square")
        return "kernel coefficients are the squares c_k^2, k = 0 .. 6; trace 1/4; Parseval"

    def quadrature() -> str:
        def value(angle: mpmath.mpf) -> mpmath.mpf:
            cosine, sine = mpmath.cos(angle), mpmath.sin(angle)
            return dual_kernels.arc_cosine(angle, sine, cosine, mpmath.pi) / 2

        with mpmath.workdps(30):
            integral = mpmath.quad(lambda angle: value(angle) ** 2, [0, mpmath.pi]) / mpmath.pi
        coefficients = dual_kernels.circle_coefficient(np.arange(-2000, 2001))
        # the tail beyond 2000 is below 1e-25
        for name, found in (("quadrature", integral), ("series", float(np.sum(coefficients**4)))):
            if abs(float(found) - float(expected)) > 1e-15:
                raise Refuted(f"the {name} gives {found}, not {float(expected)}")
        return "30-digit quadrature and the summed series agree within 1e-15"

    def simulation() -> str:
        for size in (8, 16, 64):
            problem = RandomFeatures.circle(size)
            found = np.linalg.eigvalsh(problem.ntk(problem.initial()))
            shipped = np.sort(dual_kernels.circle_coefficient(np.arange(size), size) ** 2)
            if np.abs(found - shipped).max() > 1e-15:
                raise Refuted(f"eigenvalues of {size} points on the circle differ from c_k^2")
            if abs(found.sum() - 0.25) > 1e-15:
                raise Refuted(f"the trace of {size} points on the circle is {found.sum()}")
        return "8, 16 and 64 equally spaced inputs and weights: H has eigenvalues c_k^2, trace 1/4"

    index = sp.Symbol("k", integer=True)
    series = sp.Sum(sp.Indexed("c", index) ** 4, (index, -sp.oo, sp.oo))
    return Claim(
        name="circle_kernel",
        statement=sp.Eq(series, expected, evaluate=False),
        kind=Kind.EXACT,
        source="kernel: Cho & Saul 2009; coefficients derived here",
        assumptions=["inputs and weights uniform on the unit circle", "ReLU", "c_k of max(cos, 0)"],
        derivation=steps,
        routes={"symbolic": symbolic, "quadrature": quadrature, "simulation": simulation},
    )


def _finite_circle() -> Claim:
    """c_0 = cot(pi/n)/n and trace 1/4 for n equally spaced points, n divisible by 4."""
    theta, i = sp.symbols("theta i", real=True)

    def dirichlet(angle: sp.Expr) -> sp.Expr:
        """The sum of cos(i angle), i = -n/4 .. n/4."""
        return sp.sin((n / 4 + sp.Rational(1, 2)) * angle) / sp.sin(angle / 2)

    def constant() -> sp.Expr:
        return sp.simplify(dirichlet(2 * sp.pi / n) / n)

    def trace() -> sp.Expr:
        squares = (n / 2 + 1 + dirichlet(4 * sp.pi / n)) / 2  # cos^2 = (1 + cos of twice)/2
        return sp.simplify(squares / n)

    def steps() -> list[Step]:
        return [
            Step("sum of cos(i theta), i = -n/4 .. n/4, telescoped", dirichlet(theta)),
            Step("c_0, theta = 2 pi/n", constant()),
            Step("trace", trace()),
        ]

    def symbolic() -> str:
        def partial(last: sp.Expr) -> sp.Expr:
            return sp.sin((last + sp.Rational(1, 2)) * theta) / (2 * sp.sin(theta / 2))

        term = (partial(i) - partial(i - 1) - sp.cos(i * theta)) * 2 * sp.sin(theta / 2)
        require_zero(sp.expand(term, trig=True), "term of the telescoping sum")
        total = partial(n / 4) - partial(-n / 4 - 1)
        require_zero(sp.expand(total - dirichlet(theta)), "the whole sum")
        require_zero(constant() - sp.cot(sp.pi / n) / n, "c_0")
        require_zero(trace() - sp.Rational(1, 4), "trace")
        return "the telescoping sum gives cot(pi/n)/n, and 1/4 for the squares"

    def numbers() -> str:
        for size in range(4, 129, 4):
            angles = 2 * np.pi * np.arange(size) / size
            transform = np.fft.fft(np.maximum(np.cos(angles), 0)).real / size
            shipped = dual_kernels.circle_coefficient(np.arange(size), size)
            if np.abs(transform - shipped).max() > 1e-15:
                raise Refuted(f"the shipped coefficients differ from the transform at n = {size}")
            if abs(shipped[0] - float(constant().subs(n, size))) > 1e-15:
                raise Refuted(f"c_0 is {shipped[0]} at n = {size}")
        return "n = 4, 8, .., 128: all shipped coefficients equal the discrete Fourier transform"

    return Claim(
        name="circle_of_points",
        statement=sp.Eq(sp.Symbol("c_0"), sp.cot(sp.pi / n) / n, evaluate=False),
        kind=Kind.EXACT,
        source="derived here",
        assumptions=["n equally spaced inputs and weights on the unit circle", "n divisible by 4"],
        derivation=steps,
        routes={"symbolic": symbolic, "numbers": numbers},
    )


def _sphere() -> Claim:
    """ReLU on the sphere: constant and linear eigenvalue, and the mean square."""

    def trigamma(dimension: int) -> sp.Expr:
        """psi'(d/2) from psi'(1/2) or psi'(1) by psi'(z + 1) = psi'(z) - 1/z^2."""
        z = sp.Rational(2 - dimension % 2, 2)
        value = sp.polygamma(1, z)
        while z < sp.Rational(dimension, 2):
            value, z = value - 1 / z**2, z + 1
        return value

    def moments(dimension: int) -> tuple[sp.Expr, sp.Expr, sp.Expr]:
        """lambda_0, lambda_1 and E k^2, integrated over the angle."""
        density = sp.sin(t) ** (dimension - 2)
        kernel = _kernel()

        def mean(function: sp.Expr) -> sp.Expr:
            return sp.integrate(sp.expand(function * density), (t, 0, sp.pi))

        total = mean(sp.Integer(1))
        # Funk-Hecke: the linear functions have the eigenvalue E[k cos t]
        return tuple(sp.simplify(mean(f) / total) for f in (kernel, kernel * sp.cos(t), kernel**2))

    closed_constant = d * sp.gamma(d / 2) ** 2 / (4 * sp.pi * sp.gamma((d + 1) / 2) ** 2)

    def closed_square() -> sp.Expr:
        return dual_kernels.relu_mean_square(d, sp.polygamma(1, d / 2), sp.pi)

    def steps() -> list[Step]:
        found = [Step("E k^2", sp.simplify(closed_square()))]
        for dimension in (2, 3):
            for name, value in zip(
                ("lambda_0", "lambda_1", "E k^2"), moments(dimension), strict=True
            ):
                found.append(Step(f"{name} by integration, d = {dimension}", value))
        return found

    def symbolic() -> str:
        for dimension in _DIMENSIONS:
            constant, linear, square = moments(dimension)
            require_zero(
                constant - closed_constant.subs(d, dimension), f"lambda_0, d = {dimension}"
            )
            require_zero(linear - sp.Rational(1, 4 * dimension), f"lambda_1, d = {dimension}")
            closed = dual_kernels.relu_mean_square(
                sp.Integer(dimension), trigamma(dimension), sp.pi
            )
            require_zero(square - closed, f"E k^2, d = {dimension}")
        return f"integrated for d = {_DIMENSIONS}: equal to the closed forms"

    def quadrature() -> str:
        for dimension in (2, 3, 5, 10, 20, 50, 100):
            shipped = dual_kernels.sphere_kernel(dimension)

            def mean(power: int, factor: int, p: int = dimension - 2) -> float:
                def integrand(angle: mpmath.mpf) -> mpmath.mpf:
                    cosine, sine = mpmath.cos(angle), mpmath.sin(angle)
                    kernel = dual_kernels.arc_cosine(angle, sine, cosine, mpmath.pi)
                    return kernel**power * cosine**factor * sine**p

                return mpmath.quad(integrand, [0, mpmath.pi / 2, mpmath.pi])

            total = mean(0, 0)
            found = [mean(1, 0) / total, mean(1, 1) / total, mean(2, 0) / total]
            for name, value, closed in zip(shipped._fields, found, shipped, strict=True):
                if abs(float(closed / value) - 1) > 1e-12:
                    raise Refuted(f"{name} at d = {dimension} is {float(value)}, not {closed}")
        return "d = 2, 3, 5, 10, 20, 50, 100: shipped values within 1e-12"

    return Claim(
        name="sphere_kernel",
        statement=sp.Eq(sp.Symbol("E k^2"), closed_square(), evaluate=False),
        kind=Kind.EXACT,
        source="kernel: Cho & Saul 2009; mean square derived here",
        assumptions=[
            "inputs uniform on the sphere of radius sqrt(d)",
            "weights on the unit sphere",
        ],
        derivation=steps,
        routes={"symbolic": symbolic, "quadrature": quadrature},
    )


def _floor() -> Claim:
    """The worst-case alignment of ReLU features falls as pi^2/(4 d): the constant has no noise."""
    x = sp.Symbol("x", positive=True)  # 1/d

    def log_gamma(z: sp.Expr) -> sp.Expr:
        """Stirling's series without ln(2 pi)/2, which cancels."""
        terms = [sp.bernoulli(2 * j) / (2 * j * (2 * j - 1) * z ** (2 * j - 1)) for j in (1, 2)]
        return (z - sp.Rational(1, 2)) * sp.log(z) - z + sum(terms)

    def expansion() -> sp.Expr:
        """mu_0 = 1 - lambda_0^2 / E k^2 through 1/d^2."""
        z = 1 / (2 * x)  # d/2
        ratio = 2 * (log_gamma(z) - log_gamma(z + sp.Rational(1, 2))) - sp.log(2 * x)
        exponent = sp.series(ratio, x, 0, 3).removeO()
        constant = sp.exp(exponent) / (2 * sp.pi)  # d/(4 pi) times 2/d times the exponential
        trigamma = 1 / z + 1 / (2 * z**2)
        square = dual_kernels.relu_mean_square(1 / x, trigamma, sp.pi)
        floor = sp.series(1 - constant**2 / square, x, 0, 3).removeO()
        return sp.expand(floor)

    def steps() -> list[Step]:
        return [Step("mu_0 in powers of x = 1/d, from the shipped E k^2", expansion())]

    def symbolic() -> str:
        require_zero(expansion().coeff(x, 0), "limit of mu_0")
        require_zero(expansion().coeff(x, 1) - sp.pi**2 / 4, "coefficient of 1/d")
        return "mu_0 = pi^2/(4 d) + O(1/d^2), by Stirling's series"

    def numbers() -> str:
        second = float(expansion().coeff(x, 2))
        for dimension in (100, 1000, 10_000):
            floor = dual_kernels.sphere_kernel(dimension).worst_alignment
            rest = dimension**2 * (floor - np.pi**2 / (4 * dimension))
            # the third order is of the size of the second times 10/d
            if abs(rest / second - 1) > 10 / dimension:
                raise Refuted(f"mu_0 at d = {dimension} is {floor}, the second order off: {rest}")
        return f"shipped mu_0 at d = 100, 1000, 10000: pi^2/(4 d) {second:+.3f}/d^2"

    return Claim(
        name="sphere_alignment_floor",
        statement=sp.Eq(sp.Symbol("mu_0"), sp.pi**2 / (4 * d) + sp.O(1 / d**2, (d, sp.oo))),
        kind=Kind.ASYMPTOTIC,
        source="derived here",
        assumptions=["ReLU random features, samples and features without number", "d large"],
        derivation=steps,
        routes={"symbolic": symbolic, "numbers": numbers},
    )


def claims() -> list[Claim]:
    """The circle, its equally spaced points, the sphere, and the alignment floor on it."""
    return [_circle(), _finite_circle(), _sphere(), _floor()]
