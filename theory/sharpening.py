r"""Quadratic regression: the two-parameter model, the closed SGD step, sharpening over random Q.

Averages are exact: every batch of every step is enumerated, and over Q the order sigma^2 of a polynomial
f is :math:`\sigma^2 \sum_k [t^2] f(t e_k)`, with e_k the independent entries of Q one by one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp
from sympy import QQ

import eosim
from eosim import sharpening, two_parameter
from eosim.problems.quadratic_regression import QuadraticRegression
from eosim.sampling import batch_moments
from theory.claim import Claim, Kind, Refuted, Step, require_zero

_MODEL = "Agarwala, Pedregosa & Pennington 2022, arXiv 2210.04860"
_SGD = "Agarwala & Pennington 2024, arXiv 2404.19261"
eta, sigma, t = sp.symbols("eta sigma t", positive=True)
x, y, eps, E = sp.symbols("x y epsilon E")
z_, T0, T1, T2 = sp.symbols("z T0 T1 T2")
n_, B_, P_ = sp.symbols("n B P", positive=True)


# --- the two-parameter model ----------------------------------------------------------------------


def _two_parameter() -> Claim:
    """The four recursions from theta' = theta - z Q theta."""

    def differences() -> dict[str, sp.Expr]:
        theta, Q = sp.Matrix([x, y]), sp.diag(1, -eps)
        z = (theta.dot(Q * theta) - E) / 2
        powers = [theta.dot(Q ** (k + 2) * theta) for k in range(3)]
        moved = theta - z * Q * theta
        after = (moved.dot(Q * moved) - E) / 2, moved.dot(Q**2 * moved)
        variables = two_parameter.reduced_variables(x, y, eps, E)
        curved = two_parameter.curvatures(z, powers[0], eps, E)
        mapped = two_parameter.reduced_map(z, powers[0], eps, E)
        step = two_parameter.parameter_map(x, y, eps, E)
        return {
            "z of the parameters": variables[0] - z,
            "T_0 of the parameters": variables[1] - powers[0],
            "T_1": curved[0] - powers[1],
            "T_2": curved[1] - powers[2],
            "parameter step, x": step[0] - moved[0],
            "parameter step, y": step[1] - moved[1],
            "z after the step": mapped[0] - after[0],
            "T_0 after the step": mapped[1] - after[1],
        }

    def steps() -> list[Step]:
        first, second = two_parameter.curvatures(z_, T0, eps, E)
        return [
            Step("T_1 = theta^T Q^3 theta", first),
            Step("T_2 = theta^T Q^4 theta", sp.expand(second)),
            Step("z after one step", sp.expand(two_parameter.reduced_map(z_, T0, eps, E)[0])),
            *(Step(f"{name}: difference", sp.expand(d)) for name, d in differences().items()),
        ]

    def symbolic() -> str:
        for name, difference in differences().items():
            require_zero(sp.expand(difference), name)
        return "reduced variables, curvatures and both maps equal one step on theta"

    def rationals() -> str:
        generator = random.Random(3)
        for _ in range(20):
            p, q, e, c = (Fraction(generator.randint(-12, 12), 8) for _ in range(4))
            reduced = two_parameter.reduced_variables(p, q, e, c)
            for _ in range(3):
                p, q = two_parameter.parameter_map(p, q, e, c)
                reduced = two_parameter.reduced_map(*reduced, e, c)
            if reduced != two_parameter.reduced_variables(p, q, e, c):
                raise Refuted(f"after 3 steps at eps = {e}, E = {c} the two routes differ")
        return "20 rational starts, 3 steps on theta and on (z, T_0): equal exactly"

    return Claim(
        "two_parameter_model",
        sp.Eq(sp.Symbol("T0'"), T0 - 2 * z_ * T1 + z_**2 * T2, evaluate=False),
        Kind.EXACT,
        _MODEL,
        ["Q = diag(1, -epsilon), z = (theta^T Q theta - E)/2", "T_k = theta^T Q^(k+2) theta, rate 1"],
        steps,
        {"symbolic": symbolic, "rationals": rationals},
    )  # fmt: skip


