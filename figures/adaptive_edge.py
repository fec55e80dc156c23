r"""Adam rests at the edge of stability of its preconditioner, which lets it into sharper regions.

With the preconditioner P held fixed Adam (:math:`\beta_1 = 0.9`) is linear, and a quadratic loses
stability where the largest eigenvalue of :math:`P^{-1}H` is 38/lr. Full-batch training on 500
handwritten digits comes to rest there, after 550 to 1500 steps: the median of the ratio to 38/lr over
the second half of 6000 steps is 0.986 to 1.016 for three rates and three seeds, and nine of ten
measurements are within 0.075 of 1.

That is no barrier: P follows the gradients, and the raw sharpness, the largest eigenvalue of H, goes on
rising at a ratio of 1: between steps 1000 and 6000 by 71, 23 and 53 % at lr = 1e-3 (seeds 0, 1, 2). With
P frozen at step 1000 the ratio rests at 1 too (0.990 to 1.000), and the raw sharpness is blocked: +14,
+6, -3 % at the end. How far it rises is a matter of the data and the seed: with some it stands still
after a while, at lr = 3e-3 with seed 1 from step 2000 on. P frozen at step 500, before the edge is met,
is so large that the ratio stays at 0.2 to 0.35: it is the edge that blocks, not the freezing.

The effect: Cohen et al. 2022, arXiv 2207.14484; network, data and rates are this project's own.

``--data PATH`` runs the network of that paper (5 hidden layers of 200 tanh units, cross-entropy) on your
own CIFAR-10 files in the binary version: a file, or a folder with data_batch_1.bin and so on. Rate,
beta2 and the number of images are ours: the first 1000, ``--full`` 5000 and three rates. On one core a
step takes 0.1 s per 1000 images and a measurement 2 to 4 s, which makes 4 minutes, or an hour and a half
with ``--full``. On 300 crops of two photographs in that format the edge is met within 60 steps; from step
150 to 500 the raw sharpness rises by a factor of 4.0 live and falls by 22 % frozen, at median ratios of
0.97 and 0.91.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

import eosim
from figures import _digits_network, _style
from figures._headline import Row


@dataclass(frozen=True)
class Settings:
    """What is run: stops are the steps at which the preconditioner of one rate is frozen."""

    rates: tuple[float, ...]
    frozen_rate: float
    stops: dict[str, int]
    n_steps: int
    every: int
    seeds: tuple[int, ...]


# Our choice: half a decade to each side of Adam's default rate, which is the one that is frozen too: after
# the edge is met (at about step 850), and in a control ("early") long before.
_DIGITS: dict[str, Any] = {
    "rates": (3e-4, 1e-3, 3e-3),
    "frozen_rate": 1e-3,
    "stops": {"early": 500, "frozen": 1000},
    "every": _digits_network.EVERY,
}
DIGITS_QUICK = Settings(n_steps=4000, seeds=(0,), **_DIGITS)
DIGITS_FULL = Settings(n_steps=6000, seeds=(0, 1, 2), **_DIGITS)

# Images: 5 hidden layers of 200 tanh units with cross-entropy, as in the paper. All else is our choice; the
# edge is met within 60 steps on 300 crops of photographs.
IMAGE_HIDDEN = (200,) * 5
_IMAGES: dict[str, Any] = {
    "frozen_rate": 1e-4,
    "stops": {"frozen": 150},
    "every": 25,
    "seeds": (0,),
}
IMAGES_QUICK = Settings(rates=(1e-4,), n_steps=500, **_IMAGES)
IMAGES_FULL = Settings(rates=(3e-5, 1e-4, 3e-4), n_steps=1000, **_IMAGES)
N_IMAGES_QUICK, N_IMAGES_FULL = 1000, 5000
RECORD_BYTES = 3073  # a label and 3 * 32 * 32 bytes (Krizhevsky, "The CIFAR-10 dataset")

QUANTITIES = ("loss", "ratio", "sharpness")
# Of the median of 40 ratios or more, which scatter by 0.03 (standard deviation) around 0.99 to 1.02.
EDGE_TOLERANCE = 0.05
# Our choice: nine of ten measurements lie this near 1, so that it is a rest. Measured: up to 0.075.
SPREAD = 0.12
# On 300 crops of photographs single ratios lie between 0.44 and 1.3, medians at 0.97 and (frozen) 0.91.
IMAGE_EDGE_TOLERANCE, IMAGE_SPREAD = 0.15, 0.4
# Raw sharpness at the end over that where P is frozen, three seeds: 0.97 to 1.14 frozen; live 1.23, 1.5 and
# 1.7, of which the median is judged; live over frozen at least 1.15. Runs at the edge are chaotic.
BLOCKED, RISEN, APART = 1.2, 1.3, 1.05
# Our choice; frozen early, before the edge is met, the ratio stays below 0.37.
FAR_BELOW = 0.5


def load_images(path: Path, n_images: int) -> eosim.Perceptron:
    """The paper's network on the first images of a file, or of a folder with data_batch_1.bin and so on."""
    files = sorted(path.glob("data_batch_*.bin")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"data: the folder {str(path)!r} has no file data_batch_*.bin")
    available = sum(file.stat().st_size for file in files) // RECORD_BYTES
    images = eosim.data.from_cifar10(
        files, min(n_images, available) or None, centre=True, scale="block"
    )
    return eosim.Perceptron(images.inputs, images.targets, IMAGE_HIDDEN, criterion="cross_entropy")


