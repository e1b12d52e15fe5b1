"""What a compiler process does in tests."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any


def handler(setup: str) -> Callable[[Any], Any]:
    """Jobs are pairs of a name and a value."""

    def run(job: list[Any]) -> Any:
        name, value = job
        if name == "hang":  # in C, where no signal handler and no other thread of Python runs
            re.fullmatch("(a+)+", "a" * 40 + "b")
        if name == "allocate":
            return len(bytearray(value))
        if name == "sleep":
            time.sleep(value)
        if name == "refuse":
            raise ValueError(value)
        if name == "recurse":
            return run(job)
        if name == "fail":
            raise KeyError(value)
        return {"setup": setup, "value": value, "process": os.getpid()}

    return run


def slow_handler(setup: str) -> Callable[[Any], Any]:
    """The same, after a while."""
    time.sleep(4 * 0.5)
    return handler(setup)
