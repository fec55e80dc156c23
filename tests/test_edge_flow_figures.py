"""The figures of flows at the edge: what they average and compare, and what their headlines refuse."""

import numpy as np
import pytest

from figures import central_flow, edge_onset

ROUNDING = 1e-12


def failing(module, arrays, **changed):
    return [row.quantity for row in module.headline({**arrays, **changed}) if not row.holds]


@pytest.fixture(scope="module")
def onset():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge_onset, "STEPS_QUICK", 60)
        return edge_onset.compute(True)


@pytest.fixture(scope="module")
def central():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(central_flow, "NETWORK_STEPS_QUICK", 20)
        patch.setattr(central_flow, "DIGITS_STEPS_QUICK", 20)
        patch.setattr(central_flow, "VALLEY_STEPS_QUICK", 4000)
        patch.setattr(central_flow, "VALLEY_POINTS", 5)
        return central_flow.compute(True)


# --- the onset ---


def naive_valley(n_steps):
    path = [(0.01, 90.0)]
    for _ in range(n_steps):
        x, y = path[-1]
        path.append((x - 0.02 * x * y, y - 0.02 * (x**2 / 2 + y - 104)))
    return np.array(path)


def test_the_onset_compares_with_gradient_descent_without_its_part_of_period_two(onset):
    x, y = naive_valley(61).T
    for key, values in (("y", y), ("square", x**2)):
        averaged = onset[f"descent_{key}"]
        assert len(averaged) == 61
        for k in (1, 30, 60):
            expected = (values[k - 1] + 2 * values[k] + values[k + 1]) / 4
            assert abs(averaged[k] / expected - 1) < 1e-9
    alternating = edge_onset.smooth((-1.0) ** np.arange(9) + 3)
    np.testing.assert_allclose(alternating[1:], 3, rtol=ROUNDING)


def test_below_the_edge_the_valley_of_all_flows_is_that_of_gradient_flow(onset):
    # y' = -c (y - m) with no oscillation: m - (m - y_0) e^(-lr c k).
    early = onset["step"] < 40
    exact = 104 - 14 * np.exp(-0.02 * onset["step"][early])
    for name in edge_onset.KINDS:
        # A rod and an edge flow start half a step ahead, and a rod keeps to the steps of gradient descent.
        np.testing.assert_allclose(onset[f"{name}_y"][early], exact, atol=0.15)
    np.testing.assert_allclose(onset["gradient_y"][early], exact, rtol=1e-6)
    assert not onset["gradient_square"].any()


def ringing(factor, shift, steps):
    """What a flow looks like that rings with a period of 70 steps and rests at 100 and 8."""
    return factor**steps * np.cos(2 * np.pi * (steps - shift) / 70)


@pytest.fixture
def ideal():
    """Arrays with which every row holds: the later the ringing, the larger the error."""
    every, coarse = np.arange(1501), np.arange(0, 1501, 5)
    arrays = {"step": coarse}
    wave = 3 * ringing(edge_onset.DESCENT_RINGING, 0, every)
    arrays |= {"descent_y": 100 + wave, "descent_square": 8 + wave}
    for name, shift, height in (("edge", 0, 3), ("edge_linear", 5, 2.8), ("rod", 9, 2.6)):
        wave = height * ringing(edge_onset.FLOW_RINGING, shift, coarse)
        arrays |= {f"{name}_y": 100 + wave, f"{name}_square": 8 + wave}
    rest = np.zeros(len(coarse))
    # Too far at the start to be anything but the fourth.
    late = np.where(coarse < 20, -20.0, 0.0)
    arrays |= {"central_y": rest + 100 + late, "central_square": rest + 8 + late}
    for name in ("gradient", "rod_literal"):
        arrays |= {f"{name}_y": rest + 104, f"{name}_square": rest}
    return arrays


def test_the_onset_rows_hold_for_an_ideal_ringing_and_each_fails_alone(ideal):
    assert failing(edge_onset, ideal) == []

    def at_end(name, change):
        values = ideal[name].copy()
        values[-1] += change
        return {name: values}

    label = edge_onset.KINDS["rod"].label
    assert failing(edge_onset, ideal, **at_end("rod_y", 2e-3)) == [f"{label}: y at the end"]
    assert failing(edge_onset, ideal, **at_end("rod_square", -2e-3)) == [f"{label}: x^2 at the end"]
    assert failing(edge_onset, ideal, **at_end("gradient_y", -2e-3)) == [
        "gradient flow: y at the end"
    ]


