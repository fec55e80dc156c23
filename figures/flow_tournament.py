r"""At the edge no flow does it all: edge and central flow give averages, the principal flow some iterates.

Flows of two kinds run beside gradient descent on four problems, and beside RMSProp and Adam on a fifth.
Some claim to pass through the iterates: gradient flow, modified flow, principal flow. The others claim
the centre of an oscillation and its size: the central flow (Cohen et al. 2024, arXiv 2410.24206; for Adam
an extension of ours), the rod flow (Regis & Chewi 2026, arXiv 2602.01480 and 2605.06821; our variant with
the longest eigenpairs) and the edge flow (Marion 2026, arXiv 2606.18080; our equations). The stable flow
is the central flow without oscillation.

Each is judged by four numbers, medians over the iterates at which there is an oscillation:

- |Re theta - theta_k| over the largest swing of the iterates so far,
- |Re theta - c_k| over how far the iterates have moved so far, with the centre c_k of the swing,
- the relative errors of the time-averaged loss and of the mean square swing around the centre.

What a flow costs is counted, not timed: evaluations of its field, and the gradients and products with the
Hessian that they take.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

import eosim
from eosim.flows import CentralFlow, EdgeFlow, RodFlow, StableFlow
from figures import _style
from figures._headline import Row
from figures.loss_along_instability import LR as NETWORK_LR
from figures.loss_along_instability import network

# Our choice: y x^2/2 + (y - m)^2/2, whose sharpness y is pulled towards m, 4 beyond the edge 2/h = 100.
VALLEY_LR, VALLEY_TARGET, VALLEY_START = 0.02, 104.0, (0.05, 96.0)
# Our choice: one mode beyond the edge at h = 1, and one that decays.
BOWL, BOWL_START = (2.2, 0.3), (0.01, 1.0)
# Our choice: S w^2/2 - w^4/4 with h S = 2.1, whose 2-cycle is w^2 = S - 2/h = 1.
QUARTIC_S, QUARTIC_LR, QUARTIC_START = 21.0, 0.1, 0.05
# Our choice: an iterate at the edge, after the first large swings.
NETWORK_FROM = 400
# Our choice: y x^2/2 - y, whose curvature y rises by lr per step. RMSProp starts at 0.95 of its edge
# 2/lr, Adam at 0.95 of 38/lr.
ADAPTIVE_LR, ADAPTIVE_BETA2, ADAPTIVE_START, BELOW = 0.01, 0.99, (1e-5, 20.0), 0.95
ADAPTIVE_WINDOW = 100
RODS = 4  # our choice: more than modes come to the edge, and directions of the drift
RTOL, ATOL = 1e-6, 1e-9
# Our choice: flows are judged where the mean square swing is at least this share of its largest.
SWINGING = 0.01
# Our choice: a median error below the first counts as followed, below the second as roughly.
FOLLOWED, ROUGHLY = 0.1, 0.5
# Our choice: errors that are below the first, or within the second of the best, are not told apart.
TIED, CLOSE = 0.01, 1.05
JUDGED = ("iterates", "centre", "loss", "swing")
NOTHING = np.full(len(JUDGED), np.nan)  # of a flow that does not follow the rule


@dataclass(frozen=True)
class Entrant:
    """A flow, its looks, and how it is made from problem and rule."""

    label: str
    color: str
    line: Any
    make: Callable[[Any, Any], Any]
    adaptive: bool  # whether it follows RMSProp and Adam
    width: float = 1.5


_DASHED, _DOTTED = (0, (5, 2)), (0, (1.2, 1.6))
ENTRANTS = {
    "gradient": Entrant(
        "gradient flow",
        _style.GRADIENT_FLOW,
        _DASHED,
        lambda problem, rule: eosim.GradientFlow(problem, rule.lr),
        False,
    ),
    "order2": Entrant(
        "modified flow, order 2",
        _style.MODIFIED_2,
        _DASHED,
        lambda problem, rule: eosim.ModifiedFlow(problem, rule.lr, 2),
        False,
    ),
    "principal": Entrant(
        "principal flow",
        _style.PRINCIPAL_FLOW,
        "-",
        lambda problem, rule: eosim.PrincipalFlow(problem, rule.lr),
        False,
    ),
    "stable": Entrant("stable flow", _style.QUIET, _DOTTED, StableFlow, True),
    "central": Entrant("central flow", _style.INK, "-", CentralFlow, True),
    "rod": Entrant(
        "rod flow",
        _style.SKY,
        "-",
        lambda problem, rule: RodFlow(problem, rule, n_modes=RODS),
        True,
        width=2.6,  # the edge flow often lies on it
    ),
    "edge": Entrant(
        "edge flow",
        _style.ORANGE,
        "-",
        lambda problem, rule: EdgeFlow(problem, rule.lr),
        False,
    ),
}


@dataclass(frozen=True)
class Match:
    """A problem with a rule, how long both run, and what its panel shows."""

    title: str
    short: str
    steps: tuple[int, int]  # quick, full
    every: tuple[int, int]
    window: int
    shown: str  # a key of `Comparison.measured`
    logarithmic: bool = False


MATCHES = {
    "valley": Match("Valley", "valley", (400, 1500), (20, 20), 2, "loss", logarithmic=True),
    "bowl": Match("Sharp bowl", "bowl", (30, 60), (1, 1), 2, "loss", logarithmic=True),
    "quartic": Match("Quartic", "quartic", (100, 400), (4, 4), 2, "oscillation"),
    "network": Match("Network", "network", (40, 300), (4, 10), 2, "loss"),
    "rmsprop": Match("RMSProp", "RMSProp", (400, 2000), (20, 40), ADAPTIVE_WINDOW, "oscillation"),
    "adam": Match("Adam", "Adam", (160, 1000), (20, 40), ADAPTIVE_WINDOW, "oscillation"),
}


class Counted:
    """A problem that counts gradients and products with its Hessian; a dense Hessian is dim of them."""

    def __init__(self, problem: Any) -> None:
        self._problem = problem
        self.calls = 0
        self._price = {"gradient": 1, "hvp": 1, "third_derivative": 2, "hessian": problem.dim}

    def __getattr__(self, name: str) -> Any:
        if name == "hvp_at":
            raise AttributeError(name)  # products are counted one by one, as hvp
        value = getattr(self._problem, name)
        if name not in self._price:
            return value

        def counted(*arguments: Any) -> Any:
            self.calls += self._price[name]
            return value(*arguments)

        return counted


def contest(name: str) -> tuple[Any, Any, Any, Any]:
    """Problem, rule, theta0 and state of a match."""
    if name == "valley":
        m = VALLEY_TARGET
        terms = {(2, 1): 0.5, (0, 2): 0.5, (0, 1): -m, (0, 0): m**2 / 2}
        return eosim.Polynomial(terms), eosim.GradientDescent(VALLEY_LR), VALLEY_START, None
    if name == "bowl":
        return eosim.Quadratic(np.diag(BOWL)), eosim.GradientDescent(1.0), BOWL_START, None
    if name == "quartic":
        problem = eosim.Polynomial({(2,): QUARTIC_S / 2, (4,): -0.25})
        return problem, eosim.GradientDescent(QUARTIC_LR), [QUARTIC_START], None
    if name == "network":
        problem, theta = network()
        rule = eosim.GradientDescent(NETWORK_LR)
        start = eosim.run(problem, rule, theta, NETWORK_FROM, record={}, keep_theta=False)
        return problem, rule, start.final_state.theta, None
    toy, theta = eosim.Polynomial({(2, 1): 0.5, (0, 1): -1.0}), np.array(ADAPTIVE_START)
    if name == "rmsprop":
        rule: Any = eosim.RMSProp(ADAPTIVE_LR, ADAPTIVE_BETA2, eps=0.0)
        memory: tuple[Any, ...] = ()
    else:
        rule = eosim.Adam(ADAPTIVE_LR, beta2=ADAPTIVE_BETA2, eps=0.0, bias_correction=False)
        memory = (np.array([0.0, -1.0]),)
    root = theta[1] / (BELOW * rule.critical_sharpness())
    state = eosim.RunState(theta, (*memory, np.array([root**2, 1.0]), 0))
    return toy, rule, None, state


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Averages along each run, what flows predict of them, errors, endings and costs."""
    arrays: dict[str, np.ndarray] = {}
    for name, match in MATCHES.items():
        problem, rule, theta0, state = contest(name)
        flows, counters = {}, {}
        for entrant, kind in ENTRANTS.items():
            if state is None or kind.adaptive:
                counters[entrant] = Counted(problem)
                flows[entrant] = kind.make(counters[entrant], rule)
        found = eosim.compare(
            problem,
            rule,
            theta0,
            match.steps[0 if quick else 1],
            flows,
            state=state,
            every=match.every[0 if quick else 1],
            window=match.window,
            restart=False,
            rtol=RTOL,
            atol=ATOL,
        )
        arrays[f"{name}_step"] = found.at
        for quantity, values in found.measured.items():
            arrays[f"{name}_{quantity}"] = values
        for entrant, path in found.flows.items():
            key = f"{name}_{entrant}"
            arrays[f"{key}_errors"] = _errors(found, entrant)
            arrays[f"{key}_status"] = np.array(path.status.name)
            arrays[f"{key}_reached"] = np.array(found.at[len(path) - 1] if len(path) else 0)
            steps = max(found.at[len(path) - 1] if len(path) else 0, 1)
            counts = (path.settings["evaluations"], counters[entrant].calls)
            arrays[f"{key}_cost"] = np.array(counts) / steps
            arrays[f"{key}_centred"] = found.centred_error[entrant]
            arrays[f"{key}_end"] = path.theta[-1].real if len(path) else np.zeros(0)
            for quantity in ("loss", "oscillation"):
                arrays[f"{key}_{quantity}"] = found.predicted[entrant][quantity]
    return arrays


