"""The proofs about SGD's second moments, and that a wrong formula or step cannot pass them."""

import pytest
import sympy as sp

import eosim
from eosim import sampling
from eosim.stability import mean_square
from theory import Refuted, noise_kernels, sgd_moments, sgd_stability

SUBJECTS = (sgd_moments, noise_kernels, sgd_stability)
CLAIMS = [claim for subject in SUBJECTS for claim in subject.claims()]
OFF = sp.Rational(1001, 1000)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_every_route_of_every_claim_holds(claim):
    verdicts = claim.check()
    assert {"symbolic", "rationals", "numbers"} == {v.route for v in verdicts}
    assert [f"{v.route}: {v.evidence}" for v in verdicts if not v.holds] == []


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_every_derivation_ends_in_zeros(claim):
    assert {step.expression for step in claim.steps()} == {sp.Integer(0)}
    assert "=" in claim.latex() or "\\geq" in claim.latex()
    assert claim.source


def route(name, which="symbolic"):
    (claim,) = [claim for claim in CLAIMS if claim.name == name]
    return claim.routes[which]


def wrong_step(rule, monkeypatch, factor=OFF):
    correct = rule.step
    monkeypatch.setattr(
        rule, "step", lambda self, theta, state, g: correct(self, theta, state, factor * g)
    )


def wrong(function, monkeypatch, home=mean_square):
    """The function with its result, or its first entry, off by one in a thousand."""
    correct = getattr(home, function)

    def mutated(*args, **kwargs):
        result = correct(*args, **kwargs)
        if isinstance(result, tuple):
            return (OFF * result[0], *result[1:])
        return OFF * result

    monkeypatch.setattr(home, function, mutated)


@pytest.mark.parametrize(
    "name",
    [
        "sgd_second_moment_operator",
        "sgd_covariance_step",
        "sgd_one_step_loss",
        "sgd_frobenius_bound",
        "sgd_flat_eigenvectors",
        "sgd_larger_batches",
        "sgd_one_parameter",
        "sgd_two_equal_norms",
    ],
)
def test_a_wrong_descent_step_is_refuted(name, monkeypatch):
    wrong_step(eosim.GradientDescent, monkeypatch)
    with pytest.raises(Refuted):
        route(name)()


@pytest.mark.parametrize(
    "name",
    [
        "sgd_batch_moments",
        "sgd_second_moment_operator",
        "sgd_covariance_step",
        "sgd_one_step_loss",
        "sgd_one_parameter",
    ],
)
@pytest.mark.parametrize("field", ["kept", "noise"])
def test_wrong_batch_moments_are_refuted(name, field, monkeypatch):
    if (name, field) == ("sgd_one_parameter", "kept"):
        pytest.skip("the threshold of one parameter is written with the noise alone")
    correct = sampling.batch_moments

    def mutated(*args):
        found = correct(*args)
        return found._replace(**{field: getattr(found, field) + 1e-3})

    monkeypatch.setattr(sampling, "batch_moments", mutated)
    with pytest.raises(Refuted):
        route(name)()


@pytest.mark.parametrize(
    "name",
    [
        "sgd_flat_eigenvectors",
        "noise_kernel_weights",
        "noise_kernel_ladder",
        "sgd_equal_leverage_bound",
        "sgd_two_equal_norms",
        "sgd_frobenius_tight_cases",
        "sgd_momentum_noise_kernel",
    ],
)
def test_a_wrong_kernel_weight_is_refuted(name, monkeypatch):
    wrong("kernel_weight", monkeypatch)
    with pytest.raises(Refuted):
        route(name)()


def test_a_wrong_response_or_heavy_ball_step_is_refuted(monkeypatch):
    with monkeypatch.context() as patch:
        wrong("moment_response", patch)
        with pytest.raises(Refuted, match="response"):
            route("sgd_momentum_noise_kernel")()
    for which, factor in (("symbolic", OFF), ("numbers", 1.001)):
        with monkeypatch.context() as patch:
            wrong_step(eosim.HeavyBall, patch, factor)
            with pytest.raises(Refuted):
                route("sgd_momentum_noise_kernel", which)()


def test_a_wrong_crossover_is_refuted(monkeypatch):
    wrong("critical_batch_size", monkeypatch)
    with pytest.raises(Refuted, match="shipped"):
        route("sgd_batch_crossover")()


@pytest.mark.parametrize(
    "name",
    [
        "sgd_second_moment_operator",
        "sgd_flat_eigenvectors",
        "noise_kernel_weights",
        "sgd_one_parameter",
        "sgd_two_equal_norms",
        "sgd_frobenius_tight_cases",
        "sgd_momentum_noise_kernel",
    ],
)
def test_a_wrong_threshold_is_refuted_by_the_numbers(name, monkeypatch):
    correct = mean_square.critical_lr
    monkeypatch.setattr(
        mean_square, "critical_lr", lambda *args, **kwargs: 1.001 * correct(*args, **kwargs)
    )
    with pytest.raises(Refuted):
        route(name, "numbers")()


@pytest.mark.parametrize(
    ("name", "kind", "factor"),
    [("sgd_equal_leverage_bound", "finite", 0.5), ("noise_kernel_ladder", "trace", 3.0)],
)
def test_a_bound_on_the_wrong_side_is_refuted_by_the_numbers(name, kind, factor, monkeypatch):
    for function in ("critical_lr", "noise_kernel_norm"):
        correct = getattr(mean_square, function)

        def mutated(*args, correct=correct, **kwargs):
            return correct(*args, **kwargs) * (factor if kwargs.get("kind") == kind else 1)

        monkeypatch.setattr(mean_square, function, mutated)
    with pytest.raises(Refuted):
        route(name, "numbers")()
