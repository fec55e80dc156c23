"""Linear networks: derivatives, the factors of the kernel, and alignment with Gaussian inputs."""

import numpy as np
import pytest

import eosim
import theory.alignment
from eosim.problems.base import third_derivative
from eosim.problems.networks.deep import DeepHomogeneousNet
from eosim.problems.networks.linear import DiagonalNet, LinearNet
from eosim.problems.regression import LinearRegression
from theory.claim import Refuted


def rng(seed=0):
    return np.random.default_rng(seed)


def data(n=6, d=3, k=None, seed=0):
    generator = rng(seed + 20)
    targets = generator.standard_normal(n if k is None else (n, k))
    return generator.standard_normal((n, d)), targets


PROBLEMS = {
    "one hidden layer": lambda: LinearNet(*data(), (4,)),
    "two outputs": lambda: LinearNet(*data(k=2), (4,)),
    "deep": lambda: LinearNet(*data(k=2), (4, 2, 5)),
    "narrow": lambda: LinearNet(*data(k=3), (1, 1)),
    "no hidden layer": lambda: LinearNet(*data(k=2), ()),
    "one of everything": lambda: LinearNet(*data(1, 1), (1,)),
    "diagonal": lambda: DiagonalNet(*data()),
    "diagonal, one input": lambda: DiagonalNet(*data(1, 1)),
}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]()


def naive_output(problem, theta, x):
    """f(x), layer by layer and entry by entry."""
    if isinstance(problem, DiagonalNet):
        d = len(x)
        return [sum(theta[j] * theta[d + j] * x[j] for j in range(d))]
    units, start = list(x), 0
    for width in (*problem.widths, problem.n_outputs):
        above = []
        for _ in range(width):
            row = theta[start : start + len(units)]
            above.append(sum(w * u for w, u in zip(row, units, strict=True)))
            start += len(units)
        units = above
    assert start == problem.dim
    return units


def naive_loss(problem, theta):
    total = 0
    for x, targets in zip(problem.inputs, problem.targets, strict=True):
        for z, y in zip(naive_output(problem, theta, x), targets, strict=True):
            total += (z - y) * (z - y)
    return total / (2 * len(problem.inputs))


def matrices(net, theta):
    """W_1 .. W_m."""
    found, start = [], 0
    for out, inner in net.shapes:
        found.append(theta[start : start + out * inner].reshape(out, inner))
        start += out * inner
    return found


def chain(factors, size):
    """The product, the last factor leftmost; the identity if there is none."""
    product = np.eye(size)
    for factor in factors:
        product = factor @ product
    return product


# --- derivatives --------------------------------------------------------------------------------


def test_outputs_and_loss_are_those_of_the_loops(problem):
    theta = problem.initial(1)
    expected = np.array([naive_output(problem, theta, x) for x in problem.inputs])
    np.testing.assert_allclose(problem.outputs(theta), expected, rtol=1e-12, atol=1e-14)
    errors = expected - problem.targets
    np.testing.assert_allclose(problem.residuals(theta), errors, rtol=1e-12, atol=1e-14)
    assert problem.loss(theta) == pytest.approx(naive_loss(problem, theta), rel=1e-12)
    new = rng(9).standard_normal((4, problem.inputs.shape[1]))
    expected = [naive_output(problem, theta, x) for x in new]
    np.testing.assert_allclose(problem.outputs(theta, new), expected, rtol=1e-12, atol=1e-14)


def test_derivatives_are_those_of_the_naive_loss(problem):
    theta, v, w = rng(1).standard_normal((3, problem.dim))
    step = 1e-30  # complex: exact to rounding
    slopes = [naive_loss(problem, theta + 1j * step * u).imag / step for u in np.eye(problem.dim)]
    np.testing.assert_allclose(problem.gradient(theta), slopes, rtol=1e-11, atol=1e-13)
    bend = problem.gradient(theta + 1j * step * v).imag / step
    np.testing.assert_allclose(problem.hvp(theta, v), bend, rtol=1e-11, atol=1e-12)
    hessian = problem.hessian(theta)
    np.testing.assert_array_equal(hessian, hessian.T)
    np.testing.assert_allclose(hessian @ v, bend, rtol=1e-11, atol=1e-12)
    twist = problem.hvp(theta + 1j * step * w, v).imag / step
    np.testing.assert_allclose(
        third_derivative(problem, theta, w, v), twist, rtol=1e-11, atol=1e-12
    )


