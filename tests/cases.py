"""Small named cases for parametrised tests."""

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import aslinearoperator

import eosim

SCHEMES = ("without_replacement", "with_replacement", "bernoulli", "reshuffling")

# A polynomial without symmetry: third derivatives in every direction, T[g, g] far from 0.
QUARTIC_TERMS = {
    (2, 0): 0.65,
    (1, 1): 0.4,
    (0, 2): 0.35,
    (3, 0): 0.3,
    (2, 1): -0.2,
    (1, 2): 0.25,
    (4, 0): 0.1,
    (0, 4): 0.15,
}


def rotation(dim: int, seed: int = 0) -> np.ndarray:
    """A random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


def symmetric(eigenvalues, seed: int = 0) -> np.ndarray:
    """A symmetric matrix of known eigenvalues in a random basis."""
    basis = rotation(len(eigenvalues), seed)
    matrix = basis @ np.diag(np.asarray(eigenvalues, dtype=float)) @ basis.T
    return (matrix + matrix.T) / 2


def regression(n_samples=12, n_features=4, n_outputs=1, seed=0) -> eosim.LinearRegression:
    generator = np.random.default_rng(seed)
    return eosim.LinearRegression(
        generator.standard_normal((n_samples, n_features)),
        generator.standard_normal((n_samples, n_outputs)),
    )


def sparse_regression() -> eosim.LinearRegression:
    generator = np.random.default_rng(1)
    inputs = scipy.sparse.csr_array(generator.random((12, 4)) * (generator.random((12, 4)) < 0.5))
    return eosim.LinearRegression(inputs, np.arange(12.0))


def operator_regression() -> eosim.LinearRegression:
    inputs = np.random.default_rng(2).standard_normal((12, 4))
    return eosim.LinearRegression(aslinearoperator(inputs), np.arange(12.0))


def perceptron(n_samples=9, n_features=2, n_outputs=1, hidden=(3,), seed=0) -> eosim.Perceptron:
    generator = np.random.default_rng(seed)
    return eosim.Perceptron(
        generator.standard_normal((n_samples, n_features)),
        generator.standard_normal((n_samples, n_outputs)),
        hidden,
    )


def edge_network() -> tuple[eosim.Perceptron, np.ndarray]:
    """A network of 25 parameters, and a start from which lr = 0.7 ends at the edge of stability."""
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((20, 2))
    weights = generator.standard_normal(18) / np.sqrt(2)
    output = generator.standard_normal(6) / np.sqrt(6)
    targets = np.sin(2 * inputs[:, 0]) * inputs[:, 1]
    return eosim.Perceptron(inputs, targets, (6,)), np.concatenate([weights, output, [0.0]])


_QUADRATIC = symmetric([3.0, 1.0, -0.5, 0.0], seed=3)
_POINT = np.array([0.3, -0.7, 1.1, 0.4])

# (problem, a point where its derivatives are tested)
PROBLEMS = [
    pytest.param(eosim.Quadratic(_QUADRATIC, [1.0, 2.0, 3.0, 4.0]), _POINT, id="quadratic"),
    pytest.param(
        eosim.Quadratic(scipy.sparse.csr_array(_QUADRATIC)), _POINT, id="sparse_quadratic"
    ),
    pytest.param(eosim.Quadratic(aslinearoperator(_QUADRATIC)), _POINT, id="operator_quadratic"),
    pytest.param(eosim.Quadratic([[2.0]]), np.array([0.5]), id="quadratic_1d"),
    pytest.param(eosim.Rosenbrock(), np.array([0.5, 0.6]), id="rosenbrock"),
    pytest.param(eosim.Rosenbrock(0.0), np.array([0.5, 0.6]), id="flat_rosenbrock"),
    pytest.param(eosim.Cosine(3), np.array([0.5, -2.0, 3.0]), id="cosine"),
    pytest.param(eosim.Polynomial(QUARTIC_TERMS), np.array([0.7, -0.5]), id="quartic"),
    pytest.param(eosim.Polynomial({(0, 0): 2.0}), np.array([0.7, -0.5]), id="constant"),
    pytest.param(regression(), _POINT, id="regression"),
    pytest.param(regression(n_outputs=3, n_features=2), np.arange(6) / 3, id="multi_output"),
    pytest.param(regression(n_samples=1, n_features=3), _POINT[:3], id="one_sample"),
    pytest.param(sparse_regression(), _POINT, id="sparse_regression"),
    pytest.param(operator_regression(), _POINT, id="operator_regression"),
    pytest.param(
        eosim.from_functions(
            lambda x: np.sum(np.exp(x) - x),
            lambda x: np.exp(x) - 1,
            hvp=lambda x, v: np.exp(x) * v,
            dim=2,
            analytic=True,
        ),
        np.array([0.3, -0.4]),
        id="from_functions",
    ),
    pytest.param(perceptron(), np.linspace(-1, 1, 13), id="perceptron"),
    pytest.param(
        eosim.problems.random_quadratic_regression(5, 4, 0.5, seed=2),
        _POINT,
        id="quadratic_regression",
    ),
    pytest.param(eosim.RandomFeatures.draw(8, 3, 4), _POINT, id="random_features"),
    pytest.param(
        eosim.LinearNet([[1.0, 2.0], [-0.5, 0.3]], [1.0, 2.0], (2,)),
        np.arange(6) / 3,
        id="linear_net",
    ),
    pytest.param(
        eosim.DiagonalNet([[1.0, 2.0], [-0.5, 0.3]], [1.0, 2.0]), _POINT, id="diagonal_net"
    ),
    pytest.param(
        perceptron(n_outputs=2, hidden=(3, 2)), np.linspace(-1, 0.9, 23), id="deep_perceptron"
    ),
]

# Problems that mini-batches apply to.
FINITE_SUMS = [
    pytest.param(regression(), _POINT, id="regression"),
    pytest.param(regression(n_outputs=3, n_features=2), np.arange(6) / 3, id="multi_output"),
    pytest.param(sparse_regression(), _POINT, id="sparse_regression"),
]

RULES = [
    pytest.param(eosim.GradientDescent(0.1), id="gradient_descent"),
    pytest.param(eosim.HeavyBall(0.03, 0.8), id="heavy_ball"),
    pytest.param(eosim.HeavyBall(0.1, 0.0), id="heavy_ball_without_momentum"),
    pytest.param(eosim.Nesterov(0.03, 0.8), id="nesterov"),
    pytest.param(eosim.EMAMomentum(0.1, 0.7), id="ema"),
    pytest.param(eosim.QuasiHyperbolic(0.1, 0.8, 0.6), id="quasi_hyperbolic"),
    pytest.param(eosim.QuasiHyperbolic(0.1, 0.5, 3.0), id="quasi_hyperbolic_nu_above_1"),
]

# (flow, starting point)
FLOWS = [
    pytest.param(
        eosim.GradientFlow(eosim.Quadratic(_QUADRATIC), lr=0.1), _POINT, id="gradient_quadratic"
    ),
    pytest.param(eosim.GradientFlow(eosim.Rosenbrock()), np.array([0.5, 0.6]), id="gradient_rosen"),
    pytest.param(
        eosim.PrincipalFlow(eosim.Quadratic(_QUADRATIC), lr=0.6), _POINT, id="principal_quadratic"
    ),
    pytest.param(
        eosim.PrincipalFlow(eosim.Polynomial(QUARTIC_TERMS), lr=0.1),
        np.array([0.7, -0.5]),
        id="principal_quartic",
    ),
    pytest.param(
        eosim.PrincipalFlow(eosim.Rosenbrock(), lr=1.2e-3),
        np.array([1.2, 1.2]),
        id="principal_rosen",
    ),
    pytest.param(eosim.PrincipalFlow(regression(), lr=0.5), _POINT, id="principal_regression"),
    pytest.param(
        eosim.PrincipalFlow(eosim.Polynomial(QUARTIC_TERMS), 0.8, corrections=2),
        np.array([0.7, -0.5]),
        id="corrected_quartic",
    ),
    pytest.param(
        eosim.HeavyBallPrincipalFlow(eosim.Polynomial(QUARTIC_TERMS), 0.3, 0.5),
        np.array([0.7, -0.5]),
        id="heavy_ball_quartic",
    ),
    pytest.param(
        eosim.ModifiedFlow(perceptron(), 0.2, 4), np.linspace(-1, 1, 13), id="modified_perceptron"
    ),
    pytest.param(
        eosim.ForwardDifferenceFlow(eosim.Rosenbrock(), 5e-4, 3),
        np.array([0.5, 0.6]),
        id="differences_rosen",
    ),
    pytest.param(
        eosim.PrincipalSeries(eosim.Quadratic(_QUADRATIC), 0.1, 4), _POINT, id="series_quadratic"
    ),
]


@dataclass
class Linear:
    """Any linear rule, as a user writes it: (theta, buffers) <- A (theta, buffers) + b gradient."""

    drift: np.ndarray
    response: np.ndarray
    lr: float = 1.0

    def init(self, theta):
        return tuple(0 * theta for _ in range(len(self.drift) - 1))

    def step(self, theta, state, gradient):
        new = np.array(self.drift) @ np.stack([theta, *state])
        new = new + np.multiply.outer(np.array(self.response), gradient)
        return new[0], tuple(new[1:])
