r"""Gradient noise lowers the sharpness where it drives large cycles, and lifts it where a force damps them.

Noise of variance :math:`s^2` along the sharpest direction is said to lower the mean sharpness by
:math:`\eta\beta s^2/4\alpha` (Liao, Kolomvaki & Kyrillidis 2026, arXiv 2604.21016), where
:math:`\alpha` is the rate of progressive sharpening and :math:`\beta = |\nabla S|^2`. Here on a model of
two numbers, `NoisyEdge`, where a force c pulls the sharpness towards a target beyond the edge. Measured
gaps over the formula are

- near 1 where the force is weak and the noise strong: it drives large cycles;
- negative, so that the sharpness sits *above* the edge, where the force is strong and the noise weak;
- far above 1 (45 at eta = 0.02, c = 0.03, s = 2) where force and noise are weak and the rate is large:
  those cycles grow without noise, and their gap hardly follows it.

Where the 2-cycle without noise is stable, :math:`c > 2\eta\alpha` (:math:`\beta = 1`), weak noise always
lifts the sharpness. From the linearised recursion of :math:`(\ln x^2, S)` (derived here),

.. math:: \frac{\text{gap}}{\eta s^2/4\alpha} \to
          -1 - \frac{\eta\alpha\,(2 - \eta c + 2\eta^2\alpha)}{(c - 2\eta\alpha)(2 - \eta c + \eta^2\alpha)}
          \approx -\frac{c - \eta\alpha}{c - 2\eta\alpha}

as s falls, at most -1. It is measured without the noise of first order, which hides it:
:math:`\ln|x|` does not grow in the mean, so that with :math:`y = S - 2/\eta` the mean of y is that of

.. math:: y + \frac{s\xi}{x} - \frac1\eta \ln\left|1 + \eta y + \frac{\eta s\xi}{x}\right|,

of second order in s.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from eosim.flows.self_stabilization import NoisyEdge
from figures import _style
from figures._headline import Row

SEED = 0
# Our choice: progressive sharpening at the edge by eta * 4 per step; forces on both sides of 2 eta alpha,
# which is 0.16 and 0.04 at the two rates.
ALPHA = 4.0
RATES, FORCES = (0.02, 0.005), (0.03, 0.1, 1.0)
NOISES_QUICK = np.array([2.0, 5.0, 10.0, 20.0, 40.0])
NOISES_FULL = np.array([2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0])
# Our choice: one path is far too noisy for the gap.
REPLICAS_QUICK, REPLICAS_FULL = 60, 400
N_STEPS, DROPPED = 30_000, 6_000
# Our choice: noise weak enough for its leading order, and c / (2 eta alpha). Cycles near 1 damp too slowly
# for these steps at the small rate.
WEAK_NOISE = 0.3
WEAK_FORCES = {0.02: np.array([1.5, 2, 4, 8, 16]), 0.005: np.array([3.0, 6, 12, 25])}
WEAK_QUICK, WEAK_FULL = 30, 100
# Our choice: at the larger rate, one path of each kind: (force, noise).
ORBITS = {"large": (0.03, 20.0), "small": (1.0, 5.0)}
ORBIT_STEPS = 1500
# Means of independent replicas: 40 of them, beyond 4.5 standard errors once in 3000.
STANDARD_ERRORS = 4.5
# Ratio and standard error at the small rate with force 0.1, measured here with 400 replicas.
AT_SMALL_RATE = {10.0: (-0.795, 0.048), 20.0: (0.489, 0.021), 40.0: (0.871, 0.009)}
COLORS = {0.03: _style.BLUE, 0.1: _style.ORANGE, 1.0: _style.INK}
MARKERS = {0.03: "o", 0.1: "D", 1.0: "s"}


def edge(lr: float, force: float, noise: float) -> NoisyEdge:
    """With progressive sharpening at the rate ALPHA where S = 2/lr."""
    return NoisyEdge(lr, force, 2 / lr + ALPHA / force, noise)


def weak_noise_limit(lr: np.ndarray, force: np.ndarray) -> np.ndarray:
    """Gap over formula as the noise falls, where the 2-cycle without noise is stable."""
    above = force - 2 * lr * ALPHA
    numerator = lr * ALPHA * (2 - lr * force + 2 * lr**2 * ALPHA)
    return -1 - numerator / (above * (2 - lr * force + lr**2 * ALPHA))


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Gaps over the formula by rate, force and noise; the weak-noise limit; two orbits."""
    noises = NOISES_QUICK if quick else NOISES_FULL
    replicas = REPLICAS_QUICK if quick else REPLICAS_FULL
    shape = (len(RATES), len(FORCES), len(noises))
    arrays = {"noise": noises, "replicas": np.array(replicas)}
    for name in ("ratio", "error", "identity", "identity_error", "bounded"):
        arrays[name] = np.empty(shape)
    for index in np.ndindex(shape):
        lr, force, noise = RATES[index[0]], FORCES[index[1]], float(noises[index[2]])
        found = measure(
            edge(lr, force, noise), replicas, SEED + int(np.ravel_multi_index(index, shape))
        )
        for name, value in found.items():
            arrays[name][index] = value
    n_weak = WEAK_QUICK if quick else WEAK_FULL
    for lr, relative in WEAK_FORCES.items():
        found = [_weak(lr, float(u), n_weak) for u in relative]
        arrays[f"weak_{lr:g}"] = np.array(found)  # (force, [ratio, error])
    for name, (force, noise) in ORBITS.items():
        x, S = edge(RATES[0], force, noise).simulate(2 * ORBIT_STEPS, 1, seed=SEED)
        late = slice(-ORBIT_STEPS, None)
        size = np.abs(x[late, 0]) / np.sqrt(2 * ALPHA)
        arrays[f"orbit_{name}"] = np.column_stack([size, S[late, 0] - 2 / RATES[0]])
    return arrays


