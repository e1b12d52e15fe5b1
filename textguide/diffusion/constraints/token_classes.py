"""An automaton over classes of tokens: tokens that do the same in every state are one class, which makes it small."""

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
class ClassAutomaton:
    """An automaton over token classes. Class 0 has no transition.

    After an end token the text is over and any token may follow: the final state of this is left by no class.

    Args:
        class_of: the class of each token, (V,).
        table: the next state for each state and class, (S, C); ``dead`` if no text can be completed from there.
        accepting: states in which the text may end, bool (S,).
        start: the first state.
        dead: the state that no transition leaves.
    """

    class_of: Tensor
    table: Tensor
    accepting: Tensor
    start: int
    dead: int

    @property
    def states(self) -> int:
        """The number of states, S."""
        return len(self.accepting)

    @property
    def classes(self) -> int:
        """The number of classes, C."""
        return self.table.shape[1]

    @cached_property
    def transitions(self) -> tuple[Tensor, Tensor, Tensor]:
        """State, class and next state of every transition that does not lead to ``dead``, (E,) each."""
        origin, token_class = (self.table != self.dead).nonzero(as_tuple=True)
        return origin, token_class, self.table[origin, token_class]


def class_automaton(automaton: TokenAutomaton, forbidden: Sequence[int], ends: Sequence[int]) -> ClassAutomaton:
    """The automaton over token classes that is equivalent to ``automaton``.

    Args:
        forbidden: tokens that are never generated; they have no transition.
        ends: tokens that end the text if it is complete.
    """
    token_class, columns = _classes_of_tokens(automaton, forbidden)
    over = automaton.size  # a further state, reached by end tokens
    if ends:
        token_class[list(ends)] = len(columns)
        columns.append(columns[0])
    table = np.full((over + 1, len(columns)), automaton.dead, dtype=np.int64)
    for number, column in enumerate(columns):
        table[column[:, 0], number] = column[:, 1]
    if ends:
        table[:over, -1] = np.where(automaton.accepting, over, automaton.dead)
    table[over] = over
    accepting = np.append(automaton.accepting, True)
    accepting[automaton.dead] = False
    # Equivalent states become one, after which further columns, and with them classes, may be equal.
    merged = _equivalent_states(table, accepting)
    first = np.unique(merged, return_index=True)[1]
    table, column_of = np.unique(merged[table[first]], axis=1, return_inverse=True)
    return ClassAutomaton(
        class_of=torch.from_numpy(column_of.reshape(-1)[token_class]),
        table=torch.from_numpy(np.ascontiguousarray(table)),
        accepting=torch.from_numpy(accepting[first]),
        start=int(merged[automaton.begin]),
        dead=int(merged[automaton.dead]),
    )


def _classes_of_tokens(
    automaton: TokenAutomaton, forbidden: Sequence[int]
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """The class of each token, (V,), and for each class its transitions as pairs of states, (T, 2)."""
    size = automaton.vocabulary.size
    moves = automaton.moves
    origins = np.repeat(np.arange(automaton.size), np.diff(moves.offsets))
    tokens = moves.tokens.astype(np.int64)
    targets = moves.targets.astype(np.int64)
    possible = ~np.isin(tokens, list(forbidden))
    origins = origins[possible]
    tokens = tokens[possible]
    targets = targets[possible]
    # The transitions of a token, ordered by state, are its column; tokens with equal columns are one class.
    order = np.lexsort((origins, tokens))
    tokens = tokens[order]
    pairs = np.stack([origins[order], targets[order]], axis=1)
    begins = np.searchsorted(tokens, np.arange(size + 1))
    class_of_column: dict[bytes, int] = {b"": 0}
    token_class = np.zeros(size, dtype=np.int64)
    columns = [pairs[:0]]
    for token in np.unique(tokens):
        column = pairs[begins[token] : begins[token + 1]]
        key = column.tobytes()
        if key not in class_of_column:
            class_of_column[key] = len(columns)
            columns.append(column)
        token_class[token] = class_of_column[key]
    return token_class, columns


def _equivalent_states(table: NDArray[np.int64], accepting: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A number for each state, equal for states from which the same texts lead to acceptance (Moore 1956)."""
    number = accepting.astype(np.int64)
    count = 0
    while len(np.unique(number)) > count:
        count = len(np.unique(number))
        refined = np.concatenate([number[:, None], number[table]], axis=1)
        number = np.unique(refined, axis=0, return_inverse=True)[1].reshape(-1)
    return number
