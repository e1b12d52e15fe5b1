"""The page on a port of this machine."""

from __future__ import annotations

import importlib.util
import socket
import warnings
from collections.abc import Mapping
from typing import Any

from ..support.errors import GuidanceHadNoEffectWarning, MissingExtraError
from .asking import Rules
from .models import Models, small_models


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


def loaded(name: str, pair: tuple[Any, Any], further: Mapping[str, Any] | None = None) -> Models:
    """The models of a page, with the bundled small ones where they fit; the model has read a few tokens.

    Args:
        name: what the model is called.
        pair: the model and its tokenizer.
        further: further models by name.
    """
    from ..generation import generate

    model, tokenizer = pair
    given = {role: (lambda other=other: other) for role, other in (further or {}).items()}
    models = Models(name, model, tokenizer, {**small_models(name), **given})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generate(model, tokenizer, ["The dragon"], "cfg:scale=1.5", max_new_tokens=2)
    return models


def beside(name: str, host: str) -> Any:
    """The page as an application that another server mounts, with the model ``name`` on the CPU.

    Args:
        host: the address that the other server listens on; empty: all of them.
    """
    from ..models.loading import load
    from .server import application

    return application(loaded(name, load(name, device="cpu")), Rules(), host)


def serve(models: Models, rules: Rules, host: str, sock: socket.socket) -> None:
    """Serve until interrupted."""
    import uvicorn

    from .server import application

    app = application(models, rules, host)
    warnings.simplefilter("ignore", GuidanceHadNoEffectWarning)  # the page says it
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, server_header=False)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            app.state.runs.end()  # before the connections that wait for them are closed
            super().handle_exit(sig, frame)

    Server(config).run(sockets=[sock])
