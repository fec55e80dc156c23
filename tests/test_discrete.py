"""Discrete runs: the clock, the records, resuming, seeds and divergence."""

import math
from typing import NamedTuple

import numpy as np
import pytest

import eosim
from eosim import Status
from eosim.discrete import DIVERGENCE_FACTOR
from tests import naive
from tests.cases import FINITE_SUMS, PROBLEMS, RULES, SCHEMES, regression, symmetric

GD = eosim.GradientDescent(0.1)


def same_bits(first: eosim.Trajectory, second: eosim.Trajectory) -> bool:
    return (
        np.array_equal(first.t, second.t)
        and np.array_equal(first.step, second.step)
        and np.array_equal(first.theta, second.theta)
        and first.records.keys() == second.records.keys()
        and all(np.array_equal(first.records[key], second.records[key]) for key in first.records)
        and first.status is second.status
    )


# --- the path -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("problem", "theta"), PROBLEMS)
def test_a_run_of_gradient_descent_is_the_loop(problem, theta):
    rule = eosim.GradientDescent(1e-3)
    path = eosim.run(problem, rule, theta, 25)
    np.testing.assert_array_equal(path.theta[0], theta)
    expected = naive.gradient_descent(problem.gradient, theta, 25, 1e-3)
    np.testing.assert_array_equal(path.theta, expected)


@pytest.mark.parametrize("rule", RULES)
def test_a_run_makes_the_steps_of_its_rule(rule):
    problem, theta = eosim.Rosenbrock(1.0), np.array([0.2, -0.4])
    path = eosim.run(problem, rule, theta, 30)
    state = rule.init(theta)
    for step in range(31):
        np.testing.assert_array_equal(path.theta[step], theta)
        theta, state = rule.step(theta, state, problem.gradient(theta))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_mini_batch_run_is_the_loop_over_its_batches(scheme):
    problem, theta = regression(), np.ones(4)
    path = eosim.run(problem, GD, theta, 30, batch_size=5, sampling=scheme, seed=3)
    key = path.final_state.stream
    for step in range(30):
        np.testing.assert_allclose(path.theta[step], theta, rtol=1e-12)
        gradient = np.zeros(4)
        batch = naive.batch(scheme, key, step, 12, 5)
        size = 5 if scheme == "bernoulli" else len(batch)  # an epoch's last batch may be short
        for i in batch:
            gradient += problem.gradient(theta, np.array([i])) / size
        theta = theta - 0.1 * gradient


@pytest.mark.parametrize(("problem", "theta"), FINITE_SUMS)
def test_a_batch_of_all_samples_without_replacement_is_the_full_batch_bit_for_bit(problem, theta):
    full = eosim.run(problem, GD, theta, 20)
    batch = eosim.run(problem, GD, theta, 20, batch_size=problem.n_samples, seed=5)
    assert same_bits(full, batch)


def test_zero_steps_keep_the_start():
    path = eosim.run(eosim.Rosenbrock(), GD, [3.0, 4.0], 0)
    assert path.status is Status.COMPLETED
    np.testing.assert_array_equal(path.theta, [[3.0, 4.0]])
    np.testing.assert_array_equal(path.t, [0.0])
    assert path.final_state.step == 0


# --- the clock ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_time_is_the_number_of_steps_times_lr_without_accumulated_rounding(rule):
    path = eosim.run(eosim.Cosine(), rule, [0.1], 1000)
    np.testing.assert_array_equal(path.t, np.arange(1001) * rule.lr)
    np.testing.assert_array_equal(path.step, np.arange(1001))


class Decaying:
    """Gradient descent at the rate 1/k: a rule with a step size of its own."""

    def init(self, theta):
        return (0,)

    def step(self, theta, state, gradient):
        count = state[0] + 1
        return theta - gradient / count, (count,)

    def step_size(self, state):
        return 1 / state[0]


def test_time_accumulates_the_step_size_of_the_rule():
    path = eosim.run(eosim.Quadratic([[0.5]]), Decaying(), [1.0], 6)
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, 7))])
    np.testing.assert_allclose(path.t, harmonic, rtol=1e-14)


