"""Stability thresholds of update rules."""

from eosim.stability.linear import critical_sharpness

__all__ = ["critical_sharpness"]
