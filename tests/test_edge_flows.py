"""Central, rod and edge flow against gradient descent and adaptive rules, on toys with known answers."""

from __future__ import annotations

import numpy as np
import pytest

import eosim
from eosim.flows import (
    CentralFlow,
    EdgeFlow,
    GradientFlow,
    RodFlow,
    StableFlow,
    _modes,
    self_stabilization,
)
from eosim.flows._complementarity import NoSolution, solve_complementarity
from eosim.flows._modes import top_modes
from eosim.optimizers import ScalarRMSProp
from eosim.trajectory import RunState, Status
from tests.cases import symmetric

LR = 0.02
DESCENT = eosim.GradientDescent(LR)


def toy_a(c: float, m: float) -> eosim.Polynomial:
    """y x^2/2 + c (y - m)^2/2 in (x, y)."""
    return eosim.Polynomial({(2, 1): 0.5, (0, 2): c / 2, (0, 1): -c * m, (0, 0): c * m**2 / 2})


def smooth(values: np.ndarray) -> np.ndarray:
    """Without the part of period 2."""
    return np.concatenate([values[:1], (values[:-2] + 2 * values[1:-1] + values[2:]) / 4])


# --- the complementarity problem ---


def complementarity_gap(A: np.ndarray, B: np.ndarray, X: np.ndarray) -> float:
    """The worst violation of X >= 0, S >= 0, <X, S> = 0, relative to A and X."""
    S = A + np.einsum("ijmn,mn->ij", B, X)
    size, length = np.linalg.norm(A), max(np.linalg.norm(X), 1e-300)
    return max(
        -np.linalg.eigvalsh(S)[0] / size,
        -np.linalg.eigvalsh(X)[0] / length,
        abs(np.sum(X * S)) / (size * length),
    )


def random_problem(rng: np.random.Generator, k: int) -> tuple[np.ndarray, np.ndarray]:
    """A Gram B with weights over two decades, and any A."""
    D = rng.standard_normal((k, k, 3 * k * k)) * 10 ** rng.uniform(-1, 1, size=3 * k * k)
    D = D + D.transpose(1, 0, 2)
    A = rng.standard_normal((k, k)) * 10 ** rng.uniform(-3, 3)
    return A + A.T, np.einsum("ijp,mnp->ijmn", D, D)


@pytest.mark.parametrize("k", range(1, 7))
def test_both_factors_are_positive_and_orthogonal(k):
    rng = np.random.default_rng(k)
    active = 0
    for _ in range(40):
        A, B = random_problem(rng, k)
        X = solve_complementarity(A, B)
        assert complementarity_gap(A, B, X) < 1e-8
        active += X.any()
    assert active > 10


def test_the_solution_is_the_minimum_of_its_quadratic():
    rng = np.random.default_rng(7)
    A, B = random_problem(rng, 3)
    A -= 2 * np.abs(np.linalg.eigvalsh(A)).max() * np.eye(3)
    X = solve_complementarity(A, B)

    def value(Y: np.ndarray) -> float:
        return float(np.einsum("ij,ijmn,mn", Y, B, Y) / 2 + np.sum(A * Y))

    for _ in range(200):
        factor = rng.standard_normal((3, 3))
        other = X + 0.1 * np.trace(X) * (factor @ factor.T - X / np.trace(X))
        if np.linalg.eigvalsh(other)[0] >= 0:
            assert value(other) >= value(X) - 1e-9 * abs(value(X))


def test_with_the_identity_it_is_the_negative_part():
    A = np.array([[1.0, 2.0], [2.0, -3.0]])
    identity = np.einsum("im,jn->ijmn", np.eye(2), np.eye(2))
    values, vectors = np.linalg.eigh(A)
    expected = (vectors * np.maximum(-values, 0)) @ vectors.T
    np.testing.assert_allclose(solve_complementarity(A, identity), expected, atol=1e-12)


