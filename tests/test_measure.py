"""Measurements: dense and matrix-free answers agree, and carry their error."""

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, aslinearoperator

import eosim
from eosim import measure
from tests import naive
from tests.cases import PROBLEMS, regression, symmetric

BIG = measure.DENSE_DIM + 44


def big_quadratic(eigenvalues, as_operator=False):
    """Of more than DENSE_DIM parameters, in a random basis."""
    matrix = symmetric(eigenvalues, seed=7)
    return eosim.Quadratic(aslinearoperator(matrix) if as_operator else matrix)


@pytest.mark.parametrize(("problem", "theta"), PROBLEMS)
def test_small_problems_are_measured_exactly(problem, theta):
    hessian = problem.hessian(theta)
    values = np.linalg.eigvalsh(hessian)
    size = max(1.0, np.abs(values).max())
    top, ends = measure.sharpness(problem, theta), measure.spectrum_ends(problem, theta)
    assert top.value == pytest.approx(values[-1], abs=1e-12 * size)
    assert ends.smallest == pytest.approx(values[0], abs=1e-12 * size)
    assert ends.largest == top.value
    assert top.converged
    assert ends.converged
    assert max(top.residual, ends.residual) < 1e-12 * size
    trace, norm = measure.hessian_trace(problem, theta), measure.hessian_frobenius(problem, theta)
    assert trace.value == pytest.approx(naive.trace(hessian), rel=1e-12, abs=1e-14)
    assert norm.value == pytest.approx(naive.frobenius(hessian), rel=1e-12)
    assert (trace.standard_error, norm.standard_error) == (0, 0)
    gradient = problem.gradient(theta)
    assert measure.gradient_norm(problem, theta) == pytest.approx(np.sqrt(gradient @ gradient))
    assert measure.loss(problem, theta) == problem.loss(theta)


@pytest.mark.parametrize("as_operator", [False, True])
@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.linspace(-1, 3, BIG),
        np.linspace(-5, -1, BIG),  # the largest is the smallest in magnitude
        np.concatenate([np.zeros(BIG - 2), [-7.0, 1.0]]),
        np.concatenate([np.ones(BIG - 3), [2.0, 2.0, 2.0]]),
        np.full(BIG, 3.0),
        np.zeros(BIG),
        1e-30 * np.linspace(0, 1, BIG),
        np.concatenate([1e-3 * np.linspace(0, 1, BIG - 1), [1e6]]),
    ],
    ids=["indefinite", "negative", "rank_2", "triple_top", "identity", "zero", "tiny", "outlier"],
)
def test_large_problems_are_measured_to_the_residual_they_state(eigenvalues, as_operator):
    problem, theta = big_quadratic(eigenvalues, as_operator), np.zeros(BIG)
    size = np.abs(eigenvalues).max()
    top, ends = measure.sharpness(problem, theta), measure.spectrum_ends(problem, theta)
    assert top.converged
    assert ends.converged
    assert abs(top.value - eigenvalues.max()) <= 1e-8 * size
    assert abs(ends.smallest - eigenvalues.min()) <= 1e-8 * size
    assert top.residual <= 1e-8 * size
    assert measure.sharpness(problem, theta) == top  # fixed start vector: the same bits


def test_an_unconverged_lanczos_run_says_so_and_gives_its_best(monkeypatch):
    def give_up(*args, **options):
        raise ArpackNoConvergence("no", np.array([]), np.zeros((BIG, 0)))

    monkeypatch.setattr(measure.curvature, "eigsh", give_up)
    problem = big_quadratic(np.concatenate([np.linspace(-1, 1, BIG - 1), [2.0]]))
    ends = measure.spectrum_ends(problem, np.zeros(BIG))
    assert not ends.converged
    assert ends.largest == pytest.approx(2, rel=1e-9)
    assert ends.smallest == pytest.approx(-1, rel=1e-2)
    assert ends.residual > 0


def test_stochastic_estimates_lie_within_their_standard_errors():
    eigenvalues = np.random.default_rng(0).uniform(-1, 2, BIG)
    problem, theta = big_quadratic(eigenvalues), np.zeros(BIG)
    trace, norm = measure.hessian_trace(problem, theta), measure.hessian_frobenius(problem, theta)
    assert 0 < trace.standard_error < 0.2 * abs(eigenvalues.sum())
    assert abs(trace.value - eigenvalues.sum()) < 4 * trace.standard_error
    assert abs(norm.value - np.linalg.norm(eigenvalues)) < 4 * norm.standard_error
    assert measure.hessian_trace(problem, theta) == trace


def test_stochastic_estimates_of_a_diagonal_matrix_have_no_error():
    # Rademacher probes: z D z is the trace, whatever z.
    problem = eosim.Quadratic(scipy.sparse.diags_array(np.arange(float(BIG))))
    trace = measure.hessian_trace(problem, np.zeros(BIG))
    assert trace.value == pytest.approx(BIG * (BIG - 1) / 2)
    assert trace.standard_error == pytest.approx(0, abs=1e-9)
    zero = eosim.Quadratic(scipy.sparse.csr_array((BIG, BIG)))
    assert measure.hessian_frobenius(zero, np.zeros(BIG)) == (0, 0)


@pytest.mark.parametrize("dim", [2, BIG])
def test_a_hessian_that_is_not_finite_is_refused(dim):
    def product(x, v):
        return np.where(x > 5, np.nan, 1.0) * v

    problem = eosim.from_functions(
        lambda x: float(x @ x) / 2, lambda x: 1.0 * x, hvp=product, dim=dim
    )
    bad = np.full(dim, 10.0)
    for function in (
        measure.sharpness,
        measure.spectrum_ends,
        measure.hessian_trace,
        measure.hessian_frobenius,
    ):
        with pytest.raises(ValueError, match="Hessian is not finite"):
            function(problem, bad)


