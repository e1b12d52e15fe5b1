"""Passes and seconds of masked diffusion under each guidance, in one run.

Alternates the contestants within every repetition, reports medians, prints a table and writes JSON::

    python scripts/bench/diffusion.py --json docs/results/diffusion/bench.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from textguide import ACFG, CFG, diffusion
from textguide.eval.statistics.paired import compare_items
from textguide.support.files import write_json
from textguide.tasks import sudoku

THRESHOLDS = (None, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sudoku4")
    parser.add_argument("--side", type=int, default=4)
    parser.add_argument("--puzzles", type=int, default=64, help="rows of the timing batch")
    parser.add_argument("--solve", type=int, default=1500, help="puzzles for the solve rates")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    model, tokenizer = diffusion.load(arguments.model)
    denoiser = diffusion.denoiser(model, tokenizer)
    cells = arguments.side**2
    puzzles = sudoku.puzzles(arguments.side, arguments.solve, sudoku.TEST_CLUES[arguments.side], sudoku.TEST_SEED)
    prompts = [puzzle for puzzle, _ in puzzles[: arguments.puzzles]]
    common: dict[str, Any] = {"gen_length": cells, "early_end": False, "warn": False}

    def write(texts: list[str], **options: Any) -> diffusion.DiffusionResult:
        return diffusion.generate(denoiser, tokenizer, texts, **common, **options)

    contestants: dict[str, Callable[[], diffusion.DiffusionResult]] = {
        "plain": lambda: write(prompts),
        "plain, twice the rows": lambda: write(prompts * 2),
        "CFG": lambda: write(prompts, guidance=CFG(1.5)),
        "A-CFG": lambda: write(prompts, guidance=ACFG(1.5)),
        "A-CFG, one pass": lambda: write(prompts, guidance=ACFG(1.5, one_pass=True)),
        "A-CFG, threshold 0.9": lambda: write(prompts, guidance=ACFG(1.5), threshold=0.9),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    costs = {name: call() for name, call in contestants.items()}
    for _ in track(range(arguments.repeats), description="timing", transient=True):
        for name, call in contestants.items():
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)

    def ratio(name: str, base: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))

    rows = [
        {"variant": name, "passes": costs[name].passes, "rows": costs[name].rows,
         "seconds": statistics.median(values), "against_plain": ratio(name, "plain")}
        for name, values in times.items()
    ]  # fmt: skip
    solving: list[dict[str, Any]] = []
    base: list[float] = []
    for threshold in track(THRESHOLDS, description="thresholds", transient=True):
        row, solved = solve(write, puzzles, threshold)
        base = base or solved
        found = compare_items(solved, base)
        row |= {"difference": found.difference, "low": found.low, "high": found.high}
        solving.append(row | {"fewer_steps": solving[0]["steps_a_puzzle"] / row["steps_a_puzzle"] if solving else 1.0})
    ratios = {
        "batched CFG / plain with twice the rows": ratio("CFG", "plain, twice the rows"),
        "one-pass A-CFG / CFG": ratio("A-CFG, one pass", "CFG"),
    }
    texts = [puzzle for puzzle, _ in puzzles]
    exact, early = (write(texts, guidance=ACFG(1.5, one_pass=o)) for o in (False, True))
    same = (exact.sequences == early.sequences)[exact.targets]
    ratios["cells that one-pass A-CFG writes as the exact one does"] = float(same.float().mean())
    show(rows, solving, ratios)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        options = {k: str(v) for k, v in vars(arguments).items() if k != "json"}
        report = {"machine": machine, "settings": options, "rows": rows, "threshold": solving, "ratios": ratios}
        write_json(arguments.json, report)


def solve(
    write: Callable[..., Any], puzzles: list[tuple[str, str]], threshold: float | None
) -> tuple[dict[str, Any], list[float]]:
    """Solve rate and steps a puzzle of A-CFG, with equal quotas of one or with a threshold; and which were solved."""
    out = write([puzzle for puzzle, _ in puzzles], guidance=ACFG(1.5), threshold=threshold)
    solved = [float(sudoku.is_solution(puzzle, text)) for (puzzle, _), text in zip(puzzles, out.texts, strict=True)]
    row = {
        "threshold": threshold,
        "solved": sum(solved) / len(solved),
        "steps_a_puzzle": sum(out.steps) / len(out.steps),
        "rows_a_puzzle": out.rows / len(solved),
        "passes": out.passes,
    }
    return row, solved


def show(rows: list[dict[str, Any]], solving: list[dict[str, Any]], ratios: dict[str, float]) -> None:
    """The tables."""
    console = Console()
    for title, entries in (("one batch", rows), ("A-CFG: one a step against thresholds", solving)):
        table = Table(title=title)
        for name in entries[0]:
            table.add_column(name.replace("_", " "), justify="right" if name != "variant" else "left")
        for entry in entries:
            table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in entry.values()))
        console.print(table)
    console.print(json.dumps(ratios, indent=1))


if __name__ == "__main__":
    main()
