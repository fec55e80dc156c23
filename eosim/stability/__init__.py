"""Stability thresholds: of update rules on a quadratic, and of SGD at a minimum."""

from eosim.stability.linear import critical_sharpness
from eosim.stability.mean_square import (
    critical_batch_size,
    critical_lr,
    generalised_sharpness,
    growth_rate,
    noise_floor,
    noise_kernel_norm,
)
from eosim.stability.tangent_kernel import TangentKernel, tangent_kernel

__all__ = [
    "TangentKernel",
    "critical_batch_size",
    "critical_lr",
    "critical_sharpness",
    "generalised_sharpness",
    "growth_rate",
    "noise_floor",
    "noise_kernel_norm",
    "tangent_kernel",
]
