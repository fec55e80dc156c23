"""The rows a figure is judged by, and the sentence for a figure that cannot be computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One checked number of a figure.

    ``kind`` says what holds: "equal" (within the tolerance), "at most" or "at least" (the
    tolerance is added on the generous side). A NaN never holds.
    """

    quantity: str
    expected: float
    tolerance: float
    measured: float
    kind: Literal["equal", "at most", "at least"] = "equal"

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise ValueError(f"Row: tolerance must be at least 0, got {self.tolerance!r}")
        if self.kind not in ("equal", "at most", "at least"):
            raise ValueError(f"Row: kind must be equal, at most or at least, got {self.kind!r}")

    @property
    def holds(self) -> bool:
        """The verdict."""
        if math.isnan(self.measured):
            return False
        if self.kind == "at most":
            return self.measured <= self.expected + self.tolerance
        if self.kind == "at least":
            return self.measured >= self.expected - self.tolerance
        return abs(self.measured - self.expected) <= self.tolerance

    @property
    def expectation(self) -> str:
        """What is expected, as the table shows it (ASCII: any terminal prints it)."""
        text = f"{self.expected:.6g}"
        if self.tolerance:
            text += f" +- {self.tolerance:.2g}"
        return text if self.kind == "equal" else f"{self.kind} {text}"


class MissingPackage(Exception):
    """A figure needs a package that is not installed; the message says how to get it."""
