"""Outside oracles: worst cases that PEPit proves, and flows that diffrax integrates.

A worst case is the value of a semidefinite program over a whole class of functions: it equals what
the worst function attains, and bounds every other run from above. A flow's field is derived here
anew, by automatic differentiation of the loss.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.sparse

import eosim
from tests.cases import QUARTIC_TERMS, perceptron, symmetric

# --- worst cases over classes of functions ------------------------------------------------------

MU, L = 0.1, 1.0
# The interior point solver stops at gaps and infeasibilities of 1e-8, and has come within 4e-7.
SOLVER = 1e-6


def worst_case(kind: str, n_steps: int, lr: float, beta: float = 0.0, mu=MU, smooth=L) -> float:
    """The largest |x_N - x*|^2 (with ``mu``) or L(x_N) - L* (without) from |x_0 - x*| <= 1."""
    pepit = pytest.importorskip("PEPit")
    functions = pytest.importorskip("PEPit.functions")
    problem = pepit.PEP()
    constants = {"L": smooth} if kind == "SmoothConvexFunction" else {"mu": mu, "L": smooth}
    function = problem.declare_function(getattr(functions, kind), **constants)
    minimum = function.stationary_point()
    point = previous = problem.set_initial_point()
    problem.set_initial_condition((point - minimum) ** 2 <= 1)
    for _ in range(n_steps):  # heavy ball without a velocity: x - lr g + beta (x - previous x)
        step = point - lr * function.gradient(point) + beta * (point - previous)
        point, previous = step, point
    if kind == "SmoothConvexFunction":
        problem.set_performance_metric(function(point) - function(minimum))
    else:
        problem.set_performance_metric((point - minimum) ** 2)
    return float(problem.solve(wrapper="cvxpy", solver="CLARABEL", verbose=0))


def reached(problem, rule, n_steps: int) -> eosim.Trajectory:
    """From |theta| = 1 in every coordinate; coordinates of a diagonal quadratic are runs apart."""
    return eosim.run(
        problem, rule, np.ones(problem.dim), n_steps, record={"loss": eosim.measure.loss}
    )


def curvatures(mu=MU, smooth=L) -> eosim.Quadratic:
    """All curvatures of the class at once: worst ones inside the interval are known to 1e-8."""
    return eosim.Quadratic(scipy.sparse.diags_array(np.linspace(mu, smooth, 20_001), format="csr"))


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("lr", [0.7, 1.5, 1.9, 2.1])
def test_a_quadratic_is_the_worst_strongly_convex_function_of_gradient_descent(lr, n_steps):
    ends = eosim.Quadratic(np.diag([MU, L]))
    run = reached(ends, eosim.GradientDescent(lr), n_steps)
    ours = float((run.theta[-1] ** 2).max())
    assert ours == pytest.approx(
        worst_case("SmoothStronglyConvexFunction", n_steps, lr), rel=SOLVER
    )


def test_the_worst_case_grows_exactly_beyond_the_critical_sharpness():
    for smooth in (0.5, 3.0):
        lr = 2 / smooth
        rule = eosim.GradientDescent(lr)
        assert eosim.stability.critical_sharpness(rule) == pytest.approx(smooth, rel=1e-12)
        below, at, above = (
            worst_case("SmoothStronglyConvexFunction", 2, lr * factor, smooth=smooth)
            for factor in (0.999, 1.0, 1.001)
        )
        assert below < 1 - 1e-3
        assert at == pytest.approx(1, abs=SOLVER)
        assert above > 1 + 1e-3


def huber(width: float) -> eosim.problems.base.FunctionProblem:
    """L x^2/2 up to ``width``, linear beyond: convex and L-smooth."""

    def loss(theta):
        x = abs(theta[0])
        return L * (x**2 / 2 if x < width else width * x - width**2 / 2)

    def gradient(theta):
        return L * np.clip(theta, -width, width)

    return eosim.from_functions(loss, gradient, dim=1, at=[1.0])


@pytest.mark.parametrize("n_steps", [1, 2, 4])
@pytest.mark.parametrize("lr", [0.7, 1.3, 1.8])
def test_the_worst_convex_function_of_gradient_descent_is_flat_or_quadratic(lr, n_steps):
    # Taylor, Hendrickx & Glineur 2017: steps too short to arrive, or so long that they overshoot.
    rule = eosim.GradientDescent(lr)
    flat = reached(huber(1 / (2 * n_steps * lr * L + 1)), rule, n_steps)
    round_ = reached(eosim.Quadratic([[L]]), rule, n_steps)
    ours = [float(run["loss"][-1]) for run in (flat, round_)]
    assert ours == pytest.approx(
        [L / (4 * n_steps * lr * L + 2), L * (1 - lr * L) ** (2 * n_steps) / 2], rel=1e-13
    )
    assert max(ours) == pytest.approx(worst_case("SmoothConvexFunction", n_steps, lr), rel=SOLVER)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
@pytest.mark.parametrize(("lr", "beta"), [(1.0, 0.5), (2.5, 0.5), (3.1, 0.5), (0.5, 0.9)])
def test_heavy_ball_on_quadratics_reaches_the_worst_case_at_some_curvature(lr, beta, n_steps):
    run = reached(curvatures(), eosim.HeavyBall(lr, beta), n_steps)
    expected = worst_case("SmoothStronglyConvexQuadraticFunction", n_steps, lr, beta)
    assert float((run.theta[-1] ** 2).max()) == pytest.approx(expected, rel=SOLVER)


def rounded(mu: float, smooth: float) -> eosim.problems.base.FunctionProblem:
    """mu x^2/2 + (L - mu) log cosh x, coordinate by coordinate: curvatures from mu to L."""
    return eosim.from_functions(
        lambda x: np.sum(mu * x**2 / 2 + (smooth - mu) * np.logaddexp(x, -x)),
        lambda x: mu * x + (smooth - mu) * np.tanh(x),
        dim=3,
    )


def bent() -> eosim.problems.base.FunctionProblem:
    """Curvature 25, but 1 between 1 and 2 (Lessard, Recht & Packard 2016, section 4.6)."""

    def loss(theta):
        x = theta[0]
        return (25 * x**2 - 24 * max(x - 1, 0) ** 2 + 24 * max(x - 2, 0) ** 2) / 2

    def gradient(theta):
        return 25 * theta - 24 * np.maximum(theta - 1, 0) + 24 * np.maximum(theta - 2, 0)

    return eosim.from_functions(loss, gradient, dim=1, at=[3.3])


@pytest.mark.parametrize(("lr", "beta"), [(1.0, 0.5), (2.5, 0.5), (1.9, 0.2)])
def test_no_run_of_heavy_ball_is_beyond_the_worst_case(lr, beta):
    rule = eosim.HeavyBall(lr, beta)
    turned = eosim.Quadratic(symmetric([MU, 0.4, L]))
    for n_steps in (1, 2, 3):
        bound = worst_case("SmoothStronglyConvexFunction", n_steps, lr, beta)
        for problem, size in itertools.product((turned, rounded(MU, L)), (0.3, 1.0, 4.0)):
            start = size * np.array([1.0, -0.5, 2.0])
            run = eosim.run(problem, rule, start, n_steps)
            assert np.sum(run.theta[-1] ** 2) / np.sum(start**2) <= bound * (1 + SOLVER)


def test_the_threshold_of_heavy_ball_is_one_of_quadratics_only():
    # Polyak's parameters for curvatures in [1, 25] are stable on every quadratic of the class, and
    # a function of the class keeps them on a cycle for ever.
    rule = eosim.HeavyBall(1 / 9, 4 / 9)
    assert eosim.stability.critical_sharpness(rule) == pytest.approx(26, rel=1e-12)
    on_quadratics = reached(curvatures(1.0, 25.0), rule, 400)
    assert np.abs(on_quadratics.theta[-1]).max() < 1e-12
    cycle = eosim.run(bent(), rule, [3.3], 400).theta[:, 0]
    assert np.abs(cycle[-3:]).min() > 0.1
    np.testing.assert_allclose(cycle[-3:], cycle[-6:-3], rtol=1e-9)
    for n_steps in (1, 2, 3, 4):
        bound = worst_case("SmoothStronglyConvexFunction", n_steps, 1 / 9, 4 / 9, 1.0, 25.0)
        assert (cycle[n_steps] / cycle[0]) ** 2 <= bound * (1 + SOLVER)


# --- flows --------------------------------------------------------------------------------------

# Both solvers run at 1e-12 per step; paths of a few hundred steps have come within 1e-12.
AGREEMENT = 1e-10


@pytest.fixture
def jax():
    """In 64-bit mode, which ends with the test."""
    jax = pytest.importorskip("jax")
    pytest.importorskip("diffrax")
    with jax.enable_x64(True):
        yield jax


def integrated(field, start, times) -> np.ndarray:
    """States at ``times`` by diffrax, with Dormand and Prince's order 8 and dense output off."""
    import diffrax

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, _: field(y)),
        diffrax.Dopri8(),
        t0=0.0,
        t1=float(times[-1]),
        dt0=1e-4,
        y0=np.asarray(start),
        saveat=diffrax.SaveAt(ts=np.asarray(times)),
        stepsize_controller=diffrax.PIDController(rtol=1e-12, atol=1e-13, step_ts=times),
        max_steps=100_000,
    )
    return np.asarray(solution.ys)


