"""Every guidance method writes under speculation what it writes without."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

import textguide
from textguide.engine.speculation.drafts import Drafter

from ...architectures import ENCODER_DECODER, VOCAB, Tokenizer
from ...test_conformance import PROMPTS, SETTINGS, opened


@pytest.mark.parametrize("setting", list(SETTINGS))
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_same_text(name: str, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = opened((name, setting))
    prompts = [list(prompt) for prompt in PROMPTS]
    options = {"max_new_tokens": 12, "models": case.models}
    plain = textguide.generate(case.model, Tokenizer(), prompts, case.guidance, **options)
    start = 1 if name in ENCODER_DECODER else max(map(len, PROMPTS))
    rng = random.Random(0)

    def draft(self: Drafter, row: int, tokens: Sequence[int], most: int) -> list[tuple[int, str]]:
        right = plain.new_tokens[row][len(tokens) - start :][:most]
        return [(rng.randrange(3, VOCAB) if rng.random() < 0.1 else token, "foreseen") for token in right]

    monkeypatch.setattr(Drafter, "draft", draft)
    out = textguide.generate(case.model, Tokenizer(), prompts, case.guidance, speculation="recycling", **options)
    assert out.new_tokens == plain.new_tokens
    torch.testing.assert_close(out.log_probs, plain.log_probs, atol=1e-3, rtol=1e-4)
    assert out.speculation.accepted > 0
