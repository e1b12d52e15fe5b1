"""Dynamic guidance: the largest scale that the budget bears."""

from __future__ import annotations

import math

import pytest
import torch

from textguide.guidance import CFG, DynamicCFG, Step
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from ..oracles import INF, mixed, oracle, settings


@oracle("dynamic")
def dynamic(guidance: DynamicCFG, logps: list[list[float]], s: float) -> list[float]:
    cond, uncond = logps
    chosen = cond
    for scale in guidance.scales:
        guided = decoding.normalized(mixed(cond, uncond, scale))
        kl = sum(math.exp(g) * (g - c) for g, c in zip(guided, cond, strict=True) if g > -INF)
        if scale <= decoding.cfg_scale(guidance, s) and kl <= guidance.budget:
            chosen = guided
    return decoding.normalized(chosen)


settings(DynamicCFG(1.0), DynamicCFG(budget=2.0), DynamicCFG(2.0, scales=[1.1, 1.3, 4.0], budget=1.0))


def test_the_budget_is_kept_row_by_row() -> None:
    logp = torch.randn(2, 200, 40, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 2, 200)[:, None]
    logp = logp.log_softmax(-1)
    guidance = DynamicCFG(budget=0.2)
    guided = guided_log_probs(guidance, logp, Step())
    kl = (guided.exp() * (guided - logp[0])).sum(-1)
    assert float(kl.max()) <= 0.2 + 1e-5
    chosen = {
        scale
        for row in range(200)
        for scale in guidance.scales
        if torch.allclose(guided_log_probs(CFG(scale), logp[:, row : row + 1], Step()), guided[row])
    }
    assert len(chosen) > 2


def test_fields_are_checked() -> None:
    with pytest.raises(ValueError, match="scales="):
        DynamicCFG(scales=[0.5])
    with pytest.raises(ValueError, match="budget=-1"):
        DynamicCFG(budget=-1)
