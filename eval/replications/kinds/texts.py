"""Texts that are written under a guidance, and one number per item from the texts of its prompts.

Fields: ``prompts`` (:func:`.material.prompts`), ``prefix``, ``items``, ``first``, ``measure``, ``tokens``, ``samples``,
``temperature`` (0: greedy), ``aggregate`` (``mean``, ``any``, ``majority``), ``group`` (prompts per item), ``model``,
``dtype``, ``models``, ``at_once``, ``seed``. A side may have its own ``temperature``, ``samples``, ``aggregate`` and
``models``. Texts with weights count by their weights.

Measures: ``positive`` (VADER), ``nll`` (nats per token under the model itself), ``repeated_4``, ``distinct_2``,
``right`` (of sums), ``tokens`` and ``overlap`` (words that the texts of a group share).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from textguide.engine.results import GenerateResult
from textguide.generation import generate
from textguide.scoring import score
from textguide.tasks import continuations, selection

from . import material
from .base import SIDES, Plan, Work, check, chunks, field, guidance_of, load, recorded, rows_of

FIELDS = (
    "prompts", "prefix", "items", "first", "measure", "tokens", "samples", "temperature", "aggregate", "group", "model",
    "dtype", "models", "at_once", "seed",
)  # fmt: skip


Prompt = tuple[int, str]
"""The number of a prompt, and its text."""


@dataclass(frozen=True)
class Text:
    """A text with its prompt.

    Args:
        prompt: number and text of the prompt.
        text: what was written.
        tokens: its token ids.
        log_weight: its weight among the texts of the item; None: all have the same weight.
    """

    prompt: Prompt
    text: str
    tokens: list[int]
    log_weight: float | None = None


def values(test: Mapping[str, Any], work: Work, data: str | None = None) -> dict[str, list[float]]:
    """Numbers per item under both sides."""
    check(test, FIELDS)
    group = int(test.get("group", 1))
    first = int(test.get("first", 0)) * group
    prompts = material.prompts(test["prompts"], data)[first : first + int(test["items"]) * group]
    numbered = [(first + number, test.get("prefix", "") + text) for number, text in enumerate(prompts)]
    model, tokenizer, models = load(test)

    def measure(side: str, items: list[list[Prompt]], number: int) -> list[float]:
        texts = _write(test, side, [prompt for item in items for prompt in item], number, model, tokenizer, models)
        aggregate = field(test, side, "aggregate", "mean")
        numbers = []
        for start in range(0, len(texts), group):
            # The texts of all prompts of an item.
            own = [text for of_prompt in texts[start : start + group] for text in of_prompt]
            numbers.append(aggregated(aggregate, measured(test["measure"], model, tokenizer, own), own))
        return numbers

    return recorded(work, chunks(chunks(numbered, group), int(test.get("at_once", 10))), measure)


def _write(
    test: Mapping[str, Any], side: str, prompts: Sequence[Prompt], number: int, model: Any, tokenizer: Any, models: Any
) -> list[list[Text]]:
    """The texts of each prompt."""
    samples = int(field(test, side, "samples", 1))
    temperature = float(field(test, side, "temperature", 1.0))
    options: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        seed = int(test.get("seed", 0)) + number
        options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0, "seed": seed}
    if samples > 1:
        options["num_return_sequences"] = samples
    result = generate(
        model,
        tokenizer,
        [text for _, text in prompts],
        guidance_of(test, side),
        models=models,
        repetition_penalty=1.0,
        max_new_tokens=int(test["tokens"]),
        batch_size=len(prompts) * samples,
        **options,
    )
    each = len(result.texts) // len(prompts)
    texts: list[list[Text]] = [[] for _ in prompts]
    for row, (text, tokens) in enumerate(zip(result.texts, result.new_tokens, strict=True)):
        if _is_unused(result, row):
            continue
        log_weight = None if result.log_weights is None else float(result.log_weights[row])
        texts[row // each].append(Text(prompts[row // each], text, tokens, log_weight))
    return texts


def _is_unused(result: GenerateResult, row: int) -> bool:
    """Whether a row belongs to a method that forks texts, and no text forked into it."""
    if result.finished is None or result.log_weights is not None:
        return False
    return not result.finished[row] and not result.new_tokens[row]


def measured(name: str, model: Any, tokenizer: Any, texts: Sequence[Text]) -> list[float]:
    """One number per text.

    Args:
        name: of the measure.
        model, tokenizer: of the test, for ``nll``.
        texts: of one item.

    Raises:
        ValueError: the measure is unknown.
    """
    if name == "nll":
        return _nll(model, tokenizer, texts)
    if name == "overlap":
        return _overlap(texts)
    measures = {
        "positive": lambda text: continuations.results({}, [text.text])["positive"],
        "repeated_4": lambda text: 1.0 - _distinct(text.tokens, 4),
        "distinct_2": lambda text: _distinct(text.tokens, 2),
        "right": lambda text: float(answer(text.text) == str(sum(material.SUMS[text.prompt[0]]))),
        "tokens": lambda text: float(len(text.tokens)),
    }
    if name not in measures:
        raise ValueError(f"measure={name!r} is unknown; use one of nll, overlap, {', '.join(measures)}")
    return [measures[name](text) for text in texts]


def _nll(model: Any, tokenizer: Any, texts: Sequence[Text]) -> list[float]:
    """Nats per token under the model itself; an empty text is scored by its end token."""
    rows = [text.tokens or [tokenizer.eos_token_id] for text in texts]
    scores = score(model, tokenizer, [text.prompt[1] for text in texts], rows)
    return (-scores.log_likelihood[0].double() / torch.tensor([len(row) for row in rows])).tolist()


def _overlap(texts: Sequence[Text]) -> list[float]:
    """The mean similarity of each text's words to those of the others."""
    words = [selection.words(text.text) for text in texts]
    numbers = []
    for number, own in enumerate(words):
        others = words[:number] + words[number + 1 :]
        numbers.append(sum(selection.similarity(own, other) for other in others) / max(1, len(others)))
    return numbers


