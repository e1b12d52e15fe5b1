"""One step of a run with several texts per prompt, as values: tokens, weights, and which text continues which."""

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
        index: the number of the token, from 0.
        tokens: the new token of each row, as text; None for rows that have ended or not started.
        log_weights: the log-weight of each row after this token, −inf for rows that were given up; empty if texts have
            no weights.
        open: whether each row continues.
        deaths: why a row was given up.
        ancestors: the row that each row was copied from before this step; None if no row was copied.
        rewritten: rows that forked, each with the token, as text, that replaces the last one of its ancestor.
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
        """The step as an observer of the run gets it.

        Args:
            before: the step before it; None for the first one.

        Raises:
            ValueError: the run writes each text separately.
        """
        population = view.population
        if population is None:
            raise ValueError("the guidance writes each text separately; use one with particles, or EAGer")
        moves = view.moves
        writing = list(population.begun) if before is None else list(before.open)
        rewritten: list[tuple[int, str]] = []
        if moves is not None:
            writing = [writing[row] for row in moves.ancestors]
            rewritten = [(row, token_text(tokenizer, token)) for row, token in moves.rewritten.items()]
        tokens: list[str | None] = [None] * len(population.open)
        for row, token in zip(view.samples, view.tokens.tolist(), strict=True):
            if writing[row]:
                tokens[row] = token_text(tokenizer, token)
        return cls(
            index=view.index,
            tokens=tuple(tokens),
            log_weights=tuple(population.log_weights.tolist() if population.weighs else []),
            open=tuple(population.open),
            deaths=tuple(population.deaths),
            ancestors=None if moves is None else moves.ancestors,
            rewritten=tuple(rewritten),
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
