"""Regular expressions in Python's syntax, translated for an engine that runs in linear time.

The engine uses the syntax of Rust's ``regex``, which differs from Python's only in spellings; these are translated.
Constructs that are not regular, or that such an engine does not support, are refused with their name and position,
because the engine's own messages ("unrecognized flag") do not help.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

LOOKS = {
    "(?=": "a lookahead",
    "(?!": "a negative lookahead",
    "(?<=": "a lookbehind",
    "(?<!": "a negative lookbehind",
}
_GROUPS = {
    "(?>": "an atomic group",
    "(?|": "a branch reset",
    "(?(": "a conditional",
    "(?&": "a recursion",
    "(?R": "a recursion",
    "(?P>": "a recursion",
    "(?P=": "a backreference",
    "(*": "a verb",
}
_RECURSION = re.compile(r"\(\?[+-]?\d")
_ESCAPES = {
    "b": "a word boundary",
    "B": "a word boundary",
    "G": "an anchor at the last match",
    "K": "a reset of the match",
    "X": "a grapheme cluster",
    "R": "a linebreak of any kind",
    "k": "a backreference",
    "g": "a backreference or recursion",
    "Q": "a quotation",
    "E": "a quotation",
    "c": "a control character",
    "C": "a single byte",
}
_TRANSLATED = {"Z": r"\z", "e": r"\x1B", "<": "<", ">": ">", "h": r"[\t\p{Zs}]"}
_QUANTIFIER = re.compile(r"[*+?]|\{(\d*)(,?)(\d*)\}")
OPERATORS = re.compile(r"&&|--(?=\[|\\[dDpPsSwW])|~~")
"""Operators of sets. Python warns about them, because a later version will support them."""
_COMMENT = re.compile(r"\(\?#[^)]*\)")
_NAME = re.compile(r"\(\?P?<\w+>|\(\?'\w+'")
_VERBOSE = re.compile(r"\(\?([a-wyzA-Z]*)x([a-wyzA-Z]*)\)")
_VERBOSITY = re.compile(r"\(\?[a-zA-Z-]*x[a-zA-Z-]*[:)]")
_BLANK = re.compile(r"(?:\s|#[^\n]*)+", re.ASCII)
_BETWEEN_BLANKS = re.compile(r"\\[\s\S]|\(\?#[^)]*\)|[\s\S]")
_BRACED = re.compile(r"\\(?:[pP]\^?|[xuU])\{[^}]*\}")

_CLASS = re.compile(r"\\[dDwWsSpPvVN]")
_POSIX = re.compile(r"\[:(\^?)(\w+):\]")
_PROPERTIES = {"alpha": "Alphabetic", "digit": "Nd", "lower": "Lowercase", "upper": "Uppercase", "space": "White_Space"}


class PatternError(ValueError):
    """A pattern cannot be used; the message starts with the construct and its position."""


def translate(pattern: str) -> str:
    """``pattern`` in the engine's syntax.

    Inside ``[…]`` a ``[`` is a plain character, as in Python, unless the set has an operator (``&&``, ``--[``, ``~~``).

    Raises:
        PatternError: a construct is not regular or not supported; the message names it and its position.
    """
    out = []
    for at, text in atoms(pattern):
        if text in LOOKS:
            raise PatternError(f"{LOOKS[text]} at {at} is not supported inside a group")
        out.append(text)
    return "".join(out)


def without_blanks(pattern: str) -> str:
    """A pattern that starts with the flag x, without the flag, blanks and comments; any other pattern as it is."""
    leading = _VERBOSE.match(pattern)
    if not leading or _VERBOSITY.search(pattern, leading.end()):
        return pattern
    flags = leading[1] + leading[2]
    out = [f"(?{flags})"] if flags else []
    at = leading.end()
    while at < len(pattern):
        blank = _BLANK.match(pattern, at)
        if blank:
            at = blank.end()
            if out and out[-1] == "(" and pattern.startswith(("?", "*"), at):
                return pattern  # an error, which the engine reports
            # A digit after the blank must not become a part of an escape before it.
            out.append("(?:)" if pattern[at : at + 1].isdigit() else "")
            continue
        end = end_of_set(pattern, at) if pattern[at] == "[" else _BETWEEN_BLANKS.match(pattern, at).end()  # type: ignore[union-attr]
        out.append(pattern[at:end])
        at = end
    return "".join(out)


def for_xgrammar(pattern: str) -> str:
    """``pattern`` for xgrammar, which ignores anchors and whose ``.`` matches newlines too.

    Raises:
        PatternError: as :func:`translate`, or there is an anchor inside the pattern.
    """
    pattern = without_blanks(pattern)
    translate(pattern)
    parts = list(atoms(pattern))
    while parts and parts[0][1] in ("^", r"\A"):
        del parts[0]
    while parts and parts[-1][1] in ("$", r"\z"):
        del parts[-1]
    for at, text in parts:
        if text in ("^", "$", r"\A", r"\z"):
            raise PatternError(f"an anchor at {at} is not supported inside the pattern")
    return "".join(r"[^\n]" if text == "." else text for _, text in parts)


def has_classes(pattern: str) -> bool:
    """Whether a pattern has classes, such as ``\\d``, that are Unicode for one engine and ASCII for another."""
    return any(_CLASS.search(text) for _, text in atoms(pattern))


def atoms(pattern: str) -> Iterator[tuple[int, str]]:
    """The parts of a pattern in the engine's syntax, each with its position: escapes, sets, quantifiers, brackets and
    single characters. A look-around starts with one of ``LOOKS``.

    Raises:
        PatternError: as :func:`translate`.
    """
    at = 0
    repeated = False  # whether the last part was a quantifier
    while at < len(pattern):
        character = pattern[at]
        begin = at
        quantifier = _QUANTIFIER.match(pattern, at)
        if character == "\\":
            text, at = _escape(pattern, at)
        elif character == "[":
            text, at = _set(pattern, at)
        elif character == "(":
            text, at = _group(pattern, at)
        elif quantifier and quantifier[0] != "{}":
            text = quantifier[0]
            if repeated and text == "+":
                raise PatternError(f"a possessive quantifier at {at} is not supported")
            if text[0] == "{":
                text = f"{{{quantifier[1] or 0}{quantifier[2]}{quantifier[3]}}}"
            at = quantifier.end()
            # A quantifier after the `?` of a lazy one is always an error, and the engine reports it.
            repeated = not (repeated and text == "?")
            yield begin, text
            continue
        elif character == "{":
            text = r"\{"
            at += 1
        else:
            text = character
            at += 1
        repeated = False
        yield begin, text


def _escape(pattern: str, at: int) -> tuple[str, int]:
    if at + 1 == len(pattern):
        raise PatternError(f"a backslash at {at} is the end of the pattern")
    braced = _BRACED.match(pattern, at)
    if braced:
        return braced[0], braced.end()
    escaped = pattern[at + 1]
    if escaped == "0":
        octal = re.compile(r"[0-7]{1,3}").match(pattern, at + 1)
        assert octal is not None
        return rf"\x{{{int(octal[0], 8):X}}}", octal.end()
    if escaped.isdigit():
        raise PatternError(f"a backreference at {at} is not regular")
    if escaped == "N" and pattern[at + 2 : at + 3] == "{":
        return _named(pattern, at)
    if escaped in "pP" and pattern[at + 2 : at + 3] not in tuple("CLMNPSZ"):
        raise PatternError(f"a letter \\{escaped} at {at} is not a property")
    if escaped in _ESCAPES:
        raise PatternError(f"{_ESCAPES[escaped]} (\\{escaped}) at {at} is not supported")
    return _TRANSLATED.get(escaped, pattern[at : at + 2]), at + 2


def _named(pattern: str, at: int) -> tuple[str, int]:
    import unicodedata

    end = pattern.find("}", at)
    try:
        return rf"\x{{{ord(unicodedata.lookup(pattern[at + 3 : end])):X}}}", end + 1
    except KeyError:
        raise PatternError(f"the character name at {at} is unknown") from None


def _group(pattern: str, at: int) -> tuple[str, int]:
    comment = _COMMENT.match(pattern, at)
    if comment:
        return "", comment.end()
    if _VERBOSITY.match(pattern, at):
        raise PatternError(f"the flag x at {at} is not supported")
    if _RECURSION.match(pattern, at):
        raise PatternError(f"a recursion at {at} is not regular")
    for start in LOOKS:
        if pattern.startswith(start, at):
            return start, at + len(start)
    for start in sorted(_GROUPS, key=len, reverse=True):
        if pattern.startswith(start, at):
            raise PatternError(f"{_GROUPS[start]} at {at} is not supported")
    name = _NAME.match(pattern, at)
    if name:  # names do not matter, and the engine would refuse one that occurs twice
        return "(?:", name.end()
    return "(", at + 1


def _set(pattern: str, at: int) -> tuple[str, int]:
    """The set that starts at ``at``, in the engine's syntax, and its end."""
    end = end_of_set(pattern, at)
    if OPERATORS.search(pattern, at, end):
        _check_operators(pattern[at:end], at)
        return _POSIX.sub(lambda match: _class(match, at), pattern[at:end]), end
    if "--" in pattern[at:end]:
        raise PatternError(f"two hyphens in the set at {at} are not supported")
    out = ["["]
    i = at + 1
    if pattern[i] == "^":
        out.append("^")
        i += 1
    first = True
    while i < end - 1:
        posix = _POSIX.match(pattern, i, end)
        if pattern[i] == "\\":
            braced = _BRACED.match(pattern, i)
            out.append(braced[0] if braced else _escape_in_set(pattern, i))
            i = braced.end() if braced else i + 2
        elif posix:
            out.append(_class(posix, at))
            i = posix.end()
        else:
            is_plain_bracket = pattern[i] == "[" or (first and pattern[i] == "]")
            out.append("\\" + pattern[i] if is_plain_bracket else pattern[i])
            i += 1
        first = False
    return "".join(out) + "]", end


def _class(match: re.Match[str], at: int) -> str:
    """A POSIX class as a property, which is Unicode as in ``regex``; the engine's own classes are ASCII."""
    if match[2] not in _PROPERTIES:
        raise PatternError(f"the class {match[0]} in the set at {at} is not supported")
    return rf"\{'P' if match[1] else 'p'}{{{_PROPERTIES[match[2]]}}}"


def _check_operators(text: str, at: int) -> None:
    """Refuse a set with two operators on one level, which ``regex`` and the engine apply in a different order."""
    levels: list[set[str]] = []
    for match in re.finditer(r"\\.|\[:\^?\w+:\]|\[|\]|&&|--|~~|\|\|", text, re.DOTALL):
        if match[0] == "[":
            levels.append(set())
        elif match[0] == "]" and levels:
            levels.pop()
        elif match[0] in ("&&", "--", "~~", "||") and levels:
            levels[-1].add(match[0])
            if len(levels[-1]) > 1 or match[0] == "||":
                raise PatternError(f"several operators in the set at {at} are not supported")


def _escape_in_set(pattern: str, at: int) -> str:
    escaped = pattern[at + 1]
    if escaped.isdigit() and escaped != "0":
        raise PatternError(f"an octal escape at {at} is not supported; write \\x and two digits")
    return {"b": r"\x08", "0": r"\x00", **_TRANSLATED, "h": r"\t\p{Zs}"}.get(escaped, pattern[at : at + 2])


def end_of_set(pattern: str, at: int) -> int:
    """The end of the set that starts at ``at``; it may contain sets if it has an operator."""
    end = _end_of_set(pattern, at, nested=False)
    return _end_of_set(pattern, at, nested=True) if OPERATORS.search(pattern, at, end) else end


def _end_of_set(pattern: str, at: int, nested: bool) -> int:
    i = at
    depth = 0
    while i < len(pattern):
        character = pattern[i]
        posix = _POSIX.match(pattern, i)
        if character == "\\":
            i += 1
        elif character == "[" and (depth == 0 or nested):
            depth += 1
            i += pattern.startswith("^", i + 1)
            i += pattern.startswith("]", i + 1)
        elif posix:
            i = posix.end() - 1
        elif character == "]":
            depth -= 1
            if depth == 0:
                return i + 1
        i += 1
    raise PatternError(f"the set at {at} is not closed")
