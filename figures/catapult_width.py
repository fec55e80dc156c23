r"""At finite width both edges of the catapult phase move by O(1/n), as closed forms say per start.

The two-layer linear net :math:`f = n^{-1/2} v\cdot u\,x` with one datum and normal weights: the output
:math:`f_0` is of order 1, and :math:`\lambda_0 = (|u|^2 + |v|^2)/n`. With label 0 the loss grows in
the first step from :math:`a_0 = \eta\lambda_0 = 2 + w_0` on, with :math:`w_0 = \eta^2 f_0^2/n`; at that
rate, to leading order,

.. math:: a_0 - 2 = \frac{4 f_0^2}{n\lambda_0^2}, \qquad\text{and divergence begins at}\quad
          a_0 - 4 = \frac{16\,y\,(f_0 - y)}{n\lambda_0^2},

which vanishes for label 0, at any width. The second has an exact form, `catapult.critical_lr`, which is
the boundary of Liang & Montufar. With :math:`\lambda_0 \to 2` and :math:`f_0 \sim N(0, 1)` the mean
shifts are 1/n and :math:`4|y|\,\mathrm{E}|f_0 - y|/n`. The phases: Lewkowycz et al. 2020, arXiv
2003.02218, and Meltzer & Liu 2023, arXiv 2301.07737; the shifts are derived here.
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from eosim import catapult
from eosim.catapult import Phase
from figures import _style
from figures._headline import Row

# Our choice.
TARGET = 0.5
WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
SEEDS_QUICK, SEEDS_FULL = 20, 80
# A shift is a mean over seeds of f_0^2 or |f_0 - y|: 20 of them scatter by 32 and 17 %, which gives
# slopes over six octaves an error of 0.09 and 0.05.
SLOPE_TOLERANCE = 0.35
# Bisection of the first edge, by one step of the net, and of the second, by whole runs.
FIRST_BRACKET, SECOND_BRACKET = (1.0, 4.0), (3.0, 5.0)
BISECTIONS = 48
MAX_STEPS = 2000
# The edge itself is where the quotient of two losses is 1: rounding of the quotient, 1e-15, over its
# slope in a, 2. Bisection adds 1e-14, and a run decides on F after steps that round it by 1e-15.
EDGE_TOLERANCE = 1e-11
# The next order is smaller by f_0^2 / n, at most about 12 / 1024.
COLLAPSE_TOLERANCE = 0.03
COLORS = {"first": _style.BLUE, "second": _style.VERMILLION}


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Both edges of every net, by bisection on runs and by their closed forms."""
    n_seeds = SEEDS_QUICK if quick else SEEDS_FULL
    shape = (len(WIDTHS), n_seeds)
    squares, product, first = np.empty(shape), np.empty(shape), np.empty(shape)
    for row, width in enumerate(WIDTHS):
        for seed in range(n_seeds):
            rng = np.random.default_rng([width, seed])
            hidden, readout = rng.standard_normal((width, 1)), rng.standard_normal(width)
            squares[row, seed] = (hidden**2).sum() + readout @ readout
            product[row, seed] = hidden[:, 0] @ readout
            first[row, seed] = _first_edge(hidden, readout, float(squares[row, seed]))
    width = np.array(WIDTHS)[:, None]
    # The net is 1/2 (u.v - y sqrt(n))^2 at the rate lr / n.
    critical = np.vectorize(catapult.critical_lr)(squares, product, TARGET * np.sqrt(width))
    # a = 2 + w with w = (a P / S)^2, at the smaller root.
    ratio = (product / squares) ** 2
    return {
        "width": np.array(WIDTHS),
        "output": product / np.sqrt(width),
        "ntk": squares / width,
        "first": first,
        "first_form": 4 / (1 + np.sqrt(1 - 8 * ratio)),
        "second": _second_edge(squares, product, width),
        "second_form": critical * squares,
    }


def _first_edge(hidden: np.ndarray, readout: np.ndarray, squares: float) -> float:
    """The a_0 from which one step of gradient descent raises the loss, at label 0."""
    low, high = FIRST_BRACKET
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        lr = middle * len(readout) / squares
        net = catapult.LinearNetMoments([[1.0]], [0.0], hidden, readout, lr)
        before, after = catapult.simulate(net, 1)["loss"]
        low, high = (low, middle) if after > before else (middle, high)
    return (low + high) / 2


def _second_edge(squares: np.ndarray, product: np.ndarray, width: np.ndarray) -> np.ndarray:
    """The a_0 from which runs diverge at label y, all nets at once by the normalised map."""
    low, high = (np.full(squares.shape, end) for end in SECOND_BRACKET)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        label = middle / squares * TARGET * np.sqrt(width)
        eps = middle * product / squares - label
        # The map is odd in (eps, Y); starts are given with eps > 0.
        found = catapult.phase_diagram(
            middle, eps**2, np.copysign(label, label * eps), max_steps=MAX_STEPS
        )
        grows = found.phase == Phase.DIVERGED
        low, high = np.where(grows, low, middle), np.where(grows, middle, high)
    return (low + high) / 2


def _shifts(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"first": arrays["first"] - 2, "second": arrays["second"] - 4}


