"""Extremes: the ends of floating point, degenerate problems, users' callables that go wrong.

Each test says what the right answer is there; nothing may hang, warn or fail in the depths.
"""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eosim
from eosim import Status, catapult, measure, moments, problems, stability
from tests.cases import regression, symmetric

pytestmark = pytest.mark.timeout(20)

BOWL = eosim.Quadratic(np.diag([1.0, 2.0]))
GD = eosim.GradientDescent(0.1)
HUGE = 1e308
LINEAR_RULES = (
    eosim.GradientDescent,
    eosim.HeavyBall,
    eosim.Nesterov,
    eosim.EMAMomentum,
    eosim.QuasiHyperbolic,
    eosim.CascadedEMA,
    eosim.ParallelEMA,
)
ADAPTIVE_RULES = (
    eosim.AdaGrad,
    eosim.RMSProp,
    eosim.ScalarRMSProp,
    eosim.Adam,
    eosim.AdamW,
    eosim.NAdam,
    eosim.AMSGrad,
    eosim.Padam,
)
FLOW_KINDS = (
    eosim.GradientFlow,
    eosim.ModifiedFlow,
    eosim.PrincipalFlow,
    eosim.PrincipalSeries,
    eosim.ForwardDifferenceFlow,
    eosim.HeavyBallPrincipalFlow,
    eosim.EdgeFlow,
)
RANK_ONE = eosim.LinearRegression(np.outer(np.arange(1.0, 5.0), [1.0, 2.0]), np.zeros(4))
NOTHING = eosim.LinearRegression(np.zeros((4, 2)), np.zeros(4))
ONE_SAMPLE = eosim.LinearRegression([[2.0]], [1.0])


# --- the largest learning rate ------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*LINEAR_RULES, *ADAPTIVE_RULES])
def test_the_largest_rate_diverges_at_the_first_step(kind):
    path = eosim.run(BOWL, kind(HUGE), [1.0, 2.0], 5)
    assert path.status is Status.DIVERGED
    assert path.stop_step == 1
    np.testing.assert_array_equal(path.theta, [[1.0, 2.0]])


@pytest.mark.parametrize("kind", LINEAR_RULES)
def test_a_minimum_is_kept_at_the_largest_rate(kind):
    path = eosim.run(BOWL, kind(HUGE), [0.0, 0.0], 5)
    assert path.status is Status.COMPLETED
    assert not path.theta.any()


