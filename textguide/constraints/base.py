"""The protocol of constraints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .vocabulary import Vocabulary


class UnsatisfiableError(ValueError):
    """No text satisfies a constraint, or the vocabulary cannot write one that does."""


@dataclass(frozen=True)
class Source:
    """A place in a document.

    Args:
        document: its name.
        start: its first character.
        end: the character after the last one.
    """

    document: str
    start: int
    end: int


@dataclass(frozen=True)
class Citation:
    """A part of a text that is quoted from documents.

    Args:
        start: its first character in the text.
        end: the character after the last one.
        sources: its places in documents, in the order of the documents.
    """

    start: int
    end: int
    sources: tuple[Source, ...]


class Constraint(ABC):
    """A set of byte strings, its members, as a value: a frozen dataclass without tokenizer and without state.

    A constraint works on prefixes: a text is a *prefix* if it is a member or some continuation of it is one. If a text
    is not a prefix, neither is anything that continues it.

    A subclass defines ``kind``, which registers it for JSON.
    """

    kind: ClassVar[str]
    registry: ClassVar[dict[str, type[Constraint]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            cls.registry[cls.kind] = cls

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The constraint as plain JSON values: ``kind`` and every field."""

    @classmethod
    def build(cls, values: dict[str, Any]) -> Constraint:
        """Build the constraint from the fields that :meth:`to_dict` returned, without ``kind``."""
        return cls(**values)

    def regular(self) -> str | None:
        """The constraint as one terminal of llguidance's Lark grammars; None if it is not regular.

        Regular constraints can be combined exactly: union, intersection and complement of terminals are terminals.
        """
        return None

    def completion(self, text: bytes) -> bytes | None:
        """Guess a short continuation that makes ``text`` a member.

        Returns:
            The continuation, which may be wrong: callers check it. None if no guess is possible.
        """
        return None

    def special_tokens(self, vocabulary: Vocabulary) -> frozenset[str]:
        """The names of the special tokens of ``vocabulary`` that members may contain."""
        return frozenset()

    def vocabulary(self, vocabulary: Vocabulary) -> Vocabulary:
        """``vocabulary``, in which the special tokens that members may contain have bytes.

        Raises:
            ValueError: one of them ends the text.
        """
        return vocabulary.spelled(self.special_tokens(vocabulary))

    def citations(self, text: str) -> tuple[Citation, ...]:
        """The parts of a member that are quoted from documents, with their sources.

        Args:
            text: a member, as ``decode`` shows it.
        """
        return ()

    @abstractmethod
    def start(self, vocabulary: Vocabulary) -> Session:
        """Start a session before the first token. Compilation is cached per vocabulary.

        Raises:
            UnsatisfiableError: nothing satisfies the constraint.
            ValueError: no engine supports the constraint; the message names the unsupported part.
        """


class Session(ABC):
    """One text under one constraint: decides which tokens may come next.

    Attributes:
        text: the bytes written so far.
    """

    text: bytes
    _vocabulary: Vocabulary

    @property
    @abstractmethod
    def calls(self) -> int:
        """Number of evaluations of the constraint so far, in this session and all its forks."""

    @abstractmethod
    def is_prefix(self, text: bytes) -> bool:
        """Whether ``text``, counted from the start, is a member or can be continued to one."""

    @abstractmethod
    def is_complete(self, text: bytes) -> bool:
        """Whether ``text``, counted from the start, is a member, so that an end token may follow."""

    def mask(self) -> Tensor | None:
        """The tokens that may come next, bool (V,); end tokens are True if the text is complete.

        Returns:
            None if the mask is not known; then call :meth:`is_prefix` and :meth:`is_complete` instead.
        """
        return None

    def advance(self, token: int) -> None:
        """Write ``token``, which must be allowed and must not be an end token."""
        self.write(self._vocabulary.bytes_of(token))

    @abstractmethod
    def write(self, text: bytes) -> None:
        """Append bytes to the text: a token, or a part of one.

        Raises:
            ValueError: the bytes are not allowed there.
        """

    @abstractmethod
    def fork(self) -> Session:
        """An independent session with the same text."""


def not_allowed(added: bytes, text: bytes) -> ValueError:
    """The error of :meth:`Session.write` for bytes that are not allowed after ``text``."""
    return ValueError(f"text={added!r} is not allowed after {text[-40:]!r}")
