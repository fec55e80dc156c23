"""Boundaries between phases: the ratio from which runs end otherwise, for many starts at once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from eosim._checks import Array, Interval, float_array, integer, real_number
from eosim.catapult.phases import Phase


class Boundary(NamedTuple):
    """Where runs begin to end otherwise, per start.

    ``ratio``: NaN where no single one separates them. ``lower``: every ratio tried up to there is
    inside (-inf if the first is not); ``upper``: every one tried from there on is beyond (inf if the
    last is not). ``ragged``: inside and beyond alternate between the two.
    """

    ratio: Array
    lower: Array
    upper: Array
    ragged: Array


def phase_boundary(
    diagram_of: Callable[[Array], Any],
    low: Any,
    high: Any,
    *,
    beyond: Collection[Phase] = (Phase.DIVERGED,),
    samples: int = 16,
    rtol: float = 1e-12,
) -> Boundary:
    r"""The ratio from which runs end in one of the phases ``beyond``, for many starts at once.

    The bracket is divided into ``samples`` parts, and the one in which the phase changes is divided
    again together with its neighbours, until it is shorter than ``rtol`` times its end, or than
    ``rtol`` squared times the bracket (an edge at 0 has no relative size). At every scale the change
    must be the only one, and lead beyond; else the boundary is ragged, and left there.

    Parameters
    ----------
    diagram_of : callable
        ``diagram_of(ratio)`` returns the `PhaseDiagram` of all starts (anything with such a
        ``phase``), at one ratio each.
    low, high : arrays that broadcast to the starts
        The bracket of each start.
    beyond : phases
        (DIVERGED,) for the edge of divergence; every phase but MONOTONE for that of the catapults;
        (BOUNDED, DIVERGED, DEAD) for the last rate that converges.
    samples : int
        At least 4: a part and its neighbours are three. Teeth narrower than a part may pass unseen; 16
        is our choice.
    rtol : float
        At least 1e-14. Our choice leaves room for rounding, which judges runs closer to the edge.

    Raises
    ------
    TypeError, ValueError
        If low is not below high, ``diagram_of`` returns fewer phases than ratios, or an option is wrong.

    Examples
    --------
    >>> from eosim import catapult
    >>> edge = catapult.phase_boundary(lambda a: catapult.phase_diagram(a, 0.04, 0.5), 3, 5)
    >>> print(edge.ratio.round(10), edge.ragged)  # 4 + Y epsilon
    4.1 False
    """
    if not callable(diagram_of):
        raise TypeError(f"diagram_of must be callable, got {diagram_of!r}")
    if not isinstance(beyond, Collection):
        raise TypeError(f"beyond must be a collection of phases, got {beyond!r}")
    low, high = np.broadcast_arrays(float_array("low", low), float_array("high", high))
    shape = np.shape(diagram_of(low).phase)
    try:
        low, high = np.broadcast_to(low, shape), np.broadcast_to(high, shape)
    except ValueError:
        raise ValueError(
            "diagram_of must return at least one phase per ratio; got shape "
            f"{shape} for ratios of shape {low.shape}"
        ) from None
    if (low >= high).any():
        worst = int((low - high).argmax())
        raise ValueError(
            f"low must be below high, got low = {low.flat[worst]!s}, high = {high.flat[worst]!s}"
        )
    samples = integer("samples", samples, minimum=4)
    rtol = real_number("rtol", rtol, Interval(1e-14, 1, lower_closed=True))
    codes = [int(Phase(phase)) for phase in beyond]
    lower, upper = low, high
    shortest = rtol * rtol * (high - low)
    ragged, done = np.zeros(low.shape, dtype=bool), np.zeros(low.shape, dtype=bool)
    while not done.all():
        # The grid is the caller's, so that all starts are run: those that are done at their low end.
        part = np.where(done, 0, upper - lower)
        left = np.where(done, low, np.maximum(lower - part, low))
        right = np.where(done, low, np.minimum(upper + part, high))
        points = np.linspace(left, right, samples + 1)
        inside = ~np.isin([diagram_of(row).phase for row in points], codes)
        leading = np.cumprod(inside, axis=0).sum(axis=0)
        trailing = np.cumprod(~inside[::-1], axis=0).sum(axis=0)
        end = np.full((1, *low.shape), np.inf)
        found_lower = np.take_along_axis(np.concatenate([-end, points]), leading[None], axis=0)[0]
        found_upper = np.take_along_axis(
            np.concatenate([end, points[::-1]]), trailing[None], axis=0
        )[0]
        alike = (leading > samples) | (trailing > samples)
        sharp = (leading + trailing == samples + 1) & ~alike
        ragged = ragged | ~(sharp | alike)
        lower, upper = np.where(done, lower, found_lower), np.where(done, upper, found_upper)
        length = upper - lower
        # Every part is shorter than the last, but for one between neighbouring floats.
        short = (length <= np.maximum(rtol * np.abs(upper), shortest)) | (length >= part)
        done = done | ~sharp | short
    single = np.isfinite(lower) & np.isfinite(upper) & ~ragged
    ratio = np.full(low.shape, np.nan)
    ratio[single] = (lower[single] + upper[single]) / 2
    return Boundary(ratio, lower, upper, ragged)
