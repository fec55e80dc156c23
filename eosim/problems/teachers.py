r"""Random quadratic nets: meta-features, features, and students of a larger teacher.

The constructions are those of Meltzer & Liu (2023), arXiv 2301.07737; the order of the draws is ours
and stated with each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import expm

from eosim._checks import Array, Interval, choice, float_array, integer, real_number, seeded
from eosim.problems.quadratic import QuadraticNet

ACTIVATIONS = ("identity", "tanh")


def paired_matrices(
    count: int, size: int, seed: Any = 0, low: float = 1.0, high: float = 1.0
) -> Array:
    r"""Random symmetric matrices with the spectrum in pairs +m, -m; shape (count, size, size).

    :math:`W_i = q_i^\top \mathrm{diag}(m_i, -m_i)\, q_i` with
    :math:`q_i = \exp((B_i - B_i^\top)/\sqrt2)` (Meltzer & Liu 2023). For each i in turn
    ``numpy.random.default_rng(seed)`` draws B (size, size) standard normal, then m (size / 2)
    uniform on [low, high). With low = high = s every :math:`W_i^2 = s^2 I`.

    Raises
    ------
    TypeError, ValueError
        If count is less than 1, size is odd, or not 0 <= low <= high.
    """
    count = integer("count", count, minimum=1)
    size = integer("size", size, minimum=2)
    if size % 2:
        raise ValueError(f"size must be even: eigenvalues come in pairs; got {size}")
    low = real_number("low", low, Interval(0, np.inf, lower_closed=True))
    high = real_number("high", high, Interval(low, np.inf, lower_closed=True))
    generator = seeded(seed)
    matrices = np.empty((count, size, size))
    for i in range(count):
        normal = generator.standard_normal((size, size))
        half = generator.uniform(low, high, size // 2)
        rotation = expm((normal - normal.T) / np.sqrt(2))
        matrix = rotation.T @ (np.concatenate([half, -half])[:, None] * rotation)
        matrices[i] = (matrix + matrix.T) / 2
    return matrices


def meta_features(
    inputs: Any,
    size: int,
    seed: Any = 0,
    low: float = 1.0,
    high: float = 1.0,
    activation: str = "identity",
) -> Array:
    r""":math:`\psi(x) = \mathrm{act}(d^{-1/2} \sum_i x_i W_i)`, of shape (n, size, size).

    W from `paired_matrices` (its draws and its errors), act elementwise: "identity" or "tanh".
    For "identity" and more samples than inputs, ``QuadraticNet(paired_matrices(d, size, seed),
    targets, mixing=inputs / sqrt(d))`` is the same model at d/n of the cost.

    Parameters
    ----------
    inputs : (n, d) array-like
    """
    inputs = _inputs(inputs)
    activation = choice("activation", activation, ACTIVATIONS)
    return _meta(inputs, paired_matrices(inputs.shape[1], size, seed, low, high), activation)


def random_features(inputs: Any, size: int, seed: Any = 0) -> Array:
    r""":math:`\phi(x) = (d p)^{-1/2}\, x U`, of shape (n, p) with p = ``size``.

    ``numpy.random.default_rng(seed)`` draws U (d, p) standard normal.
    """
    inputs = _inputs(inputs)
    size = integer("size", size, minimum=1)
    return inputs @ _feature_weights(inputs.shape[1], size, seeded(seed))


@dataclass(frozen=True, eq=False)
class TeacherStudent:
    """A quadratic net that learns the outputs of a larger one; made by `teacher_student`.

    ``problem`` is the student on the training data, ``theta`` the teacher's parameters, features
    first. ``kept_features`` and ``kept`` are the teacher's coordinates that the student has.
    """

    problem: QuadraticNet
    theta: Array
    matrices: Array
    feature_weights: Array
    kept_features: Array
    kept: Array
    activation: str

    def labels(self, inputs: Any) -> Array:
        """The teacher's outputs at ``inputs`` (n, d), of shape (n,)."""
        return _evaluate(
            _inputs(inputs), self.theta, self.matrices, self.feature_weights, self.activation
        )

    def outputs(self, theta: Any, inputs: Any) -> Array:
        """The student's outputs (n,) at ``inputs`` (n, d); (k, n) for k rows of theta.

        One matrix is in memory at a time, so that a test set may be large; all rows of theta share
        the pass.
        """
        theta = float_array("theta", theta)
        if theta.ndim not in (1, 2) or theta.shape[-1] != self.problem.dim:
            raise ValueError(
                f"theta must have shape ({self.problem.dim},) or (any, {self.problem.dim}), got "
                f"{theta.shape}"
            )
        weights = self.feature_weights[:, self.kept_features]
        matrices = _submatrices(self.matrices, self.kept)
        return _evaluate(_inputs(inputs), theta, matrices, weights, self.activation)


