"""What is computed: the points of a grid, the identity of a function, and the key of both."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import itertools
import json
import math
import numbers
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eosim._version import __version__

Scalar = bool | int | float | str | None
Point = dict[str, Scalar]
RESERVED = ("status", "reason")  # variables that every result dataset has


@dataclass(frozen=True)
class Axis:
    """One axis of a grid: one name, or several names that move together.

    >>> Axis(("lr", "momentum"), ((0.1, 0.9), (0.2, 0.8))).dimension
    'lr_momentum'
    """

    names: tuple[str, ...]
    values: tuple[tuple[Scalar, ...], ...]

    @property
    def dimension(self) -> str:
        return "_".join(self.names)


def axes_of(grid: Any, seeds: Any = None) -> tuple[Axis, ...]:
    """The axes of ``grid`` in its order, and ``seed`` last where seeds are asked for.

    Raises
    ------
    TypeError, ValueError
        For a grid that is no mapping, an empty axis, a name that is no identifier or used twice,
        a value that is no scalar, NaN, or a value twice on one axis.
    """
    if not isinstance(grid, Mapping):
        raise TypeError(f"grid must map names to values, got {type(grid).__name__}")
    axes = [_axis(names, values) for names, values in grid.items()]
    if seeds is not None:
        if isinstance(seeds, numbers.Integral) and not isinstance(seeds, bool):
            if seeds < 1:
                raise ValueError(f"seeds must be an integer >= 1 or a list of seeds, got {seeds}")
            seeds = range(int(seeds))
        axes.append(_axis("seed", seeds))
    used: set[str] = set()
    for name in itertools.chain.from_iterable(axis.names for axis in axes):
        if name in used:
            raise ValueError(f"grid must use each name once, got {name!r} twice")
        used.add(name)
    return tuple(axes)


def check_names(function: Callable[..., Any], axes: tuple[Axis, ...]) -> None:
    """Refuse names that the function does not take and what it lacks, where its signature is known.

    TypeError. A wrapper answers for itself: it may add arguments to what it wraps.
    """
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # some callables written in C have none
        return
    names = [name for axis in axes for name in axis.names]
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        taken = [
            str(parameter.replace(annotation=parameter.empty, default=parameter.empty))
            for parameter in signature.parameters.values()
        ]
        raise TypeError(
            f"grid must name the arguments of function, {', '.join(taken) or 'which has none'}; got "
            f"{', '.join(names) or 'no names'}: {error}"
        ) from None


def _axis(key: Any, values: Any) -> Axis:
    names = key if isinstance(key, tuple) else (key,)
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(f"grid must have names of arguments as keys, got {name!r}")
        if name in RESERVED:
            raise ValueError(f"grid must not use the names {', '.join(RESERVED)}; got {name!r}")
    if isinstance(values, (str, bytes, Mapping)):
        raise TypeError(f"grid[{key!r}] must be a sequence of values, got {values!r}")
    try:
        listed = list(values)
    except TypeError:
        raise TypeError(f"grid[{key!r}] must be a sequence of values, got {values!r}") from None
    if not listed:
        raise ValueError(f"grid[{key!r}] must have at least one value")
    rows = []
    for entry in listed:
        row = tuple(entry) if isinstance(key, tuple) else (entry,)
        if len(row) != len(names):
            raise ValueError(f"grid[{key!r}] must have rows of {len(names)} values, got {entry!r}")
        rows.append(tuple(scalar(f"grid[{key!r}]", value) for value in row))
    seen: set[str] = set()
    for row in rows:
        text = json.dumps([encoded(value) for value in row])
        if text in seen:
            raise ValueError(f"grid[{key!r}] must not repeat a value, got {row} twice")
        seen.add(text)
    return Axis(names, tuple(rows))


def scalar(name: str, value: Any) -> Scalar:
    """``value`` as a Python scalar: what the function is called with, on whatever machine."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise TypeError(
            f"{name} must hold numbers, strings, booleans or None, got {value!r} of type "
            f"{type(value).__name__}; pass a name or an index and let the function look it up"
        )
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{name} must not hold NaN, which no coordinate can find again")
    return value


def points_of(axes: tuple[Axis, ...]) -> Iterator[Point]:
    """Every point of the product of the axes, the last axis fastest."""
    for rows in itertools.product(*(axis.values for axis in axes)):
        point: Point = {}
        for axis, row in zip(axes, rows, strict=True):
            point.update(zip(axis.names, row, strict=True))
        yield point


def encoded(value: Scalar) -> Any:
    """A scalar as JSON that comes back bit for bit; 1, 1.0 and True stay three things."""
    return {"float": value.hex()} if isinstance(value, float) else value


