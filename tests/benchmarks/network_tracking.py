"""Training a network with its top Hessian eigenvalue tracked at every step, as it sharpens.

The network is 64-200-200-10 with tanh and square loss on the 1797 digits, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

import eosim
from eosim.measure import PreconditionedSharpness
from tests.benchmarks import Call, Contest, Workload, installed
from tests.benchmarks.machine import product

_HIDDEN = (200, 200)
_DESCENT = eosim.GradientDescent(0.1)
_ADAM = eosim.Adam(1e-3, beta2=0.99, eps=1e-7)
_BEFORE = 50  # steps without tracking: the first transient is over then
_STEPS, _FEW = 20, 4
# A tolerance of the residual; what is promised is the eigenvalue to 2e-3.
_TOLERANCE, _SEARCH_EVERY, _PROMISE = 1e-2, 20, 2e-3


@cache
def _problem() -> eosim.Perceptron:
    digits = eosim.data.digits(centre=True, scale="block")
    return eosim.Perceptron(digits.inputs, digits.targets, _HIDDEN)


def _tracker() -> PreconditionedSharpness:
    return PreconditionedSharpness(_TOLERANCE, sharpness=False, search_every=_SEARCH_EVERY)


@cache
def _start(rule: Any) -> eosim.RunState:
    problem = _problem()
    return _advanced(rule, None, _BEFORE, problem.initial(0))


def _advanced(rule: Any, state: Any, n_steps: int, theta: Any = None) -> eosim.RunState:
    run = eosim.run(_problem(), rule, theta, n_steps, state=state, record={}, every=n_steps)
    assert run.final_state is not None
    return run.final_state


class _Counting:
    """The problem with its Hessian-vector products counted."""

    def __init__(self, problem: Any) -> None:
        self.problem, self.products = problem, 0
        self.dim, self.loss, self.gradient = problem.dim, problem.loss, problem.gradient

    def hvp_at(self, theta: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        product = self.problem.hvp_at(theta)

        def counted(v: np.ndarray) -> np.ndarray:
            self.products += 1
            return product(v)

        return counted


def _tracked(problem: Any, rule: Any, n_steps: int) -> Call:
    """Each call goes on for so many steps with one tracker; the eigenvalues after every step."""
    tracker, state = _tracker(), _start(rule)

    def call() -> np.ndarray:
        nonlocal state
        run = eosim.run(
            problem, rule, None, n_steps, state=state, record={"edge": tracker}, keep_theta=False
        )
        assert run.final_state is not None
        state = run.final_state
        return run["edge.value"][1:]

    return call


def _accurate(rule: Any) -> bool:
    """Whether every fourth eigenvalue of 100 steps is that of a converged eigsh."""
    problem, start = _problem(), _start(rule)
    run = eosim.run(problem, rule, None, 100, state=start, record={"edge": _tracker()})
    vector = np.random.default_rng(0).standard_normal(problem.dim)
    state, errors = start, []
    for index in range(4, 101, 4):
        state = _advanced(rule, state, 4)
        P = rule.preconditioner(state.rule_state) if rule is _ADAM else np.array(1.0)
        value, vector = _converged(problem.hvp_at(state.theta), np.sqrt(P), vector)
        errors.append(abs(run["edge.value"][index] / value - 1))
    return max(errors) <= _PROMISE


def _converged(
    hessian: Callable[[np.ndarray], np.ndarray], root: np.ndarray, start: np.ndarray
) -> tuple[float, np.ndarray]:
    operator = _operator(lambda v: hessian(v / root) / root)
    values, vectors = eigsh(operator, 1, which="LA", v0=start, tol=1e-5)
    return values[0], vectors[:, 0]


def _operator(matvec: Callable[[np.ndarray], np.ndarray]) -> LinearOperator:
    dim = _problem().dim
    return LinearOperator((dim, dim), matvec=lambda v: matvec(v.ravel()), dtype=float)


# What the machine needs at least ------------------------------------------------------------------


def _layers() -> list[tuple[int, int]]:
    return _problem().shapes


def _gradient_products() -> float:
    """CPU seconds of the matrix products of a gradient: forward, weights, and back but for the inputs."""
    n = _problem().n_samples
    seconds = 0.0
    for index, (out, inner) in enumerate(_layers()):
        seconds += product(out, inner, n) + product(out, n, inner)
        seconds += product(inner - 1, out, n) if index else 0.0
    return seconds


def _hessian_products() -> float:
    """Those of one Hessian-vector product: a gradient's, and again all but what the inputs alone need."""
    n = _problem().n_samples
    first, *others = _layers()
    twice = sum(product(o, i, n) + product(o, n, i) + product(i - 1, o, n) for o, i in others)
    return product(*first, n) + product(first[0], n, first[1]) + 2 * twice


# In JAX and PyTorch -------------------------------------------------------------------------------


