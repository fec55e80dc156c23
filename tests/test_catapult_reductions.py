"""Reductions of catapults, against gradient descent on all the weights."""

import math

import numpy as np
import pytest

import eosim
from eosim import Status, catapult
from eosim.catapult.reductions import BiasNet
from eosim.problems import QuadraticNet, TwoLayerNet, uv_net
from eosim.problems.teachers import paired_matrices

# Orbits near a = 3 and beyond multiply errors by up to 3 a step: 25 steps are compared, up to 3.1.
STEPS = 25
RATIOS = (0.7, 2.2, 3.1)


def top_ntk(problem, theta):
    return float(np.linalg.eigvalsh(problem.ntk(theta))[-1])


# --- each case: a problem, a start, a reduction for any rate, and the squares that never move ------


def linear_net_of_several_data(target, width=7):
    rng = np.random.default_rng(width)
    x, y = rng.standard_normal((5, 3)), target + rng.standard_normal(5)
    problem = uv_net(x, y, width)
    theta = problem.initial(1)
    hidden, readout = theta[: 3 * width].reshape(width, 3), theta[3 * width :]
    return problem, theta, lambda lr: catapult.LinearNetMoments(x, y, hidden, readout, lr), 0.0


def wide_linear_net_of_several_data(target):
    return linear_net_of_several_data(target, 300)


def linear_net_as_moments(target):
    problem = uv_net([[1.0]], [target], 12)
    theta = problem.initial(3)
    u, v = theta.reshape(2, 12)
    return (
        problem, theta,
        lambda lr: catapult.LinearNetMoments([[1.0]], [target], u[:, None], v, lr), 0.0,
    )  # fmt: skip


def linear_net_as_neurons(target):
    problem = uv_net([[1.0]], [target], 12)
    theta = problem.initial(3)
    u, v = theta.reshape(2, 12)
    return (
        problem, theta,
        lambda lr: catapult.NeuronNet(u, v, (1.0, 1.0), 1 / 12, target, lr), 0.0,
    )  # fmt: skip


def linear_net_in_its_eigenbasis(target):
    problem = uv_net([[1.0]], [target], 12)
    theta = problem.initial(3)
    u, v = theta.reshape(2, 12)
    squares = np.concatenate([(u + v) ** 2, (u - v) ** 2]) / 2
    spectrum = np.repeat([1.0, -1.0], 12)
    return (
        problem, theta,
        lambda lr: catapult.EigenbasisNet(squares, spectrum, 12**-0.5, target, lr), 0.0,
    )  # fmt: skip


def spread_spectrum(target):
    psi = paired_matrices(1, 10, seed=4, low=1.0, high=2.0)
    problem = QuadraticNet(psi, [target])
    theta = problem.initial(5)
    values, vectors = np.linalg.eigh(psi[0])
    squares, zeta = (vectors.T @ theta) ** 2, problem.prefactor
    return (
        problem, theta, lambda lr: catapult.EigenbasisNet(squares, values, zeta, target, lr), 0.0
    )  # fmt: skip


def with_bias(target):
    psi = paired_matrices(1, 8, seed=6, low=1.5, high=1.5)  # psi^2 = 2.25 I
    phi = np.array([0.4, -0.3, 0.6])
    problem = QuadraticNet(psi, [target], features=[phi])
    theta = problem.initial(7)
    linear, flat = phi @ theta[:3], phi @ phi
    quadratic = problem.outputs(theta)[0, 0] - linear
    across = theta[:3] @ theta[:3] - linear**2 / flat

    def reduction(lr):
        curved, kappa = problem.ntk(theta)[0, 0] - flat, 2.25 * problem.prefactor**2
        return BiasNet(linear, quadratic, curved, flat, kappa, target, lr, across)

    return problem, theta, reduction, 0.0


def neurons(target, slopes):
    rng = np.random.default_rng(5)
    width, x = 40, rng.standard_normal(3)
    problem = TwoLayerNet([x], [target], width, slopes)
    theta = problem.initial(8)
    W, v = theta[: 3 * width].reshape(width, 3), theta[3 * width :]
    projections, kappa = W @ x / np.linalg.norm(x), x @ x / (3 * width)
    still = np.sum(W**2) - projections @ projections
    return (
        problem, theta,
        lambda lr: catapult.NeuronNet(projections, v, slopes, kappa, target, lr), still,
    )  # fmt: skip


def relu(target):
    return neurons(target, (1.0, 0.0))


def leaky(target):
    return neurons(target, (1.0, 0.5))


