"""What the tokens of a vocabulary do in the automaton of a regular constraint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...support.kept import kept
from ..base import Constraint
from ..combine import AllOf
from ..vocabulary import Vocabulary
from .expressions import ByteAutomaton, TooLargeError
from .terminals import UnsupportedTerminalError, read

STATES = 2000
"""States of bytes up to which an automaton is made."""
MOVES = 20_000_000
"""Moves by tokens up to which they are listed: some hundred megabytes, a second or two."""


def automaton_of(constraint: Constraint, vocabulary: Vocabulary) -> TokenAutomaton | None:
    """The automaton of a constraint, or of one that every member of it satisfies; None where none is known.

    Every member is a text of the automaton. It takes more texts where a class such as ``\\w`` is asked for, of which it
    knows the characters of ASCII alone and takes all others, and where a part of :class:`AllOf` is not regular.
    """
    terminal = constraint.regular()
    whole = terminal is not None
    if terminal is None and isinstance(constraint, AllOf):
        parts = [part for part in (each.regular() for each in constraint.constraints) if part is not None]
        terminal = " & ".join(f"({part})" for part in parts) or None
    return None if terminal is None else _made(terminal, vocabulary, whole)


@lru_cache(maxsize=32)
def _made(terminal: str, vocabulary: Vocabulary, whole: bool) -> TokenAutomaton | None:
    try:
        expressions, node, exact = read(terminal)
        automaton = expressions.automaton(node, STATES)
    except (UnsupportedTerminalError, TooLargeError, RecursionError):
        return None
    return None if automaton.start == automaton.dead else TokenAutomaton(automaton, vocabulary, exact and whole)


@dataclass(frozen=True)
class Moves:
    """All moves by tokens that lead to a state from which a text can be completed, ordered by the state they leave.

    Args:
        offsets: where those of each state begin, and the end of the last, int64 (S + 1,).
        tokens: the token of each, int32 (M,).
        targets: the state that it leads to, int32 (M,).
    """

    offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]

    def of(self, state: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Tokens and targets of one state."""
        here = slice(self.offsets[state], self.offsets[state + 1])
        return self.tokens[here], self.targets[here]


class TokenAutomaton:
    """An automaton whose letters are tokens.

    Its states are those of ``automaton``, and one more, ``begin``, in front of the text, where the first token may lose
    a space (:attr:`Vocabulary.drops_leading_space`).

    Args:
        automaton: over bytes.
        vocabulary: the tokens.
        exact: whether it takes the members of the constraint alone.
    """

    def __init__(self, automaton: ByteAutomaton, vocabulary: Vocabulary, exact: bool = False) -> None:
        self.bytes, self.vocabulary, self.exact = automaton, vocabulary, exact
        self.dead = automaton.dead
        self.begin = automaton.dead + 1
        self.size = automaton.dead + 2
        self.accepting = np.append(automaton.accepting, automaton.accepting[automaton.start])

    def step(self, state: int, token: int) -> int:
        """The state behind a token; :attr:`dead` where none can be completed."""
        text = self.vocabulary.tokens[token]
        if state == self.begin:
            return self.bytes.run(self.bytes.start, self.vocabulary.visible(text)) if text else self.dead
        return self.bytes.run(state, text) if text else self.dead

    @cached_property
    def moves(self) -> Moves:
        """Its moves.

        Raises:
            TooLargeError: there are too many.
        """
        return self._compiled[0]

    @property
    def distances(self) -> NDArray[np.int64]:
        """Fewest tokens from each state to a complete text, int64 (S,); a very large number where there is none."""
        return self._compiled[1]

    @cached_property
    def _compiled(self) -> tuple[Moves, NDArray[np.int64]]:
        """Both; where that took long, later processes find them on disk."""
        key = {"automaton": self.bytes.digest, "vocabulary": self.vocabulary.digest, "moves": MOVES}
        found = kept("automaton", key, self._compile)
        if not len(found["offsets"]):
            raise TooLargeError(f"its tokens make more than {MOVES} moves")
        tokens, targets = (found[name].astype(np.int32) for name in ("tokens", "targets"))
        return Moves(found["offsets"], tokens, targets), found["distances"]

    def _compile(self) -> dict[str, NDArray[Any]]:
        try:
            moves = self._list()
        except TooLargeError:  # which takes long to find out, too
            return {"offsets": np.zeros(0, dtype=np.int64)}
        narrow = np.min_scalar_type(max(self.vocabulary.size, self.size))
        return {
            "offsets": moves.offsets,
            "tokens": moves.tokens.astype(narrow),
            "targets": moves.targets.astype(narrow),
            "distances": self._measure(moves),
        }

    def _list(self) -> Moves:
        tree = _tree(self.vocabulary)
        states = np.arange(self.dead, dtype=np.int32)
        parts = _walk(self.bytes, tree, states, states)
        first = tree if not self.vocabulary.drops_leading_space else _tree(self.vocabulary, first=True)
        start = np.array([self.bytes.start], dtype=np.int32)
        parts += _walk(self.bytes, first, np.array([self.begin], dtype=np.int32), start)
        if first.blank:
            blank = np.array(first.blank, dtype=np.int32)
            parts.append((np.full_like(blank, self.begin), blank, np.full_like(blank, self.bytes.start)))
        origins, tokens, targets = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(origins, kind="stable")
        offsets = np.searchsorted(origins[order], np.arange(self.size + 1))
        return Moves(offsets, tokens[order], targets[order])

    def _measure(self, moves: Moves) -> NDArray[np.int64]:
        far = np.iinfo(np.int64).max // 2
        found = np.where(self.accepting, 0, far)
        origins = np.repeat(np.arange(self.size), np.diff(moves.offsets))
        pairs = np.unique(origins * self.size + moves.targets)  # of states between which some token moves
        while True:
            nearer = found.copy()
            np.minimum.at(nearer, pairs // self.size, found[pairs % self.size] + 1)
            if (nearer == found).all():
                return found
            found = nearer

    @cached_property
    def most_bytes(self) -> int | None:
        """The fewest bytes that complete a text, from the worst of the states; no state needs more tokens than that,
        where every byte is a token. None where that is not known."""
        single = {token for token in self.vocabulary.tokens if len(token) == 1}
        if len(single) < 256:
            return None
        far = len(self.bytes.accepting)
        found = np.where(self.bytes.accepting, 0, far)
        while True:
            nearer = np.minimum(found, found[self.bytes.moves].min(axis=1) + 1)
            if (nearer == found).all():
                return int(found[:-1].max())
            found = nearer

    def allowed(self, state: int) -> Tensor:
        """The tokens that may follow, bool (V,), with the end tokens where the text is complete."""
        mask = torch.zeros(self.vocabulary.size, dtype=torch.bool)
        mask[torch.from_numpy(self.moves.of(state)[0]).long()] = True
        mask[sorted(self.vocabulary.ends)] = bool(self.accepting[state])
        return mask


@dataclass(frozen=True)
class _Tree:
    """The tokens of a vocabulary by their bytes: nodes level by level.

    Args:
        levels: of each level the byte of its nodes, ordered by parent (in the level above), where the children of each
            parent begin, and pairs of a node and a token that ends there, ordered by node.
        blank: tokens without bytes that leave the text as it is.
    """

    levels: tuple[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], ...]
    blank: tuple[int, ...] = ()


