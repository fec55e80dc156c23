r"""Each flow misses a step of gradient descent by the power of h that its construction promises.

The drift of a flow is its state after time h minus one step of gradient descent, from the same
point. With gradient g, Hessian H and third derivative T:

=======================================  ==========================================================
gradient flow                            :math:`\tfrac{h^2}{2} Hg + O(h^3)`
modified flow of order 2                 :math:`h^3 (\tfrac13 H^2 g + \tfrac1{12} T[g,g]) + O(h^4)`
principal flow                           :math:`\tfrac{h^3}{12} T[g,g] + O(h^4)`
modified flow or forward differences,    :math:`O(h^{n+1})`
order n
principal series, two terms or more      :math:`O(h^3)`
principal flow with 1, 2 corrections     :math:`O(h^4), O(h^5)`
=======================================  ==========================================================

(Gradient flow and order 2: Barrett & Dherin 2021, arXiv 2009.11162; principal flow: Rosca, Wu, Qin
& Dherin 2023, arXiv 2302.01952; the others: derived here.) The three leading constants are measured
by Richardson extrapolation: drift / h^p is a series in h, and combining neighbouring h removes its
terms one by one.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import eosim
from eosim.problems.base import third_derivative
from figures import _flows, _style
from figures._headline import Row

# Our choice: a quartic in two variables without symmetry, so that no term of the series vanishes,
# and a point where H is positive definite.
QUARTIC = {
    (2, 0): 0.65,
    (1, 1): 0.4,
    (0, 2): 0.35,
    (3, 0): 0.3,
    (2, 1): -0.2,
    (1, 2): 0.25,
    (4, 0): 0.1,
    (0, 4): 0.15,
}
POINT = (0.7, -0.5)
# Our choice: halved each time. Below .005 rounding shows in the smallest drift, 4e-11.
STEPS_QUICK = 0.16 / 2.0 ** np.arange(6)
STEPS_FULL = 0.16 / 2.0 ** (np.arange(11) / 2)
FINEST = (0.01, 0.005)
RTOL = 3e-14
# Order of the one-step error of each flow, and what the slope between the two finest h may be off
# by: it differs from the order by O(h), with constants that grow with the order.
ORDERS = {
    "gradient": (2, 0.05),
    "order2": (3, 0.05),
    "order3": (4, 0.05),
    "order4": (5, 0.15),
    "difference3": (4, 0.05),
    "difference5": (6, 0.15),
    "principal": (3, 0.05),
    "principal1": (4, 0.05),
    "principal2": (5, 0.15),
    "series3": (3, 0.15),
}
PANELS = (
    (
        "Truncated at an order",
        ("gradient", "order2", "difference3", "order3", "order4", "difference5"),
    ),
    ("Powers of the Hessian summed", ("series3", "principal", "principal1", "principal2")),
)
# Flows whose leading constant is measured; its formula is in `_constants`.
WITH_CONSTANT = {
    "gradient": r"$\frac{1}{2}Hg$",
    "order2": r"$\frac{1}{3}H^2g + \frac{1}{12}T[g,g]$",
    "principal": r"$\frac{1}{12}T[g,g]$",
}
# Extrapolations from the four finest h; the last one must agree with theory to this.
LEVELS = 3
CONSTANT_TOLERANCE = 1e-3


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Drifts of every flow at every h, and the leading constants that theory gives."""
    problem = eosim.Polynomial(QUARTIC)
    start = np.array(POINT)
    steps = STEPS_QUICK if quick else STEPS_FULL
    arrays: dict[str, np.ndarray] = {"h": steps}
    step_of_descent = [
        eosim.run(problem, eosim.GradientDescent(h), start, 1, record={})["theta"][1] for h in steps
    ]
    for name in ORDERS:
        drifts = []
        for h, descent in zip(steps, step_of_descent, strict=True):
            flow = _flows.KINDS[name].make(problem, h)
            path = eosim.integrate(flow, start, [h], record={}, rtol=RTOL, atol=0.0)
            drifts.append(path["theta"][0].real - descent)  # h * lambda < 1: the flows are real
        arrays[name] = np.array(drifts)  # (n_steps, 2)
    for name, constant in _constants(problem, start).items():
        arrays[f"{name}_constant"] = constant
    return arrays


def _constants(problem: eosim.Polynomial, start: np.ndarray) -> dict[str, np.ndarray]:
    """Leading coefficient of the drift of each flow in `WITH_CONSTANT`, from its formula."""
    g, hessian = problem.gradient(start), problem.hessian(start)
    bend = third_derivative(problem, start, g, g)
    return {
        "gradient": hessian @ g / 2,
        "order2": hessian @ hessian @ g / 3 + bend / 12,
        "principal": bend / 12,
    }


