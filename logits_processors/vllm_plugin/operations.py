"""What a server needs to be run: figures behind the key, an end that loses no answer, a line for each request.

Knows no vLLM but the names of what it is handed.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from .extras import OURS

GUARDED = ("/metrics",)
"""Paths that ask for the key where one is set, beside those that vLLM guards."""
OPEN_WHILE_DRAINING = ("/metrics",)
DRAIN_SECONDS = 30
"""How long a server that was told to stop goes on with the requests that it has, where ``--shutdown-timeout`` says
nothing else."""
# Below vLLM's logger, whose handlers and format it has.
logger = logging.getLogger("vllm.textguide")


def guard(authentication: Any) -> None:
    """Ask for the key in front of what tells of all requests.

    Args:
        authentication: vLLM's module that has the prefixes of guarded paths.
    """
    prefixes = tuple(authentication.GUARDED_PREFIX)
    authentication.GUARDED_PREFIX = (*prefixes, *(path for path in GUARDED if path not in prefixes))


def draining(client: Any) -> Callable[[], bool]:
    """Whether an engine was told to stop: vLLM then lets it finish what it has, and takes in nothing more.

    Args:
        client: vLLM's ``AsyncLLM``; its ``shutdown`` waits until the requests are done.
    """
    begun, stop = threading.Event(), client.shutdown

    def shutdown(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        return stop(*args, **kwargs)

    client.shutdown = shutdown
    return begun.is_set


class Gate:
    """Turns requests away while the server drains: HTTP 503, so that a load balancer sends them elsewhere.

    Args:
        app: an ASGI application.
        drains: whether it does.
    """

    def __init__(self, app: Any, drains: Callable[[], bool]) -> None:
        self.app, self.drains = app, drains

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI has it."""
        if scope["type"] != "http" or not self.drains() or scope["path"] in OPEN_WHILE_DRAINING:
            await self.app(scope, receive, send)
            return
        message = "the server is about to stop and takes no more requests; send it to another one"
        body = json.dumps({"error": {"message": message, "type": "ServiceUnavailableError", "code": 503}}).encode()
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"5"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def log_ends(outputs: Any) -> None:
    """Write a line of log for each guided request that ended, with its report as fields where the log is JSON.

    Args:
        outputs: vLLM's ``OutputProcessor``.
    """
    process = outputs.process_outputs

    def process_outputs(engine_outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        reports = {one.request_id: (one.kv_transfer_params or {}).get(OURS) for one in engine_outputs}
        guided = {name: report for name, report in reports.items() if report is not None}
        states = {name: outputs.request_states.get(name) for name in guided}
        result = process(engine_outputs, *args, **kwargs)
        for name, report in guided.items():
            if states[name] is not None and name not in outputs.request_states:
                fields = {"request": states[name].external_req_id, "choice": states[name].request_index, **report}
                logger.info("guided request ended: %s", json.dumps(fields), extra={OURS: fields})
        return result

    outputs.process_outputs = process_outputs


def log_refusal(error: ValueError) -> None:
    """Write a line of log for a guided request that was answered with HTTP 400."""
    logger.info("guided request refused: %s", error, extra={OURS: {"refused": str(error)}})
