"""``python -m tests.benchmarks [NAME ...] [--quick]``: tables of measured ratios and sizes."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

# One thread on one core, before NumPy loads its libraries.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

from tests.benchmarks import (  # noqa: E402
    Budget,
    Workload,
    catapult_map,
    cold_start,
    flows,
    in_words,
    mean_square_threshold,
    measure,
    network_tracking,
    progress,
    quadratic_regression,
    sgd_ensembles,
    sizes,
    volterra,
)

SUBJECTS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        sgd_ensembles,
        quadratic_regression,
        mean_square_threshold,
        catapult_map,
        flows,
        volterra,
        network_tracking,
        cold_start,
        progress,
    )
}


def main() -> int:
    """Run the workloads; 1 if a goal is missed, 2 if a name is unknown."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"a workload, a size, or all of one subject: {', '.join([*SUBJECTS, 'sizes'])}",
    )
    parser.add_argument("--quick", action="store_true", help="three rounds instead of seven")
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="keep the rows in this JSON file, by name"
    )
    arguments = parser.parse_args()
    groups: dict[str, Sequence[Workload | Budget | sizes.Size]] = {
        subject: module.WORKLOADS for subject, module in SUBJECTS.items()
    }
    groups["sizes"] = sizes.SIZES
    entries = [entry for group in groups.values() for entry in group]
    names = arguments.names or [*groups]
    known = {*groups, *(entry.name for entry in entries)}
    if unknown := sorted(set(names) - known):
        print(
            f"unknown: {', '.join(unknown)}; there are: {', '.join(sorted(known))}", file=sys.stderr
        )
        return 2
    chosen = {entry.name for name in names for entry in groups.get(name, ())} | set(names)
    entries = [entry for entry in entries if entry.name in chosen]
    rows = [
        *_contests([x for x in entries if isinstance(x, Workload)], quick=arguments.quick),
        *_budgets([x for x in entries if isinstance(x, Budget)]),
        *_sizes([x for x in entries if isinstance(x, sizes.Size)]),
    ]
    if arguments.save:
        _keep(arguments.save, rows)
    return int(not all(row["met"] for row in rows))


def _keep(path: Path, rows: list[dict[str, Any]]) -> None:
    kept = {row["name"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    kept |= {row["name"]: row for row in rows}
    path.write_text(json.dumps([*kept.values()], indent=1) + "\n")


def _contests(workloads: Sequence[Workload], *, quick: bool) -> list[dict[str, Any]]:
    """Print a row for each, and return them."""
    if not workloads:
        return []
    row = "{:<26}{:<31}{:>10}{:>11}  {:<30}{:>8}  {:<18}{}"
    print(row.format("workload", "size", "eosim", "best peer", "", "ratio", "goal", "of the limit"))
    rows, absent = [], set()
    for workload in workloads:
        result = measure(workload.prepare(), 3 if quick else workload.rounds)
        met = result.ratio >= workload.goal
        named = {"kind": "contest", "name": workload.name, "size": workload.size}
        named |= {"subject": _subject(workload), "price": workload.price}
        rows.append({**named, "goal": workload.goal, "met": met, **asdict(result)})
        absent |= set(result.missing)
        print(
            row.format(
                workload.name,
                workload.size,
                in_words(result.ours),
                in_words(result.peer),
                result.best,
                f"{result.ratio:.3g}",
                f">= {workload.goal:g}{'' if met else '  MISSED'}",
                "" if result.of_limit is None else f"{result.of_limit:.0%}",
            ).rstrip(),
            flush=True,
        )
    if absent:
        print(f"not installed, hence not measured: {', '.join(sorted(absent))}")
    return rows


def _subject(workload: Workload) -> str:
    return next(name for name, module in SUBJECTS.items() if workload in module.WORKLOADS)


def _budgets(budgets: Sequence[Budget]) -> list[dict[str, Any]]:
    """Print a row for each, and return them."""
    if not budgets:
        return []
    row = "{:<24}{:<40}{:>10}  {}"
    print(row.format("budget", "", "time", "goal"))
    rows = []
    for budget in budgets:
        seconds = budget.seconds()
        met = seconds <= budget.goal
        named = {"kind": "budget", "name": budget.name, "size": budget.size}
        rows.append({**named, "goal": budget.goal, "met": met, "seconds": seconds})
        goal = f"<= {in_words(budget.goal)}{'' if met else '  MISSED'}"
        print(row.format(budget.name, budget.size, in_words(seconds), goal), flush=True)
    return rows


def _sizes(large: Sequence[sizes.Size]) -> list[dict[str, Any]]:
    """Print a row for each, and return them."""
    if not large:
        return []
    row = "{:<22}{:<24}{:>10}{:>10}{:>11} {:<12}{}"
    print(row.format("size", "", "time", "memory", "in arrays", "of", "goal"))
    rows = []
    for size in large:
        taken = sizes.measure_size(size)
        arrays = taken.megabytes / size.megabytes
        met = taken.seconds <= size.seconds and arrays <= size.arrays
        named = {"kind": "size", "name": size.name, "size": size.what, "of": size.of}
        goals = {"goal": size.seconds, "goal_arrays": size.arrays}
        rows.append({**named, **goals, "met": met, "arrays": arrays, **asdict(taken)})
        goal = f"<= {size.seconds:g} s, {size.arrays:g} arrays{'' if met else '  MISSED'}"
        cells = (f"{taken.seconds:.1f} s", f"{taken.megabytes:.0f} MB", f"{arrays:.2f}")
        print(row.format(size.name, size.what, *cells, size.of, goal), flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
