"""DAL: a learning rate that keeps the drift as long as the step."""

import numpy as np
import pytest

import eosim
from eosim import DAL, Status
from tests.cases import SCHEMES, edge_network, perceptron, regression, symmetric

TILTED = eosim.Quadratic(np.diag([4.0, 1.0, 0.25]))
START = np.array([1.0, -2.0, 3.0])


def rates(path):
    """The learning rate of every step, from the clock."""
    return np.diff(path.t)


def speed(problem, theta):
    """|Hg| / |g|."""
    g = problem.gradient(theta)
    return np.linalg.norm(problem.hessian(theta) @ g) / np.linalg.norm(g)


# --- the rule -----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.25, 2.0])
def test_the_step_is_gradient_descent_at_the_adjusted_rate(p):
    problem, theta = edge_network()
    path = eosim.run(problem, DAL(p), theta, 5, record={})
    for k in range(5):
        rate = min(2 / speed(problem, theta) ** p, 5.0)
        theta = theta - rate * problem.gradient(theta)
        assert rates(path)[k] == pytest.approx(rate, rel=1e-12)
        np.testing.assert_allclose(path.theta[k + 1], theta, rtol=1e-9, atol=1e-12)


def test_exponent_zero_is_gradient_descent_at_rate_two():
    problem = eosim.Quadratic(np.diag([0.9, 0.3]))
    path = eosim.run(problem, DAL(0), [1.0, -1.0], 20)
    expected = eosim.run(problem, eosim.GradientDescent(2.0), [1.0, -1.0], 20)
    np.testing.assert_array_equal(path.theta, expected.theta)
    np.testing.assert_array_equal(rates(path), 2.0)


def test_the_defaults_are_exponent_one_and_a_cap_of_five():
    assert DAL() == DAL(1.0, 5.0, 0.0, "exact")
    assert repr(DAL(2)) == "DAL(p=2.0, cap=5.0, momentum=0.0, product='exact')"


@pytest.mark.parametrize("seed", range(5))
def test_with_exponent_one_the_drift_is_as_long_as_the_step(seed):
    generator = np.random.default_rng(seed)
    problem = perceptron(seed=seed)
    theta = generator.standard_normal(problem.dim)
    (rate,) = rates(eosim.run(problem, DAL(cap=1e9), theta, 1))
    g = problem.gradient(theta)
    drift = rate**2 / 2 * np.linalg.norm(problem.hvp(theta, g))
    assert drift == pytest.approx(rate * np.linalg.norm(g), rel=1e-12)


# --- convex quadratics --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_on_convex_quadratics_the_rate_lies_between_two_over_the_ends_of_the_spectrum(seed):
    generator = np.random.default_rng(seed)
    eigenvalues = generator.uniform(0.1, 10, 6)
    problem = eosim.Quadratic(symmetric(eigenvalues, seed))
    path = eosim.run(problem, DAL(cap=1e9), generator.standard_normal(6), 100)
    assert path.status is Status.COMPLETED
    assert (rates(path) >= 2 / eigenvalues.max() * (1 - 1e-12)).all()
    assert (rates(path) <= 2 / eigenvalues.min() * (1 + 1e-12)).all()
    # hence the sharpest component never shrinks
    _, vectors = np.linalg.eigh(problem.hessian(path.theta[0]))
    top = np.abs(path.theta @ vectors[:, -1])
    assert (np.diff(top) >= -1e-9 * top[:-1]).all()


