"""The stability report, and estimates of the noise kernel norm: exact, within their errors, honest."""

import math

import numpy as np
import pytest

import eosim
from eosim import measure
from eosim.stability import (
    critical_lr,
    estimators,
    growth_rate,
    noise_kernel_norm,
    reporting,
    tangent_kernel,
)
from eosim.stability.bounds import lr_bounds
from eosim.stability.estimators import LanczosKernelNorm, SpectralKernelNorm, TraceKernelNorm
from eosim.stability.reporting import report
from tests.cases import perceptron, regression

RULES = [eosim.GradientDescent(0.2), eosim.HeavyBall(0.1, 0.6)]


def network(n_samples=30, n_outputs=2):
    problem = perceptron(n_samples=n_samples, n_outputs=n_outputs, hidden=(8,))
    return problem, np.random.default_rng(1).standard_normal(problem.dim) / 2


def interpolated(n_samples=6, n_features=9, n_outputs=1):
    """A regression with more parameters than residuals, and a minimum of zero loss."""
    problem = regression(n_samples, n_features, n_outputs)
    theta = np.linalg.lstsq(np.array(problem.inputs), problem.targets, rcond=None)[0]
    return problem, theta.ravel()


# --- estimators ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=["gradient_descent", "heavy_ball"])
@pytest.mark.parametrize("kind", ["exact", "closure", "finite", "delocalised", "trace"])
def test_the_spectral_estimate_is_the_norm_of_the_kernel(kind, rule):
    problem, theta = network()
    momentum = getattr(rule, "momentum", 0.0)
    expected = noise_kernel_norm(
        tangent_kernel(problem, theta), rule.lr, 4, kind=kind, momentum=momentum
    )
    assert SpectralKernelNorm(4, kind)(problem, theta, rule=rule) == (expected, 0)


@pytest.mark.parametrize("rule", RULES, ids=["gradient_descent", "heavy_ball"])
@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement", "bernoulli"])
def test_the_trace_estimate_is_exact_or_within_its_error(sampling, rule):
    problem, theta = network()
    momentum = getattr(rule, "momentum", 0.0)
    expected = noise_kernel_norm(
        tangent_kernel(problem, theta), rule.lr, 4, kind="trace", sampling=sampling,
        momentum=momentum,
    )  # fmt: skip
    exact = TraceKernelNorm(4, sampling)(problem, theta, rule=rule)
    assert exact.value == pytest.approx(expected, rel=1e-12)
    assert exact.standard_error == 0
    probed = TraceKernelNorm(4, sampling, n_probes=200)(problem, theta, rule=rule)
    assert 0 < probed.standard_error < 0.1 * expected
    assert abs(probed.value - expected) < 4 * probed.standard_error


def test_the_probed_trace_needs_residuals_only():
    problem, theta = network()

    class ResidualsOnly:
        dim, n_samples, analytic = problem.dim, problem.n_samples, False
        residuals = staticmethod(problem.residuals)

    full = TraceKernelNorm(4, n_probes=5)(problem, theta, rule=RULES[0])
    # by central differences, of relative error about 1e-9, instead of a complex step
    found = TraceKernelNorm(4, n_probes=5)(ResidualsOnly(), theta, rule=RULES[0])
    assert found.value == pytest.approx(full.value, rel=1e-7)


@pytest.mark.parametrize("rule", RULES, ids=["gradient_descent", "heavy_ball"])
@pytest.mark.parametrize("kind", ["finite", "delocalised"])
def test_the_lanczos_estimate_lies_within_its_error(kind, rule):
    problem, theta = network()
    expected = SpectralKernelNorm(4, kind)(problem, theta, rule=rule).value
    found = LanczosKernelNorm(4, kind, n_probes=100)(problem, theta, rule=rule)
    assert 0 < found.standard_error < 0.1 * expected
    assert abs(found.value - expected) < 4 * found.standard_error


def test_the_lanczos_estimate_is_exact_if_the_rest_of_the_spectrum_is_equal():
    # Two eigenvalues: once the top pair is split off, |z|^2 - (u.z)^2 is all that varies.
    problem = eosim.LinearRegression(np.diag([3.0, 1.0, 1.0, 1.0]), np.zeros(4))
    rule = eosim.GradientDescent(0.5)
    expected = SpectralKernelNorm(2)(problem, np.ones(4), rule=rule).value
    found = LanczosKernelNorm(2)(problem, np.ones(4), rule=rule)
    assert found.value == pytest.approx(expected, rel=1e-10)
    assert found.standard_error < 1e-8


def test_near_the_pole_the_top_eigenvalue_carries_no_error():
    problem, theta = network()
    top = tangent_kernel(problem, theta).largest
    near = eosim.GradientDescent((2 - 1e-6) / top)
    expected = SpectralKernelNorm(4, "delocalised")(problem, theta, rule=near).value
    found = LanczosKernelNorm(4, "delocalised", n_probes=50)(problem, theta, rule=near)
    assert expected > 1e5
    assert found.value == pytest.approx(expected, rel=1e-6)
    beyond = eosim.GradientDescent(2.1 / top)
    assert LanczosKernelNorm(4)(problem, theta, rule=beyond) == (math.inf, 0)
    assert SpectralKernelNorm(4)(problem, theta, rule=beyond) == (math.inf, 0)


