"""Patterns that no automaton takes, checked by the backtracking of the ``regex`` package, one text at a time."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import Any

from textguide.support.errors import MissingExtraError

from ..base import Session, UnsatisfiableError
from ..memoized_session import MemoizedSession, VerdictCache
from ..utf8 import whole_characters
from ..vocabulary import Vocabulary
from .prefixes import for_prefixes
from .representatives import Representatives
from .syntax import PatternError
from .tokens import has_operators, names_version, tokens

SECONDS = 2.0
"""Longest that the engine may think about one text."""


class Checker:
    """A pattern for questions about single texts.

    Args:
        pattern: in ``regex``'s syntax, as its version 0 reads it, which is Python's; as version 1 where a set has an
            operator (``&&``, ``--`` before a set or a class, ``~~``).

    Raises:
        PatternError: ``regex`` refuses it.
    """

    def __init__(self, pattern: str) -> None:
        regex = _import()
        self.pattern = pattern
        version = 0 if names_version(pattern) else regex.V1 if has_operators(pattern) else regex.V0
        try:
            self._whole = regex.compile(pattern, version)
        except regex.error as error:
            raise PatternError(str(error)) from None
        self._begun: Any = None  # None: nothing is known of prefixes
        self._representatives: Representatives | None = None
        try:
            parts = tokens(pattern)
            begun = for_prefixes(parts)
            self._begun = None if begun is None else regex.compile(begun, version)
            self._representatives = Representatives(parts, version)
        except (PatternError, regex.error):
            pass

    def matches(self, text: str) -> bool:
        """Whether ``text`` matches as a whole."""
        return self._ask(self._whole, text, partial=False)

    def can_go_on(self, text: str, begun: bytes = b"") -> bool:
        """Whether ``text``, and behind it a character that starts with the bytes ``begun``, may become a match.

        False is certain. True is not where the engine cannot know: it may have looked at the end in a lookahead.
        """
        if self._begun is None:
            return True
        if not begun:
            return self._ask(self._begun, text, partial=True)
        if not self.can_go_on(text):
            return False
        if self._representatives is None:
            return True
        return any(self.can_go_on(text + character) for character in self._representatives.of(begun, text))

    def _ask(self, compiled: Any, text: str, partial: bool) -> bool:
        try:
            return compiled.fullmatch(text, partial=partial, timeout=SECONDS) is not None
        except (TimeoutError, MemoryError) as error:
            limit = f"{SECONDS:g} s" if isinstance(error, TimeoutError) else "memory allows"
            raise ValueError(
                f"pattern={self.pattern!r} took more than {limit} for a text of {len(text)} characters "
                f"({text[-40:]!r}): it goes through too many ways to match; make what is repeated unambiguous, "
                "(?:ab?)+ in place of (?:a|ab)+, and let a recursion come behind a character"
            ) from None


@lru_cache(maxsize=64)
def checker(pattern: str) -> Checker:
    """The checker of a pattern, made once. Raises as :class:`Checker`."""
    return Checker(pattern)


def ambiguity(pattern: str) -> str:
    """What ``re`` reads as text and ``regex`` as fuzzy matching, and how to say which is meant; empty where there is
    nothing of the kind."""
    try:
        fuzzy = [token.text for token in tokens(pattern) if token.kind == "fuzzy"]
        if not fuzzy:
            return ""
        with warnings.catch_warnings():  # about sets that it will read in another way
            warnings.simplefilter("ignore", FutureWarning)
            re.compile(pattern)
    except (PatternError, re.error):
        return ""
    return (
        f"{fuzzy[0]} is text for Python's re and fuzzy matching for regex; write \\{fuzzy[0]} for the text, or say "
        "engine='regex'"
    )


def session(pattern: str, vocabulary: Vocabulary) -> Session:
    """A session in front of the first token.

    Raises:
        UnsatisfiableError: no text matches.
    """
    made = BacktrackingSession(checker(pattern), vocabulary, b"", VerdictCache())
    if not made.is_prefix(b""):
        raise UnsatisfiableError(f"pattern={pattern!r} cannot be used: nothing satisfies it, not even the empty text")
    return made


class BacktrackingSession(MemoizedSession["Checker"]):
    """One text under a pattern."""

    def is_prefix(self, text: bytes) -> bool:
        parts = whole_characters(self._vocabulary.visible(text))
        return parts is not None and self._verdicts.get(("prefix", *parts), lambda: self._checker.can_go_on(*parts))

    def is_complete(self, text: bytes) -> bool:
        parts = whole_characters(self._vocabulary.visible(text))
        if parts is None or parts[1]:
            return False
        return self._verdicts.get(("complete", parts[0]), lambda: self._checker.matches(parts[0]))


def _import() -> Any:
    try:
        import regex
    except ImportError as error:
        raise MissingExtraError("regex", "constraints", "a regular expression that needs backtracking") from error
    return regex
