"""Independent-condition guidance (Sadat et al., arXiv 2407.02687)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..base import ROW, About, Branch
from ..edits import Unrelated
from ..prompts import as_text_or_ids
from ..scaled import Scaled

PASSAGE = (
    "The kettle stands on the second shelf, next to a box of nails and an old railway timetable. On Thursdays the "
    "market opens at seven, and the river is low in August. Some of the chairs were painted green last year. "
)


@dataclass(frozen=True)
class IndependentCondition(Scaled):
    """Move away from the model's prediction after an unrelated prompt of the same length.

    ``lu + γ (lc − lu)``, where ``u`` reads a text that has nothing to do with the prompt. It replaces the
    unconditional distribution for models that were never trained without a condition. Costs one extra row in the same
    pass.

    Experimental: the paper is about images and draws the condition from the data. Here it is one fixed passage,
    repeated or cut to the number of tokens of the prompt.

    Args:
        prompt: the unrelated text, or its token ids.
    """

    prompt: Any = field(default=PASSAGE, kw_only=True)

    name = "independent-condition"
    about = About(
        paper="2407.02687",
        rule="lu + γ (lc − lu), u an unrelated prompt of the same length",
        passes=ROW,
        neutral="γ = 1",
        helps="models that produce nothing sensible without a prompt",
        experimental=True,
        mechanism="one fixed passage replaces conditions drawn at random at every step",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(prompt=as_text_or_ids(self.prompt, "prompt"))

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The unrelated text at the prompt's length."""
        return (Branch(edit=Unrelated(self.prompt)),)
