r"""The edge flow follows gradient descent through the onset of its oscillation, where other flows do not.

A valley whose walls steepen along it, :math:`L = y x^2/2 + c\,(y-m)^2/2`: along x = 0 the sharpness is
y, and the slope drives it beyond 2/lr. There gradient descent begins to swing across the valley, which
throws y back, and both ring until they rest on the exact 2-cycle :math:`y = 2/\eta, x^2 = 2c\,(m -
2/\eta)`.

Flows meet this onset in different ways. The edge flow with the logarithmic rate is exact where the loss
is quadratic and rings as gradient descent does (after Marion 2026, arXiv 2606.18080; the equations are
our own); with the linear rate, and as a rod with its covariance (after Regis & Chewi 2026, arXiv
2602.01480), the oscillation comes ever earlier. The central flow (Cohen et al. 2024, arXiv 2410.24206)
rests at the edge from the moment it gets there: it is the average of what comes later, without the onset.
All of these end on the 2-cycle. Gradient flow climbs to y = m, and so does the rod as published, along
one eigenvector of its covariance: it turns into the direction of the drift.

What no flow has is the part of a step that feeds the ringing: per step gradient descent's ringing shrinks
by :math:`\sqrt{1 - \eta c + 2\eta^2 c D}` with :math:`D = m - 2/\eta`, that of flows by
:math:`e^{-\eta c/2}`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

import eosim
from eosim.flows import CentralFlow, EdgeFlow, RodFlow
from eosim.problems.base import Problem
from figures import _flows, _style
from figures._headline import Row

# Our choice: the 2-cycle attracts where m - 2/lr < 1/(2 lr) = 25, and the ringing lasts some
# oscillations. The flows begin where gradient descent does, well below the edge at 100.
LR, FORCE, TOP, START = 0.02, 1.0, 104.0, (0.01, 90.0)
EDGE, SQUARE = 2 / LR, 2 * FORCE * (TOP - 2 / LR)
# Every fifth step is compared; of a longer run the ringing is over.
STEPS_QUICK, STEPS_FULL, EVERY = 1500, 3000, 5
RTOL = 1e-7
# Our choice: how near the flows come to the 2-cycle; their ringing has shrunk by e^-15 by then.
END = 1e-3
# The ringing per step, linearised at the 2-cycle: gradient descent's map in (ln x^2, y) has the determinant
# below, and the trace of the flows is -lr c.
DESCENT_RINGING = np.sqrt(1 - LR * FORCE + 2 * LR**2 * FORCE * (TOP - 2 / LR))
FLOW_RINGING = np.exp(-LR * FORCE / 2)
# Our choice: where it is linear (|y - 2/lr| below 0.1) and far above rounding.
RINGING = (700, 1400)
DRAWN = 480  # steps drawn of the onset

_GUIDE: Any = {"ls": (0, (4, 3)), "lw": 0.9}

_DOTTED = (0, (1.2, 1.6))
KINDS = {
    kind.name: kind
    for kind in (
        _flows.Kind(
            "edge",
            "edge flow",
            _style.PRINCIPAL_FLOW,
            "D",
            "-",
            lambda problem, lr: EdgeFlow(problem, lr),
        ),
        _flows.Kind(
            "edge_linear",
            "edge flow, linear rate",
            _style.ORANGE,
            "p",
            "-",
            lambda problem, lr: EdgeFlow(problem, lr, rate="linear"),
        ),
        _flows.Kind(
            "rod",
            "rod flow (covariance)",
            _style.PURPLE,
            "^",
            "-",
            lambda problem, lr: RodFlow(problem, eosim.GradientDescent(lr)),
        ),
        _flows.Kind(
            "rod_literal",
            "rod flow (one eigenvector)",
            _style.SKY,
            "v",
            _DOTTED,
            lambda problem, lr: RodFlow(problem, eosim.GradientDescent(lr), "literal"),
        ),
        _flows.Kind(
            "central",
            "central flow",
            _style.INK,
            "h",
            "-",
            lambda problem, lr: CentralFlow(problem, eosim.GradientDescent(lr)),
        ),
        _flows.KINDS["gradient"],
    )
}
# In the order of their errors.
ORDER = ("edge", "edge_linear", "rod", "central", "gradient")
AT_EDGE = ORDER[:-1]


def valley() -> Problem:
    """y x^2/2 + c (y - m)^2/2 in (x, y)."""
    return eosim.Polynomial(
        {(2, 1): 0.5, (0, 2): FORCE / 2, (0, 1): -FORCE * TOP, (0, 0): FORCE * TOP**2 / 2}
    )


def smooth(values: np.ndarray) -> np.ndarray:
    """Steps 0 to n - 1 of n + 1, without what has period 2."""
    return np.concatenate([values[:1], (values[:-2] + 2 * values[1:-1] + values[2:]) / 4])


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Gradient descent, as it is and without its part of period 2, and all flows."""
    n_steps, problem = STEPS_QUICK if quick else STEPS_FULL, valley()
    run = eosim.run(problem, eosim.GradientDescent(LR), START, n_steps + 1, record={})
    steps = np.arange(0, n_steps + 1, EVERY)
    arrays = {
        "step": steps,
        "descent_y": smooth(run["theta"][:, 1]),
        "descent_square": smooth(run["theta"][:, 0] ** 2),
    }
    for name, kind in KINDS.items():
        flow = kind.make(problem, LR)
        path = eosim.integrate(flow, START, LR * steps, record={}, rtol=RTOL)
        arrays[f"{name}_y"] = path["theta"][:, 1]
        arrays[f"{name}_square"] = (
            path["average.oscillation"] if name != "gradient" else np.zeros(len(path))
        )
    return arrays


