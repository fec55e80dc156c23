r"""A small catapult is a pulse; closed forms also give peak and final NTK of larger ones.

Gradient descent on the two-layer linear net :math:`f = n^{-1/2} v\cdot u\,x` with one datum, label 0
and a rate of :math:`a_0 = \eta\lambda_0 = 2 + \delta`, in the loss :math:`w = 2\eta^2\kappa L`
(:math:`\kappa = 1/n`) and :math:`a = \eta\lambda`, with the NTK :math:`\lambda`:

.. math:: w = \frac{\delta^2}{2}\,\mathrm{sech}^2\,\delta(t - t^*), \qquad
          a = 2 - \delta\tanh\delta(t - t^*), \qquad
          t^* = \frac{\ln(2\delta^2/w_0)}{2\ln(1 + \delta)}

for small :math:`\delta`; the height is :math:`\delta^2/2 + \delta^3/3` to the next order, and
:math:`a_\infty = 2 - \delta - \frac23\delta^2 - \frac49\delta^3 - \dots` All are derived in
`eosim.catapult`; the phenomenon is that of Lewkowycz et al. 2020, arXiv 2003.02218, and Meltzer & Liu
2023, arXiv 2301.07737, who also show that the weight norm falls while the loss is large. Here it is
in proportion to the NTK.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from eosim import catapult
from figures import _style
from figures._headline import Row

# Our choice: wide enough that the loss starts far below its peak, w_0 being about 1 / n. The
# reduction needs no vector of this length after the start.
WIDTH, SEED = 4096, 0
# Our choice: from where the pulse is accurate to where only its shape is left.
RATES = (2.1, 2.2, 2.5)
COLORS = (_style.BLUE, _style.GREEN, _style.VERMILLION)
# Our choice: what is shown; the runs go on until they have converged.
N_SHOWN, N_STEPS = 70, 200
# Our choice: starts so small that they stand for 0, and spacings of delta = a_0 - 2.
W_START = 1e-8
N_DELTAS_QUICK, N_DELTAS_FULL = 24, 96
DELTA_LIMITS = (0.03, 0.8)
LINE_LIMITS = (0.02, 0.8)
# The accuracy that `eosim.catapult.peak` states: height up to delta = 0.5, and time.
HEIGHT_LIMIT, HEIGHT_TOLERANCE, TIME_TOLERANCE = 0.5, 0.07, 1.5
# Final NTK of an infinitesimal start, to four digits, found by running the map.
FINAL_RATES, FINAL_VALUES, FINAL_TOLERANCE = (2.1, 2.5), (1.8929, 1.2823), 2e-4
FINAL_STARTS = (1e-8, 1e-9, 1e-10)
# The series leaves out powers from the seventh on: 0.14 delta^7 at most, up to 0.8. A net also has
# the error of the first integral in w_0, for which 1e-5 is room.
SERIES_ROOM = 0.2
MAX_STEPS = 20_000
# Weight norm and NTK are sums of the same squares.
ROUNDING = 1e-12


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Runs of the net, and peaks and ends of the map over many rates."""
    rng = np.random.default_rng(SEED)
    hidden, readout = rng.standard_normal((WIDTH, 1)), rng.standard_normal(WIDTH)
    squares, product = float((hidden**2).sum() + readout @ readout), float(hidden[:, 0] @ readout)
    arrays: dict[str, np.ndarray] = {}
    runs, pulses, peaks, starts = [], [], [], []
    fine = np.linspace(0, N_SHOWN, 10 * N_SHOWN + 1)
    for rate in RATES:
        lr, w_start = rate * WIDTH / squares, (rate * product / squares) ** 2
        net = catapult.LinearNetMoments([[1.0]], [0.0], hidden, readout, lr)
        run = catapult.simulate(net, N_STEPS)
        norm = run["weight_norm"] / run["weight_norm"][0]
        runs.append(np.array([2 * lr**2 / WIDTH * run["loss"], lr * run["ntk"], norm]))
        pulses.append(np.array(catapult.pulse(rate, w_start, fine)))
        peaks.append(np.array(catapult.peak(rate, w_start)))
        starts.append(w_start)
    arrays["rate"] = np.array(RATES)
    arrays["run"] = np.array(runs)  # (rate, quantity, step)
    arrays["run_peak"] = np.array(peaks)
    arrays["run_start"] = np.array(starts)
    arrays["pulse_step"], arrays["pulse"] = fine, np.array(pulses)
    ends = [catapult.final_ntk(*start) for start in zip(RATES, starts, strict=True)]
    arrays["run_final"] = np.array(ends)

    delta = np.geomspace(*DELTA_LIMITS, N_DELTAS_QUICK if quick else N_DELTAS_FULL)
    found = catapult.phase_diagram(2 + delta, W_START, max_steps=MAX_STEPS)
    arrays["delta"] = delta
    arrays["peak_w"], arrays["peak_step"] = found.peak_w, found.peak_step
    arrays["final"] = found.final_a
    line = np.geomspace(*LINE_LIMITS, 300)
    arrays["line"] = line
    arrays["line_peak"] = np.array([catapult.peak(2 + d, W_START) for d in line])
    arrays["line_final"] = np.array([catapult.final_ntk(2 + d) for d in line])
    arrays["stated_peak"] = np.array([catapult.peak(2 + d, W_START) for d in delta])
    arrays["stated_final"] = np.array([catapult.final_ntk(2 + d) for d in delta])
    rates, smallest = np.meshgrid(FINAL_RATES, FINAL_STARTS, indexing="ij")
    arrays["known_final"] = catapult.phase_diagram(rates, smallest).final_a
    return arrays


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Final NTK, peaks and pulse against their closed forms."""
    rows = []
    for rate, expected, ends in zip(FINAL_RATES, FINAL_VALUES, arrays["known_final"], strict=True):
        worst = ends[np.abs(ends - expected).argmax()]
        name = f"a_0 = {rate:g}, w_0 <= 1e-8: final NTK, worst"
        rows.append(Row(name, expected, FINAL_TOLERANCE, float(worst)))
    delta, stated = arrays["delta"], arrays["stated_peak"]
    small = delta <= HEIGHT_LIMIT
    height = np.abs(arrays["peak_w"] / stated[:, 0] - 1)[small].max()
    time = np.abs(arrays["peak_step"] - stated[:, 1]).max()
    series = (np.abs(arrays["final"] - arrays["stated_final"]) / delta**7)[delta > 0.2].max()
    rows += [
        Row(
            "delta <= 0.5: |peak height / form - 1|", HEIGHT_TOLERANCE, 0, float(height), "at most"
        ),
        Row("delta <= 0.8: |step of peak - form|", TIME_TOLERANCE, 0, float(time), "at most"),
        Row("|final NTK - series| / delta^7", SERIES_ROOM, 0, float(series), "at most"),
    ]
    for index, rate in enumerate(arrays["rate"]):
        w, a, norm = arrays["run"][index]
        top, when = arrays["run_peak"][index]
        gap = max(
            abs(w.max() / top - 1) / HEIGHT_TOLERANCE, abs(w.argmax() - when) / TIME_TOLERANCE
        )
        end = float(arrays["run_final"][index])
        rows += [
            Row(f"net at {rate:g}: peak, in tolerances", 1, 0, float(gap), "at most"),
            Row(f"net at {rate:g}: final NTK", end, SERIES_ROOM * (rate - 2) ** 7 + 1e-5, a[-1]),
            Row(
                f"net at {rate:g}: |weight norm / NTK - 1|",
                ROUNDING,
                0,
                float(np.abs(norm * a[0] / a - 1).max()),
                "at most",
            ),
        ]
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Six panels: loss, NTK and weight norm of three runs; height, time and end over the rate."""
    start = float(arrays["run_start"][0])
    figure = _style.canvas(
        11.0,
        7.6,
        "A small catapult is a pulse; closed forms also give peak and final NTK of larger ones",
        f"Two-layer linear net of width {WIDTH}, one datum, label 0, gradient descent, "
        f"$w_0 \\approx {start * 1e5:.1f} \\times 10^{{-5}}$ (top); the map at $w_0 = 10^{{-8}}$ (bottom). "
        "Points: simulation; lines: closed forms. Own settings.",
    )
    edges = _style.margins(figure, left=0.75, right=0.3, top=0.98, bottom=0.95)
    grid = figure.add_gridspec(2, 3, wspace=0.33, hspace=0.62, **edges)
    top = [figure.add_subplot(grid[0, column]) for column in range(3)]
    _draw_runs(top, arrays)
    _draw_height(figure.add_subplot(grid[1, 0]), arrays)
    _draw_time(figure.add_subplot(grid[1, 1]), arrays)
    _draw_final(figure.add_subplot(grid[1, 2]), arrays)
    return figure


