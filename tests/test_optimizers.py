"""Update rules: each is the published variant that it names."""

import copy
import dataclasses

import numpy as np
import pytest
import sympy

import eosim
from eosim.optimizers import check_rule
from tests import naive
from tests.cases import RULES, symmetric
from theory.linear_stability import derive

_LR, _MOMENTUM, _NU = 0.1, 0.8, 0.6
_WRITTEN_OUT = [
    pytest.param(eosim.GradientDescent(_LR), naive.gradient_descent, (_LR,), id="gradient_descent"),
    pytest.param(
        eosim.HeavyBall(_LR, _MOMENTUM), naive.heavy_ball, (_LR, _MOMENTUM), id="heavy_ball"
    ),
    pytest.param(eosim.Nesterov(_LR, _MOMENTUM), naive.nesterov, (_LR, _MOMENTUM), id="nesterov"),
    pytest.param(
        eosim.EMAMomentum(_LR, _MOMENTUM), naive.quasi_hyperbolic, (_LR, _MOMENTUM, 1.0), id="ema"
    ),
    pytest.param(
        eosim.QuasiHyperbolic(_LR, _MOMENTUM, _NU),
        naive.quasi_hyperbolic,
        (_LR, _MOMENTUM, _NU),
        id="quasi_hyperbolic",
    ),
]


def apply(rule, gradient, theta, n_steps):
    """The path of a rule, without `eosim.run`."""
    state, path = rule.init(theta), [theta]
    for _ in range(n_steps):
        theta, state = rule.step(theta, state, gradient(theta))
        path.append(theta)
    return np.array(path)


