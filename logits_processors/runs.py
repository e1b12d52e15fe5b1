"""Telling one ``generate`` call from the next inside a logits processor."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Generic, TypeVar

from transformers import GenerationMixin, LogitsProcessorList

State = TypeVar("State")


class Runs(Generic[State]):
    """The state of every ``generate`` call that is using a processor.

    A new ``generate`` call builds a new list of processors. Ids alone could not tell a second call, whose prompt
    continues the first one's text, from the next step of the first.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[Any, State]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def of(
        self, owner: LogitsProcessorList | None, continues: Callable[[State], bool], new: Callable[[], State]
    ) -> State:
        """The state of the run that ``owner`` calls for, made by ``new`` at its first call.

        Args:
            owner: the list that calls the processor; see :func:`calling_list`.
            continues: whether a state may belong to the ids at hand.
            new: makes a state.
        """
        # Threads that call a processor by hand have runs of their own.
        key = id(owner) if owner is not None else -threading.get_ident()
        held = self._held.get(key)
        if held is not None and (owner is None or held[0]() is owner) and continues(held[1]):
            return held[1]
        state = new()
        reference = None if owner is None else weakref.ref(owner, functools.partial(self._forget, key))
        self._held[key] = (reference, state)
        return state

    def reset(self) -> None:
        """Forget every run."""
        self._held.clear()

    def _forget(self, key: int, _: Any) -> None:
        self._held.pop(key, None)


def calling_list() -> LogitsProcessorList | None:
    """To be used in a processor's ``__call__``: the list of the ``generate`` call that is running, or None without one.

    Another processor, a function or a list of the user's own may stand between the two; such a list may live on from
    one ``generate`` call to the next, so that the outermost one counts.
    """
    generate = inspect.unwrap(GenerationMixin.generate).__code__
    call = LogitsProcessorList.__call__.__code__
    found: LogitsProcessorList | None = None
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not generate:
        if frame.f_code is call:
            found = frame.f_locals["self"]
        frame = frame.f_back
    return found
