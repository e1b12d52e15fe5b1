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
import json
import random
import shlex
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from engines import tiny_llama
from killed_rank import kill_a_rank
from served import Server, about, serving, write
from throughput import speed

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
        write(arguments.json, report)


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
    if spec.stop and spec.stop in expected:  # vLLM cuts a text where the stop ends, inside of a token, too
        expected = expected[: expected.index(spec.stop) + len(spec.stop)]
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


if __name__ == "__main__":
    main()
