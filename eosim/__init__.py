"""eosim: simulate, integrate and prove what happens at the edge of stability.

Names are loaded on first use: importing eosim costs NumPy and little more.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eosim._version import __version__

if TYPE_CHECKING:
    from eosim import flows, measure, optimizers, problems, sampling, stability
    from eosim.discrete import run
    from eosim.flows import GradientFlow, PrincipalFlow, closed_form, integrate
    from eosim.optimizers import (
        EMAMomentum,
        GradientDescent,
        HeavyBall,
        Nesterov,
        QuasiHyperbolic,
    )
    from eosim.problems import (
        Cosine,
        LinearRegression,
        Polynomial,
        Quadratic,
        Rosenbrock,
        from_functions,
    )
    from eosim.trajectory import RunState, Status, Trajectory

_HOME = {
    "Cosine": "eosim.problems",
    "EMAMomentum": "eosim.optimizers",
    "GradientDescent": "eosim.optimizers",
    "GradientFlow": "eosim.flows",
    "HeavyBall": "eosim.optimizers",
    "LinearRegression": "eosim.problems",
    "Nesterov": "eosim.optimizers",
    "Polynomial": "eosim.problems",
    "PrincipalFlow": "eosim.flows",
    "Quadratic": "eosim.problems",
    "QuasiHyperbolic": "eosim.optimizers",
    "Rosenbrock": "eosim.problems",
    "RunState": "eosim.trajectory",
    "Status": "eosim.trajectory",
    "Trajectory": "eosim.trajectory",
    "closed_form": "eosim.flows",
    "from_functions": "eosim.problems",
    "integrate": "eosim.flows",
    "run": "eosim.discrete",
}
_MODULES = ("flows", "measure", "optimizers", "problems", "sampling", "stability")

__all__ = [
    "Cosine",
    "EMAMomentum",
    "GradientDescent",
    "GradientFlow",
    "HeavyBall",
    "LinearRegression",
    "Nesterov",
    "Polynomial",
    "PrincipalFlow",
    "Quadratic",
    "QuasiHyperbolic",
    "Rosenbrock",
    "RunState",
    "Status",
    "Trajectory",
    "__version__",
    "closed_form",
    "flows",
    "from_functions",
    "integrate",
    "measure",
    "optimizers",
    "problems",
    "run",
    "sampling",
    "stability",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = import_module(f"eosim.{name}")
    else:
        raise AttributeError(f"module 'eosim' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
