"""How good constrained texts are, way by way: masks, ASAp, CARS, AWRS with each lookahead, genlm-control.

Domains: the four tasks (patterns, JSON schemas, molecules, text-to-SQL; ``sql-scoped`` holds to tables and columns
that are there), each with a judge that shares no code with the constraint, and ``date``: a date behind a prompt that
makes it unlikely, where effective sample sizes are seen. Each item is decoded under each way from the same seed, as
many rows for each. Finished items are kept in a journal, so that a run that was stopped goes on where it was::

    python scripts/bench/constrained_quality.py --items 40 --output docs/results/constrained/smollm2
    python scripts/bench/constrained_quality.py --model FILE.gguf --items 20 --output FOLDER
    python scripts/bench/constrained_quality.py --peer-python peer/bin/python --output FOLDER

``--peer-python`` names an environment with genlm-control==0.4.1, regex and partialsmiles (see ``constrained.py``).
Model calls are counted a row: a pass over ten rows is ten.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from constrained import Peer, encode
from constrained_ways import DOMAINS, WAYS, Dates, learned
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import textguide
from textguide.constraints import Grammar, JSONSchema, Regex
from textguide.eval.reports import drawing
from textguide.eval.reports import markdown as report
from textguide.eval.results import machine
from textguide.eval.results.journal import Journal, read_journal
from textguide.eval.statistics.intervals import Interval, mean_interval
from textguide.eval.statistics.paired import Comparison, adjust, compare_items
from textguide.smc.particles import effective_sample_size
from textguide.support.errors import GuidanceHadNoEffectWarning, NoParticleLeftWarning
from textguide.support.files import write_json, write_text
from textguide.tasks.constrained import ConstrainedTask, Item

PEER = "genlm-control"
BASELINES = ("mask", "plain")
"""What the others are compared with: the first of these that was run."""
SUCCESS = "valid"
"""The measure that ways are compared by."""
Records = dict[str, dict[str, Any]]


def main() -> None:
    arguments = parse()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=GuidanceHadNoEffectWarning)
    model, tokenizer = textguide.load(arguments.model, device=arguments.device, dtype=arguments.dtype)
    tasks = {name: DOMAINS[name](arguments.data) for name in arguments.tasks}
    counts = dict(zip(tasks, arguments.items * (1 if len(arguments.items) > 1 else len(tasks)), strict=True))
    items = {name: spread(task.items(), counts[name]) for name, task in tasks.items()}
    identity = {
        "benchmark": "constrained quality",
        "model": arguments.model,
        "temperature": arguments.temperature,
        "samples": arguments.samples,
        "particles": arguments.particles,
        "tries": arguments.tries,
        "max_seconds": arguments.max_seconds,
        "seed": arguments.seed,
        "chat": not arguments.plain_prompts,
        "max_new_tokens": arguments.max_new_tokens,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "journal.jsonl"
    ways = [*arguments.methods, *([PEER] if arguments.peer_python else [])]
    peer = Peer(arguments.peer_python, model, torch.get_num_threads()) if arguments.peer_python else None
    work = [(task, item, way) for task in tasks for item in items[task] for way in ways if not arguments.report]
    with Journal.open(path, identity) as journal, progress() as bar:
        shown = bar.add_task("", total=len(work))
        for task, item, method in work:  # one item under every way, so that a part of the run compares them too
            bar.update(shown, description=f"{task} {method}")
            if key(task, item, method) not in journal:
                if method == PEER:
                    assert peer is not None
                    record = asked(peer, tokenizer, tasks[task], item, arguments)
                else:
                    record = decode(model, tokenizer, tasks[task], item, method, arguments)
                journal.append(key(task, item, method), record)
            bar.advance(shown)
    if peer is not None:
        peer.close()
    records = read_journal(path)[1]
    if peer is None and any(name.endswith(f"/{PEER}") for name in records):
        ways.append(PEER)  # of an earlier run
    results = summarise(records, tasks, items, ways)
    versions, computer = machine.environment()
    identity["model"] = Path(arguments.model).stem if Path(arguments.model).exists() else arguments.model
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
    parser.add_argument("--tasks", nargs="+", choices=sorted(DOMAINS),
                        default=["date", "patterns", "json", "sql-scoped", "molecules"])  # fmt: skip
    parser.add_argument("--methods", nargs="+", choices=list(WAYS), default=list(WAYS)[1:7], help="[%(default)s]")
    parser.add_argument("--particles", type=int, default=10, help="rows of each item [%(default)s]")
    parser.add_argument("--tries", type=int, default=20, help="tries of a row of CARS [%(default)s]")
    parser.add_argument("--max-seconds", type=float, default=180.0,
                        help="longest for an item under CARS, which tries again [%(default)s]")  # fmt: skip
    parser.add_argument("--hmm", default="hmm", help="lookahead of 'AWRS hmm' [%(default)s]")
    parser.add_argument("--value", help="lookahead of 'AWRS value', a file [learned for each item and prompt]")
    parser.add_argument("--rollouts", type=int, default=200, help="texts that it is learned from [%(default)s]")
    parser.add_argument("--peer-python", type=Path, help="python of an environment with genlm-control")
    parser.add_argument("--items", type=int, nargs="+", default=[None],
                        help="items of each task, evenly spread over it; one number, or one a task [all]")  # fmt: skip
    parser.add_argument("--samples", type=int, default=1, help="runs of an item, averaged [%(default)s]")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, help="longest answer [each task's own]")
    parser.add_argument("--plain-prompts", action="store_true", help="leave the model's chat template out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="decode nothing: tell of what the journal holds")
    parser.add_argument("--output", type=Path, required=True, help="folder of the journal, table and plot")
    arguments = parser.parse_args()
    if len(arguments.items) not in (1, len(arguments.tasks)):
        parser.error(f"--items names {len(arguments.items)} numbers and --tasks {len(arguments.tasks)} tasks")
    for name in ("items", "samples", "max_new_tokens", "particles", "tries", "rollouts"):
        given = getattr(arguments, name)
        for value in given if name == "items" else [given]:
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
    model: Any, tokenizer: Any, task: ConstrainedTask, item: Item, way: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """What one way makes of one item: the judge's measures, expected under the weights, and what it took."""
    read = [0, 0]

    def count(view: Any) -> None:
        read[0] += 1
        read[1] += len(view.samples)

    constraint, limit = task.constraint(item), arguments.max_new_tokens or task.max_new_tokens
    begun, learning = time.perf_counter(), 0.0
    try:
        if way == "AWRS value" and arguments.value is None:
            ids = tuple(encode(tokenizer, prompt(task, item, arguments)))
            value = learned(model, tokenizer, constraint, ids, limit, arguments.rollouts, arguments.temperature)
            arguments = argparse.Namespace(**{**vars(arguments), "value": value})
            learning, begun = time.perf_counter() - begun, time.perf_counter()
        guidance = WAYS[way](constraint, arguments)
        copies = 1 if guidance is not None and guidance.particles > 1 else arguments.particles
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoParticleLeftWarning)
            result = textguide.generate(
                model,
                tokenizer,
                [prompt(task, item, arguments)] * arguments.samples,
                guidance=guidance,
                max_new_tokens=limit,
                temperature=arguments.temperature,
                top_k=0,
                do_sample=True,
                num_return_sequences=copies,
                max_time=arguments.max_seconds if way.startswith("CARS") else None,
                seed=arguments.seed + (item.answer if isinstance(task, Dates) else 0),
                observer=count,
            )
    except ValueError as error:  # no such lookahead for this constraint, say
        return {"refused": str(error)}
    seconds = time.perf_counter() - begun
    weights = result.log_weights
    if weights is None:
        weights = torch.zeros(len(result.texts), dtype=torch.float64)
    finished = [True] * len(weights) if result.finished is None else result.finished.tolist()
    rows = list(zip(result.texts, map(len, result.new_tokens), weights.tolist(), finished, strict=True))
    return judged(task, item, rows, arguments.samples) | {
        "log_evidence": None if result.log_evidence is None else result.log_evidence.tolist(),
        "calls": result.constraint_calls,
        "passes": read[0],
        "model_calls": read[1],
        "tries": result.tries,
        "learning_seconds": learning,
        "seconds": seconds,
    }


