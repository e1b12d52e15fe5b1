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

from ...support.errors import MissingExtraError
from ..vocabulary import Vocabulary
from .progress import show_if_slow
from .session import CompiledConstraint, EmptyGrammarError, EngineState, GrammarError, TokenTable

_NO_FORCING = '%llguidance { "no_forcing": true }\n'
"""By default the engine only allows the tokens that a tokenizer would choose for a text that is certain. Here every
allowed token is needed, because the model's distribution over spellings must not change."""

LIMITS = {"initial_lexer_fuel": 50_000_000, "step_lexer_fuel": 3_000_000, "verbose_errors": False}
"""The engine's limits. More time than its defaults: about a second for compilation, a fifth of one per step."""
_LIMIT = re.compile(r"too many|too complex|too large|fuel|limit|TooComplex")


def lark(text: str) -> str:
    """A Lark grammar whose masks contain every allowed token."""
    return _NO_FORCING + text


def terminal(expression: str) -> str:
    """A grammar whose texts are those of one terminal."""
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
    """The reason why the engine refuses a terminal, in one line; empty if it accepts it."""
    return in_one_line(_import().LLMatcher.validate_grammar(terminal(expression)))


def complaint_about_schema(schema: str) -> str:
    """The reason why the engine refuses a JSON schema, in one line; empty if it accepts it."""
    return in_one_line(_import().LLMatcher.validate_grammar(json_schema(schema)))


@lru_cache(maxsize=32)
def compile_grammar(grammar: str, vocabulary: Vocabulary, label: str) -> CompiledConstraint:
    """Compile a grammar for a vocabulary; cached.

    Args:
        grammar: as :func:`lark`, :func:`terminal` or :func:`json_schema` returns it.
        vocabulary: the tokens of the masks.
        label: names the constraint in the line that is shown during a long compilation.

    Raises:
        GrammarError: the engine refuses the grammar, or nothing satisfies it.
    """
    llguidance = _import()
    table, tokenizer = _tokenizer(vocabulary)
    with show_if_slow(f"compiling {label}"):
        # Lexemes that are too large to be prepared within the limit are computed as they are needed.
        for precompute in (True, False):
            limits = llguidance.LLParserLimits(**LIMITS, precompute_large_lexemes=precompute)
            matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
            if "precomputation failed" not in matcher.get_error():
                break
    _raise_if_error(matcher)
    return CompiledConstraint(vocabulary, table, MatcherState(matcher, len(table.texts)))


class MatcherState(EngineState):
    """A matcher of llguidance.

    Its vocabulary has the distinct byte strings, then every single byte, then an end token. Texts are fed byte by byte,
    because no tokenization of them is given.
    """

    def __init__(self, matcher: Any, size: int) -> None:
        self.matcher = matcher
        self.size = size

    def allowed(self) -> Tensor:
        if self.matcher.is_stopped():
            return torch.zeros(self.size, dtype=torch.bool)
        bits = np.empty((self.size + 257 + 31) // 32, dtype=np.int32)
        self.matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self.matcher.is_error():  # the engine also reports a dead end as an error; it allows nothing
            _raise_if_error(self.matcher)
            return torch.zeros(self.size, dtype=torch.bool)
        unpacked = np.unpackbits(bits.view(np.uint8), count=self.size, bitorder="little")
        return torch.from_numpy(unpacked.view(np.bool_))

    def is_accepting(self) -> bool:
        return bool(self.matcher.is_accepting())

    def feed(self, text: bytes) -> bool:
        if not text:
            return True
        accepted = bool(self.matcher.consume_tokens(self._ids(text)))
        if not accepted and _LIMIT.search(in_one_line(self.matcher.get_error())):
            _raise_if_error(self.matcher)
        return accepted

    def accepts(self, text: bytes) -> bool:
        if not text:
            return True
        if self.matcher.is_stopped():
            return False
        count = self.matcher.validate_tokens(self._ids(text))
        _raise_if_error(self.matcher)
        if count == len(text):
            return True
        # The engine also stops at its limits here, without an error; consuming the same bytes reports them.
        self.fork().feed(text[: count + 1])
        return False

    def fork(self) -> MatcherState:
        return MatcherState(self.matcher.deep_copy(), self.size)

    def _ids(self, text: bytes) -> list[int]:
        return [self.size + byte for byte in text]


class _TokenizerWrapper:
    """A vocabulary with the attributes that the engine reads."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, table: TokenTable) -> None:
        self.tokens = [*table.texts, *(bytes([byte]) for byte in range(256)), b"<end>"]
        self.eos_token_id = len(self.tokens) - 1
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: str) -> list[int]:
        """Never called, because nothing is forced."""
        raise NotImplementedError(f"no tokens for {text!r}")


_LOCK = threading.Lock()


def _tokenizer(vocabulary: Vocabulary) -> tuple[TokenTable, Any]:
    # The lock makes threads that start together wait for one tokenizer, instead of building several large ones.
    with _LOCK:
        return _build_tokenizer(vocabulary)


@lru_cache(maxsize=4)
def _build_tokenizer(vocabulary: Vocabulary) -> tuple[TokenTable, Any]:
    table = TokenTable(vocabulary)
    return table, _import().LLTokenizer(_TokenizerWrapper(table))


def _raise_if_error(matcher: Any) -> None:
    if not matcher.is_error():
        return
    message = matcher.get_error()
    if "Unsatisfiable schema" in message:
        reason = in_one_line(message.split("Unsatisfiable schema: ")[-1])
        raise EmptyGrammarError(f"nothing satisfies it: {reason}")
    if not message.startswith("NoExtension"):  # which is a dead end
        reason = in_one_line(message).removesuffix("<non-verbose/>").strip()
        raise GrammarError(f"too large for the engine: {reason}" if _LIMIT.search(reason) else reason)


def in_one_line(message: str) -> str:
    """An engine's message in one line, without the state and the grammar that the engine prints."""
    lines = message.partition("<state>")[0].split("\n")
    meaningful = [line for line in lines if line.strip(" ^|") and "|" not in line[:8]]
    return " ".join(" ".join(line.split()) for line in meaningful)


def _import() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtraError("llguidance", "constraints", "a regular expression, JSON schema or grammar") from error
    return llguidance
