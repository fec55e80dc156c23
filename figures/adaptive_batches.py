r"""Batches of less than all samples keep Adam below its edge of stability, as their noise enlarges P.

The largest eigenvalue of :math:`P^{-1}H`, H of all samples, over its threshold 38/lr: full batches take it
to 1, batches of all samples but one to 4 to 11 % less, of half of them to an eighth, of 10 of 500 to a
hundredth. P is made of the squares of batch gradients, on average

.. math:: E|g_b|^2 = |g|^2 + \kappa V, \qquad \kappa = \frac{n - B}{B (n - 1)},

with V the variance of the samples' gradients, which gives its root mean square to some per cent. The noise
acts twice: through kappa V, and through the motion that it keeps up in g. The largest eigenvalue of H
itself falls too, at B = 10 to between half and two thirds. These are the second halves of runs of a few
thousand steps; the ratios go on rising slowly, in 20,000 steps to 0.22 at B = 250 and to 0.02 at B = 10.

That the edge is approached as batches grow: Cohen et al. 2022, arXiv 2207.14484. Network, data and
settings are this project's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import eosim
from eosim.sampling import noise_factor
from figures import _digits_network, _style
from figures._digits_network import N_SAMPLES
from figures._headline import Row

LR = 1e-3
# Our choice: from a fiftieth of the data to all but one sample, evenly in log kappa, and all.
SIZES_QUICK = (10, 50, 250, 450, 490, 499, N_SAMPLES)
SIZES_FULL = (10, 25, 50, 100, 250, 400, 450, 480, 490, 495, 499, N_SAMPLES)
STEPS_QUICK, STEPS_FULL = 2000, 4000
SEEDS_QUICK, SEEDS_FULL = 1, 3
# Full batches rest at the edge up to oscillations of some per cent: 0.986 to 1.010 at three seeds.
EDGE_TOLERANCE = 0.05
# Between 0.099 and 0.142, and between 0.0093 and 0.0127, at three seeds, early and late: a fifth more.
HALF, TINY = 0.17, 0.016
# Between 0.89 and 0.97.
ALL_BUT_ONE = 0.85
# P lags behind: it is an average over some hundred steps of a falling gradient. Up to 6.9 % were found up
# to this size; beyond it |g| swings as it does at the edge, and 20 to 40 samples of it leave up to 11 %.
NOISE_TOLERANCE, SWINGS_BEYOND = 0.1, 490
# Our choice: B = 10 keeps 0.51 to 0.70 of full batches', while its P is larger by a factor of 60 to 100.
SHARPNESS_KEPT = 0.4

FULL_COLOR, BATCH_COLOR = _style.BLUE, _style.VERMILLION


def gradient_squares(problem: eosim.Perceptron, theta: np.ndarray) -> tuple[float, float]:
    """|g|^2, and V: the mean of |g_i - g|^2 over the samples' gradients g_i (one hidden tanh layer)."""
    cut = int(np.prod(problem.shapes[0]))
    first, second = (
        block.reshape(shape)
        for block, shape in zip((theta[:cut], theta[cut:]), problem.shapes, strict=True)
    )
    hidden = np.tanh(problem.inputs @ first[:, :-1].T + first[:, -1])
    outer = problem.outputs(theta) - problem.targets
    inner = (outer @ second[:, :-1]) * (1 - hidden**2)
    # A sample's gradient of a layer is the product of its error there and its input, 1 for the bias.
    squares = sum(
        (error**2).sum(axis=1) * ((entering**2).sum(axis=1) + 1)
        for error, entering in ((outer, hidden), (inner, problem.inputs))
    )
    gradient = problem.gradient(theta)
    square = float(gradient @ gradient)
    return square, float(np.mean(squares)) - square


