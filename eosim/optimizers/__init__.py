r"""Update rules: frozen dataclasses with a pure ``step``, each naming the published variant it is.

A rule needs two methods, and a user's own class with these two is as good as those below:

- ``init(theta)`` returns its state, a tuple of arrays shaped like theta (and step counters);
- ``step(theta, state, gradient)`` returns the new (theta, state) and changes nothing in place.

``step`` uses ``+ - * / **`` only, so the same function runs on float arrays and on sympy symbols;
hyperparameters may be symbols too. (Not so where the rule is about many entries or a maximum:
`Adafactor`, `AMSGrad`, `DAL`; the ``linear()`` of the first two does.) :math:`\lambda` is a curvature (a
Hessian eigenvalue), :math:`\eta` the learning rate ``lr`` and :math:`\beta` the ``momentum``. Rules that
are linear are in `momentum`, those with a preconditioner in `adaptive` and `factored`, rules made of
rules in `composed`, rates that follow the curvature in `drift`.
"""

from eosim.optimizers.adaptive import (
    AdaGrad,
    Adam,
    AdamW,
    AdaptiveRule,
    AMSGrad,
    NAdam,
    Padam,
    RMSProp,
    ScalarRMSProp,
)
from eosim.optimizers.base import LocalRule, Rule, check_rule, needs_local
from eosim.optimizers.composed import CoupledL2, Frozen, freeze
from eosim.optimizers.drift import DAL
from eosim.optimizers.factored import Adafactor
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
    "ScalarRMSProp",
    "check_rule",
    "freeze",
    "needs_local",
]
