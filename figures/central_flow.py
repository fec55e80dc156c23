r"""At the edge of stability the central flow stays with gradient descent, which gradient flow leaves.

Where gradient descent swings along its sharpest directions, the average over the swings moves by a flow of
its own (Cohen et al. 2024, arXiv 2410.24206): gradient flow with the force of an oscillation, whose
covariance is what keeps the sharpness at 2/lr. It is found from a semidefinite complementarity problem,
for as many directions as are at the edge. The edge flow (after Marion 2026, arXiv 2606.18080; the
equations are our own) has the oscillation itself, with its bursts.

Three cases. A valley with a slow variable, :math:`L = y x^2/2 + c\,(y + qz - m)^2/2`, where all is known in
closed form: :math:`\Sigma = 2cD e^{-\eta c q^2 k}` and :math:`z = (D/q)(1 - e^{-\eta c q^2 k})` with
:math:`D = m - 2/\eta`, while gradient flow stops at :math:`z = qD/(1+q^2)`. A wide small network, of which
four directions reach the edge within 240 steps. And a network on handwritten digits, where one direction
arrives at a time.

Limits, all visible: the central flow has no onset, so that it is early until gradient descent's
oscillation has grown (up to the first burst gradient flow is closer); it predicts averages over the
bursts of the loss, not the bursts; and with several directions at the edge its covariance is only
approximately that of gradient descent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from scipy.sparse.linalg import LinearOperator, eigsh

import eosim
from eosim.flows import CentralFlow, EdgeFlow
from eosim.problems.base import Problem
from figures import _style
from figures._headline import MissingPackage, Row
from figures.edge_onset import KINDS, smooth

# Our choice: D = 4 as in the valley of `edge_onset`, and a variable that takes 20,000 steps to move.
VALLEY_LR, FORCE, COUPLING, TOP = 0.02, 1.0, 0.05, 104.0
VALLEY_STEPS_QUICK, VALLEY_STEPS_FULL, VALLEY_POINTS = 20_000, 60_000, 41
# Our choice: gradient descent is averaged over some thirty periods of its ringing, and compared once that
# has died out.
WINDOW, VALLEY_FROM = 1001, 3000
VALLEY_FEEDBACK = 0.05  # our choice: weak, so that the solver's steps may be long
# Our choice: 50 samples of noise to fit, 5-40-1 with tanh, 281 parameters, seed 0, whose sharpness at the
# start is just beyond 2/lr. Flows have to have few directions at the edge, hence wide and few samples.
N_SAMPLES, N_INPUTS, HIDDEN, SEED = 50, 5, 40, 0
NETWORK_LR, NETWORK_STEPS_QUICK, NETWORK_STEPS_FULL = 0.4, 240, 800
# Our choice: 200 digits, 64-16-10, 1210 parameters. The first steps are at a lower rate: the sharpness at
# the start is far beyond every edge, and a flow cannot follow how gradient descent comes down from there.
N_DIGITS, DIGITS_HIDDEN, DIGITS_WARM_LR, DIGITS_WARM_STEPS = 200, 16, 0.4, 130
DIGITS_LR, DIGITS_STEPS_QUICK, DIGITS_STEPS_FULL = 0.5, 300, 500
# Our choice: gradient descent starts this far along the sharpest direction; from a much smaller
# displacement its oscillation comes later, and every flow without an onset looks early by that.
DISPLACEMENT = 1e-2
# Steps between states of a flow: the central flow's field is dear, and the solver lands on every one.
EVERY, FINE = 10, 5
# Our choice, seen in the runs: where the first burst of the oscillation is over, and where the last
# direction has come (in the small network the fourth).
ONSETS = {"network": 40, "digits": 150}
SETTLED = {"network": 80, "digits": 180}
RTOL, ATOL = 1e-6, 1e-9
# How many times closer than gradient flow: the least from each of the two on, and at the end.
GAIN_ONSET, GAIN_SETTLED, GAIN_END = 2.0, 3.0, 5.0
N_MODES, EDGE_MODES, EIGENVALUES = 5, 4, 5
AT_EDGE = 0.9  # of the edge, from where a direction is counted

FLOWS = ("gradient", "central", "edge")


@dataclass(frozen=True)
class Case:
    """A network and what follows it."""

    name: str
    problem: eosim.Perceptron
    lr: float
    start: np.ndarray
    n_steps: int
    flows: dict[str, Any]


def valley() -> Problem:
    """y x^2/2 + c (y + q z - m)^2/2 in (x, y, z)."""
    c, q, m = FORCE, COUPLING, TOP
    terms = {(2, 1, 0): 0.5, (0, 2, 0): c / 2, (0, 0, 2): c * q**2 / 2, (0, 0, 0): c * m**2 / 2}
    terms |= {(0, 1, 1): c * q, (0, 1, 0): -c * m, (0, 0, 1): -c * q * m}
    return eosim.Polynomial(terms)


def network() -> tuple[eosim.Perceptron, np.ndarray]:
    """The wide small network and its weights: N(0, 1/inputs) and N(0, 1/units), biases 0."""
    rng = np.random.default_rng(SEED)
    inputs, targets = rng.standard_normal((N_SAMPLES, N_INPUTS)), rng.standard_normal(N_SAMPLES)
    first = rng.standard_normal((N_INPUTS, HIDDEN)) / np.sqrt(N_INPUTS)
    second = rng.standard_normal(HIDDEN) / np.sqrt(HIDDEN)
    rows = np.hstack([first.T, np.zeros((HIDDEN, 1))])
    problem = eosim.Perceptron(inputs, targets, (HIDDEN,))
    return problem, np.concatenate([rows.ravel(), second, [0.0]])


def digits_network() -> tuple[eosim.Perceptron, np.ndarray]:
    """A network on digits, after some steps of gradient descent at a lower rate."""
    try:
        digits = eosim.data.digits(N_DIGITS, centre=True, scale="block")
    except ImportError:
        raise MissingPackage(
            "it needs scikit-learn for its data, which is not installed; "
            'run: pip install -e ".[figures]"'
        ) from None
    problem = eosim.Perceptron(digits.inputs, digits.targets, (DIGITS_HIDDEN,))
    descent = eosim.GradientDescent(DIGITS_WARM_LR)
    warm = eosim.run(problem, descent, problem.initial(SEED), DIGITS_WARM_STEPS, record={})
    return problem, warm["theta"][-1]


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Gradient descent and flows in the three cases."""
    arrays = _valley_arrays(VALLEY_STEPS_QUICK if quick else VALLEY_STEPS_FULL)
    for case in _networks(quick):
        arrays |= {f"{case.name}_{key}": value for key, value in _follow(case).items()}
    return arrays


