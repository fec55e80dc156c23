"""Bad input: one row per mistake, with the exception and the words that help; and what is accepted.

A row is (what the user does, exception, regular expression that the message must match).
"""

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import eosim
from eosim.stability import critical_sharpness
from tests.cases import QUARTIC_TERMS, regression, symmetric

NAN, INF = float("nan"), float("inf")
RULES = ("GradientDescent", "HeavyBall", "Nesterov", "EMAMomentum", "QuasiHyperbolic")
GD = eosim.GradientDescent(0.1)
BOWL = eosim.Quadratic(np.diag([1.0, 2.0]))
DATA = regression(n_samples=6, n_features=2)


def run(theta0=(1.0, 2.0), n_steps=3, problem=BOWL, rule=GD, **options):
    return eosim.run(problem, rule, theta0, n_steps, **options)


def batches(batch_size=2, **options):
    return run(problem=DATA, batch_size=batch_size, **options)


def principal(lr=0.1, problem=BOWL):
    return eosim.PrincipalFlow(problem, lr)


def integrate(theta0=(1.0, 2.0), times=(0, 1), flow=None, **options):
    return eosim.integrate(principal() if flow is None else flow, theta0, times, **options)


def functions(loss=lambda x: x @ x / 2, gradient=lambda x: 1.0 * x, dim=2, **options):
    return eosim.from_functions(loss, gradient, dim=dim, **options)


@dataclass
class UserRule:
    """A user's rule whose parts can be exchanged for broken ones."""

    update: object = None
    initial: object = None
    lr: object = 0.1

    def init(self, theta):
        return () if self.initial is None else self.initial(theta)

    def step(self, theta, state, gradient):
        if self.update is None:
            return theta - 0.1 * gradient, state
        return self.update(theta, state, gradient)


class NoStep:
    def init(self, theta):
        return ()


def with_entry(array, index, value):
    array = np.array(array, dtype=float)
    array[index] = value
    return array


def mutating(function):
    def mutate(x):
        x *= 1.5
        return function(x)

    return mutate


def unsteady(function):
    calls = []

    def drift(x):
        calls.append(None)
        return function(x) + 0.1 * len(calls)

    return drift


ROWS = {}


def row(name, function, exception, words):
    assert name not in ROWS
    ROWS[name] = (function, exception, words)


# --- hyperparameters ----------------------------------------------------------------------------

for kind in RULES:
    make = getattr(eosim, kind)
    where = rf"{kind}: lr must be a real number in \(0, inf\), got "
    for value in (-0.1, 0, 0.0, NAN, INF, -INF):
        row(
            f"{kind} lr {value!r}",
            lambda make=make, value=value: make(lr=value),
            ValueError,
            where + f"{float(value)}$",
        )
    for value, shown in (
        ("0.1", "'0.1' of type str"),
        (None, "None of type NoneType"),
        (True, "True of type bool"),
        (np.True_, "of type bool"),
        (0.1j, "0.1j of type complex"),
        (np.array([0.1]), r"array\(\[0.1\]\) of type ndarray"),
        ([0.1], r"\[0.1\] of type list"),
    ):
        row(
            f"{kind} lr {value!r}",
            lambda make=make, value=value: make(lr=value),
            TypeError,
            where + f".*{shown}",
        )
    if kind != "GradientDescent":
        for value in (1, 1.0, -0.1, 1.5, NAN, INF):
            row(
                f"{kind} momentum {value!r}",
                lambda make=make, value=value: make(0.1, momentum=value),
                ValueError,
                rf"{kind}: momentum must be a real number in \[0, 1\), got {float(value)}",
            )
        row(
            f"{kind} momentum string",
            lambda make=make: make(0.1, momentum="0.9"),
            TypeError,
            rf"{kind}: momentum must be a real number in \[0, 1\), got '0.9' of type str",
        )
row(
    "nu negative",
    lambda: eosim.QuasiHyperbolic(0.1, nu=-1),
    ValueError,
    r"QuasiHyperbolic: nu must be a real number in \[0, inf\), got -1.0",
)
row("lr missing", lambda: eosim.HeavyBall(), TypeError, "missing.*lr")

for value in (-0.1, 0, NAN, INF):
    row(
        f"PrincipalFlow lr {value}",
        lambda value=value: principal(value),
        ValueError,
        rf"PrincipalFlow: lr must be a real number in \(0, inf\), got {float(value)}",
    )
    row(
        f"GradientFlow lr {value}",
        lambda value=value: eosim.GradientFlow(BOWL, lr=value),
        ValueError,
        rf"GradientFlow: lr must be a real number in \(0, inf\), got {float(value)}",
    )
for value in ("0.1", None, True, 1j, np.array([0.1])):
    row(
        f"PrincipalFlow lr {type(value).__name__}",
        lambda value=value: principal(value),
        TypeError,
        rf"PrincipalFlow: lr must be a real number in \(0, inf\), got .* of type "
        rf"{type(value).__name__}",
    )
for value in ("0.1", True, 1j):
    row(
        f"GradientFlow lr {type(value).__name__}",
        lambda value=value: eosim.GradientFlow(BOWL, lr=value),
        TypeError,
        rf"GradientFlow: lr must be a real number .* of type {type(value).__name__}",
    )

# --- problems -----------------------------------------------------------------------------------

