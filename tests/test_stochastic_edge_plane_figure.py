"""The swept plane: what it runs and what it predicts are SGD, and wrong numbers fail it."""

import sys
from itertools import combinations

import numpy as np
import pytest

import eosim
from eosim.stability import critical_lr, growth_rate
from figures import __main__ as command
from figures import stochastic_edge_plane as plane
from figures._headline import MissingPackage

# Without the JIT thousands of sampled runs take minutes.
sampled = pytest.mark.size


@pytest.fixture(scope="module")
def arrays():
    pytest.importorskip("xarray")
    return plane.compute(True)


def failing(arrays):
    return [row.quantity for row in plane.headline(arrays) if not row.holds]


def changed(arrays, name, change):
    return {**arrays, name: change(arrays[name].copy())}


def test_the_full_batch_edge_of_the_model_is_one():
    problem, kernel = plane.model()
    assert 2 / kernel.largest == pytest.approx(1, rel=1e-14)
    assert problem.loss(np.zeros(plane.DIM)) == 0


@pytest.mark.parametrize(("lr", "slowest"), [(0.05, 1e-3), (0.97, 1e-6), (1.05, 1e-12)])
def test_the_slowest_run_of_full_batches_moves_at_the_largest_factor(lr, slowest):
    _, kernel = plane.model()
    factor = 2 * np.log(np.abs(1 - lr * kernel.eigenvalues[: plane.DIM])).max()
    # At 0.05 another mode is but 1 % per step faster, 13 % of the first one at step 200.
    assert plane.late_growth(lr, plane.SAMPLES, 0).max() == pytest.approx(factor, rel=slowest)


def test_full_batches_that_fall_to_rounding_do_not_grow():
    for lr in (0.3, 0.5, 0.6, 0.8):  # by factors down to e^-190 in the first half
        assert plane.late_growth(lr, plane.SAMPLES, 0).max() < -0.25


def test_a_run_that_diverges_grows_without_a_warning():
    assert (plane.late_growth(1.4, 1, 0) == np.inf).all()


def test_a_run_of_the_plane_is_a_run_of_eosim():
    problem, _ = plane.model()
    start = np.random.default_rng(4).standard_normal((plane.RUNS, plane.DIM))[3]
    seed = np.random.SeedSequence(4, spawn_key=(3,))
    run = eosim.run(
        problem,
        eosim.GradientDescent(0.2),
        start,
        plane.STEPS,
        batch_size=2,
        seed=seed,
        record={"loss": eosim.measure.loss},
        every=plane.STEPS // 2,
    )
    _, half, end = run["loss"]
    rate = np.log(end / half) / (plane.STEPS / 2)
    assert plane.late_growth(0.2, 2, 4)[3] == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_typical_rate_of_one_dimension_is_the_mean_logarithm_over_all_batches(batch_size):
    inputs = np.array([[0.3], [1.0], [-0.7], [1.6], [0.1], [-1.2]])
    rates = np.array([0.4, 1.1])
    curvatures = [np.mean(inputs[list(b)] ** 2) for b in combinations(range(6), batch_size)]
    logs = np.log((1 - np.multiply.outer(curvatures, rates)) ** 2)
    runs = plane.typical_rates(inputs, rates, batch_size, 100, 400, [0])
    error = logs.std(axis=0) / np.sqrt(100 * 400)
    assert (np.abs(runs.mean(axis=0) - logs.mean(axis=0)) < 4.5 * error).all()
    assert runs.std(axis=0) * np.sqrt(400) == pytest.approx(logs.std(axis=0), rel=0.3)


def test_the_typical_rate_of_all_samples_is_that_of_the_sharpest_direction():
    problem, _ = plane.model()
    rates = np.array([0.95, 1.0, 1.1])
    runs = plane.typical_rates(problem.inputs, rates, plane.SAMPLES, 2, 200, [0])
    expected = 2 * np.log(np.abs(1 - 2 * rates))
    np.testing.assert_allclose(runs, np.tile(expected, (2, 1)), rtol=0, atol=1e-3)


def test_a_line_through_zero_gives_the_edge_and_its_error():
    ratio = np.array([0.9, 1.0, 1.1, 1.2])
    noise = np.array([-0.02, 0.0, 0.02])[:, None]
    edge, error = plane.typical_edge(ratio, 2 * (ratio - 1.13) + noise)
    assert edge == pytest.approx(1.13, rel=1e-13)
    assert error == pytest.approx(0.02 / np.sqrt(3) / 2, rel=1e-13)