def test_a_jacobian_in_blocks_gives_the_same_estimates(monkeypatch):
    problem, theta = network()
    names = (TraceKernelNorm(4), LanczosKernelNorm(4))
    whole = [estimator(problem, theta, rule=RULES[0]) for estimator in names]
    monkeypatch.setattr(estimators, "_KEPT", 0)
    monkeypatch.setattr(estimators, "_BLOCK", 7 * 2 * problem.dim)  # 7 samples: 30 = 4 * 7 + 2
    sizes = [len(block) for block in estimators._blocks(problem, theta)]
    assert sizes == [14, 14, 14, 14, 4]
    for estimator, expected in zip(names, whole, strict=True):
        found = estimator(problem, theta, rule=RULES[0])
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_flat_model_has_no_noise():
    problem = eosim.LinearRegression(np.zeros((3, 2)), np.ones(3))
    for estimator in (SpectralKernelNorm(1), TraceKernelNorm(1), LanczosKernelNorm(1)):
        assert estimator(problem, np.zeros(2), rule=RULES[0]) == (0, 0)


def test_estimators_are_measurements_of_a_run():
    problem, theta = network()
    record = {
        "K": SpectralKernelNorm(4),
        "trace": TraceKernelNorm(4),
        "lanczos": LanczosKernelNorm(4),
    }
    path = eosim.run(problem, RULES[1], theta, 3, batch_size=4, seed=0, record=record)
    for name, estimator in record.items():
        expected = [estimator(problem, point, rule=RULES[1]) for point in path.theta]
        np.testing.assert_array_equal(path[f"{name}.value"], [e.value for e in expected])
        np.testing.assert_array_equal(
            path[f"{name}.standard_error"], [e.standard_error for e in expected]
        )


def test_wrong_estimators_are_refused_by_name():
    problem, theta = network()
    with pytest.raises(TypeError, match=r"GradientDescent or HeavyBall.*Nesterov"):
        SpectralKernelNorm(4)(problem, theta, rule=eosim.Nesterov(0.1))
    with pytest.raises(ValueError, match="kind must be one of 'finite', 'delocalised'"):
        LanczosKernelNorm(4, "exact")
    with pytest.raises(ValueError, match="n_probes must be an integer >= 2"):
        TraceKernelNorm(4, n_probes=1)
    with pytest.raises(ValueError, match="sampling must be one of"):
        TraceKernelNorm(4, "reshuffling")
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1"):
        SpectralKernelNorm(0)
    with pytest.raises(TypeError, match="Rosenbrock has no"):
        LanczosKernelNorm(1)(eosim.Rosenbrock(), np.ones(2), rule=RULES[0])


# --- report ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_report_says_what_the_exact_threshold_says(factor, momentum):
    problem, theta = interpolated()
    kernel = tangent_kernel(problem, theta)
    threshold = critical_lr(kernel, 2, momentum=momentum)
    found = report(problem, theta, factor * threshold, 2, momentum=momentum)
    assert found.bounds["exact"].value == pytest.approx(threshold, rel=1e-14)
    assert found.verdict == ("stable" if factor < 1 else "unstable")
    assert (found.growth_rate < 1) == (factor < 1)
    assert found.growth_rate == growth_rate(kernel, factor * threshold, 2, momentum=momentum)
    assert found.margin("exact") == pytest.approx(1 / factor - 1, rel=1e-12)
    assert found.residual < 1e-12
    assert found.gradient_norm < 1e-12
    assert found.trace == (pytest.approx(np.trace(problem.hessian(theta)), rel=1e-12), 0)
    assert found.sharpness.value == pytest.approx(kernel.largest, rel=1e-12)
    if not momentum:
        assert found.bounds == lr_bounds(kernel, 2)
        assert found.notes == ()


def test_with_momentum_every_listed_bound_is_one():
    generator = np.random.default_rng(0)
    for _ in range(40):
        n, momentum = int(generator.integers(2, 7)), generator.uniform(0, 0.95)
        inputs = generator.standard_normal((n, 8)) * generator.uniform(0.2, 2, n)[:, None]
        problem = eosim.LinearRegression(inputs, np.zeros(n))
        found = report(
            problem, np.zeros(8), 0.1, int(generator.integers(1, n + 1)), momentum=momentum
        )
        exact = found.bounds["exact"].value
        assert all(b.value >= exact * (1 - 1e-9) for b in found.bounds.values())


def test_at_the_threshold_the_verdict_is_marginal():
    problem, theta = interpolated()
    lr = critical_lr(tangent_kernel(problem, theta), 2)
    assert report(problem, theta, lr, 2).verdict == "marginal"


@pytest.mark.parametrize(
    ("batch_size", "binding"), [(1, "stochastic edge"), (6, "edge of stability")]
)
def test_the_smaller_of_two_limits_binds(batch_size, binding):
    problem, theta = interpolated()
    for momentum in (0.0, 0.5):
        assert report(problem, theta, 0.1, batch_size, momentum=momentum).binding == binding


