r"""At the edge of stability only the principal flow predicts gradient descent's next step.

A small tanh network trained by gradient descent at a constant rate: the sharpness settles at
:math:`h\lambda_1 = 2`, where every step overshoots the sharpest direction. Started anew at an iterate
and run for one step, gradient flow and modified flows miss the next iterate by about half a step,
because they cannot change the sign of that direction; the principal flow (tracked branch; Rosca, Wu,
Qin & Dherin 2023, arXiv 2302.01952) misses it by a few per cent, or by a tenth in a burst of
the loss. Its real part alone would not do (it is worse than gradient flow): the rotation is what
matters. Where the gradient has no weight on the sharpest direction all flows are good, and order 3
can win: over 20 steps from iterate 20 on, below the edge, its distance falls below that of the principal
flow, which it exceeds 19 times after the first one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import eosim
from figures import _flows, _style
from figures._headline import Row

# Our choice: 20 samples of sin(2 x_1) x_2, 2 inputs, 6 tanh units, 25 parameters, seed 0.
N_SAMPLES, HIDDEN, SEED = 20, 6, 0
# Our choice: a rate at which h * lambda_1 crosses 2 within 50 steps and stays there.
LR, N_STEPS = 0.7, 2000
# At the start, computed once by an independent implementation.
FIRST_LOSS, FIRST_EIGENVALUES = 0.5769, (0.694, 1.338, 3.315)
# Late, from iterate 1000 on, h * lambda_1 must lie within this.
LATE, LATE_LIMITS = 1000, (1.97, 2.06)
# Our choice: iterates to restart from, in pairs because the sharp direction alternates.
RESTARTS_QUICK = (1, 5, 10, 20, 30, 50, 70, 100, 101, 200, 201, 500, 501, 1000, 1999)
RESTARTS_FULL = tuple(
    sorted(
        {int(k) + odd for k in np.geomspace(2, 1998, 40) for odd in (0, 1)} | set(RESTARTS_QUICK)
    )
)
FLOWS = ("gradient", "order2", "order3", "principal")
# The principal flow must be this many times better than gradient flow and order 2 at these.
LEAD, LEAD_AT = 10.0, (100, 101, 500, 501)
# Our choice: where the long integration starts, with h * lambda_1 from 1.73 to 1.93, and its steps.
GLOBAL_FROM, GLOBAL_STEPS = 20, 20
GLOBAL_FLOWS = FLOWS
GLOBAL_LISTED = (1, 2, 5, 10, 20)
# Our choice: restart errors are 1e-4 and more.
RESTART_RTOL, GLOBAL_RTOL = 1e-7, 1e-9


@dataclass(frozen=True)
class RealPart:
    """The flow of the real part of the principal field at real states: what a user might try."""

    principal: eosim.PrincipalFlow

    is_complex = False

    @property
    def problem(self) -> eosim.problems.Problem:
        return self.principal.problem

    @property
    def lr(self) -> float:
        return self.principal.lr

    def field(self, theta: np.ndarray, branch: object = None) -> np.ndarray:
        return self.principal.field(theta).real

    def coefficient(self, z: np.ndarray) -> np.ndarray:
        return self.principal.coefficient(z).real


def network() -> tuple[eosim.Perceptron, np.ndarray]:
    """The problem and its initial parameters: weights N(0, 1/2) and N(0, 1/6), last bias 0."""
    generator = np.random.default_rng(SEED)
    inputs = generator.standard_normal((N_SAMPLES, 2))
    first = generator.standard_normal(3 * HIDDEN) / np.sqrt(2)  # rows of (6, 3), bias last
    second = generator.standard_normal(HIDDEN) / np.sqrt(HIDDEN)
    targets = np.sin(2 * inputs[:, 0]) * inputs[:, 1]
    problem = eosim.Perceptron(inputs, targets, hidden=(HIDDEN,))
    return problem, np.concatenate([first, second, [0.0]])


def compute(quick: bool) -> dict[str, np.ndarray]:
    """The run, its sharpness, restart errors along it, and one longer integration."""
    problem, start = network()
    descent = eosim.GradientDescent(LR)
    path = eosim.run(problem, descent, start, N_STEPS)
    states = path["theta"]
    # Nearly every step at first, then ever fewer, in pairs; every seventh late (both parities).
    pairs = np.unique(np.geomspace(1, N_STEPS - 1, 90).astype(int))
    measured = np.unique(
        np.concatenate([[0], pairs, pairs + 1, np.arange(LATE, N_STEPS + 1, 7 if quick else 1)])
    )
    restarts = np.array(RESTARTS_QUICK if quick else RESTARTS_FULL)
    flows = _flows.make(FLOWS, problem, LR)
    flows["real_part"] = RealPart(eosim.PrincipalFlow(problem, LR))
    arrays = {
        "loss": path["loss"],
        "first_eigenvalues": np.linalg.eigvalsh(problem.hessian(start))[-3:],
        "z_step": measured,
        "z": LR * np.array([eosim.measure.sharpness(problem, states[k]).value for k in measured]),
        "restart": restarts,
        "restart_z": LR
        * np.array([eosim.measure.sharpness(problem, states[k]).value for k in restarts]),
        "restart_weight": np.array([_weight(problem, states[k]) for k in restarts]),
    }
    for name, flow in flows.items():
        errors = []
        for k in restarts:
            one = eosim.integrate(flow, states[k], [LR], record={}, rtol=RESTART_RTOL)
            reached = one.status is eosim.Status.COMPLETED
            gap = one["theta"][0] - states[k + 1] if reached else np.array([np.nan])
            errors.append(np.linalg.norm(gap) / np.linalg.norm(states[k + 1] - states[k]))
        arrays[f"restart_{name}"] = np.array(errors)
    found = eosim.compare(
        problem,
        descent,
        states[GLOBAL_FROM],
        GLOBAL_STEPS,
        _flows.make(GLOBAL_FLOWS, problem, LR),
        restart=False,
        rtol=GLOBAL_RTOL,
    )
    for name, error in found.global_error.items():
        arrays[f"global_{name}"] = error
    return arrays


def _weight(problem: eosim.Perceptron, theta: np.ndarray) -> float:
    """|u_1 . g| / |g|."""
    g = problem.gradient(theta)
    top = np.linalg.eigh(problem.hessian(theta))[1][:, -1]
    return float(np.abs(top @ g) / np.linalg.norm(g))


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """The construction, the edge, and how far the principal flow leads."""
    rows = [Row("loss at the start", FIRST_LOSS, 5e-5, float(arrays["loss"][0]))]
    for rank, (expected, measured) in enumerate(
        zip(FIRST_EIGENVALUES, arrays["first_eigenvalues"], strict=True)
    ):
        rows.append(Row(f"eigenvalue {3 - rank} at the start", expected, 5e-4, float(measured)))
    late = arrays["z"][arrays["z_step"] >= LATE]
    rows += [
        Row("late: least h * lambda_1", LATE_LIMITS[0], 0.0, float(late.min()), "at least"),
        Row("late: largest h * lambda_1", LATE_LIMITS[1], 0.0, float(late.max()), "at most"),
        Row(
            "loss, last / first", 0.1, 0.0, float(arrays["loss"][-1] / arrays["loss"][0]), "at most"
        ),
    ]
    at = np.array([int(np.flatnonzero(arrays["restart"] == k)[0]) for k in LEAD_AT])
    principal = arrays["restart_principal"][at]
    for name in ("gradient", "order2"):
        for k, ratio in zip(LEAD_AT, arrays[f"restart_{name}"][at] / principal, strict=True):
            quantity = f"restart at {k}: {_flows.KINDS[name].label} / principal flow"
            rows.append(Row(quantity, LEAD, 0.0, float(ratio), "at least"))
    ratio = (arrays["restart_real_part"][at] / arrays["restart_gradient"][at]).min()
    rows.append(Row("its real part / gradient flow, there", 0.95, 0.0, float(ratio), "at least"))
    steps = list(GLOBAL_LISTED)
    for worse, better in (("gradient", "order2"), ("order2", "principal")):
        wide, narrow = arrays[f"global_{worse}"], arrays[f"global_{better}"]
        whole = len(wide) == len(narrow) == GLOBAL_STEPS + 1
        ratio = float((wide[steps] / narrow[steps]).min()) if whole else float("nan")
        label = f"from {GLOBAL_FROM}: {_flows.KINDS[worse].label} / {_flows.KINDS[better].label}"
        rows.append(Row(label, 1.0, 0.0, ratio, "at least"))
    wide, narrow = arrays["global_order3"], arrays["global_principal"]
    whole = len(wide) == len(narrow) == GLOBAL_STEPS + 1
    ratios = wide[1:] / narrow[1:] if whole else np.full(GLOBAL_STEPS, np.nan)
    label = f"from {GLOBAL_FROM}: {_flows.KINDS['order3'].label} / principal flow"
    rows += [
        Row(f"{label}, step 1", LEAD, 0.0, float(ratios[0]), "at least"),
        Row(f"{label}, step {GLOBAL_STEPS}", 1.0, 0.0, float(ratios[-1]), "at most"),
    ]
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Loss and sharpness along the run, restart errors, and the longer integration."""
    figure = _style.canvas(
        11.0,
        7.3,
        "At the edge of stability only the principal flow predicts gradient descent's next step",
        f"2-{HIDDEN}-1 tanh network, {N_SAMPLES} samples of $\\sin(2x_1)\\,x_2$, 25 parameters, "
        f"$h = {LR:g}$ (own setting). Restart error: the flow from iterate $k$ for one step, "
        "against iterate $k+1$, relative to the step.",
    )
    _flows.legend(figure, FLOWS, columns=5)
    grid = figure.add_gridspec(
        2,
        2,
        hspace=0.5,
        wspace=0.2,
        **_style.margins(figure, left=0.78, right=0.25, top=1.22, bottom=0.92),
    )
    _draw_loss(figure.add_subplot(grid[0, 0]), arrays)
    _draw_sharpness(figure.add_subplot(grid[1, 0]), arrays)
    _draw_restarts(figure.add_subplot(grid[0, 1]), arrays)
    _draw_global(figure.add_subplot(grid[1, 1]), arrays)
    return figure


