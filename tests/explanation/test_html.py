"""The page: self-contained, whole, escaped, and reachable by keyboard."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from textguide import CFG, explain
from textguide.guidance import DoLa

from ..architectures import Tokenizer, build

PROMPT = "the dragon"
NEGATIVE = "a dog"
NEW = 5


class Evil(Tokenizer):
    """Tokens whose text would be markup."""

    def decode(self, ids: Any, skip_special_tokens: bool = True, **_: Any) -> str:
        return "".join(f'<script>alert("{int(i)}")</script>&\'' for i in ids)


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


class Page(HTMLParser):
    """What stands on a page: tags with attributes, and whether all of them are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.data = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data += data


@pytest.mark.parametrize("tokenizer", [Tokenizer(), Evil()])
def test_the_page_is_self_contained(model: Any, tokenizer: Any) -> None:
    text = explain(model, tokenizer, PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=NEW).to_html()
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?:|//|@import|url\(", text.replace("</script>", "").replace("&lt;/script", ""))
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form")
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")


def test_the_page_has_a_part_for_every_step(model: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=NEW)
    page = Page(explanation.to_html())
    steps = [attributes for tag, attributes in page.tags if tag == "article"]
    assert [step["id"] for step in steps] == [f"step-{i}" for i in range(NEW)]
    assert [step["class"] == "step changed" for step in steps] == [step.changed for step in explanation.steps]
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert links == {f"#{kind}-{i}" for i in range(NEW) for kind in ("step", "token")}
    assert links <= {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}
    assert PROMPT in page.data
    assert str(explanation.effect) in page.data
    assert repr(explanation.guidance) in page.data
    assert "plain → guided" in page.data
    for step in explanation.steps:
        assert f"{step.kl:.3f}" in page.data
        for move in (*step.raised, *step.lowered):
            assert f"{move.plain:.1%} → {move.guided:.1%}" in page.data or min(move.plain, move.guided) < 0.0005


def test_every_branch_has_a_column(model: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, DoLa(exits=(1, 0.5)), max_new_tokens=2)
    page = Page(explanation.to_html())
    heads = [a for tag, a in page.tags if tag == "th" and a.get("class") == "branch"]
    tables = [a for tag, a in page.tags if tag == "table"]
    assert len(heads) == 2 * len(tables) > 0
    assert "early exit 1" in page.data
    assert "early exit 50%" in page.data
    # What scrolls sideways can be scrolled by keyboard.
    regions = [a for tag, a in page.tags if tag == "div" and a.get("class") == "scroll"]
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)


def test_steps_can_be_hidden_where_some_changed_and_some_did_not(model: Any) -> None:
    for guidance in (CFG(1.3, NEGATIVE), CFG(1.0)):
        explanation = explain(model, Tokenizer(), PROMPT, guidance, max_new_tokens=12)
        changed = sum(step.changed for step in explanation.steps)
        page = Page(explanation.to_html())
        boxes = [attributes for tag, attributes in page.tags if tag == "input"]
        assert len(boxes) == (0 < changed < 12)
        assert (f"only the {changed} of 12 steps" in page.data) == bool(boxes)
    assert changed == 0


def test_light_and_dark(model: Any) -> None:
    text = explain(model, Tokenizer(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=1).to_html()
    assert "color-scheme: light dark" in text
    assert "@media (prefers-color-scheme: dark)" in text


def test_the_note_stands_on_the_page(model: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, CFG(1.0), max_new_tokens=1)
    assert explanation.note
    assert explanation.note in Page(explanation.to_html()).data


def test_line_breaks_and_control_characters_can_be_seen(model: Any) -> None:
    class Strange(Tokenizer):
        def decode(self, ids: Any, skip_special_tokens: bool = True, **_: Any) -> str:
            return "".join("\n\x00\u200b" for _ in ids)

    text = explain(model, Strange(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=1).to_html()
    assert ">↵\n\\x00\\u200b</a>" in text
    assert "\x00" not in text
    assert "\u200b" not in text


def test_markup_in_tokens_and_prompts_is_escaped(model: Any) -> None:
    explanation = explain(model, Evil(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=NEW)
    assert "<script>" in explanation.prompt
    assert "<script>" in explanation.text
    text = explanation.to_html()
    assert "<script" not in text
    assert f'<script>alert("{explanation.steps[0].chosen.token}")</script>&\'' in Page(text).data


def test_dollars_and_braces_are_text(model: Any) -> None:
    class Dollars(Tokenizer):
        def decode(self, ids: Any, skip_special_tokens: bool = True, **_: Any) -> str:
            return "".join("$steps ${style} {0} %s " for i in ids)

    page = Page(explain(model, Dollars(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=2).to_html())
    assert "$steps ${style} {0} %s" in page.data


def test_save_html(model: Any, tmp_path: Path) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=2)
    path = explanation.save_html(tmp_path / "deep" / "page.html")
    assert path.read_text(encoding="utf-8") == explanation.to_html()
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    with pytest.raises(OSError, match="page"):
        explanation.save_html(path / "below-a-file")
