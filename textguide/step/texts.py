"""The text of a row that grows token by token, and the texts that each candidate for its next token would make."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

from ..constraints.vocabulary import Vocabulary

UNFINISHED = "�"
# Tokens that are decoded again with a candidate where a token's text depends on its neighbours.
WINDOW = 4


class RowText(Protocol):
    """The text of one row.

    A character whose bytes are not complete yet is left out; special tokens add nothing, so that an end token stands
    for the finished text.
    """

    def append(self, token: int) -> None:
        """Write a token."""

    def endings(self, candidates: Sequence[int]) -> tuple[str, list[str]]:
        """A beginning and, for every candidate, what follows it: their sum is the text with the candidate written."""

    def copy(self) -> RowText:
        """An independent row with the same text."""

    @property
    def text(self) -> str:
        """The text so far."""


class Alphabet:
    """How the tokens of one tokenizer make text; shared by all rows of a run.

    Where tokens are bytes that are simply put one behind the other (byte-level and byte-fallback tokenizers), a
    candidate's text is looked up. Otherwise the last tokens are decoded again with each candidate.

    Args:
        tokenizer: a transformers tokenizer.
        size: number of tokens of the model.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.tokenizer = tokenizer
        self.pieces: list[str | None] | None = None
        self.bytes: tuple[bytes, ...] = ()
        vocabulary = _vocabulary(tokenizer, size)
        self.drops_leading_space = False
        if vocabulary is not None:
            pieces = list(vocabulary.tokens)
            for token, added in tokenizer.added_tokens_decoder.items():
                if not added.special and token < size:
                    pieces[token] = added.content.encode()
            self.bytes = tuple(pieces)
            self.pieces = [_whole(piece) for piece in pieces]
            self.drops_leading_space = vocabulary.drops_leading_space

    def row(self, ids: Sequence[int]) -> RowText:
        """A row that has read ``ids``."""
        if self.pieces is None:
            return _DecodedRow(self.tokenizer, list(ids))
        return _ByteRow(self, ids)


class _ByteRow:
    def __init__(self, alphabet: Alphabet, ids: Sequence[int]) -> None:
        self._alphabet = alphabet
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._pending = False
        self._drops = alphabet.drops_leading_space
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        piece = self._alphabet.bytes[token]
        if piece:
            self._text += self._shown(self._decoder.decode(piece))
            self._pending = bool(self._decoder.getstate()[0])
            self._drops = False

    def endings(self, candidates: Sequence[int]) -> tuple[str, list[str]]:
        pieces = self._alphabet.pieces
        assert pieces is not None
        if not self._pending:
            found = [pieces[token] for token in candidates]
            decoded = [self._decoded(t) if e is None else e for t, e in zip(candidates, found, strict=True)]
            return self._text, [self._shown(ending) for ending in decoded] if self._drops else decoded
        return self._text, [self._decoded(token) for token in candidates]

    def _shown(self, text: str) -> str:
        return text[1:] if self._drops and text[:1] == " " else text

    def _decoded(self, token: int) -> str:
        piece = self._alphabet.bytes[token]
        if not piece:
            return ""
        state = self._decoder.getstate()
        text = self._decoder.decode(piece)
        self._decoder.setstate(state)
        return text

    def copy(self) -> _ByteRow:
        twin = _ByteRow(self._alphabet, ())
        twin._text, twin._pending, twin._drops = self._text, self._pending, self._drops
        twin._decoder.setstate(self._decoder.getstate())
        return twin

    @property
    def text(self) -> str:
        return self._text


class _DecodedRow:
    def __init__(self, tokenizer: Any, ids: list[int]) -> None:
        self._tokenizer, self._ids = tokenizer, ids

    def append(self, token: int) -> None:
        self._ids.append(token)

    def endings(self, candidates: Sequence[int]) -> tuple[str, list[str]]:
        text = self._decode([self._ids])[0]
        window = self._ids[-WINDOW:]
        tail = self._decode([window])[0]
        if not tail or not text.endswith(tail) or UNFINISHED in tail:
            window, tail = self._ids, text
        decoded = self._decode([[*window, token] for token in candidates])
        return text[: len(text) - len(tail)], [ending.rstrip(UNFINISHED) for ending in decoded]

    def copy(self) -> _DecodedRow:
        return _DecodedRow(self._tokenizer, list(self._ids))

    def _decode(self, rows: list[list[int]]) -> list[str]:
        decoded: list[str] = self._tokenizer.batch_decode(
            rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded

    @property
    def text(self) -> str:
        return self._decode([self._ids])[0].rstrip(UNFINISHED)


def _vocabulary(tokenizer: Any, size: int) -> Vocabulary | None:
    try:
        return Vocabulary.of(tokenizer, size)
    except (ValueError, AttributeError, TypeError):
        return None


def _whole(piece: bytes) -> str | None:
    """The text of a token that makes whole characters by itself, else None."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return None
