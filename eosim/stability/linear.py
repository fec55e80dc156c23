r"""The stability threshold of any linear update rule, found exactly from its ``step``.

On a one-dimensional quadratic of curvature :math:`\lambda` the gradient is :math:`\lambda x`, and a
rule whose step is linear maps its state s = (x, buffers) to :math:`(A + \lambda\, b\, e_x^\top)\, s`:
A is the step without gradient, b the response to a unit gradient. The characteristic polynomial is
then affine in the curvature,

.. math:: \det(zI - A - \lambda b e_x^\top) = p(z) + \lambda\, q(z),

so a root can meet the unit circle at z = 1, z = -1, or at a complex pair :math:`e^{\pm i\omega}`
with :math:`p\,\bar q` real: in :math:`v = 1 - \cos\omega` that is a polynomial, whose real roots in
(0, 2) are all candidates there are. At a simple root the sign of :math:`d|z|/d\lambda` says whether it
leaves; multiple roots and tangencies are settled by the spectral radius between candidates. All of it
is computed in s = z - 1: memory puts the poles of a rule close to z = 1, at 1 - momentum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.polynomial import polynomial

from eosim._checks import Array
from eosim.certified import Enclosure, asked
from eosim.optimizers import Rule, check_rule, needs_local
from eosim.stability.exact_recursion import enclose_critical_sharpness

# Step counters (bias corrections) are taken where every customary correction has died out.
_LATE = 10**9
# |z|^2 - 1 below this times |z - 1| is rounding: a double root on the unit circle carries an error of
# sqrt(machine epsilon) = 1.5e-8.
_NOISE = 2e-7
# Of numbers of order 1.
_ROUNDING = 1e-14
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
        the rule, or of an object in it, is the binary number that it is. What the step computes from
        numbers of its code alone is rounded as it is in a run. Needs ``pip install "eosim[certify]"``.

    Returns
    -------
    float
        0 if the rule is unstable at once, inf if it never is. Relative error about 1e-12; two kinds of
        memory of very different lengths can cost up to five digits more.
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
    pencil = _pencil(drift, response)
    # curvatures are measured in units of 1 / unit, about 1 / lr
    unit = float(np.abs(pencil.q).max())
    if unit == 0:
        return 0.0 if pencil.unstable(0.0) else math.inf
    pencil = _deflated(pencil.scaled(unit))
    meetings = [(s, 0.0) for s in pencil.start if abs(_growth(s)) < _NOISE * abs(s) + _ROUNDING]
    meetings += pencil.candidates()
    edges = sorted({0.0, *(curvature for _, curvature in meetings)})
    for index, edge in enumerate(edges):
        beyond = edges[index + 1] if index + 1 < len(edges) else 2 * edge + 1
        leaves = any(pencil.leaves(s, k) for s, k in meetings if k == edge)
        if leaves or pencil.unstable((edge + beyond) / 2):
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
    if callable(getattr(rule, "linear", None)):
        raise ValueError(
            f"critical_sharpness needs a linear rule, but {name} is adaptive: "
            f"{name}(...).critical_sharpness() is its threshold for eigenvalues of P^-1 H, with its "
            "preconditioner P held fixed"
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


def _growth(s: Any) -> Any:
    """|z|^2 - 1 for z = 1 + s, without the cancellation at z = 1."""
    return 2 * np.real(s) + np.abs(s) ** 2


@dataclass(frozen=True, eq=False)
class _Pencil:
    """p + curvature * q in s = z - 1 (constant term first), and (A - I, b), if they still fit."""

    p: Array
    q: Array
    recursion: tuple[Array, Array] | None

    def scaled(self, unit: float) -> _Pencil:
        """In units of 1 / ``unit`` for the curvature."""
        assert self.recursion is not None
        shift, response = self.recursion
        return _Pencil(self.p, self.q / unit, (shift, response / unit))

    @property
    def start(self) -> Array:
        """The roots at curvature 0."""
        if self.recursion is None:
            return polynomial.polyroots(self.p)
        return np.linalg.eigvals(self.recursion[0])

    def unstable(self, curvature: float) -> bool:
        """Whether a root is outside the unit circle, by two estimates: rounding spreads roots outwards."""
        estimates: list[Any] = [polynomial.polyroots(self.p + curvature * self.q)]
        if self.recursion is not None:
            matrix = self.recursion[0].copy()
            matrix[:, 0] += curvature * self.recursion[1]
            estimates.append(np.linalg.eigvals(matrix))
        return all(
            (_growth(roots) > _NOISE * np.abs(roots) + _ROUNDING).any() for roots in estimates
        )

    def leaves(self, s: complex, curvature: float) -> bool:
        """Whether the simple root z = 1 + s moves out of the unit circle as the curvature grows."""
        derivative = polynomial.polyder(self.p + curvature * self.q)
        slope = polynomial.polyval(s, derivative)
        terms = polynomial.polyval(abs(s), np.abs(derivative))
        if abs(slope) <= 1e-6 * terms:  # a multiple root
            return False
        rate = (-polynomial.polyval(s, self.q) / slope / (1 + s)).real  # d log|z| / d curvature
        return bool(rate * (curvature or 1.0) > _CROSSING_RATE * (abs(s) or 1.0))

    def curvature(self, s: complex) -> complex | None:
        """The curvature at which 1 + s is a root; None where there is none.

        1 / (e_x (zI - A)^-1 b) keeps its digits where the coefficients cancel.
        """
        if self.recursion is None:
            numerator, denominator = polynomial.polyval(s, self.p), polynomial.polyval(s, self.q)
            return complex(-numerator / denominator) if denominator else None
        shift, response = self.recursion
        try:
            transfer = np.linalg.solve(s * np.eye(len(shift)) - shift, response)[0]
        except np.linalg.LinAlgError:
            return None
        return complex(1 / transfer) if transfer else None

    def candidates(self) -> list[tuple[complex, float]]:
        """Every (s, positive curvature) at which a root 1 + s meets the unit circle."""
        p, q, m = self.p, self.q, len(self.p) - 1
        # On |z| = 1, with v = 1 - cos(w): |s|^2 = 2v and Im(s^d) = sin(w) i_d(v), where i_0 = 0, i_1 = 1
        # and i_{d+1} = -2v (i_d + i_{d-1}); so Im(p conj(q)) / sin(w) is the sum over j > k of
        # (p_j q_k - p_k q_j) (2v)^k i_{j-k}(v).
        sines: list[Any] = [np.array([0.0]), np.array([1.0])]
        for _ in range(2, m + 1):
            sines.append(polynomial.polymul([0.0, -2.0], polynomial.polyadd(*sines[-2:])))
        series, size = np.zeros(m + 1), np.zeros(m + 1)
        for k in range(m):
            for j in range(k + 1, m + 1):
                minor = p[j] * q[k] - p[k] * q[j]
                term = np.concatenate([np.zeros(k), 2.0**k * sines[j - k]])
                series[: len(term)] += minor * term
                size[: len(term)] += (abs(p[j] * q[k]) + abs(p[k] * q[j])) * np.abs(term)
        series[np.abs(series) <= 1e-14 * size] = 0.0
        circle = [0.0 + 0j, -2.0 + 0j]
        if series.any():
            roots = polynomial.polyroots(np.trim_zeros(series))
            # A double root comes out as a complex pair with imaginary parts of sqrt(epsilon).
            real = roots[np.abs(roots.imag) < 1e-6 * np.abs(roots)].real
            circle += [complex(-v, math.sqrt(v * (2 - v))) for v in real if 0 < v < 2]
        start, found = self.start, []
        for s in circle:
            if (np.abs(s - start) <= 1e-9 * abs(s) + _ROUNDING).any():
                continue  # a root at curvature 0 already
            curvature = self.curvature(s)
            if s.imag and curvature is not None:
                curvature = self._polished(s, curvature)
            if curvature is not None and 0 < curvature.real < math.inf:
                found.append((s, curvature.real))
        return found

    def _polished(self, s: complex, curvature: complex) -> complex:
        """Newton's method on Im curvature(e^{iw}) = 0, to remove the rounding of the polynomial."""

        def at(angle: float) -> complex | None:
            return self.curvature(complex(-2 * math.sin(angle / 2) ** 2, math.sin(angle)))

        angle = math.atan2(s.imag, 1 + s.real)
        step = 1e-6 * angle
        for _ in range(4):
            value, ahead = at(angle), at(angle + step)
            if value is None or ahead is None or ahead.imag == value.imag:
                break
            move = value.imag * step / (ahead.imag - value.imag)
            if not abs(move) < 1e-4 * angle:
                break
            curvature, angle = value, angle - move
        final = at(angle)
        return final if final is not None and abs(final.imag) <= abs(curvature.imag) else curvature


