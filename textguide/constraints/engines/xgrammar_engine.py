"""xgrammar: a pushdown automaton over bytes, with masks that are prepared while it compiles."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from textguide.support.errors import MissingExtraError

from ..vocabulary import Vocabulary
from .llguidance_engine import CompileError, NothingError
from .progress import slow
from .session import Engine, State, TokenTable

_PLACE = re.compile(r"\[[\d:]+\] \S+:\d+: ")
"""Where in its own source the engine complains."""


@lru_cache(maxsize=32)
def compile_grammar(form: str, text: str, vocabulary: Vocabulary, what: str, **options: Any) -> Engine:
    """The engine for a grammar, made once.

    Args:
        form: ``regex``, ``json_schema`` or ``lark``.
        text: the pattern, schema or grammar.
        vocabulary: whose tokens masks are for.
        what: names the constraint in the line that is shown while it compiles.
        **options: of the engine's compiler.

    Raises:
        CompileError: the grammar is refused, or nothing satisfies it.
    """
    xgrammar = _import()
    table, compiler = _compiler(vocabulary)
    try:
        with slow(f"compiling {what}"):
            compiled = getattr(compiler, f"compile_{form}")(text, **options)
            matcher = xgrammar.GrammarMatcher(compiled)
    except Exception as error:  # the engine has no class of its own for what it refuses
        raise CompileError(" ".join(_PLACE.sub("", str(error)).split())) from None
    state = MatcherState(matcher, len(table.texts))
    if not state.accepting() and not any(state.accepts(bytes([byte])) for byte in range(256)):
        raise NothingError("nothing satisfies it, not even the empty text")
    if not state.accepting() and not state.allowed().any():
        raise NothingError("no token of the vocabulary can begin it")
    return Engine(vocabulary, table, state)


def complaint(form: str, text: str) -> str:
    """Why the engine refuses a grammar, in one line; empty where it does not. ``form`` is ``regex`` or ``lark``."""
    try:
        getattr(_import().Grammar, f"from_{form}")(text)
    except RuntimeError as error:
        return " ".join(_PLACE.sub("", str(error)).split())
    return ""


class MatcherState(State):
    """A matcher of xgrammar. Its vocabulary: the distinct byte strings, and an end token behind them."""

    def __init__(self, matcher: Any, size: int) -> None:
        self.matcher = matcher
        self.size = size

    def allowed(self) -> Tensor:
        mask = torch.full((1, self.size // 32 + 1), -1, dtype=torch.int32)
        self.matcher.fill_next_token_bitmask(mask)
        bits = (mask[0].unsqueeze(1) >> torch.arange(32, dtype=torch.int32)) & 1
        return bits.flatten()[: self.size].bool()

    def accepting(self) -> bool:
        return bool(self.matcher.is_completed())

    def feed(self, text: bytes) -> bool:
        return not text or bool(self.matcher.accept_string(text))

    def accepts(self, text: bytes) -> bool:
        if not text:
            return True
        accepted = bool(self.matcher.accept_string(text))
        if accepted:
            self.matcher.rollback(1)  # a string is one step
        return accepted

    def fork(self) -> MatcherState:
        return MatcherState(self.matcher.fork(), self.size)


@lru_cache(maxsize=4)
def _compiler(vocabulary: Vocabulary) -> tuple[TokenTable, Any]:
    xgrammar = _import()
    table = TokenTable(vocabulary)
    info = xgrammar.TokenizerInfo([*table.texts, b"<end>"], xgrammar.VocabType.RAW, stop_token_ids=[len(table.texts)])
    return table, xgrammar.GrammarCompiler(info, max_threads=1)


def _import() -> Any:
    try:
        import xgrammar
    except ImportError as error:
        raise MissingExtraError("xgrammar", "xgrammar", "engine='xgrammar'") from error
    return xgrammar
