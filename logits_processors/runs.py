"""Telling one ``generate`` call from the next inside a logits processor."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from transformers import LogitsProcessorList

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
        key = id(owner)
        held = self._held.get(key)
        if held is not None and (owner is None or held[0]() is owner) and continues(held[1]):
            return held[1]
        state = new()
        reference = None if owner is None else weakref.ref(owner, functools.partial(self._forget, key))
        self._held[key] = (reference, state)
        return state

    def _forget(self, key: int, _: Any) -> None:
        self._held.pop(key, None)


def calling_list() -> LogitsProcessorList | None:
    """To be used in a processor's ``__call__``: the list that is calling it, or None where something else does."""
    owner = sys._getframe(2).f_locals.get("self")
    return owner if isinstance(owner, LogitsProcessorList) else None
