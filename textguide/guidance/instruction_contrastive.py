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
    """Move away from what the model says behind an instruction that disturbs it.

    ``(1 + λ) log P(w|prompt) − λ log P(w|instruction, prompt)``, so that ``γ = 1 + λ``: what the disturbance makes more
    likely is what the model makes up. The paper does this to answers about images (λ = 1); a noised image in place of
    the instruction gives visual contrastive decoding, which is ``unconditional="noise"`` in captioning. Costs one
    extra row in the same pass.

    Args:
        instruction: put in front of a text, of the last turn of a chat, or of token ids.
    """

    instruction: Any = field(default="You are confused and mix everything up. ", kw_only=True)

    name = "instruction-contrastive"
    about = About(
        "2403.18715", "li + γ (lc − li), i the prompt behind a disturbing instruction", ROW, "γ = 1",
        "answers that are made up",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(instruction=as_text_or_ids(self.instruction, "instruction"))

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The prompt behind the instruction."""
        return (Branch(edit=Prefixed(self.instruction)),)
