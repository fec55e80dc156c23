"""Results on disk: one checked file per point, written whole or not at all, never a pickle."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import socket
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eosim._checks import Array
from eosim.sweeps.points import RESERVED, Identity, Scalar, encoded_point
from eosim.trajectory import Trajectory

try:
    import fcntl
except ImportError:  # not a POSIX system: two drivers may then compute a point twice, no worse
    fcntl = None  # type: ignore[assignment]

_FORMAT = 1  # of point files; raised whenever an older reader would misread a newer file
_KINDS = "biufcU"  # booleans, numbers and text: what a file can hold without a pickle
Values = dict[str, Array]


def values_of(result: Any, point: Mapping[str, Scalar]) -> tuple[str, Values]:
    """The kind ("values" or "trajectory") and the named arrays of what a function returned.

    A number or an array is named ``value``; a mapping or a NamedTuple has its own names; a
    Trajectory gives ``t``, ``step``, ``theta``, its records, ``outcome`` (the name of its status)
    and ``n_records``.
    """
    kind = "values"
    if isinstance(result, Trajectory):
        kind = "trajectory"
        named: dict[str, Any] = {"t": result.t, **result.records}
        for name in ("step", "theta"):
            if getattr(result, name) is not None:
                named[name] = getattr(result, name)
        named |= {"outcome": result.status.name, "n_records": len(result)}
    elif isinstance(result, Mapping):
        named = dict(result)
    elif hasattr(result, "_asdict"):
        named = result._asdict()
    else:
        named = {"value": result}
    values: Values = {}
    for name, value in named.items():
        if not isinstance(name, str) or name in RESERVED or name in point:
            raise ValueError(
                f"function must name its results by strings other than {', '.join(RESERVED)} and "
                f"the names of the grid, got {name!r}"
            )
        array = np.asarray(value)
        if array.dtype.kind not in _KINDS:
            raise TypeError(
                f"function must return numbers, arrays of numbers or a Trajectory, got "
                f"{type(value).__name__} for {name!r}"
            )
        values[name] = array
    return kind, values


def encode(identity: Identity, point: Mapping[str, Scalar], kind: str, values: Values) -> bytes:
    """A point file: an ``.npz`` of the values and a JSON header, closed by a SHA-256 of the rest.

    The checksum is the comment of the zip archive, its last 64 bytes, so that a flip of any bit of
    the file shows. Nothing in it depends on time or place: equal results are equal files.
    """
    header = {
        "format": _FORMAT,
        "key": identity.key(point),
        "function": identity.name,
        "version": identity.version,
        "point": encoded_point(point),
        "kind": kind,
    }
    payload: dict[str, Any] = {f"value/{name}": array for name, array in values.items()}
    payload["header"] = np.array(json.dumps(header, sort_keys=True))
    buffer = io.BytesIO()
    np.savez(buffer, **payload)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"0" * 64
    body = buffer.getvalue()[:-64]
    return body + hashlib.sha256(body).hexdigest().encode()


def decode(data: bytes, key: str) -> tuple[str, Values]:
    """Kind and values of a point file; ValueError if it is damaged, foreign or newer."""
    if hashlib.sha256(data[:-64]).hexdigest().encode() != data[-64:]:
        raise ValueError("its content does not match its checksum")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(str(arrays.pop("header")))
        version, found, kind = header["format"], header["key"], header["kind"]
    except Exception:  # zipfile, zlib, json and NumPy raise their own; NumPy names unsafe options
        raise ValueError("it is not a point saved by eosim: no npz archive with a header") from None
    if version > _FORMAT:
        raise ValueError(f"it has format {version}; this eosim reads up to {_FORMAT}")
    if found != key:
        raise ValueError(f"it holds another point: {found}")
    return kind, {name.removeprefix("value/"): array for name, array in arrays.items()}


class Store:
    """A directory: ``plan.json``, ``points/``, ``failed/``, ``running/`` (locks), ``aside/``."""

    def __init__(self, path: str | os.PathLike[str], *, lasting: bool = True):
        self.path = Path(path).absolute()
        self.lasting = lasting  # outlives the sweep, so that it must survive a power cut

    def point_path(self, key: str) -> Path:
        return self.path / "points" / f"{key}.npz"

    def prepare(self, plan: str) -> None:
        """Make the directories, drop what dead writers left, write the plan; OSError if refused."""
        for name in ("points", "failed", "running"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        for leftover in (self.path / "points").glob("*.tmp"):
            with self.claim(leftover.name.partition(".")[0]) as claimed:
                if claimed:  # else a living worker is writing it
                    leftover.unlink(missing_ok=True)
        write_whole(self.path / "plan.json", plan.encode(), durable=self.lasting)

    def plan(self) -> str:
        return (self.path / "plan.json").read_text(encoding="utf-8")

    def has(self, key: str) -> bool:
        return self.point_path(key).exists()

    def read(self, key: str) -> tuple[str, Values] | None:
        """Kind and values of a point; None if it is not there; ValueError if it is no good."""
        try:
            data = self.point_path(key).read_bytes()
        except FileNotFoundError:
            return None
        return decode(data, key)

    def write(self, key: str, data: bytes) -> None:
        write_whole(self.point_path(key), data, durable=self.lasting)
        (self.path / "failed" / f"{key}.json").unlink(missing_ok=True)

    def set_aside(self, key: str) -> Path:
        """Move a file that is no good out of the way, under a name that is free."""
        aside = self.path / "aside"
        aside.mkdir(exist_ok=True)
        target = aside / f"{key}.{secrets.token_hex(4)}.npz"
        os.replace(self.point_path(key), target)
        return target

    def write_failure(self, key: str, point: Mapping[str, Scalar], reason: str, trace: str) -> None:
        content = {"point": encoded_point(point), "reason": reason, "traceback": trace}
        text = json.dumps(content, indent=1)
        write_whole(self.path / "failed" / f"{key}.json", text.encode(), durable=self.lasting)

    def failure(self, key: str) -> str | None:
        """Why a point failed; None if it did not."""
        try:
            text = (self.path / "failed" / f"{key}.json").read_text(encoding="utf-8")
            return str(json.loads(text)["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Hold the lock of a point; False if a living process holds it.

        The lock is the kernel's: it ends with the process, however that ends.
        """
        if fcntl is None:
            yield True
            return
        path = self.path / "running" / key
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
        finally:
            os.close(handle)

    def is_running(self, key: str) -> bool:
        if fcntl is None:
            return False
        try:
            handle = os.open(self.path / "running" / key, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False


def write_whole(target: Path, data: bytes, *, durable: bool = True) -> None:
    """The file appears whole or not at all: temporary name, rename; durable: and stays, by fsync."""
    unique = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = target.with_name(f"{target.stem}.{unique}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable and os.name == "posix":
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # the rename itself survives a power cut only with this
        finally:
            os.close(directory)
