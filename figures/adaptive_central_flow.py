r"""The central flow of RMSProp follows it at the edge into ever sharper regions, and to closed forms.

Above: :math:`L = y x^2/2 - y`, whose sharpness y grows without end. RMSProp comes to the edge, where its
preconditioned sharpness is 2, and stays: y grows elevenfold by the rate lr per step. The central flow
(Cohen, Damian, Talwalkar, Kolter & Lee 2024, arXiv 2410.24206) gives y to a part in ten thousand and the
mean swing to 0.3 %, with the closed form (derived here; :math:`c_2 = (1-\beta_2)/\beta_2`)

.. math:: \Sigma = \frac{\eta^2}{\tau^2}\left(1 + \frac{2\eta}{c_2 y}\right), \qquad \tau = 2

With its second moments frozen RMSProp is blocked: y goes round the value it has then, in cycles that grow
slowly, since nothing damps them. The stable flow, which knows of no oscillation, leaves its range. For Adam
(:math:`\tau = 2(1+\beta_1)/(1-\beta_1)`, an extension of this project) the flow gives y too; but momentum
makes Adam's ratio cycle, with a median 4 % below 1, and its swing exceeds the flow's by 13 % in the median.

Below: RMSProp on quadratics :math:`w^\top H w/2` has nowhere to go and tends to the diagonal
preconditioner of least trace, :math:`H \preceq 2P`, with swings :math:`\Sigma = \eta^2 Z/4`. If signs s
exist with :math:`s_i s_j H_{ij} \ge 0`, then :math:`P_i = \tfrac12 \sum_j |H_{ij}|` and :math:`Z = s
s^\top`: RMSProp ends on that 2-cycle to rounding. In the frustrated matrix, with -1 between all three, two
modes are at the edge: :math:`P_i = (H_{ii} + 1)/2` and :math:`Z_{ij} = -\tfrac12`. The central flow tends
to all of them; RMSProp fluctuates around the frustrated one, with means half a per cent away however
long it runs (3e-4 with :math:`\beta_2` = 0.9999).
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.integrate import solve_ivp
from scipy.signal import lfilter

import eosim
from eosim.flows import CentralFlow, StableFlow
from figures import _style
from figures._headline import Row

# Our choice: a toy of two parameters whose sharpness grows elevenfold at the edge.
LR, BETA1, BETA2 = 0.01, 0.9, 0.99
EDGES = {"rmsprop": 2.0, "adam": 2 * (1 + BETA1) / (1 - BETA1)}
RULES = {
    "rmsprop": eosim.RMSProp(LR, BETA2, eps=0.0),
    "adam": eosim.Adam(LR, BETA1, BETA2, eps=0.0, bias_correction=False),
}
DISPLACEMENT, SHARPNESS = 1e-5, 20.0
BEGIN = 0.9  # of the edge
STEPS = 20_000
N_TIMES_QUICK, N_TIMES_FULL = 40, 400
# Our choice: averages of squares are over this many steps to each side, from SETTLED on. The ratio of Adam
# cycles over hundreds of steps.
HALF, SETTLED = {"rmsprop": 150, "adam": 400}, 1000
FROZEN_AT, FROZEN_STEPS = 1000, 2000
# Quadratics: matrix, beta_2, steps, steps shown. All else is our choice.
QUADRATIC_LR = 1e-3
QUADRATICS = {
    "positive": (np.array([[4.0, 1.0], [1.0, 2.0]]), 0.99, 30_000, 800),
    "negative": (np.array([[4.0, -2.0], [-2.0, 2.0]]), 0.99, 30_000, 800),
    "frustrated": (
        np.array([[2.0, -1.0, -1.0], [-1.0, 2.2, -1.0], [-1.0, -1.0, 2.5]]),
        0.999,
        100_000,
        6000,
    ),
}
QUADRATIC_START = QUADRATIC_LR * np.array([1.0, -0.7, 0.4])
FRUSTRATED_FULL = 400_000
# The feedback only says how fast the flow comes to the edge. Our choice: slow, for longer steps.
FEEDBACK, LONGEST = 0.2, 20.0
RTOL, ATOL = 1e-7, 1e-10
COLORS = {"rmsprop": _style.BLUE, "adam": _style.PURPLE}
NAMES = {"rmsprop": "RMSProp", "adam": "Adam"}
FROZEN, STABLE = _style.VERMILLION, _style.GREEN


def toy() -> eosim.Polynomial:
    """y x^2/2 - y in (x, y)."""
    return eosim.Polynomial({(2, 1): 0.5, (0, 1): -1.0})


def start(name: str, displacement: float) -> eosim.RunState:
    """At BEGIN of the edge, with the other coordinate's moments at rest."""
    nu = np.array([(LR * SHARPNESS / (BEGIN * EDGES[name])) ** 2, 1.0])
    memory = (nu, 0) if name == "rmsprop" else (np.array([0.0, -1.0]), nu, 0)
    return eosim.RunState(np.array([displacement, SHARPNESS]), memory)


