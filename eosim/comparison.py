"""Flows measured against the discrete optimizer that they claim to describe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from eosim._checks import Array, integer, interface, real_number
from eosim.discrete import run
from eosim.flows import (
    Flow,
    GradientFlow,
    HeavyBallPrincipalFlow,
    ModifiedFlow,
    PrincipalFlow,
    integrate,
)
from eosim.optimizers import GradientDescent, HeavyBall, Rule, check_rule
from eosim.problems.base import Problem
from eosim.trajectory import Status, Trajectory

# Beyond this size errors are not split by eigendirection: it needs a dense Hessian at every iterate.
SPLIT_DIM = 512


@dataclass(frozen=True, eq=False)
class Comparison:
    r"""What `compare` found. Printing it gives a table.

    Attributes
    ----------
    iterates : Trajectory
        Of the optimizer.
    flows : dict of Trajectory
        Each flow, integrated once from theta0; shorter than the iterates where it stopped.
    global_error : dict of (n_reached,) arrays
        :math:`|\theta(kh) - \theta_k|`, imaginary parts included.
    real_error : dict of (n_reached,) arrays
        :math:`|\mathrm{Re}\,\theta(kh) - \theta_k|`.
    restart_error : dict of (n_restarts,) arrays
        The flow started at :math:`\theta_k` and integrated for one step, against
        :math:`\theta_{k+1}`, divided by the length of that step. NaN where it did not get there.
    restart_at : (n_restarts,) array
        The iterates k that restarts begin from.
    z : (n_records, dim) array or None
        :math:`h\lambda_i` at every iterate, descending; None above `SPLIT_DIM` parameters.
    global_split, restart_split : dict of (n, dim) arrays, or None
        The same errors along each Hessian eigenvector of the iterate (real parts), ordered as z;
        their squares sum to those of the real errors.
    """

    iterates: Trajectory
    flows: dict[str, Trajectory]
    global_error: dict[str, Array]
    real_error: dict[str, Array]
    restart_error: dict[str, Array]
    restart_at: Array
    z: Array | None
    global_split: dict[str, Array] | None
    restart_split: dict[str, Array] | None

    def __str__(self) -> str:
        last = len(self.iterates) - 1
        shown = sorted({k for k in (1, 2, 5, 10, 20, 50, 100, last) if 0 < k <= last})
        restart = len(self.restart_at) > 0
        head = ["flow", *(f"k = {k}" for k in shown)]
        head += ["restart median", "worst"] if restart else []
        lines = [[*head, "ended"]]
        for name, errors in self.global_error.items():
            cells = [name] + [f"{errors[k]:.2e}" if k < len(errors) else "-" for k in shown]
            if restart:
                values = self.restart_error[name]
                reached = values[~np.isnan(values)]
                cells += [_number(reached, np.median), _number(reached, np.max)]
            lines.append([*cells, self.flows[name].status.name])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        table = "\n".join(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )
        title = f"distance to {self.iterates.settings['rule']} at iterate k"
        if restart:
            title += "; restart error relative to the step"
        if self.z is not None:
            title += f"; h * lambda_1 from {self.z[0, 0]:.4g} to {self.z[-1, 0]:.4g}"
        return f"{title}\n{table}"


def compare(
    problem: Problem,
    rule: Rule,
    theta0: Any,
    n_steps: int,
    flows: Mapping[str, Flow] | Iterable[Flow] | None = None,
    *,
    restart: bool = True,
    restart_every: int = 1,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    progress: bool = False,
) -> Comparison:
    """Run an optimizer and integrate flows beside it: which one follows, and until when?

    Global errors let model errors add up; restart errors begin anew at each iterate and are the
    meaningful ones at the edge of stability. Flows are compared at the iterates only: between them
    the principal flow depends on a convention.

    Parameters
    ----------
    problem : Problem
    rule : Rule
        With a constant ``lr``.
    theta0 : (dim,) array-like
    n_steps : int
    flows : mapping from names to flows, or flows, optional
        For `GradientDescent` None stands for gradient flow, modified flows of order 2, 3 and 4,
        principal flow, and principal flow with its first correction; for `HeavyBall` for its
        principal flow.
    restart : bool
        Whether to measure restart errors (memoryless rules only: a buffer cannot be restarted).
    restart_every : int
        Iterates between restarts.
    rtol, atol : float
        Of the integrations.
    progress : bool
        Show a progress bar on standard error.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or flows are needed for a rule without a standard set.

    Examples
    --------
    >>> import eosim
    >>> found = eosim.compare(eosim.Quadratic([[1.8]]), eosim.GradientDescent(1.0), [1.0], 3)
    >>> bool(found.global_error["principal flow"].max() < 1e-9)
    True
    """
    interface("problem", problem, ("dim", "loss", "gradient", "hessian"))
    check_rule(rule)
    lr = real_number(f"{type(rule).__name__}: lr", getattr(rule, "lr", None))
    restart_every = integer("restart_every", restart_every, minimum=1)
    named = _named(problem, rule, flows)
    iterates = run(problem, rule, theta0, n_steps, record={})
    states = iterates["theta"]
    split = problem.dim <= SPLIT_DIM
    frames = [np.linalg.eigh(problem.hessian(theta)) for theta in states] if split else []
    memoryless = rule.init(states[0]) == ()
    at = np.arange(0, len(states) - 1, restart_every) if restart and memoryless else np.arange(0)
    steps = np.array([np.linalg.norm(states[k + 1] - states[k]) for k in at])

    trajectories: dict[str, Trajectory] = {}
    global_error: dict[str, Array] = {}
    real_error: dict[str, Array] = {}
    restart_error: dict[str, Array] = {}
    global_split: dict[str, Array] = {}
    restart_split: dict[str, Array] = {}
    options: dict[str, Any] = {"record": {}, "rtol": rtol, "atol": atol}
    bar = tqdm(total=len(named) * (1 + len(at)), disable=not progress, desc="compare", unit="path")
    with bar:
        for name, flow in named.items():
            path = integrate(flow, states[0], iterates.t, **options)
            bar.update()
            trajectories[name] = path
            gaps = path.theta - states[: len(path)]  # (n_reached, dim)
            global_error[name] = np.linalg.norm(gaps, axis=1)
            real_error[name] = np.linalg.norm(gaps.real, axis=1)
            restarts = np.full((len(at), problem.dim), np.nan, dtype=path.theta.dtype)
            for index, k in enumerate(at):
                one = integrate(flow, states[k], [lr], **options)
                if one.status is Status.COMPLETED:
                    restarts[index] = one.theta[0] - states[k + 1]
                bar.update()
            with np.errstate(divide="ignore", invalid="ignore"):  # a step of length 0
                restart_error[name] = np.linalg.norm(restarts, axis=1) / steps
            if split:
                global_split[name] = _along(frames[: len(path)], gaps.real)
                restart_split[name] = _along([frames[k + 1] for k in at], restarts.real)
    return Comparison(
        iterates=iterates,
        flows=trajectories,
        global_error=global_error,
        real_error=real_error,
        restart_error=restart_error,
        restart_at=at,
        z=np.array([lr * values[::-1] for values, _ in frames]) if split else None,
        global_split=global_split if split else None,
        restart_split=restart_split if split else None,
    )


def _named(
    problem: Problem, rule: Rule, flows: Mapping[str, Flow] | Iterable[Flow] | None
) -> dict[str, Flow]:
    if isinstance(flows, Mapping):
        for name, flow in flows.items():
            _check_flow(name, flow, problem)
        return dict(flows)
    if flows is not None:
        if not isinstance(flows, Iterable):
            raise TypeError(
                f"flows must be a mapping or a list of flows, got one {type(flows).__name__}"
            )
        listed = list(flows)
        for flow in listed:
            _check_flow(type(flow).__name__, flow, problem)
        names = [type(flow).__name__ for flow in listed]
        if len(set(names)) < len(names):
            raise ValueError(f"flows of one class need names: pass a mapping; got {names}")
        return dict(zip(names, listed, strict=True))
    if isinstance(rule, GradientDescent):
        return {
            "gradient flow": GradientFlow(problem, rule.lr),
            "modified, order 2": ModifiedFlow(problem, rule.lr, 2),
            "modified, order 3": ModifiedFlow(problem, rule.lr, 3),
            "modified, order 4": ModifiedFlow(problem, rule.lr, 4),
            "principal flow": PrincipalFlow(problem, rule.lr),
            "principal + T[g,g]": PrincipalFlow(problem, rule.lr, corrections=1),
        }
    if isinstance(rule, HeavyBall):
        flow = HeavyBallPrincipalFlow(problem, rule.lr, rule.momentum)
        return {"heavy-ball principal flow": flow}
    raise ValueError(
        f"compare has no standard flows for {type(rule).__name__}; pass flows={{name: flow}}"
    )


def _check_flow(name: str, flow: Any, problem: Problem) -> None:
    interface(f"flows: {name}", flow, ("problem", "field"))
    if flow.problem.dim != problem.dim:
        raise ValueError(
            f"flows: {name} is a {type(flow).__name__} on another problem, of dim "
            f"{flow.problem.dim}; here dim is {problem.dim}"
        )


def _along(frames: Sequence[tuple[Array, Array]], gaps: Array) -> Array:
    """Components along the eigenvectors of each frame, sharpest first; shape of ``gaps``."""
    rows = [gap @ vectors[:, ::-1] for (_, vectors), gap in zip(frames, gaps, strict=True)]
    return np.array(rows).reshape(gaps.shape)


def _number(values: Array, statistic: Any) -> str:
    return f"{statistic(values):.2e}" if len(values) else "-"
