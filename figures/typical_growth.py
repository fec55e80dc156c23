r"""At the stochastic edge the mean square of the residuals stands still, and a typical run still decays.

The threshold of `critical_lr` is that of :math:`\mathrm{E}|e|^2`, of which rare runs make up ever more. A
typical run grows at the rate of :math:`\mathrm{E}\log|e|^2`, which is lower. By how much is measured
without the noise that both share: for flat eigenvectors and :math:`x_a = \eta\lambda_a`

.. math:: h(e) = \sum_a \frac{(V^\top e)_a^2}{\rho - (1 - x_a)^2 + \kappa x_a^2}, \qquad
          \mathrm{E}[h(e') \mid e] = \rho\, h(e)

for every e, :math:`\rho` being `growth_rate` (the left eigenvector of the second-moment operator). So
:math:`h(e')/h(e) = \rho(1 + \xi)` with :math:`\mathrm{E}[\xi \mid e] = 0`, and

.. math:: \text{typical rate} = \log\rho - \mathrm{E}[\xi - \log(1 + \xi)],

where what is averaged is never negative and of second order (derived here). The stochastic edge of
Agarwala & Pennington 2024, arXiv 2404.19261, is log rho = 0. With batches of n/8 the difference there is
0.0025 to 0.003 per step, at all sizes shown; it is 20 times that for B between n/2 and 3n/4, and nothing
at B = 1, where every step at the edge reflects the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import eosim
from eosim import run_ensemble
from eosim.sampling import noise_factor
from eosim.stability import TangentKernel, critical_lr, growth_rate
from figures import _sgd, _style
from figures._headline import Row

SEED = 0
# Our choice: sizes with batches of n/8, ramp spectra (largest eigenvalue 2), flat eigenvectors.
SIZES, BATCHES = (16, 64, 256), 8
RATIOS = np.array([0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2])
LINE = np.linspace(0.78, 1.22, 89)
# Our choice: runs and steps at each rate (at the edge EDGE_TIMES as many steps), enough for bars below
# a third of the difference there; --full more than halves them.
RUNS = {16: 64, 64: 64, 256: 32}
STEPS_QUICK = {16: 1000, 64: 500, 256: 200}
STEPS_FULL = {16: 8000, 64: 4000, 256: 1500}
EDGE_TIMES = 3
# Runs start from the second moment that grows by rho, near the typical one.
BURN_IN = 300
# Our choice: the batch sizes at n = 64, at the edge.
SWEEP_SIZE = 64
SWEEP_QUICK = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 60, 63)
SWEEP_FULL = tuple(range(1, 64))
SWEEP_STEPS_QUICK, SWEEP_STEPS_FULL = 400, 1600
# Our choice: a batch size at which a few hundred steps tell mean and median apart.
FAN_BATCH, FAN_STEPS, FAN_EVERY = 16, 600, 10
FAN_RUNS_QUICK, FAN_RUNS_FULL = 1000, 10_000
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Means of independent runs: 6 of them, beyond 4.5 standard errors once in 10^4.
STANDARD_ERRORS = 4.5
# Typical rates at the edge and their standard errors, measured here with 64 runs of 48,000, 30,000 and
# (n = 256) 9000 steps.
AT_EDGE = {16: (-0.00263, 1e-5), 64: (-0.00300, 2e-5), 256: (-0.00250, 6e-5)}
# Our choice: what few runs are.
FEW = 0.05
COLORS = {16: _style.ORANGE, 64: _style.BLUE, 256: _style.INK}
MARKERS = {16: "s", 64: "o", 256: "D"}


def surviving_form(kernel: TangentKernel, lr: float, batch_size: int) -> tuple[float, np.ndarray]:
    """rho, and the weights of the modes in the quadratic form h that grows by it in the mean."""
    x = lr * kernel.eigenvalues
    rho = growth_rate(kernel, lr, batch_size, kind="finite")
    kappa = noise_factor(kernel.n_samples, batch_size)
    return rho, 1 / (rho - (1 - x) ** 2 + kappa * x**2)


def gap(
    kernel: TangentKernel, lr: float, batch_size: int, n_steps: int, seed: Sequence[int]
) -> np.ndarray:
    """Typical rate minus log of the mean-square one, of single runs; flat eigenvectors.

    A second row: the same without the control variate, from log h alone.
    """
    rng = np.random.default_rng(seed)
    n, V, x = kernel.n_samples, kernel.vectors(), lr * kernel.eigenvalues
    n_runs = RUNS[n]
    rho, left = surviving_form(kernel, lr, batch_size)
    modes = rng.standard_normal((n_runs, n)) * x * np.sqrt(left)  # the right eigenvector, x^2 left
    size = modes**2 @ left
    total, plain = np.zeros(n_runs), np.zeros(n_runs)
    for step in range(BURN_IN + n_steps):
        modes /= np.sqrt(size)[:, None]
        residuals = modes @ V.T
        batch = np.argpartition(rng.random((n_runs, n)), batch_size - 1, axis=1)[:, :batch_size]
        weighted = np.zeros((n_runs, n))
        chosen = np.take_along_axis(residuals, batch, axis=1) * (n / batch_size)
        np.put_along_axis(weighted, batch, chosen, axis=1)
        modes -= (weighted @ V) * x
        size = modes**2 @ left  # rho (1 + xi), since it was 1
        if step >= BURN_IN:
            surprise = size / rho - 1
            logarithm = np.log(size / rho)
            total += logarithm - surprise
            plain += logarithm
    return np.array([total, plain]) / n_steps


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Rates over the learning rate and, at the edge, over the batch size; quantiles of runs."""
    arrays: dict[str, np.ndarray] = {"ratio": RATIOS, "line": LINE}
    steps = STEPS_QUICK if quick else STEPS_FULL
    for n in SIZES:
        kernel, batch_size = _sgd.flat_kernel(n), n // BATCHES
        critical = critical_lr(kernel, batch_size, kind="finite")
        arrays[f"line_{n}"] = _mean_square(kernel, LINE * critical)
        arrays[f"mean_square_{n}"] = _mean_square(kernel, RATIOS * critical)
        runs = [
            gap(
                kernel,
                ratio * critical,
                batch_size,
                steps[n] * (EDGE_TIMES if ratio == 1 else 1),
                [SEED, n, index],
            )
            for index, ratio in enumerate(RATIOS)
        ]
        arrays[f"gap_{n}"], arrays[f"plain_{n}"] = np.moveaxis(np.array(runs), 1, 0)  # (ratio, run)
    kernel = _sgd.flat_kernel(SWEEP_SIZE)
    sweep = SWEEP_QUICK if quick else SWEEP_FULL
    arrays["sweep"] = np.array(sweep)
    n_steps = SWEEP_STEPS_QUICK if quick else SWEEP_STEPS_FULL
    edges = [critical_lr(kernel, B, kind="finite") for B in sweep]
    arrays["sweep_gap"] = np.array(
        [gap(kernel, lr, B, n_steps, [SEED + 1, B])[0] for B, lr in zip(sweep, edges, strict=True)]
    )
    arrays |= _fan(kernel, FAN_RUNS_QUICK if quick else FAN_RUNS_FULL)
    return arrays


