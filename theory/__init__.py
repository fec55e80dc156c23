"""Proofs: every threshold and identity, derived from the code that ships and checked by several routes.

One file derives one subject and ends in its claims; ``python -m theory`` runs them all.
"""

from collections.abc import Callable

from theory import (
    adaptive,
    alignment,
    averages,
    catapult,
    central_adaptive,
    central_flow,
    dual_kernels,
    edge_flows,
    linear_stability,
    modified_flows,
    noise_kernels,
    principal_flow,
    self_stabilization,
    sgd_moments,
    sgd_stability,
    sharpening,
    step_sizes,
    stochastic_flows,
    weight_norm,
)
from theory.claim import Claim, Kind, Refuted, Verdict

__all__ = ["Claim", "Kind", "Refuted", "Verdict", "claims"]

_SUBJECTS: tuple[Callable[[], list[Claim]], ...] = (
    linear_stability.claims,
    adaptive.claims,
    averages.claims,
    modified_flows.claims,
    principal_flow.claims,
    step_sizes.claims,
    stochastic_flows.claims,
    catapult.claims,
    weight_norm.claims,
    dual_kernels.claims,
    alignment.claims,
    sharpening.claims,
    sgd_moments.claims,
    noise_kernels.claims,
    sgd_stability.claims,
    central_flow.claims,
    central_adaptive.claims,
    edge_flows.claims,
    self_stabilization.claims,
)


def claims() -> list[Claim]:
    """All claims, built afresh from the code as it is now."""
    return [claim for subject in _SUBJECTS for claim in subject()]
