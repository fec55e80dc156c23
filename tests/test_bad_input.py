"""Bad input: one row per mistake, with the exception and the words that help; and what is accepted.

A row is (what the user does, exception, regular expression that the message must match).
"""

import enum
import inspect
import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import eosim
from eosim import (
    catapult,
    certified,
    data,
    flows,
    measure,
    moments,
    optimizers,
    problems,
    sampling,
    sharpening,
    stability,
    two_parameter,
)
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
for make in (
    lambda function: run(problem=function),
    lambda function: principal(problem=function),
    lambda function: measure.loss(function, [1.0]),
):
    row(
        f"problem function {len(ROWS)}",
        lambda make=make: make(lambda x: x),
        TypeError,
        r"problem.*function has no dim. Make .* by from_functions\(loss, gradient, dim=...\)",
    )
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
    "threshold of a problem",
    lambda: stability.critical_lr(DATA, 2),
    TypeError,
    r"kernel must be .* got the problem LinearRegression; pass tangent_kernel\(problem, theta\)",
)
row(
    "averages of a problem",
    lambda: moments.Covariance(DATA, 0.1, 2),
    TypeError,
    r"kernel must be .* LinearRegression; pass tangent_kernel\(problem, theta\)",
)
for word, rate in (("BatchSharpness", 0), ("PreconditionedSharpness", 0.1)):
    tracked = getattr(measure, word)
    row(
        f"{word} at a wrong theta",
        lambda tracked=tracked, rate=rate: (
            tracked()(DATA, [1.0], rule=GD, state=()) if rate else tracked(2)(DATA, [1.0])
        ),
        ValueError,
        r"theta must have shape \(2,\), got \(1,\)",
    )
