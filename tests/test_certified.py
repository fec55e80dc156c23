"""Enclosures: they hold the exact value, are tight, and are refused in words where nothing is proved."""

import copy
import functools
import math
import sys
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace
from typing import NamedTuple

import mpmath
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

import eosim
from eosim.certified import CannotCertify, Enclosure
from eosim.measure import sharpness
from eosim.sampling import batch_moments
from eosim.stability import (
    TangentKernel,
    critical_lr,
    critical_sharpness,
    growth_rate,
    tangent_kernel,
)
from eosim.stability.mean_square import moment_response
from tests import cases, naive
from tests.cases import Linear

flint = pytest.importorskip("flint")

SAMPLINGS = ("without_replacement", "with_replacement", "bernoulli")


def ulps(enclosure) -> int:
    """How many floats it spans; 0 for a single one."""
    return round((enclosure.upper - enclosure.lower) / math.ulp(enclosure.lower))


def relative_width(enclosure) -> float:
    return enclosure.upper / enclosure.lower - 1


# --- thresholds of rules ------------------------------------------------------------------------


def closed_form(rule) -> Fraction:
    """The threshold stated beside a rule, evaluated at the exact values of its hyperparameters."""
    twin = copy.copy(rule)
    for name, value in vars(rule).items():
        object.__setattr__(twin, name, Fraction(value))
    return twin.critical_sharpness()


@dataclass
class Custom:
    """A user's rule without memory."""

    update: object
    lr: float = 0.1

    def init(self, theta):
        return ()

    def step(self, theta, state, gradient):
        return self.update(self, theta, gradient), ()


RATE = st.floats(1e-6, 1e6)
SHARE = st.floats(0, 0.999)


@given(RATE, SHARE, SHARE, st.floats(0, 5))
def test_the_closed_form_lies_between_neighbouring_floats(lr, beta1, beta2, nu):
    rules = [
        eosim.GradientDescent(lr),
        eosim.HeavyBall(lr, beta1),
        eosim.Nesterov(lr, beta1),
        eosim.EMAMomentum(lr, beta1),
        eosim.QuasiHyperbolic(lr, beta1, nu),
        eosim.ParallelEMA(lr, beta1, beta2, nu / 5),
        eosim.CascadedEMA(lr, beta1, beta2),
        eosim.optimizers.DecoupledDecay(lr, beta1, weight_decay=nu / (3 * lr)),
    ]
    for rule in rules:
        enclosure = critical_sharpness(rule, certify=True)
        assert closed_form(rule) in enclosure, rule
        assert ulps(enclosure) <= 1, rule


@given(RATE, SHARE, st.floats(1e-3, 1e3))
def test_a_frozen_preconditioner_and_a_decay_in_the_gradient_are_exact_too(lr, beta, P):
    ball = eosim.HeavyBall(lr, beta)
    frozen = critical_sharpness(eosim.optimizers.Frozen(ball, P), certify=True)
    assert closed_form(ball) * Fraction(P) in frozen
    decay = 1 / lr
    coupled = critical_sharpness(eosim.CoupledL2(ball, decay), certify=True)
    assert closed_form(ball) - Fraction(decay) in coupled
    assert max(ulps(frozen), ulps(coupled)) <= 1


def test_another_rate_has_another_enclosure():
    for factor in (1 - 1e-15, 1 + 1e-15):
        for rule in (eosim.HeavyBall, eosim.CascadedEMA):
            enclosure = critical_sharpness(rule(0.1 * factor), certify=True)
            assert closed_form(rule(0.1)) not in enclosure
            assert closed_form(rule(0.1 * factor)) in enclosure


