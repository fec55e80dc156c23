"""Perceptrons with other units and losses: against PyTorch where it is installed, and by differences."""

import copy
import dataclasses
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import eosim

ACTIVATIONS = ("tanh", "relu", "gelu", "identity")
CRITERIA = ("square", "cross_entropy")


def network(activation, criterion, n=7, d=3, k=4, hidden=(5, 6)):
    generator = np.random.default_rng(1)
    inputs = generator.standard_normal((n, d))
    if criterion == "square":
        targets = generator.standard_normal((n, k))
    else:
        targets = np.eye(k)[generator.integers(0, k, n)]
    problem = eosim.Perceptron(inputs, targets, hidden, activation, criterion)
    return problem, problem.initial(2, "pytorch")


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_equal_those_of_torch(activation, criterion):
    torch = pytest.importorskip("torch")
    problem, theta = network(activation, criterion)
    units = {
        "tanh": torch.tanh,
        "relu": torch.relu,
        "gelu": torch.nn.functional.gelu,
        "identity": lambda z: z,
    }
    inputs, targets = (torch.tensor(np.array(x)) for x in (problem.inputs, problem.targets))

    def loss(parameters):
        unit, start = inputs, 0
        for index, (out, inner) in enumerate(problem.shapes):
            layer = parameters[start : start + out * inner].reshape(out, inner)
            start += out * inner
            unit = unit @ layer[:, :-1].T + layer[:, -1]
            if index < len(problem.shapes) - 1:
                unit = units[activation](unit)
        if criterion == "square":
            return ((unit - targets) ** 2).sum() / (2 * len(inputs))
        return -(targets * torch.log_softmax(unit, dim=1)).sum() / len(inputs)

    point = torch.tensor(theta, requires_grad=True)
    value = loss(point)
    (slope,) = torch.autograd.grad(value, point)
    curvature = torch.autograd.functional.hessian(loss, torch.tensor(theta)).numpy()
    assert abs(problem.loss(theta) - value.item()) < 1e-13
    np.testing.assert_allclose(problem.gradient(theta), slope.numpy(), atol=1e-13)
    np.testing.assert_allclose(problem.hessian(theta), curvature, atol=1e-12)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("activation", ["tanh", "gelu", "identity"])
def test_derivatives_are_those_of_complex_steps(activation, criterion):
    problem, theta = network(activation, criterion)
    assert problem.analytic
    generator = np.random.default_rng(3)
    batch = np.array([0, 3, 3, 5])
    for rows in (None, batch):
        v = generator.standard_normal(problem.dim)
        step = theta + 1e-25j * v
        slope = problem.loss(step, rows).imag / 1e-25
        assert abs(slope - problem.gradient(theta, rows) @ v) < 1e-12
        product = problem.gradient(step, rows).imag / 1e-25
        np.testing.assert_allclose(problem.hvp(theta, v, rows), product, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_jacobian_is_the_derivative_of_the_outputs(activation):
    problem, theta = network(activation, "square")
    jacobian = problem.jacobian(theta)
    v = np.random.default_rng(4).standard_normal(problem.dim)
    step = 1e-7  # no pre-activation changes its sign within it
    difference = (problem.outputs(theta + step * v) - problem.outputs(theta - step * v)) / (
        2 * step
    )
    np.testing.assert_allclose(jacobian @ v, difference, atol=1e-8)


def test_one_forward_pass_serves_many_products():
    problem, theta = network("tanh", "cross_entropy")
    product = problem.hvp_at(theta)
    for v in np.random.default_rng(5).standard_normal((3, problem.dim)):
        np.testing.assert_array_equal(product(v), problem.hvp(theta, v))


def test_large_outputs_do_not_overflow_the_cross_entropy():
    problem, theta = network("identity", "cross_entropy")
    assert np.isfinite(problem.loss(300 * theta))
    assert np.isfinite(problem.gradient(300 * theta)).all()


def test_initialisations_have_their_spread():
    problem = eosim.Perceptron(np.zeros((2, 400)), np.zeros(2), (500,))
    first = problem.shapes[0][0] * problem.shapes[0][1]
    for scheme, spread in (("lecun", 1 / 400), ("he", 2 / 400), ("pytorch", 1 / 1200)):
        layer = problem.initial(0, scheme)[:first].reshape(500, 401)
        # 200,000 draws: the variance is known to 0.5 % at least
        assert abs(layer[:, :-1].var() / spread - 1) < 0.02
        assert (layer[:, -1] == 0).all() == (scheme != "pytorch")
    assert problem.initial(0, scale=2.0)[5] == 2 * problem.initial(0)[5]


def test_the_relu_network_is_not_analytic():
    assert not network("relu", "square")[0].analytic


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"activation": "swish"}, ValueError, "activation must be"),
        ({"criterion": "hinge"}, ValueError, "criterion must be"),
        ({"criterion": "cross_entropy"}, ValueError, "distributions over the classes"),
    ],
)
def test_unknown_names_and_targets_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        eosim.Perceptron(np.zeros((2, 1)), np.array([[0.5, 0.6], [1.0, 0.0]]), (2,), **arguments)


