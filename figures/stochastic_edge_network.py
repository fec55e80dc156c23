r"""Small batches end below the stochastic edge; holding K at 1/2 only ties with the best fixed rate.

Handwritten digits, "odd or even?", by a small tanh net under SGD without momentum: one output, so that
the exact noise kernel norm K of `noise_kernel_norm` is affordable along every run. At a rate at which
full batches come to :math:`\eta\lambda_{\max} = 2`, batches of 4 of 100 end at about half of it, and their
norm, above 1 at the start, near 0.6. Over batch sizes and rates K ends in a narrower range than it starts
from: noise lowers large norms, sharpening lifts small ones. Towards the largest rates at which runs survive
the median K of small batches saturates at 0.6 to 0.75, not at 1. With ten outputs the sums over the
spectrum, which are averages over outputs, fall short of the exact norm by factors of 1.1 to 2.3.

The rule `HeldNoise` chooses the rate at which K is 1/2, anew after every 100 steps. After equally many
steps its training loss is within a tenth of a decade of that of the best fixed rate, at every batch size:
one target finds what otherwise takes a search, and does better than one fixed rate for all batch sizes.
But a measurement is as dear as n gradients of samples. Spent on steps at the best fixed rate, these gain a
factor of 2 in the loss at B = 4, of 6 to 10 at B = 1; at B = 16 they hardly count. Errors held out are the
same within their intervals. Held at 1, the edge itself, nearly all runs with B = 1 and B = 4 are lost:
their loss ends above its start.

The stochastic edge, and its control as a means: Agarwala & Pennington 2024, arXiv 2404.19261. The rule and
all settings are this project's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.stats import t as student

from figures import _parity_network, _style
from figures._headline import Row
from figures._parity_network import (
    CONTROLLED,
    EVERY,
    HIDDEN,
    KINDS,
    LATE,
    N_HELD_OUT,
    N_SAMPLES,
    N_STEPS,
    SHOWN_RATE,
    TARGET,
    TEN_BATCHES,
    TEN_RATE,
)

# All our choice.
RATES_QUICK = (0.05, 0.1, 0.2, 0.3, 0.4)
RATES_FULL = (0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.4)
BATCHES_QUICK = (1, 4, 16, N_SAMPLES)
BATCHES_FULL = (1, 2, 4, 8, 16, 32, N_SAMPLES)
SEEDS_QUICK, SEEDS_FULL = 4, 12
# Ten outputs: the exact norm of a kernel of 400 rows takes a second, of 1000 rows ten.
TEN_SAMPLES_QUICK, TEN_SAMPLES_FULL = 40, 100
# Batch sizes drawn along their steps.
SHOWN = (4, 16, N_SAMPLES)
SMALL = 4

# Full batches: half of the seeds end within 3 % of the edge, slow ones up to 17 % below it. B = 4: all of
# twelve seeds end between 0.44 and 0.60.
FULL_TOLERANCE, FAR_BELOW = 0.05, 0.65
# Between measurements the norm moves by 1 % of itself, at B = 1 by 2 to 4 %; in single cases by 25 %.
HELD_TOLERANCE = 0.02
# Decades of the loss. The difference to a fixed rate varies by 0.05 to 0.3 over seeds, which for the mean
# over three batch sizes and four seeds is a standard error of about 0.06: equal is within 2.5 of these.
# Measured are 0.4 at equal cost, and -0.45 against one rate for all.
EQUAL, DEARER, BETTER = 0.15, 0.2, 0.25

COLORS = {1: _style.PURPLE, 4: _style.VERMILLION, 16: _style.ORANGE, N_SAMPLES: _style.BLUE}
RATE_COLORS = {0.05: "#a9d8c8", 0.1: "#56bfa0", 0.2: _style.GREEN, 0.3: "#005f47"}
KIND_LOOKS = {
    "exact": ("s", _style.INK),
    "delocalised": ("o", "#8a4b12"),
    "trace": ("^", _style.SKY),
}
EDGE_LINE: dict[str, Any] = {"color": _style.INK, "lw": 1.2}


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Runs at fixed rates over batch sizes, runs that hold the norm, and ends of nets with ten outputs.

    Infinite where a run diverges, and where none is made: full batches are run at one rate.
    """
    rates = RATES_QUICK if quick else RATES_FULL
    batches = BATCHES_QUICK if quick else BATCHES_FULL
    n_seeds = SEEDS_QUICK if quick else SEEDS_FULL
    net, inputs, targets = _parity_network.parity_network()

    def judge(thetas: Any) -> np.ndarray:
        """(2, state): training loss, and share of wrong signs among the digits held out."""
        wrong = [np.mean(net.outputs(theta, inputs)[:, 0] * targets < 0) for theta in thetas]
        return np.array([[net.loss(theta) for theta in thetas], wrong])

    return (
        {"rates": np.array(rates), "batches": np.array(batches)}
        | _parity_network.fixed_runs(net, judge, rates, batches, n_seeds)
        | _parity_network.held_runs(net, judge, n_seeds)
        | _parity_network.ten_outputs(TEN_SAMPLES_QUICK if quick else TEN_SAMPLES_FULL)
    )


