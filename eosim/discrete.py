"""Discrete time: one optimizer on one problem, as a `Trajectory`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from eosim._checks import Array, choice, integer, interface, real_number, state_vector
from eosim._recording import Recorder, UndefinedLoss
from eosim.optimizers import LocalRule, Rule, check_rule, needs_local
from eosim.problems.base import Problem
from eosim.sampling import SCHEMES, BatchStream, seed_sequence, stream_key
from eosim.trajectory import RunState, Status, Trajectory, versions

# Our choice: a catapult's peak stays below about sqrt(width / lr) and every flat direction of a
# bounded run stays near its start, while 1e30 times the start is 100 e-foldings of growth away.
DIVERGENCE_FACTOR = 1e30
# Seconds between two updates of the progress bar, each of which costs as much as a small step.
_UPDATE_SECONDS = 0.05


def run(
    problem: Problem,
    rule: Rule | LocalRule,
    theta0: Any,
    n_steps: int,
    *,
    batch_size: int | None = None,
    sampling: str = "without_replacement",
    seed: Any = None,
    state: RunState | None = None,
    record: Mapping[str, Callable[..., Any]] | None = None,
    every: int = 1,
    keep_theta: bool = True,
    stop_below: float | None = None,
    progress: bool = False,
) -> Trajectory:
    r"""Apply an update rule ``n_steps`` times.

    Parameters
    ----------
    problem : Problem
        What is minimised; a `FiniteSum` if ``batch_size`` is given.
    rule : Rule or LocalRule
        One of `eosim.optimizers`, or any object with ``init`` and a pure ``step``. Time t
        accumulates ``rule.step_size(state)`` where there is such a method, else ``rule.lr``, else
        counts steps.
    theta0 : (dim,) array-like
        Starting point; copied. None if ``state`` is given.
    n_steps : int
        Updates to make (from ``state``, if given).
    batch_size : int, optional
        B. None uses all samples at every step. B = n without replacement takes the same path as
        None, hence gives the same bits.
    sampling : str
        "without_replacement", "with_replacement", "bernoulli" (divides by B, so the gradient is
        unbiased) or "reshuffling"; see `eosim.sampling.BatchStream`.
    seed : int, SeedSequence or Generator, optional
        Of the batches. An int s is stream 0 of s; ``SeedSequence(s, spawn_key=(i,))`` is stream i.
        None draws a fresh seed; either way it is kept in ``settings``.
    state : RunState, optional
        ``trajectory.final_state`` of an earlier run: goes on exactly where it stopped, batches
        included.
    record : mapping from names to measurements, optional
        Functions f(problem, theta), which may ask for more by keyword-only name: ``rule``,
        ``state`` (the rule's), ``batch`` (of the update that led here; None where all samples
        were used and at the start). {"loss": eosim.measure.loss} if None; {} records nothing.
    every : int
        Steps between records; the start and the last state are always recorded.
    keep_theta : bool
        Whether to keep the states at the recorded steps.
    stop_below : float, optional
        Stop as CONVERGED at the first recorded state with a full-batch loss below this.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    Trajectory
        DIVERGED, with ``stop_step``, when a state is non-finite or its largest entry exceeds
        `DIVERGENCE_FACTOR` * (1 + max \|theta0\|); divergence is a result and raises nothing.
        LEFT_RANGE, with ``stop_step``, at a state whose recorded loss is NaN; the run can go on from
        the state recorded before.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, before any work; the message names it.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> bowl = eosim.Quadratic(np.diag([4.0, 1.0]))
    >>> eosim.run(bowl, eosim.GradientDescent(lr=0.49), [1.0, 1.0], 100)["loss"][-1] < 1e-3
    np.True_
    >>> eosim.run(bowl, eosim.GradientDescent(lr=0.6), [1.0, 1.0], 1000).status.name
    'DIVERGED'
    """
    interface("problem", problem, ("dim", "loss", "gradient"))
    check_rule(rule)
    n_steps = integer("n_steps", n_steps, minimum=0)
    every = integer("every", every, minimum=1)
    if stop_below is not None:
        stop_below = real_number("stop_below", stop_below)
    recorder = Recorder(record)
    state, fresh_seed = _start(problem, rule, theta0, state, seed, batch_size is not None)
    if batch_size is not None:
        batch_size = integer("batch_size", batch_size, minimum=1)
    stream = _stream(problem, batch_size, choice("sampling", sampling, SCHEMES), state)

    theta, rule_state, t = state.theta.copy(), state.rule_state, state.t
    bound = state.bound
    first, last = state.step, state.step + n_steps
    constant_lr = None
    if not hasattr(rule, "step_size"):
        constant_lr = real_number(f"{type(rule).__name__}: lr", getattr(rule, "lr", 1.0))
    # k updates at one rate are t = k * lr, not a sum that rounds: a resumed run keeps those bits.
    same_clock = constant_lr is not None and state.t == first * constant_lr
    t_origin, step_origin = (0.0, 0) if same_clock else (state.t, first)
    local_wanted = needs_local(rule)
    step_function: Callable[..., Any] = rule.step
    times, steps, thetas = [], [], []
    recorded = theta, rule_state, first, t  # the last state in the records

    def keep(step: int, batch: Array | None) -> bool:
        """Record the current state; whether its loss is below stop_below."""
        nonlocal recorded
        recorder.take(problem, theta, rule=rule, state=rule_state, batch=batch)
        recorded = theta, rule_state, step, t
        times.append(t)
        steps.append(step)
        if keep_theta:
            thetas.append(np.array(theta))
        return stop_below is not None and float(problem.loss(theta)) < stop_below

    status, stop_step, step, batch = Status.COMPLETED, None, first, None
    batches: Iterator[Any] = repeat(None) if stream is None else stream.batches(first, last)
    bar = tqdm(total=n_steps, disable=not progress, desc="run", unit="step")
    # Steps and time at the bar's last update, and steps until the next.
    shown, shown_at, stride = first, perf_counter(), 1
    update_at = first + stride if progress else last + 1
    with bar, np.errstate(over="ignore", invalid="ignore"):
        try:
            converged = keep(first, None)
        except UndefinedLoss as error:
            raise ValueError(f"{error} at the start") from None
        while step < last and not converged:
            batch = next(batches)
            gradient = _gradient(problem, theta, batch, stream)
            if step == first:
                _check_gradient(problem, gradient)
                if not np.array_equal(theta, state.theta):
                    raise ValueError(
                        f"{type(problem).__name__}.gradient changes its argument in place; work on "
                        "a copy"
                    )
            elif np.shape(gradient) != theta.shape:
                _check_gradient(problem, gradient)
            arguments: list[Any] = [theta, rule_state, gradient]
            if local_wanted:
                arguments.append(_Local(problem, theta, batch, stream))
            updated = step_function(*arguments)
            _check_step(rule, theta, updated)
            new_theta, new_rule_state = updated
            if not np.abs(new_theta).max() <= bound:  # NaN fails every comparison
                status, stop_step = Status.DIVERGED, step + 1
                break
            theta, rule_state, step = new_theta, new_rule_state, step + 1
            if constant_lr is None:
                t += float(rule.step_size(rule_state))  # type: ignore[union-attr]
            else:
                t = t_origin + (step - step_origin) * constant_lr
            if step >= update_at:
                bar.update(step - shown)
                quick = perf_counter() - shown_at < _UPDATE_SECONDS
                stride = 2 * stride if quick else max(1, stride // 2)
                shown, shown_at, update_at = step, perf_counter(), step + stride
            if (step - first) % every == 0 or step == last:
                try:
                    converged = keep(step, batch)
                except UndefinedLoss:
                    status, stop_step = Status.LEFT_RANGE, step
                    break
        bar.update(step - shown)
        if steps[-1] != step and status is Status.DIVERGED:
            with suppress(UndefinedLoss):
                converged = keep(step, batch)
        if steps[-1] != step:
            theta, rule_state, step, t = recorded
    if converged:
        status = Status.CONVERGED

    return Trajectory(
        t=np.array(times),
        step=np.array(steps),
        theta=np.array(thetas) if keep_theta else None,
        records=recorder.arrays(),
        status=status,
        message=_message(status, step, stop_step, bound, stop_below),
        stop_step=stop_step,
        final_state=RunState(np.array(theta), rule_state, step, t, bound, state.stream),
        settings={
            "problem": type(problem).__name__,
            "rule": repr(rule),
            "n_steps": n_steps,
            "first_step": first,
            "batch_size": batch_size,
            "sampling": None if batch_size is None else sampling,
            "seed": fresh_seed,
            "every": every,
            "stop_below": stop_below,
            "versions": versions(),
        },
    )


def _start(
    problem: Problem,
    rule: Rule | LocalRule,
    theta0: Any,
    state: RunState | None,
    seed: Any,
    random: bool,
) -> tuple[RunState, dict[str, Any] | None]:
    """The state to start from, and the seed as plain data (None if it is not needed or resumed)."""
    if state is not None and not isinstance(state, RunState):
        raise TypeError(
            f"state must be the final_state of a trajectory, got {type(state).__name__}"
        )
    if state is not None and theta0 is not None:
        raise ValueError("theta0 must be None when state is given: the state holds theta")
    if state is not None and state.theta.shape != (problem.dim,):
        raise ValueError(
            f"state.theta must have shape ({problem.dim},), got {state.theta.shape}: it comes from "
            "another problem"
        )
    if state is not None and not _fits(rule, state):
        raise ValueError(
            f"state holds the memory of another rule: {type(rule).__name__} keeps "
            f"{len(rule.init(state.theta))} entries, the state has {len(state.rule_state)}"
        )
    if state is not None and state.stream is not None and seed is not None:
        raise ValueError("seed must be None when state is given: the state's batch stream goes on")
    sequence = seed_sequence(seed)
    needs_stream = random and (state is None or state.stream is None)
    key = stream_key(sequence) if needs_stream else None
    words = None
    if needs_stream:
        entropy: Any = sequence.entropy  # an int, or a sequence of ints, perhaps of NumPy's
        words = {
            "entropy": [int(e) for e in entropy] if np.ndim(entropy) else int(entropy),
            "spawn_key": [int(word) for word in sequence.spawn_key],
        }
    if state is None:
        theta = state_vector("theta0", theta0, problem.dim)
        rule_state = rule.init(theta)
        if not isinstance(rule_state, tuple):
            raise TypeError(
                f"{type(rule).__name__}.init must return a tuple, got {type(rule_state).__name__}"
            )
        # The largest entry: squares, as in a Euclidean norm, overflow from 1e154 on.
        bound = DIVERGENCE_FACTOR * (1 + float(np.abs(theta).max()))
        return RunState(theta, rule_state, 0, 0.0, bound, key), words
    return (replace(state, stream=key) if needs_stream else state), words


def _fits(rule: Rule | LocalRule, state: RunState) -> bool:
    fresh = rule.init(state.theta)
    return len(fresh) == len(state.rule_state) and all(
        np.shape(a) == np.shape(b) for a, b in zip(fresh, state.rule_state, strict=True)
    )


def _stream(
    problem: Any, batch_size: int | None, sampling: str, state: RunState
) -> BatchStream | None:
    """The batches, or None for the full batch."""
    if batch_size is None:
        return None
    if not hasattr(problem, "n_samples"):
        raise TypeError(
            f"batch_size needs a problem that is a mean over samples; {type(problem).__name__} has "
            "no n_samples. Leave batch_size out for the full gradient"
        )
    if batch_size > problem.n_samples:
        raise ValueError(
            f"batch_size must be at most n_samples = {problem.n_samples}, got {batch_size}"
        )
    if batch_size == problem.n_samples and sampling == "without_replacement":
        return None
    assert state.stream is not None
    return BatchStream(problem.n_samples, batch_size, sampling, state.stream)


def _gradient(problem: Any, theta: Array, batch: Array | None, stream: BatchStream | None) -> Array:
    return _on_batch(problem.gradient, (theta,), batch, stream)


def _on_batch(
    function: Any, arguments: tuple[Array, ...], batch: Array | None, stream: BatchStream | None
) -> Array:
    """The batch estimate of a mean over samples."""
    if batch is None or stream is None:
        return function(*arguments)
    if stream.scheme == "bernoulli":  # divide by the nominal B, not by the random size
        if len(batch) == 0:
            return 0 * arguments[0]
        return function(*arguments, batch) * (len(batch) / stream.batch_size)
    return function(*arguments, batch)


@dataclass(frozen=True)
class _Local:
    """Derivatives on this step's batch, for rules that need more than the gradient."""

    problem: Any
    theta: Array
    batch: Array | None
    stream: BatchStream | None

    def gradient(self, theta: Array) -> Array:
        return _gradient(self.problem, theta, self.batch, self.stream)

    def hvp(self, v: Array) -> Array:
        return _on_batch(self.problem.hvp, (self.theta, v), self.batch, self.stream)


