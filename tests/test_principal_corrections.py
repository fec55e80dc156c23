"""The principal flow beyond its first term: corrections, heavy ball, branch matching, Lanczos."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.linalg import logm, schur
from scipy.sparse.linalg import LinearOperator
from threadpoolctl import threadpool_limits

import eosim
from eosim import HeavyBallPrincipalFlow, PrincipalFlow, Status
from eosim.flows import LeftRange, _spectral, principal
from eosim.flows.base import AmbiguousBranch
from tests import naive
from tests.cases import QUARTIC_TERMS, edge_network, perceptron, rotation, symmetric

QUARTIC, POINT = eosim.Polynomial(QUARTIC_TERMS), np.array([0.7, -0.5])


@pytest.fixture(autouse=True)
def _one_thread():
    # Threads that wait for each other on a busy machine make these sizes many times slower.
    with threadpool_limits(1):
        yield


# --- corrections --------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [0.1, 0.9])
@pytest.mark.parametrize("shift", [0.0, 0.2j], ids=["real", "complex"])
def test_corrections_are_the_two_terms_with_the_third_derivative(lr, shift):
    theta = POINT + shift
    g, hessian, third = (QUARTIC.derivative(theta, order) for order in (1, 2, 3))
    Tgg, TgHg = third @ g @ g, third @ g @ (hessian @ g)
    plain, once, twice = (PrincipalFlow(QUARTIC, lr, corrections=n).field(theta) for n in (0, 1, 2))
    np.testing.assert_allclose(once - plain, -(lr**2) / 12 * Tgg, rtol=1e-11)
    np.testing.assert_allclose(twice - once, -(lr**3) / 12 * (hessian @ Tgg + TgHg), rtol=1e-11)


def test_corrections_vanish_on_a_quadratic():
    problem = eosim.Quadratic(symmetric([1.8, 0.3, -0.4], 1))
    theta = np.array([1.0, 2.0, -1.0])
    plain, twice = (PrincipalFlow(problem, 1.0, corrections=n).field(theta) for n in (0, 2))
    np.testing.assert_array_equal(plain, twice)


@pytest.mark.parametrize("corrections", [0, 1, 2])
def test_corrections_on_a_network_follow_a_step_of_their_order(corrections):
    problem, theta = edge_network()
    errors = []
    for lr in (0.04, 0.02):
        flow = PrincipalFlow(problem, lr, corrections=corrections)
        path = eosim.integrate(flow, theta, [lr], rtol=3e-14, atol=1e-16, record={})
        errors.append(np.linalg.norm(path.theta[0] - theta + lr * problem.gradient(theta)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(3 + corrections, abs=0.15)


def test_corrections_cost_no_accuracy_along_a_real_path():
    # A noisy third derivative would force the solver to tiny steps.
    problem = perceptron()
    theta, lr = np.linspace(-1, 1, 13), 0.05
    cost = []
    for corrections in (0, 2):
        flow = PrincipalFlow(problem, lr, corrections=corrections)
        path = eosim.integrate(flow, theta, [lr], record={}, rtol=1e-12, atol=1e-14)
        cost.append(path.settings["evaluations"])
    assert cost[1] <= 2 * cost[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"corrections": 3}, ValueError, "corrections must be 0, 1 or 2"),
        ({"corrections": -1}, ValueError, "corrections"),
        ({"corrections": 1.0}, TypeError, "corrections"),
        ({"method": "krylov"}, ValueError, "method must be one of 'auto', 'dense', 'lanczos'"),
        ({"lr": 0.0}, ValueError, "lr"),
        ({"lr": np.inf}, ValueError, "lr"),
    ],
)
def test_bad_parameters_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        PrincipalFlow(QUARTIC, **{"lr": 0.1, **arguments})


# --- degenerate spectra -------------------------------------------------------------------------


def schur_form(matrix, vector):
    """log(I - M) M^{-1} vector from the Schur form of I - M: diagonal, for a normal matrix."""
    triangle, basis = schur(np.eye(len(matrix)) - matrix, output="complex")
    w = np.diag(triangle)
    logarithms = np.where(np.abs(w.imag) < 1e-12, np.log(np.abs(w)) + 1j * np.pi * (w.real < 0), 0)
    return basis @ (logarithms / (1 - w) * (basis.conj().T @ vector))


@pytest.mark.parametrize("top", [0.7, 1.9], ids=["real", "oscillating"])
@pytest.mark.parametrize("seed", range(3))
def test_a_five_fold_eigenvalue_in_a_rotated_basis_is_the_same_in_every_form(top, seed):
    eigenvalues = [0.5] * 5 + [top]
    matrix = symmetric(eigenvalues, seed)
    theta = np.random.default_rng(seed).standard_normal(6)
    g = matrix @ theta
    field = PrincipalFlow(eosim.Quadratic(matrix), 1.0).field(theta)
    scale = np.linalg.norm(field)
    basis = rotation(6, seed)
    alpha = PrincipalFlow(QUARTIC, 1.0).coefficient(np.array(eigenvalues))
    assert np.linalg.norm(field - basis @ (alpha * (basis.T @ g))) < 1e-12 * scale
    assert np.linalg.norm(field - schur_form(matrix, g)) < 1e-12 * scale
    if top < 1:
        by_logm = logm(np.eye(6) - matrix) @ theta
        assert np.linalg.norm(field - by_logm) < 1e-12 * scale
    else:  # logm has no eigenvalue on its cut if the cut is turned: log(w) = Log(-iw) + i pi/2
        turned = logm(-1j * (np.eye(6) - matrix)) + 0.5j * np.pi * np.eye(6)
        assert np.linalg.norm(field - turned @ theta) < 1e-12 * scale


def test_a_five_fold_eigenvalue_at_a_complex_state_is_the_same_in_every_form():
    # E = sum of cubes in a rotated frame: H = R diag(1 + 2c y) R^T, five times the same entry.
    frame = rotation(6, 4)
    cubic = eosim.Polynomial(
        {
            tuple(p * (i == j) for j in range(6)): c
            for i in range(6)
            for p, c in ((2, 0.5), (3, 0.1))
        }
    )
    problem = eosim.from_functions(
        lambda x: cubic.loss(frame.T @ x),
        lambda x: frame @ cubic.gradient(frame.T @ x),
        hessian=lambda x: frame @ cubic.hessian(frame.T @ x) @ frame.T,
        dim=6,
        analytic=True,
    )
    y = np.array([0.3 + 0.2j] * 5 + [-0.4 + 0.5j])
    theta = frame @ y
    lr = 0.7
    z = lr * (1 + 0.6 * y)
    alpha = np.log(1 - z) / z
    expected = frame @ (alpha * cubic.gradient(y))
    field = PrincipalFlow(problem, lr).field(theta)
    scale = np.linalg.norm(expected)
    assert np.linalg.norm(field - expected) < 1e-12 * scale
    hessian, g = problem.hessian(theta), problem.gradient(theta)
    by_logm = logm(np.eye(6) - lr * hessian) @ np.linalg.solve(lr * hessian, g)
    assert np.linalg.norm(field - by_logm) < 1e-12 * scale


# --- branches -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrincipalCut:
    """A user's flow: the same field with the principal logarithm, and no memory."""

    problem: Any
    lr: float

    is_complex = True

    def field(self, theta, branch=None):
        (z,) = self.lr * self.problem.hessian(theta)[0]
        (g,) = self.problem.gradient(theta)
        return np.array([np.log(1 - complex(z)) / z * g])

    def coefficient(self, z):
        return np.log(1 - z.astype(complex)) / z


