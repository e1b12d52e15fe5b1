"""A masked diffusion model over HTTP: OpenAI's completions and chats, with the canvas step by step in streams."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ...engine.results import before
from ...serving.access import has_key
from ...serving.compilers import Compilers
from ...serving.errors import BusyError, ClientLeftError, RefusedError, error_message
from ...serving.requests import model_names, read_json
from ...serving.rules import Rules
from ...serving.turns import RunSlots
from ...support import __version__
from ..denoisers import Denoiser, denoiser
from ..pass_pool import PassPool
from ..results import DiffusionResult
from . import compiling
from .compiling import compile_constraints
from .requests import CanvasRequest, field_of, request_of

Send = Callable[[dict[str, Any]], None]
HEARTBEAT = 0.25
"""Seconds between two checks whether the client of a silent run is still connected."""


@dataclass(frozen=True)
class Answer:
    """The text of one row.

    Args:
        text: up to the end token, or the first text of ``stop``.
        reason: ``stop`` or ``length``.
        tokens: tokens that were filled in, up to and including the end token.
        verdict: for models whose rows have one format: ``valid``, and ``problem`` if the text is not; else empty.
    """

    text: str
    reason: str
    tokens: int
    verdict: Mapping[str, Any] = field(default_factory=dict)


class CanvasService:
    """One model and the runs on it, whose passes are joined.

    Args:
        name: what clients call the model.
        model: a masked diffusion model.
        tokenizer: its tokenizer.
        further: models that branches may run, by name: pairs of a model and a tokenizer.
        runs: requests that are filled at the same time.
        waiting: requests that may wait for one of these places; further ones are refused.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        further: Mapping[str, tuple[Any, Any]] | None = None,
        runs: int = 32,
        waiting: int = 1000,
    ) -> None:
        self.name = name
        self.started = int(time.time())
        self.pool = PassPool(denoiser(model, tokenizer))
        self.further = {role: PassPool(denoiser(*pair)) for role, pair in (further or {}).items()}
        self.tokenizer = self.pool.model.tokenizer
        self._slots = RunSlots(runs, waiting, "canvas")
        self._ending = threading.Event()

    def start(self, work: Callable[[threading.Event], Any]) -> tuple[asyncio.Future[Any], threading.Event]:
        """Call ``work`` in a thread, with an event that is to be set when its client has left.

        Raises:
            BusyError: too many requests wait already.
        """
        left = threading.Event()

        def run() -> Any:
            self._check_client(left)
            return work(left)

        return self._slots.start(run), left

    def _check_client(self, left: threading.Event) -> None:
        if left.is_set() or self._ending.is_set():
            raise ClientLeftError

    def answer(self, request: CanvasRequest, left: threading.Event, send: Send | None = None) -> list[Answer]:
        """Fill the canvas of a request.

        Args:
            left: set when the client has left.
            send: called with the canvas after every step, for a stream.

        Raises:
            ValueError: the model cannot do what the request asks for.
            ClientLeftError: the client has left.
        """
        with ExitStack() as stack:

            def check_client() -> None:
                self._check_client(left)

            model = stack.enter_context(self.pool.run(check_client))
            # Only the pools of models that this request runs are entered: a pass waits for every run in its pool.
            used = model_names(request.guidance)
            models = {
                role: stack.enter_context(pool.run(check_client)) if role in used else pool.model
                for role, pool in self.further.items()
            }
            run = request.run(model, models)
            if send is None:
                return answers_of(run.result(warn=False), request)
            sampler = run.sampler()
            for step in sampler.run():
                check_client()
                send({"step": step.index, "rows": shown_rows(model, step.ids, sampler.canvas.target)})
            return answers_of(run.finish(sampler), request)

    def prompt_tokens(self, request: CanvasRequest) -> int:
        """Tokens of all prompts."""
        return sum(len(self.pool.model.encode(prompt)) for prompt in request.prompts)

    def close(self) -> None:
        """End all runs at their next pass."""
        self._ending.set()
        self._slots.close()
        for pool in (self.pool, *self.further.values()):
            pool.close()


def answers_of(result: DiffusionResult, request: CanvasRequest) -> list[Answer]:
    """The rows of a result as answers. An infilled text is complete, which OpenAI's clients read as ``stop``."""
    answers = []
    verdicts = [{"valid": problem is None, "problem": problem} for problem in result.problems]
    rows = zip(result.texts, result.new_tokens, result.finish_reasons, strict=True)
    for number, (text, tokens, reason) in enumerate(rows):
        cut = before(text, request.stop)
        ended = reason == "eos" or len(cut) < len(text) or request.infill
        answers.append(Answer(cut, "stop" if ended else "length", len(tokens), verdicts[number] if verdicts else {}))
    return answers


