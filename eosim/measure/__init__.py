"""Measurements: functions of (problem, theta), usable by themselves or as ``record=`` of a run.

Largest sizes are chosen by cost: up to ``DENSE_DIM`` parameters the Hessian is formed and the
answer is exact; beyond, Hessian-vector products are used and the answer carries its error.
"""

from eosim.measure.alignment import Alignment, loss_alignment
from eosim.measure.curvature import (
    DENSE_DIM,
    LANCZOS_TOLERANCE,
    N_PROBES,
    Eigenvalue,
    Estimate,
    SpectrumEnds,
    gauss_newton_spectrum,
    gradient_norm,
    hessian_frobenius,
    hessian_trace,
    loss,
    ntk_spectrum,
    sharpness,
    spectrum_ends,
)
from eosim.measure.tracking import (
    BatchSharpness,
    PreconditionedEigenvalue,
    PreconditionedSharpness,
)

__all__ = [
    "DENSE_DIM",
    "LANCZOS_TOLERANCE",
    "N_PROBES",
    "Alignment",
    "BatchSharpness",
    "Eigenvalue",
    "Estimate",
    "PreconditionedEigenvalue",
    "PreconditionedSharpness",
    "SpectrumEnds",
    "gauss_newton_spectrum",
    "gradient_norm",
    "hessian_frobenius",
    "hessian_trace",
    "loss",
    "loss_alignment",
    "ntk_spectrum",
    "sharpness",
    "spectrum_ends",
]