def same_path(flow, start, field, times, **options):
    """eosim's states against those of diffrax."""
    ours = eosim.integrate(flow, start, times, rtol=1e-12, atol=1e-13, **options)
    assert ours.status is eosim.Status.COMPLETED, ours.message
    theirs = integrated(field, start, times)
    assert np.abs(theirs[-1] - theirs[0]).max() > 0.05  # it went somewhere
    np.testing.assert_allclose(ours.theta.real, theirs, rtol=0, atol=AGREEMENT)


def rosenbrock(theta):
    x, y = theta
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def quartic(theta):
    return sum(c * theta[0] ** p * theta[1] ** q for (p, q), c in QUARTIC_TERMS.items())


def network(theta):
    """The tanh network of `tests.cases.perceptron`: three hidden units, biases last in each row."""
    import jax.numpy as jnp

    case = perceptron()
    hidden, output = theta[:9].reshape(3, 3), theta[9:]
    features = jnp.tanh(case.inputs @ hidden[:, :2].T + hidden[:, 2])
    errors = features @ output[:3] + output[3] - case.targets[:, 0]
    return (errors @ errors) / (2 * len(errors))


QUADRATIC = symmetric([3.0, 1.0, -0.5, 0.0], seed=3)
CENTRE = np.array([1.0, 2.0, 3.0, 4.0])


