"""Workloads of the principal flow: its field beside the linear algebra, its paths beside solvers."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable

import numpy as np
from scipy.integrate import solve_ivp

import eosim
from eosim.flows import PrincipalFlow
from eosim.flows.ensemble import integrate_ensemble
from tests.benchmarks import Call, Contest, Workload, close, installed
from tests.benchmarks.machine import product

_LR = 1.0
# Largest |h lambda| first: three beyond 1, one of them unstable.
_OUTLIERS = (2.1, 1.9, 1.4)


def _network_like(dim: int, seed: int = 0) -> np.ndarray:
    """A symmetric matrix whose spectrum is a bulk in [0, 0.3], dense at 0, and three outliers."""
    values = 0.3 * np.random.default_rng(seed).uniform(size=dim) ** 3
    values[:3] = _OUTLIERS
    return _of_spectrum(values / _LR)


def _of_spectrum(values: np.ndarray) -> np.ndarray:
    dim = len(values)
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((dim, dim)))[0]
    matrix = basis * values @ basis.T
    return (matrix + matrix.T) / 2


def _cubic(dim: int) -> eosim.problems.base.FunctionProblem:
    """x^T A x / 2 + 0.01 sum x^3 / 6: a Hessian that costs nothing, complex at complex points."""
    matrix = _network_like(dim)
    diagonal = np.diag_indices(dim)

    def hessian(x: np.ndarray) -> np.ndarray:
        result = matrix.astype(x.dtype)
        result[diagonal] += 0.01 * x
        return result

    return eosim.from_functions(
        lambda x: x @ (matrix @ x) / 2 + 0.01 * np.sum(x**3) / 6,
        lambda x: matrix @ x + 0.005 * x**2,
        hessian=hessian,
        dim=dim,
        analytic=True,
    )


def _field(*, imaginary: float) -> Contest:
    """The field at dim 100 against LAPACK's eigendecomposition of its Hessian."""
    dim = 100
    problem = _cubic(dim)
    flow = PrincipalFlow(problem, _LR, method="dense")
    start = np.random.default_rng(1).standard_normal(dim)
    theta = start + 1j * imaginary * np.random.default_rng(2).standard_normal(dim)
    branch = flow.init(start)
    hessian, g = problem.hessian(theta), problem.gradient(theta)
    solve = np.linalg.eig if imaginary else np.linalg.eigh
    hessian = hessian if imaginary else hessian.real.copy()

    def agree(ours: object, peer: object) -> bool:
        values, vectors = peer  # type: ignore[misc]
        z = _LR * values
        logarithms = np.log(np.abs(1 - z)) + 1j * np.where(z.real > 1, np.pi, 0)
        if imaginary:
            logarithms = np.log(1 - z)
            logarithms[(z.real > 1) & (logarithms.imag < 0)] += 2j * np.pi
        expected = vectors @ (logarithms / z * np.linalg.solve(vectors, g))
        return close(1e-9)(ours, expected)  # type: ignore[arg-type]

    name = "eig alone" if imaginary else "eigh alone"
    return Contest(lambda: flow.field(theta, branch), {name: lambda: solve(hessian)}, agree)


def _one_step() -> Contest:
    """One step of gradient descent integrated at dim 100, against its eigendecompositions."""
    dim = 100
    problem = _cubic(dim)
    flow = PrincipalFlow(problem, _LR, method="dense")
    start = np.random.default_rng(1).standard_normal(dim)
    decompositions = []
    eigh, eig = np.linalg.eigh, np.linalg.eig

    def watch(solve: Callable[..., object]) -> Callable[..., object]:
        def watched(matrix: np.ndarray) -> object:
            decompositions.append((solve, np.array(matrix)))
            return solve(matrix)

        return watched

    def ours() -> np.ndarray:
        return eosim.integrate(flow, start, [_LR], record={}, rtol=1e-6, atol=1e-9).theta[0]

    np.linalg.eigh, np.linalg.eig = watch(eigh), watch(eig)
    try:
        reference = ours()
    finally:
        np.linalg.eigh, np.linalg.eig = eigh, eig

    def peer() -> np.ndarray:
        for solve, matrix in decompositions:
            solve(matrix)
        return reference

    return Contest(ours, {"its decompositions alone": peer}, close(1e-12))


def _large_field(dim: int) -> Contest:
    """The field at a real state against nothing but the eigendecomposition of its Hessian."""
    matrix = _network_like(dim)
    flow = PrincipalFlow(eosim.Quadratic(matrix), _LR)
    theta = np.random.default_rng(1).standard_normal(dim)
    products = _products(flow, theta)

    def agree(ours: object, peer: object) -> bool:
        values, vectors = peer  # type: ignore[misc]
        alpha = flow.coefficient(_LR * values)
        expected = vectors @ (alpha * (vectors.T @ (matrix @ theta)))
        return close(1e-8)(ours, expected)  # type: ignore[arg-type]

    return Contest(
        lambda: flow.field(theta),
        {"eigh alone": lambda: np.linalg.eigh(matrix)},
        agree,
        limit=lambda: products * product(dim, dim, 1),
    )


