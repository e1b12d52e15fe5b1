"""How far a steering vector moves the mood of continuations, by strength and layer, beside CAIF, DExperts and CFG.

The vector is the difference of means over 100 sentences of SST-2, 50 positive and 50 negative, of eight words or more,
the first of the training file; each goes on with the same few words, so that all end on one token, whose residual
stream says what is to come. Prompts are those of DExperts' human evaluation that are to go on in a good mood, half of
them neutral and half negative. Continuations are sampled at temperature 1 from the 20 most likely tokens and judged by
VADER, which knows no guide; perplexity is that of the model without guidance, over all tokens::

    pip install vaderSentiment
    TEXTGUIDE_DATA=DATA python scripts/study/steering.py --json docs/results/steering.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import textguide
from textguide import CAIF, CFG, steering
from textguide.eval.statistics.intervals import mean_interval
from textguide.guidance import DExperts, Steering
from textguide.support.files import write_json

GLOOMY = "Everything about it was bad, sad and disappointing. "
SMALL = {"expert": "smollm2-small-positive", "anti-expert": "smollm2-small-negative"}
SENTENCES = 100
ENDING = " . Overall, it was"
SHORTEST = 8
Make = Callable[[list[str]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", default=["14", "18", "22"], help="such as 12 or 10-14")
    parser.add_argument("--strengths", nargs="+", type=float, default=[2.0, 4.0, 8.0])
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--vector", type=Path, help="a folder for the vector, which is read where it is there")
    parser.add_argument("--most", type=int, help="stop behind so many settings; the next run goes on from the JSON")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data = Path(os.environ["TEXTGUIDE_DATA"])
    model, tokenizer = textguide.load(device="cpu", dtype=torch.float32)
    models = {name: textguide.load(source, device="cpu")[0] for name, source in SMALL.items()}
    positive, negative = sentences(data)
    if arguments.vector and arguments.vector.exists():
        vector = steering.load(arguments.vector)
    else:
        vector = steering.train(model, tokenizer, positive, negative, name="smollm2")
        vector = vector.save(arguments.vector) if arguments.vector else vector
    prompts = chosen(data)[: arguments.prompts]
    found: dict[str, Any] = {
        "model": "SmolLM2-135M-Instruct", "torch": torch.__version__, "prompts": len(prompts),
        "tokens": arguments.tokens, "trained_on": [len(positive), len(negative)], "ending": ENDING, "settings": {},
    }  # fmt: skip
    if arguments.json and arguments.json.exists():
        found = json.loads(arguments.json.read_text(encoding="utf-8"))
    waiting = [
        one for one in settings(vector, arguments.layers, arguments.strengths) if one[0] not in found["settings"]
    ]
    for label, make in waiting[: arguments.most]:
        found["settings"][label] = measured(model, tokenizer, prompts, make, models, arguments)
        if arguments.json:
            write_json(arguments.json, found)
    print(f"{'setting':40} {'VADER':>7} {'positive':>9} {'perplexity':>11}")
    for label, one in found["settings"].items():
        print(f"{label:40} {one['vader']:7.3f} {one['positive']:9.3f} {one['perplexity']:11.1f}")


def sentences(data: Path) -> tuple[list[str], list[str]]:
    """Half of the sentences each, positive and negative, with their ending."""
    sides: dict[str, list[str]] = {"1": [], "0": []}
    for line in (data / "sst2/train.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        text, label = line.rsplit("\t", 1)
        if len(text.split()) >= SHORTEST and len(sides[label]) < SENTENCES // 2:
            sides[label].append(text.rstrip(" .") + ENDING)
    return sides["1"], sides["0"]


def chosen(data: Path) -> list[str]:
    """Neutral and negative prompts by turns, so that the first ones hold as many of both."""
    groups = json.loads((data / "prompts/unique_prompts.json").read_text(encoding="utf-8"))
    named = [groups[f"{mood}_prompts_positive_sentiment"].values() for mood in ("neutral", "negative")]
    return [text for pair in zip(*named, strict=True) for text in pair]


def settings(vector: Any, layers: list[str], strengths: list[float]) -> Iterator[tuple[str, Make]]:
    """Labels, and what makes the guidance for a list of prompts."""
    yield "plain", lambda prompts: None
    for layer in layers:
        for strength in strengths:
            yield (
                f"steering, layer {layer}, {strength:g}",
                lambda prompts, at=layer, s=strength: Steering(vector, at, s),
            )
    middle = layers[len(layers) // 2]
    yield f"steering, layer {middle}, -4", lambda prompts: Steering(vector, middle, -4.0)
    yield f"steering, layer {middle}, 2, γ 2", lambda prompts: Steering(vector, middle, 2.0, scale=2.0)
    for weight in (5.0, 20.0):
        yield f"CAIF, α {weight:g}", lambda prompts, w=weight: CAIF("sentiment", "positive", w)
    for weight in (1.0, 2.0):
        yield f"DExperts, α {weight:g}", lambda prompts, w=weight: DExperts(w)
    for scale in (1.5, 3.0):
        yield (
            f"CFG, γ {scale:g}, negative prompt",
            lambda prompts, s=scale: CFG(s, negative_prompt=[GLOOMY + prompt for prompt in prompts]),
        )


def measured(
    model: Any, tokenizer: Any, prompts: list[str], make: Make, models: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Continue every prompt under one setting, and judge what came out."""
    judge = SentimentIntensityAnalyzer()
    scores: list[float] = []
    likelihood, tokens = 0.0, 0
    for start in range(0, len(prompts), arguments.batch):
        batch = prompts[start : start + arguments.batch]
        out = textguide.generate(
            model, tokenizer, batch, make(batch), max_new_tokens=arguments.tokens, do_sample=True, top_k=20,
            temperature=1.0, seed=start, models=models,
        )  # fmt: skip
        plain = textguide.score(model, tokenizer, batch, out.new_tokens)
        likelihood += float(plain.log_likelihood.sum())
        tokens += int(plain.tokens.sum())
        scores += [judge.polarity_scores(text)["compound"] for text in out.texts]
    mean = mean_interval(scores)
    return {
        "vader": mean.mean, "vader_se": mean.stderr, "positive": sum(score >= 0.05 for score in scores) / len(scores),
        "perplexity": math.exp(-likelihood / tokens),
    }  # fmt: skip


if __name__ == "__main__":
    main()