def test_the_table_holds_every_bound_with_its_kind_and_side():
    problem, theta = interpolated()
    found = report(problem, theta, 0.1, 2)
    lines = str(found).splitlines()
    assert lines[0] == f"SGD at lr 0.1, batch size 2 (without_replacement): {found.verdict}"
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("  bound")) :]
    for name, bound in found.bounds.items():
        (row,) = [line.split() for line in table if line.split()[:1] == [name]]
        assert row[1:4] == [
            f"{bound.value:.6g}",
            bound.kind,
            "below" if bound.value > 0.1 else "above",
        ]
        assert row[4] == f"{100 * found.margin(name):+.1f}"
    full = report(problem, theta, 0.1, 6)
    assert "no limit" in str(full)


def test_a_residual_that_is_not_zero_is_said_in_words():
    problem, theta = network()
    found = report(problem, theta, 0.1, 4)
    said = str(found)
    assert "the residual is not zero" in said
    assert f"{measure.sharpness(problem, theta).value:.6g} of H" in said
    assert found.sharpness.value != pytest.approx(tangent_kernel(problem, theta).largest, rel=1e-3)


def test_products_alone_give_the_edge_and_say_what_is_missing():
    problem, theta = interpolated()
    bare = eosim.from_functions(problem.loss, problem.gradient, hvp=problem.hvp, dim=9)
    edge = 2 / measure.sharpness(problem, theta).value
    found = report(bare, theta, 0.5 * edge, 2)
    assert set(found.bounds) == {"edge"}
    assert found.bounds["edge"].value == pytest.approx(edge, rel=1e-12)
    assert (found.verdict, found.binding, found.growth_rate) == ("undecided", "unknown", None)
    assert "no residuals and Jacobian" in str(found)
    assert "they need the number of outputs" in str(found)
    assert report(bare, theta, 1.1 * edge, 2).verdict == "unstable"


def test_beyond_its_sizes_a_report_is_cheaper_and_says_so(monkeypatch):
    problem, theta = interpolated()
    full = report(problem, theta, 0.1, 2)
    monkeypatch.setattr(reporting, "EXACT_SIZE", 5)
    cheap = report(problem, theta, 0.1, 2)
    assert "6 residuals are more than 5" in str(cheap)
    assert cheap.growth_rate is None
    assert cheap.bounds == {k: b for k, b in full.bounds.items() if k != "exact"}
    monkeypatch.setattr(reporting, "KERNEL_SIZE", 5)
    for sampling in ("without_replacement", "with_replacement"):
        cheapest = report(problem, theta, 0.1, 2, sampling=sampling)
        expected = lr_bounds(tangent_kernel(problem, theta), 2, sampling=sampling)
        assert "estimated from products" in str(cheapest)
        assert set(cheapest.bounds) == {"edge", "trace", "generalised_trace"}
        for name, bound in cheapest.bounds.items():
            assert bound.value == pytest.approx(expected[name].value, rel=1e-9)
        stochastic = expected["trace"].value < expected["edge"].value
        assert cheapest.binding == ("stochastic edge" if stochastic else "edge of stability")
    momentum = report(problem, theta, 0.1, 2, momentum=0.5)
    assert set(momentum.bounds) == {"edge"}


def test_an_estimated_trace_states_its_error_and_decides_beyond_it_only(monkeypatch):
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((20, measure.DENSE_DIM + 10))
    problem = eosim.LinearRegression(inputs, np.zeros(20))
    monkeypatch.setattr(reporting, "KERNEL_SIZE", 10)
    theta = np.zeros(problem.dim)
    found = report(problem, theta, 0.001, 1)
    assert found.trace.standard_error > 0
    assert f"+- {found.trace.standard_error:.2g}" in str(found)
    assert "standard error" in found.notes[1]
    just_above = found.bounds["trace"].value * (1 + found.trace.standard_error / found.trace.value)
    assert report(problem, theta, just_above, 1).verdict == "undecided"
    assert report(problem, theta, 2 * just_above, 1).verdict == "unstable"


def test_wrong_arguments_of_a_report_are_refused_by_name():
    problem, theta = interpolated()
    with pytest.raises(ValueError, match="batch_size must be at most n_samples = 6"):
        report(problem, theta, 0.1, 7)
    with pytest.raises(ValueError, match="lr must be a real number"):
        report(problem, theta, 0.0, 1)
    with pytest.raises(ValueError, match="theta must have shape"):
        report(problem, np.zeros(3), 0.1, 1)
    with pytest.raises(ValueError, match="reshuffling"):
        report(problem, theta, 0.1, 1, sampling="reshuffling")
    flat = eosim.LinearRegression(np.zeros((3, 2)), np.ones(3))
    with pytest.raises(ValueError, match="Jacobian vanishes"):
        report(flat, np.zeros(2), 0.1, 1)
    with pytest.raises(ValueError, match="some curvature"):
        report(eosim.Quadratic(-np.eye(2)), np.zeros(2), 0.1, 1)
