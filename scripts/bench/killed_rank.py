"""What a server says when one of its workers is killed in the middle of its work."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import psutil
from served import Server


async def kill_a_rank(server: Server, calls: list[dict[str, Any]], expected: list[str], seconds: float) -> Any:
    """Send requests at once, kill a worker, and count what comes back.

    Args:
        server: with several workers.
        calls: of OpenAI's client, as ``client.completions.create`` takes them.
        expected: the text of each.
        seconds: to wait before the worker is killed.
    """
    import openai

    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
    counts: Counter[str] = Counter()
    begin = time.monotonic()

    async def one(call: dict[str, Any], text: str) -> None:
        try:
            answer = (await client.completions.create(**call)).choices[0]
        except openai.APIStatusError as error:
            counts[f"HTTP {error.status_code}"] += 1
        except openai.APIConnectionError as error:
            counts["timed out" if isinstance(error, openai.APITimeoutError) else "connection lost"] += 1
        else:
            counts["right" if answer.text == text else "ended with an error" if answer.finish_reason in (None, "error")
                   else "wrong"] += 1  # fmt: skip

    async def kill() -> dict[str, Any]:
        await asyncio.sleep(seconds)
        victim = workers(server)[-1]
        victim.kill()
        return {"killed": victim.name(), "after": round(time.monotonic() - begin, 1)}

    killed, *_ = await asyncio.gather(kill(), *(one(*pair) for pair in zip(calls, expected, strict=True)))
    await client.close()
    answered = round(time.monotonic() - begin, 1)
    deadline = time.monotonic() + 60
    while server.healthy() and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    while server.process.poll() is None and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    return {
        **killed,
        "requests": len(calls),
        "counts": dict(counts),
        "all_answered_after": answered,
        "healthy_afterwards": server.healthy(),
        "server_ended_with": server.process.poll(),
    }


def workers(server: Server) -> list[psutil.Process]:
    """The processes that run the model: those that no other process of the server was started by, and the largest."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    leaves = [one for one in family if not one.children()]
    large = max(one.memory_info().rss for one in leaves)
    return [one for one in leaves if one.memory_info().rss > large / 2]
