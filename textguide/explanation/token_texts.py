"""Tokens as a reader sees them: white space, control characters and parts of characters become visible."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from ..constraints.tokenizer_bytes import byte_alphabet

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SHOWN = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}


def token_text(tokenizer: Any, token: int) -> str:
    """The text of one token.

    As ``tokenizer.decode`` has it, but for two things that decoding a single token loses: a space in front of a word
    (SentencePiece), and the bytes of a token that is a part of a character, which are written ``\\xNN``.
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
    """``text`` with all of it to be seen: ``␣`` a space, ``↵`` a new line, ``⇥`` a tab, ``∅`` nothing at all, and
    escapes for what no terminal or browser draws.

    Args:
        limit: longer texts end in ``…`` at so many characters; None: never.
    """
    shown = "".join(_shown(character) for character in text) or "∅"
    if unicodedata.combining(shown[0]):
        shown = f"◌{shown}"
    return shown if limit is None or len(shown) <= limit else f"{shown[: limit - 1]}…"


def readable(text: str) -> str:
    """``text`` with white space as it is, and escapes for what no terminal or browser draws."""
    return "".join(c if c.isprintable() or c in "\n\t" else _shown(c) for c in text)


def percent(probability: float) -> str:
    """A probability in six characters at most."""
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
    """The bytes of a token from its name, in tokenizers that name bytes; else None."""
    found = _BYTE.fullmatch(name)
    if found:
        return bytes([int(found[1], 16)])
    alphabet = byte_alphabet()
    return bytes(alphabet[c] for c in name) if all(c in alphabet for c in name) else None
