"""JSON documents that a schema allows."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import torch
from torch import Tensor

from ...support.checks import flag, one_of, whole_number
from .. import engines
from ..arguments import read_text, shortened
from ..base import Constraint, Session
from ..combined_sessions import AllOfSession
from ..engines import llguidance_engine
from ..memoized_session import VerdictCache
from ..vocabulary import Vocabulary
from .checks import ChecksSession, ValueChecker
from .completion import Completer
from .python_types import schemas_of
from .references import check_references, with_plain_references
from .relaxation import keywords_in, relaxed, with_short_strings

WHITESPACE = ("flexible", "any", "none")
FLEXIBLE = r" ?|\r?\n([ ]{0,20}|\t{0,8})"
"""One space, or one line break with the indentation of the next line."""


class Held(NamedTuple):
    """How a schema is enforced.

    Args:
        masked: keywords that the mask enforces: no token is written that violates them.
        checked: keywords that no mask can enforce everywhere: each finished value is checked, and a token that would
            finish an invalid value is refused.
        bounded: parts that are shorter than JSON allows, so that documents end: ``whitespace``, ``strings``.
    """

    masked: tuple[str, ...]
    checked: tuple[str, ...]
    bounded: tuple[str, ...] = ()


@dataclass(frozen=True)
class JSONSchema(Constraint):
    """JSON documents that a schema allows.

    The documents are a subset of those that are valid: properties come in the order in which the schema lists them,
    additional ones after them, and characters are only escaped if JSON requires it.

    Keywords that no mask can enforce (``not``, ``dependencies``, a ``oneOf`` whose cases overlap) are checked with
    ``jsonschema``, for each finished value and for the whole document; :attr:`held` lists them. Such a schema has no
    mask, so tokens are proposed and checked. An unknown ``format`` is ignored, as JSON Schema specifies.

    Args:
        schema: a dict, True or False, JSON text, the path of a file that contains it, or a Python type that pydantic
            can describe: a pydantic model, a dataclass, a TypedDict, ``list[int]``.
        whitespace: what may come between the parts of a document. ``flexible``: one space, or one line break followed
            by up to 20 spaces or 8 tabs; this covers what people write, and prevents the endless whitespace that small
            models tend to produce under ``any``, which allows any number of spaces and newlines. ``none`` (or
            ``compact``): only inside strings. Otherwise a regular expression. :meth:`whitespace_cost` reports the
            probability that the bound removed.
        longest_string: maximum number of characters of a string, if the schema gives its type but no length,
            ``pattern``, ``format``, ``enum`` or ``const``. None: unlimited.
        lenient: leave out the keywords that no mask can enforce instead of checking them; documents may then violate
            the schema.
        engine: ``llguidance`` or ``xgrammar``. The latter accepts more schemas, and leaves out the keywords that it
            cannot enforce, with a warning on standard error.

    Raises:
        ValueError: ``schema`` is not JSON, a reference in it leads nowhere (files and addresses are never fetched), or
            another field has a value that cannot work. :meth:`start` raises it if
            the schema cannot be enforced.
    """

    schema: Any
    whitespace: str = "flexible"
    lenient: bool = False
    engine: str = engines.DEFAULT
    longest_string: int | None = None

    kind = "json-schema"

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", _schema_text(self.schema))
        check_references(json.loads(self.schema))
        one_of("engine", self.engine, engines.NAMES)
        if not isinstance(self.whitespace, str):
            raise ValueError(
                f"whitespace={self.whitespace!r} must be 'flexible', 'any', 'none' or a regular expression"
            )
        if self.whitespace == "compact":
            object.__setattr__(self, "whitespace", "none")
        if self.longest_string is not None:
            whole_number("longest_string", self.longest_string, 1, "None sets no limit")
        flag("lenient", self.lenient)
        if self.engine != engines.DEFAULT and (
            self.lenient or self.longest_string or self.whitespace not in WHITESPACE
        ):
            names = ", ".join(map(repr, WHITESPACE))
            raise ValueError(
                f"engine={self.engine!r} does not support lenient=, longest_string=, or whitespace= other than {names}"
            )

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "schema": json.loads(self.schema),
            "whitespace": self.whitespace,
            "lenient": self.lenient,
            "engine": self.engine,
            "longest_string": self.longest_string,
        }

    def completion(self, text: bytes) -> bytes | None:
        return _completer(self.schema).completed(text)

    def start(self, vocabulary: Vocabulary) -> Session:
        session = self._mask_session(vocabulary)
        if self.lenient or self.engine != engines.DEFAULT:
            return session
        relaxation = relaxed(self.schema)
        if not relaxation.left_out:
            return session
        checks = ChecksSession(ValueChecker(relaxation), vocabulary, b"", VerdictCache())
        return AllOfSession(b"", (session, checks), vocabulary)

    def _mask_session(self, vocabulary: Vocabulary) -> Session:
        """A session for the keywords that a mask can enforce."""
        if self.engine != engines.DEFAULT:
            return self._xgrammar_session(vocabulary)
        options: dict[str, Any] = {"whitespace_flexible": self.whitespace != "none", "lenient": self.lenient}
        if self.whitespace not in ("any", "none"):
            options["whitespace_pattern"] = FLEXIBLE if self.whitespace == "flexible" else self.whitespace
        schema = self.schema if self.lenient else relaxed(self.schema).masked
        if self.longest_string is not None:
            schema = with_short_strings(schema, self.longest_string)
        grammar = llguidance_engine.json_schema(schema, **options)
        return engines.llguidance_session(self._label, grammar, vocabulary)

    def _xgrammar_session(self, vocabulary: Vocabulary) -> Session:
        options: dict[str, Any] = {"any_whitespace": True}
        if self.whitespace == "none":
            options = {"any_whitespace": False, "separators": (",", ":")}
        elif self.whitespace == "flexible":
            options["max_whitespace_cnt"] = 21
        schema = json.dumps(with_plain_references(json.loads(self.schema)), ensure_ascii=False)
        return engines.xgrammar_session(self._label, "json_schema", schema, vocabulary, **options)

    @property
    def _label(self) -> str:
        return f"schema={shortened(self.schema)}"

    def whitespace_cost(self, vocabulary: Vocabulary, tokens: Sequence[int], log_probs: Tensor) -> Tensor:
        """The log-probability that ``whitespace`` removed along a text.

        The bound on strings is not included. For a schema with checked keywords, both masks only enforce the others.

        Args:
            vocabulary: of the model.
            tokens: a text that this constraint allows, T tokens.
            log_probs: log-probabilities of the next token before each of them, (T, V).

        Returns:
            (T,): ``log P(allowed) − log P(allowed under whitespace="any")`` at each step; 0 if the bound removed
            nothing, negative otherwise. The sum is the log-probability that the bound removed from this text;
            the weights of :class:`AWRS` already contain it.

        Raises:
            ValueError: the constraint does not allow the tokens, or the shapes do not fit.
        """
        expected = (len(tokens), vocabulary.size)
        if log_probs.shape != expected:
            raise ValueError(f"log_probs has the shape {tuple(log_probs.shape)}; it must be {expected}")
        bounded = self._mask_session(vocabulary)
        unbounded = replace(self, whitespace="any")._mask_session(vocabulary)
        costs = []
        for token, row in zip(tokens, log_probs, strict=True):
            narrow = bounded.mask()
            wide = unbounded.mask()
            assert narrow is not None
            assert wide is not None
            costs.append(row[narrow].logsumexp(0) - row[wide].logsumexp(0))
            if token not in vocabulary.ends:
                bounded.advance(token)
                unbounded.advance(token)
        return torch.stack(costs) if costs else log_probs.new_zeros(0)

    @property
    def held(self) -> Held:
        """Which keywords of the schema the mask enforces at every token, and which are checked for finished values."""
        if self.lenient or self.engine != engines.DEFAULT:
            raise ValueError("held is only known for engine='llguidance' without lenient=True")
        relaxation = relaxed(self.schema)
        masked = keywords_in(json.loads(relaxation.masked))
        checked = {name for names in relaxation.left_out.values() for name in names}
        bounded = []
        if self.whitespace != "any":
            bounded.append("whitespace")
        if self.longest_string is not None:
            bounded.append("strings")
        return Held(tuple(sorted(masked)), tuple(sorted(checked)), tuple(bounded))


@lru_cache(maxsize=32)
def _completer(schema: str) -> Completer:
    return Completer(json.loads(schema))


def _schema_text(schema: Any) -> str:
    """A schema as JSON text. The order of keys is preserved: it is the order of properties in documents."""
    if isinstance(schema, os.PathLike):
        return _schema_text(read_text("schema", Path(schema)))
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            if "\n" in schema or schema.lstrip()[:1] in ("{", "[", '"') or not schema.strip():
                raise ValueError(f"schema={shortened(schema)} is not valid JSON: {error}") from None
            return _schema_text(Path(schema))
    if isinstance(schema, type) or get_origin(schema) is not None:
        schemas, definitions = schemas_of({"": schema})
        schema = {**schemas[""], **({"$defs": definitions} if definitions else {})}
    if not isinstance(schema, (dict, bool)):
        raise ValueError(f"schema={shortened(repr(schema))} must be a JSON object, true or false")
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"schema={shortened(repr(schema))} has a part with no JSON form: {error}") from None
