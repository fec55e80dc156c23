"""Sweeps: grids, keys, files and datasets; what is there is never computed twice."""

import functools
import hashlib
import inspect
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import eosim
import eosim.sweeps.store as store_module
from eosim.sweeps import driver, sweep
from eosim.sweeps.__main__ import main
from eosim.sweeps.dataset import arrays_of
from eosim.sweeps.points import Axis, axes_of, identity_of, points_of
from eosim.sweeps.store import Store, decode, encode, values_of
from tests.sweep_study import point_files, serial, study_fixture  # noqa: F401

pytest.importorskip("xarray")


def product(a, b):
    return a * b


# Grids and keys


def test_a_grid_is_a_product_and_a_tuple_of_names_moves_together():
    axes = axes_of({"a": [1, 2], ("b", "c"): [(3, 4), (5, 6)]}, seeds=2)
    points = [tuple(point.values()) for point in points_of(axes)]
    assert points == [(a, *bc, seed) for a in (1, 2) for bc in ((3, 4), (5, 6)) for seed in (0, 1)]
    found = sweep(
        lambda a, b, c: a * b + c, {"a": [1, 2], ("b", "c"): [(3, 4), (5, 6)]}, progress=False
    )
    assert found.value.dims == ("a", "b_c")
    assert found.value.values.tolist() == [[7, 11], [10, 16]]
    assert found.c.values.tolist() == [4, 6]


def test_one_one_point_zero_true_and_signed_zeros_are_different_points():
    identity = identity_of(product, stored=True)
    values = [1, 1.0, True, "1", 0.0, -0.0, None, np.inf]
    assert len({identity.key({"a": value}) for value in values}) == len(values)
    assert identity.key({"a": 1, "b": 2}) == identity.key({"b": 2, "a": 1})


def test_numpy_values_are_the_points_of_their_python_values():
    (plain,) = axes_of({"a": [0.1, 0.2]})
    (array,) = axes_of({"a": np.array([0.1, 0.2])})
    assert plain == array == Axis(("a",), ((0.1,), (0.2,)))
    assert type(array.values[0][0]) is float


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        ([1], TypeError, "grid must map names to values, got list"),
        ({"a": []}, ValueError, "at least one value"),
        ({"a": 3}, TypeError, r"grid\['a'\] must be a sequence of values, got 3"),
        ({"a": "xy"}, TypeError, "must be a sequence of values, got 'xy'"),
        ({"a": [1, 1]}, ValueError, r"must not repeat a value, got \(1,\) twice"),
        ({"a": [np.nan]}, ValueError, "NaN"),
        ({"a": [object]}, TypeError, "pass a name or an index"),
        ({"a b": [1]}, TypeError, "names of arguments"),
        ({"status": [1]}, ValueError, "'status'"),
        ({("a", "b"): [(1, 2, 3)]}, ValueError, "rows of 2 values"),
        ({"a": [1], ("a", "b"): [(1, 2)]}, ValueError, "each name once, got 'a' twice"),
    ],
)
def test_a_wrong_grid_is_refused_by_name(grid, error, message):
    with pytest.raises(error, match=message):
        sweep(product, grid)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": -1}, ValueError, "workers must be an integer >= 0, got -1"),
        ({"workers": 1, "executor": "tcp://x:1"}, ValueError, "workers must be None"),
        ({"executor": 3}, TypeError, "executor must have submit"),
        ({"shard": (2, 2)}, ValueError, "0 <= i < n"),
        ({"shard": 1}, TypeError, "pair"),
        ({"seeds": 0}, ValueError, "seeds must be an integer >= 1"),
    ],
)
def test_wrong_options_are_refused_before_any_work(options, error, message):
    def never(a, b):
        raise AssertionError

    with pytest.raises(error, match=message):
        sweep(never, {"a": [1], "b": [1]}, progress=False, **options)


class Scaled:
    """A callable that is no function."""

    def __call__(self, a, *, b=2.0):
        return a * b


def added(function):
    """A decorator that gives what it wraps an argument of its own."""

    @functools.wraps(function)
    def wrapper(**point):
        return function(b=10, **point)

    return wrapper


