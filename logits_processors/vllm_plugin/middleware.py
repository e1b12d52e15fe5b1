"""The middleware that ``--middleware`` names: guidance at the top level of requests, reports in streams, metrics and a
gentle shutdown for vLLM's server.

Opt in by class path: ``textguide.logits_processors.vllm_plugin.middleware.Guided``. ``textguide serve`` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import HTTPException, Request
from starlette._utils import get_route_path
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from textguide.serving.access import HostGuard, host_names
from textguide.serving.compilers import Compilers
from textguide.serving.errors import BusyError
from textguide.serving.limits import Limits

from . import compiling, operations
from .processor import RefusedError
from .request_fields import gather
from .server import prepare, watch
from .validation import refusing

prepare()


def fields_reader(compilers: Compilers | None, drains: Callable[[], bool]) -> Callable[[Request], Awaitable[None]]:
    """A function that takes the arguments of guidance out of the body of a request, after vLLM's own check of its type,
    and compiles its constraint.

    vLLM calls it in place of its check. The parsed body is the same object that vLLM reads afterwards.

    Args:
        compilers: compile constraints; None if the engine has no tokenizer.
        drains: whether the server drains. Its engine does not wait for requests that it has not seen.
    """

    async def read_fields(raw_request: Request) -> None:
        await validate_json_request(raw_request)
        with refusing(RefusedError):
            try:
                body = await raw_request.json()
                gather(body, get_route_path(raw_request.scope), raw_request.query_params)
                if compilers is not None:
                    await compiling.compile_constraint(body, compilers)
            except RecursionError:
                raise ValueError("the request is nested too deeply; send less") from None
            except BusyError as error:
                raise HTTPException(429, str(error), headers={"Retry-After": "3"}) from None
        if drains():
            raise HTTPException(503, operations.ABOUT_TO_STOP, headers={"Retry-After": "5"})

    return read_fields


def compilers_of(client: Any, arguments: Any) -> Compilers | None:
    """The processes that compile constraints for an engine; None if it has no tokenizer.

    Args:
        client: vLLM's ``AsyncLLM``.
        arguments: of the server.
    """
    tokenizer = client.input_processor.tokenizer
    if tokenizer is None:
        return None
    limits = Limits()
    for name in ("constraint_seconds", "constraint_bytes"):
        limits = replace(limits, **{name: getattr(arguments, name, getattr(limits, name))})
    size = client.vllm_config.model_config.get_vocab_size()
    return Compilers(compiling.HANDLER, partial(compiling.setup, tokenizer, size), limits)


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
            self._gate = self._watched(scope["app"])
        await self._gate(scope, receive, send)

    def _watched(self, application: Any) -> Any:
        state = application.state
        client = getattr(state, "engine_client", None)
        if client is None:  # a front end without an engine
            return self.app
        watch(client, state.args.enable_log_requests)
        compilers = compilers_of(client, state.args)
        drains = operations.draining(client)
        application.dependency_overrides[validate_json_request] = fields_reader(compilers, drains)
        if compilers is not None:
            application.state.textguide_compilers = asyncio.create_task(compilers.start())  # a reference keeps it
        gate = operations.Gate(self.app, drains)
        names = host_names(state.args.host or "", getattr(state.args, "allowed_host", ()))
        return gate if state.args.uds else HostGuard(gate, names)
