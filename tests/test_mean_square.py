"""Mean-square stability of SGD: noise kernels, thresholds and growth rates against enumeration."""

import math

import numpy as np
import pytest
import scipy.linalg

import eosim
from eosim.sampling import batch_moments, noise_factor
from eosim.stability import (
    TangentKernel,
    _noise_kernel,
    critical_batch_size,
    critical_lr,
    generalised_sharpness,
    growth_rate,
    mean_square,
    noise_floor,
    noise_kernel_norm,
    tangent_kernel,
)
from tests import cases, naive

SAMPLINGS = ("without_replacement", "with_replacement", "bernoulli")
KINDS = ("exact", "closure", "finite", "delocalised", "trace")


def radius(operator) -> float:
    return float(np.abs(np.linalg.eigvals(operator)).max())


def random_jacobian(seed, n_outputs=1):
    """Rows of random scale, of any rank; (n * n_outputs, dim)."""
    generator = np.random.default_rng(seed)
    n = int(generator.integers(2, 6))
    dim = int(generator.integers(1, min(4, n * n_outputs) + 1))
    scale = np.repeat(generator.exponential(size=n), n_outputs)
    return scale[:, None] * generator.standard_normal((n * n_outputs, dim))


def flat_kernel(n):
    """The ramp 2 a / n in the Hadamard basis: every eigenvector is spread evenly."""
    basis = scipy.linalg.hadamard(n) / math.sqrt(n)
    return TangentKernel.from_matrix(basis @ np.diag(2 * np.arange(1, n + 1) / n) @ basis.T)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_batch_moments_are_those_of_all_batches(sampling, size):
    S = cases.symmetric([3.0, -1.0, 0.5, 2.0])
    expected = sum(
        p * np.outer(4 / size * c, 4 / size * c) * S for c, p in naive.batches(4, size, sampling)
    )
    kept, noise = batch_moments(4, size, sampling)
    np.testing.assert_allclose(kept * S + noise * 4 * np.diag(np.diag(S)), expected, atol=1e-14)


def test_noise_factor_vanishes_for_the_full_batch_and_for_one_sample():
    assert noise_factor(7, 7) == 0
    assert noise_factor(1, 1) == 0
    assert noise_factor(7, 1) == 1


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_at_the_threshold_the_enumerated_operator_has_radius_one(
    seed, n_outputs, sampling, momentum
):
    jacobian = random_jacobian(seed, n_outputs)
    kernel = TangentKernel.from_jacobian(jacobian, n_outputs)
    for size in range(1, min(3, kernel.n_samples) + 1):
        lr = critical_lr(kernel, size, sampling=sampling, momentum=momentum)
        operator = naive.second_moment_operator(jacobian, n_outputs, lr, size, sampling, momentum)
        # At the full batch with momentum -1 is a double root of the enumerated matrix: square root
        # of rounding.
        tolerance = 1e-10 if batch_moments(kernel.n_samples, size, sampling).noise else 1e-6
        assert abs(radius(operator) - 1) < tolerance
        norm = noise_kernel_norm(
            kernel, lr * (1 - 1e-9), size, sampling=sampling, momentum=momentum
        )
        assert norm < 1


