r"""Exact reductions: gradient descent of wide nets in few variables, step by step.

Each reduction has ``start()``, a pure ``step(state)`` and ``observe(state)``; `simulate` runs any of
them. All are full-batch gradient descent with rate ``lr`` on :math:`L = \frac{1}{2D}\sum_a e_a^2`; the
NTK is divided by D, ``ntk`` is its top eigenvalue and ``weight_norm`` is :math:`|\theta|^2`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from eosim._checks import Array, Interval, dense_fits, float_array, integer, interface, real_number
from eosim._maps import bias_map
from eosim.trajectory import Status, Trajectory, versions

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
        settings={
            "reduction": type(reduction).__name__,
            "lr": reduction.lr,
            "n_steps": n_steps,
            "versions": versions(),
        },
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
class BiasNet:
    r"""The quadratic model with bias and one datum where :math:`\psi^2 = s^2 I`: O(1) per step.

    .. math:: z = \phi\cdot\theta_f + \tfrac\zeta2\, \theta_m^\top\psi\theta_m

    Closed in :math:`c = \phi\cdot\theta_f`, :math:`q = z - c` and
    :math:`h = \zeta^2\theta_m^\top\psi^2\theta_m` at any size of both parts (`bias_map`); the NTK is
    :math:`|\phi|^2 + h`. Observed besides: ``monotone_norm``, the quantity
    :math:`W = |\theta|^2 + (\phi\cdot\theta_f)^2/|\phi|^2` that a step changes by
    :math:`\eta e\,(\eta e\,(\lambda + |\phi|^2) - 4 z)` (Meltzer & Liu 2023, arXiv 2301.07737).

    Parameters
    ----------
    linear, quadratic, curved : float
        c, q and h at the start.
    flat : float
        :math:`|\phi|^2`, positive.
    kappa : float
        :math:`\zeta^2 s^2`, positive.
    target : float
        y.
    lr : float
    across : float
        Squared length of the part of :math:`\theta_f` across :math:`\phi`. It never moves, and only
        the two norms contain it.

    Raises
    ------
    TypeError, ValueError
        If flat, kappa or lr is not positive, across is negative, or the start is impossible:
        :math:`h \ge 2\sqrt\kappa\,|q|` always holds.

    Examples
    --------
    >>> from eosim.catapult.reductions import BiasNet, simulate
    >>> net = BiasNet(0.1, 0.0, 2.0, flat=0.5, kappa=0.01, target=0.0, lr=1.0)
    >>> run = simulate(net, 200)  # lr * ntk is 2.5 at the start
    >>> bool(run["loss"].max() > 100 * run["loss"][0]), bool(run["loss"][-1] < 1e-20)
    (True, True)
    """

    linear: float
    quadratic: float
    curved: float
    flat: float
    kappa: float
    target: float
    lr: float
    across: float = 0.0

    def __post_init__(self) -> None:
        positive = Interval(0, math.inf)
        for name, domain in (
            ("linear", Interval(-math.inf, math.inf)),
            ("quadratic", Interval(-math.inf, math.inf)),
            ("curved", Interval(0, math.inf, lower_closed=True)),
            ("flat", positive),
            ("kappa", positive),
            ("target", Interval(-math.inf, math.inf)),
            ("lr", positive),
            ("across", Interval(0, math.inf, lower_closed=True)),
        ):
            object.__setattr__(self, name, real_number(name, getattr(self, name), domain))
        least = 2 * math.sqrt(self.kappa) * abs(self.quadratic)
        if self.curved < least * (1 - 1e-12):  # a net of one part has equality, up to rounding
            raise ValueError(
                f"curved must be at least 2 sqrt(kappa) |quadratic| = {least}, got {self.curved}"
            )

    def start(self) -> tuple[float, float, float]:
        """(c, q, h)."""
        return self.linear, self.quadratic, self.curved

    def step(self, state: tuple[float, float, float]) -> tuple[float, float, float]:
        c, q, h = state
        return bias_map(c, q, h, c + q - self.target, self.lr, self.flat, self.kappa)

    def observe(self, state: tuple[float, float, float]) -> dict[str, Any]:
        c, q, h = state
        along = c**2 / self.flat
        norm = h / self.kappa + along + self.across
        return {
            "output": c + q,
            "loss": (c + q - self.target) ** 2 / 2,
            "ntk": self.flat + h,
            "weight_norm": norm,
            "monotone_norm": norm + along,
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
        dense_fits("M", (U.shape[1], U.shape[1]), "eosim.run of a TwoLayerNet does without")
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
        dense_fits("the NTK", (len(X), len(X)), "eosim.run of a TwoLayerNet does without")
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
    ``weight_norm`` is :math:`|p|^2 + |v|^2`, without what never moves.

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
        up, down = (float(slope) for slope in float_array("slopes", self.slopes, shape=(2,)))
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
            "weight_norm": float(p @ p + v @ v),
            "sparsity": float(np.mean(p < 0)),
        }


class _Sector(NamedTuple):
    """The living neurons: running products, ends of their angles; residual, weight norm."""

    alpha: float
    beta: float
    first: float
    last: float
    eps: float
    norm: float


@dataclass(frozen=True)
class InfiniteReLU:
    r"""The two-layer ReLU net of infinite width with one datum and label 0: O(1) per step, exact.

    With running products :math:`\alpha = \prod(1-\epsilon_s),\ \beta = \prod(1+\epsilon_s)` a neuron has
    :math:`p = c p_0 + \sigma v_0,\ v = \sigma p_0 + c v_0` (c, sigma the half sum and difference). It lives
    while p > 0: while the angles of :math:`(p_0, v_0)` and (c, sigma) are less than :math:`\pi/2` apart. So
    the living are a sector of angles, and each step can only cut it. Derived here.
    ``weight_norm`` is :math:`\eta\kappa(|p|^2 + |v|^2)`, the dead neurons included with the values they
    died with; it starts at 2 a_0, half of it silent from the beginning.

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

    def start(self) -> _Sector:
        return _Sector(1.0, 1.0, -math.pi / 2, math.pi / 2, self.eps, 2 * self.a)

    def step(self, state: _Sector) -> _Sector:
        eps = state.eps
        output, ntk = self._integrals(state)
        # Also of those that die in this step: they still make it.
        norm = state.norm + eps * (eps * ntk - 4 * output)
        alpha, beta = state.alpha * (1 - eps), state.beta * (1 + eps)
        angle = math.atan2(alpha - beta, alpha + beta)  # of (c, sigma)
        first = max(state.first, angle - math.pi / 2)
        last = max(first, min(state.last, angle + math.pi / 2))  # equal when all are dead
        moved = _Sector(alpha, beta, first, last, 0.0, norm)
        return moved._replace(eps=self._integrals(moved)[0])

    def _integrals(self, state: _Sector) -> tuple[float, float]:
        """Output and NTK of the living."""
        c, sigma = (state.alpha + state.beta) / 2, (state.alpha - state.beta) / 2
        # (1 / pi) of the integrals of 1 and of sin cos over the sector
        width = state.last - state.first
        one = width / math.pi
        product = math.sin(state.last + state.first) * math.sin(width) / (2 * math.pi)
        output = self.a * (c * sigma * one + (c**2 + sigma**2) * product)
        ntk = self.a * ((c**2 + sigma**2) * one + 4 * c * sigma * product)
        return output, ntk

    def observe(self, state: _Sector) -> dict[str, Any]:
        return {
            "output": state.eps,
            "loss": state.eps**2 / 2,
            "ntk": self._integrals(state)[1],
            "weight_norm": state.norm,
            "sparsity": 1 - (state.last - state.first) / (2 * math.pi),
        }
