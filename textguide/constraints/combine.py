"""Constraints made of other constraints."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from . import engines
from .base import Constraint, Session, UnsatisfiableError
from .combined_sessions import AllOfSession, AnyOfSession
from .engines import llguidance_engine
from .vocabulary import Vocabulary

LABEL_LENGTH = 200
"""Characters of a constraint's repr in error messages."""


class _Combination(Constraint, ABC):
    """The common part of :class:`AnyOf` and :class:`AllOf`."""

    constraints: tuple[Constraint, ...]
    operator: ClassVar[str]

    def __init__(self, *constraints: Any) -> None:
        from .spec import resolve

        if len(constraints) == 1 and isinstance(constraints[0], Sequence) and not isinstance(constraints[0], str):
            constraints = tuple(constraints[0])
        if not constraints:
            raise ValueError(f"constraints=() of {type(self).__name__} is empty; pass at least one constraint")
        parts = []
        for number, constraint in enumerate(constraints):
            try:
                parts.append(resolve(constraint))
            except ValueError as error:
                raise ValueError(f"constraints[{number}] of {type(self).__name__}: {error}") from None
        object.__setattr__(self, "constraints", tuple(parts))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "constraints": [constraint.to_dict() for constraint in self.constraints]}

    @classmethod
    def build(cls, values: dict[str, Any]) -> Constraint:
        from .spec import from_dict

        return cls(*(from_dict(value) for value in values["constraints"]))

    def regular(self) -> str | None:
        parts = [constraint.regular() for constraint in self.constraints]
        if not all(parts):
            return None
        return f"({self.operator.join(f'({part})' for part in parts)})"

    def special_tokens(self, vocabulary: Vocabulary) -> frozenset[str]:
        """As :meth:`Constraint.special_tokens`: those of all parts."""
        return frozenset().union(*(part.special_tokens(vocabulary) for part in self.constraints))

    def _regular_session(self, vocabulary: Vocabulary) -> Session | None:
        """A session with exact masks, if every part is regular."""
        terminal = self.regular()
        if terminal is None:
            return None
        label = f"constraints={self!r}"[:LABEL_LENGTH]
        return engines.llguidance_session(label, llguidance_engine.terminal(terminal), vocabulary)


@dataclass(frozen=True, init=False)
class AnyOf(_Combination):
    """Texts that satisfy at least one constraint. Exact for all constraints.

    Args:
        *constraints: the constraints, or values that describe them as in :class:`textguide.AWRS`; or one list of
            them.

    Raises:
        ValueError: there are none, or one of them is not a constraint.
    """

    constraints: tuple[Constraint, ...]

    kind = "any-of"
    operator = " | "

    def completion(self, text: bytes) -> bytes | None:
        guesses = [part.completion(text) for part in self.constraints]
        return min((guess for guess in guesses if guess is not None), key=len, default=None)

    def start(self, vocabulary: Vocabulary) -> Session:
        session = self._regular_session(vocabulary)
        if session is not None:
            return session
        parts = []
        reasons = []
        for constraint in self.constraints:
            try:
                parts.append(constraint.start(vocabulary))
            except UnsatisfiableError as error:
                reasons.append(str(error))
        if not parts:
            raise UnsatisfiableError(f"constraints of AnyOf: nothing satisfies any of them: {'; '.join(reasons)}")
        return AnyOfSession(b"", tuple(parts), tuple(parts), vocabulary)


@dataclass(frozen=True, init=False)
class AllOf(_Combination):
    """Texts that satisfy every constraint.

    Exact if all of them are regular (:class:`Regex`, and :class:`AnyOf`, :class:`AllOf`, :class:`Not` of these). For
    other constraints, no engine knows whether two sets share a text that starts with a given prefix. A text then counts
    as a prefix if every constraint accepts it as one, which is necessary but not sufficient. A text may therefore reach
    a point where no token is allowed; that particle is given up with weight 0, so the samples are still correct.

    Args:
        *constraints: as in :class:`AnyOf`. Put cheap ones first: later ones are only evaluated for
            texts that the earlier ones accept.

    Raises:
        ValueError: there are none, or one of them is not a constraint.
    """

    constraints: tuple[Constraint, ...]

    kind = "all-of"
    operator = " & "

    def start(self, vocabulary: Vocabulary) -> Session:
        session = self._regular_session(vocabulary)
        if session is not None:
            return session
        regular = [constraint for constraint in self.constraints if constraint.regular() is not None]
        others = [constraint for constraint in self.constraints if constraint.regular() is None]
        parts = [AllOf(*regular), *others] if regular else others
        session = AllOfSession(b"", tuple(constraint.start(vocabulary) for constraint in parts), vocabulary)
        mask = session.mask()
        if mask is not None and not mask.any():
            label = f"{self!r}"[:LABEL_LENGTH]
            raise UnsatisfiableError(f"{label} cannot be used: nothing satisfies all of its constraints")
        return session


@dataclass(frozen=True)
class Not(Constraint):
    """UTF-8 texts that do not satisfy a constraint.

    The constraint must be regular, because the prefixes of the complement are only known then. For a grammar, a schema
    or a function it is undecidable whether some continuation falls outside of it.

    Args:
        constraint: a :class:`Regex`, or :class:`AnyOf`, :class:`AllOf`, :class:`Not` of these.

    Raises:
        ValueError: the constraint is not regular.
    """

    constraint: Constraint

    kind = "not"

    def __post_init__(self) -> None:
        from .spec import resolve

        object.__setattr__(self, "constraint", resolve(self.constraint))
        if self.constraint.regular() is None:
            raise ValueError(
                f"constraint={type(self.constraint).__name__} cannot be negated: this is only decidable for regular "
                "expressions; for a function write Predicate(lambda text: True, lambda text: not function(text)), for "
                "a Regex that needs backtracking Regex(r'(?s)(?!(?:…)\\Z).*')"
            )

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "constraint": self.constraint.to_dict()}

    @classmethod
    def build(cls, values: dict[str, Any]) -> Constraint:
        from .spec import from_dict

        return cls(from_dict(values["constraint"]))

    def regular(self) -> str | None:
        return f"(/(?s:.*)/ & ~({self.constraint.regular()}))"

    def start(self, vocabulary: Vocabulary) -> Session:
        terminal = self.regular()
        assert terminal is not None
        label = f"{self!r}"[:LABEL_LENGTH]
        return engines.llguidance_session(label, llguidance_engine.terminal(terminal), vocabulary)