def test_exchanged_flows_fail_the_order_of_errors(ideal):
    swapped = {
        f"{a}_{key}": ideal[f"{b}_{key}"]
        for a, b in (("edge", "edge_linear"), ("edge_linear", "edge"))
        for key in ("y", "square")
    }
    failed = failing(edge_onset, ideal, **swapped)
    assert "error in y: edge flow, linear rate / edge flow" in failed
    assert "error in x^2: edge flow, linear rate / edge flow" in failed
    assert "largest y: edge flow - edge flow, linear rate" in failed


def test_a_flow_that_ended_early_fails_its_rows(ideal):
    cut = {"central_y": ideal["central_y"][:-1], "central_square": ideal["central_square"][:-1]}
    failed = failing(edge_onset, ideal, **cut)
    assert "central flow: y at the end" in failed
    assert "error in y: gradient flow / central flow" in failed


def test_the_ringing_is_that_of_the_map_at_its_cycle():
    # Finite differences of two steps of gradient descent around (x, y) = (sqrt 8, 100).
    def twice(state):
        x, y = state
        for _ in range(2):
            x, y = x - 0.02 * x * y, y - 0.02 * (x**2 / 2 + y - 104)
        return np.array([x, y])

    cycle, h = np.array([np.sqrt(8), 100.0]), 1e-5
    np.testing.assert_allclose(twice(cycle), cycle, rtol=ROUNDING)
    columns = [(twice(cycle + h * e) - twice(cycle - h * e)) / (2 * h) for e in np.eye(2)]
    multipliers = np.linalg.eigvals(np.array(columns).T)
    np.testing.assert_allclose(np.abs(multipliers), edge_onset.DESCENT_RINGING**2, rtol=1e-7)


def test_a_ringing_that_does_not_shrink_as_predicted_fails(ideal):
    steps = ideal["step"]
    wave = 2.99 * ringing(edge_onset.DESCENT_RINGING, 0, steps)
    failed = failing(edge_onset, ideal, edge_y=100 + wave)
    assert failed == ["ringing per step: edge flow"]


# --- the central flow ---


def test_the_small_network_is_drawn_layer_by_layer():
    problem, theta = central_flow.network()
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((50, 5)), rng.standard_normal(50)
    W, w = rng.standard_normal((5, 40)) / np.sqrt(5), rng.standard_normal(40) / np.sqrt(40)
    assert problem.dim == 281
    outputs = np.tanh(X @ W) @ w
    np.testing.assert_allclose(problem.outputs(theta)[:, 0], outputs, rtol=ROUNDING, atol=ROUNDING)
    assert abs(problem.loss(theta) - np.mean((outputs - Y) ** 2) / 2) < ROUNDING


def naive_descent(arrays):
    """The small network and ten steps and one, from beside the start along the sharpest direction."""
    problem, theta = central_flow.network()
    sharpest = np.linalg.eigh(problem.hessian(theta))[1][:, -1]
    starts = theta + 1e-2 * sharpest, theta - 1e-2 * sharpest  # its sign is free
    path = [min(starts, key=lambda at: abs(problem.loss(at) - arrays["network_loss"][0]))]
    for _ in range(11):
        path.append(path[-1] - 0.4 * problem.gradient(path[-1]))
    return problem, path


def test_gradient_descent_starts_beside_the_start_and_is_averaged(central):
    problem, path = naive_descent(central)
    losses = [problem.loss(state) for state in path]
    np.testing.assert_allclose(central["network_loss"][:12], losses, rtol=1e-8)
    averaged = (losses[9] + 2 * losses[10] + losses[11]) / 4
    assert abs(central["network_loss_smooth"][10] / averaged - 1) < 1e-8
    centre = (path[9] + 2 * path[10] + path[11]) / 4
    top = np.linalg.eigvalsh(problem.hessian(centre))[::-1][:5] * 0.4 / 2
    np.testing.assert_allclose(central["network_eigenvalues"][1], top, rtol=1e-6)


def test_distances_are_those_of_a_flow_integrated_by_other_means(central):
    # Gradient flow by many small Euler steps, extrapolated.
    problem, path = naive_descent(central)
    centre = (path[9] + 2 * path[10] + path[11]) / 4
    ends = []
    for n in (2000, 4000):
        state = path[0]
        for _ in range(n):
            state = state - 4.0 / n * problem.gradient(state)
        ends.append(state)
    flow = 2 * ends[1] - ends[0]
    (at,) = np.flatnonzero(central["network_step_gradient"] == 10)
    expected = np.linalg.norm(flow - centre)
    np.testing.assert_allclose(central["network_distance_gradient"][at], expected, rtol=1e-3)