def test_it_turns_with_the_frame():
    rng = np.random.default_rng(3)
    A, B = random_problem(rng, 4)
    Q = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    turned_B = np.einsum("ia,jb,mc,nd,abcd->ijmn", Q, Q, Q, Q, B)
    turned = solve_complementarity(Q @ A @ Q.T, turned_B)
    np.testing.assert_allclose(turned, Q @ solve_complementarity(A, B) @ Q.T, atol=1e-9)


def test_what_has_no_solution_is_refused():
    with pytest.raises(NoSolution):
        solve_complementarity(np.diag([-1.0, 1.0]), np.zeros((2, 2, 2, 2)))
    singular = np.zeros((2, 2, 2, 2))
    singular[0, 0, 0, 0] = 1.0
    with pytest.raises(NoSolution):
        solve_complementarity(-np.eye(2), singular)


# --- modes ---


def test_tracked_modes_equal_decomposed_ones(monkeypatch):
    rng = np.random.default_rng(0)
    net = eosim.Perceptron(rng.standard_normal((20, 3)), rng.standard_normal((20, 1)), (6,))
    theta, root = net.initial(0), rng.uniform(0.5, 2, net.dim)
    dense = top_modes(net, theta, root, 3, None)
    monkeypatch.setattr(_modes, "DENSE_DIM", 2)
    tracked = top_modes(net, theta, root, 3, None)
    np.testing.assert_allclose(tracked.values, dense.values, rtol=1e-12)
    np.testing.assert_allclose(tracked.following, dense.following, rtol=0.05)
    overlap = np.abs(np.sum(tracked.vectors * dense.vectors, axis=0))
    np.testing.assert_allclose(overlap, 1, atol=1e-12)


def test_modes_of_a_crowded_spectrum_are_found_and_those_below_the_floor_roughly(monkeypatch):
    monkeypatch.setattr(_modes, "DENSE_DIM", 2)
    values = np.concatenate([[1.3], np.linspace(1.2, 0.0, 300)])  # gaps of 0.004
    problem, one = eosim.Quadratic(np.diag(values)), np.ones(301)
    found = top_modes(problem, np.zeros(301), one, 6, None)
    np.testing.assert_allclose(found.values, values[:6], rtol=1e-10)
    rough = top_modes(problem, np.zeros(301), one, 6, None, floor=1.25)
    assert abs(rough.values[0] - 1.3) < 1e-10
    np.testing.assert_allclose(rough.values, values[:6], rtol=0.02)


@pytest.mark.parametrize("k", [1, 30, 31, 32, 48, 62, 63, 64, 65, 100])
def test_any_number_of_modes_is_found(k):
    # Beyond 30 of 65 a block and its residuals would be more vectors than there are directions.
    matrix, zero = symmetric(np.linspace(-1, 2.1, 65), 3), np.zeros(65)
    expected = np.append(np.linspace(2.1, -1, 65), -np.inf)
    found = top_modes(eosim.Quadratic(matrix), zero, zero + 1, k, None)
    assert found.vectors.shape == (65, min(k, 65))
    np.testing.assert_allclose(found.values, expected[: min(k, 65)], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        matrix @ found.vectors, found.vectors * found.values, rtol=1e-6, atol=1e-7
    )
    assert found.following == pytest.approx(expected[min(k, 65)], rel=0.05)


@pytest.mark.parametrize("k", [33, 65])
def test_flows_take_as_many_modes_as_there_are_parameters(k):
    values, times = np.linspace(0.1, 1.9, 65), np.array([0.0, 1.0, 2.0])
    valley, start = eosim.Quadratic(np.diag(values)), np.ones(65)
    edge = eosim.integrate(EdgeFlow(valley, 1.0, n_modes=k), start, times, record={})
    assert edge.status is Status.COMPLETED
    central = eosim.integrate(
        CentralFlow(valley, eosim.GradientDescent(1.0), n_modes=k + 35), start, times, record={}
    )
    decay = np.exp(-np.multiply.outer(times, values))
    np.testing.assert_allclose(central.theta, decay, rtol=1e-7)


