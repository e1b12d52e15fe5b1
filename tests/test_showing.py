"""What the functions return shows itself: static, escaped HTML in notebooks, the same blocks where rich prints."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

import textguide
from textguide import ACFG, AWRS, CAIF, CFG, diffusion
from textguide.constraints import Regex
from textguide.eval import compare_runs
from textguide.guidance import APG, Guidance, catalogue
from textguide.support.showing import MOST_ROWS, Facts, Folded, Line, Shown, Table, Token, Tokens, figure, table

from .architectures import Tokenizer, build
from .diffusion import tiny
from .eval import runs
from .tiny_folder import make_model, make_tokenizer


class Closed(HTMLParser):
    """Text, tags, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.data = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data += data


class Evil(Tokenizer):
    """Tokens whose text would be markup."""

    def decode(self, ids: Any, skip_special_tokens: bool = True, **_: Any) -> str:
        return "".join(f'<script>alert("{int(i)}")</script>&\'[bold]' for i in ids)


def terminal(value: Any, width: int = 4000) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(value)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _denoised() -> Any:
    model, words = tiny.build("llada")
    return diffusion.generate(model, words, "ab", gen_length=4, guidance=ACFG(2.0, 0.5), keep_history=True)


def _denoised_score() -> Any:
    model, words = tiny.build("llada")
    return diffusion.score(model, words, "ab", "cd", draws=2, seed=0)


def _weighed() -> Any:
    tokenizer = make_tokenizer()
    guidance = AWRS(Regex("[a-c]{3}"), particles=3)
    return textguide.generate(make_model(len(tokenizer)), tokenizer, "ab", guidance, max_new_tokens=5, seed=0)


VALUES: dict[str, Any] = {
    "generate": lambda t: textguide.generate(build("llama"), t, ["ab", "cd"], CFG(2.0), max_new_tokens=3),
    "speculation": lambda t: textguide.generate(build("llama"), t, "ab", max_new_tokens=3, speculation="both"),
    "weighed": lambda t: _weighed(),
    "eager": lambda t: textguide.eager(
        build("llama"), t, "ab", entropy_threshold=0.1, max_branches=3, max_new_tokens=3
    ),
    "explain": lambda t: textguide.explain(build("llama"), t, "ab", CFG(2.0, "b"), max_new_tokens=3),
    "score": lambda t: textguide.score(build("llama"), t, ["ab"], [[4, 5]], CFG(), scales=[1.0, 2.0]),
    "diffusion.generate": lambda t: _denoised(),
    "diffusion.score": lambda t: _denoised_score(),
    "sweep": lambda t: runs.sweep(),
    "runs": lambda t: compare_runs([runs.sweep(), runs.sweep()], ["a", "b"]),
    "guidance": lambda t: APG(2.0),
    "composed": lambda t: textguide.guidance.as_guidance(
        [CFG(1.5), CAIF("sentiment", "positive", 3), AWRS(Regex("a"))]
    ),
}


@pytest.mark.parametrize("tokenizer", [Tokenizer(), Evil()], ids=["plain", "markup"])
@pytest.mark.parametrize("name", VALUES)
def test_what_is_returned_shows_itself(name: str, tokenizer: Any) -> None:
    value = VALUES[name](tokenizer)
    page = Closed(value._repr_html_())
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert "http" not in value._repr_html_()
    title, blocks = value._shown()
    drawn = terminal(value)
    assert title in page.data
    assert title in drawn
    for block in blocks:  # both say the same
        if isinstance(block, Table):
            for cell in (cell for row in block.rows[:MOST_ROWS] for cell in row):
                assert cell in page.data
                assert cell.replace("\n", "") in drawn.replace("\n", "")


def test_every_method_shows_its_rule() -> None:
    for method in Guidance.registry.values():
        if method.name in {row["name"] for row in catalogue.methods()}:
            guidance = catalogue.example(method)
            page = Closed(guidance._repr_html_())
            assert method.about.rule in page.data
            assert method.__name__ in terminal(guidance)


def test_the_neutral_setting_says_so() -> None:
    assert "changes nothing" in CFG(1.0)._repr_html_()
    assert "changes nothing" not in CFG(1.5)._repr_html_()


def test_fields_that_differ_from_their_defaults_stand_out() -> None:
    shown, folded = CFG(2.0, schedule="linear")._repr_html_().split("<details>")
    assert ">linear<" in shown
    assert ">negative_prompt<" in folded
    assert ">negative_prompt<" not in shown


class Everything(Shown):
    """One of each block."""

    def _shown(self) -> Any:
        many = table(["a", "b", "c"], [[str(n), "", "x"] for n in range(MOST_ROWS + 5)], "rll")
        tokens = Tokens("prompt ", (Token("hot", 1.0, True, 'a "title"'), Token("cold")))
        return "<all>", [Line("quiet", True), Facts((("n", "1"),)), tokens, many, Folded("more", (Line("inside"),))]


def test_blocks() -> None:
    text = Everything()._repr_html_()
    page = Closed(text)
    assert "<all>" in page.data
    assert "… and 5 more" in page.data
    assert text.count("<tr>") == 1 + 1 + MOST_ROWS
    assert '<th scope="col" class="quiet">b' not in text, "an empty column is left out"
    assert 'class="marked" style="background:rgba(240,138,36,0.60)" title="a &quot;title&quot;"' in text
    drawn = terminal(Everything())
    assert "prompt hotcold" in drawn
    assert "inside" not in drawn


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (1.23456, "1.235"), (-2.0, "−2.000"), (float("-inf"), "−inf"), (float("nan"), "NaN")],
)
def test_figures(value: float | None, shown: str) -> None:
    assert figure(value) == shown
