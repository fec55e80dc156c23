r"""Off quadratics the principal flow follows gradient descent best where the curvature is large.

Rosenbrock's valley, :math:`E = (1-x)^2 + 100\,(y-x^2)^2`, in four settings that differ in
:math:`h\lambda_1` along the iterates: below 1 everything is real, and a truncation of higher order
wins; where the iterates oscillate across the valley the principal flow (tracked branch; Rosca, Wu,
Qin & Dherin 2023, arXiv 2302.01952) is several times closer than every truncation for the first
steps. Afterwards all flows are about equally late along the valley. Orderings are measurements in
these settings, not theorems.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

import eosim
from figures import _flows, _style
from figures._headline import Row


@dataclass(frozen=True)
class Setting:
    """A start and a learning rate."""

    name: str
    title: str
    start: tuple[float, float]
    lr: float


# Our choice, all four: h * lambda_1 small; oscillating; oscillating from above 2; across 1.
SETTINGS = (
    Setting("a", "A   all real", (0.5, 0.6), 8e-4),
    Setting("b", "B   oscillating", (1.2, 1.2), 1.2e-3),
    Setting("c", "C   starts above 2", (1.2, 1.2), 1.6e-3),
    Setting("d", "D   crosses 1", (-1.0, 1.5), 8e-4),
)
FLOWS = ("gradient", "order2", "order3", "order4", "principal", "principal1")
# Of the paths; more lines would hide each other.
DRAWN = ("gradient", "order2", "principal")
N_STEPS_QUICK, N_STEPS_FULL = 30, 100
# Our choice: steps drawn, also between the iterates, and points per step there.
N_DRAWN, DENSITY_QUICK, DENSITY_FULL = 8, 24, 96
RTOL = 1e-9
# Computed once at rtol 1e-9 and independent of the tolerance to 5 digits: distances in setting A.
A_PRINCIPAL = {1: 5.07811e-4, 2: 6.96182e-4, 5: 5.18083e-4, 10: 4.57977e-4, 30: 4.51103e-4}
A_AT_30 = {"gradient": 4.083e-3, "order2": 1.065e-3, "order3": 2.432e-4, "principal1": 9.360e-5}
A_DESCENT_30 = (0.676537, 0.456154)
A_RANKING = ("order4", "principal1", "order3", "principal", "order2", "gradient")
LISTED = (1, 2, 5, 10, 20, 30)


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Iterates, errors of all flows, and paths between the iterates of three."""
    problem = eosim.Rosenbrock()
    n_steps = N_STEPS_QUICK if quick else N_STEPS_FULL
    density = DENSITY_QUICK if quick else DENSITY_FULL
    arrays: dict[str, np.ndarray] = {"drawn_step": np.arange(density * N_DRAWN + 1) / density}
    for setting in SETTINGS:
        flows = _flows.make(FLOWS, problem, setting.lr)
        found = eosim.compare(
            problem,
            eosim.GradientDescent(setting.lr),
            setting.start,
            n_steps,
            flows,
            restart=False,
            rtol=RTOL,
        )
        arrays[f"{setting.name}_iterates"] = found.iterates["theta"]
        arrays[f"{setting.name}_z"] = np.asarray(found.z)[:, 0]
        for name, error in found.global_error.items():
            arrays[f"{setting.name}_{name}_error"] = error
        imaginary = found.flows["principal"]["imaginary_norm"]
        arrays[f"{setting.name}_imaginary"] = imaginary
        fine = setting.lr * arrays["drawn_step"]
        for name in DRAWN:
            path = eosim.integrate(flows[name], setting.start, fine, record={}, rtol=RTOL)
            arrays[f"{setting.name}_{name}_path"] = path["theta"].real
    return arrays


def _error(setting: str, flow: str, k: int, arrays: dict[str, np.ndarray]) -> float:
    """Distance at iterate k; NaN if the flow did not get there."""
    error = arrays[f"{setting}_{flow}_error"]
    return float(error[k]) if k < len(error) else float("nan")