def _draw_runs(panels: list[Axes], arrays: dict[str, np.ndarray]) -> None:
    loss, ntk, norm = panels
    fine = arrays["pulse_step"]
    for index, (rate, color) in enumerate(zip(arrays["rate"], COLORS, strict=True)):
        measured, (w, a) = arrays["run"][index], arrays["pulse"][index]
        steps = np.arange(0, N_SHOWN + 1, 2 if rate < 2.15 else 1)
        for axes, line, values in (
            (loss, w, measured[0]),
            (ntk, a, measured[1]),
            (norm, a / rate, measured[2]),
        ):
            axes.plot(fine, line, color=color, lw=1.2)
            axes.plot(steps, values[steps], **_style.points(color, size=3.2))
        height, when = arrays["run_peak"][index]
        loss.plot([when], [height], **_style.points(color, filled=False, size=8, marker="D"))
    loss.set_yscale("log")
    loss.set_ylim(3e-6, 1)
    loss.yaxis.set_major_locator(FixedLocator([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1]))
    loss.yaxis.set_minor_locator(NullLocator())
    loss.set_ylabel(r"$w = 2\eta^2 L/n$   loss")
    ntk.set_ylabel(r"$a = \eta\lambda$   rate × NTK")
    norm.set_ylabel(r"$|\theta_t|^2 / |\theta_0|^2$   weight norm")
    ntk.set_ylim(1.1, 2.65)
    ntk.axhline(2, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    norm.set_ylim(0.45, 1.05)
    for axes, title, text in (
        (loss, "Loss", r"line: the pulse $(\delta^2/2)\,\mathrm{sech}^2$; diamond: stated peak"),
        (ntk, "NTK", r"line: $2 - \delta\,\tanh\,\delta(t - t^*)$; dashed: the edge, 2"),
        (norm, "Weight norm", "in proportion to the NTK, to rounding"),
    ):
        axes.set_title(title, pad=_style.SUBTITLE_PAD)
        _style.subtitle(axes, text)
        axes.set_xlim(-2, N_SHOWN + 2)
        axes.set_xlabel("$t$   step")
    for x, y, rate, color in zip((56, 56, 56), (2.03, 1.66, 1.33), RATES, COLORS, strict=True):
        ntk.text(x, y, f"$a_0 = {rate:g}$", fontsize=8.5, color=color)


def _log_delta(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlim(LINE_LIMITS[0], 1)
    axes.xaxis.set_major_locator(FixedLocator([0.02, 0.05, 0.1, 0.2, 0.5, 1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(r"$\delta = a_0 - 2$   rate beyond the edge")


def _draw_height(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    line = arrays["line"]
    axes.plot(line, line**2 / 2, color=_style.QUIET, lw=1, ls=(0, (4, 3)))
    axes.plot(line, arrays["line_peak"][:, 0], color=_style.BLUE, lw=1.2)
    axes.plot(arrays["delta"], arrays["peak_w"], **_style.points(_style.BLUE))
    axes.set_yscale("log")
    _log_delta(axes)
    axes.set_ylim(1e-4, 1)
    axes.set_title("Height of the peak", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"$\delta^2/2 + \delta^3/3$; dashed: the pulse alone, $\delta^2/2$")
    axes.set_ylabel("$w$ at the peak")


def _draw_time(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.plot(arrays["line"], arrays["line_peak"][:, 1], color=_style.BLUE, lw=1.2)
    axes.plot(arrays["delta"], arrays["peak_step"], **_style.points(_style.BLUE))
    axes.set_yscale("log")
    _log_delta(axes)
    axes.set_ylim(8, 500)
    axes.yaxis.set_major_locator(FixedLocator([10, 20, 50, 100, 200, 500]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title("Time of the peak", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"$\ln(2\delta^2/w_0)\,/\,2\ln(1+\delta)$")
    axes.set_ylabel("step of the peak")


def _draw_final(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    line = arrays["line"]
    axes.plot(2 + line, 2 - line, color=_style.QUIET, lw=1, ls=(0, (4, 3)))
    axes.plot(2 + line, arrays["line_final"], color=_style.BLUE, lw=1.2)
    axes.plot(2 + arrays["delta"], arrays["final"], **_style.points(_style.BLUE))
    for rate, color, run in zip(arrays["rate"], COLORS, arrays["run"], strict=True):
        axes.plot([rate], [run[1, -1]], **_style.points(color, filled=False, size=9, marker="D"))
    axes.set_xlim(1.98, 2.84)
    axes.set_ylim(0.5, 2.06)
    axes.xaxis.set_major_locator(FixedLocator([2, 2.2, 2.4, 2.6, 2.8]))
    axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 1.5, 2]))
    axes.set_title("Final NTK", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"series to $\delta^6$; dashed: $2 - \delta$; diamonds: the runs above")
    axes.set_xlabel(r"$a_0 = \eta\lambda_0$   rate × NTK at the start")
    axes.set_ylabel(r"$a_\infty = \eta\lambda_\infty$   at the end")
