"""Expected losses of delocalised modes: a Volterra equation whose memory is r exponentials."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import eigh

from eosim.moments import DiagonalClosure, Energies
from eosim.sampling import noise_factor
from tests.benchmarks import Call, Contest, Workload, installed
from tests.benchmarks.machine import product

_MODES, _BATCH_SIZE, _STEPS = 200, 10, 10_000


def _model(lr: float = 0.5) -> DiagonalClosure:
    spectrum = 1.0 / np.arange(1, _MODES + 1) ** 1.2
    return DiagonalClosure(spectrum, lr, _BATCH_SIZE, "delocalised")


def _recursion(model: DiagonalClosure) -> tuple[np.ndarray, np.ndarray]:
    """What a step keeps of each mode, and what it feeds each of the sum."""
    x = model.lr * model.kernel.eigenvalues
    return (1 - x) ** 2, noise_factor(_MODES, _BATCH_SIZE) * x**2


def _same(ours: Any, peer: Any) -> bool:
    return bool(np.allclose(ours, peer, rtol=1e-9, atol=0))


def _curve() -> Contest:
    """Every loss of 10,000 steps."""
    model, start = _model(), Energies(np.ones(_MODES))
    kept, feed = _recursion(model)

    def numpy_modes() -> np.ndarray:
        p, noise, totals = np.ones(_MODES), np.empty(_MODES), np.empty(_STEPS + 1)
        for t in range(_STEPS + 1):
            totals[t] = total = p.sum()
            np.multiply(feed, total, out=noise)
            np.multiply(p, kept, out=p)
            np.add(p, noise, out=p)
        return totals / (2 * _MODES)

    def numpy_sum() -> np.ndarray:
        """The equation itself: f_t + sum_{u < t} k_{t-1-u} s_u."""
        powers = np.exp(np.arange(_STEPS + 1)[:, None] * np.log(kept))
        totals, memory = powers.sum(1), powers[:-1] @ feed
        latest = memory[::-1].copy()
        for t in range(1, _STEPS + 1):
            totals[t] += latest[_STEPS - t :] @ totals[:t]
        return totals / (2 * _MODES)

    return Contest(
        lambda: model.losses(start, _STEPS),
        {
            "JAX, scan": _jax_modes(kept, feed) if installed("jax") else None,
            "NumPy, by modes": numpy_modes,
            "NumPy, direct sum": numpy_sum,
        },
        _same,
        # five multiplications and additions for each mode and step, as fast as those of a product
        lambda: product(200, 200, 200) * 5 * _MODES * _STEPS / (2 * 200**3),
    )


def _jax_modes(kept: np.ndarray, feed: np.ndarray) -> Call:
    import jax
    import jax.numpy as jnp

    def step(p: Any, _: None) -> tuple[Any, Any]:
        total = p.sum()
        return kept * p + feed * total, total

    march = jax.jit(lambda p: jax.lax.scan(step, p, None, length=_STEPS + 1)[1] / (2 * _MODES))
    start = jnp.ones(_MODES)
    return lambda: np.asarray(march(start).block_until_ready())


def _long() -> Contest:
    """A million steps against a hundred times ten thousand: nothing slows down as the loss decays."""
    model, start = _model(), Energies(np.ones(_MODES))
    losses = model.losses(start, 100 * _STEPS)
    if not 0 <= losses[-1] < 1e-250:
        raise AssertionError("the loss must decay into the subnormal numbers to show this")

    def short() -> np.ndarray:
        for _ in range(100):
            last = model.losses(start, _STEPS)
        return last

    return Contest(
        lambda: model.losses(start, 100 * _STEPS),
        {"100 times 10^4 steps": short},
        lambda ours, peer: bool((ours[: _STEPS + 1] == peer).all()),
    )


def _horizon(last: int) -> Contest:
    """200 log-spaced losses to any horizon, in units of one eigendecomposition."""
    model, start = _model(1e3 / last), Energies(np.ones(_MODES))
    steps = np.unique(np.geomspace(1, last, 1000).astype(np.int64))
    steps = steps[np.linspace(0, len(steps) - 1, 200).astype(int)]
    kept, feed = _recursion(model)
    matrix = np.diag(kept) + np.sqrt(feed[:, None] * feed)

    losses = model.losses(start, steps)
    if not (len(losses) == 200 and (np.diff(losses) < 0).all()):
        raise AssertionError("200 losses must decrease")
    # By another route: twice the rate for half as many steps changes the loss by O(lr)
    twice = _model(2e3 / last).losses(start, steps[-3:] // 2)
    if not np.allclose(losses[-3:], twice, rtol=2e4 / last, atol=0):
        raise AssertionError("the losses depend on lr, not on time alone")
    return Contest(
        lambda: model.losses(start, steps),
        {"one eigh": lambda: eigh(matrix)},
        lambda ours, peer: bool(np.array_equal(ours, losses)),
    )


WORKLOADS = (
    Workload("volterra", f"n {_MODES}, 10^4 steps", 2.5, _curve),
    Workload("volterra-long", f"n {_MODES}, 10^6 steps", 0.67, _long, 5, price=True),
    Workload(
        "volterra-horizon",
        f"n {_MODES}, 200 times to 10^6",
        1 / 3,
        lambda: _horizon(10**6),
        price=True,
    ),
    Workload(
        "volterra-far",
        f"n {_MODES}, 200 times to 10^12",
        1 / 3,
        lambda: _horizon(10**12),
        price=True,
    ),
)
