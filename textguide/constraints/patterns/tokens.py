"""The tokens of a pattern in the syntax of the ``regex`` package, which includes Python's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .syntax import OPERATORS, PatternError, end_of_set, without_blanks

_ESCAPE = re.compile(
    r"\\(?:[pPN]\{[^}]*\}|[pP][CLMNPSZ]|x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8}|0[0-7]{0,2}|[1-7][0-7]{2}|.)",
    re.DOTALL,
)
_REFERENCE = re.compile(r"\\(?:g<[^>]*>|(?![1-7][0-7]{2})[1-9]\d?)")
_VERSION = re.compile(r"\(\?[a-zA-Z]*V[01]")
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(?:\d+|\d*,\d*)\})[?+]?")
_FUZZY = re.compile(r"\{(?:\d+<=?)?\d*[deis](?:[<,:+][^}]*)?\}")
_GROUPS = (  # kind and opening; the first match counts
    ("comment", re.compile(r"\(\?#(?:[^)\\]|\\.)*\)", re.DOTALL)),
    ("lookaround", re.compile(r"\(\?<?[=!]")),
    ("reference", re.compile(r"\(\?P=[^)]*\)")),
    ("call", re.compile(r"\(\?(?:R|[+-]?\d+|&[^)]*|P[>&][^)]*)\)")),
    ("conditional", re.compile(r"\(\?(?:\((?!\?)[^)]*\)|(?=\(\?<?[=!]))")),
    ("atomic", re.compile(r"\(\?>")),
    ("branch reset", re.compile(r"\(\?\|")),
    ("capture", re.compile(r"\(\?P?<[^>]*>")),
    ("flags", re.compile(r"\(\?[a-zA-Z\d]*(?:-[a-zA-Z]+)?\)")),
    ("group", re.compile(r"\(\?[a-zA-Z\d]*(?:-[a-zA-Z]+)?:")),
    ("verb", re.compile(r"\(\*[a-zA-Z][^)]*\)")),
    ("capture", re.compile(r"\((?!\?)")),
)
_OPENING = {"lookaround", "conditional", "atomic", "branch reset", "capture", "group"}
_BOUNDARIES = frozenset(["\\b", "\\B", "\\m", "\\M"])
_ENDS = frozenset(["$", "\\Z", "\\z"])
_STARTS = frozenset(["^", "\\A", "\\G", "\\K"])


@dataclass
class Token:
    """A token of a pattern.

    Attributes:
        kind: ``character`` (anything that matches one character), ``boundary`` of a word, ``end`` and ``start`` of
            lines and texts, ``cluster`` (``\\X``, ``\\R``: one or more characters), ``reference`` to a group's text,
            ``call`` of a group, ``quantifier``, ``fuzzy`` (the number of errors that are allowed), ``bar``, ``close``,
            ``comment``, ``flags``, ``verb``, or what a bracket opens: ``capture``, ``group``, ``branch reset``,
            ``atomic``, ``lookaround``, ``conditional``.
        text: the token as it is written.
        partner: for a bracket, the index of the bracket that closes or opens it; −1 otherwise.
    """

    kind: str
    text: str
    partner: int = -1


def tokens(pattern: str) -> list[Token]:
    """The tokens of a pattern that ``regex`` accepts.

    Raises:
        PatternError: the pattern cannot be split with certainty.
    """
    parts: list[Token] = []
    opened: list[int] = []
    for token in _read(pattern):
        if token.kind in _OPENING:
            opened.append(len(parts))
        elif token.kind == "close":
            if not opened:
                raise PatternError("a bracket closes nothing")
            token.partner = opened.pop()
            parts[token.partner].partner = len(parts)
        parts.append(token)
    if opened:
        raise PatternError("a bracket is not closed")
    return parts


def has_operators(pattern: str) -> bool:
    """Whether a set in the pattern has an operator: ``&&``, ``~~``, or ``--`` before a set or a class."""
    try:
        return any(_has_operator(token) for token in _read(pattern))
    except PatternError:
        return False


def names_version(pattern: str) -> bool:
    """Whether the pattern itself selects one of ``regex``'s two versions."""
    return _VERSION.search(pattern) is not None


def flags_of(tokens: list[Token]) -> str:
    """The letters of all flags that are switched on anywhere in the pattern."""
    letters: list[str] = []
    for token in tokens:
        if token.kind in ("flags", "group"):
            letters += re.findall(r"[a-zA-Z\d]", token.text.partition("-")[0])
    return "".join(letters)


def folds_fully(tokens: list[Token]) -> bool:
    """Whether case folding may equate one character with two (ß and ss)."""
    flags = flags_of(tokens)
    version_1 = "1" in flags or any(_has_operator(token) for token in tokens)
    return "i" in flags and ("f" in flags or version_1)


def _has_operator(token: Token) -> bool:
    return token.text[0] == "[" and OPERATORS.search(token.text) is not None


def _read(pattern: str) -> Iterator[Token]:
    pattern = without_blanks(pattern)
    at = 0
    while at < len(pattern):
        token = _next(pattern, at)
        if token.kind in ("flags", "group") and "x" in token.text:
            raise PatternError(f"the flag x at {at} changes how the pattern is read")
        yield token
        at += len(token.text)


def _next(pattern: str, at: int) -> Token:
    character = pattern[at]
    quantifier = _QUANTIFIER.match(pattern, at)
    if character == "\\":
        return _escape(pattern, at)
    if character == "[":
        text = pattern[at : end_of_set(pattern, at)]
        if "[" in text[1:] and names_version(pattern):
            raise PatternError(f"the set at {at} has different meanings under the flags V0 and V1")
        return Token("character", text)
    if character == "(":
        for kind, opening in _GROUPS:
            match = opening.match(pattern, at)
            if match:
                return Token(kind, match[0])
        raise PatternError(f"the bracket at {at} is unknown")
    if quantifier:
        return Token("quantifier", quantifier[0])
    fuzzy = _FUZZY.match(pattern, at)
    if fuzzy:
        return Token("fuzzy", fuzzy[0])
    if character == "^":
        return Token("start", character)
    if character == "$":
        return Token("end", character)
    return Token({"|": "bar", ")": "close"}.get(character, "character"), character)


def _escape(pattern: str, at: int) -> Token:
    reference = _REFERENCE.match(pattern, at)
    if reference:
        return Token("reference", reference[0])
    match = _ESCAPE.match(pattern, at)
    if not match:
        raise PatternError(f"the backslash at {at} is the end of the pattern")
    text = match[0]
    if text in ("\\X", "\\R"):
        return Token("cluster", text)
    if text == "\\L":
        raise PatternError(f"a named list at {at} is not supported")
    kinds = (("boundary", _BOUNDARIES), ("end", _ENDS), ("start", _STARTS))
    return Token(next((kind for kind, texts in kinds if text in texts), "character"), text)
