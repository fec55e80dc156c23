"""The result types: what a discrete run, a flow or an averaged equation returns."""

from __future__ import annotations

import enum
import math
import os
import platform
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eosim import _archive
from eosim._checks import Array
from eosim._version import __version__

_SCALARS = (
    bool,
    int,
    float,
    str,
    type(None),
)  # in a rule's state: JSON gives them back as they are


class Status(enum.Enum):
    """How a computation ended. Every one of them is a result; `Trajectory.message` says more."""

    COMPLETED = "reached the requested end"
    CONVERGED = "reached the loss asked for by stop_below"
    DIVERGED = "the state left every bounded region"
    STALLED = "the integrator can no longer advance at the requested tolerance"
    BUDGET_SPENT = "the evaluation budget was spent before the end"
    LEFT_RANGE = "the model left the range in which it is defined"


@dataclass(frozen=True, eq=False)
class RunState:
    """All that a run needs to go on exactly as if it had never stopped.

    Attributes
    ----------
    theta : (dim,) array
    rule_state : tuple
        The rule's state: arrays shaped like theta and step counters.
    step : int
        Updates made so far.
    t : float
        Accumulated step size.
    bound : float
        Size of an entry of theta beyond which the run counts as diverged.
    stream : tuple of two ints, or None
        Key of the mini-batch stream; batch k is a pure function of (key, k).
    """

    theta: Array
    rule_state: tuple[Any, ...]
    step: int = 0
    t: float = 0.0
    bound: float = math.inf
    stream: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A path on the common clock: t accumulates the rule's step size.

    Arrays end where the computation ended: there is no padding, and no NaN means "not reached".

    Attributes
    ----------
    t : (n_records,) array
        Time; k updates at a constant learning rate are t = k * lr.
    step : (n_records,) array or None
        Number of updates (t / lr for a flow that has an lr; None for one that has none).
    theta : (n_records, dim) array or None
        States; complex for complex flows.
    records : dict of (n_records, ...) arrays
        The measurements; a NamedTuple result is stored as ``name.field``.
    status : Status
    message : str
        A sentence: what happened, and what to try.
    stop_step : int or None
        For a diverged run, the first step whose state is non-finite or beyond the bound; that
        state is not part of the arrays.
    final_state : RunState or None
        Pass it as ``state`` to `eosim.run` to go on.
    settings : dict
        What is needed to repeat the computation: arguments, seed and versions.
    """

    t: Array
    step: Array | None
    theta: Array | None
    records: dict[str, Array]
    status: Status
    message: str
    stop_step: int | None = None
    final_state: RunState | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        """The record ``name``; "t", "step" and "theta" too; "sharpness" finds "sharpness.value"."""
        for key in (name, f"{name}.value"):
            if key in self.records:
                return self.records[key]
        if name in ("t", "step", "theta") and getattr(self, name) is not None:
            return np.asarray(getattr(self, name))
        own = [key for key in ("t", "step", "theta") if getattr(self, key) is not None]
        available = ", ".join([*own, *self.records])
        raise KeyError(f"no record named {name!r}; this trajectory has: {available}")

    def __len__(self) -> int:
        return len(self.t)

    def __repr__(self) -> str:
        span = f"t = {self.t[0]:.6g} to {self.t[-1]:.6g}" if len(self.t) else "empty"
        names = ", ".join(self.records) or "none"
        return (
            f"Trajectory({self.status.name}, {len(self.t)} records, {span}; records: {names})\n"
            f"  {self.message}"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one ``.npz`` file: arrays, and JSON with versions and a checksum; never a pickle.

        The file appears whole or not at all (temporary name, then rename). TypeError, ValueError if
        something in it is neither an array of numbers or text nor a scalar.
        """
        arrays = {"t": self.t, "step": self.step, "theta": self.theta}
        header: dict[str, Any] = {
            "status": self.status.name,
            "message": self.message,
            "stop_step": self.stop_step,
            "settings": self.settings,
            "final_state": None,
        }
        if self.final_state is not None:
            state = self.final_state
            arrays["state/theta"] = state.theta
            counters: dict[str, Any] = {}
            for index, entry in enumerate(state.rule_state):
                if type(entry) in _SCALARS:
                    counters[str(index)] = entry
                elif isinstance(entry, np.integer):
                    counters[str(index)] = int(entry)
                else:
                    arrays[f"state/rule/{index}"] = np.asarray(entry)
            header["final_state"] = {
                "step": state.step,
                "t": state.t,
                "bound": state.bound,
                "stream": state.stream,
                "entries": len(state.rule_state),
                "counters": counters,
            }
        _archive.write(path, "trajectory", header, _archive.packed(self.records, arrays))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what `save` wrote; ValueError if the file is foreign, damaged or newer."""
        return _archive.read(path, "trajectory", cls._of)

    @classmethod
    def _of(cls, header: dict[str, Any], arrays: dict[str, Array]) -> Trajectory:
        state = None
        if header["final_state"] is not None:
            saved = header["final_state"]
            rule_state = tuple(
                saved["counters"][str(i)]
                if str(i) in saved["counters"]
                else arrays[f"state/rule/{i}"]
                for i in range(saved["entries"])
            )
            stream = saved["stream"]
            state = RunState(
                theta=arrays["state/theta"],
                rule_state=rule_state,
                step=saved["step"],
                t=saved["t"],
                bound=saved["bound"],
                stream=None if stream is None else (stream[0], stream[1]),
            )
        return cls(
            t=arrays["t"],
            step=arrays.get("step"),
            theta=arrays.get("theta"),
            records=_archive.records_of(arrays),
            status=Status[header["status"]],
            message=header["message"],
            stop_step=header["stop_step"],
            final_state=state,
            settings=header["settings"],
        )

    def to_xarray(self) -> Any:
        """An ``xarray.Dataset`` with coordinate ``t``; needs xarray, which eosim does not install."""
        import xarray

        variables: dict[str, Any] = {}
        sources = {**self.records}
        for name in ("step", "theta"):
            if getattr(self, name) is not None:
                sources[name] = getattr(self, name)
        for name, values in sources.items():
            axes = [f"{name}_{axis}" for axis in range(1, values.ndim)]
            variables[name] = (["t", *axes], values)
        attributes = {"status": self.status.name, "message": self.message}
        return xarray.Dataset(variables, coords={"t": self.t}, attrs=attributes)


def versions() -> dict[str, str]:
    """What must agree for two computations to agree bit for bit."""
    return {
        "eosim": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
