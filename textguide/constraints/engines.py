"""The engines behind constraints that know their whole mask, by name."""

from __future__ import annotations

from typing import Any

from .base import Session
from .llguidance_engine import CompileError, compile_grammar
from .vocabulary import Vocabulary

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
        ValueError: the engine refuses it, or nothing satisfies it.
    """
    try:
        return compile_grammar(grammar, vocabulary, what).session()
    except CompileError as error:
        raise ValueError(f"{what} cannot be used: {error}") from None


def xgrammar_session(what: str, form: str, text: str, vocabulary: Vocabulary, **options: Any) -> Session:
    """A session on xgrammar; arguments as for its ``compile_grammar``. Raises as :func:`session`."""
    from . import xgrammar_engine

    try:
        return xgrammar_engine.compile_grammar(form, text, vocabulary, what, **options).session()
    except CompileError as error:
        raise ValueError(f"{what} cannot be used: {error}") from None
