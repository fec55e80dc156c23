"""Validation shared by every public entry: each message names the argument, the rule and the value."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import numbers
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# What to use where a dense object does not fit, see `dense_fits`.
PRODUCTS = "products, hvp(theta, v), and eosim.measure.sharpness need no matrix"
SAMPLES = "take the samples in parts, jacobian(theta, batch)"

_STATES = (np.dtype(np.float64), np.dtype(np.complex128))


@dataclass(frozen=True)
class Interval:
    """An interval of the real line: the domain of a hyperparameter.

    >>> str(Interval(0, 1, lower_closed=True)), 1.0 in Interval(0, 1)
    ('[0, 1)', False)
    """

    lower: float
    upper: float
    lower_closed: bool = False
    upper_closed: bool = False

    def __contains__(self, value: float) -> bool:
        above = value >= self.lower if self.lower_closed else value > self.lower
        below = value <= self.upper if self.upper_closed else value < self.upper
        return above and below

    def __str__(self) -> str:
        left, right = "[" if self.lower_closed else "(", "]" if self.upper_closed else ")"
        return f"{left}{self.lower:g}, {self.upper:g}{right}"


def real_number(name: str, value: Any, domain: Interval = Interval(-math.inf, math.inf)) -> float:
    """``value`` as a float inside ``domain``; TypeError if it is no real number, else ValueError."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number in {domain}, got {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer or fraction beyond the largest float
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if number not in domain:  # also NaN, which no comparison accepts
        raise ValueError(f"{name} must be a real number in {domain}, got {number!r}")
    return number


def integer(name: str, value: Any, *, minimum: int) -> int:
    """``value`` as an int, at least ``minimum``."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer >= {minimum}, got {_shown(value)}")
    if value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {int(value)}")
    return int(value)


def choice(name: str, value: Any, options: tuple[str, ...]) -> str:
    """``value``, which must be one of ``options``."""
    if not isinstance(value, str) or value not in options:
        listed = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} must be one of {listed}; got {_shown(value)}")
    return str(value)


def float_array(
    name: str, value: Any, *, shape: tuple[int | None, ...] | None = None, complex_ok: bool = False
) -> Array:
    """A read-only float64 copy in C order of any finite array-like; the original is never touched.

    ``shape`` may leave axes open with None. Integers, float32, Fortran order, read-only memory and
    nested lists are accepted; NaN and infinity are refused with their count and first index.
    """
    array, dtype = _numbers(name, value, complex_ok)
    array = np.array(array, dtype=dtype, order="C", copy=True)
    if shape is not None and not _shape_matches(array.shape, shape):
        raise ValueError(f"{name} must have shape {_shape(shape)}, got {_shape(array.shape)}")
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        count = int(bad.sum())
        entries = "entry" if count == 1 else "entries"
        raise ValueError(
            f"{name} has {count} non-finite {entries}; the first is {array[first]!s} at index "
            f"{first[0] if len(first) == 1 else first}"
        )
    array.flags.writeable = False
    return array


def symmetric_matrix(name: str, value: Any) -> Array:
    """A read-only float64 copy of a symmetric matrix; asymmetry beyond rounding is refused."""
    matrix = float_array(name, value, shape=(None, None))
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be square, got shape {_shape(matrix.shape)}")
    if matrix.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {_shape(matrix.shape)}")
    asymmetry = np.abs(matrix - matrix.T)
    # Our choice: 1e-10 relative is far above accumulated rounding, far below any modelling error.
    if asymmetry.max() > 1e-10 * np.abs(matrix).max():
        i, j = np.unravel_index(asymmetry.argmax(), asymmetry.shape)
        raise ValueError(
            f"{name} must be symmetric; entries ({i}, {j}) and ({j}, {i}) are {matrix[i, j]!s} and "
            f"{matrix[j, i]!s}. Pass (H + H.T) / 2 if that is what you mean"
        )
    if asymmetry.any():  # halves of subnormal numbers are rounded
        matrix = matrix / 2 + matrix.T / 2
    matrix.flags.writeable = False
    return matrix


def interface(name: str, value: Any, members: tuple[str, ...]) -> None:
    """TypeError unless ``value`` is an instance (not a class) that has the named attributes."""
    if isinstance(value, type):
        raise TypeError(
            f"{name} must be an instance, got the class {value.__name__}; write "
            f"{value.__name__}({'lr=...' if name == 'rule' else '...'})"
        )
    for member in members:
        if not hasattr(value, member):
            hint = ""
            if name.endswith("problem") and inspect.isroutine(value):
                hint = ". Make a problem of functions by from_functions(loss, gradient, dim=...)"
            raise TypeError(
                f"{name} must have {', '.join(members)}; {type(value).__name__} has no {member}{hint}"
            )


def state_vector(name: str, value: Any, dim: int) -> Array:
    """A writeable float64 copy of a parameter vector of shape (dim,)."""
    return float_array(name, value, shape=(dim,)).copy()


def point(problem: Any, **vectors: Any) -> tuple[Array, ...]:
    """Any array-likes as float64 or complex128 vectors of the problem's dimension.

    NaN passes: divergence has it. What is an array of that kind already is not copied.
    """
    interface("problem", problem, ("dim",))
    checked: list[Array] = []
    for name, vector in vectors.items():
        array = vector
        # What a run records comes as it should, at every step.
        if type(vector) is not np.ndarray or vector.dtype not in _STATES:
            array, dtype = _numbers(name, vector, complex_ok=True)
            array = array.astype(dtype, copy=False)
        if array.shape != (problem.dim,):
            raise ValueError(f"{name} must have shape ({problem.dim},), got {_shape(array.shape)}")
        checked.append(array)
    return tuple(checked)


def inexact(x: Any) -> Array:
    """An array as it is, but of integers as floats: they wrap around, and truncate what fills them."""
    array = np.asarray(x)
    return array.astype(np.float64) if array.dtype.kind in "iub" else array


def seeded(seed: Any) -> np.random.Generator:
    """``numpy.random.default_rng(seed)``, with a message that names the seed."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError):
        kind = ValueError if isinstance(seed, numbers.Integral) else TypeError
        raise kind(
            f"seed must be an integer >= 0, a SeedSequence or a Generator, got {_shown(seed)}"
        ) from None


