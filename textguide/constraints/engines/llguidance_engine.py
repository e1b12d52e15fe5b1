"""llguidance: regular expressions by derivatives, grammars by Earley's algorithm, exact masks by a trie of tokens."""

from __future__ import annotations

import json
import re
import threading
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textguide.support.errors import MissingExtraError

from ..vocabulary import Vocabulary
from .progress import slow
from .session import Engine, State, TokenTable

_EXACT = '%llguidance { "no_forcing": true }\n'
"""The engine would force the tokens that a tokenizer gives to a text that is certain; every token that may come is
wanted here."""

LIMITS = {"initial_lexer_fuel": 50_000_000, "step_lexer_fuel": 3_000_000, "verbose_errors": False}
"""The engine's defaults, wider in time: about a second to compile, and a fifth of one a step. Past them it gives up."""
_LIMIT = re.compile(r"too many|too complex|too large|fuel|limit|TooComplex")


class CompileError(ValueError):
    """The engine refuses a grammar; the message is its own, in one line."""


def lark(text: str) -> str:
    """A Lark grammar, with masks that hold every allowed token."""
    return _EXACT + text


def terminal(expression: str) -> str:
    """A grammar whose language is that of one terminal."""
    return lark(f"start: WHOLE\nWHOLE: {expression}\n")


def regex_literal(pattern: str) -> str:
    """A pattern in the engine's syntax as a literal in a grammar."""
    llguidance = _import()
    return str(llguidance.regex_to_lark(pattern, use_ascii=""))


def json_schema(schema: str, **options: Any) -> str:
    """A grammar for the documents that a schema allows; ``options`` are the engine's ``x-guidance``."""
    value = json.loads(schema)
    if isinstance(value, dict):
        value = {**value, "x-guidance": {**value.get("x-guidance", {}), **options}}
    grammars = [{"lark_grammar": lark("start: @document")}, {"name": "document", "json_schema": value}]
    return json.dumps({"grammars": grammars})


def complaint(expression: str) -> str:
    """Why the engine refuses a terminal, in one line; empty where it does not."""
    return first_lines(_import().LLMatcher.validate_grammar(terminal(expression)))


def complaint_about_schema(schema: str) -> str:
    """Why the engine refuses a JSON schema, in one line; empty where it does not."""
    return first_lines(_import().LLMatcher.validate_grammar(json_schema(schema)))


class NothingError(CompileError):
    """Nothing satisfies a grammar."""


@lru_cache(maxsize=32)
def compile_grammar(grammar: str, vocabulary: Vocabulary, what: str) -> Engine:
    """The engine for a grammar, made once.

    Args:
        grammar: what :func:`lark`, :func:`terminal` or :func:`json_schema` gives.
        vocabulary: whose tokens masks are for.
        what: names the constraint in the line that is shown while it compiles.

    Raises:
        CompileError: the grammar is refused, or nothing satisfies it.
    """
    llguidance = _import()
    table, tokenizer = _tokenizer(vocabulary)
    with slow(f"compiling {what}"):
        for precompute in (True, False):  # what cannot be prepared within the limit is found out as it comes
            limits = llguidance.LLParserLimits(**LIMITS, precompute_large_lexemes=precompute)
            matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
            if "precomputation failed" not in matcher.get_error():
                break
    _raise_if_error(matcher)
    state = MatcherState(matcher, len(table.texts))
    if not state.accepting() and not any(state.accepts(bytes([byte])) for byte in range(256)):
        raise NothingError("nothing satisfies it, not even the empty text")
    if not state.accepting() and not state.allowed().any():
        raise NothingError("no token of the vocabulary can begin it")
    return Engine(vocabulary, table, state)


class MatcherState(State):
    """A matcher of llguidance. Its vocabulary: the distinct byte strings, every single byte, and an end token."""

    def __init__(self, matcher: Any, size: int) -> None:
        self.matcher = matcher
        self.size = size

    def allowed(self) -> Tensor:
        if self.matcher.is_stopped():
            return torch.zeros(self.size, dtype=torch.bool)
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        if self.matcher.is_error():  # a dead end is one too, and allows nothing
            _raise_if_error(self.matcher)
            return torch.zeros(self.size, dtype=torch.bool)
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self.size].astype(np.bool_))

    def accepting(self) -> bool:
        return bool(self.matcher.is_accepting())

    def feed(self, text: bytes) -> bool:
        return not text or bool(self.matcher.consume_tokens(self._ids(text)))

    def accepts(self, text: bytes) -> bool:
        if not text:
            return True
        if self.matcher.is_stopped():
            return False
        accepted = self.matcher.validate_tokens(self._ids(text)) == len(text)
        _raise_if_error(self.matcher)
        return bool(accepted)

    def fork(self) -> MatcherState:
        return MatcherState(self.matcher.deep_copy(), self.size)

    def _ids(self, text: bytes) -> list[int]:
        return [self.size + byte for byte in text]


class _Tokenizer:
    """A vocabulary in the shape that the engine reads."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, table: TokenTable) -> None:
        self.tokens = [*table.texts, *(bytes([byte]) for byte in range(256)), b"<end>"]
        self.eos_token_id = len(self.tokens) - 1
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: str) -> list[int]:
        """Never called: nothing is forced."""
        raise NotImplementedError(f"no tokens for {text!r}")


_LOCK = threading.Lock()


def _tokenizer(vocabulary: Vocabulary) -> tuple[TokenTable, Any]:
    with _LOCK:
        return _make_tokenizer(vocabulary)


@lru_cache(maxsize=4)
def _make_tokenizer(vocabulary: Vocabulary) -> tuple[TokenTable, Any]:
    table = TokenTable(vocabulary)
    return table, _import().LLTokenizer(_Tokenizer(table))


def _raise_if_error(matcher: Any) -> None:
    if matcher.is_error():
        message = matcher.get_error()
        if "Unsatisfiable schema" in message:
            raise NothingError(f"nothing satisfies it: {first_lines(message.split('Unsatisfiable schema: ')[-1])}")
        if not message.startswith("NoExtension"):
            reason = first_lines(message).removesuffix("<non-verbose/>").strip()
            raise CompileError(f"too large for the engine: {reason}" if _LIMIT.search(reason) else reason)


def first_lines(message: str) -> str:
    """An engine's message without the state and the grammar that it prints, in one line."""
    lines = message.partition("<state>")[0].split("\n")
    return " ".join(" ".join(line.split()) for line in lines if line.strip(" ^|") and "|" not in line[:8])


def _import() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtraError("llguidance", "constraints", "a regular expression, JSON schema or grammar") from error
    return llguidance
