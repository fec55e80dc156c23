"""The proofs, and that a wrong formula or a wrong step cannot pass them."""

import sys
import textwrap

import numpy as np
import pytest
import sympy as sp

import eosim
import theory.principal_flow
from eosim import catapult
from eosim.flows.stochastic import OrnsteinUhlenbeck
from theory import Claim, Refuted, Verdict, claims
from theory.__main__ import main
from theory.jury import jury_conditions
from theory.linear_stability import derive
from theory.modified_flows import modified_field

z = sp.Symbol("z")
eta, beta = sp.symbols("eta beta", positive=True)


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.name)
def test_every_route_of_every_claim_holds(claim):
    verdicts = claim.check()
    assert len(verdicts) >= 2
    assert [f"{v.route}: {v.evidence}" for v in verdicts if not v.holds] == []


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.name)
def test_every_claim_has_a_derivation_a_source_and_latex(claim):
    assert claim.steps()
    assert claim.source
    assert "=" in claim.latex() or "\\geq" in claim.latex()


# --- Jury's conditions ---------------------------------------------------------------------------


@pytest.mark.parametrize("order", range(1, 7))
def test_jury_conditions_decide_as_the_roots_do(order):
    generator = np.random.default_rng(order)
    seen = set()
    for _ in range(60):
        roots = [complex(r) for r in generator.uniform(-1.15, 1.15, order % 2)]
        for _ in range(order // 2):
            modulus, angle = generator.uniform(0.3, 1.15), generator.uniform(0, np.pi)
            roots += [modulus * np.exp(1j * angle), modulus * np.exp(-1j * angle)]
        coefficients = [sp.Rational(c.real).limit_denominator(10**6) for c in np.poly(roots)]
        inside = max(abs(np.roots([float(c) for c in coefficients]))) < 1
        conditions = jury_conditions(sp.Poly(coefficients, z))
        assert all(condition > 0 for condition in conditions.values()) == inside
        seen.add(inside)
    assert seen == {True, False}


def test_the_complex_pair_condition_is_the_product_over_pairs_of_roots():
    roots = sp.symbols("r1:5")
    polynomial = sp.Poly(sp.expand(sp.prod([z - r for r in roots])), z)
    product = sp.prod([1 - a * b for i, a in enumerate(roots) for b in roots[i + 1 :]])
    assert sp.expand(jury_conditions(polynomial)["complex pair"] - product) == 0


# --- the engine on a user's rule -------------------------------------------------------------------


class CascadedEMA:
    """Two exponential averages in a row: a rule as a user would write it."""

    def __init__(self, lr, beta1, beta2):
        self.lr, self.beta1, self.beta2 = lr, beta1, beta2

    def init(self, theta):
        return 0 * theta, 0 * theta

    def step(self, theta, state, gradient):
        first, second = state
        first = self.beta1 * first + (1 - self.beta1) * gradient
        second = self.beta2 * second + (1 - self.beta2) * first
        return theta - self.lr * second, (first, second)


def test_a_users_cascade_has_both_branches_and_both_bind_somewhere():
    derivation = derive(CascadedEMA)
    lr, b1, b2 = (derivation.symbols[name] for name in ("lr", "beta1", "beta2"))
    expected = {
        "root at z = -1": 2 * (1 + b1) * (1 + b2) / ((1 - b1) * (1 - b2) * lr),
        "complex pair": (1 - b1 * b2) / (b1 * b2 * lr),
    }
    assert derivation.branches.keys() == expected.keys() == derivation.binding.keys()
    for name, branch in expected.items():
        assert sp.simplify(derivation.branches[name] - branch) == 0
    derivation.check_spectral()
    derivation.check_simulation()


def test_the_equal_cascade_changes_branch_at_one_third():
    derivation = derive(CascadedEMA)
    lr, b1, b2 = (derivation.symbols[name] for name in ("lr", "beta1", "beta2"))
    branches = [
        branch.subs({lr: 1, b1: sp.Rational(1, 3), b2: sp.Rational(1, 3)})
        for branch in derivation.branches.values()
    ]
    assert branches == [8, 8]


def test_quasi_hyperbolic_momentum_loses_stability_by_a_complex_pair_beyond_nu_one():
    derivation = derive(eosim.QuasiHyperbolic)
    assert set(derivation.binding) == {"root at z = -1", "complex pair"}
    within = derive(eosim.QuasiHyperbolic, within={"nu": (0, 1)})
    assert set(within.branches) == {"root at z = -1"}


def test_an_adaptive_or_counting_rule_is_refused_with_its_reason():
    class Cubic:
        def __init__(self, lr):
            self.lr = lr

        def init(self, theta):
            return ()

        def step(self, theta, state, gradient):
            return theta - self.lr * gradient**3, ()

    class Counting(Cubic):
        def init(self, theta):
            return (0,)

        def step(self, theta, state, gradient):
            return theta - self.lr * gradient, (state[0] + 1,)

    with pytest.raises(ValueError, match="not linear"):
        _ = derive(Cubic).matrix
    with pytest.raises(ValueError, match="counts its steps"):
        _ = derive(Counting).matrix


def test_backward_error_analysis_of_any_loss_gives_the_bushy_tree_coefficients():
    fields, slopes = modified_field(4)
    for order, bernoulli in enumerate(["-1/2", "1/12", "0", "-1/720"], start=1):
        tree = slopes[order] * slopes[0] ** order
        # B_n/n! of the field -E', whose n-th derivative enters with sign (-1)^(n+1)
        sign = (-1) ** (order + 1)
        assert fields[order].coeff(tree) == sign * sp.Rational(bernoulli)


# --- mutations: each must make the command fail ----------------------------------------------------

RULES = {
    "gradient_descent": eosim.GradientDescent,
    "heavy_ball": eosim.HeavyBall,
    "nesterov": eosim.Nesterov,
    "ema_momentum": eosim.EMAMomentum,
    "quasi_hyperbolic": eosim.QuasiHyperbolic,
    "quasi_hyperbolic_any_nu": eosim.QuasiHyperbolic,
}


def symbolic_route(name):
    (claim,) = [claim for claim in claims() if claim.name == name]
    return claim.routes["symbolic"]


@pytest.mark.parametrize("name", RULES)
def test_a_wrong_closed_form_is_refuted(name, monkeypatch):
    rule = RULES[name]
    method = "critical_branches" if hasattr(rule, "critical_branches") else "critical_sharpness"
    correct = getattr(rule, method)

    def mutated(self):
        result = correct(self)
        factor = sp.Rational(1001, 1000)
        return tuple(factor * b for b in result) if isinstance(result, tuple) else factor * result

    monkeypatch.setattr(rule, method, mutated)
    with pytest.raises(Refuted, match="closed form"):
        symbolic_route(name)()


@pytest.mark.parametrize("name", RULES)
def test_a_wrong_step_is_refuted(name, monkeypatch):
    rule = RULES[name]
    correct = rule.step

    def mutated(self, theta, state, gradient):
        return correct(self, theta, state, sp.Rational(1001, 1000) * gradient)

    monkeypatch.setattr(rule, "step", mutated)
    with pytest.raises(Refuted, match="closed form"):
        symbolic_route(name)()


FLOWS = {
    "modified_flow_2": eosim.ModifiedFlow,
    "modified_flow_3": eosim.ModifiedFlow,
    "modified_flow_4": eosim.ModifiedFlow,
    "principal_flow_drift": eosim.PrincipalSeries,
}


@pytest.mark.parametrize("name", FLOWS)
def test_a_wrong_truncated_field_is_refuted(name, monkeypatch):
    flow = FLOWS[name]
    correct = flow.field

    def mutated(self, theta, branch=None):
        g = self.problem.gradient(theta)
        return correct(self, theta) + self.lr * self.problem.hvp(theta, g) / 1000

    monkeypatch.setattr(flow, "field", mutated)
    with pytest.raises(Refuted, match="drift"):
        symbolic_route(name)()


def test_a_wrong_heavy_ball_step_is_refuted_by_its_logarithm(monkeypatch):
    correct = eosim.HeavyBall.step
    monkeypatch.setattr(
        eosim.HeavyBall,
        "step",
        lambda self, theta, state, g: correct(self, theta, state, sp.Rational(1001, 1000) * g),
    )
    with pytest.raises(Refuted, match="log rho"):
        symbolic_route("heavy_ball_logarithm")()


def test_a_wrong_rate_is_refuted_by_both_claims_about_it(monkeypatch):
    correct = eosim.DAL.rate
    monkeypatch.setattr(eosim.DAL, "rate", lambda self, g, local: 0.999 * correct(self, g, local))
    for claim in claims():
        if claim.name.startswith("dal_"):
            with pytest.raises(Refuted):
                claim.routes["numbers"]()


def test_a_wrong_process_is_refuted(monkeypatch):
    correct = OrnsteinUhlenbeck.covariance
    monkeypatch.setattr(
        OrnsteinUhlenbeck, "covariance", lambda self, times: 1.001 * correct(self, times)
    )
    (claim,) = [claim for claim in claims() if claim.name == "sgd_ornstein_uhlenbeck"]
    with pytest.raises(Refuted, match="covariances differ"):
        claim.routes["numbers"]()


@pytest.mark.parametrize("name", ["principal_flow_exact", "principal_coefficient_series"])
def test_a_wrong_descent_step_is_refuted_by_the_principal_flow(name, monkeypatch):
    monkeypatch.setattr(
        eosim.GradientDescent, "step", lambda self, theta, state, g: (theta - 2 * self.lr * g, ())
    )
    with pytest.raises(Refuted):
        symbolic_route(name)()


@pytest.mark.parametrize(
    "name",
    [
        "principal_flow_exact",
        "principal_coefficient_series",
        "principal_flow_regimes",
        "loss_rate",
    ],
)
def test_a_wrong_coefficient_is_refuted(name, monkeypatch):
    monkeypatch.setattr(
        theory.principal_flow,
        "principal_coefficient",
        lambda z, log: sp.Rational(1001, 1000) * log / z,
    )
    with pytest.raises(Refuted):
        symbolic_route(name)()


def test_a_refuted_claim_makes_the_command_fail_and_names_it(monkeypatch, capsys):
    monkeypatch.setattr(eosim.HeavyBall, "critical_sharpness", lambda self: 2 / self.lr)
    assert main(["check", "heavy_ball"]) == 1
    printed = capsys.readouterr().out
    assert "symbolic FAILS" in printed
    assert "spectral FAILS" in printed
    assert "heavy_ball FAILED" in printed


# --- the command line --------------------------------------------------------------------------------


def test_listing_gives_a_verdict_for_every_claim(monkeypatch, capsys):
    monkeypatch.setattr(Claim, "check", lambda self: [Verdict("symbolic", True, "", 0.0)])
    assert main([]) == 0
    printed = capsys.readouterr().out
    for claim in claims():
        assert claim.name in printed
    assert "every route holds" in printed


def test_show_prints_derivation_and_latex(capsys):
    assert main(["show", "ema_momentum"]) == 0
    printed = capsys.readouterr().out
    assert "characteristic polynomial" in printed
    assert r"\lambda_{c} = " in printed


def test_an_unknown_name_is_a_usage_error_that_lists_the_claims(capsys):
    assert main(["check", "adam_s"]) == 2
    assert "heavy_ball" in capsys.readouterr().err


def test_derive_proves_the_threshold_of_a_rule_in_the_users_own_module(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "my_rules.py").write_text(
        textwrap.dedent("""
        class Damped:
            def __init__(self, lr, decay):
                self.lr, self.decay = lr, decay
            def init(self, theta):
                return ()
            def step(self, theta, state, gradient):
                return (1 - self.decay) * theta - self.lr * gradient, ()
            def critical_sharpness(self):
                return (2 - self.decay) / self.lr
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["derive", "my_rules:Damped"]) == 0
    assert "symbolic holds" in capsys.readouterr().out
    assert main(["derive", "my_rules:Missing"]) == 2
    assert main(["derive", "no_colon"]) == 2


MAPS = {
    "catapult_recurrence": ("output_map", 1),
    "catapult_phase_boundaries": ("residual_map", 1),
    "catapult_invariants": ("factor_map", 0),
    "catapult_period_two": ("balanced_map", None),
    "catapult_angle_tripling": ("residual_map", 0),
    "catapult_final_ntk": ("first_integral", None),
    "catapult_moments": ("moment_map", None),
    "catapult_bias": ("bias_map", 2),
    "catapult_weight_norm": ("output_map", 1),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_wrong_catapult_map_is_refuted(name, monkeypatch):
    function, entry = MAPS[name]
    correct, factor = getattr(catapult, function), sp.Rational(1001, 1000)

    def mutated(*arguments):
        result = correct(*arguments)
        if entry is None:
            return factor * result
        return tuple(factor * x if k == entry else x for k, x in enumerate(result))

    monkeypatch.setattr(catapult, function, mutated)
    with pytest.raises(Refuted):
        symbolic_route(name)()


@pytest.mark.parametrize(
    "name",
    [
        "catapult_moments",
        "catapult_bias",
        "catapult_weight_norm",
        "catapult_norm_threshold",
        "catapult_loss_sum",
    ],
)
def test_a_wrong_descent_step_is_refuted_by_the_weight_norm(name, monkeypatch):
    correct = eosim.GradientDescent.step
    monkeypatch.setattr(
        eosim.GradientDescent,
        "step",
        lambda self, theta, state, g: correct(self, theta, state, sp.Rational(1001, 1000) * g),
    )
    with pytest.raises(Refuted):
        symbolic_route(name)()
