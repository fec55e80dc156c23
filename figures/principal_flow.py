r"""The principal flow turns through the complex plane from each iterate of gradient descent to the next.

On a quadratic with :math:`z = h\lambda = 1.95` gradient descent multiplies the sharp coordinate by
:math:`1 - z = -0.95` per step, which no real flow can do: it would have to pass through 0. The
principal flow (Rosca, Wu, Qin & Dherin 2023, arXiv 2302.01952) multiplies it by :math:`(1-z)^{t/h} =
0.95^{t/h}\, e^{i\pi t/h}`: half a turn per step, real again at every iterate. Gradient flow slides
down to 0. The animation shows the sharp coordinate in the complex plane and beside it, at the same
height, the path of its real part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from matplotlib.ticker import FixedLocator

import eosim
from figures import _style
from figures._headline import Row

# Our choice: just below the edge, so that the turn is nearly a circle; the slow direction moves
# steadily to the side.
LR, SHARP, SLOW = 1.0, 1.95, 0.08
START = (1.0, -1.0)
N_STEPS = 12
# Our choice: points of the curves per step; frames per step, which make 12 steps last 4.8 s; and
# the pause at the end.
DENSITY = 40
FRAMES_QUICK, FRAMES_FULL = 8, 20
LENGTH, PAUSE = 4800, 1200  # milliseconds
RTOL, ATOL = 1e-12, 0.0
# The solver's tolerance times the number of steps, with room to spare.
LARGEST_ERROR = 1e-9
SHARP_AXIS, SLOW_AXIS = 0, 1


def compute(quick: bool) -> dict[str, np.ndarray]:
    """Iterates, and both flows between them."""
    problem = eosim.Quadratic(np.diag([SHARP, SLOW]))
    steps = np.arange(DENSITY * N_STEPS + 1) / DENSITY
    options: dict[str, Any] = {"record": {}, "rtol": RTOL, "atol": ATOL}
    principal = eosim.integrate(eosim.PrincipalFlow(problem, LR), START, LR * steps, **options)
    gradient = eosim.integrate(eosim.GradientFlow(problem, LR), START, LR * steps, **options)
    descent = eosim.run(problem, eosim.GradientDescent(LR), START, N_STEPS, record={})
    return {
        "step": steps,
        "frames_per_step": np.array(FRAMES_QUICK if quick else FRAMES_FULL),
        "iterates": descent["theta"],
        "principal": principal["theta"],
        "gradient": gradient["theta"],
    }


def headline(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Exact at the iterates, half a turn between them, and no sign change of gradient flow."""
    principal, iterates = arrays["principal"], arrays["iterates"]
    sharp = principal[:, SHARP_AXIS]
    error = np.abs(principal[::DENSITY] / iterates - 1).max()
    angle = np.unwrap(np.angle(sharp))
    turns = (angle[-1] - angle[0]) / np.pi
    lowest = arrays["gradient"][:, SHARP_AXIS].min()
    return [
        Row("principal flow: largest error", LARGEST_ERROR, 0.0, float(error), "at most"),
        Row("principal flow: half turns per step", 1.0, 1e-9, float(turns / N_STEPS)),
        Row("its size, last / first", 0.95**N_STEPS, 1e-9, float(np.abs(sharp[-1] / sharp[0]))),
        Row("gradient flow: least sharp coordinate", 0.0, 0.0, float(lowest), "at least"),
    ]


@_style.styled
def draw(arrays: dict[str, np.ndarray]) -> Figure:
    """The last frame of the animation."""
    return _Scene(arrays).figure