@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seed", range(6))
def test_growth_rate_is_the_radius_of_the_enumerated_operator(seed, sampling, momentum):
    jacobian = random_jacobian(seed)
    kernel = TangentKernel.from_jacobian(jacobian)
    edge = critical_lr(kernel, 1, sampling=sampling, momentum=momentum)
    for factor in (0.3, 0.9, 1.1, 3.0):
        operator = naive.second_moment_operator(jacobian, 1, factor * edge, 1, sampling, momentum)
        rate = growth_rate(kernel, factor * edge, 1, sampling=sampling, momentum=momentum)
        assert abs(rate - radius(operator)) < 1e-9 * max(1, rate)
        assert (rate < 1) == (factor < 1)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_both_closed_forms_agree(sampling, n_outputs):
    generator = np.random.default_rng(5)
    jacobian = generator.standard_normal((20 * n_outputs, 35))
    kernel = TangentKernel.from_jacobian(jacobian, n_outputs)
    for size in (1, 4, 15):
        first = critical_lr(kernel, size, sampling=sampling)
        second = 2 / generalised_sharpness(kernel, size, sampling=sampling)
        assert abs(first / second - 1) < 1e-11


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("n", [4, 16, 64])
def test_flat_eigenvectors_make_the_finite_form_exact(n, momentum):
    kernel = flat_kernel(n)
    for size in (1, n // 4, n - 1):
        exact = critical_lr(kernel, size, momentum=momentum)
        finite = critical_lr(kernel, size, kind="finite", momentum=momentum)
        assert abs(exact / finite - 1) < 1e-12
        for factor in (0.5, 0.9):
            norms = [
                noise_kernel_norm(kernel, factor * exact, size, kind=kind, momentum=momentum)
                for kind in ("exact", "finite")
            ]
            assert abs(norms[0] / norms[1] - 1) < 1e-12


def test_single_samples_of_equal_norm_are_limited_by_the_trace():
    rows = np.random.default_rng(2).standard_normal((7, 5))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kernel = TangentKernel.from_jacobian(rows)
    assert abs(critical_lr(kernel, 1) * kernel.trace / 2 - 1) < 1e-12


def test_pairs_of_equal_norm_have_the_same_threshold_at_every_angle():
    for angle in (0.1, 1.0, 1.5, 3.0):
        rows = 3 * np.array([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
        assert abs(critical_lr(TangentKernel.from_jacobian(rows), 1) - 2 / 9) < 1e-13


def test_localised_eigenvectors_have_the_threshold_of_their_largest():
    lam = np.array([0.3, 1.0, 2.5, 4.0, 0.7])
    for size in (1, 2, 4):
        assert abs(critical_lr(np.diag(lam), size) - 2 * size / (5 * 4.0)) < 1e-13


def test_orthogonal_equal_gradients_scale_with_the_batch():
    kernel = TangentKernel.from_jacobian(math.sqrt(3.0) * np.eye(6))
    for size in range(1, 7):
        assert abs(critical_lr(kernel, size) - 2 * size / 3) < 1e-13
        with_replacement = critical_lr(kernel, size, sampling="with_replacement")
        assert abs(with_replacement - 2 * size / (3 * (1 + (size - 1) / 6))) < 1e-13


def test_the_circle_model_is_stable_up_to_eight():
    angles = 2 * np.pi * np.arange(16) / 16
    features = np.maximum(np.cos(angles[:, None] - angles), 0) / 4
    assert abs(critical_lr(TangentKernel.from_jacobian(features), 1) - 8) < 8e-9


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_kinds_are_ordered_below_the_edge(momentum):
    for seed in range(40):
        kernel = TangentKernel.from_jacobian(random_jacobian(seed))
        for size in range(1, kernel.n_samples):
            thresholds = {
                kind: critical_lr(kernel, size, kind=kind, momentum=momentum) for kind in KINDS
            }
            tight = 1 + 1e-10
            assert thresholds["exact"] <= thresholds["closure"] * tight
            assert thresholds["closure"] <= thresholds["finite"] * tight
            assert thresholds["delocalised"] <= thresholds["finite"] * tight
            assert thresholds["finite"] <= 2 * (1 + momentum) / kernel.largest * tight
            if momentum == 0:
                assert thresholds["finite"] <= thresholds["trace"] * tight


def test_thresholds_grow_with_the_batch():
    for seed in range(20):
        kernel = TangentKernel.from_jacobian(random_jacobian(seed))
        found = [critical_lr(kernel, size) for size in range(1, kernel.n_samples + 1)]
        assert (np.diff(found) >= -1e-11 * np.array(found[1:])).all()
        assert found[-1] == 2 / kernel.largest


@pytest.mark.parametrize("momentum", [0.25, 0.5, 0.9])
def test_momentum_is_dual_to_noise_for_flat_eigenvectors(momentum):
    """eta*(mu, kappa) = (1 + mu) eta*(0, kappa (1 + mu) / (1 - mu)): the plain sum is 1 there."""
    kernel = flat_kernel(16)
    for size in (2, 6, 15):
        kappa = noise_factor(16, size) * (1 + momentum) / (1 - momentum)
        x = critical_lr(kernel, size, momentum=momentum) / (1 + momentum) * kernel.eigenvalues
        assert abs(np.sum(kappa * x / (2 - (1 - kappa) * x)) - 1) < 1e-11


def test_the_norm_is_infinite_beyond_the_edge_and_zero_without_noise():
    kernel = flat_kernel(8)
    assert noise_kernel_norm(kernel, 1.001, 2) == math.inf
    assert noise_kernel_norm(kernel, 0.99, 8) == 0
    assert abs(critical_lr(kernel, 8) - 1) < 1e-14
    assert abs(growth_rate(kernel, 1.5, 8) - 4) < 1e-13


def test_a_single_mode_with_flat_eigenvector_is_stable_up_to_the_edge():
    kernel = TangentKernel.from_jacobian(np.full((5, 1), 2.0))
    for size in range(1, 6):
        assert abs(critical_lr(kernel, size) - 2 / 4) < 1e-14


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_noise_floor_is_the_limit_of_the_recursion(sampling):
    generator = np.random.default_rng(3)
    kernel = TangentKernel.from_jacobian(generator.standard_normal((6, 3)))
    residuals = generator.standard_normal(6)
    for momentum in (0.0, 0.4):
        lr = 0.5 * critical_lr(kernel, 2, sampling=sampling, momentum=momentum)
        model = eosim.moments.Covariance(kernel, lr, 2, sampling, momentum)
        late = eosim.predict(model, residuals, [4000])["loss"][0]
        floor = noise_floor(kernel, residuals, lr, 2, sampling=sampling, momentum=momentum)
        assert abs(floor / late - 1) < 1e-9
    assert noise_floor(kernel, residuals, 10 * lr, 2, sampling=sampling) == math.inf


def test_critical_batch_size_is_where_trace_and_edge_agree():
    kernel = flat_kernel(64)
    crossing = critical_batch_size(kernel)
    assert abs((64 - crossing) / (crossing * 63) - kernel.largest / kernel.trace) < 1e-14


def test_tangent_kernels_of_problem_matrix_and_spectrum_agree():
    problem = cases.regression(n_samples=9, n_features=4, n_outputs=2)
    theta = np.zeros(problem.dim)
    kernel = tangent_kernel(problem, theta)
    assert (kernel.n_samples, kernel.n_outputs) == (9, 2)
    jacobian = problem.jacobian(theta).reshape(18, -1)
    np.testing.assert_allclose(kernel.matrix, jacobian @ jacobian.T / 9, atol=1e-13)
    np.testing.assert_allclose(kernel.rows @ kernel.rows.T, jacobian @ jacobian.T, atol=1e-12)
    same = TangentKernel.from_matrix(kernel.matrix, 2)
    assert abs(critical_lr(same, 3) / critical_lr(kernel, 3) - 1) < 1e-12
    single = TangentKernel.from_matrix(problem.inputs @ problem.inputs.T / 9)
    # outputs that share their features are copies of one regression
    assert abs(critical_lr(single, 3) / critical_lr(kernel, 3) - 1) < 1e-12
    spectrum = TangentKernel.from_spectrum(single.eigenvalues, 9)
    for kind in ("finite", "delocalised", "trace"):
        found = [critical_lr(k, 3, kind=kind) for k in (single, spectrum, kernel)]
        np.testing.assert_allclose(found, found[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: critical_lr([1.0, 2.0], 1), "eigenvectors"),
        (lambda: critical_lr(np.eye(3), 4), "batch_size must be at most n_samples = 3"),
        (lambda: critical_lr(np.eye(3), 1, kind="deloc"), "kind must be"),
        (lambda: critical_lr(np.eye(3), 1, sampling="reshuffling"), "independently"),
        (lambda: critical_lr(np.eye(3), 1, momentum=1.0), "momentum must be"),
        (lambda: critical_lr(-np.eye(3), 1), "negative eigenvalue"),
        (lambda: critical_lr([[1.0, 2.0], [0.0, 1.0]], 1), "symmetric"),
        (lambda: critical_lr(np.zeros((2, 2, 2)), 1), "TangentKernel"),
        (lambda: growth_rate(np.zeros((2, 2)), 1.0, 1), "zero"),
        (lambda: noise_kernel_norm(np.eye(2), -1.0, 1), "lr must be"),
        (lambda: TangentKernel.from_spectrum([1.0, 2.0], 1), "n_samples must be at least"),
        (lambda: TangentKernel.from_jacobian(np.ones((3, 2)), 2), "multiple of n_outputs"),
        (lambda: noise_floor(np.eye(2), [1.0], 0.1, 1), "residuals must have 2"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def dense_noise_kernel(kernel, lr, size, momentum=0.0):
    """G, entry by entry from its definition, for one output."""
    n, V, x = kernel.n_samples, kernel.eigenvectors, lr * kernel.eigenvalues
    kept, noise = batch_moments(n, size, "without_replacement")
    numerator, denominator = mean_square.moment_response(x[:, None], x, momentum)
    pull = x[:, None] * x * numerator / denominator
    weight = noise * n * pull / (1 + (1 - kept) * pull)
    return np.einsum("ia,ib,ja,jb,ab->ij", V, V, V, V, weight, optimize=True)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("seed", range(8))
def test_at_the_threshold_the_dense_noise_kernel_has_the_largest_eigenvalue_one(seed, momentum):
    generator = np.random.default_rng(seed)
    rows = generator.exponential(size=40)[:, None] ** (seed % 3) * generator.standard_normal(
        (40, 60)
    )
    kernel = TangentKernel.from_jacobian(
        rows[:, : 20 + 5 * seed] * np.arange(1, 21 + 5 * seed) ** -0.5
    )
    for size in (1, 10, 39):
        lr = critical_lr(kernel, size, momentum=momentum)
        largest = np.linalg.eigvalsh(dense_noise_kernel(kernel, lr, size, momentum))[-1]
        assert abs(largest - 1) < 1e-11


def test_nearly_equal_samples_do_not_pass_for_one():
    """A search that stops at their mean, where its residual is 1e-7, is not within 1e-8."""
    lam = np.append(np.linspace(1, 2, 20), [3, 3 * (1 - 1e-7)])
    for size in (1, 5):
        assert abs(critical_lr(np.diag(lam), size) * 22 * 3 / (2 * size) - 1) < 1e-12


def test_the_search_for_a_threshold_takes_few_products(monkeypatch):
    """Preconditioned; without it these take 18 to 50."""
    count = []
    products = _noise_kernel.HalfProducts.diagonal_blocks
    monkeypatch.setattr(
        _noise_kernel.HalfProducts,
        "diagonal_blocks",
        lambda self, doubled: (count.append(1), products(self, doubled))[1],
    )
    generator = np.random.default_rng(0)
    for kernel in (
        TangentKernel.from_jacobian(generator.standard_normal((80, 160))),
        TangentKernel.from_jacobian(
            generator.exponential(size=80)[:, None] * generator.standard_normal((80, 120))
        ),
        np.diag(np.linspace(1, 3, 50)),
    ):
        count.clear()
        critical_lr(kernel, 5)
        assert len(count) <= 16


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("sign", ["mixed", "positive", "negative", "zero"])
def test_half_products_are_those_of_whole_matrices(sign, n_outputs):
    generator = np.random.default_rng(4)
    kernel = TangentKernel.from_jacobian(generator.standard_normal((5 * n_outputs, 7)), n_outputs)
    V = kernel.eigenvectors
    factor = generator.standard_normal((5, n_outputs, n_outputs))
    square = factor @ factor.transpose(0, 2, 1)
    blocks = {
        "mixed": factor + factor.transpose(0, 2, 1),
        "positive": square,
        "negative": -square,
        "zero": 0 * square,
    }[sign]
    products = _noise_kernel.HalfProducts(kernel)
    for _ in range(2):  # once more, with what the first use left in memory
        whole = V.T @ scipy.linalg.block_diag(*blocks) @ V
        packed = products.sandwich(blocks.ravel())
        np.testing.assert_allclose(packed, _noise_kernel.pack(whole), atol=1e-13)
        doubled = packed * _noise_kernel.pairs(kernel.eigenvalues)[2]
        image = (V @ whole @ V.T).reshape(5, n_outputs, 5, n_outputs)
        diagonal = image[np.arange(5), :, np.arange(5), :]
        np.testing.assert_allclose(products.diagonal_blocks(doubled), diagonal.ravel(), atol=1e-13)
        if n_outputs == 1:
            own = np.einsum("ia,ab,ib->i", V**2, whole, V**2)
            np.testing.assert_allclose(products.own_weight(doubled), own, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e150, 1e300])
def test_thresholds_have_no_unit(scale):
    matrix = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]])
    one, other = TangentKernel.from_matrix(matrix), TangentKernel.from_matrix(scale * matrix)
    assert critical_lr(other, 1) * scale == pytest.approx(critical_lr(one, 1), rel=1e-12)
    assert generalised_sharpness(other, 1) / scale == pytest.approx(
        generalised_sharpness(one, 1), rel=1e-12
    )


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999, 0.9999])
def test_the_growth_rate_is_1_at_the_threshold_and_beyond_1_above_it_at_any_momentum(momentum):
    edge = critical_lr(np.eye(2), 1, momentum=momentum)
    assert growth_rate(np.eye(2), edge, 1, momentum=momentum) == pytest.approx(1, abs=1e-11)
    above = growth_rate(np.eye(2), 1.1 * edge, 1, momentum=momentum)
    assert above > 1 + 0.05 * (1 - momentum)