def test_derivatives_continue_to_complex_points(problem):
    assert problem.analytic
    theta, other, v, w, u = rng(2).standard_normal((5, problem.dim))
    theta, v = theta + 0.3j * other, v + 0.5j * w

    def slope(function, direction, step=1e-6):
        ahead, behind = function(theta + step * direction), function(theta - step * direction)
        return (ahead - behind) / (2 * step)

    scale = np.abs(problem.hessian(theta)).max() + 1
    assert abs(problem.gradient(theta) @ v - slope(problem.loss, v)) < 1e-7 * scale
    assert np.abs(problem.hvp(theta, v) - slope(problem.gradient, v)).max() < 1e-7 * scale
    if hasattr(problem, "third_derivative"):
        bend = slope(lambda x: problem.hvp(x, v), u)
        assert np.abs(problem.third_derivative(theta, u, v) - bend).max() < 1e-6 * scale


def test_the_jacobian_is_the_derivative_of_the_outputs(problem):
    theta, v = rng(1).standard_normal((2, problem.dim))
    jacobian = problem.jacobian(theta)
    n, k = problem.targets.shape
    assert jacobian.shape == (n, k, problem.dim)
    change = problem.outputs(theta + 1e-30j * v).imag / 1e-30
    np.testing.assert_allclose(jacobian @ v, change, rtol=1e-11, atol=1e-13)
    gradient = np.einsum("nkp,nk->p", jacobian, problem.residuals(theta)) / n
    np.testing.assert_allclose(problem.gradient(theta), gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("batch", [[0, 5, 0], [2]])
def test_a_batch_is_the_network_of_its_samples_alone(problem, batch):
    batch = np.array(batch) % problem.n_samples
    widths = () if isinstance(problem, DiagonalNet) else (problem.widths,)
    alone = type(problem)(problem.inputs[batch], problem.targets[batch], *widths)
    theta, v = rng(1).standard_normal((2, problem.dim))
    for name in ("loss", "gradient", "hessian", "residuals", "jacobian"):
        ours, expected = getattr(problem, name)(theta, batch), getattr(alone, name)(theta)
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-13)
    ours = problem.hvp(theta, v, batch)
    np.testing.assert_allclose(ours, alone.hvp(theta, v), rtol=1e-12, atol=1e-13)


def test_batches_average_to_all_samples(problem):
    theta = problem.initial(1)
    rows = [np.array([a]) for a in range(problem.n_samples)]
    for name in ("loss", "gradient", "hessian"):
        mean = np.mean([getattr(problem, name)(theta, row) for row in rows], axis=0)
        np.testing.assert_allclose(mean, getattr(problem, name)(theta), rtol=1e-11, atol=1e-13)


# --- the predictor --------------------------------------------------------------------------------


def test_everything_depends_on_theta_through_the_predictor(problem):
    theta, v = rng(3).standard_normal((2, problem.dim))
    predictor = problem.predictor(theta)
    assert predictor.shape == (problem.inputs.shape[1], problem.n_outputs)
    np.testing.assert_allclose(problem.outputs(theta), problem.inputs @ predictor, rtol=1e-13)
    slope = problem.predictor_jacobian(theta)
    assert slope.shape == (*predictor.shape, problem.dim)
    change = problem.predictor(theta + 1e-30j * v).imag / 1e-30
    np.testing.assert_allclose(slope @ v, change, rtol=1e-12, atol=1e-14)
    regression = LinearRegression(problem.inputs, problem.targets)
    flat = slope.reshape(-1, problem.dim)
    gradient = flat.T @ regression.gradient(predictor.ravel())
    np.testing.assert_allclose(problem.gradient(theta), gradient, rtol=1e-11, atol=1e-13)


def test_the_predictor_is_the_product_of_the_layers():
    net = LinearNet(*data(k=2), (4, 2, 5))
    theta = net.initial(5)
    expected = chain(matrices(net, theta), 3).T
    np.testing.assert_allclose(net.predictor(theta), expected, rtol=1e-13)


@pytest.mark.parametrize("widths", [(), (4,), (4, 2), (2, 5, 3)])
def test_the_factor_of_a_net_is_the_sum_over_layers(widths):
    net = LinearNet(*data(), widths)
    theta = rng(4).standard_normal(net.dim)
    slope = net.predictor_jacobian(theta)[:, 0]
    layers = matrices(net, theta)
    expected = np.zeros((3, 3))
    for index in range(len(layers)):
        below = chain(layers[:index], 3)
        above = chain(layers[index + 1 :], len(layers[index]))
        expected += np.sum(above**2) * below.T @ below
    np.testing.assert_allclose(slope @ slope.T, expected, rtol=1e-12, atol=1e-13)


