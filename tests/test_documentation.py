"""The documentation of the methods agrees with the registered classes."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from textguide import cli
from textguide.cli import options
from textguide.guidance import Guidance

DOCS = Path(__file__).parents[1] / "docs"
ROOT = DOCS.parent


def without_foreign(patch: pytest.MonkeyPatch) -> None:
    """Methods that other tests define have no page."""
    for name, kind in list(Guidance.registry.items()):
        if not kind.__module__.startswith("textguide."):
            patch.delitem(Guidance.registry, name)


@pytest.fixture(autouse=True)
def methods_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    without_foreign(monkeypatch)


with pytest.MonkeyPatch.context() as collecting:
    without_foreign(collecting)
    TABLES = runpy.run_path(str(ROOT / "scripts" / "tables.py"))
    METHODS = sorted(set(Guidance.registry) - {"composed"})


@pytest.mark.parametrize(
    ("page", "head", "tail", "made"), TABLES["TABLES"], ids=[f"{page} {head}" for page, head, _, _ in TABLES["TABLES"]]
)
def test_generated_parts_are_up_to_date(page: str, head: str, tail: str, made: Callable[[], str]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == TABLES["written"](text, head, tail, made()), "run `python scripts/tables.py`"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_documented_class_and_a_page(method: str) -> None:
    about = Guidance.registry[method].about
    page = (DOCS / "methods" / f"{method}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {Guidance.registry[method].__name__}")
    assert "```python\n" in page, "an example in Python"
    document = Guidance.registry[method].__doc__ or ""
    assert "Args:" in document
    assert ("Experimental:" in document) == about.experimental
    assert (".experimental." in Guidance.registry[method].__module__) == about.experimental


@pytest.mark.parametrize("method", METHODS)
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


SCRIPTS = re.compile(r"\bscripts/[\w/]+\.(?:py|sh|txt)\b")
HISTORY = "2c08351"
"""The commit that has the scripts of finished studies."""


def test_scripts_that_pages_name_exist() -> None:
    missing = []
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]:
        # Reports, and what is written about registered claims, record the command of their time.
        if page.name == "report.md" or page.parent.name == "replications":
            continue
        for paragraph in page.read_text(encoding="utf-8").split("\n\n"):
            names = [name for name in SCRIPTS.findall(paragraph) if not (ROOT / name).is_file()]
            if names and HISTORY not in paragraph:
                missing.append((page.relative_to(ROOT).as_posix(), names))
    assert missing == []


def test_pages_are_about_methods() -> None:
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == set(METHODS)


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


def test_faults_have_tests_that_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)", (DOCS / "faults.md").read_text(encoding="utf-8"))
    assert len(named) > 90
    missing = [(file, test) for file, test in named if f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert missing == []
