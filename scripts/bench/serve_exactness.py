"""Is every answer of a guided vLLM engine the one that a transformers model gives, token for token?

Runs mixed requests (guided and plain, scales, negatives, schedules, seeds, greedy and drawn, patterns with their
log-weights, stops, lengths) through engines under different settings and ways of arriving, in float32, and compares
each with the transformers path::

    python scripts/bench/serve_exactness.py --requests 200 --json docs/results/serving/exactness.json

On several devices (here: processes that share the CPU), or with steps that are scheduled ahead, on a random model;
with ``--adapters`` requests run with LoRA adapters, and guide against them. Rows that ``--json`` has already are kept,
so that a run goes on where it was::

    python scripts/bench/serve_exactness.py --model tiny --ways 'two tensor ranks' 'two data ranks' --json devices.json
    python scripts/bench/serve_exactness.py --model tiny --adapters --json devices.json

Where a pair of answers differs, the difference of the two tokens' log-probabilities at that place is printed: a
near-tie is below ``--tie`` nats, and counted as such.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import served
from engines import PARALLEL, TINY, close, low_rank, start, tiny_llama

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

# Engines: what differs from the common settings. 64 and 48 tokens a step chunk most prompts; 20 blocks of 32 tokens
# hold a few of the groups that may run at once. (Blocks have 128 tokens where nothing is said.)
ENGINES: dict[str, dict[str, Any]] = {
    "unchunked": {"max_num_batched_tokens": 2048, "enable_prefix_caching": False},
    "budget 64": {"max_num_batched_tokens": 64, "enable_prefix_caching": False},
    "budget 48, prefix caching": {"max_num_batched_tokens": 48, "enable_prefix_caching": True, "block_size": 32},
    "prefix caching": {"max_num_batched_tokens": 2048, "enable_prefix_caching": True, "block_size": 32},
    "small cache": {
        "max_num_batched_tokens": 64,
        "enable_prefix_caching": False,
        "block_size": 32,
        "num_gpu_blocks_override": 20,
    },
    "small cache, prefix caching": {
        "max_num_batched_tokens": 96,
        "enable_prefix_caching": True,
        "block_size": 32,
        "num_gpu_blocks_override": 20,
    },
}
ARRIVALS = ("at once", "staggered", "aborts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="tiny: a random Llama of 4 layers and 4 heads")
    parser.add_argument("--requests", "--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--ways", nargs="+", choices=list(PARALLEL), default=["one device"])
    parser.add_argument("--arrivals", nargs="+", choices=ARRIVALS, default=list(ARRIVALS))
    parser.add_argument("--methods", action="store_true", help="guided requests carry all methods in turn, as JSON")
    parser.add_argument("--with", dest="amateur", metavar="PATH", help="a second model, for the methods that ask one")
    parser.add_argument("--adapters", action="store_true", help="requests run with two random LoRA adapters, or none")
    parser.add_argument("--tie", type=float, default=1e-4, help="nats below which a difference is a near-tie [1e-4]")
    parser.add_argument("--cache", type=Path, help="a file that keeps the reference answers")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    import torch
    from rich.console import Console
    from rich.progress import track
    from serving_mix import methods, mix, references
    from timing import machine

    import textguide

    if arguments.model == "tiny":
        arguments.model = tiny_llama(Path(tempfile.gettempdir()) / TINY)
    model, tokenizer = textguide.load(arguments.model, device="cpu", dtype=torch.float32)
    models = {}
    if arguments.amateur:
        models["amateur"] = textguide.load(arguments.amateur, device="cpu", dtype=torch.float32)[0]
    described = methods(bool(models)) if arguments.methods else None
    folders: dict[str, str] = {}
    if arguments.adapters:
        folder = Path(tempfile.gettempdir()) / "textguide-tiny-adapters"
        folders = {name: low_rank(arguments.model, folder / name, n) for n, name in enumerate(("one", "two"))}
        models |= {"base": model, **textguide.models.adapters(model, folders)}
    specs = mix(arguments.requests, arguments.seed, described, list(folders))
    progress = lambda rows: track(rows, "transformers path")  # noqa: E731
    console = Console()
    rows = kept(arguments, machine(model))
    done = {tuple(row.get(name) for name in KEYS) for row in rows}
    of_run = {"requests": arguments.requests, "adapters": len(folders)}
    # What lets steps be scheduled ahead cannot be taken back in a process: they come last.
    ways = sorted(arguments.ways, key="steps ahead".__eq__)
    expected = None
    for way, name in [(way, name) for way in ways for name in arguments.engines]:
        arrivals = [one for one in arguments.arrivals if (way, name, one, *of_run.values()) not in done]
        if not arrivals:
            continue
        expected = expected or references(model, tokenizer, specs, arguments.cache, progress, models)
        one = engine(arguments, {**ENGINES[name], **PARALLEL[way]}, folders)
        for arrival in arrivals:
            begin = time.perf_counter()
            answers, counted = run(one, specs, arrival)
            row = compare(model, tokenizer, specs, expected, answers, arguments.tie, models)
            row |= {"way": way, "engine": name, "arrival": arrival, **of_run}
            row |= {"seconds": round(time.perf_counter() - begin, 1), **counted}
            rows.append(row)
            console.print(row)
        close(one)
        if arguments.json:  # after every engine, so that an interrupted run leaves its part
            write(arguments, rows, machine(model))
    wrong = sum(row["wrong"] for row in rows)
    console.print(f"{sum(row['compared'] for row in rows)} answers, {wrong} wrong")
    raise SystemExit(bool(wrong))


KEYS = ("way", "engine", "arrival", "requests", "adapters")
"""What tells the rows of a file apart."""


def about(arguments: argparse.Namespace, machine: dict[str, Any]) -> dict[str, Any]:
    """What all rows of a file share."""
    import vllm

    model = "tiny" if Path(arguments.model).name == TINY else arguments.model
    return {
        "seed": arguments.seed, "tie": arguments.tie, "dtype": "float32", "methods": arguments.methods,
        "further_model": arguments.amateur, "model": model, "vllm": vllm.__version__, "machine": machine,
    }  # fmt: skip


def kept(arguments: argparse.Namespace, machine: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run that stay; see :func:`served.earlier`."""
    found = served.earlier(arguments.json, about(arguments, machine))
    return [] if found is None else [{"requests": found.get("requests"), "adapters": 0, **row} for row in found["rows"]]