@pytest.mark.parametrize(("rule", "written_out", "hyperparameters"), _WRITTEN_OUT)
def test_a_rule_makes_the_steps_of_its_published_form(rule, written_out, hyperparameters):
    problem = eosim.Rosenbrock(1.0)  # non-quadratic: an argument in the wrong place shows
    theta = np.array([0.2, -0.4])
    path = apply(rule, problem.gradient, theta, 40)
    expected = written_out(problem.gradient, theta, 40, *hyperparameters)
    np.testing.assert_allclose(path, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rule", RULES)
def test_a_step_changes_nothing_in_place(rule):
    theta, gradient = np.array([1.0, 2.0]), np.array([0.3, -0.4])
    theta, state = rule.step(theta, rule.init(theta), gradient)
    before = copy.deepcopy((theta, state, gradient))
    for array in (theta, gradient, *state):
        array.flags.writeable = False
    rule.step(theta, state, gradient)
    for old, new in zip((before[0], *before[1], before[2]), (theta, *state, gradient), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("rule", RULES)
def test_the_state_starts_at_zero_and_shares_no_memory_with_theta(rule):
    theta = np.array([1.0, 2.0])
    for entry in rule.init(theta):
        assert not np.any(entry)
        assert entry.shape == theta.shape
        assert not np.shares_memory(entry, theta)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_frozen_and_equal_to_its_copy(rule):
    assert rule == copy.deepcopy(rule)
    assert hash(rule) == hash(copy.deepcopy(rule))
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.lr = 1.0


@pytest.mark.parametrize("rule", RULES)
def test_hyperparameters_become_floats_whatever_number_was_given(rule):
    for field in dataclasses.fields(rule):
        assert type(getattr(rule, field.name)) is float
    for one in (1, np.float32(1), np.int64(1), sympy.Integer(1).p):
        assert type(dataclasses.replace(rule, lr=one).lr) is float


def test_without_momentum_every_rule_is_gradient_descent():
    problem = eosim.Quadratic(symmetric([1.0, 2.0, 3.0]))
    theta = np.array([1.0, -1.0, 2.0])
    expected = apply(eosim.GradientDescent(_LR), problem.gradient, theta, 20)
    for rule in (
        eosim.HeavyBall(_LR, 0),
        eosim.Nesterov(_LR, 0),
        eosim.EMAMomentum(_LR, 0),
        eosim.QuasiHyperbolic(_LR, 0, 0.7),
        eosim.QuasiHyperbolic(_LR, 0.9, 0),
    ):
        path = apply(rule, problem.gradient, theta, 20)
        np.testing.assert_allclose(path, expected, rtol=1e-13)


def test_ema_momentum_is_heavy_ball_at_a_smaller_rate_and_quasi_hyperbolic_at_nu_1():
    problem, theta = eosim.Rosenbrock(1.0), np.array([0.2, -0.4])
    ema = apply(eosim.EMAMomentum(_LR, _MOMENTUM), problem.gradient, theta, 40)
    for twin in (
        eosim.HeavyBall(_LR * (1 - _MOMENTUM), _MOMENTUM),
        eosim.QuasiHyperbolic(_LR, _MOMENTUM, 1.0),
    ):
        np.testing.assert_allclose(apply(twin, problem.gradient, theta, 40), ema, rtol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_the_same_step_runs_on_symbols(rule):
    names = [field.name for field in dataclasses.fields(rule)]
    symbols = {name: sympy.Symbol(name) for name in names}
    symbolic = type(rule)(**symbols)
    x, gradient = sympy.symbols("x g")
    buffers = sympy.symbols(f"m:{len(rule.init(np.zeros(1)))}")
    theta, state = symbolic.step(x, tuple(buffers), gradient)
    numbers = {symbols[name]: getattr(rule, name) for name in names} | {x: 1.7, gradient: -0.3}
    numbers |= dict(zip(buffers, np.linspace(0.2, 0.9, len(buffers)), strict=True))
    expected = rule.step(1.7, tuple(numbers[m] for m in buffers), -0.3)
    assert float(theta.subs(numbers)) == pytest.approx(expected[0], rel=1e-14)
    for symbol, number in zip(state, expected[1], strict=True):
        assert float(symbol.subs(numbers)) == pytest.approx(number, rel=1e-14)


@pytest.mark.parametrize("kind", ["GradientDescent", "HeavyBall", "Nesterov", "EMAMomentum"])
def test_the_closed_form_is_symbolic_for_symbolic_hyperparameters(kind):
    h, b = sympy.symbols("h b", positive=True)
    rule = eosim.GradientDescent(h) if kind == "GradientDescent" else getattr(eosim, kind)(h, b)
    numbers = {h: sympy.Rational(1, 4), b: sympy.Rational(3, 4)}
    expected = {
        "GradientDescent": 8,
        "HeavyBall": 14,
        "Nesterov": sympy.Rational(28, 5),
        "EMAMomentum": 56,
    }
    assert rule.critical_sharpness().subs(numbers) == expected[kind]


def test_quasi_hyperbolic_branches_are_symbolic_and_the_smallest_positive_one_is_its_threshold():
    h, b, nu = sympy.symbols("h b nu", positive=True)
    period_two, pair = eosim.QuasiHyperbolic(h, b, nu).critical_branches()
    assert sympy.simplify(period_two - 2 * (1 + b) / ((1 + b * (1 - 2 * nu)) * h)) == 0
    assert sympy.simplify(pair - (1 - b) / (b * (nu - 1) * h)) == 0
    assert eosim.QuasiHyperbolic(0.5, 0.5, 0.5).critical_sharpness() == 6.0
    assert eosim.QuasiHyperbolic(0.5, 0.5, 9.0).critical_sharpness() == 0.25


@dataclasses.dataclass(frozen=True)
class RateByItsOwnName:
    """A field takes the name of the optional method step_size(state)."""

    step_size: float

    def init(self, theta):
        return ()

    def step(self, theta, state, gradient):
        return theta - self.step_size * gradient, ()


@pytest.mark.parametrize(
    "use",
    [
        lambda rule, bowl: eosim.run(bowl, rule, [1.0], 3),
        lambda rule, bowl: eosim.compare(bowl, rule, [1.0], 3, {}),
        lambda rule, bowl: eosim.run_ensemble(
            eosim.LinearRegression([[1.0], [2.0]], [0.0, 0.0]), [rule], [1.0], 3,
            batch_sizes=[1], n_replicas=2, seed=0,
        ),
        lambda rule, bowl: eosim.stability.critical_sharpness(rule),
        lambda rule, bowl: eosim.optimizers.CoupledL2(rule),
        lambda rule, bowl: derive(type(rule)),
    ],
    ids=["run", "compare", "run_ensemble", "critical_sharpness", "CoupledL2", "derive"],
)  # fmt: skip
def test_a_number_in_the_place_of_a_method_is_refused_in_words_by_all(use):
    with pytest.raises(
        TypeError, match=r"RateByItsOwnName: step_size must be a method.*call a learn"
    ):
        use(RateByItsOwnName(0.1), eosim.Quadratic([[1.0]]))


def test_step_must_be_a_method_too():
    rule = RateByItsOwnName(0.1)
    object.__setattr__(rule, "step", 3.0)
    with pytest.raises(TypeError, match=r"step must be a method, which eosim calls; got 3.0$"):
        check_rule(rule)


def test_a_method_step_size_counts_the_time():
    class Halving:
        def init(self, theta):
            return (1.0,)

        def step(self, theta, state, gradient):
            return theta - state[0] / 2 * gradient, (state[0] / 2,)

        def step_size(self, state):
            return state[0]

    assert eosim.run(eosim.Quadratic([[1.0]]), Halving(), [1.0], 3).t[-1] == 0.875


@pytest.mark.parametrize(
    "rule",
    [eosim.optimizers.DecoupledDecay(2.0, 0.9, 1.5), eosim.AdamW(2.0, weight_decay=1.5)],
    ids=lambda rule: type(rule).__name__,
)
def test_a_decay_beyond_2_is_unstable_at_once(rule):
    assert rule.critical_sharpness() == 0.0
    tracked = {"edge": eosim.measure.PreconditionedSharpness()}
    run = eosim.run(eosim.Quadratic([[1.0]]), rule, [1.0], 3, record=tracked)
    assert (run["edge.ratio"][1:] == np.inf).all()


@pytest.mark.parametrize("gap", [1e-4, 1e-8, 1e-12])
def test_the_pair_of_a_cascade_keeps_its_digits_near_1(gap):
    rule = eosim.CascadedEMA(0.1, 1 - gap, 1 - gap)
    a, b, lr = (sympy.Rational(x) for x in (rule.beta1, rule.beta2, rule.lr))
    exact = float((1 - a * b) / (a * b * lr))
    assert rule.critical_branches()[1] == pytest.approx(exact, rel=1e-14)