def _mean_square(kernel: TangentKernel, rates: np.ndarray) -> np.ndarray:
    """Log factor per step of the mean square, for batches of n/8."""
    batch_size = kernel.n_samples // BATCHES
    factors = [growth_rate(kernel, float(lr), batch_size, kind="finite") for lr in rates]
    return np.log(factors)


def _fan(kernel: TangentKernel, n_runs: int) -> dict[str, np.ndarray]:
    """Quantiles and mean of the loss of sampled runs at the edge, over its expectation."""
    lr = critical_lr(kernel, FAN_BATCH, kind="finite")
    _, left = surviving_form(kernel, lr, FAN_BATCH)
    energy = (lr * kernel.eigenvalues) ** 2 * left  # stationary, since rho = 1
    starts = np.random.default_rng(SEED).standard_normal((n_runs, SWEEP_SIZE)) * np.sqrt(energy)
    ensemble = run_ensemble(
        _sgd.problem(kernel),
        eosim.GradientDescent(lr),
        None,
        FAN_STEPS,
        batch_sizes=FAN_BATCH,
        n_replicas=n_runs,
        seed=SEED,
        residuals0=starts @ kernel.vectors().T,
        every=FAN_EVERY,
    )
    losses = ensemble["loss"][0, 0] / (energy.sum() / (2 * SWEEP_SIZE))
    return {
        "fan_step": ensemble.step,
        "fan_quantile": np.quantile(losses, QUANTILES, axis=0),
        "fan_above": (losses > 1).mean(axis=0),
        "fan_mean": losses.mean(axis=0),
        "fan_runs": np.array(n_runs),
    }