@pytest.mark.parametrize(
    ("function", "grid", "message"),
    [
        (product, {"a": [1], "rate": [2]}, r"arguments of function, a, b; got a, rate: .*'b'"),
        (product, {"a": [1]}, r"arguments of function, a, b; got a: missing .*'b'"),
        (product, {}, r"got no names: missing"),
        (product, {"a": [1], "b": [2], "c": [3]}, r"got a, b, c: got an unexpected .*'c'"),
        (lambda: 1, {"a": [1]}, "function, which has none; got a"),
        (lambda a, /: a, {"a": [1]}, "got a: "),
        (lambda *a: a, {"a": [1]}, r"function, \*a; got a"),
        (lambda b, **more: b, {"a": [1]}, r"function, b, \*\*more; got a: missing .*'b'"),
        (functools.partial(product, b=1), {"c": [1]}, "got c: "),
        (functools.partial(product, 1), {"a": [1]}, "got a: "),
        (Scaled(), {"a": [1], "c": [2]}, "function, a, b; got a, c"),
    ],
)
def test_a_grid_that_does_not_fit_the_function_is_refused_before_any_work(
    function, grid, message, tmp_path
):
    with pytest.raises(TypeError, match=message):
        sweep(function, grid, progress=False)
    if function is product:
        with pytest.raises(TypeError, match=message):
            sweep(function, grid, store=tmp_path / "s", progress=False)
        assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("function", "grid", "value"),
    [
        (lambda **point: point["a"], {"a": [3]}, 3),
        (lambda a, b=4, **more: a * b * more["c"], {"a": [3], "c": [2]}, 24),
        (functools.partial(product, b=1), {"a": [3], "b": [5]}, 15),
        (Scaled(), {"a": [3]}, 6),
        (added(product), {"a": [3]}, 30),
        (functools.lru_cache(product), {"a": [3], "b": [2]}, 6),
        (lambda: 7, {}, 7),
    ],
)
def test_defaults_keywords_partials_and_wrappers_fit(function, grid, value):
    assert sweep(function, grid, progress=False).value.item() == value


def test_seeds_are_an_argument_too():
    assert sweep(lambda seed: seed, {}, seeds=[5], progress=False).value.item() == 5
    with pytest.raises(TypeError, match="got a, seed: got an unexpected keyword argument 'seed'"):
        sweep(lambda a: a, {"a": [1]}, seeds=1, progress=False)


def test_a_callable_without_a_signature_is_called():
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(dict)
    with pytest.warns(RuntimeWarning, match=r"first with ValueError: function must name .* 'a'"):
        sweep(dict, {"a": [1]}, progress=False)  # which returns {"a": 1}


def test_where_no_point_succeeds_the_first_error_is_named_once(tmp_path):
    def impossible(a):
        raise ValueError(f"no {a}")

    words = r"^no point succeeded, 3 failed; the first with ValueError: no 1\. The variable reason"
    with pytest.warns(RuntimeWarning, match=words) as caught:
        found = sweep(impossible, {"a": [1, 2, 3]}, progress=False)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert found.reason.values.tolist() == [f"ValueError: no {a}" for a in (1, 2, 3)]


def test_where_no_point_succeeds_the_tracebacks_in_the_store_are_named(study, tmp_path):
    grid = {"a": [1.0, 2.0], "b": [3]}
    with pytest.warns(RuntimeWarning, match=r"2 failed; .* tracebacks in .*s.failed$"):
        sweep(study.failing, grid, store=tmp_path / "s", progress=False)
    assert len(list((tmp_path / "s" / "failed").iterdir())) == 2
    with pytest.warns(RuntimeWarning, match="1 failed; the first with ZeroDivisionError"):
        sweep(study.failing, grid, store=tmp_path / "t", shard=(1, 2), progress=False)


def test_a_closure_is_refused_where_results_are_stored(tmp_path):
    with pytest.raises(TypeError, match="top level of a module"):
        sweep(lambda a: a, {"a": [1]}, store=tmp_path)
    with pytest.raises(TypeError, match="importable by its name"):
        sweep(lambda a: a, {"a": [1]}, workers=1)