def teacher_student(
    inputs: Any,
    size: int,
    student_size: int,
    seed: Any = 0,
    *,
    low: float = 1.0,
    high: float = 1.0,
    activation: str = "tanh",
    n_features: int = 0,
    student_n_features: int | None = None,
) -> TeacherStudent:
    r"""A teacher labels the inputs; the student has a random part of its coordinates.

    The teacher is a `QuadraticNet` with meta-features of ``size`` and ``n_features`` random features.
    The student keeps ``student_size`` and ``student_n_features`` (all if None) of them, its own
    prefactor :math:`\sqrt{2/N}` (N its own size), and features still divided by the teacher's number.

    Parameters
    ----------
    inputs : (n, d) array-like
    size, student_size : int
        N of the teacher and of the student.
    low, high, activation
        As for `meta_features`.
    n_features, student_n_features : int
        0 is the pure quadratic model.

    Notes
    -----
    One generator ``numpy.random.default_rng(seed)`` draws, in this order: the matrices of
    `paired_matrices`; U (d, n_features) of `random_features`; the teacher's theta, features first,
    all standard normal; ``permutation(n_features)`` and then ``permutation(size)``, whose first
    entries, sorted, are kept. The student's start is ``problem.initial(another_seed)``.

    Raises
    ------
    TypeError, ValueError
        If the inputs are empty or not finite, or a size is out of range.
    """
    inputs = _inputs(inputs)
    activation = choice("activation", activation, ACTIVATIONS)
    size = integer("size", size, minimum=2)
    n_features = integer("n_features", n_features, minimum=0)
    student_size = integer("student_size", student_size, minimum=1)
    keep = n_features if student_n_features is None else student_n_features
    keep = integer("student_n_features", keep, minimum=0)
    for name, part, whole in (
        ("student_size", student_size, size),
        ("student_n_features", keep, n_features),
    ):
        if part > whole:
            raise ValueError(f"{name} must be at most the teacher's {whole}, got {part}")
    generator = seeded(seed)
    d = inputs.shape[1]
    matrices = paired_matrices(d, size, generator, low, high)
    weights = _feature_weights(d, n_features, generator) if n_features else np.zeros((d, 0))
    theta = generator.standard_normal(n_features + size)
    kept_features = np.sort(generator.permutation(n_features)[:keep])
    kept = np.sort(generator.permutation(size)[:student_size])

    labels = _evaluate(inputs, theta, matrices, weights, activation)
    features = inputs @ weights[:, kept_features]
    smaller = _submatrices(matrices, kept)  # act is elementwise: before or after is the same
    if activation == "identity" and d < len(inputs):
        problem = QuadraticNet(smaller, labels, features=features, mixing=inputs / np.sqrt(d))
    else:
        problem = QuadraticNet(_meta(inputs, smaller, activation), labels, features=features)
    return TeacherStudent(problem, theta, matrices, weights, kept_features, kept, activation)


def _meta(inputs: Array, matrices: Array, activation: str) -> Array:
    """psi at the inputs, of shape (n, N, N)."""
    total = np.tensordot(inputs / np.sqrt(inputs.shape[1]), matrices, 1)
    return np.tanh(total, out=total) if activation == "tanh" else total


def _feature_weights(d: int, size: int, generator: np.random.Generator) -> Array:
    return generator.standard_normal((d, size)) / np.sqrt(d * size)


def _submatrices(matrices: Array, kept: Array) -> Array:
    return matrices[:, kept[:, None], kept]


def _evaluate(
    inputs: Array, theta: Array, matrices: Array, weights: Array, activation: str
) -> Array:
    """z of the net with these weights, of shape theta.shape[:-1] + (n,), sample by sample."""
    d, size = matrices.shape[:2]
    if inputs.shape[1] != d:
        raise ValueError(f"inputs must have shape (any, {d}), got {inputs.shape}")
    linear, quadratic = np.split(theta, [theta.shape[-1] - size], axis=-1)
    outputs = linear @ (inputs @ weights).T
    for a in range(len(inputs)):
        images = quadratic @ _meta(inputs[a : a + 1], matrices, activation)[0]
        outputs[..., a] += np.sqrt(2 / size) / 2 * np.sum(images * quadratic, axis=-1)
    return outputs


def _inputs(value: Any) -> Array:
    inputs = float_array("inputs", value, shape=(None, None))
    if 0 in inputs.shape:
        raise ValueError(f"inputs must have shape (n, d), not empty; got {inputs.shape}")
    return inputs
