"""Calling measurements along a path and collecting what they return."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from eosim import measure
from eosim._checks import Array


class UndefinedLoss(Exception):
    """`eosim.measure.loss` is NaN at a state: the problem is not defined there."""


class Recorder:
    """Calls each measurement f(problem, theta), handing it by name what else it asks for."""

    def __init__(self, record: Mapping[str, Callable[..., Any]] | None) -> None:
        if record is None:
            record = {"loss": measure.loss}
        if not isinstance(record, Mapping):
            raise TypeError(
                'record must map names to measurements, e.g. {"loss": eosim.measure.loss}; got '
                f"{type(record).__name__}"
            )
        for name, function in record.items():
            if not isinstance(name, str):
                raise TypeError(f"record: names must be str, got {name!r}")
            if name in ("t", "step", "theta"):
                raise ValueError(f"record: the name {name!r} is taken by the trajectory itself")
            if not callable(function):
                raise TypeError(f"record[{name!r}] must be callable, got {type(function).__name__}")
        self._functions = {
            name: (function, _extras(name, function)) for name, function in record.items()
        }
        self._rows: dict[str, list[Any]] = {}

    def take(self, problem: Any, theta: Array, **available: Any) -> None:
        """Append one row; ``available`` holds what a measurement may ask for by name.

        Nothing is appended where `UndefinedLoss` is raised.
        """
        row = {}
        for name, (function, wanted) in self._functions.items():
            missing = wanted - available.keys()
            if missing:
                raise TypeError(
                    f"record[{name!r}] asks for {', '.join(sorted(missing))}; here it can have "
                    f"{', '.join(sorted(available)) or 'nothing'} besides problem and theta"
                )
            row[name] = function(
                problem, np.array(theta), **{key: available[key] for key in wanted}
            )
            if function is measure.loss and math.isnan(row[name]):
                raise UndefinedLoss(f"{type(problem).__name__}.loss is nan")
        for name, result in row.items():
            self.take_result(name, result)

    def take_result(self, name: str, result: Any) -> None:
        """Append what a measurement returned, the fields of a NamedTuple one by one."""
        if hasattr(result, "_fields"):
            for field in result._fields:
                self.put(f"{name}.{field}", getattr(result, field))
        else:
            self.put(name, result)

    def put(self, name: str, value: Any) -> None:
        row = np.array(value)
        if row.dtype.kind not in "biufc":
            raise TypeError(f"record[{name!r}] must return numbers, got {value!r}")
        rows = self._rows.setdefault(name, [])
        if rows and rows[0].shape != row.shape:
            raise ValueError(
                f"record[{name!r}] must keep its shape: it was {rows[0].shape}, now {row.shape}"
            )
        rows.append(row)

    def arrays(self) -> dict[str, Array]:
        return {name: np.array(rows) for name, rows in self._rows.items()}


def _extras(name: str, function: Callable[..., Any]) -> set[str]:
    """Names of the keyword-only parameters without a default."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have no signature
        return set()
    wanted = {
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    }
    try:
        signature.bind(None, None, **dict.fromkeys(wanted))
    except TypeError as error:
        raise TypeError(f"record[{name!r}] must take (problem, theta): {error}") from None
    return wanted
