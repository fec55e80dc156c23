"""``python -m tests.benchmarks.report``: what was measured, as tables in README.md and as a picture.

It reads the rows that ``python -m tests.benchmarks --save tests/benchmarks/measured.json`` has kept.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from figures import _style
from tests.benchmarks import in_words

_HERE = Path(__file__).parent
_BEGIN, _END = "<!-- measured -->", "<!-- end -->"


def rows(kind: str) -> list[dict[str, Any]]:
    """Those kept of one kind: "contest", "budget" or "size"."""
    return [row for row in json.loads((_HERE / "measured.json").read_text()) if row["kind"] == kind]


def tables() -> str:
    """Markdown: contests, budgets and sizes."""
    lines = [
        "| workload | size | eosim | best peer | | times as fast | goal | of the limit |",
        "|---|---|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows("contest"):
        cells = (
            f"`{row['name']}`", row["size"], in_words(row["ours"]), in_words(row["peer"]), row["best"],
            _marked(f"{row['ratio']:.3g}", row), f"{row['goal']:g}",
            "" if row["of_limit"] is None else f"{row['of_limit']:.0%}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| budget | | time | goal |", "|---|---|---:|---:|"]
    for row in rows("budget"):
        time = _marked(in_words(row["seconds"]), row)
        lines.append(f"| `{row['name']}` | {row['size']} | {time} | {in_words(row['goal'])} |")
    lines += [
        "",
        "| size | problem | time | memory | in arrays of | goal |",
        "|---|---|---:|---:|---|---|",
    ]
    for row in rows("size"):
        goal = f"{row['goal']:g} s, {row['goal_arrays']:g} arrays"
        lines.append(
            f"| `{row['name']}` | {row['size']} | {_marked(in_words(row['seconds']), row)} "
            f"| {row['megabytes']:.0f} MB | {row['arrays']:.1f} {row['of']} | {goal} |"
        )
    return "\n".join(lines)


def _marked(text: str, row: dict[str, Any]) -> str:
    return text if row["met"] else f"**{text}**"


@_style.styled
def draw(arrays: dict[str, Any]) -> Figure:
    """How many times as fast as the best peer, for each contest with a rival, beside its goal."""
    contests = [row for row in arrays["contests"] if not row["price"]]
    subjects = [row["subject"] for row in contests]
    gaps = np.cumsum([0, *(a != b for a, b in itertools.pairwise(subjects))])
    height = -np.arange(len(contests)) - 0.8 * gaps
    figure = Figure(figsize=(8.4, 0.19 * -height[-1] + 1.0), layout="constrained")
    axes = figure.subplots()
    ratios = [row["ratio"] for row in contests]
    axes.axvline(1, color=_style.INK, linewidth=0.9)
    axes.hlines(height, 1, ratios, color=_style.FAINT, linewidth=4)
    axes.plot(
        [row["goal"] for row in contests], height, "|", color=_style.VERMILLION, markersize=10,
        markeredgewidth=1.6, label="goal",
    )  # fmt: skip
    axes.plot(ratios, height, "o", color=_style.BLUE, label="measured")
    axes.set_xscale("log")
    axes.set_yticks(list(height), [f"{row['name']}   {row['size']}" for row in contests])
    axes.grid(visible=False, axis="y")
    axes.set_ylim(height[-1] - 0.8, 0.8)
    right = axes.secondary_yaxis("right")
    right.set_yticks(list(height), [row["best"] for row in contests])
    right.tick_params(length=0, labelcolor=_style.QUIET)
    right.spines["right"].set_visible(False)
    axes.set_xlabel("times as fast as the best peer (right), on one core")
    axes.legend(loc="lower right")
    return figure


def main() -> None:
    """Rewrite the tables between the marks of README.md, and the picture beside it."""
    path = _HERE / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    path.write_text(f"{before}{_BEGIN}\n\n{tables()}\n\n{_END}{after}", encoding="utf-8")
    _style.save(draw({"contests": rows("contest")}), _HERE / "measured.png")


if __name__ == "__main__":
    main()
