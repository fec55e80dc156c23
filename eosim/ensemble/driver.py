"""The one loop over rules and batch sizes: which form computes each, and what they make together."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from eosim import measure
from eosim._checks import (
    Array,
    choice,
    float_array,
    integer,
    interface,
    real_number,
)
from eosim._recording import Recorder
from eosim._threads import available_threads
from eosim.discrete import run
from eosim.ensemble.linear import LinearEnsemble, regression_of
from eosim.ensemble.memory import is_plain, linear_memory
from eosim.ensemble.quadratic import QuadraticEnsemble
from eosim.ensemble.result import Cell, Ensemble
from eosim.optimizers import check_rule
from eosim.problems.base import Problem
from eosim.problems.quadratic_regression import QuadraticRegression
from eosim.sampling import SCHEMES, seed_sequence, stream_key
from eosim.trajectory import versions

METHODS = ("auto", "generic", "residual", "parameter")
_KEPT = ("theta", "residuals")


def run_ensemble(
    problem: Problem,
    rules: Any,
    theta0: Any,
    n_steps: int,
    *,
    batch_sizes: Any,
    n_replicas: int,
    seed: Any,
    sampling: str = "without_replacement",
    shared_batches: bool = True,
    residuals0: Any = None,
    record: Mapping[str, Callable[..., Any]] | None = None,
    every: int = 1,
    keep: Sequence[str] = (),
    method: str = "auto",
    storage: str = "float64",
    threads: int | None = None,
    progress: bool = False,
) -> Ensemble:
    r"""Run every rule at every batch size, ``n_replicas`` times each.

    Replica i of every cell is ``eosim.run(..., seed=SeedSequence(seed, spawn_key=(i,)))``: the same
    batches to the bit, whatever the number of replicas, and the same trajectory (to rounding where
    it is compiled).

    Parameters
    ----------
    problem : Problem
        What is minimised; a `FiniteSum` unless all batch sizes are None.
    rules : rule or sequence of rules
    theta0 : (dim,) or (n_replicas, dim) array-like
        One start for all replicas, or one each. None if ``residuals0`` is given.
    n_steps : int
    batch_sizes : int, None or a sequence of them
        B; None uses all samples.
    n_replicas : int
    seed : int, SeedSequence or Generator
        Replica i draws stream i of it: one more word i in its ``spawn_key``.
    sampling : str
        As in `eosim.run`.
    shared_batches : bool
        Whether all rules meet the same batches, which compares them pairwise with less noise. If not,
        replica i of rule r draws stream (i, r), ``SeedSequence(seed, spawn_key=(i, r))``, and the
        rules are independent. Batch sizes share a stream either way.
    residuals0 : (n_samples,) or (n_replicas, n_samples) array-like, optional
        Start from these residuals e = f - y instead of ``theta0``; for problems that are linear in
        theta, in residual space.
    record : mapping from names to measurements, optional
        As in `eosim.run`. {"loss": eosim.measure.loss} if None; anything else takes the generic path.
    every : int
        Steps between records; the start and the last step are always recorded.
    keep : sequence of str
        "theta", "residuals": final states to keep, for all replicas.
    method : str
        "generic" calls `eosim.run` for each replica. "residual" and "parameter" are compiled, for
        problems that are linear in theta and the rules of linear memory that eosim ships. "auto"
        takes the cheapest of them per step, for each batch size; see the notes.
    storage : str
        How residual space keeps K: "float64", or "float32", which halves the memory and what every
        step reads; see the notes.
    threads : int, optional
        Threads of the compiled paths; as many as there are processors if None. Changes no bit.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    Ensemble
        Diverged replicas are counted, with their step, and are part of no average in silence.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, before any work; the message names it.

    Notes
    -----
    Compiled are `LinearRegression` with one output, and models that hold one as their attribute
    ``regression``, as `RandomFeatures` does. With :math:`K = J J^\top` a step is
    :math:`z \leftarrow z - \frac{\eta}{B} K_{:S} z_S` on the residuals, at B n operations and with the
    loss for free ("residual"); or two products with the rows of the batch, at 2 B d, and n d for a
    loss ("parameter"). All samples at once are moved in the eigenbasis of K ("modal"), if there are
    enough steps to pay for it; replicas that cannot differ are then computed once. A frozen NTK is
    such a model, see `eosim.problems.frozen.frozen_ntk`.

    `QuadraticRegression` is compiled too: a mini-batch step reads each triangle of Q that some replica
    draws once ("triangles"), all samples take one matrix product per sample and block of replicas
    ("products"). Its own ``dtype`` says how Q is kept.

    Rules without momentum that share their batches read K together in residual space, with the same
    bits ("residual_shared"). ``settings["method"]`` holds the form of every rule at every batch size.

    Kept as float32, each entry of K is off by up to 6e-8 of its size and all arithmetic stays in
    float64: the run is that of a model whose NTK is so much another one. Measured after 3000 steps,
    the loss is off by 1e-7 to 1e-4 of itself, the more the nearer the edge.

    Residual space has no rounding error of its own where the loss tends to 0: there it goes on
    falling where `eosim.run`, which forms f - y anew at every step, stays near 1e-32 of its start.

    A replica has diverged when its state is non-finite or beyond `eosim.discrete.DIVERGENCE_FACTOR`
    times (1 + its size at the start). The state is theta and its size the largest entry, as in
    `eosim.run`; in residual space it is z and its Euclidean norm, which may pass its bound some steps
    sooner or later.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> from eosim.ensemble import run_ensemble
    >>> data = eosim.LinearRegression(np.eye(4) + 1, np.ones(4))
    >>> rules = [eosim.GradientDescent(0.1), eosim.GradientDescent(5.0)]
    >>> ensemble = run_ensemble(data, rules, np.zeros(4), 200, batch_sizes=[1, 2], n_replicas=3, seed=0)
    >>> ensemble.survivors[:, :, -1]
    array([[3, 3],
           [0, 0]])
    """
    interface("problem", problem, ("dim", "loss", "gradient"))
    n_steps = integer("n_steps", n_steps, minimum=0)
    every = integer("every", every, minimum=1)
    n_replicas = integer("n_replicas", n_replicas, minimum=1)
    sampling = choice("sampling", sampling, SCHEMES)
    method = choice("method", method, METHODS)
    storage = choice("storage", storage, ("float64", "float32"))
    if not isinstance(shared_batches, (bool, np.bool_)):
        raise TypeError(f"shared_batches must be True or False, got {shared_batches!r}")
    threads = available_threads() if threads is None else integer("threads", threads, minimum=1)
    rules, rates = _rules(rules)
    sizes = _batch_sizes(problem, batch_sizes)
    keep = _keep(problem, keep)
    Recorder(record)  # refuses what it cannot call
    regression = regression_of(problem)
    loss_alone = record is None or dict(record) == {"loss": measure.loss}
    quadratic = type(problem) is QuadraticRegression
    compiled = (regression is not None or quadratic) and loss_alone and method != "generic"
    memories = [linear_memory(rule) if compiled else None for rule in rules]
    if (None in memories or quadratic) and (
        method in ("residual", "parameter") or residuals0 is not None
    ):
        raise ValueError(
            f"{'residuals0' if residuals0 is not None else f'method {method!r}'} needs a problem that "
            "is linear in theta with one output, rules of linear memory of eosim.optimizers, no "
            f"record but the loss, and no method 'generic'; got {type(problem).__name__} with "
            f"{', '.join(type(rule).__name__ for rule in rules)}"
        )
    theta0, residuals0 = _starts(problem, theta0, residuals0, n_replicas, method, keep)
    root = _root(seed)
    streams = [
        [_stream(root, (i,) if shared_batches else (i, r)) for i in range(n_replicas)]
        for r in range(1 if shared_batches else len(rules))
    ]
    steps = np.unique([*range(0, n_steps + 1, every), n_steps])
    engine: Any = None
    if type(problem) is QuadraticRegression and compiled:
        engine = QuadraticEnsemble(problem, theta0, n_replicas, steps, sampling, keep, threads)
    elif regression is not None and compiled:
        engine = LinearEnsemble(
            regression, theta0, residuals0, n_replicas, steps, sampling, keep, threads, storage
        )

    problem_size = getattr(problem, "n_samples", None)
    keys = [np.array([stream_key(s) for s in own], dtype=np.uint64) for own in streams]
    cells: dict[tuple[int, int], Cell] = {}
    forms = [["generic"] * len(sizes) for _ in rules]
    bar = tqdm(
        total=len(rules) * len(sizes), disable=not progress, desc="run_ensemble", unit="cell"
    )
    with bar:
        for s, size in enumerate(sizes):
            drawn = None if size == problem_size and sampling == "without_replacement" else size
            form = "generic" if engine is None else engine.form(drawn, every, method)
            for r, memory in enumerate(memories):
                if memory is not None:
                    forms[r][s] = form
            if engine is not None and form == "residual" and shared_batches:
                plain = {r: memory[0] for r, memory in enumerate(memories) if is_plain(memory)}
                if len(plain) > 1:
                    found = engine.residual_shared(np.array([*plain.values()]), size, keys[0])
                    for r, cell in zip(plain, found, strict=True):
                        cells[r, s], forms[r][s] = cell, "residual_shared"
                        bar.update()
            for r, rule in enumerate(rules):
                stream = 0 if shared_batches else r
                if (r, s) in cells:
                    continue
                if forms[r][s] == "generic":
                    # With all samples and one start, a rule that draws nothing makes one path.
                    one = drawn is None and theta0.ndim == 1 and memories[r] is not None
                    starts = np.broadcast_to(theta0, (n_replicas, problem.dim))
                    cells[r, s] = _generic(
                        problem, rule, starts[: 1 if one else None], streams[stream], steps, keep,
                        batch_size=size, sampling=sampling, record=record, every=every,
                    )  # fmt: skip
                else:
                    cells[r, s] = getattr(engine, form)(memories[r], drawn, keys[stream])
                bar.update()
    ordered = [cells[r, s] for r in range(len(rules)) for s in range(len(sizes))]

    def grid(arrays: list[Any]) -> Array:
        """One array of the cells' arrays; cells whose replicas are all alike hold one of them."""
        whole = [np.broadcast_to(array, (n_replicas, *array.shape[1:])) for array in arrays]
        return np.stack(whole).reshape(len(rules), len(sizes), *whole[0].shape)

    stops = grid([cell.stops for cell in ordered])
    return Ensemble(
        rules=rules,
        batch_sizes=sizes,
        step=steps,
        t=None if rates is None else np.outer(rates, steps),
        records={
            name: grid([cell.records[name] for cell in ordered]) for name in ordered[0].records
        },
        stop_step=stops,
        final_theta=grid([cell.theta for cell in ordered]) if "theta" in keep else None,
        final_residuals=grid([cell.residuals for cell in ordered]) if "residuals" in keep else None,
        message=_message(stops, n_steps),
        settings={
            "problem": type(problem).__name__,
            "rules": [repr(rule) for rule in rules],
            "n_steps": n_steps,
            "batch_sizes": list(sizes),
            "n_replicas": n_replicas,
            "sampling": sampling,
            "seed": _words(root),
            "shared_batches": shared_batches,
            "every": every,
            "method": forms,
            "storage": storage,
            "versions": versions(),
        },
    )


