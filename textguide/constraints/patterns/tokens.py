"""The parts of a pattern in the syntax of the ``regex`` package, which holds Python's."""

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
_GROUPS = (  # kind, and how it opens
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
    """A part of a pattern.

    Attributes:
        kind: ``character`` (anything that stands for one character), ``boundary`` of a word, ``end`` and ``start`` of
            lines and texts, ``cluster`` (``\\X``, ``\\R``: one character or more), ``reference`` to a group's text,
            ``call`` of a group, ``quantifier``, ``fuzzy`` (how many errors are allowed),
            ``bar``, ``close``, ``comment``, ``flags``, ``verb``, or what a bracket opens: ``capture``, ``group``,
            ``branch reset``, ``atomic``, ``lookaround``, ``conditional``.
        text: as it is written.
        partner: for a bracket, the index of the one that closes or opens it.
    """

    kind: str
    text: str
    partner: int = -1


def tokens(pattern: str) -> list[Token]:
    """The parts of a pattern that ``regex`` has taken.

    Raises:
        PatternError: it cannot be taken apart with certainty.
    """
    found: list[Token] = []
    opened: list[int] = []
    for token in _read(pattern):
        if token.kind in _OPENING:
            opened.append(len(found))
        elif token.kind == "close":
            if not opened:
                raise PatternError("a bracket closes nothing")
            token.partner = opened.pop()
            found[token.partner].partner = len(found)
        found.append(token)
    if opened:
        raise PatternError("a bracket is not closed")
    return found


def has_operators(pattern: str) -> bool:
    """Whether a set in the pattern has an operator: ``&&``, ``~~``, or ``--`` before a set or a class."""
    try:
        return any(_has_operator(token) for token in _read(pattern))
    except PatternError:
        return False


def names_version(pattern: str) -> bool:
    """Whether the pattern itself says which of ``regex``'s two behaviours it wants."""
    return _VERSION.search(pattern) is not None


def flags_of(tokens: list[Token]) -> str:
    """The letters of all flags that are turned on anywhere."""
    return "".join(
        letters
        for token in tokens
        if token.kind in ("flags", "group")
        for letters in re.findall(r"[a-zA-Z\d]", token.text.partition("-")[0])
    )


def folds_fully(tokens: list[Token]) -> bool:
    """Whether case is ignored so that one character may be the same as two (ß and ss)."""
    flags = flags_of(tokens)
    version_1 = "1" in flags or any(_has_operator(token) for token in tokens)
    return "i" in flags and ("f" in flags or version_1)


def _has_operator(token: Token) -> bool:
    return token.text[0] == "[" and OPERATORS.search(token.text) is not None


def _read(pattern: str) -> Iterator[Token]:
    pattern, at = without_blanks(pattern), 0
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
            raise PatternError(f"the set at {at} is read in another way under the flags V0 and V1")
        return Token("character", text)
    if character == "(":
        for kind, opening in _GROUPS:
            found = opening.match(pattern, at)
            if found:
                return Token(kind, found[0])
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
    found = _ESCAPE.match(pattern, at)
    if not found:
        raise PatternError(f"the backslash at {at} has nothing behind it")
    text = found[0]
    if text in ("\\X", "\\R"):
        return Token("cluster", text)
    if text == "\\L":
        raise PatternError(f"a named list at {at} is not known")
    kinds = (("boundary", _BOUNDARIES), ("end", _ENDS), ("start", _STARTS))
    return Token(next((kind for kind, texts in kinds if text in texts), "character"), text)
