"""Context-aware decoding: the prompt without its document."""

from __future__ import annotations

import math

import pytest
import torch

from textguide.guidance import ContextAware
from textguide.guidance.base import Step
from textguide.guidance.edits import Without
from textguide.guidance.prompts import Message
from textguide.reference import decoding

from .oracles import mixed, oracle, settings


@oracle("context-aware")
def context_aware(guidance: ContextAware, logps: list[list[float]], s: float) -> list[float]:
    scale = decoding.cfg_scale(guidance, s)
    if guidance.adaptive:
        scale = 1.0 + (scale - 1.0) * divergence(*logps)
    return decoding.normalized(mixed(*logps, scale))


def divergence(p: list[float], q: list[float]) -> float:
    """Jensen–Shannon, in nats."""
    total = 0.0
    for one, other in zip(p, q, strict=True):
        mean = (math.exp(one) + math.exp(other)) / 2
        for value in (one, other):
            if value > -math.inf:
                total += 0.5 * math.exp(value) * (value - math.log(mean))
    return total


# A token of each prompt of the matrix.
PASSAGES = ["e", "h", "."]
settings(
    ContextAware(1.0, context=PASSAGES),
    ContextAware(1.5, context=PASSAGES),
    ContextAware(4.0, context=PASSAGES, adaptive=True),
)


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


def test_the_adaptive_scale_follows_the_divergence() -> None:
    """It is plain decoding if the branches agree, and γ = 1 + JSD at scale 2; the divergence is at most ln 2."""
    guidance = ContextAware(2.0, context="doc", adaptive=True)
    same = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]]).log()
    apart = torch.tensor([[1.0 - 2e-8, 1e-8, 1e-8], [1e-8, 1e-8, 1.0 - 2e-8]]).log()
    step = Step.at(0, 8)
    torch.testing.assert_close(guidance.combine(torch.stack([same, same]), step), same)
    guided = guidance.combine(torch.stack([same, apart]), step)
    for row in range(2):
        scale = 1.0 + divergence(same[row].tolist(), apart[row].tolist())
        assert 1.0 < scale < 1.0 + math.log(2.0)
        torch.testing.assert_close(guided[row], apart[row] + scale * (same[row] - apart[row]))


def test_only_a_fixed_scale_ignores_shifts() -> None:
    assert ContextAware(2.0, context="doc").ignores_shifts
    assert not ContextAware(2.0, context="doc", adaptive=True).ignores_shifts
    assert not ContextAware(2.0, context="doc", adaptive=True).is_elementwise