def _squares(problem: Any, theta: np.ndarray, *, rule: Any, state: Any) -> np.ndarray:
    """|P|^2, |g|^2 and V; nan before the first step, when there is no P."""
    if state[2] == 0:
        return np.full(3, np.nan)
    diagonal = rule.preconditioner(state)
    return np.array([diagonal @ diagonal, *gradient_squares(problem, theta)])


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Along runs (seed, size, record): ratio, largest eigenvalue of H, loss and squares."""
    problem = _digits_network.load_problem()
    sizes = SIZES_QUICK if quick else SIZES_FULL
    n_steps = STEPS_QUICK if quick else STEPS_FULL
    found: dict[str, list[Any]] = {"ratio": [], "sharpness": [], "loss": [], "squares": []}
    for seed in range(SEEDS_QUICK if quick else SEEDS_FULL):
        for size in sizes:
            path = _digits_network.follow(
                problem,
                _digits_network.adam(LR),
                n_steps,
                seed=seed,
                batch_size=size,
                record={"squares": _squares},
            )
            for name, key in (("ratio", "edge.ratio"), ("sharpness", "edge.sharpness")):
                found[name].append(path[key])
            for name in ("loss", "squares"):
                found[name].append(path[name])
    arrays = {
        name: np.reshape(rows, (-1, len(sizes), *np.shape(rows)[1:]))
        for name, rows in found.items()
    }
    return arrays | {"size": np.array(sizes), "step": path["step"]}


def _late(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The second halves of runs: (seed, size, record)."""
    return arrays[name][:, :, arrays["step"] >= arrays["step"][-1] / 2]


