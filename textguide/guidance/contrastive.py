"""Contrastive decoding (Li et al., arXiv 2210.15097; O'Brien and Lewis, arXiv 2309.09117)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..support.checks import factor, share
from . import algebra
from .base import About, Branch, BranchGuidance, Step


@dataclass(frozen=True)
class Plausible(BranchGuidance):
    """Scores on the tokens that the model considers plausible; all other tokens are ruled out.

    Args:
        alpha: tokens with ``p ≥ alpha · max p`` under the conditional branch are kept (Eq. 3). 0: all tokens.
        beta: None: the difference ``lc − la`` of the first paper. Otherwise ``(1 + β) lc − β la`` of the second one,
            which changes nothing at β = 0.
    """

    alpha: float = 0.1
    beta: float | None = None

    def __post_init__(self) -> None:
        self._put(alpha=share("alpha", self.alpha, "the paper uses 0.1"))
        if self.beta is not None:
            self._put(beta=factor("beta", self.beta))

    @property
    def is_neutral(self) -> bool:
        """Whether β = 0 and all tokens are plausible."""
        return self.beta == 0.0 and self.alpha == 0.0

    def contrast(self, cond: Tensor, other: Tensor) -> Tensor:
        """The scores (B, V); −inf for tokens that are not plausible."""
        score = cond - other if self.beta is None else algebra.extrapolate(cond, other, 1.0 + self.beta)
        if self.alpha > 0.0:
            score = score.masked_fill(~algebra.plausibility_mask(cond, self.alpha), float("-inf"))
        return score


@dataclass(frozen=True)
class ContrastiveDecoding(Plausible):
    """The difference between an expert model and an amateur model.

    ``log p_expert − log p_amateur`` on the plausible set ``p_expert ≥ α max p_expert`` (arXiv 2210.15097, Eq. 2–4).
    The expert is the model that is being decoded; ``models={"amateur": …}`` holds a smaller one with the same tokens.
    The paper searches for the best string; sampling and greedy decoding also work. Useful for long texts. Costs one
    pass of the amateur per step.

    Args:
        alpha: tokens with ``p ≥ alpha · max p`` under the expert are kept. 0: all tokens. The paper uses 0.1.
        beta: None: the difference above. Otherwise ``(1 + β) lc − β la`` (arXiv 2309.09117, which uses 0.5 for
            reasoning), which changes nothing at β = 0 and α = 0.
        amateur: name of the amateur in ``models``.
        prompt_free: the amateur only reads the last token of the prompt, as in the first paper.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    amateur: str = "amateur"
    prompt_free: bool = False

    name: ClassVar[str] = "contrastive"
    about: ClassVar[About] = About(
        paper="2210.15097",
        rule="lc − la, where p ≥ 0.1 max p; a an amateur model",
        passes="one pass of the amateur",
        neutral="β = 0 and α = 0",
        helps="long texts, if the model has a smaller sibling",
        mechanism="tokens are sampled or chosen greedily; the paper searches for the best string with beams",
    )

    @classmethod
    def reward_free(cls, weight: float, reference: str = "reference") -> ContrastiveDecoding:
        """Reward-free guidance (RFG, arXiv 2509.25604): a tuned model against what it was tuned from.

        ``(1 + w) log p_tuned − w log p_reference`` at every step, on all tokens: the second paper's rule with α = 0.
        The tuned model is decoded; the paper does so with masked diffusion models (:mod:`textguide.diffusion`).

        Args:
            weight: w; 0 changes nothing.
            reference: name of the model before tuning in ``models``.
        """
        return cls(alpha=0.0, beta=weight, amateur=reference)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The amateur."""
        return (Branch(same_prompt=not self.prompt_free, model=self.amateur),)

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """Equation 4 on ``logp`` (2, B, V): expert, amateur."""
        return self.contrast(logp[0], logp[1])
