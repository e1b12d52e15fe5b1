"""White space, control characters and parts of characters can be told apart."""

from __future__ import annotations

from typing import Any

import pytest

from textguide.constraints.tokenizer_bytes import byte_alphabet
from textguide.explanation.token_texts import percent, readable, token_text, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "␣the"),
        ("\n\n", "↵↵"),
        ("\r\t", "␍⇥"),
        ("", "∅"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u200b\u202e", "\\u200b\\u202e"),
        ("\u0301", "◌\u0301"),
        ("漢字 🐉", "漢字␣🐉"),
        ("\ud83d", "\\ud83d"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_long_texts_are_cut() -> None:
    assert visible(" " * 40, 10) == "␣" * 9 + "…"
    assert visible("x" * 10, 10) == "x" * 10


def test_readable_keeps_white_space() -> None:
    assert readable("a b\n\tc\x00\u202e") == "a b\n\tc\\x00\\u202e"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0%"),
        (-0.0, "0%"),
        (1.0, "100.0%"),
        (0.271, "27.1%"),
        (0.0005, "0.1%"),
        (0.00049, "5e-04"),
        (1e-30, "1e-30"),
    ],
)
def test_percent(value: float, shown: str) -> None:
    assert percent(value) == shown


class Named:
    """A tokenizer that decodes single tokens as transformers does, and names them."""

    def __init__(self, name: str | None, text: str) -> None:
        self.name, self.text = name, text

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self.name

    def decode(self, ids: Any) -> str:
        return self.text


_BYTES = {byte: character for character, byte in byte_alphabet().items()}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("▁the", "the", " the"),
        ("▁the", " the", " the"),
        ("<0xE2>", "�", "\\xe2"),
        (_BYTES[0xF0] + _BYTES[0x9F], "�", "\\xf0\\x9f"),
        (_BYTES[0x20] + _BYTES[0xC3], " �", " \\xc3"),
        ("漢", "�", "�"),
        (None, "x", "x"),
        ("<|end|>", "<|end|>", "<|end|>"),
    ],
)
def test_token_text(name: str | None, text: str, expected: str) -> None:
    assert token_text(Named(name, text), 5) == expected
