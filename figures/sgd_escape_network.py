r"""SGD leaves a sharp minimum at which gradient descent stays, for a flatter one; most runs lag behind E L.

A small tanh net starts near a sharp minimum that interpolates the data. At one learning rate, below
2 / lambda_max, gradient descent and SGD with a large batch fall back to it; SGD with a small batch, for
which the rate is above `critical_lr`, leaves it (Wu, Wang & Su 2022, arXiv 2207.02628; before that Wu,
Ma & E 2018). Of the linearised dynamics the average loss is known exactly (`moments.Covariance`),

.. math:: E L_k = \tfrac{1}{2n}\,\mathrm{tr}\,E[e_k e_k^\top] \sim \rho^k

with :math:`\rho` of `growth_rate`. Averaged over all 496 batches, a step of the net itself grows by this
factor. Typical runs grow more slowly: the average is that of a few rare ones after some steps. With the
least alignment :math:`\mu_0` at the minimum (0.28) the rate :math:`\eta^2\kappa\mu_0|H|_F^2` of that
paper is below 1 and says nothing; with :math:`\mu = 1` it is 1.9. Growth ends where the quadratic
approximation does, and all runs settle at flatter minima, which fulfil every necessary condition.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import eosim
from eosim.moments import Covariance
from eosim.problems import interpolating_minimum
from eosim.sampling import noise_factor
from eosim.stability import (
    TangentKernel,
    critical_lr,
    growth_rate,
    one_step_rates,
    tangent_kernel,
)
from figures import _sgd, _style
from figures._headline import Row

# All our choice. The last layer starts this many times its usual size, which makes the minimum sharp.
SAMPLES, INPUTS, WIDTH, LAST_LAYER, SEED = 32, 16, 24, 3.0, 0
# The rate over 2 / lambda_max: gradient descent is stable up to 1.
RATE = 0.6
LEAVING, STAYING = 2, 16
# Displacement from the minimum: its expected loss, far below that at which the net is nonlinear.
START_LOSS = 1e-14
# So many short runs give averages, long ones show where they end. Runs of the other two stay.
SHORT_STEPS, SHORT_RUNS_QUICK, SHORT_RUNS_FULL = 4, 1000, 10000
LONG_STEPS_QUICK, LONG_STEPS_FULL, LONG_RUNS_QUICK, LONG_RUNS_FULL = 1500, 6000, 12, 48
OTHER_STEPS, OTHER_RUNS = 300, 4
N_FOLLOWED, N_SHOWN = 4, 36  # runs whose curvature is followed, and at how many steps
# The growth factor of the net itself: one step from displacements of this size (relative to theta)
# with the most growing second moment, averaged over every batch. Its nonlinear part is of that size.
DISPLACEMENT, POWER_STEPS = 1e-6, 60
# Averages are tested as long as their standard error is a fifth or less: later they are those of a few
# rare runs.
TESTED_STEPS, STANDARD_ERRORS = 3, 4.0
# Typical growth: of linearised runs, between the steps, after the start is forgotten.
TYPICAL, TYPICAL_RUNS = (4, 20), 2000
# Below this loss, of residuals of 1e-5, the net is linear to about 1e-5 over two dozen steps; no two
# runs with different batches are as near.
LINEAR_BELOW, LINEAR_TOLERANCE = 1e-10, 1e-4
LEFT, STAYED = 1e-2, 1e-12  # losses; targets have a mean square of 0.4

# Over what is stable: two necessary bounds (with mu = 1), the exact threshold, the edge of GD.
FLATNESS: tuple[tuple[str, str, Any], ...] = (
    (r"$\eta\,|G|_F\,\sqrt{\kappa}$", _style.SKY, (0, (5, 1.5))),
    (r"$\eta\kappa\,\mathrm{tr}\,G\,/\,2$", _style.ORANGE, (0, (1, 1.1))),
    (r"$\eta\,/\,\eta^*$", _style.INK, "-"),
    (r"$\eta\lambda_{\max}/\,2$", _style.QUIET, "-"),
)
FIRST_STEPS = 60

COLORS = {"leaving": _style.VERMILLION, "staying": _style.GREEN, "descent": _style.GRADIENT_DESCENT}
BATCHES = {"leaving": LEAVING, "staying": STAYING, "descent": None}


def network() -> eosim.Perceptron:
    """Gaussian inputs; the targets are the tanh of a random linear map."""
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((SAMPLES, INPUTS))
    return eosim.Perceptron(x, np.tanh(x @ rng.standard_normal(INPUTS) / np.sqrt(INPUTS)), (WIDTH,))


def sharp_minimum(net: eosim.Perceptron) -> Any:
    """The interpolating minimum near a random start with a large last layer."""
    theta = net.initial(SEED)
    theta[-(WIDTH + 1) :] *= LAST_LAYER
    return interpolating_minimum(net, theta)


def compute(quick: bool) -> dict[str, np.ndarray]:
    """The minimum and its predictions; averages over the first steps; where long runs go."""
    net = network()
    minimum = sharp_minimum(net)
    kernel = tangent_kernel(net, minimum.theta)
    lr = RATE * 2 / kernel.largest
    # Isotropic displacements of this size have the expected loss START_LOSS: size^2 tr(J J^T) / 2n.
    size = np.sqrt(2 * START_LOSS / kernel.trace)
    arrays: dict[str, np.ndarray] = {
        "lr": np.array(lr),
        "dim": np.array(net.dim),
        "residual": np.array(minimum.residual_norm),
    }
    second = size**2 * SAMPLES * kernel.matrix  # E[e e^T] of the displaced starts
    for name, batch_size in BATCHES.items():
        nominal = batch_size or SAMPLES
        model = Covariance(kernel, lr, nominal)
        arrays[f"{name}_rate"] = np.array(growth_rate(kernel, lr, nominal))
        arrays[f"{name}_critical"] = np.array(critical_lr(kernel, nominal))
        arrays[f"{name}_expected"] = eosim.predict(model, second, OTHER_STEPS)["loss"]
        arrays[f"{name}_before"] = np.array(_flatness(kernel, lr, nominal))
        leaving = name == "leaving"
        n_runs = (LONG_RUNS_QUICK if quick else LONG_RUNS_FULL) if leaving else OTHER_RUNS
        n_steps = (LONG_STEPS_QUICK if quick else LONG_STEPS_FULL) if leaving else OTHER_STEPS
        runs = _ensemble(net, minimum.theta, lr, batch_size, size, n_runs, n_steps)
        whole = [run for run in runs if run.status is not eosim.Status.DIVERGED]
        arrays[f"{name}_diverged"] = np.array(len(runs) - len(whole))
        arrays[f"{name}_loss"] = np.array([run["loss"] for run in whole])  # (run, step)
        ends = [tangent_kernel(net, run.theta[-1]) for run in whole]
        arrays[f"{name}_after"] = np.array([_flatness(end, lr, nominal) for end in ends])
        if leaving:
            shown = np.unique(np.geomspace(1, n_steps, N_SHOWN).astype(int))
            followed = [
                [tangent_kernel(net, run.theta[k]) for k in shown] for run in whole[:N_FOLLOWED]
            ]
            arrays["shown"] = shown
            arrays["followed"] = np.array(
                [[_flatness(one, lr, nominal) for one in row] for row in followed]
            )  # (run, step, quantity)
    n_short = SHORT_RUNS_QUICK if quick else SHORT_RUNS_FULL
    short = _ensemble(net, minimum.theta, lr, LEAVING, size, n_short, SHORT_STEPS)
    losses = np.array([run["loss"] for run in short])
    arrays["mean"] = losses.mean(axis=0)
    arrays["error"] = losses.std(axis=0, ddof=1) / np.sqrt(n_short)
    arrays["n_short"] = np.array(n_short)
    arrays["factor"] = np.array(_one_step_factor(net, minimum.theta, kernel, lr))
    arrays["frobenius_rate"] = np.array(one_step_rates(kernel, lr, LEAVING).frobenius)
    linear = eosim.run_ensemble(
        _sgd.problem(kernel),
        eosim.GradientDescent(lr),
        None,
        TYPICAL[1],
        batch_sizes=LEAVING,
        n_replicas=TYPICAL_RUNS,
        seed=SEED,
        residuals0=_displacements(net, size, TYPICAL_RUNS) @ net.jacobian(minimum.theta)[:, 0].T,
    )["loss"][0, 0]  # (run, step)
    arrays["typical"] = np.log(linear[:, TYPICAL[1]] / linear[:, TYPICAL[0]]) / np.ptp(TYPICAL)
    arrays["linear"] = linear[: len(arrays["leaving_loss"])]  # the same starts and batches
    return arrays


def _displacements(net: Any, size: float, n: int) -> np.ndarray:
    return size * np.random.default_rng(SEED + 1).standard_normal((n, net.dim))


def _ensemble(
    net: Any, theta: np.ndarray, lr: float, batch_size: int | None, size: float, n: int, steps: int
) -> list[Any]:
    """Runs from displaced minima, at every batch size from the same."""
    return [
        eosim.run(
            net,
            eosim.GradientDescent(lr),
            theta + displacement,
            steps,
            batch_size=batch_size,
            seed=np.random.SeedSequence(SEED, spawn_key=(index,)),
        )
        for index, displacement in enumerate(_displacements(net, size, n))
    ]


def _flatness(kernel: TangentKernel, lr: float, batch_size: int) -> tuple[float, ...]:
    """FLATNESS of the Gauss-Newton matrix over what is stable; all but the last are 0 without noise."""
    kappa = noise_factor(kernel.n_samples, batch_size)
    return (
        lr * kernel.frobenius * np.sqrt(kappa),
        lr * kernel.trace * kappa / 2,
        lr / critical_lr(kernel, batch_size),
        lr * kernel.largest / 2,
    )


def _one_step_factor(net: Any, theta: np.ndarray, kernel: TangentKernel, lr: float) -> float:
    """By what the expected loss of the net grows in a step, over all batches; see DISPLACEMENT."""
    model = Covariance(kernel, lr, LEAVING)
    moments = model.start(kernel.matrix)
    for _ in range(POWER_STEPS):
        moments = model.step(model.start(moments.residual / np.trace(moments.residual)))
    weights, residuals = np.linalg.eigh(moments.residual)
    jacobian = net.jacobian(theta)[:, 0]
    size = DISPLACEMENT * np.linalg.norm(theta)
    before = after = 0.0
    batches = [np.array(batch) for batch in combinations(range(SAMPLES), LEAVING)]
    for weight, residual in zip(weights, residuals.T, strict=True):
        start = theta + size * np.linalg.lstsq(jacobian, residual)[0]
        losses = [net.loss(start - lr * net.gradient(start, batch)) for batch in batches]
        before += weight * net.loss(start)
        after += weight * np.mean(losses)
    return after / before


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """What theory says stays and leaves does; at the rates it says; and ends flatter."""
    lr, rho = float(arrays["lr"]), float(arrays["leaving_rate"])
    losses = arrays["leaving_loss"]
    expected = arrays["leaving_expected"]
    tested = slice(1, TESTED_STEPS + 1)
    away = np.abs(arrays["mean"][tested] - expected[tested]) / arrays["error"][tested]
    linear = arrays["linear"]
    near = losses[:, : linear.shape[1]]
    ratios = (near / linear)[(near < LINEAR_BELOW) & (linear < LINEAR_BELOW)]
    typical = float(np.median(arrays["typical"]))
    rows = [
        Row("minimum: root mean square residual", 0, 1e-10, float(arrays["residual"])),
        Row(
            f"B = {LEAVING}: lr / threshold",
            1,
            0,
            lr / float(arrays["leaving_critical"]),
            "at least",
        ),
        Row(
            f"B = {STAYING}: lr / threshold",
            1,
            0,
            lr / float(arrays["staying_critical"]),
            "at most",
        ),
        Row(
            "the net's growth over all batches / rho",
            1,
            DISPLACEMENT,
            float(arrays["factor"]) / rho,
        ),
        Row("E L, late factor per step / rho", 1, 1e-9, expected[-1] / expected[-2] / rho),
        Row(
            f"average of runs, steps 1 to {TESTED_STEPS}: largest z",
            STANDARD_ERRORS,
            0,
            float(away.max()),
            "at most",
        ),
        Row(
            f"runs below L = {LINEAR_BELOW:g}: net / linearised",
            1,
            LINEAR_TOLERANCE,
            float(ratios[np.abs(ratios - 1).argmax()]),
        ),
        Row("typical growth per step", rho, 0, float(np.exp(typical)), "at most"),
        Row(
            "rate of the Frobenius bound: blind here",
            1,
            0,
            float(arrays["frobenius_rate"]),
            "at most",
        ),
        Row(f"B = {LEAVING}: runs that diverge", 0, 0, float(arrays["leaving_diverged"])),
        Row(f"B = {LEAVING}: share that leaves", 1, 0, float((losses.max(axis=1) > LEFT).mean())),
    ]
    for name, label in (("staying", f"B = {STAYING}"), ("descent", "GD")):
        largest = float(arrays[f"{name}_loss"].max())
        rows.append(Row(f"{label}: largest loss of all runs", STAYED, 0, largest, "at most"))
    for index, text in enumerate(("sqrt(kappa) lr |H|_F", "kappa lr tr H / 2", "lr / threshold")):
        before = float(arrays["leaving_before"][index])
        after = float(arrays["leaving_after"][:, index].max())
        rows.append(Row(f"{text}: at the minimum", 1, 0, before, "at least"))
        rows.append(Row(f"{text}: where runs end, largest", 1, 0, after, "at most"))
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Losses of the first steps; losses and curvature later; curvature before and after."""
    lr, n_long = float(arrays["lr"]), len(arrays["leaving_loss"])
    figure = _style.canvas(
        12.0,
        6.05,
        "SGD leaves a sharp minimum at which gradient descent stays, for a flatter one; typical runs "
        "are slower than their average",
        f"Own settings: tanh net {INPUTS}-{WIDTH}-1 ({int(arrays['dim'])} parameters), {SAMPLES} "
        f"Gaussian samples, targets the tanh of a linear map; last layer {LAST_LAYER:g} times its usual "
        f"size at the start; $\\eta = {RATE:g} \\cdot 2/\\lambda_{{\\max}} = {lr:.3g}$ at the sharp "
        f"minimum, from which\nall runs are displaced at random; batches without replacement. "
        f"{n_long} runs; averages of {int(arrays['n_short'])} with standard errors.\nCurvature: of "
        "$G = J^\\top J/n$, which is $H$ at zero loss; $\\kappa = (n-B)/(B(n-1))$; $\\eta^*$: exact "
        "threshold of SGD; $\\eta\\lambda_{\\max}/2$: of gradient descent; the others: necessary bounds.",
    )
    _draw_legend(figure)
    grid = figure.add_gridspec(
        1,
        3,
        width_ratios=(1.12, 1.12, 0.92),
        wspace=0.3,
        **_style.margins(figure, left=0.75, right=0.3, top=1.3, bottom=1.25),
    )
    _draw_first(figure.add_subplot(grid[0]), arrays)
    cell = grid[1].subgridspec(2, 1, hspace=0.14)
    above = figure.add_subplot(cell[0])
    _draw_later(above, figure.add_subplot(cell[1], sharex=above), arrays)
    _draw_ends(figure.add_subplot(grid[2]), arrays)
    return figure


