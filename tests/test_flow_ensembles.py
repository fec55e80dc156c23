"""Flows from many starts: the compiled principal flow against `integrate`, in every regime."""

import math

import numpy as np
import pytest

import eosim
from eosim import Status
from eosim._kernels import principal_field as kernel
from eosim.flows import _spectral, ensemble
from eosim.flows.ensemble import integrate_ensemble
from tests.cases import QUARTIC_TERMS

ROSENBROCK = eosim.Rosenbrock()
QUARTIC = eosim.Polynomial(QUARTIC_TERMS)
DEFECTIVE = eosim.Polynomial({(2, 0): 0.5, (0, 2): -0.5, (2, 1): 0.5})  # H = [[1 + y, x], [x, -1]]


def box(centre, width, n, seed=0):
    return np.array(centre) + width * np.random.default_rng(seed).uniform(-1, 1, (n, 2))


def by_integrate(flow, starts, times, **options):
    return integrate_ensemble(flow, starts, times, method="generic", **options)


# --- the field ----------------------------------------------------------------------------------


def fields(problem, lr, thetas, memory=None):
    """The compiled field of up to LANES states, whether it exists, and what was continued.

    ``memory`` holds z and log(1 - z) of both eigenvalues; a path that starts has none.
    """
    lanes = kernel.LANES
    flow = eosim.PrincipalFlow(problem, lr)
    coefficients, exponents, ends = ensemble._derivative_tables(ensemble._polynomial_terms(flow))
    space = np.zeros(kernel.WORKSPACE)
    powers = np.zeros((2, 1 + exponents.max(), 2 * lanes))
    powers[:, 0, :lanes] = 1.0
    rows = space.reshape(-1, lanes)
    stage, slope = rows[kernel.STAGE // lanes :], rows[kernel.SLOPE // lanes :]
    eigen = rows[kernel.Z_RE // lanes :]
    for lane, theta in enumerate(thetas):
        stage[:4, lane] = theta[0].real, theta[0].imag, theta[1].real, theta[1].imag
        if memory is not None:
            z, logarithms = memory[lane]
            parts = np.concatenate([z.real, z.imag, logarithms.real, logarithms.imag])
            rows[kernel.MEMORY // lanes :][:8, lane] = parts
    kernel.fields(space, space.view(np.int64), powers, coefficients, exponents, ends, lr)
    n = len(thetas)
    values = np.stack([slope[0] + 1j * slope[1], slope[2] + 1j * slope[3]], axis=1)[:n]
    z, logarithms = eigen[0:2] + 1j * eigen[2:4], eigen[4:6] + 1j * eigen[6:8]
    clear = rows[kernel.CLEAR // lanes, :n] == 1
    bad = rows[kernel.BAD // lanes, :n]
    return values, bad, clear, z.T[:n], logarithms.T[:n]


def random_problem(generator):
    degree = generator.integers(2, 5)
    terms = {
        (int(i), int(j)): generator.standard_normal()
        for i in range(degree + 1)
        for j in range(degree + 1 - i)
    }
    return eosim.Polynomial(terms)


def relative(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("imaginary", [0.0, 1e-9, 0.1, 1.0])
def test_the_field_of_a_path_that_starts_is_that_of_the_flow(seed, imaginary):
    generator = np.random.default_rng(seed)
    problem, lr = random_problem(generator), 10.0 ** generator.uniform(-3, 1)
    thetas = generator.standard_normal((kernel.LANES, 2)) * (1 + 0j)
    thetas += 1j * imaginary * generator.standard_normal((kernel.LANES, 2))
    values, bad, _, _, logarithms = fields(problem, lr, thetas)
    assert not bad.any()
    flow = eosim.PrincipalFlow(problem, lr)
    for theta, value, logs in zip(thetas, values, logarithms, strict=True):
        z = lr * np.linalg.eigvals(problem.hessian(theta))
        if imaginary == 0:
            assert set(np.round(logs.imag / np.pi, 12)) <= {0, 1}
            expected = flow.field(theta)
        else:  # at complex states a start of the kernel, as of the flow, is on the principal sheet
            expected = flow.field(theta)
        # both lose digits where an eigenvalue is near 1, or eigenvectors nearly coincide
        gap = abs(z[0] - z[1]) / np.linalg.norm(lr * problem.hessian(theta))
        assert relative(value, expected) < 1e-12 / (gap * np.abs(1 - z).min())


@pytest.mark.parametrize("seed", range(4))
def test_logarithms_are_continued_as_by_the_flow(seed):
    # Steps of all sizes from a state whose logarithms carry turns: where the flow's matching is in no
    # doubt neither is the kernel's, and both go on with the same values.
    generator = np.random.default_rng(seed)
    problem, lr = random_problem(generator), 0.5
    flow = eosim.PrincipalFlow(problem, lr)
    starts = generator.standard_normal((kernel.LANES, 2, 2)) @ [1, 1j]
    steps = generator.standard_normal((kernel.LANES, 2, 2)) @ [1, 1j]
    thetas = starts + 10.0 ** generator.uniform(-3, 0.5, (kernel.LANES, 1)) * steps
    memory, branches = [], []
    for start in starts:
        branch = flow.init(start)
        turned = branch.logarithms + 2j * np.pi * generator.integers(-1, 2, 2)
        branches.append(_spectral.Branch(branch.eigenvalues, turned, False))
        memory.append((lr * branch.eigenvalues, turned))
    values, _, clear, z, logarithms = fields(problem, lr, thetas, memory)
    doubts = 0
    for lane, (theta, branch) in enumerate(zip(thetas, branches, strict=True)):
        try:
            after, sure = flow.advance(theta, branch), True
        except eosim.flows.base.AmbiguousBranch as ambiguous:
            after, sure = ambiguous.best, False
        doubts += not sure
        assert clear[lane] == sure
        order = [int(np.abs(lr * after.eigenvalues - one).argmin()) for one in z[lane]]
        assert sorted(order) == [0, 1]
        np.testing.assert_allclose(logarithms[lane], after.logarithms[order], atol=1e-9)
        expected = flow.field(theta, branch)
        assert relative(values[lane], expected) < 1e-9
    assert 0 < doubts < kernel.LANES


@pytest.mark.parametrize("lr", [0.1, 0.3])
def test_where_eigenvectors_coincide_the_field_is_its_series(lr):
    # At (i, 0) the Hessian is nilpotent: alpha(M) = -1 - M / 2 exactly.
    offsets = [0.0, 1e-14, 1e-12j, 1e-9, 1e-5, 1e-3j, 0.1, 0.03j]
    thetas = [np.array([1j + offset, 0.0]) for offset in offsets]
    values, bad, _, _, _ = fields(DEFECTIVE, lr, thetas)
    assert not bad.any()
    for theta, value in zip(thetas, values, strict=True):
        hessian, gradient = DEFECTIVE.hessian(theta), DEFECTIVE.gradient(theta)
        power, expected = gradient, 0 * gradient
        for p in range(60):
            expected, power = expected - power / (p + 1), lr * hessian @ power
        assert relative(value, expected) < 1e-13


@pytest.mark.parametrize(("offset", "exists"), [(0.0, False), (1e-20, False), (1e-12, True)])
def test_a_defective_hessian_with_logarithms_of_two_sheets_has_no_field(offset, exists):
    theta = np.array([1j + offset, 0.0])
    _, _, _, z, logarithms = fields(DEFECTIVE, 0.1, [theta])
    memory = [(z[0] + [1e-3, -1e-3], logarithms[0] + [2j * np.pi, 0])]
    _, bad, _, _, _ = fields(DEFECTIVE, 0.1, [theta], memory)
    assert bad[0] == (0 if exists else 2)


def test_at_1_the_logarithm_has_its_floor():
    problem = eosim.Quadratic(np.diag([1.0, 0.5]))
    values, _, _, _, _ = fields(problem, 1.0, [np.array([1 + 0j, 0j])])
    np.testing.assert_allclose(values[0], [np.log(1e-16), 0], rtol=1e-14)


def on_a_quadratic(z, theta):
    """The compiled field, and what it is by eigenvectors that are known."""
    turn = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    values, _, _, _, _ = fields(eosim.Quadratic((turn * z) @ turn.T), 1.0, [theta + 0j])
    beyond = np.log(np.maximum(z - 1, 1e-16)) + 1j * np.pi
    logarithms = np.where(z > 1, beyond, np.log1p(-np.minimum(z, 0.99)))
    return values[0], turn @ (logarithms * (turn.T @ theta))


@pytest.mark.parametrize("distance", [0.0, 1e-15, 1e-9, 1e-4, 0.02, 0.09, 0.11, 0.3])
@pytest.mark.parametrize("middle", [0.5, 1.5, 0.09, 2.0, -0.4, 1e-3, 0.0])
def test_close_eigenvalues_make_no_error(middle, distance):
    z = middle + distance * np.array([1, -1])
    value, expected = on_a_quadratic(z, np.array([0.7, -1.3]))
    assert np.abs(value - expected).max() <= 2e-15


@pytest.mark.parametrize("small", [1e-2, -1e-4, 1e-6, 1e-9])
def test_a_small_eigenvalue_beside_a_large_one_makes_no_error(small):
    problem = eosim.Quadratic(np.diag([1.7, small]))
    values, _, _, _, _ = fields(problem, 1.0, [np.array([0j, 1 + 0j])])
    np.testing.assert_allclose(values[0], [0, np.log1p(-small)], rtol=1e-14)


# --- paths --------------------------------------------------------------------------------------


@pytest.mark.size
@pytest.mark.parametrize(
    ("problem", "lr", "starts"),
    [
        (ROSENBROCK, 8e-4, box([0.5, 0.6], 0.1, 5)),
        (ROSENBROCK, 1.4e-3, box([1.1, 1.2], 0.1, 5)),
        (ROSENBROCK, 1.7e-3, box([1.0, 1.0], 0.1, 5)),
        (QUARTIC, 0.05, box([0, 0], 1, 5)),
        (eosim.Quadratic([[1.9, 0.3], [0.3, 0.2]], [3.0, -1.0]), 1.1, box([0, 0], 1, 5)),
    ],
    ids=["real", "complex", "near 2", "quartic", "quadratic"],
)
def test_compiled_paths_are_those_of_integrate(problem, lr, starts):
    flow, times = eosim.PrincipalFlow(problem, lr), lr * np.array([0, 1, 2.5, 6])
    compiled = integrate_ensemble(flow, starts, times)
    generic = by_integrate(flow, starts, times)
    assert compiled.settings["method"] == "compiled"
    assert generic.settings["method"] == "generic"
    assert compiled.status == generic.status == (Status.COMPLETED,) * 5
    assert compiled.theta.dtype == generic.theta.dtype == complex
    np.testing.assert_allclose(compiled.theta, generic.theta, atol=1e-8)
    np.testing.assert_allclose(compiled.step, [0, 1, 2.5, 6], rtol=1e-15)
    np.testing.assert_array_equal(compiled.theta[:, 0], starts)


_EIGENVALUES = {
    "1": [1.0, 0.3],
    "near 1": [1 - 1e-12, 1 + 1e-12],
    "zero": [0.0, 0.0],
    "one zero": [1.4, 0.0],
    "equal": [0.6, 0.6],
    "equal beyond 1": [1.7, 1.7],
    "diverging": [2.3, -0.5],
    "tiny": [1e-12, -1e-12],
}


@pytest.mark.size
@pytest.mark.parametrize("eigenvalues", _EIGENVALUES.values(), ids=_EIGENVALUES)
def test_on_quadratics_paths_are_gradient_descent(eigenvalues):
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    problem = eosim.Quadratic((turn * eigenvalues) @ turn.T / 0.7)
    starts = box([0, 0], 1, 3)
    paths = integrate_ensemble(eosim.PrincipalFlow(problem, 0.7), starts, 0.7 * np.arange(6.0))
    assert paths.settings["method"] == "compiled"
    assert paths.completed.all()
    for start, path in zip(starts, paths.theta, strict=True):
        iterates = eosim.run(problem, eosim.GradientDescent(0.7), start, 5).theta
        np.testing.assert_allclose(path, iterates, atol=2e-9 * np.abs(iterates).max())


def test_coarse_paths_are_those_of_integrate_to_their_tolerance():
    # Also where nothing is compiled.
    flow, times = eosim.PrincipalFlow(ROSENBROCK, 1.4e-3), 1.4e-3 * np.arange(3)
    starts = box([1.1, 1.2], 0.1, 3)
    paths = integrate_ensemble(flow, starts, times, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(paths.theta, by_integrate(flow, starts, times).theta, atol=1e-4)


def turned(coefficients, angle):
    """A sum of polynomials of the two coordinates of a frame that is turned."""
    axes = [(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))]
    terms = {}
    for (c, s), polynomial in zip(axes, coefficients, strict=True):
        for degree, coefficient in polynomial.items():
            for k in range(degree + 1):
                key = (k, degree - k)
                part = coefficient * math.comb(degree, k) * c**k * s ** (degree - k)
                terms[key] = terms.get(key, 0.0) + part
    return eosim.Polynomial(terms)


@pytest.mark.parametrize(
    ("first", "second", "gap", "rtol", "tolerance"),
    [
        pytest.param(
            (1.3, 0.4), (-2.0, -0.06861553794522281), 1e-3, 1e-10, 1e-8, marks=pytest.mark.size
        ),
        # steps too long to match are taken again; without that the error is 0.6
        ((1.5, 0.4), (-2.0, -0.10796733191002462), 1e-2, 1e-2, 0.1),
        ((1.5, 0.4), (-1.0, -0.3230829922910212), 5e-2, 1e-2, 0.1),
    ],
    ids=["exact", "coarse", "coarse and far"],
)
def test_paths_through_a_crossing_of_eigenvalues_keep_their_logarithms(
    first, second, gap, rtol, tolerance
):
    # The eigenvalue of the first cubic has gone half round 1 when it meets that of the second, on
    # another sheet. Apart, each path is one of `integrate` in one dimension.
    cubics = [{2: a / 2, 3: c / 3} for a, c in (first, second)]
    start = np.array([1.0, 1.0 + gap])
    frame = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    flow = eosim.PrincipalFlow(turned(cubics, 0.4), 1.0)
    paths = integrate_ensemble(flow, [frame @ start], [1.5], rtol=rtol, atol=1e-2 * rtol)
    assert paths.settings["method"] == "compiled"
    for axis, cubic in enumerate(cubics):
        alone = eosim.PrincipalFlow(eosim.Polynomial({(k,): c for k, c in cubic.items()}), 1.0)
        expected = eosim.integrate(alone, start[[axis]], [1.5], record={}).theta[0, 0]
        assert abs(paths.theta[0, 0] @ frame[:, axis] - expected) < tolerance


# --- how paths end ------------------------------------------------------------------------------


@pytest.mark.size
def test_paths_that_end_early_say_so_as_integrate_does():
    # From the outer starts the flow blows up; its neighbours go on.
    flow, times = eosim.PrincipalFlow(ROSENBROCK, 1.8e-3), 1.8e-3 * np.arange(13)
    starts = np.array([[1.2, 1.2], [0.9, 0.8], [1.25, 1.2], [1.0, 1.05]])
    compiled = integrate_ensemble(flow, starts, times, rtol=1e-8)
    generic = by_integrate(flow, starts, times, rtol=1e-8)
    ended = {Status.DIVERGED, Status.STALLED}
    assert [status in ended for status in generic.status] == [True, False, True, False]
    assert [status in ended for status in compiled.status] == [True, False, True, False]
    np.testing.assert_array_equal(compiled.completed, [False, True, False, True])
    np.testing.assert_array_equal(compiled.reached, generic.reached)
    for path, reached in zip(compiled.theta, compiled.reached, strict=True):
        assert np.isfinite(path[:reached]).all()
        assert np.isnan(path[reached:]).all()
    assert "start 0" in compiled.message
    assert "2 COMPLETED" in compiled.message
    assert "2 COMPLETED" in repr(compiled)


def test_a_norm_beyond_its_bound_is_a_divergence():
    flow = eosim.PrincipalFlow(eosim.Quadratic(np.diag([101.0, 0.5])), 1.0)  # 100-fold per lr
    paths = integrate_ensemble(flow, [[1.0, 1.0], [0.0, 1.0]], [0, 5.0, 7.0], rtol=1e-6)
    assert paths.status == (Status.DIVERGED, Status.COMPLETED)
    np.testing.assert_array_equal(paths.reached, [2, 3])


def test_a_budget_ends_each_path_at_its_own_evaluations():
    flow, times = eosim.PrincipalFlow(ROSENBROCK, 1.4e-3), 1.4e-3 * np.arange(3)
    starts = box([1.1, 1.2], 0.05, 3)
    needed = integrate_ensemble(flow, starts, times, rtol=1e-6).evaluations
    budget = int(np.sort(needed)[1])
    paths = integrate_ensemble(flow, starts, times, rtol=1e-6, max_evaluations=budget)
    assert (paths.evaluations <= budget).all()
    np.testing.assert_array_equal(paths.completed, needed <= budget)
    assert paths.status[int(needed.argmax())] is Status.BUDGET_SPENT
    assert paths.settings["max_evaluations"] == budget


def test_a_path_that_cannot_advance_is_stalled(monkeypatch):
    monkeypatch.setattr(ensemble, "STALL_EVALUATIONS", 20)
    flow = eosim.PrincipalFlow(ROSENBROCK, 1.4e-3)
    paths = integrate_ensemble(flow, [[1.1, 1.2], [1.0, 1.0]], [1.4e-3, 2.8e-3])
    assert paths.status == (Status.STALLED, Status.COMPLETED)  # the second stays at the minimum


def test_a_field_that_is_not_finite_at_a_start_is_refused():
    flow = eosim.PrincipalFlow(eosim.Polynomial({(4, 0): 0.1, (0, 2): 1.0}), 0.1)
    for method in ("compiled", "generic"):
        with pytest.raises(ValueError, match=r"starts\[1\]: PrincipalFlow.field is not finite"):
            integrate_ensemble(flow, [[1.0, 1.0], [1e105, 1.0]], [0.0], method=method)


# --- one path knows nothing of the others -----------------------------------------------------------


def test_a_path_is_a_function_of_its_start_alone():
    flow, times = eosim.PrincipalFlow(ROSENBROCK, 1.4e-3), 1.4e-3 * np.arange(3)
    starts = box([1.1, 1.2], 0.1, kernel.LANES + 3)
    whole = integrate_ensemble(flow, starts, times, rtol=1e-4, threads=1)
    several = integrate_ensemble(flow, starts, times, rtol=1e-4, threads=3)
    backwards = integrate_ensemble(flow, starts[::-1], times, rtol=1e-4, threads=2)
    for other, order in ((several, 1), (backwards, -1)):
        np.testing.assert_array_equal(whole.theta, other.theta[::order])
        np.testing.assert_array_equal(whole.evaluations, other.evaluations[::order])
    for i in (0, kernel.LANES + 2):
        alone = integrate_ensemble(flow, starts[[i]], times, rtol=1e-4)
        np.testing.assert_array_equal(whole.theta[i], alone.theta[0])


@pytest.mark.size
def test_decayed_paths_go_on_without_subnormal_numbers():
    flow = eosim.PrincipalFlow(eosim.Quadratic(np.diag([0.9, 0.99])), 1.0)
    paths = integrate_ensemble(flow, box([1, 1], 0.5, 4), 10.0 * np.arange(40), rtol=1e-4, atol=0)
    assert paths.completed.all()
    parts = np.abs(np.stack([paths.theta.real, paths.theta.imag]))
    assert not ((parts > 0) & (parts < 1e-300)).any()
    assert (parts[0, :, 10].max(axis=1) > 1e-120).all()
    assert parts[:, :, -1].max() < 1e-260


# --- what is not compiled ----------------------------------------------------------------------


class Tilted(eosim.Rosenbrock):
    """A subclass with another gradient."""

    def gradient(self, theta):
        return super().gradient(theta) + 1


@pytest.mark.parametrize(
    "flow",
    [
        eosim.GradientFlow(ROSENBROCK, lr=1e-3),
        eosim.PrincipalFlow(ROSENBROCK, 1e-3, corrections=1),
        eosim.PrincipalFlow(ROSENBROCK, 1e-3, method="lanczos"),
        eosim.PrincipalFlow(Tilted(), 1e-3),
        eosim.PrincipalFlow(eosim.Cosine(2), 0.1),
        eosim.PrincipalFlow(eosim.Quadratic(np.diag([1.0, 0.5, 0.2])), 0.5),
    ],
    ids=["gradient", "corrections", "lanczos", "subclass", "cosine", "three"],
)
def test_everything_else_goes_through_integrate(flow):
    dim = flow.problem.dim
    starts, times = 0.1 * np.arange(2.0 * dim).reshape(2, dim), [0.0, 1e-3]
    paths = integrate_ensemble(flow, starts, times)
    assert paths.settings["method"] == "generic"
    assert len(paths) == 2
    for start, theta, evaluations in zip(starts, paths.theta, paths.evaluations, strict=True):
        path = eosim.integrate(flow, start, times, record={})
        np.testing.assert_array_equal(theta, path.theta)
        assert theta.dtype == path.theta.dtype
        assert evaluations == path.settings["evaluations"]
    with pytest.raises(ValueError, match="method 'compiled' needs"):
        integrate_ensemble(flow, starts, times, method="compiled")


def test_polynomials_without_a_variable_are_compiled_too():
    flow = eosim.PrincipalFlow(eosim.Polynomial({(0, 0): 2.0}), 1.0)
    paths = integrate_ensemble(flow, [[1.0, 2.0]], [0, 3.0])
    np.testing.assert_array_equal(paths.theta[0], [[1, 2], [1, 2]])
    flow = eosim.PrincipalFlow(eosim.Polynomial({(0, 1): 2.0}), 1.0)
    np.testing.assert_allclose(
        integrate_ensemble(flow, [[1.0, 2.0]], [3.0]).theta[0], [[1, -4]], rtol=1e-12
    )


def test_sparse_quadratics_and_operators_are_compiled_too():
    import scipy.sparse

    matrix = np.array([[1.9, 0.3], [0.3, 0.2]])
    plain, sparse = (
        integrate_ensemble(
            eosim.PrincipalFlow(eosim.Quadratic(form), 1.0), [[1.0, 2.0]], [1.0], method="compiled"
        )
        for form in (matrix, scipy.sparse.csr_array(matrix))
    )
    np.testing.assert_array_equal(plain.theta, sparse.theta)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"flow": 3}, TypeError, "flow"),
        ({"starts": [1.0, 2.0]}, ValueError, "starts"),
        ({"starts": [[1.0]]}, ValueError, "starts"),
        ({"starts": np.zeros((0, 2))}, ValueError, "at least one start"),
        ({"starts": [[np.nan, 1.0]]}, ValueError, "starts"),
        ({"times": []}, ValueError, "times"),
        ({"times": [1.0, 0.5]}, ValueError, "times must be increasing"),
        ({"times": [-1.0]}, ValueError, "times"),
        ({"rtol": 0.0}, ValueError, "rtol"),
        ({"atol": -1.0}, ValueError, "atol"),
        ({"max_evaluations": 0}, ValueError, "max_evaluations"),
        ({"method": "fast"}, ValueError, "method"),
        ({"threads": 0}, ValueError, "threads"),
    ],
)
def test_wrong_arguments_are_refused_by_name(changed, error, message):
    arguments = {
        "flow": eosim.PrincipalFlow(ROSENBROCK, 1e-3),
        "starts": [[1.0, 1.0]],
        "times": [0.0],
    } | changed
    with pytest.raises(error, match=message):
        integrate_ensemble(**arguments)
