"""The address that a server listens on."""

from __future__ import annotations

import importlib.util
import socket

from ..support.errors import MissingExtraError


def listen(host: str, port: int) -> socket.socket:
    """Bind the socket of a server. Do this before the model is loaded, so that an address in use is reported early.

    Raises:
        MissingExtraError: FastAPI or uvicorn is not installed.
        ValueError: the host is not an address of this machine, or the port is in use; the message names a remedy.
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
    """The URL of the server for a browser on this machine."""
    if host in ("0.0.0.0", ""):
        name = "127.0.0.1"
    elif host == "::":
        name = "[::1]"
    else:
        name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{sock.getsockname()[1]}/"
