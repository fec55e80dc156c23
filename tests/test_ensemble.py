"""Ensembles of runs: every compiled form against `eosim.run`, and what the averages leave out."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse
import threadpoolctl

import eosim
from eosim import sampling
from eosim._threads import one_blas_thread
from eosim.ensemble import run_ensemble
from eosim.ensemble.linear import _aligned
from eosim.problems.frozen import frozen_ntk
from eosim.sampling import BatchStream, stream_key
from tests import naive
from tests.cases import SCHEMES, perceptron, regression

RULES = (
    eosim.GradientDescent(0.02),
    eosim.HeavyBall(0.01, 0.8),
    eosim.HeavyBall(0.02, 0.0),
    eosim.Nesterov(0.01, 0.7),
    eosim.EMAMomentum(0.05, 0.7),
    eosim.QuasiHyperbolic(0.05, 0.7, 0.4),
)
SEED = 3


def stream(*words):
    return np.random.SeedSequence(SEED, spawn_key=words)


def ensemble(problem, rules=RULES[:2], theta0=None, n_steps=20, **options):
    options = {"batch_sizes": [1, 3], "n_replicas": 3, "seed": SEED} | options
    if theta0 is None and "residuals0" not in options:
        theta0 = np.linspace(-1, 1, problem.dim)
    return run_ensemble(problem, rules, theta0, n_steps, **options)


def assert_equals_runs(result, problem, rules, sizes, starts, n_steps, scheme, every, tolerance):
    """Every replica against its own run; errors are relative to the size of the start."""
    for i, rule in enumerate(rules):
        for j, size in enumerate(sizes):
            for r, start in enumerate(starts):
                path = eosim.run(
                    problem, rule, start, n_steps, batch_size=size, sampling=scheme,
                    seed=stream(r), every=every,
                )  # fmt: skip
                np.testing.assert_array_equal(result.step, path.step)
                np.testing.assert_allclose(result.t[i], path.t, rtol=1e-15)
                np.testing.assert_allclose(
                    result["loss"][i, j, r], path["loss"], rtol=tolerance, atol=0
                )
                last = path.final_state.theta
                np.testing.assert_allclose(
                    result.final_theta[i, j, r], last, atol=tolerance * np.abs(start).max()
                )
                residuals = problem.residuals(last).ravel()
                np.testing.assert_allclose(
                    result.final_residuals[i, j, r],
                    residuals,
                    atol=tolerance * abs(residuals).max(),
                )


# --- the same trajectories as a run --------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", ["residual", "parameter"])
@pytest.mark.parametrize(("n", "d"), [(9, 14), (14, 4), (3, 2), (1, 2)])
def test_a_compiled_replica_is_the_run_on_the_same_batches(n, d, method, scheme):
    problem = regression(n, d, seed=4)
    sizes = [*sorted({1, 2, 3, min(5, n), n} & set(range(1, n + 1))), None]
    start = np.random.default_rng(0).standard_normal(d)
    result = ensemble(
        problem, RULES, start, 23, batch_sizes=sizes, sampling=scheme, every=7,
        keep=("theta", "residuals"), method=method, n_replicas=2,
    )  # fmt: skip
    assert_equals_runs(result, problem, RULES, sizes, [start] * 2, 23, scheme, 7, 1e-12)
    for forms in result.settings["method"]:
        assert forms[-1] == "modal"
        assert set(forms[:-1]) <= {method, "modal", "residual_shared"}


@pytest.mark.parametrize(("n", "d"), [(6, 9), (12, 3)])
def test_replicas_may_start_at_points_of_their_own(n, d):
    problem = regression(n, d, seed=1)
    starts = np.random.default_rng(1).standard_normal((4, d))
    sizes = [2, n, None]
    result = ensemble(
        problem, RULES[:3], starts, 15, batch_sizes=sizes, n_replicas=4, every=4,
        keep=("theta", "residuals"),
    )  # fmt: skip
    assert_equals_runs(
        result, problem, RULES[:3], sizes, starts, 15, "without_replacement", 4, 1e-12
    )


def test_the_generic_path_gives_the_bits_of_a_run():
    problem, start = perceptron(), np.linspace(-1, 1, 13)
    rules = [eosim.HeavyBall(0.1, 0.5), eosim.DAL()]
    record = {"loss": eosim.measure.loss, "sharpness": eosim.measure.sharpness}
    result = ensemble(
        problem, rules, start, 9, batch_sizes=[2, None], record=record, every=4, keep=("theta",)
    )
    assert result.t is None  # DAL chooses its step sizes
    for (i, rule), (j, size), r in itertools.product(
        enumerate(rules), enumerate([2, None]), range(3)
    ):
        path = eosim.run(
            problem, rule, start, 9, batch_size=size, seed=stream(r), record=record, every=4
        )
        np.testing.assert_array_equal(result["loss"][i, j, r], path["loss"])
        np.testing.assert_array_equal(result["sharpness"][i, j, r], path["sharpness"])
        np.testing.assert_array_equal(result.final_theta[i, j, r], path.final_state.theta)


def test_generic_and_compiled_paths_agree_on_what_they_keep():
    problem = regression(8, 5)
    generic = ensemble(problem, method="generic", keep=("theta", "residuals"))
    compiled = ensemble(problem, keep=("theta", "residuals"))
    np.testing.assert_allclose(compiled.final_theta, generic.final_theta, atol=1e-13)
    np.testing.assert_allclose(compiled.final_residuals, generic.final_residuals, atol=1e-13)
    np.testing.assert_allclose(compiled["loss"], generic["loss"], rtol=1e-12)


def test_sparse_inputs_and_fixed_features_are_compiled_too():
    dense = regression(8, 12)
    sparse = eosim.LinearRegression(scipy.sparse.csr_array(dense.inputs), dense.targets)
    np.testing.assert_allclose(ensemble(sparse)["loss"], ensemble(dense)["loss"], rtol=1e-12)
    assert ensemble(sparse).settings["method"] == [["residual"] * 2] * 2

    class Holder:
        """A model that holds the least squares that it is."""

        regression = dense
        dim, n_samples = dense.dim, dense.n_samples
        loss, gradient = dense.loss, dense.gradient

    np.testing.assert_array_equal(ensemble(Holder())["loss"], ensemble(dense)["loss"])


@dataclass(frozen=True, eq=False)
class Ridge(eosim.LinearRegression):
    """A subclass whose gradient is another one."""

    def gradient(self, theta, batch=None):
        return super().gradient(theta, batch) + theta


@dataclass(frozen=True)
class HalfStep(eosim.GradientDescent):
    """A subclass of a rule that steps differently."""

    def step(self, theta, state, gradient):
        return theta - self.lr / 2 * gradient, state


def test_subclasses_take_the_generic_path():
    data = regression(8, 5)
    ridge = Ridge(data.inputs, data.targets)
    for result in (ensemble(ridge), ensemble(data, [HalfStep(0.1)])):
        assert {form for row in result.settings["method"] for form in row} == {"generic"}
    path = eosim.run(data, HalfStep(0.1), np.linspace(-1, 1, 5), 20, batch_size=1, seed=stream(0))
    np.testing.assert_array_equal(ensemble(data, [HalfStep(0.1)])["loss"][0, 0, 0], path["loss"])


def test_two_outputs_take_the_generic_path():
    problem = regression(8, 3, n_outputs=2)
    result = ensemble(problem, keep="residuals")
    assert result.settings["method"] == [["generic"] * 2] * 2
    assert result.final_residuals.shape == (2, 2, 3, 16)


# --- the frozen NTK ------------------------------------------------------------------------------


def test_the_frozen_ntk_moves_the_residuals_by_theta_times_the_masked_residuals():
    n, size, lr = 6, 2, 0.1
    factor = np.random.default_rng(0).standard_normal((n, 4))  # a singular NTK
    ntk, z = factor @ factor.T / n, np.random.default_rng(1).standard_normal(n)
    result = run_ensemble(
        frozen_ntk(ntk, z), eosim.GradientDescent(lr), np.zeros(n), 12, batch_sizes=size,
        n_replicas=2, seed=SEED, keep="residuals",
    )  # fmt: skip
    for r in range(2):
        expected, losses = z, [z @ z / (2 * n)]
        key = eosim.sampling.stream_key(stream(r))
        for step in range(12):
            mask = np.zeros(n)
            mask[naive.batch("without_replacement", key, step, n, size)] = 1
            expected = expected - lr * ntk @ (n / size * mask * expected)
            losses.append(expected @ expected / (2 * n))
        np.testing.assert_allclose(result.final_residuals[0, 0, r], expected, atol=1e-13)
        np.testing.assert_allclose(result["loss"][0, 0, r], losses, rtol=1e-12)


def test_residuals_may_be_given_instead_of_parameters():
    problem = regression(7, 5)
    thetas = np.random.default_rng(0).standard_normal((3, 5))
    residuals = np.array([problem.residuals(theta)[:, 0] for theta in thetas])
    sizes = [2, None]
    given = ensemble(problem, residuals0=residuals, batch_sizes=sizes, keep="residuals")
    known = ensemble(problem, theta0=thetas, batch_sizes=sizes, keep="residuals")
    np.testing.assert_allclose(given["loss"], known["loss"], rtol=1e-12)
    np.testing.assert_allclose(given.final_residuals, known.final_residuals, atol=1e-13)
    shared = ensemble(problem, residuals0=residuals[0], batch_sizes=sizes)
    # one start and three go through different matrix products: last bits may differ
    np.testing.assert_allclose(shared["loss"][:, :, 0], given["loss"][:, :, 0], rtol=1e-13)


def test_second_moments_over_replicas_are_those_of_the_exact_recursion():
    """S' = (1 - eta Theta) S (1 - eta Theta) + eta^2 kappa Theta (n Diag(S) - S) Theta."""
    n, size, lr, n_steps, n_replicas = 5, 2, 0.15, 4, 4000
    factor = np.random.default_rng(2).standard_normal((n, 7))
    ntk, z = factor @ factor.T / n, np.random.default_rng(3).standard_normal(n)
    result = run_ensemble(
        frozen_ntk(ntk, z), eosim.GradientDescent(lr), np.zeros(n), n_steps, batch_sizes=size,
        n_replicas=n_replicas, seed=0, keep="residuals", every=n_steps,
    )  # fmt: skip
    S, drift, kappa = np.outer(z, z), np.eye(n) - lr * ntk, (n - size) / (size * (n - 1))
    for _ in range(n_steps):
        noise = ntk @ (n * np.diag(np.diag(S)) - S) @ ntk
        S = drift @ S @ drift + lr**2 * kappa * noise
    final = result.final_residuals[0, 0]
    products = final[:, :, None] * final[:, None, :]
    error = products.std(axis=0) / np.sqrt(n_replicas)
    z_scores = (products.mean(axis=0) - S) / error
    assert np.abs(z_scores).max() < 4.5  # of 15 entries
    assert np.abs(S - drift @ np.outer(z, z) @ drift).max() > 10 * error.max()  # noise is seen


