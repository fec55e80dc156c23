"""Sharpening over random curvature, spectra along runs, the two-parameter model, and their proofs."""

import itertools

import numpy as np
import pytest
import sympy as sp

import eosim
import theory.sharpening
from eosim import sharpening, two_parameter
from eosim.problems.quadratic_regression import (
    QuadraticRegression,
    jacobian_with_spectrum,
    random_quadratic_regression,
)
from eosim.sampling import batch_moments
from eosim.sharpening import expected_differences, measured_differences, track_spectra
from theory import Refuted

SAMPLINGS = ("without_replacement", "with_replacement", "bernoulli")
LR = 0.7


def rng(seed=0):
    return np.random.default_rng(seed)


def start(n, dim, seed=0):
    return rng(seed).standard_normal(n), rng(seed + 100).standard_normal((n, dim))


def batches(n, size, sampling):
    """Every batch as (probability, counts)."""
    if sampling == "bernoulli":
        p = size / n
        for kept in itertools.product((0, 1), repeat=n):
            yield p ** sum(kept) * (1 - p) ** (n - sum(kept)), np.array(kept)
        return
    draws = list(itertools.product(range(n), repeat=size))
    if sampling == "without_replacement":
        draws = [draw for draw in draws if len(set(draw)) == size]
    for draw in draws:
        yield 1 / len(draws), np.bincount(draw, minlength=n)


def two_steps(z, J, Q, counts, size, lr):
    """J_0, J_1, J_2 of explicit SGD on theta, for every Q of a stack."""
    d = np.zeros((len(Q), J.shape[1]))
    jacobians = [np.broadcast_to(J, (len(Q), *J.shape))]
    for m in counts:
        residuals = z + d @ J.T + np.einsum("sajk,sj,sk->sa", Q, d, d) / 2
        d = d - lr / size * np.einsum("a,sa,saj->sj", m, residuals, jacobians[-1])
        jacobians.append(J + np.einsum("sajk,sk->saj", Q, d))
    return jacobians


def enumerated(z, J, sigma, lr, size, sampling):
    """Exact means of Delta_1 J, Delta_2 J, Delta_1 NTK, Delta_2 NTK: all batch pairs, and
    Gauss-Hermite quadrature over the entries of Q (4 points: exact to degree 7, and 6 is needed)."""
    n, dim = J.shape
    x, weight = np.polynomial.hermite_e.hermegauss(4)
    rows, columns = np.tril_indices(dim)
    entries = n * len(rows)
    nodes = sigma * np.array(list(itertools.product(x, repeat=entries)))
    weights = np.array([np.prod(w) for w in itertools.product(weight, repeat=entries)])
    weights /= weights.sum()
    Q = np.empty((len(nodes), n, dim, dim))
    Q[:, :, rows, columns] = Q[:, :, columns, rows] = nodes.reshape(-1, n, len(rows))
    totals = [0, 0, 0, 0]
    for (p, first), (q, second) in itertools.product(batches(n, size, sampling), repeat=2):
        J0, J1, J2 = two_steps(z, J, Q, (first, second), size, lr)
        K0, K1, K2 = (A @ A.transpose(0, 2, 1) / n for A in (J0, J1, J2))
        found = (J1 - J0, J2 - 2 * J1 + J0, K1 - K0, K2 - 2 * K1 + K0)
        totals = [
            t + p * q * np.tensordot(weights, f, 1) for t, f in zip(totals, found, strict=True)
        ]
    return totals


