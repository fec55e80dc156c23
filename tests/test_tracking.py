"""Sharpness along a run: of P^-1 H, and along the gradients of mini-batches."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

import eosim
from eosim import measure
from eosim._lanczos import BASIS, N_KNOWN, Known, _improved, follow, top_ritz_pair
from eosim.measure.tracking import BatchSharpness, PreconditionedSharpness
from eosim.optimizers import CoupledL2, Frozen, freeze
from tests.cases import FINITE_SUMS, perceptron, regression, rotation, symmetric

ADAM = eosim.Adam(0.01, 0.9, 0.9)


def network():
    """Of 141 parameters: beyond the dense path."""
    problem = perceptron(30, 4, 1, (20, 2))
    assert problem.dim > BASIS
    return problem, problem.initial(1)


def state_after(rule, problem, theta, n_steps=5):
    run = eosim.run(problem, rule, theta, n_steps, record={})
    return run["theta"][-1], run.final_state.rule_state


def dense_value(hessian, P, decay=0.0):
    """The largest eigenvalue of P^-1 (H + decay I), without its symmetric form."""
    matrix = (hessian + decay * np.eye(len(hessian))) / np.broadcast_to(P, len(hessian))[:, None]
    return np.linalg.eigvals(matrix).real.max()


@pytest.mark.parametrize("small", [True, False], ids=["dense", "lanczos"])
@pytest.mark.parametrize(
    "rule",
    [
        ADAM,
        eosim.AdamW(0.01, weight_decay=0.5),
        eosim.RMSProp(0.01),
        eosim.AMSGrad(0.01),
        CoupledL2(ADAM, 0.7),
        CoupledL2(CoupledL2(eosim.NAdam(0.01), 0.7), 0.2),
        eosim.HeavyBall(0.01),
        CoupledL2(eosim.HeavyBall(0.01), 0.7),
    ],
    ids=lambda rule: type(rule).__name__ + type(getattr(rule, "rule", None)).__name__,
)
def test_it_is_the_largest_eigenvalue_of_the_preconditioned_hessian(rule, small):
    problem, theta = (perceptron(), np.linspace(-1, 1, 13)) if small else network()
    theta, state = state_after(rule, problem, theta)
    found = PreconditionedSharpness(1e-6)(problem, theta, rule=rule, state=state)
    inner, decay = rule, 0.0
    while isinstance(inner, CoupledL2):
        inner, decay = inner.rule, decay + inner.weight_decay
    P = inner.preconditioner(state) if hasattr(inner, "preconditioner") else 1.0
    hessian = problem.hessian(theta)
    assert found.value == pytest.approx(dense_value(hessian, P, decay), rel=1e-8)
    assert found.ratio == pytest.approx(found.value / inner.critical_sharpness(), rel=1e-14)
    assert found.sharpness == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-8)
    assert found.converged
    assert found.residual <= 1e-6 * found.value + 1e-12


@pytest.mark.parametrize("dim", [3, BASIS + 60])
def test_the_ratio_is_one_exactly_at_the_threshold_of_a_frozen_rule(dim):
    generator = np.random.default_rng(0)
    P = np.exp(generator.standard_normal(dim))
    root = np.sqrt(P)
    values = np.append(np.linspace(-50, 20, dim - 1), 38 / 0.01)  # negative ones larger in number
    problem = eosim.Quadratic(symmetric(values) * np.outer(root, root))
    rule = Frozen(eosim.EMAMomentum(0.01), P)
    found = PreconditionedSharpness()(
        problem, np.ones(dim), rule=rule, state=rule.init(np.ones(dim))
    )
    assert found.ratio == pytest.approx(1, rel=1e-7)
    assert found.converged


def test_a_large_negative_curvature_is_not_taken_for_the_top():
    values = np.append(np.linspace(-1, 2, 99), -1e4)
    problem, rule = eosim.Quadratic(symmetric(values)), eosim.GradientDescent(0.1)
    found = PreconditionedSharpness(1e-8)(problem, np.ones(100), rule=rule, state=())
    assert found.value == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize("negative", [-1e2, -1e4, -1e8])
def test_a_pair_is_accepted_by_its_own_size_however_large_the_negative_curvature(negative):
    problem = eosim.Quadratic(symmetric(np.append(np.linspace(-1, 2, 99), negative)))
    tracker = PreconditionedSharpness()
    for _ in range(2):  # cold and warm
        found = tracker(problem, np.ones(100), rule=eosim.GradientDescent(0.1), state=())
        assert found.value == pytest.approx(2, abs=1e-6)
        assert found.converged
        assert found.residual <= 2e-4


def test_last_and_next_preconditioner_differ_by_one_gradient():
    problem, theta = network()
    rule = CoupledL2(ADAM, 0.3)
    theta, state = state_after(rule, problem, theta)
    last, ahead = (
        PreconditionedSharpness(1e-7, preconditioner=which)(problem, theta, rule=rule, state=state)
        for which in ("last", "next")
    )
    _, after = rule.step(theta, state, problem.gradient(theta))
    hessian = problem.hessian(theta)
    for found, memory in ((last, state), (ahead, after)):
        expected = dense_value(hessian, ADAM.preconditioner(memory), 0.3)
        assert found.value == pytest.approx(expected, rel=1e-9)
    assert abs(last.value / ahead.value - 1) > 1e-3
    assert last.sharpness == pytest.approx(ahead.sharpness, rel=1e-10)


def test_before_the_first_step_the_last_preconditioner_is_undefined_and_says_so():
    problem, theta = network()
    start = ADAM.init(theta)
    undefined = PreconditionedSharpness()(problem, theta, rule=ADAM, state=start)
    assert math.isnan(undefined.value)
    assert math.isnan(undefined.ratio)
    assert not undefined.converged
    assert undefined.sharpness == pytest.approx(measure.sharpness(problem, theta).value, rel=1e-6)
    ahead = PreconditionedSharpness(preconditioner="next")(problem, theta, rule=ADAM, state=start)
    assert ahead.converged
    assert ahead.value > 0
    plain = eosim.Adam(0.01, eps=0.5, bias_correction=False)
    halved = PreconditionedSharpness()(problem, theta, rule=plain, state=plain.init(theta))
    assert halved.value == pytest.approx(2 * halved.sharpness, rel=1e-6)
    bare = eosim.AdaGrad(0.01, eps=0.0)
    zero = PreconditionedSharpness()(problem, theta, rule=bare, state=bare.init(theta))
    assert math.isnan(zero.value)


def test_a_run_records_every_field_and_the_same_bits_every_time():
    problem, theta = network()
    runs = [
        eosim.run(problem, ADAM, theta, 30, record={"edge": PreconditionedSharpness()}, every=10)
        for _ in range(2)
    ]
    for field in ("value", "ratio", "sharpness", "residual", "converged"):
        np.testing.assert_array_equal(runs[0][f"edge.{field}"], runs[1][f"edge.{field}"])
        assert runs[0][f"edge.{field}"].shape == (4,)
    for index, step in enumerate(runs[0].step[1:], start=1):
        again = eosim.run(problem, ADAM, theta, int(step), record={}).final_state
        P = ADAM.preconditioner(again.rule_state)
        expected = dense_value(problem.hessian(again.theta), P)
        assert runs[0]["edge.value"][index] == pytest.approx(expected, rel=1e-6)


def test_without_the_plain_sharpness_fewer_products_are_made_and_it_is_nan():
    problem, theta = network()
    theta, state = state_after(ADAM, problem, theta)
    found = PreconditionedSharpness(sharpness=False)(problem, theta, rule=ADAM, state=state)
    full = PreconditionedSharpness()(problem, theta, rule=ADAM, state=state)
    assert math.isnan(found.sharpness)
    assert found.value == full.value


class Counting:
    """A quadratic that counts its Hessian-vector products."""

    def __init__(self, matrix):
        self.matrix, self.dim, self.products = matrix, len(matrix), 0

    def hvp(self, theta, v):
        self.products += 1
        return self.matrix @ v


def test_a_warm_start_saves_products_and_loses_no_accuracy():
    values = np.append(np.linspace(0, 1, 199), 1.2)
    basis = rotation(200)
    generator = np.random.default_rng(1)
    tracker, rule = PreconditionedSharpness(), eosim.GradientDescent(1.0)
    cold = warm = 0
    for _ in range(10):
        noise = generator.standard_normal((200, 200)) / 4000
        problem = Counting(basis @ np.diag(values) @ basis.T + noise + noise.T)
        found = tracker(problem, np.zeros(200), rule=rule, state=())
        warm, problem.products = warm + problem.products, 0
        PreconditionedSharpness()(problem, np.zeros(200), rule=rule, state=())
        cold += problem.products
        exact = np.linalg.eigvalsh(problem.matrix)[-1]
        assert found.value == pytest.approx(exact, rel=1e-6)
    assert warm < 0.8 * cold


@pytest.mark.parametrize("factor", [1.05, 1.5, 10.0])
def test_an_eigenvalue_that_overtakes_an_exact_eigenvector_is_found(factor):
    values = np.append(np.linspace(0, 1, 298), [1.0, 2.0])
    tracker, rule = PreconditionedSharpness(), eosim.GradientDescent(1.0)
    for top in ([1.0, 2.0], [2.0 * factor, 2.0]):  # diagonal: eigenvectors are exact
        problem = eosim.Quadratic(np.diag([*values[:-2], *top]))
        found = tracker(problem, np.zeros(300), rule=rule, state=())
        assert found.value == pytest.approx(max(top), rel=1e-6)


def test_a_product_that_never_settles_is_not_called_converged():
    # 600 eigenvalues within the tolerance of each other relative to the residual asked for
    values = np.linspace(0, 1, 600) ** 0.1
    pair = top_ritz_pair(lambda v: values * v, np.ones(600), 1e-15)
    assert not pair.converged
    assert pair.residual > 1e-15
    assert np.linalg.norm(pair.vector) == pytest.approx(1)
    assert pair.value == pytest.approx(1, abs=1e-4)


def test_a_measurement_that_is_not_converged_says_so_with_its_true_residual():
    # Gaps of 1e-7 at the top: 400 products do not tell the eigenvalues apart to this tolerance.
    values = 2 - np.linspace(0, 1, 3000) ** 2
    problem = Counting(np.zeros((0, 0)))
    problem.dim, problem.hvp = len(values), lambda theta, v: values * v
    tracker, theta = PreconditionedSharpness(1e-12), np.zeros(len(values))
    rule = CoupledL2(eosim.GradientDescent(0.5), 1.0)
    found = tracker(problem, theta, rule=rule, state=())
    assert not found.converged
    vector = tracker._starts["preconditioned"]
    residual = np.linalg.norm((values + 1) * vector - found.value * vector)
    assert found.residual == pytest.approx(residual, rel=1e-6)
    assert residual > 1e-12 * found.value
    assert found.value == pytest.approx(3, abs=1e-3)
    adaptive = eosim.AdaGrad(0.1)  # either of the two eigenvalues is enough
    constant = (np.full(len(values), 4.0),)
    assert not tracker(problem, theta, rule=adaptive, state=constant).converged


@pytest.mark.parametrize("name", ["preconditioned", "plain"])
def test_both_eigenvalues_must_converge(name, monkeypatch):
    problem, theta = network()
    theta, state = state_after(ADAM, problem, theta)
    top = PreconditionedSharpness._top
    monkeypatch.setattr(
        PreconditionedSharpness,
        "_top",
        lambda self, which, *rest: top(self, which, *rest)._replace(converged=which != name),
    )
    assert not PreconditionedSharpness()(problem, theta, rule=ADAM, state=state).converged


def test_small_problems_cost_no_products_and_large_ones_are_measured_by_them_alone():
    rule, theta = eosim.GradientDescent(1.0), np.zeros(BASIS)
    problem = Counting(np.diag(np.linspace(-3, 2, BASIS)))
    problem.hessian = lambda theta: problem.matrix
    assert PreconditionedSharpness()(problem, theta, rule=rule, state=()).value == pytest.approx(2)
    assert problem.products == 0
    problem = Counting(np.diag(np.linspace(-3, 2, BASIS + 1)))  # has no Hessian
    found = PreconditionedSharpness(1e-9)(problem, np.zeros(BASIS + 1), rule=rule, state=())
    assert found.value == pytest.approx(2)
    assert 0 < problem.products <= 400


def test_a_tracker_of_another_problem_is_refused():
    tracker, rule = PreconditionedSharpness(), eosim.GradientDescent(1.0)
    tracker(Counting(np.eye(50)), np.zeros(50), rule=rule, state=())
    with pytest.raises(ValueError, match=r"theta has 60 entries.* one of 50; use one per run"):
        tracker(Counting(np.eye(60)), np.zeros(60), rule=rule, state=())


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(60),
        np.ones(60),
        np.linspace(-3, -1, 60),
        np.append(np.zeros(59), 1.0),
        np.append(np.linspace(-3, -1, 59), 0.0),
    ],
    ids=["zero", "identity", "negative", "rank_1", "negative_and_flat"],
)
@pytest.mark.parametrize("search_every", [1, 10])
def test_degenerate_spectra_are_measured(values, search_every):
    problem, rule = eosim.Quadratic(symmetric(values)), eosim.GradientDescent(0.5)
    tracker = PreconditionedSharpness(1e-8, search_every=search_every)
    for _ in range(2):
        found = tracker(problem, np.zeros(60), rule=rule, state=())
        assert found.value == pytest.approx(values.max(), abs=1e-7)
        assert found.ratio == pytest.approx(found.value / 4)
        assert found.converged


def test_a_top_eigenvalue_of_zero_is_settled_at_rounding():
    problem = Counting(symmetric(np.append(np.linspace(-3, -1, 59), 0.0)))
    rule = eosim.GradientDescent(0.5)
    found = PreconditionedSharpness()(problem, np.zeros(60), rule=rule, state=())
    assert abs(found.value) < 1e-12
    assert found.converged
    assert problem.products < BASIS  # no share of 0 is above the residual: it would go on


@pytest.mark.parametrize("dim", [2, BASIS + 1])
def test_a_hessian_that_is_not_finite_is_refused(dim):
    problem = Counting(np.full((dim, dim), np.nan))
    problem.hessian = lambda theta: problem.matrix
    with pytest.raises(ValueError, match="the Hessian is not finite"):
        PreconditionedSharpness()(problem, np.ones(dim), rule=eosim.GradientDescent(1.0), state=())


def test_a_rule_without_a_threshold_has_no_ratio():
    problem, theta = network()
    rule = eosim.DAL()
    found = PreconditionedSharpness()(problem, theta, rule=rule, state=rule.init(theta))
    assert math.isnan(found.ratio)
    assert found.value == pytest.approx(measure.sharpness(problem, theta).value, rel=1e-6)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: PreconditionedSharpness(0), ValueError, r"tolerance .* \(0, 1\)"),
        (lambda: PreconditionedSharpness(preconditioner="P"), ValueError, "'last', 'next'"),
        (lambda: PreconditionedSharpness(sharpness="no"), TypeError, "sharpness must be True or"),
        (
            lambda: PreconditionedSharpness(search_every=0),
            ValueError,
            "search_every must be an int",
        ),
        (
            lambda: PreconditionedSharpness(search_every=2.0),
            TypeError,
            "search_every must be an int",
        ),
        (lambda: BatchSharpness(0), ValueError, "batch_size must be an integer >= 1"),
        (lambda: BatchSharpness(2.0), TypeError, "batch_size must be an integer"),
        (lambda: BatchSharpness(2, 1), ValueError, "n_batches must be an integer >= 2"),
        (lambda: BatchSharpness(2, seed=-1), ValueError, "seed"),
        (
            lambda: BatchSharpness(13)(regression(), np.ones(4)),
            ValueError,
            "n_samples = 12, got 13",
        ),
        (lambda: BatchSharpness(1)(eosim.Rosenbrock(), np.ones(2)), TypeError, "no n_samples"),
    ],
)
def test_a_wrong_argument_is_named(build, error, message):
    with pytest.raises(error, match=message):
        build()


# --- following between searches ------------------------------------------------------------------


def drifting(n_steps=60, dim=200, speed=2e-3, seed=3):
    """Matrices with a spectrum like a network's, whose eigenvectors turn and eigenvalues change."""
    generator = np.random.default_rng(seed)
    values = np.concatenate([np.linspace(-0.1, 0.5, dim - 6) ** 3, [0.6, 0.7, 0.8, 0.85, 0.9, 1.0]])
    turn = generator.standard_normal((dim, dim)) / np.sqrt(dim)
    turn = np.eye(dim) + speed * (turn - turn.T)
    basis = rotation(dim)
    for step in range(n_steps):
        basis = np.linalg.qr(turn @ basis)[0]
        matrix = (basis * (values * (1 + step / n_steps))) @ basis.T
        yield (matrix + matrix.T) / 2


