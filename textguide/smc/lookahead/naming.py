"""Lookaheads by the names that :class:`textguide.AWRS` takes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ...constraints import Constraint, Vocabulary
from ...constraints.automata import TokenAutomaton, automaton_of
from .base import Lookahead
from .length import LengthLookahead

AUTO, AUTOMATON = "auto", "automaton"


def lookahead_of(value: Any, constraint: Constraint, vocabulary: Vocabulary) -> Lookahead | None:
    """The lookahead that ``value`` names for a constraint, or is.

    Args:
        value: ``lookahead`` of an :class:`textguide.AWRS`.
        constraint: what texts have to satisfy.
        vocabulary: of the model.

    Raises:
        ValueError: there is none of that name for this constraint; the message says why, and what to do.
    """
    if value is None or isinstance(value, Lookahead):
        return value
    automaton = automaton_of(constraint, vocabulary)
    if automaton is not None:
        return _length(automaton)
    if value == AUTO:
        return None
    raise ValueError(
        f"lookahead={value!r} needs the automaton of a regular constraint, and {type(constraint).__name__} has "
        "none, or one that is too large; leave lookahead out"
    )


@lru_cache(maxsize=32)
def _length(automaton: TokenAutomaton) -> LengthLookahead:
    return LengthLookahead(automaton)