def measure(model: NoisyEdge, n_replicas: int, seed: int) -> dict[str, float]:
    """Gap over formula, and -(2/lr E[y x^2] + E[y^2 x^2])/s^2, which is 1: means and standard errors."""
    x, S = model.simulate(N_STEPS, n_replicas, seed=seed)
    bounded = np.isfinite(S[-1])
    y, square = S[DROPPED:, bounded] - 2 / model.lr, x[DROPPED:, bounded] ** 2
    gaps = -y.mean(axis=0)
    sharpening = model.force * (model.target - 2 / model.lr + gaps.mean())
    products = y * square
    ones = -(2 / model.lr * products.mean(axis=0) + (y * products).mean(axis=0)) / model.noise**2
    ratio, error = _mean(gaps / model.sharpness_gap(sharpening))
    one, its_error = _mean(ones)
    return {
        "ratio": ratio,
        "error": error,
        "identity": one,
        "identity_error": its_error,
        "bounded": float(bounded.mean()),
    }


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Over replicas, with its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _weak(lr: float, relative: float, n_replicas: int) -> tuple[float, float]:
    """Gap over formula at the weak noise, of second order; the force is this times 2 lr alpha."""
    model = edge(lr, relative * 2 * lr * ALPHA, WEAK_NOISE)
    x, S = model.simulate(N_STEPS, n_replicas, seed=SEED, start=float(np.sqrt(2 * ALPHA)))
    sharpening = model.force * (model.target - S[DROPPED:].mean())
    gaps = second_order_gap(x[DROPPED:], S[DROPPED:], lr)
    return _mean(gaps / model.sharpness_gap(sharpening))


