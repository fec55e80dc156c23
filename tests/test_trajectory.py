"""Trajectories: access by name, and files that come back bit for bit or not at all."""

import pickle
import zipfile

import numpy as np
import pytest

import eosim
from eosim import RunState, Status, Trajectory, _archive
from tests.cases import FLOWS, RULES, SCHEMES, regression


def batch_run(scheme="without_replacement", **options):
    return eosim.run(
        regression(),
        eosim.HeavyBall(0.1 / 3, 0.7),
        np.ones(4),
        12,
        batch_size=5,
        sampling=scheme,
        seed=3,
        record={"loss": eosim.measure.loss, "sharpness": eosim.measure.sharpness},
        **options,
    )


def diverged_run():
    return eosim.run(eosim.Quadratic([[3.0]]), eosim.GradientDescent(1.0), [1.0], 1000)


def assert_identical(first: Trajectory, second: Trajectory):
    for name in ("t", "step", "theta"):
        assert_same_array(getattr(first, name), getattr(second, name))
    assert first.records.keys() == second.records.keys()
    for name, values in first.records.items():
        assert_same_array(values, second.records[name])
    for name in ("status", "message", "stop_step", "settings"):
        assert getattr(first, name) == getattr(second, name)
    assert (first.final_state is None) == (second.final_state is None)
    if first.final_state is not None:
        one, two = first.final_state, second.final_state
        assert (one.step, one.t, one.stream) == (two.step, two.t, two.stream)
        assert_same_array(one.theta, two.theta)
        assert len(one.rule_state) == len(two.rule_state)
        for left, right in zip(one.rule_state, two.rule_state, strict=True):
            assert isinstance(left, int) == isinstance(right, int)
            assert_same_array(np.asarray(left), np.asarray(right))


def assert_same_array(first, second):
    assert (first is None) == (second is None)
    if first is not None:
        assert first.dtype == second.dtype
        assert first.shape == second.shape
        assert first.tobytes() == second.tobytes()


def round_trip(trajectory, path):
    trajectory.save(path)
    return Trajectory.load(path)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_batch_run_comes_back_bit_for_bit(scheme, tmp_path):
    path = batch_run(scheme)
    assert_identical(path, round_trip(path, tmp_path / "run.npz"))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_comes_back_bit_for_bit(rule, tmp_path):
    path = eosim.run(eosim.Rosenbrock(1.0), rule, [0.2, 0.3], 7)
    assert_identical(path, round_trip(path, tmp_path / "run.npz"))


@pytest.mark.parametrize(("flow", "start"), FLOWS)
def test_every_flow_comes_back_bit_for_bit(flow, start, tmp_path):
    path = eosim.integrate(flow, start, [0, 1e-3, 2e-3])
    assert_identical(path, round_trip(path, tmp_path / "flow.npz"))


def test_a_diverged_run_and_one_without_theta_come_back_bit_for_bit(tmp_path):
    for path in (diverged_run(), batch_run(keep_theta=False)):
        assert_identical(path, round_trip(path, tmp_path / "run.npz"))


def test_special_values_survive(tmp_path):
    path = Trajectory(
        t=np.array([0.0, -0.0, np.inf, np.nan, 5e-324]),
        step=None,
        theta=np.array([[1 + 2j], [np.nan], [np.inf], [-0.0j], [1e-320]]),
        records={"a.b": np.array([True, False]), "empty": np.zeros((0, 3)), "x": np.float32([0.1])},
        status=Status.LEFT_RANGE,
        message="naïve λ → ∞",
        final_state=RunState(
            np.ones(1), (np.ones(1), 7, np.zeros((1, 2))), 10**12, 0.1, (2**64 - 1, 0)
        ),
        settings={"nested": {"list": [1, 2.5, None, "x"]}},
    )
    assert_identical(path, round_trip(path, tmp_path / "run.npz"))


def test_numpy_scalars_as_arguments_can_be_saved(tmp_path):
    path = eosim.run(
        regression(),
        eosim.GradientDescent(np.float32(0.1)),
        np.ones(4),
        np.int64(6),
        batch_size=np.int64(3),
        seed=np.random.SeedSequence(np.arange(3)),
        every=np.int64(2),
        stop_below=np.float32(0),
    )
    assert_identical(path, round_trip(path, tmp_path / "run.npz"))
    flow = eosim.GradientFlow(eosim.Cosine(), lr=np.float32(0.1))
    path = eosim.integrate(
        flow, [0.1], [0, 1], rtol=np.float32(1e-6), max_evaluations=np.int32(999)
    )
    assert_identical(path, round_trip(path, tmp_path / "flow.npz"))


