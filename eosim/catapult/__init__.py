r"""Catapults of quadratic nets in reduced variables: maps, exact reductions, phases, closed forms.

For one datum and a model with :math:`\psi^2 = s^2 I` (the two-layer linear net among them) gradient
descent is a two-dimensional map at any width. With :math:`a = \eta\lambda`, :math:`c = \eta\sqrt\kappa`,
:math:`\epsilon = c\,e`, Y = c y and :math:`w = \epsilon^2` (loss :math:`w / 2\eta^2\kappa`):

.. math:: \epsilon' = \epsilon\,(1 - a + \epsilon(\epsilon + Y)), \qquad
          a' = a + \epsilon\,(\epsilon a - 4(\epsilon + Y))

that is gradient descent with step 1 on the scalar problem :math:`\frac12 (uv - Y)^2`, with
:math:`a = u^2 + v^2`. Below a = 2 it is lazy, up to 4 it is catapulted (the loss grows first, the NTK falls
until it can be trained), beyond it diverges (Meltzer & Liu 2023, arXiv 2301.07737; Lewkowycz et al.
2020, arXiv 2003.02218; the normalised forms are derived here).

The maps are plain arithmetic: they run on floats, on arrays and on symbols, and are compiled as they
stand for the phase diagrams. `simulate` runs the exact reductions of wider models, at O(1) to O(n) a step.
"""

from eosim._maps import (
    balanced_map,
    bias_map,
    factor_map,
    first_integral,
    margin,
    moment_map,
    output_map,
    residual_map,
)
from eosim.catapult.boundaries import Boundary, phase_boundary
from eosim.catapult.closed_forms import (
    Peak,
    boundary_orbit,
    critical_lr,
    final_ntk,
    peak,
    period_two,
    pulse,
)
from eosim.catapult.phases import (
    Attractor,
    Phase,
    PhaseDiagram,
    attractor,
    homogeneous_phases,
    infinite_relu_phases,
    iterate,
    linear_net_phases,
    phase_diagram,
)
from eosim.catapult.reductions import (
    BiasNet,
    EigenbasisNet,
    InfiniteReLU,
    LinearNetMoments,
    NeuronNet,
    simulate,
)

__all__ = [
    "Attractor",
    "BiasNet",
    "Boundary",
    "EigenbasisNet",
    "InfiniteReLU",
    "LinearNetMoments",
    "NeuronNet",
    "Peak",
    "Phase",
    "PhaseDiagram",
    "attractor",
    "balanced_map",
    "bias_map",
    "boundary_orbit",
    "critical_lr",
    "factor_map",
    "final_ntk",
    "first_integral",
    "homogeneous_phases",
    "infinite_relu_phases",
    "iterate",
    "linear_net_phases",
    "margin",
    "moment_map",
    "output_map",
    "peak",
    "period_two",
    "phase_boundary",
    "phase_diagram",
    "pulse",
    "residual_map",
    "simulate",
]
