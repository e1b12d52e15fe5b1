"""A short way to complete the start of a JSON document, guessed from its schema.

The guess closes what is open and writes what is required, each value as short as its schema seems to allow. It is not
proven: callers check it with the constraint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from . import keywords
from .keywords import UnfitError

MAX_DEPTH = 24
"""Number of references and nested parts that are followed."""
MAX_VALUES = 2000
"""Number of values that are considered for one guess."""
_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(r'"((?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])*)(\\(?:u[0-9a-fA-F]{0,3})?)?(")?')
_PLAIN = re.compile(r"[^\s,\]}]*")
_TYPES = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean", "n": "null"}
_MORE_DIGITS = ("", *"0123456789", "0e0", ".0", *(f"{number:02d}" for number in range(100)))
"""Ways to complete a number."""
_COMBINING = ("$ref", "allOf", "anyOf", "oneOf")

Position = tuple[int, str | None]
"""Where a value ends, and None; or, if the text ends inside of it, the text that completes it."""


class Completer:
    """Completes the starts of documents of one schema.

    Args:
        schema: a parsed JSON schema.
    """

    def __init__(self, schema: Any) -> None:
        self.root = schema
        self.text = ""
        self._shortest_values: dict[int, str] = {}  # by the id of the schema
        self._open: set[int] = set()
        self._calls = 0

    def completed(self, text: bytes) -> bytes | None:
        """A text that may complete ``text``; None if no short one is known."""
        self._calls = 0
        try:
            self.text = text.decode("utf-8")
            _, rest = self._value(self.root, 0, MAX_DEPTH)
        except (ValueError, LookupError, RecursionError):  # an incomplete character, an invalid escape…
            return None
        return b"" if rest is None else rest.encode()

    # -- reading the text ------------------------------------------------------------------------------------------

    def _value(self, schema: Any, at: int, depth: int) -> Position:
        at = self._skip_space(at)
        if at == len(self.text):
            return at, self._shortest(schema, depth)
        first = self.text[at]
        for option in self._options(schema, depth):
            if not keywords.may_be(option, _TYPES.get(first, "number")):
                continue
            try:
                if first == "{":
                    return self._object(option, at + 1, depth - 1)
                if first == "[":
                    return self._array(option, at + 1, depth - 1)
                return self._string(option, at) if first == '"' else self._plain(option, at)
            except UnfitError:
                continue
        raise UnfitError

    def _object(self, schema: Mapping[str, Any], at: int, depth: int) -> Position:
        names: list[str] = []
        while True:
            at, has_comma = self._next_part(at)
            if at == len(self.text):
                comma = "" if has_comma or not names else ","
                return at, self._members(schema, names, depth, comma, must=has_comma)
            if self.text[at] == "}":
                return at + 1, None
            match = _STRING.match(self.text, at)
            if match is None:
                raise UnfitError
            at = match.end()
            if match.group(3) is None:
                name, ending = self._complete_name(schema, names, match.group(1))
                names.append(name)
                rest = ending + '":' + self._shortest(keywords.of_property(schema, name), depth)
                return at, rest + self._members(schema, names, depth, ",")
            name = json.loads(f'"{match.group(1)}"', strict=False)
            inner = keywords.of_property(schema, name)
            names.append(name)
            at = self._skip_space(at)
            if at == len(self.text):
                return at, ":" + self._shortest(inner, depth) + self._members(schema, names, depth, ",")
            if self.text[at] != ":":
                raise UnfitError
            at, value_rest = self._value(inner, at + 1, depth)
            if value_rest is not None:
                return at, value_rest + self._members(schema, names, depth, ",")

    def _complete_name(self, schema: Mapping[str, Any], names: Sequence[str], begun: str) -> tuple[str, str]:
        """A property that starts with ``begun`` and is not among ``names``, and the rest of its name."""
        for name in (*keywords.required(schema), *keywords.properties(schema)):
            spelled = json.dumps(name, ensure_ascii=False)[1:-1]
            if name not in names and spelled.startswith(begun):
                return name, spelled[len(begun) :]
        found = keywords.unused_name(schema, names, json.loads(f'"{begun}"', strict=False))
        if found is None:
            raise UnfitError
        ending = found[len(json.loads(f'"{begun}"', strict=False)) :]
        return found, json.dumps(ending, ensure_ascii=False)[1:-1]

    def _members(
        self, schema: Mapping[str, Any], names: Sequence[str], depth: int, comma: str, must: bool = False
    ) -> str:
        """The missing required properties and the end of the object.

        Args:
            names: the properties that are written.
            comma: what comes before the next property.
            must: another property has to follow, because a comma is written.
        """
        missing = [name for name in keywords.required(schema) if name not in names]
        least = max(keywords.least(schema, "minProperties"), len(names) + int(must))
        while len(names) + len(missing) < least:
            name = keywords.unused_name(schema, [*names, *missing])
            if name is None:
                raise UnfitError
            missing.append(name)
        parts = []
        for name in missing:
            value = self._shortest(keywords.of_property(schema, name), depth)
            parts.append(f"{comma}{json.dumps(name, ensure_ascii=False)}:{value}")
            comma = ","
        return "".join(parts) + "}"

    def _array(self, schema: Mapping[str, Any], at: int, depth: int) -> Position:
        count = 0
        while True:
            at, has_comma = self._next_part(at)
            if at == len(self.text):
                return at, self._items(schema, count, depth, "" if has_comma or not count else ",", must=has_comma)
            if self.text[at] == "]":
                return at + 1, None
            at, rest = self._value(keywords.of_item(schema, count), at, depth)
            count += 1
            if rest is not None:
                return at, rest + self._items(schema, count, depth, ",")

    def _items(self, schema: Mapping[str, Any], count: int, depth: int, comma: str, must: bool = False) -> str:
        """The missing items after the first ``count``, and the end of the array; arguments as for :meth:`_members`."""
        parts = []
        while count < keywords.least(schema, "minItems") or must:
            parts.append(comma + self._shortest(keywords.of_item(schema, count), depth))
            count += 1
            comma = ","
            must = False
        return "".join(parts) + "]"

    def _string(self, schema: Mapping[str, Any], at: int) -> Position:
        match = _STRING.match(self.text, at)
        assert match is not None
        if match.group(3) is not None:
            if not keywords.is_string_of(schema, json.loads(match.group(), strict=False)):
                raise UnfitError
            return match.end(), None
        if match.end() < len(self.text):
            raise UnfitError
        begun = match.group(1)
        escape = match.group(2) or ""
        escape_rest = ""
        if escape:
            escape_rest = "n" if len(escape) == 1 else "0" * (6 - len(escape))
        written = json.loads(f'"{begun}{escape}{escape_rest}"', strict=False)
        ending = json.dumps(keywords.string_ending(schema, written), ensure_ascii=False)[1:]
        return match.end(), escape_rest + ending

    def _plain(self, schema: Mapping[str, Any], at: int) -> Position:
        """A number, or one of the words true, false and null."""
        match = _PLAIN.match(self.text, at)
        assert match is not None
        begun = match.group()
        listed = keywords.listed_values(schema)
        if not begun:
            raise UnfitError
        if match.end() < len(self.text):
            if listed is not None and begun not in map(json.dumps, listed):
                raise UnfitError
            return match.end(), None
        words = ["true", "false", "null"] if listed is None else [json.dumps(value) for value in listed]
        for word in words:
            if word.startswith(begun) and keywords.may_be(schema, _TYPES.get(word[0], "number")):
                return match.end(), word[len(begun) :]
        if listed is None:
            for digits in _MORE_DIGITS:
                if keywords.in_range(schema, begun + digits):
                    return match.end(), digits
        raise UnfitError

    # -- the shortest value ----------------------------------------------------------------------------------------

    def _shortest(self, schema: Any, depth: int) -> str:
        """The shortest value that is known for a schema. It contains no value of the same schema."""
        key = id(schema)
        if key in self._shortest_values:
            return self._shortest_values[key]
        self._calls += 1
        if depth <= 0 or key in self._open or self._calls > MAX_VALUES:
            raise UnfitError
        values = []
        self._open.add(key)
        try:
            for option in self._options(schema, depth):
                with suppress(UnfitError):
                    values.append(self._shortest_of(option, depth))
        finally:
            self._open.remove(key)
        if not values:
            raise UnfitError
        self._shortest_values[key] = min(values, key=len)
        return self._shortest_values[key]

    def _shortest_of(self, schema: Mapping[str, Any], depth: int) -> str:
        """The shortest value of a schema without references, of the first type in this order that it allows."""
        listed = keywords.listed_values(schema)
        if listed is not None:
            return min((json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in listed), key=len)
        implied = keywords.implied_type(schema)
        if keywords.may_be(schema, "null") and "type" in schema:
            return "null"
        if keywords.may_be(schema, "number") and not implied:
            number = _small_number(schema)
            if number is not None:
                return number
        if keywords.may_be(schema, "string") and implied in (None, "string"):
            return json.dumps(keywords.string_ending(schema, ""), ensure_ascii=False)
        if keywords.may_be(schema, "boolean") and "type" in schema:
            return "true"
        if keywords.may_be(schema, "array") and implied in (None, "array"):
            return "[" + self._items(schema, 0, depth - 1, "")
        if keywords.may_be(schema, "object"):
            return "{" + self._members(schema, (), depth - 1, "")
        raise UnfitError

    # -- schemas ---------------------------------------------------------------------------------------------------

    def _options(self, schema: Any, depth: int) -> Iterator[Mapping[str, Any]]:
        """Schemas without references and combinations; a value has to satisfy one of them."""
        if depth <= 0:
            return
        if not isinstance(schema, Mapping):
            if schema is not False:
                yield {}
            return
        options: list[dict[str, Any]] = [{name: value for name, value in schema.items() if name not in _COMBINING}]
        required = list(schema.get("allOf", ()))
        if "$ref" in schema:
            required.append(self._resolve(schema["$ref"]))
        for part in required:
            options = self._merged(options, [part], depth)
        for name in ("anyOf", "oneOf"):
            if name in schema:
                options = self._merged(options, schema[name], depth)[:MAX_DEPTH]
        yield from options

    def _merged(self, options: list[dict[str, Any]], parts: Sequence[Any], depth: int) -> list[dict[str, Any]]:
        """Every option merged with every option of every part."""
        merged = []
        for option in options:
            for part in parts:
                merged += [keywords.both(option, other) for other in self._options(part, depth - 1)]
        return merged

    def _resolve(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UnfitError
        target = self.root
        for name in filter(None, unquote(reference[1:]).split("/")):
            name = name.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list):
                target = target[int(name)]
            else:
                target = target.get(name) if isinstance(target, Mapping) else None
            if target is None:
                raise UnfitError
        return target

    def _next_part(self, at: int) -> tuple[int, bool]:
        """The position of the next property or item, or of the end, and whether there is a comma before it."""
        at = self._skip_space(at)
        has_comma = False
        while self.text[at : at + 1] == ",":
            at = self._skip_space(at + 1)
            has_comma = True
        return at, has_comma

    def _skip_space(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        return at if match is None else match.end()


def _small_number(schema: Mapping[str, Any]) -> str | None:
    """A number of few digits that satisfies the schema, as it is written; None if none is known."""
    numbers = map(json.dumps, keywords.small_numbers(schema))
    return next((number for number in numbers if keywords.in_range(schema, number)), None)