row(
    "matrix asymmetric",
    lambda: eosim.Quadratic([[1.0, 2.0], [0.5, 1.0]]),
    ValueError,
    r"matrix must be symmetric; entries \(0, 1\) and \(1, 0\) are 2.0 and 0.5.*H \+ H.T",
)
row(
    "matrix slightly asymmetric",
    lambda: eosim.Quadratic([[1.0, 1e-8], [0.0, 1.0]]),
    ValueError,
    "matrix must be symmetric",
)
row(
    "sparse matrix asymmetric",
    lambda: eosim.Quadratic(scipy.sparse.csr_array([[1.0, 2.0], [0.5, 1.0]])),
    ValueError,
    "matrix must be symmetric; the largest asymmetry found is 1.5",
)
row(
    "operator asymmetric",
    lambda: eosim.Quadratic(aslinearoperator(np.array([[1.0, 2.0], [0.5, 1.0]]))),
    ValueError,
    "matrix must be symmetric",
)
row(
    "operator of NaN",
    lambda: eosim.Quadratic(aslinearoperator(np.full((2, 2), NAN))),
    ValueError,
    "matrix: the operator returns non-finite values",
)
row(
    "operator not square",
    lambda: eosim.Quadratic(aslinearoperator(np.ones((2, 3)))),
    ValueError,
    r"matrix must be square.*\(2, 3\)",
)
row(
    "operator complex",
    lambda: eosim.Quadratic(aslinearoperator(1j * np.eye(2))),
    TypeError,
    "matrix must be real, got entries of dtype complex128",
)
row(
    "sparse matrix complex",
    lambda: eosim.Quadratic(scipy.sparse.csr_array(1j * np.eye(2))),
    TypeError,
    "matrix.* must be real.*complex128",
)
row(
    "matrix not square",
    lambda: eosim.Quadratic(np.ones((2, 3))),
    ValueError,
    r"matrix must be square, got shape \(2, 3\)",
)
row(
    "matrix 1-d", lambda: eosim.Quadratic(np.ones(3)), ValueError, r"matrix must have shape.*\(3,\)"
)
row("matrix scalar", lambda: eosim.Quadratic(2.0), ValueError, r"matrix must have shape.*got \(\)")
row(
    "matrix empty",
    lambda: eosim.Quadratic(np.zeros((0, 0))),
    ValueError,
    "matrix must not be empty",
)
row(
    "matrix string",
    lambda: eosim.Quadratic("identity"),
    TypeError,
    "matrix.*'identity' of type str",
)
row("matrix None", lambda: eosim.Quadratic(None), TypeError, "matrix.*None of type NoneType")
row(
    "matrix complex",
    lambda: eosim.Quadratic(1j * np.eye(2)),
    TypeError,
    "matrix must be real.*complex",
)
row(
    "matrix ragged",
    lambda: eosim.Quadratic([[1.0, 2.0], [2.0]]),
    ValueError,
    "matrix must be a rectangular array",
)
row(
    "matrix NaN",
    lambda: eosim.Quadratic([[1.0, NAN], [NAN, 1.0]]),
    ValueError,
    r"matrix has 2 non-finite entries; the first is nan at index \(0, 1\)",
)
row(
    "sparse matrix NaN",
    lambda: eosim.Quadratic(scipy.sparse.csr_array([[1.0, NAN], [NAN, 1.0]])),
    ValueError,
    r"matrix.*2 non-finite entries",
)
row(
    "center of wrong length",
    lambda: eosim.Quadratic(np.eye(2), [1.0, 2.0, 3.0]),
    ValueError,
    r"center must have shape \(2,\), got \(3,\)",
)
row(
    "center NaN",
    lambda: eosim.Quadratic(np.eye(2), [NAN, 1.0]),
    ValueError,
    "center has 1 non-finite entry; the first is nan at index 0",
)
row("steepness string", lambda: eosim.Rosenbrock("100"), TypeError, "steepness.*'100' of type str")
row("steepness NaN", lambda: eosim.Rosenbrock(NAN), ValueError, "steepness.*nan")
row("cosine dim 0", lambda: eosim.Cosine(0), ValueError, "dim must be an integer >= 1, got 0")
row(
    "cosine dim float", lambda: eosim.Cosine(2.0), TypeError, "dim must be an integer >= 1, got 2.0"
)
row(
    "cosine dim bool",
    lambda: eosim.Cosine(True),
    TypeError,
    "dim must be an integer.*True of type bool",
)

row(
    "terms list",
    lambda: eosim.Polynomial([1, 2]),
    TypeError,
    "terms must map exponent tuples.*list",
)
row("terms empty", lambda: eosim.Polynomial({}), ValueError, "terms must not be empty")
row(
    "exponent not a tuple",
    lambda: eosim.Polynomial({2: 1.0}),
    TypeError,
    "exponents must be.*tuple.*2",
)
row("exponents empty", lambda: eosim.Polynomial({(): 1.0}), TypeError, r"non-empty tuple.*\(\)")
row(
    "exponent negative",
    lambda: eosim.Polynomial({(2, -1): 1.0}),
    ValueError,
    r"exponent in \(2, -1\) must be an integer >= 0, got -1",
)
row(
    "exponent float",
    lambda: eosim.Polynomial({(0.5,): 1.0}),
    TypeError,
    r"exponent in \(0.5,\) must be an integer >= 0, got 0.5",
)
row(
    "exponents of different length",
    lambda: eosim.Polynomial({(2,): 1.0, (1, 1): 1.0}),
    ValueError,
    r"differ in length.*\(2,\), \(1, 1\)",
)
row(
    "coefficient NaN",
    lambda: eosim.Polynomial({(2,): NAN}),
    ValueError,
    r"coefficient of \(2,\).*nan",
)
row(
    "coefficient complex",
    lambda: eosim.Polynomial({(2,): 1j}),
    TypeError,
    r"coefficient of \(2,\).*1j",
)
row(
    "coefficient string",
    lambda: eosim.Polynomial({(2,): "1"}),
    TypeError,
    r"coefficient of \(2,\).*'1'",
)

