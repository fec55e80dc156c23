"""Flows: exact on quadratics in every regime, of the right order elsewhere, and never hanging."""

import dataclasses

import mpmath
import numpy as np
import pytest
from scipy.linalg import logm

import eosim
from eosim import Status
from eosim.flows import principal_coefficient
from eosim.flows.ensemble import integrate_ensemble
from tests import naive
from tests.cases import FLOWS, QUARTIC_TERMS, regression, rotation, symmetric


def relative_error(path, expected):
    """Per time, |path - expected| / |expected|."""
    return np.linalg.norm(path - expected, axis=1) / np.linalg.norm(expected, axis=1)


# --- the coefficient ----------------------------------------------------------------------------


def test_the_coefficient_has_its_known_values():
    flow = eosim.PrincipalFlow(eosim.Cosine(), lr=1.0)
    assert flow.coefficient(0.0) == -1
    assert flow.coefficient(1e-12) == pytest.approx(-1 - 5e-13, rel=1e-15)
    assert flow.coefficient(-1.0) == pytest.approx(-np.log(2), rel=1e-15)
    assert flow.coefficient(2.0).real == 0
    assert flow.coefficient(2.0).imag == pytest.approx(np.pi / 2, rel=1e-15)
    z = np.array([1.1, 1.5, 1.99, 2.5, 10.0])
    alpha = flow.coefficient(z)
    np.testing.assert_allclose(alpha.imag, np.pi / z, rtol=1e-15)
    np.testing.assert_allclose(alpha.real, np.log(z - 1) / z, rtol=1e-13)
    assert (alpha[:3].real < 0).all()
    assert (alpha[3:].real > 0).all()
    assert -40 < flow.coefficient(1.0).real < -36


def test_the_coefficient_is_real_below_1_and_sums_the_backward_error_series():
    flow = eosim.PrincipalFlow(eosim.Cosine(), lr=1.0)
    z = np.array([-1.0, -0.3, -1e-9, 0.0, 1e-300, 1e-9, 0.3, 0.9])
    alpha = flow.coefficient(z)
    assert np.isrealobj(alpha)
    series = [-np.sum(np.longdouble(x) ** np.arange(4000) / np.arange(1, 4001)) for x in z[1:]]
    np.testing.assert_allclose(alpha[1:], np.array(series, dtype=float), rtol=1e-14)


def test_the_coefficient_gives_the_multiplier_of_gradient_descent():
    z = np.concatenate([np.linspace(-3, 4, 201), [1e-12, -1e-12]])
    z = z[z != 1]
    flow = eosim.PrincipalFlow(eosim.Cosine(), lr=1.0)
    np.testing.assert_allclose(np.exp(z * flow.coefficient(z)), 1 - z, rtol=1e-14, atol=1e-15)


def test_the_coefficient_is_the_given_logarithm_over_z():
    assert principal_coefficient(2.0, 3.0) == 1.5


def test_the_coefficient_of_gradient_flow_is_minus_1():
    flow = eosim.GradientFlow(eosim.Cosine())
    np.testing.assert_array_equal(flow.coefficient(np.array([-2.0, 0.0, 5.0])), [-1, -1, -1])


# --- the field ----------------------------------------------------------------------------------


def field(problem, theta, lr):
    flow = eosim.PrincipalFlow(problem, lr)
    return flow.field(theta, flow.init(theta))


@pytest.mark.parametrize("seed", range(6))
def test_the_field_at_a_real_point_is_the_matrix_function(seed):
    generator = np.random.default_rng(seed)
    matrix = symmetric(generator.uniform(-1, 2.5, size=5), seed)
    theta = generator.standard_normal(5)
    expected = naive.principal_field(matrix, matrix @ theta, 1.0)
    np.testing.assert_allclose(field(eosim.Quadratic(matrix), theta, 1.0), expected, rtol=1e-11)


@pytest.mark.parametrize("seed", range(6))
def test_the_eigen_form_equals_the_logm_form(seed):
    generator = np.random.default_rng(seed)
    matrix = symmetric(generator.uniform(-1, 0.95, size=5), seed)
    theta = generator.standard_normal(5)
    gradient = matrix @ theta
    by_logm = logm(np.eye(5) - matrix) @ np.linalg.solve(matrix, gradient)
    error = np.linalg.norm(field(eosim.Quadratic(matrix), theta, 1.0) - by_logm)
    assert error < 1e-12 * np.linalg.norm(by_logm)


