r"""Quadratic nets: models of degree two in theta, the smallest ones with a catapult phase.

Models and bounds follow Meltzer & Liu (2023), arXiv 2301.07737, who write D for the
number of data n and L with the same 1/2; the phase itself is Lewkowycz et al. (2020), arXiv
2003.02218, and the quadratic view of wide nets Zhu et al. (2022), arXiv 2205.11787.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import eigh

from eosim._checks import (
    PRODUCTS,
    SAMPLES,
    Array,
    Interval,
    choice,
    dense_fits,
    float_array,
    interface,
    real_number,
    seeded,
    state_vector,
    symmetric_matrix,
)
from eosim.problems.base import certifiable


@dataclass(frozen=True, eq=False)
class QuadraticNet:
    r""":math:`L = \frac{1}{2n} \sum_a (z_a - y_a)^2`, z quadratic in theta.

    .. math:: z_a = \phi_a \cdot \theta_f + \tfrac{\zeta}{2}\, \theta_m^\top \psi_a \theta_m

    Parameters
    ----------
    meta_features : (n, N, N) array-like
        The symmetric matrices :math:`\psi_a`; with ``mixing`` (k, N, N), a basis of them.
    targets : (n,) or (n, 1) array-like
        y.
    prefactor : float, optional
        :math:`\zeta > 0`; :math:`\sqrt{2/N}` if None (Meltzer & Liu 2023).
    features : (n, p) array-like, optional
        :math:`\phi`; none (p = 0), the pure quadratic model, if None.
    mixing : (n, k) array-like, optional
        With it :math:`\psi_a = \sum_i` ``mixing[a, i]`` ``meta_features[i]``, and every product costs
        k N^2 instead of n N^2.

    Notes
    -----
    theta is :math:`(\theta_f, \theta_m)`, of length p + N: the two parts act on different parameters,
    so :math:`\psi\phi = 0`. Everything is polynomial in theta and continues to complex theta, without
    conjugation. At mini-batches without ``mixing`` the matrices of the batch are copied.

    Raises
    ------
    TypeError, ValueError
        If the data are empty, not finite or of different lengths, a matrix is not symmetric, or the
        prefactor is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from eosim.problems.quadratic import QuadraticNet
    >>> net = QuadraticNet([[[0.0, 1.0], [1.0, 0.0]]], [0.0], prefactor=1.0)
    >>> net.gradient(np.array([3.0, 2.0]))  # of (u v)^2 / 2
    array([12., 18.])
    """

    meta_features: Any
    targets: Any
    prefactor: Any = None
    features: Any = None
    mixing: Any = None

    analytic = True
    n_outputs = 1

    def __post_init__(self) -> None:
        matrices = float_array("meta_features", self.meta_features, shape=(None, None, None))
        if matrices.size == 0 or matrices.shape[1] != matrices.shape[2]:
            raise ValueError(
                f"meta_features must have shape (n, N, N), not empty; got {matrices.shape}"
            )
        matrices = np.stack(
            [symmetric_matrix(f"meta_features[{i}]", matrix) for i, matrix in enumerate(matrices)]
        )
        targets = _column("targets", self.targets)
        n, size = len(targets), matrices.shape[1]
        mixing = None
        if self.mixing is not None:
            mixing = float_array("mixing", self.mixing, shape=(n, len(matrices)))
        elif n != len(matrices):
            raise ValueError(
                "meta_features and targets must have one entry per sample; got shapes "
                f"{matrices.shape} and {targets.shape}"
            )
        features = np.zeros((n, 0)) if self.features is None else self.features
        zeta = np.sqrt(2 / size)
        if self.prefactor is not None:
            zeta = real_number("prefactor", self.prefactor, Interval(0, np.inf))
        matrices.flags.writeable = False
        object.__setattr__(self, "meta_features", matrices)
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "prefactor", float(zeta))
        object.__setattr__(self, "features", float_array("features", features, shape=(n, None)))
        object.__setattr__(self, "mixing", mixing)

    @property
    def n_samples(self) -> int:
        return len(self.targets)

    @property
    def n_features(self) -> int:
        """p, the length of theta_f."""
        return int(self.features.shape[1])

    @property
    def dim(self) -> int:
        return self.n_features + int(self.meta_features.shape[1])

    def initial(self, seed: Any = 0) -> Array:
        """theta ~ N(0, 1) from ``numpy.random.default_rng(seed)``; shape (dim,)."""
        return seeded(seed).standard_normal(self.dim)

    def outputs(self, theta: Array) -> Array:
        """z on all samples, of shape (n, 1)."""
        return self.residuals(theta) + self.targets

    def residuals(self, theta: Array, batch: Array | None = None) -> Array:
        """e = z - y, of shape (batch, 1)."""
        (images,) = self._images(batch, theta)
        return self._residuals(theta, images, batch)[:, None]

    def loss(self, theta: Array, batch: Array | None = None) -> Any:
        residuals = self.residuals(theta, batch)
        return np.sum(residuals * residuals) / (2 * len(residuals))  # bilinear: no conjugation

    def gradient(self, theta: Array, batch: Array | None = None) -> Array:
        (images,) = self._images(batch, theta)
        residuals = self._residuals(theta, images, batch)
        return self._pull(residuals, images, batch) / len(images)

    def hvp(self, theta: Array, v: Array, batch: Array | None = None) -> Array:
        images, moved = self._images(batch, theta, v)
        residuals = self._residuals(theta, images, batch)
        product = self._pull(self._push(images, v, batch), images, batch)
        product[self.n_features :] += self.prefactor * (residuals @ moved)
        return product / len(images)

    @certifiable
    def hessian(self, theta: Array, batch: Array | None = None) -> Array:
        dense_fits("the Hessian", (self.dim, self.dim), PRODUCTS)
        jacobian = self.jacobian(theta, batch)[:, 0]  # (batch, dim)
        residuals = self.residuals(theta, batch)[:, 0]
        matrix = jacobian.T @ jacobian
        weighted = self.prefactor * self._weighted_sum(residuals, batch)  # (N, N)
        matrix[self.n_features :, self.n_features :] += weighted
        return (matrix + matrix.T) / (2 * len(residuals))

    def jacobian(self, theta: Array, batch: Array | None = None) -> Array:
        """dz/dtheta, of shape (batch, 1, dim)."""
        (images,) = self._images(batch, theta)
        return np.hstack([self._features(batch), self.prefactor * images])[:, None, :]

    def third_derivative(self, theta: Array, a: Array, b: Array) -> Array:
        images, along_a, along_b = self._images(None, theta, a, b)
        zeta, p = self.prefactor, self.n_features
        push_a, push_b = self._push(images, a, None), self._push(images, b, None)
        result = self._pull(zeta * (along_a @ b[p:]), images, None)
        result[p:] += zeta * (push_b @ along_a + push_a @ along_b)
        return result / self.n_samples

    def ntk(self, theta: Array) -> Array:
        r"""J J^T / n: :math:`(\phi_a\cdot\phi_b + \zeta^2 \theta_m^\top\psi_a\psi_b\theta_m)/n`.

        Of shape (n, n), from the n vectors :math:`\psi_a\theta_m`.
        """
        dense_fits("the NTK", (self.n_samples, self.n_samples), SAMPLES)
        (images,) = self._images(None, theta)
        kernel = self.features @ self.features.T + self.prefactor**2 * (images @ images.T)
        return kernel / self.n_samples

    def ntk_bound(self, theta: Array, kind: str = "omega") -> float:
        r"""B(theta) such that gradient descent on zero targets converges for lr < 4 / B(theta_0).

        Equation numbers are those of a draft of Meltzer & Liu (2023). With
        :math:`\Omega = \frac{\zeta^2}{n} \sum_a \psi_a^2` (N x N, with the largest eigenvalue of the
        nN x nN matrix :math:`\frac{\zeta^2}{n} \psi_a\psi_b`), :math:`\Phi = \phi\phi^\top/n` (n x n)
        and P the projector on the span of the features:

        =========== ==========================================================================
        "omega"     :math:`2\lambda_{\max}(\Phi) + \lambda_{\max}(\Omega)
                    \left[|\theta_m|^2 + 2 |P\theta_f|^2\right]`
        "own"       :math:`2|\phi|^2 + \zeta^2 \lambda_{\max}(\psi^2)
                    \left[|\theta|^2 + (\phi\cdot\theta_f)^2/|\phi|^2\right]`, one sample only
        "effective" "own" with :math:`\psi = n^{-1/2} \sum_a u_a \psi_a` and
                    :math:`\phi = n^{-1/2} \sum_a u_a \phi_a`, u the top eigenvector of the NTK
        =========== ==========================================================================

        "omega" and "own" are PROVED: they bound the NTK from above at every theta, and the bracket
        (the monotone weight norm) falls with every step while lr B < 4. Without features they
        are the paper's (138, 143) and (154); "own" with features is (163). For one sample "omega"
        is "own", tightened if there are features; for features and several samples it is derived
        here: descent changes :math:`W = |\theta|^2 + |P\theta_f|^2` by exactly
        :math:`(\eta/n) [\eta\, e^\top (H + \Phi)\, e - 4\, e\cdot z]`, H the NTK.
        "effective" is a HEURISTIC (154-155): it assumes that the residuals stay parallel to u. Without
        features it is an upper bound of the NTK at this theta only, and no proof covers the run.
        With targets the statements hold until L falls below
        :math:`8\,\mathrm{mean}(y^2)/(4 - \eta B)^2`.

        Raises
        ------
        ValueError
            If the kind is unknown, or "own" is asked for with several samples.
        """
        theta = state_vector("theta", theta, self.dim)
        kind = choice("kind", kind, ("omega", "own", "effective"))
        p = self.n_features
        if kind == "omega":
            size = float(theta[p:] @ theta[p:])
            bound = 0.0
            if p:
                inside = np.linalg.lstsq(self.features, self.features @ theta[:p])[0]  # P theta_f
                size += 2 * float(inside @ inside)
                bound = 2 * float(np.linalg.norm(self.features, 2)) ** 2 / self.n_samples
            return bound + self._omega * size
        if kind == "own":
            if self.n_samples > 1:
                raise ValueError(
                    'kind "own" is the bound of one sample; take "omega" or "effective" for '
                    f"n_samples = {self.n_samples}"
                )
            weights = np.ones(1)
        else:
            top = self.n_samples - 1
            _, vectors = eigh(self.ntk(theta), subset_by_index=[top, top])
            weights = vectors[:, 0] / np.sqrt(self.n_samples)
        feature = weights @ self.features  # (p,)
        values = np.linalg.eigvalsh(self._weighted_sum(weights, None))
        length, along = float(feature @ feature), float(feature @ theta[:p])
        norm = float(theta @ theta) + (along**2 / length if length > 0 else 0.0)
        return 2 * length + self.prefactor**2 * float(np.max(values**2)) * norm

    @cached_property
    def _omega(self) -> float:
        """The largest eigenvalue of Omega; sum_a psi_a^2 over a triangular factor of ``mixing``."""
        total = np.zeros(self.meta_features.shape[1:])
        if self.mixing is None:
            for matrix in self.meta_features:
                total += matrix @ matrix
        else:
            for row in np.linalg.qr(
                self.mixing, mode="r"
            ):  # rows r: sum_a psi_a^2 is sum_r psi_r^2
                matrix = np.tensordot(row, self.meta_features, 1)
                total += matrix @ matrix
        top = len(total) - 1
        value = eigh(total, eigvals_only=True, subset_by_index=[top, top])[0]
        return self.prefactor**2 / self.n_samples * float(value)

    def _images(self, batch: Array | None, *thetas: Array) -> list[Array]:
        """psi_a theta_m, of shape (batch, N), for each theta."""
        parts = [np.asarray(theta)[self.n_features :] for theta in thetas]
        if any(np.iscomplexobj(part) for part in parts):  # the matrices are not cast to complex
            both = self._products(batch, [p.real for p in parts] + [p.imag for p in parts])
            return [both[i] + 1j * both[len(parts) + i] for i in range(len(parts))]
        return self._products(batch, parts)

    def _products(self, batch: Array | None, vectors: list[Array]) -> list[Array]:
        matrices, size = self.meta_features, self.meta_features.shape[1]
        if batch is not None and self.mixing is None:
            matrices = matrices[batch]
        rows = matrices.reshape(-1, size)
        images = [(rows @ vector).reshape(-1, size) for vector in vectors]
        if self.mixing is None:
            return images
        mixing = self.mixing if batch is None else self.mixing[batch]
        return [mixing @ image for image in images]

    def _weighted_sum(self, weights: Array, batch: Array | None) -> Array:
        """sum_a weights_a psi_a, of shape (N, N)."""
        if self.mixing is not None:
            mixing = self.mixing if batch is None else self.mixing[batch]
            return np.tensordot(weights @ mixing, self.meta_features, 1)
        matrices = self.meta_features if batch is None else self.meta_features[batch]
        return np.tensordot(weights, matrices, 1)

    def _features(self, batch: Array | None) -> Array:
        return self.features if batch is None else self.features[batch]

    def _residuals(self, theta: Array, images: Array, batch: Array | None) -> Array:
        targets = (self.targets if batch is None else self.targets[batch])[:, 0]
        p = self.n_features
        linear = self._features(batch) @ theta[:p]
        return linear + self.prefactor / 2 * (images @ theta[p:]) - targets

    def _push(self, images: Array, v: Array, batch: Array | None) -> Array:
        """J v, of shape (batch,)."""
        p = self.n_features
        return self._features(batch) @ v[:p] + self.prefactor * (images @ v[p:])

    def _pull(self, weights: Array, images: Array, batch: Array | None) -> Array:
        """J^T weights, of shape (dim,)."""
        parts = [weights @ self._features(batch), self.prefactor * (weights @ images)]
        return np.concatenate(parts)


def catapult_bound(problem: Any, theta: Array, kind: str | None = None) -> float:
    r""":math:`4\lambda_0/B(\theta_0)`: gradient descent converges for :math:`\eta\lambda_0` below it.

    A lower bound, for zero targets, on where the catapult phase ends, in the units of phase diagrams
    (lr times the largest NTK eigenvalue at initialisation). Above 2 it proves a catapult phase;
    below 2 it says nothing beyond stability. What is observed to converge usually lies higher.

    Parameters
    ----------
    problem : QuadraticNet, TwoLayerNet or FrozenGates
        Whatever has ``ntk(theta)`` and ``ntk_bound(theta, kind)``.
    theta : (dim,) array
        The initialisation.
    kind : str, optional
        Which B, see ``ntk_bound`` of the problem: "omega" (PROVED), "own" (PROVED) or "effective"
        (HEURISTIC) of quadratic nets, "norm" or "active" (both PROVED) of two-layer nets. If None,
        the proved one that exists for every size of data: "omega", "norm".

    Raises
    ------
    ValueError
        If the bound is zero: the model does not depend on theta there.
    """
    interface("problem", problem, ("ntk", "ntk_bound"))
    theta = state_vector("theta", theta, problem.dim)
    bound = problem.ntk_bound(theta) if kind is None else problem.ntk_bound(theta, kind)
    if not bound > 0:
        raise ValueError(
            f"theta must have a positive ntk_bound, got {bound}: theta or the data are 0"
        )
    return 4 * float(np.linalg.eigvalsh(problem.ntk(theta))[-1]) / bound


def _column(name: str, value: Any) -> Array:
    """One number per sample, of shape (n, 1)."""
    array = float_array(name, value)
    if array.ndim not in (1, 2) or array.size == 0 or array.shape[1:] not in ((), (1,)):
        raise ValueError(f"{name} must have shape (n,) or (n, 1), not empty; got {array.shape}")
    return array.reshape(-1, 1)