@pytest.mark.parametrize("seed", range(12))
def test_random_rules_are_stable_up_to_the_enclosure_and_not_beyond(seed):
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 5))
    drift = generator.integers(-8, 9, (size, size)) / 8.0
    drift /= 1.25 * max(1.0, np.abs(np.linalg.eigvals(drift)).max())
    response = generator.integers(-4, 5, size) / 4.0
    lower, upper = critical_sharpness(Linear(drift, response), certify=True)
    assert critical_sharpness(Linear(drift, response)) == pytest.approx(lower, rel=1e-9)
    assert lower > 0  # the drift contracts
    if lower == math.inf:
        assert naive.critical_sharpness(drift, response, 1e3) == math.inf
        return
    scanned = naive.critical_sharpness(drift, response, 1.5 * lower)
    assert scanned == pytest.approx(lower, rel=1e-6)
    assert naive.exact_radius(drift, response, lower * (1 - 1e-14)) < 1
    assert naive.exact_radius(drift, response, upper * (1 + 1e-14)) > 1
    assert upper <= math.nextafter(lower, math.inf)


def test_a_rule_unstable_at_once_and_one_that_never_is_are_proved_too():
    ascent = Custom(lambda self, theta, gradient: theta + self.lr * gradient)
    assert critical_sharpness(ascent, certify=True) == (0, 0)
    assert critical_sharpness(Linear([[1.0, 0.0], [0.0, 0.5]], [0.0, 1.0]), certify=True) == (
        math.inf,
        math.inf,
    )
    explodes = Linear([[1.0, 0.0], [0.0, 1.5]], [-1.0, 1.0])
    assert critical_sharpness(explodes, certify=True) == (0, 0)


def test_buffers_that_only_watch_do_not_move_the_enclosure():
    for extra in (1.0, -1.0, 0.5):
        drift, response = [[1.0, 0.0], [0.0, extra]], [-0.1, 3.0]
        enclosure = critical_sharpness(Linear(drift, response), certify=True)
        assert enclosure == critical_sharpness(eosim.GradientDescent(0.1), certify=True)


def test_a_rule_may_branch_on_its_hyperparameters_and_hold_constants_of_its_own():
    def update(self, theta, gradient):
        rate = 2 * self.lr if 0 < self.lr < 1 and self.lr != 0.5 else self.lr
        return theta - rate**2 / 0.25 * gradient

    for lr in (0.1, 0.5, 2.0):
        rate = Fraction(lr) * (2 if lr == 0.1 else 1)
        enclosure = critical_sharpness(Custom(update, lr), certify=True)
        assert Fraction(1, 2) / rate**2 in enclosure
        assert ulps(enclosure) <= 1


@dataclass(frozen=True)
class Inner:
    beta: float


class InnerTuple(NamedTuple):
    beta: float


class Betas(list):
    """Not a list itself."""


class Schedule:
    def __init__(self, beta):
        self.beta = beta

    def at(self, step):
        return self.beta


@given(SHARE)
def test_hyperparameters_are_exact_wherever_a_rule_keeps_them(beta):
    class Plain(Custom):
        momentum = beta

    @dataclass(frozen=True, slots=True)
    class Slots:
        momentum: float
        lr: float = 0.1

        def init(self, theta):
            return ()

        def step(self, theta, state, gradient):
            return theta - self.lr * (1 - self.momentum) * gradient, ()

    exact = 2 / (Fraction(0.1) * (1 - Fraction(beta)))
    rules = [Slots(beta), Plain(lambda self, theta, g: theta - self.lr * (1 - self.momentum) * g)]
    objects = np.array([beta, None], dtype=object)
    for container in (
        (beta,), [beta], deque([beta]), np.array([beta]), {0: beta}, Betas([beta]), objects
    ):  # fmt: skip
        rules.append(Custom(lambda self, theta, g: theta - self.lr * (1 - self.betas[0]) * g))
        rules[-1].betas = container
    for inner in (Inner(beta), InnerTuple(beta), SimpleNamespace(beta=beta)):
        rules.append(Custom(lambda self, theta, g: theta - self.lr * (1 - self.inner.beta) * g))
        rules[-1].inner = inner
    rules.append(Custom(lambda self, theta, g: theta - self.lr * (1 - self.beta_at(0)) * g))
    rules[-1].beta_at = Schedule(beta).at
    for rule in rules:
        enclosure = critical_sharpness(rule, certify=True)
        assert exact in enclosure
        assert ulps(enclosure) <= 1