def test_without_a_store_any_callable_is_good(tmp_path):
    session: dict = {"__name__": "nowhere"}
    exec("def typed(a):\n    return 2 * a\n", session)
    summed = functools.partial(lambda weights, a: weights.sum() * a, np.ones(2))
    for function in (session["typed"], summed):
        assert sweep(function, {"a": [3]}, progress=False).value.item() == 6
        with pytest.raises(TypeError, match="top level of a module"):
            sweep(function, {"a": [3]}, store=tmp_path)


# Files


def small_file():
    identity = identity_of(product, stored=True)
    point = {"a": 0.1, "b": 2}
    kind, values = values_of({"x": np.arange(3.0), "y": 1 + 2j, "z": "π"}, point)
    return identity.key(point), encode(identity, point, kind, values)


def test_a_point_comes_back_bit_for_bit_and_equal_results_are_equal_files():
    key, data = small_file()
    kind, values = decode(data, key)
    assert kind == "values"
    assert values["x"].tobytes() == np.arange(3.0).tobytes()
    assert (values["y"], values["z"]) == (1 + 2j, "π")
    assert small_file() == (key, data)


def test_a_flip_anywhere_and_a_cut_anywhere_are_detected():
    key, data = small_file()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(ValueError, match="checksum"):
            decode(bytes(damaged), key)
        with pytest.raises(ValueError, match="checksum"):
            decode(data[:position], key)


def damage(path: Path, how: str, other: Path):
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flipped":
        path.write_bytes(data[:700] + bytes([data[700] ^ 4]) + data[701:])
    elif how == "foreign":
        path.write_bytes(b"something else")
    elif how == "pickle":
        np.savez(path, header=np.array([Trap()], dtype=object))
    elif how == "another point":
        path.write_bytes(other.read_bytes())
    elif how == "newer":
        key = path.stem
        kind, values = decode(data, key)
        identity = identity_of(product, stored=True)
        point = next(
            point
            for point in points_of(axes_of({"a": [1, 2], "b": [3, 4]}))
            if identity.key(point) == key
        )
        store_module._FORMAT += 1
        try:
            body = encode(identity, point, kind, values)
        finally:
            store_module._FORMAT -= 1
        assert hashlib.sha256(body[:-64]).hexdigest().encode() == body[-64:]
        path.write_bytes(body)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize(
    "how", ["truncated", "empty", "flipped", "foreign", "pickle", "another point", "newer"]
)
def test_a_file_that_is_no_good_is_set_aside_and_recomputed(tmp_path, how):
    grid = {"a": [1, 2], "b": [3, 4]}
    first = sweep(product, grid, store=tmp_path, progress=False)
    before = point_files(tmp_path)
    path, other = sorted((tmp_path / "points").iterdir())[:2]
    damage(path, how, other)
    bad = path.read_bytes()
    assert bad != before[path.name]
    with pytest.warns(RuntimeWarning, match="is no good"):
        second = sweep(product, grid, store=tmp_path, progress=False)
    assert point_files(tmp_path) == before
    assert [kept.read_bytes() for kept in (tmp_path / "aside").iterdir()] == [bad]
    assert first.identical(second)


def test_a_pickle_is_not_loaded_even_behind_a_good_checksum():
    buffer = io.BytesIO()
    np.savez(buffer, header=np.array([Trap()], dtype=object))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"0" * 64
    body = buffer.getvalue()[:-64]
    with pytest.raises(ValueError, match="not a point saved by eosim: no npz archive with a head"):
        decode(body + hashlib.sha256(body).hexdigest().encode(), "0" * 64)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (object(), "must return numbers"),
        ({"a": 1}, "must name its results"),
        ({"status": 1}, "must name its results"),
        ({3: 1}, "must name its results"),
    ],
)
def test_a_result_that_no_file_can_hold_is_a_failed_point(result, message):
    with pytest.warns(RuntimeWarning, match="no point succeeded"):
        found = sweep(lambda a: result, {"a": [1]}, progress=False)
    assert found.status.item() == "failed"
    assert message in found.reason.item()


