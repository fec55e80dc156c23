"""Continuous companions of SGD: the Ornstein-Uhlenbeck process and the shuffled epoch."""

import itertools

import mpmath
import numpy as np
import pytest
from scipy.linalg import logm, solve_continuous_lyapunov

import eosim
from eosim.flows.stochastic import OrnsteinUhlenbeck, ShuffledEpochLoss
from tests import naive
from tests.cases import perceptron, regression, symmetric


def covariances(hessian, noise, lr, n_steps, initial=0.0):
    """SGD's own recursion, C' = (I - hH) C (I - hH) + h^2 S."""
    step = np.eye(len(hessian)) - lr * hessian
    result = [initial * np.eye(len(hessian))]
    for _ in range(n_steps):
        result.append(step @ result[-1] @ step + lr**2 * noise)
    return np.array(result)


def noise_of(dim, seed, rank=None):
    factor = np.random.default_rng(seed).standard_normal((dim, rank or dim))
    return factor @ factor.T / dim


SPECTRA = {
    "positive": [0.9, 0.5, 0.1],
    "flat": [0.8, 0.0, 0.0],
    "saddle": [0.7, 0.2, -0.6],
    "q is 1": [0.5, -1.0, 0.1],  # (1 - .5)(1 + 1) = 1
    "tiny": [1e-12, 1e-7, 0.3],
    "near 1": [1 - 1e-9, 0.4, 0.2],
    "one": [0.4],
}


