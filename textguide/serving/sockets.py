"""The address that a server listens on."""

from __future__ import annotations

import importlib.util
import socket

from ..support.errors import MissingExtraError


def listen(host: str, port: int) -> socket.socket:
    """A socket for the server, so that a port that is taken is found before a model is loaded.

    Raises:
        MissingExtraError: FastAPI or uvicorn is not installed.
        ValueError: the address is not this machine's, or the port is taken; the message says which to try.
    """
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "playground", "textguide playground")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ValueError(
            f"--host {host} --port {port}: {error.strerror or error}; try another port, or --port 0 for a free one"
        ) from None
    return sock


def address(host: str, sock: socket.socket) -> str:
    """Where a browser finds the page."""
    name = "127.0.0.1" if host in ("0.0.0.0", "") else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
    return f"http://{name}:{sock.getsockname()[1]}/"
