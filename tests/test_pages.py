"""Pages that commands write: they fit a phone and follow the browser's light or dark colours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted((DOCS / "results").rglob("*.html"))


def test_there_are_some() -> None:
    assert {page.name for page in PAGES} == {"captions.html", "canvas.html"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_pages_know_dark_mode_and_narrow_screens(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    style = re.sub(r"[\w-]+:root|:root *\{[^}]*\}", "", re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1])  # type: ignore[index]
    assert "prefers-color-scheme" in text
    assert 'name="viewport"' in text
    assert re.findall(r"#[0-9a-f]{3,6}\b", style) == [], "a colour that dark mode does not change"
    assert "float:" not in style
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)


def test_the_committed_pages_look_as_new_ones_do() -> None:
    pytest.importorskip("matplotlib")
    from textguide.eval.captions import contact_sheet

    for page in (page for page in PAGES if page.name == "captions.html"):
        found = re.search(r"<style>(.*?)</style>", page.read_text(encoding="utf-8"), re.DOTALL)
        assert found is not None
        assert found[1] == contact_sheet._STYLE
