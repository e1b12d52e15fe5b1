"""Checks of finished values in a JSON document, for the keywords that the engine's mask does not enforce."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

from ...support.errors import MissingExtraError
from ..memoized_session import MemoizedSession
from .relaxation import Relaxation, children, escaped

SAME_VALUE = ("allOf", "anyOf", "oneOf", "then", "else")
"""Keywords whose schemas apply to the same value."""
_SPACE = b" \t\r\n"
_AFTER_SCALAR = b" \t\r\n,]}"

Pointers = tuple[str, ...]
"""JSON pointers of the schemas that a value must satisfy."""


class Frame(NamedTuple):
    """An object or array that is not finished.

    Args:
        is_object: whether it is an object; otherwise an array.
        schemas: the schemas that it must satisfy.
        start: its position in the text.
        key: the property or item number of the next value.
        expects_key: whether the next string is a key.
    """

    is_object: bool
    schemas: Pointers
    start: int
    key: str | int
    expects_key: bool


class ReaderState(NamedTuple):
    """The state of :class:`ValueReader` after a text.

    Args:
        frames: the open objects and arrays, the outermost first.
        start: the position of an unfinished string or other scalar; −1: there is none.
        in_string: whether that is a string.
        is_escaped: whether the next character of the string is escaped.
    """

    frames: tuple[Frame, ...] = ()
    start: int = -1
    in_string: bool = False
    is_escaped: bool = False


class FinishedValue(NamedTuple):
    """A value that ended: its schemas, and its span in the text."""

    schemas: Pointers
    start: int
    end: int


class ValueChecker:
    """Validates finished values with ``jsonschema``.

    Args:
        relaxation: the schema, and the keywords that the engine's mask does not enforce.

    Raises:
        MissingExtraError: the package ``jsonschema`` is not installed.
    """

    def __init__(self, relaxation: Relaxation) -> None:
        try:
            from jsonschema import Draft202012Validator
            from jsonschema.validators import validator_for
        except ImportError as error:
            raise MissingExtraError(
                "jsonschema", "constraints", "a schema with keywords that no mask enforces"
            ) from error
        self.schema = json.loads(relaxation.schema)
        self.left_out = relaxation.left_out
        self._validator: Any = validator_for(self.schema, Draft202012Validator)(self.schema)
        draft = re.search(r"draft-0?(\d+)|draft/(\d+)", str(getattr(self._validator, "META_SCHEMA", {}).get("$schema")))
        # Up to draft 7, the keywords next to a reference are ignored.
        self._ignores_siblings = bool(draft and draft[1] and int(draft[1]) <= 7)
        self._cached_is_valid = lru_cache(maxsize=4096)(self._is_valid)
        self._needs_check: dict[str, bool] = {}

    def is_valid(self, pointer: str, text: bytes) -> bool:
        """Whether a finished value, as it is written, satisfies the schema at a JSON pointer."""
        return self._cached_is_valid(pointer, text)

    def _is_valid(self, pointer: str, text: bytes) -> bool:
        try:
            value = json.loads(text)
        except ValueError:
            return False
        return bool(self._validator.evolve(schema=self.at(pointer)).is_valid(value))

    def needs_check(self, pointer: str) -> bool:
        """Whether the mask leaves out a keyword that applies to values of this schema themselves."""
        if pointer not in self._needs_check:
            applied = self.applied_schemas(pointer, SAME_VALUE)
            self._needs_check[pointer] = any(other in self.left_out for other in applied)
        return self._needs_check[pointer]

    def at(self, pointer: str) -> Any:
        """The schema at a JSON pointer."""
        node = self.schema
        for part in pointer.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            node = node[int(part)] if isinstance(node, list) else node[part]
        return node

    def applied_schemas(self, pointer: str, keywords: Collection[str] = ("allOf",)) -> Iterator[str]:
        """A schema, and those that it applies to the same value by reference and by ``keywords``.

        With ``allOf`` only, these are the schemas that every value of the first one satisfies too.
        """
        seen = set()
        queue = [pointer]
        while queue:
            current = queue.pop(0)
            if current in seen:
                continue
            seen.add(current)
            yield current
            node = self.at(current)
            queue += self._references(node)
            if self._has_own_keywords(node):
                queue += [f"{current}/{key}{rest}" for key, rest, _ in children(node) if key in keywords]

    def _has_own_keywords(self, node: Any) -> bool:
        """Whether the keywords of a schema count; they do not if it is a bool, or a reference in an old draft."""
        return isinstance(node, dict) and not (self._ignores_siblings and "$ref" in node)

    def _references(self, node: Any) -> list[str]:
        """The JSON pointers of the schema that ``node`` refers to, at most one."""
        reference = node.get("$ref") if isinstance(node, dict) else None
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return []
        pointer = unquote(reference[1:])
        try:
            self.at(pointer)
        except (KeyError, IndexError, ValueError, TypeError):
            return []
        return [pointer]

    def schemas_of_key(self, schemas: Pointers, key: str | int) -> Pointers:
        """The schemas that the value of ``key`` must satisfy inside an object or array with these schemas."""
        applied: list[str] = []
        for pointer in schemas:
            node = self.at(pointer)
            if not self._has_own_keywords(node):
                continue
            children_of_key = self._of_property(node, key) if isinstance(key, str) else self._of_item(node, key)
            for child in children_of_key:
                applied += self.applied_schemas(pointer + child)
        return tuple(dict.fromkeys(applied))

    def _of_property(self, node: dict[str, Any], key: str) -> Iterator[str]:
        is_named = False
        if key in (node.get("properties") or {}):
            is_named = True
            yield f"/properties/{escaped(key)}"
        for pattern in node.get("patternProperties") or {}:
            if re.search(pattern, key):
                is_named = True
                yield f"/patternProperties/{escaped(pattern)}"
        if not is_named and "additionalProperties" in node:
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


class ChecksSession(MemoizedSession[ValueChecker]):
    """One text, which the engine accepts as the start of a document, under :class:`ValueChecker`."""

    _state = ReaderState()
    _position = 0
    """Bytes of the text up to which ``_state`` was read."""

    def is_prefix(self, text: bytes) -> bool:
        return self._verdicts.get(("prefix", text), lambda: self._read(text)[0])

    def is_complete(self, text: bytes) -> bool:
        return self._verdicts.get(("complete", text), lambda: self._checker.is_valid("", text))

    def write(self, text: bytes) -> None:
        super().write(text)
        self._state = self._read(self.text)[1]
        self._position = len(self.text)

    def fork(self) -> ChecksSession:
        fork = super().fork()
        fork._state = self._state
        fork._position = self._position
        return fork

    def _read(self, text: bytes) -> tuple[bool, ReaderState]:
        """Whether all values that end in the unread part of ``text`` are valid, and the state after it."""
        state = self._state
        begin = self._position
        if not text.startswith(self.text[:begin]):
            state = ReaderState()
            begin = 0
        visible = self._vocabulary.visible(text)
        begin = max(0, begin - (len(text) - len(visible)))
        reader = ValueReader(self._checker, visible, state)
        reader.read(begin)
        for value in reader.finished:
            written = visible[value.start : value.end]
            for pointer in value.schemas:
                is_checked = pointer == "" or self._checker.needs_check(pointer)
                if is_checked and not self._checker.is_valid(pointer, written):
                    return False, reader.state
        return True, reader.state


class ValueReader:
    """Finds the values that end in a part of a document, and the schemas that apply to each.

    Args:
        checker: knows the schemas.
        text: the document, or the start of one, which the engine accepts.
        state: the state before the part that is read.

    Attributes:
        finished: the values that ended, in order.
    """

    def __init__(self, checker: ValueChecker, text: bytes, state: ReaderState) -> None:
        self.finished: list[FinishedValue] = []
        self._checker = checker
        self._text = text
        self._frames = list(state.frames)
        self._start = state.start
        self._in_string = state.in_string
        self._is_escaped = state.is_escaped

    @property
    def state(self) -> ReaderState:
        """The state after the part that was read."""
        return ReaderState(tuple(self._frames), self._start, self._in_string, self._is_escaped)

    def read(self, begin: int) -> None:
        """Read from ``begin`` to the end of the text."""
        for at in range(begin, len(self._text)):
            byte = self._text[at : at + 1]
            if self._in_string:
                self._read_in_string(byte, at)
                continue
            if self._start >= 0:  # inside a number or one of the words true, false, null
                if byte not in _AFTER_SCALAR:
                    continue
                self._finish_scalar(at)
            self._read_between_scalars(byte, at)

    def _read_in_string(self, byte: bytes, at: int) -> None:
        if self._is_escaped or byte == b"\\":
            self._is_escaped = not self._is_escaped
            return
        if byte != b'"':
            return
        self._in_string = False
        if self._frames and self._frames[-1].expects_key:
            key = json.loads(self._text[self._start : at + 1])
            self._frames[-1] = self._frames[-1]._replace(key=key, expects_key=False)
            self._start = -1
        else:
            self._finish_scalar(at + 1)

    def _read_between_scalars(self, byte: bytes, at: int) -> None:
        if byte in b"{[":
            is_object = byte == b"{"
            self._frames.append(Frame(is_object, self._schemas(), at, "" if is_object else 0, is_object))
        elif byte in b"}]":
            frame = self._frames.pop()
            self.finished.append(FinishedValue(frame.schemas, frame.start, at + 1))
        elif byte == b",":
            frame = self._frames[-1]
            if frame.is_object:
                self._frames[-1] = frame._replace(expects_key=True)
            else:
                self._frames[-1] = frame._replace(key=int(frame.key) + 1)
        elif byte == b'"':
            self._start = at
            self._in_string = True
        elif byte not in _SPACE and byte != b":":
            self._start = at

    def _finish_scalar(self, end: int) -> None:
        self.finished.append(FinishedValue(self._schemas(), self._start, end))
        self._start = -1

    def _schemas(self) -> Pointers:
        """The schemas that the next value must satisfy."""
        if not self._frames:
            return tuple(self._checker.applied_schemas(""))
        return self._checker.schemas_of_key(self._frames[-1].schemas, self._frames[-1].key)