row(
    "inputs NaN",
    lambda: eosim.LinearRegression(with_entry(np.ones((4, 3)), (2, [1, 2]), NAN), np.ones(4)),
    ValueError,
    r"inputs has 2 non-finite entries; the first is nan at index \(2, 1\)",
)
row(
    "targets infinite",
    lambda: eosim.LinearRegression(np.ones((4, 3)), [0, 0, INF, 0]),
    ValueError,
    "targets has 1 non-finite entry; the first is inf at index 2",
)
row(
    "sparse inputs NaN",
    lambda: eosim.LinearRegression(scipy.sparse.csr_array([[NAN, 1.0]]), [1.0]),
    ValueError,
    "inputs.*1 non-finite entry",
)
row(
    "lengths differ",
    lambda: eosim.LinearRegression(np.ones((4, 3)), np.ones(5)),
    ValueError,
    r"one row per sample.*\(4, 3\) and \(5,\)",
)
row(
    "inputs without samples",
    lambda: eosim.LinearRegression(np.ones((0, 3)), np.ones(0)),
    ValueError,
    r"inputs must have samples and features, got shape \(0, 3\)",
)
row(
    "inputs without features",
    lambda: eosim.LinearRegression(np.ones((4, 0)), np.ones(4)),
    ValueError,
    r"inputs must have samples and features, got shape \(4, 0\)",
)
row(
    "sparse inputs empty",
    lambda: eosim.LinearRegression(scipy.sparse.csr_array((0, 3)), np.ones(0)),
    ValueError,
    "inputs must have samples",
)
row(
    "targets without outputs",
    lambda: eosim.LinearRegression(np.ones((4, 3)), np.ones((4, 0))),
    ValueError,
    r"targets must have shape \(n,\) or \(n, k\), not empty; got \(4, 0\)",
)
row(
    "targets 3-d",
    lambda: eosim.LinearRegression(np.ones((4, 3)), np.ones((4, 1, 1))),
    ValueError,
    r"targets must have shape \(n,\) or \(n, k\).*\(4, 1, 1\)",
)
row(
    "inputs 1-d",
    lambda: eosim.LinearRegression(np.ones(4), np.ones(4)),
    ValueError,
    r"inputs must have shape.*got \(4,\)",
)
row(
    "inputs strings",
    lambda: eosim.LinearRegression([["a", "b"]], [1.0]),
    TypeError,
    "inputs must be an array of numbers",
)
row(
    "inputs bool",
    lambda: eosim.LinearRegression([[True, False]], [1.0]),
    TypeError,
    "inputs must be an array of numbers",
)
row(
    "targets complex",
    lambda: eosim.LinearRegression([[1.0, 2.0]], [1j]),
    TypeError,
    "targets must be real, got an array of dtype complex128",
)
row(
    "inputs operator without transpose",
    lambda: eosim.LinearRegression(
        LinearOperator((4, 2), matvec=lambda v: np.ones(4) * v.sum(), dtype=float), np.ones(4)
    ),
    TypeError,
    "inputs.*rmatvec",
)
row(
    "mini-batches of an operator",
    lambda: run(
        problem=eosim.LinearRegression(aslinearoperator(np.ones((4, 2))), np.ones(4)), batch_size=2
    ),
    TypeError,
    "mini-batches need the rows of inputs.*LinearOperator",
)

# --- from_functions -----------------------------------------------------------------------------

