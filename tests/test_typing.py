"""Type checkers accept a user's script that uses every public name."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import textguide

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "typing" / "user_script.py"
OUTSIDE = ("logits_processors", "tasks", "eval")
"""Subpackages whose folders lie outside of ``textguide/`` in the repository."""
SETTINGS = """
[mypy]
strict = True
mypy_path = {path}
cache_dir = {path}/cache
# An installed package is not checked itself.
[mypy-textguide.*]
ignore_errors = True
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the package lies as it does when it is installed."""
    folder = tmp_path_factory.mktemp("installed")
    package = folder / "textguide"
    package.mkdir()
    for path in (ROOT / "textguide").iterdir():
        (package / path.name).symlink_to(path)
    for name in OUTSIDE:
        (package / name).symlink_to(ROOT / name)
    return folder


def test_the_script_uses_every_public_name() -> None:
    tree = ast.parse(SCRIPT.read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set(textguide.__all__) - used == set()


def test_mypy_strict(installed: Path) -> None:
    pytest.importorskip("mypy", reason="the extra dev is not installed")
    config = installed / "mypy.ini"
    config.write_text(SETTINGS.format(path=installed))
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=installed)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed")
def test_pyright(installed: Path) -> None:
    config = installed / "pyrightconfig.json"
    script = installed / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    config.write_text(
        f'{{"typeCheckingMode": "strict", "include": ["{script.name}"], "reportMissingTypeStubs": false}}'
    )
    command = ["pyright", "--project", str(config), "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
