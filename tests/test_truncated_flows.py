"""Truncated flows: their order and constants, where they are right and where they leave their range."""

import itertools

import numpy as np
import pytest
from scipy.optimize import brentq

import eosim
from eosim import ForwardDifferenceFlow, ModifiedFlow, PrincipalFlow, PrincipalSeries, Status
from eosim.problems.base import third_derivative
from tests import naive
from tests.cases import PROBLEMS, QUARTIC_TERMS, symmetric

QUARTIC, POINT = eosim.Polynomial(QUARTIC_TERMS), np.array([0.7, -0.5])

# (flow at rate h, order of its one-step error, accuracy of a slope fitted to it)
ORDERS = {
    "gradient": (lambda h: eosim.GradientFlow(QUARTIC, h), 2, 0.05),
    "modified 1": (lambda h: ModifiedFlow(QUARTIC, h, 1), 2, 0.05),
    "modified 2": (lambda h: ModifiedFlow(QUARTIC, h, 2), 3, 0.05),
    "modified 3": (lambda h: ModifiedFlow(QUARTIC, h, 3), 4, 0.05),
    "modified 4": (lambda h: ModifiedFlow(QUARTIC, h, 4), 5, 0.05),
    "series 1": (lambda h: PrincipalSeries(QUARTIC, h, 1), 2, 0.05),
    "series 2": (lambda h: PrincipalSeries(QUARTIC, h, 2), 3, 0.05),
    "series 3": (lambda h: PrincipalSeries(QUARTIC, h, 3), 3, 0.15),
    "series 8": (lambda h: PrincipalSeries(QUARTIC, h, 8), 3, 0.05),
    "principal": (lambda h: PrincipalFlow(QUARTIC, h), 3, 0.05),
    "principal + 1": (lambda h: PrincipalFlow(QUARTIC, h, corrections=1), 4, 0.05),
    "principal + 2": (lambda h: PrincipalFlow(QUARTIC, h, corrections=2), 5, 0.05),
    "differences 1": (lambda h: ForwardDifferenceFlow(QUARTIC, h, 1), 2, 0.05),
    "differences 2": (lambda h: ForwardDifferenceFlow(QUARTIC, h, 2), 3, 0.05),
    "differences 3": (lambda h: ForwardDifferenceFlow(QUARTIC, h, 3), 4, 0.05),
    "differences 4": (lambda h: ForwardDifferenceFlow(QUARTIC, h, 4), 5, 0.15),
    "differences 5": (lambda h: ForwardDifferenceFlow(QUARTIC, h, 5), 6, 0.15),
    "differences 6": (lambda h: ForwardDifferenceFlow(QUARTIC, h, 6), 7, 0.15),
}


def drift(flow, theta=POINT):
    """The flow for time h, less one step of gradient descent."""
    h = flow.lr
    path = eosim.integrate(flow, theta, [h], record={}, rtol=3e-14, atol=1e-16)
    assert path.status is Status.COMPLETED
    return path.theta[0] - (theta - h * flow.problem.gradient(theta))


# --- order --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDERS)
def test_the_one_step_error_has_its_order(name):
    flow_at, order, accuracy = ORDERS[name]
    rates = [0.01, 0.005] if order < 7 else [0.005, 0.0025]
    errors = [np.linalg.norm(drift(flow_at(h))) for h in rates]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=accuracy)


def exact_constants():
    """Leading drift constants by name: d - c, where the field's first wrong coefficient is d, not c."""
    g, hessian = QUARTIC.gradient(POINT), QUARTIC.hessian(POINT)
    modified = naive.modified_field(QUARTIC_TERMS, POINT, 6)  # c_0, ..., c_5
    principal = [-np.linalg.matrix_power(hessian, k) @ g / (k + 1) for k in range(6)]
    first = principal[2] - modified[2]  # T[g,g] / 12
    second = principal[3] - modified[3]
    constants = {
        "gradient": -modified[1],
        "principal": first,
        "principal + 1": second,
        "principal + 2": principal[4] - modified[4],
        "series 1": -modified[1],
        "series 2": -modified[2],
        "series 3": first,
        "series 8": first,
    }
    for n in range(1, 5):
        constants[f"modified {n}"] = -modified[n]
    for n in range(1, 6):
        cut = naive.modified_field(QUARTIC_TERMS, POINT, n)[n]
        constants[f"differences {n}"] = cut - modified[n]
    return constants


