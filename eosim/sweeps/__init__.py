"""Parameter sweeps: a content-keyed store, resuming, workers that may die, any stdlib Executor."""

from eosim.sweeps.driver import sweep

__all__ = ["sweep"]