def second_order_gap(x: np.ndarray, S: np.ndarray, lr: float) -> np.ndarray:
    """Of each replica: its gap without what is of first order in the noise, and vanishes in the mean."""
    y = S[:-1] - 2 / lr
    kick = -(x[1:] / x[:-1] + 1 + lr * y)  # lr s xi / x
    return -(lr * y + kick - np.log(np.abs(1 + lr * y + kick))).mean(axis=0) / lr


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Where the formula holds, where its sign is wrong, the weak-noise limit, and an exact identity."""
    noise, ratio = arrays["noise"], arrays["ratio"]
    error = STANDARD_ERRORS * arrays["error"]
    middle = float(np.abs(ratio[0, 1, noise >= 10] - 1).max())
    strong = float(np.abs(ratio[:, 0, noise == 40] - 1).max())
    above = (ratio + error)[:, 2, (noise >= 5) & (noise <= 10)]
    last = int(np.flatnonzero(noise == 40)[0])
    deviation = np.abs(arrays["identity"] - 1) / arrays["identity_error"]
    rows = [
        Row("replicas that stay bounded: least share", 1, 0, float(arrays["bounded"].min())),
        Row(
            "exact identity of E[y x^2]: SE apart",
            STANDARD_ERRORS,
            0,
            float(deviation.max()),
            "at most",
        ),
        # Measured with 400 replicas: up to 1.19 at c = 0.1, up to 1.07 at c = 0.03.
        Row("c = 0.1, eta = 0.02: |ratio - 1|, s >= 10", 0.25, 0, middle, "at most"),
        Row("c = 0.03, both rates: |ratio - 1|, s = 40", 0.15, 0, strong, "at most"),
        Row("c = 1: ratio + 4.5 SE, s = 5 to 10", 0, 0, float(above.max()), "at most"),
        Row(
            "c = 1, eta = 0.02: ratio - 4.5 SE, s = 40",
            0,
            0,
            float((ratio - error)[0, 2, last]),
            "at least",
        ),
        Row(
            "c = 0.03, eta = 0.02: ratio - 4.5 SE, s = 2",
            10,
            0,
            float((ratio - error)[0, 0, 0]),
            "at least",
        ),
    ]
    for s, (expected, spread) in AT_SMALL_RATE.items():
        at = (1, 1, int(np.flatnonzero(noise == s)[0]))
        tolerance = STANDARD_ERRORS * float(np.hypot(arrays["error"][at], spread))
        name = f"c = 0.1, eta = 0.005: ratio at s = {s:g}"
        rows.append(Row(name, expected, tolerance, float(ratio[at])))
    for lr, relative in WEAK_FORCES.items():
        measured, its_error = arrays[f"weak_{lr:g}"].T
        expected_ones = weak_noise_limit(np.array(lr), relative * 2 * lr * ALPHA)
        apart = float(np.abs((measured - expected_ones) / its_error).max())
        name = f"weak noise, eta = {lr:g}: SE from its limit"
        rows.append(Row(name, STANDARD_ERRORS, 0, apart, "at most"))
        worst = float(np.abs(measured / expected_ones - 1).max())
        rows.append(Row(f"weak noise, eta = {lr:g}: error", 0.1, 0, worst, "at most"))
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Gap over formula against the noise at two rates; its weak-noise limit; two orbits."""
    figure = _style.canvas(
        10.2,
        8.1,
        "Noise lowers the sharpness below the edge in large cycles only; damped ones it lifts",
        "$x \\leftarrow x - \\eta(Sx + s\\xi)$, $S \\leftarrow S - \\eta(x^2/2 + c(S - m))$, $m = "
        f"2/\\eta + {ALPHA:g}/c$; gap: $2/\\eta$ minus the mean of $S$; {int(arrays['replicas'])} "
        f"replicas from (2, $2/\\eta$), {N_STEPS:,} steps,\nthe first {DROPPED:,} dropped; $\\alpha$ "
        "measured as $c\\,(m - $ mean of $S)$. Bars: 2 standard errors. Bottom left: $s$ = "
        f"{WEAK_NOISE:g}, with a control variate. Own settings.",
    )
    handles = [
        Line2D([], [], label=f"$c$ = {c:g}", **_style.points(COLORS[c], marker=MARKERS[c], size=5))
        for c in FORCES
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        ncols=3,
        columnspacing=2.0,
        bbox_to_anchor=(0.1 / 10.2, 1 - 0.42 / 8.1),
    )
    edges = _style.margins(figure, left=0.75, right=0.25, top=1.28, bottom=1.05)
    grid = figure.add_gridspec(2, 2, wspace=0.24, hspace=0.5, **edges)
    for index in range(2):
        _draw_ratio(figure.add_subplot(grid[0, index]), arrays, index)
    _draw_weak(figure.add_subplot(grid[1, 0]), arrays)
    _draw_orbits(figure.add_subplot(grid[1, 1]), arrays)
    return figure


def _signed(value: float, _: object) -> str:
    return f"{value:g}".replace("-", "−")


Scale = Callable[[np.ndarray], np.ndarray]
# Our choice: linear up to 2, and logarithmic beyond, where weak noise and force are.
LINEAR, STRETCH = 2.0, 2.2


def _signed_scale() -> tuple[Scale, Scale]:
    """Linear within +- LINEAR and logarithmic beyond, with a continuous slope; and its inverse."""

    def forward(v: np.ndarray) -> np.ndarray:
        size = np.maximum(np.abs(v), LINEAR) / LINEAR
        return np.where(np.abs(v) > LINEAR, np.sign(v) * LINEAR * (1 + np.log(size)), v)

    def inverse(u: np.ndarray) -> np.ndarray:
        grown = LINEAR * np.exp(np.maximum(np.abs(u) / LINEAR - 1, 0))
        return np.where(np.abs(u) > LINEAR, np.sign(u) * grown, u)

    return forward, inverse


