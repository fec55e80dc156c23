r"""The principal flow: exact on quadratics, the sum of a series, and its regimes.

Everything starts from two shipped functions: `eosim.flows.principal_coefficient`, executed with the
logarithm passed in as a symbol, and `eosim.GradientDescent.step`, which gives the multiplier 1 - z.
"""

from __future__ import annotations

import random

import mpmath
import numpy as np
import sympy as sp

import eosim
from eosim.flows import principal_coefficient
from theory.claim import Claim, Kind, Refuted, Step, require_zero
from theory.linear_stability import CURVATURE, Z, derive
from theory.modified_flows import modified_field

_PAPER = "Rosca, Wu, Qin & Dherin 2023, arXiv 2302.01952"
_DIGITS = 40
_ORDER = 10  # to which the series is derived order by order, beside the proof for all orders

z = sp.Symbol("z", real=True)
k = sp.Symbol("k", integer=True)
n = sp.Symbol("n", integer=True, nonnegative=True)
p = sp.Symbol("p", integer=True, nonnegative=True)
alpha = sp.Function("alpha")
RHO = sp.Symbol("rho")


def descent_multiplier() -> sp.Expr:
    """x -> (1 - z) x with z = eta lambda, read off the shipped gradient descent step."""
    derivation = derive(eosim.GradientDescent)
    (entry,) = derivation.matrix
    (rate,) = derivation.symbols.values()
    return sp.expand(entry.subs(CURVATURE, z / rate))


# --- exactness on quadratics, on every branch --------------------------------------------------


def _branches() -> dict[str, tuple[sp.Expr, sp.Expr]]:
    """(substituted z, logarithm of 1 - z) on every branch, for either sign of 1 - z."""
    u = sp.Symbol("u", positive=True)
    return {
        "z < 1": (1 - u, sp.log(u) + 2 * sp.I * sp.pi * k),
        "z > 1": (1 + u, sp.log(u) + sp.I * sp.pi * (2 * k + 1)),
    }


def _exactness() -> Claim:
    def steps() -> list[Step]:
        lines = [
            Step("one gradient descent step multiplies an eigendirection by", descent_multiplier())
        ]
        for name, (value, logarithm) in _branches().items():
            lines.append(Step(f"{name}: log(1 - z) on branch k, with z = {value}", logarithm))
            multiplier = sp.exp(sp.expand(value * principal_coefficient(value, logarithm)))
            lines.append(
                Step(
                    f"{name}: flow multiplier over time h",
                    sp.Eq(multiplier, sp.simplify(multiplier)),
                )
            )
        return lines

    def symbolic() -> str:
        for name, (value, logarithm) in _branches().items():
            exponent = sp.expand(sp.simplify(value * principal_coefficient(value, logarithm)))
            multiplier = sp.simplify(sp.exp(exponent))
            require_zero(multiplier - descent_multiplier().subs(z, value), name)
            require_zero(
                multiplier**n - descent_multiplier().subs(z, value) ** n, f"{name}, n steps"
            )
        return "multiplier is 1 - z on every branch k, on both sides of z = 1, for n steps"

    def rationals() -> str:
        generator = random.Random(2)
        worst = mpmath.mpf(0)
        with mpmath.workdps(_DIGITS):
            for _ in range(60):
                value = sp.Rational(generator.randint(-3000, 5000), 1000)
                if value in (0, 1):
                    continue
                number = mpmath.mpf(value.p) / value.q
                turns = generator.randint(-3, 3)
                logarithm = mpmath.log(1 - number) + 2j * mpmath.pi * turns
                multiplier = mpmath.exp(number * principal_coefficient(number, logarithm))
                expected = descent_multiplier().subs(z, value)
                worst = max(worst, abs(multiplier - mpmath.mpf(expected.p) / expected.q))
        if worst > mpmath.mpf(10) ** (5 - _DIGITS):
            raise Refuted(f"the multiplier differs from 1 - z by {mpmath.nstr(worst, 3)}")
        return f"60 rationals in (-3, 5), 7 branches, {_DIGITS} digits: {mpmath.nstr(worst, 2)}"

    def simulation() -> str:
        curvatures = np.array([-0.6, 0.0, 0.4, 1.0, 1.7, 2.0, 2.4])  # h = 1: every regime
        problem, start = eosim.Quadratic(np.diag(curvatures)), np.ones(len(curvatures))
        descent = eosim.run(problem, eosim.GradientDescent(1.0), start, 8)
        flow = eosim.integrate(eosim.PrincipalFlow(problem, 1.0), start, descent.t, rtol=1e-11)
        if len(flow) != len(descent):
            raise Refuted(flow.message)
        error = np.abs(flow["theta"] - descent["theta"]).max() / np.abs(descent["theta"]).max()
        if not error < 1e-9:
            raise Refuted(f"integrated flow and gradient descent differ by {error:.2g} relative")
        return f"integrated flow meets 8 iterates in 7 regimes within {error:.0e}"

    return Claim(
        name="principal_flow_exact",
        statement=sp.Eq(sp.exp(z * alpha(z)), descent_multiplier(), evaluate=False),
        kind=Kind.EXACT,
        source=f"{_PAPER}; every branch: derived here",
        assumptions=["quadratic loss", "z = h lambda real, not 1", "any branch of the logarithm"],
        derivation=steps,
        routes={"symbolic": symbolic, "rationals": rationals, "simulation": simulation},
    )


