"""The frozen NTK: a linear model that has a given kernel and given residuals."""

from __future__ import annotations

from typing import Any

import numpy as np

from eosim._checks import float_array, symmetric_matrix
from eosim.problems.regression import LinearRegression


def frozen_ntk(ntk: Any, residuals: Any) -> LinearRegression:
    r"""The linear model with NTK :math:`\Theta = J J^\top / n` whose residuals at theta = 0 are given.

    Its gradient descent is :math:`z \leftarrow z - \eta \Theta z`, its SGD
    :math:`z \leftarrow z - \eta \Theta \frac{n}{B} M z`: the frozen NTK.

    Parameters
    ----------
    ntk : (n, n) array
        Theta, symmetric, positive semi-definite.
    residuals : (n,) array
        z at the start, theta = 0.

    Returns
    -------
    LinearRegression
        With inputs :math:`V (n\Lambda)^{1/2}` where :math:`\Theta = V \Lambda V^\top`, and dim = n.

    Raises
    ------
    TypeError, ValueError
        If the NTK is not symmetric, or has an eigenvalue below -1e-10 of its largest (our choice).

    Examples
    --------
    >>> import numpy as np, eosim
    >>> from eosim.ensemble import run_ensemble
    >>> from eosim.problems.frozen import frozen_ntk
    >>> model = frozen_ntk(np.diag([1.0, 0.5]), [1.0, -1.0])
    >>> rule = eosim.GradientDescent(0.1)
    >>> ensemble = run_ensemble(model, rule, np.zeros(2), 10, batch_sizes=1, n_replicas=4, seed=0)
    >>> bool(np.all(ensemble.survivor_mean()[0, 0, 1:] < 0.5))
    True
    """
    matrix = symmetric_matrix("ntk", ntk)
    n = len(matrix)
    z = float_array("residuals", residuals, shape=(n,))
    values, vectors = np.linalg.eigh(matrix)
    if values[0] < -1e-10 * max(values[-1], 0.0):
        raise ValueError(
            f"ntk must be positive semi-definite; its eigenvalues run from {values[0]:.6g} to "
            f"{values[-1]:.6g}"
        )
    return LinearRegression(vectors * np.sqrt(n * np.maximum(values, 0)), -z)
