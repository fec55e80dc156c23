r"""SGD loses mean-square stability at the stochastic edge, long before full-batch descent does.

On a linear model with NTK :math:`\Theta` of n samples SGD with batches of B is stable in mean square up to
a rate :math:`\eta_*` that `eosim.stability.critical_lr` gives exactly, with momentum :math:`\mu` too. If
the eigenvectors are flat it solves (kappa = `noise_factor`)

.. math:: K = \kappa\sum_a \frac{\eta\lambda_a}{2 - (1 - \kappa)\eta\lambda_a} = 1

It is about :math:`2B/\mathrm{tr}\,\Theta` for small batches, the stochastic edge of Agarwala & Pennington
2024, arXiv 2404.19261, and saturates at the deterministic edge :math:`2/\lambda_{\max}` beyond
:math:`B_\times \approx \mathrm{tr}\,\Theta/\lambda_{\max}`. Momentum moves the deterministic edge up to
:math:`2(1+\mu)/\lambda_{\max}` and the stochastic edge down by :math:`1 - \mu`. For flat eigenvectors both
together are a rescaling,

.. math:: \eta_*(\mu, \kappa) = (1 + \mu)\, \eta_*\big(0,\ \kappa\,\tfrac{1+\mu}{1-\mu}\big)

which the exact threshold of the general kernel shown exceeds by up to 22 % (momentum: derived here). Two
kinds of runs judge: the exact recursion of the expected loss, 1 % to each side of the threshold; and
sampled ones, 25 per point, by their median, on a grid that stays further off, since single runs begin to
grow later than their mean (`stochastic_edge_plane`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import eosim
from eosim import run_ensemble
from eosim.moments import Covariance
from eosim.sampling import noise_factor
from eosim.stability import TangentKernel, critical_batch_size, critical_lr, growth_rate
from figures import _sgd, _style
from figures._headline import Row

# Our choice: ramp spectra, largest eigenvalue 2 and trace n + 1.
N_PLANE, N_MOMENTUM = 64, 16
MOMENTA = (0.0, 0.5, 0.9)
COLORS = {0.0: _style.BLUE, 0.5: _style.ORANGE, 0.8: _style.GREEN, 0.9: "#8a4b12"}
# Our choice: batch sizes and rates of the runs, on the plane in a grid that keeps 5 % off the thresholds,
# since a single run begins to grow up to 4 % beyond the mean of all (see `typical_growth`), with much
# momentum up to 15 %: there the sides are told apart at these multiples of the threshold.
PLANE_QUICK = (1, 2, 4, 8, 16, 32, 63)
PLANE_FULL = (1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 55, 63)
PLANE_RATES = 0.0185 * 2 ** (np.arange(13) / 2)
MOMENTUM_BATCHES = (1, 2, 4, 8, 11, 15)
MULTIPLES = (0.8, 1.25)
N_RUNS = 25  # odd: the median is one of the runs
SEED = 0
# Runs and recursions are judged by the growth over the second half of so many steps. The slowest is
# B = 1 on the plane: 1 % off the threshold E L moves by 6e-4 per step, and other parts of the moments
# decay by as little as 1e-3 per step more, which leaves 5e-5 of them in the factor.
RUN_STEPS, RECURSION_STEPS = 600, 600
OFFSETS = (-0.01, 0.01)
FACTOR_TOLERANCE = 1e-4
# Pairs (mu, mu = 0) that the duality connects, with replacement, where kappa = 1/B: B over b is
# (1 + mu) / (1 - mu).
RATIOS = {0.5: 3, 0.8: 9, 0.9: 19}
DUAL_BATCHES = (1, 2, 4, 8)
DUAL_LINE = tuple(range(1, 17))
GENERAL_SEED = 0
# Our choice: what counts as far off.
FAR = 0.1

EDGE = {"color": _style.QUIET, "lw": 0.9, "ls": (0, (4, 3))}


def _sampled_growth(
    kernel: TangentKernel, rates: np.ndarray, batch_sizes: Sequence[int], momentum: float
) -> np.ndarray:
    """Whether the median loss of sampled runs grows over the second half; (rate, batch size)."""
    starts = np.random.default_rng(SEED).standard_normal((N_RUNS, kernel.n_samples))
    rules: list[Any] = [
        eosim.HeavyBall(float(lr), momentum) if momentum else eosim.GradientDescent(float(lr))
        for lr in rates
    ]
    ensemble = run_ensemble(
        _sgd.problem(kernel),
        rules,
        None,
        RUN_STEPS,
        batch_sizes=list(batch_sizes),
        n_replicas=N_RUNS,
        seed=SEED,
        residuals0=starts,
        every=RUN_STEPS // 2,
    )
    _, half, end = np.moveaxis(ensemble.median(), 2, 0)
    return (end > half) | np.isinf(end)


def _factor(kernel: TangentKernel, lr: float, batch_size: int, **setting: Any) -> float:
    """Late log factor per step of the exact expected loss, from its recursion."""
    model = Covariance(kernel, lr, batch_size, **setting)
    # What a step of noise leaves behind of isotropic residuals: near the slowest part of the moments.
    start = kernel.matrix @ kernel.matrix
    steps = np.array([RECURSION_STEPS // 2, RECURSION_STEPS])
    half, end = eosim.predict(model, start, steps)["loss"]
    return float(np.log(end / half)) / (RECURSION_STEPS // 2)


def _near(
    kernel: TangentKernel, thresholds: np.ndarray, batch_sizes: Sequence[int], **setting: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Late log factors at the offsets from the thresholds, by recursion and by `growth_rate`."""
    measured, expected = (np.empty((len(batch_sizes), len(OFFSETS))) for _ in range(2))
    for row, (batch_size, threshold) in enumerate(zip(batch_sizes, thresholds, strict=True)):
        for column, offset in enumerate(OFFSETS):
            lr = float(threshold) * (1 + offset)
            measured[row, column] = _factor(kernel, lr, batch_size, **setting)
            expected[row, column] = np.log(growth_rate(kernel, lr, batch_size, **setting))
    return measured, expected


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Thresholds of every kind, verdicts of sampled runs, and growth beside the thresholds."""
    kernel = _sgd.flat_kernel(N_PLANE)
    every = np.arange(1, N_PLANE)
    arrays: dict[str, np.ndarray] = {"batch": every, "rate": PLANE_RATES}
    for kind in ("exact", "finite", "trace"):
        arrays[kind] = np.array([critical_lr(kernel, int(B), kind=kind) for B in every])
    kappa = np.array([noise_factor(N_PLANE, int(B)) for B in every])
    arrays["trace_line"] = 2 / (kappa * kernel.trace)  # beyond the edge too
    arrays["edge"] = np.array(2 / kernel.largest)
    arrays["crossover"] = np.array(critical_batch_size(kernel))
    shown = PLANE_QUICK if quick else PLANE_FULL
    arrays["plane_batch"] = np.array(shown)
    arrays["plane_grows"] = _sampled_growth(kernel, PLANE_RATES, shown, 0.0)
    thresholds = arrays["exact"][np.array(shown) - 1]
    arrays["plane_factor"], arrays["plane_growth"] = _near(kernel, thresholds, shown)

    small = _sgd.flat_kernel(N_MOMENTUM)
    all_sizes = np.arange(1, N_MOMENTUM)
    arrays["small_batch"] = all_sizes
    arrays["small_kappa"] = np.array([noise_factor(N_MOMENTUM, int(B)) for B in all_sizes])
    judged = MOMENTUM_BATCHES if quick else tuple(range(1, N_MOMENTUM))
    arrays["momentum_batch"] = np.array(judged)
    for mu in MOMENTA:
        line = np.array([critical_lr(small, int(B), momentum=mu) for B in all_sizes])
        near = line[np.array(judged) - 1]
        arrays[f"threshold_{mu}"] = line
        arrays[f"factor_{mu}"], arrays[f"growth_{mu}"] = _near(small, near, judged, momentum=mu)
        verdicts = [
            _sampled_growth(small, threshold * np.array(MULTIPLES), [B], mu)[:, 0]
            for B, threshold in zip(judged, near, strict=True)
        ]
        arrays[f"grows_{mu}"] = np.array(verdicts)  # (batch size, multiple)

    general = _sgd.gaussian_kernel(N_MOMENTUM, 2 * N_MOMENTUM, GENERAL_SEED)
    drawn = {"sampling": "with_replacement"}
    for name, ntk in (("flat", small), ("general", general)):
        base = np.array([critical_lr(ntk, b, **drawn) for b in DUAL_LINE])
        for mu, ratio in RATIOS.items():
            exact = [critical_lr(ntk, ratio * b, momentum=mu, **drawn) for b in DUAL_LINE]
            arrays[f"{name}_off_{mu}"] = np.array(exact) / ((1 + mu) * base) - 1
            if name == "general":
                chosen = [exact[DUAL_LINE.index(b)] for b in DUAL_BATCHES]
                sizes = [ratio * b for b in DUAL_BATCHES]
                arrays[f"dual_factor_{mu}"], arrays[f"dual_growth_{mu}"] = _near(
                    ntk, np.array(chosen), sizes, momentum=mu, **drawn
                )
    return arrays


def _groups(arrays: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Growth beside the thresholds, by recursion and by `growth_rate`."""
    names = [("plane", "plane_factor", "plane_growth")]
    names += [(f"momentum {mu:g}", f"factor_{mu}", f"growth_{mu}") for mu in MOMENTA]
    names += [(f"general, {mu:g}", f"dual_factor_{mu}", f"dual_growth_{mu}") for mu in RATIOS]
    return [(text, arrays[factor], arrays[growth]) for text, factor, growth in names]


