"""Instruction contrastive decoding (Wang et al., arXiv 2403.18715)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .base import ROW, About, Branch
from .edits import Prefixed
from .prompts import as_text_or_ids
from .scaled import Scaled


@dataclass(frozen=True)
class InstructionContrastive(Scaled):
    """Move away from the model's prediction after an instruction that disturbs it.

    ``(1 + λ) log P(w|prompt) − λ log P(w|instruction, prompt)``, so ``γ = 1 + λ``: tokens that the disturbance makes
    more likely are treated as made up. The paper does this for answers about images (λ = 1). A noised image instead of
    the instruction gives visual contrastive decoding, which is ``unconditional="noise"`` in captioning. Costs one
    extra row in the same pass.

    Args:
        instruction: inserted before a text, before the last turn of a chat, or before token ids.
    """

    instruction: Any = field(default="You are confused and mix everything up. ", kw_only=True)

    name = "instruction-contrastive"
    about = About(
        paper="2403.18715",
        rule="li + γ (lc − li), i the prompt after a disturbing instruction",
        passes=ROW,
        neutral="γ = 1",
        helps="reducing answers that are made up",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(instruction=as_text_or_ids(self.instruction, "instruction"))

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The prompt after the instruction."""
        return (Branch(edit=Prefixed(self.instruction)),)
