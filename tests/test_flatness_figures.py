"""Figures on how flat the minima of SGD are: their own numbers by slow routes, what headlines refuse."""

import itertools
import math

import numpy as np
import pytest

import eosim
from eosim.stability import critical_lr, growth_rate, tangent_kernel
from figures import flatness_bound, sgd_escape_network

pytestmark = pytest.mark.timeout(300)  # the fixtures take 5 s each on an idle core
FAMILIES = flatness_bound.FAMILIES
N = 8  # samples of the small net: no fewer than a batch


def failing(module, arrays, **changed):
    return [row.quantity for row in module.headline({**arrays, **changed}) if not row.holds]


@pytest.fixture(scope="module")
def flatness():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flatness_bound, "SEEDS_QUICK", 1)
        sizes = {"samples": (16, 256), "inputs": (8, 128), "width": ()}
        patch.setattr(flatness_bound, "SIZES_QUICK", sizes)
        patch.setattr(flatness_bound, "COURSE_EVERY_QUICK", 125)
        patch.setattr(flatness_bound, "TYPICAL_RUNS", 16)
        yield flatness_bound.compute(True)


@pytest.fixture(scope="module")
def network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sgd_escape_network, "SHORT_RUNS_QUICK", 300)
        patch.setattr(sgd_escape_network, "LONG_RUNS_QUICK", 4)
        patch.setattr(sgd_escape_network, "LONG_STEPS_QUICK", 400)
        patch.setattr(sgd_escape_network, "TYPICAL_RUNS", 300)
        patch.setattr(sgd_escape_network, "N_FOLLOWED", 1)
        patch.setattr(sgd_escape_network, "N_SHOWN", 5)
        yield sgd_escape_network.compute(True)


@pytest.fixture(scope="module")
def sharp():
    """The net of the escape, its sharp minimum, and the Jacobian there."""
    net = sgd_escape_network.network()
    minimum = sgd_escape_network.sharp_minimum(net)
    return net, minimum.theta, net.jacobian(minimum.theta)[:, 0]


@pytest.fixture(scope="module")
def ended():
    """A small net, and where SGD has taken it."""
    net = flatness_bound.problem("two_layer", samples=N, inputs=24, width=4, seed=3)
    start, _, hold = flatness_bound._runs(net, flatness_bound.BATCH_SIZE, 3, True, 500)
    return net, start, hold


def test_the_bound_holds_with_one_seed(flatness):
    assert failing(flatness_bound, flatness) == []


def test_the_warm_up_multiplies_the_rate_by_one_factor_per_step_and_counts_it_as_time():
    rule = flatness_bound._WarmUp(0.1, 0.025, 4)
    rates = 0.025 * 4 ** (np.arange(6) / 4)
    rates[4:] = 0.1
    quadratic = eosim.Quadratic(np.diag([3.0]))
    run = eosim.run(quadratic, rule, [1.0], 6)
    expected = np.append(1, np.cumprod(1 - 3 * rates))
    np.testing.assert_allclose(run.theta[:, 0], expected, rtol=1e-13)
    np.testing.assert_allclose(run.t, np.append(0, np.cumsum(rates)), rtol=1e-13)


@pytest.mark.parametrize(
    ("family", "relative"),
    [("diagonal", 1e-12), ("two_layer", 1e-12), ("three_layer", 1e-12), ("tanh", 1e-4)],
)
def test_starts_have_the_sharpness_that_is_said(family, relative):
    net = flatness_bound.problem(family, samples=9, inputs=6, width=5, seed=2)
    slopes = net.jacobian(flatness_bound.sharp_start(net, 2))[:, 0]
    largest = np.linalg.eigvalsh(slopes.T @ slopes / 9)[-1]
    assert flatness_bound.LR * largest == pytest.approx(flatness_bound.START, rel=relative)


def differences(net, theta):
    """The Jacobian by central differences, (samples, dim)."""
    step = 1e-5
    columns = [
        net.residuals(theta + step * unit) - net.residuals(theta - step * unit)
        for unit in np.eye(net.dim)
    ]
    return np.array(columns)[:, :, 0].T / (2 * step)


