"""Proofs: every threshold and identity, derived from the code that ships and checked by several routes.

One file derives one subject and ends in its claims; ``python -m theory`` runs them all.
"""

from collections.abc import Callable

from theory import flows, linear_stability
from theory.claim import Claim, Kind, Refuted, Verdict

__all__ = ["Claim", "Kind", "Refuted", "Verdict", "claims"]

_SUBJECTS: tuple[Callable[[], list[Claim]], ...] = (linear_stability.claims, flows.claims)


def claims() -> list[Claim]:
    """All claims, built afresh from the code as it is now."""
    return [claim for subject in _SUBJECTS for claim in subject()]
