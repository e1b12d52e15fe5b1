"""The tokens of a vocabulary by what they write of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..utf8 import whole_characters
from ..vocabulary import SPECIAL, Vocabulary

MAX_CHECKED = 500
"""Tokens that are checked one by one for a mask. If there are more, no mask is made, and only the tokens that are
proposed are checked."""


@dataclass(frozen=True)
class _Tokens:
    """Tokens by what they write of a text.

    Args:
        starting: tokens that end with the start of the text, or contain it.
        continuing: tokens that write its next bytes after so many of its bytes, by that number.
    """

    starting: tuple[int, ...]
    continuing: dict[int, tuple[int, ...]]


def tokens_into(vocabulary: Vocabulary, target: bytes, written: Sequence[int]) -> set[int]:
    """The tokens that write a part of a text.

    Args:
        vocabulary: the tokens.
        target: the text.
        written: the numbers of its bytes that may have been written.
    """
    if not target:
        return set()
    tokens = _tokens(vocabulary, target)
    found = set(tokens.starting)
    for size in written:
        found.update(tokens.continuing[size])
    return found


@lru_cache(maxsize=64)
def _tokens(vocabulary: Vocabulary, target: bytes) -> _Tokens:
    starting = []
    starts = tuple(target[:size] for size in range(1, len(target)))
    continuing: dict[int, list[int]] = {size: [] for size in range(1, len(target))}
    for number, token in enumerate(vocabulary.tokens):
        if not token:
            continue
        if target in token or token.endswith(starts):
            starting.append(number)
        for size, tokens in continuing.items():
            if target.startswith(token, size) or token.startswith(target[size:]):
                tokens.append(number)
    return _Tokens(tuple(starting), {size: tuple(tokens) for size, tokens in continuing.items()})


def free_tokens(vocabulary: Vocabulary, incomplete: bytes) -> Tensor:
    """The tokens that may follow in free text, bool (V,).

    Args:
        vocabulary: the tokens.
        incomplete: the first bytes of a character that is not complete.
    """
    if not incomplete:
        return _whole_tokens(vocabulary).clone()
    mask = torch.zeros(vocabulary.size, dtype=torch.bool)
    for token in _continuations(vocabulary):
        mask[token] = whole_characters(incomplete + vocabulary.tokens[token]) is not None
    return mask


@lru_cache(maxsize=8)
def _whole_tokens(vocabulary: Vocabulary) -> Tensor:
    """The tokens that start with a character and have no special token."""
    allowed = []
    for number, token in enumerate(vocabulary.tokens):
        is_text = bool(token) and number not in vocabulary.ends and SPECIAL not in token
        allowed.append(is_text and whole_characters(token) is not None)
    return torch.tensor(allowed)


@lru_cache(maxsize=8)
def _continuations(vocabulary: Vocabulary) -> tuple[int, ...]:
    """The tokens that start inside a character."""
    return tuple(number for number, token in enumerate(vocabulary.tokens) if 0x80 <= (token[:1] or b"\0")[0] < 0xC0)