# --- draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", ["residual", "parameter"])
def test_blocks_of_batches_leave_no_seam(scheme, method, monkeypatch):
    rules = [eosim.GradientDescent(0.3), eosim.GradientDescent(40.0), eosim.HeavyBall(0.1, 0.8)]
    options = {
        "rules": rules, "batch_sizes": [1, 3, 10], "n_replicas": 3, "n_steps": 150, "every": 7,
        "sampling": scheme, "method": method, "keep": ("theta", "residuals"),
    }  # fmt: skip
    whole = ensemble(regression(11, 20), **options)
    assert (whole.stop_step[1] > 16).any()  # behind the first seam
    monkeypatch.setattr(sampling, "_BLOCK_DRAWS", 16 * 11)
    assert sampling.streams_at_once(11, 10, scheme) == 1
    parts = ensemble(regression(11, 20), **options)
    np.testing.assert_array_equal(parts.stop_step, whole.stop_step)
    np.testing.assert_array_equal(parts["loss"], whole["loss"])
    np.testing.assert_array_equal(parts.final_theta, whole.final_theta)
    np.testing.assert_array_equal(parts.final_residuals, whole.final_residuals)


@pytest.mark.parametrize("problem", [regression(11, 20), perceptron()], ids=["compiled", "generic"])
def test_a_replica_does_not_depend_on_how_many_there_are(problem):
    starts = np.random.default_rng(0).standard_normal((70, problem.dim))
    most = 70 if problem.dim == 20 else 5
    options = {"n_steps": 8, "batch_sizes": [1, None], "keep": ("theta", "residuals")}
    for shared in (True, False):
        few, many = (
            ensemble(problem, theta0=starts[0] if shared else starts[:k], n_replicas=k, **options)
            for k in (3, most)
        )
        np.testing.assert_array_equal(many["loss"][:, :, :3], few["loss"])
        np.testing.assert_array_equal(many.final_theta[:, :, :3], few.final_theta)
        np.testing.assert_array_equal(many.final_residuals[:, :, :3], few.final_residuals)


