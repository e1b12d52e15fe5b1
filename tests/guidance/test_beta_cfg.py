"""β-CFG: steps of fixed length under a Beta density."""

from __future__ import annotations

import math

import pytest
import torch

from textguide.guidance import CFG, BetaCFG, Step
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from .oracles import INF, oracle, settings


@oracle("beta-cfg")
def beta_cfg(guidance: BetaCFG, logps: list[list[float]], s: float) -> list[float]:
    cond, uncond = logps
    if not guidance.start <= s <= guidance.stop:
        return cond
    tokens = [t for t in range(len(cond)) if cond[t] > -INF and uncond[t] > -INF]
    length = (sum((cond[t] - uncond[t]) ** 2 for t in tokens) / len(tokens)) ** 0.5
    a, b = guidance.a, guidance.b
    density = s ** (a - 1) * (1 - s) ** (b - 1) * math.gamma(a + b) / math.gamma(a) / math.gamma(b)
    scale = 1 + (guidance.scale - 1) * decoding.schedule_multiplier(guidance.schedule, s)
    scores = list(cond)
    for t in tokens:
        scores[t] = uncond[t] + scale * density * (cond[t] - uncond[t]) / length**guidance.power
    return decoding.normalized(scores)


settings(BetaCFG(1.0, a=1, b=1, power=0), BetaCFG(1.2), BetaCFG(1.5, a=3, b=1.5, power=0.5, start=0.1, stop=0.9))


def test_flat_and_without_length_it_is_cfg_bit_for_bit() -> None:
    logp = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    for step in (Step(0.3), Step(torch.tensor([[0.1], [0.5], [1.0]]))):
        flat = guided_log_probs(BetaCFG(1.7, a=1, b=1, power=0, schedule="linear"), logp, step)
        assert torch.equal(flat, guided_log_probs(CFG(1.7, schedule="linear"), logp, step))


def test_the_density_integrates_to_one() -> None:
    for guidance in (BetaCFG(), BetaCFG(a=3, b=1.5)):
        total = sum(guidance.density((i + 0.5) / 1000) for i in range(1000)) / 1000
        assert total == pytest.approx(1, abs=1e-3)


def test_fields_are_checked() -> None:
    for wrong in ({"a": 0.5}, {"b": 0}, {"power": 2}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name}="):
            BetaCFG(**wrong)  # type: ignore[arg-type]
