"""Constraints of requests, compiled in processes that are killed at a deadline.

A pattern of 25 characters may take ten seconds to compile, and an enumeration of 200,000 texts many minutes. A thread
cannot be stopped meanwhile, so a server compiles a constraint that it does not know in a process of its own
(``compiler_process.py``), and its event loop only waits for the verdict.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import BusyError, RefusedError
from .limits import Limits

BEGUN = b"+"
"""What the process of a job sends first; one that is killed sends nothing more."""
MOST_KEPT = 256
"""Verdicts that are kept, by a hash of what was compiled."""
RETRY_SECONDS = 60.0
"""Seconds after which a constraint that exceeded a limit is tried again, since the machine may have been busy."""
UNAVAILABLE = "constraints cannot be compiled at the moment; try again in a few seconds"
STARTING = 120.0
"""Seconds after which a process that does not start is given up."""


class Compilers:
    """Compiles what requests bring, with a deadline, a size limit, a memory limit and a cache.

    One process is started with the server. It has loaded everything, and forks for every constraint. The fork is killed
    at the deadline by its own timer, and the first process ends when the server does.

    Args:
        function: ``MODULE:NAME``. It is called once with the setup and returns the function that is called with every
            job, a JSON value, and returns another one, or raises a ``ValueError`` that explains a refusal.
        setup: makes the JSON value that ``function`` needs, in a thread.
        limits: ``constraint_bytes``, ``constraint_seconds`` and ``constraint_memory``.
        processes: jobs at the same time; further ones wait for as long as two may take.
    """

    def __init__(self, function: str, setup: Callable[[], Any], limits: Limits, processes: int = 2) -> None:
        self.function = function
        self.limits = limits
        self._setup = setup
        self._slots = asyncio.Semaphore(processes)
        self._starting = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._verdicts: OrderedDict[str, Mapping[str, Any]] = OrderedDict()

    @property
    def kept(self) -> int:
        """Number of verdicts that are kept."""
        return len(self._verdicts)

    def check_size(self, field: str, text: str) -> None:
        """Refuse a text that is too long to be compiled.

        Raises:
            RefusedError: it is.
        """
        size = len(text.encode(errors="surrogatepass"))
        if size > self.limits.constraint_bytes:
            raise RefusedError(
                f"{field} has {size:,} bytes, and this server compiles constraints of up to "
                f"{self.limits.constraint_bytes:,}; shorten it, or raise --constraint-bytes",
                field,
            )

    async def check(self, field: str, job: Any, others: Sequence[str] = ()) -> Any:
        """What the function returns for a job.

        Args:
            field: the field of the request that the job is about, for messages.
            job: a JSON value.
            others: further fields in the job. A message that begins with one of them is about that one.

        Raises:
            RefusedError: it cannot be compiled, or not within the limits.
            BusyError: too many are being compiled.
        """
        text = json.dumps(job)
        key = hashlib.sha256(text.encode()).hexdigest()
        verdict = self._known(key) or await self._compile(key, text)
        if "error" in verdict:
            message = verdict["error"]
            field = next((other for other in others if message.startswith(f"{other}=")), field)
            raise RefusedError(message if message.startswith(field) else f"{field}: {message}", field)
        return verdict["value"]

    def _known(self, key: str) -> Mapping[str, Any] | None:
        verdict = self._verdicts.get(key)
        if verdict is None or time.monotonic() > verdict.get("until", math.inf):
            return None
        self._verdicts.move_to_end(key)
        return verdict

    async def _compile(self, key: str, text: str) -> Mapping[str, Any]:
        await self.start()  # loading everything is not counted as waiting for others
        try:
            await asyncio.wait_for(self._slots.acquire(), 2 * self.limits.constraint_seconds)
        except asyncio.TimeoutError:
            raise BusyError("other constraints are being compiled; try again in a few seconds") from None
        try:
            verdict = self._known(key)  # the same may have been compiled while this one waited
            if verdict is None:
                verdict = self._verdicts[key] = await self._verdict(text)
                while len(self._verdicts) > MOST_KEPT:
                    self._verdicts.popitem(last=False)
            return verdict
        except (OSError, asyncio.TimeoutError):
            self.close()  # the next job starts it again
            raise BusyError(UNAVAILABLE) from None
        finally:
            self._slots.release()

    async def _verdict(self, text: str) -> Mapping[str, Any]:
        seconds = self.limits.constraint_seconds
        begin = time.monotonic()
        answer = await asyncio.wait_for(self._answer(text), STARTING)
        if not answer.startswith(BEGUN):
            raise OSError("the process cannot start, or has ended")
        if len(answer) > len(BEGUN):
            verdict: Mapping[str, Any] = json.loads(answer.removeprefix(BEGUN))
            return verdict
        if time.monotonic() - begin >= seconds:
            limit = f"{seconds:g} s of this server (--constraint-seconds)"
        else:
            limit = f"{self.limits.constraint_memory / 1e9:g} GB of memory of this server"
        message = f"compiling the constraint takes more than the {limit}; simplify it"
        return {"error": message, "until": time.monotonic() + RETRY_SECONDS}

    async def _answer(self, text: str) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._address)
        begun = False
        try:
            begun = await reader.read(len(BEGUN)) == BEGUN
            writer.write(text.encode() + b"\n")
            await writer.drain()
            return (BEGUN if begun else b"") + await reader.read()
        except ConnectionError:  # killed before it read everything
            return BEGUN if begun else b""
        finally:
            writer.close()

    @property
    def _address(self) -> str:
        assert self._folder is not None
        return str(Path(self._folder.name) / "socket")

    async def start(self) -> None:
        """Start the process, unless it runs, and wait until it has loaded everything.

        Raises:
            BusyError: it has ended, or has not loaded everything within two minutes.
        """
        async with self._starting:
            if self._process is not None and self._process.poll() is None:
                return
            self.close()
            setup = await asyncio.to_thread(self._setup)
            self._start(json.dumps(setup))
            try:
                await asyncio.wait_for(self._loaded(), STARTING)
            except (OSError, asyncio.TimeoutError):
                self.close()  # the next job starts it again
                raise BusyError(UNAVAILABLE) from None

    async def _loaded(self) -> None:
        """Return when the process takes jobs."""
        reader, writer = await asyncio.open_unix_connection(self._address)
        try:
            if await reader.read(len(BEGUN)) != BEGUN:
                raise OSError("the process has ended")
        finally:
            writer.close()

    def _start(self, setup: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="textguide-", ignore_cleanup_errors=True)
        place = Path(self._folder.name) / "setup.json"
        place.write_text(setup, encoding="utf-8")
        # Bound here, so that jobs can be sent before the process has loaded everything.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            listener.listen(64)
            number = listener.fileno()
            limits = (str(self.limits.constraint_seconds), str(self.limits.constraint_memory))
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.compiler_process", str(number), self.function, place, *limits],
                stdin=subprocess.PIPE,  # it ends when this does, even if this process is killed
                pass_fds=[number],
                start_new_session=True,  # an interrupt in the terminal is for the server alone
                env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            )

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
