r"""SGD's noise stays aligned with the curvature along training; only special residuals have little noise.

The loss-scaled alignment of Wu, Wang & Su 2022 (arXiv 2207.02628),

.. math:: \mu = \alpha\beta = \frac{\mathrm{tr}(\Sigma G)}{2 L |G|_F^2}
          = \frac{e^\top [\,n\,\mathrm{Diag}(\Theta^2) - \Theta^2\,]\, e}{|e|^2\,|\Theta|_F^2}

(direction :math:`\alpha`, magnitude :math:`\beta`) is a quadratic form of the residuals e: over those that
the model can have it lies between the extreme eigenvalues :math:`\mu_0` and :math:`\mu_{\max}`, and over
all directions it averages exactly 1 - 1/n. Runs from residuals in no particular direction stay near that,
also where :math:`\mu_0` is much smaller: :math:`\mu` along one run is no :math:`\mu_0`. (With ReLU features
SGD dips below it for a step or so, whenever a batch kicks the sharpest mode.)

For infinitely many inputs on a sphere, all alike, eigenvectors of the NTK have
:math:`\mu = 1 - \lambda_a^2/|\Theta|_F^2`: only a mode that makes up most of :math:`|\Theta|_F` has little
noise. ReLU features have one, the constant residual, whose gradients all point one way; in R^d

.. math:: \mu_0 = 1 - \lambda_0^2 / E k^2 \approx \pi^2/4d \to 0

(`problems.sphere_kernel`). Odd activations such as tanh have no such mode. SGD from constant residuals
starts at nearly :math:`\mu_0` and leaves it at once, for the constant is also what is learned first.
Gradient descent just beyond its edge ends near :math:`\mu_0`: the mode that grows is the same one. Just
below the edge it does not, since most modes decay still more slowly than the sharpest.

The Jacobian of a two-layer linear net changes along training, and the band with it. With Gaussian inputs
and infinitely many samples its :math:`\mu` is between 1 and 2 at every theta
(`stability.population_alignment`).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.special import gammaln

import eosim
from eosim.problems import dual_kernel, sphere_kernel
from eosim.stability import (
    TangentKernel,
    alignment_band,
    critical_lr,
    kernel_alignment,
    population_alignment,
    tangent_kernel,
)
from figures import _sgd, _style
from figures._headline import Row

# Our choice: many more features than samples, so that every residual is possible.
SAMPLES, FEATURES, INPUTS = 200, 1000, 10
SEEDS_QUICK, SEEDS_FULL = 5, 20
ACTIVATIONS = ("relu", "tanh")
NET_WIDTH = 20
BATCH_SIZE = 10
# Our choice: rates over the threshold of SGD, which gradient descent takes too, and over the edge. With the
# second one the sharpest mode grows by 0.6 % per step: in all by 1e26, below what ends a run.
RATE, EDGE_RATE = 0.5, 1.003
N_STEPS_QUICK, N_STEPS_FULL, N_SHOWN = 1000, 10000, 24
# Before residuals of the linear net are rounding: its loss falls to 1e-9 or below.
NET_STEPS, NET_SHOWN = 40, 16
# The least alignment against d: (samples, features), and draws of each.
DIMENSIONS = (3, 5, 10, 20, 50, 100)
SIZES_QUICK, SIZES_FULL = ((100, 500), (400, 2000)), ((100, 500), (400, 2000), (1600, 8000))
DRAWS = 3
NODES = 200
ROUNDING = 1e-10
QUANTITIES = ("alpha", "beta", "mu")
RUNS = ("sgd", "descent", "constant", "edge")

TITLES = {"relu": "ReLU features", "tanh": "tanh features", "net": "Two-layer linear net"}
NAMES = {
    "sgd": "SGD",
    "descent": "gradient descent",
    "constant": "SGD from constant residuals",
    "edge": "gradient descent just beyond its edge",
}
LOOKS: dict[str, dict[str, Any]] = {
    "sgd": {"color": _sgd.SGD, "marker": "o"},
    "descent": {"color": _style.INK, "marker": "s"},
    "constant": {"color": _style.ORANGE, "marker": "D"},
    "edge": {"color": _style.VERMILLION, "marker": "o", "filled": False},
}
SIZE_COLORS = (_style.SKY, _sgd.SGD, _style.PURPLE)
LEVEL: dict[str, Any] = {"color": _style.QUIET, "lw": 1.0, "ls": (0, (4, 3))}


def thetas_at(
    problem: Any, start: Any, lr: float, batch_size: int | None, steps: Any, seed: int
) -> list[np.ndarray]:
    """The parameters at the given steps of one run; the first of them is 0."""
    rule = eosim.GradientDescent(lr)
    last = eosim.run(problem, rule, start, 0, batch_size=batch_size, seed=seed, record={})
    thetas = [last.final_state.theta]
    for before, step in itertools.pairwise(steps):
        last = eosim.run(
            problem, rule, None, int(step - before), batch_size=batch_size, state=last.final_state,
            record={}, every=int(step - before),
        )  # fmt: skip
        thetas.append(last.final_state.theta)
    return thetas


def linear_net(seed: int) -> tuple[eosim.LinearNet, np.ndarray]:
    """Gaussian inputs with the targets of a linear map, and that map."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((SAMPLES, INPUTS))
    target = rng.standard_normal(INPUTS)
    return eosim.LinearNet(inputs, inputs @ target, (NET_WIDTH,)), target


