"""``python -m tests.benchmarks [NAME ...] [--quick]``: a table of measured ratios."""

import argparse
import os
import sys

# One thread on one core, before NumPy loads its libraries.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

from tests.benchmarks import flows, mean_square, measure, sgd_ensembles  # noqa: E402

WORKLOADS = flows.WORKLOADS + mean_square.WORKLOADS + sgd_ensembles.WORKLOADS


def main() -> int:
    """Run the workloads; 1 if a goal is missed, 2 if a name is unknown."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all workloads if none is given")
    parser.add_argument("--quick", action="store_true", help="a fifth of the rounds")
    arguments = parser.parse_args()
    known = {workload.name: workload for workload in WORKLOADS}
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = [known[name] for name in arguments.names or known]
    row = "{:<22}{:<24}{:>12}{:>12}  {:<26}{:>9}  {}"
    print(row.format("workload", "size", "eosim", "peer", "", "ratio", "goal"))
    missed = 0
    for workload in chosen:
        rounds = max(3, workload.rounds // 5) if arguments.quick else workload.rounds
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
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
