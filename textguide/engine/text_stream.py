"""Decode tokens into text while they are generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .results import before

Piece = tuple[int, str]
"""A token and the text that it completes."""


class TextStream:
    """Decodes a growing list of tokens. Tokens wait until their bytes form complete characters.

    Args:
        tokenizer: its ``decode`` converts token ids to text.
        without: texts that end the row and are not shown. Text that may become one of them waits until it cannot.
    """

    def __init__(self, tokenizer: Any, without: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.without = tuple(without)
        self.pending = ""  # text that may become a part of one of `without`
        self.tokens: list[int] = []
        self.waiting = 0
        self.written = ""
        self.ended = False

    def put(self, token: int) -> list[Piece]:
        """The pieces that ``token`` completes, one for every token that waited; none if a character is incomplete."""
        self.tokens.append(token)
        self.waiting += 1
        text = self._decode()
        return [] if text.endswith("�") else self._shown(self._pieces(text))

    def end(self) -> list[Piece]:
        """The text that still waited, including an incomplete character. No more tokens may follow."""
        if self.ended:
            return []
        self.ended = True
        pieces = self._shown(self._pieces(self._decode()) if self.waiting else [])
        last = before(self.pending, self.without)
        self.pending = ""
        return [*pieces, (self.tokens[-1], last)] if last else pieces

    def _shown(self, pieces: list[Piece]) -> list[Piece]:
        """``pieces`` without text that may still become one of :attr:`without`."""
        if not self.without:
            return pieces
        shown = []
        for token, text in pieces:
            text = self.pending + text
            length = len(before(text, self.without))
            if length == len(text):
                length -= self._overlap(text)
            self.pending = text[length:]
            shown.append((token, text[:length]))
        return shown

    def _overlap(self, text: str) -> int:
        """The length of the longest ending of ``text`` that begins one of :attr:`without`."""
        for start in range(len(text)):
            if any(stop.startswith(text[start:]) for stop in self.without):
                return len(text) - start
        return 0

    def _decode(self) -> str:
        text: str = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        return text

    def _pieces(self, text: str) -> list[Piece]:
        *earlier, last = self.tokens[-self.waiting :]
        pieces = [(token, "") for token in earlier]
        pieces.append((last, text[len(self.written) :]))
        self.written = text
        self.waiting = 0
        if text.endswith("\n"):
            # Only decode from here on, so that the cost per token does not grow with the text. The last token stays,
            # because SentencePiece decoders drop a space at the beginning.
            del self.tokens[:-1]
            self.written = self._decode()
        return pieces