@pytest.mark.parametrize("seed", range(4))
def test_at_complex_points_the_eigen_form_equals_the_logm_form(seed):
    # |h lambda| < 1: the tracked logarithm is the principal one.
    generator = np.random.default_rng(seed)
    problem, lr = eosim.Polynomial(QUARTIC_TERMS), 0.1
    theta = generator.standard_normal(2) + 1j * generator.standard_normal(2)
    hessian, gradient = problem.hessian(theta), problem.gradient(theta)
    by_logm = logm(np.eye(2) - lr * hessian) @ np.linalg.solve(lr * hessian, gradient)
    error = np.linalg.norm(field(problem, theta, lr) - by_logm)
    assert error < 1e-12 * np.linalg.norm(by_logm)


def test_at_a_complex_point_beyond_1_the_field_is_a_bilinear_function_of_the_hessian():
    # A point where transposed LAPACK eigenvectors in place of the inverse are off by several per cent.
    problem, lr = eosim.Rosenbrock(), 1.5e-3
    theta = np.array([1.1 + 0.05j, 1.2 - 0.1j])
    hessian, gradient = problem.hessian(theta), problem.gradient(theta)
    assert (lr * np.linalg.eigvals(hessian)).real.max() > 1
    logarithm = logm(np.eye(2) - lr * hessian)
    by_logm = logarithm @ np.linalg.solve(lr * hessian, gradient)
    error = np.linalg.norm(field(problem, theta, lr) - by_logm)
    assert error < 1e-12 * np.linalg.norm(by_logm)


@pytest.mark.parametrize(
    "eigenvalues",
    [[0.5] * 5, [1.8] * 5, [1.0] * 4 + [1.2], [0.0] * 5, [2.0, 2.0, 0.0, 0.0, -1.0]],
    ids=str,
)
def test_the_field_does_not_depend_on_the_basis_of_a_degenerate_eigenspace(eigenvalues):
    theta = np.random.default_rng(1).standard_normal(5)
    turned = rotation(5, 2)
    plain = field(eosim.Quadratic(np.diag(eigenvalues)), theta, 1.0)
    rotated = field(eosim.Quadratic(symmetric(eigenvalues, 2)), turned @ theta, 1.0)
    # At 1 - z = 0 the logarithm is the rounding error's: only its size, about -36, is known.
    tolerance = 0.2 if 1.0 in eigenvalues else 1e-12
    error = np.linalg.norm(turned.T @ rotated - plain)
    assert error <= tolerance * np.linalg.norm(plain)


def test_a_five_fold_eigenvalue_is_the_logm_form():
    u = np.random.default_rng(3).standard_normal(5)
    u /= np.linalg.norm(u)
    matrix = 0.5 * np.eye(5) + 0.2 * np.outer(u, u)
    theta = np.arange(1.0, 6.0)
    by_logm = logm(np.eye(5) - matrix) @ theta  # H^{-1} g = theta
    np.testing.assert_allclose(field(eosim.Quadratic(matrix), theta, 1.0), by_logm, rtol=1e-12)


DEFECTIVE = eosim.Polynomial({(2, 0): 0.5, (0, 2): -0.5, (2, 1): 0.5})  # H = [[1+y, x], [x, -1]]


@pytest.mark.parametrize("offset", [0.0, 1e-14, 1e-12j, 1e-9, 1e-5, 1e-3j])
@pytest.mark.parametrize("lr", [0.1, 0.3])
def test_a_nearly_defective_complex_hessian_is_no_obstacle(offset, lr):
    # At (i, 0) the Hessian is [[1, i], [i, -1]]: nilpotent, with one eigenvector.
    theta = np.array([1j + offset, 0.0])
    hessian, gradient = DEFECTIVE.hessian(theta), DEFECTIVE.gradient(theta)
    expected = naive.principal_series(hessian, gradient, lr)
    if offset == 0:
        assert not (hessian @ hessian).any()
        by_hand = -(gradient + lr / 2 * hessian @ gradient)
        np.testing.assert_allclose(expected, by_hand, rtol=1e-14)
    error = np.linalg.norm(field(DEFECTIVE, theta, lr) - expected)
    assert error < 1e-7 * np.linalg.norm(expected)


def test_a_defective_hessian_on_another_branch_leaves_the_range():
    flow = eosim.PrincipalFlow(DEFECTIVE, 0.1)
    start = flow.init(np.array([1j, 0.0]))
    turned = dataclasses.replace(start, logarithms=start.logarithms + 2j * np.pi)
    with pytest.raises(eosim.flows.LeftRange, match="defective"):
        flow.field(np.array([1j, 0.0]), turned)


def test_the_branch_is_memory_of_the_path():
    # Around 1 - h lambda = 0 once: the logarithm comes back with 2 pi i more.
    flow = eosim.PrincipalFlow(eosim.Polynomial({(3,): 1 / 6}), lr=1.0)  # H = theta
    branch = flow.init(np.array([0.5]))
    first = branch.logarithms[0]
    for angle in np.linspace(0, 2 * np.pi, 25)[1:]:
        branch = flow.advance(np.array([1 - 0.5 * np.exp(1j * angle)]), branch)
    assert branch.logarithms[0] == pytest.approx(first + 2j * np.pi, abs=1e-12)


