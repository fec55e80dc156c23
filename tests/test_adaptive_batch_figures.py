"""The figures of thresholds and of batch sizes of adaptive rules: what is wrong in them fails them."""

from itertools import combinations

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, eigsh

import eosim
from eosim.sampling import noise_factor
from figures import _digits_network, adaptive_batches, momentum_thresholds
from figures.momentum_thresholds import CASES, LOCI, LR


def failing(module, arrays, **changed):
    return [row.quantity for row in module.headline({**arrays, **changed}) if not row.holds]


# --- thresholds -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thresholds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(momentum_thresholds, "MOMENTA_QUICK", np.array([0.0, 0.5]))
        patch.setattr(momentum_thresholds, "STEPS_QUICK", 800)
        return momentum_thresholds.compute(True)


def test_the_thresholds_of_few_momenta_hold(thresholds):
    assert failing(momentum_thresholds, thresholds) == []


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_one_wrong_verdict_fails(thresholds, name):
    grown = thresholds[f"{name}_grows"].copy()
    grown[0, 1] = ~grown[0, 1]
    wrong = failing(momentum_thresholds, thresholds, **{f"{name}_grows": grown})
    assert wrong == ["wrong verdicts of 38"]


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_closed_form_wrong_in_the_eighth_digit_fails(thresholds, name):
    wrong = {f"{name}_closed": thresholds[f"{name}_closed"] * (1 + 1e-8)}
    assert failing(momentum_thresholds, thresholds, **wrong) == [
        "|closed form / threshold of step - 1|"
    ]


def test_the_period_two_branch_of_cascades_fails(thresholds):
    flip = [
        LR * eosim.CascadedEMA(LR, *betas).critical_branches()[0]
        for *betas, _ in momentum_thresholds.CASCADES
    ]
    assert failing(momentum_thresholds, thresholds, cascades=np.array(flip)) == [
        "cascade 0.4, 0.7: k at the edge",
        "cascade 0.7, 0.85: k at the edge",
    ]


def test_the_crossover_is_the_root_of_the_two_branches_difference(thresholds):
    found = np.roots([-3, 1, -3, 1])  # (1 - b)^3 - 2 b^2 (1 + b)
    real = float(found[np.abs(found.imag) < 1e-12].real[0])
    assert float(thresholds["crossover"]) == pytest.approx(real, abs=1e-9)
    wrong = failing(momentum_thresholds, thresholds, crossover=np.array(0.334))
    assert wrong == ["equal cascade: turns from momentum"]


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "rmsprop"])
def test_verdicts_are_those_of_the_whole_frozen_recursion(name):
    rule = next(case for case in CASES if case.name == name).rule(0.6)
    frozen, P = momentum_thresholds.fixed(rule, momentum_thresholds.HESSIAN)
    assert P.max() / P.min() > 10
    root = np.sqrt(P)
    top = np.linalg.eigvalsh(momentum_thresholds.HESSIAN / np.outer(root, root))[-1]
    edge = LR * rule.critical_sharpness()
    for level in (0.99 * edge, 1.01 * edge):
        bowl = eosim.Quadratic(momentum_thresholds.HESSIAN * level / (LR * top))
        size = len(P) * (1 + len(frozen.init(np.zeros(len(P)))))
        columns = []
        for unit in np.eye(size):
            theta, *state = unit.reshape(-1, len(P))
            theta, state = frozen.step(theta, tuple(state), bowl.gradient(theta))
            columns.append(np.concatenate([theta, *state]))
        radius = np.abs(np.linalg.eigvals(np.array(columns).T)).max()
        assert (radius > 1) == (level > edge)
        assert momentum_thresholds.grows(rule, level, 400) == (level > edge)


@pytest.mark.parametrize("locus", LOCI, ids=lambda locus: locus.name)
def test_branches_start_at_the_poles_and_pass_through_the_roots_of_the_step(locus, thresholds):
    branches = thresholds[f"locus_{locus.name}_line"]
    np.testing.assert_allclose(branches[0], locus.poles, atol=1e-12)
    for found in thresholds[f"locus_{locus.name}_roots"].ravel():
        assert np.abs(branches - found).min() < 0.02  # the spacing of the lines' points
    # The product of the roots is that of the poles at every k.
    np.testing.assert_allclose(branches.prod(axis=1), np.prod(locus.poles), rtol=1e-12)


def test_branches_are_followed_without_a_jump(thresholds):
    for locus in LOCI:
        jumps = np.abs(np.diff(thresholds[f"locus_{locus.name}_line"], axis=0))
        assert jumps.max() < 0.1  # at a double root they part like a square root


def test_the_turn_of_an_exact_oscillation_is_its_cosine():
    angle = 0.7
    path = 3 * np.cos(angle * np.arange(momentum_thresholds.LAST + 1) + 1)
    assert momentum_thresholds.turn(path) == pytest.approx(np.cos(angle), rel=1e-13)


def test_a_run_at_another_rate_fails_its_angle(thresholds):
    path = np.cos(0.83 * np.arange(momentum_thresholds.LAST + 1))
    wrong = failing(momentum_thresholds, thresholds, locus_cascade_path=path)
    assert wrong == ["cascade: cos(w) of the run at the edge"]


