r"""Full batches come to rest at the edge of stability, batches of 4 at the stochastic edge far below it.

Quadratic regression, from an NTK below both edges. With full batches the largest eigenvalue rises
beyond :math:`\eta\lambda_{\max} = 2` and returns to it. With batches of four of sixty it stays below a
quarter of that, and what comes to rest near 1 is the noise kernel norm K: the one whose value 1 is the
mean-square threshold ("exact"), and close below it the limit of many samples ("delocalised"),

.. math:: K = \frac{n - B}{B (n - 1)} \sum_a \frac{\eta\lambda_a}{2 - \eta\lambda_a}.

At K = 1 the second moment of the residuals neither grows nor decays. Single runs contract a little there,
so that they rest on both sides of it; some diverge. Larger batches (5, 8 and 15) fit the data, and stop,
before K reaches 1; all runs with 3 diverge. Every number is of the runs that survive, and says how many
they are.

The two edges: Agarwala & Pennington 2024, arXiv 2404.19261; the model: Agarwala, Pedregosa & Pennington
2022, arXiv 2210.04860. The settings are this project's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import eosim
from eosim.problems.quadratic_regression import random_quadratic_regression
from eosim.sampling import noise_factor
from eosim.stability import noise_kernel_norm
from figures import _style
from figures._headline import Row

# Our choice: twice as many parameters as data, rate 1.
N_DATA, N_PARAMETERS, LR = 60, 120, 1.0
# Our choice: starts below both edges, with curvatures Q (of this standard deviation) that take runs to
# an edge and few beyond it. From the second start the norm reaches 1 for batches below 5.
STARTS: dict[str, dict[str, float]] = {
    "full": {"sigma": 0.25, "ntk_max": 1.4 / LR},
    "small": {"sigma": 0.05, "ntk_max": 0.15 / LR},
}
N_STEPS = 800
SMALL = 4
BATCHES = (3, SMALL, 5, 8, 15)
SEEDS_QUICK, SEEDS_FULL = 20, 100
EVERY, EXACT_EVERY = 20, 80
SHOWN = 20  # seeds of which single runs are drawn
# Our choice: with a loss below this the residuals are 1e-5, and move the NTK no further than that.
DONE = 1e-10
# The median of 20 runs. Full batches: 80 % end between 1.97 and 2.08, most of them at 2, which gives a
# standard error of 0.01. K at B = 4: 80 % end between 0.98 and 1.06, which gives 0.01 as well, and the
# delocalised norm 0.06 lower. Three of these, and what is left of the overshoot.
EDGE_TOLERANCE, EXACT_TOLERANCE, DELOCALISED_TOLERANCE = 0.04, 0.05, 0.12
# Our choice: a quarter of the edge.
FAR_BELOW = 0.5
# Of 100 runs 80 survive at B = 4: fewer than half of 20 do once in a thousand cases. At 3 none of 100
# does, and from 5 on all do; one of 20 may be lost, as divergence is never excluded.
MOST, FEW, LOST = 0.5, 0.1, 0.1

FULL_COLOR, SMALL_COLOR = _style.BLUE, _style.VERMILLION
EDGE_LINE: dict[str, Any] = {"color": _style.INK, "lw": 1.4}


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Largest eigenvalue, norms and loss along runs; infinite after a run has diverged."""
    n_seeds = SEEDS_QUICK if quick else SEEDS_FULL
    arrays = {f"full_{name}": values for name, values in _track("full", N_DATA, n_seeds).items()}
    for size in BATCHES:
        found = _track("small", size, n_seeds)
        arrays |= {f"batch{size}_{name}": values for name, values in found.items()}
    return arrays


