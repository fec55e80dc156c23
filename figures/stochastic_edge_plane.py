r"""SGD's mean loss turns at the exact threshold, single runs beyond it: a sweep over rate, batch and seed.

Least squares with labels that can be met: where a run of SGD decays, its loss tends to 0. One `eosim.sweep`
computes the plane; each of its points runs one seed's starts and batches. Three edges lie on top, none of
them fitted:

- mean square: :math:`\mathrm{E}L` decays up to `eosim.stability.critical_lr`, where the exact noise kernel
  norm is 1 (the stochastic edge of Agarwala & Pennington 2024, arXiv 2404.19261), and on both sides follows
  `eosim.moments.Covariance` and, late, `eosim.stability.growth_rate`;
- typical: almost every run decays up to the rate at which the Lyapunov exponent
  :math:`\mathrm{E}\log|\theta'|^2/|\theta|^2` of the normalised products

  .. math:: \theta' = \Big(1 - \frac{\eta}{B}\sum_{i\in S} x_i x_i^\top\Big)\theta

  is 0. It is never below the first edge, since :math:`\mathrm{E}\log L \le \log\mathrm{E}L`. Its value
  comes from random products, by other code than SGD's and from other batches;
- full batch: :math:`2/\lambda_{\max}`.

Whether a single run grows is decided by the second edge alone: it is where half of the runs grow. Between
the first and the second one the mean loss grows by ever rarer runs, and most runs decay. The second edge
may lie beyond the third one: the logarithm of :math:`|1 - \eta\lambda|` is concave beyond its pole, so that
a curvature that varies from batch to batch brings down a typical run at a rate at which gradient descent,
and with it the mean of SGD's theta, diverges. At B = n all three are one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.special import ndtr

import eosim
from eosim import run_ensemble
from eosim.moments import Covariance
from eosim.stability import TangentKernel, critical_lr, growth_rate
from figures import _sgd, _style
from figures._headline import MissingPackage, Row

# Our choice: so few dimensions that single runs differ visibly from their mean. Standard normal inputs,
# scaled to a largest eigenvalue of 2: the full-batch edge is at 1.
SAMPLES, DIM, MODEL_SEED = 100, 10, 0
# Our choice: the grid of the sweep, in steps of the rate of 12 % (6 % with --full), the full-batch edge in
# the middle of one.
BATCHES_QUICK = (1, 2, 4, 8, 16, 32, 64, 100)
BATCHES_FULL = (1, 2, 3, 4, 6, 8, 11, 16, 20, 25, 32, 40, 50, 64, 80, 100)
RATES_QUICK = 2 ** ((np.arange(22) - 18.5) / 6)
RATES_FULL = 2 ** ((np.arange(44) - 37.5) / 12)
SEEDS_QUICK, SEEDS_FULL = 3, 8
# Our choice: a seed draws so many starts, and batches for each. Runs are judged by the second half of their
# steps, over which the scatter of log L blurs the edge by 7 % (B = 1) to 1 % (B = 64) of the rate.
RUNS, STEPS = 16, 400
ROUNDING = 1e-25
# Products for the typical edge: rates over the mean-square threshold, runs, and steps after the first ones,
# in which directions settle. The standard error of the edge is at most 0.5 % (0.15 % with --full).
MULTIPLES = np.linspace(0.9, 1.5, 13)
PRODUCTS, SETTLING = 64, 50
LENGTH_QUICK, LENGTH_FULL = 500, 6000
PRODUCT_SEED = 1
# The mean loss is measured over so few steps that the runs that make it up are among those drawn: fewer
# where typical rates are further below. Starts have the second moment that the threshold leaves as it is.
MEAN_STEPS = {1: 8, 2: 8, 4: 4, 8: 3, 16: 2, 32: 2, 64: 4}
MEAN_MULTIPLES = np.array([0.9, 0.95, 1.0, 1.05, 1.1])
MEAN_RUNS_QUICK, MEAN_RUNS_FULL = 4000, 40_000
MEAN_SEED = 2
POWER_STEPS = 150
# Our choice: a batch size whose typical edge lies beyond the full-batch one.
SHOWN = 16
# 35 means, of which one is beyond 4.5 standard errors once in 4000.
STANDARD_ERRORS = 4.5

# Our choice: what few runs, and a visible distance, are.
FEW = 0.02

TYPICAL = _style.VERMILLION
EXACT_LINE: dict[str, Any] = {"color": _style.INK, "lw": 1.9}
TYPICAL_LINE: dict[str, Any] = {"color": TYPICAL, "lw": 1.7, "ls": (0, (5, 1.5))}
# Batch sizes whose shares are shown.
COLORS = {
    1: (_style.BLUE, "o"),
    4: (_style.ORANGE, "s"),
    16: (_style.GREEN, "D"),
    64: (_style.PURPLE, "^"),
}
EDGE = {"color": _style.QUIET, "lw": 1.1, "ls": (0, (4, 3))}


@cache
def model() -> tuple[eosim.LinearRegression, TangentKernel]:
    """The least-squares problem, minimised by theta = 0, and its NTK."""
    inputs = np.random.default_rng(MODEL_SEED).standard_normal((SAMPLES, DIM))
    inputs *= np.sqrt(2 * SAMPLES) / np.linalg.norm(inputs, 2)
    return eosim.LinearRegression(inputs, np.zeros(SAMPLES)), TangentKernel.from_jacobian(inputs)


def late_growth(lr: float, batch_size: int, seed: int) -> np.ndarray:
    """Log factor per step of the loss of this seed's runs, over the second half; inf if diverged.

    A loss of full batches that falls to the rounding of its start does so in the first half.
    """
    problem, _ = model()
    starts = np.random.default_rng(seed).standard_normal((RUNS, DIM))
    ensemble = run_ensemble(
        problem,
        eosim.GradientDescent(lr),
        starts,
        STEPS,
        batch_sizes=batch_size,
        n_replicas=RUNS,
        seed=seed,
        every=STEPS // 2,
        threads=1,
    )
    start, half, end = ensemble["loss"][0, 0].T
    with np.errstate(invalid="ignore"):  # inf / inf
        factor = end / half
    if batch_size == SAMPLES:  # moved in the modes of all residuals, whose rounding does not decay
        factor = np.where(end < ROUNDING * start, half / start, factor)
    return np.where(ensemble.diverged[0, 0], np.inf, np.log(factor) / (STEPS // 2))


def typical_rates(
    inputs: np.ndarray,
    rates: np.ndarray,
    batch_size: int,
    n_runs: int,
    n_steps: int,
    seed: list[int],
) -> np.ndarray:
    """Mean of log(|theta'|^2/|theta|^2) along normalised products; (run, rate)."""
    rng = np.random.default_rng(seed)
    n, d = inputs.shape
    theta = np.repeat(rng.standard_normal((n_runs, d, 1)), len(rates), axis=2)
    total = np.zeros((n_runs, len(rates)))
    for step in range(SETTLING + n_steps):
        chosen = np.argpartition(rng.random((n_runs, n)), batch_size - 1, axis=1)[:, :batch_size]
        rows = inputs[chosen]
        theta -= rates * (rows.transpose(0, 2, 1) @ rows @ theta) / batch_size
        squares = (theta**2).sum(axis=1)
        theta /= np.sqrt(squares)[:, None]
        if step >= SETTLING:
            total += np.log(squares)
    return total / n_steps


def typical_edge(ratio: np.ndarray, runs: np.ndarray) -> tuple[float, float]:
    """Where the mean over the runs turns positive, in units of ``ratio``, and its standard error."""
    mean = runs.mean(axis=0)
    above = int(np.flatnonzero(mean > 0)[0])
    slope = (mean[above] - mean[above - 1]) / (ratio[above] - ratio[above - 1])
    error = runs[:, above].std(ddof=1) / np.sqrt(len(runs))
    return float(ratio[above] - mean[above] / slope), float(error / slope)


def growing_moment(lr: float, batch_size: int) -> np.ndarray:
    """The second moment of theta that grows by `growth_rate` at every step, of trace 1."""
    problem, kernel = model()
    average = Covariance(kernel, lr, batch_size)
    moments = average.start(kernel.matrix)
    for _ in range(POWER_STEPS):
        moments = average.step(moments)
        moments = moments._replace(residual=moments.residual / np.trace(moments.residual))
    inverse = np.linalg.pinv(problem.inputs)
    second = inverse @ moments.residual @ inverse.T
    return second / np.trace(second)


def _means(batch_size: int, threshold: float, n_runs: int) -> dict[str, np.ndarray]:
    """Mean loss of sampled runs over its start, its standard error, and the same exactly; (multiple,)."""
    problem, kernel = model()
    n_steps = MEAN_STEPS[batch_size]
    rates = [float(multiple * threshold) for multiple in MEAN_MULTIPLES]
    values, vectors = np.linalg.eigh(growing_moment(threshold, batch_size))
    root = vectors * np.sqrt(np.maximum(values, 0))
    normal = np.random.default_rng([MEAN_SEED, batch_size]).standard_normal((n_runs, DIM))
    ensemble = run_ensemble(
        problem,
        [eosim.GradientDescent(lr) for lr in rates],
        normal @ root.T,
        n_steps,
        batch_sizes=batch_size,
        n_replicas=n_runs,
        seed=MEAN_SEED,
        every=n_steps,
        threads=1,
    )
    start = (problem.inputs @ root) @ (problem.inputs @ root).T
    exact = [
        eosim.predict(Covariance(kernel, lr, batch_size), start, n_steps)["loss"] for lr in rates
    ]
    losses = ensemble["loss"][:, 0, :, -1] / exact[0][0]
    return {
        "mean": losses.mean(axis=1),
        "error": losses.std(axis=1, ddof=1) / np.sqrt(n_runs),
        "exact": np.array([course[-1] / course[0] for course in exact]),
    }


def compute(quick: bool) -> dict[str, np.ndarray]:
    """The sweep, the edges over the batch size, and mean losses beside the first of them."""
    try:
        import xarray  # noqa: F401
    except ImportError:
        raise MissingPackage(
            'it shows a sweep, which needs xarray: pip install -e ".[figures]"'
        ) from None
    batches = BATCHES_QUICK if quick else BATCHES_FULL
    grid = {
        "lr": RATES_QUICK if quick else RATES_FULL,
        "batch_size": batches,
        "seed": range(SEEDS_QUICK if quick else SEEDS_FULL),
    }
    found = eosim.sweep(late_growth, grid, progress=False)
    failed = found.reason.values[found.status.values != "done"]
    if failed.size:
        raise RuntimeError(f"{failed.size} points of the sweep failed, the first by {failed[0]}")
    problem, kernel = model()
    every = np.arange(1, SAMPLES + 1)
    exact = np.array([critical_lr(kernel, int(size)) for size in every])
    sizes = np.array(BATCHES_FULL)
    thresholds = exact[sizes - 1]
    length = LENGTH_QUICK if quick else LENGTH_FULL
    products = [
        typical_rates(
            problem.inputs, MULTIPLES * lr, int(size), PRODUCTS, length, [PRODUCT_SEED, int(size)]
        )
        for size, lr in zip(sizes, thresholds, strict=True)
    ]
    edges, errors = np.array([typical_edge(MULTIPLES, runs) for runs in products]).T
    arrays = {
        "rate": found.lr.values,
        "batch": found.batch_size.values,
        "growth": found.value.values,  # (rate, batch, seed, run)
        "every": every,
        "exact": exact,
        "size": sizes,
        "mean_square": thresholds,
        "typical": edges * thresholds,
        "typical_error": errors * thresholds,
        "edge": np.array(2 / kernel.largest),
        "product_rate": np.array([runs.mean(axis=0) for runs in products]),  # (size, multiple)
        "product_spread": np.array([runs.std(axis=0, ddof=1) for runs in products])
        * np.sqrt(length),
    }
    line = np.linspace(MULTIPLES[0], MULTIPLES[-1], 31)
    lr = thresholds[sizes == SHOWN][0]
    arrays["line"] = line
    arrays["mean_square_rate"] = np.log([growth_rate(kernel, m * lr, SHOWN) for m in line])
    n_runs = MEAN_RUNS_QUICK if quick else MEAN_RUNS_FULL
    means = [_means(size, float(thresholds[sizes == size][0]), n_runs) for size in MEAN_STEPS]
    for name in means[0]:
        arrays[f"mean_{name}"] = np.array([found[name] for found in means])  # (size, multiple)
    arrays["mean_runs"] = np.array(n_runs)
    return arrays


def _share(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Share of the runs of each cell whose loss grows; (rate, batch)."""
    return (arrays["growth"] > 0).mean(axis=(2, 3))


def _of_batches(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A line over the batch size, at those of the sweep."""
    return arrays[name][np.searchsorted(arrays["size"], arrays["batch"])]


def _crossing(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The rate at which half of the runs grow, by the sum of shares (Spearman and Kaerber); (batch,)."""
    logs = np.log(arrays["rate"])
    step = logs[1] - logs[0]
    return np.exp(logs[-1] + step / 2 - step * _share(arrays).sum(axis=0))


def _expected_share(arrays: dict[str, np.ndarray], row: int, multiple: np.ndarray) -> np.ndarray:
    """Share of growing runs if their log factors are normal, with the products' mean and variance."""
    rate = np.interp(multiple, MULTIPLES, arrays["product_rate"][row])
    spread = np.interp(multiple, MULTIPLES, arrays["product_spread"][row])
    return ndtr(rate / spread * np.sqrt(STEPS // 2))


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """The mean follows the exact moments; runs turn at the typical edge, beyond the exact one."""
    share, rate = _share(arrays), arrays["rate"][:, None]
    per_cell = arrays["growth"][0, 0].size
    grid_step = float(np.log(rate[1, 0] / rate[0, 0]))
    exact, typical = (_of_batches(arrays, name) for name in ("mean_square", "typical"))
    error = _of_batches(arrays, "typical_error")
    noisy = arrays["batch"] < SAMPLES
    crossing = _crossing(arrays)
    between = (rate > exact) & (rate < typical)
    away = np.abs(arrays["mean_mean"] - arrays["mean_exact"]) / arrays["mean_error"]
    at = int(np.flatnonzero(MEAN_MULTIPLES == 1)[0])
    ratio, expected, measured = _beside(arrays)
    beyond = (typical - STANDARD_ERRORS * error) / float(arrays["edge"])
    return [
        Row(
            f"{away.size} mean losses: SE from the exact one, largest",
            STANDARD_ERRORS,
            0,
            float(away.max()),
            "at most",
        ),
        Row(
            "at the exact edge: |E L / start - 1|",
            1e-9,
            0,
            float(np.abs(arrays["mean_exact"][:, at] - 1).max()),
            "at most",
        ),
        Row(
            f"typical / exact edge, B < n, least - {STANDARD_ERRORS:g} SE",
            1,
            0,
            float(((typical - STANDARD_ERRORS * error) / exact)[noisy].min()),
            "at least",
        ),
        Row(
            "half of the runs grow: |log rate / typical edge|",
            0,
            grid_step / 2,
            float(np.abs(np.log(crossing / typical)).max()),
        ),
        Row(
            f"share that grows, {ratio.size} cells: largest error",
            STANDARD_ERRORS / 2 / np.sqrt(per_cell),
            0,
            float(np.abs(expected - measured).max()),
            "at most",
        ),
        Row(
            "below the exact edge: share that grows",
            FEW,
            0,
            float(share[rate < exact].mean()),
            "at most",
        ),
        Row(
            f"between the edges, {int(between.sum())} cells: share that decays",
            0.5,
            0,
            float(1 - share[between].mean()),
            "at least",
        ),
        Row(
            "10 % beyond the typical edge: share that decays",
            FEW,
            0,
            float(1 - share[rate > 1.1 * typical].mean()),
            "at most",
        ),
        Row(
            f"typical edge * lambda_max / 2, largest - {STANDARD_ERRORS:g} SE",
            1 + FEW,
            0,
            float(beyond.max()),
            "at least",
        ),
        Row(
            "B = n: |log half grow * lambda_max / 2|",
            0,
            grid_step / 2,
            float(np.abs(np.log(crossing[~noisy] / arrays["edge"])).max()),
        ),
    ]


def _beside(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells within the range of the products, B < n: rate over threshold, expected share, share."""
    share, found = _share(arrays), []
    for column, size in enumerate(arrays["batch"][arrays["batch"] < SAMPLES]):
        row = int(np.searchsorted(arrays["size"], size))
        multiple = arrays["rate"] / arrays["mean_square"][row]
        inside = (multiple >= MULTIPLES[0]) & (multiple <= MULTIPLES[-1])
        expected = _expected_share(arrays, row, multiple[inside])
        found.append((multiple[inside], expected, share[inside, column]))
    multiple, expected, measured = (np.concatenate(values) for values in zip(*found, strict=True))
    return multiple, expected, measured


def _shaded(share: float) -> dict[str, Any]:
    """A point that is filled the more, the fewer of its runs grow."""
    color = share * np.ones(3) + (1 - share) * np.array(to_rgb(_sgd.SGD))
    return {**_style.points(_sgd.SGD), "markerfacecolor": tuple(color)}


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """The plane; beside the edges of some batch sizes the share of runs that grow; rates at one."""
    runs = arrays["growth"].size
    figure = _style.canvas(
        10.6,
        6.2,
        "The mean loss of SGD turns at the exact threshold; single runs turn beyond it",
        f"Least squares, {SAMPLES} normal inputs in {DIM} dimensions, largest eigenvalue 2. Points: one "
        f"sweep, {runs:,} runs of {STEPS} steps, {arrays['growth'][0, 0].size} in a cell; a run grows if "
        f"its loss does from step {STEPS // 2} on.\nLines without fit: exact moments; products of random "
        "matrices drawn apart, whose mean log factor is 0 at the typical edge. Own settings.",
    )
    edges = _style.margins(figure, left=0.78, right=0.22, top=1.0, bottom=1.05)
    grid = figure.add_gridspec(1, 2, width_ratios=(1.32, 1), wspace=0.23, **edges)
    _draw_plane(figure.add_subplot(grid[0]), arrays)
    cell = grid[1].subgridspec(2, 1, hspace=0.62)
    _draw_shares(figure.add_subplot(cell[0]), arrays)
    _draw_rates(figure.add_subplot(cell[1]), arrays)
    return figure


def _plain(value: float, _: object) -> str:
    return f"{value:g}"


def _draw_plane(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    every, exact, size = arrays["every"], arrays["exact"], arrays["size"]
    typical = np.exp(np.interp(np.log(every), np.log(size), np.log(arrays["typical"])))
    low, high = arrays["rate"][0] / 1.07, arrays["rate"][-1] * 1.07
    axes.fill_betweenx(every, low, exact, color=_sgd.SGD, alpha=0.09, lw=0)
    axes.fill_betweenx(every, exact, typical, color=TYPICAL, alpha=0.15, lw=0)
    axes.axvline(float(arrays["edge"]), **EDGE)
    axes.plot(exact, every, **EXACT_LINE)
    axes.plot(typical, every, **TYPICAL_LINE)
    share = _share(arrays)
    for row, rate in enumerate(arrays["rate"]):
        for column, batch in enumerate(arrays["batch"]):
            axes.plot([rate], [batch], **_shaded(float(share[row, column])))
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([0.15, 0.2, 0.3, 0.5, 0.7, 1]))
    axes.set_yscale("log", base=2)
    axes.set_ylim(0.85, 119)
    axes.yaxis.set_major_locator(FixedLocator([1, 2, 4, 8, 16, 32, 64, 100]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_plain))
        axis.set_minor_locator(NullLocator())
    axes.grid(visible=False)
    words: dict[str, Any] = {"fontsize": 8, "va": "center"}
    axes.text(0.168, 1.43, "exact\n" r"edge $\eta_*$", ha="right", **words)
    axes.text(0.265, 1.43, "typical\nedge", color=TYPICAL, **words)
    axes.text(1.025, 1.43, "full batch,\n" r"$2/\lambda_{\max}$", color=_style.QUIET, **words)
    axes.set_title("Rate, batch size and seed", pad=_style.SUBTITLE_PAD)
    text = (
        "filled: all runs decay; open: all grow; between the edges E$L$ grows and most runs decay"
    )
    _style.subtitle(axes, text)
    axes.set_xlabel(r"$\eta$   learning rate")
    axes.set_ylabel("$B$   batch size")


def _draw_shares(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    share = _share(arrays)
    axes.axvline(1, **{**EXACT_LINE, "lw": 1.2})
    axes.axhline(0.5, color=_style.QUIET, lw=0.7)
    line = np.linspace(MULTIPLES[0], MULTIPLES[-1], 121)
    for batch, (color, marker) in COLORS.items():
        row = int(np.searchsorted(arrays["size"], batch))
        column = int(np.flatnonzero(arrays["batch"] == batch)[0])
        axes.plot(line, _expected_share(arrays, row, line), color=color, lw=1.3)
        axes.plot([], [], label=f"$B$ = {batch}", **_style.points(color, marker=marker))
        multiple = arrays["rate"] / arrays["mean_square"][row]
        inside = (multiple >= MULTIPLES[0]) & (multiple <= MULTIPLES[-1])
        x, y = multiple[inside], share[inside, column]
        error = np.sqrt(y * (1 - y) / arrays["growth"][0, 0].size)
        _bars(axes, x, y, 2 * error, y > 0.5, color, marker)
    axes.set_xlim(0.88, 1.5)
    axes.set_ylim(-0.06, 1.06)
    axes.set_title("Runs that grow, over the rate", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "points: the sweep, 2 SE; lines: mean and variance of products")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.02), labelspacing=0.35)
    axes.set_ylabel("share of runs")
    axes.set_xlabel(r"$\eta/\eta_*$   rate / exact edge")


def _draw_rates(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    row = int(np.searchsorted(arrays["size"], SHOWN))
    edge = float(arrays["edge"] / arrays["mean_square"][row])
    axes.axhline(0, color=_style.QUIET, lw=0.7)
    axes.axvline(edge, **EDGE)
    axes.plot(arrays["line"], arrays["mean_square_rate"], **EXACT_LINE)
    axes.plot(MULTIPLES, arrays["product_rate"][row], **TYPICAL_LINE)
    index = list(MEAN_STEPS).index(SHOWN)
    mean, error = arrays["mean_mean"][index], arrays["mean_error"][index]
    y, bar = np.log(mean) / MEAN_STEPS[SHOWN], error / mean / MEAN_STEPS[SHOWN]
    _bars(axes, MEAN_MULTIPLES, y, 2 * bar, y > 0, _style.INK, "D")
    column = int(np.flatnonzero(arrays["batch"] == SHOWN)[0])
    multiple = arrays["rate"] / arrays["mean_square"][row]
    runs = arrays["growth"][:, column].reshape(len(multiple), -1)
    shown = (multiple >= MULTIPLES[0]) & (multiple <= MULTIPLES[-1]) & np.isfinite(runs).all(axis=1)
    spread = runs[shown].std(axis=1, ddof=1) / np.sqrt(runs.shape[1])
    y = runs[shown].mean(axis=1)
    _bars(axes, multiple[shown], y, 2 * spread, y > 0, TYPICAL, "o")
    axes.set_xlim(0.88, 1.5)
    axes.set_ylim(-0.8, 1.25)
    axes.text(1.31, 0.97, "E$L$", fontsize=8, ha="right")
    axes.text(1.385, 0.2, "typical run", fontsize=8, color=TYPICAL)
    axes.text(edge + 0.008, -0.72, r"$2/\lambda_{\max}$", fontsize=7.5, color=_style.QUIET)
    axes.set_title(f"$B$ = {SHOWN}: growth of the mean and of runs", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes, f"points: mean of {int(arrays['mean_runs']):,} short runs; the sweep; 2 SE"
    )
    axes.set_ylabel("log factor per step")
    axes.set_xlabel(r"$\eta/\eta_*$   rate / exact edge")


def _bars(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    bar: np.ndarray,
    grows: np.ndarray,
    color: str,
    marker: str,
) -> None:
    for grown in (False, True):
        chosen = grows == grown
        style = _style.points(color, filled=not grown, size=4, marker=marker)
        axes.errorbar(x[chosen], y[chosen], bar[chosen], elinewidth=1.0, ecolor=color, **style)
