"""Changes of a problem that change no path, or change it by a known map.

A rotation of the parameters, an order or a doubling of the samples, a unit of the loss or of the
parameters: each test runs both sides and maps one onto the other.
"""

from dataclasses import dataclass

import numpy as np
import pytest

import eosim
from eosim import measure, moments, stability
from tests.cases import QUARTIC_TERMS, edge_network, regression, rotation, symmetric

LR = 0.3
START = np.array([0.7, -0.5])
QUARTIC = eosim.Polynomial(QUARTIC_TERMS)
RULES = {
    "gradient descent": eosim.GradientDescent(LR),
    "heavy ball": eosim.HeavyBall(LR / 4, 0.8),
    "Nesterov": eosim.Nesterov(LR / 4, 0.8),
    "average": eosim.EMAMomentum(LR, 0.7),
    "quasi-hyperbolic": eosim.QuasiHyperbolic(LR, 0.8, 0.6),
}
# Flows of the problem alone and of (problem, rule), each made for a problem and a rate.
FLOWS = {
    "gradient": lambda problem, lr: eosim.GradientFlow(problem, lr),
    "modified": lambda problem, lr: eosim.ModifiedFlow(problem, lr, 3),
    "principal": lambda problem, lr: eosim.PrincipalFlow(problem, lr),
    "edge": lambda problem, lr: eosim.EdgeFlow(problem, lr),
    "central": lambda problem, lr: eosim.CentralFlow(problem, eosim.GradientDescent(lr), n_modes=2),
    "rod": lambda problem, lr: eosim.RodFlow(problem, eosim.GradientDescent(lr)),
}
# Rounding of one side grows along the path: on these it stays below this share of the path.
TIGHT = {"rtol": 1e-10, "atol": 1e-12}
# Both sides are integrated to 1e-10 per step, over some hundred steps.
SOLVED = {"rtol": 3e-8, "atol": 1e-9}


@dataclass(frozen=True)
class Turned:
    """``problem`` in the coordinates phi = basis^T theta / unit, with its loss times ``scale``."""

    problem: object
    basis: np.ndarray
    unit: float = 1.0
    scale: float = 1.0

    @property
    def dim(self):
        return self.problem.dim

    @property
    def n_samples(self):
        return self.problem.n_samples

    @property
    def analytic(self):
        return self.problem.analytic

    def theta(self, phi):
        return self.unit * (self.basis @ phi)

    def loss(self, phi, *batch):
        return self.scale * self.problem.loss(self.theta(phi), *batch)

    def gradient(self, phi, *batch):
        slope = self.problem.gradient(self.theta(phi), *batch)
        return self.scale * self.unit * (self.basis.T @ slope)

    def hvp(self, phi, v, *batch):
        product = self.problem.hvp(self.theta(phi), self.basis @ v, *batch)
        return self.scale * self.unit**2 * (self.basis.T @ product)

    def hessian(self, phi):
        matrix = self.problem.hessian(self.theta(phi))
        return self.scale * self.unit**2 * (self.basis.T @ matrix @ self.basis)


def turned(problem, start, seed=1):
    basis = rotation(problem.dim, seed)
    return Turned(problem, basis), basis.T @ start


def samples(n_samples=8, n_features=3, n_outputs=1, seed=0):
    generator = np.random.default_rng(seed)
    return (
        generator.standard_normal((n_samples, n_features)),
        generator.standard_normal((n_samples, n_outputs)),
    )


# --- a rotation of the parameters ---------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rotation_of_the_parameters_rotates_the_run(rule):
    problem, start = turned(QUARTIC, START)
    path, other = eosim.run(QUARTIC, rule, START, 60), eosim.run(problem, rule, start, 60)
    np.testing.assert_allclose(other.theta @ problem.basis.T, path.theta, **TIGHT)
    np.testing.assert_allclose(other["loss"], path["loss"], **TIGHT)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rotation_of_the_parameters_rotates_a_run_on_batches(rule):
    data, start = regression(), np.ones(4)
    problem, turned_start = turned(data, start)
    options = {"batch_size": 3, "seed": 5}
    path = eosim.run(data, rule, start, 60, **options)
    other = eosim.run(problem, rule, turned_start, 60, **options)
    np.testing.assert_allclose(other.theta @ problem.basis.T, path.theta, **TIGHT)


