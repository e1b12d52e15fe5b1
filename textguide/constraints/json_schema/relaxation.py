"""A weaker schema that the engine holds to, and what was left out of it, to be checked beside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urldefrag, urljoin

from ..engines import llguidance_engine

ONE, MANY, NAMED = "one", "many", "named"
SUBSCHEMAS = {
    **dict.fromkeys(("additionalProperties", "additionalItems", "unevaluatedProperties", "unevaluatedItems"), ONE),
    **dict.fromkeys(("not", "if", "then", "else", "contains", "propertyNames"), ONE),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), MANY),
    **dict.fromkeys(("properties", "patternProperties", "definitions", "$defs", "dependentSchemas"), NAMED),
}
"""Keywords that hold schemas, and in which form; ``items`` and ``dependencies`` have two."""
NEGATIVE = ("not", "if")
"""Keywords under which a weaker schema makes the whole stronger."""
ANNOTATIONS = "format"
"""A format that nobody knows says nothing, by JSON Schema's own rules."""
_SAYS = (
    "type", "enum", "const", "$ref", "items", "required", "pattern", "format", "minLength", "maxLength", "minimum",
    "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "uniqueItems",
    "minProperties", "maxProperties", "minContains", "maxContains", "dependencies", "dependentRequired",
)  # fmt: skip
_KEYS, _FORMAT = re.compile(r"Unimplemented keys: (\[.*?\])"), re.compile(r"Unknown format: (.+)$")
_PROPERTIES = ("patternProperties", "additionalProperties", "unevaluatedProperties")
_ITEMS = ("prefixItems", "items", "additionalItems", "unevaluatedItems")


class Relaxed(NamedTuple):
    """A schema in two parts.

    Args:
        schema: JSON of all of it, with references into itself alone.
        mask: JSON of what the engine holds to at every token; every document of ``schema`` is one of it.
        left_out: keywords that ``mask`` has not, by the JSON pointer of their schema.
    """

    schema: str
    mask: str
    left_out: dict[str, tuple[str, ...]]


@lru_cache(maxsize=64)
def relaxed(schema: str) -> Relaxed:
    """``schema``, JSON text, as far as the engine can hold to it. What it refuses for another reason (its size, no
    document at all) is returned whole."""
    given = json.loads(schema)
    is_old = isinstance(given, dict) and re.search(r"draft-0[3-7]", str(given.get("$schema", "")))
    whole = bundled(_references_alone(given) if is_old else given)
    mask = whole
    left_out: dict[str, set[str]] = {}
    for _ in range(32):
        complaint = llguidance_engine.complaint_about_schema(json.dumps(mask, ensure_ascii=False))
        change = _change(complaint)
        if change is None:
            break
        dropped: dict[str, set[str]] = {}
        mask = _mapped(mask, change, dropped)
        if not dropped:
            break
        for pointer, names in dropped.items():
            left_out[pointer] = {*left_out.get(pointer, ()), *names}
    checked = {pointer: tuple(sorted(names - {ANNOTATIONS})) for pointer, names in left_out.items()}
    text, weaker = (json.dumps(one, ensure_ascii=False) for one in (whole, mask))
    return Relaxed(text, weaker, {pointer: names for pointer, names in checked.items() if names})


Change = Callable[[dict[str, Any]], "tuple[dict[str, Any], set[str]]"]


def _change(complaint: str) -> Change | None:
    """What makes a schema weaker so that the engine does not say ``complaint`` again; None where nothing is known."""
    found = _KEYS.search(complaint)
    if found:
        names = tuple(json.loads(found[1]))
        return lambda node: _without(node, names)
    found = _FORMAT.search(complaint)
    if found:
        name = found[1]
        return lambda node: _without(node, ("format",)) if node.get("format") == name else (node, set())
    if "oneOf" in complaint:
        return _any_of
    if "min/maxProperties" in complaint:
        return lambda node: _without(node, ("minProperties", "maxProperties"))
    return _without_refused_patterns if "regex" in complaint else None


def _without(node: dict[str, Any], names: tuple[str, ...]) -> tuple[dict[str, Any], set[str]]:
    there = {name for name in names if name in node}
    # What is said of further properties or items means others once the ones that were named are left out.
    for group in (_PROPERTIES, _ITEMS):
        first = min((group.index(name) for name in there & set(group)), default=len(group))
        there |= {name for name in group[first:] if name in node}
    if "if" in there:
        there |= {"then", "else"} & set(node)
    return {key: value for key, value in node.items() if key not in there}, there


