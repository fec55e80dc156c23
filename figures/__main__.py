"""Compute, draw and check figures: ``python -m figures [NAME ...] [--full] [--out DIR] [--data PATH]``."""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import pkgutil
import sys
import time
import traceback
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import figures
from figures._headline import MissingPackage, Row
from figures._style import FORMATS, save, save_animation

STAGES = ("compute", "draw", "save")
OUTPUT = Path(__file__).parent / "output"
HEADER = ("figure", "quantity", "expected", "measured", "verdict", "time")
GAP = "  "


@dataclass
class Outcome:
    """What became of one figure."""

    name: str
    rows: list[Row] = field(default_factory=list)
    failure: str | None = None
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        return self.failure is None and all(row.holds for row in self.rows)


def figure_names() -> list[str]:
    """Every module of the package whose name does not start with an underscore."""
    found = pkgutil.iter_modules(figures.__path__)
    return sorted(module.name for module in found if not module.name.startswith("_"))


def load(name: str) -> ModuleType:
    return importlib.import_module(f"figures.{name}")


def claim(module: ModuleType) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(module) or "").split("\n", maxsplit=1)[0]


def takes_data(module: ModuleType) -> bool:
    """Whether the figure's ``compute`` runs on a user's files too: ``compute(quick, data=None)``."""
    return "data" in inspect.signature(module.compute).parameters


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An ``.npz`` that `numpy.load` reads, with fixed dates: same arrays, same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(arrays):
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.asarray(arrays[name]), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, stream.getvalue())


def produce(
    name: str,
    *,
    quick: bool,
    out: Path,
    formats: Sequence[str],
    bar: tqdm,
    data: Path | None = None,
) -> Outcome:
    """One figure, whatever happens: an exception is an outcome too, and the others still run."""
    outcome = Outcome(name)
    start, done = time.perf_counter(), bar.n
    try:
        module = load(name)
        bar.set_description(f"{name}: {STAGES[0]}")
        # One thread: these sizes gain nothing from more, and sums keep one order of addition.
        with threadpool_limits(limits=1):
            arrays = module.compute(quick) if data is None else module.compute(quick, data=data)
        outcome.rows = list(module.headline(arrays))
        if not outcome.rows:
            outcome.failure = "it has no headline"
        bar.update()
        bar.set_description(f"{name}: {STAGES[1]}")
        figure = module.draw(arrays)
        bar.update()
        bar.set_description(f"{name}: {STAGES[2]}")
        for kind in formats:
            save(figure, out / f"{name}.{kind}")
        if hasattr(module, "animate"):
            save_animation(module.animate(arrays), out / f"{name}.gif")
        save_arrays(out / f"{name}.npz", arrays)
        bar.update()
    except MissingPackage as missing:
        outcome.failure = str(missing)
    except Exception as error:
        bar.write(traceback.format_exc(), file=sys.stderr)
        outcome.failure = f"it raised {type(error).__name__}: {error}"
    bar.update(done + len(STAGES) - bar.n)
    outcome.seconds = time.perf_counter() - start
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """The final table, aligned; a figure's name and time stand in its first row only."""
    lines = [HEADER]
    for outcome in outcomes:
        cells = [
            (
                row.quantity,
                row.expectation,
                f"{row.measured:.6g}",
                "holds" if row.holds else "FAILS",
            )
            for row in outcome.rows
        ]
        if outcome.failure is not None:
            cells.append(("the figure itself", "is made", "is not", "FAILS"))
        for index, (quantity, expected, measured, verdict) in enumerate(cells):
            name, seconds = (outcome.name, f"{outcome.seconds:.1f} s") if index == 0 else ("", "")
            lines.append((name, quantity, expected, measured, verdict, seconds))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    texts = [
        GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    rule = GAP.join("-" * width for width in widths)
    return "\n".join([texts[0], rule, *texts[1:]])


def summary(outcomes: Sequence[Outcome], out: Path) -> str:
    rows = [row for outcome in outcomes for row in outcome.rows]
    seconds = sum(outcome.seconds for outcome in outcomes)
    place, here = out.resolve(), Path.cwd()
    shown = place.relative_to(here) if place.is_relative_to(here) else place
    lines = [
        f"{outcome.name} failed: {outcome.failure}"
        for outcome in outcomes
        if outcome.failure is not None
    ]
    lines.append(
        f"{sum(outcome.holds for outcome in outcomes)} of {len(outcomes)} figures, "
        f"{sum(row.holds for row in rows)} of {len(rows)} rows hold; {seconds:.1f} s; "
        f"pictures and arrays in {shown}"
    )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m figures",
        description="Compute, draw and check the figures: one picture and one .npz per claim.",
        epilog="Exit code: 0 if every row holds, 1 if one fails or a figure cannot be made, "
        "2 for a wrong command.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures to make (default: all)")
    parser.add_argument("--full", action="store_true", help="larger sizes and longer runs")
    parser.add_argument(
        "--out", type=Path, default=OUTPUT, metavar="DIR", help="where to write (figures/output)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="compute on your own images, a CIFAR-10 binary file or a folder of them; for figures that "
        "say so in their docstrings",
    )
    parser.add_argument("--list", action="store_true", help="print names and claims, make nothing")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["png"],
        dest="formats",
        help="formats of the pictures; give names before it",
    )
    return parser.parse_args(arguments)


def refuse_data(path: Path, names: Sequence[str]) -> str | None:
    """Why ``--data`` cannot be used with these figures; None if it can."""
    taken = [name for name in names or figure_names() if takes_data(load(name))]
    refused = [name for name in dict.fromkeys(names) if name not in taken]
    if not names:
        return f"--data needs the figures to compute on it, by name: {', '.join(taken) or 'none'}"
    if refused:
        return f"--data is not for {', '.join(refused)}, whose data are fixed"
    if not path.exists():
        return f"--data: there is no file or folder {path}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    options = parse(arguments)
    known = figure_names()
    unknown = [name for name in options.names if name not in known]
    if unknown:
        print(
            f"no figure named {', '.join(unknown)}; the figures are: {', '.join(known)}",
            file=sys.stderr,
        )
        return 2
    names = list(dict.fromkeys(options.names)) or known
    if options.list:
        width = max(map(len, names))
        for name in names:
            print(f"{name.ljust(width)}{GAP}{claim(load(name))}")
        return 0
    if options.data is not None:
        complaint = refuse_data(options.data, options.names)
        if complaint:
            print(complaint, file=sys.stderr)
            return 2
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"cannot write to {options.out}: {error.strerror}", file=sys.stderr)
        return 2
    with tqdm(total=len(names) * len(STAGES), unit="stage", file=sys.stderr) as bar:
        outcomes = [
            produce(
                name,
                quick=not options.full,
                out=options.out,
                formats=options.formats,
                bar=bar,
                data=options.data,
            )
            for name in names
        ]
        bar.set_description("figures")
    print(table(outcomes))
    print()
    print(summary(outcomes, options.out))
    return 0 if all(outcome.holds for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