# --- records ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_steps", "every"), [(10, 1), (10, 3), (9, 3), (2, 5), (0, 4)])
def test_records_are_kept_every_so_often_and_at_both_ends(n_steps, every):
    path = eosim.run(eosim.Rosenbrock(1.0), GD, [0.2, 0.3], n_steps, every=every)
    expected = sorted({*range(0, n_steps + 1, every), n_steps})
    np.testing.assert_array_equal(path.step, expected)
    assert len(path) == len(path["loss"]) == len(path.theta) == len(expected)
    dense = eosim.run(eosim.Rosenbrock(1.0), GD, [0.2, 0.3], n_steps)
    np.testing.assert_array_equal(path.theta, dense.theta[expected])


def test_theta_is_left_out_on_request():
    path = eosim.run(eosim.Rosenbrock(1.0), GD, [0.2, 0.3], 5, keep_theta=False)
    assert path.theta is None
    assert len(path["loss"]) == 6
    assert path.final_state.theta.shape == (2,)


class Pair(NamedTuple):
    value: float
    square: float


def test_a_named_tuple_is_stored_by_field():
    def pair(problem, theta):
        return Pair(theta[0], theta[0] ** 2)

    path = eosim.run(eosim.Cosine(), GD, [0.5], 4, record={"pair": pair})
    np.testing.assert_array_equal(path["pair.value"], path.theta[:, 0])
    np.testing.assert_array_equal(path["pair.square"], path.theta[:, 0] ** 2)
    np.testing.assert_array_equal(path["pair"], path["pair.value"])


def test_measurements_may_return_arrays_and_ask_for_rule_state_and_batch_by_name():
    def everything(problem, theta, *, rule, state, batch):
        assert rule is momentum
        assert len(state) == 1
        return np.concatenate([theta, state[0], [-1 if batch is None else len(batch)]])

    momentum = eosim.HeavyBall(0.1, 0.5)
    path = eosim.run(
        regression(), momentum, np.ones(4), 6, batch_size=5, seed=0, record={"all": everything}
    )
    np.testing.assert_array_equal(path["all"][:, :4], path.theta)
    np.testing.assert_array_equal(path["all"][:, -1], [-1, 5, 5, 5, 5, 5, 5])
    velocity = path["all"][:, 4:8]
    np.testing.assert_allclose(np.diff(path.theta, axis=0), -0.1 * velocity[1:], rtol=1e-12)


def test_a_keyword_with_a_default_is_the_users_own():
    def scaled(problem, theta, *, factor=3.0):
        return factor * theta[0]

    path = eosim.run(eosim.Cosine(), GD, [0.5], 2, record={"scaled": scaled})
    np.testing.assert_array_equal(path["scaled"], 3 * path.theta[:, 0])


def test_an_empty_record_is_allowed_and_a_callable_object_may_remember():
    class Count:
        def __init__(self):
            self.calls = 0

        def __call__(self, problem, theta):
            self.calls += 1
            return self.calls

    assert eosim.run(eosim.Cosine(), GD, [0.5], 2, record={}).records == {}
    path = eosim.run(eosim.Cosine(), GD, [0.5], 6, record={"count": Count()}, every=2)
    np.testing.assert_array_equal(path["count"], [1, 2, 3, 4])


def test_the_recorded_batch_is_that_of_the_update_that_led_here():
    problem = regression()
    path = eosim.run(
        problem,
        GD,
        np.ones(4),
        5,
        batch_size=3,
        seed=2,
        record={"batch": lambda p, th, *, batch: np.full(3, -1) if batch is None else batch},
    )
    for step in range(1, 6):
        update = path.theta[step] - path.theta[step - 1]
        gradient = problem.gradient(path.theta[step - 1], path["batch"][step])
        np.testing.assert_allclose(update, -0.1 * gradient, rtol=1e-12)


# --- resuming -----------------------------------------------------------------------------------

_WAYS = [None, *SCHEMES]