@pytest.mark.parametrize("kind", LINEAR_RULES)
@pytest.mark.parametrize(
    "lr",
    [
        1e-300,
        1e-150,
        1e150,
        1e306,
    ],
)
def test_thresholds_scale_with_any_rate(kind, lr):
    """critical_sharpness * lr does not depend on lr."""
    expected = stability.critical_sharpness(kind(1.0))
    scaled = stability.critical_sharpness(kind(lr)) * lr
    np.testing.assert_allclose(scaled, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", FLOW_KINDS)
def test_flows_of_the_largest_rate_say_what_is_wrong(kind):
    flow = kind(BOWL, lr=HUGE)
    if kind is eosim.GradientFlow:  # its field has no lr
        path = eosim.integrate(flow, [1.0, 2.0], [0, 1])
        np.testing.assert_allclose(path.theta[-1], np.exp([-1, -2]) * [1, 2], rtol=1e-8)
        return
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.field is not finite at theta0"):
        eosim.integrate(flow, [1.0, 2.0], [0, 1])


@pytest.mark.parametrize("kind", FLOW_KINDS)
def test_flows_of_a_tiny_rate_are_the_gradient_flow(kind):
    path = eosim.integrate(kind(BOWL, lr=1e-300), [1.0, 2.0], [0, 1])
    speed = 10 if kind is eosim.HeavyBallPrincipalFlow else 1  # 1 / (1 - momentum)
    assert path.status is Status.COMPLETED
    expected = np.exp(-speed * np.array([1.0, 2.0])) * [1, 2]
    np.testing.assert_allclose(path.theta[-1], expected, rtol=1e-7, atol=1e-12)


SOLVABLE = {"one sample": ONE_SAMPLE, "rank one": RANK_ONE, "regression": regression()}


@pytest.mark.parametrize("problem", SOLVABLE.values(), ids=SOLVABLE)
@pytest.mark.parametrize("lr", [1e155, HUGE])
def test_a_single_step_grows_infinitely_at_the_largest_rate(problem, lr):
    kernel = stability.tangent_kernel(problem, np.zeros(problem.dim))
    assert stability.noise_kernel_norm(kernel, lr, 1) == math.inf
    assert stability.one_step_rates(kernel, lr, 1).largest == math.inf


@pytest.mark.parametrize("problem", SOLVABLE.values(), ids=SOLVABLE)
@pytest.mark.parametrize("lr", [1e155, HUGE])
def test_growth_is_infinite_at_the_largest_rate(problem, lr):
    kernel = stability.tangent_kernel(problem, np.zeros(problem.dim))
    assert stability.growth_rate(kernel, lr, 1) == math.inf


@pytest.mark.parametrize(
    ("name", "lr"),
    [(name, lr) for name in SOLVABLE for lr in (1e15, 1e40)],
)
def test_growth_is_quadratic_in_large_rates(name, lr):
    """Where lr lambda_max is beyond 1e12, the identity of the step is below rounding."""
    problem = SOLVABLE[name]
    kernel = stability.tangent_kernel(problem, np.zeros(problem.dim))
    expected = stability.growth_rate(kernel, 1e12, 1) * (lr / 1e12) ** 2
    assert stability.growth_rate(kernel, lr, 1) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("problem", SOLVABLE.values(), ids=SOLVABLE)
def test_predictions_of_the_largest_rate_diverge(problem):
    kernel = stability.tangent_kernel(problem, np.zeros(problem.dim))
    path = eosim.predict(moments.Covariance(kernel, HUGE, 1), np.ones(problem.n_samples), 5)
    assert path.status is Status.DIVERGED
    assert path.stop_step == 1


# --- h * lambda exactly 1 and 2 -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "closed form", "flow"])
def test_at_one_a_step_reaches_the_minimum(kind):
    problem, times = eosim.Quadratic([[1.0]]), [0.0, 1.0, 2.0]
    flow = eosim.PrincipalFlow(problem, 1.0)
    theta = {
        "run": lambda: eosim.run(problem, eosim.GradientDescent(1.0), [1.0], 2).theta,
        "closed form": lambda: eosim.closed_form(flow, [1.0], times),
        "flow": lambda: eosim.integrate(flow, [1.0], times).theta,
    }[kind]()
    np.testing.assert_allclose(theta[:, 0], [1.0, 0.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("kind", ["run", "closed form", "flow"])
def test_at_two_a_step_changes_the_sign(kind):
    problem, times = eosim.Quadratic([[2.0]]), [0.0, 1.0, 2.0]
    flow = eosim.PrincipalFlow(problem, 1.0)
    theta = {
        "run": lambda: eosim.run(problem, eosim.GradientDescent(1.0), [1.0], 2).theta,
        "closed form": lambda: eosim.closed_form(flow, [1.0], times),
        "flow": lambda: eosim.integrate(flow, [1.0], times).theta,
    }[kind]()
    np.testing.assert_allclose(theta[:, 0], [1.0, -1.0, 1.0], atol=1e-9)


def test_at_two_the_loss_neither_grows_nor_shrinks_in_any_bit():
    path = eosim.run(eosim.Quadratic([[2.0]]), eosim.GradientDescent(1.0), [0.7], 1000)
    assert path.status is Status.COMPLETED
    np.testing.assert_array_equal(path["loss"], np.full(1001, path["loss"][0]))


def test_at_the_edge_every_flow_ends_with_a_status():
    for eigenvalue in (1.0, 2.0):
        for kind in FLOW_KINDS:
            flow = kind(eosim.Quadratic([[eigenvalue]]), lr=1.0)
            path = eosim.integrate(flow, [1.0], [0.0, 1.0])
            assert path.status is Status.COMPLETED, kind
            assert np.isfinite(path.theta).all()


# --- degenerate problems ------------------------------------------------------------------------


def test_the_whole_batch_is_no_batch_to_the_bit():
    for problem in (regression(), ONE_SAMPLE, regression(n_samples=1)):
        start = np.ones(problem.dim)
        for rule in (GD, eosim.HeavyBall(0.05), eosim.Adam(0.1)):
            full = eosim.run(problem, rule, start, 20)
            whole = eosim.run(problem, rule, start, 20, batch_size=problem.n_samples, seed=0)
            np.testing.assert_array_equal(whole.theta, full.theta)


@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement", "reshuffling"])
def test_one_sample_has_no_noise(sampling):
    path = eosim.run(ONE_SAMPLE, GD, [3.0], 10, batch_size=1, sampling=sampling, seed=0)
    np.testing.assert_array_equal(path.theta, eosim.run(ONE_SAMPLE, GD, [3.0], 10).theta)
    kernel = stability.tangent_kernel(ONE_SAMPLE, [0.5])
    assert stability.critical_lr(kernel, 1) == pytest.approx(0.5, rel=1e-14)  # 2 / 4
    assert stability.growth_rate(kernel, 0.1, 1) == pytest.approx(0.36, rel=1e-12)  # (1 - 0.4)^2
    assert stability.report(ONE_SAMPLE, [0.5], 0.1, 1).verdict == "stable"


@pytest.mark.parametrize("kind", FLOW_KINDS)
def test_nothing_moves_without_curvature(kind):
    flat = eosim.Quadratic(np.zeros((2, 2)))
    path = eosim.integrate(kind(flat, lr=1.0), [1.0, 2.0], [0, 1, 10])
    assert path.status is Status.COMPLETED
    np.testing.assert_array_equal(path.theta, [[1.0, 2.0]] * 3)


def test_nothing_moves_on_a_constant_loss():
    flat = eosim.Quadratic(np.zeros((2, 2)))
    for rule in (GD, eosim.HeavyBall(1e308), eosim.Adam(0.1), eosim.DAL()):
        np.testing.assert_array_equal(eosim.run(flat, rule, [1, 2], 3).theta, [[1.0, 2.0]] * 4)
    assert measure.sharpness(flat, np.ones(2)) == (0.0, 0.0, True)
    assert measure.spectrum_ends(flat, np.ones(2))[:2] == (0.0, 0.0)
    assert measure.hessian_trace(flat, np.ones(2)).value == 0.0
    assert measure.hessian_frobenius(flat, np.ones(2)).value == 0.0


def test_a_kernel_of_zero_has_no_threshold():
    kernel = stability.tangent_kernel(NOTHING, np.zeros(2))
    for kind in ("exact", "finite", "delocalised"):
        assert stability.critical_lr(kernel, 1, kind=kind) == math.inf
    assert stability.generalised_sharpness(kernel, 1) == 0.0
    assert stability.noise_kernel_norm(kernel, 0.1, 1) == 0.0
    for function in (
        lambda: stability.growth_rate(kernel, 0.1, 1),
        lambda: stability.lr_bounds(kernel, 1),
        lambda: stability.critical_batch_size(kernel),
        lambda: stability.alignment_band(kernel),
    ):
        with pytest.raises(ValueError, match="kernel must not be zero"):
            function()


def test_one_direction_of_many_has_the_threshold_of_that_direction():
    """Rank 1: J = u v^T, Theta = u u^T |v|^2 / n, and B = 1 adds the noise of 4 samples."""
    kernel = stability.tangent_kernel(RANK_ONE, np.zeros(2))
    u2 = np.arange(1.0, 5.0) ** 2
    norm = 5.0  # |v|^2
    # E|1 - lr |v|^2 u_i^2|^2 = 1 at the threshold: lr = 2 E[u^2] / (E[u^4] |v|^2)
    assert stability.critical_lr(kernel, 1) == pytest.approx(
        2 * u2.mean() / (u2**2).mean() / norm, rel=1e-12
    )
    assert stability.critical_lr(kernel, 4) == pytest.approx(2 / (norm * u2.mean()), rel=1e-12)


def test_an_indefinite_hessian_has_both_ends_and_escapes():
    saddle = eosim.Quadratic(symmetric([3.0, -2.0, 0.0]))
    ends = measure.spectrum_ends(saddle, np.zeros(3))
    np.testing.assert_allclose(ends[:2], [-2.0, 3.0], atol=1e-12)
    path = eosim.run(saddle, GD, np.ones(3), 2000)
    assert path.status is Status.DIVERGED
    # 1.2 per step along the escaping direction, from |theta| of about 1 to 1e30 (1 + 1)
    assert path.stop_step == pytest.approx(30 * math.log(10) / math.log(1.2), rel=0.05)
    flow = eosim.integrate(eosim.PrincipalFlow(saddle, 0.1), np.ones(3), [0.1, 0.2, 0.3])
    np.testing.assert_allclose(flow.theta, path.theta[1:4], rtol=1e-8)


def test_eigenvalues_over_twenty_decades_move_each_at_its_rate():
    eigenvalues = 10.0 ** -np.arange(0, 21, 4)
    problem = eosim.Quadratic(np.diag(eigenvalues))
    start = np.ones(6)
    path = eosim.run(problem, eosim.GradientDescent(1.5), start, 50)
    steps = np.arange(51)[:, None]
    np.testing.assert_allclose(
        path.theta, (1 - 1.5 * eigenvalues) ** steps, rtol=1e-12, atol=1e-300
    )
    flow = eosim.integrate(eosim.GradientFlow(problem), start, [0.0, 5.0])
    np.testing.assert_allclose(flow.theta[-1], np.exp(-5 * eigenvalues), rtol=1e-8)
    assert measure.sharpness(problem, start).value == pytest.approx(1.0, rel=1e-12)


def test_thresholds_of_twenty_decades_are_those_of_the_largest():
    problem = eosim.LinearRegression(np.diag(10.0 ** -np.arange(0, 11, 2)), np.zeros(6))
    kernel = stability.tangent_kernel(problem, np.zeros(6))
    # orthogonal rows: each sample alone, 2 / |x_i|^2, and with all samples 2 n / |x_i|^2
    assert stability.critical_lr(kernel, 1) == pytest.approx(2.0, rel=1e-9)
    assert stability.critical_lr(kernel, 6) == pytest.approx(12.0, rel=1e-9)
    np.testing.assert_allclose(
        measure.ntk_spectrum(problem, np.zeros(6)), 10.0 ** -np.arange(0, 21, 4) / 6, rtol=1e-12
    )


def test_residuals_of_1e_minus_300_shrink_as_any_others():
    problem = eosim.LinearRegression(np.eye(3), np.zeros(3))
    large = eosim.run(problem, GD, np.ones(3), 20)
    small = eosim.run(problem, GD, 1e-300 * np.ones(3), 20)
    np.testing.assert_allclose(small.theta, 1e-300 * large.theta, rtol=1e-13)
    assert small.status is Status.COMPLETED
    assert not small["loss"].any()  # 1e-600 is 0, and no error
    kernel = stability.tangent_kernel(problem, np.zeros(3))
    path = eosim.predict(moments.Covariance(kernel, 0.1, 1), 1e-300 * np.ones(3), 5)
    assert path.status is Status.COMPLETED
    flow = eosim.integrate(eosim.GradientFlow(problem), 1e-300 * np.ones(3), [0.0, 1.0])
    assert flow.status is Status.COMPLETED


# --- users' callables ---------------------------------------------------------------------------


class Half:
    """|theta|^2 / 2, whose gradient is exchanged for another one after some calls."""

    dim = 2
    analytic = False

    def __init__(self, late, after):
        self.late, self.left = late, after

    def loss(self, theta):
        return theta @ theta / 2

    def gradient(self, theta):
        self.left -= 1
        return 1.0 * theta if self.left >= 0 else self.late(theta)

    def hvp(self, theta, v):
        return v

    def hessian(self, theta):
        return np.eye(2)


class Changing:
    """Gradient descent, whose step is exchanged for another one after two calls."""

    lr = 0.1

    def __init__(self, late):
        self.late, self.left = late, 2

    def init(self, theta):
        return ()

    def step(self, theta, state, gradient):
        self.left -= 1
        good = theta - 0.1 * gradient
        return (good, state) if self.left >= 0 else self.late(good, state)


def doubled_in_place(theta):
    theta *= 2
    return theta.copy()


def failing(theta):
    raise RuntimeError("out of memory in the user's code")


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(lambda x: np.ones(3), id="three"),
        pytest.param(lambda x: np.ones(1), id="one"),
        pytest.param(lambda x: 1.0, id="number"),
        pytest.param(lambda x: np.ones((2, 2)), id="matrix"),
    ],
)
@pytest.mark.parametrize("continuous", [False, True])
def test_a_gradient_that_changes_its_shape_is_named(late, continuous):
    problem = Half(late, 5)

    def march():
        if continuous:
            return eosim.integrate(eosim.GradientFlow(problem), [1.0, 2.0], [0, 1])
        return eosim.run(problem, GD, [1.0, 2.0], 10)

    with pytest.raises(ValueError, match=r"(gradient|field) must return shape \(2,\), got"):
        march()


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(lambda theta, state: (np.ones(1), state), id="one"),
        pytest.param(lambda theta, state: (np.ones(3), state), id="three"),
        pytest.param(lambda theta, state: theta, id="no state"),
        pytest.param(lambda theta, state: (1j * theta, state), id="complex"),
    ],
)
def test_a_step_that_changes_what_it_returns_is_named(late):
    with pytest.raises((TypeError, ValueError), match=r"Changing\.step must return"):
        eosim.run(BOWL, Changing(late), [1.0, 2.0], 6)


