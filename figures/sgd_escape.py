r"""SGD escapes a minimum exponentially on average while typical runs may still converge to it.

Four samples, three parameters, batches of one: linearised SGD, whose average can be computed in three
ways. `eosim.moments.Covariance` steps the exact second moments; all :math:`4^t` sequences of batches are
enumerated, which also gives the exact median and the exact standard error of a sample mean; and runs are
sampled. The loss grows at least by

.. math:: \gamma = \eta^2\kappa\mu_0|H|_F^2 \;\le\; \lambda_{\min}(T) \;\le\; \rho

per step: the escape rate of Wu, Wang & Su 2022, arXiv 2207.02628, the least growth in one step, and in the
long run exactly :math:`\rho`, `eosim.stability.growth_rate`, which is 1 at the threshold :math:`\eta^*`.

One run grows like :math:`e^{2\Lambda t}` with the Lyapunov exponent :math:`\Lambda`, and
:math:`2\Lambda < \ln\rho` (Jensen): just above :math:`\eta^*` almost every run converges, while rare ones
make the mean grow.

Reshuffled batches depend on each other within an epoch, so their threshold is another: where the spectral
radius of the average of :math:`A_\pi\otimes A_\pi` over all orders :math:`\pi` of an epoch first reaches 1,
with :math:`A_\pi` the product of its steps.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from scipy.optimize import brentq

import eosim
from eosim import run_ensemble
from eosim.moments import Covariance
from eosim.stability import TangentKernel, critical_lr, growth_rate
from eosim.stability.bounds import one_step_rates
from figures import _sgd, _style
from figures._headline import Row

# Our choice: rows of independent normal entries, of log-normal length. With this seed runs are typically
# stable up to about 1.06 times the threshold; over 16 seeds that is 1.00 to above 1.2.
N_SAMPLES, DIM, SEED = 4, 3, 7
SPREAD = 0.5
# Our choice: around the threshold, and well beyond it; few steps, for late means need rare runs.
FACTORS = (0.95, 1.05, 1.2, 2.0)
N_STEPS = 10
RUNS_QUICK, RUNS_FULL = 50_000, 200_000
# 40 means, 40 shares and 2 means of epochs, most of them correlated: one normal number is beyond this
# with a probability of 7e-6.
STANDARD_ERRORS = 4.5
# Both sides are computed to about 1e-14 per step.
ROUNDING = 1e-12
# Long runs, for rates: after the first steps, which forget the start. The mean has forgotten it by LATE, at
# the lowest rate to 1e-7, and would soon after be rounding.
RATE_FACTORS = np.linspace(0.9, 1.2, 13)
LONG_RUNS, FORGET, LONG_STEPS = 400, 100, 600
LATE, LATE_TOLERANCE = 200, 1e-6
ESCAPE_STEPS = 100
# Our choice: within the window; by the last step the mean has grown by e^11, typical runs fell by e^-7.
WINDOW = 1.03
SHOWN_RUNS, SHOWN_STEPS = 40, 300
PROBLEMS_QUICK, PROBLEMS_FULL = 40, 200
# Our choice: the multiples of the threshold within which that of reshuffling is looked for.
SEARCH = np.linspace(0.6, 2.0, 29)
# A median this part of the mean or less: "far below".
MEDIAN_SHARE = 0.1

MEDIAN = _style.ORANGE
LOOKS: dict[str, dict[str, Any]] = {
    "exact": {**_sgd.LOOKS["exact"], "lw": 1.7},
    "median": {"color": MEDIAN, "lw": 1.1, "ls": "-"},
    "smallest": {"color": "#8a4b12", "lw": 1.5, "ls": (0, (1, 1.6))},
    "frobenius": {"color": _style.VERMILLION, "lw": 1.6, "ls": (0, (7, 1.6, 1, 1.6, 1, 1.6))},
}
LEVEL: dict[str, Any] = {"color": _style.QUIET, "lw": 0.9, "ls": (0, (4, 3))}


def draw_jacobian(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((N_SAMPLES, DIM))
    return rows * np.exp(SPREAD * rng.standard_normal((N_SAMPLES, 1)))


def escape_direction(jacobian: np.ndarray, lr: float) -> np.ndarray:
    """Where late second moments point, from an isotropic start; as long as makes the loss 1."""
    kernel = TangentKernel.from_jacobian(jacobian)
    model = Covariance(kernel, lr, 1)
    moments = model.start(kernel.matrix)
    for _ in range(ESCAPE_STEPS):
        moments = model.step(moments)
    residuals = np.linalg.eigh(moments.residual)[1][:, -1] * np.sqrt(2 * len(jacobian))
    return np.linalg.lstsq(jacobian, residuals * np.sign(residuals.sum()), rcond=None)[0]


def enumerate_losses(jacobian: np.ndarray, lr: float, theta: np.ndarray, n_steps: int) -> list[Any]:
    """The losses of all n^t sequences of t single samples, t = 0, ..., n_steps; equally likely."""
    n = len(jacobian)
    steps = np.eye(theta.size) - lr * jacobian[:, :, None] * jacobian[:, None, :]  # symmetric
    points, losses = theta[None], []
    for step in range(n_steps + 1):
        if step:
            points = (points @ steps).reshape(-1, theta.size)
        losses.append(np.sum((points @ jacobian.T) ** 2, axis=1) / (2 * n))
    return losses


def epoch_operator(jacobian: np.ndarray, lr: float, batch_size: int) -> np.ndarray:
    """What a reshuffled epoch does to second moments of theta, on average over all orders."""
    n, dim = jacobian.shape
    steps: dict[tuple[int, ...], np.ndarray] = {}
    for batch in itertools.combinations(range(n), batch_size):
        rows = jacobian[list(batch)]
        steps[batch] = np.eye(dim) - lr / batch_size * rows.T @ rows
    orders = {
        tuple(tuple(sorted(order[i : i + batch_size])) for i in range(0, n, batch_size))
        for order in itertools.permutations(range(n))
    }
    total = np.zeros((dim**2, dim**2))
    for order in sorted(orders):
        product = np.eye(dim)
        for batch in order:
            product = steps[batch] @ product
        total += np.kron(product, product)
    return total / len(orders)


def reshuffling_threshold(jacobian: np.ndarray, batch_size: int) -> float:
    """Over that of independent batches: the first crossing; NaN if there is none in `SEARCH`."""
    unit = critical_lr(TangentKernel.from_jacobian(jacobian), batch_size)

    def excess(factor: float) -> float:
        operator = epoch_operator(jacobian, factor * unit, batch_size)
        return float(np.abs(np.linalg.eigvals(operator)).max()) - 1

    for low, high in itertools.pairwise(SEARCH):
        if excess(high) > 0:
            return float(brentq(excess, low, high, xtol=1e-10))
    return np.nan


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Exact, enumerated and sampled losses; rates of means and of runs; thresholds of reshuffling."""
    jacobian = draw_jacobian(SEED)
    kernel = TangentKernel.from_jacobian(jacobian)
    threshold = critical_lr(kernel, 1)
    theta = escape_direction(jacobian, threshold)
    arrays = {"threshold": np.array(threshold)}
    n_runs = RUNS_QUICK if quick else RUNS_FULL
    arrays |= _short(jacobian, threshold, theta, n_runs)
    arrays |= _long(jacobian, threshold, theta)
    arrays |= _epochs(jacobian, threshold, theta, n_runs)
    draws = [draw_jacobian(seed) for seed in range(PROBLEMS_QUICK if quick else PROBLEMS_FULL)]
    for size in (1, 2):
        ratios = [reshuffling_threshold(draw, size) for draw in draws]
        arrays[f"reshuffled_{size}"] = np.array(ratios)
    return arrays


