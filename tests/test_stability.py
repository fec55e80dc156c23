"""Thresholds of linear rules: the exact finder, the closed forms, slow scans and simulated runs."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eosim
from eosim.stability import critical_sharpness
from eosim.stability.linear import linearised
from tests import naive
from tests.cases import Linear

# --- rules as a user writes them ---------------------------------------------------------------


@dataclass
class Cascade:
    """The average of an average of the gradient."""

    lr: float
    beta1: float
    beta2: float

    def init(self, theta):
        return (0 * theta, 0 * theta)

    def step(self, theta, state, gradient):
        first = self.beta1 * state[0] + (1 - self.beta1) * gradient
        second = self.beta2 * state[1] + (1 - self.beta2) * first
        return theta - self.lr * second, (first, second)

    def critical_branches(self):
        """Period two; complex pair."""
        b1, b2, lr = self.beta1, self.beta2, self.lr
        return (
            2 * (1 + b1) * (1 + b2) / ((1 - b1) * (1 - b2) * lr),
            (1 - b1 * b2) / (b1 * b2 * lr),
        )


@dataclass
class Parallel:
    """A weighted sum of averages (aggregated momentum)."""

    lr: float
    betas: tuple
    weights: tuple

    def init(self, theta):
        return tuple(0 * theta for _ in self.betas)

    def step(self, theta, state, gradient):
        averages = tuple(b * m + (1 - b) * gradient for b, m in zip(self.betas, state, strict=True))
        update = sum(w * m for w, m in zip(self.weights, averages, strict=True))
        return theta - self.lr * update, averages


def random_rules(seed, count):
    """Rules of the five families with random hyperparameters."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        lr = 10 ** generator.uniform(-8, 8)
        momentum = generator.choice([0.0, generator.uniform(), 1 - 10 ** generator.uniform(-4, 0)])
        nu = generator.choice([0.0, 1.0, generator.uniform(), generator.uniform(1, 20)])
        yield eosim.GradientDescent(lr)
        yield eosim.HeavyBall(lr, momentum)
        yield eosim.Nesterov(lr, momentum)
        yield eosim.EMAMomentum(lr, momentum)
        yield eosim.QuasiHyperbolic(lr, momentum, nu)


# --- closed forms -------------------------------------------------------------------------------


def test_closed_forms_of_the_five_rules_are_what_is_found():
    for rule in random_rules(seed=0, count=100):
        assert critical_sharpness(rule) == pytest.approx(rule.critical_sharpness(), rel=1e-9), rule


def test_famous_values():
    assert critical_sharpness(eosim.GradientDescent(0.5)) == pytest.approx(4, rel=1e-12)
    assert critical_sharpness(eosim.HeavyBall(1.0, 0.9)) == pytest.approx(3.8, rel=1e-12)
    assert critical_sharpness(eosim.Nesterov(1.0, 0.9)) == pytest.approx(3.8 / 2.8, rel=1e-12)
    assert critical_sharpness(eosim.EMAMomentum(1.0, 0.9)) == pytest.approx(38, rel=1e-12)


@pytest.mark.parametrize("nu", [1.5, 5.0, 40.0])
def test_quasi_hyperbolic_beyond_nu_1_can_be_bound_by_a_complex_pair(nu):
    rule = eosim.QuasiHyperbolic(0.1, 0.9, nu)
    pair = (1 - 0.9) / (0.9 * (nu - 1) * 0.1)
    assert critical_sharpness(rule) == pytest.approx(pair, rel=1e-9)
    assert rule.critical_sharpness() == pytest.approx(pair, rel=1e-12)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 1e-12, 1e-14])
def test_momentum_close_to_1_is_no_excuse(gap):
    for rule in (
        eosim.HeavyBall(0.1, 1 - gap),
        eosim.Nesterov(0.1, 1 - gap),
        eosim.EMAMomentum(0.1, 1 - gap),
        eosim.QuasiHyperbolic(0.1, 1 - gap, 2.0),
        eosim.ParallelEMA(0.1, 1 - gap, 0.9, 0.5),
    ):
        assert critical_sharpness(rule) == pytest.approx(rule.critical_sharpness(), rel=1e-12)


