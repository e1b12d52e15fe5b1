"""Tokens as text for people: white space, control characters and parts of characters become visible."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from ..constraints.tokenizer_bytes import byte_alphabet

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SHOWN = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}


def token_text(tokenizer: Any, token: int) -> str:
    """The text of one token.

    This is the result of ``tokenizer.decode``, except for two things that decoding a single token loses: the space
    before a word (SentencePiece), and the bytes of a token that is part of a character, which are written ``\\xNN``.
    """
    text = str(tokenizer.decode([token]))
    convert = getattr(tokenizer, "convert_ids_to_tokens", None)
    name = convert(token) if convert is not None else None
    if not isinstance(name, str):
        return text
    if "\ufffd" in text:
        data = _bytes(name)
        return text if data is None else data.decode("utf-8", "backslashreplace")
    if name.startswith("▁") and not text.startswith(" "):
        return f" {text}"
    return text


def visible(text: str, limit: int | None = None) -> str:
    """``text`` with every character visible.

    ``␣`` is a space, ``↵`` a new line, ``⇥`` a tab and ``∅`` an empty text; characters that terminals and browsers do
    not draw are escaped.

    Args:
        text: the text.
        limit: texts with more characters are cut off and end in ``…``; None: never.
    """
    shown = "".join(_shown(character) for character in text) or "∅"
    if unicodedata.combining(shown[0]):
        shown = f"◌{shown}"
    return shown if limit is None or len(shown) <= limit else f"{shown[: limit - 1]}…"


def readable(text: str) -> str:
    """``text`` with unchanged white space; characters that terminals and browsers do not draw are escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else _shown(c) for c in text)


def percent(probability: float) -> str:
    """A probability in at most six characters."""
    if probability <= 0:
        return "0%"
    return f"{probability:.1%}" if probability >= 0.0005 else f"{probability:.0e}"


def _shown(character: str) -> str:
    if character in _SHOWN:
        return _SHOWN[character]
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def _bytes(name: str) -> bytes | None:
    """The bytes of a token from its name; None if the tokenizer does not name bytes."""
    match = _BYTE.fullmatch(name)
    if match:
        return bytes([int(match[1], 16)])
    alphabet = byte_alphabet()
    return bytes(alphabet[c] for c in name) if all(c in alphabet for c in name) else None
