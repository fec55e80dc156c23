"""Quadratic regression: exact derivatives, packed storage, random ensembles, the closed form of SGD."""

import itertools
import tracemalloc

import numpy as np
import pytest

import eosim
from eosim import sampling
from eosim.ensemble import run_ensemble
from eosim.problems.base import third_derivative
from eosim.problems.quadratic_regression import (
    QuadraticRegression,
    jacobian_with_spectrum,
    random_quadratic_regression,
)
from eosim.sampling import BatchStream, seed_sequence, stream_key
from tests.cases import SCHEMES

NAMES = ("loss", "gradient", "hessian", "residuals", "jacobian")
SHAPES = [(1, 1), (1, 4), (3, 1), (4, 5), (5, 3)]


def rng(seed=0):
    return np.random.default_rng(seed)


def data(n, dim, seed=0):
    generator = rng(seed)
    tensor = generator.standard_normal((n, dim, dim))
    return (
        generator.standard_normal(n),
        generator.standard_normal((n, dim)),
        tensor + tensor.transpose(0, 2, 1),
    )


def naive_residuals(residuals, jacobian, tensor, theta):
    """z_a = z_a(0) + sum_j J_aj theta_j + sum_jk theta_j Q_ajk theta_k / 2, by loops."""
    values = []
    for a, start in enumerate(residuals):
        z = start
        for j, left in enumerate(theta):
            z = z + jacobian[a, j] * left
            for k, right in enumerate(theta):
                z = z + left * tensor[a, j, k] * right / 2
        values.append(z)
    return np.array(values)


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=["real", "complex"])
def theta(request, shape):
    point = rng(5).standard_normal(shape[1])
    return point + 0.3j * rng(6).standard_normal(shape[1]) if request.param == "complex" else point


# --- derivatives --------------------------------------------------------------------------------


def test_residuals_and_loss_are_those_of_the_loops(shape, theta):
    problem, expected = QuadraticRegression(*data(*shape)), naive_residuals(*data(*shape), theta)
    np.testing.assert_allclose(problem.residuals(theta)[:, 0], expected, rtol=1e-12, atol=1e-13)
    loss = sum(z * z for z in expected) / (2 * len(expected))
    assert problem.loss(theta) == pytest.approx(loss, rel=1e-12)


def test_derivatives_are_exact_by_complex_step(shape):
    problem = QuadraticRegression(*data(*shape))
    theta, v, w = rng(1).standard_normal((3, problem.dim))
    h = 1e-30
    slopes = [problem.loss(theta + 1j * h * u).imag / h for u in np.eye(problem.dim)]
    np.testing.assert_allclose(problem.gradient(theta), slopes, rtol=1e-12, atol=1e-13)
    product = problem.gradient(theta + 1j * h * v).imag / h
    np.testing.assert_allclose(problem.hvp(theta, v), product, rtol=1e-12, atol=1e-12)
    rates = problem.residuals(theta + 1j * h * v).imag / h
    np.testing.assert_allclose(problem.jacobian(theta) @ v, rates, rtol=1e-12, atol=1e-13)
    third = problem.hvp(theta + 1j * h * w, v).imag / h
    np.testing.assert_allclose(third_derivative(problem, theta, w, v), third, rtol=1e-11)


def test_derivatives_continue_to_complex_points(shape, theta):
    problem = QuadraticRegression(*data(*shape))
    v = rng(1).standard_normal(problem.dim) + 0.5j * rng(2).standard_normal(problem.dim)
    step = 1e-6
    ahead, behind = theta + step * v, theta - step * v
    scale = np.abs(problem.hessian(theta)).max() + 1
    slope = (problem.loss(ahead) - problem.loss(behind)) / (2 * step)
    assert abs(problem.gradient(theta) @ v - slope) < 1e-6 * scale
    change = (problem.gradient(ahead) - problem.gradient(behind)) / (2 * step)
    np.testing.assert_allclose(problem.hvp(theta, v), change, atol=1e-6 * scale)
    bend = (problem.hvp(ahead, v) - problem.hvp(behind, v)) / (2 * step)
    np.testing.assert_allclose(problem.third_derivative(theta, v, v), bend, atol=1e-6 * scale)


def test_the_hessian_is_symmetric_and_gives_the_products(shape, theta):
    problem, v = QuadraticRegression(*data(*shape)), rng(1).standard_normal(shape[1])
    hessian = problem.hessian(theta)
    np.testing.assert_array_equal(hessian, hessian.T)
    np.testing.assert_allclose(hessian @ v, problem.hvp(theta, v), rtol=1e-11, atol=1e-11)