def _error(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.linalg.norm(arrays[name], axis=1)


def slope(name: str, arrays: dict[str, np.ndarray]) -> float:
    """Exponent of h between the two finest steps."""
    h, error = arrays["h"], _error(name, arrays)
    coarse, fine = (int(np.argmin(np.abs(h - step))) for step in FINEST)
    return float(np.log(error[coarse] / error[fine]) / np.log(h[coarse] / h[fine]))


def extrapolate(name: str, arrays: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per level of extrapolation: the finest h that went in, and the relative error left."""
    every = 1 if len(arrays["h"]) == len(STEPS_QUICK) else 2  # halve h each time
    h = arrays["h"][::-1][::every][: LEVELS + 1][::-1]
    drift = arrays[name][::-1][::every][: LEVELS + 1][::-1]
    order, constant = ORDERS[name][0], arrays[f"{name}_constant"]
    estimate = drift / h[:, None] ** order
    found = []
    for level in range(LEVELS + 1):
        left = np.linalg.norm(estimate - constant, axis=1) / np.linalg.norm(constant)
        found.append((h[level:], left))
        factor = 2.0 ** (level + 1)
        estimate = (factor * estimate[1:] - estimate[:-1]) / (factor - 1)
    return found


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """The order of every flow, and three leading constants."""
    rows = []
    for name, (order, tolerance) in ORDERS.items():
        quantity = f"{_flows.KINDS[name].label}: slope"
        rows.append(Row(quantity, order, tolerance, slope(name, arrays)))
    for name in WITH_CONSTANT:
        left = float(extrapolate(name, arrays)[-1][1][-1])
        quantity = f"{_flows.KINDS[name].label}: |constant / theory - 1|"
        rows.append(Row(quantity, CONSTANT_TOLERANCE, 0.0, left, "at most"))
    ratio = _error("order2", arrays)[-1] / _error("principal", arrays)[-1]
    rows.append(Row("error of order 2 / principal flow, finest h", 5.0, 0.0, ratio, "at least"))
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Errors against h for both families, and the three constants."""
    figure = _style.canvas(
        11.0,
        5.0,
        "Each flow misses a step of gradient descent by the power of $h$ it promises",
        "A quartic in two variables without symmetry (own setting), one step from (0.7, −0.5). "
        "Points: measured; lines: leading term where the constant is known, else the stated power "
        "through the finest point.",
    )
    grid = figure.add_gridspec(
        1,
        3,
        wspace=0.3,
        width_ratios=(1.15, 1.15, 0.9),
        **_style.margins(figure, left=0.72, right=0.2, top=0.98, bottom=0.92),
    )
    for column, (title, names) in enumerate(PANELS):
        axes = figure.add_subplot(grid[column])
        _draw_errors(axes, names, arrays)
        axes.set_title(title, pad=_style.SUBTITLE_PAD)
        _style.subtitle(axes, "right: fitted slopes")
        if column == 0:
            axes.set_ylabel("error of one step")
    _draw_constants(figure.add_subplot(grid[2]), arrays)
    return figure


def _draw_errors(axes: Axes, names: tuple[str, ...], arrays: dict[str, np.ndarray]) -> None:
    h = arrays["h"]
    ends = []
    for name in names:
        kind, error = _flows.KINDS[name], _error(name, arrays)
        order = ORDERS[name][0]
        if name in WITH_CONSTANT:
            level = np.linalg.norm(arrays[f"{name}_constant"])
        else:
            level = error[-1] / h[-1] ** order
        axes.plot(h, level * h**order, color=kind.color, ls=kind.line, lw=1.2)
        axes.plot(h, error, **_style.points(kind.color, marker=kind.marker))
        ends.append((np.log10(error[-1]), name))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(1e-11, 0.2)
    axes.set_xlim(h[-1] / 1.25, h[-1] * (h[0] / h[-1]) ** 1.08)
    axes.xaxis.set_major_locator(FixedLocator([0.005, 0.01, 0.02, 0.04, 0.08, 0.16]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(FixedLocator([10.0**k for k in range(-10, 0, 2)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("$h$   learning rate")
    _label(axes, names, arrays)


def _label(axes: Axes, names: tuple[str, ...], arrays: dict[str, np.ndarray]) -> None:
    """Name and slope of every flow, from the largest error to the smallest, below the lines."""
    names = tuple(sorted(names, key=lambda name: -_error(name, arrays)[-1]))
    for index, name in enumerate(names):
        kind, y = _flows.KINDS[name], 0.045 + 0.052 * (len(names) - 1 - index)
        axes.plot(
            [0.375],
            [y],
            transform=axes.transAxes,
            **_style.points(kind.color, marker=kind.marker, size=4),
        )
        for x, side, text in (
            (0.41, "left", kind.label),
            (1.0, "right", f"{slope(name, arrays):.2f}"),
        ):
            axes.text(
                x,
                y,
                text,
                ha=side,
                va="center_baseline",
                fontsize=7,
                color=_style.INK,
                transform=axes.transAxes,
            )


def _draw_constants(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    for name, formula in WITH_CONSTANT.items():
        kind = _flows.KINDS[name]
        levels = extrapolate(name, arrays)
        left = [float(error[-1]) for _, error in levels]
        axes.plot(range(len(left)), left, color=kind.color, ls=kind.line, lw=1.0, zorder=1)
        axes.plot(
            range(len(left)),
            left,
            label=f"{kind.label}:  {formula}",
            **_style.points(kind.color, marker=kind.marker),
        )
    axes.set_yscale("log")
    axes.set_ylim(1e-9, 30)
    axes.set_xlim(-0.2, LEVELS + 0.2)
    axes.yaxis.set_major_locator(FixedLocator([10.0**k for k in range(-8, 1, 2)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(list(range(LEVELS + 1))))
    axes.set_xlabel("extrapolations")
    axes.set_ylabel("|measured / theory − 1|")
    axes.set_title("Leading constant", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "drift / $h^p$ at the finest $h$, extrapolated to 0")
    _style.bound(axes, CONSTANT_TOLERANCE, 0.75, f"largest error accepted at {LEVELS}")
    axes.legend(loc="upper right", fontsize=7.5, handletextpad=0.2, labelspacing=0.6)
