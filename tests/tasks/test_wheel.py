"""The built wheel carries the task files and the classifiers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from textguide import tasks

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_carries_the_tasks(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools", reason="building the wheel needs setuptools")
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip(f"building the wheel needs setuptools 77, and {setuptools.__version__} is installed")
    source = tmp_path / "source"
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests", "docs")
    shutil.copytree(ROOT, source, ignore=unwanted)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(source)], capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stderr[-3000:]
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    package = unpacked / "textguide"
    held = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "tasks").rglob("*.yaml")} <= held
    assert {"tasks/data/lambada_mini.jsonl", "tasks/data/README.md"} <= held
    folders = (ROOT / "textguide" / "classifiers" / "data", ROOT / "textguide" / "captioning" / "models")
    carried = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(ROOT / "textguide").as_posix() for path in carried} <= held

    code = (
        "import textguide.tasks as t; from textguide.tasks import loaders; "
        "print(t.__file__, len(t.names()), len(loaders.lambada_mini()['test']))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
    )
    home, count, rows = result.stdout.split()
    assert Path(home).is_relative_to(unpacked)
    assert (int(count), int(rows)) == (len(tasks.names()), 47)
