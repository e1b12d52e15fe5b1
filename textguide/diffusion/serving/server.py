"""A masked diffusion model over HTTP: OpenAI's completions and chats, with the canvas step by step in streams."""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ... import __version__
from ...serving.messages import BusyError, message_of
from ...serving.rules import RefusedError, Rules, from_stream, names_of_models
from ...serving.turns import VisitorLeftError
from .. import denoiser, generate, infill
from ..generation import decode, prepared
from ..pass_pool import PassPool
from ..sampling import finished
from .requests import CanvasRequest, cut, request_of

Send = Callable[[dict[str, Any]], None]
HEARTBEAT = 0.25
"""Seconds after which it is seen whether the client of a silent run is there."""


@dataclass(frozen=True)
class Answer:
    """What one row became.

    Args:
        text: up to the end token, or the first stop.
        reason: ``stop`` or ``length``.
        tokens: that were filled in, up to the end token and with it.
    """

    text: str
    reason: str
    tokens: int


class Served:
    """One model and the runs on it, whose passes are joined.

    Args:
        name: what clients call it.
        model: a masked diffusion model.
        tokenizer: its tokenizer.
        further: models that branches may run, by name: pairs of a model and a tokenizer.
        runs: requests that are filled at once.
        waiting: requests that may wait for one of these places; further ones are told to come again.
    """

    def __init__(
        self, name: str, model: Any, tokenizer: Any, further: Mapping[str, tuple[Any, Any]] | None = None,
        runs: int = 32, waiting: int = 1000,
    ) -> None:  # fmt: skip
        self.name, self.started = name, int(time.time())
        self.pool = PassPool(denoiser(model, tokenizer))
        self.further = {role: PassPool(denoiser(*pair)) for role, pair in (further or {}).items()}
        self.tokenizer = self.pool.model.tokenizer
        self._executor = ThreadPoolExecutor(runs, thread_name_prefix="canvas")
        self._places = threading.BoundedSemaphore(runs + waiting)
        self._ending = threading.Event()
        self._most = runs + waiting

    def start(self, work: Callable[[threading.Event], Any]) -> tuple[asyncio.Future[Any], threading.Event]:
        """Run ``work`` in a thread; it is handed an event that says that its client has gone.

        Raises:
            BusyError: too many wait already.
        """
        if not self._places.acquire(blocking=False):
            raise BusyError(f"{self._most} requests are being answered or wait already; come again later")
        left = threading.Event()

        def placed() -> Any:
            try:
                self._attend(left)
                return work(left)
            finally:
                self._places.release()

        return asyncio.get_running_loop().run_in_executor(self._executor, placed), left

    def _attend(self, left: threading.Event) -> None:
        if left.is_set() or self._ending.is_set():
            raise VisitorLeftError

    def answer(self, request: CanvasRequest, left: threading.Event, send: Send | None = None) -> list[Answer]:
        """Fill the canvas of a request; ``send`` is told of every step.

        Raises:
            ValueError: the model cannot do what is asked.
            VisitorLeftError: the client has gone.
        """
        with ExitStack() as stack:

            def attend() -> None:
                self._attend(left)

            model = stack.enter_context(self.pool.run(attend))
            used = names_of_models(request.guidance)  # a pool waits for every run that entered it
            models = {
                role: stack.enter_context(pool.run(attend)) if role in used else pool.model
                for role, pool in self.further.items()
            }
            prompts = list(request.prompts)
            arguments = {"guidance": request.guidance, "models": models, **request.options}
            if request.infill or send is None:
                run = infill if request.infill else generate
                out = run(model, None, prompts, warn=False, **arguments)
                sequences, targets, texts = out.sequences, out.targets, out.texts
            else:
                sampler = prepared(model, None, prompts, **arguments)
                for step in sampler.run():
                    attend()
                    send({"step": step.index, "rows": canvas_rows(model, step.ids, sampler.canvas.target)})
                sequences, targets = sampler.canvas.ids, sampler.canvas.target
                texts = [decode(model, sampler.canvas, row, False) for row in range(len(prompts))]
            return [
                answer_of(model, text, ids[target].tolist(), request)
                for text, ids, target in zip(texts, sequences, targets, strict=True)
            ]

    def prompt_tokens(self, request: CanvasRequest) -> int:
        """Tokens of all prompts."""
        return sum(len(self.pool.model.encode(prompt)) for prompt in request.prompts)

    def close(self) -> None:
        """End all runs at their next pass."""
        self._ending.set()
        self._executor.shutdown(wait=False, cancel_futures=True)
        for pool in (self.pool, *self.further.values()):
            pool.close()