# --- one mode at the edge ---

FLOWS = {
    "central": CentralFlow(toy_a(1, 104), DESCENT),
    "rod": RodFlow(toy_a(1, 104), DESCENT),
    "edge": EdgeFlow(toy_a(1, 104), LR),
    "edge_linear": EdgeFlow(toy_a(1, 104), LR, rate="linear"),
}


@pytest.mark.parametrize("name", FLOWS)
def test_flows_end_on_the_cycle_of_gradient_descent(name):
    path = eosim.integrate(FLOWS[name], [0.01, 90.0], LR * np.array([0, 1500]), rtol=1e-7)
    assert path.status is Status.COMPLETED
    assert abs(path.theta[-1, 1] - 2 / LR) < 1e-3
    assert abs(path["average.oscillation"][-1] - 8) < 1e-3
    assert abs(path["average.ratio"][-1] - 1) < 1e-5
    # c D^2/2 + x^2/eta, D = m - 2/eta; and |g|^2 = (c D - x^2/2)^2 + (2 x/eta)^2.
    assert abs(path["average.loss"][-1] - (4**2 / 2 + 8 / LR)) < 0.1
    assert abs(path["average.squared_gradient"][-1] - 4 * 8 / LR**2) < 50


def test_gradient_flow_and_the_literal_rod_do_not():
    for flow in (GradientFlow(toy_a(1, 104), LR), RodFlow(toy_a(1, 104), DESCENT, "literal")):
        path = eosim.integrate(flow, [0.01, 90.0], [LR * 1500], rtol=1e-7)
        assert abs(path.theta[-1, 1] - 104) < 0.05


def test_the_edge_flow_is_closest_then_rod_then_central_then_gradient_flow():
    run = eosim.run(toy_a(1, 104), DESCENT, [0.01, 90.0], 1500, record={})
    steps = np.arange(0, 1500, 25)
    y, square = smooth(run.theta[:, 1])[steps], smooth(run.theta[:, 0] ** 2)[steps]
    flows = {**FLOWS, "gradient": GradientFlow(toy_a(1, 104), LR)}
    in_y, in_square = {}, {}
    for name, flow in flows.items():
        path = eosim.integrate(flow, [0.01, 90.0], LR * steps, rtol=1e-7)
        in_y[name] = np.sqrt(np.mean((path.theta[:, 1] - y) ** 2))
        swing = path.records.get("average.oscillation", 0.0)
        in_square[name] = np.sqrt(np.mean((swing - square) ** 2))
    order = ["edge", "edge_linear", "rod", "central", "gradient"]
    assert sorted(in_y, key=in_y.__getitem__) == order
    assert sorted(in_square, key=in_square.__getitem__) == order


def test_two_slow_variables_follow_their_closed_form():
    # y x^2/2 + c (y + q z - m)^2/2: Sigma = 2 c D exp(-lr c q^2 t).
    q, m, D = 0.1, 104.0, 4.0
    terms = {(2, 1, 0): 0.5, (0, 2, 0): 0.5, (0, 0, 2): q**2 / 2, (0, 0, 0): m**2 / 2}
    terms |= {(0, 1, 1): q, (0, 1, 0): -m, (0, 0, 1): -q * m}
    toy = eosim.Polynomial(terms)
    start = [np.sqrt(2 * D), 2 / LR, 0.0]
    steps = np.array([500, 1500, 3000, 6000])
    path = eosim.integrate(CentralFlow(toy, DESCENT, feedback=0.2), start, LR * steps, rtol=1e-7)
    decay = np.exp(-LR * q**2 * steps)
    np.testing.assert_allclose(path["average.oscillation"], 2 * D * decay, rtol=2e-3)
    np.testing.assert_allclose(path.theta[:, 2], D / q * (1 - decay), rtol=2e-3)
    run = eosim.run(toy, DESCENT, start, 8000, record={})
    mean = np.convolve(run.theta[:, 0] ** 2, np.ones(1001) / 1001, mode="valid")
    for k in steps:
        closed = np.mean(2 * D * np.exp(-LR * q**2 * np.arange(max(k - 500, 0), k + 501)))
        assert abs(mean[k - 500] / closed - 1) < 0.01


