r"""The principal flow passes through every iterate of gradient descent on a quadratic.

On a quadratic each direction of curvature :math:`\lambda` is multiplied by :math:`1-z` per step of
gradient descent, :math:`z = h\lambda`, by :math:`e^{-z}` in the same time of gradient flow, and by
:math:`e^{\log(1-z)} = 1-z` in that of the principal flow (Rosca, Wu, Qin & Dherin 2023, arXiv
2302.01952). Gradient descent decays monotonically for :math:`0<z<1`, oscillates for
:math:`1<z<2`, cycles at :math:`z=2` and diverges beyond; gradient flow decays in all of them.

The flow is complex where :math:`z > 1`. Between the iterates its real part is drawn, with the
logarithm continued along the path from :math:`+i\pi`; at the iterates every branch agrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

import eosim
from eosim.flows import Flow
from figures import _style
from figures._headline import Row

# The quadratic E = x'Ax, A = diag(1, .01), hence H = 2A, and the start: settings of the published
# code of Rosca et al. 2023.
HESSIAN = np.diag([2.0, 0.02])
START = (-0.35, -0.2)


@dataclass(frozen=True)
class Regime:
    """A learning rate and how long it is followed: iterates drawn, and checked."""

    name: str
    title: str
    lr: float
    drawn: int
    checked_quick: int
    checked_full: int
    source: str


REGIMES = (
    # Our choice: half-way to z = 1. Not longer: its sharp coordinate is down to 1e-12 by then.
    Regime("monotone", "0 < z < 1   monotone", 0.25, 12, 20, 40, "own setting"),
    # Settings of the published code, which makes 200 steps at both rates.
    Regime("oscillating", "1 < z < 2   oscillating", 0.9, 12, 20, 200, "published setting"),
    Regime("cycle", "z = 2   cycling", 1.0, 12, 20, 200, "published setting"),
    # The published code makes 5 steps; more are ours, to see the divergence.
    Regime("diverging", "z > 2   diverging", 1.05, 12, 20, 200, "published setting"),
)
# Our choice: points per step of the curves between iterates; more would not be seen.
DENSITY = 24
# Tight, and relative only: the sharp coordinate falls through ten orders of magnitude.
RTOL, ATOL = 1e-12, 0.0
# The solver's tolerance times the number of steps, with a factor of 5 to spare in the longest run.
LARGEST_ERROR = 1e-9
# Where gradient flow cannot follow a sign its error is 1 + (e^-z / |z - 1|)^k at odd k and
# 1 - (e^-z / |z - 1|)^k at even k: at least .957 at z = 1.8, more beyond.
SMALLEST_ERROR_OF_GRADIENT_FLOW = 0.95


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Iterates, both flows at the iterates and between them, and errors, for each regime."""
    problem = eosim.Quadratic(HESSIAN)
    arrays: dict[str, np.ndarray] = {}
    for regime in REGIMES:
        n_steps = regime.checked_quick if quick else regime.checked_full
        rule = eosim.GradientDescent(lr=regime.lr)
        iterates = eosim.run(problem, rule, START, n_steps, record={})["theta"]
        arrays[f"{regime.name}_iterates"] = iterates
        flows: dict[str, Flow] = {
            "principal": eosim.PrincipalFlow(problem, lr=regime.lr),
            "gradient": eosim.GradientFlow(problem, lr=regime.lr),
        }
        for kind, flow in flows.items():
            times = regime.lr * np.arange(n_steps + 1)
            states = eosim.integrate(flow, START, times, record={}, rtol=RTOL, atol=ATOL)["theta"]
            # Relative to the iterate's own coordinate, the worse of the two: nothing is hidden by
            # a large slow coordinate. Complex states count with their imaginary part.
            errors = np.abs(states - iterates[: len(states)]) / np.abs(iterates[: len(states)])
            arrays[f"{regime.name}_{kind}_error"] = errors.max(axis=1)
            fine = regime.lr * np.arange(DENSITY * regime.drawn + 1) / DENSITY
            curve = eosim.integrate(flow, START, fine, record={}, rtol=RTOL, atol=ATOL)["theta"]
            arrays[f"{regime.name}_{kind}_curve"] = curve.real
    return arrays


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """The principal flow is exact at the iterates; gradient flow misses every sign flip."""
    rows = []
    for regime in REGIMES:
        error = arrays[f"{regime.name}_principal_error"]
        n_steps = len(arrays[f"{regime.name}_iterates"]) - 1
        quantity = f"z = {_curvature(regime):g}: principal flow, error over {n_steps} steps"
        # An integration that ended early has not followed the iterates.
        worst = float(error.max()) if len(error) == n_steps + 1 else np.inf
        rows.append(Row(quantity, LARGEST_ERROR, 0.0, worst, "at most"))
    for regime in REGIMES[1:]:
        error = arrays[f"{regime.name}_gradient_error"][1:]
        quantity = f"z = {_curvature(regime):g}: gradient flow, least error at any step"
        rows.append(
            Row(quantity, SMALLEST_ERROR_OF_GRADIENT_FLOW, 0.0, float(error.min()), "at least")
        )
    return rows


