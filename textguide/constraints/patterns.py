"""Regular expressions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from . import engines, llguidance_engine, look_around
from .base import Constraint, Session
from .pattern_syntax import PatternError, translate
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class Regex(Constraint):
    """Texts that match a regular expression as a whole.

    Runs in time linear in the text, whatever the pattern, and knows which texts can still become a match. The syntax
    is Python's (``re``), with ``\\p{…}`` for Unicode properties. ``\\d``, ``\\w``, ``\\s`` mean all of Unicode, as in
    Python; ``.`` is anything but a newline, or anything under ``(?s)``. Anchors at either end change nothing.
    Look-around may be a part of the whole pattern or of one of its alternatives. What is not regular (backreferences,
    recursion), look-around inside groups, word boundaries, atomic groups and possessive quantifiers are refused by
    name; :class:`Predicate` takes any function.

    Args:
        pattern: the regular expression.
        engine: ``llguidance`` or ``xgrammar``.

    Raises:
        ValueError: the pattern cannot be used, here already; the message names the construct.

    Example:
        >>> Regex(r"\\d{4}-\\d{2}-\\d{2}")
        Regex(pattern='\\\\d{4}-\\\\d{2}-\\\\d{2}', engine='llguidance')
    """

    pattern: str
    engine: str = engines.DEFAULT

    kind = "regex"

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise ValueError(f"pattern={self.pattern!r} must be a text with a regular expression")
        engines.check(self.engine)
        try:
            if self.engine == engines.DEFAULT:
                found = look_around.terminal(self.pattern, _literal)
            else:
                translate(self.pattern)
        except PatternError as error:
            raise ValueError(f"pattern={self.pattern!r} cannot be used: {error}; use a Predicate for it") from None
        if self.engine == engines.DEFAULT:
            reason = llguidance_engine.complaint(found)
            if reason:
                raise ValueError(f"pattern={self.pattern!r} cannot be used: {_plain(reason, self.pattern)}")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "pattern": self.pattern, "engine": self.engine}

    def regular(self) -> str | None:
        return f"({look_around.terminal(self.pattern, _literal)})" if self.engine == engines.DEFAULT else None

    def start(self, vocabulary: Vocabulary) -> Session:
        what = f"pattern={self.pattern!r}"
        if self.engine == engines.DEFAULT:
            terminal = self.regular()
            assert terminal is not None
            return engines.session(what, llguidance_engine.terminal(terminal), vocabulary)
        return engines.xgrammar_session(what, "regex", self.pattern, vocabulary)


def _literal(pattern: str) -> str:
    """A pattern in the engine's spelling as a terminal."""
    return f"/{llguidance_engine.regex_literal(pattern)}/" if pattern else '""'


_REASONS = (
    (re.compile(r"\b(?:StartLF|EndLF|StartCRLF|EndCRLF)\b"), "anchors of lines, (?m), are not supported"),
    (re.compile(r"lookarounds not supported yet; (?:Start|End)\b"), "an anchor inside the pattern is not supported"),
    (re.compile(r"invalid range boundary"), "a set with a class as an end of a range is not supported"),
)


def _plain(message: str, pattern: str) -> str:
    """The engine's complaint in words that name the construct."""
    for found, words in _REASONS:
        if found.search(message):
            return words
    if "Unicode property" in message:
        names = ", ".join(dict.fromkeys(re.findall(r"\\[pP](?:\{[^}]*\}|.)", pattern)))
        return f"a Unicode property is not known, one of {names} (scripts and categories are, blocks are not)"
    error = re.search(r"error: (.*?)(?= \d+ \||$)", message)
    return error[1].strip() if error else message
