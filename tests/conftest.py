"""Set-up shared by all tests."""

import hashlib
import os
import tempfile
from pathlib import Path

from hypothesis import settings


def _sources_key() -> str:
    """A hash of eosim's sources, and of the user, who must be able to write to the directory."""
    root = Path(__file__).parents[1] / "eosim"
    digest = hashlib.sha256(str(Path.home()).encode())
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


# numba does not notice when a function that a cached kernel inlines changes in another file. Its
# cache directory is read at its first import, hence before any test module is collected.
os.environ["NUMBA_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"eosim-numba-{_sources_key()}")

# Sizes here gain nothing from BLAS threads, and waiting ones starve each other on a busy machine.
# NumPy's libraries read this when they are loaded; it holds for processes that tests start, too.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# The same examples every time, and no deadline: timings on shared machines are noise.
settings.register_profile("eosim", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("eosim")
