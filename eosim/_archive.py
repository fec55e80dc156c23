"""Results as files: npz archives of plain arrays and a JSON header, with a checksum; never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from eosim._checks import Array

_FORMAT = 1  # raised whenever an older reader would misread a newer file
_RECORD = "record/"  # before the names of records
_Result = TypeVar("_Result")


def write(
    path: str | os.PathLike[str], kind: str, header: Mapping[str, Any], arrays: Mapping[str, Any]
) -> None:
    """One ``.npz`` file, which appears whole or not at all (temporary name, then rename).

    Raises
    ------
    TypeError, ValueError
        If something is neither an array of numbers or text nor what JSON gives back as it is.
    """
    target = Path(path)
    text = json.dumps({**header, "kind": kind, "format": _FORMAT}, sort_keys=True)
    for name, values in arrays.items():
        if np.asarray(values).dtype.hasobject:  # NumPy would pickle it, and `read` refuse it
            raise TypeError(f"{name} must hold numbers or text to be saved, got {values!r}")
        if "\0" in name:  # the archive would cut it there
            raise ValueError(f"{name!r} must not hold a null character to be saved")
    payload = {**arrays, "header": np.array(text), "sha256": np.array(digest(arrays, text))}
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, **payload)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)  # mkstemp makes private files; a result is as readable as any other
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(
    path: str | os.PathLike[str],
    kind: str,
    build: Callable[[dict[str, Any], dict[str, Array]], _Result],
) -> _Result:
    """``build(header, arrays)`` of what `write` wrote; ValueError if it is foreign, damaged or newer."""
    foreign = f"{path} is not {_article(kind)} saved by eosim"
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        text, checksum = str(arrays.pop("header")), str(arrays.pop("sha256"))
    except OSError as error:
        if error.filename is not None:  # of the system: missing, forbidden, a directory
            raise
        raise ValueError(f"{foreign}: {error}") from None
    except MemoryError:
        raise
    except Exception:
        # zipfile, zlib and NumPy each raise their own, and NumPy names unsafe options
        raise ValueError(f"{foreign}: no npz archive with its header and checksum") from None
    if digest(arrays, text) != checksum:
        raise ValueError(f"{path} is damaged: its content does not match its checksum")
    try:
        header = json.loads(text)
        if header["format"] > _FORMAT:
            newer = f"{path} has format {header['format']}; this eosim reads up to {_FORMAT}"
            raise ValueError(newer)
        found = header.get("kind", "trajectory")  # which alone there was at first
        if found != kind:
            raise ValueError(
                f"{foreign}, but {_article(found)}: {found.capitalize()}.load reads it"
            )
        return build(header, arrays)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{foreign}: {type(error).__name__}: {error}") from None


def packed(records: Mapping[str, Array], arrays: Mapping[str, Array | None]) -> dict[str, Array]:
    """Records by their names, and the arrays that there are."""
    named = {f"{_RECORD}{name}": values for name, values in records.items()}
    return named | {name: values for name, values in arrays.items() if values is not None}


def records_of(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The records among what was `packed`."""
    return {
        name.removeprefix(_RECORD): values
        for name, values in arrays.items()
        if name.startswith(_RECORD)
    }


def digest(arrays: Mapping[str, Any], text: str) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in a fixed order."""
    total = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        total.update(f"{name}|{values.dtype.str}|{values.shape}".encode())
        total.update(values.tobytes())
    return total.hexdigest()


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
