"""Interpolating minima: exact for linear models, verified for all, honest where there is none."""

import numpy as np
import pytest

import eosim
from eosim.problems.feature_model import RandomFeatures
from eosim.problems.minima import RANK_CUTOFF, InterpolatingMinimum, interpolating_minimum
from eosim.problems.networks.linear import DiagonalNet, LinearNet


def rng(seed=0):
    return np.random.default_rng(seed)


def data(n=5, d=3, k=None, seed=0):
    generator = rng(seed + 30)
    targets = generator.standard_normal(n if k is None else (n, k))
    return generator.standard_normal((n, d)), targets


INTERPOLATING = {
    "features": lambda: RandomFeatures.draw(8, 4, 30),
    "tanh features": lambda: RandomFeatures.draw(8, 4, 30, "tanh"),
    "perceptron": lambda: eosim.Perceptron(*data(), (10,)),
    "two outputs": lambda: eosim.Perceptron(*data(k=2), (8, 8)),
    "relu": lambda: eosim.TwoLayerNet(*data(), 30),
    "deep leaky": lambda: eosim.DeepHomogeneousNet(*data(), (12, 12), (1.0, 0.3)),
    "linear net": lambda: LinearNet(*data(4, 6, 2), (5, 5)),
    "diagonal": lambda: DiagonalNet(*data(4, 9)),
}


@pytest.fixture(params=INTERPOLATING)
def problem(request):
    return INTERPOLATING[request.param]()


def ntk_eigenvalues(problem, theta):
    rows = problem.jacobian(theta).reshape(-1, problem.dim)
    return np.linalg.eigvalsh(rows @ rows.T / problem.n_samples)


# --- what it finds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_minimum_interpolates_and_is_what_it_says(problem, seed):
    found = interpolating_minimum(problem, problem.initial(seed))
    assert found.converged
    assert found.reason.startswith("the residuals vanish")
    assert found.residual_norm < 1e-14
    assert found.residual_norm == pytest.approx(np.sqrt(2 * problem.loss(found.theta)), rel=1e-12)
    assert found.gradient_norm == np.linalg.norm(problem.gradient(found.theta))
    assert found.gradient_norm < 1e-13
    values = ntk_eigenvalues(problem, found.theta)
    assert found.rank == len(values) == problem.n_samples * problem.n_outputs
    assert found.smallest_ntk_eigenvalue == pytest.approx(values[0], rel=1e-9)
    assert values[0] > 0
    # zero residuals: the Hessian is the Gauss-Newton matrix
    jacobian = problem.jacobian(found.theta).reshape(-1, problem.dim)
    expected = jacobian.T @ jacobian / problem.n_samples
    np.testing.assert_allclose(problem.hessian(found.theta), expected, atol=1e-12)


@pytest.mark.parametrize("start", ["zero", "random"])
def test_a_linear_problem_gets_the_nearest_minimum(start):
    problem = RandomFeatures.draw(8, 4, 30)
    theta0 = np.zeros(30) if start == "zero" else problem.initial(5)
    found = interpolating_minimum(problem, theta0)
    features = problem.features()
    gap = problem.targets[:, 0] - features @ theta0
    # Lagrange: theta0 + Phi^T multipliers with Phi Phi^T multipliers = gap
    expected = theta0 + features.T @ np.linalg.solve(features @ features.T, gap)
    np.testing.assert_allclose(found.theta, expected, rtol=1e-10, atol=1e-11)
    null = np.linalg.svd(features)[2][8:]
    np.testing.assert_allclose(null @ (found.theta - theta0), 0, atol=1e-13)


def test_a_linear_problem_of_several_outputs_gets_the_minimum_norm_solution():
    generator = rng(1)
    inputs, targets = generator.standard_normal((4, 7)), generator.standard_normal((4, 3))
    found = interpolating_minimum(eosim.LinearRegression(inputs, targets), np.zeros(21))
    np.testing.assert_allclose(found.theta, (np.linalg.pinv(inputs) @ targets).ravel(), rtol=1e-11)


def test_a_start_that_interpolates_is_returned_as_it_is():
    problem = RandomFeatures.circle()
    found = interpolating_minimum(problem, np.zeros(16))
    np.testing.assert_array_equal(found.theta, np.zeros(16))
    assert (found.n_steps, found.residual_norm, found.converged) == (0, 0.0, True)
    # c_k vanishes for the six odd orders from 3 to 13
    assert (found.rank, found.smallest_ntk_eigenvalue) == (10, 0.0)


def test_gradient_descent_stays_at_the_minimum_below_the_edge_and_leaves_it_above():
    problem = INTERPOLATING["perceptron"]()
    found = interpolating_minimum(problem, problem.initial(1))
    sharpness = eosim.measure.sharpness(problem, found.theta).value
    push = 1e-6 * rng().standard_normal(problem.dim)
    before = problem.loss(found.theta + push)
    for factor, grows in ((1.8, False), (2.2, True)):
        rule = eosim.GradientDescent(factor / sharpness)
        path = eosim.run(problem, rule, found.theta + push, 30)
        assert (path["loss"][-1] > before) == grows


