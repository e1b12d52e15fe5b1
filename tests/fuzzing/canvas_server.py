"""A server of a tiny random masked diffusion model in this process, for the fuzzer of requests."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator

from .http import Arguments, Dialect, Judge, Request

GUIDANCES: tuple[tuple[Arguments, str], ...] = (
    ({"guidance": "cfg:scale=2"}, ""),
    ({"guidance": {"method": "cfg", "scale": 2.0, "negative_prompt": "ab"}}, ""),
    ({"guidance": [{"method": "acfg", "scale": 2.0}]}, ""),
    ({"guidance": {"method": "cfg", "scale": 3.0, "schedule": "linear"}}, ""),
    ({"guidance": {"method": "contrastive", "alpha": 0.1, "beta": 0.5}}, ""),
    ({"guidance": "formula:2*cond - P('ab')"}, ""),
    ({"constraint": "regex:[a-f]{2,6}"}, ""),
    ({"constraint": {"kind": "regex", "pattern": "[a-f]{2,6}"}, "guidance": {"method": "cfg", "scale": 1.5}}, ""),
)
INNOCENT: tuple[Arguments, ...] = (
    {"metadata": {"guidance": "a label"}},
    {"user": "y", "store": False},
    {"top_p": 1, "logit_bias": {}},
    {"stream_options": None},
)
EXCLUDED: tuple[Arguments, ...] = (
    {"vllm_xargs": {"guidance": "cfg:scale=2"}},
    {"guidance_scale": 2.0},
    {"top_p": 0.5},
    {"use_beam_search": True},
    {"negative_prompt": "ab"},
    {"logit_bias": {"3": 1}},
)


def requests(rng: random.Random, needs: str) -> Request:
    """What is asked for besides guidance."""
    chat = rng.random() < 0.3
    fields: Arguments = {"max_tokens": rng.choice((4, 6))}
    prompt = rng.choice(("abce", "l", "fa"))
    fields |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    if rng.random() < 0.4:
        fields |= {"temperature": 0.8, "seed": rng.randrange(3), "n": rng.choice((1, 2))}
    if rng.random() < 0.3:
        fields["steps"] = 3
    streams = rng.random() < 0.3
    path = "/v1/chat/completions" if chat else "/v1/completions"
    return Request(path, {**fields, "stream": True} if streams else fields, streams)


def spelled(rng: random.Random, arguments: Arguments) -> Arguments:
    """Arguments as they are; a guidance that is an object may be in a list."""
    written = dict(arguments)
    guidance = written.get("guidance")
    if isinstance(guidance, dict) and rng.random() < 0.4:
        written["guidance"] = [guidance]
    return written


def is_nothing(arguments: Arguments) -> bool:
    """Whether they describe a guidance that changes nothing."""
    return not arguments


DIALECT = Dialect(requests, GUIDANCES, spelled, dict, is_nothing, EXCLUDED, INNOCENT)


@contextlib.contextmanager
def serving() -> Iterator[tuple[Judge, asyncio.AbstractEventLoop]]:
    """A judge of requests to the server, and the event loop in which the server runs."""
    import copy

    import httpx

    from textguide.diffusion.serving.server import CanvasService, application
    from textguide.serving.limits import Limits
    from textguide.serving.rules import Rules

    from ..diffusion import tiny

    model, words = tiny.build("llada")
    words = copy.deepcopy(words)
    words.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    service = CanvasService("tiny", model, words, {"amateur": tiny.build("llada", seed=1)}, runs=4, waiting=200)
    app = application(service, Rules(Limits(canvas=12, prompt_tokens=8)))
    loop = asyncio.new_event_loop()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    http = httpx.AsyncClient(transport=transport, base_url="http://here", timeout=300)

    async def post(path: str, body: str) -> tuple[int, str]:
        answer = await http.post(path, content=body, headers={"content-type": "application/json"})
        return answer.status_code, answer.text

    try:
        yield Judge(DIALECT, post), loop
    finally:
        service.close()
        loop.run_until_complete(http.aclose())
        loop.close()
