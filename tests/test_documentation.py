"""What the documentation says of the methods is what is registered."""

from __future__ import annotations

from pathlib import Path

import pytest

from textguide.guidance import Guidance, catalogue

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_is_the_registry() -> None:
    text = (DOCS / "guidance.md").read_text(encoding="utf-8")
    table = text.split("<!-- made by `textguide methods --markdown` -->")[1].split("<!-- end -->")[0].strip()
    assert table == catalogue.markdown().strip(), "run `textguide methods --markdown` and put its table into the page"


@pytest.mark.parametrize("method", sorted(set(Guidance.registry) - {"composed"}))
def test_every_method_says_what_it_is_and_has_a_page(method: str) -> None:
    about = Guidance.registry[method].about
    page = (DOCS / "methods" / f"{method}.md").read_text(encoding="utf-8")
    assert about.paper in page
    assert Guidance.registry[method].__name__ in page
    document = Guidance.registry[method].__doc__ or ""
    assert "Args:" in document
    assert ("Experimental:" in document) == about.experimental
    assert (".experimental." in Guidance.registry[method].__module__) == about.experimental


def test_pages_are_about_methods() -> None:
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == set(Guidance.registry) - {"composed"}
