"""All substrings of some documents: which bytes may follow, and the places of a substring.

The suffixes of the documents are sorted (a suffix array, Manber and Myers 1993). Those that start with the same bytes
are adjacent, so a substring is an interval of them, and one more byte narrows the interval by binary search.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...support.array_cache import cached
from ..token_tree import TokenTree, expand, token_tree
from ..vocabulary import Vocabulary

SEPARATOR = 0xFF
"""The byte after each document; UTF-8 never contains it."""
LARGEST = 16_000_000
"""Most bytes of all documents."""
FEW = 256
"""Size of an interval up to which its suffixes are read one by one."""
WIDTH = 7
"""Bytes by which suffixes are sorted first."""


class Interval(NamedTuple):
    """The suffixes that start with a substring.

    Args:
        low: the first of them in the order.
        high: the first one after them.
        depth: length of the substring in bytes.
    """

    low: int
    high: int
    depth: int


class SuffixIndex:
    """The suffixes of some documents that start at certain positions, in order.

    Args:
        data: the documents, each followed by :data:`SEPARATOR`.
        starts: the positions at which suffixes start, int64.

    Raises:
        ValueError: there are more than :data:`LARGEST` bytes.
    """

    def __init__(self, data: bytes, starts: NDArray[np.int64]) -> None:
        if len(data) > LARGEST:
            raise ValueError(f"the documents have {len(data):,} bytes, and at most {LARGEST:,} are supported")
        self.data = data
        key = {"data": hashlib.sha256(data).hexdigest(), "starts": hashlib.sha256(starts.tobytes()).hexdigest()}
        self.order = cached("suffixes", key, lambda: {"order": _sorted_suffixes(data, starts)})["order"]
        self._bytes = np.frombuffer(data, dtype=np.uint8)

    @property
    def everything(self) -> Interval:
        """The interval of the empty substring."""
        return Interval(0, len(self.order), 0)

    def extend(self, interval: Interval, text: bytes) -> Interval:
        """The interval of the substring followed by ``text``; it is empty if the documents do not contain that."""
        low, high, depth = interval
        if SEPARATOR in text:
            return Interval(low, low, depth + len(text))
        for number, byte in enumerate(text):
            if high - low == 1:  # the only suffix is compared as a whole
                start = int(self.order[low]) + depth
                found = self.data[start : start + len(text) - number] == text[number:]
                return Interval(low, high if found else low, depth + len(text) - number)
            if low >= high:
                break
            low, high = self._narrow(low, high, depth, byte)
            depth += 1
        return Interval(low, high, interval.depth + len(text))

    def _narrow(self, low: int, high: int, depth: int, byte: int) -> tuple[int, int]:
        def byte_at(position: int) -> int:
            return self.data[int(self.order[position]) + depth]

        within = range(low, high)
        return low + bisect_left(within, byte, key=byte_at), low + bisect_right(within, byte, key=byte_at)

    def positions(self, interval: Interval) -> NDArray[np.int64]:
        """The positions of the substring of an interval, in no particular order, int64."""
        return self.order[interval.low : interval.high].astype(np.int64)

    def following(self, interval: Interval, vocabulary: Vocabulary, first: bool = False) -> list[int]:
        """The tokens that may follow a substring.

        Args:
            interval: of the substring.
            vocabulary: the tokens.
            first: whether they are the first of a text, which may lose a space.
        """
        if interval.high - interval.low <= FEW:
            return self._read(interval, _prefixes(vocabulary, first))
        return self._walk(interval, token_tree(vocabulary, first))

    def _read(self, interval: Interval, prefixes: dict[bytes, list[int]]) -> list[int]:
        """The tokens that may follow, from the texts after each position."""
        longest = max(map(len, prefixes), default=0)
        starts = self.positions(interval) + interval.depth
        tokens: list[int] = []
        seen: set[bytes] = set()
        for rest in {self.data[start : start + longest] for start in starts.tolist()}:
            for size in range(1, len(rest) + 1):
                text = rest[:size]
                if text in seen:
                    continue
                if text not in prefixes or rest[size - 1] == SEPARATOR:
                    break
                seen.add(text)
                tokens += prefixes[text]
        return tokens

    def _walk(self, interval: Interval, tree: TokenTree) -> list[int]:
        """The tokens that may follow, by a walk through the tree of tokens, level by level."""
        low = np.array([interval.low])
        high = np.array([interval.high])
        node = np.zeros(1, dtype=np.int64)
        tokens: list[int] = []
        for level, (byte, offsets, (ended, ending)) in enumerate(tree.levels):
            parent, child = expand(offsets[node + 1] - offsets[node])
            node = offsets[node][parent] + child
            low, high = self._bounds(low[parent], high[parent], byte[node], interval.depth + level)
            alive = (low < high) & (byte[node] != SEPARATOR)
            node, low, high = node[alive], low[alive], high[alive]
            first = np.searchsorted(ended, node)
            index, number = expand(np.searchsorted(ended, node, side="right") - first)
            tokens += ending[first[index] + number].tolist()
        return tokens

    def _bounds(
        self, low: NDArray[Any], high: NDArray[Any], byte: NDArray[Any], depth: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """The part of each interval whose suffixes have a byte at ``depth``."""
        edges = []
        for target in (byte.astype(np.int64), byte.astype(np.int64) + 1):  # first byte of at least the target
            left, right = low.copy(), high.copy()
            while (searching := left < right).any():
                middle = (left + right) // 2
                # Searches that have ended read any byte.
                read = np.minimum(self.order[np.where(searching, middle, 0)] + depth, len(self._bytes) - 1)
                is_below = searching & (self._bytes[read] < target)
                left = np.where(is_below, middle + 1, left)
                right = np.where(searching & ~is_below, middle, right)
            edges.append(left)
        return edges[0], edges[1]


def _sorted_suffixes(data: bytes, starts: NDArray[np.int64]) -> NDArray[np.int32]:
    """The positions in ``starts`` in the order of the suffixes, by prefix doubling."""
    size = len(data)
    if not size:
        return np.zeros(0, dtype=np.int32)
    padded = np.frombuffer(data + bytes(WIDTH), dtype=np.uint8)
    key = np.zeros(size, dtype=np.int64)
    for offset in range(WIDTH):
        key = key * 256 + padded[offset : offset + size]
    width = WIDTH
    while True:
        order = np.argsort(key, kind="stable")
        ranks = np.concatenate([[0], np.cumsum(np.diff(key[order]) != 0)])
        if ranks[-1] == size - 1:
            break
        rank = np.empty(size, dtype=np.int64)
        rank[order] = ranks
        second = np.zeros(size, dtype=np.int64)
        second[: size - width] = rank[width:] + 1
        key = rank * (size + 1) + second
        width *= 2
    is_start = np.zeros(size, dtype=bool)
    is_start[starts] = True
    return order[is_start[order]].astype(np.int32)


@lru_cache(maxsize=8)
def _prefixes(vocabulary: Vocabulary, first: bool) -> dict[bytes, list[int]]:
    """Every text that a token starts with, and the tokens that equal it."""
    found: dict[bytes, list[int]] = {}
    for token, written in enumerate(vocabulary.tokens):
        text = vocabulary.visible(written) if first else written
        for size in range(1, len(text) + 1):
            found.setdefault(text[:size], [])
        if text:
            found[text].append(token)
    return found


def joined(documents: Iterable[bytes]) -> bytes:
    """Documents, each followed by :data:`SEPARATOR`."""
    return b"".join(document + bytes([SEPARATOR]) for document in documents)
