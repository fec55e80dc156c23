r"""The stability threshold of any linear update rule, found exactly from its ``step``.

On a one-dimensional quadratic of curvature :math:`\lambda` the gradient is :math:`\lambda x`, and
a rule whose step is linear maps its state s = (x, buffers) to :math:`(A + \lambda\, b\, e_x^\top) s`:
A is the step without gradient, b the response to a unit gradient. The characteristic polynomial is
then affine in the curvature,

.. math:: \det(zI - A - \lambda b e_x^\top) = p(z) + \lambda\, q(z),

so a root can meet the unit circle at z = 1, z = -1, or at a complex pair :math:`e^{\pm i\omega}` with
:math:`p\,\bar q` real: in :math:`c = \cos\omega` that is a polynomial, whose real roots in (-1, 1)
are all candidates there are. Stability is constant between candidates and tested there.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import chebyshev

from eosim._checks import Array
from eosim.optimizers import Rule

# Step counters (bias corrections) are taken where every customary correction has died out.
_LATE = 10**9
# A spectral radius above 1 by less than this is rounding: eigenvalues of a defective matrix (a
# double root on the unit circle) carry errors up to sqrt(machine epsilon) = 1.5e-8.
_RADIUS_TOLERANCE = 1e-7


def critical_sharpness(rule: Rule) -> float:
    """The smallest curvature above 0 beyond which ``rule`` is linearly unstable.

    Beyond it the spectral radius of the recursion on a quadratic exceeds 1.

    Parameters
    ----------
    rule : Rule
        Any rule whose step is linear in (theta, state, gradient), a user's too. Integer entries of
        its state are step counters, and are taken late (10^9), after any bias correction.

    Returns
    -------
    float
        0 if the rule is unstable at once, inf if it never is.

    Raises
    ------
    ValueError
        If the step is not linear (an adaptive rule must have its preconditioner frozen first).

    Examples
    --------
    >>> import eosim
    >>> round(eosim.stability.critical_sharpness(eosim.EMAMomentum(lr=1.0, momentum=0.9)), 9)
    38.0
    """
    drift, response = linearised(rule)
    candidates = sorted(_candidates(drift, response))
    # Stability cannot change inside the gaps between candidates: test one point of each.
    edges = [0.0, *candidates]
    for index, edge in enumerate(edges):
        beyond = edges[index + 1] if index + 1 < len(edges) else 2 * edge + 1 / _scale(response)
        probe = (edge + beyond) / 2
        matrix = drift.copy()
        matrix[:, 0] += probe * response
        if np.abs(np.linalg.eigvals(matrix)).max() > 1 + _RADIUS_TOLERANCE:
            return edge
    return math.inf


def linearised(rule: Rule) -> tuple[Array, Array]:
    r"""The recursion of ``rule`` on a one-dimensional quadratic: (A, b).

    One step maps s = (x, buffers) to :math:`(A + \lambda\, b\, e_x^\top)\, s`.

    Returns
    -------
    drift : (m, m) array
        A: the step with gradient 0.
    response : (m,) array
        b: the step from s = 0 with gradient 1.
    """
    template = rule.init(np.zeros(1))
    counters = [isinstance(entry, (int, np.integer)) for entry in template]
    size = 1 + counters.count(False)

    def step(vector: Array, gradient: float) -> Array:
        entries = iter(vector[1:])
        state = tuple(
            _LATE if counter else np.full(np.shape(entry), next(entries))
            for counter, entry in zip(counters, template, strict=True)
        )
        theta, state = rule.step(vector[:1].copy(), state, np.array([gradient]))
        moving = [entry for counter, entry in zip(counters, state, strict=True) if not counter]
        return np.concatenate([np.ravel(entry).astype(float) for entry in (theta, *moving)])

    drift = np.column_stack([step(unit, 0.0) for unit in np.eye(size)])
    response = step(np.zeros(size), 1.0)
    generator = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 1e3):  # an offset or a nonlinearity shows at one of these sizes
        vector, gradient = scale * generator.standard_normal(size), scale * generator.normal()
        expected, actual = drift @ vector + gradient * response, step(vector, gradient)
        size_of_terms = np.abs(drift) @ np.abs(vector) + np.abs(gradient * response)
        if not (np.abs(actual - expected) <= 1e-9 * size_of_terms + 1e-300).all():
            raise ValueError(
                f"critical_sharpness needs a linear rule, but {type(rule).__name__}.step is not "
                "linear in (theta, state, gradient); freeze the preconditioner of an adaptive rule "
                "first"
            )
    return drift, response


def _scale(response: Array) -> float:
    """The size of a unit of curvature: lr, as the rule's response shows it."""
    return float(np.abs(response).max()) or 1.0


