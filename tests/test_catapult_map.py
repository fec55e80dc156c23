"""The compiled map over many starts: against one start at a time, step by step, in plain Python."""

import math

import numpy as np
import pytest

from eosim import catapult
from eosim.catapult import Phase

# Orbits beyond a = 2.8 multiply errors, so that two correct codes differ after some 34 steps.
TAME, CALM = 2.8, 25


def judged(a, w, label, max_steps):
    """Phase, steps, peak step, peak w, final a and final w of one start: the definition, slowly."""
    output = math.sqrt(w) + label
    u = (math.sqrt(a + 2 * output) + math.sqrt(max(a - 2 * output, 0))) / 2
    v = output / u if u else 0.0
    losses, grew, step = [w], False, 0
    while True:
        w, a = losses[-1], u * u + v * v
        phase = Phase.BOUNDED
        if not w <= 1e12:
            phase = Phase.DIVERGED
        elif w < 1e-26 and a < 2:
            phase = Phase.CATAPULT if grew else Phase.MONOTONE
        if phase != Phase.BOUNDED or step == max_steps:
            return phase, step, losses.index(max(losses)), max(losses), a, w
        u, v = catapult.factor_map(u, v, label)
        step += 1
        losses.append((u * v - label) ** 2)
        grew = grew or losses[-1] > w * (1 + 1e-9)


def assert_judged(a, w, label, max_steps):
    cells = catapult.phase_diagram(a, w, label, max_steps=max_steps)
    a, w, label = np.broadcast_arrays(a, w, label)
    for index in np.ndindex(a.shape):
        phase, steps, when, top, end_a, end_w = judged(
            float(a[index]), float(w[index]), float(label[index]), max_steps
        )
        start = (a[index], w[index], label[index])
        assert (cells.phase[index], cells.steps[index]) == (phase, steps), start
        assert cells.peak_step[index] == when, start
        assert cells.peak_w[index] == pytest.approx(top, rel=1e-8), start
        assert cells.final_a[index] == pytest.approx(end_a, rel=1e-8), start
        # a residual is a difference of numbers of order 1, and rounds to 1e-15
        scale = 1e-15 * math.sqrt(top) if label[index] else 0
        assert cells.final_w[index] == pytest.approx(end_w, rel=1e-6, abs=scale), start
        first = float(w[index])
        ratio = top / first if first > 0 else 1.0
        assert cells.peak_ratio[index] == pytest.approx(ratio, rel=1e-8), start
    return cells


def starts(n, largest, seed=0):
    """Random possible (a, w)."""
    rng = np.random.default_rng(seed)
    a = rng.uniform(0.1, largest, n)
    return a, (a / 2 * rng.uniform(1e-3, 0.999, n)) ** 2


@pytest.mark.parametrize("n_cells", [1, 7, 8, 9, 63, 64, 65, 300])
def test_however_many_starts_there_are_each_is_judged_as_if_alone(n_cells):
    cells = assert_judged(*starts(n_cells, TAME), 0.0, 60)
    if n_cells == 300:
        assert set(cells.phase) == {Phase.MONOTONE, Phase.CATAPULT, Phase.BOUNDED}


@pytest.mark.parametrize("max_steps", [1, 2, 7, 8, 9, 15, 16, 17, CALM])
def test_runs_of_any_length_end_at_the_step_they_are_judged_at(max_steps):
    cells = assert_judged(*starts(60, 6.0), 0.0, max_steps)
    assert (cells.phase == Phase.DIVERGED).any() or max_steps < 7


def test_each_start_may_have_a_label_of_its_own():
    a, w = starts(80, 3.0)
    label = np.random.default_rng(1).uniform(-1, 1, 80) * (a / 2 - np.sqrt(w))
    assert_judged(a, w, label, CALM)
    assert_judged(a[:, None] + 1, w[:, None], [0.2, -0.3], CALM)


