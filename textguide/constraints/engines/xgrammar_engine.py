"""xgrammar: a pushdown automaton over bytes, with masks that are prepared during compilation."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...support.errors import MissingExtraError
from ..vocabulary import Vocabulary
from .progress import show_if_slow
from .session import CompiledConstraint, EngineState, GrammarError, TokenTable

_SOURCE_LINE = re.compile(r"\[[\d:]+\] \S+:\d+: ")
"""The time and the line of its own source code with which the engine starts a message."""


@lru_cache(maxsize=32)
def compile_grammar(notation: str, text: str, vocabulary: Vocabulary, label: str, **options: Any) -> CompiledConstraint:
    """Compile a grammar for a vocabulary; cached.

    Args:
        notation: ``regex``, ``json_schema`` or ``lark``.
        text: the pattern, schema or grammar.
        vocabulary: the tokens of the masks.
        label: names the constraint in the line that is shown during a long compilation.
        **options: options of the engine's compiler.

    Raises:
        GrammarError: the engine refuses the grammar, or nothing satisfies it.
    """
    xgrammar = _import()
    table, compiler = _compiler(vocabulary)
    try:
        with show_if_slow(f"compiling {label}"):
            compiled = getattr(compiler, f"compile_{notation}")(text, **options)
            matcher = xgrammar.GrammarMatcher(compiled)
    except Exception as error:  # the engine has no class of its own for the grammars that it refuses
        raise GrammarError(" ".join(_SOURCE_LINE.sub("", str(error)).split())) from None
    return CompiledConstraint(vocabulary, table, MatcherState(matcher, len(table.texts)))


def complaint(notation: str, text: str) -> str:
    """The reason why the engine refuses a grammar, in one line; empty if it accepts it.

    Args:
        notation: ``regex`` or ``lark``.
        text: the pattern or grammar.
    """
    try:
        getattr(_import().Grammar, f"from_{notation}")(text)
    except RuntimeError as error:
        return " ".join(_SOURCE_LINE.sub("", str(error)).split())
    return ""


class MatcherState(EngineState):
    """A matcher of xgrammar. Its vocabulary has the distinct byte strings, then an end token."""

    def __init__(self, matcher: Any, size: int) -> None:
        self.matcher = matcher
        self.size = size

    def allowed(self) -> Tensor:
        mask = torch.full((1, self.size // 32 + 1), -1, dtype=torch.int32)
        self.matcher.fill_next_token_bitmask(mask)
        bits = (mask[0].unsqueeze(1) >> torch.arange(32, dtype=torch.int32)) & 1
        return bits.flatten()[: self.size].bool()

    def is_accepting(self) -> bool:
        return bool(self.matcher.is_completed())

    def feed(self, text: bytes) -> bool:
        return not text or bool(self.matcher.accept_string(text))

    def accepts(self, text: bytes) -> bool:
        if not text:
            return True
        accepted = bool(self.matcher.accept_string(text))
        if accepted:
            self.matcher.rollback(1)  # one string is one step, whatever its length
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