@pytest.mark.parametrize(
    "shape", [(12, 4, 1), (4, 12, 1), (3, 5, 2), (1, 3, 1), (5, 1, 3)], ids=str
)
def test_gauss_newton_and_ntk_have_one_spectrum_padded_by_zeros(shape):
    n, d, k = shape
    problem = regression(n_samples=n, n_features=d, n_outputs=k)
    theta = np.ones(problem.dim)
    jacobian = problem.jacobian(theta).reshape(n * k, d * k)
    gauss_newton = measure.gauss_newton_spectrum(problem, theta)
    ntk = measure.ntk_spectrum(problem, theta)
    for found, matrix in ((gauss_newton, jacobian.T @ jacobian), (ntk, jacobian @ jacobian.T)):
        expected = np.linalg.eigvalsh(matrix / n)[::-1]
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
        assert (np.diff(found) <= 0).all()
    np.testing.assert_allclose(
        gauss_newton, np.linalg.eigvalsh(problem.hessian(theta))[::-1], rtol=1e-11, atol=1e-13
    )


def test_spectra_of_sparse_and_operator_models_are_the_dense_ones():
    dense = regression()
    for convert in (scipy.sparse.csr_array, aslinearoperator):
        other = eosim.LinearRegression(convert(np.array(dense.inputs)), dense.targets)
        for function in (measure.gauss_newton_spectrum, measure.ntk_spectrum):
            expected = function(dense, np.ones(4))
            np.testing.assert_allclose(
                function(other, np.ones(4)), expected, rtol=1e-11, atol=1e-14
            )


@pytest.mark.parametrize("function", [measure.gauss_newton_spectrum, measure.ntk_spectrum])
def test_spectra_of_models_need_a_least_squares_problem(function):
    with pytest.raises(TypeError, match=r"Rosenbrock is no least-squares problem.*jacobian"):
        function(eosim.Rosenbrock(), np.ones(2))


MEASUREMENTS = {
    **{name: getattr(measure, name) for name in measure.__all__ if name.islower()},
    "BatchSharpness": measure.BatchSharpness(2),
    "PreconditionedSharpness": lambda problem, theta: measure.PreconditionedSharpness()(
        problem, theta, rule=eosim.GradientDescent(0.1), state=()
    ),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_measurement_takes_any_array_like(name):
    for problem in (regression(), eosim.TwoLayerNet([[1.0], [2.0], [-1.0]], [1.0, 2.0, 3.0], 2)):
        expected = MEASUREMENTS[name](problem, np.array([1.0, 2.0, 0.0, 1.0]))
        for theta in ([1, 2, 0, 1], (1.0, 2.0, 0.0, 1.0), np.array([1, 2, 0, 1], np.int8)):
            np.testing.assert_array_equal(MEASUREMENTS[name](problem, theta), expected)


def test_problems_of_ones_own_are_measured_at_floats():
    class Inverse:
        dim = 1

        def loss(self, theta):
            return (theta**-1)[0]  # which NumPy refuses to do for integers

    assert measure.loss(Inverse(), [2]) == measure.loss(Inverse(), np.array([2])) == 0.5


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "sharpness", "spectrum_ends"])
def test_measurements_can_be_recorded(name):
    path = eosim.run(
        eosim.Rosenbrock(1.0),
        eosim.GradientDescent(0.01),
        [0.5, 0.5],
        3,
        record={name: getattr(measure, name)},
    )
    values = [getattr(measure, name)(eosim.Rosenbrock(1.0), theta) for theta in path.theta]
    if name == "spectrum_ends":
        for field in values[0]._fields:
            expected = [getattr(value, field) for value in values]
            np.testing.assert_array_equal(path[f"spectrum_ends.{field}"], expected)
    else:
        expected = [getattr(value, "value", value) for value in values]
        np.testing.assert_array_equal(path[name], expected)


def test_products_only_problems_never_form_their_hessian():
    def no_matrix(*args):
        raise AssertionError("the matrix was formed")

    operator = LinearOperator(
        (BIG, BIG), matvec=lambda v: 2.0 * v.ravel(), matmat=no_matrix, dtype=float
    )
    problem = eosim.Quadratic(operator)
    assert measure.sharpness(problem, np.zeros(BIG)).value == pytest.approx(2)
    assert measure.hessian_trace(problem, np.zeros(BIG)).value == pytest.approx(2 * BIG)


@pytest.mark.parametrize("dim", [30, 300])  # dense, by products
@pytest.mark.parametrize("scale", [1e-200, 1e-165, 1e160, 1e200])
def test_squares_beyond_the_range_of_floats_are_never_formed(scale, dim):
    values = np.arange(float(dim))
    problem, theta = eosim.Quadratic(scale * np.diag(values)), np.zeros(dim)
    top = measure.sharpness(problem, theta)
    assert top.converged
    assert top.value / scale == pytest.approx(dim - 1, rel=1e-9)
    assert top.residual / scale < 1e-6
    frobenius = measure.hessian_frobenius(problem, theta).value
    assert frobenius / scale == pytest.approx(np.linalg.norm(values), rel=1e-9)
    tracked = measure.PreconditionedSharpness(1e-8)(
        problem, theta, rule=eosim.GradientDescent(0.1), state=()
    )
    assert tracked.converged
    assert tracked.value / scale == pytest.approx(dim - 1, rel=1e-9)
