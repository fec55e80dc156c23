r"""Closed-form lines separate the phases of a catapult; labels beyond 1 lead to cycles and chaos.

With one datum a two-layer linear net of any width is the map of :math:`\epsilon` (residual, in units
that make the step 1) and :math:`a = \eta\lambda` (rate times NTK), with the label Y and
:math:`w = \epsilon^2` as its loss:

.. math:: \epsilon' = \epsilon\,(1 - a + \epsilon(\epsilon + Y)), \qquad
          a' = a + \epsilon\,(\epsilon a - 4(\epsilon + Y))

The first step lowers the loss if and only if :math:`a_0 < 2 + \epsilon_0(\epsilon_0 + Y)` (a later one
may raise it even so: the wedges of blue on the pale side of the line, at large losses), and
:math:`F = a - 4 - Y\epsilon` keeps its sign, since :math:`F' = F(1 + \epsilon^2 + Y\epsilon)`: for
:math:`|Y| < 2` a run diverges if and only if F > 0. It converges only while :math:`|Y| < 1`; for
larger labels it ends on the balanced line :math:`s' = s(1 + Y - s^2)` with output :math:`s^2`, which
cycles with period 2 up to :math:`\sqrt5 - 1`, doubles it, and is chaotic from about 1.303 on.

The phases: Lewkowycz et al. 2020, arXiv 2003.02218, and Meltzer & Liu 2023, arXiv 2301.07737; the
normalised map and its lines are derived in `eosim.catapult`.
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator

from eosim import catapult
from eosim.catapult import Phase
from figures import _style
from figures._headline import Row

# Our choice: every phase with room around it; w_0 from far below to the largest that fits at a = 5.
A_LIMITS, LOG_W_LIMITS = (0.5, 5.0), (-8.0, 0.8)
A_LABEL_LIMITS, LABEL_LIMITS = (0.0, 6.0), (-2.25, 2.25)
# Our choice: large enough to tilt the line F = 0 visibly.
EPS = 0.5
# Our choice: cells to a side. Even, so that no centre of a cell lies on a = 4, |Y| = 1 or |Y| = 2.
CELLS_QUICK, CELLS_FULL = 512, 1024
# At a_0 = 2 convergence is algebraic, and where |Y| is just below 1 slow too: these cells stay
# undecided, and are counted.
STEPS_QUICK, STEPS_FULL = 5000, 20_000
UNDECIDED = 0.01
# Above this loss, not at the line, a later step than the first may raise the loss.
W_FIRST_STEP = 1.0
# Our choice: starts on both sides of the edge a = 4, over seven orders of magnitude of w_0. Not 1:
# from there one step leads to the balanced line (u^2 - v^2 is multiplied by 1 - w), where
# s' = s (1 - s^2) takes about 1 / (2 s^2) steps. Starts that pass near this are the thin arcs.
EDGE_SIDES = (3.99, 4.01)
EDGE_W = 10.0 ** np.arange(-8, 0)
# A run that starts 0.01 below the edge leaves its neighbourhood in a random walk: long runs only.
EDGE_STEPS = 200_000
BALANCED_LIMITS = (0.8, 2.0)
LABELS_QUICK, LABELS_FULL = 700, 1400
ORBIT_QUICK, ORBIT_FULL = 1500, 6000
OUTPUT_LIMITS, OUTPUT_BINS = (0.0, 4.0), 520
TRANSIENT = 2000
# One label within each window of the period-doubling cascade.
PERIOD_LABELS = np.array([0.9, 1.1, 1.24, 1.29, 1.30, 1.302])
PERIODS = (1, 2, 4, 8, 16, 32)
CASCADE_END = math.sqrt(5) - 1
# 20,000 steps of a chaotic orbit: the mean of the logarithm has converged to about 0.005.
LYAPUNOV_TOLERANCE = 0.02

# From pale to dark, so that the phases differ in grey too.
COLORS = {
    Phase.MONOTONE: "#e9f2f8",
    Phase.CATAPULT: "#9ccbe8",
    Phase.BOUNDED: "#e9b44c",
    Phase.DIVERGED: "#b85c38",
}
IMPOSSIBLE = -1


def _centres(limits: tuple[float, float], n: int) -> np.ndarray:
    """Centres of n equal cells."""
    return limits[0] + (np.arange(n) + 0.5) * (limits[1] - limits[0]) / n


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Both phase diagrams, the edge, and the long run of the balanced line."""
    n, max_steps = (CELLS_QUICK, STEPS_QUICK) if quick else (CELLS_FULL, STEPS_FULL)
    a, log_w = _centres(A_LIMITS, n), _centres(LOG_W_LIMITS, n)
    a_label, label = _centres(A_LABEL_LIMITS, n), _centres(LABEL_LIMITS, n)
    grids = (
        np.broadcast_arrays(a, 10 ** log_w[:, None], 0.0),
        np.broadcast_arrays(a_label, EPS**2, label[:, None]),
    )
    phases = []
    for starts in grids:
        phase = np.full((n, n), IMPOSSIBLE)
        possible = starts[0] > 2 * np.abs(np.sqrt(starts[1]) + starts[2])
        found = catapult.phase_diagram(*(start[possible] for start in starts), max_steps=max_steps)
        phase[possible] = found.phase
        phases.append(phase)

    sides = [
        catapult.phase_diagram(side, EDGE_W, max_steps=EDGE_STEPS).phase for side in EDGE_SIDES
    ]
    labels = np.linspace(*BALANCED_LIMITS, LABELS_QUICK if quick else LABELS_FULL)
    return {
        "a": a,
        "log_w": log_w,
        "phase": phases[0],
        "a_label": a_label,
        "label": label,
        "phase_label": phases[1],
        "edge_phase": np.array(sides),
        "balanced_label": labels,
        "density": _density(labels, ORBIT_QUICK if quick else ORBIT_FULL),
        "lyapunov": catapult.attractor(labels).lyapunov,
        "period": catapult.attractor(PERIOD_LABELS).period,
        "lyapunov_at_2": catapult.attractor(2.0).lyapunov,
    }


