"""What the keywords of a JSON schema say of short values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..automata.expressions import ByteAutomaton, TooLargeError
from ..automata.terminals import NotReadError, read
from ..patterns.constraint import Regex

STATES = 500
"""States of a pattern's automaton up to which it is followed."""
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_FORMATS = {
    "date": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})",
    "date-time": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])[Tt]"
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "email": r"[A-Za-z0-9._+-]+@[A-Za-z0-9]+(\.[A-Za-z0-9]+)*",
    "hostname": r"[A-Za-z0-9]+([.-][A-Za-z0-9]+)*",
    "ipv4": r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])){3}",
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9/._~?&=%#@-]*",
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
}
"""Texts of a format, not all of them."""


class UnfitError(ValueError):
    """What is written does not fit a part of a schema, or no short way to complete it is known."""


def both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two schemas that hold at once, joined as far as short values need it."""
    found = {**one, **other}
    if "properties" in one and "properties" in other:
        found["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        found["required"] = [*one["required"], *other["required"]]
    return found


def may_be(schema: Mapping[str, Any], kind: str) -> bool:
    """Whether a value of this type may satisfy the schema; integers are numbers."""
    values = given(schema)
    if values is not None:
        return any(_kind(one) == kind for one in values)
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


def implied(schema: Mapping[str, Any]) -> str | None:
    """The type that the keywords of a schema without one speak of."""
    if "type" in schema:
        return None
    for kind, names in (("object", ("properties", "required")), ("array", ("items", "minItems")),
                        ("string", ("pattern", "format", "minLength"))):  # fmt: skip
        if any(name in schema for name in names):
            return kind
    return None


def given(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that a schema lists; None where it lists none."""
    return [schema["const"]] if "const" in schema else schema.get("enum")


def names(value: Any) -> list[str]:
    """The strings of a list, which ``required`` should be."""
    return [name for name in value if isinstance(name, str)] if isinstance(value, Sequence) else []


def properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schemas of properties by name."""
    found = schema.get("properties")
    return found if isinstance(found, Mapping) else {}


def required(schema: Mapping[str, Any]) -> list[str]:
    """Required properties in the order in which documents have them: that of ``properties``, then the others."""
    asked = names(schema.get("required"))
    known = [name for name in properties(schema) if name in asked]
    return [*known, *(name for name in asked if name not in known)]


def of_property(schema: Mapping[str, Any], name: str) -> Any:
    """The schema of a property.

    Raises:
        UnfitError: there may be none of that name.
    """
    if name in properties(schema):
        return properties(schema)[name]
    for pattern, inner in (schema.get("patternProperties") or {}).items():
        if _matches(pattern, name):
            return inner
    further = schema.get("additionalProperties", True)
    if further is False:
        raise UnfitError
    return further


def of_item(schema: Mapping[str, Any], number: int) -> Any:
    """The schema of an item, counted from 0.

    Raises:
        UnfitError: there may be none.
    """
    first, items = schema.get("prefixItems"), schema.get("items", True)
    if first is None and isinstance(items, list):
        first, items = items, schema.get("additionalItems", True)
    inner = first[number] if first is not None and number < len(first) else items
    if inner is False:
        raise UnfitError
    return inner


def least(schema: Mapping[str, Any], name: str) -> int:
    """A bound such as ``minItems``; 0 where there is none."""
    value = schema.get(name, 0)
    return int(value) if isinstance(value, (int, float)) else 0


def small_numbers(schema: Mapping[str, Any]) -> list[float]:
    """Numbers of few digits that may be the schema's."""
    bounds = [schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")]
    found: list[float] = [0, 1]
    for bound in bounds:
        if isinstance(bound, (int, float)) and not isinstance(bound, bool):
            found += [bound, bound + 1, bound - 1]
    step = schema.get("multipleOf")
    if isinstance(step, (int, float)) and step > 0:
        found += [step * turn for number in found for turn in (number // step, number // step + 1)]
    return found


def in_range(schema: Mapping[str, Any], number: str) -> bool:
    """Whether a number, as written, is one of the schema's."""
    if not NUMBER.fullmatch(number):
        return False
    value = json.loads(number)
    types = schema.get("type")
    whole = types == "integer" or (isinstance(types, list) and "integer" in types and "number" not in types)
    if whole and not isinstance(value, int):
        return False
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below, step = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum"), schema.get("multipleOf")
    strict_low = above if not isinstance(above, bool) else low if above else None
    strict_high = below if not isinstance(below, bool) else high if below else None
    return (
        (low is None or value >= low)
        and (high is None or value <= high)
        and (strict_low is None or value > strict_low)
        and (strict_high is None or value < strict_high)
        and (not step or value % step == 0)
    )


def is_string_of(schema: Mapping[str, Any], text: str) -> bool:
    """Whether a string is one of the schema's, as far as it lists them or has a pattern for them."""
    values = given(schema)
    if values is not None:
        return text in values
    return "pattern" not in schema or _matches(schema["pattern"], text) is not False


def _matches(pattern: str, text: str) -> bool | None:
    """Whether a pattern matches somewhere in a text, by its automaton, which takes no longer than the text is; None
    where it has none."""
    machine = _automaton(_searched(pattern))
    return None if machine is None else bool(machine.accepting[machine.run(machine.start, text.encode())])


def ending(schema: Mapping[str, Any], begun: str) -> str:
    """What makes a string that begins so one of the schema's.

    Raises:
        UnfitError: nothing does, or nothing short is known.
    """
    values = given(schema)
    if values is not None:
        fits = [one[len(begun) :] for one in values if isinstance(one, str) and one.startswith(begun)]
        if not fits:
            raise UnfitError
        return min(fits, key=len)
    if "pattern" in schema:
        return _path(_searched(schema["pattern"]), begun)
    if schema.get("format") in _FORMATS:
        return _path(_FORMATS[schema["format"]], begun)
    return "a" * max(0, least(schema, "minLength") - len(begun))


def _searched(pattern: str) -> str:
    """A pattern that matches whole strings, where JSON schema's matches somewhere in them."""
    if "|" in pattern:
        pattern = f"(?:{pattern})" if pattern[:1] != "^" or pattern[-1:] != "$" else pattern
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith(r"\$")
    inner = pattern[1 if begins else 0 : -1 if ends else None]
    return ("" if begins else r"[\s\S]*") + f"(?:{inner})" + ("" if ends else r"[\s\S]*")


def _path(pattern: str, begun: str) -> str:
    """The shortest text behind ``begun`` with which a pattern matches all."""
    machine = _automaton(pattern)
    if machine is None:
        raise UnfitError
    return _rest(pattern, machine.run(machine.start, begun.encode()))


@lru_cache(maxsize=4096)
def _rest(pattern: str, state: int) -> str:
    """The shortest text from a state of the pattern's automaton to its end."""
    machine = _automaton(pattern)
    if machine is None or state == machine.dead:
        raise UnfitError
    try:
        return machine.shortest(state).decode("utf-8")
    except UnicodeDecodeError:
        raise UnfitError from None


@lru_cache(maxsize=256)
def _automaton(pattern: str) -> ByteAutomaton | None:
    try:
        terminal = Regex(pattern).regular()
        if terminal is None:
            return None
        expressions, node, _ = read(terminal)
        return expressions.automaton(node, STATES)
    except (ValueError, NotReadError, TooLargeError, RecursionError, re.error):
        return None
