"""The random feature model: linear in its trained readout, so least squares on fixed features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eosim._checks import (
    SAMPLES,
    Array,
    choice,
    dense_fits,
    float_array,
    integer,
    real_number,
    seeded,
)
from eosim.problems.regression import LinearRegression

ACTIVATIONS = ("relu", "leaky", "identity", "tanh", "erf")
# Our choice: negative enough to differ from ReLU in every measurement, far from linear.
LEAKY_SLOPE = 0.1


@dataclass(frozen=True, eq=False)
class RandomFeatures:
    r""":math:`L = \frac{1}{2n} \sum_i |f(x_i; a) - y_i|^2`, only the readout a is trained.

    .. math:: f(x; a) = m^{-1/2} \sum_j a_j\, \sigma(w_j \cdot x), \qquad
              \Phi_{ij} = m^{-1/2} \sigma(w_j \cdot x_i), \qquad H = \Phi^\top \Phi / n

    The factor :math:`m^{-1/2}` makes :math:`\Phi\Phi^\top` an average over features, which tends to
    :math:`E_w \sigma(w \cdot x)\, \sigma(w \cdot x')`, see `dual_kernel`. (`random_features` draws
    the linear features of quadratic nets; that is another model.)

    Parameters
    ----------
    inputs : (n, d) array-like
    targets : (n,) or (n, k) array-like
    weights : (m, d) array-like
        :math:`w_j`, one per row; fixed.
    activation : str
        :math:`\sigma`: "relu", "leaky", "identity", "tanh" or "erf".
    slope : float
        Of the negative side of "leaky"; the other activations do not use it.

    Notes
    -----
    theta holds a, of shape (m, k), row by row: ``dim = m * k``. Everything is that of
    `LinearRegression` on the features, which ``regression`` holds. `draw` makes random instances and
    `circle` the one without randomness.

    Raises
    ------
    TypeError, ValueError
        If the data or weights are empty, not finite or do not fit together, or the activation is
        unknown.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> problem = eosim.RandomFeatures([[1.0], [-1.0]], [1.0, 0.0], weights=[[2.0], [-3.0]])
    >>> problem.features() * np.sqrt(2)
    array([[2., 0.],
           [0., 3.]])
    """

    inputs: Any
    targets: Any
    weights: Any
    activation: str = "relu"
    slope: Any = LEAKY_SLOPE
    regression: LinearRegression = field(init=False, repr=False)

    analytic = True

    def __post_init__(self) -> None:
        inputs = float_array("inputs", self.inputs, shape=(None, None))
        if 0 in inputs.shape:
            raise ValueError(f"inputs must have samples and features, got shape {inputs.shape}")
        weights = float_array("weights", self.weights, shape=(None, inputs.shape[1]))
        if len(weights) == 0:
            raise ValueError(f"weights must have one row at least, got shape {weights.shape}")
        object.__setattr__(self, "activation", choice("activation", self.activation, ACTIVATIONS))
        object.__setattr__(self, "slope", real_number("slope", self.slope))
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "weights", weights)
        regression = LinearRegression(self._features_at(inputs), self.targets)
        object.__setattr__(self, "targets", regression.targets)
        object.__setattr__(self, "regression", regression)

    @classmethod
    def draw(
        cls,
        n_samples: int,
        n_inputs: int,
        n_features: int,
        activation: str = "relu",
        seed: Any = 0,
        *,
        inputs: str = "sphere",
        slope: float = LEAKY_SLOPE,
    ) -> RandomFeatures:
        r"""Random inputs, weights uniform on the unit sphere, and standard normal targets.

        Parameters
        ----------
        n_samples, n_inputs, n_features : int
            n, d and m.
        seed : int, SeedSequence or Generator
        inputs : str
            "sphere": uniform on the sphere of radius :math:`\sqrt d`; "gaussian": N(0, I).

        Notes
        -----
        One generator ``numpy.random.default_rng(seed)`` draws, in this order and all standard
        normal: the inputs (n, d), the weights (m, d), the targets (n,). Rows of the weights, and of
        the inputs on the sphere, are then scaled to their length. For other targets use
        ``dataclasses.replace(problem, targets=...)``.

        Raises
        ------
        TypeError, ValueError
            If a size is no positive integer, or ``inputs`` or ``activation`` is unknown.
        """
        n_samples = integer("n_samples", n_samples, minimum=1)
        n_inputs = integer("n_inputs", n_inputs, minimum=1)
        n_features = integer("n_features", n_features, minimum=1)
        choice("inputs", inputs, ("sphere", "gaussian"))
        generator = seeded(seed)
        points = generator.standard_normal((n_samples, n_inputs))
        if inputs == "sphere":
            points = np.sqrt(n_inputs) * _directions(points)
        weights = _directions(generator.standard_normal((n_features, n_inputs)))
        return cls(points, generator.standard_normal(n_samples), weights, activation, slope)

    @classmethod
    def circle(
        cls, size: int = 16, activation: str = "relu", *, slope: float = LEAKY_SLOPE
    ) -> RandomFeatures:
        r"""The model without randomness: ``size`` equally spaced inputs and as many weights.

        Both are the points of angle :math:`2\pi i/n` on the unit circle. :math:`\Phi` is a symmetric
        circulant, so every sample is like every other: an ideal test. The eigenvalues of H are the
        squares of `circle_coefficient`. All targets are 0: theta = 0 is an interpolating minimum.

        Raises
        ------
        TypeError, ValueError
            If ``size`` is less than 2, or the activation is unknown.
        """
        size = integer("size", size, minimum=2)
        angles = 2 * np.pi * np.arange(size) / size
        points = np.column_stack([np.cos(angles), np.sin(angles)])
        return cls(points, np.zeros(size), points, activation, slope)

    @property
    def n_samples(self) -> int:
        return self.regression.n_samples

    @property
    def n_outputs(self) -> int:
        return self.regression.n_outputs

    @property
    def dim(self) -> int:
        return self.regression.dim

    def initial(self, seed: Any = 0) -> Array:
        """a standard normal, from ``numpy.random.default_rng(seed)``; shape (dim,)."""
        return seeded(seed).standard_normal(self.dim)

    def features(self, inputs: Any = None) -> Array:
        """Phi at ``inputs`` (n, d), the training inputs if None; shape (n, m)."""
        if inputs is None:
            return self.regression.inputs
        return self._features_at(float_array("inputs", inputs, shape=(None, self.inputs.shape[1])))

    def outputs(self, theta: Array, inputs: Any = None) -> Array:
        """f at ``inputs`` (n, d), the training inputs if None; shape (n, n_outputs)."""
        return self.features(inputs) @ np.asarray(theta).reshape(-1, self.n_outputs)

    def residuals(self, theta: Array, batch: Array | None = None) -> Array:
        """e = f - y, of shape (batch, n_outputs)."""
        return self.regression.residuals(theta, batch)

    def jacobian(self, theta: Array, batch: Array | None = None) -> Array:
        """df/dtheta, of shape (batch, n_outputs, dim)."""
        return self.regression.jacobian(theta, batch)

    def loss(self, theta: Array, batch: Array | None = None) -> Any:
        return self.regression.loss(theta, batch)

    def gradient(self, theta: Array, batch: Array | None = None) -> Array:
        return self.regression.gradient(theta, batch)

    def hvp(self, theta: Array, v: Array, batch: Array | None = None) -> Array:
        return self.regression.hvp(theta, v, batch)

    def hessian(self, theta: Array, batch: Array | None = None) -> Array:
        """(Phi.T Phi / n) kron I_k, of shape (dim, dim)."""
        return self.regression.hessian(theta, batch)

    def third_derivative(self, theta: Array, a: Array, b: Array) -> Array:
        return self.regression.third_derivative(theta, a, b)

    def ntk(self, theta: Array) -> Array:
        """J J^T / n = (Phi Phi^T / n) kron I_k, of shape (n k, n k), the same at every theta."""
        features, size = self.features(), self.n_samples * self.n_outputs
        dense_fits("the NTK", (size, size), SAMPLES)
        return np.kron(features @ features.T / self.n_samples, np.eye(self.n_outputs))

    def _features_at(self, inputs: Array) -> Array:
        shape = (len(inputs), len(self.weights))
        dense_fits("the features", shape, "LinearRegression takes them as a LinearOperator")
        pre = inputs @ self.weights.T  # (n, m)
        if self.activation == "tanh":
            values = np.tanh(pre)
        elif self.activation == "erf":
            from scipy.special import erf  # a tenth of a second, which nothing else here needs

            values = erf(pre)
        else:
            below = negative_slope(self.activation, self.slope)
            values = np.maximum(pre, 0) + below * np.minimum(pre, 0)
        return values / np.sqrt(len(self.weights))


def negative_slope(activation: str, slope: float) -> float:
    """The slope of a piecewise linear activation below 0; it is 1 above."""
    return {"relu": 0.0, "leaky": slope, "identity": 1.0}[activation]


def _directions(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
