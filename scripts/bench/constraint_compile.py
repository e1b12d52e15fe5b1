"""What it takes to build constraints: the vocabulary, patterns and JSON schemas, with the time and memory of each.

Reads ``awrs/patterns.csv`` and ``jsonschemabench/sample.jsonl`` in the data folder::

    python scripts/bench/constraint_compile.py --data DATA --json docs/results/constraint_compile.json
"""

from __future__ import annotations

import collections
import csv
import json
import os
import re
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import regex
import timing
import torch
from rich.console import Console

from textguide.constraints import Constraint, JSONSchema, Regex, Session, Vocabulary, backtracking

STEPS = 32
"""Tokens that are written under each constraint."""
QUESTIONS = 200
"""Random tokens that are tried at a step of a constraint without masks."""


def main() -> None:
    parser = timing.parser(__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("TEXTGUIDE_DATA"), help="[$TEXTGUIDE_DATA]")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("--data is missing, and TEXTGUIDE_DATA is not set")
    model, tokenizer = timing.load(arguments)
    start = time.perf_counter()
    vocabulary = Vocabulary.of(tokenizer, model.config.vocab_size)
    built = time.perf_counter()
    Regex("a").start(vocabulary)
    shared = {"vocabulary_ms": 1e3 * (built - start), "engine_ms": 1e3 * (time.perf_counter() - built)}
    with (arguments.data / "awrs" / "patterns.csv").open(encoding="utf-8") as stream:
        patterns = [row["regex"] for row in csv.DictReader(stream)]
    with (arguments.data / "jsonschemabench" / "sample.jsonl").open(encoding="utf-8") as stream:
        schemas = [json.loads(line)["schema"] for line in stream]
    masked = [pattern for pattern in patterns if Regex(pattern).engine == "llguidance"]
    others = [pattern for pattern in patterns if pattern not in masked]
    # Choosing an engine compiles patterns, which must not make the measured compilation cheap.
    backtracking.checker.cache_clear()
    regex.purge()
    rows = [
        measure("patterns", masked, Regex, vocabulary),
        measure("patterns, backtracking", others, Regex, vocabulary),
        measure("schemas", schemas, JSONSchema, vocabulary),
        measure("schemas, lenient", schemas, partial(JSONSchema, lenient=True), vocabulary),
    ]
    columns = {
        "": "{name}",
        "loaded": "{loaded} of {count}",
        "compile ms, median / max": "{compile_ms[median]:.3f} / {compile_ms[max]:.0f}",
        "mask or question ms, median / max": "{step_ms[median]:.3f} / {step_ms[max]:.0f}",
        "MB more": "{grown_mb:.0f}",
    }
    timing.show(rows, columns)
    console = Console()
    console.print(f"per tokenizer: vocabulary {shared['vocabulary_ms']:.0f} ms, engine {shared['engine_ms']:.0f} ms")
    for row in rows:
        for reason, count in row["refused"].items():
            console.print(f"{row['name']}: {count} × {reason}", markup=False)
    timing.write(arguments.json, {"machine": timing.machine(model), **shared, "rows": rows})


def measure(
    name: str, sources: Sequence[Any], make: Callable[[Any], Constraint], vocabulary: Vocabulary
) -> dict[str, Any]:
    """Compile every constraint, write a few tokens under those that load, and count why the others do not."""
    generator = torch.Generator().manual_seed(0)
    compiled: list[float] = []
    steps: list[float] = []
    refused = collections.Counter[str]()
    has_masks = True
    before = peak_megabytes()
    for source in timing.progress(sources, name):
        start = time.perf_counter()
        try:
            session = make(source).start(vocabulary)
        except ValueError as error:
            refused[reason_of(str(error))] += 1
            continue
        compiled.append(time.perf_counter() - start)
        has_masks = session.mask() is not None
        try:
            write(session, vocabulary, generator, masked_token if has_masks else checked_token, steps)
        except ValueError:
            refused["too many ways to match a text, discovered while writing"] += 1
    return {
        "name": name,
        "count": len(sources),
        "loaded": len(compiled),
        "compile_ms": {"median": 1e3 * statistics.median(compiled), "max": 1e3 * max(compiled)},
        "step": "mask" if has_masks else "question",
        "step_ms": {"median": 1e3 * statistics.median(steps), "max": 1e3 * max(steps), "count": len(steps)},
        "grown_mb": peak_megabytes() - before,
        "refused": dict(refused.most_common()),
    }


Draw = Callable[[Session, Vocabulary, torch.Generator, list[float]], int | None]
"""Chooses a token that may follow and notes the time of each look; None if none may follow."""


def write(session: Session, vocabulary: Vocabulary, generator: torch.Generator, draw: Draw, times: list[float]) -> None:
    """Write some random tokens that the constraint allows."""
    for _ in range(STEPS):
        token = draw(session, vocabulary, generator, times)
        if token is None:
            return
        session.advance(token)


def masked_token(
    session: Session, vocabulary: Vocabulary, generator: torch.Generator, times: list[float]
) -> int | None:
    """A token under a mask."""
    start = time.perf_counter()
    mask = session.mask()
    times.append(time.perf_counter() - start)
    assert mask is not None
    mask[list(vocabulary.ends)] = False
    return int(torch.multinomial(mask.float(), 1, generator=generator)) if mask.any() else None


def checked_token(
    session: Session, vocabulary: Vocabulary, generator: torch.Generator, times: list[float]
) -> int | None:
    """The first of some random tokens that may follow, each checked on its own."""
    for token in torch.randint(vocabulary.size, (QUESTIONS,), generator=generator).tolist():
        if not vocabulary.tokens[token]:
            continue
        start = time.perf_counter()
        follows = session.is_prefix(session.text + vocabulary.tokens[token])
        times.append(time.perf_counter() - start)
        if follows:
            return int(token)
    return None


def reason_of(message: str) -> str:
    """The construct that a refusal names, without its position, so that refusals can be counted."""
    reason = message.split("cannot be used: ")[-1].split(";")[0]
    reason = re.sub(r" at \d+.*| while processing.*|, one of .*| in regex .*", "", reason)
    return re.sub(r"'.*?' is not present.*", "elsewhere", reason)


def peak_megabytes() -> float:
    """Peak memory of the process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
