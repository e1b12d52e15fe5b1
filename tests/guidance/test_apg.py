"""Adaptive projected guidance: the step without its parallel part."""

from __future__ import annotations

import pytest
import torch

from textguide.guidance import APG, CFG, Step
from textguide.reference import decoding

from .oracles import INF, oracle, settings


@oracle("apg")
def apg(guidance: APG, laws: list[list[float]], s: float) -> list[float]:
    cond, uncond = laws
    scale = decoding.cfg_scale(guidance, s)
    tokens = [t for t in range(len(cond)) if cond[t] > -INF and uncond[t] > -INF]
    gap = {t: cond[t] - uncond[t] for t in tokens}
    mean = sum(gap.values()) / len(tokens)
    gap = {t: g - mean for t, g in gap.items()}
    length = (sum(g * g for g in gap.values()) / len(tokens)) ** 0.5
    if guidance.max_norm is not None and length > guidance.max_norm:
        gap = {t: g * guidance.max_norm / length for t, g in gap.items()}
    centre = sum(cond[t] for t in tokens) / len(tokens)
    along = {t: cond[t] - centre for t in tokens}
    share = sum(gap[t] * along[t] for t in tokens) / sum(a * a for a in along.values())
    scores = list(cond)
    for t in tokens:
        parallel = share * along[t]
        scores[t] = cond[t] + (scale - 1) * (gap[t] - parallel + guidance.parallel * parallel)
    return decoding.normalized(scores)


settings(APG(1.0), APG(2.0), APG(3.0, parallel=0.3, max_norm=0.8, schedule="linear"))


def test_with_the_whole_parallel_part_it_is_cfg() -> None:
    logp = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    torch.testing.assert_close(APG(2.0, parallel=1.0).combine(logp, Step()), CFG(2.0).combine(logp, Step()))


def test_what_one_branch_forbids_is_left_alone() -> None:
    cond = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).log()
    uncond = torch.tensor([[0.4, 0.6, 0.0, 0.0]]).log()
    guided = APG(2.0).combine(torch.stack([cond, uncond]), Step())
    assert torch.isfinite(guided).tolist() == [[True, True, True, False]]


def test_fields_are_checked() -> None:
    with pytest.raises(ValueError, match="max_norm=0"):
        APG(max_norm=0)
