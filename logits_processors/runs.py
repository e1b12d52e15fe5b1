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

    A ``generate`` call makes its own list of processors, which identifies it. Token ids are not sufficient, because the
    prompt of a second call may continue the text of the first one.
    """

    def __init__(self) -> None:
        self._states: dict[int, tuple[Any, State]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def of(self, call: GenerateCall | None, continues: Callable[[State], bool], new: Callable[[], State]) -> State:
        """The state of a call, created by ``new`` at its first step.

        Args:
            call: the ``generate`` call; None if a custom loop called the processor.
            continues: whether a state can belong to the current ids.
            new: creates a state.
        """
        owner = None if call is None else call.processors
        # Custom loops in different threads have different runs.
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
