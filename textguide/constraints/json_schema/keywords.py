"""What the keywords of a JSON schema require of short values; :mod:`completion` guesses with it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from ..automata.expressions import ByteAutomaton, TooLargeError
from ..automata.terminals import UnsupportedTerminalError, read
from ..patterns import Regex

MAX_STATES = 500
"""States of a pattern's automaton up to which it is used."""
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_FORMATS = {
    "date": r"[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})",
    "date-time": r"[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])[Tt]"
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "email": r"[A-Za-z0-9._+-]+@[A-Za-z0-9]+(\.[A-Za-z0-9]+)*",
    "hostname": r"[A-Za-z0-9]+([.-][A-Za-z0-9]+)*",
    "ipv4": r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])){3}",
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9/._~?&=%#@-]*",
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
}
"""A pattern for each format, which covers some of its texts."""
_TYPICAL_KEYWORDS = {
    "object": ("properties", "required"),
    "array": ("items", "minItems"),
    "string": ("pattern", "format", "minLength"),
}

Schema = Mapping[str, Any]


class UnfitError(ValueError):
    """A text does not fit a part of a schema, or no short way to complete it is known."""


def both(one: Schema, other: Schema) -> dict[str, Any]:
    """Two schemas that apply together, merged as far as short values need it."""
    merged = {**one, **other}
    if "properties" in one and "properties" in other:
        merged["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        merged["required"] = [*one["required"], *other["required"]]
    return merged


def may_be(schema: Schema, kind: str) -> bool:
    """Whether a value of this type may satisfy the schema; integers are numbers."""
    values = listed_values(schema)
    if values is not None:
        return any(_kind(value) == kind for value in values)
    types = schema.get("type")
    if types is None:
        return True
    types = [types] if isinstance(types, str) else types
    return kind in types or (kind == "number" and "integer" in types)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "number", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "null")


def implied_type(schema: Schema) -> str | None:
    """The type that the keywords of a schema without ``type`` suggest; None if they suggest none."""
    if "type" in schema:
        return None
    for kind, keywords in _TYPICAL_KEYWORDS.items():
        if any(keyword in schema for keyword in keywords):
            return kind
    return None


def listed_values(schema: Schema) -> list[Any] | None:
    """The values that a schema lists; None if it lists none."""
    return [schema["const"]] if "const" in schema else schema.get("enum")


def properties(schema: Schema) -> Schema:
    """The schemas of properties by name."""
    value = schema.get("properties")
    return value if isinstance(value, Mapping) else {}


def required(schema: Schema) -> list[str]:
    """Required properties in the order of documents: that of ``properties``, then the others."""
    value = schema.get("required")
    names = [name for name in value if isinstance(name, str)] if isinstance(value, Sequence) else []
    listed = [name for name in properties(schema) if name in names]
    return [*listed, *(name for name in names if name not in listed)]


def of_property(schema: Schema, name: str) -> Any:
    """The schema of a property.

    Raises:
        UnfitError: a property of that name is not allowed.
    """
    if name in properties(schema):
        return properties(schema)[name]
    for pattern, inner in (schema.get("patternProperties") or {}).items():
        if _matches(pattern, name):
            return inner
    additional = schema.get("additionalProperties", True)
    if additional is False:
        raise UnfitError
    return additional


def unused_name(schema: Schema, used: Collection[str], begun: str = "") -> str | None:
    """A name that starts with ``begun`` and that a further property may have, as far as it is easy to find one."""
    for name in _names(schema, begun):
        if name in used or not name.startswith(begun):
            continue
        with suppress(UnfitError):
            of_property(schema, name)
            return name
    return None


def _names(schema: Schema, begun: str) -> Iterator[str]:
    yield from required(schema)
    yield from properties(schema)
    listed = schema.get("propertyNames")
    if isinstance(listed, Mapping):
        yield from (name for name in listed.get("enum", ()) if isinstance(name, str))
    for pattern in schema.get("patternProperties") or {}:
        automaton = _automaton(_whole_pattern(pattern))
        if automaton is not None:
            state = automaton.run(automaton.start, begun.encode("utf-8", "surrogatepass"))
            if state != automaton.dead:
                yield begun + automaton.shortest(state).decode("utf-8", "ignore")
    if not isinstance(listed, Mapping):
        yield from (begun + ending for ending in ("", *"abcdefghijklmnop"))


def of_item(schema: Schema, number: int) -> Any:
    """The schema of an item, counted from 0.

    Raises:
        UnfitError: there may be no such item.
    """
    first = schema.get("prefixItems")
    items = schema.get("items", True)
    if first is None and isinstance(items, list):
        first = items
        items = schema.get("additionalItems", True)
    inner = first[number] if first is not None and number < len(first) else items
    if inner is False:
        raise UnfitError
    return inner