def population_mu(net: eosim.LinearNet, target: np.ndarray, theta: np.ndarray) -> float:
    """mu of the net at theta with infinitely many Gaussian inputs."""
    slopes = net.predictor_jacobian(theta)[:, 0]  # (inputs, dim)
    error = net.predictor(theta)[:, 0] - target
    return population_alignment(slopes.T @ slopes, slopes.T @ error, float(error @ error) / 2).mu


def constant_alignment(n_inputs: int, n_samples: int, n_features: int) -> float:
    r"""mu of the constant residual of ReLU features, a ratio of the exact means over inputs and weights.

    It is :math:`1 - \frac1n 1^\top\Theta^2 1 / |\Theta|_F^2`. Both are sums of products of four features,
    counted by which of their indices agree. One input and one weight give
    :math:`p_k = E\,\mathrm{relu}(w\cdot x)^k`, whichever of them is random; two of each give E k^2.
    """
    d, n, m = n_inputs, n_samples, n_features
    kernel = sphere_kernel(d)
    square, q = kernel.constant, kernel.mean_square
    orders = np.arange(1, 5)
    logarithm = gammaln(d / 2) + gammaln((orders + 1) / 2) - gammaln((d + orders) / 2)
    p1, p2, p3, p4 = d ** (orders / 2) * np.exp(logarithm) / (2 * np.sqrt(np.pi))
    norm = ((n - 1) * (m - 1) * q + (n + m - 2) * p2**2 + p4) / (n * m)
    triples = (n - 1) * (n - 2) * ((m - 1) * square**2 + square * p2)
    pairs = (n - 1) * (2 * ((m - 1) * square * p2 + p1 * p3) + (m - 1) * q + p2**2)
    same = (m - 1) * p2**2 + p4
    return float(1 - (triples + pairs + same) / (n**2 * m) / norm)


def quadrature_alignment(n_inputs: int) -> float:
    """The closed form of mu_0 from averages of k over the angle between two inputs."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    angles = np.pi * (nodes + 1) / 2
    density = weights * np.sin(angles) ** (n_inputs - 2)
    density /= density.sum()
    points = np.zeros((NODES, n_inputs))
    points[:, 0], points[:, 1] = np.cos(angles), np.sin(angles)
    first = np.eye(1, n_inputs)
    values = dual_kernel(np.sqrt(n_inputs) * first, np.sqrt(n_inputs) * points)[0]
    return float(1 - (density @ values) ** 2 / (density @ values**2))


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Alignment along runs with its band, of every eigenvector, and at its least against d."""
    seeds = range(SEEDS_QUICK if quick else SEEDS_FULL)
    n_steps = N_STEPS_QUICK if quick else N_STEPS_FULL
    steps = np.unique([0, *np.geomspace(1, n_steps, N_SHOWN).round().astype(int)])
    found: dict[str, list[Any]] = defaultdict(list)
    for activation, seed in itertools.product(ACTIVATIONS, seeds):
        problem = eosim.RandomFeatures.draw(SAMPLES, INPUTS, FEATURES, activation, seed)
        for name, value in _features(problem, steps, seed).items():
            found[f"{activation}_{name}"].append(value)
    net_steps = np.unique([0, *np.geomspace(1, NET_STEPS, NET_SHOWN).round().astype(int)])
    for seed in seeds:
        for name, value in _net(net_steps, seed).items():
            found[f"net_{name}"].append(value)
    sizes = SIZES_QUICK if quick else SIZES_FULL
    for (n, m), d, seed in itertools.product(sizes, DIMENSIONS, range(DRAWS)):
        kernel = _kernel(eosim.RandomFeatures.draw(n, d, m, seed=seed))
        found["least"].append(alignment_band(kernel).smallest)
        found["constant"].append(kernel_alignment(kernel, np.ones(n)).mu)
    arrays = {name: np.array(values) for name, values in found.items()}
    shape = (len(sizes), len(DIMENSIONS), DRAWS)
    return arrays | {
        "step": steps,
        "net_step": net_steps,
        "size": np.array(sizes),
        "least": arrays["least"].reshape(shape),
        "constant": arrays["constant"].reshape(shape),
        "constant_formula": np.array(
            [[constant_alignment(d, *size) for d in DIMENSIONS] for size in sizes]
        ),
        "closed_form": np.array([sphere_kernel(d).worst_alignment for d in DIMENSIONS]),
        "quadrature": np.array([quadrature_alignment(d) for d in DIMENSIONS]),
    }