def _step_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlim(0.85, 2500)
    axes.xaxis.set_major_locator(FixedLocator([1, 10, 100, 1000]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("$k$   iterate")


def _draw_loss(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("Loss", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "it bursts where the sharpness was above the edge, and falls again")
    loss = arrays["loss"]
    shown = arrays["z_step"][1:]
    axes.plot(np.arange(1, len(loss)), loss[1:], color=_style.GRADIENT_DESCENT, lw=0.5, alpha=0.5)
    axes.plot(shown, loss[shown], **_style.points(_style.GRADIENT_DESCENT, size=2.6))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([0.01, 0.03, 0.1, 0.3]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("$E$")
    _step_axis(axes)


def _draw_sharpness(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("Sharpness", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "it rises past the edge, is thrown back by each burst, and settles at 2")
    axes.axhline(2, color=_style.QUIET, lw=0.9, ls=(0, (4, 3)))
    look = _style.points(_style.GRADIENT_DESCENT, size=2.6)
    axes.plot(arrays["z_step"][1:], arrays["z"][1:], **look)
    axes.set_ylim(1.1, 2.6)
    axes.yaxis.set_major_locator(FixedLocator([1.2, 1.6, 2.0, 2.4]))
    axes.set_ylabel(r"$h\lambda_1$")
    axes.text(1, 2.03, "edge: 2", fontsize=7.5, color=_style.QUIET)
    _step_axis(axes)


def _draw_restarts(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title("Restart error", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "from single iterates; grey: real part of the principal field only")
    k = arrays["restart"]
    axes.plot(k, arrays["restart_real_part"], color=_style.QUIET, lw=0.9, zorder=1)
    for name in FLOWS:
        kind, error = _flows.KINDS[name], arrays[f"restart_{name}"]
        axes.plot(k, error, color=kind.color, ls=kind.line, lw=0.8)
        look = _style.points(kind.color, marker=kind.marker, size=4)
        axes.plot(k, error, **look)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([1e-4, 1e-3, 1e-2, 1e-1, 1]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(1e-4, 2)
    axes.set_ylabel("error / length of the step")
    axes.annotate(
        "gradient across the\nsharp direction",
        (25, 3e-4),
        xytext=(1.1, 3e-4),
        fontsize=7.5,
        va="center",
        color=_style.QUIET,
        arrowprops={"arrowstyle": "-", "lw": 0.7, "color": _style.QUIET},
    )
    _step_axis(axes)


def _draw_global(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    axes.set_title(
        f"Distance from gradient descent, from iterate {GLOBAL_FROM} on", pad=_style.SUBTITLE_PAD
    )
    _style.subtitle(
        axes, "one integration, $h\\lambda_1$ from 1.73 to 1.93: below the edge order 3 overtakes"
    )
    for name in GLOBAL_FLOWS:
        kind, error = _flows.KINDS[name], arrays[f"global_{name}"]
        steps = np.arange(1, len(error))
        axes.plot(steps, error[1:], color=kind.color, ls=kind.line, lw=0.8)
        axes.plot(steps, error[1:], **_style.points(kind.color, marker=kind.marker, size=4))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([1e-5, 1e-4, 1e-3, 1e-2]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(8e-6, 1.3e-2)
    axes.set_xlim(0, GLOBAL_STEPS + 1)
    axes.xaxis.set_major_locator(FixedLocator([1, 5, 10, 15, 20]))
    axes.set_ylabel(r"$|\theta(nh) - \theta_{20+n}|$")
    axes.set_xlabel("$n$   steps from iterate 20")
