"""Instruction contrastive decoding: the prompt behind a disturbance."""

from __future__ import annotations

import pytest

from textguide.guidance import InstructionContrastive
from textguide.guidance.edits import Prefixed
from textguide.guidance.prompts import Message
from textguide.reference import decoding

from .oracles import mixed, oracle, settings


@oracle("instruction-contrastive")
def contrasted(guidance: InstructionContrastive, logps: list[list[float]], s: float) -> list[float]:
    return decoding.normalized(mixed(*logps, decoding.cfg_scale(guidance, s)))


settings(InstructionContrastive(1.0), InstructionContrastive(2.0, instruction=[5, 6], max_scale=1.8))


def test_in_front_of_texts_chats_and_ids() -> None:
    def encode(prompt: object) -> list[int]:
        if isinstance(prompt, str):
            return [ord(c) for c in prompt]
        return list(prompt) if isinstance(prompt[0], int) else [ord(c) for t in prompt for c in t.content]  # type: ignore

    edit = Prefixed("no ")
    assert edit.apply(encode("why"), "why", encode) == encode("no why")
    assert edit.apply(encode("why"), None, encode) == encode("no why")
    chat = (Message("system", "s"), Message("user", "why"))
    assert edit.apply([], chat, encode) == encode("sno why")
    assert Prefixed((1, 2)).apply([3], "x", encode) == [1, 2, 3]


def test_an_instruction_is_needed() -> None:
    with pytest.raises(ValueError, match="instruction=''"):
        InstructionContrastive(instruction="")
