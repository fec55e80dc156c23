r"""A small tanh network on handwritten digits: the task that the figures of adaptive rules share.

The first 500 of scikit-learn's digits in file order, centred by feature and divided by the one standard
deviation of their pixels; one-hot targets; 64-32-10 with tanh and square loss, 2410 parameters. With
full batches every rule that is drawn reaches its edge of stability within a few thousand steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import eosim
from figures._headline import MissingPackage

# Our choice: few enough samples for thousands of full-batch steps a second.
N_SAMPLES, HIDDEN = 500, (32,)
# Our choice: beta2 = 0.99 forgets within some hundred steps (with 0.999 the edge is met thousands of steps
# later); eps far below the roots of nu that occur: a large eps makes the rule momentum alone.
BETA2, EPS = 0.99, 1e-7
EVERY = 50  # steps between measurements, our choice


def load_problem(criterion: str = "square") -> eosim.Perceptron:
    """The network on its digits; ``problem.initial(seed)`` is a start."""
    try:
        digits = eosim.data.digits(N_SAMPLES, centre=True, scale="block")
    except ImportError:
        raise MissingPackage(
            "it needs scikit-learn for its data, which is not installed; "
            'run: pip install -e ".[figures]"'
        ) from None
    return eosim.Perceptron(digits.inputs, digits.targets, HIDDEN, criterion=criterion)


def adam(lr: float) -> eosim.Adam:
    """Adam with the decays above; its edge is 38 / lr."""
    return eosim.Adam(lr, beta2=BETA2, eps=EPS)


def follow(
    problem: eosim.Perceptron,
    rule: Any,
    n_steps: int,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    state: eosim.RunState | None = None,
    every: int = EVERY,
    record: Mapping[str, Any] | None = None,
) -> eosim.Trajectory:
    """A run that records "loss", "edge.ratio" (1 at the edge), "edge.value" and "edge.sharpness".

    The seed is that of the initial weights and of the batches. Measurements of ``record`` are taken too.
    """
    measured = {
        "loss": eosim.measure.loss,
        "edge": eosim.measure.PreconditionedSharpness(),
        **(record or {}),
    }
    return eosim.run(
        problem,
        rule,
        problem.initial(seed) if state is None else None,
        n_steps,
        batch_size=batch_size,
        seed=None if batch_size is None or state is not None else seed,
        state=state,
        record=measured,
        every=every,
        keep_theta=False,
    )


def late_median(step: np.ndarray, values: np.ndarray) -> float:
    """The median over the second half of a run."""
    return float(np.median(values[step >= step[-1] / 2]))
