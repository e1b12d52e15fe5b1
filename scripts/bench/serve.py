"""A guided server under load: does it stay alive and correct, and what does guidance cost?

::

    python scripts/bench/serve.py soak --requests 2000 --json docs/results/serving/soak.json
    python scripts/bench/serve.py speed --concurrency 1 8 32 --json docs/results/serving/speed.json
    python scripts/bench/serve.py speed --concurrency 8 32 --guesses --adapter ADAPTER --json throughput.json

It only uses the loopback, and is bounded by ``--requests`` and ``--minutes``. ``speed`` continues after the turns that
its file already has.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import time
from collections import Counter
from pathlib import Path
from typing import Any

import timing
from engines import tiny_llama
from served import Server, about, serving
from serving_mix import Spec, methods, mix, references
from throughput import client_of, speed

import textguide

# Mistakes of clients, and the word that the answer has to contain.
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
    ({"guidance": '{"method": "apg", "sclae": 2}'}, "'sclae' is not a field of apg"),
    ({"guidance": '{"method": "context-aware", "context": "%&"}'}, "context="),
    ({"guidance": '[{"method": "cfg"}, {"method": "apg"}]'}, "two guidances"),
    ({"guidance": '{"method": "dola"}'}, "dola"),
    ({"guidance": "cfg", "guidance_scale": 2}, "exclude"),
]
STAGES = (1, 4, 12, 24, 48)
"""Requests under way at any time, one stage after the other."""
OF_CLIENT = ("max_tokens", "temperature", "top_p", "seed", "stop")
"""Arguments that OpenAI's client has itself; the others are vLLM's."""


def main() -> None:
    parser = timing.parser(__doc__, model=None)
    parser.add_argument("mode", choices=("soak", "speed"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--server-args", default="", help="more options of the servers, such as '--dtype bfloat16'")
    parser.add_argument("--log", type=Path, help="a file for the server's output")
    soaking = parser.add_argument_group("soak")
    soaking.add_argument("--methods", action="store_true", help="guided requests carry all methods, as JSON")
    soaking.add_argument("--with", dest="amateur", metavar="PATH", help="a second model, for methods that need one")
    soaking.add_argument("--requests", type=int, default=2000, help="in all [%(default)s]")
    soaking.add_argument("--minutes", type=float, default=60, help="the longest that they may take [%(default)g]")
    soaking.add_argument("--cache", type=Path, help="a file that stores the reference answers")
    soaking.add_argument("--seed", type=int, default=0)
    speeding = parser.add_argument_group("speed")
    speeding.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    speeding.add_argument("--rounds", type=int, default=4, help="requests per client and measurement [%(default)s]")
    speeding.add_argument("--repeats", type=int, default=5, help="measurements per row [%(default)s]")
    speeding.add_argument("--tokens", type=int, default=32, help="tokens of an answer [%(default)s]")
    speeding.add_argument("--settle", type=float, default=0, help="idle seconds before measuring [0]")
    speeding.add_argument("--guesses", action="store_true", help="another server, which guesses tokens by n-grams")
    speeding.add_argument("--adapter", help="folder of a distilled adapter (PEFT), which vLLM's own server serves")
    speeding.add_argument("--adapter-rank", type=int, default=16, help="the largest of the adapter [%(default)s]")
    arguments = parser.parse_args()
    timing.quiet(arguments)
    report = soak(arguments) if arguments.mode == "soak" else speed(arguments)
    print(json.dumps(report, indent=1))
    timing.write(arguments.json, report)


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Requests at rising concurrency, some of them malformed, cancelled, or abandoned in the middle of a stream."""
    if arguments.model == "tiny":
        arguments.model = tiny_llama()
    model, tokenizer = textguide.load(arguments.model, device="cpu", dtype="float32")
    models = {}
    if arguments.amateur:
        models["amateur"] = textguide.load(arguments.amateur, device="cpu", dtype="float32")[0]
    described = methods(bool(models)) if arguments.methods else None
    # Plain, sampled requests are left out: without guidance vLLM's runner for CPUs cannot read their prompts in chunks.
    mixed = mix(120, arguments.seed, described)
    specs = [spec for spec in mixed if not spec.is_plain or spec.temperature == 0][:60]
    expected = []
    for tokens, weight, _ in references(model, tokenizer, specs, arguments.cache, models):
        expected.append((tokenizer.decode(tokens, skip_special_tokens=True), weight))
    del model, models  # the server needs the memory

    options = ["--max-model-len", "160", "--max-num-seqs", "24", "--max-num-batched-tokens", "96"]
    options += ["--block-size", "32", "--num-gpu-blocks-override", "40"]
    options += ["--classifier", "sentiment"] if arguments.methods else []
    options += ["--with", f"amateur={arguments.amateur}"] if arguments.amateur else []
    options += shlex.split(arguments.server_args)
    with serving(arguments.model, *options, log=arguments.log) as server:
        return asyncio.run(Soak(server, specs, expected, arguments).run())


