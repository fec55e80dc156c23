"""What importing eosim costs, which names it has, and which module may import which."""

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import eosim

ROOT = Path(__file__).parents[1]
# Modules whose public names are at the top level; they themselves are not public.
HOMES = ("adapters", "comparison", "discrete", "ensemble", "sweeps", "trajectory")
# Packages that are not required, by the one file that may use them, inside functions only.
EXTRAS = {
    "trajectory.py": {"xarray"},
    "certified.py": {"flint"},
    "data.py": {"sklearn"},
    "sweeps/dataset.py": {"xarray"},
    "sweeps/driver.py": {"distributed", "xarray"},
    "adapters/jax_functions.py": {"jax"},
    "adapters/torch_modules.py": {"torch"},
}
HEAVY = ("sympy", "matplotlib", "numba", "scipy", "sklearn", "pandas", "tqdm", "mpmath")

_COMPUTING = {"trajectory", "problems", "optimizers", "measure", "sampling", "_kernels"}
# Unit -> the units it may import. A unit is a module or a package directly below eosim. Everyone
# may import _checks and _version, which import nothing.
ARROWS = {
    "__init__": set(),
    "_archive": set(),
    "_checks": set(),
    "_lanczos": set(),
    "_version": set(),
    "_maps": set(),
    "adapters": {"problems"},
    "certified": set(),
    "data": set(),
    "_kernels": {"_maps"},
    "catapult": {"_maps", "_kernels", "trajectory"},
    "trajectory": {"_archive"},
    "sweeps": {"trajectory"},
    "sampling": {"_kernels"},
    "problems": {"_kernels"},
    "optimizers": {"_kernels"},
    "measure": {"_lanczos", "certified", "optimizers", "problems"},
    "_recording": {"measure"},
    "_threads": set(),
    "discrete": _COMPUTING | {"_recording"},
    "flows": _COMPUTING | {"_recording", "_threads"},
    "stability": {"_lanczos", "certified", "measure", "optimizers", "problems", "sampling"},
    "moments": {"_kernels", "sampling", "stability", "trajectory"},
    "sharpening": {"discrete", "optimizers", "problems", "sampling", "trajectory"},
    "two_parameter": set(),
    "ensemble": _COMPUTING | {"_archive", "_recording", "_threads", "discrete"},
    "comparison": {"discrete", "flows", "measure", "optimizers", "problems", "trajectory"},
}


