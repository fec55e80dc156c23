"""Comparison: errors as one would compute them by hand, at the edge of stability too."""

from dataclasses import replace

import numpy as np
import pytest

import eosim
from eosim import RunState, Status
from eosim.flows import CentralFlow, EdgeFlow, RodFlow, StableFlow
from eosim.optimizers import ScalarRMSProp
from tests import naive
from tests.cases import QUARTIC_TERMS, edge_network, symmetric

QUARTIC, POINT = eosim.Polynomial(QUARTIC_TERMS), np.array([0.7, -0.5])
STANDARD = [
    "gradient flow",
    "modified, order 2",
    "modified, order 3",
    "modified, order 4",
    "principal flow",
    "principal + T[g,g]",
]


def quartic(n_steps=4, lr=0.2, **options):
    return eosim.compare(QUARTIC, eosim.GradientDescent(lr), POINT, n_steps, **options)


# --- errors by hand -----------------------------------------------------------------------------


def test_global_errors_are_the_distances_to_the_iterates():
    found = quartic()
    iterates = naive.gradient_descent(QUARTIC.gradient, POINT, 4, 0.2)
    np.testing.assert_allclose(found.iterates.theta, iterates, rtol=1e-14)
    assert [*found.flows] == STANDARD
    flows = {
        "gradient flow": eosim.GradientFlow(QUARTIC, 0.2),
        "modified, order 3": eosim.ModifiedFlow(QUARTIC, 0.2, 3),
        "principal flow": eosim.PrincipalFlow(QUARTIC, 0.2),
        "principal + T[g,g]": eosim.PrincipalFlow(QUARTIC, 0.2, corrections=1),
    }
    for name, flow in flows.items():
        path = eosim.integrate(flow, POINT, 0.2 * np.arange(5)).theta
        np.testing.assert_allclose(found.flows[name].theta, path, rtol=1e-10, atol=1e-12)
        by_hand = np.linalg.norm(path - iterates, axis=1)
        np.testing.assert_allclose(found.global_error[name], by_hand, rtol=1e-7, atol=1e-11)
        assert found.global_error[name][0] == 0


def test_the_imaginary_part_counts_in_the_global_error_only():
    problem, lr = eosim.Rosenbrock(), 1.2e-3
    flows = {"pf": eosim.PrincipalFlow(problem, lr)}
    found = eosim.compare(problem, eosim.GradientDescent(lr), [1.2, 1.2], 5, flows)
    gaps = found.flows["pf"].theta - found.iterates.theta
    np.testing.assert_allclose(found.global_error["pf"], np.linalg.norm(gaps, axis=1))
    np.testing.assert_allclose(found.real_error["pf"], np.linalg.norm(gaps.real, axis=1))
    assert (found.global_error["pf"][1:] > 1.01 * found.real_error["pf"][1:]).all()
    for value in found.real_error.values():
        assert np.isrealobj(value)


def test_restart_errors_are_relative_to_the_step():
    found = quartic(n_steps=5, restart_every=2)
    np.testing.assert_array_equal(found.restart_at, [0, 2, 4])
    iterates = found.iterates.theta
    flow = eosim.PrincipalFlow(QUARTIC, 0.2)
    for index, k in enumerate((0, 2, 4)):
        path = eosim.integrate(flow, iterates[k], [0.2])
        error = np.linalg.norm(path.theta[0] - iterates[k + 1])
        error /= 0.2 * np.linalg.norm(QUARTIC.gradient(iterates[k]))
        assert found.restart_error["principal flow"][index] == pytest.approx(error, rel=1e-6)
    for name in STANDARD:  # the first restart is the first global step
        ratio = found.restart_error[name][0] * np.linalg.norm(iterates[1] - iterates[0])
        assert ratio == pytest.approx(found.global_error[name][1], rel=1e-6)


