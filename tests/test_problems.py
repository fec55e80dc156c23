"""Problems: exact derivatives, one normalisation, and inputs that nobody else can change."""

import itertools
import math

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

import eosim
from eosim.problems.base import hessian_products
from tests import naive
from tests.cases import FINITE_SUMS, PROBLEMS, QUARTIC_TERMS, regression, symmetric

ANALYTIC = [case for case in PROBLEMS if case.values[0].analytic]


@pytest.mark.parametrize(("problem", "theta"), PROBLEMS)
def test_the_gradient_is_the_derivative_of_the_loss(problem, theta):
    expected = naive.gradient(problem.loss, theta)
    np.testing.assert_allclose(problem.gradient(theta), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("problem", "theta"), PROBLEMS)
def test_the_hessian_is_the_derivative_of_the_gradient(problem, theta):
    expected = naive.hessian(problem.gradient, theta)
    np.testing.assert_allclose(problem.hessian(theta), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("problem", "theta"), PROBLEMS)
def test_the_hessian_is_symmetric_and_gives_the_products(problem, theta):
    hessian = problem.hessian(theta)
    assert hessian.shape == (problem.dim, problem.dim)
    np.testing.assert_array_equal(hessian, hessian.T)
    for v in np.random.default_rng(0).standard_normal((3, problem.dim)):
        np.testing.assert_allclose(problem.hvp(theta, v), hessian @ v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("problem", "theta"), ANALYTIC)
def test_an_analytic_problem_satisfies_the_cauchy_riemann_equations(problem, theta):
    # A real step and an imaginary step must give the same derivative; a conjugation breaks it.
    theta = theta + 1j * np.linspace(0.1, 0.3, len(theta))
    step = 1e-6
    for function in (problem.loss, problem.gradient, problem.hessian):
        for unit in np.eye(len(theta)):
            real = function(theta + step * unit) - function(theta - step * unit)
            imaginary = function(theta + 1j * step * unit) - function(theta - 1j * step * unit)
            np.testing.assert_allclose(imaginary / 1j, real, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize(("problem", "theta"), ANALYTIC)
def test_an_imaginary_step_gives_the_gradient_to_rounding(problem, theta):
    derivative = [problem.loss(theta + 1e-30j * unit).imag / 1e-30 for unit in np.eye(len(theta))]
    np.testing.assert_allclose(derivative, problem.gradient(theta), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("problem", "theta"), ANALYTIC)
def test_a_complex_point_with_no_imaginary_part_is_the_real_point(problem, theta):
    for name in ("loss", "gradient", "hessian"):
        real, complex_ = getattr(problem, name)(theta), getattr(problem, name)(theta + 0j)
        assert np.isrealobj(real)
        np.testing.assert_allclose(complex_, real, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("problem", "theta"), PROBLEMS)
def test_evaluation_leaves_theta_and_v_alone(problem, theta):
    theta, v = theta.copy(), np.ones(problem.dim)
    theta.flags.writeable = v.flags.writeable = False
    problem.loss(theta), problem.gradient(theta), problem.hvp(theta, v), problem.hessian(theta)


@pytest.mark.parametrize(("problem", "theta"), PROBLEMS)
def test_a_returned_hessian_is_not_a_handle_on_the_problem(problem, theta):
    before = problem.hessian(theta).copy()
    returned = problem.hessian(theta)
    try:
        returned[0, 0] += 1
    except ValueError:  # read-only is as good
        return
    after = problem.hessian(theta).copy()
    returned[0, 0] -= 1  # other tests share this problem
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    "problem",
    [
        eosim.Polynomial({(2, 0): 0.5, (1, 2): 0.3, (0, 7): 0.01}),
        eosim.Rosenbrock(0.3),
        eosim.Cosine(2),
        eosim.Quadratic([[0.3, 0.1], [0.1, 0.7]]),
        regression(n_features=2),
    ],
    ids=lambda problem: type(problem).__name__,
)
def test_integer_points_truncate_nothing_and_single_precision_points_cost_only_precision(problem):
    for name in ("loss", "gradient", "hessian"):
        function = getattr(problem, name)
        expected = function(np.array([1.0, 2.0]))
        np.testing.assert_allclose(function(np.array([1, 2])), expected, rtol=1e-13)
        single = function(np.array([1, 2], dtype=np.float32))
        np.testing.assert_allclose(single, expected, rtol=1e-6)