def closed_form(name: str, sharpness: np.ndarray) -> np.ndarray:
    """Sigma at the edge where the sharpness grows by lr per step."""
    c2 = (1 - BETA2) / BETA2
    return (LR / EDGES[name]) ** 2 * (1 + 2 * LR / (c2 * sharpness))


def stationary(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The closed forms of P and Z."""
    H = QUADRATICS[name][0]
    if name == "frustrated":
        return (np.diag(H) + 1) / 2, 1.5 * np.eye(3) - 0.5
    signs = np.sign(H[0])
    return np.abs(H).sum(axis=1) / 2, np.outer(signs, signs)


def second_moments(first: np.ndarray, gradients: np.ndarray, beta2: float) -> np.ndarray:
    """nu after every step: nu <- beta2 nu + (1 - beta2) g^2."""
    later, _ = lfilter([1 - beta2], [1, -beta2], gradients**2, axis=0, zi=beta2 * first[None])
    return np.concatenate([first[None], later])


def compute(quick: bool) -> dict[str, np.ndarray]:
    """The toy's runs and flows, and the preconditioners of the quadratics."""
    steps = np.unique(
        np.concatenate(
            [
                np.geomspace(10, STEPS, N_TIMES_QUICK if quick else N_TIMES_FULL).round(),
                np.linspace(0, STEPS, 11),
            ]
        )
    )
    arrays: dict[str, np.ndarray] = {"step": steps}
    for name, rule in RULES.items():
        arrays |= _toy_run(name)
        # The flow follows the centre of the swing, which is x = 0.
        path = eosim.integrate(
            CentralFlow(toy(), rule, feedback=FEEDBACK),
            None,
            LR * steps,
            state=start(name, 0.0),
            rtol=RTOL,
            record={},
        )
        arrays[f"{name}_flow_y"] = path.theta[:, 1]
        arrays[f"{name}_flow_ratio"] = path["average.ratio"]
        arrays[f"{name}_flow_square"] = path["average.oscillation"]
    arrays |= _frozen()
    early = np.arange(0, 1000, 20.0)
    path = eosim.integrate(
        StableFlow(toy(), RULES["rmsprop"]),
        None,
        LR * early,
        state=start("rmsprop", 0.0),
        rtol=RTOL,
        record={},
    )
    arrays["stable_ratio"] = path["average.ratio"]
    arrays["stable_step"] = early[: len(path)]
    arrays["stable_status"] = np.array(path.status.name)
    lengths = []
    for name, (_, _, n_steps, _) in QUADRATICS.items():
        lengths.append(n_steps if quick or name != "frustrated" else FRUSTRATED_FULL)
        arrays |= _quadratic(name, lengths[-1])
    return arrays | {"quadratic_steps": np.array(lengths)}


def _toy_run(name: str) -> dict[str, np.ndarray]:
    """y, the ratio to the edge and x^2 at every step."""
    state = start(name, DISPLACEMENT)
    theta = eosim.run(toy(), RULES[name], None, STEPS, state=state, record={}).theta
    x, y = theta.T
    first = state.rule_state[0 if name == "rmsprop" else 1][:1]
    nu = second_moments(first, (x * y)[:-1, None], BETA2)[:, 0]
    return {
        f"{name}_y": y,
        f"{name}_square": x**2,
        f"{name}_ratio": LR * y / np.sqrt(nu) / EDGES[name],
    }


def _frozen() -> dict[str, np.ndarray]:
    """y of RMSProp with the second moments it has at FROZEN_AT."""
    rule = RULES["rmsprop"]
    run = eosim.run(toy(), rule, None, FROZEN_AT, state=start("rmsprop", DISPLACEMENT), record={})
    frozen, state = eosim.freeze(rule, run.final_state)
    return {
        "frozen_y": eosim.run(toy(), frozen, None, FROZEN_STEPS, state=state, record={}).theta[:, 1]
    }


def _quadratic(name: str, n_steps: int) -> dict[str, np.ndarray]:
    """P and Z of a run (P at every step that is shown) and of the central flow."""
    H, beta2, _, shown = QUADRATICS[name]
    problem, rule = eosim.Quadratic(H), eosim.RMSProp(QUADRATIC_LR, beta2, eps=0.0)
    theta = QUADRATIC_START[: len(H)]
    nu = np.full(len(H), (QUADRATIC_LR * np.linalg.eigvalsh(H)[-1] / (BEGIN * 2)) ** 2)
    run = eosim.run(
        problem, rule, None, n_steps, state=eosim.RunState(theta, (nu, 0)), record={}
    ).theta
    P = np.sqrt(second_moments(nu, run[:-1] @ H, beta2)) / QUADRATIC_LR
    late = run[n_steps // 2 :]
    flow = CentralFlow(problem, rule, feedback=FEEDBACK)
    times = np.linspace(0, shown, 201)
    path = solve_ivp(
        lambda _, state: QUADRATIC_LR * flow.field(state),
        (0, shown),
        flow.start(0 * theta, (nu, 0)),
        t_eval=times,
        method="DOP853",
        rtol=RTOL,
        atol=ATOL,
        max_step=LONGEST,
    )
    return {
        f"{name}_P": P[: shown + 1],
        f"{name}_mean_P": P[n_steps // 2 :].mean(axis=0),
        f"{name}_spread_P": P[n_steps // 2 :].std(axis=0),
        f"{name}_Z": 4 * late.T @ late / len(late) / QUADRATIC_LR**2,
        f"{name}_flow_step": times,
        f"{name}_flow_P": np.exp(path.y[len(H) :].T / 2) / QUADRATIC_LR,
        f"{name}_flow_Z": 4 * flow.covariance(path.y[:, -1]) / QUADRATIC_LR**2,
    }


def _mean(values: np.ndarray, steps: np.ndarray, half: int) -> np.ndarray:
    """Over ``half`` steps to each side."""
    return np.array([values[int(k) - half : int(k) + half + 1].mean() for k in steps])


def _compared(
    arrays: dict[str, np.ndarray], name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At the flow's steps that a mean of the run can be taken around: which, mean y, mean x^2."""
    steps, half = arrays["step"], HALF[name]
    chosen = (steps >= SETTLED) & (steps < len(arrays[f"{name}_y"]) - half)
    at = steps[chosen]
    return (
        chosen,
        _mean(arrays[f"{name}_y"], at, half),
        _mean(arrays[f"{name}_square"], at, half),
    )


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """The edge, the raw sharpness and the swing of both rules; P and Z against closed forms."""
    rows = []
    # Adam's swing over 800 steps exceeds the flow's by 6 to 23 %, its median by 13 %.
    limits = {"rmsprop": (1e-4, 1.0, 0.003), "adam": (1e-4, 1.13, 0.05)}
    for name, (error, excess, spread) in limits.items():
        chosen, y, square = _compared(arrays, name)
        label = NAMES[name]
        flow_y, swing = arrays[f"{name}_flow_y"], arrays[f"{name}_flow_square"]
        settled = arrays["step"] >= SETTLED
        ratio = np.median(arrays[f"{name}_ratio"][SETTLED:])
        growth = float(arrays[f"{name}_y"][-1] / SHARPNESS)
        closed = swing[settled] / closed_form(name, flow_y[settled])
        flow_ratio = arrays[f"{name}_flow_ratio"][settled]
        expected, tolerance = (1.0, 0.001) if name == "rmsprop" else (0.96, 0.02)
        rows += [
            Row(f"{label}: ratio to the edge, median", expected, tolerance, float(ratio)),
            Row(f"{label}: raw sharpness, end / start", 10, 0, growth, "at least"),
            _largest(f"{label}: central flow's |ratio - 1|", 1e-5, flow_ratio - 1),
            _largest(f"{label}: its y / mean y - 1", error, flow_y[chosen] / y - 1),
            _largest(f"{label}: its Sigma / closed form - 1", 1e-4, closed - 1),
            Row(
                f"{label}: mean x^2 / its Sigma, median",
                excess,
                spread,
                float(np.median(square / swing[chosen])),
            ),
        ]
    live = arrays["rmsprop_y"][FROZEN_AT : FROZEN_AT + FROZEN_STEPS + 1]
    frozen = arrays["frozen_y"]
    left = float(str(arrays["stable_status"]) == "LEFT_RANGE")
    rows += [
        _largest("frozen: y / y when frozen - 1", 0.15, frozen / frozen[0] - 1),
        Row("live: y / y when frozen, as long", 1.6, 0, float(live[-1] / live[0]), "at least"),
        Row("stable flow: LEFT_RANGE", 1, 0, left),
    ]
    for name in QUADRATICS:
        P, Z = stationary(name)
        flow_error = np.concatenate(
            [arrays[f"{name}_flow_P"][-1] / P - 1, (arrays[f"{name}_flow_Z"] - Z).ravel()]
        )
        mean_error = arrays[f"{name}_mean_P"] / P - 1
        # The frustrated one fluctuates, slowly: its means are of 50,000 steps.
        limit, limit_Z = (0.01, 0.04) if name == "frustrated" else (1e-12, 1e-12)
        rows += [
            _largest(f"{name}: central flow's P and Z", 2e-4, flow_error),
            _largest(f"{name}: RMSProp's mean P / closed form - 1", limit, mean_error),
            _largest(f"{name}: RMSProp's Z - closed form", limit_Z, arrays[f"{name}_Z"] - Z),
        ]
    return rows


def _largest(quantity: str, limit: float, errors: np.ndarray) -> Row:
    return Row(quantity, limit, 0, float(np.abs(errors).max()), "at most")


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Above the toy: ratio, raw sharpness, swing; below P of the quadratics."""
    figure = _style.canvas(
        11.6,
        8.1,
        "At the adaptive edge the central flow follows RMSProp, into sharper regions and to its rest",
        f"Above: $L = y x^2/2 - y$, $\\eta$ = {LR:g}, $\\beta_1$ = {BETA1:g} (Adam), $\\beta_2$ = "
        f"{BETA2:g}, from $x$ = $10^{{{np.log10(DISPLACEMENT):.0f}}}$, $y$ = {SHARPNESS:g}; "
        f"ratio {BEGIN:g} at the start. Below: $w^\\top H w/2$, $\\eta$ = {QUADRATIC_LR:g}, "
        "$\\beta_2$ = 0.99, 0.99, 0.999.\nPoints: "
        "runs; lines: central flow; dashed: closed forms, $c_2 = (1-\\beta_2)/\\beta_2$. "
        "$Z = 4\\Sigma/\\eta^2$ of runs: over the second "
        f"half of {', '.join(f'{int(n):,}' for n in arrays['quadratic_steps'])} steps. Own settings.",
    )
    handles = [
        Line2D([], [], label=NAMES[name], **_style.points(COLORS[name], marker=MARKERS[name]))
        for name in RULES
    ]
    handles += [
        Line2D([], [], label="their central flows", color=_style.QUIET, lw=1.5),
        Line2D([], [], label="closed form", color=_style.INK, lw=1.0, ls=_DASHED),
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        ncols=4,
        columnspacing=2.0,
        bbox_to_anchor=(0.1 / 11.6, 1 - 0.42 / 8.1),
    )
    edges = _style.margins(figure, left=0.75, right=0.4, top=1.28, bottom=1.05)
    grid = figure.add_gridspec(2, 3, wspace=0.27, hspace=0.5, **edges)
    _draw_ratio(figure.add_subplot(grid[0, 0]), arrays)
    _draw_sharpness(figure.add_subplot(grid[0, 1]), arrays)
    _draw_swing(figure.add_subplot(grid[0, 2]), arrays)
    for column, name in enumerate(QUADRATICS):
        _draw_quadratic(figure.add_subplot(grid[1, column]), arrays, name)
    return figure


_DASHED = (0, (4, 3))
MARKERS = {"rmsprop": "o", "adam": "D"}


def _last(arrays: dict[str, np.ndarray]) -> int:
    """The step that the toy's runs end at."""
    return int(arrays["step"][-1])


def _growth(arrays: dict[str, np.ndarray]) -> float:
    """Of RMSProp's raw sharpness, end over start."""
    return float(arrays["rmsprop_y"][_last(arrays)] / arrays["rmsprop_y"][0])


def _draw_ratio(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    shown = np.unique(np.geomspace(20, _last(arrays), 90).astype(int))
    for name in ("adam", "rmsprop"):
        look = _style.points(COLORS[name], marker=MARKERS[name], size=2.8)
        axes.plot(shown, arrays[f"{name}_ratio"][shown], **look)
        axes.plot(arrays["step"], arrays[f"{name}_flow_ratio"], color=COLORS[name], lw=1.4)
    axes.plot(arrays["stable_step"], arrays["stable_ratio"], color=STABLE, lw=1.4)
    axes.text(165, 1.75, "without oscillation\n(stable flow): leaves", fontsize=8, color=STABLE)
    axes.set_xscale("log")
    axes.set_xlim(18, 1.15 * _last(arrays))
    axes.set_ylim(0.4, 2.0)
    axes.xaxis.set_major_locator(FixedLocator([20, 100, 500, 2000, 20000]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("step")
    axes.set_title("Ratio to the edge", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, "momentum makes Adam's ratio cycle")
    axes.set_ylabel(r"$\lambda_{\max}(P^{-1}H)\,/\,\tau$   1 at the edge")


def _draw_sharpness(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    last = _last(arrays)
    steps = np.linspace(0, last, 21).astype(int)
    for name, first in (("rmsprop", 0), ("adam", 1)):
        axes.plot(arrays["step"], arrays[f"{name}_flow_y"], color=COLORS[name], lw=1.4)
        at = steps[first::2]
        look = _style.points(COLORS[name], marker=MARKERS[name])
        axes.plot(at, arrays[f"{name}_y"][at], **look)
    frozen = np.arange(FROZEN_STEPS + 1)
    axes.plot(FROZEN_AT + frozen, arrays["frozen_y"], color=FROZEN, lw=0.6, alpha=0.6)
    shown = frozen[::200]
    look = _style.points(FROZEN, marker="s", size=3)
    axes.plot(FROZEN_AT + shown, arrays["frozen_y"][shown], **look)
    text = f"preconditioner frozen\nat step {FROZEN_AT}: blocked"
    axes.text(FROZEN_AT + FROZEN_STEPS + 500, 27, text, fontsize=8, color=FROZEN, va="center")
    axes.set_xlim(-0.02 * last, 1.02 * last)
    axes.set_ylim(0, 230)
    axes.xaxis.set_major_locator(FixedLocator([0, 5000, 10000, 15000, 20000]))
    axes.set_title("Raw sharpness", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, f"it grows {_growth(arrays):.0f}-fold at the edge")
    axes.set_xlabel("step")
    axes.set_ylabel("$y$")


def _draw_swing(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    y = np.geomspace(SHARPNESS, 225, 200)
    axes.plot(
        y, closed_form("rmsprop", y) * (2 / LR) ** 2, color=_style.INK, lw=1.0, ls=_DASHED, zorder=3
    )
    for name in ("adam", "rmsprop"):
        unit = (EDGES[name] / LR) ** 2
        flow = arrays["step"] >= 400
        axes.plot(
            arrays[f"{name}_flow_y"][flow],
            unit * arrays[f"{name}_flow_square"][flow],
            color=COLORS[name],
            lw=1.4,
        )
        _, y_mean, square = _compared(arrays, name)
        look = _style.points(COLORS[name], marker=MARKERS[name], size=4)
        axes.plot(y_mean, unit * square, **look)
    axes.set_xscale("log")
    axes.set_xlim(22, 235)
    axes.set_ylim(0.9, 1.5)
    axes.xaxis.set_major_locator(FixedLocator([25, 50, 100, 200]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title("Mean square of the swing", pad=_style.SUBTITLE_PAD)
    _style.subtitle(axes, r"over $(\eta/\tau)^2$, where one closed form holds for both flows")
    axes.text(230, 1.035, r"$1 + 2\eta/c_2 y$", ha="right", fontsize=8)
    axes.set_xlabel("$y$   raw sharpness")
    axes.set_ylabel(r"$\langle x^2\rangle\,\tau^2/\eta^2$")


_TITLES = {
    "positive": "$H$ = [[4, 1], [1, 2]]",
    "negative": "$H$ = [[4, −2], [−2, 2]]",
    "frustrated": "Frustrated: −1 between three",
}
_ENTRIES = ("#00395a", COLORS["rmsprop"], "#6cb5e0")  # RMSProp's colour, dark to light


def _draw_quadratic(axes: Axes, arrays: dict[str, np.ndarray], name: str) -> None:
    closed, _ = stationary(name)
    H, _, _, shown = QUADRATICS[name]
    steps = np.linspace(0, shown, 33).astype(int)
    for index, level in enumerate(closed):
        color = _ENTRIES[index]
        axes.axhline(level, color=_style.INK, lw=1.0, ls=_DASHED)
        axes.plot(
            arrays[f"{name}_flow_step"], arrays[f"{name}_flow_P"][:, index], color=color, lw=1.4
        )
        run = arrays[f"{name}_P"][steps, index]
        axes.plot(steps, run, **_style.points(color, marker=MARKERS["rmsprop"], size=3))
        axes.annotate(
            f"$P_{index + 1}$",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=color,
        )
    low, high = closed.min(), arrays[f"{name}_P"].max()
    axes.set_ylim(low - 0.35 * (high - low), high + 0.1 * (high - low))
    axes.set_xlim(-0.02 * shown, 1.02 * shown)
    axes.set_title(_TITLES[name], pad=_style.SUBTITLE_PAD)
    form = "$(H_{ii}+1)/2$" if name == "frustrated" else "half the row sums of $|H|$"
    _style.subtitle(axes, f"RMSProp's $P_i$ tend to {form}")
    pairs = [(i, j) for i in range(len(H)) for j in range(i)]
    values = ", ".join(f"{arrays[f'{name}_Z'][pair]:.3g}" for pair in pairs).replace("-", "−")
    expected = {"positive": "1", "negative": "−1", "frustrated": "−1/2"}[name]
    axes.text(
        0.97,
        0.05,
        f"$Z_{{ij}}$ = {values} (theory {expected})",
        transform=axes.transAxes,
        ha="right",
        fontsize=7.5,
    )
    axes.set_xlabel("step")
    axes.set_ylabel("$P_i$   preconditioner")
