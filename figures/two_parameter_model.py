r"""Two parameters suffice to come to rest at the edge of stability, at 2 - eps/2, from beyond it.

:math:`z = \tfrac12(x^2 - \epsilon y^2)`, :math:`L = z^2/2`, gradient descent with rate 1: the smallest
model with progressive sharpening and an edge, :math:`T_0 = 2` of the NTK
:math:`T_0 = x^2 + \epsilon^2 y^2`. A step changes :math:`C = T_0 - 2z` by the factor
:math:`(1 + \epsilon z)^2`, so that C is nearly conserved. From C < 2 a run converges at once, to
:math:`T_0 = C` up to :math:`O(\epsilon \log\epsilon)`. From C > 2 it hops between the two points of the
line of its C on the curve :math:`T_0 = 2/(1-z)`, whose mean is :math:`\bar z = -(C - 2)/4`, and which C
follows down: with :math:`\tau = \epsilon t`,

.. math:: \frac{dC}{d\tau} = 2\bar z C = -\tfrac12 C (C - 2), \qquad
          \frac{C - 2}{C} = \frac{C_0 - 2}{C_0}\, e^{-\tau},

until it rests at :math:`T_0 = 2 - \epsilon/2 + O(\epsilon^2)`.

Model: Agarwala, Pedregosa & Pennington 2022, arXiv 2210.04860. The formulas are derived here, and the
settings are this project's own.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from eosim import two_parameter
from figures import _style
from figures._headline import Row

# Our choice: from far beyond to close to the limit of small eps; starts around the edge, on either side.
EPS = np.array([0.1, 0.05, 0.02, 0.01, 0.005, 0.0025])
STARTS_QUICK, STARTS_FULL = 600, 20_000
Z_LIMITS, NTK_LIMITS = (-0.5, 0.5), (1.7, 2.5)
SEED = 0
# Our choice: residuals after 60 / eps steps. At |C - 2| = eps they decay by the factor 1 - eps/2 per step
# or faster: to exp(-30) = 1e-13.
SETTLED = 1e-9
# Our choice: starts of which the whole path is shown, (z, T_0), with C = 2.4 (on the cycle of eps = 0) and
# 1.5; and for how long, in units of 1/eps.
SHOWN_EPS, DRIFT_EPS = 0.05, np.array([0.1, 0.02, 0.0025])
DRIFT_C = 2.4
BELOW = (0.35, 2.2)
DRIFT_TIME = 5.0
# A run that hops is off its law by the step of C within a cycle, 2 eps z C = 2.7 eps at most, as |z| <=
# 0.56 and C <= 2.4; and the law's own error is of order eps as well.
DRIFT_TOLERANCE = 3.0
# From below C = 2 a run gathers eps times the sum of its residuals, which alternate in sign and decay, the
# slower the nearer C is to 2: at most eps log(1/eps) times a number that is 0.23 to 0.27 at these eps.
BELOW_TOLERANCE = 0.3
# The resting value is 2 - eps/2 - a eps^2 with a from 0.85 (small eps) to 1 (eps = 0.1), see `edge_ntk`.
SECOND_ORDER = 1.1
# Starts within eps of C = 2 rest on either side of the edge. Beyond, all end at one value but for the few
# whose last hop jumps across it (3 % at eps = 0.1, next to none at 0.02): this share is within eps/10.
SHARE = 0.9

PATH_COLOR, REST_COLOR = _style.BLUE, _style.VERMILLION
LOOKS = (
    {"color": _style.ORANGE, "marker": "^"},
    {"color": _style.VERMILLION, "marker": "s"},
    {"color": _style.BLUE, "marker": "o"},
)
DASHED = (0, (4, 3))


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Where many starts rest, by eps; and some paths."""
    rng = np.random.default_rng(SEED)
    n_starts = STARTS_QUICK if quick else STARTS_FULL
    z, ntk = rng.uniform(*Z_LIMITS, n_starts), rng.uniform(*NTK_LIMITS, n_starts)
    ends = np.array([two_parameter.settle(z, ntk, eps) for eps in EPS])
    arrays = {"start": ntk - 2 * z, "end_z": ends[:, 0], "end": ends[:, 1]}
    cycle = np.roots([1, (DRIFT_C - 2) / 2, -(DRIFT_C - 2) / 2]).min()
    for name, start in (("above", (cycle, DRIFT_C + 2 * cycle)), ("below", BELOW)):
        arrays[name] = _path(*start, SHOWN_EPS)
    for index, eps in enumerate(DRIFT_EPS):
        arrays[f"drift{index}"] = _path(cycle, DRIFT_C + 2 * cycle, eps)
    return arrays


def _path(z: float, ntk: float, eps: float) -> np.ndarray:
    """(z, T_0) of every step."""
    path = [(z, ntk)]
    for _ in range(round(DRIFT_TIME / eps)):
        path.append(two_parameter.reduced_map(*path[-1], eps))
    return np.array(path)


