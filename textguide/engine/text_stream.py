"""Text out of tokens as they come."""

from __future__ import annotations

from typing import Any

Piece = tuple[int, str]
"""A token, and the text that it completes."""


class TextStream:
    """Decodes a growing list of tokens; holds back tokens whose bytes do not make a character yet.

    Args:
        tokenizer: turns token ids into text by ``decode``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.waiting = 0
        self.written = ""
        self.ended = False

    def put(self, token: int) -> list[Piece]:
        """The pieces that are complete with ``token``, one for every token: none while a character is not."""
        self.tokens.append(token)
        self.waiting += 1
        text = self._decode()
        return [] if text.endswith("�") else self._pieces(text)

    def end(self) -> list[Piece]:
        """What was held back, an incomplete character among it; nothing comes behind."""
        self.ended = True
        return self._pieces(self._decode()) if self.waiting else []

    def _decode(self) -> str:
        text: str = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        return text

    def _pieces(self, text: str) -> list[Piece]:
        held = self.tokens[-self.waiting :]
        pieces = [*((token, "") for token in held[:-1]), (held[-1], text[len(self.written) :])]
        self.written, self.waiting = text, 0
        if text.endswith("\n"):
            # Decode from here on, so that a long text costs no more a token than a short one. The last token stays in
            # front: decoders of SentencePiece drop a space at the beginning.
            del self.tokens[:-1]
            self.written = self._decode()
        return pieces