@pytest.mark.parametrize("after", [0, 3])
def test_single_precision_of_the_user_is_taken_as_it_is(after):
    path = eosim.run(Half(lambda x: x.astype(np.float32), after), GD, [1.0, 2.0], 6)
    assert path.theta.dtype == float
    np.testing.assert_allclose(path.theta[-1], 0.9**6 * np.array([1.0, 2.0]), rtol=1e-6)


def test_a_gradient_that_changes_its_argument_is_named():
    with pytest.raises(ValueError, match=r"Half\.gradient changes its argument"):
        eosim.run(Half(doubled_in_place, 0), GD, [1.0, 2.0], 6)


@pytest.mark.parametrize("continuous", [False, True])
def test_a_measurement_cannot_change_the_path(continuous):
    def march(**options):
        if continuous:
            flow = eosim.GradientFlow(BOWL)
            return eosim.integrate(flow, [1.0, 2.0], [0.0, 0.1, 0.2], **options)
        return eosim.run(BOWL, GD, [1.0, 2.0], 3, **options)

    expected = march().theta
    try:
        path = march(record={"x": lambda problem, theta: doubled_in_place(theta)})
    except ValueError as error:
        assert "record['x']" in str(error)  # noqa: PT017 - either is right
    else:
        np.testing.assert_array_equal(path.theta, expected)


