"""The flows that figures compare: what each is called, how it looks, and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import eosim
from eosim.flows import Flow
from eosim.problems.base import Problem
from figures import _style


@dataclass(frozen=True)
class Kind:
    """A flow as a function of problem and learning rate, with its looks.

    Real, truncated flows are dashed lines, principal flows solid ones: it shows in grey too.
    """

    name: str
    label: str
    color: str
    marker: str
    line: Any
    make: Callable[[Problem, float], Flow]


_DASHED = (0, (5, 2))
_DOTTED = (0, (1.2, 1.6))

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "gradient",
            "gradient flow",
            _style.GRADIENT_FLOW,
            "s",
            _DASHED,
            lambda problem, lr: eosim.GradientFlow(problem, lr),
        ),
        Kind(
            "order2",
            "modified flow, order 2",
            _style.MODIFIED_2,
            "^",
            _DASHED,
            lambda problem, lr: eosim.ModifiedFlow(problem, lr, 2),
        ),
        Kind(
            "order3",
            "modified flow, order 3",
            _style.MODIFIED_3,
            "v",
            _DASHED,
            lambda problem, lr: eosim.ModifiedFlow(problem, lr, 3),
        ),
        Kind(
            "order4",
            "modified flow, order 4",
            _style.MODIFIED_4,
            "P",
            _DASHED,
            lambda problem, lr: eosim.ModifiedFlow(problem, lr, 4),
        ),
        Kind(
            "difference3",
            "forward differences, order 3",
            _style.MODIFIED_3,
            "<",
            _DOTTED,
            lambda problem, lr: eosim.ForwardDifferenceFlow(problem, lr, 3),
        ),
        Kind(
            "difference5",
            "forward differences, order 5",
            _style.BLUE,
            ">",
            _DOTTED,
            lambda problem, lr: eosim.ForwardDifferenceFlow(problem, lr, 5),
        ),
        Kind(
            "series3",
            "principal series, 3 terms",
            _style.GREEN,
            "X",
            _DOTTED,
            lambda problem, lr: eosim.PrincipalSeries(problem, lr, 3),
        ),
        Kind(
            "principal",
            "principal flow",
            _style.PRINCIPAL_FLOW,
            "D",
            "-",
            lambda problem, lr: eosim.PrincipalFlow(problem, lr),
        ),
        Kind(
            "principal1",
            "principal flow + 1 correction",
            _style.PRINCIPAL_1,
            "p",
            "-",
            lambda problem, lr: eosim.PrincipalFlow(problem, lr, corrections=1),
        ),
        Kind(
            "principal2",
            "principal flow + 2 corrections",
            _style.PRINCIPAL_2,
            "h",
            "-",
            lambda problem, lr: eosim.PrincipalFlow(problem, lr, corrections=2),
        ),
    )
}


def make(names: Iterable[str], problem: Problem, lr: float) -> dict[str, Flow]:
    """The named flows, as `eosim.compare` takes them."""
    return {name: KINDS[name].make(problem, lr) for name in names}


def legend(
    figure: Figure, names: Iterable[str], *, columns: int, descent: bool = True, top: float = 0.42
) -> None:
    """One row or more under the title: gradient descent's points, then the named flows."""
    handles = []
    if descent:
        look = _style.points(_style.GRADIENT_DESCENT, size=5)
        handles.append(Line2D([], [], label="gradient descent", **look))
    for kind in (KINDS[name] for name in names):
        handles.append(
            Line2D(
                [],
                [],
                label=kind.label,
                color=kind.color,
                marker=kind.marker,
                ls=kind.line,
                markersize=4,
            )
        )
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="upper left",
        ncols=columns,
        columnspacing=2.0,
        bbox_to_anchor=(0.1 / width, 1 - top / height),
    )
