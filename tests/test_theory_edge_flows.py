"""The proofs about flows at the edge, and that a wrong formula, step or flow cannot pass them."""

import pytest
import sympy as sp

import eosim
import theory
from eosim.flows import CentralFlow, EdgeFlow, RodFlow
from eosim.flows import self_stabilization as recursion
from eosim.optimizers import ScalarRMSProp
from theory import Refuted, central_adaptive, central_flow, edge_flows, self_stabilization

OFF, NEAR = sp.Rational(1001, 1000), 1.001  # on symbols, and on arrays
SUBJECTS = (central_flow, central_adaptive, edge_flows, self_stabilization)
HOME = {claim.name: subject for subject in SUBJECTS for claim in subject.claims()}
CLAIMS = {claim.name: claim for subject in SUBJECTS for claim in subject.claims()}


def test_all_subjects_are_part_of_what_the_command_checks():
    assert {subject.claims for subject in SUBJECTS} <= set(theory._SUBJECTS)


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_every_route_of_every_claim_holds(claim):
    verdicts = claim.check()
    assert len(verdicts) >= 2
    assert [f"{v.route}: {v.evidence}" for v in verdicts if not v.holds] == []
    assert claim.steps()
    assert "=" in claim.latex()


# --- what can be wrong: each entry puts one thing off ---


def moved_too_far(rule, factor):
    """A shipped step whose move is off by a factor."""
    correct = rule.step

    def step(self, theta, state, gradient):
        after, memory = correct(self, theta, state, gradient)
        return theta + factor * (after - theta), memory

    return lambda monkeypatch: monkeypatch.setattr(rule, "step", step)


def old_moments(rule):
    """A shipped step that is divided by the second moments without the current gradient."""
    correct = rule.step

    def step(self, theta, state, gradient):
        after, memory = correct(self, theta, state, gradient)
        return after, (OFF * memory[0], *memory[1:])

    return lambda monkeypatch: monkeypatch.setattr(rule, "step", step)


def shifted(owner, name, factor, shift=0):
    """A function of the code, its results times a factor plus a shift."""
    correct = getattr(owner, name)

    def mutated(*arguments, **options):
        found = correct(*arguments, **options)
        if isinstance(found, tuple):
            return (*found[:-1], factor * found[-1] + shift)
        if isinstance(found, list):
            return [factor * entry + shift for entry in found]
        return factor * found + shift

    return lambda monkeypatch: monkeypatch.setattr(owner, name, mutated)


def replaced(owner, name, value):
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


DESCENT = moved_too_far(eosim.GradientDescent, OFF)
DESCENT_ARRAYS = moved_too_far(eosim.GradientDescent, NEAR)
SCALAR, ADAPTIVE = old_moments(ScalarRMSProp), old_moments(eosim.RMSProp)
CENTRAL = shifted(CentralFlow, "field", 1, 1e-3)
SPREAD = shifted(CentralFlow, "covariance", NEAR)
ROD, ROD_ARRAYS = shifted(RodFlow, "field", OFF), shifted(RodFlow, "field", NEAR)
ROD_SHIFTED = shifted(RodFlow, "field", 1, 1e-3)
EDGE = shifted(EdgeFlow, "field", NEAR)
VARIANCE = shifted(central_flow, "held_variance", OFF)
LAG = replaced(central_adaptive, "c2", OFF * central_adaptive.c2)
RESTING = shifted(central_adaptive, "resting_preconditioner", OFF)
RESTING_ARRAYS = shifted(central_adaptive, "resting_preconditioner", NEAR)
FRUSTRATED = shifted(central_adaptive, "frustrated_preconditioner", OFF)
STEP = shifted(recursion, "step", OFF)
WRONG_END = shifted(edge_flows, "product_end", OFF)

