r"""Kernels of infinitely many random features, :math:`k(x, x') = E_w\,\sigma(w\cdot x)\sigma(w\cdot x')`.

With `RandomFeatures` the matrix :math:`\Phi\Phi^\top` tends to k as the number of features grows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from eosim._checks import Array, choice, dense_fits, float_array, integer, real_number
from eosim.problems.feature_model import ACTIVATIONS, LEAKY_SLOPE, negative_slope


def arc_cosine(angle: Any, sine: Any, cosine: Any, half_turn: Any = math.pi) -> Any:
    r""":math:`\kappa(t) = \frac{1}{2\pi}(\sin t + (\pi - t)\cos t)`, ReLU's kernel of unit vectors.

    For :math:`w \sim N(0, I)` and t the angle between x and x' the kernel is
    :math:`|x||x'|\,\kappa(t)` (Cho & Saul 2009, order 1, halved). Plain arithmetic: sine, cosine and
    pi are passed in, so that it runs on symbols.
    """
    return (sine + (half_turn - angle) * cosine) / (2 * half_turn)


def dual_kernel(
    inputs: Any,
    others: Any = None,
    activation: str = "relu",
    *,
    weights: str = "sphere",
    slope: float = LEAKY_SLOPE,
) -> Array:
    r""":math:`E_w\, \sigma(w \cdot x)\, \sigma(w \cdot x')`, of shape (n, n').

    Parameters
    ----------
    inputs, others : (n, d) and (n', d) array-like
        x and x'; ``others`` are the inputs themselves if None.
    activation : str
        "relu", "leaky" or "identity" for either distribution; "erf" for Gaussian weights.
    weights : str
        The distribution of w: "sphere", uniform on the unit sphere, or "gaussian", N(0, I).
    slope : float
        Of the negative side of "leaky".

    Notes
    -----
    A unit of slopes 1 and s is :math:`s z + (1 - s)\,\mathrm{relu}(z)`, and z times relu(z') has half
    the mean of z z'. So :math:`k = s\, x\cdot x' + (1 - s)^2 |x||x'|\,\kappa(t)` for Gaussian weights,
    with :math:`\kappa` of `arc_cosine`. Such units are homogeneous and :math:`E|w|^2 = d`: on the
    sphere all is divided by d. For erf (Williams 1997)
    :math:`k = \frac{2}{\pi} \arcsin \frac{2 x\cdot x'}{\sqrt{(1 + 2|x|^2)(1 + 2|x'|^2)}}`. erf on
    the sphere and tanh have no closed form.

    Raises
    ------
    ValueError
        If there is no closed form for that activation and distribution, or the shapes do not fit.

    Examples
    --------
    >>> import eosim
    >>> eosim.problems.dual_kernel([[2.0, 0.0], [0.0, 2.0]]).round(4)
    array([[1.    , 0.3183],
           [0.3183, 1.    ]])
    """
    inputs = float_array("inputs", inputs, shape=(None, None))
    others = inputs if others is None else others
    others = float_array("others", others, shape=(None, inputs.shape[1]))
    choice("activation", activation, ACTIVATIONS)
    choice("weights", weights, ("sphere", "gaussian"))
    slope = real_number("slope", slope)
    if activation == "tanh" or (activation == "erf" and weights == "sphere"):
        raise ValueError(
            f"activation {activation!r} has no closed form for weights {weights!r}; average "
            "features of RandomFeatures instead"
        )
    shape = (len(inputs), len(others))
    dense_fits("the kernel", shape, "take the inputs in parts, or features of RandomFeatures")
    products = inputs @ others.T  # x.x', (n, n')
    squares, other_squares = np.sum(inputs**2, axis=1), np.sum(others**2, axis=1)
    if activation == "erf":
        sizes = np.sqrt(np.outer(1 + 2 * squares, 1 + 2 * other_squares))
        return 2 / np.pi * np.arcsin(2 * products / sizes)
    lengths = np.sqrt(np.outer(squares, other_squares))
    cosine = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    cosine = np.clip(cosine, -1, 1)  # rounding
    relu = lengths * arc_cosine(np.arccos(cosine), np.sqrt(1 - cosine**2), cosine)
    below = negative_slope(activation, slope)
    kernel = below * products + (1 - below) ** 2 * relu
    return kernel / inputs.shape[1] if weights == "sphere" else kernel


class SphereKernel(NamedTuple):
    r"""The kernel of piecewise linear features as an operator on the sphere, see `sphere_kernel`."""

    constant: float  # lambda_0 = E k, of the constant functions
    linear: float  # lambda_1, of each of the d linear functions
    mean_square: float  # E k^2 = sum of all squared eigenvalues

    @property
    def worst_alignment(self) -> float:
        r""":math:`\mu_0 = 1 - \lambda_{max}^2 / E k^2`, of the residual with the least noise.

        The smallest loss-scaled alignment :math:`\mathrm{tr}(\Sigma G)/(2 L |G|_F^2)` of the centred
        noise, for infinitely many samples and features. The residual that has it is the top
        eigenfunction: the constant, for ReLU.
        """
        return 1 - max(self.constant, self.linear) ** 2 / self.mean_square


def sphere_kernel(n_inputs: int, slope: float = 0.0) -> SphereKernel:
    r"""Eigenvalues and mean square of the kernel, inputs uniform on the sphere of radius sqrt(d).

    Weights are uniform on the unit sphere, units have slope 1 above and ``slope`` below 0: 0 is
    ReLU, 1 linear.

    Parameters
    ----------
    n_inputs : int
        d, at least 2.

    Notes
    -----
    The angle between two inputs has a density proportional to :math:`\sin^{d-2} t`. For ReLU

    .. math:: \lambda_0 = \frac{d\,\Gamma(d/2)^2}{4\pi\,\Gamma((d+1)/2)^2}, \qquad
              \lambda_1 = \frac{1}{4d}, \qquad
              E k^2 = \frac{1}{4\pi^2} \Bigl[ \frac{(d-1)(d+2)}{d^2} + \frac{2(d-1)}{d^3}
                      + \frac{\pi^2}{4d} + \frac{\psi'(d/2)}{2d} \Bigr]

    with the trigamma function :math:`\psi'` (derived here). ``slope`` s adds s/d times the cosine to
    :math:`(1 - s)^2` times that kernel.

    Raises
    ------
    TypeError, ValueError
        If ``n_inputs`` is no integer of at least 2.

    Examples
    --------
    >>> import eosim
    >>> round(eosim.problems.sphere_kernel(10).worst_alignment, 3)
    0.185
    """
    from scipy.special import beta, polygamma

    d = integer("n_inputs", n_inputs, minimum=2)
    s = real_number("slope", slope)
    constant = d * float(beta(d / 2, 0.5) / (2 * math.pi)) ** 2  # beta: no overflow at large d
    square = relu_mean_square(d, float(polygamma(1, d / 2)))
    relu = (1 - s) ** 2
    return SphereKernel(
        relu * constant,
        (1 + s) ** 2 / (4 * d),
        # E cos^2 = 1/d; E[cos k] = lambda_1
        s**2 / d + s * relu / (2 * d) + relu**2 * square,
    )


def relu_mean_square(d: Any, trigamma: Any, half_turn: Any = math.pi) -> Any:
    r""":math:`E k^2` of `sphere_kernel` for ReLU, with :math:`\psi'(d/2)` passed in."""
    bracket = (d - 1) * (d + 2) / d**2 + 2 * (d - 1) / d**3 + half_turn**2 / (4 * d)
    return (bracket + trigamma / (2 * d)) / (4 * half_turn**2)


def circle_coefficient(order: Any, size: int | None = None) -> Array:
    r"""Fourier coefficients :math:`c_k` of max(cos, 0); the kernel on the unit circle has :math:`c_k^2`.

    :math:`c_0 = 1/\pi`, :math:`c_{\pm 1} = 1/4`, :math:`c_{2j} = (-1)^{j+1}/(\pi (4 j^2 - 1))`, and 0
    for other odd orders.

    Parameters
    ----------
    order : int or array of int
        k.
    size : int, optional
        If given, the discrete coefficients :math:`\frac1n \sum_i \max(\cos t_i, 0)\, e^{-i k t_i}` at
        n = ``size`` equally spaced angles, n divisible by 4: for ReLU the eigenvalues of H of
        ``RandomFeatures.circle(n)`` are :math:`c_k^2`, k = 0 .. n - 1. There
        :math:`c_0 = \cot(\pi/n)/n`, :math:`c_{\pm 1} = 1/4` and
        :math:`c_{2j} = \frac{(-1)^j}{2n}[\cot\frac{\pi(2j+1)}{n} - \cot\frac{\pi(2j-1)}{n}]`.

    Raises
    ------
    TypeError, ValueError
        If an order is no integer, or ``size`` is no positive multiple of 4.
    """
    k = np.asarray(order)
    if k.dtype.kind not in "iu":
        raise TypeError(f"order must be integers, got an array of dtype {k.dtype}")
    k = k.astype(np.int64)
    if size is not None:
        size = integer("size", size, minimum=4)
        if size % 4:
            raise ValueError(f"size must be a multiple of 4, got {size}")
        k = (k + size // 2) % size - size // 2  # discrete coefficients are periodic
    evens = np.where(k % 2, 0, k)
    sign = np.where(evens % 4, -1.0, 1.0)  # (-1)^(k/2)
    if size is None:
        values = sign / (np.pi * (1 - evens.astype(float) ** 2))
    else:
        above, below = np.pi * (evens + 1) / size, np.pi * (evens - 1) / size
        values = sign / (2 * size) * (1 / np.tan(above) - 1 / np.tan(below))
    return np.where(k % 2 == 0, values, np.where(np.abs(k) == 1, 0.25, 0.0))