def test_the_squares_of_the_splits_sum_to_those_of_the_real_errors():
    problem, theta = edge_network()
    lr = 0.7
    start = eosim.run(problem, eosim.GradientDescent(lr), theta, 100, record={}).theta[-1]
    flows = {"igr": eosim.ModifiedFlow(problem, lr), "pf": eosim.PrincipalFlow(problem, lr)}
    found = eosim.compare(problem, eosim.GradientDescent(lr), start, 2, flows)
    for name in flows:
        split = found.global_split[name]
        assert split.shape == (3, 25)
        np.testing.assert_allclose(
            np.sum(split**2, axis=1), found.real_error[name] ** 2, rtol=1e-10, atol=1e-30
        )
        restart = found.restart_split[name]
        assert restart.shape == (2, 25)
        assert np.isrealobj(restart)
        step = np.linalg.norm(np.diff(found.iterates.theta, axis=0), axis=1)
        size = np.sqrt(np.sum(restart**2, axis=1)) / step
        assert (size <= found.restart_error[name] * (1 + 1e-9)).all()
        if name == "igr":  # no imaginary part
            np.testing.assert_allclose(size, found.restart_error[name], rtol=1e-10)
    # beyond the edge nearly all of a truncated flow's error is along the sharpest direction
    first = found.restart_split["igr"][0]
    assert first[0] ** 2 > 0.98 * np.sum(first**2)


def test_splits_are_along_the_eigenvectors_of_the_iterate():
    matrix = symmetric([1.7, 0.9, 0.2], 3)
    problem, theta0 = eosim.Quadratic(matrix), np.array([1.0, -2.0, 0.5])
    flows = {"ngf": eosim.GradientFlow(problem, 1.0)}
    found = eosim.compare(problem, eosim.GradientDescent(1.0), theta0, 3, flows)
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = values[::-1], vectors[:, ::-1]
    np.testing.assert_allclose(found.z, np.tile(values, (4, 1)), rtol=1e-12)
    offset = vectors.T @ theta0
    for k in range(4):
        expected = (np.exp(-k * values) - (1 - values) ** k) * offset
        actual = found.global_split["ngf"][k]
        np.testing.assert_allclose(np.abs(actual), np.abs(expected), rtol=1e-7, atol=1e-10)
    for k in range(3):
        expected = (np.exp(-values) - (1 - values)) * (1 - values) ** k * offset
        actual = found.restart_split["ngf"][k]
        np.testing.assert_allclose(np.abs(actual), np.abs(expected), rtol=1e-7, atol=1e-10)


def test_curvatures_are_those_of_the_iterates():
    found = quartic()
    expected = [0.2 * np.linalg.eigvalsh(QUARTIC.hessian(x))[::-1] for x in found.iterates.theta]
    np.testing.assert_allclose(found.z, expected, rtol=1e-12)


# --- what it is for -----------------------------------------------------------------------------


def test_on_a_quadratic_only_the_principal_flow_follows():
    problem = eosim.Quadratic(symmetric([2.2, 1.4, 0.3, -0.2], 1))
    found = eosim.compare(problem, eosim.GradientDescent(1.0), np.ones(4), 8)
    for name, errors in found.global_error.items():
        if "principal" in name:
            assert errors.max() < 1e-8
            assert found.restart_error[name].max() < 1e-9
        else:
            assert errors.max() > 0.1
            assert found.restart_error[name].min() > 1e-3


@pytest.mark.parametrize("iterate", [100, 500])
def test_at_the_edge_of_stability_the_principal_flow_is_ten_times_closer(iterate):
    problem, theta = edge_network()
    lr = 0.7
    rule = eosim.GradientDescent(lr)
    start = eosim.run(problem, rule, theta, iterate, record={}).theta[-1]
    flows = {
        "gradient flow": eosim.GradientFlow(problem, lr),
        "order 2": eosim.ModifiedFlow(problem, lr, 2),
        "principal flow": eosim.PrincipalFlow(problem, lr),
    }
    found = eosim.compare(problem, rule, start, 1, flows)
    assert found.z[0, 0] > 2
    errors = {name: values[0] for name, values in found.restart_error.items()}
    assert 10 * errors["principal flow"] < errors["gradient flow"]
    assert 10 * errors["principal flow"] < errors["order 2"]


