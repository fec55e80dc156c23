"""Files of trajectories: every ending and every rule's memory come back; foreign files say so."""

from __future__ import annotations

import functools
import io
import json
import pickle

import numpy as np
import pytest

import eosim
from eosim import RunState, Status, Trajectory
from eosim._archive import digest
from eosim.sweeps.store import decode
from tests.cases import regression
from tests.test_trajectory import assert_identical, assert_same_array, round_trip

# --- every ending -------------------------------------------------------------------------------


class Sliding:
    """A field that jumps to and fro, which no adaptive solver follows."""

    problem, lr, is_complex = eosim.Quadratic([[1.0]]), 1.0, False

    def field(self, theta, branch=None):
        return -np.sign(theta)


class Ending:
    """A field that exists for a time."""

    problem, lr, is_complex = eosim.Quadratic([[1.0]]), 1.0, False

    def __init__(self, end):
        self.end = end

    def field(self, theta, branch=None):
        if theta[0] < self.end:
            raise eosim.flows.LeftRange("it ends here")
        return -theta


def ended(status: str) -> Trajectory:
    """One trajectory for every way to end, the ones of flows and of averages too."""
    bowl, descent = eosim.Quadratic([[1.0]]), eosim.GradientDescent(0.5)
    if status == "COMPLETED":
        return eosim.run(bowl, descent, [1.0], 3)
    if status == "CONVERGED":
        return eosim.run(bowl, descent, [1.0], 99, stop_below=0.01)
    if status == "DIVERGED":
        return eosim.run(bowl, eosim.GradientDescent(9.0), [1.0], 99)
    if status == "STALLED":
        return eosim.integrate(Sliding(), [0.5], [0, 0.2, 2.0])
    if status == "BUDGET_SPENT":
        return eosim.integrate(eosim.GradientFlow(bowl), [1.0], [0, 1.0], max_evaluations=5)
    if status == "LEFT_RANGE":
        return eosim.integrate(Ending(0.5), [1.0], [0, 0.1, 9.0])
    if status == "LEFT_RANGE at once":
        return eosim.integrate(Ending(2.0), [1.0], [0.5, 1.0])
    if status == "complex":
        return eosim.integrate(eosim.PrincipalFlow(bowl, 1.8), [1.0], [0, 0.9, 1.8])
    if status == "predicted":
        kernel = eosim.stability.tangent_kernel(regression(), np.zeros(4))
        model = eosim.moments.Covariance(kernel, 0.1, 3)
        return eosim.predict(model, np.ones(12), 4)
    assert status == "reduced"
    net = eosim.catapult.LinearNetMoments([[1.0]], [0.5], [[0.3], [0.1]], [1.0, 2.0], 0.1)
    return eosim.catapult.simulate(net, 4)


ENDINGS = [status.name for status in Status] + [
    "LEFT_RANGE at once",
    "complex",
    "predicted",
    "reduced",
]


@pytest.mark.parametrize("status", ENDINGS)
def test_every_ending_comes_back_bit_for_bit_with_its_versions(status, tmp_path):
    path = ended(status)
    if status in Status.__members__:
        assert path.status.name == status
    loaded = round_trip(path, tmp_path / "path.npz")
    assert_identical(path, loaded)
    assert {"eosim", "numpy", "python", "machine"} <= loaded.settings["versions"].keys()


def test_the_endings_hold_what_they_are_for():
    assert len(ended("LEFT_RANGE at once")) == 0
    assert ended("LEFT_RANGE at once").theta.shape == (0, 1)
    assert ended("complex").theta.dtype == np.complex128
    assert ended("complex").theta.imag.any()
    assert ended("DIVERGED").stop_step is not None


# --- the memory of a rule -----------------------------------------------------------------------

MEMORIES = [
    eosim.RMSProp(0.01),
    eosim.AdaGrad(0.1),
    eosim.Adam(0.01),
    eosim.AdamW(0.01),
    eosim.NAdam(0.01),
    eosim.AMSGrad(0.01),
    eosim.Padam(0.01),
    eosim.Adafactor(0.01, ((2, 2),)),
    eosim.ScalarRMSProp(0.01),
    eosim.CascadedEMA(0.1),
    eosim.CoupledL2(eosim.Adam(0.01), 0.1),
]


@pytest.mark.parametrize("rule", MEMORIES, ids=lambda rule: type(rule).__name__)
def test_a_run_goes_on_from_a_file_as_if_it_had_never_stopped(rule, tmp_path):
    problem, options = regression(), {"batch_size": 3}
    whole = eosim.run(problem, rule, np.ones(4), 11, seed=5, **options)
    half = eosim.run(problem, rule, np.ones(4), 5, seed=5, **options)
    loaded = round_trip(half, tmp_path / "half.npz")
    assert_identical(half, loaded)
    rest = eosim.run(problem, rule, None, 6, state=loaded.final_state, **options)
    assert_same_array(whole.theta[5:], rest.theta)
    assert_identical(
        round_trip(rest, tmp_path / "rest.npz"), rest
    )  # a file of a continuation is none the less one