def _generic(
    problem: Any,
    rule: Any,
    starts: Array,
    streams: list[np.random.SeedSequence],
    steps: Array,
    keep: tuple[str, ...],
    **options: Any,
) -> Cell:
    """`eosim.run` for every replica."""
    stops = np.full(len(starts), -1)
    records: dict[str, Array] = {}
    thetas, residuals = [], []
    for i, start in enumerate(starts):
        trajectory = run(
            problem, rule, start, int(steps[-1]), seed=streams[i], keep_theta=False, **options
        )
        assert trajectory.step is not None
        assert trajectory.final_state is not None
        # The last state of a diverged run is recorded too, but not at a step of all replicas.
        taken = np.isin(trajectory.step, steps)
        for name, values in trajectory.records.items():
            if name not in records:
                records[name] = np.full((len(starts), len(steps), *values.shape[1:]), np.inf)
            records[name][i, : taken.sum()] = values[taken]
        if trajectory.stop_step is not None:
            stops[i] = trajectory.stop_step
        theta = trajectory.final_state.theta
        if "theta" in keep:
            thetas.append(theta)
        if "residuals" in keep:
            residuals.append(problem.residuals(theta).ravel())
    return Cell(
        records,
        stops,
        np.array(thetas) if "theta" in keep else None,
        np.array(residuals) if "residuals" in keep else None,
    )


