"""`predict`: averaged equations through time, as a `Trajectory`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from eosim._checks import Array, integer, interface
from eosim.moments.closures import DiagonalClosure, recorded_steps
from eosim.trajectory import Status, Trajectory, versions

# Our choice, as for discrete runs: beyond 1e30 times its start a second moment is on its way to infinity.
_DIVERGED = 1e30


class AveragedModel(Protocol):
    """What `predict` needs: ``march`` yields the records at each of the ascending steps."""

    @property
    def lr(self) -> float: ...

    def march(self, initial: Any, steps: Array) -> Iterator[dict[str, Any]]: ...


def predict(model: AveragedModel, initial: Any, n_steps: Any, *, every: int = 1) -> Trajectory:
    r"""Run averaged equations: E L after each step of SGD, at the clock t = step * lr.

    Parameters
    ----------
    model : Covariance, DiagonalClosure, HomogenizedSGD or StreamingSGD
        Or any object with ``lr`` and ``march(initial, steps)``.
    initial : array or Energies
        Residuals e_0 of shape (n,) or (n, n_outputs); `Covariance` also takes a second moment
        :math:`E[e_0 e_0^\top]`, the others also take `Energies` (random starts).
    n_steps : int or ascending array of int
        How far; or exactly the steps to record (log-spaced ones, say).
    every : int
        Steps between records if ``n_steps`` is an int; the last step is recorded too.

    Returns
    -------
    Trajectory
        Without theta. DIVERGED, with ``stop_step`` the first recorded step beyond, where the loss is
        non-finite or above 1e30 times its start; if that is the first step asked for, the start is
        the only record.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> model = eosim.moments.Covariance(np.diag([2.0, 1.0]), lr=0.5, batch_size=1)
    >>> eosim.predict(model, [1.0, 1.0], 2)["loss"]
    array([0.5   , 0.375 , 0.3125])
    """
    interface("model", model, ("lr", "march"))
    every = integer("every", every, minimum=1)
    asked = recorded_steps(n_steps, every)
    # The start is what a divergence is measured by.
    steps = asked if asked[0] == 0 else np.append(0, asked)
    settings = {"model": type(model).__name__, "lr": model.lr}
    if isinstance(model, DiagonalClosure):
        settings["method"] = model.method(steps)
    rows: list[dict[str, Any]] = []
    status, stop_step = Status.COMPLETED, None
    message = f"completed: averaged over {int(steps[-1])} steps"
    with np.errstate(over="ignore", invalid="ignore"):
        for step, row in zip(steps, model.march(initial, steps), strict=False):
            size = float(row["loss"])
            bound = _DIVERGED * (float(rows[0]["loss"]) if rows else math.inf)
            if rows and not size <= bound:
                status, stop_step = Status.DIVERGED, int(step)
                message = (
                    f"diverged: by step {stop_step} the expected loss is non-finite or exceeds "
                    f"{bound:.3g}; lower lr below eosim.stability.critical_lr"
                )
                break
            rows.append(row)
    first = 0 if asked[0] == 0 or len(rows) == 1 else 1
    steps, rows = steps[first : len(rows)], rows[first:]
    return Trajectory(
        t=steps * model.lr,
        step=steps,
        theta=None,
        records={name: np.array([row[name] for row in rows]) for name in rows[0]},
        status=status,
        message=message,
        stop_step=stop_step,
        settings={**settings, "versions": versions()},
    )