def test_what_cannot_be_made_exact_is_refused():
    rule = Custom(lambda self, theta, g: theta - self.lr * g)
    rule.part = SimpleNamespace(beta=0.5, owner=rule)
    with pytest.raises(CannotCertify, match="Custom refers back to itself"):
        critical_sharpness(rule, certify=True)
    rule.part = np.zeros(1_000_001)
    with pytest.raises(CannotCertify, match="an array of 1000001 entries is too large"):
        critical_sharpness(rule, certify=True)


def test_what_a_rule_has_computed_and_kept_is_computed_anew():
    class Cached(Custom):
        @functools.cached_property
        def share(self):
            return (1 - self.lr) ** 3

    rule = Cached(lambda self, theta, gradient: theta - self.share * gradient)
    for _ in range(2):
        for lr in (0.1, 0.3, 0.7):
            rule = Cached(rule.update, lr)
            assert rule.share > 0
            enclosure = critical_sharpness(rule, certify=True)
            assert 2 / (1 - Fraction(lr)) ** 3 in enclosure
            assert ulps(enclosure) <= 1


class Debiased:
    """A rule that counts its steps."""

    lr = 0.1

    def init(self, theta):
        return (0 * theta, 0)

    def step(self, theta, state, gradient):
        average, count = 0.9 * state[0] + 0.1 * gradient, state[1] + 1
        return theta - self.lr * average / (1 - 0.9**count), (average, count)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Debiased(), "Debiased counts its steps"),
        (
            Custom(lambda self, theta, gradient: theta - math.sqrt(self.lr) * gradient),
            "Custom.step does not run on exact numbers: must be real number",
        ),
        (
            Custom(lambda self, theta, gradient: theta - np.where(gradient > 1e9, 1e9, gradient)),
            "the state or the gradient enters other than linearly",
        ),
        (
            Linear([[1.0, -1.0], [0.0, 1.0]], [-1.0, 1.0]),
            "two roots of the recursion are reciprocal at every curvature",
        ),
        (
            Linear([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]], [-1.0, 0.0, 0.0]),
            "Linear has a mode that no gradient moves and that is not proved to decay or to grow",
        ),
    ],
)
def test_a_rule_without_a_proof_is_refused(rule, words):
    critical_sharpness(rule)
    with pytest.raises(CannotCertify, match=words):
        critical_sharpness(rule, certify=True)


def test_an_adaptive_rule_is_refused_as_without_a_proof():
    with pytest.raises(ValueError, match="needs a linear rule, but RMSProp"):
        critical_sharpness(eosim.RMSProp(0.1), certify=True)


def test_certifying_leaves_a_rule_as_it_was():
    rule = eosim.optimizers.Frozen(eosim.HeavyBall(0.1), np.array(2.0))
    critical_sharpness(rule, certify=True)
    assert rule.rule == eosim.HeavyBall(0.1)
    assert rule.diagonal.dtype == float


# --- the second moment of SGD -------------------------------------------------------------------


def dyadic(seed, n_samples, n_outputs=1, dim=None):
    """A Jacobian of small dyadic numbers: its kernel has no rounding if n_samples is a power of 2."""
    generator = np.random.default_rng(seed)
    rows = n_samples * n_outputs
    return generator.integers(-16, 17, (rows, dim or rows)) / 8.0


def enumerated_sign(jacobian, n_outputs, lr, size, sampling, momentum, rate=1.0) -> int:
    """Of det(R I - E[M kron M]) over all batches: 1 above the spectral radius, -1 just below it."""
    with mpmath.workdps(50):
        exact = np.vectorize(mpmath.mpf, otypes=[object])(jacobian)
        operator = naive.second_moment_operator(
            exact, n_outputs, mpmath.mpf(lr), size, sampling, mpmath.mpf(momentum)
        )
        shifted = mpmath.mpf(rate) * mpmath.eye(len(operator)) - mpmath.matrix(operator.tolist())
        return int(mpmath.sign(mpmath.det(shifted)))


