"""What the command prints about thresholds is true wherever the hyperparameters may be."""

import math
import re
import sys
import textwrap

import numpy as np
import pytest
import sympy as sp

import eosim
from eosim.optimizers import CascadedEMA, CoupledL2, DecoupledDecay, Frozen, ParallelEMA
from eosim.stability import critical_sharpness
from theory import Claim, Refuted, Verdict, claims, linear_stability
from theory.__main__ import main
from theory.inequalities import SmallestPositive, certainly_positive, smallest_positive
from theory.linear_stability import THRESHOLD, derive

# Of every claim about a threshold: the rule at numbers, and numbers at which its formula changes.
RULES = {
    "gradient_descent": (lambda eta: eosim.GradientDescent(eta), []),
    "heavy_ball": (eosim.HeavyBall, [(1.0, 0.0)]),
    "nesterov": (eosim.Nesterov, [(1.0, 0.0)]),
    "ema_momentum": (eosim.EMAMomentum, [(1.0, 0.0)]),
    "quasi_hyperbolic": (lambda eta, beta, nu: eosim.QuasiHyperbolic(eta, beta, nu % 1), []),
    "quasi_hyperbolic_any_nu": (
        eosim.QuasiHyperbolic,
        [
            (0.5, 0.0, 0.7),  # no memory
            (0.5, 0.0, 9.0),
            (0.5, 0.9, 0.0),
            (0.5, 0.9, 0.7),
            (0.5, 0.9, 1.0),  # the pair is infinite
            (0.5, 0.5, 1.125),  # both at once: beta nu = (1 + beta)^2/4
            (0.5, 0.5, 1.1249),
            (0.5, 0.5, 1.1251),
            (0.5, 0.5, 1.5),  # period two is infinite
            (0.5, 0.9, 1.5),  # and negative
        ],
    ),
    "rmsprop": (lambda eta, P: Frozen(eosim.RMSProp(eta).linear(), P), []),
    "adam": (lambda eta, beta1, P: Frozen(eosim.Adam(eta, beta1).linear(), P), []),
    "adamw": (
        lambda eta, beta1, gamma, P: Frozen(
            eosim.AdamW(eta, beta1, weight_decay=gamma).linear(), P
        ),
        [(0.5, 0.9, 0.0, 1.0), (0.5, 0.9, 3.99, 1.0), (0.5, 0.9, 4.01, 1.0), (3.0, 0.5, 3.0, 0.1)],
    ),
    "nadam": (lambda eta, beta1, P: Frozen(eosim.NAdam(eta, beta1).linear(), P), []),
    "adam_l2": (
        lambda eta, beta1, gamma, P: CoupledL2(
            Frozen(eosim.Adam(eta, beta1).linear(), P), weight_decay=gamma
        ),
        [(0.5, 0.9, 75.9, 1.0), (0.5, 0.9, 76.1, 1.0), (0.5, 0.9, 0.0, 1.0)],
    ),
    "parallel_ema": (
        lambda eta, beta1, beta2, nu: ParallelEMA(eta, beta1, beta2, nu % 1),
        [(1.0, 0.0, 0.9, 0.5)],
    ),
    "cascaded_ema": (
        CascadedEMA,
        [
            (1.0, 0.0, 0.9),
            (1.0, 0.0, 0.0),
            (1.0, 1 / 3, 1 / 3),
            (1.0, 0.33, 0.33),
            (1.0, 0.34, 0.34),
        ],
    ),
}  # fmt: skip
NAMES = ("eta", "beta", "beta1", "beta2", "gamma", "nu", "P", "share")


def printed(line, **values):
    """A line "lambda_c = A if condition, else B", evaluated as it stands."""
    (right,) = [part for part in [line.partition(" = ")[2]] if part]
    return eval(right.replace(", else", " else"), {"oo": math.inf, **values})


def random_values(generator, names):
    return {
        name: generator.uniform(0, 1) if name.startswith("beta") else generator.uniform(0.05, 3)
        for name in names
    }


