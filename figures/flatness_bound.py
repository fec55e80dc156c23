r"""SGD ends where the Frobenius norm of the Hessian is at most sqrt(B) / lr, whatever model and size.

Wu, Wang & Su 2022, arXiv 2207.02628: at a minimum without residuals that is stable for SGD on average,

.. math:: \eta\,|H|_F \le 1/\sqrt{\kappa\,\mu_0}, \qquad \kappa = 1/B

with :math:`\mu_0` the least alignment of the centred noise with H over the residuals that the model can
have. Linear nets have :math:`\mu_0 = 1` for infinitely many Gaussian inputs: then neither the model nor
the number of samples is in it. Gradient descent obeys :math:`\eta\lambda_{\max} \le 2` alone, and
:math:`|H|_F` may be up to the square root of the rank times that.

Every run starts too sharp for the rate it ends with, in a warm-up that leads it down along the edge of
stability of its own. Norms are those of :math:`G = J^\top J/n`, which is H where the loss is zero.

What is exact: SGD is stable on average if and only if the rate is below `critical_lr`, for every data
set, and the bound with the :math:`\mu_0` of the very minimum never lies below that. What is not: the bound
is necessary and no threshold; with :math:`\mu_0 = 1` it is no bound for finitely many samples, although no
run here ends above it; and many runs settle a little above the threshold of the mean (the farthest of
some hundred at 1.4 times that rate), where typical runs still decay. For r equal eigenvalues and
:math:`\mu = 1` the threshold is at :math:`\eta\lambda = 2/(1 + r/B)`: it touches the bound at r = B, and
lies far below it for :math:`r \gg B`, where the trace bound :math:`\eta\,\mathrm{tr}\,H \le 2B` decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.optimize import brentq

import eosim
from eosim.stability import (
    TangentKernel,
    alignment_band,
    critical_lr,
    lr_bounds,
    tangent_kernel,
)
from figures import _sgd, _style
from figures._headline import Row

# All our choice. With replacement kappa is 1/B for every number of samples.
LR, BATCH_SIZE, SAMPLING = 0.1, 8, "with_replacement"
SAMPLES, INPUTS, WIDTH = 64, 32, 32  # of the models in all panels
SIZES_QUICK = {"samples": (16, 256), "inputs": (8, 128), "width": (8, 128)}
SIZES_FULL = {
    "samples": (16, 32, 128, 256),
    "inputs": (8, 16, 64, 128),
    "width": (8, 16, 64, 128),
}
SEEDS_QUICK, SEEDS_FULL, DESCENTS_QUICK, DESCENTS_FULL = 2, 5, 1, 3
# Sharpness times the last rate at the start: gradient descent meets its edge too, while from 2.5 half
# of its runs do not, as the sharpness falls first. And the first rate over the threshold at the start.
START, FIRST = 3.0, 0.8
WARM_UP_QUICK, WARM_UP_FULL, HOLD_QUICK, HOLD_FULL = 500, 2500, 800, 3000
# After the warm-up theta is moved by this part of its length: else a run whose loss has vanished could
# stay at a minimum that it would leave.
KICK = 1e-3
# Targets have a mean square of about 1 (tanh nets: 0.4). Runs end at the first level; those that stay
# above the second one within their steps are counted as unfinished, and not shown. Between the two are
# nets whose smallest eigenvalues take more steps, above all with as many samples as inputs.
SETTLED, MINIMUM = 1e-12, 1e-3
LOOK_EVERY, COURSE_EVERY_QUICK, COURSE_EVERY_FULL = 50, 10, 50
# Typical growth of linearised runs: between these steps, after the start is forgotten.
TYPICAL, TYPICAL_RUNS = (100, 400), 64

FAMILIES = ("diagonal", "two_layer", "three_layer", "tanh")
NAMES = {
    "diagonal": "diagonal net $\\langle a\\circ b, x\\rangle$",
    "two_layer": "two-layer linear net",
    "three_layer": "three-layer linear net",
    "tanh": "two-layer tanh net",
}
MARKERS = {"diagonal": "D", "two_layer": "o", "three_layer": "s", "tanh": "^"}
SGD, DESCENT = _style.VERMILLION, _style.GRADIENT_DESCENT
QUANTITIES = ("samples", "inputs", "dim", "start", "frobenius", "sharpness", "critical", "mu0")
# The bounds that are drawn, from sufficient to necessary.
BOUNDS = {
    "wu_2018": "Wu 2018",
    "exact": "exact",
    "finite": "uniform",
    "trace": "$2B\\,/\\,\\mathrm{tr}\\,H$",
    "edge": "$2\\,/\\,\\lambda_{\\max}$",
    "frobenius": "$\\sqrt{B/\\mu_0}\\,/\\,|H|_F$",
}
# Single runs may end above a bound of the mean; of several hundred none did by this much.
CHANCE = 0.05
# Rates rise by at most 0.4 % per step, and a loss of 1e-10 takes about a hundred steps to grow back.
LAG = 0.15
# Three standard errors of the typical growth per step.
RESOLVED = 0.01
# A change of medians over 16 times the size is one if it is larger than this.
CHANGE = 0.15
MOST_DIVERGE = 0.15


@dataclass(frozen=True)
class _WarmUp:
    """Gradient descent whose rate rises from ``first`` to ``lr`` in n_steps steps, geometrically."""

    lr: float
    first: float
    n_steps: int

    def init(self, theta: np.ndarray) -> tuple[int]:
        return (0,)

    def step(
        self, theta: np.ndarray, state: tuple[int], gradient: np.ndarray
    ) -> tuple[np.ndarray, tuple[int]]:
        (done,) = state
        return theta - self.rate(done) * gradient, (done + 1,)

    def rate(self, step: Any) -> Any:
        """The rate of the step after ``step`` steps."""
        return self.lr * (self.first / self.lr) ** np.maximum(0, 1 - step / self.n_steps)

    def step_size(self, state: tuple[int]) -> float:
        return float(self.rate(state[0] - 1))


def problem(family: str, samples: int, inputs: int, width: int, seed: int) -> Any:
    """Gaussian inputs, and the outputs of a linear map (of its tanh, for a tanh net) as targets."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, inputs))
    y = x @ rng.standard_normal(inputs) / np.sqrt(inputs)
    if family == "diagonal":
        return eosim.DiagonalNet(x, y)
    if family == "tanh":
        return eosim.Perceptron(x, np.tanh(y), (width,))
    return eosim.LinearNet(x, y, (width,) * (1 if family == "two_layer" else 2))


