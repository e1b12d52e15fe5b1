"""The worker's messages about guided requests, on their way to the scheduler with the model runner's output.

vLLM takes the output of one worker (the first of the last pipeline stage) to the engine that scheduled the step, in the
same way over shared memory, between nodes and over Ray. So the messages of the other workers stay where they are, and
every engine of a data-parallel server receives those of its own workers, with the tokens of the step that they are
about, no matter how many steps are in flight. Knows no vLLM but the names of what it wraps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .extras import OURS
from .wrapping import wrap_once

Messages = dict[str, dict[int, dict[str, Any]]]
"""By the name of the group and the position of the token that was drawn: a step may draw several of a group."""


class Outbox:
    """Messages that wait for the next output."""

    def __init__(self) -> None:
        self._waiting: Messages = {}

    def put(self, messages: Messages) -> None:
        """Add messages."""
        for group, by_position in messages.items():
            self._waiting.setdefault(group, {}).update(by_position)

    def take(self) -> Messages:
        """Remove and return all messages."""
        waiting = self._waiting
        self._waiting = {}
        return waiting


def outbox_of(runner: Any) -> Outbox:
    """The outbox that model runners of a class empty into each output of their ``sample_tokens``.

    Args:
        runner: vLLM's class of model runners.
    """
    outbox: Outbox | None = runner.__dict__.get("textguide_outbox")
    if outbox is None:
        outbox = runner.textguide_outbox = Outbox()

    def wrapper(sample: Callable[..., Any]) -> Callable[..., Any]:
        def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
            outbox.take()  # messages of a step that failed
            output = sample(self, *args, **kwargs)
            messages = outbox.take()
            if messages:
                setattr(_inner(output), OURS, messages)
            return output

        return sample_tokens

    wrap_once(runner, "sample_tokens", wrapper)
    return outbox


def messages_of(output: Any) -> Messages:
    """The worker's messages about the step whose output this is."""
    messages: Messages = getattr(output, OURS, None) or {}
    return messages


def _inner(output: Any) -> Any:
    """The part of an output that reaches the scheduler: asynchronous ones wrap it until its tensors have arrived."""
    for name in ("_model_runner_output", "model_runner_output"):  # of vLLM's first runner, and of its second
        output = getattr(output, name, output)
    return output
