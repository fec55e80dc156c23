"""Quadratic nets: exact derivatives, the weight norm's identities, and the proved bounds."""

import numpy as np
import pytest

import eosim
from eosim.problems.base import third_derivative
from eosim.problems.quadratic import QuadraticNet, catapult_bound
from eosim.problems.teachers import (
    meta_features,
    paired_matrices,
    random_features,
    teacher_student,
)
from tests import naive

NAMES = ("loss", "gradient", "hessian")


def rng(seed=0):
    return np.random.default_rng(seed)


def matrices(count, size, seed=0):
    draws = rng(seed).standard_normal((count, size, size))
    return draws + draws.transpose(0, 2, 1)


def net(n=4, size=5, p=0, k=None, prefactor=None, targets=True, seed=0):
    """A random quadratic net; k mixed matrices instead of n of its own."""
    generator = rng(seed + 100)
    return QuadraticNet(
        matrices(n if k is None else k, size, seed),
        generator.standard_normal(n) if targets else np.zeros(n),
        prefactor,
        generator.standard_normal((n, p)) if p else None,
        None if k is None else generator.standard_normal((n, k)),
    )


NETS = {
    "pure": {},
    "one sample": {"n": 1},
    "one parameter": {"n": 2, "size": 1},
    "with features": {"p": 3},
    "own prefactor": {"prefactor": 0.3, "p": 1},
    "mixed": {"k": 2, "p": 2},
    "mixed from more": {"n": 2, "k": 3},
}


@pytest.fixture(params=NETS)
def problem(request):
    return net(**NETS[request.param])


@pytest.fixture(params=["real", "complex"])
def theta(request, problem):
    point = problem.initial(5)
    return point + 0.3j * problem.initial(6) if request.param == "complex" else point


def full_matrices(problem):
    """psi_a, one by one."""
    if problem.mixing is None:
        return list(problem.meta_features)
    base = problem.meta_features
    return [sum(w * m for w, m in zip(row, base, strict=True)) for row in problem.mixing]


def naive_outputs(problem, theta):
    """phi . theta_f + (zeta / 2) theta_m^T psi theta_m by loops."""
    p = problem.n_features
    outputs = []
    for phi, psi in zip(problem.features, full_matrices(problem), strict=True):
        z = sum(f * t for f, t in zip(phi, theta[:p], strict=True))
        for j, left in enumerate(theta[p:]):
            for k, right in enumerate(theta[p:]):
                z = z + problem.prefactor / 2 * left * psi[j, k] * right
        outputs.append(z)
    return np.array(outputs)


def weight_norm(problem, theta):
    """|theta|^2 + |P theta_f|^2, P the projector on the span of the features."""
    p = problem.n_features
    projector = np.linalg.pinv(problem.features) @ problem.features
    return theta @ theta + theta[:p] @ projector @ theta[:p]


# --- derivatives --------------------------------------------------------------------------------


def test_outputs_and_loss_are_those_of_the_loops(problem, theta):
    expected = naive_outputs(problem, theta)
    np.testing.assert_allclose(problem.outputs(theta)[:, 0], expected, rtol=1e-12, atol=1e-13)
    errors = expected - problem.targets[:, 0]
    np.testing.assert_allclose(problem.residuals(theta)[:, 0], errors, rtol=1e-12, atol=1e-13)
    loss = sum(e * e for e in errors) / (2 * len(errors))
    assert problem.loss(theta) == pytest.approx(loss, rel=1e-12)


def test_derivatives_are_exact_by_complex_step(problem):
    theta, v, w = (problem.initial(seed) for seed in range(3))
    h = 1e-30
    slopes = [problem.loss(theta + 1j * h * u).imag / h for u in np.eye(problem.dim)]
    np.testing.assert_allclose(problem.gradient(theta), slopes, rtol=1e-12, atol=1e-13)
    product = problem.gradient(theta + 1j * h * v).imag / h
    np.testing.assert_allclose(problem.hvp(theta, v), product, rtol=1e-12, atol=1e-12)
    rates = problem.residuals(theta + 1j * h * v).imag / h
    np.testing.assert_allclose(problem.jacobian(theta) @ v, rates, rtol=1e-12, atol=1e-13)
    third = problem.hvp(theta + 1j * h * w, v).imag / h
    np.testing.assert_allclose(third_derivative(problem, theta, w, v), third, rtol=1e-11)


