"""What a worker saw, told to the scheduler: vLLM's own messages have no room for it. Knows no vLLM.

A datagram socket in a private folder, on one machine: a worker sends before it returns its tokens, so the scheduler
finds everything about a step there when it gets those.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

LARGEST = 60_000
"""Bytes of one datagram, far below what every system takes."""


def _folder(engine: str) -> Path:
    return Path(tempfile.gettempdir()) / f"textguide-{os.getuid()}-{engine}"


class Listener:
    """The scheduler's end."""

    def __init__(self, engine: str) -> None:
        self.folder = _folder(engine)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.socket.bind(str(self.folder / "seen"))
        self.socket.setblocking(False)

    def receive(self) -> dict[str, dict[str, Any]]:
        """Everything that arrived, by pair; of several messages about a pair the last."""
        seen: dict[str, dict[str, Any]] = {}
        while True:
            try:
                message = self.socket.recv(1 << 17)
            except BlockingIOError:
                return seen
            seen.update(json.loads(message))

    def close(self) -> None:
        """Remove the socket and its folder."""
        self.socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Sender:
    """A worker's end; it finds the scheduler's when there is something to send."""

    def __init__(self, engine: str) -> None:
        self.address = str(_folder(engine) / "seen")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def send(self, seen: dict[str, dict[str, Any]]) -> None:
        """Send what was seen of each pair, in as many datagrams as it takes."""
        batch: dict[str, dict[str, Any]] = {}
        size = 0
        for pair, values in seen.items():
            length = len(json.dumps(values)) + len(pair) + 8
            if batch and size + length > LARGEST:
                self.socket.sendto(json.dumps(batch).encode(), self.address)
                batch, size = {}, 0
            batch[pair] = values
            size += length
        if batch:
            self.socket.sendto(json.dumps(batch).encode(), self.address)
