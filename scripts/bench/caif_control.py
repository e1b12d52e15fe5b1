"""How far classifiers steer text, and what that costs in fluency, beside CFG with a negative prompt.

Sentiment: the prompts of DExperts' human evaluation, guided by the sentiment classifier trained on SST-2 and judged by
VADER. Toxicity: its non-toxic prompts, guided away from alt-profanity-check's toxic class; judged by that classifier
itself (which shows that the guide is obeyed) and by the word list of better-profanity (which it does not know).

Every continuation is sampled at temperature 1 from the 20 most likely tokens, as the authors of CAIF do. A run that was
stopped goes on where it was::

    pip install vaderSentiment alt-profanity-check better-profanity
    python scripts/bench/caif_control.py --data DATA --output docs/results/caif
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from timing import machine

import textguide
from textguide import CAIF, CFG
from textguide.eval.reports import drawing
from textguide.eval.results.journal import Journal
from textguide.eval.statistics.intervals import mean_interval, perplexity_interval
from textguide.support.files import write_json, write_text

GLOOMY = "Everything about it was bad, sad and disappointing. "
CHEERFUL = "Everything about it was good, happy and wonderful. "
RUDE = "What follows is full of insults, swearing and hate, you stupid bastards. "
TITLES = {
    "caif": "CAIF α {:g}",
    "cfg": "CFG γ {:g}, negative prompt",
    "both": "CFG γ 1.5 + CAIF α {:g}",
    "threshold": "CAIF α 10 above {:g} nats",
    "every": "CAIF α 10 every {:g} steps",
}
NAMES = {"caif": "CAIF", "cfg": "CFG, negative prompt", "both": "CFG 1.5 + CAIF", "plain": "plain"}


def settings(task: str) -> dict[str, tuple[str, float, Any]]:
    """By label: the family, its strength, and what makes the guidance for a list of prompts."""
    found: dict[str, tuple[str, float, Any]] = {"plain": ("plain", 0.0, lambda prompts: None)}

    def add(family: str, strength: float, make: Any) -> None:
        found[TITLES[family].format(strength)] = (family, strength, make)

    if task == "toxicity":
        for weight in (-3.0, -10.0, -30.0):
            add("caif", -weight, lambda prompts, w=weight: CAIF("profanity", "toxic", w))
        for scale in (1.5, 3.0):
            add("cfg", scale, lambda prompts, s=scale: CFG(s, negative_prompt=[RUDE + p for p in prompts]))
        return found
    target, away = ("positive", GLOOMY) if task == "to-positive" else ("negative", CHEERFUL)
    for weight in (1.0, 5.0, 10.0, 20.0, 40.0) if task == "to-positive" else (10.0, 40.0):
        add("caif", weight, lambda prompts, w=weight: CAIF("sentiment", target, w))
    for scale in (1.5, 2.0, 3.0) if task == "to-positive" else (1.5, 3.0):
        add("cfg", scale, lambda prompts, s=scale: CFG(s, negative_prompt=[away + p for p in prompts]))
    for weight in (20.0,) if task == "to-positive" else ():
        add("both", weight, lambda prompts, w=weight: [
            CFG(1.5, negative_prompt=[away + p for p in prompts]), CAIF("sentiment", target, w)])  # fmt: skip
    if task == "to-positive":
        for threshold in (2.0, 3.0, 4.0):
            add("threshold", threshold, lambda prompts, t=threshold: CAIF(
                "sentiment", target, 10.0, entropy_threshold=t))  # fmt: skip
        for every in (2, 4):
            add("every", float(every), lambda prompts, n=every: CAIF("sentiment", target, 10.0, every=n))
    return found


def prompts_of(task: str, data: Path) -> list[str]:
    groups = json.loads((data / "prompts" / "unique_prompts.json").read_text(encoding="utf-8"))
    names = {
        "to-positive": [n for n in groups if n.endswith("positive_sentiment")],
        "to-negative": [n for n in groups if n.endswith("negative_sentiment")],
        "toxicity": [n for n in groups if n.startswith("toxicity")],
    }[task]
    return list(dict.fromkeys(text for name in names for text in groups[name].values()))


class Judges:
    """What the texts are judged by; none of them is the sentiment guide."""

    def __init__(self) -> None:
        from better_profanity import profanity
        from profanity_check import predict_prob
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        profanity.load_censor_words()
        self.words, self.toxic, self.vader = profanity, predict_prob, SentimentIntensityAnalyzer()

    def __call__(self, task: str, texts: list[str]) -> dict[str, list[float]]:
        if task == "toxicity":
            toxic = self.toxic(texts)
            return {
                "toxic by the guide": [float(p > 0.5) for p in toxic],
                "toxicity by the guide": [float(p) for p in toxic],
                "swear words": [float(self.words.contains_profanity(text)) for text in texts],
            }
        sign = 1 if task == "to-positive" else -1
        scores = [sign * self.vader.polarity_scores(text)["compound"] for text in texts]
        return {"on target": [float(score >= 0.05) for score in scores], "VADER": scores}


def distinct(rows: list[list[int]], n: int) -> float:
    """Share of different n-grams among those of the continuations of one prompt."""
    grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def run_setting(model: Any, tokenizer: Any, task: str, prompts: list[str], make: Any, args: Any) -> dict[str, Any]:
    """Continue every prompt under one setting and measure what came out."""
    record: dict[str, Any] = {"texts": [], "tokens": [], "nll": [], "distinct": {1: [], 2: [], 3: []}}
    seconds, classified, steps = 0.0, 0, 0
    for start in range(0, len(prompts), args.batch):
        batch = prompts[start : start + args.batch]
        before = time.perf_counter()
        out = textguide.generate(
            model, tokenizer, batch, make(batch), max_new_tokens=args.new, do_sample=True, top_k=20, temperature=1.0,
            num_return_sequences=args.samples, seed=args.seed + start,
        )  # fmt: skip
        seconds += time.perf_counter() - before
        classified += out.effect.classified_texts
        steps += sum(map(len, out.new_tokens))
        contexts = [prompt for prompt in batch for _ in range(args.samples)]
        plain = textguide.score(model, tokenizer, contexts, out.new_tokens, batch_size=16)
        record["texts"] += out.texts
        record["tokens"] += [len(row) for row in out.new_tokens]
        record["nll"] += (-plain.log_likelihood[0]).tolist()
        for i in range(len(batch)):
            rows = out.new_tokens[i * args.samples : (i + 1) * args.samples]
            for n in (1, 2, 3):
                record["distinct"][n].append(distinct(rows, n))
    return {**record, "seconds": seconds, "classified": classified, "steps": steps}


def summary(task: str, record: dict[str, Any], judges: Judges, samples: int) -> dict[str, Any]:
    """Figures with their 95% intervals; the unit is the prompt."""

    def by_prompt(values: list[float]) -> Any:
        return np.asarray(values).reshape(-1, samples).mean(1)

    figures = {name: mean_interval(by_prompt(v))._asdict() for name, v in judges(task, record["texts"]).items()}
    nll, tokens = by_prompt(record["nll"]) * samples, by_prompt(record["tokens"]) * samples
    figures["perplexity"] = perplexity_interval(nll, tokens)._asdict()
    for n, values in record["distinct"].items():
        figures[f"distinct-{n}"] = mean_interval(values)._asdict()
    figures["texts classified a token"] = record["classified"] / record["steps"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, required=True, help="folder with prompts/unique_prompts.json")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["to-positive", "to-negative", "toxicity"])
    parser.add_argument("--samples", type=int, default=2, help="continuations a prompt")
    parser.add_argument("--new", type=int, default=20, help="tokens a continuation")
    parser.add_argument("--batch", type=int, default=8, help="prompts at once")
    parser.add_argument("--limit", type=int, help="prompts a task")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, tokenizer = textguide.load(args.model)
    judges = Judges()
    identity = {k: getattr(args, k) for k in ("model", "samples", "new", "limit", "seed", "batch")}
    results: dict[str, dict[str, Any]] = {}
    with Journal.open(args.output / "journal.jsonl", identity) as journal, Progress() as bar:
        for task in args.tasks:
            prompts = prompts_of(task, args.data)[: args.limit]
            chosen = settings(task)
            place = bar.add_task(task, total=len(chosen))
            results[task] = {}
            for name, (family, strength, make) in chosen.items():
                key = f"{task}/{name}"
                if key not in journal.done:
                    journal.append(key, run_setting(model, tokenizer, task, prompts, make, args))
                figures = summary(task, journal.done[key], judges, args.samples)
                results[task][name] = {"family": family, "strength": strength, "prompts": len(prompts), **figures}
                bar.advance(place)
    write_json(args.output / "control.json", {"machine": machine(model), "settings": identity, "results": results})
    report = show(results)
    write_text(args.output / "control.md", report)
    for task in args.tasks:
        drawing.save(front(task, results[task]), args.output / f"{task}.png")
    if "to-positive" in args.tasks:
        drawing.save(saving(results["to-positive"]), args.output / "saving.png")


def headline(task: str) -> list[str]:
    return ["toxicity by the guide", "swear words"] if task == "toxicity" else ["on target", "VADER"]


def show(results: dict[str, dict[str, Any]]) -> str:
    """Print the tables; the same as Markdown."""
    lines = []
    for task, rows in results.items():
        shown = [*headline(task), "perplexity", "distinct-1", "distinct-2", "distinct-3"]
        columns = ["guidance", *shown, "texts classified a token"]
        table = Table(*columns, title=task)
        lines += [f"## {task}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        for name, row in rows.items():
            cells = [name]
            for column in shown:
                value, low, high = (row[column][k] for k in ("mean", "low", "high"))
                digits = 1 if column == "perplexity" else 2 if column != "toxicity by the guide" else 3
                cells.append(f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
            cells.append(f"{row['texts classified a token']:.0f}")
            table.add_row(*cells)
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
        Console().print(table)
    return "\n".join(lines) + "\n"


@drawing.styled
def front(task: str, rows: dict[str, Any]) -> Any:
    """Control against fluency, one point a setting."""
    figure, (axes,) = drawing.grid(1, 4.2)
    metric = headline(task)[0]
    families = {}
    for family, title in NAMES.items():
        found = sorted((r for r in rows.values() if r["family"] == family), key=lambda r: r["strength"])
        letter = ("α −" if task == "toxicity" else "α ") if family != "cfg" else "γ "
        points = [
            drawing.Point(
                row["perplexity"]["mean"], row[metric]["mean"], row[metric]["low"], row[metric]["high"],
                "plain" if family == "plain" else f"{letter}{row['strength']:g}",
                (row["perplexity"]["low"], row["perplexity"]["high"]),
            )
            for row in found
        ]  # fmt: skip
        if points:
            families[title] = points
    axes.set_xlabel("perplexity under the unguided model")
    axes.set_ylabel("mean toxicity by the guide" if task == "toxicity" else f"share {task[3:]} by VADER")
    drawing.draw_fronts(axes, families, log=True)
    figure.supxlabel("pale bars: 95% intervals", fontsize=8.5, color=drawing.GREY, x=0.99, ha="right")
    return figure


@drawing.styled
def saving(rows: dict[str, Any]) -> Any:
    """What scoring fewer steps saves against what it costs in control."""
    figure, (axes,) = drawing.grid(1, 3.8)
    whole = next(r for r in rows.values() if r["family"] == "caif" and r["strength"] == 10.0)
    families = {}
    for family, title, name in (
        ("threshold", "entropy threshold", "{:g} nats"), ("every", "every n-th step", "n = {:g}")
    ):  # fmt: skip
        found = [whole, *sorted((r for r in rows.values() if r["family"] == family), key=lambda r: r["strength"])]
        families[title] = [
            drawing.Point(
                row["texts classified a token"], row["on target"]["mean"], row["on target"]["low"],
                row["on target"]["high"], "every step" if row is whole else name.format(row["strength"]),
            )
            for row in found
        ]  # fmt: skip
    families["every n-th step"][0] = replace(families["every n-th step"][0], name="")  # the same point
    plain = rows["plain"]["on target"]
    drawing.draw_level(axes, plain["mean"], plain["low"], plain["high"])
    axes.set_xlabel("texts classified a token")
    axes.set_ylabel("share positive by VADER, α = 10")
    drawing.draw_fronts(axes, families)
    drawing.name_lines(axes, [("plain", plain["mean"], drawing.GREY)])
    figure.supxlabel("pale bars and band: 95% intervals", fontsize=8.5, color=drawing.GREY, x=0.99, ha="right")
    return figure


if __name__ == "__main__":
    main()
