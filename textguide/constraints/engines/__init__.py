"""The engines behind constraints that know their whole mask, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..base import Session, UnsatisfiableError
from ..vocabulary import Vocabulary
from . import llguidance_engine
from .llguidance_engine import CompileError, NothingError

DEFAULT = "llguidance"
NAMES = (DEFAULT, "xgrammar")


def check(engine: object) -> None:
    """Refuse an unknown engine.

    Raises:
        ValueError: it is none of ``NAMES``.
    """
    if engine not in NAMES:
        raise ValueError(f"engine={engine!r} must be one of {', '.join(NAMES)}")


def session(what: str, grammar: str, vocabulary: Vocabulary) -> Session:
    """A session on llguidance in front of the first token.

    Args:
        what: names the argument and its value in messages.
        grammar: as :mod:`llguidance_engine` writes it.

    Raises:
        UnsatisfiableError: nothing satisfies it.
        ValueError: the engine refuses it.
    """
    with _named(what):
        return llguidance_engine.compile_grammar(grammar, vocabulary, what).session()


def xgrammar_session(what: str, form: str, text: str, vocabulary: Vocabulary, **options: Any) -> Session:
    """A session on xgrammar; arguments as for its ``compile_grammar``. Raises as :func:`session`."""
    from . import xgrammar_engine

    with _named(what):
        return xgrammar_engine.compile_grammar(form, text, vocabulary, what, **options).session()


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except NothingError as error:
        raise UnsatisfiableError(f"{what} cannot be used: {error}") from None
    except CompileError as error:
        raise ValueError(f"{what} cannot be used: {error}") from None