NETS = [
    pytest.param(eosim.TwoLayerNet([[1.0], [-2.0]], [1.0, 0.5], 3), id="two_layer"),
    pytest.param(eosim.TwoLayerNet([[1.0]], [1.0], 2).frozen([1, 2, 3, 4]), id="frozen_gates"),
    pytest.param(eosim.DeepHomogeneousNet([[1.0], [-2.0]], [1.0, 0.5], (2, 2)), id="deep"),
    pytest.param(eosim.QuadraticNet([[[1.0, 2.0], [2.0, -1.0]]], [1.0]), id="quadratic_net"),
    pytest.param(
        eosim.QuadraticNet([[[1.0, 2.0], [2.0, -1.0]]], [1.0], features=[[0.5]]), id="with_features"
    ),
]
OF_THETA = (
    "loss",
    "gradient",
    "hessian",
    "outputs",
    "residuals",
    "jacobian",
    "ntk",
    "predictor",
    "predictor_jacobian",
    "pre_activations",
)


@pytest.mark.parametrize(
    "problem", [*(pytest.param(case.values[0], id=case.id) for case in PROBLEMS), *NETS]
)
@pytest.mark.parametrize("kind", ["floats", "integers", "complex"])
def test_lists_are_as_good_as_arrays(problem, kind):
    theta = np.random.default_rng(0).integers(-3, 4, problem.dim) * {"floats": 0.3}.get(kind, 1)
    if kind == "complex":
        if not problem.analytic:
            pytest.skip("real theta only")
        theta = theta * (0.3 + 0.1j)
    a, b = np.roll(theta, 1), np.arange(problem.dim)
    lists = [x.tolist() for x in (theta, a, b)]
    arrays = [x if kind == "complex" else x.astype(float) for x in (theta, a, b.astype(float))]
    for name in OF_THETA:
        if hasattr(problem, name):
            found, expected = getattr(problem, name)(lists[0]), getattr(problem, name)(arrays[0])
            np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14, err_msg=name)
    products = {
        "hvp": lambda theta, a, b: problem.hvp(theta, b),
        "hessian_products": lambda theta, a, b: hessian_products(problem, theta)(b),
        "third_derivative": lambda *vectors: eosim.problems.third_derivative(problem, *vectors),
        "own third_derivative": getattr(problem, "third_derivative", lambda *vectors: 0.0),
    }
    for name, product in products.items():
        found, expected = product(*lists), product(*arrays)
        assert np.shape(found) == np.shape(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14, err_msg=name)


def test_functions_that_fill_an_array_like_theta_truncate_nothing():
    def gradient(theta):
        filled = np.empty_like(theta)
        filled[:] = theta / 2
        return filled

    problem = eosim.from_functions(lambda theta: theta @ theta / 4, gradient, dim=2)
    for theta in ([1, 3], np.array([1, 3])):
        np.testing.assert_array_equal(problem.gradient(theta), [0.5, 1.5])


# --- quadratics ---------------------------------------------------------------------------------


def test_a_quadratic_is_one_half_of_the_form():
    problem = eosim.Quadratic([[4.0, 1.0], [1.0, 2.0]], [1.0, -1.0])
    assert problem.loss(np.array([2.0, 0.0])) == 4.0
    np.testing.assert_array_equal(problem.gradient(np.array([2.0, 0.0])), [5.0, 3.0])


@pytest.mark.parametrize(
    "convert", [scipy.sparse.csr_array, scipy.sparse.coo_matrix, aslinearoperator]
)
def test_sparse_matrices_and_operators_make_the_same_quadratic(convert):
    matrix = symmetric([3.0, 0.0, -2.0])
    dense, other = eosim.Quadratic(matrix), eosim.Quadratic(convert(matrix))
    theta = np.array([1.0, 2.0, 3.0]) + 1j * np.array([0.5, 0.0, -1.0])
    for name in ("loss", "gradient", "hessian"):
        expected = getattr(dense, name)(theta)
        np.testing.assert_allclose(getattr(other, name)(theta), expected, rtol=1e-13, atol=1e-14)


def test_a_quadratic_keeps_its_own_copy_of_dense_and_sparse_data():
    for original in (symmetric([1.0, 2.0]), scipy.sparse.csr_array(symmetric([1.0, 2.0]))):
        center = np.array([1.0, 1.0])
        problem = eosim.Quadratic(original, center)
        before = problem.gradient(np.zeros(2)).copy()
        if scipy.sparse.issparse(original):
            original.data[:] = 77
        else:
            original[:] = 77
        center[:] = 77
        np.testing.assert_array_equal(problem.gradient(np.zeros(2)), before)


def test_rounding_asymmetry_is_accepted_and_removed():
    matrix = symmetric([1.0, 2.0, 3.0])
    matrix[0, 1] += 1e-13
    hessian = eosim.Quadratic(matrix).hessian(np.zeros(3))
    np.testing.assert_array_equal(hessian, hessian.T)


