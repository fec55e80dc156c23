"""A dense object larger than memory is refused before it is formed, and there is a way without it."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import eosim
from eosim import _checks
from eosim.moments import (
    Covariance,
    DiagonalClosure,
    Energies,
    HomogenizedSGD,
    volterra_equation,
)
from eosim.problems import dual_kernel, random_quadratic_regression
from eosim.stability import TangentKernel, tangent_kernel
from tests.cases import perceptron, regression

GD = eosim.GradientDescent(0.1)


def sparse(dim: int) -> eosim.Quadratic:
    return eosim.Quadratic(scipy.sparse.diags_array(np.linspace(1, 2, dim), format="csr"))


def operator(dim: int) -> eosim.Quadratic:
    """The identity, as products only."""
    return eosim.Quadratic(LinearOperator((dim, dim), matvec=lambda v: v, dtype=float))


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def dual() -> eosim.problems.base.FunctionProblem:
    return eosim.from_functions(lambda x: np.sum(x**4) / 4, lambda x: x**3, dim=9)


NARROW = eosim.LinearRegression(gaussian(30, 2), gaussian(30, seed=1))  # many samples
WIDE = eosim.LinearRegression(gaussian(2, 30), gaussian(2, seed=1))  # many parameters
SPARSE = eosim.LinearRegression(scipy.sparse.csr_array(gaussian(4, 30)), np.ones(4))
NETWORK = perceptron(n_samples=9, hidden=(3,))
LINEAR_NET = eosim.LinearNet(gaussian(6, 3), gaussian(6), (4,))
DIAGONAL_NET = eosim.DiagonalNet(gaussian(2, 9), gaussian(2))
TWO_LAYER = eosim.TwoLayerNet(gaussian(9, 2), gaussian(9), 4)
DEEP = eosim.DeepHomogeneousNet(gaussian(9, 2), gaussian(9), (3, 3))
QUADRATIC_NET = eosim.QuadraticNet([np.eye(2)] * 9, np.ones(9), features=gaussian(9, 20))
FEATURES = eosim.RandomFeatures.draw(20, 2, 3)
TENSORS = random_quadratic_regression(20, 3, 0.1)
MOMENTS = eosim.catapult.LinearNetMoments(
    gaussian(12, 2), np.zeros(12), gaussian(3, 2), np.ones(3), 0.1
)
WIDE_MOMENTS = eosim.catapult.LinearNetMoments(
    gaussian(2, 12), np.zeros(2), gaussian(3, 12), np.ones(3), 0.1
)
ENERGIES = Energies(np.ones(20), 0.0)
KERNEL = tangent_kernel(NARROW, np.zeros(2))


def at(problem) -> np.ndarray:
    return np.linspace(-0.5, 0.7, problem.dim)


def row(name, shape, call, alternative, itemsize=8, without=None):
    """What would be formed, its shape, the call that forms it, and what the message recommends."""
    return pytest.param(shape, call, alternative, itemsize, without, id=name)


def hessian(name, problem):
    """Every Hessian, with its products as the way without it."""
    theta = at(problem)
    return row(
        f"{name}_hessian",
        (problem.dim, problem.dim),
        lambda: problem.hessian(theta),
        r"products, hvp\(theta, v\), and eosim.measure.sharpness need no matrix",
        without=lambda: problem.hvp(theta, theta),
    )


def jacobian(name, problem):
    theta = at(problem)
    n_outputs = getattr(problem, "n_outputs", 1)
    return row(
        f"{name}_jacobian",
        (problem.n_samples, n_outputs, problem.dim),
        lambda: problem.jacobian(theta),
        r"take the samples in parts, jacobian\(theta, batch\)",
        without=lambda: problem.jacobian(theta, np.arange(1)),
    )


def ntk(name, problem):
    theta, size = at(problem), problem.n_samples
    return row(
        f"{name}_ntk",
        (size, size),
        lambda: problem.ntk(theta),
        "take the samples in parts",
        without=lambda: problem.jacobian(theta, np.arange(1)),
    )


ROWS = [
    hessian("sparse_quadratic", sparse(20)),
    hessian("operator_quadratic", operator(20)),
    hessian("cosine", eosim.Cosine(20)),
    hessian("function", dual()),
    hessian("regression", WIDE),
    hessian("sparse_regression", SPARSE),
    hessian("quadratic_net", QUADRATIC_NET),
    hessian("perceptron", NETWORK),
    hessian("linear_net", LINEAR_NET),
    hessian("diagonal_net", DIAGONAL_NET),
    hessian("two_layer_net", TWO_LAYER),
    hessian("deep_net", DEEP),
    hessian("random_features", eosim.RandomFeatures.draw(3, 2, 20)),
    hessian("shuffled_epoch", eosim.ShuffledEpochLoss(WIDE, 0.1, [[0], [1]])),
    jacobian("regression", regression(n_outputs=3)),
    jacobian("sparse_regression", SPARSE),
    jacobian("perceptron", NETWORK),
    jacobian("linear_net", LINEAR_NET),
    jacobian("two_layer_net", TWO_LAYER),
    jacobian("deep_net", DEEP),
    ntk("quadratic_net", QUADRATIC_NET),
    ntk("two_layer_net", TWO_LAYER),
    ntk("deep_net", DEEP),
    ntk("random_features", FEATURES),
    ntk("quadratic_regression", TENSORS),
    row(
        "linear_net_predictor_jacobian",
        (3, 1, LINEAR_NET.dim),
        lambda: LINEAR_NET.predictor_jacobian(at(LINEAR_NET)),
        "products",
        without=lambda: LINEAR_NET.hvp(at(LINEAR_NET), at(LINEAR_NET)),
    ),
    row(
        "diagonal_net_predictor_jacobian",
        (9, 1, 18),
        lambda: DIAGONAL_NET.predictor_jacobian(at(DIAGONAL_NET)),
        "products",
        without=lambda: DIAGONAL_NET.hvp(at(DIAGONAL_NET), at(DIAGONAL_NET)),
    ),
    row(
        "features",
        (20, 9),
        lambda: eosim.RandomFeatures(gaussian(20, 2), gaussian(20), gaussian(9, 2)),
        "LinearRegression takes them as a LinearOperator",
        without=lambda: eosim.LinearRegression(
            aslinearoperator(gaussian(20, 9)), gaussian(20)
        ).gradient(np.ones(9)),
    ),
    row(
        "dual_kernel",
        (20, 20),
        lambda: dual_kernel(gaussian(20, 2)),
        "take the inputs in parts",
        without=lambda: dual_kernel(gaussian(20, 2)[:5], gaussian(20, 2)),
    ),
    row(
        "tensor",
        (3, 55),
        lambda: random_quadratic_regression(3, 10, 0.1),
        "take float32, or fewer parameters",
        without=lambda: random_quadratic_regression(3, 10, 0.1, dtype="float32"),
    ),
    row(
        "tensor_in_float32",
        (3, 55),
        lambda: random_quadratic_regression(3, 10, 0.1, dtype="float32"),
        "take float32, or fewer parameters",
        itemsize=4,
        without=lambda: random_quadratic_regression(3, 6, 0.1, dtype="float32"),
    ),
    row(
        "tangent_kernel",
        (30, 2),
        lambda: tangent_kernel(NARROW, np.zeros(2)),
        "eosim.stability.LanczosKernelNorm takes it in parts",
    ),
    row(
        "ntk_of_a_tangent_kernel",
        (30, 30),
        lambda: KERNEL.matrix,
        r"its factors are eigenvalues and vectors\(\)",
        without=lambda: KERNEL.vectors() * KERNEL.eigenvalues,
    ),
    row(
        "gauss_newton_spectrum",
        (2, 30),
        lambda: eosim.measure.gauss_newton_spectrum(WIDE, at(WIDE)),
        "eosim.measure.sharpness",
        without=lambda: WIDE.hvp(at(WIDE), at(WIDE)),
    ),
    row(
        "covariance",
        (30, 30),
        lambda: Covariance(KERNEL, 0.1, 5),
        "DiagonalClosure and run_ensemble need no matrix",
        without=lambda: eosim.predict(DiagonalClosure(KERNEL, 0.1, 5), np.ones(30), 5),
    ),
    row(
        "volterra",
        (7, 30, 30),
        lambda: volterra_equation(KERNEL, np.ones(30), 0.1, 5, 7),
        'kind="finite" has one number per step',
        without=lambda: volterra_equation(KERNEL, np.ones(30), 0.1, 5, 7, kind="finite"),
    ),
    row(
        "homogenized",
        (20, 20),
        lambda: eosim.predict(HomogenizedSGD(np.arange(1.0, 21), 0.01, 5), ENERGIES, 5),
        "DiagonalClosure is stepped by modes",
        without=lambda: eosim.predict(
            DiagonalClosure(np.arange(1.0, 21), 0.01, 5, kind="delocalised"), ENERGIES, 5
        ),
    ),
    row(
        "ensemble",
        (30, 30),
        lambda: eosim.run_ensemble(
            NARROW, GD, np.zeros(2), 3, batch_sizes=4, n_replicas=2, seed=0, method="residual"
        ),
        'method="parameter" does without',
        without=lambda: eosim.run_ensemble(
            NARROW, GD, np.zeros(2), 3, batch_sizes=4, n_replicas=2, seed=0, method="parameter"
        ),
    ),
    row(
        "principal_flow",
        (20, 20),
        lambda: eosim.PrincipalFlow(sparse(20), 0.1, method="dense"),
        'method="lanczos" takes products',
        without=lambda: eosim.integrate(
            eosim.PrincipalFlow(sparse(20), 0.1, method="lanczos"), np.ones(20), [0, 0.1]
        ),
    ),
    row(
        "rod_flow",
        (100, 100),
        lambda: eosim.RodFlow(sparse(100), GD).start(np.ones(100), None),
        "EdgeFlow and CentralFlow follow a few directions",
        without=lambda: eosim.integrate(eosim.EdgeFlow(sparse(100), 0.1), np.ones(100), [0, 0.1]),
    ),
    row(
        "edge_covariance",
        (100, 100),
        lambda: edge_flow().covariance(edge_flow().start(np.ones(100), None)),
        r"averages\(state\) has its trace",
        without=lambda: edge_flow().averages(edge_flow().start(np.ones(100), None)),
    ),
    row(
        "central_covariance",
        (100, 100),
        lambda: central_flow().covariance(np.ones(100)),
        r"averages\(state\) has its trace",
        without=lambda: central_flow().averages(np.ones(100)),
    ),
    row(
        "moments_of_a_linear_net",
        (12, 12),
        WIDE_MOMENTS.start,
        "eosim.run of a TwoLayerNet does without",
        without=lambda: eosim.run(TWO_LAYER, GD, at(TWO_LAYER), 2),
    ),
    row(
        "ntk_of_a_linear_net",
        (12, 12),
        lambda: MOMENTS.observe(MOMENTS.start()),
        "eosim.run of a TwoLayerNet does without",
        without=lambda: eosim.run(TWO_LAYER, GD, at(TWO_LAYER), 2),
    ),
]


def edge_flow() -> eosim.EdgeFlow:
    return eosim.EdgeFlow(sparse(100), 0.1)


def central_flow() -> eosim.CentralFlow:
    return eosim.CentralFlow(sparse(100), GD)


def limited(monkeypatch, limit: float) -> None:
    monkeypatch.setattr(_checks, "memory", lambda: float(limit))


@pytest.mark.parametrize(("shape", "call", "alternative", "itemsize", "without"), ROWS)
def test_what_is_larger_than_memory_is_refused_with_its_size_and_a_way_without_it(
    shape, call, alternative, itemsize, without, monkeypatch
):
    size = itemsize * math.prod(shape)
    limited(monkeypatch, size)
    call()  # what fits to the byte is formed
    forget(call)
    limited(monkeypatch, size - 1)
    if without is not None:
        without()
    with pytest.raises(MemoryError, match=alternative) as refusal:
        call()
    message = str(refusal.value)
    assert f"{size / 1e9:.3g} GB" in message
    assert f"{(size - 1) / 1e9:.3g} GB of memory" in message
    assert all(str(length) in message for length in shape)


def test_models_of_a_framework_are_refused_alike(monkeypatch):
    pytest.importorskip("jax")
    problem = eosim.from_jax(lambda w, x: x @ w, np.zeros(20), gaussian(3, 20), np.ones(3))
    theta = np.ones(20)
    for shape, call, alternative in (
        ((20, 20), problem.hessian, "hvp"),
        ((3, 20), problem.jacobian, "take the samples in parts"),
    ):
        limited(monkeypatch, 8 * math.prod(shape))
        assert np.size(call(theta)) == math.prod(shape)
        limited(monkeypatch, 8 * math.prod(shape) - 1)
        with pytest.raises(MemoryError, match=alternative):
            call(theta)
    assert problem.hvp(theta, theta).shape == (20,)
    assert problem.jacobian(theta, np.arange(1)).shape == (1, 1, 20)


def forget(call) -> None:
    """Hessians that a problem keeps: it need not form them again."""
    for cell in call.__closure__ or ():
        for name in ("_dense", "_full_hessian", "regression"):
            held = getattr(cell.cell_contents, "__dict__", {})
            if name == "regression" and name in held:
                held[name].__dict__.pop("_full_hessian", None)
            elif name != "regression":
                held.pop(name, None)


# --- truly huge ---------------------------------------------------------------------------------


def million_parameters() -> eosim.Perceptron:
    return eosim.Perceptron(np.ones((2, 1000)), np.ones(2), (1000,))


def many_samples() -> TangentKernel:
    """A million samples, two modes."""
    vectors = np.zeros((10**6, 2))
    vectors[0, 0] = vectors[1, 1] = 1
    return TangentKernel(np.array([2.0, 1.0]), vectors, 10**6)


def many_rows() -> eosim.LinearRegression:
    import eosim._kernels.sgd  # the import of numba is none of the work

    return eosim.LinearRegression(np.ones((10**6, 1)), np.ones(10**6))


@pytest.mark.parametrize(
    ("make", "call", "message"),
    [
        pytest.param(
            lambda: operator(10**7),
            lambda problem: problem.hessian(np.zeros(10**7)),
            r"shape \(10000000, 10000000\), 8e\+05 GB.*hvp",
            id="hessian_of_an_operator",
        ),
        pytest.param(
            lambda: operator(10**7),
            lambda problem: eosim.PrincipalFlow(problem, 0.1, method="dense"),
            r'PrincipalFlow: the Hessian.*8e\+05 GB.*method="lanczos"',
            id="principal_flow_of_an_operator",
        ),
        pytest.param(
            million_parameters,
            lambda problem: problem.hessian(np.zeros(problem.dim)),
            r"\(1002001, 1002001\), 8.03e\+03 GB.*hvp",
            id="hessian_of_a_network",
        ),
        pytest.param(
            many_samples,
            lambda kernel: Covariance(kernel, 0.1, 10),
            r"\(1000000, 1000000\), 8e\+03 GB.*DiagonalClosure",
            id="covariance_of_a_million_samples",
        ),
        pytest.param(
            many_rows,
            lambda problem: eosim.run_ensemble(
                problem, GD, np.zeros(1), 3, batch_sizes=4, n_replicas=1, seed=0, method="residual"
            ),
            r"K would be .*8e\+03 GB.*parameter",
            id="ensemble_of_a_million_samples",
        ),
    ],
)
def test_the_huge_is_refused_without_an_allocation(make, call, message, monkeypatch):
    made = make()
    limited(monkeypatch, min(_checks.memory(), 1e12))  # also where the limit is not known
    tracemalloc.start()
    try:
        with pytest.raises(MemoryError, match=message):
            call(made)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5e8  # vectors of the size that is given, never their square


def test_the_way_without_a_matrix_is_open_to_the_huge():
    problem = operator(10**5)
    theta = np.ones(10**5)
    np.testing.assert_array_equal(problem.hvp(theta, theta), theta)
    assert eosim.measure.sharpness(problem, theta).value == pytest.approx(1, rel=1e-9)
    path = eosim.integrate(
        eosim.PrincipalFlow(problem, 0.5, method="lanczos"), theta, [0, 0.5], record={}
    )
    np.testing.assert_allclose(path.theta[-1], 0.5, rtol=1e-8)  # a step of gradient descent


def test_a_report_of_many_residuals_and_parameters_needs_no_matrix(monkeypatch):
    network = eosim.Perceptron(gaussian(2100, 2), gaussian(2100), (99,))
    limited(monkeypatch, 8 * 2100 * 20)  # below Hessian, Jacobian and NTK
    assert eosim.stability.report(network, network.initial(0), 0.1, 10).sharpness.value > 0


# --- how much there is --------------------------------------------------------------------------


def test_the_memory_of_this_machine_is_known_where_the_system_tells_it():
    pages = pytest.importorskip("os").sysconf("SC_PHYS_PAGES")
    assert 2**20 < _checks.memory() <= pages * 2**20


def test_a_limit_of_the_process_counts(monkeypatch):
    resource = pytest.importorskip("resource")
    for limit, expected in ((10**6, 10**6), (resource.RLIM_INFINITY, _checks.memory())):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        assert _checks.memory.__wrapped__() == pytest.approx(expected, rel=1e-12)


def test_where_nothing_is_known_nothing_is_refused(monkeypatch):
    def unknown(*_):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(_checks.os, "sysconf", unknown, raising=False)
    monkeypatch.setattr(_checks.Path, "read_text", lambda *_, **__: "max\n")
    monkeypatch.setitem(__import__("sys").modules, "resource", None)
    assert _checks.memory.__wrapped__() == math.inf
