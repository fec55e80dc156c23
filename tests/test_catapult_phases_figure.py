"""The figure of phases over the rate: its runs are those of its models, and wrong ones fail it."""

import numpy as np
import pytest

from eosim import problems
from figures import catapult_phases
from figures.catapult_phases import DIVERGED, MODELS

SEED = 3


@pytest.fixture(scope="module")
def quick_phases():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catapult_phases, "SEEDS_QUICK", 4)
        return catapult_phases.compute(True)


def failing(arrays):
    return [row.quantity for row in catapult_phases.headline(arrays) if not row.holds]


def changed(arrays, name, rate, value, seed=0):
    model, _ = name.rsplit("_", 1)
    values = arrays[name].copy()
    values[seed, np.abs(arrays[f"{model}_rate"] - rate).argmin()] = value
    return {**arrays, name: values}


@pytest.mark.parametrize("name", MODELS)
def test_every_run_is_gradient_descent_of_the_problem_its_bounds_are_of(name):
    start = MODELS[name].start(SEED)
    theta, problem = start.theta, start.problem
    lr = 2.5 / np.linalg.eigvalsh(problem.ntk(theta))[-1]
    run = start.at_rate(lr)
    state = run.start()
    for _ in range(12):
        theta, state = theta - lr * problem.gradient(theta), run.step(state)
    seen = run.observe(state)
    # A catapult multiplies rounding by at most 1.5 per step.
    assert seen["loss"] == pytest.approx(problem.loss(theta), rel=1e-11)
    assert seen["ntk"] == pytest.approx(np.linalg.eigvalsh(problem.ntk(theta))[-1], rel=1e-11)
    assert start.norm(np.ravel(state)) == pytest.approx(theta @ theta, rel=1e-11)


def test_the_mixed_basis_is_the_model_with_one_meta_feature_per_datum():
    net = MODELS["data"].start(SEED).problem
    rng = np.random.default_rng(SEED)
    inputs, targets = rng.uniform(-0.5, 0.5, (32, 2)), rng.standard_normal(32)
    meta = problems.meta_features(inputs, 500, rng, 0.9, 1.1)
    same = problems.QuadraticNet(meta, targets)
    theta = same.initial(SEED)
    np.testing.assert_allclose(net.gradient(theta), same.gradient(theta), rtol=0, atol=1e-12)


def test_a_run_ends_early_only_where_more_steps_change_nothing(monkeypatch):
    start = MODELS["quadratic"].start(SEED)
    lr = 2.5 / np.linalg.eigvalsh(start.problem.ntk(start.theta))[-1]
    early = catapult_phases._end(start, lr, 1000)[:3]
    monkeypatch.setattr(catapult_phases, "SETTLED", -1.0)  # never
    late = catapult_phases._end(start, lr, 1000)[:3]
    np.testing.assert_allclose(early, late, rtol=1e-12, atol=1e-20)  # the loss is 0 but for 1e-26


def test_a_run_that_diverges_is_no_end():
    start = MODELS["half"].start(SEED)
    lr = 6.0 / np.linalg.eigvalsh(start.problem.ntk(start.theta))[-1]
    final, norm, loss, growth = catapult_phases._end(start, lr, 1000)
    assert np.isnan([final, norm, loss]).all()
    assert growth == np.inf


def test_no_bounded_run_comes_near_the_norm_of_divergence(quick_phases):
    largest = max(np.nanmax(quick_phases[f"{name}_norm"]) for name in MODELS)
    assert largest < 1e-3 * DIVERGED


def test_an_exception_below_the_bound_fails_the_figure(quick_phases):
    for value in (np.nan, 2.1):  # divergence, and an end that is not stable
        broken = changed(quick_phases, "half_final", 2.2, value)
        assert any("exceptions" in quantity for quantity in failing(broken))
    grown = changed(quick_phases, "bias_growth", 2.2, 1e-6)
    assert failing(grown) == ["label 0: growth of the weight norm below it"]


def test_divergence_with_labels_fails_the_figure(quick_phases):
    broken = changed(quick_phases, "relu_final", 4.4, np.nan)
    assert "labels, ReLU, any rate: runs that diverge" in failing(broken)
    broken = changed(quick_phases, "data_final", 1.2, np.nan)
    assert failing(broken) == ["labels, 32 data: runs that diverge"]


def test_a_dead_net_with_another_loss_fails_the_figure(quick_phases):
    dead = changed(quick_phases, "relu_final", 4.4, 0.0)
    assert failing(changed(dead, "relu_loss", 4.4, 2.0)) == []
    assert "dead ReLU nets: |loss - y^2/2|" in failing(changed(dead, "relu_loss", 4.4, 1.9))


def test_a_final_ntk_five_per_cent_higher_fails_the_figure(quick_phases):
    for name in catapult_phases.FINAL:
        higher = {**quick_phases, f"{name}_final": quick_phases[f"{name}_final"] * 1.05}
        assert any("final NTK at 2.5" in quantity for quantity in failing(higher))


def test_bounds_a_fifth_higher_fail_the_figure(quick_phases):
    for name, _ in catapult_phases.LIMITS:
        higher = {**quick_phases, f"{name}_bound": 1.2 * quick_phases[f"{name}_bound"]}
        number = MODELS[name].number
        assert any(f"figure {number}: bound" in quantity for quantity in failing(higher))


def test_all_rows_hold_and_the_picture_shows_every_model(quick_phases):
    assert failing(quick_phases) == []
    figure = catapult_phases.draw(quick_phases)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title for title in titles if title] == [model.title for model in MODELS.values()]
