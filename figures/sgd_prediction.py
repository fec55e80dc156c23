r"""The expected loss of SGD follows from recursions, without a single sample.

On a linear model the second moments of the residuals close: an exact recursion of n x n matrices, and
three that keep one number per mode of the NTK, hence cost as much as gradient descent
(`DiagonalClosure`). "closure" drops the correlations of modes, "finite" also takes the eigenvectors as
flat, "delocalised" is the limit of many samples: the Volterra equation of Agarwala & Pennington 2024,
arXiv 2404.19261, stepped as a recursion. Averaged over random starts all three approach the exact loss
as the problem grows; from one fixed start the error is random, and several times larger (2 % for the
closure at n = 64, at most 5 % in 12 draws). "homogenised" is their limit in continuous time (Paquette
et al. 2022, arXiv 2205.07069), whose error falls with the rate and not with the size. Late losses fall by
`eosim.stability.growth_rate` per step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import eosim
from eosim import run_ensemble
from eosim.moments import Covariance, DiagonalClosure, Energies, HomogenizedSGD
from eosim.sampling import noise_factor
from eosim.stability import TangentKernel, growth_rate
from figures import _sgd, _style
from figures._headline import Row

# Our choice: twice as many parameters as samples, an eighth of the samples per batch.
N_SAMPLES, PARAMETERS, BATCHES = 64, 2, 8
SEED = 0
N_STEPS = 60
RUNS_QUICK, RUNS_FULL = 1500, 12000
# Our choice: in units of 1 / (lambda_max + kappa tr), half of a lower bound of the threshold that is
# exact up to that factor 2; with momentum lambda_max and kappa rescale by (1 -+ mu) / (1 + mu).
RATE = 1.2
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.0, "sampling": "without_replacement"},
    "momentum": {"momentum": 0.9, "sampling": "with_replacement"},
}
# Our choice: by then the part of the moments that decays second slowest is 1e-10 of the slowest.
LATE_STEPS, LATE_TOLERANCE = 3200, 1e-9
SHOWN = 1000
MOMENTUM = "#8a4b12"  # brown: every other colour is a theory or the samples
SIZES_QUICK, SIZES_FULL = (16, 32, 64, 128), (16, 32, 64, 128, 256)
DRAWS_QUICK, DRAWS_FULL = 12, 40
# 122 means, most of them correlated with the one before: the largest of 20 independent normals stays
# below 4 with a probability of 0.999.
STANDARD_ERRORS = 4.0
# Our choice: the largest error of any closure on this draw, of order 1/n times a few.
BOUNDS = {"plain": 0.03, "momentum": 0.04}
# The leading error of a diagonal closure is of order 1/n; the closures' own is smaller at these sizes
# and falls faster. 12 draws scatter by 50 % at n = 16, which turns a slope over 3 octaves by 0.2.
SLOPE_TOLERANCE = 0.2
# Rates over RATE at which homogenised SGD is judged. Its error changes sign near 0.6 of that rate: if it
# is c r (1 - r / 0.6) there, the two errors have the ratio 0.53, and 1/2 to leading order.
SLOW_RATES, SLOW_TOLERANCE = (1 / 16, 1 / 32), 0.05

KINDS = ("closure", "finite", "delocalised")


def _rate(kernel: TangentKernel, batch_size: int, momentum: float, sampling: str) -> float:
    kappa = noise_factor(kernel.n_samples, batch_size, sampling)
    scaled = kappa * (1 + momentum) / (1 - momentum)
    return RATE * (1 + momentum) / (kernel.largest + scaled * kernel.trace)


def _sampled(
    kernel: TangentKernel, lr: float, batch_size: int, n_runs: int, momentum: float, sampling: str
) -> np.ndarray:
    """Losses of SGD from standard normal residuals, (n_runs, N_STEPS + 1)."""
    ensemble = run_ensemble(
        _sgd.problem(kernel),
        eosim.HeavyBall(lr, momentum) if momentum else eosim.GradientDescent(lr),
        None,
        N_STEPS,
        batch_sizes=batch_size,
        n_replicas=n_runs,
        seed=SEED,
        sampling=sampling,
        residuals0=np.random.default_rng(SEED).standard_normal((n_runs, kernel.n_samples)),
    )
    return ensemble["loss"][0, 0]


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Exact, closed and sampled losses; the factor per step at late times; errors over the size."""
    arrays: dict[str, np.ndarray] = {}
    kernel = _sgd.gaussian_kernel(N_SAMPLES, PARAMETERS * N_SAMPLES, SEED)
    batch_size = N_SAMPLES // BATCHES
    for name, setting in SETTINGS.items():
        lr = _rate(kernel, batch_size, **setting)
        exact = Covariance(kernel, lr, batch_size, **setting)
        start, energies = np.eye(N_SAMPLES), Energies(np.ones(N_SAMPLES))
        late = eosim.predict(exact, start, LATE_STEPS)["loss"]
        arrays[f"{name}_exact"], arrays[f"{name}_factor"] = (
            late[: N_STEPS + 1],
            late[1:] / late[:-1],
        )
        arrays[f"{name}_growth"] = np.array(growth_rate(kernel, lr, batch_size, **setting))
        for kind in KINDS:
            model = DiagonalClosure(kernel, lr, batch_size, kind=kind, **setting)
            arrays[f"{name}_{kind}"] = eosim.predict(model, energies, N_STEPS)["loss"]
        losses = _sampled(kernel, lr, batch_size, RUNS_QUICK if quick else RUNS_FULL, **setting)
        arrays[f"{name}_mean"] = losses.mean(axis=0)
        arrays[f"{name}_error"] = losses.std(axis=0, ddof=1) / np.sqrt(len(losses))
        arrays[f"{name}_runs"], arrays[f"{name}_count"] = losses[:12], np.array(len(losses))
        arrays[f"{name}_lr"] = np.array(lr)
    lr = float(arrays["plain_lr"])
    homogenised = HomogenizedSGD(kernel, lr, batch_size)
    arrays["plain_homogenised"] = eosim.predict(homogenised, energies, N_STEPS)["loss"]
    arrays["slow"] = np.array([_slow_error(kernel, batch_size, lr, rate) for rate in SLOW_RATES])
    sizes = SIZES_QUICK if quick else SIZES_FULL
    draws = range(DRAWS_QUICK if quick else DRAWS_FULL)
    errors = np.array([[_errors(size, seed) for seed in draws] for size in sizes])
    arrays["size"] = np.array(sizes)
    for index, kind in enumerate((*KINDS, "homogenised")):
        arrays[f"size_{kind}"] = errors[:, :, index]  # (size, draw)
    return arrays