def test_the_factor_of_two_layers_and_of_the_diagonal_net():
    net = LinearNet(*data(), (4,))
    theta = rng(4).standard_normal(net.dim)
    W, v = matrices(net, theta)
    slope = net.predictor_jacobian(theta)[:, 0]
    expected = np.sum(v**2) * np.eye(3) + W.T @ W
    np.testing.assert_allclose(slope @ slope.T, expected, rtol=1e-12, atol=1e-13)
    diagonal = DiagonalNet(*data())
    a, b = np.split(theta[:6], 2)
    slope = diagonal.predictor_jacobian(theta[:6])[:, 0]
    np.testing.assert_allclose(slope @ slope.T, np.diag(a**2 + b**2), rtol=1e-14)


def test_at_an_interpolating_minimum_the_hessian_is_that_of_gauss_and_newton(problem):
    theta = problem.initial(7)
    widths = () if isinstance(problem, DiagonalNet) else (problem.widths,)
    fitted = type(problem)(problem.inputs, problem.outputs(theta), *widths)
    jacobian = fitted.jacobian(theta).reshape(-1, fitted.dim)
    expected = jacobian.T @ jacobian / fitted.n_samples
    np.testing.assert_allclose(fitted.hessian(theta), expected, rtol=1e-11, atol=1e-13)


# --- the same models elsewhere ---------------------------------------------------------------------


def test_with_one_output_it_is_the_homogeneous_net_of_slope_one():
    inputs, targets = data()
    net = LinearNet(inputs, targets, (4, 2))
    twin = DeepHomogeneousNet(inputs, targets, (4, 2), slopes=(1, 1), prefactor=1)
    theta, v = rng(6).standard_normal((2, net.dim))
    assert net.shapes == twin.shapes
    for name in ("loss", "gradient", "hessian", "jacobian", "outputs"):
        ours, expected = getattr(net, name)(theta), getattr(twin, name)(theta)
        np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(net.hvp(theta, v), twin.hvp(theta, v), rtol=1e-11, atol=1e-13)


def test_without_hidden_layers_it_is_linear_regression():
    inputs, targets = data(k=2)
    net, twin = LinearNet(inputs, targets, ()), LinearRegression(inputs, targets)
    theta = net.initial(2)
    weights = theta.reshape(2, 3).T.ravel()  # a layer is (out, in), Theta (in, out)
    assert net.loss(theta) == pytest.approx(twin.loss(weights), rel=1e-14)
    slope = twin.gradient(weights).reshape(3, 2).T.ravel()
    np.testing.assert_allclose(net.gradient(theta), slope, rtol=1e-13)


def test_a_balanced_diagonal_net_has_the_hessian_by_hand():
    # L = (2 a b - 1)^2 / 2
    net = DiagonalNet([[2.0]], [1.0])
    a, b = theta = np.array([3.0, -0.5])
    e = 2 * a * b - 1
    mixed = 4 * a * b + 2 * e
    np.testing.assert_allclose(net.gradient(theta), [2 * b * e, 2 * a * e], rtol=1e-14)
    np.testing.assert_allclose(net.hessian(theta), [[4 * b * b, mixed], [mixed, 4 * a * a]])


def test_gradient_descent_keeps_deep_layers_balanced():
    """W_(l+1)^T W_(l+1) - W_l W_l^T is an invariant of the flow: it moves with lr^2."""
    net = LinearNet(*data(8, 3, 2), (3, 3))
    theta = net.initial(1)

    def imbalance(point):
        first, second, third = matrices(net, point)
        return np.concatenate(
            [
                (second.T @ second - first @ first.T).ravel(),
                (third.T @ third - second @ second.T).ravel(),
            ]
        )

    moved = [
        np.abs(imbalance(theta - lr * net.gradient(theta)) - imbalance(theta)).max()
        for lr in (1e-3, 1e-4)
    ]
    assert moved[0] / moved[1] == pytest.approx(100, rel=1e-6)


# --- layout, start, and bad input ------------------------------------------------------------------


