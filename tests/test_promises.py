"""What the README promises: the tests it names exist, and those promises that no other file keeps."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import eosim
from eosim.trajectory import Status
from tests.cases import FINITE_SUMS, FLOWS, PROBLEMS, RULES, perceptron, regression
from theory import claims

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(tests/\w+\.py)(?:::(\w+))?`")


def promises() -> list[str]:
    """The points of the README's section, each with the tests that keep it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Promises\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    assert section is not None
    return re.split(r"^- ", section[1], flags=re.MULTILINE)[1:]


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_promise_names_tests_that_exist():
    found = promises()
    assert len(found) >= 7
    for promise in found:
        named = NAMED.findall(promise)
        assert named, f"no test is named for: {promise}"
        for file, test in named:
            assert (ROOT / file).is_file(), file
            names = names_in(ROOT / file)
            assert any(name.startswith("test_") for name in names), file
            assert not test or test in names, f"{file}::{test}"


# --- thresholds and identities ------------------------------------------------------------------

THRESHOLDS = {"lambda_c", "eta_star", "eta_finite", "B_x"}


def test_every_threshold_has_three_routes_and_every_identity_two():
    thresholds = 0
    for claim in claims():
        symbols = {symbol.name for symbol in claim.statement.free_symbols}
        symbols |= {atom.func.__name__ for atom in claim.statement.atoms() if atom.is_Function}
        symbols |= set(re.findall(r"\w+", str(claim.statement)))
        is_threshold = bool(THRESHOLDS & symbols)
        thresholds += is_threshold
        assert len(claim.routes) >= (3 if is_threshold else 2), claim.name
    assert thresholds >= 18


def test_every_rule_with_a_threshold_of_its_own_is_in_the_catalogue():
    known = {claim.name.replace("_", "") for claim in claims()}
    elsewhere = {  # what each of them is with P held fixed
        "AMSGrad": "adam",
        "AdaGrad": "rmsprop",
        "Padam": "adam",
        "Adafactor": "adam",
        "ScalarRMSProp": "rmsprop",
        "CoupledL2": "adaml2",
        "DecoupledDecay": "adamw",
        "Frozen": "frozenpreconditioner",
    }
    for name, rule in inspect.getmembers(eosim.optimizers, inspect.isclass):
        if hasattr(rule, "critical_sharpness"):
            assert elsewhere.get(name, name.lower()) in known, name


# --- endings ------------------------------------------------------------------------------------

ENDED_WELL = (Status.COMPLETED, Status.CONVERGED)


def finite(path: eosim.Trajectory) -> bool:
    return all(
        not np.isnan(values).any()
        for values in (path.t, path.theta, path["loss"])
        if values is not None
    )


@pytest.mark.parametrize(("problem", "theta"), PROBLEMS)
def test_a_run_at_any_rate_ends_with_a_status_and_without_nan(problem, theta):
    for lr in (1e-300, 0.1, 2.0, 1e3, 1e300):
        path = eosim.run(problem, eosim.GradientDescent(lr), theta, 40)
        assert path.status in (*ENDED_WELL, Status.DIVERGED)
        assert finite(path)
        assert np.isfinite(path.theta).all()


@pytest.mark.parametrize(("flow", "start"), FLOWS)
def test_a_flow_within_any_budget_ends_with_a_status_and_without_nan(flow, start):
    times = (flow.lr or 1e-3) * np.array([0, 1, 5, 40])
    for budget in (1, 30, 400):
        path = eosim.integrate(flow, start, times, max_evaluations=budget)
        assert path.settings["evaluations"] <= budget + 1
        assert isinstance(path.status, Status)
        assert finite(path)


def undefined_near_zero() -> eosim.problems.base.FunctionProblem:
    """|x|^2/2 whose loss is nan within 1/2 of 0, though its gradient is not."""
    return eosim.from_functions(
        lambda x: np.where(np.abs(x).max() < 0.5, np.nan, x @ x / 2), lambda x: x, dim=1, at=[1.0]
    )


@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_run_into_states_without_a_loss_ends_before_them_and_can_go_on(every):
    rule = eosim.GradientDescent(0.1)  # 0.9^7 = 0.478 is the first state without a loss
    path = eosim.run(undefined_near_zero(), rule, [1.0], 20, every=every)
    assert path.status is Status.LEFT_RANGE
    assert "the loss is nan" in path.message
    last = {1: 6, 3: 6, 100: 0}[every]
    assert path.stop_step == {1: 7, 3: 9, 100: 20}[every]
    assert path.step[-1] == path.final_state.step == last
    np.testing.assert_array_equal(path.final_state.theta, path.theta[-1])
    assert finite(path)
    on = eosim.run(undefined_near_zero(), rule, None, 20, state=path.final_state, record={})
    assert on.status is Status.COMPLETED  # asked for no loss, and has none