def test_the_real_part_of_the_field_alone_does_not_follow():
    problem, theta = edge_network()
    lr = 0.7
    rule = eosim.GradientDescent(lr)
    start = eosim.run(problem, rule, theta, 100, record={}).theta[-1]
    principal = eosim.PrincipalFlow(problem, lr)

    class RealPart:
        is_complex = False

        def field(self, theta, branch=None):
            return principal.field(theta).real

    flow = RealPart()
    flow.problem, flow.lr = problem, lr
    flows = {"gradient flow": eosim.GradientFlow(problem, lr), "real part": flow}
    found = eosim.compare(problem, rule, start, 1, flows)
    assert found.restart_error["real part"][0] > found.restart_error["gradient flow"][0]


@pytest.mark.parametrize(("lr", "first"), [(0.1, 0), (0.7, 20)])
def test_over_twenty_steps_on_the_network_better_flows_are_closer(lr, first):
    problem, theta = edge_network()
    rule = eosim.GradientDescent(lr)
    start = eosim.run(problem, rule, theta, first, record={}).theta[-1]
    flows = [
        eosim.GradientFlow(problem, lr),
        eosim.ModifiedFlow(problem, lr),
        eosim.PrincipalFlow(problem, lr),
    ]
    found = eosim.compare(problem, rule, start, 20, flows, restart=False, rtol=1e-8)
    for n in (1, 2, 5, 10, 20):
        errors = [found.global_error[type(flow).__name__][n] for flow in flows]
        assert errors[2] < errors[1] < errors[0]


def test_on_rosenbrock_the_flows_order_as_tabulated():
    found = eosim.compare(
        eosim.Rosenbrock(), eosim.GradientDescent(8e-4), [0.5, 0.6], 30, restart=False
    )
    final = {name: errors[30] for name, errors in found.global_error.items()}
    order = [
        "modified, order 4",
        "principal + T[g,g]",
        "modified, order 3",
        "principal flow",
        "modified, order 2",
        "gradient flow",
    ]
    assert sorted(final, key=final.get) == order
    assert final["principal flow"] == pytest.approx(4.51103e-4, abs=1e-9)


# --- other rules and flows ----------------------------------------------------------------------


def test_heavy_ball_has_a_standard_flow_and_no_restarts():
    problem, lr = eosim.Quadratic(np.diag([0.05, 0.02])), 0.8
    rule = eosim.HeavyBall(lr, 0.3)
    found = eosim.compare(problem, rule, [1.0, 1.0], 60)
    assert [*found.flows] == ["heavy-ball principal flow"]
    assert len(found.restart_at) == 0
    assert len(found.restart_error["heavy-ball principal flow"]) == 0
    # parallel after burn-in: the start at rest only costs an offset
    theta = found.flows["heavy-ball principal flow"].theta.real
    ratio = found.iterates.theta[40:] / theta[40:]
    np.testing.assert_allclose(ratio, np.tile(ratio[0], (21, 1)), rtol=1e-7)
    assert "HeavyBall" in str(found)
    assert "restart" not in str(found)


def test_a_users_flow_can_be_compared_too():
    class Frozen:
        problem, lr, is_complex = QUARTIC, 0.2, False

        def field(self, theta, branch=None):
            return 0 * theta

    found = quartic(flows=[Frozen(), eosim.GradientFlow(QUARTIC)])
    assert [*found.flows] == ["Frozen", "GradientFlow"]
    still = np.linalg.norm(found.iterates.theta - POINT, axis=1)
    np.testing.assert_allclose(found.global_error["Frozen"], still, rtol=1e-12)
    np.testing.assert_allclose(found.restart_error["Frozen"], 1.0, rtol=1e-12)


def test_flows_may_come_from_a_generator_or_a_mapping():
    kinds = (eosim.GradientFlow, eosim.ModifiedFlow)
    found = quartic(flows=(kind(QUARTIC, 0.2) for kind in kinds))
    assert [*found.flows] == ["GradientFlow", "ModifiedFlow"]
    named = {f"order {n}": eosim.ModifiedFlow(QUARTIC, 0.2, n) for n in (2, 1)}
    assert [*quartic(flows=named).flows] == ["order 2", "order 1"]


def test_restarts_can_be_left_out():
    found = quartic(restart=False)
    assert len(found.restart_at) == 0
    assert "restart" not in str(found)
    for name in STANDARD:
        assert len(found.global_error[name]) == 5


