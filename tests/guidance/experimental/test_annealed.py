"""Annealed guidance: a scale that follows from how far the branches are apart."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from textguide.guidance import CFG, AnnealedCFG, Step
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from ..oracles import INF, mixed, oracle, settings


@oracle("annealed")
def annealed(guidance: AnnealedCFG, logps: list[list[float]], s: float) -> list[float]:
    cond, uncond = logps
    gap = [c - u for c, u in zip(cond, uncond, strict=True) if c > -INF and u > -INF]
    mean = sum(gap) / len(gap)
    apart = (sum((g - mean) ** 2 for g in gap) / len(gap)) ** 0.5
    line = guidance.line
    value = line[0][1]
    for (d0, m0), (d1, m1) in pairwise(line):
        if d0 <= apart < d1:
            value = m0 + (m1 - m0) * (apart - d0) / (d1 - d0)
        elif apart >= d1:
            value = m1
    return decoding.normalized(mixed(cond, uncond, 1 + (decoding.cfg_scale(guidance, s) - 1) * value))


# Random models have branches that are far apart.
settings(
    AnnealedCFG(1.0), AnnealedCFG(2.0, line=[(0, 1), (40, 0)]), AnnealedCFG(1.5, line=[(3, 0.2), (10, 2.0), (20, 1)])
)


def test_a_level_line_is_cfg() -> None:
    logp = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    level = guided_log_probs(AnnealedCFG(2.0, line=[(0, 1)]), logp, Step())
    torch.testing.assert_close(level, guided_log_probs(CFG(2.0), logp, Step()))


def test_lines_are_checked() -> None:
    for wrong in ([], [(1, 1), (1, 2)], [(2, 1), (1, 1)], [1], 3):
        with pytest.raises(ValueError, match="line="):
            AnnealedCFG(line=wrong)
