"""Which steps leave the extra branches out, and what that did to the distribution.

A step leaves them out while guidance is inactive (outside the window, γ(s) = 1), and where ``skip_threshold`` is set
and every row's guided distribution has stood within that many nats of the unguided one for a while. Such a skip grows
while it proves harmless. When the branches come back they read what they missed, so that the reported largest KL of
skipped steps is measured, not hoped for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..guidance.algebra import log_softmax
from ..guidance.base import BranchGuidance, Step
from .branch_passes import BranchPasses, StepLogits
from .effect import EffectMeter

PATIENCE = 4
"""Harmless steps in front of the first skip."""
FIRST, LONGEST = 4, 16
"""Steps of a skip; at most so many conditional distributions are kept for the measurement."""


class Skipping:
    """Decides, between steps and on the host, whether the next one runs the extra branches, and lets it be run so.

    Args:
        guidance: the guidance of the run; None: there are no branches to leave out.
        horizon: the most tokens that it writes.
        meter: gathers what skipping did.
        passes: those of the run.
        static: every step runs all branches.
    """

    def __init__(
        self,
        guidance: BranchGuidance | None,
        horizon: int,
        meter: EffectMeter,
        passes: BranchPasses,
        static: bool = False,
    ) -> None:
        self.guidance, self.horizon, self.meter, self.passes = guidance, horizon, meter, passes
        self.threshold = None if guidance is None else guidance.skip_threshold
        self.may_rest = not static and guidance is not None and bool(guidance.branches)
        self.kl: Tensor | None = None  # the largest of the skip that ended with this step
        self._calm, self._length, self._until = 0, FIRST, 0
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def active(self, index: int) -> bool:
        """Whether guidance counts at step ``index``."""
        return self.guidance is not None and self.guidance.active(Step.at(index, self.horizon))

    def rests(self, index: int) -> bool:
        """Whether step ``index`` leaves the extra branches out."""
        return self.may_rest and (index < self._until or not self.active(index))

    def begin(self, logits: StepLogits) -> StepLogits:
        """What counts of the logits behind the prompts."""
        if not self.rests(0):
            return logits
        self.passes.rest()
        return StepLogits(logits.cond, None)

    def read(self, ids: Tensor, index: int) -> StepLogits:
        """Run the pass of step ``index``; extra branches that come back are measured. See :meth:`BranchPasses.step`."""
        self.kl = None
        rests = self.rests(index)
        if self.passes.resting and not rests:
            logits, missed = self.passes.resume(ids, index, bool(self._kept))
            self._measure(missed, index)
            return logits
        if rests and not self.passes.resting:
            self.passes.rest()
        return self.passes.step(ids, index)

    def end(self, index: int) -> bool:
        """Let step ``index`` run the extra branches, since rows are about to leave; whether it has to."""
        if self._kept:  # what a row skipped is measured before it leaves
            self._until = min(self._until, index)
        return bool(self._kept)

    def close(self, ids: Tensor, index: int) -> None:
        """Measure what is left to measure behind the last step, whose pass has read ``ids``."""
        if self._kept:
            self._measure(self.passes.missed(ids, index), index)

    def record(self, index: int, cond: Tensor, writing: Tensor) -> None:
        """Count a step without guidance, and keep its conditional logits (B, V) if it was skipped.

        Args:
            writing: which rows wrote a token, (B,).
        """
        skipped = self.active(index)
        self.meter.add_unguided(writing, skipped)
        if skipped and self.may_rest:
            self._kept[index] = (log_softmax(cond), writing.bool())

    def observe(self, index: int, kl: float, skipped: float | None = None) -> None:
        """Learn from guided step ``index``: its largest KL, and that of the skip which ended with it (or None).

        Raises:
            ValueError: the guided distribution is none.
        """
        if math.isnan(kl):
            raise ValueError(
                f"{self.guidance} gave no distribution at token {index}: its scores are not numbers there; use a "
                "smaller scale, or a formula that is defined everywhere"
            )
        if self.threshold is None:
            return
        if max(kl, skipped or 0.0) > self.threshold:
            self._calm, self._length = 0, FIRST
        elif skipped is not None:
            self._calm, self._length = PATIENCE, min(2 * self._length, LONGEST)
        else:
            self._calm += 1
        if self._calm >= PATIENCE:
            self._until = index + 1 + self._length

    def _measure(self, missed: Tensor, index: int) -> None:
        """Of the steps that were skipped until step ``index``, the KL(guided‖unguided).

        Args:
            missed: logits of the extra branches behind the tokens that they missed, (n, B, k, V).
        """
        assert self.guidance is not None
        first = index - missed.shape[2] + 1
        for skipped, (cond, writing) in self._kept.items():
            logp = torch.cat([cond[None], log_softmax(missed[:, :, skipped - first])])
            guided = self.guidance.combine(logp, Step.at(skipped, self.horizon))
            kl = self.meter.add_skipped(guided, cond, writing).max()
            self.kl = kl if self.kl is None else torch.maximum(self.kl, kl)
        self._kept.clear()