def _track(start: str, batch_size: int, n_seeds: int) -> dict[str, np.ndarray]:
    """Of all seeds: (seed, record); a run that is done stays where it is, one that diverged is infinite."""
    step = np.arange(0, N_STEPS + 1, EVERY)
    arrays = {name: np.full((n_seeds, len(step)), np.inf) for name in ("top", "norm", "loss")}
    # The exact norm costs a hundred times the others: along the runs of one batch size only.
    sparse = step[:: EXACT_EVERY // EVERY] if batch_size == SMALL else step[-1:]
    exact, survived = np.full((n_seeds, len(sparse)), np.inf), np.zeros(n_seeds, bool)
    for seed in range(n_seeds):
        path = eosim.run(
            random_quadratic_regression(N_DATA, N_PARAMETERS, seed=seed, **STARTS[start]),
            eosim.GradientDescent(LR),
            np.zeros(N_PARAMETERS),
            N_STEPS,
            batch_size=batch_size,
            seed=np.random.SeedSequence(0, spawn_key=(seed,)),
            record={"ntk": lambda problem, theta: problem.ntk(theta), "loss": eosim.measure.loss},
            every=EVERY,
            keep_theta=False,
            stop_below=DONE,
        )
        survived[seed] = path.status is not eosim.Status.DIVERGED
        last = len(step) if survived[seed] else int(np.searchsorted(step, path["step"][-1]))
        for column in range(last):
            row = min(column, len(path["step"]) - 1)
            ntk = path["ntk"][row]
            spectrum = np.linalg.eigvalsh(ntk)
            arrays["top"][seed, column] = LR * spectrum[-1]
            arrays["loss"][seed, column] = path["loss"][row]
            arrays["norm"][seed, column] = noise_kernel_norm(
                spectrum, LR, batch_size, kind="delocalised"
            )
            if step[column] in sparse:
                where = np.searchsorted(sparse, step[column])
                exact[seed, where] = noise_kernel_norm(ntk, LR, batch_size)
    return arrays | {"step": step, "exact_step": sparse, "exact": exact, "survived": survived}


def _final(arrays: dict[str, np.ndarray], name: str, quantity: str) -> np.ndarray:
    """Of the runs that survive."""
    return arrays[f"{name}_{quantity}"][arrays[f"{name}_survived"], -1]


def _counts(arrays: dict[str, np.ndarray], name: str) -> tuple[int, int]:
    """Runs that survive, and all."""
    survived = arrays[f"{name}_survived"]
    return int(survived.sum()), len(survived)


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Where the survivors rest, and how many they are."""
    kept = {name: _counts(arrays, name) for name in ("full", *(f"batch{b}" for b in BATCHES))}
    share = {name: alive / total for name, (alive, total) in kept.items()}
    small = f"batch{SMALL}"
    alive, total = kept[small]
    tops = _final(arrays, "full", "top")
    rows = [
        Row(f"full batches: share that survives of {total}", 1, 0, share["full"]),
        Row("full: final eta * lambda_max, median", 2, EDGE_TOLERANCE, float(np.median(tops))),
        Row(
            "full: its peak, median",
            2 + EDGE_TOLERANCE,
            0,
            float(np.median(arrays["full_top"][arrays["full_survived"]].max(axis=1))),
            "at least",
        ),
        Row(f"B = {SMALL}: share that survives of {total}", MOST, 0, share[small], "at least"),
    ]
    for quantity, text, tolerance in (
        ("exact", "exact", EXACT_TOLERANCE),
        ("norm", "delocalised", DELOCALISED_TOLERANCE),
    ):
        median = float(np.median(_final(arrays, small, quantity)))
        rows.append(Row(f"B = {SMALL}: final K, {text}, median of {alive}", 1, tolerance, median))
    largest = arrays[f"{small}_top"][arrays[f"{small}_survived"]].max()
    text = f"B = {SMALL}: eta * lambda_max, largest of {alive} runs"
    rows.append(Row(text, FAR_BELOW, 0, float(largest), "at most"))
    rows.append(Row("B = 3: share that survives", FEW, 0, share["batch3"], "at most"))
    for size in BATCHES[2:]:
        name = f"batch{size}"
        rows.append(Row(f"B = {size}: share that survives", 1, LOST, share[name], "at least"))
    medians = [np.median(_final(arrays, f"batch{size}", "exact")) for size in BATCHES[1:]]
    rows.append(Row("final K over that of the next smaller B", 1, 0, _ratio(medians), "at most"))
    return rows


def _ratio(values: list[Any]) -> float:
    """The largest of each over the one before it."""
    return float(np.max(np.divide(values[1:], values[:-1])))


# Where the names of batch sizes stand, beside their runs and off the line.
LABELS = {4: 1.07, 5: 0.88, 8: 0.54, 15: 0.25}


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Two ensembles along their runs, and where runs end by batch size."""
    total = _counts(arrays, "full")[1]
    lost = total - _counts(arrays, "batch3")[0]
    figure = _style.canvas(
        12.0,
        7.4,
        "Full batches come to rest at the edge of stability, batches of 4 at the stochastic edge",
        f"Quadratic regression, own settings: n = {N_DATA}, P = {N_PARAMETERS}, rate 1, {total} seeds "
        f"each; full batches from $\\eta\\lambda_{{\\max}}$ = 1.4 with $\\sigma$ = 0.25, all others from "
        f"0.15 with $\\sigma$ = 0.05. Thin: {SHOWN} runs; points: medians of the survivors, pale:\n"
        "10 to 90 % of them. The norm K is 1 at the threshold of mean-square stability (exact) or, "
        "delocalised, at its limit of many samples. B = 5, 8 and 15 fit the data before K reaches 1; "
        f"{lost} of {total} runs with B = 3 diverge.",
    )
    edges = _style.margins(figure, left=0.78, right=0.25, top=0.98, bottom=1.0)
    grid = figure.add_gridspec(2, 3, wspace=0.28, hspace=0.5, **edges)
    panels = [[figure.add_subplot(grid[row, column]) for column in range(3)] for row in range(2)]
    _draw_top(panels[0][0], arrays, "full", FULL_COLOR)
    panels[0][0].set_title("Full batches: the edge, 2", pad=_style.SUBTITLE_PAD)
    panels[0][0].set_ylabel(r"$\eta\lambda_{\max}$   rate × largest eigenvalue")
    _draw_loss(panels[1][0], arrays)
    _draw_top(panels[0][1], arrays, f"batch{SMALL}", SMALL_COLOR)
    panels[0][1].set_title(f"B = {SMALL}: far below that edge", pad=_style.SUBTITLE_PAD)
    _draw_norm(panels[1][1], arrays)
    _draw_final_norm(panels[0][2], arrays)
    _draw_plane(panels[1][2], arrays)
    return figure


def _survivors(arrays: dict[str, np.ndarray], name: str) -> str:
    alive, total = _counts(arrays, name)
    return f"{alive} of {total} runs survive"


def _runs(axes: Axes, arrays: dict[str, np.ndarray], name: str, quantity: str, color: str) -> None:
    """Single runs, those that diverge up to an open point, and the range of the survivors."""
    step, values = arrays[f"{name}_step"], arrays[f"{name}_{quantity}"]
    survived = arrays[f"{name}_survived"]
    shown = np.where(np.isfinite(values), values, np.nan)
    axes.plot(step, shown[:SHOWN][survived[:SHOWN]].T, color=color, lw=0.7, alpha=0.28)
    for row in shown[:SHOWN][~survived[:SHOWN]]:
        axes.plot(step, row, color=_style.QUIET, lw=0.8)
        last = np.flatnonzero(np.isfinite(row))[-1]
        axes.plot(step[last], row[last], **_style.points(_style.QUIET, filled=False, size=4))
    low, high = np.quantile(values[survived], [0.1, 0.9], axis=0)
    axes.fill_between(step, low, high, color=color, alpha=0.16, lw=0)
    axes.set_xlim(-0.01 * step[-1], 1.01 * step[-1])
    axes.set_xlabel("step")


def _medians(
    axes: Axes, arrays: dict[str, np.ndarray], name: str, quantity: str, **look: Any
) -> None:
    steps = arrays[f"{name}_exact_step" if quantity == "exact" else f"{name}_step"]
    median = np.median(arrays[f"{name}_{quantity}"][arrays[f"{name}_survived"]], axis=0)
    every = 1 if quantity == "exact" else 2
    axes.plot(steps[::every], median[::every], zorder=4, **_style.points(**look))


def _draw_top(axes: Axes, arrays: dict[str, np.ndarray], name: str, color: str) -> None:
    _runs(axes, arrays, name, "top", color)
    axes.axhline(2, **EDGE_LINE)
    _medians(axes, arrays, name, "top", color=color, size=3.4)
    axes.set_ylim(0, 2.75)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1, 1.5, 2, 2.5]))
    _style.subtitle(axes, _survivors(arrays, name) + "; line: edge of stability")


