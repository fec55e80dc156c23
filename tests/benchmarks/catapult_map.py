"""The map of the catapults over a million starts: a number of steps, and until each is judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from eosim import catapult
from eosim.catapult import Phase
from tests.benchmarks import Contest, Workload, installed

_SIDE = 1000
_GROWTH = 1 + 1e-9


def _grid(largest: float) -> tuple[np.ndarray, np.ndarray]:
    """Starts (a, w): a from 0.1 on, and residuals up to the largest possible, a / 2."""
    a = np.linspace(0.1, largest, _SIDE)[:, None]
    share = np.linspace(1e-3, 0.999, _SIDE)
    return tuple(x.ravel().copy() for x in np.broadcast_arrays(a, (a / 2 * share) ** 2))


def _numpy_factors(a: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    output = np.sqrt(w)
    u = (np.sqrt(a + 2 * output) + np.sqrt(a - 2 * output)) / 2
    return u, output / u


# A number of steps ------------------------------------------------------------------------------


def _numpy_iterate(a: np.ndarray, w: np.ndarray, n_steps: int, block: int) -> Any:
    """In place, a block in cache at a time; x' = x (c + x^2), c' = c + x^2 (c + 3), c = 1 - a."""
    eps, end = np.empty((2, len(a)))
    for first in range(0, len(a), block):
        x, c = np.sqrt(w[first : first + block]), 1 - a[first : first + block]
        square, factor = np.empty_like(x), np.empty_like(x)
        for _ in range(n_steps):
            np.multiply(x, x, out=square)
            np.add(c, square, out=factor)
            x *= factor
            np.add(c, 3, out=factor)
            factor *= square
            c += factor
        eps[first : first + block], end[first : first + block] = x, 1 - c
    return eps, end


def _jax_iterate(a: np.ndarray, w: np.ndarray, n_steps: int, unroll: int) -> Callable[[], Any]:
    """The same map; ``unroll`` steps of a scan at a time, or fori_loop if it is 0."""
    import jax
    from jax import lax
    from jax import numpy as jnp

    def step(state: Any) -> Any:
        x, c = state
        square = x * x
        return x * (c + square), c + square * (c + 3)

    @jax.jit
    def run(a: Any, w: Any) -> Any:
        start = (jnp.sqrt(w), 1 - a)
        if unroll:
            end, _ = lax.scan(lambda s, _: (step(s), None), start, length=n_steps, unroll=unroll)
        else:
            end = lax.fori_loop(0, n_steps, lambda _, s: step(s), start)
        return end[0], 1 - end[1]

    starts = jnp.array(a), jnp.array(w)
    return lambda: jax.block_until_ready(run(*starts))


def _jax_factors(a: np.ndarray, w: np.ndarray, n_steps: int, unroll: int) -> Callable[[], Any]:
    """Our own three operations per step, and our own blocks, in JAX."""
    import jax
    from jax import lax
    from jax import numpy as jnp

    def steps(start: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            u, v = state
            eps = u * v
            return (u - eps * v, v - eps * u), None

        return lax.scan(step, start, length=n_steps, unroll=unroll)[0]

    @jax.jit
    def run(a: Any, w: Any) -> Any:
        output = jnp.sqrt(w)
        u = (jnp.sqrt(a + 2 * output) + jnp.sqrt(a - 2 * output)) / 2
        u, v = lax.map(steps, (u.reshape(_SIDE, -1), (output / u).reshape(_SIDE, -1)))
        return (u * v).ravel(), (u * u + v * v).ravel()

    starts = jnp.array(a), jnp.array(w)
    return lambda: jax.block_until_ready(run(*starts))


def _same_states(ours: Any, peer: Any) -> bool:
    return all(np.allclose(x, y, rtol=1e-9, atol=1e-9) for x, y in zip(ours, peer, strict=True))


@njit(cache=True, nogil=True, fastmath={"contract"})
def _multiply_add(state, n_rounds):
    """Three fused operations per step on numbers that never leave the registers' reach."""
    u, v = state[0], state[1]
    for _ in range(n_rounds):
        for j in range(u.shape[0]):
            x, y = u[j], v[j]
            for _ in range(16):
                product = x * y
                x, y = x - product * y, y - product * x
            u[j], v[j] = x, y


def _arithmetic(n_steps: int) -> float:
    """CPU seconds of the multiply-adds alone: three a step, at the best rate of this core."""
    state, n_rounds = np.full((2, 128), 1e-3), 2000
    _multiply_add(state, 1)
    best = np.inf
    for _ in range(20):
        started = time.process_time()
        _multiply_add(state, n_rounds)
        best = min(best, (time.process_time() - started) / (n_rounds * 16 * 128))
    return best * n_steps


