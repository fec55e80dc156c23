"""Maps, reductions, phases and closed forms of catapults, against parameter-space gradient descent."""

import math

import numpy as np
import pytest

import eosim
from eosim import Status, catapult
from eosim.catapult import Phase

# Orbits beyond a = 3 multiply errors by up to 3 a step: trajectories are compared over 25 steps, and
# final values only below a = 2.8, where they do not depend on the phase of the start.
STEPS = 25


def uv_descent(inputs, targets, hidden, readout, lr, n_steps):
    """Gradient descent on n^{-1/2} v.U x written out; outputs of every step."""
    n, outputs = len(readout), []
    U, v = hidden.copy(), readout.copy()
    for _ in range(n_steps + 1):
        outputs.append(inputs @ U.T @ v / math.sqrt(n))
        pull = (outputs[-1] - targets) @ inputs / len(inputs)
        U, v = U - lr / math.sqrt(n) * np.outer(v, pull), v - lr / math.sqrt(n) * U @ pull
    return np.array(outputs)


def top_ntk(inputs, hidden, readout):
    kernel = readout @ readout * inputs @ inputs.T + inputs @ hidden.T @ hidden @ inputs.T
    return np.linalg.eigvalsh(kernel)[-1] / (len(readout) * len(inputs))


@pytest.mark.parametrize("ratio", [0.7, 2.2, 3.0])
@pytest.mark.parametrize("target", [0.0, 0.5])
def test_every_reduction_of_one_datum_is_gradient_descent_on_the_weights(ratio, target):
    rng = np.random.default_rng(3)
    n = 12
    U, v = rng.standard_normal((n, 1)), rng.standard_normal(n)
    x, y = np.ones((1, 1)), np.array([target])
    lam = top_ntk(x, U, v)
    lr = ratio / lam
    exact = uv_descent(x, y, U, v, lr, STEPS)[:, 0]

    moments = catapult.simulate(catapult.LinearNetMoments(x, y, U, v, lr), STEPS)
    neurons = catapult.simulate(
        catapult.NeuronNet(U[:, 0], v, (1.0, 1.0), 1 / n, target, lr), STEPS
    )
    # in the basis (u + v, u - v) / sqrt 2 the net is a quadratic model with spectrum +-1
    squares = np.concatenate([(U[:, 0] + v) ** 2, (U[:, 0] - v) ** 2]) / 2
    spectrum = np.repeat([1.0, -1.0], n)
    zeta = 1 / math.sqrt(n)
    eigen = catapult.simulate(catapult.EigenbasisNet(squares, spectrum, zeta, target, lr), STEPS)
    for reduced in (moments, neurons, eigen):
        np.testing.assert_allclose(np.ravel(reduced["output"]), exact, rtol=1e-10, atol=1e-12)

    c = lr / math.sqrt(n)
    eps, a = c * (exact[0] - target), ratio
    f, ntk = exact[0], lam
    for k in range(1, STEPS + 1):
        f, ntk = catapult.output_map(f, ntk, f - target, lr, 1 / n)
        eps, a = catapult.residual_map(eps, a, c * target)
        assert f == pytest.approx(exact[k], rel=1e-10, abs=1e-12)
        assert eps == pytest.approx(c * (exact[k] - target), rel=1e-9, abs=1e-12)
        assert a == pytest.approx(lr * moments["ntk"][k], rel=1e-10)


