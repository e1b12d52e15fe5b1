"""The state of a logits processor in each ``generate`` call that uses it."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from textguide.engine.caller import GenerateCall

State = TypeVar("State")


class Runs(Generic[State]):
    """The state of every ``generate`` call that is using a processor.

    A ``generate`` call makes a list of processors of its own, which identifies it. Ids alone could not tell a second
    call, whose prompt continues the first one's text, from the next step of the first.
    """

    def __init__(self) -> None:
        self._states: dict[int, tuple[Any, State]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def of(self, call: GenerateCall | None, continues: Callable[[State], bool], new: Callable[[], State]) -> State:
        """The state of a call, made by ``new`` at its first step.

        Args:
            call: the ``generate`` call; None if the processor was called by hand.
            continues: whether a state may belong to the ids at hand.
            new: makes a state.
        """
        owner = None if call is None else call.processors
        # Threads that call a processor by hand have runs of their own.
        key = id(owner) if owner is not None else -threading.get_ident()
        entry = self._states.get(key)
        if entry is not None and (owner is None or entry[0]() is owner) and continues(entry[1]):
            return entry[1]
        state = new()
        reference = None if owner is None else weakref.ref(owner, functools.partial(self._forget, key))
        self._states[key] = (reference, state)
        return state

    def reset(self) -> None:
        """Forget every run."""
        self._states.clear()

    def _forget(self, key: int, _: Any) -> None:
        self._states.pop(key, None)
