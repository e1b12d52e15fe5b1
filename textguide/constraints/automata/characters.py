"""Classes of characters as expressions over the bytes of UTF-8."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import regex

from .expressions import NOTHING_MORE, Expressions, Node

Range = tuple[int, int]
_UNICODE = re.compile(r"\\[dDwWsSpPhH]|\[:|&&|--|~~")
_HEX = re.compile(r"\\[xuU]\{([0-9A-Fa-f]+)\}")
_SIZES = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))
LAST = 0x10FFFF


def ranges_of(text: str, flags: str, wide: bool) -> list[Range]:
    """The characters that one part of a pattern takes: a set, an escape or the point.

    What ``\\w`` and its like are beyond ASCII depends on the version of Unicode, so that it is not asked: all
    characters there are taken (or none), which makes the whole a superset (or subset) of what the engine takes.

    Args:
        text: the part, in the engine's spelling.
        flags: those of ``i`` and ``s`` that hold there.
        wide: take all of them rather than none.
    """
    text = _HEX.sub(lambda found: f"\\U{int(found[1], 16):08X}", text)
    marks = regex.V1 | (regex.IGNORECASE if "i" in flags else 0) | (regex.DOTALL if "s" in flags else 0)
    pattern = regex.compile(text, marks)
    plain = [code for code in range(0x80) if pattern.fullmatch(chr(code))]
    if _UNICODE.search(text) or ("i" in flags and re.search(r"[^\W\d_]|\\", text)):
        others = [(0x80, LAST)] if wide else []
    elif text.isascii() and not re.search(r"\\[uUNx]", text):
        others = [(0x80, LAST)] if pattern.fullmatch("\U0010fffd") else []
    else:
        found = [ord(character) for character in pattern.findall(_beyond_ascii())]
        others = list(_joined(found))
    return [*_joined(plain), *others]


def expression(expressions: Expressions, ranges: list[Range]) -> Node:
    """One character of ``ranges``, as its bytes."""
    return _trie(expressions, [sequence for low, high in ranges for sequence in _sequences(low, high)])


def _joined(codes: list[int]) -> Iterator[Range]:
    start = previous = None
    for code in codes:
        if start is None or previous is None:
            start = code
        elif code != previous + 1:
            yield start, previous
            start = code
        previous = code
    if start is not None and previous is not None:
        yield start, previous


def _beyond_ascii() -> str:
    return "".join(map(chr, (*range(0x80, 0xD800), *range(0xE000, LAST + 1))))


def _sequences(low: int, high: int) -> Iterator[list[Range]]:
    """Sequences of ranges of bytes that hold the encodings of ``low`` to ``high``; surrogates have none."""
    for size, (first, last) in zip((0, 1, 2, 2, 3), _SIZES, strict=True):
        if low <= last and high >= first:
            yield from _split(max(low, first), min(high, last), size)


def _split(low: int, high: int, size: int) -> Iterator[list[Range]]:
    for place in range(1, size + 1):
        mask = (1 << (6 * place)) - 1
        if low & ~mask != high & ~mask:
            if low & mask:
                yield from _split(low, low | mask, size)
                yield from _split((low | mask) + 1, high, size)
                return
            if high & mask != mask:
                yield from _split(low, (high & ~mask) - 1, size)
                yield from _split(high & ~mask, high, size)
                return
    yield list(zip(chr(low).encode(), chr(high).encode(), strict=True))


def _trie(expressions: Expressions, sequences: list[list[Range]]) -> Node:
    if not sequences:
        return expressions.branch(())
    if not sequences[0]:
        return NOTHING_MORE
    cuts = sorted({cut for sequence in sequences for cut in (sequence[0][0], sequence[0][1] + 1)})
    branches: list[tuple[int, int, Node]] = []
    for low, high in pairwise(cuts):
        rests = [sequence[1:] for sequence in sequences if sequence[0][0] <= low and high - 1 <= sequence[0][1]]
        rest = _trie(expressions, rests)
        if branches and branches[-1][1] == low - 1 and branches[-1][2] == rest:
            branches[-1] = (branches[-1][0], high - 1, rest)
        elif rests:
            branches.append((low, high - 1, rest))
    return expressions.branch(branches)