def cubic(c):
    return eosim.Polynomial({(2,): 0.5, (3,): c / 3})


def test_the_principal_cut_slides_while_the_tracked_branch_oscillates():
    problem, lr = cubic(0.1), 1.6
    iterates = eosim.run(problem, eosim.GradientDescent(lr), [1.0], 3).theta[:, 0]
    times = lr * np.arange(4)
    tracked = eosim.integrate(PrincipalFlow(problem, lr), [1.0], times)
    assert tracked.status is Status.COMPLETED
    assert (np.sign(tracked.theta[:, 0].real) == np.sign(iterates)).all()
    assert np.abs(tracked.theta[:, 0] - iterates).max() < 0.25
    # an adaptive solver does not get through
    flow = PrincipalCut(problem, lr)
    cut = eosim.integrate(flow, [1.0], times, max_evaluations=20_000)
    assert cut.status in (Status.STALLED, Status.BUDGET_SPENT)
    assert len(cut) < 4
    # Euler steps do, and show the sliding mode: the flow of the real part, with no change of sign
    x, n, at_iterates = 1.0 + 0j, 2000, []
    for k in range(3 * n):
        x = x + lr / n * flow.field(np.array([x]))[0]
        if (k + 1) % n == 0:
            at_iterates.append(x)
    np.testing.assert_allclose(np.real(at_iterates), [0.91, 0.81, 0.69], atol=0.01)
    real = 1.0
    for _ in range(n):
        real = real + lr / n * flow.field(np.array([real + 0j]))[0].real
    assert abs(at_iterates[0] - real) < 5e-3
    assert np.abs(np.imag(at_iterates)).max() < 5e-3


def test_the_principal_cut_sticks_at_the_second_step_on_the_other_cubic():
    problem, lr = cubic(-0.1), 1.6
    cut = eosim.integrate(PrincipalCut(problem, lr), [1.0], lr * np.arange(7))
    tracked = eosim.integrate(PrincipalFlow(problem, lr), [1.0], lr * np.arange(7))
    assert tracked.status is Status.COMPLETED
    np.testing.assert_allclose(cut.theta[1], tracked.theta[1], rtol=1e-8)
    assert cut.status is Status.STALLED
    assert len(cut) == 2


@dataclass(frozen=True)
class ShiftedCut(PrincipalCut):
    """The logarithm cut along the negative imaginary axis: +i pi on the negative real one."""

    def field(self, theta, branch=None):
        values, vectors = np.linalg.eig(self.lr * self.problem.hessian(theta).astype(complex))
        logarithms = np.log(-1j * (1 - values)) + 0.5j * np.pi
        weights = np.linalg.solve(vectors, self.problem.gradient(theta))
        return vectors @ (logarithms / values * weights)


