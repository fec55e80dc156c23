"""Models written in JAX and PyTorch: the same derivatives, and nothing of the user's is touched."""

import json
import subprocess
import sys
import threading
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

import eosim
from eosim.adapters import AutodiffFiniteSum, AutodiffLeastSquares, AutodiffProblem

FRAMEWORKS = ("jax", "torch")
ACTIVATIONS = ("tanh", "relu", "gelu", "identity")
CRITERIA = ("square", "cross_entropy")
N, D, K, HIDDEN = 7, 3, 2, (4, 3)


class Twins(NamedTuple):
    """One network twice: ``problem`` has at theta[order] what ``network`` has at theta."""

    problem: AutodiffLeastSquares
    network: eosim.Perceptron
    theta: np.ndarray
    order: np.ndarray


def data(criterion="square"):
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((N, D))
    if criterion == "square":
        return inputs, generator.standard_normal((N, K))
    return inputs, np.eye(K)[generator.integers(0, K, N)]


def layers(network, theta):
    """(weights, biases) of every layer."""
    ends = np.cumsum([out * inner for out, inner in network.shapes])[:-1]
    matrices = [
        part.reshape(shape)
        for part, shape in zip(np.split(theta, ends), network.shapes, strict=True)
    ]
    return [(matrix[:, :-1], matrix[:, -1]) for matrix in matrices]


def jax_model(activation="tanh"):
    """Parameters are a list of dictionaries."""
    jax = pytest.importorskip("jax")
    unit = {
        "tanh": jax.numpy.tanh,
        "relu": jax.nn.relu,
        "gelu": lambda z: jax.nn.gelu(z, approximate=False),
        "identity": lambda z: z,
    }[activation]

    def model(params, x):
        for layer in params[:-1]:
            x = unit(x @ layer["weight"].T + layer["bias"])
        return x @ params[-1]["weight"].T + params[-1]["bias"]

    return model


def jax_params(network, theta):
    return [{"weight": weight, "bias": bias} for weight, bias in layers(network, theta)]


def torch_model(network, theta, activation="tanh", dtype="float64"):
    torch = pytest.importorskip("torch")
    unit = {
        "tanh": torch.nn.Tanh,
        "relu": torch.nn.ReLU,
        "gelu": torch.nn.GELU,
        "identity": torch.nn.Identity,
    }[activation]
    parts = []
    for weight, bias in layers(network, theta):
        linear = torch.nn.Linear(*weight.shape[::-1], dtype=getattr(torch, dtype))
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(weight))
            linear.bias.copy_(torch.tensor(bias))
        parts += [linear, unit()]
    return torch.nn.Sequential(*parts[:-1])


@cache
def twins(framework, activation="tanh", criterion="square"):
    inputs, targets = data(criterion)
    network = eosim.Perceptron(inputs, targets, HIDDEN, activation, criterion)
    theta = network.initial(1, "pytorch")
    if framework == "jax":
        params = jax_params(network, theta)
        problem = eosim.from_jax(
            jax_model(activation), params, inputs, targets, criterion=criterion
        )
    else:
        module = torch_model(network, theta, activation)
        problem = eosim.from_torch(module, inputs, targets, criterion=criterion)
    # JAX sorts the keys of dictionaries, "bias" first; PyTorch keeps the order of definition.
    first, second = (1, 0) if framework == "jax" else (0, 1)
    order = [
        part.ravel()
        for pair in layers(network, np.arange(network.dim))
        for part in (pair[first], pair[second])
    ]
    return Twins(problem, network, theta, np.concatenate(order))


