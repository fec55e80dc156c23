r"""Odd or even? Runs of a small net on handwritten digits, at fixed rates and at rates that hold the noise.

The first 100 of scikit-learn's digits in file order, centred and scaled as a block, labels +1 (odd) and -1;
64-32-1 with tanh and square loss. One output and few samples: the exact noise kernel norm K then takes
milliseconds, and a run a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

import eosim
from eosim.stability import TangentKernel, noise_kernel_norm
from figures._headline import MissingPackage

# All our choice.
N_SAMPLES, N_HELD_OUT, HIDDEN = 100, 600, (32,)
N_STEPS, EVERY, NORM_EVERY = 1500, 100, 300
LATE = 5  # records, of the last third
# Of full batches there are runs at this rate only: at it they come to the edge.
SHOWN_RATE = 0.3
# The controlled runs: the norm is measured as often as runs are recorded. The target is our choice: 3/4
# does as well or little worse, 1/4 is slower.
TARGET = 0.5
CONTROLLED = (1, 4, 16)
TEN_RATE, TEN_BATCHES = 0.1, (1, 4, 16)
KINDS = ("exact", "delocalised", "trace")


def load(n_samples: int, n_held_out: int = 0) -> eosim.data.Dataset:
    """The digits in file order, centred and scaled as a block."""
    try:
        return eosim.data.digits(n_samples, centre=True, scale="block", n_held_out=n_held_out)
    except ImportError:
        raise MissingPackage(
            "it needs scikit-learn for its data, which is not installed; "
            'run: pip install -e ".[figures]"'
        ) from None


def parity_network() -> tuple[eosim.Perceptron, np.ndarray, np.ndarray]:
    """The net that tells odd digits (+1) from even ones (-1); inputs and targets held out."""
    data = load(N_SAMPLES, N_HELD_OUT)
    assert data.held_out is not None
    net = eosim.Perceptron(data.inputs, _parity(data.labels), HIDDEN)
    return net, data.held_out.inputs, _parity(data.held_out.labels)


def _parity(labels: np.ndarray) -> np.ndarray:
    return 2.0 * (labels % 2) - 1


def kernel_of(problem: Any, theta: np.ndarray) -> TangentKernel:
    """From the NTK: with many more parameters than residuals cheaper than singular values."""
    jacobian = problem.jacobian(theta)
    outputs = jacobian.shape[1]
    rows = jacobian.reshape(-1, problem.dim)
    return TangentKernel.from_matrix(rows @ rows.T / problem.n_samples, outputs)


@dataclass(frozen=True, eq=False)
class HeldNoise:
    """SGD at the rate at which the norm K has the value ``target``, measured every ``every`` steps.

    K is the "finite" one: of the spectrum alone, at most the exact one, and increasing in the rate. The
    state is the number of steps and the rate.
    """

    problem: Any
    batch_size: int
    target: float
    every: int

    def init(self, theta: np.ndarray) -> tuple[Any, ...]:
        return (0, 0.0)

    def step(
        self, theta: np.ndarray, state: tuple[Any, ...], gradient: np.ndarray
    ) -> tuple[np.ndarray, tuple[Any, ...]]:
        count, lr = state
        if count % self.every == 0:
            lr = self.rate(theta)
        return theta - lr * gradient, (count + 1, lr)

    def step_size(self, state: tuple[Any, ...]) -> float:
        return state[1]

    def rate(self, theta: np.ndarray) -> float:
        """Where K at theta is the target, up to 1: K runs from 0 to at least 1 at the edge."""
        spectrum = eosim.measure.ntk_spectrum(self.problem, theta)
        edge = 2 / spectrum.max()

        def excess(share: float) -> float:
            lr = share * edge
            return noise_kernel_norm(spectrum, lr, self.batch_size, kind="finite") - self.target

        inside = 1 - 1e-9
        if excess(inside) <= 0:  # one mode alone comes to 1 at the edge only
            return inside * edge
        return edge * brentq(excess, 1e-9, inside, xtol=1e-14, rtol=1e-14)


def _infinite(names: Sequence[str], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: np.full(shape, np.inf) for name in names}


def fixed_runs(
    net: Any, judge: Any, rates: Sequence[float], batches: Sequence[int], n_seeds: int
) -> dict[str, np.ndarray]:
    """(batch, rate, seed, record); ``longer_...``: late records of runs that cost as much as held ones."""
    shape, sparse = (len(batches), len(rates), n_seeds), NORM_EVERY // EVERY
    arrays = {"norm_step": np.arange(0, N_STEPS + 1, NORM_EVERY)}
    arrays |= _infinite(("top", *KINDS), (*shape, len(arrays["norm_step"])))
    arrays |= _infinite(("loss", "error"), (*shape, N_STEPS // EVERY + 1))
    arrays |= _infinite(("longer_loss", "longer_error"), (*shape, LATE))
    for at in np.ndindex(*shape):
        batch_size, rate = batches[at[0]], rates[at[1]]
        if batch_size == N_SAMPLES and rate != SHOWN_RATE:
            continue
        rule = eosim.GradientDescent(rate)
        path = _run(net, rule, at[2], batch_size, N_STEPS)
        if path.status is eosim.Status.DIVERGED:
            continue
        arrays["loss"][at], arrays["error"][at] = judge(path.theta)
        for k, theta in enumerate(path.theta[::sparse]):
            kernel = kernel_of(net, theta)
            arrays["top"][at][k] = rate * kernel.largest / 2
            for kind in KINDS:
                arrays[kind][at][k] = noise_kernel_norm(kernel, rate, batch_size, kind=kind)
        if batch_size in CONTROLLED:
            extra = extra_steps(batch_size)
            more = _run(net, rule, None, batch_size, extra, path.final_state)
            if more.status is not eosim.Status.DIVERGED:
                # Some of the late records may be of the first part.
                thetas = [*path.theta, *more.theta[1:]][-LATE:]
                arrays["longer_loss"][at], arrays["longer_error"][at] = judge(thetas)
    return arrays


def held_runs(net: Any, judge: Any, n_seeds: int) -> dict[str, np.ndarray]:
    """(controlled batch, seed, record) of runs that hold the target; the loss of those that hold 1."""
    shape, sparse = (len(CONTROLLED), n_seeds), NORM_EVERY // EVERY
    n_records = N_STEPS // EVERY + 1
    arrays = _infinite(("held_loss", "held_error", "edge_loss"), (*shape, n_records))
    names = ("held_rate", "held_exact", "held_finite")
    arrays |= _infinite(names, (*shape, (n_records - 1) // sparse + 1))
    for at in np.ndindex(*shape):
        batch_size = CONTROLLED[at[0]]
        edge = _run(net, HeldNoise(net, batch_size, 1.0, EVERY), at[1], batch_size, N_STEPS)
        if edge.status is not eosim.Status.DIVERGED:
            arrays["edge_loss"][at] = judge(edge.theta)[0]
        rule = HeldNoise(net, batch_size, TARGET, EVERY)
        path = _run(net, rule, at[1], batch_size, N_STEPS)
        if path.status is eosim.Status.DIVERGED:
            continue
        arrays["held_loss"][at], arrays["held_error"][at] = judge(path.theta)
        # The rates of the steps that led to a record, so that its norm shows how well it is held.
        rates = np.array([rule.rate(path.theta[0]), *path["rate"][1:]])[::sparse]
        arrays["held_rate"][at] = rates
        for k, (theta, rate) in enumerate(zip(path.theta[::sparse], rates, strict=True)):
            kernel = kernel_of(net, theta)
            for kind in ("exact", "finite"):
                norm = noise_kernel_norm(kernel, rate, batch_size, kind=kind)
                arrays[f"held_{kind}"][at][k] = norm
    return arrays


def extra_steps(batch_size: int) -> int:
    """Steps that cost as many gradients of a sample as the norm's measurements: n each, every so often."""
    return N_STEPS * N_SAMPLES // (batch_size * EVERY)


