"""Decoding by contrasting retrieval heads (Gema et al., arXiv 2410.18860)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..support.checks import factor, number_from, whole_number
from . import algebra
from .base import About, Branch, BranchGuidance, Step
from .views import MaskedHeads

AUTO = "auto"


@dataclass(frozen=True)
class DeCoRe(BranchGuidance):
    """The model's prediction with its retrieval heads, contrasted with its prediction without them.

    ``(1 + α) lc − α lm``, where ``m`` reads the same prompt with the retrieval heads masked. α is the entropy of the
    model's own next-token distribution, in nats, at every step and row (DeCoRe entropy): when the model is unsure, it
    relies more on its context. Or α is a fixed number (DeCoRe static). Useful for answers and summaries that should
    follow a text. Costs one extra pass.

    Retrieval heads are the attention heads that attend most to the copied token while the model copies a sentence from
    its context (Wu et al., arXiv 2404.15574). ``heads="auto"`` finds them in one pass over random tokens that appear
    twice in a text, once per model; that paper uses questions about long texts instead. Masked heads output 0, both in
    the prompt and after it. The authors' code reads the prompt with all heads when it generates, and with the masked
    ones when it scores.

    Args:
        alpha: None: the entropy. Otherwise a number; 0 changes nothing.
        heads: ``"auto"``, or pairs of a layer and a head in it, both counted from 0.
        count: number of heads to find. The paper chooses it per task.
        cap: upper bound on an α that comes from the entropy. None: no bound.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    alpha: float | None = None
    heads: Any = AUTO
    count: int = 10
    cap: float | None = None

    name = "decore"
    about = About(
        paper="2410.18860",
        rule="(1 + α) lc − α lm, m with the retrieval heads masked, α the entropy of lc",
        passes="one extra pass",
        neutral="α = 0",
        helps="answers that should follow a given text",
        mechanism="retrieval heads are found on repeated random tokens instead of questions about long texts",
    )

    def __post_init__(self) -> None:
        whole_number("count", self.count, 1)
        if self.alpha is not None:
            self._put(alpha=factor("alpha", self.alpha))
        if self.cap is not None:
            self._put(cap=number_from("cap", self.cap, 0, "in nats"))
            if self.alpha is not None:
                raise ValueError(f"cap={self.cap} only applies to alpha=None; leave one of the two out")
        if self.heads != AUTO:
            self._put(heads=_pairs(self.heads))

    @property
    def is_neutral(self) -> bool:
        """Whether α is always 0."""
        return self.alpha == 0.0 or self.cap == 0.0

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The model without its retrieval heads."""
        view = MaskedHeads(None, self.count) if self.heads == AUTO else MaskedHeads(self.heads)
        return (Branch(same_prompt=True, view=view),)

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """The contrast on ``logp`` (2, B, V): with all heads, and with the retrieval heads masked."""
        cond, masked = logp
        alpha: float | Tensor
        if self.alpha is not None:
            alpha = self.alpha
        else:
            alpha = algebra.entropy(cond)[..., None].clamp(min=0.0, max=self.cap)
        return algebra.extrapolate(cond, masked, 1.0 + alpha)


def _pairs(value: Any) -> tuple[tuple[int, int], ...]:
    pairs = list(value) if isinstance(value, (list, tuple)) else []
    if not pairs or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"heads={value!r} must be 'auto', or pairs of a layer and a head such as [[12, 3], [14, 0]]")
    return tuple(sorted({(whole_number("heads", layer, 0), whole_number("heads", head, 0)) for layer, head in pairs}))