def _draw_loss(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    _runs(axes, arrays, "full", "loss", FULL_COLOR)
    _medians(axes, arrays, "full", "loss", color=FULL_COLOR, size=3.4)
    axes.set_yscale("log")
    axes.set_ylim(1e-7, 3)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("$L$   loss")
    axes.set_title("Full batches: the loss goes on falling", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "not monotonically; K = 0, as there is no noise")


def _draw_norm(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    name = f"batch{SMALL}"
    _runs(axes, arrays, name, "norm", SMALL_COLOR)
    axes.axhline(1, **EDGE_LINE)
    _medians(axes, arrays, name, "norm", color=SMALL_COLOR, size=3.4)
    _medians(axes, arrays, name, "exact", color=_style.INK, size=4.6, marker="s")
    axes.set_ylim(0, 1.75)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1, 1.5]))
    axes.set_ylabel("$K$   noise kernel norm")
    handles = [
        Line2D([], [], label="exact, median", **_style.points(_style.INK, marker="s")),
        Line2D([], [], label="delocalised, median", **_style.points(SMALL_COLOR, size=3.4)),
        Line2D([], [], label="diverges", **_style.points(_style.QUIET, filled=False, size=4)),
    ]
    axes.legend(handles=handles, loc="lower right", handletextpad=0.2, labelspacing=0.3)
    axes.set_title(f"B = {SMALL}: the stochastic edge, K = 1", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, _survivors(arrays, name) + "; line: stochastic edge")


