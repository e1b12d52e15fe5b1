"""The automaton of a regular constraint over the tokens of a vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...support.array_cache import cached
from ..base import Constraint
from ..combine import AllOf
from ..token_tree import TokenTree, expand, token_tree
from ..vocabulary import Vocabulary
from .expressions import ByteAutomaton, TooLargeError
from .terminals import UnsupportedTerminalError, read

STATES = 2000
"""Largest number of states of an automaton over bytes."""
MOVES = 20_000_000
"""Largest number of moves by tokens: some hundred megabytes, and a second or two."""


def automaton_of(constraint: Constraint, vocabulary: Vocabulary) -> TokenAutomaton | None:
    """The automaton of a constraint, or of a weaker one.

    The automaton accepts every member. It accepts other texts too if a part of :class:`AllOf` is not regular, or if the
    constraint has a class such as ``\\w``, of which only ASCII is evaluated and all other characters are accepted.

    Returns:
        None if the constraint is not regular, or the automaton is too large or accepts no text.
    """
    terminal = constraint.regular()
    is_whole = terminal is not None
    if terminal is None and isinstance(constraint, AllOf):
        parts = [part.regular() for part in constraint.constraints]
        terminal = " & ".join(f"({part})" for part in parts if part is not None) or None
    return None if terminal is None else _build(terminal, vocabulary, is_whole)


@lru_cache(maxsize=32)
def _build(terminal: str, vocabulary: Vocabulary, is_whole: bool) -> TokenAutomaton | None:
    try:
        expressions, node, exact = read(terminal)
        automaton = expressions.automaton(node, STATES)
    except (UnsupportedTerminalError, TooLargeError, RecursionError):
        return None
    return None if automaton.start == automaton.dead else TokenAutomaton(automaton, vocabulary, exact and is_whole)


@dataclass(frozen=True)
class Moves:
    """All moves by tokens to states from which a text can be completed, ordered by the state that they leave.

    Args:
        offsets: the start of the moves of each state, and the end of the last one, int64 (S + 1,).
        tokens: the token of each move, int32 (M,).
        targets: the state that each move leads to, int32 (M,).
    """

    offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]

    def of(self, state: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The tokens and targets of one state."""
        span = slice(self.offsets[state], self.offsets[state + 1])
        return self.tokens[span], self.targets[span]