def test_derivatives_continue_to_complex_points(problem, theta):
    v = problem.initial(1) + 0.5j * problem.initial(2)
    step = 1e-6
    ahead, behind = theta + step * v, theta - step * v
    scale = np.abs(problem.hessian(theta)).max() + 1
    slope = (problem.loss(ahead) - problem.loss(behind)) / (2 * step)
    assert abs(problem.gradient(theta) @ v - slope) < 1e-6 * scale
    change = (problem.gradient(ahead) - problem.gradient(behind)) / (2 * step)
    np.testing.assert_allclose(problem.hvp(theta, v), change, atol=1e-6 * scale)
    bend = (problem.hvp(ahead, v) - problem.hvp(behind, v)) / (2 * step)
    np.testing.assert_allclose(problem.third_derivative(theta, v, v), bend, atol=1e-6 * scale)


def test_the_hessian_is_symmetric_and_gives_the_products(problem, theta):
    hessian, v = problem.hessian(theta), problem.initial(1)
    np.testing.assert_array_equal(hessian, hessian.T)
    np.testing.assert_allclose(hessian @ v, problem.hvp(theta, v), rtol=1e-11, atol=1e-11)


def test_the_ntk_is_that_of_the_jacobian(problem, theta):
    jacobian = problem.jacobian(theta)[:, 0]
    expected = jacobian @ jacobian.T / problem.n_samples
    np.testing.assert_allclose(problem.ntk(theta), expected, rtol=1e-12, atol=1e-13)
    assert problem.ntk(theta).shape == (problem.n_samples, problem.n_samples)


def test_mixed_matrices_are_the_net_of_their_sums():
    mixed = net(k=2, p=2)
    direct = QuadraticNet(full_matrices(mixed), mixed.targets, features=mixed.features)
    theta, v = mixed.initial(1), mixed.initial(2)
    rows = np.array([3, 0, 3])
    for name in NAMES:
        for batch in (None, rows):
            ours, expected = getattr(mixed, name)(theta, batch), getattr(direct, name)(theta, batch)
            np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(mixed.hvp(theta, v, rows), direct.hvp(theta, v, rows), rtol=1e-12)
    for kind in ("omega", "effective"):
        assert mixed.ntk_bound(theta, kind) == pytest.approx(direct.ntk_bound(theta, kind))


def test_batches_are_nets_of_their_samples_and_average_to_the_loss(problem, theta):
    v = problem.initial(1)
    n = problem.n_samples
    for name in NAMES:
        parts = [getattr(problem, name)(theta, np.array([a])) for a in range(n)]
        whole = getattr(problem, name)(theta)
        np.testing.assert_allclose(np.mean(parts, axis=0), whole, rtol=1e-11, atol=1e-12)
    parts = [problem.hvp(theta, v, np.array([a])) for a in range(n)]
    np.testing.assert_allclose(np.mean(parts, axis=0), problem.hvp(theta, v), atol=1e-11)
    rows = np.array([n - 1, 0, 0])  # repetition counts twice
    for name in ("residuals", "jacobian"):
        full = getattr(problem, name)(theta)
        np.testing.assert_allclose(getattr(problem, name)(theta, rows), full[rows], rtol=1e-12)


def test_by_hand_two_parameters():
    # (u v - 1)^2 / 2
    problem = QuadraticNet([[[0.0, 1.0], [1.0, 0.0]]], [1.0], prefactor=1.0)
    u, v = theta = np.array([3.0, 2.0])
    assert problem.loss(theta) == 12.5
    np.testing.assert_array_equal(problem.gradient(theta), [5 * v, 5 * u])
    np.testing.assert_array_equal(problem.hessian(theta), [[4.0, 11.0], [11.0, 9.0]])
    np.testing.assert_array_equal(problem.ntk(theta), [[13.0]])
    assert QuadraticNet(np.zeros((1, 8, 8)), [1.0]).prefactor == 0.5