# --- toys ---------------------------------------------------------------------------------------


def test_rosenbrock_has_its_minimum_at_1_1():
    problem = eosim.Rosenbrock()
    assert problem.loss(np.ones(2)) == 0
    assert problem.loss(np.array([-1.2, 1.0])) == pytest.approx(24.2)
    np.testing.assert_array_equal(problem.gradient(np.ones(2)), [0, 0])
    np.testing.assert_array_equal(problem.hessian(np.ones(2)), [[802, -400], [-400, 200]])


def test_cosine_is_accurate_at_its_minimum():
    assert eosim.Cosine(2).loss(np.array([1e-10, 1e-10])) == pytest.approx(1e-20, rel=1e-12)
    assert eosim.Cosine().loss(np.array([np.pi])) == pytest.approx(2)


def random_terms(seed):
    """A random polynomial in 1 to 3 variables of degree up to 5 in each."""
    generator = np.random.default_rng(seed)
    dim = generator.integers(1, 4)
    terms = {}
    for _ in range(generator.integers(1, 7)):
        exponents = tuple(int(power) for power in generator.integers(0, 6, size=dim))
        terms[exponents] = float(generator.standard_normal())
    return terms, dim


@pytest.mark.parametrize("seed", range(12))
def test_polynomial_derivatives_of_every_order_are_the_term_by_term_ones(seed):
    terms, dim = random_terms(seed)
    problem = eosim.Polynomial(terms)
    assert problem.dim == dim
    generator = np.random.default_rng(100 + seed)
    real = generator.standard_normal(dim)
    for theta in (real, real + 1j * generator.standard_normal(dim), np.zeros(dim)):
        for order in range(5):
            tensor = problem.derivative(theta, order)
            assert tensor.shape == (dim,) * order
            for axes in itertools.product(range(dim), repeat=order):
                expected = naive.polynomial(terms, theta, axes)
                assert tensor[axes] == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert problem.loss(theta) == pytest.approx(problem.derivative(theta, 0)[()])
        np.testing.assert_array_equal(problem.gradient(theta), problem.derivative(theta, 1))
        np.testing.assert_array_equal(problem.hessian(theta), problem.derivative(theta, 2))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=3), st.integers(0, 3))
def test_a_monomial_at_zero_has_the_factorials_as_derivatives(exponents, order):
    problem = eosim.Polynomial({tuple(exponents): 1.0})
    tensor = problem.derivative(np.zeros(problem.dim), order)
    for axes in itertools.product(range(problem.dim), repeat=order):
        counts = [axes.count(axis) for axis in range(problem.dim)]
        expected = np.prod([float(np.prod(np.arange(1, e + 1))) for e in exponents])
        assert tensor[axes] == (expected if counts == exponents else 0)


def test_a_polynomial_does_not_follow_later_changes_of_its_terms():
    terms = dict(QUARTIC_TERMS)
    problem = eosim.Polynomial(terms)
    terms[(2, 0)] = 100.0
    assert problem.loss(np.array([1.0, 0.0])) == pytest.approx(0.65 + 0.3 + 0.1)


def test_a_polynomial_may_be_of_higher_degree_than_its_derivative_cache_has_seen():
    problem = eosim.Polynomial({(3,): 1.0})
    assert problem.derivative(np.array([2.0]), 5) == 0
    assert problem.derivative(np.array([2.0]), 3) == 6
    assert problem.loss(np.array([2.0])) == 8


# --- linear regression --------------------------------------------------------------------------


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("is_complex", [False, True])
def test_regression_is_the_sum_over_samples_and_outputs(n_outputs, is_complex):
    problem = regression(n_samples=7, n_features=3, n_outputs=n_outputs)
    theta = np.random.default_rng(5).standard_normal(problem.dim)
    if is_complex:
        theta = theta + 1j * theta[::-1]
    loss = naive.regression_loss(problem.inputs, problem.targets, theta)
    gradient = naive.regression_gradient(problem.inputs, problem.targets, theta)
    assert problem.loss(theta) == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(problem.gradient(theta), gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("problem", "theta"), FINITE_SUMS)
