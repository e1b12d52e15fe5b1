"""The page: self-contained, whole, and nothing that a text holds becomes markup. What it shows: tests/playground."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from textguide import CFG, explain
from textguide.guidance.spec import label
from textguide.support import viewer

from ..architectures import Tokenizer, build

PROMPT = "the dragon"
NEGATIVE = "a dog"
NEW = 5


class Evil(Tokenizer):
    """Tokens whose text would be markup."""

    def decode(self, ids: Any, skip_special_tokens: bool = True, **_: Any) -> str:
        return "".join(f'</script><!-- <script>alert("{int(i)}")</script>&\'\u2028' for i in ids)


class Dollars(Tokenizer):
    """Tokens that would be places of a template."""

    def decode(self, ids: Any, skip_special_tokens: bool = True, **_: Any) -> str:
        return "".join("$values ${style} {0} %s " for i in ids)


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


class Page(HTMLParser):
    """What stands on a page: tags with attributes, the texts of scripts, and whether all tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


def values_of(text: str) -> Any:
    page = Page(text)
    numbers = [n for n, (_, a) in enumerate(t for t in page.tags if t[0] == "script") if a.get("id") == "values"]
    return json.loads(page.scripts[numbers[0]])


@pytest.mark.parametrize("tokenizer", [Tokenizer(), Evil(), Dollars()], ids=lambda one: type(one).__name__)
def test_the_page_holds_the_explanation_and_loads_nothing(model: Any, tokenizer: Any) -> None:
    explanation = explain(model, tokenizer, PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=NEW)
    text = explanation.to_html()
    page = Page(text)
    assert page.open == []
    assert [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "object", "embed", "base", "form")] == []
    assert not any("src" in attributes or "href" in attributes for _, attributes in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert len(page.scripts) == 3
    values = values_of(text)
    assert (values.pop("kind"), values.pop("summary")) == ("text", explanation.summary)
    assert values.pop("label") == label(explanation.guidance)
    assert values == json.loads(json.dumps(explanation.to_dict()))


def test_all_that_the_page_runs_stands_in_it(model: Any) -> None:
    text = explain(model, Tokenizer(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=1).to_html()
    modules = json.loads(Page(text).scripts[0])["imports"]
    for address in modules.values():
        head, _, data = address.partition(",")
        assert head == "data:text/javascript;base64"
        code = base64.b64decode(data).decode()
        named = re.findall(r"""\b(?:import|export)\b[^;`"'=()]*["']([^"']+)["']""", code)
        assert set(named) <= modules.keys()
        assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|import\(", code)
    policy = next(a["content"] for tag, a in Page(text).tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_light_and_dark(model: Any) -> None:
    text = explain(model, Tokenizer(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=1).to_html()
    assert "color-scheme: light dark" in text
    assert "@media (prefers-color-scheme: dark)" in text


def test_without_scripts_the_text_can_be_read(model: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, CFG(1.0), max_new_tokens=1)
    noscript = explanation.to_html().split("<noscript>")[1].split("</noscript>")[0]
    assert explanation.note
    for shown in (PROMPT, explanation.text, explanation.note):
        assert shown in noscript


def test_what_cannot_be_shown() -> None:
    with pytest.raises(ValueError, match=r"kind='song'.*text, rows, canvas"):
        viewer.page({"kind": "song"})
    with pytest.raises(ValueError, match="JSON"):
        viewer.page({"kind": "text", "kl": float("nan")})


def test_save_html(model: Any, tmp_path: Path) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=2)
    path = explanation.save_html(tmp_path / "deep" / "page.html")
    assert path.read_text(encoding="utf-8") == explanation.to_html()
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    with pytest.raises(OSError, match="page"):
        explanation.save_html(path / "below-a-file")
