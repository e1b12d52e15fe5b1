"""Throughput of guided servers beside vLLM's own: all of them stay up, and take turns (``serve.py speed``)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import shlex
import statistics
import time
from pathlib import Path
from typing import Any

from served import Server, about, earlier, serving, write

GUESSING = "textguide, guessing"
DISTILLED = "vLLM with a distilled adapter"
PROMPT = "The dragon flew over Paris, France, and landed on the roof of the old opera house. Number {} looked up, and"
NEGATIVE = "The weather report for today:"


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Throughput, time to the first token and between tokens; contestants of a server alternate."""
    longest = max(arguments.concurrency)
    options = ["--max-model-len", "256", "--max-num-seqs", str(2 * longest), "--max-num-batched-tokens", "2048"]
    kinds = {
        "plain": None,
        "guided, last token": {"guidance_scale": 1.5},
        "guided, negative prompt": {"guidance_scale": 1.5, "negative_prompt": NEGATIVE},
        "guided, skipping": {
            "guidance_scale": 1.5,
            "negative_prompt": NEGATIVE,
            "guidance_skip_threshold": arguments.skip_threshold,
        },
    }
    options += shlex.split(arguments.server_args)
    contestants = [("vLLM", "plain"), *(("textguide", kind) for kind in kinds)]
    if arguments.guesses:
        contestants += [(GUESSING, "guided, last token"), (GUESSING, "guided, negative prompt")]
    measured_with: dict[str, Any] = {"model": arguments.model, "tokens": arguments.tokens, "rounds": arguments.rounds}
    measured_with["skip_threshold"] = arguments.skip_threshold
    if arguments.adapter:
        contestants.append((DISTILLED, "plain"))
        measured_with["adapter"] = json.loads(Path(arguments.adapter, "distillation.json").read_text()).get("guidance")
    if arguments.server_args:
        measured_with |= {"dtype": "as of server_args", "server_args": arguments.server_args}
    asked = {(clients, *contestant) for clients in arguments.concurrency for contestant in contestants}
    measured = _measured(arguments.json, measured_with, asked)
    with contextlib.ExitStack() as stack:
        # All servers stay up, and those that are not asked idle: what else the machine does hits all alike.
        logs = [None] * 4 if arguments.log is None else [arguments.log.with_suffix(f".{n}") for n in range(4)]
        servers = {
            "vLLM": stack.enter_context(serving(arguments.model, *options, guided=False, log=logs[0])),
            "textguide": stack.enter_context(serving(arguments.model, *options, log=logs[1])),
        }
        if arguments.guesses:
            guesses = ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 4}']
            servers[GUESSING] = stack.enter_context(serving(arguments.model, *options, *guesses, log=logs[3]))
        if arguments.adapter:
            lora = ["--enable-lora", "--max-lora-rank", str(arguments.adapter_rank)]
            lora += ["--lora-modules", f"distilled={arguments.adapter}"]
            own = stack.enter_context(serving(arguments.model, *options, *lora, guided=False, log=logs[2]))
            servers[DISTILLED] = dataclasses.replace(own, model="distilled")
        for server, kind in contestants:
            asyncio.run(_measure(servers[server], 1, 1, kinds[kind], 8))  # warm
        skipped = asyncio.run(_skipped(servers["textguide"], kinds["guided, skipping"], arguments.tokens))
        print("ready", flush=True)
        time.sleep(arguments.settle)
        done = min((len(several) for several in measured.values()), default=0)
        for turn in range(done, arguments.repeats):
            for concurrency in arguments.concurrency:
                requests = max(2, arguments.rounds * concurrency)
                for server, kind in contestants:
                    one = asyncio.run(_measure(servers[server], concurrency, requests, kinds[kind], arguments.tokens))
                    measured.setdefault((concurrency, server, kind), []).append(one)
            print(f"turn {turn + 1} of {arguments.repeats}", flush=True)
            if arguments.json is not None:  # what an interrupted run leaves
                write(arguments.json, _report(measured, measured_with, skipped))
        print("measured", flush=True)
    return _report(measured, measured_with, skipped)


Measured = dict[tuple[int, str, str], list[dict[str, float]]]
"""Figures of each turn, by clients, server and kind of request."""


