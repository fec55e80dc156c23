"""The proofs about adaptive rules, and that a wrong formula or a wrong step cannot pass them."""

import dataclasses

import numpy as np
import pytest
import sympy as sp

import eosim
import theory
from eosim.optimizers import CoupledL2, Frozen
from theory import Refuted, adaptive, averages
from theory.linear_stability import derive

OFF = sp.Rational(1001, 1000)


HOME = {claim.name: subject for subject in (adaptive, averages) for claim in subject.claims()}
CLAIMS = {claim.name: claim for subject in (adaptive, averages) for claim in subject.claims()}


def test_both_subjects_are_part_of_what_the_command_checks():
    assert {adaptive.claims, averages.claims} <= set(theory._SUBJECTS)


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_every_route_of_every_claim_holds(claim):
    verdicts = claim.check()
    assert len(verdicts) >= 2
    assert [f"{v.route}: {v.evidence}" for v in verdicts if not v.holds] == []
    assert claim.steps()
    assert "=" in claim.latex()


def refuted(name, route="symbolic"):
    """Whether a route of the claim, built from the code as it is now, contradicts it."""
    (claim,) = [claim for claim in HOME[name].claims() if claim.name == name]
    try:
        claim.routes[route]()
    except Refuted:
        return True
    return False


RULES = {
    "rmsprop": eosim.RMSProp,
    "adam": eosim.Adam,
    "adamw": eosim.AdamW,
    "nadam": eosim.NAdam,
    "adam_l2": eosim.Adam,
    "parallel_ema": eosim.ParallelEMA,
    "cascaded_ema": eosim.CascadedEMA,
}


def scale_threshold(monkeypatch, rule, factor):
    """The closed form of a rule is off by a factor."""
    method = "critical_branches" if hasattr(rule, "critical_branches") else "critical_sharpness"
    correct = getattr(rule, method)

    def mutated(self):
        result = correct(self)
        return tuple(factor * b for b in result) if isinstance(result, tuple) else factor * result

    monkeypatch.setattr(rule, method, mutated)


@pytest.mark.parametrize("name", RULES)
def test_a_wrong_closed_form_is_refuted(name, monkeypatch):
    scale_threshold(monkeypatch, RULES[name], OFF)
    assert refuted(name)


@pytest.mark.parametrize(
    ("name", "percent"), list(zip(RULES, [95, 105, 95, 105, 95, 105, 95], strict=True))
)
def test_the_numeric_routes_refute_a_threshold_that_is_five_percent_off(name, percent, monkeypatch):
    scale_threshold(monkeypatch, RULES[name], sp.Rational(percent, 100))
    assert refuted(name, "spectral")
    assert refuted(name, "simulation")


@pytest.mark.parametrize(
    ("name", "rule", "route"),
    [
        ("adamw", "AdamW", "limit"),
        ("frozen_preconditioner", "Adam", "simulation"),
        ("frozen_preconditioner", "Adam", "rationals"),
        ("cascaded_ema_pair", "CascadedEMA", "simulation"),
        ("cascaded_ema_pair", "CascadedEMA", "rationals"),
        ("parallel_ema_period_two", "ParallelEMA", "simulation"),
        ("parallel_ema_period_two", "ParallelEMA", "rationals"),
        ("ema_heavy_ball", "EMAMomentum", "rationals"),
    ],
)
def test_the_other_routes_refute_it_too(name, rule, route, monkeypatch):
    scale_threshold(monkeypatch, getattr(eosim, rule), 1.05)
    assert refuted(name, route)


@pytest.mark.parametrize("route", ["rationals", "simulation"])
def test_wrong_limits_of_ringing_are_refuted(route, monkeypatch):
    correct = eosim.EMAMomentum.step
    monkeypatch.setattr(
        eosim.EMAMomentum,
        "step",
        lambda self, theta, state, g: correct(self, theta, state, OFF * g),
    )
    assert refuted("ema_ringing", route)


@pytest.mark.parametrize("kind", ["AMSGrad", "Padam", "Adafactor"])
def test_a_wrong_step_on_arrays_is_refuted(kind, monkeypatch):
    rule = getattr(eosim, kind)
    correct = rule.step

    def mutated(self, theta, state, gradient):
        after, memory = correct(self, theta, state, gradient)
        return after + (after - theta) / 1000, memory

    monkeypatch.setattr(rule, "step", mutated)
    assert refuted("preconditioned_step", "simulation")


def test_decay_that_is_not_in_the_gradient_is_refuted(monkeypatch):
    monkeypatch.setattr(
        CoupledL2, "step", lambda self, theta, state, g: self.rule.step(theta, state, g)
    )
    assert refuted("adam_l2")