def _law(tau: np.ndarray) -> np.ndarray:
    """C of a run that hops."""
    return 2 / (1 - (DRIFT_C - 2) / DRIFT_C * np.exp(-tau))


def _rest(arrays: dict[str, np.ndarray], index: int) -> np.ndarray:
    """Final NTK of all that start clearly above C = 2."""
    return arrays["end"][index, arrays["start"] > 2 + EPS[index]]


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """The resting value and its second order; what starts below 2 keeps; the drift of C."""
    start, end = arrays["start"], arrays["end"]
    below, total = start < 2, len(start)
    rests = [np.median(_rest(arrays, index)) for index in range(len(EPS))]
    second = np.abs(two_parameter.edge_ntk(EPS) - rests) / EPS**2
    near = [
        float(np.mean(np.abs(_rest(arrays, index) - rest) < 0.1 * EPS[index]))
        for index, rest in enumerate(rests)
    ]
    kept = np.abs(end - start)[:, below] / (EPS * np.log(1 / EPS))[:, None]
    residuals = np.where(np.abs(start - 2) > EPS[:, None], np.abs(arrays["end_z"]), 0)
    drifts = []
    for index, eps in enumerate(DRIFT_EPS):
        path = arrays[f"drift{index}"]
        tau = eps * np.arange(len(path))
        drifts.append(np.abs(path[:, 1] - 2 * path[:, 0] - _law(tau)).max() / eps)
    return [
        Row(f"starts that diverge, of {total}", 0, 0, int((~np.isfinite(end)).sum())),
        Row("|C - 2| > eps: residuals at the end", SETTLED, 0, float(residuals.max()), "at most"),
        Row("C > 2: (2 - T_0) / eps at the least eps", 0.5, EPS[-1], (2 - rests[-1]) / EPS[-1]),
        Row("C > 2: |T_0 - (2 - eps/2)| / eps^2", SECOND_ORDER, 0, float(second.max()), "at most"),
        Row(f"C > 2: share within eps/10 of {(~below).sum()}", SHARE, 0, min(near), "at least"),
        Row(
            f"C < 2: |T_0 - C| / eps log(1/eps), of {below.sum()}",
            BELOW_TOLERANCE,
            0,
            float(kept.max()),
            "at most",
        ),
        Row("drift: |C - law| / eps", DRIFT_TOLERANCE, 0, float(max(drifts)), "at most"),
    ]


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Paths in the plane; the drift; where starts rest by C; the resting value by eps."""
    figure = _style.canvas(
        11.0,
        8.3,
        "Two parameters suffice to come to rest at the edge: at 2 − ε/2, from beyond it",
        f"$z = (x^2 - \\epsilon y^2)/2$, $L = z^2/2$, rate 1; NTK $T_0 = x^2 + \\epsilon^2 y^2$, "
        f"$C = T_0 - 2z$. Own settings: {len(arrays['start'])} starts, $z$ uniform in ±0.5, $T_0$ in "
        "1.7 to 2.5, 60/ε steps. Lines: closed forms, points: runs.",
    )
    edges = _style.margins(figure, left=0.78, right=0.3, top=0.98, bottom=0.88)
    grid = figure.add_gridspec(2, 2, wspace=0.24, hspace=0.46, **edges)
    _draw_plane(figure.add_subplot(grid[0, 0]), arrays)
    _draw_drift(figure.add_subplot(grid[0, 1]), arrays)
    _draw_by_start(figure.add_subplot(grid[1, 0]), arrays)
    inner = grid[1, 1].subgridspec(2, 1, height_ratios=(1.5, 1), hspace=0.12)
    _draw_rest(figure.add_subplot(inner[0]), figure.add_subplot(inner[1]), arrays)
    return figure


def _draw_plane(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    z = np.linspace(-0.75, 0.55, 200)
    for level in (1.5, DRIFT_C):
        axes.plot(z, level + 2 * z, color=_style.QUIET, lw=0.9, ls=DASHED)
    axes.plot(z, 2 / (1 - z), color=_style.INK, lw=1.4)
    for name, color in (("above", PATH_COLOR), ("below", _style.ORANGE)):
        path = arrays[name]
        axes.plot(*path.T, color=color, lw=0.5, alpha=0.45)
        marker = "o" if name == "above" else "^"
        axes.plot(*path.T, **_style.points(color, marker=marker, size=3.2))
        axes.plot(*path[0], **_style.points(color, marker=marker, size=6, filled=False))
    rest = two_parameter.edge_ntk(SHOWN_EPS)
    axes.plot(0, rest, **_style.points(REST_COLOR, marker="D", size=5.5), zorder=5)
    axes.annotate(
        "rest, $2 - \\epsilon/2$",
        (0, rest),
        xytext=(0.19, 1.5),
        fontsize=7.5,
        color=REST_COLOR,
        va="center",
        arrowprops={"arrowstyle": "-", "color": REST_COLOR, "lw": 0.7, "shrinkB": 4},
    )
    axes.text(0.37, 2.95, "$2/(1-z)$", fontsize=8, ha="left", va="center")
    axes.text(-0.2, 2.06, f"C = {DRIFT_C:g}", fontsize=7.5, color=_style.QUIET, ha="right")
    axes.text(-0.33, 0.75, "C = 1.5", fontsize=7.5, color=_style.QUIET, ha="left")
    axes.set_xlim(-0.68, 0.5)
    axes.set_ylim(0.65, 3.15)
    axes.set_xlabel("$z$   residual")
    axes.set_ylabel("$T_0$   NTK")
    axes.set_title("Two runs at ε = 0.05", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "open: starts; dashed: C conserved; curve: two-cycles at ε = 0")


def _draw_drift(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    handles = []
    for index, (eps, look) in enumerate(zip(DRIFT_EPS, LOOKS, strict=True)):
        path = arrays[f"drift{index}"]
        tau = eps * np.arange(len(path))
        # Over a cycle: C hops a little with z.
        level = path[:, 1] - 2 * path[:, 0]
        smooth = (level[:-1] + level[1:]) / 2
        every = max(1, len(smooth) // (24 - 3 * index))
        style = _style.points(look["color"], marker=look["marker"], size=4.2)
        axes.plot(tau[:-1][::every] + eps / 2, smooth[::every], **style)
        axes.axhline(two_parameter.edge_ntk(eps), color=look["color"], lw=0.8, ls=DASHED)
        handles.append(Line2D([], [], label=f"ε = {eps:g}", **style))
    line = np.linspace(0, DRIFT_TIME, 200)
    axes.plot(line, _law(line), color=_style.INK, lw=1.4)
    axes.legend(handles=handles, loc="upper right", handletextpad=0.2, labelspacing=0.3)
    axes.set_xlim(-0.08, DRIFT_TIME)
    axes.set_ylim(1.92, 2.43)
    axes.set_xlabel(r"$\epsilon t$   step, in units of $1/\epsilon$")
    axes.set_ylabel("$C = T_0 - 2z$")
    axes.set_title("Beyond the edge C drifts down", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"line: $(C-2)/C$ falls as $e^{-\epsilon t}$; dashed: $2 - \epsilon/2$")


def _draw_by_start(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    start = arrays["start"]
    order = np.argsort(start)[:: max(1, len(start) // 300)]
    low, high = 0.7, 3.5
    axes.plot([low, 2, high], [low, 2, 2], color=_style.INK, lw=1.4)
    handles = []
    for eps, look in zip(DRIFT_EPS, LOOKS, strict=True):
        end = arrays["end"][np.flatnonzero(eps == EPS)[0]]
        style = _style.points(look["color"], marker=look["marker"], size=3)
        axes.plot(start[order], end[order], **{**style, "markeredgewidth": 0}, alpha=0.6)
        handles.append(Line2D([], [], label=f"ε = {eps:g}", **{**style, "markersize": 4.2}))
    axes.legend(handles=handles, loc="lower right", handletextpad=0.2, labelspacing=0.3)
    axes.set_xlim(low, high)
    axes.set_ylim(low, 2.25)
    axes.set_xlabel("$C = T_0 - 2z$ of the start")
    axes.set_ylabel("$T_0$   NTK at the end")
    axes.set_title("Where starts rest: min(C, 2), as ε → 0", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, f"{len(order)} of {len(start)} starts; none diverges")


def _draw_rest(top: Axes, bottom: Axes, arrays: dict[str, np.ndarray]) -> None:
    rests = [_rest(arrays, index) for index in range(len(EPS))]
    median = np.array([np.median(rest) for rest in rests])
    low, high = np.array([np.quantile(rest, [0.05, 0.95]) for rest in rests]).T
    line = np.geomspace(0.0018, 0.14, 100)
    for axes, change in (
        (top, lambda values, eps: values),
        (bottom, lambda values, eps: (2 - values) / eps),
    ):
        axes.plot(line, change(two_parameter.edge_ntk(line), line), color=_style.INK, lw=1.4)
        ends = np.sort([change(low, EPS), change(high, EPS)], axis=0)
        axes.vlines(EPS, *ends, color=REST_COLOR, lw=1.0)
        axes.plot(EPS, change(median, EPS), **_style.points(REST_COLOR, marker="D", size=4.5))
        axes.set_xscale("log")
        axes.set_xlim(line[0], line[-1])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(FixedLocator(list(EPS)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    top.tick_params(labelbottom=False)
    top.set_ylim(1.93, 2.005)
    top.set_ylabel("$T_0$   at the end")
    top.set_title("The resting value beyond the edge: 2 − ε/2", pad=_style.SUBTITLE_PAD)
    counts = (arrays["start"] > 2).sum()
    _style.subtitle(top, f"starts with C > 2 + ε (of {counts} with C > 2): median, 5 to 95 %")
    bottom.set_ylim(0.42, 0.64)
    bottom.set_ylabel(r"$(2 - T_0)/\epsilon$")
    bottom.set_xlabel(r"$\epsilon$")
