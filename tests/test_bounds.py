"""Bounds of the learning rate: against all batches, on random Jacobians, and in closed form."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from eosim.sampling import batch_moments
from eosim.stability import TangentKernel, critical_lr, growth_rate
from eosim.stability.alignment import alignment_band, streaming_critical_lr
from eosim.stability.bounds import (
    loss_proportional_critical_lr,
    lr_bounds,
    one_step_matrix,
    one_step_rates,
)

SCHEMES = ("without_replacement", "with_replacement", "bernoulli")
# (n, d, k): full rank, fewer parameters than residuals, several outputs
SHAPES = [(4, 5, 1), (5, 3, 1), (3, 4, 2)]
# Each bound and one that can never be below it.
ORDER = [
    ("wu_2018", "exact"),
    ("loss", "exact"),
    ("exact", "closure"),
    ("closure", "finite"),
    ("finite", "generalised_trace"),
    ("generalised_trace", "trace"),
    ("finite", "edge"),
    ("exact", "rank_one"),
    ("rank_one", "top_eigenvector"),
    ("top_eigenvector", "edge"),
    ("exact", "trace_samples"),
    ("exact", "frobenius"),
    ("exact", "frobenius_uncentred"),
]


def batches(n, B, sampling):
    """Every batch as (count of each sample, probability)."""
    if sampling == "without_replacement":
        drawn = [(b, 1.0) for b in itertools.combinations(range(n), B)]
    elif sampling == "with_replacement":
        drawn = [(b, 1.0) for b in itertools.product(range(n), repeat=B)]
    else:
        subsets = [b for m in range(n + 1) for b in itertools.combinations(range(n), m)]
        drawn = [(b, (B / n) ** len(b) * (1 - B / n) ** (n - len(b))) for b in subsets]
    total = sum(weight for _, weight in drawn)
    return [(np.bincount(np.array(b, dtype=int), minlength=n), w / total) for b, w in drawn]


class Enumerated:
    """H, C and D of one problem, in coordinates of the range of H, from its batches one by one."""

    def __init__(self, J, k, B, sampling):
        n = len(J) // k
        values, basis = np.linalg.eigh(J.T @ J / n)
        basis = basis[:, values > 1e-10 * values[-1]]
        J = J @ basis
        self.samples = [block.T @ block for block in J.reshape(n, k, -1)]  # H_i
        self.H = sum(self.samples) / n
        r = len(self.H)
        self.C = (np.kron(self.H, np.eye(r)) + np.kron(np.eye(r), self.H)) / 2
        self.D = np.zeros((r * r, r * r))
        self.squared = np.zeros((r, r))  # E[H_batch^2]
        self.pulled = np.zeros((r, r))  # E[H_batch H H_batch]
        for counts, probability in batches(n, B, sampling):
            batch = sum(c * h for c, h in zip(counts, self.samples, strict=True)) / B
            self.D += probability * np.kron(batch, batch)
            self.squared += probability * batch @ batch
            self.pulled += probability * batch @ self.H @ batch

    def rate(self, Z):
        """2 <Z, CZ> / <Z, DZ>."""
        z = Z.ravel()
        return 2 * (z @ self.C @ z) / (z @ self.D @ z)

    def threshold(self):
        """2 / lambda_max(C^{-1/2} D C^{-1/2})."""
        values, vectors = np.linalg.eigh(self.C)
        root = vectors / np.sqrt(values) @ vectors.T
        return 2 / np.linalg.eigvalsh(root @ self.D @ root)[-1]


def falling(matrix, metric):
    """The largest lr with lr matrix <= 2 metric."""
    values, vectors = np.linalg.eigh(metric)
    root = vectors / np.sqrt(values) @ vectors.T
    return 2 / np.linalg.eigvalsh(root @ matrix @ root)[-1]


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_bound_is_what_enumerating_all_batches_gives(shape, sampling):
    n, d, k = shape
    J = np.random.default_rng(n).standard_normal((n * k, d))
    J *= np.repeat(np.linspace(0.5, 2, n), k)[:, None]
    kernel = TangentKernel.from_jacobian(J, k)
    for B in range(1, n + 1):
        slow = Enumerated(J, k, B, sampling)
        found = {b.name: b.value for b in lr_bounds(kernel, B, sampling=sampling).values()}
        values, vectors = np.linalg.eigh(slow.H)
        r, H, v = len(slow.H), slow.H, vectors[:, -1]
        kept, kappa = batch_moments(n, B, sampling)
        T, F = np.trace(H), np.linalg.norm(H)
        expected = {
            "exact": slow.threshold(),
            "wu_2018": falling(slow.squared, H),
            "loss": falling(slow.pulled, H @ H),
            "top_eigenvector": slow.rate(np.outer(v, v)),
            "trace_samples": slow.rate(np.eye(r)),
            "generalised_trace": 2 * T / (kept * F**2 + kappa * T**2 / k),
            "edge": 2 / values[-1],
        }
        diagonal = np.array([np.outer(u, u).ravel() for u in vectors.T])
        inverse = np.diag(1 / np.sqrt(values))
        compressed = inverse @ (diagonal @ slow.D @ diagonal.T) @ inverse
        expected["closure"] = 2 / np.linalg.eigvalsh(compressed)[-1]
        if kappa:
            expected["trace"] = 2 * k / (kappa * T)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-9), name
        # No vector of a fine search gives a lower rank-one bound than a sharp ascent would accept.
        probes = np.random.default_rng(B).standard_normal((300, r))
        rates = [slow.rate(np.outer(u, u)) for u in probes]
        assert found["exact"] * (1 - 1e-9) <= found["rank_one"] <= min(rates) * (1 + 1e-9)


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_one_step_matrix_is_the_mean_over_all_batches(shape, sampling):
    n, d, k = shape
    J = np.random.default_rng(n).standard_normal((n * k, d))
    kernel = TangentKernel.from_jacobian(J, k)
    V, theta, lr = kernel.vectors(), kernel.matrix, 0.7
    for B in range(1, n + 1):
        expected = 0
        for counts, probability in batches(n, B, sampling):
            step = np.eye(n * k) - lr * theta @ np.diag(np.repeat(n / B * counts, k))
            expected = expected + probability * step.T @ step
        found = one_step_matrix(kernel, lr, B, sampling=sampling)
        np.testing.assert_allclose(found, V.T @ expected @ V, atol=1e-12)


@pytest.mark.parametrize("sampling", SCHEMES)
def test_one_step_brackets_the_growth_rate(sampling):
    generator = np.random.default_rng(1)
    for _ in range(40):
        n, k = generator.integers(2, 7), int(generator.integers(1, 3))
        kernel = TangentKernel.from_jacobian(generator.standard_normal((n * k, 5)), k)
        B = int(generator.integers(1, n + 1))
        lr = critical_lr(kernel, B, sampling=sampling) * generator.uniform(0.2, 3)
        rates = one_step_rates(kernel, lr, B, sampling=sampling)
        rho = growth_rate(kernel, lr, B, sampling=sampling)
        assert rates.frobenius <= rates.smallest + 1e-12
        assert rates.smallest <= rho * (1 + 1e-10)
        assert rho <= rates.largest * (1 + 1e-10)


def random_kernel(generator):
    """Of random size, rank and number of outputs, with samples of very different gradients."""
    n, d = int(generator.integers(2, 7)), int(generator.integers(1, 9))
    k = int(generator.choice([1, 1, 2, 3]))
    J = generator.standard_normal((n * k, d)) * np.repeat(generator.uniform(0.1, 3, n), k)[:, None]
    return TangentKernel.from_jacobian(J, k)


@pytest.mark.parametrize("sampling", SCHEMES)
def test_the_ladder_holds_and_climbs_with_the_batch_size(sampling):
    generator = np.random.default_rng(SCHEMES.index(sampling))
    for _ in range(400):
        kernel = random_kernel(generator)
        before = None
        for B in range(1, kernel.n_samples + 1):
            found = {b.name: b.value for b in lr_bounds(kernel, B, sampling=sampling).values()}
            for low, high in ORDER:
                assert found[low] <= found[high] * (1 + 1e-9), (low, high, B)
            if sampling == "bernoulli":
                assert found["exact"] <= found["coherence"] * (1 + 1e-9)
            if before is not None:
                # Not frobenius_uncentred, which is lowest at kept = noise = 1/2, not a local maximum,
                # and not generalised_trace where several outputs make T^2/k smaller than F^2.
                exempt = {"frobenius_uncentred", "rank_one"}
                if kernel.n_outputs > 1:
                    exempt |= {"generalised_trace"}
                for name in found.keys() - exempt:
                    assert found[name] >= before[name] * (1 - 1e-9), (name, B)
            before = found


def test_only_the_exact_threshold_may_be_left_out():
    kernel = random_kernel(np.random.default_rng(0))
    full, cheap = lr_bounds(kernel, 1), lr_bounds(kernel, 1, exact=False)
    assert cheap == {name: bound for name, bound in full.items() if name != "exact"}
    assert {bound.kind for bound in full.values()} == {"sufficient", "exact", "necessary"}
    assert all(name == bound.name and bound.source for name, bound in full.items())


@pytest.mark.parametrize("n", [1, 4])
def test_the_full_batch_has_only_the_edge(n):
    kernel = TangentKernel.from_jacobian(np.random.default_rng(n).standard_normal((n, 3)))
    found = lr_bounds(kernel, n)
    for name in ("wu_2018", "loss", "exact", "rank_one", "top_eigenvector", "closure", "finite"):
        assert found[name].value == pytest.approx(2 / kernel.largest, rel=1e-10)
    for name in ("trace", "frobenius", "frobenius_uncentred"):
        assert found[name].value == math.inf


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-110, 1e-5, 1e-4, 1e4, 1e160, 1e300])
def test_bounds_and_rates_have_no_unit(scale, sampling):
    matrix = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])  # two of equal norm
    kernel, other = TangentKernel.from_matrix(matrix), TangentKernel.from_matrix(matrix * scale)
    expected = lr_bounds(kernel, 1, sampling=sampling)
    for name, bound in lr_bounds(other, 1, sampling=sampling).items():
        assert bound.value * scale == pytest.approx(expected[name].value, rel=1e-11), name
        assert bound[2:] == expected[name][2:]
    rates = one_step_rates(other, 0.1 / scale, 1, sampling=sampling)
    assert rates == pytest.approx(one_step_rates(kernel, 0.1, 1, sampling=sampling), rel=1e-12)
    band = alignment_band(other)
    assert band == pytest.approx(alignment_band(kernel), rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("scale", [1e-305, 1e-150, 1e160, 1e300])
def test_thresholds_of_spectra_have_no_unit(scale):
    values = np.array([3.0, 1.0, 0.2])
    for function in (
        lambda x: loss_proportional_critical_lr(x, 0.5),
        lambda x: loss_proportional_critical_lr(x, 0.0),
        lambda x: streaming_critical_lr(x, 2),
        lambda x: streaming_critical_lr(x[:1], 2, inputs="sphere"),
    ):
        assert function(values * scale) * scale == pytest.approx(function(values), rel=1e-13)


@pytest.mark.parametrize("seed", [428, 1105, 1331])  # the two sides lead to different maxima
def test_the_rank_one_bound_does_not_depend_on_the_signs_of_eigenvectors(seed):
    generator = np.random.default_rng(seed)
    n = int(generator.integers(3, 7))
    J = generator.standard_normal((n, int(generator.integers(2, 6))))
    kernel = TangentKernel.from_jacobian(J * generator.uniform(0.1, 3, n)[:, None])
    found = []
    for sign in (1.0, -1.0):
        signs = np.append(sign, np.ones(len(kernel.eigenvalues) - 1))
        turned = replace(kernel, eigenvectors=kernel.vectors() * signs)
        found.append(lr_bounds(turned, 1, exact=False)["rank_one"].value)
    assert found[0] == pytest.approx(found[1], rel=1e-8)


# --- closed forms ----------------------------------------------------------------------------------


def circle(n=16):
    """ReLU features with n inputs and n weights equally spaced on the unit circle."""
    angles = 2 * np.pi * np.arange(n) / n
    return np.maximum(np.cos(angles[:, None] - angles), 0) / math.sqrt(n)


def test_the_circle_is_stable_up_to_eight_and_refutes_the_uncentred_frobenius_bound():
    kernel = TangentKernel.from_jacobian(circle())
    assert kernel.trace == pytest.approx(1 / 4, rel=1e-13)
    band, raw = alignment_band(kernel), alignment_band(kernel, centred=False)
    np.testing.assert_allclose(raw, 1, rtol=1e-12)
    ends = kernel.eigenvalues[[0, -1]]  # a circulant kernel has the form I - Theta^2/|Theta|^2
    np.testing.assert_allclose(band, 1 - (ends / kernel.frobenius) ** 2, rtol=1e-12)
    found = lr_bounds(kernel, 1)
    assert found["exact"].value == pytest.approx(8, rel=1e-12)
    assert found["trace"].value == pytest.approx(8, rel=1e-12)
    plain = 1 / (kernel.frobenius * math.sqrt(raw.smallest))  # noise = 1 at B = 1
    coefficients = np.fft.fft(np.maximum(np.cos(2 * np.pi * np.arange(16) / 16), 0)) / 16
    assert plain == pytest.approx(1 / math.sqrt(np.sum(np.abs(coefficients) ** 4)), rel=1e-12)
    assert plain < found["exact"].value  # hence no bound
    assert found["frobenius"].value > 8
    assert found["frobenius_uncentred"].value == math.inf  # kept = 0 at B = 1
    for B in range(2, 16):
        bounds = lr_bounds(kernel, B)
        assert bounds["exact"].value == pytest.approx(bounds["finite"].value, rel=1e-10)
        assert bounds["exact"].value <= bounds["frobenius_uncentred"].value


def test_a_plain_uncentred_bound_fails_with_replacement_too():
    kernel = TangentKernel.from_jacobian(circle())
    for B in (1, 2):
        found = lr_bounds(kernel, B, sampling="with_replacement")
        assert found["exact"].value > math.sqrt(B) / kernel.frobenius
        assert found["exact"].value <= found["frobenius_uncentred"].value


@pytest.mark.parametrize("n", [5, 8])
def test_circulant_kernels_have_the_finite_threshold(n):
    shape = np.random.default_rng(n).standard_normal(n)
    J = np.array([np.roll(shape, i) for i in range(n)])
    kernel = TangentKernel.from_jacobian(J)
    for B in range(1, n):
        found = lr_bounds(kernel, B)
        assert found["exact"].value == pytest.approx(found["finite"].value, rel=1e-10)
        assert found["closure"].value == pytest.approx(found["finite"].value, rel=1e-10)


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("n", [2, 6])
def test_orthogonal_equal_gradients_have_closed_forms(n, sampling):
    square = 0.7
    kernel = TangentKernel.from_jacobian(math.sqrt(square) * np.eye(n))
    assert alignment_band(kernel).smallest == pytest.approx((n - 1) / n, rel=1e-12)
    for B in range(1, n):
        found = lr_bounds(kernel, B, sampling=sampling)
        # Each sample's residual is multiplied by 1 - lr n/B counts square/n: E of its square.
        spread = {"without_replacement": 1.0, "with_replacement": 1 + (B - 1) / n, "bernoulli": 1.0}
        exact = 2 * B / (square * spread[sampling])
        assert found["exact"].value == pytest.approx(exact, rel=1e-10)
        assert found["wu_2018"].value == pytest.approx(exact, rel=1e-10)
        assert found["loss"].value == pytest.approx(exact, rel=1e-10)
        if sampling == "without_replacement":
            frobenius = n / square * math.sqrt(B / (n - B))
            assert found["frobenius"].value == pytest.approx(frobenius, rel=1e-10)
            gap = B * (n - 2 * B) ** 2 / ((n - B) * square**2)
            assert frobenius**2 - exact**2 == pytest.approx(gap, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("angle", [0.1, 1.0, math.pi / 2, 3.0])
def test_two_equal_norms_have_a_threshold_without_their_angle(angle):
    J = 1.3 * np.array([[1, 0], [math.cos(angle), math.sin(angle)]])
    kernel = TangentKernel.from_jacobian(J)
    assert lr_bounds(kernel, 1)["exact"].value == pytest.approx(2 / 1.3**2, rel=1e-10)


def test_one_parameter_has_the_sharpness_and_non_uniformity_threshold():
    curvatures = np.array([1.0, 2.0, 4.0])
    kernel = TangentKernel.from_jacobian(np.sqrt(curvatures)[:, None])
    a, variance = curvatures.mean(), curvatures.var()
    for B in (1, 2, 3):
        found = lr_bounds(kernel, B)
        expected = 2 * a / (a**2 + batch_moments(3, B).noise * variance)
        for name in ("exact", "wu_2018", "loss", "top_eigenvector", "rank_one"):
            assert found[name].value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("B", [1, 4, 9])
def test_the_frobenius_bound_is_tight_for_as_many_equal_modes_as_samples(B):
    for r in (max(1, B // 2), B, 2 * B):
        eigenvalues = np.full(r, 0.4)
        lr = loss_proportional_critical_lr(eigenvalues, 1 / B)
        frobenius = math.sqrt(B) / np.linalg.norm(eigenvalues)
        assert lr == pytest.approx(2 / (0.4 * (1 + r / B)), rel=1e-13)
        ratio = lr / frobenius
        assert ratio <= 1 + 1e-13
        assert (ratio > 1 - 1e-9) == (r == B)


def test_loss_proportional_noise_grows_from_its_threshold_on():
    eigenvalues, B, mu = np.array([2.0, 1.0, 0.2, 0.0]), 3, 0.6
    lr = loss_proportional_critical_lr(eigenvalues, 1 / B, alignment=mu)
    for factor, above in ((0.99, False), (1.01, True)):
        x = factor * lr * eigenvalues[:3]
        step = np.diag((1 - x) ** 2) + factor * lr * mu / B * np.outer(x, eigenvalues[:3])
        assert (np.abs(np.linalg.eigvals(step)).max() > 1) == above
    x = lr * eigenvalues
    assert np.sum(x / (2 - x)) == pytest.approx(B / mu, rel=1e-12)
    assert loss_proportional_critical_lr(eigenvalues, 0.0) == 1.0
    assert loss_proportional_critical_lr([0.0], 0.5) == math.inf


def test_wrong_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="eigenvectors"):
        lr_bounds([1.0, 0.5], 1)
    with pytest.raises(ValueError, match="kernel must not be zero"):
        lr_bounds(np.zeros((2, 2)), 1)
    with pytest.raises(ValueError, match="batch_size must be at most"):
        lr_bounds(np.eye(2), 3)
    with pytest.raises(ValueError, match="reshuffling has no second moment"):
        lr_bounds(np.eye(2), 1, sampling="reshuffling")
    with pytest.raises(ValueError, match="lr must be a real number"):
        one_step_matrix(np.eye(2), -1.0, 1)
    with pytest.raises(ValueError, match="noise must be a real number"):
        loss_proportional_critical_lr([1.0], -0.1)
