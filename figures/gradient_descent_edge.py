r"""Gradient descent on real data loses stability exactly at the learning rate 2 / sharpness.

Handwritten digits as least squares: inputs are pixels, the target is the label. The Hessian is the
covariance matrix of the pixels, so the critical rate is known: 2 / (largest eigenvalue).

Which quantity shows the edge. The loss itself does not go to 0 (labels are no linear function of
pixels), and its excess over the optimum keeps falling for ever along directions of small curvature,
also when another direction has begun to grow. The second difference of the path,
:math:`\theta_{k+1} - 2\theta_k + \theta_{k-1}`, weighs a direction of curvature :math:`\lambda` by
:math:`(\eta\lambda)^2`: slow directions all but drop out, and what flips sign at every step stands
out. A run *grows* if that oscillation is larger at its end than half-way.

How well this resolves the edge. What is left of the other directions in the second difference
decays, which makes a run look more stable than it is: the measured edge lies above the true one by

.. math:: \frac{\sum_{i>1} w_i\,(\rho_i^{N} - \rho_i^{2N})}{2 N w_1}, \qquad
          w_i = (\lambda_i / \lambda_1)^4\, c_i^2,\quad \rho_i = 1 - 2\lambda_i / \lambda_1

relatively, for runs of N steps that start at a distance c_i from the optimum along eigenvector i
(first order in the offset; derived here). Once the other oscillating directions have died out it
falls at least like N^-5, because a slow direction with any :math:`\lambda` has
:math:`\lambda^4 \rho^N` below a multiple of N^-4: the number of steps, not the bisection, sets the
resolution.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import eosim
from figures import _style
from figures._headline import MissingPackage, Row

# Pixels of scikit-learn's digits run from 0 to 16 (its documentation).
PIXEL_SCALE = 16.0
# Our choice: near enough to the edge to be a sharp test, far enough to be seen within 400 steps.
RATIOS = (0.99, 1.01)
N_STEPS = 400
# Our choice: lengths (even) of the runs that bisection decides by.
RUN_LENGTHS_QUICK = (30, 50, 70, 100, 140, 200, 280, 400)
RUN_LENGTHS_FULL = (20, 30, 40, 50, 60, 70, 84, 100, 120, 140, 168, 200, 240, 280, 340, 400, 560)
# Our choice: the first rate tried; it is doubled until a run grows, then bisection starts.
FIRST_LR = 1.0
# Our choice: bisection ends at a bracket of this relative width, just above rounding.
BRACKET = 1e-14
# The measured edge at 400 steps must lie within this of the predicted one, relatively. The formula
# above gives an offset of 2e-12 there and bisection adds 1e-14; the rest is room for another BLAS.
EDGE_TOLERANCE = 1e-10
# The growth per step is measured over the last 200 of 400 steps; at 0.99x the other directions make
# up less than 1e-3 of the squared oscillation at the end, which shifts the factor by at most 3e-6.
GROWTH_TOLERANCE = 1e-5
# Our choice: rates and length of the sweep of growth factors. Short runs: at 0.98x the oscillation
# must still stand above the slow directions at the end.
SWEEP_RATIOS = np.array([*np.arange(-8, 0), *np.arange(1, 9)]) * 0.0025 + 1
SWEEP_STEPS = 100


def load_problem() -> eosim.LinearRegression:
    """Digits: pixels / 16 and labels, both centred; n = 1797, 64 parameters."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingPackage(
            "it needs scikit-learn for its data, which is not installed; "
            'run: pip install -e ".[figures]"'
        ) from None
    digits = load_digits()
    inputs = digits.data / PIXEL_SCALE
    return eosim.LinearRegression(
        inputs - inputs.mean(axis=0), digits.target - digits.target.mean()
    )


def measure_growth(problem: eosim.LinearRegression, lr: float, n_steps: int) -> float:
    """Factor per step by which the oscillation of a run grows over its second half."""
    rule = eosim.GradientDescent(lr=lr)
    path = eosim.run(problem, rule, np.zeros(problem.dim), n_steps, record={})
    if path.status is eosim.Status.DIVERGED:
        return math.inf
    oscillation = np.linalg.norm(np.diff(path["theta"], n=2, axis=0), axis=1)  # (n_steps - 1,)
    half = len(oscillation) // 2
    return float((oscillation[-1] / oscillation[half]) ** (1 / (len(oscillation) - 1 - half)))


