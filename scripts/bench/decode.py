"""Milliseconds per decoding step, plain and guided, in one run.

Plain decoding takes part twice: as transformers' own, and through textguide's loop with the matrix products that guided
passes use ("our kernels"), so that a ratio shows what guidance costs and not what the faster products gain::

    python scripts/bench/decode.py --json docs/results/decode.json
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import timing
import torch

from textguide import CFG, CFGLogitsProcessor, guided_decoding

TEXT = (
    "The dragon flew over Paris, France, and landed on the roof of the old opera house. People in the street below "
    "stopped and looked up. A baker came out of his shop with flour on his hands, and a child pointed at the wings. "
)
PLAIN = ("plain", "plain, our kernels")
TWICE = "plain, our kernels, twice the rows"


def main() -> None:
    parser = timing.parser(__doc__, repeats=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 512], help="prompt lengths in tokens")
    parser.add_argument("--new", type=int, default=32, help="tokens generated")
    parser.add_argument("--static", action="store_true", help="also with a static cache (compiled on a GPU)")
    arguments = parser.parse_args()
    model, tokenizer = timing.load(arguments)
    rows = []
    for length in arguments.prompts:
        for batch in arguments.batches:
            rows += measure(model, tokenizer, batch, length, arguments)
    columns = {
        "batch": "{batch}",
        "prompt": "{prompt}",
        "method": "{method}",
        "prefill ms": "{prefill_ms:.0f}",
        "× plain": "{prefill_ratio:.2f}",
        "step ms": "{step_ms:.1f}",
        "× plain ": "{step_ratio:.2f}",
        "× 2 rows": "{step_ratio_twice_the_rows:.2f}",
        "memory MB": "{memory_mb:.0f}",
    }
    timing.show(rows, columns, "ratios within each round: the faster plain run, and our kernels on twice the rows")
    timing.finish(arguments, model, rows=rows)


def measure(model: Any, tokenizer: Any, batch: int, length: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians for one batch size and prompt length."""
    tokens = (tokenizer(TEXT).input_ids * (length // 40 + 2))[: length + batch]
    # Each row starts a token later than the previous one, so that no two rows are the same.
    ids = torch.tensor([tokens[row : row + length] for row in range(batch)], device=model.device)
    calls: dict[tuple[str, int], Callable[[], None]] = {}
    for name, (rows, options) in contestants(model, ids, arguments.static).items():
        for new in (1, 1 + arguments.new):
            calls[name, new] = partial(generate, model, rows, new, **options)
    times = timing.compare(calls, arguments.repeats, model.device, memory=True, title=f"batch {batch}, prompt {length}")
    prefill = {name: one.seconds for (name, new), one in times.items() if new == 1}
    step = {}
    for name, first in prefill.items():
        whole = times[name, 1 + arguments.new].seconds
        step[name] = [(total - start) / arguments.new for total, start in zip(whole, first, strict=True)]
    plain = min(PLAIN, key=lambda name: statistics.median(step[name]))
    result = []
    for name in prefill:
        row = {
            "batch": batch,
            "prompt": length,
            "method": name,
            "prefill_ms": 1e3 * statistics.median(prefill[name]),
            "step_ms": 1e3 * statistics.median(step[name]),
            "step_ratio": timing.ratio(step[name], step[plain]),
            "step_ratio_twice_the_rows": timing.ratio(step[name], step[TWICE]),
            "prefill_ratio": timing.ratio(prefill[name], prefill[plain]),
            "memory_mb": times[name, 1 + arguments.new].megabytes,
        }
        result.append(row)
    return result


def contestants(model: Any, ids: torch.Tensor, static: bool) -> dict[str, tuple[torch.Tensor, dict[str, Any]]]:
    """By name: the prompts and the options of ``model.generate``; ``static`` adds static caches."""
    double = torch.cat([ids, ids])
    ours = guided_decoding(None, fast=True)
    one_pass = guided_decoding(CFG(1.5), fast=True)
    guessing = guided_decoding(CFG(1.5), fast=True, speculation="prompt-lookup")
    ways: dict[str, tuple[torch.Tensor, dict[str, Any]]] = {
        "plain": (ids, {}),
        "plain, our kernels": (ids, {"custom_generate": ours}),
        "plain, twice the rows": (double, {}),
        TWICE: (double, {"custom_generate": ours}),
        "transformers' guidance_scale": (ids, {"guidance_scale": 1.5}),
        "CFGLogitsProcessor": (ids, {"logits_processor": [CFGLogitsProcessor(model, 1.5)]}),
        "one pass": (ids, {"custom_generate": one_pass}),
        "one pass, prompt-lookup": (ids, {"custom_generate": guessing}),
    }
    if static:
        cache = {"cache_implementation": "static"}
        ways["plain, static"] = (ids, cache)
        ways["one pass, static"] = (ids, {"custom_generate": guided_decoding(CFG(1.5)), **cache})
    return ways


def generate(model: Any, ids: torch.Tensor, new: int, **options: Any) -> None:
    """Exactly ``new`` tokens for each row, greedily."""
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        pad_token_id=2,
        do_sample=False,
        **options,
    )


if __name__ == "__main__":
    main()