def test_a_curvature_that_falls_through_1_keeps_a_full_turn():
    # 1 - h lambda starts left of 0 and passes below it: its logarithm goes on from i pi to 2 i pi,
    # and the flow turns once per step from then on, where gradient descent is monotone. A cut that
    # lies below 0 brings it back to 0.
    step_error = {}
    for lr in (0.297, 0.299):
        target = POINT - lr * QUARTIC.gradient(POINT)
        for flow in (PrincipalFlow(QUARTIC, lr), ShiftedCut(QUARTIC, lr)):
            path = eosim.integrate(flow, POINT, [lr], record={})
            assert path.status is Status.COMPLETED
            error = np.linalg.norm(path.theta[0] - target) / np.linalg.norm(target - POINT)
            step_error[type(flow).__name__, lr] = error
    assert 0.297 * np.linalg.eigvalsh(QUARTIC.hessian(POINT))[-1] < 1
    assert 0.299 * np.linalg.eigvalsh(QUARTIC.hessian(POINT))[-1] > 1
    assert step_error["PrincipalFlow", 0.297] == pytest.approx(0.0466, abs=5e-4)
    assert step_error["ShiftedCut", 0.297] == pytest.approx(0.0466, abs=5e-4)
    assert step_error["ShiftedCut", 0.299] == pytest.approx(0.0467, abs=5e-4)
    assert step_error["PrincipalFlow", 0.299] == pytest.approx(6.48, abs=0.1)


def alone(curvature, slope, x0, time, n_steps):
    """Runge-Kutta steps of the flow of curvature x^2/2 + slope x^3/3 at rate 1, log carried along."""
    state = {"log": None}

    def logarithm(x):
        w = 1 - (curvature + 2 * slope * x)
        if state["log"] is None:
            return np.log(abs(w)) + (1j * np.pi if w.real < 0 else 0)
        value = np.log(complex(w))
        return value + 2j * np.pi * round((state["log"].imag - value.imag) / (2 * np.pi))

    def speed(x):
        return logarithm(x) / (curvature + 2 * slope * x) * (curvature * x + slope * x * x)

    x, dt = complex(x0), time / n_steps
    state["log"] = logarithm(x)
    for _ in range(n_steps):
        k1 = speed(x)
        k2 = speed(x + dt / 2 * k1)
        k3 = speed(x + dt / 2 * k2)
        k4 = speed(x + dt * k3)
        x = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        state["log"] = logarithm(x)
    return x


# Two separate cubics, turned by an angle. The first starts at h * lambda = 2.1 or 2.3 and has gone
# half round 1 when it meets the eigenvalue of the second, a saddle's: equal, but for 2 pi i.
CROSSINGS = {
    "first": ((1.3, 0.4), (-2.0, -0.06861553794522281), 1e-3),
    "second": ((1.5, 0.4), (-2.0, -0.10796733191002462), 1e-2),
    "far": ((1.5, 0.4), (-1.0, -0.3230829922910212), 5e-2),
}


def crossing(name):
    (a, c), (b, d), gap = CROSSINGS[name]
    turn = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    separate = eosim.Polynomial({(2, 0): a / 2, (3, 0): c / 3, (0, 2): b / 2, (0, 3): d / 3})
    problem = eosim.from_functions(
        lambda x: separate.loss(turn.T @ x),
        lambda x: turn @ separate.gradient(turn.T @ x),
        hessian=lambda x: turn @ separate.hessian(turn.T @ x) @ turn.T,
        dim=2,
        analytic=True,
    )
    start = np.array([1.0, 1.0 + gap])
    end = np.array([alone(a, c, 1.0, 1.5, 4000), alone(b, d, 1.0 + gap, 1.5, 4000)])
    return problem, turn, turn @ start, end


@pytest.mark.parametrize("name", CROSSINGS)
def test_branches_are_carried_through_a_crossing_of_eigenvalues(name):
    problem, turn, start, end = crossing(name)
    assert np.linalg.eigvalsh(problem.hessian(start))[-1] > 1
    path = eosim.integrate(PrincipalFlow(problem, 1.0), start, [0, 0.7, 1.5])
    assert path.status is Status.COMPLETED
    np.testing.assert_allclose(turn.T @ path.theta[-1], end, rtol=1e-7)


def test_the_eigenvalues_of_the_crossing_do_cross_on_different_branches():
    problem, _, start, _ = crossing("first")
    flow = PrincipalFlow(problem, 1.0)
    branches = []

    class Watched:
        lr, is_complex, init, field = 1.0, True, flow.init, flow.field

        def advance(self, theta, branch):
            branches.append(flow.advance(theta, branch))
            return branches[-1]

    watched = Watched()
    watched.problem = problem
    path = eosim.integrate(watched, start, np.linspace(0, 1.5, 400), record={})
    assert path.status is Status.COMPLETED
    gaps = [abs(np.diff(branch.eigenvalues)[0]) for branch in branches]
    nearest = branches[int(np.argmin(gaps))]
    assert min(gaps) < 0.03
    assert abs(np.diff(nearest.logarithms)[0].imag) == pytest.approx(2 * np.pi, abs=0.05)


@pytest.mark.parametrize(("name", "accuracy"), [("first", 0.01), ("second", 0.01)])
def test_steps_too_long_to_match_are_taken_again(monkeypatch, name, accuracy):
    problem, turn, start, end = crossing(name)
    taken_again = []

    class Counted(AmbiguousBranch):
        def __init__(self, *arguments):
            taken_again.append(1)
            super().__init__(*arguments)

    monkeypatch.setattr(_spectral, "AmbiguousBranch", Counted)
    flow = PrincipalFlow(problem, 1.0)
    path = eosim.integrate(flow, start, [1.5], rtol=1e-3, record={})
    assert path.status is Status.COMPLETED
    assert len(taken_again) > 0
    assert np.abs(turn.T @ path.theta[-1] - end).max() < accuracy
    monkeypatch.setattr(_spectral, "_CLEAR_MATCH", 1e300)  # no control
    blind = eosim.integrate(flow, start, [1.5], rtol=1e-3, record={})
    assert np.abs(turn.T @ blind.theta[-1] - end).max() > 20 * accuracy