def _density(labels: np.ndarray, n_steps: int) -> np.ndarray:
    """How often the output of each label's orbit falls into each bin; (OUTPUT_BINS, n_labels)."""
    s = np.full(labels.shape, 0.5)
    low, high = OUTPUT_LIMITS
    counts = np.zeros((OUTPUT_BINS, len(labels)), dtype=np.int64)
    for step in range(TRANSIENT + n_steps):
        s = catapult.balanced_map(s, labels)
        if step >= TRANSIENT:
            bins = ((s**2 - low) / (high - low) * OUTPUT_BINS).astype(np.int64)
            counts[np.minimum(bins, OUTPUT_BINS - 1), np.arange(len(labels))] += 1
    return counts


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Cells on the wrong side of the lines, the two sides of the edge, and the cascade."""
    a, w, phase = *np.meshgrid(arrays["a"], 10 ** arrays["log_w"]), arrays["phase"]
    first_lowers, small = a < 2 + w, w < W_FIRST_STEP
    raised = (phase == Phase.MONOTONE) & ~first_lowers
    lowered = (phase == Phase.CATAPULT) & first_lowers & small
    possible, diverged = phase != IMPOSSIBLE, phase == Phase.DIVERGED
    a_label, label = np.meshgrid(arrays["a_label"], arrays["label"])
    with_label = arrays["phase_label"]
    there = (with_label != IMPOSSIBLE) & (np.abs(label) < 2)
    beyond = a_label - 4 - label * EPS > 0
    converged = (with_label == Phase.MONOTONE) | (with_label == Phase.CATAPULT)
    first = 2 + EPS * (EPS + label)
    raised_with_label = ((with_label == Phase.MONOTONE) & (a_label > first)).sum()
    undecided = there & (np.abs(label) < 1) & (with_label == Phase.BOUNDED)
    wrong = {
        "cells wrong at a = 2 + w (w < 1)": raised.sum() + lowered.sum(),
        "monotone after a first step up": raised_with_label,
        "cells wrong at a = 4": (possible & (diverged != (a > 4))).sum(),
        "cells wrong at F = 0 (|Y| < 2)": (
            there & ((with_label == Phase.DIVERGED) != beyond)
        ).sum(),
        "cells that converge at |Y| > 1": (converged & (np.abs(label) > 1)).sum(),
    }
    below, above = arrays["edge_phase"]
    n_starts = len(EDGE_W)
    shares = {
        "undecided share, Y = 0": (phase == Phase.BOUNDED).sum() / possible.sum(),
        "undecided share, |Y| < 1": undecided.sum() / (there & (np.abs(label) < 1)).sum(),
    }
    rows = [Row(name, 0.0, 0.0, float(count)) for name, count in wrong.items()]
    rows += [Row(name, UNDECIDED, 0.0, float(share), "at most") for name, share in shares.items()]
    rows += [
        Row(f"a_0 = 3.99: catapults of {n_starts}", n_starts, 0.0, (below == Phase.CATAPULT).sum()),
        Row(f"a_0 = 4.01: diverged of {n_starts}", n_starts, 0.0, (above == Phase.DIVERGED).sum()),
    ]
    rows += [
        Row(f"period at Y = {label:g}", expected, 0.0, float(period))
        for label, expected, period in zip(PERIOD_LABELS, PERIODS, arrays["period"], strict=True)
    ]
    exponent = float(arrays["lyapunov_at_2"])
    rows.append(Row("Lyapunov exponent at Y = 2: ln 3", math.log(3), LYAPUNOV_TOLERANCE, exponent))
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Three panels: phases without a label, with one, and the balanced line with its exponent."""
    n_cells = int((arrays["phase"] != IMPOSSIBLE).sum() + (arrays["phase_label"] >= 0).sum())
    figure = _style.canvas(
        12.0,
        5.6,
        "Closed-form lines separate the phases of a catapult; labels beyond 1 lead to cycles and chaos",
        f"Gradient descent on one datum, exact at any width; {n_cells:,} starts, none on the wrong "
        f"side. Lines: derived (dashed and $2 + w$: first step). Middle: $\\epsilon_0 = {EPS:g}$. "
        "Right: orbits after 2000 steps. Own settings.",
    )
    edges = _style.margins(figure, left=0.75, right=0.25, top=1.3, bottom=0.95)
    names = {
        Phase.MONOTONE: "monotone",
        Phase.CATAPULT: "catapult: converges after the loss has grown",
        Phase.BOUNDED: "bounded: cycles or chaos; without a label: undecided so far",
        Phase.DIVERGED: "diverges",
    }
    width, height = figure.get_size_inches()
    figure.legend(
        handles=[Patch(color=COLORS[phase], label=name) for phase, name in names.items()],
        loc="upper left",
        ncols=4,
        columnspacing=2.4,
        handlelength=1.6,
        handleheight=1.0,
        bbox_to_anchor=(0.1 / width, 1 - 0.42 / height),
    )
    grid = figure.add_gridspec(1, 3, wspace=0.27, **edges)
    _draw_phases(figure.add_subplot(grid[0]), arrays)
    _draw_label(figure.add_subplot(grid[1]), arrays)
    right = grid[2].subgridspec(2, 1, height_ratios=(2.3, 1), hspace=0.12)
    top = figure.add_subplot(right[0])
    _draw_bifurcation(top, arrays)
    _draw_lyapunov(figure.add_subplot(right[1], sharex=top), arrays)
    return figure


