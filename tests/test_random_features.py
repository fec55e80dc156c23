"""The random feature model, the kernels of infinitely many features, and the claims about them."""

import dataclasses
import math

import mpmath
import numpy as np
import pytest
import sympy as sp
from scipy.special import erf

import eosim
import theory.dual_kernels
from eosim.problems import dual_kernels
from eosim.problems.dual_kernels import circle_coefficient, dual_kernel, sphere_kernel
from eosim.problems.feature_model import ACTIVATIONS, RandomFeatures
from theory.claim import Refuted

SIGMA = {
    "relu": lambda z: max(z, 0.0),
    "leaky": lambda z: z if z > 0 else 0.3 * z,
    "identity": lambda z: z,
    "tanh": math.tanh,
    "erf": math.erf,
}


def rng(seed=0):
    return np.random.default_rng(seed)


def model(activation="relu", n=6, d=3, m=5, k=2, seed=0):
    generator = rng(seed)
    return RandomFeatures(
        generator.standard_normal((n, d)),
        generator.standard_normal((n, k)),
        generator.standard_normal((m, d)),
        activation,
        slope=0.3,
    )


def naive_output(problem, theta, x, output):
    """m^(-1/2) sum_j a_j sigma(w_j . x), by loops."""
    total = 0.0
    for j, w in enumerate(problem.weights):
        pre = sum(wi * xi for wi, xi in zip(w, x, strict=True))
        total += theta[j * problem.n_outputs + output] * SIGMA[problem.activation](pre)
    return total / math.sqrt(len(problem.weights))


# --- the model ----------------------------------------------------------------------------------