def judged(
    task: ConstrainedTask, item: Item, rows: Sequence[tuple[str, int, float, bool]], samples: int
) -> dict[str, Any]:
    """What rows of text, tokens, log-weight and whether it finished come to, in ``samples`` populations."""
    weights = torch.tensor([row[2] for row in rows], dtype=torch.float64).view(samples, -1)
    shares = normalised(weights).flatten().tolist()
    checks = {text: task.check(item, text) for text, _, _, _ in rows}
    weighted = {
        name: sum(share * checks[row[0]][name] for row, share in zip(rows, shares, strict=True)) / samples
        for name in task.measures
    }
    alive = [row for row in rows if row[2] > -math.inf]
    return {
        "measures": weighted,
        "rows": sum(checks[row[0]][SUCCESS] for row in alive) / len(rows),
        "text": rows[max(range(len(rows)), key=shares.__getitem__)][0],
        "dead": 1 - len(alive) / len(rows),
        "ess": effective_sample_size(weights).tolist(),
        "tokens": sum(row[1] for row in rows),
        "kept_tokens": sum(row[1] for row in alive if row[3]),
    }


def prompt(task: ConstrainedTask, item: Item, arguments: argparse.Namespace) -> Any:
    """What the model reads: running text for the dates, else a chat."""
    if isinstance(task, Dates):
        return task.prompt
    return item.text if arguments.plain_prompts else [dict(message) for message in item.messages]


