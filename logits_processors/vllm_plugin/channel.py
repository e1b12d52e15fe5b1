"""What a worker saw at a step, on its way to the scheduler: it leaves with the model runner's output. Knows no vLLM.

vLLM takes the output of one worker (the first of the last pipeline stage) to the engine that scheduled the step, over
shared memory, between nodes and over Ray alike. So what the other workers saw stays where it is, and every engine of a
data-parallel server gets what its own workers saw, with the tokens of the step that it speaks of, however many steps
are in flight.
"""

from __future__ import annotations

import functools
from typing import Any

from .extras import OURS

Messages = dict[str, dict[int, dict[str, Any]]]
"""What was seen, by the group and by the position of the token that was drawn: a step may draw several of a group."""


class Outbox:
    """What waits for the next output."""

    def __init__(self) -> None:
        self._waiting: Messages = {}

    def put(self, messages: Messages) -> None:
        """Add what was seen."""
        for group, seen in messages.items():
            self._waiting.setdefault(group, {}).update(seen)

    def take(self) -> Messages:
        """All of it; nothing waits afterwards."""
        waiting, self._waiting = self._waiting, {}
        return waiting


def outbox_of(runner: Any) -> Outbox:
    """The outbox that model runners of the class ``runner`` empty into each output of ``sample_tokens``.

    vLLM has no hook for it, so the method is wrapped, once a process.
    """
    sample = runner.sample_tokens
    outbox: Outbox | None = getattr(sample, "outbox", None)
    if outbox is not None:
        return outbox
    outbox = Outbox()

    @functools.wraps(sample)
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        outbox.take()  # of a step that failed
        output = sample(self, *args, **kwargs)
        messages = outbox.take()
        if messages:
            setattr(_plain(output), OURS, messages)
        return output

    sample_tokens.outbox = outbox  # type: ignore[attr-defined]
    runner.sample_tokens = sample_tokens
    return outbox


def messages_of(output: Any) -> Messages:
    """What a worker saw at the step whose output this is."""
    messages: Messages = getattr(output, OURS, None) or {}
    return messages


def _plain(output: Any) -> Any:
    """What of an output reaches the scheduler: asynchronous ones wrap it until its tensors have arrived."""
    for name in ("_model_runner_output", "model_runner_output"):  # of vLLM's first runner, and of its second
        output = getattr(output, name, output)
    return output
