"""Figures on thresholds, escape and non-uniformity: their own formulas, and what headlines refuse."""

import itertools
import math

import numpy as np
import pytest

from eosim.stability import TangentKernel, critical_lr
from figures import sgd_escape, sgd_thresholds, sharpness_nonuniformity


def failing(module, arrays, **changed):
    return [row.quantity for row in module.headline({**arrays, **changed}) if not row.holds]


@pytest.fixture(scope="module")
def thresholds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sgd_thresholds, "SAMPLES_QUICK", 30)
        patch.setattr(sgd_thresholds, "VERDICT_SIZES", {"circle": (1, 4), "sphere": (1, 10)})
        yield sgd_thresholds.compute(True)


@pytest.fixture(scope="module")
def escape():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sgd_escape, "RUNS_QUICK", 600)
        patch.setattr(sgd_escape, "LONG_RUNS", 25)
        patch.setattr(sgd_escape, "PROBLEMS_QUICK", 12)
        yield sgd_escape.compute(True)


@pytest.fixture(scope="module")
def nonuniformity():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharpness_nonuniformity, "MINIMA_QUICK", 20)
        patch.setattr(sharpness_nonuniformity, "PROBLEMS_QUICK", 8)
        patch.setattr(sharpness_nonuniformity, "TOY_RUNS_QUICK", 20)
        yield sharpness_nonuniformity.compute(True)


def test_the_ladder_holds_and_one_bound_below_the_threshold_fails(thresholds):
    assert failing(sgd_thresholds, thresholds) == []
    low = thresholds["sphere_frobenius"].copy()
    low[1] = 0.999 * thresholds["sphere_exact"][1]
    (quantity,) = failing(sgd_thresholds, thresholds, sphere_frobenius=low)
    assert quantity.startswith("pairs of the ladder out of order")


def test_one_wrong_verdict_fails_the_thresholds(thresholds):
    flipped = thresholds["circle_grows"].copy()
    flipped[1, 3] = ~flipped[1, 3]
    (quantity,) = failing(sgd_thresholds, thresholds, circle_grows=flipped)
    assert quantity.startswith("wrong verdicts")


def test_the_uncentred_frobenius_formula_forbids_rates_that_are_stable(thresholds):
    plain = sgd_thresholds._plain(thresholds, "circle")
    forbidden = plain < thresholds["circle_exact"]
    assert list(thresholds["circle_size"][forbidden]) == [1, 2, 3, 4]
    kernel = sgd_thresholds._kernel("circle", 16)
    assert not sgd_thresholds.grows(kernel, (plain[0] + 8) / 2, 1)


def test_verdicts_are_those_of_the_growth_rate_close_to_the_threshold():
    kernel = TangentKernel.from_jacobian(sgd_escape.draw_jacobian(3))
    threshold = critical_lr(kernel, 2)
    assert not sgd_thresholds.grows(kernel, 0.999 * threshold, 2)
    assert sgd_thresholds.grows(kernel, 1.001 * threshold, 2)


def test_a_threshold_off_the_curve_fails(thresholds):
    off = thresholds["orthogonal_exact"] * (1 + 1e-9)
    assert failing(sgd_thresholds, thresholds, orthogonal_exact=off) == [
        "orthogonal gradients: |exact / bound - curve|"
    ]


def test_the_escape_holds_with_few_runs(escape):
    assert failing(sgd_escape, escape) == []


def test_enumeration_is_gradient_descent_along_every_sequence():
    jacobian = sgd_escape.draw_jacobian(0)
    theta, lr = np.array([1.0, -0.5, 0.3]), 0.7
    losses = sgd_escape.enumerate_losses(jacobian, lr, theta, 3)
    assert [len(x) for x in losses] == [1, 4, 16, 64]
    slow = []
    for order in itertools.product(range(4), repeat=3):
        point = theta
        for sample in order:
            point = point - lr * jacobian[sample] * (jacobian[sample] @ point)
        slow.append(np.sum((jacobian @ point) ** 2) / 8)
    np.testing.assert_allclose(np.sort(losses[3]), np.sort(slow), rtol=1e-12)


def test_an_epoch_of_one_batch_is_gradient_descent_and_of_two_the_mean_of_both_orders():
    jacobian, lr = sgd_escape.draw_jacobian(1), 0.3
    full = np.eye(3) - lr * jacobian.T @ jacobian / 4
    whole = sgd_escape.epoch_operator(jacobian, lr, 4)
    np.testing.assert_allclose(whole, np.kron(full, full), rtol=0, atol=1e-14)
    halves = sgd_escape.epoch_operator(jacobian[:2], lr, 1)
    first, second = (np.eye(3) - lr * np.outer(g, g) for g in jacobian[:2])
    both = (first @ second, second @ first)
    np.testing.assert_allclose(
        halves, sum(np.kron(step, step) for step in both) / 2, rtol=0, atol=1e-14
    )


