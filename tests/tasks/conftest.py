"""Where the task files are, and what to do without them or without lm-eval."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

collect_ignore_glob: list[str] = []
if importlib.util.find_spec("lm_eval") is None:
    collect_ignore_glob.append("test_*.py")


def pytest_report_header() -> list[str]:
    return ["tests/tasks: left out, needs pip install 'textguide[eval]'"] if collect_ignore_glob else []


@pytest.fixture(scope="session")
def data() -> str:
    folder = os.environ.get("TEXTGUIDE_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the task files: set TEXTGUIDE_DATA to their folder")
    return folder


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEXTGUIDE_DATA", raising=False)