def quadratic(theta):
    return (theta - CENTRE) @ QUADRATIC @ (theta - CENTRE) / 2


# name: (problem, loss in JAX, start, learning rate, end)
CASES = {
    "rosenbrock": (eosim.Rosenbrock(), rosenbrock, [0.5, 0.6], 1e-3, 0.5),
    "quartic": (eosim.Polynomial(QUARTIC_TERMS), quartic, [0.7, -0.5], 0.2, 4.0),
    "network": (perceptron(), network, np.linspace(-1, 1, 13), 0.2, 4.0),
    "quadratic": (eosim.Quadratic(QUADRATIC, CENTRE), quadratic, np.ones(4), 0.2, 3.0),
}


def along(direction, field):
    """The derivative of a field along another one."""
    import jax

    return lambda x: jax.jvp(field, (x,), (direction(x),))[1]


def compositions(total: int, parts: int):
    """Ordered sums of positive integers."""
    return [
        parts_
        for parts_ in itertools.product(range(1, total), repeat=parts)
        if sum(parts_) == total
    ]


def modified_field(loss, lr, order):
    """f_1 + h f_2 + ... whose time-h map is a step of gradient descent up to h^order.

    In Lie derivatives the map is sum_k (h^k/k!) D^(k-1) f: what order n needs is f_n.
    """
    import jax

    fields = [lambda x: -jax.grad(loss)(x)]
    for n in range(2, order + 1):
        terms = []
        for k in range(2, n + 1):
            for indices in compositions(n, k):
                term = fields[indices[-1] - 1]
                for index in reversed(indices[:-1]):
                    term = along(fields[index - 1], term)
                terms.append((-1 / math.factorial(k), term))
        fields.append(lambda x, terms=tuple(terms): sum(c * term(x) for c, term in terms))
    return lambda x: sum(lr**p * field(x) for p, field in enumerate(fields))


