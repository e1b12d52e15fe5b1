"""Throughput of guided servers and of vLLM's own: all of them stay up and take turns (``serve.py speed``)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import shlex
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timing
from served import Server, about, earlier, serving

VLLM = "vLLM"
GUIDED = "textguide"
GUESSING = "textguide, guessing"
DISTILLED = "vLLM with a distilled adapter"
PROMPT = "The dragon flew over Paris, France, and landed on the roof of the old opera house. Number {} looked up, and"
KINDS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "guided, last token": {"guidance_scale": 1.5},
    "guided, negative prompt": {"guidance_scale": 1.5, "negative_prompt": "The weather report for today:"},
}
"""vLLM's extra arguments of each kind of request."""
RATIOS = {"ratios": "tokens_a_second", "ratios_of_processor_time": "tokens_a_processor_second"}
Contestant = tuple[str, str]
"""A server and a kind of request."""
Turns = dict[tuple[int, str, str], list[dict[str, float]]]
"""The figures of each turn, by clients, server and kind of request."""


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Throughput, time to the first token and between tokens; the contestants alternate."""
    contestants = contestants_of(arguments)
    settings = settings_of(arguments)
    turns = earlier_turns(arguments, settings, contestants)
    with servers_of(arguments) as servers:
        for server, kind in contestants:
            asyncio.run(measure(servers[server], 1, 1, KINDS[kind], 8))  # warm-up
        print("ready", flush=True)
        time.sleep(arguments.settle)
        done = min((len(figures) for figures in turns.values()), default=0)
        for turn in range(done, arguments.repeats):
            for concurrency in arguments.concurrency:
                requests = max(2, arguments.rounds * concurrency)
                for server, kind in contestants:
                    figures = measure(servers[server], concurrency, requests, KINDS[kind], arguments.tokens)
                    turns.setdefault((concurrency, server, kind), []).append(asyncio.run(figures))
            print(f"turn {turn + 1} of {arguments.repeats}", flush=True)
            # After every turn, so that an interrupted run can be continued.
            timing.write(arguments.json, report(turns, settings))
        print("measured", flush=True)
    return report(turns, settings)


# -- what is compared --------------------------------------------------------------------------------------------------


def contestants_of(arguments: argparse.Namespace) -> list[Contestant]:
    """Servers and kinds of requests, in the order in which they take turns."""
    contestants = [(VLLM, "plain"), *((GUIDED, kind) for kind in KINDS)]
    if arguments.guesses:
        contestants += [(GUESSING, "guided, last token"), (GUESSING, "guided, negative prompt")]
    if arguments.adapter:
        contestants.append((DISTILLED, "plain"))
    return contestants


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that a report names; a run only continues a report that has the same ones."""
    settings: dict[str, Any] = {
        "model": arguments.model,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
    }
    if arguments.adapter:
        card = json.loads(Path(arguments.adapter, "distillation.json").read_text())
        settings["adapter"] = card.get("guidance")
    if arguments.server_args:
        settings |= {"dtype": "as of server_args", "server_args": arguments.server_args}
    return settings


def earlier_turns(arguments: argparse.Namespace, settings: dict[str, Any], contestants: list[Contestant]) -> Turns:
    """The turns of an earlier run of the same contestants, if ``--json`` has one.

    Raises:
        SystemExit: the file holds a run with other settings.
    """
    found = earlier(arguments.json, {**about(), **settings})
    rows = [] if found is None else found["rows"]
    turns = {(row["concurrency"], row["server"], row["requests"]): row.get("turns", []) for row in rows}
    expected = {(clients, *contestant) for clients in arguments.concurrency for contestant in contestants}
    if turns and set(turns) != expected:
        raise SystemExit(f"--json {arguments.json} has other clients or servers than this run; name another file")
    return turns


