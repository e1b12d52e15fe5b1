"""Adaptive classifier-free guidance for masked diffusion (arXiv 2505.20199)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import algebra, schedules
from .base import About, Guidance, Step
from .needs import Need
from .validation import factor, finite, window

SCOPES = ("all", "generated", "prompt")


@dataclass(frozen=True)
class ACFG(Guidance):
    """Move the distribution away from what the model says once the tokens it is least sure of are masked again.

    Algorithm 1: of the filled positions ``C`` the ``⌈ρ|C|⌉`` with the lowest top probability are masked again, a second
    pass reads that text, and ``L = Lu + γ (Lc − Lu)`` on normalised log-probabilities. Steers masked diffusion models
    (:mod:`textguide.diffusion`) and no autoregressive one. Costs a second pass a step, which has to wait for the first.

    Args:
        scale: γ = w + 1 for the paper's weight ``w``, which is one of 0.5, 1, 1.5, 2. 1 changes nothing.
        remask_ratio: ρ in [0, 1]; the paper's ablation is best at 0.7.
        remask_scope: what counts as filled: ``all`` (Algorithm 1: the prompt and what was generated), ``generated``
            (section 4.1.3) or ``prompt``.
        schedule: how γ moves with the share of the canvas that is filled; a name of ``textguide.guidance.schedules``.
        one_pass: rank positions by the confidences of the step before, so that both branches ride in one forward pass.
            An approximation; the first step of a text, which has no step before it, runs both passes.
        start: share of the canvas, in [0, 1], before which guidance is off.
        stop: share of the canvas behind which guidance is off.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    scale: float = 1.5
    remask_ratio: float = 0.7
    remask_scope: str = "all"
    schedule: str = "constant"
    one_pass: bool = False
    start: float = 0.0
    stop: float = 1.0

    name = "acfg"
    about = About(
        "2505.20199", "lu + γ (lc − lu), u the text with its least sure tokens masked again",
        "one pass behind the first; with `one_pass` a row in it", "γ = 1, or ρ = 0", "masked diffusion models",
    )  # fmt: skip

    def __post_init__(self) -> None:
        start, stop = window(self.start, self.stop)
        ratio = finite("remask_ratio", self.remask_ratio)
        self._put(scale=factor("scale", self.scale), remask_ratio=ratio, start=start, stop=stop)
        if not 0.0 <= self.remask_ratio <= 1.0:
            raise ValueError(f"remask_ratio={self.remask_ratio} must lie in [0, 1]; the paper uses 0.7")
        if self.remask_scope not in SCOPES:
            raise ValueError(f"remask_scope={self.remask_scope!r} is unknown; use one of {', '.join(SCOPES)}")
        schedules.parse(self.schedule)
        if not isinstance(self.one_pass, bool):
            raise ValueError(f"one_pass={self.one_pass!r} must be True or False")

    @property
    def needs(self) -> frozenset[Need]:
        """A text whose tokens can be masked again."""
        return frozenset({Need.CANVAS})

    @property
    def is_neutral(self) -> bool:
        """γ(s) is 1 at every step, or nothing is ever masked again."""
        return self.scale == 1.0 or self.remask_ratio == 0.0

    def scale_at(self, step: Step) -> float | Tensor:
        """γ(s): the schedule's value, 1 outside the window."""
        progress: Any = step.progress
        return schedules.scale_at(self.schedule, self.scale, progress, self.start, self.stop)

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """``Lu + γ (Lc − Lu)``, normalised, of ``logp`` (2, ..., V): the text as it is, the text masked again."""
        return algebra.log_softmax(algebra.extrapolate(logp[0], logp[1], self.scale_at(step)))


def remask_count(ratio: float, filled: Tensor) -> Tensor:
    """``⌈ρ|C|⌉`` for numbers of filled positions, any shape.

    A product that misses a whole number by rounding alone (0.1 · 30 = 3.0000000000000004) counts as that number.
    """
    return torch.ceil(ratio * filled.double() - 1e-9).clamp(min=0).long()


def remask(confidence: Tensor, filled: Tensor, ratio: float) -> Tensor:
    """The positions to mask again.

    Args:
        confidence: the model's top probability at each position, (B, L).
        filled: which positions are candidates, bool (B, L).
        ratio: ρ.

    Returns:
        Bool (B, L): the ``⌈ρ|C|⌉`` candidates of each row with the lowest confidence, the leftmost first among equals.
    """
    worst_first = confidence.masked_fill(~filled, float("inf")).argsort(dim=-1, stable=True)
    rank = torch.empty_like(worst_first).scatter_(-1, worst_first, _places(worst_first))
    return filled & (rank < remask_count(ratio, filled.sum(-1, keepdim=True)))


def _places(like: Tensor) -> Tensor:
    return torch.arange(like.shape[-1], device=like.device).expand_as(like)
