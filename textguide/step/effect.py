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
class Verification:
    """How far the steps of a run are from full forward passes without cache, padding or batching.

    Args:
        steps: steps that were read again, each of one row.
        token: largest difference of the guided log-probability of the token that was written, in nats.
        distribution: largest difference of a guided log-probability of any token, in nats.
        branches: largest difference of a log-probability of any token in a single branch, in nats.
        tolerance: the largest value of ``branches`` that the rounding of the model's dtype explains, in nats.
    """

    steps: int = 0
    token: float = 0.0
    distribution: float = 0.0
    branches: float = 0.0
    tolerance: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether rounding explains the difference. NaN is a difference."""
        return self.branches <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.steps} steps verified: log-probabilities differ by up to {self.token:.2g} nats for the token, "
            f"{self.distribution:.2g} for any token, {self.branches:.2g} in a branch (tolerance {self.tolerance:.2g})"
        )


@dataclass(frozen=True)
class Effect(Shown):
    """The report on what guidance did in one run. Here, a step is one token of one row, or one denoising step of one
    row of a canvas.

    Args:
        mean_kl: mean KL(guided‖unguided) of the distributions that guidance changed, in nats.
        max_kl: the largest of these KLs.
        top_changed: share of these distributions whose most likely token changed.
        guided_steps: steps at which branches were combined or candidates reweighted.
        unguided_steps: steps that only used the conditional branch, because they were outside the window or γ(s) was 1.
        extra_passes: rows of extra branches that were read for guided steps. A row that is read once counts once,
            however many distributions it gives: on a canvas, and for guesses that are read together. Reading the
            prompt of a branch whose window opens later is not included.
        reweighed_steps: steps at which a classifier reweighted the candidates.
        classified_texts: candidates that classifiers scored.
        guided_positions: distributions that guidance changed, if a step has several of them, as on a canvas; 0: one
            per guided step.
        inside: what guidance changed inside the model that wrote the text, such as a steering vector; empty if it
            changed nothing there. ``mean_kl`` does not include this change, which :func:`textguide.explain` measures
            with one more pass.
        inside_steps: steps of the changed model.
        moved: length of what was added to the hidden states, relative to their own; mean over steps and layers. 0 if
            nothing was added.
        sampler: name of the guidance that chose the tokens, such as ``"awrs"``; empty if none did.
        sampled_steps: tokens that it chose.
        verification: how far some of the steps are from full forward passes; None without ``verify=``.
    """

    mean_kl: float = 0.0
    max_kl: float = 0.0
    top_changed: float = 0.0
    guided_steps: int = 0
    unguided_steps: int = 0
    extra_passes: int = 0
    reweighed_steps: int = 0
    classified_texts: int = 0
    guided_positions: int = 0
    inside: str = ""
    inside_steps: int = 0
    moved: float = 0.0
    sampler: str = ""
    sampled_steps: int = 0
    verification: Verification | None = None

    @property
    def changes_distributions(self) -> bool:
        """Whether guidance acted on the distributions of the next token, from outside of the model or inside."""
        return self.guided_steps > 0 or self.inside_steps > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``verification`` only if there was one."""
        values = asdict(self)
        if self.verification is None:
            del values["verification"]
        return values

    def _shown(self) -> tuple[str, Sequence[Block]]:
        return "what guidance did", [Line(str(self))]

    def __str__(self) -> str:
        parts = []
        if self.guided_steps:
            parts.append(self._guided())
        if self.reweighed_steps:
            parts.append(f"{self.classified_texts} texts classified at {self.reweighed_steps} steps")
        if self.inside_steps:
            parts.append(f"{self.inside} at {self.inside_steps} steps")
        if self.moved:
            parts.append(f"hidden states moved by {self.moved:.0%} of their length")
        if self.sampled_steps:
            parts.append(f"{self.sampled_steps} tokens drawn with {self.sampler}")
        text = ", ".join(parts) or "no guidance"
        return text if self.verification is None else f"{text}; {self.verification}"

    def _guided(self) -> str:
        steps = f"{self.guided_steps} steps"
        if self.guided_positions:
            steps = f"{self.guided_positions} positions in {steps}"
        unit = "position" if self.guided_positions else "token"
        return (
            f"KL {self.mean_kl:.3f} nats per {unit} (largest {self.max_kl:.2f}), "
            f"top token changed at {self.top_changed:.0%} of {steps}, {self.extra_passes} extra passes"
        )

    @property
    def _measured(self) -> int:
        """The distributions that ``mean_kl`` is the mean of."""
        return self.guided_positions or self.guided_steps