def test_eigenvalues_that_meet_exactly_give_the_right_path_or_a_warning():
    (a, c), (b, d), _ = CROSSINGS["second"]
    problem, turn, _, _ = crossing("second")
    end = np.array([alone(a, c, 1.0, 1.5, 4000), alone(b, d, 1.0, 1.5, 4000)])
    path = eosim.integrate(PrincipalFlow(problem, 1.0), turn @ np.ones(2), [1.5], record={})
    right = len(path) == 1 and np.abs(turn.T @ path.theta[-1] - end).max() < 1e-3
    assert right or path.status is Status.LEFT_RANGE or "branch" in path.message


def test_a_driver_takes_a_step_again_at_half_its_length():
    bowl = eosim.Quadratic([[1.0]])
    accepted, refused = [], []

    class Hesitant:
        problem, lr, is_complex = bowl, 1.0, False
        start = 0.0

        def init(self, theta):
            return theta

        def field(self, theta, branch=None):
            return -theta

        def advance(self, theta, branch):
            length = abs(np.log(theta[0] / branch[0]))  # time since the last accepted state
            if length > 0.05:
                refused.append(length)
                raise AmbiguousBranch(theta)
            accepted.append(length)
            return theta

    path = eosim.integrate(Hesitant(), [1.0], [0, 0.5, 1.0], record={})
    assert path.status is Status.COMPLETED
    np.testing.assert_allclose(path.theta[:, 0], np.exp(-path.t), rtol=1e-9)
    assert len(refused) > 0
    assert max(accepted) <= 0.05
    assert sum(accepted) == pytest.approx(1.0, rel=1e-9)


def test_a_branch_that_stays_ambiguous_does_not_hang():
    class Never:
        problem, lr, is_complex = eosim.Quadratic([[1.0]]), 1.0, False

        def init(self, theta):
            return 0

        def field(self, theta, branch=None):
            return -theta

        def advance(self, theta, branch):
            raise AmbiguousBranch(0)

    path = eosim.integrate(Never(), [1.0], [0, 0.01], record={})
    assert path.status in (Status.COMPLETED, Status.STALLED)
    path = eosim.integrate(Never(), [1.0], [0, 100.0], record={}, max_evaluations=3000)
    assert path.status in (Status.STALLED, Status.BUDGET_SPENT)


# --- heavy ball ---------------------------------------------------------------------------------

REGIMES = {  # momentum 0.3: windows end at (1 -+ sqrt(.3))^2 = .205 and 2.395, divergence at 2.6
    "negative": -0.7,
    "zero": 0.0,
    "tiny": 1e-9,
    "monotone": 0.1,
    "complex": 0.9,
    "complex beyond 1": 2.0,
    "oscillating": 2.5,
    "critical": 2.6,
    "diverging": 3.1,
}


@pytest.mark.parametrize("momentum", [0.3, 0.9])
@pytest.mark.parametrize("name", REGIMES)
def test_on_quadratics_the_heavy_ball_flow_is_heavy_ball_on_its_slow_manifold(name, momentum):
    z, lr = REGIMES[name], 0.8
    problem = eosim.Quadratic([[z / lr]], [0.5])
    flow = HeavyBallPrincipalFlow(problem, lr, momentum)
    times = lr * np.arange(13)
    path = eosim.integrate(flow, [1.5], times, rtol=1e-12)
    assert path.status is Status.COMPLETED
    rho = naive.slow_root(z, momentum)
    # the velocity of the slow manifold: the point before the start is offset / rho
    iterates = naive.heavy_ball_iterates(
        problem.gradient, np.array([0.5 + 1 / rho]), np.array([1.5 + 0j]), 12, lr, momentum
    )
    size = np.maximum(np.abs(iterates[:, 0] - 0.5), 1e-3)
    assert (np.abs(path.theta - iterates)[:, 0] < 1e-9 * size + 1e-11).all()
    exact = eosim.closed_form(flow, [1.5], times)
    assert (np.abs(exact - iterates)[:, 0] < 1e-11 * size + 1e-13).all()
    np.testing.assert_allclose(
        path.theta[:, 0] - 0.5, rho ** np.arange(13.0), rtol=1e-8, atol=1e-10
    )


def test_heavy_ball_itself_settles_on_the_flow_after_burn_in():
    z, lr, momentum = 0.1, 0.8, 0.3
    problem = eosim.Quadratic([[z / lr]])
    iterates = eosim.run(problem, eosim.HeavyBall(lr, momentum), [1.0], 45).theta[:, 0]
    flow = HeavyBallPrincipalFlow(problem, lr, momentum)
    along = eosim.closed_form(flow, iterates[[40]], lr * np.arange(6))[:, 0]
    np.testing.assert_allclose(along, iterates[40:], rtol=1e-9)


