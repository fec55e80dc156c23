"""Averaged dynamics of SGD against enumeration of all batches, sampling, and closed forms."""

import math

import numpy as np
import pytest
import scipy.linalg

import eosim
from eosim._kernels.volterra import totals
from eosim.moments import (
    Covariance,
    DiagonalClosure,
    Energies,
    HomogenizedSGD,
    StreamingSGD,
    VolterraEquation,
    energies,
    volterra_equation,
)
from eosim.stability import TangentKernel, critical_lr, growth_rate, noise_kernel_norm
from tests import naive

SAMPLINGS = ("without_replacement", "with_replacement", "bernoulli")


def random_kernel(seed, n, dim, n_outputs=1):
    jacobian = np.random.default_rng(seed).standard_normal((n * n_outputs, dim))
    return TangentKernel.from_jacobian(jacobian, n_outputs)


def flat_kernel(n):
    """The ramp 2 a / n in the Hadamard basis."""
    basis = scipy.linalg.hadamard(n) / math.sqrt(n)
    return TangentKernel.from_matrix(basis @ np.diag(2 * np.arange(1, n + 1) / n) @ basis.T)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    ("n", "dim", "n_outputs", "size"), [(5, 3, 1, 2), (4, 9, 1, 3), (3, 4, 2, 1), (6, 4, 1, 2)]
)
def test_covariance_is_that_of_all_batches(n, dim, n_outputs, size, sampling, momentum):
    kernel = random_kernel(n, n, dim, n_outputs)
    residuals = np.random.default_rng(1).standard_normal(n * n_outputs)
    lr = 0.9 * critical_lr(kernel, size, sampling=sampling, momentum=momentum)
    expected = naive.residual_moments(
        kernel.matrix, residuals, n_outputs, lr, size, sampling, momentum, 3
    )
    model = Covariance(kernel, lr, size, sampling, momentum)
    moments = model.start(residuals)
    for step in range(4):
        scale = np.abs(expected[step]).max()
        np.testing.assert_allclose(moments.residual, expected[step], atol=1e-13 * scale)
        moments = model.step(moments)
    losses = eosim.predict(model, residuals.reshape(n, n_outputs), 3)["loss"]
    np.testing.assert_allclose(losses, np.trace(expected, axis1=1, axis2=2) / (2 * n), rtol=1e-12)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("n", "dim", "n_outputs"), [(6, 4, 1), (6, 9, 1), (4, 5, 2), (1, 1, 3)])
def test_losses_of_a_covariance_are_those_of_its_steps(n, dim, n_outputs, sampling):
    """In the eigenbasis, one triangle and one matrix product; as matrices of residuals, two."""
    kernel = random_kernel(n + dim, n, dim, n_outputs)
    factor = np.random.default_rng(2).standard_normal((n * n_outputs, n * n_outputs))
    model = Covariance(kernel, 0.8 * critical_lr(kernel, 1, sampling=sampling), 1, sampling)
    for initial in (factor @ factor.T, factor[0]):
        moments, losses = model.start(initial), []
        for _ in range(301):
            losses.append(np.trace(moments.residual) / (2 * n))
            moments = model.step(moments)
        found = eosim.predict(model, initial, 300)["loss"]
        np.testing.assert_allclose(found, losses, rtol=1e-11, atol=1e-15 * losses[0])