class TokenAutomaton:
    """An automaton whose letters are tokens.

    Its states are those of ``automaton`` and ``begin``, the state before the text, in which the first token may lose a
    space (:attr:`Vocabulary.drops_leading_space`).

    Args:
        automaton: the automaton over bytes.
        vocabulary: the tokens.
        exact: whether it accepts only members of the constraint.
    """

    def __init__(self, automaton: ByteAutomaton, vocabulary: Vocabulary, exact: bool = False) -> None:
        self.bytes = automaton
        self.vocabulary = vocabulary
        self.exact = exact
        self.dead = automaton.dead
        self.begin = automaton.dead + 1
        self.size = automaton.dead + 2
        self.accepting = np.append(automaton.accepting, automaton.accepting[automaton.start])

    def step(self, state: int, token: int) -> int:
        """The state after a token; :attr:`dead` if the text cannot be completed any more."""
        text = self.vocabulary.tokens[token]
        if state == self.begin:
            return self.bytes.run(self.bytes.start, self.vocabulary.visible(text)) if text else self.dead
        return self.bytes.run(state, text) if text else self.dead

    @cached_property
    def moves(self) -> Moves:
        """All moves.

        Raises:
            TooLargeError: there are too many moves.
        """
        return self._compiled[0]

    @property
    def distances(self) -> NDArray[np.int64]:
        """The smallest number of tokens from each state to a complete text, int64 (S,); very large if there is none."""
        return self._compiled[1]

    @cached_property
    def _compiled(self) -> tuple[Moves, NDArray[np.int64]]:
        """The moves and distances; if their computation took long, they are stored on disk for later processes."""
        key = {"automaton": self.bytes.digest, "vocabulary": self.vocabulary.digest, "moves": MOVES}
        arrays = cached("automaton", key, self._compile)
        if not len(arrays["offsets"]):
            raise TooLargeError(f"its tokens make more than {MOVES} moves")
        moves = Moves(arrays["offsets"], arrays["tokens"].astype(np.int32), arrays["targets"].astype(np.int32))
        return moves, arrays["distances"]

    def _compile(self) -> dict[str, NDArray[Any]]:
        try:
            moves = self._list_moves()
        except TooLargeError:  # the attempt takes long, so its failure is stored too
            return {"offsets": np.zeros(0, dtype=np.int64)}
        narrow = np.min_scalar_type(max(self.vocabulary.size, self.size))
        return {
            "offsets": moves.offsets,
            "tokens": moves.tokens.astype(narrow),
            "targets": moves.targets.astype(narrow),
            "distances": self._distances(moves),
        }

    def _list_moves(self) -> Moves:
        tree = token_tree(self.vocabulary)
        states = np.arange(self.dead, dtype=np.int32)
        parts = _walk(self.bytes, tree, states, states)
        first = tree if not self.vocabulary.drops_leading_space else token_tree(self.vocabulary, first=True)
        start = np.array([self.bytes.start], dtype=np.int32)
        parts += _walk(self.bytes, first, np.array([self.begin], dtype=np.int32), start)
        if first.blank:
            blank = np.array(first.blank, dtype=np.int32)
            parts.append((np.full_like(blank, self.begin), blank, np.full_like(blank, self.bytes.start)))
        origins, tokens, targets = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(origins, kind="stable")
        offsets = np.searchsorted(origins[order], np.arange(self.size + 1))
        return Moves(offsets, tokens[order], targets[order])

    def _distances(self, moves: Moves) -> NDArray[np.int64]:
        distances = np.where(self.accepting, 0, np.iinfo(np.int64).max // 2)
        origins = np.repeat(np.arange(self.size), np.diff(moves.offsets))
        pairs = np.unique(origins * self.size + moves.targets)  # of states between which some token moves
        while True:
            shorter = distances.copy()
            np.minimum.at(shorter, pairs // self.size, distances[pairs % self.size] + 1)
            if (shorter == distances).all():
                return distances
            distances = shorter

    @cached_property
    def most_bytes(self) -> int | None:
        """The smallest number of bytes that complete a text from the worst state.

        No state needs more tokens than that if every byte is a token.

        Returns:
            None if not every byte is a token.
        """
        single = {token for token in self.vocabulary.tokens if len(token) == 1}
        if len(single) < 256:
            return None
        distances = np.where(self.bytes.accepting, 0, len(self.bytes.accepting))
        while True:
            shorter = np.minimum(distances, distances[self.bytes.moves].min(axis=1) + 1)
            if (shorter == distances).all():
                return int(distances[:-1].max())
            distances = shorter

    def allowed(self, state: int) -> Tensor:
        """The tokens that may follow, bool (V,); end tokens are True if the text is complete."""
        mask = torch.zeros(self.vocabulary.size, dtype=torch.bool)
        mask[torch.from_numpy(self.moves.of(state)[0]).long()] = True
        mask[sorted(self.vocabulary.ends)] = bool(self.accepting[state])
        return mask


def _walk(
    automaton: ByteAutomaton, tree: TokenTree, origins: NDArray[np.int32], states: NDArray[np.int32]
) -> list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]]:
    """Follow all tokens from some states.

    Args:
        automaton: the automaton over bytes.
        tree: the tokens.
        origins: how the states are called in the result.
        states: the states.

    Returns:
        Origins, tokens and targets of the moves, in parts.
    """
    parts = []
    moves = 0
    node = np.zeros(len(states), dtype=np.int64)
    empty = np.zeros(0, dtype=np.int32)
    parts.append((empty, empty, empty))
    for byte, offsets, (nodes, tokens) in tree.levels:
        counts = offsets[node + 1] - offsets[node]
        if int(counts.sum()) > MOVES:
            raise TooLargeError(f"its tokens make more than {MOVES} moves")
        parent, child = expand(counts)
        node = offsets[node][parent] + child
        states = automaton.moves[states[parent], byte[node]]
        is_alive = states != automaton.dead
        origins = origins[parent][is_alive]
        states = states[is_alive]
        node = node[is_alive]
        # Several tokens may end at a node (equal bytes), so the pairs are found by binary search.
        low = np.searchsorted(nodes, node)
        high = np.searchsorted(nodes, node, side="right")
        which, number = expand(high - low)
        moves += len(which)
        if moves > MOVES:
            raise TooLargeError(f"its tokens make more than {MOVES} moves")
        token = tokens[low[which] + number].astype(np.int32)
        parts.append((origins[which].astype(np.int32), token, states[which].astype(np.int32)))
    return parts