def test_a_batch_is_the_problem_of_its_samples_alone(problem, theta):
    for batch in ([3], [5, 1, 1, 8], np.arange(problem.n_samples)):
        batch = np.array(batch)
        inputs = problem.inputs[batch]
        alone = eosim.LinearRegression(inputs, problem.targets[batch])
        v = np.linspace(-1, 1, problem.dim)
        assert problem.loss(theta, batch) == pytest.approx(alone.loss(theta), rel=1e-13)
        for value, expected in (
            (problem.gradient(theta, batch), alone.gradient(theta)),
            (problem.hvp(theta, v, batch), alone.hvp(theta, v)),
            (problem.hessian(theta, batch), alone.hessian(theta)),
            (problem.residuals(theta, batch), alone.residuals(theta)),
            (problem.jacobian(theta, batch), alone.jacobian(theta)),
        ):
            np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("problem", "theta"), FINITE_SUMS)
def test_the_mean_over_single_samples_is_the_whole(problem, theta):
    singles = [np.array([i]) for i in range(problem.n_samples)]
    for name in ("loss", "gradient", "hessian"):
        mean = np.mean([getattr(problem, name)(theta, one) for one in singles], axis=0)
        np.testing.assert_allclose(getattr(problem, name)(theta), mean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("problem", "theta"), FINITE_SUMS)