def sharp_start(net: Any, seed: int) -> np.ndarray:
    """Random weights, scaled to a sharpness of START / LR; of a tanh net the last layer only."""
    theta = net.initial(seed)
    slopes = net.jacobian(theta)[:, 0]  # (samples, dim)
    if not isinstance(net, eosim.Perceptron):
        # Homogeneous of degree depth in theta: its slopes have a degree less.
        depth = len(net.widths) + 1 if isinstance(net, eosim.LinearNet) else 2
        largest = np.linalg.norm(slopes, 2) ** 2 / net.n_samples
        return (START / (LR * largest)) ** (1 / (2 * (depth - 1))) * theta
    last = net.hidden[-1] + 1
    below, own = (part @ part.T / net.n_samples for part in np.split(slopes, [-last], axis=1))

    def excess(scale: float) -> float:
        return LR * np.linalg.eigvalsh(scale**2 * below + own)[-1] - START

    return np.append(theta[:-last], brentq(excess, 1e-3, 1e3, rtol=1e-4) * theta[-last:])


def _runs(net: Any, batch_size: int | None, seed: int, quick: bool, every: int) -> tuple[Any, ...]:
    """The kernel at the start, the warm-up, and the run at the last rate (None if it diverged)."""
    theta = sharp_start(net, seed)
    start = tangent_kernel(net, theta)
    batches: dict[str, Any] = {"batch_size": batch_size}
    threshold = 2 / start.largest
    if batch_size is not None:
        batches["sampling"] = SAMPLING
        threshold = critical_lr(start, **batches)
    n_warm, n_hold = (WARM_UP_QUICK, HOLD_QUICK) if quick else (WARM_UP_FULL, HOLD_FULL)
    rule = _WarmUp(LR, FIRST * threshold, n_warm)
    warm = eosim.run(net, rule, theta, n_warm, seed=seed, record={}, every=every, **batches)
    if warm.status is eosim.Status.DIVERGED:
        return start, warm, None
    theta = warm.final_state.theta
    kick = np.random.default_rng(seed).standard_normal(net.dim)
    theta = theta + KICK * np.linalg.norm(theta) / np.linalg.norm(kick) * kick
    hold = eosim.run(
        net,
        eosim.GradientDescent(LR),
        theta,
        n_hold,
        seed=np.random.SeedSequence((seed, 1)),
        every=LOOK_EVERY,
        keep_theta=False,
        stop_below=SETTLED,
        **batches,
    )
    return start, warm, hold


