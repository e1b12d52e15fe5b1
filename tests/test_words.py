"""The field's words, not ours: code, tests and docs do without these."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("textguide", "logits_processors", "tasks", "eval", "tests", "scripts", "docs", "docker", "examples")
ENDINGS = {".py", ".md", ".yaml", ".toml", ".sh", ".txt", ".Dockerfile"}
OURS = {
    "lane": "row batch",
    "nap": "skip",
    "napped": "skipped",
    "napping": "skipping",
    "asleep": "skipped",
    "bed": "row batch",
    "shadow": "branch request",
    "leader": "main request",
}
"""A word of ours → the field's."""
NAMES_THEM = {"tests/test_words.py", "CHANGELOG.md"}


def words(text: str) -> list[str]:
    """Words, and parts of snake_case and CamelCase identifiers, in lower case and the singular."""
    text = re.sub("box-shadow|shadow root|shadowRoot|attachShadow", "", text)  # of CSS and of the DOM
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)
    return [part.lower().removesuffix("s") for part in parts]


def pages() -> list[Path]:
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in ENDINGS]
    return sorted({*inside, *(path for path in ROOT.glob("*") if path.suffix in ENDINGS)})


def test_words_are_the_fields() -> None:
    found = {}
    for page in pages():
        name = page.relative_to(ROOT).as_posix()
        used = {word for word in words(f"{page.stem} {page.read_text(encoding='utf-8')}") if word in OURS}
        if used and name not in NAMES_THEM:
            found[name] = {word: OURS[word] for word in sorted(used)}
    assert found == {}


def test_every_room_is_looked_at() -> None:
    names = {page.relative_to(ROOT).as_posix() for page in pages()}
    assert {"README.md", "pyproject.toml", "textguide/scoring.py", "docs/serving.md", "tests/test_words.py"} <= names


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the lane of a row", ["lane"]),
        ("FIRST_NAP = 8", ["nap"]),
        ("class ShadowRows(Lanes): by_leader, napsLeft", ["shadow", "lane", "leader", "nap"]),
        ("beds, SHADOWS and leaders", ["bed", "shadow", "leader"]),
        ("was napping, fell asleep", ["napping", "asleep"]),
        ("explanation, embedding, embed, snapshot, planes, leaderboard, is_embedded, box-shadow: 0", []),
    ],
)
def test_parts_of_identifiers_are_seen(text: str, found: list[str]) -> None:
    assert [word for word in words(text) if word in OURS] == found