@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.9])
def test_the_heavy_ball_logarithm_has_its_series(momentum):
    b = momentum
    flow = HeavyBallPrincipalFlow(QUARTIC, 1.0, b)
    first, second = -1 / (1 - b), -(1 + b) / (2 * (1 - b) ** 3)
    third = -(1 + 4 * b + b * b) / (3 * (1 - b) ** 5)
    assert flow.coefficient(0.0) == pytest.approx(first, rel=1e-15)
    scale = (1 - b) ** 2
    for sign in (1, -1):
        for z in sign * scale * np.array([1e-2, 1e-3]):
            remainder = flow.coefficient(z) - (first + second * z + third * z * z)
            # the next coefficient is of size (1 - b)^-7
            assert abs(remainder) < 20 * abs(z) ** 3 / (1 - b) ** 7
    # to rounding where z is tiny: no digits are lost in rho - 1
    for z in (1e-7 * scale, -1e-7 * scale):
        expected = first + second * z + third * z * z
        assert flow.coefficient(z) == pytest.approx(expected, rel=1e-14)


def test_the_regulariser_of_heavy_ball_is_larger_by_one_plus_over_one_minus_momentum():
    momentum, lr = 0.6, 1e-5
    g, hessian = QUARTIC.gradient(POINT), QUARTIC.hessian(POINT)
    field = HeavyBallPrincipalFlow(QUARTIC, lr, momentum).field(POINT)
    first = -g / (1 - momentum)
    regulariser = (field - first) / lr
    expected = -(1 + momentum) / (2 * (1 - momentum) ** 3) * hessian @ g
    np.testing.assert_allclose(regulariser, expected, rtol=3e-3)
    # gradient descent at the same effective step: -(h_eff / 2) H g_eff
    effective = lr / (1 - momentum)
    descent = (PrincipalFlow(QUARTIC, effective).field(POINT) + g) / effective
    ratio = (regulariser * (1 - momentum)) / (descent / (1 - momentum))
    np.testing.assert_allclose(ratio, (1 + momentum) / (1 - momentum), rtol=3e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
def test_heavy_ball_turns_unstable_at_twice_one_plus_momentum(momentum):
    edge = 2 * (1 + momentum)
    flow = HeavyBallPrincipalFlow(QUARTIC, 1.0, momentum)
    z = edge + np.array([-1e-6, 0.0, 1e-6])
    growth = (flow.coefficient(z) * z).real
    assert growth[0] < 0 < growth[2]
    assert abs(growth[1]) < 1e-14
    np.testing.assert_allclose((flow.coefficient(z) * z).imag, np.pi, rtol=1e-12)
    below = np.linspace(1e-3, edge - 1e-3, 500)
    assert ((flow.coefficient(below) * below).real < 0).all()


@pytest.mark.parametrize("momentum", [0.3, 0.9])
def test_the_heavy_ball_coefficient_is_the_logarithm_of_the_larger_root(momentum):
    flow = HeavyBallPrincipalFlow(QUARTIC, 1.0, momentum)
    root = np.sqrt(momentum)
    ends = np.array([(1 - root) ** 2, (1 + root) ** 2])
    z = np.concatenate([np.linspace(-3, 5, 163), ends * 1.001, ends * 0.999])
    z = z[z != 0]
    rho = np.array([naive.slow_root(x, momentum) for x in z])
    np.testing.assert_allclose(np.exp(flow.coefficient(z) * z), rho, rtol=1e-9)
    logarithms = flow.coefficient(z) * z
    assert (logarithms.imag > -1e-12).all()
    assert (logarithms.imag < np.pi + 1e-12).all()


@pytest.mark.parametrize("momentum", [0.0, 1e-300, 1e-17, 1e-12, 1e-8, 1e-4])
def test_at_vanishing_momentum_the_heavy_ball_flow_is_the_principal_flow(momentum):
    z = np.array([-2.0, -0.3, -1e-9, 0.0, 1e-9, 0.5, 0.9, 1.1, 1.5, 2.0, 3.0])
    of_descent = PrincipalFlow(QUARTIC, 1.0).coefficient(z)
    of_heavy_ball = HeavyBallPrincipalFlow(QUARTIC, 1.0, momentum).coefficient(z)
    # d log rho / d momentum is of the order of 1 / (1 - z)^2
    tolerance = 1e-12 + 300 * momentum
    np.testing.assert_allclose(of_heavy_ball, of_descent, rtol=tolerance, atol=1e-14)


@pytest.mark.parametrize(
    ("problem", "lr", "start"),
    [
        (eosim.Rosenbrock(), 8e-4, [0.5, 0.6]),
        (eosim.Rosenbrock(), 1.2e-3, [1.2, 1.2]),
        (eosim.Rosenbrock(), 8e-4, [-1.0, 1.5]),  # through h * lambda = 1
        (cubic(-0.1), 1.2, [1.0]),  # through h * lambda = 1
        (cubic(-0.05), 1.05, [1.0]),
    ],
    ids=["real", "complex", "singular", "cubic", "flat cubic"],
)
def test_without_momentum_heavy_ball_takes_the_path_of_the_principal_flow(problem, lr, start):
    times = lr * np.arange(4)
    principal_path = eosim.integrate(PrincipalFlow(problem, lr), start, times)
    path = eosim.integrate(HeavyBallPrincipalFlow(problem, lr, 0.0), start, times)
    assert path.status is Status.COMPLETED
    conjugate = path.theta.imag[1] @ principal_path.theta.imag[1] < 0  # admissible beyond 1 as well
    theta = path.theta.conj() if conjugate else path.theta
    np.testing.assert_allclose(theta, principal_path.theta, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("corrected", [False, True], ids=["gradient flow", "heavy-ball flow"])
def test_after_burn_in_the_relative_error_of_one_step_has_its_order(corrected):
    momentum, errors = 0.5, []
    rates = np.array([0.005, 0.0025])
    for lr in rates:
        n = round(0.8 / lr)  # the same time of the flow
        iterates = eosim.run(QUARTIC, eosim.HeavyBall(lr, momentum), POINT, n + 1).theta
        flow = HeavyBallPrincipalFlow(QUARTIC, lr, momentum)
        time = lr
        if not corrected:
            flow, time = eosim.GradientFlow(QUARTIC), lr / (1 - momentum)
        path = eosim.integrate(flow, iterates[n], [time], rtol=1e-13, atol=1e-16, record={})
        step = np.linalg.norm(iterates[n + 1] - iterates[n])
        errors.append(np.linalg.norm(path.theta[0] - iterates[n + 1]) / step)
    slope = np.polyfit(np.log(rates), np.log(errors), 1)[0]
    assert slope == pytest.approx(2 if corrected else 1, abs=0.1)


def test_heavy_ball_at_a_defective_hessian_is_not_gradient_descent():
    # At (i, 0) the Hessian is nilpotent: alpha(hH) = alpha(0) + alpha'(0) hH exactly.
    problem = eosim.Polynomial({(2, 0): 0.5, (0, 2): -0.5, (2, 1): 0.5})
    theta, lr, b = np.array([1j, 0.0]), 0.1, 0.6
    flow = HeavyBallPrincipalFlow(problem, lr, b)
    g, hessian = problem.gradient(theta), problem.hessian(theta)
    expected = -g / (1 - b) - lr * (1 + b) / (2 * (1 - b) ** 3) * hessian @ g
    try:
        field = flow.field(theta)
    except LeftRange:
        return  # a refusal is an answer too
    assert np.linalg.norm(field - expected) < 1e-7 * np.linalg.norm(expected)


DIAGONAL = eosim.Polynomial({(3, 0): 1 / 6, (0, 3): 1 / 6})  # H = diag(x, y)


@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize("sides", [(1, 1), (1, -1), (-1, 1), (-1, -1)], ids=str)
@pytest.mark.parametrize(
    ("flow", "end"),
    [
        (PrincipalFlow(DIAGONAL, 1.0), 1.0),
        (HeavyBallPrincipalFlow(DIAGONAL, 1.0, 0.3), (1 + np.sqrt(0.3)) ** 2),
    ],
    ids=["principal", "heavy ball"],
)
def test_eigenvalues_that_went_different_ways_round_a_singularity_are_told_apart(
    flow, end, sides, way
):
    # x goes once round the singularity: to another turn, or to the other root.
    x0, (x_side, y_side) = end + 0.3, sides
    branch = flow.init(np.array([x0, x0 + 0.3]))
    for angle in np.linspace(0, way * 2 * np.pi, 100)[1:]:
        theta = np.array([end + 0.3 * np.exp(1j * angle), x0 + 0.3 + 0.001j * y_side])
        branch = flow.advance(theta, branch)
    first, second = branch.logarithms[np.abs(branch.eigenvalues - x0).argsort()]
    if isinstance(flow, HeavyBallPrincipalFlow):
        assert first.real < np.log(0.3) / 2 < second.real  # rho_1 rho_2 = momentum
    else:
        assert abs(first.imag - second.imag) == pytest.approx(2 * np.pi, abs=0.1)
    # approach in clear steps, then jump past each other
    for gap in np.linspace(0.3, 0.02, 60):
        branch = flow.advance(np.array([x0 + 0j, x0 + gap + 0.001j * y_side]), branch)
    with pytest.raises(AmbiguousBranch):
        flow.advance(np.array([x0 + 0.02j * x_side, x0 + 0.001j * y_side]), branch)


@pytest.mark.parametrize("sides", [(1, 1), (1, -1), (-1, -1)], ids=str)
def test_eigenvalues_beyond_1_on_one_branch_need_no_control(sides):
    # Both started with +i pi; on which side of the real axis they lie says nothing.
    flow = PrincipalFlow(DIAGONAL, 1.0)
    branch = flow.init(np.array([1.3, 1.32]))
    moved = np.array([1.3 + 0.02j * sides[0], 1.3 + 0.001j * sides[1]])
    branch = flow.advance(moved, branch)
    np.testing.assert_allclose(branch.logarithms.imag, np.pi, atol=0.08)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.0, 0.9), ValueError, "lr"),
        ((0.1, 1.0), ValueError, "momentum"),
        ((0.1, -0.1), ValueError, "momentum"),
        ((0.1, "0.9"), TypeError, "momentum"),
    ],
)
def test_bad_heavy_ball_parameters_are_refused(arguments, error, message):
    with pytest.raises(error, match=f"HeavyBallPrincipalFlow: {message}"):
        HeavyBallPrincipalFlow(QUARTIC, *arguments)


