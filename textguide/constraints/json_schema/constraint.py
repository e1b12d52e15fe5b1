"""JSON documents that a schema allows."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import torch
from torch import Tensor

from ...support.checks import flag, one_of, whole_number
from .. import engines
from ..arguments import read_text, shortened
from ..automata.expressions import ByteAutomaton
from ..base import Constraint, Session, UnsatisfiableError
from ..engines import llguidance_engine
from ..vocabulary import Vocabulary
from . import drafts, ecma_patterns
from .completion import Completer
from .nodes import KINDS, NUMBER_KEYWORDS, Schemas
from .plans import plans
from .python_types import schemas_of
from .reader import Reader
from .references import check_references, with_plain_references
from .relaxation import relaxed, with_short_strings
from .sessions import DocumentSession

ORDERS = ("any", "schema")
WHITESPACE = ("flexible", "any", "none")
FLEXIBLE = r" ?|\r?\n([ ]{0,20}|\t{0,8})"
"""One space, or one line break with the indentation of the next line."""


class Held(NamedTuple):
    """How a schema is enforced.

    Args:
        masked: keywords that every token respects: none is written after which they can no longer be satisfied.
        checked: keywords that are checked when a value ends: a token that would finish an invalid value is refused.
        bounded: parts that have fewer spellings than in JSON: ``whitespace``, ``strings`` (``longest_string``),
            ``numbers`` (exponents of restricted numbers).
        ignored: formats that are not known, or not asserted. They have no effect.
    """

    masked: tuple[str, ...]
    checked: tuple[str, ...]
    bounded: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


class UnknownFormatWarning(UserWarning):
    """A schema uses formats that are not known, so they have no effect."""


@dataclass(frozen=True)
class JSONSchema(Constraint):
    """JSON documents that a schema allows.

    Every document that is finished is valid for ``jsonschema``, with exact numbers (``0.07`` is a multiple of
    ``0.01``), patterns of ECMAScript and the formats of their specifications. Keys are unique. A token is refused as
    soon as the text can no longer become valid, as far as that can be seen early. :attr:`held` lists the keywords that
    are only checked when a value ends (``not``, ``contains``, ``if``, …); because of these, a text can reach a state in
    which no token is allowed.

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
        lenient: leave out the keywords that the engine cannot mask instead of checking them; documents may then
            violate the schema. Only with ``order="schema"``.
        engine: ``llguidance`` or ``xgrammar``, for ``order="schema"``. The latter leaves out the keywords that it
            cannot enforce, with a warning on standard error.
        order: ``any``: properties come in any order, and numbers and strings in any spelling. ``schema``: the masks of
            an engine in addition, which are faster: properties come in the order in which the schema lists them,
            additional ones after them, and characters are only escaped if JSON requires it. Default: ``any``, unless
            ``engine`` or ``lenient`` needs ``schema``.
        draft: ``4``, ``6``, ``7``, ``2019-09`` or ``2020-12``. Default: that of ``$schema``; without it, the latest
            one that has all keywords of the schema, in which ``dependencies`` and ``exclusiveMinimum: true`` keep their
            meaning.
        schemas: other schemas that references may lead to, by URI. Nothing is ever fetched.
        assert_formats: whether ``format`` restricts strings; otherwise it has no effect, as the specification of draft
            2020-12 has it by default. A format that is not known has no effect, with a warning.

    Raises:
        ValueError: ``schema`` is not JSON or not valid in its draft, a reference in it leads nowhere, or another field
            has a value that cannot work. :meth:`start` raises it if the schema cannot be enforced.
    """

    schema: Any
    whitespace: str = "flexible"
    lenient: bool = False
    engine: str = engines.DEFAULT
    longest_string: int | None = None
    order: str | None = None
    draft: str | None = None
    schemas: Any = None
    assert_formats: bool = True

    kind = "json-schema"

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", _schema_text(self.schema))
        object.__setattr__(self, "schemas", _other_schemas(self.schemas))
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
        flag("assert_formats", self.assert_formats)
        if self.draft is not None:
            one_of("draft", self.draft, drafts.DRAFTS)
        if self.engine != engines.DEFAULT and (
            self.lenient or self.longest_string or self.whitespace not in WHITESPACE
        ):
            names = ", ".join(map(repr, WHITESPACE))
            raise ValueError(
                f"engine={self.engine!r} does not support lenient=, longest_string=, or whitespace= other than {names}"
            )
        self._check_order()
        if self._is_validated:
            _warn_of_formats(self.held.ignored if self.assert_formats else ())
        else:
            check_references(json.loads(self.schema))

    def _check_order(self) -> None:
        if self.order is None:
            object.__setattr__(self, "order", "any" if self._is_validated else "schema")
        one_of("order", self.order, ORDERS)
        if self._is_validated:
            return
        option = "lenient=True" if self.lenient else f"engine={self.engine!r}"
        for name, value in (("order", self.order == "any"), ("draft", self.draft), ("schemas", self.schemas)):
            if value:
                raise ValueError(f"{option} does not support {name}={getattr(self, name)!r}; leave out one of them")

    @property
    def _is_validated(self) -> bool:
        """Whether documents are validated besides an engine's mask."""
        return not self.lenient and self.engine == engines.DEFAULT

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "schema": json.loads(self.schema),
            "whitespace": self.whitespace,
            "lenient": self.lenient,
            "engine": self.engine,
            "longest_string": self.longest_string,
            "order": self.order,
            "draft": self.draft,
            "schemas": None if self.schemas is None else json.loads(self.schemas),
            "assert_formats": self.assert_formats,
        }

    def completion(self, text: bytes) -> bytes | None:
        return _completer(self.schema).completed(text)

    def start(self, vocabulary: Vocabulary) -> Session:
        if not self._is_validated:
            return self._engine_session(vocabulary)
        root = self._nodes.root
        if not any(plans((root,), kind) for kind in KINDS):
            raise UnsatisfiableError(f"{self._label} cannot be used: nothing satisfies it")
        reader = Reader(root, _whitespace(self.whitespace))
        engine = self._engine_session(vocabulary) if self.order == "schema" else None
        session = DocumentSession.begin(reader, vocabulary, engine)
        if not bool(session.mask().any()):
            raise UnsatisfiableError(f"{self._label} cannot be used: no token of the vocabulary can begin it")
        return session

    @property
    def _nodes(self) -> Schemas:
        return _schemas(self._bounded_schema, self.draft, self.schemas, self.assert_formats)

    @property
    def _bounded_schema(self) -> str:
        return self.schema if self.longest_string is None else with_short_strings(self.schema, self.longest_string)

    def _engine_session(self, vocabulary: Vocabulary) -> Session:
        """A session for the keywords that the engine's mask can enforce."""
        if self.engine != engines.DEFAULT:
            return self._xgrammar_session(vocabulary)
        options: dict[str, Any] = {"whitespace_flexible": self.whitespace != "none", "lenient": self.lenient}
        if self.whitespace not in ("any", "none"):
            options["whitespace_pattern"] = FLEXIBLE if self.whitespace == "flexible" else self.whitespace
        schema = self.schema if self.lenient else relaxed(self.schema, self._nodes.draft, self.assert_formats).masked
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

        The bound on strings is not included.

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
        bounded = self.start(vocabulary)
        unbounded = replace(self, whitespace="any").start(vocabulary)
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
        """How each keyword of the schema is enforced."""
        if not self._is_validated:
            raise ValueError("held is only known for engine='llguidance' without lenient=True")
        keywords = self._nodes.enforcement()
        bounded = []
        if self.whitespace != "any":
            bounded.append("whitespace")
        if self.longest_string is not None:
            bounded.append("strings")
        if keywords["masked"] & NUMBER_KEYWORDS:
            bounded.append("numbers")
        masked = keywords["masked"] - keywords["checked"]
        return Held(
            tuple(sorted(masked)),
            tuple(sorted(keywords["checked"])),
            tuple(bounded),
            tuple(sorted(keywords["ignored"])),
        )


