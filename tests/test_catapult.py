"""Maps, phases and closed forms of catapults: identities, boundaries, reference values."""

import math

import numpy as np
import pytest

from eosim import catapult
from eosim.catapult import Phase

# Final values are compared below a = 2.8 only, where they do not depend on the phase of the start.


def orbit(eps, a, label, n_steps):
    """(u, v) of gradient descent on (u v - Y)^2 / 2, started at a residual and a; two arrays."""
    output = eps + label
    total, gap = math.sqrt(a + 2 * output), math.sqrt(a - 2 * output)
    points = [((total + gap) / 2, (total - gap) / 2)]
    for _ in range(n_steps):
        points.append(catapult.factor_map(*points[-1], label))
    return np.array(points).T


# --- identities of the map -----------------------------------------------------------------------


@pytest.mark.parametrize("label", [0.0, 0.4, -0.6, 1.3, 1.9])
@pytest.mark.parametrize("a", [0.7, 2.3, 3.4, 4.05])
def test_every_step_obeys_the_identities_of_the_map(label, a):
    """Both forms of the map, F' = F (1 + eps^2 + Y eps), Q' = Q (1 - eps^2), a^2 = Q^2 + 4 g^2."""
    start = 0.05 if label <= 0 else -0.05  # a >= 2 |eps + Y| throughout
    a = max(a, 2.01 * abs(start + label))
    u, v = orbit(start, a, label, 25 if a < 4 else 6)
    eps, a, Q = u * v - label, u**2 + v**2, u**2 - v**2
    after, kernel = catapult.residual_map(eps, a, label)
    scale = 1 + np.abs(eps) * a + np.abs(eps) ** 3 + eps**2 * abs(label)
    assert (np.abs(after[:-1] - eps[1:]) < 1e-12 * scale[:-1]).all()
    assert (np.abs(kernel[:-1] - a[1:]) < 1e-12 * (a * (1 + eps**2))[:-1]).all()
    F, factor = catapult.margin(eps, a, label), 1 + eps**2 + label * eps
    scale = (a + 4 + np.abs(label * eps)) * factor
    assert (np.abs(F[1:] - (F * factor)[:-1]) < 1e-12 * scale[:-1]).all()
    assert (np.abs(Q[1:] - (Q * (1 - eps**2))[:-1]) < 1e-12 * (a * (1 + eps**2))[:-1]).all()
    np.testing.assert_allclose(Q**2 + 4 * (u * v) ** 2, a**2, rtol=1e-14)


@pytest.mark.parametrize("a", [1.5, 2.1, 2.5, 3.3, 3.9])
def test_without_labels_the_losses_sum_to_the_fall_of_the_kernel(a):
    u, v = orbit(1e-3, a, 0.0, 3000)
    w, kernel = (u * v) ** 2, u**2 + v**2
    assert w[-1] < 1e-30
    assert math.fsum(w * (4 - kernel)) == pytest.approx(a - kernel[-1], rel=1e-12)
    assert np.prod(np.abs(1 - w)) * abs(u[0] ** 2 - v[0] ** 2) == pytest.approx(
        kernel[-1], rel=1e-11
    )


# --- boundaries ----------------------------------------------------------------------------------


def test_without_labels_the_edge_of_divergence_is_4_at_every_width():
    widths = 2 ** np.arange(1, 13)
    products = []
    for width in widths:
        u, v = np.random.default_rng(width).standard_normal((2, width))
        products.append(u @ v / (u @ u + v @ v))  # eps_0 / a_0
    for ratio, bounded in ((3.99, True), (4.01, False)):
        starts = (ratio * np.array(products)) ** 2
        phases = catapult.phase_diagram(ratio, starts, max_steps=200_000).phase
        assert np.isin(phases, (Phase.MONOTONE, Phase.CATAPULT)).all() == bounded
        assert (phases == Phase.DIVERGED).all() != bounded


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


