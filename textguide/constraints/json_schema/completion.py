"""A short way to complete the beginning of a JSON document, guessed from its schema.

The guess closes what is open and writes what is required, each value as short as its schema seems to allow. It is not
proven: whoever uses it asks the constraint.
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

DEEPEST = 24
"""References and parts of parts that are followed."""
MOST = 2000
"""Values that are looked at for one guess."""
_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(r'"((?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])*)(\\(?:u[0-9a-fA-F]{0,3})?)?(")?')
_PLAIN = re.compile(r"[^\s,\]}]*")
_TYPES = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean", "n": "null"}


class Completer:
    """What may complete the beginnings of documents of one schema.

    Args:
        schema: a JSON schema, read.
    """

    def __init__(self, schema: Any) -> None:
        self.root, self.text = schema, ""
        self._known: dict[int, str] = {}
        self._open: set[int] = set()
        self._calls = 0

    def completed(self, text: bytes) -> bytes | None:
        """What may complete ``text``; None where nothing short comes to mind."""
        self._calls = 0
        try:
            self.text = text.decode("utf-8")
            _, rest = self._value(self.root, 0, DEEPEST)
        except (ValueError, LookupError, RecursionError):  # half a character, an escape that is none…
            return None
        return b"" if rest is None else rest.encode()

    # -- parts: where a value ends and None, or, where the text ends inside of it, what completes it ------------------

    def _value(self, schema: Any, at: int, deep: int) -> tuple[int, str | None]:
        at = self._space(at)
        if at == len(self.text):
            return at, self._shortest(schema, deep)
        first = self.text[at]
        for option in self._options(schema, deep):
            if not keywords.may_be(option, _TYPES.get(first, "number")):
                continue
            try:
                if first == "{":
                    return self._object(option, at + 1, deep - 1)
                if first == "[":
                    return self._array(option, at + 1, deep - 1)
                return self._string(option, at) if first == '"' else self._plain(option, at)
            except UnfitError:
                continue
        raise UnfitError

    def _object(self, schema: Mapping[str, Any], at: int, deep: int) -> tuple[int, str | None]:
        there: list[str] = []
        while True:
            at, comma = self._part(at)
            if at == len(self.text):
                return at, self._members(schema, there, deep, "" if comma or not there else ",", must=comma)
            if self.text[at] == "}":
                return at + 1, None
            found = _STRING.match(self.text, at)
            if found is None:
                raise UnfitError
            at = found.end()
            if found.group(3) is None:
                name, ending = self._name(schema, there, found.group(1))
                there.append(name)
                rest = ending + '":' + self._shortest(keywords.of_property(schema, name), deep)
                return at, rest + self._members(schema, there, deep, ",")
            name = json.loads(f'"{found.group(1)}"', strict=False)
            inner = keywords.of_property(schema, name)
            there.append(name)
            at = self._space(at)
            if at == len(self.text):
                return at, ":" + self._shortest(inner, deep) + self._members(schema, there, deep, ",")
            if self.text[at] != ":":
                raise UnfitError
            at, rest_of_it = self._value(inner, at + 1, deep)
            if rest_of_it is not None:
                return at, rest_of_it + self._members(schema, there, deep, ",")

    def _name(self, schema: Mapping[str, Any], there: Sequence[str], begun: str) -> tuple[str, str]:
        """A property whose name begins so and that is not there yet, and the rest of its name."""
        for name in (*keywords.required(schema), *keywords.properties(schema)):
            spelled = json.dumps(name, ensure_ascii=False)[1:-1]
            if name not in there and spelled.startswith(begun):
                return name, spelled[len(begun) :]
        keywords.of_property(schema, begun)  # another one, where that is allowed
        return begun, ""

    def _members(
        self, schema: Mapping[str, Any], there: Sequence[str], deep: int, comma: str, must: bool = False
    ) -> str:
        """The properties that are required and not there yet, and the end of the object.

        Args:
            must: one has to come, for a comma is written.
        """
        missing = [name for name in keywords.required(schema) if name not in there]
        if must and not missing:
            missing = [name for name in keywords.properties(schema) if name not in there][:1]
            if not missing:
                keywords.of_property(schema, "a")
                missing = ["a"]
        parts = []
        for name in missing:
            value = self._shortest(keywords.of_property(schema, name), deep)
            parts.append(f"{comma}{json.dumps(name, ensure_ascii=False)}:{value}")
            comma = ","
        return "".join(parts) + "}"

    def _array(self, schema: Mapping[str, Any], at: int, deep: int) -> tuple[int, str | None]:
        count = 0
        while True:
            at, comma = self._part(at)
            if at == len(self.text):
                return at, self._items(schema, count, deep, "" if comma or not count else ",", must=comma)
            if self.text[at] == "]":
                return at + 1, None
            at, rest = self._value(keywords.of_item(schema, count), at, deep)
            count += 1
            if rest is not None:
                return at, rest + self._items(schema, count, deep, ",")

    def _items(self, schema: Mapping[str, Any], count: int, deep: int, comma: str, must: bool = False) -> str:
        parts = []
        while count < keywords.least(schema, "minItems") or must:
            parts.append(comma + self._shortest(keywords.of_item(schema, count), deep))
            count, comma, must = count + 1, ",", False
        return "".join(parts) + "]"

    def _string(self, schema: Mapping[str, Any], at: int) -> tuple[int, str | None]:
        found = _STRING.match(self.text, at)
        assert found is not None
        if found.group(3) is not None:
            if not keywords.is_string_of(schema, json.loads(found.group(), strict=False)):
                raise UnfitError
            return found.end(), None
        if found.end() < len(self.text):
            raise UnfitError
        begun, escape = found.group(1), found.group(2) or ""
        mended = "" if not escape else "n" if len(escape) == 1 else "0" * (6 - len(escape))
        written = json.loads(f'"{begun}{escape}{mended}"', strict=False)
        ending = json.dumps(keywords.string_ending(schema, written), ensure_ascii=False)[1:]
        return found.end(), mended + ending

    def _plain(self, schema: Mapping[str, Any], at: int) -> tuple[int, str | None]:
        """A number, or one of the three words."""
        found = _PLAIN.match(self.text, at)
        assert found is not None
        begun, listed = found.group(), keywords.listed_values(schema)
        if not begun:
            raise UnfitError
        if found.end() < len(self.text):
            if listed is not None and begun not in map(json.dumps, listed):
                raise UnfitError
            return found.end(), None
        words = ["true", "false", "null"] if listed is None else [json.dumps(one) for one in listed]
        for word in words:
            if word.startswith(begun) and keywords.may_be(schema, _TYPES.get(word[0], "number")):
                return found.end(), word[len(begun) :]
        digits = ("", *"0123456789", "0e0", ".0", *(f"{n:02d}" for n in range(100)))
        for more in digits if listed is None else ():
            if keywords.in_range(schema, begun + more):
                return found.end(), more
        raise UnfitError

    # -- the shortest value ----------------------------------------------------------------------------------------

    def _shortest(self, schema: Any, deep: int) -> str:
        """The shortest value that comes to mind; none holds one of its own kind in it."""
        key = id(schema)
        if key in self._known:
            return self._known[key]
        self._calls += 1
        if deep <= 0 or key in self._open or self._calls > MOST:
            raise UnfitError
        found = []
        self._open.add(key)
        try:
            for option in self._options(schema, deep):
                with suppress(UnfitError):
                    found.append(self._shortest_of(option, deep))
        finally:
            self._open.remove(key)
        if not found:
            raise UnfitError
        self._known[key] = min(found, key=len)
        return self._known[key]

    def _shortest_of(self, schema: Mapping[str, Any], deep: int) -> str:
        given = keywords.listed_values(schema)
        if given is not None:
            return min((json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in given), key=len)
        if keywords.may_be(schema, "null") and "type" in schema:
            return "null"
        if keywords.may_be(schema, "number") and not keywords.implied_type(schema):
            for number in keywords.small_numbers(schema):
                if keywords.in_range(schema, json.dumps(number)):
                    return json.dumps(number)
        if keywords.may_be(schema, "string") and keywords.implied_type(schema) in (None, "string"):
            return json.dumps(keywords.string_ending(schema, ""), ensure_ascii=False)
        if keywords.may_be(schema, "boolean") and "type" in schema:
            return "true"
        if keywords.may_be(schema, "array") and keywords.implied_type(schema) in (None, "array"):
            return "[" + self._items(schema, 0, deep - 1, "")
        if keywords.may_be(schema, "object"):
            return "{" + self._members(schema, (), deep - 1, "")
        raise UnfitError

    # -- schemas ---------------------------------------------------------------------------------------------------

    def _options(self, schema: Any, deep: int) -> Iterator[Mapping[str, Any]]:
        """The schemas, one of which a value has to satisfy, without references and parts that are joined."""
        if deep <= 0:
            return
        if not isinstance(schema, Mapping):
            if schema is not False:
                yield {}
            return
        own = {name: value for name, value in schema.items() if name not in ("$ref", "allOf", "anyOf", "oneOf")}
        joined: list[Any] = [*schema.get("allOf", ()), *([self._at(schema["$ref"])] if "$ref" in schema else [])]
        several = [own]
        for part in joined:
            several = [keywords.both(one, other) for one in several for other in self._options(part, deep - 1)]
        for choices in (schema[name] for name in ("anyOf", "oneOf") if name in schema):
            several = [
                keywords.both(one, other)
                for one in several
                for part in choices
                for other in self._options(part, deep - 1)
            ][:DEEPEST]
        yield from several

    def _at(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UnfitError
        here = self.root
        for name in filter(None, unquote(reference[1:]).split("/")):
            name = name.replace("~1", "/").replace("~0", "~")
            here = here[int(name)] if isinstance(here, list) else here.get(name) if isinstance(here, Mapping) else None
            if here is None:
                raise UnfitError
        return here

    def _part(self, at: int) -> tuple[int, bool]:
        """Where the next property or item begins, or the end, and whether a comma stands in front of it."""
        at, comma = self._space(at), False
        while self.text[at : at + 1] == ",":
            at, comma = self._space(at + 1), True
        return at, comma

    def _space(self, at: int) -> int:
        found = _SPACE.match(self.text, at)
        return at if found is None else found.end()
