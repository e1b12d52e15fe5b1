"""A tokenizer's vocabulary as bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """What each token adds to a text.

    Args:
        tokens: the bytes of every token id of the model, (V,); empty for special tokens and for ids without a token,
            which no constraint allows.
        ends: ids of the tokens that end a text.
    """

    tokens: tuple[bytes, ...]
    ends: frozenset[int]

    @property
    def size(self) -> int:
        """V."""
        return len(self.tokens)