@pytest.mark.parametrize("scheme", _WAYS)
@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(scheme, through_a_file, tmp_path):
    problem, rule = regression(), eosim.HeavyBall(0.1 / 3, 0.7)
    options = {} if scheme is None else {"batch_size": 5, "sampling": scheme}
    seed = {} if scheme is None else {"seed": 11}
    whole = eosim.run(problem, rule, np.ones(4), 50, **options, **seed)
    path, pieces = None, []
    for n_steps in (7, 1, 0, 42):
        start = {} if path is None else {"state": path.final_state}
        theta0 = np.ones(4) if path is None else None
        path = eosim.run(
            problem, rule, theta0, n_steps, **options, **start, **(seed if path is None else {})
        )
        pieces.append(path)
        if through_a_file:
            path.save(tmp_path / "path.npz")
            path = eosim.Trajectory.load(tmp_path / "path.npz")
    for name in ("t", "step", "theta", "loss"):
        joined = np.concatenate([pieces[0][name], *(piece[name][1:] for piece in pieces[1:])])
        np.testing.assert_array_equal(joined, whole[name])
    assert path.final_state.t == whole.final_state.t
    np.testing.assert_array_equal(path.final_state.theta, whole.final_state.theta)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_resumes(rule):
    problem = eosim.Rosenbrock(1.0)
    whole = eosim.run(problem, rule, [0.2, -0.4], 20)
    half = eosim.run(problem, rule, [0.2, -0.4], 9)
    rest = eosim.run(problem, rule, None, 11, state=half.final_state)
    np.testing.assert_array_equal(rest.theta, whole.theta[9:])
    np.testing.assert_array_equal(rest.t, whole.t[9:])


def test_a_rule_with_its_own_step_size_resumes_on_the_same_clock():
    problem, rule = eosim.Quadratic([[0.5]]), Decaying()
    whole = eosim.run(problem, rule, [1.0], 20)
    half = eosim.run(problem, rule, [1.0], 9)
    rest = eosim.run(problem, rule, None, 11, state=half.final_state)
    np.testing.assert_array_equal(rest.t, whole.t[9:])
    np.testing.assert_array_equal(rest.theta, whole.theta[9:])


def test_a_resumed_run_may_change_its_rate_and_time_goes_on():
    problem = eosim.Quadratic([[1.0]])
    first = eosim.run(problem, eosim.GradientDescent(0.1), [1.0], 10)
    second = eosim.run(problem, eosim.GradientDescent(0.5), None, 4, state=first.final_state)
    np.testing.assert_allclose(second.t, 1.0 + 0.5 * np.arange(5), rtol=1e-14)
    np.testing.assert_array_equal(second.step, np.arange(10, 15))


def test_resuming_twice_from_one_state_gives_the_same_run_twice():
    problem, rule = regression(), eosim.HeavyBall(0.1, 0.7)
    state = eosim.run(problem, rule, np.ones(4), 5, batch_size=3, seed=0).final_state
    runs = [eosim.run(problem, rule, None, 9, batch_size=3, state=state) for _ in range(2)]
    assert same_bits(*runs)


# --- seeds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(scheme):
    def path(seed):
        return eosim.run(regression(), GD, np.ones(4), 20, batch_size=5, sampling=scheme, seed=seed)

    assert same_bits(path(3), path(3))
    assert not same_bits(path(3), path(4))
    assert same_bits(path(3), path(np.random.SeedSequence(3, spawn_key=(0,))))
    assert not same_bits(path(3), path(np.random.SeedSequence(3, spawn_key=(1,))))
    assert same_bits(path(np.random.default_rng(9)), path(np.random.default_rng(9)))


def test_the_seed_in_the_settings_repeats_a_run_that_was_given_none():
    first = eosim.run(regression(), GD, np.ones(4), 20, batch_size=5)
    seed = np.random.SeedSequence(**first.settings["seed"])
    assert same_bits(first, eosim.run(regression(), GD, np.ones(4), 20, batch_size=5, seed=seed))
    other = eosim.run(regression(), GD, np.ones(4), 20, batch_size=5)
    assert not same_bits(first, other)


