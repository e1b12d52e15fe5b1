"""What a worker saw, reported to the scheduler: vLLM's own messages have no room for it. Knows no vLLM.

A file in a private folder, on one machine. A worker writes before it returns its tokens, and the scheduler reads when
it gets those, so the two take turns. (A socket would make a worker wait where it is full.)
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any


def _folder(engine: str) -> Path:
    return Path(tempfile.gettempdir()) / f"textguide-{os.getuid()}-{engine}"


class Listener:
    """The scheduler's end."""

    def __init__(self, engine: str) -> None:
        self.folder = _folder(engine)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700)
        self.file = os.open(self.folder / "seen", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def receive(self) -> dict[str, dict[str, Any]]:
        """Everything that arrived, by group; of several messages about a group the last."""
        size = os.fstat(self.file).st_size
        if not size:
            return {}
        lines = os.pread(self.file, size, 0).splitlines()
        os.ftruncate(self.file, 0)
        seen: dict[str, dict[str, Any]] = {}
        for line in lines:
            seen.update(json.loads(line))
        return seen

    def close(self) -> None:
        """Remove the file and its folder."""
        os.close(self.file)
        shutil.rmtree(self.folder, ignore_errors=True)


class Sender:
    """A worker's end; it finds the scheduler's when there is something to send."""

    def __init__(self, engine: str) -> None:
        self.path = _folder(engine) / "seen"
        self.file: int | None = None

    def send(self, seen: dict[str, dict[str, Any]]) -> None:
        """Send what was seen of each group."""
        if self.file is None:
            self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        data = json.dumps(seen).encode() + b"\n"
        while data:
            data = data[os.write(self.file, data) :]
