"""Branches by what they are."""

from __future__ import annotations

from typing import Any

import pytest

from textguide import CFG
from textguide.explanation.branch_names import branch_names
from textguide.guidance import (
    ContextAware,
    ContrastiveDecoding,
    DExperts,
    DoLa,
    Formula,
    IndependentCondition,
    InstructionContrastive,
    S2Guidance,
    TokenPerturbation,
)

from ..architectures import Tokenizer

CHAT = [{"role": "system", "content": "be dull"}, {"role": "user", "content": "hey"}]


@pytest.mark.parametrize(
    ("guidance", "names"),
    [
        (None, ()),
        (CFG(1.5), ("last token",)),
        (CFG(1.5, "a dull\n text"), ("'a dull text'",)),
        (CFG(1.5, [3 + 4, 3 + 15, 3 + 7]), ("'dog'",)),
        (CFG(1.5, CHAT), ("'be dull / hey'",)),
        (CFG(1.5, ["one", "two"]), ("'one'",)),
        (CFG(1.5, negative_system="be dull"), ("system 'be dull'",)),
        (CFG(1.5, "x" * 99), (f"'{'x' * 59}…'",)),
        (DoLa(exits=(4, 0.25, 0.125)), ("early exit 4", "early exit 25%", "early exit 12.5%")),
        (S2Guidance(1.5, drop=0.1), ("last token", "without 10% of the layers")),
        (ContrastiveDecoding(), ("amateur",)),
        (ContrastiveDecoding(prompt_free=True), ("amateur, last token",)),
        (DExperts(0.7), ("expert", "anti-expert")),
        (ContextAware(1.5, context="the facts"), ("without 'the facts'",)),
        (ContextAware(1.5, context=["the facts", "others"]), ("without 'the facts'",)),
        (TokenPerturbation(1.5), ("shuffled prompt",)),
        (IndependentCondition(1.5, prompt="some text"), ("'some text'",)),
        (InstructionContrastive(1.5, instruction="be wrong: "), ("prompt after 'be wrong:'",)),
        (Formula("cond - last + M('expert', 'no') - P('hello')"), ("last token", "expert, 'no'", "'hello'")),
        (Formula("2*cond"), ()),
    ],
    ids=str,
)
def test_names(guidance: Any, names: tuple[str, ...]) -> None:
    assert branch_names(guidance, Tokenizer()) == names


def test_what_an_empty_branch_reads() -> None:
    assert branch_names(CFG(1.5), Tokenizer(), "no image") == ("no image",)
    assert branch_names(CFG(1.5, ["one", "two"]), Tokenizer(), row=1) == ("'two'",)
