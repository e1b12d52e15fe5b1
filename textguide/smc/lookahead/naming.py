"""Lookaheads by the names that :class:`textguide.AWRS` takes."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...constraints import Constraint, Vocabulary
from ...constraints.automata import TokenAutomaton, automaton_of
from ...constraints.automata.expressions import TooLargeError
from . import hidden_markov
from .base import Lookahead
from .length import LengthLookahead
from .markov import MarkovLookahead
from .witness import WitnessLookahead

AUTO, AUTOMATON, HMM = "auto", "automaton", "hmm"
SHIPPED = Path(__file__).parent / "weights" / "smollm2.safetensors"
"""Made by ``python scripts/train/lookahead.py``."""


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
    if automaton is not None and value in (AUTO, AUTOMATON):
        return _length(automaton)
    if value == HMM and not SHIPPED.is_file():
        raise ValueError(
            "lookahead='hmm': no hidden Markov model comes with this installation; make one with 'textguide lookahead "
            "train --model MODEL --out FILE', and give the file"
        )
    if automaton is not None:
        try:
            return _markov(automaton, str(SHIPPED) if value == HMM else os.fspath(value))
        except TooLargeError as error:
            raise ValueError(f"lookahead={value!r}: the automaton is too large: {error}; use 'automaton'") from None
    if value == AUTO:
        return None
    if value == AUTOMATON:
        return WitnessLookahead(constraint.start(vocabulary), vocabulary)
    raise ValueError(
        f"lookahead={value!r} needs the automaton of a regular constraint, and {type(constraint).__name__} has "
        "none, or one that is too large; use 'automaton', which then goes by completions that were found"
    )


@lru_cache(maxsize=32)
def _length(automaton: TokenAutomaton) -> LengthLookahead:
    return LengthLookahead(automaton)


@lru_cache(maxsize=4)
def _markov(automaton: TokenAutomaton, path: str) -> MarkovLookahead:
    return MarkovLookahead(automaton, hidden_markov.load(path))
