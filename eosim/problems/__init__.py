"""What is minimised: one file per family, all under the contract of `eosim.problems.base`."""

from eosim.problems.base import FiniteSum, LeastSquares, Problem, from_functions, third_derivative
from eosim.problems.networks import (
    DeepHomogeneousNet,
    FrozenGates,
    Perceptron,
    TwoLayerNet,
    activation_sparsity,
    uv_net,
)
from eosim.problems.quadratic import (
    QuadraticNet,
    TeacherStudent,
    catapult_bound,
    meta_features,
    random_features,
    teacher_student,
)
from eosim.problems.regression import LinearRegression
from eosim.problems.toys import Cosine, Polynomial, Quadratic, Rosenbrock

__all__ = [
    "Cosine",
    "DeepHomogeneousNet",
    "FiniteSum",
    "FrozenGates",
    "LeastSquares",
    "LinearRegression",
    "Perceptron",
    "Polynomial",
    "Problem",
    "Quadratic",
    "QuadraticNet",
    "Rosenbrock",
    "TeacherStudent",
    "TwoLayerNet",
    "activation_sparsity",
    "catapult_bound",
    "from_functions",
    "meta_features",
    "random_features",
    "teacher_student",
    "third_derivative",
    "uv_net",
]
