"""Runs in threads, whose events are streamed to the visitor; a run ends when its visitor leaves."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch
from torch import Tensor

from ..serving.errors import ClientLeftError, error_message
from ..serving.turns import RunSlots, Turns

HEARTBEAT = 0.5
"""Seconds after which a silent run sends a comment, by which the server notices that its visitor has left."""

Send = Callable[[str, Any], None]
"""Sends an event (a name and JSON values) to the visitor; raises ClientLeftError if the visitor has left."""


class Runs:
    """All runs of one page. They take turns, one step each.

    Args:
        most: runs at the same time.
    """

    def __init__(self, most: int) -> None:
        self.turns = Turns()
        self._ending = threading.Event()
        self._slots = RunSlots(most, name="playground")

    @property
    def free(self) -> int:
        """How many more runs may be started."""
        return self._slots.free

    def _start(self, work: Callable[[], Any], free: Callable[[], None] | None = None) -> asyncio.Future[Any]:
        def run() -> Any:
            with self.turns.turn():
                return work()

        return self._slots.start(run, free)

    async def once(self, work: Callable[[], Any]) -> Any:
        """The result of ``work``.

        Raises:
            BusyError: there are too many runs.
        """
        return await self._start(work)

    def stream(self, run: Callable[[Send], None]) -> AsyncIterator[str]:
        """Start a run; its events are yielded as lines of server-sent events.

        Args:
            run: called with a function that sends an event. An event without a name is not sent, and only lets others
                have their turn.

        Raises:
            BusyError: there are too many runs.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        left = threading.Event()

        def put(event: tuple[str, Any] | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        def check_visitor() -> None:
            if left.is_set() or self._ending.is_set():
                raise ClientLeftError

        def send(name: str, data: Any) -> None:
            check_visitor()
            if name:
                put((name, data))
            self.turns.pass_on()
            check_visitor()

        def work() -> None:
            try:
                check_visitor()
                run(send)
            except ClientLeftError:
                pass
            except Exception as error:
                put(("error", {"error": error_message(error)}))
            finally:
                put(None)

        free = self._slots.take()

        def leave() -> None:
            # The place is free at once; the thread ends at its next step.
            left.set()
            free()

        self._start(work, free)
        return self._lines(events, leave)

    async def _lines(
        self, events: asyncio.Queue[tuple[str, Any] | None], leave: Callable[[], None]
    ) -> AsyncIterator[str]:
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
                name, data = event
                yield f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
        finally:
            leave()

    def end(self) -> None:
        """End all runs at their next step; for a server that stops."""
        self._ending.set()

    def close(self) -> None:
        """Start no further runs."""
        self.end()
        self._slots.close()


class StepCallback:
    """A stopping criterion of transformers that stops nothing, and calls a function at every step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """False for every row, bool (B,)."""
        self._function()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def let_others_run(send: Send) -> list[StepCallback]:
    """Stopping criteria that give other runs their turn at every step."""
    return [StepCallback(lambda: send("", None))]
