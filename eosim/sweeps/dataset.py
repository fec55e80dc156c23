"""Results as an ``xarray.Dataset`` over the grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from eosim._checks import Array
from eosim.sweeps.points import Axis
from eosim.sweeps.store import Values

Results = list[tuple[str, Values] | None]


def arrays_of(axes: tuple[Axis, ...], results: Results) -> dict[str, tuple[tuple[str, ...], Array]]:
    """Dimensions and values of every variable, over the grid first and then its own axes.

    Points without a result hold NaN (text: the empty string), and integers and booleans then
    become float64. Arrays of different lengths are filled with NaN at their ends; the records of
    trajectories share the dimension ``record`` and have their number in ``n_records``.
    """
    grid = tuple(len(axis.values) for axis in axes)
    names: dict[str, None] = {}
    for result in results:
        names |= dict.fromkeys(result[1] if result else ())
    variables = {}
    for name in names:
        found = [result[1].get(name) if result else None for result in results]
        present = [array for array in found if array is not None]
        ranks = {array.ndim for array in present}
        if len(ranks) > 1:
            raise ValueError(
                f"function must return {name!r} with one number of axes, got {sorted(ranks)}"
            )
        shape = tuple(np.max([array.shape for array in present], axis=0).astype(int))
        complete = all(array is not None and array.shape == shape for array in found)
        dtype = np.result_type(*present)
        if dtype.kind in "biu" and not complete:
            dtype = np.dtype(np.float64)
        empty: Any = "" if dtype.kind == "U" else np.nan if dtype.kind in "fc" else 0
        whole = np.full((len(found), *shape), empty, dtype)
        for index, array in enumerate(found):
            if array is not None:
                place: tuple[Any, ...] = (index, *(slice(length) for length in array.shape))
                whole[place] = array
        kinds = {result[0] for result in results if result and name in result[1]}
        own = [f"{name}_{axis}" for axis in range(len(shape))]
        if own and kinds == {"trajectory"}:
            own[0] = "record"
        dimensions = (*(axis.dimension for axis in axes), *own)
        variables[name] = (dimensions, whole.reshape((*grid, *shape)))
    lengths: dict[str, int] = {}
    for dimensions, whole in variables.values():
        for dimension, length in zip(dimensions, whole.shape, strict=True):
            if lengths.setdefault(dimension, length) != length:
                raise ValueError(f"function must not name a result so that {dimension!r} clashes")
    return variables


def coordinates_of(axes: tuple[Axis, ...]) -> dict[str, tuple[str, Array]]:
    """Each name of the grid along its axis; mixed and missing values stay Python objects."""
    coordinates = {}
    for axis in axes:
        for position, name in enumerate(axis.names):
            column = [row[position] for row in axis.values]
            if len({type(value) for value in column}) == 1 and column[0] is not None:
                values = np.array(column)
            else:
                values = np.empty(len(column), dtype=object)
                values[:] = column
                if all(type(value) in (int, float) for value in column):
                    values = values.astype(np.float64)
            coordinates[name] = (axis.dimension, values)
    return coordinates


def dataset_of(
    axes: tuple[Axis, ...],
    results: Results,
    status: list[str],
    reasons: list[str],
    **attributes: Any,
) -> Any:
    """The dataset: variables of `arrays_of`, and ``status`` and ``reason`` for every point."""
    import xarray

    grid = tuple(len(axis.values) for axis in axes)
    dimensions = tuple(axis.dimension for axis in axes)
    variables: dict[str, Any] = dict(arrays_of(axes, results))
    variables["status"] = (dimensions, np.array(status).reshape(grid))
    variables["reason"] = (dimensions, np.array(reasons).reshape(grid))
    return xarray.Dataset(variables, coords=coordinates_of(axes), attrs=attributes)