def test_a_measurement_that_prints_changes_nothing(capsys):
    def loud(problem, theta):
        print("theta =", theta)
        return theta[0]

    path = eosim.run(BOWL, GD, [1.0, 2.0], 3, record={"x": loud})
    assert capsys.readouterr().out.count("theta =") == 4
    np.testing.assert_array_equal(path["x"], path.theta[:, 0])


def test_what_a_user_raises_arrives_unchanged():
    record = {"x": lambda problem, theta: failing(theta) if theta[0] < 0.85 else 1.0}
    for function in (
        lambda: eosim.run(Half(failing, 3), GD, [1.0, 2.0], 6),
        lambda: eosim.run(BOWL, GD, [1.0, 2.0], 6, record=record),
        lambda: eosim.integrate(eosim.GradientFlow(Half(failing, 9)), [1.0, 2.0], [0, 1]),
        lambda: eosim.integrate(eosim.GradientFlow(BOWL), [1, 2], [0, 1], record=record),
        lambda: eosim.compare(Half(failing, 30), GD, [1, 2], 4),
        lambda: eosim.run_ensemble(
            Half(failing, 9), GD, [1, 2], 20, batch_sizes=None, n_replicas=2, seed=0
        ),
        lambda: catapult.phase_boundary(failing, 3.0, 5.0),
    ):
        with pytest.raises(RuntimeError, match="out of memory in the user's code"):
            function()


