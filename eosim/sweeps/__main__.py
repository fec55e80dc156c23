"""``python -m eosim.sweeps status|export|resume STORE``."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np

from eosim.sweeps.dataset import arrays_of, coordinates_of, dataset_of
from eosim.sweeps.driver import resume
from eosim.sweeps.points import Point, plan_of, points_of
from eosim.sweeps.store import Store, Values


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eosim.sweeps", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("status", help="how many points are done, running, failed, left")
    export = commands.add_parser("export", help="one file of all results: .npz, .csv or .nc")
    again = commands.add_parser("resume", help="compute what is missing")
    for command in (show, export, again):
        command.add_argument("store", type=Path)
    export.add_argument("target", type=Path)
    again.add_argument("--workers", type=int, help="processes (default: compute here)")
    again.add_argument("--executor", help="address of a dask scheduler, tcp://host:port")
    again.add_argument("--shard", metavar="I/N", help="only points I, I + N, I + 2 N, ...")
    options = parser.parse_args(arguments)
    store = Store(options.store)
    try:
        if options.command == "status":
            return _status(store)
        if options.command == "export":
            return _export(store, options.target)
        shard = None
        if options.shard is not None:
            first, _, count = options.shard.partition("/")
            shard = (int(first), int(count))
        tally = resume(store, workers=options.workers, executor=options.executor, shard=shard)
        print(f"{tally.count('done')} done, {tally.count('failed')} failed")
        return 1 if tally.count("failed") else 0
    except FileNotFoundError as error:
        print(f"{options.store} is no store of a sweep: {error}", file=sys.stderr)
    except (OSError, TypeError, ValueError, ImportError, AttributeError, RuntimeError) as error:
        print(error, file=sys.stderr)
    return 2


def _status(store: Store) -> int:
    identity, axes = plan_of(store.plan())
    counts = dict.fromkeys(("done", "running", "failed", "left"), 0)
    reasons = []
    for point in points_of(axes):
        key = identity.key(point)
        reason = store.failure(key)
        if store.has(key):
            counts["done"] += 1
        elif store.is_running(key):
            counts["running"] += 1
        elif reason is not None:
            counts["failed"] += 1
            reasons.append(f"  {_shown(point)}: {reason}")
        else:
            counts["left"] += 1
    print(f"{identity.name}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    for line in reasons:
        print(line)
    return 0


def _shown(point: Point) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in point.items())


def _export(store: Store, target: Path) -> int:
    identity, axes = plan_of(store.plan())
    results: list[tuple[str, Values] | None] = []
    status, reasons = [], []
    points = list(points_of(axes))
    for point in points:
        key = identity.key(point)
        try:
            result, reason = store.read(key), store.failure(key)
        except ValueError as error:
            result, reason = None, str(error)
        results.append(result)
        status.append("done" if result else "failed" if reason else "left")
        reasons.append("" if result else reason or "")
    if target.suffix == ".nc":
        dataset_of(axes, results, status, reasons, function=identity.name).to_netcdf(target)
    elif target.suffix == ".csv":
        _write_csv(target, points, results, status, reasons)
    elif target.suffix == ".npz":
        shape = tuple(len(axis.values) for axis in axes)
        arrays: dict[str, Any] = {
            name: values for name, (_, values) in arrays_of(axes, results).items()
        }
        for name, (_, values) in coordinates_of(axes).items():
            arrays[name] = values.astype(str) if values.dtype.kind == "O" else values
        arrays["status"] = np.array(status).reshape(shape)
        arrays["reason"] = np.array(reasons).reshape(shape)
        np.savez(target, **arrays)
    else:
        raise ValueError(f"target must end in .npz, .csv or .nc, got {target}")
    print(f"{status.count('done')} of {len(status)} points in {target}")
    return 0


def _write_csv(
    target: Path,
    points: list[Point],
    results: list[tuple[str, Values] | None],
    status: list[str],
    reasons: list[str],
) -> None:
    """One row per point; what is no scalar is left out."""
    names: dict[str, None] = {}
    for result in results:
        if result:
            names |= {name: None for name, array in result[1].items() if array.ndim == 0}
    with open(target, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*points[0], *names, "status", "reason"])
        for point, result, state, reason in zip(points, results, status, reasons, strict=True):
            values = result[1] if result else {}
            row = [values[name].item() if name in values else "" for name in names]
            writer.writerow([*point.values(), *row, state, reason])


if __name__ == "__main__":
    sys.exit(main())
