"""Does a guided model match an unguided one twice its size? Accuracy against what a token costs.

    python scripts/study/equal_cost.py --models smollm2-small smollm2 "$(python scripts/bench/larger_model.py)" \
        --output FOLDER --json docs/results/equal-cost.json --plot docs/results/equal-cost.png

Classifier-free guidance reads every token in two branches, so that it costs what a plain model of twice the parameters
costs (arXiv 2306.17806 asks whether it is as good, too). All models answer the same rows of LAMBADA under the same
scales. Nobody made a model of exactly twice the size: plain accuracy there is interpolated between two models, linearly
in the logarithm of operations, row by row, and the difference has a paired bootstrap interval over rows. Operations are
2 × parameters × branches a token. Seconds are those of ``textguide.generate``, in turns. A killed run goes on.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import textguide
from textguide import CFG
from textguide.eval import SweepOptions, run_sweep
from textguide.eval.reports.drawing import Point, draw_fronts, grid, save, styled
from textguide.eval.results.machine import environment
from textguide.eval.statistics.intervals import paired_bootstrap
from textguide.eval.sweeps.costs import token_costs
from textguide.support.files import write_json

TASK, METRIC = "lambada_openai", "acc,none"
PROMPTS = ["The dragon flew over Paris, France,", "It was late in the evening when", "The recipe says that", "He said"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="MODEL", help="of growing size")
    parser.add_argument("--scales", default="1,1.25,1.5,2")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    scales = [float(scale) for scale in arguments.scales.split(",")]
    if scales[0] != 1.0:
        parser.error("--scales must begin with 1, which is plain decoding")
    found = [answers(model, scales, arguments) for model in arguments.models]
    report: dict[str, Any] = {"task": TASK, "rows": arguments.rows, "dtype": arguments.dtype}
    report |= {"models": [{k: v for k, v in one.items() if k != "items"} for one in found]}
    report["against twice the size"] = [
        twice(small, large, scale)
        for small, large in pairwise(found)
        for scale in scales[1:]
        if large["parameters"] >= 2 * small["parameters"]
    ]
    report["versions"], report["machine"] = environment()
    for row in report["against twice the size"]:
        ends = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        print(f"{row['model']:16} γ {row['scale']:<5g} {row['guided']:.3f}  twice the size {row['twice']:.3f}  {ends}")
    if arguments.json:
        write_json(arguments.json, report)
    if arguments.plot:
        draw(report, arguments.plot)


def answers(name: str, scales: list[float], arguments: argparse.Namespace) -> dict[str, Any]:
    """What a model answers on the rows under each scale, and what a token costs."""
    shown = Path(name).stem
    settings = [CFG(scale) for scale in scales]
    run = run_sweep(
        [TASK], settings, output=arguments.output / shown, options=SweepOptions(limit=arguments.rows, plots=False),
        model_args={"pretrained": name, "dtype": arguments.dtype, "device": "cpu", "batch_size": 16},
    )  # fmt: skip
    assert run is not None
    model, tokenizer = textguide.load(name, dtype=arguments.dtype, device="cpu")
    ways: dict[str, tuple[Any, Any]] = {"plain": (model, None), "guided": (model, CFG(1.5))}
    costs = token_costs(ways, tokenizer, PROMPTS, None, repeats=3)
    parameters = sum(one.numel() for one in model.parameters())
    rows = []
    for entry, scale in zip(run.tasks, scales, strict=True):
        cost = costs["plain" if scale == 1 else "guided"]
        value = entry.metrics[METRIC]
        rows.append(
            {
                "scale": scale, "accuracy": value.value, "low": value.low, "high": value.high,
                "gigaflops a token": 2e-9 * parameters * cost.passes, "seconds a token": cost.seconds,
            }
        )  # fmt: skip
    items = {scale: entry.items[METRIC] for entry, scale in zip(run.tasks, scales, strict=True)}
    return {"model": shown, "parameters": parameters, "ways": rows, "items": items}


def twice(small: dict[str, Any], large: dict[str, Any], scale: float) -> dict[str, Any]:
    """The guided small model against plain decoding at twice its operations, between it and the larger one."""
    share = math.log(2) / math.log(large["parameters"] / small["parameters"])
    between = (1 - share) * small["items"][1.0] + share * large["items"][1.0]
    guided = small["items"][scale]
    difference, low, high, p = paired_bootstrap(guided, between)
    return {
        "model": small["model"], "scale": scale, "plain": float(np.mean(small["items"][1.0])),
        "guided": float(np.mean(guided)), "twice": float(np.mean(between)),
        "difference": difference, "low": low, "high": high, "p": p,
    }  # fmt: skip


@styled
def draw(report: dict[str, Any], path: Path) -> None:
    """Accuracy against operations and against seconds: plain, and the best scale of each model."""
    figure, panels = grid(2, 3.6, 1)
    for axes, key, title in zip(
        panels,
        ("gigaflops a token", "seconds a token"),
        ("billions of operations a token", "seconds a token"),
        strict=True,
    ):
        plain = [_point(one["ways"][0], key, one["model"]) for one in report["models"]]
        best = [max(one["ways"][1:], key=lambda way: way["accuracy"]) for one in report["models"]]
        guided = [_point(way, key, f"γ = {way['scale']:g}") for way in best]
        draw_fronts(axes, {"plain": plain, "guided, best scale": guided}, log=True)
        axes.set_xlabel(title)
        axes.set_ylabel("accuracy on LAMBADA")
    save(figure, path)


def _point(way: dict[str, Any], key: str, name: str) -> Point:
    return Point(way[key], way["accuracy"], way["low"], way["high"], name)


if __name__ == "__main__":
    main()
