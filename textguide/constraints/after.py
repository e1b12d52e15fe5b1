"""Free text first, then a constraint."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .base import Constraint, Session
from .utf8 import whole_characters
from .vocabulary import Vocabulary

REGEX = "regex:"
MAX_CHECKED = 500
"""Tokens that may end a trigger. If there are more, no mask is made, and only the tokens that are proposed are
checked."""


@dataclass(frozen=True)
class After(Constraint):
    """Texts that are free up to a trigger, and satisfy a constraint after it: first reasoning, then a formatted answer.

    The constraint applies from the end of the first occurrence of the trigger. A text without the trigger is not a
    member, so no text ends before it; the probability that the model would have ended there counts in the weights, as
    with every constraint.

    Args:
        trigger: a text such as ``"</think>"``; ``"regex:PATTERN"``, which ends at the first place where a match ends;
            or a function from the text so far to whether the constraint starts here.
        constraint: for the text after the trigger.

    Raises:
        ValueError: ``trigger`` is empty or cannot be used, or ``constraint`` is not a constraint.

    Example:
        >>> AWRS(After("</think>", JSONSchema(schema)))  # or AWRS(JSONSchema(schema), after="</think>")
    """

    trigger: str | Callable[[str], bool]
    constraint: Constraint

    kind = "after"

    def __post_init__(self) -> None:
        from .spec import resolve

        object.__setattr__(self, "constraint", resolve(self.constraint))
        trigger_of(self.trigger)

    def to_dict(self) -> dict[str, Any]:
        trigger: Any = self.trigger
        if not isinstance(trigger, str):  # a description only: a function cannot be built from its name
            trigger = {"function": getattr(trigger, "__qualname__", repr(trigger))}
        return {"kind": self.kind, "trigger": trigger, "constraint": self.constraint.to_dict()}

    @classmethod
    def build(cls, values: dict[str, Any]) -> Constraint:
        from .spec import resolve

        return cls(values["trigger"], resolve(values["constraint"]))

    def completion(self, text: bytes) -> bytes | None:
        if not isinstance(self.trigger, str) or self.trigger.startswith(REGEX):
            return None  # no guess is possible for a function or a pattern
        trigger = self.trigger.encode()
        at = text.find(trigger)
        if at >= 0:
            return self.constraint.completion(text[at + len(trigger) :])
        rest = self.constraint.completion(b"")
        return None if rest is None else trigger + rest

    def start(self, vocabulary: Vocabulary) -> Session:
        # A leading space is only dropped at the start of the whole text, not after the trigger.
        inner = self.constraint.start(replace(vocabulary, drops_leading_space=False))
        return AfterSession(trigger_of(self.trigger), inner, vocabulary)


Trigger = Callable[[bytes, int], "int | None"]
"""Where a trigger first ends in a text, or None. The number of leading bytes that do not contain it is passed as well,
so that they are not searched again."""


def trigger_of(value: Any) -> Trigger:
    """The function that finds a trigger.

    Raises:
        ValueError: ``value`` is empty, not a valid pattern, or not a trigger.
    """
    if callable(value):
        return lambda text, searched: _first_end(text, searched, lambda prefix: _call(value, prefix))
    if not isinstance(value, str) or not value.removeprefix(REGEX):
        raise ValueError(f"after={value!r} must be a text, 'regex:PATTERN', or a function from a text to True or False")
    if not value.startswith(REGEX):
        return Literal(value.encode())
    try:
        pattern = re.compile(f"(?:{value.removeprefix(REGEX)})\\Z")
    except re.error as error:
        raise ValueError(f"after={value!r} is not a valid pattern: {error}") from None
    if pattern.search(""):
        raise ValueError(f"after={value!r} matches the empty text, so there would be no free text; change the pattern")
    return lambda text, searched: _first_end(text, searched, lambda prefix: pattern.search(prefix) is not None)


def _first_end(text: bytes, searched: int, is_end: Callable[[str], bool]) -> int | None:
    """The first position after ``searched``, between characters, for which ``is_end`` holds of the text before it."""
    for at in range(searched + 1, len(text) + 1):
        parts = whole_characters(text[:at])
        if parts is not None and not parts[1] and is_end(parts[0]):
            return at
    return None


def _call(function: Callable[[str], bool], text: str) -> bool:
    answer = function(text)
    if not isinstance(answer, bool):
        raise ValueError(f"after={function!r} returned {answer!r} for {text[-40:]!r}; it must return True or False")
    return answer


@dataclass(frozen=True)
class Literal:
    """A trigger that is a text."""

    text: bytes

    def __call__(self, text: bytes, searched: int) -> int | None:
        at = text.find(self.text, max(0, searched - len(self.text) + 1))
        return None if at < 0 else at + len(self.text)


class AfterSession(Session):
    """One text: free up to the end of the trigger, then under another session.

    Args:
        trigger: finds the trigger.
        inner: the session for the text after the trigger.
        vocabulary: what each token adds.
        text: the bytes written so far.
        begin: where the trigger ends in ``text``; None if it is not there yet.
    """

    def __init__(
        self, trigger: Trigger, inner: Session, vocabulary: Vocabulary, text: bytes = b"", begin: int | None = None
    ) -> None:
        self.text = text
        self._trigger = trigger
        self._inner = inner
        self._vocabulary = vocabulary
        self._begin = begin

    @property
    def calls(self) -> int:
        return self._inner.calls

    def is_prefix(self, text: bytes) -> bool:
        begin = self._trigger_end(text)
        return begin is None or self._inner.is_prefix(text[begin:])

    def is_complete(self, text: bytes) -> bool:
        begin = self._trigger_end(text)
        return begin is not None and self._inner.is_complete(text[begin:])

    def mask(self) -> Tensor | None:
        if self._begin is not None:
            return self._inner.mask()
        if not isinstance(self._trigger, Literal):
            return None
        trigger = self._trigger.text
        candidates = _trigger_tokens(self._vocabulary, trigger)
        ending = list(candidates.containing)
        for size, tokens in candidates.completing.items():
            if self.text.endswith(trigger[:size]):
                ending += tokens
        if len(ending) > MAX_CHECKED:
            return None
        mask = candidates.free.clone()
        for token in ending:
            mask[token] = self.is_prefix(self.text + self._vocabulary.tokens[token])
        return mask

    def write(self, text: bytes) -> None:
        whole = self.text + text
        begin = self._trigger_end(whole)
        if self._begin is not None:
            self._inner.write(text)
        elif begin is not None:
            self._inner.write(whole[begin:])
        self.text = whole
        self._begin = begin

    def fork(self) -> AfterSession:
        return AfterSession(self._trigger, self._inner.fork(), self._vocabulary, self.text, self._begin)

    def _trigger_end(self, text: bytes) -> int | None:
        if not text.startswith(self.text):
            return self._trigger(text, 0)
        return self._trigger(text, len(self.text)) if self._begin is None else self._begin


@dataclass(frozen=True)
class _TriggerTokens:
    """The tokens of a vocabulary by what they do to a trigger.

    Args:
        free: tokens with bytes that are not end tokens, bool (V,).
        containing: tokens that contain the trigger.
        completing: tokens that start with the rest of the trigger after so many of its bytes, by that number.
    """

    free: Tensor
    containing: list[int]
    completing: dict[int, list[int]]


@lru_cache(maxsize=8)
def _trigger_tokens(vocabulary: Vocabulary, trigger: bytes) -> _TriggerTokens:
    numbered = list(enumerate(vocabulary.tokens))
    completing = {}
    for size in range(1, len(trigger)):
        completing[size] = [number for number, token in numbered if token.startswith(trigger[size:])]
    return _TriggerTokens(
        free=torch.tensor([bool(token) and number not in vocabulary.ends for number, token in numbered]),
        containing=[number for number, token in numbered if trigger in token],
        completing=completing,
    )
