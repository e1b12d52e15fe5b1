"""Adaptive projected guidance: the step without its parallel part."""

from __future__ import annotations

import pytest
import torch

from textguide.guidance import APG, CFG, Step, algebra
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from .oracles import INF, oracle, settings


@oracle("apg")
def apg(guidance: APG, logps: list[list[float]], s: float) -> list[float]:
    cond, uncond = logps
    scale = decoding.cfg_scale(guidance, s)
    tokens = [t for t in range(len(cond)) if cond[t] > -INF and uncond[t] > -INF]
    gap = {t: cond[t] - uncond[t] for t in tokens}
    mean = sum(gap.values()) / len(tokens)
    length = (sum((g - mean) ** 2 for g in gap.values()) / len(tokens)) ** 0.5
    if guidance.max_norm is not None and length > guidance.max_norm:
        mean, gap = mean * guidance.max_norm / length, {t: g * guidance.max_norm / length for t, g in gap.items()}
    centre = sum(cond[t] for t in tokens) / len(tokens)
    along = {t: cond[t] - centre for t in tokens}
    share = sum((gap[t] - mean) * along[t] for t in tokens) / sum(a * a for a in along.values())
    scores = list(cond)
    for t in tokens:
        parallel = share * along[t]
        scores[t] = cond[t] + (scale - 1) * (gap[t] - parallel + guidance.parallel * parallel)
    return decoding.normalized(scores)


settings(APG(1.0), APG(2.0), APG(3.0, parallel=0.3, max_norm=0.8, schedule="linear"))


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("renormalize", [True, False])
def test_with_the_whole_parallel_part_it_is_cfg(scale: float, renormalize: bool) -> None:
    """To the constant that no probability depends on, and that FeynmanKac's weights are made of."""
    logp = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))
    logp[0, :, 4] = logp[1, :, 5] = -INF
    logp = logp.log_softmax(-1)
    for step in (Step(0.3), Step(torch.tensor([[0.0], [0.4], [1.0]]))):
        apg, cfg = (
            guided_log_probs(guidance, logp, step)
            for guidance in (
                APG(scale, parallel=1.0, renormalize=renormalize, schedule="linear"),
                CFG(scale, renormalize=renormalize, schedule="linear"),
            )
        )
        torch.testing.assert_close(apg, cfg)
    capped = guided_log_probs(APG(scale, parallel=1.0, max_norm=0.5, renormalize=renormalize), logp, Step())
    both = (logp > algebra.FORBIDDEN).all(0).all(0)
    length = algebra.rms(algebra.centered((logp[0] - logp[1])[:, both]))
    shorter = 1 + (scale - 1) * (0.5 / length).clamp(max=1.0)
    product = torch.where(both, algebra.extrapolate(logp[0], logp[1], shorter), logp[0])
    torch.testing.assert_close(capped, algebra.log_softmax(product) if renormalize else product)


def test_what_one_branch_forbids_is_left_alone() -> None:
    cond = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).log()
    uncond = torch.tensor([[0.4, 0.6, 0.0, 0.0]]).log()
    guided = guided_log_probs(APG(2.0), torch.stack([cond, uncond]), Step())
    assert torch.isfinite(guided).tolist() == [[True, True, True, False]]


def test_fields_are_checked() -> None:
    with pytest.raises(ValueError, match="max_norm=0"):
        APG(max_norm=0)