def test_errors_of_large_problems_are_not_split():
    values = np.linspace(0, 0.5, 600)
    problem = eosim.Quadratic(np.diag(values))
    flows = {"pf": eosim.PrincipalFlow(problem, 1.0), "ngf": eosim.GradientFlow(problem, 1.0)}
    found = eosim.compare(problem, eosim.GradientDescent(1.0), np.ones(600), 2, flows)
    assert found.z is None
    assert found.global_split is None
    assert found.restart_split is None
    assert found.global_error["pf"].max() < 1e-8
    assert "lambda_1" not in str(found)


def test_a_comparison_is_repeatable_and_modifies_nothing():
    theta = POINT.copy()
    theta.flags.writeable = False
    rule = eosim.GradientDescent(0.2)
    first, second = (eosim.compare(QUARTIC, rule, theta, 2) for _ in range(2))
    for name in STANDARD:
        np.testing.assert_array_equal(first.global_error[name], second.global_error[name])
        np.testing.assert_array_equal(first.restart_split[name], second.restart_split[name])
    with pytest.raises((AttributeError, TypeError)):
        first.z = None
    assert replace(first, z=None).z is None


# --- flows of the centre ------------------------------------------------------------------------

EDGE_LR = 0.02
EDGE_RULE = eosim.GradientDescent(EDGE_LR)


def toy_a(c=1.0, m=104.0):
    """y x^2/2 + c (y - m)^2/2, which ends on the 2-cycle y = 2/lr, x^2 = 2 c (m - 2/lr)."""
    return eosim.Polynomial({(2, 1): 0.5, (0, 2): c / 2, (0, 1): -c * m, (0, 0): c * m**2 / 2})


def toy_c():
    """y x^2/2 - y, whose curvature y grows for ever at a constant rate."""
    return eosim.Polynomial({(2, 1): 0.5, (0, 1): -1.0})


def at_the_edge(flows, n_steps=200, **options):
    options = {"every": 100, "rtol": 1e-6, **options}
    return eosim.compare(toy_a(), EDGE_RULE, [0.01, 90.0], n_steps, flows, **options)


def kernel(reach):
    """Weights of a trapezoidal mean over 2 * reach steps."""
    return np.array([1, *[2] * (2 * reach - 1), 1]) / (4 * reach)


@pytest.mark.parametrize("window", [2, 4, 6])
def test_centres_and_averages_are_trapezoidal_means_that_shrink_at_the_ends(window):
    found = quartic(n_steps=9, window=window, flows=[eosim.GradientFlow(QUARTIC, 0.2)])
    iterates = found.iterates.theta
    losses = np.array([QUARTIC.loss(x) for x in iterates])
    squares = np.array([np.sum(QUARTIC.gradient(x) ** 2) for x in iterates])

    def smooth(values):
        out = [(values[0] + values[1]) / 2]
        for k in range(1, 9):
            reach = min(window // 2, k, 9 - k)
            out.append(sum(w * values[k - reach + i] for i, w in enumerate(kernel(reach))))
        return np.array([*out, (values[8] + values[9]) / 2])

    centres = smooth(iterates)
    centres[0] = (3 * iterates[0] + 2 * iterates[1] - iterates[2]) / 4
    centres[9] = (3 * iterates[9] + 2 * iterates[8] - iterates[7]) / 4
    swings = np.sum((iterates - centres) ** 2, axis=1)
    expected = {"loss": losses, "squared_gradient": squares, "oscillation": swings}
    assert found.measured.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found.measured[name], smooth(values), rtol=1e-12)
    gaps = found.flows["GradientFlow"].theta - centres
    np.testing.assert_allclose(
        found.centred_error["GradientFlow"], np.linalg.norm(gaps, axis=1), rtol=1e-10
    )


