"""DExperts and proxy tuning: a base moved by the difference of two small models."""

from __future__ import annotations

import math

import pytest
import torch

from textguide.guidance import DExperts, ProxyTuning, Step
from textguide.guidance.dexperts import nucleus
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from .oracles import INF, oracle, settings


@oracle("dexperts")
def dexperts(guidance: DExperts, logps: list[list[float]], s: float) -> list[float]:
    base, expert, *anti = logps
    order = sorted(range(len(base)), key=lambda token: -base[token])
    kept, mass = set(), 0.0
    for token in order:
        if mass >= guidance.top_p and kept:
            break
        kept.add(token)
        mass += math.exp(base[token])
    scores = []
    for token, value in enumerate(base):
        against = anti[0][token] if anti else 0.0
        if token not in kept and guidance.top_p < 1:
            scores.append(-INF)
        elif -INF in (value, expert[token], against):
            scores.append(value)
        else:
            scores.append(value + guidance.alpha * (expert[token] - against))
    return decoding.normalized(scores)


@oracle("proxy-tuning")
def proxy_tuning(guidance: ProxyTuning, logps: list[list[float]], s: float) -> list[float]:
    return dexperts(guidance, logps, s)


settings(DExperts(0.0, top_p=1.0), DExperts(0.7), DExperts(0.5, anti_expert=None, top_p=0.95))
settings(ProxyTuning(0.0), ProxyTuning())


def test_the_nucleus_is_the_fewest_tokens_that_reach_the_mass() -> None:
    logp = torch.tensor([[0.1, 0.5, 0.15, 0.25], [1.0, 0.0, 0.0, 0.0]]).log()
    assert nucleus(logp, 0.7).tolist() == [[False, True, False, True], [True, False, False, False]]
    assert nucleus(logp, 0.01).sum(-1).tolist() == [1, 1]


def test_only_the_base_forbids() -> None:
    base = torch.tensor([[0.5, 0.5, 0.0]]).log()
    expert = torch.tensor([[0.0, 0.5, 0.5]]).log()
    anti = torch.tensor([[0.5, 0.0, 0.5]]).log()
    guided = guided_log_probs(DExperts(2.0, top_p=1.0), torch.stack([base, expert, anti]), Step())
    torch.testing.assert_close(guided.exp(), torch.tensor([[0.5, 0.5, 0.0]]))


def test_fields_are_checked() -> None:
    with pytest.raises(ValueError, match="top_p=0"):
        DExperts(top_p=0)
    with pytest.raises(ValueError, match="expert='anti-expert' must be the name of another model"):
        DExperts(expert="anti-expert")