def test_a_covariance_is_symmetric_and_decreasing_after_ten_thousand_steps():
    kernel = random_kernel(8, 12, 24)
    model = Covariance(kernel, 0.97 * critical_lr(kernel, 3), 3)
    moments, losses = model.start(np.ones(12)), []
    for _ in range(10_001):
        losses.append(np.trace(moments.residual) / 24)
        moments = model.step(moments)
    assert (moments.residual == moments.residual.T).all()
    assert (np.diff(losses[100:]) < 0).all()  # at first the noise may win
    assert (np.diff(eosim.predict(model, np.ones(12), 10_000)["loss"][100:]) < 0).all()
    rate = growth_rate(kernel, model.lr, 3)
    assert abs(losses[-1] / losses[-2] / rate - 1) < 1e-11


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_a_covariance_beyond_the_range_of_numbers_is_a_divergence(n_outputs):
    kernel = random_kernel(8, 5, 12, n_outputs)
    model = Covariance(kernel, 10 * critical_lr(kernel, 1), 1)
    steps = np.array([2000, 3000])
    trajectory = eosim.predict(model, np.ones(5 * n_outputs), steps)
    assert trajectory.status is eosim.Status.DIVERGED
    with np.errstate(over="ignore", invalid="ignore"):
        losses = [row["loss"] for row in model.march(np.ones(5 * n_outputs), steps)]
    assert losses == [math.inf, math.inf]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_exact_volterra_equation_is_the_covariance_recursion(sampling):
    kernel = random_kernel(3, 6, 4)
    residuals = np.random.default_rng(2).standard_normal(6)
    lr = 0.8 * critical_lr(kernel, 2, sampling=sampling)
    equation = volterra_equation(kernel, residuals, lr, 2, 12, sampling=sampling)
    model = Covariance(kernel, lr, 2, sampling)
    moments = model.start(residuals)
    for diagonal in equation.solve():
        np.testing.assert_allclose(np.diag(moments.residual), diagonal, rtol=1e-11)
        moments = model.step(moments)


@pytest.mark.parametrize("kind", ["finite", "delocalised"])
def test_the_scalar_volterra_equation_is_the_recursion_of_the_modes(kind):
    kernel = random_kernel(4, 8, 5)
    residuals = np.random.default_rng(3).standard_normal(8)
    lr = 0.6 * critical_lr(kernel, 3, kind=kind)
    equation = volterra_equation(kernel, residuals, lr, 3, 30, kind=kind)
    losses = eosim.predict(DiagonalClosure(kernel, lr, 3, kind), residuals, 30)["loss"]
    np.testing.assert_allclose(equation.solve() / 16, losses, rtol=1e-11)


def test_the_memory_sums_to_the_noise_kernel_norm():
    kernel = random_kernel(5, 12, 6)
    lr = 0.7 * critical_lr(kernel, 8)
    for kind in ("finite", "delocalised"):
        equation = volterra_equation(kernel, np.ones(12), lr, 8, 4000, kind=kind)
        norm = noise_kernel_norm(kernel, lr, 8, kind=kind)
        assert abs(equation.memory.sum() / norm - 1) < 1e-11
    kernel = random_kernel(5, 5, 3)
    lr = 0.7 * critical_lr(kernel, 3)
    total = volterra_equation(kernel, np.ones(5), lr, 3, 3000).memory.sum(axis=0)
    norm = noise_kernel_norm(kernel, lr, 3)
    assert abs(np.linalg.eigvalsh(total)[-1] / norm - 1) < 1e-11


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["closure", "finite"])
def test_closures_are_exact_for_flat_eigenvectors(kind, momentum):
    kernel = flat_kernel(16)
    for size in (1, 4):
        lr = 0.9 * critical_lr(kernel, size, momentum=momentum)
        exact = Covariance(kernel, lr, size, momentum=momentum)
        closed = DiagonalClosure(kernel, lr, size, kind, momentum=momentum)
        first = eosim.predict(exact, np.eye(16), 40)["loss"]
        second = eosim.predict(closed, Energies(np.ones(16)), 40)["loss"]
        np.testing.assert_allclose(first, second, rtol=1e-11)


@pytest.mark.parametrize("kind", ["closure", "finite", "delocalised"])
def test_one_eigendecomposition_gives_any_horizon(kind):
    kernel = random_kernel(6, 7, 4)  # a part of the residuals lies outside the range
    residuals = np.random.default_rng(4).standard_normal(7)
    model = DiagonalClosure(kernel, 0.7 * critical_lr(kernel, 2, kind=kind), 2, kind)
    state, outside = model.start(residuals), model._outside(residuals)
    steps = np.array([0, 1, 2, 10, 300, 5000])
    energy = energies(kernel, residuals).outside
    expected, now = [], 0
    for step in steps:
        for _ in range(now, step):
            state = model.step(state, outside)
        now = step
        expected.append((state[0].sum() + energy) / 14)
    np.testing.assert_allclose(eosim.predict(model, residuals, steps)["loss"], expected, rtol=1e-10)