def _measured(path: Path | None, measured_with: dict[str, Any], asked: set[tuple[int, str, str]]) -> Measured:
    """The turns of an earlier run, which had what is ``asked``.

    Raises:
        SystemExit: the file holds a run with other settings.
    """
    found = earlier(path, {**about(), **measured_with})
    rows = [] if found is None else found["rows"]
    measured = {(one["concurrency"], one["server"], one["requests"]): one.get("turns", []) for one in rows}
    if measured and set(measured) != asked:
        raise SystemExit(f"--json {path} has other clients or servers than this run; name another file")
    return measured


def _report(measured: Measured, measured_with: dict[str, Any], skipped: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for (concurrency, server, kind), several in measured.items():
        middle = {name: round(statistics.median(one[name] for one in several), 4) for name in several[0]}
        rows.append({"server": server, "requests": kind, "concurrency": concurrency, **middle, "turns": several})
    ratios = {"ratios": "tokens_a_second", "ratios_of_processor_time": "tokens_a_processor_second"}
    return {
        **about(),
        **measured_with,
        "repeats": max(map(len, measured.values()), default=0),
        "skipping": skipped,
        "rows": rows,
        **{name: _ratios(measured, what) for name, what in ratios.items()},
    }


async def _skipped(server: Server, extra: Any, tokens: int) -> dict[str, Any]:
    """How often the skipping setting skips, over eight of the prompts."""
    import openai

    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600)
    body = {"ignore_eos": True, "vllm_xargs": extra}
    answers = await asyncio.gather(
        *(
            client.completions.create(
                model=server.model, prompt=PROMPT.format(n), max_tokens=tokens, temperature=0, extra_body=body
            )
            for n in range(8)
        )
    )
    await client.close()
    reports = [answer.model_extra["kv_transfer_params"]["textguide"] for answer in answers]
    return {
        "share_of_steps_skipped": sum(one["skipped_steps"] for one in reports) / (8 * tokens),
        "mean_kl": sum(one.get("mean_kl", 0.0) for one in reports) / 8,
    }


def _ratios(measured: dict[tuple[int, str, str], list[dict[str, float]]], figure: str) -> list[dict[str, Any]]:
    """Medians, over turns, of throughput against the plain requests of the same turn and server; and of these against
    vLLM's own. With the smallest and the largest of the turns.

    Args:
        figure: tokens by second of the clock, or of the server's processes.
    """
    ratios = []
    for concurrency in sorted({key[0] for key in measured}):
        base = [one[figure] for one in measured[concurrency, "textguide", "plain"]]
        row: dict[str, Any] = {"concurrency": concurrency}
        for (at, server, kind), several in measured.items():
            if at != concurrency or (server, kind) == ("textguide", "plain"):
                continue
            rates = [one[figure] for one in several]
            pairs = zip(base, rates, strict=True) if server == "vLLM" else zip(rates, base, strict=True)
            values = [top / bottom for top, bottom in pairs]
            named = {
                "vLLM": "plain against vLLM",
                DISTILLED: "distilled adapter, unguided",
                GUESSING: f"{kind}, guesses",
            }
            name = named.get(server, kind)
            row[name] = [round(value, 3) for value in (statistics.median(values), min(values), max(values))]
        ratios.append(row)
    return ratios


async def _measure(server: Server, concurrency: int, requests: int, extra: Any, tokens: int) -> dict[str, float]:
    import openai

    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600)
    firsts: list[float] = []
    between: list[float] = []
    numbers = list(range(requests))

    async def worker() -> None:
        while numbers:
            prompt = PROMPT.format(numbers.pop())
            body = {"ignore_eos": True, "vllm_xargs": extra}
            last = time.perf_counter()
            stream = await client.completions.create(
                model=server.model, prompt=prompt, max_tokens=tokens, temperature=0, stream=True, extra_body=body
            )
            first = True
            async for _ in stream:
                now = time.perf_counter()
                (firsts if first else between).append(now - last)
                last, first = now, False

    start, used = time.perf_counter(), server.processor_seconds()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    seconds, used = time.perf_counter() - start, server.processor_seconds() - used
    await client.close()
    return {
        "tokens_a_second": requests * tokens / seconds,
        "tokens_a_processor_second": requests * tokens / max(used, 0.01),
        "first_p50": _percentile(firsts, 0.5),
        "first_p99": _percentile(firsts, 0.99),
        "between_p50": _percentile(between, 0.5),
        "between_p99": _percentile(between, 0.99),
    }


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
