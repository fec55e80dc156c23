r"""Several noise kernel norms are in use; the exact one is 1 where the second moment begins to grow.

With :math:`x_a = \eta\lambda_a` and kappa the `noise_factor` (see `eosim.stability.noise_kernel_norm`):

- "exact", the largest eigenvalue of the n x n noise kernel: 1 at the threshold, for every NTK;
- "closure" and "finite", :math:`\kappa\sum x/(2 - (1-\kappa)x)`: their thresholds are upper bounds, in this
  order;
- "delocalised", :math:`\kappa\sum x/(2 - x)`, that of Agarwala & Pennington 2024, arXiv 2404.19261: its
  threshold may lie on either side, and errs by O(1/n);
- "trace", :math:`\kappa\,\mathrm{tr}\,\Theta\,\eta/2`: small rates only.

At every rate trace <= finite <= delocalised and finite <= exact. For flat eigenvectors, the ramp spectrum
and B = 1 the delocalised threshold errs by :math:`-4/3n`: there "finite" is :math:`\sum x/2`, to which
"delocalised" adds :math:`\sum x^2/4`, at the threshold 4/3n (derived here).
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from eosim.moments import Covariance
from eosim.stability import (
    TangentKernel,
    critical_lr,
    generalised_sharpness,
    growth_rate,
    noise_kernel_norm,
)
from figures import _sgd, _style
from figures._headline import Row

KINDS = ("exact", "closure", "finite", "delocalised", "trace")
# Our choice: cosines as eigenvectors, neither flat nor localised.
N_SAMPLES, BATCH_SIZE = 16, 4
LIMITS = (0.02, 1.6)  # of the rate, in thresholds
# Our choice: rates at which the exact recursion of the second moment is stepped; they keep off 1.
MEASURED = np.array([0.2, 0.4, 0.6, 0.8, 0.9, 0.94, 0.98, 1.02, 1.06, 1.1, 1.2, 1.3, 1.4, 1.5])
N_STEPS = 1200
# At 0.2 the two slowest parts decay by 0.9790 and 0.9686 per step: (0.9686 / 0.9790)^1200 = 3e-6 is what is
# left of one, and 1e-2 of that in the factor.
FACTOR_TOLERANCE = 1e-7
# Thresholds are eigenvalue problems solved to 1e-14, with roots of a slope of about 1.
ROUNDING = 1e-12
SIZES_FLAT = (8, 16, 32, 64, 128, 256)
# Size and number of draws: as many as give the mean to about a tenth.
DRAWS_QUICK = {16: 120, 32: 60, 64: 30, 128: 12, 256: 6}
DRAWS_FULL = {16: 1000, 32: 400, 64: 200, 128: 80, 256: 24, 512: 8}
# The next order of the flat error is of the relative size 3/n: (1 + 2/n) / (1 + ...) at n = 64.
LEADING_TOLERANCE = 0.05
# 1/n at large sizes, from below: at n = 16 the error saturates. The mean of 4 draws scatters by 10 %.
SLOPE, SLOPE_TOLERANCE = -1.0, 0.35


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Norms and growth over the rate, thresholds, and the error of one of them over the size."""
    kernel = _sgd.cosine_kernel(N_SAMPLES)
    thresholds = np.array([critical_lr(kernel, BATCH_SIZE, kind=kind) for kind in KINDS])
    critical = float(thresholds[0])
    ratio = np.unique(np.append(np.linspace(*LIMITS, 80 if quick else 400), 1.0))
    arrays = {
        "threshold": thresholds,
        "closed_form": np.array(2 / generalised_sharpness(kernel, BATCH_SIZE)),
        "ratio": ratio,
        "growth": np.array([growth_rate(kernel, r * critical, BATCH_SIZE) for r in ratio]),
        "measured": MEASURED,
    }
    for kind in KINDS:
        norms = [noise_kernel_norm(kernel, r * critical, BATCH_SIZE, kind=kind) for r in ratio]
        arrays[kind] = np.array(norms)
    rates = [float(r) * critical for r in MEASURED]
    arrays["factor"] = np.array([_factor(kernel, lr) for lr in rates])
    arrays["factor_expected"] = np.array([growth_rate(kernel, lr, BATCH_SIZE) for lr in rates])

    arrays["flat_size"] = np.array(SIZES_FLAT)
    flat = [_error(_sgd.ramp(n), 1, "finite") for n in SIZES_FLAT]
    arrays["flat_error"] = np.array(flat)
    draws = DRAWS_QUICK if quick else DRAWS_FULL
    arrays["size"] = np.array(list(draws))
    for n, count in draws.items():
        kernels = (_sgd.gaussian_kernel(n, 2 * n, [n, seed]) for seed in range(count))
        arrays[f"gaussian_{n}"] = np.array([_error(ntk, n // 8, "exact") for ntk in kernels])
    return arrays


def _factor(kernel: TangentKernel, lr: float) -> float:
    """Late factor per step of the second moment, by steps that keep its trace at 1."""
    model = Covariance(kernel, lr, BATCH_SIZE)
    moments = model.start(np.eye(N_SAMPLES))
    factor = np.nan
    for _ in range(N_STEPS):
        scaled = moments.residual / np.trace(moments.residual)
        moments = model.step(moments._replace(residual=scaled))
        factor = float(np.trace(moments.residual))
    return factor


def _error(kernel: object, batch_size: int, truth: str) -> float:
    """Of the delocalised threshold, relatively."""
    exact = critical_lr(kernel, batch_size, kind=truth)
    return critical_lr(kernel, batch_size, kind="delocalised") / exact - 1


def _means(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean error over draws at each size, and its standard error."""
    draws = [arrays[f"gaussian_{n}"] for n in arrays["size"]]
    errors = [values.std(ddof=1) / np.sqrt(len(values)) for values in draws]
    return np.array([values.mean() for values in draws]), np.array(errors)


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """All exact routes cross 1 together; the order of norms and of thresholds; the 1/n errors."""
    at = int(np.flatnonzero(arrays["ratio"] == 1)[0])
    exact, closure, finite, delocalised, _ = arrays["threshold"]
    norms = {kind: arrays[kind] for kind in KINDS}
    below = np.isfinite(norms["delocalised"])
    order = min(
        float((norms[large] - norms[small])[below].min())
        for small, large in (("trace", "finite"), ("finite", "delocalised"), ("finite", "exact"))
    )
    same_side = (norms["exact"] > 1) == (arrays["growth"] > 1)
    same_side[at] = True
    gap = np.abs(arrays["factor"] / arrays["factor_expected"] - 1).max()
    leading = arrays["flat_error"] * arrays["flat_size"] / (-4 / 3)
    means, errors = _means(arrays)
    wide = arrays["size"] >= 64
    slope = np.polyfit(np.log(arrays["size"][wide]), np.log(means[wide]), 1)[0]
    return [
        Row("threshold: K exact", 1, ROUNDING, float(norms["exact"][at])),
        Row("threshold: growth_rate", 1, ROUNDING, float(arrays["growth"][at])),
        Row("threshold / closed form", 1, ROUNDING, float(exact / arrays["closed_form"])),
        Row("rates where K and growth_rate disagree", 0, 0, int((~same_side).sum())),
        Row("|factor of the recursion / growth_rate - 1|", FACTOR_TOLERANCE, 0, gap, "at most"),
        Row("trace <= finite <= delocalised, exact; least gap", 0, 0, order, "at least"),
        Row("closure threshold / exact", 1, 0, float(closure / exact), "at least"),
        Row("finite threshold / closure's", 1, 0, float(finite / closure), "at least"),
        Row(
            "cosines: |delocalised threshold / exact - 1|",
            0.03,
            0,
            abs(delocalised / exact - 1),
            "at most",
        ),
        Row(
            "flat: error / (-4/3n), n = 64",
            1,
            LEADING_TOLERANCE,
            float(leading[SIZES_FLAT.index(64)]),
        ),
        Row("Gaussian: mean error in SE, least", 4, 0, float((means / errors).min()), "at least"),
        Row("Gaussian: slope of the mean error, n >= 64", SLOPE, SLOPE_TOLERANCE, float(slope)),
    ]


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """The norms over the rate, the neighbourhood of 1, and errors over the size."""
    figure = _style.canvas(
        12.0,
        4.6,
        "Only the exact noise kernel norm is 1 where the second moment begins to grow",
        f"Ramp spectrum (largest eigenvalue 2); left and middle: n = {N_SAMPLES}, batches of {BATCH_SIZE}, "
        "cosines as eigenvectors. Points: factor per step of the exact second moment (filled decays, open "
        "grows). Own settings.",
    )
    edges = _style.margins(figure, left=0.78, right=0.25, top=1.0, bottom=0.95)
    grid = figure.add_gridspec(1, 3, wspace=0.27, **edges)
    whole, near, sizes = (figure.add_subplot(grid[column]) for column in range(3))
    _draw_norms(whole, arrays)
    whole.set_xlim(0, LIMITS[1])
    whole.set_ylim(0, 2.25)
    whole.set_title("Norms and growth over the rate", pad=_style.SUBTITLE_PAD)
    _style.subtitle(whole, r"noise kernel norms, and growth of the second moment")
    whole.set_ylabel(r"$K$,   $\rho$")
    _draw_legend(whole)
    _draw_norms(near, arrays)
    near.set_xlim(0.93, 1.13)
    near.set_ylim(0.9, 1.15)
    near.xaxis.set_major_locator(FixedLocator([0.95, 1, 1.05, 1.1]))
    near.set_title("Near the threshold", pad=_style.SUBTITLE_PAD)
    _style.subtitle(near, "where each $K$ is 1: its threshold")
    for kind, threshold in zip(KINDS, arrays["threshold"], strict=True):
        x = threshold / arrays["threshold"][0]
        near.plot([x], [1], marker="|", ms=9, mew=1.8, color=_sgd.LOOKS[kind]["color"], zorder=5)
    for axes in (whole, near):
        axes.set_xlabel(r"$\eta/\eta_*$   rate / exact threshold")
    _draw_sizes(sizes, arrays)
    return figure


def _draw_norms(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.axhline(1, color=_style.QUIET, lw=0.7)
    axes.axvline(1, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    for kind in reversed(KINDS):
        axes.plot(arrays["ratio"], arrays[kind], **_sgd.LOOKS[kind])
    axes.plot(arrays["ratio"], arrays["growth"], color=_sgd.SGD, lw=1.5)
    for grown in (False, True):
        chosen = (arrays["factor"] > 1) == grown
        style = _style.points(_sgd.SGD, filled=not grown)
        axes.plot(arrays["measured"][chosen], arrays["factor"][chosen], **style)


def _draw_legend(axes: Axes) -> None:
    handles = [Line2D([], [], label=f"$K$ {kind}", **_sgd.LOOKS[kind]) for kind in KINDS]
    growth = {"color": _sgd.SGD, "lw": 1.5, "marker": "o", "ms": 4.5}
    handles.append(Line2D([], [], label=r"$\rho$, factor per step", **growth))
    axes.legend(handles=handles, loc="upper left", handlelength=2.6, labelspacing=0.35)


def _draw_sizes(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    means, errors = _means(arrays)
    color = _sgd.LOOKS["delocalised"]["color"]
    for n in arrays["size"]:
        values = arrays[f"gaussian_{n}"]
        x = n * np.exp(np.linspace(-0.14, 0.14, len(values)))
        axes.plot(x, values, ls="none", marker=".", ms=3, mew=0, color=color, alpha=0.35)
    style = _style.points(color, size=6)
    axes.errorbar(arrays["size"], means, 2 * errors, elinewidth=1.0, ecolor=color, **style)
    n = np.geomspace(6.5, 640, 50)
    axes.plot(n, -4 / (3 * n), color=_style.INK, lw=1.2)
    axes.plot(
        arrays["flat_size"], arrays["flat_error"], **_style.points(_style.INK, size=5, marker="s")
    )
    axes.axhline(0, color=_style.QUIET, lw=0.7)
    axes.set_xscale("log", base=2)
    axes.set_yscale("symlog", linthresh=0.01, linscale=0.35)
    axes.set_xlim(6.5, 1.25 * max(arrays["size"].max(), 256))
    axes.set_ylim(-0.5, 1.2)
    axes.xaxis.set_major_locator(FixedLocator([8, 16, 32, 64, 128, 256, 512]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(FixedLocator([-0.1, -0.01, 0, 0.01, 0.1, 1]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.set_title("Error of the delocalised threshold", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "small points: draws; large: mean, bars 2 standard errors")
    axes.set_xlabel("$n$   samples")
    axes.text(40, 0.25, "Gaussian $n$ × $2n$, $B = n/8$", color=color, fontsize=8)
    axes.text(9.5, -0.28, "flat, ramp, $B$ = 1; line: $-4/3n$", color=_style.INK, fontsize=8)


def _percent(value: float, _: object) -> str:
    return f"{100 * value:+g} %".replace("-", "−") if value else "0"
