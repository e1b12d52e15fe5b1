"""Base classes of guidances with a scale: its schedule, its bounds and its window."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..support.checks import factor, flag, number_from, window
from . import algebra, schedules
from .base import Branch, BranchGuidance, Step
from .prompts import as_prompts


@dataclass(frozen=True)
class Scaled(BranchGuidance):
    """A branch to move away from, with a scale γ that may change with progress.

    Subclasses define the branch. :meth:`mix` is ``lu + γ (lc − lu)`` unless they override it; a subclass that does so
    sets :attr:`off_at_one` to whether γ = 1 changes nothing. :meth:`acts` is the only place that decides whether a
    step is guided: for one step and for many, in generation and in scoring.

    Args:
        scale: γ. 1 changes nothing, above 1 moves away from the other branch, 0 samples from it.
        schedule: how γ changes with progress; a name from ``textguide.guidance.schedules``.
        renormalize: return normalised log-probabilities. Penalties such as ``repetition_penalty`` act on these plus
            the normaliser of the conditional logits; if False, on the result of the rule as it is.
        skip_threshold: deprecated and ignored; every step runs the extra branch.
        min_scale: lower bound on γ(s).
        max_scale: upper bound on γ(s).
        start: progress, in [0, 1], before which guidance is off.
        stop: progress after which guidance is off.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    scale: float = 1.5
    schedule: str = field(default="constant", kw_only=True)
    renormalize: bool = field(default=True, kw_only=True)
    skip_threshold: float | None = field(default=None, kw_only=True)
    min_scale: float | None = field(default=None, kw_only=True)
    max_scale: float | None = field(default=None, kw_only=True)
    start: float = field(default=0.0, kw_only=True)
    stop: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        self._put(scale=factor("scale", self.scale))
        flag("renormalize", self.renormalize)
        schedules.parse(self.schedule)
        for name in ("min_scale", "max_scale"):
            if getattr(self, name) is not None:
                self._put(**{name: factor(name, getattr(self, name))})
        if self.min_scale is not None and self.max_scale is not None and self.min_scale > self.max_scale:
            raise ValueError(f"min_scale={self.min_scale} is larger than max_scale={self.max_scale}; swap them")
        if self.skip_threshold is not None:
            self._put(skip_threshold=number_from("skip_threshold", self.skip_threshold, 0, "or None"))
            warnings.warn(
                f"skip_threshold={self.skip_threshold} is ignored: leaving branches out saved no time on any machine; "
                "leave it out",
                DeprecationWarning,
                stacklevel=4,
            )
        start, stop = window(self.start, self.stop)
        self._put(start=start, stop=stop)

    @property
    def off_at_one(self) -> bool:
        """Whether γ = 1 changes nothing. False for an overridden :meth:`mix`, unless this is overridden as well."""
        return type(self).mix is Scaled.mix

    @property
    def is_neutral(self) -> bool:
        """Whether γ(s) is 1 at every step, and 1 changes nothing."""
        return self.scale == 1.0 and self.off_at_one and self._bounded(1.0) == 1.0

    @property
    def is_timed(self) -> bool:
        """Whether a schedule or a window changes γ."""
        return self.schedule != "constant" or (self.start, self.stop) != (0.0, 1.0)

    def acts(self, step: Step) -> bool | Tensor:
        """Whether the guided log-probabilities are those of :meth:`mix`: inside the window, at a scale that counts.

        Bool, or a bool tensor (B, 1) if the rows have different progress.
        """
        fixed = self._fixed_scale
        if fixed is not None and step.scales is None and not isinstance(step.progress, Tensor):
            return fixed != 1.0 or not self.off_at_one
        if not self.off_at_one:
            return self.inside(step)
        return self.scale_at(step) != 1.0  # it is 1 outside the window

    def active(self, step: Step) -> bool:
        """:meth:`acts` at one step."""
        return bool(self.acts(step))

    def inside(self, step: Step) -> bool | Tensor:
        """Whether the step is inside the window: bool, or a bool tensor (B, 1) if the rows have different progress."""
        if step.scales is not None:  # only rows inside their own windows are computed together
            return True
        return schedules.inside(step.progress, self.start, self.stop)

    def scale_at(self, step: Step) -> float | Tensor:
        """γ(s): the schedule's value within the bounds, 1 outside the window."""
        if step.scales is not None:
            return step.scales
        progress: Any = step.progress
        if self._fixed_scale is not None and not isinstance(progress, Tensor):
            return self._fixed_scale
        inside = self.inside(step)
        if isinstance(inside, Tensor):
            scale = self._bounded(schedules.scale_at(self.schedule, self.scale, progress))
            return torch.where(inside, scale, torch.ones_like(progress))
        if not inside:
            return 1.0
        return self._bounded(schedules.scale_at(self.schedule, self.scale, progress))

    @cached_property
    def _fixed_scale(self) -> float | None:
        """γ(s) at every step, if neither a schedule nor a window changes it; otherwise None.

        Decoding reads the scale several times per step, and this saves the schedule and the window each time.
        """
        if self.schedule != "constant" or (self.start, self.stop) != (0.0, 1.0):
            return None
        # The schedule's formula rounds: 1 + (0.1 − 1) is not 0.1. So it computes this value as well.
        return float(self._bounded(schedules.scale_at(self.schedule, self.scale, 0.0)))

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """:meth:`mix` at γ(s) on ``logp`` (n, B, V); the conditional branch for rows that are not guided."""
        acts = self.acts(step)
        if isinstance(acts, Tensor):
            return torch.where(acts, self.mix(logp, self.scale_at(step), step), logp[0])
        return self.mix(logp, self.scale_at(step), step) if acts else logp[0]

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """Scores (B, V) from the branches (n, B, V), not normalised; ``logp[0]`` if it is the only branch.

        Args:
            scale: γ(s), a number or (B, 1).
        """
        return algebra.extrapolate(logp[0], logp[1], scale) if len(logp) > 1 else logp[0]

    @property
    @abstractmethod
    def branches(self) -> tuple[Branch, ...]:
        """The branch to move away from, and others."""

    @property
    def ignores_shifts(self) -> bool:
        """Only for ``lu + γ (lc − lu)``: its two weights add up to 1."""
        return type(self).mix is Scaled.mix and type(self).combine is Scaled.combine

    @property
    def is_elementwise(self) -> bool:
        """Only for ``lu + γ (lc − lu)``."""
        return self.ignores_shifts

    @property
    def rule(self) -> Hashable:
        """The class, and the fields that :meth:`mix` may read. The scale and its schedule may differ per row."""
        if (type(self).combine, type(self).scale_at, type(self).acts) != (Scaled.combine, Scaled.scale_at, Scaled.acts):
            return self
        if type(self).mix is Scaled.mix:
            return type(self), self.renormalize
        per_row = {field.name for field in fields(Contrast)} - {"renormalize"}
        own = [getattr(self, field.name) for field in fields(self) if field.name not in per_row]
        return type(self), *own, len(self.branches)

    def step_of_rows(self, guidances: Sequence[BranchGuidance], steps: Sequence[Step]) -> Step:
        """One step with the scale of every row. Every row has to be active."""
        together = super().step_of_rows(guidances, steps)
        scales = [[float(one.scale_at(step))] for one, step in zip(guidances, steps, strict=True)]  # type: ignore[attr-defined]
        return replace(together, scales=torch.tensor(scales))

    def _bounded(self, scale: Any) -> Any:
        if isinstance(scale, Tensor):
            if self.min_scale is None and self.max_scale is None:
                return scale
            return scale.clamp(self.min_scale, self.max_scale)
        if self.min_scale is not None:
            scale = max(scale, self.min_scale)
        return scale if self.max_scale is None else min(scale, self.max_scale)


@dataclass(frozen=True)
class Contrast(Scaled):
    """A scaled guidance whose other branch reads another prompt: the two passes of classifier-free guidance.

    Args:
        negative_prompt: the context to move away from: a text, token ids or chat messages, for all rows; or a list
            with one of these per row. A negative prompt that repeats the prompt with one change works better than a
            bare word. None: the last token of the prompt (for an encoder-decoder, an empty source).
        negative_system: keep the user's chat, but replace its system prompt with this one; excludes
            ``negative_prompt``.
    """

    negative_prompt: Any = None
    negative_system: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(negative_prompt=as_prompts(self.negative_prompt, "negative_prompt"))
        if self.negative_prompt is not None and self.negative_system is not None:
            raise ValueError("negative_prompt and negative_system exclude each other; put both into chat messages")
        if self.negative_system is not None and not isinstance(self.negative_system, str):
            raise ValueError(f"negative_system={self.negative_system!r} must be a text, or None")

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The unconditional branch."""
        return (Branch(prompt=self.negative_prompt, system=self.negative_system),)
