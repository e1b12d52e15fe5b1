"""Context-aware decoding: the prompt without its document."""

from __future__ import annotations

import pytest

from textguide.guidance import ContextAware
from textguide.guidance.edits import Without
from textguide.guidance.prompts import Message
from textguide.reference import decoding

from .oracles import mixed, oracle, settings


@oracle("context-aware")
def context_aware(guidance: ContextAware, logps: list[list[float]], s: float) -> list[float]:
    return decoding.normalized(mixed(*logps, decoding.cfg_scale(guidance, s)))


# A token of each prompt of the matrix.
settings(ContextAware(1.0, context=["e", "h", "."]), ContextAware(1.5, context=["e", "h", "."]))


def encode(prompt: object) -> list[int]:
    if isinstance(prompt, str):
        return [ord(c) for c in prompt]
    return [ord(c) for turn in prompt for c in turn.content]  # type: ignore[attr-defined]


def test_the_passage_leaves_texts_chats_and_ids() -> None:
    edit = Without("doc ")
    assert edit.apply(encode("doc why?"), "doc why?", encode) == encode("why?")
    assert edit.apply(encode("doc why?"), None, encode) == encode("why?")
    assert edit.apply(encode("doc "), None, encode) == [ord(" ")]
    chat = (Message("system", "be short"), Message("user", "doc why?"))
    assert edit.apply([1], chat, encode) == encode("be shortwhy?")


@pytest.mark.parametrize("prompt", ["why?", (Message("user", "why?"),), None])
def test_a_passage_that_is_not_there_is_named(prompt: object) -> None:
    with pytest.raises(ValueError, match="context='doc ' is not in the prompt"):
        Without("doc ").apply(encode("why?"), prompt, encode)  # type: ignore[arg-type]


def test_the_passage_is_needed() -> None:
    with pytest.raises(ValueError, match="context=''"):
        ContextAware(context="")