def answer_of(model: Any, text: str, tokens: Sequence[int], request: CanvasRequest) -> Answer:
    """A row as an answer."""
    written = tokens if request.infill else finished(tokens, model.end_id)
    ended = len(written) < len(tokens)
    text, stopped = cut(text, request.stop)
    return Answer(text, "stop" if ended or stopped or request.infill else "length", len(written) + ended)


def canvas_rows(model: Any, ids: Any, targets: Any) -> list[list[str | None]]:
    """What stands on the canvas, token by token; None for a mask."""
    return [
        [None if token == model.mask_id else model.tokenizer.decode([token]) for token in row[target].tolist()]
        for row, target in zip(ids, targets, strict=True)
    ]


def application(served: Served, rules: Rules, api_key: str | None = None) -> FastAPI:
    """The application.

    Args:
        served: the model.
        rules: what may be asked for.
        api_key: clients have to send it as a bearer token; None: none is needed.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        served.close()

    app = FastAPI(title="textguide, masked diffusion", version=__version__, docs_url=None, redoc_url=None,
                  openapi_url=None, lifespan=life)  # fmt: skip

    def stranger(request: Request) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        return api_key is not None and not hmac.compare_digest(given.encode(), api_key.encode())

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        if stranger(request):
            return failed("the API key is missing or wrong", 401)
        one = {"id": served.name, "object": "model", "created": served.started, "owned_by": "textguide"}
        return JSONResponse({"object": "list", "data": [one]})

    def answering(path: str, chat: bool) -> None:
        @app.post(path)
        async def respond(request: Request) -> Response:
            if stranger(request):
                return failed("the API key is missing or wrong", 401)
            try:
                values = await from_stream(request.stream(), rules.limits.body)
                if values.get("model") not in (None, served.name):
                    return failed(f"The model {str(values['model'])[:80]!r} does not exist.", 404)
                asked = request_of(values, rules, chat)
                check_lengths(served, asked, rules)
                if asked.stream:
                    told = await begun(served, asked, request)
                    headers = {"Cache-Control": "no-store"}
                    return StreamingResponse(told, media_type="text/event-stream", headers=headers)
                answers = await waited(served, asked, request)
                return JSONResponse(whole(served, asked, answers))
            except VisitorLeftError:
                return Response(status_code=499)
            except BusyError as error:
                return failed(str(error), 429)
            except ValueError as error:
                return failed(message_of(error), 400)
            except Exception as error:
                return failed(message_of(error), 500)

    answering("/v1/completions", False)
    answering("/v1/chat/completions", True)
    return app


def check_lengths(served: Served, asked: CanvasRequest, rules: Rules) -> None:
    """Refuse prompts that are too long before they wait for a place.

    Raises:
        ValueError: one is too long, or cannot be read by the model.
    """
    if asked.chat and not getattr(served.tokenizer, "chat_template", None):
        raise RefusedError("the model's tokenizer has no chat template; use /v1/completions")
    for prompt in asked.prompts:
        tokens = len(served.pool.model.encode(prompt))
        if tokens > rules.limits.prompt_tokens:
            raise RefusedError(f"a prompt has {tokens} tokens; {rules.limits.prompt_tokens} at most")


async def waited(served: Served, asked: CanvasRequest, request: Request) -> list[Answer]:
    """The answers to a request; its run ends when the client leaves."""
    future, left = served.start(lambda left: served.answer(asked, left))
    try:
        while True:
            done, _ = await asyncio.wait({future}, timeout=HEARTBEAT)
            if done:
                return list(future.result())
            if await request.is_disconnected():
                raise VisitorLeftError
    finally:
        left.set()


async def begun(served: Served, asked: CanvasRequest, request: Request) -> AsyncIterator[str]:
    """The events of a run whose first step, or first error, is there.

    Raises:
        ValueError: the model cannot do what is asked.
        BusyError: too many wait already.
        VisitorLeftError: the client has gone.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def put(value: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, value)

    def work(left: threading.Event) -> None:
        try:
            put(served.answer(asked, left, put))
        except Exception as error:
            put(error)

    _, left = served.start(work)
    while True:
        try:
            first = await asyncio.wait_for(queue.get(), HEARTBEAT)
            break
        except asyncio.TimeoutError:
            if await request.is_disconnected():
                left.set()
                raise VisitorLeftError from None
    if isinstance(first, Exception):
        raise first
    return events(served, asked, first, queue, left)