@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("n_samples", "n_outputs", "dim"), [(2, 1, 2), (4, 1, 2), (2, 2, 3)])
def test_the_operator_over_all_batches_crosses_one_inside_the_enclosure(
    n_samples, n_outputs, dim, sampling, momentum
):
    jacobian = dyadic(3, n_samples, n_outputs, dim)
    kernel = TangentKernel.from_jacobian(jacobian, n_outputs)
    for size in (1, 2):
        if batch_moments(n_samples, size, sampling).noise == 0:
            continue
        options = {"sampling": sampling, "momentum": momentum}
        lr = critical_lr(kernel, size, **options, certify=True)
        rate = growth_rate(kernel, 1.5 * lr.upper, size, **options, certify=True)
        assert max(relative_width(lr), relative_width(rate)) < 1e-12
        args = (size, sampling, momentum)
        # A TangentKernel is rounded, by less than a tenth of the enclosure's width
        assert enumerated_sign(jacobian, n_outputs, lr.lower, *args) == 1
        assert enumerated_sign(jacobian, n_outputs, lr.upper, *args) == -1
        args = (1.5 * lr.upper, *args)
        assert enumerated_sign(jacobian, n_outputs, *args, rate.upper) == 1
        assert enumerated_sign(jacobian, n_outputs, *args, rate.lower) == -1


@pytest.mark.parametrize(("momentum", "n_samples"), [(0.0, 4), (0.75, 2)])
def test_a_matrix_is_taken_exactly(momentum, n_samples):
    jacobian = dyadic(5, n_samples)
    matrix = jacobian @ jacobian.T / n_samples
    options = {"momentum": momentum, "certify": True}
    enclosure = critical_lr(matrix, 1, **options)
    signs = [
        enumerated_sign(jacobian, 1, lr, 1, "without_replacement", momentum) for lr in enclosure
    ]
    assert signs == [1, -1]
    for factor in (1 - 1e-12, 1 + 1e-12):
        other = critical_lr(matrix * factor, 1, **options)
        assert other.upper < enclosure.lower or other.lower > enclosure.upper


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seed", range(5))
def test_no_verdict_is_wrong_at_any_rate_and_none_is_missing(seed, sampling):
    from eosim.stability.second_moment import SecondMoment

    generator = np.random.default_rng(seed)
    n, momentum = int(generator.integers(2, 5)), float(generator.choice([0.0, 0.5, 0.9]))
    size = int(generator.integers(1, min(n, 3) + 1))
    jacobian = generator.standard_normal((n, int(generator.integers(1, n + 1))))
    kernel = TangentKernel.from_jacobian(jacobian)
    operator = SecondMoment(
        (kernel.vectors(), kernel.eigenvalues), 1, *batch_moments(n, size, sampling), momentum
    )
    edge = 2 * (1 + momentum) / kernel.largest
    for lr in edge * generator.uniform(0, 1.5, size=6):
        exact = naive.second_moment_operator(jacobian, 1, lr, size, sampling, momentum)
        radius = float(np.abs(np.linalg.eigvals(exact)).max())
        for factor in (0.5, 1 - 1e-5, 1 + 1e-5, 2):
            assert operator.contracts(lr, factor * radius) is (factor > 1)


def test_bad_eigenvectors_cost_proofs_and_never_the_truth(monkeypatch):
    from eosim.stability import second_moment

    monkeypatch.setattr(second_moment, "_ROUNDS", 1)
    matrix = dyadic(5, 4) @ dyadic(5, 4).T / 4
    verdicts = set()
    for momentum in (0.0, 0.75):
        operator = second_moment.SecondMoment(matrix, 1, *batch_moments(4, 1), momentum)
        operator._values = operator._values * (1 + 1e-3)
        operator._vectors = operator._vectors + 1e-4 * np.tri(4)
        lr = critical_lr(matrix, 1, momentum=momentum)
        for distance in np.logspace(-6, -1, 11):
            for sign in (-1, 1):
                verdict = operator.contracts(lr * (1 + sign * distance), 1.0)
                assert verdict in (None, sign < 0)
                verdicts.add(verdict)
    assert verdicts == {True, False, None}


def test_refinement_leaves_no_more_than_the_balls_do():
    from eosim.stability.second_moment import SecondMoment

    matrix = dyadic(5, 4) @ dyadic(5, 4).T / 4
    for momentum in (0.0, 0.75):
        operator = SecondMoment(matrix, 1, *batch_moments(4, 1), momentum)
        lr = critical_lr(matrix, 1, momentum=momentum)
        with flint.ctx.workprec(128):
            _, residual = operator._forms(flint.arb(lr), flint.arb(momentum), flint.arb(1))
        assert residual < 1e-50


