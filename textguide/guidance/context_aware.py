"""Context-aware decoding (Shi et al., arXiv 2305.14739) and its adaptive form (Wang et al., arXiv 2409.07394)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..support.checks import flag
from . import algebra
from .base import ROW, About, Branch, Step
from .edits import Without
from .scaled import Scaled


@dataclass(frozen=True)
class ContextAware(Scaled):
    """Follow a document when it contradicts what the model remembers.

    ``(1 + α) log P(w|document, question) − α log P(w|question)``: the other branch reads the prompt without the
    document. The scale is ``γ = 1 + α``; the paper uses α = 0.5. Useful for summaries and for answers that should come
    from a given text. Costs one extra row in the same pass.

    With ``adaptive=True``, α is multiplied at every step and row by the Jensen–Shannon divergence of the two branches,
    in nats (at most ln 2): where the document does not contradict the model, little changes. ``scale=2`` is then
    AdaCAD (arXiv 2409.07394, Eq. 4), whose α is that divergence.

    Args:
        context: the passage of the prompt that is the document, character for character, or a list with one passage
            per row. The other branch reads the prompt without it. If prompts are token ids, the tokens of the passage
            are searched for.
        adaptive: multiply α by the divergence of the branches. ``schedule``, ``min_scale`` and ``max_scale`` apply to
            γ before that.

    Raises:
        ValueError: ``context`` is empty, or (when decoding) a prompt does not contain it.
    """

    context: Any = field(kw_only=True)
    adaptive: bool = field(default=False, kw_only=True)

    name = "context-aware"
    about = About(
        paper="2305.14739",
        rule="lu + γ (lc − lu), u the prompt without the document; adaptive: (γ − 1) × JSD(lc, lu) instead of γ − 1",
        passes=ROW,
        neutral="γ = 1",
        helps="answers and summaries that should come from a given text",
        example="context-aware:context=THE DOCUMENT",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        flag("adaptive", self.adaptive)
        passages = (self.context,) if isinstance(self.context, str) else self.context
        is_list = isinstance(passages, (list, tuple)) and len(passages) > 0
        if not is_list or not all(isinstance(passage, str) and passage for passage in passages):
            raise ValueError(f"context={self.context!r} must be the passage of the prompt to follow")
        if not isinstance(self.context, str):
            self._put(context=tuple(self.context))

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The prompt without the document."""
        if isinstance(self.context, str):
            return (Branch(edit=Without(self.context)),)
        return (Branch(edit=tuple(Without(passage) for passage in self.context)),)

    @property
    def off_at_one(self) -> bool:
        """Always: α is 0."""
        return True

    @property
    def ignores_shifts(self) -> bool:
        """Only with a fixed α; a divergence needs normalised log-probabilities."""
        return not self.adaptive

    @property
    def rule(self) -> Hashable:
        """The fields that :meth:`mix` reads; rows may have different documents."""
        return type(self), self.renormalize, self.adaptive

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """The contrast on ``logp`` (2, B, V): with the document, and without it."""
        cond, without = logp
        if self.adaptive:
            divergence = algebra.js_divergence(cond, without).unsqueeze(-1)
            scale = 1.0 + (scale - 1.0) * divergence
        return algebra.extrapolate(cond, without, scale)
