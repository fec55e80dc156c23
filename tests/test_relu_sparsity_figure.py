"""The figure on ReLU sparsity: its data, the onset in closed form, and what its headline refuses."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp

from figures import _style, relu_sparsity

MEANS = range(len(relu_sparsity.MEANS))


def failing(arrays, **changed):
    return [row.quantity for row in relu_sparsity.headline({**arrays, **changed}) if not row.holds]


@pytest.fixture(scope="module")
def ideal():
    """Ends that hold by a small margin: no run is made."""
    rates = relu_sparsity.DIGIT_RATES
    delta = np.array(relu_sparsity.ONSET_DELTAS)
    arrays = {
        "onset_delta": delta,
        "onset_sparsity": 0.5 + relu_sparsity.onset_slope() * delta + 0.02 * delta**2,
        "known_range": np.array([[s - t / 2, s + t / 2] for _, s, t in relu_sparsity.KNOWN]),
        "net_rate": relu_sparsity.NET_RATES,
        "net4096_start": np.full((len(relu_sparsity.NET_RATES), 3), 0.5),
        "net4096_sparsity": np.full((len(relu_sparsity.NET_RATES), 3), 0.549),
        "labelled_sparsity": np.where(relu_sparsity.NET_RATES >= 4, 1.0, 0.5)[:, None],
        "labelled_loss": np.where(relu_sparsity.NET_RATES >= 4, 2.0, 1e-9)[:, None],
        "digit_rate": rates,
        "digit_sparsity": _ramp(rates, 3),
        "digit_ntk": np.full((len(rates), 3), 2.05),
        "digit_held_out": np.where(rates > 2, 0.9, 1.0)[:, None],
        "centred_rate": relu_sparsity.CENTRED_RATES,
        "centred_sparsity": np.where(relu_sparsity.CENTRED_RATES < 4, 0.52, math.nan)[:, None],
    }
    rates = relu_sparsity.DATA_RATES
    for index in MEANS:
        arrays[f"mean{index}_rate"] = rates
        arrays[f"mean{index}_sparsity"] = _ramp(rates, 10)
        arrays[f"mean{index}_ntk"] = np.full((len(rates), 10), 1.99)
    arrays["mean0_sparsity"][rates >= 4, 1:] = math.nan
    return arrays


def _ramp(rates, n_runs):
    """Flat up to 2, 0.95 from there to 8."""
    curve = 0.5 + 0.45 * np.clip((rates - 2) / 6, 0, None) ** 0.25
    return np.repeat(curve[:, None], n_runs, axis=1)


def test_the_ideal_arrays_hold(ideal):
    assert failing(ideal) == []


def test_the_onset_is_the_peak_of_the_oscillator():
    def until_the_peak(t, state):
        return state[1]

    until_the_peak.terminal, until_the_peak.direction = True, -1
    found = solve_ivp(
        lambda t, state: [state[1], -2 * state[1] / math.pi - 2 * state[0]],
        (0, 10),
        [0.0, 1.0],
        events=until_the_peak,
        rtol=1e-11,
        atol=1e-13,
    )
    (peak,) = found.y_events[0][:, 0]
    # Angles of peak * delta / 2 at both ends of the sector, out of 2 pi.
    assert relu_sparsity.onset_slope() == pytest.approx(peak / (2 * math.pi), rel=1e-9)


def test_an_onset_off_in_the_third_digit_fails(ideal):
    delta = ideal["onset_delta"]
    off = ideal["onset_sparsity"] + 1e-4 * delta
    assert failing(ideal, onset_sparsity=off) == ["n = inf: slope above a_0 = 2"]


def test_one_phase_of_the_infinite_net_off_in_the_third_digit_fails(ideal):
    off = ideal["known_range"].copy()
    off[1, 1] += 1e-3
    assert failing(ideal, known_range=off) == ["n = inf, a_0 = 2.5: sparsity, worst phase"]


def test_a_net_that_dies_at_a_small_rate_or_learns_all_the_same_fails(ideal):
    early = ideal["labelled_sparsity"].copy()
    early[relu_sparsity.NET_RATES == 2.5] = 1
    assert failing(ideal, labelled_sparsity=early) == [
        "label 2: nets that die up to a_0 = 3",
        "label 2: |loss of the dead - 2|",
    ]


@pytest.mark.parametrize(
    ("name", "rate"), [("digit", 1.5), ("digit", 4), ("mean3", 1.5), ("mean3", 7)]
)
def test_a_curve_that_rises_too_early_or_dips_fails(ideal, name, rate):
    curve = ideal[f"{name}_sparsity"].copy()
    curve[ideal[f"{name}_rate"] == rate] += 0.1 if rate < 2 else -0.2
    (quantity,) = failing(ideal, **{f"{name}_sparsity": curve})
    assert ("at 1.5" if rate < 2 else "least rise") in quantity


def test_one_run_that_diverges_on_digits_fails(ideal):
    lost = ideal["digit_sparsity"].copy()
    lost[-1, 0] = math.nan
    assert failing(ideal, digit_sparsity=lost) == ["digits: share that converges up to 12"]


def test_one_run_that_converges_on_centred_digits_at_a_large_rate_fails(ideal):
    kept = np.full_like(ideal["centred_sparsity"], 0.51)
    assert failing(ideal, centred_sparsity=kept) == ["centred digits: runs that converge from 4 on"]


def test_centred_data_that_converge_fail(ideal):
    kept = {"mean0_sparsity": ideal["mean3_sparsity"]}
    assert failing(ideal, **kept) == ["mean 0: share that converges at 6"]


def test_more_than_a_few_runs_that_end_above_the_edge_fail(ideal):
    above = ideal["mean3_ntk"].copy()
    above[-1, :2] = 2.03  # of 130
    assert failing(ideal, mean3_ntk=above) == []
    above[-1] = 2.03
    assert failing(ideal, mean3_ntk=above) == ["mean 0.5: share that ends with eta lambda > 2"]


def test_means_are_over_converging_runs_if_they_are_half_or_more():
    ends = np.array([[1.0, 2.0, 6.0], [1.0, 2.0, math.nan], [1.0, math.nan, math.nan]])
    np.testing.assert_array_equal(relu_sparsity._mean(ends), [3.0, 1.5, math.nan])
    np.testing.assert_allclose(relu_sparsity._share(ends), [1, 2 / 3, 1 / 3])


@pytest.mark.parametrize("count", [0, 3, 20])
def test_bars_of_shares_are_wilsons_intervals_of_one_standard_deviation(count):
    n, axes = 20, Figure().add_subplot()
    hits = np.arange(n)[None] < count
    relu_sparsity._draw_share(axes, np.array([4.0]), hits, _style.points("#000000"))
    assert axes.lines[0].get_ydata() == [count / n]
    ((low, high),) = (segment[:, 1] for segment in axes.collections[0].get_segments())
    middle = (count + 0.5) / (n + 1)
    half = math.sqrt(count * (n - count) / n + 0.25) / (n + 1)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-4)


def test_digits_are_one_sided_and_split_without_overlap():
    pytest.importorskip("sklearn")
    inputs, targets, held_out, held_out_targets = relu_sparsity.load_digits()
    assert inputs.shape == (128, 64)
    assert held_out.shape == (232, 64)
    assert inputs.min() == 0
    assert inputs.max() == 1
    assert set(targets) == set(held_out_targets) == {-1.0, 1.0}
    seen = {row.tobytes() for row in inputs}
    assert not any(row.tobytes() in seen for row in held_out)


def test_artificial_data_alternate_in_class_and_differ_by_the_shift_alone():
    centred, targets = relu_sparsity.draw_data(0.0, 3)
    shifted, _ = relu_sparsity.draw_data(0.5, 3)
    np.testing.assert_allclose(shifted - centred, 0.5, atol=1e-15)
    assert list(targets[:3]) == [-1, 1, -1]
    between = centred[targets > 0].mean(axis=0) - centred[targets < 0].mean(axis=0)
    # 2 * 0.25 sqrt(d) = 2 apart, and a mean over 8 of noise 0.5 in each of 16 directions
    assert np.linalg.norm(between) == pytest.approx(2, abs=4 * 0.5 * math.sqrt(2 / 8))


def test_a_run_that_diverges_has_no_end_and_one_that_converges_has_its_own():
    inputs, targets = relu_sparsity.draw_data(0.0, 0)
    net = relu_sparsity.eosim.TwoLayerNet(inputs, targets, 32)
    assert np.isnan(relu_sparsity._train(net, 12.0, 0, 1e-4, 200)).all()
    end = relu_sparsity._train(net, 1.0, 0, 1e-4, 2000, (inputs, targets))
    # Tested on its training data: the loss it was stopped at.
    assert 0 < end.held_out < 1e-4
    assert end.sparsity * inputs.shape[0] * 32 == pytest.approx(
        round(end.sparsity * inputs.shape[0] * 32), abs=1e-9
    )


def test_more_neurons_come_nearer_to_the_infinite_net():
    exact = relu_sparsity._infinite_range(2.5)[:2]
    rises = [
        np.mean(
            [np.subtract(*relu_sparsity._net_end(2.5, n, 1.0, 0.0, seed)[:2]) for seed in range(8)]
        )
        for n in (64, 4096)
    ]
    few, many = (abs(rise + 0.5 - np.mean(exact)) for rise in rises)
    assert many < 0.004
    assert many < few
