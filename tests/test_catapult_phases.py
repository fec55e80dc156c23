"""Phase diagrams of catapults and their boundaries, against descent on weights and closed forms."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import eosim
from eosim import catapult
from eosim.catapult import Phase

# Orbits beyond a = 2.8 multiply errors by up to 3 a step, so that two correct codes differ after some
# 34 steps: they are compared over 25 steps, or to the end below 2.8.
STEPS = 25
RELU, LEAKY = (1.0, 0.0), (1.0, 0.5)


def descended(net, ratio, seed, n_steps):
    """Rate, losses, and the weights before and after gradient descent on them."""
    start = net.initial(seed)
    lr = ratio / net.ntk(start)[0, 0]
    path = eosim.run(net, eosim.GradientDescent(lr), start, n_steps)
    return lr, path["loss"], start, path.theta[-1]


# Nets of neurons -------------------------------------------------------------------------------


@pytest.mark.parametrize("slopes", [RELU, LEAKY, (0.75, -0.3), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("ratio", [1.5, 2.3, 3.4, 6.0])
def test_a_cell_of_neurons_is_gradient_descent_on_its_weights(slopes, ratio):
    x, y, n, seed = 1.7, 0.6, 60, 4
    net = eosim.TwoLayerNet([[x]], [y], n, slopes)
    for max_steps in (1, 4, STEPS):
        cell = catapult.homogeneous_phases(ratio, n, seed, slopes, y, x, max_steps=max_steps)
        n_steps = int(cell.steps)
        assert n_steps == max_steps or cell.phase != Phase.BOUNDED
        lr, loss, start, end = descended(net, ratio, seed, n_steps)
        w = 2 * lr**2 * x**2 / n * loss
        # eps is a difference of numbers of order 1, with rounding of about 1e-15
        near = {"rel": 1e-8, "abs": 1e-14 * math.sqrt(w.max())}
        assert cell.a == ratio
        assert cell.label == pytest.approx(lr * x / math.sqrt(n) * y, rel=1e-12)
        assert cell.eps**2 == pytest.approx(w[0], rel=1e-12)
        assert cell.final_w == pytest.approx(w[-1], **near)
        assert cell.final_a == pytest.approx(lr * net.ntk(end)[0, 0], rel=1e-9)
        assert cell.norm_ratio == pytest.approx(end @ end / (start @ start), rel=1e-9)
        assert cell.sparsity == np.mean(end[:n] < 0)
        assert cell.peak_w == pytest.approx(w.max(), rel=1e-8)
        assert cell.peak_ratio == pytest.approx(loss.max() / loss[0], rel=1e-8)
        assert cell.peak_step == loss.argmax()


def verdict(w, a, max_steps):
    """The rules, read off the whole run: phase and step."""
    for step in range(max_steps + 1):
        if not w[step] <= 1e12:
            return Phase.DIVERGED, step
        if a[step] == 0:
            return Phase.DEAD, step
        if w[step] < 1e-26 and a[step] < 2:
            grew = any(w[k + 1] > w[k] * (1 + 1e-9) for k in range(step))
            return (Phase.CATAPULT if grew else Phase.MONOTONE), step
    return Phase.BOUNDED, max_steps


@pytest.mark.parametrize("slopes", [RELU, LEAKY])
def test_cells_of_neurons_are_judged_by_the_rules(slopes):
    n, seed, max_steps = 30, 2, 120
    ratios = np.array([1.0, 1.7, 2.05, 2.4, 2.7, 7.0, 12.0])
    cells = catapult.homogeneous_phases(ratios, n, seed, slopes, max_steps=max_steps)
    p, v = np.random.default_rng(seed).standard_normal((2, n))
    found = set()
    for k, ratio in enumerate(ratios):
        s = np.where(p > 0, *slopes)
        lr = ratio * n / np.sum(s**2 * (p**2 + v**2))
        net, state, w, a = catapult.NeuronNet(p, v, slopes, 1 / n, 0.0, lr), (p, v), [], []
        while len(w) <= max_steps and (not w or w[-1] <= 1e12):
            row = net.observe(state)
            w.append(2 * lr**2 / n * row["loss"])
            a.append(lr * row["ntk"])
            state = net.step(state)
        phase, step = verdict(w, a, max_steps)
        assert cells.phase[k] == phase
        # squared residuals of 1e-26 carry rounding of a few per cent: one step more or less
        assert abs(cells.steps[k] - step) <= (phase in (Phase.MONOTONE, Phase.CATAPULT))
        if ratio < 2.8:
            assert cells.final_a[k] == pytest.approx(a[step], rel=1e-10)
        found.add(phase)
    assert {Phase.MONOTONE, Phase.CATAPULT} < found
    assert found & {Phase.DIVERGED, Phase.DEAD}


@pytest.mark.parametrize("width", [1, 3, 40])
def test_a_relu_net_with_one_datum_never_diverges(width):
    ratio = np.linspace(0.5, 20, 40)
    cells = catapult.homogeneous_phases(ratio, width, np.arange(8)[:, None], target=0.7)
    assert not (cells.phase == Phase.DIVERGED).any()


@pytest.mark.size
def test_a_wide_relu_net_with_one_datum_never_diverges():
    ratio = np.linspace(0.5, 20, 79)
    cells = catapult.homogeneous_phases(ratio, [[[1024]], [[4096]]], np.arange(8)[:, None])
    assert not (cells.phase == Phase.DIVERGED).any()
    assert (cells.phase == Phase.DEAD).any()


def test_below_4_a_relu_net_without_a_label_loses_norm_and_its_loss():
    ratio = np.linspace(0.5, 3.9, 18)
    cells = catapult.homogeneous_phases(ratio, 30, np.arange(12)[:, None], max_steps=3000)
    # sum_t L_t is finite (telescoping the weight norm), though small final NTKs converge slowly
    assert (cells.final_w < 1e-6).all()
    assert (cells.norm_ratio <= 1 + 1e-12).all()
    assert (cells.final_a < 2).all()


@pytest.mark.parametrize(("ratio", "sparsity"), [(2.1, 0.508), (2.5, 0.547)])
def test_sparsity_of_wide_relu_nets_is_the_known_one(ratio, sparsity):
    cells = catapult.homogeneous_phases(ratio, 4096, np.arange(6))
    assert (cells.phase == Phase.CATAPULT).all()
    # .009 is the scatter of one net: a binomial share of 4096 has .0078
    assert cells.sparsity.mean() == pytest.approx(sparsity, abs=0.009)
    assert cells.sparsity.std(ddof=1) < 2.5 * 0.0078


@pytest.mark.size
def test_the_loss_of_a_dead_relu_net_is_that_of_output_zero():
    cells = catapult.homogeneous_phases(
        np.arange(2, 5.05, 0.1), 1024, np.arange(20)[:, None], target=2.0, input_norm=4.0
    )
    dead = cells.phase == Phase.DEAD
    assert not dead[:, :14].any()  # up to 3.3; how far beyond depends on the seed
    assert dead[:, -1].mean() > 0.4
    np.testing.assert_array_equal(cells.final_w[dead], cells.label[dead] ** 2)  # L = y^2 / 2
    assert not cells.final_a[dead].any()
    assert (cells.sparsity[dead] == 1).all()
    assert (cells.sparsity[~dead] < 1).all()
    assert (cells.period == 0).all()


def test_a_net_is_dead_where_descent_on_its_weights_leaves_all_silent():
    net = eosim.TwoLayerNet([[4.0]], [2.0], 64)
    cells = catapult.homogeneous_phases(8.0, 64, np.arange(5), target=2.0, input_norm=4.0)
    dead = np.flatnonzero(cells.phase == Phase.DEAD)
    assert len(dead) >= 3
    for seed in dead:
        n_steps = cells.steps[seed]
        _, loss, _, end = descended(net, 8.0, seed, int(n_steps) + 3)
        assert (end[:64] <= 0).all()
        assert loss[n_steps] == loss[-1] == 2.0**2 / 2
        assert not net.gradient(end).any()
        assert loss[n_steps - 1] != 2.0


def test_without_a_label_death_is_not_convergence():
    cells = catapult.homogeneous_phases(8.0, 64, np.arange(5))
    dead = cells.final_a == 0
    assert dead.sum() >= 3
    assert (cells.phase[dead] == Phase.DEAD).all()
    assert not cells.final_w[dead].any()


def test_a_net_that_is_dead_from_the_start_has_no_rate():
    seeds = np.arange(12)
    silent = [np.random.default_rng(seed).standard_normal() <= 0 for seed in seeds]
    cells = catapult.homogeneous_phases(1.5, 1, seeds, target=0.3)
    assert 0 < sum(silent) < 12
    np.testing.assert_array_equal((cells.phase == Phase.DEAD) & (cells.steps == 0), silent)
    assert (cells.norm_ratio[silent] == 1).all()
    assert not cells.eps[silent].any()
    assert not cells.label[silent].any()


def test_the_grid_of_the_infinitely_wide_relu_net_is_its_reduction():
    for a in (1.3, 2.1, 2.5, 3.5, 5.0):
        reduced = catapult.simulate(catapult.InfiniteReLU(a, 1e-3), 20)
        cell = catapult.infinite_relu_phases(a, 1e-3, max_steps=19)
        assert cell.eps == pytest.approx(reduced["output"][1], rel=1e-12)
        assert cell.final_w == pytest.approx(reduced["output"][20] ** 2, rel=1e-9)
        assert cell.final_a == pytest.approx(reduced["ntk"][20], rel=1e-9)
        assert cell.sparsity == pytest.approx(reduced["sparsity"][20], abs=1e-11)
        norm = reduced["weight_norm"]
        assert cell.norm_ratio == pytest.approx(norm[20] / norm[0], rel=1e-11)
    ends = catapult.infinite_relu_phases([1.3, 2.1, 2.5])
    assert list(ends.phase) == [Phase.MONOTONE, Phase.CATAPULT, Phase.CATAPULT]
    np.testing.assert_allclose(ends.sparsity[1:], [0.5084, 0.547], atol=5e-4)
    np.testing.assert_allclose(ends.final_a[1:], [1.9231, 1.5105], atol=2e-3)


@pytest.mark.parametrize("a", [2.5, 3.5, 5.0, 8.0])
def test_the_sector_is_the_limit_of_many_neurons_even_where_most_of_them_die(a):
    # 100,000 neurons on a grid of angles, moved one by one; the alive half has NTK 1.
    n, kick = 100_000, 1e-2
    angles = (np.arange(n) + 0.5) * 2 * np.pi / n
    p, v = np.cos(angles), np.sin(angles)
    net = catapult.NeuronNet(p - kick * (p > 0) * v, v - kick * (p > 0) * p, RELU, 2 / n, 0.0, a)
    for max_steps in (1, 5, 13, STEPS):
        cell = catapult.infinite_relu_phases(a, kick, max_steps=max_steps)
        state = net.start()
        for _ in range(int(cell.steps)):
            state = net.step(state)
        row = net.observe(state)
        norm = (state[0] @ state[0] + state[1] @ state[1]) / n
        # a sector has its ends on the grid to 1/n, and errors grow up to a hundredfold
        assert cell.sparsity == pytest.approx(row["sparsity"], abs=3e-5)
        assert cell.final_a == pytest.approx(a * row["ntk"], abs=1e-4 * a)
        assert cell.final_w == pytest.approx(2 * a**2 * (2 / n) * row["loss"], rel=3e-3, abs=1e-9)
        assert cell.norm_ratio == pytest.approx(norm, rel=2e-4)
    assert (cell.phase == Phase.DEAD) == (a == 8.0)


# Linear nets -----------------------------------------------------------------------------------


def drawn(width, seed):
    """P and R of the nets, from their cells at target 1."""
    cells = catapult.linear_net_phases(1.0, width, seed, 1.0, max_steps=1)
    total = np.sqrt(width) / cells.label  # Y = lr y / sqrt n
    product = (cells.eps + cells.label) * total
    return total / 2 + product, total / 2 - product


def test_a_linear_net_is_descent_on_weights_with_the_same_moments():
    n, target = 5, 0.8
    (plus,), (minus,) = drawn(n, [3])
    total, difference = np.zeros((2, n))
    total[0], difference[1] = math.sqrt(2 * plus), math.sqrt(2 * minus)
    u, v = (total + difference) / 2, (total - difference) / 2
    net, theta = eosim.uv_net([[1.0]], [target], n), np.concatenate([u, v])
    for ratio in (1.4, 2.6, 3.3):
        lr = ratio / net.ntk(theta)[0, 0]
        path = eosim.run(net, eosim.GradientDescent(lr), theta, STEPS)
        cell = catapult.linear_net_phases(ratio, n, 3, target, max_steps=STEPS)
        end = path.theta[int(cell.steps)]
        w = 2 * lr**2 / n * path["loss"][: int(cell.steps) + 1]
        assert cell.eps**2 == pytest.approx(w[0], rel=1e-12)
        assert cell.label == pytest.approx(lr * target / math.sqrt(n), rel=1e-12)
        assert cell.final_w == pytest.approx(w[-1], rel=1e-8, abs=1e-26)
        assert cell.final_a == pytest.approx(lr * net.ntk(end)[0, 0], rel=1e-9)
        assert cell.norm_ratio == pytest.approx(end @ end / (theta @ theta), rel=1e-9)
        assert cell.peak_w == pytest.approx(w.max(), rel=1e-8)
        imbalance = math.sqrt(cell.final_a**2 - 4 * (lr / n * end[:n] @ end[n:]) ** 2)
        assert cell.imbalance == pytest.approx(imbalance, rel=1e-8)


@pytest.mark.parametrize("width", [1, 3, 200])
def test_the_moments_of_linear_nets_are_independent_chi_squares(width):
    plus, minus = drawn(width, np.arange(1500))
    # both tests are exact; seeds are fixed, so that 0.01 is no gamble
    assert stats.kstest(plus, "chi2", args=(width,)).pvalue > 0.01
    assert stats.kstest(minus, "chi2", args=(width,)).pvalue > 0.01
    assert stats.spearmanr(plus, minus).pvalue > 0.01


def test_a_linear_net_depends_on_its_width_and_seed_alone():
    width, seed = np.array([2, 7, 64]), np.arange(5)[:, None]
    together = np.stack(drawn(width, seed))
    for row, column in np.ndindex(5, 3):
        alone = np.stack(drawn(width[column], seed[row, 0]))
        np.testing.assert_allclose(together[:, row, column], alone, rtol=1e-13)
    cells = catapult.linear_net_phases([[[1.5]], [[3.0]]], width, seed, 0.2, max_steps=1)
    np.testing.assert_allclose(cells.eps[1], 2 * cells.eps[0], rtol=1e-12)
    assert len(np.unique(together)) == together.size


@pytest.mark.parametrize("width", [2, 3, 8, 64, 512, 4096])
def test_without_labels_linear_nets_converge_at_3_99_and_diverge_at_4_01(width):
    seeds = np.arange(3)
    below = catapult.linear_net_phases(3.99, width, seeds, max_steps=200_000)
    above = catapult.linear_net_phases(4.01, width, seeds)
    assert (below.phase == Phase.CATAPULT).all()
    assert (above.phase == Phase.DIVERGED).all()


def test_the_sign_of_the_margin_tells_which_runs_diverge():
    rng = np.random.default_rng(8)
    ratio, target = rng.uniform(2, 6, 400), rng.uniform(-1.2, 1.2, 400)
    cells = catapult.linear_net_phases(ratio, rng.integers(2, 30, 400), np.arange(400), target)
    judged = (np.abs(cells.label) < 2) & (np.abs(cells.margin) > 1e-3)
    assert judged.sum() > 350
    np.testing.assert_array_equal((cells.phase == Phase.DIVERGED)[judged], cells.margin[judged] > 0)
    eps, a, label = cells.eps, cells.a, cells.label
    np.testing.assert_allclose(cells.margin, a - 4 - label * eps, rtol=1e-13, atol=1e-13)


# Periods and exponents -------------------------------------------------------------------------


@pytest.mark.parametrize("label", [1.03, 1.1, 1.2, 1.23])
def test_the_two_cycle_is_found_with_its_multipliers(label):
    # away from the balanced line, and from negative residuals (the map is odd in (eps, Y))
    cells = catapult.phase_diagram([4.0, 3.1], [0.04, 0.09], [label, -label], lyapunov=True)
    assert (cells.phase == Phase.BOUNDED).all()
    assert list(cells.period) == [2, 2]
    _, _, along, across = catapult.period_two(label)
    exponent = math.log(max(abs(along), abs(across))) / 2
    np.testing.assert_allclose(cells.lyapunov, exponent, rtol=1e-6)
    assert (cells.imbalance < 1e-9).all()


def test_the_map_doubles_its_period_with_the_label_and_turns_chaotic():
    labels = np.array([1.24, 1.29, 1.30, 1.302, 1.37, 1.65])
    cells = catapult.phase_diagram(4.0, 0.04, labels, lyapunov=True, max_steps=20_000)
    assert list(cells.period) == [4, 8, 16, 32, 0, 0]
    balanced = catapult.attractor(labels)
    np.testing.assert_allclose(cells.lyapunov[:2], balanced.lyapunov[:2], rtol=1e-4)
    # an orbit of 20,000 chaotic steps gives the mean to about 0.01
    np.testing.assert_allclose(cells.lyapunov[4:], balanced.lyapunov[4:], atol=0.03)


def test_chaos_that_comes_near_its_past_is_no_period():
    labels = np.linspace(1.4, 1.95, 60)
    exponent = catapult.attractor(labels, transient=2000, n_steps=2000).lyapunov
    cells = catapult.phase_diagram(3.95 + 0.2 * labels, 0.04, labels, max_steps=2000)
    chaotic = exponent > 0.2
    assert chaotic.sum() > 50
    assert (cells.phase == Phase.BOUNDED).all()
    assert not cells.period[chaotic].any()


def test_a_cell_of_neurons_has_the_period_of_the_linear_net():
    seeds = np.arange(40)
    cells = catapult.homogeneous_phases(2.8, 3, seeds, (1.0, 1.0), 0.9)
    twin = catapult.phase_diagram(
        2.8, cells.eps**2, np.copysign(cells.label, cells.label * cells.eps)
    )
    np.testing.assert_array_equal(cells.period, twin.period)
    np.testing.assert_array_equal(cells.phase, twin.phase)
    assert (cells.period == 2).any()


def almost_trained(ratio, seeds):
    """Cells of nets whose targets are their outputs at the start, but for rounding."""
    weights = [np.random.default_rng(seed).standard_normal((2, 50)) for seed in seeds]
    output = [w @ v / math.sqrt(50) for w, v in weights]
    cells = catapult.homogeneous_phases(ratio, 50, seeds, (1, 1), output, max_steps=5)
    assert (np.abs(cells.eps) < 1e-14).all()
    assert cells.eps.any()
    return cells


def test_slow_convergence_is_no_period():
    # at a = 2 the residual changes its sign for ever longer: undecided, not a 2-cycle
    cells = catapult.phase_diagram(2.0, [1e-20, 1e-12, 1e-6], max_steps=1000)
    assert (cells.phase == Phase.BOUNDED).all()
    assert not cells.period.any()
    cells = almost_trained(2.0 + 1e-9, np.arange(10))
    assert (cells.phase == Phase.BOUNDED).all()
    assert not cells.period.any()


def test_a_small_loss_above_a_of_2_is_no_convergence():
    cells = catapult.phase_diagram(2.5, [1e-30, 1e-28])
    assert (cells.phase == Phase.CATAPULT).all()
    assert (cells.final_a < 2).all()
    # the residual of a net of order 1 is rounding here: it may stall, but is no convergence
    assert not (almost_trained(2.5, np.arange(10)).phase == Phase.MONOTONE).any()


def test_the_exponent_where_the_run_ended_is_that_of_its_end():
    cells = catapult.phase_diagram([1.5, 2.5, 4.2], 1e-3, lyapunov=True)
    assert list(cells.lyapunov) == [0, 0, math.inf]
    assert not cells.period.any()
    assert catapult.phase_diagram(2.5, 1e-3).lyapunov is None


def test_the_exponent_at_label_2_is_ln_3():
    cell = catapult.phase_diagram(0.5, 1.75**2, -2, lyapunov=True, max_steps=20_000)
    assert cell.lyapunov == pytest.approx(math.log(3), abs=0.02)
    assert cell.imbalance == 0


@pytest.mark.parametrize("label", [0.0, 1.0, 1.5])
def test_on_the_boundary_of_divergence_the_exponent_is_ln_3(label):
    # Its angle triples at every step, hence stays uniform. Orbits leave it within some 36 steps, by
    # rounding: 24 are made, and 4000 starts give the mean of 8 to 0.0013 (one standard deviation).
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 4000)
    eps = 2 * np.cos(2 * angle)
    signed = label * np.sign(eps)  # starts are given with eps > 0
    a = 4 + signed * np.abs(eps)
    cells = catapult.phase_diagram(a, eps**2, signed, max_steps=8, lyapunov=True)
    np.testing.assert_allclose(cells.margin, 0, atol=1e-14)
    assert cells.lyapunov.mean() == pytest.approx(math.log(3), abs=0.004)


# Boundaries ------------------------------------------------------------------------------------

WIDTHS, SEEDS = np.array([3, 16, 300]), np.arange(4)[:, None]


@pytest.mark.parametrize("target", [0.0, 0.3, -0.7])
def test_the_edge_of_divergence_is_where_the_margin_vanishes(target):
    edge = catapult.phase_boundary(
        lambda ratio: catapult.linear_net_phases(ratio, WIDTHS, SEEDS, target, max_steps=500), 2, 8
    )
    assert not edge.ragged.any()
    plus, minus = drawn(WIDTHS, SEEDS)
    scaled = target * np.sqrt(WIDTHS)
    closed = np.vectorize(catapult.critical_lr)(plus + minus, (plus - minus) / 2, scaled)
    # F_0 decides where |Y| < 2
    valid = np.abs(closed * scaled) < 2
    assert valid.sum() >= 9
    expected = closed * (plus + minus)
    np.testing.assert_allclose(edge.ratio[valid], expected[valid], rtol=1e-10)
    if target == 0:
        np.testing.assert_allclose(edge.ratio, 4, rtol=1e-11)


def test_the_edge_of_the_catapults_is_where_the_first_step_raises_the_loss():
    edge = catapult.phase_boundary(
        lambda ratio: catapult.linear_net_phases(ratio, WIDTHS, SEEDS),
        1.5,
        3.5,
        beyond=set(Phase) - {Phase.MONOTONE},
    )
    plus, minus = drawn(WIDTHS, SEEDS)
    share = ((plus - minus) / 2 / (plus + minus)) ** 2
    closed = 4 / (1 + np.sqrt(np.maximum(1 - 8 * share, 0)))  # a = 2 + w, w = a^2 share
    first = (closed**2 * share < 1) & (closed < 3)  # where no later step is the first to raise it
    assert first.sum() >= 9
    # a step counts as a rise beyond 1e-9 relative, which moves the edge by about as much
    np.testing.assert_allclose(edge.ratio[first], closed[first], rtol=2e-9)


def teeth(*edges):
    """Phases that change at each edge, inside first."""
    return lambda ratio: SimpleNamespace(
        phase=np.where(np.searchsorted(edges, ratio) % 2, Phase.DIVERGED, Phase.CATAPULT)
    )


def test_a_boundary_is_found_once_or_declared_ragged():
    single = catapult.phase_boundary(teeth(3.7), [3.0, 3.5], 5)
    np.testing.assert_allclose(single.ratio, 3.7, rtol=1e-12)
    assert (single.lower <= 3.7).all()
    assert (single.upper >= 3.7).all()
    ragged = catapult.phase_boundary(teeth(3.3, 3.7, 4.1), 3, 5)
    assert ragged.ragged
    assert np.isnan(ragged.ratio)
    assert 3.1 < ragged.lower <= 3.3
    assert 4.1 <= ragged.upper < 4.3


@pytest.mark.parametrize("centre", [3.7, 4.0, 4.123])
def test_teeth_finer_than_the_first_parts_are_found_at_their_own_scale(centre):
    # an odd number of them within 1e-4, ever finer, as where a boundary is fractal
    fine = catapult.phase_boundary(teeth(*(centre + 1e-4 * 0.6 ** np.arange(20, -1, -1))), 3, 5)
    assert fine.ragged
    assert abs(fine.lower - centre) < 1e-2
    assert abs(fine.upper - centre) < 1e-2


def test_a_bracket_without_a_boundary_or_with_a_reversed_one_gives_no_number():
    inside = catapult.phase_boundary(teeth(6.0), 3, 5)
    assert (inside.lower, inside.upper) == (5, math.inf)
    beyond = catapult.phase_boundary(teeth(2.0), 3, 5)
    assert (beyond.lower, beyond.upper) == (-math.inf, 3)
    back = catapult.phase_boundary(teeth(2.0, 4.0), 3, 5)
    assert (back.lower, back.upper) == (-math.inf, math.inf)
    assert [inside.ragged, beyond.ragged, back.ragged] == [False, False, True]
    for found in (inside, beyond, back):
        assert np.isnan(found.ratio)


@pytest.mark.parametrize("samples", [4, 5, 7, 16, 100])
def test_the_search_for_a_boundary_ends_whatever_the_number_of_parts(samples):
    calls = []

    def diagram_of(ratio):
        calls.append(ratio)
        assert len(calls) < 1000
        return teeth(3.7)(ratio)

    edge = catapult.phase_boundary(diagram_of, 3, 5, samples=samples)
    assert edge.ratio == pytest.approx(3.7, rel=1e-12)
    assert edge.lower <= 3.7 <= edge.upper


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
@pytest.mark.parametrize("place", [0.0, 1e-300, -1e-30, 1e-9, 0.3])
def test_a_boundary_at_0_is_found_to_the_square_of_the_tolerance(place, scale):
    calls = []

    def diagram_of(ratio):
        calls.append(ratio)
        assert len(calls) < 2000
        return teeth(place * scale)(ratio)

    edge = catapult.phase_boundary(diagram_of, -scale, 0.7 * scale)
    assert not edge.ragged
    assert edge.lower <= place * scale <= edge.upper
    # as near as floats are dense: 5e-324 is the smallest
    error = max(1e-12 * abs(place) * scale, 1.7e-24 * scale, 1e-323)
    assert edge.upper - edge.lower <= error


def test_the_boundary_of_a_spread_spectrum_is_ragged():
    # pure quadratic nets, spectrum +-U(0.2, 2), N = 1000; every start of the grid is one net
    rng = np.random.default_rng(1)
    half = rng.uniform(0.2, 2, 500)
    spectrum, zeta = np.concatenate([half, -half]), math.sqrt(2 / 1000)
    squares = rng.standard_normal((4, 1000)) ** 2
    ntk = zeta**2 * squares @ spectrum**2

    def diagram_of(ratio):
        now, phase = squares, np.full(4, Phase.BOUNDED)
        for _ in range(400):
            move = ratio / ntk * zeta**2 / 2 * (now @ spectrum)  # lr e zeta
            phase = np.where(move**2 <= 1e12, phase, Phase.DIVERGED)
            alive = (phase == Phase.BOUNDED)[:, None]
            now = np.where(alive, now * (1 - np.where(alive, move[:, None], 0) * spectrum) ** 2, 0)
        return SimpleNamespace(phase=phase)

    edge = catapult.phase_boundary(diagram_of, 3, 4.5, rtol=1e-6)
    assert edge.ragged.any()
    assert ((edge.lower > 3.5) & (edge.lower < 4)).all()


@pytest.mark.size
def test_the_boundary_of_leaky_nets_is_ragged():
    edge = catapult.phase_boundary(
        lambda ratio: catapult.homogeneous_phases(ratio, 1024, np.arange(6), LEAKY, max_steps=2000),
        3,
        7,
        beyond=(Phase.BOUNDED, Phase.DIVERGED),
    )
    assert edge.ragged.any()
    assert ((edge.lower > 4.3) & (edge.upper < 4.8)).all()


# Wrong input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "exception", "words"),
    [
        (
            lambda: catapult.linear_net_phases(0.0, 4, 0),
            ValueError,
            "ratio must be positive, got 0",
        ),
        (lambda: catapult.linear_net_phases(2.0, 0, 0), ValueError, "width must hold .* >= 1.* 0"),
        (lambda: catapult.linear_net_phases(2.0, 4.0, 0), TypeError, "width must hold .* float64"),
        (lambda: catapult.linear_net_phases(2.0, 4, -1), ValueError, "seed must hold .* got -1"),
        (lambda: catapult.linear_net_phases(2.0, 4, 2**63), ValueError, "seed must .* below 2.63"),
        (lambda: catapult.linear_net_phases(2.0, 4, True), TypeError, "seed must .* dtype bool"),
        (lambda: catapult.linear_net_phases(2.0, 4, 0, np.inf), ValueError, "target has 1 non-fin"),
        (lambda: catapult.homogeneous_phases(-1.0, 4, 0), ValueError, "ratio must be positive"),
        (
            lambda: catapult.homogeneous_phases(2.0, 4, 0, input_norm=0),
            ValueError,
            "input_norm must be positive",
        ),
        (
            lambda: catapult.homogeneous_phases(2.0, 4, 0, (0, 0)),
            ValueError,
            "slopes must not both",
        ),
        (
            lambda: catapult.homogeneous_phases(2.0, 4, 0, (1, 0, 0)),
            ValueError,
            r"slopes must have shape \(2,\)",
        ),
        (lambda: catapult.homogeneous_phases(2.0, 4, 0, max_steps=0), ValueError, "max_steps"),
        (lambda: catapult.infinite_relu_phases(2.0, 0.0), ValueError, "kick must not be 0"),
        (lambda: catapult.phase_boundary(teeth(1), 3, 3), ValueError, "low must be below high"),
        (lambda: catapult.phase_boundary(teeth(1), 3, 4, samples=3), ValueError, "samples .* >= 4"),
        (lambda: catapult.phase_boundary(teeth(1), 3, 4, rtol=0.0), ValueError, "rtol must be"),
        (lambda: catapult.phase_boundary(teeth(1), 3, 4, beyond=[9]), ValueError, "9 is not a val"),
        (
            lambda: catapult.phase_boundary(lambda ratio: teeth(1)(ratio[:1]), [1, 2, 3, 4], 5),
            ValueError,
            r"diagram_of must return at least one phase per ratio; got shape \(1,\)",
        ),
    ],
)
def test_wrong_input_is_refused_by_name(call, exception, words):
    with pytest.raises(exception, match=words):
        call()
