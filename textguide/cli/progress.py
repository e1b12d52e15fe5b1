"""The progress bars of commands, on standard error."""

from __future__ import annotations

import sys
from typing import Any


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
