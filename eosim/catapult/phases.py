"""Phase diagrams of the normalised map, and the long run of its balanced line, in compiled code."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from eosim._checks import Array, float_array, integer


class Phase(enum.IntEnum):
    """What became of a run."""

    MONOTONE = 0
    CATAPULT = 1
    BOUNDED = 2
    DIVERGED = 3


class PhaseDiagram(NamedTuple):
    """One array per quantity, in the shape of the grid.

    ``phase`` holds `Phase` codes. ``steps``: until the verdict. ``peak_ratio``: largest over first
    loss; ``peak_step``: where. ``peak_w``: the largest w. ``final_a``: last a (also the weight norm
    in units of its start times a_0). ``imbalance``: |u^2 - v^2| at the end. ``final_w``: last w.
    """

    phase: Array
    steps: Array
    peak_ratio: Array
    peak_step: Array
    peak_w: Array
    final_a: Array
    imbalance: Array
    final_w: Array


def phase_diagram(a: Any, w: Any, label: Any = 0.0, *, max_steps: int = 5000) -> PhaseDiagram:
    r"""Classify the normalised map over a grid of starts, in compiled code.

    A cell is DIVERGED when w exceeds 1e12 (it then grows super-exponentially; never judged by NaN),
    converged when w < 1e-26 **and** a < 2 (an orbit may pass near w = 0 at a > 2), CATAPULT if it
    converged after some loss grew by more than 1e-9 relative, else MONOTONE; BOUNDED if neither
    happened within ``max_steps``.

    Parameters
    ----------
    a, w, label : arrays that broadcast together
        Starts :math:`a_0 = \eta\lambda_0`, :math:`w_0 = \epsilon_0^2` (with :math:`\epsilon_0 > 0`) and Y.
    max_steps : int

    Raises
    ------
    TypeError, ValueError
        If a start is impossible: :math:`a \ge 2|\epsilon + Y|` always holds.
    """
    from eosim._kernels.catapult import classify

    arrays = np.broadcast_arrays(
        *(float_array(name, x) for name, x in (("a", a), ("w", w), ("label", label)))
    )
    grid = arrays[0].shape
    flat_a, flat_w, flat_label = (np.ascontiguousarray(x).ravel() for x in arrays)
    if (flat_w < 0).any():
        raise ValueError(f"w must not be negative, got {flat_w.min()!s}")
    output = np.sqrt(flat_w) + flat_label
    short = flat_a - 2 * np.abs(output)
    if (short < -1e-12 * np.abs(flat_a)).any():
        worst = int(short.argmin())
        raise ValueError(
            "a must be at least 2 |epsilon + Y| (a = u^2 + v^2, epsilon + Y = u v); got a = "
            f"{flat_a[worst]!s} with epsilon + Y = {output[worst]!s}"
        )
    total, difference = np.sqrt(flat_a + 2 * output), np.sqrt(np.maximum(flat_a - 2 * output, 0))
    u, v = (total + difference) / 2, (total - difference) / 2
    max_steps = integer("max_steps", max_steps, minimum=1)
    columns = classify(u, v, flat_label, max_steps)  # (n_cells, 8)
    phases, steps, ratio, when, top, final, imbalance, last = (
        column.reshape(grid) for column in columns.T
    )
    return PhaseDiagram(
        phases.astype(np.int64), steps.astype(np.int64), ratio, when.astype(np.int64), top, final,
        imbalance, last,
    )  # fmt: skip


@dataclass(frozen=True)
class Attractor:
    """Long-run behaviour of the balanced map: period (0 if none up to 64) and Lyapunov exponent."""

    period: Array
    lyapunov: Array


def attractor(label: Any, *, transient: int = 20_000, n_steps: int = 20_000) -> Attractor:
    r"""Period and Lyapunov exponent of the balanced map s' = s(1 + Y - s^2) at labels Y in (0, 2].

    Started at s = 0.5, our choice; the first ``transient`` steps are dropped. A period is detected
    when the orbit returns within 1e-9, relatively.

    Raises
    ------
    TypeError, ValueError
        If a label is outside (0, 2]: the orbit is not bounded there.
    """
    from eosim._kernels.catapult import long_run

    labels = float_array("label", label)
    if ((labels <= 0) | (labels > 2)).any():
        raise ValueError(f"label must lie in (0, 2], got {labels.min()!s} to {labels.max()!s}")
    transient = integer("transient", transient, minimum=0)
    n_steps = integer("n_steps", n_steps, minimum=100)
    period, lyapunov = long_run(np.ascontiguousarray(labels).ravel(), transient, n_steps)
    return Attractor(period.reshape(labels.shape), lyapunov.reshape(labels.shape))