def compute(quick: bool, data: Path | None = None) -> dict[str, np.ndarray]:
    """Live runs at several rates, and runs whose preconditioner is frozen at certain steps."""
    if data is None:
        problem = _digits_network.load_problem()
        settings = DIGITS_QUICK if quick else DIGITS_FULL
    else:
        problem = load_images(data, N_IMAGES_QUICK if quick else N_IMAGES_FULL)
        settings = IMAGES_QUICK if quick else IMAGES_FULL
    runs: dict[str, list[dict[str, np.ndarray]]] = {}
    for seed in settings.seeds:
        for lr in settings.rates:
            for name, run in _follow(problem, lr, seed, settings).items():
                runs.setdefault(name, []).append(run)
    arrays = {
        "n_images": np.array(0 if data is None else problem.n_samples),
        "seed": np.array(settings.seeds),
        "rate": np.array(settings.rates),
        "frozen_rate": np.array(settings.frozen_rate),
    }
    for name, several in runs.items():
        arrays[f"{name}_step"] = several[0]["step"]
        arrays |= {f"{name}_{key}": np.array([run[key] for run in several]) for key in QUANTITIES}
    return arrays


def _follow(
    problem: eosim.Perceptron, lr: float, seed: int, settings: Settings
) -> dict[str, dict[str, np.ndarray]]:
    """A live run, and from each stop on a run with the preconditioner it has there."""

    def go_on(rule: Any, end: int, state: eosim.RunState | None) -> eosim.Trajectory:
        done = 0 if state is None else state.step
        return _digits_network.follow(
            problem, rule, end - done, seed=seed, state=state, every=settings.every
        )

    rule, n_steps = _digits_network.adam(lr), settings.n_steps
    parts, runs, state = [], {}, None
    for name, stop in settings.stops.items() if lr == settings.frozen_rate else ():
        path = go_on(rule, stop, state)
        parts.append(_records(path))
        state = path.final_state
        frozen, start = eosim.freeze(rule, state)
        runs[name] = _records(go_on(frozen, n_steps, start))
    parts.append(_records(go_on(rule, n_steps, state)))
    # A part starts with the record that the one before it ended with.
    live = {
        key: np.concatenate([part[key][index > 0 :] for index, part in enumerate(parts)])
        for key in parts[0]
    }
    return runs | {f"live_{lr:g}": live}


def _records(path: eosim.Trajectory) -> dict[str, np.ndarray]:
    return {
        "step": path["step"],
        "loss": path["loss"],
        "ratio": path["edge.ratio"],
        "sharpness": path["edge.sharpness"],
    }