# --- the coefficient as the sum of the backward-error series -----------------------------------


def backward_error_coefficients(order: int) -> list[sp.Expr]:
    """c_p of the field -sum_p c_p h^p lambda^(p+1) x whose time-h map is the descent step.

    On a quadratic the modified field is linear, so its map is exp(A) with A = -sum_p c_p z^(p+1).
    Its Taylor coefficients obey j e_j = sum_i i a_i e_(j-i) (from exp(A)' = A' exp(A)); in e_(p+1)
    the unknown c_p enters as -c_p alone, so matching the shipped multiplier gives it.
    """
    target = sp.Poly(descent_multiplier(), z)
    exponents, powers = [sp.Integer(0)], [sp.Integer(1)]  # a_j and e_j
    for j in range(1, order + 1):
        without = sum((i * exponents[i] * powers[j - i] for i in range(1, j)), sp.Integer(0)) / j
        exponents.append(target.coeff_monomial(z**j) - without)
        powers.append(without + exponents[j])
    return [-exponent for exponent in exponents[1:]]


def _series() -> Claim:
    coefficient = principal_coefficient(z, sp.log(1 - z))

    def steps() -> list[Step]:
        fields, _ = modified_field(2)
        lines = [
            Step(f"modified field of gradient descent, order h^{order}, any E(x)", field)
            for order, field in enumerate(fields)
        ]
        lines.append(
            Step(
                "terms with powers of the Hessian only, first coefficients",
                sp.Tuple(*backward_error_coefficients(5)),
            )
        )
        lines.append(Step("d(z alpha)/dz", sp.simplify(sp.diff(z * coefficient, z))))
        lines.append(Step("d/dz of the series", -sp.Sum(z**p, (p, 0, sp.oo))))
        return lines

    def symbolic() -> str:
        fields, slopes = modified_field(3)
        expansion = sp.series(coefficient, z, 0, _ORDER).removeO()
        solved = backward_error_coefficients(_ORDER)
        for order, value in enumerate(solved):
            require_zero(value + expansion.coeff(z, order), f"coefficient of z^{order}")
            require_zero(value - sp.Rational(1, order + 1), f"1/(p+1) at p = {order}")
        for order, field in enumerate(fields):
            principal = field.subs(dict.fromkeys(slopes[2:], 0))
            require_zero(
                principal + solved[order] * slopes[1] ** order * slopes[0], f"generic E, h^{order}"
            )
        # all orders at once: both sides vanish at z = 0 after multiplication by z, and
        # d(z alpha)/dz = -1/(1 - z) is the geometric series
        require_zero(sp.diff(z * coefficient, z) + 1 / (1 - z), "derivative of z alpha")
        require_zero(sp.limit(z * coefficient, z, 0), "z alpha at 0")
        return f"generic E to h^3, quadratics to h^{_ORDER - 1}, all orders by the derivative"

    def rationals() -> str:
        generator = random.Random(3)
        with mpmath.workdps(_DIGITS):
            for _ in range(40):
                value = mpmath.mpf(generator.randint(-900, 900)) / 1000
                if value == 0:
                    continue
                terms = 60
                partial = -sum(value**q / (q + 1) for q in range(terms))
                remainder = abs(value) ** terms / ((terms + 1) * (1 - abs(value)))
                exact = principal_coefficient(value, mpmath.log(1 - value))
                rounding = mpmath.mpf(10) ** (3 - _DIGITS)
                if abs(exact - partial) > remainder + rounding:
                    raise Refuted(
                        f"at z = {value} the partial sum is off by more than its remainder"
                    )
        return "40 rationals, |z| < 0.9: 60 terms within the remainder bound"

    return Claim(
        name="principal_coefficient_series",
        statement=sp.Eq(coefficient, -sp.Sum(z**p / (p + 1), (p, 0, sp.oo)), evaluate=False),
        kind=Kind.EXACT,
        source=f"{_PAPER}; backward error analysis: Barrett & Dherin 2021, arXiv 2009.11162",
        assumptions=[
            "|z| < 1",
            "terms of the series that are powers of the Hessian times the gradient",
        ],
        derivation=steps,
        routes={"symbolic": symbolic, "rationals": rationals},
    )