def _edge() -> Claim:
    """E = 0: the two-cycles beyond the edge drift back to it, along the fibre of 2 - eps/2."""
    A, theta = sp.symbols("A theta", positive=True)
    c1, c2 = sp.symbols("c1 c2")

    def cycle() -> sp.Expr:
        """C = T_0 - 2 z of the two-cycle through z at eps = 0, where C is conserved."""
        C = sp.Symbol("C")
        once = two_parameter.reduced_map(z_, C + 2 * z_, 0)
        twice = two_parameter.reduced_map(*once, 0)[0]
        quotient = sp.cancel((twice - z_) / (once[0] - z_))  # without the fixed points
        (branch,) = (
            root for root in sp.solve(quotient, C) if sp.simplify(root.subs(z_, 0) - 2) == 0
        )
        return sp.simplify(branch)

    def fibre() -> tuple[sp.Expr, sp.Expr]:
        """c1, c2 of the invariant curve C = A + c1 z + c2 z^2 + ... through z = 0, T_0 = A."""
        curve = A + c1 * z_ + c2 * z_**2
        z, ntk = two_parameter.reduced_map(z_, curve + 2 * z_, eps)
        gap = sp.Poly(sp.expand(ntk - 2 * z - (A + c1 * z + c2 * z**2)), z_)
        first = sp.solve(gap.coeff_monomial(z_), c1)[0]
        second = sp.solve(gap.coeff_monomial(z_**2).subs(c1, first), c2)[0]
        return sp.simplify(first), sp.simplify(second)

    def differences() -> dict[str, sp.Expr]:
        z, ntk = two_parameter.reduced_map(z_, T0, eps)
        curvature = sp.limit(fibre()[1].subs(A, 2 - theta * eps), eps, 0)
        wanted = sp.diff(cycle(), z_, 2).subs(z_, 0) / 2
        (selected,) = sp.solve(sp.Eq(curvature, wanted), theta)
        return {
            "C = T_0 - 2 z changes by (1 + eps z)^2": sp.expand(
                ntk - 2 * z - (T0 - 2 * z_) * (1 + eps * z_) ** 2
            ),
            "(2 - T_0)/eps of the fibre that is the curve of two-cycles": selected
            - (2 - two_parameter.edge_ntk(eps)) / eps,
        }

    def steps() -> list[Step]:
        return [
            Step("C = T_0 - 2 z of the two-cycle through z, at eps = 0", cycle()),
            Step("invariant curve through T_0 = A: coefficient of z^2 in C", fibre()[1]),
            Step(
                "its limit at A = 2 - theta eps",
                sp.limit(fibre()[1].subs(A, 2 - theta * eps), eps, 0),
            ),
            *(Step(f"{name}: difference", d) for name, d in differences().items()),
        ]

    def symbolic() -> str:
        for name, difference in differences().items():
            require_zero(difference, name)
        return "of all fibres of resting points, that of 2 - eps/2 continues the two-cycles"

    def simulation() -> str:
        generator = np.random.default_rng(0)
        z, ntk = generator.uniform(-0.5, 0.5, 60), generator.uniform(1.7, 2.5, 60)
        gaps = []
        for value in (0.04, 0.02, 0.01):
            rest, end = two_parameter.settle(z, ntk, value)
            passed = (np.abs(rest) < 1e-2) & (end > 1.5)
            gaps.append(float(np.median(end[passed]) - two_parameter.edge_ntk(value)))
        orders = np.log2(np.abs(gaps[:-1]) / np.abs(gaps[1:]))
        if np.abs(orders - 2).max() > 0.1:
            raise Refuted(f"the error shrinks with orders {orders} in eps, not 2")
        return (
            f"median end of 60 starts: error of order {orders[-1]:.2f} in eps, down to eps = 0.01"
        )

    return Claim(
        "two_parameter_edge",
        sp.Eq(sp.Symbol("T_inf"), two_parameter.edge_ntk(eps) + sp.O(eps**2), evaluate=False),
        Kind.ASYMPTOTIC,
        f"derived here; the model: {_MODEL}",
        ["E = 0, runs that pass the edge T_0 = 2", "two-cycles exist for T_0 - 2 z > 2"],
        steps,
        {"symbolic": symbolic, "simulation": simulation},
    )


