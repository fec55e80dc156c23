"""Neural networks with hand-derived, exact derivatives."""

from eosim.problems.networks.deep import DeepHomogeneousNet
from eosim.problems.networks.homogeneous import (
    FrozenGates,
    TwoLayerNet,
    activation_sparsity,
    uv_net,
)
from eosim.problems.networks.linear import DiagonalNet, LinearNet
from eosim.problems.networks.perceptron import Perceptron

__all__ = [
    "DeepHomogeneousNet",
    "DiagonalNet",
    "FrozenGates",
    "LinearNet",
    "Perceptron",
    "TwoLayerNet",
    "activation_sparsity",
    "uv_net",
]