def _products(flow: PrincipalFlow, theta: np.ndarray) -> int:
    """How many products with the Hessian one evaluation takes."""
    problem, count = flow.problem, 0

    def hvp(theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return problem.hvp(theta, v)

    counted = eosim.from_functions(
        problem.loss,
        problem.gradient,
        hvp=hvp,
        hessian=problem.hessian,
        dim=problem.dim,
        analytic=True,
    )
    count = 0  # it was tried out
    PrincipalFlow(counted, flow.lr, method=flow.method).field(theta)
    return count + 1  # and the gradient


def _fallback(dim: int) -> Contest:
    """The field where products do not converge, against the dense form at once."""
    problem = eosim.Quadratic(_of_spectrum(np.linspace(0, 0.9999, dim) / _LR))
    theta = np.random.default_rng(1).standard_normal(dim)
    by_lanczos = PrincipalFlow(problem, _LR, method="lanczos")
    by_decomposition = PrincipalFlow(problem, _LR, method="dense")
    return Contest(
        lambda: by_lanczos.field(theta),
        {"dense form": lambda: by_decomposition.field(theta)},
        close(1e-8),
    )


# --- ensembles ----------------------------------------------------------------------------------

# Rosenbrock's function across h lambda = 1.5 to 1.85: complex paths. Every peer cuts its logarithm
# along the negative imaginary axis, which these paths do not cross; none follows a branch.
_RATE, _STEEPNESS, _RTOL, _ATOL = 1.4e-3, 100.0, 1e-6, 1e-9
_TIMES = _RATE * np.arange(11)


def _starts() -> np.ndarray:
    box = np.random.default_rng(0).uniform(-0.05, 0.05, (200, 2))
    return np.array([1.1, 1.2]) + box


def _derivatives(x, y):  # type: ignore[no-untyped-def]
    """Gradient and Hessian of Rosenbrock's function, in any arithmetic."""
    s, valley = _STEEPNESS, y - x * x
    gradient = (2 * (x - 1) - 4 * s * x * valley, 2 * s * valley)
    return gradient, (2 - 4 * s * (valley - 2 * x * x), -4 * s * x, 2 * s)


def _eigen_field(t: float, theta: np.ndarray) -> np.ndarray:
    """By LAPACK, as it is written for any dimension."""
    gradient, (xx, xy, yy) = _derivatives(*theta)
    values, vectors = np.linalg.eig(_RATE * np.array([[xx, xy], [xy, yy]]))
    logarithms = np.log(-1j * (1 - values)) + 0.5j * np.pi
    return vectors @ (logarithms / values * np.linalg.solve(vectors, np.array(gradient)))


def _closed_field(t: float, theta: np.ndarray) -> list[complex]:
    """By the closed form of a 2 x 2 matrix function, number by number."""
    (gx, gy), (xx, xy, yy) = _derivatives(*theta.tolist())
    m, c, s = _RATE * (xx + yy) / 2, _RATE * (xx - yy) / 2, _RATE * xy
    d = cmath.sqrt(c * c + s * s)
    alpha1 = (cmath.log(-1j * (1 - m - d)) + 0.5j * math.pi) / (m + d)
    alpha2 = (cmath.log(-1j * (1 - m + d)) + 0.5j * math.pi) / (m - d)
    a, b = (alpha1 + alpha2) / 2, (alpha1 - alpha2) / (2 * d)
    return [a * gx + b * (c * gx + s * gy), a * gy + b * (s * gx - c * gy)]


def _loop(field: Callable[..., object]) -> Call:
    starts = _starts()

    def peer() -> np.ndarray:
        paths = []
        for start in starts:
            path = solve_ivp(
                field, (0, _TIMES[-1]), start.astype(complex), t_eval=_TIMES, rtol=_RTOL, atol=_ATOL
            )
            paths.append(path.y.T)
        return np.array(paths)

    return peer


def _diffrax(*, pairs: bool) -> Call | None:
    """All starts at once, compiled: complex numbers, or pairs of real ones."""
    if not installed("jax", "diffrax"):
        return None
    import warnings

    import diffrax
    import jax
    import jax.numpy as jnp

    def field(x, y):  # type: ignore[no-untyped-def]
        (gx, gy), (xx, xy, yy) = _derivatives(x, y)
        m, c, s = _RATE * (xx + yy) / 2, _RATE * (xx - yy) / 2, _RATE * xy
        d = jnp.sqrt(c * c + s * s)
        z1, z2 = m + d, m - d
        alpha1 = (jnp.log(-1j * (1 - z1)) + 0.5j * jnp.pi) / z1
        alpha2 = (jnp.log(-1j * (1 - z2)) + 0.5j * jnp.pi) / z2
        a, b = (alpha1 + alpha2) / 2, (alpha1 - alpha2) / (2 * d)
        return a * gx + b * (c * gx + s * gy), a * gy + b * (s * gx - c * gy)

    def of_complex(t, theta, _):  # type: ignore[no-untyped-def]
        return jnp.stack(field(theta[0], theta[1]))

    def of_pairs(t, theta, _):  # type: ignore[no-untyped-def]
        fx, fy = field(theta[0] + 1j * theta[1], theta[2] + 1j * theta[3])
        return jnp.stack([fx.real, fx.imag, fy.real, fy.imag])

    def path(start):  # type: ignore[no-untyped-def]
        return diffrax.diffeqsolve(
            diffrax.ODETerm(of_pairs if pairs else of_complex),
            diffrax.Dopri5(),
            0.0,
            _TIMES[-1],
            None,
            start,
            saveat=diffrax.SaveAt(ts=jnp.array(_TIMES)),
            stepsize_controller=diffrax.PIDController(rtol=_RTOL, atol=_ATOL),
            adjoint=diffrax.ForwardMode(),  # no gradients are asked for
        ).ys

    starts = _starts()
    if pairs:
        starts = np.stack([starts[:, 0], 0 * starts[:, 0], starts[:, 1], 0 * starts[:, 1]], axis=1)
    given = jnp.array(starts if pairs else starts.astype(complex))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffrax calls its complex numbers work in progress
        compiled = jax.jit(jax.vmap(path)).lower(given).compile()

    def peer() -> np.ndarray:
        ys = np.asarray(compiled(given))
        return ys[..., ::2] + 1j * ys[..., 1::2] if pairs else ys

    return peer


def _ensemble(peers: dict[str, Call | None]) -> Contest:
    """The paths of 200 starts; every answer is right to 2e-5, far above its tolerance per step."""
    flow = PrincipalFlow(eosim.Rosenbrock(_STEEPNESS), _RATE)
    starts = _starts()
    exact = integrate_ensemble(flow, starts, _TIMES, method="generic").theta

    def ours() -> np.ndarray:
        return integrate_ensemble(
            flow, starts, _TIMES, rtol=_RTOL, atol=_ATOL, threads=1, method="compiled"
        ).theta

    def agree(ours: np.ndarray, peer: np.ndarray) -> bool:
        return bool(max(abs(ours - exact).max(), abs(peer - exact).max()) < 2e-5)

    return Contest(ours, peers, agree)


def _ensemble_loop() -> Contest:
    return _ensemble({"solve_ivp": _loop(_eigen_field)})


def _ensemble_closed_loop() -> Contest:
    return _ensemble({"solve_ivp, closed form": _loop(_closed_field)})


def _ensemble_diffrax() -> Contest:
    return _ensemble(
        {"diffrax": _diffrax(pairs=False), "diffrax, real pairs": _diffrax(pairs=True)}
    )


def _converged() -> Contest:
    """Linear paths that decay to the least numbers there are, where processors are slow, and from 1."""
    flow = PrincipalFlow(eosim.Quadratic(np.diag([0.9, 0.7])), 1.0)
    starts = np.random.default_rng(0).uniform(1, 2, (200, 2))

    def paths(scale: float) -> np.ndarray:
        return integrate_ensemble(
            flow, scale * starts, [2.0, 100.0], rtol=_RTOL, atol=1e-10 * scale, threads=1
        ).theta

    return Contest(
        lambda: paths(1e-258),
        {"from 1": lambda: paths(1.0)},
        lambda ours, peer: bool(np.allclose(ours[:, 0] * 1e258, peer[:, 0], rtol=1e-4)),
    )


WORKLOADS = (
    Workload(
        "field-real", "dim 100, real state", 1 / 1.3, lambda: _field(imaginary=0.0), price=True
    ),
    Workload(
        "field-complex",
        "dim 100, complex state",
        1 / 1.3,
        lambda: _field(imaginary=0.1),
        price=True,
    ),
    Workload("step", "dim 100, one lr", 1 / 1.3, _one_step, price=True),
    Workload("field-500", "dim 500, bulk + 3", 5, lambda: _large_field(500)),
    Workload("field-2000", "dim 2000, bulk + 3", 10, lambda: _large_field(2000), 3),
    Workload(
        "field-fallback", "dim 500, uniform to 0.9999", 1 / 1.5, lambda: _fallback(500), price=True
    ),
    Workload("principal-loop", "200 starts, 10 lr", 300, _ensemble_loop, 3),
    Workload("principal-loop-closed", "200 starts, 10 lr", 150, _ensemble_closed_loop, 3),
    Workload("principal-converged", "200 starts, 100 lr", 0.8, _converged, price=True),
    Workload("principal-ensemble", "200 starts, 10 lr", 0.9, _ensemble_diffrax),
)
