"""The table in the terminal, on wide and narrow ones."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from textguide import CFG, explain
from textguide.explanation import TokenMove
from textguide.explanation.terminal import show
from textguide.guidance import DoLa, Formula

from ..architectures import Tokenizer, build

PROMPT = "the dragon"


@pytest.fixture(scope="module")
def explanation() -> Any:
    return explain(build("llama"), Tokenizer(), PROMPT, CFG(1.3, "a dog"), max_new_tokens=12, top=3)


def printed(explanation: Any, width: int, **options: Any) -> list[str]:
    stream = io.StringIO()
    show(explanation, console=Console(file=stream, width=width), **options)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_nothing_is_cut_off(explanation: Any, width: int) -> None:
    lines = printed(explanation, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for step in explanation.steps:
        assert f"{step.kl:.3f}" in text
        for move in (*step.raised, *step.lowered):
            assert f"{move.plain:.1%} → {move.guided:>6.1%}" in text or min(move.plain, move.guided) < 0.0005
    assert explanation.text in text
    assert str(explanation.effect)[:20] in text


def test_wide_terminals_have_both_sides_in_one_line(explanation: Any) -> None:
    wide, narrow, tiny = (printed(explanation, width) for width in (120, 70, 40))
    side = "plain → guided 'a dog'"
    assert " ".join(wide[0].split()) == f"# written KL raised {side} lowered {side}"
    assert " ".join(narrow[0].split()) == f"# written KL raised, lowered {side}"
    assert " ".join(tiny[0].split()).startswith("written plain → guided")
    moves = [line for line in wide if "▲" in line and "▼" in line]
    assert moves
    assert not [line for line in narrow if "▲" in line and "▼" in line]


def test_where_the_top_token_changed_the_other_one_is_named(explanation: Any) -> None:
    text = "\n".join(printed(explanation, 120))
    changed = [step for step in explanation.steps if step.changed]
    assert text.count("plain: ") == len(changed) > 0


def test_some_of_the_steps(explanation: Any) -> None:
    changed = sum(step.changed for step in explanation.steps)
    lines = printed(explanation, 120, top=1, first=2)
    assert sum("▲" in line for line in lines) == 2
    assert "2 of 12 steps" in lines
    lines = printed(explanation, 120, changed=True)
    assert f"{changed} of 12 steps" in lines
    assert sum("plain: " in line for line in lines) == changed
    nothing = explain(build("llama"), Tokenizer(), PROMPT, CFG(1.0), max_new_tokens=2)
    lines = printed(nothing, 80, changed=True)
    assert lines[0] == "Guidance did not change the most likely token at any step."
    assert "changes nothing" in "\n".join(lines)


def test_long_names_stand_below_the_table() -> None:
    name = "a dull text about nothing"
    formula = Formula(f"2*cond - 0.5*last - 0.3*P('{name}') - 0.2*P('hello')")
    found = explain(build("llama"), Tokenizer(), PROMPT, formula, max_new_tokens=2)
    lines = printed(found, 160)
    assert "last token" in lines[0]
    assert "branch 2" in lines[0]
    assert "'hello'" in lines[0]
    assert f"branch 2: '{name}'" in lines
    narrow = printed(found, 44)
    assert "the terminal is too narrow for:" in " ".join(narrow)
    assert max(map(len, narrow)) <= 44


def test_every_branch_where_there_is_room() -> None:
    found = explain(build("llama"), Tokenizer(), PROMPT, DoLa(exits=(1, 0.5)), max_new_tokens=2)
    for width in (80, 140):
        head = printed(found, width)[0]
        assert head.count("early exit 1") == head.count("early exit 50%") == (1 if width == 80 else 2)


def test_strange_tokens(explanation: Any) -> None:
    strange = TokenMove("\x1b[31m\n[bold] 漢字 " + "x" * 40, 5, 0.5, 0.0, (0.25,), True)
    step = replace(explanation.steps[0], chosen=strange, lowered=(strange,))
    for width in (44, 80, 120):
        text = "\n".join(printed(replace(explanation, steps=(step,)), width))
        assert "\x1b" not in text
        assert "▼ \\x1b[31m↵[bold]␣漢…" in text
        assert "50.0% → forbidden" in text
