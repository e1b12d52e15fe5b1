"""Texts of a regular expression."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from ...support.checks import one_of
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

    Regular patterns run on ``llguidance``, in time linear in the text, with masks. The others (word boundaries,
    backreferences, atomic groups, recursion, look-around inside groups, …) are checked by the partial matching of
    ``regex``, one text at a time. That is slower, because there is no mask and every check reads the whole text; the
    samples are just as exact. If a lookahead or ``\\b`` looks past the end of a text, the text is accepted as a prefix,
    and a particle may reach a point some tokens later that nothing can follow. :attr:`engine` is the engine in use.

    Args:
        pattern: the regular expression.
        engine: ``llguidance``, ``xgrammar`` (whose classes are ASCII), ``regex``; or ``auto``, which is ``llguidance``
            if it supports the pattern and ``regex`` otherwise. The attribute is never ``auto``.

    Raises:
        ValueError: the pattern cannot be used; the message names the construct. Methods of a session raise it if
            ``regex`` needs more than two seconds for one text.

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
        one_of("engine", self.engine, ENGINES)
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
        """The same texts, checked by another engine.

        Returns:
            This constraint itself if the engine does not support the pattern or gives it another meaning (the classes
            of ``xgrammar`` are ASCII).
        """
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
        label = f"pattern={self.pattern!r}"
        terminal = self.regular()
        if terminal is None:
            return engines.xgrammar_session(label, "regex", for_xgrammar(self.pattern), vocabulary)
        return engines.llguidance_session(label, llguidance_engine.terminal(terminal), vocabulary)


def _refusal(pattern: str, engine: str) -> str:
    """Why an engine does not support a pattern, naming the construct; empty if it does."""
    try:
        if engine == BACKTRACKING:
            backtracking.checker(pattern)
            return ""
        if engine != engines.DEFAULT:
            return xgrammar_engine.complaint("regex", for_xgrammar(pattern))
        return _explained(llguidance_engine.complaint(look_around.terminal(pattern, _literal)), pattern)
    except PatternError as error:
        return str(error)


def _remedy(constraint: Regex) -> str:
    if constraint.engine != BACKTRACKING and not _refusal(constraint.pattern, BACKTRACKING):
        # The playground and the vLLM plugin replace this remedy, which does not apply to them, by their own.
        return f"; engine={BACKTRACKING!r} takes it"
    return ""


def _literal(pattern: str) -> str:
    """A terminal of a pattern in the engine's syntax."""
    return f"/{llguidance_engine.regex_literal(pattern)}/" if pattern else '""'


_EXPLANATIONS = (
    (re.compile(r"\b(?:StartLF|EndLF|StartCRLF|EndCRLF)\b"), "anchors of lines, (?m), are not supported"),
    (re.compile(r"lookarounds not supported yet; (?:Start|End)\b"), "an anchor inside the pattern is not supported"),
    (re.compile(r"invalid range boundary"), "a class as an end of a range in a set is not supported"),
)


def _explained(message: str, pattern: str) -> str:
    """The engine's message in words that name the construct."""
    for known, explanation in _EXPLANATIONS:
        if known.search(message):
            return explanation
    if "Unicode property" in message:
        names = ", ".join(dict.fromkeys(re.findall(r"\\[pP](?:\{[^}]*\}|.)", pattern)))
        return f"a Unicode property is unknown, one of {names} (scripts and categories are, blocks are not)"
    error = re.search(r"error: (.*?)(?= \d+ \||$)", message)
    return error[1].strip() if error else message
