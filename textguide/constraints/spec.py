"""Constraints from what people write: objects, dicts, JSON, and lines such as ``regex:[a-z]+``."""

from __future__ import annotations

import difflib
import inspect
import json
from pathlib import Path
from typing import Any

from textguide.support.importing import named_object

from .base import Constraint
from .json_schema.constraint import Grammar, JSONSchema
from .patterns.constraint import Regex
from .predicate import Predicate
from .smiles.constraint import SMILES
from .sql.constraint import SQL


def from_dict(values: dict[str, Any]) -> Constraint:
    """The constraint that :meth:`Constraint.to_dict` described.

    Raises:
        ValueError: the kind is unknown, a field is missing or none of its fields, or a value does not fit.
    """
    if not isinstance(values, dict):
        raise ValueError(f"constraint={values!r} must be a dict with a kind and its fields")
    fields = dict(values)
    kind = fields.pop("kind", None)
    constraint = Constraint.registry.get(kind) if isinstance(kind, str) else None
    if constraint is None:
        raise ValueError(f"kind={kind!r} is no constraint; use one of {', '.join(sorted(Constraint.registry))}")
    known = list(inspect.signature(constraint).parameters)
    for name in fields:
        if name not in known:
            raise ValueError(f"{name!r} is no field of {kind}; its fields are {', '.join(known) or 'none'}")
    if known and known[0] not in fields:
        raise ValueError(f"{known[0]!r} is missing from the constraint {kind}")
    return constraint.build(fields)


def resolve(value: Any, engine: str | None = None) -> Constraint:
    """A constraint from any form in which one can be given.

    Args:
        value: a constraint; a dict as :meth:`Constraint.to_dict` gives it, or that as JSON text; or
            ``regex:PATTERN``, ``json-schema:FILE`` (or the schema itself), ``grammar:FILE`` (or the grammar itself,
            with a newline or a ``start:``), ``sql:DATABASE`` (a file or a URL), ``smiles``, ``python:MODULE:NAME`` (a
            constraint, or a function for :class:`Predicate`).
        engine: of a pattern, schema or grammar that is given as a line of text; None: their own default.

    Raises:
        ValueError: it is none of these, or cannot be used.
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
            raise ValueError(f"constraint={value!r} is no JSON: {error}") from None
    kind, colon, rest = value.partition(":")
    options: dict[str, Any] = {} if engine is None else {"engine": engine}
    if kind == "regex" and colon:
        return Regex(rest, **options)
    if kind == "json-schema" and rest:
        return JSONSchema(rest, **options)
    if kind == "grammar" and rest:
        return Grammar(rest if "\n" in rest or rest.lstrip().startswith("start") else Path(rest), **options)
    if value == "smiles":
        return SMILES()
    if kind == "sql" and rest:
        return SQL(rest)
    if kind == "python" and rest:
        return _from_python(rest)
    forms = ["regex:PATTERN", "json-schema:FILE", "grammar:FILE", "sql:DATABASE", "smiles", "python:MODULE:NAME"]
    near = difflib.get_close_matches(kind, [form.partition(":")[0] for form in forms], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}:…?" if near else f"use one of {', '.join(forms)}"
    raise ValueError(f"constraint={value!r} is unknown; {hint}")


def _from_python(path: str) -> Constraint:
    value = named_object(path, "constraint")
    if isinstance(value, Constraint):
        return value
    if callable(value) and not isinstance(value, type):
        return Predicate(value)
    raise ValueError(
        f"constraint 'python:{path}' gives {type(value).__name__}; it must be a textguide.constraints.Constraint, or a "
        "function from a text to True or False"
    )