@pytest.fixture(scope="module")
def lines():
    """The line that the command prints under each name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Claim, "check", lambda self: [Verdict("symbolic", True, "", 0.0)])
        found = []
        patch.setattr("builtins.print", lambda *texts, **options: found.append(" ".join(texts)))
        assert main(["list"]) == 0
    heads = {text.split()[0]: index for index, text in enumerate(found) if "symbolic holds" in text}
    return {name: found[index + 1].strip() for name, index in heads.items()}


def test_every_claim_about_a_threshold_is_evaluated_here():
    about = [claim.name for claim in claims() if getattr(claim.statement, "lhs", 0) == THRESHOLD]
    assert about == [name for name in RULES if name in about]
    assert set(about) == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_the_line_that_is_printed_gives_the_threshold_at_any_hyperparameters(name, lines):
    build, corners = RULES[name]
    (claim,) = [claim for claim in claims() if claim.name == name]
    ranges = [text.split(" in ")[0] for text in claim.assumptions]
    generator = np.random.default_rng(0)
    points = [random_values(generator, ranges) for _ in range(40)]
    points += [dict(zip(ranges, corner, strict=True)) for corner in corners]
    for point in points:
        if name in ("quasi_hyperbolic", "parallel_ema"):
            point["nu"] %= 1
        expected = critical_sharpness(build(*point.values()))
        assert printed(lines[name], **point) == pytest.approx(expected, rel=1e-9, abs=1e-300), point


def test_quasi_hyperbolic_momentum_is_printed_as_in_the_three_cases_by_hand(lines):
    line = lines["quasi_hyperbolic_any_nu"]
    assert printed(line, eta=1, beta=0.9, nu=0.7) == pytest.approx(3.8 / 0.64)
    assert printed(line, eta=1, beta=0.9, nu=1.5) == pytest.approx(0.1 / 0.45)
    assert printed(line, eta=1, beta=0.9, nu=1.0) == pytest.approx(38)


def test_show_prints_both_cases_and_the_condition_in_latex(capsys):
    assert main(["show", "quasi_hyperbolic_any_nu"]) == 0
    latex = capsys.readouterr().out.split("LaTeX")[1]
    assert r"\begin{cases}" in latex
    assert r"\beta \nu \leq \frac{\left(\beta + 1\right)^{2}}{4}" in latex
    assert r"\min" not in latex


# --- rules of one's own --------------------------------------------------------------------------

MODULE = """
class _One:
    def __init__(self, lr):
        self.lr = lr
    def init(self, theta):
        return ()

class DelayedMean:
    def __init__(self, lr, share):
        self.lr, self.share = lr, share
    def init(self, theta):
        return (0 * theta,)
    def step(self, theta, state, gradient):
        mixed = (1 - self.share) * gradient + self.share * state[0]
        return theta - self.lr * mixed, (gradient,)

class Decaying:
    def __init__(self, lr, gamma):
        self.lr, self.gamma = lr, gamma
    def init(self, theta):
        return ()
    def step(self, theta, state, gradient):
        return theta - self.lr * (gradient + self.gamma * theta), ()
    def critical_sharpness(self):
        return max(0.0, 2 / self.lr - self.gamma)  # of numbers only

class DecayingMean:
    def __init__(self, lr, share, gamma):
        self.lr, self.share, self.gamma = lr, share, gamma
    def init(self, theta):
        return (0 * theta,)
    def step(self, theta, state, gradient):
        mixed = (1 - self.share) * gradient + self.share * state[0]
        return theta - self.lr * (mixed + self.gamma * theta), (gradient,)

class Sign(_One):
    def step(self, theta, state, gradient):
        return theta - (self.lr if gradient > 0 else -self.lr), ()

class Stateless(_One):
    def step(self, theta, state, gradient):
        return theta - self.lr * gradient

class Named:
    def __init__(self, step_size):
        self.step_size = step_size
    def init(self, theta):
        return ()
    def step(self, theta, state, gradient):
        return theta - self.step_size * gradient, ()

class Local(_One):
    def step(self, theta, state, gradient, local):
        return theta - self.lr * local.hvp(gradient), ()

