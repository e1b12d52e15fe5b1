"""A weaker schema that the engine can enforce, and the keywords that were left out, which are checked separately."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urldefrag, urljoin

from ..engines import llguidance_engine

ONE = "one"
MANY = "many"
NAMED = "named"
SUBSCHEMAS = {
    **dict.fromkeys(("additionalProperties", "additionalItems", "unevaluatedProperties", "unevaluatedItems"), ONE),
    **dict.fromkeys(("not", "if", "then", "else", "contains", "propertyNames"), ONE),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), MANY),
    **dict.fromkeys(("properties", "patternProperties", "definitions", "$defs", "dependentSchemas"), NAMED),
}
"""Keywords that contain schemas: one, a list, or a dict by name; ``items`` and ``dependencies`` have two forms."""
NEGATIVE = ("not", "if")
"""Keywords under which a weaker schema makes the whole stronger."""
ANNOTATION = "format"
"""An unknown format is ignored, as JSON Schema specifies, so it does not have to be checked."""
ASSERTIONS = (
    "type", "enum", "const", "$ref", "items", "required", "pattern", "format", "minLength", "maxLength", "minimum",
    "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "uniqueItems",
    "minProperties", "maxProperties", "minContains", "maxContains", "dependencies", "dependentRequired",
)  # fmt: skip
"""Keywords that restrict documents, besides :data:`SUBSCHEMAS`."""
DATA = ("enum", "const", "default", "examples")
"""Keywords whose values are no schemas."""
MAX_ATTEMPTS = 32
_UNSUPPORTED_KEYS = re.compile(r"Unimplemented keys: (\[.*?\])")
_UNKNOWN_FORMAT = re.compile(r"Unknown format: (.+)$")
_PROPERTIES = ("patternProperties", "additionalProperties", "unevaluatedProperties")
_ITEMS = ("prefixItems", "items", "additionalItems", "unevaluatedItems")

Schema = dict[str, Any]
Change = Callable[[Schema], "tuple[Schema, set[str]]"]
"""Weakens one schema, not those inside it; returns the new schema and the keywords that it no longer enforces."""


class Relaxation(NamedTuple):
    """A schema in two parts.

    Args:
        schema: JSON of the whole schema, with references into itself only.
        masked: JSON of the weaker schema that the engine enforces at every token; every document of ``schema``
            satisfies it.
        left_out: keywords that ``masked`` does not enforce, by the JSON pointer of their schema.
    """

    schema: str
    masked: str
    left_out: dict[str, tuple[str, ...]]


@lru_cache(maxsize=64)
def relaxed(schema: str, draft: str = "2020-12", asserts_formats: bool = True) -> Relaxation:
    """Weaken a schema, given as JSON text, until the engine accepts it.

    A schema that the engine refuses for another reason, such as its size, is returned unchanged.

    Args:
        schema: the schema.
        draft: the draft whose rules apply.
        asserts_formats: whether ``format`` restricts strings.
    """
    value = json.loads(schema)
    ignores_siblings = draft in ("4", "6", "7")
    whole = bundled(_without_siblings_of_references(value) if ignores_siblings else value)
    masked = whole
    left_out: dict[str, set[str]] = {}
    for _ in range(MAX_ATTEMPTS):
        change = _change_for(llguidance_engine.complaint_about_schema(json.dumps(masked, ensure_ascii=False)))
        if change is None:
            break
        dropped: dict[str, set[str]] = {}
        masked = _changed_everywhere(masked, change, dropped)
        if not dropped:
            break
        for pointer, names in dropped.items():
            left_out.setdefault(pointer, set()).update(names)
    checked = {pointer: tuple(sorted(names - {ANNOTATION})) for pointer, names in left_out.items()}
    return Relaxation(
        schema=json.dumps(whole, ensure_ascii=False),
        masked=json.dumps(masked, ensure_ascii=False),
        left_out={pointer: names for pointer, names in checked.items() if names},
    )


# -- changes that make a schema weaker ---------------------------------------------------------------------------------


def _change_for(complaint: str) -> Change | None:
    """The change that removes the engine's reason for a complaint; None if no such change is known."""
    match = _UNSUPPORTED_KEYS.search(complaint)
    if match:
        names = tuple(json.loads(match[1]))
        return lambda node: _without(node, names)
    match = _UNKNOWN_FORMAT.search(complaint)
    if match:
        name = match[1]
        return lambda node: _without(node, ("format",)) if node.get("format") == name else (node, set())
    if "oneOf" in complaint:
        return _one_of_as_any_of
    if "min/maxProperties" in complaint:
        return lambda node: _without(node, ("minProperties", "maxProperties"))
    return _without_refused_patterns if "regex" in complaint else None


