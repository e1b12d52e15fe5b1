"""Classifier-free guidance for language models (Sanchez et al., arXiv 2306.17806)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import algebra, schedules
from .base import Branch, BranchGuidance, Step, finite
from .prompts import as_prompts


@dataclass(frozen=True)
class CFG(BranchGuidance):
    """Move the next-token law away from what the model says without the prompt.

    ``log P̂(w) = log P(w|u) + γ (log P(w|c) − log P(w|u))`` (Eq. 7), with ``c`` the prompt and ``u`` a context to move
    away from: the last token of the prompt where nothing else is given (section 3.1), else a negative prompt (Eq. 5).
    Costs one extra row in the same forward pass per row that is decoded.

    Args:
        scale: γ. 1 changes nothing, above 1 follows the prompt more closely, 0 samples from the other branch.
            The paper uses 1.5 on benchmarks, 1.1 to 1.5 for code, 3 with negative system prompts.
        negative_prompt: the context to move away from: a text, token ids or chat messages, for all rows; or a list
            with one of these per row. A negative prompt that repeats the prompt with one change works better than a
            bare word. None: the last token of the prompt (for an encoder-decoder an empty source).
        negative_system: keep the user's chat and swap its system prompt for this one; excludes ``negative_prompt``.
        schedule: how γ moves with progress; a name of ``textguide.guidance.schedules``.
        renormalize: return normalised log-probabilities. False gives the published evaluation's sums of
            ``γ·lc + (1 − γ)·lu``; the sampled law is the same either way.
        skip_threshold: None runs the extra branch at every step. Otherwise a row whose guided law has stood within
            this many nats of the unguided one, KL(guided‖unguided), leaves its extra branch out for some steps.
            The skipped steps are re-read later, and the largest KL among them is reported.
        min_scale: lower bound on γ(s).
        max_scale: upper bound on γ(s).
        start: progress, in [0, 1], before which guidance is off.
        stop: progress after which guidance is off.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    scale: float = 1.5
    negative_prompt: Any = None
    negative_system: str | None = None
    schedule: str = "constant"
    renormalize: bool = True
    skip_threshold: float | None = None
    min_scale: float | None = None
    max_scale: float | None = None
    start: float = 0.0
    stop: float = 1.0

    name = "cfg"

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("scale", finite("scale", self.scale))
        put("negative_prompt", as_prompts(self.negative_prompt, "negative_prompt"))
        if self.negative_prompt is not None and self.negative_system is not None:
            raise ValueError("negative_prompt and negative_system exclude each other; put both into chat messages")
        if self.negative_system is not None and not isinstance(self.negative_system, str):
            raise ValueError(f"negative_system={self.negative_system!r} must be a text, or None")
        if not isinstance(self.renormalize, bool):
            raise ValueError(f"renormalize={self.renormalize!r} must be True or False")
        schedules.parse(self.schedule)
        for name in ("min_scale", "max_scale", "skip_threshold"):
            if getattr(self, name) is not None:
                put(name, finite(name, getattr(self, name)))
        if self.min_scale is not None and self.max_scale is not None and self.min_scale > self.max_scale:
            raise ValueError(f"min_scale={self.min_scale} lies above max_scale={self.max_scale}; swap them")
        if self.skip_threshold is not None and self.skip_threshold < 0:
            raise ValueError(f"skip_threshold={self.skip_threshold} must be 0 or more nats, or None")
        put("start", finite("start", self.start))
        put("stop", finite("stop", self.stop))
        if not 0.0 <= self.start <= self.stop <= 1.0:
            raise ValueError(f"start={self.start} and stop={self.stop} must satisfy 0 <= start <= stop <= 1")

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The unconditional branch."""
        return (Branch(prompt=self.negative_prompt, system=self.negative_system),)

    @property
    def is_neutral(self) -> bool:
        """γ(s) is 1 at every step."""
        return self.scale == 1.0 and self._bounded(1.0) == 1.0

    def active(self, step: Step) -> bool:
        """Inside the window, at a scale other than 1."""
        return bool(self.scale_at(step) != 1.0)

    def scale_at(self, step: Step) -> float | Tensor:
        """γ(s): the schedule's value within the bounds, 1 outside the window."""
        progress: Any = step.progress
        if isinstance(progress, Tensor):
            scale = self._bounded(schedules.scale_at(self.schedule, self.scale, progress))
            inside = (progress >= self.start) & (progress <= self.stop)
            return torch.where(inside, scale, torch.ones_like(progress))
        if not self.start <= progress <= self.stop:
            return 1.0
        return self._bounded(schedules.scale_at(self.schedule, self.scale, progress))

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """Equation 7 on ``logp`` (2, B, V): conditional, unconditional."""
        guided = algebra.extrapolate(logp[0], logp[1], self.scale_at(step))
        return algebra.log_softmax(guided) if self.renormalize else guided

    def _bounded(self, scale: Any) -> Any:
        if isinstance(scale, Tensor):
            if self.min_scale is None and self.max_scale is None:
                return scale
            return scale.clamp(self.min_scale, self.max_scale)
        if self.min_scale is not None:
            scale = max(scale, self.min_scale)
        return scale if self.max_scale is None else min(scale, self.max_scale)


def scale_from_weight(weight: float) -> float:
    """γ for a paper whose formula is ``lu + (w + 1)(lc − lu)`` and off at 0: LLaDA's ``cfg_scale``, A-CFG's ``w``,
    the α of context-aware decoding, the k of token perturbation guidance."""
    return finite("weight", weight) + 1.0


def weight_from_scale(scale: float) -> float:
    """The inverse of :func:`scale_from_weight`."""
    return finite("scale", scale) - 1.0