class Bare(_One):
    def init(self, theta):
        return 0 * theta
    def step(self, theta, state, gradient):
        return theta - self.lr * gradient, state

class Array(Named):
    def __init__(self, lr):
        self.lr = lr
    def init(self, theta):
        return (theta.copy(),)

class Longer(_One):
    def step(self, theta, state, gradient):
        return theta - self.lr * gradient, (gradient,)

class Ascending(_One):
    def step(self, theta, state, gradient):
        return theta + self.lr * gradient, ()

class Resting(_One):
    def step(self, theta, state, gradient):
        return theta - 0 * gradient, ()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_rules.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "own_rules", raising=False)
    yield __import__("own_rules")
    sys.modules.pop("own_rules", None)


@pytest.mark.parametrize("kind", ["DelayedMean", "Decaying"])
def test_derive_prints_a_line_that_holds_beyond_where_a_branch_turns_negative(kind, own, capsys):
    assert main(["derive", f"own_rules:{kind}"]) == 0
    line = next(text for text in capsys.readouterr().out.splitlines() if "lambda_c = " in text)
    second = "share" if kind == "DelayedMean" else "gamma"
    for rate in (0.5, 1.0, 2.9):
        for value in (0.1, 0.25, 0.4, 0.5, 0.75, 0.99):
            expected = critical_sharpness(getattr(own, kind)(rate, value))
            assert printed(line.strip(), eta=rate, **{second: value}) == pytest.approx(expected)


def test_derive_does_not_print_a_branch_where_the_rule_is_unstable_at_once(own):
    derivation = derive(own.DecayingMean)
    eta, share, gamma = derivation.symbols.values()
    at = {eta: sp.Rational(5, 2), share: sp.Rational(1, 4), gamma: sp.Rational(9, 10)}
    assert derivation.printed.subs(at) == 0 == critical_sharpness(own.DecayingMean(2.5, 0.25, 0.9))
    at[eta] = 1
    found = critical_sharpness(own.DecayingMean(1.0, 0.25, 0.9))
    assert float(derivation.printed.subs(at)) == pytest.approx(found, rel=1e-12)
    derivation.check_spectral()


@pytest.mark.parametrize(("kind", "threshold"), [("Ascending", "0"), ("Resting", "oo")])
def test_a_rule_without_any_branch_is_unstable_at_once_or_never(kind, threshold, own, capsys):
    assert main(["derive", f"own_rules:{kind}"]) == 0
    assert f"lambda_c = {threshold}\n" in capsys.readouterr().out


class TwoDelays:
    """A mean of three gradients: one of its branches is real in a part of the domain only."""

    def __init__(self, lr, first, second):
        self.lr, self.first, self.second = lr, first, second

    def init(self, theta):
        return 0 * theta, 0 * theta

    def step(self, theta, state, gradient):
        last, older = state
        mixed = (1 - self.first - self.second) * gradient + self.first * last + self.second * older
        return theta - self.lr * mixed, (gradient, last)


