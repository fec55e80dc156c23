r"""The exponent of the drift-adjusted rate decides how training goes at the edge of stability.

DAL-p takes the rate :math:`h = 2 / v^p`, :math:`v = |Hg| / |g|`, anew at every step (Rosca, Wu, Qin
& Dherin 2023, arXiv 2302.01952). On a convex quadratic with curvatures from :math:`\lambda_d` to
:math:`\lambda_1 > 1`, for a generic start and below the cap (derived here):

- p < 1: the gradient turns to the sharpest direction, :math:`h \to 2/\lambda_1^p > 2/\lambda_1`, and
  the run diverges;
- p = 1: :math:`h \ge 2/\lambda_1` at every step, and :math:`h \to 2/\lambda_1`, a 2-cycle;
- larger p: :math:`h \to 2/(\lambda_1 + \lambda_d)`, the best constant rate; for still larger p that
  rate is unstable and h fluctuates: short steps, with a long one now and then.

A tanh network on handwritten digits shows the same three ways with no rate chosen: for p < 1 it
oscillates above the edge and hardly descends, or diverges; for p = 1 it stays just above
:math:`h\lambda_1 = 2` while the loss falls, without the bursts that a fixed rate has when it gets
there (``--full``); for p = 2 long and short steps alternate. No trade-off between stability and test
performance shows here: the stable exponents have the lower held-out error, and the fastest fixed
rate bursts, or diverges, without being better. With :math:`p \ne 1` all this depends on the scale of
the loss (v is above 1 here most of the time).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import eosim
from figures import _style
from figures._headline import MissingPackage, Row

# Our choice: a quadratic whose curvatures lie on both sides of 1, and a start without symmetry.
CURVATURES, START = (4.0, 1.0, 0.25), (1.0, -2.0, 3.0)
QUADRATIC_STEPS = 200
QUADRATIC_P = (0.5, 1.0, 1.25, 2.0)
# Digits: pixels / 16, centred (scikit-learn's documentation: 0 to 16); labels as unit vectors.
PIXEL_SCALE = 16.0
# Our choice: 500 digits to train on and 1297 held out, drawn with seed 0; 16 tanh units.
N_TRAINED, SPLIT_SEED, HIDDEN = 500, 0, 16
# Our choice: steps, and seeds of the initial weights (the first one is drawn as a line).
STEPS_QUICK, STEPS_FULL = 250, 2000
SEEDS_QUICK, SEEDS_FULL = (0, 1, 2), tuple(range(8))
# Our choice: exponents, and fixed rates around the largest stable one.
EXPONENTS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
RATES = (0.2, 0.5, 1.0)
# Our choice: what is followed step by step, and steps between sharpnesses (odd: runs alternate).
DRAWN_EXPONENTS, DRAWN_RATE = (0.5, 1.0, 2.0), 0.5
EVERY_QUICK, EVERY_FULL = 11, 25
# p = 1 on a quadratic has h * lambda_1 = 2 or more; where the network's gradient lies along the
# sharpest direction (cosine above this) it must come within 1 % of that.
ALIGNED, ALIGNED_SLACK = 0.95, 0.02

COLORS = {
    0.5: _style.VERMILLION,
    0.75: _style.ORANGE,
    1.0: _style.BLUE,
    1.25: "#8a4b12",  # brown
    1.5: _style.SKY,
    2.0: _style.GREEN,
    3.0: _style.PURPLE,
}
MARKERS = {0.5: "v", 0.75: "<", 1.0: "o", 1.25: ">", 1.5: "D", 2.0: "^", 3.0: "P"}


def load_problem() -> tuple[eosim.Perceptron, np.ndarray, np.ndarray]:
    """The network on the training digits, and the inputs and labels held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingPackage(
            "it needs scikit-learn for its data, which is not installed; "
            'run: pip install -e ".[figures]"'
        ) from None
    digits = load_digits()
    inputs = digits.data / PIXEL_SCALE
    inputs = inputs - inputs.mean(axis=0)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(inputs))
    trained, held_out = order[:N_TRAINED], order[N_TRAINED:]
    targets = np.eye(10)[digits.target[trained]]
    problem = eosim.Perceptron(inputs[trained], targets, hidden=(HIDDEN,))
    return problem, inputs[held_out], digits.target[held_out]


def rate(problem: Any, theta: np.ndarray, *, state: Any) -> float:
    """A measurement: the rate of the step that led here (DAL keeps it in its state)."""
    return float(state[1])