def _iterate(n_steps: int, given: str) -> Contest:
    # Up to 2.8: beyond, orbits multiply rounding errors, and answers could not be compared.
    a, w = _grid(2.8)
    jax = installed("jax")
    if given == "ours":
        peers = {
            f"JAX, ours, unrolled {k}": _jax_factors(a, w, n_steps, k) if jax else None
            for k in (4, 8, 20)
        }
    else:
        peers = {
            f"NumPy, blocks of {block}": lambda block=block: _numpy_iterate(a, w, n_steps, block)
            for block in (4096, 8192, 16384)
            if given == "numpy"
        }
        if given == "jax":
            peers["JAX, fori_loop"] = _jax_iterate(a, w, n_steps, 0) if jax else None
            for k in (4, 8, 20):
                peers[f"JAX, scan unrolled {k}"] = _jax_iterate(a, w, n_steps, k) if jax else None
    return Contest(
        lambda: catapult.iterate(a, w, n_steps=n_steps),
        peers,
        _same_states,
        lambda: _arithmetic(n_steps * len(a)),
    )


def _converged() -> Contest:
    """1000 steps of factors on their way from 1e-150 to 0, against 1000 steps from the start."""
    a = np.linspace(0.1, 1.9, 100_000)
    early, late = (a / 5) ** 2, np.full(len(a), 1e-300)
    return Contest(
        lambda: catapult.iterate(a, late, n_steps=1000),
        {"its first 1000 steps": lambda: catapult.iterate(a, early, n_steps=1000)},
        lambda *_: True,
    )


# Until each is judged ---------------------------------------------------------------------------


def _numpy_phases(
    a: np.ndarray, w: np.ndarray, max_steps: int, block: int, *, classes_only: bool
) -> Any:
    """A block in cache at a time, without the starts that are judged; for classes, every 8 steps."""
    u_start, v_start = _numpy_factors(a, w)
    phase, steps, peak_step = np.full((3, len(a)), int(Phase.BOUNDED))
    peak, end_a, end_w = np.empty((3, len(a)))
    every = 8 if classes_only else 1
    for first in range(0, len(a), block):
        u, v = u_start[first : first + block].copy(), v_start[first : first + block].copy()
        cells, grew = np.arange(first, first + len(u)), np.zeros(len(u), dtype=bool)
        eps = u * v
        w = eps * eps
        top, when, step = w.copy(), np.zeros(len(u), dtype=int), 0
        more, flag = np.empty_like(u), np.empty(len(u), dtype=bool)
        with np.errstate(over="ignore", invalid="ignore"):
            while True:
                diverged = ~(w <= 1e12)
                converged = w < 1e-26
                if converged.any():
                    converged &= u * u + v * v < 2
                done = diverged | converged
                if step == max_steps and not classes_only:
                    done[:] = True
                if done.any():
                    phase[cells[diverged]] = Phase.DIVERGED
                    phase[cells[converged]] = grew[converged]
                    if not classes_only:
                        at = cells[done]
                        steps[at], peak[at], peak_step[at] = step, top[done], when[done]
                        end_a[at], end_w[at] = u[done] ** 2 + v[done] ** 2, w[done]
                    left = ~done
                    u, v, w, eps, cells, grew, top, when = (
                        x[left] for x in (u, v, w, eps, cells, grew, top, when)
                    )
                    more, flag = more[: len(u)], flag[: len(u)]
                if step == max_steps or len(u) == 0:
                    break
                for _ in range(every):
                    np.multiply(w, _GROWTH, out=more)
                    np.multiply(eps, v, out=w)
                    np.multiply(eps, u, out=eps)
                    u -= w
                    v -= eps
                    np.multiply(u, v, out=eps)
                    np.multiply(eps, eps, out=w)
                    np.greater(w, more, out=flag)
                    grew |= flag
                    step += 1
                    if not classes_only:
                        np.greater(w, top, out=flag)
                        np.copyto(top, w, where=flag)
                        np.copyto(when, step, where=flag)
    return (phase,) if classes_only else (phase, steps, peak_step, peak, end_a, end_w)


