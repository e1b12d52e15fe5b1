"""Starting the page on a port of this machine."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Mapping
from typing import Any

from ..serving.rules import Rules
from ..support.errors import GuidanceHadNoEffectWarning
from .models import Models, small_models


def load_models(name: str, pair: tuple[Any, Any], further: Mapping[str, Any] | None = None) -> Models:
    """The models of a page, with the small bundled ones if they share the model's tokens. The model has generated a few
    tokens, so that the first visitor does not wait for its first use.

    Args:
        name: name of the model.
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


def mounted_page(name: str, host: str) -> Any:
    """The page as an application that another server mounts, with the model ``name`` on the CPU.

    Args:
        host: the address that the other server listens on; empty: all addresses.
    """
    from ..models.loading import load
    from .server import application

    return application(load_models(name, load(name, device="cpu")), Rules(), host)


def serve(models: Models, rules: Rules, host: str, sock: socket.socket) -> None:
    """Serve until interrupted."""
    import uvicorn

    from .server import application

    app = application(models, rules, host)
    warnings.simplefilter("ignore", GuidanceHadNoEffectWarning)  # the page shows it
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, server_header=False)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            app.state.runs.end()  # before uvicorn waits for the connections of running runs
            super().handle_exit(sig, frame)

    Server(config).run(sockets=[sock])
