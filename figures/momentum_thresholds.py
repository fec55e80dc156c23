r"""With its preconditioner held fixed an adaptive rule has the threshold of the linear rule that is left.

Beyond :math:`\eta\lambda = k_*`, with :math:`\lambda` the largest eigenvalue of :math:`P^{-1}H`, a run
grows. For Adam :math:`k_* = 2(1+\beta)/(1-\beta)`, 38 at 0.9; for NAdam that over :math:`1 + 2\beta`; for
AdamW :math:`1 - \eta\gamma/2` of it; without momentum 2. There a root of

.. math:: z - 1 + k\, Q(z) = 0, \qquad Q \text{ the filter of the gradient,}

(AdamW has :math:`\eta\gamma` added) reaches -1, and runs flip at every step. So it is for averages in
parallel. Of two averages in cascade a complex pair may leave the unit circle first, at

.. math:: k = \frac{1 - \beta_1\beta_2}{\beta_1\beta_2}, \qquad
          2\cos\omega = 1 + \beta_1 + \beta_2 - \beta_1\beta_2 - (1-\beta_1)(1-\beta_2)\,k,

for equal ones from 1/3 on. Adam: Cohen et al. 2022, arXiv 2207.14484; cascades: derived here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from scipy.optimize import linear_sum_assignment

import eosim
from eosim.optimizers import freeze
from eosim.stability import critical_sharpness
from eosim.stability.linear import linearised
from figures import _style
from figures._headline import Row

# Our choice: adaptive rules run for a few steps before they are frozen, which leaves factors of sixty and
# more between the entries of P, at a rate that is harmless.
LR, LIVE_STEPS = 0.01, 5
# Our choice: eta * gamma = 0.5, fifty thousand times PyTorch's 1e-5, which no picture would show.
SHRINKAGE = 0.5
# Our choice: the other average of the two rules that have two.
PARALLEL_BETA, CASCADE_BETA = 0.5, 0.4
MOMENTA_QUICK, MOMENTA_FULL = np.arange(10) / 10, np.arange(20) / 20
# Relative distances from the threshold of the runs. Growth is slowest for cascades of equal averages: 2e-4
# per step at 0.9 and .01, hence 10 % from one window of a quarter of the run to the next; --full: 3e-5 at
# 0.95 and .003, 6 %.
OFFSETS_QUICK, OFFSETS_FULL = (-0.01, 0.01), (-0.01, -0.003, 0.003, 0.01)
STEPS_QUICK, STEPS_FULL = 2000, 8000
# H = A A^T with a Gaussian A: frozen rules precondition it with a P that does not commute with it.
GAUSSIAN = np.random.default_rng(0).standard_normal((6, 6))
HESSIAN = GAUSSIAN @ GAUSSIAN.T
# Closed forms of table and text, each written out, at the customary momentum.
BETA = 0.9
AT_BETA = {
    "heavy_ball": 3.8,
    "nesterov": 19 / 14,
    "adam": 38.0,
    "nadam": 95 / 7,
    "qhm": 5.9375,
    "adamw": 38 - 19 * SHRINKAGE,
}
# (first, second, threshold): through -1, then twice through a complex pair.
CASCADES = ((0.2, 0.3, 39 / 7), (0.4, 0.7, 18 / 7), (0.7, 0.85, 81 / 119))
CROSSOVER = 1 / 3
# Runs exactly at the threshold: what other roots (at most 0.9) leave is 1e-16 of the start after this.
SETTLED, LAST = 360, 400
SHOWN = 40  # steps of these runs


@dataclass(frozen=True)
class Case:
    """A rule as a function of its momentum, and its looks."""

    name: str
    label: str
    color: str
    rule: Callable[[float], Any]


CASES = (
    Case("adam", "Adam, AMSGrad, EMA", _style.EMA_MOMENTUM, lambda b: eosim.Adam(LR, b)),
    Case(
        "adamw",
        r"AdamW, $\eta\gamma$ = 0.5",
        "#8a4b12",
        lambda b: eosim.AdamW(LR, b, weight_decay=SHRINKAGE / LR),
    ),
    Case("nadam", "NAdam", _style.GREEN, lambda b: eosim.NAdam(LR, b)),
    Case(
        "parallel",
        r"in parallel: $\beta$, 0.5",
        _style.QUIET,
        lambda b: eosim.ParallelEMA(LR, PARALLEL_BETA, b),
    ),
    Case(
        "qhm",
        r"quasi-hyperbolic 0.7",
        _style.QUASI_HYPERBOLIC,
        lambda b: eosim.QuasiHyperbolic(LR, b),
    ),
    Case("heavy_ball", "heavy ball", _style.HEAVY_BALL, lambda b: eosim.HeavyBall(LR, b)),
    Case("rmsprop", "RMSProp, AdaGrad, GD", _style.BLUE, lambda b: eosim.RMSProp(LR)),
    Case(
        "cascade",
        r"in cascade: $\beta$, 0.4",
        _style.VERMILLION,
        lambda b: eosim.CascadedEMA(LR, CASCADE_BETA, b),
    ),
    Case("nesterov", "Nesterov", _style.NESTEROV, lambda b: eosim.Nesterov(LR, b)),
    Case(
        "equal",
        r"in cascade: $\beta$, $\beta$",
        _style.VERMILLION,
        lambda b: eosim.CascadedEMA(LR, b, b),
    ),
)
# Rules that share the line of another, and are named with it.
SAME = {
    "adam": (eosim.AMSGrad(LR, BETA), eosim.Padam(LR, BETA), eosim.EMAMomentum(LR, BETA)),
    "rmsprop": (eosim.AdaGrad(LR), eosim.GradientDescent(LR)),
}


@dataclass(frozen=True)
class Locus:
    """The roots of the recursion of averages in cascade as k grows, and how they are drawn."""

    name: str
    title: str
    note: str
    path_title: str
    color: str
    rule: Any
    poles: tuple[float, ...]
    levels: tuple[float, ...]  # of the points
    named: tuple[float, ...]  # of these, with their k beside them
    beside: Callable[[complex], complex]  # where it stands
    top: float  # the largest k of the lines
    inside: float  # the root that is left inside at the threshold
    cosine: float  # of the angle per step of the roots that are on the circle

    def branches(self) -> np.ndarray:
        """Roots of (z - 1) prod_j (z - b_j) + k z^(m-1) prod_j (1 - b_j), each followed in k."""
        gain = np.prod([1 - pole for pole in self.poles[1:]])
        edge = LR * self.rule.critical_sharpness()
        # Dense where roots move fast: at 0, and at the threshold (the average's part just before it).
        near = edge * (1 + np.linspace(-0.02, 0.02, 1001))
        levels = np.sort(np.concatenate([np.linspace(0, self.top**0.25, 600) ** 4, near]))
        followed = [np.array(self.poles, complex)]
        for level in levels[levels <= self.top]:
            coefficients = np.poly(self.poles)
            coefficients[1] += level * gain
            found = np.roots(coefficients)
            _, order = linear_sum_assignment(np.abs(followed[-1][:, None] - found))
            followed.append(found[order])
        return np.array(followed)


LOCI = (
    Locus(
        "average",
        "An average, 0.9: a real root leaves",
        "at $k$ = 38 through −1; after a pair on the circle of radius $\\sqrt{0.9}$",
        "The average at $k$ = 38 flips",
        _style.EMA_MOMENTUM,
        eosim.EMAMomentum(LR, BETA),
        (1.0, BETA),
        (0.01, 0.3, 1.2, 3, 6, 10, 15, 20, 25, 30, 34, 37, 37.9, 38.1, 38.3),
        (0.3, 3, 10, 20, 30, 37),
        lambda z: 1.19 * z,
        38.6,
        -0.9,
        -1.0,
    ),
    Locus(
        "cascade",
        "A cascade, 0.4 and 0.7: a complex pair leaves",
        r"at $k$ = 18/7, with $\cos\omega$ = 19/28; the third root is 0.28",
        "The cascade at $k$ = 18/7 turns",
        _style.VERMILLION,
        eosim.CascadedEMA(LR, *CASCADES[1][:2]),
        (1.0, *CASCADES[1][:2]),
        (0.02, 0.1, 0.3, 0.7, 1.3, 2, 3.2, 4.2, 5.4),
        (0.3, 0.7, 1.3, 2),
        lambda z: z - 0.17,
        6.0,
        0.28,
        19 / 28,
    ),
)


def fixed(rule: Any, hessian: np.ndarray) -> tuple[Any, np.ndarray]:
    """The rule as it is frozen in the middle of a run, and its P; a linear one as it is, with 1."""
    start = np.ones(len(hessian))
    if not hasattr(rule, "preconditioner"):
        return rule, start
    live = eosim.run(eosim.Quadratic(hessian), rule, start, LIVE_STEPS, record={})
    frozen, _ = freeze(rule, live.final_state)
    return frozen, frozen.diagonal


def found_threshold(rule: Any) -> float:
    """lr * (eigenvalue of P^-1 H) at the threshold of the frozen step, in one dimension."""
    frozen, (diagonal,) = fixed(rule, np.eye(1))
    return LR * critical_sharpness(frozen) / float(diagonal)


def grows(rule: Any, level: float, n_steps: int) -> bool:
    """Whether a run at lr * (largest eigenvalue of P^-1 H) = level gets larger in its second half.

    It starts on that eigenvector: slower modes would hide it for most of the run.
    """
    frozen, diagonal = fixed(rule, HESSIAN)
    root = np.sqrt(diagonal)
    values, vectors = np.linalg.eigh(HESSIAN / np.outer(root, root))
    bowl = eosim.Quadratic(HESSIAN * (level / (LR * values[-1])))
    path = eosim.run(bowl, frozen, vectors[:, -1] / root, n_steps, record={})
    if path.status is eosim.Status.DIVERGED:
        return True
    # Largest size within each window: the phase of an oscillation drops out.
    size = np.linalg.norm(path["theta"], axis=1)
    quarter = n_steps // 4
    return bool(size[-quarter:].max() > size[-2 * quarter : -quarter].max())


def roots(rule: Any, levels: np.ndarray) -> np.ndarray:
    """Eigenvalues of the rule's own recursion at lr * curvature = levels: (level, root)."""
    drift, response = linearised(rule)
    matrices = np.repeat(drift[None], len(levels), axis=0)
    matrices[:, :, 0] += np.multiply.outer(levels / LR, response)
    return np.linalg.eigvals(matrices)