# --- Lanczos ------------------------------------------------------------------------------------


def network_spectrum(dim, seed=0, tops=(1.4, 1.9, 2.1)):
    """A bulk in [0, .3] that is dense at 0, and outliers."""
    generator = np.random.default_rng(seed)
    values = 0.3 * generator.uniform(size=dim) ** 3
    values[: len(tops)] = tops
    return values


def by_reflections(values, seed=0):
    """The symmetric operator of this spectrum in the basis of three Householder reflections."""
    vectors = np.random.default_rng(seed).standard_normal((3, len(values)))
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]

    def reflect(x, order):
        for v in order:
            x = x - 2 * (v @ x) * v
        return x

    def matvec(x):
        return reflect(values * reflect(np.ravel(x), vectors), vectors[::-1])

    return LinearOperator((len(values),) * 2, matvec=matvec, rmatvec=matvec, dtype=float)


def relative(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("dim", "tops"),
    [(400, ()), (400, (1.4, 1.9, 2.1)), (600, (0.99, 2.3)), (500, (1 + 1e-6,)), (450, (-1.0, 3.0))],
    ids=str,
)
def test_the_lanczos_form_equals_the_dense_form(dim, tops):
    matrix = symmetric(network_spectrum(dim, tops=tops), 1)
    problem = eosim.Quadratic(matrix)
    theta = np.random.default_rng(2).standard_normal(dim)
    by_lanczos = PrincipalFlow(problem, 1.0, method="lanczos").field(theta)
    by_decomposition = PrincipalFlow(problem, 1.0, method="dense").field(theta)
    assert relative(by_lanczos, by_decomposition) < 1e-9


