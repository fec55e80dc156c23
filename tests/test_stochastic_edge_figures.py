"""The figures of the stochastic edge: what they sample is SGD, and wrong numbers fail them."""

from itertools import combinations

import numpy as np
import pytest

import eosim
from eosim.stability import critical_lr, tangent_kernel
from figures import (
    _sgd,
    noise_kernel_norms,
    sgd_prediction,
    stochastic_edge,
    typical_growth,
)

# Without the JIT thousands of sampled runs take minutes.
sampled = pytest.mark.size


def quick(module):
    @pytest.fixture(scope="module")
    def arrays():
        return module.compute(True)

    return arrays


prediction, edge = quick(sgd_prediction), quick(stochastic_edge)
norms, typical = quick(noise_kernel_norms), quick(typical_growth)


def failing(module, arrays):
    return [row.quantity for row in module.headline(arrays) if not row.holds]


def changed(arrays, name, change):
    return {**arrays, name: change(arrays[name].copy())}


def flipped(verdicts):
    verdicts[0, 0] = ~verdicts[0, 0]
    return verdicts


@pytest.mark.parametrize("make", [_sgd.flat_kernel, _sgd.cosine_kernel])
def test_a_ramp_kernel_has_orthonormal_vectors_and_is_the_ntk_of_its_problem(make):
    kernel = make(16)
    V = kernel.eigenvectors
    np.testing.assert_allclose(V.T @ V, np.eye(16), rtol=0, atol=1e-14)
    assert kernel.largest == 2
    assert kernel.trace == pytest.approx(17, rel=1e-15)
    ntk = tangent_kernel(_sgd.problem(kernel), np.zeros(16))
    np.testing.assert_allclose(ntk.matrix, kernel.matrix, rtol=0, atol=1e-13)


def test_only_the_flat_kernel_is_flat():
    assert np.abs(_sgd.flat_kernel(16).eigenvectors) == pytest.approx(1 / 4)
    assert np.abs(_sgd.cosine_kernel(16).eigenvectors).max() > 0.34


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.2])
def test_the_quadratic_form_grows_by_rho_in_the_mean_over_all_batches(batch_size, ratio):
    kernel = _sgd.flat_kernel(8)
    lr = ratio * critical_lr(kernel, batch_size)
    rho, weights = typical_growth.surviving_form(kernel, lr, batch_size)
    residuals = np.random.default_rng(0).standard_normal(8)

    def form(e):
        return (kernel.eigenvectors.T @ e) ** 2 @ weights

    after = []
    for batch in combinations(range(8), batch_size):
        kept = np.zeros(8)
        kept[list(batch)] = 8 / batch_size
        after.append(form(residuals - lr * kernel.matrix @ (kept * residuals)))
    assert np.mean(after) == pytest.approx(rho * form(residuals), rel=1e-12)


def test_at_batch_size_one_every_step_at_the_edge_keeps_the_form():
    kernel = _sgd.flat_kernel(16)
    runs = typical_growth.gap(kernel, critical_lr(kernel, 1), 1, 50, [0])
    assert np.abs(runs).max() < 1e-13


@sampled
def test_the_typical_rate_is_that_of_the_shipped_sgd():
    kernel, batch_size, n_runs, n_steps = _sgd.flat_kernel(16), 2, 400, 800
    lr = 1.1 * critical_lr(kernel, batch_size)
    rho, _ = typical_growth.surviving_form(kernel, lr, batch_size)
    runs = typical_growth.gap(kernel, lr, batch_size, 2000, [1])[0]
    ensemble = eosim.run_ensemble(
        _sgd.problem(kernel),
        eosim.GradientDescent(lr),
        None,
        n_steps,
        batch_sizes=batch_size,
        n_replicas=n_runs,
        seed=2,
        residuals0=1e-8 * np.random.default_rng(3).standard_normal((n_runs, 16)),
        every=n_steps // 2,
    )
    assert not ensemble.diverged.any()
    _, half, end = np.log(ensemble["loss"][0, 0]).T
    rates = (end - half) / (n_steps / 2)
    errors = [values.std() / np.sqrt(len(values)) for values in (runs, rates)]
    assert errors[1] < 5e-4
    assert abs(np.log(rho) + runs.mean() - rates.mean()) < 4 * np.hypot(*errors)


