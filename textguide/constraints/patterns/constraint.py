"""Regular expressions."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from .. import engines
from ..base import Constraint, Session
from ..engines import llguidance_engine, xgrammar_engine
from ..vocabulary import Vocabulary
from . import backtracking, look_around
from .syntax import PatternError, for_xgrammar, has_classes

AUTO = "auto"
BACKTRACKING = "regex"
ENGINES = (AUTO, *engines.NAMES, BACKTRACKING)


@dataclass(frozen=True)
class Regex(Constraint):
    """Texts that match a regular expression as a whole.

    The syntax is that of Python's ``re`` and of the ``regex`` package, with the meaning that ``regex`` gives it:
    ``\\d``, ``\\w``, ``\\s`` and ``\\p{…}`` mean all of Unicode, and ``[a-z&&[^aeiou]]`` is an intersection.

    What is regular runs on ``llguidance``, in time linear in the text, with masks. The rest (word boundaries,
    backreferences, atomic groups, recursion, look-around inside groups, …) is checked by ``regex`` itself, one text at
    a time, by its partial matches. That is slower, for there is no mask and each question reads the whole text; what is
    sampled is as exact. Where a lookahead or ``\\b`` looks past the end of a text, that is taken for a prefix, and a
    particle may find a token or more later that nothing can follow. :attr:`engine` says which of the two it is.

    Args:
        pattern: the regular expression.
        engine: ``llguidance``, ``xgrammar`` (whose classes are ASCII), ``regex``; or ``auto``, which takes the first
            where it can, and else the last. The attribute never is ``auto``.

    Raises:
        ValueError: the pattern cannot be used, here already; the message names the construct. Questions to a session
            raise it where ``regex`` thinks about one text for more than two seconds.

    Example:
        >>> Regex(r"\\d{4}-\\d{2}-\\d{2}")
        Regex(pattern='\\\\d{4}-\\\\d{2}-\\\\d{2}', engine='llguidance')
        >>> Regex(r"(\\w+) \\1").engine
        'regex'
    """

    pattern: str
    engine: str = AUTO

    kind = "regex"

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise ValueError(f"pattern={self.pattern!r} must be a text with a regular expression")
        if self.engine not in ENGINES:
            raise ValueError(f"engine={self.engine!r} must be one of {', '.join(ENGINES)}")
        reason = _refusal(self.pattern, engines.DEFAULT if self.engine == AUTO else self.engine)
        if self.engine != AUTO:
            if reason:
                raise ValueError(f"pattern={self.pattern!r} cannot be used: {reason}{_remedy(self)}")
            return
        object.__setattr__(self, "engine", BACKTRACKING if reason else engines.DEFAULT)
        if reason:
            reason = _refusal(self.pattern, BACKTRACKING) or backtracking.ambiguity(self.pattern)
        if reason:
            raise ValueError(f"pattern={self.pattern!r} cannot be used: {reason}")

    def on(self, engine: str) -> Regex:
        """The same texts, checked by another engine; this constraint itself where that reads the pattern in another
        way (``xgrammar``, whose classes are ASCII), or does not take it."""
        if self.engine == engine or self.engine == BACKTRACKING or has_classes(self.pattern):
            return self
        return self if _refusal(self.pattern, engine) else replace(self, engine=engine)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "pattern": self.pattern, "engine": self.engine}

    def regular(self) -> str | None:
        return f"({look_around.terminal(self.pattern, _literal)})" if self.engine == engines.DEFAULT else None

    def start(self, vocabulary: Vocabulary) -> Session:
        if self.engine == BACKTRACKING:
            return backtracking.session(self.pattern, vocabulary)
        what = f"pattern={self.pattern!r}"
        terminal = self.regular()
        if terminal is None:
            return engines.xgrammar_session(what, "regex", for_xgrammar(self.pattern), vocabulary)
        return engines.llguidance_session(what, llguidance_engine.terminal(terminal), vocabulary)


def _refusal(pattern: str, engine: str) -> str:
    """Why an engine does not take a pattern, naming the construct; empty where it does."""
    try:
        if engine == BACKTRACKING:
            backtracking.checker(pattern)
            return ""
        if engine != engines.DEFAULT:
            return xgrammar_engine.complaint("regex", for_xgrammar(pattern))
        return _plain(llguidance_engine.complaint(look_around.terminal(pattern, _literal)), pattern)
    except PatternError as error:
        return str(error)


def _remedy(constraint: Regex) -> str:
    if constraint.engine != BACKTRACKING and not _refusal(constraint.pattern, BACKTRACKING):
        return f"; engine={BACKTRACKING!r} takes it"
    return ""


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