@pytest.mark.parametrize(("tolerance", "products"), [(1e-2, 1.2), (1e-3, 2.2), (1e-5, 4)])
def test_a_drifting_eigenvalue_is_followed_with_few_products(tolerance, products):
    tracker = PreconditionedSharpness(tolerance, search_every=1000)
    rule, problem = eosim.GradientDescent(1.0), Counting(np.eye(200))
    for step, matrix in enumerate(drifting()):
        problem.matrix = matrix
        if step == 1:
            problem.products = 0
        found = tracker(problem, np.zeros(200), rule=rule, state=())
        exact = np.linalg.eigvalsh(matrix)[-1]
        assert abs(found.value - exact) <= found.residual + 1e-13
        # the residual's square over the gap, which is a tenth
        assert found.value == pytest.approx(exact, rel=10 * tolerance**2)
        assert found.residual <= tolerance * found.value
        assert found.converged
    assert problem.products <= products * 59  # without the known vectors the last takes 6


def test_known_vectors_stay_orthonormal_and_end_near_the_eigenvectors():
    known, top = None, None
    for matrix in drifting(speed=5e-4):
        if known is None:
            known = top_ritz_pair(lambda v, A=matrix: A @ v, np.ones(200), 1e-8, N_KNOWN).known
        pair = follow(lambda v, A=matrix: A @ v, known, 1e-3)
        known, top = pair.known, np.linalg.eigh(matrix)[1][:, -1]
    np.testing.assert_allclose(known.vectors @ known.vectors.T, np.eye(8), atol=1e-13)
    assert (np.diff(known.values) <= 0).all()
    assert abs(known.vectors[0] @ top) > 1 - 1e-5