def _errors(found: eosim.Comparison, entrant: str) -> np.ndarray:
    """The four medians of `JUDGED`; NaN where the flow did not get to an oscillation."""
    square = found.measured["oscillation"].copy()
    square[[0, -1]] = 0  # at the ends averages are of half the steps
    judged = np.flatnonzero(square >= SWINGING * square.max())
    judged = judged[judged < len(found.flows[entrant])]
    if len(judged) == 0:
        return NOTHING
    theta = found.iterates["theta"][found.at]
    moved = np.maximum.accumulate(np.linalg.norm(theta - theta[0], axis=1))
    errors = [
        found.real_error[entrant][judged] / np.sqrt(np.maximum.accumulate(square))[judged],
        found.centred_error[entrant][judged] / moved[judged],
    ]
    for quantity in ("loss", "oscillation"):
        actual = found.measured[quantity][judged]
        errors.append(np.abs(found.predicted[entrant][quantity][judged] / actual - 1))
    return np.array([np.median(error) for error in errors])


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Who follows what, and where each breaks."""

    def error(match: str, entrant: str, what: str) -> float:
        return float(arrays[f"{match}_{entrant}_errors"][JUDGED.index(what)])

    def ended(match: str, entrant: str) -> str:
        return str(arrays[f"{match}_{entrant}_status"])

    def growth(entrant: str) -> float:
        square = arrays[f"bowl_{entrant}_oscillation"]
        return float(np.sqrt(square[-1] / square[-2]))

    z = BOWL[0]
    order = [error("valley", name, "centre") for name in ("edge", "rod", "central", "gradient")]
    excess = QUARTIC_S - 2 / QUARTIC_LR
    blown = ended("quartic", "principal") in ("DIVERGED", "STALLED")
    rows = [
        Row("valley: centres, edge < rod < central < gradient", 1, 0, int(order == sorted(order))),
        Row(
            "valley: edge flow, error of the swing",
            0.25,
            0,
            error("valley", "edge", "swing"),
            "at most",
        ),
        Row(
            "valley: gradient flow, end to centre",
            VALLEY_TARGET - 2 / VALLEY_LR,
            0.5,
            float(arrays["valley_gradient_centred"][-2]),
        ),
        Row(
            "bowl: principal flow, iterates",
            1e-3,
            0,
            error("bowl", "principal", "iterates"),
            "at most",
        ),
        Row("bowl: edge flow, factor per step", z - 1, 1e-4, growth("edge")),
        Row("bowl: rod flow, its factor per step", np.exp(z**2 / 4 - 1), 1e-4, growth("rod")),
        Row("bowl: central flow LEFT_RANGE", 1, 0, int(ended("bowl", "central") == "LEFT_RANGE")),
        Row(
            "quartic: rod flow, mean square swing",
            excess,
            1e-3,
            float(arrays["quartic_rod_oscillation"][-1]),
        ),
        Row(
            "quartic: edge flow, mean square swing",
            excess,
            1e-3,
            float(arrays["quartic_edge_oscillation"][-1]),
        ),
        Row(
            "quartic: central flow rests where H = 2/h, |w|",
            np.sqrt(excess / 3),
            1e-4,
            float(np.abs(arrays["quartic_central_end"][0])),
        ),
        Row("quartic: principal flow DIVERGED or STALLED", 1, 0, int(blown)),
        Row(
            "network: gradient flow, centre",
            0.2,
            0,
            error("network", "gradient", "centre"),
            "at least",
        ),
    ]
    for name, bound in (("central", 0.1), ("rod", 0.03), ("edge", 0.03)):
        label = ENTRANTS[name].label
        rows.append(
            Row(f"network: {label}, centre", bound, 0, error("network", name, "centre"), "at most")
        )
    rows += [
        Row(
            "RMSProp: central flow, swing", 0.15, 0, error("rmsprop", "central", "swing"), "at most"
        ),
        Row("Adam: central flow, swing", ROUGHLY, 0, error("adam", "central", "swing"), "at most"),
        Row("RMSProp: stable flow, swing", 1, 0, error("rmsprop", "stable", "swing")),
        Row(
            "network: products, principal flow / edge flow",
            10,
            0,
            float(arrays["network_principal_cost"][1] / arrays["network_edge_cost"][1]),
            "at least",
        ),
    ]
    return rows


# Inches: the column of names, the height of a panel and of a row, a tile, the gap between groups.
NAMES, PANEL, LINE, TILE, GAP = 1.95, 1.75, 0.33, 0.37, 0.2
GROUPS, TABLE = 4 * (len(MATCHES) * TILE + GAP), len(ENTRANTS) * LINE
COSTS, BOTTOM, HEADER = 0.72, 0.95, 1.02
PANELS = ("valley", "bowl", "network", "rmsprop")
QUESTIONS = {
    "iterates": ("Iterates", r"$\theta_k$ themselves"),
    "centre": ("Centre", "of the swing"),
    "loss": ("Mean loss", "over the swing"),
    "swing": ("Size of the swing", "its mean square"),
}
ENDINGS = {
    "LEFT_RANGE": "undefined",
    "DIVERGED": "diverges",
    "STALLED": "blows up",
    "BUDGET_SPENT": "too costly",
}
LEVELS = (("#0072b2", "white"), ("#b9dcf2", _style.INK), ("white", _style.QUIET))
LEVEL_NAMES = (f"off by < {100 * FOLLOWED:g} %", f"off by < {100 * ROUGHLY:g} %", "off by more")


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Four matches as curves; below, who answers which question in all six."""
    width = NAMES + GROUPS + COSTS + 0.12
    height = 1.02 + PANEL + 0.62 + HEADER + TABLE + BOTTOM
    figure = _style.canvas(
        width,
        height,
        "At the edge no flow does it all: edge and central flow give averages, only the principal flow "
        "gives iterates, on a quadratic",
        textwrap.fill(_reading(arrays), 235) + "\n"
        "Own settings. Valley: $yx^2/2 + (y-104)^2/2$, $h = 0.02$; sharp bowl: quadratic, "
        "$h\\lambda = 2.2$ and 0.3; quartic: $h\\lambda = 2.1$ at its minimum; network: 25 "
        "parameters, at its edge; RMSProp and Adam:\n$yx^2/2 - y$, whose curvature rises for ever. "
        "Averages over 2 steps, for RMSProp and "
        f"Adam {ADAPTIVE_WINDOW}. Solved to $10^{{{np.log10(RTOL):.0f}}}$. Cost per step on the network: "
        "gradients and products with the Hessian.",
    )
    across = (GROUPS + COSTS - 0.1) / len(PANELS)
    for index, name in enumerate(PANELS):
        panel = (NAMES + index * across + 0.3, height - 1.02 - PANEL, across - 0.55, PANEL)
        _draw_panel(_axes(figure, *panel), name, arrays)
    _draw_key(_axes(figure, 0.0, height - 1.02 - PANEL, NAMES, PANEL))
    table = _axes(figure, 0.0, BOTTOM, width, HEADER + TABLE)
    table.set_axis_off()
    table.set_xlim(0, width)
    table.set_ylim(TABLE, -HEADER)
    _draw_names(table)
    for index, question in enumerate(JUDGED):
        _draw_group(table, NAMES + index * (len(MATCHES) * TILE + GAP), question, arrays)
    _draw_costs(table, NAMES + GROUPS, arrays)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes whose place is given in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _reading(arrays: dict[str, np.ndarray]) -> str:
    """What numbers, frames and crosses mean: which flows end early, where, and how."""
    found = [
        f"{ENTRANTS[entrant].label}, {MATCHES[match].short}: {ENDINGS[status]} "
        f"at {int(arrays[f'{match}_{entrant}_reached'])}"
        for match in MATCHES
        for entrant in ENTRANTS
        if (status := str(arrays.get(f"{match}_{entrant}_status", "COMPLETED"))) != "COMPLETED"
    ]
    text = (
        "Numbers: median error in %, over the iterates that swing. Frames: the best, ties, and all "
        f"below {100 * TIED:g} %."
    )
    return text + (f" Crosses: {'; '.join(found)}." if found else "")