def _draw_ratio(axes: Axes, arrays: dict[str, np.ndarray], index: int) -> None:
    lr, noise = RATES[index], arrays["noise"]
    axes.axhline(0, color=_style.QUIET, lw=0.7)
    axes.axhline(1, color=_style.INK, lw=1.5)
    for place, force in enumerate(FORCES):
        color = COLORS[force]
        values, bars = arrays["ratio"][index, place], 2 * arrays["error"][index, place]
        axes.plot(noise, values, color=color, lw=0.8, alpha=0.5)
        look = _style.points(color, marker=MARKERS[force], size=5)
        axes.errorbar(noise, values, bars, elinewidth=1.0, ecolor=color, **look)
        if force > 2 * lr * ALPHA:
            level = float(weak_noise_limit(np.array(lr), np.array(force)))
            axes.plot([1.3, 2.6], [level, level], color=color, lw=1.5)
    axes.set_xscale("log")
    axes.set_yscale("function", functions=_signed_scale())
    axes.set_xlim(1.3, 55)
    axes.set_ylim(-4.5, 70 if index == 0 else 5.5)
    axes.xaxis.set_major_locator(FixedLocator([2, 5, 10, 20, 40]))
    axes.xaxis.set_major_formatter(FuncFormatter(_signed))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(FixedLocator([-4, -2, -1, 0, 1, 2, 5, 10, 20, 50]))
    axes.yaxis.set_major_formatter(FuncFormatter(_signed))
    axes.set_title(f"$\\eta$ = {lr:g}", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes, f"without noise the 2-cycle is stable for $c > 2\\eta\\alpha$ = {2 * lr * ALPHA:g}"
    )
    axes.text(52, 2.1, r"formula $\eta s^2/4\alpha$", ha="right", va="bottom", fontsize=8)
    axes.text(52, -3.4, "short lines: weak-noise limits", ha="right", fontsize=7.5)
    axes.set_xlabel("$s$   gradient noise")
    axes.set_ylabel("gap / formula")


def _draw_weak(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    u = np.geomspace(1.02, 40, 300)
    lines = {0.02: (_style.GREEN, "o"), 0.005: (_style.PURPLE, "D")}
    for lr, (color, marker) in lines.items():
        limit = weak_noise_limit(np.array(lr), u * 2 * lr * ALPHA)
        axes.plot(u, limit, color=color, lw=1.3, ls="-" if lr == RATES[0] else (0, (4, 3)))
        measured, error = arrays[f"weak_{lr:g}"].T
        look = _style.points(color, marker=marker, size=5)
        axes.errorbar(
            WEAK_FORCES[lr],
            measured,
            2 * error,
            elinewidth=1.0,
            ecolor=color,
            label=f"$\\eta$ = {lr:g}",
            **look,
        )
    axes.axvline(1, color=_style.QUIET, lw=0.9, ls=(0, (1, 1.5)))
    axes.axhline(1, color=_style.INK, lw=1.5)
    axes.axhline(0, color=_style.QUIET, lw=0.7)
    axes.axhline(-1, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_xlim(0.85, 40)
    axes.set_ylim(-3.4, 1.4)
    axes.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20]))
    axes.xaxis.set_major_formatter(FuncFormatter(_signed))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_signed))
    axes.set_title("Weak noise lifts the sharpness", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes,
        r"limit for small $s$: $\approx -(c - \eta\alpha)/(c - 2\eta\alpha)$, never above $-1$",
    )
    axes.text(38, 1.1, "formula", ha="right", fontsize=8)
    axes.legend(loc="lower right")
    axes.set_xlabel(r"$c\,/\,2\eta\alpha$   force over the least stable one")
    axes.set_ylabel("gap / formula")


def _draw_orbits(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.axhline(0, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    for (name, (force, noise)), y in zip(ORBITS.items(), (5.6, 4.8), strict=True):
        size, above = arrays[f"orbit_{name}"].T
        color = COLORS[force]
        axes.plot(size, above, color=color, lw=0.5, alpha=0.4)
        axes.plot(size[::3], above[::3], **_style.points(color, marker=MARKERS[force], size=1.8))
        axes.text(3.75, y, f"$c$ = {force:g}, $s$ = {noise:g}", fontsize=8, color=color, ha="right")
    axes.set_xlim(0, 3.8)
    axes.set_ylim(-6.5, 6.5)
    axes.yaxis.set_major_formatter(FuncFormatter(_signed))
    axes.set_title(f"Two paths at $\\eta$ = {RATES[0]:g}", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes, "large cycles that noise starts again and again, and small ones near rest"
    )
    axes.set_xlabel(r"$|x|\,/\,\sqrt{2\alpha}$   displacement over that of the 2-cycle")
    axes.set_ylabel(r"$S - 2/\eta$   sharpness above the edge")
