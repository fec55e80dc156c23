"""Enclosures of eigenvalues and of the sharpness of problems: exact at the floats that are given."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse

import eosim
from eosim import certified as certified_module
from eosim.certified import (
    CannotCertify,
    Enclosure,
    balls,
    enclose_eigenvalue,
    in_balls,
    positive_pivots,
)
from eosim.measure import sharpness
from tests import cases

flint = pytest.importorskip("flint")


def ulps(enclosure) -> int:
    """How many floats it spans; 0 for a single one."""
    return round((enclosure.upper - enclosure.lower) / math.ulp(enclosure.lower))


def certified(matrix) -> Enclosure:
    return sharpness(eosim.Quadratic(matrix), np.zeros(len(matrix)), certify=True)


@pytest.mark.parametrize("seed", range(6))
def test_the_largest_eigenvalue_in_high_precision_is_enclosed(seed):
    generator = np.random.default_rng(seed)
    matrix = cases.symmetric(generator.standard_normal(8) * 10.0 ** generator.integers(-6, 7), seed)
    with mpmath.workdps(60):
        exact = max(mpmath.eigsy(mpmath.matrix(matrix.tolist()), eigvals_only=True))
        enclosure = certified(matrix)
        assert exact in enclosure
        assert exact not in certified(matrix + np.diag(np.full(8, 1e-14 * abs(float(exact)))))
    assert ulps(enclosure) <= 4


@pytest.mark.parametrize(
    "eigenvalues", [[3, 1, 0, -5], [2, 2, 2, 2], [7, 7, 7, -1], [0, 0, -1, -2], [-1, -1, -2, -3]]
)
def test_multiple_zero_and_negative_eigenvalues_are_enclosed(eigenvalues):
    basis = scipy.linalg.hadamard(4)
    matrix = basis @ np.diag(eigenvalues) @ basis.T / 4  # exact
    lower, upper = certified(matrix)
    assert lower <= max(eigenvalues) <= upper
    assert upper - lower <= 1e-14


def test_zero_and_extreme_matrices_are_enclosed():
    for scale in (0.0, 5e-324, 1e-300, 1e300):
        lower, upper = certified(scale * np.eye(3))
        assert lower <= scale <= upper
        assert upper - lower <= max(4e-16 * scale, 1e-323)


def test_a_hundred_parameters_are_no_obstacle():
    matrix = cases.symmetric(np.linspace(-1, 1, 100) ** 3)
    enclosure = certified(matrix)
    assert ulps(enclosure) <= 4
    assert enclosure.lower == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-13)


def test_a_singular_matrix_has_no_sign_at_any_precision():
    third = np.array([[3.0, 1.0, 4.0], [1.0, 5.0, 6.0], [4.0, 6.0, 10.0]])  # row 1 plus row 2

    def pivots(shift):
        with flint.ctx.workprec(512):
            return positive_pivots((balls(third) - shift * balls(np.eye(3))).tolist())

    assert pivots(0.0) is None
    assert pivots(-1e-30) == 3
    assert pivots(1e-30) == 2


@pytest.mark.parametrize("seed", range(3))
def test_every_eigenvalue_of_a_matrix_is_enclosed_in_its_place(seed):
    generator = np.random.default_rng(seed)
    spectra = [
        (generator.standard_normal(12), 4),
        (np.logspace(-12, 0, 12), 4),
        # Rounding splits these by some ulps, and their rounded eigenvectors are any
        (np.repeat([-1.0, 0.5, 2.0], 4), 64),
        (1 + 1e-15 * generator.standard_normal(12), 64),
    ]
    for spectrum, width in spectra:
        matrix = cases.symmetric(spectrum, seed)
        with mpmath.workdps(60):
            exact = mpmath.eigsy(mpmath.matrix(matrix.tolist()), eigvals_only=True)
            for index, value in enumerate(sorted(exact, reverse=True), start=1):
                enclosure = enclose_eigenvalue("it", lambda m=matrix: balls(m), index)
                assert value in enclosure
                gap = enclosure.upper - enclosure.lower
                assert gap <= width * math.ulp(float(max(exact)))


def test_an_eigenvalue_takes_the_bits_that_it_needs():
    """Of 2 c - 12 d x^2 all but the last 40 of 240 digits cancel."""
    for coefficient in (1.0, 1e40, 1e100):
        x, c = 1e3 / 3, Fraction(coefficient)
        d = float(c / 6 / Fraction(x) ** 2)
        bowl = eosim.Polynomial({(2,): coefficient, (4,): -d, (0,): 1.0})
        enclosure = sharpness(bowl, np.array([x]), certify=True)
        assert 2 * c - 12 * Fraction(d) * Fraction(x) ** 2 in enclosure
        assert ulps(enclosure) <= 4
    third = enclose_eigenvalue("it", lambda: flint.arb_mat([[flint.arb(1) / 3]]), 1)
    assert Fraction(1, 3) in third


def test_a_matrix_of_low_rank_loses_no_digits(monkeypatch):
    monkeypatch.setattr(certified_module, "_RETRIES", (64,))
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((64, 10))
    vectors, values, _ = np.linalg.svd(inputs, full_matrices=False)

    def product():
        return balls(vectors) * balls(np.diag(values)) * balls(vectors.T)

    for index in (1, 5, 10):
        enclosure = enclose_eigenvalue("it", product, index)
        assert enclosure.lower == pytest.approx(values[index - 1], rel=1e-14)
        assert ulps(enclosure) <= 64


def test_balls_that_are_too_wide_are_refused_by_name():
    wide = flint.arb_mat([[flint.arb(1, 1e-3), 0], [0, 0.5]])
    words = r"the gap is near 1.0, but no bracket of .* not told apart in balls of 2560 bits"
    with pytest.raises(CannotCertify, match=words):
        enclose_eigenvalue("the gap", lambda: wide, 1)
    with pytest.raises(CannotCertify, match="the gap is of a matrix beyond the range of floats"):
        enclose_eigenvalue("the gap", lambda: wide * flint.arb("1e400"), 1)


# --- problems whose Hessian is evaluated in balls -----------------------------------------------

GENERATOR = np.random.default_rng(5)
MATRIX = cases.symmetric([3.0, 0.1, -2.0])
INPUTS, TARGETS = GENERATOR.standard_normal((7, 3)), GENERATOR.standard_normal(7)
TERMS = {(2, 0): 0.1, (1, 3): 0.7, (0, 6): -0.3, (5, 1): 1.1}
META, FEATURES, MIXING = (
    cases.symmetric([1.0, -0.3, 0.7]) * GENERATOR.standard_normal((7, 1, 1)),
    GENERATOR.standard_normal((7, 1)),
    GENERATOR.standard_normal((7, 2)),
)


def net_loss(net, meta, theta):
    features, prefactor = net.features.tolist(), mpmath.mpf(net.prefactor)
    p = net.n_features
    total = 0
    for row, matrix, target in zip(features, meta, net.targets[:, 0].tolist(), strict=True):
        output = sum(mpmath.mpf(a) * b for a, b in zip(row, theta[:p], strict=True)) - target
        output += prefactor * form(matrix, theta[p:]) / 2
        total += output**2
    return total / (2 * len(meta))


def form(matrix, x):
    return sum(x[i] * mpmath.mpf(m) * x[j] for (i, j), m in np.ndenumerate(matrix))


def regression_loss(theta):
    rows = zip(INPUTS.tolist(), TARGETS.tolist(), strict=True)
    return sum(
        (sum(mpmath.mpf(a) * b for a, b in zip(row, theta, strict=True)) - target) ** 2
        for row, target in rows
    ) / (2 * len(TARGETS))


def mixed():
    exact = np.vectorize(mpmath.mpf, otypes=[object])
    return np.tensordot(exact(MIXING), exact(META[:2]), 1)


NET = eosim.problems.QuadraticNet(META, TARGETS)
MIXED = eosim.problems.QuadraticNet(META[:2], TARGETS, features=FEATURES, mixing=MIXING)
# Problems with their losses, which are stated once more for mpmath
CERTIFIABLE = {
    "quadratic": (eosim.Quadratic(MATRIX, [1.0, 2.0, 3.0]), lambda x: form(MATRIX, x) / 2),
    "sparse": (eosim.Quadratic(scipy.sparse.csr_array(MATRIX)), lambda x: form(MATRIX, x) / 2),
    "regression": (eosim.LinearRegression(INPUTS, TARGETS), regression_loss),
    "sparse regression": (
        eosim.LinearRegression(scipy.sparse.csr_array(INPUTS), TARGETS),
        regression_loss,
    ),
    "rosenbrock": (
        eosim.Rosenbrock(99.9),
        lambda x: (1 - x[0]) ** 2 + mpmath.mpf(99.9) * (x[1] - x[0] ** 2) ** 2,
    ),
    "cosine": (eosim.problems.Cosine(3), lambda x: sum(1 - mpmath.cos(entry) for entry in x)),
    "polynomial": (
        eosim.Polynomial(TERMS),
        lambda x: sum(mpmath.mpf(c) * x[0] ** i * x[1] ** j for (i, j), c in TERMS.items()),
    ),
    "quadratic net": (NET, lambda x: net_loss(NET, META, x)),
    "mixed quadratic net": (MIXED, lambda x: net_loss(MIXED, mixed(), x)),
}


def exact_sharpness(loss, theta):
    """From second differences of the loss, right to more than 60 digits."""
    with mpmath.workdps(200):
        step = mpmath.mpf(10) ** -50
        dim = len(theta)
        hessian = mpmath.matrix(dim, dim)

        def moved(i, a, j, b):
            x = [mpmath.mpf(float(entry)) for entry in theta]
            x[i] += a * step
            x[j] += b * step
            return loss(x)

        for i in range(dim):
            for j in range(i + 1):
                corners = [(a, b) for a in (-1, 1) for b in (-1, 1)]
                total = sum(a * b * moved(i, a, j, b) for a, b in corners)
                hessian[i, j] = hessian[j, i] = total / (4 * step**2)
        if dim == 1:
            return hessian[0, 0]
    with mpmath.workdps(60):
        return max(mpmath.eigsy(hessian, eigvals_only=True))


@pytest.mark.parametrize("name", CERTIFIABLE)
def test_the_sharpness_of_a_problem_is_enclosed_wherever_it_is_asked_for(name):
    problem, loss = CERTIFIABLE[name]
    generator = np.random.default_rng(0)
    constant = isinstance(problem, (eosim.Quadratic, eosim.LinearRegression))
    for _ in range(5 if constant else 200 if problem.dim == 2 else 40):
        theta = generator.standard_normal(problem.dim) * 10.0 ** generator.uniform(-3, 2)
        enclosure = sharpness(problem, theta, certify=True)
        exact = exact_sharpness(loss, theta)
        assert exact in enclosure
        assert ulps(enclosure) <= 4
        assert exact not in sharpness(problem, theta * 1.01, certify=True) or constant


def test_a_hessian_that_was_kept_in_floats_is_not_what_is_enclosed():
    problem, loss = CERTIFIABLE["regression"]
    before = problem.hessian(np.zeros(3)).copy()  # cached now
    theta = np.zeros(3)
    for scale in 10.0 ** np.arange(-6, 7):
        regression = eosim.LinearRegression(scale * INPUTS, TARGETS)
        regression.hessian(theta)
        with mpmath.workdps(50):
            rows = mpmath.matrix(regression.inputs.tolist())
            exact = max(mpmath.eigsy(rows.T * rows / len(TARGETS), eigvals_only=True))
            assert exact in sharpness(regression, theta, certify=True)
    assert exact_sharpness(loss, theta) in sharpness(problem, theta, certify=True)
    assert np.array_equal(problem.hessian(theta), before)


def test_several_outputs_repeat_the_eigenvalue():
    both = eosim.LinearRegression(INPUTS, np.stack([TARGETS, -TARGETS], axis=1))
    single = CERTIFIABLE["regression"][0]
    assert sharpness(both, np.ones(6), certify=True).lower == pytest.approx(
        sharpness(single, np.ones(3), certify=True).lower, rel=1e-15
    )


def test_integers_and_lists_are_numbers_of_theta():
    rosenbrock = eosim.Rosenbrock()
    at_floats = sharpness(rosenbrock, np.array([1.0, 2.0]), certify=True)
    assert sharpness(rosenbrock, np.array([1, 2]), certify=True) == at_floats
    assert sharpness(rosenbrock, [1, 2], certify=True) == at_floats
    with pytest.raises(TypeError, match="theta must be real"):
        sharpness(rosenbrock, np.array([1j, 2]), certify=True)


class Overridden(eosim.Rosenbrock):
    """Its Hessian is computed anew, in floats."""

    def hessian(self, theta):
        return super().hessian(theta) * (1 + 1e-12)


class ByProducts:
    dim, analytic = 2, True

    def hvp(self, theta, v):
        return 2 * v


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        (eosim.from_functions(lambda x: np.sum(x**4) / 4, lambda x: x**3, dim=2), "FunctionP"),
        (
            eosim.from_functions(
                lambda x: np.sum(x**4) / 4,
                lambda x: x**3,
                hessian=lambda x: np.diag(3 * x**2),
                dim=2,
                analytic=True,
            ),
            "FunctionProblem",
        ),
        (
            eosim.from_functions(
                lambda x: x[0] ** 2 / 2 if x[0] > 0 else 3 * x[0] ** 2 / 2,
                lambda x: np.array([x[0] if x[0] > 0 else 3 * x[0], 0.0]),
                dim=2,
            ),
            "FunctionProblem",
        ),
        (Overridden(), "Overridden"),
        (ByProducts(), "ByProducts"),
        (eosim.problems.uv_net([[1.0]], [0.0], 1), "TwoLayerNet"),
    ],
)
def test_a_hessian_computed_in_floats_is_refused_with_what_can_be_done(problem, name):
    theta = np.array([0.5, 0.25])
    assert math.isfinite(sharpness(problem, theta).value)
    words = (
        rf"the Hessian of {name}.* floats.* sharpness\(eosim.Quadratic\(H\), theta, certify=True\)"
    )
    with pytest.raises(CannotCertify, match=words):
        sharpness(problem, theta, certify=True)


def test_of_a_matrix_that_is_not_quite_symmetric_the_symmetric_part_counts():
    bowl = eosim.Quadratic(scipy.sparse.csr_array([[1.0, 0.0], [2.0**-35, 1.0]]))
    enclosure = sharpness(bowl, np.zeros(2), certify=True)
    assert 1 + 2.0**-36 in enclosure
    assert ulps(enclosure) <= 4


def test_an_operator_has_no_floats_to_take_exactly():
    operator = scipy.sparse.linalg.aslinearoperator(MATRIX)
    for problem in (eosim.Quadratic(operator), eosim.LinearRegression(operator, np.ones(3))):
        with pytest.raises(CannotCertify, match=r"a _?MatrixLinearOperator returns floats of unk"):
            sharpness(problem, np.ones(3), certify=True)


def test_balls_of_a_problem_leave_it_as_it_was():
    problem = CERTIFIABLE["polynomial"][0]
    twin = in_balls(problem)
    assert {type(value) for value in twin.terms.values()} == {flint.arb}
    assert {type(value) for value in problem.terms.values()} == {float}
    assert twin.dim == problem.dim


def test_a_large_hessian_is_refused_with_its_size_and_what_to_do():
    bowl = eosim.Quadratic(np.eye(300))
    with pytest.raises(
        CannotCertify, match=r"at most 256 parameters, got 300; without it the resid"
    ):
        sharpness(bowl, np.zeros(300), certify=True)


def test_the_measurement_is_what_it_was():
    bowl = eosim.Quadratic(cases.symmetric([1.0, 3.0, -2.0]))
    value, residual, converged = sharpness(bowl, np.ones(3))
    assert (value, residual, converged) == sharpness(bowl, np.ones(3), certify=False)
    path = eosim.run(
        bowl, eosim.GradientDescent(0.1), np.ones(3), 2, record={"sharpness": sharpness}
    )
    assert path["sharpness.value"].tolist() == [value] * 3
    assert value == pytest.approx(certified(bowl.hessian(np.ones(3))).lower, rel=1e-14)
