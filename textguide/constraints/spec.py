"""Constraints from what people write: objects, dicts, JSON, and lines such as ``regex:[a-z]+``."""

from __future__ import annotations

import difflib
import inspect
import json
from pathlib import Path
from typing import Any

from ..support.importing import named_object
from .arguments import shortened
from .base import Constraint
from .grammars import Grammar
from .json_schema import JSONSchema
from .patterns import Regex
from .predicate import Predicate
from .python_values import from_python, is_type
from .quotes import Corpus, files_in
from .smiles import SMILES
from .sql import SQL

_LINES = {
    "regex": "regex:PATTERN",
    "json-schema": "json-schema:FILE",
    "grammar": "grammar:FILE",
    "sql": "sql:DATABASE",
    "smiles": "smiles",
    "quote": "quote:FILE",
    "python": "python:MODULE:NAME",
}
"""How each kind is written in a line of text."""
_SCHEMA_KEYWORDS = frozenset(("$schema", "type", "properties", "items", "anyOf", "oneOf", "allOf", "enum", "$ref"))


def from_dict(values: dict[str, Any]) -> Constraint:
    """The constraint that :meth:`Constraint.to_dict` described.

    Raises:
        ValueError: the kind or a field is unknown, a field is missing, or a value does not fit.
    """
    if not isinstance(values, dict):
        raise ValueError(f"constraint={values!r} must be a dict with a kind and its fields")
    fields = dict(values)
    kind = fields.pop("kind", None)
    constraint = Constraint.registry.get(kind) if isinstance(kind, str) else None
    if constraint is None:
        raise ValueError(f"kind={kind!r} is not a constraint; use one of {', '.join(sorted(Constraint.registry))}")
    known = list(inspect.signature(constraint).parameters)
    for name in fields:
        if name not in known:
            raise ValueError(f"{name!r} is not a field of {kind}; its fields are {', '.join(known) or 'none'}")
    if known and known[0] not in fields:
        raise ValueError(f"{known[0]!r} is missing from the constraint {kind}; add it")
    return constraint.build(fields)


def resolve(value: Any, engine: str | None = None) -> Constraint:
    """The constraint that ``value`` is or describes.

    Args:
        value: a constraint; a dict as :meth:`Constraint.to_dict` returns it, or the same as JSON text; a Python value
            (see :func:`~.python_values.from_python`: pydantic models and other types, lists of texts, compiled
            patterns); or ``regex:PATTERN``, ``json-schema:FILE`` (or the schema itself), ``grammar:FILE`` (or the
            grammar itself, with a newline or a ``start:``), ``sql:DATABASE`` (a file or a URL), ``smiles``,
            ``quote:FILE`` (or a folder, whose files are documents), ``python:MODULE:NAME`` (any of these values, or a
            function for :class:`Predicate`).
        engine: for a pattern, schema or grammar that is not given as a constraint; None: their own default.

    Raises:
        ValueError: ``value`` is none of these, or cannot be used.
    """
    if isinstance(value, Constraint):
        return value
    if isinstance(value, dict):
        if "kind" not in value and _SCHEMA_KEYWORDS & value.keys():
            raise ValueError(f"constraint={shortened(repr(value))} is a JSON schema; write JSONSchema({{…}})")
        return from_dict(value)
    if not isinstance(value, str):
        return _from_value(value, engine)
    if value.lstrip().startswith("{"):
        try:
            return from_dict(json.loads(value))
        except json.JSONDecodeError as error:
            raise ValueError(f"constraint={value!r} is not valid JSON: {error}") from None
    return _from_line(value, engine)


def _from_value(value: Any, engine: str | None) -> Constraint:
    if isinstance(value, type) and issubclass(value, Constraint):
        raise ValueError(f"constraint={value.__name__} is the class of a constraint; write {value.__name__}(…)")
    constraint = from_python(value, engine)
    if constraint is not None:
        return constraint
    if callable(value):
        name = getattr(value, "__qualname__", repr(value))
        raise ValueError(
            f"constraint={name} is a function; write Call({name}) for calls of it as JSON, or Predicate({name}) for "
            "the texts that it accepts"
        )
    raise ValueError(
        f"constraint={shortened(repr(value))} must be a constraint such as Regex('[a-z]+'), a type such as a pydantic "
        "model, a list of texts, a compiled pattern, a dict, or a text such as 'regex:[a-z]+'"
    )


def _from_line(line: str, engine: str | None) -> Constraint:
    kind, colon, argument = line.partition(":")
    options: dict[str, Any] = {} if engine is None else {"engine": engine}
    if line == "smiles":
        return SMILES()
    if kind == "regex" and colon:  # the empty pattern is a pattern
        return Regex(argument, **options)
    if argument:
        if kind == "json-schema":
            return JSONSchema(argument, **options)
        if kind == "grammar":
            is_text = "\n" in argument or argument.lstrip().startswith("start")
            return Grammar(argument if is_text else Path(argument), **options)
        if kind == "sql":
            return SQL(argument)
        if kind == "quote":
            return Corpus(files_in(Path(argument)))
        if kind == "python":
            return _from_python(argument)
    near = difflib.get_close_matches(kind, _LINES, n=1, cutoff=0.5)
    if near:
        raise ValueError(f"constraint={line!r} is unknown; did you mean {near[0]}:…?")
    raise ValueError(
        f"constraint={line!r} may be a pattern or the only text that is allowed; write Regex({line!r}) or "
        f"[{line!r}], or use one of {', '.join(_LINES.values())}"
    )


def _from_python(path: str) -> Constraint:
    value = named_object(path, "constraint")
    if isinstance(value, Constraint):
        return value
    if callable(value) and not is_type(value):
        return Predicate(value)
    constraint = from_python(value)
    if constraint is not None:
        return constraint
    raise ValueError(
        f"constraint 'python:{path}' is a {type(value).__name__}; it must be a textguide.constraints.Constraint, a "
        "type, a list of texts, a compiled pattern, or a function from a text to True or False"
    )
