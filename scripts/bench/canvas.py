"""Orders and samplers, guidance and constraints on a canvas: quality, passes and seconds, on Sudoku and molecules.

Every setting runs all items in batches. What is done is written to a journal at once, and a later run goes on there.
Settings that differ in the constraint alone run one after the other; seconds are the processor's::

    python scripts/bench/canvas.py sudoku4 --items 300 --json docs/results/diffusion/sampling-sudoku4.json
    python scripts/bench/canvas.py sudoku9 --items 100 --json docs/results/diffusion/sampling-sudoku9.json
    python scripts/bench/canvas.py molecules --items 100 --json docs/results/diffusion/sampling-molecules.json
    python scripts/bench/canvas.py sudoku9 --curves --items 100 --json docs/results/diffusion/curves-sudoku9.json
    python scripts/bench/canvas.py smollm2-adapted --items 16 --samplers 'one a step' 'threshold 0.9' --json FILE
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import time
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from textguide import ACFG, CFG, diffusion
from textguide.constraints import SMILES, AllOf, Constraint, Regex
from textguide.constraints.vocabulary import Vocabulary
from textguide.eval.reports import drawing
from textguide.eval.results.journal import Journal
from textguide.eval.statistics.intervals import mean_interval
from textguide.eval.statistics.paired import compare_items
from textguide.support.files import write_json
from textguide.tasks import molecules, sudoku

GUIDANCE: dict[str, Any] = {"plain": None, "CFG 1.5": CFG(1.5), "A-CFG 1.25": ACFG(1.25)}
SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("one a step", {}),
    ("margin, one a step", {"order": "margin"}),
    ("entropy, one a step", {"order": "entropy"}),
    ("threshold 0.9", {"sampler": "threshold:value=0.9"}),
    ("EB 0.1", {"sampler": "eb:gamma=0.1"}),
    ("KLASS", {"sampler": "klass:confidence=0.9,divergence=0.01"}),
    ("P2", {"sampler": "p2:eta=1"}),
    ("ReMDM", {"sampler": "remdm:eta=0.05,strategy=rescale"}),
    ("PC", {"order": "pc:decay=0.25"}),
]
"""The table: every one with as many steps as there are masks, which adaptive samplers do not need."""


def curves(masks: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Sampler, its setting, and the options: steps against quality."""
    for share in (1, 2, 3, 4, 6, 8, 12, 16):
        steps = max(1, masks // share)
        for order in ("confidence", "margin", "random"):
            yield order, f"steps {steps}", {"order": order, "steps": steps}
        yield "PC", f"steps {steps}", {"order": "pc:decay=0.25", "steps": steps}
    for value in (0.99, 0.97, 0.95, 0.9, 0.8, 0.6, 0.4):
        yield "threshold", f"{value}", {"sampler": f"threshold:value={value}"}
    for gamma in (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        yield "EB", f"γ {gamma}", {"sampler": f"eb:gamma={gamma}"}
    for confidence, divergence in ((0.99, 0.001), (0.95, 0.01), (0.9, 0.01), (0.8, 0.03), (0.6, 0.1), (0.4, 1.0)):
        name = f"klass:confidence={confidence},divergence={divergence}"
        yield "KLASS", f"τ {confidence}, ε {divergence}", {"sampler": name}
    for times in (0.125, 0.25, 0.5, 1.0, 2.0):
        steps = max(1, round(times * masks))
        yield "P2", f"steps {steps}", {"sampler": "p2:eta=1", "steps": steps}
        yield "ReMDM", f"steps {steps}", {"sampler": "remdm:eta=0.05,strategy=rescale", "steps": steps}


class Sudoku:
    """Held-out puzzles; solved or not."""

    higher = "solved"

    def __init__(self, side: int, items: int, model: str) -> None:
        self.model, self.tokenizer = diffusion.load(model)
        self.puzzles = sudoku.puzzles(side, items, sudoku.TEST_CLUES[side], sudoku.TEST_SEED)
        self.side, self.masks, self.options = side, side * side, {}
        self.texts = [puzzle for puzzle, _ in self.puzzles]
        if side == 9:  # a model of whole grids, in which empty cells are masks
            self.masks = max(text.count("0") for text in self.texts)
            self.texts = [text.replace("0", self.tokenizer.mask_token) for text in self.texts]

    def forms(self) -> dict[str, Constraint]:
        """4×4: every row holds each digit once; 9×9: digits."""
        if self.side != 4:
            return {"digits": Regex(f"[1-{self.side}]{{{self.side**2}}}")}
        rows = "|".join(map("".join, permutations("1234")))
        return {"rows": Regex(f"(?:{rows}){{4}}")}

    def write(self, texts: list[str], **options: Any) -> diffusion.DiffusionResult:
        if self.side == 9:
            return diffusion.infill(self.model, self.tokenizer, texts, warn=False, **options)
        return diffusion.generate(
            self.model, self.tokenizer, texts, gen_length=self.masks, early_end=False, warn=False, **options
        )

    def measure(self, written: list[str]) -> dict[str, list[float]]:
        pairs = zip(self.puzzles, written, strict=True)
        return {"solved": [float(sudoku.is_solution(puzzle, text)) for (puzzle, _), text in pairs]}


class Molecules:
    """Prompts with four property bins; valid molecules, and the share of conditions that came true."""

    higher = "valid"

    def __init__(self, items: int, model: str, searched: bool) -> None:
        self.model, self.tokenizer = diffusion.load(model)
        chance = random.Random(0)
        self.asked = [
            tuple(chance.randrange(len(edges) + 1) for edges in molecules.EDGES.values()) for _ in range(items)
        ]
        self.texts = [molecules.prompt_of(bins) for bins in self.asked]
        self.masks = int(self.model.config.max_position_embeddings) - len(molecules.EDGES)
        self.options: dict[str, Any] = {"temperature": 0.7, "seed": 0}
        self.searched = searched

    def forms(self) -> dict[str, Constraint]:
        """The regular part of SMILES (brackets three deep, rings that close, halogens at ends); and molecules."""
        return {"regular": smiles(3)} | ({"molecules": AllOf(smiles(3), SMILES())} if self.searched else {})

    def write(self, texts: list[str], **options: Any) -> diffusion.DiffusionResult:
        return diffusion.generate(self.model, self.tokenizer, texts, gen_length=self.masks, warn=False, **options)

    def measure(self, written: list[str]) -> dict[str, list[float]]:
        found = molecules.report(self.asked, written)
        return {"valid": found.valid, "hits": found.hits}


class Sentences:
    """A sentence behind a beginning, by the adapted language model: what a form costs where a pass costs more."""

    higher = "sentence"
    beginnings = (
        "The old man said:", "She opened the door and saw", "A dragon is", "My favourite food:", "The sea was",
        "In the morning", "He told her:", "The capital of France:", "It was late, and", "Nobody knew that",
        "The letter began:", "At last", "The children", "Her answer:", "A good book", "On the table",
    )  # fmt: skip

    def __init__(self, items: int, model: str) -> None:
        self.model, self.tokenizer = diffusion.load(model)
        self.texts = [self.beginnings[number % len(self.beginnings)] for number in range(items)]
        self.masks = 16
        self.options: dict[str, Any] = {"temperature": 0.7, "seed": 0}

    pattern = r" [A-Za-z][a-z ,']*[.!?]"

    def forms(self) -> dict[str, Constraint]:
        """Words of small letters that end in a stop."""
        return {"sentence": Regex(self.pattern)}

    def write(self, texts: list[str], **options: Any) -> diffusion.DiffusionResult:
        return diffusion.generate(self.model, self.tokenizer, texts, gen_length=self.masks, warn=False, **options)

    def measure(self, written: list[str]) -> dict[str, list[float]]:
        return {"sentence": [float(re.fullmatch(self.pattern, text) is not None) for text in written]}


def smiles(depth: int, digits: str = "123") -> Constraint:
    """SMILES over the atoms of the bundled model, as far as it is regular.

    Args:
        depth: how deep branches nest.
        digits: of rings.
    """
    bond, end = "[-=#]?", r"(?:F|Cl|Br|\[H\])"
    atom = rf"(?:[CNOScnos]|\[nH\])(?:{bond}[{digits}])*"
    chain = rf"{atom}(?:{bond}{atom})*(?:{bond}{end})?"
    for _ in range(depth):
        branch = rf"(?:\({bond}(?:{chain}|{end})\))*"
        chain = rf"{atom}{branch}(?:{bond}{atom}{branch})*(?:{bond}{end})?"
    rings = [Regex(f"[^{ring}]*(?:{ring}[^{ring}]+{ring}[^{ring}]*)*") for ring in digits]
    return AllOf(Regex(rf"(?:{end}{bond})?{chain}"), *rings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("sudoku4", "sudoku9", "molecules", "smollm2-adapted"))
    parser.add_argument("--model", help="a folder [the bundled model]")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--curves", action="store_true", help="steps against quality, in place of the table")
    parser.add_argument(
        "--searched", action="store_true", help="molecules under SMILES() too, which is looked ahead at"
    )
    parser.add_argument("--samplers", nargs="+", choices=[name for name, _ in SAMPLERS], help="of the table [all]")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop behind so many; a later run goes on")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = arguments.model or arguments.task
    task: Any
    if arguments.task == "molecules":
        task = Molecules(arguments.items, model, arguments.searched)
    elif arguments.task == "smollm2-adapted":
        task = Sentences(arguments.items, model)
    else:
        task = Sudoku(int(arguments.task[-1]), arguments.items, model)
    settings = list(_curve_settings(task) if arguments.curves else _table_settings(task, arguments.samplers))
    identity = {"task": arguments.task, "items": arguments.items, "batch": arguments.batch, **task.options}
    begun = time.monotonic()
    with Journal.open(arguments.json.with_suffix(".jsonl"), identity) as journal:
        for name, labels, options in settings:
            if name not in journal and time.monotonic() - begun <= 60 * arguments.minutes:
                journal.append(name, run(task, options, arguments.batch) | {"labels": labels})
        rows = [journal.done[name] for name, _, _ in settings if name in journal]
    report = summary(rows, task.higher, arguments.curves)
    show(report)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    machine |= {"threads": torch.get_num_threads()}
    left = len(settings) - len(rows)
    write_json(arguments.json, {"machine": machine, "settings": identity, "not done": left, "rows": report})
    if arguments.curves and drawing.available():
        drawing.save(picture(report, task.higher), arguments.json.with_suffix(".png"))


def _table_settings(task: Any, chosen: list[str] | None) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    forms: dict[str, Constraint | None] = {"none": None, **task.forms()}
    for sampler, options in SAMPLERS:
        if chosen and sampler not in chosen:
            continue
        for guided, guidance in GUIDANCE.items():
            for name, constraint in forms.items():
                labels = {"sampler": sampler, "guidance": guided, "constraint": name}
                yield ", ".join(labels.values()), labels, {**options, "guidance": guidance, "constraint": constraint}


def _curve_settings(task: Any) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    for sampler, setting, options in curves(task.masks):
        yield f"{sampler}, {setting}", {"sampler": sampler, "setting": setting}, options


def run(task: Any, options: dict[str, Any], batch: int) -> dict[str, Any]:
    """One setting on every item."""
    texts, steps, passes, rows = [], [], 0, 0
    begun = time.process_time()
    for start in range(0, len(task.texts), batch):
        chosen = {"seed": task.options.get("seed", 0) + start}
        out = task.write(task.texts[start : start + batch], **{**task.options, **options, **chosen})
        texts += out.texts
        steps += out.steps
        passes, rows = passes + out.passes, rows + out.rows
    seconds = time.process_time() - begun
    form = options.get("constraint") or next(iter(task.forms().values()))
    return {
        "measures": task.measure(texts), "steps": sum(steps) / len(steps), "passes": passes, "rows": rows / len(texts),
        "seconds": seconds / len(texts), "in form": _in_form(task, form, texts),
    }  # fmt: skip


def _in_form(task: Any, form: Constraint, texts: list[str]) -> float:
    session = form.start(Vocabulary.of(task.tokenizer))
    return sum(session.is_complete(text.encode()) for text in texts) / len(texts)


def summary(rows: list[dict[str, Any]], higher: str, curve: bool) -> list[dict[str, Any]]:
    """What is shown: means with intervals, and differences to the first row, item by item."""
    report: list[dict[str, Any]] = []
    base = rows[0]["measures"][higher] if rows else []
    free = {(r["labels"].get("sampler"), r["labels"].get("guidance")): r for r in rows
            if r["labels"].get("constraint") == "none"}  # fmt: skip
    for row in rows:
        line: dict[str, Any] = dict(row["labels"])
        for measure, values in row["measures"].items():
            found = mean_interval(values)
            line |= {measure: found.mean, f"{measure} low": found.low, f"{measure} high": found.high}
        difference = compare_items(row["measures"][higher], base)
        line |= {"difference": difference.difference, "d low": difference.low, "d high": difference.high}
        line |= {"steps": row["steps"], "passes": row["passes"], "seconds": row["seconds"], "in form": row["in form"]}
        plain = free.get((row["labels"].get("sampler"), row["labels"].get("guidance")))
        if not curve and plain is not None:
            line["time against none"] = row["seconds"] / plain["seconds"]
        report.append(line)
    return report


@drawing.styled
def picture(report: list[dict[str, Any]], higher: str) -> Any:
    """Steps against quality: orders with so many steps, and samplers that choose how many positions they fill."""
    figure, panels = drawing.grid(2, 3.2, columns=1)
    orders = ("confidence", "margin", "random", "PC")
    samplers = list(dict.fromkeys(line["sampler"] for line in report))
    lowest = min(line[f"{higher} low"] for line in report)
    halves = [s for s in samplers if s in orders], [s for s in samplers if s not in orders]
    for axes, chosen in zip(panels, halves, strict=True):
        for index, sampler in enumerate(chosen):
            found = sorted((line for line in report if line["sampler"] == sampler), key=lambda line: line["steps"])
            points = [
                drawing.Point(line["steps"], line[higher], line[f"{higher} low"], line[f"{higher} high"])
                for line in found
            ]
            drawing.draw_curve(axes, points, index, 0.08)
        axes.set_ylim(max(0.0, lowest - 0.05), None)
        axes.set_xlabel("steps a text")
        axes.set_ylabel(higher)
        drawing.set_log_ticks(axes)
        axes.legend(axes.get_lines(), chosen, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=5, fontsize=9.5)
    figure.supxlabel("bands: 95% intervals", fontsize=8.5, color=drawing.GREY, x=0.99, ha="right")
    return figure


def show(report: list[dict[str, Any]]) -> None:
    """A table."""
    table = Table()
    for name in report[0] if report else []:
        table.add_column(name)
    for line in report:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in line.values()))
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
