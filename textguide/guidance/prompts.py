"""Prompts as values: what an extra branch reads instead of the user's prompt.

A guidance is hashable and can be converted to and from JSON, so the prompts in it are plain tuples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


Chat = tuple[Message, ...]
TokenIds = tuple[int, ...]
Prompt: TypeAlias = str | TokenIds | Chat


def is_chat(prompt: Any) -> bool:
    """Whether ``prompt`` is a chat: a non-empty sequence of messages."""
    return isinstance(prompt, (list, tuple)) and bool(prompt) and all(_is_message(turn) for turn in prompt)


def as_chat(messages: Iterable[Any]) -> Chat:
    """Messages, each a :class:`Message` or a mapping with ``role`` and ``content``, as a tuple.

    Raises:
        ValueError: a role or a content is not a text, but for example a list of parts.
    """
    turns = []
    for turn in messages:
        if not isinstance(turn, Message):
            turn = Message(turn["role"], turn["content"])
        if not isinstance(turn.role, str) or not isinstance(turn.content, str):
            raise ValueError(f"the chat message {_brief(turn)} must have a text as role and as content")
        turns.append(turn)
    return tuple(turns)


def as_prompt(value: Any) -> Prompt | None:
    """One prompt in its canonical form, or None if ``value`` is not a single prompt."""
    if isinstance(value, str):
        return value
    if is_chat(value):
        return as_chat(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (bytes, bytearray)):
        return None  # these are sequences of integers, but not token ids
    if isinstance(value, Sequence) and value and all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        return tuple(value)
    return None


def as_prompts(value: Any, name: str) -> Prompt | tuple[Prompt, ...] | None:
    """One prompt for all rows, or a tuple with one per row, or None, in canonical form.

    Raises:
        ValueError: ``value`` is none of these; the message contains ``name``, the name of the argument.
    """
    if value is None:
        return None
    single = as_prompt(value)
    if single is not None:
        return single
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)) and value:
        rows = tuple(as_prompt(row) for row in value)
        if all(row is not None for row in rows):
            return rows  # type: ignore[return-value]
    raise ValueError(
        f"{name}={_brief(value)} is not a prompt; give a text, token ids or chat messages, "
        "or a list with one of these per row"
    )


def as_text_or_ids(value: Any, name: str) -> str | TokenIds:
    """A text or token ids, in canonical form.

    Raises:
        ValueError: ``value`` is neither; the message contains ``name``, the name of the argument.
    """
    prompt = as_prompt(value)
    if not prompt or not isinstance(prompt[0], (str, int)):
        raise ValueError(f"{name}={value!r} must be a text or token ids")
    return prompt  # type: ignore[return-value]


def per_row(prompts: Prompt | tuple[Prompt, ...]) -> bool:
    """Whether a canonical value has one prompt per row, and not one for all rows."""
    return as_prompt(prompts) is None


def to_json(value: Any) -> Any:
    """The value of a field (a prompt, a tuple of them, an object with a ``to_dict``) as plain JSON values."""
    if isinstance(value, Message):
        return {"role": value.role, "content": value.content}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def _is_message(turn: Any) -> bool:
    return isinstance(turn, Message) or (isinstance(turn, Mapping) and "role" in turn and "content" in turn)


def _brief(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