@sampled
@pytest.mark.parametrize("kind", sgd_prediction.KINDS)
def test_a_closure_five_per_cent_too_high_fails_the_prediction(prediction, kind):
    wrong = changed(prediction, f"plain_{kind}", lambda loss: 1.05 * loss)
    assert failing(sgd_prediction, wrong) == [f"plain, {kind}: |loss / exact - 1|"]


@sampled
@pytest.mark.parametrize("name", sgd_prediction.SETTINGS)
def test_an_exact_loss_six_standard_errors_off_at_one_step_fails_the_prediction(prediction, name):
    def off(mean):
        mean[30] += 6 * prediction[f"{name}_error"][30]
        return mean

    (quantity,) = failing(sgd_prediction, changed(prediction, f"{name}_mean", off))
    assert quantity.startswith(f"{name}: |mean of 1500 runs")


@sampled
def test_another_late_rate_fails_the_prediction(prediction):
    wrong = changed(prediction, "momentum_growth", lambda rho: rho * (1 + 1e-8))
    assert failing(sgd_prediction, wrong) == ["momentum: |late factor / growth_rate - 1|"]


@sampled
@pytest.mark.parametrize("name", ["plane_grows", "grows_0.0", "grows_0.9"])
def test_one_wrong_verdict_fails_the_edge(edge, name):
    (quantity,) = failing(stochastic_edge, changed(edge, name, flipped))
    assert quantity.startswith("sampled runs: wrong verdicts of")


@sampled
@pytest.mark.parametrize("name", ["plane_factor", "factor_0.5", "dual_factor_0.8"])
def test_a_growth_of_the_wrong_sign_fails_the_edge(edge, name):
    quantities = failing(stochastic_edge, changed(edge, name, lambda factor: -factor))
    assert quantities[0].startswith("1 % off: wrong verdicts")


@sampled
def test_a_broken_duality_fails_the_edge_and_so_does_one_that_always_holds(edge):
    broken = changed(edge, "flat_off_0.8", lambda off: off + 1e-10)
    assert failing(stochastic_edge, broken) == ["flat: |threshold / duality - 1|"]
    held = {
        **edge,
        **{f"general_off_{mu}": 0 * edge["flat_off_0.5"] for mu in stochastic_edge.RATIOS},
    }
    assert failing(stochastic_edge, held) == ["general: threshold / duality - 1, largest"]


@pytest.mark.parametrize("name", ["exact", "growth"])
def test_a_norm_off_by_one_in_a_billion_at_the_threshold_fails_the_norms(norms, name):
    wrong = changed(norms, name, lambda values: values * (1 + 1e-9))
    expected = {"exact": "threshold: K exact", "growth": "threshold: growth_rate"}
    assert expected[name] in failing(noise_kernel_norms, wrong)


def test_exchanged_norms_fail_the_norms(norms):
    exchanged = {**norms, "finite": norms["delocalised"], "delocalised": norms["finite"]}
    quantities = failing(noise_kernel_norms, exchanged)
    assert quantities == ["trace <= finite <= delocalised, exact; least gap"]


def test_errors_without_their_sign_or_size_fail_the_norms(norms):
    opposite = changed(norms, "flat_error", lambda error: -error)
    assert failing(noise_kernel_norms, opposite) == ["flat: error / (-4/3n), n = 64"]
    constant = {**norms, **{f"gaussian_{n}": norms["gaussian_64"] for n in norms["size"]}}
    assert failing(noise_kernel_norms, constant) == ["Gaussian: slope of the mean error, n >= 64"]


@sampled
def test_runs_that_neither_decay_at_the_edge_nor_grow_above_it_fail_the_growth(typical):
    at, above = 4, 5
    assert typical["ratio"][at] == 1.0

    def still(row):
        def change(runs):
            runs[row] -= runs[row].mean() + typical["mean_square_64"][row]
            return runs

        return change

    assert "n = 64: the same + 4.5 SE" in failing(
        typical_growth, changed(typical, "gap_64", still(at))
    )
    assert "n = 64: typical rate at 1.05 - 4.5 SE" in failing(
        typical_growth, changed(typical, "gap_64", still(above))
    )


@sampled
def test_a_median_that_stands_still_fails_the_growth(typical):
    wrong = changed(typical, "fan_quantile", lambda values: np.ones_like(values))
    assert failing(typical_growth, wrong) == ["B = 16: slope of the median's log"]