def compute(quick: bool) -> dict[str, np.ndarray]:
    """DAL on the quadratic; DAL and fixed rates on digits."""
    arrays: dict[str, np.ndarray] = {}
    bowl = eosim.Quadratic(np.diag(CURVATURES))
    for p in QUADRATIC_P:
        path = eosim.run(bowl, eosim.DAL(p=p), START, QUADRATIC_STEPS, record={"rate": rate})
        arrays[f"quadratic_{p:g}"] = path["rate"][1:]

    problem, inputs, labels = load_problem()
    n_steps, every = (STEPS_QUICK, EVERY_QUICK) if quick else (STEPS_FULL, EVERY_FULL)
    seeds = SEEDS_QUICK if quick else SEEDS_FULL
    rules: dict[str, Any] = {f"dal_{p:g}": eosim.DAL(p=p) for p in EXPONENTS}
    rules |= {f"fixed_{h:g}": eosim.GradientDescent(h) for h in RATES}
    followed = [f"dal_{p:g}" for p in DRAWN_EXPONENTS] + [f"fixed_{DRAWN_RATE:g}"]
    arrays["n_steps"] = np.array(n_steps)
    for name, rule in rules.items():
        record: dict[str, Any] = {"loss": eosim.measure.loss}
        if name.startswith("dal"):
            record["rate"] = rate
        rises, errors, losses, ends = [], [], [], []
        for seed in seeds:
            path = eosim.run(problem, rule, problem.initial(seed), n_steps, record=record)
            diverged = path.status is eosim.Status.DIVERGED
            loss, states = path["loss"], path["theta"]
            # Largest rise above the lowest loss so far: 1 for a run that never rises.
            lowest = np.minimum.accumulate(loss)
            rises.append(np.inf if diverged else (loss[1:] / lowest[:-1]).max())
            # Median over the last tenth: an oscillating run has no last value.
            last = range(len(states) - 1, len(states) - 1 - n_steps // 10, -5)
            shares = [_wrong(problem, states[k], inputs, labels) for k in last if k >= 0]
            errors.append(np.median(shares))
            losses.append(np.inf if diverged else np.median(loss[-n_steps // 10 :]))
            ends.append(path.status.name)
            if seed == seeds[0] and name in followed:
                arrays |= _follow(name, path, rule, problem, inputs, labels, every)
        arrays[f"{name}_rise"] = np.array(rises)
        arrays[f"{name}_error"] = np.array(errors)
        arrays[f"{name}_last_loss"] = np.array(losses)
        arrays[f"{name}_status"] = np.array(ends)
    return arrays


def _follow(
    name: str,
    path: eosim.Trajectory,
    rule: Any,
    problem: eosim.Perceptron,
    inputs: np.ndarray,
    labels: np.ndarray,
    every: int,
) -> dict[str, np.ndarray]:
    """h * lambda_1, alignment and held-out error of one run, every so many steps."""
    states = path["theta"]
    at = np.arange(0, len(states) - 1, every)
    rates = path["rate"][1:][at] if name.startswith("dal") else np.full(len(at), rule.lr)
    sharpness = np.array([eosim.measure.sharpness(problem, states[k]).value for k in at])
    cosines = []
    for k, top in zip(at, sharpness, strict=True):
        g = problem.gradient(states[k])
        # g.Hg / (lambda_1 |g|^2) is 1 exactly where g is the sharpest direction
        cosines.append(g @ problem.hvp(states[k], g) / (top * (g @ g)))
    return {
        f"{name}_loss": path["loss"],
        f"{name}_at": at,
        f"{name}_z": rates * sharpness,
        f"{name}_rates": path["rate"][1:] if name.startswith("dal") else np.full(1, rule.lr),
        f"{name}_aligned": np.array(cosines),
        f"{name}_errors": np.array([_wrong(problem, states[k], inputs, labels) for k in at]),
    }


def _wrong(problem: eosim.Perceptron, theta: np.ndarray, inputs: Any, labels: Any) -> float:
    """Share of held-out digits that are classified wrongly."""
    return float((problem.outputs(theta, inputs).argmax(axis=1) != labels).mean())


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """The cases on the quadratic, the edge on digits, and the orderings."""
    top, flat = CURVATURES[0], CURVATURES[-1]
    one, best, below = (arrays[f"quadratic_{p:g}"] for p in (1.0, 1.25, 0.5))
    z = arrays["dal_1_z"][arrays["dal_1_aligned"] > ALIGNED]
    loss = {p: float(np.median(arrays[f"dal_{p:g}_last_loss"])) for p in EXPONENTS}
    error = {p: float(np.median(arrays[f"dal_{p:g}_error"])) for p in EXPONENTS}
    fell = arrays["dal_1_loss"][0] / arrays["dal_1_last_loss"][0]
    swing = float(arrays["dal_2_rates"].max() / arrays["dal_2_rates"].min())
    return [
        Row("quadratic, p = 1: least h * lambda_1", 2.0, 1e-9, float(one.min() * top), "at least"),
        Row("quadratic, p = 1: h * lambda_1 at the end", 2.0, 1e-6, float(one[-1] * top)),
        Row("quadratic, p = 1.25: h at the end", 2 / (top + flat), 1e-8, float(best[-1])),
        Row("quadratic, p = 0.5: h at the end", 2 / np.sqrt(top), 1e-6, float(below[-1])),
        Row(
            "digits, p = 1: least h * lambda_1, aligned", 2.0, ALIGNED_SLACK, _least(z), "at least"
        ),
        Row("digits, p = 1: its median", 2.0, 0.1, float(np.median(z))),
        Row("digits, p = 1: loss, first / last", 5.0, 0.0, float(fell), "at least"),
        Row("digits, p = 1: largest rise of the loss", 1.1, 0.0, _most(arrays, 1.0), "at most"),
        Row("digits, p = 0.5: largest rise of the loss", 1.2, 0.0, _most(arrays, 0.5), "at least"),
        Row("digits: last loss, p = 0.5 / p = 1", 1.5, 0.0, loss[0.5] / loss[1.0], "at least"),
        Row("digits: last loss, p = 2 / p = 1", 0.9, 0.0, loss[2.0] / loss[1.0], "at most"),
        Row(
            "digits: held-out error, p = 0.5 / p = 1", 1.5, 0.0, error[0.5] / error[1.0], "at least"
        ),
        Row("digits: held-out error, p = 2 / p = 1", 1.0, 0.0, error[2.0] / error[1.0], "at most"),
        Row(
            "digits, p = 2: longest / shortest step",
            5.0,
            0.0,
            swing,
            "at least",
        ),
    ]


def _least(values: np.ndarray) -> float:
    return float(values.min()) if len(values) else float("nan")


def _most(arrays: dict[str, np.ndarray], p: float) -> float:
    return float(arrays[f"dal_{p:g}_rise"].max())


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Rates on the quadratic; loss, sharpness and held-out error on digits; and the summary."""
    n_steps, n_seeds = int(arrays["n_steps"]), len(arrays["dal_1_rise"])
    figure = _style.canvas(
        11.0,
        7.6,
        "Without any tuning the drift-adjusted rate (DAL) finds the edge of stability; its exponent "
        "decides what happens there",
        "DAL-$p$ takes the rate $h = 2/v^p$, $v = |Hg|/|g|$, anew at every step ($g$ gradient, $H$ "
        "Hessian); the edge of stability is $h\\lambda_1 = 2$.\n"
        f"Digits: tanh network 64-{HIDDEN}-10, square loss, {N_TRAINED} of scikit-learn's digits "
        f"to train on, 1297 held out; {n_steps} steps from {n_seeds} random starts (own settings). "
        "Curves: the first start.",
    )
    grid = figure.add_gridspec(
        2,
        1,
        hspace=0.52,
        **_style.margins(figure, left=0.78, right=0.3, top=1.0, bottom=1.06),
    )
    upper = grid[0].subgridspec(1, 3, wspace=0.32)
    lower = grid[1].subgridspec(1, 2, wspace=0.25)
    _draw_quadratic(figure.add_subplot(upper[0]), arrays)
    _draw_loss(figure.add_subplot(upper[1]), arrays)
    _draw_sharpness(figure.add_subplot(upper[2]), arrays)
    _draw_errors(figure.add_subplot(lower[0]), arrays)
    inner = lower[1].subgridspec(2, 1, height_ratios=(1, 1.6), hspace=0.14)
    _draw_summary(figure.add_subplot(inner[0]), figure.add_subplot(inner[1]), arrays)
    return figure


def _draw_quadratic(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    top, flat = CURVATURES[0], CURVATURES[-1]
    axes.set_title("Quadratic: the rates of DAL-$p$", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes, "curvatures 4, 1, 1/4; dashed: $2/\\lambda_1^p$, and $2/(\\lambda_1+\\lambda_d)$"
    )
    for level, p in ((2 / top**0.5, 0.5), (2 / top, 1.0), (2 / (top + flat), 1.25)):
        axes.axhline(level, color=COLORS[p], lw=0.9, ls=(0, (5, 2)))
    for p in QUADRATIC_P:
        rates = arrays[f"quadratic_{p:g}"][:60]
        look = _style.points(COLORS[p], marker=MARKERS[p], size=3)
        axes.plot(range(len(rates)), rates, label=f"$p = {p:g}$", **look)
    axes.legend(
        loc="upper left", ncols=4, fontsize=7, handletextpad=0.1, columnspacing=0.8, borderpad=0.1
    )
    axes.set_yscale("log")
    axes.set_ylim(0.1, 11)
    axes.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("$k$   step")
    axes.set_ylabel("$h$   rate")


def _names(p: float | None) -> tuple[str, str, str, str]:
    """Key, label, colour and marker of a drawn run; None is the fixed rate."""
    if p is None:
        return f"fixed_{DRAWN_RATE:g}", f"fixed rate {DRAWN_RATE:g}", _style.QUIET, "s"
    return f"dal_{p:g}", f"$p = {p:g}$", COLORS[p], MARKERS[p]


_DRAWN: tuple[float | None, ...] = (*DRAWN_EXPONENTS, None)


def _draw_loss(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("Digits: loss", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "of the training digits")
    for p in _DRAWN:
        name, label, color, _ = _names(p)
        axes.plot(arrays[f"{name}_loss"], color=color, lw=1.0, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.5, 1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("$k$   step")
    axes.set_ylabel("$E$")
    axes.legend(loc="upper right", labelspacing=0.3, ncols=2, fontsize=7.5)


def _draw_sharpness(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("Digits: sharpness", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, f"times the rate of the step; grey: fixed rate {DRAWN_RATE:g}")
    axes.axhline(2, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    for p in _DRAWN:
        name, _, color, marker = _names(p)
        axes.plot(
            arrays[f"{name}_at"],
            arrays[f"{name}_z"],
            **_style.points(color, marker=marker, size=3.6),
        )
    axes.set_yscale("log")
    axes.set_ylim(0.3, 60)
    axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("$k$   step")
    axes.set_ylabel(r"$h\lambda_1$")


def _draw_errors(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("Digits: error on held-out digits", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "share classified wrongly")
    for p in _DRAWN:
        name, _, color, marker = _names(p)
        at, errors = arrays[f"{name}_at"], arrays[f"{name}_errors"]
        axes.plot(at, errors, color=color, lw=0.6, alpha=0.6)
        axes.plot(at, errors, **_style.points(color, marker=marker, size=3.6))
    _error_axis(axes)
    axes.set_xlabel("$k$   step")


def _error_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_ylim(0.03, 1.2)
    axes.yaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.5, 1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("held-out error")


def _draw_summary(above: Axes, below: Axes, arrays: dict[str, np.ndarray]) -> None:
    above.set_title("Stability, and test performance at the end", pad=_style.SUBTITLE_PAD)
    _style.subtitle(above, "every random start; open points diverge")
    looks = [(f"dal_{p:g}", f"{p:g}", COLORS[p], MARKERS[p]) for p in EXPONENTS]
    looks += [(f"fixed_{h:g}", f"{h:g}", _style.QUIET, "s") for h in RATES]
    places = [*range(len(EXPONENTS)), *(len(EXPONENTS) + 0.6 + np.arange(len(RATES)))]
    top = 8.0
    for place, (name, _, color, marker) in zip(places, looks, strict=True):
        rises = np.minimum(arrays[f"{name}_rise"], top)
        diverged = arrays[f"{name}_status"] == "DIVERGED"
        spread = place + np.linspace(-0.22, 0.22, len(rises))
        for axes, values in ((above, rises), (below, arrays[f"{name}_error"])):
            for grown in (False, True):
                chosen = diverged == grown
                look = _style.points(color, marker=marker, size=4, filled=not grown)
                axes.plot(spread[chosen], values[chosen], **look, clip_on=False)
    for axes in (above, below):
        axes.set_xlim(-0.6, places[-1] + 0.6)
        axes.grid(visible=False, axis="x")
        axes.axvline((places[len(EXPONENTS) - 1] + places[len(EXPONENTS)]) / 2, color=_style.FAINT)
        axes.xaxis.set_major_locator(FixedLocator(places))
    above.tick_params(labelbottom=False)
    below.set_xticklabels([label for _, label, _, _ in looks])
    above.set_yscale("log")
    above.set_ylim(0.93, 1.5 * top)
    above.yaxis.set_major_locator(FixedLocator([1, 2, 4, top]))
    above.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "diverged" if value == top else f"{value:g}×")
    )
    above.yaxis.set_minor_locator(NullLocator())
    above.set_ylabel("largest rise\nof the loss")
    _error_axis(below)
    middle = (places[0] + places[len(EXPONENTS) - 1]) / 2
    for x, text in ((middle, "$p$   exponent of DAL"), (places[-2], "fixed rate")):
        below.annotate(
            text,
            (x, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -19),
            textcoords="offset points",
            ha="center",
            va="top",
        )