@pytest.mark.parametrize("initial", [0.0, 0.3])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_covariance_is_that_of_sgd_at_every_step(name, initial):
    lr, spectrum = 0.4, np.array(SPECTRA[name])
    dim = len(spectrum)
    hessian, noise = symmetric(spectrum / lr, 1), noise_of(dim, 2)
    process = OrnsteinUhlenbeck(hessian, lr, noise)
    expected = covariances(hessian, noise, lr, 12, initial)
    start = None if initial == 0 else initial * np.eye(dim)
    actual = process.covariance(lr * np.arange(13), start)
    for ours, theirs in zip(actual, expected, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-12 * max(np.abs(theirs).max(), 1e-30)
        np.testing.assert_allclose(ours, ours.T, rtol=1e-12, atol=1e-15)


def test_q_of_1_is_hit_exactly_in_the_plane():
    # A diagonal Hessian keeps the eigenvalues exact: log q is rounding, or 0.
    lr, hessian, noise = 1.0, np.diag([0.5, -1.0]), np.array([[1.0, 0.4], [0.4, 2.0]])
    actual = OrnsteinUhlenbeck(hessian, lr, noise).covariance(np.arange(6.0))
    np.testing.assert_allclose(actual, covariances(hessian, noise, lr, 5), rtol=1e-13)
    np.testing.assert_allclose(actual[:, 0, 1], 0.4 * np.arange(6), rtol=1e-13)


def test_drift_and_diffusion_are_those_of_the_formula():
    lr, spectrum = 0.5, np.array([1.2, 0.6, -0.4])
    hessian, noise = symmetric(spectrum, 3), noise_of(3, 4)
    process = OrnsteinUhlenbeck(hessian, lr, noise)
    np.testing.assert_allclose(process.drift, logm(np.eye(3) - lr * hessian) / lr, atol=1e-12)
    values, vectors = np.linalg.eigh(hessian)
    inside, expected = vectors.T @ noise @ vectors, np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            q = (1 - lr * values[i]) * (1 - lr * values[j])
            expected[i, j] = lr * inside[i, j] * np.log(q) / (q - 1)
    np.testing.assert_allclose(process.diffusion, vectors @ expected @ vectors.T, rtol=1e-11)
    # independent of the eigenbasis: the rate equation A C + C A + D = dC/dt of one step's integral
    lyapunov = solve_continuous_lyapunov(process.drift, -process.diffusion)
    step = np.eye(3) - lr * hessian
    np.testing.assert_allclose(
        lyapunov - step @ lyapunov @ step, lr**2 * noise, rtol=1e-9, atol=1e-12
    )


def test_between_steps_the_covariance_solves_its_rate_equation():
    lr, hessian, noise = 0.5, symmetric([1.2, 0.0, -0.4], 3), noise_of(3, 4)
    process = OrnsteinUhlenbeck(hessian, lr, noise)
    t, step = 0.33, 1e-5
    before, middle, after = process.covariance([t - step, t, t + step], noise)
    rate = process.drift @ middle + middle @ process.drift + process.diffusion
    np.testing.assert_allclose((after - before) / (2 * step), rate, rtol=1e-7, atol=1e-9)


def test_the_mean_is_the_principal_flow():
    lr, hessian = 0.5, symmetric([1.2, 0.3, 0.0, -0.4], 3)
    process = OrnsteinUhlenbeck(hessian, lr, np.eye(4))
    start, times = np.array([1.0, -2.0, 0.5, 3.0]), np.array([0.0, 0.3, 0.5, 1.0, 4.0])
    flow = eosim.PrincipalFlow(eosim.Quadratic(hessian), lr)
    expected = eosim.closed_form(flow, start, times)
    assert process.mean(start, times).shape == (5, 4)
    np.testing.assert_allclose(process.mean(start, times), expected.real, rtol=1e-12, atol=1e-13)


def test_samples_have_the_mean_and_the_covariance():
    lr, hessian = 0.5, symmetric([1.4, 0.2, -0.1], 5)
    noise = symmetric([1.0, 1.0, 1.0]) + 0.1 * noise_of(3, 6)
    process = OrnsteinUhlenbeck(hessian, lr, noise)
    times, n_paths = np.array([0.2, 0.5, 2.0]), 40_000
    start = np.array([1.0, -1.0, 2.0])
    paths = process.sample(start, times, n_paths, seed=7)
    assert paths.shape == (n_paths, 3, 3)
    mean, covariance = process.mean(start, times), process.covariance(times)
    for k in range(3):
        gap = paths[:, k] - mean[k]
        errors = np.sqrt(np.diag(covariance[k]) / n_paths)
        assert (np.abs(gap.mean(axis=0)) < 5 * errors).all()
        for i in range(3):
            for j in range(3):
                products = gap[:, i] * gap[:, j]
                error = products.std() / np.sqrt(n_paths)
                assert abs(products.mean() - covariance[k][i, j]) < 5 * error
    # across times: Cov(X_s, X_t) = Cov(X_s) e^{A (t - s)}
    cross = (paths[:, 0] - mean[0]).T @ (paths[:, 2] - mean[2]) / n_paths
    logs = logm(np.eye(3) - lr * hessian)
    vals, vecs = np.linalg.eigh(logs)
    decay = vecs @ np.diag(np.exp((times[2] - times[0]) / lr * vals)) @ vecs.T
    assert np.abs(cross - covariance[0] @ decay).max() < 0.05
    np.testing.assert_array_equal(paths, process.sample(start, times, n_paths, seed=7))
    assert (paths[:5] != process.sample(start, times, 5, seed=8)).any()


@pytest.mark.parametrize("seed", range(4))
def test_noise_of_rank_one_has_no_process_although_it_has_a_covariance(seed):
    # log((e^x - 1)/x) is convex, so D_11 D_22 < D_12^2 wherever two curvatures differ.
    lr, hessian = 0.5, symmetric([1.5, 0.4, -0.3], seed)
    noise = noise_of(3, seed + 10, rank=1)
    process = OrnsteinUhlenbeck(hessian, lr, noise)
    assert np.linalg.eigvalsh(process.diffusion)[0] < -1e-6
    with pytest.raises(ValueError, match="negative eigenvalue"):
        process.sample(np.zeros(3), [0.5], 10, 0)
    actual = process.covariance(lr * np.arange(5))
    np.testing.assert_allclose(actual, covariances(hessian, noise, lr, 4), rtol=1e-11, atol=1e-14)
    # one step adds noise of rank one; half a step has no covariance at all
    assert np.linalg.eigvalsh(process.covariance([lr / 2])[0])[0] < -1e-6


def test_noise_of_rank_one_across_equal_curvatures_has_a_process():
    process = OrnsteinUhlenbeck(0.8 * np.eye(3), 0.5, noise_of(3, 1, rank=1))
    paths = process.sample(np.ones(3), [0.5, 1.0], 10, 0)
    assert np.isfinite(paths).all()


def test_sgd_with_additive_noise_on_a_quadratic_has_this_covariance():
    lr, n_steps, n_runs = 0.5, 6, 4000
    hessian, noise = symmetric([1.5, 0.4], 1), symmetric([1.0, 0.5], 2)
    root = np.linalg.cholesky(noise)
    generator = np.random.default_rng(3)
    # many independent runs side by side, as one quadratic of blocks
    states = np.tile([1.0, -1.0], (n_runs, 1))
    for _ in range(n_steps):
        kicks = generator.standard_normal((n_runs, 2)) @ root.T
        states = states - lr * (states @ hessian + kicks)
    process = OrnsteinUhlenbeck(hessian, lr, noise)
    mean = process.mean([1.0, -1.0], [n_steps * lr])[0]
    covariance = process.covariance([n_steps * lr])[0]
    gap = states - mean
    assert (np.abs(gap.mean(axis=0)) < 5 * np.sqrt(np.diag(covariance) / n_runs)).all()
    for i, j in ((0, 0), (0, 1), (1, 1)):
        products = gap[:, i] * gap[:, j]
        error = products.std() / np.sqrt(n_runs)
        assert abs(products.mean() - covariance[i, j]) < 5 * error


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]], 1.0, [[1.0]]), ValueError, "h \\* lambda < 1"),
        (([[3.0]], 0.5, [[1.0]]), ValueError, "1.5"),
        (([[1.0, 0.5], [0.0, 1.0]], 0.1, np.eye(2)), ValueError, "hessian must be symmetric"),
        ((np.eye(2), 0.1, [[1.0, 0.5], [0.0, 1.0]]), ValueError, "noise_covariance"),
        ((np.eye(2), 0.1, np.eye(3)), ValueError, "shape of hessian"),
        ((np.eye(2), 0.0, np.eye(2)), ValueError, "lr"),
        ((np.eye(2), "a", np.eye(2)), TypeError, "lr"),
    ],
)
def test_bad_parameters_of_the_process_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        OrnsteinUhlenbeck(*arguments)


