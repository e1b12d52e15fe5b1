"""Adaptive classifier-free guidance for masked diffusion (arXiv 2505.20199)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..support.checks import flag, one_of, share
from .base import About, Branch
from .edits import Edit, Encode
from .needs import Need
from .prompts import Prompt
from .scaled import Scaled

SCOPES = ("all", "generated", "prompt")


class CanvasEdit(Edit):
    """A change to the canvas of a masked diffusion model. It only runs where canvases are filled.

    Attributes:
        guidance: name of the guidance that the edit belongs to, for error messages.
    """

    guidance: ClassVar[str]

    def apply(self, ids: list[int], prompt: Prompt | None, encode: Encode) -> list[int]:
        """Raise an error, because a text that is generated from left to right does not have a canvas.

        Raises:
            ValueError: always.
        """
        from .places import place  # it imports the guidances

        reason = place("generate").lacks[Need.CANVAS]
        raise ValueError(f"guidance {self.guidance!r} {Need.CANVAS.value}, and {reason}; use {place('diffusion').call}")


@dataclass(frozen=True)
class Remasked(CanvasEdit):
    """The canvas of a masked diffusion model with its least confident positions masked again.

    Args:
        ratio: ρ, the share of the filled positions to mask again.
        scope: which positions count as filled; see :class:`ACFG`.
        one_pass: rank positions by the confidences of the previous step.
    """

    ratio: float = 0.7
    scope: str = "all"
    one_pass: bool = False

    guidance = "acfg"


@dataclass(frozen=True)
class ACFG(Scaled):
    """Move away from the model's prediction for a canvas whose least confident tokens are masked again.

    Algorithm 1 of the paper: of the filled positions ``C``, the ``⌈ρ|C|⌉`` with the lowest top probability are masked
    again, a second pass reads the result, and ``L = Lu + γ (Lc − Lu)`` on normalised log-probabilities. ACFG only
    works with masked diffusion models (:mod:`textguide.diffusion`). It costs a second pass per step, which has to wait
    for the first one.

    Args:
        scale: γ = w + 1, if ``w`` is the paper's weight (0.5, 1, 1.5 or 2). 1 changes nothing.
        remask_ratio: ρ in [0, 1]; 0.7 is best in the paper's ablation.
        remask_scope: which positions count as filled: ``all`` (Algorithm 1: the prompt and the generated tokens),
            ``generated`` (section 4.1.3) or ``prompt``.
        one_pass: rank positions by the confidences of the previous step, so that both branches fit into one forward
            pass. This is an approximation. The first step of a text has no previous step and runs both passes.

    The schedule and the window follow the share of the canvas that is filled.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    remask_ratio: float = 0.7
    remask_scope: str = "all"
    one_pass: bool = False

    name = "acfg"
    about = About(
        paper="2505.20199",
        rule="lu + γ (lc − lu), u the canvas with its least confident tokens masked again",
        passes="a second pass per step; with `one_pass`, one row in the same pass",
        neutral="γ = 1, or ρ = 0",
        helps="masked diffusion models",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(remask_ratio=share("remask_ratio", self.remask_ratio, "the paper uses 0.7"))
        one_of("remask_scope", self.remask_scope, SCOPES)
        flag("one_pass", self.one_pass)

    @property
    def is_neutral(self) -> bool:
        """Whether γ(s) is 1 at every step, or nothing is masked again."""
        return super().is_neutral or self.remask_ratio == 0.0

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The canvas, masked again."""
        return (Branch(edit=Remasked(self.remask_ratio, self.remask_scope, self.one_pass)),)

    @property
    def needs(self) -> frozenset[Need]:
        """A canvas."""
        return frozenset({Need.CANVAS})


def remask_count(ratio: float, filled: Tensor) -> Tensor:
    """``⌈ρ|C|⌉`` for numbers of filled positions, any shape.

    If a product differs from a whole number only by rounding (0.1 · 30 = 3.0000000000000004), it counts as that number.
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
    ranks = torch.arange(worst_first.shape[-1], device=worst_first.device).expand_as(worst_first)
    rank = torch.empty_like(worst_first).scatter_(-1, worst_first, ranks)
    return filled & (rank < remask_count(ratio, filled.sum(-1, keepdim=True)))
