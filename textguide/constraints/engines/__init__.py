"""The engines of constraints that know their whole mask, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..base import Session, UnsatisfiableError
from ..vocabulary import Vocabulary
from . import llguidance_engine
from .session import EmptyGrammarError, GrammarError

DEFAULT = "llguidance"
NAMES = (DEFAULT, "xgrammar")


def llguidance_session(label: str, grammar: str, vocabulary: Vocabulary) -> Session:
    """A session on llguidance before the first token.

    Args:
        label: names the argument and its value in messages.
        grammar: as the functions of :mod:`llguidance_engine` return it.
        vocabulary: the tokens of the masks.

    Raises:
        UnsatisfiableError: nothing satisfies the grammar.
        ValueError: the engine refuses it.
    """
    with _labelled_errors(label):
        return llguidance_engine.compile_grammar(grammar, vocabulary, label).session()


def xgrammar_session(label: str, notation: str, text: str, vocabulary: Vocabulary, **options: Any) -> Session:
    """A session on xgrammar before the first token.

    Arguments are those of :func:`xgrammar_engine.compile_grammar`; errors are those of :func:`llguidance_session`.
    """
    from . import xgrammar_engine

    with _labelled_errors(label):
        return xgrammar_engine.compile_grammar(notation, text, vocabulary, label, **options).session()


@contextmanager
def _labelled_errors(label: str) -> Iterator[None]:
    try:
        yield
    except EmptyGrammarError as error:
        raise UnsatisfiableError(f"{label} cannot be used: {error}") from None
    except GrammarError as error:
        raise ValueError(f"{label} cannot be used: {error}") from None