class Soak:
    """The requests of one run, and what became of them.

    Args:
        server: the server under load.
        specs: the requests that are drawn from.
        expected: text and log-weight of each.
        arguments: of the command line.
    """

    def __init__(
        self,
        server: Server,
        specs: list[Spec],
        expected: list[tuple[str, float | None]],
        arguments: argparse.Namespace,
    ) -> None:
        self.server = server
        self.specs = specs
        self.expected = expected
        self.arguments = arguments
        self.draw = random.Random(arguments.seed)
        self.counts: Counter[str] = Counter()
        self.differences: list[dict[str, Any]] = []

    async def run(self) -> dict[str, Any]:
        """Send all requests, and report."""
        self.client = client_of(self.server)
        self.start = time.monotonic()
        memory = []
        sent = 0
        for stage, concurrency in enumerate(STAGES):
            share = self.arguments.requests * (stage + 1) // len(STAGES) - sent
            sent += share
            queue = [self.draw.random() for _ in range(share)]
            await asyncio.gather(*(self.worker(queue) for _ in range(concurrency)))
            memory.append(round(self.server.megabytes()))
            print(f"concurrency {concurrency}: {dict(self.counts)}, {memory[-1]} MB", flush=True)
        # Aborted requests end with the steps of the next one, and metrics are updated with a delay.
        await asyncio.sleep(2)
        await self.client.completions.create(model=self.server.model, prompt="The", max_tokens=2, temperature=0)
        await asyncio.sleep(1)
        metrics = self.server.metrics()
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total")
        return {
            **about(),
            "model": self.arguments.model,
            "seconds": round(time.monotonic() - self.start),
            "counts": dict(self.counts),
            "different": self.differences[:20],
            "memory_mb_by_stage": memory,
            "alive": self.server.healthy(),
            "left": {name: metrics.get(f"vllm:{name}") for name in names},
            "tokens": {
                "user's": metrics.get("vllm:generation_tokens_total"),
                "branch requests'": metrics.get("textguide:branch_tokens_total"),
            },
        }

    async def worker(self, queue: list[float]) -> None:
        """A client that sends the next request of the queue when the last one has ended."""
        import openai

        while queue and time.monotonic() - self.start < self.arguments.minutes * 60:
            chance = queue.pop()
            self.counts["sent"] += 1
            try:
                await self.request(chance, self.draw.randrange(len(self.specs)))
            except openai.APIStatusError as error:
                self.counts[f"unexpected HTTP {error.status_code}"] += 1
                self.differences.append({"error": str(error)[:300]})
            except openai.APIConnectionError as error:
                self.counts["connection lost"] += 1
                self.differences.append({"error": repr(error)[:300]})

    async def request(self, chance: float, number: int) -> None:
        """A tenth of the requests is malformed, a tenth cancelled, a tenth abandoned, a fifth streamed."""
        call = call_of(self.server.model, self.specs[number])
        if chance < 0.1:
            await self.malformed(call)
        elif chance < 0.2:
            await self.cancelled(call)
        elif chance < 0.3:
            await self.abandoned(call)
        elif chance < 0.5:
            await self.streamed(call, number)
        else:
            await self.answered(call, number)

    async def malformed(self, call: dict[str, Any]) -> None:
        """A request with a mistake has to be refused by name."""
        import openai

        wrong, name = self.draw.choice(MALFORMED)
        try:
            await self.client.completions.create(**call | {"extra_body": {**call["extra_body"], "vllm_xargs": wrong}})
        except openai.BadRequestError as error:
            self.counts["malformed, answered with HTTP 400"] += 1
            if name not in str(error):
                self.counts["HTTP 400 that does not name the argument"] += 1
                self.differences.append({"error": str(error)[:300], "sent": str(wrong)})
        else:
            self.counts["malformed, and answered"] += 1

    async def cancelled(self, call: dict[str, Any]) -> None:
        """The client closes the connection after a while."""
        task = asyncio.ensure_future(self.client.completions.create(**call))
        await asyncio.wait([task], timeout=self.draw.random() * 2)
        task.cancel()
        self.counts["cancelled"] += 1
        await asyncio.gather(task, return_exceptions=True)

    async def abandoned(self, call: dict[str, Any]) -> None:
        """The client leaves a stream after a few tokens."""
        remaining = self.draw.randrange(1, 6)
        stream = await self.client.completions.create(**call, stream=True)
        async for _ in stream:
            remaining -= 1
            if remaining == 0:
                await stream.close()
                break
        self.counts["left in the middle"] += 1

    async def streamed(self, call: dict[str, Any], number: int) -> None:
        """The parts of a stream make the expected text."""
        text = ""
        async for chunk in await self.client.completions.create(**call, stream=True):
            text += chunk.choices[0].text if chunk.choices else ""
        self.counts["streamed"] += 1
        self.compare(text, number)

    async def answered(self, call: dict[str, Any], number: int) -> None:
        """The answer has the expected text, log-weight and number of tokens."""
        answer = await self.client.completions.create(**call)
        self.counts["answered"] += 1
        spec = self.specs[number]
        if spec.pattern is not None:
            weight = self.expected[number][1]
            own = answer.model_extra["kv_transfer_params"]["textguide"]["log_weight"]
            same = own == weight if None in (own, weight) else abs(own - weight) < 2e-3
            self.counts["log-weights, equal" if same else "log-weights, different"] += 1
        if answer.usage.completion_tokens > spec.tokens:
            self.counts["usage counts more than the user's tokens"] += 1
        self.compare(answer.choices[0].text, number)

    def compare(self, text: str, number: int) -> None:
        """Count a text as right or different."""
        spec = self.specs[number]
        expected = self.expected[number][0]
        if spec.stop and spec.stop in expected:
            # vLLM cuts a text at the end of the stop, even inside of a token.
            expected = expected[: expected.index(spec.stop) + len(spec.stop)]
        if text == expected:
            self.counts["right"] += 1
        else:
            self.counts["different"] += 1
            self.differences.append({"spec": str(spec), "ours": text, "theirs": expected})


def call_of(model: str, spec: Spec) -> dict[str, Any]:
    """The arguments of OpenAI's client for a request."""
    sampling = spec.sampling()
    call = {name: sampling[name] for name in OF_CLIENT}
    extra = {name: value for name, value in sampling.items() if name not in (*OF_CLIENT, "extra_args")}
    return {**call, "model": model, "prompt": spec.prompt, "extra_body": {**extra, "vllm_xargs": spec.extra()}}


if __name__ == "__main__":
    main()