def _jax_phases(
    a: np.ndarray, w: np.ndarray, max_steps: int, blocks: int, every: int, *, classes_only: bool
) -> Callable[[], Any]:
    """while_loop over a block until all of it is judged, and ``every`` steps at a time."""
    import jax
    from jax import lax
    from jax import numpy as jnp

    def undecided(u: Any, v: Any, w: Any) -> Any:
        return (w <= 1e12) & ~((w < 1e-26) & (u * u + v * v < 2))

    def phases(w: Any, grew: Any, live: Any) -> Any:
        ended = jnp.where(~(w <= 1e12), Phase.DIVERGED, jnp.where(grew, 1, 0))
        return jnp.where(live, Phase.BOUNDED, ended)

    def moving(state: Any) -> Any:
        return (state[0] < max_steps) & jnp.any(state[-1])

    def classes(start: Any) -> Any:
        def body(state: Any) -> Any:
            n, u, v, grew, _ = state
            eps = u * v
            w = eps * eps
            for _ in range(every):
                u, v = u - eps * v, v - eps * u
                eps = u * v
                before, w = w, eps * eps
                grew = grew | (w > before * _GROWTH)
            return n + every, u, v, grew, undecided(u, v, w)

        u, v = start
        no = jnp.zeros(u.shape, bool)
        _, u, v, grew, live = lax.while_loop(moving, body, (0, u, v, no, ~no))
        return (phases((u * v) ** 2, grew, live),)

    def diagram(start: Any) -> Any:
        def body(state: Any) -> Any:
            n, u, v, grew, top, when, steps, live = state
            eps = u * v
            w = eps * eps
            for _ in range(every):
                moved_u, moved_v = u - eps * v, v - eps * u
                u, v = jnp.where(live, moved_u, u), jnp.where(live, moved_v, v)
                steps = steps + live
                eps = u * v
                before, w = w, eps * eps
                grew = grew | (w > before * _GROWTH)
                when = jnp.where(w > top, steps, when)
                top = jnp.maximum(top, w)
                live = undecided(u, v, w)
            return n + every, u, v, grew, top, when, steps, live

        u, v = start
        w, zero = (u * v) ** 2, jnp.zeros(u.shape, int)
        state = (0, u, v, zero > 0, w, zero, zero, undecided(u, v, w))
        _, u, v, grew, top, when, steps, live = lax.while_loop(moving, body, state)
        w = (u * v) ** 2
        return phases(w, grew, live), steps, when, top, u * u + v * v, w

    @jax.jit
    def run(a: Any, w: Any) -> Any:
        output = jnp.sqrt(w)
        u = (jnp.sqrt(a + 2 * output) + jnp.sqrt(a - 2 * output)) / 2
        parts = u.reshape(blocks, -1), (output / u).reshape(blocks, -1)
        return [x.ravel() for x in lax.map(classes if classes_only else diagram, parts)]

    starts = jnp.array(a), jnp.array(w)
    return lambda: jax.block_until_ready(run(*starts))


def _same_verdicts(ours: Any, peer: Any) -> bool:
    """Equal phases everywhere, equal steps and peaks; numbers where errors are not multiplied."""
    phase, *rest = (np.asarray(x) for x in peer)
    if not np.array_equal(ours.phase, phase):
        return False
    if not rest:
        return True
    steps, peak_step, peak, end_a, end_w = rest
    tame = ours.a < 2.8
    return (
        np.array_equal(ours.steps, steps)
        and np.array_equal(ours.peak_step, peak_step)
        and np.allclose(ours.peak_w[tame], peak[tame], rtol=1e-9)
        and np.allclose(ours.final_a[tame], end_a[tame], rtol=1e-9)
        and np.allclose(ours.final_w[tame], end_w[tame], rtol=1e-6)
    )


def _phases(max_steps: int, *, classes_only: bool) -> Contest:
    a, w = _grid(5.0)
    peers: dict[str, Callable[[], Any] | None] = {
        f"NumPy, blocks of {block}": lambda block=block: _numpy_phases(
            a, w, max_steps, block, classes_only=classes_only
        )
        for block in (16384, 65536)
    }
    for blocks, every in ((1, 8), (1000, 4), (4000, 4), (4000, 8)):
        peers[f"JAX, {blocks} blocks, every {every}"] = (
            _jax_phases(a, w, max_steps, blocks, every, classes_only=classes_only)
            if installed("jax")
            else None
        )
    steps = catapult.phase_diagram(a, w, max_steps=max_steps).steps.sum()
    return Contest(
        lambda: catapult.phase_diagram(a, w, max_steps=max_steps),
        peers,
        _same_verdicts,
        lambda: _arithmetic(int(steps)),
    )


WORKLOADS: tuple[Workload, ...] = (
    Workload("map", "10^6 starts, 200 steps", 2.8, lambda: _iterate(200, "jax")),
    Workload("map-numpy", "10^6 starts, 200 steps", 10, lambda: _iterate(200, "numpy")),
    Workload("map-ours", "10^6 starts, 200 steps", 1.8, lambda: _iterate(200, "ours")),
    Workload("map-converged", "10^5 starts, 1000 steps", 0.67, _converged, price=True),
    Workload(
        "phases-200", "10^6 starts, <= 200 steps", 7, lambda: _phases(200, classes_only=False)
    ),
    Workload(
        "phases-1000", "10^6 starts, <= 1000 steps", 10, lambda: _phases(1000, classes_only=False)
    ),
    Workload(
        "classes-200", "10^6 starts, <= 200 steps", 1.2, lambda: _phases(200, classes_only=True)
    ),
    Workload(
        "classes-1000", "10^6 starts, <= 1000 steps", 3, lambda: _phases(1000, classes_only=True)
    ),
)