def _medians(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    return np.asarray(np.median(_late(arrays, name), axis=2))


def _noise(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.array([noise_factor(N_SAMPLES, int(size)) for size in arrays["size"]])


def _roots(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """|P| over the second half, root mean square, and what batch gradients give: (seed, size)."""
    P, gradient, variance = np.moveaxis(_late(arrays, "squares").mean(axis=2), -1, 0)
    return np.sqrt(P), np.sqrt(gradient + _noise(arrays) * variance)


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Where full batches rest, the fall with smaller ones at every seed, and what P is made of."""
    ratio, sharpness = _medians(arrays, "ratio"), _medians(arrays, "sharpness")
    size, seeds = list(arrays["size"]), len(ratio)
    P, expected = _roots(arrays)
    full = ratio[:, -1]
    rows = [
        Row(f"full batches: late ratio, seed {seed}", 1, EDGE_TOLERANCE, float(full[seed]))
        for seed in range(seeds)
    ]
    steps = ratio[:, 1:] / ratio[:, :-1]
    rows += [
        Row("ratio over that of the next smaller B, least", 1, 0, float(steps.min()), "at least"),
        Row(
            f"B = {N_SAMPLES - 1}: ratio, least",
            ALL_BUT_ONE,
            0,
            float(ratio[:, -2].min()),
            "at least",
        ),
        Row("B = 250: ratio, largest", HALF, 0, float(ratio[:, size.index(250)].max()), "at most"),
        Row("B = 10: ratio, largest", TINY, 0, float(ratio[:, size.index(10)].max()), "at most"),
        Row(
            f"B <= {SWINGS_BEYOND}: |P| over that of batch gradients, |. - 1|",
            NOISE_TOLERANCE,
            0,
            float(np.abs(P / expected - 1)[:, arrays["size"] <= SWINGS_BEYOND].max()),
            "at most",
        ),
        Row(
            "largest eigenvalue of H over that of B = n, least",
            SHARPNESS_KEPT,
            0,
            float((sharpness / sharpness[:, -1:]).min()),
            "at least",
        ),
    ]
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Ratios along runs, by batch size, and what they are made of."""
    seeds = len(arrays["ratio"])
    figure = _style.canvas(
        12.6,
        5.0,
        "Smaller batches keep Adam further below its edge of stability: their noise enlarges P",
        f"Handwritten digits, {N_SAMPLES} samples, 64-32-10 with tanh and square loss; Adam, rate "
        r"$10^{-3}$, $\beta_1$ = 0.9, $\beta_2$ = 0.99; batches without replacement, H of all samples; "
        f"{arrays['step'][-1]} steps, "
        + ("seed 0" if seeds == 1 else f"{seeds} seeds (left: seed 0; dashes: each)")
        + ".\nLate: medians of the second half; bars: 10 to 90 % of it. Own settings; illustrates the "
        "effect described in arXiv 2207.14484.",
    )
    edges = _style.margins(figure, left=0.68, right=0.3, top=0.98, bottom=1.0)
    grid = figure.add_gridspec(1, 3, wspace=0.4, **edges)
    _draw_runs(figure.add_subplot(grid[0]), arrays)
    _draw_sizes(figure.add_subplot(grid[1]), arrays)
    _draw_parts(figure.add_subplot(grid[2]), arrays)
    return figure


def _color(size: int) -> str:
    return FULL_COLOR if size == N_SAMPLES else BATCH_COLOR


def _log(axes: Axes, limits: tuple[float, float], ticks: list[float]) -> None:
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


RATIO_LIMITS, RATIO_TICKS = (0.004, 2.2), [0.01, 0.03, 0.1, 0.3, 1.0]


def _draw_runs(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    step = arrays["step"]
    for size, row in zip(arrays["size"], arrays["ratio"][0], strict=True):
        color = _color(size)
        axes.plot(step, row, color=color, lw=0.8, alpha=0.5)
        axes.plot(step, row, **_style.points(color, size=2.2))
        if size in SIZES_QUICK:
            # The uppermost runs lie closer together than the height of their names.
            nudge = {N_SAMPLES: 1.17, N_SAMPLES - 1: 0.86, 490: 0.92}.get(int(size), 1.0)
            name = "all 500" if size == N_SAMPLES else f"B = {size}"
            end = np.median(row[-5:]) * nudge
            axes.text(1.03 * step[-1], end, name, color=color, fontsize=7.5, va="center")
    axes.axhline(1, color=_style.INK, lw=1.0, zorder=1)
    _log(axes, RATIO_LIMITS, RATIO_TICKS)
    axes.set_xlim(-0.02 * step[-1], 1.02 * step[-1])
    axes.set_xlabel("step")
    axes.set_ylabel(r"$\lambda_{\max}(P^{-1}H)$ over its threshold")
    axes.set_title("Along runs", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "line: the edge, 38/lr")


def _draw_sizes(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    late, medians = _late(arrays, "ratio"), _medians(arrays, "ratio")
    for index, size in enumerate(arrays["size"]):
        color = _color(size)
        low, high = np.quantile(late[:, index], [0.1, 0.9])
        axes.plot([size, size], [low, high], color=color, lw=1.2)
        axes.plot(size, np.median(medians[:, index]), **_style.points(color, size=4.5))
        if len(medians) > 1:
            axes.plot(
                np.full(len(medians), size),
                medians[:, index],
                ls="none",
                marker="_",
                ms=9,
                color=color,
            )
    axes.axhline(1, color=_style.INK, lw=1.0, zorder=1)
    _log(axes, RATIO_LIMITS, RATIO_TICKS)
    axes.set_xscale("log")
    axes.set_xlim(8, 620)
    axes.xaxis.set_major_locator(FixedLocator([10, 25, 50, 100, 250, 500]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("$B$   batch size")
    axes.set_ylabel("late ratio")
    axes.set_title("By batch size", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "the edge only as B approaches n")


def _draw_parts(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    """All relative to full batches, over the noise factor; B grows to the right."""
    noise, (P, expected) = _noise(arrays)[:-1], _roots(arrays)
    ratio, sharpness = _medians(arrays, "ratio"), _medians(arrays, "sharpness")
    # Where circle and square coincide, the circle is seen around the square.
    parts = (
        ("1 / late ratio", _style.points(BATCH_COLOR, size=6.5), 1 / ratio),
        ("size of P", _style.points(_style.INK, size=2.8, marker="s"), P),
        (r"$\lambda_{\max}(H)$", _style.points(_style.GREEN, size=4.2, marker="^"), sharpness),
    )
    for _, look, values in parts:
        relative = np.median(values / values[:, -1:], axis=0)[:-1]
        axes.plot(noise, relative, **look)
    line = np.median(expected / P[:, -1:], axis=0)[:-1]
    axes.plot(noise, line, color=_style.INK, lw=1.2, zorder=1)
    axes.axhline(1, color=FULL_COLOR, lw=1.0, zorder=1)
    handles = [Line2D([], [], label=name, **look) for name, look, _ in parts]
    axes.legend(handles=handles, loc="upper right", handletextpad=0.2, labelspacing=0.3)
    _log(axes, (0.35, 160), [1.0, 3.0, 10.0, 30.0, 100.0])
    axes.set_xscale("log")
    axes.set_xlim(0.25, 1.6e-6)
    shown = [size for size in SIZES_QUICK if size < N_SAMPLES]
    axes.xaxis.set_major_locator(FixedLocator([noise_factor(N_SAMPLES, size) for size in shown]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_ticklabels([f"{size}" for size in shown])
    axes.set_xlabel(r"$B$   batch size, at its $\kappa = (n-B)/(B(n-1))$")
    axes.set_ylabel("relative to full batches")
    axes.set_title("It is the preconditioner", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"line: size of P from $|g|^2 + \kappa V$, V the variance of gradients")