CONSTANTS = exact_constants()


def test_the_constants_of_the_drift_are_those_of_the_third_derivative():
    g, hessian, third = (QUARTIC.derivative(POINT, order) for order in (1, 2, 3))
    Hg = hessian @ g
    Tgg, TgHg = third @ g @ g, third @ g @ Hg
    np.testing.assert_allclose(CONSTANTS["gradient"], Hg / 2, rtol=1e-12)
    np.testing.assert_allclose(CONSTANTS["modified 2"], hessian @ Hg / 3 + Tgg / 12, rtol=1e-12)
    np.testing.assert_allclose(CONSTANTS["principal"], Tgg / 12, rtol=1e-11)
    by_trees = hessian @ hessian @ Hg / 4 + (hessian @ Tgg + TgHg) / 12
    np.testing.assert_allclose(CONSTANTS["modified 3"], by_trees, rtol=1e-11)
    np.testing.assert_allclose(CONSTANTS["principal + 1"], (hessian @ Tgg + TgHg) / 12, rtol=1e-10)


@pytest.mark.parametrize("name", CONSTANTS)
def test_the_leading_drift_constant_is_right_to_a_thousandth(name):
    flow_at, order, _ = ORDERS[name]
    expected = CONSTANTS[name]
    n_rates, largest = (4, 0.02) if order < 6 else (5, 0.04)
    rows = [drift(flow_at(h)).real / h**order for h in largest / 2.0 ** np.arange(n_rates)]
    while len(rows) > 1:  # Richardson: drop the next power of h, again and again
        power = n_rates + 1 - len(rows)
        rows = [
            (2**power * fine - coarse) / (2**power - 1) for coarse, fine in itertools.pairwise(rows)
        ]
    assert np.linalg.norm(rows[0] - expected) < 1e-3 * np.linalg.norm(expected)


# --- the fields ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("shift", [0.0, 0.2j], ids=["real", "complex"])
def test_the_modified_field_is_the_sum_of_its_tensors(order, shift):
    theta, lr = POINT + shift, 0.3
    g, hessian, third = (QUARTIC.derivative(theta, k) for k in (1, 2, 3))
    expected = naive.modified_flow(hessian, third, g, order, lr)
    np.testing.assert_allclose(ModifiedFlow(QUARTIC, lr, order).field(theta), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [3, 4])
def test_the_modified_field_needs_no_exact_third_derivative(order):
    exact = ModifiedFlow(QUARTIC, 0.3, order)
    plain = eosim.from_functions(
        QUARTIC.loss, QUARTIC.gradient, QUARTIC.hvp, dim=2, analytic=True, at=POINT
    )
    assert not hasattr(plain, "third_derivative")
    by_step = ModifiedFlow(plain, 0.3, order)
    np.testing.assert_allclose(by_step.field(POINT), exact.field(POINT), rtol=1e-13)
    theta = POINT + 0.2j
    np.testing.assert_allclose(by_step.field(theta), exact.field(theta), rtol=1e-9)


@pytest.mark.parametrize("n_terms", [1, 2, 3, 7])
@pytest.mark.parametrize("shift", [0.0, 0.2j], ids=["real", "complex"])
def test_the_series_is_the_cut_series(n_terms, shift):
    theta, lr = POINT + shift, 0.3
    expected = naive.principal_series(QUARTIC.hessian(theta), QUARTIC.gradient(theta), lr, n_terms)
    actual = PrincipalSeries(QUARTIC, lr, n_terms).field(theta)
    np.testing.assert_allclose(actual, expected, rtol=1e-13)