def test_starts_on_the_edge_of_a_verdict_are_judged_by_the_rules():
    # nothing to learn, the saddle, small losses on both sides of a = 2, one that is beyond at once
    a = [0.0, 1.0, 2.0, 3.0, 2.5, 2.5, 1.5, 1.5, 1.99, 4e6, 2.2e6]
    w = [0.0, 0.0, 0.0, 0.0, 1e-30, 1e-27, 1e-30, 1e-26, 1.1e-26, 2e12, 1e12]
    cells = assert_judged(a, w, 0.0, 70)
    assert list(cells.phase[:4]) == [Phase.MONOTONE, Phase.MONOTONE, Phase.BOUNDED, Phase.BOUNDED]
    assert list(cells.steps[-2:]) == [0, 1]


@pytest.mark.parametrize("label", [0.001, -0.3, 0.9])
def test_a_start_without_loss_stays_at_its_minimum_in_every_route(label):
    a = np.array([1.9, 2.0, 2.5, 4.5, 4.8, 6.0])
    others = np.stack([np.zeros(6), np.full(6, 1e-4), np.zeros(6)])
    cells = catapult.phase_diagram(a, others, label, max_steps=300, lyapunov=True)
    alone = catapult.phase_diagram(a, 1e-4, label, max_steps=300, lyapunov=True)
    eps, end = catapult.iterate(a, others, label, n_steps=300)
    x, kernel = np.zeros(6), a
    for _ in range(300):
        x, kernel = catapult.residual_map(x, kernel, label)
    assert (cells.label == label).all()
    for row in (0, 2):
        np.testing.assert_array_equal(cells.phase[row], np.where(a < 2, 0, Phase.BOUNDED))
        np.testing.assert_array_equal(cells.steps[row], np.where(a < 2, 0, 300))
        for name, value in {
            "eps": 0,
            "peak_w": 0,
            "peak_ratio": 1,
            "final_w": 0,
            "period": 0,
        }.items():
            np.testing.assert_array_equal(getattr(cells, name)[row], value, name)
        np.testing.assert_allclose(cells.final_a[row], a, rtol=1e-15)
        np.testing.assert_allclose(cells.norm_ratio[row], 1, rtol=1e-15)
        np.testing.assert_allclose(cells.imbalance[row] ** 2, a**2 - 4 * label**2, rtol=1e-14)
        exponents = np.where(a < 2, 0, np.log(np.abs(1 - a)))  # a step multiplies by 1 - a, or 1
        np.testing.assert_allclose(cells.lyapunov[row], exponents, atol=0.01)
        np.testing.assert_array_equal((eps[row], end[row]), (x, kernel))
    for name in cells._fields[:-1]:  # what is beside them does not change others
        np.testing.assert_array_equal(getattr(cells, name)[1], getattr(alone, name), name)
    with pytest.raises(ValueError, match=r"a must be at least 2 \|epsilon"):
        catapult.phase_diagram(1.9 * abs(label), 0.0, label)


def test_a_cell_has_the_same_bits_whichever_cells_are_beside_it():
    a, w = starts(200, 5.0)
    whole = catapult.phase_diagram(a, w, max_steps=300)
    order = np.random.default_rng(2).permutation(200)
    for chosen in (order, order[:5], order[50:120], [17]):
        part = catapult.phase_diagram(a[chosen], w[chosen], max_steps=300)
        for name in ("phase", "steps", "peak_step", "peak_w", "final_a", "final_w", "period"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[chosen], name)


def test_cells_judged_in_parts_are_judged_alike(monkeypatch):
    a, w = starts(50, 3.0)
    label = np.random.default_rng(1).uniform(-1, 1, 50) * (a / 2 - np.sqrt(w))
    for labels in (label, 0.0):
        whole = catapult.phase_diagram(a, w, labels, max_steps=40, lyapunov=True)
        nets = catapult.linear_net_phases(a, 5, np.arange(50), max_steps=40, lyapunov=True)
        with monkeypatch.context() as patch:
            patch.setattr("eosim.catapult.phases._CHUNK", 12)
            part = catapult.phase_diagram(a, w, labels, max_steps=40, lyapunov=True)
            net_parts = catapult.linear_net_phases(a, 5, np.arange(50), max_steps=40, lyapunov=True)
        for name in whole._fields[:-1]:  # of sparsity there is none
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name), name)
            np.testing.assert_array_equal(getattr(net_parts, name), getattr(nets, name), name)