# --- regimes -------------------------------------------------------------------------------------


def _regimes() -> Claim:
    u = sp.Symbol("u", positive=True)
    below, beyond = 1 - u, 1 + u

    def real_part() -> tuple[sp.Expr, sp.Expr]:
        """Re(z alpha) for z < 1 and for z > 1 (branch +i pi)."""
        left = below * principal_coefficient(below, sp.log(u))
        right = beyond * principal_coefficient(beyond, sp.log(u) + sp.I * sp.pi)
        return sp.simplify(sp.re(sp.expand(left))), sp.simplify(sp.re(sp.expand(right)))

    def steps() -> list[Step]:
        left, right = real_part()
        return [
            Step("growth rate times h for z = 1 - u < 1", left),
            Step("growth rate times h for z = 1 + u > 1", right),
            Step("zero growth at", sp.Tuple(*(sp.Eq(z, root) for root in (0, 2)))),
            Step("rotation, z > 1", sp.Eq(sp.im(alpha(z)), sp.pi / z)),
            Step("at z = 2", sp.Eq(alpha(2), principal_coefficient(sp.Integer(2), sp.I * sp.pi))),
        ]

    def symbolic() -> str:
        for name, part in zip(("z < 1", "z > 1"), real_part(), strict=True):
            # log u has its only zero at u = 1, that is at z = 0 and at z = 2, and increases there
            if sp.solve(part, u) != [1]:
                raise Refuted(f"{name}: growth vanishes at u = {sp.solve(part, u)}, not at u = 1")
            require_zero(sp.diff(part, u) - 1 / u, f"{name}: growth increases with |1 - z|")
        imaginary = sp.im(
            sp.expand(beyond * principal_coefficient(beyond, sp.log(u) + sp.I * sp.pi))
        )
        require_zero(imaginary - sp.pi, "rotation by pi per step")
        real = principal_coefficient(z, sp.log(1 - z))
        require_zero(sp.limit(real, z, 0) + 1, "limit at z = 0")
        if sp.limit(real, z, 1, "-") != -sp.oo:
            raise Refuted("the coefficient does not tend to -oo at z = 1")
        require_zero(real.subs(z, -1) + sp.log(2), "value at z = -1")
        return "decay iff 0 < z < 2, half a turn per step iff z > 1, limits at -1, 0, 1"

    def rationals() -> str:
        generator = random.Random(4)
        flow = eosim.PrincipalFlow(eosim.Quadratic([[1.0]]), 1.0)
        for _ in range(200):
            value = generator.randint(-3000, 4000) / 1000
            if value in (0, 1, 2):
                continue
            computed = complex(flow.coefficient(np.array([value]))[0])
            decays, turns = (computed * value).real < 0, computed.imag != 0
            if decays != (0 < value < 2) or turns != (value > 1):
                raise Refuted(f"alpha({value}) = {computed} is in the wrong regime")
            exact = mpmath.log(abs(1 - mpmath.mpf(value))) + (1j * mpmath.pi if value > 1 else 0)
            if abs(computed - complex(exact) / value) > 1e-13 * abs(computed):
                raise Refuted(f"alpha({value}) = {computed} differs from {complex(exact) / value}")
        return "200 points of the shipped coefficient in the right regime, within 1e-13 of mpmath"

    def simulation() -> str:
        for value, decays in ((-0.5, False), (0.5, True), (1.5, True), (2.5, False)):
            flow = eosim.PrincipalFlow(eosim.Quadratic([[value]]), 1.0)
            path = eosim.integrate(flow, [1.0], np.arange(7.0))
            final = path.theta[-1, 0]
            if (abs(final) < 1) != decays or len(path) != 7:
                raise Refuted(f"at z = {value} the flow went from 1 to {final:.4g}")
            flips = bool((path.theta[1::2, 0].real < 0).all())
            if flips != (value > 1):
                raise Refuted(f"at z = {value} the sign at odd iterates is wrong")
        return "integrated at z = -0.5, 0.5, 1.5, 2.5: growth, decay and sign flips as stated"

    statement = sp.Eq(sp.re(z * alpha(z)), sp.log(sp.Abs(1 - z)), evaluate=False)
    return Claim(
        name="principal_flow_regimes",
        statement=statement,
        kind=Kind.EXACT,
        source=_PAPER,
        assumptions=["z = h lambda real, not 1", "branch +i pi for z > 1"],
        derivation=steps,
        routes={"symbolic": symbolic, "rationals": rationals, "simulation": simulation},
    )