# --- the closed step ------------------------------------------------------------------------------


def _closure() -> Claim:
    """SGD on parameters closes in (z, J)."""
    Z, J, G = (sp.Symbol(name, commutative=False) for name in ("z", "J", "g"))
    Qg = sp.Symbol("(Qg)", commutative=False)

    def differences() -> dict[str, sp.Expr]:
        theta = sp.symbols("d1:3")
        start = np.array(sp.symbols("z1:3"), dtype=object)
        slopes = np.array(sp.symbols("J1:5"), dtype=object).reshape(2, 2)
        a, b, c, d, e, f = sp.symbols("q1:7")
        tensor = np.array([[[a, b], [b, c]], [[d, e], [e, f]]])
        weights = np.array(sp.symbols("m1:3"), dtype=object)

        # The definition of the model, and its derivatives by differentiation.
        model = [
            start[a]
            + sum(slopes[a, j] * theta[j] for j in range(2))
            + sum(tensor[a, j, k] * theta[j] * theta[k] for j in range(2) for k in range(2)) / 2
            for a in range(2)
        ]
        loss = sum(w * z**2 for w, z in zip(weights, model, strict=True)) / 2
        origin = dict.fromkeys(theta, 0)
        moved = {d: -eta * sp.diff(loss, d).subs(origin) for d in theta}
        z, jacobian = sharpening.closed_step(start, slopes, tensor, weights, eta)
        found = {f"z_{a + 1}": z[a] - model[a].subs(moved) for a in range(2)}
        for a, j in itertools.product(range(2), repeat=2):
            exact = sp.diff(model[a], theta[j]).subs(moved)
            found[f"J_{a + 1}{j + 1}"] = jacobian[a, j] - exact
        return {name: sp.expand(difference) for name, difference in found.items()}

    def symbolic() -> str:
        for name, difference in differences().items():
            require_zero(difference, name)
        return "n = P = 2, symbolic z, J, Q and sample weights: z and J equal those after the step"

    def simulation() -> str:
        generator, lr = np.random.default_rng(4), 0.3
        tensor = 0.1 * generator.standard_normal((5, 7, 7))
        tensor = tensor + tensor.transpose(0, 2, 1)
        z, jacobian = generator.standard_normal(5), generator.standard_normal((5, 7))
        problem, theta, worst = QuadraticRegression(z, jacobian, tensor), np.zeros(7), 0.0
        rule = eosim.GradientDescent(lr)
        for _ in range(6):
            batch = generator.permutation(5)[:2]
            theta, _ = rule.step(theta, (), problem.gradient(theta, batch))
            weights = np.bincount(batch, minlength=5) / 2
            z, jacobian = sharpening.closed_step(z, jacobian, tensor, weights, lr)
            for closed, shipped in (
                (z, problem.residuals(theta)[:, 0]),
                (jacobian, problem.jacobian(theta)[:, 0]),
            ):
                worst = max(worst, float(np.abs(closed - shipped).max()))
        if worst > 1e-12:
            raise Refuted(f"the shipped problem and the closed step differ by {worst:.2g}")
        return f"6 mini-batch steps of the shipped problem: z and J within {worst:.0e}"

    return Claim(
        "quadratic_regression_closure",
        sp.Eq(sp.Symbol("z'"), Z - eta * J * G + eta**2 / 2 * Qg * G, evaluate=False),
        Kind.EXACT,
        f"{_MODEL}; mini-batches: {_SGD}",
        ["z = z_0 + J_0 theta + Q(theta, theta)/2", "g = J^T W z / n", "J' = J - eta Q g"],
        lambda: [Step(f"{name}: difference", d) for name, d in differences().items()],
        {"symbolic": symbolic, "simulation": simulation},
    )


