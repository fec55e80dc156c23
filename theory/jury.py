r"""When all roots of a real polynomial lie inside the unit circle (Jury 1974, Inners, theorem 2.13).

With :math:`F(z) = a_n z^n + \dots + a_0`, :math:`a_n > 0`: all roots lie inside iff F(1) > 0,
(-1)^n F(-1) > 0, and both matrices :math:`X \pm Y` of order n - 1,

.. math:: X_{ij} = a_{n-j+i}\ (j \ge i), \qquad Y_{ij} = a_{n-2-i-j}\ (i + j \le n-2)

are positive innerwise: their determinants stay positive as outer rows and columns are stripped in
pairs. With :math:`a_n = 1` and roots :math:`z_i`, :math:`\det(X - Y) = \prod_{i<j} (1 - z_i z_j)`: it
vanishes where a complex pair meets the circle.
"""

from __future__ import annotations

import sympy as sp


def jury_conditions(polynomial: sp.Poly) -> dict[str, sp.Expr]:
    """Expressions that must all be positive, under the name of what happens where one is 0.

    Parameters
    ----------
    polynomial : Poly in z of any order, with a positive leading coefficient

    Examples
    --------
    >>> z, a, b = sp.symbols("z a b")
    >>> for name, condition in jury_conditions(sp.Poly(z**2 + a * z + b, z)).items():
    ...     print(f"{name}: {condition} > 0")
    root at z = 1: a + b + 1 > 0
    root at z = -1: -a + b + 1 > 0
    complex pair: 1 - b > 0
    inner + of order 1: b + 1 > 0
    """
    order = polynomial.degree()
    a = polynomial.all_coeffs()[::-1]  # constant term first
    conditions = {
        "root at z = 1": sp.expand(polynomial.eval(1)),
        "root at z = -1": sp.expand((-1) ** order * polynomial.eval(-1)),
    }
    size = order - 1
    upper = sp.Matrix(size, size, lambda i, j: a[order - j + i] if j >= i else 0)
    lower = sp.Matrix(size, size, lambda i, j: a[size - 1 - i - j] if i + j < size else 0)
    for sign, matrix in (("-", upper - lower), ("+", upper + lower)):
        while matrix.rows > 0:
            full = matrix.rows == size
            name = (
                "complex pair" if full and sign == "-" else f"inner {sign} of order {matrix.rows}"
            )
            conditions[name] = sp.expand(matrix.det(method="berkowitz"))
            matrix = matrix[1:-1, 1:-1]
    return conditions
