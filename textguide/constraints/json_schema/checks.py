"""Finished values of a JSON document against what no automaton holds of its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

from textguide.support.errors import MissingExtraError

from ..predicate import AskedSession
from .relaxation import Relaxed, children, escaped

SAME_VALUE = ("allOf", "anyOf", "oneOf", "then", "else")
"""Keywords whose schemas speak of the same value."""
_SPACE, _ENDS = b" \t\r\n", b" \t\r\n,]}"


class Frame(NamedTuple):
    """An object or array that is not finished.

    Args:
        is_object: else an array.
        schemas: pointers of the schemas that it has to satisfy.
        start: where it begins.
        key: of the value that comes next, or its number.
        awaits_key: whether a string here is a key.
    """

    is_object: bool
    schemas: tuple[str, ...]
    start: int
    key: str | int
    awaits_key: bool


class Place(NamedTuple):
    """Where a text stands.

    Args:
        frames: what is open, the outermost first.
        start: where a string or a number begins that is not finished; −1: none is.
        in_string: whether that is a string.
        is_escaped: whether the next character of the string is.
    """

    frames: tuple[Frame, ...] = ()
    start: int = -1
    in_string: bool = False
    is_escaped: bool = False


class Checks:
    """What is asked of finished values.

    Args:
        parts: the schema, and what the engine's mask leaves out of it.

    Raises:
        MissingExtraError: the package ``jsonschema`` is not installed.
    """

    def __init__(self, parts: Relaxed) -> None:
        try:
            from jsonschema import Draft202012Validator
            from jsonschema.validators import validator_for
        except ImportError as error:
            raise MissingExtraError("jsonschema", "constraints", "a schema with parts that no mask holds") from error
        self.schema = json.loads(parts.schema)
        self.left_out = parts.left_out
        self._validator: Any = validator_for(self.schema, Draft202012Validator)(self.schema)
        draft = re.search(r"draft-0?(\d+)|draft/(\d+)", str(getattr(self._validator, "META_SCHEMA", {}).get("$schema")))
        self._is_old = bool(draft and draft[1] and int(draft[1]) <= 7)
        self._asked = lru_cache(maxsize=4096)(self._is_valid)
        self._marked: dict[str, bool] = {}

    def holds(self, pointer: str, text: bytes) -> bool:
        """Whether a finished value, as it is written, satisfies a schema."""
        return self._asked(pointer, text)

    def _is_valid(self, pointer: str, text: bytes) -> bool:
        try:
            value = json.loads(text)
        except ValueError:
            return False
        return bool(self._validator.evolve(schema=self.at(pointer)).is_valid(value))

    def is_marked(self, pointer: str) -> bool:
        """Whether the mask leaves something out of what a schema asks of a value itself."""
        if pointer not in self._marked:
            self._marked[pointer] = any(one in self.left_out for one in self.of_same_value(pointer, SAME_VALUE))
        return self._marked[pointer]

    def at(self, pointer: str) -> Any:
        """The schema at a JSON pointer."""
        node = self.schema
        for part in pointer.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            node = node[int(part)] if isinstance(node, list) else node[part]
        return node

    def of_same_value(self, pointer: str, keywords: Collection[str] = ("allOf",)) -> Iterator[str]:
        """A schema and those that it applies to the same value by reference and by ``keywords``; by ``allOf`` alone
        they are those that every value of it satisfies too."""
        seen, waiting = set(), [pointer]
        while waiting:
            one = waiting.pop(0)
            if one in seen:
                continue
            seen.add(one)
            yield one
            node = self.at(one)
            waiting += self._referred(node)
            if isinstance(node, dict) and not (self._is_old and "$ref" in node):
                waiting += [f"{one}/{key}{place}" for key, place, _ in children(node) if key in keywords]

    def _referred(self, node: Any) -> list[str]:
        """Pointers of the schema that ``node`` refers to."""
        reference = node.get("$ref") if isinstance(node, dict) else None
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return []
        pointer = unquote(reference[1:])
        try:
            self.at(pointer)
        except (KeyError, IndexError, ValueError, TypeError):
            return []
        return [pointer]

    def inside(self, schemas: tuple[str, ...], key: str | int) -> tuple[str, ...]:
        """The schemas that the value of ``key`` has to satisfy, in an object or array of these schemas."""
        found: list[str] = []
        for pointer in schemas:
            node = self.at(pointer)
            if isinstance(node, dict) and not (self._is_old and "$ref" in node):
                found += (
                    one
                    for child in (self._of_key(node, key) if isinstance(key, str) else self._of_item(node, key))
                    for one in self.of_same_value(pointer + child)
                )
        return tuple(dict.fromkeys(found))

    def _of_key(self, node: dict[str, Any], key: str) -> Iterator[str]:
        named = False
        if key in (node.get("properties") or {}):
            named = True
            yield f"/properties/{escaped(key)}"
        for pattern in node.get("patternProperties") or {}:
            if re.search(pattern, key):
                named = True
                yield f"/patternProperties/{escaped(pattern)}"
        if not named and "additionalProperties" in node:
            yield "/additionalProperties"

    def _of_item(self, node: dict[str, Any], number: int) -> Iterator[str]:
        lists = [name for name in ("prefixItems", "items") if isinstance(node.get(name), list)]
        if lists and number < len(node[lists[0]]):
            yield f"/{lists[0]}/{number}"
        elif lists == ["items"]:
            if "additionalItems" in node:
                yield "/additionalItems"
        elif isinstance(node.get("items"), (dict, bool)):
            yield "/items"


class ChecksSession(AskedSession[Checks]):
    """One text, which the engine takes for the beginning of a document, against :class:`Checks`."""

    _place = Place()
    _read = 0

    def is_prefix(self, text: bytes) -> bool:
        return self._asked(("prefix", text), lambda: self._holds(text)[0])

    def is_complete(self, text: bytes) -> bool:
        return self._asked(("complete", text), lambda: self._judge.holds("", text))

    def write(self, text: bytes) -> None:
        super().write(text)
        self._place, self._read = self._holds(self.text)[1], len(self.text)

    def fork(self) -> ChecksSession:
        made = super().fork()
        made._place, made._read = self._place, self._read
        return made

    def _holds(self, text: bytes) -> tuple[bool, Place]:
        """Whether all values that end behind what was read hold, and where the text stands then."""
        known = text.startswith(self.text[: self._read])
        place, begin = (self._place, self._read) if known else (Place(), 0)
        seen = self._vocabulary.visible(text)
        begin = max(0, begin - (len(text) - len(seen)))
        place, ended = read(seen, place, begin, self._judge)
        for schemas, start, end in ended:
            if not all(
                self._judge.holds(pointer, seen[start:end])
                for pointer in schemas
                if pointer == "" or self._judge.is_marked(pointer)
            ):
                return False, place
        return True, place


def read(text: bytes, place: Place, begin: int, checks: Checks) -> tuple[Place, list[tuple[tuple[str, ...], int, int]]]:
    """Go on reading a document from ``begin``; the values that end, each with its schemas, start and end."""
    frames, (_, start, in_string, is_escaped) = list(place.frames), place
    ended: list[tuple[tuple[str, ...], int, int]] = []

    def schemas() -> tuple[str, ...]:
        return checks.inside(frames[-1].schemas, frames[-1].key) if frames else tuple(checks.of_same_value(""))

    for at in range(begin, len(text)):
        byte = text[at : at + 1]
        if in_string:
            if is_escaped or byte == b"\\":
                is_escaped = not is_escaped
            elif byte == b'"':
                in_string = False
                if frames and frames[-1].awaits_key:
                    key = json.loads(text[start : at + 1])
                    frames[-1] = frames[-1]._replace(key=key, awaits_key=False)
                else:
                    ended.append((schemas(), start, at + 1))
                start = -1
            continue
        if start >= 0:
            if byte not in _ENDS:
                continue
            ended.append((schemas(), start, at))
            start = -1
        if byte in b"{[":
            is_object = byte == b"{"
            frames.append(Frame(is_object, schemas(), at, "" if is_object else 0, is_object))
        elif byte in b"}]":
            frame = frames.pop()
            ended.append((frame.schemas, frame.start, at + 1))
        elif byte == b",":
            top = frames[-1]
            frames[-1] = top._replace(awaits_key=True) if top.is_object else top._replace(key=int(top.key) + 1)
        elif byte == b'"':
            start, in_string = at, True
        elif byte not in _SPACE and byte != b":":
            start = at
    return Place(tuple(frames), start, in_string, is_escaped), ended
