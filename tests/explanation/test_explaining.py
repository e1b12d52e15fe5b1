"""Explanations: rankings against plain loops, the page, the errors."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import textguide
from textguide import CFG, explain
from textguide.engine.loop import StepView

from ..architectures import Tokenizer, build

PROMPT = "the dragon"
NEGATIVE = "a dog"
NEW = 5


class Evil(Tokenizer):
    """Tokens whose text would be markup."""

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return "".join(f'<script>alert("{int(i)}")</script>&\'' for i in ids)


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


def laws(model: Any, guidance: CFG, **options: Any) -> list[StepView]:
    views: list[StepView] = []
    textguide.generate(model, Tokenizer(), PROMPT, guidance, max_new_tokens=NEW, observer=views.append, **options)
    return views


def ranked(view: StepView, top: int, min_prob: float, rows: tuple[Any, Any, Any]) -> tuple[list[int], list[int]]:
    cond, uncond, guided = rows
    ratios = {}
    for token, (c, u, g) in enumerate(zip(cond, uncond, guided, strict=True)):
        if max(math.exp(c), math.exp(u), math.exp(g)) >= min_prob:
            ratios[token] = c - u
    order = sorted(ratios, key=ratios.__getitem__)
    lowered = [token for token in order if ratios[token] < 0][:top]
    raised = [token for token in reversed(order) if ratios[token] > 0][:top]
    return raised, lowered


@pytest.mark.parametrize(("top", "min_prob"), [(5, 1e-3), (3, 0.02), (5, 0.0), (61, 0.0), (500, 0.0)])
def test_ranks_equal_a_loop(model: Any, top: int, min_prob: float) -> None:
    guidance = CFG(2.0, NEGATIVE)
    explanation = explain(model, Tokenizer(), PROMPT, guidance, max_new_tokens=NEW, top=top, min_prob=min_prob)
    views = laws(model, guidance)
    assert len(explanation.steps) == len(views) == NEW
    for number, (step, view) in enumerate(zip(explanation.steps, views, strict=True)):
        assert view.extra is not None
        rows = (view.cond[0], view.extra[0, 0], view.guided[0])
        cond, uncond, guided = (row.tolist() for row in rows)
        raised, lowered = ranked(view, top, min_prob, (cond, uncond, guided))
        assert [move.token for move in step.raised] == raised
        assert [move.token for move in step.lowered] == lowered
        if min_prob == 0 and top >= 61:
            assert len(raised) + len(lowered) == 61  # the whole vocabulary
        for move in (*step.raised, *step.lowered, step.chosen, step.plain):
            assert move.cond == pytest.approx(math.exp(cond[move.token]), rel=1e-5)
            assert move.uncond == pytest.approx(math.exp(uncond[move.token]), rel=1e-5)
            assert move.guided == pytest.approx(math.exp(guided[move.token]), rel=1e-5)
            assert move.ratio == pytest.approx(cond[move.token] - uncond[move.token], abs=1e-5)
            assert move.text == Tokenizer().decode([move.token])
        assert step.index == number
        assert step.guided
        assert step.chosen.token == int(view.tokens[0]) == guided.index(max(guided))
        assert step.plain.token == cond.index(max(cond))
        assert step.kl == pytest.approx(sum(math.exp(g) * (g - c) for g, c in zip(guided, cond, strict=True)), abs=1e-5)


def test_the_text_is_that_of_generate(model: Any) -> None:
    guidance = CFG(2.0, NEGATIVE)
    explanation = explain(model, Tokenizer(), PROMPT, guidance, max_new_tokens=NEW)
    out = textguide.generate(model, Tokenizer(), PROMPT, guidance, max_new_tokens=NEW)
    assert explanation.text == out.texts[0]
    assert explanation.effect == out.effect
    assert explanation.prompt == PROMPT
    assert explanation.guidance == guidance
    assert "".join(step.chosen.text for step in explanation.steps) == explanation.text
    assert max(step.kl for step in explanation.steps) == pytest.approx(out.effect.max_kl, abs=1e-6)


def test_defaults(model: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT)
    assert explanation.guidance == CFG(1.5)
    assert len(explanation.steps) == 32
    assert all(len(step.raised) <= 5 and len(step.lowered) <= 5 for step in explanation.steps)


def test_sampling_options_arrive(model: Any) -> None:
    texts = {explain(model, Tokenizer(), PROMPT, CFG(2.0), seed=s, temperature=2.0).text for s in (1, 1, 2)}
    assert len(texts) == 2


def test_steps_outside_the_window_have_no_moves(model: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, CFG(2.0, start=0.6), max_new_tokens=NEW)
    assert [step.guided for step in explanation.steps] == [False, False, False, True, True]
    for step in explanation.steps[:3]:
        assert step.raised == step.lowered == ()
        assert step.kl == 0.0
        assert step.chosen.cond == step.chosen.uncond == step.chosen.guided
        assert step.chosen == step.plain
    assert "no guidance" not in explanation.to_html()


def forbid(model: Any, cond: list[int], uncond: list[int]) -> Any:
    """A hook that forbids tokens: the first row is the conditional branch, the last the other."""

    def edit(_: Any, __: Any, output: Any) -> None:
        output.logits[0, -1, cond] = -math.inf
        output.logits[-1, -1, uncond] = -math.inf

    return model.register_forward_hook(edit)


def test_forbidden_tokens_have_no_infinite_ratio(model: Any) -> None:
    views = laws(model, CFG(2.0, NEGATIVE))
    favourite = int(views[-1].cond[0].argmax())
    rare = int(views[-1].cond[0].argmin())
    hook = forbid(model, [rare], [favourite])
    try:
        explanation = explain(model, Tokenizer(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=NEW, top=61, min_prob=0)
    finally:
        hook.remove()
    text = json.dumps(explanation.to_dict(), allow_nan=False)
    assert json.loads(text)["text"] == explanation.text
    for step in explanation.steps[1:]:
        moved = {move.token for move in (*step.raised, *step.lowered)}
        assert not {rare, favourite} & moved
    explanation.to_html()


def test_to_dict_is_json(model: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, CFG(2.0), max_new_tokens=NEW)
    record = json.loads(json.dumps(explanation.to_dict(), allow_nan=False))
    assert record["prompt"] == PROMPT
    assert textguide.Guidance.from_dict(record["guidance"]) == CFG(2.0)
    assert len(record["steps"]) == NEW
    assert record["steps"][0]["raised"][0]["token"] == explanation.steps[0].raised[0].token
    assert record["effect"] == explanation.effect.to_dict()


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
        if tag not in ("meta", "br"):
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


def test_the_page_has_a_row_for_every_step(model: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=NEW)
    page = Page(explanation.to_html())
    rows = [attributes["id"] for tag, attributes in page.tags if tag == "tr" and "id" in attributes]
    assert rows == [f"step-{i}" for i in range(NEW)]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#step-{i}" for i in range(NEW)]
    assert PROMPT in page.data
    assert str(explanation.effect) in page.data
    assert repr(explanation.guidance) in page.data
    changed = [attributes.get("class") == "changed" for tag, attributes in page.tags if tag == "a"]
    assert changed == [step.chosen.token != step.plain.token for step in explanation.steps]
    for step in explanation.steps:
        assert f"{step.kl:.3f}" in page.data


def test_markup_in_tokens_and_prompts_is_escaped(model: Any) -> None:
    explanation = explain(model, Evil(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=NEW)
    assert "<script>" in explanation.prompt
    assert "<script>" in explanation.text
    text = explanation.to_html()
    assert "<script" not in text
    assert f'<script>alert("{explanation.steps[0].chosen.token}")</script>&\'' in Page(text).data


def test_dollars_and_braces_are_text(model: Any) -> None:
    class Dollars(Tokenizer):
        def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
            return "".join("$rows ${strong} {0} %s " for _ in ids)

    page = Page(explain(model, Dollars(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=2).to_html())
    assert "$rows ${strong} {0} %s" in page.data


def test_save_html(model: Any, tmp_path: Path) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=2)
    path = explanation.save_html(tmp_path / "deep" / "page.html")
    assert path.read_text(encoding="utf-8") == explanation.to_html()
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    with pytest.raises(OSError, match="page"):
        explanation.save_html(path / "below-a-file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": CFG(1.0)}, "scale=1.0.*changes nothing"),
        ({"guidance": []}, "changes nothing"),
        ({"guidance": 1.5}, "guidance=1.5 is no guidance"),
        ({"top": 0}, "top=0"),
        ({"min_prob": -0.1}, "min_prob=-0.1"),
        ({"min_prob": 1.0}, "min_prob=1.0"),
        ({"min_prob": math.nan}, "min_prob=nan"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"prompt": []}, "prompts is empty"),
    ],
)
def test_errors(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain(model, Tokenizer(), **{"prompt": PROMPT, "guidance": CFG(2.0), **options})


@pytest.mark.parametrize(
    ("prompt", "options"),
    [([PROMPT, NEGATIVE], {}), (PROMPT, {"num_return_sequences": 2, "do_sample": True})],
)
def test_one_prompt_at_a_time(model: Any, prompt: Any, options: dict[str, Any]) -> None:
    passes = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(ValueError, match="prompt has 2 rows; explain one"):
        explain(model, Tokenizer(), prompt, CFG(2.0), max_new_tokens=3, **options)
    hook.remove()
    assert len(passes) <= 2  # noticed at the first step, not after decoding everything


def test_torch_state_is_left_alone(model: Any) -> None:
    before = torch.get_rng_state()
    explain(model, Tokenizer(), PROMPT, CFG(2.0), max_new_tokens=2)
    assert torch.equal(torch.get_rng_state(), before)
