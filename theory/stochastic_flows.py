r"""The Ornstein-Uhlenbeck process with SGD's covariance on a quadratic."""

from __future__ import annotations

import numpy as np
import sympy as sp

import eosim
from eosim.flows.stochastic import OrnsteinUhlenbeck
from theory.claim import Claim, Kind, Refuted, Step, require_zero

h, s, c = sp.symbols("h S C", positive=True)
u, v = sp.symbols("u v", positive=True)  # 1 - z_i and 1 - z_j, both positive
t = sp.Symbol("t", positive=True)


def _solution() -> sp.Expr:
    """C(t) of dC/dt = (a_i + a_j) C + D with a = log(1 - z)/h and D = h S log(q)/(q - 1), q = u v."""
    q, rate = u * v, (sp.log(u) + sp.log(v)) / h
    diffusion = h * s * (sp.log(u) + sp.log(v)) / (q - 1)
    return c * sp.exp(rate * t) + diffusion * (sp.exp(rate * t) - 1) / rate


def _covariance() -> Claim:
    def steps() -> list[Step]:
        return [
            Step("entry ij of the covariance of the process, from C at t = 0", _solution()),
            Step("at t = h", sp.simplify(_solution().subs(t, h))),
            Step("one step of SGD: (1 - z_i)(1 - z_j) C + h^2 S", u * v * c + h**2 * s),
        ]

    def symbolic() -> str:
        rate = (sp.log(u) + sp.log(v)) / h
        diffusion = h * s * (sp.log(u) + sp.log(v)) / (u * v - 1)
        require_zero(
            sp.diff(_solution(), t) - rate * _solution() - diffusion, "covariance equation"
        )
        after = sp.expand_log(_solution().subs(t, h), force=True)
        require_zero(sp.simplify(after) - (u * v * c + h**2 * s), "one step")
        return "solves its equation, and one step later it is u v C + h^2 S: hence every step"

    def numbers() -> str:
        generator = np.random.default_rng(0)
        worst = 0.0
        for _ in range(20):
            dim = int(generator.integers(1, 6))
            basis = np.linalg.qr(generator.standard_normal((dim, dim)))[0]
            hessian = (basis * generator.uniform(-1, 1.3, dim)) @ basis.T
            hessian = (hessian + hessian.T) / 2
            root = generator.standard_normal((dim, dim))
            lr, noise = 0.7, root @ root.T
            process = OrnsteinUhlenbeck(hessian, lr, noise)
            contraction, expected = np.eye(dim) - lr * hessian, np.zeros((dim, dim))
            for found in process.covariance(lr * np.arange(15)):
                size = max(1.0, np.abs(expected).max())
                worst = max(worst, np.abs(found - expected).max() / size)
                expected = contraction @ expected @ contraction + lr**2 * noise
        if worst > 1e-12:
            raise Refuted(f"the covariances differ by {worst:.2g}")
        return f"20 random matrices, 15 steps: shipped process within {worst:.0e} of the recursion"

    def simulation() -> str:
        # SGD on least squares at its minimum-norm noise: compare the drift with the shipped flow
        hessian = np.diag([0.2, 0.9])
        process = OrnsteinUhlenbeck(hessian, 0.8, np.eye(2))
        flow = eosim.PrincipalFlow(eosim.Quadratic(hessian), 0.8)
        mean = process.mean([1.0, -2.0], 0.8 * np.arange(6))
        error = np.abs(mean - eosim.closed_form(flow, [1.0, -2.0], 0.8 * np.arange(6))).max()
        if error > 1e-13:
            raise Refuted(f"the mean differs from the principal flow by {error:.2g}")
        return f"its mean is the principal flow, within {error:.0e}"

    q, C = sp.symbols("q_ij C_ij")
    S = sp.Symbol("S_ij")
    return Claim(
        name="sgd_ornstein_uhlenbeck",
        statement=sp.Eq(sp.Function("C_ij")(t + h), q * C + h**2 * S, evaluate=False),
        kind=Kind.EXACT,
        source="derived here; drift as in HA-SME, Li et al. 2024, arXiv 2405.18373",
        assumptions=[
            "quadratic loss, every z = h lambda < 1",
            "S the covariance of the gradient noise of one step, q_ij = (1 - z_i)(1 - z_j)",
            "D_ij = h S_ij log(q_ij)/(q_ij - 1), which need not be positive semi-definite",
        ],
        derivation=steps,
        routes={"symbolic": symbolic, "numbers": numbers, "simulation": simulation},
    )


def claims() -> list[Claim]:
    """The covariance identity."""
    return [_covariance()]
