r"""The rod flow ends on gradient descent's 2-cycle, also where that splits in two, beyond eta S = 3.

On the quartic :math:`L = S w^2/2 - Q w^4/4` the curvature is largest at the minimum, and gradient descent
beyond the edge :math:`S = 2/\eta` ends on the 2-cycle :math:`w^2 = (S - 2/\eta)/Q`. A rod (Regis & Chewi
2026, arXiv 2602.01480) has two ends :math:`z \pm \delta`, and every 2-cycle of gradient descent is an
equilibrium of it. For :math:`3 < \eta S < 1 + \sqrt 5` the stable one is asymmetric, :math:`(p, -q)`: with
centre z and :math:`\Sigma = \delta^2` (derived here)

.. math:: z^2 = \frac{\eta S - 3}{4\eta Q}, \qquad \Sigma = \frac{\eta S + 1}{4\eta Q}

and a rod started off centre ends there; one with z = 0 exactly stays on the symmetric cycle, which no
longer attracts. Beyond :math:`1 + \sqrt 5` gradient descent takes four steps to come back, and then chaos
follows; the rod, which has two ends, stays on the 2-cycle that was left.

Rates differ. The centre leaves at :math:`2(\eta S - 3)(4 - \eta S)` per step, gradient descent at
:math:`\ln(2\eta S - 5)`, the same to second order at :math:`\eta S = 3`. The swing returns at
:math:`-2(\eta S - 2)`, gradient descent's at :math:`\ln|5 - 2\eta S|`, the same to first order at the edge.

The central flow does not exist at w = 0, where the sharpness has no slope that an oscillation could go
down, and says so (LEFT_RANGE). From off centre it ends at a place that gradient descent never sees:
:math:`w^2 = (S - 2/\eta)/3Q`, where the curvature is 2/lr, with an oscillation of :math:`(S - Q w^2)/3Q`
around it (derived here).
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

import eosim
from eosim.flows import CentralFlow, RodFlow
from figures import _style
from figures._headline import Row

LR, Q = 0.1, 1.0
RULE = eosim.GradientDescent(LR)
SPLIT, DOUBLED = 3.0, 1 + np.sqrt(5)  # eta S where the 2-cycle splits, and where it doubles
# Our choice: eta S of the rods, away from 3, where all is slow; and of gradient descent alone.
RODS_QUICK = np.array([2.05, 2.1, 2.2, 2.4, 2.6, 2.8, 2.9, 3.05, 3.1, 3.2, 3.3])
RODS_FULL = np.unique(
    np.concatenate([RODS_QUICK, np.linspace(2.05, 2.9, 18).round(2), np.linspace(3.06, 3.34, 8)])
)
FINE_QUICK, FINE_FULL = np.linspace(1.96, 3.34, 70), np.linspace(1.95, 3.35, 211)
ROD_START = (1e-3, 2.5e-3)  # centre and Sigma
ROD_STEPS = 400
# Our choice: from near 0, which keeps w inside |w| < sqrt(S/Q) for good.
DESCENT_START, DESCENT_STEPS, KEPT = 0.05, 1500, 16
# Our choice: how far centres and swings are put from the symmetric cycle where rates are measured, and at
# which eta S: not near 2.5, where gradient descent's swing returns within one step.
PUSH = 1e-5
AMPLITUDE_RATES = np.array([2.02, 2.05, 2.1, 2.15, 2.2, 2.3, 2.7, 2.8, 2.9])
CENTRE_RATES = np.array([2.7, 2.8, 2.9, 2.95, 3.05, 3.1, 3.15, 3.2, 3.3])
# Our choice: beyond the split, from the symmetric cycle with its centre moved by this.
COURSE, COURSE_PUSH, COURSE_STEPS = 3.05, 1e-3, 160
RTOL = 1e-8
ROD, CENTRAL = _style.PURPLE, _style.INK


def quartic(eta_S: float) -> eosim.Polynomial:
    """S w^2/2 - Q w^4/4."""
    return eosim.Polynomial({(2,): eta_S / LR / 2, (4,): -Q / 4})


def symmetric(eta_S: np.ndarray) -> np.ndarray:
    """w^2 of the symmetric 2-cycle."""
    return (eta_S - 2) / (LR * Q)


def asymmetric(eta_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and Sigma of the asymmetric 2-cycle."""
    return np.sqrt((eta_S - 3) / (4 * LR * Q)), (eta_S + 1) / (4 * LR * Q)


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Where runs, rods and the central flow end, one course beyond the split, and rates."""
    rods = RODS_QUICK if quick else RODS_FULL
    fine = FINE_QUICK if quick else FINE_FULL
    arrays = {"fine": fine, "rods": rods}
    arrays["descent"] = np.array([_descent(x, DESCENT_START, DESCENT_STEPS)[-KEPT:] for x in fine])
    arrays["at_rods"] = np.array([_descent(x, DESCENT_START, DESCENT_STEPS)[-KEPT:] for x in rods])
    arrays["rod"] = np.array([_rod(x, *ROD_START, [ROD_STEPS])[-1] for x in rods])
    beyond = rods[rods > SPLIT]
    arrays["centred_at"] = beyond[beyond < DOUBLED][::2]
    arrays["centred"] = np.array(
        [_rod(x, 0.0, ROD_START[1], [ROD_STEPS])[-1] for x in arrays["centred_at"]]
    )
    arrays["residual"] = np.array([_residual(x) for x in beyond])
    arrays |= _central(rods)
    start = np.sqrt(symmetric(np.array(COURSE)))
    arrays["course_descent"] = _descent(COURSE, start + COURSE_PUSH, COURSE_STEPS)
    arrays["course_rod"] = _rod(COURSE, COURSE_PUSH, start**2, np.arange(COURSE_STEPS + 1))
    return arrays | _rates()


def _descent(eta_S: float, start: float, n_steps: int) -> np.ndarray:
    run = eosim.run(quartic(eta_S), RULE, [start], n_steps, record={})
    return np.asarray(run.theta[:, 0])


def _rod(eta_S: float, centre: float, square: float, steps: object) -> np.ndarray:
    """Centre and Sigma at each step; (step, 2)."""
    flow = RodFlow(quartic(eta_S), RULE, initial_covariance=[[square]])
    path = eosim.integrate(flow, [centre], LR * np.asarray(steps), rtol=RTOL, record={})
    if path.status is not eosim.Status.COMPLETED:
        return np.full((1, 2), np.nan)
    return np.column_stack([path.theta[:, 0], path["average.oscillation"]])


def _residual(eta_S: float) -> float:
    """The rod's velocity per step where its ends are gradient descent's asymmetric cycle."""
    centre, square = asymmetric(np.array(eta_S))
    flow = RodFlow(quartic(eta_S), RULE, initial_covariance=[[square]])
    return float(LR * np.abs(flow.field(flow.start(np.array([centre]), None))).max())


def _central(rods: np.ndarray) -> dict[str, np.ndarray]:
    """How the central flow ends at w = 0, and where from off centre: (w, tr Sigma)."""
    statuses, ends = [], []
    for eta_S in rods:
        flow = CentralFlow(quartic(eta_S), RULE)
        statuses.append(eosim.integrate(flow, [0.0], [LR], record={}).status.name)
        path = eosim.integrate(flow, [ROD_START[0]], [LR * ROD_STEPS], rtol=RTOL, record={})
        ends.append([path.theta[-1, 0], path["average.oscillation"][-1]])
    return {"central_status": np.array(statuses), "central": np.array(ends)}


def _rates() -> dict[str, np.ndarray]:
    """Growth per step of a centre and of a swing beside the symmetric cycle: descent, rod; (eta S, 2)."""
    centre, amplitude = [], []
    for x in CENTRE_RATES:
        w = np.sqrt(symmetric(x))
        run = _descent(x, w + PUSH, 4)
        centres = (run[1:] + run[:-1]) / 2
        moved = _rod(x, PUSH, w**2, [0, 1])[:, 0]
        centre.append([np.log(abs(centres[3] / centres[0])) / 3, np.log(moved[1] / moved[0])])
    for x in AMPLITUDE_RATES:
        w = np.sqrt(symmetric(x))
        away = np.abs(_descent(x, w + PUSH, 1)) - w
        # A swing larger by PUSH has a Sigma larger by 2 w PUSH.
        moved = _rod(x, 0.0, w**2 + 2 * w * PUSH, [0, 0.1])[:, 1] - w**2
        amplitude.append([np.log(abs(away[1] / away[0])), np.log(moved[1] / moved[0]) / 0.1])
    return {
        "centre_at": CENTRE_RATES,
        "centre_rate": np.array(centre),
        "amplitude_at": AMPLITUDE_RATES,
        "amplitude_rate": np.array(amplitude),
    }


def descent_rates(kind: str, eta_S: np.ndarray) -> np.ndarray:
    """Log of the multiplier of the symmetric cycle: along the centre, and along the amplitude."""
    return np.log(2 * eta_S - 5) if kind == "centre" else np.log(np.abs(5 - 2 * eta_S))


def rod_rates(kind: str, eta_S: np.ndarray) -> np.ndarray:
    """The same of the rod flow."""
    return 2 * (eta_S - 3) * (4 - eta_S) if kind == "centre" else -2 * (eta_S - 2)


def _end(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Centre (without its sign) and Sigma of the rods, where they should be."""
    eta_S = arrays["rods"]
    split = eta_S > SPLIT
    with np.errstate(invalid="ignore"):
        centre, square = asymmetric(eta_S)
    return np.where(split, centre, 0), np.where(split, square, symmetric(eta_S))


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Where everything ends, against closed forms; the course; rates."""
    eta_S, rod = arrays["rods"], arrays["rod"]
    centre, square = _end(arrays)
    below = eta_S < DOUBLED
    split = (eta_S > SPLIT) & below
    runs = arrays["at_rods"]
    runs_centre = np.abs(runs[:, -1] + runs[:, -2]) / 2
    runs_square = (runs[:, -1] - runs[:, -2]) ** 2 / 4
    of_rods = np.abs(np.column_stack([np.abs(rod[:, 0]) - centre, rod[:, 1] - square])).max()
    of_runs = np.abs(np.column_stack([runs_centre - centre, runs_square - square])[below]).max()
    centred = np.abs(arrays["centred"][:, 1] - symmetric(arrays["centred_at"])).max()
    four = np.abs(runs[:, -1] - runs[:, -3])[eta_S > DOUBLED]
    place, swing = arrays["central"].T
    false = np.abs(
        [3 * Q * place**2 - symmetric(eta_S) * Q, 3 * Q * swing - eta_S / LR + Q * place**2]
    )
    absent = (arrays["central_status"] == "LEFT_RANGE").sum()
    z, ends = arrays["course_rod"][:, 0], np.sqrt(arrays["course_rod"][:, 1])
    sign = (-1.0) ** np.arange(COURSE_STEPS + 1)
    apart = np.abs(z + sign * ends - arrays["course_descent"]).max() if len(z) > 1 else np.nan
    rows = [
        # From the solver's tolerance; the slowest decay here is by 0.1 per step, over 400 steps.
        Row("gradient descent's ends - closed form", 1e-7, 0, float(of_runs), "at most"),
        Row("rod's ends - closed form", 1e-5, 0, float(of_rods), "at most"),
        Row("rod: least centre beyond the split", 0.3, 0, float(rod[split, 0].min()), "at least"),
        Row("rod with z = 0: its Sigma - (S - 2/lr)/Q", 1e-5, 0, float(centred), "at most"),
        Row(
            "rod's velocity on the asymmetric cycle", 1e-11, 0, arrays["residual"].max(), "at most"
        ),
        Row("beyond 1 + sqrt 5: |w(t+2) - w(t)|", 0.1, 0, float(four.min()), "at least"),
        Row("central flow at w = 0: LEFT_RANGE", len(eta_S), 0, float(absent)),
        Row("central flow off centre: false place", 1e-5, 0, float(false.max()), "at most"),
        # The rates differ by 6e-4 of 0.1 per step; 65 steps of growth turn that into 1 % of an end.
        Row("course beyond the split: rod's ends - w", 0.02, 0, float(apart), "at most"),
    ]
    for kind in ("centre", "amplitude"):
        at, measured = arrays[f"{kind}_at"], arrays[f"{kind}_rate"]
        for index, (name, rates) in enumerate((("GD", descent_rates), ("rod", rod_rates))):
            # The second order in a push of 1e-5 changes rates by up to 2e-5.
            error = float(np.abs(measured[:, index] - rates(kind, at)).max())
            rows.append(Row(f"{name}: rate of the {kind} - theory", 1e-4, 0, error, "at most"))
    return rows


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Squares of the ends, the centre, one course beyond the split, and rates."""
    figure = _style.canvas(
        10.2,
        8.1,
        "A rod has two ends: it follows gradient descent's 2-cycle through its split",
        f"$L = S w^2/2 - Q w^4/4$, $\\eta$ = {LR:g}, $Q$ = {Q:g}; gradient descent from w = "
        f"{DESCENT_START:g}, {DESCENT_STEPS} steps, the last {KEPT}; rods from centre {ROD_START[0]:g}, "
        f"$\\Sigma$ = {ROD_START[1]:g}, {ROD_STEPS} steps.\nLines: closed forms, dashed where they repel. "
        "Bottom right: filled decays, open grows. Own settings.",
    )
    look = _style.points(_style.GRADIENT_DESCENT, size=4)
    handles = [
        Line2D([], [], label="gradient descent", **look),
        Line2D([], [], label="rod flow", **_style.points(ROD, filled=False, marker="D", size=6)),
        Line2D([], [], label="central flow, from off centre", **_style.points(CENTRAL, marker="s")),
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        ncols=3,
        columnspacing=2.0,
        bbox_to_anchor=(0.1 / 10.2, 1 - 0.42 / 8.1),
    )
    edges = _style.margins(figure, left=0.75, right=0.25, top=1.28, bottom=1.02)
    grid = figure.add_gridspec(2, 2, wspace=0.24, hspace=0.5, **edges)
    _draw_squares(figure.add_subplot(grid[0, 0]), arrays)
    _draw_centres(figure.add_subplot(grid[0, 1]), arrays)
    _draw_course(figure.add_subplot(grid[1, 0]), arrays)
    _draw_rates(figure.add_subplot(grid[1, 1]), arrays)
    return figure


