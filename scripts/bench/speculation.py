"""Plain ``generate`` against guided decoding with and without speculation, at batch 1, on four kinds of text.

Alternates the contestants within every repetition; medians; ratios against plain within each repetition and prompt, in
wall time and in processor time (all threads), which a busy machine disturbs less.
Where guided outputs differ, the gap in log-probability between the two tokens is reported::

    python scripts/bench/speculation.py --json docs/results/speculation.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import machine, seconds

import textguide
from textguide import CFG, Speculation

PASSAGE = (
    "The lighthouse keeper wrote in his diary that the storm had broken three windows on the north side, that the "
    "supply boat would not come before Thursday, and that the lamp needed oil."
)
CODE = """def area(shape):
    if shape.kind == "circle":
        return 3.14159 * shape.radius * shape.radius
    if shape.kind == "square":
        return shape.side * shape.side
    raise ValueError(shape.kind)
"""
FACTS = (
    "Anna Berg, born 1961 in Oslo, teacher.\nPaul Weiss, born 1974 in Graz, baker.\n"
    "Maria Silva, born 1983 in Porto, nurse.\n"
)
NAMES = "Anna Berg, Oslo\nPaul Weiss, Graz\nMaria Silva, Porto\n"
PROMPTS = {
    "free text": [
        "The dragon flew over Paris, France, and",
        "My grandmother always told me that",
        "In the summer of 1914 the city",
    ],
    "code": [
        'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
        "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
        "import csv\n\ndef read_rows(path):\n    with open(path) as file:\n",
    ],
    "copies and edits": [
        f"Text:\n{PASSAGE}\n\nThe same text, copied:\n{PASSAGE}\n\nThe same text, copied once more:\n",
        f"# before\n{CODE}\n# after: constants named\n{CODE.replace('3.14159', 'PI')}\n# after: with a docstring\n",
        f"{FACTS}\nAs a list of names and towns:\n{NAMES}\nAll records again:\n",
    ],
    "repetitive": [
        "Q: What is 2+2? A: 4\nQ: What is 3+3? A: 6\nQ: What is 4+4? A: 8\nQ:",
        "1. The red house is red. 2. The blue house is blue. 3. The green house is green. 4. The",
        "Monday: open 9 to 5. Tuesday: open 9 to 5. Wednesday:",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--new", type=int, default=64, help="tokens generated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=3, help="prompts of each kind, at most 3")
    parser.add_argument("--scale", type=float, default=1.5)
    parser.add_argument("--temperature", type=float, help="sample; default: greedy")
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--drafts", nargs="+", default=["prompt-lookup", "recycling"], help="of Speculation")
    parser.add_argument("--tokens", type=int, default=Speculation().tokens)
    parser.add_argument("--least", type=float, default=Speculation().least)
    parser.add_argument("--worth", type=float, default=Speculation().worth)
    parser.add_argument("--kinds", nargs="+", default=list(PROMPTS), choices=list(PROMPTS), help="of text")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    transformers.utils.logging.set_verbosity_error()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model, tokenizer = textguide.load(arguments.model, device=arguments.device, dtype=arguments.dtype)
    results = [
        measure(model, tokenizer, kind, PROMPTS[kind][: arguments.prompts], arguments) for kind in arguments.kinds
    ]
    show(results)
    if arguments.json:
        report = {"machine": machine(model), "settings": {k: str(v) for k, v in vars(arguments).items() if k != "json"}}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**report, "results": results}, indent=1) + "\n")


def measure(model: Any, tokenizer: Any, kind: str, prompts: list[str], arguments: Any) -> dict[str, Any]:
    """Medians over the prompts of one kind."""
    sampling: dict[str, Any] = {"temperature": arguments.temperature, "seed": 0} if arguments.temperature else {}
    outputs: dict[tuple[str, str], Any] = {}

    def plain(prompt: str) -> None:
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        options = {"do_sample": True, "temperature": arguments.temperature} if arguments.temperature else {}
        model.generate(
            **inputs, max_new_tokens=arguments.new, min_new_tokens=arguments.new, pad_token_id=2,
            **{"do_sample": False, **options},
        )  # fmt: skip

    def ours(name: str, guidance: Any, draft: str | None) -> Callable[[str], None]:
        speculation = draft and Speculation(
            draft, tokens=arguments.tokens, least=arguments.least, worth=arguments.worth
        )

        def call(prompt: str) -> None:
            outputs[name, prompt] = textguide.generate(
                model, tokenizer, [prompt], guidance, max_new_tokens=arguments.new, min_new_tokens=arguments.new,
                speculation=speculation, **sampling,
            )  # fmt: skip

        return call

    guidance = CFG(arguments.scale)
    contestants = {"plain": plain, "guided": ours("guided", guidance, None)}
    for draft in arguments.drafts:
        contestants[f"guided, {draft}"] = ours(f"guided, {draft}", guidance, draft)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    busy: dict[str, list[float]] = {name: [] for name in contestants}
    if kind == arguments.kinds[0]:  # the first calls of a process are slow
        for call in contestants.values():
            call(prompts[0])
    for _ in track(range(arguments.repeats), description=kind, transient=True):
        for prompt in prompts:
            for name, call in contestants.items():
                before = time.process_time()
                times[name].append(seconds(lambda call=call, prompt=prompt: call(prompt), model.device))
                busy[name].append(time.process_time() - before)
    rows = []
    for name, spent in times.items():
        row: dict[str, Any] = {
            "method": name,
            "ms_a_token": 1e3 * statistics.median(spent) / arguments.new,
            "cpu_ms_a_token": 1e3 * statistics.median(busy[name]) / arguments.new,
            "ratio": ratio(spent, times["plain"]),
            "cpu_ratio": ratio(busy[name], busy["plain"]),
            "to_guided": ratio(spent, times["guided"]),
            "cpu_to_guided": ratio(busy[name], busy["guided"]),
        }
        reports = [outputs[name, prompt].speculation for prompt in prompts] if name != "plain" else [None]
        if reports[0] is not None:
            drafted, accepted = sum(r.drafted for r in reports), sum(r.accepted for r in reports)
            row["acceptance"] = accepted / max(1, drafted)
            row["drafted"] = drafted
            row["tokens_per_pass"] = sum(r.steps for r in reports) / sum(r.passes for r in reports)
            row["differences"] = [
                gap for prompt in prompts for gap in difference(outputs["guided", prompt], outputs[name, prompt])
            ]
        rows.append(row)
    return {"kind": kind, "prompts": prompts, "rows": rows}


def ratio(spent: list[float], base: list[float]) -> float:
    """Median of the ratios of calls that stood beside each other."""
    return statistics.median(one / other for one, other in zip(spent, base, strict=True))


def difference(one: Any, other: Any) -> list[float]:
    """Empty where both wrote the same; else how far the log-probabilities of the first two tokens that differ lie
    apart. Rounding decides between tokens that lie less than about 1e-5 apart."""
    for place, (a, b) in enumerate(zip(one.new_tokens[0], other.new_tokens[0], strict=True)):
        if a != b:
            return [abs(float(one.log_probs[0, place] - other.log_probs[0, place]))]
    return []


def show(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="batch 1; medians; ratios within each repetition and prompt")
    for column in (
        "text",
        "method",
        "ms a token",
        "× plain",
        "cpu ms",
        "× plain",
        "× guided",
        "acceptance",
        "tokens a pass",
        "differ",
    ):
        table.add_column(column, justify="left" if column in ("text", "method") else "right")
    for result in results:
        for row in result["rows"]:
            speculative = "acceptance" in row
            table.add_row(
                result["kind"], row["method"], f"{row['ms_a_token']:.1f}", f"{row['ratio']:.2f}",
                f"{row['cpu_ms_a_token']:.1f}", f"{row['cpu_ratio']:.2f}", f"{row['cpu_to_guided']:.2f}",
                *((f"{row['acceptance']:.0%}", f"{row['tokens_per_pass']:.2f}", str(len(row["differences"])))
                  if speculative else ("", "", "")),
            )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
