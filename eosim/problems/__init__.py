"""What is minimised: one file per family, all under the contract of `eosim.problems.base`."""

from eosim.problems.base import FiniteSum, LeastSquares, Problem, from_functions, third_derivative
from eosim.problems.networks import Perceptron
from eosim.problems.regression import LinearRegression
from eosim.problems.toys import Cosine, Polynomial, Quadratic, Rosenbrock

__all__ = [
    "Cosine",
    "FiniteSum",
    "LeastSquares",
    "LinearRegression",
    "Perceptron",
    "Polynomial",
    "Problem",
    "Quadratic",
    "Rosenbrock",
    "from_functions",
    "third_derivative",
]
