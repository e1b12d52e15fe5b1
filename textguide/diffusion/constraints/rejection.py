"""Constraints of which an automaton knows a larger set: its draws are checked, and made again."""

from __future__ import annotations

import torch
from torch import Tensor

from ...constraints.base import Constraint
from ..canvas import Canvas
from ..denoisers import Denoiser
from .base import Asked, Uniform
from .lookahead import SearchedForm
from .regular import RegularForm
from .token_classes import Letters

TRIES = 16


class CheckedForm(RegularForm):
    """Rejection: draws given a larger set, until one is in form, are draws given the form.

    Where none of ``TRIES`` is (or, at temperature 0, the most likely text of the larger set is not), ``search`` looks
    for a text. Orders rank by the marginals given the larger set.

    Args:
        letters: an automaton that takes every text in form, and more.
        search: looks for texts where draws are out of form, and keeps one for each row.
    """

    def __init__(
        self, model: Denoiser, canvas: Canvas, whole: bool, name: str, letters: Letters, fewest: int | None,
        constraint: Constraint, search: SearchedForm,
    ) -> None:  # fmt: skip
        super().__init__(model, canvas, whole, name, letters, fewest)
        self.search = search
        self._start = constraint.start(search.vocabulary)

    def draw(self, asked: Asked, temperature: float, uniform: Uniform) -> Tensor:
        counts = asked.masked.sum(-1).tolist()
        found: list[Tensor | None] = [None] * len(counts)
        for turn in range(TRIES if temperature else 1):
            left = torch.tensor([tokens is None for tokens in found], device=asked.rows.device)
            if not left.any():
                break
            part = asked if not turn else asked.pick(left)
            numbers = left.nonzero()[:, 0].tolist()
            drawn = super().draw(part, temperature, uniform).split([counts[n] for n in numbers])
            for n, tokens in zip(numbers, drawn, strict=True):
                if self._keeps(asked, n, tokens):
                    found[n] = tokens
        left = torch.tensor([tokens is None for tokens in found], device=asked.rows.device)
        if left.any():
            numbers = left.nonzero()[:, 0].tolist()
            drawn = self.search.draw(asked.pick(left), temperature, uniform).split([counts[n] for n in numbers])
            for n, tokens in zip(numbers, drawn, strict=True):
                found[n] = tokens
        return torch.cat([tokens for tokens in found if tokens is not None])

    def _keeps(self, asked: Asked, n: int, tokens: Tensor) -> bool:
        """Whether a row's text with these tokens is in form; then it is kept."""
        row = int(asked.rows[n])
        ids = asked.canvas.ids[n].clone()
        ids[asked.masked[n]] = tokens
        line = ids[self.places[row][self.there[row]]].tolist()
        ends = self.search.vocabulary.ends
        stop = next((at for at, token in enumerate(line) if token in ends), len(line))
        text = b"".join(self.search.vocabulary.tokens[token] for token in line[:stop])
        if not self._start.is_complete(text):
            return False
        self.search.keep(row, line)
        return True