def _lead(
    setting: str,
    flows: tuple[str, ...],
    at: tuple[int, ...],
    arrays: dict[str, np.ndarray],
    of: str = "principal",
) -> float:
    """How many times farther the best of ``flows`` is than ``of``, at the worst listed iterate."""
    ratios = [
        _error(setting, flow, k, arrays) / _error(setting, of, k, arrays)
        for flow in flows
        for k in at
    ]
    return float(np.min(ratios))


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Digits and order of setting A; how far the principal flow leads in B, C and D."""
    rows = []
    for axis, expected in zip("xy", A_DESCENT_30, strict=True):
        measured = float(arrays["a_iterates"][30, "xy".index(axis)])
        rows.append(Row(f"A: gradient descent, {axis} at 30", expected, 5e-7, measured))
    for k, expected in A_PRINCIPAL.items():
        measured = _error("a", "principal", k, arrays)
        rows.append(Row(f"A: principal flow, error at {k}", expected, 1.1e-9, measured))
    for name, expected in A_AT_30.items():
        label = _flows.KINDS[name].label
        measured = _error("a", name, 30, arrays)
        rows.append(Row(f"A: {label}, error at 30", expected, 6e-4 * expected, measured))
    errors = [_error("a", name, 30, arrays) for name in A_RANKING]
    steps_down = sum(not low < high for low, high in pairwise(errors))
    rows.append(Row("A: flows out of the stated order at 30", 0, 0, steps_down))
    largest = float(arrays["a_imaginary"].max())
    rows.append(Row("A: largest imaginary part", 0.0, 0.0, largest))

    low_orders = ("gradient", "order2", "order3")
    truncated = (*low_orders, "order4")
    lead = _lead("b", truncated, (1, 2), arrays)
    rows.append(Row("B: lead over all truncations, 1 and 2", 3.0, 0.0, lead, "at least"))
    lead = _lead("b", low_orders, LISTED, arrays)
    rows.append(Row("B: lead over orders 1 to 3, 1 to 30", 1.0, 0.0, lead, "at least"))
    lead = _lead("c", truncated, (1, 2, 5), arrays)
    rows.append(Row("C: lead over all truncations, 1, 2, 5", 2.0, 0.0, lead, "at least"))
    spread = _lead("c", low_orders, (30,), arrays)
    rows.append(Row("C: lead over orders 1 to 3 at 30", 1.0, 0.05, spread))
    lead = _lead("d", low_orders, (2,), arrays)
    rows.append(Row("D: lead over orders 1 to 3, 2", 3.0, 0.0, lead, "at least"))
    lead = _lead("d", low_orders, LISTED[1:], arrays)
    rows.append(Row("D: lead over orders 1 to 3, 2 to 30", 1.0, 0.0, lead, "at least"))
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """A column per setting: paths in the plane, across the valley, and the error."""
    figure = _style.canvas(
        11.0,
        8.6,
        "Off quadratics the principal flow leads where gradient descent oscillates, for a while",
        r"Rosenbrock's $E = (1-x)^2 + 100\,(y-x^2)^2$, own settings. Paths: the principal flow by its "
        r"real part; grey: level lines of $E$. Error: $|\theta(kh) - \theta_k|$, imaginary part "
        "included.",
    )
    _flows.legend(figure, FLOWS, columns=4)
    grid = figure.add_gridspec(
        3,
        4,
        height_ratios=(1.25, 1, 1.1),
        hspace=0.42,
        wspace=0.3,
        **_style.margins(figure, left=0.76, right=0.2, top=1.5, bottom=0.9),
    )
    for column, setting in enumerate(SETTINGS):
        plane, across, bottom = (figure.add_subplot(grid[row, column]) for row in range(3))
        _draw_plane(plane, setting, arrays)
        _draw_across(across, setting, arrays)
        _draw_errors(bottom, setting, arrays)
        if column == 0:
            plane.set_ylabel("$y$")
            across.set_ylabel("$y - x^2$   across the valley")
            bottom.set_ylabel("distance to iterate $k$")
        else:
            bottom.tick_params(labelleft=False)
    return figure


def _drawn(setting: Setting, arrays: dict[str, np.ndarray]) -> np.ndarray:
    return arrays[f"{setting.name}_iterates"][: N_DRAWN + 1]


def _draw_plane(axes: Axes, setting: Setting, arrays: dict[str, np.ndarray]) -> None:
    z, iterates = arrays[f"{setting.name}_z"], _drawn(setting, arrays)
    axes.set_title(setting.title, pad=_style.SUBTITLE_PAD)
    shown = ", ".join(f"{value:.2f}" for value in z[:2])
    _style.subtitle(axes, f"$h = {setting.lr:g}$,  $h\\lambda_1 =$ {shown}, … {z[30]:.2f}")
    paths = [arrays[f"{setting.name}_{name}_path"] for name in DRAWN]
    everything = np.concatenate([iterates, *paths])
    low, high = everything.min(axis=0), everything.max(axis=0)
    low, high = low - 0.08 * (high - low), high + 0.08 * (high - low)
    x, y = np.meshgrid(np.linspace(low[0], high[0], 240), np.linspace(low[1], high[1], 240))
    loss = eosim.Rosenbrock().loss(np.array([x, y]))
    levels = np.linspace(0, np.sqrt(loss.max()), 9)[1:] ** 2
    axes.contour(x, y, loss, levels=levels, colors=_style.FAINT, linewidths=0.7)
    axes.grid(visible=False)
    for name, path in zip(DRAWN, paths, strict=True):
        kind = _flows.KINDS[name]
        axes.plot(path[:, 0], path[:, 1], color=kind.color, ls=kind.line)
    look = _style.points(_style.GRADIENT_DESCENT, size=5)
    axes.plot(iterates[:, 0], iterates[:, 1], **look, zorder=4)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("$x$")


def _draw_across(axes: Axes, setting: Setting, arrays: dict[str, np.ndarray]) -> None:
    step, iterates = arrays["drawn_step"], _drawn(setting, arrays)
    axes.axhline(0, color=_style.QUIET, lw=0.7)
    for name in DRAWN:
        kind, path = _flows.KINDS[name], arrays[f"{setting.name}_{name}_path"]
        axes.plot(step[: len(path)], path[:, 1] - path[:, 0] ** 2, color=kind.color, ls=kind.line)
    axes.plot(
        range(len(iterates)),
        iterates[:, 1] - iterates[:, 0] ** 2,
        **_style.points(_style.GRADIENT_DESCENT, size=5),
        zorder=4,
    )
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(FixedLocator(list(range(0, N_DRAWN + 1, 2))))
    axes.set_xlabel("$t/h$   iterate")


def _draw_errors(axes: Axes, setting: Setting, arrays: dict[str, np.ndarray]) -> None:
    for name in FLOWS:
        kind, error = _flows.KINDS[name], arrays[f"{setting.name}_{name}_error"]
        steps = np.arange(1, len(error))
        axes.plot(steps, error[1:], color=kind.color, ls=kind.line, lw=1.1)
        marked = [k for k in LISTED if k < len(error)]
        look = _style.points(kind.color, size=3.8, marker=kind.marker)
        axes.plot(marked, error[marked], **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(3e-5, 0.3)
    axes.set_xlim(0.88, 34)
    axes.yaxis.set_major_locator(FixedLocator([1e-4, 1e-3, 1e-2, 1e-1]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(LISTED))
    axes.set_xticklabels([str(k) for k in LISTED])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("$k$   iterate")
