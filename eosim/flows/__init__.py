"""Continuous time: vector fields (one file per idea) and the guarded driver `integrate`."""

from eosim.flows.base import BranchedFlow, Flow, LeftRange
from eosim.flows.driver import integrate
from eosim.flows.gradient import GradientFlow
from eosim.flows.principal import HeavyBallPrincipalFlow, PrincipalFlow, principal_coefficient
from eosim.flows.quadratic import closed_form
from eosim.flows.truncated import ForwardDifferenceFlow, ModifiedFlow, PrincipalSeries

__all__ = [
    "BranchedFlow",
    "Flow",
    "ForwardDifferenceFlow",
    "GradientFlow",
    "HeavyBallPrincipalFlow",
    "LeftRange",
    "ModifiedFlow",
    "PrincipalFlow",
    "PrincipalSeries",
    "closed_form",
    "integrate",
    "principal_coefficient",
]
