"""The way in which a constraint is applied to a canvas: by an automaton if it has one, by looking ahead if not."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ...constraints import Constraint
from ...constraints.automata import automaton_of
from ...constraints.automata.expressions import TooLargeError
from ...constraints.spec import resolve
from ...constraints.vocabulary import Vocabulary
from ..canvas import Canvas
from ..denoisers import Denoiser
from .base import CanvasConstraint
from .lookahead import LookaheadConstraint
from .regular import RegularConstraint
from .rejection import RejectionConstraint
from .token_classes import ClassAutomaton, class_automaton


def canvas_constraint(model: Denoiser, constraint: Any, canvas: Canvas, whole: bool) -> CanvasConstraint:
    """A constraint on the texts of a canvas.

    Args:
        constraint: a :class:`~textguide.constraints.Constraint`, or a description of one.
        whole: the text of a row is the whole row, with what is given.

    Raises:
        ValueError: it is not a constraint, or no text that satisfies it fits into a row.
    """
    constraint = resolve(constraint)
    name = f"{constraint!r}"[:200]
    ends = () if whole or model.end_id is None else (model.end_id,)
    vocabulary = Vocabulary.of(model.tokenizer, model.size, ends)
    automaton, fewest, is_exact = automaton_of_canvas(constraint, vocabulary, model.forbidden)
    if automaton is not None and is_exact:
        return RegularConstraint(model, canvas, whole, name, automaton, fewest)
    search = LookaheadConstraint(model, canvas, whole, name, constraint, vocabulary)
    if automaton is None:
        return search
    return RejectionConstraint(model, canvas, whole, name, automaton, fewest, constraint, search)


@lru_cache(maxsize=16)
def automaton_of_canvas(
    constraint: Constraint, vocabulary: Vocabulary, forbidden: tuple[int, ...]
) -> tuple[ClassAutomaton | None, int | None, bool]:
    """The automaton of a constraint, the tokens of its shortest text, and whether it accepts no other texts."""
    automaton = automaton_of(constraint, vocabulary)
    if automaton is None:
        return None, None, False
    try:
        classes = class_automaton(automaton, forbidden, sorted(vocabulary.ends))
    except TooLargeError:
        return None, None, False
    fewest = int(automaton.distances[automaton.begin])
    return classes, fewest if fewest < 1 << 30 else None, automaton.exact
