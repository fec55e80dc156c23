"""``python -m theory``: list, show, check and derive.

python -m theory                       every claim with its verdicts
python -m theory show heavy_ball       the derivation, and the statement in LaTeX
python -m theory check [NAME ...]      walk every route; exit code 1 if any fails
python -m theory derive module:Rule    the threshold of your own rule, from its step
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import sympy as sp

from theory import Claim, Kind, claims
from theory.adaptive import NOT_LINEAR
from theory.linear_stability import derive


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m theory",
        description="Claims of eosim, derived from the code that ships and checked by several routes.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("list", help="every claim with its verdicts (the default)")
    show = commands.add_parser("show", help="print a derivation")
    show.add_argument("name")
    check = commands.add_parser("check", help="walk every route; exit code 1 if any fails")
    check.add_argument("names", nargs="*", metavar="NAME")
    rule = commands.add_parser("derive", help="derive the threshold of a rule class of your own")
    rule.add_argument("rule", metavar="package.module:Rule")
    options = parser.parse_args(arguments)
    try:
        if options.command == "show":
            (claim,) = _named([options.name])
            _show(claim)
            return 0
        if options.command == "derive":
            return _derive(options.rule)
        return _check(_named(getattr(options, "names", [])), verbose=options.command == "check")
    except _UsageError as error:
        print(f"theory: {error}", file=sys.stderr)
        return 2


class _UsageError(Exception):
    pass


def _named(names: Sequence[str]) -> list[Claim]:
    everything = {claim.name: claim for claim in claims()}
    unknown = [name for name in names if name not in everything]
    if unknown:
        raise _UsageError(f"no claim named {unknown[0]!r}; there are: {', '.join(everything)}")
    return [everything[name] for name in names] if names else list(everything.values())


def _check(selected: list[Claim], verbose: bool) -> int:
    """One row per claim, printed as soon as it is known; the evidence below it if verbose."""
    width = max(len(claim.name) for claim in selected)
    failed, seconds = [], 0.0
    for claim in selected:
        verdicts = claim.check()
        seconds += sum(verdict.seconds for verdict in verdicts)
        words = "  ".join(f"{v.route} {'holds' if v.holds else 'FAILS'}" for v in verdicts)
        print(f"{claim.name:{width}}  {words}", flush=True)
        print(f"{'':{width}}  {_line(claim.statement)}")
        for verdict in verdicts:
            if verbose or not verdict.holds:
                print(f"{'':{width}}    {verdict.route}: {verdict.evidence}")
        if not all(verdict.holds for verdict in verdicts):
            failed.append(claim.name)
    total = f"{len(selected)} claim{'s' if len(selected) != 1 else ''} in {seconds:.1f} s"
    print(f"\n{total}: " + (f"{', '.join(failed)} FAILED" if failed else "every route holds"))
    return 1 if failed else 0


def _show(claim: Claim) -> None:
    print(f"{claim.name}  ({claim.kind.value})")
    print(f"source: {claim.source}")
    print(f"where:  {'; '.join(claim.assumptions)}\n")
    _print_steps(claim.steps())
    print(f"statement\n\n{_indented(claim.statement)}\n\nLaTeX\n\n    {claim.latex()}")


def _derive(target: str) -> int:
    module_name, separator, class_name = target.partition(":")
    if not separator:
        raise _UsageError(f"write the rule as package.module:Rule, got {target!r}")
    sys.path.insert(0, os.getcwd())
    try:
        rule = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise _UsageError(f"cannot load {target}: {error}") from None
    if not isinstance(rule, type):
        raise _UsageError(f"{target} must be a rule class, got {rule!r}")
    proved = [NOT_LINEAR[kind] for kind in rule.__mro__ if kind in NOT_LINEAR]
    if proved:
        reason, remedy = "it is no linear rule by itself", ""
        if hasattr(rule, "linear"):
            reason = "it is adaptive, and linear only with its preconditioner P held fixed"
            remedy = f"; {rule.__name__}(...).critical_sharpness() is the number, for P^-1 H"
        raise _UsageError(
            f"cannot derive {target}: {reason}: python -m theory show {proved[0]}{remedy}"
        )
    try:
        derivation = derive(rule)
        _print_steps(derivation.steps())
    except (TypeError, ValueError, AttributeError) as error:
        raise _UsageError(f"cannot derive {target}: {error}") from None
    print(f"LaTeX\n\n    {sp.latex(derivation.statement(derivation.derived))}\n")
    shipped = bool(derivation.shipped)
    routes = [("spectral", derivation.check_spectral), ("simulation", derivation.check_simulation)]
    if shipped:
        routes.insert(0, ("symbolic", derivation.check_symbolic))
    else:
        print(f"{rule.__name__} has no critical_sharpness of its own that runs on symbols.")
    claim = Claim(
        rule.__name__,
        derivation.statement(derivation.derived),
        Kind.EXACT,
        target,
        (),
        derivation.steps,
        dict(routes),
    )
    return _check([claim], verbose=True)


def _print_steps(steps: Sequence[tuple[str, sp.Basic]]) -> None:
    for text, expression in steps:
        print(f"{text}\n\n{_indented(expression)}\n")


def _indented(expression: sp.Basic) -> str:
    return "\n".join("    " + line for line in sp.pretty(expression, wrap_line=False).splitlines())


def _line(statement: sp.Basic) -> str:
    if isinstance(statement, sp.core.relational.Relational):
        sign = "=" if statement.rel_op == "==" else statement.rel_op
        return f"{_line(statement.lhs)} {sign} {_line(statement.rhs)}"
    if isinstance(statement, sp.Piecewise):
        *cases, (otherwise, _) = statement.args
        words = [f"{value} if {_line(condition)}" for value, condition in cases]
        return ", ".join([*words, f"else {otherwise}"])
    return str(statement)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