def python(code: str):
    """What a fresh interpreter prints, as JSON."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(result.stdout)


def loaded_by(statement: str) -> set[str]:
    """Names of the top-level packages in sys.modules after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    return {name.partition(".")[0] for name in python(code)}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of everything that a file imports, inside functions too."""
    return names_imported(ast.walk(ast.parse(path.read_text())), path)


def names_imported(nodes: Iterable[ast.AST], path: Path) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def unit_of(path: Path) -> str:
    return path.relative_to(ROOT / "eosim").parts[0].removesuffix(".py")


def first_party(path: Path) -> set[str]:
    """Units of eosim that a file imports; the names that __init__ only types are left out."""
    if path == ROOT / "eosim" / "__init__.py":
        return {"_version"}
    found = set()
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "eosim":
            found.add(parts[1] if len(parts) > 1 else "__init__")
    return found - {unit_of(path)}


SOURCES = sorted((ROOT / "eosim").rglob("*.py"))


def test_importing_eosim_loads_numpy_and_nothing_heavier():
    loaded = loaded_by("import eosim")
    assert not loaded & set(HEAVY)
    numpy_alone = loaded_by("import numpy")
    standard = set(sys.stdlib_module_names)
    assert {name for name in loaded - numpy_alone - standard if name[0] != "_"} <= {"eosim"}


def test_importing_eosim_loads_few_modules_of_its_own():
    code = (
        "import json, sys, eosim\nprint(json.dumps([m for m in sys.modules if m[:5] == 'eosim']))"
    )
    assert set(python(code)) <= {"eosim", "eosim._version"}


@pytest.mark.parametrize(
    "statement",
    [
        "import eosim; eosim.run(eosim.Cosine(), eosim.HeavyBall(0.1), [0.1], 5)",
        "import eosim; eosim.integrate(eosim.PrincipalFlow(eosim.Cosine(), 0.1), [0.1], [0, 1])",
        "import eosim; eosim.stability.critical_sharpness(eosim.HeavyBall(0.1))",
        "import eosim; eosim.run(eosim.LinearRegression([[1], [2]], [1, 2]),"
        " eosim.GradientDescent(0.1), [0.1], 5, batch_size=1)",
    ],
)
def test_everyday_work_loads_neither_sympy_nor_matplotlib_nor_numba(statement):
    assert not loaded_by(statement) & {"sympy", "matplotlib", "numba", "sklearn"}


def test_the_public_names_are_exactly_all_and_each_of_them_loads():
    public = python(
        "import json, eosim\n"
        "for name in eosim.__all__: getattr(eosim, name)\n"
        "print(json.dumps([n for n in vars(eosim) if n[0] != '_' or n == '__version__']))"
    )
    # import_module, Any and TYPE_CHECKING are how it is lazy; the others are the
    # homes of public names, which Python itself binds once they are loaded.
    helpers = {"import_module", "Any", "TYPE_CHECKING", *HOMES}
    assert set(public) - helpers == set(eosim.__all__)
    assert dir(eosim) == sorted(eosim.__all__)


def test_a_star_import_gives_the_public_names():
    names = python(
        "import json\nbefore = set(globals())\nfrom eosim import *\n"
        "print(json.dumps(sorted(set(globals()) - before - {'before'})))"
    )
    assert set(names) == set(eosim.__all__)


def test_no_public_name_is_the_name_of_another_module():
    modules = {unit_of(path) for path in SOURCES}
    for name in eosim.__all__:
        if name in modules:
            assert getattr(eosim, name).__name__ == f"eosim.{name}"


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="module 'eosim' has no attribute 'runn'"):
        eosim.runn  # noqa: B018


@pytest.mark.parametrize("package", ["flows", "problems", "stability"])
def test_the_names_of_a_subpackage_are_its_all(package):
    module = getattr(eosim, package)
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_the_layout_allows(path):
    unit = unit_of(path)
    assert unit in ARROWS, f"{unit} is new: give it a row in ARROWS"
    assert first_party(path) <= ARROWS[unit] | {"_checks", "_version"} - {unit}


def test_the_imports_of_eosim_have_no_cycle():
    graph = {}
    for path in SOURCES:
        graph.setdefault(unit_of(path), set()).update(first_party(path))
    graphlib.TopologicalSorter(graph).prepare()
    for package in {unit_of(path) for path in SOURCES if path.parent != ROOT / "eosim"}:
        inside = {}
        for path in (ROOT / "eosim" / package).rglob("*.py"):
            names = {
                name.split(".")[2]
                for name in imported_modules(path)
                if name.startswith(f"eosim.{package}.")
            }
            inside[path.stem] = names - {path.stem}
        graphlib.TopologicalSorter(inside).prepare()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_eosim_needs_no_extra_and_neither_theory_nor_sympy(path):
    allowed = {"numpy", "scipy", "numba", "tqdm", "threadpoolctl", "eosim"}
    tops = {name.partition(".")[0] for name in imported_modules(path)}
    extras = tops - allowed - set(sys.stdlib_module_names)
    assert extras <= EXTRAS.get(str(path.relative_to(ROOT / "eosim")), set())
    outside_functions = names_imported(ast.parse(path.read_text()).body, path)
    at_import = {name.partition(".")[0] for name in outside_functions}
    assert not at_import & extras


@pytest.mark.parametrize("path", sorted((ROOT / "theory").rglob("*.py")), ids=lambda p: p.name)
def test_theory_imports_eosim_and_not_the_figures(path):
    tops = {name.partition(".")[0] for name in imported_modules(path)}
    allowed = {"eosim", "theory", "numpy", "scipy", "sympy", "mpmath", "tqdm"}
    assert tops <= allowed | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted((ROOT / "figures").rglob("*.py")), ids=lambda p: p.name)
def test_figures_use_public_names_only(path):
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "eosim" and len(parts) > 1:
            assert parts[1] in eosim.__all__, name
            assert not any(part.startswith("_") for part in parts if part != "__version__"), name
        assert parts[0] not in ("tests", "theory"), name
