"""Milliseconds of processor time per decoding step, plain and guided, in one run.

Plain decoding takes part twice: as transformers' own, and through textguide's loop with the matrix products that guided
passes use ("our plain"), so that a ratio shows what guidance costs and not what the faster products gain. "guided,
before" pads all rows to the longest one and copies the cache at every step, as transformers does::

    python scripts/bench/decode.py --threads 1 --json decode-lengths.json
    python scripts/bench/decode.py --threads 1 --json decode-lengths.json --dtype bfloat16

Cells that the file already has are not measured again. "outside" is the time of a step that is not spent in the model's
layers and head, as a share of the time that is. ``--methods`` measures it for constraints, classifiers and others::

    python scripts/bench/decode.py --threads 1 --methods --prompts 32 --batches 1 8 32 --json decode-methods.json

Long prompts in one pass and in chunks, random weights beyond 8k::

    python scripts/bench/decode.py --threads 1 --chunked --new 2 --repeats 1 --batches 1 --prompts 8000 16000 32000 \
        --positions 33000 --layers 6
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest import mock

import timing
import torch
from transformers import LogitsProcessor

import textguide
from textguide import AWRS, CAIF, CFG, CFGLogitsProcessor, guided_decoding
from textguide.constraints import JSONSchema, Regex
from textguide.forward import caches, row_batch

TEXT = (
    "The dragon flew over Paris, France, and landed on the roof of the old opera house. People in the street below "
    "stopped and looked up. A baker came out of his shop with flour on his hands, and a child pointed at the wings. "
)


def main() -> None:
    parser = timing.parser(__doc__, repeats=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 1024, 4096, 8000], help="tokens of the longest")
    parser.add_argument("--new", type=int, default=16, help="tokens generated")
    parser.add_argument("--same-lengths", action="store_true", help="instead of prompts half as long as the one above")
    parser.add_argument("--all", action="store_true", help="also other ways of guidance, and twice the rows")
    parser.add_argument("--chunked", action="store_true", help="only guided, with prompts in one pass and in chunks")
    parser.add_argument("--positions", type=int, help="random weights of the model's shape, for longer prompts")
    parser.add_argument("--layers", type=int, help="with --positions: number of layers")
    parser.add_argument("--static", action="store_true", help="also with a static cache (compiled on a GPU)")
    parser.add_argument("--methods", action="store_true", help="the time outside of the model, for many methods")
    arguments = parser.parse_args()
    model, tokenizer = timing.load(arguments)
    if arguments.methods:
        compare_methods(model, tokenizer, arguments)
        return
    if arguments.positions:
        model.config.max_position_embeddings = arguments.positions
        model.config.num_hidden_layers = arguments.layers or model.config.num_hidden_layers
        model = type(model)(model.config).to(model.device, model.dtype).eval()
    for warm in contestants(model, prompts(tokenizer, 2, 64, arguments), arguments).values():
        warm()
    rows = json.loads(arguments.json.read_text())["rows"] if arguments.json and arguments.json.exists() else []
    done = {(row["dtype"], row["prompt"], row["batch"]) for row in rows}
    dtype = str(model.dtype).removeprefix("torch.")
    for length in arguments.prompts:
        for batch in arguments.batches:
            if (dtype, length, batch) not in done:
                cell = {"dtype": dtype, "prompt": length, "batch": batch, "rounds": arguments.repeats}
                rows += [cell | row for row in measure(model, prompts(tokenizer, batch, length, arguments), arguments)]
                timing.finish(arguments, model, rows=rows)
    names = {"dtype": "{dtype}", "prompt": "{prompt}", "batch": "{batch}", "method": "{method}"}
    columns = {
        "step ms": "{step_ms:.1f}",
        "× plain": "{ratio:.2f}",
        "× our plain": "{our_ratio:.2f}",
        "outside": "{outside:.1%}",
    }
    columns |= {"prefill ms": "{prefill_ms:.0f}", "memory MB": "{memory_mb:.0f}", "× ours ": "{memory_ratio:.2f}"}
    timing.show(rows, names | columns)


def prompts(tokenizer: Any, batch: int, length: int, arguments: argparse.Namespace) -> list[list[int]]:
    """Prompts of ``length`` tokens, or each half as long as the one above it, with 16 tokens or more."""
    tokens = (tokenizer(TEXT).input_ids * (length // 40 + 2))[: length + batch]
    lengths = [length if arguments.same_lengths else max(length >> row, 16) for row in range(batch)]
    # Each row starts a token later than the previous one, so that no two rows are the same.
    return [tokens[row : row + own] for row, own in enumerate(lengths)]


def measure(model: Any, texts: list[list[int]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians for one batch."""
    calls = contestants(model, texts, arguments)
    title = f"batch {len(texts)}, prompt {len(texts[0])}"
    times = timing.compare(calls, arguments.repeats, model.device, warmup=0, memory=True, title=title)
    result = []
    for name, one in times.items():
        row = {
            "method": name,
            "prefill_ms": 1e3 * statistics.median(steps[0][0] for steps in one.results),
            "step_ms": 1e3 * statistics.median(step for steps in one.results for step, _ in steps[1:]),
            "outside": statistics.median(step / own - 1 for steps in one.results for step, own in steps[1:]),
            "memory_mb": one.megabytes,
        }
        result.append(row)
    plain, ours = result[:2]
    for row in result:
        row["ratio"] = row["step_ms"] / plain["step_ms"]
        row["our_ratio"] = row["step_ms"] / ours["step_ms"]
        row["memory_ratio"] = row["memory_mb"] / ours["memory_mb"]
    return result


