"""The middleware that ``--middleware`` names: reports in streams, metrics and a gentle shutdown for vLLM's server.

Opt in by class path: ``textguide.logits_processors.vllm_plugin.middleware.Guided``. ``textguide serve`` does.
"""

from __future__ import annotations

from typing import Any

from . import operations
from .server import prepare, watch

prepare()


class Guided:
    """Wraps vLLM's application, and watches its engine from the first message on, with which a server starts.

    Args:
        app: an ASGI application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._gate: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, as ASGI defines it."""
        if self._gate is None:
            self._gate = self._watched(scope["app"].state)
        await self._gate(scope, receive, send)

    def _watched(self, state: Any) -> Any:
        client = getattr(state, "engine_client", None)
        if client is None:  # a front end without an engine
            return self.app
        watch(client, state.args.enable_log_requests)
        return operations.Gate(self.app, operations.draining(client))
