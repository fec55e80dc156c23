"""Neural networks with hand-derived, exact derivatives."""

from eosim.problems.networks.perceptron import Perceptron

__all__ = ["Perceptron"]