def test_a_swing_of_period_two_is_averaged_out():
    problem = eosim.Quadratic(np.diag([2.0, 0.0]), [0.0, 0.5])  # (-1)^k and a constant drift
    flow = EdgeFlow(problem, 1.0)
    found = eosim.compare(problem, eosim.GradientDescent(1.0), [1.0, 0.0], 8, [flow])
    drift = found.iterates.theta[:, 1]
    np.testing.assert_allclose(np.diff(drift), drift[1], rtol=1e-12)
    np.testing.assert_allclose(found.measured["oscillation"], 1, rtol=1e-12)
    np.testing.assert_allclose(found.predicted["EdgeFlow"]["oscillation"], 1, rtol=1e-9)
    # The edge flow starts from the middle of the first step: half a step ahead from then on.
    np.testing.assert_allclose(found.centred_error["EdgeFlow"], abs(drift[1]) / 2, rtol=1e-8)


def test_flows_of_the_centre_predict_the_averages_of_an_oscillation():
    problem = toy_a()
    flows = {
        "central": CentralFlow(problem, EDGE_RULE),
        "rod": RodFlow(problem, EDGE_RULE),
        "edge": EdgeFlow(problem, EDGE_LR),
        "gradient": eosim.GradientFlow(problem, EDGE_LR),
    }
    found = at_the_edge(flows, 1400, restart_every=200)
    late = slice(-3, -1)  # the oscillation has settled, by a factor e^(-1/120) per step
    for name in ("central", "rod", "edge"):
        for quantity, measured in found.measured.items():
            ratio = found.predicted[name][quantity][late] / measured[late]
            np.testing.assert_allclose(ratio, 1, rtol=4e-3, err_msg=f"{name}, {quantity}")
        assert (found.centred_error[name][late] < 2e-3).all()
        # The iterates are a swing away from it.
        np.testing.assert_allclose(found.real_error[name][late] ** 2, 8, rtol=4e-3)
        assert np.isnan(found.restart_error[name]).all()
        assert found.restart_error[name].shape == (7,)
        assert np.isnan(found.restart_split[name]).all()
    assert (found.centred_error["gradient"][late] > 3.9).all()
    assert np.isfinite(found.restart_error["gradient"]).all()


def test_other_flows_predict_what_they_are_at():
    found = quartic(n_steps=3, flows={"pf": eosim.PrincipalFlow(QUARTIC, 0.2)})
    path, predicted = found.flows["pf"].theta.real, found.predicted["pf"]
    np.testing.assert_allclose(predicted["loss"], [QUARTIC.loss(x) for x in path], rtol=1e-12)
    squares = [np.sum(QUARTIC.gradient(x) ** 2) for x in path]
    np.testing.assert_allclose(predicted["squared_gradient"], squares, rtol=1e-12)
    np.testing.assert_array_equal(predicted["oscillation"], np.zeros(4))


def test_flows_are_compared_at_every_so_many_iterates_and_the_last():
    flows = [eosim.GradientFlow(QUARTIC, 0.2), EdgeFlow(QUARTIC, 0.2)]
    found, dense = (quartic(n_steps=11, flows=flows, every=every) for every in (4, 1))
    np.testing.assert_array_equal(found.at, [0, 4, 8, 11])
    np.testing.assert_array_equal(dense.at, np.arange(12))
    assert len(found.iterates) == 12
    np.testing.assert_array_equal(found.z, dense.z[found.at])
    np.testing.assert_array_equal(found.restart_at, dense.restart_at)
    for name in found.flows:
        for each in ("global_error", "real_error", "centred_error", "global_split"):
            thin, thick = getattr(found, each)[name], getattr(dense, each)[name]
            np.testing.assert_allclose(
                np.abs(thin), np.abs(thick[found.at]), rtol=1e-6, atol=1e-11, err_msg=each
            )
        for quantity, values in found.predicted[name].items():
            thick = dense.predicted[name][quantity][found.at]
            np.testing.assert_allclose(values, thick, rtol=1e-7)
    for quantity, values in found.measured.items():
        np.testing.assert_array_equal(values, dense.measured[quantity][found.at])


def adaptive_state(nu_x, momentum=False):
    theta, nu = np.array([1e-5, 20.0]), np.array([nu_x, 1.0])
    return RunState(theta, (np.array([0.0, -1.0]), nu, 0) if momentum else (nu, 0))


