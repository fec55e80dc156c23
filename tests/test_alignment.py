"""Alignment of noise and curvature: against loops, all batches, cubature, and its closed forms."""

import functools
import itertools
import math

import numpy as np
import pytest

import eosim
from eosim.measure import Alignment, loss_alignment
from eosim.sampling import batch_moments
from eosim.stability import TangentKernel, tangent_kernel
from eosim.stability.alignment import (
    alignment_band,
    kernel_alignment,
    population_alignment,
    streaming_critical_lr,
)
from tests.cases import perceptron, regression

# (n, d, k): more parameters than residuals, fewer, several outputs, one sample
SHAPES = [(5, 7, 1), (7, 3, 1), (4, 5, 2), (6, 2, 3), (1, 3, 1)]


def by_loops(residuals, jacobian, centred):
    """alpha, beta, mu from the definition, sample by sample."""
    n, _, dim = jacobian.shape
    second, mean, G, loss = np.zeros((dim, dim)), np.zeros(dim), np.zeros((dim, dim)), 0.0
    for e, J in zip(residuals, jacobian, strict=True):
        s = J.T @ e
        second += np.outer(s, s) / n
        mean += s / n
        G += J.T @ J / n
        loss += e @ e / (2 * n)
    sigma = second - np.outer(mean, mean) if centred else second
    size, norm = math.sqrt((sigma**2).sum()), math.sqrt((G**2).sum())
    overlap = np.trace(sigma @ G)
    return overlap / (size * norm), size / (2 * loss * norm), overlap / (2 * loss * norm**2)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_alignment_is_its_definition_from_samples_and_from_the_kernel(shape, centred):
    n, d, k = shape
    problem = regression(n_samples=n, n_features=d, n_outputs=k, seed=n)
    theta = np.random.default_rng(d).standard_normal(problem.dim)
    residuals, jacobian = problem.residuals(theta), problem.jacobian(theta)
    expected = by_loops(residuals, jacobian, centred)
    found = loss_alignment(problem, theta, centred=centred)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.mu == pytest.approx(found.alpha * found.beta, rel=1e-14)
    kernel = kernel_alignment(tangent_kernel(problem, theta), residuals, centred=centred)
    np.testing.assert_allclose(kernel, expected, rtol=1e-11)


