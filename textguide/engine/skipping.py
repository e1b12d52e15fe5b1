"""When the extra branches of a row may rest, and what that did to the law.

A row sleeps while its guidance is inactive (outside the window, γ(s) = 1), and naps when ``skip_threshold`` is set and
its guided law has stood within that many nats of the unguided one for a while. Naps grow while they prove harmless.
Every step that was napped through is re-read afterwards, so that the reported largest KL is measured, not hoped for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..guidance.algebra import log_softmax
from ..guidance.base import BranchGuidance, Step
from .branch_passes import Law, Passes
from .effect import EffectMeter

PATIENCE = 4
# Naps begin and end at multiples of this many steps, so that rows fall asleep and wake together: a row that wakes
# alone costs a pass of its own.
FIRST_NAP = 8
LONGEST_NAP = 64


@dataclass
class _Row:
    calm: int = 0
    nap: int = FIRST_NAP
    wake_at: int | None = None  # index of the step at which a nap ends


class Naps:
    """Keeps the rows of one run asleep or awake; all decisions are taken on the host, between steps."""

    def __init__(self, guidance: BranchGuidance, horizon: int, samples: int, meter: EffectMeter) -> None:
        self.guidance = guidance
        self.horizon = horizon
        self.meter = meter
        self.threshold = guidance.skip_threshold
        self._rows = [_Row() for _ in range(samples)]
        # Conditional laws of the steps that somebody naps through, by step: (samples, log-probabilities).
        self._slept: dict[int, tuple[list[int], Tensor]] = {}

    def active(self, index: int) -> bool:
        """Whether guidance counts at step ``index``."""
        return self.guidance.active(Step.at(index, self.horizon))

    @property
    def reads_kl(self) -> bool:
        """Whether :meth:`observe` wants the KL of every step."""
        return self.threshold is not None

    def remember(self, index: int, law: Law, alive: list[int]) -> None:
        """Keep the conditional law of a step that some row naps through."""
        if any(self._rows[sample].wake_at is not None for sample in alive):
            self._slept[index] = (list(alive), log_softmax(law.cond))

    def measure(self, woken: list[tuple[list[int], Tensor]], index: int, last_is_current: bool) -> dict[int, Tensor]:
        """The largest KL(guided‖unguided) that each sample of ``woken`` slept through, as tensors.

        Args:
            index: the step whose law the last logits of ``woken`` belong to.
            last_is_current: leave that step out, since it is guided and not slept through.
        """
        worst: dict[int, Tensor] = {}
        for samples, logits in woken:
            last = logits.shape[2]
            for j in range(last - int(last_is_current)):
                step = index - (last - 1 - j)
                if step not in self._slept:
                    continue
                known, cond = self._slept[step]
                rows = [r for r, sample in enumerate(samples) if sample in known]
                if not rows:
                    continue
                lc = cond[[known.index(samples[r]) for r in rows]]
                lu = log_softmax(logits[:, rows, j])
                guided = self.guidance.combine(torch.cat([lc[None], lu]), Step.at(step, self.horizon))
                for r, kl in zip(rows, self.meter.add_skipped(guided, lc), strict=True):
                    before = worst.get(samples[r])
                    worst[samples[r]] = kl if before is None else torch.maximum(before, kl)
        return worst

    def observe(self, index: int, kl: dict[int, float], slept: dict[int, float]) -> None:
        """Learn from the step just taken: the KL of guided samples, and the worst KL of naps that ended with it."""
        if self.threshold is None:
            return
        for sample, value in kl.items():
            row = self._rows[sample]
            row.wake_at = None
            worst = max(value, slept.get(sample, 0.0))
            if worst > self.threshold:
                row.calm, row.nap = 0, FIRST_NAP
            elif sample in slept:
                row.calm, row.nap = PATIENCE, min(2 * row.nap, LONGEST_NAP)
            else:
                row.calm += 1
            if row.calm >= PATIENCE and (index + 1) % FIRST_NAP == 0:
                row.wake_at = index + row.nap
        if not any(row.wake_at is not None for row in self._rows):
            self._slept.clear()

    def settle(self, passes: Passes, next_index: int) -> list[int]:
        """Put rows to sleep for step ``next_index``; the samples that have to wake for it."""
        if not self.guidance.branches:
            return []
        asleep = set(passes.sleepers())
        active = self.active(next_index)

        def rests(sample: int) -> bool:
            wake_at = self._rows[sample].wake_at
            return not active or (wake_at is not None and next_index < wake_at)

        tired = [sample for sample in passes.alive if rests(sample) and sample not in asleep]
        if tired:
            passes.sleep(tired)
        return [sample for sample in passes.alive if not rests(sample) and sample in asleep]

    def count(self, index: int, unguided: Sequence[int]) -> None:
        """Record the samples that step ``index`` decodes without guidance."""
        self.meter.unguided += len(unguided)
        if self.active(index):
            self.meter.skipped += len(unguided)