def _check_step(rule: Rule | LocalRule, theta: Array, updated: Any) -> None:
    name = type(rule).__name__
    if not isinstance(updated, tuple) or len(updated) != 2:
        raise TypeError(f"{name}.step must return (theta, state), got {type(updated).__name__}")
    if np.shape(updated[0]) != theta.shape:
        raise ValueError(
            f"{name}.step must return theta of shape {theta.shape}, got {np.shape(updated[0])}"
        )
    if np.iscomplexobj(updated[0]):
        raise TypeError(f"{name}.step must return a real theta, got a complex one")


def _check_gradient(problem: Problem, gradient: Any) -> None:
    shape = np.shape(gradient)
    if shape != (problem.dim,):
        raise ValueError(
            f"{type(problem).__name__}.gradient must return shape ({problem.dim},), got {shape}"
        )
    if not np.isfinite(gradient).all():
        raise ValueError(f"{type(problem).__name__}.gradient is not finite at the start")


def _message(
    status: Status, step: int, stop_step: int | None, bound: float, stop_below: float | None
) -> str:
    if status is Status.DIVERGED:
        return (
            f"diverged: at step {stop_step} the state is non-finite or an entry exceeds {bound:.3g}. "
            "Divergence is a result; for a bounded run, lower lr below "
            "critical_sharpness(rule) * lr / sharpness"
        )
    if status is Status.LEFT_RANGE:
        return (
            f"left its range: at step {stop_step} the loss is nan, though the state is finite. Lower lr, "
            "or look at the problem's loss there"
        )
    if status is Status.CONVERGED:
        return f"converged: the loss is below {stop_below:g} at step {step}"
    return f"completed: {step} steps made"
