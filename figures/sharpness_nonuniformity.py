r"""SGD tells minima of one sharpness apart by how much samples differ in it; gradient descent cannot.

Around a minimum of a loss of one parameter whose samples have curvatures :math:`a_i`, of mean a (sharpness)
and standard deviation s (non-uniformity), SGD is stable in mean square if and only if

.. math:: (1 - \eta a)^2 + \kappa\,\eta^2 s^2 \le 1, \qquad \kappa = \frac{n - B}{B(n - 1)}

(Wu, Ma & E 2018, "How SGD selects the global minima in over-parameterized learning", NeurIPS). Hence the
box :math:`\eta a \le 2`, :math:`\eta s\sqrt\kappa \le 1` around the stable minima. With several parameters,
a the largest eigenvalue of H and :math:`s^2` that of :math:`\frac1n\sum H_i^2 - H^2`, the first side still
holds. The second does not: minima are drawn that are stable well beyond it.

The scalar example of that paper, :math:`f_1 = \min\{x^2, 0.1(x-1)^2\}` and
:math:`f_2 = \min\{x^2, 1.9(x-1)^2\}`, batches of one, has the same sharpness 2 at both of its minima, and
non-uniformity 0 at x = 0, 1.8 at x = 1. At the rate 0.7 gradient descent contracts by -0.4 at both; SGD at
x = 1 multiplies the mean square by 1.7476 per step, and a typical distance by
:math:`(0.86 \cdot 1.66)^{1/2} = 1.19`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

import eosim
from eosim.sampling import noise_factor
from eosim.stability import TangentKernel, critical_lr
from figures import _style
from figures._headline import Row

RATES, BATCHES = (0.1, 0.2, 0.3), (1, 2, 3)
# Our choice: the rate at which minima of one parameter are judged.
JUDGED = 0.2
# Our choice: few enough samples to enumerate all batches. Curvatures of a minimum are Gamma distributed,
# scaled to a mean that is uniform up to 2 over the smallest rate and a little more; their relative
# deviation before that is log-uniform.
N_SAMPLES, SEED = 16, 0
LARGEST, DEVIATIONS = 21.0, (0.1, 3.0)
MINIMA_QUICK, MINIMA_FULL = 90, 300
# Our choice: parameters and problems per batch size, gradients of independent normal entries.
DIMS = (1, 3, 6)
PROBLEMS_QUICK, PROBLEMS_FULL = 25, 200
# At this part of its threshold a minimum is stable, and its enumerated growth factor below 1.
INSIDE = 0.999
# Of the scalar example: Wu, Ma & E 2018. Starts, runs and steps are our choice.
TOY_CURVATURES, TOY_RATE = (0.2, 3.8), 0.7
STARTS = {"uniform": 0.2, "non_uniform": 1.01}
TOY_RUNS_QUICK, TOY_RUNS_FULL, TOY_STEPS, SHOWN_RUNS, SHOWN_STEPS = 200, 2000, 200, 25, 50
ROUNDING = 1e-12

COLOR = _style.BLUE
LINES = {
    0.1: {"color": _style.GREEN, "lw": 1.5, "ls": (0, (5, 1.5, 1, 1.5))},
    0.2: {"color": _style.INK, "lw": 1.9, "ls": "-"},
    0.3: {"color": _style.VERMILLION, "lw": 1.5, "ls": (0, (6, 1.8))},
}
BOX: dict[str, Any] = {"color": _style.QUIET, "lw": 1.0, "ls": (0, (1, 1.6))}
DIM_LOOKS = {1: (_style.INK, "."), 3: (_style.ORANGE, "s"), 6: (_style.PURPLE, "D")}


@dataclass(frozen=True)
class TwoMinima:
    """f_i = min{x^2, b_i (x - 1)^2 / 2}; the loss is their mean."""

    second: tuple[float, ...] = TOY_CURVATURES
    dim: int = 1
    analytic: bool = False

    @property
    def n_samples(self) -> int:
        return len(self.second)

    def pieces(self, theta: np.ndarray, batch: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Losses and derivatives of each sample."""
        second = np.array(self.second)[slice(None) if batch is None else batch]
        x = theta[0]
        near, far = x**2, second / 2 * (x - 1) ** 2
        slope = np.where(near < far, 2 * x, second * (x - 1))
        return np.minimum(near, far), slope

    def loss(self, theta: np.ndarray, batch: Any = None) -> float:
        return float(self.pieces(theta, batch)[0].mean())

    def gradient(self, theta: np.ndarray, batch: Any = None) -> np.ndarray:
        return self.pieces(theta, batch)[1].mean(keepdims=True)