@lru_cache(maxsize=8)
def _tree(vocabulary: Vocabulary, first: bool = False) -> _Tree:
    written = [vocabulary.visible(text) if first else text for text in vocabulary.tokens]
    pairs = sorted((text, token) for token, text in enumerate(written) if text)
    blank = tuple(token for token, text in enumerate(written) if vocabulary.tokens[token] and not text)
    texts = [text for text, _ in pairs]
    tokens = np.array([token for _, token in pairs], dtype=np.int64)
    node = np.zeros(len(texts), dtype=np.int64)  # of each text in the level above
    alive = np.arange(len(texts))
    levels, parents, depth = [], 1, 0
    while len(alive):
        byte = np.array([texts[number][depth] for number in alive], dtype=np.int64)
        keys = node[alive] * 256 + byte
        unique, inverse = np.unique(keys, return_inverse=True)
        node[alive] = inverse
        offsets = np.searchsorted(unique // 256, np.arange(parents + 1))
        ended = np.array([len(texts[number]) == depth + 1 for number in alive], dtype=bool)
        ends = np.stack([inverse[ended], tokens[alive[ended]]])
        levels.append((unique % 256, offsets, ends[:, np.argsort(ends[0], kind="stable")]))
        parents, alive, depth = len(unique), alive[~ended], depth + 1
    return _Tree(tuple(levels), blank)


def _walk(
    automaton: ByteAutomaton, tree: _Tree, origins: NDArray[np.int32], states: NDArray[np.int32]
) -> list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]]:
    """From ``states``, called ``origins``, along all tokens at once: the origins, tokens and targets of moves."""
    found, moves = [], 0
    node = np.zeros(len(states), dtype=np.int64)
    empty = np.zeros(0, dtype=np.int32)
    found.append((empty, empty, empty))
    for byte, offsets, (nodes, tokens) in tree.levels:
        counts = offsets[node + 1] - offsets[node]
        if int(counts.sum()) > MOVES:
            raise TooLargeError(f"its tokens make more than {MOVES} moves")
        which = np.repeat(np.arange(len(node)), counts)
        place = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        node = offsets[node][which] + place
        states = automaton.moves[states[which], byte[node]]
        kept = states != automaton.dead
        origins, states, node = origins[which][kept], states[kept], node[kept]
        # A node may end several tokens (equal bytes), so that pairs are matched by sorted search.
        low, high = np.searchsorted(nodes, node), np.searchsorted(nodes, node, side="right")
        which = np.repeat(np.arange(len(node)), high - low)
        place = np.arange(len(which)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
        moves += len(which)
        if moves > MOVES:
            raise TooLargeError(f"its tokens make more than {MOVES} moves")
        token = tokens[low[which] + place].astype(np.int32)
        found.append((origins[which].astype(np.int32), token, states[which].astype(np.int32)))
    return found
