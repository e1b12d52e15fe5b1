"""Texts that are written, and one number for those of each prompt.

Fields: ``prompts`` (:func:`.material.prompts`), ``prefix``, ``items``, ``first``, ``measure``, ``tokens``, ``samples``,
``temperature`` (0: greedy), ``aggregate`` (``mean``, ``any``, ``majority``), ``group`` (prompts that make one item),
``model``, ``dtype``, ``models``, ``at_once``, ``seed``. A side may have its own of ``temperature``, ``samples``,
``aggregate`` and ``models``. Texts with weights count by them.

Measures: ``positive`` (VADER), ``nll`` (nats a token under the model itself), ``repeated_4``, ``distinct_2``, ``right``
(of sums), ``tokens`` and ``overlap`` (words that the texts of a group share).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import textguide
from textguide.tasks import continuations, selection

from . import material
from .base import SIDES, Plan, Work, check, field, guidance_of, load, resumed, rows_of, split_up

FIELDS = (
    "prompts", "prefix", "items", "first", "measure", "tokens", "samples", "temperature", "aggregate", "group", "model",
    "dtype", "models", "at_once", "seed",
)  # fmt: skip


def values(test: Mapping[str, Any], work: Work, data: str | None = None) -> dict[str, list[float]]:
    """Numbers an item under both sides."""
    check(test, FIELDS)
    group = int(test.get("group", 1))
    first = int(test.get("first", 0)) * group
    chosen = material.prompts(test["prompts"], data)[first : first + int(test["items"]) * group]
    given = [(number + first, test.get("prefix", "") + text) for number, text in enumerate(chosen)]
    model, tokenizer, models = load(test)

    def write(side: str, part: list[list[tuple[int, str]]], number: int) -> list[float]:
        rows = [row for members in part for row in members]
        temperature = float(field(test, side, "temperature", 1.0))
        guidance = guidance_of(test, side)
        samples = int(field(test, side, "samples", 1))
        sampling: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            sampling |= {
                "temperature": temperature,
                "top_k": 0,
                "top_p": 1.0,
                "seed": int(test.get("seed", 0)) + number,
            }
        if samples > 1:
            sampling["num_return_sequences"] = samples
        out = textguide.generate(
            model, tokenizer, [text for _, text in rows], guidance, models=models, repetition_penalty=1.0,
            max_new_tokens=int(test["tokens"]), batch_size=len(rows) * samples, **sampling,
        )  # fmt: skip
        each = len(out.texts) // len(rows)
        found = []
        for place in range(0, len(rows), group):
            texts = list(range(place * each, (place + group) * each))
            if out.finished is not None and out.log_weights is None:  # of texts that fork, those that were used
                texts = [n for n in texts if out.finished[n] or out.new_tokens[n]]
            weights = torch.ones(len(texts)) if out.log_weights is None else out.log_weights[texts].softmax(0)
            asked = [rows[n // each] for n in texts]
            numbers = measured(test, model, tokenizer, asked, [out.texts[n] for n in texts],
                               [out.new_tokens[n] for n in texts])  # fmt: skip
            found.append(
                aggregated(field(test, side, "aggregate", "mean"), numbers, [out.texts[n] for n in texts], weights)
            )
        return found

    items = split_up(given, group)
    return resumed(work, split_up(items, int(test.get("at_once", 10))), write)


def measured(
    test: Mapping[str, Any],
    model: Any,
    tokenizer: Any,
    asked: Sequence[tuple[int, str]],
    texts: Sequence[str],
    tokens: Sequence[list[int]],
) -> list[float]:
    """One number a text.

    Raises:
        ValueError: there is no such measure.
    """
    name = test["measure"]
    if name == "positive":
        return [continuations.results({}, [text])["positive"] for text in texts]
    if name == "nll":
        kept = [row if row else [tokenizer.eos_token_id] for row in tokens]
        scored = textguide.score(model, tokenizer, [text for _, text in asked], kept)
        return (-scored.log_likelihood[0].double() / torch.tensor([len(row) for row in kept])).tolist()
    if name == "repeated_4":
        return [1.0 - _distinct(row, 4) for row in tokens]
    if name == "distinct_2":
        return [_distinct(row, 2) for row in tokens]
    if name == "right":
        return [float(answer(text) == str(sum(material.SUMS[n]))) for (n, _), text in zip(asked, texts, strict=True)]
    if name == "tokens":
        return [float(len(row)) for row in tokens]
    if name == "overlap":
        words = [selection.words(text) for text in texts]
        return [
            sum(selection.similarity(own, other) for other in words[:n] + words[n + 1 :]) / max(1, len(words) - 1)
            for n, own in enumerate(words)
        ]
    raise ValueError(f"measure={name!r} is unknown; see the kind texts")


def answer(text: str) -> str:
    """The first number of a text; "" where there is none."""
    found = re.search(r"\d+", text)
    return found[0] if found else ""


def aggregated(how: str, numbers: Sequence[float], texts: Sequence[str], weights: torch.Tensor) -> float:
    """One number for the texts of an item.

    Raises:
        ValueError: ``how`` is none of the ways.
    """
    if how == "mean":
        return float((weights.double() * torch.tensor(numbers, dtype=torch.float64)).sum() / weights.double().sum())
    if how == "any":
        return float(max(numbers))
    if how == "majority":
        winner = Counter(map(answer, texts)).most_common(1)[0][0]
        return next(number for number, text in zip(numbers, texts, strict=True) if answer(text) == winner)
    raise ValueError(f"aggregate={how!r} must be mean, any or majority")


def plan(test: Mapping[str, Any]) -> Plan:
    """Positions of prompts and texts."""
    items = int(test["items"]) * int(test.get("group", 1))
    prompt = 80 if test["prompts"] == "sums" else 24
    total = Plan(0, 0)
    for side in SIDES:
        rows = rows_of(guidance_of(test, side)) * int(field(test, side, "samples", 1))
        parts = max(1, items // (int(test.get("at_once", 10)) * int(test.get("group", 1))))
        total += Plan(passes=parts * (1 + int(test["tokens"])), tokens=items * rows * (prompt + int(test["tokens"])))
    return total


def _distinct(row: Sequence[int], n: int) -> float:
    return selection.distinct([""], n, lambda _: list(map(str, row))) if len(row) >= n else 1.0
