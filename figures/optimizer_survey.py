r"""Ten optimizers come to rest at the edge of stability of each, RMSProp and NAdam 5 to 9 % above it.

Theory: with the preconditioner P held fixed a rule is linear, and a quadratic loses stability where the
largest eigenvalue of :math:`P^{-1}H` is the threshold of the momentum that is left: 2/lr without any,
38/lr for the average of Adam, 13.57/lr for that of NAdam, 3.8/lr for heavy ball, 1.357/lr for Nesterov
(at 0.9). The ratio to it, on 500 handwritten digits with full batches, is 1 in the second half of a run:

- gradient descent, AdaGrad, Nesterov, Adam, AdamW, Padam, Adafactor: medians of 0.97 to 1.015 with
  three seeds;
- RMSProp 1.07 to 1.09 and NAdam 1.055 to 1.065: above the edge, which is of a P that does not move. They
  approach it with the memory of P: 1.33, 1.12, 1.08, 1.01 for RMSProp (one seed) and 1.24, 1.10, 1.06,
  1.01 for NAdam with beta2 = 0.9, 0.98, 0.99, 0.999. Adafactor without momentum (rate 3e-4): 1.06;
- heavy ball 1.00 with one seed; with two others it is still rising at 0.94 and 0.96 after 6000 steps;
- AMSGrad is not drawn: it never forgets the large gradients of the first steps, and its ratio was 0.02
  to 0.6 after 6000 steps at rates from 1e-3 to 3e-2.

Without P the raw sharpness, the largest eigenvalue of H, is held where the ratio is; with P it may rise
while the ratio rests. By how much depends on the seed: by 3 % (Adafactor) to 117 % (AdamW).

Adaptive rules at the edge: Cohen et al. 2022, arXiv 2207.14484. Network, data and rates are this
project's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MultipleLocator

import eosim
from figures import _digits_network, _style
from figures._headline import Row

STEPS_QUICK, STEPS_FULL = 2500, 6000
SEEDS_QUICK, SEEDS_FULL = (0,), (0, 1, 2)
FROM = 1000  # by this step every run is at its edge or close below it
_MEMORY = {"beta2": _digits_network.BETA2, "eps": _digits_network.EPS}


def rules(problem: eosim.Perceptron) -> dict[str, Any]:
    """Every rule with its rate, our choice: large enough to meet the edge before step 1000."""
    return {
        "GD": eosim.GradientDescent(0.3),
        "RMSProp": eosim.RMSProp(3e-4, bias_correction=True, **_MEMORY),
        "AdaGrad": eosim.AdaGrad(0.03),
        "Nesterov": eosim.Nesterov(0.2),
        "NAdam": eosim.NAdam(1e-3, **_MEMORY),
        "heavy ball": eosim.HeavyBall(0.6),
        "Adam": _digits_network.adam(1e-3),
        "AdamW": eosim.AdamW(1e-3, **_MEMORY),
        "Padam": eosim.Padam(0.03, exponent=0.25, **_MEMORY),
        "Adafactor": eosim.Adafactor(1e-3, problem.shapes, beta1=0.9, beta2=_digits_network.BETA2),
    }


# The linear filter that is left when P is frozen decides the edge, and the colour.
FILTERS = {
    "none": _style.GRADIENT_DESCENT,
    "Nesterov": _style.NESTEROV,
    "heavy ball": _style.HEAVY_BALL,
    "EMA": _style.EMA_MOMENTUM,
}
FILTER_OF = {
    "GD": "none",
    "RMSProp": "none",
    "AdaGrad": "none",
    "Nesterov": "Nesterov",
    "NAdam": "Nesterov",
    "heavy ball": "heavy ball",
}
# Rules whose P is 1: their raw sharpness is bound to rest where the ratio does.
PLAIN = ("GD", "Nesterov", "heavy ball")
ABOVE = ("RMSProp", "NAdam")
# Lowest and highest late median. Measured with three seeds: RMSProp 1.07 to 1.09, NAdam 1.055 to 1.065,
# heavy ball 0.94 to 1.00, all others 0.97 to 1.015.
BANDS = {"RMSProp": (1.0, 1.15), "NAdam": (1.0, 1.15), "heavy ball": (0.9, 1.1)}
BAND = (0.95, 1.05)
# Raw sharpness, end over step 1000: at most 1.054 without P; the medians of three seeds of Adam, AdamW and
# NAdam are 1.53, 1.50 and 1.32.
STILL, RISEN = 0.1, 1.2


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Ratio and raw sharpness along the runs of all rules; (seed, record)."""
    problem = _digits_network.load_problem()
    n_steps = STEPS_QUICK if quick else STEPS_FULL
    seeds = SEEDS_QUICK if quick else SEEDS_FULL
    arrays: dict[str, np.ndarray] = {"seed": np.array(seeds)}
    for name, rule in rules(problem).items():
        paths = [_digits_network.follow(problem, rule, n_steps, seed=seed) for seed in seeds]
        arrays["step"] = paths[0]["step"]
        arrays[f"{name}_lr"] = np.array(rule.lr)
        arrays[f"{name}_critical"] = np.array(float(rule.critical_sharpness()))
        for key in ("ratio", "sharpness"):
            arrays[f"{name}_{key}"] = np.array([path[f"edge.{key}"] for path in paths])
    return arrays


