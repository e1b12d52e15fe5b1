"""Reward-free guidance on Sudoku: the bundled model against one of the same shape that was trained for fewer steps::

python scripts/train/sudoku.py --side 4 --steps 300 --batch 64 --puzzles 12000 --output /tmp/sudoku4-short
python scripts/study/reward_free.py --reference /tmp/sudoku4-short --json docs/results/diffusion/reward_free.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from textguide import CFG, diffusion
from textguide.eval.statistics.intervals import mean_interval
from textguide.eval.statistics.paired import adjust, compare_items
from textguide.guidance import ContrastiveDecoding
from textguide.support.files import write_json
from textguide.tasks import sudoku

SETTINGS: dict[str, Any] = {
    "plain": None,
    **{f"RFG w={weight:g}": ContrastiveDecoding.reward_free(weight) for weight in (0.25, 0.5, 1.0, 2.0)},
    "CFG γ=1.5": CFG(1.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", required=True, help="folder of the weaker model")
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model, tokenizer = diffusion.load("sudoku4", device="cpu")
    reference, _ = diffusion.load(arguments.reference, device="cpu")
    puzzles = sudoku.puzzles(4, arguments.items, sudoku.TEST_CLUES[4], sudoku.TEST_SEED)
    prompts = [puzzle for puzzle, _ in puzzles]

    def solved(denoiser: Any, guidance: Any = None) -> list[float]:
        out = diffusion.generate(
            denoiser, tokenizer, prompts, guidance=guidance, models={"reference": reference}, gen_length=16,
            steps=arguments.steps, warn=False,
        )  # fmt: skip
        return [float(sudoku.is_solution(p, text)) for p, text in zip(prompts, out.texts, strict=True)]

    right = {name: solved(model, guidance) for name, guidance in SETTINGS.items()} | {"reference": solved(reference)}
    names = [name for name in right if name != "plain"]
    compared = dict(zip(names, adjust([compare_items(right[name], right["plain"]) for name in names]), strict=True))
    table = Table(title=f"{arguments.items} puzzles, {arguments.steps} steps")
    for column in ("setting", "solved", "− plain", "p (Holm)"):
        table.add_column(column)
    results: dict[str, dict[str, Any]] = {}
    for name, values in right.items():
        interval = mean_interval(values, method="bootstrap")
        results[name] = {"solved": interval.mean, "low": interval.low, "high": interval.high}
        shown = [name, f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]", "", ""]
        if name in compared:
            one = compared[name]
            results[name] |= {"difference": one.difference, "difference_low": one.low, "difference_high": one.high}
            results[name]["p_holm"] = one.p_holm
            shown[2:] = [f"{one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}]", f"{one.p_holm:.3f}"]
        table.add_row(*shown)
    Console().print(table)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, {"items": arguments.items, "steps": arguments.steps, "results": results})


if __name__ == "__main__":
    main()