def _slow_error(kernel: TangentKernel, batch_size: int, lr: float, rate: float) -> float:
    """Error of homogenised SGD at a part of the rate, over the same time."""
    n_steps = round(N_STEPS / rate)
    truth = Covariance(kernel, rate * lr, batch_size)
    exact = eosim.predict(truth, np.eye(kernel.n_samples), n_steps)["loss"]
    return _largest_error(HomogenizedSGD(kernel, rate * lr, batch_size), exact)


def _largest_error(model: Any, exact: np.ndarray) -> float:
    """Largest |loss / exact - 1| from random starts."""
    energies = Energies(np.ones(model.kernel.n_samples))
    loss = eosim.predict(model, energies, len(exact) - 1)["loss"]
    return float(np.abs(loss / exact - 1).max())


def _errors(size: int, seed: int) -> list[float]:
    """Of the closures and of homogenised SGD on one draw."""
    kernel = _sgd.gaussian_kernel(size, PARAMETERS * size, [size, seed])
    batch_size = size // BATCHES
    lr = _rate(kernel, batch_size, **SETTINGS["plain"])
    exact = eosim.predict(Covariance(kernel, lr, batch_size), np.eye(size), N_STEPS)["loss"]
    models: list[Any] = [DiagonalClosure(kernel, lr, batch_size, kind=kind) for kind in KINDS]
    models.append(HomogenizedSGD(kernel, lr, batch_size))
    return [_largest_error(model, exact) for model in models]


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Closures within a few per cent, samples within a few standard errors, the late rate."""
    rows = []
    for name, bound in BOUNDS.items():
        for kind in KINDS:
            gap = np.abs(arrays[f"{name}_{kind}"] / arrays[f"{name}_exact"] - 1).max()
            text = f"{name}, {kind}: |loss / exact - 1|"
            rows.append(Row(text, bound, 0, float(gap), "at most"))
        away = (arrays[f"{name}_mean"] - arrays[f"{name}_exact"]) / arrays[f"{name}_error"]
        text = f"{name}: |mean of {arrays[f'{name}_count']} runs - exact| / SE"
        rows.append(Row(text, STANDARD_ERRORS, 0, float(np.abs(away).max()), "at most"))
        late = arrays[f"{name}_factor"][-1] / arrays[f"{name}_growth"] - 1
        rows.append(
            Row(f"{name}: |late factor / growth_rate - 1|", LATE_TOLERANCE, 0, abs(late), "at most")
        )
    for kind in KINDS:
        median = np.median(arrays[f"size_{kind}"], axis=1)
        slope = np.polyfit(np.log(arrays["size"]), np.log(median), 1)[0]
        text = f"{kind}: slope of the error over n"
        rows.append(Row(text, -1, SLOPE_TOLERANCE, float(slope), "at most"))
    half = float(arrays["slow"][1] / arrays["slow"][0])
    rows.append(Row("homogenised: error at 1/32 rate / at 1/16", 0.5, SLOW_TOLERANCE, half))
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Loss and its deviation from the exact one, plain and with momentum; late factor; sizes."""
    figure = _style.canvas(
        12.0,
        7.0,
        "The expected loss of SGD follows from recursions, without a single sample",
        f"Gaussian Jacobian, n = {N_SAMPLES} samples, {PARAMETERS * N_SAMPLES} parameters, batches of "
        f"{N_SAMPLES // BATCHES}, standard normal residuals at the start; "
        f"{int(arrays['plain_count'])} runs, bars: 2 standard errors. Own settings.\n"
        "One number per mode: closure (modes uncorrelated), finite (flat eigenvectors too), delocalised "
        "(many samples too); homogenised: the last in continuous time.",
    )
    _draw_legend(figure)
    edges = _style.margins(figure, left=0.78, right=0.25, top=1.38, bottom=1.02)
    grid = figure.add_gridspec(2, 3, wspace=0.27, hspace=0.16, height_ratios=(1.25, 1), **edges)
    titles = {
        "plain": ("Plain SGD", "batches without replacement"),
        "momentum": (f"Momentum {SETTINGS['momentum']['momentum']:g}", "batches with replacement"),
    }
    for column, (name, (title, text)) in enumerate(titles.items()):
        top, bottom = (figure.add_subplot(grid[row, column]) for row in range(2))
        _draw_loss(top, arrays, name)
        _draw_deviation(bottom, arrays, name)
        top.set_title(title, pad=_style.SUBTITLE_PAD)
        lr = float(arrays[f"{name}_lr"])
        _style.subtitle(top, f"{text}; $\\eta$ = {lr:.3g}")
        if column == 0:
            top.set_ylabel("E$L$   expected loss")
            bottom.set_ylabel("loss / exact loss − 1")
    last = grid[:, 2].subgridspec(2, 1, hspace=0.62)
    _draw_factor(figure.add_subplot(last[0]), arrays)
    _draw_sizes(figure.add_subplot(last[1]), arrays)
    return figure