@pytest.fixture(params=FRAMEWORKS)
def framework(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture
def pair(framework):
    return twins(framework)


def close(ours, expected, atol=1e-12):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


# --- equal to the perceptron --------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_loss_gradient_and_products_equal_those_of_the_perceptron(framework, activation, criterion):
    problem, network, theta, order = twins(framework, activation, criterion)
    assert problem.dim == network.dim
    assert problem.n_samples == N
    assert not problem.analytic
    v = np.random.default_rng(2).standard_normal(network.dim)
    assert problem.loss(theta[order]) == pytest.approx(network.loss(theta), rel=1e-13)
    close(problem.gradient(theta[order]), network.gradient(theta)[order])
    close(problem.hvp(theta[order], v[order]), network.hvp(theta, v)[order])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_sharpness_is_that_of_the_perceptron(framework, criterion):
    problem, network, theta, order = twins(framework, "tanh", criterion)
    expected = eosim.measure.sharpness(network, theta).value
    assert eosim.measure.sharpness(problem, theta[order]).value == pytest.approx(
        expected, rel=1e-12
    )


def test_batches_and_the_hessian_are_those_of_the_perceptron(pair):
    problem, network, theta, order = pair
    for batch in (None, np.array([4, 4, 0])):
        loss = network.loss(theta, batch)
        assert problem.loss(theta[order], batch) == pytest.approx(loss, rel=1e-13)
        close(problem.gradient(theta[order], batch), network.gradient(theta, batch)[order])
        hessian = problem.hessian(theta[order], batch)
        np.testing.assert_array_equal(hessian, hessian.T)
        close(hessian, network.hessian(theta, batch)[np.ix_(order, order)])


def test_residuals_jacobian_and_outputs_are_those_of_the_perceptron(framework):
    problem, network, theta, order = twins(framework)
    for batch in (None, np.array([4, 4, 0])):
        close(problem.residuals(theta[order], batch), network.residuals(theta, batch))
        jacobian = network.jacobian(theta, batch)[:, :, order]
        close(problem.jacobian(theta[order], batch), jacobian)
    close(problem.outputs(theta[order]), network.outputs(theta))
    new = np.random.default_rng(3).standard_normal((4, D))
    close(problem.outputs(theta[order], new), network.outputs(theta, new))
    assert isinstance(problem, AutodiffLeastSquares)
    assert not hasattr(twins(framework, "tanh", "cross_entropy").problem, "residuals")


def test_one_theta_serves_many_products_also_after_other_calls(pair):
    problem, network, theta, order = pair
    product = problem.hvp_at(theta[order])
    problem.gradient(2 * theta)
    for v in np.random.default_rng(5).standard_normal((3, problem.dim)):
        close(product(v[order]), network.hvp(theta, v)[order])


# --- theta and batches --------------------------------------------------------------------------


def test_theta_holds_the_parameters_in_the_promised_order(pair):
    problem, _, theta, order = pair
    np.testing.assert_array_equal(problem.theta0, theta[order])
    assert not problem.theta0.flags.writeable


def test_the_order_in_jax_is_that_of_ravel_pytree():
    pytest.importorskip("jax")
    from jax.flatten_util import ravel_pytree

    params = {"b": (np.float32(3.0), np.ones((2, 2), np.float32)), "a": [np.zeros(2, np.float32)]}
    problem = eosim.from_jax(
        lambda p: (p["b"][1] ** 2).sum() + p["b"][0] * (p["a"][0] + 1).sum(), params
    )
    np.testing.assert_array_equal(problem.theta0, np.asarray(ravel_pytree(params)[0]))
    point = np.arange(7.0)
    tree = problem.unflatten(point)
    np.testing.assert_array_equal(tree["a"][0], [0.0, 1.0])
    assert tree["b"][0] == 2.0
    np.testing.assert_array_equal(tree["b"][1], [[3.0, 4.0], [5.0, 6.0]])
    np.testing.assert_array_equal(problem.flatten(tree), point)


def test_flatten_undoes_unflatten(pair):
    problem = pair.problem
    point = np.random.default_rng(0).standard_normal(problem.dim)
    parameters = problem.unflatten(point)
    np.testing.assert_array_equal(problem.flatten(parameters), point)
    point[:] = 0  # what was unflattened does not follow
    assert problem.flatten(parameters).any()


def test_pytrees_of_another_structure_are_refused():
    problem = twins("jax").problem
    tree = problem.unflatten(problem.theta0)
    with pytest.raises(ValueError, match="params must have the structure"):
        problem.flatten(tree[:-1])
    tree[0]["bias"] = np.zeros(5)
    with pytest.raises(ValueError, match=r"params must have the structure .* shapes"):
        problem.flatten(tree)


def test_state_dicts_of_another_structure_are_refused():
    problem = twins("torch").problem
    state = problem.unflatten(problem.theta0)
    state["0.bias"] = state["2.bias"]
    with pytest.raises(
        ValueError, match=r"state_dict must have 0.bias of shape \(4,\), got \(3,\)"
    ):
        problem.flatten(state)
    del state["0.bias"]
    with pytest.raises(ValueError, match="no such name"):
        problem.flatten(state)


def test_a_state_dict_goes_into_the_module_and_comes_back():
    torch = pytest.importorskip("torch")
    problem, network, theta, order = twins("torch")
    module = torch_model(network, 0 * theta)
    module.load_state_dict(problem.unflatten(theta[order]))
    outputs = module(torch.tensor(network.inputs)).detach().numpy()
    close(outputs, network.outputs(theta))
    np.testing.assert_array_equal(problem.flatten(module.state_dict()), theta[order])


def test_batches_average_to_all_samples_and_are_indexed_as_numpy_does(pair):
    problem, theta = pair.problem, pair.problem.theta0
    mean = np.mean([problem.gradient(theta, np.array([i])) for i in range(N)], axis=0)
    close(problem.gradient(theta), mean)
    mask = np.arange(N) % 2 == 0
    np.testing.assert_array_equal(
        problem.gradient(theta, mask), problem.gradient(theta, [0, 2, 4, -1])
    )
    for method in (problem.loss, problem.gradient, problem.residuals, problem.jacobian):
        with pytest.raises(IndexError, match="out of bounds"):
            method(theta, np.array([N]))


def test_wrong_thetas_are_refused_and_right_ones_never_changed(pair):
    problem = pair.problem
    for wrong in (np.zeros(problem.dim + 1), np.zeros((1, problem.dim)), 0.0):
        with pytest.raises(ValueError, match=rf"theta must have shape \({problem.dim},\)"):
            problem.gradient(wrong)
    with pytest.raises(TypeError, match="theta must be real: the problem is not analytic"):
        problem.loss(problem.theta0 + 0j)
    with pytest.raises(ValueError, match="v must have shape"):
        problem.hvp(problem.theta0, np.zeros(3))
    assert problem.loss(problem.theta0.astype(np.float32)).dtype == np.float64
    point = problem.theta0.copy()
    gradient = problem.gradient(point)
    gradient[:] = np.nan
    problem.hvp(point, point), problem.hessian(point), problem.jacobian(point)
    np.testing.assert_array_equal(point, problem.theta0)
    assert np.isfinite(problem.gradient(point)).all()


# --- everything else works on it ----------------------------------------------------------------


def test_sgd_visits_the_points_of_the_perceptron(pair):
    problem, network, theta, order = pair
    settings = {"batch_size": 3, "seed": 4, "sampling": "reshuffling"}
    rule = eosim.HeavyBall(0.1, 0.5)
    ours = eosim.run(problem, rule, theta[order], 30, **settings)
    theirs = eosim.run(network, rule, theta, 30, **settings)
    close(ours.theta, theirs.theta[:, order])


def test_adaptive_and_local_rules_and_their_records_are_those_of_the_perceptron(pair):
    problem, network, theta, order = pair

    def go(problem, start, rule):
        record = {
            "edge": eosim.measure.PreconditionedSharpness(),
            "batch": eosim.measure.BatchSharpness(batch_size=2),
        }
        return eosim.run(problem, rule, start, 12, record=record, every=4)

    for rule in (eosim.Adam(0.01), eosim.DAL(p=1.0)):
        ours, theirs = go(problem, theta[order], rule), go(network, theta, rule)
        close(ours.theta, theirs.theta[:, order], 1e-10)
        for name in ("edge.value", "edge.sharpness", "batch.value"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-8)


def test_measurements_and_reports_are_those_of_the_perceptron(pair):
    problem, network, theta, order = pair
    measure = eosim.measure
    for function in (
        measure.hessian_trace,
        measure.hessian_frobenius,
        measure.spectrum_ends,
        measure.loss_alignment,
        measure.ntk_spectrum,
        measure.gauss_newton_spectrum,
        measure.gradient_norm,
    ):
        ours, theirs = function(problem, theta[order]), function(network, theta)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    ours = eosim.stability.report(problem, theta[order], 0.1, 2)
    theirs = eosim.stability.report(network, theta, 0.1, 2)
    assert ours.verdict == theirs.verdict
    assert ours.bounds.keys() == theirs.bounds.keys()
    for name in ours.bounds:
        assert ours.margin(name) == pytest.approx(theirs.margin(name), rel=1e-8)


def test_flows_are_those_of_the_perceptron_where_nothing_must_be_analytic(pair):
    problem, network, theta, order = pair
    loose = {"rtol": 1e-5, "atol": 1e-7}  # the same steps in both: the answers agree far better
    flow = eosim.GradientFlow(problem)
    ours = eosim.integrate(flow, theta[order], [0, 0.5, 1], **loose)
    theirs = eosim.integrate(eosim.GradientFlow(network), theta, [0, 0.5, 1], **loose)
    assert ours.status == theirs.status == eosim.Status.COMPLETED
    close(ours.theta, theirs.theta[:, order])
    rule = eosim.GradientDescent(0.1)
    ours = eosim.compare(problem, rule, theta[order], 1, restart=False, **loose)
    theirs = eosim.compare(network, rule, theta, 1, restart=False, **loose)
    assert ours.global_error.keys() == theirs.global_error.keys()
    for name, path in ours.flows.items():
        assert path.status == eosim.Status.COMPLETED
        # third derivatives are by complex steps there, by differences here
        close(path.theta, theirs.flows[name].theta[:, order], 1e-9)


def test_beyond_the_real_regime_the_principal_flow_says_that_the_problem_is_not_analytic(pair):
    problem, _, theta, order = pair
    lr = 1.5 / eosim.measure.sharpness(problem, theta[order]).value
    path = eosim.integrate(eosim.PrincipalFlow(problem, lr), theta[order], [0, lr])
    assert path.status == eosim.Status.LEFT_RANGE


# --- other shapes of model ----------------------------------------------------------------------


def test_a_loss_without_targets_is_a_mean_over_samples_or_a_function_of_theta_alone():
    jax = pytest.importorskip("jax")
    inputs, targets = data()
    network = eosim.Perceptron(inputs, targets, HIDDEN)
    theta = network.initial(1)
    model = jax_model()

    def loss(params, data):  # one number per sample
        return 0.5 * ((model(params, data["x"]) - data["y"]) ** 2).sum(axis=1)

    params = jax_params(network, theta)
    problem = eosim.from_jax(loss, params, {"x": inputs, "y": targets})
    assert type(problem) is AutodiffFiniteSum
    rows = np.array([0, 3])
    assert problem.loss(problem.theta0, rows) == pytest.approx(network.loss(theta, rows), rel=1e-13)
    alone = eosim.from_jax(lambda x: jax.numpy.sum(x**4) / 4, np.ones(2))
    assert type(alone) is AutodiffProblem
    close(alone.hessian(np.array([1.0, 2.0])), np.diag([3.0, 12.0]))
    assert not hasattr(alone, "n_samples")
    with pytest.raises(TypeError, match="batch must be None"):
        alone.gradient(np.ones(2), np.array([0]))


def test_a_module_may_return_the_loss_and_a_criterion_may_be_your_own():
    torch = pytest.importorskip("torch")
    problem, network, theta, order = twins("torch")
    inner = torch_model(network, theta)

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x, y):
            return ((self.inner(x) - y) ** 2).sum(dim=1) / 2

    inputs, targets = data()
    losses = eosim.from_torch(Loss(), (inputs, targets))
    assert type(losses) is AutodiffFiniteSum
    mean = eosim.from_torch(inner, inputs, targets, criterion=torch.nn.MSELoss())
    for ours, factor in ((losses, 1), (mean, 2 / K)):  # MSELoss averages over outputs, without 1/2
        close(ours.gradient(theta[order]), factor * problem.gradient(theta[order]))
    classes = eosim.from_torch(inner, inputs, np.arange(N) % K, criterion="cross_entropy")
    theirs = eosim.from_torch(
        inner, inputs, torch.arange(N) % K, criterion=torch.nn.CrossEntropyLoss()
    )
    close(classes.gradient(theta), theirs.gradient(theta))
    one_hot = eosim.from_torch(
        inner, inputs, np.eye(K)[np.arange(N) % K], criterion="cross_entropy"
    )
    assert one_hot.loss(theta) == classes.loss(theta)
    linear = torch.nn.Sequential(torch.nn.Linear(D, 1), torch.nn.Flatten(0))
    linear = eosim.from_torch(linear, inputs)  # the loss of a sample is linear in theta
    close(linear.gradient(np.zeros(D + 1)), [*inputs.mean(axis=0), 1])
    np.testing.assert_array_equal(linear.hessian(np.zeros(D + 1)), 0)


