"""Problems made of models written in JAX or PyTorch, which are imported only when they are used."""

from eosim.adapters.autodiff import AutodiffFiniteSum, AutodiffLeastSquares, AutodiffProblem
from eosim.adapters.jax_functions import from_jax
from eosim.adapters.torch_modules import from_torch

__all__ = [
    "AutodiffFiniteSum",
    "AutodiffLeastSquares",
    "AutodiffProblem",
    "from_jax",
    "from_torch",
]
