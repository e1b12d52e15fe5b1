"""What a form is: a constraint on the whole text of a canvas, asked at every step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..denoisers import Denoiser

Uniform = Callable[[Sequence[int], Sequence[int], int], Tensor]
"""From rows of the batch, how many draws each wants, and a width: float64 draws from [0, 1), (sum of counts, width)."""


@dataclass(frozen=True)
class Asked:
    """One step's distributions of all masked positions of some rows, and of filled ones where a sampler reads them.

    Attributes:
        canvas: the rows as they are now.
        rows: which rows of the batch they are, (B,).
        where: positions with a distribution, bool (B, L).
        masked: those of them that are masked, bool (B, L).
        logp: log-probabilities at ``where`` in row-major order, (N, V).
    """

    canvas: Canvas
    rows: Tensor
    where: Tensor
    masked: Tensor
    logp: Tensor

    def pick(self, rows: Tensor) -> Asked:
        """Some of the rows, bool (B,)."""
        kept = rows.repeat_interleave(self.where.sum(-1))
        return Asked(self.canvas.pick(rows), self.rows[rows], self.where[rows], self.masked[rows], self.logp[kept])


class Form(ABC):
    """A constraint on the texts of a canvas.

    Args:
        model: the denoiser.
        canvas: the batch as it was before anything was filled.
        whole: the text of a row is all of it (``infill``); else what is filled in, up to its first end token.
        name: of the constraint, for messages.
    """

    def __init__(self, model: Denoiser, canvas: Canvas, whole: bool, name: str) -> None:
        self.model, self.whole, self.name = model, whole, name
        line = canvas.target | canvas.given if whole else canvas.target
        self.there = torch.arange(int(line.sum(-1).max()), device=line.device) < line.sum(-1, keepdim=True)
        # Positions of the text in order; padding repeats the first position of the canvas.
        self.places = line.int().argsort(dim=-1, descending=True, stable=True)[:, : self.there.shape[1]]

    @abstractmethod
    def posterior(self, asked: Asked) -> Tensor:
        """The distributions at ``asked.where`` given that the whole text is in form, (N, V).

        Raises:
            ValueError: no text in form has any probability; the message names the row.
        """

    @abstractmethod
    def draw(self, asked: Asked, temperature: float, uniform: Uniform) -> Tensor:
        """Tokens for all masked positions at once such that the whole text is in form, (M,).

        Args:
            temperature: 0 for the most likely text, else a draw from ``p^(1/T)`` given the form.
            uniform: gives float64 draws from [0, 1).

        Raises:
            ValueError: as for :meth:`posterior`.
        """

    def nothing(self, row: int) -> ValueError:
        """What is raised where no text in form has any probability."""
        return ValueError(
            f"constraint={self.name} leaves no text for row {row}: of what guidance and allowed= leave of its tokens, "
            "none makes a text in form; take guidance that forbids fewer tokens"
        )