def test_the_valley_is_averaged_over_its_window_and_flows_have_its_closed_form(central):
    x, y, z = 0.01, 100.0, 0.0
    squares = []
    for _ in range(4501):
        squares.append(x**2)
        pull = y + 0.05 * z - 104
        x, y, z = x - 0.02 * x * y, y - 0.02 * (x**2 / 2 + pull), z - 0.02 * 0.05 * pull
    late = central["valley_late"]
    assert list(late) == [3000, 4000]
    means = [np.mean(squares[k - 500 : k + 501]) for k in late]
    np.testing.assert_allclose(central["valley_sigma_descent"], means, rtol=1e-9)
    closed = 8 * np.exp(-0.02 * 0.05**2 * central["valley_step"])
    np.testing.assert_allclose(central["valley_sigma_central"], closed, rtol=1e-5)


def test_the_central_flow_rests_at_the_edge_from_its_first_steps_on(central):
    assert central["network_ratio_central"][0] > 1.01
    np.testing.assert_allclose(central["network_ratio_central"][1:], 1, atol=1e-4)
    assert "digits_loss_central" not in central


@pytest.fixture
def complete(central):
    """Arrays of a longer run, made up, with which every row of the networks holds."""
    arrays = dict(central)
    for case, onset in central_flow.ONSETS.items():
        coarse, fine = np.arange(0, onset + 101, 10), np.arange(0, onset + 101, 5)
        arrays |= {
            f"{case}_step": coarse,
            f"{case}_loss_smooth": np.ones(onset + 101),
            f"{case}_eigenvalues": np.array([[1.01, 1.0, 0.95, 0.91, 0.6]]),
            f"{case}_ratio_gradient": np.array([1.5]),
        }
        for name, steps in (("gradient", fine), ("central", coarse), ("edge", fine)):
            near = 1.0 if name == "gradient" else 0.1
            arrays |= {
                f"{case}_step_{name}": steps,
                f"{case}_distance_{name}": np.full(len(steps), near),
                f"{case}_loss_{name}": np.full(len(steps), 0.5 if name == "gradient" else 1.0),
            }
    return arrays


def failing_networks(arrays, **changed):
    return [q for q in failing(central_flow, arrays, **changed) if not q.startswith("valley")]


def test_each_row_of_the_networks_fails_alone(complete):
    assert failing_networks(complete) == []
    near = complete["network_distance_central"].copy()
    near[complete["network_step"] == 50] = 0.6
    assert failing_networks(complete, network_distance_central=near) == [
        "network: central flow, times closer from step 40"
    ]
    near[complete["network_step"] == 50] = 0.4  # 2.5 times closer: enough there, not later
    near[complete["network_step"] == 90] = 0.4
    assert failing_networks(complete, network_distance_central=near) == [
        "network: central flow, times closer from step 80"
    ]
    assert failing_networks(complete, digits_loss_edge=1.3 * complete["digits_loss_edge"]) == [
        "digits: mean loss, edge flow"
    ]
    three = np.array([[1.01, 1.0, 0.95, 0.85, 0.6]])
    assert failing_networks(complete, network_eigenvalues=three) == [
        "network: directions above 0.9 of the edge"
    ]


def test_a_flow_that_ends_before_the_run_fails(complete):
    cut = {
        key: complete[key][:-1]
        for key in (
            "network_step_central",
            "network_distance_central",
            "network_loss_central",
        )
    }
    failed = failing_networks(complete, **cut)
    assert len(failed) == 4
    assert all("central flow" in quantity for quantity in failed)


def test_each_row_of_the_valley_fails_alone(complete):
    def failing_valley(**changed):
        failed = failing(central_flow, complete, **changed)
        return [quantity for quantity in failed if quantity.startswith("valley")]

    assert failing_valley() == []
    assert failing_valley(valley_sigma_central=complete["valley_sigma_central"] * 1.001) == [
        "valley: Sigma of the central flow, error"
    ]
    assert failing_valley(valley_sigma_descent=complete["valley_sigma_descent"] * 1.02) == [
        "valley: mean x^2 against central flow",
        "valley: mean x^2 against edge flow",
    ]
    assert failing_valley(valley_loss_edge=complete["valley_loss_edge"] * 1.01) == [
        "valley: mean loss against edge flow"
    ]
    assert failing_valley(valley_z_gradient=complete["valley_z_gradient"] + 1e-5) == [
        "valley: gradient flow stops at z"
    ]
    assert "valley: mean y against central flow" in failing_valley(
        valley_y_central=complete["valley_y_central"][:-1]
    )
