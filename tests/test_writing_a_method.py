"""The page about writing a method: its file is run as it stands there, and then in all places."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .marks import NEEDS_SMOLLM2

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "writing-a-method.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the page's file in it."""
    example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    (tmp_path / "top_cfg.py").write_text(example[1], encoding="utf-8")
    return tmp_path


def run(folder: Path, *command: str, expected: int = 0) -> str:
    """What ``python -m COMMAND`` prints in ``folder``, with the page's variables set."""
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TEXTGUIDE_METHODS": "top_cfg"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr * bool(expected)


def test_the_example_is_short(folder: Path) -> None:
    assert len((folder / "top_cfg.py").read_text(encoding="utf-8").splitlines()) < 65


class TestOnTheBundledModel:
    pytestmark = NEEDS_SMOLLM2

    def test_its_own_test_passes(self, folder: Path) -> None:
        assert "2 passed" in run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "top_cfg.py")

    def test_the_command_knows_it(self, folder: Path) -> None:
        spelled = "top-cfg:scale=2,k=20"
        options = ["--max-new-tokens", "4", "--json", "--guidance", spelled]
        out = run(folder, "-m", "textguide", "generate", "The dragon opened one eye", *options)
        assert json.loads(out)


def test_it_is_in_the_matrix(folder: Path) -> None:
    (row,) = json.loads(run(folder, "-m", "textguide", "methods", "top-cfg", "--matrix", "--json"))
    assert set(row["cells"].values()) == {True}


def test_a_module_that_is_not_there_is_named(folder: Path) -> None:
    (folder / "top_cfg.py").unlink()
    out = run(folder, "-m", "textguide", "methods", expected=1)
    assert "TEXTGUIDE_METHODS=top_cfg: the module cannot be imported" in out
