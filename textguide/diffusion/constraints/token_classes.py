"""The tokens of a vocabulary by what they do in an automaton: a few letters stand for all of them, in few states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...constraints.automata import TokenAutomaton


@dataclass(frozen=True)
class Letters:
    """An automaton over letters. Tokens that move every state alike are one letter; letter 0 moves none.

    Behind an end token the text is over, and any token may stand there: the state ``over`` is left by no letter.

    Args:
        of: the letter of each token, (V,).
        table: the state behind each state and letter, (S, C); ``dead`` where no text can be completed.
        accepting: states in which the text may stop, bool (S,).
        start: the first state.
        dead: the state that nothing leaves.
    """

    of: Tensor
    table: Tensor
    accepting: Tensor
    start: int
    dead: int

    @property
    def states(self) -> int:
        """S."""
        return len(self.accepting)

    @property
    def count(self) -> int:
        """C."""
        return self.table.shape[1]

    @cached_property
    def moves(self) -> tuple[Tensor, Tensor, Tensor]:
        """State, letter and target of every move that leads on, (E,) each."""
        origin, letter = (self.table != self.dead).nonzero(as_tuple=True)
        return origin, letter, self.table[origin, letter]


def letters_of(automaton: TokenAutomaton, forbidden: Sequence[int], ends: Sequence[int]) -> Letters:
    """The letters of an automaton.

    Args:
        forbidden: tokens that are never written, which move no state.
        ends: tokens that end the text where it is complete.
    """
    size, moves = automaton.vocabulary.size, automaton.moves
    over = automaton.size
    origins = np.repeat(np.arange(automaton.size), np.diff(moves.offsets))
    tokens, targets = moves.tokens.astype(np.int64), moves.targets.astype(np.int64)
    written = ~np.isin(tokens, list(forbidden))
    origins, tokens, targets = origins[written], tokens[written], targets[written]
    # A token's moves, ordered by state, are its column; equal columns are one letter.
    order = np.lexsort((origins, tokens))
    tokens, pairs = tokens[order], np.stack([origins[order], targets[order]], axis=1)
    begins = np.searchsorted(tokens, np.arange(size + 1))
    known: dict[bytes, int] = {b"": 0}
    letter = np.zeros(size, dtype=np.int64)
    columns: list[np.ndarray] = [pairs[:0]]
    for token in np.unique(tokens):
        column = pairs[begins[token] : begins[token + 1]]
        key = column.tobytes()
        if key not in known:
            known[key] = len(columns)
            columns.append(column)
        letter[token] = known[key]
    if ends:
        letter[list(ends)] = len(columns)
        columns.append(pairs[:0])
    table = np.full((over + 1, len(columns)), automaton.dead, dtype=np.int64)
    for number, column in enumerate(columns):
        table[column[:, 0], number] = column[:, 1]
    if ends:
        table[:over, -1] = np.where(automaton.accepting, over, automaton.dead)
    table[over] = over
    accepting = np.append(automaton.accepting, True)
    accepting[automaton.dead] = False
    same = _same_states(table, accepting)
    first = np.unique(same, return_index=True)[1]
    table, columns_of = np.unique(same[table[first]], axis=1, return_inverse=True)
    return Letters(
        torch.from_numpy(columns_of.reshape(-1)[letter]), torch.from_numpy(np.ascontiguousarray(table)),
        torch.from_numpy(accepting[first]), int(same[automaton.begin]), int(same[automaton.dead]),
    )  # fmt: skip


def _same_states(table: NDArray[np.int64], accepting: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A number for each state, the same where the same texts lead on to an end (Moore 1956)."""
    same, count = accepting.astype(np.int64), 0
    while len(np.unique(same)) > count:
        count = len(np.unique(same))
        whole = np.concatenate([same[:, None], same[table]], axis=1)
        same = np.unique(whole, axis=0, return_inverse=True)[1].reshape(-1)
    return same
