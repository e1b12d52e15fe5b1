"""A constraint as a form: by an automaton where there is one, by looking ahead where there is none."""

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
from .base import Form
from .lookahead import SearchedForm
from .regular import RegularForm
from .rejection import CheckedForm
from .token_classes import Letters, letters_of


def form_of(model: Denoiser, constraint: Any, canvas: Canvas, whole: bool) -> Form:
    """A constraint on the texts of a canvas.

    Args:
        constraint: a :class:`~textguide.constraints.Constraint`, or what describes one.
        whole: the text of a row is all of it, with what is given.

    Raises:
        ValueError: it is none, or no text in form fits a row.
    """
    constraint = resolve(constraint)
    name = f"{constraint!r}"[:200]
    ends = () if whole or model.end_id is None else (model.end_id,)
    vocabulary = Vocabulary.of(model.tokenizer, model.size, ends)
    letters, fewest, exact = _letters(constraint, vocabulary, model.forbidden)
    if letters is not None and exact:
        return RegularForm(model, canvas, whole, name, letters, fewest)
    search = SearchedForm(model, canvas, whole, name, constraint, vocabulary)
    if letters is None:
        return search
    return CheckedForm(model, canvas, whole, name, letters, fewest, constraint, search)


@lru_cache(maxsize=16)
def _letters(
    constraint: Constraint, vocabulary: Vocabulary, forbidden: tuple[int, ...]
) -> tuple[Letters | None, int | None, bool]:
    """The automaton of a constraint, the tokens of its shortest text, and whether it takes no other text."""
    automaton = automaton_of(constraint, vocabulary)
    if automaton is None:
        return None, None, False
    try:
        letters = letters_of(automaton, forbidden, sorted(vocabulary.ends))
    except TooLargeError:
        return None, None, False
    fewest = int(automaton.distances[automaton.begin])
    return letters, fewest if fewest < 1 << 30 else None, automaton.exact
