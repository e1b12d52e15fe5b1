"""Text out of tokens as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .results import before

Piece = tuple[int, str]
"""A token, and the text that it completes."""


class TextStream:
    """Decodes a growing list of tokens; holds back tokens whose bytes do not make a character yet.

    Args:
        tokenizer: turns token ids into text by ``decode``.
        without: texts that end the row and are not shown: what may become one of them is held back until it has not.
    """

    def __init__(self, tokenizer: Any, without: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.without = tuple(without)
        self.held = ""
        self.tokens: list[int] = []
        self.waiting = 0
        self.written = ""
        self.ended = False

    def put(self, token: int) -> list[Piece]:
        """The pieces that are complete with ``token``, one for every token: none while a character is not."""
        self.tokens.append(token)
        self.waiting += 1
        text = self._decode()
        return [] if text.endswith("�") else self._shown(self._pieces(text))

    def end(self) -> list[Piece]:
        """What was held back, an incomplete character among it; nothing comes behind."""
        if self.ended:
            return []
        self.ended = True
        pieces = self._shown(self._pieces(self._decode()) if self.waiting else [])
        last, self.held = before(self.held, self.without), ""
        return [*pieces, (self.tokens[-1], last)] if last else pieces

    def _shown(self, pieces: list[Piece]) -> list[Piece]:
        """``pieces`` without what may yet become a text of :attr:`without`."""
        if not self.without:
            return pieces
        shown = []
        for token, text in pieces:
            text = self.held + text
            found = before(text, self.without)
            keep = len(found)
            if found == text:  # hold the longest ending that begins one of them
                keep = min((n for n in range(len(text)) if any(w.startswith(text[n:]) for w in self.without)),
                           default=keep)  # fmt: skip
            self.held = text[keep:]
            shown.append((token, text[:keep]))
        return shown

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
