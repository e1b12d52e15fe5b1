"""A constraint on the whole text of a canvas, applied at every step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..denoisers import Denoiser

Uniform = Callable[[Sequence[int], Sequence[int], int], Tensor]
"""Returns float64 draws from [0, 1), (sum of counts, width), for rows of the batch, the number of draws of each, and a
width."""


@dataclass(frozen=True)
class StepDistributions:
    """The distributions of one step at all masked positions of some rows, and at filled ones if a sampler reads them.

    Attributes:
        canvas: the rows as they are now.
        rows: the numbers of these rows in the batch, (B,).
        positions: positions with a distribution, bool (B, L).
        masked: those of them that are masked, bool (B, L).
        logp: log-probabilities at ``positions`` in row-major order, (N, V).
    """

    canvas: Canvas
    rows: Tensor
    positions: Tensor
    masked: Tensor
    logp: Tensor

    def pick(self, rows: Tensor) -> StepDistributions:
        """Those of some of the rows, bool (B,)."""
        logp = self.logp[rows.repeat_interleave(self.positions.sum(-1))]
        return StepDistributions(self.canvas.pick(rows), self.rows[rows], self.positions[rows], self.masked[rows], logp)

    def masked_logp(self) -> Tensor:
        """Log-probabilities at the masked positions, (M, V)."""
        return self.logp[self.masked[self.positions]]


class CanvasConstraint(ABC):
    """A constraint on the texts of a canvas.

    Args:
        model: the denoiser.
        canvas: the batch before anything is filled.
        whole: the text of a row is the whole row (``infill``); else what is filled in, up to its first end token.
        name: of the constraint, for messages.

    Attributes:
        text_positions: the positions of each text in order, padded on the right, (B, J).
        is_text: False on that padding, bool (B, J).
    """

    def __init__(self, model: Denoiser, canvas: Canvas, whole: bool, name: str) -> None:
        self.model = model
        self.whole = whole
        self.name = name
        text = canvas.target | canvas.given if whole else canvas.target
        lengths = text.sum(-1, keepdim=True)
        self.is_text = torch.arange(int(lengths.max()), device=text.device) < lengths
        # A stable sort puts the positions of the text first and keeps their order.
        self.text_positions = text.int().argsort(dim=-1, descending=True, stable=True)[:, : self.is_text.shape[1]]

    @abstractmethod
    def posterior(self, step: StepDistributions) -> Tensor:
        """The distributions at ``step.positions`` given that the whole text satisfies the constraint, (N, V).

        Raises:
            ValueError: no such text has any probability; the message names the row.
        """

    @abstractmethod
    def draw(self, step: StepDistributions, temperature: float, uniform: Uniform) -> Tensor:
        """Tokens for all masked positions at once, (M,), such that the whole text satisfies the constraint.

        Args:
            temperature: 0 for the most likely text, else a draw from ``p^(1/T)`` given the constraint.
            uniform: returns float64 draws from [0, 1).

        Raises:
            ValueError: as for :meth:`posterior`.
        """

    def impossible(self, row: int) -> ValueError:
        """The error to raise if no text that satisfies the constraint has any probability."""
        return ValueError(
            f"constraint={self.name} leaves no text for row {row}: the tokens that guidance and allowed= leave cannot "
            "make a text that satisfies it; use guidance that forbids fewer tokens"
        )
