"""Adaptive rules: their published forms, their preconditioners, and what is left when P is frozen."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import sympy as sp

import eosim
from eosim.optimizers import CoupledL2, DecoupledDecay, Frozen, freeze
from tests.cases import QUARTIC_TERMS, symmetric

LR, B1, B2, EPS = 0.02, 0.8, 0.95, 1e-3  # an eps of this size shows where it stands
START = np.array([0.4, -0.7])
PROBLEM = eosim.Polynomial(QUARTIC_TERMS)  # no symmetry: exchanged arguments show
PAIR = {"lr": LR, "beta1": B1, "beta2": B2, "eps": EPS}

# Every adaptive rule, with all its switches.
ADAPTIVE = [
    pytest.param(eosim.RMSProp(LR, B2, EPS), id="rmsprop"),
    pytest.param(eosim.RMSProp(LR, B2, EPS, bias_correction=True), id="rmsprop_corrected"),
    pytest.param(eosim.RMSProp(LR, B2, EPS, eps_inside=True), id="rmsprop_eps_inside"),
    pytest.param(eosim.AdaGrad(LR, EPS), id="adagrad"),
    pytest.param(eosim.AdaGrad(LR, EPS, eps_inside=True), id="adagrad_eps_inside"),
    pytest.param(eosim.Adam(**PAIR), id="adam"),
    pytest.param(eosim.Adam(**PAIR, bias_correction=False), id="adam_uncorrected"),
    pytest.param(eosim.Adam(**PAIR, eps_inside=True), id="adam_eps_inside"),
    pytest.param(eosim.AdamW(**PAIR, weight_decay=0.3), id="adamw"),
    pytest.param(eosim.NAdam(**PAIR), id="nadam"),
    pytest.param(eosim.NAdam(**PAIR, bias_correction=False), id="nadam_uncorrected"),
    pytest.param(eosim.AMSGrad(**PAIR), id="amsgrad"),
    pytest.param(eosim.AMSGrad(**PAIR, maximum="corrected"), id="amsgrad_corrected"),
    pytest.param(eosim.AMSGrad(**PAIR, bias_correction=False), id="amsgrad_uncorrected"),
    pytest.param(eosim.Padam(**PAIR), id="padam"),
    pytest.param(
        eosim.Padam(**PAIR, exponent=0.25, bias_correction=True, running_maximum=True),
        id="padam_maximum",
    ),
    pytest.param(eosim.Adafactor(LR, [(1, 2)], beta1=B1, beta2=B2), id="adafactor"),
    pytest.param(eosim.Adafactor(LR, [(2,)], decay_exponent=0.8), id="adafactor_vector"),
]


def apply(rule, n_steps=50, start=START, gradient=PROBLEM.gradient):
    """The path of a rule, without `eosim.run`."""
    theta, state, path = start, rule.init(start), [start]
    for _ in range(n_steps):
        theta, state = rule.step(theta, state, gradient(theta))
        path.append(theta)
    return np.array(path)


# --- written out, coordinate by coordinate -------------------------------------------------------


def adam_loop(n_steps, variant="adam", corrected=True, inside=False, power=0.5, decay=0.0,
              next_factor=False):  # fmt: skip
    """Adam and its family as in their papers: corrected averages, no preconditioner in sight.

    ``next_factor`` divides the average of NAdam by 1 - beta1^(t+1).
    """
    theta = [float(x) for x in START]
    average, square, largest = [0.0] * 2, [0.0] * 2, [0.0] * 2
    path = [list(theta)]
    for t in range(1, n_steps + 1):
        gradient = PROBLEM.gradient(np.array(theta))
        for i in range(2):
            g = float(gradient[i])
            average[i] = B1 * average[i] + (1 - B1) * g
            square[i] = B2 * square[i] + (1 - B2) * g * g
            first = 1 - B1**t if corrected else 1.0
            second = 1 - B2**t if corrected else 1.0
            used = square[i] / second
            if variant in ("amsgrad", "padam_maximum"):
                largest[i] = max(largest[i], square[i])
                used = largest[i] / second
            elif variant == "amsgrad_corrected":
                largest[i] = max(largest[i], square[i] / second)
                used = largest[i]
            divisor = (used + EPS) ** power if inside else used**power + EPS
            move = average[i] / first
            if variant == "nadam":
                later = 1 - B1 ** (t + 1) if next_factor else first
                move = B1 * average[i] / later + (1 - B1) * g / first
            theta[i] = theta[i] - LR * decay * theta[i] - LR * move / divisor
        path.append(list(theta))
    return np.array(path)


def scaled_loop(n_steps, kind, corrected=False, inside=False):
    """RMSProp and AdaGrad."""
    theta, square, path = [float(x) for x in START], [0.0] * 2, [START]
    for t in range(1, n_steps + 1):
        gradient = PROBLEM.gradient(np.array(theta))
        for i in range(2):
            g = float(gradient[i])
            square[i] = (
                square[i] + g * g if kind == "adagrad" else B2 * square[i] + (1 - B2) * g * g
            )
            used = square[i] / (1 - B2**t) if corrected else square[i]
            divisor = math.sqrt(used + EPS) if inside else math.sqrt(used) + EPS
            theta[i] -= LR * g / divisor
        path.append(list(theta))
    return np.array(path)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (eosim.RMSProp(LR, B2, EPS), scaled_loop(50, "rmsprop")),
        (eosim.RMSProp(LR, B2, EPS, True), scaled_loop(50, "rmsprop", corrected=True)),
        (eosim.RMSProp(LR, B2, EPS, False, True), scaled_loop(50, "rmsprop", inside=True)),
        (eosim.AdaGrad(LR, EPS), scaled_loop(50, "adagrad")),
        (eosim.AdaGrad(LR, EPS, eps_inside=True), scaled_loop(50, "adagrad", inside=True)),
        (eosim.Adam(**PAIR), adam_loop(50)),
        (eosim.Adam(**PAIR, bias_correction=False), adam_loop(50, corrected=False)),
        (eosim.Adam(**PAIR, eps_inside=True), adam_loop(50, inside=True)),
        (eosim.AdamW(**PAIR, weight_decay=0.3), adam_loop(50, decay=0.3)),
        (eosim.NAdam(**PAIR), adam_loop(50, "nadam")),
        (eosim.NAdam(**PAIR, bias_correction=False), adam_loop(50, "nadam", corrected=False)),
        (eosim.AMSGrad(**PAIR), adam_loop(50, "amsgrad")),
        (eosim.AMSGrad(**PAIR, maximum="corrected"), adam_loop(50, "amsgrad_corrected")),
        (eosim.AMSGrad(**PAIR, bias_correction=False), adam_loop(50, "amsgrad", corrected=False)),
        (eosim.Padam(**PAIR), adam_loop(50, corrected=False, power=0.125)),
        (
            eosim.Padam(**PAIR, exponent=0.25, running_maximum=True),
            adam_loop(50, "padam_maximum", corrected=False, power=0.25),
        ),
        (
            eosim.Padam(**PAIR, exponent=0.3, bias_correction=True),
            adam_loop(50, power=0.3),
        ),
    ],
    ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else "",
)
def test_a_rule_makes_the_steps_of_its_published_form(rule, expected):
    np.testing.assert_allclose(apply(rule), expected, rtol=1e-11, atol=1e-13)


def test_the_maximum_matters_in_these_tests():
    plain, held, corrected = (adam_loop(50, v) for v in ("adam", "amsgrad", "amsgrad_corrected"))
    assert np.abs(held - plain).max() > 1e-3
    assert np.abs(held - corrected).max() > 1e-3


@pytest.mark.parametrize("exponent", [None, 0.8])
def test_adafactor_factors_matrices_and_keeps_vectors_whole(exponent):
    rule = eosim.Adafactor(LR, [(2, 3), (4,), (3, 1)], B1, B2, exponent, eps=1e-6)
    generator = np.random.default_rng(0)
    gradients = generator.standard_normal((20, 13))
    theta = expected = generator.standard_normal(13)
    state = rule.init(theta)
    rows, columns, vector = {}, {}, np.zeros(4)
    average = np.zeros(13)
    for t, gradient in enumerate(gradients, start=1):
        theta, state = rule.step(theta, state, gradient)
        beta2 = B2 if exponent is None else 1 - t**-exponent
        average = B1 * average + (1 - B1) * gradient
        squares, P = gradient**2 + 1e-6, np.zeros(13)
        for name, first, (r, c) in (("a", 0, (2, 3)), ("b", 10, (3, 1))):
            block = squares[first : first + r * c].reshape(r, c)
            for i in range(r):
                old = rows.get((name, i), 0.0)
                rows[name, i] = beta2 * old + (1 - beta2) * sum(block[i]) / c
            for j in range(c):
                old = columns.get((name, j), 0.0)
                columns[name, j] = beta2 * old + (1 - beta2) * sum(block[:, j]) / r
            mean = sum(rows[name, i] for i in range(r)) / r
            for i in range(r):
                for j in range(c):
                    P[first + i * c + j] = math.sqrt(rows[name, i] * columns[name, j] / mean)
        vector = beta2 * vector + (1 - beta2) * squares[6:10]
        P[6:10] = np.sqrt(vector)
        expected = expected - LR * average / P
        np.testing.assert_allclose(rule.preconditioner(state), P, rtol=1e-12)
        np.testing.assert_allclose(theta, expected, rtol=1e-11)


def test_adafactor_is_exact_for_squares_of_rank_one():
    outer = np.outer([1.0, 2.0, 3.0], [0.5, 4.0])
    rule = eosim.Adafactor(LR, [(3, 2)], beta2=0.0)
    _, state = rule.step(np.zeros(6), rule.init(np.zeros(6)), outer.ravel())
    np.testing.assert_allclose(rule.preconditioner(state), outer.ravel(), rtol=1e-14)


# --- other libraries -----------------------------------------------------------------------------

NUMBERS = {"lr": LR, "betas": (B1, B2), "eps": EPS}


@pytest.mark.parametrize(
    ("rule", "name", "options"),
    [
        (eosim.RMSProp(LR, B2, EPS), "RMSprop", {"lr": LR, "alpha": B2, "eps": EPS}),
        (eosim.AdaGrad(LR, EPS), "Adagrad", {"lr": LR, "eps": EPS}),
        (eosim.Adam(**PAIR), "Adam", NUMBERS),
        (eosim.AMSGrad(**PAIR), "Adam", {**NUMBERS, "amsgrad": True}),
        (eosim.AdamW(**PAIR, weight_decay=0.3), "AdamW", {**NUMBERS, "weight_decay": 0.3}),
        (CoupledL2(eosim.Adam(**PAIR), 0.3), "Adam", {**NUMBERS, "weight_decay": 0.3}),
        (
            CoupledL2(eosim.RMSProp(LR, B2, EPS), 0.3),
            "RMSprop",
            {"lr": LR, "alpha": B2, "eps": EPS, "weight_decay": 0.3},
        ),
        (eosim.HeavyBall(LR, B1), "SGD", {"lr": LR, "momentum": B1}),
        (eosim.Nesterov(LR, B1), "SGD", {"lr": LR, "momentum": B1, "nesterov": True}),
        (
            CoupledL2(eosim.HeavyBall(LR, B1), 0.3),
            "SGD",
            {"lr": LR, "momentum": B1, "weight_decay": 0.3},
        ),
    ],
    ids=[
        "rmsprop",
        "adagrad",
        "adam",
        "amsgrad",
        "adamw",
        "adam_l2",
        "rmsprop_l2",
        "sgd",
        "nesterov",
        "sgd_l2",
    ],
)
def test_fifty_steps_equal_those_of_torch(rule, name, options):
    torch = pytest.importorskip("torch")
    point = torch.nn.Parameter(torch.tensor(START))
    optimizer = getattr(torch.optim, name)([point], **options)
    path = [START]
    for _ in range(50):
        point.grad = torch.tensor(PROBLEM.gradient(point.detach().numpy()))
        optimizer.step()
        path.append(point.detach().numpy().copy())
    np.testing.assert_allclose(apply(rule), path, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["RMSProp", "AdaGrad", "Adam", "AdamW"])
def test_the_defaults_are_those_of_torch(kind):
    torch = pytest.importorskip("torch")
    rule = getattr(eosim, kind)(0.1)
    name = {"RMSProp": "RMSprop", "AdaGrad": "Adagrad"}.get(kind, kind)
    theirs = getattr(torch.optim, name)([torch.nn.Parameter(torch.zeros(1))]).defaults
    betas = theirs.get("betas", (None, theirs.get("alpha")))
    ours = {"beta1": betas[0], "beta2": betas[1], "eps": theirs["eps"]}
    ours["weight_decay"] = theirs["weight_decay"]
    for field in dataclasses.fields(rule):
        if field.name in ours:
            assert getattr(rule, field.name) == ours[field.name], field.name


def test_adafactor_equals_that_of_torch_where_its_relative_steps_and_clipping_do_nothing():
    torch = pytest.importorskip("torch")
    gradients = np.random.default_rng(1).standard_normal((50, 10))
    size = 1e6  # torch's rate is max(size, RMS of the parameter) * min(lr, t^-1/2)
    matrix, vector = (
        torch.nn.Parameter(torch.zeros(s, dtype=torch.double)) for s in ((2, 3), (4,))
    )
    optimizer = torch.optim.Adafactor(
        [matrix, vector], lr=LR / size, beta2_decay=-0.8, eps=(1e-30, size), d=1e30
    )
    rule = eosim.Adafactor(LR, [(2, 3), (4,)], decay_exponent=0.8)
    theta = np.zeros(10)
    state = rule.init(theta)
    for gradient in gradients:
        matrix.grad = torch.tensor(gradient[:6].reshape(2, 3))
        vector.grad = torch.tensor(gradient[6:])
        optimizer.step()
        theta, state = rule.step(theta, state, gradient)
        theirs = [part.detach().numpy().ravel() for part in (matrix, vector)]
        np.testing.assert_allclose(theta, np.concatenate(theirs), rtol=0, atol=1e-10)


def optax_path(transformation, gradient, start=START, n_steps=50):
    """The path of optax in float64, which is restored to what it was afterwards."""
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    with jax.enable_x64(True):
        theta = jax.numpy.asarray(start)
        state, path = transformation.init(theta), [np.array(theta)]
        for _ in range(n_steps):
            slope = jax.numpy.asarray(gradient(np.array(theta)))
            update, state = transformation.update(slope, state, theta)
            theta = optax.apply_updates(theta, update)
            path.append(np.array(theta))
    assert path[-1].dtype == np.float64
    return np.array(path)


@pytest.mark.parametrize(
    ("rule", "name", "options"),
    [
        (eosim.Adam(**PAIR), "adam", {"b1": B1, "b2": B2, "eps": EPS}),
        (
            eosim.AdamW(**PAIR, weight_decay=0.3),
            "adamw",
            {"b1": B1, "b2": B2, "eps": EPS, "weight_decay": 0.3},
        ),
        (
            eosim.AMSGrad(**PAIR, maximum="corrected"),
            "amsgrad",
            {"b1": B1, "b2": B2, "eps": EPS},
        ),
        (eosim.RMSProp(LR, B2, EPS, eps_inside=True), "rmsprop", {"decay": B2, "eps": EPS}),
        (
            eosim.RMSProp(LR, B2, EPS, bias_correction=True),
            "rmsprop",
            {"decay": B2, "eps": EPS, "eps_in_sqrt": False, "bias_correction": True},
        ),
        (
            eosim.Adam(**PAIR, eps_inside=True),
            "adam",
            {"b1": B1, "b2": B2, "eps": 0.0, "eps_root": EPS},
        ),
        (
            eosim.RMSProp(LR, B2, EPS, bias_correction=True, eps_inside=True),
            "rmsprop",
            {"decay": B2, "eps": EPS, "bias_correction": True},
        ),
        (
            eosim.AdaGrad(LR, EPS, eps_inside=True),
            "adagrad",
            {"initial_accumulator_value": 0.0, "eps": EPS},
        ),
        (eosim.HeavyBall(LR, B1), "sgd", {"momentum": B1}),
        (eosim.Nesterov(LR, B1), "sgd", {"momentum": B1, "nesterov": True}),
    ],
    ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else "",
)
def test_fifty_steps_equal_those_of_optax(rule, name, options):
    optax = pytest.importorskip("optax")
    path = optax_path(getattr(optax, name)(LR, **options), PROBLEM.gradient)
    np.testing.assert_allclose(apply(rule), path, rtol=0, atol=1e-10)


def test_the_defaults_of_adam_are_those_of_optax():
    optax = pytest.importorskip("optax")
    path = optax_path(optax.adam(LR), PROBLEM.gradient)
    np.testing.assert_allclose(apply(eosim.Adam(LR)), path, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(6, 3), (9, 2), (18,)])
def test_adafactor_equals_the_factored_moments_of_optax(shape):
    optax = pytest.importorskip("optax")
    target = np.random.default_rng(2).standard_normal(18)

    def gradient(theta):
        return (theta - target) * np.arange(1.0, 19)

    factored = optax.scale_by_factored_rms(
        decay_rate=B2,
        min_dim_size_to_factor=1,
        decay_rate_fn=lambda step, rate: rate,  # its own schedule is computed in float32
    )
    chain = optax.chain(factored, optax.scale_by_learning_rate(LR))
    path = optax_path(
        chain, lambda x: gradient(x.ravel()).reshape(shape), start=np.zeros(shape), n_steps=50
    )
    rule = eosim.Adafactor(LR, [shape], beta2=B2)
    ours = apply(rule, start=np.zeros(18), gradient=gradient)
    np.testing.assert_allclose(ours, path.reshape(51, 18), rtol=0, atol=1e-10)


def test_nadam_differs_from_that_of_optax_by_the_next_factor_of_its_average_alone():
    optax = pytest.importorskip("optax")
    path = optax_path(optax.nadam(LR, b1=B1, b2=B2, eps=EPS), PROBLEM.gradient)
    np.testing.assert_allclose(adam_loop(50, "nadam", next_factor=True), path, rtol=0, atol=1e-10)
    assert np.abs(apply(eosim.NAdam(**PAIR)) - path).max() > 1e-3


# --- preconditioner, linear rule and buffers -----------------------------------------------------


@pytest.mark.parametrize("rule", ADAPTIVE)
def test_a_step_is_that_of_the_linear_rule_on_gradients_divided_by_P(rule):
    theta, state = START, rule.init(START)
    for _ in range(20):
        gradient = PROBLEM.gradient(theta)
        new_theta, new_state = rule.step(theta, state, gradient)
        P = rule.preconditioner(new_state)
        assert P.shape == theta.shape
        frozen = Frozen(rule.linear(), P)
        buffers = tuple(buffer / P for buffer in rule.buffers(state))
        expected, frozen_buffers = frozen.step(theta, buffers, gradient)
        np.testing.assert_allclose(new_theta, expected, rtol=1e-14, atol=1e-15)
        for ours, theirs in zip(rule.buffers(new_state), frozen_buffers, strict=True):
            np.testing.assert_allclose(ours / P, theirs, rtol=1e-14, atol=1e-15)
        theta, state = new_theta, new_state


@pytest.mark.parametrize("rule", ADAPTIVE)
def test_the_threshold_of_a_rule_is_that_of_its_linear_rule(rule):
    assert rule.critical_sharpness() == pytest.approx(
        eosim.stability.critical_sharpness(rule.linear()), rel=1e-11
    )


def test_P_with_bias_correction_holds_the_factor_of_the_average():
    state = (np.array([0.3]), np.array([0.04]), 3)
    expected = (1 - B1**3) * (math.sqrt(0.04 / (1 - B2**3)) + EPS)
    assert eosim.Adam(**PAIR).preconditioner(state) == pytest.approx([expected], rel=1e-14)
    plain = eosim.Adam(**PAIR, bias_correction=False).preconditioner(state)
    assert plain == pytest.approx([0.2 + EPS], rel=1e-14)


@pytest.mark.parametrize("rule", ADAPTIVE)
def test_a_resumed_run_keeps_the_bits_of_an_uninterrupted_one(rule):
    whole = eosim.run(PROBLEM, rule, START, 40)
    first = eosim.run(PROBLEM, rule, START, 17)
    second = eosim.run(PROBLEM, rule, None, 23, state=first.final_state)
    np.testing.assert_array_equal(second["theta"], whole["theta"][17:])
    np.testing.assert_array_equal(second.t, whole.t[17:])


@pytest.mark.parametrize("rule", ADAPTIVE)
def test_a_step_changes_nothing_in_place(rule):
    theta, state = rule.step(START, rule.init(START), np.array([0.3, -0.4]))
    before = copy.deepcopy(state)
    for entry in (theta, *state):
        if isinstance(entry, np.ndarray):
            entry.flags.writeable = False
    rule.step(theta, state, np.array([0.1, 0.2]))
    rule.preconditioner(state)
    for old, new in zip(before, state, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("rule", ADAPTIVE)
def test_a_rule_equals_its_copy_and_is_hashable(rule):
    assert rule == copy.deepcopy(rule)
    assert hash(rule) == hash(copy.deepcopy(rule))


@pytest.mark.parametrize("kind", ["RMSProp", "AdaGrad", "Adam", "AdamW", "NAdam", "Padam"])
def test_the_same_step_runs_on_symbols(kind):
    number = getattr(eosim, kind)(0.1, **({"beta2": 0.9} if kind != "AdaGrad" else {}))
    names = [f.name for f in dataclasses.fields(number) if f.metadata.get("domain")]
    symbols = {name: sp.Symbol(name) for name in names}
    symbolic = getattr(eosim, kind)(**symbols)
    x, g = sp.symbols("x g")
    memory = sp.symbols(f"s:{len(number.init(np.zeros(1)))}")
    theta, _ = symbolic.step(x, memory, g)
    values = [0.2, 0.6, 4][: len(memory)] if len(memory) != 2 else [0.6, 4]
    point = {symbols[name]: getattr(number, name) for name in names} | {x: 1.7, g: -0.3}
    point |= dict(zip(memory, values, strict=True))
    expected, _ = number.step(1.7, tuple(values), -0.3)
    assert float(theta.subs(point)) == pytest.approx(expected, rel=1e-14)


# --- freezing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ADAPTIVE)
@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_a_run_frozen_in_the_middle_is_a_loop_with_P_fixed(rule, decay):
    live = CoupledL2(rule, decay) if decay else rule
    middle = eosim.run(PROBLEM, live, START, 30).final_state
    frozen, state = freeze(live, middle)
    assert frozen.lr == rule.lr
    run = eosim.run(PROBLEM, frozen, None, 30, state=state)
    assert run["t"][-1] == pytest.approx(60 * rule.lr)

    P = rule.preconditioner(middle.rule_state)
    np.testing.assert_array_equal(frozen.preconditioner(state.rule_state), P)
    theta, beta1 = middle.theta, getattr(rule, "beta1", 0.0)
    average = middle.rule_state[0] if rule.buffers(middle.rule_state) else 0 * theta
    path = [theta]
    for _ in range(30):
        gradient = PROBLEM.gradient(theta) + decay * theta
        average = beta1 * average + (1 - beta1) * gradient
        filtered = average
        if isinstance(rule, eosim.NAdam):
            filtered = beta1 * average + (1 - beta1) * gradient
        theta = theta * (1 - rule.lr * getattr(rule, "weight_decay", 0.0)) - rule.lr * filtered / P
        path.append(theta)
    np.testing.assert_allclose(run["theta"], path, rtol=1e-11, atol=1e-13)
    assert np.abs(run["theta"][-1] - run["theta"][0]).max() > 1e-4  # it still moves


def test_freezing_does_not_follow_a_later_change_of_the_array():
    P = np.array([1.0, 2.0])
    frozen = Frozen(eosim.GradientDescent(0.1), P)
    P[0] = 7.0
    np.testing.assert_array_equal(frozen.diagonal, [1.0, 2.0])


def test_a_momentum_rule_in_coupled_decay_loses_the_decay_from_its_threshold():
    rule = CoupledL2(eosim.HeavyBall(0.1, 0.5), 3.0)
    assert eosim.stability.critical_sharpness(rule) == pytest.approx(2 * 1.5 / 0.1 - 3.0, rel=1e-12)


# --- thresholds ----------------------------------------------------------------------------------

# k_star at b = 0.9, from the table of closed forms worked out by hand
TABLE = [
    pytest.param(eosim.GradientDescent(1.0), 2, id="gradient_descent"),
    pytest.param(eosim.HeavyBall(1.0), 3.8, id="heavy_ball"),
    pytest.param(eosim.Nesterov(1.0), 19 / 14, id="nesterov"),
    pytest.param(eosim.EMAMomentum(1.0), 38, id="ema"),
    pytest.param(eosim.NAdam(1.0), 95 / 7, id="nadam"),
    pytest.param(eosim.QuasiHyperbolic(1.0, nu=0.7), 5.9375, id="quasi_hyperbolic"),
    pytest.param(eosim.RMSProp(1.0), 2, id="rmsprop"),
    pytest.param(eosim.AdaGrad(1.0), 2, id="adagrad"),
    pytest.param(eosim.Adafactor(1.0, [(1,)]), 2, id="adafactor"),
    pytest.param(eosim.Adafactor(1.0, [(1,)], beta1=0.9), 38, id="adafactor_momentum"),
    pytest.param(eosim.Adam(1.0), 38, id="adam"),
    pytest.param(eosim.Adam(1.0, 0.5), 6, id="adam_0.5"),
    pytest.param(eosim.Adam(1.0, 0.8), 18, id="adam_0.8"),
    pytest.param(eosim.Adam(1.0, 0.95), 78, id="adam_0.95"),
    pytest.param(eosim.Adam(1.0, 0.99), 398, id="adam_0.99"),
    pytest.param(eosim.Adam(1.0, 0.0), 2, id="adam_0"),
    pytest.param(eosim.AMSGrad(1.0), 38, id="amsgrad"),
    pytest.param(eosim.Padam(1.0), 38, id="padam"),
    pytest.param(eosim.AdamW(1.0, weight_decay=0.1), 38 - 1.9, id="adamw"),
    pytest.param(DecoupledDecay(1.0, 0.9, 1.5), 9.5, id="strong_decay"),
    pytest.param(eosim.ParallelEMA(1.0, 0.5, 0.9, 0.25), 2 / (0.75 / 3 + 0.25 / 19), id="parallel"),
    pytest.param(eosim.CascadedEMA(1.0, 0.4, 0.7), 0.72 / 0.28, id="cascade_pair"),
    pytest.param(eosim.CascadedEMA(1.0, 0.7, 0.85), 0.405 / 0.595, id="cascade_slow_pair"),
    pytest.param(eosim.CascadedEMA(1.0, 0.2, 0.3), 2 * 1.2 * 1.3 / 0.56, id="cascade_period_two"),
    pytest.param(eosim.CascadedEMA(1.0, 0.0, 0.9), 38, id="cascade_of_one"),
]


@pytest.mark.parametrize(("rule", "k_star"), TABLE)
def test_closed_form_and_numeric_threshold_are_those_of_the_table(rule, k_star):
    linear = rule.linear() if hasattr(rule, "linear") else rule
    assert rule.critical_sharpness() == pytest.approx(k_star, rel=1e-13)
    assert eosim.stability.critical_sharpness(linear) == pytest.approx(k_star, rel=1e-10)
    slower = dataclasses.replace(rule, lr=0.01)
    if not hasattr(rule, "weight_decay"):
        assert slower.critical_sharpness() == pytest.approx(100 * k_star, rel=1e-13)


def top_mode(rule, share, n_steps, seed=0, P=None):
    """(first, last) size of the top mode of P^-1 H on a random quadratic at a share of the edge."""
    generator = np.random.default_rng(seed)
    factor = generator.standard_normal((6, 6))
    hessian = factor @ factor.T
    P = np.exp(generator.standard_normal(6)) if P is None else P
    root = np.sqrt(P)
    values, vectors = np.linalg.eigh(hessian / np.outer(root, root))
    hessian = hessian * share * rule.critical_sharpness() / values[-1]
    mode = vectors[:, -1]
    run = eosim.run(
        eosim.Quadratic(hessian), Frozen(rule.linear(), P), np.ones(6), n_steps, record={}
    )
    sizes = run["theta"] @ (root * mode)
    return np.abs(sizes)


@pytest.mark.parametrize(
    "rule",
    [
        eosim.Adam(0.01),
        eosim.AdamW(0.01, weight_decay=0.5),
        eosim.NAdam(0.01),
        eosim.RMSProp(0.01),
        eosim.AdaGrad(0.01),
        eosim.AMSGrad(0.01, 0.5),
        eosim.Padam(0.01),
        eosim.Adafactor(0.01, [(6,)], beta1=0.8),
    ],
    ids=lambda rule: type(rule).__name__,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_frozen_quadratic_shrinks_below_and_grows_above_the_threshold(rule, seed):
    below, above = (top_mode(rule, share, 300, seed) for share in (0.99, 1.01))
    assert below[-20:].max() < 0.5 * below[:20].max()
    assert above[-20:].max() > 2 * above[:20].max()


def test_the_grown_mode_of_adam_alternates_and_grows_by_its_largest_root():
    k = 1.01 * 38
    root = np.abs(np.roots([1, -(1.9 - 0.1 * k), 0.9])).max()
    assert root == pytest.approx(1.17, abs=0.02)
    sizes = top_mode(eosim.Adam(0.01), 1.01, 300)
    np.testing.assert_allclose(sizes[201:] / sizes[200:-1], root, rtol=1e-9)


def test_bias_correction_with_P_fixed_ends_below_the_threshold_but_starts_with_a_huge_transient():
    def peak(share, corrected, n_steps=4000):
        """On x^2/2 with P = 1 and the averages as they are in Adam."""
        x, average, largest = 1.0, 0.0, 1.0
        for t in range(1, n_steps + 1):
            average = 0.9 * average + 0.1 * x
            factor = 1 - 0.9**t if corrected else 1.0
            x -= share * 38 * average / factor
            largest = max(largest, abs(x))
        return largest, abs(x)

    for share, transient in ((0.5, 1e4), (0.99, 1e10)):
        largest, last = peak(share, corrected=True)
        assert largest > transient
        assert last < 1e-6
        plain, _ = peak(share, corrected=False)
        assert plain < 50


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: eosim.Adam(0), ValueError, r"Adam: lr must be a real number in \(0, inf\)"),
        (lambda: eosim.Adam(0.1, 1.0), ValueError, r"Adam: beta1 .* \[0, 1\), got 1.0"),
        (lambda: eosim.Adam(0.1, beta2=1.0), ValueError, "Adam: beta2"),
        (lambda: eosim.Adam(0.1, eps=-1), ValueError, "Adam: eps"),
        (lambda: eosim.AdamW(0.1, weight_decay=-1), ValueError, "AdamW: weight_decay"),
        (lambda: eosim.AMSGrad(0.1, maximum="both"), ValueError, "AMSGrad: maximum must be one of"),
        (lambda: eosim.Padam(0.1, exponent=0.6), ValueError, r"Padam: exponent .* \(0, 0.5\]"),
        (lambda: eosim.Padam(0.1, eps_inside=True), ValueError, "eps_inside must be False"),
        (lambda: eosim.RMSProp("0.1"), TypeError, "RMSProp: lr"),
        (lambda: eosim.AdaGrad(math.nan), ValueError, "AdaGrad: lr"),
        (lambda: eosim.ParallelEMA(0.1, nu=1.1), ValueError, r"ParallelEMA: nu .* \[0, 1\]"),
        (lambda: eosim.CascadedEMA(0.1, beta2=-0.1), ValueError, "CascadedEMA: beta2"),
        (lambda: DecoupledDecay(0.1, weight_decay=None), TypeError, "weight_decay"),
        (lambda: eosim.Adafactor(0.1, 4), TypeError, "shapes must be a sequence of tuples"),
        (lambda: eosim.Adafactor(0.1, [4]), TypeError, "shapes must be a sequence of tuples"),
        (lambda: eosim.Adafactor(0.1, []), ValueError, "at least one"),
        (lambda: eosim.Adafactor(0.1, [(1, 2, 3)]), ValueError, r"\(rows, columns\)"),
        (lambda: eosim.Adafactor(0.1, [(2.5,)]), TypeError, "shapes must be an integer >= 1"),
        (lambda: eosim.Adafactor(0.1, [(0, 2)]), ValueError, "shapes must be an integer >= 1"),
        (
            lambda: eosim.Adafactor(0.1, [(2,)], decay_exponent=0),
            ValueError,
            "Adafactor: decay_exponent",
        ),
        (lambda: eosim.Adafactor(0.1, [(2, 2)]).init(np.zeros(3)), ValueError, "4 entries.*3"),
        (
            lambda: eosim.Adam(0.1, 0.9, 0.999, 1e-8, 0.01),
            TypeError,
            "Adam: bias_correction .* 0.01",
        ),
        (
            lambda: eosim.RMSProp(0.1, eps_inside=1),
            TypeError,
            "RMSProp: eps_inside must be True or",
        ),
        (lambda: eosim.Padam(0.1, running_maximum="no"), TypeError, "Padam: running_maximum"),
        (lambda: eosim.AMSGrad(0.1, bias_correction=0), TypeError, "AMSGrad: bias_correction"),
        (lambda: CoupledL2(eosim.Adam), TypeError, "must be an instance"),
        (lambda: CoupledL2(eosim.Adam(0.1), -1), ValueError, "CoupledL2: weight_decay"),
        (lambda: CoupledL2(eosim.DAL()), TypeError, "DAL.step asks for local derivatives"),
        (lambda: Frozen(eosim.DAL(), 1.0), TypeError, "DAL.step asks for local derivatives"),
        (lambda: Frozen(eosim.GradientDescent(0.1), [1, 0]), ValueError, "smallest entry is 0.0"),
        (lambda: Frozen(eosim.GradientDescent(0.1), [1, math.inf]), ValueError, "diagonal has 1"),
        (lambda: Frozen(0.1, 1.0), TypeError, "rule must have init, step"),
        (lambda: Frozen(eosim.Adam(0.1), 1.0), TypeError, "Adam has a preconditioner.*linear"),
    ],
)
def test_a_wrong_argument_is_named_with_its_rule(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_freezing_needs_a_preconditioner_a_state_and_a_gradient():
    adam = eosim.Adam(0.1)
    bowl = eosim.Quadratic(symmetric([1.0, 2.0]))
    fresh = eosim.run(bowl, adam, [1.0, 1.0], 0).final_state
    with pytest.raises(ValueError, match="at least one step"):
        freeze(adam, fresh)
    with pytest.raises(TypeError, match="HeavyBall has no preconditioner"):
        freeze(eosim.HeavyBall(0.1), fresh)
    with pytest.raises(TypeError, match="HeavyBall has no preconditioner"):
        freeze(CoupledL2(eosim.HeavyBall(0.1)), fresh)
    with pytest.raises(TypeError, match="state must have rule_state, step"):
        freeze(adam, (1, 2))
    other = eosim.run(bowl, eosim.AdaGrad(0.1), [1.0, 1.0], 3).final_state
    with pytest.raises(ValueError, match="of a run with Adam, whose memory has length 3; got 1"):
        freeze(CoupledL2(adam), other)
    idle = eosim.Quadratic(np.diag([1.0, 0.0]))  # the second parameter has no gradient
    bare = eosim.Adam(0.1, eps=0.0)
    with np.errstate(invalid="ignore"):
        theta, state = bare.step(np.ones(2), bare.init(np.ones(2)), idle.gradient(np.ones(2)))
    assert np.isnan(theta[1])
    with pytest.raises(ValueError, match="eps > 0"):
        freeze(bare, dataclasses.replace(fresh, rule_state=state, step=1))


def test_scalar_rmsprop_is_rmsprop_in_one_dimension_and_gradient_descent_in_direction():
    one = eosim.Quadratic([[3.0]])
    scalar = eosim.run(one, eosim.ScalarRMSProp(0.01, 0.9, 1e-8), [1.0], 50)
    full = eosim.run(one, eosim.RMSProp(0.01, 0.9, 1e-8), [1.0], 50)
    np.testing.assert_allclose(scalar.theta, full.theta, rtol=1e-14)
    rule = eosim.ScalarRMSProp(0.1, 0.9)
    gradient = np.array([3.0, 4.0])
    theta, state = rule.step(np.zeros(2), rule.init(np.zeros(2)), gradient)
    assert state == (pytest.approx(2.5),)  # (1 - 0.9) * 25
    np.testing.assert_allclose(theta, -0.1 * gradient / math.sqrt(2.5), rtol=1e-15)
    assert rule.preconditioner(state) == pytest.approx(math.sqrt(2.5))
    assert rule.critical_sharpness() == 20


def test_scalar_rmsprop_freezes_and_is_tracked():
    bowl, rule = eosim.Quadratic(np.diag([4.0, 1.0])), eosim.ScalarRMSProp(0.01, 0.9)
    live = eosim.run(bowl, rule, [1.0, 1.0], 300)
    frozen, state = eosim.freeze(rule, live.final_state)
    P = rule.preconditioner(live.final_state.rule_state)
    after = eosim.run(bowl, frozen, None, 1, state=state)
    expected = state.theta - 0.01 * bowl.gradient(state.theta) / P
    np.testing.assert_allclose(after.final_state.theta, expected, rtol=1e-14)
    edge = {"edge": eosim.measure.PreconditionedSharpness()}
    run = eosim.run(bowl, rule, None, 1000, state=live.final_state, record=edge)
    assert abs(np.median(run["edge.ratio"]) - 1) < 0.02