def test_norm_and_sharpness_at_an_end_are_those_of_the_hessian(ended):
    net, start, hold = ended
    measured = dict(
        zip(flatness_bound.QUANTITIES, flatness_bound._measured(net, start, hold), strict=True)
    )
    theta = hold.final_state.theta
    slopes = differences(net, theta)
    matrix = slopes.T @ slopes / N
    assert measured["frobenius"] == pytest.approx(np.linalg.norm(matrix), rel=1e-7)
    assert measured["sharpness"] == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-7)
    # H - J^T J / n has entries mean_i e_i x_ij, up to the rounding of differences.
    away = math.sqrt(2 * hold["loss"][-1]) * np.abs(net.inputs).max()
    assert away < 1e-4
    np.testing.assert_allclose(net.hessian(theta), matrix, rtol=0, atol=away + 1e-8)
    assert [measured[name] for name in ("samples", "inputs", "dim")] == [N, 24, net.dim]


def test_the_threshold_at_an_end_is_that_of_all_batches_with_replacement(ended):
    net, start, hold = ended
    threshold = flatness_bound._measured(net, start, hold)[
        flatness_bound.QUANTITIES.index("critical")
    ]
    K = differences(net, hold.final_state.theta)
    K = K @ K.T
    size = flatness_bound.BATCH_SIZE
    # How often each sample is drawn, as gaps between bars, and the probability of that.
    bars = itertools.combinations(range(size + N - 1), N - 1)
    counts = [np.diff((-1, *places, size + N - 1)) - 1 for places in bars]
    weights = [math.factorial(size) / math.prod(map(math.factorial, c)) / N**size for c in counts]
    assert sum(weights) == pytest.approx(1, rel=1e-12)

    def radius(lr):
        mean = np.zeros((N * N, N * N))
        for weight, count in zip(weights, counts, strict=True):
            step = np.eye(N) - lr / size * K * count
            mean += weight * np.kron(step, step)
        return np.abs(np.linalg.eigvals(mean)).max()

    assert radius(threshold * (1 - 1e-5)) < 1 < radius(threshold * (1 + 1e-5))


def test_no_residual_has_a_smaller_alignment_than_the_one_measured_at_an_end(ended):
    net, start, hold = ended
    mu0 = flatness_bound._measured(net, start, hold)[flatness_bound.QUANTITIES.index("mu0")]
    slopes = differences(net, hold.final_state.theta)
    G = slopes.T @ slopes / N

    def aligned(residual):
        """Tr(Sigma G) / |G|_F^2 with the centred Sigma: a quadratic form of the residuals."""
        gradients = slopes * residual[:, None]
        return np.vdot(np.cov(gradients.T, bias=True), G) / np.linalg.norm(G) ** 2

    unit = np.eye(N)
    form = np.array([[aligned(a + b) - aligned(a) - aligned(b) for a in unit] for b in unit]) / 2
    # Every residual is possible here, and 2 L = |e|^2 / N.
    assert np.linalg.matrix_rank(slopes) == N
    assert mu0 == pytest.approx(N * np.linalg.eigvalsh(form)[0], rel=1e-6)


def test_typical_growth_is_that_of_batches_drawn_one_by_one(ended, monkeypatch):
    net, _, hold = ended
    slopes = net.jacobian(hold.final_state.theta)[:, 0]
    # Here runs grow; without replacement, which is gradient descent at B = n, twice as fast.
    lr = 1.37 * critical_lr(
        tangent_kernel(net, hold.final_state.theta),
        flatness_bound.BATCH_SIZE,
        sampling=flatness_bound.SAMPLING,
    )
    monkeypatch.setattr(flatness_bound, "LR", lr)
    forget, last = flatness_bound.TYPICAL
    rng = np.random.default_rng(1)
    growth = []
    for _ in range(40):
        theta = rng.standard_normal(net.dim)
        logarithm = 0.0
        for step in range(last):
            batch = rng.integers(N, size=flatness_bound.BATCH_SIZE)
            gradient = slopes[batch].T @ (slopes[batch] @ theta) / flatness_bound.BATCH_SIZE
            theta = theta - lr * gradient
            if step + 1 == forget:
                logarithm = np.log(np.sum((slopes @ theta) ** 2))
        growth.append((np.log(np.sum((slopes @ theta) ** 2)) - logarithm) / (last - forget))
    error = np.std(growth, ddof=1) * math.sqrt(1 / 40 + 1 / flatness_bound.TYPICAL_RUNS)
    found = flatness_bound._typical_growth(net, hold)
    assert abs(found - np.mean(growth)) < 4 * error