@pytest.mark.parametrize("order", range(1, 7))
def test_the_forward_difference_field_is_the_logarithm_of_the_map_in_differences(order):
    lr = 0.05
    actual = ForwardDifferenceFlow(QUARTIC, lr, order).field(POINT)
    points = naive.gradient_descent(QUARTIC.gradient, POINT, order, lr)
    total = 0
    for m in range(1, order + 1):
        total = total + (-1) ** (m + 1) / m * np.diff(points, n=m, axis=0)[0]
    np.testing.assert_allclose(actual, total / lr, rtol=1e-11)


def test_three_forward_differences_equal_the_third_order_flow_up_to_the_third_power():
    gaps = []
    for lr in (2e-3, 1e-3):
        by_differences = ForwardDifferenceFlow(QUARTIC, lr, 3).field(POINT)
        gaps.append(by_differences - ModifiedFlow(QUARTIC, lr, 3).field(POINT))
    assert np.log2(np.linalg.norm(gaps[0]) / np.linalg.norm(gaps[1])) == pytest.approx(3, abs=0.02)
    constant = naive.modified_field(QUARTIC_TERMS, POINT, 3)[3]
    extrapolated = (2 * gaps[1] / 1e-3**3 - gaps[0] / 2e-3**3) / 1
    np.testing.assert_allclose(extrapolated, constant, rtol=1e-3)


@pytest.mark.parametrize("order", [1, 2, 3, 6])
@pytest.mark.parametrize("shift", [0.0, 0.5j], ids=["real", "complex"])
def test_on_a_quadratic_forward_differences_are_the_principal_series(order, shift):
    problem = eosim.Quadratic(symmetric([2.0, 0.7, 0.0, -1.5], seed=2), np.arange(4.0))
    theta = np.array([1.0, -2.0, 0.5, 3.0]) + shift
    by_differences = ForwardDifferenceFlow(problem, 0.6, order).field(theta)
    series = PrincipalSeries(problem, 0.6, order).field(theta)
    np.testing.assert_allclose(by_differences, series, rtol=1e-12)