# --- batch sizes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    generator = np.random.default_rng(0)
    inputs, targets = generator.standard_normal((6, 3)), generator.standard_normal((6, 2))
    net = eosim.Perceptron(inputs, targets, (4,))
    return net, net.initial(1) + 0.1 * generator.standard_normal(net.dim)


def test_gradient_squares_are_those_of_single_samples(toy):
    net, theta = toy
    samples = np.array([net.gradient(theta, np.array([i])) for i in range(6)])
    square, variance = adaptive_batches.gradient_squares(net, theta)
    mean = samples.mean(axis=0)
    assert square == pytest.approx(mean @ mean, rel=1e-12)
    assert variance == pytest.approx(((samples - mean) ** 2).sum(axis=1).mean(), rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 6])
def test_batch_gradients_have_the_square_that_the_figure_expects(toy, batch_size):
    net, theta = toy
    batches = [net.gradient(theta, np.array(b)) for b in combinations(range(6), batch_size)]
    square, variance = adaptive_batches.gradient_squares(net, theta)
    expected = square + noise_factor(6, batch_size) * variance
    assert np.mean([g @ g for g in batches]) == pytest.approx(expected, rel=1e-12)


@pytest.fixture
def batches():
    """Two seeds of runs as the figure finds them, without their fluctuations."""
    size = np.array(adaptive_batches.SIZES_QUICK)
    noise = np.array([noise_factor(500, int(b)) for b in size])
    ratio = np.array([0.011, 0.03, 0.1, 0.3, 0.5, 0.93, 1.0])
    along = np.ones((2, 1, 5))
    squares = np.ones((2, len(size), 5, 3))
    squares[..., 0] = (1 + 1000 * noise)[:, None]
    squares[..., 2] = 1000.0
    return {
        "size": size,
        "step": np.arange(0, 2001, 500),
        "ratio": along * ratio[:, None],
        "sharpness": along * np.linspace(6, 10, len(size))[:, None],
        "loss": along * np.ones((len(size), 1)),
        "squares": squares,
    }


def test_ideal_batches_hold(batches):
    assert failing(adaptive_batches, batches) == []


def test_a_ratio_above_that_of_a_larger_batch_fails_at_either_seed(batches):
    for seed in range(2):
        ratio = batches["ratio"].copy()
        ratio[seed, 4] = 0.29
        assert failing(adaptive_batches, batches, ratio=ratio) == [
            "ratio over that of the next smaller B, least"
        ]


def test_only_the_second_half_counts(batches):
    ratio = batches["ratio"].copy()
    ratio[:, :, :2] = np.nan
    assert failing(adaptive_batches, batches, ratio=ratio) == []
    ratio[:, :, 2:] *= 1.06
    assert failing(adaptive_batches, batches, ratio=ratio) == [
        "full batches: late ratio, seed 0",
        "full batches: late ratio, seed 1",
    ]


def test_batches_near_the_edge_fail(batches):
    ratio = batches["ratio"].copy()
    ratio[0, :3] *= 2
    wrong = failing(adaptive_batches, batches, ratio=ratio)
    assert wrong == ["B = 250: ratio, largest", "B = 10: ratio, largest"]


def test_a_preconditioner_that_noise_does_not_explain_fails(batches):
    squares = batches["squares"].copy()
    squares[..., 2] = 2000.0
    assert failing(adaptive_batches, batches, squares=squares) == [
        "B <= 490: |P| over that of batch gradients, |. - 1|"
    ]


def test_a_collapse_of_the_curvature_instead_fails(batches):
    sharpness = batches["sharpness"].copy()
    sharpness[1, 0] = 3.9
    assert failing(adaptive_batches, batches, sharpness=sharpness) == [
        "largest eigenvalue of H over that of B = n, least"
    ]


def test_runs_are_adam_on_the_digits_with_the_batches_of_their_size(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(adaptive_batches, "STEPS_QUICK", 4)
    monkeypatch.setattr(adaptive_batches, "SIZES_QUICK", (50, 500))
    arrays = adaptive_batches.compute(True)
    assert arrays["ratio"].shape == (1, 2, 2)  # the start and the end
    problem = _digits_network.load_problem()
    for index, size in enumerate((50, 500)):
        rule = eosim.Adam(1e-3, beta1=0.9, beta2=0.99, eps=1e-7)
        path = eosim.run(problem, rule, problem.initial(0), 4, batch_size=size, seed=0)
        assert arrays["loss"][0, index, -1] == path["loss"][-1]
        P = rule.preconditioner(path.final_state.rule_state)
        assert arrays["squares"][0, index, -1, 0] == P @ P
        root = np.sqrt(P)
        theta = path["theta"][-1]
        product = LinearOperator(
            (problem.dim,) * 2, lambda v, r=root, t=theta: problem.hvp(t, v.ravel() / r) / r
        )
        start = np.random.default_rng(1).standard_normal(problem.dim)
        top = eigsh(product, k=1, which="LA", v0=start, return_eigenvectors=False)[0]
        assert arrays["ratio"][0, index, -1] == pytest.approx(1e-3 * top / 38, rel=1e-6)
