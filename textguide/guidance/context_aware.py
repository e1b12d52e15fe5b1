"""Context-aware decoding (Shi et al., arXiv 2305.14739)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .base import ROW, About, Branch
from .edits import Without
from .scaled import Scaled


@dataclass(frozen=True)
class ContextAware(Scaled):
    """Follow a document when it contradicts what the model remembers.

    ``(1 + α) log P(w|document, question) − α log P(w|question)``: the other branch reads the prompt without the
    document. The scale is ``γ = 1 + α``; the paper uses α = 0.5. Useful for summaries and for answers that should come
    from a given text. Costs one extra row in the same pass.

    Args:
        context: the passage of the prompt that is the document, character for character, or a list with one passage
            per row. The other branch reads the prompt without it. If prompts are token ids, the tokens of the passage
            are searched for.

    Raises:
        ValueError: ``context`` is empty, or (when decoding) a prompt does not contain it.
    """

    context: Any = field(kw_only=True)

    name = "context-aware"
    about = About(
        paper="2305.14739",
        rule="lu + γ (lc − lu), u the prompt without the document",
        passes=ROW,
        neutral="γ = 1",
        helps="answers and summaries that should come from a given text",
        example="context-aware:context=THE DOCUMENT",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
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
