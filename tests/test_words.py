"""Rates of words in docs and docstrings: plain English has few of some words and many of others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ("README.md", "docs")
DOCSTRINGS = ("textguide", "logits_processors", "eval", "tasks")
WITHOUT = {"results", "vendor", "node_modules"}
"""Folders whose pages and files are not read."""

PEERS = {
    r"behind": (0, 0.3),
    r"in front of": (0, 0),
    r"beside": (0, 0.3),
    r"where (?:there|that|one|it|nothing|none|the|a)": (1, 5),
    r"stands?": (0, 0.8),
    r"says?|said|tells?|told": (0, 3),
    r"if": (7, 48),
    r"when": (13, 32),
    r"instead of": (2, 9),
}
"""A pattern: its least and its highest rate in outlines, genlm-control, lm-eval, httpx, llguidance and transformers'
generation, in words per 10,000 (December 2026)."""
RARE = 6
"""If the highest rate is below this, a pattern may not be more frequent than in the peers; otherwise, it may not be
rarer."""

LIMITS = {
    r"behind": (2, 0.5),
    r"in front of": (0, 0.2),
    r"beside": (0, 0.3),
    r"where (?:there|that|one|it|nothing|none|the|a)": (2, 2.5),
    r"stands?": (0.5, 0.5),
    r"says?|said|tells?|told": (2.5, 2),
    r"if": (30, 40),
    r"when": (12, 8.5),
    r"instead of": (2.5, 2.5),
}
"""A pattern: the limit in docs and in docstrings, the most of a rare word and the least of the others. These are the
rates that are reached; tighten them after every improvement."""
OUTSIDE = 3
"""The most of the 18 rates that may be outside of twice the peers' range."""


def files(root: Path) -> Iterator[Path]:
    """The file, or the files of the folder."""
    if root.is_file():
        yield root
        return
    for path in sorted(root.rglob("*")):
        if WITHOUT.isdisjoint(path.relative_to(root).parts[:-1]):
            yield path


def prose(path: Path) -> str:
    """A page without its blocks of code, the docstrings of a module, or nothing."""
    if path.suffix == ".md":
        return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    if path.suffix != ".py":
        return ""
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    nodes = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, documented))
    return "\n".join(ast.get_docstring(node) or "" for node in nodes)


@cache
def text(roots: tuple[str, ...]) -> str:
    return " ".join(prose(path) for root in roots for path in files(ROOT / root))


def rate(pattern: str, written: str) -> float:
    """Matches of the pattern per 10,000 words."""
    words = len(re.findall(r"[A-Za-z]+", written))
    return 1e4 * len(re.findall(rf"\b(?:{pattern})\b", written, re.IGNORECASE)) / max(1, words)


def is_outside(pattern: str, found: float) -> bool:
    """Whether a rate is outside of twice the peers' range."""
    low, high = PEERS[pattern]
    if high < RARE:
        return found > 2 * max(high, 1)
    return found < low / 2


@pytest.mark.parametrize("pattern", LIMITS)
@pytest.mark.parametrize(("place", "roots"), list(enumerate([DOCS, DOCSTRINGS])), ids=["docs", "docstrings"])
def test_rates_keep_their_limits(pattern: str, place: int, roots: tuple[str, ...]) -> None:
    found = rate(pattern, text(roots))
    limit = LIMITS[pattern][place]
    if PEERS[pattern][1] < RARE:
        assert found <= limit, f"{pattern!r}: {found:.1f} per 10,000 words, at most {limit}"
    else:
        assert found >= limit, f"{pattern!r}: {found:.1f} per 10,000 words, at least {limit}"


def test_most_rates_are_those_of_the_peers() -> None:
    rates = {(pattern, roots[0]): rate(pattern, text(roots)) for pattern in PEERS for roots in (DOCS, DOCSTRINGS)}
    outside = {key: round(found, 1) for key, found in rates.items() if is_outside(key[0], found)}
    assert len(rates) == 18
    assert len(outside) <= OUTSIDE, outside


def test_code_in_pages_is_not_counted(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("if one\n```python\nif two:\n```\nwhen\n", encoding="utf-8")
    module = tmp_path / "module.py"
    module.write_text('"""Says so."""\n\n\ndef run():\n    """If it runs."""\n    # when\n', encoding="utf-8")
    assert prose(page).split() == ["if", "one", "when"]
    assert prose(module) == "Says so.\nIf it runs."


def test_whole_words_are_counted() -> None:
    assert rate("if", "If it iffy, if") == 5000
    assert rate(r"says?|said|tells?|told", "it says what he said") == 4000