def test_euler_steps_make_the_reference_discretisation():
    reference = CentralFlow(toy_a(1, 104), DESCENT, feedback=4.0)
    path = eosim.integrate(reference, [0.01, 90.0], LR * np.array([0, 1500]), euler_steps=4)
    assert path.status is Status.COMPLETED
    assert path.settings["evaluations"] == 6000
    np.testing.assert_allclose(path.theta[-1], [0, 2 / LR], atol=1e-9)
    np.testing.assert_allclose(path["average.oscillation"][-1], 8, rtol=1e-9)


def test_one_euler_step_of_gradient_flow_is_a_step_of_gradient_descent():
    toy = toy_a(1, 104)
    run = eosim.run(toy, DESCENT, [0.01, 90.0], 50)
    path = eosim.integrate(GradientFlow(toy, LR), [0.01, 90.0], run.t, euler_steps=1)
    np.testing.assert_allclose(path.theta, run.theta, rtol=1e-9)
    with pytest.raises(ValueError, match="counted per lr"):
        eosim.integrate(GradientFlow(toy), [0.01, 90.0], [1.0], euler_steps=1)


# --- adaptive rules ---


def toy_c() -> tuple[eosim.Polynomial, RunState]:
    """y x^2/2 - y, and RMSProp just below its edge."""
    toy = eosim.Polynomial({(2, 1): 0.5, (0, 1): -1.0})
    return toy, RunState(np.array([1e-5, 20.0]), (np.array([(0.01 * 20 / 1.8) ** 2, 1.0]), 0))


def test_rmsprop_meets_ever_sharper_regions_at_the_same_preconditioned_sharpness():
    toy, state = toy_c()
    rule = eosim.RMSProp(0.01, 0.99, eps=0.0)
    run = eosim.run(toy, rule, None, 1700, state=state)
    steps = np.array([900, 1500])
    path = eosim.integrate(
        CentralFlow(toy, rule), None, 0.01 * steps, state=state, rtol=1e-6, record={}
    )
    np.testing.assert_allclose(path["average.ratio"], 1, rtol=1e-5)
    y = np.array([run.theta[k - 20 : k + 21, 1].mean() for k in steps])
    np.testing.assert_allclose(path.theta[:, 1], y, rtol=1e-3)
    square = np.array([np.mean(run.theta[k - 150 : k + 151, 0] ** 2) for k in steps])
    np.testing.assert_allclose(path["average.oscillation"], square, rtol=3e-3)
    # (eta^2/4)(1 + 2 p_y a/(c_2 y)) with p_y = eta: the closed form on the edge.
    closed = 0.01**2 / 4 * (1 + 2 * 0.01 / (0.01 / 0.99 * path.theta[:, 1]))
    np.testing.assert_allclose(path["average.oscillation"], closed, rtol=2e-3)


def test_the_stable_flow_of_rmsprop_says_that_it_leaves_its_range():
    toy, state = toy_c()
    stable = StableFlow(toy, eosim.RMSProp(0.01, 0.99, eps=0.0))
    path = eosim.integrate(stable, None, 0.01 * np.arange(0, 2000, 50), state=state, rtol=1e-6)
    assert path.status is Status.LEFT_RANGE
    assert "times the edge" in path.message
    assert not path["average.oscillation"].any()


