"""Every second moment of 63 residuals, 2,016 numbers, against hundreds of thousands of runs of SGD."""

import math

import numpy as np
import pytest

import eosim
from eosim.moments import Covariance
from eosim.stability import critical_lr, tangent_kernel

N_SAMPLES, DIM, BATCH_SIZE, N_STEPS = 63, 40, 2, 8
# The products e_i e_j of one run have a skewness of at most 3.6 here: over this many runs it changes
# the probability of |z| > 5 by an eighth. By it, and were all entries independent, one set of
# 2,016 in 800 would have an entry beyond 5. An error of 1 % in kappa, of 0.5 % in the rate or of 0.25 %
# in the momentum has one.
N_RUNS = 400_000
_CHUNK = 20_000
SAMPLINGS = ("without_replacement", "with_replacement")


@pytest.fixture(scope="module")
def problem():
    """Of 40 parameters: 23 directions of the residuals never move, and make noise."""
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((N_SAMPLES, DIM))
    return eosim.LinearRegression(inputs, generator.standard_normal(N_SAMPLES))


@pytest.fixture(scope="module")
def theta0():
    return np.random.default_rng(1).standard_normal(DIM) / math.sqrt(DIM)


def below_the_edge(problem, theta0, sampling, momentum):
    """The NTK, and 0.6 times its threshold: noise makes a fourth to a third of the second moment."""
    kernel = tangent_kernel(problem, theta0)
    return kernel, 0.6 * critical_lr(kernel, BATCH_SIZE, sampling=sampling, momentum=momentum)


def exact_moments(model, residuals):
    moments = model.start(residuals)
    for _ in range(N_STEPS):
        moments = model.step(moments)
    return moments.residual


def pairs(generator, n_runs, sampling):
    """Two samples for each run, in a way that shares nothing with `eosim.sampling`."""
    first = generator.integers(0, N_SAMPLES, n_runs)
    if sampling == "with_replacement":
        return first, generator.integers(0, N_SAMPLES, n_runs)
    second = generator.integers(0, N_SAMPLES - 1, n_runs)  # among the others: skip the first
    return first, second + (second >= first)


def sampled_moments(problem, theta0, lr, momentum, sampling):
    """Means of e e^T and of its squares over all runs, and means and variances of the losses.

    Runs in parameter space, which knows of no NTK.
    """
    generator = np.random.default_rng(2)
    inputs, targets = problem.inputs, problem.targets[:, 0]
    second, fourth = np.zeros((2, N_SAMPLES, N_SAMPLES))
    losses = np.zeros((2, N_STEPS + 1))
    for _ in range(N_RUNS // _CHUNK):
        theta, velocity = np.tile(theta0, (_CHUNK, 1)), np.zeros((_CHUNK, DIM))
        for step in range(N_STEPS + 1):
            e = theta @ inputs.T - targets
            loss = np.sum(e**2, axis=1) / (2 * N_SAMPLES)
            losses[:, step] += loss.sum(), (loss**2).sum()
            if step == N_STEPS:
                break
            velocity *= momentum
            for sample in pairs(generator, _CHUNK, sampling):
                rows = inputs[sample]
                own = np.sum(rows * theta, axis=1) - targets[sample]
                velocity += rows * (own / BATCH_SIZE)[:, None]
            theta -= lr * velocity
        second += e.T @ e
        fourth += (e**2).T @ e**2
    mean, square = losses / N_RUNS
    return second / N_RUNS, fourth / N_RUNS, mean, square - mean**2


def scores(second, fourth, n_runs, expected):
    """z-scores of the distinct entries; the variance of a mean of products from the same runs."""
    error = np.sqrt((fourth - second**2) / n_runs)
    z = ((second - expected) / error)[np.triu_indices(N_SAMPLES)]
    assert len(z) == 2016
    return np.abs(z)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_every_second_moment_is_that_of_independent_runs(problem, theta0, momentum, sampling):
    kernel, lr = below_the_edge(problem, theta0, sampling, momentum)
    residuals = problem.residuals(theta0)
    second, fourth, loss, variance = sampled_moments(problem, theta0, lr, momentum, sampling)
    model = Covariance(kernel, lr, BATCH_SIZE, sampling, momentum)
    assert scores(second, fourth, N_RUNS, exact_moments(model, residuals)).max() < 5
    predicted = eosim.predict(model, residuals, N_STEPS)["loss"]
    assert abs(loss[0] / predicted[0] - 1) < 1e-12  # all runs start alike: nothing to average
    error = np.sqrt(variance[1:] / N_RUNS)
    assert (np.abs(loss - predicted)[1:] < 5 * error).all()
    # The other sampling has a kappa that differs by a factor 62/61, and these runs refute it.
    (other,) = set(SAMPLINGS) - {sampling}
    wrong = Covariance(kernel, lr, BATCH_SIZE, other, momentum)
    assert scores(second, fourth, N_RUNS, exact_moments(wrong, residuals)).max() > 5


@pytest.mark.size  # fifty thousand runs take minutes without the JIT
@pytest.mark.parametrize("sampling", [*SAMPLINGS, "bernoulli"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_every_second_moment_is_that_of_compiled_ensembles(problem, theta0, momentum, sampling):
    n_runs = 50_000
    kernel, lr = below_the_edge(problem, theta0, sampling, momentum)
    ensemble = eosim.run_ensemble(
        problem, eosim.HeavyBall(lr, momentum), theta0, N_STEPS,
        batch_sizes=BATCH_SIZE, n_replicas=n_runs, seed=3, sampling=sampling, keep=["residuals"],
        method="residual",
    )  # fmt: skip
    e = ensemble.final_residuals[0, 0]
    model = Covariance(kernel, lr, BATCH_SIZE, sampling, momentum)
    residuals = problem.residuals(theta0)
    z = scores(e.T @ e / n_runs, (e**2).T @ e**2 / n_runs, n_runs, exact_moments(model, residuals))
    assert z.max() < 5
    predicted = eosim.predict(model, residuals, N_STEPS)["loss"][1:]
    gap = np.abs(ensemble.survivor_mean()[0, 0, 1:] - predicted)
    assert (gap < 5 * ensemble.survivor_standard_error()[0, 0, 1:]).all()
