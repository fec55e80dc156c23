"""Calling measurements along a path and collecting what they return."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from eosim import measure
from eosim._checks import Array
from eosim._version import __version__


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
            if not callable(function):
                raise TypeError(f"record[{name!r}] must be callable, got {type(function).__name__}")
        self._functions = {name: (function, _extras(function)) for name, function in record.items()}
        self._rows: dict[str, list[Any]] = {}

    def take(self, problem: Any, theta: Array, **available: Any) -> None:
        """Append one row; ``available`` holds what a measurement may ask for by name."""
        for name, (function, wanted) in self._functions.items():
            missing = wanted - available.keys()
            if missing:
                raise TypeError(
                    f"record[{name!r}] asks for {', '.join(sorted(missing))}; here it can have "
                    f"{', '.join(sorted(available)) or 'nothing'} besides problem and theta"
                )
            result = function(problem, theta, **{key: available[key] for key in wanted})
            if hasattr(result, "_fields"):
                for field in result._fields:
                    self.put(f"{name}.{field}", getattr(result, field))
            else:
                self.put(name, result)

    def put(self, name: str, value: Any) -> None:
        self._rows.setdefault(name, []).append(np.array(value))

    def latest(self, name: str) -> Any:
        rows = self._rows.get(name)
        return rows[-1] if rows else None

    def arrays(self) -> dict[str, Array]:
        return {name: np.array(rows) for name, rows in self._rows.items()}


def versions() -> dict[str, str]:
    """What must agree for two runs to agree bit for bit."""
    return {
        "eosim": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _extras(function: Callable[..., Any]) -> set[str]:
    """Names of the keyword-only parameters without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return set()
    return {
        parameter.name
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    }
