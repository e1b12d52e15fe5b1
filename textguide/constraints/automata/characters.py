"""Classes of characters as expressions over the bytes of UTF-8."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

import regex

from .expressions import NOTHING_MORE, Expressions, Node

Range = tuple[int, int]
_UNICODE = re.compile(r"\\[dDwWsSpPhH]|\[:|&&|--|~~")
_HEX = re.compile(r"\\[xuU]\{([0-9A-Fa-f]+)\}")
_SIZES = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))
LAST = 0x10FFFF


def ranges_of(text: str, flags: str, wide: bool) -> list[Range]:
    """The characters that one part of a pattern matches: a set, an escape or the point.

    The meaning of ``\\w`` and the like beyond ASCII depends on the version of Unicode, so it is not evaluated: such a
    part matches all characters beyond ASCII (or none), and the result is a superset (or subset) of what the engine
    matches.

    Args:
        text: the part, in the engine's syntax.
        flags: those of the flags ``i`` and ``s`` that apply to it.
        wide: match all of these characters instead of none.

    Returns:
        Ranges of code points, ascending, both ends included.
    """
    text = _HEX.sub(lambda match: f"\\U{int(match[1], 16):08X}", text)
    options = regex.V1
    if "i" in flags:
        options |= regex.IGNORECASE
    if "s" in flags:
        options |= regex.DOTALL
    pattern = regex.compile(text, options)
    ascii_codes = [code for code in range(0x80) if pattern.fullmatch(chr(code))]
    if _UNICODE.search(text) or ("i" in flags and re.search(r"[^\W\d_]|\\", text)):
        others = [(0x80, LAST)] if wide else []
    elif text.isascii() and not re.search(r"\\[uUNx]", text):
        others = [(0x80, LAST)] if pattern.fullmatch("\U0010fffd") else []
    else:
        others = list(_ranges(ord(character) for character in pattern.findall(_beyond_ascii())))
    return [*_ranges(ascii_codes), *others]


def expression(expressions: Expressions, ranges: list[Range]) -> Node:
    """The expression of one character in ``ranges``, as its bytes."""
    return _trie(expressions, [sequence for low, high in ranges for sequence in sequences(low, high)])


def _ranges(codes: Iterable[int]) -> Iterator[Range]:
    """Ascending code points as ranges."""
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


def sequences(low: int, high: int) -> Iterator[list[Range]]:
    """Sequences of byte ranges that cover the encodings of ``low`` to ``high``; surrogates have none."""
    for size, (first, last) in zip((0, 1, 2, 2, 3), _SIZES, strict=True):
        if low <= last and high >= first:
            yield from _split(max(low, first), min(high, last), size)


def _split(low: int, high: int, size: int) -> Iterator[list[Range]]:
    """The same for encodings of one length, ``size`` bytes after the first one.

    A range is one sequence if, from some byte on, all bytes run through their full range.
    """
    for count in range(1, size + 1):
        mask = (1 << (6 * count)) - 1
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
    """The union of sequences of byte ranges, as a decision on each byte."""
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