@pytest.mark.parametrize(
    ("name", "rule", "linear"),
    [
        ("rmsprop", eosim.RMSProp, lambda self: eosim.GradientDescent(OFF * self.lr)),
        ("adam", eosim.Adam, lambda self: eosim.HeavyBall(self.lr, self.beta1)),
        ("adamw", eosim.AdamW, lambda self: eosim.EMAMomentum(self.lr, self.beta1)),
        ("nadam", eosim.NAdam, lambda self: eosim.QuasiHyperbolic(self.lr, self.beta1, nu=1)),
    ],
)
def test_a_wrong_linear_rule_is_refuted_by_its_step(name, rule, linear, monkeypatch):
    monkeypatch.setattr(rule, "linear", linear)
    assert refuted("preconditioned_step")
    assert refuted("preconditioned_step", "numbers")


@pytest.mark.parametrize("member", ["AMSGrad", "Padam", "Adafactor"])
def test_a_member_of_the_family_with_another_linear_rule_is_refuted(member, monkeypatch):
    monkeypatch.setattr(
        getattr(eosim, member), "linear", lambda self: eosim.HeavyBall(self.lr, self.beta1)
    )
    assert refuted("adam", "family")


def test_adagrad_with_another_threshold_is_refuted(monkeypatch):
    monkeypatch.setattr(eosim.AdaGrad, "critical_sharpness", lambda self: 3 / self.lr)
    assert refuted("rmsprop", "family")


@pytest.mark.parametrize("kind", ["RMSProp", "AdaGrad", "Adam", "AdamW", "NAdam"])
def test_a_wrong_live_step_is_refuted(kind, monkeypatch):
    rule = getattr(eosim, kind)
    correct = rule.step

    def mutated(self, theta, state, gradient):
        after, memory = correct(self, theta, state, gradient)
        return after + (after - theta) / 1000, memory

    monkeypatch.setattr(rule, "step", mutated)
    assert refuted("preconditioned_step")
    assert refuted("preconditioned_step", "numbers")
    assert refuted("adam_bias_correction") == (kind == "Adam")


def test_a_preconditioner_without_the_factor_of_the_average_is_refuted(monkeypatch):
    monkeypatch.setattr(
        eosim.Adam,
        "_divisor",
        lambda self, square, t: self._power(square / (1 - self.beta2**t)),
    )
    assert refuted("adam_bias_correction")
    assert refuted("adam_bias_correction", "numbers")


def test_a_frozen_rule_that_multiplies_by_P_is_refuted(monkeypatch):
    monkeypatch.setattr(
        Frozen,
        "step",
        lambda self, theta, state, g: self.rule.step(theta, state, g * self.diagonal),
    )
    for name in ("rmsprop", "adam", "preconditioned_step", "frozen_preconditioner"):
        assert refuted(name), name


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("EMAMomentum", ("adam", "ema_heavy_ball", "ema_ringing", "frozen_preconditioner")),
        ("HeavyBall", ("ema_heavy_ball",)),
        ("ParallelEMA", ("parallel_ema", "parallel_ema_period_two")),
        ("CascadedEMA", ("cascaded_ema", "cascaded_ema_pair")),
        ("DecoupledDecay", ("adamw",)),
    ],
)
def test_a_wrong_linear_step_is_refuted(rule, names, monkeypatch):
    kind = getattr(eosim.optimizers, rule)
    correct = kind.step
    monkeypatch.setattr(
        kind, "step", lambda self, theta, state, g: correct(self, theta, state, OFF * g)
    )
    for name in names:
        assert refuted(name), name


def test_wrong_branches_of_the_cascade_move_the_pole_where_they_meet(monkeypatch):
    correct = eosim.CascadedEMA.critical_branches
    monkeypatch.setattr(
        eosim.CascadedEMA,
        "critical_branches",
        lambda self: (OFF * correct(self)[0], correct(self)[1]),
    )
    assert refuted("cascaded_ema_pair")


def test_the_threshold_of_the_curvature_is_P_times_that_of_the_preconditioned_one():
    statement = CLAIMS["adam"].statement
    (P,) = [s for s in statement.rhs.free_symbols if s.name == "P"]
    values = {s: sp.Rational(9, 10) if s.name == "beta1" else 1 for s in statement.rhs.free_symbols}
    assert statement.rhs.subs(values) == 38
    assert sp.diff(statement.rhs, P) * P == statement.rhs


@pytest.mark.parametrize(("b", "binding"), [("1/4", "root at z = -1"), ("1/2", "complex pair")])
def test_equal_poles_below_a_third_flip_and_above_rotate(b, binding):
    derivation = derive(eosim.CascadedEMA)
    point = dict.fromkeys(derivation.symbols.values(), sp.Rational(b))
    values = {name: branch.subs(point) for name, branch in derivation.branches.items()}
    assert min(values, key=values.get) == binding


def test_the_binding_branch_of_the_cascade_changes_at_a_third_in_numbers():
    for b, flips in ((0.33, True), (0.34, False)):
        rule = eosim.CascadedEMA(1.0, b, b)
        drift, response = eosim.stability.linear.linearised(rule)
        drift[:, 0] += rule.critical_sharpness() * response
        roots = np.linalg.eigvals(drift)
        outermost = roots[np.abs(roots).argmax()]
        assert (abs(outermost.imag) < 1e-6) == flips
        assert dataclasses.replace(rule, lr=2.0).critical_sharpness() * 2 == pytest.approx(
            rule.critical_sharpness()
        )
