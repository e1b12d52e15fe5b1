"""A server of a masked diffusion model under load: many clients, several guidances, aborts and bad requests::

    python scripts/bench/diffusion_serve.py --model molecules --clients 32 --requests 500 \
        --json docs/results/diffusion/served.json

starts ``textguide serve --diffusion``, sends the requests, and holds every answer to what the same request gives
offline, alone and with the same seed. Nothing may be lost, and a bad request gets its status. ``--url`` asks a server
that runs already.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

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


def requests_of(prompts: Sequence[str], count: int, length: int, seed: int = 0) -> list[dict[str, Any]]:
    """``count`` requests, always the same: a tenth of them streams, a tenth aborts, a tenth is bad."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        body = {
            "prompt": chance.choice(prompts), "max_tokens": length, "steps": chance.choice((length // 2, length)),
            "temperature": chance.choice((0.0, 0.8)), "seed": number, "guidance": chance.choice(GUIDANCES),
            "order": chance.choice(("confidence", "random", "entropy")),
        }  # fmt: skip
        kind, status = ("plain", "stream", "abort", "bad")[max(0, number % 10 - 6)], 200
        if kind == "bad":
            change, status = BAD[number // 10 % len(BAD)]
            body |= change
        if kind == "stream":
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        found.append({"kind": kind, "status": status, "body": body})
    return found


async def ask(client: httpx.AsyncClient, asked: dict[str, Any]) -> dict[str, Any]:
    """One request and what came of it: ``outcome``, ``text`` and ``seconds``."""
    begun = time.perf_counter()
    body = asked["body"]
    try:
        if asked["kind"] == "abort":
            try:
                await client.post(
                    "/v1/completions", json=body, timeout=0.01 + 0.2 * random.Random(body["seed"]).random()
                )
                return {"outcome": "answered"}
            except httpx.TimeoutException:
                return {"outcome": "aborted"}
        if asked["kind"] == "stream":
            async with client.stream("POST", "/v1/completions", json=body) as response:
                lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
            status = response.status_code
            events = [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]
            text = "".join(choice["text"] for event in events for choice in event.get("choices", ()))
            whole = bool(lines) and lines[-1] == "data: [DONE]" and any("canvas" in event for event in events)
            return {"outcome": "answered" if whole else f"status {status}", "text": text,
                    "seconds": time.perf_counter() - begun}  # fmt: skip
        response = await client.post("/v1/completions", json=body)
        if response.status_code != asked["status"]:
            return {"outcome": f"status {response.status_code} in place of {asked['status']}: {response.text[:200]}"}
        if response.status_code != 200:
            return {"outcome": "refused" if response.json()["error"]["message"] else "refused without a reason"}
        return {"outcome": "answered", "text": response.json()["choices"][0]["text"],
                "seconds": time.perf_counter() - begun}  # fmt: skip
    except httpx.HTTPError as error:
        return {"outcome": f"lost: {error!r}"}


async def load(url: str, asked: Sequence[dict[str, Any]], clients: int) -> list[dict[str, Any]]:
    """All requests from so many clients, each of which sends the next one when its last is answered."""
    places = asyncio.Semaphore(clients)
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(request: dict[str, Any]) -> dict[str, Any]:
            async with places:
                return await ask(client, request)

        return list(await asyncio.gather(*(one(request) for request in asked)))


def offline(model: Any, tokenizer: Any, body: dict[str, Any]) -> str:
    """What the request gives without a server."""
    from textguide import diffusion

    options = {name: body[name] for name in ("steps", "temperature", "seed", "guidance", "order")}
    out = diffusion.generate(model, tokenizer, body["prompt"], gen_length=body["max_tokens"], warn=False, **options)
    return out.texts[0]


def report(
    asked: Sequence[dict[str, Any]], came: Sequence[dict[str, Any]], expected: Sequence[str | None]
) -> dict[str, Any]:
    """Numbers of outcomes, of answers that are those of offline runs, and seconds."""
    equal = [
        found["text"] == text
        for found, text in zip(came, expected, strict=True)
        if text is not None and found["outcome"] == "answered" and "text" in found
    ]
    good = {"plain": ("answered",), "stream": ("answered",), "abort": ("aborted", "answered"), "bad": ("refused",)}
    wrong = [
        f"{request['kind']}: {found['outcome']}"
        for request, found in zip(asked, came, strict=True)
        if found["outcome"] not in good[request["kind"]]
    ]
    seconds = sorted(found["seconds"] for found in came if "seconds" in found)
    return {
        "outcomes": dict(Counter(f"{r['kind']}: {f['outcome'][:60]}" for r, f in zip(asked, came, strict=True))),
        "wrong": wrong[:20], "compared": len(equal), "equal": sum(equal),
        "median_seconds": statistics.median(seconds) if seconds else None,
        "p99_seconds": seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))] if seconds else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="molecules")
    parser.add_argument("--url", help="of a server that runs already, with /v1 left out")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    from textguide import diffusion
    from textguide.support.files import write_json

    model, tokenizer = diffusion.load(arguments.model, device="cpu")
    prompts = {
        "molecules": ["[qed3][logp2][atoms1][rings1]", "CC(=O)", "c1ccc", "[qed0][logp0]"],
        "sudoku4": ["0300124300000431", "2031304240000020"],
    }.get(arguments.model, ["A", "The"])
    asked = requests_of(prompts, arguments.requests, arguments.length)
    server = None
    url = arguments.url
    if url is None:
        command = ["-m", "textguide", "serve", "--diffusion", arguments.model, "--port", "0", "--device", "cpu"]
        server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        found = re.search(r"http://\S+?:\d+", server.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start")
        url = found[0]
    try:
        begun = time.perf_counter()
        came = asyncio.run(load(url, asked, arguments.clients))
        took = time.perf_counter() - begun
        alive = httpx.get(f"{url}/health", timeout=30).status_code == 200
    finally:
        if server is not None:
            server.terminate()
            server.wait()
    expected = [
        offline(model, tokenizer, request["body"]) if request["kind"] in ("plain", "stream") else None
        for request in asked
    ]
    result = {"model": arguments.model, "clients": arguments.clients, "requests": arguments.requests,
              "seconds": round(took, 1), "alive": alive, **report(asked, came, expected)}  # fmt: skip
    print(json.dumps(result, indent=1))
    if arguments.json:
        write_json(arguments.json, result)
    if result["wrong"] or result["equal"] != result["compared"] or not alive:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
