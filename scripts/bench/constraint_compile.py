"""What it takes to build constraints: the vocabulary, patterns and JSON schemas, with the time and memory of each.

Reads ``awrs/patterns.csv`` and ``jsonschemabench/sample.jsonl`` below ``TEXTGUIDE_DATA``; prints a table and writes
JSON::

    python scripts/bench/constraint_compile.py --json docs/results/constraint_compile.json
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
import os
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import regex
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import textguide
from textguide.constraints import Constraint, JSONSchema, Regex, Session, Vocabulary
from textguide.constraints.patterns import backtracking

STEPS = 32
QUESTIONS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, default=os.environ.get("TEXTGUIDE_DATA"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("--data is missing, and TEXTGUIDE_DATA is not set")
    model, tokenizer = textguide.load(arguments.model)
    start = time.perf_counter()
    vocabulary = Vocabulary.of(tokenizer, model.config.vocab_size)
    first = time.perf_counter()
    Regex("a").start(vocabulary)
    shared = {"vocabulary_ms": 1e3 * (first - start), "engine_ms": 1e3 * (time.perf_counter() - first)}
    with (arguments.data / "awrs" / "patterns.csv").open(encoding="utf-8") as stream:
        patterns = [row["regex"] for row in csv.DictReader(stream)]
    with (arguments.data / "jsonschemabench" / "sample.jsonl").open(encoding="utf-8") as stream:
        schemas = [json.loads(line)["schema"] for line in stream]
    masked = [pattern for pattern in patterns if Regex(pattern).engine == "llguidance"]
    backtracking.checker.cache_clear()
    regex.purge()
    rows = [
        measure("patterns", masked, Regex, vocabulary),
        measure("patterns, backtracking", [p for p in patterns if p not in masked], Regex, vocabulary),
        measure("schemas", schemas, JSONSchema, vocabulary),
        measure("schemas, lenient", schemas, lambda schema: JSONSchema(schema, lenient=True), vocabulary),
    ]
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    show(shared, rows)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": machine, **shared, "rows": rows}, indent=1) + "\n")


def measure(
    name: str, values: Sequence[Any], make: Callable[[Any], Constraint], vocabulary: Vocabulary
) -> dict[str, Any]:
    """Compile every one, walk a few tokens into those that load, and say why the others do not."""
    generator = torch.Generator().manual_seed(0)
    times, steps, refused = [], [], collections.Counter[str]()
    questions = False
    before = resident()
    for value in track(values, description=name, transient=True):
        begun = time.perf_counter()
        try:
            session = make(value).start(vocabulary)
        except ValueError as error:
            refused[construct(str(error))] += 1
            continue
        times.append(time.perf_counter() - begun)
        questions = session.mask() is None
        for _ in range(STEPS):
            try:
                token = (ask if questions else draw)(session, vocabulary, generator, steps)
            except ValueError:
                refused["too many ways to match a text, found out while writing"] += 1
                break
            if token is None:
                break
            session.advance(token)
    return {
        "name": name,
        "count": len(values),
        "loaded": len(times),
        "compile_ms": {"median": 1e3 * statistics.median(times), "max": 1e3 * max(times)},
        "step": "question" if questions else "mask",
        "step_ms": {"median": 1e3 * statistics.median(steps), "max": 1e3 * max(steps), "count": len(steps)},
        "grown_mb": resident() - before,
        "refused": dict(refused.most_common()),
    }


def draw(session: Session, vocabulary: Vocabulary, generator: torch.Generator, times: list[float]) -> int | None:
    """A token under a mask, whose time is noted; None where none may follow."""
    begun = time.perf_counter()
    mask = session.mask()
    times.append(time.perf_counter() - begun)
    assert mask is not None
    mask[list(vocabulary.ends)] = False
    return int(torch.multinomial(mask.float(), 1, generator=generator)) if mask.any() else None


def ask(session: Session, vocabulary: Vocabulary, generator: torch.Generator, times: list[float]) -> int | None:
    """The first of some random tokens that may follow, where the time of each question is noted."""
    for token in torch.randint(vocabulary.size, (QUESTIONS,), generator=generator).tolist():
        if not vocabulary.tokens[token]:
            continue
        begun = time.perf_counter()
        follows = session.is_prefix(session.text + vocabulary.tokens[token])
        times.append(time.perf_counter() - begun)
        if follows:
            return int(token)
    return None


def construct(message: str) -> str:
    """What a refusal names, without its place."""
    reason = message.split("cannot be used: ")[-1].split(";")[0]
    reason = re.sub(r" at \d+.*| while processing.*|, one of .*| in regex .*", "", reason)
    return re.sub(r"'.*?' is not present.*", "elsewhere", reason)


def resident() -> float:
    """Peak memory of the process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def show(shared: dict[str, float], rows: list[dict[str, Any]]) -> None:
    console = Console()
    console.print(f"vocabulary {shared['vocabulary_ms']:.0f} ms, engine {shared['engine_ms']:.0f} ms, once a tokenizer")
    table = Table("", "loaded", "compile ms, median / max", "mask or question ms, median / max", "MB more")
    for row in rows:
        loaded = f"{row['loaded']} of {row['count']}"
        pairs = [f"{row[key]['median']:.3f} / {row[key]['max']:.0f}" for key in ("compile_ms", "step_ms")]
        table.add_row(row["name"], loaded, *pairs, f"{row['grown_mb']:.0f}")
    console.print(table)
    for row in rows:
        for reason, count in row["refused"].items():
            console.print(f"{row['name']}: {count} × {reason}", markup=False)


if __name__ == "__main__":
    main()