class _Jax:
    """The same network in JAX, as a problem of eosim; gradient and products from one linearisation.

    With ``linearised`` False, a gradient and a Hessian-vector product that are compiled by themselves.
    """

    def __init__(self, *, linearised: bool) -> None:
        import jax
        from jax import numpy as jnp

        problem = _problem()
        inputs, targets = jnp.array(problem.inputs), jnp.array(problem.targets)
        shapes, self.dim = problem.shapes, problem.dim
        ends = np.cumsum([out * inner for out, inner in shapes])

        def loss(theta: Any) -> Any:
            units = inputs
            for (out, inner), end in zip(shapes, ends, strict=True):
                layer = theta[end - out * inner : end].reshape(out, inner)
                units = units @ layer[:, :-1].T + layer[:, -1]
                units = jnp.tanh(units) if end < ends[-1] else units
            return jnp.sum((units - targets) ** 2) / (2 * len(targets))

        gradient = jax.grad(loss)
        self.descend = jax.jit(lambda theta: theta - _DESCENT.lr * gradient(theta))
        self._gradient = jax.jit(gradient)
        self._product = jax.jit(lambda theta, v: jax.jvp(gradient, (theta,), (v,))[1])
        self._linearise = jax.jit(lambda theta: jax.linearize(gradient, theta))
        self._apply = jax.jit(lambda linear, v: linear(v))
        self._jax, self._linearised, self.loss = jax, linearised, jax.jit(loss)
        self._at: np.ndarray | None = None
        self._last: Any = None

    def _here(self, theta: np.ndarray) -> Any:
        if self._at is None or not np.array_equal(self._at, theta):
            self._at, self._last = theta.copy(), self._linearise(theta)
        return self._last

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        return np.asarray(self._here(theta)[0] if self._linearised else self._gradient(theta))

    def hvp_at(self, theta: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        if self._linearised:
            linear = self._here(theta)[1]
            return lambda v: np.asarray(self._apply(linear, v))
        return lambda v: np.asarray(self._product(theta, v))


def _jax_eigsh() -> Call:
    """Gradient descent, with SciPy's eigsh as it is on a compiled product after every step."""
    network = _Jax(linearised=False)
    theta = _start(_DESCENT).theta

    def call() -> np.ndarray:
        nonlocal theta
        values = []
        for _ in range(_FEW):
            theta = theta - _DESCENT.lr * network.gradient(theta)
            operator = _operator(network.hvp_at(theta))
            values.append(eigsh(operator, 1, which="LA", return_eigenvectors=False)[0])
        return np.array(values)

    return call


def _repeated(step: Callable[[Any], Any], theta: Any) -> Call:
    """A step of gradient descent per call: no gradient is asked for twice at one point."""

    def call() -> np.ndarray:
        nonlocal theta
        theta = step(theta)
        return np.asarray(theta)

    return call


def _descend(theta: np.ndarray) -> np.ndarray:
    return theta - _DESCENT.lr * _problem().gradient(theta)


def _torch_descend() -> Callable[[np.ndarray], np.ndarray]:
    import torch

    torch.set_num_threads(1)
    problem = _problem()
    inputs, targets = (torch.tensor(np.array(x)) for x in (problem.inputs, problem.targets))

    def descend(theta: np.ndarray) -> np.ndarray:
        parameters = torch.tensor(theta, requires_grad=True)
        sizes = [out * inner for out, inner in problem.shapes]
        units = inputs
        for part, shape in zip(parameters.split(sizes), problem.shapes, strict=True):
            layer = part.reshape(shape)
            units = torch.addmm(layer[:, -1], units, layer[:, :-1].T)
            units = torch.tanh(units) if shape is not problem.shapes[-1] else units
        loss = ((units - targets) ** 2).sum() / (2 * len(targets))
        return theta - _DESCENT.lr * torch.autograd.grad(loss, parameters)[0].numpy()

    return descend


# Contests -----------------------------------------------------------------------------------------


def _close(tolerance: float) -> Callable[[Any, Any], bool]:
    return lambda ours, peer: bool(np.abs(ours / peer - 1).max() <= tolerance)


def _gradient() -> Contest:
    theta = _start(_DESCENT).theta
    peers = {
        "JAX": _repeated(_Jax(linearised=False).descend, theta) if installed("jax") else None,
        "PyTorch": _repeated(_torch_descend(), theta) if installed("torch") else None,
    }

    def agree(ours: np.ndarray, peer: np.ndarray) -> bool:
        return bool(np.abs(ours - peer).max() <= 1e-12)

    return Contest(_repeated(_descend, theta), peers, agree, _gradient_products)


def _own(rule: Any) -> Contest:
    """Tracked steps against nothing but their gradients."""
    problem, counted = _problem(), _Counting(_problem())
    _tracked(counted, rule, 100)()
    step = _repeated(_descend, _start(_DESCENT).theta)
    return Contest(
        _tracked(problem, rule, _STEPS),
        {"own gradients alone": lambda: [step() for _ in range(_STEPS)]},
        lambda ours, peer: _accurate(rule),
        lambda: (
            _STEPS * _gradient_products() + _STEPS * counted.products / 100 * _hessian_products()
        ),
    )


def _defaults() -> Contest:
    peer = _jax_eigsh() if installed("jax") else None
    return Contest(_tracked(_problem(), _DESCENT, _FEW), {"JAX, eigsh": peer}, _close(_PROMISE))


def _same() -> Contest:
    """The same tracker, hence as many products, on the network in JAX."""
    peers: dict[str, Call | None] = {
        name: _tracked(_Jax(linearised=linearised), _DESCENT, _STEPS) if installed("jax") else None
        for name, linearised in (("JAX, jvp of grad", False), ("JAX, linearize", True))
    }
    return Contest(_tracked(_problem(), _DESCENT, _STEPS), peers, _close(1e-9))


_SIZE = "n 1797, 64-200-200-10"
WORKLOADS = (
    Workload("network-gradient", _SIZE, 0.9, _gradient),
    Workload("tracking", f"{_SIZE}, GD", 0.2, lambda: _own(_DESCENT), price=True),
    Workload("tracking-adam", f"{_SIZE}, Adam", 0.2, lambda: _own(_ADAM), price=True),
    Workload("tracking-eigsh", f"{_SIZE}, GD", 8.0, _defaults),
    Workload("tracking-same", f"{_SIZE}, GD", 1.1, _same),
)
