"""Regular expressions over bytes, with intersection and complement, and their automata by derivatives.

The derivative of a set of texts by a byte contains the rests of the texts that start with that byte (Brzozowski 1964).
An expression has finitely many derivatives if unions are sorted, and they are the states of its automaton.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

EMPTY = 0
"""The expression that no text matches."""
NOTHING_MORE = 1
"""The expression that only the empty text matches."""
Node = int
_Key = tuple[Any, ...]


class TooLargeError(ValueError):
    """An automaton would be too large."""


@dataclass(frozen=True, eq=False)
class ByteAutomaton:
    """A deterministic automaton.

    Args:
        moves: the state after each state and byte, int32 (S + 1, 256); S is the dead state, which is never left.
        accepting: states in which a text is complete, bool (S + 1,).
        start: the first state.
    """

    moves: NDArray[np.int32]
    accepting: NDArray[np.bool_]
    start: int

    @property
    def dead(self) -> int:
        """The state from which no text can be completed."""
        return len(self.accepting) - 1

    @property
    def digest(self) -> str:
        """A hash that identifies the automaton, the same in every process."""
        digest = hashlib.sha256(f"{self.start} {self.moves.shape}".encode())
        digest.update(self.moves.tobytes())
        digest.update(self.accepting.tobytes())
        return digest.hexdigest()

    def run(self, state: int, text: bytes) -> int:
        """The state after ``text``."""
        for byte in text:
            state = int(self.moves[state, byte])
        return state

    @cached_property
    def distances(self) -> NDArray[np.int64]:
        """The smallest number of bytes that complete a text from each state, (S + 1,); very large for the dead one."""
        distances = np.where(self.accepting, 0, np.iinfo(np.int64).max // 2)
        while True:
            nearer = np.minimum(distances, distances[self.moves].min(axis=1) + 1)
            if (nearer == distances).all():
                return distances
            distances = nearer

    def has_other(self, state: int, texts: Collection[bytes]) -> bool:
        """Whether a text besides these completes a text from ``state``; the shortest ones are tried first."""
        excluded = set(texts)
        waiting = [(int(self.distances[state]), b"", state)]
        while waiting:
            _, text, state = heapq.heappop(waiting)
            if state == self.dead:
                continue
            if self.accepting[state] and text not in excluded:
                return True
            if not any(other.startswith(text) for other in excluded):
                return True  # each text from here on is another one
            for byte in range(256):
                after = int(self.moves[state, byte])
                if after != self.dead:
                    longer = text + bytes([byte])
                    heapq.heappush(waiting, (len(longer) + int(self.distances[after]), longer, after))
        return False

    @cached_property
    def characters(self) -> NDArray[np.int64]:
        """The smallest number of characters that complete UTF-8 text from each state, (S + 1,), without the rest of an
        incomplete one."""
        cost = np.ones(256, dtype=np.int64)
        cost[0x80:0xC0] = 0  # later bytes of a character
        characters = np.where(self.accepting, 0, np.iinfo(np.int64).max // 2)
        while True:
            fewer = np.minimum(characters, (characters[self.moves] + cost).min(axis=1))
            if (fewer == characters).all():
                return characters
            characters = fewer

    def shortest(self, state: int) -> bytes:
        """The shortest text that completes a text from a state that is not dead; alphanumeric bytes are preferred."""
        text = bytearray()
        while self.distances[state]:
            nearer = np.flatnonzero(self.distances[self.moves[state]] == self.distances[state] - 1)
            byte = min(nearer.tolist(), key=lambda one: (not chr(one).isalnum(), not 32 < one < 127, one))
            text.append(byte)
            state = int(self.moves[state, byte])
        return bytes(text)


class Expressions:
    """Creates expressions; equal expressions are the same number."""

    def __init__(self) -> None:
        self._keys: list[_Key] = [("empty",), ("nothing more",)]
        self._index: dict[_Key, Node] = {key: number for number, key in enumerate(self._keys)}
        self._nullable: list[bool] = [False, True]
        self._derivatives: dict[tuple[Node, int], Node] = {}
        self._cuts: dict[Node, frozenset[int]] = {}

    # -- building --------------------------------------------------------------------------------------------------

    def branch(self, ranges: Iterable[tuple[int, int, Node]]) -> Node:
        """The next byte decides: ranges ``(low, high, rest)`` that do not overlap."""
        possible = tuple(sorted(item for item in ranges if item[2] != EMPTY))
        return self._make(("branch", possible), False) if possible else EMPTY

    def join(self, parts: Sequence[Node]) -> Node:
        """The parts one after the other."""
        whole = NOTHING_MORE
        for part in reversed(parts):
            whole = self._pair(part, whole)
        return whole

    def either(self, parts: Iterable[Node]) -> Node:
        """At least one of the parts."""
        members: set[Node] = set()
        for part in parts:
            key = self._keys[part]
            members.update(key[1] if key[0] == "either" else (part,))
        members.discard(EMPTY)
        if not members or len(members) == 1:
            return members.pop() if members else EMPTY
        everything = self.outside(EMPTY)
        if everything in members:
            return everything
        return self._make(("either", tuple(sorted(members))), any(self._nullable[part] for part in members))

    def both(self, parts: Iterable[Node]) -> Node:
        """All of the parts."""
        members: set[Node] = set()
        for part in parts:
            key = self._keys[part]
            members.update(key[1] if key[0] == "both" else (part,))
        members.discard(self.outside(EMPTY))
        if EMPTY in members:
            return EMPTY
        if not members or len(members) == 1:
            return members.pop() if members else self.outside(EMPTY)
        return self._make(("both", tuple(sorted(members))), all(self._nullable[part] for part in members))

    def outside(self, part: Node) -> Node:
        """The complement: all texts of bytes that do not match the part."""
        key = self._keys[part]
        return key[1] if key[0] == "outside" else self._make(("outside", part), not self._nullable[part])

    def repeat(self, part: Node, least: int, most: int | None) -> Node:
        """The part ``least`` to ``most`` times; None: any number of times."""
        if most == 0 or part == NOTHING_MORE:
            return NOTHING_MORE
        if part == EMPTY:
            return EMPTY if least else NOTHING_MORE
        if least == most == 1:
            return part
        least = 0 if self._nullable[part] else least
        return self._make(("repeat", part, least, most), least == 0)

    def _pair(self, first: Node, rest: Node) -> Node:
        if EMPTY in (first, rest):
            return EMPTY
        if first == NOTHING_MORE or rest == NOTHING_MORE:
            return rest if first == NOTHING_MORE else first
        key = self._keys[first]
        if key[0] == "join":  # associate to the right, so that equal joins are equal expressions
            return self._pair(key[1], self._pair(key[2], rest))
        return self._make(("join", first, rest), self._nullable[first] and self._nullable[rest])

    def _make(self, key: _Key, nullable: bool) -> Node:
        node = self._index.get(key)
        if node is None:
            node = self._index[key] = len(self._keys)
            self._keys.append(key)
            self._nullable.append(nullable)
        return node

    # -- derivatives ----------------------------------------------------------------------------------------------

    def automaton(self, node: Node, most: int) -> ByteAutomaton:
        """The automaton of an expression, without states from which no text can be completed.

        Args:
            node: the expression.
            most: largest number of states.

        Raises:
            TooLargeError: it has more states.
        """
        states = {node: 0}
        order = [node]
        rows = []
        at = 0
        while at < len(order):
            row = np.zeros(256, dtype=np.int32)
            cuts = sorted(self._cuts_of(order[at]) | {0, 256})
            for low, high in pairwise(cuts):
                following = self.derivative(order[at], low)
                if following not in states:
                    if len(states) >= most:
                        raise TooLargeError(f"it has more than {most} states")
                    states[following] = len(order)
                    order.append(following)
                row[low:high] = states[following]
            rows.append(row)
            at += 1
        moves = np.stack(rows)
        return _trimmed(moves, np.array([self._nullable[state] for state in order]))

    def derivative(self, node: Node, byte: int) -> Node:
        """The rests of the texts that start with a byte."""
        derivative = self._derivatives.get((node, byte))
        if derivative is None:
            derivative = self._derivatives[node, byte] = self._derive(node, byte)
        return derivative

    def _derive(self, node: Node, byte: int) -> Node:
        kind, *parts = self._keys[node]
        if kind == "branch":
            return next((rest for low, high, rest in parts[0] if low <= byte <= high), EMPTY)
        if kind == "join":
            first, rest = parts
            in_first = self._pair(self.derivative(first, byte), rest)
            if not self._nullable[first]:
                return in_first
            return self.either((in_first, self.derivative(rest, byte)))
        if kind == "either":
            return self.either(self.derivative(part, byte) for part in parts[0])
        if kind == "both":
            return self.both(self.derivative(part, byte) for part in parts[0])
        if kind == "outside":
            return self.outside(self.derivative(parts[0], byte))
        if kind == "repeat":
            part, least, most = parts
            remaining = self.repeat(part, max(least - 1, 0), None if most is None else most - 1)
            return self._pair(self.derivative(part, byte), remaining)
        return EMPTY

    def _cuts_of(self, node: Node) -> frozenset[int]:
        """The bytes at which the derivative may change."""
        cuts = self._cuts.get(node)
        if cuts is None:
            kind, *parts = self._keys[node]
            if kind == "branch":
                cuts = frozenset(cut for low, high, _ in parts[0] for cut in (low, high + 1))
            elif kind == "join":
                cuts = self._cuts_of(parts[0])
                if self._nullable[parts[0]]:
                    cuts |= self._cuts_of(parts[1])
            elif kind in ("either", "both"):
                cuts = frozenset().union(*(self._cuts_of(part) for part in parts[0]))
            elif kind in ("outside", "repeat"):
                cuts = self._cuts_of(parts[0])
            else:
                cuts = frozenset()
            self._cuts[node] = cuts
        return cuts


def _trimmed(moves: NDArray[np.int32], accepting: NDArray[np.bool_]) -> ByteAutomaton:
    """The automaton with a single dead state, which is the last one."""
    alive = accepting.copy()
    while True:
        more = alive | alive[moves].any(axis=1)
        if (more == alive).all():
            break
        alive = more
    number = np.full(len(alive), int(alive.sum()), dtype=np.int32)
    number[alive] = np.arange(int(alive.sum()), dtype=np.int32)
    dead = np.full((1, 256), int(alive.sum()), dtype=np.int32)
    alive_moves = number[moves[alive]].reshape(-1, 256)
    return ByteAutomaton(np.concatenate([alive_moves, dead]), np.append(accepting[alive], False), int(number[0]))