def _networks(quick: bool) -> list[Case]:
    problem, start = network()
    images, warm = digits_network()
    small: dict[str, Any] = {
        "gradient": eosim.GradientFlow(problem, NETWORK_LR),
        "central": CentralFlow(problem, eosim.GradientDescent(NETWORK_LR), N_MODES),
        "edge": EdgeFlow(problem, NETWORK_LR, EDGE_MODES),
    }
    large: dict[str, Any] = {
        "gradient": eosim.GradientFlow(images, DIGITS_LR),
        "edge": EdgeFlow(images, DIGITS_LR, EDGE_MODES),
    }
    if not quick:  # a minute and more
        large["central"] = CentralFlow(images, eosim.GradientDescent(DIGITS_LR), N_MODES)
    return [
        Case(
            "network",
            problem,
            NETWORK_LR,
            start,
            NETWORK_STEPS_QUICK if quick else NETWORK_STEPS_FULL,
            small,
        ),
        Case(
            "digits",
            images,
            DIGITS_LR,
            warm,
            DIGITS_STEPS_QUICK if quick else DIGITS_STEPS_FULL,
            large,
        ),
    ]


def _valley_arrays(n_steps: int) -> dict[str, np.ndarray]:
    problem, edge = valley(), 2 / VALLEY_LR
    descent = eosim.GradientDescent(VALLEY_LR)
    half = WINDOW // 2
    run = eosim.run(problem, descent, [DISPLACEMENT, edge, 0.0], n_steps + half)
    steps = np.linspace(0, n_steps, VALLEY_POINTS).round().astype(int)
    x, y, z = run["theta"].T
    decay = np.exp(-VALLEY_LR * FORCE * COUPLING**2 * steps)
    D = TOP - edge
    arrays = {
        "valley_step": steps,
        "valley_sigma_closed": 2 * FORCE * D * decay,
        "valley_z_closed": D / COUPLING * (1 - decay),
        "valley_late": steps[(steps >= VALLEY_FROM)],
    }
    late = arrays["valley_late"]
    for name, values in (("sigma", x**2), ("y", y), ("z", z), ("loss", run["loss"])):
        totals = np.concatenate([[0.0], np.cumsum(values)])
        arrays[f"valley_{name}_descent"] = (totals[late + half + 1] - totals[late - half]) / WINDOW
    # Flows of the average start on the axis: the swing across the valley is in their covariance.
    flows: dict[str, tuple[Any, float]] = {
        "gradient": (eosim.GradientFlow(problem, VALLEY_LR), 0.0),
        "central": (CentralFlow(problem, descent, feedback=VALLEY_FEEDBACK), 0.0),
        "edge": (EdgeFlow(problem, VALLEY_LR), DISPLACEMENT),
    }
    for name, (flow, start) in flows.items():
        path = eosim.integrate(flow, [start, edge, 0.0], VALLEY_LR * steps, rtol=1e-7)
        arrays |= {f"valley_{key}_{name}": path["theta"][:, i] for i, key in ((1, "y"), (2, "z"))}
        gradient = name == "gradient"
        arrays[f"valley_loss_{name}"] = path["loss" if gradient else "average.loss"]
        if not gradient:
            arrays[f"valley_sigma_{name}"] = path["average.oscillation"]
    return arrays