@pytest.mark.parametrize("kind", ["exact", "finite", "closure"])
@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
def test_thresholds_scale_with_kernels_of_any_size(kind, scale):
    matrix = np.array([[1.0, 0.3, 0.1], [0.3, 0.8, 0.2], [0.1, 0.2, 0.6]])
    expected = critical_lr(matrix, 1, kind=kind)
    assert critical_lr(matrix * scale, 1, kind=kind) * scale == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("distance", [1e-6, 1e-9, 1e-12, 1e-13, 1e-14, 2.0**-53])
def test_thresholds_vanish_with_the_distance_of_momentum_from_1(distance):
    """x = (1 - mu) s: there two different modes decouple, and one has a weight without 1 - mu."""
    matrix = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])
    values, V = np.linalg.eigh(matrix)
    mu = 1 - distance
    distance = 1 - mu  # as the floats have it
    for sampling in SAMPLINGS:
        kept, noise = batch_moments(3, 1, sampling)

        def weight(scaled, kept=kept, noise=noise):
            s = scaled * values
            return noise * s / (2 + (1 - kept) * s)

        limits = {
            "exact": lambda s: np.linalg.eigvalsh(3 * (V**2 * weight(s)) @ (V**2).T)[-1],
            "finite": lambda s: weight(s).sum(),
            "delocalised": lambda s: weight(s, kept=1.0).sum(),
            "trace": lambda s: weight(s, kept=1.0).sum(),
        }
        limits["closure"] = limits["exact"]
        for kind, norm in limits.items():
            found = critical_lr(matrix, 1, kind=kind, sampling=sampling, momentum=mu) / distance
            assert norm(found) == pytest.approx(1, rel=10 * distance + 1e-12), kind