def test_cross_entropy_has_no_residuals_and_says_so():
    problem, theta = network("tanh", "cross_entropy")
    with pytest.raises(TypeError, match="square"):
        problem.residuals(theta)
    with pytest.raises(ValueError, match="one column per class"):
        eosim.Perceptron([[1.0]], [1.0], criterion="cross_entropy")
    with pytest.raises(ValueError, match="scheme must be"):
        problem.initial(0, "xavier")


# --- one pass for all that is asked at a point --------------------------------------------------


@pytest.mark.parametrize("rows", [None, np.array([0, 3, 3, 5])], ids=["all", "batch"])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_was_asked_before_does_not_change_a_bit(activation, criterion, rows):
    problem, theta = network(activation, criterion)
    v = np.linspace(-1, 1, problem.dim)
    other = theta[::-1].copy()
    questions = [
        lambda p: p.loss(theta, rows),
        lambda p: p.gradient(theta, rows),
        lambda p: p.hvp(theta, v, rows),
        lambda p: p.jacobian(theta, rows),
        lambda p: p.gradient(theta),
        lambda p: p.outputs(theta),
        lambda p: p.gradient(other, rows),
    ]
    alone = [question(dataclasses.replace(problem)) for question in questions]
    for order in itertools.permutations(range(len(questions)), 2):
        fresh = dataclasses.replace(problem)
        for which in order:
            np.testing.assert_array_equal(questions[which](fresh), alone[which])


def test_a_point_that_is_changed_in_place_is_another_point():
    problem, theta = network("tanh", "square")
    product = problem.hvp_at(theta)
    v = np.ones(problem.dim)
    before = product(v)
    theta += 0.1
    fresh = dataclasses.replace(problem)
    assert problem.loss(theta) == fresh.loss(theta)
    np.testing.assert_array_equal(problem.gradient(theta), fresh.gradient(theta))
    np.testing.assert_array_equal(product(v), before)  # it stays at its own point
    assert (problem.hvp(theta, v) != before).any()


def test_answers_belong_to_the_caller():
    problem, theta = network("tanh", "square")
    kept = [problem.outputs(theta), problem.residuals(theta), problem.gradient(theta)]
    copies = [np.array(answer) for answer in kept]
    for answer in kept:
        answer *= 7
    again = [problem.outputs(theta), problem.residuals(theta), problem.gradient(theta)]
    for answer, expected in zip(again, copies, strict=True):
        np.testing.assert_array_equal(answer, expected)


def test_index_arrays_lists_masks_and_slices_name_the_same_rows():
    problem, theta = network("tanh", "square")
    mask = np.array([True, False, True, False, False, False, False])
    expected = problem.gradient(theta, np.array([0, 2]))
    for rows in ([0, 2], [0, -5], mask, slice(0, 4, 2)):
        problem.gradient(theta, np.array([1]))
        np.testing.assert_array_equal(problem.gradient(theta, rows), expected)


def test_a_problem_is_copied_and_sent_without_its_last_pass():
    problem, theta = network("tanh", "square")
    size = len(pickle.dumps(problem))
    expected = problem.gradient(theta)
    assert len(pickle.dumps(problem)) <= size + 200  # dim and shapes
    for twin in (pickle.loads(pickle.dumps(problem)), copy.deepcopy(problem)):
        np.testing.assert_array_equal(twin.gradient(theta), expected)


def test_threads_at_different_points_get_their_own_answers():
    problem, theta = network("tanh", "cross_entropy", n=200, hidden=(20, 20))
    points = [theta * (1 + 0.1 * index) for index in range(8)]
    v = np.ones(problem.dim)

    def answers(point, asked):
        return asked.loss(point), asked.gradient(point), asked.hvp(point, v)

    alone = [answers(point, dataclasses.replace(problem)) for point in points]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            together = pool.map(lambda point: answers(point, problem), points)
            for found, expected in zip(together, alone, strict=True):
                for ours, theirs in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(ours, theirs)


def test_threads_that_share_products_at_a_point_get_the_same_bits():
    problem, theta = network("gelu", "square", n=200, hidden=(20, 20))
    product, directions = problem.hvp_at(theta), np.eye(problem.dim)[:16]
    alone = [product(v) for v in directions]
    with ThreadPoolExecutor(8) as pool:
        for ours, expected in zip(pool.map(product, directions), alone, strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_loss_product_and_gradient_at_a_point_make_one_forward_pass(monkeypatch):
    problem, theta = network("tanh", "square")
    passes = []
    forward = eosim.Perceptron._forward

    def counted(self, *arguments, **options):
        passes.append(options)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(eosim.Perceptron, "_forward", counted)
    problem.hvp(theta, theta), problem.hvp(theta, 2 * theta)
    problem.loss(theta), problem.gradient(theta)
    assert len(passes) == 1
    problem.gradient(theta + 1), problem.gradient(theta)
    assert len(passes) == 3
