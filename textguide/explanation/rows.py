"""One step of a run whose texts are written together, as values: tokens, weights, and which text goes on from which."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..engine.loop import StepView
from .token_texts import token_text


@dataclass(frozen=True)
class RowsStep:
    """What the rows of one prompt did at one step.

    Args:
        index: number of the token, from 0.
        tokens: the token that each row wrote, as text; None for rows that had ended, or have not begun.
        log_weights: log-weight of each row behind this token, −inf for those that were given up; empty where texts have
            no weights.
        open: rows that go on.
        deaths: why a row was given up.
        ancestors: in front of this step, the row that each row went on from; None where all stayed.
        rewritten: rows that forked: the token, as text, that each has in place of its ancestor's last one.
    """

    index: int
    tokens: tuple[str | None, ...]
    log_weights: tuple[float, ...]
    open: tuple[bool, ...]
    deaths: tuple[str | None, ...]
    ancestors: tuple[int, ...] | None = None
    rewritten: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(cls, view: StepView, tokenizer: Any, before: RowsStep | None) -> RowsStep:
        """The step that an observer sees.

        Args:
            before: the step in front of it; None for the first one.

        Raises:
            ValueError: the run has no rows that are written together.
        """
        population = view.population
        if population is None:
            raise ValueError("the guidance writes every text by itself; give one with particles, or EAGer")
        count = len(population.open)
        moves = view.moves
        going = list(population.begun) if before is None else list(before.open)
        if moves is not None:
            going = [going[row] for row in moves.ancestors]
        tokens: list[str | None] = [None] * count
        for row, token in zip(view.samples, view.tokens.tolist(), strict=True):
            tokens[row] = token_text(tokenizer, token) if going[row] else None
        weights = population.log_weights.tolist() if population.weighs else []
        return cls(
            view.index,
            tuple(tokens),
            tuple(weights),
            tuple(population.open),
            tuple(population.deaths),
            None if moves is None else moves.ancestors,
            () if moves is None else tuple((row, token_text(tokenizer, t)) for row, t in moves.rewritten.items()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; −inf becomes None."""
        return {
            "index": self.index,
            "tokens": list(self.tokens),
            "log_weights": [None if weight == -math.inf else weight for weight in self.log_weights],
            "open": list(self.open),
            "deaths": list(self.deaths),
            "ancestors": None if self.ancestors is None else list(self.ancestors),
            "rewritten": [list(pair) for pair in self.rewritten],
        }
