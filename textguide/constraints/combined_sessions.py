"""Sessions on several other sessions.

Not in :mod:`combine`, which builds any kind of constraint from JSON: SQL has such a session and would import it back.
"""

from __future__ import annotations

from torch import Tensor

from .base import Session, not_allowed
from .vocabulary import Vocabulary


class AnyOfSession(Session):
    """One text under several sessions, at least one of which must accept it.

    Args:
        text: the bytes written so far.
        parts: all sessions. One that no longer accepts the text stays where it stopped; it still answers questions
            about texts that do not continue the written one, and its calls count.
        alive: the sessions that accept the text.
        vocabulary: what each token adds.
    """

    def __init__(
        self, text: bytes, parts: tuple[Session, ...], alive: tuple[Session, ...], vocabulary: Vocabulary
    ) -> None:
        self.text = text
        self._parts = parts
        self._alive = alive
        self._vocabulary = vocabulary

    @property
    def calls(self) -> int:
        return sum(session.calls for session in self._parts)

    def is_prefix(self, text: bytes) -> bool:
        return any(session.is_prefix(text) for session in self._candidates(text))

    def is_complete(self, text: bytes) -> bool:
        return any(session.is_complete(text) for session in self._candidates(text))

    def mask(self) -> Tensor | None:
        union: Tensor | None = None
        for session in self._alive:
            mask = session.mask()
            if mask is None:
                return None
            union = mask if union is None else union | mask
        return union

    def write(self, text: bytes) -> None:
        whole = self.text + text
        alive = tuple(session for session in self._alive if session.is_prefix(whole))
        if not alive:
            raise not_allowed(text, self.text)
        for session in alive:
            session.write(text)
        self.text = whole
        self._alive = alive

    def fork(self) -> AnyOfSession:
        forks = {id(session): session.fork() for session in self._parts}
        alive = tuple(forks[id(session)] for session in self._alive)
        return AnyOfSession(self.text, tuple(forks.values()), alive, self._vocabulary)

    def _candidates(self, text: bytes) -> tuple[Session, ...]:
        """The sessions that may accept ``text``."""
        return self._alive if text.startswith(self.text) else self._parts


class AllOfSession(Session):
    """One text under several sessions, all of which must accept it; the first ones are called first."""

    def __init__(self, text: bytes, parts: tuple[Session, ...], vocabulary: Vocabulary) -> None:
        self.text = text
        self._parts = parts
        self._vocabulary = vocabulary

    @property
    def calls(self) -> int:
        return sum(session.calls for session in self._parts)

    def is_prefix(self, text: bytes) -> bool:
        return all(session.is_prefix(text) for session in self._parts)

    def is_complete(self, text: bytes) -> bool:
        return all(session.is_complete(text) for session in self._parts)

    def mask(self) -> Tensor | None:
        intersection: Tensor | None = None
        for session in self._parts:
            mask = session.mask()
            if mask is None:
                return None
            intersection = mask if intersection is None else intersection & mask
        return intersection

    def write(self, text: bytes) -> None:
        if not self.is_prefix(self.text + text):
            raise not_allowed(text, self.text)
        for session in self._parts:
            session.write(text)
        self.text += text

    def fork(self) -> AllOfSession:
        return AllOfSession(self.text, tuple(session.fork() for session in self._parts), self._vocabulary)