def test_implicit_gradient_regularisation_is_the_gradient_flow_of_its_loss():
    lr = 0.3

    def regularised(x):
        g = QUARTIC.gradient(x)
        return QUARTIC.loss(x) + lr / 4 * (g @ g)

    flow = ModifiedFlow(QUARTIC, lr, 2)
    for theta in np.random.default_rng(0).standard_normal((5, 2)):
        slope = [regularised(theta + 1e-30j * unit).imag / 1e-30 for unit in np.eye(2)]
        np.testing.assert_allclose(flow.field(theta), -np.array(slope), rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(flow.field(theta), PrincipalSeries(QUARTIC, lr, 2).field(theta))


def test_beyond_order_two_the_fields_are_no_gradient_fields():
    lr = 0.3
    for flow in (ModifiedFlow(QUARTIC, lr, 3), PrincipalSeries(QUARTIC, lr, 3)):
        slopes = naive.hessian(flow.field, POINT)
        assert abs(slopes[0, 1] - slopes[1, 0]) > 1e-4
    slopes = naive.hessian(ModifiedFlow(QUARTIC, lr, 2).field, POINT)
    assert abs(slopes[0, 1] - slopes[1, 0]) < 1e-9


@pytest.mark.parametrize("kind", [PrincipalSeries, ModifiedFlow, ForwardDifferenceFlow])
def test_order_one_is_the_gradient_flow(kind):
    theta = np.array([0.5, 0.6])
    flow = kind(eosim.Rosenbrock(), 1e-3, 1)
    np.testing.assert_array_equal(flow.field(theta), -eosim.Rosenbrock().gradient(theta))


@pytest.mark.parametrize(
    "eigenvalues", [[0.5, 0.1, 0.0, -0.4], [-1.0, -0.2, 0.3, 0.9]], ids=["inside", "at -1"]
)
def test_the_series_converges_to_the_principal_field_inside_the_unit_disc(eigenvalues):
    problem = eosim.Quadratic(symmetric(eigenvalues, 1))
    theta = np.array([1.0, -2.0, 0.5, 3.0])
    target = PrincipalFlow(problem, 1.0).field(theta)
    gap = [
        np.linalg.norm(PrincipalSeries(problem, 1.0, n).field(theta) - target)
        for n in (5, 50, 500, 2000)
    ]
    assert gap[1] < 0.2 * gap[0]
    assert gap[2] < 0.2 * gap[1] or gap[1] < 1e-13
    # at -1 the remainder of the alternating series is half its next term
    assert gap[-1] < (1e-13 if min(eigenvalues) > -1 else 4 / 2000)


@pytest.mark.parametrize("n_terms", [1, 2, 3, 4, 7])
def test_every_truncation_contracts_at_every_positive_curvature(n_terms):
    flow = PrincipalSeries(QUARTIC, 1.0, n_terms)
    z = np.linspace(0.01, 6, 300)
    assert (flow.coefficient(z) < 0).all()
    np.testing.assert_allclose(
        flow.coefficient(z), [-sum(x**p / (p + 1) for p in range(n_terms)) for x in z], rtol=1e-13
    )


# --- third derivatives --------------------------------------------------------------------------


def by_differences(problem, theta, a, b, step=1e-4):
    """The second derivative along b of the gradient is T[b,b]; polarise."""

    def pure(direction):
        return (
            problem.gradient(theta + step * direction)
            - 2 * problem.gradient(theta)
            + problem.gradient(theta - step * direction)
        ) / step**2

    return (pure(a + b) - pure(a - b)) / 4


@pytest.mark.parametrize(("problem", "theta"), PROBLEMS)
def test_third_derivatives_are_those_of_differences_and_symmetric(problem, theta):
    a, b, c = np.random.default_rng(0).standard_normal((3, len(theta)))
    actual = third_derivative(problem, theta, a, b)
    assert actual.shape == theta.shape
    assert np.isrealobj(actual)
    expected = by_differences(problem, theta, a, b)
    scale = np.abs(expected).max() + np.abs(problem.hessian(theta)).max()
    np.testing.assert_allclose(actual, expected, atol=1e-5 * scale)
    tolerance = {"rtol": 1e-9, "atol": 1e-10 * scale}
    np.testing.assert_allclose(actual, third_derivative(problem, theta, b, a), **tolerance)
    np.testing.assert_allclose(
        actual @ c, third_derivative(problem, theta, c, b) @ a, rtol=1e-8, atol=1e-9 * scale
    )
    np.testing.assert_allclose(
        third_derivative(problem, theta, 2 * a, b), 2 * actual, rtol=1e-9, atol=1e-10 * scale
    )
    assert not third_derivative(problem, theta, 0 * a, b).any()


@pytest.mark.parametrize(("problem", "theta"), PROBLEMS)
def test_exact_third_derivatives_equal_the_imaginary_step_of_the_product(problem, theta):
    if not problem.analytic:
        pytest.skip("no continuation")
    a, b = np.random.default_rng(1).standard_normal((2, len(theta)))
    actual = third_derivative(problem, theta, a, b)
    expected = problem.hvp(theta + 1e-25j * a, b).imag / 1e-25
    scale = np.abs(problem.hessian(theta)).max() + np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-13 * scale)


@pytest.mark.parametrize(("problem", "theta"), PROBLEMS)
def test_third_derivatives_continue_to_complex_points(problem, theta):
    if not problem.analytic:
        pytest.skip("no continuation")
    generator = np.random.default_rng(2)
    point = theta + 0.2j * generator.standard_normal(len(theta))
    a, b = generator.standard_normal((2, len(theta))) + 1j * generator.standard_normal(
        (2, len(theta))
    )
    actual = third_derivative(problem, point, a, b)
    expected = by_differences(problem, point, a, b)
    scale = np.abs(problem.hessian(point)).max() + np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, atol=1e-5 * scale)
    swapped = third_derivative(problem, point, b, a)
    np.testing.assert_allclose(actual, swapped, rtol=1e-7, atol=1e-8 * scale)


