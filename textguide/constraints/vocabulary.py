"""A tokenizer's vocabulary as bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from ..support.checks import whole_number

_VOCABULARIES: WeakKeyDictionary[Any, OrderedDict[Any, Vocabulary]] = WeakKeyDictionary()
MOST_KEPT = 8
"""Vocabularies that are kept per tokenizer."""
SPECIAL = b"\xff"
"""The byte before and after the name of a special token, if it has bytes at all; UTF-8 never contains it."""


@dataclass(frozen=True)
class Vocabulary:
    """The bytes that each token adds to a text.

    Args:
        tokens: the bytes of every token id of the model, (V,). Special tokens and ids without a token are empty; no
            constraint allows them.
        ends: ids of the tokens that end a text.
        drops_leading_space: whether the tokenizer's ``decode`` drops a space at the start of the text, as SentencePiece
            and WordPiece do. Constraints then apply to the text without that space, whether it was written or not;
            :attr:`Session.text` holds the bytes that were written.
        specials: names and ids of the special tokens, which constraints on tags may use; see :meth:`spelled`.

    Raises:
        ValueError: an end token is not an id of the vocabulary.
    """

    tokens: tuple[bytes, ...]
    ends: frozenset[int]
    drops_leading_space: bool = False
    specials: tuple[tuple[str, int], ...] = ()
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        for end in self.ends:
            if not 0 <= end < len(self.tokens):
                raise ValueError(f"ends contains the id {end}, but the vocabulary has {len(self.tokens)} tokens")
        # Stored, because the vocabulary is a key of caches that are looked up at every step.
        object.__setattr__(self, "_hash", hash((self.tokens, self.ends, self.drops_leading_space)))

    def __hash__(self) -> int:
        return self._hash

    @property
    def size(self) -> int:
        """V, the number of token ids."""
        return len(self.tokens)

    @cached_property
    def digest(self) -> str:
        """A hash that identifies the vocabulary, the same in every process."""
        digest = hashlib.sha256(f"{self.size} {sorted(self.ends)} {self.drops_leading_space}".encode())
        digest.update(b"".join(len(text).to_bytes(4, "little") + text for text in self.tokens))
        return digest.hexdigest()

    def visible(self, text: bytes) -> bytes:
        """``text`` as ``decode`` shows it, which is what constraints apply to."""
        return text[1:] if self.drops_leading_space and text[:1] == b" " else text

    def bytes_of(self, token: int) -> bytes:
        """The bytes that ``token`` adds to a text.

        Raises:
            ValueError: it adds nothing: it is not an id, or it is an end token or another special token.
        """
        if not 0 <= token < len(self.tokens):
            raise ValueError(f"token={token} is not an id of the vocabulary, which has {len(self.tokens)} tokens")
        if not self.tokens[token]:
            reason = "ends a text" if token in self.ends else "has no bytes"
            raise ValueError(f"token={token} {reason}; a session cannot advance over it")
        return self.tokens[token]

    @classmethod
    def of(cls, tokenizer: Any, size: int | None = None, ends: Iterable[int] | int | None = None) -> Vocabulary:
        """The vocabulary of a transformers tokenizer, cached per tokenizer.

        Byte-level BPE, SentencePiece-like models with and without byte fallback, WordPiece, and tokenizers of whole
        words or characters are read from their own description; any other tokenizer is read by decoding every token.

        Args:
            tokenizer: a transformers tokenizer.
            size: V, the width of the model's logits; ids beyond the tokenizer's own are empty. Default: the size of
                the tokenizer.
            ends: ids of the tokens that end a text; default: the tokenizer's ``eos_token_id``.

        Raises:
            ValueError: the tokenizer cannot be read, or the bytes that were read differ from what the tokenizer
                decodes; the message names it.
        """
        from . import tokenizer_bytes

        if size is not None:
            whole_number("size", size, 1, "it is the width of the model's logits")
        if ends is None:
            ends = tokenizer.eos_token_id
        if ends is None:
            ends = ()
        elif isinstance(ends, int):
            ends = (ends,)
        ends = frozenset(ends)
        cache = _VOCABULARIES.setdefault(tokenizer, OrderedDict())
        # The added tokens belong to the key: the same tokenizer object may get more of them later.
        key = (len(tokenizer), size, ends, tuple(sorted(tokenizer.get_added_vocab().items())))
        if key not in cache:
            tokens, drops_leading_space = tokenizer_bytes.read(tokenizer)
            specials = tokenizer_bytes.special_tokens(tokenizer, tokens)
            if size is None:
                size = len(tokens)
            padded = [*tokens[:size], *[b""] * (size - len(tokens))]
            without_ends = tuple(b"" if token in ends else text for token, text in enumerate(padded))
            named = tuple((name, token) for name, token in specials if token < size)
            cache[key] = cls(without_ends, frozenset(end for end in ends if end < size), drops_leading_space, named)
            if len(cache) > MOST_KEPT:  # clients of a server choose the tokens that end a text
                cache.popitem(last=False)
        cache.move_to_end(key)
        return cache[key]

    def with_ends(self, ends: Iterable[int]) -> Vocabulary:
        """The same tokens, of which others end a text."""
        kept = frozenset(ends)
        tokens = tuple(b"" if token in kept else text for token, text in enumerate(self.tokens))
        ends = frozenset(end for end in kept if end < self.size)
        return Vocabulary(tokens, ends, self.drops_leading_space, self.specials)

    def spelled(self, names: Iterable[str]) -> Vocabulary:
        """The same tokens, of which some special ones have bytes: their name between two bytes :data:`SPECIAL`.

        Other tokens with this byte, which no text contains, have none.

        Args:
            names: of special tokens.

        Raises:
            ValueError: one of them is not a special token, or ends the text.
        """
        wanted = frozenset(names)
        return _spelled(self, wanted) if wanted else self


def special_bytes(name: str) -> bytes:
    """The bytes of a special token in :meth:`Vocabulary.spelled`."""
    return SPECIAL + name.encode() + SPECIAL


def spelled(text: str, names: Iterable[str]) -> bytes:
    """The bytes of a text in which the names of special tokens mean these tokens."""
    for name in sorted(names, key=len, reverse=True):
        before, found, after = text.partition(name)
        if found:
            return spelled(before, names) + special_bytes(name) + spelled(after, names)
    return text.encode()


@lru_cache(maxsize=8)
def _spelled(vocabulary: Vocabulary, names: frozenset[str]) -> Vocabulary:
    ids = dict(vocabulary.specials)
    tokens = [b"" if SPECIAL in text else text for text in vocabulary.tokens]
    for name in sorted(names):
        if name not in ids:
            raise ValueError(f"{name!r} is not a special token of the vocabulary")
        if ids[name] in vocabulary.ends:
            raise ValueError(f"{name!r} ends the text, so nothing can follow it; use another text")
        tokens[ids[name]] = special_bytes(name)
    return replace(vocabulary, tokens=tuple(tokens))