def _short(
    jacobian: np.ndarray, threshold: float, theta: np.ndarray, n_runs: int
) -> dict[str, np.ndarray]:
    kernel = TangentKernel.from_jacobian(jacobian)
    rates = [factor * threshold for factor in FACTORS]
    data = eosim.LinearRegression(jacobian, np.zeros(N_SAMPLES))
    rules = [eosim.GradientDescent(lr) for lr in rates]
    sampled = run_ensemble(
        data, rules, theta, N_STEPS, batch_sizes=1, n_replicas=n_runs, seed=SEED
    )["loss"][:, 0]  # (rate, run, step)
    found: dict[str, list[Any]] = {}
    for index, lr in enumerate(rates):
        exact = eosim.predict(Covariance(kernel, lr, 1), jacobian @ theta, N_STEPS)["loss"]
        every = enumerate_losses(jacobian, lr, theta, N_STEPS)
        # Every number between the two middle losses is a median; a sample's is near one of them.
        middle = np.array([np.sort(x)[[(x.size - 1) // 2, x.size // 2]] for x in every])
        # Where many sequences end in one and the same loss, its rounding must not matter.
        level = middle[:, 0] * (1 + 1e-9)
        share = np.array([np.mean(x <= m) for x, m in zip(every, level, strict=True)])
        seen = np.mean(sampled[index] <= level, axis=0)
        one_step = one_step_rates(kernel, lr, 1)
        for name, value in (
            ("exact", exact),
            ("enumerated", [losses.mean() for losses in every]),
            ("deviation", [losses.std() for losses in every]),
            ("median", middle),
            ("share", share),
            ("seen_share", seen),
            ("mean", sampled[index].mean(axis=0)),
            ("seen_median", np.median(sampled[index], axis=0)),
            ("growth", growth_rate(kernel, lr, 1)),
            ("rates", [one_step.frobenius, one_step.smallest, one_step.largest]),
        ):
            found.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in found.items()} | {"n_runs": np.array(n_runs)}


def _long(jacobian: np.ndarray, threshold: float, theta: np.ndarray) -> dict[str, np.ndarray]:
    """Rates of the mean and of runs over the learning rate, and runs within the window."""
    kernel = TangentKernel.from_jacobian(jacobian)
    data = eosim.LinearRegression(jacobian, np.zeros(N_SAMPLES))
    factors = np.append(RATE_FACTORS, WINDOW)
    rules = [eosim.GradientDescent(factor * threshold) for factor in factors]
    runs = run_ensemble(
        data, rules, theta, LONG_STEPS, batch_sizes=1, n_replicas=LONG_RUNS, seed=SEED + 2
    )["loss"][:, 0]
    slopes = np.log(runs[:, :, -1] / runs[:, :, FORGET]) / (LONG_STEPS - FORGET)
    late = []
    for rule in rules:
        model = Covariance(kernel, rule.lr, 1)
        mean = eosim.predict(model, jacobian @ theta, LATE)["loss"]
        late.append(np.log(mean[-1] / mean[-2]))
    fine = np.linspace(RATE_FACTORS[0], RATE_FACTORS[-1], 61)
    one_step = [one_step_rates(kernel, factor * threshold, 1) for factor in fine]
    return {
        "factor": factors[:-1],
        "typical": slopes.mean(axis=1)[:-1],
        "typical_error": slopes.std(axis=1, ddof=1)[:-1] / np.sqrt(LONG_RUNS),
        "late": np.array(late),
        "late_growth": np.array([growth_rate(kernel, rule.lr, 1) for rule in rules]),
        "fine": fine,
        "fine_growth": np.array([growth_rate(kernel, factor * threshold, 1) for factor in fine]),
        "fine_rates": np.array(one_step),
        "window_runs": runs[-1, :, : SHOWN_STEPS + 1],
        "window_exact": eosim.predict(
            Covariance(kernel, WINDOW * threshold, 1), jacobian @ theta, SHOWN_STEPS
        )["loss"],
    }


def _epochs(
    jacobian: np.ndarray, threshold: float, theta: np.ndarray, n_runs: int
) -> dict[str, np.ndarray]:
    """Reshuffled runs at the threshold of independent batches: their mean after one and two epochs."""
    data = eosim.LinearRegression(jacobian, np.zeros(N_SAMPLES))
    runs = run_ensemble(
        data, eosim.GradientDescent(threshold), theta, 2 * N_SAMPLES, batch_sizes=1,
        n_replicas=n_runs, seed=SEED + 3, sampling="reshuffling", every=N_SAMPLES,
    )["loss"][0, 0]  # fmt: skip
    operator = epoch_operator(jacobian, threshold, 1)
    second, hessian = np.outer(theta, theta).ravel(), jacobian.T @ jacobian / N_SAMPLES
    exact = []
    for _ in range(2):
        second = operator @ second
        exact.append(float(hessian.ravel() @ second) / 2)
    return {
        "epoch_exact": np.array(exact),
        "epoch_mean": runs[:, 1:].mean(axis=0),
        "epoch_error": runs[:, 1:].std(axis=0, ddof=1) / np.sqrt(n_runs),
    }


def _typical_edge(arrays: dict[str, np.ndarray]) -> float:
    """The multiple of the threshold at which single runs begin to grow, interpolated."""
    typical = arrays["typical"]
    last = int(np.flatnonzero(typical < 0)[-1])
    share = typical[last] / (typical[last] - typical[last + 1])
    return float(arrays["factor"][last] + share * np.diff(arrays["factor"])[last])


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Three routes to one mean, samples within their errors, the order of the rates, the window."""
    exact, n_runs = arrays["exact"], float(arrays["n_runs"])
    enumerated = np.abs(arrays["enumerated"] / exact - 1).max()
    away = np.abs(arrays["mean"] - exact)[:, 1:] / (arrays["deviation"][:, 1:] / np.sqrt(n_runs))
    share = arrays["share"]
    spread = np.sqrt(np.maximum(share * (1 - share), 0.25 / n_runs) / n_runs)
    ranks = np.abs(arrays["seen_share"] - share)[:, 1:] / spread[:, 1:]
    gamma, smallest, largest = arrays["rates"].T
    order = min(
        (smallest - gamma).min(), (arrays["growth"] - smallest).min(),
        (largest - arrays["growth"]).min(),
    )  # fmt: skip
    envelope = exact / (exact[:, :1] * smallest[:, None] ** np.arange(N_STEPS + 1))
    late = np.abs(arrays["late"] - np.log(arrays["late_growth"])).max()
    inside = int(np.abs(arrays["factor"] - 1.025).argmin())
    epochs = np.abs(arrays["epoch_mean"] - arrays["epoch_exact"]) / arrays["epoch_error"]
    gap = (arrays["typical"] - np.log(arrays["late_growth"][:-1])) / arrays["typical_error"]
    lowest = [float(np.nanmin(arrays[f"reshuffled_{size}"])) for size in (1, 2)]
    return [
        Row("|enumerated mean / exact - 1|", 0, ROUNDING, float(enumerated)),
        Row("|mean - exact| / SE, largest of 40", STANDARD_ERRORS, 0, away.max(), "at most"),
        Row("|share below median - exact| / SE", STANDARD_ERRORS, 0, ranks.max(), "at most"),
        Row("at 2: median / mean after 10 steps", MEDIAN_SHARE, 0, _share(arrays), "at most"),
        Row("order of the rates, least gap", 0, ROUNDING, float(order), "at least"),
        Row("exact / lower envelope, least", 1, ROUNDING, float(envelope.min()), "at least"),
        Row("|late growth of the mean - ln rho|", 0, LATE_TOLERANCE, float(late)),
        Row(
            "at 1.025: growth of runs / SE",
            -STANDARD_ERRORS,
            0,
            float(arrays["typical"][inside] / arrays["typical_error"][inside]),
            "at most",
        ),
        Row("growth of runs - ln rho, in SE", -STANDARD_ERRORS, 0, float(gap.max()), "at most"),
        Row("reshuffled: |mean - exact| / SE", STANDARD_ERRORS, 0, epochs.max(), "at most"),
        Row("reshuffled, B = 1: least threshold", 1, 0, lowest[0], "at least"),
        Row("reshuffled, B = 2: least threshold", 1, 0, lowest[1], "at most"),
    ]


def _share(arrays: dict[str, np.ndarray]) -> float:
    return float(arrays["median"][-1, -1].max() / arrays["exact"][-1, -1])


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Expected and typical losses at four rates; below them runs, rates and reshuffling."""
    figure = _style.canvas(
        12.0,
        8.0,
        "SGD escapes a minimum exponentially on average, while typical runs may still converge to it",
        f"Own settings. {N_SAMPLES} samples, {DIM} parameters, B = 1, normal gradients of log-normal "
        f"length; {int(arrays['n_runs']):,} sampled runs, exact medians from all $4^t$ sequences of "
        "batches. Bars: 2 exact standard errors. Filled decays, open grows.\n"
        "Lower bound γ: Wu, Wang & Su 2022, with the centred alignment at its worst. Reshuffling: exact "
        f"averages over all orders, {len(arrays['reshuffled_1'])} problems of the same law.",
    )
    _draw_legend(figure)
    outer = figure.add_gridspec(
        2, 1, hspace=0.47, **_style.margins(figure, left=0.72, right=0.25, top=1.38, bottom=1.02)
    )
    top = outer[0].subgridspec(1, 4, wspace=0.27)
    for index in range(len(FACTORS)):
        axes = figure.add_subplot(top[index])
        _draw_losses(axes, arrays, index)
        if index == 0:
            axes.set_ylabel("$L$   loss")
    bottom = outer[1].subgridspec(1, 3, wspace=0.27)
    _draw_window(figure.add_subplot(bottom[0]), arrays)
    _draw_rates(figure.add_subplot(bottom[1]), arrays)
    _draw_reshuffling(figure.add_subplot(bottom[2]), arrays)
    return figure


def _draw_legend(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    median = _style.points(MEDIAN, marker="s", size=4)
    handles = [
        Line2D([], [], label="mean: exact", **LOOKS["exact"]),
        Line2D([], [], label="sampled", **_style.points(_sgd.SGD)),
        Line2D([], [], label="median: exact (pale: not unique)", **LOOKS["median"]),
        Line2D([], [], label="sampled", **median),
        Line2D([], [], label=r"$\lambda_{\min}(T)^t$, lower bound", **LOOKS["smallest"]),
        Line2D([], [], label=r"$\gamma^t$, Frobenius lower bound", **LOOKS["frobenius"]),
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


def _decades(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_losses(axes: Axes, arrays: dict[str, np.ndarray], index: int) -> None:
    steps = np.arange(N_STEPS + 1)
    exact, growth = arrays["exact"][index], float(arrays["growth"][index])
    gamma, smallest, _ = arrays["rates"][index]
    _decades(axes)
    for name, rate in (("frobenius", gamma), ("smallest", smallest)):
        axes.plot(steps, np.maximum(exact[0] * rate**steps, 1e-4), **LOOKS[name])
    low, high = arrays["median"][index].T
    axes.fill_between(steps, low, high, color=MEDIAN, alpha=0.25, lw=0)
    axes.plot(steps, np.sqrt(low * high), **LOOKS["median"])
    axes.plot(steps, exact, **LOOKS["exact"])
    settles = FACTORS[index] < _typical_edge(arrays)
    median = _style.points(MEDIAN, filled=settles, marker="s", size=3.8)
    axes.plot(steps, arrays["seen_median"][index], **median)
    error = 2 * arrays["deviation"][index] / np.sqrt(float(arrays["n_runs"]))
    axes.errorbar(
        steps,
        arrays["mean"][index],
        error,
        elinewidth=1.0,
        ecolor=_sgd.SGD,
        **_style.points(_sgd.SGD, filled=FACTORS[index] < 1, size=4.2),
    )
    axes.set_ylim(0.08, 2e6 if FACTORS[index] == FACTORS[-1] else 30)
    axes.set_xlim(-0.4, N_STEPS + 0.4)
    axes.xaxis.set_major_locator(FixedLocator([0, 2, 4, 6, 8, 10]))
    axes.set_xlabel("step")
    axes.set_title(rf"$\eta = {FACTORS[index]:g}\,\eta^*$", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, rf"$\rho$ = {growth:.3f}, $\gamma$ = {gamma:.2g}")


def _draw_window(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    steps, runs = np.arange(SHOWN_STEPS + 1), arrays["window_runs"]
    _decades(axes)
    axes.plot(steps, runs[:SHOWN_RUNS].T, color=_sgd.SGD, lw=0.7, alpha=0.22)
    axes.plot(steps, np.median(runs, axis=0), **{**LOOKS["median"], "lw": 1.8})
    axes.plot(steps, arrays["window_exact"], **LOOKS["exact"])
    axes.set_xlim(0, SHOWN_STEPS)
    axes.set_xlabel("step")
    axes.set_ylabel("$L$   loss")
    axes.set_title("Just above the threshold", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes, rf"$\eta = {WINDOW:g}\,\eta^*$: {SHOWN_RUNS} runs, median of {len(runs)}, exact mean"
    )


def _draw_rates(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    edge, factor = _typical_edge(arrays), arrays["factor"]
    axes.axvspan(1, edge, color=_style.FAINT, alpha=0.55, lw=0)
    axes.axhline(0, **LEVEL)
    fine, rates = arrays["fine"], arrays["fine_rates"]
    axes.plot(fine, np.log(rates[:, 1]), **LOOKS["smallest"])
    axes.plot(fine, np.log(arrays["fine_growth"]), **LOOKS["exact"])
    axes.plot(factor, arrays["typical"], color=MEDIAN, lw=1.1)
    for values, color, marker in (
        (arrays["late"][:-1], _sgd.SGD, "o"),
        (arrays["typical"], MEDIAN, "s"),
    ):
        for grown in (False, True):
            chosen = (values > 0) == grown
            style = _style.points(color, filled=not grown, marker=marker, size=4)
            axes.plot(factor[chosen], values[chosen], **style)
    axes.set_xlim(factor[0] - 0.01, factor[-1] + 0.01)
    axes.set_ylim(-0.43, 0.3)
    axes.xaxis.set_major_locator(FixedLocator([0.9, 1, 1.1, 1.2]))
    axes.set_xlabel(r"$\eta/\eta^*$   rate over the threshold")
    axes.set_ylabel("growth of the loss per step")
    axes.set_title("Mean and typical growth", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, rf"grey: up to {edge:.3f} $\eta^*$ runs converge, their mean grows")


def _draw_reshuffling(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    for size, color, marker in ((2, _style.PURPLE, "D"), (1, _sgd.SGD, "o")):
        ratios = np.sort(arrays[f"reshuffled_{size}"])  # NaN last
        rank = (np.arange(len(ratios)) + 0.5) / len(ratios)
        style = _style.points(color, marker=marker, size=3.6)
        axes.plot(rank, ratios, label=f"B = {size}", **style)
        beyond = np.isnan(ratios)
        above = f"B = {size}: none up to {SEARCH[-1]:g}" if beyond.any() else None
        style |= {"marker": "^"}
        axes.plot(rank[beyond], np.full(beyond.sum(), SEARCH[-1]), label=above, **style)
    axes.axhline(1, **LEVEL)
    axes.set_yscale("log")
    axes.set_ylim(0.88, 2.08)
    axes.yaxis.set_major_locator(FixedLocator([0.9, 1, 1.2, 1.5, 2]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    axes.set_xlabel("problems, sorted")
    axes.set_ylabel(r"threshold over $\eta^*$")
    axes.set_title("Reshuffling is another case", pad=_style.SUBTITLE_PAD)
    lower = np.mean(arrays["reshuffled_2"] < 1 - 1e-6)
    _style.subtitle(axes, f"higher at B = 1; at B = 2 lower in {100 * lower:.0f} % of the problems")
    axes.legend(loc="upper left", handletextpad=0.1)
