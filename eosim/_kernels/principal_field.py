"""The field of the principal flow of polynomials of two parameters, at many states side by side.

Lanes of states go through the same arithmetic, of which the processor then does several at once. For
that the loops over lanes run over rows of one flat array at constant places, without calls, and
without branches; logarithms and angles are written out. Lanes that need a series, or the matching of
eigenvalues, are seen to afterwards, one by one.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# Divisions by 0 are no exceptions here: a check would keep loops from being vectorised.
compiled = njit(cache=True, nogil=True, error_model="numpy")
inlined = njit(inline="always", error_model="numpy")

# As in eosim.flows.principal and eosim.flows._spectral.
_FLOOR = 1e-16
_CLEAR_MATCH = 0.5
_WORST_CONDITION = 1e-9
# Our choice. Below this spectral radius alpha is its series, whose 15 terms leave 1e-16 of it.
_SMALL, _SMALL_TERMS = 0.1, 15
# Our choice. Where half the difference of the eigenvalues is less than this of m and 1 - m, their
# differences are series in its square; 8 terms leave 1e-17.
_CLOSE, _CLOSE_TERMS = 0.1, 8
# The square of a number that is no divisor.
_TINY = 1e-200
_TURN = 2 * math.pi

# The workspace: rows of one number for each lane. A complex number is a row and the next.
LANES = 32
PAIR = 2 * LANES
STATE = 4 * LANES  # x and y
STAGE = 0
SLOPE = STAGE + STATE  # the field at the stage
_GRADIENT = SLOPE + STATE
_HESSIAN = _GRADIENT + STATE  # xx, xy, yy
_MIDDLE = _HESSIAN + 6 * LANES  # m, c, s and d of M = lr H = m + [[c, s], [s, -c]], d^2 = c^2 + s^2
Z_RE = _MIDDLE + 8 * LANES  # m + d, m - d: both real parts, then both imaginary parts
_Z_IM = Z_RE + PAIR
_LOG_RE = _Z_IM + PAIR
_LOG_IM = _LOG_RE + PAIR
_TO_IM = _LOG_IM - Z_RE
MEMORY = _LOG_IM + PAIR  # the eight rows before, at the last accepted state
_SQUARE = MEMORY + 4 * PAIR  # |1 - z|^2, then its mantissa, and its exponent
_EXPONENT = _SQUARE + PAIR
_A = _EXPONENT + PAIR  # alpha(M) = a + b (M - m)
_B = _A + PAIR
_SPECIAL = _B + PAIR
CLEAR = _SPECIAL + LANES  # whether continuity leaves no doubt about the logarithms
_EXISTS = CLEAR + LANES
BAD = _EXISTS + LANES  # at the first stage that is: 1 not finite, 2 without a field
WORKSPACE = BAD + LANES


@inlined
def get(space, row, lane):
    return complex(space[row + lane], space[row + LANES + lane])


@inlined
def _put(space, row, lane, value):
    space[row + lane], space[row + LANES + lane] = value.real, value.imag


@inlined
def squared(z):
    """|z|^2."""
    return z.real * z.real + z.imag * z.imag


@inlined
def _inverse(z):
    r = 1 / max(squared(z), 1e-300)
    return complex(z.real * r, -z.imag * r)


@inlined
def _scaled(k, z):
    return complex(k * z.real, k * z.imag)


@inlined
def _powers(space, row, powers):
    """powers[k] = z^k of the coordinate in this row, from k = 1 on; powers[0] is 1."""
    for k in range(1, powers.shape[0]):
        before, power = powers[k - 1], powers[k]
        for lane in range(LANES):
            x, y = space[row + lane], space[row + LANES + lane]
            u, v = before[lane], before[LANES + lane]
            power[lane], power[LANES + lane] = x * u - y * v, x * v + y * u


@inlined
def _polynomial(space, row, powers, coefficients, exponents, first, end):
    for lane in range(2 * LANES):
        space[row + lane] = 0.0
    for k in range(first, end):
        coefficient, of_x, of_y = (
            coefficients[k],
            powers[0, exponents[k, 0]],
            powers[1, exponents[k, 1]],
        )
        for lane in range(LANES):
            x, y, u, v = of_x[lane], of_x[LANES + lane], of_y[lane], of_y[LANES + lane]
            space[row + lane] += coefficient * (x * u - y * v)
            space[row + LANES + lane] += coefficient * (x * v + y * u)


@compiled
def _derivatives(space, powers, coefficients, exponents, ends):
    """Gradient and Hessian: five polynomials of the stage."""
    _powers(space, STAGE, powers[0])
    _powers(space, STAGE + PAIR, powers[1])
    _polynomial(space, _GRADIENT, powers, coefficients, exponents, 0, ends[0])
    _polynomial(space, _GRADIENT + PAIR, powers, coefficients, exponents, ends[0], ends[1])
    _polynomial(space, _HESSIAN, powers, coefficients, exponents, ends[1], ends[2])
    _polynomial(space, _HESSIAN + PAIR, powers, coefficients, exponents, ends[2], ends[3])
    _polynomial(space, _HESSIAN + 2 * PAIR, powers, coefficients, exponents, ends[3], ends[4])


@compiled
def _eigenvalues(space, lr):
    for lane in range(LANES):
        xx = _scaled(lr, get(space, _HESSIAN, lane))
        s = _scaled(lr, get(space, _HESSIAN + 2 * LANES, lane))
        yy = _scaled(lr, get(space, _HESSIAN + 4 * LANES, lane))
        m, c = _scaled(0.5, xx + yy), _scaled(0.5, xx - yy)
        square = c * c + s * s
        # The square root with non-negative real part.
        larger = math.sqrt((math.sqrt(squared(square)) + abs(square.real)) / 2)
        smaller = abs(square.imag) / (2 * larger) if larger > 0 else 0.0
        right = square.real >= 0
        d = complex(
            larger if right else smaller,
            math.copysign(smaller if right else larger, square.imag),
        )
        _put(space, _MIDDLE, lane, m)
        _put(space, _MIDDLE + 2 * LANES, lane, c)
        _put(space, _MIDDLE + 4 * LANES, lane, s)
        _put(space, _MIDDLE + 6 * LANES, lane, d)
        space[Z_RE + lane], space[Z_RE + LANES + lane] = m.real + d.real, m.real - d.real
        space[_Z_IM + lane], space[_Z_IM + LANES + lane] = m.imag + d.imag, m.imag - d.imag


@compiled
def _logarithms(space, bits):
    """log(1 - z) on the principal sheet; at real z > 1 with +i pi, as a path starts."""
    for i in range(PAIR):
        x, y = 1 - space[Z_RE + i], space[_Z_IM + i]
        space[_SQUARE + i] = max(x * x + y * y, _FLOOR * _FLOOR)
    # |1 - z|^2 = 2^k (1 + f) with 1 + f between sqrt(1/2) and sqrt(2), from the bits of the number.
    for i in range(PAIR):
        word = bits[_SQUARE + i] + 0x00095F6200000000
        bits[_SQUARE + i] = (word & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E00000000
        space[_EXPONENT + i] = float((word >> 52) - 1023)
    for i in range(PAIR):
        z, y, k = space[Z_RE + i], space[_Z_IM + i], space[_EXPONENT + i]
        # At k = 0 without the cancellation of 1 - z at small z.
        f = y * y - z * (2 - z) if k == 0 else space[_SQUARE + i] - 1
        # log(1 + f) = 2 artanh(q); coefficients of fdlibm's log (Sun Microsystems, 1993)
        q = f / (2 + f)
        w = q * q
        series = w * (
            0.6666666666666735130
            + w * (
                0.3999999999940941908
                + w * (
                    0.2857142874366239149
                    + w * (
                        0.2222219843214978396
                        + w * (
                            0.1818357216161805012
                            + w * (0.1531383769920937332 + w * 0.1479819860511658591)
                        )
                    )
                )
            )
        )  # fmt: skip
        half = f * f / 2
        log = k * 6.93147180369123816490e-01 - (
            (half - (q * (half + series) + k * 1.90821492927058770002e-10)) - f
        )
        space[_LOG_RE + i] = log / 2
        # The angle of 1 - z: of u / v in [0, tan(pi / 8)] by the rational function of Cephes's atan
        # (Moshier, 1989), then by reflections.
        x, y = 1 - z, -y
        across, along = abs(y), abs(x)
        steep = across > along
        low, high = (along if steep else across), (across if steep else along)
        turned = low > 0.41421356237309503 * high
        u = low - high if turned else low
        v = low + high if turned else high
        q = u / max(v, _FLOOR * _FLOOR)
        w = q * q
        p = -8.750608600031904122785e-1
        p = p * w - 1.615753718733365076637e1
        p = p * w - 7.500855792314704667340e1
        p = p * w - 1.228866684490136173410e2
        p = p * w - 6.485021904942025371773e1
        r = w + 2.485846490142306297962e1
        r = r * w + 1.650270098316988542046e2
        r = r * w + 4.328810604912902668951e2
        r = r * w + 4.853903996359136964868e2
        r = r * w + 1.945506571482613964425e2
        angle = q + q * (w * p / r) + (math.pi / 4 if turned else 0.0)
        angle = math.pi / 2 - angle if steep else angle
        angle = math.pi - angle if x < 0 else angle
        space[_LOG_IM + i] = -angle if y < 0 else angle


@compiled
def _continued(space):
    """The logarithms continued from the memory, and alpha = a + b (M - m) from them.

    Lanes where either takes more care are marked as special.
    """
    for lane in range(LANES):
        first, second = lane, LANES + lane
        z1 = complex(space[Z_RE + first], space[_Z_IM + first])
        z2 = complex(space[Z_RE + second], space[_Z_IM + second])
        old1 = complex(space[MEMORY + first], space[MEMORY + PAIR + first])
        old2 = complex(space[MEMORY + second], space[MEMORY + PAIR + second])
        memory1, memory2 = space[MEMORY + _TO_IM + first], space[MEMORY + _TO_IM + second]
        im1, im2 = space[_LOG_IM + first], space[_LOG_IM + second]
        turns1, turns2 = np.rint((memory1 - im1) / _TURN), np.rint((memory2 - im2) / _TURN)
        log1 = complex(space[_LOG_RE + first], im1 + _TURN * turns1)
        log2 = complex(space[_LOG_RE + second], im2 + _TURN * turns2)
        # Which eigenvalue is whose matters only where the memories lead to different values, and is
        # plain where both are much nearer to their own predecessor.
        special = abs(turns1 - np.rint((memory2 - im1) / _TURN))
        special += abs(turns2 - np.rint((memory1 - im2) / _TURN))
        moved = max(squared(z1 - old1), squared(z2 - old2))
        apart = min(squared(z1 - old2), squared(z2 - old1))
        special = 0.0 if moved <= _CLEAR_MATCH * _CLEAR_MATCH * apart else special
        m, d = get(space, _MIDDLE, lane), get(space, _MIDDLE + 6 * LANES, lane)
        skew = squared(get(space, _MIDDLE + 2 * LANES, lane)) + squared(
            get(space, _MIDDLE + 4 * LANES, lane)
        )
        square1, square2, size = squared(z1), squared(z2), squared(d)
        close = max(
            _CLOSE * _CLOSE * min(squared(m), squared(1 - m)),
            _WORST_CONDITION * _WORST_CONDITION * skew,
            _TINY,
        )
        special += 1.0 if size <= close else 0.0
        special += 1.0 if max(square1, square2) < _SMALL * _SMALL else 0.0
        special += 1.0 if min(square1, square2) < _TINY else 0.0
        alpha1, alpha2 = log1 * _inverse(z1), log2 * _inverse(z2)
        space[_SPECIAL + lane] = special
        space[CLEAR + lane], space[_EXISTS + lane] = 1.0, 1.0
        _put(space, _A, lane, _scaled(0.5, alpha1 + alpha2))
        _put(space, _B, lane, _scaled(0.5, (alpha1 - alpha2) * _inverse(d)))
        space[_LOG_IM + first], space[_LOG_IM + second] = log1.imag, log2.imag


@inlined
def _turned(log, memory):
    """The value of a logarithm nearest to what is remembered."""
    return complex(log.real, log.imag + _TURN * np.rint((memory - log.imag) / _TURN))


@inlined
def _distance(a, b):
    return math.sqrt(squared(a - b))


@compiled
def _matched(z1, z2, log1, log2, old1, old2, memory1, memory2):
    """The logarithms where each eigenvalue goes on with that of its nearest predecessor.

    ``log1`` and ``log2`` come on any sheet. Also returned is whether the matching is in no doubt.
    """
    own1, own2 = _turned(log1, memory1), _turned(log2, memory2)
    swapped1, swapped2 = _turned(log1, memory2), _turned(log2, memory1)
    straight = _distance(z1, old1), _distance(z2, old2)
    crossed = _distance(z1, old2), _distance(z2, old1)
    if straight[0] + straight[1] <= crossed[0] + crossed[1]:
        clear1 = own2.imag == swapped2.imag or straight[0] <= _CLEAR_MATCH * crossed[1]
        clear2 = own1.imag == swapped1.imag or straight[1] <= _CLEAR_MATCH * crossed[0]
        return own1, own2, clear1 and clear2
    clear1 = own2.imag == swapped2.imag or crossed[0] <= _CLEAR_MATCH * straight[1]
    clear2 = own1.imag == swapped1.imag or crossed[1] <= _CLEAR_MATCH * straight[0]
    return swapped1, swapped2, clear1 and clear2


@compiled
def _function(m, square, d, skew, z1, z2, log1, log2):
    """a and b of alpha(M) = a + b (M - m), and whether it exists.

    M has the eigenvalues z1 = m + d and z2 = m - d; ``square`` is d^2 and ``skew`` is |M - m|^2.
    """
    if max(squared(z1), squared(z2)) < _SMALL * _SMALL and max(squared(log1), squared(log2)) < 1:
        # Horner's rule for -sum z^p / (p + 1), with M^2 = 2 m M - det
        det, a, b = m * m - square, complex(-1 / _SMALL_TERMS, 0.0), complex(0.0, 0.0)
        for p in range(_SMALL_TERMS - 1, 0, -1):
            a, b = -1 / p - b * det, a + 2 * m * b
        return a + b * m, b, True
    rest = 1 - m
    same_sheet = abs(log1.imag - log2.imag) < 3
    if same_sheet and squared(d) < _CLOSE * _CLOSE * min(squared(m), squared(rest)):
        # log(I - M) = mean + slope (M - m) with slope = -artanh(u) / d, u = d / (1 - m)
        inverse = _inverse(rest)
        u2, slope = square * inverse * inverse, complex(1 / (2 * _CLOSE_TERMS + 1), 0.0)
        for k in range(_CLOSE_TERMS - 1, -1, -1):
            slope = 1 / (2 * k + 1) + u2 * slope
        slope, mean = -inverse * slope, (log1 + log2) / 2
        inverse = _inverse(m * m - square)  # of the determinant of M
        return (mean * m - slope * square) * inverse, (slope * m - mean) * inverse, True
    alpha1 = log1 * _inverse(z1) if squared(z1) >= _TINY else complex(-1.0, 0.0)
    alpha2 = log2 * _inverse(z2) if squared(z2) >= _TINY else complex(-1.0, 0.0)
    if skew == 0:  # a multiple of I
        return (alpha1 + alpha2) / 2, complex(0.0, 0.0), True
    if squared(d) <= _WORST_CONDITION * _WORST_CONDITION * skew:
        return alpha1, complex(0.0, 0.0), False
    return (alpha1 + alpha2) / 2, (alpha1 - alpha2) * _inverse(d) / 2, True


@compiled
def _see_to(space, lane):
    """Matching, and alpha, of a special lane."""
    first, second = lane, LANES + lane
    log1, log2, clear = _matched(
        complex(space[Z_RE + first], space[_Z_IM + first]),
        complex(space[Z_RE + second], space[_Z_IM + second]),
        complex(space[_LOG_RE + first], space[_LOG_IM + first]),
        complex(space[_LOG_RE + second], space[_LOG_IM + second]),
        complex(space[MEMORY + first], space[MEMORY + PAIR + first]),
        complex(space[MEMORY + second], space[MEMORY + PAIR + second]),
        space[MEMORY + _TO_IM + first],
        space[MEMORY + _TO_IM + second],
    )
    c, s = get(space, _MIDDLE + 2 * LANES, lane), get(space, _MIDDLE + 4 * LANES, lane)
    a, b, exists = _function(
        get(space, _MIDDLE, lane),
        c * c + s * s,
        get(space, _MIDDLE + 6 * LANES, lane),
        squared(c) + squared(s),
        complex(space[Z_RE + first], space[_Z_IM + first]),
        complex(space[Z_RE + second], space[_Z_IM + second]),
        log1,
        log2,
    )
    _put(space, _A, lane, a)
    _put(space, _B, lane, b)
    space[_LOG_IM + first], space[_LOG_IM + second] = log1.imag, log2.imag
    space[CLEAR + lane] = 1.0 if clear else 0.0
    space[_EXISTS + lane] = 1.0 if exists else 0.0


@compiled
def fields(space, bits, powers, coefficients, exponents, ends, lr):
    """The field of every lane at its stage, with logarithms continued from its memory.

    A memory of zeros is that of a path that starts.
    """
    _derivatives(space, powers, coefficients, exponents, ends)
    _eigenvalues(space, lr)
    _logarithms(space, bits)
    _continued(space)
    for lane in range(LANES):
        if space[_SPECIAL + lane] != 0:
            _see_to(space, lane)
    for lane in range(LANES):
        a, b = get(space, _A, lane), get(space, _B, lane)
        c, s = get(space, _MIDDLE + 2 * LANES, lane), get(space, _MIDDLE + 4 * LANES, lane)
        gx, gy = get(space, _GRADIENT, lane), get(space, _GRADIENT + 2 * LANES, lane)
        fx = a * gx + b * (c * gx + s * gy)
        fy = a * gy + b * (s * gx - c * gy)
        _put(space, SLOPE, lane, fx)
        _put(space, SLOPE + 2 * LANES, lane, fy)
        size = abs(gx.real) + abs(gx.imag) + abs(gy.real) + abs(gy.imag) + squared(c) + squared(s)
        size += abs(fx.real) + abs(fx.imag) + abs(fy.real) + abs(fy.imag)
        bad = 1.0 if not (size < math.inf) else 2.0 - 2.0 * space[_EXISTS + lane]
        space[BAD + lane] = space[BAD + lane] if space[BAD + lane] > 0 else bad