def _rules(rules: Any) -> tuple[tuple[Any, ...], list[float] | None]:
    """The rules, and their constant rates if all have one."""
    chosen = tuple(rules) if isinstance(rules, (list, tuple)) else (rules,)
    if not chosen:
        raise ValueError("rules must hold at least one rule, got none")
    for rule in chosen:
        check_rule(rule)
    if any(hasattr(rule, "step_size") for rule in chosen):
        return chosen, None
    return chosen, [
        real_number(f"{type(rule).__name__}: lr", getattr(rule, "lr", 1.0)) for rule in chosen
    ]


def _batch_sizes(problem: Any, batch_sizes: Any) -> tuple[int | None, ...]:
    chosen = (
        tuple(batch_sizes) if isinstance(batch_sizes, (list, tuple, range, np.ndarray))
        else (batch_sizes,)
    )  # fmt: skip
    if not chosen:
        raise ValueError("batch_sizes must hold at least one size or None, got none")
    sizes: list[int | None] = []
    for size in chosen:
        if size is not None:
            size = integer("batch_sizes", size, minimum=1)
            if not hasattr(problem, "n_samples"):
                raise TypeError(
                    "batch_sizes need a problem that is a mean over samples; "
                    f"{type(problem).__name__} has no n_samples. Pass batch_sizes=None for the full "
                    "gradient"
                )
            if size > problem.n_samples:
                raise ValueError(
                    f"batch_sizes must be at most n_samples = {problem.n_samples}, got {size}"
                )
        sizes.append(size)
    return tuple(sizes)