_DASHED = (0, (5, 2))


def _eta_S_axis(axes: Axes) -> None:
    axes.axvline(SPLIT, color=_style.QUIET, lw=0.9, ls=(0, (1, 1.5)))
    axes.set_xlim(1.93, 3.37)
    axes.xaxis.set_major_locator(FixedLocator([2, 2.25, 2.5, 2.75, 3, 3.25]))
    axes.set_xlabel(r"$\eta S$   curvature at the minimum")


def _draw_squares(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    _eta_S_axis(axes)
    before, after = np.linspace(2, SPLIT, 2), np.linspace(SPLIT, 3.37, 2)
    axes.plot(before, symmetric(before), color=_style.INK, lw=1.2)
    axes.plot(after, symmetric(after), color=_style.INK, lw=1.0, ls=_DASHED)
    for low, high, style in ((SPLIT, DOUBLED, "-"), (DOUBLED, 3.37, _DASHED)):
        x = np.linspace(low, high, 100)
        centre, square = asymmetric(np.maximum(x, SPLIT))
        for sign in (-1, 1):
            axes.plot(x, (np.sqrt(square) + sign * centre) ** 2, color=_style.INK, lw=1.2, ls=style)
    fine, w = arrays["fine"], arrays["descent"] ** 2
    x = np.repeat(fine, w.shape[1])
    axes.plot(x, w.ravel(), **_style.points(_style.GRADIENT_DESCENT, size=1.8), zorder=3)
    z, square = arrays["rod"].T
    for sign in (-1, 1):
        ends = (sign * np.sqrt(square) + z) ** 2
        axes.plot(
            arrays["rods"], ends, **_style.points(ROD, filled=False, marker="D", size=6), zorder=2
        )
    axes.set_ylim(-0.6, 20.5)
    axes.set_title("Both ends", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes, r"$w^2$ of gradient descent, and of the two ends $z \pm \delta$ of the rod"
    )
    axes.set_ylabel("$w^2$")
    axes.text(2.44, 5.2, r"$(S - 2/\eta)/Q$", ha="right", fontsize=8)
    axes.text(2.985, 18.4, r"$\eta S = 3$", ha="right", fontsize=7.5, color=_style.QUIET)
    axes.text(
        2.0,
        15.5,
        _absent(arrays),
        fontsize=8,
        color=CENTRAL,
        va="center",
    )


def _absent(arrays: dict[str, np.ndarray]) -> str:
    """At how many curvatures the central flow does not exist at the minimum itself."""
    refused = arrays["central_status"] == "LEFT_RANGE"
    return (
        "beyond $\\eta S = 2$ no central flow\n"
        f"exists at $w = 0$ ({refused.sum()} of {refused.size} tried)"
    )


def _draw_centres(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    _eta_S_axis(axes)
    axes.plot([1.93, SPLIT], [0, 0], color=_style.INK, lw=1.2)
    axes.plot([SPLIT, 3.37], [0, 0], color=_style.INK, lw=1.0, ls=_DASHED)
    for low, high, style in ((SPLIT, DOUBLED, "-"), (DOUBLED, 3.37, _DASHED)):
        x = np.linspace(low, high, 100)
        axes.plot(x, asymmetric(np.maximum(x, SPLIT))[0], color=_style.INK, lw=1.2, ls=style)
    x = np.linspace(2, 3.37, 200)
    axes.plot(x, np.sqrt(symmetric(x) / 3), color=CENTRAL, lw=1.0)
    fine, w = arrays["fine"], arrays["descent"]
    centres = np.abs(w[:, 1:] + w[:, :-1]) / 2
    axes.plot(
        np.repeat(fine, centres.shape[1]),
        centres.ravel(),
        **_style.points(_style.GRADIENT_DESCENT, size=1.8),
        zorder=3,
    )
    axes.plot(
        arrays["rods"],
        np.abs(arrays["rod"][:, 0]),
        **_style.points(ROD, filled=False, marker="D", size=6),
        zorder=2,
    )
    axes.plot(arrays["rods"], np.abs(arrays["central"][:, 0]), **_style.points(CENTRAL, marker="s"))
    axes.set_ylim(-0.12, 2.35)
    axes.set_title("Centre", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes, "0 up to the split; the central flow goes where the curvature is $2/\\eta$"
    )
    axes.set_ylabel("$|z|$")
    axes.text(2.5, 1.62, r"$w^2 = (S - 2/\eta)/3Q$", ha="right", fontsize=8, color=CENTRAL)
    axes.text(2.98, 0.45, r"$z^2 = (\eta S - 3)/4\eta Q$", ha="right", fontsize=8)


def _draw_course(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    step = np.arange(COURSE_STEPS + 1)
    z, square = arrays["course_rod"].T
    for sign in (-1, 1):
        axes.plot(step, np.sqrt(square) + sign * z, color=ROD, lw=1.8)
    size = np.abs(arrays["course_descent"])
    shown = step % 6 < 2  # of each end every third
    axes.plot(step[shown], size[shown], **_style.points(_style.GRADIENT_DESCENT, size=3.4))
    level = np.sqrt(symmetric(np.array(COURSE)))
    axes.axhline(level, color=_style.INK, lw=1.0, ls=_DASHED)
    centre, sigma = asymmetric(np.array(COURSE))
    for sign, name in ((1, "p"), (-1, "q")):
        end = np.sqrt(sigma) + sign * centre
        axes.axhline(end, color=_style.INK, lw=1.0)
        axes.text(
            3, end - 0.02 * sign, f"${name}$", fontsize=8.5, va="top" if sign > 0 else "bottom"
        )
    axes.set_xlim(0, COURSE_STEPS)
    axes.set_ylim(2.7, 3.66)
    axes.set_title(f"Leaving the symmetric cycle, $\\eta S$ = {COURSE:g}", pad=_style.SUBTITLE_PAD)
    _style.subtitle(
        axes,
        f"centre moved by {COURSE_PUSH:g}; curves: the rod's ends $\\sqrt{{\\Sigma}} \\pm z$",
    )
    axes.text(
        COURSE_STEPS - 2, level + 0.02, "a rod with z = 0 stays here", ha="right", fontsize=7.5
    )
    axes.set_xlabel("step")
    axes.set_ylabel("$|w|$")


def _draw_rates(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    _eta_S_axis(axes)
    axes.axhline(0, color=_style.QUIET, lw=0.7)
    x = np.linspace(2.0, 3.37, 2000)
    for kind, chosen in (("amplitude", x < SPLIT), ("centre", x > 2.51)):
        at = arrays[f"{kind}_at"]
        for index, (rates, color) in enumerate(
            ((descent_rates, _style.GRADIENT_DESCENT), (rod_rates, ROD))
        ):
            axes.plot(x[chosen], rates(kind, x[chosen]), color=color, lw=1.3)
            measured = arrays[f"{kind}_rate"][:, index]
            for grows in (False, True):
                shown = (measured > 0) == grows
                look = _style.points(
                    color, filled=not grows, marker="oD"[index], size=(4.5, 5.5)[index]
                )
                axes.plot(at[shown], measured[shown], **look)
    axes.set_ylim(-2.15, 0.75)
    axes.set_title("Rates beside the symmetric cycle", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "log factor per step; equal to first (swing) and second order (centre)")
    axes.set_ylabel("rate per step")
    axes.text(2.02, -1.45, "swing\n(amplitude)", fontsize=8)
    axes.text(3.12, -0.42, "centre", fontsize=8)