def test_reshuffling_whole_batches_has_the_threshold_of_gradient_descent():
    assert sgd_escape.reshuffling_threshold(sgd_escape.draw_jacobian(2), 4) == pytest.approx(
        1, abs=1e-9
    )


def test_the_start_points_where_the_mean_escapes():
    jacobian = sgd_escape.draw_jacobian(sgd_escape.SEED)
    lr = critical_lr(TangentKernel.from_jacobian(jacobian), 1)
    theta = sgd_escape.escape_direction(jacobian, lr)
    assert np.sum((jacobian @ theta) ** 2) / 8 == pytest.approx(1, rel=1e-12)
    steps = [np.eye(3) - lr * np.outer(g, g) for g in jacobian]
    mean = sum(np.kron(step, step) for step in steps) / 4
    late = (np.linalg.matrix_power(mean, 100) @ np.eye(3).ravel()).reshape(3, 3)
    top = np.linalg.eigh(jacobian @ late @ jacobian.T)[1][:, -1]
    assert abs(top @ jacobian @ theta) == pytest.approx(math.sqrt(8), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "factor", "quantity"),
    [
        ("exact", 1 + 1e-9, "|enumerated mean / exact - 1|"),
        ("growth", 0.1, "order of the rates, least gap"),
        ("late", 1.001, "|late growth of the mean - ln rho|"),
        ("mean", 1.2, "|mean - exact| / SE, largest of 40"),
        ("typical", -1.0, "at 1.025: growth of runs / SE"),
        ("seen_share", 0.5, "|share below median - exact| / SE"),
        ("epoch_mean", 1.5, "reshuffled: |mean - exact| / SE"),
        ("reshuffled_1", 0.9, "reshuffled, B = 1: least threshold"),
    ],
)
def test_a_number_that_is_off_fails_the_escape(escape, name, factor, quantity):
    assert quantity in failing(sgd_escape, escape, **{name: escape[name] * factor})


def test_the_nonuniformity_holds_and_a_shifted_boundary_fails(nonuniformity):
    assert failing(sharpness_nonuniformity, nonuniformity) == []
    wider = nonuniformity["s"] * (1 + 1e-6)
    assert failing(sharpness_nonuniformity, nonuniformity, s=wider) == [
        "1 parameter: |enumerated factor - formula|",
        "1 parameter: |threshold / formula - 1|",
    ]


def test_a_run_that_stays_at_the_non_uniform_minimum_fails(nonuniformity):
    stuck = nonuniformity["sgd_non_uniform"].copy()
    stuck[3, -1] = 1
    assert failing(sharpness_nonuniformity, nonuniformity, sgd_non_uniform=stuck) == [
        "example, SGD: runs that stay at 1, of 20",
        "example, SGD from 1: distance from 0 at the end",
    ]


def test_the_example_is_the_smaller_of_two_parabolas_with_its_derivative():
    toy = sharpness_nonuniformity.TwoMinima()
    for x in (-0.3, 0.1, 0.4, 0.9, 1.3):
        pair = min(x**2, 0.1 * (x - 1) ** 2), min(x**2, 1.9 * (x - 1) ** 2)
        assert toy.loss(np.array([x])) == pytest.approx(sum(pair) / 2, rel=1e-14)
        for batch in (None, [0], [1]):
            ends = [toy.loss(np.array([x + h]), batch) for h in (1e-6, -1e-6)]
            slope = (ends[0] - ends[1]) / 2e-6
            assert toy.gradient(np.array([x]), batch)[0] == pytest.approx(slope, abs=1e-8)


def test_nonuniformity_is_the_standard_deviation_of_curvatures_and_its_matrix_form():
    curvatures = np.array([1.0, 4.0, 0.5])
    a, s = sharpness_nonuniformity.sharpness_and_nonuniformity(
        TangentKernel.from_jacobian(np.sqrt(curvatures)[:, None])
    )
    assert (a, s) == pytest.approx((curvatures.mean(), curvatures.std()), rel=1e-12)
    jacobian = np.random.default_rng(0).standard_normal((5, 3))
    hessians = jacobian[:, :, None] * jacobian[:, None, :]
    mean = hessians.mean(axis=0)
    spread = (hessians @ hessians).mean(axis=0) - mean @ mean
    a, s = sharpness_nonuniformity.sharpness_and_nonuniformity(
        TangentKernel.from_jacobian(jacobian)
    )
    assert a == pytest.approx(np.linalg.eigvalsh(mean)[-1], rel=1e-12)
    assert s == pytest.approx(math.sqrt(np.linalg.eigvalsh(spread)[-1]), rel=1e-12)
