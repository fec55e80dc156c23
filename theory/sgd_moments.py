r"""Averages over mini-batches: every batch of small symbolic problems, stepped by the shipped rule."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

import eosim
from eosim import sampling
from eosim.stability import mean_square
from theory.catapult import at_rationals
from theory.claim import Claim, Kind, Refuted, Step, require_zero

eta, kappa, kept, mu = sp.symbols("eta kappa c mu", positive=True)
x, y = sp.symbols("x y", positive=True)
NONE = sp.Integer(0)  # momentum
n, B = sp.symbols("n B", positive=True)

EDGE = "Agarwala & Pennington 2024, arXiv 2404.19261"
ALIGNMENT = "Wu, Wang & Su 2022, arXiv 2207.02628"
SCHEMES = ("without_replacement", "with_replacement", "bernoulli")

Batch = tuple[sp.Rational, tuple[sp.Rational, ...]]


def all_batches(size: int, batch_size: int, scheme: str) -> list[Batch]:
    """Every batch: its probability and the weights n/B times the counts."""
    unit = sp.Rational(size, batch_size)
    if scheme == "bernoulli":
        p = sp.Rational(batch_size, size)
        return [
            (p ** sum(mask) * (1 - p) ** (size - sum(mask)), tuple(unit * m for m in mask))
            for mask in itertools.product((0, 1), repeat=size)
        ]
    draws: list[tuple[int, ...]]
    if scheme == "with_replacement":
        draws = list(itertools.product(range(size), repeat=batch_size))
    else:
        draws = list(itertools.combinations(range(size), batch_size))
    odds = sp.Rational(1, len(draws))
    return [(odds, tuple(unit * draw.count(i) for i in range(size))) for draw in draws]


def shipped_moments(size: int, batch_size: int, scheme: str) -> tuple[sp.Rational, sp.Rational]:
    """The shipped kept and noise: rationals of small denominator, up to rounding."""
    found = sampling.batch_moments(size, batch_size, scheme)
    kept_, noise = (Fraction(value).limit_denominator(10**6) for value in found)
    return sp.Rational(kept_), sp.Rational(noise)


def scheme_cases(
    sizes: Sequence[int], schemes: Sequence[str] = SCHEMES
) -> list[tuple[int, int, str]]:
    """(n, B, scheme) for every batch size."""
    return [(s, b, scheme) for s in sizes for b in range(1, s + 1) for scheme in schemes]


def symmetric(name: str, size: int) -> sp.Matrix:
    return sp.Matrix(size, size, lambda i, j: sp.Symbol(f"{name}_{min(i, j)}{max(i, j)}"))


def jacobian_symbols(rows: int, columns: int) -> sp.Matrix:
    return sp.Matrix(rows, columns, lambda i, j: sp.Symbol(f"g_{i}{j}"))


def stepped(point: sp.Matrix, gradient: sp.Matrix) -> sp.Matrix:
    """One shipped step of gradient descent, entry by entry."""
    rule = eosim.GradientDescent(eta)
    moved = [rule.step(p, (), g)[0] for p, g in zip(point, gradient, strict=True)]
    return sp.Matrix(moved)


def step_matrix(point: sp.Matrix, matrix: sp.Matrix) -> sp.Matrix:
    """The matrix that one shipped step with the gradient ``matrix @ point`` multiplies by."""
    return stepped(point, matrix * point).jacobian(list(point))


def as_one(matrix: sp.Matrix) -> sp.Expr:
    """One expression that vanishes as a polynomial exactly if every entry does."""
    marks = sp.symbols(f"mark0:{len(matrix)}")
    return sp.Add(*(m * entry for m, entry in zip(marks, matrix, strict=True)))


def enumerated_operator(theta: Any, size: int, batch_size: int, lr: float) -> Any:
    """E of kron(A, A) for A = I - lr Theta W over all batches without replacement, in floats."""
    total: Any = 0.0
    for odds, weights in all_batches(size, batch_size, "without_replacement"):
        A = np.eye(size) - lr * theta @ np.diag([float(w) for w in weights])
        total = total + float(odds) * np.kron(A, A)
    return total


def identity_claim(
    name: str,
    statement: sp.Basic,
    differences: Callable[[], Mapping[str, sp.Expr]],
    summary: str,
    assumptions: Sequence[str],
    numbers: Callable[[], str],
    source: str = "derived here",
    kind: Kind = Kind.EXACT,
) -> Claim:
    """Identities that expand to 0, vanish at rationals as they stand, and hold in shipped numbers."""

    def reduced() -> dict[str, sp.Expr]:
        found = {meaning: sp.expand(d) for meaning, d in differences().items()}
        return {m: d and sp.cancel(sp.together(d)) for m, d in found.items()}

    def symbolic() -> str:
        for meaning, difference in reduced().items():
            require_zero(difference, meaning)
        return summary

    def steps() -> list[Step]:
        return [Step(f"{meaning}: difference", d) for meaning, d in reduced().items()]

    routes = {
        "symbolic": symbolic,
        "rationals": at_rationals(differences, count=2),
        "numbers": numbers,
    }
    return Claim(name, statement, kind, source, assumptions, steps, routes)


def _batch_moments() -> Claim:
    """E[W S W] = kept S + noise n Diag(S)."""
    pair = sp.combsimp(sp.binomial(n - 2, B - 2) / sp.binomial(n, B))  # both of two are drawn
    single = sp.combsimp(sp.binomial(n - 1, B - 1) / sp.binomial(n, B))
    factor = (n - B) / (B * (n - 1))

    def differences() -> dict[str, sp.Expr]:
        found: dict[str, sp.Expr] = {}
        for size, batch_size, scheme in scheme_cases((2, 3, 4, 5)):
            if scheme == "with_replacement" and size == 5 and batch_size == 5:
                continue  # 3125 batches teach nothing new
            S = symmetric("S", size)
            mean = sp.zeros(size)
            for odds, weights in all_batches(size, batch_size, scheme):
                mean += odds * sp.Matrix(
                    size, size, lambda i, j, w=weights, S=S: w[i] * S[i, j] * w[j]
                )
            kept_, noise = shipped_moments(size, batch_size, scheme)
            diagonal = sp.diag(*[S[i, i] for i in range(size)])
            found[f"{scheme}, n = {size}, B = {batch_size}"] = as_one(
                mean - kept_ * S - noise * size * diagonal
            )
        t, u = sp.symbols("t u")
        count = ((sp.exp(t) + sp.exp(u) + n - 2) / n) ** B  # of samples 1 and 2, drawn with repeats
        at_zero = {t: 0, u: 0}
        both = sp.diff(count, t, u).subs(at_zero) * (n / B) ** 2
        square = sp.diff(count, t, 2).subs(at_zero) * (n / B) ** 2
        return {
            **found,
            "pair, any n and B": pair * (n / B) ** 2 - (1 - factor),
            "single, any n and B": single * (n / B) ** 2 - (1 - factor + factor * n),
            "pair with replacement, any n and B": both - (1 - 1 / B),
            "single with replacement, any n and B": square - (1 - 1 / B + n / B),
            "kappa (n - 1) = n/B - 1": factor * (n - 1) - (n / B - 1),
            "slope in B": sp.diff(factor, B) + n / (B**2 * (n - 1)),
            "many samples": sp.limit(factor, n, sp.oo) - 1 / B,
        }

    def numbers() -> str:
        for size, batch_size, scheme in scheme_cases(range(2, 13)):
            if scheme == "bernoulli":
                expected = (1.0, (size - batch_size) / (size * batch_size))
            else:
                noise = 1 / batch_size
                if scheme == "without_replacement":
                    noise = float(factor.subs({n: size, B: batch_size}))
                expected = (1 - noise, noise)
            found = sampling.batch_moments(size, batch_size, scheme)
            if max(abs(a - b) for a, b in zip(found, expected, strict=True)) > 1e-15:
                raise Refuted(f"n = {size}, B = {batch_size}, {scheme}: {found}, not {expected}")
        return "the shipped numbers are these for n = 2 to 12, every B and scheme"

    return identity_claim(
        "sgd_batch_moments",
        sp.Eq(
            sp.Function("E")(sp.Symbol("W S W")),
            kept * sp.Symbol("S") + kappa * n * sp.Function("Diag")(sp.Symbol("S")),
            evaluate=False,
        ),
        differences,
        "all batches of 2 to 5 samples, and any n and B through inclusion probabilities",
        ["W = (n/B) diag(counts)", "c = 1 - kappa, kappa = (n - B)/(B (n - 1)) or 1/B",
         "Bernoulli: c = 1, kappa = (n - B)/(n B)"],
        numbers,
    )  # fmt: skip


# Every batch size of one scheme, and one of each other scheme: the numbers cover the rest.
_THREE = [*scheme_cases((3,), SCHEMES[:1]), (3, 2, "with_replacement"), (3, 2, "bernoulli")]


def _second_moment_operator() -> Claim:
    """Q = I - 2 eta C + eta^2 D on second moments of theta."""
    rows = jacobian_symbols(3, 2)

    def differences() -> dict[str, sp.Expr]:
        delta = sp.Matrix(sp.symbols("d0:2"))
        samples = [rows[i, :].T * rows[i, :] for i in range(3)]
        H = sum(samples, sp.zeros(2)) / 3
        one = sp.eye(2)
        C = (sp.kronecker_product(H, one) + sp.kronecker_product(one, H)) / 2
        spread = sum((sp.kronecker_product(h, h) for h in samples), sp.zeros(4)) / 3
        found = {}
        for size, batch_size, scheme in _THREE:
            mean = sp.zeros(4)
            for odds, weights in all_batches(size, batch_size, scheme):
                batch = sum((w * h for w, h in zip(weights, samples, strict=True)), sp.zeros(2)) / 3
                A = step_matrix(delta, batch)
                mean += odds * sp.kronecker_product(A, A)
            kept_, noise = shipped_moments(size, batch_size, scheme)
            D = kept_ * sp.kronecker_product(H, H) + noise * spread
            found[f"{scheme}, B = {batch_size}"] = as_one(
                mean - sp.eye(4) + 2 * eta * C - eta**2 * D
            )
        return found

    def numbers() -> str:
        generator = np.random.default_rng(0)
        worst = 0.0
        for _ in range(10):
            J = generator.standard_normal((4, 5))
            theta, batch_size = J @ J.T / 4, int(generator.integers(1, 4))
            lr = float(mean_square.critical_lr(theta, batch_size))
            radius = np.abs(np.linalg.eigvals(enumerated_operator(theta, 4, batch_size, lr))).max()
            sharpness = mean_square.generalised_sharpness(theta, batch_size)
            worst = max(worst, abs(radius - 1), abs(sharpness * lr / 2 - 1))
        if worst > 1e-9:
            raise Refuted(f"at the shipped threshold the radius differs from 1 by {worst:.2g}")
        return f"10 kernels: at the shipped threshold the enumerated radius is 1 within {worst:.0e}"

    Q, C, D = sp.symbols("Q C D")
    return identity_claim(
        "sgd_second_moment_operator",
        sp.Eq(Q, 1 - 2 * eta * C + eta**2 * D, evaluate=False),
        differences,
        "three samples of two parameters, every batch of every scheme",
        ["interpolating minimum, H_i = g_i g_i^T", "C = (H x 1 + 1 x H)/2",
         "D = c H x H + kappa mean(H_i x H_i)"],
        source="Ma & Ying 2021; threshold: Mulayoff & Michaeli 2024, arXiv 2306.07850",
        numbers=numbers,
    )  # fmt: skip


def _covariance_step() -> Claim:
    """S' = (1 - eta Theta) S (1 - eta Theta) + eta^2 Theta [kappa n Diag(S) - (1 - c) S] Theta."""

    def differences() -> dict[str, sp.Expr]:
        theta, S = symmetric("t", 3), symmetric("S", 3)
        e = sp.Matrix(sp.symbols("e0:3"))
        found = {}
        for size, batch_size, scheme in _THREE:
            mean = sp.zeros(3)
            for odds, weights in all_batches(size, batch_size, scheme):
                A = step_matrix(e, theta * sp.diag(*weights))
                mean += odds * A * S * A.T
            kept_, noise = shipped_moments(size, batch_size, scheme)
            drift = sp.eye(3) - eta * theta
            inner = noise * 3 * sp.diag(*[S[i, i] for i in range(3)]) - (1 - kept_) * S
            after = drift * S * drift + eta**2 * theta * inner * theta
            found[f"{scheme}, B = {batch_size}"] = as_one(mean - after)
        return found

    def numbers() -> str:
        generator = np.random.default_rng(6)
        worst = 0.0
        for size, batch_size, scheme in scheme_cases((4,)):
            X, targets = generator.standard_normal((4, 5)), generator.standard_normal(4)
            problem, start = eosim.LinearRegression(X, targets), generator.standard_normal(5)
            ntk, e = X @ X.T / 4, problem.residuals(start).ravel()
            kept_, noise = sampling.batch_moments(size, batch_size, scheme)
            drift = np.eye(4) - 0.2 * ntk
            inner = noise * 4 * np.diag(e**2) - (1 - kept_) * np.outer(e, e)
            expected = drift @ np.outer(e, e) @ drift + 0.04 * ntk @ inner @ ntk
            found: Any = 0.0
            for odds, weights in all_batches(size, batch_size, scheme):
                # The shipped gradient of the batch; samples drawn twice are listed twice.
                counts = [int(w * batch_size / size) for w in weights]
                batch = np.repeat(np.arange(4), counts)
                gradient = 0 * start
                if len(batch):
                    gradient = problem.gradient(start, batch) * len(batch) / batch_size
                moved, _ = eosim.GradientDescent(0.2).step(start, (), gradient)
                after = problem.residuals(moved).ravel()
                found = found + float(odds) * np.outer(after, after)
            worst = max(worst, np.abs(found - expected).max() / np.abs(expected).max())
        if worst > 1e-12:
            raise Refuted(f"the mean over batches differs by {worst:.2g}")
        return (
            f"regression with label noise, n = 4, every batch of every scheme: within {worst:.0e}"
        )

    S, theta = sp.symbols("S Theta")
    return identity_claim(
        "sgd_covariance_step",
        sp.Eq(
            sp.Symbol("S'"),
            (1 - eta * theta) * S * (1 - eta * theta)
            + eta**2 * theta * (kappa * n * sp.Function("Diag")(S) - (1 - kept) * S) * theta,
            evaluate=False,
        ),
        differences,
        "three residuals, symbolic symmetric S and Theta, every batch",
        ["S = E[e e^T]", "e' = e - eta Theta W e"],
        numbers,
    )


