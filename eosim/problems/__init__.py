"""What is minimised: one file per family, all under the contract of `eosim.problems.base`."""

from eosim.problems.base import FiniteSum, LeastSquares, Problem, from_functions, third_derivative
from eosim.problems.dual_kernels import (
    SphereKernel,
    circle_coefficient,
    dual_kernel,
    sphere_kernel,
)
from eosim.problems.feature_model import RandomFeatures
from eosim.problems.minima import InterpolatingMinimum, interpolating_minimum
from eosim.problems.networks import (
    DeepHomogeneousNet,
    DiagonalNet,
    FrozenGates,
    LinearNet,
    Perceptron,
    TwoLayerNet,
    activation_sparsity,
    uv_net,
)
from eosim.problems.quadratic import QuadraticNet, catapult_bound
from eosim.problems.quadratic_regression import (
    QuadraticRegression,
    jacobian_with_spectrum,
    random_quadratic_regression,
)
from eosim.problems.regression import LinearRegression
from eosim.problems.teachers import (
    TeacherStudent,
    meta_features,
    paired_matrices,
    random_features,
    teacher_student,
)
from eosim.problems.toys import Cosine, Polynomial, Quadratic, Rosenbrock

__all__ = [
    "Cosine",
    "DeepHomogeneousNet",
    "DiagonalNet",
    "FiniteSum",
    "FrozenGates",
    "InterpolatingMinimum",
    "LeastSquares",
    "LinearNet",
    "LinearRegression",
    "Perceptron",
    "Polynomial",
    "Problem",
    "Quadratic",
    "QuadraticNet",
    "QuadraticRegression",
    "RandomFeatures",
    "Rosenbrock",
    "SphereKernel",
    "TeacherStudent",
    "TwoLayerNet",
    "activation_sparsity",
    "catapult_bound",
    "circle_coefficient",
    "dual_kernel",
    "from_functions",
    "interpolating_minimum",
    "jacobian_with_spectrum",
    "meta_features",
    "paired_matrices",
    "random_features",
    "random_quadratic_regression",
    "sphere_kernel",
    "teacher_student",
    "third_derivative",
    "uv_net",
]