def _measured(net: Any, start: TangentKernel, hold: Any) -> tuple[float, ...]:
    """QUANTITIES at the end of a run; NaN if it diverged, infinite if it is not at a minimum."""
    sizes = (net.n_samples, net.inputs.shape[1], net.dim)
    if hold is None or hold.status is eosim.Status.DIVERGED:
        return (*sizes, *[np.nan] * 5)
    if hold["loss"][-1] > MINIMUM:
        return (*sizes, *[np.inf] * 5)
    kernel = tangent_kernel(net, hold.final_state.theta)
    return (
        *sizes,
        start.frobenius,
        kernel.frobenius,
        kernel.largest,
        critical_lr(kernel, BATCH_SIZE, sampling=SAMPLING),
        alignment_band(kernel).smallest,
    )


def _course(net: Any, batch_size: int | None, quick: bool) -> np.ndarray:
    """Step, rate * |G|_F and rate / threshold along a warm-up."""
    every = COURSE_EVERY_QUICK if quick else COURSE_EVERY_FULL
    _, warm, _ = _runs(net, batch_size, 0, quick, every)
    rates = np.diff(warm.t) / np.diff(warm.step)  # means between the records
    rows = []
    for step, theta, rate in zip(warm.step[1:], warm.theta[1:], rates, strict=True):
        kernel = tangent_kernel(net, theta)
        threshold = critical_lr(kernel, BATCH_SIZE, sampling=SAMPLING)
        rows.append((step, rate * kernel.frobenius, rate / threshold))
    return np.array(rows).T


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Where all runs end; SGD's and gradient descent's course; every bound at one end per family."""
    sizes = SIZES_QUICK if quick else SIZES_FULL
    base = {"samples": SAMPLES, "inputs": INPUTS, "width": WIDTH}
    settings = [("base", base)]
    settings += [(axis, {**base, axis: size}) for axis, row in sizes.items() for size in row]
    arrays: dict[str, np.ndarray] = {"lr": np.array(LR), "batch_size": np.array(BATCH_SIZE)}
    for family in FAMILIES:
        for method, n_seeds in (
            ("sgd", SEEDS_QUICK if quick else SEEDS_FULL),
            ("descent", DESCENTS_QUICK if quick else DESCENTS_FULL),
        ):
            rows, axes, reached = [], [], []
            for axis, size in settings:
                if family == "diagonal" and axis == "width":
                    continue
                for seed in range(n_seeds):
                    net = problem(family, **size, seed=seed)
                    batch_size = BATCH_SIZE if method == "sgd" else None
                    start, _, hold = _runs(net, batch_size, seed, quick, WARM_UP_FULL)
                    rows.append(_measured(net, start, hold))
                    axes.append(axis)
                    if np.isfinite(rows[-1]).all():
                        reached.append((LR / rows[-1][QUANTITIES.index("critical")], net, hold))
            if method == "sgd":
                _, net, hold = reached[0]
                arrays[f"{family}_bounds"] = _bounds(net, hold)
                farthest, net, hold = max(reached, key=itemgetter(0))
                arrays[f"{family}_typical"] = np.array([farthest, _typical_growth(net, hold)])
            arrays[f"{family}_{method}_axis"] = np.array(axes)
            for name, values in zip(QUANTITIES, np.array(rows).T, strict=True):
                arrays[f"{family}_{method}_{name}"] = values
    net = problem("two_layer", **base, seed=0)
    arrays["sgd_course"] = _course(net, BATCH_SIZE, quick)
    arrays["descent_course"] = _course(net, None, quick)
    return arrays


def _bounds(net: Any, hold: Any) -> np.ndarray:
    """BOUNDS over the rate, where the run ended."""
    kernel: TangentKernel = tangent_kernel(net, hold.final_state.theta)
    found = lr_bounds(kernel, BATCH_SIZE, sampling=SAMPLING)
    return np.array([found[name].value / LR for name in BOUNDS])


def _typical_growth(net: Any, hold: Any) -> float:
    """The mean growth of the logarithm of the loss per step, linearised where a run ended."""
    kernel = tangent_kernel(net, hold.final_state.theta)
    starts = np.random.default_rng(0).standard_normal((TYPICAL_RUNS, kernel.rows.shape[1]))
    losses = eosim.run_ensemble(
        _sgd.problem(kernel),
        eosim.GradientDescent(LR),
        None,
        TYPICAL[1],
        batch_sizes=BATCH_SIZE,
        n_replicas=TYPICAL_RUNS,
        seed=0,
        sampling=SAMPLING,
        residuals0=starts @ kernel.rows.T,
    )["loss"][0, 0]  # (run, step)
    return float(np.log(losses[:, TYPICAL[1]] / losses[:, TYPICAL[0]]).mean() / np.ptp(TYPICAL))


def _ends(arrays: dict[str, np.ndarray], method: str, name: str, axis: str | None = None) -> Any:
    """A quantity at the minima that were reached: all families, or a dictionary of them for an axis."""
    values = {}
    for family in FAMILIES:
        chosen = np.isfinite(arrays[f"{family}_{method}_frobenius"])
        if axis is not None:
            chosen &= np.isin(arrays[f"{family}_{method}_axis"], ("base", axis))
        values[family] = arrays[f"{family}_{method}_{name}"][chosen]
    return np.concatenate(list(values.values())) if axis is None else values


def _share(arrays: dict[str, np.ndarray], test: Any) -> tuple[int, int]:
    """How many of SGD's runs the test holds for, of how many."""
    values = np.concatenate([arrays[f"{family}_sgd_frobenius"] for family in FAMILIES])
    return int(test(values).sum()), len(values)


