"""Contrastive decoding: an expert against an amateur, on plausible tokens."""

from __future__ import annotations

import math

import pytest
import torch

from textguide.guidance import ContrastiveDecoding, Step
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from .oracles import INF, mixed, oracle, settings


def contrast(guidance: ContrastiveDecoding, cond: list[float], other: list[float]) -> list[float]:
    if guidance.beta is None:
        scores = [c if c == -INF or o == -INF else c - o for c, o in zip(cond, other, strict=True)]
    else:
        scores = mixed(cond, other, 1 + guidance.beta)
    if guidance.alpha:
        least = max(cond) + math.log(guidance.alpha)
        scores = [score if c >= least else -INF for score, c in zip(scores, cond, strict=True)]
    return decoding.normalized(scores)


@oracle("contrastive")
def contrastive(guidance: ContrastiveDecoding, logps: list[list[float]], s: float) -> list[float]:
    return contrast(guidance, *logps)


settings(
    ContrastiveDecoding(0.0, 0.0),
    ContrastiveDecoding(),
    ContrastiveDecoding(0.02, 0.5, prompt_free=True),
)


def test_implausible_tokens_are_ruled_out_and_forbidden_ones_stay() -> None:
    cond = torch.tensor([[0.6, 0.3, 0.05, 0.05, 0.0]]).log()
    other = torch.tensor([[0.2, 0.0, 0.2, 0.3, 0.3]]).log()
    guided = guided_log_probs(ContrastiveDecoding(), torch.stack([cond, other]), Step())
    assert torch.isneginf(guided).tolist() == [[False, False, True, True, True]]
    assert not guided.isnan().any()
    # The token that the amateur alone forbids keeps its probability as a score: .3, beside the ratio .6/.2.
    assert guided.exp()[0, 1] == pytest.approx(0.3 / 3.3)


def test_fields_are_checked() -> None:
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        ContrastiveDecoding(1.5)
    with pytest.raises(ValueError, match="beta='x'"):
        ContrastiveDecoding(beta="x")  # type: ignore[arg-type]
