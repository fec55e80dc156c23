"""The figure of the stochastic edge of a network: its rule, its statistics, and wrong numbers fail it."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

import eosim
from eosim.stability import noise_kernel_norm, tangent_kernel
from figures import _parity_network as task
from figures import stochastic_edge_network as figure

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def net():
    return task.parity_network()[0]


@pytest.fixture
def small(monkeypatch):
    """Runs of a few steps, in seconds."""
    for module, values in (
        (
            task,
            {
                "N_STEPS": 120,
                "EVERY": 30,
                "NORM_EVERY": 60,
                "LATE": 6,  # more than the records of the extra steps
                "CONTROLLED": (4,),
                "TEN_BATCHES": (4,),
            },
        ),
        (
            figure,
            {
                "RATES_QUICK": (0.1, 0.3),
                "BATCHES_QUICK": (1, 4, figure.N_SAMPLES),
                "SEEDS_QUICK": 2,
                "TEN_SAMPLES_QUICK": 8,
            },
        ),
    ):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("batch_size", [1, 4, 16, 99])
@pytest.mark.parametrize("target", [0.1, 0.5, 0.99])
def test_the_rate_gives_the_norm_its_target_and_lies_below_the_edge(net, batch_size, target):
    theta = net.initial(1)
    rate = task.HeldNoise(net, batch_size, target, 10).rate(theta)
    kernel = tangent_kernel(net, theta)
    norm = noise_kernel_norm(kernel, rate, batch_size, kind="finite")
    assert norm == pytest.approx(target, rel=1e-7)
    assert rate * kernel.largest < 2
    assert noise_kernel_norm(kernel, rate, batch_size) >= norm


def test_a_single_mode_comes_to_one_at_the_edge_only():
    twice = eosim.Perceptron([[1.0, 2.0]] * 2, [1.0, 0.0], (3,))
    theta = twice.initial(0)
    edge = 2 / tangent_kernel(twice, theta).largest
    assert task.HeldNoise(twice, 1, 1.0, 10).rate(theta) == pytest.approx(edge, rel=2e-9)
    assert task.HeldNoise(twice, 1, 0.5, 10).rate(theta) == pytest.approx(edge / 2, rel=1e-9)


def test_the_rule_is_descent_at_the_rate_of_the_last_measurement(net):
    rule = task.HeldNoise(net, 4, 0.5, 20)
    path = eosim.run(net, rule, net.initial(0), 50, batch_size=4, seed=3)
    state, theta = None, net.initial(0)
    for n_steps in (20, 20, 10):
        lr = rule.rate(theta)
        piece = eosim.run(
            net, eosim.GradientDescent(lr), theta if state is None else None, n_steps,
            batch_size=4, seed=3 if state is None else None, state=state and _memoryless(state),
        )  # fmt: skip
        state, theta = piece.final_state, piece.theta[-1]
    np.testing.assert_array_equal(path.theta[-1], theta)


def _memoryless(state):
    return eosim.RunState(state.theta, (), state.step, state.t, state.bound, state.stream)


def test_the_kernel_of_a_network_is_its_ntk_with_as_many_outputs():
    data = task.load(7)
    net = eosim.Perceptron(data.inputs, data.targets, (3,))
    theta = net.initial(0)
    kernel = task.kernel_of(net, theta)
    assert kernel.n_outputs == 10
    expected = tangent_kernel(net, theta)
    assert kernel.trace == pytest.approx(expected.trace, rel=1e-12)
    assert kernel.largest == pytest.approx(expected.largest, rel=1e-12)
    np.testing.assert_allclose(kernel.matrix, expected.matrix, rtol=0, atol=1e-9 * kernel.largest)


def test_targets_are_the_parity_of_the_digits():
    data = task.load(20)
    net, _, held_out = task.parity_network()
    assert {float(y) for y in net.targets.ravel()} == {-1.0, 1.0}
    np.testing.assert_array_equal(net.targets[:20, 0] > 0, data.labels % 2 == 1)
    assert len(held_out) == task.N_HELD_OUT


@pytest.mark.parametrize("batch_size", figure.CONTROLLED)
def test_equal_cost_is_as_many_gradients_of_samples(batch_size):
    measurements = task.N_STEPS // task.EVERY
    held = task.N_STEPS * batch_size + measurements * figure.N_SAMPLES
    steps = task.N_STEPS + task.extra_steps(batch_size)
    assert 0 <= held - steps * batch_size < batch_size


def test_runs_of_the_figure_are_sgd_and_norms_are_those_of_their_states(small):
    net, inputs, targets = task.parity_network()
    arrays = figure.compute(True)
    at = (1, 0, 1)  # B = 4, rate 0.1, seed 1
    longer = task.N_STEPS + task.extra_steps(4)
    path = eosim.run(
        net, eosim.GradientDescent(0.1), net.initial(1), longer, batch_size=4, seed=1, every=30
    )
    np.testing.assert_array_equal(arrays["loss"][at], path["loss"][:5])
    np.testing.assert_array_equal(arrays["longer_loss"][at], path["loss"][-6:])
    for k, theta in enumerate(path.theta[:5:2]):
        kernel = tangent_kernel(net, theta)
        assert arrays["top"][at][k] == pytest.approx(0.05 * kernel.largest, rel=1e-10)
        assert arrays["exact"][at][k] == pytest.approx(noise_kernel_norm(kernel, 0.1, 4), rel=1e-8)
    wrong = [np.sign(net.outputs(theta, inputs)[:, 0]) != targets for theta in path.theta[:5]]
    np.testing.assert_array_equal(arrays["error"][at], np.mean(wrong, axis=1))


def test_held_runs_of_the_figure_follow_the_rule_and_their_norms_leave_the_target(small, net):
    arrays = figure.compute(True)
    rule = task.HeldNoise(net, 4, task.TARGET, 30)
    path = eosim.run(net, rule, net.initial(1), 120, batch_size=4, seed=1, every=30)
    np.testing.assert_array_equal(arrays["held_loss"][0, 1], path["loss"])
    rates = [
        rule.rate(path.theta[k]) for k in (0, 1, 3)
    ]  # the last one before the steps 0, 60, 120
    np.testing.assert_array_equal(arrays["held_rate"][0, 1], rates)
    for k, rate in enumerate(rates):
        kernel = tangent_kernel(net, path.theta[2 * k])
        for kind in ("finite", "exact"):
            norm = noise_kernel_norm(kernel, rate, 4, kind=kind)
            assert arrays[f"held_{kind}"][0, 1, k] == pytest.approx(norm, rel=1e-8)
    assert arrays["held_finite"][0, 1, 0] == pytest.approx(task.TARGET, rel=1e-9)
    assert (np.abs(arrays["held_finite"][0, 1, 1:] / task.TARGET - 1) > 1e-3).all()


def test_runs_that_hold_the_edge_are_those_of_the_rule_at_1(small, net):
    arrays = figure.compute(True)
    rule = task.HeldNoise(net, 4, 1.0, 30)
    path = eosim.run(net, rule, net.initial(1), 120, batch_size=4, seed=1, every=30)
    np.testing.assert_array_equal(arrays["edge_loss"][0, 1], path["loss"])


def test_a_run_is_lost_if_it_diverges_or_ends_above_its_start():
    edge = np.array([[[1.0, 2.0], [1.0, 0.5], [1.0, np.inf]]])
    assert list(figure.lost({"edge_loss": edge, "held_loss": np.ones((1, 3, 2))})) == [2]


def test_ends_of_ten_outputs_have_their_norms(small):
    arrays = figure.compute(True)
    data = task.load(8)
    net = eosim.Perceptron(data.inputs, data.targets, task.HIDDEN)
    path = eosim.run(
        net, eosim.GradientDescent(task.TEN_RATE), net.initial(0), 120, batch_size=4, seed=0
    )
    kernel = tangent_kernel(net, path.theta[-1])
    for kind in task.KINDS:
        norm = noise_kernel_norm(kernel, task.TEN_RATE, 4, kind=kind)
        assert arrays[f"ten_{kind}"][0] == pytest.approx(norm, rel=1e-8)
    assert arrays["ten_top"][0] == pytest.approx(task.TEN_RATE * kernel.largest / 2, rel=1e-10)


def test_a_diverged_run_has_no_end_and_no_score(small):
    arrays = figure.compute(True)
    assert not figure.alive(arrays, 1, 0.3).any()
    assert len(figure.final(arrays, "exact", 1, 0.3)) == 0
    assert figure.alive(arrays, 1, 0.1).all()


def test_late_is_the_mean_of_the_last_records():
    values = np.arange(24.0).reshape(2, 12)
    assert figure.late(values) == pytest.approx(values[:, 12 - figure.LATE :].mean(axis=1))


def test_the_interval_is_that_of_the_paired_t_test():
    first, second = np.random.default_rng(0).normal(size=(2, 7))
    mean, half = figure.interval(first - second)
    low, high = ttest_rel(first, second).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-12)


def plausible(n_seeds=3):
    """Arrays of the shapes of the figure on which every row holds: held = best rate of each batch."""
    rates, batches = np.array([0.05, 0.1, 0.3]), np.array([1, 4, 16, figure.N_SAMPLES])
    shape = (len(batches), len(rates), n_seeds)
    wiggle = 10 ** (0.02 * np.arange(n_seeds))
    # log10 loss over (batch, rate): each batch size has another best rate; 0.1 is best for all.
    losses = np.array([[-2.0, -1.0, np.inf], [-1.8, -3.0, -2.5], [-2.0, -3.0, -4.5], [-2, -3, -4]])
    loss = 10.0 ** losses[:, :, None] * wiggle
    held = 10.0 ** np.array([-2.0, -3.0, -4.5])[:, None] * wiggle
    ends = np.full((*shape, 6), 0.7)
    ends[..., 0] = 1.3
    tops = np.full((*shape, 6), 0.5)
    tops[-1] = 1.0
    longer = np.repeat((loss * 10**-0.5)[..., None], figure.LATE, axis=-1)
    longer[:, 1] *= 10**-0.2
    return {
        "rates": rates,
        "batches": batches,
        "loss": np.repeat(loss[..., None], 16, axis=-1),
        "longer_loss": longer,
        "error": np.full((*shape, 16), 0.1),
        "longer_error": np.full((*shape, figure.LATE), 0.1),
        "held_loss": np.repeat(held[..., None], 16, axis=-1),
        "edge_loss": np.repeat(10.0 ** np.array([1, -2, -5])[:, None] * wiggle, 16).reshape(
            3, -1, 16
        ),
        "held_error": np.full((3, n_seeds, 16), 0.12),
        "held_finite": np.full((3, n_seeds, 6), task.TARGET),
        "exact": ends,
        "top": tops,
        "ten_exact": np.array([0.9, 0.5, 0.1]),
    }


def failing(arrays):
    return [row.quantity for row in figure.headline(arrays) if not row.holds]


def test_comparisons_find_planted_differences():
    found = figure.comparisons(plausible())
    for size in figure.CONTROLLED:
        assert found[f"steps_{size}"] == pytest.approx((0, 0), abs=1e-12)
        assert found[f"error_steps_{size}"] == pytest.approx((2, 0), abs=1e-12)
    assert found["cost_16"] == pytest.approx((0.5, 0), abs=1e-12)
    assert found["cost_4"] == pytest.approx((0.7, 0), abs=1e-12)  # the rate 0.1 gains more
    # One rate for all: 0.1, at -1, -3, -3 against -2, -3, -4.5; 0.3 diverges at B = 1.
    assert found["steps_common"] == pytest.approx((-2.5 / 3, 0), abs=1e-12)


def test_a_loss_that_differs_in_single_seeds_widens_the_interval():
    arrays = plausible()
    arrays["held_loss"][1, 0] *= 10
    mean, half = figure.comparisons(arrays)["steps_4"]
    assert mean == pytest.approx(1 / 3)
    assert half == pytest.approx(4.302652729911275 * (1 / 3), rel=1e-9)  # t(0.975, 2) s / sqrt(3)


@pytest.mark.parametrize(
    ("name", "change", "broken"),
    [
        ("exact", lambda x: np.where(np.arange(6) > 3, 1.1, x), "B <= 4: largest median K at the end"),
        ("exact", lambda x: 0.7 + 0 * x, "B = 4, rate 0.3: K at the start"),
        ("top", lambda x: 0.9 * x, "full batches: end over edge"),
        ("top", lambda x: np.maximum(x, 0.8), "B = 4: end over edge"),
        ("held_finite", lambda x: x + 0.05, "held K: median distance from its target"),
        ("edge_loss", lambda x: x / 1e4, "K held at 1: lost of 3 at B = 1"),
        ("ten_exact", lambda x: x + 0.2, "ten outputs: largest exact K"),
    ],
)  # fmt: skip
def test_a_wrong_end_fails_its_row(name, change, broken):
    arrays = plausible()
    baseline = failing(arrays)
    arrays[name] = change(arrays[name])
    assert [row for row in failing(arrays) if row not in baseline] == [broken]


def test_a_rule_that_wins_or_loses_fails_the_comparisons():
    arrays = plausible()
    assert "held K - best rate of each B, log10 loss: equal steps" not in failing(arrays)
    for factor in (2.0, 0.5):
        changed = arrays | {"held_loss": arrays["held_loss"] * factor}
        assert "held K - best rate of each B, log10 loss: equal steps" in failing(changed)
    cheap = arrays | {"longer_loss": arrays["longer_loss"] * 10**0.5}
    assert "the same: equal cost" in failing(cheap)
