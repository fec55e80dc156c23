r"""Principal flows: the part of the backward-error series that is a function of the Hessian.

.. math:: \dot\theta = \frac{\log(I - hH)}{hH}\, g
          = \sum_i \alpha(z_i)\,(u_i^\top g)\,u_i, \qquad \alpha(z) = \frac{\log(1-z)}{z},
          \quad z_i = h\lambda_i

(Rosca, Wu, Qin & Dherin 2023, arXiv 2302.01952.) For :math:`z > 1` the logarithm is complex and
the flow rotates: at :math:`t = kh` it agrees with gradient descent, sign flips included.

Which branch
------------
At a real state with :math:`z > 1` the number :math:`1-z` lies *on* the cut of the principal
logarithm. A solver that uses the principal branch is thrown from one side of the cut to the other
(a sliding mode) and follows the real part of the field: no oscillation, and no progress. Here each
eigenvalue carries its logarithm along the path, starting with :math:`+i\pi`, and is continued to
the nearest branch: the branch is memory, updated after each accepted step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import log1p

from eosim._checks import Array, Interval, choice, dense_fits, integer, interface, real_number
from eosim.flows._spectral import (
    Branch,
    advanced,
    apply_dense,
    apply_lanczos,
    started,
)
from eosim.flows.base import LeftRange
from eosim.problems.base import (
    FunctionProblem,
    Problem,
    hessian_products,
    third_derivative,
)

# |1 - z| is kept at least this far from 0, where the logarithm is -36.8: the coordinate then falls
# to 1e-16 of itself within one step (gradient descent: to exactly 0). Our choice: machine epsilon.
_FLOOR = 1e-16
# Our choice. From the first on the Lanczos form is five times cheaper than an eigendecomposition on
# spectra of a bulk with outliers, and a vain attempt adds half of one; it pays from 80 on where it
# converges. From the second on an evaluation at a complex state, which has no other form than the
# dense one, takes a second or more, and is only made where it is asked for.
MIXED_FROM, LANCZOS_FROM = 200, 512
# Our choice: bounds of the Lanczos form. Twenty steps suffice for network-like spectra; beyond 120
# the dense form is cheaper at the sizes it can fall back to.
_LANCZOS_TOLERANCE = 1e-10
_LANCZOS_STEPS = 120
_DENSE_LIMIT = 3000

_METHODS = ("auto", "dense", "lanczos", "mixed")


def principal_coefficient(z: Any, logarithm: Any) -> Any:
    r""":math:`\alpha = \log(1-z)/z`, with the value of the logarithm (hence its branch) passed in."""
    return logarithm / z


class _DescentLogarithm:
    """log(1 - z): one sheet."""

    has_schur_form = True

    def start(self, z: Array) -> Array:
        """+i pi for real z > 1, real while every z <= 1."""
        if not np.isrealobj(z):
            return self.sheets(z)[0]
        # at 1 the floor itself: 1 - _FLOOR is rounded, and log1p of it .1 off
        modulus = np.where(z < 1, np.log1p(-np.where(z < 1, z, 0)), np.log(_FLOOR))
        if (z <= 1).all():
            return modulus
        return np.where(z > 1, np.log(np.maximum(z - 1, _FLOOR)) + 1j * np.pi, modulus)

    def sheets(self, z: Array) -> Array:
        singular = np.abs(1 - z) < _FLOOR
        value = np.where(singular, np.log(_FLOOR), log1p(-np.where(singular, 0, z)))
        return value[None, :]

    def coefficient(self, z: Array, logarithms: Array) -> Array:
        zero = z == 0
        return np.where(zero, -1.0, principal_coefficient(np.where(zero, 1.0, z), logarithms))


@dataclass(frozen=True)
class _HeavyBallLogarithm:
    """log rho for the two roots of rho^2 - (1 + b - z) rho + b = 0."""

    momentum: float

    has_schur_form = False

    def start(self, z: Array) -> Array:
        """The root of larger modulus (it tends to 1 at z = 0); at real z with Im in [0, pi]."""
        larger = self.sheets(z)[0]
        if not np.isrealobj(z):
            return larger
        upper = np.where(larger.imag < 0, larger.conj(), larger)
        return upper if upper.imag.any() else upper.real

    def sheets(self, z: Array) -> Array:
        """log rho of the larger root, as log1p(rho - 1) at small z, and of the other, b / rho."""
        b = self.momentum
        root = np.sqrt((1 - b) ** 2 - 2 * (1 + b) * z + z**2 + 0j)
        total = 1 + b - z  # rho = (total +- root) / 2
        plus = np.abs(total + root) >= np.abs(total - root)
        near_one = z / 2 * ((z - 2 * (1 + b)) / (root + 1 - b) - 1)  # rho - 1, without cancellation
        shift = np.where(plus, near_one, (total - root) / 2 - 1)
        singular = np.abs(1 + shift) < _FLOOR
        larger = np.where(singular, np.log(_FLOOR), log1p(np.where(singular, 0, shift)))
        if b < _FLOOR:  # the other root is 0 for every z, and no path leads there
            return larger[None]
        return np.stack([larger, np.log(b) - larger])

    def coefficient(self, z: Array, logarithms: Array) -> Array:
        zero = z == 0
        limit = -1 / (1 - self.momentum)
        return np.where(zero, limit, principal_coefficient(np.where(zero, 1.0, z), logarithms))


_DESCENT = _DescentLogarithm()


@dataclass(frozen=True, eq=False)
class _RealState:
    """A state of a path that has been real so far: its branch is that of a path which starts there.

    The Hessian is only decomposed if the path leaves the real axis from here.
    """

    problem: Problem
    lr: float
    theta: Array

    @cached_property
    def branch(self) -> Branch:
        return started(self.problem.hessian(self.theta), self.lr, _DESCENT)


def _is_real(theta: Array) -> bool:
    return not np.iscomplexobj(theta) or not theta.imag.any()


@dataclass(frozen=True)
class PrincipalFlow:
    r"""The principal flow of gradient descent with learning rate h = ``lr``.

    Parameters
    ----------
    problem : Problem
        With a Hessian that continues to complex theta (``analytic``). A problem that is not
        analytic is followed while every :math:`h\lambda < 1`, where the flow is real; beyond, the
        field raises `LeftRange`.
    lr : float
        h, positive.
    corrections : int
        Non-principal terms to add, 0, 1 or 2: :math:`-\frac{h^2}{12} T[g,g]`, then
        :math:`-\frac{h^3}{12}(H\,T[g,g] + T[g,Hg])`, with the third derivative T. They raise the order
        of the one-step error from 3 to 4 and 5.
    method : str
        "dense" decomposes the Hessian. "lanczos" uses Hessian-vector products, at real states
        only, to a relative error of 1e-10, and falls back to a decomposition (up to dim 3000) where
        it does not converge: a spectrum that crosses :math:`h\lambda = 1` continuously. "mixed" does
        so as long as the path is real, and decomposes from there on. "auto" is dense below dim 200,
        mixed below 512, and lanczos from there on.

    Notes
    -----
    Off the real axis H is complex symmetric: the field is :math:`V \alpha(h\Lambda) V^{-1} g` by a linear
    solve. Where the eigenvectors nearly coincide (reciprocal condition of V below 1e-9) it is taken
    from a Schur form instead, which exists on the principal branch only; elsewhere `LeftRange`. While
    continuity does not decide between branches, `integrate` takes the step again, shorter.

    A curvature that *falls* through :math:`h\lambda = 1` along its own direction passes below the
    singularity: its logarithm arrives with a full turn, :math:`2i\pi`, and the flow rotates once per
    step although gradient descent does not. That is the continued flow itself, not an error of the
    integration; restart from an iterate there (`eosim.compare` does).

    Raises
    ------
    TypeError, ValueError
        If a parameter is outside its domain.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> bowl = eosim.Quadratic([[1.8]])  # h * lambda = 1.8: gradient descent flips sign each step
    >>> flow = eosim.PrincipalFlow(bowl, lr=1.0)
    >>> path = eosim.integrate(flow, [1.0], np.arange(4.0))
    >>> path.theta[:, 0].real.round(9)
    array([ 1.   , -0.8  ,  0.64 , -0.512])
    """

    problem: Problem
    lr: float
    corrections: int = 0
    method: str = "auto"

    @property
    def is_complex(self) -> bool:
        """A problem that is not analytic is followed only where the flow is real."""
        return self.problem.analytic

    def __post_init__(self) -> None:
        interface(
            "PrincipalFlow: problem", self.problem, ("dim", "gradient", "hessian", "analytic")
        )
        domain = Interval(0, math.inf)
        object.__setattr__(self, "lr", real_number("PrincipalFlow: lr", self.lr, domain))
        if integer("PrincipalFlow: corrections", self.corrections, minimum=0) > 2:
            raise ValueError(
                f"PrincipalFlow: corrections must be 0, 1 or 2, got {self.corrections}"
            )
        choice("PrincipalFlow: method", self.method, _METHODS)
        if self.method == "auto":
            method = "lanczos"
            if self.problem.dim < LANCZOS_FROM:
                products = self.problem.dim >= MIXED_FROM and hasattr(self.problem, "hvp")
                method = "mixed" if products else "dense"
            object.__setattr__(self, "method", method)
        if self.method == "dense":
            dim = self.problem.dim
            dense_fits("PrincipalFlow: the Hessian", (dim, dim), 'method="lanczos" takes products')

    def coefficient(self, z: Array) -> Array:
        """alpha(z) at real z = h lambda, on the branch that starts with +i pi for z > 1."""
        z = np.asarray(z, dtype=float)
        return _DESCENT.coefficient(z, _DESCENT.start(z))

    def init(self, theta: Array) -> Branch | _RealState | None:
        """The branch at the start: +i pi wherever h lambda > 1."""
        if self.method == "lanczos":
            return None
        if self.method == "mixed" and _is_real(theta):
            return _RealState(self.problem, self.lr, theta.real)
        return started(self.problem.hessian(theta), self.lr, _DESCENT)

    def advance(
        self, theta: Array, branch: Branch | _RealState | None
    ) -> Branch | _RealState | None:
        """The branch continued to theta."""
        if branch is None:
            return None
        if isinstance(branch, _RealState):
            if _is_real(theta):
                return self.init(theta)
            branch = branch.branch
        return advanced(branch, self.problem.hessian(theta), self.lr, _DESCENT)

    def field(self, theta: Array, branch: Branch | _RealState | None = None) -> Array:
        """The vector field at theta, with logarithms continued from ``branch``; shape (dim,)."""
        g = self.problem.gradient(theta)
        started_real = branch is None or isinstance(branch, _RealState)
        if self.method == "lanczos" or (
            self.method == "mixed" and started_real and _is_real(theta)
        ):
            field = self._lanczos(theta, g)
        else:
            hessian = self.problem.hessian(theta)  # complex symmetric off the real axis
            if not self.problem.analytic:
                _refuse_beyond(1, self.problem, self.lr * np.linalg.eigvalsh(hessian.real)[-1])
            known = branch.branch if isinstance(branch, _RealState) else branch
            field = apply_dense(hessian, g, self.lr, known, _DESCENT)
        if self.corrections >= 1:
            Tgg = third_derivative(self.problem, theta, g, g)
            field = field - self.lr**2 * Tgg / 12
        if self.corrections >= 2:
            TgHg = third_derivative(self.problem, theta, g, self.problem.hvp(theta, g))
            field = field - self.lr**3 * (self.problem.hvp(theta, Tgg) + TgHg) / 12
        return field

    def _products(self, theta: Array) -> Callable[[Array], Array]:
        """v -> H v. A problem of functions may have them from its Hessian only: that is formed once."""
        problem = self.problem
        if (
            isinstance(problem, FunctionProblem)
            and problem.hvp_function is None
            and problem.hessian_function is not None
        ):
            hessian = problem.hessian(theta)
            return lambda v: hessian @ v
        return hessian_products(problem, theta)

    def _lanczos(self, theta: Array, g: Array) -> Array:
        if np.iscomplexobj(theta):
            if theta.imag.any():
                raise LeftRange(
                    "the state left the real axis (an eigenvalue passed h * lambda = 1), where the "
                    'Lanczos form does not exist; use method="dense", or restart from real iterates'
                )
            theta, g = theta.real, g.real
        field, error, ritz = apply_lanczos(
            self._products(theta),
            g,
            self.lr,
            _DESCENT,
            _LANCZOS_TOLERANCE,
            _LANCZOS_STEPS,
            give_up=self.problem.dim <= _DENSE_LIMIT,
        )
        if not self.problem.analytic and len(ritz):
            _refuse_beyond(1, self.problem, ritz[-1])
        if error <= _LANCZOS_TOLERANCE:
            return field
        if self.problem.dim > _DENSE_LIMIT:
            raise LeftRange(
                f"after {_LANCZOS_STEPS} Lanczos steps the field is known to {error:.1g} only: the "
                "spectrum of h * H comes close to 1 or crosses it continuously "
                f"(it spans {ritz[0]:.3g} to {ritz[-1]:.3g}), and dim = {self.problem.dim} is too large to "
                "decompose the Hessian"
            )
        hessian = self.problem.hessian(theta)
        return apply_dense(hessian, g, self.lr, None, _DESCENT)


@dataclass(frozen=True)
class HeavyBallPrincipalFlow:
    r"""The principal flow of heavy ball, :math:`v \leftarrow \beta v + g,\ \theta \leftarrow \theta - hv`.

    .. math:: \dot\theta = \frac{\log\rho(hH)}{hH}\, g, \qquad
              \rho^2 - (1 + \beta - z)\rho + \beta = 0, \quad \rho \to 1 \text{ as } z \to 0

    On a quadratic it equals heavy ball started on its slow manifold, exactly, and any heavy ball run
    after burn-in. The roots are complex for :math:`(1-\sqrt\beta)^2 < z < (1+\sqrt\beta)^2`; the
    flow diverges for :math:`z > 2(1+\beta)`. Derived here; a principal flow for heavy ball also
    appears in Cattaneo & Shigida 2025, arXiv 2509.08483.

    Parameters
    ----------
    problem : Problem
        Analytic; otherwise followed while every :math:`h\lambda < (1-\sqrt\beta)^2`, where the flow is
        real.
    lr : float
        h, positive.
    momentum : float
        beta in [0, 1).

    Raises
    ------
    TypeError, ValueError
        If a parameter is outside its domain.
    """

    problem: Problem
    lr: float
    momentum: float = 0.9

    @property
    def is_complex(self) -> bool:
        """A problem that is not analytic is followed only where the flow is real."""
        return self.problem.analytic

    def __post_init__(self) -> None:
        name = "HeavyBallPrincipalFlow"
        interface(f"{name}: problem", self.problem, ("dim", "gradient", "hessian", "analytic"))
        lr = real_number(f"{name}: lr", self.lr, Interval(0, math.inf))
        momentum = real_number(
            f"{name}: momentum", self.momentum, Interval(0, 1, lower_closed=True)
        )
        object.__setattr__(self, "lr", lr)
        object.__setattr__(self, "momentum", momentum)

    @property
    def _logarithm(self) -> _HeavyBallLogarithm:
        return _HeavyBallLogarithm(self.momentum)

    def coefficient(self, z: Array) -> Array:
        """log(rho(z)) / z at real z, with -1/(1 - beta) at 0."""
        z = np.asarray(z, dtype=float)
        return self._logarithm.coefficient(z, self._logarithm.start(z))

    def init(self, theta: Array) -> Branch:
        return started(self.problem.hessian(theta), self.lr, self._logarithm)

    def advance(self, theta: Array, branch: Branch) -> Branch:
        return advanced(branch, self.problem.hessian(theta), self.lr, self._logarithm)

    def field(self, theta: Array, branch: Branch | None = None) -> Array:
        hessian, g = self.problem.hessian(theta), self.problem.gradient(theta)
        if not self.problem.analytic:
            edge = (1 - math.sqrt(self.momentum)) ** 2
            _refuse_beyond(edge, self.problem, self.lr * np.linalg.eigvalsh(hessian.real)[-1])
        return apply_dense(hessian, g, self.lr, branch, self._logarithm)


def _refuse_beyond(edge: float, problem: Problem, z: float) -> None:
    if z >= edge:
        remedy = "Lower lr, or compare with a real flow"
        if isinstance(problem, FunctionProblem):
            remedy = (
                "Pass analytic=True to from_functions if its functions take complex theta, lower lr, "
                "or compare with a real flow"
            )
        raise LeftRange(
            f"h * lambda reached {z:.4g}, but {type(problem).__name__} is not analytic: the flow turns "
            f"complex at h * lambda = {edge:.4g}. {remedy}"
        )
