"""The progress bars of commands, on standard error."""

from __future__ import annotations

import sys
from typing import Any


class PromptProgress:
    """Shows how much of a long prompt was read; call it with the number of tokens that were read and of all tokens.

    Args:
        bar: the bars to add one to; None: a bar that is only there while prompts are read.
    """

    def __init__(self, bar: Any = None) -> None:
        self.is_own = bar is None
        self.bar = progress_bar() if bar is None else bar
        self.task: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self.task is None:
            self.bar.start()
            self.task = self.bar.add_task("reading the prompt", total=total)
        self.bar.update(self.task, completed=done)
        if done < total:
            return
        self.bar.remove_task(self.task)
        self.task = None
        if self.is_own:
            self.bar.stop()


def progress_bar(shown: bool = True, transient: bool = True) -> Any:
    """Bars with counts and the remaining time, for a ``with`` statement.

    Args:
        shown: False disables them; they are also disabled if standard error is not a terminal.
        transient: whether they disappear at the end.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=transient,
        disable=not shown or not sys.stderr.isatty(),
    )