def _follow(case: Case) -> dict[str, np.ndarray]:
    """Gradient descent from beside the start, flows from there, and their distances."""
    problem, lr = case.problem, case.lr
    sharpest = _top(problem, case.start)[1][:, 0]
    start = case.start + DISPLACEMENT * sharpest
    run = eosim.run(problem, eosim.GradientDescent(lr), start, case.n_steps + 1)
    states, steps = smooth(run["theta"]), np.arange(0, case.n_steps + 1, EVERY)
    arrays = {
        "step": steps,
        "loss": run["loss"][:-1],
        "loss_smooth": smooth(run["loss"]),
        "eigenvalues": np.array([_top(problem, states[k])[0] * lr / 2 for k in steps]),
    }
    for name, flow in case.flows.items():
        asked = steps if name == "central" else np.arange(0, case.n_steps + 1, FINE)
        path = eosim.integrate(flow, start, lr * asked, rtol=RTOL, atol=ATOL)
        reached = asked[: len(path)]
        arrays[f"step_{name}"] = reached
        arrays[f"distance_{name}"] = np.linalg.norm(path["theta"] - states[reached], axis=1)
        if name == "gradient":
            arrays["loss_gradient"] = path["loss"]
            arrays["ratio_gradient"] = np.array(
                [_top(problem, theta)[0][0] * lr / 2 for theta in path["theta"][:: EVERY // FINE]]
            )
        else:
            for key in ("loss", "ratio"):
                arrays[f"{key}_{name}"] = path[f"average.{key}"]
    return arrays


def _top(problem: eosim.Perceptron, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues of the Hessian, descending, and their vectors, the signs fixed."""
    operator = LinearOperator((problem.dim,) * 2, matvec=problem.hvp_at(theta), dtype=float)
    values, vectors = eigsh(operator, EIGENVALUES, which="LA", v0=np.ones(problem.dim), tol=1e-9)
    values, vectors = values[::-1], vectors[:, ::-1]
    return values, vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), range(EIGENVALUES)])


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """The closed forms of the valley, and how much closer than gradient flow the others stay."""
    late = np.isin(arrays["valley_step"], arrays["valley_late"])
    D, rows = TOP - 2 / VALLEY_LR, []
    for key, symbol, tolerance in (("sigma", "Sigma", 1e-4), ("z", "z", 1e-5)):
        found, closed = arrays[f"valley_{key}_central"][1:], arrays[f"valley_{key}_closed"][1:]
        quantity = f"valley: {symbol} of the central flow, error"
        rows.append(Row(quantity, tolerance, 0.0, _worst(found, closed), "at most"))
    # z of gradient descent is late by the onset, 2.4 % of its way at step 3000.
    for key, name, tolerance in (
        ("sigma", "x^2", 0.01),
        ("loss", "loss", 0.01),
        ("y", "y", 1e-4),
        ("z", "z", 0.025),
    ):
        for flow, label, share in (("central", "central flow", 1.0), ("edge", "edge flow", 0.1)):
            found, mean = arrays[f"valley_{key}_{flow}"], arrays[f"valley_{key}_descent"]
            error = _worst(found[late], mean) if len(found) == len(late) else np.nan
            quantity = f"valley: mean {name} against {label}"
            rows.append(Row(quantity, share * tolerance, 0.0, error, "at most"))
    stopped = COUPLING * D / (1 + COUPLING**2)
    reached = float(arrays["valley_z_gradient"][-1])
    rows.append(Row("valley: gradient flow stops at z", stopped, 1e-6, reached))
    for case in ("network", "digits"):
        rows += _network_rows(arrays, case)
    return rows


def _network_rows(arrays: dict[str, np.ndarray], case: str) -> list[Row]:
    steps, rows = arrays[f"{case}_step"], []
    if case == "network":
        count = int((arrays["network_eigenvalues"][-1] > AT_EDGE).sum())
        rows.append(Row(f"network: directions above {AT_EDGE:g} of the edge", 4, 0, count))
    ratio = float(arrays[f"{case}_ratio_gradient"][-1])
    rows.append(Row(f"{case}: sharpness of gradient flow", 1.1, 0.0, ratio, "at least"))
    rows.append(
        Row(
            f"{case}: mean loss, gradient flow",
            0.95,
            0.0,
            _mean_loss(arrays, case, "gradient"),
            "at most",
        )
    )
    for name in ("central", "edge"):
        if f"{case}_distance_{name}" not in arrays:
            continue
        label, gain = KINDS[name].label, _gain(arrays, case, name)
        for start, bound in (
            (ONSETS[case], GAIN_ONSET),
            (SETTLED[case], GAIN_SETTLED),
            (steps[-1], GAIN_END),
        ):
            quantity = f"{case}: {label}, times closer from step {start}"
            rows.append(Row(quantity, bound, 0.0, float(gain[steps >= start].min()), "at least"))
        rows.append(Row(f"{case}: mean loss, {label}", 1.0, 0.15, _mean_loss(arrays, case, name)))
    return rows


def _worst(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative difference; NaN for a flow that ended early."""
    if found.shape != expected.shape:
        return float("nan")
    return float(np.abs(found / expected - 1).max())


def _gain(arrays: dict[str, np.ndarray], case: str, name: str) -> np.ndarray:
    """Distance of gradient flow over that of a flow at every comparison; NaN where one has ended."""
    steps = arrays[f"{case}_step"]
    gain = np.full(len(steps), np.nan)
    far, near = (_compared(arrays, case, flow) for flow in ("gradient", name))
    n = min(len(near), len(far))
    gain[1:n] = far[1:n] / near[1:n]
    return gain


def _compared(arrays: dict[str, np.ndarray], case: str, name: str) -> np.ndarray:
    """A flow's distances at the steps at which all flows have a state."""
    common = np.isin(arrays[f"{case}_step_{name}"], arrays[f"{case}_step"])
    return arrays[f"{case}_distance_{name}"][common]


def _mean_loss(arrays: dict[str, np.ndarray], case: str, name: str) -> float:
    """A flow's loss over gradient descent's, both averaged from the onset on."""
    steps, loss = arrays[f"{case}_step_{name}"], arrays[f"{case}_loss_{name}"]
    if steps[-1] < arrays[f"{case}_step"][-1]:
        return float("nan")
    onset = ONSETS[case]
    return float(np.mean(loss[steps >= onset]) / np.mean(arrays[f"{case}_loss_smooth"][onset:]))


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """A column per case: oscillation or loss, sharpness, and distance from the average."""
    figure = _style.canvas(
        11.0,
        9.3,
        "At the edge of stability central and edge flow stay with gradient descent; "
        "gradient flow leaves",
        "Own settings. Gradient descent: points are averages over the swings "
        "($\\frac{1}{4}, \\frac{1}{2}, \\frac{1}{4}$ over three steps; in the valley over "
        f"{WINDOW} steps), the thin line is the loss itself.\n"
        f"Valley: $L = y\\,x^2/2 + (y + {COUPLING:g}\\,z - {TOP:g})^2/2$, $\\eta = {VALLEY_LR:g}$. "
        f"Networks: tanh, square loss, $\\eta = {NETWORK_LR:g}$ and {DIGITS_LR:g}.",
    )
    _legend(figure)
    grid = figure.add_gridspec(
        3,
        3,
        hspace=0.42,
        wspace=0.24,
        **_style.margins(figure, left=0.75, right=0.22, top=1.3, bottom=1.08),
    )
    _draw_valley([figure.add_subplot(grid[row, 0]) for row in range(3)], arrays)
    for column, case in enumerate(("network", "digits"), 1):
        _draw_network([figure.add_subplot(grid[row, column]) for row in range(3)], case, arrays)
    return figure


def _legend(figure: Figure) -> None:
    look = _style.points(_style.GRADIENT_DESCENT, size=4)
    handles = [Line2D([], [], label="gradient descent, averaged", **look)]
    for kind in (KINDS[name] for name in FLOWS):
        handles.append(Line2D([], [], label=kind.label, color=kind.color, ls=kind.line))
    look = {"color": _style.SKY, "lw": 0.9}
    handles.append(Line2D([], [], label="gradient descent, further eigenvalues", **look))
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="upper left",
        ncols=5,
        columnspacing=2.2,
        bbox_to_anchor=(0.1 / width, 1 - 0.42 / height),
    )


def _draw_valley(panels: list[Axes], arrays: dict[str, np.ndarray]) -> None:
    top, middle, bottom = panels
    steps, late = arrays["valley_step"] / 1000, arrays["valley_late"] / 1000
    look = _style.points(_style.GRADIENT_DESCENT, size=3.2)
    top.set_title("Valley with a slow variable", pad=_style.SUBTITLE_PAD)
    _style.subtitle(top, "the oscillation, and what flows predict of it")
    for name, width in (("edge", 3.2), ("central", 1.2)):  # one lies on the other
        kind, values = KINDS[name], arrays[f"valley_sigma_{name}"]
        top.plot(steps[: len(values)], values, color=kind.color, lw=width)
    top.axhline(0, color=_style.GRADIENT_FLOW, ls=KINDS["gradient"].line, lw=1.3)
    top.plot(late[::3], arrays["valley_sigma_descent"][::3], **look, zorder=5)
    top.text(
        0.97,
        0.93,
        r"$\Sigma = 2cD\,e^{-\eta c q^2 k}$",
        transform=top.transAxes,
        ha="right",
        va="top",
    )
    top.set_ylim(-0.4, 9)
    top.set_ylabel(r"$x^2$   averaged, and $\Sigma$")
    _style.subtitle(middle, "sharpness: all but gradient flow rest at the edge")
    for name, width in (("gradient", 1.4), ("edge", 3.2), ("central", 1.2)):
        kind, values = KINDS[name], arrays[f"valley_y_{name}"] * VALLEY_LR / 2
        middle.plot(steps[: len(values)], values, color=kind.color, ls=kind.line, lw=width)
    middle.plot(late[::3], arrays["valley_y_descent"][::3] * VALLEY_LR / 2, **look, zorder=5)
    middle.set_ylim(0.985, 1.05)
    middle.yaxis.set_major_locator(FixedLocator([1.0, 1.02, 1.04]))
    middle.set_ylabel(r"$\eta\,S/2$   1 at the edge")
    _style.subtitle(bottom, "distance from the average of gradient descent")
    at = np.isin(arrays["valley_step"], arrays["valley_late"])
    for name in FLOWS:
        kind = KINDS[name]
        if len(arrays[f"valley_z_{name}"]) < len(at):
            continue
        gaps = [arrays[f"valley_{k}_{name}"][at] - arrays[f"valley_{k}_descent"] for k in "yz"]
        bottom.plot(late, np.hypot(*gaps), color=kind.color, ls=kind.line, lw=1.5)
    bottom.set_yscale("log")
    bottom.set_ylim(1e-3, 200)
    bottom.yaxis.set_major_locator(FixedLocator([1e-3, 1e-2, 1e-1, 1, 10, 100]))
    bottom.yaxis.set_minor_locator(NullLocator())
    bottom.set_ylabel("distance")
    for axes in panels:
        axes.set_xlim(0, steps[-1])
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    bottom.set_xlabel("$k$   iterate, in thousands")


_TITLES = {
    "network": "Wide small network: 5-40-1, 281 parameters",
    "digits": "Digits: 64-16-10, 1210 parameters",
}
_LOSSES = {
    "network": "loss: its mean is right, and the edge flow bursts too",
    "digits": "loss: it bursts as the first direction comes to the edge",
}
_RATIOS = {
    "network": "sharpness: four directions come to the edge",
    "digits": "sharpness: one direction at the edge, a second near",
}


def _draw_network(panels: list[Axes], case: str, arrays: dict[str, np.ndarray]) -> None:
    top, middle, bottom = panels
    steps = arrays[f"{case}_step"]
    n_steps, look = int(steps[-1]), _style.points(_style.GRADIENT_DESCENT, size=2.4)
    shown = np.arange(0, n_steps + 1, max(1, n_steps // 80))
    flows = [name for name in FLOWS if f"{case}_distance_{name}" in arrays]
    top.set_title(_TITLES[case], pad=_style.SUBTITLE_PAD)
    _style.subtitle(top, _LOSSES[case])
    _style.subtitle(middle, _RATIOS[case])
    gains = ", ".join(f"{name} {_gain(arrays, case, name)[-1]:.0f}×" for name in flows[1:])
    _style.subtitle(bottom, f"distance: {gains} smaller at the end")
    if "central" not in flows:
        middle.text(
            0.98,
            0.03,
            "central flow: not computed here",
            transform=middle.transAxes,
            ha="right",
            fontsize=7.5,
            color=_style.QUIET,
        )
    loss = arrays[f"{case}_loss"]
    top.plot(np.arange(len(loss)), loss, color=_style.GRADIENT_DESCENT, lw=0.5, alpha=0.35)
    top.plot(shown, arrays[f"{case}_loss_smooth"][shown], **look, zorder=4)
    middle.axhline(1, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    eigenvalues = arrays[f"{case}_eigenvalues"]
    middle.plot(steps, eigenvalues[:, 1:], color=_style.SKY, lw=0.9)
    sparse = slice(None, None, max(1, len(steps) // 50))
    middle.plot(steps[sparse], eigenvalues[sparse, 0], **look, zorder=4)
    for name in flows:
        kind = KINDS[name]
        reached = arrays[f"{case}_step_{name}"]
        for axes, key in ((top, "loss"), (middle, "ratio"), (bottom, "distance")):
            values = arrays[f"{case}_{key}_{name}"]
            at = steps if len(values) < len(reached) else reached
            axes.plot(at[1 : len(values)], values[1:], color=kind.color, ls=kind.line, lw=1.4)
    for axes in (top, bottom):
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if case == "network":
        top.yaxis.set_major_locator(FixedLocator([0.001, 0.01, 0.03, 0.1, 0.3]))
        middle.set_ylim(0.45, 2.0)
    else:
        top.yaxis.set_major_locator(FixedLocator([0.02, 0.03, 0.04, 0.06]))
        middle.set_ylim(0.68, 1.2)
    bottom.yaxis.set_major_locator(FixedLocator([1e-3, 1e-2, 1e-1, 1]))
    bottom.set_ylim(1e-3, 6)
    for axes in panels:
        axes.set_xlim(0, n_steps)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    top.set_ylabel("$L$")
    bottom.set_xlabel("$k$   iterate")
