"""How good constrained texts are: plain decoding, masks, AWRS with one particle, SMC with five and ten.

Four tasks (patterns, JSON schemas, molecules, text-to-SQL) with a judge that shares no code with the constraint. Each
item is decoded under each method from the same seed; with several particles its value is the expectation under their
weights. Finished items are kept in a journal, so that a run that was stopped goes on where it was::

    python scripts/bench/constrained_quality.py --items 40 --output docs/results/constrained
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import textguide
from textguide import AWRS
from textguide.constraints import Constraint
from textguide.eval.reports import drawing
from textguide.eval.reports import markdown as report
from textguide.eval.results import machine
from textguide.eval.results.journal import Journal, read_journal
from textguide.eval.statistics.intervals import Interval, mean_interval
from textguide.eval.statistics.paired import Comparison, adjust, compare_items
from textguide.support.errors import GuidanceHadNoEffectWarning
from textguide.support.files import write_json, write_text
from textguide.tasks.constrained import TASKS, ConstrainedTask, Item

METHODS: dict[str, Callable[[Constraint], AWRS | None]] = {
    "plain": lambda constraint: None,
    "mask": lambda constraint: AWRS(constraint, sampler="mask"),
    "AWRS 1": lambda constraint: AWRS(constraint, particles=1),
    "SMC 5": lambda constraint: AWRS(constraint, particles=5),
    "SMC 10": lambda constraint: AWRS(constraint, particles=10),
}
BASELINES = ("mask", "plain")
"""What the others are compared with: the first of these that was run."""
Records = dict[str, dict[str, Any]]


def main() -> None:
    arguments = parse()
    transformers.utils.logging.set_verbosity_error()
    # What died is in the table.
    warnings.filterwarnings("ignore", message="no text finished")
    warnings.filterwarnings("ignore", category=GuidanceHadNoEffectWarning)
    model, tokenizer = textguide.load(arguments.model, device=arguments.device, dtype=arguments.dtype)
    tasks = {name: TASKS[name](arguments.data) for name in arguments.tasks}
    items = {name: spread(task.items(), arguments.items) for name, task in tasks.items()}
    identity = {
        "benchmark": "constrained quality",
        "model": arguments.model,
        "temperature": arguments.temperature,
        "samples": arguments.samples,
        "seed": arguments.seed,
        "chat": not arguments.plain_prompts,
        "max_new_tokens": arguments.max_new_tokens,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "journal.jsonl"
    work = [(task, item, method) for task in tasks for item in items[task] for method in arguments.methods]
    with Journal.open(path, identity) as journal, progress() as bar:
        shown = bar.add_task("", total=len(work))
        for task, item, method in work:
            bar.update(shown, description=f"{task} {method}")
            if key(task, item, method) not in journal:
                record = decode(model, tokenizer, tasks[task], item, method, arguments)
                journal.append(key(task, item, method), record)
            bar.advance(shown)
    results = summarise(read_journal(path)[1], tasks, items, arguments.methods)
    versions, computer = machine.environment()
    write_json(
        arguments.output / "results.json",
        {"identity": identity, "versions": versions, "machine": computer, "tasks": results},
    )
    draw(results, arguments.output / "quality.png")
    text = markdown(results, identity)
    write_text(arguments.output / "report.md", text)
    print(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--data", help="folder of the data files [$TEXTGUIDE_DATA]")
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=sorted(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--items", type=int, help="items of each task, evenly spread over it [all]")
    parser.add_argument("--samples", type=int, default=1, help="runs of an item, averaged [%(default)s]")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, help="longest answer [each task's own]")
    parser.add_argument("--plain-prompts", action="store_true", help="leave the model's chat template out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder of the journal, table and plot")
    arguments = parser.parse_args()
    for name in ("items", "samples", "max_new_tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value} must be 1 or more")
    return arguments


def spread(items: Sequence[Item], count: int | None) -> list[Item]:
    """``count`` items, evenly spread over all of them."""
    count = len(items) if count is None else min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def key(task: str, item: Item, method: str) -> str:
    return f"{task}/{item.name}/{method}"


def decode(
    model: Any, tokenizer: Any, task: ConstrainedTask, item: Item, method: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """What one method makes of one item: the judge's measures, expected under the weights, and what it took."""
    guidance = METHODS[method](task.constraint(item))
    prompt = item.text if arguments.plain_prompts else [dict(message) for message in item.messages]
    begun = time.perf_counter()
    result = textguide.generate(
        model,
        tokenizer,
        [prompt] * arguments.samples,
        guidance=guidance,
        max_new_tokens=arguments.max_new_tokens or task.max_new_tokens,
        temperature=arguments.temperature,
        do_sample=True,
        seed=arguments.seed,
    )
    seconds = time.perf_counter() - begun
    rows = len(result.texts)
    weights = result.log_weights
    if weights is None:
        weights = torch.zeros(rows, dtype=torch.float64)
    shares = normalised(weights.view(arguments.samples, -1)).flatten().tolist()
    measures = dict.fromkeys(task.measures, 0.0)
    checks = {text: task.check(item, text) for text, share in zip(result.texts, shares, strict=True) if share > 0}
    for text, share in zip(result.texts, shares, strict=True):
        for name in task.measures if share > 0 else ():
            measures[name] += share * checks[text][name] / arguments.samples
    best = max(range(rows), key=shares.__getitem__)
    return {
        "measures": measures,
        "text": result.texts[best],
        "dead": sum(share == 0.0 for share in shares) / rows,
        "log_evidence": None if result.log_evidence is None else result.log_evidence.tolist(),
        "ess": None if result.ess is None else result.ess.tolist(),
        "calls": result.constraint_calls,
        "tokens": sum(map(len, result.new_tokens)),
        "steps": max(map(len, result.new_tokens)),
        "seconds": seconds,
    }


