r"""Only the principal flow oscillates and diverges where gradient descent does.

On a quadratic a flow moves a direction of curvature :math:`\lambda` by :math:`\dot x =
\alpha(z)\,\lambda x` with :math:`z = h\lambda`, so by the factor :math:`e^{z\alpha(z)}` in the time
of one step of gradient descent, which has the factor :math:`1-z`. The coefficients:

.. math:: \alpha = -\sum_{p<n} \frac{z^p}{p+1} \quad\text{(series of n terms; n = 1: gradient flow,
          n = 2: modified flow of order 2)}, \qquad
          \alpha = \frac{\log(1-z)}{z} \quad\text{(principal flow)}

(Rosca, Wu, Qin & Dherin 2023, arXiv 2302.01952.) A real coefficient means a positive factor, and
every truncation has :math:`\alpha < 0` at every :math:`z > 0`: no oscillation, no divergence. At
:math:`z < 0` an even truncation has a zero, below which it contracts where gradient descent grows.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator

import eosim
from eosim.flows import Flow
from figures import _style
from figures._headline import Row

# Our choice: every regime with room around it.
LIMITS = (-3.0, 4.0)
# Our choice: even numbers, so that no point of the lines lies on the singularity at 1.
N_POINTS_QUICK, N_POINTS_FULL = 2800, 28000
# Our choice: curvatures at which gradient descent makes a step; the lines must not need them.
SIMULATED = np.array([-2.75, -2.25, -1.75, -1.25, -0.75, -0.25, 0.25, 0.75, 1.25, 1.75])
SIMULATED = np.concatenate([SIMULATED, [2.25, 2.75, 3.25, 3.75]])
# Number of terms, name, and looks of the truncated series.
SERIES = (
    (1, "gradient flow", _style.GRADIENT_FLOW, (0, (5, 2))),
    (2, "order 2", _style.MODIFIED_2, (0, (5, 1.5, 1, 1.5))),
    (3, "3 terms", _style.MODIFIED_3, (0, (3, 1.5))),
    (4, "4 terms", _style.MODIFIED_4, (0, (1.2, 1.4))),
    (5, "5 terms", _style.QUIET, (0, (7, 1.5, 1, 1.5, 1, 1.5))),
)
# Regimes of gradient descent: 1 - z is above 1, in (0, 1), in (-1, 0), below -1.
REGIMES = (
    (LIMITS[0], 0.0, "$z < 0$   grows", "#f6f1e7"),
    (0.0, 1.0, "$0 < z < 1$   decays monotonically", "#edf4f9"),
    (1.0, 2.0, "$1 < z < 2$   decays, oscillating", "#d9e8f3"),
    (2.0, LIMITS[1], "$z > 2$   diverges, oscillating", "#fae7db"),
)
# Closed forms in double precision: a few units in the last place.
ROUNDING = 1e-12


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Coefficients and factors of every flow over z, zeros, and steps of gradient descent."""
    # At lr = 1 on a quadratic of curvature z; coefficients do not depend on the problem.
    bowl = eosim.Quadratic([[1.0]])
    flows: dict[str, Flow] = {
        f"series{n}": eosim.PrincipalSeries(bowl, lr=1.0, n_terms=n) for n, *_ in SERIES
    }
    flows["principal"] = eosim.PrincipalFlow(bowl, lr=1.0)
    z = np.linspace(*LIMITS, N_POINTS_QUICK if quick else N_POINTS_FULL)
    arrays: dict[str, np.ndarray] = {"z": z, "simulated_z": SIMULATED}
    for name, flow in flows.items():
        arrays[name] = flow.coefficient(z)
    landmarks = np.array([-1.0, 0.0, 2.0])
    arrays["principal_landmarks"] = flows["principal"].coefficient(landmarks)
    for name in ("series2", "series4"):
        arrays[f"{name}_zero"] = np.array(_zero(flows[name]))
    arrays["simulated_factor"] = np.array([_step(curvature) for curvature in SIMULATED])
    return arrays