row("loss not callable", lambda: functions(loss=1.0), TypeError, "loss must be callable, got float")
row(
    "gradient not callable",
    lambda: functions(gradient=None),
    TypeError,
    "gradient must be callable",
)
row("hvp not callable", lambda: functions(hvp=np.eye(2)), TypeError, "hvp must be callable or None")
row(
    "hessian not callable",
    lambda: functions(hessian=np.eye(2)),
    TypeError,
    "hessian must be callable",
)
row("dim missing", lambda: eosim.from_functions(sum, sum), TypeError, "missing.*dim")
row("dim 0", lambda: functions(dim=0), ValueError, "dim must be an integer >= 1, got 0")
row("dim float", lambda: functions(dim=2.0), TypeError, "dim must be an integer >= 1, got 2.0")
row(
    "at of wrong length",
    lambda: functions(at=[1.0]),
    ValueError,
    r"at must have shape \(2,\), got \(1,\)",
)
row(
    "loss of shape (1,)",
    lambda: functions(loss=lambda x: np.array([x @ x / 2])),
    ValueError,
    r"loss must return shape \(\), got \(1,\)",
)
row(
    "loss returns None",
    lambda: functions(loss=lambda x: None),
    (TypeError, ValueError),
    "loss.*None",
)
row(
    "loss returns a string",
    lambda: functions(loss=lambda x: "low"),
    (TypeError, ValueError),
    "loss.*number",
)
row(
    "gradient of wrong length",
    lambda: functions(gradient=lambda x: x[:1]),
    ValueError,
    r"gradient must return shape \(2,\), got \(1,\)",
)
row(
    "gradient as a column",
    lambda: functions(gradient=lambda x: x[:, None]),
    ValueError,
    r"gradient must return shape \(2,\), got \(2, 1\)",
)
row(
    "gradient of the wrong sign",
    lambda: functions(gradient=lambda x: -x),
    ValueError,
    "gradient is not the derivative of loss: along a test direction it gives .* differences",
)
row(
    "gradient of the wrong factor",
    lambda: functions(gradient=lambda x: 1.01 * x),
    ValueError,
    "gradient is not the derivative of loss",
)
row(
    "loss NaN",
    lambda: functions(loss=lambda x: NAN),
    ValueError,
    "loss is not finite at the check point.*`at`",
)
row(
    "gradient NaN",
    lambda: functions(gradient=lambda x: np.array([NAN, 0.0])),
    ValueError,
    "gradient is not finite at the check point",
)
row(
    "loss that differs between calls",
    lambda: functions(loss=unsteady(lambda x: x @ x / 2)),
    ValueError,
    "loss returns different values for the same argument",
)
row(
    "gradient that differs between calls",
    lambda: functions(gradient=unsteady(lambda x: 1.0 * x)),
    ValueError,
    "gradient returns different values for the same argument",
)
row(
    "loss that changes theta",
    lambda: functions(loss=mutating(lambda x: x @ x / 2)),
    ValueError,
    "loss changes its argument in place",
)
row(
    "gradient that changes theta",
    lambda: functions(gradient=mutating(lambda x: 1.0 * x)),
    ValueError,
    "gradient changes its argument in place",
)
row(
    "hvp of something else",
    lambda: functions(hvp=lambda x, v: 2 * v),
    ValueError,
    "hvp.*is not the derivative of gradient",
)
row(
    "hvp of wrong length",
    lambda: functions(hvp=lambda x, v: v[:1]),
    ValueError,
    r"hvp must return shape \(2,\), got \(1,\)",
)
row(
    "hvp NaN",
    lambda: functions(hvp=lambda x, v: NAN * v),
    ValueError,
    "hvp is not finite at the check",
)
row(
    "hessian asymmetric",
    lambda: functions(hessian=lambda x: np.array([[1.0, 0.5], [0.0, 1.0]])),
    ValueError,
    "hessian.*symmetric",
)
row(
    "hvp asymmetric",
    lambda: functions(
        gradient=lambda x: 1.0 * x, hvp=lambda x, v: v + np.array([1e-5 * v[1], -1e-5 * v[0]])
    ),
    ValueError,
    "symmetric",
)
row(
    "hessian of wrong shape",
    lambda: functions(hessian=lambda x: np.eye(3)),
    ValueError,
    r"hessian must return shape \(2, 2\), got \(3, 3\)",
)
row(
    "hessian as a vector",
    lambda: functions(hessian=lambda x: np.ones(2)),
    ValueError,
    r"hessian must return shape \(2, 2\), got \(2,\)",
)
row(
    "hessian NaN",
    lambda: functions(hessian=lambda x: np.full((2, 2), NAN)),
    ValueError,
    "hessian is not finite at the check point",
)
row(
    "hessian of something else",
    lambda: functions(hessian=lambda x: 3 * np.eye(2)),
    ValueError,
    "hessian.*is not the derivative of gradient",
)

# --- run ----------------------------------------------------------------------------------------