def _candidates(drift: Array, response: Array) -> list[float]:
    """Every positive curvature at which a root can cross the unit circle."""
    scale = _scale(response)
    p, q = _polynomials(drift, response / scale)
    # On |z| = 1, Im(p conj(q)) = sum_d E_d sin(d w) with E_d = sum_j (p_{j+d} q_j - p_j q_{j+d});
    # divided by sin(w) it is a sum of Chebyshev polynomials of the second kind in c = cos(w).
    m = len(p) - 1
    lags = [
        sum(p[j + d] * q[j] - p[j] * q[j + d] for j in range(m + 1 - d)) for d in range(1, m + 1)
    ]
    # in Chebyshev polynomials of the first kind: U_n = 2 (T_n + T_{n-2} + ...) - [n even]
    series: Array = np.zeros(m)
    for degree, lag in enumerate(lags):
        series[degree % 2 : degree + 1 : 2] += 2 * lag
        if degree % 2 == 0:
            series[0] -= lag
    size = np.abs(series).max()
    circle = [1.0 + 0j, -1.0 + 0j]
    if size > 0:
        series = chebyshev.chebtrim(series, 1e-14 * size)
        roots = chebyshev.chebroots(series) if len(series) > 1 else np.array([])
        # A double root comes out as a complex pair with imaginary parts of sqrt(epsilon).
        real = roots[(np.abs(roots.imag) < 1e-6) & (np.abs(roots.real) < 1)].real
        circle += [complex(c, math.sqrt(1 - c * c)) for c in real]
    found = []
    for z in circle:
        curvature = _curvature(drift, response / scale, z)
        if z.imag and curvature is not None:
            curvature = _polished(drift, response / scale, z, curvature)
        if curvature is not None and 0 < curvature.real < math.inf:
            found.append(curvature.real / scale)
    return found


def _curvature(drift: Array, response: Array, z: complex) -> complex | None:
    """The lambda for which z is a root: 1 / (e_x (zI - A)^-1 b); None if z is one for every lambda."""
    try:
        transfer = np.linalg.solve(z * np.eye(len(drift)) - drift, response)[0]
    except np.linalg.LinAlgError:
        return None
    return complex(1 / transfer) if transfer != 0 else None


def _polished(drift: Array, response: Array, z: complex, curvature: complex) -> complex:
    """Newton's method on Im lambda(e^{iw}) = 0, to remove the rounding of the polynomial."""
    angle, step = math.atan2(z.imag, z.real), 1e-6
    for _ in range(4):
        value = _curvature(drift, response, complex(math.cos(angle), math.sin(angle)))
        ahead = _curvature(drift, response, complex(math.cos(angle + step), math.sin(angle + step)))
        if value is None or ahead is None or ahead.imag == value.imag:
            break
        move = value.imag * step / (ahead.imag - value.imag)
        if not abs(move) < 1e-4:
            break
        curvature, angle = value, angle - move
    final = _curvature(drift, response, complex(math.cos(angle), math.sin(angle)))
    return final if final is not None and abs(final.imag) <= abs(curvature.imag) else curvature


def _polynomials(drift: Array, response: Array) -> tuple[Array, Array]:
    """Coefficients (constant term first) of p = det(zI - A) and q, with q = e_x adj(zI-A) (-b).

    Faddeev and LeVerrier's recursion gives the adjugate's coefficient matrices on the way to p.
    """
    m = len(drift)
    p, q = np.zeros(m + 1), np.zeros(m + 1)
    p[m] = 1.0
    matrix = np.eye(m)
    for k in range(1, m + 1):
        q[m - k] = -(matrix @ response)[0]
        product = drift @ matrix
        p[m - k] = -np.trace(product) / k
        matrix = product + p[m - k] * np.eye(m)
    return p, q
