"""Milliseconds for scoring candidates: 8 texts with 100 endings each, for every kind of classifier.

The endings are the language model's own top tokens after real sentences. The adapters are measured first, then the
causal head on the language model: one pass of one token per row, all candidates after the shared cache, and re-reading
every text::

    TEXTGUIDE_DATA=DATA python scripts/bench/classifiers.py --json docs/results/classifiers.json
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch

from textguide.classifiers import Classifier, GzipClassifier, ZeroShotClassifier, read_examples, resolve

Step = tuple[list[str], list[list[str]]]
"""The texts so far, and the candidate endings of each."""


def main() -> None:
    parser = timing.parser(__doc__, repeats=3)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--endings", type=int, default=100)
    parser.add_argument("--steps", type=int, default=12, help="decoding steps that the fast classifiers score")
    parser.add_argument("--length", type=int, default=64, help="tokens of a prefix in the causal comparison")
    arguments = parser.parse_args()
    model, tokenizer = timing.load(arguments)
    data = Path(os.environ["TEXTGUIDE_DATA"]) / "sst2"
    test = read_examples(data / "test.tsv", header=True, names=("negative", "positive"))
    steps = decoding(model, tokenizer, test.texts[: arguments.rows], arguments.endings, arguments.steps)
    rows = adapters(model, tokenizer, data, steps)
    for count in (1, arguments.rows):
        rows += causal(model, tokenizer, " ".join(test.texts), count, arguments)
    timing.show(rows, {"scoring": "{what}", "ms, median": "{ms:.1f}", "ms, first": "{first_ms:.1f}"})
    timing.finish(arguments, model, rows=rows)


def decoding(model: Any, tokenizer: Any, prompts: Sequence[str], k: int, steps: int) -> list[Step]:
    """For each decoding step the texts so far and the top ``k`` tokens as endings; a sampled token continues a text."""
    texts = list(prompts)
    generator = torch.Generator().manual_seed(0)
    result = []
    for _ in range(steps):
        before = list(texts)
        endings = []
        for row, text in enumerate(texts):
            with torch.inference_mode():
                logits = model(torch.tensor([tokenizer(text).input_ids])).logits[0, -1]
            top = logits.topk(k)
            endings.append([tokenizer.decode([token]) for token in top.indices.tolist()])
            pick = int(torch.multinomial(top.values.softmax(0), 1, generator=generator))
            texts[row] = text + endings[-1][pick]
        result.append((before, endings))
    return result


def adapters(model: Any, tokenizer: Any, data: Path, steps: list[Step]) -> list[dict[str, Any]]:
    """Milliseconds of ``continuations`` for every adapter; the slow ones score a few steps only."""
    train = read_examples(data / "train.tsv", header=True, names=("negative", "positive"))
    chosen = random.Random(0).sample(range(len(train.texts)), 20)
    few = GzipClassifier([train.texts[i] for i in chosen], [train.labels[i] for i in chosen])
    linear = resolve("sentiment")
    judge = ZeroShotClassifier(model, tokenizer, ("negative", "positive"))
    prefixes, endings = steps[0]
    measured = {
        "linear: sentiment": (linear.continuations, steps),
        "linear: sentiment, full texts": (partial(Classifier.continuations, linear), steps),
        "scikit-learn: profanity": (resolve("profanity").continuations, steps[:4]),
        "gzip, 20 examples": (few.continuations, steps[:2]),
        "embedding: sentiment-minilm": (resolve("sentiment-minilm").continuations, steps[:2]),
        "zero-shot: SmolLM2-135M, 1 text": (judge.continuations, [(prefixes[:1], endings[:1])]),
    }
    rows = []
    for name, (score, some) in measured.items():
        times = [1e3 * timing.seconds(partial(score, *step)) for step in some]
        # The first step has nothing cached, so it is reported on its own.
        rows.append({"what": name, "ms": statistics.median(times[1:] or times), "first_ms": times[0]})
    return rows


def causal(model: Any, tokenizer: Any, text: str, count: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The causal head on ``count`` texts: one pass, all candidates, and re-reading if it is one text."""
    classifier: Any = resolve("sentiment-smollm2", model, tokenizer)
    ids = tokenizer(text).input_ids
    texts = [ids[row * 7 : row * 7 + arguments.length] for row in range(count)]
    candidates = torch.randint(100, 40000, (count, arguments.endings), generator=torch.Generator().manual_seed(1))
    state = classifier.start(texts)
    every = list(range(count))
    state.log_prob(every, candidates[:, :2])  # prefill
    contestants = {
        "one pass, 1 token a text": partial(state.log_prob, every, candidates[:, :1]),
        f"shared prefix, {arguments.endings} candidates": partial(state.log_prob, every, candidates),
    }
    if count == 1:  # for a batch this takes minutes
        whole = [[*texts[0], token] for token in candidates[0].tolist()]
        contestants[f"re-reading, {arguments.endings} candidates"] = partial(classifier.log_prob_ids, whole)
    rows = []
    for name, one in timing.compare(contestants, arguments.repeats, warmup=0).items():
        row = {"what": f"causal, {count} text(s): {name}", "ms": one.milliseconds, "first_ms": 1e3 * one.seconds[0]}
        rows.append({**row, "share": classifier.share})
    return rows


if __name__ == "__main__":
    main()
