"""The cost of scoring under guidance: lm-eval's plain model, one guided scale, and a sweep, on the same LAMBADA rows.

Alternates the contestants within every repetition, reports medians, prints a table and writes JSON::

    python scripts/bench/sweep.py --data DATA --json docs/results/sweep.json
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import lm_eval
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import machine, peak_memory

from textguide import CFG, tasks
from textguide.eval import GuidedLM
from textguide.models import bundled

SCALES = [1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with local data files [$TEXTGUIDE_DATA]")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()

    requests = lambada(arguments.data, arguments.rows)
    folder = str(bundled.folder())
    plain = HFLM(pretrained=folder, batch_size=arguments.batch_size, device=arguments.device, dtype="float32")
    read = sum(len(plain.tok_encode(context + target)) - 1 for context, target in (r.args for r in requests))

    def guided(settings: list[Any]) -> GuidedLM:
        return GuidedLM(
            pretrained=plain.model, tokenizer=plain.tokenizer, batch_size=arguments.batch_size, settings=settings
        )

    def run_plain() -> None:
        plain.loglikelihood(requests, disable_tqdm=True)

    def run(settings: list[Any]) -> None:
        lm = guided(settings)
        for lm.current in range(len(settings)):
            lm.loglikelihood(requests, disable_tqdm=True)

    contestants = {
        "lm-eval, plain": run_plain,
        "textguide, plain": lambda: run([None]),
        "textguide, one guided scale": lambda: run([CFG(1.5)]),
        f"textguide, {len(SCALES)} scales": lambda: run([CFG(scale) for scale in SCALES]),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    memory = dict.fromkeys(contestants, 0.0)
    plain.loglikelihood(requests[:16], disable_tqdm=True)
    for _ in track(range(arguments.repeats), transient=True):
        for name, call in contestants.items():
            with peak_memory(plain.model.device) as peak:
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
            memory[name] = max(memory[name], peak.megabytes)

    rows = []
    for name, seconds in times.items():
        rows.append(
            {
                "method": name,
                "seconds": statistics.median(seconds),
                "of_plain": statistics.median(a / b for a, b in zip(seconds, times["lm-eval, plain"], strict=True)),
                "of_one_scale": statistics.median(
                    a / b for a, b in zip(seconds, times["textguide, one guided scale"], strict=True)
                ),
                "tokens_per_second": read / statistics.median(seconds),
                "memory_mb": memory[name],
            }
        )
    table = Table(title=f"LAMBADA, first {len(requests)} rows, batch {arguments.batch_size}: medians")
    for column in ("method", "seconds", "× lm-eval plain", "× one scale", "context tokens/s", "memory MB"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(
            row["method"],
            f"{row['seconds']:.1f}",
            f"{row['of_plain']:.2f}",
            f"{row['of_one_scale']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['memory_mb']:.0f}",
        )
    Console(width=120).print(table)
    if arguments.json:
        settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("data", "json")}
        report = {
            "machine": {**machine(plain.model), "lm_eval": lm_eval.__version__},
            "settings": settings,
            "rows": rows,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def lambada(data: str | None, rows: int) -> list[Any]:
    """The first ``rows`` requests of LAMBADA, as lm-eval builds them."""
    specs, manager = tasks.resolve(["lambada_openai"], data)
    task = manager.load(specs)["tasks"]["lambada_openai"]
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(limit=rows)
    return [Instance("loglikelihood", r.doc, r.args, r.idx, r.metadata) for r in task.instances]


if __name__ == "__main__":
    main()