def test_adam_knows_its_axes():
    """The map is no symmetry of rules that divide by coordinates: these tests can fail."""
    problem, start = turned(QUARTIC, START)
    path = eosim.run(QUARTIC, eosim.Adam(0.01), START, 60)
    other = eosim.run(problem, eosim.Adam(0.01), start, 60)
    assert np.abs(other.theta @ problem.basis.T - path.theta).max() > 1e-2


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_a_rotation_of_the_parameters_rotates_a_flow(make):
    problem, start = turned(QUARTIC, START)
    times = [0.0, 0.3, 0.9]
    path = eosim.integrate(make(QUARTIC, LR), START, times)
    other = eosim.integrate(make(problem, LR), start, times)
    assert path.status is other.status is eosim.Status.COMPLETED
    np.testing.assert_allclose(other.theta @ problem.basis.T, path.theta, **SOLVED)


@pytest.mark.parametrize("name", ["central", "edge"])
def test_a_rotation_rotates_a_flow_at_the_edge_of_stability(name):
    """Where the constraint is active: the network's sharpness is held at 2/lr."""
    network, start = edge_network()
    arrived = eosim.run(network, eosim.GradientDescent(0.7), start, 150, record={})
    start = arrived.theta[-1]
    problem, turned_start = turned(network, start)
    times = [0.0, 1.4]
    path = eosim.integrate(FLOWS[name](network, 0.7), start, times, rtol=1e-8, atol=1e-10)
    other = eosim.integrate(FLOWS[name](problem, 0.7), turned_start, times, rtol=1e-8, atol=1e-10)
    assert path.status is other.status
    np.testing.assert_allclose(other.theta @ problem.basis.T, path.theta, rtol=1e-5, atol=1e-6)
    assert measure.sharpness(network, path.theta[-1]).value == pytest.approx(2 / 0.7, rel=0.02)


def test_a_rotation_of_the_parameters_changes_no_measure():
    problem, start = turned(QUARTIC, START)
    for function in (
        measure.loss,
        measure.gradient_norm,
        lambda *where: measure.sharpness(*where).value,
        lambda *where: measure.spectrum_ends(*where)[:2],
        lambda *where: measure.hessian_trace(*where).value,
        lambda *where: measure.hessian_frobenius(*where).value,
    ):
        np.testing.assert_allclose(function(problem, start), function(QUARTIC, START), rtol=1e-12)


def test_a_rotation_of_the_inputs_changes_nothing_but_the_parameters():
    inputs, targets = samples()
    basis, start = rotation(3, 2), np.array([0.5, -1.0, 2.0])
    one = eosim.LinearRegression(inputs, targets)
    other = eosim.LinearRegression(inputs @ basis, targets)
    options = {"batch_size": 2, "seed": 3}
    path = eosim.run(one, eosim.HeavyBall(0.05), start, 80, **options)
    mapped = eosim.run(other, eosim.HeavyBall(0.05), basis.T @ start, 80, **options)
    np.testing.assert_allclose(mapped.theta @ basis.T, path.theta, **TIGHT)
    kernels = [stability.tangent_kernel(p, np.zeros(3)) for p in (one, other)]
    same(kernels, rtol=1e-10)
    for function in (measure.ntk_spectrum, measure.gauss_newton_spectrum):
        np.testing.assert_allclose(
            function(one, start), function(other, basis.T @ start), rtol=1e-10, atol=1e-14
        )
    np.testing.assert_allclose(
        measure.loss_alignment(one, start),
        measure.loss_alignment(other, basis.T @ start),
        rtol=1e-9,
    )


def same(kernels, rtol, batch_size=2, **options):
    """Whether two kernels have the same thresholds and rates."""
    one, other = kernels
    for momentum in (0.0, 0.5):
        edges = [
            stability.critical_lr(kernel, batch_size, momentum=momentum, **options)
            for kernel in (one, other)
        ]
        np.testing.assert_allclose(edges[1], edges[0], rtol=rtol)
        rates = [
            stability.growth_rate(kernel, 1.5 * edges[0], batch_size, momentum=momentum, **options)
            for kernel in (one, other)
        ]
        np.testing.assert_allclose(rates[1], rates[0], rtol=rtol)


