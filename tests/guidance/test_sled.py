"""SLED: the model's logits go on where they were going from its early layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from textguide.guidance import SLED, Step
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from .oracles import INF, oracle, settings


@oracle("sled")
def sled(guidance: SLED, logps: list[list[float]], s: float) -> list[float]:
    cond, *layers = logps
    size = len(cond)
    order = sorted(range(size), key=lambda token: -cond[token])
    top = [i for i in order[: guidance.top_k or size] if cond[i] > -INF]
    fits = dict.fromkeys(top, 0.0)
    for early in layers:
        both = [i for i in range(size) if cond[i] > -INF and early[i] > -INF]
        mean = sum(early[i] - cond[i] for i in both) / len(both)
        moved = [early[i] - cond[i] - mean if i in both else 0.0 for i in range(size)]
        for i in top:
            gradient = [math.exp(early[j]) - (j == i) for j in range(size)]
            inner = sum(a * b for a, b in zip(gradient, moved, strict=True))
            lengths = math.sqrt(sum(a * a for a in gradient)) * math.sqrt(sum(b * b for b in moved))
            fits[i] += max(0.0, inner / lengths) ** 2
    total = sum(fits.values())
    scores = list(cond)
    for t in range(10):
        probs = [math.exp(value) for value in decoding.normalized(scores)]
        for i in range(size):
            target = fits.get(i, 0.0) / total if total else 0.0
            scores[i] -= guidance.rate * (1 - t / 10) * (probs[i] - target)
    return decoding.normalized([scores[i] if i in fits else -INF for i in range(size)])


settings(SLED(0.0, None), SLED(), SLED(0.7, None, exits=1), SLED(4.0, 5, exits=(1, 0.5)))


def test_a_layer_that_is_on_its_way_to_a_token_names_it() -> None:
    # The early logits lack what the last ones give token 2.
    last = torch.tensor([[1.0, 1.2, 1.1, 0.0]]).log_softmax(-1)
    early = torch.tensor([[1.0, 1.2, -2.0, 0.0]]).log_softmax(-1)
    guided = guided_log_probs(SLED(top_k=None), torch.stack([last, early]), Step())
    assert last.argmax() == 1
    assert guided.argmax() == 2
    # Backwards, the same layer names the others.
    guided = guided_log_probs(SLED(top_k=None), torch.stack([early, last]), Step())
    assert guided[0, 2] < early[0, 2]


def test_the_constant_of_a_layer_does_not_count() -> None:
    logits = 2 * torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(0))
    moved = logits + torch.tensor([0.0, 3.0, -5.0])[:, None, None]
    expected = guided_log_probs(SLED(), logits.log_softmax(-1), Step())
    torch.testing.assert_close(guided_log_probs(SLED(), moved.log_softmax(-1), Step()), expected)
    assert (expected > -INF).sum(-1).tolist() == [10] * 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": float("nan")}, "rate=nan must be a finite number"),
        ({"top_k": 0}, "top_k=0 must be a whole number of 1 or more"),
        ({"exits": ()}, "exits is empty"),
        ({"exits": 1.5}, "exit=1.5 must be a number of layers"),
    ],
)
def test_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SLED(**fields)