def _curvature(regime: Regime) -> float:
    """z = h * lambda of the sharp direction."""
    return regime.lr * float(HESSIAN[0, 0])


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """A column per regime: paths in the plane, and the error at every iterate."""
    figure = _style.canvas(
        11.0,
        6.2,
        "The principal flow passes through every iterate of gradient descent, in every regime",
        r"$E = \theta_1^2 + 0.01\,\theta_2^2$, hence $\lambda = 2$ and $0.02$, from (−0.35, −0.2): "
        "settings of the published code of Rosca et al. 2023, but own numbers of steps. "
        "Error: the worse of the two coordinates.",
    )
    grid = figure.add_gridspec(
        2,
        4,
        height_ratios=(1.35, 1),
        hspace=0.42,
        wspace=0.2,
        **_style.margins(figure, left=0.78, right=0.25, top=1.36, bottom=0.9),
    )
    for column, regime in enumerate(REGIMES):
        top = figure.add_subplot(grid[0, column])
        bottom = figure.add_subplot(grid[1, column])
        _draw_paths(top, regime, arrays)
        _draw_errors(bottom, regime, arrays)
        if column == 0:
            top.set_ylabel(r"$\theta_1$   sharp coordinate")
            bottom.set_ylabel("relative error at iterate $k$")
        else:
            bottom.tick_params(labelleft=False)
    _draw_legend(figure)
    return figure


def _draw_legend(figure: Figure) -> None:
    looks = (
        ("gradient descent", _style.GRADIENT_DESCENT, "o", "none"),
        ("principal flow, real part between iterates", _style.PRINCIPAL_FLOW, "D", "-"),
        ("gradient flow", _style.GRADIENT_FLOW, "s", (0, (5, 2))),
    )
    handles = [
        Line2D([], [], label=label, color=color, marker=marker, ls=line, markersize=4)
        for label, color, marker, line in looks
    ]
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="upper left",
        ncols=3,
        columnspacing=2.4,
        bbox_to_anchor=(0.1 / width, 1 - 0.42 / height),
    )


def _draw_paths(axes: Axes, regime: Regime, arrays: dict[str, np.ndarray]) -> None:
    iterates = arrays[f"{regime.name}_iterates"][: regime.drawn + 1]
    axes.set_title(regime.title.replace("z", "$z$"), pad=_style.SUBTITLE_PAD)
    setting = f"$h = {regime.lr:g}$,  $z = h\\lambda_1 = {_curvature(regime):g}$"
    _style.subtitle(axes, f"{setting}   ({regime.source})")
    axes.axhline(0, color=_style.QUIET, lw=0.7)
    slow, sharp = 1, 0
    curve = arrays[f"{regime.name}_gradient_curve"]
    axes.plot(curve[:, slow], curve[:, sharp], color=_style.GRADIENT_FLOW, ls=(0, (5, 2)))
    at_iterates = curve[::DENSITY]
    axes.plot(
        at_iterates[:, slow],
        at_iterates[:, sharp],
        **_style.points(_style.GRADIENT_FLOW, size=3.5, marker="s"),
    )
    curve = arrays[f"{regime.name}_principal_curve"]
    axes.plot(curve[:, slow], curve[:, sharp], color=_style.PRINCIPAL_FLOW)
    axes.plot(
        iterates[:, slow],
        iterates[:, sharp],
        **_style.points(_style.GRADIENT_DESCENT, size=5),
        zorder=4,
    )
    reach = 1.12 * np.abs(iterates[:, sharp]).max()
    axes.set_ylim(-reach, reach)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(r"$\theta_2$   slow coordinate")


def _draw_errors(axes: Axes, regime: Regime, arrays: dict[str, np.ndarray]) -> None:
    gradient = arrays[f"{regime.name}_gradient_error"]
    principal = arrays[f"{regime.name}_principal_error"]
    n_steps = len(arrays[f"{regime.name}_iterates"]) - 1
    steps, z = np.arange(1, n_steps + 1), _curvature(regime)
    theory = np.abs(1 - (np.exp(-z) / (1 - z)) ** steps)
    every = max(1, n_steps // 20)
    _style.bound(axes, LARGEST_ERROR, 1, "largest error accepted" if regime is REGIMES[0] else "")
    axes.plot(steps, theory, color=_style.GRADIENT_FLOW, lw=1.0)
    axes.plot(
        steps[every - 1 :: every],
        gradient[1:][every - 1 :: every],
        **_style.points(_style.GRADIENT_FLOW, size=3.5, marker="s"),
    )
    shown = np.maximum(principal[1:], np.finfo(float).eps / 4)  # an error of exactly 0 has no log
    axes.plot(
        steps[: len(shown)][every - 1 :: every],
        shown[every - 1 :: every],
        **_style.points(_style.PRINCIPAL_FLOW, size=3.5, marker="D"),
    )
    axes.set_yscale("log")
    axes.set_ylim(3e-17, 1e5)
    axes.yaxis.set_major_locator(FixedLocator([1e-16, 1e-12, 1e-8, 1e-4, 1]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(-0.02 * n_steps, 1.03 * n_steps)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.set_xlabel("$k$   iterate")