def test_a_full_batch_run_needs_no_seed_and_ignores_the_one_it_gets():
    first = eosim.run(regression(), GD, np.ones(4), 20)
    assert first.settings["seed"] is None
    assert same_bits(first, eosim.run(regression(), GD, np.ones(4), 20, seed=3))


def test_the_settings_name_what_is_needed_to_repeat_the_run():
    path = eosim.run(
        regression(), GD, np.ones(4), 20, batch_size=5, sampling="bernoulli", seed=3, every=2
    )
    assert path.settings["rule"] == "GradientDescent(lr=0.1)"
    assert path.settings["problem"] == "LinearRegression"
    assert (path.settings["n_steps"], path.settings["every"]) == (20, 2)
    assert (path.settings["batch_size"], path.settings["sampling"]) == (5, "bernoulli")
    assert path.settings["seed"] == {"entropy": 3, "spawn_key": [0]}
    assert {"eosim", "numpy", "python"} <= path.settings["versions"].keys()


# --- how a run ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("z", [-1.0, 2.5, 3.0, 17.0, 1e20])
@pytest.mark.parametrize("start", [1e-6, 1.0, 1e8])
def test_divergence_is_noticed_at_the_step_that_the_multiplier_predicts(z, start):
    path = eosim.run(eosim.Quadratic([[z]]), eosim.GradientDescent(1.0), [start], 10_000)
    decades = math.log(DIVERGENCE_FACTOR * (1 + start) / start)
    expected = math.ceil(decades / math.log(abs(1 - z)))
    assert path.status is Status.DIVERGED
    assert abs(path.stop_step - expected) <= 1
    assert path.step[-1] == path.stop_step - 1
    assert np.isfinite(path.theta).all()
    assert str(path.stop_step) in path.message


def test_a_start_of_any_size_diverges_on_time():
    path = eosim.run(eosim.Quadratic([[3.0]]), eosim.GradientDescent(1.0), [1e140], 10_000)
    assert path.status is Status.DIVERGED
    assert abs(path.stop_step - math.ceil(30 * math.log2(10))) <= 1


def test_a_state_that_overflows_within_one_step_is_divergence_at_that_step():
    problem = eosim.Polynomial({(8,): 1.0})
    path = eosim.run(problem, eosim.GradientDescent(1.0), [3.0], 100)
    theta, step = 3.0, 0
    with np.errstate(over="ignore", invalid="ignore"):
        while abs(theta) <= DIVERGENCE_FACTOR * 4:
            theta, step = theta - 8 * np.float64(theta) ** 7, step + 1
    assert path.status is Status.DIVERGED
    assert path.stop_step == step
    assert np.isfinite(path["loss"]).all()


def test_a_diverged_run_is_recorded_to_its_last_good_state_whatever_every_is():
    problem, rule = eosim.Quadratic([[3.0]]), eosim.GradientDescent(1.0)
    path = eosim.run(problem, rule, [1.0], 1000, every=7)
    assert path.status is Status.DIVERGED
    assert path.step[-1] == path.stop_step - 1
    assert path.final_state.step == path.stop_step - 1
    np.testing.assert_array_equal(path.final_state.theta, path.theta[-1])


def test_growth_that_stays_within_the_bound_is_completed():
    path = eosim.run(eosim.Quadratic([[3.0]]), eosim.GradientDescent(1.0), [1.0], 90)
    assert path.status is Status.COMPLETED
    assert abs(path.theta[-1, 0]) == 2.0**90
    assert path.stop_step is None


def test_a_gradient_that_turns_nan_later_is_divergence():
    problem = eosim.from_functions(
        lambda x: float(np.sum(x**2) / 2),
        lambda x: np.where(np.abs(x) < 0.5, np.nan, 1) * x,
        dim=1,
        at=[2.0],
    )
    path = eosim.run(problem, eosim.GradientDescent(0.5), [1.0], 10)
    assert (path.status, path.stop_step) == (Status.DIVERGED, 3)
    np.testing.assert_array_equal(path.theta[:, 0], [1.0, 0.5, 0.25])


