"""Which steps leave the extra branches out, and what that did to the distribution.

A step leaves them out while guidance is inactive (outside the window, γ(s) = 1), and where ``skip_threshold`` is set
and every row's guided distribution has stood within that many nats of the unguided one for a while. Such a skip grows
while it proves harmless. When the branches come back they read what they missed, so that the reported largest KL of
skipped steps is measured, not hoped for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..guidance.algebra import log_softmax
from ..guidance.base import BranchGuidance, Step
from .effect import EffectMeter

PATIENCE = 4
"""Harmless steps in front of the first skip."""
FIRST, LONGEST = 4, 16
"""Steps of a skip; at most so many conditional distributions are kept for the measurement."""


class Skipping:
    """Decides, between steps and on the host, whether the next one runs the extra branches.

    Args:
        guidance: the guidance of the run.
        horizon: the most tokens that it writes.
        meter: gathers what skipping did.
    """

    def __init__(self, guidance: BranchGuidance, horizon: int, meter: EffectMeter) -> None:
        self.guidance, self.horizon, self.meter = guidance, horizon, meter
        self.threshold = guidance.skip_threshold
        self._calm, self._length, self._until = 0, FIRST, 0
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def active(self, index: int) -> bool:
        """Whether guidance counts at step ``index``."""
        return self.guidance.active(Step.at(index, self.horizon))

    def rests(self, index: int) -> bool:
        """Whether step ``index`` leaves the extra branches out."""
        return bool(self.guidance.branches) and (index < self._until or not self.active(index))

    @property
    def skips(self) -> bool:
        """Whether steps may be skipped because guidance changes little, so that the KL of every step is read."""
        return self.threshold is not None

    def end(self, index: int) -> None:
        """Let step ``index`` run the extra branches, since rows are about to leave."""
        self._until = min(self._until, index)

    @property
    def pending(self) -> bool:
        """Whether steps were skipped whose KL has not been measured yet."""
        return bool(self._kept)

    def record(self, index: int, cond: Tensor, writing: Tensor) -> None:
        """Count a step without guidance, and keep its conditional logits (B, V) for :meth:`measure` if it was skipped.

        Args:
            writing: which rows wrote a token, (B,).
        """
        skipped = self.active(index)
        self.meter.add_unguided(writing, skipped)
        if skipped and self.guidance.branches:
            self._kept[index] = (log_softmax(cond), writing.bool())

    def measure(self, missed: Tensor, first: int) -> Tensor | None:
        """The largest KL(guided‖unguided) of the steps that were skipped, or None where none was.

        Args:
            missed: logits of the extra branches behind the tokens that they missed, (n, B, k, V).
            first: the step whose distribution the first of them belongs to.
        """
        worst: Tensor | None = None
        for place in range(missed.shape[2]):
            kept = self._kept.pop(first + place, None)
            if kept is None:
                continue
            cond, writing = kept
            step = Step.at(first + place, self.horizon)
            guided = self.guidance.combine(torch.cat([cond[None], log_softmax(missed[:, :, place])]), step)
            kl = self.meter.add_skipped(guided, cond, writing).max()
            worst = kl if worst is None else torch.maximum(worst, kl)
        self._kept.clear()
        return worst

    def observe(self, index: int, kl: float, skipped: float | None) -> None:
        """Learn from guided step ``index``: its largest KL, and that of the skip which ended with it (or None)."""
        assert self.threshold is not None
        if max(kl, skipped or 0.0) > self.threshold:
            self._calm, self._length = 0, FIRST
        elif skipped is not None:
            self._calm, self._length = PATIENCE, min(2 * self._length, LONGEST)
        else:
            self._calm += 1
        if self._calm >= PATIENCE:
            self._until = index + 1 + self._length
