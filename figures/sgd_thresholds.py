r"""One exact learning rate decides whether SGD stays at a minimum; known bounds form a ladder around it.

Linearised SGD at an interpolating minimum is stable in mean square up to `eosim.stability.critical_lr`.
It rises as :math:`2B/\mathrm{tr}\,H` at small batch sizes B and ends at :math:`2/\lambda_{\max}`; on the
way :math:`2/(\kappa\,\mathrm{tr}\,H + (1 - \kappa)\lambda_{\max})` lies below the bound of flat
eigenvectors ("finite"), :math:`\kappa = (n - B)/(B(n - 1))`. The ladder: `eosim.stability.lr_bounds`.

The Frobenius bound of Wu, Wang & Su 2022, arXiv 2207.02628, :math:`|H|_F \le (\kappa\mu_0)^{-1/2}/\eta`,
needs the alignment :math:`\mu_0` of the centred noise. With that of the uncentred second moment, which is
exactly 1 for the circle model, it is no bound: sixteen equally spaced inputs and ReLU features on the
circle are stable up to 8 at B = 1, and :math:`1/|H|_F` is 7.48.

With noise proportional to the loss and t equal modes per batch size (:math:`t = r/B`) the exact rate is

.. math:: \frac{2\sqrt t}{1 + t},\qquad \frac{t}{1 + t},\qquad \frac{1}{1 + t}

of the Frobenius bound, of the trace bound :math:`2B/\mathrm{tr}\,H` and of :math:`2/\lambda_{\max}`. The
first binds for 1/4 < t < 4, and is attained at t = 1 alone. So it is for SGD on n orthogonal gradients of
one norm, without replacement, with :math:`t = n/B - 1` (the second one times n/(n - 1)). Other spectra lie
below the first curve at :math:`t = (\mathrm{tr}\,H)^2/(B|H|_F^2)`: Cauchy and Schwarz on
:math:`\sum_a x_a/(2-x_a) = B`, :math:`x_a = \eta\lambda_a`.

Simulated are the exact second moments, from parameters that start isotropic around the minimum. The step
is symmetric on them, so that :math:`E|\theta_t - \theta^*|^2 = \sum_a c_a q_a^t` with :math:`c_a \ge 0`:
at even steps it falls all the way at a stable rate, and once it has risen it does not fall again.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import eosim
from eosim.moments import Covariance
from eosim.problems import circle_coefficient
from eosim.sampling import noise_factor
from eosim.stability import TangentKernel, tangent_kernel
from eosim.stability.bounds import loss_proportional_critical_lr, lr_bounds
from figures import _sgd, _style
from figures._headline import Row

# Our choice: the coefficients of the circle model have closed forms if 4 divides its size.
CIRCLE = 16
# Our choice: many more features than samples, so that every residual is possible.
SAMPLES_QUICK, SAMPLES_FULL = 100, 300
INPUTS, FEATURES, SEED = 10, 1000, 0
N_SIZES = 24
# Our choice: the batch sizes of simulated verdicts, and rates over the exact threshold. 2 % beyond it the
# slowest case (300 samples, B = 1) grows by 3 % in the second half of the steps.
VERDICT_SIZES = {"circle": (1, 2, 4, 8, 12, 15), "sphere": (1, 3, 10, 30, 90)}
OFFSETS = np.array([0.5, 0.7, 0.85, 0.98, 1.02, 1.2, 1.5, 2.2])
N_STEPS = 200
# Noise proportional to the loss: modes from 1 to 4 B (our choice), and random spectra, whose logarithms
# are uniform over a random number of decades.
BATCH, N_SPECTRA = 16, 400
ORTHOGONAL, ORTHOGONAL_SIZES = 48, (1, 2, 3, 4, 6, 8, 12, 16, 24, 30, 36, 42, 45, 47)
# Both sides of an inequality are computed to about 1e-12.
ROUNDING = 1e-10

MODELS = ("circle", "sphere", "gaussian")
TITLES = {"circle": "Circle model", "sphere": "Random ReLU features, inputs on the sphere"}
# The order in which each bound must not lie above the next.
CHAINS = (
    ("wu_2018", "exact", "closure", "finite", "generalised_trace", "trace"),
    ("loss", "exact", "rank_one", "top_eigenvector", "edge"),
    ("exact", "trace_samples"),
    ("exact", "frobenius"),
    ("exact", "frobenius_uncentred"),
    ("finite", "edge"),
)
BOUNDS = tuple(dict.fromkeys(name for chain in CHAINS for name in chain))
EDGE: dict[str, Any] = {"color": _style.QUIET, "lw": 1.1, "ls": (0, (4, 3))}
LOOKS: dict[str, dict[str, Any]] = {
    "loss": {"color": "#8a4b12", "lw": 1.5, "ls": (0, (1, 1.6))},
    "wu_2018": {"color": _style.SKY, "lw": 1.6, "ls": "-"},
    "trace": _sgd.LOOKS["trace"],
    "edge": EDGE,
    "frobenius": {"color": _style.VERMILLION, "lw": 1.6, "ls": (0, (7, 1.6, 1, 1.6, 1, 1.6))},
    "finite": _sgd.LOOKS["finite"],
    "closure": _sgd.LOOKS["closure"],
    "exact": {**_sgd.LOOKS["exact"], "lw": 1.9},
}
PLAIN: dict[str, Any] = {"color": _style.VERMILLION, "lw": 1.0, "ls": (0, (1, 1.2))}
LABELS = {
    "exact": "exact",
    "closure": "diagonal",
    "finite": "uniform",
    "trace": r"trace, $2/\kappa\,\mathrm{tr}\,H$",
    "edge": r"$2/\lambda_{\max}$",
    "frobenius": "Frobenius, centred",
    "wu_2018": "Wu 2018, sufficient",
    "loss": "loss, sufficient",
}


def _kernel(name: str, n_samples: int) -> TangentKernel:
    if name == "circle":
        problem = eosim.RandomFeatures.circle(CIRCLE)
    else:
        problem = eosim.RandomFeatures.draw(n_samples, INPUTS, FEATURES, seed=SEED, inputs=name)
    return tangent_kernel(problem, np.zeros(problem.dim))


def grows(kernel: TangentKernel, lr: float, batch_size: int) -> bool:
    """Whether the expected squared distance to the minimum rises over the second half of the steps."""
    V = kernel.vectors()
    inverse = (V / kernel.eigenvalues) @ V.T
    model = Covariance(kernel, lr, batch_size)
    moments = model.start(kernel.matrix)  # residuals J (theta - theta*), isotropic in theta
    middle = 0.0
    for step in range(N_STEPS + 1):
        if step:
            moments = model.step(moments)
        if step == N_STEPS // 2:
            middle = float(np.vdot(inverse, moments.residual))
    return float(np.vdot(inverse, moments.residual)) > middle


def compute(quick: bool) -> dict[str, np.ndarray]:
    """The ladder over the batch size, verdicts about it, and where its bounds are attained."""
    n_samples = SAMPLES_QUICK if quick else SAMPLES_FULL
    arrays: dict[str, np.ndarray] = {}
    for name in MODELS:
        kernel = _kernel(name, n_samples)
        n = kernel.n_samples
        sizes = np.unique(np.geomspace(1, n, N_SIZES).round().astype(int))
        if name == "circle":
            sizes = np.arange(1, n + 1)
        ladder = [lr_bounds(kernel, int(size)) for size in sizes]
        arrays |= {
            f"{name}_{bound}": np.array([found[bound].value for found in ladder])
            for bound in BOUNDS
        }
        kappa = np.array([noise_factor(n, int(size)) for size in sizes])
        arrays[f"{name}_size"], arrays[f"{name}_kappa"] = sizes, kappa
        arrays[f"{name}_spectrum"] = kernel.eigenvalues
        if name not in VERDICT_SIZES:
            continue
        verdict_sizes = np.array(VERDICT_SIZES[name])
        thresholds = [lr_bounds(kernel, int(size))["exact"].value for size in verdict_sizes]
        rates = np.outer(thresholds, OFFSETS)
        arrays[f"{name}_verdict_size"], arrays[f"{name}_verdict_rate"] = verdict_sizes, rates
        arrays[f"{name}_grows"] = np.array(
            [
                [grows(kernel, rate, int(size)) for rate in row]
                for size, row in zip(verdict_sizes, rates, strict=True)
            ]
        )
    return arrays | _proportional() | _orthogonal()


def _proportional() -> dict[str, np.ndarray]:
    """Thresholds with noise 2 L H / B: of r equal modes and of random spectra."""
    modes = np.arange(1, 4 * BATCH + 1)
    equal = np.array([loss_proportional_critical_lr(np.ones(r), 1 / BATCH) for r in modes])
    rng = np.random.default_rng(SEED)
    share, ratio = [], []
    for _ in range(N_SPECTRA):
        n_modes = int(np.exp(rng.uniform(0, np.log(64 * BATCH))))
        spectrum = 10.0 ** (-rng.uniform(0, 2) * rng.random(n_modes))
        norm, trace = np.linalg.norm(spectrum), spectrum.sum()
        threshold = loss_proportional_critical_lr(spectrum, 1 / BATCH)
        share.append((trace / norm) ** 2 / BATCH)
        ratio.append(threshold * norm / np.sqrt(BATCH))
    return {
        "equal_modes": modes,
        "equal_rate": equal,
        "other_share": np.array(share),
        "other_ratio": np.array(ratio),
    }


def _orthogonal() -> dict[str, np.ndarray]:
    """Bounds of SGD on orthogonal gradients of one norm."""
    sizes = np.array(ORTHOGONAL_SIZES)
    ladder = [lr_bounds(np.eye(ORTHOGONAL), int(size)) for size in sizes]
    found = {"orthogonal_size": sizes}
    for bound in ("exact", "frobenius", "trace", "edge"):
        found[f"orthogonal_{bound}"] = np.array([one[bound].value for one in ladder])
    return found


def _share_curves(t: np.ndarray) -> dict[str, np.ndarray]:
    """exact / bound for t B equal modes."""
    return {"frobenius": 2 * np.sqrt(t) / (1 + t), "trace": t / (1 + t), "edge": 1 / (1 + t)}


def _plain(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """What the Frobenius bound would be with the uncentred alignment 1; infinite without noise."""
    norm = np.linalg.norm(arrays[f"{name}_spectrum"])
    kappa = arrays[f"{name}_kappa"]
    return np.divide(1, norm * np.sqrt(kappa), out=np.full(len(kappa), np.inf), where=kappa > 0)


def _simple(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    r"""2 / (kappa tr + (1 - kappa) lambda_max): linear in B at small B, then saturated."""
    kappa, spectrum = arrays[f"{name}_kappa"], arrays[f"{name}_spectrum"]
    return 2 / (kappa * spectrum.sum() + (1 - kappa) * spectrum.max())


def _violations(arrays: dict[str, np.ndarray]) -> tuple[int, int]:
    """Pairs of the ladder in the wrong order, and pairs."""
    wrong = total = 0
    for name in MODELS:
        for chain in CHAINS:
            for low, high in itertools.pairwise(chain):
                below = arrays[f"{name}_{low}"] <= arrays[f"{name}_{high}"] * (1 + ROUNDING)
                wrong, total = wrong + int((~below).sum()), total + below.size
    return wrong, total


def _wrong(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Whether each verdict contradicts the exact threshold."""
    return np.concatenate([(arrays[f"{n}_grows"] != (OFFSETS > 1)).ravel() for n in VERDICT_SIZES])


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """The ladder and the verdicts, closed forms of the circle model, where bounds are attained."""
    exact, edge = arrays["circle_exact"], arrays["circle_edge"]
    coefficients = np.array([circle_coefficient(k, size=CIRCLE) for k in range(CIRCLE)])
    norm = np.sqrt(np.sum(coefficients**4))
    wrong, total = _violations(arrays)
    verdicts = _wrong(arrays)
    flat = np.abs(arrays["circle_finite"] / exact - 1).max()
    least = (arrays["circle_exact"] / _simple(arrays, "circle")).min()
    t = arrays["equal_modes"] / BATCH
    curve = _share_curves(t)["frobenius"]
    equal = arrays["equal_rate"] * np.sqrt(t)  # eigenvalues 1: |H|_F / sqrt(B)
    other = arrays["other_ratio"] / _share_curves(arrays["other_share"])["frobenius"]
    size, n = arrays["orthogonal_size"], ORTHOGONAL
    curves = _share_curves(n / size - 1)
    curves["trace"] *= n / (n - 1)
    away = max(
        float(np.abs(arrays["orthogonal_exact"] / arrays[f"orthogonal_{bound}"] - curve).max())
        for bound, curve in curves.items()
    )
    return [
        Row(f"pairs of the ladder out of order, of {total}", 0, 0, wrong),
        Row(f"wrong verdicts of {verdicts.size}", 0, 0, int(verdicts.sum())),
        Row("circle, B = 1: exact threshold", 8, 8 * ROUNDING, float(exact[0])),
        Row("circle, B = n: exact / edge", 1, ROUNDING, float(exact[-1] / edge[-1])),
        Row("circle: |uniform / exact - 1|, largest", 0, ROUNDING, float(flat)),
        Row("circle: exact / simple lower bound, least", 1, ROUNDING, float(least), "at least"),
        Row(
            "circle, B = 1: Frobenius with mu = 1 / exact",
            1 / (8 * norm),
            ROUNDING,
            float(_plain(arrays, "circle")[0] / exact[0]),
        ),
        Row("r equal modes: |exact / Frobenius - curve|", 0, ROUNDING, np.abs(equal - curve).max()),
        Row("r = B: exact / Frobenius", 1, ROUNDING, float(equal[t == 1][0])),
        Row("other spectra: ratio / curve, largest", 1, ROUNDING, other.max(), "at most"),
        Row("orthogonal gradients: |exact / bound - curve|", 0, ROUNDING, away),
    ]


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Rates over the batch size, all bounds over the exact one, and where bounds are attained."""
    n = int(arrays["sphere_size"][-1])
    verdicts = _wrong(arrays)
    figure = _style.canvas(
        12.0,
        8.2,
        "One exact learning rate decides whether SGD stays at a minimum; bounds form a ladder around it",
        f"Own settings. Circle: {CIRCLE} equally spaced inputs and ReLU features. Random features: "
        f"n = {n}, {INPUTS} inputs, {FEATURES} features; batches without replacement. Points: "
        f"{verdicts.size} runs of the exact second moments, {int(verdicts.sum()) or 'none'} on the\n"
        "wrong side. Frobenius bound: Wu, Wang & Su 2022; diagonal and uniform: Agarwala & Pennington "
        "2024; exact: Mulayoff & Michaeli 2024. Trace: Wu & Su 2023; the constants at any B: derived here.",
    )
    _draw_legend(figure)
    grid = figure.add_gridspec(
        2,
        3,
        wspace=0.26,
        hspace=0.46,
        height_ratios=(1.25, 1),
        **_style.margins(figure, left=0.78, right=0.25, top=1.38, bottom=1.02),
    )
    for column, name in enumerate(("circle", "sphere")):
        top, bottom = (figure.add_subplot(grid[row, column]) for row in range(2))
        _draw_rates(top, arrays, name)
        _draw_ratios(bottom, arrays, name)
    _draw_attained(figure.add_subplot(grid[0, 2]), arrays)
    _draw_ratios(figure.add_subplot(grid[1, 2]), arrays, "gaussian")
    return figure


def _draw_legend(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    order = ("exact", "closure", "finite", "trace", "edge", "frobenius", "wu_2018", "loss")
    handles = [
        *(Line2D([], [], label=LABELS[name], **LOOKS[name]) for name in order),
        Line2D([], [], label="decays", **_style.points(_sgd.SGD)),
        Line2D([], [], label="grows", **_style.points(_sgd.SGD, filled=False)),
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        ncols=len(handles),
        columnspacing=1.4,
        handletextpad=0.5,
        handlelength=2.5,
        bbox_to_anchor=(0.08 / width, 1 - 0.42 / height),
    )


def _draw_bounds(axes: Axes, arrays: dict[str, np.ndarray], name: str, ratio: bool) -> None:
    sizes = arrays[f"{name}_size"]
    scale = arrays[f"{name}_exact"] if ratio else np.ones(len(sizes))
    for bound, look in LOOKS.items():
        values = arrays[f"{name}_{bound}"] / scale
        axes.plot(sizes, np.where(np.isfinite(values), values, np.nan), **look)
    axes.set_xscale("log")
    ticks = [1, 2, 4, 8, 16] if name == "circle" else [1, 3, 10, 30, 100, 300]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= sizes[-1]]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0.9, 1.12 * sizes[-1])


def _plain_number(value: float, _: Any) -> str:
    return f"{value:g}"


def _draw_rates(axes: Axes, arrays: dict[str, np.ndarray], name: str) -> None:
    _draw_bounds(axes, arrays, name, ratio=False)
    sizes = np.repeat(arrays[f"{name}_verdict_size"], len(OFFSETS))
    rates = arrays[f"{name}_verdict_rate"].ravel()
    for grown in (False, True):
        chosen = arrays[f"{name}_grows"].ravel() == grown
        axes.plot(
            sizes[chosen], rates[chosen], **_style.points(_sgd.SGD, filled=not grown, size=3.8)
        )
    axes.set_yscale("log")
    low = 3.3 if name == "circle" else 1.6
    axes.set_ylim(low, 62)
    ticks = [4, 8, 16, 32] if name == "circle" else [2, 4, 8, 16, 32]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    axes.set_title(TITLES[name], pad=_style.SUBTITLE_PAD)
    if name == "circle":
        _style.subtitle(axes, "flat eigenvectors: diagonal = uniform = exact, 8 at B = 1")
        axes.set_ylabel(r"$\eta$   learning rate")
        plain = _plain(arrays, name)
        shown = plain < 70
        axes.plot(arrays[f"{name}_size"][shown], plain[shown], **PLAIN)
        axes.annotate(
            "Frobenius with μ = 1 uncentred,\n7.48 at B = 1, is no bound",
            (1.03, plain[0] * 0.98),
            xytext=(1.45, 4.6),
            fontsize=7.5,
            color=_style.VERMILLION,
            linespacing=1.5,
            arrowprops={"arrowstyle": "-", "color": _style.VERMILLION, "lw": 0.7},
        )
    else:
        spectrum = arrays[f"{name}_spectrum"]
        crossover = spectrum.sum() / spectrum.max()
        _style.subtitle(
            axes, rf"from $2B/\mathrm{{tr}}\,H$ to $2/\lambda_{{\max}}$ near B = {crossover:.1f}"
        )
        axes.axvline(crossover, color=_style.FAINT, lw=1.2, zorder=0)
    axes.set_xlabel("$B$   batch size")


def _draw_ratios(axes: Axes, arrays: dict[str, np.ndarray], name: str) -> None:
    """Over many decades for the circle, close to 1 for the others."""
    _draw_bounds(axes, arrays, name, ratio=True)
    axes.set_title("Over the exact rate", pad=_style.SUBTITLE_PAD)
    axes.set_xlabel("$B$   batch size")
    if name == "circle":
        axes.set_yscale("log")
        axes.set_ylim(1.2e-3, 120)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(_plain_number))
        axes.set_ylabel("bound / exact")
        _style.subtitle(axes, "circle model, all bounds")
        return
    axes.set_ylim(0.45, 1.6)
    axes.yaxis.set_major_locator(FixedLocator([0.6, 0.8, 1, 1.2, 1.4]))
    gap = 100 * (arrays[f"{name}_finite"][0] / arrays[f"{name}_exact"][0] - 1)
    inputs = "on the sphere" if name == "sphere" else "normal"
    _style.subtitle(axes, f"inputs {inputs}: uniform is {gap:.2g} % off at B = 1")


def _draw_attained(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    t = np.geomspace(1 / 60, 60, 241)
    axes.plot(
        arrays["other_share"],
        arrays["other_ratio"],
        ls="none",
        marker=".",
        ms=3.0,
        mew=0,
        color=_style.VERMILLION,
        alpha=0.35,
    )
    for bound, curve in _share_curves(t).items():
        axes.plot(t, curve, **LOOKS[bound])
    share = ORTHOGONAL / arrays["orthogonal_size"] - 1
    for bound, marker in (("frobenius", "o"), ("trace", "s"), ("edge", "D")):
        values = arrays["orthogonal_exact"] / arrays[f"orthogonal_{bound}"]
        axes.plot(share, values, **_style.points(LOOKS[bound]["color"], marker=marker, size=3.8))
    axes.set_xscale("log")
    axes.set_xlim(1 / 60, 60)
    axes.set_ylim(0, 1.06)
    axes.xaxis.set_major_locator(FixedLocator([1 / 16, 1 / 4, 1, 4, 16]))
    labels = {0.0625: "1/16", 0.25: "1/4"}
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: labels.get(value, f"{value:g}")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title("Where each bound is attained", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, f"noise ∝ loss; points: orthogonal gradients; dots: {N_SPECTRA} spectra")
    axes.set_xlabel("$t = r/B$   equal modes per batch size")
    axes.set_ylabel("exact / bound")
