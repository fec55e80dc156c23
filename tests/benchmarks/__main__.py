"""``python -m tests.benchmarks [NAME ...] [--quick]``: tables of measured ratios and sizes."""

import argparse
import os
import sys
from collections.abc import Sequence

# One thread on one core, before NumPy loads its libraries.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

from tests.benchmarks import (  # noqa: E402
    Workload,
    flows,
    mean_square,
    measure,
    quadratic_regression,
    sgd_ensembles,
    sizes,
)

WORKLOADS = (
    *flows.WORKLOADS,
    *mean_square.WORKLOADS,
    *sgd_ensembles.WORKLOADS,
    *quadratic_regression.WORKLOADS,
)


def main() -> int:
    """Run the workloads; 1 if a goal is missed, 2 if a name is unknown."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help='everything if none is given; "sizes": all sizes'
    )
    parser.add_argument("--quick", action="store_true", help="a fifth of the rounds")
    arguments = parser.parse_args()
    known = [entry.name for entry in (*WORKLOADS, *sizes.SIZES)]
    names = set(arguments.names or [*known, "sizes"])
    unknown = sorted(names - {*known, "sizes"})
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    contests = [workload for workload in WORKLOADS if workload.name in names]
    large = [size for size in sizes.SIZES if {size.name, "sizes"} & names]
    missed = _contests(contests, quick=arguments.quick) + _sizes(large)
    return int(missed > 0)


def _contests(workloads: Sequence[Workload], *, quick: bool) -> int:
    """Print a row for each; how many goals were missed."""
    if not workloads:
        return 0
    row = "{:<22}{:<24}{:>12}{:>12}  {:<26}{:>9}  {}"
    print(row.format("workload", "size", "eosim", "peer", "", "ratio", "goal"))
    missed = 0
    for workload in workloads:
        rounds = max(3, workload.rounds // 5) if quick else workload.rounds
        result = measure(workload.prepare(), rounds)
        met = result.ratio <= workload.goal
        missed += not met
        goal = f"<= {workload.goal:g}{'' if met else '  MISSED'}"
        cells = [f"{1e3 * seconds:.4g} ms" for seconds in (result.ours, result.peer)]
        print(
            row.format(
                workload.name, workload.size, *cells, workload.peer, f"{result.ratio:.3f}", goal
            ),
            flush=True,
        )
    return missed


def _sizes(large: Sequence[sizes.Size]) -> int:
    """Print a row for each; how many promises were broken."""
    if not large:
        return 0
    row = "{:<22}{:<24}{:>10}{:>10}{:>11} {:<12}{}"
    print(row.format("size", "", "time", "memory", "in arrays", "of", "goal"))
    missed = 0
    for size in large:
        taken = sizes.measure_size(size)
        arrays = taken.megabytes / size.megabytes
        met = taken.seconds <= size.seconds and arrays <= size.arrays
        missed += not met
        goal = f"<= {size.seconds:g} s, {size.arrays:g} arrays{'' if met else '  MISSED'}"
        cells = (f"{taken.seconds:.1f} s", f"{taken.megabytes:.0f} MB", f"{arrays:.2f}")
        print(row.format(size.name, size.what, *cells, size.of, goal), flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
