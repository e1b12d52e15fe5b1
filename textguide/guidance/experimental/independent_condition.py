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
    """Move away from what the model says behind an unrelated prompt of the same length.

    ``lu + γ (lc − lu)`` with ``u`` a text that has nothing to do with the prompt, which stands in for the unconditional
    distribution of a model that was never trained without a condition. Costs one extra row in the same pass.

    Experimental: the paper speaks of images, where the condition is drawn from the data; here it is one fixed passage,
    repeated or cut to the number of the prompt's tokens.

    Args:
        prompt: the unrelated text, or its token ids.
    """

    prompt: Any = field(default=PASSAGE, kw_only=True)

    name = "independent-condition"
    about = About(
        "2407.02687", "lu + γ (lc − lu), u an unrelated prompt of the same length", ROW, "γ = 1",
        "models that say nothing sensible without a prompt", experimental=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(prompt=as_text_or_ids(self.prompt, "prompt"))

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The unrelated text at the prompt's length."""
        return (Branch(edit=Unrelated(self.prompt)),)