CASES = [
    linear_net_of_several_data,
    wide_linear_net_of_several_data,
    linear_net_as_moments,
    linear_net_as_neurons,
    linear_net_in_its_eigenbasis,
    spread_spectrum,
    with_bias,
    relu,
    leaky,
]


@pytest.mark.parametrize("target", [0.0, 0.5])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_reduction_is_gradient_descent_on_the_weights(case, target):
    problem, theta, reduction, still = case(target)
    for ratio in RATIOS:
        lr = ratio / top_ntk(problem, theta)
        exact = eosim.run(problem, eosim.GradientDescent(lr), theta, STEPS).theta
        expected = {
            "output": [problem.outputs(x)[:, 0] for x in exact],
            "loss": [problem.loss(x) for x in exact],
            "ntk": [top_ntk(problem, x) for x in exact],
            "weight_norm": [x @ x - still for x in exact],
        }
        reduced = catapult.simulate(reduction(lr), STEPS)
        for name, values in expected.items():
            values = np.array(values).reshape(reduced[name].shape)
            scale = np.abs(values).max()
            np.testing.assert_allclose(reduced[name], values, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("target", [0.0, 0.5])
def test_the_two_scalar_maps_are_the_linear_net(target):
    problem, theta, reduction, _ = linear_net_as_moments(target)
    lam = top_ntk(problem, theta)
    for ratio in RATIOS:
        lr = ratio / lam
        c = lr * 12**-0.5
        run = catapult.simulate(reduction(lr), STEPS)
        f, ntk = run["output"][0, 0], lam
        eps, a = c * (f - target), ratio
        for k in range(1, STEPS + 1):
            f, ntk = catapult.output_map(f, ntk, f - target, lr, 1 / 12)
            eps, a = catapult.residual_map(eps, a, c * target)
            assert f == pytest.approx(run["output"][k, 0], rel=1e-10, abs=1e-10)
            assert eps == pytest.approx(c * (f - target), rel=1e-9, abs=1e-12)
            assert (ntk, a / lr) == pytest.approx((run["ntk"][k],) * 2, rel=1e-10)


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_pure_quadratic_model_of_several_data_is_its_loops(ratio):
    rng = np.random.default_rng(9)
    n, size = 3, 6
    psi, y = paired_matrices(n, size, seed=10, low=0.9, high=1.1), rng.standard_normal(n)
    problem = QuadraticNet(psi, y)
    theta = problem.initial(2)
    lr, zeta = ratio / top_ntk(problem, theta), math.sqrt(2 / size)
    run = eosim.run(problem, eosim.GradientDescent(lr), theta, STEPS)
    point = [float(x) for x in theta]
    scale = np.abs(run.theta).max()
    for k in range(STEPS + 1):
        np.testing.assert_allclose(run.theta[k], point, rtol=1e-10, atol=1e-10 * scale)
        gradient = [0.0] * size
        for a in range(n):
            image = [sum(psi[a, i, j] * point[j] for j in range(size)) for i in range(size)]
            e = zeta / 2 * sum(p * q for p, q in zip(point, image, strict=True)) - y[a]
            for i in range(size):
                gradient[i] += e * zeta * image[i] / n
        point = [p - lr * g for p, g in zip(point, gradient, strict=True)]


# --- weight norms --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES[2:6] + CASES[7:], ids=lambda case: case.__name__)
@pytest.mark.parametrize("target", [0.0, 0.5])
def test_the_weight_norm_changes_by_kernel_and_output(case, target):
    """|theta'|^2 - |theta|^2 = eta e (eta e lambda - 4 z), one datum and z of degree two."""
    problem, theta, reduction, _ = case(target)
    lr = 3.1 / top_ntk(problem, theta)
    run = catapult.simulate(reduction(lr), STEPS)
    z, ntk, norm = (np.ravel(run[name]) for name in ("output", "ntk", "weight_norm"))
    move = lr * (z - target)
    error = np.diff(norm) - (move * (move * ntk - 4 * z))[:-1]
    assert np.abs(error).max() < 1e-12 * norm.max()
    if target == 0:  # and so it falls while eta lambda < 4
        assert (np.diff(norm) <= 1e-15 * norm[0]).all()


@pytest.mark.parametrize("target", [0.0, 0.5])
def test_the_monotone_norm_of_the_net_with_bias_changes_by_kernel_and_output(target):
    """W' - W = eta e (eta e (lambda + |phi|^2) - 4 z), W = |theta|^2 + (phi.theta)^2 / |phi|^2."""
    problem, theta, reduction, _ = with_bias(target)
    phi = problem.features[0]
    flat = phi @ phi
    for ratio in RATIOS:
        lr = ratio / top_ntk(problem, theta)
        run = catapult.simulate(reduction(lr), STEPS)
        exact = eosim.run(problem, eosim.GradientDescent(lr), theta, STEPS).theta
        W = np.sum(exact**2, axis=1) + (exact[:, :3] @ phi) ** 2 / flat
        np.testing.assert_allclose(run["monotone_norm"], W, rtol=1e-10)
        z, norm = run["output"], run["monotone_norm"]
        move = lr * (z - target)
        error = np.diff(norm) - (move * (move * (run["ntk"] + flat) - 4 * z))[:-1]
        assert np.abs(error).max() < 1e-12 * norm.max()


def test_below_the_proved_bound_the_monotone_norm_falls_where_the_weight_norm_grows():
    phi = np.array([1.0, -2.0, 0.5])
    problem = QuadraticNet(paired_matrices(1, 8, seed=6), [0.0], features=[phi])
    theta = problem.initial(0)
    theta[:3] = 0
    flat, output = phi @ phi, problem.outputs(theta)[0, 0]
    curved, kappa = problem.ntk(theta)[0, 0] - flat, problem.prefactor**2
    net = BiasNet(0.0, output, curved, flat, kappa, 0.0, 3.99 / problem.ntk_bound(theta))
    run = catapult.simulate(net, 300)
    assert np.diff(run["weight_norm"]).max() > 0.1
    assert (np.diff(run["monotone_norm"]) <= 1e-15 * run["monotone_norm"][0]).all()
    assert run["loss"][-1] < 1e-20


def test_on_a_paired_spectrum_the_weight_norm_is_the_kernel():
    _, _, reduction, _ = linear_net_in_its_eigenbasis(0.0)
    run = catapult.simulate(reduction(0.9), 200)
    np.testing.assert_allclose(run["weight_norm"], 12 * run["ntk"], rtol=1e-14)


@pytest.mark.parametrize(("a", "final", "ratio"), [(2.1, 1.8932, 0.9131), (2.5, 1.2997, 0.5672)])
def test_an_infinitely_wide_spread_spectrum_ends_at_the_known_values(a, final, ratio):
    """mu ~ U(1, 2) in pairs by quadrature; set in motion by a tiny target."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    mu = np.concatenate([1.5 + nodes / 2, -1.5 - nodes / 2])
    squares = np.concatenate([weights, weights]) / 4
    lr = a / (squares @ mu**2)
    run = catapult.simulate(catapult.EigenbasisNet(squares, mu, 1.0, 3e-5, lr), 600)
    assert lr * run["ntk"][-1] == pytest.approx(final, abs=1e-4)
    assert run["weight_norm"][-1] / run["weight_norm"][0] == pytest.approx(ratio, abs=5e-5)


# --- ReLU ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.0, 0.5])
def test_the_kernel_of_a_relu_net_falls_short_of_the_map_only_when_neurons_die(target):
    problem, theta, reduction, _ = relu(target)
    net = reduction(3.1 / top_ntk(problem, theta))
    run = catapult.simulate(net, 60)
    z, ntk = run["output"], run["ntk"]
    _, mapped = catapult.output_map(z, ntk, z - target, net.lr, net.kappa)
    short = mapped[:-1] - ntk[1:]
    deaths = np.diff(run["sparsity"])
    assert (deaths >= 0).all()
    assert (deaths > 0).any()
    assert (np.abs(short[deaths == 0]) < 1e-12 * ntk[0]).all()
    assert (short[deaths > 0] > 1e-12 * ntk[0]).all()


@pytest.mark.parametrize("target", [0.0, 0.5])
def test_a_relu_net_with_one_datum_never_diverges(target):
    rng = np.random.default_rng(11)
    died = 0
    for width in (30, 1000):
        p, v = rng.standard_normal((2, width))
        kappa = 1 / width
        ntk = catapult.NeuronNet(p, v, (1.0, 0.0), kappa, target, 1.0)
        lam = ntk.observe(ntk.start())["ntk"]
        for ratio in (3.9, 4.1, 5.0, 8.0, 12.0, 20.0):
            net = catapult.NeuronNet(p, v, (1.0, 0.0), kappa, target, ratio / lam)
            run = catapult.simulate(net, 3000)
            assert run.status is Status.COMPLETED
            if run["sparsity"][-1] == 1:  # the dead net
                died += 1
                assert run["loss"][-1] == target**2 / 2
                assert run["ntk"][-1] == 0
            else:
                assert net.lr * run["ntk"][-1] < 2  # it converges, however slowly
                assert run["loss"][-1] < run["loss"].max()
    assert died


# Neurons on a grid of angles: sums over them are the integrals, but for one neuron at each end of
# the living. It weighs 1e-4 of the kernel at the start, and up to 10 times as much as others later.
GRID = 20_000


@pytest.mark.parametrize("a", [2.1, 2.5, 3.5, 4.5, 8.0])
def test_the_infinitely_wide_relu_net_is_the_limit_of_neurons_moved_one_by_one(a):
    angles = (np.arange(GRID) + 0.5) * 2 * np.pi / GRID
    kappa = 2 / GRID  # the living half has NTK 1 at the start, so lr is a
    eps = 0.05
    target = -eps / (a * math.sqrt(kappa))  # sets the net in motion; the reduction has label 0 ...
    net = catapult.NeuronNet(np.cos(angles), np.sin(angles), (1.0, 0.0), kappa, target, a)
    state = net.step(net.start())
    net = catapult.NeuronNet(*state, (1.0, 0.0), kappa, 0.0, a)  # ... from the first step on
    wide = catapult.simulate(net, 5)
    limit = catapult.simulate(catapult.InfiniteReLU(a, eps), 6)
    units = {"output": a * math.sqrt(kappa), "ntk": a, "weight_norm": a * kappa, "sparsity": 1}
    for name, unit in units.items():
        scale = max(np.abs(limit[name]).max(), 1)
        np.testing.assert_allclose(unit * wide[name], limit[name][1:], atol=1e-3 * scale)


@pytest.mark.parametrize(
    ("a", "sparsity", "final", "spread"), [(2.1, 0.5084, 1.9231, 1e-4), (2.5, 0.547, 1.5105, 2e-3)]
)
def test_the_infinitely_wide_relu_net_ends_at_the_known_values(a, sparsity, final, spread):
    reduced = catapult.simulate(catapult.InfiniteReLU(a), 500)
    assert reduced["sparsity"][-1] == pytest.approx(sparsity, abs=5e-4)
    assert reduced["ntk"][-1] == pytest.approx(final, abs=spread)


@pytest.mark.parametrize("a", [2.5, 3.5, 5.0, 20.0])
def test_the_infinitely_wide_relu_net_never_diverges(a):
    run = catapult.simulate(catapult.InfiniteReLU(a), 3000)
    assert run.status is Status.COMPLETED
    assert run["loss"][-1] < 1e-20
    assert (np.diff(run["sparsity"]) >= 0).all()
    if a < 4:
        assert (np.diff(run["ntk"]) <= 1e-7).all()  # the first step is by hand: eps_0 = 1e-4


# --- the driver, and bad input -------------------------------------------------------------------


def test_a_diverging_reduction_ends_with_its_step():
    x = np.ones((1, 1))
    run = catapult.simulate(
        catapult.LinearNetMoments(x, [0.0], [[1.0], [0.5]], [0.3, -1.0], 9.0), 100
    )
    assert run.status is Status.DIVERGED
    assert run.stop_step == len(run)
    assert np.isfinite(run["loss"]).all()
    assert "diverged" in run.message


def test_a_diverging_net_with_bias_ends_with_its_step():
    run = catapult.simulate(BiasNet(0.5, 0.1, 1.0, 1.0, 0.1, 0.0, 4.1), 100)
    assert run.status is Status.DIVERGED
    assert np.isfinite(run["loss"]).all()


BIAS = {
    "linear": 0.5, "quadratic": 0.1, "curved": 1.0, "flat": 1.0, "kappa": 0.1, "target": 0.0,
    "lr": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("call", "exception", "words"),
    [
        (lambda: catapult.InfiniteReLU(2.5, 0.0), ValueError, "eps must not be 0"),
        (lambda: catapult.InfiniteReLU(-1.0), ValueError, "a must be"),
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
        (lambda: BiasNet(**BIAS | {"flat": 0.0}), ValueError, "flat must be"),
        (lambda: BiasNet(**BIAS | {"kappa": -1.0}), ValueError, "kappa must be"),
        (lambda: BiasNet(**BIAS | {"lr": "1"}), TypeError, "lr must be"),
        (lambda: BiasNet(**BIAS | {"linear": np.nan}), ValueError, "linear must be"),
        (lambda: BiasNet(**BIAS, across=-1.0), ValueError, "across must be"),
        (lambda: BiasNet(**BIAS | {"quadratic": -2.0}), ValueError, "curved must be at least"),
    ],
)
def test_wrong_input_is_refused_by_name(call, exception, words):
    with pytest.raises(exception, match=words):
        call()