def slow_totals(modes, kept, feed, outside, steps):
    """Sums of the modes, one at a time."""
    p, found = [float(value) for value in modes], []
    for step in range(int(steps[-1]) + 1):
        if step in steps:
            found.append(sum(p))
        met = sum(p) + outside
        p = [k * value + f * met for k, f, value in zip(kept, feed, p, strict=True)]
    return found


@pytest.mark.parametrize("n_modes", [1, 2, 13])
@pytest.mark.parametrize("outside", [0.0, 0.3])
def test_compiled_totals_are_those_of_one_mode_at_a_time(n_modes, outside):
    generator = np.random.default_rng(n_modes)
    modes, feed = generator.exponential(size=(2, n_modes)) / n_modes
    kept = generator.uniform(-0.9, 0.9, n_modes)
    for steps in (np.arange(1), np.arange(40), np.array([0, 3, 130]), np.array([70])):
        for source in (feed / 10, np.zeros(n_modes)):
            expected = slow_totals(modes, kept, source, outside, steps)
            found = totals(modes, kept, source, outside, steps)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("momentum", [0.0, 0.4])
@pytest.mark.parametrize("kind", ["closure", "finite", "delocalised"])
def test_losses_at_once_are_those_of_the_trajectory_and_of_its_steps(kind, momentum, n_outputs):
    kernel = random_kernel(6, 7, 4, n_outputs)
    residuals = np.random.default_rng(4).standard_normal(7 * n_outputs)
    model = DiagonalClosure(kernel, 0.2, 2, kind, momentum=momentum)
    start, outside = energies(kernel, residuals), model._outside(residuals)
    for steps in ([*range(51)], [0], [3, 4, 1000], [20]):
        losses = model.losses(residuals, steps)
        recorded = eosim.predict(model, residuals, steps)["loss"]
        np.testing.assert_allclose(losses, recorded, rtol=1e-13)
        sums = np.array([*model._near(start.modes, outside, np.array(steps))])
        np.testing.assert_allclose(losses, (sums + start.outside) / 14, rtol=1e-12)
    np.testing.assert_array_equal(model.losses(residuals, 50), model.losses(residuals, range(51)))


@pytest.mark.parametrize("outside", [0.0, 2.0])
@pytest.mark.parametrize("spectrum", [[2.0, 1.0, 0.5], [1.0, 1.0, 1.0], [1.6, 1.0, 1e-9]])
def test_the_eigendecomposition_knows_flips_and_zeros_of_the_step(spectrum, outside):
    """Single samples: the finite form multiplies mode a by 1 - 2 x_a, negative or 0."""
    model = DiagonalClosure(TangentKernel.from_spectrum(spectrum, 5), 0.5, 1, "finite")
    start, steps = Energies(np.array([1.0, 0.5, 2.0]), outside), np.array([0, 1, 2, 3, 8, 33])
    far = model._far(start.modes, outside, steps)
    np.testing.assert_allclose(far, [*model._near(start.modes, outside, steps)], rtol=1e-13)


def test_at_the_threshold_what_never_moves_makes_a_mode_grow_linearly():
    """x = 2 at single samples: p' = p + x^2 times the energy outside."""
    model = DiagonalClosure(TangentKernel.from_spectrum([1.0], 5), 2.0, 1, "finite")
    steps = np.array([0, 1, 2, 1000])
    found = model._far(np.array([1.0]), 0.5, steps)
    np.testing.assert_allclose(found, 1 + 4 * 0.5 * steps, rtol=1e-14)


@pytest.mark.parametrize("kind", ["closure", "finite"])
@pytest.mark.parametrize("steps", [3000, [10**7]])
def test_losses_beyond_the_range_of_numbers_are_not_finite(kind, steps):
    kernel = random_kernel(6, 7, 4)
    model = DiagonalClosure(kernel, 5 * critical_lr(kernel, 2), 2, kind)
    assert not np.isfinite(model.losses(Energies(np.ones(4)), steps)[-1])