@pytest.mark.parametrize("n_new", [1, 2, 5])
def test_what_is_known_is_the_spectrum_of_new_products_and_the_old_model(n_new):
    generator = np.random.default_rng(n_new)
    dim = 30
    A = symmetric(np.linspace(-1, 3, dim))
    Y = np.linalg.qr(generator.standard_normal((dim, 8)))[0].T
    mu = np.sort(generator.standard_normal(8))[::-1]
    Q = np.linalg.qr(np.vstack([Y[0], generator.standard_normal((n_new - 1, dim))]).T)[0].T
    better = _improved(Known(Y, mu, -1.0), Q, Q @ A, Q @ A @ Q.T, 0.0)
    on_new = Q.T @ Q
    off = np.linalg.svd(Y @ (np.eye(dim) - on_new))[2][: 8 - 1]  # Y[0] is in Q
    on_old = off.T @ off
    model = on_new @ A @ on_new + on_new @ A @ on_old + on_old @ A @ on_new
    model += on_old @ (Y.T * mu) @ Y @ on_old
    span = np.vstack([Q, off])
    expected = np.linalg.eigvalsh(span @ model @ span.T)[::-1]
    np.testing.assert_allclose(better.values, expected[:8], atol=1e-12)
    images = better.vectors @ model @ better.vectors.T
    np.testing.assert_allclose(images, np.diag(better.values), atol=1e-12)