def test_an_adaptive_rule_goes_on_from_its_state_and_so_does_its_flow():
    problem, lr = toy_c(), 0.01
    rule = eosim.RMSProp(lr, 0.99, eps=0.0)
    state = adaptive_state((lr * 20 / 1.8) ** 2)
    warm = eosim.run(problem, rule, None, 7, state=state).final_state
    flows = {"central": CentralFlow(problem, rule), "gradient": eosim.GradientFlow(problem, lr)}
    options = {"state": warm, "every": 250, "window": 200, "rtol": 1e-6}
    found = eosim.compare(problem, rule, None, 1500, flows, **options)
    assert found.iterates.step[0] == 7
    np.testing.assert_array_equal(found.iterates.theta[0], warm.theta)
    np.testing.assert_array_equal(found.flows["gradient"].theta[0], warm.theta)
    np.testing.assert_allclose(found.flows["central"].t, lr * found.at, rtol=1e-12)
    alone = eosim.integrate(flows["central"], None, lr * found.at, state=warm, rtol=1e-6, record={})
    np.testing.assert_allclose(found.flows["central"].theta, alone.theta, rtol=1e-9)
    assert len(found.restart_at) == 0
    for quantity in ("squared_gradient", "oscillation"):
        ratio = found.predicted["central"][quantity][3:-1] / found.measured[quantity][3:-1]
        np.testing.assert_allclose(ratio, 1, rtol=0.012)
    assert (found.centred_error["central"][1:-1] < 1e-3).all()  # y moves by 15


def test_adam_and_scalar_rmsprop_can_be_compared_too():
    problem, lr = toy_c(), 0.01
    adam = eosim.Adam(lr, 0.9, 0.99, eps=0.0, bias_correction=False)
    state = adaptive_state((lr * 20 / 34.2) ** 2, momentum=True)
    options = {"window": 20, "rtol": 1e-6, "restart": False}
    flows = {"stable": StableFlow(problem, adam)}  # below the edge
    found = eosim.compare(problem, adam, None, 60, flows, state=state, every=20, **options)
    assert (found.centred_error["stable"][1:-1] < 2e-5).all()  # y moves by 0.6
    scalar, toy = ScalarRMSProp(0.5, 0.99), toy_a(0.02, 60.0)
    theta = np.array([0.001, 20.0])
    start = RunState(theta, (np.array(np.sum(toy.gradient(theta) ** 2)),))
    flows = {"central": CentralFlow(toy, scalar), "stable": StableFlow(toy, scalar)}
    found = eosim.compare(toy, scalar, None, 100, flows, state=start, every=20, **options)
    # The central flow holds the edge, which the rule approaches from below and beyond which the
    # other goes.
    assert (found.centred_error["central"][1:] < found.centred_error["stable"][1:] / 2).all()
    assert not found.predicted["stable"]["oscillation"].any()


def test_a_flow_that_does_not_exist_at_the_start_has_no_errors_and_is_shown():
    problem = eosim.Polynomial({(2,): 10.5, (4,): -0.25})
    rule = eosim.GradientDescent(0.1)
    flows = {"central": CentralFlow(problem, rule), "edge": EdgeFlow(problem, 0.1)}
    found = eosim.compare(problem, rule, [0.0], 12, flows)
    assert found.flows["central"].status is Status.LEFT_RANGE
    for errors in (found.global_error, found.centred_error, found.predicted["central"]):
        assert len(errors["central" if "central" in errors else "loss"]) == 0
    rows = str(found).splitlines()
    (row,) = [line for line in rows if line.startswith("central")]
    assert row.split() == ["central", *["-"] * 8, "LEFT_RANGE"]
    assert len(found.centred_error["edge"]) == 13


def test_a_diverging_optimizer_is_averaged_up_to_its_end():
    problem = eosim.Polynomial({(2,): 0.5, (6,): 1.0})
    flows = [EdgeFlow(problem, 0.5), eosim.GradientFlow(problem, 0.5)]
    found = eosim.compare(problem, eosim.GradientDescent(0.5), [2.0], 30, flows)
    assert found.iterates.status is Status.DIVERGED
    for values in found.measured.values():
        assert values.shape == (len(found.iterates),)
    assert "EdgeFlow" in str(found)