row(
    "rule class",
    lambda: run(rule=eosim.HeavyBall),
    TypeError,
    r"got the class HeavyBall; write HeavyBall\(lr",
)
row("rule without step", lambda: run(rule=NoStep()), TypeError, "NoStep has no step")
row("rule None", lambda: run(rule=None), TypeError, "rule must have.*NoneType has no init")
row("rule number", lambda: run(rule=0.1), TypeError, "rule must have.*float has no init")
row(
    "rule init returns a list",
    lambda: run(rule=UserRule(initial=lambda theta: [theta])),
    TypeError,
    "UserRule.init must return a tuple, got list",
)
row(
    "rule step returns theta only",
    lambda: run(rule=UserRule(update=lambda theta, state, g: theta - g)),
    TypeError,
    r"UserRule.step must return .*\(theta, state\)",
)
row(
    "rule step returns another shape",
    lambda: run(rule=UserRule(update=lambda theta, state, g: (theta[:1], state))),
    ValueError,
    r"UserRule.step.*\(2,\).*\(1,\)",
)
row(
    "rule step returns complex numbers",
    lambda: run(rule=UserRule(update=lambda theta, state, g: (theta + 0j, state))),
    TypeError,
    "UserRule.step.*real.*complex",
)
row(
    "rule with an lr that is no number",
    lambda: run(rule=UserRule(lr="0.1")),
    TypeError,
    "UserRule.*lr.*'0.1'",
)
row(
    "problem class",
    lambda: run(problem=eosim.Cosine),
    TypeError,
    "problem must be an instance, got the class Cosine",
)
row("problem array", lambda: run(problem=np.eye(2)), TypeError, "problem.*ndarray has no dim")
row("problem function", lambda: run(problem=lambda x: x), TypeError, "problem.*function has no dim")
row("theta0 None", lambda: run(None), TypeError, "theta0.*None")
for value, exception, words in (
    ([1.0], ValueError, r"theta0 must have shape \(2,\), got \(1,\)"),
    ([1.0, 2.0, 3.0], ValueError, r"theta0 must have shape \(2,\), got \(3,\)"),
    ([[1.0, 2.0]], ValueError, r"theta0 must have shape \(2,\), got \(1, 2\)"),
    (3.0, ValueError, r"theta0 must have shape \(2,\), got \(\)"),
    ([], ValueError, r"theta0 must have shape \(2,\), got \(0,\)"),
    ([1.0, NAN], ValueError, "theta0 has 1 non-finite entry; the first is nan at index 1"),
    ([-INF, NAN], ValueError, "theta0 has 2 non-finite entries; the first is -inf at index 0"),
    ([1j, 2.0], TypeError, "theta0 must be real, got an array of dtype complex128"),
    ("ab", TypeError, "theta0 must be an array of numbers, got 'ab' of type str"),
    (["1", "2"], TypeError, "theta0 must be an array of numbers"),
    ([True, False], TypeError, "theta0 must be an array of numbers"),
    ([1.0, None], TypeError, "theta0 must be an array of numbers"),
    ([[1.0], [1.0, 2.0]], ValueError, "theta0 must be a rectangular array"),
    ({"x": 1}, TypeError, "theta0 must be an array of numbers"),
    (scipy.sparse.csr_array([[1.0, 2.0]]), TypeError, "theta0 must be an array of numbers"),
):
    row(f"theta0 {value!r}", lambda value=value: run(value), exception, words)
    if not isinstance(value, list) or value != [[1.0, 2.0]]:
        row(f"flow theta0 {value!r}", lambda value=value: integrate(value), exception, words)
row(
    "n_steps negative",
    lambda: run(n_steps=-1),
    ValueError,
    "n_steps must be an integer >= 0, got -1",
)
row(
    "n_steps float", lambda: run(n_steps=3.0), TypeError, "n_steps must be an integer >= 0, got 3.0"
)
row("n_steps bool", lambda: run(n_steps=True), TypeError, "n_steps must be an integer.*bool")
row("n_steps None", lambda: run(n_steps=None), TypeError, "n_steps must be an integer.*None")
row("every 0", lambda: run(every=0), ValueError, "every must be an integer >= 1, got 0")
row("every float", lambda: run(every=1.5), TypeError, "every must be an integer >= 1, got 1.5")
row("stop_below NaN", lambda: run(stop_below=NAN), ValueError, "stop_below.*nan")
row(
    "stop_below string", lambda: run(stop_below="1e-3"), TypeError, "stop_below.*'1e-3' of type str"
)
row("batch 0", lambda: batches(0), ValueError, "batch_size must be an integer >= 1, got 0")
row("batch negative", lambda: batches(-3), ValueError, "batch_size must be an integer >= 1, got -3")
row("batch float", lambda: batches(2.0), TypeError, "batch_size must be an integer >= 1, got 2.0")
row(
    "batch bool",
    lambda: batches(True),
    TypeError,
    "batch_size must be an integer.*True of type bool",
)
row(
    "batch larger than n",
    lambda: batches(7),
    ValueError,
    "batch_size must be at most n_samples = 6, got 7",
)
row(
    "batch without samples",
    lambda: run(batch_size=2),
    TypeError,
    "batch_size needs a problem that is a mean over samples; Quadratic has no n_samples",
)
row(
    "sampling unknown",
    lambda: batches(sampling="shuffled"),
    ValueError,
    "sampling must be one of 'without_replacement', .*'reshuffling'; got 'shuffled' of type str",
)
row("sampling None", lambda: batches(sampling=None), ValueError, "sampling must be one of.*None")
row(
    "sampling array",
    lambda: batches(sampling=np.array(["a", "b"])),
    ValueError,
    "sampling must be one of",
)
row(
    "seed True",
    lambda: batches(seed=True),
    TypeError,
    "seed must be an integer >= 0, got True of type bool",
)
row("seed negative", lambda: batches(seed=-1), ValueError, "seed must be an integer >= 0, got -1")
row("seed float", lambda: batches(seed=1.0), TypeError, "seed must be an integer >= 0, got 1.0")
row("seed string", lambda: batches(seed="1"), TypeError, "seed must be an integer >= 0, got '1'")
row("seed list", lambda: batches(seed=[1, 2]), TypeError, "seed must be an integer.*list")
row("seed of the full batch", lambda: run(seed=True), TypeError, "seed must be an integer")
row(
    "seed RandomState",
    lambda: batches(seed=np.random.RandomState(0)),
    TypeError,
    "seed must be.*RandomState",
)
row(
    "record list",
    lambda: run(record=["loss"]),
    TypeError,
    "record must map names to measurements.*list",
)
row(
    "record function",
    lambda: run(record=eosim.measure.loss),
    TypeError,
    "record must map names.*function",
)
row("record string", lambda: run(record="loss"), TypeError, "record must map names.*str")
row(
    "record not callable",
    lambda: run(record={"loss": "loss"}),
    TypeError,
    r"record\['loss'\] must be callable, got str",
)
row(
    "record asks for too much",
    lambda: run(record={"x": lambda problem, theta, *, momentum: 0}),
    TypeError,
    r"record\['x'\] asks for momentum; here it can have batch, rule, state",
)
row(
    "record of a flow asks for the rule",
    lambda: integrate(record={"x": lambda problem, theta, *, rule: 0}),
    TypeError,
    r"record\['x'\] asks for rule; here it can have nothing",
)
row(
    "record of one argument",
    lambda: run(record={"x": lambda theta: 0}),
    TypeError,
    r"record\['x'\].*problem.*theta",
)
row(
    "record of changing shape",
    lambda: run(record={"x": lambda problem, theta: np.zeros(int(1e3 * abs(theta[0])))}),
    ValueError,
    r"record\['x'\].*shape",
)
row(
    "record that returns None",
    lambda: run(record={"x": lambda problem, theta: None}),
    TypeError,
    r"record\['x'\].*None",
)
row("record named t", lambda: run(record={"t": eosim.measure.loss}), ValueError, "record.*'t'")
row(
    "record named by a number",
    lambda: run(record={1: eosim.measure.loss}),
    TypeError,
    "record.*str",
)


