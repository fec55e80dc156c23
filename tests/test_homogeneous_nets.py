"""Homogeneous nets: derivatives away from the kinks, frozen gates, the weight norm, dead units."""

import tracemalloc

import numpy as np
import pytest

import eosim
from eosim.problems.base import third_derivative
from eosim.problems.networks.deep import DeepHomogeneousNet
from eosim.problems.networks.homogeneous import (
    FrozenGates,
    TwoLayerNet,
    activation_sparsity,
    uv_net,
)
from eosim.problems.quadratic import catapult_bound

NAMES = ("loss", "gradient", "hessian")
LINEAR, LEAKY, RELU = (1.0, 1.0), (1.0, 0.25), (1.0, 0.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def data(n=5, d=3, seed=0, targets=True):
    generator = rng(seed + 50)
    return generator.standard_normal((n, d)), generator.standard_normal(n) if targets else [0.0] * n


def two_layer(slopes=RELU, width=4, **options):
    return TwoLayerNet(*data(**options), width, slopes)


def deep(slopes=RELU, widths=(4, 3), **options):
    return DeepHomogeneousNet(*data(**options), widths, slopes)


PROBLEMS = {
    "relu": two_layer,
    "leaky": lambda: two_layer(LEAKY),
    "linear": lambda: two_layer(LINEAR),
    "mirrored": lambda: two_layer((-0.5, 2.0)),
    "one unit": lambda: two_layer(LEAKY, width=1),
    "one sample, one input": lambda: two_layer(LEAKY, n=1, d=1),
    "uv": lambda: uv_net(*data(), 4),
    "frozen relu": lambda: two_layer().frozen(two_layer().initial(8)),
    "frozen linear": lambda: two_layer(LINEAR).frozen(two_layer().initial(8)),
    "deep relu": deep,
    "deep leaky": lambda: deep(LEAKY, (3, 2, 4)),
    "deep linear": lambda: deep(LINEAR),
    "deep, one layer": lambda: deep(widths=(4,)),
}
DEGREE_TWO = [name for name in PROBLEMS if name != "deep" and "deep" not in name]


@pytest.fixture(params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]()


def sigma(t, slopes):
    return slopes[0] * t if np.real(t) > 0 else slopes[1] * t


def naive_output(problem, theta, x):
    """z(x) by loops over layers and units."""
    gates_at = problem.theta0 if isinstance(problem, FrozenGates) else None
    widths = getattr(problem, "widths", None) or (problem.width,)
    units, start = list(x), 0
    for width in widths:
        above = []
        for _ in range(width):
            row = range(start, start + len(units))
            pre = sum(theta[j] * unit for j, unit in zip(row, units, strict=True))
            if gates_at is None:
                above.append(sigma(pre, problem.slopes))
            else:
                gate = sum(gates_at[j] * unit for j, unit in zip(row, units, strict=True))
                above.append(pre * problem.slopes[0 if gate > 0 else 1])
            start += len(units)
        units = above
    return problem.prefactor * sum(v * u for v, u in zip(theta[start:], units, strict=True))


def naive_loss(problem, theta):
    errors = [
        naive_output(problem, theta, x) - y
        for x, y in zip(problem.inputs, problem.targets[:, 0], strict=True)
    ]
    return sum(e * e for e in errors) / (2 * len(errors))


def local(function, theta, v, step=1e-6):
    """Central differences: short enough here that no unit crosses its kink."""
    return (function(theta + step * v) - function(theta - step * v)) / (2 * step)


# --- derivatives --------------------------------------------------------------------------------


def test_outputs_and_loss_are_those_of_the_loops(problem):
    theta = problem.initial(1) if hasattr(problem, "initial") else problem.net.initial(1)
    for x, z, e, y in zip(
        problem.inputs,
        problem.outputs(theta)[:, 0],
        problem.residuals(theta)[:, 0],
        problem.targets[:, 0],
        strict=True,
    ):
        assert z == pytest.approx(naive_output(problem, theta, x), rel=1e-12, abs=1e-14)
        assert e == pytest.approx(z - y, rel=1e-12, abs=1e-14)
    assert problem.loss(theta) == pytest.approx(naive_loss(problem, theta), rel=1e-12)
    new = rng(9).standard_normal((4, problem.inputs.shape[1]))
    expected = [[naive_output(problem, theta, x)] for x in new]
    np.testing.assert_allclose(problem.outputs(theta, new), expected, rtol=1e-12, atol=1e-14)


def test_the_gradient_is_the_derivative_of_the_naive_loss(problem):
    theta = rng(1).standard_normal(problem.dim)
    step = 1e-30
    slopes = [naive_loss(problem, theta + 1j * step * u).imag / step for u in np.eye(problem.dim)]
    np.testing.assert_allclose(problem.gradient(theta), slopes, rtol=1e-11, atol=1e-13)
    real = [local(problem.loss, theta, u) for u in np.eye(problem.dim)]
    np.testing.assert_allclose(problem.gradient(theta), real, rtol=1e-6, atol=1e-8)


def test_second_and_third_derivatives_away_from_the_kinks(problem):
    theta, v, w = rng(1).standard_normal((3, problem.dim))
    product = problem.gradient(theta + 1e-30j * v).imag / 1e-30
    np.testing.assert_allclose(problem.hvp(theta, v), product, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(problem.hvp(theta, v), local(problem.gradient, theta, v), atol=1e-6)
    hessian = problem.hessian(theta)
    np.testing.assert_array_equal(hessian, hessian.T)
    np.testing.assert_allclose(hessian @ v, product, rtol=1e-10, atol=1e-12)
    bend = local(lambda x: problem.hvp(x, v), theta, w)
    third = third_derivative(problem, theta, w, v)
    np.testing.assert_allclose(third, bend, rtol=1e-6, atol=1e-6)
    exact = problem.hvp(theta + 1e-30j * w, v).imag / 1e-30
    np.testing.assert_allclose(third, exact, rtol=1e-10, atol=1e-12)


def test_the_jacobian_and_the_kernel(problem):
    theta, v = rng(1).standard_normal((2, problem.dim))
    jacobian = problem.jacobian(theta)
    assert jacobian.shape == (problem.n_samples, 1, problem.dim)
    np.testing.assert_allclose(jacobian @ v, local(problem.outputs, theta, v), atol=1e-7)
    rows = jacobian[:, 0]
    gradient = problem.residuals(theta)[:, 0] @ rows / problem.n_samples
    np.testing.assert_allclose(problem.gradient(theta), gradient, rtol=1e-11, atol=1e-13)
    kernel = problem.ntk(theta)
    np.testing.assert_allclose(kernel, rows @ rows.T / problem.n_samples, rtol=1e-12, atol=1e-14)
    top = eosim.measure.ntk_spectrum(problem, theta)[0]
    assert np.linalg.eigvalsh(kernel)[-1] == pytest.approx(top, rel=1e-12)


def test_derivatives_continue_to_complex_points(problem):
    theta, other, v, w = rng(2).standard_normal((4, problem.dim))
    theta, v = theta + 0.3j * other, v + 0.5j * w
    gradient = problem.gradient(theta)
    scale = np.abs(problem.hessian(theta)).max() + 1
    assert abs(gradient @ v - local(problem.loss, theta, v)) < 1e-6 * scale
    np.testing.assert_allclose(
        problem.hvp(theta, v), local(problem.gradient, theta, v), atol=1e-6 * scale
    )
    bend = local(lambda x: problem.hvp(x, v), theta, w)
    np.testing.assert_allclose(
        problem.third_derivative(theta, w, v), bend, atol=1e-5 * scale, rtol=1e-6
    )
    rows = problem.jacobian(theta)[:, 0]
    np.testing.assert_allclose(
        problem.ntk(theta), rows @ rows.T / problem.n_samples, rtol=1e-11, atol=1e-13
    )


def test_only_nets_without_kinks_are_analytic():
    analytic = {name for name, make in PROBLEMS.items() if make().analytic}
    assert analytic == {"linear", "uv", "frozen relu", "frozen linear", "deep linear"}


def test_one_hidden_layer_is_the_two_layer_net():
    for slopes in (RELU, LEAKY, LINEAR):
        shallow, layered = two_layer(slopes), deep(slopes, (4,))
        theta, v, w = rng(3).standard_normal((3, shallow.dim))
        for name in ("loss", "gradient", "hessian", "jacobian", "ntk", "outputs"):
            ours, expected = getattr(layered, name)(theta), getattr(shallow, name)(theta)
            np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-13)
        third = shallow.third_derivative(theta, v, w)
        np.testing.assert_allclose(layered.third_derivative(theta, v, w), third, rtol=1e-10)


@pytest.mark.parametrize("batch", [[0, 4, 0], [2]])
def test_a_batch_is_the_net_of_its_samples_alone(problem, batch):
    batch = np.array(batch) % problem.n_samples
    theta, v = rng(1).standard_normal((2, problem.dim))
    inputs, targets = problem.inputs[batch], problem.targets[batch]
    if isinstance(problem, FrozenGates):
        net = problem.net
        alone = TwoLayerNet(inputs, targets, net.width, net.slopes).frozen(problem.theta0)
    else:
        shape = problem.widths if isinstance(problem, DeepHomogeneousNet) else problem.width
        alone = type(problem)(inputs, targets, shape, problem.slopes, problem.prefactor)
    for name in (*NAMES, "residuals", "jacobian"):
        ours, expected = getattr(problem, name)(theta, batch), getattr(alone, name)(theta)
        np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(problem.hvp(theta, v, batch), alone.hvp(theta, v), rtol=1e-11)


def test_batches_average_to_all_samples(problem):
    theta, v = rng(1).standard_normal((2, problem.dim))
    rows = [np.array([a]) for a in range(problem.n_samples)]
    for name in NAMES:
        mean = np.mean([getattr(problem, name)(theta, row) for row in rows], axis=0)
        np.testing.assert_allclose(mean, getattr(problem, name)(theta), rtol=1e-11, atol=1e-14)
    mean = np.mean([problem.hvp(theta, v, row) for row in rows], axis=0)
    np.testing.assert_allclose(mean, problem.hvp(theta, v), rtol=1e-11, atol=1e-13)


# --- layout and normalisation --------------------------------------------------------------------


def test_by_hand_two_relu_units():
    # z(x) = (2)^(-1/2) [3 relu(2 x) + 5 relu(-x)] at x = 1 and -1
    net = TwoLayerNet([[1.0], [-1.0]], [0.0, 0.0], 2)
    theta = np.array([2.0, -1.0, 3.0, 5.0])
    c = 2**-0.5
    np.testing.assert_allclose(net.outputs(theta), [[6 * c], [5 * c]], rtol=1e-15)
    rows = [[3 * c, 0, 2 * c, 0], [0, -5 * c, 0, c]]
    np.testing.assert_allclose(net.jacobian(theta)[:, 0], rows, rtol=1e-15)
    np.testing.assert_allclose(net.ntk(theta), [[13 / 4, 0], [0, 26 / 4]], rtol=1e-15)


def test_the_normalisation_and_the_order_of_the_draws():
    inputs, targets = data(d=3)
    net = TwoLayerNet(inputs, targets, 5)
    assert (net.dim, net.n_samples, net.n_outputs, net.slopes) == (20, 5, 1, (1.0, 0.0))
    assert net.prefactor == pytest.approx(15**-0.5)
    generator = rng(4)
    hidden, readout = generator.standard_normal((5, 3)), generator.standard_normal(5)
    np.testing.assert_array_equal(net.initial(4), np.concatenate([hidden.ravel(), readout]))
    assert uv_net(inputs, targets, 5).prefactor == pytest.approx(5**-0.5)
    layered = DeepHomogeneousNet(inputs, targets, (5, 4))
    assert layered.prefactor == pytest.approx(60**-0.5)
    assert layered.shapes == [(5, 3), (4, 5), (1, 4)]
    generator = rng(4)
    parts = [generator.standard_normal(shape).ravel() for shape in layered.shapes]
    np.testing.assert_array_equal(layered.initial(4), np.concatenate(parts))


def test_the_kernel_of_the_linear_net_with_one_input_is_the_weight_norm():
    net = uv_net([[1.0]], [0.0], 7)
    theta = net.initial(3)
    assert net.ntk(theta)[0, 0] == pytest.approx(theta @ theta / 7, rel=1e-14)
    assert net.outputs(theta)[0, 0] == pytest.approx(theta[:7] @ theta[7:] / np.sqrt(7))


def test_the_slope_at_zero_is_that_of_the_negative_side():
    for slopes in (RELU, (1.0, 0.5)):
        net = TwoLayerNet([[1.0]], [1.0], 1, slopes)
        assert net.jacobian(np.array([0.0, 2.0]))[0, 0, 0] == 2 * slopes[1]
        layered = DeepHomogeneousNet([[1.0]], [1.0], (1,), slopes)
        assert layered.jacobian(np.array([-0.0, 2.0]))[0, 0, 0] == 2 * slopes[1]


# --- the weight norm -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_euler_identities(name):
    """theta.grad z = k z, |theta'|^2 - |theta|^2 = (eta/D) [eta e'He - 2 k e.z] in degree k."""
    problem = PROBLEMS[name]()
    degree = len(problem.widths) + 1 if "deep" in name else 2
    n, theta = problem.n_samples, rng(6).standard_normal(problem.dim)
    lr = 2.2 / np.linalg.eigvalsh(problem.ntk(theta))[-1]
    path = eosim.run(problem, eosim.GradientDescent(lr), theta, 12)
    for before, after in zip(path.theta[:-1], path.theta[1:], strict=True):
        z, e = problem.outputs(before)[:, 0], problem.residuals(before)[:, 0]
        slopes = problem.jacobian(before)[:, 0] @ before
        np.testing.assert_allclose(slopes, degree * z, rtol=1e-11, atol=1e-12)
        change = lr / n * (lr * e @ problem.ntk(before) @ e - 2 * degree * e @ z)
        scale = before @ before + after @ after + lr * e @ e
        assert abs(after @ after - before @ before - change) < 1e-12 * scale


def test_the_norm_bound_is_above_the_kernel_at_every_theta():
    generator = rng(0)
    for name in DEGREE_TWO:
        problem = PROBLEMS[name]()
        for _ in range(100):
            theta = generator.standard_normal(problem.dim) * generator.choice([0.1, 1, 5])
            top = np.linalg.eigvalsh(problem.ntk(theta))[-1]
            assert top <= problem.ntk_bound(theta) * (1 + 1e-12)


def test_the_norm_bound_is_the_published_formula():
    net = two_layer((0.5, -2.0))
    theta = net.initial(1)
    top = np.linalg.eigvalsh(net.inputs @ net.inputs.T / 5)[-1]
    expected = 4 * top * theta @ theta / (net.width * 3)
    assert net.ntk_bound(theta) == pytest.approx(expected, rel=1e-12)
    # d = 1, slopes (1, a), one sample: 4 lam_0 / B tends to 2 (1 + a^2)
    for slope in (0.0, 0.5, 0.75, 1.0):
        wide = TwoLayerNet([[1.0]], [0.0], 100_000, (1.0, slope))
        theta = wide.initial(2)
        assert catapult_bound(wide, theta) == pytest.approx(2 * (1 + slope**2), rel=0.02)
    relu = TwoLayerNet([[1.0]], [0.0], 100)
    assert catapult_bound(relu, relu.initial(0), "active") == pytest.approx(4, rel=1e-14)


@pytest.mark.parametrize("slopes", [RELU, LEAKY, LINEAR])
def test_below_the_bound_the_norm_falls_and_the_loss_vanishes(slopes):
    net = TwoLayerNet(data(3, 2)[0], [0.0] * 3, 6, slopes)
    theta = net.initial(4)
    lr = 0.999 * 4 / net.ntk_bound(theta)
    path = eosim.run(net, eosim.GradientDescent(lr), theta, 2000)
    norms = np.sum(path.theta**2, axis=1)
    assert (np.diff(norms) <= 1e-13 * norms[0]).all()
    assert path["loss"][-1] < 1e-6 * path["loss"][0]


# --- frozen gates --------------------------------------------------------------------------------


@pytest.mark.parametrize("slopes", [RELU, LEAKY, LINEAR])
def test_frozen_gates_are_the_second_order_taylor_expansion(slopes):
    net = two_layer(slopes)
    theta0 = net.initial(8)
    frozen = net.frozen(theta0)
    slope = net.jacobian(theta0)[:, 0]
    np.testing.assert_allclose(frozen.jacobian(theta0)[:, 0], slope, rtol=1e-14, atol=1e-15)
    for seed in range(5):
        step = 3 * net.initial(20 + seed)
        # J is linear in theta up to the nearest kink: its derivative is exact by a complex step
        bend = net.jacobian(theta0 + 1e-30j * step)[:, 0].imag / 1e-30
        taylor = net.outputs(theta0)[:, 0] + slope @ step + bend @ step / 2
        ours = frozen.outputs(theta0 + step)[:, 0]
        np.testing.assert_allclose(ours, taylor, rtol=1e-12, atol=1e-12)
        if slopes != LINEAR:
            assert np.abs(net.outputs(theta0 + step)[:, 0] - taylor).max() > 1e-3


def test_frozen_gates_leave_the_net_only_when_a_unit_crosses_its_kink():
    net = two_layer(width=3, n=4, d=2)
    theta = net.initial(1)
    rule = eosim.GradientDescent(0.2)
    ours = eosim.run(net, rule, theta, 60)
    model = eosim.run(net.frozen(theta), rule, theta, 60)
    gates = np.array([net.pre_activations(x)[0] > 0 for x in ours.theta])
    changed = np.flatnonzero((gates != gates[0]).any(axis=(1, 2)))
    first = changed[0]
    assert first > 3
    np.testing.assert_allclose(ours.theta[: first + 1], model.theta[: first + 1], rtol=1e-12)
    assert np.abs(ours.theta[first + 1] - model.theta[first + 1]).max() > 1e-6


# --- dead units and sparsity ---------------------------------------------------------------------


def test_a_dead_unit_never_moves_again():
    net = TwoLayerNet([[1.0, 0.5]], [0.3], 64)
    theta = net.initial(0)
    top = net.ntk(theta)[0, 0]
    path = eosim.run(net, eosim.GradientDescent(3.0 / top), theta, 40)
    active = np.array([net.pre_activations(x)[0][0] > 0 for x in path.theta])  # (steps, units)
    assert (active[1:] <= active[:-1]).all()
    assert active[-1].sum() < active[0].sum()
    hidden = path.theta[:, :128].reshape(-1, 64, 2)
    for step in range(40):
        dead = ~active[step]
        np.testing.assert_array_equal(hidden[step][dead], hidden[-1][dead])
        np.testing.assert_array_equal(path.theta[step, 128:][dead], path.theta[-1, 128:][dead])


def test_a_dead_net_has_the_loss_of_its_label_and_no_kernel():
    net = TwoLayerNet([[4.0]], [2.0], 3)
    theta = np.array([-1.0, -2.0, 0.0, 1.0, 1.0, 1.0])  # pre-activation 0 is dead too
    assert net.loss(theta) == 2.0
    np.testing.assert_array_equal(net.gradient(theta), 0)
    assert net.ntk(theta)[0, 0] == 0
    with pytest.raises(ValueError, match="positive ntk_bound"):
        catapult_bound(net, theta, "active")


@pytest.mark.parametrize("ratio", [1.5, 2.5, 3.5])
def test_relu_with_one_sample_never_exceeds_its_initial_kernel(ratio):
    for seed in range(5):
        net = TwoLayerNet([[1.0]], [0.0], 200)
        theta = net.initial(seed)
        start = net.ntk(theta)[0, 0]
        path = eosim.run(net, eosim.GradientDescent(ratio / start), theta, 600)
        kernels = [net.ntk(x)[0, 0] for x in path.theta]
        assert (np.diff(kernels) <= 1e-12 * start).all()
        assert kernels[-1] < 2 / ratio * start * (1 + 1e-6)
        assert path["loss"][-1] < 1e-4 * path["loss"][0]


def test_sparsity_is_one_half_at_the_start_and_grows_in_the_catapult():
    net = TwoLayerNet([[1.0]], [0.0], 4096)
    theta = net.initial(1)
    start = activation_sparsity(net, theta)
    assert start.shape == (1,)
    assert start[0] == pytest.approx(0.5, abs=0.03)
    lr = 2.5 / net.ntk(theta)[0, 0]
    path = eosim.run(
        net, eosim.GradientDescent(lr), theta, 60, record={"sparsity": activation_sparsity}
    )
    assert path["sparsity"][-1, 0] == pytest.approx(0.547, abs=0.03)
    layers = activation_sparsity(deep(widths=(300, 200)), deep(widths=(300, 200)).initial(1))
    np.testing.assert_allclose(layers, [0.5, 0.5], atol=0.08)


def test_sparsity_counts_strict_negatives_over_units_and_samples():
    net = TwoLayerNet([[1.0], [-2.0], [0.0]], [0.0] * 3, 2)
    theta = np.array([1.0, 0.0, 1.0, 1.0])  # pre-activations 1, -2, 0 and three zeros
    assert activation_sparsity(net, theta)[0] == pytest.approx(1 / 6)
    layered = DeepHomogeneousNet([[1.0], [-2.0]], [0.0] * 2, (2, 1))
    theta = np.array([1.0, -1.0, 1.0, -1.0, 3.0])
    # first layer (1, -1), (-2, 2); second: 1 * 1 - 0 = 1, 0 - 2 = -2
    np.testing.assert_allclose(activation_sparsity(layered, theta), [2 / 4, 1 / 2])


# --- size ----------------------------------------------------------------------------------------


def test_a_step_of_a_hundred_thousand_units_takes_the_memory_of_its_activations():
    inputs, targets = data(16, 8)
    net = TwoLayerNet(inputs, targets, 100_000)
    theta = net.initial(0)
    v = net.initial(1)
    tracemalloc.start()
    try:
        for _ in range(3):
            theta = theta - 0.1 * net.gradient(theta)
        net.hvp(theta, v), net.ntk(theta), activation_sparsity(net, theta)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * 16 * 100_000 * 8
    assert np.isfinite(net.loss(theta))


def test_the_data_are_copied_and_nothing_is_modified(problem):
    theta = rng(0).standard_normal(problem.dim)
    theta.flags.writeable = False
    for name in (*NAMES, "residuals", "jacobian", "ntk", "outputs"):
        getattr(problem, name)(theta)
    problem.hvp(theta, theta), problem.third_derivative(theta, theta, theta)
    assert not problem.inputs.flags.writeable
    inputs = np.ones((2, 2))
    net = TwoLayerNet(inputs, [0.0, 0.0], 3)
    before = net.loss(net.initial())
    inputs[:] = 7.0
    assert net.loss(net.initial()) == before


# --- bad input ----------------------------------------------------------------------------------

NET = two_layer()
ONE = TwoLayerNet([[1.0]], [0.0], 2, LEAKY)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TwoLayerNet([1.0], [1.0], 2), ValueError, "inputs must have shape"),
        (lambda: TwoLayerNet([[1.0]], 1.0, 2), ValueError, "targets"),
        (lambda: TwoLayerNet([[1.0]], [[1.0, 2.0]], 2), ValueError, r"\(n,\) or \(n, 1\)"),
        (lambda: TwoLayerNet(np.zeros((0, 1)), [], 2), ValueError, "not empty"),
        (lambda: TwoLayerNet([[1.0]], [1.0, 2.0], 2), ValueError, "one row per sample"),
        (lambda: TwoLayerNet([[np.nan]], [1.0], 2), ValueError, "inputs has 1 non-finite"),
        (lambda: TwoLayerNet([[1.0]], [np.inf], 2), ValueError, "targets has 1 non-finite"),
        (lambda: TwoLayerNet([[1j]], [1.0], 2), TypeError, "inputs must be real"),
        (lambda: TwoLayerNet([[1.0]], [1.0], 0), ValueError, "width must be an integer >= 1"),
        (lambda: TwoLayerNet([[1.0]], [1.0], 2.0), TypeError, "width"),
        (lambda: TwoLayerNet([[1.0]], [1.0], 2, 1.0), ValueError, "slopes must have shape"),
        (lambda: TwoLayerNet([[1.0]], [1.0], 2, (1, 0, 0)), ValueError, "slopes must have shape"),
        (lambda: TwoLayerNet([[1.0]], [1.0], 2, (0, 0)), ValueError, "slopes must not both be 0"),
        (lambda: TwoLayerNet([[1.0]], [1.0], 2, (1, np.nan)), ValueError, "slopes has 1 non"),
        (lambda: TwoLayerNet([[1.0]], [1.0], 2, (1, "a")), TypeError, "slopes"),
        (lambda: TwoLayerNet([[1.0]], [1.0], 2, RELU, -1.0), ValueError, "prefactor"),
        (lambda: TwoLayerNet([[1.0]], [1.0], 2, RELU, [1.0]), TypeError, "prefactor"),
        (lambda: uv_net([[1.0]], [1.0], 0), ValueError, "width"),
        (lambda: DeepHomogeneousNet([[1.0]], [1.0], ()), ValueError, "at least one hidden layer"),
        (lambda: DeepHomogeneousNet([[1.0]], [1.0], (2, 0)), ValueError, "widths"),
        (lambda: DeepHomogeneousNet([[1.0]], [1.0], (2.5,)), TypeError, "widths"),
        (lambda: DeepHomogeneousNet([[1.0]], [1.0], 2), TypeError, "widths"),
        (lambda: DeepHomogeneousNet([[1.0]], [1.0, 2.0]), ValueError, "one row per sample"),
        (lambda: DeepHomogeneousNet([[1.0]], [1.0], (2,), (0, 0)), ValueError, "slopes"),
        (lambda: NET.frozen([1.0]), ValueError, "theta0 must have shape"),
        (lambda: NET.frozen(NET.initial() * np.nan), ValueError, "theta0 has 16 non-finite"),
        (lambda: FrozenGates(deep(), deep().initial()), TypeError, "net must be a TwoLayerNet"),
        (
            lambda: NET.outputs(NET.initial(), [[1.0]]),
            ValueError,
            r"inputs must have shape \(any, 3",
        ),
        (lambda: NET.ntk_bound([1.0]), ValueError, "theta must have shape"),
        (lambda: NET.ntk_bound(NET.initial(), "omega"), ValueError, "kind must be one of"),
        (lambda: NET.ntk_bound(NET.initial(), "active"), ValueError, "one sample and a slope 0"),
        (lambda: ONE.ntk_bound(ONE.initial(), "active"), ValueError, "one sample and a slope 0"),
        (lambda: catapult_bound(deep(), deep().initial()), TypeError, "has no ntk_bound"),
        (lambda: activation_sparsity(ONE, ONE.initial()), ValueError, "needs slope 0"),
        (
            lambda: activation_sparsity(NET.frozen(NET.initial()), NET.initial()),
            TypeError,
            "problem must be a TwoLayerNet or a DeepHomogeneousNet",
        ),
    ],
)
def test_bad_input_is_refused_with_its_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
