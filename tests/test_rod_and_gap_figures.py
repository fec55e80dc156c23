"""The figures of the rod flow, the sharpness gap and the adaptive central flow: closed forms, and teeth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import solve_discrete_lyapunov

import eosim
from eosim.flows import RodFlow
from eosim.flows.self_stabilization import NoisyEdge
from figures import adaptive_central_flow, rod_flow, sharpness_gap
from tests.test_figures import text_boxes

pytestmark = pytest.mark.timeout(300)  # the two fixtures take 5 s each on an idle core


def failing(module, arrays, **replaced):
    return [row.quantity for row in module.headline({**arrays, **replaced}) if not row.holds]


def assert_no_text_on_text(figure):
    boxes = text_boxes(figure)
    width, height = figure.canvas.get_width_height()
    for index, (text, box) in enumerate(boxes):
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, text
        assert [other for other, second in boxes[index + 1 :] if box.overlaps(second)] == [], text


# --- the rod flow -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rods():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rod_flow, "RODS_QUICK", np.array([2.1, 2.8, 3.05, 3.3]))
        patch.setattr(rod_flow, "FINE_QUICK", np.array([1.96, 2.5, 3.1]))
        patch.setattr(rod_flow, "AMPLITUDE_RATES", np.array([2.05, 2.9]))
        patch.setattr(rod_flow, "CENTRE_RATES", np.array([2.8, 3.1]))
        return rod_flow.compute(True)


def test_a_few_rods_end_where_they_should(rods):
    assert failing(rod_flow, rods) == []
    assert_no_text_on_text(rod_flow.draw(rods))


@pytest.mark.parametrize("eta_S", [3.001, 3.1, 3.4])
def test_the_asymmetric_cycle_is_one_of_gradient_descent(eta_S):
    centre, square = rod_flow.asymmetric(np.array(eta_S))
    p, q = centre + np.sqrt(square), np.sqrt(square) - centre
    S = eta_S / rod_flow.LR

    def step(w):
        return w - rod_flow.LR * (S * w - rod_flow.Q * w**3)

    assert step(p) == pytest.approx(-q, rel=1e-13)
    assert step(-q) == pytest.approx(p, rel=1e-13)
    # p^2 and q^2 are the roots of t^2 - (eta S - 1)/(eta Q) t + 1/(eta Q)^2.
    assert p**2 + q**2 == pytest.approx((eta_S - 1) / (rod_flow.LR * rod_flow.Q), rel=1e-13)
    assert p * q == pytest.approx(1 / (rod_flow.LR * rod_flow.Q), rel=1e-13)


def test_the_symmetric_cycle_is_one_of_gradient_descent_and_meets_the_asymmetric_one_at_three():
    w = np.sqrt(rod_flow.symmetric(np.array(2.7)))
    gradient = rod_flow.quartic(2.7).gradient(np.array([w]))[0]
    assert w - rod_flow.LR * gradient == pytest.approx(-w, rel=1e-14)
    centre, square = rod_flow.asymmetric(np.array(3.0))
    assert centre == 0
    assert square == pytest.approx(rod_flow.symmetric(np.array(3.0)), rel=1e-14)


def test_the_cycle_doubles_at_one_plus_the_root_of_five():
    def multiplier(eta_S):
        centre, square = rod_flow.asymmetric(np.array(eta_S))
        ends = centre + np.sqrt(square) * np.array([1, -1])
        curvature = eta_S / rod_flow.LR - 3 * rod_flow.Q * ends**2
        return float(np.prod(1 - rod_flow.LR * curvature))

    assert multiplier(rod_flow.DOUBLED) == pytest.approx(-1, rel=1e-12)
    assert multiplier(rod_flow.SPLIT) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(("kind", "base", "order"), [("centre", 3.0, 3), ("amplitude", 2.0, 2)])
def test_rates_of_rod_and_descent_agree_to_the_order_that_is_claimed(kind, base, order):
    eps = np.array([1e-2, 5e-3])
    gap = rod_flow.descent_rates(kind, base + eps) - rod_flow.rod_rates(kind, base + eps)
    assert np.log2(gap[0] / gap[1]) == pytest.approx(order, abs=0.05)


def test_rates_of_the_rod_are_those_of_its_field():
    eta_S, h = 3.1, 1e-6
    square = float(rod_flow.symmetric(np.array(eta_S)))
    rod = RodFlow(rod_flow.quartic(eta_S), rod_flow.RULE)
    slopes = np.empty((2, 2))
    for column, push in enumerate(h * np.eye(2)):
        ahead, behind = (rod.field(np.array([0, square]) + sign * push) for sign in (1, -1))
        slopes[:, column] = rod_flow.LR * (ahead - behind) / (2 * h)
    np.testing.assert_allclose(slopes[0, 0], rod_flow.rod_rates("centre", eta_S), rtol=1e-6)
    np.testing.assert_allclose(slopes[1, 1], rod_flow.rod_rates("amplitude", eta_S), rtol=1e-6)
    np.testing.assert_allclose([slopes[0, 1], slopes[1, 0]], 0, atol=1e-6)


def test_a_rod_that_stays_on_the_line_beyond_the_split_fails(rods):
    stuck = rods["rod"].copy()
    beyond = rods["rods"] > 3
    stuck[beyond, 0], stuck[beyond, 1] = 0, rod_flow.symmetric(rods["rods"][beyond])
    assert failing(rod_flow, rods, rod=stuck) == [
        "rod's ends - closed form",
        "rod: least centre beyond the split",
    ]


@pytest.mark.parametrize(
    ("name", "change", "quantities"),
    [
        ("rod", lambda ends: ends + np.array([0, 2e-5]), ["rod's ends - closed form"]),
        ("rod", lambda ends: ends * np.nan, ["rod's ends", "rod: least centre"]),
        ("at_rods", lambda w: w + 1e-6, ["gradient descent's ends - closed form"]),
        ("centred", lambda ends: ends + 2e-5, ["rod with z = 0"]),
        ("residual", lambda velocity: velocity + 1e-10, ["rod's velocity"]),
        ("central_status", lambda s: np.where(s == s, "COMPLETED", s), ["central flow at w = 0"]),
        ("central", lambda ends: ends * [1.001, 1], ["central flow off centre"]),
        ("central", lambda ends: ends * [1, 1.001], ["central flow off centre"]),
        # Five steps late, of about 70.
        ("course_rod", lambda path: np.roll(path, 5, axis=0), ["course beyond the split"]),
        ("centre_rate", lambda rates: rates * [1, 1.01], ["rod: rate of the centre"]),
        ("amplitude_rate", lambda rates: rates * [1.01, 1], ["GD: rate of the amplitude"]),
    ],
)
def test_an_end_or_a_rate_beside_its_closed_form_fails(rods, name, change, quantities):
    failed = failing(rod_flow, rods, **{name: change(rods[name])})
    assert len(failed) == len(quantities)
    assert all(quantity.startswith(part) for quantity, part in zip(failed, quantities, strict=True))


def test_descent_that_never_doubles_fails(rods):
    w = rods["at_rods"].copy()
    w[rods["rods"] > rod_flow.DOUBLED] = np.tile([4.0, -2.5], 8)
    assert failing(rod_flow, rods, at_rods=w) == ["beyond 1 + sqrt 5: |w(t+2) - w(t)|"]


# --- the sharpness gap --------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [0.02, 0.005, 0.1])
@pytest.mark.parametrize("relative", [1.1, 2.0, 9.0])
def test_the_weak_noise_limit_is_that_of_the_linear_recursion(lr, relative):
    alpha, force = sharpness_gap.ALPHA, relative * 2 * lr * sharpness_gap.ALPHA
    # X = ln(x^2/2 alpha) and y, per unit of s^2.
    A = np.array([[1, 2 * lr], [-lr * alpha, 1 - lr * force]])
    covariance = solve_discrete_lyapunov(A, np.diag([2 * lr**2 / alpha, 0]))
    # E ln|1 + lr y + lr s xi/x| = 0, to second order.
    mean_y = lr / 2 * (covariance[1, 1] + 1 / (2 * alpha))
    expected = -mean_y / (lr / (4 * alpha))
    found = sharpness_gap.weak_noise_limit(np.array(lr), np.array(force))
    assert found == pytest.approx(expected, rel=1e-8)
    assert found < -1


def test_measures_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr(sharpness_gap, "N_STEPS", 300)
    monkeypatch.setattr(sharpness_gap, "DROPPED", 100)
    model = sharpness_gap.edge(0.02, 0.1, 10.0)
    found = sharpness_gap.measure(model, 3, seed=5)
    generator = np.random.default_rng(5)
    x, S = [2.0] * 3, [100.0] * 3
    ys, ones = [[], [], []], [[], [], []]
    for step in range(301):
        kicks = generator.standard_normal(3)
        for k in range(3):
            y = S[k] - 100
            if step >= 100:
                ys[k].append(y)
                ones[k].append(-(100 * y * x[k] ** 2 + y**2 * x[k] ** 2) / 100)
            slope = x[k] ** 2 / 2 + 0.1 * (S[k] - 140)
            x[k] -= 0.02 * (S[k] * x[k] + 10 * kicks[k])
            S[k] -= 0.02 * slope
    means = np.array([np.mean(y) for y in ys])
    ratios = -means / (0.02 * 100 / (4 * 0.1 * (40 - means.mean())))
    ones = np.array([np.mean(one) for one in ones])
    expected = {
        "ratio": ratios.mean(),
        "error": ratios.std(ddof=1) / np.sqrt(3),
        "identity": ones.mean(),
        "identity_error": ones.std(ddof=1) / np.sqrt(3),
        "bounded": 1.0,
    }
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_gap_of_second_order_differs_from_the_mean_by_what_has_no_mean():
    lr, noise, seed = 0.02, 3.0, 4
    model = NoisyEdge(lr, 0.5, 108, noise)
    x, S = model.simulate(400, 2, seed=seed)
    kicks = noise * np.random.default_rng(seed).standard_normal((400, 2))
    growth = np.log(np.abs(x[-1] / x[0])) / (400 * lr)
    first_order = (kicks / x[:-1]).mean(axis=0)
    plain = -(S[:-1] - 2 / lr).mean(axis=0)
    reduced = sharpness_gap.second_order_gap(x, S, lr)
    np.testing.assert_allclose(reduced, plain - first_order + growth, rtol=0, atol=1e-10)


def test_runs_are_near_the_formula_of_the_other_sign_and_at_the_weak_noise_limit():
    strong = sharpness_gap.measure(sharpness_gap.edge(0.02, 0.03, 40.0), 12, seed=1)
    assert strong["ratio"] == pytest.approx(1.07, abs=0.05)
    lifted = sharpness_gap.measure(sharpness_gap.edge(0.02, 1.0, 10.0), 12, seed=1)
    assert lifted["ratio"] == pytest.approx(-1.32, abs=0.25)
    for one in (strong, lifted):
        assert abs(one["identity"] - 1) < 5 * one["identity_error"]
    ratio, error = sharpness_gap._weak(0.02, 4.0, 12)
    limit = sharpness_gap.weak_noise_limit(np.array(0.02), np.array(0.64))
    assert error < 0.02
    assert abs(ratio - limit) < 5 * error


def claimed_gaps():
    """Gaps that do what the figure claims."""
    noise = sharpness_gap.NOISES_QUICK
    ratio = np.array(
        [
            [
                [45, 5.3, 1.86, 1.21, 1.07],
                [8.7, 1.8, 1.19, 1.06, 1.04],
                [-1.1, -1.3, -1.3, 0.1, 0.7],
            ],
            [[-2.9, 0.8, 1.1, 1, 1], [-1, -2.6, -0.795, 0.489, 0.871], [-1, -0.9, -1.2, -1.3, 0.1]],
        ]
    )
    arrays = {"noise": noise, "replicas": np.array(60), "ratio": ratio}
    arrays |= {"error": 0.02 + 0 * ratio, "identity_error": 0.02 + 0 * ratio}
    arrays |= {"identity": 1 + 0 * ratio, "bounded": 1 + 0 * ratio}
    for lr, relative in sharpness_gap.WEAK_FORCES.items():
        limit = sharpness_gap.weak_noise_limit(
            np.array(lr), relative * 2 * lr * sharpness_gap.ALPHA
        )
        arrays[f"weak_{lr:g}"] = np.column_stack([limit, 0.01 + 0 * limit])
    angle = np.linspace(0, 20, 200)
    for name in sharpness_gap.ORBITS:
        arrays[f"orbit_{name}"] = np.column_stack([1 + np.sin(angle), 3 * np.cos(angle)])
    return arrays


def at(index, value):
    def change(values):
        values = values.copy()
        values[index] = value
        return values

    return change


@pytest.mark.parametrize(
    ("name", "change", "quantities"),
    [
        ("noise", lambda noise: noise, []),
        # The formula with the wrong sign, or half of it.
        (
            "ratio",
            lambda ratio: -ratio,
            [
                "c = 0.1, eta = 0.02: |ratio - 1|, s >= 10",
                "c = 0.03, both rates: |ratio - 1|, s = 40",
                "c = 1: ratio + 4.5 SE, s = 5 to 10",
                "c = 1, eta = 0.02: ratio - 4.5 SE, s = 40",
                "c = 0.03, eta = 0.02: ratio - 4.5 SE, s = 2",
                "c = 0.1, eta = 0.005: ratio at s = 10",
                "c = 0.1, eta = 0.005: ratio at s = 20",
                "c = 0.1, eta = 0.005: ratio at s = 40",
            ],
        ),
        ("ratio", at((0, 1, 3), 1.3), ["c = 0.1, eta = 0.02: |ratio - 1|, s >= 10"]),
        ("ratio", at((1, 0, 4), 0.8), ["c = 0.03, both rates: |ratio - 1|, s = 40"]),
        ("ratio", at((1, 2, 2), -0.05), ["c = 1: ratio + 4.5 SE, s = 5 to 10"]),
        ("ratio", at((1, 1, 3), 0.3), ["c = 0.1, eta = 0.005: ratio at s = 20"]),
        ("ratio", at((0, 0, 4), np.nan), ["c = 0.03, both rates: |ratio - 1|, s = 40"]),
        ("identity", at((1, 2, 0), 1.1), ["exact identity of E[y x^2]: SE apart"]),
        ("bounded", at((0, 0, 0), 0.98), ["replicas that stay bounded: least share"]),
        ("weak_0.02", lambda weak: weak - [0.05, 0], ["weak noise, eta = 0.02: SE from its limit"]),
        (
            "weak_0.005",
            lambda weak: weak * [0.85, 100],
            ["weak noise, eta = 0.005: error"],
        ),
    ],
)
def test_only_gaps_as_claimed_hold(name, change, quantities):
    arrays = claimed_gaps()
    assert failing(sharpness_gap, arrays, **{name: change(arrays[name])}) == quantities


def test_the_gap_is_computed_and_drawn_for_every_setting(monkeypatch):
    for name, value in (("N_STEPS", 120), ("DROPPED", 20), ("ORBIT_STEPS", 100)):
        monkeypatch.setattr(sharpness_gap, name, value)
    seeds, measure = [], sharpness_gap.measure

    def noted(model, n_replicas, seed):
        seeds.append(seed)
        return measure(model, n_replicas, seed)

    monkeypatch.setattr(sharpness_gap, "measure", noted)
    arrays = sharpness_gap.compute(True)
    assert arrays["ratio"].shape == (2, 3, len(sharpness_gap.NOISES_QUICK))
    assert len(set(seeds)) == arrays["ratio"].size, "no two settings share their noise"
    assert arrays.keys() == claimed_gaps().keys()
    assert_no_text_on_text(sharpness_gap.draw(claimed_gaps()))


# --- the adaptive central flow ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adaptive():
    short = {
        name: (H, beta2, min(n_steps, 40_000), shown)
        for name, (H, beta2, n_steps, shown) in adaptive_central_flow.QUADRATICS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptive_central_flow, "QUADRATICS", short)
        patch.setattr(adaptive_central_flow, "STEPS", 5000)
        patch.setattr(adaptive_central_flow, "N_TIMES_QUICK", 8)
        return adaptive_central_flow.compute(True)


# In 5000 of 20,000 steps the sharpness grows from 20 to 70.
SHORT = ["RMSProp: raw sharpness, end / start", "Adam: raw sharpness, end / start"]


def test_short_runs_follow_the_central_flow(adaptive):
    assert failing(adaptive_central_flow, adaptive) == SHORT
    assert_no_text_on_text(adaptive_central_flow.draw(adaptive))


@pytest.mark.parametrize("name", adaptive_central_flow.QUADRATICS)
def test_the_stationary_preconditioner_solves_its_problem_and_the_dual_one(name):
    H = adaptive_central_flow.QUADRATICS[name][0]
    P, Z = adaptive_central_flow.stationary(name)
    slack = 2 * np.diag(P) - H
    assert np.linalg.eigvalsh(slack)[0] > -1e-14
    assert np.linalg.eigvalsh(Z)[0] > -1e-14
    np.testing.assert_array_equal(np.diag(Z), 1)
    np.testing.assert_allclose(slack @ Z, 0, atol=1e-14)
    assert P.sum() == pytest.approx(np.sum(H * Z) / 2, rel=1e-14)


def test_the_swing_at_the_edge_solves_the_balance_of_the_second_moments():
    lr, c2, y = adaptive_central_flow.LR, 1 / 99, np.array([25.0, 80.0, 200.0])
    for name, edge in adaptive_central_flow.EDGES.items():
        square = adaptive_central_flow.closed_form(name, y)
        nu = (lr * y / edge) ** 2
        # d ln nu/dt = c2 (y^2 x^2/nu - 1) = 2 d ln y/dt, where y grows by lr per step.
        np.testing.assert_allclose(c2 * (y**2 * square / nu - 1), 2 * lr / y, rtol=1e-12)


def test_second_moments_are_those_of_the_rule():
    rule = eosim.RMSProp(0.01, 0.9, eps=0.0)
    problem = eosim.Quadratic(np.array([[4.0, 1.0], [1.0, 2.0]]))
    nu = np.array([2.0, 3.0])
    run = eosim.run(problem, rule, None, 30, state=eosim.RunState(np.ones(2), (nu, 0)), record={})
    gradients = run.theta[:-1] @ problem.hessian(np.zeros(2))
    found = adaptive_central_flow.second_moments(nu, gradients, 0.9)
    assert found.shape == (31, 2)
    np.testing.assert_array_equal(found[0], nu)
    np.testing.assert_allclose(found[-1], run.final_state.rule_state[0], rtol=1e-13)


@pytest.mark.parametrize("name", adaptive_central_flow.RULES)
def test_ratios_of_the_toy_are_those_of_the_state_after_each_step(name, monkeypatch):
    monkeypatch.setattr(adaptive_central_flow, "STEPS", 150)
    found = adaptive_central_flow._toy_run(name)
    rule, state = adaptive_central_flow.RULES[name], adaptive_central_flow.start(name, 1e-5)
    run = eosim.run(adaptive_central_flow.toy(), rule, None, 150, state=state, record={})
    nu = run.final_state.rule_state[{"rmsprop": 0, "adam": 1}[name]][0]
    ratio = run.theta[-1, 1] * 0.01 / np.sqrt(nu) / {"rmsprop": 2, "adam": 38}[name]
    assert found[f"{name}_ratio"][-1] == pytest.approx(ratio, rel=1e-12)
    assert found[f"{name}_ratio"][0] == pytest.approx(0.9, rel=1e-12)


def test_preconditioners_of_quadratics_are_those_of_the_state_after_each_step(monkeypatch):
    H = np.array([[4.0, 1.0], [1.0, 2.0]])
    monkeypatch.setitem(adaptive_central_flow.QUADRATICS, "positive", (H, 0.99, 0, 40))
    found = adaptive_central_flow._quadratic("positive", 60)
    w, nu = 1e-3 * np.array([1, -0.7]), np.full(2, (1e-3 * (3 + np.sqrt(2)) / 1.8) ** 2)
    for _ in range(40):
        g = H @ w
        nu = 0.99 * nu + 0.01 * g**2
        w = w - 1e-3 * g / np.sqrt(nu)
    np.testing.assert_allclose(found["positive_P"][-1], np.sqrt(nu) / 1e-3, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "change", "quantities"),
    [
        ("rmsprop_ratio", lambda r: 1.002 * r, ["RMSProp: ratio to the edge, median"]),
        ("adam_ratio", lambda r: r / 2, ["Adam: ratio to the edge, median"]),
        ("rmsprop_flow_ratio", lambda r: r + 1e-4, ["RMSProp: central flow's |ratio - 1|"]),
        ("rmsprop_flow_y", lambda y: 1.0002 * y, ["RMSProp: its y / mean y - 1"]),
        ("rmsprop_square", lambda x: 1.005 * x, ["RMSProp: mean x^2 / its Sigma, median"]),
        (
            "rmsprop_flow_square",
            lambda x: 1.005 * x,
            ["RMSProp: its Sigma / closed form - 1", "RMSProp: mean x^2 / its Sigma, median"],
        ),
        ("adam_flow_square", lambda x: 1.0005 * x, ["Adam: its Sigma / closed form - 1"]),
        ("frozen_y", lambda y: y + np.arange(y.size) / 100, ["frozen: y / y when frozen - 1"]),
        ("stable_status", lambda _: np.array("COMPLETED"), ["stable flow: LEFT_RANGE"]),
        ("positive_flow_P", lambda P: 1.001 * P, ["positive: central flow's P and Z"]),
        ("negative_flow_Z", np.abs, ["negative: central flow's P and Z"]),
        (
            "negative_mean_P",
            lambda P: P + 1e-10,
            ["negative: RMSProp's mean P / closed form - 1"],
        ),
        ("positive_Z", lambda Z: Z + 1e-10, ["positive: RMSProp's Z - closed form"]),
        (
            "frustrated_mean_P",
            lambda P: 1.03 * P,
            ["frustrated: RMSProp's mean P / closed form - 1"],
        ),
        ("frustrated_Z", lambda Z: np.sign(Z), ["frustrated: RMSProp's Z - closed form"]),
    ],
)
def test_a_number_beside_its_closed_form_fails(adaptive, name, change, quantities):
    failed = failing(adaptive_central_flow, adaptive, **{name: change(adaptive[name])})
    assert [quantity for quantity in failed if quantity not in SHORT] == quantities


def test_a_live_run_that_is_blocked_fails(adaptive):
    y = np.minimum(adaptive["rmsprop_y"], 40)
    failed = failing(adaptive_central_flow, adaptive, rmsprop_y=y)
    assert "live: y / y when frozen, as long" in failed
    assert "RMSProp: its y / mean y - 1" in failed