def _one_step_loss() -> Claim:
    """E L' = (1/2) d (1-eta H) H (1-eta H) d + (eta^2/2) [kappa tr(H Sigma_1) - (1-c) g H g]."""
    rows = jacobian_symbols(3, 2)

    def differences() -> dict[str, sp.Expr]:
        delta = sp.Matrix(sp.symbols("d0:2"))
        e = rows * delta
        H = rows.T * rows / 3
        g = H * delta
        singles = [e[i] * rows[i, :].T for i in range(3)]
        sigma = sum((s * s.T for s in singles), sp.zeros(2)) / 3
        drift = sp.eye(2) - eta * H
        found = {}
        for size, batch_size, scheme in _THREE:
            mean: sp.Expr = sp.Integer(0)
            for odds, weights in all_batches(size, batch_size, scheme):
                total = sum((w * s for w, s in zip(weights, singles, strict=True)), sp.zeros(2, 1))
                after = rows * stepped(delta, total / 3)
                mean += odds * (after.T * after)[0] / 6
            kept_, noise = shipped_moments(size, batch_size, scheme)
            claimed = (delta.T * drift * H * drift * delta)[0] / 2 + eta**2 / 2 * (
                noise * (H * sigma).trace() - (1 - kept_) * (g.T * H * g)[0]
            )
            found[f"{scheme}, B = {batch_size}"] = mean - claimed
        residuals = sp.Matrix(sp.symbols("e0:3"))
        K = rows * rows.T
        singles = [residuals[i] * rows[i, :].T for i in range(3)]
        gradient = sum(singles, sp.zeros(2, 1)) / 3
        sigma = sum((s * s.T for s in singles), sp.zeros(2)) / 3 - gradient * gradient.T
        square = K * K
        form = 3 * sp.diag(*[square[i, i] for i in range(3)]) - square
        # tr(Sigma G) and 2 L |G|^2, against e.form e and |e|^2 |K|^2: a common factor n^3 apart
        found["alignment from the kernel"] = (
            27 * (sigma * H).trace() - (residuals.T * form * residuals)[0]
        )
        found["its denominator"] = (H * H).trace() * 9 - (K * K).trace()
        return found

    def numbers() -> str:
        generator = np.random.default_rng(7)
        worst = 0.0
        for batch_size in (1, 2, 3):
            X, start, lr = generator.standard_normal((4, 5)), generator.standard_normal(5), 0.3
            problem = eosim.LinearRegression(X, np.zeros(4))
            H, L = problem.hessian(start), problem.loss(start)
            drift = start - lr * H @ start
            alignment = eosim.measure.loss_alignment(problem, start).mu
            noise = sampling.batch_moments(4, batch_size).noise
            expected = problem.loss(drift) + lr**2 * noise * alignment * np.sum(H**2) * L
            losses = [
                problem.loss(start - lr * problem.gradient(start, np.array(batch)))
                for batch in itertools.combinations(range(4), batch_size)
            ]
            worst = max(worst, abs(np.mean(losses) / expected - 1))
        if worst > 1e-12:
            raise Refuted(f"the mean loss after one step differs by {worst:.2g}")
        return f"shipped regression and its measured mu, B = 1, 2, 3: within {worst:.0e}"

    E, L, r = sp.symbols("E L r")
    return identity_claim(
        "sgd_one_step_loss",
        sp.Eq(
            E * sp.Symbol("L'"),
            r * L + eta**2 * kappa * sp.Symbol("mu") * sp.Symbol("|H|_F^2") * L,
            evaluate=False,
        ),
        differences,
        "three samples of two parameters, all batches; mu = e(n Diag(K^2) - K^2)e/(|e|^2 |K|^2)",
        ["e = J delta", "mu = tr(H Sigma)/(2 L |H|_F^2)", "r L is the loss after the mean step"],
        numbers,
        source=f"{ALIGNMENT}; identity and kernel form derived here",
    )


def claims() -> list[Claim]:
    """Moments of a batch, the operator on second moments, the covariance step, the loss after one step."""
    return [_batch_moments(), _second_moment_operator(), _covariance_step(), _one_step_loss()]