@pytest.mark.parametrize("case", ["rosenbrock", "network"])
def test_the_gradient_flow_is_that_of_diffrax(case, jax):
    problem, loss, start, _, end = CASES[case]
    times = np.linspace(0, end, 6)
    same_path(eosim.GradientFlow(problem), start, lambda x: -jax.grad(loss)(x), times)


@pytest.mark.parametrize(("case", "order"), [("network", 3), ("rosenbrock", 4)])
def test_modified_flows_are_those_of_diffrax(case, order, jax):
    problem, loss, start, lr, end = CASES[case]
    field = modified_field(loss, lr, order)
    same_path(eosim.ModifiedFlow(problem, lr, order), start, field, np.linspace(0, end, 4))


def test_the_truncated_principal_flow_is_that_of_diffrax(jax):
    problem, loss, start, lr, end = CASES["network"]

    def field(x):
        hessian, power = jax.hessian(loss)(x), jax.grad(loss)(x)
        total = -power
        for p in range(1, 5):
            power = lr * hessian @ power
            total = total - power / (p + 1)
        return total

    same_path(eosim.PrincipalSeries(problem, lr, 5), start, field, np.linspace(0, end, 4))


def test_the_flow_of_differences_is_that_of_diffrax(jax):
    problem, loss, start, lr, end = CASES["rosenbrock"]

    def field(x):
        # log(1 + difference) = difference - difference^2/2 + difference^3/3 of the iterates
        points = [x]
        for _ in range(3):
            points.append(points[-1] - lr * jax.grad(loss)(points[-1]))
        first = points[1] - points[0]
        second = points[2] - 2 * points[1] + points[0]
        third = points[3] - 3 * points[2] + 3 * points[1] - points[0]
        return (first - second / 2 + third / 3) / lr

    same_path(eosim.ForwardDifferenceFlow(problem, lr, 3), start, field, np.linspace(0, end, 4))


@pytest.mark.parametrize(
    ("case", "corrections"),
    [("network", 0), ("quadratic", 0), ("rosenbrock", 1), ("quartic", 2)],
)
def test_the_real_principal_flow_is_that_of_diffrax(case, corrections, jax):
    problem, loss, start, lr, end = CASES[case]
    gradient = jax.grad(loss)

    def field(x):
        values, vectors = jax.numpy.linalg.eigh(jax.hessian(loss)(x))
        z = lr * jax.numpy.where(values == 0, 1e-30, values)
        total = vectors @ (jax.numpy.log1p(-z) / z * (vectors.T @ gradient(x)))
        if corrections:
            g = gradient(x)
            image = along(lambda _: g, gradient)  # H(x) g with g held fixed
            Tgg = along(lambda _: g, image)(x)
            total = total - lr**2 / 12 * Tgg
        if corrections == 2:
            TgHg = along(lambda _: image(x), image)(x)
            total = total - lr**3 / 12 * (along(lambda _: Tgg, gradient)(x) + TgHg)
        return total

    flow = eosim.PrincipalFlow(problem, lr, corrections=corrections, method="dense")
    same_path(flow, start, field, np.linspace(0, end, 4))


def pairs(field):
    """A complex field of (real parts, imaginary parts)."""
    import jax.numpy as jnp

    def both(y):
        real, imaginary = jnp.split(y, 2)
        value = field(real + 1j * imaginary)
        return jnp.concatenate([value.real, value.imag])

    return both


