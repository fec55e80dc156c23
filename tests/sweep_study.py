"""What the tests of sweeps compute, in a module that workers of every kind can import."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
import uuid
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from eosim.sweeps import sweep

ROOT = Path(__file__).parents[1]

# A module that workers import by name. Its functions note every call in CALLS, and look in FLAGS
# for orders that are carried out once.
STUDY = """
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import threadpoolctl

GRID = {"a": [0.5, 1.0, 1.5, 2.0, 2.5, 3.0], "b": [1, 2, 3, 4]}
PAUSE = float(os.environ.get("PAUSE", "0"))


def note(a, b):
    with open(os.environ["CALLS"], "a") as stream:
        stream.write(f"{a} {b}\\n")


def curve(a, b):
    note(a, b)
    time.sleep(PAUSE)
    generator = np.random.default_rng([int(10 * a), b])
    matrix = generator.standard_normal((40, 40))
    return {"product": a * b, "path": np.linalg.svd(matrix @ matrix, compute_uv=False)}


def curve_that_kills_once(a, b):
    flag = Path(os.environ["FLAGS"]) / f"{a}-{b}"
    if flag.exists():
        flag.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return curve(a, b)


def poison(a, b):
    note(a, b)
    if (a, b) == (1.5, 2):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(PAUSE)
    return a * b


def failing(a, b):
    note(a, b)
    if b == 3:
        raise ZeroDivisionError(f"no result at b = {b}")
    return a * b


def stubborn(a, b):
    note(a, b)
    # A PyDLL keeps the interpreter's lock: no other thread of the process runs meanwhile.
    ctypes.PyDLL(None).sleep(60)


def blas_threads(a, b):
    found = threadpoolctl.threadpool_info()
    return max(library["num_threads"] for library in found if library["user_api"] == "blas")


def no_room(a, b):
    import resource

    if a > 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    return np.zeros(100)


for name in ("curve", "curve_that_kills_once"):
    globals()[name].version = "1"

if __name__ == "__main__":
    import eosim.sweeps

    function, workers = globals()[sys.argv[3]], int(sys.argv[2])
    found = eosim.sweeps.sweep(function, GRID, store=sys.argv[1], workers=workers, progress=False)
    print(int((found.status == "done").sum()))
"""


class Study:
    """The module above in a directory of its own, and what happened to its functions."""

    def __init__(self, directory: Path, monkeypatch):
        self.name = f"study_{uuid.uuid4().hex}"
        self.directory = directory
        self.script = directory / f"{self.name}.py"
        self.script.write_text(STUDY)
        self.calls_path, self.flags = directory / "calls", directory / "flags"
        self.flags.mkdir()
        self.mark = uuid.uuid4().hex
        variables = {
            "CALLS": str(self.calls_path),
            "FLAGS": str(self.flags),
            "EOSIM_TEST_MARK": self.mark,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{directory}",
            "OMP_NUM_THREADS": "1",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.syspath_prepend(str(directory))
        self.module = importlib.import_module(self.name)

    def __getattr__(self, name):
        return getattr(self.module, name)

    def calls(self) -> list[str]:
        return self.calls_path.read_text().splitlines() if self.calls_path.exists() else []

    def processes(self) -> set[int]:
        """Living processes that inherited this test's mark, the test itself left out."""
        own_tracker = resource_tracker._resource_tracker._pid  # lives as long as the test run
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    marked = self.mark.encode() in (entry / "environ").read_bytes()
                    if marked and state != "Z" and int(entry.name) != own_tracker:
                        found.add(int(entry.name))
        return found

    def start(
        self, store: Path, workers: int, pause: float, function: str = "curve"
    ) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(self.script), str(store), str(workers), function],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PAUSE": str(pause)},
        )


@pytest.fixture(name="study")
def study_fixture(tmp_path, monkeypatch):
    directory = tmp_path / "a study, λ = 2⁄η"
    directory.mkdir()
    made = Study(directory, monkeypatch)
    yield made
    if sys.platform == "linux":
        for process in made.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def point_files(store: Path) -> dict[str, bytes]:
    """Finished points; a worker killed in the middle of a write leaves a .tmp file behind."""
    finished = (path for path in (store / "points").iterdir() if path.suffix != ".tmp")
    return {path.name: path.read_bytes() for path in finished}


def serial(study, tmp_path, function="curve", grid=None) -> dict[str, bytes]:
    sweep(getattr(study, function), grid or study.GRID, store=tmp_path / "serial", progress=False)
    return point_files(tmp_path / "serial")


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def files_in(store: Path) -> int:
    return len(list((store / "points").glob("*.npz"))) if (store / "points").exists() else 0