# --- sharpening -----------------------------------------------------------------------------------


def _batches(n: int, size: int, sampling: str) -> list[tuple[Any, Any]]:
    """Every batch, as its probability and its weights counts / B; exact."""
    if sampling == "bernoulli":
        draws = [c for k in range(n + 1) for c in itertools.combinations(range(n), k)]
        odds = [QQ(size, n) ** len(d) * QQ(n - size, n) ** (n - len(d)) for d in draws]
    else:
        draws = list(itertools.product(range(n), repeat=size))
        if sampling == "without_replacement":
            draws = [draw for draw in draws if len(set(draw)) == size]
        odds = [QQ(1, len(draws))] * len(draws)
    weights: dict[Any, Any] = {}
    for probability, draw in zip(odds, draws, strict=True):
        counts = tuple(QQ(draw.count(i), size) for i in range(n))
        weights[counts] = weights.get(counts, QQ(0)) + probability
    return [(p, np.array(counts, dtype=object)) for counts, p in weights.items()]


def _moments(n: int, size: int, sampling: str) -> tuple[Any, Any]:
    """kept and noise, read off the enumeration: E[W_i W_j] = kept + noise n [i = j]."""
    batches = _batches(n, size, sampling)
    kept = n**2 * sum(p * w[0] * w[1] for p, w in batches)
    return kept, (n**2 * sum(p * w[0] ** 2 for p, w in batches) - kept) / n


def _directions(n: int, dim: int) -> Iterator[Any]:
    """The unit tensor of each independent entry of Q."""
    for a, j in itertools.product(range(n), range(dim)):
        for k in range(j + 1):
            tensor = np.zeros((n, dim, dim), dtype=object)
            tensor[a, j, k] = tensor[a, k, j] = 1
            yield tensor


def _mean_differences(
    z: Any,
    jacobian: Any,
    lr: Any,
    batches: list[tuple[Any, Any]],
    tensors: Iterable[tuple[Any, Any]],
    clean: Callable[[Any], Any] = lambda array: array,
) -> list[Any]:
    """Delta_1 J, Delta_2 J, Delta_1 Theta, Delta_2 Theta: summed over weighted Q, averaged over batches."""
    n, start = len(z), clean(jacobian)
    totals: list[Any] = [0, 0, 0, 0]
    for weight, tensor in tensors:
        for p, first in batches:
            z1, J1 = sharpening.closed_step(z, jacobian, tensor, first, lr)
            middle = clean(J1)
            ntk, next_ntk = (J @ J.T / n for J in (start, middle))
            for q, second in batches:
                after = clean(sharpening.closed_step(z1, J1, tensor, second, lr)[1])
                found = (
                    middle - start,
                    after - 2 * middle + start,
                    next_ntk - ntk,
                    after @ after.T / n - 2 * next_ntk + ntk,
                )
                totals = [a + b * (weight * p * q) for a, b in zip(totals, found, strict=True)]
    return totals


_NAMES = ("E[Delta_1 J]", "E[Delta_2 J]", "E[Delta_1 Theta]", "E[Delta_2 Theta]")


def _formulas(moment: Any, jacobian: Any, lr: Any, kept: Any, noise: Any) -> list[Any]:
    """The shipped expectations at sigma = 1, in the order of `_NAMES`."""
    second, first, ntk = sharpening.difference_moments(moment, jacobian, 1, lr, kept, noise)
    return [0 * jacobian, second, first, ntk]