def test_the_cheaper_method_is_taken_and_recorded():
    start = Energies(np.ones(50))
    model = DiagonalClosure(np.ones(50), 0.01, 10, "finite")
    for steps, method in ((10**4, "recursion"), ([10**7], "eigendecomposition")):
        assert eosim.predict(model, start, steps).settings["method"] == method
    model = DiagonalClosure(np.ones(50), 0.01, 10, "finite", momentum=0.5)
    assert model.method(np.array([10**7])) == "recursion"


def test_a_horizon_of_small_rates_is_as_exact_as_its_time():
    """10^12 steps at lr 10^-12: homogenised SGD but for O(lr)."""
    spectrum = np.linspace(0.1, 2, 20)
    start, steps = Energies(np.ones(20)), np.array([10**11, 10**12, 10**13])
    discrete = DiagonalClosure(spectrum, 1e-12, 4, "delocalised").losses(start, steps)
    limit = eosim.predict(HomogenizedSGD(spectrum, 1e-12, 4), start, steps)["loss"]
    np.testing.assert_allclose(discrete, limit, rtol=1e-10)


@pytest.mark.parametrize("size", [1, 3])
def test_what_has_decayed_is_zero_and_not_subnormal(size):
    kernel = flat_kernel(4)
    lr = 0.6 * critical_lr(kernel, size)
    closed = DiagonalClosure(kernel, lr, size, "finite").losses(Energies(np.ones(4)), 4000)
    exact = eosim.predict(Covariance(kernel, lr, size), np.eye(4), 4000)["loss"]
    for losses in (closed, exact):
        assert losses[-1] == 0
        assert (losses[losses > 0] > 1e-300).all()
    early = exact > 1e-270
    np.testing.assert_allclose(closed[early], exact[early], rtol=1e-9)


def test_the_direct_sum_of_a_volterra_equation_is_its_definition():
    generator = np.random.default_rng(1)
    for shape in ((), (3,)):
        forcing = generator.standard_normal((9, *shape))
        memory = generator.standard_normal((8, *shape, *shape))
        expected = forcing.copy()
        for t in range(9):
            for u in range(t):
                expected[t] += np.dot(memory[t - 1 - u], expected[u])
        solution = VolterraEquation(forcing, memory).solve()
        np.testing.assert_allclose(solution, expected, rtol=1e-12)


def test_a_million_modes_are_within_reach():
    spectrum = 1.0 / np.arange(1, 1_000_001) ** 1.5
    model = DiagonalClosure(spectrum, 0.5, 10, "delocalised")
    losses = eosim.predict(model, Energies(np.ones(1_000_000)), 1)["loss"]
    x = 0.5 * spectrum
    kappa = eosim.sampling.noise_factor(1_000_000, 10)
    after = np.sum((1 - x) ** 2) + kappa * np.sum(x**2) * 1_000_000
    np.testing.assert_allclose(losses, [0.5, after / 2_000_000], rtol=1e-12)


def test_late_losses_follow_the_growth_rate():
    for kind in ("closure", "finite", "delocalised"):
        kernel = random_kernel(7, 10, 10)
        for factor in (0.8, 1.2):
            lr = factor * critical_lr(kernel, 2, kind=kind)
            model = DiagonalClosure(kernel, lr, 2, kind)
            late = np.array([4000, 4001]) if factor < 1 else np.array([60, 61])
            before, after = eosim.predict(model, Energies(np.ones(10)), late)["loss"]
            rate = growth_rate(kernel, lr, 2, kind=kind)
            assert abs(after / before / rate - 1) < (1e-9 if factor < 1 else 1e-3)
    lr = 1.1 * critical_lr(kernel, 2, momentum=0.6)
    model = Covariance(kernel, lr, 2, momentum=0.6)
    before, after = eosim.predict(model, np.ones(10), np.array([800, 801]))["loss"]
    assert abs(after / before / growth_rate(kernel, lr, 2, momentum=0.6) - 1) < 1e-9