def measure_edge(problem: eosim.LinearRegression, n_steps: int) -> float:
    """The rate at which runs begin to grow, by bisection; no eigenvalue is used."""
    low, high = 0.0, FIRST_LR
    while measure_growth(problem, high, n_steps) <= 1:
        low, high = high, 2 * high
    while high - low > BRACKET * high:
        middle = (low + high) / 2
        if measure_growth(problem, middle, n_steps) > 1:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Simulated runs and edges, and what the spectrum says about them."""
    problem = load_problem()
    start = np.zeros(problem.dim)
    inputs, targets = problem.inputs, problem.targets[:, 0]
    optimum = np.linalg.lstsq(inputs, targets)[0]
    curvatures, vectors = np.linalg.eigh(problem.hessian(start))
    distances = vectors.T @ (start - optimum)  # (dim,)

    # At fixed curvature, critical_sharpness is proportional to 1 / lr.
    sharpness = eosim.measure.sharpness(problem, start).value
    predicted_edge = eosim.GradientDescent(lr=1.0).critical_sharpness() / sharpness

    steps = np.arange(N_STEPS + 1)
    excess, excess_theory, growth = [], [], []
    for ratio in RATIOS:
        rule = eosim.GradientDescent(lr=ratio * predicted_edge)
        loss = eosim.run(problem, rule, start, N_STEPS)["loss"]
        excess.append(loss - problem.loss(optimum))
        factors = np.power.outer((1 - rule.lr * curvatures) ** 2, steps)  # (dim, n_steps + 1)
        excess_theory.append(curvatures * distances**2 / 2 @ factors)
        growth.append(measure_growth(problem, rule.lr, N_STEPS))

    lengths = np.array(RUN_LENGTHS_QUICK if quick else RUN_LENGTHS_FULL)
    theory_lengths = np.geomspace(lengths[0], lengths[-1], 100)
    return {
        "sharpness": np.array(sharpness),
        "predicted_edge": np.array(predicted_edge),
        "ratio": np.array(RATIOS),
        "step": steps,
        "excess_loss": np.array(excess),
        "excess_loss_theory": np.array(excess_theory),
        "growth": np.array(growth),
        "sweep_ratio": SWEEP_RATIOS,
        "sweep_growth": np.array(
            [measure_growth(problem, ratio * predicted_edge, SWEEP_STEPS) for ratio in SWEEP_RATIOS]
        ),
        "run_length": lengths,
        "edge": np.array([measure_edge(problem, int(length)) for length in lengths]),
        "theory_length": theory_lengths,
        "theory_offset": _edge_offset(curvatures, distances, theory_lengths),
    }


def _edge_offset(curvatures: Any, distances: Any, lengths: Any) -> Any:
    """How far above the true edge runs of each length begin to grow, relatively; (n_lengths,)."""
    relative = curvatures / curvatures[-1]
    weights = relative**4 * distances**2
    squares = (1 - 2 * relative[:-1]) ** 2  # squared factors per step of all but the sharpest
    half, last = lengths / 2 - 1, lengths - 2  # the second differences that are compared
    change = np.power.outer(squares, half) - np.power.outer(squares, last)
    return weights[:-1] @ change / (4 * (last - half) * weights[-1])


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """The two edges agree, and runs 1 % to each side of them decay and grow."""
    last = int(np.flatnonzero(arrays["run_length"] == N_STEPS)[0])
    difference = abs(arrays["edge"][last] / arrays["predicted_edge"] - 1)
    rows = [
        Row("|measured / predicted edge - 1|", EDGE_TOLERANCE, 0.0, float(difference), "at most")
    ]
    for ratio, growth in zip(arrays["ratio"], arrays["growth"], strict=True):
        expected = abs(1 - 2 * ratio)
        rows.append(
            Row(f"growth per step at {ratio:g}x", expected, GROWTH_TOLERANCE, float(growth))
        )
    for ratio, excess in zip(arrays["ratio"], arrays["excess_loss"], strict=True):
        quantity, factor = (
            f"excess loss, last / first, at {ratio:g}x",
            float(excess[-1] / excess[0]),
        )
        rows.append(Row(quantity, 1.0, 0.0, factor, "at most" if ratio < 1 else "at least"))
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Three panels: the loss on both sides, the growth across the edge, and its resolution."""
    edge, sharpness = float(arrays["predicted_edge"]), float(arrays["sharpness"])
    figure = _style.canvas(
        11.0,
        4.1,
        "Gradient descent on handwritten digits loses stability at the rate 2 / sharpness",
        "scikit-learn's digits as least squares: 1797 samples, 64 pixels / 16, label as target, "
        f"all centred; sharpness {sharpness:.4f}, critical rate {edge:.4f}. "
        "Lines: theory; points: simulation (filled decays, open grows).",
    )
    grid = figure.add_gridspec(
        1, 3, wspace=0.36, **_style.margins(figure, left=0.78, right=0.25, top=0.84, bottom=0.92)
    )
    _draw_losses(figure.add_subplot(grid[0]), arrays)
    _draw_growth(figure.add_subplot(grid[1]), arrays)
    _draw_edges(figure.add_subplot(grid[2]), arrays)
    return figure


