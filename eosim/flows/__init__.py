"""Continuous time: vector fields (one file per idea) and the guarded driver `integrate`."""

from eosim.flows import self_stabilization
from eosim.flows.base import (
    AmbiguousBranch,
    Averages,
    BranchedFlow,
    Flow,
    LeftRange,
    OscillatingFlow,
)
from eosim.flows.central import CentralFlow, StableFlow
from eosim.flows.driver import integrate
from eosim.flows.edge import EdgeFlow
from eosim.flows.ensemble import FlowEnsemble, integrate_ensemble
from eosim.flows.gradient import GradientFlow
from eosim.flows.principal import HeavyBallPrincipalFlow, PrincipalFlow, principal_coefficient
from eosim.flows.quadratic import closed_form
from eosim.flows.rates import loss_rate, sharpness_rate
from eosim.flows.rod import RodFlow
from eosim.flows.stochastic import OrnsteinUhlenbeck, ShuffledEpochLoss
from eosim.flows.truncated import ForwardDifferenceFlow, ModifiedFlow, PrincipalSeries

__all__ = [
    "AmbiguousBranch",
    "Averages",
    "BranchedFlow",
    "CentralFlow",
    "EdgeFlow",
    "Flow",
    "FlowEnsemble",
    "ForwardDifferenceFlow",
    "GradientFlow",
    "HeavyBallPrincipalFlow",
    "LeftRange",
    "ModifiedFlow",
    "OrnsteinUhlenbeck",
    "OscillatingFlow",
    "PrincipalFlow",
    "PrincipalSeries",
    "RodFlow",
    "ShuffledEpochLoss",
    "StableFlow",
    "closed_form",
    "integrate",
    "integrate_ensemble",
    "loss_rate",
    "principal_coefficient",
    "self_stabilization",
    "sharpness_rate",
]