def _kernel(problem: eosim.RandomFeatures) -> TangentKernel:
    return tangent_kernel(problem, np.zeros(problem.dim))


def _features(problem: eosim.RandomFeatures, steps: np.ndarray, seed: int) -> dict[str, Any]:
    """Runs of one random feature model from readout 0, where residuals are minus the targets."""
    kernel = _kernel(problem)
    constant = replace(problem, targets=-np.ones(SAMPLES))
    lr = RATE * critical_lr(kernel, BATCH_SIZE)
    edge = EDGE_RATE * 2 / kernel.largest
    found: dict[str, Any] = {
        "band": alignment_band(kernel),
        "vectors": [kernel_alignment(kernel, vector).mu for vector in kernel.vectors().T],
    }
    runs = {
        "sgd": (problem, lr, BATCH_SIZE),
        "descent": (problem, lr, None),
        "constant": (constant, lr, BATCH_SIZE),
        "edge": (problem, edge, None),
    }
    for name, (task, rate, batch_size) in runs.items():
        thetas = thetas_at(task, np.zeros(task.dim), rate, batch_size, steps, seed)
        rows = [kernel_alignment(kernel, task.residuals(theta)) for theta in thetas]
        found[name] = np.array(rows).T  # (quantity, step)
    return found


def _net(steps: np.ndarray, seed: int) -> dict[str, Any]:
    """Runs of one linear net, its band and the alignment of the population along them."""
    net, target = linear_net(seed)
    start = net.initial(seed)
    lr = RATE * critical_lr(tangent_kernel(net, start), BATCH_SIZE)
    found: dict[str, Any] = {}
    for name, batch_size in (("sgd", BATCH_SIZE), ("descent", None)):
        thetas = thetas_at(net, start, lr, batch_size, steps, seed)
        kernels = [tangent_kernel(net, theta) for theta in thetas]
        rows = [
            kernel_alignment(kernel, net.residuals(theta))
            for kernel, theta in zip(kernels, thetas, strict=True)
        ]
        found[name] = np.array(rows).T  # (quantity, step)
        found[f"{name}_band"] = np.array([alignment_band(kernel) for kernel in kernels]).T
        found[f"{name}_population"] = [population_mu(net, target, theta) for theta in thetas]
    return found


def _runs(arrays: dict[str, np.ndarray], model: str) -> list[str]:
    return [name for name in RUNS if f"{model}_{name}" in arrays]


def _band(arrays: dict[str, np.ndarray], model: str, name: str) -> np.ndarray:
    """(seed, 2, step), or one step where the band does not change."""
    if model == "net":
        return arrays[f"net_{name}_band"]
    return arrays[f"{model}_band"][:, :, None]


