"""Continuous time: vector fields (one file per idea) and the guarded driver `integrate`."""

from eosim.flows.base import Flow, LeftRange
from eosim.flows.driver import integrate
from eosim.flows.gradient import GradientFlow
from eosim.flows.principal import PrincipalFlow, principal_coefficient
from eosim.flows.quadratic import closed_form

__all__ = [
    "Flow",
    "GradientFlow",
    "LeftRange",
    "PrincipalFlow",
    "closed_form",
    "integrate",
    "principal_coefficient",
]