def test_a_flow_into_states_without_a_loss_ends_before_them():
    flow = eosim.GradientFlow(undefined_near_zero())
    path = eosim.integrate(flow, [1.0], np.linspace(0, 2, 5))
    assert path.status is Status.LEFT_RANGE
    assert "at t = 1: FunctionProblem.loss is nan" in path.message
    np.testing.assert_array_equal(path.t, [0, 0.5])
    assert finite(path)
    assert len(path) == len(path.theta) == len(path["loss"])


def test_a_start_without_a_loss_is_refused():
    with pytest.raises(ValueError, match=r"FunctionProblem\.loss is nan at the start"):
        eosim.run(undefined_near_zero(), eosim.GradientDescent(0.1), [0.1], 3)
    with pytest.raises(ValueError, match=r"FunctionProblem\.loss is nan at the first of times"):
        eosim.integrate(eosim.GradientFlow(undefined_near_zero()), [0.1], [0, 1])


# --- your arrays --------------------------------------------------------------------------------


@pytest.mark.parametrize(("problem", "theta"), FINITE_SUMS)
@pytest.mark.parametrize("rule", RULES)
def test_nothing_writes_to_an_array_that_is_given(problem, theta, rule):
    mine = theta.copy()
    mine.flags.writeable = False
    path = eosim.run(problem, rule, mine, 4, batch_size=3, seed=0)
    before = [np.copy(entry) for entry in (path.final_state.theta, *path.final_state.rule_state)]
    eosim.run(problem, rule, None, 4, state=path.final_state, batch_size=3)
    after = (path.final_state.theta, *path.final_state.rule_state)
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, two)
    eosim.measure.sharpness(problem, mine)
    np.testing.assert_array_equal(mine, theta)


def test_data_may_be_read_only_and_stay_what_they_are():
    generator = np.random.default_rng(0)
    inputs, targets = generator.standard_normal((12, 3)), generator.standard_normal(12)
    kept = inputs.copy(), targets.copy()
    for array in (inputs, targets):
        array.flags.writeable = False
    for problem in (
        eosim.LinearRegression(inputs, targets),
        eosim.Perceptron(inputs, targets, (4,)),
        eosim.LinearNet(inputs, targets, (4,)),
        eosim.RandomFeatures(inputs, targets, generator.standard_normal((5, 3))),
    ):
        theta = np.full(problem.dim, 0.1)
        theta.flags.writeable = False
        problem.hessian(theta)
        eosim.stability.report(problem, theta, 0.1, 4)
    np.testing.assert_array_equal(inputs, kept[0])
    np.testing.assert_array_equal(targets, kept[1])


# --- the same bits ------------------------------------------------------------------------------

WORK = """
import hashlib, json, sys
import numpy as np
import eosim
from tests.test_promises import computed

digests = {}
for name, values in computed().items():
    digests[name] = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
print(json.dumps(digests))
"""


def computed() -> dict[str, np.ndarray]:
    """A little of everything that draws or accumulates."""
    data, network = regression(), perceptron()
    theta = network.initial(0)
    kernel = eosim.stability.tangent_kernel(data, np.zeros(4))
    adam = eosim.run(network, eosim.Adam(0.01), theta, 30, batch_size=3, seed=1)
    report = eosim.stability.report(data, np.zeros(4), 0.1, 3)
    ensemble = eosim.run_ensemble(
        network, eosim.GradientDescent(0.1), theta, 5, batch_sizes=4, n_replicas=3, seed=2
    )
    big = eosim.Perceptron(data.inputs, data.targets, (60,))  # beyond the dense eigensolver
    return {
        "adam": adam.theta,
        "flow": eosim.integrate(eosim.GradientFlow(network), theta, [0, 1.0]).theta,
        "sharpness": np.array(eosim.measure.sharpness(big, big.initial(3)).value),
        "trace": np.array(eosim.measure.hessian_trace(big, big.initial(3)).value),
        "predicted": eosim.predict(eosim.moments.Covariance(kernel, 0.1, 3), np.ones(12), 9)[
            "loss"
        ],
        "bounds": np.array([report.bounds[name].value for name in sorted(report.bounds)]),
        "ensemble": ensemble["loss"],
    }


def test_a_fresh_process_gives_the_same_bits_whatever_its_hashes():
    found = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, "-c", WORK],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=environment,
        )
        found.append(json.loads(result.stdout))
    assert found[0] == found[1]
    assert len(set(found[0].values())) == len(found[0])