def test_every_activation_has_its_loop():
    assert set(ACTIVATIONS) == set(SIGMA)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_outputs_residuals_and_loss_are_those_of_the_loops(activation):
    problem = model(activation)
    theta = problem.initial(1)
    expected = np.array(
        [[naive_output(problem, theta, x, a) for a in range(2)] for x in problem.inputs]
    )
    np.testing.assert_allclose(problem.outputs(theta), expected, rtol=1e-13, atol=1e-15)
    errors = expected - problem.targets
    np.testing.assert_allclose(problem.residuals(theta), errors, rtol=1e-12, atol=1e-14)
    assert problem.loss(theta) == pytest.approx(np.sum(errors**2) / 12, rel=1e-13)
    new = rng(9).standard_normal((4, 3))
    expected = [[naive_output(problem, theta, x, a) for a in range(2)] for x in new]
    np.testing.assert_allclose(problem.outputs(theta, new), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_are_exact_and_continue_to_complex_theta(activation):
    problem = model(activation)
    theta, v = rng(2).standard_normal((2, problem.dim))
    theta = theta + 0.4j * rng(3).standard_normal(problem.dim)
    step = 1e-3  # the loss is quadratic: central differences have no truncation error
    slope = (problem.loss(theta + step * v) - problem.loss(theta - step * v)) / (2 * step)
    assert problem.gradient(theta) @ v == pytest.approx(slope, rel=1e-11)
    bend = (problem.gradient(theta + v) - problem.gradient(theta - v)) / 2
    np.testing.assert_allclose(problem.hvp(theta, v), bend, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(problem.hessian(theta) @ v, bend, rtol=1e-12, atol=1e-14)
    jacobian = problem.jacobian(theta)
    assert jacobian.shape == (6, 2, 10)
    change = problem.outputs(theta + v) - problem.outputs(theta)
    np.testing.assert_allclose(jacobian @ v, change, rtol=1e-12, atol=1e-14)
    rows = jacobian.reshape(-1, problem.dim)
    np.testing.assert_allclose(problem.ntk(theta), rows @ rows.T / 6, rtol=1e-13, atol=1e-15)
    assert not problem.third_derivative(theta, v, v).any()
    assert problem.analytic


def test_a_batch_is_the_model_of_its_samples_alone():
    problem, rows = model("tanh"), np.array([0, 5, 0])
    alone = RandomFeatures(problem.inputs[rows], problem.targets[rows], problem.weights, "tanh")
    theta, v = rng(1).standard_normal((2, problem.dim))
    for name in ("loss", "gradient", "hessian", "residuals", "jacobian"):
        ours, expected = getattr(problem, name)(theta, rows), getattr(alone, name)(theta)
        np.testing.assert_allclose(ours, expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(problem.hvp(theta, v, rows), alone.hvp(theta, v), rtol=1e-13)


def test_runs_and_measurements_accept_it():
    problem = RandomFeatures.draw(8, 3, 20, "tanh")
    path = eosim.run(problem, eosim.GradientDescent(0.5), problem.initial(), 20, batch_size=2)
    assert path["loss"][-1] < path["loss"][0]
    spectrum = eosim.measure.ntk_spectrum(problem, problem.initial())
    np.testing.assert_allclose(
        spectrum, np.linalg.eigvalsh(problem.ntk(problem.initial()))[::-1], atol=1e-14
    )


@pytest.mark.parametrize("inputs", ["sphere", "gaussian"])
def test_draws_are_made_in_the_documented_order(inputs):
    problem = RandomFeatures.draw(7, 4, 9, "erf", seed=3, inputs=inputs)
    generator = rng(3)
    points, weights = generator.standard_normal((7, 4)), generator.standard_normal((9, 4))
    if inputs == "sphere":
        points = 2 * points / np.linalg.norm(points, axis=1, keepdims=True)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    np.testing.assert_allclose(problem.inputs, points, rtol=1e-15)
    np.testing.assert_allclose(problem.weights, weights, rtol=1e-15)
    np.testing.assert_array_equal(problem.targets[:, 0], generator.standard_normal(7))
    assert (problem.n_samples, problem.n_outputs, problem.dim) == (7, 1, 9)
    np.testing.assert_array_equal(problem.initial(4), rng(4).standard_normal(9))
    np.testing.assert_allclose(problem.features(), erf(points @ weights.T) / 3, rtol=1e-13)


def test_targets_are_replaced_with_everything_else_kept():
    problem = RandomFeatures.draw(7, 4, 9, "leaky", slope=0.4)
    taught = dataclasses.replace(problem, targets=problem.inputs[:, 0])
    np.testing.assert_array_equal(taught.features(), problem.features())
    np.testing.assert_array_equal(taught.targets[:, 0], problem.inputs[:, 0])


def test_the_data_are_copied():
    inputs, targets, weights = np.ones((3, 2)), np.zeros(3), np.ones((4, 2))
    problem = RandomFeatures(inputs, targets, weights)
    before = problem.loss(np.ones(4))
    inputs[:], targets[:], weights[:] = 7.0, 7.0, 7.0
    assert problem.loss(np.ones(4)) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], [1.0], [[1.0]]), ValueError, "inputs must have shape"),
        ((np.zeros((0, 2)), [], [[1.0, 1.0]]), ValueError, "inputs must have samples"),
        (([[1.0]], [1.0, 2.0], [[1.0]]), ValueError, "one row per sample"),
        (([[1.0]], [1.0], [[1.0, 2.0]]), ValueError, r"weights must have shape \(any, 1\)"),
        (([[1.0]], [1.0], np.zeros((0, 1))), ValueError, "weights must have one row"),
        (([[1.0]], [np.nan], [[1.0]]), ValueError, "targets has 1 non-finite"),
        (([[1.0]], [1.0], [[1.0]], "sigmoid"), ValueError, "activation must be one of 'relu'"),
        (([[1.0]], [1.0], [[1.0]], "leaky", None), TypeError, "slope must be a real number"),
    ],
)
def test_bad_models_are_refused_with_their_name(arguments, error, message):
    with pytest.raises(error, match=message):
        RandomFeatures(*arguments)


