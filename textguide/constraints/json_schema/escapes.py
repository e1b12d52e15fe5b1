"""Escapes in JSON strings, also unfinished ones: which characters they may still become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from ..automata.characters import LAST, Range, sequences
from ..automata.expressions import ByteAutomaton

_SIMPLE = {
    b"\\b": "\b", b"\\f": "\f", b"\\n": "\n", b"\\r": "\r", b"\\t": "\t", b'\\"': '"', b"\\/": "/", b"\\\\": "\\",
}  # fmt: skip
_PAIRS = 0x10000
"""The first character that is written as a pair of surrogates."""


@lru_cache(maxsize=1)
def _escape() -> Any:
    """One character that is not a surrogate, or a pair of surrogates."""
    import regex

    digit = "[0-9a-fA-F]"
    single = f"(?:[0-9a-ce-fA-CE-F]{digit}{{3}}|[dD][0-7]{digit}{{2}})"
    pair = rf"[dD][89abAB]{digit}{{2}}\\u[dD][c-fC-F]{digit}{{2}}"
    return regex.compile(rf'\\(?:["\\/bfnrt]|u(?:{single}|{pair}))'.encode())


@lru_cache(maxsize=1 << 14)
def escaped(text: bytes) -> str | None:
    """The character of an escape; empty if the escape is unfinished, None if there is no such escape."""
    match = _escape().fullmatch(text, partial=True)
    if match is None:
        return None
    if match.partial:
        return ""
    if text in _SIMPLE:
        return _SIMPLE[text]
    units = bytes.fromhex("".join(text.decode().split("\\u")))
    return units.decode("utf-16-be")


def is_needless(character: str) -> bool:
    """Whether a character is usually written as it is.

    Names of properties and listed values are never written with needless escapes: a model that has begun one with the
    wrong letters could otherwise spell the rest with escapes.
    """
    return " " <= character <= "~" and character not in '"\\/'


@lru_cache(maxsize=1 << 14)
def characters_without_needless(text: bytes) -> tuple[Range, ...]:
    """As :func:`characters_after`, in the name of a property or in a listed value."""
    ranges = []
    for low, high in characters_after(text):
        ranges += [(code, code) for code in range(low, min(high, 0x7E) + 1) if not is_needless(chr(code))]
        if high > 0x7E:
            ranges.append((max(low, 0x7F), high))
    return tuple(ranges)


@lru_cache(maxsize=1 << 14)
def characters_after(text: bytes) -> tuple[Range, ...]:
    """The code points that an unfinished escape may become: ascending ranges, both ends included."""
    if len(text) < 3:
        return ((0, LAST),)  # "\\u" can write every character
    low, high = _units(text[2:6])
    if len(text) >= 6:  # the first half of a pair
        begin, end = _units(text[8:])
        base = _PAIRS + ((low - 0xD800) << 10)
        return ((base + max(begin, 0xDC00) - 0xDC00, base + min(end, 0xDFFF) - 0xDC00),)
    ranges = [(low, min(high, 0xD7FF)), (max(low, 0xE000), high)]
    halves = (max(low, 0xD800), min(high, 0xDBFF))
    ranges.append((_PAIRS + ((halves[0] - 0xD800) << 10), _PAIRS + ((halves[1] - 0xD800) << 10) + 0x3FF))
    return tuple((begin, end) for begin, end in ranges if begin <= end)


def _units(digits: bytes) -> Range:
    """The lowest and the highest number of four hexadecimal digits that starts with these."""
    return int(digits.ljust(4, b"0"), 16), int(digits.ljust(4, b"f"), 16)


def starts_with_one(text: bytes, ranges: Sequence[Range]) -> bool:
    """Whether a text of whole characters starts with a character in ``ranges``."""
    if not text:
        return False
    code = ord(text.decode("utf-8", "surrogatepass")[0])
    return any(low <= code <= high for low, high in ranges)


def may_read_one(automata: Sequence[ByteAutomaton], states: Sequence[int], ranges: Sequence[Range]) -> bool:
    """Whether a character in ``ranges`` exists that no automaton dies of."""
    return _may_read_one(tuple(automata), tuple(states), tuple(ranges))


@lru_cache(maxsize=1 << 12)
def _may_read_one(automata: tuple[ByteAutomaton, ...], states: tuple[int, ...], ranges: tuple[Range, ...]) -> bool:
    return any(True for _ in readable(automata, states, ranges))


def readable(
    automata: Sequence[ByteAutomaton], states: tuple[int, ...], ranges: Sequence[Range]
) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """The characters in ``ranges`` that no automaton dies of, as UTF-8, each with the states after it."""
    for low, high in ranges:
        for sequence in sequences(low, high):
            yield from _read_bytes(automata, states, sequence, b"")


def _read_bytes(
    automata: Sequence[ByteAutomaton], states: tuple[int, ...], sequence: list[Range], text: bytes
) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    if not sequence:
        yield text, states
        return
    first, last = sequence[0]
    for byte in range(first, last + 1):
        after = tuple(int(one.moves[state, byte]) for one, state in zip(automata, states, strict=True))
        if all(state != one.dead for one, state in zip(automata, after, strict=True)):
            yield from _read_bytes(automata, after, sequence[1:], text + bytes([byte]))