MUTATIONS = [
    ("central_flow_variance", ["symbolic", "rationals"], VARIANCE),
    ("central_flow_variance", ["symbolic", "rationals"], DESCENT),
    ("central_flow_variance", ["flow"], VARIANCE),
    ("central_flow_variance", ["flow"], CENTRAL),
    ("edge_two_cycle", ["symbolic", "numbers"], DESCENT),
    ("edge_two_cycle", ["symbolic", "numbers"], shifted(central_flow, "excess_limit", OFF)),
    ("edge_two_cycle", ["spectral", "simulation"], shifted(central_flow, "excess_limit", 0.9)),
    ("edge_two_cycle", ["spectral", "simulation"], shifted(central_flow, "excess_limit", 1.1)),
    ("edge_two_cycle", ["flow"], CENTRAL),
    ("central_flow_slow_variable", ["symbolic", "numbers"], VARIANCE),
    ("central_flow_slow_variable", ["flow"], CENTRAL),
    ("edge_locking", ["symbolic", "numbers"], DESCENT),
    ("edge_locking", ["symbolic", "numbers"], shifted(central_flow, "locking_limit", OFF)),
    ("edge_locking", ["spectral", "simulation"], shifted(central_flow, "locking_limit", 0.8)),
    ("edge_locking", ["spectral", "simulation"], shifted(central_flow, "locking_limit", 1.25)),
    ("edge_locking", ["flow"], SPREAD),
    ("central_flow_scalar_rmsprop", ["symbolic", "rationals"], SCALAR),
    ("central_flow_scalar_rmsprop", ["symbolic", "rationals", "flow"], LAG),
    ("central_flow_scalar_rmsprop", ["flow"], CENTRAL),
    ("central_flow_rmsprop", ["symbolic", "numbers"], ADAPTIVE),
    ("central_flow_rmsprop", ["symbolic", "numbers", "flow"], LAG),
    ("central_flow_rmsprop", ["flow"], CENTRAL),
    ("scalar_rmsprop_two_cycle", ["symbolic", "numbers"], SCALAR),
    ("scalar_rmsprop_two_cycle", ["symbolic", "numbers"], moved_too_far(ScalarRMSProp, OFF)),
    ("scalar_rmsprop_two_cycle", ["simulation"], moved_too_far(ScalarRMSProp, NEAR)),
    ("scalar_rmsprop_two_cycle", ["flow"], CENTRAL),
    ("stationary_preconditioner", ["symbolic", "numbers"], RESTING),
    ("stationary_preconditioner", ["flow", "feasible"], RESTING_ARRAYS),
    ("stationary_preconditioner", ["symbolic", "numbers"], moved_too_far(eosim.RMSProp, OFF)),
    ("stationary_preconditioner", ["simulation"],
     shifted(central_adaptive, "resting_preconditioner", 1.05)),
    ("stationary_preconditioner", ["simulation"], moved_too_far(eosim.RMSProp, 1.1)),
    ("stationary_preconditioner", ["flow"], SPREAD),
    ("frustrated_preconditioner", ["signs", "flow"], FRUSTRATED),
    ("frustrated_preconditioner", ["symbolic", "rationals"], FRUSTRATED),
    ("frustrated_preconditioner", ["flow"], SPREAD),
    ("rod_backward_error", ["symbolic", "rationals"], ROD),
    ("rod_backward_error", ["simulation"], ROD_ARRAYS),
    ("rod_growth_rate", ["symbolic", "rationals"], ROD),
    ("rod_growth_rate", ["flow"], ROD_ARRAYS),
    ("rod_growth_rate", ["symbolic", "rationals"], DESCENT),
    ("quartic_two_cycle", ["symbolic", "rationals"], DESCENT),
    ("quartic_two_cycle", ["symbolic", "rationals"], ROD),
    ("quartic_two_cycle", ["flow"], ROD_ARRAYS),
    ("quartic_two_cycle", ["symbolic", "rationals", "flow"], ROD_SHIFTED),
    ("quartic_two_cycle", ["symbolic", "rationals", "spectral", "simulation"],
     replaced(edge_flows, "SYMMETRIC_LIMIT", sp.Rational(305, 100))),
    ("quartic_two_cycle", ["spectral", "simulation"],
     replaced(edge_flows, "SYMMETRIC_LIMIT", sp.Rational(295, 100))),
    ("quartic_asymmetric_cycle", ["symbolic", "rationals"], DESCENT),
    ("quartic_asymmetric_cycle", ["spectral"], DESCENT_ARRAYS),
    ("quartic_asymmetric_cycle", ["symbolic", "rationals", "flow"], ROD_SHIFTED),
    ("quartic_asymmetric_cycle", ["symbolic", "rationals", "spectral", "simulation"],
     replaced(edge_flows, "ASYMMETRIC_LIMIT", sp.Rational(327, 100))),
    ("quartic_asymmetric_cycle", ["spectral", "simulation"],
     replaced(edge_flows, "ASYMMETRIC_LIMIT", sp.Rational(320, 100))),
    ("edge_flow_rate", ["symbolic", "numbers"], DESCENT),
    ("edge_flow_rate", ["simulation"], DESCENT_ARRAYS),
    ("edge_flow_rate", ["flow", "simulation"], EDGE),
    ("product_minimum", ["symbolic", "numbers", "simulation"], WRONG_END),
    ("self_stabilization_cycle", ["symbolic", "numbers"], STEP),
    ("self_stabilization_cycle", ["symbolic", "numbers"], shifted(recursion, "field", OFF)),
    ("self_stabilization_cycle", ["symbolic", "numbers"],
     replaced(recursion, "energy", lambda X, y, alpha, growth: y**2 + alpha * (growth - X))),
    ("self_stabilization_cycle", ["shipped"], shifted(recursion, "field", NEAR)),
    ("self_stabilization_cycle", ["shipped"], shifted(recursion, "first_peak", NEAR)),
    ("self_stabilization_cycle", ["shipped"], shifted(recursion, "period", NEAR)),
    ("self_stabilization_growth", ["symbolic", "numbers"], STEP),
    ("self_stabilization_growth", ["simulation"], shifted(recursion, "step", NEAR)),
    ("sharpness_gap", ["symbolic", "rationals"], STEP),
    ("sharpness_gap", ["simulation"], shifted(recursion.NoisyEdge, "simulate", 1, 0.1)),
    ("sharpness_gap", ["simulation"], shifted(recursion.NoisyEdge, "sharpness_gap", 1.5)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "routes", "mutate"),
    MUTATIONS,
    ids=[f"{name}-{'-'.join(routes)}-{k}" for k, (name, routes, _) in enumerate(MUTATIONS)],
)
def test_every_route_refutes_what_is_wrong(name, routes, mutate, monkeypatch):
    mutate(monkeypatch)
    (claim,) = [claim for claim in HOME[name].claims() if claim.name == name]
    for route in routes:
        with pytest.raises(Refuted):
            claim.routes[route]()


