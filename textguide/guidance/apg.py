"""Adaptive projected guidance (Sadat et al., arXiv 2410.02416)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import algebra
from .base import ROW, About, Step
from .scaled import Contrast
from .validation import finite


@dataclass(frozen=True)
class APG(Contrast):
    """Classifier-free guidance without the part of the step that only makes the law sharper.

    With ``g = lc − lu``, centred: cap its length at ``r``, split it into ``g∥`` along the centred ``lc`` and ``g⊥``
    across it, and take ``lc + (γ − 1)(g⊥ + η g∥)`` (Alg. 1). γ = 1 changes nothing; η = 1 without a cap is
    classifier-free guidance. Helps where a large γ would oversharpen. Costs what classifier-free guidance costs.

    Lengths are root mean squares over the vocabulary, so that ``r`` does not depend on its size; the paper's r = 15
    belongs to images. Its running mean over denoising steps (β) is left out: successive tokens are
    not successive views of one thing.

    Args:
        parallel: η, the share of the parallel part that stays; the paper uses 0.
        max_norm: r, in nats; None: no cap.
    """

    parallel: float = field(default=0.0, kw_only=True)
    max_norm: float | None = field(default=None, kw_only=True)

    name = "apg"
    about = About(
        "2410.02416", "lc + (γ − 1)(g⊥ + η g∥), g = lc − lu capped at r", ROW, "γ = 1",
        "large γ that would oversharpen",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put("parallel", finite("parallel", self.parallel))
        if self.max_norm is not None:
            self._put("max_norm", finite("max_norm", self.max_norm))
            if self.max_norm <= 0:
                raise ValueError(f"max_norm={self.max_norm} must be above 0 nats, or None")

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """Algorithm 1 on ``logp`` (2, B, V)."""
        cond, uncond = logp
        both = torch.isfinite(cond) & torch.isfinite(uncond)
        raw = torch.where(both, cond - uncond, float("-inf"))
        gap, possible = algebra.centered(raw)
        if self.max_norm is not None:
            gap = gap * (self.max_norm / algebra.rms(gap, possible).clamp(min=1e-12)).clamp(max=1.0)
        along, _ = algebra.centered(torch.where(both, cond, float("-inf")))
        share = (gap * along).sum(-1, keepdim=True) / along.square().sum(-1, keepdim=True).clamp(min=1e-12)
        parallel = share * along
        step_taken = gap - parallel + self.parallel * parallel
        return torch.where(both, cond + (scale - 1.0) * step_taken, cond)