@pytest.mark.parametrize("distance", [1e-6, 1e-10, 1e-13, 1e-15])
def test_growth_rates_near_momentum_1_are_those_of_the_distance_from_it(distance):
    mu, kernel = 1 - distance, np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])
    lr = 0.1 * (1 - mu)
    rate = growth_rate(kernel, lr, 1, momentum=mu)
    # the modes turn with a radius of the root of mu, and noise adds a part of what they lose
    assert mu * (1 - 1e-15) <= rate <= 1
    reference = growth_rate(kernel, 0.1 * 1e-4, 1, momentum=1 - 1e-4)
    assert rate - 1 == pytest.approx((reference - 1) * distance / 1e-4, rel=1e-3, abs=1e-12)


def test_the_parts_of_responses_keep_their_digits_near_momentum_1():
    mpmath = pytest.importorskip("mpmath")
    for distance in (1e-3, 2e-8, 1e-9, 1e-15):
        mu = 1 - distance
        for x, y, above in ((0.3, 1.2, 0.1), (1e-3, 5.0, 2.0)):
            x, y, rate = x * distance, y * distance, 1 + above * distance
            found = mean_square.kernel_weight(x, y, mu, 0.5, 0.5)
            unit, determinant = mean_square.moment_response(x, y, mu, rate)
            radius = mean_square._mode_radius(np.array([x * distance, x, 3.0]), mu)
            with mpmath.workdps(60):
                X, Y, M, R = map(mpmath.mpf, (x, y, mu, rate))
                drift = (1 - M) * (X + Y) + M * (X - Y) ** 2 / (1 - M**2)
                drift += X * Y / 2 - (1 - M) / (1 + M) * X * Y
                weight = float(X * Y / 2 / drift)
                S, T = 1 + M - X, 1 + M - Y
                exact = R**4 - S * T * R**3 + (M * S**2 + M * T**2 - 2 * M**2) * R**2
                exact += -(M**2) * S * T * R + M**4
                response = float(R * (R**2 - M**2) / exact)
                roots = []
                for z in (X * mpmath.mpf(distance), X, mpmath.mpf(3.0)):
                    trace = 1 + M - z
                    gap = mpmath.sqrt(mpmath.mpc(trace**2 - 4 * M))
                    roots.append(float(max(abs(trace + gap), abs(trace - gap)) / 2))
            assert found == pytest.approx(weight, rel=1e-14, abs=0)
            assert unit / determinant == pytest.approx(response, rel=1e-13)
            np.testing.assert_allclose(radius, roots, rtol=1e-15)