def test_the_mean_over_the_noise_refutes_a_wrong_step(monkeypatch):
    correct = recursion.step
    monkeypatch.setattr(
        recursion,
        "step",
        lambda x, y, lr, alpha, beta: (OFF * correct(x, y, lr, alpha, beta)[0], y),
    )
    (claim,) = [c for c in self_stabilization.claims() if c.name == "sharpness_gap"]
    with pytest.raises(Refuted):
        claim.routes["quadrature"]()


def test_every_route_has_a_mutation():
    walked = {(name, route) for name, routes, _ in MUTATIONS for route in routes}
    walked.add(("sharpness_gap", "quadrature"))
    assert walked == {(name, route) for name, claim in CLAIMS.items() for route in claim.routes}


# --- statements, read back as numbers ---


def value(name, **numbers):
    right = CLAIMS[name].statement.rhs
    return right.subs({symbol: numbers[symbol.name] for symbol in right.free_symbols})


def test_statements_give_known_numbers():
    third = sp.Rational(1, 3)
    assert value("edge_two_cycle", eta=sp.Rational(1, 50)) == 25
    assert value("edge_locking", eta=0, c=third, m1=2) == third
    assert value("quartic_two_cycle", eta=sp.Rational(1, 10), S=24, Q=2) == 2
    assert value("rod_growth_rate", eta=1, S=2) == 0
    assert value("scalar_rmsprop_two_cycle", eta=2) == 1
    assert value("product_minimum", x=1, y=1) == 4
    assert value("self_stabilization_growth", eta=third, alpha=9) == 3
    assert value("central_flow_variance", kappa=3, S=5, eta=1) == -9