def test_the_free_step_is_that_of_the_shifted_power_iteration():
    A, floor = symmetric(np.append(np.linspace(-1, 2, 39), 3.0)), -1.0
    exact = np.linalg.eigh(A)[1][:, -1]
    start = exact + 0.05 * np.linalg.qr(np.random.default_rng(0).standard_normal((40, 1)))[0][:, 0]
    Q = (start / np.linalg.norm(start))[None]
    value = float(Q[0] @ A @ Q[0])
    known = _improved(Known(Q, np.array([value]), floor), Q, Q @ A, Q @ A @ Q.T, value - floor)
    stepped = A @ Q[0] - floor * Q[0]
    np.testing.assert_allclose(known.vectors[0], stepped / np.linalg.norm(stepped), atol=1e-13)
    assert known.vectors[0] @ exact > Q[0] @ exact


def test_an_eigenvalue_that_overtakes_uncoupled_is_found_by_the_next_search():
    values = np.append(np.linspace(0, 1, 298), [1.0, 2.0])
    tracker, rule = PreconditionedSharpness(1e-2, search_every=5), eosim.GradientDescent(1.0)
    found = []
    for top in [1.0, *[2.1] * 5]:  # diagonal: eigenvectors are exact
        problem = eosim.Quadratic(np.diag([*values[:-2], top, 2.0]))
        found.append(tracker(problem, np.zeros(300), rule=rule, state=()).value)
    assert found[-1] == pytest.approx(2.1, rel=1e-6)