# --- the weight norm and the bounds --------------------------------------------------------------


def test_the_weight_norm_changes_by_the_kernel_and_the_outputs():
    """W' - W = (eta/n) [eta e'(H + Phi) e - 4 e.z], Phi = phi phi^T / n; |theta|^2 without features."""
    for options in ({}, {"n": 1}, {"p": 3}, {"n": 1, "p": 3}, {"p": 7}, {"k": 2, "p": 2}):
        problem = net(**options)
        n, theta = problem.n_samples, problem.initial(3)
        lr = 2.5 / np.linalg.eigvalsh(problem.ntk(theta))[-1]
        path = eosim.run(problem, eosim.GradientDescent(lr), theta, 8)
        for before, after in zip(path.theta[:-1], path.theta[1:], strict=True):
            e = problem.residuals(before)[:, 0]
            kernel = problem.ntk(before) + problem.features @ problem.features.T / n
            change = lr / n * (lr * e @ kernel @ e - 4 * e @ problem.outputs(before)[:, 0])
            old, new = weight_norm(problem, before), weight_norm(problem, after)
            assert abs(new - old - change) < 1e-12 * (old + new + lr * e @ e)


def test_pure_nets_are_homogeneous_of_degree_two():
    problem = net()
    theta = problem.initial()
    np.testing.assert_allclose(
        problem.jacobian(theta)[:, 0] @ theta, 2 * problem.outputs(theta)[:, 0]
    )


@pytest.mark.parametrize("options", [{}, {"n": 1}, {"p": 3}, {"n": 1, "p": 3}, {"k": 2}])
def test_proved_bounds_are_above_the_kernel_at_every_theta(options):
    problem = net(**options)
    generator = rng(7)
    kinds = ("omega", "own") if problem.n_samples == 1 else ("omega",)
    for _ in range(200):
        theta = generator.standard_normal(problem.dim) * generator.choice([0.1, 1, 5], problem.dim)
        top = np.linalg.eigvalsh(problem.ntk(theta))[-1]
        for kind in kinds:
            assert top <= problem.ntk_bound(theta, kind) * (1 + 1e-12)


def test_the_bounds_are_the_published_formulas():
    generator = rng(1)
    # several samples: Omega as the (nN, nN) matrix that the code never forms
    problem = net(n=3, size=4)
    theta = problem.initial(2)
    rows = np.vstack(list(problem.meta_features.transpose(0, 2, 1)))  # (n N, N)
    omega = problem.prefactor**2 / 3 * rows @ rows.T
    expected = np.linalg.eigvalsh(omega)[-1] * (theta @ theta)
    assert problem.ntk_bound(theta) == pytest.approx(expected, rel=1e-12)
    # effective: zeta^2 theta psi_eff^2 theta is the top of the kernel here, so B is above it
    values, vectors = np.linalg.eigh(problem.ntk(theta))
    psi = np.tensordot(vectors[:, -1], problem.meta_features, 1) / np.sqrt(3)
    assert problem.prefactor**2 * theta @ psi @ psi @ theta == pytest.approx(values[-1])
    expected = problem.prefactor**2 * np.linalg.norm(psi, 2) ** 2 * (theta @ theta)
    assert problem.ntk_bound(theta, "effective") == pytest.approx(expected, rel=1e-12)
    assert values[-1] <= problem.ntk_bound(theta, "effective") <= problem.ntk_bound(theta, "omega")
    # one sample, with features
    phi = generator.standard_normal(3)
    problem = QuadraticNet(matrices(1, 4), [0.0], features=[phi])
    theta = problem.initial(2)
    top = problem.prefactor**2 * np.linalg.norm(problem.meta_features[0], 2) ** 2
    along = (phi @ theta[:3]) ** 2 / (phi @ phi)
    published = 2 * phi @ phi + top * (theta @ theta + along)
    tighter = 2 * phi @ phi + top * (theta[3:] @ theta[3:] + 2 * along)
    assert problem.ntk_bound(theta, "own") == pytest.approx(published, rel=1e-12)
    assert problem.ntk_bound(theta, "omega") == pytest.approx(tighter, rel=1e-12)
    assert problem.ntk_bound(theta, "effective") == pytest.approx(published, rel=1e-12)
    # one sample, without
    pure = QuadraticNet(matrices(1, 4), [0.0])
    theta = theta[3:]
    for kind in ("own", "omega", "effective"):
        assert pure.ntk_bound(theta, kind) == pytest.approx(top * theta @ theta, rel=1e-12)