def test_the_principal_flow_beyond_the_edge_is_that_of_diffrax_in_pairs_of_reals(jax):
    times = 1.5 * np.arange(6)
    cases = [
        # (problem, its gradient and Hessian at complex points of a diagonal one, start)
        (eosim.Quadratic(np.diag([1.2, 0.5])), lambda x: np.array([1.2, 0.5]) * x, [0.8, 1.0]),
        (eosim.Cosine(2), lambda x: jax.numpy.sin(x), [0.3, -0.2]),
    ]
    for problem, gradient, start in cases:

        def field(x, gradient=gradient):
            slope, bend = jax.jvp(gradient, (x,), (jax.numpy.ones_like(x),))
            z = 1.5 * bend
            # +i pi where h lambda > 1 at the start, continued: the cut of log(z - 1) is z < 1
            beyond = jax.numpy.log(z - 1) + 1j * np.pi
            logarithm = jax.numpy.where(z.real > 1, beyond, jax.numpy.log(1 - z))
            return logarithm / z * slope

        ours = eosim.integrate(
            eosim.PrincipalFlow(problem, 1.5), start, times, rtol=1e-12, atol=1e-13
        )
        theirs = integrated(pairs(field), [*start, 0.0, 0.0], times)
        assert np.abs(ours.theta[:, 0].real).min() > 1e-4  # swings, and has not decayed to nothing
        assert ours.theta[1, 0].real * ours.theta[0, 0].real < 0
        np.testing.assert_allclose(ours.theta, theirs[:, :2] + 1j * theirs[:, 2:], atol=AGREEMENT)


def test_the_principal_flow_of_heavy_ball_is_that_of_diffrax(jax):
    lr, beta = 0.07, 0.25  # every h lambda below (1 - sqrt(beta))^2 = 0.25: real roots

    def field(x):
        values, vectors = jax.numpy.linalg.eigh(jax.hessian(quartic)(x))
        z = lr * values
        total = 1 + beta - z
        rho = (total + jax.numpy.sqrt(total**2 - 4 * beta)) / 2
        return vectors @ (jax.numpy.log(rho) / z * (vectors.T @ jax.grad(quartic)(x)))

    flow = eosim.HeavyBallPrincipalFlow(eosim.Polynomial(QUARTIC_TERMS), lr, beta)
    same_path(flow, [0.7, -0.5], field, np.linspace(0, 3, 4))


# --- flows at the edge --------------------------------------------------------------------------

# (1 + y) x^2/2 with a slope in y that sharpens: the curvature of x grows towards 2/lr and beyond.
SHARPENING = {(2, 0): 0.5, (2, 1): 0.5, (4, 0): 0.05, (0, 1): -0.1, (0, 2): 0.05}
EDGE_LR = 1.7


def sharpening(theta):
    return sum(c * theta[0] ** p * theta[1] ** q for (p, q), c in SHARPENING.items())


def test_the_edge_flow_is_that_of_diffrax(jax):
    gradients = jax.vmap(jax.grad(sharpening))

    def field(state):
        c, u, size = state[:2], state[2:4], jax.numpy.exp(state[4])
        u = u / jax.numpy.linalg.norm(u)
        image = jax.hessian(sharpening)(c) @ u
        ahead, behind = gradients(jax.numpy.stack([c + size * u, c - size * u]))
        growth = jax.numpy.log(jax.numpy.abs(1 - EDGE_LR * (u @ (ahead - behind)) / (2 * size)))
        return jax.numpy.concatenate(
            [-(ahead + behind) / 2, image - (u @ image) * u, growth[None] / EDGE_LR]
        )

    theta = np.array([0.1, 0.1])
    move = -EDGE_LR * np.asarray(jax.grad(sharpening)(theta))
    centre = theta + move / 2
    u = np.linalg.eigh(np.asarray(jax.hessian(sharpening)(centre)))[1][:, -1]
    start = [*centre, *u, np.log(abs(u @ move) / 2)]
    times = EDGE_LR * np.arange(0, 41, 10)
    problem = eosim.Polynomial(SHARPENING)
    ours = eosim.integrate(eosim.EdgeFlow(problem, EDGE_LR), theta, times, rtol=1e-12, atol=1e-13)
    theirs = integrated(field, start, times)
    np.testing.assert_allclose(ours.theta, theirs[:, :2], rtol=0, atol=AGREEMENT)
    np.testing.assert_allclose(
        ours["average.oscillation"], np.exp(2 * theirs[:, 4]), rtol=0, atol=AGREEMENT
    )