def test_a_run_that_diverges_or_is_not_finished_is_no_end(ended):
    net, start, _ = ended
    gone = flatness_bound._measured(net, start, None)
    assert gone[:3] == (N, 24, net.dim)
    assert np.isnan(gone[3:]).all()
    early = eosim.run(net, eosim.GradientDescent(1e-4), flatness_bound.sharp_start(net, 3), 1)
    assert np.isposinf(flatness_bound._measured(net, start, early)[3:]).all()


def test_the_picture_counts_the_runs_that_it_does_not_show(flatness):
    lost = flatness["tanh_sgd_frobenius"].copy()
    lost[:2], lost[2] = np.nan, np.inf
    arrays = {**flatness, "tanh_sgd_frobenius": lost}
    values = np.concatenate([arrays[f"{family}_sgd_frobenius"] for family in FAMILIES])
    diverged, unfinished = np.isnan(values).sum(), np.isposinf(values).sum()
    assert (diverged, unfinished) >= (2, 1)
    words = " ".join(text.get_text() for text in flatness_bound.draw(arrays).texts)
    assert f"Of {len(values)} runs of SGD {diverged} diverged and {unfinished} had not" in words


def test_many_runs_that_diverge_fail_the_bound(flatness):
    lost = flatness["tanh_sgd_frobenius"].copy()
    lost[1:6] = np.nan
    found = failing(flatness_bound, flatness, tanh_sgd_frobenius=lost)
    assert any(quantity.endswith("runs that diverge") for quantity in found)


@pytest.mark.parametrize(
    ("name", "factor", "words"),
    [
        ("sgd_frobenius", 1.4, "SGD: lr |H|_F / sqrt(B), largest"),
        ("sgd_critical", 3, "SGD: threshold / its Frobenius bound"),
        ("sgd_critical", 0.8, "SGD: lr / threshold, median"),
        ("descent_critical", 3, "GD: threshold / its Frobenius bound"),
        ("descent_critical", 3, "GD: share of ends that SGD would leave"),
        ("descent_sharpness", 0.9, "GD: lr lambda_max, median"),
        ("descent_sharpness", 1.02, "GD: lr lambda_max, largest"),
        ("descent_frobenius", 0.6, "GD: lr |H|_F / sqrt(B), median"),
        ("sgd_start", 0.2, "share of starts that are above 1"),
        ("typical", -1, "typical growth at"),
    ],
)
def test_a_number_that_is_off_fails_the_bound(flatness, name, factor, words):
    changed = {f"{family}_{name}": factor * flatness[f"{family}_{name}"] for family in FAMILIES}
    if name == "typical":
        changed = {f"{family}_typical": np.array([1.2, 0.02]) for family in FAMILIES}
    found = failing(flatness_bound, flatness, **changed)
    assert any(quantity.startswith(words) for quantity in found)


@pytest.mark.parametrize("axis", ["samples", "inputs"])
def test_norms_that_grow_for_sgd_or_do_not_for_gradient_descent_fail(flatness, axis):
    for method, name, power in (("sgd", "SGD", 0.5), ("descent", "GD", -0.5)):
        changed = {
            f"{family}_{method}_frobenius": flatness[f"{family}_{method}_frobenius"]
            * flatness[f"{family}_{method}_{axis}"] ** power
            for family in FAMILIES
        }
        assert f"{axis}: growth of {name}'s |H|_F" in failing(flatness_bound, flatness, **changed)


def test_the_escape_holds_with_few_runs(network):
    assert failing(sgd_escape_network, network) == []


def enumerated_step(jacobian, lr, size, second):
    """E e' e'^T after a step, averaged over all batches without replacement."""
    n = len(jacobian)
    K = jacobian @ jacobian.T
    total, count = np.zeros((n, n)), 0
    for batch in itertools.combinations(range(n), size):
        step = np.eye(n)
        step[:, batch] -= lr / size * K[:, batch]
        total += step @ second @ step.T
        count += 1
    return total / count