def test_scalar_rmsprop_ends_on_its_cycle():
    # x^2 = lr^2/4, y = m - lr^2/(8 c): the exact 2-cycle, whose step is 2/y.
    c, m, lr = 0.1, 60.0, 0.5
    rule, toy = ScalarRMSProp(lr, 0.99), toy_a(c, m)
    theta = np.array([0.001, 20.0])
    state = RunState(theta, (np.array(np.sum(toy.gradient(theta) ** 2)),))
    flow = CentralFlow(toy, rule, feedback=0.2)
    path = eosim.integrate(flow, None, [lr * 5000], state=state, rtol=1e-7, record={})
    assert abs(path.theta[-1, 1] - (m - lr**2 / (8 * c))) < 1e-4
    assert abs(path["average.oscillation"][-1] / (lr**2 / 4) - 1) < 1e-4
    run = eosim.run(toy, rule, None, 5000, state=state, record={}, keep_theta=False)
    assert abs(run.final_state.theta[1] - path.theta[-1, 1]) < 1e-3


@pytest.mark.parametrize("matrix", [[[4.0, 1.0], [1.0, 2.0]], [[4.0, -2.0], [-2.0, 2.0]]])
def test_rmsprop_on_a_quadratic_ends_at_its_stationary_preconditioner(matrix):
    # P_i = (H_ii + |H_12|)/2 with the rate in P; every coordinate swings by lr/2.
    H, lr = np.array(matrix), 1e-3
    rule = eosim.RMSProp(lr, 0.99, eps=0.0)
    theta = np.array([1.0, -0.7]) * 1e-3
    state = RunState(theta, ((H @ theta) ** 2 + 1e-12, 0))
    flow = CentralFlow(eosim.Quadratic(H), rule)
    path = eosim.integrate(flow, None, [lr * 3000], state=state, rtol=1e-7, record={})
    expected = (np.diag(H) + abs(H[0, 1])) / 2
    run = eosim.run(eosim.Quadratic(H), rule, None, 6000, state=state, record={})
    nu = np.asarray(run.final_state.rule_state[0])
    np.testing.assert_allclose(np.sqrt(nu) / lr, expected, rtol=0.02)
    assert abs(path["average.oscillation"][-1] / (2 * lr**2 / 4) - 1) < 1e-4
    np.testing.assert_allclose(path["average.ratio"][-1], 1, rtol=1e-6)


def test_adam_is_followed_on_average():
    toy, _ = toy_c()
    lr, edge = 0.01, 38.0
    state = RunState(
        np.array([1e-5, 20.0]),
        (np.array([0.0, -1.0]), np.array([(lr * 20 / (0.9 * edge)) ** 2, 1.0]), 0),
    )
    rule = eosim.Adam(lr, 0.9, 0.99, eps=0.0, bias_correction=False)
    run = eosim.run(toy, rule, None, 620, state=state, record={})
    path = eosim.integrate(
        CentralFlow(toy, rule), None, [lr * 500], state=state, rtol=1e-6, record={}
    )
    assert abs(path.theta[0, 1] / run.theta[400:601, 1].mean() - 1) < 2e-3
    assert abs(path["average.ratio"][0] - 1) < 1e-4


# --- where flows do not exist, or are wrong ---


def quartic(S: float, Q: float = 1.0) -> eosim.Polynomial:
    return eosim.Polynomial({(2,): S / 2, (4,): -Q / 4})


@pytest.mark.parametrize("S", [21.0, 24.0, 28.0])
def test_the_rod_ends_on_the_two_cycle_of_a_quartic(S):
    rod = RodFlow(quartic(S), eosim.GradientDescent(0.1), initial_covariance=[[2.5e-3]])
    path = eosim.integrate(rod, [0.0], [40.0], rtol=1e-9)
    assert abs(path["average.oscillation"][-1] - (S - 20)) < 1e-6
    run = eosim.run(quartic(S), eosim.GradientDescent(0.1), [0.05], 4000, record={})
    assert abs(run.theta[-1, 0] ** 2 - (S - 20)) < 1e-9


