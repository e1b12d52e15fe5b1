"""One model for several visitors: runs take turns, a step each, and end when nobody waits for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class VisitorLeftError(Exception):
    """Raised inside a run whose visitor has gone."""


class Turns:
    """A lock that is handed on in the order in which it was asked for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket)
        try:
            yield
        finally:
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def pass_on(self) -> None:
        """Let the others go first; returns when it is this one's turn again. For the thread that holds the lock."""
        with self._changed:
            ticket = self._waiting[0]
            self._waiting.rotate(-1)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting[0] is ticket)


class Attention:
    """A stopping criterion of transformers that ends nothing, and calls a function at every step."""

    def __init__(self, attend: Callable[[], None]) -> None:
        self._attend = attend

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """False for every row, bool (B,)."""
        self._attend()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