def test_bad_arguments_of_the_process_are_refused():
    process = OrnsteinUhlenbeck(np.eye(2), 0.5, np.eye(2))
    with pytest.raises(ValueError, match="start must have shape"):
        process.mean([1.0], [0.5])
    with pytest.raises(ValueError, match="initial"):
        process.covariance([0.5], np.eye(3))
    with pytest.raises(ValueError, match="n_paths"):
        process.sample([0.0, 0.0], [0.5], 0, 0)


@pytest.mark.parametrize("times", [[1.0, 0.5], [-0.5, 1.0]], ids=str)
def test_times_that_run_backwards_are_refused_by_sample(times):
    process = OrnsteinUhlenbeck(np.eye(2), 0.5, np.eye(2))
    with pytest.raises(ValueError, match="times"):
        process.sample([0.0, 0.0], times, 3, 0)


def test_negative_times_are_refused_by_covariance():
    process = OrnsteinUhlenbeck(np.eye(2), 0.5, np.eye(2))
    with pytest.raises(ValueError, match="times"):
        process.covariance([-0.5])


# --- beyond the largest float ---------------------------------------------------------------------


def exact_covariance(process, time, initial):
    """Entry by entry in many digits, in the eigenbasis of floats."""
    values, vectors = np.linalg.eigh(process.hessian)
    noise, start = (vectors.T @ matrix @ vectors for matrix in (process.noise_covariance, initial))
    dim, lr = len(values), mpmath.mpf(process.lr)
    inside = mpmath.matrix(dim, dim)
    for i in range(dim):
        for j in range(dim):
            q = (1 - lr * values[i]) * (1 - lr * values[j])
            grown = q ** (mpmath.mpf(time) / lr)
            inside[i, j] = grown * start[i, j] + lr**2 * noise[i, j] * (grown - 1) / (q - 1)
    frame = mpmath.matrix(vectors.tolist())
    return np.array((frame * inside * frame.T).tolist(), dtype=float)