@pytest.mark.parametrize("form", ["covariance", "literal"])
def test_the_rod_flow_is_that_of_diffrax(form, jax):
    def move(x):
        return -EDGE_LR * jax.grad(sharpening)(x)

    def field(state):
        z, covariance = state[:2], state[2:].reshape(2, 2)
        values, vectors = jax.numpy.linalg.eigh((covariance + covariance.T) / 2)
        rods = (jax.numpy.sqrt(values) * vectors).T[::-1]  # the longest first
        if form == "literal":
            rods = rods[:1]
        # the centre, then both ends of each rod
        points = z + jax.numpy.concatenate([jax.numpy.zeros((1, 2)), rods, -rods])
        moves, slopes = jax.vmap(move)(points), jax.vmap(jax.jacfwd(move))(points)
        if form == "literal":
            _, ahead, behind = moves
            both = ahead + behind
            drift = both / 2 - (slopes[1] + slopes[2]) @ both / 8
            spread = (jax.numpy.outer(ahead, ahead) + jax.numpy.outer(behind, behind)) / 4
        else:
            force = moves[1:].sum(axis=0) / 2 - moves[0]
            drift = force - (slopes[1:].sum(axis=0) / 2 - slopes[0]) @ force / 2
            differences = moves[1:3] - moves[3:]
            spread = differences.T @ differences / 8
        return jax.numpy.concatenate([drift, (spread - 2 * covariance).ravel()]) / EDGE_LR

    theta, covariance = np.array([0.0, 0.1]), np.array([[4e-3, 1e-4], [1e-4, 1e-4]])
    times = EDGE_LR * np.arange(0, 41, 10)
    flow = eosim.RodFlow(
        eosim.Polynomial(SHARPENING),
        eosim.GradientDescent(EDGE_LR),
        form,
        initial_covariance=covariance,
    )
    ours = eosim.integrate(flow, theta, times, rtol=1e-12, atol=1e-13)
    theirs = integrated(field, [*theta, *covariance.ravel()], times)
    np.testing.assert_allclose(ours.theta, theirs[:, :2], rtol=0, atol=AGREEMENT)
    np.testing.assert_allclose(
        ours["average.oscillation"], theirs[:, 2] + theirs[:, 5], rtol=0, atol=AGREEMENT
    )


def test_the_central_flow_is_that_of_diffrax(jax):
    def sharpness(x):
        return EDGE_LR * jax.numpy.linalg.eigvalsh(jax.hessian(sharpening)(x))[-1]

    def field(x):
        # One direction: x of variance X >= 0 that holds the edge, 0 while it need not.
        gradient, turn = jax.grad(sharpening)(x), jax.grad(sharpness)(x)
        approach = 2 - sharpness(x) + EDGE_LR * turn @ gradient
        X = jax.numpy.maximum(0, -approach / (EDGE_LR * turn @ turn / 2))
        return -(gradient + X * turn / 2)

    flow = eosim.CentralFlow(eosim.Polynomial(SHARPENING), eosim.GradientDescent(EDGE_LR))
    times = EDGE_LR * np.arange(0, 21, 5)
    ours = eosim.integrate(flow, [0.0, -0.3], times, rtol=1e-12, atol=1e-13)
    assert ours["average.oscillation"][0] == 0 < ours["average.oscillation"][-1]  # past the edge
    theirs = integrated(field, [0.0, -0.3], times)
    np.testing.assert_allclose(ours.theta, theirs, rtol=0, atol=AGREEMENT)
