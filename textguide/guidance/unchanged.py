"""A guidance that changes the model inside, together with the unchanged model, so that its effect can be measured."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Branch, BranchGuidance, Step
from .views import View


@dataclass(frozen=True)
class WithUnchanged(BranchGuidance):
    """``guidance``, whose conditional pass runs a changed model, with the unchanged model as one more branch.

    Args:
        guidance: the guidance. It combines all branches except the last one.
    """

    guidance: BranchGuidance

    def __post_init__(self) -> None:
        self._put(name=self.guidance.name, renormalize=self.guidance.renormalize)

    def __str__(self) -> str:
        """The guidance."""
        return str(self.guidance)

    @property
    def view(self) -> View | None:
        """The view of the guidance."""
        return self.guidance.view

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The branches of the guidance, and the unchanged model."""
        return (*self.guidance.branches, Branch(same_prompt=True))

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """The rule of the guidance, on its own branches."""
        return self.guidance.combine(logp[:-1], step)

    def factors(self, branches: int) -> tuple[int, ...]:
        """The factors of the guidance, and the unchanged model, so that a token that it forbids has no effect."""
        return (*self.guidance.factors(branches - 1), branches - 1)
