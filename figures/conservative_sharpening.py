r"""Batch noise damps the growth of an NTK eigenvalue in proportion to it, so outliers sharpen less.

Quadratic regression, :math:`z(\theta) = z_0 + J_0\theta + \tfrac12\theta^\top Q\theta` with random Q of
variance :math:`\sigma^2`, n data and P parameters. Over Q and two batches of B, the growth of a singular
mode (w, s, v) of J from random residuals of variance 1 is, to leading order in 1/P,

.. math:: E[w^\top \Delta_2 J\, v] = c\,s\,(1 - \eta\lambda\, n/B), \qquad c = \eta^2\sigma^2P/n^2,

which changes sign where :math:`\eta\lambda` is the batch fraction: large eigenvalues are damped first.
But noise also raises the first difference of all eigenvalues alike, by
:math:`\Delta_1\Theta = c\,(n/B)\,\mathrm{tr}\Theta\, I`, and mixes neighbouring modes, which drives the
largest away from the others. So small batches sharpen less from an NTK with outliers, as networks have,
and more from a bulk without them.

The effect: Agarwala & Pennington 2024, arXiv 2404.19261. The formulas are derived here
(`eosim.sharpening`), and the settings are this project's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from eosim.problems.quadratic_regression import (
    QuadraticRegression,
    jacobian_with_spectrum,
    random_quadratic_regression,
)
from eosim.sharpening import expected_differences, measured_differences, track_spectra
from figures import _style
from figures._headline import Row

# Our choice: few data, for batches of every size, and modes up to beyond every sign change. sigma is so
# small that the terms of order sigma^4, which `expected_differences` leaves out of Delta_2 Theta, do not
# count (at 0.02 and B = 1 they are 1 % of it); pairs Q, -Q leave no noise that outweighs the signal.
MODE_DATA, MODE_PARAMETERS, MODE_SIGMA = 6, 30, 0.005
MODE_SPECTRUM = 0.2 * np.arange(6, 0, -1)
# Our choice: pairs by batch size, more where there is more noise; ten times as many with --full.
PAIRS_QUICK = {6: 1000, 3: 2000, 2: 4000, 1: 9000}
MODE_BATCHES = tuple(PAIRS_QUICK)
# Our choice: twice as many parameters as data; rate 1, so that eigenvalues are in units of the edge / 2.
N_DATA, N_PARAMETERS, LR = 60, 120, 1.0
FULL, SMALL, SMALLEST = 60, 8, 3
SIZES = {"power": (FULL, SMALL, SMALLEST), "bulk": (FULL, SMALL)}
NAMES = {"power": "outliers", "bulk": "bulk"}
# Our choice: outliers as in networks, and a bulk with none; the steps over which each is compared.
# 2 of 200 runs diverge at B = 3, none at 8 or 60.
POWER_LAW, POWER_SIGMA, POWER_STEPS, POWER_EVERY = 0.8 * np.arange(1, 61) ** -1.5, 0.02, 100, 5
BULK, BULK_SIGMA, BULK_STEPS, EARLY = np.linspace(0.3, 0.01, 60), 0.05, 20, 2
SEEDS_QUICK, SEEDS_FULL = 30, 200
# Our choice: what a paired t has to reach. By chance 30 pairs pass 4 once in 5000 comparisons, and 3 once
# in 360: enough at B = 8, where the effect on outliers is a third of that at 3.
PAIRED_T = {SMALLEST: 4.0, SMALL: 3.0}
# Of all runs; one in a hundred at the smallest batch diverges, and is left out with its pairs.
SURVIVE = 0.95
# 144 means of samples: the largest of as many independent normals stays below 4 with probability 0.99.
STANDARD_ERRORS = 4.0
# Mean square of the 48 deviations of modes in standard errors: 1 +- sqrt(2/48) = 0.2, three times that.
SPREAD_TOLERANCE = 0.6

# By batch size, from full batches on: of the modes and of the runs.
LOOKS = {
    6: {"color": _style.BLUE, "marker": "o"},
    3: {"color": _style.GREEN, "marker": "s"},
    2: {"color": _style.ORANGE, "marker": "^"},
    1: {"color": _style.VERMILLION, "marker": "D"},
}
RUN_LOOKS = {FULL: LOOKS[6], SMALL: LOOKS[2], SMALLEST: LOOKS[1]}
BARS = 2.0  # standard errors
DASHED = (0, (2.2, 1.3))


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Differences by formula and by Monte Carlo; spectra along runs."""
    arrays: dict[str, np.ndarray] = {"batch": np.array(MODE_BATCHES)}
    jacobian = jacobian_with_spectrum(MODE_SPECTRUM, MODE_PARAMETERS, seed=0)
    fixed = np.random.default_rng(1).standard_normal(MODE_DATA)
    arrays["pairs"] = np.array([count if quick else 10 * count for count in PAIRS_QUICK.values()])
    left = np.linalg.svd(jacobian)[0]
    arrays["fixed_along"] = (left.T @ fixed) ** 2
    for name, start in (("fixed", fixed), ("random", np.eye(MODE_DATA))):
        rows = []
        for size, count in zip(MODE_BATCHES, arrays["pairs"], strict=True):
            arguments = (start, jacobian, MODE_SIGMA, LR, size)
            expected = expected_differences(*arguments)
            found = measured_differences(*arguments, int(count), seed=[size, start.ndim])
            rows.append(
                [
                    [d.mode_jacobian, d.mode_ntk, np.diagonal(d.ntk_first)]
                    for d in (expected, found.mean, found.standard_error)
                ]
            )
        # (batch size, quantity, mode) each
        for which, values in zip(
            ("formula", "mean", "error"), np.moveaxis(np.array(rows), 1, 0), strict=True
        ):
            arrays[f"{name}_{which}"] = values
    n_seeds = SEEDS_QUICK if quick else SEEDS_FULL
    for name, spectrum, sigma, n_steps, every in (
        ("power", POWER_LAW, POWER_SIGMA, POWER_STEPS, POWER_EVERY),
        ("bulk", BULK, BULK_SIGMA, BULK_STEPS, 1),
    ):
        for size in SIZES[name]:
            found = track_spectra(
                _problems(n_seeds, sigma, spectrum), LR, n_steps, batch_size=size, every=every
            )
            scale = spectrum[0]
            arrays[f"{name}_step"] = found.step
            arrays[f"{name}_{size}"] = found.ntk[:, :, 0] / scale - 1  # (seed, record)
            arrays[f"{name}_{size}_lift"] = (found.ntk.mean(axis=2) - spectrum.mean()) / scale
            arrays[f"{name}_{size}_survived"] = found.survived
    return arrays


