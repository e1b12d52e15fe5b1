"""Free text first, the form afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .base import Constraint, Session
from .predicate import whole_characters
from .vocabulary import Vocabulary

REGEX = "regex:"
MANY = 500
"""Tokens that may end a trigger; where there are more, those that are proposed are asked about, and not all of them."""


@dataclass(frozen=True)
class After(Constraint):
    """Texts that are free up to a trigger, and satisfy a constraint behind it: first thoughts, then the answer in form.

    The form begins where the trigger ends for the first time. A text without the trigger is no member, so that none
    ends before it; how likely the model itself was to end there counts in the weights, as with every constraint.

    Args:
        trigger: a text such as ``"</think>"``; ``"regex:PATTERN"``, which ends where a match of it ends for the first
            time; or a function from the text so far to whether the form begins behind it.
        constraint: of what stands behind it.

    Raises:
        ValueError: ``trigger`` is empty or cannot be used, or ``constraint`` is none.

    Example:
        >>> AWRS(After("</think>", JSONSchema(schema)))  # or AWRS(JSONSchema(schema), after="</think>")
    """

    trigger: str | Callable[[str], bool]
    constraint: Constraint

    kind = "after"

    def __post_init__(self) -> None:
        if not isinstance(self.constraint, Constraint):
            raise ValueError(f"constraint={self.constraint!r} must be a constraint such as Regex('a')")
        trigger_of(self.trigger)

    def to_dict(self) -> dict[str, Any]:
        trigger: Any = self.trigger
        if not isinstance(trigger, str):  # which cannot be made again from its name
            trigger = {"function": getattr(trigger, "__qualname__", repr(trigger))}
        return {"kind": self.kind, "trigger": trigger, "constraint": self.constraint.to_dict()}

    @classmethod
    def build(cls, values: dict[str, Any]) -> Constraint:
        from .spec import resolve

        return cls(values["trigger"], resolve(values["constraint"]))

    def completion(self, text: bytes) -> bytes | None:
        if not isinstance(self.trigger, str) or self.trigger.startswith(REGEX):
            return None  # nobody knows what a function waits for
        trigger = self.trigger.encode()
        at = text.find(trigger)
        behind = self.constraint.completion(text[at + len(trigger) :] if at >= 0 else b"")
        return behind if behind is None or at >= 0 else trigger + behind

    def start(self, vocabulary: Vocabulary) -> Session:
        # Behind the trigger no space is left out.
        inner = self.constraint.start(replace(vocabulary, drops_leading_space=False))
        return AfterSession(trigger_of(self.trigger), inner, vocabulary)


Trigger = Callable[[bytes, int], "int | None"]
"""Where a trigger ends for the first time in a text, behind the first so many bytes, in which it does not; or None."""


def trigger_of(value: Any) -> Trigger:
    """What finds a trigger.

    Raises:
        ValueError: it is empty, no pattern, or nothing that can be found.
    """
    if callable(value):
        return lambda text, known: _first(text, known, lambda seen: _asked(value, seen))
    if not isinstance(value, str) or not value.removeprefix(REGEX):
        raise ValueError(f"after={value!r} must be a text, 'regex:PATTERN', or a function from a text to True or False")
    if not value.startswith(REGEX):
        return Literal(value.encode())
    try:
        pattern = re.compile(f"(?:{value.removeprefix(REGEX)})\\Z")
    except re.error as error:
        raise ValueError(f"after={value!r} is no pattern: {error}") from None
    if pattern.search(""):
        raise ValueError(f"after={value!r} matches the empty text, so that nothing would stand before the form")
    return lambda text, known: _first(text, known, lambda seen: pattern.search(seen) is not None)


def _first(text: bytes, known: int, ends: Callable[[str], bool]) -> int | None:
    """The first place behind ``known``, between characters, at which ``ends`` holds of the text before."""
    for at in range(known + 1, len(text) + 1):
        parts = whole_characters(text[:at])
        if parts is not None and not parts[1] and ends(parts[0]):
            return at
    return None


def _asked(function: Callable[[str], bool], text: str) -> bool:
    answer = function(text)
    if not isinstance(answer, bool):
        raise ValueError(f"after={function!r} gave {answer!r} for {text[-40:]!r}; it must give True or False")
    return answer


@dataclass(frozen=True)
class Literal:
    """A trigger that is a text."""

    text: bytes

    def __call__(self, text: bytes, known: int) -> int | None:
        at = text.find(self.text, max(0, known - len(self.text) + 1))
        return None if at < 0 else at + len(self.text)


class AfterSession(Session):
    """One text: free, and from the place where the trigger ends on under a session."""

    def __init__(
        self, trigger: Trigger, inner: Session, vocabulary: Vocabulary, text: bytes = b"", begin: int | None = None
    ) -> None:
        self.text = text
        self._trigger, self._inner, self._vocabulary, self._begin = trigger, inner, vocabulary, begin

    @property
    def calls(self) -> int:
        return self._inner.calls

    def is_prefix(self, text: bytes) -> bool:
        begin = self._where(text)
        return begin is None or self._inner.is_prefix(text[begin:])

    def is_complete(self, text: bytes) -> bool:
        begin = self._where(text)
        return begin is not None and self._inner.is_complete(text[begin:])

    def mask(self) -> Tensor | None:
        if self._begin is not None:
            return self._inner.mask()
        if not isinstance(self._trigger, Literal):
            return None
        free, inside, by_overlap = _candidates(self._vocabulary, self._trigger.text)
        mask = free.clone()
        trigger = self._trigger.text
        for size, tokens in by_overlap.items():
            inside = [*inside, *tokens] if self.text.endswith(trigger[:size]) else inside
        if len(inside) > MANY:
            return None
        for token in inside:
            mask[token] = self.is_prefix(self.text + self._vocabulary.tokens[token])
        return mask

    def write(self, text: bytes) -> None:
        whole = self.text + text
        begin = self._where(whole)
        if self._begin is not None:
            self._inner.write(text)
        elif begin is not None:
            self._inner.write(whole[begin:])
        self.text, self._begin = whole, begin

    def fork(self) -> AfterSession:
        return AfterSession(self._trigger, self._inner.fork(), self._vocabulary, self.text, self._begin)

    def _where(self, text: bytes) -> int | None:
        if not text.startswith(self.text):
            return self._trigger(text, 0)
        return self._trigger(text, len(self.text)) if self._begin is None else self._begin


@lru_cache(maxsize=8)
def _candidates(vocabulary: Vocabulary, trigger: bytes) -> tuple[Tensor, list[int], dict[int, list[int]]]:
    """Tokens that add something; those that hold the trigger; those that end it behind so many of its first bytes."""
    free = torch.tensor(
        [bool(token) and number not in vocabulary.ends for number, token in enumerate(vocabulary.tokens)]
    )
    inside = [number for number, token in enumerate(vocabulary.tokens) if trigger in token]
    rests = {size: trigger[size:] for size in range(1, len(trigger))}
    by_overlap = {
        size: [number for number, token in enumerate(vocabulary.tokens) if token.startswith(rest)]
        for size, rest in rests.items()
    }
    return free, inside, by_overlap
