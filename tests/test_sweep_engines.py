"""Sweeps whose workers, drivers, schedulers and disks fail: the same bits, nothing finished lost."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys

import pytest

import eosim.sweeps.store as store_module
from eosim.sweeps import driver, engines, sweep
from eosim.sweeps.store import decode
from tests.sweep_study import files_in, point_files, serial, study_fixture, wait_for  # noqa: F401

pytest.importorskip("xarray")
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def product(a, b):
    return a * b


# Engines


@pytest.mark.timeout(120)
def test_threads_processes_and_our_own_workers_give_the_bits_of_a_serial_run(study, tmp_path):
    expected = serial(study, tmp_path)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        sweep(study.curve, study.GRID, store=tmp_path / "t", executor=threads, progress=False)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=spawn) as processes:
        sweep(study.curve, study.GRID, store=tmp_path / "p", executor=processes, progress=False)
    sweep(study.curve, study.GRID, store=tmp_path / "w", workers=2, progress=False)
    for name in "tpw":
        assert point_files(tmp_path / name) == expected


@pytest.mark.timeout(120)
def test_every_engine_holds_blas_to_one_thread(study, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as processes:
        for options in ({"workers": 0}, {"workers": 1}, {"executor": processes}):
            found = sweep(study.blas_threads, {"a": [1], "b": [1]}, progress=False, **options)
            assert found.value.item() == 1


@posix_only
@pytest.mark.timeout(120)
def test_a_killed_worker_costs_nothing(study, tmp_path):
    expected = serial(study, tmp_path, "curve_that_kills_once")
    (study.flags / "1.5-2").touch()
    found = sweep(
        study.curve_that_kills_once, study.GRID, store=tmp_path / "s", workers=2, progress=False
    )
    assert not (study.flags / "1.5-2").exists()
    assert (found.status == "done").all()
    assert point_files(tmp_path / "s") == expected


@posix_only
@pytest.mark.timeout(120)
def test_a_point_that_kills_three_workers_fails_and_the_rest_finishes(study, tmp_path):
    found = sweep(study.poison, study.GRID, store=tmp_path / "s", workers=2, progress=False)
    assert study.calls().count("1.5 2") == 3
    assert study.calls()[-2:] == ["1.5 2", "1.5 2"]  # alone, after all others
    assert found.status.sel(a=1.5, b=2).item() == "failed"
    assert found.reason.sel(a=1.5, b=2).item() == "killed its worker 3 times, last with SIGKILL"
    assert (found.status == "done").sum() == 23
    assert len(study.calls()) == 23 + 3


@posix_only
@pytest.mark.timeout(120)
def test_an_executor_that_breaks_is_an_error_and_finished_points_are_kept(study, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as processes,
        pytest.raises(RuntimeError, match=r"the executor is broken.* 9 of 24 points .*kept"),
    ):
        sweep(study.poison, study.GRID, store=tmp_path / "s", executor=processes, progress=False)
    assert len(point_files(tmp_path / "s")) == 9


class Elsewhere(concurrent.futures.ThreadPoolExecutor):
    """Workers whose file system is not the driver's."""

    def submit(self, task, key, point):
        return super().submit(engines.Outcome, key, "done")


def test_a_store_that_workers_do_not_share_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_VISIBLE", 0.1)
    with Elsewhere(1) as executor, pytest.raises(RuntimeError, match="all of them share"):
        sweep(product, {"a": [1], "b": [2]}, store=tmp_path, executor=executor, progress=False)


@posix_only
@pytest.mark.timeout(120)
def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import eosim.sweeps\n\n\ndef one(a):\n    return a\n\n\n"
        "eosim.sweeps.sweep(one, {'a': [1, 2]}, workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "if __name__ == '__main__':" in done.stderr.splitlines()[-1]


# Interruptions