def contestants(model: Any, texts: list[list[int]], arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """By name: calls that return the seconds of the prefill and of each step, and the model's part of each."""
    ours = guided_decoding(None, fast=True)
    one_pass = guided_decoding(CFG(1.5), fast=True)
    run = partial(generate, model, texts, arguments.new)
    if arguments.chunked:
        sizes = {"one pass": 1 << 50, "1 GiB": 1 << 30, "256 MiB": 1 << 28}
        ours_by_size = {name: guided_decoding(CFG(1.5), prefill_memory=size) for name, size in sizes.items()}
        return {name: partial(run, custom_generate=way) for name, way in ours_by_size.items()}
    ways: dict[str, Callable[[], Any]] = {
        "plain": run,
        "our plain": partial(run, custom_generate=ours),
        "guided, before": partial(run, before=True, custom_generate=one_pass),
        "guided": partial(run, custom_generate=one_pass),
    }
    if arguments.all:
        twice = partial(generate, model, texts * 2, arguments.new)
        ways["plain, twice the rows"] = twice
        ways["our plain, twice the rows"] = partial(twice, custom_generate=ours)
        ways["transformers' guidance_scale"] = partial(run, guidance_scale=1.5)
        ways["CFGLogitsProcessor"] = partial(run, processors=[CFGLogitsProcessor(model, 1.5)])
    if arguments.static:
        ways["plain, static"] = partial(run, cache_implementation="static")
        ways["guided, static"] = partial(run, custom_generate=guided_decoding(CFG(1.5)), cache_implementation="static")
    return ways


# -- the time outside of the model, for many methods -------------------------------------------------------------------


def compare_methods(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> None:
    """Medians over rounds of a run's mean step, and of the time outside of the model as a share of that inside."""
    rows = []
    for batch in arguments.batches:
        texts = prompts(tokenizer, batch, arguments.prompts[0], argparse.Namespace(same_lengths=True))
        calls = {}
        for name, options in methods(batch).items():
            calls[name] = partial(steer, model, tokenizer, texts, arguments.new, **options)
        for name, one in timing.compare(calls, arguments.repeats, model.device, title=f"batch {batch}").items():
            # Of a run, because a pass of speculation writes several tokens.
            runs = [[sum(part) for part in zip(*steps[1:], strict=True)] for steps in one.results]
            step_ms = 1e3 * statistics.median(step for step, _ in runs) / arguments.new
            outside_ms = 1e3 * statistics.median(step - own for step, own in runs) / arguments.new
            outside = statistics.median(step / own - 1 for step, own in runs)
            row = {"batch": batch, "method": name, "step_ms": step_ms, "outside_ms": outside_ms, "outside": outside}
            rows.append(row)
    columns = {"batch": "{batch}", "method": "{method}", "ms per token": "{step_ms:.1f}", "outside": "{outside:.1%}"}
    timing.show(rows, columns | {"outside ms": "{outside_ms:.2f}"})
    timing.finish(arguments, model, rows=rows)


def methods(batch: int) -> dict[str, dict[str, Any]]:
    """By name: the arguments of a run with ``batch`` rows. A constraint has one prompt with that many particles."""
    letters = Regex("[A-Za-z ,.'\n]{999,}")
    schema = {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 999}}
    return {
        "plain": {},
        "CFG": {"guidance": CFG(1.5)},
        "AWRS, regex": {"guidance": AWRS(letters, particles=batch), "one": True},
        "AWRS, JSON, llguidance": {"guidance": AWRS(JSONSchema(schema), particles=batch), "one": True},
        "mask, JSON, llguidance": {"guidance": AWRS(JSONSchema(schema), sampler="mask")},
        "mask, JSON, xgrammar": {"guidance": AWRS(JSONSchema(schema, engine="xgrammar"), sampler="mask")},
        "CAIF": {"guidance": CAIF("sentiment", "positive")},
        "stop texts": {"stop": ["\n\n\n\n", "THE END"]},
        "CFG, prompt lookup": {"guidance": CFG(1.5), "speculation": "prompt-lookup"},
    }


def steer(
    model: Any, tokenizer: Any, texts: list[list[int]], new: int, one: bool = False, **options: Any
) -> list[tuple[float, float]]:
    """Seconds of each of ``new`` steps after the first, with the model's part of each. ``one``: only the first text."""
    clock = Clock(model)
    samples = "speculation" not in options
    if not isinstance(options.get("guidance"), AWRS):  # a constraint that asks for long texts forbids their end
        options["suppress_tokens"] = [model.config.eos_token_id]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # texts that were cut off have weight 0
        textguide.generate(
            model,
            tokenizer,
            texts[:1] if one else texts,
            max_new_tokens=new + 1,
            do_sample=samples,
            seed=0,
            logits_processor=[clock],
            **options,
        )
    return clock.steps()


class Clock(LogitsProcessor):
    """Notes the time of every step, and how much of it the model's own layers and head took."""

    def __init__(self, model: Any) -> None:
        self.device = model.device
        self.inside = 0.0
        self.times = [(self.read(), 0.0)]
        self.hooks = []
        for module in (model.get_decoder(), model.get_output_embeddings()):
            self.hooks.append(module.register_forward_pre_hook(partial(self.add, -1)))
            self.hooks.append(module.register_forward_hook(partial(self.add, 1)))

    def add(self, sign: int, *_: Any) -> None:
        self.inside += sign * self.read()

    def read(self) -> float:
        timing.wait_for(self.device)
        return time.perf_counter() if self.device.type == "cuda" else time.process_time()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append((self.read(), self.inside))
        return scores

    def steps(self) -> list[tuple[float, float]]:
        """Remove the hooks, and return the seconds of each step and those of the model in it."""
        for hook in self.hooks:
            hook.remove()
        pairs = zip(self.times, self.times[1:], strict=False)
        return [(end - start, end_inside - inside) for (start, inside), (end, end_inside) in pairs]


def generate(
    model: Any, texts: list[list[int]], new: int, before: bool = False, processors: Any = (), **options: Any
) -> list[tuple[float, float]]:
    """Seconds until the first logits, and of each of ``new`` greedy steps after them, with the model's part of each."""
    longest = max(map(len, texts))
    ids = torch.tensor([[2] * (longest - len(text)) + text for text in texts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts], device=model.device)
    clock = Clock(model)
    padded = mock.patch.object(row_batch, "LEAST_PADDING", float("inf")) if before else nullcontext()
    copied = mock.patch.object(caches, "grow_in_place", lambda cache: cache) if before else nullcontext()
    options["logits_processor"] = [*processors, clock]
    length = {"max_new_tokens": new + 1, "min_new_tokens": new + 1}
    with padded, copied:
        model.generate(input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=2, **length, **options)
    return clock.steps()


if __name__ == "__main__":
    main()
