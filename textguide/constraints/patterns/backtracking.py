"""Patterns that no automaton supports, checked by the backtracking of the ``regex`` package, one text at a time."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import Any

from ...support.errors import MissingExtraError
from ..base import Session, UnsatisfiableError
from ..memoized_session import MemoizedSession, VerdictCache
from ..utf8 import whole_characters
from ..vocabulary import Vocabulary
from .prefixes import for_prefixes
from .representatives import Representatives
from .syntax import PatternError
from .tokens import has_operators, names_version, tokens

SECONDS = 2.0
"""Time limit of the engine for one text."""


class Checker:
    """Checks single texts against a pattern.

    Args:
        pattern: in the syntax of ``regex``: its version 0, which is Python's, or version 1 if a set has an operator
            (``&&``, ``--`` before a set or a class, ``~~``).

    Raises:
        PatternError: ``regex`` refuses the pattern.
    """

    def __init__(self, pattern: str) -> None:
        regex = _import()
        self.pattern = pattern
        if names_version(pattern):
            version = 0
        else:
            version = regex.V1 if has_operators(pattern) else regex.V0
        try:
            self._whole = regex.compile(pattern, version)
        except regex.error as error:
            raise PatternError(str(error)) from None
        self._prefix: Any = None  # None: every text is accepted as a prefix
        self._representatives: Representatives | None = None
        try:
            parts = tokens(pattern)
            prefix_pattern = for_prefixes(parts)
            self._prefix = None if prefix_pattern is None else regex.compile(prefix_pattern, version)
            self._representatives = Representatives(parts, version)
        except (PatternError, regex.error):
            pass  # without these, more texts are accepted as prefixes than there are

    def matches(self, text: str) -> bool:
        """Whether ``text`` matches as a whole."""
        return self._match(self._whole, text, partial=False)

    def is_prefix(self, text: str, first_bytes: bytes = b"") -> bool:
        """Whether ``text``, followed by a character that starts with ``first_bytes``, may become a match.

        False is certain. True is not always: the engine may have looked at the end of the text in a lookahead.
        """
        if self._prefix is None:
            return True
        if not first_bytes:
            return self._match(self._prefix, text, partial=True)
        if not self.is_prefix(text):
            return False
        if self._representatives is None:
            return True
        return any(self.is_prefix(text + character) for character in self._representatives.of(first_bytes, text))

    def _match(self, compiled: Any, text: str, partial: bool) -> bool:
        try:
            return compiled.fullmatch(text, partial=partial, timeout=SECONDS) is not None
        except (TimeoutError, MemoryError) as error:
            limit = f"{SECONDS:g} s" if isinstance(error, TimeoutError) else "memory allows"
            raise ValueError(
                f"pattern={self.pattern!r} took more than {limit} for a text of {len(text)} characters "
                f"({text[-40:]!r}): there are too many ways to match; make the repeated part unambiguous, (?:ab?)+ "
                "instead of (?:a|ab)+, and put a character before a recursion"
            ) from None


@lru_cache(maxsize=64)
def checker(pattern: str) -> Checker:
    """The checker of a pattern, cached. Raises as :class:`Checker`."""
    return Checker(pattern)


def ambiguity(pattern: str) -> str:
    """Why a pattern has different meanings for ``re`` (text) and ``regex`` (fuzzy matching), and the remedy; empty if
    it does not."""
    try:
        fuzzy = [token.text for token in tokens(pattern) if token.kind == "fuzzy"]
        if not fuzzy:
            return ""
        with warnings.catch_warnings():  # about sets that will change their meaning
            warnings.simplefilter("ignore", FutureWarning)
            re.compile(pattern)
    except (PatternError, re.error):
        return ""
    return (
        f"{fuzzy[0]} is text for Python's re and fuzzy matching for regex; write \\{fuzzy[0]} for the text, or pass "
        "engine='regex'"
    )


def session(pattern: str, vocabulary: Vocabulary) -> Session:
    """A session before the first token.

    Raises:
        UnsatisfiableError: no text matches.
    """
    first = BacktrackingSession(checker(pattern), vocabulary, b"", VerdictCache())
    if not first.is_prefix(b""):
        raise UnsatisfiableError(f"pattern={pattern!r} cannot be used: nothing satisfies it, not even the empty text")
    return first


class BacktrackingSession(MemoizedSession["Checker"]):
    """One text under a pattern."""

    def is_prefix(self, text: bytes) -> bool:
        parts = whole_characters(self._vocabulary.visible(text))
        return parts is not None and self._verdicts.get(("prefix", *parts), lambda: self._checker.is_prefix(*parts))

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