def test_what_is_lost_is_searched_for_at_once():
    tracker, rule = PreconditionedSharpness(1e-2, search_every=100), eosim.GradientDescent(1.0)
    for shift in range(3):  # of the coordinates: the eigenvectors are others
        matrix = np.roll(next(drifting(1)), shift, axis=(0, 1))
        found = tracker(Counting(matrix), np.zeros(200), rule=rule, state=())
        assert found.value == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-6)
        assert found.converged


def test_following_records_the_same_bits_every_time():
    problem, theta = network()
    runs = [
        eosim.run(
            problem,
            ADAM,
            theta,
            25,
            record={"edge": PreconditionedSharpness(1e-3, search_every=10)},
        )
        for _ in range(2)
    ]
    for field in ("value", "ratio", "sharpness", "residual", "converged"):
        np.testing.assert_array_equal(runs[0][f"edge.{field}"], runs[1][f"edge.{field}"])
    searched = eosim.run(problem, ADAM, theta, 25, record={"edge": PreconditionedSharpness()})
    for field in ("value", "sharpness"):
        ours, expected = runs[0][f"edge.{field}"], searched[f"edge.{field}"]
        np.testing.assert_allclose(ours[1:], expected[1:], rtol=1e-4)


# --- mini-batches --------------------------------------------------------------------------------