def lanczos(values, vector, tolerance=1e-10, max_steps=120):
    field, error, ritz = _spectral.apply_lanczos(
        lambda v: values * v, vector, 1.0, principal._DESCENT, tolerance, max_steps
    )
    exact = PrincipalFlow(QUARTIC, 1.0).coefficient(values) * vector
    return relative(field, exact), error, ritz


@pytest.mark.parametrize("tolerance", [1e-10, 1e-6])
def test_the_estimated_error_of_the_lanczos_form_is_honest(tolerance):
    generator = np.random.default_rng(3)
    for trial in range(60):
        dim = int(generator.integers(300, 500))
        values = generator.uniform(0, 0.3, dim) * generator.uniform(size=dim) ** (trial % 5)
        values[: trial % 7] = generator.uniform(-0.5, 2.5, trial % 7)
        if trial % 4 == 0:
            values = generator.uniform(-0.3, generator.uniform(0.3, 0.999), dim)
        vector = generator.standard_normal(dim) * (values if trial % 2 else 1)
        if trial % 3 == 0:
            vector[:5] *= 1e-5
        error, estimate, ritz = lanczos(values, vector, tolerance)
        assert error <= 10 * max(estimate, 1e-12)
        assert len(ritz) <= 120
        assert ritz.min() > values.min() - 1e-9
        assert ritz.max() < values.max() + 1e-9


def test_an_estimate_that_does_not_converge_says_so():
    error, estimate, ritz = lanczos(np.linspace(0, 2.2, 800), np.ones(800))
    assert len(ritz) == 120
    assert estimate > 1e-10
    assert error <= 10 * estimate


def test_an_invariant_subspace_ends_the_lanczos_steps():
    values = network_spectrum(400)
    vector = np.zeros(400)
    vector[[0, 7, 9]] = 1.0, -2.0, 0.5
    error, estimate, ritz = lanczos(values, vector)
    assert len(ritz) <= 5
    assert estimate == 0
    assert error < 1e-13
    error, _, ritz = lanczos(values, np.eye(400)[1])  # an eigenvector
    assert len(ritz) <= 2
    assert error < 1e-14
    assert lanczos(np.zeros(400), np.ones(400))[0] < 1e-15


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_a_space_smaller_than_the_window_of_the_estimate_is_exact(dim):
    values = np.array([0.3, 1.7, -0.5, 0.9])[:dim]
    error, estimate, ritz = lanczos(values, np.ones(dim))
    assert estimate == 0
    assert len(ritz) == dim
    assert error < 1e-13


def test_a_gradient_of_zero_gives_a_field_of_zero():
    flow = PrincipalFlow(eosim.Quadratic(by_reflections(network_spectrum(600))), 1.0)
    assert flow.method == "lanczos"
    assert not flow.field(np.zeros(600)).any()
    path = eosim.integrate(flow, np.zeros(600), [0, 1.0])
    assert path.status is Status.COMPLETED
    assert not path.theta.any()


@pytest.mark.parametrize("dim", [principal.LANCZOS_FROM - 1, principal.LANCZOS_FROM])
def test_the_size_decides_between_the_forms_and_makes_no_jump(dim):
    values = network_spectrum(dim, tops=(0.8, 0.6))
    flow = PrincipalFlow(eosim.Quadratic(np.diag(values)), 1.0)
    assert flow.method == ("mixed" if dim < 512 else "lanczos")
    theta = np.random.default_rng(1).standard_normal(dim)
    expected = flow.coefficient(values) * values * theta
    assert relative(flow.field(theta), expected) < 1e-9


def test_along_a_real_path_the_lanczos_form_is_gradient_descent():
    values = network_spectrum(700, tops=(0.8, 0.6))
    flow = PrincipalFlow(eosim.Quadratic(np.diag(values)), 1.0)
    theta = np.random.default_rng(1).standard_normal(700)
    path = eosim.integrate(flow, theta, np.arange(4.0), record={})
    assert path.status is Status.COMPLETED
    expected = theta * (1 - values) ** np.arange(4.0)[:, None]
    assert np.linalg.norm(path.theta - expected, axis=1).max() < 1e-8 * np.linalg.norm(theta)