def _late(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The ratios of the second half of the run; (seed, record)."""
    step = arrays[f"{name}_step"]
    return arrays[f"{name}_ratio"][:, step >= step[-1] / 2]


def _rise(arrays: dict[str, np.ndarray], name: str, stop: int) -> np.ndarray:
    """Raw sharpness over the last tenth of the run (median) over that at the stop, by seed."""
    step, sharpness = arrays[f"{name}_step"], arrays[f"{name}_sharpness"]
    end = np.median(sharpness[:, step >= 0.9 * step[-1]], axis=1)
    return end / sharpness[:, np.searchsorted(step, stop)]


def _worst(medians: np.ndarray) -> float:
    """The one farthest from 1."""
    return float(medians[np.abs(medians - 1).argmax()])


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Where the ratios rest, and what the raw sharpness does there."""
    rows = []
    live = f"live_{arrays['frozen_rate']:g}"
    tolerance, spread = EDGE_TOLERANCE, SPREAD
    if arrays["n_images"] > 0:
        tolerance, spread = IMAGE_EDGE_TOLERANCE, IMAGE_SPREAD
    names = {f"lr = {lr:g}": f"live_{lr:g}" for lr in arrays["rate"]} | {"frozen": "frozen"}
    for words, name in names.items():
        late = _late(arrays, name)
        median = _worst(np.median(late, axis=1))
        away = float(np.quantile(np.abs(late - 1), 0.9, axis=1).max())
        rows.append(Row(f"{words}: ratio, median of the second half", 1, tolerance, median))
        rows.append(Row(f"{words}: |ratio - 1| of nine in ten", spread, 0, away, "at most"))
    stop = int(arrays["frozen_step"][0])
    blocked, risen = _rise(arrays, "frozen", stop), _rise(arrays, live, stop)
    text = f"raw sharpness, end / step {stop}"
    rows.append(Row(f"frozen: {text}", BLOCKED, 0, float(blocked.max()), "at most"))
    rows.append(Row(f"live: {text}", RISEN, 0, float(np.median(risen)), "at least"))
    least = float((risen / blocked).min())
    rows.append(Row("raw sharpness at the end, live / frozen", APART, 0, least, "at least"))
    if "early_step" in arrays:
        stop = int(arrays["early_step"][0])
        ratio = float(np.median(_late(arrays, "early"), axis=1).max())
        rows.append(Row(f"frozen at {stop}: ratio, the same", FAR_BELOW, 0, ratio, "at most"))
    return rows


COLORS = (_style.SKY, _style.BLUE, _style.INK)
FROZEN, EARLY = _style.VERMILLION, _style.ORANGE


def _looks(arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and words of every run."""
    colors, markers = (COLORS, "vo^") if len(arrays["rate"]) > 1 else (COLORS[1:], "o")
    looks = {
        f"live_{lr:g}": (color, marker, f"$\\eta$ = {lr:g}")
        for lr, color, marker in zip(arrays["rate"], colors, markers, strict=False)
    }
    looks["frozen"] = (FROZEN, "s", f"P frozen at step {arrays['frozen_step'][0]}")
    if "early_step" in arrays:
        looks["early"] = (
            EARLY,
            "D",
            f"P frozen at step {arrays['early_step'][0]}, before the edge",
        )
    return looks


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Loss, ratio and raw sharpness by step: above for several rates, below live and frozen."""
    n_images, seeds = int(arrays["n_images"]), arrays["seed"]
    task = (
        f"Your first {n_images} images, centred, over one standard deviation; 3072-200-200-200-200-200-10, "
        "tanh, cross-entropy; "
        if n_images
        else "scikit-learn's digits, the first 500, centred, over one standard deviation; 64-32-10, tanh, "
        "square loss; "
    )
    figure = _style.canvas(
        11.6,
        7.3,
        "Adam comes to rest at the adaptive edge of stability, and goes on to sharper regions",
        f"{task}full batches; Adam with $\\beta_1$ = 0.9, $\\beta_2$ = {_digits_network.BETA2:g}, "
        f"$\\epsilon$ = {_digits_network.EPS:g}, seed {seeds[0]}"
        + (f" (pale lines: {', '.join(map(str, seeds[1:]))}).\n" if len(seeds) > 1 else ".\n")
        + r"P: the preconditioner $\sqrt{\nu} + \epsilon$ of the step, with bias corrections. Ratio: "
        r"$\lambda_{\max}(P^{-1}H)$ over $38/\eta$, where a quadratic loses stability if P is held fixed. "
        r"Raw sharpness: $\lambda_{\max}(H)$. H is of all samples.",
    )
    grid = figure.add_gridspec(
        2,
        3,
        wspace=0.27,
        hspace=0.5,
        **_style.margins(figure, left=0.75, right=0.3, top=0.98, bottom=1.0),
    )
    live = f"live_{arrays['frozen_rate']:g}"
    above = [f"live_{lr:g}" for lr in arrays["rate"]]
    below = [name for name in ("early", "frozen", live) if f"{name}_step" in arrays]
    for row, names in enumerate((above, below)):
        for column, key in enumerate(QUANTITIES):
            axes = figure.add_subplot(grid[row, column])
            _draw_runs(axes, arrays, names, key)
            if key == "loss":
                _name_runs(axes, arrays, names)
    return figure


_TITLES = {
    "loss": ("Loss", "full batches", "P live and frozen"),
    "ratio": (
        "Ratio to the edge",
        r"largest eigenvalue of $P^{-1}H$, over $38/\eta$",
        "live and frozen at the edge both rest at it",
    ),
    "sharpness": (
        "Raw sharpness",
        "largest eigenvalue of H: it rises at the edge",
        "frozen at the edge it is blocked; live it rises",
    ),
}


def _draw_runs(axes: Axes, arrays: dict[str, np.ndarray], names: list[str], key: str) -> None:
    looks = _looks(arrays)
    for name in names:
        color, marker, _ = looks[name]
        step, values = arrays[f"{name}_step"], arrays[f"{name}_{key}"]
        for others in values[1:]:
            axes.plot(step, others, color=color, lw=0.7, alpha=0.45)
        axes.plot(step, values[0], color=color, lw=0.7, alpha=0.7)
        shown = slice(None, None, max(1, int(step[-1] // (40 * (step[1] - step[0])))))
        axes.plot(step[shown], values[0][shown], **_style.points(color, marker=marker, size=2.8))
    title, several, compared = _TITLES[key]
    is_comparison = "frozen" in names
    axes.set_title(
        f"{title}, $\\eta$ = {arrays['frozen_rate']:g}" if is_comparison else title,
        pad=_style.SUBTITLE_PAD,
    )
    _style.subtitle(axes, compared if is_comparison else several)
    last = arrays[f"{names[-1]}_step"][-1]
    axes.set_xlim(-0.02 * last, 1.02 * last)
    axes.set_xlabel("$k$   step")
    if is_comparison and key != "loss":
        stop = arrays["frozen_step"][0]
        axes.axvline(stop, color=FROZEN, lw=0.8, ls=(0, (1, 1.5)))
        axes.annotate(
            "P frozen from here",
            (stop, 0),
            xycoords=("data", "axes fraction"),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7.5,
            color=FROZEN,
        )
    if key == "loss":
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel("$L$   loss")
    elif key == "ratio":
        axes.axhline(1, color=_style.INK, lw=1.2, ls=(0, (4, 3)), zorder=3)
        axes.set_ylim(0, max(1.2, 1.05 * max(np.nanmax(arrays[f"{n}_ratio"]) for n in names)))
        axes.set_ylabel(r"$\eta\lambda_{\max}(P^{-1}H)\,/\,38$")
        _write_medians(axes, arrays, names)
    else:
        axes.set_ylim(0, None)
        axes.set_ylabel(r"$\lambda_{\max}(H)$")


def _write_medians(axes: Axes, arrays: dict[str, np.ndarray], names: list[str]) -> None:
    """The late medians, in the colours of their runs, where no run is."""
    looks = _looks(arrays)
    top = 0.58 if "early_step" in arrays else 0.04 + 0.08 * len(names)
    axes.text(
        0.98, top, "median of the second half", transform=axes.transAxes, ha="right", fontsize=7.5
    )
    for line, name in enumerate(reversed(names), start=1):
        medians = np.median(_late(arrays, name), axis=1)
        axes.text(
            0.98,
            top - 0.08 * line,
            ", ".join(f"{value:.3f}" for value in medians),
            transform=axes.transAxes,
            ha="right",
            fontsize=8,
            color=looks[name][0],
        )


def _name_runs(axes: Axes, arrays: dict[str, np.ndarray], names: list[str]) -> None:
    looks = _looks(arrays)
    handles = [
        Line2D(
            [], [], **(_style.points(looks[name][0], marker=looks[name][1]) | {"linestyle": "-"})
        )
        for name in names
    ]
    live = f"live_{arrays['frozen_rate']:g}"
    words = ["P live" if name == live and "frozen" in names else looks[name][2] for name in names]
    axes.legend(handles, words, loc="upper right")
