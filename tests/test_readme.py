"""Every Python block of the README runs, in order, as one session."""

import importlib.util
import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


EXTRAS = ("jax", "torch", "xarray")  # a block that needs one runs where it is installed


def runs_here(block: str) -> bool:
    needed = [name for name in EXTRAS if f"import {name}\n" in block]
    if "eosim.data." in block:
        needed.append("sklearn")
    if "certify=True" in block:
        needed.append("flint")
    return all(importlib.util.find_spec(name) for name in needed)


@pytest.mark.timeout(300)
def test_readme_blocks_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    session: dict = {"__name__": "readme"}
    for block in blocks:
        if runs_here(block):
            exec(compile(block, str(README), "exec"), session)
    printed = capsys.readouterr().out.splitlines()
    assert float(printed[1]) < 1e-10 < 0.5 < float(printed[2])
    assert session["second"].final_state.step == 1000


def test_readme_shows_the_two_commands():
    text = README.read_text(encoding="utf-8")
    assert 'pip install -e ".[figures]" && python -m figures' in text
    assert 'pip install -e ".[test]" && python -m pytest' in text
