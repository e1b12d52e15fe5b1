"""What ends free text: a text, a pattern or a function."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .utf8 import whole_characters

REGEX = "regex:"
Trigger = Callable[[bytes, int], "int | None"]
"""The first end of a trigger in a text, or None. The number of leading bytes that do not contain it is passed as well,
so that they are not searched again."""


@dataclass(frozen=True)
class Literal:
    """A trigger that is a text."""

    text: bytes

    def __call__(self, text: bytes, searched: int) -> int | None:
        at = text.find(self.text, max(0, searched - len(self.text) + 1))
        return None if at < 0 else at + len(self.text)


def trigger_of(value: Any, name: str = "after") -> Trigger:
    """The function that finds a trigger.

    Args:
        value: a text, ``regex:PATTERN``, or a function from the text so far to whether it ends here.
        name: the argument, for messages.

    Raises:
        ValueError: ``value`` is empty, not a valid pattern, or not a trigger.
    """
    if callable(value):
        return lambda text, searched: _first_end(text, searched, lambda prefix: _call(name, value, prefix))
    if not isinstance(value, str) or not value.removeprefix(REGEX):
        raise ValueError(
            f"{name}={value!r} must be a text, 'regex:PATTERN', or a function from a text to True or False"
        )
    if not value.startswith(REGEX):
        return Literal(value.encode())
    try:
        pattern = re.compile(f"(?:{value.removeprefix(REGEX)})\\Z")
    except re.error as error:
        raise ValueError(f"{name}={value!r} is not a valid pattern: {error}") from None
    if pattern.search(""):
        raise ValueError(f"{name}={value!r} matches the empty text, so there would be no free text; change the pattern")
    return lambda text, searched: _first_end(text, searched, lambda prefix: pattern.search(prefix) is not None)


def _first_end(text: bytes, searched: int, is_end: Callable[[str], bool]) -> int | None:
    """The first position after ``searched``, between characters, for which ``is_end`` holds of the text before it."""
    for at in range(searched + 1, len(text) + 1):
        parts = whole_characters(text[:at])
        if parts is not None and not parts[1] and is_end(parts[0]):
            return at
    return None


def _call(name: str, function: Callable[[str], bool], text: str) -> bool:
    answer = function(text)
    if not isinstance(answer, bool):
        raise ValueError(f"{name}={function!r} returned {answer!r} for {text[-40:]!r}; it must return True or False")
    return answer