def state_of(rule=GD, problem=BOWL, **options):
    return eosim.run(problem, rule, np.ones(problem.dim), 3, **options).final_state


row(
    "state and theta0",
    lambda: run(state=state_of()),
    ValueError,
    "theta0 must be None when state is given",
)
row(
    "state is a trajectory",
    lambda: run(None, state=run()),
    TypeError,
    "state must be the final_state of a trajectory, got Trajectory",
)
row("state is a dict", lambda: run(None, state={"step": 1}), TypeError, "state must be.*got dict")
row(
    "state of another problem",
    lambda: run(None, state=state_of(problem=eosim.Cosine(3))),
    ValueError,
    r"state.theta must have shape \(2,\), got \(3,\)",
)
row(
    "state of a rule with less memory",
    lambda: run(None, rule=eosim.HeavyBall(0.1), state=state_of()),
    ValueError,
    "state.*HeavyBall",
)
row(
    "state of a rule with more memory",
    lambda: run(None, state=state_of(eosim.HeavyBall(0.1))),
    ValueError,
    "state.*GradientDescent",
)
row(
    "seed of a resumed run",
    lambda: run(
        None, problem=DATA, batch_size=2, state=state_of(problem=DATA, batch_size=2, seed=1), seed=2
    ),
    ValueError,
    "seed must be None when state is given",
)


class Broken:
    """A problem whose gradient is not what it should be."""

    dim = 2
    analytic = True

    def __init__(self, gradient):
        self.gradient = gradient

    def loss(self, theta):
        return theta @ theta / 2

    def hvp(self, theta, v):
        return v

    def hessian(self, theta):
        return np.eye(2)


row(
    "problem with a gradient of wrong shape",
    lambda: run(problem=Broken(lambda theta: np.ones(3))),
    ValueError,
    r"Broken.gradient must return shape \(2,\), got \(3,\)",
)
row(
    "problem with a gradient of NaN",
    lambda: run(problem=Broken(lambda theta: NAN * theta)),
    ValueError,
    "Broken.gradient is not finite at the start",
)

# --- flows --------------------------------------------------------------------------------------