def test_the_closed_rate_exists_at_every_balanced_net():
    # u = v and y = P / 2: the two terms of the radicand vanish, by rounding not both
    rng = np.random.default_rng(0)
    for _ in range(500):
        u = rng.standard_normal(3)
        squares, product = float(u @ u + u @ u), float(u @ u)
        nearly = product * (1 + 4e-16)  # as a product of other rounding
        for p in (product, nearly, -nearly):
            assert catapult.critical_lr(squares, p, p / 2) == pytest.approx(8 / squares, rel=1e-7)


def test_the_closed_rate_is_a_root_of_the_margin():
    rng = np.random.default_rng(1)
    for _ in range(200):
        u, v = rng.standard_normal((2, 3))
        squares, product, target = float(u @ u + v @ v), float(u @ v), float(rng.normal())
        lr = catapult.critical_lr(squares, product, target)
        terms = (lr * squares, 4, lr * target * lr * (product - target))
        assert abs(terms[0] - terms[1] - terms[2]) < 1e-14 * sum(map(abs, terms))
        for scale in (1e-200, 1e200):  # squares of these leave the range
            found = catapult.critical_lr(squares * scale, product * scale, target * scale)
            assert found * scale == pytest.approx(lr, rel=1e-13)


@pytest.mark.parametrize("angle", [0.0, 0.3, -2.0, 40.0, 1e6, 1e300])
def test_the_orbit_on_the_boundary_obeys_its_map_at_every_step(angle):
    eps = catapult.boundary_orbit(angle, 700)
    assert eps[0] == pytest.approx(2 * math.cos(2 * math.remainder(angle, math.pi)), rel=1e-15)
    # rounding of eps of 4e-16 times a slope of at most 9, and that of the cube of numbers up to 2
    np.testing.assert_allclose(eps[1:], eps[:-1] ** 3 - 3 * eps[:-1], rtol=0, atol=1e-14)
    a = 4 + 0.7 * eps
    np.testing.assert_allclose(catapult.residual_map(eps, a, 0.7)[0][:-1], eps[1:], atol=2e-14)
    if angle:
        assert len(np.unique(eps.round(12))) > 690  # chaotic: it falls into no cycle


def test_the_orbit_on_the_boundary_is_that_of_its_angle_until_rounding_has_tripled():
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        exact = [2 * mpmath.cos(2 * mpmath.mpf(0.3))]
        for _ in range(25):
            exact.append(exact[-1] ** 3 - 3 * exact[-1])
    errors = np.abs(catapult.boundary_orbit(0.3, 25) - np.array(exact, dtype=float))
    assert (errors <= 4e-16 * 3.0 ** np.arange(1, 27)).all()


@pytest.mark.parametrize(
    ("call", "exception", "words"),
    [
        (
            lambda: catapult.critical_lr(1.0, -3.0, 1.0),
            ValueError,
            r"squares must be at least 2 \|product\| .*squares = 1.0 with product = -3.0",
        ),
        (lambda: catapult.phase_diagram(1.0, 4.0), ValueError, r"a must be at least 2 \|epsilon"),
        (lambda: catapult.phase_diagram(2.0, -1.0), ValueError, "w must not be negative"),
        (lambda: catapult.phase_diagram([2.0], [1e-3], max_steps=0), ValueError, "max_steps"),
        (lambda: catapult.phase_diagram(np.nan, 1e-3), ValueError, "a has 1 non-finite"),
        (lambda: catapult.attractor(2.5), ValueError, r"label must lie in \(0, 2\]"),
        (lambda: catapult.final_ntk(3.5), ValueError, r"a must be a real number in \[2, 2.8\]"),
        (lambda: catapult.final_ntk(2.5, 0.5), ValueError, r"w must be .* \[0, 0.1\]"),
        (lambda: catapult.period_two(0.5), ValueError, "label must be"),
        (lambda: catapult.peak(1.9, 1e-3), ValueError, "a must be"),
    ],
)
def test_wrong_input_is_refused_by_name(call, exception, words):
    with pytest.raises(exception, match=words):
        call()
