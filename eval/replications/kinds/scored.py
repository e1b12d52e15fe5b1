"""Existing texts, scored under both sides.

Fields: ``texts`` (:func:`.material.passages`), ``items``, ``first``, ``measure`` (``nll``: nats per token; ``entropy``:
mean entropy of the distributions along the text, in nats), ``model``, ``dtype``, ``models``, ``at_once``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from textguide.engine.given_texts import as_items, distributions, leading

from . import material
from .base import SIDES, Plan, Work, check, chunks, guidance_of, load, recorded, rows_of

FIELDS = ("texts", "items", "first", "measure", "model", "dtype", "models", "at_once")


def values(test: Mapping[str, Any], work: Work, data: str | None = None) -> dict[str, list[float]]:
    """Numbers per text under both sides."""
    check(test, FIELDS)
    first = int(test.get("first", 0))
    passages = material.passages(test["texts"], data)[first : first + int(test["items"])]
    if test["measure"] not in ("nll", "entropy"):
        raise ValueError(f"measure={test['measure']!r} must be nll or entropy")
    model, tokenizer, models = load(test)

    def score(side: str, part: list[material.Pair], _: int) -> list[float]:
        guidance = guidance_of(test, side)
        contexts = [context for context, _ in part]
        continuations = [continuation for _, continuation in part]
        items = as_items(model, tokenizer, contexts, continuations, None, leading([guidance]))
        log_probs = distributions(model, items, guidance, tokenizer=tokenizer, models=models).float()
        lengths = [len(item.continuation) for item in items]
        if test["measure"] == "entropy":
            numbers = torch.special.entr(log_probs.exp()).sum(-1)
        else:
            targets = torch.tensor([token for item in items for token in item.continuation])
            numbers = -log_probs.gather(-1, targets[:, None])[:, 0]
        return [float(row.double().mean()) for row in numbers.split(lengths)]

    return recorded(work, chunks(passages, int(test.get("at_once", 8))), score)


def plan(test: Mapping[str, Any]) -> Plan:
    """The cost of contexts and texts."""
    items = int(test["items"])
    rows = sum(rows_of(guidance_of(test, side)) for side in SIDES)
    length = 90 if test["texts"] == "lambada" else 30
    return Plan(passes=rows * max(1, items // int(test.get("at_once", 8))), tokens=rows * items * length)