@contextlib.contextmanager
def servers_of(arguments: argparse.Namespace) -> Iterator[dict[str, Server]]:
    """All servers. They stay up and those without requests idle, so other work on the machine affects all the same."""
    longest = max(arguments.concurrency)
    options = ["--max-model-len", "256", "--max-num-seqs", str(2 * longest), "--max-num-batched-tokens", "2048"]
    options += shlex.split(arguments.server_args)
    guesses = ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 4}']
    with contextlib.ExitStack() as stack:

        def start(number: int, *more: str, guided: bool = True) -> Server:
            log = None if arguments.log is None else arguments.log.with_suffix(f".{number}")
            return stack.enter_context(serving(arguments.model, *options, *more, guided=guided, log=log))

        servers = {VLLM: start(0, guided=False), GUIDED: start(1)}
        if arguments.guesses:
            servers[GUESSING] = start(3, *guesses)
        if arguments.adapter:
            lora = ["--enable-lora", "--max-lora-rank", str(arguments.adapter_rank)]
            lora += ["--lora-modules", f"distilled={arguments.adapter}"]
            servers[DISTILLED] = dataclasses.replace(start(2, *lora, guided=False), model="distilled")
        yield servers


# -- measuring ---------------------------------------------------------------------------------------------------------


def client_of(server: Server, timeout: float = 600) -> Any:
    """OpenAI's client of a server, which never sends a request twice."""
    import openai

    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=timeout)


async def measure(server: Server, concurrency: int, requests: int, extra: Any, tokens: int) -> dict[str, float]:
    """Figures of streamed requests, of which ``concurrency`` are under way at any time."""
    client = client_of(server)
    first_waits: list[float] = []
    later_waits: list[float] = []
    numbers = list(range(requests))
    options = {"max_tokens": tokens, "temperature": 0, "extra_body": {"ignore_eos": True, "vllm_xargs": extra}}

    async def worker() -> None:
        while numbers:
            prompt = PROMPT.format(numbers.pop())
            last = time.perf_counter()
            stream = await client.completions.create(model=server.model, prompt=prompt, stream=True, **options)
            waits = first_waits
            async for _ in stream:
                now = time.perf_counter()
                waits.append(now - last)
                last = now
                waits = later_waits

    start = time.perf_counter()
    used = server.processor_seconds()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    seconds = time.perf_counter() - start
    used = server.processor_seconds() - used
    await client.close()
    return {
        "tokens_a_second": requests * tokens / seconds,
        "tokens_a_processor_second": requests * tokens / max(used, 0.01),
        "first_p50": percentile(first_waits, 0.5),
        "first_p99": percentile(first_waits, 0.99),
        "between_p50": percentile(later_waits, 0.5),
        "between_p99": percentile(later_waits, 0.99),
    }


def percentile(values: list[float], share: float) -> float:
    """The value below which a share of them is."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# -- reporting ---------------------------------------------------------------------------------------------------------


def report(turns: Turns, settings: dict[str, Any]) -> dict[str, Any]:
    """Medians over turns, and ratios of throughput."""
    rows = []
    for (concurrency, server, kind), figures in turns.items():
        medians = {name: round(statistics.median(one[name] for one in figures), 4) for name in figures[0]}
        rows.append({"server": server, "requests": kind, "concurrency": concurrency, **medians, "turns": figures})
    return {
        **about(),
        **settings,
        "repeats": max(map(len, turns.values()), default=0),
        "rows": rows,
        **{name: ratios(turns, figure) for name, figure in RATIOS.items()},
    }


def ratios(turns: Turns, figure: str) -> list[dict[str, Any]]:
    """Throughput against textguide's plain requests of the same turn, and of these against vLLM's own.

    Each ratio is the median over turns with the smallest and the largest.

    Args:
        figure: tokens per second of the clock, or of the server's processes.
    """
    result = []
    for concurrency in sorted({clients for clients, _, _ in turns}):
        base = [one[figure] for one in turns[concurrency, GUIDED, "plain"]]
        row: dict[str, Any] = {"concurrency": concurrency}
        for (clients, server, kind), figures in turns.items():
            if clients != concurrency or (server, kind) == (GUIDED, "plain"):
                continue
            rates = [one[figure] for one in figures]
            pairs = zip(base, rates, strict=True) if server == VLLM else zip(rates, base, strict=True)
            values = [top / bottom for top, bottom in pairs]
            names = {
                VLLM: "plain against vLLM",
                DISTILLED: "distilled adapter, unguided",
                GUESSING: f"{kind}, guesses",
            }
            shown = (statistics.median(values), min(values), max(values))
            row[names.get(server, kind)] = [round(value, 3) for value in shown]
        result.append(row)
    return result
