r"""The stability threshold of any linear update rule, found exactly from its ``step``.

On a one-dimensional quadratic of curvature :math:`\lambda` the gradient is :math:`\lambda x`, and a
rule whose step is linear maps its state s = (x, buffers) to :math:`(A + \lambda\, b\, e_x^\top)\, s`:
A is the step without gradient, b the response to a unit gradient. The characteristic polynomial is
then affine in the curvature,

.. math:: \det(zI - A - \lambda b e_x^\top) = p(z) + \lambda\, q(z),

so a root can meet the unit circle at z = 1, z = -1, or at a complex pair :math:`e^{\pm i\omega}`
with :math:`p\,\bar q` real: in :math:`c = \cos\omega` that is a polynomial, whose real roots in (-1, 1)
are all candidates there are. At a simple root the sign of :math:`d|z|/d\lambda` says whether it
leaves; multiple roots and tangencies are settled by the spectral radius between candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.polynomial import chebyshev, polynomial

from eosim._checks import Array
from eosim.certified import Enclosure, asked
from eosim.optimizers import Rule, check_rule, needs_local
from eosim.stability.exact_recursion import enclose_critical_sharpness

# Step counters (bias corrections) are taken where every customary correction has died out.
_LATE = 10**9
# A spectral radius above 1 by less than this is rounding: a double root on the unit circle carries
# an error of sqrt(machine epsilon) = 1.5e-8.
_RADIUS_TOLERANCE = 1e-7
# |p(z)| below this times the sum of its |coefficients| is a root.
_ROUNDING = 1e-12
# d log|z| / d log(curvature) above this is a crossing; a tangency has 0.
_CROSSING_RATE = 1e-6


@overload
def critical_sharpness(rule: Rule) -> float: ...
@overload
def critical_sharpness(rule: Rule, *, certify: bool) -> float | Enclosure: ...
def critical_sharpness(rule: Rule, *, certify: bool = False) -> float | Enclosure:
    """The smallest curvature above 0 beyond which ``rule`` is linearly unstable.

    Beyond it the spectral radius of the recursion on a quadratic exceeds 1.

    Parameters
    ----------
    rule : Rule
        Any rule whose step is linear in (theta, state, gradient), a user's too. Integer entries of
        its state are step counters, and are taken late (10^9), after any bias correction.
    certify : bool
        Prove the threshold in exact rationals, from the rule's own step: every float attribute of
        the rule is the binary number that it is. Needs ``pip install "eosim[certify]"``.

    Returns
    -------
    float
        0 if the rule is unstable at once, inf if it never is. Relative error about 1e-12; it grows
        where poles of the rule crowd at z = 1 (quasi-hyperbolic momentum with nu > 1 keeps 1e-9 up
        to a momentum of about 1 - 1e-4).
    Enclosure
        With ``certify``: the nearest floats on both sides. The spectral radius is at most 1 at every
        positive curvature up to ``lower``, and exceeds 1 at curvatures arbitrarily close to a number in
        the enclosure. (0, 0) and (inf, inf) are proved, too.

    Raises
    ------
    TypeError, ValueError
        If the rule is none, or its step is not linear (an adaptive rule must have its
        preconditioner frozen first).
    ImportError, CannotCertify
        With ``certify``: if python-flint is missing; if the step counts, does not run on exact
        numbers, or keeps a pair of roots reciprocal at every curvature.

    Examples
    --------
    >>> import eosim
    >>> round(eosim.stability.critical_sharpness(eosim.EMAMomentum(lr=1.0, momentum=0.9)), 9)
    38.0
    """
    drift, response = linearised(rule)
    if asked(certify):
        return enclose_critical_sharpness(rule)
    p, q = _polynomials(drift, response)
    unit = float(np.abs(q).max())  # curvatures are measured in units of 1 / unit, about 1 / lr
    if unit == 0:
        return math.inf if _Pencil(p, q, (drift, response)).radius(0.0) <= 1 else 0.0
    pencil = _deflated(_Pencil(p, q / unit, (drift, response / unit)))
    meetings = [(z, 0.0) for z in pencil.start if abs(abs(z) - 1) < _RADIUS_TOLERANCE]
    meetings += pencil.candidates()
    edges = sorted({0.0, *(curvature for _, curvature in meetings)})
    for index, edge in enumerate(edges):
        beyond = edges[index + 1] if index + 1 < len(edges) else 2 * edge + 1
        leaves = any(pencil.leaves(z, k) for z, k in meetings if k == edge)
        if leaves or pencil.radius((edge + beyond) / 2) > 1 + _RADIUS_TOLERANCE:
            return edge / unit
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

    Raises
    ------
    TypeError, ValueError
        As `critical_sharpness`.
    """
    check_rule(rule)
    name = type(rule).__name__
    if needs_local(rule):
        raise ValueError(
            f"critical_sharpness needs a linear rule, but {name}.step asks for local derivatives: "
            "its learning rate depends on the state"
        )
    template = rule.init(np.zeros(1))
    counters = [isinstance(entry, (int, np.integer)) for entry in template]
    size = 1 + counters.count(False)

    def step(vector: Array, gradient: float) -> Array:
        entries = iter(vector[1:])
        state = tuple(
            _LATE if counter else np.full(np.shape(entry), next(entries))
            for counter, entry in zip(counters, template, strict=True)
        )
        result = rule.step(vector[:1].copy(), state, np.array([gradient]))
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"{name}.step must return (theta, state), got {type(result).__name__}")
        theta, state = result
        moving = [entry for counter, entry in zip(counters, state, strict=True) if not counter]
        return np.concatenate([np.ravel(entry).astype(float) for entry in (theta, *moving)])

    with np.errstate(all="ignore"):  # a rule that divides by its buffers fails the test below
        drift = np.column_stack([step(unit, 0.0) for unit in np.eye(size)])
        response = step(np.zeros(size), 1.0)
        generator = np.random.default_rng(0)
        # a large rate must not overflow
        unit = max(1.0, float(np.abs(response).max()), float(np.abs(drift).max()))
        for scale in (1e-3, 1.0, 1e3):  # an offset or a nonlinearity shows at one of these sizes
            vector = scale / unit * generator.standard_normal(size)
            gradient = scale / unit * generator.normal()
            expected, actual = drift @ vector + gradient * response, step(vector, gradient)
            terms = np.abs(drift) @ np.abs(vector) + np.abs(gradient * response)
            if not (np.abs(actual - expected) <= 1e-9 * terms + 1e-300).all():
                raise ValueError(
                    f"critical_sharpness needs a linear rule, but {name}.step is not linear in "
                    "(theta, state, gradient); freeze the preconditioner of an adaptive rule first"
                )
    return drift, response


