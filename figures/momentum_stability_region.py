r"""Every momentum rule decays below its closed-form threshold of lr * lambda and grows above it.

On a one-dimensional quadratic of curvature :math:`\lambda` a rule is stable if and only if
:math:`\eta\lambda` is below :math:`\eta` times the rule's ``critical_sharpness()``. The thresholds:
gradient descent 2, heavy ball :math:`2(1+\beta)`, Nesterov :math:`2(1+\beta)/(1+2\beta)`, averaged
gradient (EMA) :math:`2(1+\beta)/(1-\beta)` (38 at 0.9: Cohen et al. 2022, arXiv 2207.14484),
quasi-hyperbolic momentum :math:`2(1+\beta)/(1+\beta(1-2\nu))` while no complex pair of roots
leaves the unit circle earlier, at :math:`(1-\beta)/(\beta(\nu-1))`; for :math:`\nu > 1` one may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import eosim
from figures import _style
from figures._headline import Row

# Of the two quasi-hyperbolic cases: 0.7 is the default of Ma & Yarats 2019 (arXiv 1810.06801); 1.5
# is our choice, above 1 so that the complex pair binds, and does so from momentum 2 - sqrt(3) on.
NU_DEFAULT, NU_COMPLEX = 0.7, 1.5
# Our choice: a grid over the region shown that avoids the thresholds themselves, where a run
# neither decays nor grows (eta * lambda = 2 at momentum 0, 2.4 for heavy ball at 0.2, ...).
MOMENTA_QUICK = np.arange(10) / 10
MOMENTA_FULL = np.arange(20) / 20
LEVELS_QUICK = 0.13 * 2.0 ** np.arange(10)
LEVELS_FULL = 0.13 * 2.0 ** (np.arange(19) / 2)
# Our choice: relative distances from the threshold at which the two sides are told apart.
OFFSETS_QUICK = (-0.02, -0.01, 0.01, 0.02)
OFFSETS_FULL = (-0.02, -0.005, 0.005, 0.02)
# The slowest case is a complex pair: at a relative offset d beyond its threshold it grows by
# d (1 - momentum) / 2 per step. At d = .01 and momentum .9 that is 5e-4; the two windows that are
# compared lie a quarter of the run apart, hence 28 % after 2000 steps. --full: d = .005 and .95.
STEPS_QUICK, STEPS_FULL = 2000, 8000
# A run whose loss is below this has decayed by twenty orders of magnitude: no need to go on.
DECAYED = 1e-40
# Averaged gradients at momentum 0.9: 38 / lr (Cohen et al. 2022), measured by bisection to a
# bracket of 1e-4, which 2000 steps resolve: d beyond 38 the factor per step is 1 + d to first order
# (the other root is near -0.9), so d = 1e-4 grows by 5 % from one window to the next.
EMA_MOMENTUM, EMA_THRESHOLD, EMA_BRACKET = 0.9, 38.0, 1e-4


# Our choice: what the panels show; the averaged gradient's line leaves it at momentum 0.96.
MOMENTUM_LIMITS, LEVEL_LIMITS = (-0.03, 0.97), (0.1, 100)


@dataclass(frozen=True)
class Case:
    """A rule at lr = 1 as a function of momentum, with its looks."""

    name: str
    title: str
    label: str
    formula: str
    color: str
    rule: Callable[[float], Any]


CASES = (
    Case(
        "gradient_descent",
        "All thresholds; gradient descent",
        "GD",
        "2; the points are its runs",
        _style.GRADIENT_DESCENT,
        lambda momentum: eosim.GradientDescent(lr=1.0),
    ),
    Case(
        "heavy_ball",
        "Heavy ball",
        "heavy ball",
        r"$2(1+\beta)$",
        _style.HEAVY_BALL,
        lambda momentum: eosim.HeavyBall(lr=1.0, momentum=momentum),
    ),
    Case(
        "nesterov",
        "Nesterov",
        "Nesterov",
        r"$2(1+\beta)/(1+2\beta)$",
        _style.NESTEROV,
        lambda momentum: eosim.Nesterov(lr=1.0, momentum=momentum),
    ),
    Case(
        "ema",
        "Averaged gradient (EMA)",
        "averaged gradient",
        r"$2(1+\beta)/(1-\beta)$",
        _style.EMA_MOMENTUM,
        lambda momentum: eosim.EMAMomentum(lr=1.0, momentum=momentum),
    ),
    Case(
        "qhm",
        r"Quasi-hyperbolic, $\nu = 0.7$",
        "QHM 0.7",
        r"$2(1+\beta)/(1-0.4\,\beta)$",
        _style.QUASI_HYPERBOLIC,
        lambda momentum: eosim.QuasiHyperbolic(lr=1.0, momentum=momentum, nu=NU_DEFAULT),
    ),
    Case(
        "qhm_complex",
        r"Quasi-hyperbolic, $\nu = 1.5$",
        "QHM 1.5",
        r"$2(1+\beta)/(1-2\beta)$ or, complex pair, $2(1-\beta)/\beta$",
        _style.QUASI_HYPERBOLIC_COMPLEX,
        lambda momentum: eosim.QuasiHyperbolic(lr=1.0, momentum=momentum, nu=NU_COMPLEX),
    ),
)


def grows(rule: Any, curvature: float, n_steps: int) -> bool:
    """The verdict of a run from theta = 1: whether its amplitude rises over its second half."""
    bowl = eosim.Quadratic([[curvature]])
    path = eosim.run(bowl, rule, [1.0], n_steps, record={}, stop_below=DECAYED)
    if path.status is eosim.Status.DIVERGED:
        return True
    if path.status is eosim.Status.CONVERGED:
        return False
    # Largest size within each window: the phase of an oscillation drops out.
    amplitude = np.abs(path["theta"][:, 0])
    quarter = n_steps // 4
    return bool(amplitude[-quarter:].max() > amplitude[-2 * quarter : -quarter].max())


def measure_threshold(rule: Any, n_steps: int) -> float:
    """lr * lambda at which runs begin to grow, by doubling and bisection (lr = 1)."""
    low, high = 0.0, 1.0
    while not grows(rule, high, n_steps):
        low, high = high, 2 * high
    while high - low > EMA_BRACKET:
        middle = (low + high) / 2
        low, high = (low, middle) if grows(rule, middle, n_steps) else (middle, high)
    return (low + high) / 2


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Verdicts of runs over the plane and close to each threshold, and the thresholds."""
    momenta = MOMENTA_QUICK if quick else MOMENTA_FULL
    levels = LEVELS_QUICK if quick else LEVELS_FULL
    offsets = np.array(OFFSETS_QUICK if quick else OFFSETS_FULL)
    n_steps = STEPS_QUICK if quick else STEPS_FULL
    fine = np.linspace(0, 0.96, 385)
    arrays: dict[str, np.ndarray] = {"momentum": fine, "level": levels, "offset": offsets}
    for case in CASES:
        # Gradient descent has no momentum: one column says all.
        columns = momenta[:1] if case.name == "gradient_descent" else momenta
        rules = [case.rule(float(momentum)) for momentum in columns]
        thresholds = np.array([rule.critical_sharpness() for rule in rules])  # lr = 1
        near = thresholds[:, None] * (1 + offsets)  # (n_columns, n_offsets)
        arrays |= {
            f"{case.name}_column": columns,
            f"{case.name}_threshold": thresholds,
            f"{case.name}_derived": np.array(
                [eosim.stability.critical_sharpness(r) for r in rules]
            ),
            f"{case.name}_line": np.array([case.rule(float(m)).critical_sharpness() for m in fine]),
            f"{case.name}_grows": np.array(
                [[grows(rule, level, n_steps) for level in levels] for rule in rules]
            ),
            f"{case.name}_near_grows": np.array(
                [
                    [grows(rule, level, n_steps) for level in row]
                    for rule, row in zip(rules, near, strict=True)
                ]
            ),
        }
    pair = [case.rule(float(m)).critical_branches() for m in fine[1:]]  # none at momentum 0
    arrays["qhm_complex_branches"] = np.array(pair)
    ema = eosim.EMAMomentum(lr=1.0, momentum=EMA_MOMENTUM)
    arrays["ema_measured"] = np.array(measure_threshold(ema, n_steps))
    return arrays


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """No verdict on the wrong side; the number 38; closed forms equal to derived thresholds."""
    rows, disagreement = [], 0.0
    for case in CASES:
        thresholds = arrays[f"{case.name}_threshold"]
        wrong = _wrong(case, arrays)
        rows.append(Row(f"{case.name}: wrong verdicts of {wrong.size}", 0, 0, int(wrong.sum())))
        relative = np.abs(arrays[f"{case.name}_derived"] / thresholds - 1)
        disagreement = max(disagreement, float(relative.max()))
    measured = float(arrays["ema_measured"])
    rows.append(Row("ema: lr * lambda at the edge, momentum 0.9", EMA_THRESHOLD, 1e-3, measured))
    rows.append(Row("|closed form / threshold of step - 1|", 1e-9, 0.0, disagreement, "at most"))
    return rows


