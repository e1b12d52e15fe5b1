"""Host names that a server of an API answers to."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from textguide.serving.access import HostGuard, host_names


@pytest.mark.parametrize(
    ("bound", "allowed", "host", "passes"),
    [
        ("127.0.0.1", (), "127.0.0.1:8000", True),
        ("127.0.0.1", (), "LOCALHOST:8000", True),
        ("127.0.0.1", (), "[::1]:8000", True),
        ("127.0.0.1", (), "evil.example:8000", False),
        ("127.0.0.1", (), "localhost.evil.example", False),
        ("127.0.0.1", (), "", False),
        ("127.0.0.2", (), "127.0.0.2", True),
        ("localhost", (), "evil.example", False),
        ("::1", (), "[::1]:8000", True),
        ("::1", (), "evil.example", False),
        ("0.0.0.0", (), "anything.example", True),
        ("", (), "anything.example", True),
        ("10.0.0.3", (), "models.lan", True),
        ("127.0.0.1", ("models.lan",), "Models.lan:80", True),
        ("127.0.0.1", ("models.lan",), "localhost", True),
        ("127.0.0.1", ("*",), "evil.example", True),
        ("0.0.0.0", ("models.lan",), "models.lan", True),
        ("0.0.0.0", ("models.lan",), "localhost", True),
        ("0.0.0.0", ("models.lan",), "evil.example", False),
    ],
)
def test_host_names(bound: str, allowed: tuple[str, ...], host: str, passes: bool) -> None:
    """By default, a server on the loopback has the names of this machine, and any other server all names."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append("answered")

    async def send(message: Any) -> None:
        sent.append(message)

    guard = HostGuard(app, host_names(bound, allowed))
    asyncio.run(guard({"type": "http", "headers": [(b"host", host.encode())]}, None, send))
    assert (sent == ["answered"]) is passes
    if not passes:
        assert sent[0]["status"] == 403
        error = json.loads(sent[1]["body"])["error"]
        assert (error["param"], "--allowed-host NAME" in error["message"]) == ("Host", True)
    sent.clear()
    asyncio.run(guard({"type": "websocket", "headers": [(b"host", host.encode())]}, None, send))
    assert (sent == ["answered"]) is passes
    sent.clear()
    asyncio.run(guard({"type": "lifespan"}, None, send))
    assert sent == ["answered"]