@pytest.mark.parametrize("options", [{"n": 1}, {"n": 1, "p": 3}, {"n": 3, "p": 2}, {"n": 3}])
def test_below_the_bound_the_norm_falls_and_the_loss_vanishes(options):
    problem = net(size=12, targets=False, **options)
    theta = problem.initial(4)
    lr = 0.999 * 4 / problem.ntk_bound(theta)
    path = eosim.run(problem, eosim.GradientDescent(lr), theta, 3000)
    norms = np.array([weight_norm(problem, x) for x in path.theta])
    assert (np.diff(norms) <= 1e-13 * norms[0]).all()
    assert path["loss"][-1] < 1e-6 * path["loss"][0]
    room = 4 - lr * problem.ntk_bound(theta)
    assert path["loss"][:-1].sum() <= norms[0] / (2 * lr * room)


def test_the_bound_in_units_of_the_phase_diagram():
    wide = QuadraticNet(paired_matrices(1, 400, seed=0, low=1, high=2), [0.0])
    bound = catapult_bound(wide, wide.initial(1))
    assert bound == pytest.approx(4 * (7 / 3) / 4, rel=0.05)  # 4 <psi^2> / max psi^2 for U(1, 2)
    theta = wide.initial(1)
    top = wide.ntk(theta)[0, 0]
    assert bound == pytest.approx(4 * top / wide.ntk_bound(theta))
    # psi^2 = s^2 I: H is proportional to |theta|^2, and the bound is the edge itself
    exact = QuadraticNet(paired_matrices(1, 6, seed=0, low=1.5, high=1.5), [0.0])
    assert catapult_bound(exact, exact.initial(1), "own") == pytest.approx(4, rel=1e-12)
    spread = QuadraticNet(paired_matrices(1, 400, seed=0), [0.0], features=[np.full(5, 0.3)])
    published = catapult_bound(spread, spread.initial(1), "own")
    assert 2 < published < catapult_bound(spread, spread.initial(1)) < 4


# --- meta-features, features, teachers -----------------------------------------------------------


def test_meta_features_have_their_spectrum_in_pairs():
    found = paired_matrices(2, 6, seed=3, low=1, high=2)
    generator = rng(3)
    for matrix in found:
        generator.standard_normal((6, 6))
        half = np.sort(generator.uniform(1, 2, 3))
        values = np.linalg.eigvalsh(matrix)
        np.testing.assert_allclose(values, [*-half[::-1], *half], rtol=1e-12)
        np.testing.assert_array_equal(matrix, matrix.T)
    equal = paired_matrices(1, 6, seed=3, low=1.5, high=1.5)[0]
    np.testing.assert_allclose(equal @ equal, 2.25 * np.eye(6), atol=1e-12)
    np.testing.assert_array_equal(found, paired_matrices(2, 6, seed=3, low=1, high=2))
    assert (found != paired_matrices(2, 6, seed=4, low=1, high=2)).any()