# --- the rate of the loss ------------------------------------------------------------------------


def _loss_rate() -> Claim:
    """Integrated over one step, the loss rate is the loss change of gradient descent."""
    g, lam, t, h = sp.symbols("g lambda t h", positive=True)
    logarithm = sp.Symbol("l")  # log(1 - z) on any branch: only its exponential enters

    def change() -> sp.Expr:
        """The integral of alpha g(t)^2 over one step; along the flow g(t) = g e^{alpha lambda t}."""
        coefficient = principal_coefficient(z, logarithm)
        integral = sp.integrate(coefficient * (g * sp.exp(coefficient * lam * t)) ** 2, (t, 0, h))
        on_step = sp.expand(integral.rewrite(sp.exp)).subs(lam, z / h)
        return sp.simplify(on_step.subs(sp.exp(2 * logarithm), descent_multiplier() ** 2))

    def steps() -> list[Step]:
        return [
            Step("dE/dt along one eigendirection", alpha(z) * g**2),
            Step("integral over one step, with e^log(1-z) from the shipped descent step", change()),
        ]

    def symbolic() -> str:
        require_zero(change() + h * (1 - z / 2) * g**2, "loss change over one step")
        # the change of the descent step itself: lambda x^2 / 2 with x = g / lambda
        descent = (descent_multiplier() ** 2 - 1) * g**2 / (2 * lam)
        require_zero((descent + h * (1 - z / 2) * g**2).subs(lam, z / h), "gradient descent")
        return "both equal -h (1 - z/2) g^2, on every branch"

    def rationals() -> str:
        generator = random.Random(5)
        with mpmath.workdps(_DIGITS):
            for _ in range(20):
                value = mpmath.mpf(generator.randint(-2000, 4000)) / 1000 + mpmath.mpf(1) / 2**20
                coefficient = principal_coefficient(value, mpmath.log(1 - value))
                integral = mpmath.quad(
                    lambda s, a=coefficient, w=value: a * mpmath.exp(2 * a * w * s), [0, 0.5, 1]
                )
                if abs(integral + (1 - value / 2)) > mpmath.mpf(10) ** (10 - _DIGITS):
                    raise Refuted(f"at z = {value} the integral is {mpmath.nstr(integral, 15)}")
        return f"20 rationals by quadrature, h = g = 1, {_DIGITS} digits"

    def simulation() -> str:
        curvatures, h_ = np.array([-0.4, 0.3, 0.9, 1.4, 2.3]), 1.0
        problem, start = eosim.Quadratic(np.diag(curvatures)), np.array([1.0, -2.0, 0.5, 1.5, -1.0])
        flow, nodes = eosim.PrincipalFlow(problem, h_), np.polynomial.legendre.leggauss(40)
        times, weights = (nodes[0] + 1) / 2, nodes[1] / 2
        rates = [
            np.sum(flow.coefficient(curvatures) * (curvatures * state) ** 2)
            for state in eosim.closed_form(flow, start, times)
        ]
        descended = eosim.run(problem, eosim.GradientDescent(h_), start, 1)
        error = abs(np.dot(weights, rates) - np.diff(descended["loss"])[0])
        if not error < 1e-12:
            raise Refuted(f"integrated rate and loss change of the step differ by {error:.2g}")
        return f"integrated rate meets the loss change of eosim.run within {error:.0e}"

    return Claim(
        name="loss_rate",
        statement=sp.Eq(
            sp.Integral(alpha(z) * sp.Function("g")(t) ** 2, (t, 0, h)),
            -h * (1 - z / 2) * sp.Function("g")(0) ** 2,
            evaluate=False,
        ),
        kind=Kind.EXACT,
        source=f"{_PAPER}; derived here",
        assumptions=["quadratic loss, one eigendirection", "z = h lambda, not 1"],
        derivation=steps,
        routes={"symbolic": symbolic, "rationals": rationals, "simulation": simulation},
    )