# Results


def test_arrays_of_different_lengths_are_filled_with_nan_and_integers_stay_integers():
    found = sweep(lambda n: {"n_squared": n * n, "ones": np.ones(n)}, {"n": [1, 3]}, progress=False)
    assert found.n_squared.dtype.kind == "i"
    np.testing.assert_array_equal(found.ones, [[1, np.nan, np.nan], [1, 1, 1]])


def test_variables_with_a_missing_point_hold_nan_there():
    axes = axes_of({"a": [1, 2]})
    variables = arrays_of(axes, [("values", {"x": np.array(3)}), None])
    np.testing.assert_array_equal(variables["x"][1], [3.0, np.nan])


def test_a_trajectory_becomes_its_records_its_length_and_its_outcome():
    def descent(lr):
        return eosim.run(eosim.Quadratic([[3.0]]), eosim.GradientDescent(lr), [1.0], 200)

    found = sweep(descent, {"lr": [0.1, 1.0]}, progress=False)
    assert found.reason.values.tolist() == ["", ""]
    assert found.outcome.values.tolist() == ["COMPLETED", "DIVERGED"]
    for index, lr in enumerate([0.1, 1.0]):
        alone = descent(lr)
        assert found.n_records[index] == len(alone)
        here = found.theta[index, : len(alone)].values
        assert here.tobytes() == alone.theta.tobytes()
        assert np.isnan(found.theta[index, len(alone) :]).all()


def test_a_function_that_raises_fails_its_points_only_and_the_next_sweep_tries_them_again(
    study, tmp_path
):
    found = sweep(study.failing, study.GRID, store=tmp_path / "s", progress=False)
    assert (found.status.sel(b=3) == "failed").all()
    assert (found.status.drop_sel(b=3) == "done").all()
    assert found.reason.sel(a=1.0, b=3).item() == "ZeroDivisionError: no result at b = 3"
    assert np.isnan(found.value.sel(b=3)).all()
    sweep(study.failing, study.GRID, store=tmp_path / "s", progress=False)
    assert len(study.calls()) == 24 + 6


# Resuming


def test_a_plan_that_is_edited_computes_only_what_is_new(study, tmp_path):
    sweep(study.curve, {"a": [1.0, 2.0], "b": [1, 2]}, store=tmp_path / "s", progress=False)
    assert len(study.calls()) == 4
    grid = {"b": [2, 3], "a": [3.0, 2.0, 1.0]}
    found = sweep(study.curve, grid, store=tmp_path / "s", progress=False)
    assert sorted(study.calls()[4:]) == ["1.0 3", "2.0 3", "3.0 2", "3.0 3"]
    assert (found["product"] == found.a * found.b).all()


def test_another_version_of_the_function_is_computed_anew(study, tmp_path):
    grid = {"a": [1.0], "b": [1, 2]}
    sweep(study.curve, grid, store=tmp_path / "s", progress=False)
    study.curve.version = "2"
    sweep(study.curve, grid, store=tmp_path / "s", progress=False)
    sweep(study.curve, grid, store=tmp_path / "s", progress=False)
    assert len(study.calls()) == 4


def test_keywords_of_a_partial_are_part_of_the_key(tmp_path):
    for factor in (2, 3):
        bound = functools.partial(product, b=factor)
        found = sweep(bound, {"a": [5]}, store=tmp_path, progress=False)
        assert found.value.item() == 5 * factor


def test_shards_together_are_the_whole(study, tmp_path):
    expected = serial(study, tmp_path)
    first = sweep(study.curve, study.GRID, store=tmp_path / "s", shard=(0, 3), progress=False)
    assert (first.status == "done").sum() == 8
    assert (first.status == "left").sum() == 16
    for index in (1, 2):
        sweep(study.curve, study.GRID, store=tmp_path / "s", shard=(index, 3), progress=False)
    assert point_files(tmp_path / "s") == expected


