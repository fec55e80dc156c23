r"""How fast loss and sharpness change along a flow."""

from __future__ import annotations

from typing import Any

import numpy as np

from eosim._checks import Array, interface, point
from eosim.flows.base import Flow
from eosim.problems.base import third_derivative


def loss_rate(flow: Flow, theta: Array, branch: Any = None) -> Any:
    r"""dE/dt along a flow, :math:`g^\top \dot\theta = \sum_i \alpha(z_i)(u_i^\top g)^2`.

    For the gradient flow :math:`-|g|^2`. Along the principal flow a direction adds to the loss only
    where :math:`h\lambda > 2`; its rate is complex where :math:`h\lambda > 1` (bilinear, so that it is
    the derivative of the continued loss). On a quadratic its integral over one step is the change of
    gradient descent, :math:`-h \sum_i (1 - z_i/2)(u_i^\top g)^2`.
    """
    interface("flow", flow, ("problem", "field"))
    (theta,) = point(flow.problem, theta=theta)
    rate = flow.problem.gradient(theta) @ flow.field(theta, branch)
    return rate[()] if isinstance(rate, np.ndarray) else rate


def sharpness_rate(flow: Flow, theta: Array, branch: Any = None) -> Any:
    r"""dlambda_1/dt along a flow at a real state, :math:`T[u_1,u_1]^\top \dot\theta`.

    With the third derivative T and the top eigenvector :math:`u_1`; for the principal flow
    :math:`\sum_j \alpha(z_j)(u_j^\top g)(u_j^\top \nabla\lambda_1)`: where :math:`z_1` passes 2 the
    sharp direction's term changes the sign of its real part. For a simple top eigenvalue.

    Raises
    ------
    ValueError
        If the top eigenvalue is degenerate (relative gap below 1e-10): it has no derivative.
    """
    interface("flow", flow, ("problem", "field"))
    (theta,) = point(flow.problem, theta=theta)
    if np.any(np.imag(theta)):
        raise ValueError("sharpness_rate needs a real state: at complex ones lambda_1 has no order")
    values, vectors = np.linalg.eigh(flow.problem.hessian(np.real(theta)))
    if len(values) > 1 and values[-1] - values[-2] <= 1e-10 * np.abs(values).max():
        raise ValueError("sharpness_rate needs a simple top eigenvalue; the two largest coincide")
    top = vectors[:, -1]
    return (third_derivative(flow.problem, theta, top, top) @ flow.field(theta, branch))[()]
