"""Runs in threads of their own, whose events travel to the visitor; a run ends when its visitor leaves."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..serving.messages import BusyError, message_of
from ..serving.turns import Turns, VisitorLeftError

HEARTBEAT = 0.5
"""Seconds after which a silent run sends a comment, by which the server sees whether its visitor is there."""


class Runs:
    """All runs of one page.

    Args:
        most: how many at once.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.turns = Turns()
        self._ending = threading.Event()
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="playground")
        self._places = threading.BoundedSemaphore(most)

    @property
    def free(self) -> int:
        """How many more may start."""
        return self._places._value

    def _start(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        if not self._places.acquire(blocking=False):
            raise BusyError(f"{self.most} runs are going already; wait until one of them ends")

        def placed() -> Any:
            try:
                with self.turns.turn():
                    return work()
            finally:
                self._places.release()

        return asyncio.get_running_loop().run_in_executor(self._pool, placed)

    async def once(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives.

        Raises:
            BusyError: there is no place for it.
        """
        return await self._start(work)

    def stream(self, run: Callable[[Callable[[str, Any], None]], None]) -> AsyncIterator[str]:
        """The events of a run as lines of server-sent events; it starts at once.

        Args:
            run: called with what sends an event; events without a name are not sent, and let others have their turn.

        Raises:
            BusyError: there is no place for it.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        left = threading.Event()

        def put(event: tuple[str, Any] | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        def send(kind: str, data: Any) -> None:
            if left.is_set() or self._ending.is_set():
                raise VisitorLeftError
            if kind:
                put((kind, data))
            self.turns.pass_on()

        def work() -> None:
            try:
                run(send)
            except VisitorLeftError:
                pass
            except Exception as error:
                put(("error", {"error": message_of(error)}))
            finally:
                put(None)

        self._start(work)

        async def lines() -> AsyncIterator[str]:
            try:
                while True:
                    try:
                        event = await asyncio.wait_for(events.get(), HEARTBEAT)
                    except asyncio.TimeoutError:
                        if self._ending.is_set():
                            return
                        yield ": still here\n\n"
                        continue
                    if event is None:
                        return
                    kind, data = event
                    yield f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
            finally:
                left.set()

        return lines()

    def end(self) -> None:
        """End all runs at their next step; for a server that stops."""
        self._ending.set()

    def close(self) -> None:
        """Take no more runs."""
        self.end()
        self._pool.shutdown(wait=False, cancel_futures=True)