def _any_of(node: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    if "oneOf" not in node:
        return node, set()
    rest = {key: value for key, value in node.items() if key != "oneOf"}
    if "anyOf" in rest:
        return {**rest, "allOf": [*rest.get("allOf", ()), {"anyOf": node["oneOf"]}]}, {"oneOf"}
    return {**rest, "anyOf": node["oneOf"]}, {"oneOf"}


def _without_refused_patterns(node: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    own = node.get("pattern")
    names = ("pattern",) if isinstance(own, str) and _is_refused(own) else ()
    if any(map(_is_refused, node.get("patternProperties") or {})):
        names = (*names, "patternProperties")
    return _without(node, names) if names else (node, set())


def _references_alone(node: Any) -> Any:
    """Up to draft 7 what is said beside a reference is not read; the engine would hold to it. What holds schemas stays,
    for something may refer to them."""
    if isinstance(node, list):
        return [_references_alone(one) for one in node]
    if not isinstance(node, dict):
        return node
    ignored = {*_SAYS, "const", "enum"} - {"$ref", "items", "dependencies"} if isinstance(node.get("$ref"), str) else ()
    return {
        key: value if key in ("enum", "const", "default", "examples") else _references_alone(value)
        for key, value in node.items()
        if key not in ignored
    }


def with_short_strings(schema: str, longest: int) -> str:
    """``schema``, JSON text, with strings of at most ``longest`` characters where nothing else says which they are."""
    saying = ("maxLength", "pattern", "format", "enum", "const")

    def bounded(node: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        kinds = node.get("type")
        is_string = kinds == "string" or (isinstance(kinds, list) and "string" in kinds)
        if not is_string or any(name in node for name in saying) or node.get("minLength", 0) > longest:
            return node, set()
        return {**node, "maxLength": longest}, set()

    return json.dumps(_mapped(json.loads(schema), bounded, {}), ensure_ascii=False)


def _is_refused(pattern: str) -> bool:
    """Whether the engine refuses a pattern that Python takes."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    return bool(llguidance_engine.complaint_about_schema(json.dumps({"type": "string", "pattern": pattern})))


def _mapped(node: Any, change: Change, dropped: dict[str, set[str]], pointer: str = "") -> Any:
    """``node`` with ``change`` at every schema that a weaker one may stand in for."""
    if not isinstance(node, dict):
        return node
    changed, names = change(node)
    if names:
        dropped[pointer] = names
    made = dict(changed)
    for key, place, child in children(changed):
        if key in NEGATIVE or (key == "allOf" and "oneOf" in names):
            continue
        new = _mapped(child, change, dropped, f"{pointer}/{escaped(key)}{place}")
        if new is not child:
            made[key] = _put(made[key], place, new)
    return made


def children(node: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """The schemas right inside of ``node``: keyword, the rest of the pointer, schema."""
    for key, value in node.items():
        form = SUBSCHEMAS.get(key)
        if key == "items":
            form = MANY if isinstance(value, list) else ONE
        if key == "dependencies":
            form = NAMED
        if form == ONE and isinstance(value, (dict, bool)):
            yield key, "", value
        elif form == MANY and isinstance(value, list):
            yield from ((key, f"/{number}", one) for number, one in enumerate(value))
        elif form == NAMED and isinstance(value, dict):
            yield from ((key, f"/{escaped(name)}", one) for name, one in value.items() if isinstance(one, (dict, bool)))


def _put(value: Any, place: str, new: Any) -> Any:
    if not place:
        return new
    if isinstance(value, list):
        return [new if f"/{number}" == place else one for number, one in enumerate(value)]
    return {name: new if f"/{escaped(name)}" == place else one for name, one in value.items()}


def keywords(schema: Any) -> set[str]:
    """The keywords of a schema, and of those inside of it, that say something about documents."""
    if not isinstance(schema, dict):
        return set()
    found = {key for key in schema if key in _SAYS or key in SUBSCHEMAS}
    return found.union(*(keywords(child) for _, _, child in children(schema)))


def escaped(name: str) -> str:
    """A name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def bundled(schema: Any) -> Any:
    """``schema`` with every reference to an identifier inside of it as a reference to its place, and read by one draft:
    ``jsonschema`` reads no ``$schema`` of an inner schema, and the engine would."""
    if not isinstance(schema, dict):
        return schema
    places: dict[str, str] = {}
    keyword = identifier(schema)
    _collect(schema, "", str(schema.get(keyword) or "").rstrip("#"), keyword, places)
    text = json.dumps({**schema, "$schema": ""})
    if set(places.values()) == {""} and "$anchor" not in text and text.count('"$schema"') == 1:
        return schema
    return _referring(schema, "", keyword, places, top=True)


def identifier(schema: dict[str, Any]) -> str:
    """The keyword that names a schema, by its draft."""
    return "id" if re.search(r"draft-0[34]", str(schema.get("$schema", ""))) else "$id"


def _collect(node: Any, pointer: str, base: str, keyword: str, places: dict[str, str]) -> None:
    if not isinstance(node, dict):
        return
    named = node.get(keyword)
    if isinstance(named, str):
        base = urljoin(base, named)
    places.setdefault(base.rstrip("#"), pointer)
    if isinstance(node.get("$anchor"), str):
        places[f"{urldefrag(base)[0]}#{node['$anchor']}"] = pointer
    for key, place, child in children(node):
        _collect(child, f"{pointer}/{escaped(key)}{place}", urldefrag(base)[0], keyword, places)


def _referring(node: Any, base: str, keyword: str, places: dict[str, str], top: bool = False) -> Any:
    if not isinstance(node, dict):
        return node
    named = node.get(keyword)
    if isinstance(named, str):
        base = urljoin(base, named)
    made = {key: value for key, value in node.items() if key not in (keyword, "$anchor") or not isinstance(value, str)}
    if not top:
        made.pop("$schema", None)
    reference = node.get("$ref")
    if isinstance(reference, str):
        target = urljoin(base, reference)
        document, fragment = urldefrag(target)
        if target.rstrip("#") in places:
            made["$ref"] = "#" + places[target.rstrip("#")]
        elif document in places and (not fragment or fragment.startswith("/")):
            made["$ref"] = f"#{places[document]}{fragment}"
    for key, place, child in children(node):
        made[key] = _put(made[key], place, _referring(child, urldefrag(base)[0], keyword, places))
    return made
