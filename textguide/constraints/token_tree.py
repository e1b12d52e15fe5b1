"""The tokens of a vocabulary as a tree of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenTree:
    """The tokens of a vocabulary as a tree of bytes, level by level.

    Args:
        levels: for each level the bytes of its nodes, ordered by parent (in the level above); the offset of the
            children of each parent; and pairs of a node and a token that ends there, ordered by node.
        blank: tokens that leave the text empty, because they are only the space that is dropped.
    """

    levels: tuple[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], ...]
    blank: tuple[int, ...] = ()


@lru_cache(maxsize=8)
def token_tree(vocabulary: Vocabulary, first: bool = False) -> TokenTree:
    """The tokens of a vocabulary as a tree; ``first``: as the first token of a text, which may lose a space."""
    written = [vocabulary.visible(text) if first else text for text in vocabulary.tokens]
    pairs = sorted((text, token) for token, text in enumerate(written) if text)
    blank = tuple(token for token, text in enumerate(written) if vocabulary.tokens[token] and not text)
    texts = [text for text, _ in pairs]
    tokens = np.array([token for _, token in pairs], dtype=np.int64)
    node = np.zeros(len(texts), dtype=np.int64)  # of each text, in the level above
    alive = np.arange(len(texts))
    levels = []
    parents = 1
    depth = 0
    while len(alive):
        byte = np.array([texts[number][depth] for number in alive], dtype=np.int64)
        keys = node[alive] * 256 + byte
        unique, inverse = np.unique(keys, return_inverse=True)
        node[alive] = inverse
        offsets = np.searchsorted(unique // 256, np.arange(parents + 1))
        ended = np.array([len(texts[number]) == depth + 1 for number in alive], dtype=bool)
        ends = np.stack([inverse[ended], tokens[alive[ended]]])
        levels.append((unique % 256, offsets, ends[:, np.argsort(ends[0], kind="stable")]))
        parents = len(unique)
        alive = alive[~ended]
        depth += 1
    return TokenTree(tuple(levels), blank)


def expand(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The index of each element, repeated as often as its count, and the number of each repetition from 0 on."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