def test_branches_with_roots_in_them_are_printed_as_the_smallest_positive_one():
    derivation = derive(TwoDelays)
    assert derivation.printed.func is SmallestPositive
    statement = derivation.statement(derivation.printed)
    assert "the smallest positive of (" in str(statement.rhs)
    assert r"\text{the smallest positive of } \left\{" in sp.latex(statement)
    generator = np.random.default_rng(1)
    for _ in range(15):
        values = [generator.uniform(0.1, 3), *generator.uniform(0.01, 0.99, 2)]
        at = dict(zip(derivation.symbols.values(), map(sp.Float, values), strict=True))
        expected = critical_sharpness(TwoDelays(*values))
        assert float(derivation.printed.subs(at)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("route", ["check_spectral", "check_simulation"])
def test_a_plain_minimum_of_the_branches_is_refuted(route, monkeypatch):
    monkeypatch.setattr(
        linear_stability, "smallest_positive", lambda branches, ranges: sp.Min(*branches)
    )
    with pytest.raises((Refuted, ValueError)):
        getattr(derive(eosim.QuasiHyperbolic), route)()


def test_a_wrong_condition_is_refuted(monkeypatch):
    def swapped(branches, ranges):
        (first, condition), (second, _) = smallest_positive(branches, ranges).args
        return sp.Piecewise((second, condition), (first, True))

    monkeypatch.setattr(linear_stability, "smallest_positive", swapped)
    with pytest.raises(Refuted, match="printed threshold"):
        derive(CascadedEMA).check_spectral()


def test_a_missing_start_condition_is_refuted(monkeypatch):
    monkeypatch.setattr(linear_stability.Derivation, "_starts", lambda self: [])
    with pytest.raises(Refuted, match="printed threshold"):
        derive(DecoupledDecay).check_spectral()


def test_a_certificate_is_given_to_positive_expressions_only():
    a, b = sp.symbols("a b", positive=True)
    ranges = {a: (0.0, math.inf), b: (0.0, 1.0)}
    assert certainly_positive(1 - b, ranges)
    assert certainly_positive(a / (1 - b**2), ranges)
    for expression in (a - b, b - 1, 1 - a * b, sp.Integer(0), -1 / a):
        assert not certainly_positive(expression, ranges)


def test_the_cascades_pair_exists_where_its_claim_says():
    (claim,) = [claim for claim in claims() if claim.name == "cascaded_ema_pair"]
    assert any(text.startswith("s + 3 q >= 1") for text in claim.assumptions)
    generator = np.random.default_rng(2)
    for first, second in generator.uniform(0.02, 0.98, (60, 2)):
        q, s = first * second, first + second
        values = {"q": q, "s": s, "K": (1 - q) * (1 - first) * (1 - second) / q}
        cosine = float(claim.statement.rhs.subs(values))
        rule = CascadedEMA(1.0, first, second)
        assert (abs(cosine) <= 1) == (s + 3 * q >= 1)
        assert (rule.critical_sharpness() == rule.critical_branches()[1]) == (s + 3 * q >= 1)


# --- what cannot be derived ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("own_rules:Sign", "Sign.step does not run on symbols .*compares.*critical_sharpness"),
        ("own_rules:Stateless", r"Stateless.step must return \(theta, state\).*got (Mul|Add)"),
        ("own_rules:Named", "Named: step_size must be a method.*call a learning rate lr"),
        ("own_rules:Local", "Local.step asks for local derivatives.*not linear"),
        ("own_rules:Bare", "Bare.init must return a tuple"),
        ("own_rules:Array", "Array.init does not run on symbols .*calls NumPy"),
        ("own_rules:Longer", "Longer.step must return a state of the length of init's, 0; got 1"),
        ("eosim:run", "eosim:run must be a rule class"),
        ("eosim:RMSProp", "adaptive.*theory show rmsprop; RMSProp.*critical_sharpness"),
        ("eosim:Adam", r"adaptive.*theory show adam; Adam\(...\).critical_sharpness\(\)"),
        ("eosim:AMSGrad", "adaptive.*theory show adam;"),
        ("eosim:AdamW", "adaptive.*theory show adamw;"),
        ("eosim:NAdam", "adaptive.*theory show nadam;"),
        ("eosim:Adafactor", "adaptive.*theory show adam;"),
        ("eosim:DAL", "theory show dal_never_below_the_edge$"),
        ("eosim.optimizers:CoupledL2", "theory show adam_l2$"),
        ("eosim.optimizers:Frozen", "theory show frozen_preconditioner$"),
    ],
)
def test_derive_says_in_words_what_it_cannot_treat_and_where_to_look(target, words, own, capsys):
    assert main(["derive", target]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("theory: ")
    assert re.search(words, message), message


def test_every_claim_that_is_pointed_to_exists():
    from theory.adaptive import NOT_LINEAR

    assert set(NOT_LINEAR.values()) <= {claim.name for claim in claims()}
    for kind in NOT_LINEAR:  # and none of these rules could be derived
        with pytest.raises((TypeError, ValueError)):
            _ = derive(kind).matrix