def test_a_gradient_that_turns_nan_is_a_divergence():
    path = eosim.run(Half(lambda x: math.nan * x, 3), GD, [1.0, 2.0], 6)
    assert (path.status, path.stop_step) == (Status.DIVERGED, 4)
    path = eosim.integrate(eosim.GradientFlow(Half(lambda x: math.nan * x, 9)), [1, 2], [0, 1])
    assert path.status is Status.DIVERGED


def test_functions_that_are_not_reproducible_are_named():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="gradient returns different values"):
        eosim.from_functions(
            lambda x: x @ x / 2, lambda x: x + 1e-9 * generator.standard_normal(2), dim=2
        )


# --- threads and processes ----------------------------------------------------------------------


def everything():
    """One of each, through BLAS, the solver and compiled kernels."""
    problem = regression(n_samples=30, n_features=5)
    run = eosim.run(problem, GD, np.ones(5), 200, batch_size=3, seed=1)
    flow = eosim.integrate(eosim.PrincipalFlow(problem, 0.1), np.ones(5), [0.0, 1.0])
    phases = catapult.phase_diagram(np.linspace(0.5, 4.5, 40), 0.01, max_steps=500)
    return [run.theta, flow.theta, phases.label, phases.final_a]


@pytest.mark.timeout(60)  # compiles
def test_eight_threads_find_the_serial_answer():
    expected = everything()
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda _: everything(), range(16)):
            for one, other in zip(answer, expected, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_after_import_and_use_works():
    program = """
import os, warnings
import numpy as np, eosim
from eosim import catapult
def answer():
    path = eosim.run(eosim.Quadratic(np.diag([1.0, 2.0])), eosim.GradientDescent(0.1), [1, 2], 50)
    return path.theta[-1].tobytes() + catapult.phase_diagram([1.0, 3.0], 0.01).final_a.tobytes()
expected = answer()
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside the threads of a library
child = os.fork()
if child == 0:
    os._exit(0 if answer() == expected else 3)
_, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=55, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


# --- any numbers at all -------------------------------------------------------------------------

decades = st.floats(-12, 12).map(lambda power: 10.0**power)
spectra = st.lists(
    st.one_of(st.just(0.0), decades, decades.map(lambda x: -x)), min_size=1, max_size=5
)
rates = st.floats(-300, 308).map(lambda power: 10.0**power)


@given(spectra, rates, st.integers(0, 40))
def test_a_run_on_any_spectrum_has_the_status_of_the_scalar_recursions(spectrum, lr, n_steps):
    """Mode i is multiplied by 1 - lr lambda_i: the slow loop says when the bound is passed."""
    start = np.linspace(1.0, 2.0, len(spectrum))
    path = eosim.run(eosim.Quadratic(np.diag(spectrum)), eosim.GradientDescent(lr), start, n_steps)
    bound, stop = 1e30 * (1 + start.max()), None
    theta = [float(x) for x in start]
    for step in range(1, n_steps + 1):
        theta = [x - lr * (eigenvalue * x) for x, eigenvalue in zip(theta, spectrum, strict=True)]
        if not all(abs(x) <= bound for x in theta):
            stop = step
            break
    assert path.stop_step == stop
    assert path.status is (Status.COMPLETED if stop is None else Status.DIVERGED)
    if stop is None:
        np.testing.assert_allclose(path.theta[-1], theta, rtol=1e-12)
    assert np.isfinite(path.theta).all()
    assert np.isfinite(path["loss"]).all() or np.abs(path.theta).max() > 1e140


@settings(max_examples=20)
@given(
    st.lists(st.floats(-3, 3).map(lambda power: 10.0**power), min_size=1, max_size=4),
    st.floats(-4, 2).map(lambda power: 10.0**power),
)
def test_a_flow_on_any_spectrum_is_its_closed_form_or_says_why_not(spectrum, time):
    problem = eosim.Quadratic(np.diag(spectrum))
    flow, start = eosim.GradientFlow(problem), np.ones(len(spectrum))
    path = eosim.integrate(flow, start, [time], max_evaluations=3000)
    assert path.status in (Status.COMPLETED, Status.BUDGET_SPENT, Status.STALLED)
    assert path.message
    if path.status is Status.COMPLETED:
        exact = eosim.closed_form(flow, start, [time])
        np.testing.assert_allclose(path.theta, exact, rtol=1e-6, atol=1e-9)
    else:
        assert time * max(spectrum) > 100  # only stiffness spends that much


@settings(max_examples=30)
@given(
    st.integers(1, 5).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(-4, 4), min_size=n, max_size=n), st.integers(1, n), st.just(n)
        )
    ),
    st.floats(-30, 15),
    st.sampled_from(["without_replacement", "with_replacement", "bernoulli"]),
)
def test_any_kernel_grows_exactly_beyond_its_threshold(sizes, power, sampling):
    powers, batch_size, n = sizes
    inputs = 10.0 ** np.array(powers)[:, None] * np.random.default_rng(n).standard_normal((n, 2))
    kernel = stability.tangent_kernel(eosim.LinearRegression(inputs, np.zeros(n)), np.zeros(2))
    edge = stability.critical_lr(kernel, batch_size, sampling=sampling)
    assert 0 < edge < math.inf
    lr = 10.0**power
    rate = stability.growth_rate(kernel, lr, batch_size, sampling=sampling)
    assert rate >= 0
    if lr > edge * (1 + 1e-6):
        assert rate > 1
    elif lr < edge * (1 - 1e-6):
        assert rate <= 1


@settings(max_examples=25)
@given(
    st.floats(-6, 3).map(lambda power: 10.0**power),
    st.integers(1, 6),
    st.sampled_from(["without_replacement", "with_replacement", "bernoulli", "reshuffling"]),
    st.integers(0, 2**64),
)
def test_any_batch_and_rate_give_a_path_or_a_divergence(lr, batch_size, sampling, seed):
    problem = regression(n_samples=6, n_features=2)
    path = eosim.run(
        problem,
        eosim.HeavyBall(lr),
        np.ones(2),
        60,
        batch_size=batch_size,
        sampling=sampling,
        seed=seed,
    )
    assert path.status in (Status.COMPLETED, Status.DIVERGED)
    assert (path.stop_step is None) == (path.status is Status.COMPLETED)
    assert len(path.theta) == (61 if path.stop_step is None else path.stop_step)
    assert np.isfinite(path.theta).all()


@settings(max_examples=25)
@given(st.floats(1e-9, 1e3), st.floats(0.0, 1e3), st.floats(-1e3, 1e3))
def test_any_catapult_has_a_phase(imbalance, w, label):
    # a = u^2 + v^2 is at least twice the size of epsilon + Y = u v
    a = 2 * abs(math.sqrt(w) + label) * (1 + 1e-9) + imbalance
    diagram = catapult.phase_diagram(a, w, label, max_steps=300)
    assert catapult.Phase(int(diagram.phase)) in catapult.Phase


def test_wide_problems_of_no_residual_are_their_own_minimum():
    found = problems.interpolating_minimum(NOTHING, np.ones(2))
    assert found.converged
    np.testing.assert_array_equal(found.theta, np.ones(2))