def decoded(value: Any) -> Scalar:
    return float.fromhex(value["float"]) if isinstance(value, dict) else value


def encoded_point(point: Mapping[str, Scalar]) -> dict[str, Any]:
    return {name: encoded(value) for name, value in point.items()}


@dataclass(frozen=True)
class Identity:
    """Which function, in which version: what a result depends on beside its point.

    Attributes
    ----------
    name : str
        ``module:qualified.name``; a script is named after its file.
    version : str
        The attribute ``version`` of the function; without one, a hash of its source text and of
        eosim's version. What the function calls is not part of it: raise ``version`` for that.
    bound : dict
        Keywords that a ``functools.partial`` holds, encoded.
    directory : str
        Where Python must look to import it again; not part of the key.
    """

    name: str
    version: str
    bound: dict[str, Any]
    directory: str

    def key(self, point: Mapping[str, Scalar]) -> str:
        """SHA-256 of the canonical point, the function and its version, as 64 hex digits."""
        content = {
            "function": self.name,
            "version": self.version,
            "bound": self.bound,
            "point": encoded_point(point),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def identity_of(function: Callable[..., Any], *, stored: bool) -> Identity:
    """The identity of a function; where results are stored it must be importable by its name.

    Raises TypeError for anything else: the values that a lambda or a closure captures are invisible
    to the key, so a store would hand out results of another function.
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r}")
    if not stored:  # its results live no longer than the call: no other function can meet them
        return Identity(getattr(function, "__qualname__", repr(function)), "", {}, "")
    bound: dict[str, Any] = {}
    inner = function
    if isinstance(function, functools.partial) and not function.args:
        bound = {
            name: encoded(scalar(f"function: {name}", value))
            for name, value in sorted(function.keywords.items())
        }
        inner = function.func
    qualified = getattr(inner, "__qualname__", "")
    module = sys.modules.get(getattr(inner, "__module__", None) or "")
    if not inspect.isfunction(inner) or "<" in qualified or module is None:
        raise TypeError(
            "function must be defined at the top level of a module, or be a functools.partial of "
            f"such a function with keywords, for results to be stored; got {function!r}"
        )
    spec = getattr(module, "__spec__", None)
    file = getattr(module, "__file__", None)
    if inner.__module__ in ("__main__", "__mp_main__"):
        name = spec.name if spec is not None else Path(file).stem if file else "__main__"
    else:
        name = inner.__module__
    directory = ""
    if file:
        path = Path(file).resolve()
        depth = name.count(".") + (path.stem == "__init__")
        directory = str(path.parents[depth])
    version = getattr(inner, "version", None)
    if version is None:
        try:
            source = textwrap.dedent(inspect.getsource(inner))
        except OSError:
            raise TypeError(
                f"function must have source text or an attribute version, got {function!r}; "
                f"write {qualified}.version = '1'"
            ) from None
        version = hashlib.sha256(f"{source}\0{__version__}".encode()).hexdigest()[:16]
    return Identity(f"{name}:{qualified}", str(version), bound, directory)


def function_of(identity: Identity) -> Callable[..., Any]:
    """Import the function that `identity_of` named."""
    module_name, _, qualified = identity.name.partition(":")
    if identity.directory and identity.directory not in sys.path:
        sys.path.insert(0, identity.directory)
    function: Any = importlib.import_module(module_name)
    for part in qualified.split("."):
        function = getattr(function, part)
    if identity.bound:
        keywords = {name: decoded(value) for name, value in identity.bound.items()}
        return functools.partial(function, **keywords)
    return function


def plan_text(identity: Identity, axes: tuple[Axis, ...]) -> str:
    """The plan of a sweep as JSON: all that is needed to go on from the command line."""
    return json.dumps(
        {
            "format": 1,
            "function": identity.name,
            "version": identity.version,
            "bound": identity.bound,
            "directory": identity.directory,
            "axes": [
                {
                    "names": axis.names,
                    "values": [[encoded(value) for value in row] for row in axis.values],
                }
                for axis in axes
            ],
        },
        indent=1,
    )


def plan_of(text: str) -> tuple[Identity, tuple[Axis, ...]]:
    """Read what `plan_text` wrote; ValueError if it is not a plan or newer than this eosim."""
    try:
        plan = json.loads(text)
        if plan["format"] > 1:
            raise ValueError(f"it has format {plan['format']}; this eosim reads up to 1")
        identity = Identity(plan["function"], plan["version"], plan["bound"], plan["directory"])
        axes = tuple(
            Axis(
                tuple(axis["names"]),
                tuple(tuple(decoded(value) for value in row) for row in axis["values"]),
            )
            for axis in plan["axes"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"plan.json is not a plan written by eosim: {error}") from None
    return identity, axes