def test_a_module_may_differentiate_inside():
    torch = pytest.importorskip("torch")

    class Slope(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad((self.scale * x**2).sum(), x, create_graph=True)
            return slope  # 2 scale x

    problem = eosim.from_torch(Slope(), np.ones((3, 1)), np.zeros((3, 1)))
    assert problem.loss(np.array([3.0])) == 18.0
    assert problem.gradient(np.array([3.0])) == 12.0


def test_labels_and_their_distributions_are_the_same_in_jax():
    pytest.importorskip("jax")
    problem, network, theta, order = twins("jax", "tanh", "cross_entropy")
    labels = np.argmax(network.targets, axis=1)
    params = jax_params(network, theta)
    ours = eosim.from_jax(jax_model(), params, network.inputs, labels, criterion="cross_entropy")
    assert ours.loss(theta[order]) == problem.loss(theta[order])


def convolution(torch):
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3, padding=1),
        torch.nn.BatchNorm2d(2),
        torch.nn.GELU(),
        torch.nn.AvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 2),
    ).eval()


def attention(torch):
    return torch.nn.Sequential(
        torch.nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, activation="gelu"),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 2),
    ).eval()


def recurrent(torch):
    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.memory = torch.nn.LSTM(4, 3, batch_first=True)
            self.last = torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.last(self.memory(x)[0][:, -1])

    return Last()