# --- expectations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [1, 2])
def test_expected_differences_are_exact_over_all_batches_and_all_of_q(size, sampling):
    z, J = start(2, 2)
    sigmas = np.array([0.2, 0.3, 0.4])
    orders = np.stack([sigmas**2, sigmas**4, sigmas**6], axis=1)
    means = [enumerated(z, J, sigma, LR, size, sampling) for sigma in sigmas]
    for sigma, (first, second, ntk_first, _) in zip(sigmas, means, strict=True):
        expected = expected_differences(z, J, sigma, LR, size, sampling=sampling)
        np.testing.assert_allclose(first, 0, atol=1e-15)
        np.testing.assert_allclose(second, expected.jacobian_second, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(ntk_first, expected.ntk_first, rtol=1e-12, atol=1e-15)
    # The second difference of the NTK has orders 2, 4 and 6 in sigma: the first of them is stated.
    stacked = np.array([mean[3].ravel() for mean in means])
    leading = np.linalg.solve(orders, stacked)[0]
    unit = expected_differences(z, J, 1.0, LR, size, sampling=sampling).ntk_second
    np.testing.assert_allclose(leading.reshape(2, 2), unit, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [1, 3, 6])
def test_monte_carlo_lies_on_the_formulas(size, sampling):
    z, J = start(6, 20, seed=3)
    J = J * np.sqrt(6 / 20)
    lr = 0.6 / np.linalg.eigvalsh(J @ J.T / 6)[-1]
    found = measured_differences(z, J, 0.02, lr, size, 2000, seed=size, sampling=sampling)
    expected = expected_differences(z, J, 0.02, lr, size, sampling=sampling)
    for mean, error, value in zip(found.mean, found.standard_error, expected, strict=True):
        # About 200 entries per case: one of 1800 above 4.5 has a chance of 1 %.
        assert (np.abs(mean - value) < 4.5 * error + 1e-18).all()
    # The errors are small enough to tell these batches from others.
    other = expected_differences(z, J, 0.02, lr, 2, sampling=sampling).ntk_first
    assert (np.abs(found.mean.ntk_first - other) > 4.5 * found.standard_error.ntk_first).any()


def test_random_residuals_are_drawn_with_the_moment_that_the_formulas_average():
    _, J = start(4, 12, seed=5)
    root = rng(1).standard_normal((4, 4))
    moment = root @ root.T
    found = measured_differences(moment, J, 0.02, 0.3, 2, 4000, seed=1)
    expected = expected_differences(moment, J, 0.02, 0.3, 2)
    for mean, error, value in zip(found.mean, found.standard_error, expected, strict=True):
        assert (np.abs(mean - value) < 4.5 * error + 1e-18).all()


def test_pairs_are_reproducible_and_do_not_depend_on_the_block(monkeypatch):
    z, J = start(3, 4)
    whole = measured_differences(z, J, 0.1, 0.3, 2, 50, seed=1)
    again = measured_differences(z, J, 0.1, 0.3, 2, 50, seed=1)
    for a, b in zip(whole.mean, again.mean, strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole.n_pairs == 50
    monkeypatch.setattr(sharpening, "_BLOCK_ENTRIES", 1)
    single = measured_differences(z, J, 0.1, 0.3, 3, 50, seed=1)
    expected = expected_differences(z, J, 0.1, 0.3, 3)
    error = single.standard_error.mode_jacobian
    assert (np.abs(single.mean.mode_jacobian - expected.mode_jacobian) < 4.5 * error).all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_mode_formula_is_the_leading_part_on_singular_vectors(sampling):
    n, dim, size, sigma = 5, 9, 2, 0.1
    z, J = start(n, dim)
    left, s, _ = np.linalg.svd(J, full_matrices=False)
    kept, noise = batch_moments(n, size, sampling)
    found = expected_differences(z, J, sigma, LR, size, sampling=sampling, leading=True)
    c = LR**2 * sigma**2 * dim / n**2
    x = LR * s**2 / n
    mode = sharpening.mode_sharpening((left.T @ z) ** 2, left.T**2 @ z**2, x, kept, noise, n)
    np.testing.assert_allclose(found.mode_jacobian, c * s * mode, rtol=1e-11, atol=1e-15)

    # The NTK form: the same plus the braces, written out.
    K = J @ J.T / n
    M = kept * K + noise * n * np.diag(np.diag(K))
    M2 = kept * K @ K + noise * n * np.diag(np.diag(K @ K))
    S = np.outer(z, z)
    mixed = kept * S + noise * n * np.diag(z**2)
    after = S - LR * (K @ S + S @ K) + LR**2 * K @ mixed @ K
    braces = 2 * (z @ K @ z - LR * z @ M2 @ z) + np.trace(M @ (after - S))
    expected = 2 * s / n * found.mode_jacobian + c * braces
    np.testing.assert_allclose(found.mode_ntk, expected, rtol=1e-11, atol=1e-14)


def test_averaged_over_isotropic_residuals_sharpening_changes_sign_at_the_batch_fraction():
    n, dim, sigma, lr = 8, 40, 0.1, 1.0
    eigenvalues = np.linspace(1.2, 0.05, n)
    J = jacobian_with_spectrum(eigenvalues, dim, seed=1)
    s, c = np.sqrt(n * eigenvalues), lr**2 * sigma**2 * dim / n**2
    for size in (1, 3, 6, 8):
        found = expected_differences(2.5 * np.eye(n), J, sigma, lr, size, leading=True)
        expected = 2.5 * c * s * (1 - lr * eigenvalues * n / size)
        np.testing.assert_allclose(found.mode_jacobian, expected, rtol=1e-10, atol=1e-13)
        first = 2.5 * lr**2 * sigma**2 * dim * eigenvalues.sum() / (n * size)
        np.testing.assert_allclose(found.ntk_first, first * np.eye(n), rtol=1e-10, atol=1e-13)
    with_replacement = expected_differences(
        np.eye(n), J, sigma, lr, 2, sampling="with_replacement", leading=True
    )
    factor = 1 - 1 / 2 + n / 2
    np.testing.assert_allclose(
        with_replacement.mode_jacobian, c * s * (1 - lr * eigenvalues * factor), rtol=1e-10
    )


def test_the_part_left_out_by_leading_is_smaller_by_the_number_of_parameters():
    n, ratios = 4, []
    for dim in (50, 100, 200):
        J = jacobian_with_spectrum([1.0, 0.5, 0.3, 0.1], dim, seed=2)
        exact = expected_differences(np.eye(n), J, 0.1, 0.8, 2)
        leading = expected_differences(np.eye(n), J, 0.1, 0.8, 2, leading=True)
        gap = np.linalg.norm(exact.jacobian_second - leading.jacobian_second)
        ratios.append(gap / np.linalg.norm(leading.jacobian_second) * dim)
    assert 0 < max(ratios) < 1.1 * min(ratios)


def test_noise_damps_the_largest_mode_and_raises_the_first_difference_of_all():
    z = rng(4).standard_normal(32)
    J = jacobian_with_spectrum(0.8 * np.arange(1.0, 33) ** -1.5, 64, seed=3)
    full, small = (expected_differences(z, J, 0.02, 1.0, size) for size in (32, 4))
    assert small.mode_jacobian[0] < 0 < full.mode_jacobian[0]
    assert np.trace(small.ntk_first) > 2 * np.trace(full.ntk_first)


# --- runs -------------------------------------------------------------------------------------------


def test_spectra_are_those_of_single_runs_and_end_where_a_run_diverges():
    problems = [random_quadratic_regression(4, 6, 0.3, seed=i, ntk_max=1.0) for i in range(3)]
    wild = QuadraticRegression(*start(4, 6, seed=1), 10 * np.ones((4, 6, 6)))
    found = track_spectra([problems[0], wild, problems[1]], 0.3, 25, batch_size=2, seed=5, every=10)
    np.testing.assert_array_equal(found.step, [0, 10, 20, 25])
    np.testing.assert_array_equal(found.survived, [True, False, True])
    assert np.isinf(found.ntk[1, -1]).all()
    np.testing.assert_allclose(found.ntk[1, 0], eosim.measure.ntk_spectrum(wild, np.zeros(6)))
    for row, problem in ((0, problems[0]), (2, problems[1])):
        path = eosim.run(
            problem, eosim.GradientDescent(0.3), np.zeros(6), 25, batch_size=2,
            seed=np.random.SeedSequence(5, spawn_key=(row,)), every=10,
            record={"ntk": eosim.measure.ntk_spectrum},
        )  # fmt: skip
        np.testing.assert_allclose(found.ntk[row], path["ntk"], rtol=1e-10, atol=1e-12)


D, P = 60, 120


def ensemble(n_seeds, sigma, **options):
    return (random_quadratic_regression(D, P, sigma, seed=i, **options) for i in range(n_seeds))


def with_spectrum(n_seeds, sigma, eigenvalues):
    for i in range(n_seeds):
        jacobian = jacobian_with_spectrum(eigenvalues, P, seed=1000 + i)
        yield random_quadratic_regression(D, P, sigma, seed=i, jacobian=jacobian)


def growth(n_seeds, sigma, eigenvalues, n_steps, batch_size):
    """Relative growth of the largest NTK eigenvalue, per seed."""
    found = track_spectra(
        with_spectrum(n_seeds, sigma, eigenvalues), 1.0, n_steps, batch_size=batch_size,
        every=n_steps,
    )  # fmt: skip
    assert found.survived.all()
    return found.ntk[:, -1, 0] / found.ntk[:, 0, 0] - 1


def paired_t(differences):
    return differences.mean() / differences.std(ddof=1) * np.sqrt(len(differences))


@pytest.mark.size
def test_full_batches_come_to_rest_at_the_edge():
    found = track_spectra(ensemble(8, 0.25, ntk_max=1.4), 1.0, 800, every=10)
    assert found.survived.all()
    top = found.ntk[:, :, 0]
    assert np.median(top.max(axis=1)) > 2.05
    assert abs(np.median(top[:, -1]) - 2) < 0.05


@pytest.mark.size
def test_small_batches_come_to_rest_at_the_stochastic_edge_far_below_the_other():
    # 200 seeds: 67 to 75 % survive; of these 90 % end with K in 0.87 to 1.00, median 0.94.
    found = track_spectra(ensemble(16, 0.05, ntk_max=0.15), 1.0, 1000, batch_size=4, every=100)
    assert 6 <= found.survived.sum() <= 15
    x = found.ntk[found.survived]
    norm = batch_moments(D, 4).noise * np.sum(x / (2 - x), axis=2)
    assert norm[:, 0].max() < 0.45
    assert 0.88 < np.median(norm[:, -1]) < 1.02
    assert x[:, -1, 0].max() < 0.5


@pytest.mark.size
def test_sharpening_is_conservative_with_outliers_and_not_without():
    power_law = 0.8 * np.arange(1.0, D + 1) ** -1.5
    full, small = (growth(30, 0.02, power_law, 100, size) for size in (60, 8))
    assert paired_t(full - small) > 4
    bulk = np.linspace(0.01, 0.3, D)
    full, small = (growth(30, 0.05, bulk, 2, size) for size in (60, 8))
    assert paired_t(small - full) > 4


# --- the two-parameter model --------------------------------------------------------------------------


@pytest.mark.parametrize("energy", [0.0, 0.5, -0.3])
def test_the_reduced_map_follows_gradient_descent_on_the_parameters(energy):
    eps = 0.3
    Q = np.diag([1.0, -eps])
    theta = np.array([1.1, -0.9])
    z, ntk = two_parameter.reduced_variables(*theta, eps, energy)
    for _ in range(30):
        residual = (theta @ Q @ theta - energy) / 2
        jacobian = Q @ theta
        assert z == pytest.approx(residual, rel=1e-10, abs=1e-12)
        assert ntk == pytest.approx(jacobian @ jacobian, rel=1e-10)
        for value, power in zip(two_parameter.curvatures(z, ntk, eps, energy), (1, 2), strict=True):
            expected = jacobian @ np.linalg.matrix_power(Q, power) @ jacobian
            assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
        z, ntk = two_parameter.reduced_map(z, ntk, eps, energy)
        theta = np.array(two_parameter.parameter_map(*theta, eps, energy))


def test_parameters_invert_the_reduced_variables_or_are_refused():
    z, ntk = np.array([0.2, -0.4, 0.9]), np.array([1.9, 2.2, 1.8])
    x, y = two_parameter.parameters(z, ntk, 0.1)
    back = two_parameter.reduced_variables(x, y, 0.1)
    np.testing.assert_allclose(back, (z, ntk), rtol=1e-12)
    for bad in ((1.0, 1.9), (-10.0, 1.9)):  # T_0 < W, T_0 < -eps W
        with pytest.raises(ValueError, match="ntk must be at least W and -eps W"):
            two_parameter.parameters(*bad, 0.1)


@pytest.mark.parametrize("seed", range(3))
def test_parameters_of_0_have_reduced_variables_with_an_inverse(seed):
    random = rng(seed)
    for _ in range(300):
        eps, energy = random.uniform(1e-3, 1), random.choice([0.0, random.uniform(-1, 1)])
        scale = 10.0 ** random.integers(-100, 100) if energy == 0 else 1.0
        for theta in ((0.0, scale * random.uniform(0, 3)), (scale * random.uniform(0, 3), 0.0)):
            z, ntk = two_parameter.reduced_variables(*theta, eps, energy)
            back = np.array(two_parameter.parameters(z, ntk, eps, energy))
            # six roundings of every term, of which the squared parameters are differences
            terms = ntk + eps * (2 * abs(z) + abs(energy)), ntk + 2 * abs(z) + abs(energy)
            size = np.array(terms) / [1 + eps, eps * (1 + eps)]
            assert (np.abs(back**2 - np.square(theta)) <= 16 * 2.3e-16 * size).all()
    # a millionfold of rounding is none
    with pytest.raises(ValueError, match="got a squared parameter of -"):
        two_parameter.parameters(z + 1e-9 * ntk, ntk, eps, energy)
    with pytest.raises(ValueError, match="got a squared parameter of -"):
        two_parameter.parameters(-0.05, 0.0099999999, 0.1)


def test_runs_that_pass_the_edge_end_half_of_eps_below_it():
    ratios, every_eps = [], np.array([0.1, 0.05, 0.02, 0.01])
    for eps in every_eps:
        z, ntk = rng(0).uniform(-0.5, 0.5, 60), rng(1).uniform(1.7, 2.5, 60)
        z, ntk = two_parameter.settle(z, ntk, eps)
        passed = (np.abs(z) < 1e-2) & (ntk > 1.5)
        assert passed.sum() > 40
        ratios.append((2 - np.median(ntk[passed])) / eps)
    # 1/2 from above, linearly in eps.
    slopes = (np.array(ratios) - 0.5) / every_eps
    assert (slopes > 0.7).all()
    assert (slopes < 1.1).all()
    assert abs(np.median(ntk[passed]) - two_parameter.edge_ntk(0.01)) < 1.1 * 0.01**2


def test_a_run_that_never_passes_the_edge_stops_where_it_is():
    z, ntk = two_parameter.settle(0.2, 1.9, 0.01)
    assert abs(z) < 1e-10
    assert ntk == pytest.approx(1.5, abs=0.1)


def test_a_diverging_start_is_infinite():
    z, ntk = two_parameter.settle([0.1, 50.0], [1.0, 200.0], 0.5)
    assert np.isfinite([z[0], ntk[0]]).all()
    assert np.isinf([z[1], ntk[1]]).all()


# --- proofs: what a wrong formula cannot pass ---------------------------------------------------------


def routes(name):
    (claim,) = [claim for claim in theory.sharpening.claims() if claim.name == name]
    return claim.routes


@pytest.mark.parametrize("claim", theory.sharpening.claims(), ids=lambda claim: claim.name)
def test_every_route_holds_and_the_derivation_can_be_shown(claim):
    verdicts = claim.check()
    assert len(verdicts) >= 2
    assert [f"{v.route}: {v.evidence}" for v in verdicts if not v.holds] == []
    assert claim.steps()
    assert "=" in claim.latex()


@pytest.mark.parametrize("function", ["reduced_map", "curvatures", "parameter_map"])
@pytest.mark.parametrize("route", ["symbolic", "rationals"])
def test_a_wrong_two_parameter_map_is_refuted(function, route, monkeypatch):
    correct = getattr(two_parameter, function)

    def mutated(*arguments):
        first, second = correct(*arguments)
        return first, second * sp.Rational(1001, 1000)

    monkeypatch.setattr(two_parameter, function, mutated)
    with pytest.raises(Refuted):
        routes("two_parameter_model")[route]()


def test_a_wrong_resting_value_or_map_is_refuted(monkeypatch):
    correct = two_parameter.reduced_map
    with monkeypatch.context() as patch:
        patch.setattr(two_parameter, "edge_ntk", lambda eps: 2 - 51 * eps / 100)
        for route in ("symbolic", "simulation"):
            with pytest.raises(Refuted):
                routes("two_parameter_edge")[route]()
    monkeypatch.setattr(
        two_parameter,
        "reduced_map",
        lambda z, ntk, eps, energy=0: correct(z, ntk, eps * sp.Rational(11, 10), energy),
    )
    with pytest.raises(Refuted):
        routes("two_parameter_edge")["symbolic"]()


@pytest.mark.parametrize("output", [0, 1])
def test_a_wrong_closed_step_is_refuted(output, monkeypatch):
    correct = sharpening.closed_step

    def mutated(residuals, jacobian, tensor, weights, lr):
        result = list(correct(residuals, jacobian, tensor, weights, lr))
        factor = sp.QQ(1001, 1000) if tensor.dtype == object else 1.001
        bent = correct(residuals, jacobian, tensor * factor, weights, lr)
        result[output] = bent[output]
        return tuple(result)

    monkeypatch.setattr(sharpening, "closed_step", mutated)
    for name, names in (
        ("quadratic_regression_closure", ("symbolic", "simulation")),
        ("conservative_sharpening", ("symbolic", "rationals")),
    ):
        for route in names:
            with pytest.raises(Refuted):
                routes(name)[route]()


@pytest.mark.parametrize("term", range(3))
@pytest.mark.parametrize("route", ["symbolic", "rationals"])
def test_a_wrong_expected_difference_is_refuted(term, route, monkeypatch):
    correct = sharpening.difference_moments

    def mutated(*arguments):
        result = list(correct(*arguments))
        result[term] = result[term] * sp.QQ(1001, 1000)
        return tuple(result)

    monkeypatch.setattr(sharpening, "difference_moments", mutated)
    with pytest.raises(Refuted):
        routes("conservative_sharpening")[route]()


@pytest.mark.parametrize("route", ["symbolic", "rationals"])
def test_leaving_out_the_part_smaller_by_the_number_of_parameters_is_refuted(route, monkeypatch):
    correct = sharpening.difference_moments
    monkeypatch.setattr(
        sharpening, "difference_moments", lambda *arguments: correct(*arguments, corrections=0)
    )
    with pytest.raises(Refuted):
        routes("conservative_sharpening")[route]()


def test_a_wrong_mode_formula_is_refuted(monkeypatch):
    correct = sharpening.mode_sharpening

    def mutated(along, nearby, x, kept, noise, n):
        return correct(along, nearby, x, kept, sp.Rational(1001, 1000) * noise, n)

    monkeypatch.setattr(sharpening, "mode_sharpening", mutated)
    with pytest.raises(Refuted):
        routes("sharpening_sign")["symbolic"]()


# --- bad input --------------------------------------------------------------------------------------

EYE = np.eye(2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: expected_differences([1.0], EYE, 0.1, 1.0, 1), ValueError, "start must have"),
        (lambda: expected_differences([[1, 2], [0, 1]], EYE, 0.1, 1.0, 1), ValueError, "symmetric"),
        (lambda: expected_differences([1, 2], [1, 2], 0.1, 1.0, 1), ValueError, "jacobian must"),
        (lambda: expected_differences([], np.zeros((0, 2)), 0.1, 1.0, 1), ValueError, "empty"),
        (lambda: expected_differences([1, 2], EYE, -0.1, 1.0, 1), ValueError, "sigma must be"),
        (lambda: expected_differences([1, 2], EYE, 0.1, 0.0, 1), ValueError, "lr must be"),
        (lambda: expected_differences([1, 2], EYE, 0.1, 1.0, 3), ValueError, "batch_size must be"),
        (
            lambda: expected_differences([1, 2], EYE, 0.1, 1.0, 1, sampling="reshuffling"),
            ValueError,
            "sampling must",
        ),
        (lambda: measured_differences([1, 2], EYE, 0.1, 1.0, 1, 1), ValueError, "n_pairs must be"),
        (lambda: measured_differences([1, 2], EYE, 0.1, 1.0, 0, 9), ValueError, "batch_size must"),
        (lambda: track_spectra([], 1.0, 5), ValueError, "problems must not be empty"),
        (lambda: track_spectra([], 1.0, 5, seed=-1), ValueError, "seed must be"),
        (lambda: two_parameter.settle([0.1], [1.0, 2.0], 0.1), ValueError, "ntk must have shape"),
        (lambda: two_parameter.settle(0.1, 1.0, 0.0), ValueError, "eps must be"),
        (lambda: two_parameter.parameters(0.1, 1.0, 2.0), ValueError, "eps must be"),
    ],
)
def test_bad_input_is_refused_with_its_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
