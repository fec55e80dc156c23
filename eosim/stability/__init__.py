"""Stability thresholds: of update rules on a quadratic, and of SGD at a minimum."""

from eosim.stability.alignment import (
    AlignmentBand,
    alignment_band,
    kernel_alignment,
    population_alignment,
    streaming_critical_lr,
)
from eosim.stability.bounds import (
    Bound,
    OneStepRates,
    loss_proportional_critical_lr,
    lr_bounds,
    one_step_matrix,
    one_step_rates,
)
from eosim.stability.estimators import LanczosKernelNorm, SpectralKernelNorm, TraceKernelNorm
from eosim.stability.linear import critical_sharpness
from eosim.stability.mean_square import (
    critical_batch_size,
    critical_lr,
    generalised_sharpness,
    growth_rate,
    noise_floor,
    noise_kernel_norm,
)
from eosim.stability.reporting import StabilityReport, report
from eosim.stability.tangent_kernel import TangentKernel, tangent_kernel

__all__ = [
    "AlignmentBand",
    "Bound",
    "LanczosKernelNorm",
    "OneStepRates",
    "SpectralKernelNorm",
    "StabilityReport",
    "TangentKernel",
    "TraceKernelNorm",
    "alignment_band",
    "critical_batch_size",
    "critical_lr",
    "critical_sharpness",
    "generalised_sharpness",
    "growth_rate",
    "kernel_alignment",
    "loss_proportional_critical_lr",
    "lr_bounds",
    "noise_floor",
    "noise_kernel_norm",
    "one_step_matrix",
    "one_step_rates",
    "population_alignment",
    "report",
    "streaming_critical_lr",
    "tangent_kernel",
]
