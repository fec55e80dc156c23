"""The perceptron: exact derivatives, also at complex points, and the small network at the edge."""

import numpy as np
import pytest

import eosim
from eosim import Perceptron
from tests import naive
from tests.cases import edge_network, perceptron

SIZES = {
    "one hidden": {"hidden": (3,)},
    "two hidden": {"hidden": (3, 2)},
    "three hidden": {"hidden": (2, 3, 2), "n_features": 3},
    "no hidden": {"hidden": ()},
    "two outputs": {"hidden": (3,), "n_outputs": 2},
    "deep, three outputs": {"hidden": (2, 4), "n_outputs": 3},
    "one of each": {"hidden": (1,), "n_features": 1, "n_samples": 1},
}
POINTS = ["real", "complex"]


@pytest.fixture(params=SIZES)
def network(request):
    return perceptron(**SIZES[request.param])


@pytest.fixture(params=POINTS)
def theta(request, network):
    generator = np.random.default_rng(5)
    point = generator.standard_normal(network.dim)
    if request.param == "complex":
        point = point + 0.3j * generator.standard_normal(network.dim)
    return point


def direction(network, seed=0):
    return np.random.default_rng(seed).standard_normal(network.dim)


def slope(function, theta, v, step=1e-6):
    """Central differences, at complex points too."""
    return (function(theta + step * v) - function(theta - step * v)) / (2 * step)


def test_outputs_and_loss_are_those_of_the_loops(network, theta):
    expected = [
        naive.network_output(theta, x, network.hidden, network.n_outputs) for x in network.inputs
    ]
    np.testing.assert_allclose(network.outputs(theta), expected, rtol=1e-12)
    loss = naive.network_loss(theta, network.inputs, network.targets, network.hidden)
    assert network.loss(theta) == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(network.residuals(theta), np.array(expected) - network.targets)
    new = np.random.default_rng(1).standard_normal((4, network.inputs.shape[1]))
    expected = [naive.network_output(theta, x, network.hidden, network.n_outputs) for x in new]
    np.testing.assert_allclose(network.outputs(theta, new), expected, rtol=1e-12)


def test_the_gradient_is_the_derivative_of_the_loss(network, theta):
    gradient = network.gradient(theta)
    assert gradient.shape == (network.dim,)
    for unit, entry in zip(np.eye(network.dim), gradient, strict=True):
        assert slope(network.loss, theta, unit) == pytest.approx(entry, rel=1e-6, abs=1e-8)
        # an imaginary step is as good: the loss is holomorphic
        imaginary = slope(network.loss, theta, 1j * unit) / 1j
        assert imaginary == pytest.approx(entry, rel=1e-6, abs=1e-8)
    if np.isrealobj(theta):
        exact = [network.loss(theta + 1e-30j * u).imag / 1e-30 for u in np.eye(network.dim)]
        np.testing.assert_allclose(gradient, exact, rtol=1e-12, atol=1e-14)


def test_the_product_is_the_derivative_of_the_gradient(network, theta):
    for seed in range(3):
        v = direction(network, seed)
        product = network.hvp(theta, v)
        np.testing.assert_allclose(product, slope(network.gradient, theta, v), rtol=1e-6, atol=1e-7)
        if np.isrealobj(theta):
            exact = network.gradient(theta + 1e-30j * v).imag / 1e-30
            np.testing.assert_allclose(product, exact, rtol=1e-11, atol=1e-13)
    v, w = direction(network, 1), direction(network, 2)
    np.testing.assert_allclose(
        network.hvp(theta, v + 2j * w),
        network.hvp(theta, v) + 2j * network.hvp(theta, w),
        rtol=1e-11,
        atol=1e-13,
    )


def test_the_hessian_is_symmetric_not_hermitian_and_gives_the_products(network, theta):
    hessian = network.hessian(theta)
    np.testing.assert_array_equal(hessian, hessian.T)
    v = direction(network)
    np.testing.assert_allclose(hessian @ v, network.hvp(theta, v), rtol=1e-11, atol=1e-13)
    if np.iscomplexobj(theta) and network.hidden:
        assert np.abs(hessian - hessian.conj().T).max() > 1e-3


def test_the_jacobian_is_the_derivative_of_the_outputs(network, theta):
    jacobian = network.jacobian(theta)
    n, k = len(network.inputs), network.n_outputs
    assert jacobian.shape == (n, k, network.dim)
    v = direction(network)
    np.testing.assert_allclose(jacobian @ v, slope(network.outputs, theta, v), rtol=1e-7, atol=1e-8)
    gradient = np.einsum("nkp,nk->p", jacobian, network.residuals(theta)) / n
    np.testing.assert_allclose(network.gradient(theta), gradient, rtol=1e-11, atol=1e-13)


