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
    """Go on in the direction in which the model's logits moved from its early layers to its last.

    From layer ``l`` to the last one the logits moved by ``z_N − z_l``, as a step of gradient descent on
    ``KL(P ‖ softmax z_l)`` towards some distribution ``P`` would move them by ``P − p_l``. For each of the top tokens
    ``i``, ``m_l(i) = max(0, cos(z_l − z_N, p_l − e_i))²`` says how well the step fits the ``P`` that is ``i`` alone,
    and ``P̂ = Σ_l m_l / Σ_l Σ_i m_l(i)`` is the latent distribution (section 2.3, Algorithm 1). The last logits then
    take ten steps ``z ← z − α (1 − t/10)(softmax z − P̂)``. Helps facts, in the paper on LLaMA, Gemma, Qwen and
    Mixtral. Costs the early layers once more a step for every exit, with a cache of their own: ``Σ depth`` of a pass.

    The authors read all early layers in one pass; here the exits are few, since each is a pass of its own. The rule
    sees log-probabilities, which are the logits up to a constant; ``z_l − z_N`` is centred for that reason, which
    leaves each layer's ``m_l`` in its proportions and can weigh the layers otherwise than the authors' code.

    Args:
        rate: α, the evolution rate; 0 moves nothing. The authors use 2.
        top_k: the evolution scale: as many of the most likely tokens (and those that tie with the last of them) can be
            what is latent, and all others are ruled out. None: all tokens, and none is ruled out. The authors use 5
            to 20.
        exits: the early layers, each a number of layers that are run (an integer), or a share of the depth.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    rate: float = 2.0
    top_k: int | None = 10
    exits: Any = (0.25, 0.5, 0.75)

    name = "sled"
    about = About(
        "2411.02433", "ten steps from lc towards P̂, where the logits moved from early layers to the last",
        "the early layers once more for every exit", "rate = 0 and top_k = None", "facts",
    )  # fmt: skip

    def __post_init__(self) -> None:
        self._put(rate=factor("rate", self.rate), exits=as_exits(self.exits))
        if self.top_k is not None:
            whole_number("top_k", self.top_k, 1)

    @property
    def is_neutral(self) -> bool:
        """A rate of 0 with all tokens."""
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
        moved = algebra.centered(early - cond)
        probs = early.exp()
        dot = (probs * moved).sum(-1, keepdim=True) - moved
        length = (probs.square().sum(-1, keepdim=True) - 2.0 * probs + 1.0).clamp(min=0.0).sqrt()
        cosine = dot / (length * moved.norm(dim=-1, keepdim=True)).clamp(min=1e-12)
        fits = torch.where(candidates, cosine.clamp(min=0.0).square(), 0.0).sum(0)
        latent = fits / fits.sum(-1, keepdim=True).clamp(min=1e-30)
        scores = cond
        for t in range(STEPS):
            scores = scores - self.rate * (1.0 - t / STEPS) * (scores.softmax(-1) - latent)
        return scores.masked_fill(~candidates, float("-inf"))
