"""The process of :mod:`textguide.serving.compilers`: it loads everything once, and forks for every job.

A fork starts within milliseconds, and it may be killed at any time without a loss.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..constraints.engines.xgrammar_engine import FOLDER
from ..support.checks import brief_message
from ..support.importing import named_object
from .compilers import BEGUN

NICENESS = 10
"""Jobs yield to the server, which answers everybody else."""


def main(number: int, function: str, place: str, seconds: float, memory: int) -> None:
    """Answer jobs until standard input ends, which it does with the server.

    Args:
        number: of the socket on which jobs arrive.
        function: ``MODULE:NAME``, as for :class:`~.compilers.Compilers`.
        place: the file with the setup.
        seconds: how long a job may take.
        memory: bytes that a job may allocate.
    """
    handler = named_object(function, "function")(json.loads(Path(place).read_text(encoding="utf-8")))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    listener = socket.socket(fileno=number)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:  # the server was killed, and has left its files
            for folder in (Path(place).parent, os.environ.get(FOLDER)):
                if folder:
                    shutil.rmtree(folder, ignore_errors=True)
            return
        connection, _ = listener.accept()
        with connection:
            if os.fork():
                continue
            try:
                connection.sendall(BEGUN)
                _limit(seconds, memory)
                _answer(connection, handler)
            finally:
                os._exit(0)


def _limit(seconds: float, memory: int) -> None:
    """Let the system kill this process after ``seconds``, and refuse it more than ``memory`` bytes."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    with contextlib.suppress(OSError, ValueError):  # not every system counts them
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(connection: socket.socket, handler: Callable[[Any], Any]) -> None:
    with connection.makefile("rb") as lines:
        text = lines.readline()
    if not text:
        return  # the server only asked whether everything is loaded
    try:
        verdict = {"value": handler(json.loads(text))}
    except ValueError as error:
        verdict = {"error": brief_message(str(error))}
    except RecursionError:
        verdict = {"error": "it is nested too deeply; simplify it"}
    except MemoryError:
        return  # reported as the memory limit
    except Exception as error:
        traceback.print_exc()
        verdict = {"error": f"it cannot be compiled ({type(error).__name__})"}
    connection.sendall(json.dumps(verdict).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5]))