def test_rate_and_expected_losses_are_those_of_all_batches(network, sharp):
    _, _, jacobian = sharp
    lr, n, size = float(network["lr"]), len(jacobian), sgd_escape_network.LEAVING
    gram = jacobian @ jacobian.T
    second = 2 * n * sgd_escape_network.START_LOSS * gram / np.trace(gram)
    losses = [np.trace(second) / (2 * n)]
    for _ in range(40):
        second = enumerated_step(jacobian, lr, size, second)
        losses.append(np.trace(second) / (2 * n))
    np.testing.assert_allclose(network["leaving_expected"][:41], losses, rtol=1e-9)
    assert losses[-1] / losses[-2] == pytest.approx(float(network["leaving_rate"]), rel=1e-5)


def test_the_minimum_is_one_and_its_curvatures_are_those_of_the_hessian(network, sharp):
    net, theta, _ = sharp
    np.testing.assert_allclose(net.residuals(theta), 0, atol=1e-13)
    hessian = net.hessian(theta)
    lr, n = float(network["lr"]), sgd_escape_network.SAMPLES
    kappa = (n - 2) / (2 * (n - 1))
    frobenius, trace, ratio, edge = network["leaving_before"]
    assert frobenius == pytest.approx(lr * math.sqrt(kappa) * np.linalg.norm(hessian), rel=1e-9)
    assert trace == pytest.approx(lr * kappa * np.trace(hessian) / 2, rel=1e-9)
    assert edge == pytest.approx(lr * np.linalg.eigvalsh(hessian)[-1] / 2, rel=1e-9)
    assert edge == pytest.approx(sgd_escape_network.RATE, rel=1e-12)
    assert ratio == pytest.approx(lr / critical_lr(tangent_kernel(net, theta), 2), rel=1e-12)
    # Without noise only the edge of gradient descent is left.
    frobenius, trace, ratio, edge = network["descent_before"]
    assert (frobenius, trace) == (0, 0)
    assert ratio == pytest.approx(edge, rel=1e-9)


@pytest.mark.parametrize("share", [1.5, 3.0])
def test_the_growth_of_the_net_over_all_batches_is_the_rate_at_other_rates_too(sharp, share):
    net, theta, _ = sharp
    kernel = tangent_kernel(net, theta)
    lr = share * critical_lr(kernel, sgd_escape_network.LEAVING)
    factor = sgd_escape_network._one_step_factor(net, theta, kernel, lr)
    assert factor == pytest.approx(growth_rate(kernel, lr, 2), rel=3e-6)


def test_linearised_runs_are_the_first_steps_of_the_net_with_the_same_batches(network, sharp):
    net, theta, jacobian = sharp
    lr, size = (
        float(network["lr"]),
        math.sqrt(2 * sgd_escape_network.START_LOSS * len(jacobian) / np.sum(jacobian**2)),
    )
    start = theta + sgd_escape_network._displacements(net, size, 2)[1]
    seed = np.random.SeedSequence(sgd_escape_network.SEED, spawn_key=(1,))
    run = eosim.run(net, eosim.GradientDescent(lr), start, 6, batch_size=2, seed=seed)
    np.testing.assert_allclose(network["leaving_loss"][1, :7], run["loss"], rtol=1e-12)
    np.testing.assert_allclose(network["linear"][1, :7], run["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "factor", "words"),
    [
        ("leaving_critical", 3, "B = 2: lr / threshold"),
        ("staying_critical", 0.6, "B = 16: lr / threshold"),
        ("factor", 1 + 2e-6, "the net's growth over all batches / rho"),
        ("leaving_rate", 1.001, "E L, late factor per step / rho"),
        ("mean", 5, "average of runs"),
        ("linear", 1.001, "runs below L"),
        ("typical", 3, "typical growth per step"),
        ("frobenius_rate", 2, "rate of the Frobenius bound: blind here"),
        ("leaving_loss", 1e-12, "B = 2: share that leaves"),
        ("staying_loss", 1e3, "B = 16: largest loss of all runs"),
        ("descent_loss", 1e3, "GD: largest loss of all runs"),
        ("leaving_before", 0.3, "lr / threshold: at the minimum"),
        ("leaving_after", 4, "sqrt(kappa) lr |H|_F: where runs end, largest"),
    ],
)
def test_a_number_that_is_off_fails_the_escape_of_the_net(network, name, factor, words):
    found = failing(sgd_escape_network, network, **{name: factor * network[name]})
    assert any(quantity.startswith(words) for quantity in found)


def test_one_run_that_diverges_fails_the_escape_of_the_net(network):
    assert failing(sgd_escape_network, network, leaving_diverged=np.array(1)) == [
        "B = 2: runs that diverge"
    ]