def test_saving_overwrites_and_leaves_nothing_else_behind(tmp_path):
    diverged_run().save(tmp_path / "run.npz")
    path = batch_run()
    path.save(str(tmp_path / "run.npz"))
    assert_identical(path, Trajectory.load(str(tmp_path / "run.npz")))
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_else_behind(tmp_path, monkeypatch):
    path = batch_run()
    path.save(tmp_path / "run.npz")

    def full_disk(*args, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space"):
        diverged_run().save(tmp_path / "run.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]
    assert_identical(path, Trajectory.load(tmp_path / "run.npz"))


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    batch_run().save(tmp_path / "run.npz")
    assert (tmp_path / "run.npz").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_cannot_be_saved_without_a_pickle_is_refused(tmp_path):
    with pytest.raises((TypeError, ValueError), match=r"record.*thing"):
        eosim.run(
            eosim.Cosine(),
            eosim.GradientDescent(0.1),
            [0.5],
            2,
            record={"thing": lambda problem, theta: {"a": 1}},
        ).save(tmp_path / "run.npz")
    assert not list(tmp_path.iterdir())


def test_a_saved_file_is_a_plain_zip_of_arrays(tmp_path):
    path = batch_run()
    path.save(tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["theta"], path.theta)
        np.testing.assert_array_equal(archive["record/loss"], path["loss"])
    assert zipfile.is_zipfile(tmp_path / "run.npz")


def test_no_flipped_bit_changes_what_is_read(tmp_path):
    path = batch_run()
    path.save(tmp_path / "run.npz")
    content = (tmp_path / "run.npz").read_bytes()
    damaged = tmp_path / "damaged.npz"
    refused = 0
    positions = np.random.default_rng(0).integers(0, len(content), size=150)
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= 1 << (position % 8)
        damaged.write_bytes(changed)
        try:
            assert_identical(
                Trajectory.load(damaged), path
            )  # padding and zip dates matter to nobody
        except ValueError:
            refused += 1
    assert refused > 100


def test_content_that_was_exchanged_fails_the_checksum(tmp_path):
    path = batch_run()
    path.save(tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz") as archive:
        arrays = dict(archive)
    arrays["record/loss"] = arrays["record/loss"] + 1e-16 + 1e-12
    np.savez(tmp_path / "edited.npz", **arrays)
    with pytest.raises(ValueError, match="damaged: its content does not match its checksum"):
        Trajectory.load(tmp_path / "edited.npz")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(kept, tmp_path):
    batch_run().save(tmp_path / "run.npz")
    content = (tmp_path / "run.npz").read_bytes()
    size = int(kept * len(content)) if isinstance(kept, float) else kept
    (tmp_path / "cut.npz").write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"cut\.npz is not a trajectory saved by eosim"):
        Trajectory.load(tmp_path / "cut.npz")


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was run",))

    for content in (pickle.dumps(Trap()), pickle.dumps({"t": np.arange(3)})):
        (tmp_path / "pickle.npz").write_bytes(content)
        with pytest.raises(ValueError, match="not a trajectory saved by eosim") as caught:
            Trajectory.load(tmp_path / "pickle.npz")
        assert "pickle=" not in str(caught.value)  # NumPy names its unsafe option


def test_foreign_files_are_refused(tmp_path):
    np.savez(tmp_path / "foreign.npz", t=np.arange(3))
    np.savez(tmp_path / "objects.npz", t=np.array([{}], dtype=object))
    np.save(tmp_path / "array.npy", np.arange(3))
    (tmp_path / "text.npz").write_text("t,loss\n0,1\n")
    for name in ("foreign.npz", "objects.npz", "array.npy", "text.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a trajectory saved by eosim"):
            Trajectory.load(tmp_path / name)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Trajectory.load(tmp_path / "none.npz")


def test_a_file_of_a_newer_format_is_refused_with_both_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(_archive, "_FORMAT", 99)
    batch_run().save(tmp_path / "new.npz")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 99; this eosim reads up to 1"):
        Trajectory.load(tmp_path / "new.npz")


# --- access -------------------------------------------------------------------------------------


def test_records_and_the_clock_are_found_by_name():
    path = batch_run()
    np.testing.assert_array_equal(path["loss"], path.records["loss"])
    np.testing.assert_array_equal(path["sharpness"], path.records["sharpness.value"])
    np.testing.assert_array_equal(path["sharpness.converged"], np.ones(13, dtype=bool))
    for name in ("t", "step", "theta"):
        np.testing.assert_array_equal(path[name], getattr(path, name))
    assert len(path) == 13


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(KeyError) as error:
        batch_run()["los"]
    message = str(error.value)
    assert "no record named 'los'" in message
    for name in ("t", "step", "theta", "loss", "sharpness.value", "sharpness.residual"):
        assert name in message


@pytest.mark.parametrize("name", ["step", "theta"])
def test_what_was_not_kept_is_not_listed(name):
    path = Trajectory(np.arange(2.0), None, None, {}, Status.COMPLETED, "done")
    with pytest.raises(KeyError) as error:
        path[name]
    assert name not in str(error.value).split("has:")[1]


def test_the_repr_says_how_it_ended_and_what_it_holds():
    text = repr(batch_run())
    assert text.startswith(
        "Trajectory(COMPLETED, 13 records, t = 0 to 0.4; records: loss, sharpness."
    )
    assert text.endswith("completed: 12 steps made")
    text = repr(diverged_run())
    assert "DIVERGED" in text
    assert "lower lr" in text
    empty = Trajectory(np.zeros(0), None, None, {}, Status.LEFT_RANGE, "left")
    assert repr(empty) == "Trajectory(LEFT_RANGE, 0 records, empty; records: none)\n  left"


def test_a_trajectory_is_frozen():
    path = diverged_run()
    with pytest.raises(AttributeError):
        path.status = Status.COMPLETED
    with pytest.raises(AttributeError):
        path.final_state.step = 0


def test_every_status_is_a_phrase():
    for status in Status:
        assert len(status.value.split()) > 3


def test_to_xarray_keeps_the_clock_and_the_status():
    pytest.importorskip("xarray")
    path = batch_run()
    dataset = path.to_xarray()
    np.testing.assert_array_equal(dataset["t"], path.t)
    np.testing.assert_array_equal(dataset["loss"], path["loss"])
    assert dataset["theta"].dims[0] == "t"
    assert dataset.attrs["status"] == "COMPLETED"