def test_the_initial_points_are_drawn_in_the_documented_order():
    net = LinearNet(*data(k=2), (4, 5))
    assert net.shapes == [(4, 3), (5, 4), (2, 5)]
    assert (net.dim, net.n_samples, net.n_outputs) == (42, 6, 2)
    generator = rng(3)
    parts = [generator.standard_normal(shape) / np.sqrt(shape[1]) for shape in net.shapes]
    np.testing.assert_array_equal(net.initial(3), np.concatenate([p.ravel() for p in parts]))
    np.testing.assert_array_equal(DiagonalNet(*data()).initial(3), rng(3).standard_normal(6))
    assert LinearNet(*data()).widths == (32,)


def test_the_data_are_copied_and_nothing_is_modified(problem):
    theta = problem.initial()
    theta.flags.writeable = False
    for name in ("loss", "gradient", "hessian", "jacobian", "outputs", "predictor"):
        getattr(problem, name)(theta)
    problem.hvp(theta, theta)
    inputs, targets = data()
    net = DiagonalNet(inputs, targets)
    before = net.loss(np.ones(6))
    inputs[:], targets[:] = 7.0, 7.0
    assert net.loss(np.ones(6)) == before


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LinearNet([1.0], [1.0]), ValueError, "inputs must have shape"),
        (lambda: LinearNet([[1.0]], [1.0, 2.0]), ValueError, "one row per sample"),
        (lambda: LinearNet([[1.0]], [1.0], (0,)), ValueError, "widths must be an integer >= 1"),
        (lambda: LinearNet([[1.0]], [1.0], 3), TypeError, "widths must be a sequence"),
        (lambda: LinearNet([[1.0]], [1.0], "3"), TypeError, "widths must be a sequence"),
        (lambda: DiagonalNet([[1.0]], [[1.0, 2.0]]), ValueError, r"targets \(n,\) or \(n, 1\)"),
        (lambda: DiagonalNet([[np.inf]], [1.0]), ValueError, "inputs has 1 non-finite"),
        (
            lambda: DiagonalNet([[1.0]], [1.0]).outputs(np.ones(2), [[1.0, 2.0]]),
            ValueError,
            r"inputs must have shape \(any, 1\)",
        ),
    ],
)
def test_bad_input_is_refused_with_its_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_runs_accept_them(problem):
    start = 0.3 * problem.initial(2)
    lr = 0.2 / (1 + eosim.measure.sharpness(problem, start).value)
    path = eosim.run(problem, eosim.GradientDescent(lr), start, 30)
    assert (np.diff(path["loss"]) < 0).all()


# --- the claims about alignment: mutations must be refuted -------------------------------------------

CLAIMS = {claim.name: claim for claim in theory.alignment.claims()}


def test_the_sample_has_the_moments_of_the_gaussian_through_order_five():
    points = theory.alignment.gaussian_sample()
    double_factorial = {0: 1, 2: 1, 4: 3}
    for p in range(6):
        for q in range(6 - p):
            expected = double_factorial.get(p, 0) * double_factorial.get(q, 0)
            moment = np.mean(points[:, 0] ** p * points[:, 1] ** q)
            assert moment == pytest.approx(expected, abs=1e-14)


def test_a_wrong_fourth_moment_is_refuted(monkeypatch):
    correct = theory.alignment.gaussian_mean

    def mutated(polynomial, variables, variances):
        mean = correct(polynomial, variables, variances)
        a, s1 = theory.alignment.a, theory.alignment.s1
        return mean + (a**2 * s1**2 / 1000 if mean.has(s1**2) else 0)

    monkeypatch.setattr(theory.alignment, "gaussian_mean", mutated)
    with pytest.raises(Refuted, match="Sigma"):
        CLAIMS["alignment_gaussian"].routes["symbolic"]()


@pytest.mark.parametrize("model", [LinearRegression, DiagonalNet, LinearNet])
def test_a_wrong_jacobian_is_refuted_by_the_alignment(model, monkeypatch):
    correct = model.jacobian

    def mutated(self, theta, batch=None):
        jacobian = correct(self, theta, batch)
        jacobian[..., 0] *= 1.001
        return jacobian

    monkeypatch.setattr(model, "jacobian", mutated)
    with pytest.raises(Refuted, match=f"mu of {model.__name__}"):
        CLAIMS["alignment_gaussian"].routes["numbers"]()


def test_a_wrong_sample_is_refuted_by_isotropic_alignment(monkeypatch):
    correct = theory.alignment.gaussian_sample
    monkeypatch.setattr(
        theory.alignment, "gaussian_sample", lambda scales=(1, 1): correct(scales) * [1, 1.001]
    )
    with pytest.raises(Refuted, match="Gaussian: mu"):
        CLAIMS["alignment_isotropic"].routes["numbers"]()