def in_units(arrays: dict[str, np.ndarray], method: str, axis: str | None = None) -> Any:
    """lr |H|_F / sqrt(B)."""
    scale = LR / np.sqrt(BATCH_SIZE)
    norms = _ends(arrays, method, "frobenius", axis)
    if axis is None:
        return scale * norms
    return {family: scale * values for family, values in norms.items()}


def _medians(arrays: dict[str, np.ndarray], method: str, axis: str, over: str) -> np.ndarray:
    """The median over families and seeds at each size, smallest size first."""
    where = np.concatenate(list(_ends(arrays, method, over, axis).values()))
    values = np.concatenate(list(in_units(arrays, method, axis).values()))
    return np.array([np.median(values[where == size]) for size in np.unique(where)])


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """The theorem at every end; SGD's ends bounded at all sizes; gradient descent's not."""
    rows, scale = [], LR / np.sqrt(BATCH_SIZE)
    for method, name in (("sgd", "SGD"), ("descent", "GD")):
        norm, critical, mu0 = (_ends(arrays, method, q) for q in ("frobenius", "critical", "mu0"))
        # Exact: the bound of every minimum lies above its threshold, to the rounding of an eigenvalue.
        excess = (critical * norm * np.sqrt(mu0 / BATCH_SIZE)).max()
        rows.append(Row(f"{name}: threshold / its Frobenius bound", 1, 1e-9, excess, "at most"))
    ends = in_units(arrays, "sgd")
    ratio = LR / _ends(arrays, "sgd", "critical")
    diverged, total = _share(arrays, np.isnan)
    farthest, typical = max(tuple(arrays[f"{family}_typical"]) for family in FAMILIES)
    rows += [
        Row(
            f"SGD: lr |H|_F / sqrt(B), largest of {len(ends)}",
            1,
            CHANCE,
            float(ends.max()),
            "at most",
        ),
        Row("SGD: lr / threshold, median", 1, LAG, float(np.median(ratio))),
        Row(
            f"typical growth at lr / threshold = {farthest:.2f}",
            0,
            RESOLVED,
            float(typical),
            "at most",
        ),
        Row(
            f"SGD: share of {total} runs that diverge", 0, MOST_DIVERGE, diverged / total, "at most"
        ),
    ]
    norms, sharpness = in_units(arrays, "descent"), LR * _ends(arrays, "descent", "sharpness")
    left = _ends(arrays, "descent", "critical") < LR
    rows += [
        Row("GD: lr lambda_max, median", 2, LAG, float(np.median(sharpness))),
        Row("GD: lr lambda_max, largest", 2, 1e-2, float(sharpness.max()), "at most"),
        Row("GD: lr |H|_F / sqrt(B), median", 1, 0, float(np.median(norms)), "at least"),
        Row("GD: share of ends that SGD would leave", 0.9, 0, float(left.mean()), "at least"),
    ]
    for axis in ("samples", "inputs"):
        sgd, descent = (_medians(arrays, m, axis, axis) for m in ("sgd", "descent"))
        rows += [
            Row(f"{axis}: growth of SGD's |H|_F", 1, CHANGE, sgd[-1] / sgd[0], "at most"),
            Row(
                f"{axis}: growth of GD's |H|_F", 1 + CHANGE, 0, descent[-1] / descent[0], "at least"
            ),
        ]
    sharp = scale * _ends(arrays, "sgd", "start") > 1
    rows.append(Row("share of starts that are above 1", 0.9, 0, float(sharp.mean()), "at least"))
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """The norm against three sizes; a course; the theorem at every end; what each bound is worth."""
    n_seeds = int((arrays["two_layer_sgd_axis"] == "base").sum())
    diverged, total = _share(arrays, np.isnan)
    unfinished, _ = _share(arrays, np.isposinf)
    figure = _style.canvas(
        12.0,
        8.5,
        "SGD ends at minima with $|H|_F \\leq \\sqrt{B}\\,/\\,\\eta$, whatever the model and its size; "
        "gradient descent does not",
        f"Own settings: $\\eta = {LR:g}$, $B = {BATCH_SIZE}$ with replacement, Gaussian "
        f"inputs, targets of a linear map (tanh net: its tanh); {SAMPLES} samples, {INPUTS} inputs, width "
        f"{WIDTH} but for the size on the axis;\nSGD: {n_seeds} seeds each. Starts have "
        f"$\\eta\\lambda_{{\\max}} = {START:g}$; the rate rises to $\\eta$ in a warm-up. Of {total} runs "
        f"of SGD {diverged} diverged and {unfinished} had not reached a loss of {MINIMUM:g}: they are "
        "not shown. Rank $r$: of equal eigenvalues, $\\mu = 1$.",
    )
    _draw_legend(figure)
    top = figure.add_gridspec(
        1, 3, wspace=0.1, **_style.margins(figure, left=0.75, right=0.25, top=1.45, bottom=4.55)
    )
    axes = None
    for index, (axis, over, text) in enumerate(
        (
            ("samples", "samples", "$n$   samples"),
            ("inputs", "inputs", "$d$   inputs"),
            ("width", "dim", "$p$   parameters (by the width)"),
        )
    ):
        axes = figure.add_subplot(top[index], sharey=axes)
        _draw_size(axes, arrays, axis, over)
        axes.set_xlabel(text)
        if index == 0:
            axes.set_ylabel(r"$\eta\,|H|_F\,/\,\sqrt{B}$")
        else:
            axes.tick_params(labelleft=False)
    bottom = figure.add_gridspec(
        1,
        3,
        wspace=0.32,
        width_ratios=(1.08, 1.05, 0.87),
        **_style.margins(figure, left=0.75, right=0.25, top=4.9, bottom=1.05),
    )
    _draw_course(figure.add_subplot(bottom[0]), arrays)
    _draw_theorem(figure.add_subplot(bottom[1]), arrays)
    _draw_bounds(figure.add_subplot(bottom[2]), arrays)
    return figure


