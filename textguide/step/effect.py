"""The effect of guidance: how far it moved the next-token distribution, and what its passes cost."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance.base import BranchGuidance, Sampling, parts_of
from ..support.errors import GuidanceHadNoEffectWarning
from ..support.showing import Block, Line, Shown
from .guided_step import StepOutcome


@dataclass(frozen=True)
class Effect(Shown):
    """The report on what guidance did in one run. Here, a step is one token of one row.

    Args:
        mean_kl: mean KL(guided‖unguided) of the next-token distribution in nats, over guided steps.
        max_kl: the largest KL of a guided step.
        top_changed: share of guided steps at which guidance changed the most likely token.
        guided_steps: steps that combined all branches.
        unguided_steps: steps that only used the conditional branch, because they were outside the window or γ(s) was 1.
        extra_passes: rows of extra branches that were run to compute a next-token distribution.
        reweighed_steps: steps at which a classifier reweighted the candidates.
        classified_texts: candidates that classifiers scored.
    """

    mean_kl: float = 0.0
    max_kl: float = 0.0
    top_changed: float = 0.0
    guided_steps: int = 0
    unguided_steps: int = 0
    extra_passes: int = 0
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
            f"KL {self.mean_kl:.3f} nats per token (largest {self.max_kl:.2f}), "
            f"top token changed at {self.top_changed:.0%} of {self.guided_steps} steps, "
            f"{self.extra_passes} extra passes"
        )
        if self.reweighed_steps:
            text += f", {self.classified_texts} texts classified at {self.reweighed_steps} steps"
        return text


class EffectMeter:
    """Accumulates an :class:`Effect` on the device, without synchronising with the host at every step."""

    def __init__(self, branches: int, device: Any) -> None:
        self.branches = branches
        self._sum = torch.zeros((), device=device, dtype=torch.float64)
        self._max = torch.zeros((), device=device)
        self._changed = torch.zeros((), device=device, dtype=torch.long)
        self._guided = torch.zeros((), device=device, dtype=torch.long)
        self._branched = torch.zeros((), device=device, dtype=torch.long)
        self._reweighed = torch.zeros((), device=device, dtype=torch.long)
        self._unguided = torch.zeros((), device=device, dtype=torch.long)
        self.classified = 0

    def add(self, outcome: StepOutcome, writing: Tensor | None = None) -> None:
        """Record one step of ``B`` rows.

        Args:
            outcome: the step, with ``kl`` and ``changed`` if anything acted.
            writing: rows that wrote a token, bool (B,); None: all rows. If a row is neither guided nor reweighted, it
                counts as unguided.
        """
        kl = outcome.kl
        changed = outcome.changed
        reweighted = outcome.reweighted
        if kl is None or changed is None:
            assert writing is not None
            self._unguided += writing.sum()
            return
        writing = torch.ones_like(changed) if writing is None else writing
        guided = outcome.guided_rows(writing)
        acted = guided if reweighted is None else guided | (reweighted & writing)
        kl = torch.where(acted, kl, 0.0)
        self._sum += kl.sum()
        self._max = torch.maximum(self._max, kl.max())
        self._changed += (changed & acted).sum()
        self._guided += acted.sum()
        self._branched += guided.sum()
        self._unguided += (writing & ~acted).sum()
        if reweighted is not None:
            self._reweighed += (reweighted & writing).sum()

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
            reweighed_steps=int(self._reweighed),
            classified_texts=self.classified,
        )


def join(effects: list[Effect]) -> Effect:
    """Join the reports on several runs into one."""
    steps = max(sum(e.guided_steps for e in effects), 1)
    return Effect(
        mean_kl=sum(e.mean_kl * e.guided_steps for e in effects) / steps,
        max_kl=max((e.max_kl for e in effects), default=0.0),
        top_changed=sum(e.top_changed * e.guided_steps for e in effects) / steps,
        guided_steps=sum(e.guided_steps for e in effects),
        unguided_steps=sum(e.unguided_steps for e in effects),
        extra_passes=sum(e.extra_passes for e in effects),
        reweighed_steps=sum(e.reweighed_steps for e in effects),
        classified_texts=sum(e.classified_texts for e in effects),
    )


def warn_if_none(effect: Effect, guidance: Any) -> None:
    """Warn if guidance changed nothing, because it was never active or its branches agreed."""
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
            "prompt (the last token of a prompt of one token is the prompt: pass a negative prompt, or begin it with "
            "BOS), or does its classifier return the same score for every candidate?"
        )
    else:
        return
    warnings.warn(f"{guidance} changed nothing: {reason}", GuidanceHadNoEffectWarning, stacklevel=3)
