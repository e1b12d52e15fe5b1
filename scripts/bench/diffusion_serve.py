"""A server of a masked diffusion model under load: many clients, several guidances, aborts and bad requests::

    python scripts/bench/diffusion_serve.py --model molecules --clients 32 --requests 500 \
        --json docs/results/diffusion/served.json

It starts ``textguide serve --diffusion``, sends the requests, and compares every answer with that of the same request
offline, alone and with the same seed. No request may be lost, and a bad request has to get its status. ``--url`` uses a
server that is already running.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import timing

GUIDANCES: tuple[Any, ...] = (
    None,
    "cfg:scale=1.5",
    {"method": "cfg", "scale": 2.0, "schedule": "linear"},
    "acfg:scale=1.5",
    "cfg:scale=1.25 + caif:classifier=sentiment,target=positive,weight=1,top_k=3",
    {"method": "tfg", "predictor": "sentiment", "target": "positive", "samples": 4},
)
BAD: tuple[tuple[dict[str, Any], int], ...] = (
    ({"max_tokens": 0}, 400),
    ({"guidance": "cfg:scale=nan"}, 400),
    ({"guidance": {"method": "tfg", "predictor": "python:os:getcwd"}}, 400),
    ({"order": "sideways"}, 400),
    ({"steps": 1, "block_length": 2, "max_tokens": 8}, 400),
    ({"top_p": 0.5}, 400),
    ({"n": -1}, 400),
    ({"colour": "red"}, 400),
    ({"model": "another"}, 404),
)
KINDS = {"plain": ("answered",), "stream": ("answered",), "abort": ("aborted", "answered"), "bad": ("refused",)}
"""Kinds of requests, and the outcomes that are right for each."""
PROMPTS = {
    "molecules": ["[qed3][logp2][atoms1][rings1]", "CC(=O)", "c1ccc", "[qed0][logp0]"],
    "sudoku4": ["0300124300000431", "2031304240000020"],
}
PATH = "/v1/completions"


def main() -> None:
    parser = timing.parser(__doc__, model=None)
    parser.add_argument("--model", default="molecules")
    parser.add_argument("--url", help="of a server that is already running, without /v1")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--length", type=int, default=16)
    arguments = parser.parse_args()
    timing.quiet(arguments)
    from textguide import diffusion

    model, tokenizer = diffusion.load(arguments.model, device="cpu")
    requests = requests_of(PROMPTS.get(arguments.model, ["A", "The"]), arguments.requests, arguments.length)
    with serving(arguments.model) if arguments.url is None else contextlib.nullcontext(arguments.url) as url:
        start = time.perf_counter()
        answers = asyncio.run(load(url, requests, arguments.clients))
        seconds = time.perf_counter() - start
        alive = httpx.get(f"{url}/health", timeout=30).status_code == 200
    expected = [
        offline(model, tokenizer, request["body"]) if request["kind"] in ("plain", "stream") else None
        for request in requests
    ]
    result = {
        "model": arguments.model,
        "clients": arguments.clients,
        "requests": arguments.requests,
        "seconds": round(seconds, 1),
        "alive": alive,
        **report(requests, answers, expected),
    }
    print(json.dumps(result, indent=1))
    timing.write(arguments.json, result)
    if result["wrong"] or result["equal"] != result["compared"] or not alive:
        raise SystemExit(1)


@contextlib.contextmanager
def serving(model: str) -> Iterator[str]:
    """The address of a server, until the block ends."""
    command = ["-m", "textguide", "serve", "--diffusion", model, "--port", "0", "--device", "cpu"]
    server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = re.search(r"http://\S+?:\d+", server.stdout.readline())
        if address is None:
            raise SystemExit("the server did not start")
        yield address[0]
    finally:
        server.terminate()
        server.wait()


def requests_of(prompts: Sequence[str], count: int, length: int, seed: int = 0) -> list[dict[str, Any]]:
    """``count`` requests, always the same: a tenth of them streams, a tenth aborts, a tenth is bad."""
    chance = random.Random(seed)
    requests = []
    for number in range(count):
        body = {
            "prompt": chance.choice(prompts),
            "max_tokens": length,
            "steps": chance.choice((length // 2, length)),
            "temperature": chance.choice((0.0, 0.8)),
            "seed": number,
            "guidance": chance.choice(GUIDANCES),
            "order": chance.choice(("confidence", "random", "entropy")),
        }
        kind = list(KINDS)[max(0, number % 10 - 6)]
        status = 200
        if kind == "bad":
            change, status = BAD[number // 10 % len(BAD)]
            body |= change
        if kind == "stream":
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        requests.append({"kind": kind, "status": status, "body": body})
    return requests


async def load(url: str, requests: Sequence[dict[str, Any]], clients: int) -> list[dict[str, Any]]:
    """All requests from so many clients, each of which sends the next one when its last is answered."""
    semaphore = asyncio.Semaphore(clients)
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(request: dict[str, Any]) -> dict[str, Any]:
            async with semaphore:
                return await send(client, request)

        return list(await asyncio.gather(*(one(request) for request in requests)))


async def send(client: httpx.AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
    """One request; returns its ``outcome``, and of an answer ``text`` and ``seconds``."""
    ways = {"abort": aborted, "stream": streamed}
    start = time.perf_counter()
    try:
        result = await ways.get(request["kind"], answered)(client, request)
    except httpx.HTTPError as error:
        return {"outcome": f"lost: {error!r}"}
    if "text" in result:
        result["seconds"] = time.perf_counter() - start
    return result


async def aborted(client: httpx.AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
    """The client closes the connection after a fraction of a second."""
    body = request["body"]
    timeout = 0.01 + 0.2 * random.Random(body["seed"]).random()
    try:
        await client.post(PATH, json=body, timeout=timeout)
    except httpx.TimeoutException:
        return {"outcome": "aborted"}
    return {"outcome": "answered"}


async def streamed(client: httpx.AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
    """The text comes in events; a whole stream has a canvas and an end."""
    async with client.stream("POST", PATH, json=request["body"]) as response:
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    events = [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]
    text = "".join(choice["text"] for event in events for choice in event.get("choices", ()))
    is_whole = bool(lines) and lines[-1] == "data: [DONE]" and any("canvas" in event for event in events)
    return {"outcome": "answered" if is_whole else f"status {response.status_code}", "text": text}


async def answered(client: httpx.AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
    """One answer, or a refusal with a reason if the request is bad."""
    response = await client.post(PATH, json=request["body"])
    if response.status_code != request["status"]:
        wrong = f"status {response.status_code} instead of {request['status']}: {response.text[:200]}"
        return {"outcome": wrong}
    if response.status_code != 200:
        return {"outcome": "refused" if response.json()["error"]["message"] else "refused without a reason"}
    return {"outcome": "answered", "text": response.json()["choices"][0]["text"]}


def offline(model: Any, tokenizer: Any, body: dict[str, Any]) -> str:
    """The answer to the request without a server."""
    from textguide import diffusion

    options = {name: body[name] for name in ("steps", "temperature", "seed", "guidance", "order")}
    out = diffusion.generate(model, tokenizer, body["prompt"], gen_length=body["max_tokens"], warn=False, **options)
    return out.texts[0]


def report(
    requests: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]], expected: Sequence[str | None]
) -> dict[str, Any]:
    """Counts of outcomes and of answers that equal those of offline runs, and seconds."""
    outcomes: Counter[str] = Counter()
    wrong = []
    equal = []
    for request, answer, text in zip(requests, answers, expected, strict=True):
        kind = request["kind"]
        outcome = answer["outcome"]
        outcomes[f"{kind}: {outcome[:60]}"] += 1
        if outcome not in KINDS[kind]:
            wrong.append(f"{kind}: {outcome}")
        elif text is not None and "text" in answer:
            equal.append(answer["text"] == text)
    seconds = sorted(answer["seconds"] for answer in answers if "seconds" in answer)
    return {
        "outcomes": dict(outcomes),
        "wrong": wrong[:20],
        "compared": len(equal),
        "equal": sum(equal),
        "median_seconds": statistics.median(seconds) if seconds else None,
        "p99_seconds": seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))] if seconds else None,
    }


if __name__ == "__main__":
    main()