def _without(node: Schema, names: tuple[str, ...]) -> tuple[Schema, set[str]]:
    dropped = {name for name in names if name in node}
    # A keyword for additional properties or items has another meaning once the ones before it are left out.
    for group in (_PROPERTIES, _ITEMS):
        first = min((group.index(name) for name in dropped & set(group)), default=len(group))
        dropped |= {name for name in group[first:] if name in node}
    if "if" in dropped:
        dropped |= {"then", "else"} & set(node)
    return {key: value for key, value in node.items() if key not in dropped}, dropped


def _one_of_as_any_of(node: Schema) -> tuple[Schema, set[str]]:
    if "oneOf" not in node:
        return node, set()
    rest = {key: value for key, value in node.items() if key != "oneOf"}
    if "anyOf" in rest:
        return {**rest, "allOf": [*rest.get("allOf", ()), {"anyOf": node["oneOf"]}]}, {"oneOf"}
    return {**rest, "anyOf": node["oneOf"]}, {"oneOf"}


def _without_refused_patterns(node: Schema) -> tuple[Schema, set[str]]:
    pattern = node.get("pattern")
    names = ("pattern",) if isinstance(pattern, str) and _is_refused(pattern) else ()
    if any(map(_is_refused, node.get("patternProperties") or {})):
        names = (*names, "patternProperties")
    return _without(node, names) if names else (node, set())


def _is_refused(pattern: str) -> bool:
    """Whether the engine refuses a pattern that Python accepts."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    return bool(llguidance_engine.complaint_about_schema(json.dumps({"type": "string", "pattern": pattern})))


def _without_siblings_of_references(node: Any) -> Any:
    """Drop the keywords next to ``$ref``, which are ignored up to draft 7 but which the engine would enforce.

    Keywords that contain schemas stay, because something may refer to those.
    """
    if isinstance(node, list):
        return [_without_siblings_of_references(item) for item in node]
    if not isinstance(node, dict):
        return node
    ignored: set[str] = set()
    if isinstance(node.get("$ref"), str):
        ignored = {*ASSERTIONS} - {"$ref", "items", "dependencies"}
    result = {}
    for key, value in node.items():
        if key not in ignored:
            is_data = key in DATA
            result[key] = value if is_data else _without_siblings_of_references(value)
    return result


def with_short_strings(schema: str, longest: int) -> str:
    """A schema, as JSON text, whose unrestricted strings have at most ``longest`` characters."""
    restrictions = ("maxLength", "pattern", "format", "enum", "const")

    def bounded(node: Schema) -> tuple[Schema, set[str]]:
        types = node.get("type")
        is_string = types == "string" or (isinstance(types, list) and "string" in types)
        if not is_string or any(name in node for name in restrictions) or node.get("minLength", 0) > longest:
            return node, set()
        return {**node, "maxLength": longest}, set()

    return json.dumps(_changed_everywhere(json.loads(schema), bounded, {}), ensure_ascii=False)


# -- walking through a schema ------------------------------------------------------------------------------------------


def _changed_everywhere(node: Any, change: Change, dropped: dict[str, set[str]], pointer: str = "") -> Any:
    """``node`` with ``change`` applied to every schema that may be replaced by a weaker one.

    Args:
        dropped: receives the keywords that were left out, by JSON pointer.
    """
    if not isinstance(node, dict):
        return node
    changed, names = change(node)
    if names:
        dropped[pointer] = names
    result = dict(changed)
    for key, rest, child in children(changed):
        if key in NEGATIVE or (key == "allOf" and "oneOf" in names):
            continue
        new = _changed_everywhere(child, change, dropped, f"{pointer}/{escaped(key)}{rest}")
        if new is not child:
            result[key] = with_child(result[key], rest, new)
    return result


def children(node: Schema) -> Iterator[tuple[str, str, Any]]:
    """The schemas directly inside ``node``: keyword, the rest of their JSON pointer, schema."""
    for key, value in node.items():
        form = SUBSCHEMAS.get(key)
        if key == "items":
            form = MANY if isinstance(value, list) else ONE
        if key == "dependencies":
            form = NAMED
        if form == ONE and isinstance(value, (dict, bool)):
            yield key, "", value
        elif form == MANY and isinstance(value, list):
            yield from ((key, f"/{number}", item) for number, item in enumerate(value))
        elif form == NAMED and isinstance(value, dict):
            for name, item in value.items():
                if isinstance(item, (dict, bool)):  # a list in ``dependencies`` contains names
                    yield key, f"/{escaped(name)}", item


def with_child(value: Any, rest: str, new: Any) -> Any:
    """The value of a keyword with one of its schemas replaced; ``rest`` is that of :func:`children`."""
    if not rest:
        return new
    if isinstance(value, list):
        return [new if f"/{number}" == rest else item for number, item in enumerate(value)]
    return {name: new if f"/{escaped(name)}" == rest else item for name, item in value.items()}


def keywords_in(schema: Any) -> set[str]:
    """The keywords of a schema and its subschemas that restrict documents."""
    if not isinstance(schema, dict):
        return set()
    keywords = {key for key in schema if key in ASSERTIONS or key in SUBSCHEMAS}
    return keywords.union(*(keywords_in(child) for _, _, child in children(schema)))


def escaped(name: str) -> str:
    """A name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