def _sharpening() -> Claim:
    """The expected differences, by enumeration of the batches and of the moments of Q."""

    def differences() -> dict[str, Any]:
        """Of every entry, as polynomials in z, J and eta; n = P = 2, B = 1 and 2."""
        z, J = np.array(sp.symbols("z1:3")), np.array(sp.symbols("J1:5")).reshape(2, 2)
        ring = sp.ring([*z, *J.ravel(), eta, t], QQ)[0]
        last = len(ring.gens) - 1

        def clean(array: Any) -> Any:
            return np.vectorize(lambda e: ring.from_expr(sp.sympify(e)), otypes=[object])(array)

        def second_order(polynomial: Any) -> Any:
            terms = {m: c for m, c in polynomial.terms() if m[last] == 2}
            return ring.from_dict({(*m[:last], 0): c for m, c in terms.items()})

        found: dict[str, Any] = {}
        for size in (1, 2):
            kept, noise = _moments(2, size, "without_replacement")
            tensors = [(1, t * tensor) for tensor in _directions(2, 2)]
            batches = _batches(2, size, "without_replacement")
            means = _mean_differences(z, J, eta, batches, tensors, clean)
            formulas = _formulas(np.outer(z, z), J, eta, kept, noise)
            for name, mean, formula in zip(_NAMES, means, formulas, strict=True):
                rest = np.vectorize(second_order, otypes=[object])(mean) - clean(formula)
                for index in np.ndindex(rest.shape):
                    found[f"{name} at B = {size}, entry {index}"] = rest[index]
        return found

    def symbolic() -> str:
        everything = differences()
        for name, rest in everything.items():
            if rest != 0:
                raise Refuted(f"{name}: the difference is {rest.as_expr()}, not 0")
        return f"{len(everything)} entries as polynomials in z, J and eta: every difference is 0"

    def rationals() -> str:
        generator = random.Random(5)
        cases = [
            (2, 3, 1, "without_replacement"),
            (3, 2, 2, "without_replacement"),
            (2, 2, 2, "with_replacement"),
            (2, 2, 1, "bernoulli"),
        ]
        # f(t) is a polynomial of degree 6 without constant term: [t^2] f from t = +-1, +-2, +-3.
        stencil = {1: QQ(3, 4), 2: QQ(-3, 40), 3: QQ(1, 180)}
        for n, dim, size, sampling in cases:
            z = np.array([QQ(generator.randint(-9, 9), 4) for _ in range(n)], dtype=object)
            J = np.array([QQ(generator.randint(-9, 9), 4) for _ in range(n * dim)], dtype=object)
            J, lr = J.reshape(n, dim), QQ(generator.randint(1, 9), 7)
            tensors = [
                (weight, sign * value * tensor)
                for tensor in _directions(n, dim)
                for value, weight in stencil.items()
                for sign in (1, -1)
            ]
            batches, moments = _batches(n, size, sampling), _moments(n, size, sampling)
            shipped = batch_moments(n, size, sampling)
            if max(abs(float(a) - b) for a, b in zip(moments, shipped, strict=True)) > 1e-15:
                raise Refuted(f"batch moments are {moments}, shipped {shipped}")
            means = _mean_differences(z, J, lr, batches, tensors)
            formulas = _formulas(np.outer(z, z), J, lr, *moments)
            for name, mean, formula in zip(_NAMES, means, formulas, strict=True):
                if (mean != formula).any():
                    raise Refuted(f"{name} differs at n = {n}, P = {dim}, B = {size}, {sampling}")
        return f"{len(cases)} sizes and samplings at random rationals: all four means equal exactly"

    S, Theta, M, J, G = (
        sp.Symbol(name, commutative=False) for name in ("S", "Theta", "M(S)", "J", "G")
    )
    diagonal = sp.Symbol("Diag(G)", commutative=False)
    c = eta**2 * sigma**2 * P_ / n_**2
    small = eta**3 * sigma**2 / (2 * n_**3)

    def steps() -> list[Step]:
        rest = next(iter(differences().values()))
        return [
            Step("leading part of E[Delta_2 J]", c * (S - eta * Theta * M) * J),
            Step("part smaller by 1/P", -small * (2 * J * G - J * diagonal)),
            Step("enumerated minus stated, first of the entries", rest.as_expr()),
        ]

    return Claim(
        "conservative_sharpening",
        sp.Eq(
            sp.Symbol("E[Delta2 J]"),
            c * (S - eta * Theta * M) * J - small * (2 * J * G - J * diagonal),
            evaluate=False,
        ),
        Kind.EXACT,
        f"derived here; the effect: {_SGD}",
        [
            "Q_ajk = Q_akj independent N(0, sigma^2) for k <= j, batches independent",
            "S = z z^T, M(S) = kept S + noise n Diag(S), G = J^T M(S) J",
            "order sigma^2; also E[Delta_1 J] = 0, E[Delta_1 Theta], E[Delta_2 Theta]",
        ],
        steps,
        {"symbolic": symbolic, "rationals": rationals},
    )


