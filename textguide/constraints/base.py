"""The protocol of constraints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from .vocabulary import Vocabulary


class UnsatisfiableError(ValueError):
    """No text at all satisfies a constraint, or none that the vocabulary can write."""


class Constraint(ABC):
    """A set of byte strings, as a value: a frozen dataclass that holds no tokenizer and no state.

    A constraint is *prefix-closed*: once a text is no prefix of any member, nothing that continues it is one.
    Subclasses have a ``kind``, which registers them for JSON.
    """

    kind: ClassVar[str]
    registry: ClassVar[dict[str, type[Constraint]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            cls.registry[cls.kind] = cls

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: ``kind`` and every field."""

    @classmethod
    def build(cls, values: dict[str, Any]) -> Constraint:
        """The constraint with these fields, as :meth:`to_dict` gave them (without ``kind``)."""
        return cls(**values)

    def regular(self) -> str | None:
        """The set as one terminal of the engine's grammars, where it is regular; else None. Regular sets combine
        exactly."""
        return None

    def completion(self, text: bytes) -> bytes | None:
        """A guess at a short way to complete ``text`` to a member, not always right; None where there is none."""
        return None

    @abstractmethod
    def start(self, vocabulary: Vocabulary) -> Session:
        """A session in front of the first token. What is costly (compiling) is done once for a vocabulary.

        Raises:
            UnsatisfiableError: nothing satisfies the constraint.
            ValueError: the constraint cannot be used; the message names what it has that no engine does.
        """


class Session(ABC):
    """One text under one constraint: which tokens may come next.

    Attributes:
        text: the bytes written so far.
        calls: how often the constraint itself was asked, forks included (they share the counter).
    """

    text: bytes
    _vocabulary: Vocabulary

    @property
    @abstractmethod
    def calls(self) -> int:
        """Number of constraint evaluations so far in this session and all its forks."""

    @abstractmethod
    def is_prefix(self, text: bytes) -> bool:
        """Whether ``text`` can be continued to a member (or is one)."""

    @abstractmethod
    def is_complete(self, text: bytes) -> bool:
        """Whether ``text`` is a member, so that an end token may follow."""

    def mask(self) -> Tensor | None:
        """The tokens that may come next, bool (V,) with the end tokens where the text is complete; None: unknown,
        ask :meth:`is_prefix` and :meth:`is_complete`."""
        return None

    def advance(self, token: int) -> None:
        """Write ``token``, which must be allowed and no end token."""
        self.write(self._vocabulary.bytes_of(token))

    @abstractmethod
    def write(self, text: bytes) -> None:
        """Write bytes behind the text, a token or a part of one.

        Raises:
            ValueError: they are not allowed.
        """

    @abstractmethod
    def fork(self) -> Session:
        """An independent session at the same place."""
