"""A tokenizer's vocabulary as bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

_OF: WeakKeyDictionary[Any, dict[Any, Vocabulary]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Vocabulary:
    """What each token adds to a text.

    Args:
        tokens: the bytes of every token id of the model, (V,); empty for special tokens and for ids without a token,
            which no constraint allows.
        ends: ids of the tokens that end a text.
        drops_leading_space: whether the tokenizer's ``decode`` leaves out a space in front of the whole text, as
            SentencePiece and WordPiece do. Constraints then speak of the text without it, whether it was written or
            not; :attr:`Session.text` holds what was written.

    Raises:
        ValueError: an end token is no id of the vocabulary.
    """

    tokens: tuple[bytes, ...]
    ends: frozenset[int]
    drops_leading_space: bool = False
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        for end in self.ends:
            if not 0 <= end < len(self.tokens):
                raise ValueError(f"ends holds the id {end}, and the vocabulary has {len(self.tokens)} tokens")
        # Asked for at every step, as the key of what was compiled for this vocabulary.
        object.__setattr__(self, "_hash", hash((self.tokens, self.ends, self.drops_leading_space)))

    def __hash__(self) -> int:
        return self._hash

    @property
    def size(self) -> int:
        """V."""
        return len(self.tokens)

    @cached_property
    def digest(self) -> str:
        """What tells it from other vocabularies, equal in every process."""
        digest = hashlib.sha256(f"{self.size} {sorted(self.ends)} {self.drops_leading_space}".encode())
        digest.update(b"".join(len(text).to_bytes(4, "little") + text for text in self.tokens))
        return digest.hexdigest()

    def visible(self, text: bytes) -> bytes:
        """``text`` as ``decode`` shows it, which is what constraints speak of."""
        return text[1:] if self.drops_leading_space and text[:1] == b" " else text

    def bytes_of(self, token: int) -> bytes:
        """What ``token`` adds to a text.

        Raises:
            ValueError: it adds nothing: it is no id, an end token, or a special one.
        """
        if not 0 <= token < len(self.tokens):
            raise ValueError(f"token={token} is no id of the vocabulary, which has {len(self.tokens)} tokens")
        if not self.tokens[token]:
            what = "ends a text" if token in self.ends else "has no bytes"
            raise ValueError(f"token={token} {what}; a session cannot advance over it")
        return self.tokens[token]

    @classmethod
    def of(cls, tokenizer: Any, size: int | None = None, ends: Iterable[int] | int | None = None) -> Vocabulary:
        """The vocabulary of a transformers tokenizer; made once for a tokenizer.

        Byte-level BPE, SentencePiece-like models with and without bytes as a fallback, WordPiece and tokenizers that
        write whole words or characters are read from what they say of themselves, others by decoding every token.

        Args:
            tokenizer: a transformers tokenizer.
            size: V, the width of the model's logits; ids behind the tokenizer's own are empty. Default: as
                many as the tokenizer has.
            ends: ids of the tokens that end a text; default: the tokenizer's ``eos_token_id``.

        Raises:
            ValueError: the tokenizer cannot be understood, or the bytes that were found do not give the text that the
                tokenizer decodes; the message names it.
        """
        from . import tokenizer_bytes

        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"size={size!r} must be the width of the model's logits, a whole number of 1 or more")
        if ends is None:
            ends = tokenizer.eos_token_id
        ends = frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)
        known = _OF.setdefault(tokenizer, {})
        # Tokens that are added later make another vocabulary.
        key = (len(tokenizer), size, ends, tuple(sorted(tokenizer.get_added_vocab().items())))
        if key not in known:
            tokens, drops = tokenizer_bytes.read(tokenizer)
            size = len(tokens) if size is None else size
            padded = [*tokens[:size], *[b""] * (size - len(tokens))]
            kept = tuple(b"" if token in ends else text for token, text in enumerate(padded))
            known[key] = cls(kept, frozenset(end for end in ends if end < size), drops)
        return known[key]