def test_the_smallest_start_has_the_loss_that_was_asked_for():
    # u - v of such starts cancels, u v does not
    cells = catapult.phase_diagram(2.5, [1e-20, 1e-26, 1e-30, 1e-100])
    np.testing.assert_allclose(cells.peak_w / cells.peak_ratio, [1e-20, 1e-26, 1e-30, 1e-100])
    # w grows by (a - 1)^2 a step for as long as it is small
    steps = cells.peak_step[1:] - cells.peak_step[0]
    expected = np.log([1e6, 1e10, 1e80]) / (2 * math.log(1.5))
    np.testing.assert_allclose(steps, expected, atol=1)


# A number of steps -----------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [0, 1, 3, 7, 8, 9, 20, CALM])
@pytest.mark.parametrize("label", [0.0, 0.3, -0.4])
def test_iterates_are_steps_of_the_map_of_residuals(label, n_steps):
    a, w = starts(150, 2.0)
    a = a + 2 * abs(label)
    eps, end = catapult.iterate(a, w, label, n_steps=n_steps)
    x, kernel = np.sqrt(w), a
    for _ in range(n_steps):
        x, kernel = catapult.residual_map(x, kernel, label)
    np.testing.assert_allclose(eps, x, rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose(end, kernel, rtol=1e-9)


def test_iterates_have_the_shape_of_the_grid():
    eps, end = catapult.iterate(3.0, [[0.01], [0.04]], [0.1, 0.2, -0.1], n_steps=4)
    assert eps.shape == end.shape == (2, 3)
    alone = catapult.iterate(3.0, 0.04, -0.1, n_steps=4)
    np.testing.assert_array_equal(alone, (eps[1, 2], end[1, 2]))
    assert alone[0].shape == ()
    assert catapult.iterate([], [], n_steps=3)[0].shape == (0,)


@pytest.mark.parametrize("n_steps", [1, 2, 5, 9, 40, 256, 300, 600])
def test_iterates_that_left_every_bound_are_infinite_and_no_others(n_steps):
    # far enough from a = 4 that rounding does not decide when
    a, w = starts(60, 3.9)
    a[::2] += 2.0
    eps, end = catapult.iterate(a, w, n_steps=n_steps)
    diverged = catapult.phase_diagram(a, w, max_steps=n_steps).phase == Phase.DIVERGED
    np.testing.assert_array_equal(np.isinf(eps), diverged & (n_steps > 0))
    np.testing.assert_array_equal(np.isinf(end), diverged)
    assert not np.isnan(eps).any()
    assert not np.isnan(end).any()
    assert diverged.any() or n_steps < 5


def test_converged_iterates_do_not_linger_among_subnormal_numbers():
    a, w = starts(40, 1.9)
    eps, end = catapult.iterate(a, w, n_steps=3000)
    tiny = np.finfo(float).tiny
    assert ((eps == 0) | (np.abs(eps) > tiny)).all()
    assert (eps == 0).any()
    bounded = catapult.phase_diagram(a, w, max_steps=3000)
    np.testing.assert_allclose(end, bounded.final_a, rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "exception", "words"),
    [
        (
            lambda: catapult.iterate(1.0, 4.0, n_steps=1),
            ValueError,
            r"a must be .* got a = 1.0 with",
        ),
        (
            lambda: catapult.iterate(2.0, -1.0, n_steps=1),
            ValueError,
            "w must not be negative, got -1",
        ),
        (lambda: catapult.iterate(2.0, 1e-3, n_steps=-1), ValueError, "n_steps must"),
        (lambda: catapult.iterate(2.0, 1e-3, 1.5, n_steps=1), ValueError, r"epsilon \+ Y = 1.53"),
        (lambda: catapult.iterate(np.nan, 1e-3, n_steps=1), ValueError, "a has 1 non-finite"),
    ],
)
def test_wrong_input_is_refused_by_name(call, exception, words):
    with pytest.raises(exception, match=words):
        call()


@pytest.mark.parametrize("function", [catapult.iterate, catapult.phase_diagram])
def test_shapes_that_do_not_go_together_are_named(function):
    options = {"n_steps": 3} if function is catapult.iterate else {}
    with pytest.raises(ValueError, match=r"a, w and label must broadcast.*\(\), \(3,\), \(2,\)"):
        function(1.0, np.zeros(3), np.zeros(2), **options)