row(
    "rate of change at no theta",
    lambda: flows.loss_rate(principal(), "here"),
    TypeError,
    "theta must be an array of numbers, got 'here' of type str",
)
row(
    "flow of another lr",
    lambda: eosim.compare(BOWL, GD, [1, 2], 3, {"p": principal(0.2)}),
    ValueError,
    "flows: p must have the rule's lr, 0.1; got 0.2",
)
row(
    "flow of another momentum",
    lambda: eosim.compare(
        BOWL, eosim.HeavyBall(0.1, 0.9), [1, 2], 3, [eosim.HeavyBallPrincipalFlow(BOWL, 0.1, 0.8)]
    ),
    ValueError,
    "flows: HeavyBallPrincipalFlow must have the rule's momentum, 0.9; got 0.8",
)
row(
    "functions that are not analytic",
    lambda: functions(lambda x: np.sum(np.abs(x) ** 3) / 3, lambda x: np.abs(x) * x, analytic=True),
    ValueError,
    "analytic=True is wrong here: .*by a complex step.*by differences; leave analytic out",
)
row(
    "functions of real numbers alone",
    lambda: functions(lambda x: math.cosh(x[0]), lambda x: [math.sinh(x[0])], dim=1, analytic=True),
    ValueError,
    "analytic=True is wrong here: gradient fails at complex theta, ComplexWarning.*; leave analytic out",
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


# --- every argument of every public callable ----------------------------------------------------

# kind -> (bad value, exception, how the message shows it); "with NaN" spoils the good value.
REAL = ((NAN, ValueError, "nan"), (INF, ValueError, "inf"), ("much", TypeError, "'much'"))
POSITIVE = (*REAL, (-1.0, ValueError, "-1"))
COUNT = ((-1, ValueError, "-1"), (1.5, TypeError, "1.5"), ("many", TypeError, "'many'"))
COUNTS = ((-1, ValueError, "-1"), (1.5, TypeError, "float64"), ("many", TypeError, "<U4"))
SEED = ((-1, ValueError, "-1"), (1.5, TypeError, "1.5"), ("seed", TypeError, "'seed'"))
CHOICE = (("nonsense", ValueError, "'nonsense'"),)
ARRAY = (
    ("many", TypeError, "'many'"),
    (None, TypeError, "None"),
    ("with NaN", ValueError, "non-finite"),
)
# A state along a path: NaN there is a diverged path, not a mistake.
POINT = (
    ("many", TypeError, "'many'"),
    (3.0, ValueError, r"\(\)"),
    (np.ones(1), ValueError, r"\(1,\)"),
)
MATRIX_OR_KERNEL = ARRAY[:2]
PROBLEM = ((np.eye(2), TypeError, "ndarray"), (None, TypeError, "NoneType"))
RULE = ((0.1, TypeError, "float"), (eosim.HeavyBall, TypeError, "class HeavyBall"))

GENERATOR = np.random.default_rng(0)
POINTS, ANSWERS = GENERATOR.standard_normal((6, 2)), GENERATOR.standard_normal(6)
SLOPED = eosim.Perceptron(POINTS, ANSWERS, (2,))
GATED = eosim.TwoLayerNet(POINTS, ANSWERS, 3)
KERNEL = stability.tangent_kernel(DATA, np.zeros(2))
NOISY = {"kernel": KERNEL, "lr": 0.1, "batch_size": 2}
ADAM = eosim.Adam(0.1)
MINIMUM = np.linalg.lstsq(POINTS, ANSWERS)[0]

# name -> (callable, arguments that are fine, {arguments: the kind they are})
SURFACE = {}


def public(function, good, kinds):
    name = f"{function.__module__}.{function.__qualname__}".removeprefix("eosim.")
    assert name not in SURFACE
    SURFACE[name] = (function, good, kinds)


# Rules.
public(eosim.GradientDescent, {"lr": 0.1}, {"lr": (*POSITIVE, (10**400, ValueError, "inf"))})
for kind in (eosim.HeavyBall, eosim.Nesterov, eosim.EMAMomentum, eosim.QuasiHyperbolic):
    public(kind, {"lr": 0.1}, {"lr momentum": POSITIVE})
public(eosim.AdaGrad, {"lr": 0.1}, {"lr eps": POSITIVE})
public(eosim.RMSProp, {"lr": 0.1}, {"lr beta2 eps": POSITIVE})
public(eosim.ScalarRMSProp, {"lr": 0.1}, {"lr beta2 eps": POSITIVE})
public(eosim.Adam, {"lr": 0.1}, {"lr beta1 beta2 eps": POSITIVE})
public(eosim.AdamW, {"lr": 0.1}, {"lr beta1 beta2 eps weight_decay": POSITIVE})
public(eosim.NAdam, {"lr": 0.1}, {"lr beta1 beta2 eps": POSITIVE})
public(eosim.AMSGrad, {"lr": 0.1}, {"lr beta1 beta2 eps": POSITIVE, "maximum": CHOICE})
public(eosim.Padam, {"lr": 0.1}, {"lr beta1 beta2 eps exponent": POSITIVE})
public(
    eosim.Adafactor,
    {"lr": 0.1, "shapes": [(2, 3)]},
    {
        "lr beta1 beta2 eps": POSITIVE,
        "shapes": (("many", TypeError, "'many'"), ([(2, -3)], ValueError, "-3")),
    },
)
public(eosim.CascadedEMA, {"lr": 0.1}, {"lr beta1 beta2": POSITIVE})
public(eosim.ParallelEMA, {"lr": 0.1}, {"nu": REAL, "lr beta1 beta2": POSITIVE})
public(eosim.DAL, {}, {"p cap momentum": POSITIVE, "product": CHOICE})
public(eosim.CoupledL2, {"rule": ADAM}, {"rule": RULE, "weight_decay": POSITIVE})
public(optimizers.DecoupledDecay, {"lr": 0.1}, {"lr momentum weight_decay": POSITIVE})
public(
    eosim.freeze,
    {"rule": ADAM, "state": run(rule=ADAM).final_state},
    {"rule": RULE, "state": ((3, TypeError, "int"),)},
)
public(optimizers.Frozen, {"rule": GD, "diagonal": np.ones(2)}, {"rule": RULE, "diagonal": ARRAY})
public(optimizers.check_rule, {"rule": ADAM}, {"rule": RULE})

# Problems.
public(
    eosim.Quadratic,
    {"matrix": np.eye(2), "center": np.ones(2)},
    {"matrix": ARRAY, "center": (ARRAY[0], ARRAY[2])},
)
public(eosim.Rosenbrock, {}, {"steepness": REAL})
public(eosim.Cosine, {}, {"dim": COUNT})
public(
    eosim.Polynomial,
    {"terms": {(2,): 1.0}},
    {"terms": (("many", TypeError, "str"), ({(2,): NAN}, ValueError, "nan"))},
)
SAMPLES = {"inputs": POINTS, "targets": ANSWERS}
public(eosim.LinearRegression, SAMPLES, {"inputs targets": ARRAY})
public(eosim.DiagonalNet, SAMPLES, {"inputs targets": ARRAY})
WIDTHS = (
    (3, TypeError, "3"),
    ((0,), ValueError, "0"),
    ((1.5,), TypeError, "1.5"),
    ("many", TypeError, "'many'|'m'"),
)
public(eosim.LinearNet, SAMPLES, {"inputs targets": ARRAY, "widths": WIDTHS})
public(
    eosim.DeepHomogeneousNet,
    SAMPLES,
    {"inputs targets slopes": ARRAY, "widths": WIDTHS, "prefactor": POSITIVE},
)
public(
    eosim.TwoLayerNet,
    {**SAMPLES, "width": 2},
    {"inputs targets slopes": ARRAY, "width": COUNT, "prefactor": POSITIVE},
)
public(eosim.uv_net, {**SAMPLES, "width": 2}, {"inputs targets": ARRAY, "width": COUNT})
public(
    eosim.Perceptron,
    SAMPLES,
    {"inputs targets": ARRAY, "hidden": WIDTHS, "activation criterion": CHOICE},
)
public(
    eosim.QuadraticNet,
    {"meta_features": np.stack([np.eye(2)] * 6), "targets": ANSWERS},
    {"meta_features targets": ARRAY, "prefactor": POSITIVE, "features mixing": (ARRAY[0],)},
)
public(
    eosim.QuadraticRegression,
    {
        "initial_residuals": np.ones(2),
        "initial_jacobian": np.ones((2, 3)),
        "tensor": np.zeros((2, 3, 3)),
    },
    {
        "initial_residuals initial_jacobian": ARRAY,
        "tensor": (("many", ValueError, r"\(\)"), ARRAY[2]),
        "dtype": CHOICE,
    },
)
public(
    eosim.RandomFeatures,
    {**SAMPLES, "weights": np.ones((3, 2))},
    {"inputs targets weights": ARRAY, "activation": CHOICE, "slope": REAL},
)
public(
    eosim.from_functions,
    {"loss": lambda x: x @ x / 2, "gradient": lambda x: 1.0 * x, "dim": 2},
    {"loss gradient hvp hessian": ((1.0, TypeError, "float"),), "dim": COUNT, "at": (ARRAY[0],)},
)
public(
    problems.FrozenGates,
    {"net": GATED, "theta0": np.ones(GATED.dim)},
    {"net": PROBLEM, "theta0": ARRAY},
)
public(
    problems.activation_sparsity,
    {"problem": GATED, "theta": np.ones(GATED.dim)},
    {"problem": PROBLEM, "theta": POINT},
)
public(
    problems.catapult_bound,
    {"problem": GATED, "theta": np.ones(GATED.dim)},
    {"problem": PROBLEM, "theta": ARRAY, "kind": CHOICE},
)
public(
    problems.circle_coefficient,
    {"order": 2},
    {"order": ((1.5, TypeError, "float64"), ("many", TypeError, "<U4")), "size": COUNT},
)
public(
    problems.dual_kernel,
    {"inputs": POINTS, "others": POINTS},
    {"inputs": ARRAY, "others": (ARRAY[0], ARRAY[2]), "activation weights": CHOICE, "slope": REAL},
)
public(
    problems.interpolating_minimum,
    {"problem": SLOPED, "theta0": np.ones(SLOPED.dim), "max_steps": 1},
    {"problem": PROBLEM, "theta0": ARRAY, "tolerance": POSITIVE, "max_steps": COUNT},
)
public(
    problems.jacobian_with_spectrum,
    {"eigenvalues": [1.0, 2.0], "dim": 3},
    {"eigenvalues": ARRAY, "dim": COUNT, "seed": SEED},
)
public(
    problems.meta_features,
    {"inputs": POINTS, "size": 2},
    {"inputs": ARRAY, "size": COUNT, "seed": SEED, "low high": POSITIVE, "activation": CHOICE},
)
public(
    problems.paired_matrices,
    {"count": 2, "size": 2},
    {"count size": COUNT, "seed": SEED, "low high": POSITIVE},
)
public(
    problems.random_features,
    {"inputs": POINTS, "size": 2},
    {"inputs": ARRAY, "size": COUNT, "seed": SEED},
)
public(
    problems.random_quadratic_regression,
    {"n_samples": 2, "dim": 3, "sigma": 0.1},
    {
        "n_samples dim": COUNT,
        "sigma ntk_max": POSITIVE,
        "seed": SEED,
        "jacobian": (ARRAY[0],),
        "dtype": CHOICE,
    },
)
public(problems.sphere_kernel, {"n_inputs": 3}, {"n_inputs": COUNT, "slope": REAL})
public(
    problems.teacher_student,
    {"inputs": POINTS, "size": 2, "student_size": 2},
    {
        "inputs": ARRAY,
        "size student_size n_features student_n_features": COUNT,
        "seed": SEED,
        "low high": POSITIVE,
        "activation": CHOICE,
    },
)
PLACE = {"problem": DATA, "theta": np.ones(2)}
public(
    problems.third_derivative,
    {**PLACE, "a": np.ones(2), "b": np.ones(2)},
    {"problem": PROBLEM, "theta a b": POINT},
)

# Flows.
public(eosim.GradientFlow, {"problem": BOWL}, {"problem": PROBLEM, "lr": POSITIVE})
public(
    eosim.PrincipalFlow,
    {"problem": BOWL, "lr": 0.1},
    {"problem": PROBLEM, "lr": POSITIVE, "corrections": COUNT, "method": CHOICE},
)
public(
    eosim.HeavyBallPrincipalFlow,
    {"problem": BOWL, "lr": 0.1},
    {"problem": PROBLEM, "lr momentum": POSITIVE},
)
public(
    eosim.ModifiedFlow,
    {"problem": BOWL, "lr": 0.1},
    {"problem": PROBLEM, "lr": POSITIVE, "order": COUNT},
)
public(
    eosim.PrincipalSeries,
    {"problem": BOWL, "lr": 0.1},
    {"problem": PROBLEM, "lr": POSITIVE, "n_terms": COUNT},
)
public(
    eosim.ForwardDifferenceFlow,
    {"problem": BOWL, "lr": 0.1},
    {"problem": PROBLEM, "lr": POSITIVE, "order": COUNT},
)
public(
    eosim.EdgeFlow,
    {"problem": BOWL, "lr": 0.1},
    {"problem": PROBLEM, "lr": POSITIVE, "n_modes": COUNT, "rate": CHOICE},
)
for kind in (eosim.CentralFlow, eosim.StableFlow):
    public(
        kind,
        {"problem": BOWL, "rule": GD, "n_modes": 1},
        {"problem": PROBLEM, "rule": RULE, "n_modes": COUNT, "feedback": POSITIVE},
    )
public(
    eosim.RodFlow,
    {"problem": BOWL, "rule": GD, "initial_covariance": np.eye(2)},
    {
        "problem": PROBLEM,
        "rule": RULE,
        "form": CHOICE,
        "n_modes": COUNT,
        "initial_covariance": (ARRAY[0], ARRAY[2]),
    },
)
public(
    eosim.OrnsteinUhlenbeck,
    {"hessian": np.eye(2), "lr": 0.1, "noise_covariance": np.eye(2)},
    {"hessian noise_covariance": ARRAY, "lr": POSITIVE},
)
public(
    eosim.ShuffledEpochLoss,
    {"problem": DATA, "lr": 0.1, "batches": [[0, 1, 2], [3, 4, 5]]},
    {
        "problem": PROBLEM,
        "lr": POSITIVE,
        "batches": (
            ("many", TypeError, "'many'|'m'"),
            ([[0, 99]], ValueError, "99"),
            (3, TypeError, "3"),
        ),
    },
)
public(
    eosim.closed_form,
    {"flow": principal(), "theta0": np.ones(2), "times": [0.0, 1.0]},
    {"flow": PROBLEM, "theta0 times": ARRAY},
)
public(
    eosim.integrate,
    {"flow": principal(), "theta0": np.ones(2), "times": [0.0, 1.0]},
    {
        "flow": PROBLEM,
        "theta0 times": ARRAY,
        "rtol atol": POSITIVE,
        "max_evaluations euler_steps": COUNT,
    },
)
for function in (flows.loss_rate, flows.sharpness_rate):
    public(
        function,
        {"flow": eosim.GradientFlow(BOWL), "theta": np.ones(2)},
        {"flow": PROBLEM, "theta": POINT},
    )

# Runs.
public(
    eosim.run,
    {"problem": DATA, "rule": GD, "theta0": np.ones(2), "n_steps": 2, "batch_size": 2},
    {
        "problem": PROBLEM,
        "rule": RULE,
        "theta0": ARRAY,
        "n_steps batch_size every": COUNT,
        "sampling": CHOICE,
        "seed": SEED,
        "stop_below": (REAL[0], REAL[2]),
        "record": ((3, TypeError, "int"),),
    },
)
public(
    eosim.run_ensemble,
    {
        "problem": DATA,
        "rules": GD,
        "theta0": np.ones(2),
        "n_steps": 2,
        "batch_sizes": 2,
        "n_replicas": 2,
        "seed": 0,
    },
    {
        "problem": PROBLEM,
        "theta0": (ARRAY[0], ARRAY[2]),
        "n_steps batch_sizes n_replicas every threads": COUNT,
        "seed": SEED,
        "sampling method storage": CHOICE,
        "shared_batches": ((2, TypeError, "2"),),
        "record": ((3, TypeError, "int"),),
        "keep": (("nonsense", ValueError, "'nonsense'"), (3, TypeError, "3")),
    },
)
public(
    eosim.compare,
    {"problem": BOWL, "rule": GD, "theta0": np.ones(2), "n_steps": 2},
    {
        "problem": PROBLEM,
        "rule": RULE,
        "theta0": ARRAY,
        "n_steps every window restart_every": COUNT,
        "rtol atol": POSITIVE,
        "flows": ((3, TypeError, "int|3"), ({"x": 3}, TypeError, "int|3")),
    },
)
public(
    eosim.predict,
    {"model": moments.Covariance(KERNEL, 0.1, 2), "initial": np.ones(6), "n_steps": 2},
    {"model": PROBLEM, "initial": ARRAY, "n_steps every": COUNT},
)

public(
    catapult.iterate,
    {"a": 2.0, "w": 0.1, "n_steps": 10},
    {"a w": (*ARRAY, POSITIVE[3]), "label": ARRAY, "n_steps": COUNT},
)

# Measures.
SWITCH = (("yes", TypeError, "'yes'"), (2, TypeError, "2"))
public(measure.sharpness, PLACE, {"problem": PROBLEM, "theta": POINT, "certify": SWITCH})
for function in (
    measure.gauss_newton_spectrum,
    measure.gradient_norm,
    measure.hessian_frobenius,
    measure.hessian_trace,
    measure.loss,
    measure.ntk_spectrum,
    measure.spectrum_ends,
    measure.loss_alignment,
):
    public(function, PLACE, {"problem": PROBLEM, "theta": POINT})
public(measure.BatchSharpness, {"batch_size": 2}, {"batch_size n_batches": COUNT, "seed": SEED})
public(
    measure.PreconditionedSharpness,
    {},
    {"tolerance": POSITIVE, "preconditioner": CHOICE, "search_every": COUNT},
)

# Averaged dynamics.
for kind in (moments.Covariance, moments.DiagonalClosure):
    public(
        kind,
        NOISY,
        {
            "kernel": MATRIX_OR_KERNEL,
            "lr momentum": POSITIVE,
            "batch_size": COUNT,
            "sampling": CHOICE,
        },
    )
public(
    moments.HomogenizedSGD,
    NOISY,
    {"kernel": MATRIX_OR_KERNEL, "lr": POSITIVE, "batch_size": COUNT, "sampling": CHOICE},
)
public(
    moments.StreamingSGD,
    {"eigenvalues": [1.0, 2.0], "lr": 0.1},
    {"eigenvalues": ARRAY, "lr label_noise": POSITIVE, "batch_size": COUNT},
)
public(
    moments.VolterraEquation,
    {"forcing": np.ones(3), "memory": np.ones(3) / 4},
    {"forcing memory": ARRAY},
)
public(
    moments.energies,
    {"kernel": KERNEL, "residuals": np.ones(6)},
    {"kernel": MATRIX_OR_KERNEL, "residuals": ARRAY},
)
public(
    moments.volterra_equation,
    {**NOISY, "residuals": np.ones(6), "n_steps": 2},
    {
        "kernel": MATRIX_OR_KERNEL,
        "residuals": ARRAY,
        "lr": POSITIVE,
        "batch_size n_steps": COUNT,
        "kind sampling": CHOICE,
    },
)

# Batches.
public(
    sampling.BatchStream,
    {"n_samples": 4, "batch_size": 2, "scheme": "bernoulli", "key": (1, 2)},
    {"n_samples batch_size": COUNT, "scheme": CHOICE},
)
for function in (sampling.batch_moments, sampling.noise_factor):
    public(
        function,
        {"n_samples": 4, "batch_size": 2},
        {"n_samples batch_size": COUNT, "sampling": CHOICE},
    )
public(sampling.seed_sequence, {"seed": 1}, {"seed": SEED})
public(
    sampling.stream_key,
    {"sequence": np.random.SeedSequence(1)},
    {"sequence": ((1, TypeError, "int|1"),)},
)

# Sharpening.
CUBE = {"start": np.ones(2), "jacobian": np.ones((2, 3)), "sigma": 0.1, "lr": 0.1, "batch_size": 1}
public(
    sharpening.expected_differences,
    CUBE,
    {"start jacobian": ARRAY, "sigma lr": POSITIVE, "batch_size": COUNT, "sampling": CHOICE},
)
public(
    sharpening.measured_differences,
    {**CUBE, "n_pairs": 2},
    {
        "start jacobian": ARRAY,
        "sigma lr": POSITIVE,
        "batch_size n_pairs": COUNT,
        "seed": SEED,
        "sampling": CHOICE,
    },
)
public(
    sharpening.track_spectra,
    {
        "problems": [problems.random_quadratic_regression(2, 3, 0.1)],
        "lr": 0.1,
        "n_steps": 2,
        "batch_size": 1,
    },
    {
        "problems": (
            (3, TypeError, "int|3"),
            ([np.eye(2)], TypeError, "ndarray"),
            ([], ValueError, ""),
        ),
        "lr": POSITIVE,
        "n_steps batch_size every": COUNT,
        "sampling": CHOICE,
        "seed": SEED,
    },
)

# Stability.
ONE = {"kernel": KERNEL, "batch_size": 2}
public(
    stability.critical_lr,
    ONE,
    {
        "kernel": MATRIX_OR_KERNEL,
        "batch_size": COUNT,
        "kind sampling": CHOICE,
        "momentum": POSITIVE,
        "certify": SWITCH,
    },
)
NOISE = {
    "kernel": MATRIX_OR_KERNEL,
    "lr momentum": POSITIVE,
    "batch_size": COUNT,
    "kind sampling": CHOICE,
}
public(stability.noise_kernel_norm, NOISY, NOISE)
public(stability.growth_rate, NOISY, {**NOISE, "certify": SWITCH})
for function in (stability.one_step_matrix, stability.one_step_rates):
    public(
        function,
        NOISY,
        {"kernel": MATRIX_OR_KERNEL, "lr": POSITIVE, "batch_size": COUNT, "sampling": CHOICE},
    )
for function in (stability.generalised_sharpness, stability.lr_bounds):
    public(function, ONE, {"kernel": MATRIX_OR_KERNEL, "batch_size": COUNT, "sampling": CHOICE})
for function in (stability.alignment_band, stability.critical_batch_size):
    public(function, {"kernel": KERNEL}, {"kernel": MATRIX_OR_KERNEL})
public(
    stability.noise_floor,
    {**NOISY, "residuals": np.ones(6)},
    {
        "kernel": MATRIX_OR_KERNEL,
        "residuals": ARRAY,
        "lr momentum": POSITIVE,
        "batch_size": COUNT,
        "sampling": CHOICE,
    },
)
public(
    stability.kernel_alignment,
    {"kernel": KERNEL, "residuals": np.ones(6)},
    {"kernel": MATRIX_OR_KERNEL, "residuals": ARRAY},
)
public(stability.critical_sharpness, {"rule": GD}, {"rule": RULE, "certify": SWITCH})
public(
    stability.loss_proportional_critical_lr,
    {"eigenvalues": [1.0, 2.0], "noise": 0.1},
    {"eigenvalues": ARRAY, "noise alignment": POSITIVE},
)
public(
    stability.population_alignment,
    {"gauss_newton": np.eye(2), "gradient": np.ones(2), "loss": 1.0},
    {"gauss_newton gradient": ARRAY, "loss": POSITIVE, "inputs": CHOICE},
)
public(
    stability.streaming_critical_lr,
    {"eigenvalues": [1.0, 2.0], "batch_size": 2},
    {"eigenvalues": ARRAY, "batch_size": COUNT, "inputs": CHOICE},
)
public(
    stability.report,
    {"problem": DATA, "theta": MINIMUM, "lr": 0.1, "batch_size": 2},
    {
        "problem": PROBLEM,
        "theta": ARRAY,
        "lr momentum": POSITIVE,
        "batch_size": COUNT,
        "sampling": CHOICE,
    },
)
public(
    stability.tangent_kernel,
    {"problem": DATA, "theta": MINIMUM},
    {"problem": PROBLEM, "theta": ARRAY},
)
public(
    stability.LanczosKernelNorm,
    {"batch_size": 2},
    {"batch_size n_probes n_steps": COUNT, "kind sampling": CHOICE, "seed": SEED},
)
public(
    stability.SpectralKernelNorm, {"batch_size": 2}, {"batch_size": COUNT, "kind sampling": CHOICE}
)
public(
    stability.TraceKernelNorm,
    {"batch_size": 2, "n_probes": 4},
    {"batch_size n_probes": COUNT, "sampling": CHOICE, "seed": SEED},
)

# Catapults.
public(
    catapult.attractor,
    {"label": 1.2, "transient": 10, "n_steps": 100},
    {"label": ARRAY, "transient n_steps": COUNT},
)
public(
    catapult.BiasNet,
    {
        "linear": 0.1,
        "quadratic": 0.1,
        "curved": 1.0,
        "flat": 1.0,
        "kappa": 1.0,
        "target": 0.0,
        "lr": 0.1,
    },
    {"linear quadratic target across": REAL, "curved flat kappa lr": POSITIVE},
)
public(
    catapult.EigenbasisNet,
    {"squares": [1.0, 2.0], "eigenvalues": [1.0, -1.0], "prefactor": 1.0, "target": 0.0, "lr": 0.1},
    {"squares eigenvalues": ARRAY, "prefactor target": REAL, "lr": POSITIVE},
)
public(catapult.InfiniteReLU, {"a": 1.0}, {"a": POSITIVE, "eps": REAL})
public(
    catapult.LinearNetMoments,
    {
        "inputs": POINTS,
        "targets": ANSWERS,
        "hidden": np.ones((3, 2)),
        "readout": np.ones(3),
        "lr": 0.1,
    },
    {"inputs targets hidden readout": ARRAY, "lr": POSITIVE},
)
public(
    catapult.NeuronNet,
    {
        "projections": np.ones(3),
        "readout": np.ones(3),
        "slopes": (1.0, 0.0),
        "kappa": 1.0,
        "target": 0.0,
        "lr": 0.1,
    },
    {
        "projections readout": ARRAY,
        "slopes": (
            ("many", TypeError, "'many'|'m'"),
            ((1.0, NAN), ValueError, "nan"),
            ((1.0,), ValueError, "1"),
            (3.0, ValueError, r"3|\(\)"),
        ),
        "kappa lr": POSITIVE,
        "target": REAL,
    },
)
public(catapult.boundary_orbit, {"angle": 0.5, "n_steps": 2}, {"angle": REAL, "n_steps": COUNT})
public(
    catapult.critical_lr,
    {"squares": 1.0, "product": 0.1, "target": 0.0},
    {"squares": POSITIVE, "product target": REAL},
)
public(catapult.final_ntk, {"a": 2.3, "w": 0.01}, {"a w": POSITIVE})
public(catapult.peak, {"a": 2.3, "w": 0.01}, {"a w": POSITIVE})
public(
    catapult.pulse, {"a": 2.3, "w": 0.01, "steps": [1.0, 2.0]}, {"a w": POSITIVE, "steps": ARRAY}
)
public(catapult.period_two, {"label": 1.5}, {"label": POSITIVE})
public(
    catapult.homogeneous_phases,
    {"ratio": 2.0, "width": 4, "seed": 0, "max_steps": 10},
    {
        "width seed": COUNTS,
        "ratio input_norm": (*ARRAY, POSITIVE[3]),
        "max_steps": COUNT,
        "slopes target": ARRAY,
    },
)
public(
    catapult.infinite_relu_phases,
    {"a": 2.0, "max_steps": 10},
    {"a": (*ARRAY, POSITIVE[3]), "kick": ARRAY, "max_steps": COUNT},
)
public(
    catapult.linear_net_phases,
    {"ratio": 2.0, "width": 4, "seed": 0, "max_steps": 10},
    {"width seed": COUNTS, "ratio": (*ARRAY, POSITIVE[3]), "max_steps": COUNT, "target": ARRAY},
)
public(
    catapult.phase_diagram,
    {"a": 2.0, "w": 0.1, "max_steps": 10},
    {"a w": (*ARRAY, POSITIVE[3]), "label": ARRAY, "max_steps": COUNT},
)
public(
    catapult.phase_boundary,
    {
        "diagram_of": lambda a: catapult.phase_diagram(a, 0.01, max_steps=200),
        "low": 3.0,
        "high": 5.0,
        "rtol": 0.1,
    },
    {
        "diagram_of beyond": ((3, TypeError, "int|3"),),
        "low high": ARRAY,
        "samples": COUNT,
        "rtol": POSITIVE,
    },
)
public(
    catapult.simulate,
    {"reduction": catapult.InfiniteReLU(1.0), "n_steps": 2},
    {"reduction": PROBLEM, "n_steps": COUNT},
)

# The two-parameter model.
public(
    two_parameter.parameters,
    {"z": 0.1, "ntk": 1.0, "eps": 0.1},
    {"z ntk": ARRAY, "eps": POSITIVE, "energy": REAL},
)
public(
    two_parameter.settle,
    {"z": 0.1, "ntk": 1.0, "eps": 0.1, "n_steps": 3},
    {"z ntk": ARRAY, "eps": POSITIVE, "energy": REAL, "n_steps": COUNT},
)

# Data.
READ = {"n_samples": COUNT, "scale": CHOICE, "n_held_out": COUNT, "seed": SEED}
CLASSES = ((3, ValueError, "3"), ((0, 99), ValueError, "99"))
for function in (data.digits, data.breast_cancer):
    public(function, {"n_samples": 10}, {**READ, "classes": CLASSES})
public(data.diabetes, {"n_samples": 10}, {**READ})

# Rows that need no file: what a file holds is refused in the tests of the data.
for path in (3, None):
    for function, name in (
        (data.from_npz, "path"),
        (data.from_cifar10, "paths"),
        (lambda images: data.from_idx(images, "labels"), "images"),
    ):
        row(
            f"{name} of data {path}",
            lambda function=function, path=path: function(path),
            TypeError,
            f"{name} must be a path, got {path}",
        )
row("no paths of data", lambda: data.from_cifar10([]), ValueError, "paths must name at least one")
row(
    "data that are not there",
    lambda: data.from_npz("nowhere.npz"),
    FileNotFoundError,
    "nowhere.npz",
)
row(
    "rule of an ensemble",
    lambda: eosim.run_ensemble(DATA, 0.1, [0, 0], 1, batch_sizes=1, n_replicas=1, seed=0),
    TypeError,
    "rule must have init, step; float has no init",
)
row(
    "no start of an ensemble",
    lambda: eosim.run_ensemble(DATA, GD, None, 1, batch_sizes=1, n_replicas=1, seed=0),
    ValueError,
    "exactly one of theta0 and residuals0 must be given",
)
row(
    "frozen rule with a negative diagonal",
    lambda: optimizers.Frozen(GD, [1.0, -2.0]),
    ValueError,
    "diagonal must be positive everywhere, its smallest entry is -2.0",
)


def spoilt_arguments():
    """One parameter set per callable, argument and bad value."""
    for name, (function, good, kinds) in SURFACE.items():
        for arguments, kind in kinds.items():
            for argument in arguments.split():
                for value, exception, words in kind:
                    shown = repr(value).replace("\n", "")[:40]
                    identifier = f"{name} {argument}={shown}"
                    yield pytest.param(
                        function,
                        good,
                        argument,
                        value,
                        exception,
                        words,
                        id=identifier,
                    )


# First, so that what has to be compiled is there when the rows below are timed.
@pytest.mark.parametrize(("function", "good", "kinds"), SURFACE.values(), ids=SURFACE)
def test_the_arguments_that_are_spoilt_are_fine_before(function, good, kinds):
    function(**good)
    assert {name for names in kinds for name in names.split()} <= set(
        inspect.signature(function).parameters
    )


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("function", "good", "argument", "value", "exception", "words"), list(spoilt_arguments())
)
def test_a_spoilt_argument_is_named_with_its_value(
    function, good, argument, value, exception, words
):
    if isinstance(value, str) and value == "with NaN":
        fine = good.get(argument, inspect.signature(function).parameters[argument].default)
        value = np.array(fine, dtype=float)
        value.flat[0] = NAN
    with pytest.raises(exception) as caught:
        function(**{**good, argument: value})
    message = str(caught.value)
    assert caught.type is exception  # no subclass from the depths of a library
    assert argument in message
    assert re.search(words, message), message
    assert len(message) < 400