@pytest.mark.parametrize(
    ("build", "shape"),
    [(convolution, (1, 4, 4)), (attention, (4, 4)), (recurrent, (4, 4))],
)
def test_convolution_attention_and_recurrence_have_all_derivatives(build, shape):
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    inputs, targets = generator.standard_normal((5, *shape)), generator.standard_normal((5, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(torch)
    problem = eosim.from_torch(module, inputs, targets)
    theta, v = problem.theta0, generator.standard_normal(problem.dim)
    ours = problem.outputs(theta)
    theirs = module.double()(torch.tensor(inputs)).detach().numpy()
    close(ours, theirs, 1e-13)
    jacobian, residuals = problem.jacobian(theta), problem.residuals(theta)
    close(np.einsum("nkp,nk->p", jacobian, residuals) / 5, problem.gradient(theta))
    step = 1e-5
    forward, backward = (problem.gradient(theta + s * v) for s in (step, -step))
    product = problem.hvp(theta, v)
    difference = (forward - backward) / (2 * step)
    # truncation is step^2 |v|^2 |v|, around 1e-7
    assert np.linalg.norm(product - difference) < 1e-6 * np.linalg.norm(product)


def test_a_model_at_an_interpolating_minimum_is_accepted(framework):
    _, network, theta, order = twins(framework)
    fitted = network.outputs(theta)
    if framework == "jax":
        params = jax_params(network, theta)
        problem = eosim.from_jax(jax_model(), params, network.inputs, fitted)
    else:
        problem = eosim.from_torch(torch_model(network, theta), network.inputs, fitted)
    assert problem.loss(theta[order]) < 1e-28
    expected = eosim.measure.gauss_newton_spectrum(network, theta)[0]
    assert eosim.measure.sharpness(problem, theta[order]).value == pytest.approx(expected)


def test_tied_frozen_and_constant_parts_of_a_module():
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = torch.nn.Linear(3, 3)
            self.decode = torch.nn.Linear(3, 3, bias=False)
            self.decode.weight = self.encode.weight
            self.last = torch.nn.Linear(3, 1)
            self.last.weight.requires_grad_(False)
            self.register_buffer("shift", torch.full((3,), 0.25))

        def forward(self, x):
            return self.last(torch.tanh(self.decode(self.encode(x)) + self.shift))

    module = Net()
    inputs, targets = data()
    problem = eosim.from_torch(module, inputs, targets[:, 0])
    assert problem.dim == 9 + 3 + 1  # the matrix once, not the frozen row
    module.double()
    x, y = torch.tensor(inputs), torch.tensor(targets[:, :1])
    (((module(x) - y) ** 2).sum() / (2 * N)).backward()
    slopes = [module.encode.weight.grad, module.encode.bias.grad, module.last.bias.grad]
    close(problem.gradient(problem.theta0), np.concatenate([s.numpy().ravel() for s in slopes]))
    state = problem.unflatten(np.arange(13.0))
    assert state.keys() == module.state_dict().keys()
    assert torch.equal(state["encode.weight"], state["decode.weight"])
    assert state["decode.weight"].flatten().tolist() == list(range(9))
    assert torch.equal(state["shift"], module.shift)
    # what happens to the module later has no effect
    before = problem.loss(problem.theta0)
    with torch.no_grad():
        module.shift += 1
        module.last.weight += 1
    assert problem.loss(problem.theta0) == before


# --- nothing of the user's is touched -----------------------------------------------------------


def test_a_float32_model_is_widened_and_stays_as_it_is(framework):
    _, network, theta, order = twins(framework)
    rounded = theta.astype(np.float32)
    if framework == "jax":
        import jax

        params = jax.tree.map(lambda x: jax.numpy.asarray(x, "float32"), jax_params(network, theta))
        before = jax.tree.map(np.array, params)
        problem = eosim.from_jax(jax_model(), params, np.asarray(network.inputs), network.targets)
        problem.gradient(problem.theta0)
        for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_array_equal(ours, theirs)
    else:
        import torch

        module = torch_model(network, theta, dtype="float32").train()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        problem = eosim.from_torch(module, torch.tensor(network.inputs), network.targets)
        problem.gradient(problem.theta0), problem.jacobian(problem.theta0)
        assert module.training
        for name, parameter in module.named_parameters():
            assert parameter.dtype == torch.float32
            assert parameter.requires_grad
            assert parameter.grad is None
            assert torch.equal(parameter, before[name])
    np.testing.assert_array_equal(problem.theta0, rounded[order])
    exact = network.gradient(rounded.astype(float))[order]
    close(problem.gradient(problem.theta0), exact)


@pytest.mark.parametrize("wide", [False, True])
def test_the_settings_of_jax_stay_also_after_exceptions(wide):
    jax = pytest.importorskip("jax")
    _, network, theta, order = twins("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", wide)
    try:

        def check():
            assert jax.config.jax_enable_x64 == wide
            assert jax.numpy.ones(1).dtype == (np.float64 if wide else np.float32)

        params = jax_params(network, theta)
        inputs, targets = data()
        problem = eosim.from_jax(jax_model(), params, inputs, targets)
        check()
        v = theta.copy()
        problem.loss(v), problem.gradient(v), problem.hvp(v, v), problem.jacobian(v)
        problem.outputs(v, inputs), problem.flatten(problem.unflatten(v))
        check()
        close(problem.gradient(theta[order]), network.gradient(theta)[order])

        def broken(params, x):
            if len(x) == 2:
                raise RuntimeError("on purpose")
            return jax_model()(params, x)

        with pytest.raises(ValueError, match="on purpose"):
            eosim.from_jax(broken, params, inputs[:2], targets[:2])
        check()
        problem = eosim.from_jax(broken, params, inputs, targets)
        with pytest.raises(RuntimeError, match="on purpose"):
            problem.gradient(v, np.array([0, 1]))
        check()
    finally:
        jax.config.update("jax_enable_x64", before)


def torch_settings(torch):
    kernels = torch.backends.cuda
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_rng_state().tolist(),
        kernels.flash_sdp_enabled(),
        kernels.mem_efficient_sdp_enabled(),
        kernels.math_sdp_enabled(),
    )


@pytest.mark.parametrize("mode", ["enable_grad", "no_grad", "inference_mode"])
def test_the_settings_of_torch_stay_and_do_not_matter_also_after_exceptions(mode):
    torch = pytest.importorskip("torch")
    _, network, theta, order = twins("torch")
    inputs, targets = data()

    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch_model(network, theta)

        def forward(self, x):
            if len(x) == 2:
                torch.rand(3)
                raise RuntimeError("on purpose")
            return self.inner(x)

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with getattr(torch, mode)():
            module, x = torch_model(network, theta, dtype="float32"), torch.tensor(inputs)
            broken = Broken()
            before = torch_settings(torch)
            problem = eosim.from_torch(module, x, targets)
            v = problem.theta0
            exact = network.gradient(np.float32(theta).astype(float))[order]
            close(problem.gradient(v), exact)
            problem.loss(v), problem.hvp(v, v), problem.jacobian(v), problem.outputs(v, inputs)
            with pytest.raises(ValueError, match="on purpose"):
                eosim.from_torch(broken, inputs[:2], targets[:2])
            assert torch_settings(torch) == before
            problem = eosim.from_torch(broken, inputs, targets)
            for method in (problem.loss, problem.gradient, problem.jacobian):
                method(v)
            generator = torch.get_rng_state()
            for method in (problem.loss, problem.gradient, problem.residuals):
                with pytest.raises(RuntimeError, match="on purpose"):
                    method(v, np.array([0, 1]))
            torch.set_rng_state(generator)
            assert torch_settings(torch) == before
    finally:
        torch.set_default_dtype(default)


def test_threads_do_not_disturb_each_other_nor_the_settings(framework):
    problem, network, theta, order = twins(framework)
    expected = network.gradient(theta)[order]
    if framework == "torch":
        import torch

        before = torch_settings(torch)
    start, wrong = threading.Barrier(4), []

    def work():
        start.wait()
        for _ in range(40):
            gradient = problem.gradient(theta[order])
            if gradient.dtype != np.float64 or np.abs(gradient - expected).max() > 1e-12:
                wrong.append(gradient)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    if framework == "torch":
        assert torch_settings(torch) == before


def test_a_framework_is_imported_only_when_it_is_used():
    code = (
        "import json, sys, eosim\nfrom eosim import from_jax, from_torch\n"
        "print(json.dumps([name for name in ('jax', 'torch') if name in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


@pytest.mark.parametrize(
    ("name", "function", "extra"),
    [("jax", eosim.from_jax, "networks"), ("torch", eosim.from_torch, "torch")],
)
def test_a_missing_framework_is_named_with_what_to_install(monkeypatch, name, function, extra):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'from_{name} needs .*pip install "eosim\[{extra}\]"'):
        function(lambda p, x: x, np.ones(2), np.ones((2, 1)))


# --- refused ------------------------------------------------------------------------------------


def bad_jax_model(jax, name):
    jnp = jax.numpy
    generator = np.random.default_rng(0)

    @jax.custom_vjp
    def halved(x):
        return x**2

    halved.defvjp(lambda x: (x**2, x), lambda x, slope: (x * slope,))

    @jax.custom_vjp
    def straight_through(x):
        return jnp.round(4 * x) / 4

    straight_through.defvjp(lambda x: (straight_through(x), None), lambda _, slope: (slope,))

    def loop(p, x):
        def step(carry, _):
            return jnp.tanh(carry).astype("float32").astype("float64"), None

        return jax.lax.scan(step, x @ p, None, length=2)[0]

    return {
        "random": lambda p, x: x @ p + generator.normal(),
        "sum": lambda p, data: ((data[0] @ p - data[1]) ** 2).sum(),
        "samples see each other": lambda p, x: x @ p - (x @ p).mean(axis=0),
        "float32": lambda p, x: (x @ p).astype("float32"),
        "float32 inside": lambda p, x: (x @ p).astype("float32").astype("float64"),
        "float32 in a loop": loop,
        "integers": lambda p, x: (9 * x @ p).astype(int),
        "integers inside": lambda p, x: x @ (9 * p).astype(int).astype(float),
        "detached": lambda p, x: jax.lax.stop_gradient(x @ p),
        "wrong gradient": lambda p, x: halved(x @ p),
        "straight through": lambda p, x: straight_through(x @ p),
        "infinite": lambda p, x: x @ p / 0.0,
        "no array": lambda p, x: [x @ p],
        "one row": lambda p, x: (x @ p)[:1],
    }[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random", "same at every call"),
        ("sum", "mean over the samples"),
        ("samples see each other", r"mean over the samples.*batch normalisation"),
        ("float32", "float64 parameters, got float32"),
        ("float32 inside", "must not round float64 to float32, as convert_element_type"),
        ("float32 in a loop", "must not round float64 to float32, as convert_element_type"),
        ("integers", "float64 parameters, got int64"),
        ("integers inside", "must depend on the parameters"),
        ("detached", "must depend on the parameters"),
        ("wrong gradient", "gradient is not the derivative"),
        ("straight through", "gradient is not the derivative"),
        ("infinite", "must be finite"),
        ("no array", "an array with one row per sample, 6; got list"),
        ("one row", "one row per sample, 6"),
    ],
)
def test_jax_models_whose_derivatives_would_be_wrong_are_refused(name, message):
    jax = pytest.importorskip("jax")
    generator = np.random.default_rng(1)
    x, y, p = (generator.standard_normal(shape) for shape in ((6, 3), (6, 2), (3, 2)))
    data = (x, y) if name != "sum" else [(x, y)]
    with pytest.raises(ValueError, match=message):
        eosim.from_jax(bad_jax_model(jax, name), p, *data)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (({"a": 1},), {}, TypeError, r"pytree of float arrays; \['a'\] is int"),
        ((np.arange(3),), {}, TypeError, "params is int64"),
        ((np.ones(2) * 1j,), {}, TypeError, "params is complex128"),
        (({},), {}, ValueError, "at least one number"),
        (
            (np.array([1.0, np.nan]), np.ones((1, 2)), [0.0]),
            {},
            ValueError,
            "parameters has 1 non-finite",
        ),
        (
            (
                np.ones(2),
                None,
                [1.0],
            ),
            {},
            ValueError,
            "inputs must be given",
        ),
        (
            (
                np.ones(2),
                np.ones((2, 2)),
                np.ones(3),
            ),
            {},
            ValueError,
            r"targets \(3,\)",
        ),
        (
            (
                np.ones(
                    2,
                ),
                {"a": np.ones(())},
            ),
            {},
            ValueError,
            r"inputs\['a'\] must have one row",
        ),
        (
            (
                np.ones(2),
                np.ones((2, 2)),
                np.ones((2, 2)),
            ),
            {},
            ValueError,
            "shape of the outputs",
        ),
        ((np.ones(2),), {"criterion": "hinge"}, ValueError, "criterion must be"),
        ((np.ones(2),), {"criterion": "cross_entropy"}, ValueError, "criterion needs targets"),
        (
            (np.ones(2), np.ones((2, 2)), [0, 1]),
            {"criterion": "cross_entropy"},
            ValueError,
            r"\(n, classes\)",
        ),
        (
            (np.ones((2, 3)), np.ones((2, 2)), [0, 3]),
            {"criterion": "cross_entropy"},
            ValueError,
            "labels from 0 to 2",
        ),
        (
            (np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2))),
            {"criterion": "cross_entropy"},
            ValueError,
            "rows of sum 1",
        ),
        (
            (np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2))),
            {"criterion": lambda f, y: (f - y) ** 2},
            ValueError,
            r"float64 scalar or one per sample, \(2,\); got float64 of shape \(2, 2\)",
        ),
    ],
)
def test_wrong_arguments_of_from_jax_are_named(arguments, options, error, message):
    pytest.importorskip("jax")
    with pytest.raises(error, match=message):
        eosim.from_jax(lambda p, x=1.0: x @ p, *arguments, **options)
    with pytest.raises(TypeError, match="model must be callable, got int"):
        eosim.from_jax(1, *arguments, **options)


