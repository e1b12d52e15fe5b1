"""Constraints made of constraints."""

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


class _Several(Constraint, ABC):
    """What :class:`AnyOf` and :class:`AllOf` share."""

    constraints: tuple[Constraint, ...]
    operator: ClassVar[str]

    def __init__(self, *constraints: Constraint) -> None:
        if len(constraints) == 1 and isinstance(constraints[0], Sequence):
            constraints = tuple(constraints[0])
        if not constraints:
            raise ValueError(f"constraints=() of {type(self).__name__} holds nothing; give one at least")
        for number, constraint in enumerate(constraints):
            if not isinstance(constraint, Constraint):
                raise ValueError(f"constraints[{number}]={constraint!r} must be a constraint such as Regex('a')")
        object.__setattr__(self, "constraints", constraints)

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

    def _regular_session(self, vocabulary: Vocabulary) -> Session | None:
        terminal = self.regular()
        if terminal is None:
            return None
        return engines.session(f"constraints={self!r}"[:200], llguidance_engine.terminal(terminal), vocabulary)


@dataclass(frozen=True, init=False)
class AnyOf(_Several):
    """Texts that satisfy one constraint at least. Exact, whatever the constraints are.

    Args:
        *constraints: the constraints, or one list of them.

    Raises:
        ValueError: there are none, or one is no constraint.
    """

    constraints: tuple[Constraint, ...]

    kind = "any-of"
    operator = " | "

    def completion(self, text: bytes) -> bytes | None:
        guesses = [guess for part in self.constraints if (guess := part.completion(text)) is not None]
        return min(guesses, key=len, default=None)

    def start(self, vocabulary: Vocabulary) -> Session:
        session = self._regular_session(vocabulary)
        if session is not None:
            return session
        branches, reasons = [], []
        for constraint in self.constraints:
            try:
                branches.append(constraint.start(vocabulary))
            except UnsatisfiableError as error:
                reasons.append(str(error))
        if not branches:
            raise UnsatisfiableError(f"constraints of AnyOf: nothing satisfies any of them: {'; '.join(reasons)}")
        return AnyOfSession(b"", tuple(branches), tuple(branches), vocabulary)


@dataclass(frozen=True, init=False)
class AllOf(_Several):
    """Texts that satisfy every constraint.

    Exact where all of them are regular (:class:`Regex`, and :class:`AnyOf`, :class:`AllOf`, :class:`Not` of such). For
    others no engine knows whether two sets share a text behind a given prefix: a prefix is then what every constraint
    takes for one, which is necessary and not sufficient. A text may come to a place where no token is left; that
    particle is dead, and its weight 0, so that what is sampled is right all the same.

    Args:
        *constraints: the constraints, or one list of them; cheap ones first, for the later ones are asked about what
            the earlier ones accept.

    Raises:
        ValueError: there are none, or one is no constraint.
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
        together = [AllOf(*regular), *others] if regular else others
        session = AllOfSession(b"", tuple(constraint.start(vocabulary) for constraint in together), vocabulary)
        mask = session.mask()
        if mask is not None and not mask.any():
            raise UnsatisfiableError(f"{self!r}"[:200] + " cannot be used: nothing satisfies all of its constraints")
        return session


@dataclass(frozen=True)
class Not(Constraint):
    """Texts, in UTF-8, that do not satisfy a constraint.

    Only where that is regular: the prefixes of what is left are then known. Of a grammar, a schema or a function nobody
    can say whether some continuation falls outside it.

    Args:
        constraint: a :class:`Regex`, or :class:`AnyOf`, :class:`AllOf`, :class:`Not` of such.

    Raises:
        ValueError: the constraint is not regular.
    """

    constraint: Constraint

    kind = "not"

    def __post_init__(self) -> None:
        if not isinstance(self.constraint, Constraint):
            raise ValueError(f"constraint={self.constraint!r} must be a constraint such as Regex('a')")
        if self.constraint.regular() is None:
            raise ValueError(
                f"constraint={type(self.constraint).__name__} cannot be negated: which texts can still leave it is "
                "decidable for regular expressions alone; for a function write Predicate(lambda text: True, "
                "lambda text: not function(text)), for a Regex that needs backtracking Regex(r'(?s)(?!(?:…)\\Z).*')"
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
        return engines.session(f"{self!r}"[:200], llguidance_engine.terminal(terminal), vocabulary)