@pytest.mark.parametrize("top", [0.9999, 2.2])
def test_a_spectrum_that_reaches_1_continuously_falls_back_to_a_decomposition(top, monkeypatch):
    dim = 400
    problem = eosim.Quadratic(np.diag(np.linspace(0, top, dim)))
    theta = np.random.default_rng(1).standard_normal(dim)
    calls = []
    dense = principal.apply_dense
    monkeypatch.setattr(
        principal, "apply_dense", lambda *arguments: calls.append(1) or dense(*arguments)
    )
    by_lanczos = PrincipalFlow(problem, 1.0, method="lanczos").field(theta)
    assert calls == [1]
    by_decomposition = PrincipalFlow(problem, 1.0, method="dense").field(theta)
    assert relative(by_lanczos, by_decomposition) < 1e-12


@pytest.mark.parametrize("top", [0.99999, 2.2])
def test_beyond_the_size_of_a_decomposition_the_flow_refuses_with_the_reason(top):
    dim = principal._DENSE_LIMIT + 1
    problem = eosim.Quadratic(by_reflections(np.linspace(0, top, dim)))
    theta = np.random.default_rng(1).standard_normal(dim)
    path = eosim.integrate(PrincipalFlow(problem, 1.0), theta, [0, 1.0], record={})
    assert path.status is Status.LEFT_RANGE
    assert "Lanczos" in path.message
    assert str(dim) in path.message
    assert "_dense" not in vars(problem)  # the matrix was never formed


def test_a_large_operator_is_followed_without_its_matrix():
    values = network_spectrum(4000, tops=(0.9, 0.7))
    operator = by_reflections(values)
    problem = eosim.Quadratic(operator)
    theta = np.random.default_rng(1).standard_normal(4000)
    path = eosim.integrate(PrincipalFlow(problem, 1.0), theta, [0, 1.0, 2.0], record={}, rtol=1e-9)
    assert path.status is Status.COMPLETED
    iterates = naive.gradient_descent(problem.gradient, theta, 2, 1.0)
    assert np.linalg.norm(path.theta - iterates, axis=1).max() < 1e-7 * np.linalg.norm(theta)
    assert "_dense" not in vars(problem)


def test_off_the_real_axis_the_lanczos_form_leaves_its_range():
    problem = eosim.Quadratic(np.diag(network_spectrum(600)))
    flow = PrincipalFlow(problem, 1.0, method="lanczos")
    path = eosim.integrate(flow, np.ones(600), [0, 1.0], record={})
    assert path.status is Status.LEFT_RANGE
    assert "real axis" in path.message
    assert "dense" in path.message


def test_corrections_work_with_the_lanczos_form():
    problem = perceptron(n_samples=6, n_features=3, hidden=(5,))
    theta = np.linspace(-1, 1, problem.dim)
    forms = [
        PrincipalFlow(problem, 0.1, corrections=2, method=method).field(theta)
        for method in ("dense", "lanczos")
    ]
    assert relative(*forms) < 1e-9


# --- problems that are not analytic -------------------------------------------------------------


def rectified(scale=1.0, refuses=False):
    """E = mean of relu(x)^2 / 2 (scale) + .1 x^2: curvature jumps at 0, no continuation."""

    def real(x):
        if refuses and np.iscomplexobj(x):
            raise TypeError("no complex numbers here")
        return np.asarray(x).real

    return eosim.from_functions(
        lambda x: float(np.sum(scale * np.maximum(real(x), 0) ** 2 / 2 + 0.1 * real(x) ** 2)),
        lambda x: scale * np.maximum(real(x), 0) + 0.2 * real(x),
        hessian=lambda x: np.diag(scale * (real(x) > 0) + 0.2),
        dim=3,
        analytic=False,
    )


@pytest.mark.parametrize("method", ["dense", "lanczos"])
@pytest.mark.parametrize("refuses", [False, True], ids=["drops", "refuses"])
def test_a_problem_that_is_not_analytic_is_followed_below_1(method, refuses):
    problem, lr, start = rectified(refuses=refuses), 0.8, [1.0, -2.0, 0.5]
    flow = PrincipalFlow(problem, lr, method=method)
    path = eosim.integrate(flow, start, lr * np.arange(5))
    assert path.status is Status.COMPLETED
    iterates = naive.gradient_descent(problem.gradient, np.array(start), 4, lr)
    np.testing.assert_allclose(path.theta, iterates, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_a_problem_that_is_not_analytic_leaves_its_range_at_1(method):
    flow = PrincipalFlow(rectified(), 0.9, method=method)  # h * lambda = 1.08 where x > 0
    path = eosim.integrate(flow, [1.0, -2.0, 0.5], 0.9 * np.arange(5))
    assert path.status is Status.LEFT_RANGE
    assert "not analytic" in path.message
    assert "1.08" in path.message
    path = eosim.integrate(flow, [-1.0, -2.0, -0.5], 0.9 * np.arange(5))
    assert path.status is Status.COMPLETED


def test_heavy_ball_leaves_its_range_where_a_problem_has_no_continuation():
    # complex from (1 - sqrt(.25))^2 = .25 on
    below = eosim.integrate(
        HeavyBallPrincipalFlow(rectified(), 0.2, 0.25), [1.0, -2.0, 0.5], [0, 0.2]
    )
    assert below.status is Status.COMPLETED
    beyond = eosim.integrate(
        HeavyBallPrincipalFlow(rectified(), 0.3, 0.25), [1.0, -2.0, 0.5], [0, 0.3]
    )
    assert beyond.status is Status.LEFT_RANGE
    assert "not analytic" in beyond.message
