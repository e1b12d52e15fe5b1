"""Free text first, then a constraint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .base import Citation, Constraint, Session
from .tags.session import Form, Structure, TagsSession
from .triggers import REGEX, Literal, trigger_of
from .vocabulary import Vocabulary, spelled


@dataclass(frozen=True)
class After(Constraint):
    """Texts that are free up to a trigger, and satisfy a constraint after it: first reasoning, then a formatted answer.

    The constraint applies from the end of the first occurrence of the trigger. A text without the trigger is not a
    member, so no text ends before it; the probability that the model would have ended there counts in the weights, as
    with every constraint. It is :class:`Tags` with one tag without end.

    Args:
        trigger: a text such as ``"</think>"``; ``"regex:PATTERN"``, which ends at the first place where a match ends;
            or a function from the text so far to whether the constraint starts here. The name of a special token means
            that token, as in :class:`Tags`.
        constraint: for the text after the trigger, or a value that describes one, as in :class:`textguide.AWRS`.

    Raises:
        ValueError: ``trigger`` is empty or cannot be used, or ``constraint`` is not a constraint.

    Example:
        >>> AWRS(After("</think>", JSONSchema(schema)))  # or AWRS(JSONSchema(schema), after="</think>")
    """

    trigger: str | Callable[[str], bool]
    constraint: Any

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

    @property
    def _text(self) -> str | None:
        """The trigger if it is a text."""
        return self.trigger if isinstance(self.trigger, str) and not self.trigger.startswith(REGEX) else None

    def special_tokens(self, vocabulary: Vocabulary) -> frozenset[str]:
        names = {name for name, _ in vocabulary.specials if self._text is not None and name in self._text}
        return self.constraint.special_tokens(vocabulary) | names

    def completion(self, text: bytes) -> bytes | None:
        if self._text is None:
            return None  # no guess is possible for a function or a pattern
        trigger = self._text.encode()
        at = text.find(trigger)
        if at >= 0:
            return self.constraint.completion(text[at + len(trigger) :])
        rest = self.constraint.completion(b"")
        return None if rest is None else trigger + rest

    def citations(self, text: str) -> tuple[Citation, ...]:
        begin = trigger_of(self.trigger)(text.encode(), 0)
        if begin is None:
            raise ValueError(f"text={text[-60:]!r} does not contain the trigger {self.trigger!r}")
        before = len(text.encode()[:begin].decode())
        found = self.constraint.citations(text[before:])
        return tuple(replace(one, start=one.start + before, end=one.end + before) for one in found)

    def start(self, vocabulary: Vocabulary) -> Session:
        names = self.special_tokens(vocabulary)
        vocabulary = vocabulary.spelled(names)
        trigger = trigger_of(self.trigger)
        if self._text is not None:
            trigger = Literal(spelled(self._text, names))
        # A leading space is only dropped at the start of the whole text, not after the trigger.
        inside = replace(vocabulary, drops_leading_space=False) if vocabulary.drops_leading_space else vocabulary
        form = Form(0, b"", self.constraint.start(inside), None)
        return TagsSession(Structure((trigger,), (form,), 1, 1, True), vocabulary)