@cache
def memory() -> float:
    """The bytes that this process may have: all of the machine, or its limit; inf where unknown."""
    limits = [math.inf]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not known everywhere
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            limits.append(limit)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
        try:
            text = Path("/sys/fs/cgroup", name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return float(min(limits))


def dense_fits(name: str, shape: tuple[int, ...], alternative: str, itemsize: int = 8) -> None:
    """MemoryError before a dense array is formed that is larger than `memory`.

    For what grows with the square of its ingredients: a system that promises memory it does not have
    ends the process much later, without a word.
    """
    size = itemsize * math.prod(map(int, shape))
    if size > memory():
        raise MemoryError(
            f"{name} would be a dense array of shape {_shape(shape)}, {size / 1e9:.3g} GB, and there "
            f"are {memory() / 1e9:.3g} GB of memory; {alternative}"
        )


def check_domains(instance: Any) -> None:
    """Validate the fields of a frozen dataclass that declare ``metadata={"domain": Interval}``.

    Symbolic values (anything with ``free_symbols``) pass untouched, so that the same object can be
    executed on symbols; every other value becomes a float.
    """
    for field in dataclasses.fields(instance):
        domain = field.metadata.get("domain")
        value = getattr(instance, field.name)
        if domain is None or hasattr(value, "free_symbols"):
            continue
        name = f"{type(instance).__name__}: {field.name}"
        object.__setattr__(instance, field.name, real_number(name, value, domain))


def _numbers(name: str, value: Any, complex_ok: bool) -> tuple[Array, type]:
    """An array-like of numbers as NumPy has it, and the dtype that it is to get."""
    if getattr(value, "mask", False) is not False and np.ma.is_masked(value):
        raise TypeError(f"{name} must have no masked entries, got {_shown(value)}")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a rectangular array of numbers: {error}") from None
    if array.dtype.kind == "c" and not complex_ok:
        raise TypeError(f"{name} must be real, got an array of dtype {array.dtype}")
    if array.dtype.kind not in "iufc":
        raise TypeError(f"{name} must be an array of numbers, got {_shown(value)}")
    return array, np.complex128 if array.dtype.kind == "c" else np.float64


def _shape_matches(shape: tuple[int, ...], pattern: tuple[int | None, ...]) -> bool:
    return len(shape) == len(pattern) and all(
        wanted is None or length == wanted for length, wanted in zip(shape, pattern, strict=True)
    )


def _shape(shape: tuple[int | None, ...]) -> str:
    inside = ", ".join("any" if length is None else str(length) for length in shape)
    return f"({inside},)" if len(shape) == 1 else f"({inside})"


def _shown(value: Any) -> str:
    text = repr(value)
    shortened = text if len(text) <= 60 else text[:57] + "..."
    return f"{shortened} of type {type(value).__name__}"