def test_the_minimum_is_near_the_start():
    problem = INTERPOLATING["perceptron"]()
    first = interpolating_minimum(problem, problem.initial(1)).theta
    generator = rng(2)
    for size in (1e-2, 1e-3):
        push = size * generator.standard_normal(problem.dim)
        again = interpolating_minimum(problem, first + push).theta
        assert np.linalg.norm(again - first - push) < 2 * np.linalg.norm(push)
        # to first order only the part of the push that changes the residuals is undone
        jacobian = problem.jacobian(first)[:, 0]
        undone = -np.linalg.pinv(jacobian) @ (jacobian @ push)
        assert np.linalg.norm(again - first - push - undone) < 100 * np.linalg.norm(push) ** 2


# --- where there is none ----------------------------------------------------------------------------


def test_inconsistent_data_are_reported_with_the_least_squares_residual():
    problem = RandomFeatures.draw(20, 4, 6)
    found = interpolating_minimum(problem, problem.initial())
    best = np.linalg.lstsq(problem.features(), problem.targets[:, 0])[0]
    assert not found.converged
    assert found.reason.startswith("stationary with root mean square")
    assert "J has rank 6 and cannot change all 20 residuals" in found.reason
    assert found.residual_norm == pytest.approx(np.sqrt(2 * problem.loss(best)), rel=1e-12)
    assert found.gradient_norm < 1e-12
    assert found.smallest_ntk_eigenvalue == 0


def test_contradicting_samples_are_not_interpolated_by_any_net():
    net = eosim.Perceptron([[1.0], [1.0]], [0.0, 1.0], (20,))
    found = interpolating_minimum(net, net.initial())
    assert not found.converged
    assert (found.rank, found.residual_norm) == (1, pytest.approx(0.5, rel=1e-9))


def test_the_saddle_at_zero_is_no_minimum():
    net = LinearNet(*data(4, 6), (5,))
    found = interpolating_minimum(net, np.zeros(net.dim))
    assert (found.converged, found.rank, found.n_steps) == (False, 0, 0)
    assert found.reason.startswith("stationary")


def test_too_few_steps_are_reported():
    problem = INTERPOLATING["perceptron"]()
    theta = problem.initial(1)
    found = interpolating_minimum(problem, theta, max_steps=2)
    assert (found.converged, found.n_steps) == (False, 2)
    assert "after max_steps = 2 steps" in found.reason
    untouched = interpolating_minimum(problem, theta, max_steps=0)
    np.testing.assert_array_equal(untouched.theta, theta)
    assert untouched.residual_norm == pytest.approx(np.sqrt(2 * problem.loss(theta)))


def test_a_kink_on_the_way_is_no_stationary_point():
    class Kink:
        """e = |theta| + 1: least at the kink, where no slope is 0."""

        dim, n_samples = 1, 1

        def residuals(self, theta, batch=None):
            return np.abs(theta)[:, None] + 1

        def jacobian(self, theta, batch=None):
            return np.where(theta > 0, 1.0, -1.0)[:, None, None]

        def gradient(self, theta, batch=None):
            return self.residuals(theta)[:, 0] * self.jacobian(theta)[:, 0, 0]

    found = interpolating_minimum(Kink(), [0.7])
    assert not found.converged
    assert found.reason.startswith("no step lowers")
    assert abs(found.theta[0]) < 0.7
    assert found.residual_norm < 1.7


def test_the_tolerance_decides_the_verdict_and_not_the_point():
    problem = RandomFeatures.draw(20, 4, 6)
    strict = interpolating_minimum(problem, np.zeros(6))
    loose = interpolating_minimum(problem, np.zeros(6), tolerance=10)
    assert (strict.converged, loose.converged) == (False, True)
    np.testing.assert_array_equal(strict.theta, loose.theta)


def test_directions_below_the_cutoff_are_not_used():
    inputs = np.diag([1.0, 0.1 * RANK_CUTOFF])
    found = interpolating_minimum(eosim.LinearRegression(inputs, [1.0, 1e-12]), np.zeros(2))
    np.testing.assert_array_equal(found.theta, [1.0, 0.0])
    assert (found.rank, found.smallest_ntk_eigenvalue) == (1, 0.0)


# --- bad input ----------------------------------------------------------------------------------------


def test_bad_input_is_refused_with_its_name():
    problem = INTERPOLATING["perceptron"]()
    theta = problem.initial()
    with pytest.raises(TypeError, match=r"problem must have .*; Quadratic has no n_samples"):
        interpolating_minimum(eosim.Quadratic([[1.0]]), [0.0])
    with pytest.raises(ValueError, match=r"theta0 must have shape \(51,\)"):
        interpolating_minimum(problem, theta[:-1])
    with pytest.raises(ValueError, match="theta0: the residuals or their Jacobian are not finite"):
        interpolating_minimum(eosim.TwoLayerNet(*data(), 3), np.full(12, 1e200))
    with pytest.raises(ValueError, match="tolerance must be a real number"):
        interpolating_minimum(problem, theta, tolerance=0)
    with pytest.raises(ValueError, match="max_steps must be an integer >= 0"):
        interpolating_minimum(problem, theta, max_steps=-1)


def test_neither_start_nor_problem_is_changed():
    problem = INTERPOLATING["relu"]()
    theta = problem.initial(1)
    before = theta.copy()
    found = interpolating_minimum(problem, theta)
    assert isinstance(found, InterpolatingMinimum)
    np.testing.assert_array_equal(theta, before)
    again = interpolating_minimum(problem, theta)
    np.testing.assert_array_equal(found.theta, again.theta)