row("times decreasing", lambda: integrate(times=[0, 2, 1]), ValueError, "times must be increasing")
row("times repeated", lambda: integrate(times=[0, 1, 1]), ValueError, "times must be increasing")
row("times negative", lambda: integrate(times=[-1, 1]), ValueError, "times must.*0 or later")
row("times empty", lambda: integrate(times=[]), ValueError, "times must.*not be empty")
row("times scalar", lambda: integrate(times=1.0), ValueError, "times must have shape.*got")
row("times 2-d", lambda: integrate(times=[[0, 1]]), ValueError, r"times must have shape.*\(1, 2\)")
row("times NaN", lambda: integrate(times=[0, NAN]), ValueError, "times has 1 non-finite entry")
row("times infinite", lambda: integrate(times=[0, INF]), ValueError, "times has 1 non-finite entry")
row("times strings", lambda: integrate(times=["0"]), TypeError, "times must be an array of numbers")
row("times complex", lambda: integrate(times=[1j]), TypeError, "times must be real")
row(
    "times None",
    lambda: integrate(times=None),
    TypeError,
    "times must be an array of numbers.*None",
)
row(
    "rtol 0",
    lambda: integrate(rtol=0),
    ValueError,
    r"rtol must be a real number in \(0, 1\), got 0",
)
row("rtol negative", lambda: integrate(rtol=-1e-3), ValueError, "rtol must be.*-0.001")
row("rtol NaN", lambda: integrate(rtol=NAN), ValueError, "rtol must be.*nan")
row("rtol string", lambda: integrate(rtol="tight"), TypeError, "rtol must be.*'tight'")
row("atol negative", lambda: integrate(atol=-1), ValueError, r"atol must be.*\[0, inf\), got -1")
row(
    "max_evaluations 0",
    lambda: integrate(max_evaluations=0),
    ValueError,
    "max_evaluations.*>= 1, got 0",
)
row(
    "max_evaluations float",
    lambda: integrate(max_evaluations=1e5),
    TypeError,
    "max_evaluations.*100000",
)
row(
    "one of several starts NaN",
    lambda: integrate([[1.0, 2.0], [NAN, 2.0]]),
    ValueError,
    r"theta0 has 1 non-finite entry; the first is nan at index \(1, 0\)",
)
row(
    "several starts of wrong length",
    lambda: integrate(np.ones((3, 5))),
    ValueError,
    r"theta0 must have shape \(any, 2\), got \(3, 5\)",
)
row("no start", lambda: integrate(np.zeros((0, 2))), ValueError, "theta0 must.*start")
row(
    "three axes of starts",
    lambda: integrate(np.ones((2, 2, 2))),
    ValueError,
    "theta0 must have shape.*2, 2, 2",
)
row(
    "flow class",
    lambda: integrate(flow=eosim.PrincipalFlow),
    TypeError,
    "flow must be an instance, got the class PrincipalFlow",
)
row("flow is a problem", lambda: integrate(flow=BOWL), TypeError, "flow.*Quadratic has no")
row(
    "flow of no problem",
    lambda: principal(problem=np.eye(2)),
    TypeError,
    "PrincipalFlow: problem.*ndarray",
)
row(
    "gradient flow of no problem",
    lambda: eosim.GradientFlow(np.eye(2)),
    TypeError,
    "GradientFlow: problem.*ndarray",
)
row(
    "flow with a field of wrong shape",
    lambda: integrate(flow=eosim.GradientFlow(Broken(lambda theta: np.ones(3)))),
    ValueError,
    r"GradientFlow.field must return shape \(2,\), got \(3,\)",
)
row(
    "flow with a field of NaN at the start",
    lambda: integrate(flow=eosim.GradientFlow(Broken(lambda theta: NAN * theta))),
    ValueError,
    "GradientFlow.field is not finite at theta0",
)
row(
    "closed form on a polynomial",
    lambda: eosim.closed_form(principal(problem=eosim.Polynomial(QUARTIC_TERMS)), [1, 2], [1]),
    TypeError,
    "closed_form needs a flow on a Quadratic problem, got one on Polynomial; use eosim.integrate",
)
row(
    "closed form from a wrong start",
    lambda: eosim.closed_form(principal(), [1.0], [1.0]),
    ValueError,
    r"theta0 must have shape \(2,\), got \(1,\)",
)
row(
    "closed form at NaN",
    lambda: eosim.closed_form(principal(), [1.0, 2.0], [NAN]),
    ValueError,
    "times has 1 non-finite entry",
)
row(
    "closed form of a problem",
    lambda: eosim.closed_form(BOWL, [1.0, 2.0], [1.0]),
    TypeError,
    "flow.*Quadratic has no",
)

# --- stability and measures ---------------------------------------------------------------------

for name, update in {
    "sign of the gradient": lambda theta, state, g: (theta - 0.1 * np.sign(g), state),
    "normalised gradient": lambda theta, state, g: (theta - 0.1 * g / np.abs(g), state),
    "clipped gradient": lambda theta, state, g: (theta - np.clip(g, -1, 1), state),
    "offset": lambda theta, state, g: (theta - 0.1 * g + 1e-3, state),
    "square": lambda theta, state, g: (theta - 0.1 * g * g, state),
    "product": lambda theta, state, g: (theta - 0.1 * theta * g, state),
    "NaN": lambda theta, state, g: (NAN * theta, state),
}.items():
    row(
        f"threshold of a rule that is not linear: {name}",
        lambda update=update: critical_sharpness(UserRule(update=update)),
        ValueError,
        "critical_sharpness needs a linear rule, but UserRule.step is not linear",
    )
row(
    "threshold of an adaptive rule",
    lambda: critical_sharpness(
        UserRule(
            initial=lambda theta: (0 * theta,),
            update=lambda theta, state, g: (
                theta - 0.1 * g / (np.sqrt(0.9 * state[0] + 0.1 * g * g) + 1e-8),
                (0.9 * state[0] + 0.1 * g * g,),
            ),
        )
    ),
    ValueError,
    "UserRule.step is not linear.*freeze the preconditioner",
)
row(
    "threshold of a class",
    lambda: critical_sharpness(eosim.HeavyBall),
    TypeError,
    "got the class HeavyBall",
)
row(
    "threshold of a rule without step",
    lambda: critical_sharpness(NoStep()),
    TypeError,
    "NoStep has no step",
)
row("threshold of a number", lambda: critical_sharpness(0.1), TypeError, "rule must.*float")
row(
    "threshold of a step that returns theta only",
    lambda: critical_sharpness(UserRule(update=lambda theta, state, g: theta - g)),
    (TypeError, ValueError),
    r"UserRule.step must return .*\(theta, state\)",
)
row(
    "sharpness of NaN",
    lambda: eosim.measure.sharpness(eosim.Cosine(2), np.array([NAN, 0.0])),
    ValueError,
    "the Hessian is not finite at theta",
)
row(
    "NTK of a toy",
    lambda: eosim.measure.ntk_spectrum(eosim.Cosine(2), np.zeros(2)),
    TypeError,
    "Cosine is no least-squares problem",
)
row(
    "loading no path",
    lambda: eosim.Trajectory.load("missing.npz"),
    FileNotFoundError,
    "missing.npz",
)


