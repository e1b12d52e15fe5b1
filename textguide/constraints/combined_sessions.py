"""One text under several sessions at once."""

from __future__ import annotations

from torch import Tensor

from .base import Session
from .vocabulary import Vocabulary


class AnyOfSession(Session):
    """The branches that are alive advance; those that are not stay where they died, and answer all the same."""

    def __init__(
        self, text: bytes, every: tuple[Session, ...], alive: tuple[Session, ...], vocabulary: Vocabulary
    ) -> None:
        self.text = text
        self._every = every  # for the count, and for questions about texts elsewhere
        self._alive = alive
        self._vocabulary = vocabulary

    @property
    def calls(self) -> int:
        return sum(session.calls for session in self._every)

    def is_prefix(self, text: bytes) -> bool:
        return any(session.is_prefix(text) for session in self._asked(text))

    def is_complete(self, text: bytes) -> bool:
        return any(session.is_complete(text) for session in self._asked(text))

    def mask(self) -> Tensor | None:
        mask: Tensor | None = None
        for session in self._alive:
            part = session.mask()
            if part is None:
                return None
            mask = part if mask is None else mask | part
        return mask

    def write(self, text: bytes) -> None:
        whole = self.text + text
        alive = tuple(session for session in self._alive if session.is_prefix(whole))
        if not alive:
            raise ValueError(f"text={text!r} is not allowed behind {self.text[-40:]!r}")
        for session in alive:
            session.write(text)
        self.text, self._alive = whole, alive

    def fork(self) -> AnyOfSession:
        forks = {id(session): session.fork() for session in self._every}
        alive = tuple(forks[id(session)] for session in self._alive)
        return AnyOfSession(self.text, tuple(forks.values()), alive, self._vocabulary)

    def _asked(self, text: bytes) -> tuple[Session, ...]:
        return self._alive if text.startswith(self.text) else self._every


class AllOfSession(Session):
    """One text under several sessions at once; the first ones are asked first."""

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
        mask: Tensor | None = None
        for session in self._parts:
            part = session.mask()
            if part is None:
                return None
            mask = part if mask is None else mask & part
        return mask

    def write(self, text: bytes) -> None:
        if not self.is_prefix(self.text + text):
            raise ValueError(f"text={text!r} is not allowed behind {self.text[-40:]!r}")
        for session in self._parts:
            session.write(text)
        self.text += text

    def fork(self) -> AllOfSession:
        return AllOfSession(self.text, tuple(session.fork() for session in self._parts), self._vocabulary)