# --- nothing public is left out -----------------------------------------------------------------

ARITHMETIC = "plain arithmetic, which runs on symbols as it stands"
RESULT = "a result, which is returned and not made"
ELSEWHERE = "has rows of its own above"
EXEMPT = {
    "sweeps.driver.sweep": "tests/test_sweeps.py",
    **dict.fromkeys(
        (
            "_maps.balanced_map",
            "_maps.bias_map",
            "_maps.factor_map",
            "_maps.first_integral",
            "_maps.margin",
            "_maps.moment_map",
            "_maps.output_map",
            "_maps.residual_map",
            "flows.principal.principal_coefficient",
            "moments.closures.mode_moments",
            "sharpening.closed_step",
            "sharpening.difference_moments",
            "sharpening.mode_sharpening",
            "two_parameter.curvatures",
            "two_parameter.edge_ntk",
            "two_parameter.parameter_map",
            "two_parameter.reduced_map",
            "two_parameter.reduced_variables",
        ),
        ARITHMETIC,
    ),
    **dict.fromkeys(
        (
            "catapult.closed_forms.Peak",
            "catapult.phases.Attractor",
            "catapult.boundaries.Boundary",
            "catapult.phases.PhaseDiagram",
            "comparison.Comparison",
            "data.Dataset",
            "ensemble.result.Ensemble",
            "flows.base.Averages",
            "measure.alignment.Alignment",
            "measure.curvature.Eigenvalue",
            "measure.curvature.Estimate",
            "measure.curvature.SpectrumEnds",
            "certified.Enclosure",
            "flows.ensemble.FlowEnsemble",
            "measure.tracking.PreconditionedEigenvalue",
            "moments.closures.Energies",
            "problems.dual_kernels.SphereKernel",
            "problems.minima.InterpolatingMinimum",
            "problems.teachers.TeacherStudent",
            "sampling.BatchMoments",
            "sharpening.Differences",
            "sharpening.MeasuredDifferences",
            "sharpening.Spectra",
            "stability.alignment.AlignmentBand",
            "stability.bounds.Bound",
            "stability.bounds.OneStepRates",
            "stability.reporting.StabilityReport",
            "stability.tangent_kernel.TangentKernel",
            "trajectory.RunState",
            "trajectory.Trajectory",
        ),
        RESULT,
    ),
    "optimizers.base.needs_local": "asks a rule that check_rule has passed",
    "sampling.Batches": RESULT,
    **dict.fromkeys(
        ("sampling.batch_blocks", "sampling.streams_at_once"),
        "between modules: their callers have checked what they pass on",
    ),
    "flows.ensemble.integrate_ensemble": "refused in the tests of flow ensembles",
    "data.from_cifar10": ELSEWHERE,
    "data.from_idx": ELSEWHERE,
    "data.from_npz": ELSEWHERE,
    "adapters.jax_functions.from_jax": "needs jax: refused in the tests of the adapters",
    "adapters.torch_modules.from_torch": "needs torch: refused in the tests of the adapters",
}
MODULES = (
    eosim,
    catapult,
    certified,
    data,
    flows,
    measure,
    moments,
    optimizers,
    problems,
    sampling,
    sharpening,
    stability,
    two_parameter,
)


def public_callables():
    for module in MODULES:
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
        ]
        for name in names:
            value = getattr(module, name)
            protocol = getattr(value, "_is_protocol", False)
            kind = isinstance(value, type) and issubclass(value, enum.Enum | Exception)
            if callable(value) and not protocol and not kind:
                yield f"{value.__module__}.{value.__qualname__}".removeprefix("eosim.")


def test_every_public_callable_has_a_row_or_is_exempt_by_name():
    named = set(public_callables())
    assert named - set(SURFACE) - set(EXEMPT) == set()
    assert set(EXEMPT) - named == set()  # no exemption outlives its callable
    assert not set(EXEMPT) & set(SURFACE)


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