def normalised(log_weights: torch.Tensor) -> torch.Tensor:
    """Shares of the particles (samples, N) of each population; 0 for all of one that died out."""
    return torch.softmax(log_weights.double(), -1).nan_to_num(0.0)


def summarise(
    records: Records, tasks: dict[str, ConstrainedTask], items: dict[str, list[Item]], methods: Sequence[str]
) -> dict[str, Any]:
    """Intervals of every measure, and the paired comparison of the first one with a baseline."""
    results = {}
    for name, task in tasks.items():
        rows = {
            method: [records[key(name, item, method)] for item in items[name]]
            for method in methods
            if all(key(name, item, method) in records for item in items[name])
        }
        base = next((method for method in BASELINES if method in rows), None)
        results[name] = {
            "items": len(items[name]),
            "reference": task.reference(),
            "baseline": base,
            "methods": {method: figures(task, found) for method, found in rows.items()},
            "differences": differences(task.measures[0], rows, base),
        }
    return results


def figures(task: ConstrainedTask, rows: list[dict[str, Any]]) -> dict[str, Any]:
    evidence = [value for row in rows for value in row["log_evidence"] or [] if value > -math.inf]
    tokens = sum(row["tokens"] for row in rows)
    calls = [row["calls"] for row in rows if row["calls"] is not None]
    return {
        "measures": {
            name: mean_interval(tidy([row["measures"][name] for row in rows]))._asdict() for name in task.measures
        },
        "dead": sum(row["dead"] for row in rows) / len(rows),
        "log_evidence": sum(evidence) / len(evidence) if evidence else None,
        "calls_per_token": sum(calls) / tokens if calls else None,
        "ms_per_step": 1e3 * sum(row["seconds"] for row in rows) / sum(row["steps"] for row in rows),
    }


def tidy(values: list[float]) -> list[float]:
    """Weights sum to 1 up to rounding, which would hide that all values are 0 or 1."""
    return [round(value, 9) for value in values]


def differences(measure: str, rows: dict[str, list[dict[str, Any]]], base: str | None) -> dict[str, Any]:
    if base is None:
        return {}
    values = {method: tidy([row["measures"][measure] for row in found]) for method, found in rows.items()}
    names = [method for method in values if method != base]
    compared: list[Comparison] = adjust([compare_items(values[name], values[base]) for name in names])
    return {name: comparison.to_dict() for name, comparison in zip(names, compared, strict=True)}


def markdown(results: dict[str, Any], identity: dict[str, Any]) -> str:
    parts = ["# Constrained tasks", "![Quality of constrained texts](quality.png)"]
    for name, task in results.items():
        measures = list(next(iter(task["methods"].values()))["measures"])
        header = ["method", *measures, "difference (p)", "log evidence", "dead", "calls a token", "ms a step"]
        lines = []
        for method, found in task["methods"].items():
            cells = [cell(Interval(**found["measures"][measure])) for measure in measures]
            difference = task["differences"].get(method)
            against = "–" if difference is None else compared(difference)
            rest = [report.number(found[k]) for k in ("log_evidence", "dead", "calls_per_token", "ms_per_step")]
            lines.append([method, *cells, against, *rest])
        parts += [f"## {name}", f"{task['items']} items; differences of {measures[0]} are from {task['baseline']}."]
        parts.append(report.table(header, lines, "l"))
        if task["reference"]:
            known = ", ".join(f"{measure} {value:.3f}" for measure, value in task["reference"].items())
            parts.append(f"What the data has: {known}.")
    parts.append(
        "Means with intervals of 95 % over items (Wilson where all values are 0 or 1, else bootstrap); p by paired "
        "tests, Holm-adjusted within a task. *dead*: the share of texts with weight 0, among them those of methods "
        "whose population died out. Times have the pass over the prompt in them."
    )
    parts.append(f"Settings: `{json.dumps(identity)}`.")
    return "\n\n".join(parts) + "\n"


def cell(value: Interval) -> str:
    return f"{report.number(value.mean)} [{report.number(value.low)}, {report.number(value.high)}]"


def compared(difference: dict[str, Any]) -> str:
    return f"{report.number(difference['difference'], signed=True)} ({report.p_value(difference['p_holm'])})"


@drawing.styled
def draw(results: dict[str, Any], path: Path) -> None:
    """One panel a task: each method's first measure with its interval."""
    figure, panels = drawing.grid(len(results), 1.9)
    for axes, (name, task) in zip(panels, results.items(), strict=True):
        measure = next(iter(next(iter(task["methods"].values()))["measures"]))
        found = {method: Interval(**one["measures"][measure]) for method, one in task["methods"].items()}
        rows = [(method, drawing.Point(0, one.mean, one.low, one.high)) for method, one in found.items()]
        reference = task["reference"].get(measure)
        drawing.draw_rows(axes, rows, None if reference is None else drawing.Point(0, reference))
        axes.set_xlim(-0.04, 1.04)
        axes.set_title(f"{name}: {measure}, {task['items']} items")
    figure.supxlabel("bars: 95% intervals; dashed: what the data score", fontsize=8.5, color=drawing.GREY)
    drawing.save(figure, path)


def progress() -> Progress:
    return Progress(
        TextColumn("{task.description:18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"constrained_quality: {error}") from None