def _distinct(row: Sequence[int], n: int) -> float:
    """The share of n-grams that are distinct; 1 if there are none."""
    return selection.distinct([""], n, lambda _: list(map(str, row))) if len(row) >= n else 1.0


def answer(text: str) -> str:
    """The first number of a text; empty if there is none."""
    match = re.search(r"\d+", text)
    return match[0] if match else ""


def aggregated(how: str, numbers: Sequence[float], texts: Sequence[Text]) -> float:
    """One number per item, from the numbers of its texts.

    Args:
        how: ``mean`` (by weight), ``any`` (the largest) or ``majority`` (of the texts with the most frequent answer).
        numbers: one per text.
        texts: of the item.

    Raises:
        ValueError: ``how`` is unknown.
    """
    if how == "mean":
        weights = torch.ones(len(texts), dtype=torch.float64)
        if texts[0].log_weight is not None:
            weights = torch.tensor([text.log_weight for text in texts], dtype=torch.float64).softmax(0)
        return float((weights * torch.tensor(numbers, dtype=torch.float64)).sum() / weights.sum())
    if how == "any":
        return float(max(numbers))
    if how == "majority":
        answers = [answer(text.text) for text in texts]
        winner = Counter(answers).most_common(1)[0][0]
        return numbers[answers.index(winner)]
    raise ValueError(f"aggregate={how!r} must be mean, any or majority")


def plan(test: Mapping[str, Any]) -> Plan:
    """The cost of prompts and texts."""
    group = int(test.get("group", 1))
    prompts = int(test["items"]) * group
    prompt_tokens = 80 if test["prompts"] == "sums" else 24
    new_tokens = int(test["tokens"])
    total = Plan(0, 0)
    for side in SIDES:
        rows = rows_of(guidance_of(test, side)) * int(field(test, side, "samples", 1))
        batches = max(1, prompts // (int(test.get("at_once", 10)) * group))
        total += Plan(passes=batches * (1 + new_tokens), tokens=prompts * rows * (prompt_tokens + new_tokens))
    return total