def test_a_mean_beyond_the_largest_float_leaves_the_others_finite():
    process = OrnsteinUhlenbeck(np.diag([-1.0, 1e-3]), 0.1, np.eye(2))
    decay = (1 - 1e-4) ** np.array([10.0, 8000.0])
    for first, last in ((0.0, 0.0), (1.0, np.inf), (-2.0, -np.inf)):
        mean = process.mean([first, 1.0], [1.0, 800.0])
        np.testing.assert_allclose(mean[:, 1], decay, rtol=1e-12)
        assert mean[0, 0] == pytest.approx(first * 1.1**10, rel=1e-13)
        assert mean[1, 0] == last


@pytest.mark.parametrize("time", [100.0, 365.0, 400.0, 800.0, 4000.0, 1e300])
def test_a_covariance_beyond_the_largest_float_leaves_the_others_finite(time):
    # log q is .19, 0 and below: up to t = 372 all is finite.
    noise = np.array([[1.0, 0.0, -0.2], [0.0, 2.0, 0.1], [-0.2, 0.1, 1.0]])
    process = OrnsteinUhlenbeck(np.diag([-1.0, 1e-3, 0.5]), 0.1, noise)
    actual = process.covariance([time], np.eye(3))[0]
    if time < 1e4:
        expected = exact_covariance(process, time, np.eye(3))
        np.testing.assert_allclose(actual, expected, rtol=1e-10)
    assert np.isinf(actual[0, 0]) == (time > 372)
    assert actual[0, 1] == 0  # this pair has no noise
    assert (actual[0, 2] == -np.inf) == (time > 1500)
    assert np.isfinite(actual[1:, 1:]).all()


def test_an_entry_of_a_covariance_is_finite_or_infinite_as_its_own_sum_is():
    hessian, noise = symmetric([-1.0, -0.9, 0.5], 3), 1e-12 * noise_of(3, 4)
    process, kinds = OrnsteinUhlenbeck(hessian, 0.1, noise), set()
    for time in (360.0, 375.0, 385.0, 390.0, 395.0, 400.0, 900.0):
        expected = exact_covariance(process, time, noise)
        np.testing.assert_allclose(process.covariance([time], noise)[0], expected, rtol=1e-9)
        kinds |= {time: np.isinf(expected).sum()}.items()
    assert {0, 9} <= {count for _, count in kinds}


def test_samples_beyond_the_largest_float_are_refused():
    process = OrnsteinUhlenbeck(np.diag([-1.0, 1e-3]), 0.1, np.eye(2))
    with pytest.raises(ValueError, match=r"times must end before .* got 800"):
        process.sample([0.0, 1.0], [1.0, 800.0], 3, 0)


# --- the shuffled epoch -------------------------------------------------------------------------

SHUFFLED = [
    pytest.param(regression(n_samples=6), [[0, 1, 2], [3, 4, 5]], id="regression, 2"),
    pytest.param(perceptron(n_samples=6), [[0, 1, 2], [3, 4, 5]], id="perceptron, 2"),
    pytest.param(perceptron(n_samples=6), [[0, 1], [2, 3], [4, 5]], id="perceptron, 3"),
]


