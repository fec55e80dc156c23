"""The guarded driver: scipy's solve_ivp with branch memory, budgets and statuses; nothing hangs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.integrate import DOP853, OdeSolver, solve_ivp
from tqdm import tqdm

from eosim._checks import (
    Array,
    Interval,
    float_array,
    integer,
    interface,
    real_number,
    state_vector,
)
from eosim._recording import Recorder, UndefinedLoss
from eosim.flows.base import AmbiguousBranch, Flow, LeftRange, OscillatingFlow
from eosim.trajectory import RunState, Status, Trajectory, versions

# A diverging quadratic grows legitimately; a flow that has left its validity explodes. Our choice.
DIVERGENCE_FACTOR = 1e12
# Evaluations within one learning-rate interval beyond which the flow counts as stalled. Our choice:
# measured need is 15 (real regimes) to 300 (passing h * lambda = 1 at rtol 1e-12).
STALL_EVALUATIONS = 5000
# A step is halved while its branch is ambiguous or a stage of it leaves the range of the flow, down
# to this share of lr: eigenvalues that really meet stay ambiguous at any step, and a range that is
# really left is left by the shortest step too. Our choice: about ten halvings.
SHORTEST_RETRY = 1e-3


def integrate(
    flow: Flow | OscillatingFlow,
    theta0: Any,
    times: Any,
    *,
    state: RunState | None = None,
    record: Mapping[str, Callable[..., Any]] | None = None,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    euler_steps: int | None = None,
    max_evaluations: int = 200_000,
    progress: bool = False,
) -> Any:
    r"""Integrate a flow from theta0 at t = 0 and return its states at ``times``.

    Dormand and Prince's order 8(5,3) (scipy's DOP853) lands on every requested time, so values
    carry the tolerance of the solver, not that of an interpolant. Complex flows get a complex
    state; theta0 stays real in your hands.

    Parameters
    ----------
    flow : Flow or OscillatingFlow
    theta0 : (dim,) array-like, or (n_starts, dim)
        Starting point, or several. None if ``state`` is given.
    times : (n_times,) array-like
        Increasing, from 0 on. Multiples of lr are where a flow is compared with iterates.
    state : RunState, optional
        Where a run stands (``final_state``), for flows that follow a rule's memory too; t counts from
        there.
    record : mapping from names to measurements, optional
        Functions f(problem, theta), evaluated at Re theta. {"loss": eosim.measure.loss} if None; {}
        records nothing.
        Complex flows always add ``imaginary_norm``, :math:`|\mathrm{Im}\,\theta|`; oscillating flows
        what they predict of the optimizer's averages, as ``average.loss`` and so on (`Averages`).
    rtol, atol : float
        Tolerances of the solver, per step.
    euler_steps : int, optional
        Explicit Euler steps of this number per lr in place of the solver, without error control: the
        reference code of `CentralFlow` takes 4 with ``feedback=4``.
    max_evaluations : int
        Budget of field evaluations.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    Trajectory
        Or a list of one per start. Its status is COMPLETED, or DIVERGED (norm beyond
        `DIVERGENCE_FACTOR` * (1 + \|theta0\|), or a non-finite field), STALLED, BUDGET_SPENT or
        LEFT_RANGE, with all states up to there.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the field at theta0 has the wrong shape or is not finite.
    """
    interface("flow", flow, ("problem", "field"))
    times = float_array("times", times, shape=(None,))
    if len(times) == 0 or times[0] < 0 or (np.diff(times) <= 0).any():
        raise ValueError(
            f"times must be increasing, start at 0 or later and not be empty; got {times}"
        )
    positive = Interval(0, 1)
    options = {
        "rtol": max(real_number("rtol", rtol, positive), 100 * np.finfo(float).eps),
        # never exactly 0: a coordinate that stays at 0 would be 0/0
        "atol": max(real_number("atol", atol, Interval(0, np.inf, lower_closed=True)), 1e-300),
    }
    budget = integer("max_evaluations", max_evaluations, minimum=1)
    if euler_steps is not None:
        options = {"euler_steps": integer("euler_steps", euler_steps, minimum=1)}
        if flow.lr is None:
            raise ValueError("euler_steps are counted per lr, and the flow has none; pass it one")
    if state is not None:
        begin = _from_state(flow, theta0, state)
        return _integrate(flow, *begin, times, Recorder(record), options, budget, progress)
    given = float_array("theta0", theta0)
    if given.ndim == 2:
        starts = float_array("theta0", given, shape=(None, flow.problem.dim))
        if len(starts) == 0:
            raise ValueError("theta0 must hold at least one start, got shape (0, dim)")
        return [
            _integrate(flow, start.copy(), None, times, Recorder(record), options, budget, progress)
            for start in starts
        ]
    start = state_vector("theta0", given, flow.problem.dim)
    return _integrate(flow, start, None, times, Recorder(record), options, budget, progress)


class _Euler(OdeSolver):
    """Explicit Euler in equal steps of at most lr / euler_steps, reported to the path."""

    t: float
    y: Array

    def __init__(
        self,
        fun: Any,
        t0: float,
        y0: Array,
        t_bound: float,
        *,
        path: _Path,
        euler_steps: int,
        **_: Any,
    ) -> None:
        super().__init__(fun, t0, y0, t_bound, vectorized=False, support_complex=True)
        self._path = path
        assert path.flow.lr is not None  # checked by integrate
        count = max(1, math.ceil((t_bound - t0) * euler_steps / path.flow.lr - 1e-9))
        self._times = np.linspace(t0, t_bound, count + 1)[1:]

    def _step_impl(self) -> tuple[bool, str | None]:
        later, self._times = self._times[0], self._times[1:]
        self.y = self.y + (later - self.t) * self.fun(self.t, self.y)
        if not np.isfinite(self.y).all():
            raise _NotFinite("the state is not finite")
        self.t = float(later)
        self._path.accept(self.t, self.y, settle=True)
        return True, None


def _from_state(flow: Any, theta0: Any, state: Any) -> tuple[Array, tuple[Any, ...]]:
    """theta and the rule's memory of a run's state."""
    if not isinstance(state, RunState):
        raise TypeError(
            f"state must be the final_state of a trajectory, got {type(state).__name__}"
        )
    if theta0 is not None:
        raise ValueError("theta0 must be None when state is given: the state holds theta")
    if not hasattr(flow, "centre"):
        raise TypeError(
            f"{type(flow).__name__} has no memory: pass state.theta as theta0, and no state"
        )
    return state_vector("state.theta", state.theta, flow.problem.dim), state.rule_state


class _Stop(Exception):
    """Ends an integration from inside the field, where a solver that hangs still calls us."""

    def __init__(self, status: Status, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _NotFinite(Exception):
    """The field or the Hessian is not finite at a stage."""


class _Path:
    """The field as solve_ivp sees it, with the branch memory and the guards of one integration."""

    def __init__(self, flow: Flow, theta: Array, budget: int) -> None:
        self.flow = flow
        self.branch = flow.init(theta) if hasattr(flow, "init") else None
        self.bound = DIVERGENCE_FACTOR * (1 + float(np.linalg.norm(theta)))
        self.budget = budget
        self.evaluations = 0
        self.interval, self.interval_start = 0.0, 0
        self.step_size: float | None = None
        self.t = 0.0  # of the last accepted step
        self.chosen = 0  # steps whose branch continuity did not decide

    def __call__(self, t: float, theta: Array) -> Array:
        self.evaluations += 1
        if self.evaluations > self.budget:
            raise _Stop(
                Status.BUDGET_SPENT,
                f"max_evaluations = {self.budget} were spent at t = {t:.6g}; raise it, or loosen rtol",
            )
        if self.evaluations - self.interval_start > STALL_EVALUATIONS and self.flow.lr is not None:
            raise _Stop(
                Status.STALLED,
                f"stalled at t = {t:.6g}: {STALL_EVALUATIONS} evaluations within one step of lr. The "
                "flow may be about to blow up, or to slide along a singularity; loosen rtol, or "
                "compare over a shorter time",
            )
        try:
            value = self.flow.field(theta, self.branch)
        except (FloatingPointError, np.linalg.LinAlgError) as error:
            raise _NotFinite(str(error)) from None
        if np.shape(value) != theta.shape:
            raise ValueError(
                f"{type(self.flow).__name__}.field must return shape {theta.shape}, got "
                f"{np.shape(value)}"
            )
        if not np.isfinite(value).all():
            raise _NotFinite("the field is not finite")
        return value

    def accept(self, t: float, theta: Array, settle: bool) -> None:
        """Called after each accepted step; raises `AmbiguousBranch` to have it taken again.

        ``settle`` says that the step is too short to be taken again.
        """
        norm = float(np.linalg.norm(theta))
        if not norm <= self.bound:
            raise _Stop(
                Status.DIVERGED,
                f"diverged: the norm exceeds {self.bound:.3g} at t = {t:.6g}. The flow has left "
                "what it models, or follows a diverging optimizer",
            )
        if hasattr(self.flow, "advance"):
            try:
                self.branch = self.flow.advance(theta, self.branch)
            except AmbiguousBranch as ambiguous:
                if not settle:
                    raise
                self.branch = ambiguous.best
                self.chosen += 1
            except (FloatingPointError, np.linalg.LinAlgError) as error:
                raise _NotFinite(str(error)) from None
        self.t = t
        if self.flow.lr is not None and np.floor(t / self.flow.lr) > self.interval:
            self.interval = float(np.floor(t / self.flow.lr))
            self.interval_start = self.evaluations


class _BranchDOP853(DOP853):
    """DOP853 that reports accepted steps to its path and keeps the step size across restarts."""

    t: float
    y: Array
    f: Array
    h_abs: float
    t_bound: float
    status: str

    def __init__(
        self, fun: Any, t0: float, y0: Array, t_bound: float, *, path: _Path, **options: Any
    ) -> None:
        self.path = path
        if path.step_size is not None:
            options["first_step"] = min(path.step_size, t_bound - t0)
        super().__init__(fun, t0, y0, t_bound, **options)

    def step(self) -> str | None:
        lr = self.path.flow.lr
        shortest = SHORTEST_RETRY * (self.t_bound - self.t if lr is None else lr)
        while True:
            before = (self.t, self.y, self.f)
            proposed = min(self.h_abs, self.t_bound - self.t)
            try:
                message = super().step()
                if self.status == "failed":
                    return message
                proposed = self.t - before[0]
                self.path.accept(self.t, self.y, settle=proposed <= shortest)
            except (AmbiguousBranch, LeftRange, _NotFinite):
                if proposed <= shortest:
                    raise
                self.t, self.y, self.f = before
                self.h_abs, self.status = proposed / 2, "running"
                continue
            # A step cut short by the end of the segment says nothing about the size it could have.
            if self.status != "finished" or self.path.step_size is None:
                self.path.step_size = self.h_abs
            else:
                self.path.step_size = max(self.path.step_size, self.h_abs)
            return message


def _integrate(
    flow: Any,
    start: Array,
    memory: tuple[Any, ...] | None,
    times: Array,
    recorder: Recorder,
    options: dict[str, float],
    budget: int,
    progress: bool,
) -> Trajectory:
    problem = flow.problem
    oscillating = hasattr(flow, "centre")
    solver = _Euler if "euler_steps" in options else _BranchDOP853
    status, message = Status.COMPLETED, ""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # said below in a sentence
            if oscillating:
                start = flow.start(start, memory)
            path = _Path(flow, start, budget)
            value = np.asarray(flow.field(start, path.branch))
    except FloatingPointError as error:
        raise ValueError(f"{type(flow).__name__}.field is not finite at theta0: {error}") from None
    except LeftRange as left:
        path, value = None, start
        status, message = Status.LEFT_RANGE, f"the flow does not exist at theta0: {left}"
    if value.shape != start.shape:
        raise ValueError(
            f"{type(flow).__name__}.field must return shape {start.shape}, got {value.shape}"
        )
    if not np.isfinite(value).all():
        raise ValueError(f"{type(flow).__name__}.field is not finite at theta0")

    kept: list[Array] = []
    t, y = 0.0, start.astype(complex) if flow.is_complex else start
    bar = tqdm(total=len(times), disable=not progress, desc="integrate", unit="time")
    with bar, np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for time in times:
            if path is None:
                if oscillating or time > 0:
                    break
            elif time > t:
                try:
                    result = solve_ivp(path, (t, time), y, method=solver, path=path, **options)
                except _Stop as stop:
                    status, message = stop.status, str(stop)
                    break
                except LeftRange as left:
                    status = Status.LEFT_RANGE
                    message = f"left its range at t = {path.t:.6g}: {left}"
                    break
                except _NotFinite as error:
                    status, message = Status.DIVERGED, f"diverged at t = {path.t:.6g}: {error}"
                    break
                if result.status != 0:
                    status = Status.STALLED
                    message = f"stalled at t = {path.t:.6g}: {result.message}"
                    break
                t, y = float(time), result.y[:, -1]
            theta = flow.centre(y) if oscillating else y
            try:
                recorder.take(problem, theta.real)
            except UndefinedLoss as error:
                if not kept:
                    raise ValueError(f"{error} at the first of times") from None
                status, message = Status.LEFT_RANGE, f"left its range at t = {time:.6g}: {error}"
                break
            kept.append(theta)
            if flow.is_complex:
                recorder.put("imaginary_norm", np.linalg.norm(theta.imag))
            if oscillating and path is not None:
                recorder.take_result("average", flow.averages(y, path.branch))
            bar.update()
    evaluations = 0 if path is None else path.evaluations
    if status is Status.COMPLETED:
        message = f"completed: {evaluations} field evaluations to t = {t:.6g}"
        if path is not None and path.chosen:
            message += (
                f". In {path.chosen} steps eigenvalues met on different branches: there the nearest "
                "was a choice, and the path after them may be another one's"
            )
    reached = times[: len(kept)]
    return Trajectory(
        t=reached.copy(),
        step=None if flow.lr is None else reached / flow.lr,
        theta=np.array(kept).reshape(len(kept), problem.dim),
        records=recorder.arrays(),
        status=status,
        message=message,
        settings={
            "flow": type(flow).__name__,
            "problem": type(problem).__name__,
            "lr": flow.lr,
            **({"method": flow.method} if hasattr(flow, "method") else {}),
            "evaluations": evaluations,
            "max_evaluations": budget,
            **options,
            "versions": versions(),
        },
    )