def write(arguments: argparse.Namespace, rows: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    served.write(arguments.json, {**about(arguments, machine), "rows": rows})


def engine(arguments: argparse.Namespace, settings: dict[str, Any], adapters: dict[str, str]) -> Any:
    given = {"classifier": "sentiment"} if arguments.methods else {}
    given |= {"models": {"amateur": arguments.amateur}} if arguments.amateur else {}
    given |= {"adapters": adapters, "max_loras": 3} if adapters else {}
    return start(arguments.model, max_model_len=160, max_num_seqs=16, **given, **settings)


def run(engine: Any, specs: list[Any], arrival: str) -> tuple[list[Any], dict[str, Any]]:
    """Answers in order, None for requests that were aborted, and what the engine says of itself."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    from textguide.logits_processors.vllm_plugin.adapters import adapters_of

    draw = random.Random(1)
    before = counters(engine)
    known = adapters_of(engine.vllm_config)
    loras = {name: one.request(LoRARequest) for name, one in known.items()}
    params = [SamplingParams(**spec.sampling()) for spec in specs]
    answers: list[Any] = [None] * len(specs)
    discarded = preempted = branch_tokens = steps = 0
    left = list(range(len(specs)))
    running: set[int] = set()
    doomed = {n for n in left if arrival == "aborts" and draw.random() < 0.3}
    deadlines = {n: draw.randrange(0, 30) for n in doomed}
    internal: dict[int, str] = {}
    while left or running:
        arrivals = len(left) if arrival != "staggered" else draw.choice((0, 0, 1, 3))
        arrivals = arrivals if running else max(arrivals, 1)  # with nothing to do the engine would wait for ever
        for _ in range(min(arrivals, len(left))):
            number = left.pop(0)
            adapter = {} if specs[number].adapter is None else {"lora_request": loras[specs[number].adapter]}
            name = engine.add_request(str(number), specs[number].prompt, params[number], **adapter)
            internal[number] = name if isinstance(name, str) else str(number)
            running.add(number)
        for output in engine.step():
            number = int(output.request_id)
            if output.finished and number in running:
                running.discard(number)
                report = (output.kv_transfer_params or {}).get("textguide", {})
                one = output.outputs[0]
                summed = None if one.logprobs is None else float(one.cumulative_logprob)
                answers[number] = list(one.token_ids), report.get("log_weight"), summed
                discarded += report.get("discarded_steps", 0)
                preempted += report.get("preemptions", 0)
                branch_tokens += report.get("branch_tokens", 0)
        steps += 1
        for number in sorted(running & doomed):
            if deadlines[number] <= steps // 2:
                engine.abort_request([internal[number]], internal=True)
                running.discard(number)
                answers[number] = None
    # One more request, with whose steps the engine says what is left of those that were aborted.
    engine.add_request("last", "The", SamplingParams(max_tokens=2, temperature=0.0))
    while not any(output.finished for output in engine.step()):
        pass
    after = counters(engine)
    counted = {name: after[name] - before.get(name, 0) for name in after if name != "cache_in_use"}
    if not doomed:  # what the engines count adds up to what the answers say, and "last" has two tokens
        assert counted["engines_branch_tokens"] == branch_tokens, (counted, branch_tokens)
        assert counted["tokens"] == sum(len(one[0]) for one in answers) + 2, counted
    return answers, {
        **counted,
        "cache_in_use": after["cache_in_use"],
        "discarded_steps": discarded,
        "guided_preemptions": preempted,
        "branch_tokens": branch_tokens,
        "aborted": len([n for n in doomed if answers[n] is None]),
    }


def counters(engine: Any) -> dict[str, float]:
    """vLLM's figures and ours, summed over engines."""
    from prometheus_client import CollectorRegistry
    from vllm.v1.metrics.reader import get_metrics_snapshot

    from textguide.logits_processors.vllm_plugin.metrics import GuidanceMetrics

    if not hasattr(engine, "figures"):
        engine.figures = CollectorRegistry()
        engine.logger_manager.stat_loggers.insert(0, GuidanceMetrics(registry=engine.figures))
    names = {
        "vllm:num_preemptions": "preemptions",
        "vllm:kv_cache_usage_perc": "cache_in_use",
        "vllm:generation_tokens": "tokens",
    }
    counted = dict.fromkeys(names.values(), 0.0)
    for metric in get_metrics_snapshot():
        if metric.name in names:
            counted[names[metric.name]] += metric.value
    read = [one for metric in engine.figures.collect() for one in metric.samples]
    ours = sum(one.value for one in read if one.name == "textguide:branch_tokens_total")
    return {**counted, "engines_branch_tokens": ours}


def compare(
    model: Any, tokenizer: Any, specs: list[Any], expected: list[Any], answers: list[Any], tie: float, models: Any
) -> dict[str, Any]:
    from serving_mix import margin

    equal = ties = wrong = compared = weights = sums = 0
    by_method: dict[str, list[int]] = {}
    apart_by = sums_apart_by = 0.0
    differences = []
    for spec, (theirs, weight, likelihood), answer in zip(specs, expected, answers, strict=True):
        if answer is None:
            continue
        ours, own, summed = answer
        compared += 1
        count = by_method.setdefault(spec.method, [0, 0])
        count[1] += 1
        if ours == theirs and (own is None) == (weight is None):
            equal += 1
            count[0] += 1
            if weight is not None:
                weights, apart_by = weights + 1, max(apart_by, abs(weight - own))
            if spec.logprobs is not None:
                sums, sums_apart_by = sums + 1, max(sums_apart_by, abs(likelihood - summed))
            continue
        place = next((k for k, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if place is None:  # one of them stopped
            wrong += 1
            differences.append({"spec": str(spec), "ours": ours, "theirs": theirs, "margin": None})
            continue
        apart = margin(model, tokenizer, spec, theirs[:place], theirs[place], ours[place], models)
        is_tie = abs(apart) < tie
        ties, wrong = ties + is_tie, wrong + (not is_tie)
        differences.append({"spec": str(spec), "place": place, "margin": apart})
    found = {"compared": compared, "equal": equal, "near_ties": ties, "wrong": wrong, "differences": differences}
    found |= {"equal_of_method": by_method, "weights": weights, "largest_weight_difference": apart_by}
    return found | {"log_likelihoods": sums, "largest_log_likelihood_difference": sums_apart_by}


if __name__ == "__main__":
    main()