def test_nothing_is_proved_at_the_exact_threshold():
    from eosim.stability.second_moment import SecondMoment

    operator = SecondMoment(np.array([[2.0, 1.0], [1.0, 2.0]]), 1, *batch_moments(2, 1), 0.0)
    assert operator.contracts(0.5, 1.0) is None


def test_localised_samples_have_the_threshold_of_the_largest():
    lam = [0.25, 1.0, 2.5, 4.0]
    for size in (1, 2, 3):
        enclosure = critical_lr(np.diag(lam), size, certify=True)
        assert Fraction(2 * size, 16) in enclosure
        assert relative_width(enclosure) < 1e-12


def test_orthogonal_groups_of_samples_grow_like_the_fastest_of_them():
    groups = [[[1.0, 0.5]], [[2.0, 1.0], [1.0, -1.0]], [[3.0, 0.0], [0.5, 0.25]]]
    jacobian = scipy.linalg.block_diag(*[np.array(group) for group in groups])
    kernel = TangentKernel.from_jacobian(jacobian)
    edge = critical_lr(kernel, 1)
    assert edge in critical_lr(kernel, 1, certify=True)
    for lr in edge * np.array([0.5, 1.1, 1.5]):
        enclosure = growth_rate(kernel, lr, 1, certify=True)
        operator = naive.second_moment_operator(jacobian, 1, lr, 1, "without_replacement")
        ranges = scipy.linalg.block_diag(
            *[np.linalg.pinv(np.array(g)) @ np.array(g) for g in groups]
        )
        operator = operator @ np.kron(ranges, ranges)  # what no sample sees stays as it is
        assert np.abs(np.linalg.eigvals(operator)).max() == pytest.approx(enclosure.lower, rel=1e-9)
        assert growth_rate(kernel, lr, 1) == pytest.approx(enclosure.lower, rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_rate_that_solves_every_sample_alone_leaves_the_noise_only(size):
    noise = Fraction(
        4 - size, 3 * size
    )  # the growth of S_ii: 1 - 2 x + kept x^2 + 4 noise x^2, x = 1
    enclosure = growth_rate(np.eye(4), 1.0, size, certify=True)
    assert 3 * noise in enclosure
    assert growth_rate(np.eye(4), 1.0, size) == pytest.approx(
        float(3 * noise), rel=1e-12, abs=1e-30
    )
    assert growth_rate(np.ones((4, 4)) / 4, 1.0, size, certify=True).upper < 1e-15


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_without_noise_the_enclosure_holds_the_edge(momentum):
    matrix = np.array([[2.0, 1.0], [1.0, 2.0]])
    enclosure = critical_lr(matrix, 2, momentum=momentum, certify=True)
    assert Fraction(2 * (1 + momentum)) / 3 in enclosure
    assert relative_width(enclosure) < 1e-12
    # Far beyond the edge the floor of x = 6 is ((|T| + sqrt(T^2 - 4 mu)) / 2)^2
    T = 6 - (1 + momentum)
    floor = ((T + math.sqrt(T * T - 4 * momentum)) / 2) ** 2
    assert growth_rate(matrix, 2.0, 2, momentum=momentum, certify=True).lower == pytest.approx(
        floor
    )


@pytest.mark.parametrize(
    ("n_samples", "dim", "seed"),
    [(64, 10, 0), (64, 10, 1), (64, 1, 0), (24, 23, 0), (24, 24, 0)]
    + [(20, 6, seed) for seed in range(4)],
)
def test_kernels_of_any_rank_are_certified(n_samples, dim, seed):
    generator = np.random.default_rng(seed)
    inputs, targets = generator.standard_normal((n_samples, dim)), np.zeros(n_samples)
    kernel = tangent_kernel(eosim.LinearRegression(inputs, targets), np.zeros(dim))
    for momentum in (0.0, 0.9):
        enclosure = critical_lr(kernel, 2, momentum=momentum, certify=True)
        assert relative_width(enclosure) < 1e-13
        assert critical_lr(kernel, 2, momentum=momentum) == pytest.approx(
            enclosure.lower, rel=1e-11
        )


@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_factors_of_a_kernel_are_taken_exactly(rank, momentum):
    """Orthogonal to 1e-3 only, and of so few digits that the product has no rounding."""
    from eosim.stability.second_moment import SecondMoment

    generator = np.random.default_rng(rank)
    vectors = scipy.linalg.hadamard(4)[:, :rank] / 2 + generator.integers(-4, 5, (4, rank)) / 4096
    values = np.array([2.0, 1.25, 0.5])[:rank]
    matrix = vectors * values @ vectors.T
    exact = np.vectorize(Fraction, otypes=[object])
    assert (exact(vectors) * exact(values) @ exact(vectors).T == exact(matrix)).all()
    moments = batch_moments(4, 1)
    enclosure = critical_lr(matrix, 1, momentum=momentum, certify=True)
    factors = SecondMoment((vectors, values), 1, *moments, momentum)
    guess = enclosure.lower / 2 + enclosure.upper / 2
    other = factors.enclose_critical_lr(guess)
    assert other.lower <= enclosure.upper
    assert enclosure.lower <= other.upper
    assert relative_width(other) < 1e-12


def test_a_kernel_that_is_too_ill_conditioned_is_refused_with_its_ends():
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 5)))[0]
    kernel = TangentKernel(np.logspace(0, -11, 5), vectors, 12)
    words = r"critical_lr is near 0\.00.* reach from 1e-11 to 1, .* at momentum 0.999"
    with pytest.raises(CannotCertify, match=words):
        critical_lr(kernel, 2, momentum=0.999, certify=True)


