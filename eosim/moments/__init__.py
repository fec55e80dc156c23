r"""Averaged dynamics of SGD on least squares: the expected loss without a single random number.

For a model that is linear in theta (or linearised: a frozen NTK) the second moments of the residuals
close, exactly. `Covariance` follows them at any batch size, sampling scheme and momentum in O(n^3) per
step; `DiagonalClosure` keeps their diagonal in the eigenbasis of the NTK, in O(n) to O(n^2);
`volterra_equation` states both as integral equations; `HomogenizedSGD` and `StreamingSGD` are their
limits in continuous time. `predict` runs any of them and returns a `Trajectory`.
"""

from eosim.moments.closures import DiagonalClosure, Energies, energies, mode_moments
from eosim.moments.continuous import HomogenizedSGD, StreamingSGD
from eosim.moments.covariance import Covariance
from eosim.moments.driver import predict
from eosim.moments.volterra import VolterraEquation, volterra_equation

__all__ = [
    "Covariance",
    "DiagonalClosure",
    "Energies",
    "HomogenizedSGD",
    "StreamingSGD",
    "VolterraEquation",
    "energies",
    "mode_moments",
    "predict",
    "volterra_equation",
]
