r"""Exact reductions: gradient descent of wide nets in few variables, step by step.

Each reduction has ``start()``, a pure ``step(state)`` and ``observe(state)``; `simulate` runs any of
them. All are full-batch gradient descent with rate ``lr`` on :math:`L = \frac{1}{2D}\sum_a e_a^2`; the
NTK is divided by D, and ``ntk`` is its top eigenvalue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from eosim._checks import Array, Interval, float_array, integer, interface, real_number
from eosim.trajectory import Status, Trajectory

# A run beyond 1e12 of its first squared residual, and of 1, grows super-exponentially.
_DIVERGED = 1e12


class Reduction(Protocol):
    """What `simulate` needs."""

    @property
    def lr(self) -> float: ...

    def start(self) -> Any: ...

    def step(self, state: Any) -> Any: ...

    def observe(self, state: Any) -> dict[str, Any]:
        """Numbers and arrays to record; "loss" and "ntk" among them."""


def simulate(reduction: Reduction, n_steps: int) -> Trajectory:
    """Run a reduction; its observations become records, every step.

    Returns
    -------
    Trajectory
        Without theta; DIVERGED, with ``stop_step``, when the loss is non-finite or beyond 1e12
        times its start (and beyond 1e12).

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.
    """
    interface("reduction", reduction, ("lr", "start", "step", "observe"))
    n_steps = integer("n_steps", n_steps, minimum=0)
    state = reduction.start()
    rows = [reduction.observe(state)]
    bound = _DIVERGED * max(1.0, float(rows[0]["loss"]))
    status, message, stop_step = Status.COMPLETED, f"completed: {n_steps} steps made", None
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(1, n_steps + 1):
            state = reduction.step(state)
            row = reduction.observe(state)
            if not float(row["loss"]) <= bound:
                status, stop_step = Status.DIVERGED, step
                message = f"diverged: at step {step} the loss is non-finite or exceeds {bound:.3g}"
                break
            rows.append(row)
    steps = np.arange(len(rows))
    return Trajectory(
        t=steps * reduction.lr,
        step=steps,
        theta=None,
        records={name: np.array([row[name] for row in rows]) for name in rows[0]},
        status=status,
        message=message,
        stop_step=stop_step,
        settings={"reduction": type(reduction).__name__, "lr": reduction.lr, "n_steps": n_steps},
    )


@dataclass(frozen=True, eq=False)
class EigenbasisNet:
    r"""The pure quadratic model :math:`z = \frac\zeta2 \theta^\top\psi\theta` with one datum, any spectrum.

    In the eigenbasis of psi every squared coordinate moves by itself,
    :math:`\theta_j^2 \to \theta_j^2 (1 - \eta e \zeta\mu_j)^2`: O(N) per step.

    Parameters
    ----------
    squares : (N,) array-like
        :math:`\theta_j^2` at the start, in the eigenbasis.
    eigenvalues : (N,) array-like
        :math:`\mu_j` of psi.
    prefactor : float
        zeta.
    target : float
        y.
    lr : float

    Raises
    ------
    TypeError, ValueError
        If shapes differ, a square is negative, or lr is not positive.
    """

    squares: Any
    eigenvalues: Any
    prefactor: float
    target: float
    lr: float

    def __post_init__(self) -> None:
        squares = float_array("squares", self.squares, shape=(None,))
        eigenvalues = float_array("eigenvalues", self.eigenvalues, shape=squares.shape)
        if (squares < 0).any():
            raise ValueError(f"squares must not be negative, got {squares.min()!s}")
        object.__setattr__(self, "squares", squares)
        object.__setattr__(self, "eigenvalues", eigenvalues)
        object.__setattr__(self, "prefactor", real_number("prefactor", self.prefactor))
        object.__setattr__(self, "target", real_number("target", self.target))
        object.__setattr__(self, "lr", real_number("lr", self.lr, Interval(0, math.inf)))

    def start(self) -> Array:
        return self.squares

    def _residual(self, squares: Array) -> float:
        return self.prefactor / 2 * float(squares @ self.eigenvalues) - self.target

    def step(self, squares: Array) -> Array:
        move = self.lr * self._residual(squares) * self.prefactor
        return squares * (1 - move * self.eigenvalues) ** 2

    def observe(self, squares: Array) -> dict[str, Any]:
        residual = self._residual(squares)
        return {
            "output": residual + self.target,
            "loss": residual**2 / 2,
            "ntk": self.prefactor**2 * float(squares @ self.eigenvalues**2),
            "weight_norm": float(squares.sum()),
        }


@dataclass(frozen=True, eq=False)
class LinearNetMoments:
    r"""The two-layer linear net :math:`f_a = n^{-1/2} v^\top U x_a` with any data, without its width.

    Closed in :math:`S = |v|^2`, :math:`M = U^\top U` (d x d) and :math:`q = U^\top v`: with
    :math:`k = \eta/\sqrt n` and :math:`\zeta = \frac1D\sum_a e_a x_a`,

    .. math:: S' = S - 2k\,q\cdot\zeta + k^2 \zeta^\top M\zeta, \quad
              M' = M - k(q\zeta^\top + \zeta q^\top) + k^2 S\,\zeta\zeta^\top, \quad
              q' = q - k(M\zeta + S\zeta) + k^2 (q\cdot\zeta)\,\zeta

    O(d^2 + D d) per step at any width n.

    Parameters
    ----------
    inputs : (D, d) array-like
    targets : (D,) array-like
    hidden : (n, d) array-like
        U at the start.
    readout : (n,) array-like
        v at the start.
    lr : float

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, or lr is not positive.
    """

    inputs: Any
    targets: Any
    hidden: Any
    readout: Any
    lr: float

    def __post_init__(self) -> None:
        inputs = float_array("inputs", self.inputs, shape=(None, None))
        readout = float_array("readout", self.readout, shape=(None,))
        shape = (len(readout), inputs.shape[1])
        for name, value in (
            ("inputs", inputs),
            ("targets", float_array("targets", self.targets, shape=(len(inputs),))),
            ("hidden", float_array("hidden", self.hidden, shape=shape)),
            ("readout", readout),
            ("lr", real_number("lr", self.lr, Interval(0, math.inf))),
        ):
            object.__setattr__(self, name, value)

    @property
    def _root_width(self) -> float:
        return math.sqrt(len(self.readout))

    def start(self) -> tuple[float, Array, Array]:
        """(S, M, q)."""
        U, v = self.hidden, self.readout
        return float(v @ v), U.T @ U, U.T @ v

    def _residuals(self, q: Array) -> Array:
        return self.inputs @ q / self._root_width - self.targets

    def step(self, state: tuple[float, Array, Array]) -> tuple[float, Array, Array]:
        S, M, q = state
        k = self.lr / self._root_width
        zeta = self._residuals(q) @ self.inputs / len(self.inputs)  # (d,)
        along, image = float(q @ zeta), M @ zeta
        crossed = np.outer(q, zeta)
        return (
            S - 2 * k * along + k**2 * float(zeta @ image),
            M - k * (crossed + crossed.T) + k**2 * S * np.outer(zeta, zeta),
            q - k * (image + S * zeta) + k**2 * along * zeta,
        )

    def observe(self, state: tuple[float, Array, Array]) -> dict[str, Any]:
        S, M, q = state
        X, residuals = self.inputs, self._residuals(q)
        kernel = (S * X @ X.T + X @ M @ X.T) / (len(self.readout) * len(X))
        return {
            "output": residuals + self.targets,
            "loss": float(residuals @ residuals) / (2 * len(X)),
            # A diverging run may overflow here one step before its loss does.
            "ntk": float(np.linalg.eigvalsh(kernel)[-1]) if np.isfinite(kernel).all() else math.inf,
            "weight_norm": S + float(np.trace(M)),
        }


@dataclass(frozen=True, eq=False)
class NeuronNet:
    r"""A two-layer homogeneous net :math:`z = (nd)^{-1/2}\sum_i v_i\sigma(w_i\cdot x)` with one datum.

    The component of :math:`w_i` across x never moves; with :math:`p_i = w_i\cdot x/|x|`, s the slope at p
    and :math:`\bar e = \eta e|x|/\sqrt{nd}` each neuron does p' = p - e s v, v' = v - e s p: O(n) per step.

    Parameters
    ----------
    projections, readout : (n,) array-like
        p and v at the start.
    slopes : pair of floats
        Of sigma for positive arguments, and for the others: (1, 0) is ReLU.
    kappa : float
        :math:`|x|^2 / nd`, positive.
    target : float
        y.
    lr : float

    Raises
    ------
    TypeError, ValueError
        If shapes differ, or kappa or lr is not positive.
    """

    projections: Any
    readout: Any
    slopes: tuple[float, float]
    kappa: float
    target: float
    lr: float

    def __post_init__(self) -> None:
        projections = float_array("projections", self.projections, shape=(None,))
        positive = Interval(0, math.inf)
        up, down = (real_number("slopes", slope) for slope in self.slopes)
        for name, value in (
            ("projections", projections),
            ("readout", float_array("readout", self.readout, shape=projections.shape)),
            ("slopes", (up, down)),
            ("kappa", real_number("kappa", self.kappa, positive)),
            ("target", real_number("target", self.target)),
            ("lr", real_number("lr", self.lr, positive)),
        ):
            object.__setattr__(self, name, value)

    def start(self) -> tuple[Array, Array]:
        return self.projections, self.readout

    def _slopes(self, p: Array) -> Array:
        return np.where(p > 0, *self.slopes)

    def _output(self, p: Array, v: Array) -> float:
        return math.sqrt(self.kappa) * float(v @ (self._slopes(p) * p))

    def step(self, state: tuple[Array, Array]) -> tuple[Array, Array]:
        p, v = state
        move = self.lr * (self._output(p, v) - self.target) * math.sqrt(self.kappa)
        s = move * self._slopes(p)
        return p - s * v, v - s * p

    def observe(self, state: tuple[Array, Array]) -> dict[str, Any]:
        p, v = state
        output = self._output(p, v)
        return {
            "output": output,
            "loss": (output - self.target) ** 2 / 2,
            "ntk": self.kappa * float(np.sum(self._slopes(p) ** 2 * (p**2 + v**2))),
            "sparsity": float(np.mean(p < 0)),
        }


@dataclass(frozen=True)
class InfiniteReLU:
    r"""The two-layer ReLU net of infinite width with one datum and label 0: O(1) per step, exact.

    Alive neurons are a sector of the angles of :math:`(p_0, v_0)`: with running products
    :math:`\alpha = \prod(1-\epsilon_s),\ \beta = \prod(1+\epsilon_s)`, each has
    :math:`p = c p_0 + \sigma v_0,\ v = \sigma p_0 + c v_0` (c, sigma the half sum and difference), and it
    has lived while p > 0 throughout. Derived here; valid while c > 0 (a_0 up to about 3).

    Parameters
    ----------
    a : float
        :math:`\eta\lambda_0`, positive.
    eps : float
        Normalised residual to start with, by hand (an infinitely wide net starts at 0); not 0.

    Raises
    ------
    TypeError, ValueError
        If a is not positive, or eps is 0.
    """

    a: float
    eps: float = 1e-4

    lr = 1.0  # normalised

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", real_number("a", self.a, Interval(0, math.inf)))
        object.__setattr__(self, "eps", real_number("eps", self.eps))
        if self.eps == 0:
            raise ValueError("eps must not be 0: nothing would move")

    def start(self) -> tuple[float, float, float, float, float]:
        """alpha, beta, the extremes of sigma/c so far, and the residual."""
        return 1.0, 1.0, 0.0, 0.0, self.eps

    def _sector(self, low: float, high: float) -> tuple[float, float]:
        first = -math.atan2(1, high) if high > 0 else -math.pi / 2
        last = math.atan2(1, -low) if low < 0 else math.pi / 2
        return first, last

    def step(
        self, state: tuple[float, float, float, float, float]
    ) -> tuple[float, float, float, float, float]:
        alpha, beta, low, high, eps = state
        alpha, beta = alpha * (1 - eps), beta * (1 + eps)
        c, sigma = (alpha + beta) / 2, (alpha - beta) / 2
        ratio = sigma / c
        low, high = min(low, ratio), max(high, ratio)
        squares, product, _ = self._integrals(low, high)
        eps = self.a * (c * sigma * squares + (c**2 + sigma**2) * product)
        return alpha, beta, low, high, eps

    def _integrals(self, low: float, high: float) -> tuple[float, float, float]:
        """(1/pi) of the integrals of 1 and of sin cos over the sector, and its angle."""
        first, last = self._sector(low, high)
        product = (math.sin(last) ** 2 - math.sin(first) ** 2) / (2 * math.pi)
        return (last - first) / math.pi, product, last - first

    def observe(self, state: tuple[float, float, float, float, float]) -> dict[str, Any]:
        alpha, beta, low, high, eps = state
        c, sigma = (alpha + beta) / 2, (alpha - beta) / 2
        squares, product, angle = self._integrals(low, high)
        return {
            "output": eps,
            "loss": eps**2 / 2,
            "ntk": self.a * ((c**2 + sigma**2) * squares + 4 * c * sigma * product),
            "sparsity": 1 - angle / (2 * math.pi),
        }
