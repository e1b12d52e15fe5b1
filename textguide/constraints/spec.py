"""Constraints from what people write: objects, dicts, JSON, and lines such as ``regex:[a-z]+``."""

from __future__ import annotations

import difflib
import inspect
import json
from pathlib import Path
from typing import Any

from ..support.importing import named_object
from .base import Constraint
from .grammars import Grammar
from .json_schema import JSONSchema
from .patterns import Regex
from .predicate import Predicate
from .smiles import SMILES
from .sql import SQL

_LINES = {
    "regex": "regex:PATTERN",
    "json-schema": "json-schema:FILE",
    "grammar": "grammar:FILE",
    "sql": "sql:DATABASE",
    "smiles": "smiles",
    "python": "python:MODULE:NAME",
}
"""How each kind is written in a line of text."""


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
        value: a constraint; a dict as :meth:`Constraint.to_dict` returns it, or the same as JSON text; or
            ``regex:PATTERN``, ``json-schema:FILE`` (or the schema itself), ``grammar:FILE`` (or the grammar itself,
            with a newline or a ``start:``), ``sql:DATABASE`` (a file or a URL), ``smiles``, ``python:MODULE:NAME`` (a
            constraint, or a function for :class:`Predicate`).
        engine: for a pattern, schema or grammar given as a line of text; None: their own default.

    Raises:
        ValueError: ``value`` is none of these, or cannot be used.
    """
    if isinstance(value, Constraint):
        return value
    if isinstance(value, dict):
        return from_dict(value)
    if not isinstance(value, str):
        raise ValueError(f"constraint={value!r} must be a constraint, a dict, or a text such as 'regex:[a-z]+'")
    if value.lstrip().startswith("{"):
        try:
            return from_dict(json.loads(value))
        except json.JSONDecodeError as error:
            raise ValueError(f"constraint={value!r} is not valid JSON: {error}") from None
    return _from_line(value, engine)


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
        if kind == "python":
            return _from_python(argument)
    near = difflib.get_close_matches(kind, _LINES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}:…?" if near else f"use one of {', '.join(_LINES.values())}"
    raise ValueError(f"constraint={line!r} is unknown; {hint}")


def _from_python(path: str) -> Constraint:
    value = named_object(path, "constraint")
    if isinstance(value, Constraint):
        return value
    if callable(value) and not isinstance(value, type):
        return Predicate(value)
    raise ValueError(
        f"constraint 'python:{path}' is a {type(value).__name__}; it must be a textguide.constraints.Constraint, or a "
        "function from a text to True or False"
    )