def _error(arrays: dict[str, np.ndarray], name: str, what: str) -> float:
    """Root mean square over the run; NaN for a flow that ended early."""
    steps, values = arrays["step"], arrays[f"{name}_{what}"]
    if len(values) < len(steps):
        return float("nan")
    return float(np.sqrt(np.mean((values - arrays[f"descent_{what}"][steps]) ** 2)))


def _end(arrays: dict[str, np.ndarray], name: str, what: str) -> float:
    values = arrays[f"{name}_{what}"]
    return float(values[-1]) if len(values) == len(arrays["step"]) else float("nan")


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Where everyone ends, the order of the errors, and the first overshoot."""
    rows = []
    for name in AT_EDGE:
        label = KINDS[name].label
        rows += [
            Row(f"{label}: y at the end", EDGE, END, _end(arrays, name, "y")),
            Row(f"{label}: x^2 at the end", SQUARE, END, _end(arrays, name, "square")),
        ]
    for name in ("rod_literal", "gradient"):
        rows.append(
            Row(f"{KINDS[name].label}: y at the end", TOP, END, _end(arrays, name, "y")),
        )
    for what, symbol in (("y", "y"), ("square", "x^2")):
        errors = {name: _error(arrays, name, what) for name in ORDER}
        for closer, farther in pairwise(ORDER):
            quantity = f"error in {symbol}: {KINDS[farther].label} / {KINDS[closer].label}"
            rows.append(Row(quantity, 1.0, 0.0, errors[farther] / errors[closer], "at least"))
    peaks = {name: float(arrays[f"{name}_y"].max()) for name in AT_EDGE}
    top = float(arrays["descent_y"].max())
    rows.append(Row("largest y, edge flow - gradient descent", 0.0, 0.02, peaks["edge"] - top))
    for larger, smaller in pairwise(("edge", "edge_linear", "rod", "central")):
        quantity = f"largest y: {KINDS[larger].label} - {KINDS[smaller].label}"
        rows.append(Row(quantity, 0.0, 0.0, peaks[larger] - peaks[smaller], "at least"))
    rows.append(Row("largest y, central flow", EDGE, 1e-6, peaks["central"]))
    for label, name, expected in (
        ("gradient descent", "descent", DESCENT_RINGING),
        ("edge flow", "edge", FLOW_RINGING),
    ):
        measured = _ringing(arrays, name)
        rows.append(Row(f"ringing per step: {label}", float(expected), 3e-4, measured))
    return rows


def _ringing(arrays: dict[str, np.ndarray], name: str) -> float:
    """Factor per step of the ringing of y, from its maxima (those of |y - 2/lr|)."""
    gap, scale = np.abs(arrays[f"{name}_y"] - EDGE), 1 if name == "descent" else EVERY
    inner = gap[1:-1]
    peaks = 1 + np.flatnonzero((inner > gap[:-2]) & (inner >= gap[2:]))
    at = peaks[(scale * peaks >= RINGING[0]) & (scale * peaks <= RINGING[1])]
    return float(np.exp(np.polyfit(scale * at, np.log(gap[at]), 1)[0]))


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Sharpness and oscillation through the onset, their errors, and the way to the end."""
    figure = _style.canvas(
        11.0,
        7.6,
        "The edge flow follows gradient descent through the onset of its oscillation",
        f"$L = y\\,x^2/2 + (y-{TOP:g})^2/2$, $\\eta = {LR:g}$, from (0.01, 90); own settings. "
        "Gradient descent: the part of period 2 is averaged out of $y$ and $x^2$. "
        "Errors: root mean square over the run.",
    )
    _legend(figure)
    grid = figure.add_gridspec(
        2,
        2,
        width_ratios=(1.6, 1),
        hspace=0.5,
        wspace=0.3,
        **_style.margins(figure, left=0.72, right=0.25, top=1.42, bottom=0.92),
    )
    _draw_onset(figure.add_subplot(grid[0, 0]), arrays, "y")
    _draw_onset(figure.add_subplot(grid[1, 0]), arrays, "square")
    _draw_errors(figure.add_subplot(grid[0, 1]), arrays)
    _draw_end(figure.add_subplot(grid[1, 1]), arrays)
    return figure