def test_the_table_of_averages_is_there_for_oscillating_flows_only():
    problem = toy_a()
    flows = {"edge": EdgeFlow(problem, EDGE_LR), "gradient": eosim.GradientFlow(problem, EDGE_LR)}
    found = at_the_edge(flows, restart=False)
    first, head, gradient, second, other_head, *rows = str(found).splitlines()
    assert first.startswith("distance to GradientDescent(lr=0.02) at iterate k")
    assert " ".join(head.split()) == "flow k = 100 k = 200 ended"
    assert gradient.startswith("gradient")
    assert second.startswith("distance to the centre of GradientDescent(lr=0.02) over 2 steps")
    assert " ".join(other_head.split()) == "flow k = 100 k = 200 loss |g|^2 swing^2 ended"
    for name, row in zip(flows, rows, strict=True):
        numbers = [found.centred_error[name][k] for k in (1, 2)]
        for quantity, measured in found.measured.items():
            numbers.append(np.median(np.abs(found.predicted[name][quantity] / measured - 1)))
        cells = row.removeprefix(name).split()
        assert cells == [*(f"{number:.2e}" for number in numbers), "COMPLETED"]
    only = str(at_the_edge({"edge": flows["edge"]}))
    assert only.startswith("distance to the centre")
    assert len(only.splitlines()) == 3
    assert "centre" not in str(at_the_edge({"gradient": flows["gradient"]}, restart=False))


# --- failures -----------------------------------------------------------------------------------


def test_a_flow_that_ends_early_is_kept_up_to_there_and_shown():
    problem, lr = eosim.Cosine(), 2.2  # the principal flow blows up where descent saturates
    flows = {
        "pf": eosim.PrincipalFlow(problem, lr),
        "igr": eosim.ModifiedFlow(problem, lr),
        "ngf": eosim.GradientFlow(problem, lr),
    }
    found = eosim.compare(problem, eosim.GradientDescent(lr), [0.1], 30, flows, restart_every=10)
    pf = found.flows["pf"]
    assert pf.status is not Status.COMPLETED
    assert len(found.global_error["pf"]) == len(pf) < 31
    assert len(found.global_split["pf"]) == len(pf)
    assert len(found.global_error["ngf"]) == 31
    (row,) = [line for line in str(found).splitlines() if line.startswith("pf")]
    assert row.endswith(pf.status.name)
    assert " - " in row
    assert found.flows["ngf"].status is Status.COMPLETED


def test_a_restart_that_fails_is_nan_and_spoils_only_its_own_entry():
    # h * lambda = -2.5 at the crest, where an even truncation does not exist; +2.5 at the bottom
    problem, lr = eosim.Cosine(), 2.5
    flows = {"igr": eosim.ModifiedFlow(problem, lr), "ngf": eosim.GradientFlow(problem, lr)}
    found = eosim.compare(problem, eosim.GradientDescent(lr), [np.pi - 0.05], 6, flows)
    assert found.flows["igr"].status is Status.LEFT_RANGE
    assert len(found.flows["igr"]) == 1
    igr = found.restart_error["igr"]
    assert np.isnan(igr[0])
    assert np.isfinite(igr[-1])
    assert np.isfinite(found.restart_error["ngf"]).all()
    assert np.isnan(found.restart_split["igr"][0]).all()
    (row,) = [line for line in str(found).splitlines() if line.startswith("igr")]
    assert row.endswith("LEFT_RANGE")
    # what is known about the other restarts is shown
    assert f"{np.nanmedian(igr):.2e}" in row


def test_a_diverging_optimizer_is_compared_up_to_its_end():
    problem = eosim.Polynomial({(2,): 0.5, (6,): 1.0})
    found = eosim.compare(problem, eosim.GradientDescent(0.5), [2.0], 30)
    assert found.iterates.status is Status.DIVERGED
    assert "DIVERGED" in str(found)
    for name in STANDARD:
        assert len(found.restart_error[name]) == len(found.iterates) - 1


def test_a_start_at_a_minimum_has_no_relative_error():
    problem = eosim.Quadratic(np.diag([1.0, 0.5]))
    found = eosim.compare(problem, eosim.GradientDescent(0.1), [0.0, 0.0], 3)
    for name in STANDARD:
        assert not found.global_error[name].any()
        assert np.isnan(found.restart_error[name]).all()
    assert str(found).count("COMPLETED") == 6


