r"""Truncated flows: the backward-error series of gradient descent, cut at a finite power of h.

The iterates of :math:`F(\theta) = \theta - h g(\theta)` are samples of a flow whose field is a series
in h. With the Hessian H and the third derivative :math:`T[a,b]_i = \sum_{jk} T_{ijk} a_j b_k`,

.. math:: \dot\theta = -g - \tfrac h2 H g - h^2 (\tfrac13 H^2 g + \tfrac1{12} T[g,g])
          - h^3 (\tfrac14 H^3 g + \tfrac1{12} H\,T[g,g] + \tfrac1{12} T[g, Hg]) - \dots

Every truncation contracts along every :math:`\lambda > 0`, with no change of sign: none of them
oscillates or diverges. Beyond order 2 these fields are no gradient fields.

Even truncations are wrong at strong negative curvature: below the root of their coefficient
(:math:`h\lambda = -2` for two terms, -1.62 for four) they contract where gradient descent expands,
and converge to maxima and saddles. They leave their range there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from eosim import measure
from eosim._checks import Array, Interval, integer, interface, real_number
from eosim.flows.base import LeftRange
from eosim.problems.base import Problem, third_derivative

_POSITIVE = Interval(0, math.inf)


def series_coefficient(z: Any, n_terms: int) -> Any:
    r""":math:`-\sum_{p<n} z^p / (p+1)`: the Taylor polynomial of :math:`\log(1-z)/z`."""
    return -sum(z**p / (p + 1) for p in range(n_terms))


@cache
def lowest_valid(n_terms: int) -> float:
    """The h * lambda below which a truncation contracts although gradient descent expands."""
    if n_terms % 2 == 1:
        return -math.inf
    roots = np.roots([1 / (p + 1) for p in reversed(range(n_terms))])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max())


class _Truncated:
    """The range check that the truncated flows share: made at the start and after each step."""

    problem: Problem
    lr: Any
    is_complex = False

    _cut: ClassVar[str]  # the field that says how many terms are kept

    @property
    def _n_terms(self) -> int:
        return int(getattr(self, self._cut))

    def init(self, theta: Array) -> None:
        self.advance(theta, None)

    def advance(self, theta: Array, branch: Any) -> None:
        """Raises `LeftRange` where the truncation contracts along a direction that expands."""
        lowest = lowest_valid(self._n_terms)
        if lowest == -math.inf:
            return
        try:
            z = self.lr * measure.spectrum_ends(self.problem, theta).smallest
        except ValueError as error:
            raise FloatingPointError(str(error)) from None
        if z < lowest:
            raise LeftRange(
                f"h * lambda_min = {z:.4g} is below {lowest:.4g}, where an even truncation contracts "
                "although gradient descent expands; use an odd order, or PrincipalFlow"
            )

    def coefficient(self, z: Array) -> Array:
        """alpha(z), a polynomial."""
        return series_coefficient(np.asarray(z, dtype=float), self._n_terms)


@dataclass(frozen=True)
class ModifiedFlow(_Truncated):
    r"""The modified flow of gradient descent to a given order, with third-derivative terms.

    Order 1 is the gradient flow; order 2 is implicit gradient regularisation, the gradient flow of
    :math:`L + \frac h4 |g|^2` (Barrett & Dherin 2021, arXiv 2009.11162). The one-step error against
    gradient descent is :math:`O(h^{\mathrm{order}+1})`. Matrix-free: Hessian-vector products and
    `eosim.problems.third_derivative` only.

    Parameters
    ----------
    problem : Problem
    lr : float
        h, positive.
    order : int
        1 to 4.

    Raises
    ------
    TypeError, ValueError
        If lr is no positive real number or order is not 1, 2, 3 or 4.
    """

    problem: Problem
    lr: Any
    order: int = 2

    _cut = "order"

    def __post_init__(self) -> None:
        _check_lr(self)
        order = integer("ModifiedFlow: order", self.order, minimum=1)
        if order > 4:
            raise ValueError(
                f"ModifiedFlow: order must be 1, 2, 3 or 4, got {order}; ForwardDifferenceFlow has "
                "every order"
            )

    def field(self, theta: Array, branch: Any = None) -> Array:
        h = self.lr
        g = self.problem.gradient(theta)
        field = -g
        if self.order >= 2:
            Hg = self.problem.hvp(theta, g)
            field = field - h * Hg / 2
        if self.order >= 3:
            HHg = self.problem.hvp(theta, Hg)
            Tgg = third_derivative(self.problem, theta, g, g)
            field = field - h**2 * (HHg / 3 + Tgg / 12)
        if self.order >= 4:
            HHHg, HTgg = self.problem.hvp(theta, HHg), self.problem.hvp(theta, Tgg)
            TgHg = third_derivative(self.problem, theta, g, Hg)
            field = field - h**3 * (HHHg / 4 + HTgg / 12 + TgHg / 12)
        return field


@dataclass(frozen=True)
class PrincipalSeries(_Truncated):
    r"""The principal flow's series cut after n terms, :math:`-\sum_{p<n} h^p H^p g/(p+1)`.

    It converges to the principal flow while every :math:`|h\lambda| < 1` (Rosca et al. 2023,
    arXiv 2302.01952); one term is the gradient flow, two are implicit gradient regularisation.

    Parameters
    ----------
    problem : Problem
    lr : float
        h, positive.
    n_terms : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If lr is no positive real number or n_terms no positive integer.
    """

    problem: Problem
    lr: Any
    n_terms: int = 3

    _cut = "n_terms"

    def __post_init__(self) -> None:
        _check_lr(self)
        integer("PrincipalSeries: n_terms", self.n_terms, minimum=1)

    def field(self, theta: Array, branch: Any = None) -> Array:
        power = self.problem.gradient(theta)  # h^p H^p g
        field = -power
        for p in range(1, self.n_terms):
            power = self.lr * self.problem.hvp(theta, power)
            field = field - power / (p + 1)
        return field


@dataclass(frozen=True)
class ForwardDifferenceFlow(_Truncated):
    r"""The modified flow of any order from gradients alone.

    The field is the logarithm of the descent map, expanded in forward differences of its iterates
    (:math:`\theta_0 = \theta,\ \theta_{k+1} = \theta_k - h g_k`; our derivation):

    .. math:: h f = \sum_{m=1}^{n} \frac{(-1)^{m+1}}{m}\, \Delta^m \theta
                  = -h \sum_{m=1}^{n} \frac{(-1)^{m+1}}{m}\, \Delta^{m-1} g

    It holds the terms of every kind up to order n: the cheapest flow of its order.

    Parameters
    ----------
    problem : Problem
    lr : float
        h, positive.
    order : int
        At least 1, the number of gradients per evaluation.

    Raises
    ------
    TypeError, ValueError
        If lr is no positive real number or order no positive integer.
    """

    problem: Problem
    lr: Any
    order: int = 3

    _cut = "order"

    def __post_init__(self) -> None:
        _check_lr(self)
        integer("ForwardDifferenceFlow: order", self.order, minimum=1)

    def field(self, theta: Array, branch: Any = None) -> Array:
        gradients, point = [], theta
        for _ in range(self.order):
            gradients.append(self.problem.gradient(point))
            point = point - self.lr * gradients[-1]
        field = 0 * theta
        for m in range(1, self.order + 1):
            field = field + (-1) ** m * gradients[0] / m
            gradients = [b - a for a, b in pairwise(gradients)]
        return field


def _check_lr(flow: Any) -> None:
    interface(f"{type(flow).__name__}: problem", flow.problem, ("gradient",))
    if not hasattr(flow.lr, "free_symbols"):  # symbols pass: theory executes these fields on them
        lr = real_number(f"{type(flow).__name__}: lr", flow.lr, _POSITIVE)
        object.__setattr__(flow, "lr", lr)
