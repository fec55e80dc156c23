"""Rates of loss and sharpness along a flow, against differences along its path."""

import mpmath
import numpy as np
import pytest

import eosim
from eosim import Status
from eosim.flows.rates import loss_rate, sharpness_rate
from tests.cases import QUARTIC_TERMS, edge_network, symmetric

QUARTIC, POINT = eosim.Polynomial(QUARTIC_TERMS), np.array([0.7, -0.5])


def flows(problem, lr):
    return {
        "gradient": eosim.GradientFlow(problem, lr),
        "modified": eosim.ModifiedFlow(problem, lr, 3),
        "principal": eosim.PrincipalFlow(problem, lr),
        "corrected": eosim.PrincipalFlow(problem, lr, corrections=2),
        "heavy ball": eosim.HeavyBallPrincipalFlow(problem, lr, 0.4),
    }


def around(flow, start, time, step):
    """States at time -+ step, and at time."""
    path = eosim.integrate(
        flow, start, [time - step, time, time + step], rtol=1e-13, atol=1e-15, record={}
    )
    assert path.status is Status.COMPLETED
    return path.theta


@pytest.mark.parametrize("lr", [0.3, 1.4], ids=["real", "complex"])
@pytest.mark.parametrize("name", flows(QUARTIC, 1.0))
def test_the_loss_rate_is_the_slope_of_the_loss_along_the_path(name, lr):
    flow = flows(QUARTIC, lr)[name]
    start, step = POINT, 1e-5 * lr
    before, middle, after = around(flow, start, 0.02 * lr, step)
    slope = (QUARTIC.loss(after) - QUARTIC.loss(before)) / (2 * step)
    # the path is short enough to stay on the branch of its start
    branch = flow.init(start) if hasattr(flow, "init") else None
    rate = loss_rate(flow, middle, branch)
    assert rate == pytest.approx(slope, rel=3e-6)
    if lr > 1 and name in ("principal", "corrected"):
        assert abs(rate.imag) > 1e-3


@pytest.mark.parametrize("lr", [0.3, 1.4], ids=["real", "complex"])
def test_the_loss_rate_at_a_real_state_is_the_sum_over_directions(lr):
    flow = eosim.PrincipalFlow(QUARTIC, lr)
    values, vectors = np.linalg.eigh(QUARTIC.hessian(POINT))
    weights = (vectors.T @ QUARTIC.gradient(POINT)) ** 2
    expected = flow.coefficient(lr * values) @ weights
    assert loss_rate(flow, POINT) == pytest.approx(expected, rel=1e-13)
    assert np.ndim(loss_rate(flow, POINT)) == 0
    gradient_flow = loss_rate(eosim.GradientFlow(QUARTIC), POINT)
    assert gradient_flow == pytest.approx(-weights.sum(), rel=1e-14)


def test_a_direction_adds_to_the_loss_only_where_h_lambda_is_above_2():
    theta = np.array([1.0])
    for z, sign in ((0.5, -1), (1.5, -1), (1.99, -1), (2.01, 1), (3.0, 1)):
        flow = eosim.PrincipalFlow(eosim.Quadratic([[z]]), 1.0)
        assert np.sign(np.real(loss_rate(flow, theta))) == sign
    flow = eosim.PrincipalFlow(eosim.Quadratic([[2.0]]), 1.0)
    assert abs(np.real(loss_rate(flow, theta))) < 1e-15
    flow = eosim.PrincipalFlow(eosim.Quadratic([[-0.5]]), 1.0)
    assert np.real(loss_rate(flow, theta)) < 0