@pytest.mark.parametrize("S", [21.0, 24.0, 28.0])
def test_the_edge_flow_ends_on_the_two_cycle_of_a_quartic(S):
    """Its rate is that of the secant of the gradient between the ends of the swing."""
    path = eosim.integrate(EdgeFlow(quartic(S), 0.1), [0.05], [0, 40.0], rtol=1e-8)
    assert abs(path["average.oscillation"][-1] - (S - 20)) < 1e-5


def test_beyond_three_the_rod_follows_the_asymmetric_cycle():
    S, lr = 30.5, 0.1
    rod = RodFlow(quartic(S), eosim.GradientDescent(lr), initial_covariance=[[2.5e-3]])
    path = eosim.integrate(rod, [1e-3], [40.0], rtol=1e-9)
    # p^2 and q^2 of the cycle (p, -q): t^2 - (lr S - 1)/(lr Q) t + 1/(lr Q)^2 = 0.
    p, q = np.sqrt(np.roots([1, -(lr * S - 1) / lr, 1 / lr**2]))
    assert abs(path.theta[-1, 0] - (p - q) / 2) < 1e-6
    assert abs(path["average.oscillation"][-1] - ((p + q) / 2) ** 2) < 1e-6


def test_the_central_flow_of_a_quartic_does_not_exist_and_says_so():
    path = eosim.integrate(
        CentralFlow(quartic(21.0), eosim.GradientDescent(0.1)), [0.0], [0.0, 1.0]
    )
    assert path.status is Status.LEFT_RANGE
    assert len(path) == 0
    assert "no oscillation holds" in path.message


def matrix_toy(M: np.ndarray, c: float = 1.0) -> eosim.Polynomial:
    """x^T Y x/2 + c |Y - M|_F^2/2 in (x_1, x_2, Y_11, Y_22, sqrt 2 Y_12): isometric coordinates."""
    terms = {(2, 0, 1, 0, 0): 0.5, (0, 2, 0, 1, 0): 0.5, (1, 1, 0, 0, 1): np.sqrt(0.5)}
    terms |= {(0, 0, 2, 0, 0): c / 2, (0, 0, 0, 2, 0): c / 2, (0, 0, 0, 0, 2): c / 2}
    terms |= {(0, 0, 1, 0, 0): -c * M[0, 0], (0, 0, 0, 1, 0): -c * M[1, 1]}
    return eosim.Polynomial(terms)


@pytest.mark.parametrize(
    ("excess", "locked"), [((4.0, -1.0), False), ((1.0, 0.5), True)], ids=["one_mode", "two_modes"]
)
def test_two_modes_may_lock_to_one_where_the_central_flow_holds_both(excess, locked):
    M = np.diag(2 / LR + np.array(excess))
    rng = np.random.default_rng(0)
    start = [*0.1 * rng.standard_normal(2), *np.minimum(np.diag(M), 2 / LR - 1), 0.0]
    toy = matrix_toy(M)
    flow = eosim.integrate(
        CentralFlow(toy, DESCENT, feedback=0.2), start, [LR * 1500], rtol=1e-7, record={}
    )
    np.testing.assert_allclose(
        flow["average.oscillation"][-1], 2 * np.maximum(excess, 0).sum(), rtol=1e-4
    )
    run = eosim.run(toy, DESCENT, start, 30000, record={})
    late = run.theta[-10000:]
    sigma = late[:, :2].T @ late[:, :2] / len(late)
    if locked:  # Sigma has rank one, of the larger excess; the other mode stays above the edge
        values = np.linalg.eigvalsh(sigma)
        np.testing.assert_allclose(values, [0, 2 * excess[0]], atol=0.02)
        assert abs(late[:, 2:4].mean(axis=0).max() - (2 / LR + excess[1])) < 0.01
    else:
        np.testing.assert_allclose(np.trace(sigma), 2 * excess[0], rtol=0.01)