def test_without_residuals_the_hessian_is_that_of_gauss_and_newton(network):
    theta = direction(network)
    fitted = Perceptron(network.inputs, network.outputs(theta), network.hidden)
    assert np.abs(fitted.gradient(theta)).max() < 1e-15
    jacobian = fitted.jacobian(theta).reshape(-1, fitted.dim)
    expected = jacobian.T @ jacobian / fitted.n_samples
    np.testing.assert_allclose(fitted.hessian(theta), expected, rtol=1e-11, atol=1e-13)
    spectrum = eosim.measure.gauss_newton_spectrum(fitted, theta)
    values = np.linalg.eigvalsh(fitted.hessian(theta))
    np.testing.assert_allclose(spectrum, values[::-1], atol=1e-12)


def test_by_hand_in_the_smallest_network():
    # f = c tanh(w x + b) + d at one sample
    network = Perceptron([[2.0]], [0.5], (1,))
    w, b, c, d = theta = np.array([0.3, -0.1, 1.5, 0.2])
    t = np.tanh(2 * w + b)
    e = c * t + d - 0.5
    s = 1 - t * t
    assert network.loss(theta) == pytest.approx(e * e / 2, rel=1e-14)
    jacobian = np.array([2 * c * s, c * s, t, 1.0])
    np.testing.assert_allclose(network.gradient(theta), e * jacobian, rtol=1e-13)
    np.testing.assert_allclose(network.jacobian(theta)[0, 0], jacobian, rtol=1e-13)
    second = np.zeros((4, 4))
    second[:2, :2] = -2 * c * t * s * np.array([[4.0, 2.0], [2.0, 1.0]])
    second[2, :2] = second[:2, 2] = s * np.array([2.0, 1.0])
    expected = np.outer(jacobian, jacobian) + e * second
    np.testing.assert_allclose(network.hessian(theta), expected, rtol=1e-12, atol=1e-14)


# --- batches ------------------------------------------------------------------------------------

NAMES = ("loss", "gradient", "hessian")


def test_a_batch_is_the_network_of_its_samples_alone(network, theta):
    rows = np.array([0, len(network.inputs) - 1, 0])  # repetition counts twice
    alone = Perceptron(network.inputs[rows], network.targets[rows], network.hidden)
    v = direction(network)
    for name in NAMES:
        ours, expected = getattr(network, name)(theta, rows), getattr(alone, name)(theta)
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(network.hvp(theta, v, rows), alone.hvp(theta, v), rtol=1e-11)
    np.testing.assert_allclose(network.jacobian(theta, rows), alone.jacobian(theta), rtol=1e-12)
    np.testing.assert_allclose(network.residuals(theta, rows), alone.residuals(theta), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 3])
def test_batches_average_to_all_samples(size):
    network = perceptron(n_samples=9, n_outputs=2, hidden=(3, 2))
    theta, v = direction(network), direction(network, 1)
    batches = np.random.default_rng(0).permutation(9).reshape(-1, size)
    for name in NAMES:
        mean = np.mean([getattr(network, name)(theta, batch) for batch in batches], axis=0)
        np.testing.assert_allclose(mean, getattr(network, name)(theta), rtol=1e-11, atol=1e-14)
    mean = np.mean([network.hvp(theta, v, batch) for batch in batches], axis=0)
    np.testing.assert_allclose(mean, network.hvp(theta, v), rtol=1e-11, atol=1e-14)


# --- layout and start ---------------------------------------------------------------------------


def test_the_layout_is_layer_by_layer_row_by_row_bias_last():
    network = Perceptron(np.zeros((4, 2)), np.zeros((4, 3)), (5, 6))
    assert network.shapes == [(5, 3), (6, 6), (3, 7)]
    assert network.dim == 15 + 36 + 21
    assert (network.n_samples, network.n_outputs, network.hidden) == (4, 3, (5, 6))
    theta = np.zeros(network.dim)
    theta[-1] = 2.0  # the last bias
    np.testing.assert_array_equal(network.outputs(theta), np.tile([0.0, 0.0, 2.0], (4, 1)))
    assert Perceptron(np.zeros((4, 2)), np.zeros(4)).hidden == (32,)


def test_the_initial_point_is_random_with_biases_zero():
    network = Perceptron(np.zeros((4, 200)), np.zeros(4), (300,))
    theta = network.initial(seed=3)
    assert theta.shape == (network.dim,)
    first, second = theta[: 300 * 201].reshape(300, 201), theta[300 * 201 :]
    np.testing.assert_array_equal(first[:, -1], 0)
    assert second[-1] == 0
    assert first[:, :-1].std() == pytest.approx(1 / np.sqrt(200), rel=0.02)
    assert second[:-1].std() == pytest.approx(1 / np.sqrt(300), rel=0.15)
    np.testing.assert_array_equal(theta, network.initial(seed=3))
    assert (theta != network.initial(seed=4)).any()
    expected = np.random.default_rng(3).standard_normal((300, 200)) / np.sqrt(200)
    np.testing.assert_array_equal(first[:, :-1], expected)