def late(values: np.ndarray) -> np.ndarray:
    """The mean over the late records."""
    return values[..., -LATE:].mean(axis=-1)


def alive(arrays: dict[str, np.ndarray], batch_size: int, rate: float) -> np.ndarray:
    """Which seeds survive."""
    return np.isfinite(arrays["loss"][_cell(arrays, batch_size, rate)][:, -1])


def _cell(arrays: dict[str, np.ndarray], batch_size: int, rate: float) -> tuple[int, int]:
    b = int(np.flatnonzero(arrays["batches"] == batch_size)[0])
    return b, int(np.flatnonzero(arrays["rates"] == rate)[0])


def final(arrays: dict[str, np.ndarray], name: str, batch_size: int, rate: float) -> np.ndarray:
    """Of the seeds that survive: the mean of the last two records of a norm, or of the sharpness."""
    values = arrays[name][_cell(arrays, batch_size, rate)]
    return values[alive(arrays, batch_size, rate), -2:].mean(axis=-1)


def fixed_scores(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """(controlled batch, rate, seed): late log10 of a loss, or late error; infinite if diverged."""
    rows = [int(np.flatnonzero(arrays["batches"] == size)[0]) for size in CONTROLLED]
    values = arrays[name][rows]
    return late(np.log10(values) if name.endswith("loss") else values)


def lost(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """How many of the runs that hold K = 1 end above the loss they start from, by batch size."""
    return (arrays["edge_loss"][..., -1] > arrays["held_loss"][..., 0]).sum(axis=1)


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean over seeds and the half-width of its 95 % interval (Student)."""
    n = len(differences)
    error = float(differences.std(ddof=1)) / np.sqrt(n)
    return float(differences.mean()), float(student.ppf(0.975, n - 1)) * error


def comparisons(arrays: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """The held norm minus fixed rates, paired over seeds; rates are chosen on the same seeds.

    ``steps_B`` and ``cost_B``: log10 loss against the best rate of this batch size, after as many steps
    and after as many gradients of single samples; ``common_...``: the mean over batch sizes against the
    best of the rates that are one for all; ``error_...``: held-out error in percentage points, against
    the same rates.
    """
    held = {"loss": late(np.log10(arrays["held_loss"])), "error": late(arrays["held_error"])}
    found = {}
    for text, prefix in (("steps", ""), ("cost", "longer_")):
        loss = fixed_scores(arrays, f"{prefix}loss")
        error = fixed_scores(arrays, f"{prefix}error")
        mean = loss.mean(axis=2)
        for b, size in enumerate(CONTROLLED):
            best = int(np.argmin(mean[b]))
            found[f"{text}_{size}"] = interval(held["loss"][b] - loss[b, best])
            found[f"error_{text}_{size}"] = interval(100 * (held["error"][b] - error[b, best]))
        common = int(np.argmin(mean.mean(axis=0)))
        found[f"{text}_common"] = interval((held["loss"] - loss[:, common]).mean(axis=0))
        found[f"error_{text}_common"] = interval(
            100 * (held["error"] - error[:, common]).mean(axis=0)
        )
    return found


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Where runs end, and what holding the norm gains and costs."""
    small = [
        float(np.median(final(arrays, "exact", size, rate)))
        for size in arrays["batches"][arrays["batches"] <= SMALL]
        for rate in arrays["rates"]
        if alive(arrays, size, rate).any()
    ]
    start = arrays["exact"][_cell(arrays, SMALL, SHOWN_RATE)][:, 0]
    tops = {size: np.median(final(arrays, "top", size, SHOWN_RATE)) for size in SHOWN}
    found = comparisons(arrays)
    mean = {
        text: float(np.mean([found[f"{text}_{size}"][0] for size in CONTROLLED]))
        for text in ("steps", "cost")
    }
    n_seeds = arrays["loss"].shape[2]
    held = np.abs(arrays["held_finite"][..., 1:] - TARGET)
    return [
        Row(f"B <= {SMALL}: largest median K at the end", 1, 0, max(small), "at most"),
        Row(
            f"B = {SMALL}, rate {SHOWN_RATE}: K at the start",
            1,
            0,
            float(np.median(start)),
            "at least",
        ),
        Row("full batches: end over edge", 1, FULL_TOLERANCE, float(tops[N_SAMPLES])),
        Row(f"B = {SMALL}: end over edge", FAR_BELOW, 0, float(tops[SMALL]), "at most"),
        Row("held K: median distance from its target", 0, HELD_TOLERANCE, float(np.median(held))),
        Row("held K - best rate of each B, log10 loss: equal steps", 0, EQUAL, mean["steps"]),
        Row("the same: equal cost", DEARER, 0, mean["cost"], "at least"),
        Row(
            "held K - one rate for all B: equal steps",
            -BETTER,
            0,
            found["steps_common"][0],
            "at most",
        ),
        Row("the same: equal cost", 0, EQUAL, found["cost_common"][0]),
        Row(
            f"K held at 1: lost of {n_seeds} at B = 1",
            n_seeds / 2,
            0,
            float(lost(arrays)[0]),
            "at least",
        ),
        Row("ten outputs: largest exact K", 1, 0, float(arrays["ten_exact"].max()), "at most"),
    ]


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Runs, their ends by batch size, and the control experiment."""
    n_seeds = arrays["loss"].shape[2]
    figure = _style.canvas(
        12.0,
        7.9,
        "Small batches end below the stochastic edge; holding K at 1/2 only ties with the best fixed rate",
        f"Handwritten digits, odd or even: tanh net 64-{HIDDEN[0]}-1, square loss, n = {N_SAMPLES}, "
        f"{N_HELD_OUT} held out, {n_seeds} seeds, {N_STEPS} steps. Ten classes: 64-{HIDDEN[0]}-10, "
        f"n = {int(arrays['ten_samples'])}, one seed. Points: medians; bars above: all that survive.\n"
        "K, noise kernel norm: on a quadratic the mean loss of SGD decays if and only if K < 1; exact, or "
        "from the spectrum of the NTK alone (delocalised, trace; “finite”). Held: every "
        f"{EVERY} steps the rate\nis set to where the finite K is {TARGET}, which costs n gradients of "
        f"samples, n/B steps. Late: mean of the last {LATE} records, one every {EVERY} steps. Intervals: "
        "95 %, over seeds.",
    )
    edges = _style.margins(figure, left=0.75, right=0.25, top=0.98, bottom=1.2)
    grid = figure.add_gridspec(2, 3, wspace=0.27, hspace=0.52, **edges)
    _draw_runs(figure.add_subplot(grid[0, 0]), arrays, "top")
    _draw_runs(figure.add_subplot(grid[0, 1]), arrays, "exact")
    _draw_ends(figure.add_subplot(grid[0, 2]), arrays)
    _draw_kinds(figure.add_subplot(grid[1, 0]), arrays)
    _draw_scores(figure.add_subplot(grid[1, 1]), arrays)
    _draw_comparisons(figure, grid[1, 2], arrays)
    return figure


def _name(size: int) -> str:
    return "full batches" if size == N_SAMPLES else f"B = {size}"


def _draw_runs(axes: Axes, arrays: dict[str, np.ndarray], name: str) -> None:
    step = arrays["norm_step"]
    axes.axhline(1, **EDGE_LINE)
    for size in SHOWN:
        if name == "exact" and size == N_SAMPLES:
            continue
        values = arrays[name][_cell(arrays, size, SHOWN_RATE)][alive(arrays, size, SHOWN_RATE)]
        shown = np.where(np.isfinite(values), values, np.nan)
        axes.plot(step, shown.T, color=COLORS[size], lw=0.8, alpha=0.35)
        # From the edge on a norm is infinite: a median of them may be too.
        middle = np.median(values, axis=0)
        axes.plot(
            step, np.where(np.isfinite(middle), middle, np.nan), **_style.points(COLORS[size])
        )
    axes.set_xlim(-30, N_STEPS + 30)
    axes.set_xlabel("step")
    if name == "top":
        axes.set_ylim(0, 1.25)
        axes.set_ylabel(r"$\eta\lambda_{\max}\,/\,2$   rate × sharpness / 2")
        axes.set_title(
            f"Rate {SHOWN_RATE}: only full batches reach the edge", pad=_style.SUBTITLE_PAD
        )
        _style.subtitle(axes, "line: edge of stability; thin: every seed")
        handles = [Line2D([], [], label=_name(s), **_style.points(COLORS[s])) for s in SHOWN]
        axes.legend(
            handles=handles, loc="lower right", ncols=3, handletextpad=0.1, columnspacing=1.0
        )
    else:
        axes.set_ylim(0, 1.75)
        axes.set_ylabel("$K$   noise kernel norm, exact")
        axes.set_title("Their norm falls or rises, and ends below 1", pad=_style.SUBTITLE_PAD)
        _style.subtitle(axes, "line: stochastic edge; 0 for full batches, infinite where ηλ > 2")


def _draw_ends(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.axhline(1, **EDGE_LINE)
    batches = arrays["batches"][arrays["batches"] < N_SAMPLES]
    for index, (rate, color) in enumerate(RATE_COLORS.items()):
        shift = 1.06 ** (index - 1.5)
        start = [np.median(arrays["exact"][_cell(arrays, size, rate)][:, 0]) for size in batches]
        axes.plot(batches, start, color=color, lw=1.1, ls=(0, (2.2, 1.3)))
        for size in batches:
            ends = final(arrays, "exact", size, rate)
            if len(ends):
                axes.plot([shift * size] * 2, [ends.min(), ends.max()], color=color, lw=1)
                axes.plot(shift * size, np.median(ends), **_style.points(color))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.013, 5)
    _plain_ticks(axes, batches, (0.01, 0.03, 0.1, 0.3, 1, 3))
    axes.set_xlabel("$B$   batch size")
    axes.set_ylabel("$K$   at the end, exact")
    handles = [
        Line2D([], [], label=f"{rate:g}", **_style.points(color))
        for rate, color in RATE_COLORS.items()
    ]
    axes.legend(
        handles=handles, title="rate", loc="lower left", handletextpad=0.1, title_fontsize=8
    )
    axes.set_title("Ends lie closer together than starts", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "dashed: at the start; no point: every seed diverges")


def _plain_ticks(axes: Axes, x: Any, y: Any) -> None:
    for axis, ticks in ((axes.xaxis, x), (axes.yaxis, y)):
        axis.set_minor_locator(NullLocator())
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_kinds(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.axhline(1, **EDGE_LINE)
    for index, size in enumerate(TEN_BATCHES):
        for offset, kind in zip((-0.18, 0, 0.18), KINDS, strict=True):
            ends = final(arrays, kind, size, TEN_RATE)
            marker, color = KIND_LOOKS[kind]
            axes.plot(index + offset, np.median(ends), **_style.points(color, marker=marker))
            ten = float(arrays[f"ten_{kind}"][index])
            axes.plot(index + offset + 3.5, ten, **_style.points(color, marker=marker))
        for at, tops in (
            (index, np.median(final(arrays, "top", size, TEN_RATE))),
            (index + 3.5, arrays["ten_top"][index]),
        ):
            axes.plot([at - 0.3, at + 0.3], [tops] * 2, color=_style.QUIET, lw=1.6)
    places = [*range(3), *(i + 3.5 for i in range(3))]
    axes.set_xticks(places, [f"B = {size}" for size in TEN_BATCHES * 2])
    axes.set_xlim(-0.5, 6)
    axes.set_ylim(0, 1.35)
    for at, text in ((1, "one output"), (4.5, "ten outputs")):
        axes.text(at, 1.27, text, ha="center", va="center", fontsize=8)
    axes.axvline(2.75, color=_style.FAINT, lw=0.8)
    axes.set_ylabel("$K$   at the end")
    handles = [
        *(
            Line2D(
                [], [], label=kind, **_style.points(KIND_LOOKS[kind][1], marker=KIND_LOOKS[kind][0])
            )
            for kind in KINDS
        ),
        Line2D([], [], label=r"$\eta\lambda_{\max}/2$", color=_style.QUIET, lw=1.6),
    ]
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4,
        handletextpad=0.2, columnspacing=1.0, handlelength=1.4,
    )  # fmt: skip
    axes.set_title(f"Rate {TEN_RATE}: three norms at the end", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "with ten outputs sums over the spectrum fall short of the exact")


def _draw_scores(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    scores = fixed_scores(arrays, "loss")
    rates = arrays["rates"]
    for b, (size, lift) in enumerate(zip(CONTROLLED, (0, 2, -4), strict=True)):
        color = COLORS[size]
        shown = np.isfinite(scores[b]).all(axis=1)
        fixed = np.array([interval(row) for row in scores[b][shown]])
        look = _style.points(color) | {"linestyle": "-", "lw": 1.5, "color": color}
        axes.errorbar(rates[shown], 10 ** fixed[:, 0], yerr=_spread(fixed), **look)
        held = np.array([interval(late(np.log10(arrays["held_loss"][b])))])
        usual = np.median(arrays["held_rate"][b][:, -2:])
        axes.errorbar(
            usual, 10 ** held[:, 0], yerr=_spread(held), zorder=5, **_star(color), ecolor=_style.INK
        )
        axes.annotate(
            f"B = {size}",
            (rates[shown][0], 10 ** fixed[0, 0]),
            xytext=(-7, lift),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=7.5,
            color=color,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_ticks(axes, RATES_QUICK, (1e-5, 1e-4, 1e-3, 1e-2))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"$10^{{{np.log10(value):.0f}}}$")
    )
    axes.set_xlim(rates[0] / 1.6, rates[-1] * 1.15)
    axes.set_ylim(5e-6, 2e-1)
    axes.set_xlabel(r"$\eta$   learning rate (held: median at the end)")
    axes.set_ylabel("$L$   late training loss")
    n_seeds = arrays["edge_loss"].shape[1]
    counts = zip(CONTROLLED, lost(arrays), strict=True)
    lines = [f"B = {size}: {number} of {n_seeds}" for size, number in counts]
    axes.text(
        0.04, 0.05, "\n".join(["lost if K = 1 is held:", *lines]), transform=axes.transAxes,
        va="bottom", fontsize=7.5, linespacing=1.5,
    )  # fmt: skip
    handles = [
        Line2D([], [], label="fixed rate", **_style.points(_style.QUIET)),
        Line2D([], [], label=f"rate that holds K = {TARGET}", **_star("white")),
    ]
    axes.legend(handles=handles, loc="upper right", handletextpad=0.2)
    axes.set_title(
        f"K = {TARGET} ties with the best rate of each batch size", pad=_style.SUBTITLE_PAD
    )
    _style.subtitle(axes, "after equal steps, without a search; no point: some seeds diverge")


def _star(color: str) -> dict[str, Any]:
    return _style.points(color, size=10.5, marker="*") | {"markeredgecolor": _style.INK}


def _spread(centres: np.ndarray) -> np.ndarray:
    """Error bars of 10 to the mean."""
    mean, half = centres.T
    return np.array([10**mean - 10 ** (mean - half), 10 ** (mean + half) - 10**mean])


def _draw_comparisons(figure: Figure, place: Any, arrays: dict[str, np.ndarray]) -> None:
    found = comparisons(arrays)
    inner = place.subgridspec(1, 2, width_ratios=(1.5, 1), wspace=0.1)
    left, right = (figure.add_subplot(inner[0, k]) for k in range(2))
    names = [*map(str, CONTROLLED), "common"]
    for axes, prefix in ((left, ""), (right, "error_")):
        axes.plot([0, 0], [-0.4, 3.6], **EDGE_LINE)
        for row, name in enumerate(names):
            for shift, text, filled in ((-0.13, "steps", True), (0.13, "cost", False)):
                mean, half = found[f"{prefix}{text}_{name}"]
                axes.plot([mean - half, mean + half], [row + shift] * 2, color=_style.INK, lw=1)
                axes.plot(mean, row + shift, zorder=4, **_style.points(_style.INK, filled=filled))
        axes.set_ylim(3.6, -0.9)
        axes.grid(visible=False, axis="y")
        axes.axhline(2.5, color=_style.FAINT, lw=0.8)
    left.set_yticks(range(4), [*(f"B = {size}" for size in CONTROLLED), "one\nfor all"])
    right.set_yticks(range(4), [""] * 4)
    left.set_xlabel("difference of\n" r"$\log_{10}$ training loss")
    right.set_xlabel("of held-out error,\npercentage points")
    handles = [
        Line2D([], [], label="equal steps", **_style.points(_style.INK)),
        Line2D([], [], label="equal cost", **_style.points(_style.INK, filled=False)),
    ]
    left.legend(
        handles=handles,
        loc="upper left",
        ncols=2,
        handletextpad=0.1,
        columnspacing=0.8,
        bbox_to_anchor=(-0.03, 1.02),
    )
    left.set_title("Held minus best fixed rate", pad=_style.SUBTITLE_PAD)
    _style.subtitle(left, "negative: held is better; fixed rates chosen after the fact")