def test_the_gradient_is_the_jacobian_times_the_residuals_over_n(problem, theta):
    jacobian, residuals = problem.jacobian(theta), problem.residuals(theta)
    assert jacobian.shape == (problem.n_samples, problem.n_outputs, problem.dim)
    assert residuals.shape == (problem.n_samples, problem.n_outputs)
    n = problem.n_samples
    gradient = np.einsum("iad,ia->d", jacobian, residuals) / n
    np.testing.assert_allclose(problem.gradient(theta), gradient, rtol=1e-12, atol=1e-14)
    hessian = np.einsum("iad,iae->de", jacobian, jacobian) / n
    np.testing.assert_allclose(problem.hessian(theta), hessian, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(np.sum(residuals**2) / (2 * n), problem.loss(theta), rtol=1e-13)


def test_outputs_are_separate_regressions():
    problem = regression(n_outputs=3)
    matrix = np.random.default_rng(1).standard_normal((4, 3))
    singles = [eosim.LinearRegression(problem.inputs, problem.targets[:, a]) for a in range(3)]
    gradient = problem.gradient(matrix.ravel()).reshape(4, 3)
    for a, single in enumerate(singles):
        np.testing.assert_allclose(gradient[:, a], single.gradient(matrix[:, a]), rtol=1e-12)
    total = sum(single.loss(matrix[:, a]) for a, single in enumerate(singles))
    assert problem.loss(matrix.ravel()) == pytest.approx(total)


@pytest.mark.parametrize(
    "convert", [scipy.sparse.csr_array, scipy.sparse.csc_matrix, aslinearoperator]
)
def test_sparse_inputs_and_operators_make_the_same_regression(convert):
    dense = regression(n_outputs=2)
    other = eosim.LinearRegression(convert(np.array(dense.inputs)), dense.targets)
    theta = np.linspace(-1, 1, dense.dim) + 0.3j
    for name in ("loss", "gradient", "hessian", "residuals", "jacobian"):
        expected = getattr(dense, name)(theta)
        np.testing.assert_allclose(getattr(other, name)(theta), expected, rtol=1e-12, atol=1e-13)


def test_a_tiny_loss_is_accurate():
    problem = regression(n_samples=4, n_features=4)
    solution = np.linalg.solve(problem.inputs, problem.targets[:, 0])
    assert problem.loss(solution) < 1e-28
    shifted = eosim.LinearRegression(np.eye(3), np.zeros(3))
    assert shifted.loss(np.full(3, 1e-15)) == pytest.approx(5e-31, rel=1e-12)


def test_regression_keeps_its_own_copy_of_the_data():
    inputs, targets = np.random.default_rng(0).standard_normal((5, 2)), np.arange(5.0)
    for given_inputs in (inputs.copy(), scipy.sparse.csr_array(inputs)):
        given_targets = targets.copy()
        problem = eosim.LinearRegression(given_inputs, given_targets)
        before = problem.gradient(np.ones(2)).copy()
        given_inputs[0, 0] = 1e6
        given_targets[:] = 1e6
        np.testing.assert_array_equal(problem.gradient(np.ones(2)), before)


# --- from_functions -----------------------------------------------------------------------------


def quartic_functions(**options):
    polynomial = eosim.Polynomial(QUARTIC_TERMS)
    return eosim.from_functions(polynomial.loss, polynomial.gradient, dim=2, **options)


def test_missing_derivatives_of_an_analytic_problem_are_exact_to_rounding():
    polynomial, problem = eosim.Polynomial(QUARTIC_TERMS), quartic_functions(analytic=True)
    theta = np.array([0.7, -0.5])
    np.testing.assert_allclose(problem.hessian(theta), polynomial.hessian(theta), rtol=1e-14)
    for v in (np.array([1.0, 2.0]), np.array([1e-9, 0]), np.array([1e9, 1e9])):
        expected = polynomial.hvp(theta, v)
        np.testing.assert_allclose(problem.hvp(theta, v), expected, rtol=1e-13)


@pytest.mark.parametrize("analytic", [True, False])
def test_missing_derivatives_elsewhere_are_central_differences(analytic):
    polynomial, problem = eosim.Polynomial(QUARTIC_TERMS), quartic_functions(analytic=analytic)
    theta = np.array([0.7, -0.5]) + (0.3j if analytic else 0)
    np.testing.assert_allclose(problem.hessian(theta), polynomial.hessian(theta), rtol=1e-8)


def test_a_product_with_the_zero_vector_is_zero():
    for analytic in (True, False):
        product = quartic_functions(analytic=analytic).hvp(np.ones(2), np.zeros(2))
        np.testing.assert_array_equal(product, [0, 0])


def test_a_given_hessian_makes_the_products_and_a_given_product_makes_the_hessian():
    polynomial = eosim.Polynomial(QUARTIC_TERMS)
    theta, v = np.array([0.7, -0.5]), np.array([1.0, 3.0])
    by_hessian = quartic_functions(hessian=polynomial.hessian)
    by_product = quartic_functions(hvp=polynomial.hvp)
    np.testing.assert_array_equal(by_hessian.hvp(theta, v), polynomial.hvp(theta, v))
    np.testing.assert_allclose(
        by_product.hessian(theta), polynomial.hessian(theta), rtol=1e-15, atol=1e-16
    )


def test_functions_that_return_lists_and_python_floats_will_do():
    problem = eosim.from_functions(lambda x: float(x @ x) / 2, list, dim=2)
    assert problem.loss(np.array([3.0, 4.0])) == 12.5
    path = eosim.run(problem, eosim.GradientDescent(0.5), [1.0, 2.0], 1)
    np.testing.assert_array_equal(path.theta[-1], [0.5, 1.0])


def test_checks_are_made_where_the_user_asks():
    visited = []

    def loss(x):
        visited.append(x.copy())
        return np.sum(np.log(x))

    eosim.from_functions(loss, lambda x: 1 / x, dim=2, at=[5, 7])
    assert np.abs(np.array(visited) - [5, 7]).max() < 1e-3


ABSOLUTE = {"loss": lambda x: np.sum(np.abs(x) ** 3) / 3, "gradient": lambda x: np.abs(x) * x}


@pytest.mark.parametrize("options", [{}, {"hvp": lambda x, v: 2 * np.abs(x) * v}])
def test_functions_that_do_not_continue_are_not_taken_for_analytic(options):
    eosim.from_functions(**ABSOLUTE, dim=2, **options)
    with pytest.raises(ValueError, match="analytic=True is wrong here: the derivative of gradient"):
        eosim.from_functions(**ABSOLUTE, dim=2, analytic=True, **options)
    with pytest.raises(
        ValueError, match=r"analytic=True is wrong here: gradient fails.*ComplexWarning"
    ):
        eosim.from_functions(
            lambda x: math.cosh(x[0]), lambda x: [math.sinh(x[0])], dim=1, analytic=True
        )


def test_where_a_flow_needs_complex_theta_the_option_is_named():
    functions = {"loss": lambda x: np.sum(x**2), "gradient": lambda x: 2 * x, "dim": 1}
    for kind in (eosim.PrincipalFlow, eosim.HeavyBallPrincipalFlow):
        path = eosim.integrate(kind(eosim.from_functions(**functions), 0.9), [1.0], [0.9])
        assert path.status is eosim.Status.LEFT_RANGE
        assert "Pass analytic=True to from_functions if its functions take com" in path.message
        path = eosim.integrate(
            kind(eosim.from_functions(**functions, analytic=True), 0.9), [1.0], [0.9]
        )
        assert path.status is eosim.Status.COMPLETED


@pytest.mark.parametrize(("problem", "_"), PROBLEMS)
@pytest.mark.parametrize(("dtype", "size"), [("int8", 100), ("int16", 700)])
def test_integers_do_not_wrap_around(problem, _, dtype, size):
    theta = np.full(problem.dim, size, dtype=dtype)
    theta[0] = 3
    for name in ("loss", "gradient", "hvp"):
        again = (theta,) if name == "hvp" else ()
        floats = tuple(x.astype(float) for x in (theta, *again))
        expected = getattr(problem, name)(*floats)
        np.testing.assert_allclose(getattr(problem, name)(theta, *again), expected, rtol=1e-12)