class EffectMeter:
    """Accumulates an :class:`Effect` on the device, without synchronising with the host at every step.

    Args:
        branches: extra branches of the guidance.
        device: where the distributions are.

    Attributes:
        classified: candidates that classifiers scored.
        inside, inside_steps, moved, sampler, sampled_steps: the fields of :class:`Effect`, set by the loop.
    """

    def __init__(self, branches: int, device: Any) -> None:
        self.branches = branches
        self._sum = torch.zeros((), device=device, dtype=torch.float64)
        self._max = torch.zeros((), device=device)
        # Distributions.
        self._changed = torch.zeros((), device=device, dtype=torch.long)
        self._positions = torch.zeros((), device=device, dtype=torch.long)
        # Steps.
        self._guided = torch.zeros((), device=device, dtype=torch.long)
        self._reweighed = torch.zeros((), device=device, dtype=torch.long)
        self._unguided = torch.zeros((), device=device, dtype=torch.long)
        self._read = torch.zeros((), device=device, dtype=torch.long)
        self._has_positions = False
        self.classified = 0
        self.inside = ""
        self.inside_steps = 0
        self.moved = 0.0
        self.sampler = ""
        self.sampled_steps = 0

    def add(
        self,
        outcome: StepOutcome,
        writing: Tensor | None = None,
        *,
        row_of: Tensor | None = None,
        is_read: bool = True,
    ) -> None:
        """Record one step of ``B`` distributions.

        Args:
            outcome: the step, with ``kl`` and ``changed`` if anything acted.
            writing: distributions a token is drawn from, bool (B,); None: all. One that is neither guided nor
                reweighted counts as unguided.
            row_of: the row that each distribution belongs to, (B,), if rows have several; None: each is a row.
            is_read: whether the branches were read for this step; False: an earlier pass read them in advance.
        """
        kl = outcome.kl
        changed = outcome.changed
        reweighted = outcome.reweighted
        self._has_positions = self._has_positions or row_of is not None
        if kl is None or changed is None:
            assert writing is not None
            self._unguided += _rows(writing, row_of)
            return
        writing = torch.ones_like(changed) if writing is None else writing
        guided = outcome.guided_rows(writing)
        acted = guided if reweighted is None else guided | (reweighted & writing)
        kl = torch.where(acted, kl, 0.0)
        self._sum += kl.sum()
        self._max = torch.maximum(self._max, kl.max())
        self._changed += (changed & acted).sum()
        self._positions += acted.sum()
        self._guided += _rows(acted, row_of)
        # All positions of a row are guided or none; reweighting may act on some of them.
        self._unguided += _rows(writing, row_of) - _rows(acted, row_of)
        if is_read:
            self._read += _rows(guided, row_of)
        if reweighted is not None:
            self._reweighed += _rows(reweighted & writing, row_of)

    def summary(self) -> Effect:
        """The report so far (synchronises with the device)."""
        positions = int(self._positions)
        measured = max(positions, 1)
        return Effect(
            mean_kl=float(self._sum) / measured,
            max_kl=float(self._max),
            top_changed=float(self._changed) / measured,
            guided_steps=int(self._guided),
            unguided_steps=int(self._unguided),
            extra_passes=int(self._read) * self.branches,
            reweighed_steps=int(self._reweighed),
            classified_texts=self.classified,
            guided_positions=positions if self._has_positions else 0,
            inside=self.inside,
            inside_steps=self.inside_steps,
            moved=self.moved,
            sampler=self.sampler,
            sampled_steps=self.sampled_steps,
        )


def _rows(chosen: Tensor, row_of: Tensor | None) -> Tensor | int:
    """The number of rows with a distribution among ``chosen``, bool (B,)."""
    return chosen.sum() if row_of is None else len(row_of[chosen].unique())


_SUMS = (
    "guided_steps",
    "unguided_steps",
    "extra_passes",
    "reweighed_steps",
    "classified_texts",
    "guided_positions",
    "inside_steps",
    "sampled_steps",
)


def join(effects: list[Effect]) -> Effect:
    """Join the reports on several runs into one."""
    measured = max(sum(one._measured for one in effects), 1)
    inside = max(sum(one.inside_steps for one in effects), 1)
    return Effect(
        mean_kl=sum(one.mean_kl * one._measured for one in effects) / measured,
        max_kl=max((one.max_kl for one in effects), default=0.0),
        top_changed=sum(one.top_changed * one._measured for one in effects) / measured,
        moved=sum(one.moved * one.inside_steps for one in effects) / inside,
        inside=next((one.inside for one in effects if one.inside), ""),
        sampler=next((one.sampler for one in effects if one.sampler), ""),
        verification=_joined([one.verification for one in effects if one.verification is not None]),
        **{name: sum(getattr(one, name) for one in effects) for name in _SUMS},
    )


def _joined(verifications: Sequence[Verification]) -> Verification | None:
    if not verifications:
        return None
    largest = {name: max(getattr(one, name) for one in verifications) for name in ("token", "distribution", "branches")}
    return Verification(
        steps=sum(one.steps for one in verifications),
        tolerance=max(one.tolerance for one in verifications),
        **largest,
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