def test_in_one_dimension_the_sign_flips_forever():
    path = eosim.run(eosim.Quadratic([[3.0]], [0.5]), DAL(), [1.5], 50)
    expected = 0.5 + (-1.0) ** np.arange(51)
    np.testing.assert_allclose(path.theta[:, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(rates(path), 2 / 3, rtol=1e-13)


def test_in_several_dimensions_it_ends_in_a_two_cycle_along_the_sharpest():
    path = eosim.run(TILTED, DAL(), START, 2000, record={})
    assert rates(path)[-1] * 4 == pytest.approx(2, abs=1e-6)
    last = path.theta[-1]
    assert abs(last[0]) > 0.1
    assert np.abs(last[1:]).max() < 1e-6 * abs(last[0])
    np.testing.assert_allclose(path.theta[-2], -last, atol=1e-6)
    np.testing.assert_allclose(path.theta[-3], last, atol=1e-6)


# p != 1: by comparison of lam_1^p with lam_1 and lam_1 + lam_d.
DIVERGENT = [(0.5, [4.0, 1.0, 0.25]), (0.9, [4.0, 1.0, 0.25]), (1.2, [0.8, 0.3, 0.05])]
ALIGNED = [(1.02, [4.0, 1.0, 0.25]), (0.98, [0.8, 0.3, 0.05])]
SELF_TUNED = [(1.25, [4.0, 1.0, 0.25]), (1.5, [4.0, 1.0, 0.25]), (0.5, [0.8, 0.3, 0.05])]


def case_of(p, spectrum):
    top, low = max(spectrum), min(spectrum)
    if top**p < top:
        return "diverges"
    return "aligned" if top**p < top + low else "self-tuned"


@pytest.mark.parametrize(("p", "spectrum"), DIVERGENT)
def test_an_exponent_that_gives_more_than_the_stable_rate_diverges(p, spectrum):
    assert case_of(p, spectrum) == "diverges"
    problem = eosim.Quadratic(np.diag(spectrum))
    path = eosim.run(problem, DAL(p, cap=1e9), START, 5000, record={})
    limit = 2 / max(spectrum) ** p
    assert rates(path)[-1] == pytest.approx(limit, rel=1e-6)
    assert limit > 2 / max(spectrum)
    assert path.status is Status.DIVERGED or np.linalg.norm(path.theta[-1]) > 1e6
    capped = eosim.run(problem, DAL(p, cap=0.9 * 2 / max(spectrum)), START, 5000, record={})
    assert capped.status is Status.COMPLETED
    assert np.linalg.norm(capped.theta[-1]) < 1e-6


@pytest.mark.parametrize(("p", "spectrum"), ALIGNED)
def test_an_exponent_just_beyond_converges_along_the_sharpest(p, spectrum):
    assert case_of(p, spectrum) == "aligned"
    problem = eosim.Quadratic(np.diag(spectrum))
    path = eosim.run(problem, DAL(p, cap=1e9), START, 1500, record={})
    assert np.linalg.norm(path.theta[-1]) < np.linalg.norm(START) * 1e-2
    assert rates(path)[-1] == pytest.approx(2 / max(spectrum) ** p, rel=1e-4)
    assert np.abs(path.theta[-1][1:]).max() < 1e-3 * abs(path.theta[-1][0])


@pytest.mark.parametrize(("p", "spectrum"), SELF_TUNED)
def test_an_exponent_far_beyond_tunes_itself_to_the_best_constant_rate(p, spectrum):
    assert case_of(p, spectrum) == "self-tuned"
    problem = eosim.Quadratic(np.diag(spectrum))
    path = eosim.run(problem, DAL(p, cap=1e9), START, 900, record={})
    best = 2 / (max(spectrum) + min(spectrum))
    assert rates(path)[-1] == pytest.approx(best, abs=1e-9 if max(spectrum) > 1 else 1e-6)
    if (p, max(spectrum)) == (1.25, 4.0):
        assert best == pytest.approx(0.470588235, abs=1e-9)


def test_far_beyond_the_rate_fluctuates_and_the_iterates_converge_all_the_same():
    path = eosim.run(TILTED, DAL(1.75, cap=1e9), START, 900, record={})
    assert np.linalg.norm(path.theta[-1]) < 1e-6
    late = rates(path)[400:500]
    assert late.max() - late.min() > 1e-3


def test_exponents_other_than_one_feel_the_scale_of_the_loss():
    for p, ratio in ((1.0, 1 / 10), (0.5, 1 / np.sqrt(10)), (2.0, 1 / 100)):
        first = rates(eosim.run(TILTED, DAL(p, cap=1e9), START, 1))[0]
        scaled = eosim.Quadratic(10 * np.diag([4.0, 1.0, 0.25]))
        assert rates(eosim.run(scaled, DAL(p, cap=1e9), START, 1))[0] / first == pytest.approx(
            ratio, rel=1e-12
        )


# --- the network --------------------------------------------------------------------------------


def test_on_the_network_exponent_one_stays_just_above_two_and_the_loss_falls():
    problem, theta = edge_network()
    path = eosim.run(problem, DAL(), theta, 600)
    sharpness = np.array([eosim.measure.sharpness(problem, x).value for x in path.theta[:-1]])
    z = rates(path) * sharpness
    assert (z >= 2 * (1 - 1e-9)).all()
    assert (z[50:] < 2.2).all()
    assert path["loss"][-1] < path["loss"][0] / 10


def test_on_the_network_an_exponent_below_one_explodes_below_the_cap():
    problem, theta = edge_network()
    path = eosim.run(problem, DAL(0.5), theta, 40)
    first = np.argmax(path["loss"] > 1e6)
    assert first == 22
    assert rates(path)[:first].max() < 5


def test_the_difference_form_is_close_on_the_network():
    problem, theta = edge_network()
    exact = rates(eosim.run(problem, DAL(), theta, 1))[0]
    path = eosim.run(problem, eosim.GradientDescent(0.1), theta, 50)
    errors = []
    for x in path.theta[::5]:
        by_product, by_difference = (
            rates(eosim.run(problem, DAL(cap=1e9, product=form), x, 1))[0]
            for form in ("exact", "difference")
        )
        errors.append(abs(by_difference / by_product - 1))
    assert 1e-5 < np.median(errors) < 1e-2
    # a displacement of norm 0.01, whatever the length of g
    g = problem.gradient(theta)
    shift = 0.01 / np.linalg.norm(g)
    image = (problem.gradient(theta + shift * g) - g) / shift
    error = np.linalg.norm(image - problem.hvp(theta, g)) / np.linalg.norm(problem.hvp(theta, g))
    assert error == pytest.approx(2e-3, rel=0.5)
    by_difference = rates(eosim.run(problem, DAL(product="difference"), theta, 1))[0]
    expected = 2 * np.linalg.norm(g) / np.linalg.norm(image)
    assert by_difference == pytest.approx(expected, rel=1e-12)
    assert by_difference != exact


def test_the_difference_form_is_exact_on_a_quadratic():
    for p in (1.0, 1.25):
        exact, by_difference = (
            eosim.run(TILTED, DAL(p, product=form), START, 10) for form in ("exact", "difference")
        )
        np.testing.assert_allclose(by_difference.theta, exact.theta, rtol=1e-9)


# --- cap, zeros, momentum -----------------------------------------------------------------------


def test_the_cap_is_the_largest_rate():
    problem = eosim.Quadratic(np.diag([0.3, 0.1]))
    path = eosim.run(problem, DAL(cap=4.0), [1.0, 1.0], 10)
    np.testing.assert_array_equal(rates(path), 4.0)
    np.testing.assert_allclose(rates(eosim.run(problem, DAL(), [1.0, 1.0], 10)), 5.0)


@pytest.mark.parametrize("product", ["exact", "difference"])
@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_without_curvature_along_the_gradient_the_rate_is_the_cap(p, product):
    slope = eosim.Polynomial({(1, 0): 1.0, (0, 2): 0.5})  # H g = 0 on the line y = 0
    path = eosim.run(slope, DAL(p, cap=3.0, product=product), [1.0, 0.0], 2)
    np.testing.assert_allclose(path.theta[:, 0], [1.0, -2.0, -5.0], rtol=1e-9)
    np.testing.assert_allclose(rates(path), 3.0)


@pytest.mark.parametrize("product", ["exact", "difference"])
def test_at_a_minimum_nothing_moves_and_the_clock_runs_at_the_cap(product):
    path = eosim.run(TILTED, DAL(product=product, momentum=0.5), np.zeros(3), 3)
    assert path.status is Status.COMPLETED
    assert not path.theta.any()
    np.testing.assert_allclose(rates(path), 5.0)


@pytest.mark.parametrize("size", [1e-150, 1e-170, 1e-200, 1e150])
def test_the_rate_does_not_depend_on_the_size_of_the_gradient(size):
    path = eosim.run(TILTED, DAL(), size * START, 1)
    assert rates(path)[0] == pytest.approx(2 / speed(TILTED, START), rel=1e-9)


@pytest.mark.parametrize("product", ["exact", "difference"])
@pytest.mark.parametrize("p", [2.0, 5.0])
def test_a_power_of_the_curvature_beyond_all_floats_is_a_rate_all_the_same(p, product):
    sharp, flat = eosim.Quadratic([[1e200]]), eosim.Quadratic([[1e-200]])
    path = eosim.run(sharp, DAL(p, product=product), [1.0], 3)
    assert path.status is Status.COMPLETED
    np.testing.assert_array_equal(rates(path), 0.0)
    np.testing.assert_array_equal(path.theta, 1.0)
    path = eosim.run(flat, DAL(p), [1.0], 3)
    np.testing.assert_array_equal(rates(path), 5.0)


def test_a_curvature_that_is_no_number_is_no_flat_direction():
    problem = eosim.from_functions(
        lambda x: x @ x / 2, lambda x: x, lambda x, v: v if x[0] == 2 else v * np.nan, dim=1, at=[2]
    )
    assert eosim.run(problem, DAL(), [2.0], 1, record={}).status is Status.COMPLETED
    assert eosim.run(problem, DAL(), [1.0], 3, record={}).status is Status.DIVERGED


def test_momentum_takes_the_adjusted_rate_and_keeps_its_coefficient():
    problem, theta = edge_network()
    rule = DAL(1.0, momentum=0.6)
    path = eosim.run(problem, rule, theta, 6, record={})
    velocity = 0
    for k in range(6):
        g = problem.gradient(theta)
        velocity = 0.6 * velocity + g
        rate = min(2 / speed(problem, theta), 5.0)
        theta = theta - rate * velocity
        assert rates(path)[k] == pytest.approx(rate, rel=1e-12)
        np.testing.assert_allclose(path.theta[k + 1], theta, rtol=1e-9, atol=1e-12)
    plain = eosim.run(problem, DAL(), path.theta[0], 6, record={})
    assert (plain.theta[2] != path.theta[2]).any()


# --- runs ---------------------------------------------------------------------------------------


def test_the_clock_accumulates_the_rates_and_records_see_them():
    problem, theta = edge_network()

    def rate(problem, theta, *, rule, state):
        return rule.step_size(state)

    path = eosim.run(problem, DAL(1.0), theta, 30, record={"rate": rate}, every=1)
    assert path["rate"][0] == 0
    np.testing.assert_allclose(path.t, np.cumsum(path["rate"]), rtol=1e-14)
    sparse = eosim.run(problem, DAL(1.0), theta, 30, record={"rate": rate}, every=10)
    np.testing.assert_array_equal(sparse.t, path.t[::10])
    np.testing.assert_array_equal(sparse["rate"], path["rate"][::10])


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("product", ["exact", "difference"])
def test_on_mini_batches_rate_and_step_are_of_the_same_batch(sampling, product):
    problem, size = perceptron(n_samples=9), 3
    theta = np.linspace(-1, 1, problem.dim)
    batches = []

    def batch(problem, theta, *, batch):
        batches.append(batch)
        return 0

    path = eosim.run(
        problem,
        DAL(1.0, cap=2.0, product=product),
        theta,
        12,
        batch_size=size,
        sampling=sampling,
        seed=1,
        record={"batch": batch},
    )
    for k, rows in enumerate(batches[1:]):
        rate, g, theta = 2.0, np.zeros(problem.dim), path.theta[k]
        if len(rows):
            weight = len(rows) / size if sampling == "bernoulli" else 1.0
            g = weight * problem.gradient(theta, rows)
            if product == "exact":
                image = weight * problem.hvp(theta, g, rows)
            else:
                shift = 0.01 / np.linalg.norm(g)
                image = (weight * problem.gradient(theta + shift * g, rows) - g) / shift
            rate = min(2 * np.linalg.norm(g) / np.linalg.norm(image), 2.0)
        assert path.t[k + 1] - path.t[k] == pytest.approx(rate, rel=1e-9)
        np.testing.assert_allclose(path.theta[k + 1], theta - rate * g, rtol=1e-10, atol=1e-13)


def test_bernoulli_draws_that_are_empty_change_nothing():
    problem, sizes = perceptron(n_samples=9), []

    def batch(problem, theta, *, batch):
        sizes.append(-1 if batch is None else len(batch))
        return 0

    path = eosim.run(
        problem,
        DAL(cap=0.5),
        np.linspace(-1, 1, problem.dim),
        30,
        batch_size=1,
        sampling="bernoulli",
        seed=2,
        record={"batch": batch},
    )
    empty = np.flatnonzero(np.array(sizes) == 0)
    assert len(empty) > 3
    np.testing.assert_array_equal(path.theta[empty], path.theta[empty - 1])


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize(
    "rule", [DAL(), DAL(1.25, momentum=0.5), DAL(product="difference")], ids=str
)
def test_a_resumed_run_has_the_same_bits(tmp_path, rule, batch_size):
    problem, theta = edge_network()
    options = {"batch_size": batch_size, "record": {"loss": eosim.measure.loss}}
    whole = eosim.run(problem, rule, theta, 20, seed=3, **options)
    half = eosim.run(problem, rule, theta, 7, seed=3, **options)
    rest = eosim.run(problem, rule, None, 13, state=half.final_state, **options)
    np.testing.assert_array_equal(rest.theta, whole.theta[7:])
    np.testing.assert_array_equal(rest.t, whole.t[7:])
    half.save(tmp_path / "half.npz")
    loaded = eosim.Trajectory.load(tmp_path / "half.npz")
    again = eosim.run(problem, rule, None, 13, state=loaded.final_state, **options)
    np.testing.assert_array_equal(again.theta, whole.theta[7:])
    np.testing.assert_array_equal(again.t, whole.t[7:])


def test_a_start_is_not_modified():
    theta = START.copy()
    theta.flags.writeable = False
    eosim.run(TILTED, DAL(momentum=0.5), theta, 5)
    np.testing.assert_array_equal(theta, START)


def test_a_users_rule_may_ask_for_local_derivatives_too():
    class Newton:
        lr = 1.0

        def init(self, theta):
            return ()

        def step(self, theta, state, gradient, local):
            curvature = gradient @ local.hvp(gradient) / (gradient @ gradient)
            np.testing.assert_array_equal(local.gradient(local.theta), gradient)
            return theta - gradient / curvature, ()

    path = eosim.run(eosim.Quadratic([[3.0]]), Newton(), [2.0], 1)
    np.testing.assert_allclose(path.theta[-1], [0.0], atol=1e-15)


# --- refusals -----------------------------------------------------------------------------------


def test_it_has_no_critical_sharpness():
    with pytest.raises(ValueError, match=r"linear rule, but DAL\.step asks for local derivatives"):
        eosim.stability.critical_sharpness(DAL())


def test_compare_wants_a_constant_rate():
    with pytest.raises((TypeError, ValueError), match="lr"):
        eosim.compare(TILTED, DAL(), START, 3)


def test_mini_batches_need_samples():
    with pytest.raises(TypeError, match="n_samples"):
        eosim.run(TILTED, DAL(), START, 3, batch_size=2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"p": -0.1}, ValueError, "DAL: p must be a real number in"),
        ({"p": np.nan}, ValueError, "p"),
        ({"p": np.inf}, ValueError, "p"),
        ({"p": "1"}, TypeError, "p"),
        ({"cap": 0.0}, ValueError, "DAL: cap"),
        ({"cap": -5}, ValueError, "cap"),
        ({"momentum": 1.0}, ValueError, "DAL: momentum"),
        ({"momentum": -0.1}, ValueError, "momentum"),
        ({"product": "finite"}, ValueError, "DAL: product must be one of 'exact', 'difference'"),
        ({"product": None}, ValueError, "product"),
    ],
)
def test_bad_parameters_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        DAL(**arguments)


def test_linear_regression_is_solved_by_a_self_tuned_rate():
    problem = regression(n_samples=30)
    values = np.linalg.eigvalsh(problem.hessian(np.zeros(4)))
    assert case_of(2.0, values) == "self-tuned"
    path = eosim.run(problem, DAL(2.0, cap=1.0), np.zeros(4), 400)
    best = np.linalg.lstsq(problem.inputs, problem.targets[:, 0])[0]
    np.testing.assert_allclose(path.theta[-1], best, atol=1e-8)