@pytest.mark.parametrize("lr", [0.2, 0.7, 1.3])
def test_on_a_quadratic_the_loss_rate_integrates_to_the_change_of_one_step(lr):
    # z between -.65 and 2.6, each side of 1 and of 2
    eigenvalues = np.array([2.0, 0.9, 0.3, 0.0, -0.5])
    matrix = symmetric(eigenvalues, 2)
    problem = eosim.Quadratic(matrix)
    flow, theta = eosim.PrincipalFlow(problem, lr), np.array([1.0, -2.0, 0.5, 1.5, 0.3])
    values, vectors = np.linalg.eigh(matrix)
    weights = (vectors.T @ problem.gradient(theta)) ** 2
    by_formula = -lr * ((1 - lr * values / 2) @ weights)
    step = theta - lr * problem.gradient(theta)
    assert by_formula == pytest.approx(problem.loss(step) - problem.loss(theta), rel=1e-12)

    branch = flow.init(theta)

    def rate(t):
        state = eosim.closed_form(flow, theta, [float(t)])[0]
        return mpmath.mpc(complex(loss_rate(flow, state, branch)))

    integral = mpmath.quad(rate, np.linspace(0, lr, 5).tolist(), maxdegree=4)
    assert complex(integral) == pytest.approx(by_formula, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("lr", [0.3, 1.4], ids=["real", "complex"])
@pytest.mark.parametrize("name", flows(QUARTIC, 1.0))
def test_the_sharpness_rate_is_the_slope_of_the_top_eigenvalue(name, lr):
    flow = flows(QUARTIC, lr)[name]
    step = 1e-5
    velocity = flow.field(POINT)

    def top(theta):
        values = np.linalg.eigvals(QUARTIC.hessian(theta))
        return values[np.argmax(values.real)]

    slope = (top(POINT + step * velocity) - top(POINT - step * velocity)) / (2 * step)
    assert sharpness_rate(flow, POINT) == pytest.approx(slope, rel=1e-6)


def test_the_sharpness_rate_along_an_integrated_path():
    problem, theta = edge_network()
    flow = eosim.ModifiedFlow(problem, 0.2, 2)
    before, middle, after = around(flow, theta, 0.2, 1e-3)
    slope = (
        eosim.measure.sharpness(problem, after).value
        - eosim.measure.sharpness(problem, before).value
    ) / 2e-3
    assert sharpness_rate(flow, middle) == pytest.approx(slope, rel=1e-5)


def test_the_sharpness_rate_is_the_sum_over_directions():
    lr = 1.4
    flow = eosim.PrincipalFlow(QUARTIC, lr)
    values, vectors = np.linalg.eigh(QUARTIC.hessian(POINT))
    top, third = vectors[:, -1], QUARTIC.derivative(POINT, 3)
    slope_of_top = np.einsum("ijk,j,k->i", third, top, top)
    expected = 0
    for z, u in zip(lr * values, vectors.T, strict=True):
        alpha = flow.coefficient(z)
        expected = expected + alpha * (u @ QUARTIC.gradient(POINT)) * (u @ slope_of_top)
    assert sharpness_rate(flow, POINT) == pytest.approx(expected, rel=1e-12)
    against = -slope_of_top @ QUARTIC.gradient(POINT)
    assert sharpness_rate(eosim.GradientFlow(QUARTIC), POINT) == pytest.approx(against, rel=1e-12)


def test_a_state_of_complex_type_on_the_real_axis_is_a_real_state():
    flow = eosim.PrincipalFlow(QUARTIC, 0.3)
    for rate in (loss_rate, sharpness_rate):
        assert rate(flow, POINT + 0j) == pytest.approx(rate(flow, POINT), rel=1e-12)


def test_the_sharpness_rate_off_the_real_axis_is_refused():
    # An eigen-solver would read the complex-symmetric Hessian as a Hermitian one.
    flow = eosim.PrincipalFlow(QUARTIC, 0.3)
    with pytest.raises(ValueError, match="real"):
        sharpness_rate(flow, POINT + np.array([0.2j, 0.1j]))


@pytest.mark.parametrize(
    "problem",
    [
        eosim.Quadratic(symmetric([2.0, 2.0, 1.0])),
        eosim.Quadratic(np.zeros((3, 3))),
        eosim.Cosine(3),
    ],
    ids=["quadratic", "flat", "cosine"],
)
def test_a_degenerate_top_eigenvalue_has_no_rate(problem):
    with pytest.raises(ValueError, match="simple top eigenvalue"):
        sharpness_rate(eosim.GradientFlow(problem), np.full(3, 0.3))


def test_one_dimension_has_a_simple_top_eigenvalue():
    flow = eosim.GradientFlow(eosim.Cosine())
    theta = np.array([0.4])  # lambda = cos, dlambda/dt = sin^2
    assert sharpness_rate(flow, theta) == pytest.approx(np.sin(0.4) ** 2, rel=1e-13)
