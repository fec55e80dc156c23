"""Flows from many starts: compiled for the principal flow of polynomials of two parameters."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from tqdm import tqdm

from eosim._checks import (
    Array,
    Interval,
    choice,
    float_array,
    integer,
    interface,
    real_number,
)
from eosim._threads import available_threads
from eosim.flows.base import Flow, OscillatingFlow
from eosim.flows.driver import (
    DIVERGENCE_FACTOR,
    SHORTEST_RETRY,
    STALL_EVALUATIONS,
    integrate,
)
from eosim.flows.principal import PrincipalFlow
from eosim.problems.toys import Polynomial, Quadratic, Rosenbrock
from eosim.trajectory import Status, versions

METHODS = ("auto", "compiled", "generic")


@dataclass(frozen=True, eq=False)
class FlowEnsemble:
    """Paths of one flow from many starts.

    Attributes
    ----------
    t : (n_times,) array
    step : (n_times,) array or None
        t / lr; None for a flow that has no lr.
    theta : (n_starts, n_times, dim) array
        States, complex for complex flows. A path that ended early has NaN from its ``reached`` on:
        its arrays cannot be shorter than those of the others.
    reached : (n_starts,) array
        How many of the times each path reached.
    status : tuple of Status
        How each path ended, as in `eosim.integrate`.
    evaluations : (n_starts,) array
        Field evaluations of each path.
    message : str
        A sentence: what happened, and what to try.
    settings : dict
        What is needed to repeat the computation; ``settings["method"]`` says how it was done.
    """

    t: Array
    step: Array | None
    theta: Array
    reached: Array
    status: tuple[Status, ...]
    evaluations: Array
    message: str
    settings: dict[str, Any]

    @property
    def completed(self) -> Array:
        """Whether each path reached the last time, of shape (n_starts,)."""
        return self.reached == len(self.t)

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {status.name}" for status, n in _counts(self.status).items())
        return f"FlowEnsemble({counts}; {len(self.t)} times)\n  {self.message}"


def integrate_ensemble(
    flow: Flow | OscillatingFlow,
    starts: Any,
    times: Any,
    *,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    max_evaluations: int = 200_000,
    method: str = "auto",
    threads: int | None = None,
    progress: bool = False,
) -> FlowEnsemble:
    r"""Integrate a flow from every start at t = 0 and return the states at ``times``.

    Parameters
    ----------
    flow : Flow or OscillatingFlow
    starts : (n_starts, dim) array-like
    times : (n_times,) array-like
        Increasing, from 0 on.
    rtol, atol : float
        Tolerances of the solver, per step.
    max_evaluations : int
        Budget of field evaluations of each path.
    method : str
        "generic" calls `eosim.integrate` for each start. "compiled" is for `PrincipalFlow` without
        corrections on a `Polynomial`, `Quadratic` or `Rosenbrock` of two parameters. "auto" takes it
        where it exists.
    threads : int, optional
        Threads of the compiled form; as many as there are processors if None. Changes no bit.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    FlowEnsemble

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the field at a start is not finite.

    Notes
    -----
    The compiled form takes steps of order 5 (Dormand & Prince 1980) instead of 8, with the matrix
    function of a 2 x 2 Hessian in closed form, continued logarithms, and the statuses of
    `eosim.integrate`; both end within their tolerance of the same path. Where a real path turns
    complex at lr lambda = 1 there are two, conjugates of each other, and rounding chooses; where one
    form ends STALLED, the other may come through, since order 5 takes more evaluations per lr. A path
    is a function of its own start alone: neither the other starts nor threads change a bit of it.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> from eosim.flows.ensemble import integrate_ensemble
    >>> flow = eosim.PrincipalFlow(eosim.Quadratic(np.diag([1.8, 0.5])), lr=1.0)
    >>> paths = integrate_ensemble(flow, [[1.0, 1.0], [2.0, 0.0]], np.arange(3.0))
    >>> paths.theta.real.round(9)
    array([[[ 1.  ,  1.  ],
            [-0.8 ,  0.5 ],
            [ 0.64,  0.25]],
    <BLANKLINE>
           [[ 2.  ,  0.  ],
            [-1.6 ,  0.  ],
            [ 1.28,  0.  ]]])
    >>> paths.settings["method"]
    'compiled'
    """
    interface("flow", flow, ("problem", "field"))
    starts = float_array("starts", starts, shape=(None, flow.problem.dim))
    if len(starts) == 0:
        raise ValueError("starts must hold at least one start, got shape (0, dim)")
    times = float_array("times", times, shape=(None,))
    if len(times) == 0 or times[0] < 0 or (np.diff(times) <= 0).any():
        raise ValueError(
            f"times must be increasing, start at 0 or later and not be empty; got {times}"
        )
    # As in `eosim.integrate`: no tolerance below rounding, and none that makes 0 / 0.
    rtol = max(real_number("rtol", rtol, Interval(0, 1)), 100 * np.finfo(float).eps)
    atol = max(real_number("atol", atol, Interval(0, np.inf, lower_closed=True)), 1e-300)
    budget = integer("max_evaluations", max_evaluations, minimum=1)
    method = choice("method", method, METHODS)
    threads = available_threads() if threads is None else integer("threads", threads, minimum=1)
    terms = _polynomial_terms(flow)
    if terms is None and method == "compiled":
        raise ValueError(
            "method 'compiled' needs a PrincipalFlow without corrections, of method 'dense', on a "
            "Polynomial, Quadratic or Rosenbrock of two parameters; got "
            f"{type(flow).__name__} on {type(flow.problem).__name__} with dim = {flow.problem.dim}"
        )
    bar = tqdm(total=len(starts), disable=not progress, desc="integrate_ensemble", unit="start")
    with bar:
        if terms is None or method == "generic":
            method = "generic"
            paths = _generic(flow, starts, times, rtol, atol, budget, bar)
        else:
            method = "compiled"
            paths = _compiled(flow, terms, starts, times, rtol, atol, budget, threads, bar)
    return FlowEnsemble(
        t=times,
        step=None if flow.lr is None else times / flow.lr,
        theta=paths.theta,
        reached=paths.reached,
        status=paths.status,
        evaluations=paths.evaluations,
        message=_message(paths),
        settings={
            "flow": type(flow).__name__,
            "problem": type(flow.problem).__name__,
            "lr": flow.lr,
            "max_evaluations": budget,
            "rtol": rtol,
            "atol": atol,
            "method": method,
            "versions": versions(),
        },
    )


@dataclass(frozen=True)
class _Paths:
    """What either method finds; ``chosen`` says which paths met a branch that was a choice."""

    theta: Array
    reached: Array
    status: tuple[Status, ...]
    evaluations: Array
    chosen: Array


def _generic(
    flow: Any, starts: Array, times: Array, rtol: float, atol: float, budget: int, bar: Any
) -> _Paths:
    """`eosim.integrate` from every start."""
    dtype = complex if flow.is_complex else float
    theta = np.full((len(starts), len(times), flow.problem.dim), np.nan, dtype=dtype)
    statuses, reached, evaluations, chosen = [], [], [], []
    for i, start in enumerate(starts):
        try:
            path = integrate(
                flow, start, times, record={}, rtol=rtol, atol=atol, max_evaluations=budget
            )
        except ValueError as error:
            raise ValueError(f"starts[{i}]: {error}") from None
        theta[i, : len(path)] = path.theta
        statuses.append(path.status)
        reached.append(len(path))
        evaluations.append(path.settings["evaluations"])
        chosen.append("different branches" in path.message)
        bar.update()
    return _Paths(
        theta, np.array(reached), tuple(statuses), np.array(evaluations), np.array(chosen)
    )


def _compiled(
    flow: Any,
    terms: Mapping[tuple[int, int], float],
    starts: Array,
    times: Array,
    rtol: float,
    atol: float,
    budget: int,
    threads: int,
    bar: Any,
) -> _Paths:
    from eosim._kernels import principal as kernel

    statuses = {
        kernel.COMPLETED: Status.COMPLETED,
        kernel.DIVERGED: Status.DIVERGED,
        kernel.STALLED: Status.STALLED,
        kernel.STEP_TOO_SMALL: Status.STALLED,
        kernel.BUDGET_SPENT: Status.BUDGET_SPENT,
        kernel.LEFT_RANGE: Status.LEFT_RANGE,
    }
    coefficients, exponents, ends = _derivative_tables(terms)
    limits = np.array([budget, STALL_EVALUATIONS, DIVERGENCE_FACTOR, SHORTEST_RETRY])
    theta = np.full((len(starts), len(times), 2), np.nan, dtype=complex)
    summary = np.zeros((len(starts), 4))

    def integrate_chunk(chunk: slice) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # a status says so
            kernel.integrate(
                starts[chunk], times, flow.lr, coefficients, exponents, ends,
                exponents.max(initial=0), rtol, atol, limits, theta[chunk], summary[chunk],
            )  # fmt: skip
        bar.update(len(starts[chunk]))

    edges = np.linspace(0, len(starts), min(threads, len(starts)) + 1).astype(int).tolist()
    chunks = [slice(first, last) for first, last in pairwise(edges)]
    if len(chunks) == 1:
        integrate_chunk(chunks[0])
    else:
        with ThreadPoolExecutor(len(chunks)) as pool:
            list(pool.map(integrate_chunk, chunks))
    codes, reached, evaluations, chosen = summary.T.astype(int)
    if (codes == kernel.NO_START).any():
        i = int(np.argmax(codes == kernel.NO_START))
        raise ValueError(f"starts[{i}]: {type(flow).__name__}.field is not finite at {starts[i]}")
    return _Paths(
        theta, reached, tuple(statuses[code] for code in codes.tolist()), evaluations, chosen > 0
    )


def _polynomial_terms(flow: Any) -> Mapping[tuple[int, int], float] | None:
    """The loss as a polynomial of two parameters, where the compiled form knows the flow; or None.

    Subclasses may have other derivatives, and are not known.
    """
    if type(flow) is not PrincipalFlow or flow.corrections or flow.method != "dense":
        return None
    problem: Any = flow.problem
    if problem.dim != 2:
        return None
    if type(problem) is Polynomial:
        return problem.terms  # type: ignore[return-value]
    if type(problem) is Rosenbrock:
        s = problem.steepness
        return {(1, 0): -2, (2, 0): 1, (0, 2): s, (2, 1): -2 * s, (4, 0): s}
    if type(problem) is Quadratic:
        A = problem.hessian(problem.center)
        slope = A @ problem.center
        return {
            (2, 0): A[0, 0] / 2, (1, 1): A[0, 1], (0, 2): A[1, 1] / 2,
            (1, 0): -slope[0], (0, 1): -slope[1],
        }  # fmt: skip
    return None


def _derivative_tables(terms: Mapping[tuple[int, int], float]) -> tuple[Array, Array, Array]:
    """Coefficients and exponents of g_x, g_y, H_xx, H_xy, H_yy, and where each of them ends."""

    def derivative(
        terms: Mapping[tuple[int, int], float], axis: int
    ) -> dict[tuple[int, int], float]:
        return {
            (i - (axis == 0), j - (axis == 1)): (i, j)[axis] * c
            for (i, j), c in terms.items()
            if (i, j)[axis] > 0
        }

    gx, gy = derivative(terms, 0), derivative(terms, 1)
    tables = [gx, gy, derivative(gx, 0), derivative(gx, 1), derivative(gy, 1)]
    coefficients = [c for table in tables for c in table.values()]
    exponents = [powers for table in tables for powers in table]
    return (
        np.array(coefficients, dtype=float),
        np.array(exponents, dtype=np.int64).reshape(-1, 2),
        np.cumsum([len(table) for table in tables]),
    )


def _counts(statuses: tuple[Status, ...]) -> dict[Status, int]:
    return {status: statuses.count(status) for status in Status if status in statuses}


def _message(paths: _Paths) -> str:
    counts = _counts(paths.status)
    total = int(paths.evaluations.sum())
    if counts.keys() == {Status.COMPLETED}:
        message = f"completed: all {len(paths.status)} paths, with {total} field evaluations"
    else:
        first = next(i for i, s in enumerate(paths.status) if s is not Status.COMPLETED)
        listed = ", ".join(f"{n} {status.name}" for status, n in counts.items())
        message = (
            f"of {len(paths.status)} paths: {listed}. The first that ended early is that of start "
            f"{first} ({paths.status[first].value}); eosim.integrate from there says what to try"
        )
    if paths.chosen.any():
        message += (
            f". In {paths.chosen.sum()} paths eigenvalues met on different branches: there the nearest "
            "was a choice, and the path after them may be another one's"
        )
    return message