@pytest.mark.parametrize("short", [0.3, 1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize("long", [1e-3, 1e-6, 1e-10, 1e-13])
def test_poles_that_crowd_at_1_keep_their_digits(short, long):
    """Against exact rationals."""
    rule = eosim.CascadedEMA(0.1, 1 - short, 1 - long)
    proved = critical_sharpness(rule, certify=True)
    assert critical_sharpness(rule) == pytest.approx(proved.lower, rel=1e-12)


@given(st.floats(-8, 8), st.floats(0.001, 0.99), st.floats(0.001, 0.99))
def test_a_cascade_of_averages_binds_by_whichever_branch_comes_first(log_lr, beta1, beta2):
    rule = Cascade(10**log_lr, beta1, beta2)
    assert critical_sharpness(rule) == pytest.approx(min(rule.critical_branches()), rel=1e-9)


def test_a_cascade_has_both_kinds_of_crossing():
    period_two, pair = Cascade(0.1, 0.05, 0.2), Cascade(0.1, 0.9, 0.9)
    assert period_two.critical_branches()[0] < period_two.critical_branches()[1]
    assert pair.critical_branches()[1] < pair.critical_branches()[0]
    for rule in (period_two, pair):
        assert critical_sharpness(rule) == pytest.approx(min(rule.critical_branches()), rel=1e-12)


@pytest.mark.parametrize("offset", [1e-5, 1e-7, 1e-8, 1e-9])
def test_two_branches_that_nearly_coincide_are_told_apart(offset):
    # At beta = (0.2, 0.5) both branches are 9 / lr. Just beyond, the pair binds, and the radius
    # between the two curvatures exceeds 1 by next to nothing.
    rule = Cascade(1.0, 0.2, 0.5 + offset)
    period_two, pair = rule.critical_branches()
    assert pair < period_two
    assert critical_sharpness(rule) == pytest.approx(pair, rel=1e-9)


@given(
    st.floats(-4, 4),
    st.lists(st.tuples(st.floats(0, 0.99), st.floats(0.05, 1)), min_size=1, max_size=4),
)
def test_parallel_averages_have_a_period_two_threshold(log_lr, pairs):
    betas, weights = zip(*pairs, strict=True)
    rule = Parallel(10**log_lr, betas, weights)
    expected = 2 / sum(w * (1 - b) / (1 + b) for w, b in zip(weights, betas, strict=True))
    assert critical_sharpness(rule) == pytest.approx(expected / rule.lr, rel=1e-9)


# --- degenerate rules ---------------------------------------------------------------------------


@dataclass
class Ascent:
    lr: float
    momentum: float = 0.0
    decay: float = 0.0

    def init(self, theta):
        return (0 * theta,)

    def step(self, theta, state, gradient):
        velocity = self.momentum * state[0] + gradient
        return (1 - self.decay) * theta + self.lr * velocity, (velocity,)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("lr", [1e-10, 1e-3, 1.0, 1e10])
def test_ascent_is_unstable_at_once_at_any_rate(lr, momentum):
    assert critical_sharpness(Ascent(lr, momentum)) == 0


@pytest.mark.parametrize("lr", [1e-9, 1.0, 1e9])
def test_ascent_with_decay_is_stable_until_curvature_outweighs_decay(lr):
    assert critical_sharpness(Ascent(lr, decay=0.01)) == pytest.approx(0.01 / lr, rel=1e-9)


def test_a_rule_that_ignores_the_gradient_is_never_unstable():
    assert critical_sharpness(Linear([[1.0, 0.0], [0.0, 0.5]], [0.0, 1.0])) == math.inf
    assert critical_sharpness(Linear([[0.5]], [0.0])) == math.inf


def test_a_rule_that_explodes_without_a_gradient_is_unstable_at_once():
    assert critical_sharpness(Linear([[1.0, 0.0], [0.0, 1.5]], [-1.0, 1.0])) == 0


def test_decay_moves_the_threshold():
    assert critical_sharpness(Linear([[0.9]], [-0.5])) == pytest.approx(3.8, rel=1e-12)


def test_a_rule_that_only_moves_after_a_delay_has_a_pair_on_the_circle_at_once_or_later():
    # theta_{k+1} = theta_k - g_{k-1}: the roots of z^2 - z + lambda reach |z| = 1 at lambda = 1.
    assert critical_sharpness(Linear([[1, -1], [0, 0]], [0, 1])) == pytest.approx(1, rel=1e-12)


def test_frictionless_momentum_stays_on_the_circle_until_period_two():
    # Symplectic Euler: both roots have modulus 1 for every curvature below 4.
    assert critical_sharpness(Linear([[1, -1], [0, 1]], [-1, 1])) == pytest.approx(4, rel=1e-9)


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([[1.0]], id="running_sum"),
        pytest.param([[-1.0]], id="alternating_sum"),
        pytest.param([[0.7]], id="average"),
        pytest.param([[1.0, 0.0], [1.0, 1.0]], id="sum_of_sums"),
        pytest.param([[1.0, 0, 0], [1.0, 1.0, 0], [0, 1.0, 1.0]], id="sum_of_sums_of_sums"),
        pytest.param([[0.0, -1.0], [1.0, 0.0]], id="four_cycle"),
    ],
)
@pytest.mark.parametrize("lr", [1e-6, 0.5, 3.0])
def test_buffers_that_only_watch_do_not_move_the_threshold(extra, lr):
    size = 1 + len(extra)
    drift = np.zeros((size, size))
    drift[0, 0], drift[1, 0], drift[1:, 1:] = 1, 1, extra  # the first buffer adds up theta
    response = np.zeros(size)
    response[0], response[1] = -lr, 0.3
    assert critical_sharpness(Linear(drift, response)) == pytest.approx(2 / lr, rel=1e-9)
    # ... nor hide that ascent with decay becomes unstable through z = 1.
    drift[0, 0], response[0] = 0.99, lr
    assert critical_sharpness(Linear(drift, response)) == pytest.approx(0.01 / lr, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e4, 1e9])