def _draw_legend(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    names = ("exact", *KINDS, "homogenised")
    handles = [
        Line2D([], [], label="mean of sampled SGD", **_style.points(_sgd.SGD)),
        Line2D([], [], color=_sgd.SGD, lw=0.8, alpha=0.35, label="single runs"),
        *(Line2D([], [], label=name, **_sgd.LOOKS[name]) for name in names),
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        ncols=len(handles),
        columnspacing=1.8,
        handletextpad=0.6,
        handlelength=2.4,
        bbox_to_anchor=(0.08 / width, 1 - 0.42 / height),
    )


def _models(arrays: dict[str, np.ndarray], name: str) -> list[str]:
    kinds = ("homogenised", "delocalised", "finite", "closure", "exact")
    return [kind for kind in kinds if f"{name}_{kind}" in arrays]


def _draw_loss(axes: Axes, arrays: dict[str, np.ndarray], name: str) -> None:
    steps = np.arange(N_STEPS + 1)
    axes.plot(steps, arrays[f"{name}_runs"].T, color=_sgd.SGD, lw=0.8, alpha=0.22)
    for kind in _models(arrays, name):
        axes.plot(steps, arrays[f"{name}_{kind}"], **_sgd.LOOKS[kind])
    shown = steps[::3]
    axes.errorbar(
        shown,
        arrays[f"{name}_mean"][shown],
        2 * arrays[f"{name}_error"][shown],
        elinewidth=1.0,
        ecolor=_sgd.SGD,
        **_style.points(_sgd.SGD, size=4),
    )
    axes.set_yscale("log")
    axes.set_xlim(-1, N_STEPS + 1)
    axes.set_ylim(0.006, 0.9)
    axes.yaxis.set_major_locator(FixedLocator([0.01, 0.03, 0.1, 0.3]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelbottom=False)


def _percent(value: float, _: Any) -> str:
    return f"{100 * value:+.3g} %".replace("-", "−") if value else "0"


def _draw_deviation(axes: Axes, arrays: dict[str, np.ndarray], name: str) -> None:
    steps, exact = np.arange(N_STEPS + 1), arrays[f"{name}_exact"]
    for kind in _models(arrays, name):
        axes.plot(steps, arrays[f"{name}_{kind}"] / exact - 1, **_sgd.LOOKS[kind])
    shown = steps[::3]
    axes.errorbar(
        shown,
        (arrays[f"{name}_mean"] / exact - 1)[shown],
        (2 * arrays[f"{name}_error"] / exact)[shown],
        elinewidth=1.0,
        ecolor=_sgd.SGD,
        **_style.points(_sgd.SGD, size=4),
    )
    axes.set_xlim(-1, N_STEPS + 1)
    axes.set_ylim(-0.11, 0.07)
    axes.yaxis.set_major_locator(FixedLocator([-0.1, -0.05, 0, 0.05]))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.set_xlabel("step")


def _draw_factor(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    for name, color, (x, y) in (
        ("plain", _sgd.LOOKS["exact"]["color"], (32, 0.925)),
        ("momentum", MOMENTUM, (1.25, 0.985)),
    ):
        factor, limit = arrays[f"{name}_factor"][:SHOWN], float(arrays[f"{name}_growth"])
        axes.axhline(limit, color=color, lw=0.9, ls=(0, (4, 3)))
        axes.plot(np.arange(1, len(factor) + 1), factor, color=color, lw=1.5)
        axes.text(x, y, f"{name}, late {limit:.4f}", fontsize=8, color=color)
    axes.set_xscale("log")
    axes.set_xlim(1, SHOWN)
    axes.set_ylim(0.9, 1)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title("Factor per step of the exact loss", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "dashed: spectral radius of the second-moment operator")
    axes.set_xlabel("step")


def _draw_sizes(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    size, draws = arrays["size"], arrays["size_closure"].shape[1]
    for kind in ("homogenised", *reversed(KINDS)):
        errors = arrays[f"size_{kind}"]
        color = _sgd.LOOKS[kind]["color"]
        spread = np.exp(np.linspace(-0.12, 0.12, errors.shape[1]))
        axes.plot(
            (size[:, None] * spread).ravel(),
            errors.ravel(),
            ls="none",
            marker=".",
            ms=3.2,
            mew=0,
            color=color,
            alpha=0.5,
        )
        axes.plot(size, np.median(errors, axis=1), **{**_sgd.LOOKS[kind], "lw": 1.2})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(size)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.set_title("Error over the size", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, f"plain SGD; largest over {N_STEPS} steps, {draws} draws and median")
    axes.set_xlabel("$n$   samples")
