"""One model for several clients: how many runs there may be, and how they take turns."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from .errors import BusyError


class RunSlots:
    """Threads for runs.

    Args:
        running: runs at the same time.
        waiting: further runs that may wait for a thread.
        name: prefix of the threads' names.
    """

    def __init__(self, running: int, waiting: int = 0, name: str = "run") -> None:
        self.most = running + waiting
        self._slots = threading.BoundedSemaphore(self.most)
        self._executor = ThreadPoolExecutor(running, thread_name_prefix=name)

    @property
    def free(self) -> int:
        """How many more runs may be started."""
        return self._slots._value

    def take(self) -> Callable[[], None]:
        """Take a slot; the result frees it when it is called for the first time.

        Raises:
            BusyError: all slots are taken.
        """
        if not self._slots.acquire(blocking=False):
            raise BusyError(f"{self.most} runs are in progress or waiting already; try again when one has ended")
        lock = threading.Lock()

        def free() -> None:
            if lock.acquire(blocking=False):  # and never released
                self._slots.release()

        return free

    def start(self, work: Callable[[], Any], free: Callable[[], None] | None = None) -> asyncio.Future[Any]:
        """Call ``work`` in a thread; the future has its result. The slot is free at its end.

        Args:
            free: what :meth:`take` returned, if the slot may be freed earlier: the next run then waits until a thread
                has ended.

        Raises:
            BusyError: all slots are taken.
        """
        free = self.take() if free is None else free

        def run() -> Any:
            try:
                return work()
            finally:
                free()

        return asyncio.get_running_loop().run_in_executor(self._executor, run)

    def close(self) -> None:
        """Start no further runs; those that have started continue."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Turns:
    """A lock whose holders are served in the order in which they asked for it, and that its holder can yield."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()  # the first ticket is the holder's

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
        """Let all others go first. Call it in the thread that holds the lock; it returns when that thread holds the
        lock again."""
        with self._changed:
            ticket = self._waiting[0]
            self._waiting.rotate(-1)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting[0] is ticket)
