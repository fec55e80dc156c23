"""Thresholds, operators and bounds against every batch of up to eight samples."""

import itertools
import math

import numpy as np
import pytest

from eosim.moments import Covariance
from eosim.sampling import noise_factor
from eosim.stability import (
    TangentKernel,
    alignment_band,
    critical_lr,
    generalised_sharpness,
    lr_bounds,
)


def batches(n, size, sampling):
    """(counts of each sample, probability) of every batch; equal multisets are one."""
    if sampling == "without_replacement":
        drawn = [(batch, 1) for batch in itertools.combinations(range(n), size)]
    else:
        drawn = []
        for batch in itertools.combinations_with_replacement(range(n), size):
            repeats = math.prod(math.factorial(batch.count(i)) for i in set(batch))
            drawn.append((batch, math.factorial(size) // repeats))
    total = sum(weight for _, weight in drawn)
    return [(np.bincount(batch, minlength=n), weight / total) for batch, weight in drawn]


@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement"])
@pytest.mark.parametrize(("n", "d"), [(2, 3), (5, 3), (6, 4), (7, 3), (8, 4)])
def test_up_to_eight_samples_every_batch_gives_the_threshold_and_the_step(n, d, sampling):
    rng = np.random.default_rng([n, d])
    rows = rng.standard_normal((n, d)) * np.exp(0.7 * rng.standard_normal((n, 1)))
    kernel = TangentKernel.from_jacobian(rows)
    basis = np.linalg.svd(rows, full_matrices=False)[2].T
    rows = rows @ basis  # coordinates of the range of H
    r = rows.shape[1]
    H = rows.T @ rows / n
    values, vectors = np.linalg.eigh((np.kron(H, np.eye(r)) + np.kron(np.eye(r), H)) / 2)
    root = vectors / np.sqrt(values) @ vectors.T  # C^{-1/2}
    for size in range(1, n + 1):
        drawn = batches(n, size, sampling)
        D = 0
        for counts, probability in drawn:
            batch = rows.T * counts @ rows / size
            D = D + probability * np.kron(batch, batch)
        threshold = 2 / np.linalg.eigvalsh(root @ D @ root)[-1]
        assert critical_lr(kernel, size, sampling=sampling) == pytest.approx(threshold, rel=1e-12)
        sharpness = generalised_sharpness(kernel, size, sampling=sampling)
        assert 2 / sharpness == pytest.approx(threshold, rel=1e-12)
        lr = 1.1 * threshold
        factor = rows @ rng.standard_normal((r, r))
        second = factor @ factor.T
        expected = 0
        for counts, probability in drawn:
            step = np.eye(n) - lr / size * rows @ rows.T * counts
            expected = expected + probability * step @ second @ step.T
        model = Covariance(kernel, lr, size, sampling)
        found = model.step(model.start(second)).residual
        assert np.abs(found - expected).max() <= 1e-13 * np.abs(expected).max()


@pytest.mark.parametrize("k", [1, 2])
def test_coherence_is_what_the_samples_give(k):
    rng = np.random.default_rng(k)
    J = rng.standard_normal((5 * k, 4))
    samples = [block.T @ block for block in J.reshape(5, k, 4)]
    S = np.array([[math.sqrt(np.trace(a @ b)) for b in samples] for a in samples])
    sharpest = max(np.linalg.eigvalsh(sample)[-1] for sample in samples)
    sigma = np.linalg.eigvalsh(S)[-1] / sharpest
    largest = np.linalg.eigvalsh(sum(samples) / 5)[-1]
    kernel = TangentKernel.from_jacobian(J, k)
    for size in (1, 2, 4):
        found = lr_bounds(kernel, size, sampling="bernoulli")["coherence"].value
        assert found == pytest.approx(sigma / (largest * math.sqrt(5 / size - 1)), rel=1e-12)


@pytest.mark.parametrize("k", [1, 2])
def test_both_frobenius_bounds_are_their_formulas(k):
    J = np.random.default_rng(k).standard_normal((5 * k, 4))
    kernel, F = TangentKernel.from_jacobian(J, k), np.linalg.norm(J.T @ J / 5)
    least, raw = (alignment_band(kernel, centred=c).smallest for c in (True, False))
    for size in (1, 2, 4):
        kappa, found = noise_factor(5, size), lr_bounds(kernel, size)
        assert found["frobenius"].value == pytest.approx(1 / (F * math.sqrt(kappa * least)))
        if size > 1:
            plain = 1 / (F * math.sqrt(kappa * (1 - kappa) * raw))
            assert found["frobenius_uncentred"].value == pytest.approx(plain)
