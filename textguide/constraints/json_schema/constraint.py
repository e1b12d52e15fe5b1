"""JSON documents that a schema allows, and texts of a grammar."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import torch
from torch import Tensor

from textguide.support.errors import MissingExtraError

from .. import engines
from ..base import Constraint, Session
from ..combined_sessions import AllOfSession
from ..engines import llguidance_engine
from ..grammars.rules import unproductive
from ..grammars.templates import plain
from ..predicate import Asked
from ..vocabulary import Vocabulary
from .checks import Checks, ChecksSession
from .completion import Completer
from .relaxation import keywords, relaxed, with_short_strings

WHITESPACE = ("flexible", "any", "none")
FLEXIBLE = r" ?|\r?\n([ ]{0,20}|\t{0,8})"
"""One space, or one line break with the space in front of the next line."""


class Held(NamedTuple):
    """How a schema is held to.

    Args:
        masked: keywords that the mask holds to: no token is written that breaks them.
        checked: keywords that no mask holds everywhere: each finished value is checked, and a token that would finish
            one that breaks them is refused.
        bounded: what is shorter than JSON allows, so that documents end: ``whitespace``, ``strings``.
    """

    masked: tuple[str, ...]
    checked: tuple[str, ...]
    bounded: tuple[str, ...] = ()


@dataclass(frozen=True)
class JSONSchema(Constraint):
    """JSON documents that a schema allows.

    The documents are a subset of what the schema's own rules allow: properties come in the order in which the schema
    names them, further ones behind them, and characters are written as they are where JSON does not ask for an escape.
    What no mask holds to (``not``, ``dependencies``, a ``oneOf`` whose cases overlap) is checked of each finished value
    and of the whole, as ``jsonschema`` checks it; :attr:`held` tells which. Such a schema has no mask, so that tokens
    are proposed and asked about. A ``format`` that nobody knows says nothing, as JSON Schema has it.

    Args:
        schema: a dict, True or False, JSON text, the path of a file with it, or a type of Python's: a pydantic model, a
            dataclass, a TypedDict, ``list[int]``, as pydantic describes it.
        whitespace: what may stand between the parts of a document. ``flexible``, one space, or one line break with up
            to 20 spaces or 8 tabs behind it: what people write, and nothing that goes on for ever, as small models
            like to under ``any``, which allows as many spaces and newlines as they want; ``none`` (or ``compact``)
            allows them in strings alone; else a regular expression. :meth:`whitespace_cost` says what was lost by it.
        longest_string: most characters of a string, where the schema says nothing of its length and has no ``pattern``,
            ``format``, ``enum`` or ``const`` for it; of values for which it gives no type, nothing is said. None: any
            number.
        lenient: leave out what no mask holds to, in place of checking it; the documents may then break the schema.
        engine: ``llguidance`` or ``xgrammar``. The latter takes more schemas and leaves out what it cannot hold to,
            with a warning of its own on standard error.

    Raises:
        ValueError: ``schema`` is no JSON, or another field has a value that cannot work; that a schema cannot be held
            to is found when it is compiled, by :meth:`start`.
    """

    schema: Any
    whitespace: str = "flexible"
    lenient: bool = False
    engine: str = engines.DEFAULT
    longest_string: int | None = None

    kind = "json-schema"

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", _canonical(self.schema))
        engines.check(self.engine)
        if not isinstance(self.whitespace, str):
            raise ValueError(
                f"whitespace={self.whitespace!r} must be 'flexible', 'any', 'none' or a regular expression"
            )
        if self.whitespace == "compact":
            object.__setattr__(self, "whitespace", "none")
        longest = self.longest_string
        if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
            raise ValueError(f"longest_string={longest!r} must be a whole number of characters, or None")
        if not isinstance(self.lenient, bool):
            raise ValueError(f"lenient={self.lenient!r} must be True or False")
        if self.engine != engines.DEFAULT and (self.lenient or longest or self.whitespace not in WHITESPACE):
            names = ", ".join(map(repr, WHITESPACE))
            raise ValueError(
                f"engine={self.engine!r} knows no lenient=, longest_string= and no whitespace= but {names}"
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

    @classmethod
    def build(cls, values: dict[str, Any]) -> Constraint:
        return cls(**values)

    def completion(self, text: bytes) -> bytes | None:
        return _completer(self.schema).completed(text)

    def start(self, vocabulary: Vocabulary) -> Session:
        masked = self._masked(vocabulary)
        parts = None if self.lenient or self.engine != engines.DEFAULT else relaxed(self.schema)
        if parts is None or not parts.left_out:
            return masked
        return AllOfSession(b"", (masked, ChecksSession(Checks(parts), vocabulary, b"", Asked())), vocabulary)

    def _masked(self, vocabulary: Vocabulary) -> Session:
        """A session on the engine alone."""
        what = f"schema={_short(self.schema)}"
        options: dict[str, Any]
        if self.engine != engines.DEFAULT:
            compact = {"any_whitespace": False, "separators": (",", ":")}
            options = {"any_whitespace": True} if self.whitespace != "none" else compact
            if self.whitespace == "flexible":
                options["max_whitespace_cnt"] = 21
            return engines.xgrammar_session(what, "json_schema", self.schema, vocabulary, **options)
        options = {"whitespace_flexible": self.whitespace != "none", "lenient": self.lenient}
        if self.whitespace not in ("any", "none"):
            options["whitespace_pattern"] = FLEXIBLE if self.whitespace == "flexible" else self.whitespace
        schema = self.schema if self.lenient else relaxed(self.schema).mask
        if self.longest_string is not None:
            schema = with_short_strings(schema, self.longest_string)
        return engines.session(what, llguidance_engine.json_schema(schema, **options), vocabulary)

    def whitespace_cost(self, vocabulary: Vocabulary, tokens: Sequence[int], log_probs: Tensor) -> Tensor:
        """What ``whitespace`` has cost along a text, in the model's own probability.

        Args:
            vocabulary: whose tokens they are.
            tokens: of a text that this constraint allows, T of them.
            log_probs: log-probabilities of every next token in front of each of them, (T, V).

        Returns:
            (T,), at each step ``log P(allowed) − log P(allowed under whitespace="any")``: 0 where the bound removed
            nothing, negative where it did. The sum is the log-probability that the bound took from this text's path;
            samples of :class:`AWRS` have it in their weights already. A bound of strings is not counted. Of a schema
            whose parts are checked, both masks are those of the rest.

        Raises:
            ValueError: the constraint does not allow the tokens, or the shapes do not fit.
        """
        if log_probs.shape != (len(tokens), vocabulary.size):
            raise ValueError(
                f"log_probs has the shape {tuple(log_probs.shape)}; {(len(tokens), vocabulary.size)} is asked"
            )
        narrow, wide = self._masked(vocabulary), replace(self, whitespace="any")._masked(vocabulary)
        costs = []
        for token, row in zip(tokens, log_probs, strict=True):
            kept, there = narrow.mask(), wide.mask()
            assert kept is not None
            assert there is not None
            costs.append(row[kept].logsumexp(0) - row[there].logsumexp(0))
            if token not in vocabulary.ends:
                narrow.advance(token)
                wide.advance(token)
        return torch.stack(costs) if costs else log_probs.new_zeros(0)

    @property
    def held(self) -> Held:
        """Which keywords of the schema the mask holds to at every token, and which are asked about finished values."""
        if self.lenient or self.engine != engines.DEFAULT:
            raise ValueError("held is known for engine='llguidance' without lenient=True")
        parts = relaxed(self.schema)
        checked = sorted({name for names in parts.left_out.values() for name in names})
        bounded = {"whitespace": self.whitespace != "any", "strings": self.longest_string is not None}
        names = tuple(name for name, is_bounded in bounded.items() if is_bounded)
        return Held(tuple(sorted(keywords(json.loads(parts.mask)))), tuple(checked), names)


@dataclass(frozen=True)
class Grammar(Constraint):
    """Texts of a context-free grammar in Lark's notation, whose first rule is ``start``.

    The engine reads terminals greedily, as lexers do: a terminal takes as much as it can, so that ``start: /a+/ "a"``
    has no text. Join what may overlap into one terminal. Templates (``list{item, ","}``) are written out, and a grammar
    may be ambiguous; priorities are read and left out, for they choose among derivations, and do not change which texts
    ``lark``'s Earley parser takes. What stands in capital letters is a terminal, and ``%ignore``
    says what may stand between terminals.

    Args:
        grammar: the grammar, or the path of a file with it (a ``pathlib.Path``, or a text that ends in ``.lark``).
        engine: ``llguidance`` or ``xgrammar``.

    Raises:
        ValueError: the field has a value that cannot work, or a rule has no text at all; what the engine refuses is
            found by :meth:`start`.
    """

    grammar: Any
    engine: str = engines.DEFAULT

    kind = "grammar"

    def __post_init__(self) -> None:
        engines.check(self.engine)
        text = self.grammar
        if isinstance(text, os.PathLike) or (isinstance(text, str) and text.endswith(".lark") and "\n" not in text):
            text = _read("grammar", Path(text))
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"grammar={_short(repr(text))} must be a text with rules, the first of them start")
        object.__setattr__(self, "grammar", text)
        try:
            endless = unproductive(plain(text))
        except ValueError as error:
            raise ValueError(f"grammar={_short(text)} cannot be used: {error}") from None
        if endless:
            raise ValueError(
                f"grammar={_short(text)} cannot be used: no text ends the rule {endless[0]}, which needs itself "
                "in every alternative"
            )

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "grammar": self.grammar, "engine": self.engine}

    def start(self, vocabulary: Vocabulary) -> Session:
        what = f"grammar={_short(self.grammar)}"
        if self.engine != engines.DEFAULT:
            return engines.xgrammar_session(what, "lark", plain(self.grammar), vocabulary)
        return engines.session(what, llguidance_engine.lark(plain(self.grammar)), vocabulary)


@lru_cache(maxsize=32)
def _completer(schema: str) -> Completer:
    return Completer(json.loads(schema))


def _canonical(schema: Any) -> str:
    """A schema as JSON text. The order of keys is kept: it is the order in which documents have them."""
    if isinstance(schema, os.PathLike):
        return _canonical(_read("schema", Path(schema)))
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            if "\n" in schema or schema.lstrip()[:1] in ("{", "[", '"') or not schema.strip():
                raise ValueError(f"schema={_short(schema)} is no JSON: {error}") from None
            return _canonical(Path(schema))
    if isinstance(schema, type) or get_origin(schema) is not None:
        schemas, definitions = described({"": schema})
        schema = {**schemas[""], **({"$defs": definitions} if definitions else {})}
    if not isinstance(schema, (dict, bool)):
        raise ValueError(f"schema={_short(repr(schema))} must be a JSON object, true or false")
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"schema={_short(repr(schema))} has a part with no JSON form: {error}") from None


def Call(*functions: Callable[..., Any], whitespace: str = "flexible") -> JSONSchema:
    """Calls of Python functions: ``{"name": …, "arguments": {…}}``, the arguments such as the signatures take.

    Args:
        *functions: with annotations, from which pydantic makes the schema of the arguments.
        whitespace: as for :class:`JSONSchema`.

    Returns:
        A constraint whose texts call one of the functions.

    Raises:
        MissingExtraError: the package ``pydantic`` is not installed.
        ValueError: there are none, two have the same name, or the arguments of one have no JSON form.

    Example:
        >>> def weather(city: str, days: int = 3) -> str: ...
        >>> AWRS(Call(weather), after="<tool_call>")
    """
    names = [getattr(function, "__name__", repr(function)) for function in functions]
    if not functions or len(set(names)) < len(names):
        raise ValueError(f"functions={names} must be functions of different names, one at least")
    schemas, definitions = described(dict(zip(names, functions, strict=True)))
    for name in names:
        if schemas[name].get("type") != "object":
            raise ValueError(f"functions has {name}, whose arguments have no names; give parameters that do")
    calls = [
        {
            "type": "object", "properties": {"name": {"const": name}, "arguments": schemas[name]},
            "required": ["name", "arguments"], "additionalProperties": False,
        }
        for name in names
    ]  # fmt: skip
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return JSONSchema({**schema, "$defs": definitions} if definitions else schema, whitespace=whitespace)


def described(values: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """JSON schemas of types, or of functions' arguments, by name, and the definitions that they share.

    Raises:
        MissingExtraError: the package ``pydantic`` is not installed.
        ValueError: one has none.
    """
    try:
        import pydantic
    except ImportError as error:
        raise MissingExtraError("pydantic", "constraints", "a schema from a type of Python's") from error
    try:
        asked = [(name, "validation", pydantic.TypeAdapter(value)) for name, value in values.items()]
        found, shared = pydantic.TypeAdapter.json_schemas(asked)
    except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticInvalidForJsonSchema, TypeError) as error:
        shown = ", ".join(map(repr, values.values()))
        raise ValueError(f"schema={shown} has no JSON schema: {' '.join(str(error).split())[:200]}") from None
    return {name: found[name, "validation"] for name in values}, shared.get("$defs") or {}


def _read(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name}={str(path)!r} is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{name}={str(path)!r} cannot be read ({error.strerror}); check the path") from None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}…"