def test_the_data_are_copied_and_nothing_is_modified():
    inputs, targets = np.ones((3, 2)), np.zeros(3)
    network = Perceptron(inputs, targets, [4])
    theta = network.initial()
    before = network.loss(theta)
    inputs[:] = 7.0
    targets[:] = 7.0
    assert network.loss(theta) == before
    frozen = theta.copy()
    frozen.flags.writeable = False
    network.loss(frozen), network.gradient(frozen), network.hvp(frozen, frozen)
    network.hessian(frozen), network.jacobian(frozen), network.outputs(frozen)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0, 2.0], [1.0, 2.0], (3,)), ValueError, "inputs must have shape"),
        (([[1.0], [2.0]], [1.0], (3,)), ValueError, "one row per sample"),
        (([[1.0]], 3.0, (3,)), ValueError, "targets"),
        (([[1.0]], [[[1.0]]], (3,)), ValueError, "targets"),
        ((np.zeros((0, 2)), [], (3,)), ValueError, "not empty"),
        ((np.zeros((2, 0)), [1.0, 2.0], (3,)), ValueError, "not empty"),
        (([[np.nan]], [1.0], (3,)), ValueError, "inputs has 1 non-finite"),
        (([[1.0]], [np.inf], (3,)), ValueError, "targets has 1 non-finite"),
        (([[1j]], [1.0], (3,)), TypeError, "inputs must be real"),
        (([["a"]], [1.0], (3,)), TypeError, "inputs"),
        (([[1.0], [1.0, 2.0]], [1.0, 2.0], (3,)), ValueError, "inputs"),
        (([[1.0]], [1.0], (0,)), ValueError, "hidden must be an integer >= 1"),
        (([[1.0]], [1.0], (3, -1)), ValueError, "hidden"),
        (([[1.0]], [1.0], (2.5,)), TypeError, "hidden"),
        (([[1.0]], [1.0], (True,)), TypeError, "hidden"),
        (([[1.0]], [1.0], 32), TypeError, "hidden"),
        (([[1.0]], [1.0], None), TypeError, "hidden"),
    ],
)
def test_bad_data_and_widths_are_refused_with_their_name(arguments, error, message):
    with pytest.raises(error, match=message):
        Perceptron(*arguments)


def test_new_inputs_of_the_wrong_width_are_refused_with_their_name():
    network = perceptron()
    for inputs in (np.zeros((4, 3)), np.zeros(2)):
        with pytest.raises(ValueError, match="inputs must have shape"):
            network.outputs(np.zeros(network.dim), inputs)


@pytest.mark.parametrize("length", [12, 14])
def test_a_run_refuses_a_start_of_the_wrong_length(length):
    with pytest.raises(ValueError, match=r"theta0 must have shape \(13,\)"):
        eosim.run(perceptron(), eosim.GradientDescent(0.1), np.zeros(length), 1)


# --- the small network --------------------------------------------------------------------------


def test_the_small_network_is_the_known_one():
    problem, theta = edge_network()
    assert problem.dim == 25
    assert problem.loss(theta) == pytest.approx(0.5769, abs=5e-5)
    top = np.linalg.eigvalsh(problem.hessian(theta))[-3:]
    np.testing.assert_allclose(top, [0.694, 1.338, 3.315], atol=5e-4)


def test_the_derivatives_of_the_small_network_are_those_of_its_blocks():
    problem, theta = edge_network()
    theta = theta + 0.1j * np.cos(np.arange(25))
    inputs = np.hstack([problem.inputs, np.ones((20, 1))])  # the bias column
    weights, output, bias = theta[:18].reshape(6, 3), theta[18:24], theta[24]
    units = np.tanh(inputs @ weights.T)
    slopes = 1 - units**2
    residual = units @ output + bias - problem.targets[:, 0]
    jacobian = np.hstack(
        [*((output[j] * slopes[:, [j]]) * inputs for j in range(6)), units, np.ones((20, 1))]
    )
    np.testing.assert_allclose(problem.jacobian(theta)[:, 0], jacobian, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(problem.gradient(theta), jacobian.T @ residual / 20, rtol=1e-11)
    hessian = jacobian.T @ jacobian / 20
    for j in range(6):
        block = slice(3 * j, 3 * j + 3)
        weight = -2 * output[j] * residual * units[:, j] * slopes[:, j]
        hessian[block, block] += inputs.T @ (weight[:, None] * inputs) / 20
        mixed = inputs.T @ (residual * slopes[:, j]) / 20
        hessian[block, 18 + j] += mixed
        hessian[18 + j, block] += mixed
    np.testing.assert_allclose(problem.hessian(theta), hessian, rtol=1e-11, atol=1e-13)


def test_gradient_descent_on_the_small_network_sits_at_the_edge_of_stability():
    problem, theta = edge_network()
    path = eosim.run(problem, eosim.GradientDescent(0.7), theta, 2000)
    z = [0.7 * eosim.measure.sharpness(problem, x).value for x in path.theta[1000:]]
    assert min(z) >= 1.97
    assert max(z) <= 2.06
    assert path["loss"][2000] < path["loss"][1000] < path["loss"][0]