def bad_torch_module(torch, name):
    nn = torch.nn

    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(context, slope):
            return context.saved_tensors[0] * slope

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x

    class Calls(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    generator = np.random.default_rng(0)
    last = {
        "dropout": lambda: nn.Dropout(1e-6),
        "functional dropout": lambda: Calls(lambda x: nn.functional.dropout(x, 1e-6)),
        "batch norm": lambda: nn.BatchNorm1d(2),
        "batch norm without memory": lambda: nn.BatchNorm1d(2, track_running_stats=False).eval(),
        "counting": Counting,
        "random": lambda: Calls(lambda x: x + generator.normal()),
        "float32": lambda: Calls(lambda x: x.float()),
        "float32 inside": lambda: Calls(lambda x: x.float().double()),
        "bfloat16 inside": lambda: Calls(lambda x: x + x.detach().bfloat16()),
        "integers": lambda: Calls(lambda x: x.long()),
        "integers inside": lambda: Calls(lambda x: x.long().double()),
        "detached": lambda: Calls(lambda x: x.detach()),
        "detached in part": lambda: Calls(lambda x: x * x.detach()),
        "wrong gradient": lambda: Calls(Halved.apply),
        "infinite": lambda: Calls(lambda x: x / 0),
        "no tensor": lambda: Calls(lambda x: (x,)),
        "one row": lambda: Calls(lambda x: x[:1]),
    }[name]
    return nn.Sequential(nn.Linear(3, 2), last())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dropout", r"must not draw random numbers .*call module.eval\(\) first"),
        ("functional dropout", "must not draw random numbers"),
        ("batch norm", r"changes 1.running_mean; call module.eval\(\) first"),
        ("batch norm without memory", r"mean over the samples.*batch normalisation"),
        ("counting", "must not change its buffers; a call changes 1.calls"),
        ("random", "same at every call"),
        ("float32", "float64 parameters, got torch.float32"),
        ("float32 inside", "must not round float64 to torch.float32, as aten._to_copy"),
        ("bfloat16 inside", "must not round float64 to torch.bfloat16"),
        ("integers", "float64 parameters, got torch.int64"),
        ("integers inside", "must depend on the parameters"),
        ("detached", "must depend on the parameters"),
        ("detached in part", "gradient is not the derivative"),
        ("wrong gradient", "gradient is not the derivative"),
        ("infinite", "must be finite"),
        ("no tensor", "one tensor, got tuple"),
        ("one row", "one row per sample, 6"),
    ],
)
def test_modules_whose_derivatives_would_be_wrong_are_refused(name, message):
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = bad_torch_module(torch, name)
    before = torch_settings(torch)
    with pytest.raises((ValueError, TypeError), match=message):
        eosim.from_torch(module, generator.standard_normal((6, 3)), generator.normal(size=(6, 2)))
    assert torch_settings(torch) == before
    if name == "batch norm":
        assert module[1].num_batches_tracked == 0
        module.eval()
        inputs, targets = generator.standard_normal((6, 3)), generator.normal(size=(6, 2))
        assert eosim.from_torch(module, inputs, targets).dim == 8 + 4


