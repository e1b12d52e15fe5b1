"""What the documentation says of the methods is what is registered."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from textguide import cli
from textguide.cli import options
from textguide.guidance import Guidance, catalogue

DOCS = Path(__file__).parents[1] / "docs"
ROOT = DOCS.parent


def test_the_table_is_the_registry() -> None:
    text = (DOCS / "guidance.md").read_text(encoding="utf-8")
    table = text.split("<!-- made by `textguide methods --markdown` -->")[1].split("<!-- end -->")[0].strip()
    assert table == catalogue.markdown().strip(), "run `textguide methods --markdown` and put its table into the page"


def test_the_matrix_is_computed() -> None:
    text = (DOCS / "guidance.md").read_text(encoding="utf-8")
    table = text.split("<!-- made by `textguide methods --matrix --markdown` -->")[1]
    table = table.split("<!-- end of the matrix -->")[0].strip()
    assert table == catalogue.matrix_markdown().strip(), "run `textguide methods --matrix --markdown`, and paste it"


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


@pytest.mark.parametrize("method", sorted(set(Guidance.registry) - {"composed"}))
def test_every_page_has_an_example_that_a_command_made(method: str) -> None:
    examples = runpy.run_path(str(ROOT / "scripts" / "study" / "method_examples.py"))
    page = (DOCS / "methods" / f"{method}.md").read_text(encoding="utf-8")
    assert (examples["BEGIN"] in page) == (method not in examples["WITHOUT"])
    if method not in examples["WITHOUT"]:
        line = f"textguide generate {examples['arguments'](method)}\n"
        assert line in page, "run scripts/study/method_examples.py"
        given = cli.build_parser().parse_args(shlex.split(line)[1:])
        assert method in given.guidance
        assert not options.guidance(given).is_neutral


def test_pages_are_about_methods() -> None:
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == set(Guidance.registry) - {"composed"}


PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *DOCS.rglob("*.md"),
        *(ROOT / "textguide").rglob("*.md"),
        *(ROOT / "tasks").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)
TO_BE_MADE: set[str] = set()
"""Pages that a script has yet to write."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    missing = {(page.parent / target).resolve().relative_to(ROOT).as_posix() for target in local} - TO_BE_MADE
    assert [name for name in sorted(missing) if not (ROOT / name).exists()] == []