def _outside(arrays: dict[str, np.ndarray]) -> tuple[int, int]:
    """Values of mu that are not in their band, and values."""
    wrong = total = 0
    for model in TITLES:
        for name in _runs(arrays, model):
            band, mu = _band(arrays, model, name), arrays[f"{model}_{name}"][:, 2]
            inside = (band[:, 0] - ROUNDING <= mu) & (mu <= band[:, 1] + ROUNDING)
            wrong, total = wrong + int((~inside).sum()), total + mu.size
    return wrong, total


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """The band and its centre, what runs do in it, its lower end against d, linear nets."""
    wrong, total = _outside(arrays)
    centre = 1 - 1 / SAMPLES
    relu, tanh = (arrays[f"{activation}_vectors"] for activation in ACTIVATIONS)
    means = np.concatenate([relu.mean(axis=1), tanh.mean(axis=1)])
    smallest = arrays["relu_band"][:, :1]
    sgd, descent, constant, edge = (arrays[f"relu_{name}"][:, 2] for name in RUNS)
    formula = np.abs(arrays["constant"].mean(axis=2) / arrays["constant_formula"] - 1)
    closed = arrays["closed_form"]
    ten = DIMENSIONS.index(INPUTS)
    population = np.concatenate([arrays["net_sgd_population"], arrays["net_descent_population"]])
    return [
        Row(f"values of mu outside their band, of {total}", 0, 0, wrong),
        Row("|mean of mu over a basis - (1 - 1/n)|", 0, ROUNDING, np.abs(means - centre).max()),
        Row("ReLU: mu of eigenvector 1, largest", 0.25, 0, float(relu[:, 0].max()), "at most"),
        Row("ReLU: mu of all others, least", 0.9, 0, float(relu[:, 1:].min()), "at least"),
        Row("tanh: mu of all eigenvectors, least", 0.85, 0, float(tanh.min()), "at least"),
        Row("ReLU, SGD: mu, median", 0.9, 0, float(np.median(sgd)), "at least"),
        Row("ReLU, SGD: mu / mu_0, least", 2, 0, float((sgd / smallest).min()), "at least"),
        Row(
            "ReLU, gradient descent: |mu - (1 - 1/n)|",
            0,
            0.1,
            float(np.abs(descent - centre).max()),
        ),
        Row(
            "ReLU, constant residuals: mu / mu_0 at first",
            1,
            0.1,
            float((constant[:, :1] / smallest).max()),
        ),
        Row("  and later, median of mu", 0.9, 0, float(np.median(constant[:, 1:])), "at least"),
        Row(
            "ReLU beyond the edge: |last mu - of vector 1|",
            0,
            0.01,
            np.abs(edge[:, -1] - relu[:, 0]).max(),
        ),
        Row("  and last mu / mu_0", 1.25, 0, float((edge[:, -1:] / smallest).max()), "at most"),
        Row("tanh: mu_0, least", 0.7, 0, float(arrays["tanh_band"][:, 0].min()), "at least"),
        Row(
            "mu_0 of all d: |closed form - quadrature|",
            0,
            ROUNDING,
            float(np.abs(closed - arrays["quadrature"]).max()),
        ),
        Row("d = 100: 4 d mu_0 / pi^2", 1, 0.05, float(4 * DIMENSIONS[-1] * closed[-1] / np.pi**2)),
        Row("largest size: |constant / formula - 1|", 0, 0.02, float(formula[-1].max())),
        Row(
            "mu_0 / mu of the constant, largest",
            1,
            ROUNDING,
            float((arrays["least"] / arrays["constant"]).max()),
            "at most",
        ),
        Row(
            "largest size, d = 10: mu_0 / closed form",
            1,
            0.03,
            float(arrays["least"][-1, ten].mean() / closed[ten]),
        ),
        Row("linear nets: mu of population, least", 1, 0, float(population.min()), "at least"),
        Row("linear nets: mu of population, largest", 2, 0, float(population.max()), "at most"),
    ]


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """mu with its band, and its factors, along runs; mu of eigenvectors, and its least against d."""
    figure = _style.canvas(
        12.0,
        10.2,
        "SGD's noise stays aligned with the curvature along training; "
        "only special residuals have little noise",
        f"Own settings. Random features: n = {SAMPLES}, {FEATURES} features, inputs on the sphere in "
        f"$R^{{{INPUTS}}}$, normal targets. Net: n = {SAMPLES} normal inputs in $R^{{{INPUTS}}}$, "
        f"{NET_WIDTH} units, targets of a linear map. {len(arrays['relu_band'])} draws each; SGD with "
        f"B = {BATCH_SIZE}, {RATE:g} of its threshold\n"
        f"(gradient descent: the same rate); beyond the edge: {EDGE_RATE:g} × 2/λ. Definitions of α, β, μ: "
        "Wu, Wang & Su 2022; closed forms: derived here. Band: dark for all draws, light for one at least.",
    )
    _draw_legend(figure)
    outer = figure.add_gridspec(
        2,
        1,
        hspace=0.34,
        height_ratios=(1.75, 1),
        **_style.margins(figure, left=0.72, right=0.25, top=1.38, bottom=1.02),
    )
    top = outer[0].subgridspec(2, 3, wspace=0.2, hspace=0.2, height_ratios=(1.5, 1))
    for column, model in enumerate(TITLES):
        upper = figure.add_subplot(top[0, column])
        lower = figure.add_subplot(top[1, column])
        _draw_mu(upper, arrays, model)
        _draw_factors(lower, arrays, model)
        if column == 0:
            upper.set_ylabel(r"$\mu$   alignment")
            lower.set_ylabel(r"$\alpha,\ \beta$   its factors")
    bottom = outer[1].subgridspec(1, 2, wspace=0.14)
    _draw_vectors(figure.add_subplot(bottom[0]), arrays)
    _draw_least(figure.add_subplot(bottom[1]), arrays)
    return figure