def test_bad_draws_are_refused_with_their_name():
    with pytest.raises(ValueError, match="inputs must be one of 'sphere', 'gaussian'"):
        RandomFeatures.draw(3, 2, 4, inputs="cube")
    for position, name in enumerate(("n_samples", "n_inputs", "n_features")):
        sizes = [3, 2, 4]
        sizes[position] = 0
        with pytest.raises(ValueError, match=f"{name} must be an integer >= 1"):
            RandomFeatures.draw(*sizes)
    with pytest.raises(ValueError, match="size must be an integer >= 2"):
        RandomFeatures.circle(1)
    with pytest.raises(ValueError, match=r"inputs must have shape \(any, 2\)"):
        RandomFeatures.circle().features([[1.0]])


# --- the circle -----------------------------------------------------------------------------------


def test_the_circle_has_no_randomness_and_every_sample_is_like_every_other():
    problem = RandomFeatures.circle()
    assert (problem.n_samples, problem.dim) == (16, 16)
    kernel = problem.ntk(problem.initial())
    for shift in range(16):
        turned = np.roll(kernel, (shift, shift), axis=(0, 1))
        np.testing.assert_allclose(turned, kernel, atol=1e-16)
    assert np.trace(kernel) == pytest.approx(0.25, abs=1e-15)
    assert problem.loss(np.zeros(16)) == 0


@pytest.mark.parametrize("size", [4, 8, 12, 16, 40])
def test_coefficients_of_the_points_are_the_fourier_transform_and_the_spectrum(size):
    cosines = [math.cos(2 * math.pi * i / size) for i in range(size)]
    transform = [
        sum(max(c, 0) * cosines[i * k % size] for i, c in enumerate(cosines)) / size
        for k in range(size)
    ]
    ours = circle_coefficient(np.arange(size), size)
    np.testing.assert_allclose(ours, transform, atol=1e-15)
    np.testing.assert_array_equal(ours, circle_coefficient(np.arange(size) - 3 * size, size))
    assert ours[0] == pytest.approx(1 / math.tan(math.pi / size) / size, rel=1e-15)
    problem = RandomFeatures.circle(size)
    values = np.linalg.eigvalsh(problem.hessian(problem.initial()))
    np.testing.assert_allclose(values, np.sort(ours**2), atol=1e-16)


def test_coefficients_of_the_circle_are_the_fourier_integrals():
    for k in range(-5, 9):
        integral = mpmath.quad(
            lambda t, k=k: mpmath.cos(t) * mpmath.cos(k * t), [-mpmath.pi / 2, mpmath.pi / 2]
        )
        expected = float(integral / (2 * mpmath.pi))
        assert circle_coefficient(k) == pytest.approx(expected, rel=1e-14, abs=1e-16)
    # the points tend to the circle, with an error of order 1/n^2
    gaps = [abs(circle_coefficient(2, size) - circle_coefficient(2)) for size in (64, 128)]
    assert gaps[0] / gaps[1] == pytest.approx(4, abs=0.05)


def test_bad_orders_and_sizes_are_refused():
    with pytest.raises(TypeError, match="order must be integers"):
        circle_coefficient(0.5)
    for size in (6, 2):
        with pytest.raises(ValueError, match="size must be"):
            circle_coefficient(0, size)


# --- dual kernels ---------------------------------------------------------------------------------

# Exact expectation by quadrature of two Gaussians of given variances and covariance.
POINTS = [([1.0, 0.5], [0.3, -1.2]), ([2.0, 0.0], [2.0, 0.0]), ([0.5, 1.0], [-0.5, -1.0])]


def gaussian_mean(sigma, x, y):
    """E sigma(w.x) sigma(w.y) for w of two dimensions, in polar coordinates for homogeneous sigma."""

    def around(angle):
        w = mpmath.cos(angle), mpmath.sin(angle)
        first, second = w[0] * x[0] + w[1] * x[1], w[0] * y[0] + w[1] * y[1]
        return sigma(first) * sigma(second)

    kinks = [math.atan2(p[1], p[0]) + math.pi / 2 * s for p in (x, y) for s in (-1, 1)]
    ends = sorted({0.0, 2 * math.pi, *(k % (2 * math.pi) for k in kinks)})
    return 2 * mpmath.quad(around, ends) / (2 * mpmath.pi)  # E |w|^2 = 2


