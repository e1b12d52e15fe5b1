"""Seconds a decoding step, plain and guided, in one run.

Alternates the contestants within every repetition, reports medians, prints a table and writes JSON. Plain decoding
takes part twice: as transformers' own, and through textguide's loop with the matrix products that guided passes use
("our kernels"), so that a ratio tells what guidance costs and not what the products gain::

    python scripts/bench/decode.py --json docs/results/decode.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import machine, peak_memory, seconds

import textguide
from textguide import CFG, CFGLogitsProcessor, guided_decoding

TEXT = (
    "The dragon flew over Paris, France, and landed on the roof of the old opera house. People in the street below "
    "stopped and looked up. A baker came out of his shop with flour on his hands, and a child pointed at the wings. "
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 512], help="prompt lengths in tokens")
    parser.add_argument("--new", type=int, default=32, help="tokens generated")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip", type=float, default=0.01, help="skip threshold in nats")
    parser.add_argument("--static", action="store_true", help="also with a static cache (compiled on a GPU)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    transformers.utils.logging.set_verbosity_error()
    model, tokenizer = textguide.load(arguments.model, device=arguments.device, dtype=arguments.dtype)
    rows = []
    for length in arguments.prompts:
        for batch in arguments.batches:
            rows += measure(model, tokenizer, batch, length, arguments)
    report = {
        "machine": machine(model),
        "settings": {k: str(v) for k, v in vars(arguments).items()},
        "rows": rows,
    }
    show(rows)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def measure(model: Any, tokenizer: Any, batch: int, length: int, arguments: Any) -> list[dict[str, Any]]:
    """Medians for one batch size and prompt length."""
    tokens = (tokenizer(TEXT).input_ids * (length // 40 + 2))[: length + batch]
    # A row starts a token later than the one before it, so that no two rows are the same.
    ids = torch.tensor([tokens[row : row + length] for row in range(batch)], device=model.device)
    double = torch.cat([ids, ids])

    def run(ids: torch.Tensor, new: int, **options: Any) -> None:
        mask = torch.ones_like(ids)
        options.setdefault("do_sample", False)
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=2,
            **options,
        )

    def ours(guidance: Any, **options: Any) -> Any:
        return guided_decoding(guidance, fast=True, **options)

    skipping = ours(CFG(1.5, skip_threshold=arguments.skip))
    contestants: dict[str, Callable[[int], None]] = {
        "plain": lambda new: run(ids, new),
        "plain, our kernels": lambda new: run(ids, new, custom_generate=ours(None)),
        "plain, twice the rows": lambda new: run(double, new),
        "plain, our kernels, twice the rows": lambda new: run(double, new, custom_generate=ours(None)),
        "transformers' guidance_scale": lambda new: run(ids, new, guidance_scale=1.5),
        "CFGLogitsProcessor": lambda new: run(ids, new, logits_processor=[CFGLogitsProcessor(model, 1.5)]),
        "one pass": lambda new: run(ids, new, custom_generate=ours(CFG(1.5))),
        f"one pass, skip {arguments.skip:g}": lambda new: run(ids, new, custom_generate=skipping),
        "one pass, prompt-lookup": lambda new: run(
            ids, new, custom_generate=ours(CFG(1.5), speculation="prompt-lookup")
        ),
    }
    if arguments.static:
        static = {"cache_implementation": "static"}
        contestants["plain, static"] = lambda new: run(ids, new, **static)
        contestants["one pass, static"] = lambda new: run(ids, new, custom_generate=guided_decoding(CFG(1.5)), **static)

    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    memory = dict.fromkeys(contestants, 0.0)
    for call in contestants.values():
        call(2)
    for _ in track(range(arguments.repeats), description=f"batch {batch}, prompt {length}", transient=True):
        for name, call in contestants.items():
            prefill = seconds(lambda call=call: call(1), model.device)
            with peak_memory(model.device) as peak:
                total = seconds(lambda call=call: call(1 + arguments.new), model.device)
            times[name].append((prefill, (total - prefill) / arguments.new))
            memory[name] = max(memory[name], peak.megabytes)
    result = []
    medians = {name: statistics.median(step for _, step in times[name]) for name in ("plain", "plain, our kernels")}
    # Against the faster way to decode plainly, and against the same kernels on twice the rows.
    plain = times[min(medians, key=lambda name: medians[name])]
    twice = times["plain, our kernels, twice the rows"]
    for name, pairs in times.items():
        ratios = [step / base for (_, step), (_, base) in zip(pairs, plain, strict=True)]
        doubled = [step / base for (_, step), (_, base) in zip(pairs, twice, strict=True)]
        prefills = [prefill / base for (prefill, _), (base, _) in zip(pairs, plain, strict=True)]
        row = {
            "batch": batch,
            "prompt": length,
            "method": name,
            "prefill_ms": 1e3 * statistics.median(prefill for prefill, _ in pairs),
            "step_ms": 1e3 * statistics.median(step for _, step in pairs),
            "step_ratio": statistics.median(ratios),
            "step_ratio_twice_the_rows": statistics.median(doubled),
            "prefill_ratio": statistics.median(prefills),
            "memory_mb": memory[name],
        }
        if "skip" in name and skipping.effect is not None:
            row["effect"] = skipping.effect.to_dict()
        result.append(row)
    return result


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(
        title="medians; ratios within each repetition: the faster plain run, and our kernels on twice the rows"
    )
    for column in ("batch", "prompt", "method", "prefill ms", "× plain", "step ms", "× plain", "× 2 rows", "memory MB"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(
            str(row["batch"]), str(row["prompt"]), row["method"], f"{row['prefill_ms']:.0f}",
            f"{row['prefill_ratio']:.2f}", f"{row['step_ms']:.1f}", f"{row['step_ratio']:.2f}",
            f"{row['step_ratio_twice_the_rows']:.2f}",
            f"{row['memory_mb']:.0f}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
