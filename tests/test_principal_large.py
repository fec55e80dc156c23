"""The principal flow of large problems: products where they converge, decompositions elsewhere."""

import numpy as np
import pytest

import eosim
from eosim import Status
from eosim.flows import PrincipalFlow, _spectral, principal
from tests.cases import QUARTIC_TERMS, symmetric


def relative(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def network_spectrum(dim, tops):
    """A bulk in [0, .3] that is dense at 0, and outliers."""
    values = 0.3 * np.random.default_rng(0).uniform(size=dim) ** 3
    values[: len(tops)] = tops
    return values


def lanczos(values, vector, **options):
    return _spectral.apply_lanczos(
        lambda v: values * v, vector, 1.0, principal._DESCENT, 1e-10, 120, **options
    )


@pytest.mark.parametrize("dim", [199, 200, 511, 512])
def test_the_form_is_chosen_by_size(dim):
    flow = PrincipalFlow(eosim.Quadratic(np.diag(np.full(dim, 0.5))), 1.0)
    assert flow.method == {199: "dense", 200: "mixed", 511: "mixed", 512: "lanczos"}[dim]


def test_a_hessian_that_is_all_there_is_is_formed_once():
    values, formed = network_spectrum(250, (0.8,)), []

    def hessian(x):
        formed.append(1)
        return np.diag(values)

    problem = eosim.from_functions(
        lambda x: x @ (values * x) / 2,
        lambda x: values * x,
        hessian=hessian,
        dim=250,
        analytic=True,
    )
    flow, theta = PrincipalFlow(problem, 1.0), np.linspace(1, 2, 250)
    assert flow.method == "mixed"
    formed.clear()
    assert relative(flow.field(theta), flow.coefficient(values) * values * theta) < 1e-9
    assert len(formed) == 1


def test_steps_that_will_not_suffice_are_given_up_early():
    values = np.linspace(0, 0.9999, 500)
    vector = np.random.default_rng(1).standard_normal(500)
    _, error, ritz = lanczos(values, vector, give_up=True)
    assert len(ritz) <= 50
    assert error > 1e-10
    field, error, ritz = lanczos(values, vector)  # there is no other way
    assert len(ritz) == 120
    exact = PrincipalFlow(eosim.Cosine(), 1.0).coefficient(values) * vector
    assert relative(field, exact) <= 10 * error


@pytest.mark.parametrize(
    "values",
    [
        *(network_spectrum(500, tops) for tops in [(), (2.1, 1.9, 1.4), (1 + 1e-6, 0.99)]),
        np.linspace(0, 0.98, 500),
        np.append(np.linspace(-3, 0.9, 499), 2.5),
    ],
    ids=["bulk", "outliers", "outliers at 1", "uniform", "wide"],
)
def test_steps_that_suffice_are_not_given_up(values):
    vector = np.random.default_rng(1).standard_normal(500)
    field, error, ritz = lanczos(values, vector, give_up=True)
    plain, _, all_ritz = lanczos(values, vector)
    np.testing.assert_array_equal(field, plain)
    assert len(ritz) == len(all_ritz) < 120
    assert error <= 1e-10


def test_where_products_do_not_converge_the_answer_is_that_of_a_decomposition():
    dim = 500
    problem = eosim.Quadratic(symmetric(np.linspace(0, 0.9999, dim), 1))
    theta = np.random.default_rng(1).standard_normal(dim)
    expected = PrincipalFlow(problem, 1.0, method="dense").field(theta)
    assert relative(PrincipalFlow(problem, 1.0).field(theta), expected) < 1e-8


def unit_spectrum(seed, dim, bulk):
    """A matrix with this bulk below its largest eigenvalue, 1 / lr up to rounding; and a vector."""
    generator = np.random.default_rng(seed)
    values = generator.uniform(0, bulk, dim)
    values[0] = 1.0
    values *= generator.uniform(1, 50)
    matrix = symmetric(values, seed) if seed % 2 else np.diag(values)
    values, vectors = np.linalg.eigh(matrix)
    return matrix, vectors, 1 / values[-1], vectors @ generator.standard_normal(dim)


@pytest.mark.parametrize("seed", range(16))
def test_at_the_inverse_of_the_sharpness_products_give_the_field(seed):
    matrix, vectors, lr, theta = unit_spectrum(seed, 250, 0.3)
    flow = PrincipalFlow(eosim.Quadratic(matrix), lr)
    assert flow.method == "mixed"
    field = vectors.T @ flow.field(theta)
    expected = vectors.T @ PrincipalFlow(flow.problem, lr, method="dense").field(theta)
    assert relative(field[:-1], expected[:-1]) < 1e-9
    # Up to rounding of lr * L, of which the logarithm is taken: some of log(1e-16).
    assert field[-1].real == pytest.approx(expected[-1].real, rel=0.1)


@pytest.mark.parametrize("seed", range(8))
def test_at_the_inverse_of_the_sharpness_products_converge(seed):
    matrix, vectors, lr, vector = unit_spectrum(seed, 400, 0.9)
    field, error, ritz = _spectral.apply_lanczos(
        lambda v: matrix @ v, vector, lr, principal._DESCENT, 1e-10, 120
    )
    assert error <= 1e-10
    assert len(ritz) < 120
    assert np.isrealobj(field)
    assert field @ vectors[:, -1] == pytest.approx(np.log(1e-16) * (vector @ vectors[:, -1]))


def test_looks_may_turn_complex_and_real_again():
    class Turning(principal._DescentLogarithm):
        looks = 0

        def start(self, z):
            self.looks += 1
            return super().start(z) + (0j if self.looks == 1 else 0.0)

    values = network_spectrum(250, (0.8, 0.6))
    vector, logarithm = np.random.default_rng(1).standard_normal(250), Turning()
    field, error, _ = _spectral.apply_lanczos(
        lambda v: values * v, vector, 1.0, logarithm, 1e-10, 120
    )
    assert logarithm.looks > 1
    np.testing.assert_array_equal(field, lanczos(values, vector)[0])
    assert error <= 1e-10


def test_a_real_path_is_followed_without_decompositions(monkeypatch):
    values = network_spectrum(250, (0.8, 0.6))
    flow = PrincipalFlow(eosim.Quadratic(np.diag(values)), 1.0)
    assert flow.method == "mixed"

    def refuse(*arguments):
        raise AssertionError("the Hessian was decomposed")

    monkeypatch.setattr(_spectral, "decompose", refuse)
    theta = np.random.default_rng(1).standard_normal(250)
    path = eosim.integrate(flow, theta, np.arange(4.0), record={}, rtol=1e-8)
    assert path.status is Status.COMPLETED
    expected = theta * (1 - values) ** np.arange(4.0)[:, None]
    assert np.linalg.norm(path.theta - expected, axis=1).max() < 1e-6 * np.linalg.norm(theta)


@pytest.mark.parametrize("lr", [0.2, 0.297, 0.299, 0.33], ids=str)
def test_off_the_real_axis_a_mixed_path_is_the_dense_one(lr):
    # Real all along; with h lambda = 1 close by, on either side; complex from the start.
    problem, start = eosim.Polynomial(QUARTIC_TERMS), np.array([1.5, -1.2])
    top = np.linalg.eigvalsh(problem.hessian(start))[-1]
    lr = lr / 0.298 / top
    paths = [
        eosim.integrate(PrincipalFlow(problem, lr, method=method), start, [lr, 2 * lr], record={})
        for method in ("mixed", "dense")
    ]
    assert paths[0].status is paths[1].status
    np.testing.assert_allclose(paths[0].theta, paths[1].theta, rtol=1e-8)
    assert paths[0].theta.imag.any() == (lr * top > 1)


def test_the_branch_of_a_mixed_path_is_that_of_its_last_real_state():
    problem = eosim.Polynomial({(3, 0): 1 / 6, (0, 3): 1 / 6})  # H = diag(x, y)
    flow = PrincipalFlow(problem, 1.0, method="mixed")
    branch = flow.advance(np.array([1.6, 0.5]), flow.init(np.array([0.9, 0.5])))
    below = np.array([1.6 + 0.1j, 0.5])  # 1 - h lambda below the cut: still near + i pi
    assert flow.field(below, branch)[0].imag > 0
    dense = PrincipalFlow(problem, 1.0, method="dense")
    expected = dense.field(below, dense.init(np.array([1.6, 0.5])))
    np.testing.assert_allclose(flow.field(below, branch), expected, rtol=1e-14)
    after = flow.advance(below, branch)
    assert max(after.logarithms.imag) == pytest.approx(np.pi, abs=0.2)