def test_third_derivatives_of_a_problem_that_is_not_analytic_come_from_differences():
    problem = eosim.from_functions(
        lambda x: float(np.sum(np.abs(x) ** 3)),
        lambda x: 3 * x * np.abs(x),
        lambda x, v: 6 * np.abs(x) * v,
        dim=2,
    )
    theta, a, b = np.array([0.7, -0.4]), np.array([1.0, 2.0]), np.array([0.5, -1.0])
    actual = third_derivative(problem, theta, a, b)
    np.testing.assert_allclose(actual, 6 * np.sign(theta) * a * b, rtol=1e-9)


@pytest.mark.parametrize(("problem", "theta"), PROBLEMS)
def test_third_derivatives_at_a_complex_point_with_no_imaginary_part_are_the_real_ones(
    problem, theta
):
    # Complex flows hand over such points all along a real path.
    a, b = np.random.default_rng(3).standard_normal((2, len(theta)))
    expected = third_derivative(problem, theta, a, b)
    actual = third_derivative(problem, theta + 0j, a + 0j, b + 0j)
    scale = np.abs(problem.hessian(theta)).max() + np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13 * scale)


def test_a_gradient_alone_is_enough_for_third_derivatives():
    problem = eosim.from_functions(QUARTIC.loss, QUARTIC.gradient, dim=2, analytic=True)
    a, b = np.array([1.0, 2.0]), np.array([0.5, -1.0])
    expected = QUARTIC.derivative(POINT, 3) @ b @ a
    np.testing.assert_allclose(third_derivative(problem, POINT, a, b), expected, rtol=1e-8)


# --- range --------------------------------------------------------------------------------------

KINDS = (PrincipalSeries, ForwardDifferenceFlow, ModifiedFlow)
# Where 1 + z/2 + ... + z^(n-1)/n changes its sign.
LOWEST = {
    n: brentq(lambda z, n=n: sum(z**p / (p + 1) for p in range(n)), -3, -1) for n in (2, 4, 6, 8)
}


def test_the_ends_of_the_range_are_the_known_ones():
    np.testing.assert_allclose([*LOWEST.values()], [-2, -1.62, -1.46, -1.37], atol=0.0051)


@pytest.mark.parametrize("order", LOWEST)
@pytest.mark.parametrize("kind", KINDS)
def test_even_truncations_leave_their_range_at_strong_negative_curvature(kind, order):
    if kind is ModifiedFlow and order > 4:
        pytest.skip("it has four orders")
    edge = LOWEST[order]
    for z, expected in ((edge + 1e-3, Status.COMPLETED), (edge - 1e-3, Status.LEFT_RANGE)):
        flow = kind(eosim.Quadratic(np.diag([z, 0.5])), 1.0, order)
        assert (flow.coefficient(np.array([z]))[0] < 0) == (expected is Status.COMPLETED)
        path = eosim.integrate(flow, [0.1, 1.0], [0, 0.5, 1.0])
        assert path.status is expected
    assert len(path) < 3
    assert f"below {edge:.4g}" in path.message
    assert "even truncation" in path.message


