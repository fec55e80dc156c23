r"""Weight norms of nets of degree two: what a step does to them, and what follows for the loss."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import sympy as sp

import eosim
from eosim import catapult
from eosim.catapult.reductions import BiasNet
from eosim.problems import QuadraticNet, TwoLayerNet
from eosim.problems.teachers import paired_matrices
from theory.catapult import at_rationals, identity
from theory.claim import Claim, Kind, Refuted, Step, require_zero

_PAPER = "Meltzer & Liu 2023, arXiv 2301.07737"
lr, kappa, e, f, ntk = sp.symbols("eta kappa e f lambda")


def _stepped(theta: sp.Basic, gradient: sp.Basic, rate: sp.Basic = lr) -> sp.Basic:
    """theta after one step of the shipped rule; matrices or scalars."""
    return eosim.GradientDescent(rate).step(theta, (), gradient)[0]


def _path(problem: Any, theta: np.ndarray, rate: float, n_steps: int) -> np.ndarray:
    """theta of every step of the shipped run."""
    path = eosim.run(problem, eosim.GradientDescent(rate), theta, n_steps).theta
    assert path is not None
    return path


def _moments() -> Claim:
    """The moments of a net with one datum, from a step on each coordinate of its eigenbasis."""
    theta, m, rest, low = sp.symbols("theta m r M")  # m = zeta mu; low = m^k theta^2 for any k

    def differences() -> dict[str, sp.Expr]:
        residual = m * theta**2 / 2 + rest
        after = _stepped(theta, sp.diff(residual**2 / 2, theta))
        moved = catapult.moment_map(low, m * low, m**2 * low, lr * residual)
        output, kernel = catapult.output_map(f, ntk, e, lr, kappa)
        return {
            "moment k of one coordinate, any k": low * after**2 / theta**2 - moved,
            "output, where psi^2 = s^2 I": output
            - catapult.moment_map(2 * f, ntk, 2 * kappa * f, lr * e) / 2,
            "NTK, where psi^2 = s^2 I": kernel
            - catapult.moment_map(ntk, 2 * kappa * f, kappa * ntk, lr * e),
        }

    def simulation() -> str:
        generator = np.random.default_rng(1)
        mu, zeta, target = generator.uniform(-2, 2, 9), 0.4, 0.3
        net = catapult.EigenbasisNet(generator.standard_normal(9) ** 2, mu, zeta, target, 0.5)
        squares = net.start()
        for step in range(10):
            moments = [zeta**k * squares @ mu**k for k in range(7)]
            move = net.lr * (moments[1] / 2 - target)
            squares = net.step(squares)
            for k in range(5):
                mapped = catapult.moment_map(moments[k], moments[k + 1], moments[k + 2], move)
                scale = moments[0] * (2 * zeta) ** k * (1 + abs(move) * 2 * zeta) ** 2
                if abs(zeta**k * squares @ mu**k - mapped) > 1e-14 * scale:
                    raise Refuted(f"moment {k} differs from its map at step {step + 1}")
        return "moments 0 to 4 of a net of 9 coordinates, 10 steps: equal to rounding"

    M = sp.Function("M")
    k = sp.Symbol("k")
    return identity(
        "catapult_moments",
        sp.Eq(
            sp.Symbol("M'"), catapult.moment_map(M(k), M(k + 1), M(k + 2), lr * e), evaluate=False
        ),
        differences,
        "every coordinate of the eigenbasis moves by itself; psi^2 = s^2 I closes the hierarchy",
        ["M_k = zeta^k theta' psi^k theta, one datum", "psi^2 = s^2 I: M_(k+2) = kappa M_k"],
        simulation,
        source="derived here",
    )


def _bias() -> Claim:
    """The model with bias from a step on its weights, and the norm that cannot grow."""
    theta = sp.Matrix(sp.symbols("t1:5"))  # theta_f, then theta_m
    phi = sp.Matrix(sp.symbols("phi1:3"))
    r, s, zeta, y = sp.symbols("r s zeta y")
    psi = sp.Matrix([[r, s], [s, -r]])  # its square is (r^2 + s^2) I
    flat, square = phi.dot(phi), zeta**2 * (r**2 + s**2)  # |phi|^2 and kappa

    def state(theta: sp.Matrix) -> tuple[sp.Expr, sp.Expr, sp.Expr]:
        """c, q, h."""
        linear, meta = theta[:2, :], theta[2:, :]
        image = psi * meta
        return phi.dot(linear), zeta / 2 * meta.dot(image), zeta**2 * image.dot(image)

    def norm(theta: sp.Matrix) -> sp.Expr:
        return theta.dot(theta) + phi.dot(theta[:2, :]) ** 2 / flat

    def differences() -> dict[str, sp.Expr]:
        c, q, h = state(theta)
        residual = c + q - y
        after = _stepped(theta, sp.Matrix([residual**2 / 2]).jacobian(theta).T)
        mapped = catapult.bias_map(c, q, h, residual, lr, flat, square)
        names = ("phi.theta_f", "quadratic part", "NTK of the quadratic part")
        found = {
            name: ours - theirs
            for name, ours, theirs in zip(names, state(after), mapped, strict=True)
        }
        move = lr * residual
        change = move * (move * (h + 2 * flat) - 4 * (c + q))
        found["W"] = norm(after) - norm(theta) - change
        # lambda + |phi|^2 = h + 2 |phi|^2 is below 2 |phi|^2 + kappa W by squares
        rest = square * (theta[:2, :].dot(theta[:2, :]) + c**2 / flat)
        found["bound of the NTK by W"] = 2 * flat + square * norm(theta) - (h + 2 * flat) - rest
        return found

    def simulation() -> str:
        phi = np.array([0.5, -1.0, 0.8])
        problem = QuadraticNet(paired_matrices(1, 6, seed=2), [0.0], features=[phi])
        start = problem.initial(3)
        for share in (0.3, 0.7, 0.999):
            rate = share * 4 / problem.ntk_bound(start, "own")
            path = _path(problem, start, rate, 60)
            linear = path[:, :3] @ phi
            W = np.sum(path**2, axis=1) + linear**2 / (phi @ phi)
            if (np.diff(W) > 1e-13 * W[0]).any():
                raise Refuted(f"W grows at {share} of the proved rate")
            output = problem.outputs(start)[0, 0]
            curved = problem.ntk(start)[0, 0] - phi @ phi
            net = BiasNet(
                linear[0], output - linear[0], curved, phi @ phi, problem.prefactor**2, 0.0, rate,
                start[:3] @ start[:3] - linear[0] ** 2 / (phi @ phi),
            )  # fmt: skip
            reduced = catapult.simulate(net, 60)["monotone_norm"]
            if np.abs(reduced - W).max() > 1e-11 * W[0]:
                raise Refuted(f"the reduction's W differs from the net's at {share} of that rate")
        return "W of a net stepped 60 times falls at 0.3, 0.7, 0.999 of the proved rate"

    c, q, h, p = sp.symbols("c q h p")
    stated = lr * e * (lr * e * (h + 2 * p) - 4 * (c + q))

    def steps() -> list[Step]:
        after = catapult.bias_map(c, q, h, e, lr, p, kappa)
        names = ("c', with e = c + q - y", "q'", "h'")
        change = (after[2] - h) / kappa + 2 * (after[0] ** 2 - c**2) / p
        return [
            *(Step(name, x) for name, x in zip(names, after, strict=True)),
            Step("change of W = h/kappa + 2 c^2/p + what never moves", sp.factor(change)),
            Step("W falls while this stays below 4", lr * (2 * p + kappa * sp.Symbol("W"))),
        ]

    claim = identity(
        "catapult_bias",
        sp.Eq(sp.Symbol("Delta W"), stated, evaluate=False),
        differences,
        "the map of (c, q, h) equals a step on the weights; W falls while eta (2|phi|^2 + kappa W) < 4",
        [
            "psi^2 = s^2 I, one datum, kappa = zeta^2 s^2, p = |phi|^2, NTK h + p, e = c + q - y",
            "W = |theta|^2 + (phi.theta_f)^2/|phi|^2",
        ],
        simulation,
        source=f"{_PAPER} (163 of a draft)",
    )
    routes = {**claim.routes, "rationals": at_rationals(differences, count=8)}
    return replace(claim, derivation=steps, routes=routes)


def _net(n: int, size: int) -> tuple[sp.Matrix, sp.Matrix, sp.Matrix]:
    """Generic residuals, Jacobian and theta. Degree two means z = J theta / 2."""
    J = sp.Matrix(n, size, sp.symbols(f"J1:{n * size + 1}"))
    return sp.Matrix(sp.symbols(f"e1:{n + 1}")), J, sp.Matrix(sp.symbols(f"t1:{size + 1}"))


def _change(e: sp.Matrix, J: sp.Matrix, theta: sp.Matrix, rate: sp.Basic = lr) -> sp.Expr:
    """|theta|^2 after the shipped step less before it."""
    after = _stepped(theta, J.T * e / len(e), rate)
    return after.dot(after) - theta.dot(theta)


def _euler(e: sp.Matrix, J: sp.Matrix, theta: sp.Matrix, rate: sp.Basic = lr) -> sp.Expr:
    """(eta/D) [eta e'He - 4 e.z], H = J J'/D."""
    n, pulled = len(e), J.T * e
    return rate / n * (rate * pulled.dot(pulled) / n - 4 * e.dot(J * theta) / 2)


def _weight_norm() -> Claim:
    """|theta|^2 of any net of degree two and any data, from one step."""

    def degree_two() -> dict[str, sp.Expr]:
        """J theta - 2 z of the two kinds of nets."""
        w1, w2, v1, v2, x1, x2, s1, s2, c = sp.symbols("w1 w2 v1 v2 x1 x2 s1 s2 c")
        theta = sp.Matrix(sp.symbols("t1:4"))
        psi = sp.Matrix(3, 3, lambda i, j: sp.Symbol(f"psi{min(i, j)}{max(i, j)}"))
        weights = sp.Matrix([w1, w2, v1, v2])
        nets = {
            "quadratic net": (c / 2 * theta.dot(psi * theta), theta),
            # s: the slopes of two units on the side where they are
            "two-layer net": (c * (v1 * s1 * w1 * x1 + v2 * s2 * w2 * x2), weights),
        }
        return {
            f"{name}: theta.grad z - 2 z": sp.expand(sp.Matrix([z]).jacobian(t).dot(t) - 2 * z)
            for name, (z, t) in nets.items()
        }

    def differences() -> dict[str, sp.Expr]:
        sizes = ((1, 1), (1, 3), (2, 2), (3, 2))
        found = {
            f"{n} data, {size} weights": sp.expand(_change(*_net(n, size)) - _euler(*_net(n, size)))
            for n, size in sizes
        }
        kernel = catapult.output_map(f, ntk, e, lr, kappa)[1]  # lambda = kappa |theta|^2
        found["the map of one datum"] = (kernel - ntk) / kappa - lr * e * (lr * e * ntk - 4 * f)
        return found | degree_two()

    def rationals() -> str:
        generator = random.Random(3)

        def draw() -> sp.Rational:
            return sp.Rational(generator.randint(-9, 9), 7)

        n, size, zeta = 3, 4, sp.Rational(2, 5)
        for _ in range(10):
            theta, rate = sp.Matrix([draw() for _ in range(size)]), abs(draw()) + 1
            halves = [sp.Matrix(size, size, lambda i, j: draw()) for _ in range(n)]
            J = sp.Matrix.vstack(*[zeta * (theta.T * (half + half.T)) for half in halves])
            z = sp.Matrix([zeta / 2 * theta.dot((half + half.T) * theta) for half in halves])
            residual = z - sp.Matrix([draw() for _ in range(n)])
            pulled = J.T * residual
            stated = rate / n * (rate * pulled.dot(pulled) / n - 4 * residual.dot(z))
            if _change(residual, J, theta, rate) != stated:
                raise Refuted(f"the weight norm differs at theta = {list(theta)}")
        return "10 rational nets with 3 data and labels, stepped weight by weight: equal exactly"

    def simulation() -> str:
        generator = np.random.default_rng(4)
        inputs, targets = generator.standard_normal((5, 3)), generator.standard_normal(5)
        matrices = paired_matrices(5, 6, seed=5, low=0.5, high=1.5)
        for problem in (QuadraticNet(matrices, targets), TwoLayerNet(inputs, targets, 30)):
            start = problem.initial(6)
            rate = 2.5 / np.linalg.eigvalsh(problem.ntk(start))[-1]
            path = _path(problem, start, rate, 20)
            norms = np.sum(path**2, axis=1)
            for t, theta in enumerate(path[:-1]):
                residual, z = problem.residuals(theta)[:, 0], problem.outputs(theta)[:, 0]
                curved = rate * residual @ problem.ntk(theta) @ residual
                stated = rate / 5 * (curved - 4 * residual @ z)
                if abs(norms[t + 1] - norms[t] - stated) > 1e-12 * norms[0]:
                    raise Refuted(f"{type(problem).__name__}: the norm differs at step {t + 1}")
        return "a quadratic and a ReLU net with 5 data, 20 steps at eta lambda = 2.5: 1e-12"

    statement = sp.Eq(
        sp.Symbol("Delta|theta|^2"),
        lr / sp.Symbol("D") * (lr * sp.Symbol("(e.He)") - 4 * sp.Symbol("(e.z)")),
        evaluate=False,
    )
    claim = identity(
        "catapult_weight_norm",
        statement,
        differences,
        "equal for every Jacobian; quadratic and two-layer nets are of degree two",
        ["theta.grad z = 2 z", "D data, H the NTK over D, e = z - y"],
        simulation,
        source=f"{_PAPER} (decrease of the weight norm)",
    )

    def steps() -> list[Step]:
        residuals, J, theta = _net(2, 2)
        return [
            Step(
                "theta after one step, 2 data and 2 weights", _stepped(theta, J.T * residuals / 2)
            ),
            Step("change of |theta|^2", sp.factor(_change(residuals, J, theta))),
            Step("stated, with z = J theta / 2 and H = J J' / 2", _euler(residuals, J, theta)),
            *(Step(f"{text}: difference", x) for text, x in differences().items()),
        ]

    return replace(claim, derivation=steps, routes={**claim.routes, "rationals": rationals})


def _diagonal(n: int) -> tuple[sp.Matrix, sp.Matrix, sp.Matrix, sp.Matrix, list[sp.Expr]]:
    """Residuals, labels, J and theta in the eigenbases of the NTK, and lambda - (its eigenvalues).

    Rotations of the data and of theta change no norm, and what of theta no datum sees never moves:
    this is every net of degree two with n data (a singular NTK as a limit).
    """
    residuals, labels = sp.Matrix(sp.symbols(f"e1:{n + 1}")), sp.Matrix(sp.symbols(f"y1:{n + 1}"))
    j = sp.symbols(f"j1:{n + 1}", positive=True)
    theta = sp.Matrix([2 * (residuals[i] + labels[i]) / j[i] for i in range(n)])
    return residuals, labels, sp.diag(*j), theta, [ntk - x**2 / n for x in j]


def _threshold() -> Claim:
    """The weight norm falls in every step with eta lambda < 4 and |e| > 4 |y| / (4 - eta lambda)."""
    n = 3
    size, length = sp.symbols("|e| |y|", nonnegative=True)

    def parts() -> tuple[sp.Expr, sp.Expr, sp.Expr]:
        """-(D/eta) Delta|theta|^2, its lower bound, and what lies between: no term is negative."""
        residuals, labels, J, theta, gaps = _diagonal(n)
        fall = sp.expand(-n / lr * _change(residuals, J, theta))
        squares = sum(gap * x**2 for gap, x in zip(gaps, residuals, strict=True))
        bound = (4 - lr * ntk) * residuals.dot(residuals) - 4 * size * length
        return fall, bound, lr * squares + 4 * (size * length + residuals.dot(labels))

    def certificate() -> dict[str, sp.Expr]:
        residuals, labels, *_ = _diagonal(n)
        fall, bound, rest = parts()
        crossed = sum(
            (residuals[i] * labels[j] - residuals[j] * labels[i]) ** 2
            for i, j in combinations(range(n), 2)
        )
        squares, inner, ratio = residuals.dot(residuals), residuals.dot(labels), sp.Symbol("k")
        opposite = {y: -ratio * x for x, y in zip(residuals, labels, strict=True)}
        return {
            "fall less its bound is eta sum m_i e_i^2 + 4 (|e||y| + e.y), m_i >= 0": fall
            - bound
            - rest,
            "|e|^2 |y|^2 - (e.y)^2 is a sum of squares": squares * labels.dot(labels)
            - inner**2
            - crossed,
            "and |e||y| + e.y is 0 where y = -k e": ratio * squares + inner.subs(opposite),
        }

    def simulation() -> str:
        generator = np.random.default_rng(7)
        above, grew = 0, 0
        for seed in range(20):
            inputs, targets = generator.standard_normal((4, 2)), generator.standard_normal(4)
            problem = TwoLayerNet(inputs, targets, 60)
            theta = problem.initial(seed)
            rate = 3.0 / np.linalg.eigvalsh(problem.ntk(theta))[-1]
            path = _path(problem, theta, rate, 60)
            norms = np.sum(path**2, axis=1)
            for t, point in enumerate(path[:-1]):
                room = 4 - rate * np.linalg.eigvalsh(problem.ntk(point))[-1]
                residual = np.linalg.norm(problem.residuals(point))
                large = room > 0 and residual > 4 * np.linalg.norm(targets) / room
                rises = norms[t + 1] > norms[t] * (1 + 1e-14)
                if large and rises:
                    raise Refuted(f"the weight norm grows at step {t + 1} of net {seed}")
                above += large
                grew += rises
        if not above or not grew:
            raise Refuted(f"{above} steps above the threshold and {grew} rises decide nothing")
        return f"falls in all {above} steps above the threshold; the {grew} rises are below it"

    def symbolic() -> str:
        for meaning, difference in certificate().items():
            require_zero(difference, meaning)
        return "the fall exceeds its bound by terms that are not negative; equality is attained"

    def steps() -> list[Step]:
        names = ("-(D/eta) times the change of |theta|^2, D = 3", "its lower bound", "the rest")
        return [Step(name, x) for name, x in zip(names, parts(), strict=True)]

    fall = -sp.Symbol("D") / lr * sp.Symbol("Delta|theta|^2")
    return Claim(
        name="catapult_norm_threshold",
        statement=sp.Ge(fall, size * ((4 - lr * ntk) * size - 4 * length), evaluate=False),
        kind=Kind.LOWER,
        source=f"{_PAPER} (mechanism); form derived here",
        assumptions=["theta.grad z = 2 z", "D data, lambda the top eigenvalue of the NTK over D"],
        derivation=steps,
        routes={
            "symbolic": symbolic,
            "rationals": at_rationals(certificate, count=10),
            "simulation": simulation,
        },
    )


def _loss_sum() -> Claim:
    """Below 4 / (C |theta_0|^2), where lambda <= C |theta|^2, the losses have a finite sum: T steps."""
    n, T = 3, 5
    C, loss, start, now, last = sp.symbols("C L N_0 N N_T")
    t = sp.Symbol("t")
    total = sp.Sum(sp.Function("L")(t), (t, 0, sp.Symbol("T") - 1))
    room = 4 - lr * C * start

    def one_step() -> dict[str, sp.Expr]:
        """The change of |theta|^2 at y = 0 with what makes it an inequality, every term >= 0."""
        residuals, labels, J, theta, gaps = _diagonal(n)
        silent = dict.fromkeys(labels, 0)
        change = _change(residuals, J, theta).subs(silent)
        squares = sum(gap * x**2 for gap, x in zip(gaps, residuals, strict=True))
        mean = residuals.dot(residuals) / (2 * n)  # L
        exact = -2 * lr * (4 - lr * ntk) * mean - lr**2 / n * squares
        bounded = -2 * lr * room * loss
        rest = 2 * lr**2 * loss * (C * (start - now) + (C * now - ntk))
        return {
            "Delta|theta|^2 = -2 eta (4 - eta lambda) L - (eta^2/D) sum m_i e_i^2, m_i >= 0":
                sp.expand(change - exact),
            "and C|theta_0|^2 for lambda costs 2 eta^2 L [C (N_0 - N) + (C N - lambda)] >= 0":
                sp.expand(-2 * lr * (4 - lr * ntk) * loss - bounded + rest),
        }  # fmt: skip

    def telescoped() -> sp.Expr:
        """The bound less the sum of losses, less (|theta_T|^2 + all remainders) / (2 eta room)."""
        losses, remainders = sp.symbols(f"L0:{T}"), sp.symbols(f"rho0:{T}")
        norm = start
        for L, rho in zip(losses, remainders, strict=True):
            norm = norm - 2 * lr * room * L - rho
        bound = start / (2 * lr * room)
        return sp.cancel(bound - sum(losses) - (norm + sum(remainders)) / (2 * lr * room))

    def certificate() -> dict[str, sp.Expr]:
        return {**one_step(), f"telescoped over {T} steps": telescoped()}

    def symbolic() -> str:
        for meaning, difference in certificate().items():
            require_zero(difference, meaning)
        return f"each step's remainder is not negative, and {T} steps add up to the bound"

    def rationals() -> str:
        generator = random.Random(5)

        def draw() -> sp.Rational:
            return sp.Rational(generator.randint(-9, 9), 7)

        for _ in range(5):
            halves = [sp.Matrix(2, 2, lambda i, j: draw()) for _ in range(2)]
            matrices = [half + half.T for half in halves]  # zeta = 1, D = 2
            # trace Omega is above its largest eigenvalue, and rational
            constant = sum((matrix**2).trace() for matrix in matrices) / 2
            theta = sp.Matrix([draw() + 2, draw() - 3])
            first = theta.dot(theta)
            rate = sp.Rational(9, 10) * 4 / (constant * first)
            bound = first / (2 * rate * (4 - rate * constant * first))
            total, norm = sp.Integer(0), first
            for step in range(4):  # each step triples the digits
                J = sp.Matrix.vstack(*[theta.T * matrix for matrix in matrices])
                z = J * theta / 2
                total += z.dot(z) / 4
                theta = _stepped(theta, J.T * z / 2, rate)
                if theta.dot(theta) > norm or total > bound:
                    raise Refuted(f"norm {norm} to {theta.dot(theta)}, sum {total} at step {step}")
                norm = theta.dot(theta)
        return "5 rational nets with 2 data, 4 steps each: norm and sum obey, exactly"

    def simulation() -> str:
        matrices = paired_matrices(3, 10, seed=8, low=0.9, high=1.1)
        shares = []
        inputs = np.random.default_rng(9).standard_normal((3, 2))
        for problem in (QuadraticNet(matrices, np.zeros(3)), TwoLayerNet(inputs, np.zeros(3), 50)):
            theta = problem.initial(10)
            constant = problem.ntk_bound(theta)  # C |theta_0|^2
            rate = 0.9 * 4 / constant
            path = _path(problem, theta, rate, 3000)
            losses = [problem.loss(point) for point in path]
            bound = theta @ theta / (2 * rate * (4 - rate * constant))
            if (np.diff(np.sum(path**2, axis=1)) > 1e-13 * (theta @ theta)).any():
                raise Refuted(f"{type(problem).__name__}: the weight norm grows")
            shares.append(sum(losses) / bound)
            if shares[-1] > 1 or losses[-1] > 1e-3 * losses[0]:
                raise Refuted(f"{type(problem).__name__}: sum of losses {shares[-1]} of its bound")
        return (
            "a quadratic and a ReLU net with 3 data at 0.9 of the rate: loss to 0, sums "
            f"{shares[0]:.1g} and {shares[1]:.1g} of the bound"
        )

    def steps() -> list[Step]:
        rest = sp.Sum(sp.Function("rho")(t), (t, 0, sp.Symbol("T") - 1))
        exact = (start - last - rest) / (2 * lr * room)
        return [
            Step("change of N = |theta|^2 in a step, less a remainder rho", -2 * lr * room * loss),
            *(Step(f"{text}: difference", x) for text, x in certificate().items()),
            Step("so N never exceeds N_0, and the losses of T steps add up to", exact),
        ]

    return Claim(
        name="catapult_loss_sum",
        statement=sp.Ge(start / (2 * lr * room), total, evaluate=False),
        kind=Kind.UPPER,
        source=f"{_PAPER} (convergence below the bound); sum derived here",
        assumptions=[
            "theta.grad z = 2 z, labels 0, N_0 = |theta_0|^2",
            "lambda <= C |theta|^2 for all theta, and eta C N_0 < 4",
        ],
        derivation=steps,
        routes={"symbolic": symbolic, "rationals": rationals, "simulation": simulation},
    )


def claims() -> list[Claim]:
    """Moments, bias, weight norm of any data, its threshold, and the sum of the losses."""
    return [_moments(), _bias(), _weight_norm(), _threshold(), _loss_sum()]