def test_wrong_arguments_of_from_torch_are_named():
    torch = pytest.importorskip("torch")
    linear, x = torch.nn.Linear(2, 3), np.ones((4, 2))
    sums = {"criterion": torch.nn.MSELoss(reduction="sum")}
    for arguments, options, error, message in (
        ((lambda x: x, x), {}, TypeError, "must be a torch.nn.Module, got function"),
        ((torch.nn.Tanh(), x, x), {}, ValueError, "a parameter with requires_grad"),
        ((linear, x, np.ones((4, 2))), {}, ValueError, r"shape of the outputs, \(4, 3\)"),
        ((linear, x, np.ones((3, 4))), {}, ValueError, r"got shapes inputs \(4, 2\), targets"),
        ((linear, ()), {}, ValueError, "at least one array"),
        ((linear, x), {}, ValueError, r"or one per sample, \(4,\); got .*\(4, 3\)"),
        ((linear, x, np.arange(4.0) % 2), {"criterion": "cross_entropy"}, ValueError, "targets"),
        ((linear, x, np.ones((4, 3))), {"criterion": 3}, ValueError, "criterion must be"),
        ((linear, x), {"criterion": "cross_entropy"}, ValueError, "criterion needs targets"),
        ((linear, x, torch.rand((4, 3))), sums, ValueError, "mean over the samples"),
        ((torch.nn.Linear(2, 3, dtype=torch.cfloat), x, x), {}, TypeError, "weight is torch.comp"),
    ):
        with pytest.raises(error, match=message):
            eosim.from_torch(*arguments, **options)


