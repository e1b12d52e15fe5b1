"""A guided server under load: does it stay alive and right, and what does guidance cost?

::

    python scripts/bench/serve.py soak --requests 2000 --json docs/results/serving/soak.json
    python scripts/bench/serve.py speed --concurrency 1 8 32 --json docs/results/serving/speed.json
    python scripts/bench/serve.py speed --concurrency 8 32 --guesses --adapter ADAPTER --json throughput.json
    python scripts/bench/serve.py soak --model tiny --server-args '--tensor-parallel-size 2' --kill --json killed.json

Runs on the loopback alone, and is bounded by ``--requests`` and ``--minutes``. ``speed`` goes on behind the turns that
its file has already.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import random
import shlex
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from engines import tiny_llama
from killed_rank import kill_a_rank
from served import Server, serving

# What a client may get wrong, and the word that the answer has to name.
MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"guidance_scale": "high"}, "guidance_scale"),
    ({"guidance_scale": [1.0]}, "guidance_scale"),
    ({"guidance_sclae": 1.5}, "guidance_sclae"),
    ({"guidance_scale": 1.5, "guidance_schedule": "zigzag"}, "guidance_schedule"),
    ({"guidance_scale": 1.5, "guidance_start": 0.9, "guidance_stop": 0.1}, "guidance_start"),
    ({"guidance_scale": 1.5, "negative_prompt": 5}, "negative_prompt"),
    ({"guidance_scale": 1.5, "negative_prompt_token_ids": [10**9]}, "negative_prompt_token_ids"),
    ({"guidance_scale": 1.5, "negative_prompt": "word " * 2000}, "negative_prompt"),
    ({"guidance_scale": 1.5, "negative_messages": "{"}, "negative_messages"),
    ({"guidance_scale": 1.5, "negative_prompt": "a", "negative_messages": "[]"}, "exclude"),
    ({"awrs_regex": "("}, "awrs_regex"),
    ({"awrs_json_schema": "{"}, "awrs_json_schema"),
    ({"awrs_constraint": "nothing"}, "awrs_constraint"),
    ({"awrs_regex": "a", "awrs_grammar": "b"}, "exclude"),
    ({"guidance": "{"}, "is no JSON"),
    ({"guidance": '{"method": "agp"}'}, "method="),
    ({"guidance": '{"method": "apg", "scale": "high"}'}, "scale="),
    ({"guidance": '{"method": "apg", "sclae": 2}'}, "'sclae' is no field of apg"),
    ({"guidance": '{"method": "context-aware", "context": "%&"}'}, "context="),
    ({"guidance": '[{"method": "cfg"}, {"method": "apg"}]'}, "two guidances"),
    ({"guidance": '{"method": "dola"}'}, "dola"),
    ({"guidance": "cfg", "guidance_scale": 2}, "exclude"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("soak", "speed"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--methods", action="store_true", help="soak: guided requests carry all methods, as JSON")
    parser.add_argument("--with", dest="amateur", metavar="PATH", help="soak: a second model, for methods that ask one")
    parser.add_argument("--requests", type=int, default=2000, help="soak: in all [%(default)s]")
    parser.add_argument("--rounds", type=int, default=4, help="speed: requests a client and measurement [%(default)s]")
    parser.add_argument("--settle", type=float, default=0, help="speed: seconds of idling before measuring [0]")
    parser.add_argument(
        "--minutes", type=float, default=60, help="the longest that the requests may take [%(default)g]"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=32, help="speed: tokens of an answer [%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, help="speed: measurements a row [%(default)s]")
    parser.add_argument(
        "--skip-threshold", type=float, default=0.1, help="speed: nats of the skipping row [%(default)g]"
    )
    parser.add_argument("--guesses", action="store_true", help="speed: a server too that guesses tokens by n-grams")
    parser.add_argument("--adapter", help="speed: folder of a distilled adapter (PEFT), which vLLM's own server serves")
    parser.add_argument("--adapter-rank", type=int, default=16, help="speed: of the adapter, at most [%(default)s]")
    parser.add_argument("--server-args", default="", help="further options of the servers, such as '--dtype bfloat16'")
    parser.add_argument("--kill", action="store_true", help="soak: kill a worker at the end, under load")
    parser.add_argument("--cache", type=Path, help="soak: a file that keeps the reference answers")
    parser.add_argument("--log", type=Path, help="where the server's output goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = (soak if arguments.mode == "soak" else speed)(arguments)
    print(json.dumps(report, indent=1))
    if arguments.json is not None:
        _write(arguments.json, report)


def _write(path: Path, report: dict[str, Any]) -> None:
    from textguide.support.files import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)


def about() -> dict[str, Any]:
    """What the figures depend on."""
    import platform

    import psutil
    import torch
    import vllm

    cores = psutil.cpu_count()
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "dtype": "float32",
        "processor": f"{cores} CPU cores, {platform.machine()}",
        **gpu,
    }


# -- soak --------------------------------------------------------------------------------------------------------------


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Requests at rising concurrency, some of which are malformed, cancelled, or left in the middle of a stream."""
    import torch
    from serving_mix import methods, mix, references

    import textguide

    if arguments.model == "tiny":
        arguments.model = tiny_llama(Path(tempfile.gettempdir()) / "textguide-tiny-llama")
    # Plain, drawn requests are left out: without guidance vLLM's runner for CPUs cannot read their prompts in parts.
    model, tokenizer = textguide.load(arguments.model, device="cpu", dtype=torch.float32)
    models = {}
    if arguments.amateur:
        models["amateur"] = textguide.load(arguments.amateur, device="cpu", dtype=torch.float32)[0]
    described = methods(bool(models)) if arguments.methods else None
    mixed = mix(120, arguments.seed, described)
    specs = [spec for spec in mixed if not spec.is_plain or spec.temperature == 0][:60]
    expected = [
        (tokenizer.decode(row, skip_special_tokens=True), weight)
        for row, weight, _ in references(model, tokenizer, specs, arguments.cache, lambda rows: rows, models)
    ]
    del model, models
    options = ["--max-model-len", "160", "--max-num-seqs", "24", "--max-num-batched-tokens", "96"]
    options += ["--block-size", "32", "--num-gpu-blocks-override", "40"]
    options += ["--classifier", "sentiment"] if arguments.methods else []
    options += ["--with", f"amateur={arguments.amateur}"] if arguments.amateur else []
    options += shlex.split(arguments.server_args)
    with serving(arguments.model, *options, log=arguments.log) as server:
        report = asyncio.run(_soak(server, arguments, specs, expected))
        if arguments.kill:
            calls = [_call(server.model, spec)[0] for spec in specs]
            texts = [text for text, _ in expected]
            report["killed"] = asyncio.run(kill_a_rank(server, calls, texts, 1.0))
        return report