# -- references --------------------------------------------------------------------------------------------------------


def bundled(schema: Any) -> Any:
    """``schema`` with every reference by identifier rewritten as a JSON pointer, and without inner ``$schema``.

    ``jsonschema`` ignores the ``$schema`` of an inner schema, and the engine would read it.
    """
    if not isinstance(schema, dict):
        return schema
    pointers: dict[str, str] = {}
    keyword = identifier_keyword(schema)
    _collect_identifiers(schema, "", str(schema.get(keyword) or "").rstrip("#"), keyword, pointers)
    text = json.dumps({**schema, "$schema": ""})
    if set(pointers.values()) == {""} and "$anchor" not in text and text.count('"$schema"') == 1:
        return schema
    return _with_pointers(schema, "", keyword, pointers, is_root=True)


def identifier_keyword(schema: Schema) -> str:
    """The keyword that identifies a schema, which depends on the draft."""
    return "id" if re.search(r"draft-0[34]", str(schema.get("$schema", ""))) else "$id"


def _collect_identifiers(node: Any, pointer: str, base: str, keyword: str, pointers: dict[str, str]) -> None:
    """Add the JSON pointers of all identified schemas in ``node`` to ``pointers``, by their URI."""
    if not isinstance(node, dict):
        return
    identifier = node.get(keyword)
    if isinstance(identifier, str):
        base = urljoin(base, identifier)
    pointers.setdefault(base.rstrip("#"), pointer)
    if isinstance(node.get("$anchor"), str):
        pointers[f"{urldefrag(base)[0]}#{node['$anchor']}"] = pointer
    for key, rest, child in children(node):
        _collect_identifiers(child, f"{pointer}/{escaped(key)}{rest}", urldefrag(base)[0], keyword, pointers)


def _with_pointers(node: Any, base: str, keyword: str, pointers: dict[str, str], is_root: bool = False) -> Any:
    """``node`` with references as JSON pointers, and without identifiers."""
    if not isinstance(node, dict):
        return node
    identifier = node.get(keyword)
    if isinstance(identifier, str):
        base = urljoin(base, identifier)
    result = {}
    for key, value in node.items():
        if key not in (keyword, "$anchor") or not isinstance(value, str):
            result[key] = value
    if not is_root:
        result.pop("$schema", None)
    reference = node.get("$ref")
    if isinstance(reference, str):
        target = urljoin(base, reference)
        document, fragment = urldefrag(target)
        if target.rstrip("#") in pointers:
            result["$ref"] = "#" + pointers[target.rstrip("#")]
        elif document in pointers and (not fragment or fragment.startswith("/")):
            result["$ref"] = f"#{pointers[document]}{fragment}"
    for key, rest, child in children(node):
        result[key] = with_child(result[key], rest, _with_pointers(child, urldefrag(base)[0], keyword, pointers))
    return result
