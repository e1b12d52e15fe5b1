"""DExperts (Liu et al., arXiv 2105.03023) and proxy tuning (Liu et al., arXiv 2401.08565)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..support.checks import factor, finite_number
from .base import About, Branch, BranchGuidance, Step


@dataclass(frozen=True)
class DExperts(BranchGuidance):
    """Steer with the difference between an expert and an anti-expert.

    ``z + α (z⁺ − z⁻)`` (arXiv 2105.03023, Eq. 2): two small models, one tuned on wanted texts and one on unwanted
    texts, shift the distribution of the model that is being decoded. That distribution is first cut to its nucleus.
    Using log-probabilities instead of the paper's logits changes nothing, because they differ by a constant per row.
    Costs one pass of each small model per step.

    Args:
        alpha: strength; 0 changes nothing (with ``top_p`` 1). The paper uses 2 against toxicity and 3.2 for sentiment.
        expert: name of the expert in ``models``.
        anti_expert: name of the anti-expert in ``models``. None: only the expert, ``z + α z⁺``.
        top_p: the nucleus of the base model that is kept. 1: all tokens. The paper uses 0.9.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    alpha: float = 2.0
    expert: str = "expert"
    anti_expert: str | None = "anti-expert"
    top_p: float = 0.9

    name = "dexperts"
    about = About(
        paper="2105.03023",
        rule="lc + α (l⁺ − l⁻), on the nucleus of lc",
        passes="one pass of each small model",
        neutral="α = 0 and top_p = 1",
        helps="a style for which two small models were tuned",
    )

    def __post_init__(self) -> None:
        self._put(alpha=factor("alpha", self.alpha))
        self._put(top_p=finite_number("top_p", self.top_p))
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p={self.top_p} must be a number in (0, 1]; 1 keeps all tokens")
        if not self.expert or self.expert == self.anti_expert:
            raise ValueError(f"expert={self.expert!r} must be the name of another model than anti_expert")

    @property
    def is_neutral(self) -> bool:
        """Whether α = 0 and all tokens are kept."""
        return self.alpha == 0.0 and self.top_p == 1.0

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The expert, and the anti-expert if there is one."""
        names = [self.expert] if self.anti_expert is None else [self.expert, self.anti_expert]
        return tuple(Branch(same_prompt=True, model=name) for name in names)

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """Equation 2 on ``logp`` (2 or 3, B, V): base, expert, anti-expert."""
        base = logp[0]
        against = logp[2] if len(logp) == 3 else torch.zeros_like(base)
        moved = base + self.alpha * (logp[1] - against)
        if self.top_p < 1.0:
            moved = moved.masked_fill(~nucleus(base, self.top_p), float("-inf"))
        return moved


@dataclass(frozen=True)
class ProxyTuning(DExperts):
    """Tune a large model by the difference between a small tuned model and the same small model before tuning.

    ``z + α (z_tuned − z_untuned)`` at every token (arXiv 2401.08565, section 2), with α = 1 in the paper. This is the
    formula of DExperts on all tokens, with the untuned model as the anti-expert. Costs one pass of each small model
    per step.

    Args:
        alpha: strength; 0 changes nothing.
        expert: name of the small tuned model in ``models``.
        anti_expert: name of the small untuned one.
        top_p: the nucleus of the base model that is kept. 1: all tokens.
    """

    alpha: float = 1.0
    expert: str = "tuned"
    anti_expert: str | None = "untuned"
    top_p: float = 1.0

    name = "proxy-tuning"
    about = About(
        paper="2401.08565",
        rule="lc + α (lt − lb), t a small tuned model and b the same before tuning",
        passes="one pass of each small model",
        neutral="α = 0",
        helps="a large model that cannot be tuned",
    )


def nucleus(logp: Tensor, top_p: float) -> Tensor:
    """The fewest most likely tokens whose mass reaches ``top_p``, bool (..., V); at least one."""
    values, order = logp.sort(dim=-1, descending=True, stable=True)
    before = values.exp().cumsum(-1) - values.exp()
    return torch.zeros_like(logp, dtype=torch.bool).scatter(-1, order, before < top_p)