def test_samples_in_excess_of_parameters_and_equal_samples_are_fine():
    enclosure = critical_lr(np.ones((3, 3)), 1, certify=True)
    assert Fraction(2, 3) in enclosure  # equal norms: 2 / tr at B = 1
    problem = cases.regression(n_samples=12, n_features=4)
    kernel = tangent_kernel(problem, np.zeros(4))
    enclosure = critical_lr(kernel, 3, momentum=0.9, certify=True)
    assert critical_lr(kernel, 3, momentum=0.9) == pytest.approx(enclosure.lower, rel=1e-11)
    assert relative_width(enclosure) < 1e-12


def test_nothing_moves_without_a_kernel():
    assert critical_lr(np.zeros((2, 2)), 1, certify=True) == (math.inf, math.inf)


@pytest.mark.parametrize("R", [0.95, 1.0, 1.7])
@pytest.mark.parametrize("mu", [0.0, 0.6])
def test_the_polynomial_is_the_denominator_of_the_response(mu, R):
    from eosim.stability.second_moment import _denominator

    for x, y in np.random.default_rng(0).uniform(0, 3, (5, 2)):
        T, U, kept = 1 + mu - x, 1 + mu - y, 0.3
        unit, determinant = moment_response(x, y, mu, R)
        terms = 1, T * U, T * T + U * U, x * y
        assert _denominator(*terms, mu, R, kept) == pytest.approx(
            determinant + (1 - kept) * x * y * unit, abs=1e-12
        )


@pytest.mark.parametrize(
    ("function", "exception", "words"),
    [
        (
            lambda: critical_lr(np.eye(65), 1, certify=True),
            CannotCertify,
            "at most 64 residuals, got 65; without it the relative error is about 1e-12",
        ),
        (
            lambda: critical_lr(np.eye(2), 1, kind="trace", certify=True),
            CannotCertify,
            "certify=True encloses kind 'exact' only, got 'trace'",
        ),
        (
            lambda: critical_lr([1.0, 2.0], 1, certify=True),
            ValueError,
            "kernel must have eigenvectors",
        ),
        (
            lambda: critical_lr([[1.0, 1.0], [1.0, 1 - 2.0**-52]], 1, certify=True),
            CannotCertify,
            r"positive semidefinite as the exact matrix of its floats.* lies in \[-1",
        ),
        (
            lambda: critical_lr([[2.0, 1.0], [1.0 + 2.0**-52, 2.0]], 1, certify=True),
            CannotCertify,
            r"kernel must be symmetric to the last digit to be certified; pass \(kernel \+ kernel.T\) / 2",
        ),
        (
            lambda: growth_rate([[2.0, 1.0], [1.0, 2.0]], 1e90, 1, certify=True),
            CannotCertify,
            "the powers of lr = 1e",
        ),
        (
            lambda: growth_rate(np.zeros((2, 2)), 0.1, 1, certify=True),
            ValueError,
            "kernel must not be zero",
        ),
        (
            lambda: critical_lr(np.eye(2), 2**26, sampling="with_replacement", certify=True),
            CannotCertify,
            "batch_size must be",
        ),
    ],
)
def test_what_is_not_proved_is_said_in_words(function, exception, words):
    with pytest.raises(exception, match=words):
        function()