@linux_only
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_driver_that_is_stopped_leaves_finished_points_and_no_process(
    study, tmp_path, number, workers
):
    store = tmp_path / "a store"
    process = study.start(store, workers, 0.3)
    wait_for(lambda: files_in(store) >= 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    wait_for(lambda: not study.processes(), seconds=5)
    kept = point_files(store)
    finished = {name: data for name, data in kept.items() if name.endswith(".npz")}
    assert 3 <= len(finished) < 24
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert f"{len(finished)} of 24 points are finished and kept" in errors
        assert f"python -m eosim.sweeps resume '{store}'" in errors
        assert "Traceback" not in errors
    calls = len(study.calls())
    resumed = subprocess.run(
        [sys.executable, "-m", "eosim.sweeps", "resume", str(store)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (resumed.returncode, resumed.stdout) == (0, "24 done, 0 failed\n"), resumed.stderr
    assert len(study.calls()) == calls + 24 - len(finished)
    expected = serial(study, tmp_path)
    assert point_files(store) == expected
    assert finished.items() <= expected.items()


@linux_only
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_that_let_no_thread_run_end_with_their_driver(study, tmp_path, number):
    process = study.start(tmp_path / "s", 2, 0.0, "stubborn")
    wait_for(lambda: len(study.calls()) == 2)
    process.send_signal(number)
    process.communicate(timeout=30)
    wait_for(lambda: not study.processes(), seconds=5)


@linux_only
@pytest.mark.timeout(120)
def test_two_drivers_on_one_store_share_the_work(study, tmp_path):
    store = tmp_path / "shared"
    processes = [study.start(store, 1, 0.1) for _ in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=100)
        assert (process.returncode, output) == (0, "24\n"), errors
    assert len(study.calls()) == 24  # no point twice
    assert point_files(store) == serial(study, tmp_path)


@linux_only
@pytest.mark.timeout(120)
def test_a_driver_killed_beside_another_is_taken_over(study, tmp_path):
    store = tmp_path / "shared"
    first, second = study.start(store, 1, 0.2), study.start(store, 1, 0.2)
    wait_for(lambda: files_in(store) >= 4)
    first.kill()
    output, errors = second.communicate(timeout=100)
    first.communicate()
    assert (second.returncode, output) == (0, "24\n"), errors
    assert point_files(store) == serial(study, tmp_path)


# Stores that refuse


@posix_only
@pytest.mark.timeout(120)
def test_a_write_that_fails_in_a_worker_stops_the_sweep_and_keeps_the_rest(study, tmp_path):
    with pytest.raises(OSError, match=r"cannot be written.*kept; go on with"):
        sweep(study.no_room, study.GRID, store=tmp_path / "s", workers=2, progress=False)
    kept = point_files(tmp_path / "s")
    assert 1 <= len(kept) <= 8
    for name, data in kept.items():
        assert name.endswith(".npz")
        decode(data, name.removesuffix(".npz"))


def test_a_full_disk_keeps_what_is_written_and_leaves_no_half_file(study, tmp_path, monkeypatch):
    expected = serial(study, tmp_path)
    real, written = os.fsync, 0

    def full(handle):
        nonlocal written
        written += 1
        if written > 15:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(store_module.os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            sweep(study.curve, study.GRID, store=tmp_path / "s", progress=False)
    kept = point_files(tmp_path / "s")
    assert 1 <= len(kept) < 24
    assert kept.items() <= expected.items()
    sweep(study.curve, study.GRID, store=tmp_path / "s", progress=False)
    assert point_files(tmp_path / "s") == expected


@linux_only
def test_a_real_file_system_that_is_full_then_read_only(study, tmp_path):
    store = tmp_path / "small disk"
    store.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(store)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        with pytest.raises(OSError, match="No space left on device"):
            sweep(study.curve, study.GRID, store=store, progress=False)
        kept = point_files(store)
        assert kept
        assert kept.items() <= serial(study, tmp_path).items()
        subprocess.run(["mount", "-o", "remount,ro", str(store)], check=True)
        with pytest.raises(OSError, match="Read-only file system"):
            sweep(study.curve, study.GRID, store=store, progress=False)
        assert point_files(store) == kept
    finally:
        subprocess.run(["umount", str(store)], check=True)


@pytest.mark.parametrize("finished", [False, True])
def test_a_read_only_store_is_read_and_refused_only_where_points_are_missing(
    study, tmp_path, monkeypatch, finished
):
    grid = study.GRID if finished else {**study.GRID, "a": [0.5]}
    sweep(study.curve, grid, store=tmp_path / "s", progress=False)

    def refuse(target, data, *, durable):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(store_module, "write_whole", refuse)
    if finished:
        found = sweep(study.curve, study.GRID, store=tmp_path / "s", progress=False)
        assert (found.status == "done").all()
    else:
        with pytest.raises(OSError, match=r"Read-only file system; 4 of 24 points are finished"):
            sweep(study.curve, study.GRID, store=tmp_path / "s", progress=False)


# Dask


class Cluster:
    """A scheduler on loopback and workers without nannies, each a process of its own."""

    def __init__(self):
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.processes = []
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", str(self.port))

    def _start(self, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.processes.append(process)
        return process

    def worker(self):
        return self._start(
            "worker", self.address, "--no-nanny", "--nthreads", "1", "--host", "127.0.0.1"
        )

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def cluster(study):
    pytest.importorskip("distributed")
    made = Cluster()
    yield made
    made.kill()


@contextlib.contextmanager
def meanwhile(action):
    """Run an action in a thread beside the block, and hand on what it raises."""
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        future = threads.submit(action)
        yield
        future.result()


@linux_only
@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("default")
def test_dask_goes_on_when_a_worker_is_killed(study, cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("PAUSE", "0.2")
    first, _ = cluster.worker(), cluster.worker()
    store = tmp_path / "s"

    def kill():
        wait_for(lambda: files_in(store) >= 3, seconds=60)
        first.kill()

    with meanwhile(kill):
        found = sweep(
            study.curve, study.GRID, store=store, executor=cluster.address, progress=False
        )
    assert (found.status == "done").all()
    assert point_files(store) == serial(study, tmp_path)


@linux_only
@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("default")
def test_dask_goes_on_when_both_workers_are_killed_and_a_new_one_joins(
    study, cluster, tmp_path, monkeypatch
):
    from distributed import Client

    monkeypatch.setenv("PAUSE", "0.2")
    workers = [cluster.worker(), cluster.worker()]
    store = tmp_path / "s"

    def kill():
        wait_for(lambda: files_in(store) >= 3, seconds=60)
        for worker in workers:
            worker.kill()
        cluster.worker()

    with Client(cluster.address, timeout=30) as client, meanwhile(kill):
        found = sweep(
            study.curve, study.GRID, store=store, executor=client.get_executor(), progress=False
        )
    assert (found.status == "done").all()
    assert point_files(store) == serial(study, tmp_path)


@linux_only
@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("default")
def test_a_sweep_whose_scheduler_is_killed_says_so_and_is_resumed(
    study, cluster, tmp_path, monkeypatch
):
    monkeypatch.setenv("PAUSE", "0.2")
    for _ in range(2):
        cluster.worker()
    store = tmp_path / "s"

    def kill():
        wait_for(lambda: files_in(store) >= 3, seconds=60)
        cluster.scheduler.kill()

    with meanwhile(kill), pytest.raises(RuntimeError, match=r"kept; go on with: python -m"):
        sweep(study.curve, study.GRID, store=store, executor=cluster.address, progress=False)
    cluster.kill()
    kept = {name: data for name, data in point_files(store).items() if name.endswith(".npz")}
    assert 3 <= len(kept) < 24
    calls = len(study.calls())
    found = sweep(study.curve, study.GRID, store=store, workers=2, progress=False)
    assert (found.status == "done").all()
    assert len(study.calls()) == calls + 24 - len(kept)
    expected = serial(study, tmp_path)
    assert point_files(store) == expected
    assert kept.items() <= expected.items()


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("default")
def test_a_scheduler_that_does_not_answer_is_an_error(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(driver, "_CONNECT", 1.0)
    with pytest.raises(RuntimeError, match=r"no scheduler answers at tcp://127.0.0.1"):
        sweep(
            product,
            {"a": [1], "b": [2]},
            store=tmp_path,
            executor=f"tcp://127.0.0.1:{free_port()}",
            progress=False,
        )