@pytest.mark.parametrize("activation", ["relu", "leaky", "identity"])
@pytest.mark.parametrize(("x", "y"), POINTS)
def test_homogeneous_kernels_are_the_integral_over_directions(activation, x, y):
    expected = float(gaussian_mean(SIGMA[activation], x, y))
    ours = dual_kernel([x], [y], activation, weights="gaussian", slope=0.3)
    assert ours.item() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    sphere = dual_kernel([x], [y], activation, slope=0.3)
    assert sphere.item() == pytest.approx(expected / 2, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("x", "y"), POINTS)
def test_the_kernel_of_erf_is_the_integral_over_the_plane(x, y):
    # the trapezoidal rule: exponentially accurate for smooth functions that fall as a Gaussian
    nodes = np.arange(-180, 181) / 20
    weights = np.exp(-(nodes**2) / 2) / 20
    first, second = np.meshgrid(nodes, nodes, indexing="ij")
    values = erf(first * x[0] + second * x[1]) * erf(first * y[0] + second * y[1])
    expected = weights @ values @ weights / (2 * np.pi)
    ours = dual_kernel([x], [y], "erf", weights="gaussian")
    assert ours.item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    ("activation", "weights"),
    [("relu", "sphere"), ("leaky", "sphere"), ("identity", "sphere"), ("erf", "gaussian")],
)
def test_many_features_tend_to_the_kernel(activation, weights):
    m, d = 200_000, 3
    inputs = rng(1).standard_normal((3, d))
    draws = rng(2).standard_normal((m, d))
    if weights == "sphere":
        draws /= np.linalg.norm(draws, axis=1, keepdims=True)
    problem = RandomFeatures(inputs, np.zeros(3), draws, activation, slope=0.3)
    features = problem.features() * np.sqrt(m)
    kernel = dual_kernel(inputs, None, activation, weights=weights, slope=0.3)
    for i in range(3):
        for j in range(3):
            products = features[i] * features[j]
            error = products.std() / np.sqrt(m)
            assert abs(products.mean() - kernel[i, j]) < 4.5 * error


def test_the_kernel_has_the_sizes_of_its_inputs_and_vanishes_at_zero():
    points = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(dual_kernel(points), [[25 / 4, 0], [0, 0]], atol=1e-16)
    assert dual_kernel(points, points[:1]).shape == (2, 1)
    opposite = dual_kernel(points[:1], -points[:1])
    assert opposite.item() == pytest.approx(0, abs=1e-14)


def test_kernels_without_a_closed_form_are_refused():
    for activation, weights in (("tanh", "gaussian"), ("tanh", "sphere"), ("erf", "sphere")):
        with pytest.raises(ValueError, match=f"'{activation}' has no closed form .*'{weights}'"):
            dual_kernel([[1.0]], None, activation, weights=weights)
    with pytest.raises(ValueError, match=r"others must have shape \(any, 2\)"):
        dual_kernel([[1.0, 2.0]], [[1.0]])
    with pytest.raises(ValueError, match="weights must be one of"):
        dual_kernel([[1.0]], weights="cube")


# --- the sphere -----------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("d", [2, 3, 7, 50])
def test_eigenvalues_on_the_sphere_are_integrals_over_the_angle(d, slope):
    def mean(function):
        return mpmath.quad(
            lambda t: function(t) * mpmath.sin(t) ** (d - 2), [0, mpmath.pi / 2, mpmath.pi]
        )

    def kernel(t):  # slopes 1 and s: E sigma sigma' from the angle between the half-planes
        def half(t):
            return (mpmath.sin(t) + (mpmath.pi - t) * mpmath.cos(t)) / (2 * mpmath.pi)

        return (1 + slope**2) * half(t) - 2 * slope * half(mpmath.pi - t)

    total = mean(lambda t: 1)
    ours = sphere_kernel(d, slope)
    assert ours.constant == pytest.approx(float(mean(kernel) / total), rel=1e-12, abs=1e-16)
    linear = mean(lambda t: kernel(t) * mpmath.cos(t)) / total
    assert ours.linear == pytest.approx(float(linear), rel=1e-12)
    square = mean(lambda t: kernel(t) ** 2) / total
    assert ours.mean_square == pytest.approx(float(square), rel=1e-12)