# --- models that do not fit -----------------------------------------------------------------------


def test_inputs_that_a_model_cannot_take_are_named_with_their_shape(pair):
    problem, network, theta, _ = pair
    inputs, targets = data()
    wide = np.ones((N, D + 1))
    shape = rf"the given inputs of shape \({N}, {D + 1}\); it raises"
    if type(problem.backend).__name__ == "_TorchBackend":
        module = torch_model(network, theta)
        for answers in (targets, None):
            with pytest.raises(
                ValueError, match=f"module must take {shape} RuntimeError"
            ) as caught:
                eosim.from_torch(module, wide, answers)
            assert isinstance(caught.value.__cause__, RuntimeError)
        with pytest.raises(ValueError, match=f"module must take {shape} RuntimeError"):
            problem.outputs(problem.theta0, wide)
        with pytest.raises(ValueError, match=r"inputs of shape .*, inputs of shape .* TypeError"):
            eosim.from_torch(module, (inputs, inputs), targets)
    else:
        params = jax_params(network, theta)
        for answers in (targets, None):
            with pytest.raises(ValueError, match=f"model must take {shape} TypeError"):
                eosim.from_jax(jax_model(), params, wide, answers)
        with pytest.raises(ValueError, match=r"model must take no inputs; it raises Type"):
            eosim.from_jax(jax_model(), params)