def _image(axes: Axes, phase: np.ndarray, x: tuple[float, float], y: tuple[float, float]) -> None:
    shown = np.ma.masked_equal(phase, IMPOSSIBLE)
    axes.imshow(
        shown,
        cmap=ListedColormap(list(COLORS.values())),
        vmin=-0.5,
        vmax=len(COLORS) - 0.5,
        extent=(*x, *y),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.grid(visible=False)
    axes.set_xlabel(r"$a_0 = \eta\lambda_0$   rate × NTK at the start")


def _draw_phases(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    _image(axes, arrays["phase"], A_LIMITS, LOG_W_LIMITS)
    log_w = np.linspace(*LOG_W_LIMITS, 400)
    edge = 2 * np.sqrt(10**log_w)  # where w = a^2 / 4
    line = np.minimum(2 + 10**log_w, 4)
    inside = 2 + 10**log_w <= 4
    axes.plot(line[inside], log_w[inside], color=_style.INK, lw=1.4)
    axes.plot([4, 4], [LOG_W_LIMITS[0], math.log10(4)], color=_style.INK, lw=1.4)
    axes.plot(edge, log_w, color=_style.QUIET, lw=0.9)
    axes.set_title("Without a label", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "the first step raises the loss beyond $a = 2 + w$; divergence beyond 4")
    ticks = [-8, -6, -4, -2, 0]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.set_yticklabels([f"$10^{{{tick}}}$" for tick in ticks])
    axes.set_ylabel(r"$w_0 = \epsilon_0^2$   loss at the start")
    axes.text(0.6, 0.35, "impossible: $w > a^2/4$", fontsize=7.5, color=_style.QUIET)
    axes.text(1.94, -7.7, "$a = 2 + w$", ha="right", fontsize=8)
    axes.text(3.94, -7.7, "$a = 4$", ha="right", fontsize=8)
    _note(axes, (2.15, -2.35), "a later\nstep raises\nthe loss", (2.75, -1.6), (3.55, 0.4))
    # See EDGE_W.
    _note(axes, (0.65, -1.95), "slow at $w = 1$:\nundecided", (1.3, -1.45), (2.2, 0.0))
    _note(axes, (2.1, -5.6), "undecided:\nruns pass\nnear $w = 1$", (2.85, -5.0), (3.08, -4.55))


def _note(
    axes: Axes,
    at: tuple[float, float],
    text: str,
    start: tuple[float, float],
    end: tuple[float, float],
) -> None:
    """Words, and a thin line to what they are about."""
    axes.text(*at, text, va="center", fontsize=7.5, linespacing=1.4)
    axes.plot(*zip(start, end, strict=True), color=_style.INK, lw=0.7)


def _draw_label(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    _image(axes, arrays["phase_label"], A_LABEL_LIMITS, LABEL_LIMITS)
    label = np.linspace(-2, 2, 200)
    axes.plot(4 + label * EPS, label, color=_style.INK, lw=1.4)
    for level in (-1, 1):
        ends = 2 * abs(EPS + level), 4 + level * EPS
        axes.plot(ends, (level, level), color=_style.INK, lw=1.4)
    first = 2 + EPS * (EPS + label)
    within = (np.abs(label) < 1) & (first > 2 * np.abs(EPS + label))
    axes.plot(first[within], label[within], color=_style.INK, lw=1.1, ls=(0, (4, 3)))
    wide = np.linspace(*LABEL_LIMITS, 300)
    axes.plot(2 * np.abs(EPS + wide), wide, color=_style.QUIET, lw=0.9)
    axes.set_title("With a label", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes, r"divergence beyond $F = a - 4 - Y\epsilon = 0$, convergence for $|Y| < 1$"
    )
    axes.yaxis.set_major_locator(FixedLocator([-2, -1, 0, 1, 2]))
    for x, y, text, look in (
        (4.42, 0.6, "$F = 0$", {"color": "white"}),
        (2.5, -0.1, "first step\nraises loss", {}),
        (3.6, 1.07, "$Y = 1$", {}),
        (2.2, -1.22, "$Y = -1$", {}),
        (0.2, 1.8, "impossible:", {"color": _style.QUIET}),
        (0.2, 1.58, r"$2\,|\epsilon + Y| > a$", {"color": _style.QUIET}),
    ):
        axes.text(x, y, text, fontsize=8, linespacing=1.4, **look)
    _note(axes, (0.12, -1.55), "a later step\nraises the loss", (1.1, -1.3), (1.62, -0.8))
    axes.set_ylabel("$Y$   label", labelpad=2)


def _draw_bifurcation(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    labels, density = arrays["balanced_label"], arrays["density"]
    total = density.sum(axis=0)[0]
    shades = ListedColormap(_shades())
    axes.imshow(
        np.ma.masked_equal(density, 0) / total,
        cmap=shades,
        norm=LogNorm(3e-4, 3e-2, clip=True),
        extent=(*BALANCED_LIMITS, *OUTPUT_LIMITS),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )
    cycle = labels[(labels > 1) & (labels < CASCADE_END)]
    pairs = np.array([catapult.period_two(label)[:2] for label in cycle])
    axes.plot(cycle, pairs, color=_style.VERMILLION, lw=1.6)
    axes.plot([BALANCED_LIMITS[0], 1], [BALANCED_LIMITS[0], 1], color=_style.VERMILLION, lw=1.6)
    for threshold in (1, CASCADE_END):
        axes.axvline(threshold, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    axes.set_title("Balanced line", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"$s' = s(1 + Y - s^2)$; below, the Lyapunov exponent")
    axes.set_xlim(*BALANCED_LIMITS)
    axes.set_ylim(-0.1, 4.1)
    axes.yaxis.set_major_locator(FixedLocator([0, 1, 2, 3, 4]))
    axes.text(0.97, 1.35, "fixed\n$s^2 = Y$", ha="right", fontsize=8, color=_style.VERMILLION)
    axes.text(1.03, 1.85, "2-cycle\n$r,\\ 1/r$", fontsize=8, color=_style.VERMILLION)
    axes.grid(visible=False)
    axes.set_ylabel("$s^2$   output")
    axes.tick_params(labelbottom=False)


def _shades() -> list[tuple[float, float, float]]:
    """From a pale to the full blue."""
    full = np.array([int(_style.BLUE[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return [tuple(1 - strength * (1 - full)) for strength in np.linspace(0.25, 1, 24)]


def _draw_lyapunov(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.axhline(0, color=_style.QUIET, lw=0.7)
    for threshold in (1, CASCADE_END):
        axes.axvline(threshold, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    axes.plot(
        arrays["balanced_label"],
        arrays["lyapunov"],
        ls="none",
        marker=".",
        ms=2.2,
        mew=0,
        color=_style.BLUE,
    )
    axes.plot(
        [2], [math.log(3)], clip_on=False, **_style.points(_style.VERMILLION, marker="D", size=4)
    )
    axes.set_ylim(-1.6, 1.4)
    axes.yaxis.set_major_locator(FixedLocator([-1, 0, 1]))
    axes.xaxis.set_major_locator(FixedLocator([0.8, 1, CASCADE_END, 1.4, 1.6, 1.8, 2]))
    axes.set_xticklabels(["0.8", "1", r"$\sqrt{5}-1$", "1.4", "1.6", "1.8", "2"])
    axes.set_ylabel("exponent")
    axes.set_xlabel("$Y$   label")
    axes.text(1.97, 1.09, "ln 3", ha="right", fontsize=8, color=_style.VERMILLION)