@dataclass(frozen=True, eq=False)
class _Pencil:
    """p + curvature * q (constant term first), and the recursion it comes from, if it still fits."""

    p: Array
    q: Array
    recursion: tuple[Array, Array] | None

    @property
    def start(self) -> Array:
        """The roots at curvature 0."""
        if self.recursion is None:
            return polynomial.polyroots(self.p)
        return np.linalg.eigvals(self.recursion[0])

    def radius(self, curvature: float) -> float:
        """The spectral radius: the smaller of two estimates, as rounding spreads roots outwards."""
        roots = polynomial.polyroots(self.p + curvature * self.q)
        estimate = float(np.abs(roots).max(initial=0.0))
        if self.recursion is None:
            return estimate
        matrix = self.recursion[0].copy()
        matrix[:, 0] += curvature * self.recursion[1]
        return min(estimate, float(np.abs(np.linalg.eigvals(matrix)).max()))

    def leaves(self, z: complex, curvature: float) -> bool:
        """Whether the simple root z moves out of the unit circle as the curvature grows."""
        slope = polynomial.polyval(z, polynomial.polyder(self.p + curvature * self.q))
        if abs(slope) < 1e-6 * np.abs(self.p).sum():  # a multiple root
            return False
        rate = (-polynomial.polyval(z, self.q) / slope / z).real  # d log|z| / d curvature
        return bool(rate * (curvature or 1.0) > _CROSSING_RATE)

    def curvature(self, z: complex) -> complex | None:
        """The curvature at which z is a root; None where there is none.

        1 / (e_x (zI - A)^-1 b) keeps its digits where the coefficients cancel.
        """
        if self.recursion is None:
            numerator, denominator = polynomial.polyval(z, self.p), polynomial.polyval(z, self.q)
            return complex(-numerator / denominator) if denominator else None
        drift, response = self.recursion
        try:
            transfer = np.linalg.solve(z * np.eye(len(drift)) - drift, response)[0]
        except np.linalg.LinAlgError:
            return None
        return complex(1 / transfer) if transfer else None

    def candidates(self) -> list[tuple[complex, float]]:
        """Every (z, positive curvature) at which a root meets the unit circle."""
        p, q, m = self.p, self.q, len(self.p) - 1
        # On |z| = 1, Im(p conj(q)) = sum_d E_d sin(d w), E_d = sum_j (p_{j+d} q_j - p_j q_{j+d});
        # divided by sin(w) it is a sum of Chebyshev polynomials of the second kind in c = cos(w),
        # and of the first kind by U_n = 2 (T_n + T_{n-2} + ...) - [n even].
        series: Array = np.zeros(m)
        for degree in range(m):
            d = degree + 1
            lag = sum(p[j + d] * q[j] - p[j] * q[j + d] for j in range(m + 1 - d))
            series[degree % 2 : d : 2] += 2 * lag
            if degree % 2 == 0:
                series[0] -= lag
        circle = [1.0 + 0j, -1.0 + 0j]
        size = np.abs(series).max(initial=0.0)
        if size > 0:
            series = chebyshev.chebtrim(series, 1e-14 * size)
            roots = chebyshev.chebroots(series) if len(series) > 1 else np.array([])
            # A double root comes out as a complex pair with imaginary parts of sqrt(epsilon).
            real = roots[(np.abs(roots.imag) < 1e-6) & (np.abs(roots.real) < 1)].real
            circle += [complex(c, math.sqrt(1 - c * c)) for c in real]
        found = []
        for z in circle:
            if np.abs(z - self.start).min(initial=1.0) < 1e-9:
                continue  # a root at curvature 0 already
            curvature = self.curvature(z)
            if z.imag and curvature is not None:
                curvature = self._polished(z, curvature)
            if curvature is not None and 0 < curvature.real < math.inf:
                found.append((z, curvature.real))
        return found

    def _polished(self, z: complex, curvature: complex) -> complex:
        """Newton's method on Im curvature(e^{iw}) = 0, to remove the rounding of the polynomial."""
        angle, step = math.atan2(z.imag, z.real), 1e-6
        for _ in range(4):
            value = self.curvature(complex(math.cos(angle), math.sin(angle)))
            ahead = self.curvature(complex(math.cos(angle + step), math.sin(angle + step)))
            if value is None or ahead is None or ahead.imag == value.imag:
                break
            move = value.imag * step / (ahead.imag - value.imag)
            if not abs(move) < 1e-4:
                break
            curvature, angle = value, angle - move
        final = self.curvature(complex(math.cos(angle), math.sin(angle)))
        return final if final is not None and abs(final.imag) <= abs(curvature.imag) else curvature


def _deflated(pencil: _Pencil) -> _Pencil:
    """Without the roots at +-1 that p and q share: modes on the circle that no gradient moves."""
    p, q = pencil.p, pencil.q
    for z in (1.0, -1.0):
        while len(p) > 1 and all(
            abs(polynomial.polyval(z, c)) <= _ROUNDING * np.abs(c).sum() for c in (p, q)
        ):
            p, q = polynomial.polydiv(p, [-z, 1])[0], polynomial.polydiv(q, [-z, 1])[0]
            q = np.pad(q, (0, len(p) - len(q)))
    return pencil if len(p) == len(pencil.p) else _Pencil(p, q, None)


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