@pytest.mark.parametrize("width", [2, 7, 300])
def test_the_moments_of_a_linear_net_close_at_any_width_and_data(width):
    rng = np.random.default_rng(width)
    x, y = rng.standard_normal((5, 3)), rng.standard_normal(5)
    U, v = rng.standard_normal((width, 3)), rng.standard_normal(width)
    lr = 2.3 / top_ntk(x, U, v)
    exact = uv_descent(x, y, U, v, lr, STEPS)
    reduced = catapult.simulate(catapult.LinearNetMoments(x, y, U, v, lr), STEPS)
    np.testing.assert_allclose(reduced["output"], exact, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(reduced["loss"], np.mean((exact - y) ** 2, axis=1) / 2, rtol=1e-8)


@pytest.mark.parametrize("slopes", [(1.0, 0.0), (1.0, 0.5)], ids=["ReLU", "leaky"])
def test_neurons_with_one_datum_move_as_their_weights_do(slopes):
    rng = np.random.default_rng(5)
    n, d, target = 40, 3, 0.4
    x = rng.standard_normal(d)
    W, v = rng.standard_normal((n, d)), rng.standard_normal(n)
    kappa, length = x @ x / (n * d), np.linalg.norm(x)
    reduction = catapult.NeuronNet(W @ x / length, v, slopes, kappa, target, 1.0)
    lr = 2.4 / reduction.observe(reduction.start())["ntk"]
    reduced = catapult.simulate(
        catapult.NeuronNet(W @ x / length, v, slopes, kappa, target, lr), STEPS
    )
    for k in range(STEPS + 1):
        hidden = W @ x
        slope = np.where(hidden > 0, *slopes)
        output = v @ (slope * hidden) / math.sqrt(n * d)
        assert reduced["output"][k] == pytest.approx(output, rel=1e-9, abs=1e-12)
        assert reduced["sparsity"][k] == np.mean(hidden < 0)
        move = lr * (output - target) / math.sqrt(n * d)
        W, v = W - move * np.outer(slope * v, x), v - move * slope * hidden


@pytest.mark.parametrize(
    ("a", "sparsity", "final", "spread"), [(2.1, 0.5084, 1.9231, 1e-4), (2.5, 0.547, 1.5105, 2e-3)]
)
def test_the_infinitely_wide_relu_net_is_what_wide_nets_tend_to(a, sparsity, final, spread):
    reduced = catapult.simulate(catapult.InfiniteReLU(a), 500)
    assert reduced["sparsity"][-1] == pytest.approx(sparsity, abs=5e-4)
    assert reduced["ntk"][-1] == pytest.approx(final, abs=spread)
    # 20,000 neurons on a grid of angles, moved one by one, set in motion by a tiny target.
    angles = (np.arange(20_000) + 0.5) * 2 * np.pi / 20_000
    kappa = 2 / 20_000  # the alive half has NTK 1 at the start, so lr is a
    target = -1e-4 / (a * math.sqrt(kappa))
    net = catapult.NeuronNet(np.cos(angles), np.sin(angles), (1.0, 0.0), kappa, target, a)
    wide = catapult.simulate(net, 300)
    assert wide["ntk"][0] == pytest.approx(1, abs=1e-3)
    assert wide["sparsity"][-1] == pytest.approx(reduced["sparsity"][-1], abs=2e-3)
    assert a * wide["ntk"][-1] == pytest.approx(reduced["ntk"][-1], abs=1e-2)


@pytest.mark.parametrize("width", [2, 16, 4096])
def test_without_labels_the_edge_of_divergence_is_4_at_every_width(width):
    rng = np.random.default_rng(width)
    U, v = rng.standard_normal(width), rng.standard_normal(width)
    squares, product = U @ U + v @ v, U @ v
    for ratio, expected in ((3.99, Phase.CATAPULT), (4.01, Phase.DIVERGED)):
        eps = ratio * product / squares
        diagram = catapult.phase_diagram(ratio, eps**2, max_steps=200_000)
        assert diagram.phase == expected


@pytest.mark.parametrize("label", [0.1, 0.5, 0.9])
def test_with_labels_the_edge_of_divergence_is_where_the_margin_vanishes(label):
    eps = 0.2
    edge = 4 + label * eps
    assert catapult.margin(eps, edge, label) == pytest.approx(0, abs=1e-15)
    below, above = catapult.phase_diagram(
        [edge * 0.997, edge * 1.003], eps**2, label, max_steps=200_000
    ).phase
    assert below == Phase.CATAPULT
    assert above == Phase.DIVERGED


def test_final_ntk_of_an_infinitesimal_start_is_the_known_value():
    diagram = catapult.phase_diagram([2.1, 2.5], 1e-9)
    np.testing.assert_allclose(diagram.final_a, [1.8929, 1.2823], atol=2e-4)


def test_the_final_ntk_series_converges_to_the_map_as_delta_shrinks():
    deltas = np.array([0.05, 0.1, 0.2, 0.4])
    ends = catapult.phase_diagram(2 + deltas, 1e-14, max_steps=20_000).final_a
    errors = [abs(catapult.final_ntk(2 + d) - end) for d, end in zip(deltas, ends, strict=True)]
    assert errors[0] < 1e-9
    assert all(error < 0.5 * d**7 + 1e-9 for d, error in zip(deltas, errors, strict=True))


@pytest.mark.parametrize(("a", "w"), [(2.0, 1e-4), (2.1, 1e-3), (2.3, 1e-3)])
def test_a_finite_start_ends_where_the_first_integral_says(a, w):
    end = catapult.phase_diagram(a, w).final_a
    assert catapult.final_ntk(a, w) == pytest.approx(float(end), abs=5e-5)


def test_the_peak_comes_when_and_as_high_as_stated():
    for a in (2.05, 2.3, 2.5, 3.5):
        diagram = catapult.phase_diagram(a, 1e-8)
        stated = catapult.peak(a, 1e-8)
        assert abs(diagram.peak_step - stated.step) <= 1.5
        if a <= 2.5:
            assert diagram.peak_w == pytest.approx(stated.w, rel=0.07)


def test_a_small_catapult_is_the_pulse():
    a, w = 2.05, 1e-10
    u = math.sqrt(a + 2 * math.sqrt(w)) / 2 + math.sqrt(a - 2 * math.sqrt(w)) / 2
    v = math.sqrt(a + 2 * math.sqrt(w)) / 2 - math.sqrt(a - 2 * math.sqrt(w)) / 2
    height, kernel = catapult.pulse(a, w, np.arange(400))
    orbit = []
    for _ in range(400):
        orbit.append(((u * v) ** 2, u * u + v * v))
        u, v = catapult.factor_map(u, v)
    measured_w, measured_a = np.array(orbit).T
    assert height.max() == pytest.approx(measured_w.max(), rel=0.05)
    assert np.abs(measured_a - kernel).max() < 0.01


def test_the_two_cycle_of_the_balanced_net_is_the_closed_one():
    for label in (1.05, 1.2):
        r, inverse, along, across = catapult.period_two(label)
        assert r + inverse == pytest.approx(1 + label)
        s = math.sqrt(r)
        assert catapult.balanced_map(catapult.balanced_map(s, label), label) == pytest.approx(s)
        assert catapult.balanced_map(s, label) ** 2 == pytest.approx(inverse)
        assert abs(along) < 1
        assert abs(across) < 1
    assert abs(catapult.period_two(1.25)[2]) > 1


def test_the_balanced_map_doubles_its_period_and_turns_chaotic():
    found = catapult.attractor([0.9, 1.1, 1.24, 1.29, 1.30, 1.302, 1.65, 2.0])
    assert list(found.period[:6]) == [1, 2, 4, 8, 16, 32]
    assert list(found.period[6:]) == [0, 0]
    assert (found.lyapunov[:6] < 0).all()
    assert found.lyapunov[6] == pytest.approx(0.69, abs=0.02)
    assert found.lyapunov[7] == pytest.approx(math.log(3), abs=0.02)


def test_the_closed_rate_is_the_edge_of_the_unnormalised_problem():
    rng = np.random.default_rng(2)
    U, v = rng.standard_normal((2, 6))
    target = 0.3
    edge = catapult.critical_lr(U @ U + v @ v, U @ v, target)
    for factor, diverges in ((0.997, False), (1.003, True)):
        p, q, lr = U.copy(), v.copy(), factor * edge
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(20_000):
                move = lr * (p @ q - target)
                p, q = p - move * q, q - move * p
                if not abs(p @ q) < 1e6:
                    break
        assert (not abs(p @ q) < 1e6) == diverges


def test_a_diverging_reduction_ends_with_its_step():
    x = np.ones((1, 1))
    run = catapult.simulate(
        catapult.LinearNetMoments(x, [0.0], [[1.0], [0.5]], [0.3, -1.0], 9.0), 100
    )
    assert run.status is Status.DIVERGED
    assert run.stop_step == len(run)
    assert np.isfinite(run["loss"]).all()
    assert "diverged" in run.message


@pytest.mark.parametrize(
    ("call", "exception", "words"),
    [
        (lambda: catapult.phase_diagram(1.0, 4.0), ValueError, r"a must be at least 2 \|epsilon"),
        (lambda: catapult.phase_diagram(2.0, -1.0), ValueError, "w must not be negative"),
        (lambda: catapult.phase_diagram([2.0], [1e-3], max_steps=0), ValueError, "max_steps"),
        (lambda: catapult.phase_diagram(np.nan, 1e-3), ValueError, "a has 1 non-finite"),
        (lambda: catapult.attractor(2.5), ValueError, r"label must lie in \(0, 2\]"),
        (lambda: catapult.final_ntk(3.5), ValueError, r"a must be a real number in \[2, 2.8\]"),
        (lambda: catapult.final_ntk(2.5, 0.5), ValueError, r"w must be .* \[0, 0.1\]"),
        (lambda: catapult.period_two(0.5), ValueError, "label must be"),
        (lambda: catapult.peak(1.9, 1e-3), ValueError, "a must be"),
        (lambda: catapult.InfiniteReLU(2.5, 0.0), ValueError, "eps must not be 0"),
        (lambda: catapult.simulate(eosim.Cosine(), 3), TypeError, "reduction must have"),
        (
            lambda: catapult.EigenbasisNet([-1.0], [1.0], 1.0, 0.0, 0.1),
            ValueError,
            "squares must not be negative",
        ),
        (
            lambda: catapult.EigenbasisNet([1.0], [1.0, 2.0], 1.0, 0.0, 0.1),
            ValueError,
            "eigenvalues must have shape",
        ),
        (
            lambda: catapult.LinearNetMoments([[1.0]], [0.0], [[1.0, 2.0]], [1.0], 0.1),
            ValueError,
            "hidden must have shape",
        ),
        (
            lambda: catapult.NeuronNet([1.0], [1.0], (1.0, 0.0), 0.0, 0.0, 0.1),
            ValueError,
            "kappa must be",
        ),
    ],
)
def test_wrong_input_is_refused_by_name(call, exception, words):
    with pytest.raises(exception, match=words):
        call()
