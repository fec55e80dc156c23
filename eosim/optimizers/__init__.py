r"""Update rules: frozen dataclasses with a pure ``step``, each naming the published variant it is.

A rule needs two methods, and a user's own class with these two is as good as those below:

- ``init(theta)`` returns its state, a tuple of arrays shaped like theta (and step counters);
- ``step(theta, state, gradient)`` returns the new (theta, state) and changes nothing in place.

``step`` uses ``+ - * / **`` only, so the same function runs on float arrays and on sympy symbols;
hyperparameters may be symbols too. :math:`\lambda` is a curvature (a Hessian eigenvalue),
:math:`\eta` the learning rate ``lr`` and :math:`\beta` the ``momentum``. Rules that are linear are in
`momentum`, those with a preconditioner in `adaptive`, rates that follow the curvature in `drift`.
"""

from eosim.optimizers.adaptive import (
    Adafactor,
    AdaGrad,
    Adam,
    AdamW,
    AdaptiveRule,
    AMSGrad,
    CoupledL2,
    Frozen,
    NAdam,
    Padam,
    RMSProp,
    freeze,
)
from eosim.optimizers.base import LocalRule, Rule, check_rule, needs_local
from eosim.optimizers.drift import DAL
from eosim.optimizers.momentum import (
    CascadedEMA,
    DecoupledDecay,
    EMAMomentum,
    GradientDescent,
    HeavyBall,
    Nesterov,
    ParallelEMA,
    QuasiHyperbolic,
)

__all__ = [
    "DAL",
    "AMSGrad",
    "AdaGrad",
    "Adafactor",
    "Adam",
    "AdamW",
    "AdaptiveRule",
    "CascadedEMA",
    "CoupledL2",
    "DecoupledDecay",
    "EMAMomentum",
    "Frozen",
    "GradientDescent",
    "HeavyBall",
    "LocalRule",
    "NAdam",
    "Nesterov",
    "Padam",
    "ParallelEMA",
    "QuasiHyperbolic",
    "RMSProp",
    "Rule",
    "check_rule",
    "freeze",
    "needs_local",
]