def _draw_legend(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    families = [
        Line2D([], [], label=NAMES[family], **_style.points(_style.QUIET, marker=MARKERS[family]))
        for family in FAMILIES
    ]
    hollow = _style.points(DESCENT, filled=False)
    others = [
        Line2D([], [], label="SGD", **_style.points(SGD)),
        Line2D([], [], label="gradient descent (open: SGD would leave)", **hollow),
        Line2D([], [], color=_style.INK, lw=1.4, label="bound with $\\mu_0 = 1$"),
        Line2D(
            [], [], label="edge of gradient descent, $r$ equal eigenvalues", **EQUAL, color=DESCENT
        ),
        Line2D([], [], label="threshold of SGD, likewise", **EQUAL, color=SGD),
    ]
    for row, handles in enumerate((families, others)):
        figure.legend(
            handles=handles,
            loc="upper left",
            ncols=len(handles),
            columnspacing=1.5,
            handletextpad=0.5,
            handlelength=1.8,
            bbox_to_anchor=(0.08 / width, 1 - (0.40 + 0.22 * row) / height),
        )


EQUAL: dict[str, Any] = {"lw": 1.2, "ls": (0, (4, 2))}
COURSES: dict[str, dict[str, Any]] = {
    "norm": {"lw": 1.6, "ls": "-"},
    "ratio": {"lw": 1.4, "ls": (0, (1, 1.2))},
}
TICKS = (0.2, 0.5, 1, 2, 5)


def _log(axis: Any, ticks: Any) -> None:
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _draw_size(axes: Axes, arrays: dict[str, np.ndarray], axis: str, over: str) -> None:
    title, text = {
        "samples": ("Sample size", f"$d = {INPUTS}$; $r = \\min(n, d)$"),
        "inputs": ("Dimension", f"$n = {SAMPLES}$; $r = \\min(n, d)$"),
        "width": ("Width", f"$n = {SAMPLES}$, $d = {INPUTS}$; $r = d$"),
    }[axis]
    axes.set_title(title, pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, text)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.25, 6)
    _log(axes.yaxis, TICKS)
    limits = {"samples": (11, 380), "inputs": (5.6, 190), "width": (45, 30000)}[axis]
    axes.set_xlim(*limits)
    ticks = {
        "samples": (16, 32, 64, 128, 256),
        "inputs": (8, 16, 32, 64, 128),
        "width": (100, 1000, 10000),
    }
    _log(axes.xaxis, ticks[axis])
    x = np.geomspace(*limits, 200)
    rank = {
        "samples": np.minimum(x, INPUTS),
        "inputs": np.minimum(x, SAMPLES),
        "width": np.full_like(x, INPUTS),
    }[axis]
    t = rank / BATCH_SIZE
    axes.plot(x, 2 * np.sqrt(t), color=DESCENT, **EQUAL)
    axes.plot(x, 2 * np.sqrt(t) / (1 + t), color=SGD, **EQUAL)
    axes.axhline(1, color=_style.INK, lw=1.4)
    for index, family in enumerate(FAMILIES):
        for method, color, size in (("descent", DESCENT, 4.4), ("sgd", SGD, 4.0)):
            where = _ends(arrays, method, over, axis)[family] * 1.0
            values = in_units(arrays, method, axis)[family]
            stable = _ends(arrays, method, "critical", axis)[family] >= LR
            if axis != "width":  # families side by side
                where = where * 1.1 ** (index - 1.5)
            for filled in (False, True):
                chosen = (stable == filled) if method == "descent" else np.full(len(where), filled)
                look = _style.points(color, marker=MARKERS[family], size=size, filled=filled)
                axes.plot(where[chosen], values[chosen], **look)