def asked(
    peer: Peer, tokenizer: Any, task: ConstrainedTask, item: Item, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The same by genlm-control; refused where it has no such constraint."""
    constraint = task.constraint(item)
    if isinstance(constraint, Regex):
        form = {"pattern": constraint.pattern}
    elif isinstance(constraint, JSONSchema):
        form = {"schema": constraint.to_dict()["schema"]}
    elif isinstance(constraint, Grammar):
        form = {"lark": str(constraint.grammar)}
    elif task.name == "molecules":
        form = {"smiles": True}
    else:
        return {"refused": f"{PEER} has no {type(constraint).__name__}"}
    begun = time.perf_counter()
    answer = peer.run(
        **form,
        prompt=encode(tokenizer, prompt(task, item, arguments)),
        particles=arguments.particles,
        limit=arguments.max_new_tokens or task.max_new_tokens,
        seed=arguments.seed + (item.answer if isinstance(task, Dates) else 0),
    )
    if "refused" in answer:
        return {"refused": answer["refused"]}
    rows = [
        (text, length, -math.inf if weight is None else weight, weight is not None)
        for text, length, weight in zip(answer["texts"], answer["lengths"], answer["log_weights"], strict=True)
    ]
    return judged(task, item, rows, 1) | {
        "log_evidence": None,
        "calls": answer["calls"],
        "passes": max(answer["lengths"], default=0),
        "model_calls": answer["tokens"],
        "tries": None,
        "seconds": answer.get("seconds", time.perf_counter() - begun),
    }


def normalised(log_weights: torch.Tensor) -> torch.Tensor:
    """Shares of the particles (samples, N) of each population; 0 for all of one that died out."""
    return torch.softmax(log_weights.double(), -1).nan_to_num(0.0)


def summarise(
    records: Records, tasks: dict[str, ConstrainedTask], items: dict[str, list[Item]], ways: Sequence[str]
) -> dict[str, Any]:
    """Intervals of every measure, and the paired comparison of the success with a baseline."""
    results = {}
    for name, task in tasks.items():
        found = {
            way: [records[key(name, item, way)] for item in items[name] if key(name, item, way) in records]
            for way in ways
        }
        refused = {way: next((one["refused"] for one in rows if "refused" in one), None) for way, rows in found.items()}
        # A way that some items refuse is no way of the domain: means over other items would not compare.
        rows = {way: one for way, one in found.items() if refused[way] is None and len(one) == len(items[name])}
        base = next((way for way in BASELINES if way in rows), None)
        results[name] = {
            "items": len(items[name]),
            "reference": task.reference(),
            "baseline": base,
            "refused": {way: why for way, why in refused.items() if why is not None},
            "methods": {way: figures(task, one, rows.get("mask")) for way, one in rows.items()},
            "differences": differences(SUCCESS, rows, base),
        }
    return results


def figures(task: ConstrainedTask, rows: list[dict[str, Any]], masked: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Means over items with intervals; medians where a mean says little."""
    kept = [row for row in rows if row["kept_tokens"]]
    sizes = [sum(row["ess"]) / len(row["ess"]) for row in rows]
    return {
        "measures": {name: spread_of([row["measures"][name] for row in rows]) for name in task.measures},
        "rows": spread_of([row["rows"] for row in rows]),
        "ess": spread_of(sizes),
        "ess_median": statistics.median(sizes),
        "model_calls": spread_of([float(row["model_calls"]) for row in rows]),
        "seconds_a_token": spread_of([row["seconds"] / row["kept_tokens"] for row in kept]) if kept else None,
        "seconds_a_pass": spread_of([row["seconds"] / max(1, row["passes"]) for row in rows]),
        "time_of_mask": None
        if masked is None
        else statistics.median(a["seconds"] / b["seconds"] for a, b in zip(rows, masked, strict=True)),
        "dead": sum(row["dead"] for row in rows) / len(rows),
        "tries": statistics.mean(sum(row["tries"]) / len(row["tries"]) for row in rows) if rows[0]["tries"] else None,
        "learning_seconds": statistics.mean(row.get("learning_seconds", 0.0) for row in rows),
    }


def spread_of(values: list[float]) -> dict[str, float]:
    return dict(mean_interval(tidy(values))._asdict())


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
        if not task["methods"]:
            continue
        measures = list(next(iter(task["methods"].values()))["measures"])
        header = ["way", *measures, "valid rows", "difference (p)", "ESS", "median ESS", "model calls",
                  "s a kept token", "s a pass", "time of mask", "dead", "tries a row", "s of learning"]  # fmt: skip
        lines = []
        for way, found in task["methods"].items():
            cells = [cell(Interval(**found["measures"][measure])) for measure in measures]
            difference = task["differences"].get(way)
            against = "–" if difference is None else compared(difference)
            wide = [
                cell(Interval(**found[k])) if found[k] else "–"
                for k in ("ess", "model_calls", "seconds_a_token", "seconds_a_pass")
            ]
            wide.insert(1, report.number(found["ess_median"]))
            rest = [report.number(found[k]) for k in ("time_of_mask", "dead", "tries", "learning_seconds")]
            lines.append([way, *cells, cell(Interval(**found["rows"])), against, *wide, *rest])
        parts += [f"## {name}", f"{task['items']} items; differences of {SUCCESS} are from {task['baseline']}."]
        parts.append(report.table(header, lines, "l"))
        parts += [f"{way} is not in the table: {why}" for way, why in task["refused"].items()]
        if task["reference"]:
            known = ", ".join(f"{measure} {value:.3f}" for measure, value in task["reference"].items())
            parts.append(f"What the data has: {known}.")
    parts.append(
        "Means with intervals of 95 % over items (Wilson where all values are 0 or 1, else bootstrap); p by paired "
        "tests, Holm-adjusted within a task. The measures are expectations under the weights; *valid rows* counts rows "
        "without them, those of weight 0 (*dead*) as failures, which is how ASAp is read. *Model calls*: rows that "
        "were read, over the whole item. Seconds hold the pass over the prompt; *s a kept token* divides by the tokens "
        "of texts that finished, in items that have any."
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
        known = list(next(iter(task["methods"].values()))["measures"])
        measure = SUCCESS if SUCCESS in known else known[0]
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
