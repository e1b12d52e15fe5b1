"""The text of a row that grows token by token, and its text with each candidate for the next token."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

from ..constraints.vocabulary import Vocabulary

UNFINISHED = "�"
WINDOW = 4
"""Tokens that are decoded again with a candidate if the text of a token depends on its neighbours."""


class RowText(Protocol):
    """The text of one row.

    Characters whose bytes are incomplete are left out. Special tokens add nothing, so that an end token leaves the
    finished text unchanged.
    """

    def append(self, token: int) -> None:
        """Append a token."""

    def endings(self, candidates: Sequence[int]) -> tuple[str, list[str]]:
        """A prefix and, for every candidate, an ending: their sum is the text with the candidate appended."""

    def copy(self) -> RowText:
        """An independent row with the same text."""

    @property
    def text(self) -> str:
        """The text so far."""


class Alphabet:
    """Converts the tokens of one tokenizer to text; shared by all rows of a run.

    If tokens are bytes that are simply concatenated (byte-level and byte-fallback tokenizers), the text of a candidate
    is looked up. Otherwise, the last tokens are decoded again with each candidate.

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
            endings = []
            for token in candidates:
                piece = pieces[token]
                endings.append(self._shown(self._decoded(token) if piece is None else piece))
            return self._text, endings
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
        row = _ByteRow(self._alphabet, ())
        row._text = self._text
        row._pending = self._pending
        row._drops = self._drops
        row._decoder.setstate(self._decoder.getstate())
        return row

    @property
    def text(self) -> str:
        return self._text


class _DecodedRow:
    def __init__(self, tokenizer: Any, ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = ids

    def append(self, token: int) -> None:
        self._ids.append(token)

    def endings(self, candidates: Sequence[int]) -> tuple[str, list[str]]:
        text = self._decode([self._ids])[0]
        window = self._ids[-WINDOW:]
        tail = self._decode([window])[0]
        if not tail or not text.endswith(tail) or UNFINISHED in tail:
            window = self._ids
            tail = text
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
    """The text of a token that consists of complete characters, else None."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return None