def shown_rows(model: Denoiser, ids: Any, targets: Any) -> list[list[str | None]]:
    """The canvas token by token; None for a mask."""
    return [
        [None if token == model.mask_id else model.tokenizer.decode([token]) for token in row[target].tolist()]
        for row, target in zip(ids, targets, strict=True)
    ]


def application(service: CanvasService, rules: Rules, api_key: str | None = None) -> FastAPI:
    """The application.

    Args:
        service: the model.
        rules: what requests may ask for.
        api_key: clients must send it as a bearer token; None: no key is needed.
    """

    compilers = Compilers(compiling.HANDLER, partial(compiling.setup, service.pool.model, rules), rules.limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(compilers.start())
        yield
        starting.cancel()
        compilers.close()
        service.close()

    app = FastAPI(
        title="textguide, masked diffusion",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
    )

    async def health() -> Response:
        return Response()

    async def models(request: Request) -> Response:
        if not has_key(request.headers, api_key):
            return key_missing()
        one = {"id": service.name, "object": "model", "created": service.started, "owned_by": "textguide"}
        return JSONResponse({"object": "list", "data": [one]})

    app.add_api_route("/health", health)
    app.add_api_route("/v1/models", models)
    for path, chat in (("/v1/completions", False), ("/v1/chat/completions", True)):
        app.add_api_route(path, _endpoint(service, rules, compilers, api_key, chat), methods=["POST"])
    return app


def _endpoint(
    service: CanvasService, rules: Rules, compilers: Compilers, api_key: str | None, chat: bool
) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        if not has_key(request.headers, api_key):
            return key_missing()
        try:
            return await _respond(service, rules, compilers, chat, request)
        except ClientLeftError:
            return Response(status_code=499)
        except BusyError as error:
            return failed(error_message(error), 429)
        except ValueError as error:
            return failed(error_message(error), 400, field_of(error, chat))
        except RecursionError as error:
            return failed(error_message(error), 400)
        except Exception as error:
            return failed(error_message(error), 500)

    return respond


async def _respond(
    service: CanvasService, rules: Rules, compilers: Compilers, chat: bool, request: Request
) -> Response:
    for name in request.query_params:
        raise RefusedError(f"{name[:60]!r} is in the address; send it in the body", name[:60])
    values = await read_json(request.stream(), rules.limits.body)
    if values.get("model") not in (None, service.name):
        return failed(f"The model {str(values['model'])[:80]!r} does not exist.", 404, "model")
    await compile_constraints(values, compilers)
    # In a thread, since it compiles the constraint and reads the prompts.
    canvas_request = await asyncio.to_thread(_checked_request, service, values, rules, chat)
    if canvas_request.stream:
        events = await start_stream(service, canvas_request, request)
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    answers = await answers_for(service, canvas_request, request)
    return JSONResponse(whole_answer(service, canvas_request, answers))


def _checked_request(service: CanvasService, values: Mapping[str, Any], rules: Rules, chat: bool) -> CanvasRequest:
    canvas_request = request_of(values, rules, chat)
    check_lengths(service, canvas_request, rules)
    return canvas_request


def check_lengths(service: CanvasService, request: CanvasRequest, rules: Rules) -> None:
    """Refuse prompts that are too long before they wait for a place.

    Raises:
        ValueError: a prompt is too long, or the model cannot read it.
    """
    if request.chat and not getattr(service.tokenizer, "chat_template", None):
        raise RefusedError("the model's tokenizer has no chat template; use /v1/completions")
    for prompt in request.prompts:
        tokens = len(service.pool.model.encode(prompt))
        if tokens > rules.limits.prompt_tokens:
            raise RefusedError(f"a prompt has {tokens} tokens; {rules.limits.prompt_tokens} at most")


async def answers_for(service: CanvasService, canvas_request: CanvasRequest, request: Request) -> list[Answer]:
    """The answers to a request; its run ends when the client leaves.

    Raises:
        BusyError: too many requests wait already.
        ClientLeftError: the client has left.
    """
    future, left = service.start(lambda left: service.answer(canvas_request, left))
    try:
        while True:
            done, _ = await asyncio.wait({future}, timeout=HEARTBEAT)
            if done:
                return list(future.result())
            if await request.is_disconnected():
                raise ClientLeftError
    finally:
        left.set()


async def start_stream(service: CanvasService, canvas_request: CanvasRequest, request: Request) -> AsyncIterator[str]:
    """The events of a run. Returns after its first step, so that an error before it gets an HTTP status.

    Raises:
        ValueError: the model cannot do what the request asks for.
        BusyError: too many requests wait already.
        ClientLeftError: the client has left.
    """
    loop = asyncio.get_running_loop()
    queue = asyncio.Queue[Any]()

    def put(value: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, value)

    def work(left: threading.Event) -> None:
        try:
            put(service.answer(canvas_request, left, put))
        except Exception as error:
            put(error)

    _, left = service.start(work)
    while True:
        try:
            first = await asyncio.wait_for(queue.get(), HEARTBEAT)
            break
        except asyncio.TimeoutError:
            if await request.is_disconnected():
                left.set()
                raise ClientLeftError from None
    if isinstance(first, Exception):
        raise first
    return _events(service, canvas_request, first, queue, left)


async def _events(
    service: CanvasService, request: CanvasRequest, value: Any, queue: asyncio.Queue[Any], left: threading.Event
) -> AsyncIterator[str]:
    """Server-sent events: the canvas after each step, the whole text of each row, usage, ``[DONE]``.

    Args:
        value: the first value of the queue: a canvas, the answers, or an error.
    """
    head = head_of(service, request, stream=True)
    try:
        while isinstance(value, dict):
            yield event({**head, "choices": [], "canvas": value})
            value = None
            while value is None:
                try:
                    value = await asyncio.wait_for(queue.get(), HEARTBEAT)
                except asyncio.TimeoutError:
                    yield ": still here\n\n"
        if isinstance(value, ClientLeftError):
            return
        if isinstance(value, Exception):
            is_refused = isinstance(value, ValueError)
            field = field_of(value, request.chat) if is_refused else None
            yield event(error_of(error_message(value), 400 if is_refused else 500, field))
        else:
            for row, answer in enumerate(value):
                yield event({**head, "choices": [choice(request, row, answer, stream=True)], **report_of(request)})
            if request.usage:
                yield event({**head, "choices": [], "usage": usage_of(service, request, value)})
        yield "data: [DONE]\n\n"
    finally:
        left.set()


def whole_answer(service: CanvasService, request: CanvasRequest, answers: Sequence[Answer]) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    choices = [choice(request, row, answer) for row, answer in enumerate(answers)]
    usage = usage_of(service, request, answers)
    return {**head_of(service, request), "choices": choices, "usage": usage, **report_of(request)}


def head_of(service: CanvasService, request: CanvasRequest, stream: bool = False) -> dict[str, Any]:
    """The fields that every answer and event has."""
    name = "text_completion"
    if request.chat:
        name = "chat.completion.chunk" if stream else "chat.completion"
    prefix = "chatcmpl" if request.chat else "cmpl"
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": name, "created": int(time.time()), "model": service.name}


def choice(request: CanvasRequest, row: int, answer: Answer, stream: bool = False) -> dict[str, Any]:
    """One row of an answer."""
    text: dict[str, Any] = {"text": answer.text}
    if request.chat:
        text = {"delta" if stream else "message": {"role": "assistant", "content": answer.text}}
    return {"index": row, **text, "logprobs": None, "finish_reason": answer.reason, **answer.verdict}


def report_of(request: CanvasRequest) -> dict[str, Any]:
    """Whether the texts are guided, in the field that the server of left-to-right models uses for its report."""
    return {"kv_transfer_params": {"textguide": {"guided": request.guided}}}


def usage_of(service: CanvasService, request: CanvasRequest, answers: Sequence[Answer]) -> dict[str, int]:
    """Numbers of tokens."""
    prompt = service.prompt_tokens(request)
    written = sum(answer.tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def error_of(message: str, status: int, field: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it; ``field`` is the field of the request that it is about."""
    kinds = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError"}
    kind = kinds.get(status, "InternalServerError")
    return {"error": {"message": message, "type": kind, "param": field, "code": status}}


def failed(message: str, status: int, field: str | None = None) -> Response:
    """An error as a response."""
    return JSONResponse(error_of(message, status, field), status)


def key_missing() -> Response:
    """The response to a client without the API key."""
    return failed("the API key is missing or wrong", 401)


def event(value: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
