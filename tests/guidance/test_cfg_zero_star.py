"""CFG-Zero* (Fan et al., arXiv 2503.18886) as a user would write it from the page about writing a method: it goes
through every place and every conformance check without another edit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from textguide.guidance import CFG, About, Contrast, Guidance
from textguide.reference import decoding
from textguide.testing import check

from .oracles import INF, oracle, settings


@dataclass(frozen=True)
class CFGZeroStar(Contrast):
    """``s·lu + γ (lc − s·lu)`` with ``s = ⟨lc, lu⟩ / ‖lu‖²``: the length of ``lu`` that fits ``lc`` best."""

    name = "cfg-zero-star"
    about = About("2503.18886", "s·lu + γ (lc − s·lu)", "one row in the same pass", "γ = 1", "large γ")

    @property
    def off_at_one(self) -> bool:
        return True

    def mix(self, logp: Tensor, scale: float | Tensor, step: object) -> Tensor:
        cond, uncond = logp
        fit = (cond * uncond).sum(-1, keepdim=True) / uncond.square().sum(-1, keepdim=True).clamp(min=1e-12)
        return fit * uncond + scale * (cond - fit * uncond)


@oracle("cfg-zero-star")
def cfg_zero_star(guidance: CFGZeroStar, logps: list[list[float]], s: float) -> list[float]:
    cond, uncond = logps
    if not guidance.start <= s <= guidance.stop:
        return cond
    tokens = [token for token in range(len(cond)) if cond[token] > -INF and uncond[token] > -INF]
    scale = 1 + (guidance.scale - 1) * decoding.schedule_multiplier(guidance.schedule, s)
    product = sum(cond[token] * uncond[token] for token in tokens)
    fit = product / sum(uncond[token] ** 2 for token in tokens)
    scores = list(cond)
    for token in tokens:
        scores[token] = fit * uncond[token] + scale * (cond[token] - fit * uncond[token])
    return decoding.normalized(scores)


settings(CFGZeroStar(1.0), CFGZeroStar(2.0), CFGZeroStar(1.5, schedule="linear", start=0.1, stop=0.9))


def test_it_passes_the_check_for_methods() -> None:
    check(CFGZeroStar(2.0))
    check(CFGZeroStar(2.0, schedule="cosine", start=0.2, stop=0.8, max_scale=1.7))


def test_it_is_cfg_where_the_branches_have_the_same_length() -> None:
    cond = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    logp = torch.stack([cond, cond.flip(-1)])
    fit = float((logp[0] * logp[1]).sum() / logp[1].square().sum())
    assert fit < 1
    found = CFGZeroStar(2.0).mix(logp, 2.0, None)
    assert torch.allclose(found, CFG(2.0).mix(torch.stack([cond, fit * logp[1]]), 2.0, None))  # type: ignore[arg-type]


def test_it_is_registered() -> None:
    assert Guidance.registry["cfg-zero-star"] is CFGZeroStar