def test_the_ntk_is_that_of_the_jacobian(shape, theta):
    problem = QuadraticRegression(*data(*shape))
    jacobian = problem.jacobian(theta)[:, 0]
    expected = jacobian @ jacobian.T / problem.n_samples
    np.testing.assert_allclose(problem.ntk(theta), expected, rtol=1e-13, atol=1e-14)


def test_a_mini_batch_is_the_problem_of_its_samples(shape, theta):
    problem, v = QuadraticRegression(*data(*shape)), rng(1).standard_normal(shape[1])
    n = problem.n_samples
    for batch in (np.array([n - 1]), np.array([0, n - 1, 0]), np.arange(n)):
        part = QuadraticRegression(*(array[batch] for array in data(*shape)))
        for name in NAMES:
            ours, expected = getattr(problem, name)(theta, batch), getattr(part, name)(theta)
            np.testing.assert_allclose(ours, expected, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(
            problem.hvp(theta, v, batch), part.hvp(theta, v), rtol=1e-13, atol=1e-14
        )


def test_a_mini_batch_reads_only_the_matrices_of_its_samples():
    problem = QuadraticRegression(*data(4, 5))
    theta, batch = rng(1).standard_normal(5), np.array([2, 0])
    poisoned = problem.tensor.copy()
    poisoned[[1, 3]] = np.nan
    before = [getattr(problem, name)(theta, batch) for name in NAMES]
    object.__setattr__(problem, "tensor", poisoned)
    for name, expected in zip(NAMES, before, strict=True):
        np.testing.assert_array_equal(getattr(problem, name)(theta, batch), expected)


def test_a_sample_that_does_not_exist_is_an_index_error():
    problem = QuadraticRegression(*data(3, 2))
    with pytest.raises(IndexError):
        problem.gradient(np.zeros(2), np.array([3]))


def test_parameters_of_another_length_are_refused():
    problem = QuadraticRegression(*data(3, 2))
    for wrong in (np.zeros(3), np.zeros(1), np.zeros((1, 2))):
        with pytest.raises(ValueError, match=r"theta must have shape \(2,\), got"):
            problem.gradient(wrong)


def test_non_finite_parameters_give_non_finite_results():
    problem = QuadraticRegression(*data(3, 4))
    for bad in (np.nan, np.inf):
        theta = np.array([0.1, bad, 0.2, 0.3])
        with np.errstate(invalid="ignore"):
            assert not np.isfinite(problem.gradient(theta)).any()


# --- storage ------------------------------------------------------------------------------------


def test_triangles_and_matrices_are_the_same_problem():
    residuals, jacobian, tensor = data(4, 5)
    packed = np.array([[q[j, k] for j in range(5) for k in range(j + 1)] for q in tensor])
    full = QuadraticRegression(residuals, jacobian, tensor)
    np.testing.assert_array_equal(full.tensor, packed)
    np.testing.assert_array_equal(
        QuadraticRegression(residuals, jacobian, packed).tensor, full.tensor
    )
    np.testing.assert_array_equal(
        QuadraticRegression(residuals, jacobian, packed.tolist()).tensor, full.tensor
    )


def test_read_only_triangles_are_kept_and_writeable_ones_copied():
    residuals, jacobian, _ = data(3, 4)
    packed = rng(1).standard_normal((3, 10))
    assert not np.shares_memory(QuadraticRegression(residuals, jacobian, packed).tensor, packed)
    packed.flags.writeable = False
    problem = QuadraticRegression(residuals, jacobian, packed)
    assert np.shares_memory(problem.tensor, packed)
    assert not problem.tensor.flags.writeable


def test_single_precision_storage_is_exactly_the_problem_with_rounded_entries():
    residuals, jacobian, tensor = data(4, 6)
    theta, v = rng(1).standard_normal((2, 6))
    single = QuadraticRegression(residuals, jacobian, tensor, dtype="float32")
    rounded = QuadraticRegression(residuals, jacobian, tensor.astype(np.float32))
    assert single.tensor.nbytes == rounded.tensor.nbytes / 2 == 4 * 4 * 21
    error = np.abs(single.tensor - QuadraticRegression(residuals, jacobian, tensor).tensor)
    assert 0 < (error / np.abs(rounded.tensor)).max() <= 2.0**-24 * (1 + 1e-6)
    for name in NAMES:
        ours, expected = getattr(single, name)(theta), getattr(rounded, name)(theta)
        np.testing.assert_allclose(ours, expected, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(single.hvp(theta, v), rounded.hvp(theta, v), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("dtype", "size"), [("float64", 8), ("float32", 4)])
def test_a_random_problem_takes_the_memory_of_its_triangles_and_little_more(dtype, size):
    n, dim = 60, 100
    random_quadratic_regression(2, 2, 0.1)  # imports
    tracemalloc.start()
    problem = random_quadratic_regression(n, dim, 0.1, dtype=dtype)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    triangles = size * n * dim * (dim + 1) / 2
    assert problem.tensor.nbytes == triangles
    # z, J and its copy, and the draws, roundings and checks of one sample.
    assert peak < triangles + 3 * 8 * n * dim + 5 * 8 * dim**2


# --- ensembles ----------------------------------------------------------------------------------


def test_entries_have_the_same_variance_on_and_off_the_diagonal():
    n, dim, sigma = 40, 30, 0.3
    problem = random_quadratic_regression(n, dim, sigma, seed=1)
    rows, columns = np.tril_indices(dim)
    for chosen in (rows == columns, rows != columns):
        entries = problem.tensor[:, chosen].ravel()
        error = sigma**2 * np.sqrt(2 / entries.size)  # of the variance of normal numbers
        assert abs(np.mean(entries**2) - sigma**2) < 4 * error
        assert abs(entries.mean()) < 4 * sigma / np.sqrt(entries.size)


def test_a_seed_fixes_the_problem_and_storage_only_rounds_it():
    first, same = (random_quadratic_regression(5, 4, 0.2, seed=3) for _ in range(2))
    single = random_quadratic_regression(5, 4, 0.2, seed=3, dtype="float32")
    other = random_quadratic_regression(5, 4, 0.2, seed=4)
    for name in ("initial_residuals", "initial_jacobian", "tensor"):
        np.testing.assert_array_equal(getattr(first, name), getattr(same, name))
        assert (getattr(first, name) != getattr(other, name)).any()
    np.testing.assert_array_equal(single.tensor, first.tensor.astype(np.float32))
    np.testing.assert_array_equal(single.initial_jacobian, first.initial_jacobian)


@pytest.mark.parametrize(("n", "dim"), [(6, 20), (20, 6)])
def test_the_largest_ntk_eigenvalue_is_the_one_asked_for(n, dim):
    problem = random_quadratic_regression(n, dim, 0.1, ntk_max=1.4)
    assert np.linalg.eigvalsh(problem.ntk(np.zeros(dim)))[-1] == pytest.approx(1.4, rel=1e-12)


def test_a_jacobian_has_the_ntk_spectrum_it_was_made_from():
    eigenvalues = 0.8 * np.arange(1.0, 9) ** -1.5
    jacobian = jacobian_with_spectrum(eigenvalues, 12, seed=2)
    problem = random_quadratic_regression(8, 12, 0.1, jacobian=jacobian)
    np.testing.assert_array_equal(problem.initial_jacobian, jacobian)
    found = np.linalg.eigvalsh(problem.ntk(np.zeros(12)))[::-1]
    np.testing.assert_allclose(found, eigenvalues, rtol=1e-12)


# --- descent ------------------------------------------------------------------------------------


def closed_form(residuals, jacobian, tensor, batches, B, lr):
    """SGD in (z, J): z' = z - (lr/B) J g + lr^2 (Qg) g / (2 B^2), J' = J - (lr/B) Qg."""
    z, J = residuals.copy(), jacobian.copy()
    for batch in batches:
        g = sum((z[a] * J[a] for a in batch), start=np.zeros(J.shape[1]))
        Qg = np.einsum("ajk,k->aj", tensor, g)
        z, J = z - lr / B * (J @ g) + lr**2 / (2 * B**2) * (Qg @ g), J - lr / B * Qg
    return z, J


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_descent_on_parameters_is_the_closed_form_in_residuals_and_jacobian(scheme, batch_size):
    residuals, jacobian, tensor = data(6, 9, seed=1)
    tensor, lr, n_steps = 0.05 * tensor, 0.15, 20
    problem = QuadraticRegression(residuals, jacobian, tensor)
    path = eosim.run(
        problem, eosim.GradientDescent(lr), np.zeros(9), n_steps,
        batch_size=batch_size, sampling=scheme, seed=7,
    )  # fmt: skip
    stream = BatchStream(6, batch_size, scheme, stream_key(seed_sequence(7)))
    batches = list(stream.batches(0, n_steps))
    z, J = closed_form(residuals, jacobian, tensor, batches, batch_size, lr)
    end = path.theta[-1]
    assert np.abs(end).max() > 0.1
    np.testing.assert_allclose(problem.residuals(end)[:, 0], z, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(problem.jacobian(end)[:, 0], J, rtol=1e-12, atol=1e-12)


def test_the_rate_is_a_scale_of_residuals_and_jacobian():
    residuals, jacobian, tensor = data(5, 8, seed=2)
    tensor, lr, n = 0.05 * tensor, 0.2, 5
    scale = lr / n
    ours = QuadraticRegression(residuals, jacobian, tensor)
    scaled = QuadraticRegression(scale * residuals, np.sqrt(scale) * jacobian, tensor)
    run = [
        eosim.run(problem, eosim.GradientDescent(rate), np.zeros(8), 20, batch_size=2, seed=1)
        for problem, rate in ((ours, lr), (scaled, n))
    ]
    for first, second in zip(run[0].theta, run[1].theta, strict=True):
        np.testing.assert_allclose(second, np.sqrt(scale) * first, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(
            n * scaled.ntk(second), lr * ours.ntk(first), rtol=1e-12, atol=1e-13
        )


def test_runs_beyond_the_edge_of_a_flat_problem_diverge_and_below_it_converge():
    _, jacobian, tensor = data(4, 6)
    problem = QuadraticRegression(np.ones(4), jacobian, 1e-6 * tensor)
    edge = 2 / np.linalg.eigvalsh(problem.ntk(np.zeros(6)))[-1]
    below = eosim.run(problem, eosim.GradientDescent(0.99 * edge), np.zeros(6), 2000)
    assert below["loss"][-1] < 1e-6 * below["loss"][0]
    above = eosim.run(problem, eosim.GradientDescent(1.05 * edge), np.zeros(6), 2000)
    assert max(above["loss"]) > 10 * above["loss"][0]


# --- many replicas at once ----------------------------------------------------------------------

RULES = (
    eosim.GradientDescent(0.1),
    eosim.HeavyBall(0.05, 0.8),
    eosim.Nesterov(0.05, 0.7),
    eosim.QuasiHyperbolic(0.1, 0.7, 0.4),
)


def small(n, dim, dtype="float64"):
    residuals, jacobian, tensor = data(n, dim, seed=2)
    return QuadraticRegression(residuals, jacobian / np.sqrt(dim), 0.1 * tensor, dtype)


def starts_of(n_replicas, dim):
    return 0.1 * rng(3).standard_normal((n_replicas, dim))


def stream(replica):
    return np.random.SeedSequence(5, spawn_key=(replica,))


def ensemble(problem, starts, n_steps=20, rules=RULES[0], **options):
    options = {"n_replicas": len(starts), "seed": 5, "keep": ("theta", "residuals")} | options
    return run_ensemble(problem, rules, starts, n_steps, **options)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("n", "dim"), [(6, 9), (7, 3), (1, 1)])
def test_a_compiled_replica_is_the_run_on_the_same_batches(n, dim, scheme, dtype):
    problem, starts = small(n, dim, dtype), starts_of(3, dim)
    sizes = [*sorted({1, min(4, n), n}), None]
    found = ensemble(problem, starts, 17, RULES, batch_sizes=sizes, sampling=scheme, every=5)
    assert {form for forms in found.settings["method"] for form in forms[:-1]} <= {
        "triangles",
        "products",
    }
    assert found.settings["method"][0][-1] == "products"
    for (i, rule), (j, size), r in itertools.product(
        enumerate(RULES), enumerate(sizes), range(len(starts))
    ):
        path = eosim.run(
            problem, rule, starts[r], 17, batch_size=size, sampling=scheme, seed=stream(r), every=5
        )
        last = path.final_state.theta
        np.testing.assert_array_equal(found.step, path.step)
        assert found.stop_step[i, j, r] == -1
        np.testing.assert_allclose(found["loss"][i, j, r], path["loss"], rtol=1e-12)
        np.testing.assert_allclose(found.final_theta[i, j, r], last, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(
            found.final_residuals[i, j, r], problem.residuals(last)[:, 0], rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("dim", [5, pytest.param(360, marks=pytest.mark.size)])
@pytest.mark.parametrize("size", [2, None])
def test_the_bits_of_a_replica_depend_on_nothing_but_its_start_and_stream(size, dim):
    """At dim 360 matrix products take more replicas each."""
    problem, starts = small(3, dim), starts_of(70, dim)
    problem = QuadraticRegression(
        problem.initial_residuals, problem.initial_jacobian, problem.tensor / dim
    )
    whole = ensemble(problem, starts, 6, batch_sizes=size, threads=1)
    assert np.isfinite(whole["loss"]).all()
    for count, threads, every in ((70, 3, 1), (70, 70, 6), (33, 2, 4), (5, 1, 3), (1, 1, 1)):
        part = ensemble(problem, starts[:count], 6, batch_sizes=size, threads=threads, every=every)
        np.testing.assert_array_equal(part.final_theta, whole.final_theta[:, :, :count])
        kept = np.isin(whole.step, part.step)
        np.testing.assert_array_equal(part["loss"], whole["loss"][:, :, :count, kept])


@pytest.mark.parametrize("size", [1, None])
@pytest.mark.parametrize("rule", RULES[:2])
def test_a_divergence_has_the_step_of_the_run_and_leaves_the_others_alone(rule, size):
    problem, starts = small(4, 5), starts_of(12, 5)
    calm = ensemble(problem, starts, 40, rule, batch_sizes=size)
    assert not calm.diverged.any()
    wild = starts.copy()
    wild[[2, 3, 7, 11]] *= [[900.0], [30.0], [1e5], [2e3]]
    found = ensemble(problem, wild, 40, rule, batch_sizes=size, every=7)
    assert 3 <= found.diverged.sum() <= 4
    for r, start in enumerate(wild):
        path = eosim.run(problem, rule, start, 40, batch_size=size, seed=stream(r), every=7)
        assert found.stop_step[0, 0, r] == (-1 if path.stop_step is None else path.stop_step)
        assert np.isfinite(found.final_theta[0, 0, r]).all()
        if path.stop_step is not None:
            assert (np.isinf(found["loss"][0, 0, r]) == (found.step >= path.stop_step)).all()
            np.testing.assert_allclose(
                found.final_theta[0, 0, r], path.final_state.theta, rtol=1e-9
            )
    same = (starts == wild).all(axis=1)
    np.testing.assert_array_equal(found.final_theta[:, :, same], calm.final_theta[:, :, same])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_blocks_of_batches_leave_no_seam(scheme, monkeypatch):
    problem, starts = small(4, 5), starts_of(5, 5)
    starts[2] *= 30.0
    options = {"rules": RULES, "n_steps": 90, "batch_sizes": [1, 3], "sampling": scheme, "every": 7}
    whole = ensemble(problem, starts, **options)
    monkeypatch.setattr(sampling, "_BLOCK_DRAWS", 16 * 4)
    parts = ensemble(problem, starts, **options)
    np.testing.assert_array_equal(parts.stop_step, whole.stop_step)
    np.testing.assert_array_equal(parts["loss"], whole["loss"])
    np.testing.assert_array_equal(parts.final_theta, whole.final_theta)


def test_one_path_stands_for_all_replicas_that_cannot_differ():
    problem = small(4, 5)
    found = run_ensemble(
        problem, RULES[:2], np.full(5, 0.1), 9, batch_sizes=[None, 4], n_replicas=3, seed=0
    )
    path = eosim.run(problem, RULES[0], np.full(5, 0.1), 9)
    np.testing.assert_array_equal(found["loss"][0], np.broadcast_to(path["loss"], (2, 3, 10)))


def test_other_records_rules_and_subclasses_take_the_generic_path():
    class Tilted(QuadraticRegression):
        def gradient(self, theta, batch=None):
            return super().gradient(theta, batch) + 1

    problem, starts = small(4, 5), starts_of(2, 5)
    tilted = Tilted(problem.initial_residuals, problem.initial_jacobian, problem.tensor)
    changes = [
        (problem, {"record": {"gradient": eosim.measure.gradient_norm}}),
        (problem, {"rules": eosim.DAL()}),
        (problem, {"method": "generic"}),
        (tilted, {}),
    ]
    for changed, options in changes:
        found = ensemble(changed, starts, 3, batch_sizes=2, **options)
        assert found.settings["method"] == [["generic"]]


@pytest.mark.parametrize("change", [{"method": "residual"}, {"method": "parameter"}])
def test_the_methods_of_linear_models_are_refused(change):
    with pytest.raises(ValueError, match="linear in theta"):
        ensemble(small(4, 5), starts_of(2, 5), batch_sizes=2, **change)


@pytest.mark.parametrize("size", [2, None])
@pytest.mark.parametrize("rule", [eosim.GradientDescent(0.5), eosim.HeavyBall(0.5, 0.1)])
def test_a_state_that_has_decayed_is_zero_and_never_subnormal(rule, size):
    """On all samples a step halves the state, and 2^-1024 is subnormal."""
    problem = QuadraticRegression(np.zeros(3), np.sqrt(3) * np.eye(3), np.ones((3, 3, 3)) / 100)
    found = ensemble(problem, 0.1 * np.ones((2, 3)), 1024, rule, batch_sizes=size, every=1024)
    np.testing.assert_array_equal(found.final_theta, 0)
    assert not found.diverged.any()


# --- bad input ----------------------------------------------------------------------------------

EYE = np.eye(2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: QuadraticRegression([], [[1.0]], [[[1.0]]]), ValueError, "initial_jacobian"),
        (lambda: QuadraticRegression([1.0], [1.0], [[[1.0]]]), ValueError, "must have shape"),
        (lambda: QuadraticRegression([1.0], np.zeros((1, 0)), []), ValueError, "not empty"),
        (lambda: QuadraticRegression([np.nan], [[1.0]], [[[1.0]]]), ValueError, "non-finite"),
        (lambda: QuadraticRegression([1.0], [[1.0, 2.0]], [[1.0, 2.0]]), ValueError, "triangles"),
        (lambda: QuadraticRegression([1.0], [[1.0, 2.0]], EYE), ValueError, "tensor must have"),
        (
            lambda: QuadraticRegression([1.0], [[1.0, 2.0]], [[[0, 1], [0, 0]]]),
            ValueError,
            r"tensor\[0\] must be symmetric",
        ),
        (
            lambda: QuadraticRegression([1.0, 1.0], EYE, [EYE, EYE + np.inf]),
            ValueError,
            r"tensor\[1\] has",
        ),
        (
            lambda: QuadraticRegression([1.0], [[1.0, 2.0]], np.full((1, 3), np.nan)),
            ValueError,
            r"tensor\[0\] has 3 non-finite",
        ),
        (lambda: QuadraticRegression([1.0], [[1.0]], [[1j]]), TypeError, "must be real"),
        (lambda: QuadraticRegression([1.0], [[1.0]], [[1.0]], "half"), ValueError, "dtype"),
        (lambda: random_quadratic_regression(0, 2, 0.1), ValueError, "n_samples"),
        (lambda: random_quadratic_regression(2, 2.0, 0.1), TypeError, "dim"),
        (lambda: random_quadratic_regression(2, 2, -0.1), ValueError, "sigma"),
        (lambda: random_quadratic_regression(2, 2, 0.1, ntk_max=0.0), ValueError, "ntk_max"),
        (lambda: random_quadratic_regression(2, 2, 0.1, dtype="half"), ValueError, "dtype"),
        (
            lambda: random_quadratic_regression(2, 2, 0.1, ntk_max=1.0, jacobian=EYE),
            ValueError,
            "ntk_max must be None",
        ),
        (
            lambda: random_quadratic_regression(2, 3, 0.1, jacobian=EYE),
            ValueError,
            r"jacobian must have shape \(2, 3\)",
        ),
        (lambda: jacobian_with_spectrum([], 3), ValueError, "eigenvalues must be 1 to dim"),
        (lambda: jacobian_with_spectrum([1.0, 2.0], 1), ValueError, "eigenvalues must be 1 to"),
        (lambda: jacobian_with_spectrum([-1.0], 3), ValueError, "must not be negative"),
    ],
)
def test_bad_input_is_refused_with_its_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_kernel_multiplies_by_every_symmetric_unit_matrix():
    from eosim._kernels.quadratic_regression import images, weighted_sum

    dim = 4
    rows, columns = np.tril_indices(dim)
    vectors = rng(1).standard_normal((3, dim))
    for j, k in itertools.product(range(dim), repeat=2):
        unit = np.zeros((dim, dim))
        unit[j, k] = unit[k, j] = 1
        packed = unit[rows, columns][None]
        found = images(packed, np.array([0, 0]), vectors)
        np.testing.assert_array_equal(found, [vectors @ unit] * 2)
        total = weighted_sum(packed, np.array([0, 0]), np.array([[2.0, 0.5]]))
        np.testing.assert_array_equal(total, 2.5 * packed)
