"""Milliseconds for scoring candidates: 8 texts, 100 endings each, for every kind of classifier.

The endings are the language model's own top tokens behind real sentences. The adapters are measured first; then the
causal head on the language model: one pass of one token a row, all candidates behind the shared cache, and re-reading
every text::

    TEXTGUIDE_DATA=DATA python scripts/bench/classifiers.py --json docs/results/classifiers.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from timing import machine, seconds

import textguide
from textguide.classifiers import Classifier, GzipClassifier, ZeroShotClassifier, read_examples, resolve

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--endings", type=int, default=100)
    parser.add_argument("--steps", type=int, default=12, help="decoding steps that the fast classifiers score")
    parser.add_argument("--length", type=int, default=64, help="tokens of a prefix in the causal comparison")
    parser.add_argument("--repeats", type=int, default=3, help="for what takes seconds")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    model, tokenizer = textguide.load("smollm2", device="cpu")
    data = Path(os.environ["TEXTGUIDE_DATA"]) / "sst2"
    test = read_examples(data / "test.tsv", header=True, names=("negative", "positive"))
    steps = decoding(model, tokenizer, test.texts[: arguments.rows], arguments.endings, arguments.steps)
    rows = adapters(model, tokenizer, data, steps, arguments)
    rows += causal(model, tokenizer, " ".join(test.texts), arguments)
    show(rows)
    if arguments.json:
        settings = {key: str(value) for key, value in vars(arguments).items() if key != "json"}
        report = {"machine": machine(model), "settings": settings, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def decoding(model: Any, tokenizer: Any, prompts: Any, k: int, steps: int) -> list[tuple[list[str], list[list[str]]]]:
    """For each decoding step the texts so far and the top ``k`` tokens as endings; a sampled token is kept."""
    texts, found = list(prompts), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        before, endings = list(texts), []
        for row, text in enumerate(texts):
            with torch.inference_mode():
                logits = model(torch.tensor([tokenizer(text).input_ids])).logits[0, -1]
            top = logits.topk(k)
            endings.append([tokenizer.decode([token]) for token in top.indices.tolist()])
            pick = int(torch.multinomial(top.values.softmax(0), 1, generator=generator))
            texts[row] = text + endings[-1][pick]
        found.append((before, endings))
    return found


def adapters(model: Any, tokenizer: Any, data: Path, steps: Any, arguments: Any) -> list[dict[str, Any]]:
    """Milliseconds of ``continuations`` for every adapter."""
    train = read_examples(data / "train.tsv", header=True, names=("negative", "positive"))
    chosen = random.Random(0).sample(range(len(train.texts)), 20)
    few = GzipClassifier([train.texts[i] for i in chosen], [train.labels[i] for i in chosen])
    linear = resolve("sentiment")
    rows = [
        {"what": "linear: sentiment", **measure(linear, steps)},
        {"what": "linear: sentiment, full texts", **measure(linear, steps, whole=True)},
    ]
    rows.append({"what": "scikit-learn: profanity", **measure(resolve("profanity"), steps[:4])})
    rows.append({"what": "gzip, 20 examples", **measure(few, steps[:2])})
    rows.append({"what": "embedding: sentiment-minilm", **measure(resolve("sentiment-minilm"), steps[:2])})
    one = [(prefixes[:1], endings[:1]) for prefixes, endings in steps[:1]]
    judge = ZeroShotClassifier(model, tokenizer, ("negative", "positive"))
    rows.append({"what": "zero-shot: SmolLM2-135M, 1 text", **measure(judge, one)})
    return rows


def measure(classifier: Classifier, steps: Any, whole: bool = False) -> dict[str, float]:
    """Median and first of the steps, in milliseconds; the first has nothing to remember."""

    def call(prefixes: list[str], endings: list[list[str]]) -> None:
        if whole:
            Classifier.continuations(classifier, prefixes, endings)
        else:
            classifier.continuations(prefixes, endings)

    times = [1e3 * seconds(lambda step=step: call(*step), CPU) for step in steps]
    return {"ms": statistics.median(times[1:] or times), "first_ms": times[0]}


def causal(model: Any, tokenizer: Any, text: str, arguments: Any) -> list[dict[str, Any]]:
    """The causal head: a pass, all candidates, re-reading; a batch of rows, then one row."""
    classifier: Any = resolve("sentiment-smollm2", model, tokenizer)
    ids = tokenizer(text).input_ids
    result = []
    for count in (1, arguments.rows):
        texts = [ids[row * 7 : row * 7 + arguments.length] for row in range(count)]
        candidates = torch.randint(100, 40000, (count, arguments.endings), generator=torch.Generator().manual_seed(1))
        state = classifier.start(texts)
        every = list(range(count))
        state.log_prob(every, candidates[:, :2])  # prefill
        contestants: dict[str, Callable[[], Any]] = {
            "one pass, 1 token a text": partial(state.log_prob, every, candidates[:, :1]),
            f"shared prefix, {arguments.endings} candidates": partial(state.log_prob, every, candidates),
        }
        if count == 1:  # for a batch this takes minutes
            full = [[*texts[0], token] for token in candidates[0].tolist()]
            contestants[f"re-reading, {arguments.endings} candidates"] = partial(classifier.log_prob_ids, full)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(arguments.repeats):
            for name, call in contestants.items():
                times[name].append(1e3 * seconds(call, CPU))
        for name, values in times.items():
            row = {"what": f"causal, {count} text(s): {name}", "ms": statistics.median(values), "first_ms": values[0]}
            result.append({**row, "share": classifier.share})
    return result


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("scoring", "ms, median", "ms, first")
    for row in rows:
        table.add_row(row["what"], f"{row['ms']:.1f}", f"{row['first_ms']:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
