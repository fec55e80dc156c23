"""The figures on sharpening and its edges: wrong formulas, ends and counts fail their headlines."""

import numpy as np
import pytest

from eosim.sharpening import track_spectra
from eosim.stability import noise_kernel_norm
from figures import conservative_sharpening, edge_trajectories, two_parameter_model


def failing(module, arrays, **changed):
    return [row.quantity for row in module.headline({**arrays, **changed}) if not row.holds]


# --- conservative sharpening: few pairs, and ideal runs -------------------------------------------------


@pytest.fixture(scope="module")
def modes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conservative_sharpening, "PAIRS_QUICK", {6: 1000, 3: 1000, 2: 1000, 1: 4000})
        patch.setattr(conservative_sharpening, "SIZES", {"power": (), "bulk": ()})
        return conservative_sharpening.compute(True)


@pytest.fixture
def sharpening(modes):
    """Growth that is slower by a half at B = 8 and by 3 at 3, in units of the spread of differences."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((30, 1))
    arrays = dict(modes)
    for size, mean in ((60, 4), (8, 3), (3, 1)):
        arrays[f"power_{size}"] = mean + common + 0.6 * rng.standard_normal((30, 21))
        arrays[f"power_{size}_survived"] = np.ones(30, bool)
    for size, mean in ((60, 4), (8, 14)):
        arrays[f"bulk_{size}"] = mean + common + rng.standard_normal((30, 21))
        arrays[f"bulk_{size}_survived"] = np.ones(30, bool)
    return arrays


def test_ideal_growth_holds(sharpening):
    assert failing(conservative_sharpening, sharpening) == []


def test_the_formulas_of_other_batches_fail_the_means(sharpening):
    swapped = sharpening["random_formula"][[1, 0, 2, 3]]
    wrong = failing(conservative_sharpening, sharpening, random_formula=swapped)
    assert wrong == ["|mean - formula| / SE, largest of 144", "modes: mean square of these"]


def test_error_bars_that_are_three_times_too_long_fail(sharpening):
    for name in ("fixed", "random"):
        sharpening[f"{name}_error"] = 3 * sharpening[f"{name}_error"]
    assert failing(conservative_sharpening, sharpening) == ["modes: mean square of these"]


def test_a_sign_change_at_full_batches_that_is_off_by_a_tenth_fails(sharpening):
    x = conservative_sharpening.MODE_SPECTRUM
    mean = sharpening["random_mean"].copy()
    mean[0, 0] = (1 - x / 1.1) * conservative_sharpening._unit()
    wrong = failing(conservative_sharpening, sharpening, random_mean=mean)
    assert "B = 6: sign change over B/n" in wrong


def test_the_sign_change_of_exact_points_is_theirs():
    x = conservative_sharpening.MODE_SPECTRUM
    zero, error = conservative_sharpening._sign_change(1 - x / 0.4, 0.1 * np.ones(6))
    assert zero == pytest.approx(0.4, rel=1e-12)
    # A slope of -1/0.4 with the standard error 0.1 / |x|.
    assert error == pytest.approx(0.1 / np.linalg.norm(x) * 0.4, rel=1e-12)


def test_small_batches_that_sharpen_as_much_fail(sharpening):
    for size in (8, 3):
        same = {f"power_{size}": sharpening["power_60"][::-1]}
        text = f"outliers: slower at B = {size} than 60, t"
        assert failing(conservative_sharpening, sharpening, **same) == [text]
    same = {"bulk_8": sharpening["bulk_60"][::-1]}
    text = "bulk, 2 steps: faster at B = 8 than 60, t"
    assert failing(conservative_sharpening, sharpening, **same) == [text]


def test_diverged_runs_leave_their_pairs_and_too_many_fail(sharpening):
    growth, survived = sharpening["power_3"].copy(), np.ones(30, bool)
    for lost in (0, 1, 2, 3, 4):
        growth[lost], survived[lost] = np.inf, False
        arrays = {**sharpening, "power_3": growth, "power_3_survived": survived}
        assert conservative_sharpening._damping(arrays, "power", 3).shape == (29 - lost, 21)
    text = "outliers: share that survives of 90 runs"
    assert failing(conservative_sharpening, arrays) == [text]


# --- trajectories to the edges ------------------------------------------------------------------------


@pytest.fixture
def edges():
    """Ends that hold by a small margin: no run is made."""
    step = np.arange(0, edge_trajectories.N_STEPS + 1, edge_trajectories.EVERY)
    finals = {3: 1.2, 4: 1.04, 5: 0.88, 8: 0.53, 15: 0.25}
    arrays = {"full_survived": np.ones(20, bool), "full_top": np.full((20, len(step)), 2.03)}
    arrays["full_top"][:, 3] = 2.1
    for size, final in finals.items():
        survived = np.arange(20) < {3: 2, 4: 11, 5: 19}.get(size, 20)
        values = np.where(survived[:, None], final, np.inf)
        arrays |= {
            f"batch{size}_survived": survived,
            f"batch{size}_top": np.where(survived[:, None], 0.45, np.inf) * np.ones(len(step)),
            f"batch{size}_norm": 0.9 * values,
            f"batch{size}_exact": values,
        }
    return arrays


def test_ideal_trajectories_hold(edges):
    assert failing(edge_trajectories, edges) == []


@pytest.mark.parametrize(
    ("name", "factor", "quantity"),
    [
        ("full_top", 1.01, "full: final eta * lambda_max, median"),
        ("batch4_exact", 1.02, "B = 4: final K, exact, median of 11"),
        ("batch4_norm", 0.9, "B = 4: final K, delocalised, median of 11"),
        ("batch4_top", 1.2, "B = 4: eta * lambda_max, largest of 11 runs"),
        ("batch8_exact", 1.7, "final K over that of the next smaller B"),
    ],
)
def test_an_end_beside_its_edge_fails(edges, name, factor, quantity):
    assert failing(edge_trajectories, edges, **{name: factor * edges[name]}) == [quantity]


def test_full_batches_that_never_overshoot_fail(edges):
    flat = np.minimum(edges["full_top"], 2.03)
    assert failing(edge_trajectories, edges, full_top=flat) == ["full: its peak, median"]


@pytest.mark.parametrize(
    ("name", "alive", "quantity"),
    [
        ("full", 19, "full batches: share that survives of 20"),
        ("batch4", 9, "B = 4: share that survives of 20"),
        ("batch3", 3, "B = 3: share that survives"),
        ("batch15", 17, "B = 15: share that survives"),
    ],
)
def test_a_wrong_number_of_survivors_fails(edges, name, alive, quantity):
    for quantity_of in ("top", "norm", "exact"):
        if f"{name}_{quantity_of}" in edges:
            values = edges[f"{name}_{quantity_of}"].copy()
            values[:alive] = values[0]
            edges[f"{name}_{quantity_of}"] = values
    survived = np.arange(20) < alive
    assert failing(edge_trajectories, edges, **{f"{name}_survived": survived}) == [quantity]


@pytest.mark.size  # without the JIT a run of 800 steps takes minutes
def test_tracks_are_those_of_runs_that_go_on_and_are_infinite_once_diverged():
    n_seeds, start = 4, edge_trajectories.STARTS["small"]
    for size in (3, 8):
        track = edge_trajectories._track("small", size, n_seeds)
        problems = (
            edge_trajectories.random_quadratic_regression(60, 120, seed=seed, **start)
            for seed in range(n_seeds)
        )
        expected = track_spectra(problems, 1.0, 800, batch_size=size, every=20)
        np.testing.assert_array_equal(track["survived"], expected.survived)
        assert track["survived"].all() == (size == 8)
        for index in range(n_seeds):
            finite = np.isfinite(track["top"][index])
            # Of a run that diverges all but the last: infinite from the first infinite one on.
            assert finite.sum() == (41 if track["survived"][index] else finite.argmin())
            assert finite.sum() > 1
            ntk = expected.ntk[index, finite]
            # Runs that are done are not continued: their residuals are below 1e-4.
            np.testing.assert_allclose(track["top"][index, finite], ntk[:, 0], rtol=1e-4)
            norms = [noise_kernel_norm(x, 1.0, size, kind="delocalised") for x in ntk]
            np.testing.assert_allclose(track["norm"][index, finite], norms, rtol=1e-3)
        np.testing.assert_array_equal(np.isfinite(track["exact"][:, -1]), track["survived"])


# --- two parameters -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_parameters():
    return two_parameter_model.compute(True)


def test_the_quick_figure_of_two_parameters_holds(two_parameters):
    assert failing(two_parameter_model, two_parameters) == []


def test_a_resting_value_off_by_half_a_per_cent_of_eps_fails(two_parameters):
    eps = two_parameter_model.EPS[:, None]
    wrong = failing(two_parameter_model, two_parameters, end=two_parameters["end"] - 0.005 * eps)
    assert wrong == [
        "C > 2: (2 - T_0) / eps at the least eps",
        "C > 2: |T_0 - (2 - eps/2)| / eps^2",
    ]


def test_starts_below_the_edge_that_move_fail(two_parameters):
    start, end = two_parameters["start"], two_parameters["end"].copy()
    eps = two_parameter_model.EPS
    end[:, start.argmin()] += 0.4 * eps * np.log(1 / eps)
    below = (start < 2).sum()
    assert failing(two_parameter_model, two_parameters, end=end) == [
        f"C < 2: |T_0 - C| / eps log(1/eps), of {below}"
    ]


def test_a_drift_twice_as_fast_fails(two_parameters, monkeypatch):
    law = two_parameter_model._law
    monkeypatch.setattr(two_parameter_model, "_law", lambda tau: law(2 * tau))
    assert failing(two_parameter_model, two_parameters) == ["drift: |C - law| / eps"]


def test_the_law_of_the_drift_solves_its_equation():
    tau, h = np.linspace(0, 5, 11), 1e-5
    law = two_parameter_model._law
    slope = (law(tau + h) - law(tau - h)) / (2 * h)
    np.testing.assert_allclose(slope, -law(tau) * (law(tau) - 2) / 2, rtol=0, atol=1e-9)
    assert law(0) == pytest.approx(two_parameter_model.DRIFT_C, rel=1e-15)


def test_the_two_cycle_of_the_limit_lies_on_the_curve():
    z, ntk = 0.3, 2 / (1 - 0.3)
    level = ntk - 2 * z
    next_z, next_ntk = two_parameter_model.two_parameter.reduced_map(z, ntk, 0)
    assert next_ntk == pytest.approx(2 / (1 - next_z), rel=1e-14)
    assert next_ntk - 2 * next_z == pytest.approx(level, rel=1e-14)
    assert (z + next_z) / 2 == pytest.approx(-(level - 2) / 4, rel=1e-13)
    again = two_parameter_model.two_parameter.reduced_map(next_z, next_ntk, 0)
    assert again == pytest.approx((z, ntk), rel=1e-13)
