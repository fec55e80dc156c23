"""The alignment figure: its arrays from definitions, its closed forms, and what its headline refuses."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

import eosim
from eosim.problems import sphere_kernel
from eosim.stability import alignment_band, critical_lr, kernel_alignment, tangent_kernel
from figures import sgd_alignment as figure

# Both sides sum some 1e5 products of size one.
ROUNDING = 1e-11


@pytest.fixture(scope="module")
def arrays():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "SEEDS_QUICK", 2)
        yield figure.compute(True)


def factors(gradients, residuals, rows):
    """alpha, beta and mu from matrices in parameter space; gradients (n, dim) of single samples."""
    n = len(gradients)
    mean = gradients.mean(axis=0)
    sigma = gradients.T @ gradients / n - np.outer(mean, mean)
    curvature = rows.T @ rows / n
    overlap = np.trace(sigma @ curvature)
    loss = np.sum(residuals**2) / (2 * n)
    noise, size = np.linalg.norm(sigma), np.linalg.norm(curvature)
    return overlap / (noise * size), noise / (2 * loss * size), overlap / (2 * loss * size**2)


def feature_matrix(problem):
    pre = problem.inputs @ problem.weights.T
    return np.maximum(pre, 0) / math.sqrt(len(problem.weights))


def net_rows(net, theta):
    """Gradients of the outputs of v W x, sample by sample, and the outputs."""
    inner = net.inputs.shape[1]
    W = theta[: figure.NET_WIDTH * inner].reshape(figure.NET_WIDTH, inner)
    v = theta[figure.NET_WIDTH * inner :]
    rows = [np.concatenate([np.outer(v, x).ravel(), W @ x]) for x in net.inputs]
    return np.array(rows), np.array([v @ W @ x for x in net.inputs])


def form(rows):
    """n Diag(Theta^2) - Theta^2 over |Theta|_F^2 on the range of the Jacobian."""
    n = len(rows)
    theta = rows @ rows.T / n
    square = theta @ theta
    whole = (n * np.diag(np.diag(square)) - square) / np.sum(theta**2)
    vectors, values, _ = np.linalg.svd(rows, full_matrices=False)
    basis = vectors[:, values > 1e-9 * values[0]]
    return basis.T @ whole @ basis


def test_alignment_along_sgd_is_that_of_gradients_of_single_samples(arrays):
    problem = eosim.RandomFeatures.draw(
        figure.SAMPLES, figure.INPUTS, figure.FEATURES, "relu", seed=1
    )
    features = feature_matrix(problem)
    lr = figure.RATE * critical_lr(features @ features.T / figure.SAMPLES, figure.BATCH_SIZE)
    path = eosim.run(
        problem,
        eosim.GradientDescent(lr),
        np.zeros(figure.FEATURES),
        int(arrays["step"][15]),
        batch_size=figure.BATCH_SIZE,
        seed=1,
    )
    for index in (0, 1, 8, 15):
        residuals = features @ path.theta[arrays["step"][index]] - problem.targets.ravel()
        slow = factors(residuals[:, None] * features, residuals, features)
        np.testing.assert_allclose(arrays["relu_sgd"][1, :, index], slow, rtol=1e-8)


def test_alignment_along_a_linear_net_is_that_of_gradients_of_single_samples(arrays):
    net, target = figure.linear_net(0)
    theta, lr = net.initial(0), None
    for step in range(int(arrays["net_step"][6]) + 1):
        rows, outputs = net_rows(net, theta)
        residuals = outputs - net.inputs @ target
        if lr is None:
            lr = figure.RATE * critical_lr(rows @ rows.T / figure.SAMPLES, figure.BATCH_SIZE)
        (shown,) = (
            np.flatnonzero(arrays["net_step"] == step) if step in arrays["net_step"] else (None,)
        )
        if shown is not None:
            slow = factors(residuals[:, None] * rows, residuals, rows)
            np.testing.assert_allclose(arrays["net_descent"][0, :, shown], slow, rtol=1e-8)
            ends = np.linalg.eigvalsh(form(rows))[[0, -1]]
            np.testing.assert_allclose(arrays["net_descent_band"][0, :, shown], ends, rtol=1e-8)
        theta = theta - lr * rows.T @ residuals / figure.SAMPLES


def test_the_band_of_features_is_the_spectrum_of_the_form(arrays):
    problem = eosim.RandomFeatures.draw(
        figure.SAMPLES, figure.INPUTS, figure.FEATURES, "relu", seed=1
    )
    ends = np.linalg.eigvalsh(form(feature_matrix(problem)))[[0, -1]]
    np.testing.assert_allclose(arrays["relu_band"][1], ends, rtol=1e-9)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_the_shown_steps_are_those_of_one_run(batch_size):
    net, _ = figure.linear_net(3)
    steps = [0, 1, 4, 5, 9]
    thetas = figure.thetas_at(net, net.initial(3), 0.01, batch_size, steps, 7)
    whole = eosim.run(
        net, eosim.GradientDescent(0.01), net.initial(3), 9, batch_size=batch_size, seed=7
    )
    np.testing.assert_array_equal(thetas, whole.theta[steps])


def test_the_alignment_of_the_population_is_exact_cubature():
    rng = np.random.default_rng(4)
    target = rng.standard_normal(2)
    net = eosim.LinearNet(np.eye(2), np.eye(2) @ target, (3,))
    theta = net.initial(1)
    # Four nodes per axis are exact up to degree 7; Sigma is of degree 4 in the inputs.
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    weights = weights / weights.sum()
    W, v = theta[:6].reshape(3, 2), theta[6:]
    loss, mean, second, curvature = 0.0, 0.0, 0.0, 0.0
    for x0, w0 in zip(nodes, weights, strict=True):
        for x1, w1 in zip(nodes, weights, strict=True):
            x, weight = np.array([x0, x1]), w0 * w1
            row = np.concatenate([np.outer(v, x).ravel(), W @ x])
            error = v @ W @ x - target @ x
            loss += weight * error**2 / 2
            mean = mean + weight * error * row
            second = second + weight * error**2 * np.outer(row, row)
            curvature = curvature + weight * np.outer(row, row)
    overlap = np.trace((second - np.outer(mean, mean)) @ curvature)
    slow = overlap / (2 * loss * np.sum(curvature**2))
    assert figure.population_mu(net, target, theta) == pytest.approx(slow, rel=ROUNDING)
    assert 1 <= slow <= 2


@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 3), (2, 3, 2), (4, 2, 5)])
def test_the_constant_residual_of_finite_models_has_the_ratio_of_sampled_means(n, m, d):
    rng = np.random.default_rng([n, m, d])
    n_draws = 100_000
    x = rng.standard_normal((n_draws, n, d))
    x *= math.sqrt(d) / np.linalg.norm(x, axis=2, keepdims=True)
    w = rng.standard_normal((n_draws, m, d))
    w /= np.linalg.norm(w, axis=2, keepdims=True)
    features = np.maximum(x @ w.transpose(0, 2, 1), 0) / math.sqrt(m)
    theta = features @ features.transpose(0, 2, 1) / n
    image = np.sum(theta.sum(axis=2) ** 2, axis=1) / n  # 1^T Theta^2 1 / n
    norm = np.sum(theta**2, axis=(1, 2))
    share = 1 - figure.constant_alignment(d, n, m)
    excess = image - share * norm
    # One normal number is beyond this with a probability of 7e-6; at n = 1 both are the same.
    assert abs(excess.mean()) <= 4.5 * excess.std() / math.sqrt(n_draws) + 1e-12


@pytest.mark.parametrize("d", [2, 3, 10, 100])
def test_large_models_have_the_closed_form(d):
    # Corrections are about 1/4 E k^2, or 10, times 1/n and 1/m.
    assert figure.constant_alignment(d, 10**12, 10**12) == pytest.approx(
        sphere_kernel(d).worst_alignment, abs=1e-10
    )


@pytest.mark.parametrize("d", [2, 3, 10, 100])
def test_the_quadrature_is_the_integral_over_the_angle(d):
    def kernel(t):
        return (math.sin(t) + (math.pi - t) * math.cos(t)) / (2 * math.pi)

    total, first, second = (
        quad(lambda t, k=k: kernel(t) ** k * math.sin(t) ** (d - 2), 0, math.pi, epsabs=1e-13)[0]
        for k in range(3)
    )
    slow = 1 - first**2 / (total * second)
    assert figure.quadrature_alignment(d) == pytest.approx(slow, abs=1e-11)


def test_where_inputs_are_all_alike_an_eigenvector_has_what_its_share_leaves():
    problem = eosim.RandomFeatures.circle(16)
    kernel = tangent_kernel(problem, np.zeros(16))
    mu = [kernel_alignment(kernel, vector).mu for vector in kernel.vectors().T]
    share = kernel.eigenvalues**2 / np.sum(kernel.eigenvalues**2)
    np.testing.assert_allclose(mu, 1 - share, rtol=ROUNDING)
    assert alignment_band(kernel).smallest == pytest.approx(1 - share[0], rel=ROUNDING)


def test_just_below_its_edge_gradient_descent_keeps_its_alignment():
    problem = eosim.RandomFeatures.draw(
        figure.SAMPLES, figure.INPUTS, figure.FEATURES, "relu", seed=0
    )
    start = np.zeros(figure.FEATURES)
    kernel = tangent_kernel(problem, start)
    for factor, least, most in ((0.99, 0.95, 1.05), (1.01, 0.1, 0.3)):
        lr = factor * 2 / kernel.largest
        theta = figure.thetas_at(problem, start, lr, None, [0, 800], 0)[-1]
        assert least < kernel_alignment(kernel, problem.residuals(theta)).mu < most


def test_sgd_dips_by_what_the_sharpest_mode_holds_of_the_residuals():
    problem = eosim.RandomFeatures.draw(
        figure.SAMPLES, figure.INPUTS, figure.FEATURES, "relu", seed=0
    )
    start = np.zeros(figure.FEATURES)
    kernel = tangent_kernel(problem, start)
    top = kernel.vectors()[:, 0]
    lr = figure.RATE * critical_lr(kernel, figure.BATCH_SIZE)
    thetas = figure.thetas_at(problem, start, lr, figure.BATCH_SIZE, range(120), 0)
    residuals = [problem.residuals(theta)[:, 0] for theta in thetas]
    mu = np.array([kernel_alignment(kernel, e).mu for e in residuals])
    share = np.array([(top @ e) ** 2 / (e @ e) for e in residuals])
    assert share.max() > 0.2
    assert np.abs(mu - (1 - (1 - kernel_alignment(kernel, top).mu) * share)).max() < 0.05


def failing(arrays, **changed):
    return [row.quantity for row in figure.headline({**arrays, **changed}) if not row.holds]


def with_mu(values, index, mu):
    """A run's arrays with another mu at one step."""
    values = values.copy()
    values[:, 2, index] = mu
    return values


