"""NAG on log-probabilities: extrapolate, cap, blend."""

from __future__ import annotations

import pytest
import torch

from textguide.guidance import NAG, Step
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from .oracles import INF, oracle, settings


@oracle("nag")
def nag(guidance: NAG, logps: list[list[float]], s: float) -> list[float]:
    cond, uncond = logps
    scale = decoding.cfg_scale(guidance, s)
    if scale == 1:
        return cond
    tokens = [t for t in range(len(cond)) if cond[t] > -INF and uncond[t] > -INF]
    centres = [sum(logp[t] for t in tokens) / len(tokens) for logp in logps]
    here = {t: cond[t] - centres[0] for t in tokens}
    there = {t: uncond[t] - centres[1] for t in tokens}
    moved = {t: scale * here[t] - (scale - 1) * there[t] for t in tokens}
    ratio = sum(map(abs, moved.values())) / sum(map(abs, here.values()))
    factor = guidance.tau / ratio if ratio > guidance.tau else 1.0
    scores = list(cond)
    for t in tokens:
        scores[t] = centres[0] + guidance.blend * factor * moved[t] + (1 - guidance.blend) * here[t]
    return decoding.normalized(scores)


settings(NAG(1.0), NAG(4.0), NAG(12.0, tau=1.2, blend=0.6, schedule="cosine"))


def test_the_cap_holds() -> None:
    logp = torch.randn(2, 2, 30, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    wild = guided_log_probs(NAG(50.0, tau=1.0, blend=1.0), logp, Step())
    centred = wild - wild.mean(-1, keepdim=True)
    cond = logp[0] - logp[0].mean(-1, keepdim=True)
    torch.testing.assert_close(centred.abs().sum(-1), cond.abs().sum(-1))


def test_fields_are_checked() -> None:
    for wrong in ({"tau": 0.5}, {"blend": 0}, {"blend": 1.5}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name}="):
            NAG(**wrong)  # type: ignore[arg-type]