def least(schema: Schema, name: str) -> int:
    """A lower bound such as ``minItems``; 0 if there is none."""
    value = schema.get(name, 0)
    return int(value) if isinstance(value, (int, float)) else 0


def small_numbers(schema: Schema) -> list[float]:
    """Numbers of few digits that may satisfy the schema."""
    numbers: list[float] = [0, 1]
    for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        bound = schema.get(name)
        if isinstance(bound, (int, float)) and not isinstance(bound, bool):
            numbers += [bound, bound + 1, bound - 1]
    step = schema.get("multipleOf")
    if isinstance(step, (int, float)) and step > 0:
        for number in list(numbers):
            numbers += [step * (number // step), step * (number // step + 1)]
    return numbers


def in_range(schema: Schema, number: str) -> bool:
    """Whether a number, as it is written, satisfies the schema."""
    if not NUMBER.fullmatch(number):
        return False
    value = json.loads(number)
    types = schema.get("type")
    is_integer = types == "integer" or (isinstance(types, list) and "integer" in types and "number" not in types)
    if is_integer and not isinstance(value, int):
        return False
    if not _above(value, schema.get("minimum"), schema.get("exclusiveMinimum")):
        return False
    if not _above(-value, _negated(schema.get("maximum")), _negated(schema.get("exclusiveMaximum"))):
        return False
    step = schema.get("multipleOf")
    return not step or value % step == 0


def _above(value: float, bound: Any, exclusive: Any) -> bool:
    """Whether ``value`` is above a bound; ``exclusive`` is another bound, or, in draft 4, whether ``bound`` is one."""
    if isinstance(exclusive, bool):
        exclusive = bound if exclusive else None
    return (bound is None or value >= bound) and (exclusive is None or value > exclusive)


def _negated(bound: Any) -> Any:
    return bound if bound is None or isinstance(bound, bool) else -bound


def is_string_of(schema: Schema, text: str) -> bool:
    """Whether a string satisfies the schema, as far as the schema lists values or has a pattern."""
    values = listed_values(schema)
    if values is not None:
        return text in values
    return "pattern" not in schema or _matches(schema["pattern"], text) is not False


def string_ending(schema: Schema, begun: str) -> str:
    """A short text that completes a string of the schema that starts with ``begun``.

    Raises:
        UnfitError: no text completes it, or no short one is known.
    """
    values = listed_values(schema)
    if values is not None:
        fits = [value[len(begun) :] for value in values if isinstance(value, str) and value.startswith(begun)]
        if not fits:
            raise UnfitError
        return min(fits, key=len)
    if "pattern" in schema:
        return _shortest_ending(_whole_pattern(schema["pattern"]), begun)
    if schema.get("format") in _FORMATS:
        return _shortest_ending(_FORMATS[schema["format"]], begun)
    return "a" * max(0, least(schema, "minLength") - len(begun))


# -- patterns ----------------------------------------------------------------------------------------------------------


def _matches(pattern: str, text: str) -> bool | None:
    """Whether a pattern matches somewhere in a text, in linear time; None if the pattern has no automaton."""
    automaton = _automaton(_whole_pattern(pattern))
    return None if automaton is None else bool(automaton.accepting[automaton.run(automaton.start, text.encode())])


def _whole_pattern(pattern: str) -> str:
    """A pattern for whole strings from one of JSON Schema's, which may match anywhere in a string."""
    if "|" in pattern and (pattern[:1] != "^" or pattern[-1:] != "$"):
        pattern = f"(?:{pattern})"
    begins = pattern.startswith("^")
    ends = pattern.endswith("$") and not pattern.endswith(r"\$")
    inner = pattern[1 if begins else 0 : -1 if ends else None]
    return ("" if begins else r"[\s\S]*") + f"(?:{inner})" + ("" if ends else r"[\s\S]*")


def _shortest_ending(pattern: str, begun: str) -> str:
    """The shortest text after ``begun`` with which the whole text matches a pattern."""
    automaton = _automaton(pattern)
    if automaton is None:
        raise UnfitError
    return _shortest_from(pattern, automaton.run(automaton.start, begun.encode()))


@lru_cache(maxsize=4096)
def _shortest_from(pattern: str, state: int) -> str:
    """The shortest text from a state of the pattern's automaton to an accepting one."""
    automaton = _automaton(pattern)
    if automaton is None or state == automaton.dead:
        raise UnfitError
    try:
        return automaton.shortest(state).decode("utf-8")
    except UnicodeDecodeError:
        raise UnfitError from None


@lru_cache(maxsize=256)
def _automaton(pattern: str) -> ByteAutomaton | None:
    """The automaton of a pattern; None if it is not regular or too large."""
    try:
        terminal = Regex(pattern).regular()
        if terminal is None:
            return None
        expressions, node, _ = read(terminal)
        return expressions.automaton(node, MAX_STATES)
    except (ValueError, UnsupportedTerminalError, TooLargeError, RecursionError, re.error):
        return None