# --- quadratics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_the_principal_flow_on_a_quadratic_is_gradient_descent(seed):
    generator = np.random.default_rng(seed)
    lr = generator.uniform(0.1, 2)
    matrix = symmetric(generator.uniform(-1, 2.5, size=6) / lr, seed)
    center, theta0 = generator.standard_normal((2, 6))
    problem = eosim.Quadratic(matrix, center)
    flow, times = eosim.PrincipalFlow(problem, lr), lr * np.arange(21)
    iterates = eosim.run(problem, eosim.GradientDescent(lr), theta0, 20).theta
    np.testing.assert_allclose(
        iterates, naive.quadratic_iterates(matrix, center, theta0, lr, 20), rtol=1e-11, atol=1e-12
    )
    path = eosim.integrate(flow, theta0, times, rtol=1e-11)
    assert path.status is Status.COMPLETED
    np.testing.assert_allclose(path.step, np.arange(21), rtol=1e-14)
    assert relative_error(path.theta, iterates).max() < 1e-9
    assert relative_error(eosim.closed_form(flow, theta0, times), iterates).max() < 1e-12


_SPECIAL = {
    "0": [0.0],
    "1e-12": [1e-12],
    "0.5": [0.5],
    "1": [1.0],
    "just below 1": [1 - 1e-12],
    "just above 1": [1 + 1e-12],
    "1.5": [1.5],
    "2": [2.0],
    "2.5": [2.5],
    "negative": [-0.7],
    "five-fold": [0.6] * 5,
    "five-fold beyond 1": [1.7] * 5 + [0.3],
    "five-fold beyond 2": [2.3] * 5 + [0.0],
    "one and a cluster": [1.0] + [1.4] * 4,
    "all zero": [0.0] * 3,
}


@pytest.mark.parametrize("eigenvalues", _SPECIAL.values(), ids=_SPECIAL)
def test_special_values_of_h_lambda_are_right_and_cheap(eigenvalues):
    lr = 0.7
    matrix = symmetric(np.array(eigenvalues) / lr, seed=4)
    theta0 = np.random.default_rng(5).standard_normal(len(matrix))
    flow = eosim.PrincipalFlow(eosim.Quadratic(matrix), lr)
    path = eosim.integrate(flow, theta0, lr * np.arange(21), rtol=1e-11)
    assert path.settings["evaluations"] < 5000
    assert path.status is Status.COMPLETED
    iterates = naive.quadratic_iterates(matrix, 0 * theta0, theta0, lr, 20)
    size = np.maximum(np.linalg.norm(iterates, axis=1), np.linalg.norm(theta0))
    assert (np.linalg.norm(path.theta - iterates, axis=1) < 1e-9 * size).all()
    exact = eosim.closed_form(flow, theta0, path.t)
    assert (np.linalg.norm(exact - iterates, axis=1) < 1e-12 * size).all()


