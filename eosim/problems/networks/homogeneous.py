r"""Nets of piecewise linear units without biases: homogeneous in their weights.

Where no pre-activation is 0 such a net is a polynomial in theta, and its derivatives are those with
the gates (the slopes of the units) held constant. At a kink the slope is that of the negative side.
At complex points the gates are those of the real part of the pre-activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from eosim._checks import (
    PRODUCTS,
    SAMPLES,
    Array,
    choice,
    dense_fits,
    float_array,
    inexact,
    integer,
    point,
    seeded,
    state_vector,
)
from eosim.problems.networks._shared import (
    batch_rows,
    checked_data,
    checked_points,
    checked_prefactor,
    checked_slopes,
    slopes_at,
)
from eosim.problems.networks.deep import DeepHomogeneousNet


class _Lifted(NamedTuple):
    """A direction (A, b) in the space of (W, v) as the samples see it."""

    pre: Array  # X A^T, (batch, n)
    readout: Array  # b, (n,)


@dataclass(frozen=True)
class _Form:
    r"""The two-layer net at fixed gates: a quadratic form :math:`z_a = M_a(\theta,\theta)/2`.

    .. math:: M_a(t, r) = c \sum_i s_{ia} (b^t_i\, A^r_i\cdot x_a + b^r_i\, A^t_i\cdot x_a)

    Everything about the net and its frozen twin is written in M and its gradient.
    """

    inputs: Array  # X, (batch, d)
    gates: Array  # s, (batch, n), or (1, 1) where all slopes are equal
    prefactor: float  # c

    def pair(self, t: _Lifted, r: _Lifted) -> Array:
        """M(t, r), of shape (batch,)."""
        total = (self.gates * t.pre) @ r.readout + (self.gates * r.pre) @ t.readout
        return self.prefactor * total

    def pull(self, weights: Array, t: _Lifted) -> Array:
        """The gradient of sum_a weights_a M_a(t, r) in r, of shape (dim,)."""
        gated = self.gates * weights[:, None]
        hidden = t.readout[:, None] * (gated.T @ self.inputs)  # (n, d)
        readout = np.sum(gated * t.pre, axis=0)  # (n,)
        return self.prefactor * np.concatenate([hidden.ravel(), readout])

    def jacobian(self, t: _Lifted) -> Array:
        """The gradients of all M_a(t, r) in r, of shape (batch, dim)."""
        hidden = (self.gates * t.readout)[:, :, None] * self.inputs[:, None, :]  # (batch, n, d)
        rows = [hidden.reshape(len(self.inputs), -1), self.gates * t.pre]
        return self.prefactor * np.hstack(rows)

    def kernel(self, t: _Lifted) -> Array:
        """jacobian(t) @ jacobian(t).T without the Jacobian, of shape (batch, batch)."""
        dense_fits("the NTK", (len(self.inputs), len(self.inputs)), SAMPLES)
        units, back = self.gates * t.pre, self.gates * t.readout
        gram = self.inputs @ self.inputs.T
        return self.prefactor**2 * (units @ units.T + gram * (back @ back.T))


class _TwoLayer:
    """What the two-layer net shares with its frozen twin: all but the gates."""

    inputs: Any
    targets: Any
    width: Any
    slopes: Any
    prefactor: Any

    n_outputs = 1

    @property
    def n_samples(self) -> int:
        return len(self.inputs)

    @property
    def dim(self) -> int:
        return self.width * (int(self.inputs.shape[1]) + 1)

    def _gates(self, pre: Array, batch: Array | None) -> Array:
        raise NotImplementedError

    def residuals(self, theta: Array, batch: Array | None = None) -> Array:
        """e = z - y, of shape (batch, 1)."""
        return self._model(theta, batch)[2][:, None]

    def loss(self, theta: Array, batch: Array | None = None) -> Any:
        residuals = self._model(theta, batch)[2]
        return residuals @ residuals / (2 * len(residuals))  # bilinear: no conjugation

    def gradient(self, theta: Array, batch: Array | None = None) -> Array:
        form, lifted, residuals = self._model(theta, batch)
        return form.pull(residuals / len(residuals), lifted)

    def hvp(self, theta: Array, v: Array, batch: Array | None = None) -> Array:
        form, lifted, residuals = self._model(theta, batch)
        moved, n = self._lift(v, form.inputs), len(residuals)
        return form.pull(form.pair(lifted, moved) / n, lifted) + form.pull(residuals / n, moved)

    def hessian(self, theta: Array, batch: Array | None = None) -> Array:
        """(dim, dim): for small nets only."""
        dense_fits("the Hessian", (self.dim, self.dim), PRODUCTS)
        form, lifted, residuals = self._model(theta, batch)
        jacobian = form.jacobian(lifted)
        matrix = jacobian.T @ jacobian
        # the only second derivatives of z couple a unit's weights with its own readout
        gated = form.gates * residuals[:, None]
        coupling = form.prefactor * (gated.T @ form.inputs)  # (n, d), or (1, d)
        d = form.inputs.shape[1]
        hidden = np.arange(self.width * d)
        readout = self.width * d + hidden // d
        values = np.broadcast_to(coupling, (self.width, d)).ravel()
        matrix[hidden, readout] += values
        matrix[readout, hidden] += values
        return (matrix + matrix.T) / (2 * len(residuals))

    def jacobian(self, theta: Array, batch: Array | None = None) -> Array:
        """dz/dtheta, of shape (batch, 1, dim): 8 batch n (d + 1) bytes, on demand only."""
        form, lifted, _ = self._model(theta, batch)
        dense_fits("the Jacobian", (len(form.inputs), 1, self.dim), SAMPLES)
        return form.jacobian(lifted)[:, None, :]

    def third_derivative(self, theta: Array, a: Array, b: Array) -> Array:
        form, lifted, _ = self._model(theta, None)
        on_a, on_b = self._lift(a, form.inputs), self._lift(b, form.inputs)
        total = form.pull(form.pair(lifted, on_b), on_a) + form.pull(form.pair(lifted, on_a), on_b)
        return (total + form.pull(form.pair(on_a, on_b), lifted)) / self.n_samples

    def ntk(self, theta: Array) -> Array:
        r"""J J^T / D, of shape (D, D), without the Jacobian.

        .. math:: \frac{c^2}{D} \left[\sigma_a\cdot\sigma_b
                  + (x_a\cdot x_b) \sum_i v_i^2\, \sigma'_{ia}\sigma'_{ib}\right]
        """
        form, lifted, _ = self._model(theta, None)
        return form.kernel(lifted) / self.n_samples

    def ntk_bound(self, theta: Array, kind: str = "norm") -> float:
        r"""B(theta) such that gradient descent on zero targets converges for lr < 4 / B(theta_0).

        Both kinds are PROVED (equation numbers of a draft of Meltzer & Liu 2023):

        - "norm": :math:`c^2 \max(a_\pm^2)\, \lambda_{\max}(X X^\top/D)\, |\theta|^2` (180, for inputs
          of any dimension) bounds the NTK from above at every theta; :math:`|\theta|` falls with
          every step while lr B < 4. With targets, until L falls below
          :math:`8\,\mathrm{mean}(y^2)/(4 - \eta B)^2`.
        - "active": the NTK itself, for one sample and a slope 0 (124, 130): units only ever die, and
          the live ones are a linear net.

        Raises
        ------
        ValueError
            If the kind is unknown, or "active" is asked for with several samples or without slope 0.
        """
        theta = state_vector("theta", theta, self.dim)
        kind = choice("kind", kind, ("norm", "active"))
        if kind == "active":
            if self.n_samples > 1 or 0.0 not in self.slopes:
                raise ValueError(
                    'kind "active" needs one sample and a slope 0; take "norm" for n_samples = '
                    f"{self.n_samples} and slopes = {self.slopes}"
                )
            return float(self.ntk(theta)[0, 0])
        slope = max(abs(a) for a in self.slopes)
        scale = self.prefactor * slope * float(np.linalg.norm(self.inputs, 2))
        return scale**2 / self.n_samples * float(theta @ theta)

    def _split(self, theta: Array) -> tuple[Array, Array]:
        """W (n, d) and v (n,)."""
        size, theta = self.width * self.inputs.shape[1], inexact(theta)
        return theta[:size].reshape(self.width, -1), theta[size:]

    def _lift(self, theta: Array, inputs: Array) -> _Lifted:
        hidden, readout = self._split(theta)
        return _Lifted(inputs @ hidden.T, readout)

    def _model(self, theta: Array, batch: Array | None) -> tuple[_Form, _Lifted, Array]:
        """The form at the gates, theta as the samples see it, and the residuals (batch,)."""
        inputs, targets = batch_rows(self.inputs, self.targets, batch)
        lifted = self._lift(theta, inputs)
        form = _Form(inputs, self._gates(lifted.pre, batch), self.prefactor)
        return form, lifted, form.pair(lifted, lifted) / 2 - targets[:, 0]


@dataclass(frozen=True, eq=False)
class TwoLayerNet(_TwoLayer):
    r""":math:`L = \frac{1}{2D} \sum_a (z(x_a) - y_a)^2`, z homogeneous of degree two in theta.

    .. math:: z(x) = c \sum_{i=1}^n v_i\, \sigma(w_i \cdot x), \qquad
              \sigma(t) = a_+ t \ (t > 0), \quad a_- t \ (t \le 0)

    Parameters
    ----------
    inputs : (D, d) array-like
    targets : (D,) or (D, 1) array-like
    width : int
        n.
    slopes : (float, float)
        :math:`(a_+, a_-)`: (1, 0) is ReLU, (1, 1/2) a leaky one, (1, 1) the linear net.
    prefactor : float, optional
        c > 0; :math:`(nd)^{-1/2}` if None (Meltzer & Liu 2023, arXiv 2301.07737). `uv_net` has
        :math:`n^{-1/2}`.

    Notes
    -----
    theta holds W (n, d) row by row, then v (n). The derivative of :math:`\sigma` at 0 is :math:`a_-`:
    a dead ReLU unit stays dead. Derivatives are exact away from the kinks; only the linear net is
    analytic. The largest temporaries are (D, n) and (n, d), so that 1e5 units are cheap.

    Raises
    ------
    TypeError, ValueError
        If the data are empty, not finite or of different lengths, the width is no positive integer,
        the slopes are not two finite numbers (not both 0), or the prefactor is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from eosim.problems.networks.homogeneous import TwoLayerNet
    >>> net = TwoLayerNet([[1.0]], [0.0], width=2, prefactor=1.0)  # ReLU
    >>> net.gradient(np.array([2.0, -1.0, 3.0, 5.0]))  # the second unit is dead
    array([18.,  0., 12.,  0.])
    """

    inputs: Any
    targets: Any
    width: int
    slopes: Any = (1.0, 0.0)
    prefactor: Any = None

    def __post_init__(self) -> None:
        inputs, targets = checked_data(self.inputs, self.targets)
        width = integer("width", self.width, minimum=1)
        default = (width * inputs.shape[1]) ** -0.5
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "width", width)
        object.__setattr__(self, "slopes", checked_slopes(self.slopes))
        object.__setattr__(self, "prefactor", checked_prefactor(self.prefactor, default))

    @property
    def analytic(self) -> bool:
        return bool(self.slopes[0] == self.slopes[1])

    def initial(self, seed: Any = 0) -> Array:
        """All weights N(0, 1): W (n, d), then v, from ``numpy.random.default_rng(seed)``."""
        return seeded(seed).standard_normal(self.dim)

    def pre_activations(self, theta: Array, inputs: Any = None) -> list[Array]:
        """[X W^T], the (D, n) pre-activations at ``inputs`` (D, d), the training inputs if None."""
        return [self._lift(theta, checked_points(inputs, self.inputs)).pre]

    def outputs(self, theta: Array, inputs: Any = None) -> Array:
        """z at ``inputs`` (D, d), the training inputs if None; shape (D, 1)."""
        (pre,) = self.pre_activations(theta, inputs)
        units = slopes_at(pre, self.slopes) * pre
        return self.prefactor * (units @ self._split(theta)[1])[:, None]

    def frozen(self, theta0: Any) -> FrozenGates:
        """The neural quadratic model: this net expanded to second order at theta0."""
        return FrozenGates(self, theta0)

    def _gates(self, pre: Array, batch: Array | None) -> Array:
        return slopes_at(pre, self.slopes)


@dataclass(frozen=True, eq=False)
class FrozenGates(_TwoLayer):
    r""":math:`L = \frac{1}{2D} \sum_a (z_a - y_a)^2`: a two-layer net whose gates stay as at theta0.

    .. math:: z(x) = c \sum_i v_i\, \sigma'(w^0_i\cdot x)\, w_i \cdot x

    Parameters
    ----------
    net : TwoLayerNet
    theta0 : (dim,) array-like
        Where the gates are taken.

    Notes
    -----
    This is exactly the second-order Taylor expansion of the net at theta0 in all its weights, the
    neural quadratic model of Zhu et al. (2022), arXiv 2205.11787. It is polynomial in theta, hence
    analytic. theta, batches and derivatives are those of `TwoLayerNet`.

    Raises
    ------
    TypeError, ValueError
        If net is no `TwoLayerNet`, or theta0 has the wrong length or entries that are not finite.
    """

    net: TwoLayerNet
    theta0: Any

    analytic = True

    def __post_init__(self) -> None:
        if not isinstance(self.net, TwoLayerNet):
            raise TypeError(f"net must be a TwoLayerNet, got {type(self.net).__name__}")
        theta0 = float_array("theta0", self.theta0, shape=(self.net.dim,))
        object.__setattr__(self, "theta0", theta0)

    @property
    def inputs(self) -> Array:
        return self.net.inputs

    @property
    def targets(self) -> Array:
        return self.net.targets

    @property
    def width(self) -> int:
        return self.net.width

    @property
    def slopes(self) -> tuple[float, float]:
        return self.net.slopes

    @property
    def prefactor(self) -> float:
        return self.net.prefactor

    def outputs(self, theta: Array, inputs: Any = None) -> Array:
        """z at ``inputs`` (D, d), the training inputs if None; shape (D, 1)."""
        points = checked_points(inputs, self.inputs)
        hidden, readout = self._split(theta)
        gates = self._gates_at(points)
        return self.prefactor * ((gates * (points @ hidden.T)) @ readout)[:, None]

    def _gates_at(self, inputs: Array) -> Array:
        return slopes_at(inputs @ self._split(self.theta0)[0].T, self.slopes)

    @cached_property
    def _training_gates(self) -> Array:
        return self._gates_at(self.inputs)

    def _gates(self, pre: Array, batch: Array | None) -> Array:
        gates = self._training_gates
        return gates if batch is None or len(gates) != self.n_samples else gates[batch]


def uv_net(inputs: Any, targets: Any, width: int) -> TwoLayerNet:
    r"""The linear net :math:`f(x) = n^{-1/2}\, v^\top U x` of Lewkowycz et al. (2020).

    A `TwoLayerNet` with slopes (1, 1) and prefactor :math:`n^{-1/2}`: for the input x = 1 the NTK is
    :math:`(|u|^2 + |v|^2)/n`. theta holds U (n, d) row by row, then v.
    """
    width = integer("width", width, minimum=1)
    return TwoLayerNet(inputs, targets, width, (1.0, 1.0), width**-0.5)


def activation_sparsity(problem: Any, theta: Array) -> Array:
    """Per hidden layer the fraction of (unit, sample) pairs with pre-activation < 0, strictly.

    On the training inputs, without the output layer; shape (hidden layers,), about 1/2 at
    initialisation. Meltzer & Liu (2023, arXiv 2301.07737) see it grow with the learning rate in the
    catapult phase.

    Parameters
    ----------
    problem : TwoLayerNet or DeepHomogeneousNet
        With slope 0 on the negative side.

    Raises
    ------
    TypeError
        If the problem is no such net.
    ValueError
        If the slope on the negative side is not 0: then no unit is ever silent.
    """
    if not isinstance(problem, (TwoLayerNet, DeepHomogeneousNet)):
        raise TypeError(
            f"problem must be a TwoLayerNet or a DeepHomogeneousNet, got a {type(problem).__name__}"
        )
    if problem.slopes[1] != 0:
        raise ValueError(
            f"activation_sparsity needs slope 0 on the negative side, got slopes {problem.slopes}"
        )
    (theta,) = point(problem, theta=theta)
    return np.array([np.mean(pre < 0) for pre in problem.pre_activations(theta)])