def curvature(problem, theta, batch):
    """nan where the gradient is 0."""
    gradient = problem.gradient(theta, batch)
    square = gradient @ gradient
    return gradient @ problem.hessian(theta, batch) @ gradient / square if square else math.nan


@pytest.mark.parametrize(("problem", "theta"), FINITE_SUMS)
@pytest.mark.parametrize("batch_size", [1, 2, 12])
def test_few_batches_are_enumerated(problem, theta, batch_size):
    batches = itertools.combinations(range(12), batch_size)
    values = [curvature(problem, theta, np.array(batch)) for batch in batches]
    found = BatchSharpness(batch_size)(problem, theta)
    assert found.value == pytest.approx(np.nanmean(values), rel=1e-12)
    assert found.standard_error == 0


def test_drawn_batches_estimate_the_same_within_their_standard_error():
    problem, theta = network()
    exact = BatchSharpness(2, n_batches=435)(problem, theta)
    assert exact.standard_error == 0
    deviations = []
    for seed in range(40):
        found = BatchSharpness(2, n_batches=100, seed=seed)(problem, theta)
        deviations.append((found.value - exact.value) / found.standard_error)
    assert abs(np.mean(deviations)) < 4 / math.sqrt(40)
    assert 0.7 < np.std(deviations) < 1.3  # independent batches: the error is that of a mean


def test_the_full_batch_is_the_curvature_along_the_gradient_and_repeats_itself():
    problem, theta = network()
    found = BatchSharpness(30)(problem, theta)
    assert found.value == pytest.approx(curvature(problem, theta, None), rel=1e-12)
    again = BatchSharpness(7)
    assert again(problem, theta) == again(problem, theta)
    run = eosim.run(
        problem, eosim.GradientDescent(0.01), theta, 4, batch_size=7, seed=0,
        record={"batch": again}, every=2,
    )  # fmt: skip
    assert run["batch.value"].shape == run["batch.standard_error"].shape == (3,)


def test_batches_without_a_gradient_are_left_out():
    problem = eosim.LinearRegression([[1.0], [2.0]], [0.0, 1.0])
    assert BatchSharpness(1)(problem, np.zeros(1)).value == 4.0  # the first sample is fitted
    idle = eosim.LinearRegression([[1.0], [2.0]], [0.0, 0.0])
    assert math.isnan(BatchSharpness(1)(idle, np.zeros(1)).value)
    tiny = eosim.LinearRegression([[1.0], [2.0]], [1e-200, 0.0])
    assert BatchSharpness(2)(tiny, np.zeros(1)).value == 2.5


# --- the adaptive edge in two variables, and Adam on a parabola ----------------------------------