# --- the order of the samples -------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_order_of_the_samples_changes_no_run_on_all_of_them(rule):
    inputs, targets = samples()
    order = np.random.default_rng(1).permutation(8)
    one = eosim.LinearRegression(inputs, targets)
    other = eosim.LinearRegression(inputs[order], targets[order])
    np.testing.assert_allclose(
        eosim.run(other, rule, np.ones(3), 80).theta,
        eosim.run(one, rule, np.ones(3), 80).theta,
        **TIGHT,
    )


@dataclass(frozen=True)
class Renamed:
    """A problem whose sample i is called order[i]."""

    problem: object
    order: np.ndarray

    @property
    def dim(self):
        return self.problem.dim

    @property
    def n_samples(self):
        return self.problem.n_samples

    def loss(self, theta, batch=None):
        return self.problem.loss(theta, None if batch is None else self.order[batch])

    def gradient(self, theta, batch=None):
        return self.problem.gradient(theta, None if batch is None else self.order[batch])


@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement", "bernoulli"])
def test_an_order_of_the_samples_maps_the_batches(sampling):
    """Batches of the ordered data, named as in the original: the same path to rounding."""
    inputs, targets = samples()
    order = np.random.default_rng(1).permutation(8)
    one = eosim.LinearRegression(inputs, targets)
    ordered = eosim.LinearRegression(inputs[order], targets[order])
    options = {"batch_size": 3, "seed": 7, "sampling": sampling}
    rule = eosim.HeavyBall(0.05)
    # sample i of the original is sample argsort(order)[i] of the ordered data
    path = eosim.run(one, rule, np.ones(3), 60, **options)
    mapped = eosim.run(Renamed(ordered, np.argsort(order)), rule, np.ones(3), 60, **options)
    np.testing.assert_allclose(mapped.theta, path.theta, **TIGHT)
    unmapped = eosim.run(ordered, rule, np.ones(3), 60, **options)
    assert np.abs(unmapped.theta - path.theta).max() > 1e-3


def test_the_order_of_the_samples_changes_no_threshold_nor_prediction():
    inputs, targets = samples(n_features=6)
    order = np.random.default_rng(1).permutation(8)
    one = eosim.LinearRegression(inputs, targets)
    other = eosim.LinearRegression(inputs[order], targets[order])
    kernels = [stability.tangent_kernel(p, np.zeros(6)) for p in (one, other)]
    for sampling in ("without_replacement", "with_replacement", "bernoulli"):
        same(kernels, rtol=1e-9, sampling=sampling)
    start = [-targets[:, 0], -targets[order, 0]]
    for model in (
        lambda kernel: moments.Covariance(kernel, 0.05, 2),
        lambda kernel: moments.Covariance(kernel, 0.05, 2, momentum=0.5),
        lambda kernel: moments.DiagonalClosure(kernel, 0.05, 2),
        lambda kernel: moments.HomogenizedSGD(kernel, 0.05, 2),
    ):
        losses = [
            eosim.predict(model(kernel), residuals, 30)["loss"]
            for kernel, residuals in zip(kernels, start, strict=True)
        ]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-9)


# --- duplicated samples -------------------------------------------------------------------------