@_style.styled
def animate(arrays: dict[str, np.ndarray]) -> _style.Animation:
    """From the start to the last iterate."""
    scene, per_step = _Scene(arrays), int(arrays["frames_per_step"])
    return _style.Animation(
        figure=scene.figure,
        update=lambda frame: scene.show(frame * DENSITY // per_step),
        n_frames=per_step * N_STEPS + 1,
        milliseconds=round(LENGTH / (per_step * N_STEPS)),
        pause=PAUSE,
    )


class _Scene:
    """Both panels, and everything in them that moves."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.figure = _style.canvas(
            7.2,
            3.9,
            "The principal flow turns through the iterates, gradient flow slides down",
            f"A quadratic with $h\\lambda = {SHARP:g}$ along the sharp direction and {SLOW:g} along the "
            "slow one.",
        )
        grid = self.figure.add_gridspec(
            1,
            2,
            width_ratios=(1, 1.75),
            wspace=0.1,
            **_style.margins(self.figure, left=0.62, right=0.2, top=0.98, bottom=0.82),
        )
        self.turn = self.figure.add_subplot(grid[0])
        self.plane = self.figure.add_subplot(grid[1], sharey=self.turn)
        self.movers: dict[str, Any] = {}
        self._prepare_turn(self.turn)
        self._prepare_plane(self.plane)
        self.link = ConnectionPatch(
            (0, 0), (0, 0), "data", "data", axesA=self.turn, axesB=self.plane
        )
        self.link.set(color=_style.PRINCIPAL_FLOW, linewidth=0.7, linestyle=(0, (2, 2)))
        self.figure.add_artist(self.link)
        self.show(len(arrays["step"]) - 1)

    def _prepare_turn(self, axes: Axes) -> None:
        axes.set_title("Sharp coordinate, complex")
        angle = np.linspace(0, 2 * np.pi, 200)
        axes.plot(np.sin(angle), np.cos(angle), color=_style.FAINT, lw=0.9)
        axes.axhline(0, color=_style.QUIET, lw=0.7)
        axes.axvline(0, color=_style.QUIET, lw=0.7)
        axes.set_xlim(-1.18, 1.18)
        axes.set_ylim(-1.18, 1.18)
        axes.grid(visible=False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator([-1, 0, 1]))
        axes.set_xlabel("imaginary part")
        axes.set_ylabel("real part")
        self._add_movers(axes, "turn")

    def _prepare_plane(self, axes: Axes) -> None:
        axes.set_title("In the plane of the parameters")
        slow = self.arrays["iterates"][:, SLOW_AXIS]
        axes.axhline(0, color=_style.QUIET, lw=0.7)
        axes.set_xlim(slow[0] - 0.05, slow[-1] + 0.06)
        axes.tick_params(labelleft=False)
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(FixedLocator([-1, -0.8, -0.6, -0.4]))
        axes.set_xlabel("slow coordinate")
        self._add_movers(axes, "plane")

    def _add_movers(self, axes: Axes, panel: str) -> None:
        principal, gradient = _style.PRINCIPAL_FLOW, _style.GRADIENT_FLOW
        looks: dict[str, dict[str, Any]] = {
            "gradient": {"color": gradient, "ls": (0, (5, 2)), "lw": 1.5},
            "principal": {"color": principal, "lw": 1.6},
            "gradient_head": _style.points(gradient, marker="s", size=5),
            "principal_head": _style.points(principal, marker="D", size=5),
            "iterates": _style.points(_style.GRADIENT_DESCENT, size=6.5),
        }
        for rank, (name, look) in enumerate(looks.items()):
            (line,) = axes.plot([], [], zorder=3 + rank, **look)
            self.movers[f"{panel}_{name}"] = line
        if panel == "turn":
            return
        labels = ("gradient flow", "principal flow (real part)", "gradient descent")
        names = ("gradient", "principal", "iterates")
        axes.legend(
            [self.movers[f"plane_{name}"] for name in reversed(names)],
            reversed(labels),
            loc="lower right",
            ncols=3,
            bbox_to_anchor=(1.02, 1.1),
            columnspacing=1.4,
            handlelength=1.6,
            fontsize=7.5,
        )

    def show(self, index: int) -> None:
        """Put everything where it is at this point of the curves."""
        arrays = self.arrays
        iterates = arrays["iterates"][: index // DENSITY + 1]  # those that have appeared
        principal, gradient = arrays["principal"][: index + 1], arrays["gradient"][: index + 1]
        sharp, slow = SHARP_AXIS, SLOW_AXIS
        paths = {
            "turn_principal": (principal[:, sharp].imag, principal[:, sharp].real),
            "turn_gradient": (0 * gradient[:, sharp], gradient[:, sharp]),
            "turn_iterates": (0 * iterates[:, sharp], iterates[:, sharp]),
            "plane_principal": (principal[:, slow].real, principal[:, sharp].real),
            "plane_gradient": (gradient[:, slow], gradient[:, sharp]),
            "plane_iterates": (iterates[:, slow], iterates[:, sharp]),
        }
        for name, (x, y) in paths.items():
            self.movers[name].set_data(x, y)
            if not name.endswith("iterates"):
                self.movers[f"{name}_head"].set_data(x[-1:], y[-1:])
        turn, plane = paths["turn_principal"], paths["plane_principal"]
        self.link.xy1 = (turn[0][-1], turn[1][-1])
        self.link.xy2 = (plane[0][-1], plane[1][-1])
