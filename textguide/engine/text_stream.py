"""Text out of tokens as they come."""

from __future__ import annotations

from collections.abc import Set
from typing import Any


class TextStream:
    """Decodes a growing list of tokens; holds back bytes that do not make a character yet."""

    def __init__(self, tokenizer: Any, end_tokens: Set[int]) -> None:
        self.tokenizer, self.end_tokens = tokenizer, end_tokens
        self.tokens: list[int] = []
        self.start = 0
        self.written = ""
        self.ended = False

    def put(self, token: int) -> str:
        self.ended = token in self.end_tokens
        self.tokens.append(token)
        text = self.tokenizer.decode(self.tokens[self.start :], skip_special_tokens=True)
        if text.endswith("�") and not self.ended:
            return ""
        new = text[len(self.written) :]
        self.written = text
        # Decode from the last line on, so that a long text costs no more a token than a short one.
        if text.endswith("\n"):
            self.start, self.written = len(self.tokens), ""
        return new