def test_more_modes_than_asked_for_end_the_central_flow():
    flow = CentralFlow(matrix_toy(np.diag([104.0, 103.0])), DESCENT, n_modes=1)
    path = eosim.integrate(
        flow, [0.1, 0.1, 99.0, 99.0, 0.0], LR * np.arange(0, 2000, 50), rtol=1e-7
    )
    assert path.status is Status.LEFT_RANGE
    assert "n_modes = 1" in path.message


# --- input ---


def test_what_a_flow_cannot_follow_is_refused_in_words():
    toy = toy_a(1, 104)
    with pytest.raises(TypeError, match="rule must be one of GradientDescent"):
        CentralFlow(toy, eosim.HeavyBall(LR))
    with pytest.raises(ValueError, match="must have bias_correction=False"):
        CentralFlow(toy, eosim.Adam(LR))
    with pytest.raises(ValueError, match="run a few steps"):
        eosim.integrate(CentralFlow(toy, eosim.RMSProp(LR)), [0.1, 90.0], [1.0])
    with pytest.raises(TypeError, match="has no memory"):
        eosim.integrate(GradientFlow(toy), None, [1.0], state=RunState(np.ones(2), ()))
    with pytest.raises(ValueError, match="theta0 must be None"):
        eosim.integrate(FLOWS["edge"], [0.1, 90.0], [1.0], state=RunState(np.ones(2), ()))
    with pytest.raises(TypeError, match="final_state of a trajectory"):
        eosim.integrate(FLOWS["edge"], None, [1.0], state=(1, 2))
    with pytest.raises(TypeError, match="rule must be one of GradientDescent, HeavyBall"):
        RodFlow(toy, eosim.CascadedEMA(LR, 0.4, 0.7))
    with pytest.raises(ValueError, match="at most dim = 2"):
        EdgeFlow(toy, LR, n_modes=3)
    with pytest.raises(ValueError, match="symmetric and not negative"):
        RodFlow(toy, DESCENT, initial_covariance=-np.eye(2))


# --- self-stabilisation ---


def test_the_flow_of_self_stabilisation_keeps_its_energy_and_the_recursion_gains():
    alpha, beta = 4.0, 1.0
    excess = []
    for lr in (1e-3, 5e-4):
        x, y, peak = 1e-2, 0.0, 0.0
        for _ in range(int(8 / lr)):
            x, y = self_stabilization.step(x, y, lr, alpha, beta)
            peak = max(peak, y)
        excess.append(peak / self_stabilization.first_peak(1e-2, alpha, beta) - 1)
    assert 0 < excess[0] < 0.015
    assert abs(excess[0] / excess[1] - 2) < 0.05  # of first order in lr
    # A small cycle: energy grows by 2 lr^2 alpha per step, and its period is known.
    lr = 0.02
    x, y = np.sqrt(2 * alpha / beta) * 1.001, 0.0
    values, crossings = [], []
    for k in range(4000):
        X = np.log(x**2 * beta / (2 * alpha))
        values.append(self_stabilization.energy(X, y, alpha, np.exp(X)))
        x, later = self_stabilization.step(x, y, lr, alpha, beta)
        if y < 0 <= later:
            crossings.append(k)
        y = later
    periods = np.diff(crossings)
    assert abs(periods[:5].mean() / self_stabilization.period(lr, alpha) - 1) < 0.01
    rate = np.log(values[1000] / values[0]) / 1000
    assert abs(rate / (2 * lr**2 * alpha) - 1) < 0.05


def test_noise_lowers_the_sharpness_where_the_force_is_weak_and_lifts_it_where_it_is_strong():
    def ratio(force: float, noise: float) -> float:
        edge = self_stabilization.NoisyEdge(LR, force, 2 / LR + 4 / force, noise)
        _, S = edge.simulate(12000, 60)
        mean = S[2400:].mean()
        return (2 / LR - mean) / edge.sharpness_gap(force * (edge.target - mean))

    assert 0.7 < ratio(0.03, 20.0) < 1.3
    assert ratio(1.0, 2.0) < -0.5


