"""Length: what cannot end within the limit of tokens is never begun."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from ...constraints.automata import TokenAutomaton
from ...constraints.automata.expressions import TooLargeError
from ...constraints.automata.token_automaton import Moves
from .base import Ahead, Lookahead

AMPLE = 12
"""Tokens beyond the fewest that complete a text, from which on length is no matter."""


class LengthLookahead(Lookahead):
    """ψ from the fewest tokens ``d`` that complete a text and the ``n`` that are left.

    Where ``d + 1 > n`` (an end token comes behind) ψ is 0: no member follows, whatever is written. Else it is
    ``1 − 2^−(n − d)``: half where only the shortest ways are left, about 1 where there is ample room.

    Args:
        automaton: of the constraint, or of one that all its members satisfy.
    """

    def __init__(self, automaton: TokenAutomaton) -> None:
        self.automaton = automaton
        self.vector = lru_cache(maxsize=256)(self._vector)

    def begin(self, prompt: Sequence[int]) -> Ahead:
        return _At(self, self.automaton.begin)

    @cached_property
    def _moves(self) -> Moves | None:
        """Those of the automaton; None where there are too many, which takes long to find out."""
        try:
            return self.automaton.moves
        except TooLargeError:
            return None

    def _vector(self, state: int, left: int) -> Tensor | None:
        automaton, most = self.automaton, self.automaton.most_bytes
        end = 1 if automaton.vocabulary.ends else 0
        if most is not None and left >= most + end + AMPLE:  # the moves of tokens need not be listed yet
            return None
        if self._moves is None:
            return None
        tokens, targets = self._moves.of(state)
        spare = left - automaton.distances[targets] - end
        values = np.where(spare < 0, -math.inf, np.log1p(-(0.5 ** (np.clip(spare, 0, AMPLE) + 1.0))))
        values[spare >= AMPLE] = 0.0
        found = torch.full((automaton.vocabulary.size,), -math.inf)
        found[torch.from_numpy(tokens).long()] = torch.from_numpy(values).float()
        found[sorted(automaton.vocabulary.ends)] = 0.0
        return found


class _At(Ahead):
    def __init__(self, lookahead: LengthLookahead, state: int) -> None:
        self._lookahead, self._state = lookahead, state

    def following(self, left: int, scores: Tensor | None = None) -> Tensor | None:
        return self._lookahead.vector(self._state, left)

    def after(self, token: int) -> Ahead:
        return _At(self._lookahead, self._lookahead.automaton.step(self._state, token))
