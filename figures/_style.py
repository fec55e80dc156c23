"""The house style: theory is a line, simulation is points, filled decays and open grows.

Figures are built with matplotlib's objects alone: no pyplot, no state left behind, and the same
arrays give the same bytes in every format.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

# Okabe & Ito's palette, which stays apart for every common form of colour blindness (Color
# Universal Design, 2008); its black is softened for text, its yellow too faint for lines.
INK = "#22262b"
QUIET = "#7d848c"
FAINT = "#d9dce0"
BLUE = "#0072b2"
SKY = "#56b4e9"
GREEN = "#009e73"
ORANGE = "#e69f00"
VERMILLION = "#d55e00"
PURPLE = "#cc79a7"

# The same thing has the same colour in every figure.
GRADIENT_DESCENT = BLUE
PRINCIPAL_FLOW = VERMILLION
GRADIENT_FLOW = GREEN
MODIFIED_2 = PURPLE
MODIFIED_3 = SKY
MODIFIED_4 = INK
PRINCIPAL_1 = ORANGE
PRINCIPAL_2 = "#8a4b12"  # brown
HEAVY_BALL = ORANGE
NESTEROV = PURPLE
EMA_MOMENTUM = SKY
QUASI_HYPERBOLIC = INK
QUASI_HYPERBOLIC_COMPLEX = "#8a4b12"  # brown: vermillion is the principal flow's

SUBTITLE_PAD = 21  # points
FORMATS = ("png", "svg", "pdf")

_RC: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "mathtext.fontset": "dejavusans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.labelpad": 5,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#eceef0",
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 2.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "svg.fonttype": "path",
    "svg.hashsalt": "eosim",  # element ids are hashes of content and salt, not random
    "path.simplify": True,
}

PNG_COLORS = 256
GIF_COLORS = 64
GIF_DPI = 120

# No dates and no versions: the bytes depend on the arrays and on matplotlib alone.
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def styled(
    draw: Callable[[dict[str, Any]], Figure],
) -> Callable[[dict[str, Any]], Figure]:
    """Decorator: draw in the house style whatever the caller's matplotlib settings are."""

    def in_style(arrays: dict[str, Any]) -> Figure:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_RC)
            return draw(arrays)

    in_style.__doc__ = draw.__doc__
    return in_style


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, SVG or PDF by its suffix; the same figure gives the same bytes.

    PNGs get a palette: a handful of colours and their blends with white, at a third of the size.
    """
    kind = path.suffix[1:]
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        if kind != "png":
            figure.savefig(path, format=kind, metadata=_METADATA[kind])
            return
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata=_METADATA["png"])
    with Image.open(stream) as image:
        flat = image.convert("RGB").quantize(PNG_COLORS, dither=Image.Dither.NONE)
    flat.save(path, optimize=True, dpi=(_RC["savefig.dpi"],) * 2)


@dataclass(frozen=True)
class Animation:
    """A figure that changes: ``update(i)`` turns it into frame i.

    ``milliseconds`` is how long a frame stays; the last one stays for ``pause``.
    """

    figure: Figure
    update: Callable[[int], None]
    n_frames: int
    milliseconds: int
    pause: int


def save_animation(animation: Animation, path: Path) -> None:
    """Write a GIF that repeats for ever; the same animation gives the same bytes.

    All frames share the palette of the last one, so what does not move does not flicker, and is
    not stored again.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        animation.figure.set_dpi(GIF_DPI)
        canvas = FigureCanvasAgg(animation.figure)
        pictures = []
        for index in range(animation.n_frames):
            animation.update(index)
            canvas.draw()
            size = canvas.get_width_height()
            picture = Image.frombytes("RGBA", size, bytes(canvas.buffer_rgba()))
            pictures.append(picture.convert("RGB"))
    palette = pictures[-1].quantize(GIF_COLORS, dither=Image.Dither.NONE)
    colors = np.array(palette.getpalette()).reshape(-1, 3)
    white = int(colors.sum(axis=1).argmax())
    colors[white] = 255
    frames = []
    for picture in pictures:
        indices = np.array(picture.quantize(palette=palette, dither=Image.Dither.NONE))
        # Pillow looks colours up in a coarse table, which makes white a little grey.
        indices[(np.asarray(picture) == 255).all(axis=2)] = white
        frame = Image.fromarray(indices)
        frame.putpalette(colors.ravel().tolist())
        frames.append(frame)
    times = [animation.milliseconds] * (len(frames) - 1) + [animation.pause]
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True
    )


def canvas(width: float, height: float, title: str, note: str) -> Figure:
    """An empty figure, in inches, with its title at the top left and its settings at the bottom."""
    figure = Figure(figsize=(width, height))
    left = 0.18 / width
    figure.text(left, 1 - 0.16 / height, title, ha="left", va="top", fontsize=11.5, weight="bold")
    figure.text(left, 0.12 / height, note, ha="left", va="bottom", fontsize=7.5, color=QUIET)
    return figure


def margins(
    figure: Figure, *, left: float, right: float, top: float, bottom: float
) -> dict[str, float]:
    """Margins in inches as the fractions that ``Figure.add_gridspec`` takes."""
    width, height = figure.get_size_inches()
    return {
        "left": left / width,
        "right": 1 - right / width,
        "top": 1 - top / height,
        "bottom": bottom / height,
    }


def points(
    color: str, *, filled: bool = True, size: float = 4.5, marker: str = "o"
) -> dict[str, Any]:
    """Keywords of simulated points: filled = decays (or a plain value), open = grows."""
    return {
        "linestyle": "none",
        "marker": marker,
        "markersize": size,
        "markerfacecolor": color if filled else "white",
        "markeredgecolor": color,
        "markeredgewidth": 1.0,
    }


def bound(axes: Axes, level: float, x: float, text: str, *, below: bool = False) -> None:
    """A dashed line at the level that the headline is judged by, named where x is its left end."""
    axes.axhline(level, color=QUIET, lw=0.9, ls=(0, (4, 3)))
    axes.annotate(
        text,
        (x, level),
        xytext=(0, -4 if below else 3),
        textcoords="offset points",
        va="top" if below else "bottom",
        fontsize=7.5,
        color=QUIET,
    )


def subtitle(axes: Axes, text: str) -> None:
    """A quiet line between the title, which needs ``pad=SUBTITLE_PAD``, and the axes."""
    axes.annotate(
        text,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 7),
        textcoords="offset points",
        fontsize=7.5,
        color=QUIET,
    )
