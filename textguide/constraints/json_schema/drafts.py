"""Drafts of JSON Schema: which one a schema is written in, and its keywords as ``jsonschema`` validates them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

from ...support.errors import MissingExtraError
from ..arguments import shortened
from . import ecma_patterns, formats
from .relaxation import Schema, children, with_child

DRAFTS = ("4", "6", "7", "2019-09", "2020-12")
LATEST = "2020-12"
URIS = {
    "4": "http://json-schema.org/draft-04/schema#",
    "6": "http://json-schema.org/draft-06/schema#",
    "7": "http://json-schema.org/draft-07/schema#",
    "2019-09": "https://json-schema.org/draft/2019-09/schema",
    "2020-12": "https://json-schema.org/draft/2020-12/schema",
}
_URI = re.compile(r"https?://json-schema\.org/draft(?:-0|/)([0-9-]+)/(?:hyper-)?schema#?")
_DRAFT_3 = ("divisibleBy", "extends", "disallow")
_ONLY_2019 = ("additionalItems", "$recursiveRef", "$recursiveAnchor")
_ONLY_2020 = ("prefixItems", "$dynamicRef", "$dynamicAnchor")


def draft_of(schema: Any, draft: str | None) -> str:
    """The draft that a schema is written in.

    Args:
        schema: the whole schema.
        draft: what the user says; None: the schema says it by ``$schema``, or its keywords do.

    Raises:
        ValueError: the schema contradicts ``draft``, is written in draft 3, or uses keywords that no single draft has.
    """
    named = named_draft(schema)
    if draft is not None:
        if named not in (None, draft):
            raise ValueError(f"draft={draft!r} contradicts $schema={schema['$schema']!r}; leave out one of them")
        return draft
    if named == "3":
        raise ValueError(f"schema={shortened(repr(schema))} is written in draft 3, which is not supported; use draft 4")
    return named or _draft_by_keywords(schema)


def named_draft(schema: Any) -> str | None:
    """The draft that ``$schema`` names; None if it names none of those that exist."""
    name = schema.get("$schema") if isinstance(schema, dict) else None
    match = _URI.fullmatch(name) if isinstance(name, str) else None
    return match[1] if match and match[1] in (*DRAFTS, "3") else None


def _draft_by_keywords(schema: Any) -> str:
    """The latest draft in which the keywords of a schema without ``$schema`` have a meaning.

    ``dependencies`` and bounds that are excluded by ``true`` keep their old meaning in any draft, see
    :func:`modernized`.
    """
    keywords: set[str] = set()
    refers_elsewhere = False
    for node in subschemas(schema):
        keywords |= set(node)
        if isinstance(node.get("items"), list):
            keywords.add("additionalItems")
        reference = node.get("$ref")
        refers_elsewhere |= isinstance(reference, str) and not reference.startswith("#")
    old = sorted(keywords & set(_DRAFT_3))
    if old:
        raise ValueError(
            f"schema={shortened(repr(schema))} uses {old[0]!r}, which only draft 3 has; use draft 4 or later"
        )
    if "id" in keywords and "$id" not in keywords and refers_elsewhere:
        raise ValueError(
            f"schema={shortened(repr(schema))} has references and 'id', which only draft 4 has; pass draft='4', or "
            "rename it to '$id'"
        )
    before = sorted(keywords & set(_ONLY_2019))
    after = sorted(keywords & set(_ONLY_2020))
    if before and after:
        raise ValueError(
            f"schema={shortened(repr(schema))} uses {before[0]!r}, which draft 2019-09 has, and {after[0]!r}, which "
            "draft 2020-12 has; use one of them, or pass draft="
        )
    return "2019-09" if before else LATEST


def modernized(schema: Any) -> Any:
    """A schema without ``$schema``, with keywords of older drafts in their newer form.

    ``dependencies`` becomes ``dependentRequired`` and ``dependentSchemas``; a bound that is excluded by ``true``
    becomes an exclusive bound. The old ``dependencies`` stay, because something may refer to their parts.
    """
    return _changed_everywhere(schema, _with_new_keywords)


def without_dialects(schema: Any) -> Any:
    """A schema without ``$schema``, also inside; ``jsonschema`` would change its validator there."""
    return _changed_everywhere(schema, _without_dialect)


def _with_new_keywords(node: Schema) -> Schema:
    result = dict(node)
    for name, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(result.get(exclusive), bool):
            is_excluded = result.pop(exclusive)
            if is_excluded and name in result:
                result[exclusive] = result.pop(name)
    dependencies = result.get("dependencies")
    if isinstance(dependencies, dict):
        names = {key: value for key, value in dependencies.items() if isinstance(value, list)}
        schemas = {key: value for key, value in dependencies.items() if isinstance(value, (dict, bool))}
        parts = [{"dependentRequired": names}, {"dependentSchemas": schemas}]
        result["allOf"] = [*(result.get("allOf") or ()), *parts]
    return result


def _without_dialect(node: Schema) -> Schema:
    return {key: value for key, value in node.items() if key != "$schema"}


def _changed_everywhere(node: Any, change: Callable[[Schema], Schema]) -> Any:
    """A schema with ``change`` applied to it and to all schemas inside it."""
    if not isinstance(node, dict):
        return node
    result = change(node)
    for key, rest, child in children(result):
        result[key] = with_child(result[key], rest, _changed_everywhere(child, change))
    return result


def subschemas(schema: Any) -> Iterator[Schema]:
    """A schema and all schemas inside it, as far as they are objects; the whole one comes first."""
    queue = [schema]
    while queue:
        node = queue.pop()
        if isinstance(node, dict):
            yield node
            queue += [child for _, _, child in children(node)]


def refuse_vocabularies(schema: Any, others: Mapping[str, Any]) -> None:
    """Refuse a schema whose metaschema, one of ``others``, chooses its own vocabularies.

    Raises:
        ValueError: it does.
    """
    name = schema.get("$schema") if isinstance(schema, dict) else None
    if isinstance(name, str) and isinstance(others.get(name), dict) and "$vocabulary" in others[name]:
        raise ValueError(
            f"$schema={name!r} chooses its own vocabularies, which is not supported; pass draft= without it"
        )


def error_of_schema(draft: str, schema: Any) -> Any:
    """Why a schema is not valid in a draft, as an error of ``jsonschema``; None if it is valid."""
    from jsonschema import FormatChecker, validators
    from jsonschema.exceptions import SchemaError

    base = validators.validator_for({"$schema": URIS[draft]})
    try:
        base.check_schema(json.loads(json.dumps(schema, default=float)), format_checker=FormatChecker([]))
    except SchemaError as error:
        return error
    return None


# -- validation by the library -----------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def validator_class(draft: str, asserts_formats: bool) -> Any:
    """The validator of ``jsonschema`` for a draft, with exact numbers and the patterns of ECMAScript.

    Numbers are ``int`` or ``Decimal``. Formats are those of :mod:`formats`.

    Raises:
        MissingExtraError: the package ``jsonschema`` is not installed.
    """
    try:
        from jsonschema import validators
    except ImportError as error:
        raise MissingExtraError("jsonschema", "constraints", "JSONSchema") from error
    base = validators.validator_for({"$schema": URIS[draft]})
    changed = {
        "multipleOf": _multiple_of,
        "pattern": _pattern,
        "format": _format,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    if not asserts_formats:
        changed["format"] = _no_format
    checker = base.TYPE_CHECKER.redefine("number", _is_number).redefine("integer", _is_integer_of[draft == "4"])
    known = {name: function for name, function in changed.items() if name in base.VALIDATORS}
    return validators.extend(base, validators=known, type_checker=checker)


def _is_number(_: Any, value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


def _is_integer(checker: Any, value: Any) -> bool:
    return _is_number(checker, value) and Fraction(value).denominator == 1


def _is_plain_integer(_: Any, value: Any) -> bool:
    """Whether a value is an integer of draft 4, in which 1.0 is none."""
    return isinstance(value, int) and not isinstance(value, bool)


_is_integer_of = {False: _is_integer, True: _is_plain_integer}


def _error(message: str) -> Any:
    from jsonschema.exceptions import ValidationError

    return ValidationError(message)


def _multiple_of(validator: Any, step: Any, value: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(value, "number") and (Fraction(value) / Fraction(step)).denominator != 1:
        yield _error(f"{value!r} is not a multiple of {step}")


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(value, "string") and not ecma_patterns.matches(pattern, value):
        yield _error(f"{value!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, value: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(value, "object"):
        return
    for pattern, inner in patterns.items():
        for name, item in value.items():
            if ecma_patterns.matches(pattern, name):
                yield from validator.descend(item, inner, path=name, schema_path=pattern)


def _additional_properties(validator: Any, inner: Any, value: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(value, "object"):
        return
    patterns = schema.get("patternProperties", {})
    for name, item in value.items():
        if name not in schema.get("properties", {}) and not any(ecma_patterns.matches(one, name) for one in patterns):
            yield from validator.descend(item, inner, path=name)


def _format(validator: Any, name: Any, value: Any, schema: Any) -> Iterator[Any]:
    if isinstance(value, str) and not formats.conforms(name, value):
        yield _error(f"{value!r} is not a {name!r}")


def _no_format(validator: Any, name: Any, value: Any, schema: Any) -> Iterator[Any]:
    yield from ()


def specification(draft: str) -> Any:
    """The rules of a draft for identifiers and anchors, as the package ``referencing`` has them."""
    from referencing.jsonschema import specification_with

    return specification_with(URIS[draft])