def test_the_headline_holds(arrays):
    assert failing(arrays) == []


def test_one_value_outside_the_band_fails(arrays):
    for name in ("relu_descent", "tanh_sgd", "net_sgd", "net_descent"):
        high = with_mu(arrays[name], 3, 2.2)
        assert failing(arrays, **{name: high})[0].startswith("values of mu outside"), name


def test_nan_fails(arrays):
    missing = with_mu(arrays["tanh_constant"], 5, np.nan)
    (quantity,) = failing(arrays, tanh_constant=missing)
    assert quantity.startswith("values of mu outside")


@pytest.mark.parametrize(
    ("name", "factor", "quantity"),
    [
        ("relu_vectors", 1 + 1e-9, "|mean of mu over a basis - (1 - 1/n)|"),
        ("relu_vectors", 1.3, "ReLU: mu of eigenvector 1, largest"),
        ("relu_vectors", 0.9, "ReLU: mu of all others, least"),
        ("tanh_vectors", 0.9, "tanh: mu of all eigenvectors, least"),
        ("relu_sgd", 0.9, "ReLU, SGD: mu, median"),
        ("relu_sgd", 0.3, "ReLU, SGD: mu / mu_0, least"),
        ("relu_descent", 0.88, "ReLU, gradient descent: |mu - (1 - 1/n)|"),
        ("relu_constant", 1.1, "ReLU, constant residuals: mu / mu_0 at first"),
        ("relu_constant", 0.9, "  and later, median of mu"),
        ("relu_edge", 1.1, "ReLU beyond the edge: |last mu - of vector 1|"),
        ("relu_edge", 1.2, "  and last mu / mu_0"),
        ("tanh_band", 0.9, "tanh: mu_0, least"),
        ("closed_form", 1 + 1e-8, "mu_0 of all d: |closed form - quadrature|"),
        ("closed_form", 1.1, "d = 100: 4 d mu_0 / pi^2"),
        ("constant_formula", 1.05, "largest size: |constant / formula - 1|"),
        ("least", 1.1, "mu_0 / mu of the constant, largest"),
        ("least", 0.95, "largest size, d = 10: mu_0 / closed form"),
        ("net_sgd_population", 0.9, "linear nets: mu of population, least"),
        ("net_descent_population", 2.0, "linear nets: mu of population, largest"),
    ],
)
def test_a_number_that_is_off_fails(arrays, name, factor, quantity):
    assert quantity in failing(arrays, **{name: arrays[name] * factor})
