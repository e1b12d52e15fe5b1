"""Figures that lm-eval can produce alone, made by its own ``hf`` model and by ours without guidance: do they agree?

    TEXTGUIDE_DATA=DATA python scripts/agreement.py --json docs/results/agreement.json

Every metric of every task has to agree to 1e-4 (perplexities to that share); the script exits with 1 if one
does not.
Guidance has no counterpart in lm-eval: of guided figures the tests compare the log-likelihoods with a plain loop.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval

from textguide import tasks as task_room
from textguide.eval import GuidedLM
from textguide.eval.results.machine import environment
from textguide.models import bundled
from textguide.support.files import write_json

TASKS = ("lambada_openai", "arc_easy", "arc_challenge", "piqa", "boolq", "winogrande", "triviaqa")
AGREE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--limit", type=int, default=100, help="items a task [%(default)s]")
    parser.add_argument("--model", help="a folder [the bundled model's]")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--data", help="folder of the tasks' data [$TEXTGUIDE_DATA]")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = arguments.model or str(bundled.folder())
    found = figures(folder, arguments.tasks.split(","), arguments.limit, arguments.dtype, arguments.data)
    for row in found:
        print(f"{row['task']:16} {row['metric']:24} {row['hf']:.6f} {row['textguide']:.6f} {row['apart']:.1e}")
    if arguments.json:
        versions, machine = environment()
        about = {"model": arguments.model or bundled.NAME, "dtype": arguments.dtype, "limit": arguments.limit}
        write_json(arguments.json, {"settings": about, "versions": versions, "machine": machine, "rows": found})
    raise SystemExit(any(row["apart"] > AGREE for row in found))


def figures(folder: str, tasks: Sequence[str], limit: int, dtype: str, data: str | None = None) -> list[dict[str, Any]]:
    """Each metric by both models, and how far they are apart: the difference, of perplexities its share."""
    specs, manager = task_room.resolve(list(tasks), data)
    common: dict[str, Any] = {
        "tasks": specs, "task_manager": manager, "limit": limit, "bootstrap_iters": 0, "log_samples": False,
        "gen_kwargs": {"max_gen_toks": 16},
    }  # fmt: skip
    theirs = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": folder, "dtype": dtype}, device="cpu", batch_size=8, **common
    )
    ours = lm_eval.simple_evaluate(
        model=GuidedLM(folder, guidance=None, device="cpu", dtype=dtype, batch_size=8), **common
    )
    rows = []
    for task, results in theirs["results"].items():
        for metric, value in results.items():
            if "," not in metric or "_stderr" in metric or not isinstance(value, (int, float)):
                continue
            other = ours["results"][task][metric]
            apart = abs(value - other)
            if "perplexity" in metric and value and math.isfinite(value):
                apart /= abs(value)
            rows.append({"task": task, "metric": metric, "hf": value, "textguide": other, "apart": apart})
    return rows


if __name__ == "__main__":
    main()