def draw_curvatures(n_minima: int) -> np.ndarray:
    """Per-sample curvatures of minima of one parameter, (n_minima, n)."""
    rng = np.random.default_rng(SEED)
    relative = np.exp(rng.uniform(*np.log(DEVIATIONS), n_minima))[:, None]
    draws = rng.gamma(relative**-2, size=(n_minima, N_SAMPLES))
    return draws / draws.mean(axis=1, keepdims=True) * rng.uniform(0.5, LARGEST, (n_minima, 1))


def enumerated_factor(hessians: np.ndarray, lr: float, batch_size: int) -> float:
    """Growth per step of the second moments of theta, from all batches; hessians (n, dim, dim)."""
    dim = hessians.shape[1]
    total, count = np.zeros((dim**2, dim**2)), 0
    for batch in itertools.combinations(range(len(hessians)), batch_size):
        step = np.eye(dim) - lr * hessians[list(batch)].mean(axis=0)
        total += np.kron(step, step)
        count += 1
    return float(np.abs(np.linalg.eigvalsh(total / count)).max())


def sharpness_and_nonuniformity(kernel: TangentKernel) -> tuple[float, float]:
    """The largest eigenvalue of H, and the root of that of the mean of H_i^2 minus H^2."""
    rows = kernel.rows
    squares = np.sum(rows**2, axis=1)  # H_i^2 = |g_i|^2 g_i g_i^T
    spread = (rows * squares[:, None]).T @ rows / len(rows) - np.diag(kernel.eigenvalues**2)
    return kernel.largest, float(np.sqrt(np.linalg.eigvalsh(spread)[-1]))


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Minima of one and of several parameters, and runs of the scalar example."""
    curvatures = draw_curvatures(MINIMA_QUICK if quick else MINIMA_FULL)
    arrays = {"a": curvatures.mean(axis=1), "s": curvatures.std(axis=1)}
    for size in BATCHES:
        arrays[f"factor_{size}"] = np.array(
            [enumerated_factor(each[:, None, None], JUDGED, size) for each in curvatures]
        )
        arrays[f"threshold_{size}"] = np.array(
            [
                critical_lr(TangentKernel.from_jacobian(np.sqrt(each)[:, None]), size)
                for each in curvatures
            ]
        )
    n_problems = PROBLEMS_QUICK if quick else PROBLEMS_FULL
    for dim in DIMS:
        points, cases = [], []
        for size, seed in itertools.product(BATCHES, range(n_problems)):
            jacobian = np.random.default_rng([seed, dim]).standard_normal((N_SAMPLES, dim))
            kernel = TangentKernel.from_jacobian(jacobian)
            threshold = critical_lr(kernel, size)
            a, s = sharpness_and_nonuniformity(kernel)
            y = threshold * s * np.sqrt(noise_factor(N_SAMPLES, size))
            points.append((threshold * a, y))
            cases.append((jacobian[:, :, None] * jacobian[:, None, :], INSIDE * threshold, size))
        arrays[f"scaled_{dim}"] = np.array(points)  # (problem, 2)
        farthest = int(arrays[f"scaled_{dim}"][:, 1].argmax())
        arrays[f"farthest_{dim}"] = np.array(enumerated_factor(*cases[farthest]))
    return arrays | _toy(TOY_RUNS_QUICK if quick else TOY_RUNS_FULL)


def _toy(n_runs: int) -> dict[str, np.ndarray]:
    toy, rule = TwoMinima(), eosim.GradientDescent(TOY_RATE)
    arrays: dict[str, np.ndarray] = {}
    for name, start in STARTS.items():
        descent = eosim.run(toy, rule, [start], TOY_STEPS, record={})
        arrays[f"gd_{name}"] = descent["theta"][:, 0]
        arrays[f"sgd_{name}"] = np.array(
            [
                eosim.run(
                    toy, rule, [start], TOY_STEPS, batch_size=1, record={},
                    seed=np.random.SeedSequence(SEED, spawn_key=(run,)),
                )["theta"][:, 0]
                for run in range(n_runs)
            ]
        )  # fmt: skip
    distance = 1e-3
    steps = [
        distance - TOY_RATE * toy.gradient(np.array([1 + distance]), [sample])[0]
        for sample in range(toy.n_samples)
    ]
    arrays["toy_factor"] = np.array(np.mean(np.square(steps)) / distance**2)
    arrays["x"] = np.linspace(-0.5, 1.6, 421)
    arrays["samples"] = np.array([toy.pieces(np.array([x]))[0] for x in arrays["x"]])
    return arrays


def _formula(arrays: dict[str, np.ndarray], size: int) -> np.ndarray:
    """(1 - eta a)^2 + kappa eta^2 s^2 of each minimum of one parameter."""
    kappa = noise_factor(N_SAMPLES, size)
    return (1 - JUDGED * arrays["a"]) ** 2 + kappa * (JUDGED * arrays["s"]) ** 2


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """The boundary and the thresholds of one parameter; the box; who leaves which minimum."""
    rows = []
    wrong = total = 0
    gap = away = 0.0
    for size in BATCHES:
        formula, factor = _formula(arrays, size), arrays[f"factor_{size}"]
        gap = max(gap, float(np.abs(factor - formula).max()))
        kappa = noise_factor(N_SAMPLES, size)
        known = 2 * arrays["a"] / (arrays["a"] ** 2 + kappa * arrays["s"] ** 2)
        away = max(away, float(np.abs(arrays[f"threshold_{size}"] / known - 1).max()))
        stable = arrays[f"threshold_{size}"] > JUDGED
        wrong, total = wrong + int((stable != (factor < 1)).sum()), total + stable.size
    rows += [
        Row("1 parameter: |enumerated factor - formula|", 0, 100 * ROUNDING, gap),
        Row("1 parameter: |threshold / formula - 1|", 0, 100 * ROUNDING, away),
        Row(f"1 parameter: wrong verdicts of {total}", 0, 0, wrong),
    ]
    for dim in DIMS[1:]:
        points = arrays[f"scaled_{dim}"]
        rows += [
            Row(f"{dim} parameters: rate x a, largest", 2, ROUNDING, points[:, 0].max(), "at most"),
            Row(f"{dim} parameters: stable beyond the box", 1, 0, _outside(points), "at least"),
            Row(
                f"{dim} parameters: factor of the farthest",
                1,
                0,
                float(arrays[f"farthest_{dim}"]),
                "at most",
            ),
        ]
    ends = {name: arrays[f"sgd_{name}"][:, -1] for name in STARTS}
    left = int((np.abs(ends["non_uniform"] - 1) > 1e-9).sum())
    return [
        *rows,
        Row("example: growth of the mean square at 1", 1.7476, ROUNDING, float(arrays["toy_factor"])),
        Row(
            "example, gradient descent: distance at the end",
            0,
            ROUNDING,
            max(abs(arrays["gd_uniform"][-1]), abs(arrays["gd_non_uniform"][-1] - 1)),
        ),
        Row("example, SGD: runs that leave 0", 0, 0, int((np.abs(ends["uniform"]) > 1e-9).sum())),
        Row(f"example, SGD: runs that stay at 1, of {len(ends['uniform'])}", 0, 0,
            len(ends["uniform"]) - left),
        Row("example, SGD from 1: distance from 0 at the end", 0, ROUNDING,
            float(np.abs(ends["non_uniform"]).max())),
    ]  # fmt: skip


def _outside(points: np.ndarray) -> int:
    """Stable minima beyond the side s of the box."""
    return int((INSIDE * points[:, 1] > 1).sum())


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """The boundary at three batch sizes; all of it scaled, with more parameters; the scalar example."""
    figure = _style.canvas(
        12.0,
        8.0,
        "SGD tells minima of one sharpness apart by how much samples differ in it",
        f"Own settings, but for the scalar example: Wu, Ma & E 2018. n = {N_SAMPLES} samples, batches "
        f"without replacement, κ = (n − B)/(B(n − 1)). Points: {len(arrays['a'])} random minima, judged "
        f"from all batches at η = {JUDGED:g}; filled is stable.\n"
        "Bottom left: random minima at their exact thresholds, a lower rate moves them towards the origin; "
        "with one parameter they lie on the line. The dotted box bounds those alone.",
    )
    grid = figure.add_gridspec(
        2,
        3,
        wspace=0.25,
        hspace=0.5,
        **_style.margins(figure, left=0.72, right=0.25, top=1.38, bottom=1.02),
    )
    _draw_legend(figure)
    for column, size in enumerate(BATCHES):
        axes = figure.add_subplot(grid[0, column])
        _draw_plane(axes, arrays, size)
        if column == 0:
            axes.set_ylabel("$s$   non-uniformity")
    _draw_scaled(figure.add_subplot(grid[1, 0]), arrays)
    _draw_toy(figure.add_subplot(grid[1, 1]), arrays)
    _draw_runs(figure.add_subplot(grid[1, 2]), arrays)
    return figure


def _draw_legend(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    handles = [
        *(Line2D([], [], label=f"boundary, η = {rate:g}", **look) for rate, look in LINES.items()),
        Line2D([], [], label="box, a guide", **BOX),
        Line2D([], [], label=f"stable at {JUDGED:g}", **_style.points(COLOR)),
        Line2D([], [], label="not stable", **_style.points(COLOR, filled=False)),
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        ncols=len(handles),
        columnspacing=1.8,
        handletextpad=0.6,
        handlelength=2.6,
        bbox_to_anchor=(0.08 / width, 1 - 0.42 / height),
    )


def _draw_plane(axes: Axes, arrays: dict[str, np.ndarray], size: int) -> None:
    angle = np.linspace(0, np.pi, 201)
    kappa = noise_factor(N_SAMPLES, size)
    for rate, look in LINES.items():
        a, s = (1 + np.cos(angle)) / rate, np.sin(angle) / (rate * np.sqrt(kappa))
        axes.plot(a, s, **look)
        if rate == JUDGED:
            axes.fill_between(a, s, color=_style.INK, alpha=0.06, lw=0)
            side = 1 / (rate * np.sqrt(kappa))
            axes.plot([0, 2 / rate, 2 / rate], [side, side, 0], **BOX)
    stable = arrays[f"factor_{size}"] < 1
    for grown in (False, True):
        chosen = stable != grown
        style = _style.points(COLOR, filled=not grown, size=3.6)
        axes.plot(arrays["a"][chosen], arrays["s"][chosen], **style)
    axes.set_xlim(0, LARGEST)
    axes.set_ylim(0, 20)
    axes.xaxis.set_major_locator(FixedLocator([0, 5, 10, 15, 20]))
    axes.yaxis.set_major_locator(FixedLocator([0, 5, 10, 15, 20]))
    axes.set_xlabel("$a$   sharpness")
    axes.set_title(f"One parameter, B = {size}", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes, f"{int(stable.sum())} of {stable.size} stable; κ = {kappa:.2g}, half axes 1/η, 1/η√κ"
    )


def _draw_scaled(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    angle = np.linspace(0, np.pi, 201)
    axes.plot(1 + np.cos(angle), np.sin(angle), color=_style.INK, lw=1.5)
    axes.plot([0, 2, 2], [1, 1, 0], **BOX)
    for dim, (color, marker) in DIM_LOOKS.items():
        points = arrays[f"scaled_{dim}"]
        style = _style.points(color, marker=marker, size=3.2)
        label = f"{dim} parameter" + "s" * (dim > 1)
        axes.plot(points[:, 0], points[:, 1], label=label, **style)
    outside = sum(_outside(arrays[f"scaled_{dim}"]) for dim in DIMS[1:])
    count = sum(len(arrays[f"scaled_{dim}"]) for dim in DIMS[1:])
    axes.set_xlim(0, 2.1)
    axes.set_ylim(0, 1.26)
    axes.xaxis.set_major_locator(FixedLocator([0, 0.5, 1, 1.5, 2]))
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    axes.set_xlabel(r"$\eta^* a$")
    axes.set_ylabel(r"$\eta^* s\sqrt{\kappa}$")
    axes.set_title("At the threshold, more parameters", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, f"{outside} of {count} with 3 or 6 parameters stable beyond the box")
    axes.legend(loc="lower center", handletextpad=0.1)


def _draw_toy(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    x, samples = arrays["x"], arrays["samples"]
    axes.plot(x, samples[:, 0], color=_style.SKY, lw=1.3, ls=(0, (5, 1.5, 1, 1.5)), label="$f_1$")
    axes.plot(x, samples[:, 1], color=_style.PURPLE, lw=1.3, ls=(0, (5, 2)), label="$f_2$")
    axes.plot(x, samples.mean(axis=1), color=_style.INK, lw=1.9, label="mean")
    axes.plot([0], [0], **_style.points(COLOR, size=6))
    axes.plot([1], [0], **_style.points(COLOR, filled=False, size=6))
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(-0.03, 0.45)
    axes.xaxis.set_major_locator(FixedLocator([0, 1]))
    axes.set_xlabel("$x$")
    axes.set_ylabel("loss")
    axes.set_title("A scalar example", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes, f"a = 2 at both; s = 0 and 1.8. SGD at η = {TOY_RATE:g}: stable at 0 only"
    )
    axes.legend(loc="upper center", ncols=3, columnspacing=1.2, handletextpad=0.5)


def _draw_runs(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    steps = np.arange(SHOWN_STEPS + 1)
    for level in (0, 1):
        axes.axhline(level, color=_style.QUIET, lw=0.8, ls=(0, (4, 3)))
    for name in STARTS:
        runs = arrays[f"sgd_{name}"][:SHOWN_RUNS, : SHOWN_STEPS + 1]
        axes.plot(steps, runs.T, color=COLOR, lw=0.8, alpha=0.3)
        descent = arrays[f"gd_{name}"][: SHOWN_STEPS + 1]
        axes.plot(steps[::2], descent[::2], **_style.points(_style.INK, marker="s", size=3.2))
    left = arrays["sgd_non_uniform"]
    share = np.mean(np.abs(left[:, SHOWN_STEPS]) < 0.1)
    axes.set_xlim(-1, SHOWN_STEPS + 0.5)
    axes.set_ylim(-0.5, 2.1)
    axes.xaxis.set_major_locator(FixedLocator([0, 10, 20, 30, 40, 50]))
    axes.yaxis.set_major_locator(FixedLocator([0, 1, 2]))
    axes.set_xlabel("step")
    axes.set_ylabel("$x$")
    axes.set_title("Gradient descent stays, SGD leaves", pad=_style.SUBTITLE_PAD)
    text = f"squares: gradient descent; lines: SGD, {100 * share:.0f} % at 0 by step {SHOWN_STEPS}"
    _style.subtitle(axes, text)
