"""Independent-condition guidance: an unrelated prompt of the same length."""

from __future__ import annotations

import pytest

from textguide.guidance import IndependentCondition
from textguide.guidance.edits import Unrelated
from textguide.reference import decoding

from ..oracles import mixed, oracle, settings


@oracle("independent-condition")
def independent(guidance: IndependentCondition, logps: list[list[float]], s: float) -> list[float]:
    return decoding.normalized(mixed(*logps, decoding.cfg_scale(guidance, s)))


settings(IndependentCondition(1.0), IndependentCondition(2.0, prompt=[7, 8, 9], schedule="linear"))


def test_the_length_is_the_prompts() -> None:
    edit = Unrelated((7, 8, 9))
    assert edit.apply([1, 2, 3, 4, 5], None, list) == [7, 8, 9, 7, 8]  # type: ignore[arg-type]
    assert edit.apply([1], None, list) == [7]  # type: ignore[arg-type]


def test_chats_are_refused() -> None:
    with pytest.raises(ValueError, match="prompt="):
        IndependentCondition(prompt=[{"role": "user", "content": "hi"}])
