"""A line on the terminal for work that takes longer than expected."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 1.0
"""Seconds before anything is shown."""


@contextmanager
def slow(what: str, patience: float = PATIENCE) -> Iterator[None]:
    """Shows ``what`` with the seconds it has taken, on standard error and where that is a terminal, from ``patience``
    seconds on; the line goes away when the block ends."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    done = threading.Event()
    begun = time.monotonic()

    def show() -> None:
        if done.wait(patience):
            return
        with console.status("") as status:
            while not done.wait(0.2):
                status.update(f"{what}: {time.monotonic() - begun:.0f} s")

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