# --- toys that rest at the edge, and one that does not ---


@pytest.mark.parametrize(
    ("lr", "start"), [(0.05, (6.0, 0.1)), (0.1, (4.0, 0.2)), (0.2, (3.2, 0.3))]
)
def test_the_minimal_example_ends_just_below_the_edge(lr, start):
    """(x^2 y^2 - 1)^2/4 has minima of every sharpness from 4 on: 2 (x^2 + y^2) at xy = 1."""
    toy = eosim.Polynomial({(4, 4): 0.25, (2, 2): -0.5, (0, 0): 0.25})
    run = eosim.run(toy, eosim.GradientDescent(lr), start, 20000, record={}, every=20000)
    sharpness = eosim.measure.sharpness(toy, run.final_state.theta).value
    assert 2 / lr - 20 * lr / 3 < sharpness < 2 / lr
    # Gradient flow keeps x^2 - y^2.
    path = eosim.integrate(GradientFlow(toy), start, [200.0], rtol=1e-8)
    kept = 2 * np.sqrt((start[0] ** 2 - start[1] ** 2) ** 2 + 4)
    assert abs(eosim.measure.sharpness(toy, path.theta[-1]).value / kept - 1) < 1e-5
    assert kept > 1.5 * sharpness


@pytest.mark.parametrize(("lr", "start"), [(0.2, (3.5, 0.1)), (0.2, (3.2, 0.1)), (0.1, (5.5, 0.1))])
def test_a_product_of_two_factors_ends_well_below_the_edge(lr, start):
    toy = eosim.Polynomial({(2, 2): 0.5, (1, 1): -1.0, (0, 0): 0.5})
    run = eosim.run(toy, eosim.GradientDescent(lr), start, 5000, record={}, every=5000)
    theta = run.final_state.theta
    assert abs(theta[0] * theta[1] - 1) < 1e-9
    assert lr * (theta @ theta) / 2 < 0.9
    assert lr * (start[0] ** 2 + start[1] ** 2) / 2 > 1


def deep_linear_run(depth: int, lr: float, n_steps: int, scale: float = 1.0):
    """|W_m ... W_1 - T|_F^2/2 of 10 x 10 matrices; 50 records of loss and lr * sharpness / 2."""
    generator = np.random.default_rng(0)
    target = scale * generator.standard_normal((10, 10)) / np.sqrt(10)
    weights = generator.standard_normal((depth, 10, 10)) / np.sqrt(10)
    net = eosim.LinearNet(np.eye(10), target.T, (10,) * (depth - 1))
    rate = 10 * lr  # the loss of the class is a mean over 10 samples
    record = {"loss": eosim.measure.loss, "edge": eosim.measure.PreconditionedSharpness()}
    run = eosim.run(
        net,
        eosim.GradientDescent(rate),
        weights.ravel(),
        n_steps,
        record=record,
        every=n_steps // 50,
    )
    return 10 * run["loss"], run["edge.ratio"]


def test_deep_linear_nets_hover_at_the_edge():
    _, from_above = deep_linear_run(5, 0.08, 4000)
    assert from_above[0] > 1.5
    assert abs(np.median(from_above[25:]) - 1) < 0.05
    _, from_below = deep_linear_run(8, 0.02, 6000)
    assert abs(from_below[0] - 0.7) < 0.05
    assert from_below.max() > 1.05
    assert abs(np.median(from_below[-10:]) - 1) < 0.05


def test_two_layers_beyond_their_edge_swing_for_ever():
    loss, _ = deep_linear_run(2, 0.2, 2000, scale=3.0)
    assert 0.1 < loss[10:].min() < loss[10:].max() < 1