@pytest.mark.parametrize("order", [1, 3, 5, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_odd_truncations_leave_a_sharp_maximum_as_gradient_descent_does(kind, order):
    if kind is ModifiedFlow and order > 4:
        pytest.skip("it has four orders")
    flow = kind(eosim.Cosine(), 2.5, order)  # h * lambda = -2.5 at the maximum
    path = eosim.integrate(flow, [np.pi - 1e-6], [0, 0.05], atol=1e-15)
    assert path.status is Status.COMPLETED
    growth = np.exp(-0.05 * flow.coefficient(-2.5))
    assert np.pi - path.theta[-1, 0] == pytest.approx(1e-6 * growth, rel=1e-2)
    assert growth > 1


def test_an_even_truncation_would_converge_to_the_maximum():
    flow = ModifiedFlow(eosim.Cosine(), 2.5, 2)
    assert flow.field(np.array([np.pi - 0.1]))[0] > 0
    path = eosim.integrate(flow, [np.pi - 0.1], [0, 1.0])
    assert path.status is Status.LEFT_RANGE
    assert "theta0" in path.message
    principal = eosim.integrate(PrincipalFlow(eosim.Cosine(), 2.5), [np.pi - 0.1], [0, 1.0])
    assert principal.theta[-1, 0].real < np.pi - 0.15


def test_a_truncation_leaves_its_range_on_the_way():
    # E = y + x^2 y / 2: from x = 0 the state falls along y, and the curvature of x is y.
    problem = eosim.Polynomial({(0, 1): 1.0, (2, 1): 0.5})
    path = eosim.integrate(ModifiedFlow(problem, 1.0, 2), [0.0, -1.0], np.linspace(0, 2, 9))
    assert path.status is Status.LEFT_RANGE
    assert 4 <= len(path) <= 5  # y = -2 at t = 1
    np.testing.assert_allclose(path.theta[:, 1], -1 - path.t, rtol=1e-12)
    odd = eosim.integrate(ModifiedFlow(problem, 1.0, 3), [0.0, -1.0], np.linspace(0, 2, 9))
    assert odd.status is Status.COMPLETED


@pytest.mark.parametrize("kind", KINDS)
def test_odd_truncations_ask_for_no_spectrum(kind):
    def refuse(x):
        raise AssertionError("the Hessian was formed")

    problem = eosim.from_functions(QUARTIC.loss, QUARTIC.gradient, QUARTIC.hvp, dim=2, at=POINT)
    object.__setattr__(problem, "hessian_function", refuse)
    path = eosim.integrate(kind(problem, 0.1, 3), POINT, [0, 0.1])
    assert path.status is Status.COMPLETED


@pytest.mark.parametrize("kind", KINDS)
def test_a_hessian_that_is_not_finite_on_the_way_is_divergence(kind):
    def hessian(x):
        return np.eye(1) * (1.0 if x[0].real > 0.5 else np.nan)

    problem = eosim.from_functions(
        lambda x: x @ x / 2, lambda x: x, lambda x, v: v, dim=1, at=[1.0]
    )
    object.__setattr__(problem, "hessian_function", hessian)
    path = eosim.integrate(kind(problem, 0.1, 2), [1.0], [0, 0.3, 2.0])
    assert path.status is Status.DIVERGED
    assert len(path) == 2


# --- on quadratics and beyond -------------------------------------------------------------------


def flows_on(problem, lr):
    return {
        "gradient": eosim.GradientFlow(problem, lr),
        **{f"modified {n}": ModifiedFlow(problem, lr, n) for n in (1, 2, 3, 4)},
        **{f"series {n}": PrincipalSeries(problem, lr, n) for n in (1, 2, 5)},
        **{f"differences {n}": ForwardDifferenceFlow(problem, lr, n) for n in (1, 2, 5)},
        "principal": PrincipalFlow(problem, lr),
        "principal + 2": PrincipalFlow(problem, lr, corrections=2),
        "heavy ball": eosim.HeavyBallPrincipalFlow(problem, lr, 0.6),
    }


@pytest.mark.parametrize("name", flows_on(eosim.Quadratic([[1.0]]), 1.0))
def test_the_closed_form_on_a_quadratic_is_the_integral(name):
    matrix, lr = symmetric(np.array([2.3, 1.4, 0.6, 0.0, -0.8]) / 0.7, seed=6), 0.7
    center = np.arange(5.0)
    flow = flows_on(eosim.Quadratic(matrix, center), lr)[name]
    theta0, times = np.array([1.0, -2.0, 0.5, 3.0, 1.0]), lr * np.linspace(0, 3, 7)
    path = eosim.integrate(flow, theta0, times)
    exact = eosim.closed_form(flow, theta0, times)
    np.testing.assert_allclose(exact[0], theta0, rtol=1e-13)
    assert np.linalg.norm(path.theta - exact, axis=1).max() < 1e-8
    # the growth rates are alpha(z) lambda
    values, vectors = np.linalg.eigh(matrix)
    along = (exact[-1] - center) @ vectors / ((theta0 - center) @ vectors)
    rates = flow.coefficient(lr * values) * values
    np.testing.assert_allclose(along, np.exp(rates * times[-1]), rtol=1e-10, atol=1e-12)


TABLE = {  # distances after 1, 2, 5, 10, 20, 30 steps of 8e-4 from (.5, .6)
    "modified 2": (1.778e-3, 2.984e-3, 2.764e-3, 1.152e-3, 1.073e-3, 1.065e-3),
    "modified 3": (3.045e-4, 5.993e-4, 7.124e-4, 2.709e-4, 2.450e-4, 2.432e-4),
    "principal + 1": (2.076e-4, 2.949e-4, 1.599e-4, 9.533e-5, 9.430e-5, 9.360e-5),
}


def test_on_rosenbrock_distances_to_gradient_descent_are_the_tabulated_ones():
    problem, lr = eosim.Rosenbrock(), 8e-4
    iterates = eosim.run(problem, eosim.GradientDescent(lr), [0.5, 0.6], 30).theta
    flows = {
        **flows_on(problem, lr),
        "principal + 1": PrincipalFlow(problem, lr, corrections=1),
    }
    final = {}
    for name in ("modified 4", *TABLE, "principal", "gradient"):
        path = eosim.integrate(flows[name], [0.5, 0.6], lr * np.arange(31), record={})
        distance = np.linalg.norm(path.theta - iterates, axis=1)
        assert not np.imag(path.theta).any()
        final[name] = distance[-1]
        if name in TABLE:
            table = np.array(TABLE[name])
            unit = 10.0 ** (np.floor(np.log10(table)) - 3)
            assert (np.abs(distance[[1, 2, 5, 10, 20, 30]] - table) <= 0.501 * unit).all()
    assert (
        final["modified 4"]
        < final["principal + 1"]
        < final["modified 3"]
        < final["principal"]
        < final["modified 2"]
        < final["gradient"]
    )


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    [
        (ModifiedFlow, (0.0, 2), ValueError, "lr must be a real number in"),
        (ModifiedFlow, (-1.0, 2), ValueError, "lr"),
        (ModifiedFlow, ("a", 2), TypeError, "lr"),
        (ModifiedFlow, (np.nan, 2), ValueError, "lr"),
        (ModifiedFlow, (0.1, 0), ValueError, "order must be an integer >= 1"),
        (ModifiedFlow, (0.1, 5), ValueError, "ForwardDifferenceFlow has every order"),
        (ModifiedFlow, (0.1, 2.0), TypeError, "order"),
        (ModifiedFlow, (0.1, True), TypeError, "order"),
        (PrincipalSeries, (0.0, 2), ValueError, "lr"),
        (PrincipalSeries, (0.1, 0), ValueError, "n_terms"),
        (PrincipalSeries, (0.1, 1.5), TypeError, "n_terms"),
        (ForwardDifferenceFlow, (np.inf, 2), ValueError, "lr"),
        (ForwardDifferenceFlow, (0.1, -3), ValueError, "order"),
        (ForwardDifferenceFlow, (0.1, "3"), TypeError, "order"),
    ],
)
def test_bad_parameters_are_refused_with_their_name(kind, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        kind(QUARTIC, *arguments)
    assert kind.__name__ in str(caught.value)


def test_numpy_integers_are_orders_too():
    flow = ModifiedFlow(QUARTIC, np.float32(0.5), np.int64(3))
    np.testing.assert_allclose(flow.field(POINT), ModifiedFlow(QUARTIC, 0.5, 3).field(POINT))