def test_threads_and_their_tasks_change_no_bit():
    problem, starts = regression(11, 20), np.random.default_rng(0).standard_normal((9, 20))
    options = {"theta0": starts, "n_replicas": 9, "batch_sizes": [1, 4, None], "keep": "theta"}
    one = ensemble(problem, threads=1, **options)
    for threads in (2, 3, 16):
        other = ensemble(problem, threads=threads, **options)
        np.testing.assert_array_equal(other["loss"], one["loss"])
        np.testing.assert_array_equal(other.final_theta, one.final_theta)


@pytest.mark.parametrize("method", ["residual", "parameter"])
def test_how_often_is_recorded_changes_no_bit(method):
    problem = regression(11, 20)
    options = {"batch_sizes": [1, 2, 3, 9], "n_steps": 75, "keep": "theta", "method": method}
    often = ensemble(problem, **options)
    seldom = ensemble(problem, every=10, **options)
    np.testing.assert_array_equal(seldom.step, [0, 10, 20, 30, 40, 50, 60, 70, 75])
    np.testing.assert_array_equal(seldom["loss"], often["loss"][..., seldom.step])
    np.testing.assert_array_equal(seldom.final_theta, often.final_theta)


def test_the_same_seed_repeats_and_another_does_not():
    problem = regression(11, 20)
    first, again, other = (ensemble(problem, seed=seed)["loss"] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.any(first[..., 1:] == other[..., 1:])
    sequence = ensemble(problem, seed=np.random.SeedSequence(5))
    np.testing.assert_array_equal(sequence["loss"], first)
    assert sequence.settings["seed"] == {"entropy": 5, "spawn_key": []}


def test_rules_share_batches_unless_they_are_told_not_to():
    problem, rules = regression(11, 20), [RULES[0]] * 2
    together = ensemble(problem, rules)["loss"]
    np.testing.assert_array_equal(together[0], together[1])
    apart = ensemble(problem, rules, shared_batches=False)["loss"]
    assert not np.any(apart[0, ..., 1:] == apart[1, ..., 1:])
    start = np.linspace(-1, 1, 20)
    path = eosim.run(problem, rules[1], start, 20, batch_size=3, seed=stream(2, 1))
    np.testing.assert_allclose(apart[1, 1, 2], path["loss"], rtol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("n", [1, 9, 70])
def test_rates_that_share_their_batches_have_the_bits_of_each_alone(n, scheme):
    problem, generator = regression(n, 2 * n, seed=4), np.random.default_rng(5)
    sizes = [size for size in (1, 3, 20) if size < n] or [1]
    # An odd number of rates; some diverge at once, some later.
    rules = [eosim.GradientDescent(x) for x in (1e-3, 0.02, 50.0, 0.3, 1e-3, 0.5, 2.0)]
    options = {"batch_sizes": sizes, "sampling": scheme, "every": 7, "method": "residual"}
    options |= {"keep": ("theta", "residuals"), "shared_batches": True, "n_replicas": 3}
    starts = generator.standard_normal((3, problem.dim))
    together = ensemble(problem, rules, starts, 90, **options)
    for r, rule in enumerate(rules):
        alone = ensemble(problem, rule, starts, 90, **options)
        np.testing.assert_array_equal(together["loss"][r], alone["loss"][0])
        np.testing.assert_array_equal(together.stop_step[r], alone.stop_step[0])
        np.testing.assert_array_equal(together.final_theta[r], alone.final_theta[0])
        np.testing.assert_array_equal(together.final_residuals[r], alone.final_residuals[0])
    if n > 1:
        stops = together.stop_step
        assert {form for forms in together.settings["method"] for form in forms} == {
            "residual_shared"
        }
        assert (stops < 0).any()
        assert (stops >= 0).any()


@pytest.mark.parametrize("size", [1, 10])
def test_a_kernel_kept_in_single_precision_gives_the_losses_to_its_precision(size):
    problem = regression(30, 50)
    lr = 0.5 * eosim.stability.critical_lr(
        eosim.stability.tangent_kernel(problem, np.zeros(50)), size
    )
    results = [
        ensemble(
            problem, eosim.GradientDescent(lr), n_steps=500, batch_sizes=size, storage=storage,
            method="residual", every=50,
        )
        for storage in ("float64", "float32")
    ]  # fmt: skip
    exact, single = (result["loss"] for result in results)
    assert [result.settings["storage"] for result in results] == ["float64", "float32"]
    difference = np.abs(single / exact - 1)
    assert difference.max() < 500 * 2.0**-24
    assert difference[..., -1].min() > 1e-12  # it is kept in single precision


@pytest.mark.parametrize("n", [1, 7, 16, 500, 512])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rows_for_kernels_start_on_cache_lines_and_end_in_zeros(n, dtype):
    rows = np.random.default_rng(0).standard_normal((2, 3, n)).astype(dtype)
    padded = _aligned(rows)
    assert padded.dtype == dtype
    assert padded.flags.c_contiguous
    assert padded.ctypes.data % 64 == 0
    assert padded.strides[1] % 64 == 0
    assert padded.strides[1] % 4096 != 0
    np.testing.assert_array_equal(padded[..., :n], rows)
    assert not padded[..., n:].any()


def test_all_samples_leave_no_rounding_behind_that_never_decays():
    inputs = np.random.default_rng(0).standard_normal((100, 10))
    problem = eosim.LinearRegression(inputs, np.zeros(100))
    result = ensemble(
        problem, eosim.GradientDescent(0.9), np.ones((3, 10)), 400, batch_sizes=100, every=100
    )
    assert result.settings["method"] == [["modal"]]
    losses = result["loss"][0, 0]
    assert (losses[:, 1:] < 1e-20 * losses[:, :-1]).all()


def test_blas_has_one_thread_while_anybody_is_inside_and_then_what_it_had():
    def threads():
        return [library["num_threads"] for library in threadpoolctl.threadpool_info()]

    before = threads()
    first, second = one_blas_thread(), one_blas_thread()
    with threadpoolctl.threadpool_limits(2):
        outside = threads()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)  # in this order, as threads may
        inside = [
            library["num_threads"]
            for library in threadpoolctl.threadpool_info()
            if library["user_api"] == "blas"
        ]
        second.__exit__(None, None, None)
        assert inside
        assert set(inside) == {1}
        assert threads() == outside
    assert threads() == before


def test_one_path_stands_for_all_replicas_that_cannot_differ():
    problem = regression(6, 9)
    for n_steps in (2, 12):  # by steps, and by modes
        result = ensemble(problem, batch_sizes=[6, None], n_steps=n_steps, keep="theta")
        assert np.ptp(result["loss"], axis=2).max() == 0
        assert np.ptp(result.final_theta, axis=2).max() == 0
        np.testing.assert_array_equal(result["loss"][:, 0], result["loss"][:, 1])
        assert result["loss"].shape == (2, 2, 3, n_steps + 1)


# --- divergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [eosim.GradientDescent(4.0), eosim.HeavyBall(2.0, 0.5)])
@pytest.mark.parametrize("every", [1, 50])
def test_a_divergence_has_the_step_of_the_run(rule, every):
    problem = regression(7, 4)
    options = {"batch_sizes": [1, 3], "n_steps": 900, "every": every, "keep": "theta"}
    result = ensemble(problem, rule, method="parameter", **options)
    generic = ensemble(problem, rule, method="generic", **options)
    assert generic.diverged.all()
    np.testing.assert_array_equal(result.stop_step, generic.stop_step)
    np.testing.assert_array_equal(np.isinf(result["loss"]), np.isinf(generic["loss"]))
    np.testing.assert_array_equal(result.survivors, generic.survivors)
    # Relative errors of a growing state grow with the steps, not with its size.
    scale = np.abs(generic.final_theta).max()
    assert np.abs(result.final_theta - generic.final_theta).max() < 1e-11 * scale


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("rule", [eosim.GradientDescent(4.0), eosim.HeavyBall(2.0, 0.5)])
def test_in_residual_space_the_first_norm_beyond_the_bound_ends_a_replica(rule, size):
    problem, start = regression(7, 9), np.linspace(-1, 1, 9)
    options = {"batch_sizes": size, "n_steps": 400, "keep": ("theta", "residuals")}
    result = ensemble(problem, rule, start, method="residual", **options)
    bound = 1e30 * (1 + np.linalg.norm(problem.residuals(start)))
    for r in range(3):
        theta, state, norms = start, rule.init(start), []
        for batch in BatchStream(7, size, SCHEMES[0], stream_key(stream(r))).batches(0, 400):
            norms.append(np.linalg.norm(problem.residuals(theta)))
            last = theta
            theta, state = rule.step(theta, state, problem.gradient(theta, batch))
            if np.linalg.norm(problem.residuals(theta)) > bound:
                break
        stop = len(norms)
        assert 0 < stop < 400
        assert result.stop_step[0, 0, r] == stop
        losses = result["loss"][0, 0, r]
        np.testing.assert_allclose(losses[:stop], np.square(norms) / 14, rtol=1e-11)
        assert np.isinf(losses[stop:]).all()
        scale = np.abs(last).max()
        assert np.abs(result.final_theta[0, 0, r] - last).max() < 1e-11 * scale
        residuals = problem.residuals(last)[:, 0]
        assert np.abs(result.final_residuals[0, 0, r] - residuals).max() < 1e-11 * norms[-1]
    seldom = ensemble(problem, rule, start, method="residual", **options, every=400)
    np.testing.assert_array_equal(seldom.stop_step, result.stop_step)
    np.testing.assert_array_equal(seldom.final_theta, result.final_theta)


def test_a_jump_from_small_to_infinite_is_a_divergence():
    problem = eosim.LinearRegression([[1e149, 1.0], [1.0, 1e149]], [1.0, 2.0])
    rules = [eosim.GradientDescent(1.0), eosim.HeavyBall(1.0, 0.5)]
    for method in ("residual", "parameter"):
        result = ensemble(
            problem, rules, np.zeros(2), batch_sizes=[1, 2], method=method, keep="residuals"
        )
        assert (result.stop_step == 1).all()
        np.testing.assert_array_equal(result.final_residuals[:, :, 0], [[[-1, -2]] * 2] * 2)
        assert result.settings["method"] == [[method, "modal"]] * 2
    huge = eosim.LinearRegression([[1e200], [1.0]], [1.0, 2.0])  # whose K is no number
    result = ensemble(huge, rules, np.zeros(1), batch_sizes=[1, 2])
    assert result.settings["method"] == [["generic"] * 2] * 2


def test_diverged_replicas_leave_the_survivors_and_rank_highest():
    # One sample of curvature 1 and one of 5 at lr 1: a replica grows by 4 or shrinks to 0 by chance.
    problem = eosim.LinearRegression(np.diag([1.0, np.sqrt(5.0)]), np.zeros(2))
    result = run_ensemble(
        problem, eosim.GradientDescent(1.0), np.ones(2), 106, batch_sizes=1, n_replicas=40, seed=1
    )
    diverged = result.diverged[0, 0]
    assert 5 < diverged.sum() < 40
    assert result.status is eosim.Status.DIVERGED
    assert f"{diverged.sum()} of 40 replicas" in result.message
    assert f"first at step {result.stop_step[0, 0][diverged].min()}" in result.message
    np.testing.assert_array_equal(
        result.survivors[0, 0],
        [sum(stop < 0 or stop > step for stop in result.stop_step[0, 0]) for step in result.step],
    )
    left = result["loss"][0, 0][~diverged, -1]
    assert result.survivors[0, 0, -1] == len(left)
    assert result.survivor_mean()[0, 0, -1] == pytest.approx(left.mean(), rel=1e-14)
    expected = left.std(ddof=1) / np.sqrt(len(left))
    assert result.survivor_standard_error()[0, 0, -1] == pytest.approx(expected, rel=1e-13)
    geometric = np.exp(np.log(left).mean())
    assert result.survivor_log_mean()[0, 0, -1] == pytest.approx(geometric, rel=1e-13)
    share = diverged.mean()
    assert np.isinf(result.quantile(1.0)[0, 0, -1])
    assert np.isinf(result.quantile(1 - share / 2)[0, 0, -1])
    assert np.isfinite(result.quantile((1 - share) / 2)[0, 0, -1])


def test_quantiles_of_survivors_are_those_of_numpy():
    result = ensemble(regression(8, 12), n_replicas=6)
    for q in (0.0, 0.1, 0.5, 0.77, 1.0):
        np.testing.assert_allclose(
            result.quantile(q), np.quantile(result["loss"], q, axis=2), rtol=1e-14
        )
    np.testing.assert_array_equal(result.median(), result.quantile(0.5))


def test_where_nobody_survives_every_average_is_infinite():
    result = ensemble(regression(7, 9), eosim.GradientDescent(1e3), n_steps=200)
    assert result.survivors[..., -1].max() == 0
    for values in (
        result.survivor_mean(),
        result.survivor_standard_error(),
        result.survivor_log_mean(),
        result.median(),
    ):
        assert np.isinf(values[..., -1]).all()
        assert np.isfinite(values[..., 0]).all()
    single = ensemble(regression(7, 9), n_replicas=1)
    assert np.isinf(single.survivor_standard_error()).all()
    assert np.isfinite(single.survivor_mean()).all()


def test_a_complete_ensemble_says_so():
    result = ensemble(regression(7, 9))
    assert result.status is eosim.Status.COMPLETED
    assert result.message == "completed: all 12 replicas made 20 steps"
    assert (result.stop_step == -1).all()
    assert repr(result).startswith("Ensemble(COMPLETED, 2 rules x 2 batch sizes x 3 replicas")
    assert result.final_theta is None
    assert result.final_residuals is None
    with pytest.raises(KeyError, match="no record named 'sharpness'; this ensemble has: loss"):
        result["sharpness"]


def test_no_steps_leave_the_start():
    result = ensemble(regression(7, 9), n_steps=0, keep="theta")
    assert result["loss"].shape == (2, 2, 3, 1)
    np.testing.assert_array_equal(result.final_theta[1, 1, 2], np.linspace(-1, 1, 9))


def test_records_of_several_numbers_keep_their_shape_and_can_be_averaged():
    problem = perceptron()
    record = {"theta_copy": lambda problem, theta: theta}
    result = ensemble(problem, record=record)
    assert result["theta_copy"].shape == (2, 2, 3, 21, 13)
    expected = result["theta_copy"].mean(axis=2)
    np.testing.assert_allclose(result.survivor_mean("theta_copy"), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("rule", [eosim.GradientDescent(0.2), eosim.HeavyBall(0.2, 0.3)])
def test_a_state_that_has_decayed_is_zero_and_never_subnormal(rule):
    problem = eosim.LinearRegression(np.sqrt(2) * np.eye(2), np.zeros(2))
    for method in ("residual", "parameter"):
        result = run_ensemble(
            problem, rule, np.ones(2), 4000, batch_sizes=[1, None], n_replicas=2, seed=0, every=64,
            method=method, keep="residuals",
        )  # fmt: skip
        assert (result["loss"][..., -1] == 0).all()
        assert (result.final_residuals == 0).all()


# --- bad input -----------------------------------------------------------------------------------

DATA = regression(6, 2)
BAD = [
    ({"rules": []}, ValueError, "rules must hold at least one rule"),
    ({"rules": eosim.GradientDescent}, TypeError, "rule must be an instance, got the class"),
    ({"theta0": np.zeros(3)}, ValueError, r"theta0 must have shape \(2,\) or .* got \(3,\)"),
    ({"theta0": np.zeros((2, 2))}, ValueError, r"\(n_replicas, 2\) = \(3, 2\), got \(2, 2\)"),
    ({"theta0": [np.nan, 1.0]}, ValueError, "theta0 has 1 non-finite entry"),
    ({"n_steps": -1}, ValueError, "n_steps must be an integer >= 0, got -1"),
    ({"n_replicas": 0}, ValueError, "n_replicas must be an integer >= 1, got 0"),
    ({"every": 0}, ValueError, "every must be an integer >= 1, got 0"),
    ({"threads": 0}, ValueError, "threads must be an integer >= 1, got 0"),
    ({"batch_sizes": []}, ValueError, "batch_sizes must hold at least one size or None"),
    ({"batch_sizes": [1, 7]}, ValueError, "batch_sizes must be at most n_samples = 6, got 7"),
    ({"batch_sizes": 0}, ValueError, "batch_sizes must be an integer >= 1, got 0"),
    ({"batch_sizes": 2.0}, TypeError, "batch_sizes must be an integer >= 1, got 2.0"),
    ({"sampling": "shuffled"}, ValueError, "sampling must be one of 'without_replacement'"),
    ({"method": "fast"}, ValueError, "method must be one of 'auto', 'generic'"),
    ({"keep": ["loss"]}, ValueError, "keep must be one of 'theta', 'residuals'; got 'loss'"),
    ({"seed": -1}, ValueError, "seed must be an integer >= 0, got -1"),
    ({"seed": 0.5}, TypeError, "seed must be an integer >= 0, got 0.5"),
    ({"record": [eosim.measure.loss]}, TypeError, "record must map names to measurements"),
    ({"problem": eosim.Quadratic(np.eye(2))}, TypeError, "Quadratic has no n_samples"),
    ({"residuals0": np.ones(6)}, ValueError, "exactly one of theta0 and residuals0"),
    ({"theta0": None}, ValueError, "exactly one of theta0 and residuals0"),
    (
        {"theta0": None, "residuals0": np.ones(6), "keep": "theta"},
        ValueError,
        "residuals0 must come without 'theta' in keep: there is no theta to start from",
    ),
    (
        {"theta0": None, "residuals0": np.ones(6), "method": "parameter"},
        ValueError,
        "residuals0 must come without method='parameter'",
    ),
    (
        {"theta0": None, "residuals0": np.ones(6), "method": "generic"},
        ValueError,
        "residuals0 needs a problem that is linear in theta",
    ),
    (
        {"rules": eosim.DAL(), "method": "residual"},
        ValueError,
        "method 'residual' needs a problem .* got LinearRegression with DAL",
    ),
]


@pytest.mark.parametrize(("change", "exception", "words"), BAD)
def test_bad_input_is_refused_by_name(change, exception, words):
    arguments = {
        "problem": DATA, "rules": RULES[0], "theta0": np.zeros(2), "n_steps": 2,
        "batch_sizes": 1, "n_replicas": 3, "seed": 0,
    } | change  # fmt: skip
    with pytest.raises(exception, match=words):
        run_ensemble(**arguments)


@pytest.mark.parametrize(
    ("q", "exception"), [(-0.1, ValueError), (1.5, ValueError), ("half", TypeError)]
)
def test_a_quantile_lies_between_0_and_1(q, exception):
    with pytest.raises(exception, match="q must be"):
        ensemble(DATA).quantile(q)


@pytest.mark.parametrize(
    ("ntk", "residuals", "words"),
    [
        ([[1.0, 2.0], [0.0, 1.0]], [1.0, 1.0], "ntk must be symmetric"),
        ([[1.0, 2.0], [2.0, 1.0]], [1.0, 1.0], "ntk must be positive semi-definite"),
        (-np.eye(2), [1.0, 1.0], "eigenvalues run from -1 to -1"),
        (np.eye(2), [1.0], r"residuals must have shape \(2,\)"),
    ],
)
def test_a_frozen_ntk_is_a_kernel(ntk, residuals, words):
    with pytest.raises(ValueError, match=words):
        frozen_ntk(ntk, residuals)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_single_precision_is_refused_where_it_cannot_hold_the_kernel(size):
    problem = eosim.LinearRegression([[size], [2 * size]], [1.0, 2.0])
    options = {"batch_sizes": 1, "method": "residual", "storage": "float32"}
    with pytest.raises(ValueError, match=r"storage must be 'float64'.*float32"):
        ensemble(problem, eosim.GradientDescent(0.1 / size**2), np.zeros(1), **options)


def test_a_replica_whose_loss_becomes_nan_is_no_survivor():
    def loss(theta):
        return np.log(theta[0]) if theta[0] > 0 else np.nan

    problem = eosim.from_functions(
        loss, lambda theta: 1 / theta if theta[0] > 0 else -np.ones(1), dim=1, at=[1.0]
    )
    rule = eosim.GradientDescent(0.4)
    path = eosim.run(problem, rule, [1.0], 10)
    result = ensemble(problem, rule, np.ones(1), 10, batch_sizes=None)
    assert path.stop_step is not None
    assert (result.stop_step == path.stop_step).all()
    assert "nan" in result.message
