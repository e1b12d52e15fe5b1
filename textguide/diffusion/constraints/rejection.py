"""Constraints of which an automaton accepts a superset: its draws are checked, and repeated if necessary."""

from __future__ import annotations

import torch
from torch import Tensor

from ...constraints.base import Constraint
from ..canvas import Canvas
from ..denoisers import Denoiser
from .base import StepDistributions, Uniform
from .lookahead import LookaheadConstraint
from .regular import RegularConstraint
from .token_classes import ClassAutomaton

TRIES = 16


class RejectionConstraint(RegularConstraint):
    """Rejection sampling: a draw from the superset that satisfies the constraint is a draw given the constraint.

    If none of ``TRIES`` draws does (or, at temperature 0, the most likely text of the superset does not), the
    ``search`` looks for a text. Orders rank by the marginals given the superset.

    Args:
        automaton: accepts every text that satisfies the constraint, and more.
        search: looks for texts if draws fail, and keeps a satisfying text for each row.
    """

    def __init__(
        self,
        model: Denoiser,
        canvas: Canvas,
        whole: bool,
        name: str,
        automaton: ClassAutomaton,
        fewest: int | None,
        constraint: Constraint,
        search: LookaheadConstraint,
    ) -> None:
        super().__init__(model, canvas, whole, name, automaton, fewest)
        self.search = search
        self._start = constraint.start(search.vocabulary)

    def draw(self, step: StepDistributions, temperature: float, uniform: Uniform) -> Tensor:
        counts = step.masked.sum(-1).tolist()
        accepted: list[Tensor | None] = [None] * len(counts)
        for attempt in range(TRIES if temperature else 1):
            left = self._without_text(step, accepted)
            if not left.any():
                break
            part = step if attempt == 0 else step.pick(left)
            numbers = left.nonzero()[:, 0].tolist()
            drawn = super().draw(part, temperature, uniform).split([counts[n] for n in numbers])
            for n, tokens in zip(numbers, drawn, strict=True):
                if self._accepts(step, n, tokens):
                    accepted[n] = tokens
        left = self._without_text(step, accepted)
        if left.any():
            numbers = left.nonzero()[:, 0].tolist()
            drawn = self.search.draw(step.pick(left), temperature, uniform).split([counts[n] for n in numbers])
            for n, tokens in zip(numbers, drawn, strict=True):
                accepted[n] = tokens
        return torch.cat([tokens for tokens in accepted if tokens is not None])

    def _without_text(self, step: StepDistributions, accepted: list[Tensor | None]) -> Tensor:
        return torch.tensor([tokens is None for tokens in accepted], device=step.rows.device)

    def _accepts(self, step: StepDistributions, n: int, tokens: Tensor) -> bool:
        """Whether a row satisfies the constraint with these tokens; the search keeps them if so."""
        row = int(step.rows[n])
        ids = step.canvas.ids[n].clone()
        ids[step.masked[n]] = tokens
        line = ids[self.text_positions[row][self.is_text[row]]].tolist()
        vocabulary = self.search.vocabulary
        end = next((at for at, token in enumerate(line) if token in vocabulary.ends), len(line))
        text = b"".join(vocabulary.tokens[token] for token in line[:end])
        if not self._start.is_complete(text):
            return False
        self.search.keep(row, line)
        return True
