"""xgrammar: a pushdown automaton over bytes, with masks that are prepared during compilation."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...support import files
from ...support.errors import MissingExtraError
from ..vocabulary import Vocabulary
from .progress import show_if_slow
from .session import CompiledConstraint, EngineState, GrammarError, TokenTable

_SOURCE_LINE = re.compile(r"\[[\d:]+\] \S+:\d+: ")
"""The time and the line of its own source code with which the engine starts a message."""


FOLDER = "TEXTGUIDE_COMPILED_GRAMMARS"
"""The environment variable with a folder in which processes of one server leave compiled grammars for each other:
reading one takes a fifth of the time of compiling it, or less."""
MOST_FILES = 32
LARGEST_FILE = 16_000_000
"""Bytes of a compiled grammar that a server takes; one per kept session stays in the memory of its engine."""


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
    table, info, compiler = _compiler(vocabulary)
    try:
        with show_if_slow(f"compiling {label}"):
            compiled = _compiled(notation, text, table, info, compiler, options)
            matcher = xgrammar.GrammarMatcher(compiled)
    except GrammarError:
        raise
    except Exception as error:  # the engine has no class of its own for the grammars that it refuses
        raise GrammarError(" ".join(_SOURCE_LINE.sub("", str(error)).split())) from None
    return CompiledConstraint(vocabulary, table, MatcherState(matcher, len(table.texts)))


def _compiled(notation: str, text: str, table: TokenTable, info: Any, compiler: Any, options: dict[str, Any]) -> Any:
    """A compiled grammar: from the folder of the server if it has one, and stored there if not."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return getattr(compiler, f"compile_{notation}")(text, **options)
    key = json.dumps([notation, text, options, table.digest], sort_keys=True)
    path = Path(folder) / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    with suppress(OSError, RuntimeError):  # there is none, or it is damaged
        stored = path.read_text(encoding="utf-8")
        os.utime(path)  # marks the file as recently used
        return _import().CompiledGrammar.deserialize_json(stored, info)
    compiled = getattr(compiler, f"compile_{notation}")(text, **options)
    stored = compiled.serialize_json()
    if len(stored) > LARGEST_FILE:
        size = f"{len(stored) / 1e6:.0f} MB"
        raise GrammarError(f"it is too large: compiled, it has {size}, and a server takes {LARGEST_FILE / 1e6:.0f} MB")
    with suppress(OSError):  # a full disk is no failure: it is compiled again
        files.write_text(path, stored)
        _shrink(Path(folder))
    return compiled


def _shrink(folder: Path) -> None:
    """Remove the least recently used files."""
    used = []
    for path in folder.glob("*.json"):
        with suppress(OSError):
            used.append((path.stat().st_mtime, path))
    for _, path in sorted(used)[:-MOST_FILES]:
        path.unlink(missing_ok=True)


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
def _compiler(vocabulary: Vocabulary) -> tuple[TokenTable, Any, Any]:
    xgrammar = _import()
    table = TokenTable(vocabulary)
    info = xgrammar.TokenizerInfo([*table.texts, b"<end>"], xgrammar.VocabType.RAW, stop_token_ids=[len(table.texts)])
    # Compiled grammars are kept above; the compiler's own cache has no limit.
    return table, info, xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def _import() -> Any:
    try:
        import xgrammar
    except ImportError as error:
        raise MissingExtraError("xgrammar", "xgrammar", "engine='xgrammar'") from error
    return xgrammar