@pytest.mark.parametrize(("function", "exception", "words"), ROWS.values(), ids=ROWS)
def test_a_mistake_is_refused_in_words_that_help(function, exception, words):
    with pytest.raises(exception, match=f"(?s){words}") as caught:
        function()
    exact = exception if isinstance(exception, tuple) else (exception,)
    assert caught.type in exact  # no subclass from the depths of a library
    assert len(str(caught.value)) < 400


# --- accepted and unmodified --------------------------------------------------------------------

MATRIX = symmetric([1.0, 2.0, 3.0])
INTEGERS = np.array([[2, 1], [1, 3]])


def bytes_of(value):
    """The content of any matrix-like thing."""
    if scipy.sparse.issparse(value):
        return value.toarray().tobytes()
    if isinstance(value, LinearOperator):
        return (value @ np.eye(value.shape[1])).tobytes()
    return np.array(value).tobytes()


def read_only(array):
    array = np.array(array)
    array.flags.writeable = False
    return array


MATRICES = {
    "list": [[2, 1], [1, 3]],
    "tuple": ((2.0, 1.0), (1.0, 3.0)),
    "int": INTEGERS,
    "int8": INTEGERS.astype(np.int8),
    "unsigned": INTEGERS.astype(np.uint16),
    "float32": INTEGERS.astype(np.float32),
    "longdouble": INTEGERS.astype(np.longdouble),
    "big endian": INTEGERS.astype(">f8"),
    "Fortran order": np.asfortranarray(INTEGERS, dtype=float),
    "strided": np.kron(INTEGERS.astype(float), np.ones((2, 2)))[::2, ::2],
    "reversed": INTEGERS[::-1, ::-1].astype(float)[::-1, ::-1],
    "read-only": read_only(INTEGERS.astype(float)),
    "csr": scipy.sparse.csr_array(INTEGERS),
    "csc float32": scipy.sparse.csc_matrix(INTEGERS.astype(np.float32)),
    "coo": scipy.sparse.coo_array(INTEGERS),
    "dia": scipy.sparse.dia_array(INTEGERS),
    "operator": aslinearoperator(INTEGERS.astype(float)),
    "integer operator": aslinearoperator(INTEGERS),
}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_matrices_of_any_kind_are_accepted_and_never_modified(matrix):
    before = bytes_of(matrix)
    expected = eosim.run(eosim.Quadratic(INTEGERS), GD, [1, 2], 5)
    path = eosim.run(eosim.Quadratic(matrix), GD, [1, 2], 5)
    np.testing.assert_allclose(path.theta, expected.theta, rtol=1e-13)
    flow = eosim.integrate(eosim.PrincipalFlow(eosim.Quadratic(matrix), 0.4), [1, 2], [0.4])
    np.testing.assert_allclose(flow.theta[0], [1 - 1.6, 2 - 2.8], rtol=1e-8)
    assert bytes_of(matrix) == before

    expected = eosim.run(eosim.LinearRegression(INTEGERS, [1, 2]), GD, [1, 2], 5)
    path = eosim.run(eosim.LinearRegression(matrix, [1, 2]), GD, [1, 2], 5)
    np.testing.assert_allclose(path.theta, expected.theta, rtol=1e-13)
    if not isinstance(matrix, LinearOperator):
        eosim.run(eosim.LinearRegression(matrix, [1, 2]), GD, [1, 2], 5, batch_size=1, seed=0)
    assert bytes_of(matrix) == before


VECTORS = {
    name: MATRICES[name][0] if isinstance(MATRICES[name], list | tuple) else MATRICES[name][0, :]
    for name in MATRICES
    if not scipy.sparse.issparse(MATRICES[name]) and "operator" not in name
}


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_vectors_of_any_kind_are_accepted_and_never_modified(vector):
    before = bytes_of(vector)
    problem = eosim.Quadratic(INTEGERS, vector)
    path = eosim.run(problem, eosim.HeavyBall(0.1), vector, 5)
    np.testing.assert_array_equal(path.theta, [[2.0, 1.0]] * 6)
    flow = eosim.PrincipalFlow(BOWL, 0.4)
    np.testing.assert_array_equal(eosim.integrate(flow, vector, [0]).theta, [[2.0, 1.0]])
    np.testing.assert_allclose(eosim.closed_form(flow, vector, [0]), [[2.0, 1.0]], rtol=1e-14)
    assert len(eosim.integrate(flow, [1, 2], np.sort(np.abs(vector)))) == 2
    regression_problem = eosim.LinearRegression(INTEGERS, vector)
    np.testing.assert_array_equal(regression_problem.targets, [[2.0], [1.0]])
    assert bytes_of(vector) == before


def test_numbers_of_any_real_kind_are_accepted():
    for number in (1, np.int8(1), np.float32(1), np.float64(1), np.longdouble(1), True + 0):
        assert eosim.GradientDescent(number).lr == 1.0
        assert eosim.PrincipalFlow(BOWL, number).lr == 1.0
        assert eosim.Rosenbrock(number).steepness == 1.0
    run(n_steps=np.uint8(3), every=np.int16(1), stop_below=np.float32(0.1))
    batches(np.int32(2), seed=np.uint64(2**63))
    eosim.Polynomial({(np.int64(2), 1): np.float32(1)})
    eosim.Cosine(np.int64(2))