def _sign() -> Claim:
    """Averaged over isotropic residuals a mode sharpens while eta lambda is below the batch fraction."""
    X = sp.Symbol("x", positive=True)
    kappa = (n_ - B_) / (B_ * (n_ - 1))

    def differences() -> dict[str, sp.Expr]:
        averaged = sharpening.mode_sharpening(1, 1, X, 1 - kappa, kappa, n_)
        cosine, sine = sp.Rational(3, 5), sp.Rational(4, 5)
        left = np.array([[cosine, -sine], [sine, cosine]])
        right = np.array([[sp.Rational(5, 13), sp.Rational(-12, 13)],
                          [sp.Rational(12, 13), sp.Rational(5, 13)]])  # fmt: skip
        s = np.array(sp.symbols("s1:3"))
        z = np.array(sp.symbols("z1:3"))
        kept, noise, variance = sp.symbols("k u V")
        second, _, _ = sharpening.difference_moments(
            np.outer(z, z), left * s @ right.T, variance, eta, kept, noise, 0
        )
        c = eta**2 * variance * 2 / 4
        found = {"isotropic average": averaged - (1 - X * n_ / B_)}
        for a in range(2):
            w = left[:, a]
            stated = sharpening.mode_sharpening(
                (w @ z) ** 2, (w**2) @ z**2, eta * s[a] ** 2 / 2, kept, noise, 2
            )
            projected = w @ second @ right[:, a]
            found[f"mode {a + 1} of a Jacobian"] = sp.expand(projected - c * s[a] * stated)
        return found

    def symbolic() -> str:
        for name, difference in differences().items():
            require_zero(difference, name)
        return "the mode formula is the projection on singular vectors; its average is 1 - x n/B"

    def simulation() -> str:
        n, dim, size, lr = 4, 12, 2, 1.0
        jacobian = np.zeros((n, dim))
        values = np.array([0.9, 0.7, 0.3, 0.1])  # eta lambda; the batch fraction is 1/2
        jacobian[np.arange(n), np.arange(n)] = np.sqrt(n * values)
        found = sharpening.measured_differences(np.eye(n), jacobian, 0.02, lr, size, 20_000, seed=2)
        scores = found.mean.mode_jacobian / found.standard_error.mode_jacobian
        if not ((scores[:2] < -3).all() and (scores[2:] > 3).all()):
            raise Refuted(f"z-scores at eta lambda = {values} are {scores.round(1)}")
        return f"B/n = 1/2, eta lambda = 0.9, 0.7, 0.3, 0.1: z-scores {scores.round(1)}"

    mean = sp.Symbol("E[w Delta2 J v]") / (sp.Symbol("c") * sp.Symbol("s"))
    return Claim(
        "sharpening_sign",
        sp.Eq(mean, 1 - eta * sp.Symbol("lambda") * n_ / B_, evaluate=False),
        Kind.EXACT,
        f"derived here; the effect: {_SGD}",
        [
            "leading in 1/P, z isotropic of variance 1, without replacement",
            "c = eta^2 sigma^2 P/n^2",
        ],
        lambda: [Step(f"{name}: difference", d) for name, d in differences().items()],
        {"symbolic": symbolic, "simulation": simulation},
    )


def claims() -> list[Claim]:
    """The two-parameter model and its edge, the closed SGD step, differences, their sign per mode."""
    return [_two_parameter(), _edge(), _closure(), _sharpening(), _sign()]