# --- heavy ball ----------------------------------------------------------------------------------


def _heavy_ball() -> Claim:
    """log rho of heavy ball, from its shipped step, as a series in z."""
    beta = sp.Symbol("beta", positive=True)
    w = sp.Symbol("w", positive=True)  # 1 - beta, so that square roots pick the right root
    expected = (
        -z / (1 - beta)
        - z**2 * (1 + beta) / (2 * (1 - beta) ** 3)
        - z**3 * (1 + 4 * beta + beta**2) / (3 * (1 - beta) ** 5)
    )

    def polynomial() -> sp.Expr:
        derivation = derive(eosim.HeavyBall)
        rate, momentum = derivation.symbols["lr"], derivation.symbols["momentum"]
        substituted = {Z: RHO, CURVATURE: z / rate, momentum: beta}
        return sp.expand(derivation.polynomial.as_expr().subs(substituted, simultaneous=True))

    def series() -> sp.Expr:
        """Order by order from rho = 1 + c1 z + ...: each coefficient enters its equation linearly."""
        rho = sp.Integer(1)
        for power in (1, 2, 3):
            unknown = sp.Symbol("c")
            trial = rho + unknown * z**power
            equation = sp.expand(polynomial().subs(RHO, trial)).coeff(z, power)
            rho += sp.factor(sp.solve(equation, unknown)[0]) * z**power
        return sp.series(sp.log(rho), z, 0, 4).removeO()

    def steps() -> list[Step]:
        return [
            Step("characteristic polynomial of the shipped step", sp.Eq(polynomial(), 0)),
            Step("log of the root that tends to 1", sp.collect(sp.expand(series()), z, sp.factor)),
            Step("instability, rho = -1", sp.Eq(z, sp.solve(polynomial().subs(RHO, -1), z)[0])),
        ]

    def symbolic() -> str:
        require_zero(series() - expected, "series of log rho")
        (edge,) = sp.solve(polynomial().subs(RHO, -1), z)
        require_zero(edge - 2 * (1 + beta), "instability")
        discriminant = sp.discriminant(sp.Poly(polynomial(), RHO), RHO)
        for sign in (-1, 1):
            window = (1 + sign * sp.sqrt(1 - w)) ** 2
            require_zero(discriminant.subs({beta: 1 - w, z: window}), "end of the complex window")
        return "series to z^3, divergence beyond 2(1 + beta), complex window (1 -+ sqrt beta)^2"

    def rationals() -> str:
        worst = 0.0
        for momentum in (0.0, 0.3, 0.5, 0.9):
            flow = eosim.HeavyBallPrincipalFlow(eosim.Quadratic([[1.0]]), 1.0, momentum)
            for value in (-1.0, 1e-6, 0.02, 0.7, 1.9, 3.0, 4.5):
                if value == 1:
                    continue
                root = np.exp(value * complex(flow.coefficient(np.array([value]))[0]))
                rest = complex(polynomial().subs({RHO: root, beta: momentum, z: value}))
                worst = max(worst, abs(rest) / max(1, abs(root) ** 2))
            tiny = sp.Rational(1, 10**4) * (1 - sp.Rational(momentum)) ** 2
            shipped = float(flow.coefficient(np.array([float(tiny)]))[0])
            series_value = float((expected / z).subs({beta: sp.Rational(momentum), z: tiny}))
            if abs(shipped / series_value - 1) > 1e-10:
                raise Refuted(
                    f"at beta = {momentum} the coefficient is {shipped}, not {series_value}"
                )
        if worst > 1e-13:
            raise Refuted(f"exp(z alpha) misses the characteristic polynomial by {worst:.2g}")
        return f"28 shipped coefficients are roots within {worst:.0e}, and meet the series"

    def simulation() -> str:
        for value in (0.02, 0.5, 3.7, 3.9):
            problem = eosim.Quadratic([[value]])
            ball = eosim.run(problem, eosim.HeavyBall(1.0, 0.9), [1.0], 400)["theta"][:, 0]
            decays = bool(np.abs(ball[-2:]).max() < np.abs(ball[200:202]).max())
            flow = eosim.HeavyBallPrincipalFlow(problem, 1.0, 0.9)
            rate = (value * flow.coefficient(np.array([value]))[0]).real
            if decays != (rate < 0):
                raise Refuted(f"at z = {value} heavy ball and its flow disagree about stability")
        return "heavy ball and its flow agree about stability on both sides of 2(1 + beta)"

    return Claim(
        name="heavy_ball_logarithm",
        statement=sp.Eq(sp.log(sp.Function("rho")(z)), expected + sp.O(z**4), evaluate=False),
        kind=Kind.ASYMPTOTIC,
        source="derived here; h^2 term: Ghosh et al. 2023, arXiv 2302.00849",
        assumptions=["beta in [0, 1)", "rho the root that tends to 1 as z = h lambda tends to 0"],
        derivation=steps,
        routes={"symbolic": symbolic, "rationals": rationals, "simulation": simulation},
    )


def claims() -> list[Claim]:
    """Exactness, series, regimes and loss rate of the principal flow, and heavy ball's."""
    return [_exactness(), _series(), _regimes(), _loss_rate(), _heavy_ball()]