def _late(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The ratios of the second half of the run; (seed, record)."""
    step = arrays["step"]
    return arrays[f"{name}_ratio"][:, step >= step[-1] / 2]


def _medians(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    return np.asarray(np.median(_late(arrays, name), axis=1))


def _rise(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Raw sharpness over the last tenth of the run (median) over that at step 1000, by seed."""
    step, sharpness = arrays["step"], arrays[f"{name}_sharpness"]
    end = np.median(sharpness[:, step >= 0.9 * step[-1]], axis=1)
    return end / sharpness[:, np.searchsorted(step, FROM)]


def _names(arrays: dict[str, np.ndarray]) -> list[str]:
    return [key.removesuffix("_lr") for key in arrays if key.endswith("_lr")]


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Every median in its band, and which rules go on to sharper regions."""
    rows = []
    for name in _names(arrays):
        low, high = BANDS.get(name, BAND)
        middle, half = (low + high) / 2, (high - low) / 2
        medians = _medians(arrays, name)
        worst = float(medians[np.abs(medians - middle).argmax()])
        rows.append(Row(f"{name}: ratio, median of the second half", middle, half, worst))
    for name in PLAIN:
        away = float(np.abs(_rise(arrays, name) - 1).max())
        rows.append(
            Row(f"{name}: |raw sharpness, end / step {FROM} - 1|", STILL, 0, away, "at most")
        )
    for name in ("Adam", "AdamW", "NAdam"):
        rise = float(np.median(_rise(arrays, name)))
        rows.append(Row(f"{name}: raw sharpness, end / step {FROM}", RISEN, 0, rise, "at least"))
    return rows


def _color(name: str) -> str:
    return FILTERS[FILTER_OF.get(name, "EMA")]


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """The ratio along every run, and below what they come to."""
    names, seeds = _names(arrays), arrays["seed"]
    above = 100 * np.concatenate([_medians(arrays, name) - 1 for name in ABOVE])
    figure = _style.canvas(
        12.4,
        8.3,
        f"Every optimizer has an edge of its own and comes to rest there, {' and '.join(ABOVE)} "
        f"{above.min():.0f} to {above.max():.0f} % above",
        "scikit-learn's digits, the first 500, centred, over one standard deviation; 64-32-10, tanh, "
        f"square loss; full batches; seed {seeds[0]}"
        + (f" (pale lines: {', '.join(map(str, seeds[1:]))})" if len(seeds) > 1 else "")
        + f"; $\\beta$ = $\\beta_1$ = 0.9, $\\beta_2$ = {_digits_network.BETA2:g}, Padam with "
        "$\\nu^{1/4}$.\nRatio: the largest eigenvalue of $P^{-1}H$ over the edge, where theory has the "
        "rule lose stability once its preconditioner P is held fixed (P = 1 for GD, Nesterov, heavy "
        "ball).\nColour: the momentum that is left then; EMA: exponential moving average, as in Adam.",
    )
    edges = _style.margins(figure, left=0.72, right=0.25, top=0.98, bottom=1.1)
    outer = figure.add_gridspec(2, 1, height_ratios=(2.1, 1), hspace=0.42, **edges)
    grid = outer[0].subgridspec(2, 5, wspace=0.16, hspace=0.62)
    for place, name in enumerate(names):
        row, column = divmod(place, 5)
        axes = figure.add_subplot(grid[row, column])
        _draw_ratio(axes, arrays, name)
        if column == 0:
            axes.set_ylabel("ratio to the edge")
        else:
            axes.tick_params(labelleft=False)
        if row == 1:
            axes.set_xlabel("$k$   step")
    panels = outer[1].subgridspec(1, 2, wspace=0.14)
    _draw_medians(figure.add_subplot(panels[0]), arrays)
    _draw_rises(figure.add_subplot(panels[1]), arrays)
    return figure


def _draw_ratio(axes: Axes, arrays: dict[str, np.ndarray], name: str) -> None:
    step, ratios, color = arrays["step"], arrays[f"{name}_ratio"], _color(name)
    lr, critical = float(arrays[f"{name}_lr"]), float(arrays[f"{name}_critical"])
    axes.axhline(1, color=_style.INK, lw=1.1, ls=(0, (4, 3)))
    if name not in PLAIN:  # before the first step there is no P
        step, ratios = step[1:], ratios[:, 1:]
    for others in ratios[1:]:
        axes.plot(step, others, color=color, lw=0.7, alpha=0.45)
    axes.plot(step, ratios[0], color=color, lw=0.7, alpha=0.7)
    axes.plot(step, ratios[0], **_style.points(color, size=2.0))
    median = float(_medians(arrays, name)[0])
    axes.set_title(f"{name}, $\\eta$ = {lr:g}", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, f"edge {critical * lr:.4g}/$\\eta$; late median {median:.3f}")
    axes.set_ylim(0, 1.3)
    axes.set_xlim(-0.02 * step[-1], 1.03 * step[-1])
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    axes.xaxis.set_major_locator(MultipleLocator(1000 if step[-1] < 4000 else 2000))


def _rule_axis(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    names = _names(arrays)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(FixedLocator(range(len(names))))
    axes.set_xticklabels(["heavy\nball" if name == "heavy ball" else name for name in names])
    axes.tick_params(axis="x", labelsize=7)


def _draw_medians(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("Ratio in the second half", pad=_style.SUBTITLE_PAD)
    each = " of each seed" if len(arrays["seed"]) > 1 else ""
    _style.subtitle(
        axes, f"median and 10 to 90 %{each}; grey: the range that the median is tested for"
    )
    for place, name in enumerate(_names(arrays)):
        low, high = BANDS.get(name, BAND)
        axes.fill_between([place - 0.42, place + 0.42], low, high, color=_style.FAINT, lw=0)
        late = _late(arrays, name)
        for x, ratios in zip(_spread(place, len(late)), late, strict=True):
            axes.plot([x, x], np.quantile(ratios, [0.1, 0.9]), color=_color(name), lw=1.6)
            axes.plot(x, np.median(ratios), **_style.points(_color(name), size=4.5))
    axes.axhline(1, color=_style.INK, lw=1.1, ls=(0, (4, 3)))
    axes.set_ylim(0.87, 1.18)
    _rule_axis(axes, arrays)
    axes.set_ylabel("ratio to the edge")


def _draw_rises(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("Raw sharpness at the end", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes, f"largest eigenvalue of H over that at step {FROM}; without P it cannot rise"
    )
    for place, name in enumerate(_names(arrays)):
        rise = _rise(arrays, name)
        look = _style.points(_color(name), size=4.5)
        axes.plot(_spread(place, len(rise)), rise, **look)
    axes.axhline(1, color=_style.INK, lw=1.1, ls=(0, (4, 3)))
    _rule_axis(axes, arrays)
    axes.set_ylabel(f"end / step {FROM}")
    handles = [Line2D([], [], **_style.points(color)) for color in FILTERS.values()]
    axes.legend(handles, list(FILTERS), title="momentum", loc="upper left", title_fontsize=8)


def _spread(place: float, n: int) -> np.ndarray:
    """Abscissae of the seeds of one rule."""
    return place + (np.linspace(-0.22, 0.22, n) if n > 1 else np.zeros(1))