def test_a_model_that_leaves_jax_is_told_so():
    pytest.importorskip("jax")
    inputs, targets = data()
    weights = np.ones((D, K))
    for model in (
        lambda p, x: np.tanh(x @ p),
        lambda p, x: x @ p * float(p[0, 0]),
        lambda p, x: x @ p if p[0, 0] > 0 else -x @ p,
    ):
        with pytest.raises(
            TypeError, match=r"must be written in jax\.numpy, .* np\.tanh"
        ) as caught:
            eosim.from_jax(model, weights, inputs, targets)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_a_problem_is_shown_by_its_source_and_sizes(pair):
    problem, network, _, _ = pair
    torch = type(problem.backend).__name__ == "_TorchBackend"
    source = "PyTorch Sequential" if torch else "JAX model"
    shown = f"AutodiffLeastSquares({source}, dim={network.dim}, n_samples={N})"
    assert repr(problem) == str(problem) == shown
    if not torch:
        free = eosim.from_jax(lambda p: (p**2).sum(), np.ones(3))
        assert repr(free) == "AutodiffProblem(JAX <lambda>, dim=3)"


@pytest.mark.parametrize(
    "name",
    ["at", "vmap", "fori_loop"],
)
def test_a_model_may_need_arrays_of_jax(name):
    jax = pytest.importorskip("jax")
    losses = {
        "at": lambda p: jax.numpy.sum(p.at[0].set(0.0) ** 2),
        "vmap": lambda p: jax.numpy.sum(jax.vmap(lambda i: p[i] ** 2)(jax.numpy.arange(3))),
        "fori_loop": lambda p: jax.lax.fori_loop(0, 3, lambda i, total: total + p[i] ** 2, 0.0),
    }
    problem = eosim.from_jax(losses[name], np.ones(3))
    assert problem.loss(np.array([1.0, 2.0, 3.0])) == (13.0 if name == "at" else 14.0)