def _keep(problem: Any, keep: Any) -> tuple[str, ...]:
    if isinstance(keep, str):
        keep = (keep,)
    if not isinstance(keep, (list, tuple)):
        raise TypeError(f"keep must be a sequence of names, got {keep!r}")
    chosen = tuple(choice("keep", name, _KEPT) for name in keep)
    if "residuals" in chosen and not hasattr(problem, "residuals"):
        raise TypeError(
            f"keep: {type(problem).__name__} is no least squares and has no residuals to keep"
        )
    return chosen


def _starts(
    problem: Any,
    theta0: Any,
    residuals0: Any,
    n_replicas: int,
    method: str,
    keep: tuple[str, ...],
) -> tuple[Any, Any]:
    """theta0 or residuals0, checked: one row for all replicas, or one each."""
    if (theta0 is None) == (residuals0 is None):
        raise ValueError("exactly one of theta0 and residuals0 must be given, the other be None")
    if residuals0 is None:
        return _rows("theta0", theta0, n_replicas, problem.dim), None
    if method == "parameter" or "theta" in keep:
        wrong = "method='parameter'" if method == "parameter" else "'theta' in keep"
        raise ValueError(f"residuals0 must come without {wrong}: there is no theta to start from")
    return None, _rows("residuals0", residuals0, n_replicas, problem.n_samples)


def _rows(name: str, value: Any, n_replicas: int, length: int) -> Array:
    array = float_array(name, value)
    if array.shape not in ((length,), (n_replicas, length)):
        raise ValueError(
            f"{name} must have shape ({length},) or (n_replicas, {length}) = "
            f"({n_replicas}, {length}), got {array.shape}"
        )
    return array


def _root(seed: Any) -> np.random.SeedSequence:
    """The sequence of which replica i is stream i."""
    if isinstance(seed, (numbers.Integral, np.integer)) and not isinstance(seed, bool):
        return np.random.SeedSequence(integer("seed", seed, minimum=0))
    return seed_sequence(seed)


def _stream(root: np.random.SeedSequence, words: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence(
        root.entropy, spawn_key=(*root.spawn_key, *words), pool_size=root.pool_size
    )


def _words(root: np.random.SeedSequence) -> dict[str, Any]:
    """The seed as plain data."""
    entropy: Any = root.entropy  # an int, or a sequence of ints
    return {
        "entropy": [int(word) for word in entropy] if np.ndim(entropy) else int(entropy),
        "spawn_key": [int(word) for word in root.spawn_key],
    }


def _message(stops: Array, n_steps: int) -> str:
    diverged = stops >= 0
    if not diverged.any():
        return f"completed: all {stops.size} replicas made {n_steps} steps"
    return (
        f"diverged: {diverged.sum()} of {stops.size} replicas left their bound, or reached a loss of "
        f"nan, the first at step {stops[diverged].min()}. Averages named survivor_... leave them out "
        "from there on; median and quantile do not"
    )