async def _soak(server: Server, arguments: argparse.Namespace, specs: list[Any], expected: list[Any]) -> dict[str, Any]:
    import openai

    draw = random.Random(arguments.seed)
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600)
    total = arguments.requests
    counts: Counter[str] = Counter()
    different: list[dict[str, Any]] = []
    memory: list[float] = []
    start = time.monotonic()
    stages = [1, 4, 12, 24, 48]
    done = 0
    for stage, concurrency in enumerate(stages):
        share = total * (stage + 1) // len(stages) - done
        queue = [draw.random() for _ in range(share)]
        done += share

        async def worker(queue: list[float] = queue) -> None:
            while queue and time.monotonic() - start < arguments.minutes * 60:
                chance = queue.pop()
                number = draw.randrange(len(specs))
                counts["sent"] += 1
                try:
                    await _one(client, server.model, chance, draw, specs[number], expected[number], counts, different)
                except openai.APIStatusError as error:
                    counts[f"unexpected HTTP {error.status_code}"] += 1
                    different.append({"error": str(error)[:300]})
                except openai.APIConnectionError as error:
                    counts["connection lost"] += 1
                    different.append({"error": repr(error)[:300]})

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        memory.append(round(server.megabytes()))
        print(f"concurrency {concurrency}: {dict(counts)}, {memory[-1]} MB", flush=True)
    await asyncio.sleep(2)
    await client.completions.create(model=server.model, prompt="The", max_tokens=2, temperature=0)
    await asyncio.sleep(1)
    metrics = server.metrics()
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total")
    return {
        **about(),
        "model": arguments.model,
        "seconds": round(time.monotonic() - start),
        "counts": dict(counts),
        "different": different[:20],
        "memory_mb_by_stage": memory,
        "alive": server.healthy(),
        "left": {name: metrics.get(f"vllm:{name}") for name in names},
        "tokens": {
            "user's": metrics.get("vllm:generation_tokens_total"),
            "branch requests'": metrics.get("textguide:branch_tokens_total"),
        },
    }


