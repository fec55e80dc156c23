r"""The principal flow leaves a sharp minimum and a saddle with gradient descent.

Every truncated flow converges into any minimum, however sharp: its coefficient is below 0 at every
:math:`z = h\lambda > 0`. Gradient descent leaves a minimum with :math:`z > 2`, growing by
:math:`|1-z|` and changing sign at every step, and so does the principal flow (Rosca, Wu, Qin &
Dherin 2023, arXiv 2302.01952). At a saddle with :math:`z < -2` the modified flows of order 2 and 4
contract where gradient descent leaves; they say so and return LEFT_RANGE.

What the principal flow does not have is saturation. Gradient descent turns back where the curvature
falls (at the first minimum), or settles in a 2-cycle (on :math:`1 - \cos x`, where :math:`2x = h
\sin x`). The principal flow follows it through the onset, then goes on growing until it blows up,
and its status says that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from scipy.optimize import brentq

import eosim
from figures import _flows, _style
from figures._headline import Row

# Our choice: a valley along x = 0 whose curvature across, 1 + y^2, falls towards y = 0, and a weak
# spring that makes (0, 1.25) its only minimum: h * lambda = 2.306 there at h = 0.9.
SPRING, MINIMUM_Y = 0.02, 1.25
VALLEY = {
    (2, 0): 0.5,
    (2, 2): 0.5,
    (0, 2): SPRING / 2,
    (0, 1): -SPRING * MINIMUM_Y,
    (0, 0): SPRING * MINIMUM_Y**2 / 2,
}
VALLEY_LR, VALLEY_START = 0.9, (0.02, MINIMUM_Y)
VALLEY_STEPS_QUICK, VALLEY_STEPS_FULL = 24, 120
VALLEY_FLOWS = ("gradient", "order2", "order3", "order4", "principal")
# Our choice: iterates over which growth is measured; later the curvature has begun to change.
GROWTH_STEPS = 6
# Our choice: a saddle with h * lambda = -2.5 along the way out and 0.5 along the way in.
SADDLE, SADDLE_LR, SADDLE_START = np.diag([-2.5, 0.5]), 1.0, (1e-3, 1.0)
SADDLE_STEPS = 8
SADDLE_FLOWS = ("gradient", "order2", "order3", "order4", "principal")
# Our choice: 1 - cos x beyond its edge h = 2, started near the minimum.
COSINE_LR, COSINE_START = 2.2, 0.1
COSINE_STEPS_QUICK, COSINE_STEPS_FULL = 40, 400
COSINE_FLOWS = ("gradient", "order2", "order3", "order4", "principal")
# Our choice: steps of which the principal flow's curve is drawn, before it leaves the picture, and
# points per step.
CURVE_STEPS = {"valley": 10, "cosine": 13}
DENSITY = 20
RTOL, ATOL = 1e-10, 1e-14
BLOWN_UP = ("DIVERGED", "STALLED")  # it grew too large, or too fast for the integrator


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Iterates and flows of the three cases, and how each flow ended."""
    arrays: dict[str, np.ndarray] = {}
    cases: tuple[tuple[str, Any, float, Any, int, tuple[str, ...]], ...] = (
        (
            "valley",
            eosim.Polynomial(VALLEY),
            VALLEY_LR,
            VALLEY_START,
            VALLEY_STEPS_QUICK if quick else VALLEY_STEPS_FULL,
            VALLEY_FLOWS,
        ),
        (
            "saddle",
            eosim.Quadratic(SADDLE),
            SADDLE_LR,
            SADDLE_START,
            SADDLE_STEPS,
            SADDLE_FLOWS,
        ),
        (
            "cosine",
            eosim.Cosine(),
            COSINE_LR,
            (COSINE_START,),
            COSINE_STEPS_QUICK if quick else COSINE_STEPS_FULL,
            COSINE_FLOWS,
        ),
    )
    for case, problem, lr, start, n_steps, names in cases:
        flows = _flows.make(names, problem, lr)
        descent = eosim.GradientDescent(lr)
        found = eosim.compare(
            problem, descent, start, n_steps, flows, restart=False, rtol=RTOL, atol=ATOL
        )
        arrays[f"{case}_iterates"] = found.iterates["theta"]
        for name, path in found.flows.items():
            arrays[f"{case}_{name}"] = path["theta"]
            arrays[f"{case}_{name}_status"] = np.array(path.status.name)
        if case == "saddle":
            times = lr * np.arange(n_steps + 1)
            for name, flow in flows.items():
                arrays[f"{case}_{name}_closed"] = np.abs(eosim.closed_form(flow, start, times))
            continue
        fine = lr * np.arange(DENSITY * CURVE_STEPS[case] + 1) / DENSITY
        curve = eosim.integrate(flows["principal"], start, fine, record={}, rtol=RTOL, atol=ATOL)[
            "theta"
        ]
        arrays[f"{case}_curve"] = curve.real
        arrays[f"{case}_curve_step"] = fine[: len(curve)] / lr
    # 2x = h sin x: where a step of gradient descent changes the sign of x only.
    arrays["cosine_cycle"] = np.array(
        brentq(lambda x: 2 * x - COSINE_LR * np.sin(x), 0.1, 2.0, xtol=1e-14)
    )
    return arrays


