"""Lookaheads by the names that :class:`textguide.AWRS` accepts."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...constraints import Constraint, Vocabulary
from ...constraints.automata import TokenAutomaton, automaton_of
from ...constraints.automata.expressions import TooLargeError
from . import hidden_markov, stored
from . import value as learned
from .base import Lookahead
from .length import LengthLookahead
from .markov import MarkovLookahead
from .witness import WitnessLookahead

AUTO = "auto"
AUTOMATON = "automaton"
HMM = "hmm"
VALUE = "value"
SHIPPED = Path(__file__).parent / "weights" / "smollm2.safetensors"
"""The one for the bundled model, made by ``python scripts/train/lookahead.py``."""


def lookahead_of(value: Any, constraint: Constraint, vocabulary: Vocabulary) -> Lookahead | None:
    """The lookahead for a constraint.

    Args:
        value: the ``lookahead`` of an :class:`textguide.AWRS`: a name, a file, a lookahead, or None.
        constraint: the constraint of the texts.
        vocabulary: the model's vocabulary.

    Raises:
        ValueError: the lookahead is not possible for this constraint; the message contains the reason and the remedy.
    """
    if value is None or isinstance(value, Lookahead):
        return value
    automaton = automaton_of(constraint, vocabulary)
    if automaton is not None and value in (AUTO, AUTOMATON):
        return _length(automaton)
    if value == AUTOMATON or (value == AUTO and constraint.completion(b"") is not None):
        return WitnessLookahead(constraint, vocabulary)
    if value == AUTO:
        return None
    if value == VALUE:
        raise ValueError(
            "lookahead='value': a value is learned for one constraint, and textguide contains none; train one with "
            "'textguide lookahead train --kind value --prompts FILE --out FILE' and the options of the constraint, and "
            "pass the file"
        )
    path = str(SHIPPED) if value == HMM else os.fspath(value)
    file = stored.read(path)
    if file.kind == learned.KIND:
        return _value(file, constraint, vocabulary, automaton)
    if file.kind != hidden_markov.KIND:
        raise ValueError(
            f"lookahead={path!r} contains a {file.kind}, which this version does not support; train it again with "
            "'textguide lookahead train'"
        )
    if automaton is not None:
        try:
            return _markov(automaton, stored.stamp(path))
        except TooLargeError as error:
            raise ValueError(f"lookahead={value!r}: the automaton is too large: {error}; use 'automaton'") from None
    raise ValueError(
        f"lookahead={value!r} needs the automaton of a regular constraint, and {type(constraint).__name__} has "
        "none, or one that is too large; use 'automaton', which then searches for short completions, or a file of "
        "'textguide lookahead train --kind value'"
    )


def _value(
    file: stored.Stored, constraint: Constraint, vocabulary: Vocabulary, automaton: TokenAutomaton | None
) -> Lookahead:
    """The lookahead of a file, which must belong to this constraint: its heads belong to states of the automaton."""
    for name, mine in (("constraint", learned.described(constraint)), ("vocabulary", vocabulary.digest)):
        if file.about.get(name) != mine:
            other = name if name == "constraint" else f"{name}, or other end tokens"
            raise ValueError(
                f"lookahead={file.path!r} was learned for another {other}; train it again with 'textguide lookahead "
                "train --kind value'"
            )
    return _value_lookahead(file, vocabulary, automaton)


@lru_cache(maxsize=32)
def _length(automaton: TokenAutomaton) -> LengthLookahead:
    return LengthLookahead(automaton)


@lru_cache(maxsize=4)
def _markov(automaton: TokenAutomaton, file: stored.Stamp) -> MarkovLookahead:
    return MarkovLookahead(automaton, hidden_markov.load(file[0]))


@lru_cache(maxsize=4)
def _value_lookahead(
    file: stored.Stored, vocabulary: Vocabulary, automaton: TokenAutomaton | None
) -> learned.ValueLookahead:
    return learned.ValueLookahead(learned.Value.of(file), vocabulary, automaton)