def _typical(arrays: dict[str, np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Typical rate per step at every ratio, and its standard error."""
    runs = arrays[f"gap_{n}"]
    mean = arrays[f"mean_square_{n}"] + runs.mean(axis=1)
    return mean, runs.std(axis=1, ddof=1) / np.sqrt(runs.shape[1])


def _sweep(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Typical rate at the edge for each batch size, and its standard error."""
    runs = arrays["sweep_gap"]
    return runs.mean(axis=1), runs.std(axis=1, ddof=1) / np.sqrt(runs.shape[1])


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """At the edge typical runs decay, 5 % above they grow; both estimates agree; the fan."""
    at, above = (int(np.flatnonzero(np.isclose(arrays["ratio"], r))[0]) for r in (1.0, 1.05))
    rows = []
    away, largest = 0.0, -np.inf
    for n in SIZES:
        typical, error = _typical(arrays, n)
        expected, spread = AT_EDGE[n]
        tolerance = STANDARD_ERRORS * float(np.hypot(error[at], spread))
        rows += [
            Row(f"n = {n}: typical rate at the edge", expected, tolerance, float(typical[at])),
            Row(
                f"n = {n}: the same + {STANDARD_ERRORS:g} SE",
                0,
                0,
                typical[at] + tolerance,
                "at most",
            ),
            Row(
                f"n = {n}: typical rate at 1.05 - {STANDARD_ERRORS:g} SE",
                0,
                0,
                float(typical[above] - STANDARD_ERRORS * error[above]),
                "at least",
            ),
        ]
        difference = arrays[f"plain_{n}"] - arrays[f"gap_{n}"]
        spread = difference.std(axis=1, ddof=1) / np.sqrt(difference.shape[1])
        away = max(away, float((np.abs(difference.mean(axis=1)) / spread).max()))
        largest = max(largest, float(arrays[f"gap_{n}"].max()))
    sweep, error = _sweep(arrays)
    chosen = int(np.flatnonzero(arrays["sweep"] == FAN_BATCH)[0])
    half = len(arrays["fan_step"]) // 3
    logs, steps = np.log(arrays["fan_quantile"][QUANTILES.index(0.5)]), arrays["fan_step"]
    slope = float((logs[-1] - logs[half]) / (steps[-1] - steps[half]))
    # The logarithm of a run scatters by about sqrt(2 |rate| T), its median by 1.25 / sqrt(runs) of that.
    scatter = 1.25 * np.sqrt(2 * -sweep[chosen] * steps[-1] / arrays["fan_runs"])
    tolerance = STANDARD_ERRORS * float(
        np.hypot(error[chosen], scatter / (steps[-1] - steps[half]))
    )
    return [
        *rows,
        Row("typical - mean-square rate, largest", 0, 0, largest, "at most"),
        Row("with and without control variate: SE apart", STANDARD_ERRORS, 0, away, "at most"),
        Row("B = 1, edge: |typical rate|", 1e-12, 0, float(np.abs(sweep[0])), "at most"),
        Row(f"B = {FAN_BATCH}: slope of the median's log", float(sweep[chosen]), tolerance, slope),
        Row(
            f"B = {FAN_BATCH}: share of runs above E L, end",
            FEW,
            0,
            float(arrays["fan_above"][-1]),
            "at most",
        ),
    ]


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Both rates over the learning rate, their difference, quantiles at the edge, batch sizes."""
    figure = _style.canvas(
        9.6,
        8.1,
        "At the stochastic edge the mean square stands still, and a typical run still decays",
        "Linear model, ramp spectrum (largest eigenvalue 2), flat eigenvectors; top: batches of "
        f"n/{BATCHES}. Points: 32 to 64 long runs each (filled decays,\n"
        "open grows), bars: 2 standard errors; lines: mean square, theory. "
        f"Bottom left: {int(arrays['fan_runs'])} runs. Own settings.",
    )
    edges = _style.margins(figure, left=0.85, right=0.25, top=1.0, bottom=1.08)
    grid = figure.add_gridspec(2, 2, wspace=0.3, hspace=0.52, **edges)
    _draw_rates(figure.add_subplot(grid[0]), arrays)
    _draw_gap(figure.add_subplot(grid[1]), arrays)
    _draw_fan(figure.add_subplot(grid[2]), arrays)
    _draw_sweep(figure.add_subplot(grid[3]), arrays)
    return figure


def _bars(
    axes: Axes, x: np.ndarray, y: np.ndarray, error: np.ndarray, grows: np.ndarray, n: int
) -> None:
    for grown in (False, True):
        chosen = grows == grown
        style = _style.points(COLORS[n], filled=not grown, marker=MARKERS[n])
        axes.errorbar(
            x[chosen], y[chosen], 2 * error[chosen], elinewidth=1.0, ecolor=COLORS[n], **style
        )


def _rate_axis(axes: Axes) -> None:
    axes.axhline(0, color=_style.QUIET, lw=0.7)
    axes.axvline(1, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    axes.set_xlim(0.78, 1.22)
    axes.xaxis.set_major_locator(FixedLocator([0.8, 0.9, 1, 1.1, 1.2]))
    axes.set_xlabel(r"$\eta/\eta_*$   rate / mean-square threshold")


def _signed(value: float, _: object) -> str:
    return f"{value:+g}".replace("-", "−") if value else "0"


def _draw_rates(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    _rate_axis(axes)
    for n in SIZES:
        typical, error = _typical(arrays, n)
        axes.plot(arrays["line"], arrays[f"line_{n}"], color=COLORS[n], lw=1.4)
        _bars(axes, arrays["ratio"], typical, error, typical > 0, n)
    for n, y in zip(SIZES, (0.1, 0.085, 0.07), strict=True):
        axes.plot([0.805], [y], **_style.points(COLORS[n], marker=MARKERS[n]))
        axes.text(0.82, y, f"$n$ = {n}", color=COLORS[n], fontsize=8, va="center")
    axes.set_ylim(-0.062, 0.14)
    axes.yaxis.set_major_locator(FixedLocator([-0.05, 0, 0.05, 0.1]))
    axes.yaxis.set_major_formatter(FuncFormatter(_signed))
    axes.set_title("Growth over the learning rate", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"lines: log E$|e|^2$ per step; points: log $|e|^2$ of typical runs")
    axes.set_ylabel("log factor per step")


def _draw_gap(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    _rate_axis(axes)
    for n in SIZES:
        typical, error = _typical(arrays, n)
        difference = typical - arrays[f"mean_square_{n}"]
        axes.plot(arrays["ratio"], difference, color=COLORS[n], lw=0.8, alpha=0.5)
        _bars(axes, arrays["ratio"], difference, error, typical > 0, n)
    axes.set_ylim(-0.0185, 0.001)
    axes.yaxis.set_major_locator(FixedLocator([-0.015, -0.01, -0.005, 0]))
    axes.yaxis.set_major_formatter(FuncFormatter(_signed))
    axes.set_title("Typical minus mean-square", pad=_style.SUBTITLE_PAD)
    typical = ", ".join(f"{1e3 * _at_edge(arrays, n):.1f}".replace("-", "−") for n in SIZES)
    _style.subtitle(axes, f"at the threshold {typical} in units of $10^{{-3}}$")
    axes.set_ylabel("difference per step")


def _at_edge(arrays: dict[str, np.ndarray], n: int) -> float:
    return float(_typical(arrays, n)[0][np.isclose(arrays["ratio"], 1.0)][0])


def _draw_fan(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    steps, quantile = arrays["fan_step"], arrays["fan_quantile"]
    color = COLORS[SWEEP_SIZE]
    axes.fill_between(steps, quantile[0], quantile[4], color=color, alpha=0.1, lw=0)
    axes.fill_between(steps, quantile[1], quantile[3], color=color, alpha=0.2, lw=0)
    axes.axhline(1, color=_style.INK, lw=1.5)
    axes.plot(steps, arrays["fan_mean"], color=_style.VERMILLION, lw=1.4, ls=(0, (4, 1.5)))
    axes.plot(steps[::3], quantile[2][::3], **_style.points(color, size=3.6))
    rate = float(_sweep(arrays)[0][arrays["sweep"] == FAN_BATCH][0])
    axes.plot(steps, np.exp(rate * steps) * quantile[2][0], color=color, lw=1.2)
    axes.set_yscale("log")
    axes.set_ylim(1e-7, 60)
    axes.set_xlim(0, FAN_STEPS)
    axes.yaxis.set_major_locator(FixedLocator([1e-6, 1e-4, 1e-2, 1]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.text(590, 2.0, "E$L$: exact, for ever 1", fontsize=8, ha="right")
    axes.text(590, 0.009, "mean of the runs", fontsize=8, ha="right", color=_style.VERMILLION)
    axes.text(285, 1.2e-3, "median", fontsize=8, ha="right", color=color)
    axes.set_title(f"At the edge, $n$ = {SWEEP_SIZE}, $B$ = {FAN_BATCH}", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "90 % and 50 % of runs; line: typical rate of the right panel")
    axes.set_xlabel("step")
    axes.set_ylabel(r"$L$ / E$L$   loss")


def _draw_sweep(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    sweep, error = _sweep(arrays)
    axes.axhline(0, color=_style.QUIET, lw=0.7)
    axes.plot(arrays["sweep"], sweep, color=COLORS[SWEEP_SIZE], lw=0.8, alpha=0.5)
    _bars(axes, arrays["sweep"], sweep, error, np.zeros(len(sweep), bool), SWEEP_SIZE)
    axes.set_xlim(-1, 65)
    axes.xaxis.set_major_locator(FixedLocator([1, 8, 16, 24, 32, 40, 48, 56, 63]))
    axes.set_ylim(-0.078, 0.004)
    axes.yaxis.set_major_locator(FixedLocator([-0.06, -0.04, -0.02, 0]))
    axes.yaxis.set_major_formatter(FuncFormatter(_signed))
    axes.set_title(f"At the edge, $n$ = {SWEEP_SIZE}: all batch sizes", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "typical rate where the mean-square rate is 0")
    axes.set_xlabel("$B$   batch size")
    axes.set_ylabel("log factor per step")