def _points(name: str, size: float, **changes: Any) -> dict[str, Any]:
    return _style.points(**{**LOOKS[name], "size": size, **changes})


def _draw_legend(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    handles = [
        *(Line2D([], [], label=NAMES[name], **_points(name, 4.2)) for name in RUNS),
        Patch(color=_style.FAINT, label=r"band $[\mu_0, \mu_{\max}]$"),
        Line2D([], [], label=r"average over all residuals, $1 - 1/n$", **LEVEL),
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        ncols=len(handles),
        columnspacing=1.7,
        handletextpad=0.5,
        bbox_to_anchor=(0.08 / width, 1 - 0.42 / height),
    )


def _steps(axes: Axes, last: int) -> None:
    """Steps from 0 on, in decades."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.35)
    axes.set_xlim(-0.12, last * 1.15)
    ticks = [0, 1, 10, 100, 1000, 10000] if last > 100 else [0, 1, 2, 5, 10, 20, 40]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= last]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _model_steps(arrays: dict[str, np.ndarray], model: str) -> np.ndarray:
    return arrays["net_step" if model == "net" else "step"]


def _draw_mu(axes: Axes, arrays: dict[str, np.ndarray], model: str) -> None:
    steps = _model_steps(arrays, model)
    band = _band(arrays, model, "sgd")
    band = np.broadcast_to(band, (*band.shape[:2], len(steps)))
    for low, high in (
        (band[:, 0].min(axis=0), band[:, 1].max(axis=0)),
        (band[:, 0].max(axis=0), band[:, 1].min(axis=0)),
    ):
        axes.fill_between(steps, low, high, color=_style.FAINT, alpha=0.5, lw=0)
    axes.axhline(1 - 1 / SAMPLES, **LEVEL)
    few = len(arrays[f"{model}_sgd"]) <= SEEDS_QUICK
    for name in reversed(_runs(arrays, model)):
        mu = arrays[f"{model}_{name}"][:, 2]
        color = LOOKS[name]["color"]
        axes.plot(steps, np.median(mu, axis=0), color=color, lw=0.9, alpha=0.6)
        axes.plot(steps, mu.T, **_points(name, 2.6 if few else 1.7), alpha=0.75)
    _steps(axes, int(steps[-1]))
    axes.set_title(TITLES[model], pad=_style.SUBTITLE_PAD)
    least = band[:, 0].min()
    if model == "net":
        population = np.median(arrays["net_descent_population"], axis=0)
        axes.plot(steps, population, color=_style.GREEN, lw=1.6)
        axes.set_ylim(0.65, 2.15)
        axes.yaxis.set_major_locator(FixedLocator([0.8, 1, 1.2, 1.4, 1.6, 1.8, 2]))
        _style.subtitle(axes, "the band moves; green: n = ∞ along gradient descent")
        return
    axes.set_ylim(0, 1.5)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]))
    if model == "relu":
        _style.subtitle(axes, rf"$\mu_0$ down to {least:.2f}: that of nearly constant residuals")
    else:
        _style.subtitle(axes, rf"odd, no constant mode: $\mu_0$ is {least:.2f} or more")


def _draw_factors(axes: Axes, arrays: dict[str, np.ndarray], model: str) -> None:
    """Medians over draws: alpha as triangles that point up, beta down."""
    steps = _model_steps(arrays, model)
    for name in reversed(_runs(arrays, model)):
        alpha, beta, _ = np.median(arrays[f"{model}_{name}"], axis=0)
        for values, marker in ((alpha, "^"), (beta, "v")):
            axes.plot(steps, values, color=LOOKS[name]["color"], lw=0.8, alpha=0.6)
            axes.plot(steps, values, **_points(name, 3.4, marker=marker))
    _steps(axes, int(steps[-1]))
    axes.set_ylim(*((0.8, 1.3) if model == "net" else (0.35, 1.25)))
    axes.set_xlabel("step")
    if model == "relu":
        for marker, label in (("^", r"$\alpha$   direction"), ("v", r"$\beta$   magnitude")):
            axes.plot([], [], label=label, **_style.points(_style.QUIET, marker=marker))
        axes.legend(loc="center", bbox_to_anchor=(0.36, 0.42), handletextpad=0.1)


def _draw_vectors(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    """mu of each eigenvector by rank; lines: the constant and the d linear functions, n = infinity."""
    kernel = sphere_kernel(INPUTS)
    for eigenvalue, first, last in ((kernel.constant, 1, 1), (kernel.linear, 2, INPUTS + 1)):
        level = 1 - eigenvalue**2 / kernel.mean_square
        axes.plot([0.88 * first, 1.12 * last], [level, level], color=_style.INK, lw=1.6)
    ranks = np.arange(1, SAMPLES + 1)
    for activation, color, marker in (("tanh", _style.PURPLE, "s"), ("relu", _style.GREEN, "o")):
        mu = arrays[f"{activation}_vectors"]
        style = _style.points(color, marker=marker, size=2.6)
        lines = axes.plot(ranks, mu.T, alpha=0.6, **style)
        lines[0].set_label(TITLES[activation])
    axes.plot(
        [], [], color=_style.INK, lw=1.6, label=r"ReLU, $n = \infty$: $1 - \lambda_a^2/E k^2$"
    )
    axes.axhline(1 - 1 / SAMPLES, **LEVEL)
    axes.set_xscale("log")
    axes.set_xlim(0.8, SAMPLES * 1.15)
    axes.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100, 200]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(0, 1.2)
    axes.set_xlabel("rank of the eigenvector")
    axes.set_ylabel(r"$\mu$   alignment")
    axes.set_title("Which residuals have little noise", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "residuals along eigenvectors of the NTK: the constant of ReLU features")
    axes.legend(loc="lower right")


def _draw_least(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    d = np.array(DIMENSIONS)
    fine = np.unique(np.geomspace(d[0], d[-1], 60).round().astype(int))
    limit = [sphere_kernel(int(value)).worst_alignment for value in fine]
    axes.plot(fine, limit, color=_style.INK, lw=1.9, label="infinitely many")
    axes.plot(
        fine,
        np.pi**2 / (4 * fine),
        label=r"$\pi^2/4d$",
        color=_style.QUIET,
        lw=1.5,
        ls=(0, (1, 1.6)),
    )
    for (n, m), color, least in zip(arrays["size"], SIZE_COLORS, arrays["least"], strict=False):
        curve = [constant_alignment(int(value), n, m) for value in fine]
        axes.plot(fine, curve, color=color, lw=1.3, ls=(0, (5, 1.5)))
        label = f"n = {n}, {m} features"
        axes.plot(d, least, **_style.points(color, size=3.8))
        axes.plot([], [], color=color, lw=1.3, ls=(0, (5, 1.5)), marker="o", ms=3.8, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.018, 0.6)
    for axis, ticks in ((axes.xaxis, DIMENSIONS), (axes.yaxis, (0.02, 0.05, 0.1, 0.2, 0.5))):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("$d$   dimension of the inputs")
    axes.set_ylabel(r"$\mu_0$")
    axes.set_title(r"The least alignment $\mu_0$ of ReLU features", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes, "points: least over all residuals; dashed: exact means for the constant one"
    )
    axes.legend(loc="lower left")