def test_the_expected_share_is_that_of_walks_of_half_the_steps():
    columns = len(plane.MULTIPLES)
    arrays = {
        "product_rate": np.tile(np.linspace(-0.06, 0.06, columns), (1, 1)),
        "product_spread": np.full((1, columns), 0.4),
    }
    steps = np.random.default_rng(0).normal(0, 0.4, (4000, plane.STEPS // 2))
    ends = steps.sum(axis=1)[:, None] + plane.STEPS // 2 * arrays["product_rate"][0]
    expected = plane._expected_share(arrays, 0, plane.MULTIPLES)
    assert (ends > 0).mean(axis=0) == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(4000))


def test_half_of_the_runs_grow_at_the_middle_of_the_step_where_all_begin_to():
    rates = 2.0 ** np.arange(5)
    growth = np.full((5, 3, 2, 2), -1.0)
    growth[3:, 0], growth[1:, 1] = 1.0, 1.0  # from 8 on, from 2 on
    growth[2:, 2], growth[1, 2, 0] = np.inf, 0.1  # from 4 on, and half of the runs at 2
    crossing = plane._crossing({"rate": rates, "growth": growth})
    assert crossing == pytest.approx([8 / np.sqrt(2), np.sqrt(2), 2], rel=1e-14)


@pytest.mark.parametrize("ratio", [1.0, 1.1])
def test_the_starts_of_the_means_grow_by_growth_rate_over_all_batches_of_one(ratio):
    problem, kernel = plane.model()
    lr = ratio * critical_lr(kernel, 1)
    second = plane.growing_moment(lr, 1)
    steps = np.eye(plane.DIM) - lr * problem.inputs[:, :, None] * problem.inputs[:, None, :]
    after = (steps @ second @ steps.transpose(0, 2, 1)).mean(axis=0)
    np.testing.assert_allclose(after, growth_rate(kernel, lr, 1) * second, rtol=0, atol=1e-12)


def test_the_function_of_the_sweep_gives_the_same_bits_in_a_worker_and_from_a_store(tmp_path):
    pytest.importorskip("xarray")
    grid = {"lr": [0.15, 0.4], "batch_size": [4], "seed": [0, 1]}
    here = eosim.sweep(plane.late_growth, grid, progress=False)
    options = {"store": tmp_path / "store", "workers": 1, "progress": False}
    for _ in range(2):  # computed, then read
        there = eosim.sweep(plane.late_growth, grid, **options)
        assert here.equals(there)


def test_a_point_that_fails_is_no_decaying_run(monkeypatch):
    pytest.importorskip("xarray")

    def broken(lr, batch_size, seed):
        raise ArithmeticError("no such rate")

    monkeypatch.setattr(plane, "late_growth", broken)
    monkeypatch.setattr(plane, "RATES_QUICK", plane.RATES_QUICK[:1])
    warned = pytest.warns(RuntimeWarning, match="no point succeeded")
    with warned, pytest.raises(RuntimeError, match=r"24 points of the sweep failed.*no such rate"):
        plane.compute(True)


def test_a_missing_package_is_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(MissingPackage):
        plane.compute(True)
    assert command.main(["stochastic_edge_plane", "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    (sentence,) = [line for line in captured.out.splitlines() if "xarray" in line]
    assert sentence.startswith("stochastic_edge_plane failed: ")
    assert 'pip install -e ".[figures]"' in sentence
    assert "Traceback" not in captured.out + captured.err


@sampled
def test_a_mean_five_standard_errors_off_fails_the_plane(arrays):
    def off(mean):
        mean[2, 1] = arrays["mean_exact"][2, 1] + 5 * arrays["mean_error"][2, 1]
        return mean

    assert failing(changed(arrays, "mean_mean", off)) == [
        "35 mean losses: SE from the exact one, largest"
    ]


@sampled
def test_a_threshold_off_by_one_in_a_million_fails_the_plane(arrays):
    def off(exact):
        exact[3, 2] *= 1 + 1e-6
        return exact

    assert failing(changed(arrays, "mean_exact", off)) == ["at the exact edge: |E L / start - 1|"]


@sampled
def test_runs_that_turn_at_the_exact_edge_fail_the_plane(arrays):
    beyond = arrays["rate"][:, None] > plane._of_batches(arrays, "mean_square")
    turned = np.where(beyond[:, :, None, None], 1.0, -1.0) * np.ones_like(arrays["growth"])
    quantities = failing({**arrays, "growth": turned})
    assert "half of the runs grow: |log rate / typical edge|" in quantities
    assert any(quantity.startswith("share that grows") for quantity in quantities)
    assert any(quantity.startswith("between the edges") for quantity in quantities)


@sampled
def test_a_typical_edge_at_or_below_the_exact_one_fails_the_plane(arrays):
    quantities = failing(changed(arrays, "typical", lambda edge: 0.93 * edge))
    assert "typical / exact edge, B < n, least - 4.5 SE" in quantities
    assert "typical edge * lambda_max / 2, largest - 4.5 SE" in quantities


@sampled
def test_a_run_in_fifty_that_grows_below_the_exact_edge_fails_the_plane(arrays):
    def some(growth):
        below = arrays["rate"][:, None] < plane._of_batches(arrays, "mean_square")
        growth[below, 0, 0] = 1.0  # one of 48 in each of these cells
        return growth

    assert "below the exact edge: share that grows" in failing(changed(arrays, "growth", some))