class Moody:
    """A user's rule that remembers scalars of every kind."""

    lr = 0.1

    def init(self, theta):
        return (0.1 + 0.2, True, None, "up", 7, np.float32(0.1), np.int16(3), 0 * theta)

    def step(self, theta, state, gradient):
        return theta - self.lr * gradient, state


def test_scalars_of_a_users_rule_come_back_as_they_are(tmp_path):
    path = eosim.run(eosim.Quadratic([[1.0]]), Moody(), [1.0], 2)
    loaded = round_trip(path, tmp_path / "run.npz").final_state
    assert loaded.rule_state[:5] == (0.30000000000000004, True, None, "up", 7)
    assert [type(entry) for entry in loaded.rule_state[:5]] == [float, bool, type(None), str, int]
    assert loaded.rule_state[5].dtype == np.float32
    assert loaded.rule_state[6] == 3
    assert loaded.bound == path.final_state.bound


# --- what cannot be saved -----------------------------------------------------------------------


def bare(**parts) -> Trajectory:
    fields = {"t": np.arange(2.0), "step": None, "theta": None, "records": {}} | parts
    return Trajectory(**fields, status=Status.COMPLETED, message="done")


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (
            bare(records={"x": np.array([{}, None], dtype=object)}),
            TypeError,
            "record/x must hold numbers or text",
        ),
        (bare(theta=np.array([[1], None], dtype=object)), TypeError, "theta must hold numbers"),
        (
            bare(final_state=RunState(np.ones(1), ({"m": 0.0},))),
            TypeError,
            "state/rule/0 must hold numbers or text",
        ),
        (bare(records={"a\0b": np.ones(2)}), ValueError, "must not hold a null character"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_before_there_is_one(path, error, message, tmp_path):
    with pytest.raises(error, match=message):
        path.save(tmp_path / "run.npz")
    assert not list(tmp_path.iterdir())


# --- foreign and damaged files ------------------------------------------------------------------

EXECUTED: list[str] = []


def execute(where: str) -> np.ndarray:
    EXECUTED.append(where)
    return np.zeros(3)


class Trap:
    """Whoever unpickles it runs code."""

    def __reduce__(self):
        return execute, ("unpickled",)


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # object arrays as pickles
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


TRAPPED = np.array([Trap()], dtype=object)
TRAPS = {
    "pickle": pickle.dumps(Trap()),
    "old_pickle": pickle.dumps(Trap(), protocol=0),
    "npy_of_objects": npy(TRAPPED),
    "npz_of_objects": npz(t=TRAPPED),
    "record_of_objects": npz(
        t=np.arange(1.0), header=np.array("{}"), sha256=np.array("0" * 64), **{"record/x": TRAPPED}
    ),
    "header_of_objects": npz(t=np.arange(1.0), header=TRAPPED, sha256=np.array("0" * 64)),
    "checksum_of_objects": npz(t=np.arange(1.0), header=np.array("{}"), sha256=TRAPPED),
}


def test_the_traps_run_code_where_pickles_are_trusted():
    EXECUTED.clear()
    pickle.loads(TRAPS["pickle"])
    np.load(io.BytesIO(TRAPS["npy_of_objects"]), allow_pickle=True)
    assert EXECUTED == ["unpickled", "unpickled"]


@pytest.mark.parametrize("trap", TRAPS)
def test_no_file_that_eosim_reads_runs_code(trap, tmp_path):
    EXECUTED.clear()
    file = tmp_path / "run.npz"
    file.write_bytes(TRAPS[trap])
    with pytest.raises(ValueError, match=r"run\.npz is not a trajectory saved by eosim"):
        Trajectory.load(file)
    with pytest.raises(ValueError, match="npz"):
        eosim.data.from_npz(file, inputs="t", targets="t")
    with pytest.raises(ValueError, match="checksum"):
        decode(TRAPS[trap], "0" * 64)
    assert EXECUTED == []


def forged(header: str, **arrays) -> bytes:
    """A file whose checksum is right."""
    return npz(**arrays, header=np.array(header), sha256=np.array(digest(arrays, header)))


GOOD = {
    "format": 1,
    "status": "COMPLETED",
    "message": "done",
    "stop_step": None,
    "settings": {},
    "final_state": None,
}


def test_a_forged_file_of_the_right_content_is_read(tmp_path):
    (tmp_path / "run.npz").write_bytes(forged(json.dumps(GOOD), t=np.arange(2.0)))
    assert_identical(Trajectory.load(tmp_path / "run.npz"), bare())


@pytest.mark.parametrize(
    "header",
    [
        "",
        "[]",
        "3",
        "{}",
        json.dumps(GOOD | {"format": "one"}),
        json.dumps(GOOD | {"status": "HAPPY"}),
        json.dumps(GOOD | {"final_state": {"entries": 1}}),
        json.dumps({name: value for name, value in GOOD.items() if name != "settings"}),
    ],
)
def test_a_header_of_another_program_is_refused_whatever_its_checksum(header, tmp_path):
    (tmp_path / "run.npz").write_bytes(forged(header, t=np.arange(2.0)))
    with pytest.raises(ValueError, match=r"run\.npz is not a trajectory saved by eosim"):
        Trajectory.load(tmp_path / "run.npz")


def test_a_file_without_times_is_refused(tmp_path):
    (tmp_path / "run.npz").write_bytes(forged(json.dumps(GOOD), theta=np.ones((2, 1))))
    with pytest.raises(ValueError, match=r"not a trajectory saved by eosim: KeyError: 't'"):
        Trajectory.load(tmp_path / "run.npz")


def test_a_newer_file_is_refused_before_it_is_understood(tmp_path):
    (tmp_path / "run.npz").write_bytes(forged(json.dumps({"format": 2}), epoch=np.arange(2.0)))
    with pytest.raises(ValueError, match="has format 2; this eosim reads up to 1"):
        Trajectory.load(tmp_path / "run.npz")


def test_no_damage_of_any_byte_goes_unnoticed(tmp_path):
    bare(theta=np.ones((2, 1))).save(tmp_path / "run.npz")
    good = Trajectory.load(tmp_path / "run.npz")
    content = (tmp_path / "run.npz").read_bytes()
    damaged, refused = tmp_path / "damaged.npz", 0
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 0xFF
        damaged.write_bytes(changed)
        try:
            assert_identical(Trajectory.load(damaged), good)  # dates of the archive and its padding
        except ValueError:
            refused += 1
    assert refused > len(content) / 2


# --- ensembles ----------------------------------------------------------------------------------


@functools.cache
def ensembles():
    problem = regression()
    rules = [eosim.GradientDescent(0.1), eosim.GradientDescent(90.0), eosim.DAL(1.0)]
    start, few = np.ones(problem.dim), {"batch_sizes": [1, None], "n_replicas": 3, "seed": 2}
    kept = {"keep": ("theta", "residuals"), "every": 3}
    record = {"loss": eosim.measure.loss, "sharpness": eosim.measure.sharpness}
    return {
        "compiled, some diverged": eosim.run_ensemble(problem, rules[:2], start, 40, **few, **kept),
        "a step size of its own": eosim.run_ensemble(problem, rules[2], start, 4, **few),
        "other records": eosim.run_ensemble(problem, rules[0], start, 4, **few, record=record),
    }


def assert_same_ensemble(found, saved):
    assert found.rules == tuple(str(rule) for rule in saved.rules)
    assert found.batch_sizes == saved.batch_sizes
    assert (found.message, found.settings) == (saved.message, saved.settings)
    assert_same_array(found.step, saved.step)
    assert_same_array(found.stop_step, saved.stop_step)
    for name in ("t", "final_theta", "final_residuals"):
        if getattr(saved, name) is None:
            assert getattr(found, name) is None
        else:
            assert_same_array(getattr(found, name), getattr(saved, name))
    assert found.records.keys() == saved.records.keys()
    for name in saved.records:
        assert_same_array(found[name], saved[name])


@pytest.mark.parametrize(
    "which", ["compiled, some diverged", "a step size of its own", "other records"]
)
def test_an_ensemble_comes_back_bit_for_bit(which, tmp_path):
    saved = ensembles()[which]
    assert saved.diverged.any() == (which == "compiled, some diverged")
    saved.save(tmp_path / "one.npz")
    found = eosim.Ensemble.load(tmp_path / "one.npz")
    assert_same_ensemble(found, saved)
    assert_same_array(found.median(), saved.median())
    found.save(tmp_path / "two.npz")
    assert_same_ensemble(eosim.Ensemble.load(tmp_path / "two.npz"), found)


def test_a_result_of_the_other_kind_is_named(tmp_path):
    bare().save(tmp_path / "run.npz")
    with pytest.raises(ValueError, match=r"not an ensemble .* but a trajectory: Trajectory\.load"):
        eosim.Ensemble.load(tmp_path / "run.npz")
    next(iter(ensembles().values())).save(tmp_path / "all.npz")
    with pytest.raises(ValueError, match=r"not a trajectory .* but an ensemble: Ensemble\.load"):
        Trajectory.load(tmp_path / "all.npz")


@pytest.mark.parametrize("trap", TRAPS)
def test_a_foreign_file_is_no_ensemble_and_no_unsafe_option_is_named(trap, tmp_path):
    (tmp_path / "run.npz").write_bytes(TRAPS[trap])
    with pytest.raises(ValueError, match=r"run\.npz is not an ensemble saved by eosim") as caught:
        eosim.Ensemble.load(tmp_path / "run.npz")
    assert "pickle" not in str(caught.value)
