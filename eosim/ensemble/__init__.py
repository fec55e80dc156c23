"""Many runs of SGD at once: axes (rule, batch size, replica), compiled where a kernel exists."""

from eosim.ensemble.driver import run_ensemble
from eosim.ensemble.result import Ensemble

__all__ = ["Ensemble", "run_ensemble"]