def _draw_final_norm(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    """Exact norms of all survivors; the line is that of the start."""
    axes.axhline(1, **EDGE_LINE)
    # The norm of one spectrum is proportional to kappa.
    sizes = np.geomspace(2.7, N_DATA, 60)
    kappa = (N_DATA - sizes) / (sizes * (N_DATA - 1))
    unit = np.median(arrays[f"batch{SMALL}_norm"][:, 0]) / noise_factor(N_DATA, SMALL)
    axes.plot(sizes, unit * kappa, color=_style.QUIET, lw=1.2, ls=(0, (2.2, 1.3)))
    for size in (*BATCHES, N_DATA):
        name = "full" if size == N_DATA else f"batch{size}"
        final = np.zeros(1) if size == N_DATA else np.sort(_final(arrays, name, "exact"))
        alive, total = _counts(arrays, name)
        color = FULL_COLOR if size == N_DATA else SMALL_COLOR
        if alive:
            spread = np.exp(np.linspace(-0.07, 0.07, len(final)))
            dots = {"ls": "none", "marker": ".", "ms": 4, "mew": 0, "color": color, "alpha": 0.5}
            axes.plot(size * spread, final, **dots)
            axes.plot(size, np.median(final), **_style.points(color))
        axes.text(size, 1.36, f"{alive}", ha="center", va="center", fontsize=7.5)
    axes.text(2.75, 1.5, f"survivors of {total}:", ha="left", va="center", fontsize=7.5)
    axes.set_xscale("log")
    axes.set_xlim(2.5, 75)
    axes.set_ylim(-0.05, 1.6)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator([*BATCHES, N_DATA]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    axes.set_xlabel("$B$   batch size")
    axes.set_ylabel("$K$   final norm, exact")
    axes.set_title(f"B = {SMALL} ends at the edge, larger batches below", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "points: median; dots: every survivor; dashed: at the start")


def _draw_plane(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.axhline(1, **EDGE_LINE)
    axes.axvline(2, **EDGE_LINE)
    for size in (*BATCHES[1:], N_DATA):
        name = "full" if size == N_DATA else f"batch{size}"
        top = _final(arrays, name, "top")
        norm = np.zeros_like(top) if size == N_DATA else _final(arrays, name, "exact")
        color = FULL_COLOR if size == N_DATA else SMALL_COLOR
        axes.plot(top, norm, alpha=0.6, **_style.points(color, size=3.4))
        text = "full batches" if size == N_DATA else f"B = {size}"
        place = (1.85, 0.1) if size == N_DATA else (0.52, LABELS[size])
        side = "right" if size == N_DATA else "left"
        axes.text(*place, text, ha=side, va="center", fontsize=7.5, color=color)
    axes.set_xlim(0, 2.4)
    axes.set_ylim(-0.05, 1.3)
    axes.xaxis.set_major_locator(FixedLocator([0, 0.5, 1, 1.5, 2]))
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    axes.set_xlabel(r"$\eta\lambda_{\max}$   rate × largest eigenvalue")
    axes.set_ylabel("$K$   final norm, exact")
    axes.set_title("Where runs end", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "lines: both edges; points: every survivor")
