"""S²-Guidance: classifier-free guidance away from a weakened self as well."""

from __future__ import annotations

import pytest

from textguide.guidance import CFG, S2Guidance
from textguide.guidance.views import WithoutBlocks
from textguide.reference import decoding

from ..oracles import INF, mixed, oracle, settings


@oracle("s2")
def s2(guidance: S2Guidance, logps: list[list[float]], s: float) -> list[float]:
    cond, uncond, *weak = logps
    scores = mixed(cond, uncond, decoding.cfg_scale(guidance, s))
    if weak and guidance.start <= s <= guidance.stop:
        for token, (c, w) in enumerate(zip(cond, weak[0], strict=True)):
            if c > -INF and w > -INF:
                scores[token] += guidance.weight * (c - w)
    return decoding.normalized(scores)


settings(S2Guidance(1.0, weight=0.0), S2Guidance(1.5), S2Guidance(1.0, weight=0.5, start=0.2, stop=0.8))


def test_without_weight_it_is_cfg() -> None:
    assert S2Guidance(1.5, weight=0.0).branches == CFG(1.5).branches


def test_blocks_that_are_left_out() -> None:
    kept = WithoutBlocks(0.1).layers(30)
    assert len(kept) == 27
    assert (kept[0], kept[-1]) == (0, 29)
    assert kept != WithoutBlocks(0.1, seed=1).layers(30)
    assert len(WithoutBlocks(0.1).layers(2)) == 1
    for wrong in (0, 1, -0.5):
        with pytest.raises(ValueError, match="drop="):
            S2Guidance(drop=wrong)
    with pytest.raises(ValueError, match="leaves none"):
        WithoutBlocks(0.9).layers(1)
