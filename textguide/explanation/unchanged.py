"""A guidance that acts inside the model, run beside the model as it is, so that what it did can be seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..engine.loop import StepView
from ..guidance.base import Branch, BranchGuidance, Step
from ..guidance.views import View


@dataclass(frozen=True)
class BesideUnchanged(BranchGuidance):
    """``guidance``, whose conditional pass runs a changed model, with the model as it is as one more branch.

    Args:
        guidance: what is combined, as if the last branch were not there.
    """

    guidance: BranchGuidance

    def __post_init__(self) -> None:
        self._put(name=self.guidance.name)

    @property
    def view(self) -> View | None:
        """That of the guidance."""
        return self.guidance.view

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Those of the guidance, and the model as it is."""
        return (*self.guidance.branches, Branch(same_prompt=True))

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """What the guidance makes of its own branches."""
        return self.guidance.combine(logp[:-1], step)


def against_unchanged(view: StepView) -> StepView:
    """A step of :class:`BesideUnchanged` with the model as it is in the place of the conditional branch."""
    assert view.extra is not None
    return replace(view, cond=view.extra[-1], extra=view.extra[:-1])
