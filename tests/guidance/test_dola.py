"""DoLa: the model against the farthest of its early layers."""

from __future__ import annotations

import math

import pytest
import torch

from textguide.guidance import DoLa, Step
from textguide.guidance.views import EarlyExit
from textguide.step.guided_step import guided_log_probs

from .oracles import INF, oracle, settings
from .test_contrastive import contrast


@oracle("dola")
def dola(guidance: DoLa, logps: list[list[float]], s: float) -> list[float]:
    cond, *early = logps

    def divergence(p: list[float], q: list[float]) -> float:
        total = 0.0
        for a, b in zip(p, q, strict=True):
            middle = math.log((math.exp(a) + math.exp(b)) / 2) if max(a, b) > -INF else -INF
            total += (math.exp(a) * (a - middle) if a > -INF else 0) + (math.exp(b) * (b - middle) if b > -INF else 0)
        return total

    far = [divergence(logp, cond) for logp in early]
    return contrast(guidance, cond, early[far.index(max(far))])  # type: ignore[arg-type]


settings(DoLa(0.0, 0.0), DoLa(exits=0.5), DoLa(0.02, 0.7, exits=(1, 0.5)))


def test_the_farthest_exit_is_taken_row_by_row() -> None:
    cond = torch.tensor([[0.7, 0.3], [0.7, 0.3]]).log()
    near, far = torch.tensor([0.6, 0.4]).log(), torch.tensor([0.2, 0.8]).log()
    logp = torch.stack([cond, torch.stack([near, far]), torch.stack([far, near])])
    guided = guided_log_probs(DoLa(0.0, exits=(1, 2)), logp, Step())
    expected = torch.tensor([0.7 / 0.2, 0.3 / 0.8])
    torch.testing.assert_close(guided.exp(), (expected / expected.sum()).expand(2, 2))


def test_exits_are_layers_or_shares() -> None:
    assert EarlyExit(0.5).layers(30) == list(range(15))
    assert EarlyExit(3).layers(30) == [0, 1, 2]
    assert EarlyExit(0.001).layers(30) == [0]
    with pytest.raises(ValueError, match="leaves no layer"):
        EarlyExit(30).layers(30)
    for wrong in (0, -1, 1.5, "x"):
        with pytest.raises(ValueError, match="exit="):
            DoLa(exits=wrong)
    with pytest.raises(ValueError, match="exits is empty"):
        DoLa(exits=())