@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement", "bernoulli"])
def test_the_noise_that_batches_make_has_this_alignment(sampling):
    problem = perceptron(n_samples=4)
    theta, n, B = np.linspace(-1, 1, problem.dim), 4, 2
    if sampling == "without_replacement":
        batches = [(b, 1.0) for b in itertools.combinations(range(n), B)]
    elif sampling == "with_replacement":
        batches = [(b, 1.0) for b in itertools.product(range(n), repeat=B)]
    else:
        subsets = [b for m in range(n + 1) for b in itertools.combinations(range(n), m)]
        batches = [(b, (B / n) ** len(b) * (1 - B / n) ** (n - len(b))) for b in subsets]
    gradients = np.array([problem.gradient(theta, np.array([i])) for i in range(n)])
    steps = np.array([gradients[list(b)].sum(axis=0) / B for b, _ in batches])
    weights = np.array([w for _, w in batches]) / sum(w for _, w in batches)
    mean = weights @ steps
    np.testing.assert_allclose(mean, problem.gradient(theta), rtol=1e-12)
    covariance = (steps - mean).T @ (weights[:, None] * (steps - mean))
    J = problem.jacobian(theta).reshape(n, -1)
    G = J.T @ J / n
    kappa = batch_moments(n, B, sampling).noise
    mu = np.trace(covariance @ G) / (kappa * 2 * problem.loss(theta) * np.sum(G**2))
    found = loss_alignment(problem, theta, centred=sampling != "bernoulli").mu
    assert found == pytest.approx(mu, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mu_averages_to_one_minus_one_nth_over_the_outputs(shape):
    n, d, k = shape
    kernel = TangentKernel.from_jacobian(np.random.default_rng(n).standard_normal((n * k, d)), k)
    directions = np.eye(n * k)  # an orthonormal basis gives the trace of the form
    for centred, expected in ((True, (1 - 1 / n) / k), (False, 1 / k)):
        mean = np.mean([kernel_alignment(kernel, e, centred=centred).mu for e in directions])
        assert mean == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_the_band_is_attained_and_never_left(shape, centred):
    n, d, k = shape
    generator = np.random.default_rng(d)
    J = generator.standard_normal((n * k, d))
    kernel = TangentKernel.from_jacobian(J, k)
    band = alignment_band(kernel, centred=centred)
    for delta in generator.standard_normal((200, d)):
        mu = kernel_alignment(kernel, J @ delta, centred=centred).mu
        assert band.smallest - 1e-12 <= mu <= band.largest + 1e-12
    # The quadratic form in delta, by polarisation of its values, has its extremes at the ends.
    basis = np.linalg.qr(J)[0]
    basis = basis[:, : np.linalg.matrix_rank(J)]

    def value(c):
        return kernel_alignment(kernel, basis @ c, centred=centred).mu * (c @ c)

    unit = np.eye(basis.shape[1])
    form = np.array([[(value(a + b) - value(a - b)) / 4 if (a != b).any() else value(a)
                      for b in unit] for a in unit])  # fmt: skip
    ends = np.linalg.eigvalsh(form)[[0, -1]]
    np.testing.assert_allclose(band, ends, rtol=1e-9, atol=1e-12)


def test_beyond_the_range_of_the_jacobian_alignment_can_be_lower():
    J = np.random.default_rng(3).standard_normal((6, 2))
    kernel = TangentKernel.from_jacobian(J)
    assert alignment_band(kernel).smallest > 1e-3
    square = kernel.matrix @ kernel.matrix
    form = (6 * np.diag(np.diag(square)) - square) / np.sum(kernel.matrix**2)
    lowest = np.linalg.eigh(form)[1][:, 0]
    assert kernel_alignment(kernel, lowest).mu < alignment_band(kernel).smallest


def test_the_floor_of_uncentred_alignment_is_attained_for_a_kernel_of_full_rank():
    J = np.random.default_rng(4).standard_normal((5, 9))
    kernel = TangentKernel.from_jacobian(J)
    diagonal = np.diag(kernel.matrix @ kernel.matrix)
    floor = 5 * diagonal.min() / kernel.frobenius**2
    assert alignment_band(kernel, centred=False).smallest == pytest.approx(floor, rel=1e-10)


def test_alignment_can_be_recorded_in_both_forms():
    problem = regression()
    record = {"centred": loss_alignment, "raw": functools.partial(loss_alignment, centred=False)}
    path = eosim.run(problem, eosim.GradientDescent(0.1), np.ones(4), 3, record=record)
    for name, centred in (("centred", True), ("raw", False)):
        rows = [loss_alignment(problem, theta, centred=centred) for theta in path.theta]
        for field in Alignment._fields:
            np.testing.assert_array_equal(
                path[f"{name}.{field}"], [getattr(r, field) for r in rows]
            )


@pytest.mark.parametrize("shape", [(5, 7, 1), (7, 3, 2)], ids=str)
def test_alignment_has_no_scale(shape):
    n, d, k = shape
    generator = np.random.default_rng(0)
    inputs, theta = generator.standard_normal((n, d)), generator.standard_normal(d * k)
    for scale in (1.0, 1e-150, 1e150):
        problem = eosim.LinearRegression(inputs, np.zeros((n, k)))
        found = loss_alignment(problem, scale * theta)
        np.testing.assert_allclose(found, loss_alignment(problem, theta), rtol=1e-12)


def test_degenerate_points_are_nan_only_where_the_ratio_is():
    at_zero = loss_alignment(regression(n_features=20), np.zeros(20))
    assert all(math.isfinite(value) for value in at_zero)
    perfect = eosim.LinearRegression(np.eye(3), np.zeros(3))
    assert all(math.isnan(value) for value in loss_alignment(perfect, np.zeros(3)))
    flat = eosim.LinearRegression(np.zeros((3, 2)), np.ones(3))
    assert all(math.isnan(value) for value in loss_alignment(flat, np.zeros(2)))
    alone = loss_alignment(regression(n_samples=1), np.ones(4))
    assert (alone.beta, alone.mu) == (0, 0)
    assert math.isnan(alone.alpha)


# --- populations ---------------------------------------------------------------------------------


def gauss_hermite(d, nodes=4):
    """Points and weights of E over N(0, I_d), exact for degree 2 nodes - 1 in each variable."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()
    grid = np.array(list(itertools.product(points, repeat=d)))
    return grid, np.array([math.prod(w) for w in itertools.product(weights, repeat=d)])


def sphere():
    """Points and weights of the mean over the sphere of radius sqrt(3) in R^3, exact for degree 4."""
    heights, weights = np.polynomial.legendre.leggauss(4)
    angles = 2 * np.pi * np.arange(6) / 6
    points = [
        (math.sqrt(1 - z * z) * math.cos(a), math.sqrt(1 - z * z) * math.sin(a), z)
        for z in heights
        for a in angles
    ]
    return math.sqrt(3) * np.array(points), np.repeat(weights / 12, 6)


def network_gradients(theta, target, inputs, width=2):
    """Residuals and gradients of v^T W x with respect to (W, v)."""
    d = inputs.shape[1]
    W, v = theta[: width * d].reshape(width, d), theta[width * d :]
    residuals = inputs @ (W.T @ v - target)
    rows = np.array([np.concatenate([np.outer(v, x).ravel(), W @ x]) for x in inputs])
    return residuals, rows


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("inputs", ["gaussian", "sphere"])
def test_a_linear_network_has_the_alignment_of_its_population(inputs, centred):
    generator = np.random.default_rng(5)
    points, weights = gauss_hermite(3) if inputs == "gaussian" else sphere()
    root = np.linalg.cholesky(np.cov(generator.standard_normal((3, 9))))
    if inputs == "gaussian":
        points = points @ root.T
    for _ in range(5):
        theta, target = generator.standard_normal(8), generator.standard_normal(3)
        e, rows = network_gradients(theta, target, points)
        s = e[:, None] * rows
        G, mean = rows.T @ (weights[:, None] * rows), weights @ s
        loss = weights @ e**2 / 2
        sigma = s.T @ (weights[:, None] * s) - (np.outer(mean, mean) if centred else 0)
        found = population_alignment(G, mean, loss, inputs=inputs, n_features=3, centred=centred)
        overlap, size, norm = np.trace(sigma @ G), np.linalg.norm(sigma), np.linalg.norm(G)
        expected = (
            overlap / (size * norm),
            size / (2 * loss * norm),
            overlap / (2 * loss * norm**2),
        )
        np.testing.assert_allclose(found, expected, rtol=1e-11)
        if inputs == "gaussian":
            assert 1 <= found.mu <= (2 if centred else 3)


@pytest.mark.parametrize("d", [1, 2, 5, 40])
def test_isotropic_regression_has_the_textbook_values(d):
    g = np.random.default_rng(d).standard_normal(d)
    found = population_alignment(np.eye(d), g, g @ g / 2)
    expected = ((d + 1) / math.sqrt(d * (d + 3)), math.sqrt((d + 3) / d), 1 + 1 / d)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    for centred, mu in ((True, 1 - 1 / d), (False, 1)):
        ball = population_alignment(
            np.eye(d), g, g @ g / 2, inputs="sphere", n_features=d, centred=centred
        )
        assert ball.mu == pytest.approx(mu, rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("inputs", ["gaussian", "sphere"])
@pytest.mark.parametrize("B", [1, 3])
def test_the_streaming_threshold_is_where_the_moment_operator_has_radius_one(inputs, B):
    points, weights = gauss_hermite(3) if inputs == "gaussian" else sphere()
    eigenvalues = np.array([2.0, 1.0, 0.3])
    points = points * np.sqrt(eigenvalues)
    S = points.T @ (weights[:, None] * points)
    np.testing.assert_allclose(S, np.diag(eigenvalues), atol=1e-12)
    fourth = np.einsum("x,xa,xb,xc,xd->acbd", weights, *[points] * 4).reshape(9, 9)
    lr = streaming_critical_lr(eigenvalues, B, inputs=inputs)
    drift = np.eye(3) - lr * S
    operator = np.kron(drift, drift) + lr**2 / B * (fourth - np.kron(S, S))
    assert np.abs(np.linalg.eigvals(operator)).max() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("B", [1, 4])
@pytest.mark.parametrize("d", [1, 2, 7])
def test_equal_eigenvalues_have_closed_streaming_thresholds(d, B):
    eigenvalues = np.full(d, 0.7)
    gaussian = streaming_critical_lr(eigenvalues, B)
    ball = streaming_critical_lr(eigenvalues, B, inputs="sphere")
    assert gaussian == pytest.approx(2 * B / (0.7 * (d + B + 1)), rel=1e-13)
    assert ball == pytest.approx(2 * B / (0.7 * (d + B - 1)), rel=1e-13)
    assert streaming_critical_lr([0.0, 0.0], B) == math.inf


def test_wrong_arguments_are_refused_by_name():
    kernel = TangentKernel.from_spectrum([1.0, 0.5])
    with pytest.raises(TypeError, match="Rosenbrock is no least-squares problem"):
        loss_alignment(eosim.Rosenbrock(), np.ones(2))
    with pytest.raises(ValueError, match="eigenvectors"):
        alignment_band(kernel)
    with pytest.raises(ValueError, match="residuals must have 2 entries"):
        kernel_alignment(np.eye(2), np.ones(3))
    with pytest.raises(ValueError, match="kernel must not be zero"):
        alignment_band(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="n_features must be given"):
        population_alignment(np.eye(2), np.ones(2), 1.0, inputs="sphere")
    with pytest.raises(ValueError, match="inputs must be one of"):
        streaming_critical_lr([1.0], 1, inputs="cube")
    with pytest.raises(ValueError, match="eigenvalues must not be negative"):
        streaming_critical_lr([-1.0], 1)