def _run(
    problem: Any, rule: Any, seed: int | None, batch_size: int, n_steps: int, state: Any = None
) -> eosim.Trajectory:
    return eosim.run(
        problem,
        rule,
        problem.initial(seed) if state is None else None,
        n_steps,
        batch_size=batch_size,
        seed=seed,
        state=state,
        record={"rate": _rate},
        every=EVERY,
    )


def _rate(problem: Any, theta: np.ndarray, *, rule: Any, state: Any) -> float:
    return rule.step_size(state) if isinstance(rule, HeldNoise) else rule.lr


def ten_outputs(n_samples: int) -> dict[str, np.ndarray]:
    """Norms at the end of nets with one output per class, by batch size."""
    data = load(n_samples)
    net = eosim.Perceptron(data.inputs, data.targets, HIDDEN)
    arrays = _infinite(("ten_top", *(f"ten_{kind}" for kind in KINDS)), (len(TEN_BATCHES),))
    for b, batch_size in enumerate(TEN_BATCHES):
        path = _run(net, eosim.GradientDescent(TEN_RATE), 0, batch_size, N_STEPS)
        if path.status is not eosim.Status.DIVERGED:
            kernel = kernel_of(net, path.theta[-1])
            arrays["ten_top"][b] = TEN_RATE * kernel.largest / 2
            for kind in KINDS:
                norm = noise_kernel_norm(kernel, TEN_RATE, batch_size, kind=kind)
                arrays[f"ten_{kind}"][b] = norm
    return arrays | {"ten_samples": np.array(n_samples)}