class Product:
    """L = y x^2/2 - a y: the sharpness is about y, which nothing holds back but the steps in x."""

    dim, analytic, a = 2, True, 1.0

    def loss(self, theta):
        x, y = theta
        return y * x * x / 2 - self.a * y

    def gradient(self, theta):
        x, y = theta
        return np.array([y * x, x * x / 2 - self.a])

    def hessian(self, theta):
        x, y = theta
        return np.array([[y, x], [x, 0.0]])

    def hvp(self, theta, v):
        return self.hessian(theta) @ v


def product_run(rule, state, n_steps, every=1):
    """Started with a second moment that is already at the edge."""
    start = eosim.run(Product(), rule, [1e-5, 20.0], 0, record={}).final_state
    start = dataclasses.replace(start, rule_state=state)
    tracked = {"edge": PreconditionedSharpness(sharpness=False)}
    return eosim.run(Product(), rule, None, n_steps, state=start, record=tracked, every=every)


@pytest.fixture(scope="module")
def rmsprop_run():
    rule = eosim.RMSProp(0.01, 0.99, eps=0.0)
    return rule, product_run(rule, (np.array([(0.01 * 20 / 1.8) ** 2, 1.0]), 0), 8000)


def test_rmsprop_enters_ever_sharper_regions_while_its_ratio_stays_at_one(rmsprop_run):
    _, run = rmsprop_run
    y, ratio = run["theta"][:, 1], run["edge.ratio"]
    slope = np.polyfit(run.step[2000:], y[2000:], 1)[0]
    assert slope == pytest.approx(
        0.01, rel=0.02
    )  # lr per step: the gradient of y over its own size
    assert abs(np.median(ratio[2000:]) - 1) < 0.01
    assert np.mean(run["theta"][4000:, 0] ** 2) == pytest.approx(0.01**2 / 4, rel=0.1)


def test_with_its_preconditioner_frozen_it_is_blocked(rmsprop_run):
    rule, run = rmsprop_run
    frozen, state = freeze(rule, run.final_state)
    edge = 2 * math.sqrt(run.final_state.rule_state[0][0]) / rule.lr  # of y
    blocked = eosim.run(Product(), frozen, None, 3000, state=state, record={})
    y = blocked["theta"][:, 1]
    live = eosim.run(Product(), rule, None, 3000, state=run.final_state, record={})["theta"][:, 1]
    assert live[-1] - live[0] == pytest.approx(30, rel=0.02)
    assert np.median(y) == pytest.approx(edge, rel=0.02)
    assert abs(y - edge).max() < 0.5 * (live[-1] - live[0])


def test_adam_follows_the_same_line_with_a_ratio_that_cycles_below_one():
    rule = eosim.Adam(0.01, 0.9, 0.99, eps=0.0, bias_correction=False)
    square = np.array([(0.01 * 20 / (0.9 * 38)) ** 2, 1.0])
    # m of y starts where it stays: at the gradient -a
    run = product_run(rule, (np.array([0.0, -1.0]), square, 0), 8000)
    slope = np.polyfit(run.step[2000:], run["theta"][2000:, 1], 1)[0]
    assert slope == pytest.approx(0.01, rel=0.02)
    ratio = run["edge.ratio"][2000:]
    assert 0.9 < np.median(ratio) < 1.01
    assert ratio.max() < 1.15
    assert ratio.min() > 0.7


def test_adam_on_a_parabola_ends_in_a_limit_cycle_at_the_edge():
    bowl, rule = eosim.Quadratic([[1.0]]), eosim.Adam(0.01, 0.9, 0.99)
    tracked = {"edge": PreconditionedSharpness()}
    run = eosim.run(bowl, rule, [1.0], 20000, record=tracked)
    late = np.abs(run["theta"][10000:, 0])
    assert 1e-6 < np.median(late) < 1e-3
    assert late.max() < 1e-2
    ratio = run["edge.ratio"][10000:]
    assert 0.85 < np.median(ratio) < 1.02
    assert ratio.max() > 1
    assert np.abs(run["theta"][15000:, 0]).max() > 0.1 * np.abs(run["theta"][10000:15000, 0]).max()


def test_with_a_long_memory_adam_reaches_the_edge_of_a_parabola_only_after_underflowing():
    bowl, rule = eosim.Quadratic([[1.0]]), eosim.Adam(0.01, 0.9, 0.999)
    run = eosim.run(bowl, rule, [1.0], 5000, record={"edge": PreconditionedSharpness()})
    assert np.nanmax(run["edge.ratio"]) < 1
    assert abs(run["theta"][-1, 0]) < 1e-30
