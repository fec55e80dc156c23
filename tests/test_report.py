"""What a stability report says away from minima, and of problems with part of the interface."""

import numpy as np
import pytest

import eosim
from eosim import measure
from eosim.stability import critical_lr, report, tangent_kernel


def near_a_saddle():
    """Almost no Jacobian, so that G is tiny, and a Hessian with both signs."""
    rng = np.random.default_rng(0)
    net = eosim.LinearNet(rng.standard_normal((10, 2)), rng.standard_normal(10), (2,))
    return net, np.full(net.dim, 1e-3)


def test_away_from_minima_no_verdict_is_stable():
    net, theta = near_a_saddle()
    found = report(net, theta, 0.1, 2)
    assert found.bounds["exact"].value > 1e4  # what G alone would allow
    assert found.verdict == "undecided"
    assert "the gradient is not zero" in str(found)
    assert "negative eigenvalue" in str(found)
    beyond = 2.1 / measure.sharpness(net, theta).value
    assert report(net, theta, beyond, 2).verdict == "unstable"


def test_a_saddle_is_unstable_at_every_rate():
    for lr in (1e-3, 10.0):
        found = report(eosim.Quadratic(np.diag([2.0, -3.0])), np.zeros(2), lr, 1)
        assert found.verdict == "unstable"
        assert "negative eigenvalue" in str(found)


@pytest.mark.parametrize("levels", [(1.0, -1.0), (2.0, -1.0, -1.0), (2.0, -1.0, -3.0)])
def test_a_saddle_without_a_trace_is_unstable_at_every_rate(levels):
    saddle = eosim.Quadratic(np.diag(levels))
    for lr in (1e-3, 10.0):
        found = report(saddle, np.zeros(len(levels)), lr, 1, sampling="with_replacement")
        assert found.trace.value <= 0
        assert found.bounds.keys() == {"edge"}
        assert found.verdict == "unstable"


def test_a_linear_model_has_one_verdict_at_every_theta():
    problem = eosim.RandomFeatures.draw(12, 3, 40, seed=0)
    theta = np.zeros(40)
    threshold = critical_lr(tangent_kernel(problem, theta), 2)
    assert report(problem, theta, 0.9 * threshold, 2).verdict == "stable"
    assert report(problem, theta, 1.1 * threshold, 2).verdict == "unstable"
    assert "the same" in str(report(problem, theta, threshold, 2))


class Products:
    """Least squares that can neither form its Jacobian nor its Hessian."""

    def __init__(self, rows):
        self.rows = rows
        self.n_samples, self.dim = rows.shape

    def residuals(self, theta, batch=None):
        return (self.rows @ theta)[:, None]

    def loss(self, theta, batch=None):
        return float(np.sum((self.rows @ theta) ** 2)) / (2 * self.n_samples)

    def gradient(self, theta, batch=None):
        return self.rows.T @ (self.rows @ theta) / self.n_samples

    def hvp(self, theta, v, batch=None):
        return self.rows.T @ (self.rows @ v) / self.n_samples


def test_products_and_residuals_give_the_trace_bounds():
    rows = np.random.default_rng(2).standard_normal((4, 3))
    found = report(Products(rows), np.zeros(3), 0.1, 1)
    trace, edge = np.sum(rows**2) / 4, np.linalg.norm(rows, 2) ** 2 / 4
    assert set(found.bounds) == {"edge", "generalised_trace", "trace"}
    assert found.bounds["trace"].value == pytest.approx(2 / trace, rel=1e-12)
    assert found.bounds["edge"].value == pytest.approx(2 / edge, rel=1e-12)
    assert found.growth_rate is None


@pytest.mark.parametrize("scale", [1e-100, 1e70])
def test_a_verdict_has_no_unit(scale):
    rows = np.random.default_rng(2).standard_normal((4, 3))
    for make in (lambda x: eosim.LinearRegression(x, np.zeros(4)), Products):
        for lr in (0.01, 10.0):
            found = report(make(scale * rows), np.zeros(3), lr / scale / scale, 1)
            assert found.verdict == report(make(rows), np.zeros(3), lr, 1).verdict
            assert found.trace.value > 0


def test_doubt_about_an_estimated_trace_is_none_about_the_edge(monkeypatch):
    rows = np.random.default_rng(2).standard_normal((4, 3))
    problem, edge = Products(rows), 8 / np.linalg.norm(rows, 2) ** 2
    loose = measure.Estimate(float(np.sum(rows**2)) / 4, 10.0)
    monkeypatch.setattr(measure, "hessian_trace", lambda problem, theta: loose)
    # The full batch, whose one limit is the edge; all is fitted, so that nothing else is asked.
    assert report(problem, np.zeros(3), 1.01 * edge, 4).verdict == "unstable"
    assert report(problem, np.zeros(3), 0.99 * edge, 4).verdict == "undecided"


def test_a_network_with_cross_entropy_is_reported_from_products():
    rng = np.random.default_rng(0)
    labels = np.eye(3)[rng.integers(0, 3, 20)]
    net = eosim.Perceptron(rng.standard_normal((20, 4)), labels, (5,), criterion="cross_entropy")
    theta = net.initial(0)
    found = report(net, theta, 0.1, 2)
    edge = 2 / measure.sharpness(net, theta).value
    assert found.bounds.keys() == {"edge"}
    assert found.bounds["edge"].value == pytest.approx(edge, rel=1e-12)
    assert found.residual is None
    assert "no residuals and Jacobian" in str(found)


def test_large_margins_are_multiples_and_the_table_stays_straight():
    net, theta = near_a_saddle()
    table = str(report(net, theta, 1e-3, 2)).splitlines()
    rows = [line for line in table if " necessary " in line or " exact " in line]
    assert all(" x " in row for row in rows)
    assert len({len(row) for row in rows}) == 1