def _draw_losses(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    color, step, shown = _style.GRADIENT_DESCENT, arrays["step"], slice(None, None, 16)
    for index, ratio in enumerate(arrays["ratio"]):
        axes.plot(step, arrays["excess_loss_theory"][index], color=color, lw=1.2)
        axes.plot(
            step[shown],
            arrays["excess_loss"][index][shown],
            **_style.points(color, filled=ratio < 1),
        )
    axes.set_title("Excess loss, 1 % to each side")
    axes.set_yscale("log")
    axes.set_xlim(-8, 408)
    axes.set_ylim(1e-3, 1e6)
    axes.yaxis.set_major_locator(FixedLocator([1e-2, 1, 1e2, 1e4, 1e6]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("$k$   step")
    axes.set_ylabel(r"$L(\theta_k) - \min L$   excess loss")
    for x, y, text, verdict in (
        (205, 6e3, r"$\eta = 1.01 \times 2/\lambda_{\max}$", "grows"),
        (400, 7e-2, r"$\eta = 0.99 \times 2/\lambda_{\max}$", "decays, slow directions last"),
    ):
        axes.text(x, y, text, ha="right", va="bottom", fontsize=8.5)
        below = y / 1.4 if y > 1 else 8e-3
        axes.text(x, below, verdict, ha="right", va="top", fontsize=8, color=_style.QUIET)


def _draw_growth(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    color, ratios, growth = _style.GRADIENT_DESCENT, arrays["sweep_ratio"], arrays["sweep_growth"]
    axes.axvline(1, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    axes.axhline(1, color=_style.QUIET, lw=0.7)
    ends = np.array([0.978, 1.022])
    axes.plot(ends, np.abs(1 - 2 * ends), color=color, lw=1.2)
    for grows in (False, True):
        chosen = (growth > 1) == grows
        axes.plot(ratios[chosen], growth[chosen], **_style.points(color, filled=not grows))
    axes.set_title("Growth of the oscillation")
    axes.set_xlim(*ends)
    axes.set_ylim(0.956, 1.044)
    axes.xaxis.set_major_locator(FixedLocator([0.98, 0.99, 1.0, 1.01, 1.02]))
    axes.yaxis.set_major_locator(FixedLocator([0.96, 0.98, 1.0, 1.02, 1.04]))
    axes.set_xlabel(r"$\eta\,\lambda_{\max} / 2$   rate / critical rate")
    axes.set_ylabel("factor per step of the oscillation")
    axes.text(0.9975, 1.0185, r"$|1 - \eta\lambda_{\max}|$", ha="right", fontsize=9, color=color)
    axes.text(1.001, 0.959, "predicted edge", fontsize=8, color=_style.QUIET)


def _draw_edges(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    color, lengths = _style.GRADIENT_DESCENT, arrays["run_length"]
    differences = np.abs(arrays["edge"] / arrays["predicted_edge"] - 1)
    axes.plot(arrays["theory_length"], arrays["theory_offset"], color=color, lw=1.2)
    axes.plot(lengths, differences, **_style.points(color, marker="D", size=4.2))
    axes.set_title("Edge measured by bisection")
    axes.set_xscale("log")
    axes.set_yscale("log")
    right = 1.1 * lengths[-1]
    axes.set_xlim(0.9 * lengths[0], right)
    axes.set_ylim(2e-13 if lengths[-1] <= N_STEPS else None, 5e-3)
    axes.xaxis.set_major_locator(FixedLocator([25, 50, 100, 200, 400]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(FixedLocator([1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("$N$   steps of each run")
    axes.set_ylabel("|measured / predicted edge − 1|")
    name = f"largest error accepted\nat $N = {N_STEPS}$"
    _style.bound(axes, EDGE_TOLERANCE, lengths[0], name, below=True)
    axes.text(
        0.97,
        0.95,
        "longer runs resolve it better\n(line: predicted offset)",
        ha="right",
        va="top",
        fontsize=8,
        color=_style.QUIET,
        transform=axes.transAxes,
        linespacing=1.5,
    )