def test_a_copy_of_all_samples_changes_nothing_on_all_of_them():
    inputs, targets = samples()
    one = eosim.LinearRegression(inputs, targets)
    twice = eosim.LinearRegression(np.repeat(inputs, 2, axis=0), np.repeat(targets, 2, axis=0))
    start = np.ones(3)
    for rule in RULES.values():
        path, other = eosim.run(one, rule, start, 60), eosim.run(twice, rule, start, 60)
        np.testing.assert_allclose(other.theta, path.theta, **TIGHT)
        np.testing.assert_allclose(other["loss"], path["loss"], **TIGHT)
    for name in ("gradient", "principal", "central", "edge"):
        flows = [FLOWS[name](problem, LR) for problem in (one, twice)]
        paths = [eosim.integrate(flow, start, [0.0, 1.0]).theta for flow in flows]
        np.testing.assert_allclose(paths[1], paths[0], **SOLVED)
    spectra = [measure.ntk_spectrum(problem, start) for problem in (one, twice)]
    np.testing.assert_allclose(spectra[1][:8], spectra[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(spectra[1][8:], 0.0, atol=1e-14)


def test_draws_with_replacement_cannot_tell_a_copy():
    """Uniform over 2n copies is uniform over n samples; without replacement it is not."""
    inputs, targets = samples(n_features=6)
    one = eosim.LinearRegression(inputs, targets)
    twice = eosim.LinearRegression(np.repeat(inputs, 2, axis=0), np.repeat(targets, 2, axis=0))
    kernels = [stability.tangent_kernel(p, np.zeros(6)) for p in (one, twice)]
    same(kernels, rtol=1e-9, sampling="with_replacement")
    losses = [
        eosim.predict(
            moments.Covariance(kernel, 0.05, 2, sampling="with_replacement"), residuals, 30
        )["loss"]
        for kernel, residuals in zip(
            kernels, (-targets[:, 0], -np.repeat(targets[:, 0], 2)), strict=True
        )
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-9)
    edges = [stability.critical_lr(kernel, 6) for kernel in kernels]
    assert edges[1] < 0.99 * edges[0]  # 6 of 8 are nearly all of them, 6 of 16 are not


# --- units --------------------------------------------------------------------------------------

UNITS = (1e-6, 0.1, 3.0, 1e6)


@pytest.mark.parametrize("scale", UNITS)
@pytest.mark.parametrize("rule", ["gradient descent", "heavy ball", "Nesterov", "average"])
def test_a_unit_of_the_loss_is_a_unit_of_the_rate(rule, scale):
    """lr L is all that a linear rule sees."""
    one = RULES[rule]
    other = type(one)(one.lr / scale, *([one.momentum] if hasattr(one, "momentum") else []))
    problem = Turned(QUARTIC, np.eye(2), scale=scale)
    path, mapped = eosim.run(QUARTIC, one, START, 60), eosim.run(problem, other, START, 60)
    np.testing.assert_allclose(mapped.theta, path.theta, **TIGHT)
    np.testing.assert_allclose(mapped["loss"], scale * path["loss"], **TIGHT)
    np.testing.assert_allclose(mapped.t, path.t / scale, rtol=1e-14)
    np.testing.assert_allclose(
        stability.critical_sharpness(other), scale * stability.critical_sharpness(one), rtol=1e-9
    )


@pytest.mark.parametrize("scale", UNITS)
@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_a_unit_of_the_loss_is_a_unit_of_the_time_of_a_flow(make, scale):
    problem, times = Turned(QUARTIC, np.eye(2), scale=scale), np.array([0.0, 0.3, 0.9])
    path = eosim.integrate(make(QUARTIC, LR), START, times)
    other = eosim.integrate(make(problem, LR / scale), START, times / scale)
    assert path.status is other.status is eosim.Status.COMPLETED
    np.testing.assert_allclose(other.theta, path.theta, **SOLVED)


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_of_the_parameters_is_a_unit_of_the_rate(unit):
    """theta = unit phi: gradients in phi are unit times as large, steps must be 1 / unit."""
    problem = Turned(QUARTIC, np.eye(2), unit=unit)
    start = START / unit
    for kind in (eosim.GradientDescent, eosim.HeavyBall):
        path = eosim.run(QUARTIC, kind(LR / 4), START, 60)
        mapped = eosim.run(problem, kind(LR / 4 / unit**2), start, 60)
        np.testing.assert_allclose(unit * mapped.theta, path.theta, **TIGHT)
    for function, power in ((measure.sharpness, 2), (measure.hessian_trace, 2)):
        np.testing.assert_allclose(
            function(problem, start).value, unit**power * function(QUARTIC, START).value, rtol=1e-10
        )


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_of_the_inputs_is_a_unit_of_the_thresholds(unit):
    inputs, targets = samples(n_features=6)
    kernels = [
        stability.tangent_kernel(eosim.LinearRegression(x, targets), np.zeros(6))
        for x in (inputs, unit * inputs)
    ]
    for momentum in (0.0, 0.9):
        edges = [stability.critical_lr(kernel, 2, momentum=momentum) for kernel in kernels]
        np.testing.assert_allclose(edges[1] * unit**2, edges[0], rtol=1e-9)
    for kind in ("finite", "delocalised"):
        edges = [stability.critical_lr(kernel, 2, kind=kind) for kernel in kernels]
        np.testing.assert_allclose(edges[1] * unit**2, edges[0], rtol=1e-9)
    sizes = [stability.generalised_sharpness(kernel, 2) for kernel in kernels]
    np.testing.assert_allclose(sizes[1], unit**2 * sizes[0], rtol=1e-9)
    losses = [
        eosim.predict(moments.Covariance(kernel, lr, 2), -targets[:, 0], 30)["loss"]
        for kernel, lr in zip(kernels, (0.05, 0.05 / unit**2), strict=True)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-9)


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_of_the_targets_is_a_unit_of_the_residuals(unit):
    inputs, targets = samples()
    one, other = (eosim.LinearRegression(inputs, y) for y in (targets, unit * targets))
    options = {"batch_size": 2, "seed": 0}
    path = eosim.run(one, eosim.HeavyBall(0.05), np.zeros(3), 60, **options)
    mapped = eosim.run(other, eosim.HeavyBall(0.05), np.zeros(3), 60, **options)
    np.testing.assert_allclose(mapped.theta / unit, path.theta, **TIGHT)
    np.testing.assert_allclose(mapped["loss"] / unit**2, path["loss"], rtol=1e-10)
    kernel = stability.tangent_kernel(one, np.zeros(3))
    losses = [
        eosim.predict(moments.Covariance(kernel, 0.05, 2), size * targets[:, 0], 30)["loss"]
        for size in (1.0, unit)
    ]
    np.testing.assert_allclose(losses[1], unit**2 * losses[0], rtol=1e-10)


@pytest.mark.parametrize("unit", UNITS)
def test_the_catapult_has_no_unit(unit):
    """Inputs times s and targets times s, with the rate over s^2: the same net, the same path."""
    inputs, targets = samples(n_samples=1, n_features=2)
    start = np.random.default_rng(3).standard_normal(12)
    one = eosim.uv_net(inputs, targets, 4)
    other = eosim.uv_net(unit * inputs, unit * targets, 4)
    lr = 2.5 / measure.ntk_spectrum(one, start)[0]
    path = eosim.run(one, eosim.GradientDescent(lr), start, 100)
    mapped = eosim.run(other, eosim.GradientDescent(lr / unit**2), start, 100)
    np.testing.assert_allclose(mapped.theta, path.theta, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(mapped["loss"] / unit**2, path["loss"], rtol=1e-6, atol=1e-9)


# --- time, starts and copies of the dynamics ----------------------------------------------------


def test_a_sum_of_separate_problems_runs_each_by_itself():
    blocks = [symmetric([1.0, 3.0]), symmetric([-0.5, 2.0, 0.1], seed=4)]
    whole = np.zeros((5, 5))
    whole[:2, :2], whole[2:, 2:] = blocks
    start = np.linspace(-1, 2, 5)
    for rule in RULES.values():
        path = eosim.run(eosim.Quadratic(whole), rule, start, 30).theta
        parts = [
            eosim.run(eosim.Quadratic(block), rule, start[piece], 30).theta
            for block, piece in zip(blocks, (slice(0, 2), slice(2, 5)), strict=True)
        ]
        np.testing.assert_allclose(path, np.hstack(parts), **TIGHT)


def test_a_shift_of_the_minimum_shifts_every_path():
    matrix, shift = symmetric([1.0, 3.0]), np.array([5.0, -7.0])
    one, other = eosim.Quadratic(matrix), eosim.Quadratic(matrix, shift)
    for rule in (*RULES.values(), eosim.Adam(0.05)):
        path, mapped = eosim.run(one, rule, START, 50), eosim.run(other, rule, START + shift, 50)
        np.testing.assert_allclose(mapped.theta - shift, path.theta, rtol=1e-9, atol=1e-10)
    for make in FLOWS.values():
        path, mapped = (
            eosim.integrate(make(problem, LR), start, [0.0, 1.0]).theta
            for problem, start in ((one, START), (other, START + shift))
        )
        np.testing.assert_allclose(mapped - shift, path, **SOLVED)


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_asking_for_more_times_changes_no_state(make):
    flow = make(QUARTIC, LR)
    few = eosim.integrate(flow, START, [0.0, 0.9]).theta
    many = eosim.integrate(flow, START, np.linspace(0.0, 0.9, 4)).theta
    np.testing.assert_allclose(many[[0, -1]], few, **SOLVED)


def test_recording_less_often_changes_no_state():
    for rule in RULES.values():
        every, seldom = (eosim.run(QUARTIC, rule, START, 60, every=k) for k in (1, 7))
        np.testing.assert_array_equal(every.theta[seldom.step], seldom.theta)
