"""Patterns of JSON schemas, which have the syntax of ECMAScript and may match anywhere in a string."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from ..automata.expressions import ByteAutomaton, TooLargeError
from ..automata.terminals import UnsupportedTerminalError, read
from ..patterns import Regex

MAX_STATES = 1000
"""States of an automaton up to which it is used."""
SECONDS = 2.0
"""Time for one string, if the pattern has no automaton."""
_SPACE = r" \t\n\v\f\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_CLASSES = {"d": "0-9", "w": "A-Za-z0-9_", "s": _SPACE}
_PART = re.compile(
    r"\\c[A-Za-z]|\\k<\w+>|\\u\{[0-9a-fA-F]+\}|\\[pP]\{[^}]*\}|\\.|\(\?<(?=[A-Za-z_])|\[\^?\]|.", re.DOTALL
)


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern matches somewhere in a text.

    Raises:
        ValueError: the pattern cannot be read, or the search takes more than two seconds.
    """
    automaton = automaton_of(pattern)
    if automaton is not None:
        state = automaton.run(automaton.start, text.encode("utf-8", "surrogatepass"))
        return bool(automaton.accepting[state])
    try:
        return bool(compiled(pattern).search(text, timeout=SECONDS))
    except TimeoutError:
        raise ValueError(f"pattern={pattern!r} takes more than {SECONDS:g} seconds for {text[:60]!r}") from None


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> Any:
    """A pattern, compiled by the package ``regex``.

    Raises:
        ValueError: it is no regular expression.
    """
    import regex

    try:
        return regex.compile(in_python(pattern))
    except (regex.error, ValueError, RecursionError) as error:
        raise ValueError(f"pattern={pattern!r} cannot be read: {error}") from None


@lru_cache(maxsize=1024)
def in_python(pattern: str) -> str:
    """A pattern of ECMAScript in the syntax of Python's ``regex``.

    ``\\d``, ``\\w`` and ``\\b`` only know ASCII, ``$`` is the end of the text, and ``\\s`` means the spaces of
    ECMAScript.
    """
    parts = []
    in_set = False
    for part in _PART.findall(pattern):
        if part == "[" and not in_set:
            in_set = True
            parts.append(part)
            continue
        if part == "]":
            in_set = False
        parts.append(_translated(part, in_set))
    return "".join(parts)


_WORD = "[A-Za-z0-9_]"
_AT_EDGE = f"(?:(?<={_WORD})(?!{_WORD})|(?<!{_WORD})(?={_WORD}))"
_OUTSIDE_SETS = {
    "$": r"\Z",
    "[]": "(?!)",
    "[^]": r"[\s\S]",
    "(?<": "(?P<",
    r"\b": _AT_EDGE,
    r"\B": f"(?!{_AT_EDGE})",
    **{f"\\{name}": f"[{members}]" for name, members in _CLASSES.items()},
    **{f"\\{name.upper()}": f"[^{members}]" for name, members in _CLASSES.items()},
}
"""Parts of patterns that mean something else in Python, outside of sets of characters."""
_INSIDE_SETS = {"[": r"\[", **{f"\\{name}": members for name, members in _CLASSES.items()}}


def _translated(part: str, in_set: bool) -> str:
    known = _INSIDE_SETS if in_set else _OUTSIDE_SETS
    if part in known:
        return known[part]
    if part.startswith(r"\k<"):
        return f"(?P={part[3:-1]})"
    if part.startswith(r"\c") and len(part) == 3:
        return rf"\x{ord(part[2]) % 32:02x}"
    if part.startswith(r"\u{"):
        return rf"\U{int(part[3:-1], 16):08x}"
    return part


@lru_cache(maxsize=1024)
def automaton_of(pattern: str) -> ByteAutomaton | None:
    """The automaton of all strings in which a pattern matches; None if it is not regular or too large."""
    return automaton(_whole(pattern))


@lru_cache(maxsize=1024)
def automaton(pattern: str) -> ByteAutomaton | None:
    """The automaton of a Python pattern for whole texts; None if it is not regular, too large, or not exact."""
    if re.search(r"\\[pPXRK]|\(\?", pattern.replace("(?:", "")):
        return None  # beyond ASCII, automata accept more than such classes do
    try:
        terminal = Regex(pattern).regular()
        if terminal is None:
            return None
        expressions, node, _ = read(terminal)
        return expressions.automaton(node, MAX_STATES)
    except (ValueError, UnsupportedTerminalError, TooLargeError, RecursionError, re.error):
        return None


def _whole(pattern: str) -> str:
    """A Python pattern for whole strings from one that may match anywhere."""
    begins = pattern.startswith("^") and not _has_alternatives(pattern)
    ends = pattern.endswith("$") and not pattern.endswith(r"\$") and not _has_alternatives(pattern)
    inner = in_python(pattern[1 if begins else 0 : -1 if ends else None])
    return ("" if begins else r"[\s\S]*") + f"(?:{inner})" + ("" if ends else r"[\s\S]*")


def _has_alternatives(pattern: str) -> bool:
    """Whether a pattern has alternatives outside of all groups and sets."""
    depth = 0
    in_set = False
    for part in _parts_outside_escapes(pattern):
        if in_set:
            in_set = part != "]"
        elif part == "[":
            in_set = True
        elif part in ("(", ")"):
            depth += 1 if part == "(" else -1
        elif part == "|" and depth == 0:
            return True
    return False


def _parts_outside_escapes(pattern: str) -> Iterator[str]:
    for part in re.findall(r"\\.|.", pattern, re.DOTALL):
        if part[0] != "\\":
            yield part