def test_the_threshold_does_not_depend_on_the_units_of_a_buffer(scale):
    drift, response = linearised(Cascade(0.1, 0.6, 0.9))
    units = np.diag([1, scale, 1 / scale])
    rule = Linear(units @ drift @ np.linalg.inv(units), units @ response)
    assert critical_sharpness(rule) == pytest.approx(0.46 / 0.054, rel=1e-9)
    ascent = Linear(np.array([[1, 1e-3 / scale], [0, 0.9]]), np.array([1e-3, scale]))
    assert critical_sharpness(ascent) == 0


def test_a_step_counter_is_taken_late():
    class Debiased:
        lr = 0.1

        def init(self, theta):
            return (0 * theta, 0)

        def step(self, theta, state, gradient):
            average, count = state
            average = 0.9 * average + 0.1 * gradient
            return theta - self.lr * average / (1 - 0.9 ** (count + 1)), (average, count + 1)

    assert critical_sharpness(Debiased()) == pytest.approx(380, rel=1e-9)


def test_scaling_lr_scales_the_threshold():
    for power in (-30, -7, 11, 40):
        rule = Cascade(2.0**power, 0.7, 0.8)
        assert critical_sharpness(rule) * 2.0**power == pytest.approx(0.44 / 0.56, rel=1e-9)


# --- against the naive scan ---------------------------------------------------------------------

_SCANNED = [
    (eosim.GradientDescent(0.3), 1.0),
    (eosim.HeavyBall(0.3, 0.7), 1 / 1.7),
    (eosim.Nesterov(0.3, 0.7), 2.4 / 1.7),
    (eosim.EMAMomentum(0.3, 0.7), 0.3 / 1.7),
    (eosim.QuasiHyperbolic(0.3, 0.7, 0.6), (1 + 0.7 * (1 - 1.2)) / 1.7),
    (eosim.QuasiHyperbolic(0.3, 0.7, 1.1), (1 + 0.7 * (1 - 2.2)) / 1.7),
    (Cascade(0.3, 0.8, 0.9), (0.2 / 1.8) * (0.1 / 1.9)),
    (Cascade(0.3, 0.05, 0.1), (0.95 / 1.05) * (0.9 / 1.1)),
    (Parallel(0.3, (0.0, 0.5, 0.9), (0.2, 0.3, 0.5)), 0.2 + 0.3 / 3 + 0.5 / 19),
]


@pytest.mark.parametrize(
    ("rule", "response_at_minus_1"), _SCANNED, ids=[repr(rule) for rule, _ in _SCANNED]
)
def test_a_scan_of_spectral_radii_finds_the_same_threshold(rule, response_at_minus_1):
    # The scan ends just beyond the period-two curvature 2 / (lr Q(-1)), past which no rule is stable.
    drift, response = linearised(rule)
    upper = 1.05 * 2 / (rule.lr * abs(response_at_minus_1))
    scanned = naive.critical_sharpness(drift, response, upper)
    assert critical_sharpness(rule) == pytest.approx(scanned, rel=1e-7)


def random_linear(generator):
    """A random drift of order up to 5 that is stable by itself (or holds theta), a random response."""
    order = generator.integers(1, 6)
    drift = generator.standard_normal((order, order))
    drift *= generator.uniform(0.1, 0.999) / np.abs(np.linalg.eigvals(drift)).max()
    if generator.uniform() < 0.5:
        drift[:, 0] = np.eye(order)[0]
        if order > 1:
            inner = np.abs(np.linalg.eigvals(drift[1:, 1:])).max()
            drift[1:, 1:] *= generator.uniform(0.1, 0.99) / inner
    response = generator.standard_normal(order)
    response[0] = -abs(response[0])
    return drift, response