@pytest.mark.parametrize(
    "function",
    [
        lambda **options: critical_sharpness(eosim.HeavyBall(0.1), **options),
        lambda **options: critical_lr(np.eye(2), 1, **options),
        lambda **options: growth_rate(np.eye(2), 0.1, 1, **options),
        lambda **options: sharpness(eosim.Quadratic(np.eye(2)), np.zeros(2), **options),
    ],
)
def test_the_switch_is_true_or_false_and_off_by_default(function):
    assert function(certify=False) == function()
    assert not isinstance(function(), Enclosure)
    assert isinstance(function(certify=True), Enclosure)
    with pytest.raises(TypeError, match="certify must be True or False, got 'yes'"):
        function(certify="yes")


# --- the enclosure itself -----------------------------------------------------------------------


def test_an_enclosure_holds_exactly_what_lies_between():
    enclosure = critical_sharpness(eosim.GradientDescent(0.1), certify=True)
    assert 2 / Fraction(0.1) in enclosure
    assert Fraction(20) in enclosure  # which is not proved to be the value, 0.1 being no tenth
    assert not any(20 + sign * 1e-14 in enclosure for sign in (-1, 1))
    assert str(enclosure) == f"[{enclosure.lower!r}, {enclosure.upper!r}]"


@pytest.mark.parametrize(
    "function",
    [
        lambda: critical_sharpness(eosim.HeavyBall(0.1), certify=True),
        lambda: critical_lr(np.eye(2), 1, certify=True),
        lambda: growth_rate(np.eye(2), 0.1, 1, certify=True),
        lambda: sharpness(eosim.Quadratic(np.eye(2)), np.zeros(2), certify=True),
    ],
)
def test_without_flint_the_message_names_the_extra(function, monkeypatch):
    monkeypatch.setitem(sys.modules, "flint", None)
    with pytest.raises(ImportError, match=r'needs python-flint: pip install "eosim\[certify\]"'):
        function()


@pytest.mark.parametrize("lr", [1e-300, 1e100, 1e300])
def test_rates_at_the_ends_of_the_floats_are_enclosed_or_refused_at_once(lr):
    ntk = np.array([[2.0, 1.0], [1.0, 2.0]])
    if lr < 1:
        assert 1.0 in growth_rate(ntk, lr, 1, certify=True)
    else:
        with pytest.raises(CannotCertify, match=r"range of floats|not finite"):
            growth_rate(ntk, lr, 1, certify=True)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement", "bernoulli"])
def test_a_sample_without_gradient_only_makes_the_others_rarer(position, sampling):
    """Modes that never meet: E (1 - lr K n/B)^2 of the larger one is 1 at the threshold, by hand."""
    kernel = np.diag(np.insert([2.0, 1.0], position, 0.0))
    kept, noise = batch_moments(3, 1, sampling)
    # (1 - x)^2 -> 1 - 2x + (kept + 3 noise) x^2 with x = lr times the eigenvalue 2
    threshold = 2 / (kept + 3 * noise) / 2
    assert critical_lr(kernel, 1, sampling=sampling) == pytest.approx(threshold, rel=1e-12)
    proved = critical_lr(kernel, 1, sampling=sampling, certify=True)
    assert proved.lower <= threshold <= proved.upper
    assert proved.upper - proved.lower < 1e-12
