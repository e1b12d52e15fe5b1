"""What guidance did: how far it moved the next-token distribution, and what its passes cost."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance.algebra import kl_divergence
from ..guidance.base import BranchGuidance, Sampling, parts_of
from ..support.errors import GuidanceHadNoEffectWarning
from ..support.showing import Block, Line, Shown


@dataclass(frozen=True)
class Effect(Shown):
    """A report on one run. A step here is one token of one row.

    Args:
        mean_kl: mean KL(guided‖unguided) of the next-token distribution in nats, over guided steps.
        max_kl: the largest of them.
        top_changed: share of guided steps whose most likely token was another one without guidance.
        guided_steps: steps that combined all branches.
        unguided_steps: steps decoded from the conditional branch alone: outside the window, at γ(s) = 1, or skipped.
        extra_passes: rows of extra branches that were run to give a next-token distribution.
        skipped_passes: rows of extra branches that ``skip_threshold`` left out.
        max_skipped_kl: the largest KL that guidance would have caused at a skipped step, measured by re-reading
            those steps; None where nothing was skipped.
        reweighed_steps: steps at which a classifier weighed the candidates.
        classified_texts: candidates that classifiers were asked about.
    """

    mean_kl: float = 0.0
    max_kl: float = 0.0
    top_changed: float = 0.0
    guided_steps: int = 0
    unguided_steps: int = 0
    extra_passes: int = 0
    skipped_passes: int = 0
    max_skipped_kl: float | None = None
    reweighed_steps: int = 0
    classified_texts: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def _shown(self) -> tuple[str, Sequence[Block]]:
        return "what guidance did", [Line(str(self))]

    def __str__(self) -> str:
        if not self.guided_steps:
            return "no guidance"
        text = (
            f"KL {self.mean_kl:.3f} nats a token (largest {self.max_kl:.2f}), "
            f"top token changed at {self.top_changed:.0%} of {self.guided_steps} steps, "
            f"{self.extra_passes} extra passes"
        )
        if self.skipped_passes:
            text += f", {self.skipped_passes} skipped"
            if self.max_skipped_kl is not None:
                text += f" (largest KL skipped {self.max_skipped_kl:.4f})"
        if self.reweighed_steps:
            text += f", {self.classified_texts} texts classified at {self.reweighed_steps} steps"
        return text


class EffectMeter:
    """Gathers an :class:`Effect` on the device, without a host synchronisation a step."""

    def __init__(self, branches: int, device: Any) -> None:
        self.branches = branches
        self._sum = torch.zeros((), device=device, dtype=torch.float64)
        self._max = torch.zeros((), device=device)
        self._changed = torch.zeros((), device=device, dtype=torch.long)
        self._skipped_max = torch.zeros((), device=device)
        self._measured_skips = False
        self._guided = torch.zeros((), device=device, dtype=torch.long)
        self._branched = torch.zeros((), device=device, dtype=torch.long)
        self._reweighed = torch.zeros((), device=device, dtype=torch.long)
        self._unguided = torch.zeros((), device=device, dtype=torch.long)
        self._skipped = torch.zeros((), device=device, dtype=torch.long)
        self.classified = 0

    def add(
        self,
        guided: Tensor,
        cond: Tensor,
        weights: Tensor | None = None,
        branched: Tensor | None = None,
        reweighed: Tensor | None = None,
    ) -> Tensor:
        """Record one step of rows (B, V) and return their KL(guided‖cond), (B,).

        Args:
            weights: 1 for rows that count and 0 for rows that do not, (B,); None: all count.
            branched: those of them whose extra branches ran, bool (B,); None: all.
            reweighed: those of them whose candidates were weighed, bool (B,); None: none.
        """
        if reweighed is None:  # reweighed distributions are normalised
            guided = torch.log_softmax(guided, dim=-1)
        kl = kl_divergence(guided, cond)
        changed = guided.argmax(-1) != cond.argmax(-1)
        if weights is not None:
            counts = weights.bool()
            kl, changed = torch.where(counts, kl, 0.0), changed & counts
        self._sum += kl.sum()
        self._max = torch.maximum(self._max, kl.max())
        self._changed += changed.sum()
        count = guided.shape[0] if weights is None else weights.sum().long()
        self._guided += count
        self._branched += count if branched is None else branched.sum()
        if reweighed is not None:
            self._reweighed += reweighed.sum()
        return kl

    def add_unguided(self, rows: Tensor, skipped: bool = False, taken_back: bool = False) -> None:
        """Count the steps of ``rows``, 0 or 1 each (B,), as unguided, and as skipped; or take such a count back."""
        self._unguided += -rows.sum().long() if taken_back else rows.sum().long()
        if skipped:
            self._skipped += rows.sum().long()

    def add_skipped(self, guided: Tensor, cond: Tensor, writing: Tensor) -> Tensor:
        """Record what guidance would have done at a skipped step; the KL of the rows that it wrote, else 0, (B,)."""
        kl = torch.where(writing, kl_divergence(torch.log_softmax(guided, dim=-1), cond), 0.0)
        self._skipped_max = torch.maximum(self._skipped_max, kl.max())
        self._measured_skips = True
        return kl

    def summary(self) -> Effect:
        """The report so far (synchronises with the device)."""
        guided = int(self._guided)
        steps = max(guided, 1)
        return Effect(
            mean_kl=float(self._sum) / steps,
            max_kl=float(self._max),
            top_changed=float(self._changed) / steps,
            guided_steps=guided,
            unguided_steps=int(self._unguided),
            extra_passes=int(self._branched) * self.branches,
            skipped_passes=int(self._skipped) * self.branches,
            max_skipped_kl=float(self._skipped_max) if self._measured_skips else None,
            reweighed_steps=int(self._reweighed),
            classified_texts=self.classified,
        )


def join(effects: list[Effect]) -> Effect:
    """The report on several runs together."""
    steps = max(sum(e.guided_steps for e in effects), 1)
    skipped = [e.max_skipped_kl for e in effects if e.max_skipped_kl is not None]
    return Effect(
        mean_kl=sum(e.mean_kl * e.guided_steps for e in effects) / steps,
        max_kl=max((e.max_kl for e in effects), default=0.0),
        top_changed=sum(e.top_changed * e.guided_steps for e in effects) / steps,
        guided_steps=sum(e.guided_steps for e in effects),
        unguided_steps=sum(e.unguided_steps for e in effects),
        extra_passes=sum(e.extra_passes for e in effects),
        skipped_passes=sum(e.skipped_passes for e in effects),
        max_skipped_kl=max(skipped) if skipped else None,
        reweighed_steps=sum(e.reweighed_steps for e in effects),
        classified_texts=sum(e.classified_texts for e in effects),
    )


def warn_if_none(effect: Effect, guidance: Any) -> None:
    """Warn where guidance ran and moved nothing: the branches said the same, or it was never active."""
    parts = parts_of(guidance)
    # A constraint moves no distribution that is measured here, and neither does what acts inside the model.
    if all(part.is_neutral or isinstance(part, Sampling) for part in parts):
        return
    if any(isinstance(part, BranchGuidance) and part.view is not None for part in parts):
        return
    if effect.guided_steps == 0:
        reason = "no step fell into its window of activity, or above its entropy threshold"
    elif effect.max_kl <= 1e-6:
        reason = (
            "it gave the same next-token distribution as plain decoding at every step. Do its branches read the same "
            "prompt (the last token of a prompt of one token is the prompt: give a negative prompt, or begin it with "
            "BOS), or does its classifier say the same of every candidate?"
        )
    else:
        return
    warnings.warn(f"{guidance} changed nothing: {reason}", GuidanceHadNoEffectWarning, stacklevel=3)