def test_expected_losses_diverge_above_the_threshold_and_say_so():
    kernel = random_kernel(9, 6, 6)
    lr = 1.3 * critical_lr(kernel, 1)
    trajectory = eosim.predict(Covariance(kernel, lr, 1), np.ones(6), 100_000, every=50)
    assert trajectory.status is eosim.Status.DIVERGED
    assert trajectory.stop_step is not None
    assert "critical_lr" in trajectory.message
    assert np.isfinite(trajectory["loss"]).all()


@pytest.mark.parametrize("model", [Covariance, DiagonalClosure])
def test_a_divergence_is_found_when_only_its_end_is_asked_for(model):
    kernel = random_kernel(9, 6, 6)
    unstable = model(kernel, 1.5 * critical_lr(kernel, 1), 1)
    trajectory = eosim.predict(unstable, np.ones(6), [50_000])
    assert trajectory.status is eosim.Status.DIVERGED
    assert trajectory.stop_step == 50_000
    np.testing.assert_array_equal(trajectory.step, [0])
    assert np.isfinite(trajectory["loss"]).all()


def test_homogenised_sgd_without_noise_is_gradient_flow():
    kernel = random_kernel(10, 5, 5)
    start = energies(kernel, np.ones(5))
    loss = eosim.predict(HomogenizedSGD(kernel, 0.1, 5), start, [0, 3, 8])["loss"]
    x = 0.1 * kernel.eigenvalues
    expected = [
        np.sum(start.modes * np.exp(-2 * x * t)) / 10 + start.outside / 10 for t in (0, 3, 8)
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_what_is_no_second_moment_is_refused():
    kernel = random_kernel(3, 3, 3)
    with pytest.raises(ValueError, match="no negative eigenvalue"):
        eosim.predict(Covariance(kernel, 0.1, 1), -np.eye(3), 5)
    with pytest.raises(ValueError, match="no negative energies"):
        eosim.predict(HomogenizedSGD(kernel, 0.1, 1), Energies(-np.ones(3), 0.0), 5)
    with pytest.raises(ValueError, match="no negative squares"):
        eosim.predict(StreamingSGD(np.ones(3), 0.1, 1), -np.ones(3), 5)


def test_homogenised_sgd_is_the_limit_of_small_rates():
    kernel = random_kernel(10, 30, 60)
    residuals = np.random.default_rng(5).standard_normal(30)
    errors = []
    for lr in (0.00125, 0.000625):  # at larger ones the first two orders happen to cancel
        steps = np.arange(1, 6) * round(0.5 / lr)
        delocalised = eosim.predict(DiagonalClosure(kernel, lr, 3, "delocalised"), residuals, steps)
        limit = eosim.predict(HomogenizedSGD(kernel, lr, 3), residuals, steps)
        errors.append(np.linalg.norm(limit["loss"] / delocalised["loss"] - 1))
    assert errors[1] < 0.002
    assert 0.9 < math.log2(errors[0] / errors[1]) < 1.1  # first order in the rate


def test_homogenised_sgd_loses_stability_at_the_trace():
    kernel = random_kernel(11, 20, 30)
    edge = critical_lr(kernel, 4, kind="trace")
    for factor, decays in ((0.99, True), (1.01, False)):
        model = HomogenizedSGD(kernel, factor * edge, 4)
        first, second = eosim.predict(model, np.ones(20), np.array([500, 1000]))["loss"]
        assert (second < first) == decays


def test_streaming_sgd_ends_at_its_floor_and_agrees_with_samples():
    generator = np.random.default_rng(6)
    d, n_steps = 200, 400
    lam = np.linspace(0.5, 1.5, d)
    model = StreamingSGD(lam, lr=0.6 / d, label_noise=0.04)
    assert abs(model.critical_lr - 2 / lam.sum()) < 1e-15
    late = eosim.predict(model, np.ones(d), np.array([60 * d]))["loss"][0]
    assert abs(late / model.floor - 1) < 1e-8
    n_runs = 200
    u = np.ones((n_runs, d))
    for _ in range(n_steps):
        a = generator.standard_normal((n_runs, d)) * np.sqrt(lam)
        error = np.sum(a * u, axis=1) + 0.2 * generator.standard_normal(n_runs)
        u -= model.lr * error[:, None] * a
    risk = (u**2 @ lam) / 2 + 0.02
    predicted = eosim.predict(model, np.ones(d), np.array([n_steps]))["loss"][0]
    # 1 / d of the continuous limit, and five standard errors
    assert abs(risk.mean() / predicted - 1) < 2 / d + 5 * risk.std() / math.sqrt(n_runs) / predicted


def test_predict_records_the_steps_asked_for_on_the_clock_of_runs():
    model = Covariance(np.eye(3), 0.25, 2)
    trajectory = eosim.predict(model, np.ones(3), 7, every=3)
    np.testing.assert_array_equal(trajectory.step, [0, 3, 6, 7])
    np.testing.assert_array_equal(trajectory.t, [0, 0.75, 1.5, 1.75])
    picked = eosim.predict(model, np.ones(3), [0, 7])
    assert picked["loss"][1] == trajectory["loss"][-1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Covariance(np.eye(3), 0.1, 2, "reshuffling"), ValueError, "independently"),
        (lambda: Covariance([1.0, 2.0], 0.1, 2), ValueError, "eigenvectors"),
        (lambda: Covariance(np.eye(3), 0.0, 2), ValueError, "lr must be"),
        (lambda: Covariance(np.eye(3), 0.1, 2, momentum=1.0), ValueError, "momentum must be"),
        (lambda: Covariance(np.eye(3), 0.1, 2).start(np.ones(4)), ValueError, "initial must have"),
        (lambda: DiagonalClosure(np.eye(3), 0.1, 2, "flat"), ValueError, "kind must be"),
        (lambda: DiagonalClosure([1.0, 2.0], 0.1, 1), ValueError, "eigenvectors"),
        (lambda: StreamingSGD([0.0, 1.0], 0.1), ValueError, "positive"),
        (lambda: eosim.predict(Covariance, np.ones(3), 1), TypeError, "instance"),
        (
            lambda: eosim.predict(Covariance(np.eye(2), 0.1, 1), np.ones(2), [3, 1]),
            ValueError,
            "asc",
        ),
        (
            lambda: eosim.predict(Covariance(np.eye(2), 0.1, 1), np.ones(2), 1.5),
            TypeError,
            "integer",
        ),
        (lambda: energies(np.eye(2), np.ones(3)), ValueError, "residuals must have 2"),
        (
            lambda: DiagonalClosure(np.eye(2), 0.1, 1).losses(np.ones(2), [3, 1]),
            ValueError,
            "n_steps must be ascending",
        ),
        (
            lambda: DiagonalClosure(np.eye(2), 0.1, 1).losses(np.ones(3), 1),
            ValueError,
            "residuals must have 2",
        ),
        (
            lambda: eosim.predict(DiagonalClosure(np.eye(2), 0.1, 1), Energies(np.ones(2), 1.0), 1),
            ValueError,
            "outside the range",
        ),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_kernel_of_zero_moves_nothing():
    rows = [*Covariance(np.zeros((3, 3)), 1.0, 1).march(np.ones(3), np.array([0, 5]))]
    assert [row["loss"] for row in rows] == [0.5, 0.5]


@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
def test_unsigned_steps_that_descend_are_refused(dtype):
    closure = DiagonalClosure(np.diag([2.0, 1.0]), 0.3, 1)
    with pytest.raises(ValueError, match="n_steps must be ascending"):
        closure.losses([1.0, 1.0], np.array([9, 3], dtype=dtype))
    ascending = closure.losses([1.0, 1.0], np.array([3, 9], dtype=dtype))
    np.testing.assert_array_equal(ascending, closure.losses([1.0, 1.0], [3, 9]))
    with pytest.raises(ValueError, match=r"below 2\^63"):
        closure.losses([1.0, 1.0], np.array([2**63], dtype=np.uint64))
