"""Flows measured against the discrete optimizer that they claim to describe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from eosim import measure
from eosim._checks import Array, integer, interface, real_number
from eosim.discrete import run
from eosim.flows import (
    Flow,
    GradientFlow,
    HeavyBallPrincipalFlow,
    ModifiedFlow,
    OscillatingFlow,
    PrincipalFlow,
    integrate,
)
from eosim.optimizers import GradientDescent, HeavyBall, Rule, check_rule
from eosim.problems.base import Problem
from eosim.trajectory import RunState, Status, Trajectory

# Beyond this size errors are not split by eigendirection: it needs a dense Hessian at every iterate.
SPLIT_DIM = 512
# What is averaged along the iterates and predicted by the flows, and its heading in the table.
_AVERAGES = {"loss": "loss", "squared_gradient": "|g|^2", "oscillation": "swing^2"}

AnyFlow = Flow | OscillatingFlow


@dataclass(frozen=True, eq=False)
class Comparison:
    r"""What `compare` found. Printing it gives a table.

    Attributes
    ----------
    iterates : Trajectory
        Of the optimizer, all of them, with "loss" and "squared_gradient" of each.
    at : (n_compared,) array
        The iterates k at which flows are compared: every one, unless ``every`` says otherwise.
    flows : dict of Trajectory
        Each flow, integrated once from the start, at the times of those iterates; shorter where it
        stopped. Of an oscillating flow, the centre.
    global_error : dict of (n_reached,) arrays
        :math:`|\theta(kh) - \theta_k|`, imaginary parts included.
    real_error : dict of (n_reached,) arrays
        :math:`|\mathrm{Re}\,\theta(kh) - \theta_k|`.
    centred_error : dict of (n_reached,) arrays
        :math:`|\mathrm{Re}\,\theta(kh) - c_k|` with the centre :math:`c_k` of the iterates: their mean
        over ``window`` steps, for 2 steps :math:`(\theta_{k-1} + 2\theta_k + \theta_{k+1})/4`. What an
        oscillating flow is judged by.
    measured : dict of (n_compared,) arrays
        "loss", "squared_gradient" and "oscillation" of the iterates, :math:`L`, :math:`|g|^2` and
        :math:`|\theta_k - c_k|^2`, each averaged as :math:`c_k` is.
    predicted : dict of dict of (n_reached,) arrays
        What each flow says of them; of a flow without oscillation, L and :math:`|g|^2` where it is, and 0.
    restart_error : dict of (n_restarts,) arrays
        The flow started at :math:`\theta_k` and integrated for one step, against
        :math:`\theta_{k+1}`, divided by the length of that step. NaN where it did not get there, and
        for oscillating flows: an iterate alone does not tell how far it is from the centre.
    restart_at : (n_restarts,) array
        The iterates k that restarts begin from.
    z : (n_compared, dim) array or None
        :math:`h\lambda_i` at these iterates, descending; None above `SPLIT_DIM` parameters.
    global_split, restart_split : dict of (n, dim) arrays, or None
        The same errors along each Hessian eigenvector of the iterate (real parts), ordered as z;
        their squares sum to those of the real errors.
    oscillating : frozenset of str
        Which flows oscillate, by name.
    window : int
    """

    iterates: Trajectory
    at: Array
    flows: dict[str, Trajectory]
    global_error: dict[str, Array]
    real_error: dict[str, Array]
    centred_error: dict[str, Array]
    measured: dict[str, Array]
    predicted: dict[str, dict[str, Array]]
    restart_error: dict[str, Array]
    restart_at: Array
    z: Array | None
    global_split: dict[str, Array] | None
    restart_split: dict[str, Array] | None
    oscillating: frozenset[str]
    window: int

    def __str__(self) -> str:
        """One table of distances to the iterates, one of averages if there are oscillating flows."""
        following = len(self.flows) - len(self.oscillating)
        tables = [self._distances()] if following or not self.oscillating else []
        if self.oscillating:
            tables += [self._averages()]
        return "\n".join(tables)

    def _distances(self) -> str:
        restart = len(self.restart_at) > 0
        head = ["restart median", "worst"] if restart else []
        rows = {}
        for name in self.flows:
            if name not in self.oscillating:
                values = self.restart_error[name]
                reached = values[~np.isnan(values)]
                cells = [_number(reached, np.median), _number(reached, np.max)] if restart else []
                rows[name] = (self.global_error[name], cells)
        title = f"distance to {self.iterates.settings['rule']} at iterate k"
        if restart:
            title += "; restart error relative to the step"
        if self.z is not None:
            title += f"; h * lambda_1 from {self.z[0, 0]:.4g} to {self.z[-1, 0]:.4g}"
        return f"{title}\n{self._table(head, rows)}"

    def _averages(self) -> str:
        rows = {}
        for name, predicted in self.predicted.items():
            cells = []
            for quantity in _AVERAGES:
                actual = self.measured[quantity][: len(predicted[quantity])]
                known = actual != 0
                ratio = predicted[quantity][known] / actual[known]
                cells.append(_number(np.abs(ratio - 1), np.median))
            rows[name] = (self.centred_error[name], cells)
        title = (
            f"distance to the centre of {self.iterates.settings['rule']} over {self.window} steps at "
            "iterate k; relative errors (median) of averages"
        )
        return f"{title}\n{self._table([*_AVERAGES.values()], rows)}"

    def _table(self, head: list[str], rows: dict[str, tuple[Array, list[str]]]) -> str:
        """Per flow: errors at a few iterates, more cells, and how it ended."""
        last = len(self.at) - 1
        shown = sorted({index for index in (1, 2, 5, 10, 20, 50, 100, last) if 0 < index <= last})
        lines = [["flow", *(f"k = {self.at[index]}" for index in shown), *head, "ended"]]
        for name, (errors, cells) in rows.items():
            numbers = [f"{errors[i]:.2e}" if i < len(errors) else "-" for i in shown]
            lines.append([name, *numbers, *cells, self.flows[name].status.name])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )


def compare(
    problem: Problem,
    rule: Rule,
    theta0: Any,
    n_steps: int,
    flows: Mapping[str, AnyFlow] | Iterable[AnyFlow] | None = None,
    *,
    state: RunState | None = None,
    every: int = 1,
    window: int = 2,
    restart: bool = True,
    restart_every: int = 1,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    progress: bool = False,
) -> Comparison:
    """Run an optimizer and integrate flows beside it: which one follows, and until when?

    Global errors let model errors add up; restart errors begin anew at each iterate and are the
    meaningful ones at the edge of stability. Flows are compared at the iterates only: between them
    the principal flow depends on a convention. Oscillating flows (`CentralFlow`, `RodFlow`, `EdgeFlow`)
    follow the centre of the iterates: see ``centred_error``, ``measured`` and ``predicted``.

    Parameters
    ----------
    problem : Problem
    rule : Rule
        With a constant ``lr``.
    theta0 : (dim,) array-like
        None if ``state`` is given.
    n_steps : int
    flows : mapping from names to flows, or flows, optional
        With the rule's ``lr`` and ``momentum``, where they have them. For `GradientDescent` None
        stands for gradient flow, modified flows of order 2, 3 and 4, principal flow, and principal
        flow with its first correction; for `HeavyBall` for its principal flow.
    state : RunState, optional
        ``final_state`` of a run to go on from, for rules whose flows need a memory.
    every : int
        Iterates between those that flows are compared at: solvers land on each, which costs most of
        the time. The start and the last iterate are always among them.
    window : int
        Steps over which the iterates are averaged, even: a mean of that length has no part of period
        2. It shrinks to what there is on both sides. At the ends the centre is
        :math:`(3\theta_0 + 2\theta_1 - \theta_2)/4`, exact for a swing about a line, and averages are
        means with the neighbour.
    restart : bool
        Whether to measure restart errors (memoryless rules only, and flows that do not oscillate).
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
    >>> edge = eosim.flows.EdgeFlow(eosim.Quadratic([[2.0]]), 1.0)  # a swing from -1 to 1
    >>> found = eosim.compare(edge.problem, eosim.GradientDescent(1.0), [1.0], 9, [edge])
    >>> found.predicted["EdgeFlow"]["oscillation"][-1], found.measured["oscillation"][-1]
    (np.float64(1.0), np.float64(1.0))
    """
    interface("problem", problem, ("dim", "loss", "gradient", "hessian"))
    check_rule(rule)
    lr = real_number(f"{type(rule).__name__}: lr", getattr(rule, "lr", None))
    every = integer("every", every, minimum=1)
    restart_every = integer("restart_every", restart_every, minimum=1)
    if integer("window", window, minimum=2) % 2:
        raise ValueError(f"window must be even, to average out period 2; got {window}")
    named = _named(problem, rule, flows)
    recorded = {"loss": measure.loss, "squared_gradient": _squared_gradient}
    iterates = run(problem, rule, theta0, n_steps, state=state, record=recorded)
    states, last = iterates["theta"], len(iterates) - 1
    at = np.unique([*range(0, last + 1, every), last])
    times = (iterates.t - iterates.t[0])[at]
    oscillating = frozenset(name for name, flow in named.items() if hasattr(flow, "centre"))
    memoryless = rule.init(states[0]) == ()
    restart_at = np.arange(0, last, restart_every) if restart and memoryless else np.arange(0)
    lengths = np.array([np.linalg.norm(states[k + 1] - states[k]) for k in restart_at])
    split = problem.dim <= SPLIT_DIM
    used = {*at, *(restart_at + 1)} if split else set()
    frames = {k: np.linalg.eigh(problem.hessian(states[k])) for k in used}
    centres, measured = _averaged(iterates, at, window)

    trajectories: dict[str, Trajectory] = {}
    global_error: dict[str, Array] = {}
    real_error: dict[str, Array] = {}
    centred_error: dict[str, Array] = {}
    predicted: dict[str, dict[str, Array]] = {}
    restart_error: dict[str, Array] = {}
    global_split: dict[str, Array] = {}
    restart_split: dict[str, Array] = {}
    options: dict[str, Any] = {"record": {}, "rtol": rtol, "atol": atol}
    total = len(named) + (len(named) - len(oscillating)) * len(restart_at)
    bar = tqdm(total=total, disable=not progress, desc="compare", unit="path")
    with bar:
        for name, flow in named.items():
            if state is not None and name in oscillating:
                path = integrate(flow, None, times, state=state, **options)
            else:
                path = integrate(flow, states[0], times, **options)
            bar.update()
            trajectories[name] = path
            gaps = path.theta - states[at[: len(path)]]  # (n_reached, dim)
            global_error[name] = np.linalg.norm(gaps, axis=1)
            real_error[name] = np.linalg.norm(gaps.real, axis=1)
            centred_error[name] = np.linalg.norm(path.theta.real - centres[: len(path)], axis=1)
            predicted[name] = _predicted(problem, path, name in oscillating)
            restarts = np.full((len(restart_at), problem.dim), np.nan, dtype=path.theta.dtype)
            for index, k in enumerate(() if name in oscillating else restart_at):
                one = integrate(flow, states[k], [lr], **options)
                if one.status is Status.COMPLETED:
                    restarts[index] = one.theta[0] - states[k + 1]
                bar.update()
            with np.errstate(divide="ignore", invalid="ignore"):  # a step of length 0
                restart_error[name] = np.linalg.norm(restarts, axis=1) / lengths
            if split:
                global_split[name] = _along([frames[k] for k in at[: len(path)]], gaps.real)
                restart_split[name] = _along([frames[k + 1] for k in restart_at], restarts.real)
    return Comparison(
        iterates=iterates,
        at=at,
        flows=trajectories,
        global_error=global_error,
        real_error=real_error,
        centred_error=centred_error,
        measured=measured,
        predicted=predicted,
        restart_error=restart_error,
        restart_at=restart_at,
        z=np.array([lr * frames[k][0][::-1] for k in at]) if split else None,
        global_split=global_split if split else None,
        restart_split=restart_split if split else None,
        oscillating=oscillating,
        window=window,
    )


def _squared_gradient(problem: Problem, theta: Array) -> float:
    return measure.gradient_norm(problem, theta) ** 2


def _averaged(iterates: Trajectory, at: Array, window: int) -> tuple[Array, dict[str, Array]]:
    """The centre of the iterates, and the averages around it, at the iterates ``at``."""
    states = iterates["theta"]
    centres = _smooth(states, window)
    if len(states) > 2:
        for end, inside, further in ((0, 1, 2), (-1, -2, -3)):
            centres[end] = (3 * states[end] + 2 * states[inside] - states[further]) / 4
    values = {**iterates.records, "oscillation": np.sum((states - centres) ** 2, axis=1)}
    return centres[at], {name: _smooth(values[name], window)[at] for name in _AVERAGES}


def _smooth(values: Array, window: int) -> Array:
    """Trapezoidal means over ``window`` steps, shaped like the values; see `compare` for the ends."""
    last = len(values) - 1
    means = []
    for k in range(last + 1):
        reach = min(window // 2, k, last - k)
        if reach == 0:  # an end: with its one neighbour
            means.append(values[max(k - 1, 0) : k + 2].mean(axis=0))
        else:
            part = values[k - reach : k + reach + 1]
            means.append((part[:-1].mean(axis=0) + part[1:].mean(axis=0)) / 2)
    return np.array(means)


def _predicted(problem: Problem, path: Trajectory, oscillating: bool) -> dict[str, Array]:
    """What a flow says of the averages; see `Comparison`."""
    if oscillating:
        return {name: path.records.get(f"average.{name}", np.zeros(0)) for name in _AVERAGES}
    points = path["theta"].real
    with np.errstate(over="ignore", invalid="ignore"):  # a flow that has blown up
        return {
            "loss": np.array([measure.loss(problem, point) for point in points]),
            "squared_gradient": np.array([_squared_gradient(problem, point) for point in points]),
            "oscillation": np.zeros(len(points)),
        }


def _named(
    problem: Problem, rule: Rule, flows: Mapping[str, AnyFlow] | Iterable[AnyFlow] | None
) -> dict[str, AnyFlow]:
    if isinstance(flows, Mapping):
        for name, flow in flows.items():
            _check_flow(name, flow, problem, rule)
        return dict(flows)
    if flows is not None:
        if not isinstance(flows, Iterable):
            raise TypeError(
                f"flows must be a mapping or a list of flows, got one {type(flows).__name__}"
            )
        listed = list(flows)
        for flow in listed:
            _check_flow(type(flow).__name__, flow, problem, rule)
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


def _check_flow(name: str, flow: Any, problem: Problem, rule: Rule) -> None:
    interface(f"flows: {name}", flow, ("problem", "field"))
    followed = getattr(flow, "rule", rule)
    if type(followed) is not type(rule):
        raise ValueError(
            f"flows: {name} is a flow of {type(followed).__name__}, and the rule is "
            f"{type(rule).__name__}"
        )
    for setting in ("lr", "momentum"):
        wanted, got = getattr(rule, setting, None), getattr(flow, setting, None)
        if wanted is not None and got is not None and not math.isclose(got, wanted):
            raise ValueError(f"flows: {name} must have the rule's {setting}, {wanted}; got {got}")
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
