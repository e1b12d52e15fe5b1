"""Self logits evolution decoding (Zhang et al., arXiv 2411.02433)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..support.checks import factor, whole_number
from . import algebra
from .base import About, Branch, BranchGuidance, Step
from .views import EarlyExit, as_exits

STEPS = 10
"""Steps of the evolution, as in the authors' code."""


@dataclass(frozen=True)
class SLED(BranchGuidance):
    """Continue in the direction in which the model's logits moved from its early layers to its last.

    From layer ``l`` to the last one, the logits moved by ``z_N − z_l``. A step of gradient descent on
    ``KL(P ‖ softmax z_l)`` towards some distribution ``P`` would move them by ``P − p_l``. For each of the top tokens
    ``i``, ``m_l(i) = max(0, cos(z_l − z_N, p_l − e_i))²`` measures how well the step fits the ``P`` that puts all mass
    on ``i``, and ``P̂ = Σ_l m_l / Σ_l Σ_i m_l(i)`` is the latent distribution (section 2.3, Algorithm 1). The last
    logits then take ten steps ``z ← z − α (1 − t/10)(softmax z − P̂)``. Improves facts, in the paper for LLaMA, Gemma,
    Qwen and Mixtral. Runs the early layers once more per step for every exit, each with its own cache: ``Σ depth`` of
    a pass.

    The authors read all early layers in one pass. Here there are only a few exits, because each is its own pass. The
    rule receives log-probabilities, which are the logits up to a constant. ``z_l − z_N`` is centred for that reason,
    which keeps the proportions within each layer's ``m_l`` but can weight the layers differently from the authors'
    code.

    Args:
        rate: α, the evolution rate; 0 changes nothing. The authors use 2.
        top_k: the evolution scale: the number of most likely tokens (plus those that tie with the last of them) that
            can be the latent token; all others are ruled out. None: all tokens, and none is ruled out. The authors use
            5 to 20.
        exits: the early layers, each as the number of layers to run (an integer) or as a share of the depth.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    rate: float = 2.0
    top_k: int | None = 10
    exits: Any = (0.25, 0.5, 0.75)

    name = "sled"
    about = About(
        paper="2411.02433",
        rule="ten steps from lc towards P̂, estimated from how the logits moved since early layers",
        passes="the early layers once more for every exit",
        neutral="rate = 0 and top_k = None",
        helps="factual answers",
        mechanism="a few exits, each in its own pass, instead of all early layers",
    )

    def __post_init__(self) -> None:
        self._put(rate=factor("rate", self.rate), exits=as_exits(self.exits))
        if self.top_k is not None:
            whole_number("top_k", self.top_k, 1)

    @property
    def is_neutral(self) -> bool:
        """Whether the rate is 0 and all tokens are kept."""
        return self.rate == 0.0 and self.top_k is None

    @property
    def branches(self) -> tuple[Branch, ...]:
        """One exit each."""
        return tuple(Branch(same_prompt=True, view=EarlyExit(depth)) for depth in self.exits)

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """Algorithm 1 on ``logp`` (1 + exits, B, V)."""
        cond, early = logp[0], logp[1:]
        candidates = torch.ones_like(cond, dtype=torch.bool)
        if self.top_k is not None and self.top_k < cond.shape[-1]:
            candidates = cond >= cond.topk(self.top_k).values[..., -1:]
        difference = algebra.centered(early - cond)
        probs = early.exp()
        # The vector p − e_i differs per token i; these are its dot product with the difference, and its length.
        dot = (probs * difference).sum(-1, keepdim=True) - difference
        length = (probs.square().sum(-1, keepdim=True) - 2.0 * probs + 1.0).clamp(min=0.0).sqrt()
        cosine = dot / (length * difference.norm(dim=-1, keepdim=True)).clamp(min=1e-12)
        fits = torch.where(candidates, cosine.clamp(min=0.0).square(), 0.0).sum(0)
        latent = fits / fits.sum(-1, keepdim=True).clamp(min=1e-30)
        scores = cond
        for t in range(STEPS):
            scores = scores - self.rate * (1.0 - t / STEPS) * (scores.softmax(-1) - latent)
        return scores.masked_fill(~candidates, float("-inf"))
