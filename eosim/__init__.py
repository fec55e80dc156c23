"""eosim: simulate, integrate and prove what happens at the edge of stability.

Names are loaded on first use: importing eosim costs NumPy and little more.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eosim._version import __version__

if TYPE_CHECKING:
    from eosim import (
        catapult,
        data,
        flows,
        measure,
        moments,
        optimizers,
        problems,
        sampling,
        sharpening,
        stability,
        two_parameter,
    )
    from eosim.adapters import from_jax, from_torch
    from eosim.comparison import Comparison, compare
    from eosim.discrete import run
    from eosim.ensemble import Ensemble, run_ensemble
    from eosim.flows import (
        ForwardDifferenceFlow,
        GradientFlow,
        HeavyBallPrincipalFlow,
        ModifiedFlow,
        OrnsteinUhlenbeck,
        PrincipalFlow,
        PrincipalSeries,
        ShuffledEpochLoss,
        closed_form,
        integrate,
    )
    from eosim.moments import predict
    from eosim.optimizers import (
        DAL,
        Adafactor,
        AdaGrad,
        Adam,
        AdamW,
        AMSGrad,
        CascadedEMA,
        CoupledL2,
        EMAMomentum,
        GradientDescent,
        HeavyBall,
        NAdam,
        Nesterov,
        Padam,
        ParallelEMA,
        QuasiHyperbolic,
        RMSProp,
        freeze,
    )
    from eosim.problems import (
        Cosine,
        DeepHomogeneousNet,
        DiagonalNet,
        LinearNet,
        LinearRegression,
        Perceptron,
        Polynomial,
        Quadratic,
        QuadraticNet,
        QuadraticRegression,
        RandomFeatures,
        Rosenbrock,
        TwoLayerNet,
        from_functions,
        uv_net,
    )
    from eosim.trajectory import RunState, Status, Trajectory

_HOME = {
    "Adafactor": "eosim.optimizers",
    "AdaGrad": "eosim.optimizers",
    "Adam": "eosim.optimizers",
    "AdamW": "eosim.optimizers",
    "AMSGrad": "eosim.optimizers",
    "CascadedEMA": "eosim.optimizers",
    "closed_form": "eosim.flows",
    "compare": "eosim.comparison",
    "Comparison": "eosim.comparison",
    "Cosine": "eosim.problems",
    "CoupledL2": "eosim.optimizers",
    "DAL": "eosim.optimizers",
    "DeepHomogeneousNet": "eosim.problems",
    "DiagonalNet": "eosim.problems",
    "EMAMomentum": "eosim.optimizers",
    "Ensemble": "eosim.ensemble",
    "ForwardDifferenceFlow": "eosim.flows",
    "freeze": "eosim.optimizers",
    "from_functions": "eosim.problems",
    "from_jax": "eosim.adapters",
    "from_torch": "eosim.adapters",
    "GradientDescent": "eosim.optimizers",
    "GradientFlow": "eosim.flows",
    "HeavyBall": "eosim.optimizers",
    "HeavyBallPrincipalFlow": "eosim.flows",
    "integrate": "eosim.flows",
    "LinearNet": "eosim.problems",
    "LinearRegression": "eosim.problems",
    "ModifiedFlow": "eosim.flows",
    "NAdam": "eosim.optimizers",
    "Nesterov": "eosim.optimizers",
    "OrnsteinUhlenbeck": "eosim.flows",
    "Padam": "eosim.optimizers",
    "ParallelEMA": "eosim.optimizers",
    "Perceptron": "eosim.problems",
    "Polynomial": "eosim.problems",
    "predict": "eosim.moments",
    "PrincipalFlow": "eosim.flows",
    "PrincipalSeries": "eosim.flows",
    "Quadratic": "eosim.problems",
    "QuadraticNet": "eosim.problems",
    "QuadraticRegression": "eosim.problems",
    "QuasiHyperbolic": "eosim.optimizers",
    "RandomFeatures": "eosim.problems",
    "RMSProp": "eosim.optimizers",
    "Rosenbrock": "eosim.problems",
    "run": "eosim.discrete",
    "run_ensemble": "eosim.ensemble",
    "RunState": "eosim.trajectory",
    "ShuffledEpochLoss": "eosim.flows",
    "Status": "eosim.trajectory",
    "Trajectory": "eosim.trajectory",
    "TwoLayerNet": "eosim.problems",
    "uv_net": "eosim.problems",
}
_MODULES = (
    "catapult",
    "data",
    "flows",
    "measure",
    "moments",
    "optimizers",
    "problems",
    "sampling",
    "sharpening",
    "stability",
    "two_parameter",
)

__all__ = [
    "DAL",
    "AMSGrad",
    "AdaGrad",
    "Adafactor",
    "Adam",
    "AdamW",
    "CascadedEMA",
    "Comparison",
    "Cosine",
    "CoupledL2",
    "DeepHomogeneousNet",
    "DiagonalNet",
    "EMAMomentum",
    "Ensemble",
    "ForwardDifferenceFlow",
    "GradientDescent",
    "GradientFlow",
    "HeavyBall",
    "HeavyBallPrincipalFlow",
    "LinearNet",
    "LinearRegression",
    "ModifiedFlow",
    "NAdam",
    "Nesterov",
    "OrnsteinUhlenbeck",
    "Padam",
    "ParallelEMA",
    "Perceptron",
    "Polynomial",
    "PrincipalFlow",
    "PrincipalSeries",
    "Quadratic",
    "QuadraticNet",
    "QuadraticRegression",
    "QuasiHyperbolic",
    "RMSProp",
    "RandomFeatures",
    "Rosenbrock",
    "RunState",
    "ShuffledEpochLoss",
    "Status",
    "Trajectory",
    "TwoLayerNet",
    "__version__",
    "catapult",
    "closed_form",
    "compare",
    "data",
    "flows",
    "freeze",
    "from_functions",
    "from_jax",
    "from_torch",
    "integrate",
    "measure",
    "moments",
    "optimizers",
    "predict",
    "problems",
    "run",
    "run_ensemble",
    "sampling",
    "sharpening",
    "stability",
    "two_parameter",
    "uv_net",
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