def _wrong(case: Case, arrays: dict[str, np.ndarray]) -> Any:
    """Whether each verdict contradicts the threshold, over the plane and near the line; flat."""
    beyond = arrays["level"] > arrays[f"{case.name}_threshold"][:, None]
    plane = arrays[f"{case.name}_grows"] != beyond
    near = arrays[f"{case.name}_near_grows"] != (arrays["offset"] > 0)
    return np.concatenate([plane.ravel(), near.ravel()])


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """All thresholds together, then each rule with its verdicts, and a magnifier below."""
    verdicts = [_wrong(case, arrays) for case in CASES]
    total, wrong = sum(v.size for v in verdicts), sum(int(v.sum()) for v in verdicts)
    figure = _style.canvas(
        11.0,
        8.3,
        "Momentum rules decay below their stability threshold and grow above it",
        "One-dimensional quadratic of curvature λ. Lines: closed forms (dashed: not binding); "
        f"points: {total} simulated runs (filled decays, open grows), {wrong or 'none'} on the "
        "wrong side. Strips magnify the line.",
    )
    outer = figure.add_gridspec(
        2,
        3,
        hspace=0.42,
        wspace=0.3,
        **_style.margins(figure, left=0.78, right=0.25, top=1.0, bottom=0.88),
    )
    for index, case in enumerate(CASES):
        row, column = divmod(index, 3)
        inner = outer[row, column].subgridspec(2, 1, height_ratios=(3.6, 1), hspace=0.09)
        plane = figure.add_subplot(inner[0])
        strip = figure.add_subplot(inner[1])
        _draw_plane(plane, case, arrays)
        _draw_strip(strip, case, arrays)
        if column == 0:
            plane.set_ylabel(r"$\eta\lambda$   rate × curvature")
        strip.set_xlabel(r"$\beta$   momentum")
    return figure