# --- the table ----------------------------------------------------------------------------------


def test_the_table_can_be_read():
    found = quartic(n_steps=12)
    title, head, *rows = str(found).splitlines()
    assert title.startswith("distance to GradientDescent(lr=0.2) at iterate k")
    assert f"h * lambda_1 from {found.z[0, 0]:.4g} to {found.z[-1, 0]:.4g}" in title
    columns = "flow k = 1 k = 2 k = 5 k = 10 k = 12 restart median worst ended"
    assert " ".join(head.split()) == columns
    assert len(rows) == 6
    assert len({len(line) for line in (head, *rows)}) == 1  # aligned
    for name, row in zip(STANDARD, rows, strict=True):
        cells = row.removeprefix(name).split()
        numbers = [found.global_error[name][k] for k in (1, 2, 5, 10, 12)]
        numbers += [np.median(found.restart_error[name]), found.restart_error[name].max()]
        assert cells == [*(f"{number:.2e}" for number in numbers), "COMPLETED"]


@pytest.mark.parametrize("n_steps", [0, 1])
def test_the_shortest_comparisons_print_too(n_steps):
    text = str(quartic(n_steps=n_steps))
    assert len(text.splitlines()) == 8
    assert text.count("COMPLETED") == 6


def test_a_progress_bar_goes_to_standard_error(capsys):
    quartic(n_steps=1)
    assert capsys.readouterr().err == ""
    quartic(n_steps=1, progress=True)
    assert "12/12" in capsys.readouterr().err


# --- arguments ----------------------------------------------------------------------------------


def compare_with(**changed):
    arguments = {
        "problem": QUARTIC,
        "rule": eosim.GradientDescent(0.2),
        "theta0": POINT,
        "n_steps": 2,
        "flows": None,
        **changed,
    }
    return eosim.compare(**arguments)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"rule": eosim.DAL()}, (TypeError, ValueError), "lr"),
        ({"rule": eosim.GradientDescent}, TypeError, "instance, got the class GradientDescent"),
        ({"rule": eosim.Nesterov(0.1)}, ValueError, "no standard flows for Nesterov"),
        (
            {"flows": [eosim.ModifiedFlow(QUARTIC, 0.2, n) for n in (1, 2)]},
            ValueError,
            "pass a mapping",
        ),
        ({"flows": eosim.PrincipalFlow(QUARTIC, 0.2)}, TypeError, "flows"),
        ({"flows": [3]}, TypeError, "flow"),
        ({"flows": {"three": 3}}, TypeError, "flow"),
        ({"flows": [eosim.GradientFlow(eosim.Cosine(3))]}, ValueError, "problem|dim"),
        ({"theta0": [1.0]}, ValueError, r"theta0 must have shape \(2,\)"),
        ({"theta0": None}, (TypeError, ValueError), "theta0"),
        ({"n_steps": -1}, ValueError, "n_steps"),
        ({"n_steps": 2.0}, TypeError, "n_steps"),
        ({"restart_every": 0}, ValueError, "restart_every"),
        ({"every": 0}, ValueError, "every"),
        ({"window": 3}, ValueError, "window must be even"),
        ({"window": 0}, ValueError, "window"),
        ({"window": 2.0}, TypeError, "window"),
        ({"state": RunState(POINT, ())}, ValueError, "theta0 must be None"),
        (
            {"flows": {"rms": StableFlow(QUARTIC, eosim.RMSProp(0.2))}},
            ValueError,
            "rms is a flow of RMSProp, and the rule is GradientDescent",
        ),
        ({"rtol": 0.0}, ValueError, "rtol"),
    ],
)
def test_bad_arguments_are_refused_with_their_name(changed, error, message):
    with pytest.raises(error, match=message):
        compare_with(**changed)


def test_a_flow_on_a_problem_of_another_size_names_the_flow():
    with pytest.raises(ValueError, match="GradientFlow"):
        compare_with(flows=[eosim.GradientFlow(eosim.Cosine(3))])