def _valley_z() -> float:
    """h * lambda across the valley at its minimum."""
    return VALLEY_LR * (1 + MINIMUM_Y**2)


def _growth(x: np.ndarray) -> float:
    """Factor per step of a coordinate over the first iterates, signs dropped."""
    return float(np.abs(x[GROWTH_STEPS] / x[0]) ** (1 / GROWTH_STEPS))


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Who leaves, how fast, and how each flow ended."""
    z = _valley_z()
    iterates, principal = arrays["valley_iterates"][:, 0], arrays["valley_principal"][:, 0]
    truncated = [arrays[f"valley_{name}"] for name in VALLEY_FLOWS[:-1]]
    in_minimum = np.array([0.0, MINIMUM_Y])
    # A flow that stopped early has not converged.
    distance = max(
        float(np.linalg.norm(path[-1] - in_minimum)) if len(path) == len(iterates) else np.inf
        for path in truncated
    )
    first = slice(0, GROWTH_STEPS + 1)
    gap = np.abs(principal[first] - iterates[first]) / np.abs(iterates[first])
    flips = int(np.sum(principal[first][1:].real * principal[first][:-1].real < 0))
    rows = [
        Row("minimum: growth of gradient descent", z - 1, 0.02, _growth(iterates)),
        Row("minimum: growth of the principal flow", z - 1, 0.02, _growth(principal)),
        Row(f"minimum: its sign flips of {GROWTH_STEPS}", GROWTH_STEPS, 0, flips),
        Row("minimum: its distance to iterates 1 to 6", 0.05, 0.0, float(gap.max()), "at most"),
        Row("minimum: farthest truncated flow at the end", 1e-2, 0.0, distance, "at most"),
        Row("minimum: gradient descent, largest |x|", 0.2, 0.0, np.abs(iterates).max(), "at least"),
    ]
    out = arrays["saddle_iterates"][:, 0]
    error = np.abs(arrays["saddle_principal"][:, 0] / out - 1)
    refused = [str(arrays[f"saddle_{name}_status"]) for name in ("order2", "order4")]
    rows += [
        Row("saddle: growth of gradient descent", 3.5, 1e-12, float(out[-1] / out[-2])),
        Row("saddle: principal flow, error", 1e-9, 0.0, float(error.max()), "at most"),
        Row("saddle: even orders with LEFT_RANGE", 2, 0, refused.count("LEFT_RANGE")),
    ]
    for name in ("order2", "order4"):
        factor = float(arrays[f"saddle_{name}_closed"][1, 0] / SADDLE_START[0])
        rows.append(Row(f"saddle: {_flows.KINDS[name].label}, factor", 1.0, 0.0, factor, "at most"))
    iterates, principal = arrays["cosine_iterates"][:, 0], arrays["cosine_principal"][:, 0]
    gap = np.abs(principal[1:6] - iterates[1:6]) / np.abs(iterates[1:6])
    ended = str(arrays["cosine_principal_status"]) in BLOWN_UP
    largest = max(np.abs(arrays[f"cosine_{name}"][-1]).max() for name in COSINE_FLOWS[:-1])
    rows += [
        Row("1 - cos x: the 2-cycle", 0.748987, 5e-7, float(arrays["cosine_cycle"])),
        Row(
            "1 - cos x: gradient descent at the end",
            float(arrays["cosine_cycle"]),
            1e-4,
            float(np.abs(iterates[-1])),
        ),
        Row("1 - cos x: principal flow, iterates 1 to 5", 0.05, 0.0, float(gap.max()), "at most"),
        Row("1 - cos x: it ends DIVERGED or STALLED", 1, 0, int(ended)),
        Row("1 - cos x: largest truncated |x| at the end", 1e-6, 0.0, float(largest), "at most"),
    ]
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """The minimum in the plane and as a distance, the saddle as a distance, and 1 - cos x."""
    figure = _style.canvas(
        11.0,
        8.3,
        "The principal flow leaves a sharp minimum and a saddle with gradient descent",
        f"Own settings: $E = x^2(1+y^2)/2 + {SPRING / 2:g}\\,(y-1.25)^2$, $h = {VALLEY_LR:g}$; "
        f"$E = (-2.5\\,x^2 + 0.5\\,y^2)/2$, $h = 1$; $E = 1 - \\cos x$, $h = {COSINE_LR:g}$. "
        "Curves of the principal flow: real part. Dashed lines: theory.",
    )
    _flows.legend(figure, VALLEY_FLOWS, columns=6)
    grid = figure.add_gridspec(
        2,
        2,
        hspace=0.48,
        wspace=0.17,
        **_style.margins(figure, left=0.78, right=0.25, top=1.25, bottom=0.92),
    )
    _draw_plane(figure.add_subplot(grid[0, 0]), arrays)
    _draw_minimum(figure.add_subplot(grid[0, 1]), arrays)
    _draw_saddle(figure.add_subplot(grid[1, 0]), arrays)
    _draw_cosine(figure.add_subplot(grid[1, 1]), arrays)
    return figure


def _descent(axes: Axes, x: Any, y: Any, **keywords: Any) -> None:
    axes.plot(x, y, **_style.points(_style.GRADIENT_DESCENT, size=5, **keywords), zorder=4)


def _ending(arrays: dict[str, np.ndarray], case: str) -> str:
    """How the principal flow ends, and where."""
    blown = str(arrays[f"{case}_principal_status"]) in BLOWN_UP
    last = len(arrays[f"{case}_principal"]) - 1
    return f"the principal flow {'blows up' if blown else 'ends'} after iterate {last}"


def _draw_plane(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("Sharp minimum", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes, f"$h\\lambda = {_valley_z():.2f}$ at the minimum, below 2 under the dotted line"
    )
    x, y = np.meshgrid(np.linspace(-0.42, 0.42, 240), np.linspace(0.86, 1.4, 240))
    loss = x**2 * (1 + y**2) / 2 + SPRING / 2 * (y - MINIMUM_Y) ** 2
    levels = np.linspace(0, 0.5, 13)[1:] ** 2
    axes.contour(x, y, loss, levels=levels, colors=_style.FAINT, linewidths=0.7)
    axes.grid(visible=False)
    edge = np.sqrt(2 / VALLEY_LR - 1)
    axes.axhline(edge, color=_style.QUIET, lw=0.9, ls=(0, (1.2, 1.6)))
    curve, iterates = arrays["valley_curve"], arrays["valley_iterates"]
    axes.plot(curve[:, 0], curve[:, 1], color=_style.PRINCIPAL_FLOW)
    axes.plot(iterates[:25, 0], iterates[:25, 1], color=_style.GRADIENT_DESCENT, lw=0.5, alpha=0.5)
    _descent(axes, iterates[:25, 0], iterates[:25, 1])
    axes.plot([0], [MINIMUM_Y], **_style.points(_style.GRADIENT_FLOW, marker="s", size=5), zorder=5)
    axes.annotate(
        "truncated flows end\nin the minimum",
        (0, MINIMUM_Y),
        xytext=(-0.13, 1.345),
        ha="right",
        va="center",
        fontsize=7.5,
        color=_style.GRADIENT_FLOW,
        arrowprops={"arrowstyle": "-", "lw": 0.7, "color": _style.GRADIENT_FLOW},
    )
    axes.text(0.4, 1.375, "principal flow\ngoes on growing", ha="right", va="top", fontsize=7.5)
    axes.text(0.4, 0.89, "gradient descent\nturns to flatter ground", ha="right", fontsize=7.5)
    axes.set_xlim(-0.42, 0.42)
    axes.set_ylim(0.86, 1.4)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("$x$   sharp direction")
    axes.set_ylabel("$y$   flat direction")


def _draw_minimum(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("Sharp minimum: distance across", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, _ending(arrays, "valley") + "; open points grow")
    z, start = _valley_z(), VALLEY_START[0]
    problem = eosim.Quadratic([[z]])
    shown = np.arange(25)
    for name in VALLEY_FLOWS:
        kind = _flows.KINDS[name]
        factor = abs(np.exp(z * kind.make(problem, 1.0).coefficient(np.array([z])))[0])
        level = start * factor**shown
        axes.plot(shown, level, color=kind.color, ls=(0, (5, 2)), lw=1.0)
        path = arrays[f"valley_{name}"][:25]
        size = np.abs(path[:, 0])
        look = _style.points(kind.color, marker=kind.marker, size=4, filled=name != "principal")
        axes.plot(range(len(size)), size, **look)
    iterates = np.abs(arrays["valley_iterates"][:25, 0])
    _descent(axes, range(len(iterates)), iterates)
    axes.set_yscale("log")
    axes.set_ylim(1e-9, 1e3)
    axes.set_xlim(-0.5, 20.5)
    axes.yaxis.set_major_locator(FixedLocator([1e-8, 1e-6, 1e-4, 1e-2, 1, 1e2]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator([0, 5, 10, 15, 20]))
    axes.set_xlabel("$k$   iterate")
    axes.set_ylabel("$|x|$")


def _draw_saddle(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("Saddle: distance along the way out", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"$h\lambda = -2.5$; orders 2 and 4 would turn back: they stop at once")
    steps = np.arange(SADDLE_STEPS + 1)
    for name in SADDLE_FLOWS:
        kind = _flows.KINDS[name]
        axes.plot(
            steps,
            arrays[f"saddle_{name}_closed"][:, 0],
            color=kind.color,
            ls=(0, (5, 2)),
            lw=1.0,
        )
        path = np.abs(arrays[f"saddle_{name}"][:, 0])
        look = _style.points(kind.color, marker=kind.marker, size=4, filled=False)
        axes.plot(range(len(path)), path, **look)
    out = np.abs(arrays["saddle_iterates"][:, 0])
    _descent(axes, steps, out, filled=False)
    axes.set_yscale("log")
    axes.set_ylim(1e-9, 1e5)
    axes.set_xlim(-0.2, SADDLE_STEPS + 0.2)
    axes.yaxis.set_major_locator(FixedLocator([1e-8, 1e-6, 1e-4, 1e-2, 1, 1e2, 1e4]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("$k$   iterate")
    axes.set_ylabel("$|x|$")
    for y, name in ((5e-7, "order2"), (1e-8, "order4")):
        kind, reached = _flows.KINDS[name], len(arrays[f"saddle_{name}"]) - 1
        text = f"order {name[-1]}: stops at iterate {reached} (line: its closed form)"
        axes.text(SADDLE_STEPS, y, text, ha="right", fontsize=7.5, color=kind.color)


def _draw_cosine(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title(r"$1 - \cos x$: gradient descent saturates", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, _ending(arrays, "cosine"))
    cycle = float(arrays["cosine_cycle"])
    for level in (-cycle, cycle):
        axes.axhline(level, color=_style.GRADIENT_DESCENT, lw=0.9, ls=(0, (5, 2)))
    for name in ("gradient", "order2"):
        kind, path = _flows.KINDS[name], arrays[f"cosine_{name}"][:25, 0]
        axes.plot(range(len(path)), path, **_style.points(kind.color, marker=kind.marker, size=3.5))
    axes.plot(
        arrays["cosine_curve_step"], arrays["cosine_curve"][:, 0], color=_style.PRINCIPAL_FLOW
    )
    iterates = arrays["cosine_iterates"][:25, 0]
    _descent(axes, range(len(iterates)), iterates)
    axes.set_ylim(-1.35, 1.35)
    axes.set_xlim(-0.5, 24.5)
    axes.xaxis.set_major_locator(FixedLocator([0, 5, 10, 15, 20]))
    axes.set_xlabel("$t/h$   iterate")
    axes.set_ylabel("$x$")
    axes.text(24.4, 1.0, "2-cycle: $2x = h\\,\\sin x$", ha="right", fontsize=7.5)
