"""Sudoku and molecules under no guidance, CFG and A-CFG, with intervals, plots and a picture of one canvas.

A run that was stopped goes on where it was: every finished setting is a line of ``settings.jsonl``::

    python scripts/study/diffusion.py sudoku --output docs/results/diffusion/sudoku
    python scripts/study/diffusion.py molecules --output docs/results/diffusion/molecules
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from textguide import ACFG, CFG, diffusion
from textguide.eval.reports import drawing
from textguide.eval.statistics.intervals import mean_interval
from textguide.eval.statistics.paired import adjust, compare_items
from textguide.support.files import write_json, write_text
from textguide.tasks import molecules, sudoku

SCALES = (1.25, 1.5, 2.0, 3.0)
RATIOS = (0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Setting:
    """A guidance and how the canvas is filled."""

    name: str
    family: str
    guidance: Any
    options: tuple[tuple[str, Any], ...] = ()


def settings() -> list[Setting]:
    """The compact grid: γ for CFG, γ × ρ for A-CFG, and the variants at γ = 1.5."""
    grid = [Setting("plain", "plain", None)]
    grid += [Setting(f"CFG γ={g:g}", "CFG", CFG(g)) for g in SCALES]
    grid += [Setting(f"A-CFG γ={g:g} ρ={r:g}", f"A-CFG ρ={r:g}", ACFG(g, r)) for r in RATIOS for g in SCALES]
    grid += [Setting(f"A-CFG γ=1.5 ρ=0.7 {s}", "variants", ACFG(1.5, 0.7, s)) for s in ("generated", "prompt")]
    grid += [
        Setting("A-CFG γ=1.5 ρ=0.7 one pass", "variants", ACFG(1.5, one_pass=True)),
        Setting("CFG γ=1.5 CFG++ positions", "variants", CFG(1.5), (("positions", "unconditional"),)),
        Setting("CFG γ=1.5 corrector 1", "variants", CFG(1.5), (("corrector", 1),)),
    ]
    return grid


class Sudoku:
    """Solve rate on held-out puzzles; ``--steps`` below the number of cells fills several at once."""

    primary, higher = "solved", "share of puzzles solved"

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model, self.tokenizer = diffusion.load(arguments.model or f"sudoku{arguments.side}")
        self.denoiser = diffusion.denoiser(self.model, self.tokenizer)
        self.puzzles = sudoku.puzzles(
            arguments.side, arguments.items, sudoku.TEST_CLUES[arguments.side], sudoku.TEST_SEED
        )
        self.prompts: list[str] = [puzzle for puzzle, _ in self.puzzles]
        self.length = arguments.side**2
        self.options = {"steps": arguments.steps or 8}

    def measure(self, texts: Sequence[str]) -> tuple[dict[str, list[float]], dict[str, float]]:
        return {
            "solved": [float(sudoku.is_solution(p, t)) for p, t in zip(self.prompts, texts, strict=True)],
            "cells": [sudoku.correct_cells(s, t) for (_, s), t in zip(self.puzzles, texts, strict=True)],
        }, {}


class Molecules:
    """Share of the four conditions that came true, with validity, uniqueness and diversity."""

    primary, higher = "hits", "share of conditions that came true"

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model, self.tokenizer = diffusion.load(arguments.model or "molecules")
        self.denoiser = diffusion.denoiser(self.model, self.tokenizer)
        chance = random.Random(0)
        self.asked = [
            tuple(chance.randrange(len(edges) + 1) for edges in molecules.EDGES.values())
            for _ in range(arguments.items)
        ]
        self.prompts = [molecules.prompt_of(bins) for bins in self.asked]
        self.length = int(self.model.config.max_position_embeddings) - len(molecules.EDGES)
        self.options = {"order": "confidence", "temperature": arguments.temperature, "seed": 0}
        self.options |= {"steps": arguments.steps or self.length}

    def measure(self, texts: Sequence[str]) -> tuple[dict[str, list[float]], dict[str, float]]:
        found = molecules.report(self.asked, texts)
        valid = sum(found.valid)
        return {"hits": found.hits, "valid": found.valid, "all four": found.all_hit}, {
            "unique": found.unique,
            "diversity": found.diversity,
            "hits of valid": sum(found.hits) / valid if valid else 0.0,
            **{f"hit {name}": value for name, value in found.by_property.items()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=("sudoku", "molecules"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", help="a folder, in place of the bundled model")
    parser.add_argument("--side", type=int, default=4, help="of the Sudoku grid")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--steps", type=int, help="denoising steps [8 for Sudoku, one a token for molecules]")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the molecules")
    parser.add_argument("--batch-size", type=int, default=100)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    study = (Sudoku if arguments.study == "sudoku" else Molecules)(arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)
    journal = arguments.output / "settings.jsonl"
    identity = {"study": arguments.study, "side": arguments.side, "items": arguments.items, **study.options}
    done = {row["name"]: row for row in _read(journal) if row["identity"] == identity}
    for setting in track(settings(), description=arguments.study):
        if setting.name not in done:
            row = run(study, setting, arguments.batch_size) | {"identity": identity}
            done[setting.name] = row
            with journal.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    report(study, [done[s.name] | {"family": s.family} for s in settings()], identity, arguments)


def run(study: Any, setting: Setting, batch: int) -> dict[str, Any]:
    """One setting on every item."""
    texts: list[str] = []
    passes = rows = 0
    begun = time.perf_counter()
    effects = []
    for start in range(0, len(study.prompts), batch):
        out = diffusion.generate(
            study.denoiser, study.tokenizer, study.prompts[start : start + batch], gen_length=study.length,
            guidance=setting.guidance, warn=False, **{**study.options, **dict(setting.options)},
        )  # fmt: skip
        texts += out.texts
        passes, rows = passes + out.passes, rows + out.rows
        effects.append(out.effect)
    items, extra = study.measure(texts)
    seconds = time.perf_counter() - begun
    return {
        "name": setting.name, "scale": getattr(setting.guidance, "scale", 1.0), "items": items, "extra": extra,
        "passes": passes, "rows": rows, "seconds": seconds, "kl": sum(e.mean_kl for e in effects) / len(effects),
        "texts": texts[:20],
    }  # fmt: skip


def report(study: Any, rows: list[dict[str, Any]], identity: dict[str, Any], arguments: argparse.Namespace) -> None:
    """``report.md``, ``results.json``, a plot a metric, and the canvas."""
    plain = rows[0]
    metrics = list(plain["items"])
    extras = list(plain["extra"])
    comparisons = {metric: {c.label: c for c in _compare(metric, rows)} for metric in metrics}
    head = ["setting", *metrics, f"{study.primary} − plain", "p (Holm)", *extras, "rows", "KL"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    summary = []
    for row in rows:
        intervals = {metric: mean_interval(values) for metric, values in row["items"].items()}
        compared = comparisons[study.primary].get(row["name"])
        difference = (
            "" if compared is None else f"{compared.difference:+.3f} [{compared.low:+.3f}, {compared.high:+.3f}]"
        )
        cells = [
            row["name"],
            *(f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in intervals.values()),
            difference,
            "" if compared is None or compared.p_holm is None else f"{compared.p_holm:.3g}",
            *(f"{row['extra'][name]:.3f}" for name in extras),
            str(row["rows"]),
            f"{row['kl']:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
        summary.append({
            "name": row["name"], "scale": row["scale"], "extra": row["extra"], "passes": row["passes"],
            "rows": row["rows"], "seconds": round(row["seconds"], 2), "kl": row["kl"],
            "metrics": {m: {"value": i.mean, "low": i.low, "high": i.high} for m, i in intervals.items()},
            "against_plain": None if compared is None else compared.to_dict(),
        })  # fmt: skip
    command = f"python scripts/study/diffusion.py {arguments.study} --items {arguments.items}"
    shown = ("steps", "temperature", *(("side",) if arguments.study == "sudoku" else ()))
    command += "".join(f" --{k} {v}" for k, v in identity.items() if k in shown)
    text = f"# {arguments.study}\n\n`{command}`\n\n95% intervals, paired differences.\n\n" + "\n".join(lines) + "\n"
    write_text(arguments.output / "report.md", text)
    write_json(arguments.output / "results.json", {"identity": identity, "settings": summary})
    for metric in [*metrics, *extras]:
        plot(metric, rows, arguments.output / f"{metric.replace(' ', '-')}.png")
    canvas(study, arguments.output / "canvas.html")
    print(text)


def _compare(metric: str, rows: list[dict[str, Any]]) -> list[Any]:
    base = rows[0]["items"][metric]
    return adjust(
        [compare_items(r["items"][metric], base, metric=metric, label=r["name"], baseline="plain") for r in rows[1:]]
    )


@drawing.styled
def plot(metric: str, rows: list[dict[str, Any]], path: Path) -> None:
    """A metric against γ, one line a family."""
    figure, (axes,) = drawing.grid(1, 3.8)

    def point(row: dict[str, Any]) -> drawing.Point:
        if metric in row["extra"]:
            return drawing.Point(row["scale"], row["extra"][metric])
        interval = mean_interval(row["items"][metric])
        return drawing.Point(row["scale"], interval.mean, interval.low, interval.high)

    plain = point({**rows[0], "scale": 1.0})
    drawing.draw_level(axes, plain.value, plain.low, plain.high)
    names = [("plain", plain.value, drawing.GREY)]
    families = [f for f in dict.fromkeys(row["family"] for row in rows) if f not in ("plain", "variants")]
    for index, family in enumerate(families):
        points = [point(row) for row in rows if row["family"] == family]
        drawing.draw_curve(axes, points, index, band=0.09)
        names.append((family, points[-1].value, drawing.COLOURS[index % len(drawing.COLOURS)]))
    drawing.set_ticks(axes, SCALES, 4.2)
    axes.set_xlabel("guidance scale γ")
    axes.set_ylabel({"solved": Sudoku.higher, "hits": Molecules.higher}.get(metric, metric))
    drawing.name_lines(axes, names)
    if plain.low is not None:
        figure.supxlabel("bands: 95% intervals", fontsize=8.5, color=drawing.GREY, x=0.99, ha="right")
    drawing.save(figure, path)


def canvas(study: Any, path: Path) -> None:
    """One row under A-CFG, step by step."""
    guidance = ACFG(1.5)
    out = diffusion.generate(
        study.denoiser, study.tokenizer, study.prompts[:1], gen_length=study.length, guidance=guidance,
        keep_history=True, **study.options,
    )  # fmt: skip
    write_text(path, diffusion.picture_page(study.denoiser, study.tokenizer, out, guidance))


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the line that a killed run was writing
            continue
    return rows


if __name__ == "__main__":
    main()