def test_between_iterates_the_flow_rotates_at_half_a_turn_per_step():
    flow = eosim.PrincipalFlow(eosim.Quadratic([[1.5]]), 1.0)
    times = np.linspace(0, 4, 33)
    expected = 0.5**times * np.exp(1j * np.pi * times)
    path = eosim.integrate(flow, [1.0], times)
    np.testing.assert_allclose(path.theta[:, 0], expected, rtol=1e-8)
    np.testing.assert_allclose(eosim.closed_form(flow, [1.0], times)[:, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(path["imaginary_norm"], np.abs(expected.imag), atol=1e-9)


def test_gradient_flow_on_a_quadratic_decays_by_exponentials():
    matrix, center = symmetric([3.0, 0.5, 0.0, -0.2], seed=1), np.arange(4.0)
    flow = eosim.GradientFlow(eosim.Quadratic(matrix, center))
    theta0, times = np.array([1.0, -2.0, 0.5, 3.0]), np.linspace(0, 3, 7)
    values, vectors = np.linalg.eigh(matrix)
    decay = np.exp(-np.multiply.outer(times, values))
    expected = center + (decay * (vectors.T @ (theta0 - center))) @ vectors.T
    np.testing.assert_allclose(eosim.closed_form(flow, theta0, times), expected, rtol=1e-12)
    path = eosim.integrate(flow, theta0, times)
    np.testing.assert_allclose(path.theta, expected, rtol=1e-8)
    assert np.isrealobj(path.theta)
    assert path.step is None


def test_the_closed_form_needs_no_ordered_times():
    flow = eosim.PrincipalFlow(eosim.Quadratic([[1.5]]), 1.0)
    states = eosim.closed_form(flow, [1.0], [2, 0, 1])
    np.testing.assert_allclose(states[:, 0], [0.25, 1, -0.5], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("start", [[1.0, 1.0, -2.0], [0.0, 1.0, 0.0], [0.0, 1.0, -2.0]], ids=str)
def test_a_mode_beyond_the_largest_float_leaves_the_others_finite(start):
    flow = eosim.GradientFlow(eosim.Quadratic(np.diag([-1.0, 1e-3, -0.5]), [3.0, 0.0, 0.0]))
    start = np.array(start) + flow.problem.center
    states = eosim.closed_form(flow, start, [0.0, 1.0, 800.0, 1600.0, 1e300])
    decay = np.exp([-0.0, -1e-3, -0.8, -1.6, -1e297])
    np.testing.assert_array_equal(states[0], start)
    np.testing.assert_allclose(states[:, 1], decay, rtol=1e-13)
    first, last = start[0] - 3, start[2]
    assert states[1, 0] == pytest.approx(3 + first * np.e, rel=1e-15)
    np.testing.assert_array_equal(states[2:, 0], [np.inf if first else 3.0] * 3)
    np.testing.assert_array_equal(states[3:, 2], [-np.inf if last else 0.0] * 2)
    assert states[2, 2] == pytest.approx(last * np.exp(400.0), rel=1e-13)


def test_a_coordinate_is_finite_or_infinite_as_its_own_sum_is():
    matrix = symmetric([-1.0, -0.99, 0.3], seed=2)
    values, vectors = np.linalg.eigh(matrix)
    flow, times = eosim.GradientFlow(eosim.Quadratic(matrix)), [700.0, 715.0, 1000.0, 5000.0]
    start = vectors @ np.array([1e-5, -3.0, 2.0])
    weights = vectors.T @ start
    grown = [
        [w * mpmath.exp(-mpmath.mpf(t) * x) for w, x in zip(weights, values, strict=True)]
        for t in times
    ]
    expected = [[float(mpmath.fdot(row, parts)) for row in vectors.tolist()] for parts in grown]
    assert np.isfinite(expected[1]).any()  # although e^715 is not
    assert np.isposinf(expected).any()
    assert np.isneginf(expected).any()
    np.testing.assert_allclose(eosim.closed_form(flow, start, times), expected, rtol=1e-11)


def test_beyond_the_largest_float_a_complex_flow_is_infinite_where_its_mode_is():
    flow = eosim.PrincipalFlow(eosim.Quadratic(np.diag([3.0, 0.25])), 1.0)
    states = eosim.closed_form(flow, [0.0, 1.0], [1000.0, 1100.0])
    np.testing.assert_array_equal(states[:, 0], 0)
    np.testing.assert_allclose(states[:, 1], 0.75 ** np.array([1000.0, 1100.0]), rtol=1e-12)
    state = eosim.closed_form(flow, [1.0, 1.0], [1101.0])[0]
    assert np.isneginf(state[0].real)  # (-2)^1101
    assert state[1] == pytest.approx(0.75**1101, rel=1e-12)
    state = eosim.closed_form(flow, [1.0, 1.0], [1024 + 1 / 3])[0]  # a sixth of a turn
    assert state[0].real == pytest.approx(2.0**1023 * 2 ** (1 / 3), rel=1e-9)
    assert np.isposinf(state[0].imag)


def test_at_one_every_form_falls_to_the_floor_within_a_step():
    # 1e-16 of itself, on the real axis and off it, in closed form, compiled or not.
    flow = eosim.PrincipalFlow(eosim.Quadratic(np.diag([1.0, 0.5])), 1.0)
    ball = eosim.HeavyBallPrincipalFlow(flow.problem, 1.0, momentum=0.0)
    logarithm = np.log(1e-16)
    for one in (flow, ball):
        assert one.coefficient(1.0) == pytest.approx(logarithm, rel=1e-15)
        theta = np.array([1.0, 0.0])
        assert one.field(theta)[0] == pytest.approx(logarithm, rel=1e-15)
        assert one.field(theta, one.init(theta + 0j))[0] == pytest.approx(logarithm, rel=1e-15)
    below = 1 - 2.0**-53  # the next float has its own logarithm
    assert flow.coefficient(below) == pytest.approx(-53 * np.log(2), rel=1e-15)
    times = np.array([0.125, 0.25])
    expected = np.stack([1e-16**times, 0.5**times], axis=1)
    np.testing.assert_allclose(eosim.closed_form(flow, [1.0, 1.0], times), expected, rtol=1e-13)
    for method in ("generic", "compiled"):
        paths = integrate_ensemble(flow, [[1.0, 1.0]], times, method=method)
        np.testing.assert_allclose(paths.theta[0], expected, rtol=1e-7)


def test_a_linear_model_is_followed_exactly_too():
    problem = regression()
    lr = 1.9 / np.linalg.eigvalsh(problem.hessian(np.zeros(4))).max()
    path = eosim.integrate(eosim.PrincipalFlow(problem, lr), np.ones(4), lr * np.arange(11))
    iterates = eosim.run(problem, eosim.GradientDescent(lr), np.ones(4), 10).theta
    assert np.linalg.norm(path.theta - iterates, axis=1).max() < 1e-8


# --- order --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "order"), [(eosim.GradientFlow, 2), (eosim.PrincipalFlow, 3)])
def test_the_one_step_error_against_gradient_descent_has_its_order(kind, order):
    problem, theta0 = eosim.Polynomial(QUARTIC_TERMS), np.array([0.7, -0.5])
    rates = np.array([0.01, 0.0075, 0.005])
    errors = []
    for lr in rates:
        path = eosim.integrate(kind(problem, lr=lr), theta0, [lr], rtol=3e-14, atol=1e-15)
        errors.append(np.linalg.norm(path.theta[0] - (theta0 - lr * problem.gradient(theta0))))
    slope = np.polyfit(np.log(rates), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.05)


def test_the_one_step_errors_have_their_leading_constants():
    # Gradient flow: h^2/2 H g; principal flow: h^3/12 T[g, g].
    problem, theta, lr = eosim.Polynomial(QUARTIC_TERMS), np.array([0.7, -0.5]), 1e-3
    g, hessian, third = (problem.derivative(theta, order) for order in (1, 2, 3))
    step = theta - lr * g
    path = eosim.integrate(eosim.GradientFlow(problem), theta, [lr], rtol=3e-14, atol=1e-15)
    np.testing.assert_allclose((path.theta[0] - step) / lr**2, hessian @ g / 2, rtol=5e-3)
    path = eosim.integrate(eosim.PrincipalFlow(problem, lr), theta, [lr], rtol=3e-14, atol=1e-16)
    expected = np.einsum("ijk,j,k->i", third, g, g) / 12
    np.testing.assert_allclose((path.theta[0].real - step) / lr**3, expected, rtol=5e-3)


# --- Rosenbrock ---------------------------------------------------------------------------------

_TABLE_STEPS = [1, 2, 5, 10, 20, 30]


@pytest.mark.parametrize(
    ("kind", "table", "unit"),
    [
        (
            eosim.GradientFlow,
            [1.035e-2, 1.584e-2, 1.313e-2, 4.752e-3, 4.114e-3, 4.083e-3],
            [1e-5, 1e-5, 1e-5, 1e-6, 1e-6, 1e-6],
        ),
        (
            eosim.PrincipalFlow,
            [5.07811e-4, 6.96182e-4, 5.18083e-4, 4.57977e-4, 4.54454e-4, 4.51103e-4],
            [1e-9] * 6,
        ),
    ],
)
def test_distances_to_gradient_descent_in_the_real_regime_are_the_tabulated_ones(kind, table, unit):
    problem, lr = eosim.Rosenbrock(), 8e-4
    iterates = eosim.run(problem, eosim.GradientDescent(lr), [0.5, 0.6], 30).theta
    np.testing.assert_allclose(iterates[-1], [0.676537, 0.456154], atol=5e-7)
    path = eosim.integrate(kind(problem, lr=lr), [0.5, 0.6], lr * np.arange(31), rtol=1e-11)
    distance = np.linalg.norm(path.theta - iterates, axis=1)[_TABLE_STEPS]
    assert (np.abs(distance - table) <= 0.5 * np.array(unit) * (1 + 1e-3)).all()
    if kind is eosim.PrincipalFlow:
        assert path["imaginary_norm"].max() == 0


def test_in_the_complex_regime_the_principal_flow_stays_close_to_gradient_descent():
    problem, lr = eosim.Rosenbrock(), 1.2e-3
    iterates = eosim.run(problem, eosim.GradientDescent(lr), [1.2, 1.2], 30)
    z = [lr * eosim.measure.sharpness(problem, theta).value for theta in iterates.theta]
    assert z[0] == pytest.approx(1.72, abs=5e-3)
    assert min(z) > 1.2
    path = eosim.integrate(eosim.PrincipalFlow(problem, lr), [1.2, 1.2], lr * np.arange(31))
    assert path.status is Status.COMPLETED
    for distance in (
        np.linalg.norm(path.theta - iterates.theta, axis=1),
        np.linalg.norm(path.theta.real - iterates.theta, axis=1),
    ):
        assert distance.max() < 0.02
        assert distance[5:].max() < 0.004
    assert 0.005 <= path["imaginary_norm"].max() <= 0.03
    gradient_flow = eosim.integrate(eosim.GradientFlow(problem), [1.2, 1.2], path.t)
    gap = np.linalg.norm(gradient_flow.theta - iterates.theta, axis=1)
    assert (np.linalg.norm(path.theta - iterates.theta, axis=1)[1:3] * 3 < gap[1:3]).all()


def test_the_flow_passes_through_the_singularity_at_h_lambda_1():
    problem, lr = eosim.Rosenbrock(), 8e-4  # from (-1, 1.5): .679 .996 1.056 ...
    path = eosim.integrate(eosim.PrincipalFlow(problem, lr), [-1, 1.5], lr * np.arange(31))
    assert path.status is Status.COMPLETED
    iterates = eosim.run(problem, eosim.GradientDescent(lr), [-1, 1.5], 30).theta
    gradient_flow = eosim.integrate(eosim.GradientFlow(problem), [-1, 1.5], path.t).theta
    for n in (2, 5, 10, 20, 30):
        distance = np.linalg.norm(path.theta[n] - iterates[n])
        assert distance < np.linalg.norm(gradient_flow[n] - iterates[n])


# --- branches -----------------------------------------------------------------------------------


def cubic(c):
    return eosim.Polynomial({(2,): 0.5, (3,): c / 3})


def test_the_tracked_branch_follows_the_alternating_signs():
    problem, lr = cubic(0.1), 1.6
    iterates = eosim.run(problem, eosim.GradientDescent(lr), [1.0], 3).theta[:, 0]
    np.testing.assert_allclose(iterates, [1, -0.76, 0.3636, -0.2393], atol=1e-4)
    path = eosim.integrate(eosim.PrincipalFlow(problem, lr), [1.0], lr * np.arange(4))
    assert path.status is Status.COMPLETED
    assert (np.sign(path.theta[:, 0].real) == np.sign(iterates)).all()
    assert np.abs(path.theta[:, 0] - iterates).max() < 0.25
    assert path.settings["evaluations"] < 1000


def test_the_tracked_branch_does_not_stick_after_the_first_step():
    problem, lr = cubic(-0.1), 1.6
    iterates = eosim.run(problem, eosim.GradientDescent(lr), [1.0], 6).theta[:, 0]
    path = eosim.integrate(eosim.PrincipalFlow(problem, lr), [1.0], lr * np.arange(7))
    assert path.status is Status.COMPLETED
    assert (np.sign(path.theta[:, 0].real) == np.sign(iterates)).all()


# --- the driver ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("flow", "start"), FLOWS)
def test_integration_solves_the_equation(flow, start):
    # Independent of scipy: classical Runge-Kutta steps with the branch carried along.
    times = np.array([0.0, 0.05, 0.1]) * (flow.lr or 0.01) * 10
    path = eosim.integrate(flow, start, times, rtol=1e-11)
    theta = start.astype(complex if flow.is_complex else float)
    branch = flow.init(start) if hasattr(flow, "init") else None
    n = 400
    for index in range(len(times) - 1):
        h = (times[index + 1] - times[index]) / n
        for _ in range(n):
            k1 = flow.field(theta, branch)
            k2 = flow.field(theta + h / 2 * k1, branch)
            k3 = flow.field(theta + h / 2 * k2, branch)
            k4 = flow.field(theta + h * k3, branch)
            theta = theta + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            branch = flow.advance(theta, branch) if hasattr(flow, "advance") else None
        np.testing.assert_allclose(path.theta[index + 1], theta, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("flow", "start"), FLOWS)
def test_requested_times_do_not_change_the_path(flow, start):
    end = 3 * (flow.lr or 0.001)
    few = eosim.integrate(flow, start, [end])
    many = eosim.integrate(flow, start, np.linspace(0, end, 23))
    np.testing.assert_allclose(many.theta[-1], few.theta[-1], rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(few.t, [end])
    np.testing.assert_array_equal(many.theta[0], start)


@pytest.mark.parametrize(("flow", "start"), FLOWS)
def test_the_same_call_gives_the_same_bits(flow, start):
    times = np.linspace(0, 2, 5) * (flow.lr or 0.001)
    first, second = (eosim.integrate(flow, start, times) for _ in range(2))
    np.testing.assert_array_equal(first.theta, second.theta)
    assert first.message == second.message


def test_a_real_start_of_any_kind_becomes_complex_by_itself_and_is_not_modified():
    flow = eosim.PrincipalFlow(eosim.Quadratic(np.diag([1.5, 0.5])), 1.0)
    fixed = np.array([1, 2], dtype=np.float32)
    fixed.flags.writeable = False
    for start in ([1, 2], (1.0, 2.0), np.array([1, 2]), fixed):
        path = eosim.integrate(flow, start, [0, 1, 2])
        assert path.theta.dtype == np.complex128
        np.testing.assert_allclose(path.theta[1], [-0.5, 1], rtol=1e-9, atol=1e-12)


def test_several_starts_are_integrated_in_one_call():
    problem, lr = eosim.Rosenbrock(), 1e-3
    starts = np.array([[0.5, 0.6], [1.2, 1.2], [-1.0, 1.5]])
    flow, times = eosim.PrincipalFlow(problem, lr), lr * np.arange(4)
    together = eosim.integrate(flow, starts, times)
    assert len(together) == 3
    for start, path in zip(starts, together, strict=True):
        alone = eosim.integrate(flow, start, times)
        np.testing.assert_array_equal(path.theta, alone.theta)
        assert path.settings["evaluations"] == alone.settings["evaluations"]
    (single,) = eosim.integrate(flow, starts[:1], times)
    np.testing.assert_array_equal(single.theta, together[0].theta)


def test_records_are_taken_at_the_real_part():
    flow = eosim.PrincipalFlow(eosim.Quadratic([[1.5]]), 1.0)
    times = np.linspace(0, 2, 9)
    path = eosim.integrate(
        flow,
        [1.0],
        times,
        record={"loss": eosim.measure.loss, "sharpness": eosim.measure.sharpness},
    )
    np.testing.assert_allclose(path["loss"], 0.75 * path.theta[:, 0].real ** 2, rtol=1e-14)
    np.testing.assert_allclose(path["sharpness"], 1.5)
    assert set(path.records) >= {"imaginary_norm", "sharpness.residual"}


def test_the_clock_of_a_flow_with_a_rate_counts_its_steps():
    problem = eosim.Quadratic([[1.0]])
    path = eosim.integrate(eosim.GradientFlow(problem, lr=0.5), [1.0], [0, 1, 2.25])
    np.testing.assert_array_equal(path.step, [0, 2, 4.5])


def test_the_settings_name_the_flow_its_rate_and_the_tolerances():
    flow = eosim.PrincipalFlow(eosim.Cosine(), 0.5)
    path = eosim.integrate(flow, [0.1], [0, 1], rtol=1e-7, atol=1e-9, max_evaluations=777)
    settings = path.settings
    assert (settings["flow"], settings["problem"], settings["lr"]) == (
        "PrincipalFlow",
        "Cosine",
        0.5,
    )
    assert (settings["rtol"], settings["atol"]) == (1e-7, 1e-9)
    assert settings["max_evaluations"] == 777
    assert 0 < settings["evaluations"] <= 777


def test_a_zero_absolute_tolerance_can_be_met_by_a_coordinate_that_stays_zero():
    flow = eosim.GradientFlow(eosim.Quadratic(np.diag([1.0, 2.0])))
    path = eosim.integrate(flow, [1.0, 0.0], [0, 1], atol=0)
    assert path.status is Status.COMPLETED
    np.testing.assert_allclose(path.theta[-1], [np.exp(-1), 0], rtol=1e-8)


def test_a_progress_bar_changes_nothing_but_standard_error(capsys):
    flow = eosim.GradientFlow(eosim.Cosine())
    quiet = eosim.integrate(flow, [0.1], [0, 1, 2])
    assert capsys.readouterr().err == ""
    loud = eosim.integrate(flow, [0.1], [0, 1, 2], progress=True)
    assert "3/3" in capsys.readouterr().err
    np.testing.assert_array_equal(quiet.theta, loud.theta)


# --- how an integration ends --------------------------------------------------------------------


def test_beyond_the_edge_on_a_cosine_the_flow_follows_and_then_ends_with_a_status():
    problem, lr = eosim.Cosine(), 2.2
    iterates = eosim.run(problem, eosim.GradientDescent(lr), [0.1], 40).theta[:, 0]
    path = eosim.integrate(eosim.PrincipalFlow(problem, lr), [0.1], lr * np.arange(41))
    assert path.settings["evaluations"] < 25_000
    assert path.status in (Status.DIVERGED, Status.STALLED, Status.BUDGET_SPENT)
    assert (
        path.message.startswith(path.status.name.lower().split("_")[0]) or "spent" in path.message
    )
    assert 5 < len(path) < 41
    follows = np.abs(path.theta[1:6, 0] - iterates[1:6]) < 0.05 * np.abs(iterates[1:6])
    assert follows.all()
    assert np.isfinite(path.theta).all()


@pytest.mark.parametrize("budget", [1, 10, 100])
def test_a_spent_budget_is_a_status_and_the_budget_is_kept(budget):
    flow = eosim.PrincipalFlow(eosim.Rosenbrock(), 1.2e-3)
    path = eosim.integrate(flow, [1.2, 1.2], 1.2e-3 * np.arange(31), max_evaluations=budget)
    assert path.status is Status.BUDGET_SPENT
    assert f"max_evaluations = {budget}" in path.message
    assert path.settings["evaluations"] <= budget + 1
    assert len(path.t) == len(path.step) == len(path.theta) == len(path["loss"]) < 31
    assert path.t[0] == 0


def test_a_diverging_quadratic_grows_legitimately_and_then_diverges():
    flow = eosim.PrincipalFlow(eosim.Quadratic([[3.0]]), 1.0)
    path = eosim.integrate(flow, [1.0], np.arange(100.0))
    assert path.status is Status.DIVERGED
    assert abs(len(path) - np.log2(2e12)) <= 2
    expected = (-2.0) ** np.arange(len(path))
    np.testing.assert_allclose(path.theta[:, 0], expected, rtol=1e-7)


def test_a_flow_that_escapes_to_infinity_in_finite_time_ends_with_a_status():
    flow = eosim.GradientFlow(eosim.Polynomial({(3,): -1 / 3}))  # x' = x^2: x = 1/(1-t)
    path = eosim.integrate(flow, [1.0], [0, 0.5, 0.9, 1.5, 2])
    assert path.status in (Status.DIVERGED, Status.STALLED)
    np.testing.assert_allclose(path.theta[:, 0], [1, 2, 10], rtol=1e-6)


def test_a_field_that_turns_nan_on_the_way_is_divergence():
    problem = eosim.from_functions(
        lambda x: float(np.sum(x**2) / 2),
        lambda x: np.where(np.abs(x) < 0.5, np.nan, 1) * x,
        dim=1,
        at=[2.0],
    )
    path = eosim.integrate(eosim.GradientFlow(problem), [1.0], np.linspace(0, 2, 5))
    assert path.status is Status.DIVERGED
    assert "not finite" in path.message
    assert np.isfinite(path.theta).all()


def kinked(kink=0.0):
    """Curvature 0.2 left of the kink and 2.2 right of it; its functions refuse complex numbers."""

    def real(x):
        if np.iscomplexobj(x):
            raise TypeError("a kink has no complex continuation")
        return np.asarray(x) - kink

    return eosim.from_functions(
        lambda x: float(np.sum(np.maximum(real(x), 0) ** 2 + 0.1 * real(x) ** 2)),
        lambda x: 2 * np.maximum(real(x), 0) + 0.2 * real(x),
        hessian=lambda x: np.diag(2.0 * (real(x) > 0) + 0.2),
        dim=2,
    )


def test_a_problem_that_is_not_analytic_is_followed_below_1_in_real_numbers():
    problem, lr = kinked(), 0.3
    path = eosim.integrate(eosim.PrincipalFlow(problem, lr), [1.0, -2.0], lr * np.arange(6))
    assert path.status is Status.COMPLETED
    iterates = eosim.run(problem, eosim.GradientDescent(lr), [1.0, -2.0], 5).theta
    np.testing.assert_allclose(path.theta, iterates, rtol=1e-8)


def test_a_problem_that_is_not_analytic_leaves_its_range_at_1():
    # Moves from low curvature across the kink, where h lambda = 1.32.
    problem, lr = kinked(kink=-1.0), 0.6
    shifted = eosim.from_functions(
        lambda x: problem.loss(x) + 3 * np.sum(-x),
        lambda x: problem.gradient(x) - 3,
        hessian=problem.hessian,
        dim=2,
    )
    path = eosim.integrate(eosim.PrincipalFlow(shifted, lr), [-3.0, -3.0], lr * np.arange(20))
    assert path.status is Status.LEFT_RANGE
    assert 1 <= len(path) < 20
    assert "not analytic" in path.message
    assert "1.32" in path.message


def test_a_start_outside_the_range_is_a_status_as_well():
    path = eosim.integrate(eosim.PrincipalFlow(kinked(), 0.6), [1.0, 1.0], [0, 1])
    assert path.status is Status.LEFT_RANGE
    assert "not analytic" in path.message


@pytest.mark.parametrize("flow_of", [eosim.GradientFlow, lambda p: eosim.PrincipalFlow(p, 0.1)])
def test_a_field_that_is_not_finite_at_the_start_is_refused(flow_of):
    problem = eosim.from_functions(
        lambda x: float(np.sum(x**2) / 2),
        lambda x: np.where(np.abs(x) > 5, np.nan, 1) * x,
        dim=2,
    )
    with pytest.raises(ValueError, match="not finite at theta0"):
        eosim.integrate(flow_of(problem), [10.0, 1.0], [0, 1])