def _wrong_samples(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Whether each verdict of the grids contradicts its threshold; flat."""
    threshold = arrays["exact"][arrays["plane_batch"] - 1]
    wrong = [arrays["plane_grows"] != (arrays["rate"][:, None] > threshold)]
    wrong += [arrays[f"grows_{mu}"] != (np.array(MULTIPLES) > 1) for mu in MOMENTA]
    return np.concatenate([verdicts.ravel() for verdicts in wrong])


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """No verdict on the wrong side; limits of the threshold; the duality, and where it fails."""
    wrong = _wrong_samples(arrays)
    groups = _groups(arrays)
    factors = np.concatenate([factor.ravel() for _, factor, _ in groups])
    growth = np.concatenate([expected.ravel() for _, _, expected in groups])
    beyond = np.concatenate([np.broadcast_to(OFFSETS, f.shape).ravel() for _, f, _ in groups]) > 0
    exact, kappa = arrays["exact"], arrays["small_kappa"]
    collapse = max(float(np.abs(arrays[f"flat_off_{mu}"]).max()) for mu in RATIOS)
    least = min(float(arrays[f"general_off_{mu}"].min()) for mu in RATIOS)
    most = max(float(arrays[f"general_off_{mu}"].max()) for mu in RATIOS)
    bracket = 2 / (2 + kappa * (N_MOMENTUM + 1))  # flat: the threshold is at least this
    return [
        Row(f"sampled runs: wrong verdicts of {wrong.size}", 0, 0, int(wrong.sum())),
        Row(
            f"1 % off: wrong verdicts of {factors.size}, E L",
            0,
            0,
            int(((factors > 0) != beyond).sum()),
        ),
        Row(
            "1 % off: |log factor - log growth_rate|",
            FACTOR_TOLERANCE,
            0,
            float(np.abs(factors - growth).max()),
            "at most",
        ),
        Row("flat: |exact / finite - 1|", 1e-12, 0, _gap(exact, arrays["finite"]), "at most"),
        Row("B = 1: eta * tr / 2", 1, 1e-12, float(exact[0] * (N_PLANE + 1) / 2)),
        Row("B = 63: eta * lambda_max / 2", 1, 1e-3, float(exact[-1] / arrays["edge"])),
        Row(
            "flat: threshold over its lower bound, least", 1, 0, _least(arrays, bracket), "at least"
        ),
        Row("flat: |threshold / duality - 1|", 1e-12, 0, collapse, "at most"),
        Row("general: threshold / duality - 1, least", 0, 0, least, "at least"),
        Row("general: threshold / duality - 1, largest", FAR, 0, most, "at least"),
    ]


def _gap(values: np.ndarray, others: np.ndarray) -> float:
    return float(np.abs(values / others - 1).max())


def _least(arrays: dict[str, np.ndarray], bracket: np.ndarray) -> float:
    return float((arrays[f"threshold_{0.0}"] / bracket).min())


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """The plane of rate and batch size; momentum; the duality, and a kernel where it fails."""
    wrong = _wrong_samples(arrays)
    figure = _style.canvas(
        12.0,
        6.1,
        "SGD loses mean-square stability at the stochastic edge, which small batches move far down",
        "Linear model, own settings: ramp spectrum (largest eigenvalue 2) with flat eigenvectors, or "
        "Gaussian Jacobian. Filled decays, open grows. Strips and bottom right test the lines: exact "
        "expected\nloss, 1 % to each side. Points above the strips: medians of "
        f"{N_RUNS} sampled runs, {int(wrong.sum()) or 'none'} of {wrong.size} on the wrong side; single "
        "runs turn later than the mean, so the grid stays 5 %\noff the lines, with momentum 20 to "
        "25 %. Batches without replacement, bottom right with.",
    )
    edges = _style.margins(figure, left=0.78, right=0.25, top=1.0, bottom=1.24)
    grid = figure.add_gridspec(1, 3, wspace=0.27, **edges)
    for index, draw_pair in enumerate((_draw_plane, _draw_momentum)):
        cell = grid[index].subgridspec(2, 1, height_ratios=(4.6, 1), hspace=0.07)
        top = figure.add_subplot(cell[0])
        draw_pair(top, figure.add_subplot(cell[1]), arrays)
        top.set_ylabel(r"$\eta$   learning rate")
    cell = grid[2].subgridspec(2, 1, hspace=0.75, height_ratios=(1, 1.2))
    _draw_collapse(figure.add_subplot(cell[0]), arrays)
    _draw_general(figure.add_subplot(cell[1]), arrays)
    return figure


def _plain(value: float, _: Any) -> str:
    return f"{value:g}"


def _batch_axis(axes: Axes, ticks: Sequence[int], limits: tuple[float, float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(*limits)
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_locator(NullLocator())


def _rate_axis(axes: Axes, ticks: Sequence[float], limits: tuple[float, float]) -> None:
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    axes.yaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_plane(axes: Axes, strip: Axes, arrays: dict[str, np.ndarray]) -> None:
    every, edge, crossover = arrays["batch"], float(arrays["edge"]), float(arrays["crossover"])
    low = 0.0145
    axes.fill_between(every, low, arrays["exact"], color=_sgd.SGD, alpha=0.09, lw=0)
    axes.axhline(edge, **EDGE)
    axes.plot(every, arrays["trace_line"], **_sgd.LOOKS["trace"])
    axes.plot(every, arrays["exact"], color=_sgd.SGD, lw=1.8)
    axes.plot([crossover] * 2, [low, edge], color=_style.QUIET, lw=0.9, ls=(0, (1, 1.5)))
    columns, rates = np.meshgrid(arrays["plane_batch"], arrays["rate"])
    for grown in (False, True):
        chosen = arrays["plane_grows"] == grown
        style = _style.points(_sgd.SGD, filled=not grown, size=3.6)
        axes.plot(columns[chosen], rates[chosen], **style)
    limits = (0.85, 74.0)
    _batch_axis(axes, (1, 2, 4, 8, 16, 32, 63), limits)
    _rate_axis(axes, (0.02, 0.05, 0.1, 0.2, 0.5, 1), (low, 2.2))
    axes.tick_params(labelbottom=False)
    words = {"fontsize": 7.5, "va": "center"}
    axes.text(0.97, 1.55, r"edge $2/\lambda_{\max}$", color=_style.QUIET, **words)
    axes.text(
        15.2, 1.62, r"trace $2/\kappa\,$tr$\,\Theta$", color=_style.PURPLE, ha="right", **words
    )
    axes.set_title("Rate and batch size", pad=_style.SUBTITLE_PAD)
    text = f"n = {N_PLANE}, flat; line: exact $\\eta_*$; vertical: trace meets edge"
    _style.subtitle(axes, text)
    _draw_strip(strip, arrays["plane_batch"], [(_sgd.SGD, arrays["plane_factor"], 1.0)])
    _batch_axis(strip, (1, 2, 4, 8, 16, 32, 63), limits)


def _draw_strip(
    axes: Axes, batches: np.ndarray, groups: list[tuple[str, np.ndarray, float]]
) -> None:
    """Growth of the expected loss 1 % to each side; groups are (color, factors, shift)."""
    axes.axhline(0, color=groups[0][0] if len(groups) == 1 else _style.INK, lw=1.8)
    for color, factors, shift in groups:
        for column, offset in enumerate(OFFSETS):
            for grown in (False, True):
                chosen = (factors[:, column] > 0) == grown
                style = _style.points(color, filled=not grown, size=3.6)
                axes.plot(
                    batches[chosen] * shift, np.full(int(chosen.sum()), 100 * offset), **style
                )
    axes.set_ylim(-2, 2)
    axes.yaxis.set_major_locator(FixedLocator([-1, 0, 1]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda v, _: f"{v:+g} %".replace("-", "−") if v else r"$\eta_*$")
    )
    axes.grid(visible=False)
    axes.set_xlabel("$B$   batch size")


def _draw_momentum(axes: Axes, strip: Axes, arrays: dict[str, np.ndarray]) -> None:
    every, judged = arrays["small_batch"], arrays["momentum_batch"]
    limits, ticks = (0.83, 19.0), (1, 2, 4, 8, 11, 15)
    groups = []
    for mu in MOMENTA:
        color, line = COLORS[mu], arrays[f"threshold_{mu}"]
        edge = 1 + mu  # 2 (1 + mu) / lambda_max
        shift = 1 + 0.08 * (MOMENTA.index(mu) - 1)  # points of one batch size stand side by side
        axes.plot([13.5, limits[1]], [edge] * 2, color=color, lw=0.9, ls=(0, (4, 3)))
        axes.plot(every, line, color=color, lw=1.8)
        for column, multiple in enumerate(MULTIPLES):
            for grown in (False, True):
                chosen = arrays[f"grows_{mu}"][:, column] == grown
                levels = multiple * line[judged[chosen] - 1]
                style = _style.points(color, filled=not grown, size=3.6)
                axes.plot(judged[chosen] * shift, levels, **style)
        groups.append((color, arrays[f"factor_{mu}"], shift))
    for mu, (x, y) in zip(MOMENTA, ((1.25, 0.235), (2.35, 0.085), (4.2, 0.038)), strict=True):
        axes.text(x, y, f"$\\mu$ = {mu:g}", color=COLORS[mu], fontsize=8)
    _batch_axis(axes, ticks, limits)
    _rate_axis(axes, (0.01, 0.03, 0.1, 0.3, 1, 3), (0.007, 3.2))
    axes.tick_params(labelbottom=False)
    axes.set_title("With momentum", pad=_style.SUBTITLE_PAD)
    text = f"n = {N_MOMENTUM}, flat; dashed: edges $2(1+\\mu)/\\lambda_{{\\max}}$"
    _style.subtitle(axes, text)
    _draw_strip(strip, judged, groups)
    _batch_axis(strip, ticks, limits)


def _draw_collapse(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    kappa = arrays["small_kappa"]
    markers = {0.0: "o", 0.5: "s", 0.9: "D"}
    noise = np.concatenate([kappa * (1 + mu) / (1 - mu) for mu in MOMENTA])
    level = np.concatenate([arrays[f"threshold_{mu}"] / (1 + mu) for mu in MOMENTA])
    order = np.argsort(noise)
    axes.plot(noise[order], level[order], color=_style.QUIET, lw=1.0)
    for mu in MOMENTA:
        style = _style.points(COLORS[mu], size=3.6, marker=markers[mu])
        x, y = kappa * (1 + mu) / (1 - mu), arrays[f"threshold_{mu}"] / (1 + mu)
        axes.plot(x, y, label=f"$\\mu$ = {mu:g}", **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.01, 0.1, 1, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_locator(NullLocator())
    _rate_axis(axes, (0.01, 0.1, 1), (0.004, 1.5))
    axes.legend(loc="lower left", handletextpad=0.2, labelspacing=0.3, borderpad=0.2)
    axes.set_title("Flat: one curve", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "all thresholds of the middle panel")
    axes.set_xlabel(r"$\kappa\,(1+\mu)/(1-\mu)$   noise")
    axes.set_ylabel(r"$\eta_*/(1+\mu)$")


def _draw_general(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    b = np.array(DUAL_LINE)
    axes.axhline(0, color=_style.QUIET, lw=1.4)
    for mu in RATIOS:
        color, off = COLORS[mu], arrays[f"general_off_{mu}"]
        axes.plot(1 / b, off, color=color, lw=1.6)
        factors = arrays[f"dual_factor_{mu}"]
        for column, offset in enumerate(OFFSETS):
            for row, size in enumerate(DUAL_BATCHES):
                style = _style.points(color, filled=factors[row, column] < 0, size=3.2)
                level = (1 + off[DUAL_LINE.index(size)]) * (1 + offset) - 1
                axes.plot([1 / size], [level], **style)
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.058, 1.55)
    axes.xaxis.set_major_locator(FixedLocator([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: "1" if v == 1 else f"1/{1 / v:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.02, 0.26)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.1, 0.2]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:+.0f} %" if v else "0"))
    for mu in RATIOS:
        end = float(arrays[f"general_off_{mu}"][0])
        axes.text(1.12, end, f"$\\mu$ = {mu:g}", color=COLORS[mu], fontsize=7.5, va="center")
    axes.set_title("General kernel: off that curve", pad=_style.SUBTITLE_PAD)
    sizes = f"{N_MOMENTUM} × {2 * N_MOMENTUM}"
    _style.subtitle(axes, f"Gaussian Jacobian {sizes}: exact threshold over that curve")
    axes.set_xlabel(r"$\kappa\,(1+\mu)/(1-\mu)$   noise")