def _deflated(pencil: _Pencil) -> _Pencil:
    """Without the roots z = +-1 that p and q share: modes on the circle that no gradient moves."""
    p, q = pencil.p, pencil.q
    for s in (0.0, -2.0):
        while len(p) > 1 and all(
            abs(polynomial.polyval(s, c)) <= _ROUNDING * polynomial.polyval(abs(s), np.abs(c))
            for c in (p, q)
        ):
            p, q = polynomial.polydiv(p, [-s, 1])[0], polynomial.polydiv(q, [-s, 1])[0]
            q = np.pad(q, (0, len(p) - len(q)))
    return pencil if len(p) == len(pencil.p) else _Pencil(p, q, None)


def _pencil(drift: Array, response: Array) -> _Pencil:
    """p = det(sI - (A - I)) and q = e_x adj(sI - (A - I)) (-b), and the recursion.

    Faddeev and LeVerrier's recursion gives the adjugate's coefficient matrices on the way to p. In s the
    coefficients keep their digits where poles crowd at z = 1.
    """
    m = len(drift)
    shift = drift - np.eye(m)
    p, q = np.zeros(m + 1), np.zeros(m + 1)
    p[m] = 1.0
    matrix = np.eye(m)
    for k in range(1, m + 1):
        q[m - k] = -(matrix @ response)[0]
        product = shift @ matrix
        p[m - k] = -np.trace(product) / k
        matrix = product + p[m - k] * np.eye(m)
    return _Pencil(p, q, (shift, response))
