"""Passes and seconds of masked diffusion under each guidance, and what a confidence threshold saves::

python scripts/bench/diffusion.py --json docs/results/diffusion/bench.json
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import timing

from textguide import ACFG, CFG, diffusion
from textguide.diffusion import DiffusionResult
from textguide.eval.statistics.paired import compare_items
from textguide.tasks import sudoku

THRESHOLDS = (None, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99)
ONE_PASS = ACFG(1.5, one_pass=True)
Write = Callable[..., DiffusionResult]


def main() -> None:
    parser = timing.parser(__doc__, model="sudoku4", repeats=7)
    parser.add_argument("--side", type=int, default=4)
    parser.add_argument("--puzzles", type=int, default=64, help="rows of the timing batch")
    parser.add_argument("--solve", type=int, default=1500, help="puzzles for the solve rates")
    arguments = parser.parse_args()
    timing.quiet(arguments)
    model, tokenizer = diffusion.load(arguments.model, device=arguments.device)
    puzzles = sudoku.puzzles(arguments.side, arguments.solve, sudoku.TEST_CLUES[arguments.side], sudoku.TEST_SEED)
    texts = [puzzle for puzzle, _ in puzzles]
    options = {"gen_length": arguments.side**2, "early_end": False, "warn": False}
    write = partial(diffusion.generate, diffusion.denoiser(model, tokenizer), tokenizer, **options)
    rows, ratios = measure(write, texts[: arguments.puzzles], arguments.repeats, model.device)
    exact = write(texts, guidance=ACFG(1.5))
    early = write(texts, guidance=ONE_PASS)
    same = (exact.sequences == early.sequences)[exact.targets]
    ratios["cells that one-pass A-CFG writes as the exact one does"] = float(same.float().mean())
    solving = thresholds(write, puzzles)
    columns = {
        "variant": "{variant}",
        "passes": "{passes}",
        "rows": "{rows}",
        "seconds": "{seconds:.3f}",
        "× plain": "{against_plain:.2f}",
    }
    timing.show(rows, columns, "one batch")
    timing.show(solving, {name: f"{{{name}}}" for name in solving[0]}, "A-CFG: one cell per step against thresholds")
    print(json.dumps(ratios, indent=1))
    timing.finish(arguments, model, rows=rows, threshold=solving, ratios=ratios)


def measure(
    write: Write, prompts: list[str], repeats: int, device: Any
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each variant on one batch, and ratios between two of them."""
    contestants = {
        "plain": partial(write, prompts),
        "plain, twice the rows": partial(write, prompts * 2),
        "CFG": partial(write, prompts, guidance=CFG(1.5)),
        "A-CFG": partial(write, prompts, guidance=ACFG(1.5)),
        "A-CFG, one pass": partial(write, prompts, guidance=ONE_PASS),
        "A-CFG, threshold 0.9": partial(write, prompts, guidance=ACFG(1.5), threshold=0.9),
    }
    times = timing.compare(contestants, repeats, device, title="timing")
    rows = []
    for name, one in times.items():
        rows.append(
            {
                "variant": name,
                "passes": one.results[0].passes,
                "rows": one.results[0].rows,
                "seconds": statistics.median(one.seconds),
                "against_plain": one.ratio(times["plain"]),
            }
        )
    ratios = {
        "batched CFG / plain with twice the rows": times["CFG"].ratio(times["plain, twice the rows"]),
        "one-pass A-CFG / CFG": times["A-CFG, one pass"].ratio(times["CFG"]),
    }
    return rows, ratios


def thresholds(write: Write, puzzles: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Solve rate and steps per puzzle of A-CFG, one cell per step and with each threshold."""
    rows: list[dict[str, Any]] = []
    base: list[float] = []
    for threshold in timing.progress(THRESHOLDS, "thresholds"):
        out = write([puzzle for puzzle, _ in puzzles], guidance=ACFG(1.5), threshold=threshold)
        pairs = zip(puzzles, out.texts, strict=True)
        solved = [float(sudoku.is_solution(puzzle, text)) for (puzzle, _), text in pairs]
        base = base or solved
        steps = sum(out.steps) / len(out.steps)
        compared = compare_items(solved, base)
        rows.append(
            {
                "threshold": threshold,
                "solved": sum(solved) / len(solved),
                "steps_a_puzzle": steps,
                "rows_a_puzzle": out.rows / len(solved),
                "passes": out.passes,
                "difference": compared.difference,
                "low": compared.low,
                "high": compared.high,
                "fewer_steps": rows[0]["steps_a_puzzle"] / steps if rows else 1.0,
            }
        )
    return rows


if __name__ == "__main__":
    main()