def _draw_course(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("One warm-up of each", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"two-layer linear net; $\eta^*$: SGD's threshold at step $k$")
    for method, color in (("descent", DESCENT), ("sgd", SGD)):
        step, norm, ratio = arrays[f"{method}_course"]
        axes.plot(step, norm / np.sqrt(BATCH_SIZE), color=color, **COURSES["norm"])
        axes.plot(step, ratio, color=color, **COURSES["ratio"])
    axes.axhline(1, color=_style.INK, lw=1.0)
    axes.set_yscale("log")
    axes.set_ylim(0.4, 5)
    _log(axes.yaxis, TICKS)
    axes.set_xlabel("$k$   step")
    axes.set_ylabel("over the bound, over the threshold")
    texts = {"norm": r"$\eta_k\,|H|_F\,/\,\sqrt{B}$", "ratio": r"$\eta_k\,/\,\eta^*$"}
    handles = [
        Line2D([], [], color=_style.QUIET, label=text, **COURSES[name])
        for name, text in texts.items()
    ]
    axes.legend(handles=handles, loc="upper left", ncols=2)


def _draw_theorem(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("The theorem, at every end", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "$\\mu_0$ of that very minimum: no point above the line")
    line = np.array([0.1, 20])
    axes.fill_between(line, line, 20, color=_style.FAINT, alpha=0.55, lw=0)
    axes.plot(line, line, color=_style.INK, lw=1.4)
    axes.axvline(1, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    for method, color in (("descent", DESCENT), ("sgd", SGD)):
        for family in FAMILIES:
            chosen = np.isfinite(arrays[f"{family}_{method}_frobenius"])
            norm, critical, mu0 = (
                arrays[f"{family}_{method}_{q}"][chosen] for q in ("frobenius", "critical", "mu0")
            )
            ratio, value = LR / critical, LR * norm * np.sqrt(mu0 / BATCH_SIZE)
            for filled in (False, True):
                own = (ratio <= 1) == filled if method == "descent" else np.full(len(ratio), filled)
                look = _style.points(color, marker=MARKERS[family], size=4, filled=filled)
                axes.plot(ratio[own], value[own], **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.5, 8)
    axes.set_ylim(0.1, 4)
    _log(axes.xaxis, (0.5, 1, 2, 5))
    _log(axes.yaxis, (0.1, 0.2, 0.5, 1, 2))
    axes.set_xlabel(r"$\eta\,/\,\eta^*$   rate over the exact threshold")
    axes.set_ylabel(r"$\eta\,|H|_F\,\sqrt{\mu_0 / B}$")


def _draw_bounds(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("What each bound is worth", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "one end per net; first: sufficient, open: necessary")
    names = list(BOUNDS)
    for place, name in enumerate(names):
        for index, family in enumerate(FAMILIES):
            value = arrays[f"{family}_bounds"][place]
            filled = name in ("wu_2018", "exact")
            look = _style.points(SGD, marker=MARKERS[family], size=4.4, filled=filled)
            axes.plot(value, place + 0.16 * (index - 1.5), **look)
    axes.axvline(1, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.yaxis.set_major_locator(FixedLocator(range(len(names))))
    axes.set_yticklabels([BOUNDS[name] for name in names])
    axes.grid(visible=False, axis="y")
    axes.set_xscale("log")
    axes.set_xlim(0.25, 5)
    _log(axes.xaxis, (0.3, 0.5, 1, 2, 4))
    axes.set_xlabel(r"bound of the rate, over $\eta$")