def _draw_panel(axes: Axes, name: str, arrays: dict[str, np.ndarray]) -> None:
    match = MATCHES[name]
    swing = match.shown == "oscillation"
    step, measured = arrays[f"{name}_step"], arrays[f"{name}_{match.shown}"]
    inner = slice(1, -1)
    exponent = int(np.floor(np.log10(measured[inner].max()) / 2)) if swing else 0
    unit = f", $10^{{{exponent}}}$" if exponent < -1 else ""
    axes.set_title(match.title, pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, f"root mean square swing{unit}" if swing else "mean loss")

    def scale(values: np.ndarray) -> np.ndarray:
        return np.sqrt(values) / (10.0**exponent if unit else 1) if swing else values

    look = {**_style.points(_style.GRADIENT_DESCENT, size=6), "alpha": 0.45, "markeredgewidth": 0}
    axes.plot(step[inner], scale(measured)[inner], **look, zorder=1)
    for entrant, kind in ENTRANTS.items():
        values = arrays.get(f"{name}_{entrant}_{match.shown}", np.zeros(0))
        if swing and not values.any():
            continue
        line = scale(values)[1:]
        axes.plot(step[1 : len(values)], line, color=kind.color, ls=kind.line, lw=kind.width)
    if match.logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(measured[inner].min() / 30, measured[inner].max() * 3)
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.6 * scale(measured[inner]).max())
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlim(0, step[-1])
    axes.xaxis.set_major_locator(FixedLocator([0, step[-1] // 2, step[-1]]))
    axes.set_xlabel("step", labelpad=1)


def _draw_names(axes: Axes) -> None:
    """The rows, with a faint line above each."""
    for row, kind in enumerate(ENTRANTS.values()):
        middle = (row + 0.5) * LINE
        axes.plot([0.18, 0.44], [middle, middle], color=kind.color, ls=kind.line, lw=2.4)
        axes.text(0.52, middle, kind.label, va="center", fontsize=8.5)
        axes.axhline(row * LINE, xmin=0.014, color=_style.FAINT, lw=0.7, zorder=0)


def _draw_group(axes: Axes, left: float, question: str, arrays: dict[str, np.ndarray]) -> None:
    """One question: a column per match, a tile per flow, and a frame around the best."""
    title, words = QUESTIONS[question]
    axes.text(left, 0.1 - HEADER, title, fontsize=10.5, va="top", weight="bold")
    axes.text(left, 0.28 - HEADER, words, fontsize=7.5, va="top", color=_style.QUIET)
    for column, (name, match) in enumerate(MATCHES.items()):
        x = left + column * TILE
        axes.text(
            x + TILE / 2, -0.05, match.short, fontsize=7.5, rotation=90, ha="center", va="bottom"
        )
        errors = [
            float(arrays.get(f"{name}_{entrant}_errors", NOTHING)[JUDGED.index(question)])
            for entrant in ENTRANTS
        ]
        best = min(max(CLOSE * np.nanmin(errors), TIED), ROUGHLY)
        for row, (entrant, error) in enumerate(zip(ENTRANTS, errors, strict=True)):
            if not np.isnan(error):
                _draw_tile(axes, x, row * LINE, error, error <= best)
            if str(arrays.get(f"{name}_{entrant}_status", "COMPLETED")) != "COMPLETED":
                place = (x + TILE - 0.065, row * LINE + 0.07)
                look = {"marker": "x", "ms": 3, "mew": 1.1, "color": _style.VERMILLION}
                axes.plot(*place, **look, zorder=4)


def _draw_tile(axes: Axes, x: float, y: float, error: float, best: bool) -> None:
    level = int(error >= FOLLOWED) + int(error >= ROUGHLY)
    fill, ink = LEVELS[level]
    edge = _style.INK if best else _style.FAINT
    place = (x + 0.015, y + 0.02)
    size = {"width": TILE - 0.03, "height": LINE - 0.04}
    look = {"facecolor": fill, "edgecolor": edge, "lw": 1.8 if best else 0.6, "zorder": 2 + best}
    axes.add_patch(Rectangle(place, **size, **look))
    if level < 2:
        text = f"{100 * error:.0f}" if error >= TIED else "<1"
        middle = (x + TILE / 2, y + LINE / 2)
        weight = "bold" if best else "normal"
        axes.text(
            *middle,
            text,
            color=ink,
            fontsize=7.5,
            ha="center",
            va="center",
            weight=weight,
            zorder=5,
        )


def _draw_costs(axes: Axes, left: float, arrays: dict[str, np.ndarray]) -> None:
    axes.text(left, 0.1 - HEADER, "Cost", fontsize=10.5, va="top", weight="bold")
    axes.text(left, 0.28 - HEADER, "per step", fontsize=7.5, va="top", color=_style.QUIET)
    for row, entrant in enumerate(ENTRANTS):
        cost = f"{arrays[f'network_{entrant}_cost'][1]:.0f}"
        axes.text(left + 0.38, (row + 0.5) * LINE, cost, fontsize=8.5, ha="right", va="center")


def _draw_key(axes: Axes) -> None:
    """What points and tiles mean, left of the panels."""
    axes.set_axis_off()
    axes.set_xlim(0, NAMES)
    axes.set_ylim(PANEL, 0)
    look = {**_style.points(_style.GRADIENT_DESCENT, size=6), "alpha": 0.45, "markeredgewidth": 0}
    axes.add_line(Line2D([0.31], [0.1], **look))
    axes.text(0.52, 0.1, "the optimizer", va="center", fontsize=8.5)
    axes.text(0.52, 0.36, "lines: flows, below", va="center", fontsize=8.5)
    for index, (text, (fill, _)) in enumerate(zip(LEVEL_NAMES, LEVELS, strict=True)):
        y = 0.8 + index * 0.26
        edge = {"edgecolor": _style.FAINT, "lw": 0.6}
        axes.add_patch(Rectangle((0.18, y - 0.1), 0.26, 0.2, facecolor=fill, **edge))
        axes.text(0.52, y, text, va="center", fontsize=8.5)
    axes.text(0.18, 1.62, "no tile: no such flow", va="center", fontsize=7.5, color=_style.QUIET)
