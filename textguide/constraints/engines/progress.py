"""A line on the terminal for work that takes longer than expected."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 1.0
"""Seconds before anything is shown."""


@contextmanager
def show_if_slow(label: str, patience: float = PATIENCE) -> Iterator[None]:
    """Show ``label`` and the elapsed seconds on standard error once the block has run for ``patience`` seconds.

    Nothing is shown if standard error is not a terminal. The line disappears when the block ends.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    done = threading.Event()
    start = time.monotonic()

    def show() -> None:
        if done.wait(patience):
            return
        with console.status("") as status:
            while not done.wait(0.2):
                status.update(f"{label}: {time.monotonic() - start:.0f} s")

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