async def events(
    served: Served, asked: CanvasRequest, value: Any, queue: asyncio.Queue[Any], left: threading.Event
) -> AsyncIterator[str]:
    """Server-sent events: the canvas behind each step, the whole text of each row, usage, ``[DONE]``."""
    head = head_of(served, asked, stream=True)
    try:
        while isinstance(value, dict):
            yield line({**head, "choices": [], "canvas": value})
            value = None
            while value is None:
                try:
                    value = await asyncio.wait_for(queue.get(), HEARTBEAT)
                except asyncio.TimeoutError:
                    yield ": still here\n\n"
        if isinstance(value, VisitorLeftError):
            return
        if isinstance(value, Exception):
            yield line(error_of(message_of(value), 400 if isinstance(value, ValueError) else 500))
        else:
            for row, answer in enumerate(value):
                yield line({**head, "choices": [choice(asked, row, answer.text, answer.reason, stream=True)]})
            if asked.usage:
                yield line({**head, "choices": [], "usage": usage_of(served, asked, value)})
        yield "data: [DONE]\n\n"
    finally:
        left.set()


def whole(served: Served, asked: CanvasRequest, answers: Sequence[Answer]) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    choices = [choice(asked, row, answer.text, answer.reason) for row, answer in enumerate(answers)]
    return {**head_of(served, asked), "choices": choices, "usage": usage_of(served, asked, answers)}


def head_of(served: Served, asked: CanvasRequest, stream: bool = False) -> dict[str, Any]:
    """What stands in every answer and event."""
    name = ("chat.completion" if asked.chat else "text_completion") + (".chunk" if asked.chat and stream else "")
    prefix = "chatcmpl" if asked.chat else "cmpl"
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": name, "created": int(time.time()), "model": served.name}


def choice(asked: CanvasRequest, row: int, text: str, reason: str, stream: bool = False) -> dict[str, Any]:
    """One row of an answer."""
    said: dict[str, Any] = {"text": text}
    if asked.chat:
        said = {"delta" if stream else "message": {"role": "assistant", "content": text}}
    return {"index": row, **said, "logprobs": None, "finish_reason": reason}


def usage_of(served: Served, asked: CanvasRequest, answers: Sequence[Answer]) -> dict[str, int]:
    """Numbers of tokens."""
    prompt, written = served.prompt_tokens(asked), sum(answer.tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def error_of(message: str, status: int) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kinds = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError"}
    return {"error": {"message": message, "type": kinds.get(status, "InternalServerError"), "param": None,
                      "code": status}}  # fmt: skip


def failed(message: str, status: int) -> Response:
    """An error as a response."""
    return JSONResponse(error_of(message, status), status)


def line(value: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
