"""Flows on a quadratic, in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

from eosim._checks import Array, float_array, interface, state_vector
from eosim.flows._overflow import exponential_sum
from eosim.flows.base import Flow
from eosim.problems.toys import Quadratic


def closed_form(flow: Flow, theta0: Any, times: Any) -> Array:
    r"""States of a flow on a `Quadratic` at ``times``, exact to rounding.

    .. math:: \theta(t) = c + \sum_i e^{\alpha(h\lambda_i)\,\lambda_i t}\, u_i u_i^\top (\theta_0-c)

    For the principal flow the exponential is :math:`(1-h\lambda)^{t/h}`, so every multiple of h is
    an iterate of gradient descent, in every regime.

    Each coordinate is summed by itself: one that is beyond the largest float is infinite, with its
    sign, and leaves the others finite. A mode in which :math:`\theta_0 - c` has no part stays out,
    however fast it grows. Both are as exact as the eigenvectors: where these are rotated, a part of
    rounding grows like any other.

    Parameters
    ----------
    flow : Flow
        Whose problem is a `Quadratic`.
    theta0 : (dim,) array-like
    times : (n_times,) array-like

    Returns
    -------
    (n_times, dim) array
        Complex where the flow is.

    Raises
    ------
    TypeError
        If the problem is not a `Quadratic`.
    """
    interface("flow", flow, ("problem", "field", "coefficient"))
    problem = flow.problem
    if not isinstance(problem, Quadratic):
        raise TypeError(
            "closed_form needs a flow on a Quadratic problem, got one on "
            f"{type(problem).__name__}; use eosim.integrate"
        )
    start = state_vector("theta0", theta0, problem.dim)
    times = float_array("times", times, shape=(None,))
    values, vectors = np.linalg.eigh(problem.hessian(start))
    h = 1.0 if flow.lr is None else flow.lr
    exponents = flow.coefficient(h * values) * values  # (dim,): growth rates
    weights = vectors.T @ (start - problem.center)  # (dim,)
    with np.errstate(over="ignore"):  # what grows so is infinite, what falls so is 0
        grown = np.multiply.outer(times, exponents)
    return problem.center + exponential_sum(vectors, grown, weights)
