"""What is minimised: one file per family, all under the contract of `eosim.problems.base`."""

from eosim.problems.base import FiniteSum, LeastSquares, Problem, from_functions
from eosim.problems.regression import LinearRegression
from eosim.problems.toys import Cosine, Polynomial, Quadratic, Rosenbrock

__all__ = [
    "Cosine",
    "FiniteSum",
    "LeastSquares",
    "LinearRegression",
    "Polynomial",
    "Problem",
    "Quadratic",
    "Rosenbrock",
    "from_functions",
]