def test_the_worst_alignment_of_relu_features_falls_with_the_dimension():
    known = {3: 0.38, 5: 0.293, 10: 0.185, 20: 0.106, 50: 0.0463, 100: 0.0239}
    for d, value in known.items():
        assert sphere_kernel(d).worst_alignment == pytest.approx(value, rel=5e-3)
    assert sphere_kernel(10_000).worst_alignment == pytest.approx(np.pi**2 / 4e4, rel=1e-3)
    # without a constant mode: 1 - 1/d, as for linear regression
    assert sphere_kernel(10, 1.0).worst_alignment == pytest.approx(0.9, rel=1e-14)


def test_the_circle_is_the_sphere_in_two_dimensions():
    kernel = sphere_kernel(2)  # |x|^2 = 2 there
    assert kernel.constant == pytest.approx(2 * circle_coefficient(0) ** 2, rel=1e-15)
    assert kernel.linear == pytest.approx(2 * circle_coefficient(1) ** 2, rel=1e-15)
    assert kernel.mean_square == pytest.approx(4 * (1 / 96 + 5 / (64 * np.pi**2)), rel=1e-15)


def test_the_alignment_of_many_features_and_samples_tends_to_its_floor():
    n, m, d = 2000, 2000, 3
    features = RandomFeatures.draw(n, d, m).features()
    gram = features @ features.T
    residual = np.full(n, n**-0.5)  # the top eigenfunction
    squared = np.einsum("ij,ij->i", gram, gram)  # diagonal of K^2
    alignment = (n * residual**2 @ squared - np.sum((gram @ residual) ** 2)) / np.sum(gram**2)
    assert alignment == pytest.approx(sphere_kernel(d).worst_alignment, rel=0.05)


def test_spheres_of_no_dimension_are_refused():
    with pytest.raises(ValueError, match="n_inputs must be an integer >= 2"):
        sphere_kernel(1)


# --- the claims: mutations must be refuted ----------------------------------------------------------

CLAIMS = {claim.name: claim for claim in theory.dual_kernels.claims()}


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("circle_kernel", "symbolic"),
        ("circle_kernel", "quadrature"),
        ("sphere_kernel", "symbolic"),
        ("sphere_kernel", "quadrature"),
    ],
)
def test_a_wrong_kernel_is_refuted(name, route, monkeypatch):
    correct = dual_kernels.arc_cosine
    monkeypatch.setattr(
        dual_kernels,
        "arc_cosine",
        lambda *arguments: (
            sp.Rational(1001, 1000) * correct(*arguments)
            if isinstance(arguments[0], sp.Basic)
            else 1.001 * correct(*arguments)
        ),
    )
    with pytest.raises(Refuted):
        CLAIMS[name].routes[route]()


@pytest.mark.parametrize("name", ["sphere_kernel", "sphere_alignment_floor"])
def test_a_wrong_mean_square_is_refuted(name, monkeypatch):
    correct = dual_kernels.relu_mean_square
    monkeypatch.setattr(
        dual_kernels,
        "relu_mean_square",
        lambda d, *rest: correct(d, *rest) + sp.Rational(1, 1000) / d,
    )
    with pytest.raises(Refuted):
        CLAIMS[name].routes["symbolic"]()


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("circle_kernel", "symbolic"),
        ("circle_kernel", "quadrature"),
        ("circle_kernel", "simulation"),
        ("circle_of_points", "numbers"),
    ],
)
def test_a_wrong_coefficient_is_refuted(name, route, monkeypatch):
    correct = dual_kernels.circle_coefficient
    monkeypatch.setattr(
        dual_kernels, "circle_coefficient", lambda *arguments: 1.001 * correct(*arguments)
    )
    with pytest.raises(Refuted):
        CLAIMS[name].routes[route]()
