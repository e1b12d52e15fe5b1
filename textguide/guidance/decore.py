"""Decoding by contrasting retrieval heads (Gema et al., arXiv 2410.18860)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..support.checks import factor, finite_number, whole_number
from . import algebra
from .base import About, Branch, BranchGuidance, Step
from .views import MaskedHeads

AUTO = "auto"


@dataclass(frozen=True)
class DeCoRe(BranchGuidance):
    """What a model says with the heads that copy from its text, against what it says without them.

    ``(1 + α) lc − α lm``, ``m`` the same prompt read with the retrieval heads masked. α is the entropy of the model's
    own next-token distribution, in nats, at every step and row (DeCoRe entropy): where the model is unsure, it leans
    more on its text; or a fixed number (DeCoRe static). Helps answers and summaries that should follow a text. Costs
    one more pass.

    Retrieval heads are those that, while a model copies a sentence out of its text, look most at what is copied (Wu et
    al., arXiv 2404.15574). ``heads="auto"`` finds them in one pass over random tokens that stand twice in a text, once
    for every model; that paper asks questions about long texts. Masked heads hand on 0, in the prompt and behind it;
    the authors' code reads the prompt with all heads when it writes, and with the masked ones when it scores.

    Args:
        alpha: None: the entropy. Otherwise a number; 0 changes nothing.
        heads: ``"auto"``, or pairs of a layer and a head of it, both from 0.
        count: how many heads are looked for. The paper chooses it by task.
        cap: the largest α that the entropy may give; None: any.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    alpha: float | None = None
    heads: Any = AUTO
    count: int = 10
    cap: float | None = None

    name = "decore"
    about = About(
        "2410.18860", "(1 + α) lc − α lm, m with the retrieval heads masked, α the entropy of lc",
        "a pass", "α = 0", "answers that should follow a text",
    )  # fmt: skip

    def __post_init__(self) -> None:
        whole_number("count", self.count, 1)
        if self.alpha is not None:
            self._put(alpha=factor("alpha", self.alpha))
        if self.cap is not None:
            self._put(cap=finite_number("cap", self.cap))
            if self.cap < 0 or self.alpha is not None:
                raise ValueError(f"cap={self.cap} must be 0 or more nats, and goes with alpha=None")
        if self.heads != AUTO:
            self._put(heads=_pairs(self.heads))

    @property
    def is_neutral(self) -> bool:
        """α is 0."""
        return self.alpha == 0.0 or self.cap == 0.0

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The model without its retrieval heads."""
        view = MaskedHeads(None, self.count) if self.heads == AUTO else MaskedHeads(self.heads)
        return (Branch(same_prompt=True, view=view),)

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """The contrast on ``logp`` (2, B, V): with all heads, and with some masked."""
        cond, masked = logp
        alpha: float | Tensor
        if self.alpha is not None:
            alpha = self.alpha
        else:
            alpha = algebra.entropy(cond)[..., None].clamp(min=0.0, max=self.cap)
        return algebra.extrapolate(cond, masked, 1.0 + alpha)


def _pairs(value: Any) -> tuple[tuple[int, int], ...]:
    given = list(value) if isinstance(value, (list, tuple)) else []
    if not given or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in given):
        raise ValueError(f"heads={value!r} must be 'auto', or pairs of a layer and a head such as [[12, 3], [14, 0]]")
    return tuple(sorted({(whole_number("heads", layer, 0), whole_number("heads", head, 0)) for layer, head in given}))