def _problems(n_seeds: int, sigma: float, spectrum: np.ndarray) -> Iterator[QuadraticRegression]:
    """The same problems at every batch size: comparisons are paired."""
    for seed in range(n_seeds):
        jacobian = jacobian_with_spectrum(spectrum, N_PARAMETERS, seed=[seed, 1])
        yield random_quadratic_regression(
            N_DATA, N_PARAMETERS, sigma, seed=[seed, 0], jacobian=jacobian
        )


def _unit() -> np.ndarray:
    """c s of each mode: what its growth is divided by."""
    c = LR**2 * MODE_SIGMA**2 * MODE_PARAMETERS / MODE_DATA**2
    return c * np.sqrt(MODE_DATA * MODE_SPECTRUM)


def _paired_t(difference: np.ndarray) -> float:
    return float(difference.mean() / difference.std(ddof=1) * np.sqrt(len(difference)))


def _deviations(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Of the means from the formulas, in standard errors; (batch size, quantity, mode)."""
    gap = arrays[f"{name}_mean"] - arrays[f"{name}_formula"]
    return gap / arrays[f"{name}_error"]


def _sign_change(values: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """Where the best line through (0, 1) and the points is zero, and its relative standard error."""
    x = LR * MODE_SPECTRUM
    weight = (x / error) ** 2
    fall = float(weight @ ((1 - values) / x) / weight.sum())
    return 1 / fall, float(1 / np.sqrt(weight.sum())) / fall


def _damping(arrays: dict[str, np.ndarray], name: str, size: int) -> np.ndarray:
    """Growth at full batches less that at ``size``, of the seeds that survive both; (seed, record)."""
    both = arrays[f"{name}_{FULL}_survived"] & arrays[f"{name}_{size}_survived"]
    return arrays[f"{name}_{FULL}"][both] - arrays[f"{name}_{size}"][both]


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Means on the formulas; the sign changes; slower growth with outliers, faster without."""
    scores = np.concatenate([_deviations(arrays, name) for name in ("fixed", "random")])
    largest = float(np.abs(scores).max())
    text = f"|mean - formula| / SE, largest of {scores.size}"
    rows = [
        Row(text, STANDARD_ERRORS, 0, largest, "at most"),
        Row("modes: mean square of these", 1, SPREAD_TOLERANCE, float((scores[:, 0] ** 2).mean())),
    ]
    for index, size in enumerate(arrays["batch"]):
        zero, error = _sign_change(
            arrays["random_mean"][index, 0] / _unit(), arrays["random_error"][index, 0] / _unit()
        )
        # To leading order in 1/P it is B/n, and to the next P/(P + 1) times that.
        expected = MODE_PARAMETERS / (MODE_PARAMETERS + 1)
        tolerance = 1 / MODE_PARAMETERS**2 + STANDARD_ERRORS * error
        measured = zero * MODE_DATA / size
        rows.append(Row(f"B = {size}: sign change over B/n", expected, tolerance, measured))
    for name, sizes in SIZES.items():
        survived = np.concatenate([arrays[f"{name}_{size}_survived"] for size in sizes])
        text = f"{NAMES[name]}: share that survives of {len(survived)} runs"
        rows.append(Row(text, SURVIVE, 0, float(survived.mean()), "at least"))
    for size in SIZES["power"][1:]:
        t = _paired_t(_damping(arrays, "power", size)[:, -1])
        text = f"outliers: slower at B = {size} than {FULL}, t"
        rows.append(Row(text, PAIRED_T[size], 0, t, "at least"))
    t = _paired_t(-_damping(arrays, "bulk", SMALL)[:, EARLY])
    text = f"bulk, {EARLY} steps: faster at B = {SMALL} than {FULL}, t"
    rows.append(Row(text, PAIRED_T[SMALLEST], 0, t, "at least"))
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Above: differences over two steps. Below: the largest eigenvalue along runs."""
    masks = {
        f"{NAMES[name]} at B = {size}": arrays[f"{name}_{size}_survived"]
        for name, sizes in SIZES.items()
        for size in sizes
    }
    n_seeds = len(arrays[f"power_{FULL}_survived"])
    lost = ", ".join(f"{(~mask).sum()} ({name})" for name, mask in masks.items() if not mask.all())
    pairs = ", ".join(f"{count}" for count in arrays["pairs"])
    figure = _style.canvas(
        12.0,
        7.6,
        "Batch noise damps the growth of an NTK eigenvalue in proportion to it: outliers sharpen less",
        f"Quadratic regression, own settings, rate 1. Above: n = {MODE_DATA}, P = {MODE_PARAMETERS}, "
        f"$\\sigma$ = {MODE_SIGMA:g}; {pairs} pairs Q, −Q at B = 6, 3, 2, 1. Below: n = {N_DATA}, "
        f"P = {N_PARAMETERS}, $\\sigma$ = {POWER_SIGMA:g} (outliers) and {BULK_SIGMA:g} (bulk); means "
        f"over\n{n_seeds} seeds, the same problems at every B; diverged and left out: {lost or 'none'}. "
        f"Bars: {BARS:g} standard errors (SE).",
    )
    edges = _style.margins(figure, left=0.78, right=0.25, top=0.98, bottom=1.02)
    grid = figure.add_gridspec(2, 3, wspace=0.3, hspace=0.55, **edges)
    top, bottom = ([figure.add_subplot(grid[row, k]) for k in range(3)] for row in range(2))
    _draw_one_start(top[0], arrays)
    _draw_averaged(top[1], arrays)
    _draw_first(top[2], arrays)
    _draw_power(bottom[0], arrays)
    _draw_pairs(bottom[1], arrays)
    _draw_bulk(bottom[2], arrays)
    return figure


def _bars(axes: Axes, x: Any, y: Any, error: Any, look: dict[str, str], size: float) -> None:
    axes.errorbar(
        x,
        y,
        BARS * error,
        elinewidth=1.0,
        ecolor=look["color"],
        zorder=3,
        **_style.points(look["color"], marker=look["marker"], size=size),
    )


def _legend(axes: Axes, looks: dict[str, dict[str, str]], where: str) -> None:
    handles = [
        Line2D([], [], label=label, **_style.points(look["color"], marker=look["marker"]))
        for label, look in looks.items()
    ]
    axes.legend(handles=handles, loc=where, handletextpad=0.2, handlelength=1.4, labelspacing=0.3)


def _mode_axis(axes: Axes) -> None:
    axes.axhline(0, color=_style.QUIET, lw=0.9)
    axes.set_xlabel(r"$\eta\lambda$   rate × eigenvalue of the mode")
    axes.set_xlim(0.04, 1.36)
    axes.xaxis.set_major_locator(FixedLocator(list(LR * MODE_SPECTRUM)))


def _draw_one_start(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    """Points of one mode beside each other, each on its own dash."""
    _mode_axis(axes)
    unit, half = _unit(), 0.018
    for index, look in enumerate(LOOKS.values()):
        place = LR * MODE_SPECTRUM + (index - 1.5) * 2.2 * half
        levels = arrays["fixed_formula"][index, 0] / unit
        axes.hlines(levels, place - half, place + half, color=_style.INK, lw=1.4)
        mean, error = (arrays[f"fixed_{kind}"][index, 0] / unit for kind in ("mean", "error"))
        _bars(axes, place, mean, error, look, 3.6)
    _legend(axes, {f"B = {size}": look for size, look in LOOKS.items()}, "lower left")
    axes.set_ylabel(r"E$[w^\top\Delta_2J\,v]\,/\,cs$   growth of a mode")
    axes.set_title("Growth of each mode from one start", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "dashes: exact expectation; batch sizes beside each other")


def _draw_averaged(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    _mode_axis(axes)
    line = np.array(axes.get_xlim())
    for index, (size, look) in enumerate(LOOKS.items()):
        axes.plot(line, 1 - line * MODE_DATA / size, color=look["color"], lw=1.4)
        axes.plot([size / MODE_DATA], [0], marker="|", ms=10, mew=1.5, color=_style.INK, zorder=4)
        mean, error = (arrays[f"random_{kind}"][index, 0] / _unit() for kind in ("mean", "error"))
        _bars(axes, LR * MODE_SPECTRUM, mean, error, look, 4)
        axes.annotate(
            f"B = {size}",
            (line[1], 1 - line[1] * MODE_DATA / size),
            xytext=(4, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=7.5,
            color=look["color"],
        )
    axes.set_title("Averaged over residuals: sign change at B/n", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"lines: $1 - \eta\lambda\,n/B$; ticks: their zeros")


def _draw_first(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    scale = LR**2 * MODE_SIGMA**2 * MODE_PARAMETERS / MODE_DATA**2 * MODE_SPECTRUM.sum()
    axes.plot([0, 6.6], [0, 6.6], color=_style.INK, lw=1.4)
    for index, (size, look) in enumerate(LOOKS.items()):
        place = MODE_DATA / size + 0.07 * (np.arange(MODE_DATA) - (MODE_DATA - 1) / 2)
        mean, error = (arrays[f"random_{kind}"][index, 2] / scale for kind in ("mean", "error"))
        _bars(axes, place, mean, error, look, 3.4)
    axes.set_xlim(0, 6.6)
    axes.set_ylim(0, 6.9)
    axes.xaxis.set_major_locator(FixedLocator([MODE_DATA / size for size in LOOKS]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}\nB = {MODE_DATA / v:g}"))
    axes.set_xlabel("$n/B$")
    axes.set_ylabel(r"E$[\Delta_1\Theta_{ii}]\,/\,c\,$tr$\,\Theta$   lift of all modes")
    axes.set_title("But noise lifts all eigenvalues alike", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "six diagonal entries, averaged over residuals; line: $n/B$")


def _percent(value: float, _: object) -> str:
    return f"{100 * value:+.3g} %".replace("-", "−") if value else "0"


def _draw_growth(axes: Axes, arrays: dict[str, np.ndarray], name: str, shown: slice) -> None:
    """Mean growth of the largest eigenvalue, of the runs that survive."""
    step = arrays[f"{name}_step"]
    axes.axhline(0, color=_style.QUIET, lw=0.9)
    for index, size in enumerate(SIZES[name]):
        look = RUN_LOOKS[size]
        growth = arrays[f"{name}_{size}"][arrays[f"{name}_{size}_survived"]]
        mean, error = growth.mean(axis=0), growth.std(axis=0, ddof=1) / np.sqrt(len(growth))
        axes.plot(step, mean, color=look["color"], lw=1.0, alpha=0.6)
        shift = (index - 1) * 0.009 * step[-1]
        _bars(axes, step[shown] + shift, mean[shown], error[shown], look, 4)
    labels = {f"B = {size}": RUN_LOOKS[size] for size in SIZES[name]}
    _legend(axes, labels, "upper left")
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.set_xlabel("step")


def _draw_power(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    _draw_growth(axes, arrays, "power", slice(4, None, 4))
    axes.set_ylabel(r"$\lambda_{\max}(t) / \lambda_{\max}(0) - 1$")
    axes.set_title("Outliers: small batches sharpen less", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"$\lambda_k(0) = 0.8\,k^{-1.5}$")


def _draw_bulk(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    _draw_growth(axes, arrays, "bulk", slice(1, None))
    for size in SIZES["bulk"]:
        lift = arrays[f"bulk_{size}_lift"][arrays[f"bulk_{size}_survived"]].mean(axis=0)
        axes.plot(arrays["bulk_step"], lift, color=RUN_LOOKS[size]["color"], lw=1.3, ls=DASHED)
    axes.xaxis.set_major_locator(FixedLocator([0, 5, 10, 15, 20]))
    axes.set_title("No outliers: at first they sharpen more", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"$\lambda_k(0)$ even on 0.01 … 0.3; dashed: mean eigenvalue")


def _draw_pairs(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    """Differences seed by seed, with their mean."""
    cases = [
        (f"{NAMES[name]}\nB = {FULL} minus {size}", _damping(arrays, name, size)[:, record], size)
        for name, size, record in (
            ("power", SMALL, -1),
            ("power", SMALLEST, -1),
            ("bulk", SMALL, EARLY),
        )
    ]
    axes.axhline(0, color=_style.QUIET, lw=0.9)
    for place, (_, difference, size) in enumerate(cases):
        look = RUN_LOOKS[size]
        spread = np.linspace(-0.24, 0.24, len(difference))
        axes.plot(
            place + spread,
            np.sort(difference),
            alpha=0.6,
            **{
                **_style.points(look["color"], marker=look["marker"], size=2.6),
                "markeredgewidth": 0,
            },
        )
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        ink = {"color": _style.INK, "marker": "o"}
        _bars(axes, place + 0.36, difference.mean(), error, ink, 4.5)
        axes.annotate(
            f"mean {_paired_t(difference):.1f} SE".replace("-", "−"),
            (place, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, -4),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
        )
    low = min(difference.min() for _, difference, _ in cases)
    axes.set_ylim(1.08 * low, 0.75 * abs(low))
    axes.set_xlim(-0.5, 2.6)
    axes.xaxis.set_major_locator(FixedLocator(range(3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: cases[round(value)][0]))
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.set_ylabel("growth at full batches − at small")
    axes.set_title("The difference, seed by seed", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, f"after {POWER_STEPS} steps (bulk: {EARLY}); black: mean")