@pytest.mark.parametrize("seed", range(8))
def test_random_linear_rules_agree_with_a_dense_scan(seed):
    generator = np.random.default_rng(seed)
    for _ in range(10):
        drift, response = random_linear(generator)
        found = critical_sharpness(Linear(drift, response))
        curvatures = np.concatenate([np.geomspace(1e-6, 1e4, 4000), [found, 1.0]])
        matrices = np.repeat(drift[None], len(curvatures), axis=0)
        with np.errstate(invalid="ignore"):
            matrices[:, :, 0] += np.where(np.isinf(curvatures), 0, curvatures)[:, None] * response
        radii = np.abs(np.linalg.eigvals(matrices)).max(axis=1)
        below = curvatures < found * (1 - 1e-6)
        assert (radii[below] <= 1 + 1e-9).all()
        if 0 < found < math.inf:
            assert naive.exact_radius(drift, response, found * (1 - 1e-6)) < 1
            assert naive.exact_radius(drift, response, found * (1 + 1e-6)) > 1
        elif found == 0:
            assert naive.exact_radius(drift, response, 1e-7) > 1


@pytest.mark.parametrize("seed", range(5))
def test_rules_of_small_numbers_are_stable_up_to_the_threshold_and_not_beyond(seed):
    # Small numbers make repeated roots, roots on the circle and common factors the common case.
    generator = np.random.default_rng(seed)
    for _ in range(40):
        order = generator.integers(1, 4)
        drift = generator.choice([-1.0, -0.5, 0.0, 0.5, 1.0], size=(order, order))
        response = generator.choice([-2.0, -1.0, 0.0, 1.0], size=order)
        if naive.exact_radius(drift, response, 0) > 1 + 1e-12:
            continue
        found = critical_sharpness(Linear(drift, response))
        assert found == 0 or found > 1e-3, (drift, response)
        for curvature in min(found, 30) * np.linspace(0.05, 0.999999, 5):
            radius = naive.exact_radius(drift, response, curvature)
            assert radius <= 1 + 1e-12, (drift, response, found, curvature)
        if math.isfinite(found):  # beyond: at once, if only a little
            radius = naive.exact_radius(drift, response, found * (1 + 1e-6) + 1e-9)
            assert radius > 1 + 1e-15, (drift, response, found)


# --- against simulation -------------------------------------------------------------------------

_SIMULATED = [
    eosim.GradientDescent(0.3),
    eosim.HeavyBall(0.02, 0.7),
    eosim.Nesterov(5.0, 0.5),
    eosim.EMAMomentum(0.1, 0.9),
    eosim.QuasiHyperbolic(0.1, 0.9, 0.7),
    eosim.QuasiHyperbolic(0.1, 0.5, 2.5),
    Cascade(0.1, 0.9, 0.8),
    Cascade(0.1, 0.1, 0.2),
    Parallel(0.2, (0.3, 0.8), (0.6, 0.4)),
]


@pytest.mark.parametrize("rule", _SIMULATED, ids=repr)
def test_a_run_shrinks_just_below_the_threshold_and_grows_just_above(rule):
    threshold = critical_sharpness(rule)
    for factor, grows in ((0.99, False), (1.01, True)):
        curvature = factor * threshold
        radius = naive.spectral_radius(*linearised(rule), curvature)
        assert (radius > 1) == grows
        n_steps = math.ceil(math.log(1e9) / abs(math.log(radius)))  # nine decades
        path = eosim.run(eosim.Quadratic([[curvature]]), rule, [1.0], n_steps)
        tail = np.abs(path.theta[-20:]).max()  # a pair's theta passes 0: look at a few steps
        assert (tail > 1e3) if grows else (tail < 1e-3)


def test_a_shipped_rule_is_linear_in_its_own_words():
    drift, response = linearised(eosim.HeavyBall(0.25, 0.5))
    np.testing.assert_array_equal(drift, [[1, -0.125], [0, 0.5]])
    np.testing.assert_array_equal(response, [-0.25, 1])


@pytest.mark.parametrize(
    "rule",
    [
        eosim.RMSProp(1e-3),
        eosim.AdaGrad(1e-3),
        eosim.Adam(1e-3),
        eosim.AdamW(1e-3),
        eosim.NAdam(1e-3),
        eosim.AMSGrad(1e-3),
        eosim.Adafactor(1e-3, [(2, 3)]),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_an_adaptive_rule_is_refused_with_the_method_that_has_its_threshold(rule):
    name = type(rule).__name__
    for certify in (False, True):
        with pytest.raises(ValueError, match="adaptive") as caught:
            critical_sharpness(rule, certify=certify)
        assert f"{name}(...).critical_sharpness() is its threshold" in str(caught.value)
    assert rule.critical_sharpness() > 0