def test_what_a_dead_writer_left_is_removed(tmp_path):
    store = Store(tmp_path)
    sweep(product, {"a": [1], "b": [2]}, store=tmp_path, progress=False)
    (path,) = (tmp_path / "points").iterdir()
    for key in (path.stem, "0" * 64):
        (tmp_path / "points" / f"{key}.host-1-ab.tmp").write_bytes(b"half")
    with store.claim("0" * 64) as claimed:
        assert claimed
        sweep(product, {"a": [1], "b": [2]}, store=tmp_path, progress=False)
    left = sorted(entry.name for entry in (tmp_path / "points").iterdir())
    assert left == sorted([path.name, f"{'0' * 64}.host-1-ab.tmp"])


# The command


def test_the_command_reports_exports_and_goes_on(study, tmp_path, capsys):
    store = str(tmp_path / "s")
    sweep(study.failing, study.GRID, store=store, shard=(0, 2), progress=False)
    assert main(["status", store]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{study.name}:failing: 6 done, 0 running, 6 failed, 12 left"
    assert "  a=0.5, b=3: ZeroDivisionError: no result at b = 3" in lines
    assert main(["resume", store, "--shard", "1/2"]) == 1
    assert main(["resume", store]) == 1
    assert capsys.readouterr().out.endswith("18 done, 6 failed\n")
    assert main(["export", store, str(tmp_path / "all.npz")]) == 0
    with np.load(tmp_path / "all.npz") as exported:
        assert exported["value"].shape == (6, 4)
        np.testing.assert_array_equal(exported["value"][:, 1], 2 * exported["a"])
        assert (exported["status"][:, 2] == "failed").all()
    assert main(["export", store, str(tmp_path / "all.csv")]) == 0
    rows = (tmp_path / "all.csv").read_text().splitlines()
    assert rows[0] == "a,b,value,status,reason"
    assert rows[2] == "0.5,2,1.0,done,"
    assert main(["export", store, str(tmp_path / "all.xls")]) == 2
    assert main(["status", str(tmp_path / "nothing")]) == 2


def test_a_point_whose_lock_is_held_counts_as_running(tmp_path, capsys):
    sweep(product, {"a": [1], "b": [2, 3]}, store=tmp_path, shard=(0, 2), progress=False)
    key = identity_of(product, stored=True).key({"a": 1, "b": 3})
    with Store(tmp_path).claim(key):
        assert main(["status", str(tmp_path)]) == 0
    assert "1 done, 1 running, 0 failed, 0 left" in capsys.readouterr().out


def test_progress_off_a_terminal_is_a_line_per_interval(capsys, monkeypatch):
    monkeypatch.setattr(driver, "_INTERVAL", 0.0)
    sweep(product, {"a": [1, 2], "b": [1]}, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "2 of 2 points done, 0 failed, 0 left"
    sweep(product, {"a": [1, 2], "b": [1]}, progress=False)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_one_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    sweep(product, {"a": [1, 2], "b": [1]}, progress=True)
    assert "2/2" in capsys.readouterr().err.rpartition("\r")[2]


def test_without_xarray_the_extra_is_named_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"pip install 'eosim\[sweep\]'"):
        sweep(pytest.fail, {"reason_of_failure": [1]})


def test_a_plan_that_no_longer_fits_its_function_is_refused(tmp_path, capsys):
    sweep(product, {"a": [1], "b": [2]}, store=tmp_path, progress=False)
    plan = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(plan.replace('"b"', '"c"'))
    assert main(["resume", str(tmp_path)]) == 2
    assert "grid must name the arguments of function, a, b; got a, c" in capsys.readouterr().err


def test_a_function_that_changed_is_named_when_a_sweep_is_resumed(study, tmp_path, capsys):
    sweep(study.curve, {"a": [1.0], "b": [1]}, store=tmp_path / "s", progress=False)
    study.curve.version = "2"
    assert main(["resume", str(tmp_path / "s")]) == 0
    assert f"{study.name}:curve has changed since" in capsys.readouterr().err
    assert len(study.calls()) == 2