@lru_cache(maxsize=64)
def _schemas(schema: str, draft: str | None, others: str | None, asserts_formats: bool) -> Schemas:
    try:
        return Schemas(schema, draft, json.loads(others) if others else {}, asserts_formats)
    except RecursionError:
        raise ValueError(f"schema={shortened(schema)} is nested too deeply") from None


@lru_cache(maxsize=64)
def _whitespace(name: str) -> ByteAutomaton:
    """The automaton of a value of ``whitespace``."""
    pattern = {"flexible": FLEXIBLE, "any": r"[ \t\r\n]*", "none": ""}.get(name, name)
    found = ecma_patterns.automaton(pattern)
    if found is None:
        raise ValueError(f"whitespace={name!r} must be a regular expression of moderate size, such as ' ?'")
    return found


@lru_cache(maxsize=256)
def _warn_of_formats(names: tuple[str, ...]) -> None:
    if names:
        warnings.warn(
            f"schema uses formats that are not known and have no effect: {', '.join(names)}",
            UnknownFormatWarning,
            stacklevel=4,
        )


def _other_schemas(schemas: Any) -> str | None:
    """Other schemas as JSON text; None if there are none."""
    if not schemas:
        return None
    if isinstance(schemas, str):
        schemas = json.loads(schemas)
    if not isinstance(schemas, Mapping) or not all(isinstance(uri, str) for uri in schemas):
        raise ValueError(f"schemas={shortened(repr(schemas))} must be a dict from URIs to schemas")
    return json.dumps({uri: json.loads(_schema_text(schema)) for uri, schema in schemas.items()}, ensure_ascii=False)


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