def turns(beta: float) -> bool:
    """Whether a cascade of two equal averages loses stability through a complex pair."""
    rule = eosim.CascadedEMA(LR, beta, beta)
    at = roots(rule, np.array([found_threshold(rule)]))[0]
    # The pair parts at -1, where rounding moves a double root by 1e-8, and its angle grows as a root.
    return bool(abs(at[np.abs(at).argmax()].imag) > 1e-6)


def crossover() -> float:
    """The momentum from which a cascade of equal averages turns, by bisection to 1e-12."""
    low, high = 0.1, 0.9
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if turns(middle) else (middle, high)
    return (low + high) / 2


def at_threshold(rule: Any) -> np.ndarray:
    """A run from 1 in one dimension, exactly at the closed-form threshold."""
    bowl = eosim.Quadratic([[rule.critical_sharpness()]])
    return eosim.run(bowl, rule, [1.0], LAST, record={})["theta"][:, 0]


def turn(path: np.ndarray) -> float:
    """cos(w) of an oscillation that keeps its size: x_{t+1} + x_{t-1} = 2 cos(w) x_t."""
    x = path[SETTLED:]
    return float((x[2:] + x[:-2]) @ x[1:-1] / (2 * x[1:-1] @ x[1:-1]))


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Thresholds in closed form and found, verdicts of runs beside them, roots, and crossover."""
    momenta = MOMENTA_QUICK if quick else MOMENTA_FULL
    offsets = np.array(OFFSETS_QUICK if quick else OFFSETS_FULL)
    n_steps = STEPS_QUICK if quick else STEPS_FULL
    fine = np.linspace(0, 0.96, 385)
    arrays: dict[str, np.ndarray] = {"momentum": fine, "offset": offsets}
    for case in CASES:
        columns = momenta[:1] if case.name == "rmsprop" else momenta  # it has no momentum
        rules = [case.rule(float(b)) for b in columns]
        closed = np.array([LR * rule.critical_sharpness() for rule in rules])
        line = [LR * case.rule(float(b)).critical_sharpness() for b in fine]
        verdicts = [
            [grows(rule, level * (1 + offset), n_steps) for offset in offsets]
            for rule, level in zip(rules, closed, strict=True)
        ]
        arrays |= {
            f"{case.name}_column": columns,
            f"{case.name}_closed": closed,
            f"{case.name}_found": np.array([found_threshold(rule) for rule in rules]),
            f"{case.name}_line": np.array(line),
            f"{case.name}_grows": np.array(verdicts),
        }
        if case.name in AT_BETA:
            arrays[f"{case.name}_at_beta"] = np.array(found_threshold(case.rule(BETA)))
    arrays["same"] = np.array(
        [
            found_threshold(rule) / level
            for name, level in (("adam", AT_BETA["adam"]), ("rmsprop", 2.0))
            for rule in SAME[name]
        ]
    )
    cascades = [eosim.CascadedEMA(LR, first, second) for first, second, _ in CASCADES]
    arrays["cascades"] = np.array([found_threshold(rule) for rule in cascades])
    arrays["branches"] = LR * np.array(
        [eosim.CascadedEMA(LR, float(b), float(b)).critical_branches() for b in fine]
    )
    arrays["crossover"] = np.array(crossover())
    for locus in LOCI:
        arrays[f"locus_{locus.name}_roots"] = roots(locus.rule, np.array(locus.levels))
        arrays[f"locus_{locus.name}_edge"] = roots(
            locus.rule, np.array([found_threshold(locus.rule)])
        )[0]
        arrays[f"locus_{locus.name}_line"] = locus.branches()
        arrays[f"locus_{locus.name}_path"] = at_threshold(locus.rule)
    return arrays


def _wrong(case: Case, arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(arrays[f"{case.name}_grows"] != (arrays["offset"] > 0))


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Closed forms, found thresholds and runs agree; 38; the complex pair and where it takes over."""
    wrong = np.concatenate([_wrong(case, arrays).ravel() for case in CASES])
    gap = max(
        np.abs(arrays[f"{case.name}_found"] / arrays[f"{case.name}_closed"] - 1).max()
        for case in CASES
    )
    rows = [
        Row("|closed form / threshold of step - 1|", 1e-9, 0, float(gap), "at most"),
        Row(
            "AMSGrad, Padam, EMA at 38; AdaGrad, GD at 2",
            1e-9,
            0,
            float(np.abs(arrays["same"] - 1).max()),
            "at most",
        ),
        Row(f"wrong verdicts of {wrong.size}", 0, 0, int(wrong.sum())),
    ]
    for name, value in AT_BETA.items():
        rows.append(
            Row(
                f"{name}: k at the edge, 0.9", value, 1e-9 * value, float(arrays[f"{name}_at_beta"])
            )
        )
    for (first, second, value), found in zip(CASCADES, arrays["cascades"], strict=True):
        text = f"cascade {first}, {second}: k at the edge"
        rows.append(Row(text, value, 1e-9 * value, float(found)))
    rows.append(
        Row("equal cascade: turns from momentum", CROSSOVER, 1e-9, float(arrays["crossover"]))
    )
    for locus in LOCI:
        edge = arrays[f"locus_{locus.name}_edge"]
        circle = complex(locus.cosine, np.sqrt(1 - locus.cosine**2))
        distance = float(np.abs(edge - circle).min())
        rows += [
            Row(f"{locus.name}: |root on the circle - theory|", 1e-9, 0, distance, "at most"),
            Row(
                f"{locus.name}: the root inside then",
                locus.inside,
                1e-9,
                float(edge[np.abs(edge).argmin()].real),
            ),
            Row(
                f"{locus.name}: cos(w) of the run at the edge",
                locus.cosine,
                1e-9,
                turn(arrays[f"locus_{locus.name}_path"]),
            ),
        ]
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Thresholds, verdicts and the crossover; roots of an average and of a cascade, and their runs."""
    wrong = np.concatenate([_wrong(case, arrays).ravel() for case in CASES])
    figure = _style.canvas(
        12.6,
        8.9,
        "An adaptive rule whose preconditioner is held fixed has the threshold of the linear rule left",
        "Quadratics; $\\lambda$ is the largest eigenvalue of $P^{-1}H$, with P = 1 for linear rules and "
        f"otherwise as it is after {LIVE_STEPS} steps. Lines: closed forms; points: found from the rules' "
        f"own steps. Top middle: {wrong.size} runs (filled decays,\nopen grows), "
        f"{int(wrong.sum()) or 'none'} on the wrong side. Bottom: roots z of the recursion as k grows "
        "from 0 (crosses; numbers: k), filled inside the unit circle and open outside; then runs "
        "exactly at the threshold.",
    )
    edges = _style.margins(figure, left=0.62, right=0.3, top=1.0, bottom=0.95)
    outer = figure.add_gridspec(2, 1, hspace=0.42, **edges)
    # The names of the rules stand between the first two panels, for both.
    top = outer[0].subgridspec(1, 5, width_ratios=(1.15, 0.48, 1, 0.3, 1.08), wspace=0)
    _draw_thresholds(figure.add_subplot(top[0]), arrays)
    _draw_verdicts(figure.add_subplot(top[2]), arrays)
    _draw_equal(figure.add_subplot(top[4]), arrays)
    bottom = outer[1].subgridspec(1, 3, wspace=0.24)
    for column, locus in enumerate(LOCI):
        _draw_locus(figure.add_subplot(bottom[column]), locus, arrays)
    inner = bottom[2].subgridspec(2, 1, hspace=1.0)
    for row, locus in enumerate(LOCI):
        _draw_path(figure.add_subplot(inner[row]), locus, arrays)
    return figure


def _levels(axes: Axes, limits: tuple[float, float]) -> None:
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    axes.yaxis.set_major_locator(FixedLocator([0.1, 0.3, 1, 3, 10, 30, 100]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_thresholds(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    fine = arrays["momentum"]
    for case in CASES:
        if case.name == "equal":
            continue
        axes.plot(fine, arrays[f"{case.name}_line"], color=case.color, lw=1.5)
        axes.plot(
            arrays[f"{case.name}_column"],
            arrays[f"{case.name}_found"],
            **_style.points(case.color, size=3.4),
        )
    axes.plot(
        [BETA, BETA], [1, AT_BETA["adam"]], color=_style.QUIET, lw=0.8, ls=(0, (2, 2)), zorder=1
    )
    axes.text(0.885, 45, "38", ha="right", va="center", fontsize=8.5, weight="bold")
    _levels(axes, (1, 130))
    axes.set_xlim(-0.03, 0.98)
    axes.set_xlabel(r"$\beta$   momentum")
    axes.set_ylabel(r"$k_*$   rate × eigenvalue at the edge")
    axes.set_title("Thresholds", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"Adam $2(1+\beta)/(1-\beta)$; 38 at 0.9")


def _draw_verdicts(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    """One row of each rule; within it the runs by their distance from the threshold."""
    offsets = arrays["offset"]
    for row, case in enumerate(CASES):
        middle = -row
        axes.axhline(middle, color=case.color, lw=1.2)
        columns = arrays[f"{case.name}_column"]
        for column in range(len(offsets)):
            # Below and above the line, in the order of their offsets.
            place = middle + 0.56 * (column - (len(offsets) - 1) / 2) / len(offsets)
            for grown in (False, True):
                chosen = arrays[f"{case.name}_grows"][:, column] == grown
                axes.plot(
                    columns[chosen],
                    np.full(chosen.sum(), place),
                    **_style.points(
                        case.color, filled=not grown, size=3.4 if len(offsets) < 3 else 2
                    ),
                )
    axes.set_ylim(-len(CASES) + 0.4, 0.6)
    axes.set_xlim(-0.05, 0.98)
    axes.yaxis.set_major_locator(FixedLocator([-row for row in range(len(CASES))]))
    axes.yaxis.set_ticklabels([case.label for case in CASES])
    for label, case in zip(axes.yaxis.get_ticklabels(), CASES, strict=True):
        label.set_color(case.color)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.set_xlabel(r"$\beta$   momentum")
    axes.set_title("Runs on both sides of them", pad=_style.SUBTITLE_PAD)
    percent = " and ".join(f"{100 * offset:g} %" for offset in offsets if offset > 0)
    _style.subtitle(axes, f"{percent} below and above each line")


def _draw_equal(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    fine, (flip, pair) = arrays["momentum"], arrays["branches"].T
    color = _style.VERMILLION
    for branch, binds in ((flip, fine <= CROSSOVER), (pair, fine >= CROSSOVER)):
        axes.plot(fine, np.where(binds, branch, np.nan), color=color, lw=1.8)
        axes.plot(fine, np.where(binds, np.nan, branch), color=color, lw=0.9, ls=(0, (4, 2)))
    axes.fill_between(fine, 0.05, arrays["equal_line"], color=color, alpha=0.09, lw=0)
    axes.plot(arrays["equal_column"], arrays["equal_found"], **_style.points(color, size=4))
    axes.axvline(CROSSOVER, color=_style.QUIET, lw=0.8, ls=(0, (2, 2)), zorder=1)
    axes.text(0.36, 0.075, r"$\beta$ = 1/3", fontsize=7.5, color=_style.QUIET, va="center")
    for x, y, text in (
        (0.6, 13, "flip, $z$ = −1:\n" r"$2\,(1+\beta)^2/(1-\beta)^2$"),
        (0.64, 3.2, "complex pair:\n" r"$(1-\beta^2)/\beta^2$"),
    ):
        axes.text(x, y, text, fontsize=7.5, va="center")
    _levels(axes, (0.05, 130))
    axes.set_xlim(-0.03, 0.98)
    axes.set_xlabel(r"$\beta$   momentum of both averages")
    axes.set_ylabel(r"$k$   rate × curvature")
    axes.set_title("Equal averages in cascade", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "solid: the branch that binds; shaded: stable")


def _draw_locus(axes: Axes, locus: Locus, arrays: dict[str, np.ndarray]) -> None:
    """The roots in the plane; for the average also what happens near -1."""
    theory = arrays[f"locus_{locus.name}_line"]
    found = arrays[f"locus_{locus.name}_roots"].ravel()
    angle = np.linspace(0, 2 * np.pi, 721)
    panels = [axes]
    if locus.name == "average":
        panels.append(axes.inset_axes((0.37, 0.3, 0.4, 0.4)))
    for panel in panels:
        panel.fill(np.cos(angle), np.sin(angle), color=locus.color, alpha=0.09, lw=0)
        panel.plot(np.cos(angle), np.sin(angle), color=_style.QUIET, lw=0.8)
        panel.plot(theory.real, theory.imag, color=locus.color, lw=1.3)
        for outside in (False, True):
            chosen = found[(np.abs(found) > 1) == outside]
            panel.plot(
                chosen.real, chosen.imag, **_style.points(locus.color, filled=not outside, size=3.8)
            )
        panel.set_aspect("equal")
        panel.grid(visible=False)
    axes.plot(
        locus.poles, np.zeros(len(locus.poles)), ls="none", marker="x", ms=5, color=_style.INK
    )
    for level, k_roots in zip(locus.levels, arrays[f"locus_{locus.name}_roots"], strict=True):
        z = k_roots[k_roots.imag.argmax()]
        if level in locus.named and z.imag > 0:
            place = locus.beside(z)
            axes.text(place.real, place.imag, f"{level:g}", ha="center", va="center", fontsize=7.5)
    axes.set_xlim(-1.35, 1.35)
    axes.set_ylim(-1.25, 1.25)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([-1, 0, 1]))
    axes.set_xlabel("Re z")
    axes.set_ylabel("Im z", labelpad=0)
    edge = LR * locus.rule.critical_sharpness()
    axes.set_title(locus.title, pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, locus.note)
    if locus.name == "average":
        near = panels[1]
        near.set_xlim(-1.09, -0.83)
        near.set_ylim(-0.13, 0.13)
        near.xaxis.set_major_locator(FixedLocator([-1, -0.9]))
        near.yaxis.set_major_locator(NullLocator())
        near.spines[["top", "right"]].set_visible(True)
        near.set_title("near −1", fontsize=7.5, loc="center", pad=4)
        axes.indicate_inset_zoom(near, edgecolor=_style.QUIET)
    else:
        corner = complex(locus.cosine, np.sqrt(1 - locus.cosine**2))
        axes.annotate(
            f"$k$ = {edge:.4f}",
            (corner.real, corner.imag),
            xytext=(10, 6),
            textcoords="offset points",
            fontsize=7.5,
        )
        axes.plot(corner.real, corner.imag, marker="o", ms=7, mfc="none", mec=_style.INK, mew=0.9)


def _draw_path(axes: Axes, locus: Locus, arrays: dict[str, np.ndarray]) -> None:
    path = arrays[f"locus_{locus.name}_path"][: SHOWN + 1]
    axes.axhline(0, color=_style.QUIET, lw=0.7)
    axes.plot(path, color=locus.color, lw=0.8, alpha=0.6)
    axes.plot(path, **_style.points(locus.color, size=3))
    axes.set_xlabel("step")
    axes.set_ylabel(r"$\theta$   parameter")
    axes.yaxis.set_major_locator(MaxNLocator(2, symmetric=True))
    axes.set_title(locus.path_title, pad=_style.SUBTITLE_PAD)
    period = 2 * np.pi / np.arccos(turn(arrays[f"locus_{locus.name}_path"]))
    _style.subtitle(axes, f"period {period:.3g} steps")