def _legend(figure: Figure) -> None:
    look = _style.points(_style.GRADIENT_DESCENT, size=4)
    handles = [Line2D([], [], label="gradient descent", **look)]
    for kind in KINDS.values():
        handles.append(Line2D([], [], label=kind.label, color=kind.color, ls=kind.line))
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="upper left",
        ncols=4,
        columnspacing=2.2,
        bbox_to_anchor=(0.1 / width, 1 - 0.4 / height),
    )


def _draw_onset(axes: Axes, arrays: dict[str, np.ndarray], what: str) -> None:
    steps = arrays["step"]
    shown = steps <= DRAWN
    for name in reversed(KINDS):
        kind, values = KINDS[name], arrays[f"{name}_{what}"]
        width = 1.9 if name == "edge" else 1.3
        axes.plot(steps[shown], values[shown], color=kind.color, ls=kind.line, lw=width)
    at = np.arange(0, DRAWN + 1, 4)
    look = _style.points(_style.GRADIENT_DESCENT, size=2.8)
    axes.plot(at, arrays[f"descent_{what}"][at], **look, zorder=5)
    axes.set_xlim(0, DRAWN)
    axes.set_xlabel("$k$   iterate")
    if what == "y":
        axes.set_title("Sharpness", pad=_style.SUBTITLE_PAD)
        _style.subtitle(
            axes, "it overshoots the edge, is thrown back by the oscillation, and rings"
        )
        _style.bound(axes, EDGE, 5, r"edge $2/\eta$")
        axes.set_ylim(89, 105.5)
        axes.set_ylabel("$y$   sharpness along the valley")
        axes.yaxis.set_major_locator(FixedLocator([90, 95, 100, 104]))
    else:
        axes.set_title("Oscillation", pad=_style.SUBTITLE_PAD)
        _style.subtitle(
            axes, "mean square across the valley; the central flow has its end value at once"
        )
        _style.bound(axes, SQUARE, 5, r"2-cycle: $2c\,(m-2/\eta)$")
        axes.set_ylim(-1.2, 39)
        axes.set_ylabel("$x^2$, and what flows predict of it")


def _draw_errors(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("Error over the run", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "filled: in $y$, open: in $x^2$")
    places = range(len(ORDER))
    for place, name in zip(places, ORDER, strict=True):
        kind = KINDS[name]
        values = [_error(arrays, name, what) for what in ("y", "square")]
        axes.plot(values, [place, place], color=_style.FAINT, lw=2.5, zorder=1)
        for value, filled in zip(values, (True, False), strict=True):
            look = _style.points(kind.color, marker=kind.marker, filled=filled, size=6.5)
            axes.plot([value], [place], **look)
    labels = [KINDS[name].label.split(" (")[0].replace(", ", ",\n") for name in ORDER]
    axes.set_yticks(list(places), labels)
    axes.set_ylim(len(ORDER) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlim(0.05, 20)
    axes.xaxis.set_major_locator(FixedLocator([0.1, 1, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("root mean square error")


def _draw_end(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("On the way to the 2-cycle", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "dashed: closed forms; the ringing of flows shrinks faster")
    steps, start = arrays["step"], 620
    for name in reversed(KINDS):
        kind, gap = KINDS[name], _envelope(arrays[f"{name}_y"])
        axes.plot(steps[: len(gap)], np.maximum(gap, 1e-9), color=kind.color, ls=kind.line, lw=1.3)
    gap = _envelope(arrays["descent_y"])
    at = np.arange(0, STEPS_QUICK + 1, 20)
    axes.plot(at, gap[at], **_style.points(_style.GRADIENT_DESCENT, size=2.8), zorder=5)
    along = np.array([start, STEPS_QUICK])
    for factor, level, shift in ((DESCENT_RINGING, gap[start], 3.0), (FLOW_RINGING, 0.05, 0.3)):
        axes.plot(along, shift * level * factor ** (along - start), color=_style.QUIET, **_GUIDE)
    axes.text(1130, 0.02, "gradient\ndescent", fontsize=7.5, color=_style.GRADIENT_DESCENT)
    axes.text(
        880, 2.5e-4, "edge and\nrod flow", fontsize=7.5, color=_style.PRINCIPAL_FLOW, ha="right"
    )
    axes.text(95, 2.5e-4, "central flow", fontsize=7.5, color=_style.INK)
    axes.text(
        STEPS_QUICK - 20,
        6.0,
        "gradient flow, rod of one eigenvector",
        fontsize=7.5,
        color=_style.GRADIENT_FLOW,
        ha="right",
    )
    axes.set_yscale("log")
    axes.set_ylim(1e-5, 30)
    axes.set_xlim(0, STEPS_QUICK)
    axes.yaxis.set_major_locator(FixedLocator([1e-4, 1e-2, 1]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(r"$|y - 2/\eta|$, largest from here on")
    axes.set_xlabel("$k$   iterate")


def _envelope(y: np.ndarray) -> np.ndarray:
    """The largest |y - 2/lr| from each step on."""
    return np.maximum.accumulate(np.abs(y - EDGE)[::-1])[::-1]