def _draw_legend(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    handles = [
        Line2D([], [], color=COLORS[name], lw=1.4, ls=STYLES[name], label=label)
        for name, label in (
            ("leaving", f"SGD, $B = {LEAVING}$"),
            ("staying", f"SGD, $B = {STAYING}$"),
            ("descent", "gradient descent"),
        )
    ]
    handles += [
        Line2D([], [], label="average of runs", **_style.points(COLORS["leaving"])),
        Line2D([], [], color=_style.INK, lw=1.5, label=r"$E L$, linearised: $\rho^k$"),
        Line2D(
            [], [], color=_style.INK, lw=1.3, ls=(0, (1, 1.3)), label="typical growth, linearised"
        ),
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        ncols=len(handles),
        columnspacing=1.7,
        handletextpad=0.6,
        handlelength=2.0,
        bbox_to_anchor=(0.08 / width, 1 - 0.42 / height),
    )


STYLES: dict[str, Any] = {"leaving": "-", "staying": (0, (5, 1.6)), "descent": (0, (2.2, 1.3))}


def _powers(axis: Any, exponents: Any) -> None:
    axis.set_major_locator(FixedLocator([10.0**k for k in exponents]))
    axis.set_minor_locator(NullLocator())


def _draw_first(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    rho, typical = float(arrays["leaving_rate"]), float(np.median(arrays["typical"]))
    axes.set_title("First steps", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes,
        f"$\\rho = {rho:.2f}$ per step; typical runs grow by {np.exp(typical):.2f}, and leave later",
    )
    shown = FIRST_STEPS + 1
    for run in arrays["leaving_loss"]:
        axes.plot(run[:shown], color=COLORS["leaving"], lw=0.6, alpha=0.55)
    for name in ("staying", "descent"):
        for run in arrays[f"{name}_loss"]:
            axes.plot(run[:shown], color=COLORS[name], lw=0.8, ls=STYLES[name])
    axes.text(
        0.02,
        0.97,
        "Beyond the first steps\n$E L$ is the work of a\nfew rare runs; none\nof these keeps up.",
        transform=axes.transAxes,
        va="top",
        fontsize=7.5,
        linespacing=1.4,
    )
    expected = arrays["leaving_expected"][:shown]
    axes.plot(expected[expected < 10], color=_style.INK, lw=1.5)
    steps = np.arange(shown)
    line = START_LOSS * np.exp(typical * steps)
    axes.plot(steps[line < 10], line[line < 10], color=_style.INK, lw=1.3, ls=(0, (1, 1.3)))
    axes.errorbar(
        np.arange(1, SHORT_STEPS + 1),
        arrays["mean"][1:],
        yerr=np.minimum(arrays["error"][1:], 0.9 * arrays["mean"][1:]),
        ecolor=COLORS["leaving"],
        elinewidth=1,
        zorder=5,
        **_style.points(COLORS["leaving"]),
    )
    axes.set_yscale("log")
    axes.set_xlim(0, FIRST_STEPS)
    axes.set_ylim(1e-16, 10)
    _powers(axes.yaxis, range(-16, 1, 4))
    axes.set_xlabel("$k$   step")
    axes.set_ylabel("$L$   loss")


def _draw_later(above: Axes, below: Axes, arrays: dict[str, np.ndarray]) -> None:
    above.set_title(f"Later, $B = {LEAVING}$", pad=_style.SUBTITLE_PAD)
    _style.subtitle(above, f"loss of all runs; below, curvature of {N_FOLLOWED} of them")
    steps = np.arange(1, arrays["leaving_loss"].shape[1])
    for run in arrays["leaving_loss"]:
        above.plot(steps, run[1:], color=COLORS["leaving"], lw=0.5, alpha=0.55)
    above.set_yscale("log")
    above.set_xscale("log")
    above.set_xlim(1, steps[-1])
    above.set_ylim(1e-16, 30)
    _powers(above.yaxis, range(-16, 1, 4))
    above.set_ylabel("$L$   loss")
    above.tick_params(labelbottom=False)
    for index, (text, color, style) in enumerate(FLATNESS[:3]):
        for number, run in enumerate(arrays["followed"]):
            label = text if number == 0 else None
            below.plot(arrays["shown"], run[:, index], color=color, lw=1.0, ls=style, label=label)
    below.axhline(1, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    below.set_yscale("log")
    below.set_ylim(0.25, 9)
    _flat(below.yaxis)
    below.xaxis.set_minor_locator(NullLocator())
    below.set_xlabel("$k$   step")
    below.set_ylabel("over bound or threshold")
    below.legend(loc="upper right", ncols=3, fontsize=7.5, handlelength=1.8, columnspacing=1.0)


def _flat(axis: Any) -> None:
    axis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _draw_ends(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("Before and after", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "diamonds: the sharp minimum; points: ends")
    place = 0.0
    places, labels = [], []
    for name, rows, text in (
        ("leaving", (2, 1, 0, 3), f"SGD, $B = {LEAVING}$"),
        ("staying", (2, 1, 0, 3), f"SGD, $B = {STAYING}$"),
        ("descent", (3,), "gradient descent"),
    ):
        axes.text(0.085, place, text, color=COLORS[name], fontsize=8, va="center")
        for row in rows:
            place += 1
            before, after = arrays[f"{name}_before"][row], arrays[f"{name}_after"][:, row]
            spread = 0.22 * np.linspace(-1, 1, len(after))
            start = {"size": 6.0, "marker": "D", "filled": name != "leaving"}
            axes.plot(before, place, **_style.points(COLORS[name], **start))
            axes.plot(after, place + spread, **_style.points(COLORS[name], size=3.2))
            places.append(place)
            labels.append(FLATNESS[row][0])
        place += 1.3
    axes.axvline(1, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    axes.set_ylim(place - 0.7, -0.7)
    axes.yaxis.set_major_locator(FixedLocator(places))
    axes.set_yticklabels(labels)
    axes.grid(visible=False, axis="y")
    axes.set_xscale("log")
    axes.set_xlim(0.08, 4)
    _flat(axes.xaxis)
    axes.set_xlabel("over bound or threshold")