def _draw_plane(axes: Axes, case: Case, arrays: dict[str, np.ndarray]) -> None:
    fine, line = arrays["momentum"], arrays[f"{case.name}_line"]
    overview = case.name == "gradient_descent"
    for other in CASES:
        if other is not case:
            color = other.color if overview else _style.FAINT
            axes.plot(fine, arrays[f"{other.name}_line"], color=color, lw=1.4 if overview else 0.9)
    axes.plot(fine, line, color=case.color, lw=1.8)
    columns, levels = np.meshgrid(arrays[f"{case.name}_column"], arrays["level"], indexing="ij")
    for grown in (False, True):
        chosen = arrays[f"{case.name}_grows"] == grown
        axes.plot(
            columns[chosen],
            levels[chosen],
            **_style.points(case.color, filled=not grown, size=3.6),
        )
    axes.set_yscale("log")
    axes.set_ylim(*LEVEL_LIMITS)
    axes.set_xlim(*MOMENTUM_LIMITS)
    axes.yaxis.set_major_locator(FixedLocator([0.1, 1, 10, 100]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(labelbottom=False)
    axes.set_title(case.title, pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, f"$\\eta\\lambda$ = {case.formula}")
    if overview:
        _label_lines(axes, arrays)
        return
    axes.fill_between(fine, LEVEL_LIMITS[0], line, color=case.color, alpha=0.09, lw=0)
    if case.name == "qhm_complex":
        for branch in arrays["qhm_complex_branches"].T:
            # A branch through infinity comes back negative: no threshold there.
            shown = np.where((branch > 0) & (branch < 2 * LEVEL_LIMITS[1]), branch, np.nan)
            axes.plot(fine[1:], shown, color=case.color, lw=0.9, ls=(0, (4, 2)))


def _label_lines(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    """Names at the right ends of the lines, or beside a line that leaves the panel."""
    inside = {"ema": (0.84, 34, "right"), "qhm_complex": (0.72, 0.5, "right")}
    # The two lowest ends lie closer together than the height of their names.
    nudge = {"gradient_descent": 1.06, "nesterov": 0.9}
    for case in CASES:
        end = float(arrays[f"{case.name}_line"][-1])
        x, y, side = inside.get(case.name, (0.985, end * nudge.get(case.name, 1), "left"))
        axes.text(x, y, case.label, ha=side, va="center", fontsize=7.5, color=case.color)


def _draw_strip(axes: Axes, case: Case, arrays: dict[str, np.ndarray]) -> None:
    percent = 100 * arrays["offset"]
    columns, offsets = np.meshgrid(arrays[f"{case.name}_column"], percent, indexing="ij")
    axes.axhline(0, color=case.color, lw=1.8)
    axes.axhspan(-3, 0, color=case.color, alpha=0.09, lw=0)
    for grown in (False, True):
        chosen = arrays[f"{case.name}_near_grows"] == grown
        axes.plot(
            columns[chosen],
            offsets[chosen],
            **_style.points(case.color, filled=not grown, size=3.6),
        )
    axes.set_ylim(-3, 3)
    axes.set_xlim(*MOMENTUM_LIMITS)
    axes.yaxis.set_major_locator(FixedLocator([-2, 0, 2]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:+g} %".replace("-", "−") if value else "line")
    )
    axes.grid(visible=False)
