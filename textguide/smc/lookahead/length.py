"""Lookahead by length: a text that cannot end within the limit of tokens is never started."""

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
"""Number of spare tokens from which on the length does not matter."""


class LengthLookahead(Lookahead):
    """ψ from the smallest number ``d`` of tokens that complete a text and the number ``n`` of tokens that are left.

    If ``d + 1 > n`` (one token is the end token), ψ is 0, because no continuation is a member. Otherwise it is
    ``1 − 2^−(n − d)``: one half if only the shortest completions fit, about 1 if there is plenty of room.

    Args:
        automaton: that of the constraint, or of a weaker one.
    """

    def __init__(self, automaton: TokenAutomaton) -> None:
        self.automaton = automaton
        self.vector = lru_cache(maxsize=256)(self._vector)

    def begin(self, prompt: Sequence[int]) -> Ahead:
        return _StateAhead(self, self.automaton.begin)

    @cached_property
    def _moves(self) -> Moves | None:
        """The moves of the automaton; None if there are too many. Cached, because finding that out takes long."""
        try:
            return self.automaton.moves
        except TooLargeError:
            return None

    def _vector(self, state: int, left: int) -> Tensor | None:
        automaton = self.automaton
        most = automaton.most_bytes
        end = 1 if automaton.vocabulary.ends else 0
        # With that much room every state is fine, and the moves by tokens need not be listed yet.
        if most is not None and left >= most + end + AMPLE:
            return None
        if self._moves is None:
            return None
        tokens, targets = self._moves.of(state)
        spare = left - automaton.distances[targets] - end
        values = np.where(spare < 0, -math.inf, np.log1p(-(0.5 ** (np.clip(spare, 0, AMPLE) + 1.0))))
        values[spare >= AMPLE] = 0.0
        log_psi = torch.full((automaton.vocabulary.size,), -math.inf)
        log_psi[torch.from_numpy(tokens).long()] = torch.from_numpy(values).float()
        log_psi[sorted(automaton.vocabulary.ends)] = 0.0
        return log_psi


class _StateAhead(Ahead):
    """The lookahead in one state of the automaton."""

    def __init__(self, lookahead: LengthLookahead, state: int) -> None:
        self._lookahead = lookahead
        self._state = state

    def following(self, left: int, scores: Tensor | None = None) -> Tensor | None:
        return self._lookahead.vector(self._state, left)

    def after(self, token: int) -> Ahead:
        return _StateAhead(self._lookahead, self._lookahead.automaton.step(self._state, token))