def _zero(flow: Flow) -> float:
    """The z < 0 at which a coefficient changes sign, by bisection."""
    low, high = LIMITS[0], 0.0
    while high - low > 1e-13:
        middle = (low + high) / 2
        if flow.coefficient(np.array([middle]))[0] > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _step(curvature: float) -> float:
    """What one step of gradient descent at lr = 1 multiplies theta by."""
    path = eosim.run(
        eosim.Quadratic([[curvature]]), eosim.GradientDescent(1.0), [1.0], 1, record={}
    )
    return float(path["theta"][1, 0])


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Landmarks of the principal flow, zeros of even truncations, and who oscillates."""
    z, alpha = arrays["z"], arrays["principal"]
    at_minus_1, at_0, at_2 = arrays["principal_landmarks"]
    beyond = z > 1
    frequency = np.abs(alpha[beyond].imag - np.pi / z[beyond]).max()
    factor = np.abs(np.exp(z * alpha) - (1 - z)).max()
    simulated = np.abs(arrays["simulated_factor"] - (1 - arrays["simulated_z"])).max()
    positive = z > 0
    worst = max(arrays[f"series{n}"][positive].max() for n, *_ in SERIES)
    fourth = np.roots([1 / 4, 1 / 3, 1 / 2, 1])  # of 1 + z/2 + z^2/3 + z^3/4
    expected = float(fourth[np.abs(fourth.imag) < 1e-9].real[0])
    return [
        Row("alpha(-1) = -log 2", -float(np.log(2)), ROUNDING, float(at_minus_1.real)),
        Row("alpha(0)", -1.0, ROUNDING, float(at_0.real)),
        Row("Re alpha(2)", 0.0, ROUNDING, float(at_2.real)),
        Row("z > 1: |Im alpha - pi / z|", ROUNDING, 0.0, float(frequency), "at most"),
        Row("principal flow: |factor - (1 - z)|", ROUNDING, 0.0, float(factor), "at most"),
        Row("gradient descent: |factor - (1 - z)|", ROUNDING, 0.0, float(simulated), "at most"),
        Row("order 2: zero of alpha", -2.0, ROUNDING, float(arrays["series2_zero"])),
        Row("4 terms: zero of alpha", expected, ROUNDING, float(arrays["series4_zero"])),
        Row("z > 0: largest alpha of a truncation", -1.0, ROUNDING, float(worst), "at most"),
    ]


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """Three panels: real part, imaginary part, and the factor per step."""
    figure = _style.canvas(
        11.0,
        5.2,
        "Of all these flows only the principal flow oscillates and diverges with gradient descent",
        r"$\dot x = \alpha(z)\,\lambda x$ along a direction of curvature $\lambda$, "
        r"$z = h\lambda$, hence the factor $e^{z\alpha(z)}$ per step. Lines: the flows; "
        "points: one step of gradient descent each (filled decays, open grows).",
    )
    grid = figure.add_gridspec(
        1, 3, wspace=0.27, **_style.margins(figure, left=0.72, right=0.25, top=1.38, bottom=0.92)
    )
    real, imaginary, factor = (figure.add_subplot(grid[index]) for index in range(3))
    for axes in (real, imaginary, factor):
        for left, right, _, color in REGIMES:
            axes.axvspan(left, right, color=color, lw=0, zorder=0)
        axes.set_xlim(*LIMITS)
        axes.xaxis.set_major_locator(FixedLocator([-3, -2, -1, 0, 1, 2, 3, 4]))
        axes.grid(visible=False)
        axes.axhline(0, color=_style.QUIET, lw=0.7)
        axes.set_xlabel(r"$z = h\lambda$   rate × curvature")
    patches = [Patch(color=color, label=name) for *_, name, color in REGIMES]
    width, height = figure.get_size_inches()
    figure.legend(
        handles=patches,
        title="Shaded: what gradient descent does",
        alignment="left",
        title_fontsize=8,
        loc="upper left",
        ncols=4,
        columnspacing=2.4,
        handlelength=1.6,
        handleheight=1.0,
        bbox_to_anchor=(0.1 / width, 1 - 0.42 / height),
    )
    _draw_real(real, arrays)
    _draw_imaginary(imaginary, arrays)
    _draw_factor(factor, arrays)
    return figure


def _draw_real(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    z = arrays["z"]
    for n, _, color, line in SERIES:
        axes.plot(z, arrays[f"series{n}"], color=color, ls=line)
    axes.plot(z, arrays["principal"].real, color=_style.PRINCIPAL_FLOW, lw=2.2)
    axes.set_ylim(-4.6, 6)
    axes.set_title("Real part: rate of growth")
    axes.set_ylabel(r"$\mathrm{Re}\,\alpha(z)$")
    for x, y, text, color in (
        (3.0, 0.5, "principal flow", _style.PRINCIPAL_FLOW),
        (3.05, -0.82, "gradient flow", _style.GRADIENT_FLOW),
        (3.3, -2.1, "order 2", _style.MODIFIED_2),
        (3.05, -4.25, "3 terms", _style.MODIFIED_3),
        (-1.75, 2.1, "4 terms", _style.MODIFIED_4),
        (-1.45, -3.6, "5 terms", _style.QUIET),
    ):
        axes.text(x, y, text, ha="center", fontsize=7.5, color=color)


def _draw_imaginary(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    z, alpha = arrays["z"], arrays["principal"]
    for part in (z < 1, z > 1):
        axes.plot(z[part], alpha[part].imag, color=_style.PRINCIPAL_FLOW, lw=2.2)
    axes.plot([1, 1], [0, np.pi], color=_style.PRINCIPAL_FLOW, lw=0.9, ls=(0, (2, 2)))
    axes.plot(z, 0 * z, color=_style.GRADIENT_FLOW, ls=(0, (5, 2)))
    axes.set_ylim(-0.3, 3.7)
    axes.set_title("Imaginary part: rotation")
    axes.set_ylabel(r"$\mathrm{Im}\,\alpha(z)$")
    axes.yaxis.set_major_locator(FixedLocator([0, np.pi / 2, np.pi]))
    axes.set_yticklabels(["0", "π/2", "π"])
    axes.text(1.45, 2.6, r"$\pi / z$", fontsize=9, color=_style.PRINCIPAL_FLOW)
    axes.text(1.42, 2.33, "half a turn per step", fontsize=7.5, color=_style.PRINCIPAL_FLOW)
    axes.text(-2.85, 0.12, "every truncation: 0", fontsize=7.5, color=_style.GRADIENT_FLOW)


def _draw_factor(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    z = arrays["z"]
    axes.axhspan(-1, 1, color="white", alpha=0.45, lw=0, zorder=0.5)
    for n, _, color, line in SERIES:
        axes.plot(z, np.exp(z * arrays[f"series{n}"]), color=color, ls=line)
    factor = np.exp(z * arrays["principal"]).real
    axes.plot(z, factor, color=_style.PRINCIPAL_FLOW, lw=2.2)
    simulated_z, simulated = arrays["simulated_z"], arrays["simulated_factor"]
    for grows in (False, True):
        chosen = (np.abs(simulated) > 1) == grows
        look = _style.points(_style.GRADIENT_DESCENT, filled=not grows)
        axes.plot(simulated_z[chosen], simulated[chosen], **look, zorder=4)
    axes.set_ylim(-3.3, 4.6)
    axes.set_title("Factor per step (pale: contracts)")
    axes.set_ylabel(r"$e^{z\alpha(z)}$")
    axes.yaxis.set_major_locator(FixedLocator([-3, -2, -1, 0, 1, 2, 3, 4]))
    axes.text(1.75, -1.75, "gradient descent\nand principal flow", ha="right", fontsize=7.5)
    axes.text(-2.95, 1.15, "order 2", fontsize=7.5, color=_style.MODIFIED_2)
    axes.text(-2.95, -0.4, "4 terms", fontsize=7.5, color=_style.MODIFIED_4)
    axes.text(3.9, 0.22, "all truncations", ha="right", fontsize=7.5, color=_style.GRADIENT_FLOW)