async def _one(
    client: Any, model: str, chance: float, draw: random.Random, spec: Any, expected: Any, counts: Any, different: Any
) -> None:
    import openai

    expected, weight = expected
    call, extra = _call(model, spec)
    if chance < 0.1:
        wrong, named = draw.choice(MALFORMED)
        try:
            await client.completions.create(**{**call, "extra_body": {**extra, "vllm_xargs": wrong}})
        except openai.BadRequestError as error:
            counts["malformed, answered with HTTP 400"] += 1
            if named not in str(error):
                counts["HTTP 400 that does not name the argument"] += 1
                different.append({"error": str(error)[:300], "sent": str(wrong)})
            return
        counts["malformed, and answered"] += 1
        return
    if chance < 0.2:  # cancelled after a while
        task = asyncio.ensure_future(client.completions.create(**call))
        await asyncio.wait([task], timeout=draw.random() * 2)
        task.cancel()
        counts["cancelled"] += 1
        await asyncio.gather(task, return_exceptions=True)
        return
    if chance < 0.5:
        stream = await client.completions.create(**call, stream=True)
        leaves = draw.randrange(1, 6) if chance < 0.3 else None
        text = ""
        async for number_and_chunk in _counted(stream):
            number, chunk = number_and_chunk
            text += chunk.choices[0].text if chunk.choices else ""
            if leaves is not None and number >= leaves:
                await stream.close()
                counts["left in the middle"] += 1
                return
        counts["streamed"] += 1
    else:
        answer = await client.completions.create(**call)
        text = answer.choices[0].text
        counts["answered"] += 1
        if spec.pattern is not None:
            ours = answer.model_extra["kv_transfer_params"]["textguide"]["log_weight"]
            same = ours is weight or (None not in (ours, weight) and abs(ours - weight) < 2e-3)
            counts["log-weights, equal" if same else "log-weights, different"] += 1
        if answer.usage.completion_tokens > spec.tokens:
            counts["usage counts more than the user's tokens"] += 1
    if text == expected:
        counts["right"] += 1
    else:
        counts["different"] += 1
        different.append({"spec": str(spec), "ours": text, "theirs": expected})


def _call(model: str, spec: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of OpenAI's client, and those of them that are vLLM's own."""
    body = {name: value for name, value in spec.sampling().items() if name != "extra_args"}
    known = ("max_tokens", "temperature", "top_p", "seed", "stop")
    extra = {name: value for name, value in body.items() if name not in known}
    extra["vllm_xargs"] = spec.extra()
    return {name: body[name] for name in known} | {"model": model, "prompt": spec.prompt, "extra_body": extra}, extra


async def _counted(stream: Any) -> Any:
    number = 0
    async for chunk in stream:
        number += 1
        yield number, chunk


# -- speed -------------------------------------------------------------------------------------------------------------

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
        measured_with["adapter"] = json.loads(Path(arguments.adapter, "distillation.json").read_text()).get("guidance")
    if arguments.server_args:
        measured_with |= {"dtype": "as of server_args", "server_args": arguments.server_args}
    measured = _measured(arguments.json, measured_with)
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
            contestants.append((DISTILLED, "plain"))
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
                _write(arguments.json, _report(measured, measured_with, skipped))
        print("measured", flush=True)
    return _report(measured, measured_with, skipped)


Measured = dict[tuple[int, str, str], list[dict[str, float]]]
"""Figures of each turn, by clients, server and kind of request."""


def _measured(path: Path | None, measured_with: dict[str, Any]) -> Measured:
    """The turns of an earlier run.

    Raises:
        SystemExit: the file holds a run with other settings.
    """
    if path is None or not path.is_file():
        return {}
    found = json.loads(path.read_text())
    for name, value in {**about(), **measured_with}.items():
        if found.get(name) != value:
            raise SystemExit(f"--json {path} has {name}: {found.get(name)}, and this run {value}; name another file")
    return {(one["concurrency"], one["server"], one["requests"]): one.get("turns", []) for one in found["rows"]}


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


if __name__ == "__main__":
    main()
