"""What running a server needs: metrics that require the key, a shutdown that loses no answer, a log line per request.

Knows no vLLM but the names of what it receives.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from .borrowed_fields import report_of
from .extras import OURS

GUARDED = ("/metrics",)
"""Paths that require the API key if there is one, besides those that vLLM guards."""
OPEN_WHILE_DRAINING = ("/metrics",)
ABOUT_TO_STOP = "the server is about to stop and accepts no more requests; send it to another one"
DRAIN_SECONDS = 30
"""How long a server that is shut down works on the requests that it has, unless ``--shutdown-timeout`` is given."""
# Below vLLM's logger, so that it has the same handlers and format.
logger = logging.getLogger("vllm.textguide")


def guard(authentication: Any) -> None:
    """Require the key for paths that reveal figures of all requests.

    Args:
        authentication: vLLM's module with the prefixes of guarded paths.
    """
    prefixes = tuple(authentication.GUARDED_PREFIX)
    authentication.GUARDED_PREFIX = (*prefixes, *(path for path in GUARDED if path not in prefixes))


def draining(client: Any) -> Callable[[], bool]:
    """Whether an engine is being shut down: vLLM then lets it finish its requests, and accepts no more.

    Args:
        client: vLLM's ``AsyncLLM``; its ``shutdown`` waits until the requests are done.
    """
    begun = threading.Event()
    stop = client.shutdown

    def shutdown(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        return stop(*args, **kwargs)

    client.shutdown = shutdown
    return begun.is_set


class Gate:
    """Refuses requests with HTTP 503 while the server drains, so that a load balancer sends them elsewhere.

    Args:
        app: an ASGI application.
        drains: whether the server drains.
    """

    def __init__(self, app: Any, drains: Callable[[], bool]) -> None:
        self.app = app
        self.drains = drains

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, as ASGI defines it."""
        if scope["type"] != "http" or not self.drains() or scope["path"] in OPEN_WHILE_DRAINING:
            await self.app(scope, receive, send)
            return
        body = json.dumps(
            {"error": {"message": ABOUT_TO_STOP, "type": "ServiceUnavailableError", "code": 503}}
        ).encode()
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"5"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def log_ends(outputs: Any) -> None:
    """Log a line for each guided request that ended, with its report as fields if the log is JSON.

    Args:
        outputs: vLLM's ``OutputProcessor``.
    """
    process = outputs.process_outputs

    def process_outputs(engine_outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        # vLLM forgets the state of a request while it processes the last output.
        guided = {}
        for output in engine_outputs:
            report = report_of(output.kv_transfer_params)
            state = outputs.request_states.get(output.request_id)
            if report is not None and state is not None:
                guided[output.request_id] = (state, report)
        result = process(engine_outputs, *args, **kwargs)
        for name, (state, report) in guided.items():
            if name not in outputs.request_states:
                fields = {"request": state.external_req_id, "choice": state.request_index, **report}
                logger.info("guided request ended: %s", json.dumps(fields), extra={OURS: fields})
        return result

    outputs.process_outputs = process_outputs


def log_refusal(error: ValueError) -> None:
    """Log a line for a guided request that was answered with HTTP 400."""
    logger.info("guided request refused: %s", error, extra={OURS: {"refused": str(error)}})