@pytest.mark.parametrize(("problem", "batches"), SHUFFLED)
def test_the_shuffled_loss_is_the_formula_and_its_derivatives_are_its_own(problem, batches):
    lr, m = 0.3, len(batches)
    loss = ShuffledEpochLoss(problem, lr, batches)
    theta = np.linspace(-1, 1, problem.dim)
    batches = [np.array(batch) for batch in batches]
    squares = [np.sum(problem.gradient(theta, batch) ** 2) for batch in batches]
    expected = problem.loss(theta) + lr / (4 * m) * sum(squares)
    assert loss.loss(theta) == pytest.approx(expected, rel=1e-13)
    assert loss.dim == problem.dim
    slope = [loss.loss(theta + 1e-30j * unit).imag / 1e-30 for unit in np.eye(problem.dim)]
    np.testing.assert_allclose(loss.gradient(theta), slope, rtol=1e-12, atol=1e-14)
    hessian = loss.hessian(theta)
    np.testing.assert_array_equal(hessian, hessian.T)
    columns = [loss.gradient(theta + 1e-30j * u).imag / 1e-30 for u in np.eye(problem.dim)]
    np.testing.assert_allclose(hessian, np.array(columns).T, rtol=1e-11, atol=1e-13)
    v = np.cos(np.arange(problem.dim))
    np.testing.assert_allclose(loss.hvp(theta, v), hessian @ v, rtol=1e-11, atol=1e-13)
    by_differences = naive.hessian(loss.gradient, theta)
    np.testing.assert_allclose(hessian, by_differences, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("problem", "batches"), SHUFFLED)
def test_the_mean_over_all_shuffles_follows_the_shuffled_loss_to_third_order(problem, batches):
    theta = np.linspace(-1, 1, problem.dim)
    batches = [np.array(batch) for batch in batches]
    orders = list(itertools.permutations(batches))
    errors, plain = [], []
    for lr in (0.04, 0.02):
        total = 0
        for order in orders:
            state = theta
            for batch in order:
                state = state - lr * problem.gradient(state, batch)
            total = total + state / len(orders)
        options = {"rtol": 1e-13, "atol": 1e-15, "record": {}}
        time = [len(batches) * lr]
        flow = eosim.GradientFlow(ShuffledEpochLoss(problem, lr, batches))
        errors.append(
            np.linalg.norm(eosim.integrate(flow, theta, time, **options).theta[0] - total)
        )
        flow = eosim.GradientFlow(problem)
        plain.append(np.linalg.norm(eosim.integrate(flow, theta, time, **options).theta[0] - total))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.15)
    assert np.log2(plain[0] / plain[1]) == pytest.approx(2, abs=0.15)
    assert errors[1] < plain[1]


def test_the_principal_flow_takes_the_shuffled_loss_too():
    problem = regression(n_samples=6)
    loss = ShuffledEpochLoss(problem, 0.1, [[0, 1, 2], [3, 4, 5]])
    path = eosim.integrate(eosim.PrincipalFlow(loss, 0.1), np.ones(4), [0, 0.1, 0.2])
    iterates = naive.gradient_descent(loss.gradient, np.ones(4), 2, 0.1)
    np.testing.assert_allclose(path.theta, iterates, rtol=1e-7)


@pytest.mark.parametrize(
    ("lr", "batches", "error", "message"),
    [
        (0.0, [[0]], ValueError, "lr"),
        ("a", [[0]], TypeError, "lr"),
        (0.1, [[0, 1], [2]], ValueError, "one size"),
        (0.1, [], ValueError, "batches"),
        (0.1, [[], []], ValueError, "empty"),
        (0.1, [[0, 6]], ValueError, "0 to 5"),
        (0.1, [[-1, 0]], ValueError, "0 to 5"),
        (0.1, [[[0, 1]]], ValueError, "one size"),
        (0.1, [[0.5, 1.0]], (TypeError, ValueError), "batches"),
    ],
)
def test_bad_parameters_of_the_shuffled_loss_are_refused(lr, batches, error, message):
    with pytest.raises(error, match=message):
        ShuffledEpochLoss(regression(n_samples=6), lr, batches)


def test_a_problem_without_samples_cannot_be_shuffled():
    with pytest.raises(TypeError, match="samples"):
        ShuffledEpochLoss(eosim.Rosenbrock(), 0.1, [[0]])
