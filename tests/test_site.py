"""The site: a page for each public name, and links that leave docs/ lead to pages. ``scripts/docs.sh`` builds it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import textguide

ROOT = Path(__file__).parents[1]
pytest.importorskip("mkdocs", reason="mkdocs is in the extra docs")


@pytest.fixture(scope="module")
def hooks() -> Any:
    sys.path.insert(0, str(ROOT / "scripts" / "site"))
    try:
        import hooks
        import roles  # noqa: F401

        yield hooks
    finally:
        sys.path.remove(str(ROOT / "scripts" / "site"))


def test_every_public_name_has_a_page(hooks: Any) -> None:
    assert {*hooks.reference_names(), "__version__"} == set(textguide.__all__)
    for name in hooks.reference_names():
        page = hooks.reference_page(name)
        target = page.rpartition("::: ")[2].strip()
        module, _, attribute = target.rpartition(".")
        assert getattr(sys.modules[module], attribute) is getattr(textguide, name)
    assert "__version__" in hooks.reference_index()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see :func:`textguide.generate` and :class:`Step`", "see [`textguide.generate`](generate.md) and `Step`"),
        (":meth:`~textguide.guidance.base.Guidance.to_dict`", "`textguide.guidance.base.Guidance.to_dict`"),
        ("``x`` stays", "``x`` stays"),
    ],
)
def test_roles_become_markdown(hooks: Any, text: str, shown: str) -> None:
    import roles

    assert roles.as_markdown(text) == shown


@pytest.mark.parametrize(
    ("source", "text", "shown"),
    [
        ("docs/one-step.md", "[a](../textguide/scoring.py)", "[a](source/textguide/scoring.py.md)"),
        ("docs/methods/cfg.md", "[a](../../CONTRIBUTING.md#vllm)", "[a](../contributing.md#vllm)"),
        ("README.md", "[a](docs/smc.md) [b](docs/results/)", "[a](smc.md) [b](results/README.md)"),
        ("docs/smc.md", "[a](https://x.org) `[b](../README.md)`", "[a](https://x.org) `[b](index.md)`"),
        ("docs/smc.md", "```\n[a](../README.md)\n```\n", "```\n[a](../README.md)\n```\n"),
    ],
)
def test_links_that_leave_the_folder_lead_to_pages(hooks: Any, source: str, text: str, shown: str) -> None:
    assert hooks._rewritten(text, source, hooks.place_of(source)) == shown


def test_all_methods_and_reports_stand_in_the_navigation(hooks: Any) -> None:
    config = type("Config", (), {"nav": [{"Methods": "methods/*"}, {"Results": "results/*"}, {"Start": "start.md"}]})
    hooks.on_config(config)
    methods, results, start = (next(iter(entry.values())) for entry in config.nav)
    assert start == "start.md"
    assert {f"methods/{path.name}" for path in (ROOT / "docs" / "methods").glob("*.md")} <= set(methods)
    named = {page for entry in results for page in (entry.values() if isinstance(entry, dict) else [entry])}
    every = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs" / "results").rglob("*.md")}
    assert every - named <= {"results/methods/README.md"}