def test_a_run_stops_at_the_first_recorded_loss_below_the_one_asked_for():
    problem, rule = eosim.Quadratic([[1.0]]), eosim.GradientDescent(0.5)
    path = eosim.run(problem, rule, [1.0], 100, stop_below=1e-3)
    expected = math.floor(math.log(2e-3) / math.log(0.25)) + 1  # 0.25^k / 2 < 1e-3
    assert (path.status, path.step[-1]) == (Status.CONVERGED, expected)
    assert path["loss"][-1] < 1e-3 <= path["loss"][-2]
    sparse = eosim.run(problem, rule, [1.0], 100, stop_below=1e-3, every=4)
    assert (sparse.status, sparse.step[-1]) == (Status.CONVERGED, 8)
    assert sparse.final_state.step == 8


def test_a_run_that_starts_below_the_loss_asked_for_makes_no_step():
    path = eosim.run(eosim.Quadratic([[1.0]]), GD, [1.0], 100, stop_below=1.0)
    assert (path.status, len(path)) == (Status.CONVERGED, 1)


def test_a_loss_that_is_not_reached_is_completed():
    path = eosim.run(eosim.Quadratic([[1.0]]), GD, [1.0], 10, stop_below=1e-9)
    assert path.status is Status.COMPLETED


def test_the_last_state_can_be_the_one_that_converges():
    path = eosim.run(eosim.Quadratic([[1.0]]), GD, [1.0], 10, stop_below=0.08, every=7)
    assert (path.status, path.step[-1]) == (Status.CONVERGED, 10)


# --- nothing of the user's is touched -----------------------------------------------------------


@pytest.mark.parametrize(
    "theta0",
    [
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        np.array([1, 2, 3]),
        np.array([1, 2, 3], dtype=np.float32),
        np.asfortranarray([[1.0, 9.0], [2.0, 9.0], [3.0, 9.0]])[:, 0],
        np.arange(6.0)[1:4],
        np.array([9.0, 3.0, 2.0, 1.0])[:0:-1],
    ],
    ids=["ints", "tuple", "int_array", "float32", "fortran_column", "slice", "reversed"],
)
def test_theta0_of_any_kind_is_accepted_and_never_modified(theta0):
    before = np.array(theta0)
    if isinstance(theta0, np.ndarray):
        theta0.flags.writeable = False
    problem = eosim.Quadratic(symmetric([1.0, 2.0, 3.0]))
    path = eosim.run(problem, eosim.HeavyBall(0.1), theta0, 10)
    np.testing.assert_array_equal(np.array(theta0), before)
    expected = eosim.run(problem, eosim.HeavyBall(0.1), [1.0, 2.0, 3.0], 10)
    assert same_bits(path, expected)
    assert path.theta.dtype == np.float64


def test_theta0_may_be_changed_while_the_run_goes_on_and_after():
    theta0 = np.ones(2)
    problem = eosim.Rosenbrock(1.0)

    def meddle(problem, theta):
        theta0[:] = 1e9
        return 0.0

    path = eosim.run(problem, GD, theta0, 5, record={"meddle": meddle})
    assert same_bits(path, eosim.run(problem, GD, np.ones(2), 5, record={"meddle": meddle}))


def test_the_results_share_no_memory_with_each_other():
    path = eosim.run(eosim.Rosenbrock(1.0), eosim.HeavyBall(0.1), [0.0, 0.0], 5)
    last = path.theta[-1].copy()
    path.final_state.theta[:] = 1e9
    np.testing.assert_array_equal(path.theta[-1], last)


def test_a_progress_bar_changes_nothing_but_standard_error(capsys):
    quiet = eosim.run(eosim.Rosenbrock(1.0), GD, [0.2, 0.3], 5)
    assert capsys.readouterr().err == ""
    loud = eosim.run(eosim.Rosenbrock(1.0), GD, [0.2, 0.3], 5, progress=True)
    output = capsys.readouterr()
    assert "5/5" in output.err
    assert output.out == ""
    assert same_bits(quiet, loud)