def test_meta_features_are_mixed_and_bent_elementwise():
    inputs = rng(0).standard_normal((3, 2))
    base = paired_matrices(2, 4, seed=5)
    plain = meta_features(inputs, 4, seed=5)
    bent = meta_features(inputs, 4, seed=5, activation="tanh")
    for a in range(3):
        expected = (inputs[a, 0] * base[0] + inputs[a, 1] * base[1]) / np.sqrt(2)
        np.testing.assert_allclose(plain[a], expected, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(bent[a], np.tanh(expected), rtol=1e-13, atol=1e-15)
    mixed = QuadraticNet(base, np.zeros(3), mixing=inputs / np.sqrt(2))
    direct = QuadraticNet(plain, np.zeros(3))
    theta = mixed.initial()
    np.testing.assert_allclose(mixed.gradient(theta), direct.gradient(theta), rtol=1e-12)


def test_random_features_are_scaled_by_inputs_and_number():
    inputs = rng(0).standard_normal((3, 2))
    expected = inputs @ rng(8).standard_normal((2, 5)) / np.sqrt(2 * 5)
    np.testing.assert_allclose(random_features(inputs, 5, seed=8), expected, rtol=1e-14)


@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_a_student_has_some_of_the_teachers_coordinates(activation):
    inputs = rng(0).uniform(-0.5, 0.5, (7, 2))
    options = {"activation": activation, "n_features": 4, "student_n_features": 3}
    pair = teacher_student(inputs, 10, 6, seed=11, **options)
    problem = pair.problem
    assert (problem.n_samples, problem.n_features, problem.dim) == (7, 3, 9)
    assert problem.prefactor == np.sqrt(2 / 6)
    # the documented draws, one by one
    generator = rng(11)
    base = paired_matrices(2, 10, generator)
    weights = generator.standard_normal((2, 4)) / np.sqrt(8)
    theta = generator.standard_normal(14)
    kept_features = sorted(generator.permutation(4)[:3])
    kept = sorted(generator.permutation(10)[:6])
    np.testing.assert_array_equal(pair.theta, theta)
    act = np.tanh if activation == "tanh" else lambda x: x
    psi = act(np.tensordot(inputs, base, 1) / np.sqrt(2))
    teacher = QuadraticNet(psi, np.zeros(7), features=inputs @ weights)
    labels = teacher.outputs(theta)
    np.testing.assert_allclose(problem.targets, labels, rtol=1e-12)
    student = QuadraticNet(
        psi[:, kept][:, :, kept], labels, features=(inputs @ weights)[:, kept_features]
    )
    start = problem.initial(1)
    np.testing.assert_allclose(problem.gradient(start), student.gradient(start), rtol=1e-11)
    # at new points, and for several thetas in one pass
    np.testing.assert_allclose(pair.labels(inputs), labels[:, 0], rtol=1e-12)
    thetas = np.stack([start, problem.initial(2)])
    expected = np.stack([problem.outputs(x)[:, 0] for x in thetas])
    np.testing.assert_allclose(pair.outputs(thetas, inputs), expected, rtol=1e-11)
    np.testing.assert_allclose(pair.outputs(start, inputs[:1]), expected[0, :1], rtol=1e-11)


def test_the_same_seed_gives_the_same_student():
    inputs = rng(0).uniform(-0.5, 0.5, (5, 1))
    first, second = (teacher_student(inputs, 8, 4, seed=2) for _ in range(2))
    np.testing.assert_array_equal(first.theta, second.theta)
    np.testing.assert_array_equal(first.problem.targets, second.problem.targets)
    np.testing.assert_array_equal(first.problem.meta_features, second.problem.meta_features)
    other = teacher_student(inputs, 8, 4, seed=3)
    assert (first.problem.targets != other.problem.targets).all()
    # a student with everything can be the teacher
    whole = teacher_student(inputs, 8, 8, seed=2)
    assert whole.problem.loss(whole.theta) < 1e-28


def test_the_data_are_copied_and_nothing_is_modified():
    psi, targets = matrices(2, 3), np.ones(2)
    problem = QuadraticNet(psi, targets)
    theta = problem.initial()
    before = problem.loss(theta)
    psi[:], targets[:] = 7.0, 7.0
    assert problem.loss(theta) == before
    theta.flags.writeable = False
    for name in ("loss", "gradient", "hessian", "ntk", "jacobian"):
        getattr(problem, name)(theta)
    problem.hvp(theta, theta), problem.third_derivative(theta, theta, theta)
    for array in (problem.meta_features, problem.targets, problem.features):
        assert not array.flags.writeable


def test_the_numbers_of_differences_agree():
    problem = net(p=2)
    theta = problem.initial()
    np.testing.assert_allclose(
        naive.gradient(problem.loss, theta), problem.gradient(theta), atol=1e-6
    )
    np.testing.assert_allclose(
        naive.hessian(problem.gradient, theta), problem.hessian(theta), atol=1e-5
    )


# --- bad input ----------------------------------------------------------------------------------

EYE = np.eye(2)
ONE = QuadraticNet([EYE], [0.0])
TWO = QuadraticNet([EYE, EYE], [0.0, 0.0])
X = [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: QuadraticNet(EYE, [1.0]), ValueError, "meta_features must have shape"),
        (lambda: QuadraticNet(np.zeros((1, 2, 3)), [1.0]), ValueError, r"shape \(n, N, N\)"),
        (lambda: QuadraticNet(np.zeros((1, 0, 0)), [1.0]), ValueError, "not empty"),
        (lambda: QuadraticNet([[[0, 1], [0, 0]]], [1.0]), ValueError, r"\[0\] must be symmetric"),
        (lambda: QuadraticNet([EYE * np.nan], [1.0]), ValueError, "meta_features has 4 non-finite"),
        (lambda: QuadraticNet([EYE * 1j], [1.0]), TypeError, "meta_features must be real"),
        (lambda: QuadraticNet([EYE], [1.0, 2.0]), ValueError, "one entry per sample"),
        (lambda: QuadraticNet([EYE], [[1.0, 2.0]]), ValueError, "targets must have shape"),
        (lambda: QuadraticNet([EYE], []), ValueError, "targets must have shape"),
        (lambda: QuadraticNet([EYE], [np.inf]), ValueError, "targets has 1 non-finite"),
        (lambda: QuadraticNet([EYE], [1.0], 0.0), ValueError, "prefactor"),
        (lambda: QuadraticNet([EYE], [1.0], "1"), TypeError, "prefactor"),
        (lambda: QuadraticNet([EYE], [1.0], None, [1.0]), ValueError, "features must have shape"),
        (lambda: QuadraticNet([EYE], [1.0], None, [[1.0], [2.0]]), ValueError, "features"),
        (lambda: QuadraticNet([EYE], [1.0], mixing=[[1.0, 2.0]]), ValueError, "mixing must have"),
        (lambda: ONE.ntk_bound(np.ones(2), "best"), ValueError, "kind must be one of"),
        (lambda: ONE.ntk_bound(np.ones(3)), ValueError, "theta must have shape"),
        (lambda: TWO.ntk_bound(np.ones(2), "own"), ValueError, "bound of one sample"),
        (lambda: catapult_bound(ONE, np.zeros(2)), ValueError, "positive ntk_bound"),
        (lambda: catapult_bound(eosim.Cosine(2), np.zeros(2)), TypeError, "has no ntk"),
        (lambda: catapult_bound(ONE, [np.nan, 1.0]), ValueError, "theta has 1 non-finite"),
        (lambda: catapult_bound(ONE, np.ones(2), "norm"), ValueError, "kind must be one of"),
        (lambda: paired_matrices(0, 4), ValueError, "count"),
        (lambda: paired_matrices(1, 3), ValueError, "size must be even"),
        (lambda: paired_matrices(1, 4.0), TypeError, "size"),
        (lambda: paired_matrices(1, 4, low=-1.0), ValueError, "low"),
        (lambda: paired_matrices(1, 4, low=2.0, high=1.0), ValueError, "high"),
        (lambda: meta_features([1.0], 4), ValueError, "inputs must have shape"),
        (lambda: meta_features(X, 4, activation="relu"), ValueError, "activation must be one of"),
        (lambda: random_features(np.zeros((0, 1)), 4), ValueError, "inputs must have shape"),
        (lambda: random_features(X, 0), ValueError, "size"),
        (lambda: teacher_student(X, 4, 5), ValueError, "student_size must be at most"),
        (lambda: teacher_student(X, 4, 0), ValueError, "student_size"),
        (
            lambda: teacher_student(X, 4, 2, student_n_features=1),
            ValueError,
            "student_n_features must be at most",
        ),
        (lambda: teacher_student(X, 4, 2, n_features=-1), ValueError, "n_features"),
        (lambda: teacher_student(X, 4, 2).labels([[1.0, 2.0]]), ValueError, "inputs must have"),
        (lambda: teacher_student(X, 4, 2).outputs([1.0], X), ValueError, "theta must have shape"),
    ],
)
def test_bad_input_is_refused_with_its_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