def _leading(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """n times the shift at leading order."""
    f, ntk = arrays["output"], arrays["ntk"]
    return {"first": 4 * (f / ntk) ** 2, "second": 16 * TARGET * (f - TARGET) / ntk**2}


def _expected() -> dict[str, float]:
    """n times the mean |shift| as n grows: lambda_0 = 2 and f_0 standard normal."""
    density = math.exp(-(TARGET**2) / 2) / math.sqrt(2 * math.pi)
    distance = 2 * density + TARGET * math.erf(TARGET / math.sqrt(2))  # E|f - y|
    return {"first": 1.0, "second": 4 * TARGET * distance}


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Slopes, the closed forms per start, and the leading order."""
    rows, width = [], arrays["width"]
    for name, shift in _shifts(arrays).items():
        mean = np.abs(shift).mean(axis=1)
        slope = np.polyfit(np.log(width), np.log(mean), 1)[0]
        gap = np.abs(arrays[name] / arrays[f"{name}_form"] - 1).max()
        wide = width >= 1024
        scaled, leading = (width[:, None] * shift)[wide], _leading(arrays)[name][wide]
        ratio = np.abs(scaled - leading).max() / np.abs(leading).max()
        edge = f"{name} edge"
        rows += [
            Row(f"{edge}: slope of the mean shift", -1, SLOPE_TOLERANCE, float(slope)),
            Row(f"{edge}: |bisected / form - 1|", EDGE_TOLERANCE, 0, float(gap), "at most"),
            Row(
                f"{edge}: leading order, n >= 1024", COLLAPSE_TOLERANCE, 0, float(ratio), "at most"
            ),
        ]
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Three panels: both shifts against the width, and both in units of 1/n over the output."""
    n_seeds = arrays["first"].shape[1]
    figure = _style.canvas(
        11.0,
        4.5,
        "At finite width both edges of the catapult phase move by O(1/n)",
        "Two-layer linear net, one datum, gradient descent; edges measured by bisection on runs. "
        f"Small points: {n_seeds} seeds per width; large: their mean. Lines: theory. Own settings.",
    )
    edges = _style.margins(figure, left=0.78, right=0.25, top=1.0, bottom=0.95)
    grid = figure.add_gridspec(1, 3, wspace=0.34, **edges)
    _draw_shift(
        figure.add_subplot(grid[0]),
        arrays,
        "first",
        "First edge, label 0: the loss grows",
        "beyond $a_0 = 2 + w_0$; line: mean $1/n$",
        r"$a_0 - 2$   shift",
    )
    level = _expected()["second"]
    _draw_shift(
        figure.add_subplot(grid[1]),
        arrays,
        "second",
        f"Second edge, label {TARGET:g}: divergence",
        f"beyond $F = 0$; line: mean ${level:.2f}/n$",
        r"$|a_0 - 4|$   shift",
    )
    _draw_collapse(figure.add_subplot(grid[2]), arrays)
    return figure


def _draw_shift(
    axes: Axes, arrays: dict[str, np.ndarray], name: str, title: str, text: str, label: str
) -> None:
    color, width = COLORS[name], arrays["width"]
    shift = np.abs(_shifts(arrays)[name])
    spread = np.exp(np.linspace(-0.16, 0.16, shift.shape[1]))
    x = width[:, None] * spread
    axes.plot(
        x.ravel(), shift.ravel(), ls="none", marker=".", ms=3.2, mew=0, color=color, alpha=0.4
    )
    ends = np.array([45, 5800])
    axes.plot(ends, _expected()[name] / ends, color=color, lw=1.2)
    axes.plot(width, shift.mean(axis=1), **_style.points(color, size=6))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(*ends)
    axes.set_ylim(1e-7, 0.3)
    axes.xaxis.set_major_locator(FixedLocator(list(WIDTHS)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(FixedLocator([1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(title, pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, text)
    axes.set_xlabel("$n$   width")
    axes.set_ylabel(label)


def _draw_collapse(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    output, width = arrays["output"], arrays["width"][:, None]
    f = np.linspace(-3.2, 3.2, 200)
    axes.axhline(0, color=_style.QUIET, lw=0.7)
    for name, line in (("first", f**2), ("second", 4 * TARGET * (f - TARGET))):
        color = COLORS[name]
        axes.plot(f, line, color=color, lw=1.2)
        scaled = width * _shifts(arrays)[name]
        axes.plot(
            output.ravel(),
            scaled.ravel(),
            ls="none",
            marker=".",
            ms=4,
            mew=0,
            color=color,
            alpha=0.6,
        )
    axes.set_xlim(-3.2, 3.2)
    axes.set_ylim(-8, 11)
    axes.xaxis.set_major_locator(FixedLocator([-3, -2, -1, 0, 1, 2, 3]))
    axes.set_title("Both, over the output at the start", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"all widths; lines: leading order with $\lambda_0 = 2$")
    axes.set_xlabel("$f_0$   output at the start")
    axes.set_ylabel("$n$ × shift")
    axes.text(-1.75, 5.2, "first: $f_0^2$", fontsize=8.5, color=COLORS["first"])
    axes.text(0.35, -3.4, "second: $4y(f_0 - y)$", fontsize=8.5, color=COLORS["second"])
